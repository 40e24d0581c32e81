//! Nodes that do nothing but say that they are alive: a lease each ten seconds, a status each five minutes.

use std::time::Instant;

use super::connect;
use crate::fleet::Fleet;
use crate::report::{Measure, cost, latencies};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 1000)]
    pub nodes: usize,
    /// Seconds to listen to them.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    let fleet = Fleet {
        class: "beat",
        nodes: args.nodes,
        cpu: "4".into(),
        memory: "32Gi",
        pods: 110,
        tainted: true,
    };
    fleet.create(target).await?;
    let mut lanes = connect(&target.client, 16).await?;
    // One round before: what the nodes' arrival set off has come to rest by then.
    fleet.round(&mut lanes, false).await?;
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    let (mut seconds, mut round) = (Vec::new(), 0u64);
    while start.elapsed().as_secs() < args.seconds {
        seconds.extend(fleet.round(&mut lanes, round % 30 == 0).await?);
        round += 1;
        tokio::time::sleep_until((start + std::time::Duration::from_secs(round * 10)).into()).await;
    }
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    let beats = seconds.len() as f64;
    let mut measures = vec![("heartbeats".to_owned(), beats / minutes, "/min")];
    measures.extend(latencies("heartbeat", &mut seconds));
    measures.extend(cost(target, before, Some(("heartbeat", beats)))?);
    fleet.delete(target).await?;
    Ok(measures)
}
