//! Single real Pods, one after another: from the request that creates one to the event that says it runs.

use std::time::{Duration, Instant};

use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};

use super::{clear, namespace};
use crate::client::JSON;
use crate::report::{Measure, cost, latencies};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    /// An image that the node has already.
    #[arg(long)]
    pub image: String,
    /// The container's command, to run until it is stopped.
    #[arg(long, value_delimiter = ',', default_value = "sleep,100000")]
    pub command: Vec<String>,
    #[arg(long, default_value_t = 10)]
    pub pods: usize,
    /// Leave the Pods running.
    #[arg(long)]
    pub keep: bool,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    const BASE: &str = "/api/v1/namespaces/bench-pod/pods";
    namespace(target, "bench-pod").await?;
    clear(target, BASE).await?;
    let list = target.client.get(&format!("{BASE}?limit=1")).await?;
    let from = list["metadata"]["resourceVersion"]
        .as_str()
        .ok_or("no resourceVersion")?
        .to_owned();
    let path = format!("{BASE}?watch=1&resourceVersion={from}");
    let mut watch = Box::pin(target.client.watch(&path).await?);
    let mut lane = target.client.lane();
    lane.count(Method::GET, "/version", None).await?;
    let before = target.meter.read()?;
    let mut seconds = Vec::new();
    for index in 0..args.pods {
        let name = format!("p{index}");
        let body = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "c", "image": args.image, "imagePullPolicy": "Never", "command": args.command}]},
        });
        let start = Instant::now();
        lane.count(Method::POST, BASE, Some((JSON, body.to_string().into())))
            .await?;
        let running = async {
            loop {
                let line = watch.next().await.ok_or("the Pod watch ended early")??;
                let event: Value = serde_json::from_slice(&line)?;
                let pod = &event["object"];
                if pod["metadata"]["name"] == *name && pod["status"]["phase"] == "Running" {
                    return Ok::<_, Box<dyn std::error::Error + Send + Sync>>(());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), running)
            .await
            .map_err(|_| format!("Pod {name} does not run after a minute; see `kubectl -n bench-pod describe`"))??;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut measures = latencies("created to Running", &mut seconds);
    measures.extend(cost(target, before, Some(("Pod", args.pods as f64)))?);
    if !args.keep {
        clear(target, BASE).await?;
    }
    Ok(measures)
}
