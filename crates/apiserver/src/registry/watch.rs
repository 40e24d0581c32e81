//! Watch: a stream of changes as a response body.
//!
//! The body is driven by the connection: it pulls from the watcher's bounded queue and hands out bytes that
//! are shared with every other watcher of the same form. Nothing is spawned per watch.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use rand::Rng;
use sampan_api::status::Status;
use sampan_store::Revision;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

use super::list::syntax_error;
use super::reply::{Encoder, Reply, encode};
use super::{Call, Filter, Registry};
use crate::body::BoxError;
use crate::custom::Custom;
use crate::request::{Encoding, ListOptions, Transform};
use crate::rows::Row;
use crate::watch_cache::{Batch, Cache, Change, ChangeType, Entry, Start, Storage, Watch};
use crate::{Refusal, refuse};

/// A watch without a timeout of its own ends after this long, or up to twice as long.
const DEFAULT_TIMEOUT: u64 = 1800;
/// How often a client that asked for bookmarks learns of progress it had no event of.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How long before its end a watch gets its last one.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
const CHUNK: usize = 64 << 10;
/// How much of a backlog is made ready at a time.
const BACKLOG: usize = 64;

impl Registry {
    pub async fn watch(&self, call: &mut Call, options: &ListOptions) -> Result<Reply, Refusal> {
        let storage = call.storage()?;
        let filter = Filter::new(&call.row, &storage, &call.info.namespace, &call.info.name, options)?;
        let encoder = call.encoder()?;
        // Upstream's defaults: a watch from nowhere in particular begins with the state.
        let from_any = matches!(options.resource_version.as_str(), "" | "0");
        let legacy = options.send_initial_events.is_none() && from_any;
        let initial = legacy || options.send_initial_events == Some(true);
        let revision = match options.resource_version.as_str() {
            "" | "0" => 0,
            version => watch_version(&call.row, version)?,
        };
        if options.resource_version.is_empty() {
            self.cache.caught_up().await;
        }
        let mut stream = WatchStream::new(self.cache.clone(), storage.clone(), filter, encoder, options);
        // From here on errors are events: the client has its stream.
        if initial
            && revision > 0
            && let Err(late) = self.wait_for(revision).await
        {
            stream.fail(&late);
            return Ok(Reply::Watch(Box::new(stream)));
        }
        let start = if initial {
            Start::Now
        } else if revision == 0 {
            Start::After(self.cache.revision())
        } else {
            Start::After(revision)
        };
        let custom = call.row.custom.clone().filter(|custom| !custom.view.is_plain());
        match storage.watch(stream.filter.scope.clone(), start, self.cache.revision()) {
            Ok(mut watch) => {
                if let Some(custom) = &custom
                    && let Some(initial) = watch.initial.take()
                {
                    watch.initial = Some(custom.view.snapshot(initial).await?);
                }
                stream.custom = custom;
                stream.begin(watch, start);
                let row = &call.row;
                let served = self.rows.get();
                let now = served.find(row.spec.group, row.spec.version, row.spec.plural);
                if row.custom.is_some() && !now.is_some_and(|now| Arc::ptr_eq(now, row)) {
                    // The definition has changed since: the client watches again and sees the new one.
                    stream.watch = None;
                }
            }
            Err(gone) => stream.fail(&Status::expired(gone.to_string())),
        }
        Ok(Reply::Watch(Box::new(stream)))
    }
}

/// The revision a watch starts after.
fn watch_version(row: &Row, text: &str) -> Result<Revision, Refusal> {
    text.parse().map_err(|_| {
        let path = sampan_api::field::Path::new("resourceVersion");
        let error = sampan_api::field::Error::invalid(&path, text, syntax_error(text));
        refuse(Status::invalid(row.spec.group, row.spec.plural, "", &[error]))
    })
}

type Converting = dyn Future<Output = Result<Arc<Change>, Refusal>> + Send;

/// The body of a watch.
pub struct WatchStream {
    cache: Arc<Cache>,
    storage: Arc<Storage>,
    filter: Filter,
    encoder: Encoder,
    watch: Option<Watch>,
    /// State to send first, as additions.
    initial: std::vec::IntoIter<Arc<Entry>>,
    /// Sent when the state is through.
    initial_end: Option<Bytes>,
    backlog: VecDeque<Arc<Change>>,
    /// Changes up to here are known to the client.
    after: Revision,
    ready: VecDeque<Bytes>,
    done: bool,
    /// Table columns are sent once.
    columns_sent: bool,
    bookmark: Option<Pin<Box<Sleep>>>,
    /// For custom kinds: what is stored is shown in the version watched.
    custom: Option<Arc<Custom>>,
    /// A change somebody is asked to convert; those after it wait in the backlog.
    converting: Option<Pin<Box<Converting>>>,
    told: Revision,
    deadline: Pin<Box<Sleep>>,
}

