//! Create, get, patch, delete: how many a second, and what each costs the server.

use std::time::Instant;

use http::Method;
use serde_json::json;

use super::{connect, namespace, spread};
use crate::client::{JSON, MERGE};
use crate::report::{Measure, cost, latencies};
use crate::{Result, Target};

#[derive(clap::Args)]
pub struct Args {
    /// Objects.
    #[arg(long, default_value_t = 10_000)]
    pub count: usize,
    /// Connections.
    #[arg(long, default_value_t = 32)]
    pub clients: usize,
    /// Bytes of data in each ConfigMap.
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// Leave the objects in place instead of deleting them.
    #[arg(long)]
    pub keep: bool,
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    const BASE: &str = "/api/v1/namespaces/bench-crud/configmaps";
    namespace(target, "bench-crud").await?;
    super::clear(target, BASE).await?;
    let data = "x".repeat(args.size);
    let data = &data;
    let mut measures = Vec::new();
    let mut lanes = connect(&target.client, args.clients).await?;
    for (verb, many) in [
        ("create", "creates"),
        ("get", "gets"),
        ("patch", "patches"),
        ("delete", "deletes"),
    ] {
        if args.keep && verb == "delete" {
            continue;
        }
        target.meter.reset_peak();
        let (start, before) = (Instant::now(), target.meter.read()?);
        let mut seconds = spread(&mut lanes, args.count, |mut lane, index| async move {
            let path = format!("{BASE}/c{index}");
            match verb {
                "create" => {
                    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{index}")}, "data": {"d": data}});
                    lane.count(Method::POST, BASE, Some((JSON, body.to_string().into()))).await?;
                }
                "get" => {
                    lane.count(Method::GET, &path, None).await?;
                }
                "patch" => {
                    let body = json!({"data": {"e": index.to_string()}});
                    lane.count(Method::PATCH, &path, Some((MERGE, body.to_string().into()))).await?;
                }
                _ => {
                    lane.count(Method::DELETE, &path, None).await?;
                }
            }
            Ok(lane)
        })
        .await?;
        let elapsed = start.elapsed().as_secs_f64();
        measures.push((many.to_owned(), args.count as f64 / elapsed, "/s"));
        measures.extend(latencies(verb, &mut seconds));
        for (name, value, unit) in cost(target, before, Some((verb, args.count as f64)))? {
            measures.push((format!("{verb}: {name}"), value, unit));
        }
    }
    Ok(measures)
}
