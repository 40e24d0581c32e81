//! ResourceQuota: what a namespace may use is reserved before an object is written, last of all checks.
//!
//! The reservation is the quota's own status: it is written on the condition that nobody else wrote it meanwhile, so that
//! no number of servers and requests can overrun it. Requests of one namespace that wait together are charged together,
//! in one write per quota; that is why thousands of creates are not thousands of conflicts. Namespaces go on side by
//! side, in one task. Dry runs are checked and charge nothing.
//!
//! Invariant: a request passes only after every quota that is about it has been written with its share. What was charged
//! and then failed is given back by the controller's recalculation.
//!
//! Differs from upstream: a request whose client has gone before its turn is not charged; a conflict goes on with what
//! the store says is there now instead of reading again.

mod check;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use sampan_api::Object;
use sampan_api::codec::printed;
use sampan_api::quota::{self, Evaluator};
use sampan_api::status::Status;
use sampan_store::{Condition, Op, Revision, Write, Written};
use sampan_tasks::{OnExit, Tasks};
use tokio::sync::{mpsc, oneshot};

use super::{Notes, Operation, Plugin, Reader, Review};
use crate::{Refusal, refuse};
use check::{Demand, Quota};

/// How often a charge is tried against other writers.
const ATTEMPTS: usize = 32;
/// Many, short-lived, or not stored at all.
const IGNORED: [(&str, &str); 8] = [
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
];
const PREFIX: &str = "resourcequotas";

/// A request that waits for its namespace's turn.
struct Waiter {
    namespace: String,
    demand: Demand,
    dry_run: bool,
    answer: oneshot::Sender<Result<(), Denied>>,
}

/// Why a request does not pass.
enum Denied {
    Forbidden(String),
    Failed(Box<Status>),
}

pub struct ResourceQuota {
    reader: Reader,
    work: mpsc::UnboundedSender<Waiter>,
}

impl ResourceQuota {
    /// The plugin, and the task that charges for it.
    pub fn start(reader: Reader, tasks: &Tasks) -> Self {
        let (work, inbox) = mpsc::unbounded_channel();
        tasks.spawn_until_drain("quota-admission", OnExit::Critical, serve(reader.clone(), inbox));
        ResourceQuota { reader, work }
    }
}

/// Whether a request can change what is used, as far as its resource and verb tell.
fn concerns(review: &Review<'_>, evaluator: &Evaluator) -> bool {
    let (creates, updates) = (
        review.operation == Operation::Create,
        review.operation == Operation::Update,
    );
    match (evaluator, review.subresource) {
        (Evaluator::Pods, "resize") => updates,
        (Evaluator::Pods | Evaluator::Services | Evaluator::Claims | Evaluator::ResourceClaims, "") => {
            creates || updates
        }
        (Evaluator::Claims, "status") => updates,
        (Evaluator::Count(_), "") => creates,
        _ => false,
    }
}

/// Whether an update changes what is used.
fn matters(review: &Review<'_>, evaluator: &Evaluator, object: &Object) -> bool {
    match (evaluator, review.subresource, review.old) {
        (Evaluator::Pods, "", Some(old)) => quota::is_terminating(old) != quota::is_terminating(object),
        (Evaluator::Claims, "status", Some(old)) => quota::claim_status_matters(object, old),
        _ => true,
    }
}

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        let spec = review.row.spec;
        spec.namespaced
            && !review.namespace.is_empty()
            && !IGNORED.contains(&(spec.group, spec.plural))
            && concerns(review, &Evaluator::of(spec.group, spec.plural))
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(object) = object else { return Ok(()) };
        let evaluator = Evaluator::of(review.row.spec.group, review.row.spec.plural);
        if !matters(review, &evaluator, object) || !self.reader.any_in_namespace(PREFIX, review.namespace) {
            return Ok(());
        }
        let (answer, told) = oneshot::channel();
        let old = review.old.filter(|_| review.operation == Operation::Update).cloned();
        let waiter = Waiter {
            namespace: review.namespace.to_owned(),
            demand: Demand::new(evaluator, object.clone(), old, review.subresource == "status"),
            dry_run: review.dry_run,
            answer,
        };
        let ending = || refuse(Status::unavailable("the API server is shutting down"));
        self.work.send(waiter).map_err(|_| ending())?;
        match told.await.map_err(|_| ending())? {
            Ok(()) => Ok(()),
            Err(Denied::Forbidden(why)) => Err(review.refuse(object, &why)),
            Err(Denied::Failed(status)) => Err(refuse(*status)),
        }
    }
}

