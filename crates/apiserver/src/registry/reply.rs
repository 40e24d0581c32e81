//! From a verb's result to bytes, in the form the client asked for.
//!
//! The common forms cost nothing: an object is its entry's bytes, a list is its entries' bytes one after
//! another, read as the connection takes them. Everything else is made from the tree.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue, WARNING};
use http::{Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use sampan_api::codec::printed;
use sampan_api::status::Status;
use sampan_api::{Object, codec};
use serde_json::{Value, json};

use super::list::List;
use super::table::{self, Include};
use super::watch::WatchStream;
use super::{Call, Registry};
use crate::admission::{Annotations, Notes};
use crate::audit::Record;
use crate::body::{Body, BoxError};
use crate::request::{Encoding, Media, MetaVersion, Transform};
use crate::rows::Row;
use crate::watch_cache::{Entry, scan};
use crate::{Refusal, refuse};

/// What a verb answers.
pub enum Reply {
    /// A stored object.
    Entry(u16, Arc<Entry>),
    /// An object of the row, in its stored version (dry runs, deletions).
    Object(u16, Object),
    /// A list of objects nothing is stored of.
    Objects(Vec<Object>),
    /// Another kind altogether: Status, Scale, reviews. Sent as it is.
    Plain(u16, Value),
    List(List),
    Watch(Box<WatchStream>),
}

/// Makes bytes of a row's objects in one form.
#[derive(Clone)]
pub struct Encoder {
    pub row: Arc<Row>,
    pub media: Media,
    pub include: Include,
}

/// What keeps an object from being encoded.
fn failed(error: impl std::fmt::Display) -> Refusal {
    refuse(Status::internal(format!("the object cannot be encoded: {error}")))
}

/// Bytes of any tree.
pub fn encode(value: &Value, encoding: Encoding) -> Result<Bytes, Refusal> {
    codec::encode(value, encoding).map(Bytes::from).map_err(failed)
}

impl Encoder {
    /// A number that stands for this form, for caches shared by watchers of one storage.
    pub fn number(&self) -> u32 {
        let version = self
            .row
            .spec
            .group
            .bytes()
            .chain(self.row.spec.version.bytes())
            .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        (version << 8) | (self.media.number() << 2) | self.include as u32
    }

    /// Whether the entry's own bytes are the answer.
    pub fn is_plain(&self) -> bool {
        self.media == Media::default() && !self.row.converts()
    }

    pub fn entry(&self, entry: &Entry) -> Result<Bytes, Refusal> {
        if self.is_plain() {
            return Ok(entry.bytes());
        }
        if let (Encoding::Json, Transform::Metadata(version)) = (self.media.encoding, self.media.transform)
            && let Some(bytes) = metadata_bytes(entry.as_slice(), version)
        {
            return Ok(bytes);
        }
        self.object(entry.object())
    }

    /// A tree in its stored version.
    pub fn object(&self, object: Object) -> Result<Bytes, Refusal> {
        let encoding = self.media.encoding;
        match self.media.transform {
            Transform::None => encode(&self.shown(object), encoding),
            Transform::Metadata(version) => encode(&table::partial(&object, version), encoding),
            Transform::Table(version) => {
                let metadata = json!({"resourceVersion": sampan_api::meta::resource_version(&object)});
                let line = table::line_of(&self.row, object, self.include, version, jiff::Timestamp::now());
                let columns = table::columns(&self.row);
                encode(&table::document(metadata, Some(columns), vec![line], version), encoding)
            }
        }
    }

    /// A stored tree in the call's version, with all Go prints of it. Protobuf has no nulls, and the zeros are stored.
    fn shown(&self, object: Object) -> Object {
        let mut object = Registry::in_version(&self.row, object);
        if self.row.converts() || self.media.encoding != Encoding::Protobuf {
            printed::complete(&mut object);
        }
        object
    }

    /// The table of one object, without column definitions: what a watch sends after its first event.
    pub fn table_event(&self, entry: &Entry, version: MetaVersion, columns: bool) -> Result<Bytes, Refusal> {
        let metadata = json!({"resourceVersion": entry.revision().to_string()});
        let line = table::line(&self.row, entry, self.include, version, jiff::Timestamp::now());
        let columns = columns.then(|| table::columns(&self.row));
        encode(
            &table::document(metadata, columns, vec![line], version),
            self.media.encoding,
        )
    }

    /// A list without a revision.
    fn objects(&self, objects: Vec<Object>) -> Result<Bytes, Refusal> {
        let encoding = self.media.encoding;
        let (api_version, kind, items) = match self.media.transform {
            Transform::None => (&*self.row.api_version, self.row.spec.list_kind, objects),
            Transform::Metadata(version) => {
                let items = objects.iter().map(|object| table::partial(object, version)).collect();
                (version.api_version(), "PartialObjectMetadataList", items)
            }
            Transform::Table(version) => {
                let now = jiff::Timestamp::now();
                let line = |object| table::line_of(&self.row, object, self.include, version, now);
                let lines = objects.into_iter().map(line).collect();
                let columns = table::columns(&self.row);
                return encode(&table::document(json!({}), Some(columns), lines, version), encoding);
            }
        };
        let list = json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "items": items});
        encode(&list, encoding)
    }

    fn list(&self, list: List) -> Result<Body, Refusal> {
        let mut metadata = json!({"resourceVersion": list.revision.to_string()});
        if let Some(token) = &list.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(remaining) = list.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let head = |api_version: &str, kind: &str, metadata: &Value| {
            format!("{{\"kind\":{kind:?},\"apiVersion\":{api_version:?},\"metadata\":{metadata},\"items\":[")
        };
        let (encoding, spec) = (self.media.encoding, self.row.spec);
        match self.media.transform {
            Transform::None if self.is_plain() => Ok(Body::Boxed(Box::pin(ListBody::new(
                head(&self.row.api_version, spec.list_kind, &metadata),
                list.entries.into_iter().map(|entry| entry.bytes()).collect(),
            )))),
            Transform::Metadata(version) if encoding == Encoding::Json => {
                let items = list
                    .entries
                    .iter()
                    .map(|entry| self.entry(entry))
                    .collect::<Result<_, _>>()?;
                let head = head(version.api_version(), "PartialObjectMetadataList", &metadata);
                Ok(Body::Boxed(Box::pin(ListBody::new(head, items))))
            }
            Transform::None => {
                let items: Vec<_> = list.entries.iter().map(|entry| self.shown(entry.object())).collect();
                let value = json!({"kind": spec.list_kind, "apiVersion": self.row.api_version, "metadata": metadata, "items": items});
                Ok(encode(&value, encoding)?.into())
            }
            Transform::Metadata(version) => {
                let items: Vec<_> = list
                    .entries
                    .iter()
                    .map(|entry| table::partial(&entry.object(), version))
                    .collect();
                let value = json!({"kind": "PartialObjectMetadataList", "apiVersion": version.api_version(), "metadata": metadata, "items": items});
                Ok(encode(&value, encoding)?.into())
            }
            Transform::Table(version) => {
                let value = table::table(&self.row, &list.entries, metadata, self.include, version);
                Ok(encode(&value, encoding)?.into())
            }
        }
    }
}

