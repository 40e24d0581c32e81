//! The etcd engine: a cluster's state in an etcd (3.4 or newer) that several servers may share.
//!
//! The layout is upstream's: `{prefix}/{resource}/{namespace}/{name}`, `compact_rev_key` for the agreement on who
//! compacts. Below `{prefix}/sampan/` are a few keys of our own, which upstream's server would not look at.
//!
//! Invariants:
//! - nothing is acknowledged that etcd has not committed; a write whose answer did not come is [`Error::Uncertain`]
//!   and is never repeated here;
//! - [`Store::newest`] is a linearizable read; concurrent callers share one that began after each of them called;
//! - a watch tells every change of its prefix once, in order, across reconnects and endpoints ([`watch`]);
//! - revisions are etcd's plus an offset that is fixed for the life of the data (0 unless the data was moved or
//!   restored here), so that resourceVersions never go back.

mod client;
mod proto;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use sampan_tasks::Tasks;
use tonic::Code;

use crate::types::{
    Condition, Error, Key, KeyValue, LeaseId, Op, Page, Revision, Store, WatchStream, Write, Written, prefix_end,
};
use client::{Client, Failure, Repeat};
use proto::{
    Compare, CompareTarget, DeleteRangeRequest, Expected, PutRequest, RangeRequest, RangeResponse, Request, RequestOp,
    TxnRequest, TxnResponse,
};

pub use client::Options;

/// What keys begin with for the rest of the program; in etcd the prefix stands in its place.
const ROOT: &str = "/registry";
/// Upstream's key for agreeing on who compacts.
const COMPACT_KEY: &str = "compact_rev_key";
/// Added to every revision of etcd's.
const OFFSET_KEY: &str = "/registry/sampan/revision-offset";
/// There while a restore or a move into this etcd is under way.
const FILLING_KEY: &str = "/registry/sampan/filling";
/// Keys per reply of a long range.
const PAGE: i64 = 2_000;
/// How long a health check waits, as upstream.
const HEALTH: Duration = Duration::from_secs(2);

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Wraps a failure with what was being done.
fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Engine {
        action,
        source: source.into(),
    }
}

/// An etcd in use.
pub struct Etcd(Arc<Inner>);

struct Inner {
    client: Client,
    prefix: String,
    offset: Revision,
    /// The newest revision seen.
    known: AtomicU64,
    compacted: AtomicU64,
    /// The version of [`COMPACT_KEY`] last seen: whoever raises it compacts.
    compact_turn: AtomicI64,
    newest: Mutex<Option<Reading>>,
    full: AtomicBool,
    cluster: AtomicU64,
    /// Why what we know can no longer be true; ends every watch.
    broken: tokio::sync::watch::Sender<Option<String>>,
    tasks: Tasks,
}

/// A linearizable read of the revision that several callers wait for.
#[derive(Clone)]
struct Reading {
    begun: Arc<AtomicBool>,
    outcome: Shared<BoxFuture<'static, Result<Revision, String>>>,
}

impl Etcd {
    /// Connects and makes sure that etcd answers.
    pub async fn connect(options: &Options, tasks: &Tasks) -> Result<Arc<Self>, Error> {
        let mut inner = Inner::open(options, tasks).await?;
        if inner.get(FILLING_KEY).await?.is_some() {
            return Err(failed("use this etcd")(format!(
                "a restore or a move into {} did not finish; do it again",
                inner.prefix
            )));
        }
        inner.offset = inner.stored_offset().await?;
        Ok(Arc::new(Etcd(inner.ready().await?)))
    }

    /// Connects to an etcd that is to be filled from elsewhere. There must be nothing below the prefix (but what an
    /// attempt that did not finish left), unless `force` says to remove it. Until [`Etcd::filled`] nobody else can use it.
    pub async fn connect_to_fill(options: &Options, force: bool, tasks: &Tasks) -> Result<Arc<Self>, Error> {
        let mut inner = Inner::open(options, tasks).await?;
        inner.offset = inner.stored_offset().await?;
        let root = format!("{ROOT}/");
        let first = inner
            .fetch(&root, &prefix_end(&root), 1, 0)
            .await
            .map_err(Error::from)?;
        if !first.kvs.is_empty() && !force && inner.get(FILLING_KEY).await?.is_none() {
            return Err(failed("fill this etcd")(format!(
                "there is something below {} already; choose another --etcd-prefix, or give --force to replace it",
                inner.prefix
            )));
        }
        // First the mark, so that what was here is never taken for whole while it goes.
        inner.put(FILLING_KEY, "1".to_owned()).await?;
        let _deleted: proto::Nothing = inner
            .client
            .call(
                DELETE_RANGE,
                DeleteRangeRequest {
                    key: inner.physical(&root).into(),
                    range_end: inner.physical(&prefix_end(&root)).into(),
                },
                Repeat::Safely,
            )
            .await?;
        let inner = inner.ready().await?;
        // What was here before counts too: clients may know its revisions.
        for (key, value) in [(FILLING_KEY, "1".to_owned()), (OFFSET_KEY, inner.offset.to_string())] {
            inner.put(key, value).await?;
        }
        Ok(Arc::new(Etcd(inner)))
    }

