//! The options of a request: what may stand in its query, or in the body of a delete.

pub use sampan_api::codec::Validation as FieldValidation;
use sampan_api::field::{Error, Path};
use sampan_api::status::Status;
use sampan_kinds::Propagation;
use serde_json::Value;

use super::query::Query;
use crate::{Refusal, refuse};

/// `metav1.ListOptions` beyond the selectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub watch: bool,
    pub bookmarks: bool,
    pub resource_version: String,
    pub version_match: VersionMatch,
    pub timeout_seconds: Option<u64>,
    /// 0: no limit.
    pub limit: usize,
    pub continue_token: String,
    pub send_initial_events: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VersionMatch {
    #[default]
    Unset,
    Exact,
    NotOlderThan,
}

impl ListOptions {
    pub fn parse(query: &Query, watch: bool) -> Result<Self, Refusal> {
        let matching = query.text("resourceVersionMatch").unwrap_or_default();
        let options = ListOptions {
            label_selector: query.text("labelSelector").unwrap_or_default().to_owned(),
            field_selector: query.text("fieldSelector").unwrap_or_default().to_owned(),
            watch,
            bookmarks: query.flag("allowWatchBookmarks"),
            resource_version: query.text("resourceVersion").unwrap_or_default().to_owned(),
            version_match: match matching {
                "Exact" => VersionMatch::Exact,
                "NotOlderThan" => VersionMatch::NotOlderThan,
                _ => VersionMatch::Unset,
            },
            timeout_seconds: number(query, "timeoutSeconds")?,
            limit: number(query, "limit")?.unwrap_or(0) as usize,
            continue_token: query.text("continue").unwrap_or_default().to_owned(),
            send_initial_events: query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents")),
        };
        options.check(matching)?;
        Ok(options)
    }