impl WatchStream {
    fn new(cache: Arc<Cache>, storage: Arc<Storage>, filter: Filter, encoder: Encoder, options: &ListOptions) -> Self {
        let seconds = match options.timeout_seconds {
            Some(seconds) if seconds > 0 => seconds,
            _ => rand::rng().random_range(DEFAULT_TIMEOUT..2 * DEFAULT_TIMEOUT),
        };
        let end = Instant::now() + Duration::from_secs(seconds.min(7 * 86_400));
        WatchStream {
            cache,
            storage,
            filter,
            encoder,
            watch: None,
            initial: Vec::new().into_iter(),
            initial_end: None,
            backlog: VecDeque::new(),
            after: 0,
            ready: VecDeque::new(),
            done: false,
            columns_sent: false,
            bookmark: options
                .bookmarks
                .then(|| Box::pin(tokio::time::sleep_until(next_bookmark(end)))),
            custom: None,
            converting: None,
            told: 0,
            deadline: Box::pin(tokio::time::sleep_until(end)),
        }
    }

    fn begin(&mut self, mut watch: Watch, start: Start) {
        if let Start::After(revision) = start {
            self.after = revision;
        }
        if let Some(snapshot) = watch.initial.take() {
            self.after = snapshot.revision;
            let entries: Vec<_> = match &self.filter.scope {
                crate::watch_cache::Scope::Object(path) => snapshot.index.get(path).into_iter().cloned().collect(),
                crate::watch_cache::Scope::Namespace(namespace) => {
                    let prefix = format!("{namespace}/");
                    snapshot
                        .index
                        .from(&prefix)
                        .take_while(|entry| entry.path().starts_with(&prefix))
                        .cloned()
                        .collect()
                }
                _ => snapshot.index.iter().cloned().collect(),
            };
            let entries: Vec<_> = entries
                .into_iter()
                .filter(|entry| self.filter.matches(&self.storage, entry))
                .collect();
            self.initial = entries.into_iter();
            // Who takes bookmarks is told where the state ends.
            if self.bookmark.is_some() {
                self.initial_end = self.bookmark_line(snapshot.revision, true).ok();
            }
        }
        self.told = self.after;
        self.backlog = std::mem::take(&mut watch.backlog);
        self.watch = Some(watch);
    }

    /// Ends the stream with an error event.
    fn fail(&mut self, status: &Status) {
        if let Ok(line) = self.framed("ERROR", encode(&status.to_value(), self.encoder.media.encoding)) {
            self.ready.push_back(line);
        }
        self.watch = None;
        self.done = true;
    }