    /// Says that everything is there, and that its revisions are to be greater than `beyond` for everyone who connects
    /// from now on ([`Etcd::connect`] again). How it came here is forgotten: nobody may watch from before.
    pub async fn filled(&self, beyond: Revision) -> Result<(), Error> {
        let offset = self.0.offset.max(beyond);
        self.0.put(OFFSET_KEY, offset.to_string()).await?;
        let write = Write {
            key: FILLING_KEY.into(),
            condition: Condition::None,
            op: Op::Delete,
        };
        self.write(write).await?;
        self.0.forget(self.newest().await?).await
    }

    /// Whether a key is the engine's own and not part of what it keeps.
    pub fn is_own(key: &str) -> bool {
        matches!(key, OFFSET_KEY | FILLING_KEY)
    }
}

fn revision_of(header: &Option<proto::Header>) -> Revision {
    header
        .as_ref()
        .and_then(|header| u64::try_from(header.revision).ok())
        .unwrap_or(0)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl Inner {
    async fn open(options: &Options, tasks: &Tasks) -> Result<Self, Error> {
        let prefix = match options.prefix.trim_matches('/') {
            "" => ROOT.to_owned(),
            path => format!("/{path}"),
        };
        let inner = Inner {
            client: Client::new(options)?,
            prefix,
            offset: 0,
            known: AtomicU64::new(0),
            compacted: AtomicU64::new(0),
            compact_turn: AtomicI64::new(0),
            newest: Mutex::default(),
            full: AtomicBool::new(false),
            cluster: AtomicU64::new(0),
            broken: tokio::sync::watch::Sender::new(None),
            tasks: tasks.clone(),
        };
        let status: proto::StatusResponse = inner
            .client
            .call(STATUS, proto::Nothing {}, Repeat::Safely)
            .await
            .map_err(|failure| {
                failed("connect to etcd")(format!("{}: {}", options.servers.join(","), Error::from(failure)))
            })?;
        tracing::info!(version = status.version, prefix = inner.prefix, "the store is etcd");
        Ok(inner)
    }

    async fn stored_offset(&self) -> Result<Revision, Error> {
        let Some(found) = self.get(OFFSET_KEY).await? else {
            return Ok(0);
        };
        std::str::from_utf8(&found.value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| failed("read its revision offset")(format!("{OFFSET_KEY} is not a number")))
    }

    /// Learns where etcd stands.
    async fn ready(self) -> Result<Arc<Self>, Error> {
        let key = COMPACT_KEY.as_bytes().to_vec();
        let request = RangeRequest {
            key,
            ..RangeRequest::default()
        };
        let reply: RangeResponse = self.client.call(RANGE, request, Repeat::Safely).await?;
        if let Some(found) = reply.kvs.first() {
            self.learn_compaction(found);
        }
        self.know(&reply.header);
        Ok(Arc::new(self))
    }

    fn learn_compaction(&self, found: &proto::KeyValue) {
        self.compact_turn.store(found.version, Ordering::Release);
        if let Some(revision) = std::str::from_utf8(&found.value)
            .ok()
            .and_then(|text| text.parse::<Revision>().ok())
            && revision > 0
        {
            self.compacted.fetch_max(revision + self.offset, Ordering::AcqRel);
        }
    }

    /// Notes a reply's revision and gives it as ours.
    fn know(&self, header: &Option<proto::Header>) -> Revision {
        let revision = revision_of(header) + self.offset;
        self.known.fetch_max(revision, Ordering::AcqRel);
        revision
    }

    fn physical(&self, key: &str) -> String {
        format!("{}{}", self.prefix, key.strip_prefix(ROOT).unwrap_or(key))
    }

    /// Our name of a key in etcd; `None` for what is not below the prefix (or not text, so not ours).
    fn logical(&self, key: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&*self.prefix)?;
        rest.starts_with('/').then(|| format!("{ROOT}{rest}").into())
    }

    /// A revision as etcd counts; -1, which no key has, for one from before the data came here.
    fn theirs(&self, revision: Revision) -> i64 {
        match revision.checked_sub(self.offset) {
            _ if revision == 0 => 0,
            Some(revision) if revision > 0 => i64::try_from(revision).unwrap_or(-1),
            _ => -1,
        }
    }

    fn entry(&self, found: proto::KeyValue) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.logical(&found.key)?,
            value: found.value,
            create_revision: unsigned(found.create_revision) + self.offset,
            mod_revision: unsigned(found.mod_revision) + self.offset,
            lease: (found.lease != 0).then_some(found.lease.cast_unsigned()),
        })
    }

    async fn fetch(&self, start: &str, end: &str, limit: i64, revision: i64) -> Result<RangeResponse, Failure> {
        let request = RangeRequest {
            key: self.physical(start).into_bytes(),
            range_end: self.physical(end).into_bytes(),
            limit,
            revision,
            ..RangeRequest::default()
        };
        self.client.call(RANGE, request, Repeat::Safely).await
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let request = RangeRequest {
            key: self.physical(key).into_bytes(),
            ..RangeRequest::default()
        };
        let reply: RangeResponse = self.client.call(RANGE, request, Repeat::Safely).await?;
        self.know(&reply.header);
        Ok(reply.kvs.into_iter().next().and_then(|found| self.entry(found)))
    }

    async fn put(&self, key: &str, value: String) -> Result<(), Error> {
        let write = Write {
            key: key.into(),
            condition: Condition::None,
            op: Op::Put {
                value: value.into(),
                lease: None,
            },
        };
        self.write(write).await.map(|_| ())
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        let key = Bytes::from(self.physical(&write.key));
        let (operation, wanted_lease) = match write.op {
            Op::Put { value, lease } => {
                let put = PutRequest {
                    key: key.clone(),
                    value,
                    lease: lease.unwrap_or(0).cast_signed(),
                };
                (Request::Put(put), lease)
            }
            Op::Delete => {
                let delete = DeleteRangeRequest {
                    key: key.clone(),
                    ..DeleteRangeRequest::default()
                };
                (Request::Delete(delete), None)
            }
        };
        let mut transaction = TxnRequest {
            success: vec![RequestOp {
                request: Some(operation),
            }],
            ..TxnRequest::default()
        };
        if let Condition::ModRevision(revision) = write.condition {
            transaction.compare.push(Compare {
                target: CompareTarget::Mod.into(),
                key: key.clone(),
                expected: Some(Expected::ModRevision(self.theirs(revision))),
            });
            transaction.failure.push(RequestOp {
                request: Some(Request::Range(RangeRequest {
                    key: key.to_vec(),
                    ..RangeRequest::default()
                })),
            });
        }
        let before = self.known.load(Ordering::Acquire);
        let reply: TxnResponse = match self.client.call(TXN, transaction, Repeat::Never).await {
            Ok(reply) => reply,
            Err(Failure::Refused(status)) => return Err(self.refusal(&status, wanted_lease)),
            Err(failure) => return Err(failure.into()),
        };
        self.full.store(false, Ordering::Release);
        let revision = self.know(&reply.header);
        self.same_history(before, revision, &reply.header)
            .map_err(|reason| Error::Uncertain { reason })?;
        if reply.succeeded {
            return Ok(Written::Committed { revision });
        }
        let current = reply
            .responses
            .into_iter()
            .find_map(|response| response.range)
            .and_then(|range| range.kvs.into_iter().next())
            .and_then(|found| self.entry(found));
        Ok(Written::Refused { current, revision })
    }

    /// What etcd's no to a write means.
    fn refusal(&self, status: &tonic::Status, lease: Option<LeaseId>) -> Error {
        if let (Code::NotFound, Some(lease)) = (status.code(), lease) {
            return Error::LeaseNotFound(lease);
        }
        if status.message().contains("database space exceeded") && !self.full.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "etcd is full and takes no writes: compact and defragment it or raise --quota-backend-bytes, then `etcdctl alarm disarm`"
            );
        }
        Error::Rejected {
            reason: status.message().to_owned(),
        }
    }

    /// One linearizable read of the revision.
    async fn read_revision(&self) -> Result<Revision, String> {
        let before = self.known.load(Ordering::Acquire);
        let request = RangeRequest {
            key: self.physical(OFFSET_KEY).into_bytes(),
            count_only: true,
            ..RangeRequest::default()
        };
        let reply: RangeResponse = self
            .client
            .call(RANGE, request, Repeat::Safely)
            .await
            .map_err(|failure| Error::from(failure).to_string())?;
        let revision = self.know(&reply.header);
        self.same_history(before, revision, &reply.header)?;
        Ok(revision)
    }

    /// Whether a linearizable answer of now is of the history we know. Everything in memory is of that one: if not, only
    /// a new start is right.
    fn same_history(&self, before: Revision, revision: Revision, header: &Option<proto::Header>) -> Result<(), String> {
        let cluster = header.as_ref().map_or(0, |header| header.cluster_id);
        let known = self.cluster.swap(cluster, Ordering::AcqRel);
        let why = if revision < before {
            format!(
                "etcd's revision went back from {} to {}: it was restored from an older state",
                before - self.offset,
                revision.saturating_sub(self.offset)
            )
        } else if known != 0 && known != cluster {
            "the servers belong to different etcd clusters".to_owned()
        } else {
            return Ok(());
        };
        self.broken.send_replace(Some(why.clone()));
        Err(why)
    }

    /// Compacts, whosever turn it is.
    async fn forget(&self, revision: Revision) -> Result<(), Error> {
        let request = proto::CompactionRequest {
            revision: self.theirs(revision),
        };
        let done: Result<proto::Nothing, _> = self.client.call(COMPACT, request, Repeat::Safely).await;
        match done {
            Ok(_) => {}
            // A repeated call finds its own work.
            Err(Failure::Refused(status)) if status.message().contains("has been compacted") => {}
            Err(failure) => return Err(self.at_revision(failure, revision)),
        }
        self.compacted.fetch_max(revision, Ordering::AcqRel);
        Ok(())
    }

    /// Maps a refused read at a revision.
    fn at_revision(&self, failure: Failure, requested: Revision) -> Error {
        match failure {
            Failure::Refused(status) if status.message().contains("compacted") => Error::Compacted {
                requested,
                oldest: self.compacted.load(Ordering::Acquire).max(requested + 1),
            },
            Failure::Refused(status) if status.message().contains("future revision") => Error::Future {
                requested,
                current: self.known.load(Ordering::Acquire),
            },
            failure => failure.into(),
        }
    }

    /// Keys of a range as of `at` (0: now), in as many replies as it takes.
    async fn pages(&self, start: &str, end: &str, limit: usize, at: Revision) -> Result<Page, Error> {
        let limit = i64::try_from(limit).unwrap_or(0);
        let mut page = Page {
            entries: Vec::new(),
            more: false,
            revision: at,
        };
        let mut from = start.to_owned();
        loop {
            let left = limit - i64::try_from(page.entries.len()).unwrap_or(i64::MAX);
            let ask = if limit == 0 { PAGE } else { left.min(PAGE) };
            let reply = self
                .fetch(&from, end, ask, self.theirs(page.revision))
                .await
                .map_err(|failure| self.at_revision(failure, page.revision))?;
            let known = self.know(&reply.header);
            if page.revision == 0 {
                page.revision = known;
            }
            let last = reply.kvs.last().and_then(|found| self.logical(&found.key));
            page.entries
                .extend(reply.kvs.into_iter().filter_map(|found| self.entry(found)));
            page.more = reply.more;
            let enough = limit != 0 && page.entries.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
            match last {
                Some(last) if reply.more && !enough => from = format!("{last}\0"),
                _ => return Ok(page),
            }
        }
    }
}

