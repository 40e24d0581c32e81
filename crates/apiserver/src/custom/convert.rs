//! Conversion between the versions of a definition: by name only, or by the definition's webhook.
//!
//! A webhook gets every object of a request in one `ConversionReview` and must answer with as many, of the version
//! asked for, with their metadata as it was (labels and annotations apart).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method};
use sampan_api::field::Path;
use sampan_api::status::Status;
use sampan_api::{Object, meta, names};
use serde_json::{Map, Value, json};

use super::go_type;
use crate::outbound::{self, Exchange, Outbound, Peer, Place, Spec, Trust};
use crate::{Refusal, refuse};

/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer.
const LIMIT: usize = 64 << 20;

/// Says another `apiVersion`.
pub fn set_version(object: &mut Object, version: &str) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), version.into());
    }
}

/// How a definition's objects are converted.
#[derive(Clone)]
pub enum Converter {
    /// Only `apiVersion` differs.
    None,
    Webhook(Arc<Webhook>),
}

pub struct Webhook {
    /// The peer, or why there is none.
    peer: Result<Arc<Peer>, String>,
    path: String,
    /// The first of `conversionReviewVersions` that is known.
    review: Option<&'static str>,
}

impl Converter {
    /// What a definition asks for.
    pub fn of(definition: &Object, outbound: &Outbound) -> Self {
        let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str);
        if text("/spec/conversion/strategy") != Some("Webhook") {
            return Converter::None;
        }
        const CLIENT: &str = "/spec/conversion/webhook/clientConfig";
        let service = |field: &str| text(&format!("{CLIENT}/service/{field}"));
        let found = match text(&format!("{CLIENT}/url")) {
            Some(url) => Place::of_url(url).map_err(|error| error.to_string()),
            None => {
                let port = definition
                    .pointer(&format!("{CLIENT}/service/port"))
                    .and_then(Value::as_u64)
                    .and_then(|port| u16::try_from(port).ok())
                    .unwrap_or(443);
                let place = Place::Service {
                    namespace: service("namespace").unwrap_or_default().to_owned(),
                    name: service("name").unwrap_or_default().to_owned(),
                    port,
                };
                let path = service("path").filter(|path| !path.is_empty()).unwrap_or("/");
                Ok((place, path.to_owned()))
            }
        };
        let bundle = text(&format!("{CLIENT}/caBundle"))
            .and_then(|bundle| base64::engine::general_purpose::STANDARD.decode(bundle).ok())
            .filter(|bundle| !bundle.trim_ascii().is_empty())
            .unwrap_or_default();
        let (peer, path) = match found {
            Ok((place, path)) => {
                let spec = Spec {
                    place,
                    trust: Trust::Bundle(bundle),
                    identity: None,
                };
                (outbound.peer(&spec).map_err(|error| error.to_string()), path)
            }
            Err(why) => (Err(why), "/".to_owned()),
        };
        let review = definition
            .pointer("/spec/conversion/webhook/conversionReviewVersions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find_map(|version| match version.as_str() {
                Some("v1") => Some("v1"),
                Some("v1beta1") => Some("v1beta1"),
                _ => None,
            });
        Converter::Webhook(Arc::new(Webhook { peer, path, review }))
    }

    /// Whether somebody else has to be asked.
    pub fn asks(&self) -> bool {
        matches!(self, Converter::Webhook(_))
    }

    /// Objects (none of them in that version yet) in `version`.
    pub async fn convert(&self, mut objects: Vec<Object>, version: &str) -> Result<Vec<Object>, Refusal> {
        match self {
            Converter::None => {
                for object in &mut objects {
                    set_version(object, version);
                }
                Ok(objects)
            }
            Converter::Webhook(webhook) => {
                let shown = objects.first().map(described).unwrap_or_default();
                webhook
                    .convert(objects, version)
                    .await
                    .map_err(|why| failed(&format!("conversion webhook for {shown} {why}")))
            }
        }
    }
}

/// `example.com/v1, Kind=Thing`
fn described(object: &Object) -> String {
    format!("{}, Kind={}", meta::api_version(object), meta::kind(object))
}

fn failed(why: &str) -> Refusal {
    refuse(Status::new(500, "InternalError", why))
}