/// Serves namespaces side by side, each with one round at a time.
async fn serve(reader: Reader, mut inbox: mpsc::UnboundedReceiver<Waiter>) {
    let mut waiting: HashMap<String, Vec<Waiter>> = HashMap::new();
    let mut busy: HashSet<String> = HashSet::new();
    let mut rounds = FuturesUnordered::new();
    loop {
        let ready = tokio::select! {
            waiter = inbox.recv() => {
                let Some(waiter) = waiter else { return };
                let namespace = waiter.namespace.clone();
                waiting.entry(namespace.clone()).or_default().push(waiter);
                namespace
            }
            Some(namespace) = rounds.next(), if !rounds.is_empty() => {
                busy.remove(&namespace);
                namespace
            }
        };
        if !busy.contains(&ready)
            && let Some(waiters) = waiting.remove(&ready)
        {
            busy.insert(ready.clone());
            let reader = reader.clone();
            rounds.push(async move {
                round(&reader, &ready, waiters).await;
                ready
            });
        }
    }
}

/// Charges a namespace's quotas for all that wait, and answers them.
async fn round(reader: &Reader, namespace: &str, waiters: Vec<Waiter>) {
    let mut waiters: Vec<Waiter> = waiters
        .into_iter()
        .filter(|waiter| !waiter.answer.is_closed())
        .collect();
    let mut quotas = load(reader, namespace);
    for _ in 0..ATTEMPTS {
        waiters = judge(&mut quotas, waiters);
        if waiters.is_empty() {
            return;
        }
        match charge(reader, quotas).await {
            Ok(moved) if moved.is_empty() => {
                for waiter in waiters {
                    answer(waiter, Ok(()));
                }
                return;
            }
            // The others have their share; only these are asked again.
            Ok(moved) => quotas = moved,
            Err(status) => return deny(waiters, &status),
        }
    }
    let name = quotas.first().map_or("", |quota| quota.name.as_str());
    deny(waiters, &Status::modified("", PREFIX, name));
}

/// Checks the waiters one after the other against what the ones before them leave. Those that must wait for a write
/// remain; all others are answered.
fn judge(quotas: &mut [Quota], waiters: Vec<Waiter>) -> Vec<Waiter> {
    let mut remaining = Vec::with_capacity(waiters.len());
    for waiter in waiters {
        match check::check(quotas, &waiter.demand) {
            Err(why) => answer(waiter, Err(Denied::Forbidden(why))),
            Ok(charges) if charges.is_empty() || waiter.dry_run => answer(waiter, Ok(())),
            Ok(charges) => {
                for (quota, used) in charges {
                    if let Some(quota) = quotas.get_mut(quota) {
                        quota.used = used;
                        quota.charged = true;
                    }
                }
                remaining.push(waiter);
            }
        }
    }
    remaining
}

/// Nobody listens any more when the client has gone.
fn answer(waiter: Waiter, result: Result<(), Denied>) {
    let _gone = waiter.answer.send(result);
}

fn deny(waiters: Vec<Waiter>, status: &Status) {
    for waiter in waiters {
        answer(waiter, Err(Denied::Failed(Box::new(status.clone()))));
    }
}

fn load(reader: &Reader, namespace: &str) -> Vec<Quota> {
    reader
        .entries_in_namespace(PREFIX, namespace)
        .iter()
        .map(|entry| Quota::new(entry.key().clone(), entry.revision(), entry.object()))
        .collect()
}

/// Writes the charged quotas side by side. Answers with those that somebody else has written, as they are now.
async fn charge(reader: &Reader, quotas: Vec<Quota>) -> Result<Vec<Quota>, Status> {
    let writes = quotas
        .into_iter()
        .filter(|quota| quota.charged)
        .map(|quota| write(reader, quota));
    let mut moved = Vec::new();
    let mut reached: Revision = 0;
    for outcome in futures::future::join_all(writes).await {
        match outcome? {
            Wrote::At(revision) => reached = reached.max(revision),
            Wrote::Moved(Some(quota)) => moved.push(*quota),
            // Deleted meanwhile: it asks for nothing any more.
            Wrote::Moved(None) => {}
        }
    }
    // The next round must not begin with what is already history.
    reader.cache().reached(reached).await;
    Ok(moved)
}

enum Wrote {
    At(Revision),
    Moved(Option<Box<Quota>>),
}

async fn write(reader: &Reader, quota: Quota) -> Result<Wrote, Status> {
    let key: Arc<str> = quota.key.clone();
    let write = Write {
        key: key.clone(),
        condition: Condition::ModRevision(quota.revision),
        op: Op::Put {
            value: quota.encoded(),
            lease: None,
        },
    };
    match reader.cache().store().write(write).await {
        Ok(Written::Committed { revision, .. }) => Ok(Wrote::At(revision)),
        Ok(Written::Refused { current, .. }) => Ok(Wrote::Moved(current.map(|current| {
            let object = printed::read(&current.value);
            Box::new(Quota::new(current.key, current.mod_revision, object))
        }))),
        Err(error) => Err(*crate::registry::store_failure(error)),
    }
}
