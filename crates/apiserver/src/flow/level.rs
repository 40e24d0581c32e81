//! A priority level: its configuration, its share of the seats, its queues, and the seat a request sits on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sampan_api::{Object, meta};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::drops::Drops;
use super::queues::{Placed, Queues, Running, Shape, Work};
use super::schema::Schema;
use super::share::Demand;
use super::stats::Reason;
use crate::sync::lock;

/// What a PriorityLevelConfiguration object says.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub name: String,
    pub uid: String,
    pub shares: f64,
    pub lendable_percent: f64,
    /// `None`: as much as there is.
    pub borrowing_percent: Option<f64>,
    pub shape: Shape,
}

impl Spec {
    /// `None` where type and content contradict each other: such a level is as good as absent.
    pub fn parse(object: &Object) -> Option<Self> {
        let spec = object.get("spec")?;
        let (limited, exempt) = (spec.get("limited"), spec.get("exempt"));
        let name = meta::name(object).to_owned();
        let is_exempt = spec.get("type").and_then(Value::as_str) == Some("Exempt");
        if is_exempt == limited.is_some() || is_exempt != (name == super::EXEMPT) {
            return None;
        }
        let common = limited.or(exempt)?;
        let number = |value: &Value, field: &str| value.get(field).and_then(Value::as_i64);
        let shape = if is_exempt {
            Shape::Exempt
        } else {
            let response = common.get("limitResponse")?;
            match (response.get("type").and_then(Value::as_str), response.get("queuing")) {
                (Some("Reject"), None) => Shape::Reject,
                (Some("Queue"), Some(queuing)) => {
                    let size = |field: &str, default: i64| {
                        usize::try_from(number(queuing, field).unwrap_or(default)).unwrap_or(1)
                    };
                    Shape::Queue {
                        queues: size("queues", 64),
                        hand: size("handSize", 8),
                        length: size("queueLengthLimit", 50),
                    }
                }
                _ => return None,
            }
        };
        let default_shares = if is_exempt { 0 } else { 30 };
        Some(Spec {
            name,
            uid: meta::uid(object).to_owned(),
            shares: number(common, "nominalConcurrencyShares").unwrap_or(default_shares) as f64,
            lendable_percent: number(common, "lendablePercent").unwrap_or(0) as f64,
            borrowing_percent: number(common, "borrowingLimitPercent").map(|percent| percent as f64),
            shape,
        })
    }
}

/// Numbers of seats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    pub nominal: usize,
    pub low: usize,
    pub high: usize,
    pub current: usize,
    pub target: f64,
    pub demand: Demand,
}

/// What is known of a request on a level.
pub struct Note {
    pub schema: Arc<Schema>,
    pub flow: Box<str>,
    pub details: Option<Box<Details>>,
}

/// More about a request that waits.
pub struct Details {
    pub user: String,
    pub info: crate::request::RequestInfo,
}

/// How a waiting request is told.
pub struct Tell {
    schema: Arc<Schema>,
    seat: oneshot::Sender<Seat>,
}

pub type State = Queues<Note, Tell>;

/// A level in use. It outlives its object until its last request is done.
pub struct Level {
    pub name: String,
    /// The most seats one request may be estimated at; 0: only the general bound.
    pub max_seats: AtomicUsize,
    pub state: Mutex<State>,
    pub limits: Mutex<Limits>,
    pub drops: Mutex<Drops>,
    pub quiescing: std::sync::atomic::AtomicBool,
    /// Who calls [`Level::turn`] when its time has come.
    alarm: mpsc::UnboundedSender<Alarm>,
}

/// A moment at which a level wants its turn.
pub struct Alarm {
    pub at: Instant,
    pub level: Arc<Level>,
}

/// How a request fared.
pub enum Start {
    Seated(Seat),
    Waiting(Ticket),
    Full(Reason),
}

impl Level {
    pub fn new(name: &str, shape: Shape, alarm: mpsc::UnboundedSender<Alarm>) -> Self {
        Level {
            name: name.to_owned(),
            max_seats: AtomicUsize::new(0),
            state: Mutex::new(Queues::new(shape, 0, Instant::now())),
            limits: Mutex::default(),
            drops: Mutex::default(),
            quiescing: Default::default(),
            alarm,
        }
    }

    pub fn is_exempt(&self) -> bool {
        lock(&self.state).is_exempt()
    }

    /// New configuration or a new number of seats.
    pub fn configure(&self, shape: Shape, seats: usize) {
        let ready = lock(&self.state).configure(Instant::now(), shape, seats);
        seat(ready);
    }

    pub fn is_idle(&self) -> bool {
        lock(&self.state).is_idle()
    }

    pub fn max_seats(&self) -> usize {
        self.max_seats.load(Ordering::Relaxed)
    }