impl Webhook {
    async fn convert(&self, originals: Vec<Object>, version: &str) -> Result<Vec<Object>, String> {
        let review = self.review.ok_or("failed: no supported conversion review versions")?;
        let uid = uuid::Uuid::new_v4().to_string();
        let mut sent = originals.clone();
        for object in &mut sent {
            // Go's types print it, and webhooks in Go expect it.
            meta::ensure_metadata(object)
                .entry("creationTimestamp")
                .or_insert(Value::Null);
        }
        let body = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{review}"),
            "request": {"uid": uid, "desiredAPIVersion": version, "objects": sent},
        });
        let answer = self
            .ask(body.to_string())
            .await
            .map_err(|why| format!("failed: {why}"))?;
        let converted = answered(answer, review, &uid).map_err(|why| format!("failed: {why}"))?;
        if converted.len() != originals.len() {
            return Err(format!(
                "returned {} objects, expected {}",
                converted.len(),
                originals.len()
            ));
        }
        converted
            .into_iter()
            .zip(originals)
            .enumerate()
            .map(|(index, (converted, original))| {
                checked(converted, &original, version)
                    .map_err(|why| format!("returned invalid converted object at index {index}: {why}"))
            })
            .collect()
    }

    /// The timeout is the client's own here, not the request's, and Go's client says so.
    fn unanswered(error: &outbound::Error, url: &str) -> String {
        match error {
            outbound::Error::Deadline => {
                format!(
                    "{} (Client.Timeout exceeded while awaiting headers)",
                    error.during("Post", url)
                )
            }
            outbound::Error::DeadlineReading => format!(
                "unexpected error when reading response body. Please retry. Original error: {error} \
                 (Client.Timeout or context cancellation while reading body)"
            ),
            other => other.during("Post", url),
        }
    }

    async fn ask(&self, body: String) -> Result<Value, String> {
        let peer = self.peer.as_ref().map_err(Clone::clone)?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
        let path = format!("{}?timeout=30s", self.path);
        let exchange = Exchange {
            method: Method::POST,
            path: &path,
            headers,
            body: Bytes::from(body),
            timeout: TIMEOUT,
            limit: LIMIT,
        };
        let answer = peer
            .call(&exchange)
            .await
            .map_err(|error| Self::unanswered(&error, &peer.url(&path)))?;
        if !answer.status.is_success() {
            let text = String::from_utf8_lossy(&answer.body);
            if let Ok(status) = serde_json::from_slice::<Value>(&answer.body)
                && let Some(message) = status.get("message").and_then(Value::as_str)
            {
                return Err(message.to_owned());
            }
            return Err(format!(
                "an error on the server ({:?}) has prevented the request from succeeding",
                text.trim()
            ));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))
    }
}

/// The objects of an answer.
fn answered(mut answer: Value, review: &str, uid: &str) -> Result<Vec<Value>, String> {
    if review == "v1" {
        let wanted = ("apiextensions.k8s.io/v1", "ConversionReview");
        let got = (meta::api_version(&answer), meta::kind(&answer));
        if got != wanted {
            return Err(format!(
                "expected webhook response of {}, Kind={}, got {}, Kind={}",
                wanted.0, wanted.1, got.0, got.1
            ));
        }
    }
    let Some(response) = answer.get_mut("response").filter(|response| response.is_object()) else {
        return Err("no response provided".into());
    };
    let text = |pointer: &str| response.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if review == "v1" && text("/uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text("/uid")));
    }
    let status = text("/result/status");
    if status != "Success" {
        let message = text("/result/message");
        return Err(if message.is_empty() {
            format!("response.result.status was '{status}', not 'Success'")
        } else {
            message.to_owned()
        });
    }
    Ok(match response.get_mut("convertedObjects").map(Value::take) {
        Some(Value::Array(objects)) => objects,
        _ => Vec::new(),
    })
}