/// `PartialObjectMetadata` cut out of an encoded object.
fn metadata_bytes(object: &[u8], version: MetaVersion) -> Option<Bytes> {
    let (start, end) = scan::member(object, 0, b"metadata")?;
    let mut out = BytesMut::with_capacity(end - start + 96);
    out.put_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
    out.put_slice(version.api_version().as_bytes());
    out.put_slice(b"\",\"metadata\":");
    out.put_slice(object.get(start..end)?);
    out.put_u8(b'}');
    Some(out.freeze())
}

impl Call {
    pub(super) fn encoder(&self) -> Result<Encoder, Refusal> {
        Ok(Encoder {
            row: self.row.clone(),
            media: self.media,
            include: Include::parse(self.query.get("includeObject"))?,
        })
    }

    /// The response to this call.
    pub fn respond(&self, reply: Reply) -> Result<Response<Body>, Refusal> {
        let encoding = self.media.encoding;
        if let Some(record) = &self.audit {
            self.record(record, &reply);
        }
        if matches!(self.media.transform, Transform::Table(_)) && !self.row.has_columns() {
            return Err(refuse(Status::not_acceptable(
                "the server could not generate a table for this resource: it has no columns",
            )));
        }
        let (code, body) = match reply {
            Reply::Watch(stream) => {
                let content_type = crate::request::media::stream_type(encoding);
                let mut response = response(200, content_type, Body::Boxed(Box::into_pin(stream)));
                add_notes(&mut response, &self.notes);
                return Ok(response);
            }
            Reply::Entry(code, entry) => (code, self.encoder()?.entry(&entry)?.into()),
            Reply::Object(code, object) => (code, self.encoder()?.object(object)?.into()),
            Reply::Plain(code, value) => (code, encode(&value, encoding)?.into()),
            Reply::List(list) => (200, self.encoder()?.list(list)?),
            Reply::Objects(objects) => (200, self.encoder()?.objects(objects)?.into()),
        };
        let mut response = response(code, encoding.content_type(), body);
        add_notes(&mut response, &self.notes);
        Ok(response)
    }
}

impl Call {
    /// Tells the audit log what is answered: always as JSON, whatever the client takes.
    fn record(&self, record: &Record, reply: &Reply) {
        if let Reply::Plain(code, value) = reply
            && value.get("kind").and_then(Value::as_str) == Some("Status")
        {
            record.status(value, *code);
        }
        if !record.wants_response() {
            return;
        }
        let json = Media {
            encoding: Encoding::Json,
            ..self.media
        };
        let encoder = self.encoder().map(|encoder| Encoder { media: json, ..encoder });
        let Ok(encoder) = encoder else { return };
        let bytes = match reply {
            Reply::Watch(_) => return,
            Reply::Entry(_, entry) => encoder.entry(entry),
            Reply::Object(_, object) => encoder.object(object.clone()),
            Reply::Plain(_, value) => encode(value, Encoding::Json),
            Reply::List(list) => encoder.list(list.clone()).map(collected),
            Reply::Objects(objects) => encoder.objects(objects.clone()),
        };
        match bytes {
            Ok(bytes) => record.response(&bytes),
            Err(refused) => tracing::debug!(why = refused.message, "an answer could not be recorded"),
        }
    }
}

