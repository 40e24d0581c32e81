//! Full lists of many Pods from several clients at once.

use std::time::Instant;

use http::Method;

use super::{clear, namespace, pod, spread};
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
    spread(&target.client, 16, args.pods, |mut lane, index| async move {
        lane.count(
            Method::POST,
            BASE,
            Some((JSON, pod(&format!("p{index}"), "1m", "nowhere"))),
        )
        .await?;
        Ok(lane)
    })
    .await?;
    let size = target.client.lane().count(Method::GET, BASE, None).await?;
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    let mut seconds = spread(&target.client, args.clients, args.lists, |mut lane, _| async move {
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
