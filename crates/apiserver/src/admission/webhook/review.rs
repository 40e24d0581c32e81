//! The AdmissionReview: what is sent, and what of the answer is believed.

use std::collections::BTreeMap;

use base64::Engine;
use sampan_api::Object;
use sampan_api::codec::printed;
use sampan_api::patch::json::JsonPatch;
use sampan_api::status::{Cause, Details, Status};
use serde::{Deserialize, Serialize};

use super::super::matching::Request;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sent<'a> {
    kind: &'static str,
    api_version: String,
    request: Asked<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Asked<'a> {
    uid: &'a str,
    #[serde(flatten)]
    request: Request<'a>,
    object: Option<&'a Object>,
    old_object: Option<&'a Object>,
}

/// The body of the call: objects as Go prints them.
pub fn request(
    version: &str,
    uid: &str,
    request: Request<'_>,
    object: Option<&Object>,
    old_object: Option<&Object>,
) -> Vec<u8> {
    let printed = |object: Option<&Object>| {
        object.cloned().map(|mut object| {
            printed::complete(&mut object);
            object
        })
    };
    let (object, old_object) = (printed(object), printed(old_object));
    let sent = Sent {
        kind: "AdmissionReview",
        api_version: format!("admission.k8s.io/{version}"),
        request: Asked {
            uid,
            request,
            object: object.as_ref(),
            old_object: old_object.as_ref(),
        },
    };
    // Trees of maps with text keys always encode.
    serde_json::to_vec(&sent).unwrap_or_default()
}

/// Go reads `null` as "not there", so everything is optional.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Received {
    kind: Option<String>,
    api_version: Option<String>,
    response: Option<Response>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: Option<String>,
    allowed: Option<bool>,
    status: Option<Told>,
    patch: Option<String>,
    patch_type: Option<String>,
    audit_annotations: Option<BTreeMap<String, Option<String>>>,
    warnings: Option<Vec<Option<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    message: Option<String>,
    reason: Option<String>,
    code: Option<i32>,
    details: Option<ToldDetails>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToldDetails {
    name: Option<String>,
    group: Option<String>,
    kind: Option<String>,
    uid: Option<String>,
    causes: Option<Vec<ToldCause>>,
    retry_after_seconds: Option<u32>,
}

#[derive(Deserialize)]
struct ToldCause {
    reason: Option<String>,
    message: Option<String>,
    field: Option<String>,
}

/// A believable answer.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// The refusal, if it is one.
    pub denied: Option<Status>,
    pub patch: Vec<u8>,
    pub warnings: Vec<String>,
    pub annotations: BTreeMap<String, String>,
}

/// Why an answer is not believed.
#[derive(Debug, PartialEq, Eq)]
pub enum Bad {
    /// It cannot even be read.
    Unreadable(String),
    Invalid(String),
}

/// Reads and checks an answer to the review `uid` of `version` by the webhook `hook`.
pub fn answer(body: &[u8], version: &str, uid: &str, hook: &str, mutating: bool) -> Result<Answer, Bad> {
    let received: Received = serde_json::from_slice(body)
        .map_err(|error| Bad::Unreadable(format!("couldn't get version/kind; json parse error: {error}")))?;
    let invalid = |why: String| Err(Bad::Invalid(why));
    let Some(response) = received.response else {
        return invalid("webhook response was absent".into());
    };
    let strict = version == "v1";
    let answered = response.uid.unwrap_or_default();
    if strict && answered != uid {
        return invalid(format!("expected response.uid={uid:?}, got {answered:?}"));
    }
    let (kind, api) = (
        received.kind.unwrap_or_default(),
        received.api_version.unwrap_or_default(),
    );
    if strict && (kind != "AdmissionReview" || api != "admission.k8s.io/v1") {
        return invalid(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={kind}",
            if api.contains('/') { api } else { format!("/{api}") }
        ));
    }
    let patch = base64::engine::general_purpose::STANDARD
        .decode(response.patch.unwrap_or_default())
        .map_err(|error| Bad::Unreadable(format!("illegal base64 data in response.patch: {error}")))?;
    if strict {
        check_patch(&patch, response.patch_type.as_deref(), mutating).map_err(|why| Bad::Invalid(why.to_owned()))?;
        if let Some(kind) = response.patch_type.as_deref().filter(|kind| *kind != "JSONPatch") {
            return invalid(format!("unsupported patch type {kind:?}"));
        }
    }
    Ok(Answer {
        denied: (response.allowed != Some(true)).then(|| denial(hook, response.status.unwrap_or_default())),
        patch: if mutating { patch } else { Vec::new() },
        warnings: response.warnings.unwrap_or_default().into_iter().flatten().collect(),
        annotations: response
            .audit_annotations
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.unwrap_or_default()))
            .collect(),
    })
}

