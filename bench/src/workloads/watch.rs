//! Many watchers, every one told of every change: how fast, and what a delivered event costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use http::Method;
use serde_json::json;

use super::{clear, namespace};
use crate::client::{Client, JSON, MERGE};
use crate::report::{Measure, cost, latencies};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 500)]
    pub watchers: usize,
    /// Changes of the watched objects.
    #[arg(long, default_value_t = 200)]
    pub updates: usize,
    /// Changes a second; 0: as fast as the watchers are told.
    #[arg(long, default_value_t = 0)]
    pub rate: usize,
    /// Watches on each HTTP/2 connection; 0: an HTTP/1.1 connection for each.
    #[arg(long, default_value_t = 0)]
    pub shared: usize,
    /// Seconds to let the watchers be idle first, to see what they cost.
    #[arg(long, default_value_t = 0)]
    pub idle: u64,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    const BASE: &str = "/api/v1/namespaces/bench-watch/configmaps";
    namespace(target, "bench-watch").await?;
    clear(target, BASE).await?;
    let mut lane = target.client.lane();
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "watched"}, "data": {"d": "x".repeat(1024)}});
    let created = lane
        .json(Method::POST, BASE, Some((JSON, body.to_string().into())))
        .await?;
    let from = created["metadata"]["resourceVersion"]
        .as_str()
        .ok_or("no resourceVersion")?
        .to_owned();

    // Times by update: watchers only look up when the update whose number they see was sent.
    let epoch = Instant::now();
    let sent: Arc<Vec<AtomicUsize>> = Arc::new((0..args.updates).map(|_| AtomicUsize::new(0)).collect());
    let delivered = Arc::new(AtomicUsize::new(0));
    let path = format!("{BASE}?watch=1&resourceVersion={from}");
    let mut measures = Vec::new();
    let empty = target.meter.read()?;
    let mut watchers = Vec::new();
    if args.shared > 0 {
        for watch in target.client.watches(&path, args.watchers, args.shared).await? {
            watchers.push(watch.left_stream());
        }
    } else {
        for _ in 0..args.watchers {
            watchers.push(target.client.watch(&path).await?.right_stream());
        }
    }
    if args.idle > 0 && !target.meter.is_blind() {
        // What connecting left behind is over after a moment.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = target.meter.read()?;
        tokio::time::sleep(Duration::from_secs(args.idle)).await;
        let after = target.meter.read()?;
        let each = (after.resident_mib - empty.resident_mib) / args.watchers as f64 * 1024.0;
        measures.push(("memory of an idle watcher".to_owned(), each, "KiB"));
        let spent = (after.cpu_seconds - before.cpu_seconds) * 60.0 / args.idle as f64;
        measures.push(("CPU of idle watchers per minute".to_owned(), spent, "s"));
    }
    let updates = args.updates;
    let readers = watchers.into_iter().map(|watcher| {
        let (sent, delivered) = (Arc::clone(&sent), Arc::clone(&delivered));
        async move {
            let mut watcher = std::pin::pin!(watcher);
            let mut seconds = Vec::with_capacity(updates);
            while seconds.len() < updates {
                let line = watcher.next().await.ok_or("a watch ended early")??;
                let Some(number) = number_in(&line) else { continue };
                let at = sent.get(number).map_or(0, |slot| slot.load(Ordering::Acquire));
                seconds.push(epoch.elapsed().as_secs_f64() - at as f64 / 1e6);
                delivered.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(seconds)
        }
    });
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    // On a thread of its own: what is measured is how fast the server takes changes while it tells the watchers, not
    // how busy this program is with reading.
    let (done, finished) = tokio::sync::oneshot::channel();
    let writer = Writer {
        client: target.client.clone(),
        path: format!("{BASE}/watched"),
        sent: Arc::clone(&sent),
        epoch,
        rate: args.rate,
    };
    std::thread::spawn(move || {
        let outcome = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Into::into)
            .and_then(|runtime| runtime.block_on(writer.run()));
        // Nobody listens when a watch has failed.
        let _gone = done.send(outcome);
    });
    let written = async { finished.await? };
    let (seconds, mut patches) = futures::try_join!(futures::future::try_join_all(readers), written)?;
    let elapsed = start.elapsed().as_secs_f64();
    let events = delivered.load(Ordering::Relaxed) as f64;
    measures.push(("updates".to_owned(), args.updates as f64 / elapsed, "/s"));
    measures.push(("events".to_owned(), events / elapsed, "/s"));
    measures.extend(latencies("update", &mut patches));
    measures.extend(latencies("delivery", &mut seconds.concat()));
    measures.extend(cost(target, before, Some(("event", events)))?);
    clear(target, BASE).await?;
    Ok(measures)
}

/// Changes the watched object again and again.
struct Writer {
    client: Client,
    path: String,
    sent: Arc<Vec<AtomicUsize>>,
    epoch: Instant,
    rate: usize,
}

impl Writer {
    /// Returns what each change took.
    async fn run(self) -> Result<Vec<f64>> {
        let mut lane = self.client.lane();
        let mut seconds = Vec::with_capacity(self.sent.len());
        for (update, slot) in self.sent.iter().enumerate() {
            let begun = self.epoch.elapsed();
            slot.store(begun.as_micros() as usize, Ordering::Release);
            let body = json!({"data": {"n": format!("#{update}#")}});
            lane.count(Method::PATCH, &self.path, Some((MERGE, body.to_string().into())))
                .await?;
            seconds.push((self.epoch.elapsed() - begun).as_secs_f64());
            if self.rate > 0 {
                tokio::time::sleep(Duration::from_secs_f64(1.0 / self.rate as f64)).await;
            }
        }
        Ok(seconds)
    }
}

/// The number between the first two `#`: cheaper than decoding the event.
fn number_in(line: &[u8]) -> Option<usize> {
    let rest = line.get(memchr::memchr(b'#', line)? + 1..)?;
    let digits = rest.get(..memchr::memchr(b'#', rest)?)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
