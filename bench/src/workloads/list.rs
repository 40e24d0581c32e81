//! Full lists of many Pods from several clients at once.

use std::time::Instant;

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
    let mut seconds = spread(&mut lanes, args.lists, |mut lane, _| async move {
        lane.count(Method::GET, BASE, None).await?;
        Ok(lane)
    })
    .await?;
    let elapsed = start.elapsed().as_secs_f64();
    let mut measures = vec![
        ("list size".to_owned(), size as f64 / 1e6, "MB"),
        ("lists".to_owned(), args.lists as f64 / elapsed, "/s"),
    ];
    measures.extend(latencies("list", &mut seconds));
    measures.extend(cost(target, before, Some(("list", args.lists as f64)))?);
    clear(target, BASE).await?;
    Ok(measures)
}
