//! From an event to a back end: truncation, batches, and what a slow or broken back end costs.
//!
//! Invariants: what waits is bounded in number and in bytes; what does not fit is dropped, counted, and no request
//! waits for it (mode `batch`). Only the blocking modes make requests wait. While the server drains, what waits is
//! still delivered, for a while.
//!
//! Differs from upstream: bytes are bounded too, and batches in flight to a webhook are few (upstream's are as many as
//! the throttle lets pass); a batch is split where it exceeds the batch size of truncation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sampan_tasks::{Drain, OnExit, Tasks};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::event::{Event, line};
use super::log::Log;
use super::metrics::Metrics;
use super::policy::Level;
use super::webhook::Webhook;

/// Bytes that may wait for a back end.
const WAITING: usize = 64 << 20;
/// Batches on their way to a webhook at once.
const IN_FLIGHT: usize = 8;
/// While draining: without an event for this long there will be none.
const QUIET: Duration = Duration::from_secs(1);

/// Whether requests wait for the back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Batch,
    Blocking,
    /// A request whose first event cannot be stored is refused.
    BlockingStrict,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BatchOptions {
    pub mode: Mode,
    /// Events that may wait.
    pub buffer_size: usize,
    pub max_size: usize,
    pub max_wait: Duration,
    /// Batches per second, and how many at once; `None`: as fast as they come.
    pub throttle: Option<(f64, usize)>,
}

/// Bytes an event, and a batch, may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truncation {
    pub max_event: usize,
    pub max_batch: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Legacy,
}

pub enum Backend {
    Log(Log, Format),
    Webhook(Webhook),
}

impl Backend {
    fn plugin(&self) -> &'static str {
        match self {
            Backend::Log(..) => "log",
            Backend::Webhook(_) => "webhook",
        }
    }

    async fn deliver(&self, items: &[Vec<u8>]) -> Result<(), String> {
        match self {
            Backend::Log(log, _) => match items {
                [one] => log.write(one),
                several => log.write(&several.concat()),
            }
            .map_err(|error| error.to_string()),
            Backend::Webhook(webhook) => webhook.send(items).await,
        }
    }
}

/// One back end and the way to it.
pub struct Sink {
    delivery: Arc<Delivery>,
    mode: Mode,
    queue: Option<Queue>,
}

struct Delivery {
    backend: Backend,
    truncation: Option<Truncation>,
    metrics: Arc<Metrics>,
}

struct Queue {
    sender: mpsc::Sender<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
}

impl Sink {
    pub fn start(
        backend: Backend,
        options: &BatchOptions,
        truncation: Option<Truncation>,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Sink {
        let delivery = Arc::new(Delivery {
            backend,
            truncation,
            metrics: metrics.clone(),
        });
        let queue = (options.mode == Mode::Batch).then(|| {
            let (sender, events) = mpsc::channel(options.buffer_size.max(1));
            let bytes = Arc::new(AtomicUsize::new(0));
            let worker = Worker {
                delivery: delivery.clone(),
                options: options.clone(),
                events,
                bytes: bytes.clone(),
                tasks: tasks.clone(),
                drain: tasks.drain(),
            };
            let name = format!("audit-{}", delivery.backend.plugin());
            tasks.spawn(name, OnExit::Critical, worker.run());
            Queue { sender, bytes }
        });
        Sink {
            delivery,
            mode: options.mode,
            queue,
        }
    }

    /// The event as the back end takes it; `None`: it is too large for it.
    pub fn render(&self, event: &Event) -> Option<Vec<u8>> {
        self.delivery.render(event)
    }

    /// Takes what [`Sink::render`] made. False: it is lost, and the request is not to be worked on.
    pub async fn process(&self, item: Option<Vec<u8>>) -> bool {
        let Some(item) = item else {
            return self.mode != Mode::BlockingStrict;
        };
        let Some(queue) = &self.queue else {
            let delivered = self.delivery.deliver(&[item]).await;
            return delivered || self.mode != Mode::BlockingStrict;
        };
        let size = item.len();
        let full = queue.bytes.fetch_add(size, Ordering::Relaxed) + size > WAITING;
        let refused = if full {
            Some("audit buffer queue blocked")
        } else {
            match queue.sender.try_send(item) {
                Ok(()) => None,
                Err(mpsc::error::TrySendError::Full(_)) => Some("audit buffer queue blocked"),
                Err(mpsc::error::TrySendError::Closed(_)) => Some("audit backend shut down"),
            }
        };
        if let Some(why) = refused {
            queue.bytes.fetch_sub(size, Ordering::Relaxed);
            self.delivery.metrics.error("buffered", 1, why);
        }
        true
    }
}

impl Delivery {
    fn render(&self, event: &Event) -> Option<Vec<u8>> {
        let encoded = |event: &Event| match event.item() {
            Ok(item) => Some(item),
            Err(error) => {
                self.metrics.error(self.backend.plugin(), 1, &error.to_string());
                None
            }
        };
        let legacy = matches!(self.backend, Backend::Log(_, Format::Legacy));
        let mut cut = None;
        let mut item = None;
        if !legacy || self.truncation.is_some() {
            let mut whole = encoded(event)?;
            if let Some(limit) = self.truncation {
                if whole.len() > limit.max_event && event.level >= Level::Request {
                    let event = cut.insert(event.truncated());
                    whole = encoded(event)?;
                }
                if whole.len() > limit.max_event {
                    self.metrics
                        .error("truncate", 1, "event is too large even after truncating");
                    return None;
                }
            }
            item = Some(whole);
        }
        Some(match (&self.backend, item) {
            (Backend::Webhook(_), Some(item)) => item,
            (Backend::Log(_, Format::Json), Some(item)) => line(&item),
            _ => cut.as_ref().unwrap_or(event).legacy().into_bytes(),
        })
    }

