//! How many decisions a second the engine makes, without any server: `cargo run -p sampan-scheduler --example speed --
//! [nodes] [pods]`. The shapes are those of upstream's scheduler_perf.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sampan_scheduler::engine::{Decision, Engine};
use sampan_scheduler::framework::{DEFAULT_SCHEDULER, Framework};
use sampan_scheduler::owners::OwnerKind;
use serde_json::{Value, json};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn pod(name: &str, labels: &Value, extra: &Value, cpu: &str, priority: i32) -> Result<Pod, serde_json::Error> {
    let mut spec = json!({
        "priority": priority,
        "containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10",
            "resources": {"requests": {"cpu": cpu, "memory": "500Mi"}}}],
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let metadata = json!({"name": name, "namespace": "default", "uid": name, "labels": labels, "generation": 1});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec}))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let nodes: usize = arguments.next().map_or(Ok(5000), |text| text.parse())?;
    let pods: usize = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    println!("{nodes} nodes, {pods} Pods");
    for shape in [
        "plain",
        "service",
        "spread",
        "soft spread",
        "affinity",
        "preferred",
        "anti-affinity",
        "preemption",
        "held",
    ] {
        let mut engine = Engine::new([(DEFAULT_SCHEDULER.to_owned(), Framework::default())], 1);
        for index in 0..nodes {
            let name = format!("node-{index}");
            let node = json!({
                "metadata": {"name": name, "labels": {HOST: name, ZONE: format!("zone-{}", index % 3)}},
                "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
            });
            engine.node_changed(Arc::new(serde_json::from_value(node)?));
        }
        if shape == "service" {
            let selector: LabelSelector = serde_json::from_value(json!({"matchLabels": {"app": "timed"}}))?;
            engine.owner_changed(OwnerKind::Service, "default", "timed", Some(selector));
        }
        let residents = if shape == "preemption" { nodes * 4 } else { 1000 };
        for index in 0..residents {
            let node = json!({"nodeName": format!("node-{}", index % nodes)});
            let cpu = if shape == "preemption" { "900m" } else { "100m" };
            engine.pod_changed(&pod(&format!("b{index}"), &json!({"app": "before"}), &node, cpu, 0)?);
        }
        let count = if shape == "preemption" { pods.min(nodes) } else { pods };
        let newcomers: Vec<Pod> = (0..count)
            .map(|index| {
                let group = index % pods.div_ceil(nodes.div_ceil(2).max(1));
                let labels = match shape {
                    "anti-affinity" => json!({"app": "timed", "group": format!("g{group}")}),
                    "held" => json!({"app": "timed", "batch.kubernetes.io/job-completion-index": index.to_string()}),
                    _ => json!({"app": "timed"}),
                };
                let term = |key: &str| json!({"topologyKey": key, "labelSelector": {"matchLabels": labels}});
                let spread = |when: &str, key: &str| {
                    json!({"topologySpreadConstraints": [{"maxSkew": 5, "topologyKey": key, "whenUnsatisfiable": when,
                        "labelSelector": {"matchLabels": labels}}]})
                };
                let affinity = |kind: &str, list: &str, term: Value| json!({"affinity": {kind: {list: [term]}}});
                let required = "requiredDuringSchedulingIgnoredDuringExecution";
                let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
                let extra = match shape {
                    "spread" => spread("DoNotSchedule", ZONE),
                    "soft spread" => spread("ScheduleAnyway", HOST),
                    "affinity" => affinity("podAffinity", required, term(ZONE)),
                    "preferred" => affinity(
                        "podAffinity",
                        preferred,
                        json!({"weight": 1, "podAffinityTerm": term(HOST)}),
                    ),
                    "anti-affinity" => affinity("podAntiAffinity", required, term(HOST)),
                    _ => json!({}),
                };
                let (cpu, priority) = match shape {
                    "preemption" => ("3", 1000),
                    "held" => ("64", 0),
                    _ => ("100m", 0),
                };
                pod(&format!("p{index}"), &labels, &extra, cpu, priority)
            })
            .collect::<Result<_, _>>()?;
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        for pod in &newcomers {
            engine.pod_changed(pod);
        }
        let taken_in = start.elapsed();
        let (mut bound, mut told, mut sent_away) = (0, 0, 0);
        loop {
            let before = Instant::now();
            let Some(decision) = engine.next(before) else { break };
            slowest = slowest.max(before.elapsed());
            match decision {
                Decision::Bind { .. } => bound += 1,
                Decision::Tell { pods, .. } => told += pods.len(),
                Decision::Preempt { victims, .. } => {
                    sent_away += victims.len();
                    for victim in victims {
                        engine.pod_gone(&victim.uid);
                    }
                }
                Decision::Unnominate { .. } | Decision::Consult { .. } | Decision::ConsultVictims { .. } => {}
            }
        }
        let elapsed = start.elapsed();
        println!(
            "{shape:14} {:>8.0} Pods/s  took in {taken_in:.2?}, decided in {:.2?}, slowest {slowest:.2?}; bound {bound}, told \
             {told}, victims {sent_away}",
            count as f64 / elapsed.as_secs_f64(),
            elapsed - taken_in,
        );
    }
    Ok(())
}