/// A converted object that is what it must be, with the original's metadata.
fn checked(mut converted: Value, original: &Object, version: &str) -> Result<Object, String> {
    let got = meta::api_version(&converted);
    if got != version {
        return Err(format!("invalid groupVersion (expected {version}, received {got})"));
    }
    if meta::kind(&converted) != meta::kind(original) {
        return Err(format!(
            "invalid kind (expected {}, received {})",
            meta::kind(original),
            meta::kind(&converted)
        ));
    }
    for (what, read) in [
        ("name", meta::name as fn(&Value) -> &str),
        ("namespace", meta::namespace),
        ("UID", meta::uid),
    ] {
        let (old, new) = (read(original), read(&converted));
        if old != new {
            return Err(format!("must have the same {what}: {old} != {new}"));
        }
    }
    let answered = match converted.get("metadata") {
        None => return Err("missing metadata in converted object".into()),
        Some(Value::Object(map)) => map.clone(),
        Some(other) => {
            return Err(format!(
                "invalid metadata of type {} in converted object",
                go_type(other)
            ));
        }
    };
    let mut kept = meta::metadata(original).cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match answered.get(field) {
            None | Some(Value::Null) => {
                kept.remove(field);
            }
            Some(Value::Object(map)) => {
                texts(field, map, kept.get(field))?;
                kept.insert(field.to_owned(), Value::Object(map.clone()));
            }
            Some(other) => {
                return Err(format!(
                    "invalid metadata.{field} of type {} in converted object",
                    go_type(other)
                ));
            }
        }
    }
    if let Some(map) = converted.as_object_mut() {
        map.insert("metadata".into(), Value::Object(kept));
    }
    Ok(converted)
}

/// Labels or annotations a webhook has set must be good ones.
fn texts(field: &str, map: &Map<String, Value>, old: Option<&Value>) -> Result<(), String> {
    for (key, value) in map {
        if !value.is_string() {
            return Err(format!(
                "metadata.{field}[{key}] must be a string, but is {} in converted object",
                go_type(value)
            ));
        }
    }
    if old.and_then(Value::as_object) == Some(map) {
        return Ok(());
    }
    let stated = Value::Object(map.clone());
    let errors = if field == "labels" {
        names::validate_labels(&stated, &Path::new("metadata").child("labels"))
    } else {
        names::validate_annotations(&stated, &Path::new("metadata").child("annotation"))
    };
    if errors.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Err(if all.len() == 1 {
        all.concat()
    } else {
        format!("[{}]", all.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let original = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "uid": "u", "generation": 2, "labels": {"a": "b"}}});
        let good = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "n", "uid": "u", "annotations": {"x": "y"}}, "spec": 1});
        let kept = checked(good.clone(), &original, "g/v2").unwrap();
        assert_eq!(
            kept["metadata"],
            json!({"name": "n", "uid": "u", "generation": 2, "annotations": {"x": "y"}})
        );
        type Change = fn(&mut Value);
        let cases: Vec<(Change, &str)> = vec![
            (
                |o| o["apiVersion"] = "g/v1".into(),
                "invalid groupVersion (expected g/v2, received g/v1)",
            ),
            (|o| o["kind"] = "L".into(), "invalid kind (expected K, received L)"),
            (
                |o| o["metadata"]["name"] = "m".into(),
                "must have the same name: n != m",
            ),
            (|o| o["metadata"]["uid"] = "v".into(), "must have the same UID: u != v"),
            (
                |o| o["metadata"]["labels"] = json!({"a": 1}),
                "metadata.labels[a] must be a string, but is int64 in converted object",
            ),
        ];
        for (change, wanted) in cases {
            let mut bad = good.clone();
            change(&mut bad);
            assert_eq!(checked(bad, &original, "g/v2").unwrap_err(), wanted);
        }
        let review = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        let cases = [
            (
                json!({}),
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=",
            ),
            (review(Value::Null), "no response provided"),
            (review(json!({"uid": "x"})), "expected response.uid=\"id\", got \"x\""),
            (
                review(json!({"uid": "id", "result": {"status": "Failure"}})),
                "response.result.status was 'Failure', not 'Success'",
            ),
            (
                review(json!({"uid": "id", "result": {"status": "Failed", "message": "no"}})),
                "no",
            ),
        ];
        for (answer, wanted) in cases {
            assert_eq!(answered(answer, "v1", "id").unwrap_err(), wanted);
        }
    }
}