    async fn deliver(&self, items: &[Vec<u8>]) -> bool {
        let Err(why) = self.backend.deliver(items).await else {
            return true;
        };
        self.metrics.error(self.backend.plugin(), items.len(), &why);
        false
    }

    /// Delivers in pieces that are not too large.
    async fn deliver_split(&self, mut items: &[Vec<u8>]) {
        let most = self.truncation.map_or(usize::MAX, |limit| limit.max_batch);
        while !items.is_empty() {
            let mut size = 0;
            let fitting = items
                .iter()
                .take_while(|item| {
                    size += item.len();
                    size <= most
                })
                .count();
            let (now, later) = items.split_at(fitting.max(1));
            self.deliver(now).await;
            items = later;
        }
    }
}

/// Gathers batches and hands them on.
struct Worker {
    delivery: Arc<Delivery>,
    options: BatchOptions,
    events: mpsc::Receiver<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
    tasks: Tasks,
    drain: Drain,
}

impl Worker {
    async fn run(mut self) {
        let seats = Arc::new(Semaphore::new(IN_FLIGHT));
        let mut throttle = self.options.throttle.map(|(rate, burst)| Throttle::new(rate, burst));
        loop {
            let batch = self.gather().await;
            if batch.is_empty() {
                break;
            }
            let size: usize = batch.iter().map(Vec::len).sum();
            if let Some(throttle) = &mut throttle {
                // Draining ends the wait.
                let _early = self.drain.until(throttle.wait()).await;
            }
            let (delivery, bytes) = (self.delivery.clone(), self.bytes.clone());
            if matches!(delivery.backend, Backend::Log(..)) {
                delivery.deliver_split(&batch).await;
                bytes.fetch_sub(size, Ordering::Relaxed);
                continue;
            }
            let Ok(seat) = seats.clone().acquire_owned().await else {
                return;
            };
            self.tasks.spawn("audit-batch", OnExit::Expected, async move {
                delivery.deliver_split(&batch).await;
                bytes.fetch_sub(size, Ordering::Relaxed);
                drop(seat);
            });
        }
    }

    /// The next batch; empty when the server drains and nothing comes any more.
    async fn gather(&mut self) -> Vec<Vec<u8>> {
        let most = self.options.max_size.max(1);
        let mut batch = Vec::new();
        if !self.drain.is_started()
            && let Some(received) = self.drain.until(self.events.recv_many(&mut batch, most)).await
            && received == 0
        {
            return batch;
        }
        let deadline = Instant::now() + self.options.max_wait;
        while batch.len() < most {
            let left = most - batch.len();
            if self.drain.is_started() {
                match tokio::time::timeout(QUIET, self.events.recv_many(&mut batch, left)).await {
                    Ok(received) if received > 0 => continue,
                    _ => break,
                }
            }
            let next = self.drain.until(self.events.recv_many(&mut batch, left));
            match tokio::time::timeout_at(deadline, next).await {
                Ok(Some(0)) | Err(_) => break,
                // More, or the drain has begun.
                Ok(_) => {}
            }
        }
        batch
    }
}

/// A bucket of tokens.
struct Throttle {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Throttle {
    fn new(rate: f64, burst: usize) -> Self {
        Throttle {
            rate,
            burst: burst as f64,
            tokens: burst as f64,
            at: Instant::now(),
        }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.at).as_secs_f64() * self.rate).min(self.burst);
        self.at = now;
        self.tokens -= 1.0;
        if self.tokens < 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(-self.tokens / self.rate)).await;
        }
    }
}
