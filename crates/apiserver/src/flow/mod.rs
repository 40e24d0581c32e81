//! Priority and fairness: who is worked for, and who waits.
//!
//! Every request but a stream belongs to a flow (a FlowSchema and what tells its users apart) of a priority level.
//! Levels share the server's seats by their configuration and lend what they do not use; within a level,
//! flows are served fairly from queues. FlowSchema and PriorityLevelConfiguration objects say all that, and
//! a change of one takes effect before its write is answered: the watch cache hands it over.
//!
//! Invariants:
//! - a request without contention takes one short lock and allocates next to nothing;
//! - every seat is given back when its [`Seat`] is dropped, every place in a line when its ticket is;
//! - the two mandatory levels and schemas always exist, whatever objects there are.
//!
//! Where it differs from upstream: flows are hashed with another function; levels are re-balanced every ten seconds only
//! while there are requests; bootstrap objects are restored when they change and not once a minute.

mod balance;
mod drops;
mod hold;
mod in_flight;
pub mod keeper;
mod level;
mod queues;
mod report;
mod schema;
mod share;
mod stats;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use sampan_api::Object;
use sampan_auth::UserInfo;
use sampan_tasks::{OnExit, Tasks};
use tokio::sync::{Notify, mpsc};

pub use hold::{come_back, hold, keeps_seat};
pub use in_flight::InFlight;
pub use level::Seat;
use level::{Alarm, Details, Level, Start};
pub use report::{metrics, page};
use schema::Schema;
use stats::Stats;

use crate::request::{Query, RequestInfo};
use crate::rows::Rows;
use crate::sync::{lock, read, write};
use crate::watch_cache::{Change, ChangeType};

pub(crate) const EXEMPT: &str = "exempt";
pub(crate) const CATCH_ALL: &str = "catch-all";
/// No request waits longer for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often levels are re-balanced while there are requests.
const PERIOD: Duration = Duration::from_secs(10);

/// Which of the two kinds an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Schema,
    Level,
}

/// The objects as they stand, and what was made of them.
#[derive(Default)]
struct Known {
    schemas: BTreeMap<String, schema::Spec>,
    levels: BTreeMap<String, Option<level::Spec>>,
    used: BTreeMap<String, (level::Spec, Arc<Level>)>,
    stats: HashMap<(String, String), Arc<Stats>>,
}

/// What requests are matched against.
struct Table {
    schemas: Vec<Arc<Schema>>,
    levels: Vec<Arc<Level>>,
}

pub struct Flow {
    /// Seats of the whole server.
    total: usize,
    known: Mutex<Known>,
    table: RwLock<Arc<Table>>,
    /// For the keeper of the objects.
    changed: Notify,
    busy: Notify,
    asleep: AtomicBool,
    alarm: mpsc::UnboundedSender<Alarm>,
    alarms: Mutex<Option<mpsc::UnboundedReceiver<Alarm>>>,
}

/// What a request holds while it is worked on.
#[expect(dead_code, reason = "it is held, not read: what is dropped is given back")]
pub enum Place {
    Seat(Seat),
    /// Where priority and fairness is off.
    InFlight(tokio::sync::OwnedSemaphorePermit),
}

/// What a request was classified as.
pub struct Mark(Arc<Schema>);

impl Mark {
    /// Marks an answer with the schema and the level, by uid: names may say too much.
    pub fn put(&self, headers: &mut http::HeaderMap) {
        headers.insert(SCHEMA_UID.clone(), self.0.uid.clone());
        headers.insert(LEVEL_UID.clone(), self.0.level_uid.clone());
    }
}

static SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
static LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

impl Flow {
    /// `total`: how many seats there are.
    pub fn new(total: usize) -> Arc<Self> {
        let (alarm, alarms) = mpsc::unbounded_channel();
        let flow = Flow {
            total: total.max(1),
            known: Mutex::default(),
            table: RwLock::new(Arc::new(Table {
                schemas: Vec::new(),
                levels: Vec::new(),
            })),
            changed: Notify::new(),
            busy: Notify::new(),
            asleep: AtomicBool::new(false),
            alarm,
            alarms: Mutex::new(Some(alarms)),
        };
        flow.digest(&mut lock(&flow.known));
        Arc::new(flow)
    }

    /// Starts the tasks behind the levels.
    pub fn start(self: &Arc<Self>, tasks: &Tasks) {
        if let Some(alarms) = lock(&self.alarms).take() {
            tasks.spawn_until_drain("flow-turns", OnExit::Critical, turns(alarms));
        }
        let flow = self.clone();
        tasks.spawn_until_drain("flow-balance", OnExit::Critical, async move {
            loop {
                tokio::time::sleep(PERIOD).await;
                if flow.rebalance() {
                    flow.asleep.store(true, Ordering::Release);
                    flow.busy.notified().await;
                }
            }
        });
    }

    /// An object of one of the two kinds has changed.
    pub fn observe(&self, kind: Kind, change: &Change, object: &Object) {
        let name = change.entry.name().to_owned();
        let gone = change.kind == ChangeType::Deleted;
        let mut known = lock(&self.known);
        match kind {
            Kind::Schema if gone => drop(known.schemas.remove(&name)),
            Kind::Level if gone => drop(known.levels.remove(&name)),
            Kind::Schema => drop(known.schemas.insert(name, schema::Spec::parse(object))),
            Kind::Level => drop(known.levels.insert(name, level::Spec::parse(object))),
        }
        self.digest(&mut known);
        drop(known);
        self.changed.notify_one();
    }

    /// Whether a level of this name exists and makes sense.
    fn has_level(&self, name: &str) -> bool {
        lock(&self.known).levels.get(name).is_some_and(Option::is_some)
    }

