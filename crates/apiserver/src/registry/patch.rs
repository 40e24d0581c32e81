//! Patch: JSON, merge, strategic and (when asked) apply, all through the update loop.

use sampan_api::patch::{json, merge, strategic};
use sampan_api::status::Status;
use sampan_api::{Object, codec, field, meta};
use sampan_kinds::Part;
use serde_json::Value;

use super::reply::Reply;
use super::{Call, Registry, managers};
use crate::request::{Encoding, FieldValidation, WriteOptions};
use crate::{Refusal, refuse};

/// What kind of patch a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    pub fn of_content_type(content_type: &str) -> Result<Self, Refusal> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(PatchType::Json),
            "application/merge-patch+json" => Ok(PatchType::Merge),
            "application/strategic-merge-patch+json" => Ok(PatchType::Strategic),
            "application/apply-patch+yaml" => Ok(PatchType::Apply),
            _ => Err(refuse(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml",
            ))),
        }
    }
}

/// A patch, parsed once and applied as often as the target moves.
enum Patch {
    Json(json::JsonPatch),
    Merge(Value),
    Strategic(Value),
}

impl Registry {
    pub async fn patch(
        &self,
        call: &mut Call,
        part: Part<'_>,
        kind: PatchType,
        body: &[u8],
        options: &WriteOptions,
    ) -> Result<Reply, Refusal> {
        if kind == PatchType::Apply {
            return self.apply(call, part, body, options).await;
        }
        if options.force {
            return Err(options_refused(
                "force: Forbidden: may not be specified for non-apply patch",
            ));
        }
        let mut duplicates = Vec::new();
        let patch = parse(kind, body, &mut duplicates)?;
        if !duplicates.is_empty() && options.field_validation == FieldValidation::Strict {
            return Err(strict(body, &duplicates));
        }
        if options.field_validation == FieldValidation::Warn {
            for text in duplicates {
                call.warn(text);
            }
        }
        let validation = options.field_validation;
        self.change(call, part, options, false, &mut |call, old| {
            let old = old.ok_or_else(|| call.not_found())?;
            let mut new = patched(&patch, old, call)?;
            settle(call, &mut new, validation)?;
            Ok(new)
        })
        .await
    }

    /// Server-side apply: the object is made what the configuration says, and made at all if it is absent.
    async fn apply(
        &self,
        call: &mut Call,
        part: Part<'_>,
        body: &[u8],
        options: &WriteOptions,
    ) -> Result<Reply, Refusal> {
        if options.field_manager.is_empty() {
            return Err(options_refused(
                "fieldManager: Required value: is required for apply patch",
            ));
        }
        let parsed = codec::parse(body, Encoding::Yaml, None)
            .map_err(|error| refuse(Status::bad_request(format!("error decoding YAML: {error}"))))?;
        let mut complaints: Vec<String> = parsed.complaint.into_iter().collect();
        if complaints.is_empty() {
            complaints.extend(parsed.duplicates.iter().map(|path| format!("duplicate field {path:?}")));
        }
        match options.field_validation {
            FieldValidation::Strict if !complaints.is_empty() => {
                return Err(refuse(Status::bad_request(format!(
                    "strict decoding error: {}",
                    complaints.join(", ")
                ))));
            }
            FieldValidation::Warn => complaints.into_iter().for_each(|text| call.warn(text)),
            _ => {}
        }
        let mut config = parsed.object;
        if !config.is_object() {
            return Err(refuse(Status::bad_request(
                "the applied configuration must be an object",
            )));
        }
        let name = meta::name(&config);
        if !name.is_empty() && name != call.info.name {
            return Err(refuse(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.info.name
            ))));
        }
        let name = call.info.name.clone();
        meta::set_name(&mut config, &name);
        if call.row.spec.namespaced && meta::namespace(&config).is_empty() {
            let namespace = call.info.namespace.clone();
            meta::set_namespace(&mut config, &namespace);
        }
        // The merge itself says who owns what.
        call.tracked = false;
        let create = part == Part::Main;
        self.change(call, part, options, create, &mut |call, old| {
            let mut new = managers::apply(call, options, old, &config)?;
            if old != Some(&new) {
                settle(call, &mut new, FieldValidation::Ignore)?;
            }
            Ok(new)
        })
        .await
    }
}

