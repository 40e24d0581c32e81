//! List and watch as HTTP: requests, pages, and the line-by-line watch stream.
//!
//! Objects are decoded one at a time out of the raw text, so that one bad object is one bad object, and a page of a
//! list is never held as both text tree and objects.

use std::borrow::Cow;

use bytes::BytesMut;
use http::{Request, header};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Status;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Selection;

const PAGE: usize = 500;
const FULL: &str = "application/json";
const META_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const META: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// Why a list or a watch came to an end.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the server no longer keeps the version asked for")]
    Expired,
    #[error("{0}")]
    Refused(Box<Status>),
    #[error("cannot reach the API: {0}")]
    Transport(#[from] kube::Error),
    #[error("cannot build the request: {0}")]
    Request(#[from] http::Error),
    #[error("the answer is not a list: {0}")]
    Decode(#[from] serde_json::Error),
}

impl From<Status> for WireError {
    fn from(status: Status) -> Self {
        if status.code == 410 || status.reason == "Expired" || status.reason == "Gone" {
            WireError::Expired
        } else {
            WireError::Refused(Box::new(status))
        }
    }
}

/// Where the objects of an informer come from.
pub(super) struct Source {
    pub(super) client: kube::Client,
    /// `/api/v1/pods`
    pub(super) path: String,
    pub(super) selection: Selection,
    pub(super) metadata_only: bool,
}

/// One page of a list.
pub(super) struct Page<K> {
    pub(super) items: Vec<K>,
    pub(super) resource_version: String,
    /// Empty on the last page.
    pub(super) next: String,
}

/// One line of a watch.
pub(super) enum Event<K> {
    Upsert(K),
    Delete(K),
    Bookmark(String),
    /// A line that could not be decoded; the version it carried, if that much could be read.
    Bad(Option<String>),
}

#[derive(Deserialize)]
struct RawList<'a> {
    #[serde(default)]
    metadata: RawListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Just enough of an object to say which one it was.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Outline {
    metadata: OutlineMeta,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct OutlineMeta {
    namespace: String,
    name: String,
    resource_version: String,
}

impl Source {
    pub(super) async fn list<K: DeserializeOwned>(&self, next: &str) -> Result<Page<K>, WireError> {
        let limit = PAGE.to_string();
        let mut query = vec![("limit", limit.as_str())];
        if !next.is_empty() {
            query.push(("continue", next));
        }
        let body = self
            .send(&query, if self.metadata_only { META_LIST } else { FULL })
            .await?;
        let text = body.collect().await?.to_bytes();
        let raw: RawList<'_> = serde_json::from_slice(&text)?;
        let items = raw.items.unwrap_or_default();
        let items = items
            .into_iter()
            .filter_map(|item| match decode(item) {
                Ok(object) => Some(object),
                Err(error) => {
                    self.report(item, &error);
                    None
                }
            })
            .collect();
        Ok(Page {
            items,
            resource_version: raw.metadata.resource_version,
            next: raw.metadata.next,
        })
    }

    pub(super) async fn watch(&self, version: &str, seconds: u32) -> Result<Lines, WireError> {
        let seconds = seconds.to_string();
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", &seconds),
        ];
        let body = self.send(&query, if self.metadata_only { META } else { FULL }).await?;
        Ok(Lines {
            body,
            buffer: BytesMut::new(),
            scanned: 0,
        })
    }

    async fn send(&self, query: &[(&str, &str)], accept: &str) -> Result<Body, WireError> {
        let selection = [
            ("labelSelector", &self.selection.labels),
            ("fieldSelector", &self.selection.fields),
        ];
        let selection = selection
            .iter()
            .filter_map(|(name, value)| value.as_deref().map(|value| (*name, value)));
        let mut uri = self.path.clone();
        for (i, (name, value)) in query.iter().copied().chain(selection).enumerate() {
            uri.push(if i == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            encode(value, &mut uri);
        }
        let request = Request::get(uri)
            .header(header::ACCEPT, accept)
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Body::empty())?;
        let response = self.client.send(request).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let code = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        let status: Status = serde_json::from_slice(&text).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&text);
            Status::failure(&text, "").with_code(code.as_u16())
        });
        Err(status.into())
    }

    /// Decodes one line of a watch.
    pub(super) fn event<K: DeserializeOwned>(&self, line: &[u8]) -> Result<Event<K>, WireError> {
        let raw: RawEvent<'_> = match serde_json::from_slice(line) {
            Ok(raw) => raw,
            Err(error) => {
                tracing::error!(path = self.path, %error, "a watch sent a line that is not an event");
                return Ok(Event::Bad(None));
            }
        };
        let outline = || serde_json::from_str::<Outline>(raw.object.get()).unwrap_or_default();
        let build: fn(K) -> Event<K> = match raw.kind.as_ref() {
            "ADDED" | "MODIFIED" => Event::Upsert,
            "DELETED" => Event::Delete,
            "BOOKMARK" => return Ok(Event::Bookmark(outline().metadata.resource_version)),
            "ERROR" => {
                let status: Status = serde_json::from_str(raw.object.get())?;
                return Err(status.into());
            }
            other => {
                tracing::error!(path = self.path, kind = other, "a watch sent an unknown event");
                return Ok(Event::Bad(None));
            }
        };
        match decode(raw.object) {
            Ok(object) => Ok(build(object)),
            Err(error) => {
                self.report(raw.object, &error);
                Ok(Event::Bad(Some(outline().metadata.resource_version)))
            }
        }
    }

    fn report(&self, object: &RawValue, error: &serde_json::Error) {
        let outline: Outline = serde_json::from_str(object.get()).unwrap_or_default();
        tracing::error!(
            path = self.path,
            namespace = outline.metadata.namespace,
            name = outline.metadata.name,
            %error,
            "cannot decode an object; it is left out until it changes"
        );
    }
}