    /// Which combinations make sense, as upstream says it.
    fn check(&self, matching: &str) -> Result<(), Refusal> {
        let path = Path::new("resourceVersionMatch");
        let forbidden = |why: &str| Error::forbidden(&path, why);
        let mut errors = Vec::new();
        let given = !matching.is_empty();
        let initial = self.send_initial_events.is_some();
        if self.watch {
            if initial && matching != "NotOlderThan" {
                errors.push(forbidden(
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if given && !initial {
                errors.push(forbidden(
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if given && matching != "NotOlderThan" {
                errors.push(Error::not_supported(&path, matching, &["NotOlderThan"]));
            }
        } else {
            if given && self.resource_version.is_empty() {
                errors.push(forbidden(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if given && !self.continue_token.is_empty() {
                errors.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
            }
            if given && !matches!(matching, "Exact" | "NotOlderThan") {
                errors.push(Error::not_supported(&path, matching, &["Exact", "NotOlderThan", ""]));
            }
            if matching == "Exact" && self.resource_version == "0" {
                errors.push(forbidden(
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            if initial {
                let path = Path::new("sendInitialEvents");
                errors.push(Error::forbidden(&path, "sendInitialEvents is forbidden for list"));
            }
        }
        if self.watch && given && !self.continue_token.is_empty() {
            errors.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(refuse(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)))
    }
}

fn number(query: &Query, key: &str) -> Result<Option<u64>, Refusal> {
    query
        .text(key)
        .map(|text| {
            text.parse::<i64>().map(|number| number.max(0) as u64).map_err(|_| {
                refuse(Status::bad_request(format!(
                    "invalid {key}: strconv.ParseInt: parsing {text:?}: invalid syntax"
                )))
            })
        })
        .transpose()
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    /// Apply only: take over fields other managers own.
    pub force: bool,
}

impl WriteOptions {
    pub fn parse(query: &Query, kind: &str) -> Result<Self, Refusal> {
        let field_manager = query.text("fieldManager").unwrap_or_default();
        if field_manager.chars().count() > 128 {
            return Err(options_invalid(
                kind,
                "fieldManager: Too long: may not be more than 128 bytes",
            ));
        }
        if field_manager.chars().any(char::is_control) {
            return Err(options_invalid(
                kind,
                &format!("fieldManager: Invalid value: {field_manager:?}: should only contain printable characters"),
            ));
        }
        Ok(WriteOptions {
            dry_run: dry_run(query.all("dryRun"), kind)?,
            field_manager: field_manager.to_owned(),
            field_validation: {
                let asked = query.get("fieldValidation").unwrap_or_default();
                FieldValidation::parse(asked).ok_or_else(|| {
                    options_invalid(
                        kind,
                        &format!(
                            "fieldValidation: Unsupported value: {asked:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
                        ),
                    )
                })?
            },
            force: query.flag("force"),
        })
    }
}

fn options_invalid(kind: &str, message: &str) -> Refusal {
    refuse(Status::new(
        422,
        "Invalid",
        format!("{kind}.meta.k8s.io \"\" is invalid: {message}"),
    ))
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, kind: &str) -> Result<bool, Refusal> {
    let mut asked = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value != "All" {
            return Err(options_invalid(
                kind,
                &format!("dryRun: Unsupported value: [{value:?}]: supported values: \"All\""),
            ));
        }
        asked = true;
    }
    Ok(asked)
}

const IGNORE_READ_ERROR: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";

/// `metav1.DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
    /// Delete an object that cannot be read (`ignoreStoreReadErrorWithClusterBreakingPotential`).
    pub ignore_read_error: bool,
}

impl DeleteOptions {
    /// A body wins over the query, as upstream has it.
    pub fn parse(query: &Query, body: Option<&Value>) -> Result<Self, Refusal> {
        const KIND: &str = "DeleteOptions";
        let Some(body) = body.filter(|body| !body.is_null()) else {
            return Ok(DeleteOptions {
                grace_period_seconds: query
                    .text("gracePeriodSeconds")
                    .map(|text| {
                        text.parse::<i64>().map_err(|_| {
                            refuse(Status::bad_request(format!(
                                "strconv.ParseInt: parsing {text:?}: invalid syntax"
                            )))
                        })
                    })
                    .transpose()?,
                propagation: propagation(
                    query.text("propagationPolicy"),
                    query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
                )?,
                uid: None,
                resource_version: None,
                dry_run: dry_run(query.all("dryRun"), KIND)?,
                ignore_read_error: query.flag(IGNORE_READ_ERROR),
            });
        };
        if !body.is_object() {
            return Err(refuse(Status::bad_request("DeleteOptions must be an object")));
        }
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
        if let Some(kind) = text("/kind").filter(|kind| *kind != KIND) {
            return Err(refuse(Status::bad_request(format!(
                "unexpected kind {kind:?} in the body of a delete; it takes DeleteOptions"
            ))));
        }
        let dry = body
            .pointer("/dryRun")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        Ok(DeleteOptions {
            grace_period_seconds: match body.get("gracePeriodSeconds") {
                None | Some(Value::Null) => None,
                Some(value) => Some(value.as_i64().ok_or_else(|| {
                    refuse(Status::bad_request(
                        "DeleteOptions.gracePeriodSeconds must be an integer",
                    ))
                })?),
            },
            propagation: propagation(
                text("/propagationPolicy"),
                body.get("orphanDependents").and_then(Value::as_bool),
            )?,
            uid: text("/preconditions/uid").map(str::to_owned),
            resource_version: text("/preconditions/resourceVersion").map(str::to_owned),
            dry_run: dry_run(dry.chain(query.all("dryRun")), KIND)?,
            ignore_read_error: body.get(IGNORE_READ_ERROR).and_then(Value::as_bool) == Some(true),
        })
    }
}

fn propagation(policy: Option<&str>, orphan: Option<bool>) -> Result<Option<Propagation>, Refusal> {
    Ok(match (policy, orphan) {
        (Some(_), Some(_)) => {
            return Err(options_invalid(
                "DeleteOptions",
                "propagationPolicy: Invalid value: \"\": orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        (Some("Background"), None) => Some(Propagation::Background),
        (Some("Foreground"), None) => Some(Propagation::Foreground),
        (Some("Orphan"), None) => Some(Propagation::Orphan),
        (Some(other), None) => {
            return Err(options_invalid(
                "DeleteOptions",
                &format!(
                    "propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                ),
            ));
        }
        (None, Some(true)) => Some(Propagation::Orphan),
        (None, Some(false)) => Some(Propagation::Background),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn list_options_that_contradict_are_refused() {
        for (query, watch) in [
            ("resourceVersionMatch=Exact", false),
            ("resourceVersionMatch=Exact&resourceVersion=0", false),
            ("resourceVersionMatch=Newest&resourceVersion=1", false),
            ("sendInitialEvents=true", false),
            ("sendInitialEvents=true&allowWatchBookmarks=true", true),
            ("resourceVersionMatch=NotOlderThan", true),
            ("sendInitialEvents=false&resourceVersionMatch=Exact", true),
            ("limit=many", false),
        ] {
            assert!(ListOptions::parse(&Query::parse(query), watch).is_err(), "{query}");
        }
        let message = |query: &str| ListOptions::parse(&Query::parse(query), false).err().unwrap().message;
        let start = "ListOptions.meta.k8s.io \"\" is invalid: ";
        assert_eq!(
            message("resourceVersionMatch=Newest&resourceVersion=1"),
            format!(
                "{start}resourceVersionMatch: Unsupported value: \"Newest\": supported values: \"Exact\", \"NotOlderThan\", \"\""
            )
        );
        let forbidden = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden";
        assert_eq!(
            message("resourceVersionMatch=Exact&continue=x"),
            format!("{start}[{forbidden} unless resourceVersion is provided, {forbidden} when continue is provided]")
        );
        // Without bookmarks there is no mark at the end of the state, that is all.
        let unmarked = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        assert!(ListOptions::parse(&Query::parse(unmarked), true).is_ok());
        let good = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        assert!(ListOptions::parse(&Query::parse(good), true).is_ok());
    }

    #[test]
    fn delete_options_come_from_the_body_or_the_query() {
        let body = json!({"propagationPolicy": "Foreground", "gracePeriodSeconds": 0,
            "preconditions": {"uid": "u"}, "dryRun": ["All"]});
        let options = DeleteOptions::parse(&Query::parse("gracePeriodSeconds=9"), Some(&body)).unwrap();
        assert_eq!(options.grace_period_seconds, Some(0));
        assert_eq!(options.propagation, Some(Propagation::Foreground));
        assert_eq!(options.uid.as_deref(), Some("u"));
        assert!(options.dry_run);
        let options =
            DeleteOptions::parse(&Query::parse("gracePeriodSeconds=9&propagationPolicy=Orphan"), None).unwrap();
        assert_eq!(
            (options.grace_period_seconds, options.propagation),
            (Some(9), Some(Propagation::Orphan))
        );
        assert!(DeleteOptions::parse(&Query::parse("dryRun=Some"), None).is_err());
        assert!(DeleteOptions::parse(&Query::parse(""), Some(&json!({"kind": "Pod"}))).is_err());
    }
}
