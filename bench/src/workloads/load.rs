//! Many Pods that nobody touches: how fast they are taken, and what memory they cost.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use super::{clear, connect, gated_pod, namespace, spread};
use crate::client::JSON;
use crate::report::{Measure, cost, latencies};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 10_000)]
    pub pods: usize,
    /// Connections.
    #[arg(long, default_value_t = 16)]
    pub clients: usize,
    /// Count them against a ResourceQuota.
    #[arg(long)]
    pub quota: bool,
    /// Seconds after the last Pod at which memory is looked at once more.
    #[arg(long, default_value_t = 5)]
    pub settle: u64,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    const SPACE: &str = "/api/v1/namespaces/bench-load";
    let base = format!("{SPACE}/pods");
    namespace(target, "bench-load").await?;
    clear(target, &base).await?;
    clear(target, &format!("{SPACE}/resourcequotas")).await?;
    if args.quota {
        let body = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "all"},
            "spec": {"hard": {"pods": (2 * args.pods).to_string()}}});
        let path = format!("{SPACE}/resourcequotas");
        let mut lane = target.client.lane();
        lane.count(Method::POST, &path, Some((JSON, body.to_string().into())))
            .await?;
        // Until a controller has counted, everything is refused; where there is none, this does its work.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut quota = lane.json(Method::GET, &format!("{path}/all"), None).await?;
        if quota["status"]["hard"].is_null() {
            quota["status"] = json!({"hard": quota["spec"]["hard"], "used": {"pods": "0"}});
            lane.count(
                Method::PUT,
                &format!("{path}/all/status"),
                Some((JSON, quota.to_string().into())),
            )
            .await?;
        }
    }
    let mut lanes = connect(&target.client, args.clients).await?;
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    let mut seconds = spread(&mut lanes, args.pods, |mut lane, index| {
        let base = &base;
        async move {
            lane.count(Method::POST, base, Some((JSON, gated_pod(&format!("p{index}")))))
                .await?;
            Ok(lane)
        }
    })
    .await?;
    let elapsed = start.elapsed().as_secs_f64();
    let mut measures = vec![("Pods created".to_owned(), args.pods as f64 / elapsed, "/s")];
    measures.extend(latencies("create", &mut seconds));
    measures.extend(cost(target, before, Some(("Pod", args.pods as f64)))?);
    tokio::time::sleep(Duration::from_secs(args.settle)).await;
    if !target.meter.is_blind() {
        let memory = target.meter.read()?.resident_mib;
        measures.push(("server memory before".to_owned(), before.resident_mib, "MiB"));
        measures.push(("server memory settled".to_owned(), memory, "MiB"));
    }
    clear(target, &base).await?;
    clear(target, &format!("{SPACE}/resourcequotas")).await?;
    Ok(measures)
}