/// An object out of its text. A condition without its time is given one: the API takes such conditions (Go prints a
/// null there), the typed objects here do not.
fn decode<K: DeserializeOwned>(text: &RawValue) -> Result<K, serde_json::Error> {
    serde_json::from_str(text.get()).or_else(|error| {
        let mut object: serde_json::Value = serde_json::from_str(text.get())?;
        let conditions = object
            .pointer_mut("/status/conditions")
            .and_then(serde_json::Value::as_array_mut);
        let Some(conditions) = conditions else {
            return Err(error);
        };
        for condition in conditions.iter_mut().filter_map(serde_json::Value::as_object_mut) {
            for (field, zero) in [
                ("lastTransitionTime", "1970-01-01T00:00:00Z"),
                ("reason", ""),
                ("message", ""),
            ] {
                let slot = condition.entry(field).or_insert(serde_json::Value::Null);
                if slot.is_null() {
                    *slot = zero.into();
                }
            }
        }
        serde_json::from_value(object)
    })
}

/// The lines of a watch response.
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
}

impl Lines {
    /// The next line, or `None` at the end of the stream. Safe to drop while waiting.
    pub(super) async fn next(&mut self) -> Result<Option<BytesMut>, WireError> {
        loop {
            let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + end + 1);
                self.scanned = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(WireError::Transport(error)),
                None => return Ok(None),
            }
        }
    }
}

/// Percent-encodes a query value.
fn encode(value: &str, out: &mut String) {
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::value::RawValue;

    #[test]
    fn a_condition_without_a_time_is_no_reason_to_lose_an_object() {
        let text = r#"{"metadata":{"name":"s"},"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
        let raw: &RawValue = serde_json::from_str(text).unwrap();
        let service: Service = super::decode(raw).unwrap();
        let conditions = service.status.unwrap().conditions.unwrap();
        assert_eq!(conditions[0].type_, "Ready");
        let broken: &RawValue = serde_json::from_str(r#"{"metadata":{"name":1}}"#).unwrap();
        assert!(super::decode::<Service>(broken).is_err());
    }
}
