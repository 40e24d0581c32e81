//! A batch: Pods created at once, bound by the cluster's scheduler, run and finished by fake nodes.
//!
//! With room for all it measures a burst; with room for few (`--slots`) a backlog that drains slot by slot.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use super::{batch_job, batch_pod, clear, completed, connect, namespace, newest, spread};
use crate::client::JSON;
use crate::fleet::{Fleet, kubelet};
use crate::report::{Measure, cost};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 3000)]
    pub pods: usize,
    /// Fake nodes; never more than slots.
    #[arg(long, default_value_t = 100)]
    pub nodes: usize,
    /// Pods that fit on all nodes together at a time; 0: all.
    #[arg(long, default_value_t = 0)]
    pub slots: usize,
    /// Seconds each Pod runs.
    #[arg(long, default_value_t = 0.0)]
    pub life: f64,
    /// Make a Job of each Pod; it is over when every Job is complete.
    #[arg(long)]
    pub jobs: bool,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    const BASE: &str = "/api/v1/namespaces/bench-burst/pods";
    const JOBS: &str = "/apis/batch/v1/namespaces/bench-burst/jobs";
    type Make = fn(&str, &str, &str) -> Bytes;
    let made: (&str, Make) = match args.jobs {
        true => (JOBS, batch_job),
        false => (BASE, batch_pod),
    };
    let slots = if args.slots == 0 { args.pods } else { args.slots };
    let nodes = args.nodes.clamp(1, slots.max(1));
    let per_node = slots.div_ceil(nodes);
    let fleet = Fleet {
        class: "burst",
        nodes,
        cpu: format!("{per_node}"),
        memory: "256Gi",
        pods: 110.max(per_node),
        tainted: true,
    };
    namespace(target, "bench-burst").await?;
    clear(target, JOBS).await?;
    clear(target, BASE).await?;
    fleet.create(target).await?;
    let from = newest(target, BASE).await?;
    let jobs_from = newest(target, JOBS).await?;
    let mut lanes = connect(&target.client, 16).await?;
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    let creator = async {
        spread(&mut lanes, args.pods, |mut lane, index| async move {
            lane.count(
                Method::POST,
                made.0,
                Some((JSON, made.1(&format!("p{index}"), "1", "burst"))),
            )
            .await?;
            Ok(lane)
        })
        .await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(start.elapsed().as_secs_f64())
    };
    let life = Duration::from_secs_f64(args.life);
    let kubelet = kubelet(&target.client, "bench-burst", &from, args.pods, life, start);
    let jobs = async {
        match args.jobs {
            true => completed(&target.client, JOBS, &jobs_from, args.pods).await,
            false => Ok(()),
        }
    };
    let work = futures::future::try_join3(creator, kubelet, jobs);
    let (created, run, ()) = fleet.alive(target, work).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let mut measures = vec![
        ("all created".to_owned(), created, "s"),
        ("all bound".to_owned(), run.bound.last().copied().unwrap_or(0.0), "s"),
        ("all finished".to_owned(), elapsed, "s"),
        ("Pods".to_owned(), args.pods as f64 / elapsed, "/s"),
    ];
    measures.extend(cost(target, before, Some(("Pod", args.pods as f64)))?);
    clear(target, JOBS).await?;
    clear(target, BASE).await?;
    fleet.delete(target).await?;
    Ok(measures)
}