#[async_trait]
impl Store for Etcd {
    fn revision(&self) -> Revision {
        self.0.known.load(Ordering::Acquire)
    }

    fn compacted(&self) -> Revision {
        self.0.compacted.load(Ordering::Acquire)
    }

    fn shared(&self) -> bool {
        true
    }

    async fn newest(&self) -> Result<Revision, Error> {
        let outcome = {
            let mut newest = self.0.newest.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match &*newest {
                // Not yet on its way: it will be late enough for this caller too.
                Some(reading) if !reading.begun.load(Ordering::Acquire) => reading.outcome.clone(),
                _ => {
                    let before = newest.take();
                    let begun = Arc::new(AtomicBool::new(false));
                    let (inner, mark) = (self.0.clone(), begun.clone());
                    let read = async move {
                        if let Some(before) = before {
                            let _earlier = before.outcome.await;
                        }
                        mark.store(true, Ordering::Release);
                        inner.read_revision().await
                    };
                    let outcome = read.boxed().shared();
                    *newest = Some(Reading {
                        begun,
                        outcome: outcome.clone(),
                    });
                    outcome
                }
            }
        };
        outcome.await.map_err(|reason| Error::Unavailable { reason })
    }

    async fn health(&self) -> Result<(), Error> {
        match tokio::time::timeout(HEALTH, self.newest()).await {
            Ok(outcome) => outcome.map(|_| ()),
            Err(_) => Err(Error::Unavailable {
                reason: "error getting data from etcd: context deadline exceeded".into(),
            }),
        }
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.0.get(key).await
    }

