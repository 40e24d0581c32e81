//! Full lists of many Pods from several clients at once, and what somebody who reads one Pod notices of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;

use super::{clear, connect, gated_pod, namespace, spread};
use crate::client::JSON;
use crate::report::{Measure, cost, latencies};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    /// Pods.
    #[arg(long, default_value_t = 5000)]
    pub pods: usize,
    /// Connections.
    #[arg(long, default_value_t = 4)]
    pub clients: usize,
    /// Lists in all.
    #[arg(long, default_value_t = 100)]
    pub lists: usize,
    /// Read single Pods meanwhile, one every so many milliseconds; 0: do not.
    #[arg(long, default_value_t = 0)]
    pub get_every: u64,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    const BASE: &str = "/api/v1/namespaces/bench-list/pods";
    namespace(target, "bench-list").await?;
    clear(target, BASE).await?;
    let mut lanes = connect(&target.client, 16).await?;
    spread(&mut lanes, args.pods, |mut lane, index| async move {
        lane.count(Method::POST, BASE, Some((JSON, gated_pod(&format!("p{index}")))))
            .await?;
        Ok(lane)
    })
    .await?;
    let size = target.client.lane().count(Method::GET, BASE, None).await?;
    let mut lanes = connect(&target.client, args.clients).await?;
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    let done = AtomicBool::new(false);
    let lists = async {
        let seconds = spread(&mut lanes, args.lists, |mut lane, _| async move {
            lane.count(Method::GET, BASE, None).await?;
            Ok(lane)
        })
        .await;
        done.store(true, Ordering::Release);
        seconds
    };
    let gets = async {
        let mut seconds = Vec::new();
        let mut lane = connect(&target.client, 1).await?.remove(0);
        while args.get_every > 0 && !done.load(Ordering::Acquire) {
            let asked = Instant::now();
            lane.count(
                Method::GET,
                &format!("{BASE}/p{}", seconds.len() % args.pods.max(1)),
                None,
            )
            .await?;
            seconds.push(asked.elapsed().as_secs_f64());
            tokio::time::sleep(Duration::from_millis(args.get_every)).await;
        }
        Ok(seconds)
    };
    let (mut seconds, mut gets) = futures::try_join!(lists, gets)?;
    let elapsed = start.elapsed().as_secs_f64();
    let mut measures = vec![
        ("list size".to_owned(), size as f64 / 1e6, "MB"),
        ("lists".to_owned(), args.lists as f64 / elapsed, "/s"),
    ];
    measures.extend(latencies("list", &mut seconds));
    if !gets.is_empty() {
        measures.push(("gets meanwhile".to_owned(), gets.len() as f64, ""));
        measures.extend(latencies("get meanwhile", &mut gets));
    }
    measures.extend(cost(target, before, Some(("list", args.lists as f64)))?);
    clear(target, BASE).await?;
    Ok(measures)
}