/// The whole of a body that needs no waiting for.
fn collected(mut body: Body) -> Bytes {
    let mut whole = BytesMut::new();
    let mut context = Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
        if let Ok(data) = frame.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    whole.freeze()
}

pub fn response(code: u16, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        http::header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// In the extensions of an answer that is a refusal, for whoever writes the audit log.
#[derive(Clone)]
pub struct Refused(pub Arc<Status>);

/// A refusal as a response. Clients that asked for protobuf get it; everyone else gets JSON.
pub fn refusal(status: &Status, encoding: Encoding) -> Response<Body> {
    let value = status.to_value();
    let (bytes, content_type) = match codec::encode(&value, encoding) {
        Ok(bytes) => (bytes, encoding.content_type()),
        Err(_) => (value.to_string().into_bytes(), Encoding::Json.content_type()),
    };
    let mut response = response(status.code, content_type, bytes);
    if let Some(details) = &status.details
        && details.retry_after_seconds > 0
    {
        response
            .headers_mut()
            .insert(http::header::RETRY_AFTER, details.retry_after_seconds.into());
    }
    response.extensions_mut().insert(Refused(Arc::new(status.clone())));
    response
}

/// What admission left besides the object: warnings for the client, annotations for the audit log.
pub fn add_notes(response: &mut Response<Body>, notes: &Notes) {
    add_warnings(response, &notes.warnings);
    if !notes.annotations.is_empty() {
        let annotations = Annotations(Arc::new(notes.annotations.clone()));
        response.extensions_mut().insert(annotations);
    }
}

/// `Warning: 299 - "text"` headers. Up to a total they are whole; beyond it each is cut, and the rest is left out.
fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    const MOST: usize = 4096;
    const EACH: usize = 256;
    let total: usize = warnings.iter().map(|text| text.chars().count()).sum();
    let mut written = 0;
    for text in warnings {
        if total > MOST && written >= MOST {
            break;
        }
        let longest = if total > MOST { EACH } else { MOST };
        let plain: String = text
            .chars()
            .take(longest)
            .map(|char| if char.is_control() { ' ' } else { char })
            .collect();
        written += plain.chars().count();
        let quoted = plain.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// A list as it is read: shared items between a head and a tail, gathered into chunks of a good size.
struct ListBody {
    head: Option<String>,
    items: std::vec::IntoIter<Bytes>,
    first: bool,
    left: u64,
}

const CHUNK: usize = 64 << 10;
const TAIL: &[u8] = b"]}\n";

impl ListBody {
    fn new(head: String, items: Vec<Bytes>) -> Self {
        let commas = items.len().saturating_sub(1);
        let size = head.len() + items.iter().map(Bytes::len).sum::<usize>() + commas + TAIL.len();
        ListBody {
            head: Some(head),
            items: items.into_iter(),
            first: true,
            left: size as u64,
        }
    }
}

impl http_body::Body for ListBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        // What does not fit goes into the next chunk: to grow one is to copy it.
        let mut chunk = BytesMut::with_capacity(CHUNK.min(self.left as usize));
        if let Some(head) = self.head.take() {
            chunk.put_slice(head.as_bytes());
        }
        loop {
            let next = self.items.as_slice().first().map_or(TAIL.len(), |item| item.len() + 1);
            if !chunk.is_empty() && chunk.len() + next > CHUNK {
                break;
            }
            let Some(item) = self.items.next() else {
                chunk.put_slice(TAIL);
                break;
            };
            if !std::mem::replace(&mut self.first, false) {
                chunk.put_u8(b',');
            }
            chunk.put_slice(&item);
        }
        self.left = self.left.saturating_sub(chunk.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(chunk.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_list_has_the_length_it_says() {
        for count in [0usize, 1, 2, 5000] {
            let items = (0..count)
                .map(|number| Bytes::from(format!("{{\"n\":{number}{}}}", " ".repeat(number * 50))))
                .collect();
            let body = ListBody::new("{\"items\":[".into(), items);
            let size = http_body::Body::size_hint(&body).exact().unwrap();
            let bytes = body.collect().await.unwrap().to_bytes();
            assert_eq!(bytes.len() as u64, size);
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(value["items"].as_array().unwrap().len(), count);
        }
    }

    #[test]
    fn warnings_are_quoted() {
        let mut response = response(200, "application/json", Body::Empty);
        add_warnings(&mut response, &["unknown field \"spec.x\"".into()]);
        assert_eq!(response.headers()[WARNING], "299 - \"unknown field \\\"spec.x\\\"\"");
    }
}
