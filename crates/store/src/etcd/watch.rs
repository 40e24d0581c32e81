//! A watch that outlives connections, endpoints and restarts of etcd.
//!
//! It follows *all* keys of etcd, not only ours: then every revision there is shows up as an event, and whoever waits
//! for a revision (a consistent read, a write's own reply) never waits for one that passed unseen. Upstream asks for
//! progress notifications instead; before 3.4.25 and 3.5.8 those could overtake events, and they cost a round trip per
//! read. What is not ours is dropped here after its revision was noted.
//!
//! Replies too large for one message come in fragments and are put together again, so a revision is delivered whole
//! or not at all, and a new connection resumes exactly after the last one delivered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sampan_tasks::OnExit;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};
use tonic::Streaming;

use super::client::Failure;
use super::proto::{WatchCreateRequest, WatchEvent, WatchRequest, WatchResponse};
use super::{Inner, unsigned};
use crate::types::{Change, Error, Event, Revision, Update, WatchStream};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// How long etcd may take to confirm a watch.
const CREATE: Duration = Duration::from_secs(10);
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

type Sender = UnboundedSender<Result<Update, Error>>;

pub(super) fn start(inner: Arc<Inner>, prefix: &str, after: Revision) -> WatchStream {
    let (updates, stream) = unbounded_channel();
    let watch = Watch {
        prefix: prefix.to_owned(),
        after,
        updates,
        inner: inner.clone(),
    };
    inner
        .tasks
        .spawn_until_drain("etcd-watch", OnExit::Expected, watch.run());
    stream
}

struct Watch {
    inner: Arc<Inner>,
    prefix: String,
    /// Everything up to here was delivered.
    after: Revision,
    updates: Sender,
}

/// Why one connection's watch ended.
enum End {
    /// Nobody listens any more, or whoever does was told why it ends.
    Over,
    /// Connect again.
    Broken(String),
}

impl Watch {
    async fn run(mut self) {
        let mut pause = PAUSE.0;
        loop {
            let before = self.after;
            let (index, end) = self.follow().await;
            let End::Broken(why) = end else { return };
            if self.after > before {
                pause = PAUSE.0;
            }
            tracing::debug!(why, after = self.after, "the watch of etcd broke; resuming");
            self.inner.client.leave(index, &why);
            tokio::select! {
                () = sleep(pause) => {}
                () = self.updates.closed() => return,
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Follows over one connection until that breaks.
    async fn follow(&mut self) -> (usize, End) {
        let mut moved = self.inner.client.follow();
        let mut broken = self.inner.broken.subscribe();
        moved.mark_unchanged();
        let start = self.after.saturating_sub(self.inner.offset) + 1;
        let request = WatchRequest {
            create: Some(WatchCreateRequest {
                key: vec![0],
                range_end: vec![0],
                start_revision: i64::try_from(start).unwrap_or(i64::MAX),
                prev_kv: true,
                fragment: true,
            }),
        };
        let (index, stream) = self.inner.client.stream(WATCH, request).await;
        let mut stream: Streaming<WatchResponse> = match stream {
            Ok(stream) => stream,
            Err(failure) => return (index, self.failed(failure)),
        };
        match timeout(CREATE, stream.message()).await {
            Ok(Ok(Some(reply))) if reply.created && !reply.canceled => {}
            Ok(Ok(Some(reply))) => return (index, self.canceled(&reply)),
            Ok(Ok(None)) => return (index, End::Broken("the stream ended".into())),
            Ok(Err(status)) => return (index, self.failed(super::client::judge(status))),
            Err(_) => return (index, End::Broken("the watch was not confirmed in time".into())),
        }
        let mut fragments = Vec::new();
        loop {
            let reply = tokio::select! {
                reply = stream.message() => reply,
                () = self.updates.closed() => return (index, End::Over),
                _ = moved.changed() => return (index, End::Broken("calls go to another endpoint".into())),
                _ = broken.changed() => {
                    let why = broken.borrow().clone().unwrap_or_default();
                    return (index, self.tell_last(Error::Rejected { reason: format!("{why}; start this server anew") }));
                }
            };
            match reply {
                Ok(Some(reply)) if reply.canceled => return (index, self.canceled(&reply)),
                Ok(Some(mut reply)) => {
                    fragments.append(&mut reply.events);
                    if !reply.fragment && !self.deliver(std::mem::take(&mut fragments)) {
                        return (index, End::Over);
                    }
                }
                Ok(None) => return (index, End::Broken("the stream ended".into())),
                Err(status) => return (index, self.failed(super::client::judge(status))),
            }
        }
    }

    fn failed(&self, failure: Failure) -> End {
        match failure {
            Failure::Unsent(why) | Failure::Unanswered(why) => End::Broken(why),
            // Such as a lack of permission: repeating it would not help, but an administrator may.
            Failure::Refused(status) => {
                tracing::error!(why = status.message(), "etcd refuses the watch; trying again");
                End::Broken(status.message().to_owned())
            }
        }
    }

    fn canceled(&self, reply: &WatchResponse) -> End {
        if reply.compact_revision == 0 {
            return End::Broken(format!("etcd canceled the watch: {}", reply.cancel_reason));
        }
        let oldest = unsigned(reply.compact_revision) + self.inner.offset;
        self.inner.compacted.fetch_max(oldest, Ordering::AcqRel);
        self.tell_last(Error::Compacted {
            requested: self.after,
            oldest,
        })
    }

    fn tell_last(&self, error: Error) -> End {
        // Whoever listened may be gone: the watch is over either way.
        let _gone = self.updates.send(Err(error));
        End::Over
    }

    /// Hands out the events of whole revisions. False: nobody listens.
    fn deliver(&mut self, events: Vec<WatchEvent>) -> bool {
        let mut ours = Vec::with_capacity(events.len());
        let mut newest = 0;
        for event in events {
            let Some(kv) = &event.kv else { continue };
            let revision = unsigned(kv.mod_revision) + self.inner.offset;
            newest = newest.max(revision);
            if revision <= self.after {
                continue;
            }
            if let Some(event) = self.event(event, revision) {
                ours.push(event);
            }
        }
        if newest == 0 {
            return true;
        }
        let last_of_ours = ours.last().map_or(0, |event: &Event| event.revision);
        let mut ours = ours.into_iter().peekable();
        while let Some(event) = ours.next() {
            let last = ours.peek().is_none_or(|next| next.revision != event.revision);
            if self.updates.send(Ok(Update::Event { event, last })).is_err() {
                return false;
            }
        }
        self.after = self.after.max(newest);
        self.inner.known.fetch_max(self.after, Ordering::AcqRel);
        last_of_ours >= newest || self.updates.send(Ok(Update::Reached(newest))).is_ok()
    }

    fn event(&self, event: WatchEvent, revision: Revision) -> Option<Event> {
        let deleted = event.kind == 1;
        let kv = event.kv?;
        let key = self.inner.logical(&kv.key)?;
        if !key.starts_with(&self.prefix) {
            return None;
        }
        Some(Event {
            revision,
            key,
            change: if deleted {
                Change::Delete
            } else {
                Change::Put(self.inner.entry(kv)?)
            },
            previous: event.previous.and_then(|previous| self.inner.entry(previous)),
        })
    }
}
