//! Patch: JSON, merge, strategic and (when asked) apply, all through the update loop.

use sampan_api::patch::{json, merge, strategic};
use sampan_api::status::Status;
use sampan_api::{Object, codec, field};
use sampan_kinds::Part;
use serde_json::Value;

use super::reply::Reply;
use super::{Call, Registry};
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
        PatchType::Apply => {
            return Err(refuse(Status::unsupported_media_type(
                "server-side apply is not served yet; use kubectl apply without --server-side",
            )));
        }
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
    let shown = |new: &Object| new.to_string();
    let kind = sampan_api::meta::kind(new);
    let version = sampan_api::meta::api_version(new);
    if kind != call.row.spec.kind || version != call.row.api_version {
        return Err(refuse(Status::bad_request(format!(
            "the API version or kind in the data ({version}, {kind}) does not match the expected ({}, {})",
            call.row.api_version, call.row.spec.kind
        ))));
    }
    let before = shown(new);
    let findings = codec::check(&call.row.ty, new).map_err(|error| invalid_patch(&before, &error.to_string()))?;
    let unknown: Vec<String> = findings
        .unknown
        .iter()
        .map(|path| format!("unknown field {path:?}"))
        .collect();
    match validation {
        FieldValidation::Strict if !unknown.is_empty() => return Err(strict(before.as_bytes(), &unknown)),
        FieldValidation::Warn => {
            for text in unknown {
                call.warn(text);
            }
        }
        _ => {}
    }
    call.row.spec.strategy.default(new);
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