fn check_patch(patch: &[u8], kind: Option<&str>, mutating: bool) -> Result<(), &'static str> {
    match (mutating, patch.is_empty(), kind) {
        (true, false, None) => Err("webhook returned response.patch but not response.patchType"),
        (true, true, Some(_)) => Err("webhook returned response.patchType but not response.patch"),
        (true, _, Some("")) => Err("webhook returned invalid response.patchType of \"\""),
        (false, false, _) => Err("validating webhook may not return response.patch"),
        (false, _, Some(_)) => Err("validating webhook may not return response.patchType"),
        _ => Ok(()),
    }
}

/// The refusal a webhook asks for, with its name in front.
fn denial(hook: &str, told: Told) -> Status {
    let by = format!("admission webhook {hook:?} denied the request");
    let (message, reason) = (told.message.unwrap_or_default(), told.reason.unwrap_or_default());
    let message = match (message.as_str(), reason.as_str()) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    // What is no failure in HTTP cannot be a refusal.
    let code = told
        .code
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..1000).contains(code))
        .unwrap_or(400);
    let mut status = Status::new(code, "", message);
    status.reason = reason.into();
    status.details = told.details.map(|details| Details {
        name: details.name.unwrap_or_default(),
        group: details.group.unwrap_or_default(),
        kind: details.kind.unwrap_or_default(),
        uid: details.uid.unwrap_or_default(),
        causes: details
            .causes
            .unwrap_or_default()
            .into_iter()
            .map(|cause| Cause {
                reason: cause.reason.unwrap_or_default(),
                message: cause.message.unwrap_or_default(),
                field: cause.field.unwrap_or_default(),
            })
            .collect(),
        retry_after_seconds: details.retry_after_seconds.unwrap_or_default(),
    });
    status
}

/// A patch that does anything.
pub fn patch(bytes: &[u8]) -> Result<Option<JsonPatch>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let patch = JsonPatch::parse(bytes).map_err(|error| error.to_string())?;
    Ok((!patch.operations().is_empty()).then_some(patch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(response: Value, mutating: bool) -> Result<Answer, Bad> {
        let body = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        answer(body.to_string().as_bytes(), "v1", "u", "h.x.y", mutating)
    }

    #[test]
    fn answers_that_are_not_believed() {
        let invalid = |why: &str| Err(Bad::Invalid(why.to_owned()));
        for (response, mutating, expected) in [
            (Value::Null, true, invalid("webhook response was absent")),
            (
                json!({"uid": "other", "allowed": true}),
                true,
                invalid("expected response.uid=\"u\", got \"other\""),
            ),
            (
                json!({"uid": "u", "allowed": true, "patch": "W10="}),
                true,
                invalid("webhook returned response.patch but not response.patchType"),
            ),
            (
                json!({"uid": "u", "allowed": true, "patchType": "JSONPatch"}),
                true,
                invalid("webhook returned response.patchType but not response.patch"),
            ),
            (
                json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"}),
                false,
                invalid("validating webhook may not return response.patch"),
            ),
            (
                json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "Merge"}),
                true,
                invalid("unsupported patch type \"Merge\""),
            ),
        ] {
            assert_eq!(read(response, mutating), expected);
        }
        assert!(matches!(
            read(json!({"uid": "u", "allowed": true, "patch": "%%"}), true),
            Err(Bad::Unreadable(_))
        ));
        assert_eq!(
            answer(br#"{"response":{"uid":"u"}}"#, "v1", "u", "h", true),
            Err(Bad::Invalid(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=".into()
            ))
        );
        // Old webhooks need neither a kind nor the uid.
        assert!(answer(br#"{"response":{"allowed":true}}"#, "v1beta1", "u", "h", true).is_ok());
        assert!(matches!(
            answer(b"hello", "v1", "u", "h", true),
            Err(Bad::Unreadable(_))
        ));
    }

    #[test]
    fn denials_are_worded_as_upstream_words_them() {
        for (status, code, reason, message) in [
            (
                Value::Null,
                400,
                "",
                "admission webhook \"h.x.y\" denied the request without explanation",
            ),
            (
                json!({"code": 200, "status": "Success", "message": "no"}),
                400,
                "",
                "admission webhook \"h.x.y\" denied the request: no",
            ),
            (
                json!({"code": 403, "reason": "Forbidden"}),
                403,
                "Forbidden",
                "admission webhook \"h.x.y\" denied the request: Forbidden",
            ),
        ] {
            let answer = read(json!({"uid": "u", "allowed": false, "status": status}), false).unwrap();
            let denied = answer.denied.unwrap();
            assert_eq!(
                (denied.code, &*denied.reason, denied.message.as_str()),
                (code, reason, message)
            );
        }
    }
}