    /// Makes the table anew from the objects.
    fn digest(&self, known: &mut Known) {
        let mut specs: BTreeMap<String, level::Spec> = known
            .levels
            .values()
            .flatten()
            .map(|spec| (spec.name.clone(), spec.clone()))
            .collect();
        let mut schemas: Vec<schema::Spec> = known
            .schemas
            .values()
            .filter(|schema| specs.contains_key(&schema.level))
            .cloned()
            .collect();
        schemas.sort_by(schema::Spec::order);
        for object in keeper::mandatory() {
            match object["kind"].as_str() {
                Some("FlowSchema") => {
                    let spec = schema::Spec::parse(&object);
                    if !schemas.iter().any(|known| known.name == spec.name) {
                        let at = if spec.name == EXEMPT { 0 } else { schemas.len() };
                        schemas.insert(at, spec);
                    }
                }
                _ => {
                    if let Some(spec) = level::Spec::parse(&object) {
                        specs.entry(spec.name.clone()).or_insert(spec);
                    }
                }
            }
        }
        let mut used = BTreeMap::new();
        for (name, spec) in specs {
            let level = match known.used.remove(&name) {
                Some((_, level)) => level,
                None => Arc::new(Level::new(&name, spec.shape, self.alarm.clone())),
            };
            level.quiescing.store(false, Ordering::Relaxed);
            used.insert(name, (spec, level));
        }
        // A level without an object stays until the last of its requests is done.
        for (name, (spec, level)) in std::mem::take(&mut known.used) {
            if !level.is_idle() {
                level.quiescing.store(true, Ordering::Relaxed);
                used.insert(name, (spec, level));
            }
        }
        known.used = used;
        self.allot(known);
        let header = |uid: &str| HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""));
        let schemas = schemas
            .into_iter()
            .filter_map(|spec| {
                let (level_spec, level) = known.used.get(&spec.level)?;
                let stats = known
                    .stats
                    .entry((spec.level.clone(), spec.name.clone()))
                    .or_default()
                    .clone();
                Some(Arc::new(Schema {
                    uid: header(&spec.uid),
                    level_uid: header(&level_spec.uid),
                    level: level.clone(),
                    stats,
                    spec,
                }))
            })
            .collect();
        let levels = known.used.values().map(|(_, level)| level.clone()).collect();
        *write(&self.table) = Arc::new(Table { schemas, levels });
    }

    /// Classifies a request and waits for its seat, at most `wait`; without one, the client is to come back after
    /// so many seconds. `None`: there is nothing to classify by.
    pub async fn enter(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        query: &Query,
        rows: &Rows,
        wait: Duration,
    ) -> Option<(Mark, Result<Seat, i64>)> {
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.busy.notify_one();
        }
        let schema = {
            let table = read(&self.table);
            let found = table.schemas.iter().find(|schema| schema.spec.matches(user, info));
            // Who is in neither of the two groups that stand for everybody still goes somewhere.
            found.or_else(|| table.schemas.last())?.clone()
        };
        let level = &schema.level;
        let (work, hash, flow) = if level.is_exempt() {
            (queues::Work::ONE, 0, "")
        } else {
            let costly = info.is_resource && info.verb != "get";
            let table = costly.then(|| rows.get());
            let storage = table.as_ref().and_then(|table| {
                table
                    .find(&info.group, &info.version, &info.resource)?
                    .storage
                    .as_deref()
            });
            let flow = schema.flow(user, info);
            (
                work::estimate(info, query, level.max_seats(), storage),
                hash_of(&schema.spec.name, flow),
                flow,
            )
        };
        let started = level.start(&schema, hash, flow, work, || Details {
            user: user.name.clone(),
            info: info.clone(),
        });
        let outcome = match started {
            Start::Seated(seat) => Ok(seat),
            Start::Waiting(ticket) => {
                let deadline = tokio::time::Instant::now() + wait.min(LONGEST_WAIT);
                ticket.seat(deadline).await
            }
            Start::Full(reason) => Err(reason),
        };
        let seat = outcome.map_err(|reason| {
            tracing::debug!(
                level = level.name,
                reason = reason.name(),
                user = user.name,
                verb = info.verb,
                path = info.path,
                "a request was turned away"
            );
            lock(&level.drops).record(jiff::Timestamp::now().as_second())
        });
        Some((Mark(schema), seat))
    }

    /// Re-divides the seats; whether nobody wanted any.
    fn rebalance(&self) -> bool {
        self.balance(&mut lock(&self.known))
    }

    /// Waits for a change of the objects.
    async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn hash_of(schema: &str, flow: &str) -> u64 {
    // Not for tables: the same flow must get the same hand as long as the process lives.
    let mut hasher = std::hash::DefaultHasher::new();
    schema.hash(&mut hasher);
    flow.hash(&mut hasher);
    hasher.finish()
}

/// Gives levels their turn when seats that lingered are free again.
async fn turns(mut alarms: mpsc::UnboundedReceiver<Alarm>) {
    let mut due: BTreeMap<(std::time::Instant, String), Arc<Level>> = BTreeMap::new();
    loop {
        let next = due.first_key_value().map(|((at, _), _)| *at);
        let alarm = match next {
            None => match alarms.recv().await {
                Some(alarm) => Some(alarm),
                None => return,
            },
            Some(at) => match tokio::time::timeout_at(at.into(), alarms.recv()).await {
                Ok(Some(alarm)) => Some(alarm),
                Ok(None) => return,
                Err(_) => None,
            },
        };
        match alarm {
            Some(alarm) => {
                due.insert((alarm.at, alarm.level.name.clone()), alarm.level);
            }
            None => {
                if let Some((_, level)) = due.pop_first() {
                    level.turn();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
