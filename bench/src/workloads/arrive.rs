//! Pods that wait for nodes, and nodes that join at once: how long until the last Pod is bound.

use std::time::Instant;

use http::Method;

use super::{batch_pod, bindings, clear, connect, namespace, newest, spread, told};
use crate::client::JSON;
use crate::fleet::Fleet;
use crate::report::{Measure, cost};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    /// Pods that wait.
    #[arg(long, default_value_t = 10_000)]
    pub pods: usize,
    /// Nodes that join, with room for all of them together.
    #[arg(long, default_value_t = 50)]
    pub nodes: usize,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    const BASE: &str = "/api/v1/namespaces/bench-arrive/pods";
    let full = Fleet {
        class: "full",
        nodes: 10,
        cpu: "1".into(),
        memory: "256Gi",
        pods: 110,
        tainted: true,
    };
    let per_node = args.pods.div_ceil(args.nodes.max(1));
    let fleet = Fleet {
        class: "arrive",
        nodes: args.nodes,
        cpu: format!("{per_node}"),
        memory: "2048Gi",
        pods: per_node,
        tainted: true,
    };
    namespace(target, "bench-arrive").await?;
    clear(target, BASE).await?;
    full.create(target).await?;
    let from = newest(target, BASE).await?;
    let mut lanes = connect(&target.client, 16).await?;
    let creator = spread(&mut lanes, args.pods, |mut lane, index| async move {
        let pod = batch_pod(&format!("p{index}"), "1", "arrive");
        lane.count(Method::POST, BASE, Some((JSON, pod))).await?;
        Ok(lane)
    });
    let waiting = told(&target.client, BASE, &from, args.pods);
    full.alive(target, futures::future::try_join(creator, waiting)).await?;

    let from = newest(target, BASE).await?;
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    let joining = async {
        fleet.create(target).await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(start.elapsed().as_secs_f64())
    };
    let bound = bindings(&target.client, BASE, &from, args.pods, start);
    let (joined, _) = fleet.alive(target, futures::future::try_join(joining, bound)).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let mut measures = vec![
        ("all nodes joined".to_owned(), joined, "s"),
        ("last Pod bound".to_owned(), elapsed, "s"),
        ("Pods bound".to_owned(), args.pods as f64 / elapsed, "/s"),
    ];
    measures.extend(cost(target, before, Some(("Pod", args.pods as f64)))?);
    clear(target, BASE).await?;
    fleet.delete(target).await?;
    full.delete(target).await?;
    Ok(measures)
}