    /// A request of `schema` asks for `work`.
    pub fn start(
        self: &Arc<Self>,
        schema: &Arc<Schema>,
        hash: u64,
        flow: &str,
        work: Work,
        details: impl FnOnce() -> Details,
    ) -> Start {
        let now = Instant::now();
        let note = |details| Note {
            schema: schema.clone(),
            flow: flow.into(),
            details,
        };
        let mut state = lock(&self.state);
        // Only one that may have to wait needs details for those who look, and a channel to be told by.
        let roomy = state.is_exempt() || (state.waiting == 0 && state.seats + work.most() <= state.limit());
        let details = (!roomy).then(|| Box::new(details()));
        let mut told = None;
        let tell = || {
            let (seat, receiver) = oneshot::channel();
            told = Some(receiver);
            Tell {
                schema: schema.clone(),
                seat,
            }
        };
        match state.place(now, hash, work, note(details), tell) {
            Placed::Run(running) => {
                drop(state);
                Start::Seated(Seat::new(schema.clone(), running))
            }
            Placed::Full => {
                let queued = !state.queues.is_empty();
                drop(state);
                let reason = if queued {
                    Reason::QueueFull
                } else {
                    Reason::ConcurrencyLimit
                };
                schema.stats.reject(reason);
                Start::Full(reason)
            }
            Placed::Wait { queue, ticket, ready } => {
                let at = state.next_turn();
                drop(state);
                schema.stats.wait(1, work.most() as i64);
                let ticket = Ticket {
                    schema: schema.clone(),
                    queue,
                    ticket,
                    seats: work.most() as i64,
                    since: now,
                    told: told.unwrap_or_else(|| oneshot::channel().1),
                    open: true,
                };
                self.alarm(at);
                seat(ready);
                Start::Waiting(ticket)
            }
        }
    }

    fn alarm(self: &Arc<Self>, at: Option<Instant>) {
        if let Some(at) = at {
            // Without its task (the server ends) nothing waits for long either.
            let _ended = self.alarm.send(Alarm {
                at,
                level: self.clone(),
            });
        }
    }

    /// Seats that lingered may be free now.
    pub fn turn(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let ready = state.turn(Instant::now());
        let at = state.next_turn();
        drop(state);
        self.alarm(at);
        seat(ready);
    }

    fn finish(self: &Arc<Self>, running: &Running) {
        let mut state = lock(&self.state);
        let ready = state.finish(Instant::now(), running);
        let at = if running.work.latency.is_zero() {
            None
        } else {
            state.next_turn()
        };
        drop(state);
        self.alarm(at);
        seat(ready);
    }
}

/// Tells waiting requests that they may run. One that is gone gives its seat back at once.
fn seat(ready: Vec<(Tell, Running)>) {
    for (tell, running) in ready {
        let _gone = tell.seat.send(Seat::new(tell.schema, running));
    }
}

/// The right to run. Dropping it ends the request as far as the level goes.
pub struct Seat {
    schema: Arc<Schema>,
    running: Running,
}

impl Seat {
    fn new(schema: Arc<Schema>, running: Running) -> Self {
        schema.stats.run(1, running.work.most() as i64);
        Seat { schema, running }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let stats = &self.schema.stats;
        stats.run(-1, -(self.running.work.most() as i64));
        stats.ran.observe(self.running.started.elapsed());
        self.schema.level.finish(&self.running);
    }
}

/// A place in a line. Dropping it gives the place up.
pub struct Ticket {
    schema: Arc<Schema>,
    queue: usize,
    ticket: u64,
    seats: i64,
    since: Instant,
    told: oneshot::Receiver<Seat>,
    open: bool,
}

impl Ticket {
    /// Waits for a seat until `deadline`.
    pub async fn seat(mut self, deadline: tokio::time::Instant) -> Result<Seat, Reason> {
        match tokio::time::timeout_at(deadline, &mut self.told).await {
            Ok(Ok(seat)) => {
                self.close(true);
                Ok(seat)
            }
            _ => {
                let level = self.schema.level.clone();
                let left = lock(&level.state).cancel(Instant::now(), self.queue, self.ticket, true);
                self.close(left.is_none());
                if left.is_some() {
                    self.schema.stats.reject(Reason::TimeOut);
                    return Err(Reason::TimeOut);
                }
                // It was seated this very moment.
                (&mut self.told).await.map_err(|_| Reason::TimeOut)
            }
        }
    }

    fn close(&mut self, ran: bool) {
        self.open = false;
        let stats = &self.schema.stats;
        stats.wait(-1, -self.seats);
        let waited = if ran { &stats.waited } else { &stats.waited_in_vain };
        waited.observe(self.since.elapsed());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let level = self.schema.level.clone();
        let left = lock(&level.state).cancel(Instant::now(), self.queue, self.ticket, false);
        self.close(left.is_none());
        if left.is_some() {
            self.schema.stats.reject(Reason::Cancelled);
        }
    }
}