    /// One event around an encoded object.
    fn framed(&self, kind: &str, object: Result<Bytes, Refusal>) -> Result<Bytes, Refusal> {
        let object = object?;
        let mut line = BytesMut::with_capacity(object.len() + 64);
        match self.encoder.media.encoding {
            Encoding::Json => {
                line.put_slice(b"{\"type\":\"");
                line.put_slice(kind.as_bytes());
                line.put_slice(b"\",\"object\":");
                line.put_slice(&object);
                line.put_slice(b"}\n");
            }
            Encoding::Yaml => {
                line.put_slice(b"---\ntype: ");
                line.put_slice(kind.as_bytes());
                line.put_slice(b"\nobject:\n");
                for text in object.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
                    line.put_slice(b"  ");
                    line.put_slice(text);
                    line.put_u8(b'\n');
                }
            }
            Encoding::Protobuf => {
                // WatchEvent { type = 1, object = 2: RawExtension { raw = 1 } }, after its length.
                let mut raw = BytesMut::with_capacity(object.len() + 16);
                put_field(&mut raw, 0x0a, &object);
                let mut event = BytesMut::with_capacity(raw.len() + 32);
                put_field(&mut event, 0x0a, kind.as_bytes());
                put_field(&mut event, 0x12, &raw);
                line.put_u32(event.len() as u32);
                line.put_slice(&event);
            }
        }
        Ok(line.freeze())
    }

    fn bookmark_line(&self, revision: Revision, initial_end: bool) -> Result<Bytes, Refusal> {
        let spec = self.encoder.row.spec;
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object: Value = match self.encoder.media.transform {
            Transform::None => {
                json!({"kind": spec.kind, "apiVersion": self.encoder.row.api_version, "metadata": metadata})
            }
            Transform::Metadata(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata})
            }
            Transform::Table(version) => {
                let mut table = super::table::document(
                    json!({"resourceVersion": revision.to_string()}),
                    None,
                    Vec::new(),
                    version,
                );
                if initial_end {
                    table["rows"] = json!([{"cells": [], "object": {
                        "kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata}}]);
                }
                table
            }
        };
        let encoding = self.encoder.media.encoding;
        if encoding == Encoding::Json {
            return self.framed("BOOKMARK", Ok(Bytes::from(object.to_string())));
        }
        self.framed("BOOKMARK", encode(&object, encoding))
    }

    /// An entry as an event of this kind; shared through `change` where possible.
    fn line(&mut self, kind: ChangeType, entry: &Entry, change: Option<&Change>) -> Result<Bytes, Refusal> {
        if kind != ChangeType::Deleted && entry.unreadable().is_some() {
            return Err(super::unreadable_in_list(entry));
        }
        if self.encoder.is_plain() {
            return Ok(entry.line(kind));
        }
        let (columns, table) = match self.encoder.media.transform {
            Transform::Table(version) => (!std::mem::replace(&mut self.columns_sent, true), Some(version)),
            _ => (false, None),
        };
        let make = || {
            let object = match table {
                Some(version) => self.encoder.table_event(entry, version, columns),
                None => self.encoder.entry(entry),
            };
            self.framed(kind.name(), object)
        };
        match change {
            // Shared by watchers of this form; the first event of a table is its own.
            Some(change) if !columns && std::ptr::eq(&*change.entry, entry) => {
                let mut failure = None;
                let bytes = change.form((kind, self.encoder.number()), || {
                    make().unwrap_or_else(|refusal| {
                        failure = Some(refusal);
                        Bytes::new()
                    })
                });
                failure.map_or(Ok(bytes), Err)
            }
            _ => make(),
        }
    }

    /// What this watcher sees of a change, if anything.
    fn event(&mut self, change: &Change) -> Option<Result<Bytes, Refusal>> {
        if change.revision <= self.after {
            return None;
        }
        self.told = change.revision;
        if self.filter.is_plain() && !matches!(self.filter.scope, crate::watch_cache::Scope::Indexed(_)) {
            return self
                .filter
                .matches(&self.storage, &change.entry)
                .then(|| self.line(change.kind, &change.entry, Some(change)));
        }
        let before = change
            .previous
            .as_deref()
            .is_some_and(|entry| self.filter.matches(&self.storage, entry));
        let now = change.kind != ChangeType::Deleted && self.filter.matches(&self.storage, &change.entry);
        match (before, now) {
            (false, false) => None,
            (false, true) => Some(self.line(ChangeType::Added, &change.entry, Some(change))),
            (true, true) => Some(self.line(ChangeType::Modified, &change.entry, Some(change))),
            (true, false) if change.kind == ChangeType::Deleted => {
                Some(self.line(ChangeType::Deleted, &change.entry, Some(change)))
            }
            (true, false) => {
                // It left the selection: gone, as far as this watcher goes, in its last matching state.
                let last = change.previous.as_deref()?.deleted_at(change.revision);
                Some(self.line(ChangeType::Deleted, &last, None))
            }
        }
    }

    fn push(&mut self, event: Option<Result<Bytes, Refusal>>) {
        match event {
            None => {}
            Some(Ok(line)) => self.ready.push_back(line),
            Some(Err(refusal)) => self.fail(&refusal),
        }
    }

    /// What this watcher sees of a batch. All of it for most watchers: then its bytes are made once for all of them.
    fn take(&mut self, batch: &Batch) {
        let whole = self.custom.is_none()
            && self.encoder.is_plain()
            && self.filter.is_plain()
            && !matches!(self.filter.scope, crate::watch_cache::Scope::Indexed(_));
        if let (true, Some(first), Some(last)) = (whole, batch.changes.first(), batch.changes.last())
            && first.revision > self.after
        {
            self.told = last.revision;
            self.ready.push_back(batch.lines());
            return;
        }
        for change in &batch.changes {
            if self.converting.is_some() {
                self.backlog.push_back(change.clone());
            } else {
                self.hand(change);
            }
        }
    }

    /// Hands a change on, in the version watched.
    fn hand(&mut self, change: &Arc<Change>) {
        let Some(custom) = self.custom.clone() else {
            let event = self.event(change);
            return self.push(event);
        };
        if change.revision <= self.after {
            return;
        }
        match custom.view.change_now(change) {
            Some(shown) => {
                let event = self.event(&shown);
                self.push(event);
            }
            None => {
                let change = change.clone();
                self.converting = Some(Box::pin(async move { custom.view.change(change).await }));
            }
        }
    }

    /// Takes one batch from the queue, or notices its end; false: nothing is there.
    fn drain(&mut self, context: &mut Context<'_>) -> bool {
        let Some(watch) = &self.watch else { return false };
        match watch.queue.poll_batch(context) {
            Poll::Ready(Some(batch)) => self.take(&batch),
            Poll::Ready(None) => self.done = true,
            Poll::Pending => return false,
        }
        true
    }

    /// What is ready, in chunks of a good size: small events together in one write.
    fn next_ready(&mut self) -> Option<Bytes> {
        let first = self.ready.pop_front()?;
        let fits = |length: usize, next: Option<&Bytes>| next.is_some_and(|next| length + next.len() <= CHUNK);
        if !fits(first.len(), self.ready.front()) {
            return Some(first);
        }
        let mut chunk = BytesMut::with_capacity(CHUNK.min(4 * first.len()));
        chunk.put_slice(&first);
        while fits(chunk.len(), self.ready.front())
            && let Some(next) = self.ready.pop_front()
        {
            chunk.put_slice(&next);
        }
        Some(chunk.freeze())
    }

    /// The next chunk of the initial state.
    fn initial_chunk(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK {
            let Some(entry) = self.initial.next() else { break };
            match self.line(ChangeType::Added, &entry, None) {
                Ok(line) if chunk.is_empty() && self.initial.as_slice().is_empty() => return Some(line),
                Ok(line) => chunk.put_slice(&line),
                Err(refusal) => {
                    self.fail(&refusal);
                    break;
                }
            }
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.next_ready() {
                return Poll::Ready(Some(bytes));
            }
            if let Some(bytes) = self.initial_chunk() {
                return Poll::Ready(Some(bytes));
            }
            if let Some(bytes) = self.initial_end.take() {
                return Poll::Ready(Some(bytes));
            }
            if let Some(converting) = &mut self.converting {
                let Poll::Ready(shown) = converting.as_mut().poll(context) else {
                    return Poll::Pending;
                };
                self.converting = None;
                match shown {
                    Ok(change) => {
                        let event = self.event(&change);
                        self.push(event);
                    }
                    Err(refusal) => self.fail(&refusal),
                }
                continue;
            }
            if !self.backlog.is_empty() {
                for _ in 0..BACKLOG {
                    if self.converting.is_some() {
                        break;
                    }
                    let Some(change) = self.backlog.pop_front() else { break };
                    self.hand(&change);
                }
                continue;
            }
            if self.done {
                return Poll::Ready(None);
            }
            if self.watch.is_none() {
                return Poll::Ready(None);
            }
            // Read before the queue is polled: everything up to here is in the queue, or waits for its round.
            let reached = self.cache.revision();
            if self.drain(context) {
                continue;
            }
            if self.deadline.as_mut().poll(context).is_ready() {
                self.done = true;
                continue;
            }
            if let Some(bookmark) = &mut self.bookmark
                && bookmark.as_mut().poll(context).is_ready()
            {
                bookmark.as_mut().reset(next_bookmark(self.deadline.deadline()));
                // What waits for its round comes before the bookmark that covers it.
                if let Some(watch) = &self.watch {
                    watch.hurry();
                }
                while !self.done && self.drain(context) {}
                if !self.done && self.converting.is_none() && reached > self.told {
                    self.told = reached;
                    let line = self.bookmark_line(reached, false);
                    self.push(Some(line));
                }
                continue;
            }
            return Poll::Pending;
        }
    }
}

/// A minute from now, and once shortly before the watch ends.
fn next_bookmark(end: Instant) -> Instant {
    let now = Instant::now();
    let last = end.checked_sub(LAST_BOOKMARK).unwrap_or(end);
    if last > now {
        last.min(now + BOOKMARKS)
    } else {
        now + BOOKMARKS
    }
}

impl http_body::Body for WatchStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.poll_next(context)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A length-delimited protobuf field.
fn put_field(out: &mut BytesMut, tag: u8, bytes: &[u8]) {
    out.put_u8(tag);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
    out.put_slice(bytes);
}
