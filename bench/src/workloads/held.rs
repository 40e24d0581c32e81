//! Pods that fit nowhere: how long until each is told why, and what it costs to keep them waiting.

use std::time::{Duration, Instant};

use http::Method;

use super::{batch_pod, clear, connect, namespace, newest, spread, told};
use crate::client::JSON;
use crate::fleet::Fleet;
use crate::meter::Reading;
use crate::report::{Measure, cost};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 3000)]
    pub pods: usize,
    #[arg(long, default_value_t = 10)]
    pub nodes: usize,
    /// Seconds to hold them.
    #[arg(long, default_value_t = 60)]
    pub hold: u64,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    const BASE: &str = "/api/v1/namespaces/bench-held/pods";
    let fleet = Fleet {
        class: "held",
        nodes: args.nodes,
        cpu: "1".into(),
        memory: "256Gi",
        pods: 110,
        tainted: true,
    };
    namespace(target, "bench-held").await?;
    clear(target, BASE).await?;
    fleet.create(target).await?;
    let from = newest(target, BASE).await?;
    let mut lanes = connect(&target.client, 16).await?;
    target.meter.reset_peak();
    let before = target.meter.read()?;
    let creator = spread(&mut lanes, args.pods, |mut lane, index| async move {
        lane.count(
            Method::POST,
            BASE,
            Some((JSON, batch_pod(&format!("p{index}"), "64", "held"))),
        )
        .await?;
        Ok(lane)
    });
    let told = told(&target.client, BASE, &from, args.pods);
    let (_, told) = fleet.alive(target, futures::future::try_join(creator, told)).await?;
    let mut measures = vec![("all told why".to_owned(), told, "s")];
    measures.extend(cost(target, before, Some(("Pod", args.pods as f64)))?);
    // Events are written behind the conditions: what they cost belongs to the telling, not to the holding.
    let (settled, whole) = fleet.alive(target, settle(target, before)).await?;
    measures.push(("all told why: until quiet".to_owned(), told + settled, "s"));
    measures.push(("all told why: server CPU until quiet".to_owned(), whole, "s"));
    let quiet = async {
        let before = target.meter.read()?;
        tokio::time::sleep(Duration::from_secs(args.hold)).await;
        Ok(before)
    };
    let before = fleet.alive(target, quiet).await?;
    for (name, value, unit) in cost(target, before, None)? {
        measures.push((format!("held {} s: {name}", args.hold), value, unit));
    }
    clear(target, BASE).await?;
    fleet.delete(target).await?;
    Ok(measures)
}

/// Waits until the servers have done next to nothing for three seconds, two minutes at most; returns the seconds waited and
/// the CPU-seconds since `before`.
async fn settle(target: &Target, before: Reading) -> Result<(f64, f64)> {
    const QUIET: f64 = 0.04;
    let start = Instant::now();
    let (mut last, mut quiet) = (target.meter.read()?, 0);
    while quiet < 3 && start.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = target.meter.read()?;
        quiet = if now.cpu_seconds - last.cpu_seconds <= QUIET {
            quiet + 1
        } else {
            0
        };
        last = now;
    }
    Ok((start.elapsed().as_secs_f64(), last.cpu_seconds - before.cpu_seconds))
}