    async fn range(&self, start: &str, end: &str, limit: usize) -> Result<Page, Error> {
        if start >= end {
            return Ok(Page {
                entries: Vec::new(),
                more: false,
                revision: self.newest().await?,
            });
        }
        self.0.pages(start, end, limit, 0).await
    }

    async fn range_at(&self, start: &str, end: &str, limit: usize, revision: Revision) -> Result<Page, Error> {
        let inner = &self.0;
        // What was before the data came here is not known here; 0 would mean now.
        if revision <= inner.offset {
            return Err(Error::Compacted {
                requested: revision,
                oldest: inner.compacted.load(Ordering::Acquire).max(inner.offset + 1),
            });
        }
        inner.pages(start, end, limit, revision).await
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        self.0.write(write).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        let inner = &self.0;
        if after < inner.offset {
            return Err(Error::Compacted {
                requested: after,
                oldest: inner.compacted.load(Ordering::Acquire).max(inner.offset),
            });
        }
        // A read at that revision fails exactly when a watch from there would not be complete.
        let probe = RangeRequest {
            key: inner.physical(OFFSET_KEY).into_bytes(),
            count_only: true,
            revision: inner.theirs(after).max(1),
            ..RangeRequest::default()
        };
        let reply: Result<RangeResponse, _> = inner.client.call(RANGE, probe, Repeat::Safely).await;
        match reply {
            Ok(reply) => inner.know(&reply.header),
            Err(failure) => return Err(inner.at_revision(failure, after)),
        };
        Ok(watch::start(inner.clone(), prefix, after))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let inner = &self.0;
        let theirs = inner.theirs(revision);
        if theirs <= 0 {
            return Ok(());
        }
        let turn = inner.compact_turn.load(Ordering::Acquire);
        let key = Bytes::from_static(COMPACT_KEY.as_bytes());
        let transaction = TxnRequest {
            compare: vec![Compare {
                target: CompareTarget::Version.into(),
                key: key.clone(),
                expected: Some(Expected::Version(turn)),
            }],
            success: vec![RequestOp {
                request: Some(Request::Put(PutRequest {
                    key: key.clone(),
                    value: theirs.to_string().into(),
                    lease: 0,
                })),
            }],
            failure: vec![RequestOp {
                request: Some(Request::Range(RangeRequest {
                    key: key.to_vec(),
                    ..RangeRequest::default()
                })),
            }],
        };
        let reply: TxnResponse = inner.client.call(TXN, transaction, Repeat::Never).await?;
        if !reply.succeeded {
            // Somebody else's turn: they have compacted in our interval.
            let found = reply.responses.into_iter().find_map(|response| response.range);
            if let Some(found) = found.and_then(|range| range.kvs.into_iter().next()) {
                inner.learn_compaction(&found);
            }
            return Ok(());
        }
        inner.compact_turn.store(turn + 1, Ordering::Release);
        inner.forget(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = i64::try_from(ttl.as_secs_f64().ceil() as u64)
            .unwrap_or(i64::MAX)
            .max(1);
        let request = proto::LeaseGrantRequest { ttl: seconds };
        // A lease granted twice is a lease that runs out unused.
        let reply: proto::LeaseGrantResponse = self.0.client.call(GRANT, request, Repeat::Safely).await?;
        if reply.error.is_empty() {
            Ok(reply.id.cast_unsigned())
        } else {
            Err(Error::Rejected { reason: reply.error })
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        let request = proto::LeaseRequest {
            id: lease.cast_signed(),
        };
        let (_, stream) = self.0.client.stream(KEEP_ALIVE, request).await;
        let mut stream: tonic::Streaming<proto::LeaseKeepAliveResponse> = stream?;
        match stream.message().await.map_err(client::judge)? {
            Some(reply) if reply.ttl > 0 => Ok(()),
            _ => Err(Error::LeaseNotFound(lease)),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let request = proto::LeaseRequest {
            id: lease.cast_signed(),
        };
        let done: Result<proto::Nothing, _> = self.0.client.call(REVOKE, request, Repeat::Never).await;
        match done {
            Ok(_) => Ok(()),
            Err(Failure::Refused(status)) if status.code() == Code::NotFound => Err(Error::LeaseNotFound(lease)),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn size(&self) -> Result<u64, Error> {
        let reply: proto::StatusResponse = self.0.client.call(STATUS, proto::Nothing {}, Repeat::Safely).await?;
        Ok(unsigned(reply.size))
    }
}