fn options_refused(why: &str) -> Refusal {
    refuse(Status::new(
        422,
        "Invalid",
        format!("PatchOptions.meta.k8s.io \"\" is invalid: {why}"),
    ))
}

fn parse(kind: PatchType, body: &[u8], duplicates: &mut Vec<String>) -> Result<Patch, Refusal> {
    let mut tree = || -> Result<Value, Refusal> {
        let parsed = codec::parse(body, Encoding::Json, None)
            .map_err(|error| refuse(Status::bad_request(format!("error decoding patch: {error}"))))?;
        duplicates.extend(parsed.duplicates.iter().map(|path| format!("duplicate field {path:?}")));
        Ok(parsed.object)
    };
    Ok(match kind {
        PatchType::Json => Patch::Json(json::JsonPatch::parse(body).map_err(|error| refuse((&error).into()))?),
        PatchType::Merge => Patch::Merge(tree()?),
        PatchType::Strategic => Patch::Strategic(tree()?),
        // Handled before; a configuration is not a patch.
        PatchType::Apply => Patch::Merge(tree()?),
    })
}

fn patched(patch: &Patch, old: &Object, call: &Call) -> Result<Object, Refusal> {
    match patch {
        Patch::Json(patch) => {
            let mut new = old.clone();
            patch.apply(&mut new).map_err(|error| refuse((&error).into()))?;
            Ok(new)
        }
        Patch::Merge(patch) => {
            let mut new = old.clone();
            merge::apply(&mut new, patch.clone()).map_err(|error| refuse(error.into()))?;
            Ok(new)
        }
        Patch::Strategic(patch) => {
            if matches!(call.row.ty, sampan_api::schema::Type::Struct(_)) {
                return Err(refuse(Status::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                )));
            }
            strategic::apply(old.clone(), patch.clone(), &&call.row.ty).map_err(|error| refuse((&error).into()))
        }
    }
}

/// Checks a patched object against its type, as decoding does, and fills in defaults.
fn settle(call: &mut Call, new: &mut Object, validation: FieldValidation) -> Result<(), Refusal> {
    let kind = sampan_api::meta::kind(new);
    let version = sampan_api::meta::api_version(new);
    if kind != call.row.spec.kind || version != call.row.api_version {
        return Err(refuse(Status::bad_request(format!(
            "the API version or kind in the data ({version}, {kind}) does not match the expected ({}, {})",
            call.row.api_version, call.row.spec.kind
        ))));
    }
    let findings = match codec::check(&call.row.ty, new) {
        Ok(findings) => findings,
        Err(error) => return Err(invalid_patch(&new.to_string(), &error.to_string())),
    };
    let unknown: Vec<String> = findings
        .unknown
        .iter()
        .map(|path| format!("unknown field {path:?}"))
        .collect();
    match validation {
        FieldValidation::Strict if !unknown.is_empty() => return Err(strict(new.to_string().as_bytes(), &unknown)),
        FieldValidation::Warn => {
            for text in unknown {
                call.warn(text);
            }
        }
        _ => {}
    }
    call.row.default(new);
    Ok(())
}

fn strict(patch: &[u8], complaints: &[String]) -> Refusal {
    invalid_patch(
        &String::from_utf8_lossy(patch),
        &format!("strict decoding error: {}", complaints.join(", ")),
    )
}

fn invalid_patch(patch: &str, why: &str) -> Refusal {
    let error = field::Error::invalid(&field::Path::new("patch"), patch, why);
    refuse(Status::invalid("", "", "", &[error]))
}
