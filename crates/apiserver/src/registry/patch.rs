//! Patch: JSON, merge, strategic and (when asked) apply, all through the update loop.

use sampan_api::codec::printed;
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
        let validation = options.field_validation;
        let (patch, repeated) = parse(kind, body, validation)?;
        self.change(call, part, options, false, &mut |call, old| {
            let old = old.ok_or_else(|| call.not_found())?;
            let mut new = patched(&patch, old, call)?;
            settle(call, &mut new, validation, &repeated, &patch)?;
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
            .map_err(|error| refuse(Status::bad_request(format!("error decoding YAML: {YAML}: {error}"))))?;
        let complaint = match (parsed.complaint, parsed.duplicates.as_slice()) {
            (Some(text), _) => Some(format!("{YAML}: {text}")),
            (None, []) => None,
            (None, paths) => Some(
                paths
                    .iter()
                    .map(|path| format!("duplicate field {path:?}"))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        };
        let mut config = parsed.object;
        if !config.is_object() {
            return Err(refuse(Status::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: {}",
                not_a_map(&config)
            ))));
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
            match (&complaint, options.field_validation) {
                (Some(text), FieldValidation::Strict) => {
                    return Err(refuse(Status::bad_request(format!(
                        "error strict decoding YAML: {text}"
                    ))));
                }
                (Some(text), FieldValidation::Warn) => call.warn(text.clone()),
                _ => {}
            }
            if old != Some(&new) {
                settle(call, &mut new, FieldValidation::Ignore, &[], &Patch::Merge(Value::Null))?;
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

/// What Go's YAML reader for typed values puts before its complaints.
const YAML: &str = "error converting YAML to JSON";

fn not_a_map(value: &Value) -> String {
    format!(
        "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
        codec::check::json_kind(value)
    )
}

/// The patch, and what strict decoding complains of in the patch itself.
fn parse(kind: PatchType, body: &[u8], validation: FieldValidation) -> Result<(Patch, Vec<String>), Refusal> {
    let bad = |text: String| refuse(Status::bad_request(text));
    let strict = validation != FieldValidation::Ignore;
    let parsed = codec::json::decode(body).map_err(|error| match (kind, strict) {
        (PatchType::Merge, false) => bad("Invalid JSON Patch".into()),
        (PatchType::Json | PatchType::Merge, true) => bad(format!("error decoding patch: {error}")),
        _ => bad(error.to_string()),
    })?;
    let mut complaints: Vec<String> = Vec::new();
    if strict {
        complaints.extend(parsed.duplicates.iter().map(|path| format!("duplicate field {path:?}")));
    }
    let tree = parsed.object;
    let patch = match kind {
        PatchType::Json => {
            if strict {
                complaints.extend(json::unknown_members(&tree).map(|path| format!("unknown field {path:?}")));
                complaints.iter_mut().for_each(|text| text.insert_str(0, "json patch "));
            }
            Patch::Json(json::JsonPatch::from_value(tree).map_err(|error| refuse((&error).into()))?)
        }
        // A configuration is not a patch: apply is dealt with before.
        PatchType::Merge | PatchType::Apply | PatchType::Strategic if !tree.is_object() && !tree.is_null() => {
            return Err(match (kind, strict) {
                (PatchType::Strategic, _) => bad(not_a_map(&tree)),
                (_, true) => bad(format!("error decoding patch: {}", not_a_map(&tree))),
                _ => bad("Invalid JSON Patch".into()),
            });
        }
        PatchType::Merge | PatchType::Apply => Patch::Merge(tree),
        PatchType::Strategic => Patch::Strategic(tree),
    };
    Ok((patch, complaints))
}

fn patched(patch: &Patch, old: &Object, call: &Call) -> Result<Object, Refusal> {
    match patch {
        Patch::Json(patch) => {
            let mut new = old.clone();
            // Paths of a JSON patch may end at what is printed though nobody gave it.
            printed::complete(&mut new);
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
///
/// `repeated`: what was found in the patch itself; it is reported together with what is found in the object.
fn settle(
    call: &mut Call,
    new: &mut Object,
    validation: FieldValidation,
    repeated: &[String],
    patch: &Patch,
) -> Result<(), Refusal> {
    let kind = sampan_api::meta::kind(new);
    let version = sampan_api::meta::api_version(new);
    if kind != call.row.spec.kind || version != call.row.api_version {
        return Err(refuse(Status::bad_request(format!(
            "the API version or kind in the data ({version}, {kind}) does not match the expected ({}, {})",
            call.row.api_version, call.row.spec.kind
        ))));
    }
    // What upstream shows of the faulty value: the patch if it is a strategic one, else the patched object. Not so of
    // Secrets: who may patch them need not have the right to read them, and audit logs keep the message.
    let secret = call.row.is("", "secrets");
    let shown = |new: &Object| match patch {
        _ if secret => "<secret contents redacted>".to_owned(),
        Patch::Strategic(patch) => strategic::go(patch),
        _ => new.to_string(),
    };
    let before = (validation == FieldValidation::Strict).then(|| new.clone());
    let findings = match codec::check(&call.row.ty, new) {
        Ok(findings) => findings,
        Err(error) => return Err(invalid_patch(&shown(new), &error.to_string())),
    };
    let unknown = findings.unknown.iter().map(|path| format!("unknown field {path:?}"));
    let complaints: Vec<String> = repeated.iter().cloned().chain(unknown).collect();
    match validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            let why = format!("strict decoding error: {}", complaints.join(", "));
            return Err(invalid_patch(&shown(before.as_ref().unwrap_or(new)), &why));
        }
        FieldValidation::Warn => complaints.into_iter().for_each(|text| call.warn(text)),
        _ => {}
    }
    call.row.default(new);
    Ok(())
}

fn invalid_patch(patch: &str, why: &str) -> Refusal {
    let error = field::Error::invalid(&field::Path::new("patch"), patch, why);
    refuse(Status::invalid("", "", "", &[error]))
}
