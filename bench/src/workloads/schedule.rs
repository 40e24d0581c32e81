//! Scheduling alone, in the shapes of upstream's scheduler_perf: nodes without a kubelet, Pods that are already there, and
//! Pods whose binding is timed.
//!
//! The nodes renew their leases meanwhile; the time begins when no node is tainted as new any more.

use std::time::Instant;

use bytes::Bytes;
use clap::ValueEnum;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{bindings, clear, connect, ignore, namespace, newest, spread};
use crate::client::JSON;
use crate::fleet::Fleet;
use crate::report::{Measure, cost, latencies};
use crate::{Result, Target};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// Resources only.
    Plain,
    /// At most five more in one of three zones than in another.
    Spread,
    /// In the zone of Pods with the same label.
    Affinity,
    /// Not on a node with a Pod of the same group; groups are half as large as there are nodes.
    AntiAffinity,
    /// Nodes are full of Pods of a lower priority, three of which have to go; as many Pods as nodes at most.
    Preemption,
}

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, value_enum, default_value = "plain")]
    shape: Shape,
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Pods that are timed.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Pods that are on the nodes before; preemption has four on each node whatever is said.
    #[arg(long, default_value_t = 1000)]
    before: usize,
}

const BASE: &str = "/api/v1/namespaces/bench-schedule/pods";
const BEFORE: &str = "/api/v1/namespaces/bench-before/pods";
const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";

impl Args {
    fn pods(&self) -> usize {
        match self.shape {
            Shape::Preemption => self.pods.min(self.nodes),
            _ => self.pods,
        }
    }

    fn before(&self) -> usize {
        match self.shape {
            Shape::Preemption => self.nodes * 4,
            _ => self.before,
        }
    }

    /// A Pod that is there before, with its node: spreading them evenly is no work for the scheduler.
    fn resident(&self, fleet: &Fleet, index: usize) -> Bytes {
        let mut pod = pod(&format!("b{index}"), &json!({"app": "before"}));
        pod["spec"]["nodeName"] = fleet.name(index % self.nodes).into();
        if self.shape == Shape::Preemption {
            pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "900m", "memory": "500Mi"}});
            pod["spec"]["priorityClassName"] = "bench-low".into();
        }
        pod.to_string().into()
    }

    fn newcomer(&self, index: usize) -> Bytes {
        let group = index % self.pods().div_ceil(self.nodes.div_ceil(2).max(1));
        let labels = match self.shape {
            Shape::AntiAffinity => json!({"app": "timed", "group": format!("g{group}")}),
            _ => json!({"app": "timed"}),
        };
        let term = |key: &str| json!([{"topologyKey": key, "labelSelector": {"matchLabels": labels}}]);
        let mut pod = pod(&format!("p{index}"), &labels);
        let spec = &mut pod["spec"];
        match self.shape {
            Shape::Plain => {}
            Shape::Spread => {
                spec["topologySpreadConstraints"] = json!([{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": labels}}]);
            }
            Shape::Affinity => {
                spec["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("topology.kubernetes.io/zone")}});
            }
            Shape::AntiAffinity => {
                spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("kubernetes.io/hostname")}});
            }
            Shape::Preemption => {
                spec["containers"][0]["resources"] = json!({"requests": {"cpu": "3", "memory": "500Mi"}});
                spec["priorityClassName"] = "bench-high".into();
            }
        }
        pod.to_string().into()
    }
}

fn pod(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10.2", "ports": [{"containerPort": 80}],
                "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}, "limits": {"cpu": "100m", "memory": "500Mi"}}}],
        },
    })
}

pub async fn run(target: &Target, args: &Args) -> Result<Vec<Measure>> {
    let fleet = Fleet {
        class: "schedule",
        nodes: args.nodes,
        cpu: "4".into(),
        memory: "32Gi",
        pods: 110,
        tainted: false,
    };
    for name in ["bench-schedule", "bench-before"] {
        namespace(target, name).await?;
    }
    clear(target, BASE).await?;
    clear(target, BEFORE).await?;
    let mut lanes = connect(&target.client, 16).await?;
    for (name, value) in [("bench-low", 10), ("bench-high", 1000)] {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value});
        let created = lanes[0]
            .count(Method::POST, CLASSES, Some((JSON, class.to_string().into())))
            .await;
        ignore(created, StatusCode::CONFLICT)?;
    }
    fleet.create(target).await?;
    fleet.alive(target, fleet.welcome(target)).await?;
    spread(&mut lanes, args.before(), |mut lane, index| {
        let pod = args.resident(&fleet, index);
        async move {
            lane.count(Method::POST, BEFORE, Some((JSON, pod))).await?;
            Ok(lane)
        }
    })
    .await?;
    let from = newest(target, BASE).await?;
    target.meter.reset_peak();
    let (start, before) = (Instant::now(), target.meter.read()?);
    let creator = async {
        spread(&mut lanes, args.pods(), |mut lane, index| {
            let pod = args.newcomer(index);
            async move {
                lane.count(Method::POST, BASE, Some((JSON, pod))).await?;
                Ok(lane)
            }
        })
        .await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(start.elapsed().as_secs_f64())
    };
    let bound = bindings(&target.client, BASE, &from, args.pods(), start);
    let (created, mut bound) = fleet.alive(target, futures::future::try_join(creator, bound)).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let mut measures = vec![
        ("all created".to_owned(), created, "s"),
        ("all bound".to_owned(), elapsed, "s"),
        ("Pods bound".to_owned(), args.pods() as f64 / elapsed, "/s"),
    ];
    measures.extend(latencies("bound after", &mut bound));
    measures.extend(cost(target, before, Some(("Pod", args.pods() as f64)))?);
    clear(target, BASE).await?;
    clear(target, BEFORE).await?;
    fleet.delete(target).await?;
    for name in ["bench-low", "bench-high"] {
        lanes[0]
            .count(Method::DELETE, &format!("{CLASSES}/{name}"), None)
            .await?;
    }
    Ok(measures)
}
