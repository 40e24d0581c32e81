//! Pods that fit nowhere: how long until each is told why, and what it costs to keep them waiting.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::StreamExt;
use http::Method;
use serde_json::Value;

use super::{batch_pod, clear, connect, namespace, spread};
use crate::client::JSON;
use crate::fleet::Fleet;
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
        pods: 110,
    };
    namespace(target, "bench-held").await?;
    clear(target, BASE).await?;
    fleet.create(target).await?;
    let list = target.client.get(&format!("{BASE}?limit=1")).await?;
    let from = list["metadata"]["resourceVersion"]
        .as_str()
        .ok_or("no resourceVersion")?
        .to_owned();
    let mut watch = Box::pin(
        target
            .client
            .watch(&format!("{BASE}?watch=1&resourceVersion={from}"))
            .await?,
    );
    let mut lanes = connect(&target.client, 16).await?;
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    let creator = spread(&mut lanes, args.pods, |mut lane, index| async move {
        lane.count(
            Method::POST,
            BASE,
            Some((JSON, batch_pod(&format!("p{index}"), "64", "held"))),
        )
        .await?;
        Ok(lane)
    });
    let told = async {
        let mut told = HashSet::new();
        while told.len() < args.pods {
            let line = watch.next().await.ok_or("the Pod watch ended early")??;
            let event: Value = serde_json::from_slice(&line)?;
            let conditions = event["object"]["status"]["conditions"].as_array();
            let waits = conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["reason"] == "Unschedulable");
            if waits && let Some(name) = event["object"]["metadata"]["name"].as_str() {
                told.insert(name.to_owned());
            }
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(start.elapsed().as_secs_f64())
    };
    let (_, told) = fleet.alive(target, futures::future::try_join(creator, told)).await?;
    let mut measures = vec![("all told why".to_owned(), told, "s")];
    measures.extend(cost(target, before, Some(("Pod", args.pods as f64)))?);
    let quiet = async {
        // Let writes that are still under way (events) settle before the quiet is measured.
        tokio::time::sleep(Duration::from_secs(5)).await;
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
