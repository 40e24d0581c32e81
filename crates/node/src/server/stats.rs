//! `/stats/summary`, `/metrics/resource` and `/metrics`: what the node and its Pods use.

use std::fmt::Write;

use sampan_runtime::{
    ContainerStats, ContainerUsage, FilesystemUsage, MemoryUsage, PodSandboxState, PodSandboxStats, PodSandboxStatus,
    PodUsage,
};
use serde_json::{Value, json};

use super::rates::{self, Rates};
use super::{Answer, Refusal, Server, json_body, text};
use crate::machine;
use crate::pod::label;

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Server {
    async fn sandboxes(&self) -> Result<Vec<PodSandboxStatus>, Refusal> {
        let filter = sampan_runtime::PodSandboxFilter {
            state: Some(PodSandboxState::Ready),
            ..Default::default()
        };
        let found = self.manager.cx.runtime.list_pod_sandboxes(&filter).await;
        let mut found = found.map_err(Refusal::internal)?;
        found.retain(|sandbox| sandbox.labels.contains_key(label::POD_UID));
        Ok(found)
    }

    /// Begins the windows of those that have none; the answer is a moment later then.
    async fn begin_windows(&self, sandboxes: &[PodSandboxStatus]) {
        let (rates, now) = (&self.rates, jiff::Timestamp::now());
        rates.forget(now);
        let mut begun = false;
        if !rates.knows(NODE, now) {
            rates.take(NODE, now, node_cpu());
            begun = true;
        }
        for sandbox in sandboxes {
            if rates.knows(&sandbox.id, now) {
                continue;
            }
            let Ok(usage) = self.manager.cx.runtime.pod_usage(&sandbox.id).await else {
                continue;
            };
            if let Some(cpu) = usage.cpu {
                rates.take(&sandbox.id, usage.timestamp, cpu.usage_core_nano_seconds);
                begun = true;
            }
            for container in usage.containers {
                if let Some(cpu) = container.cpu {
                    let name = container_key(&sandbox.id, &container.name);
                    rates.take(&name, container.timestamp, cpu.usage_core_nano_seconds);
                }
            }
        }
        if begun {
            tokio::time::sleep(rates::FIRST).await;
        }
    }

    pub(super) async fn summary(&self) -> Answer {
        let cx = &self.manager.cx;
        let sandboxes = self.sandboxes().await?;
        self.begin_windows(&sandboxes).await;
        let now = jiff::Timestamp::now();
        let memory = machine::memory();
        let used = memory.total.saturating_sub(memory.available);
        let disk = machine::disk(&cx.config.data_dir).unwrap_or_default();
        let pids = machine::pids();
        let image_fs = cx.runtime.image_fs_info().await.ok();
        let mut pods: Vec<Value> = Vec::new();
        for sandbox in sandboxes {
            // One that ends meanwhile has no statistics any more.
            if let Ok(stats) = cx.runtime.pod_sandbox_stats(&sandbox.id).await {
                pods.push(pod_summary(&sandbox, &stats, &self.rates));
            }
        }
        Ok(json_body(&json!({
            "node": {
                "nodeName": cx.config.name,
                "startTime": cx.started,
                "cpu": cpu_summary(&self.rates, NODE, now, node_cpu()),
                "memory": {"time": now, "availableBytes": memory.available, "usageBytes": used,
                    "workingSetBytes": used},
                "fs": {"time": now, "availableBytes": disk.available, "capacityBytes": disk.total,
                    "usedBytes": disk.total.saturating_sub(disk.available), "inodesFree": disk.inodes_free,
                    "inodes": disk.inodes},
                "runtime": {"imageFs": image_fs.as_ref().map(fs_summary)},
                "rlimit": {"time": now, "maxpid": pids.max, "curproc": pids.used},
            },
            "pods": pods,
        })))
    }

    pub(super) fn metrics(&self) -> Answer {
        let (waiting, delayed, working, added, retried) = self.manager.cx.statuses.counts();
        let mut out = String::new();
        let mut gauge = |name: &str, help: &str, kind: &str, value: u64| {
            // Writing to a String cannot fail.
            let _infallible = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        };
        let pods = self.manager.pods();
        let active = pods.iter().filter(|worker| worker.is_active()).count() as u64;
        gauge(
            "kubelet_desired_pods",
            "Pods this node knows.",
            "gauge",
            pods.len() as u64,
        );
        gauge("kubelet_active_pods", "Pods that run or are about to.", "gauge", active);
        gauge(
            "sampan_pod_status_queue_waiting",
            "Pod statuses waiting to be written.",
            "gauge",
            waiting as u64,
        );
        gauge(
            "sampan_pod_status_queue_delayed",
            "Pod statuses to be tried again later.",
            "gauge",
            delayed as u64,
        );
        gauge(
            "sampan_pod_status_queue_working",
            "Pod statuses being written.",
            "gauge",
            working as u64,
        );
        gauge(
            "sampan_pod_status_queue_adds_total",
            "Pod statuses queued.",
            "counter",
            added,
        );
        gauge(
            "sampan_pod_status_queue_retries_total",
            "Pod statuses tried again.",
            "counter",
            retried,
        );
        Ok(text(PROMETHEUS, out))
    }

    pub(super) async fn resource_metrics(&self) -> Answer {
        let runtime = &self.manager.cx.runtime;
        let mut pods = Vec::new();
        for sandbox in self.sandboxes().await? {
            // One that ends meanwhile uses nothing any more.
            if let Ok(usage) = runtime.pod_usage(&sandbox.id).await {
                pods.push((sandbox, usage));
            }
        }
        let memory = machine::memory();
        let node = NodeUsage {
            time: jiff::Timestamp::now(),
            cpu: machine::cpu_seconds(),
            memory: memory.total.saturating_sub(memory.available),
        };
        Ok(text(PROMETHEUS, resource_text(&pods, &node)))
    }
}

/// The node among what rates are of.
const NODE: &str = "";

fn container_key(sandbox: &str, container: &str) -> String {
    format!("{sandbox}/{container}")
}

fn node_cpu() -> u64 {
    (machine::cpu_seconds() * 1e9) as u64
}

fn cpu_summary(rates: &Rates, of: &str, time: jiff::Timestamp, used: u64) -> Value {
    let mut cpu = json!({"time": time, "usageCoreNanoSeconds": used});
    if let Some(rate) = rates.take(of, time, used) {
        cpu["usageNanoCores"] = rate.into();
    }
    cpu
}

fn memory_summary(memory: &MemoryUsage, time: jiff::Timestamp) -> Value {
    json!({"time": time, "availableBytes": memory.available_bytes, "usageBytes": memory.usage_bytes,
        "workingSetBytes": memory.working_set_bytes, "rssBytes": memory.rss_bytes,
        "pageFaults": memory.page_faults, "majorPageFaults": memory.major_page_faults})
}

fn fs_summary(fs: &FilesystemUsage) -> Value {
    json!({"time": fs.timestamp, "availableBytes": fs.available_bytes, "capacityBytes": fs.capacity_bytes,
        "usedBytes": fs.used_bytes, "inodesFree": fs.inodes_free, "inodes": fs.inodes, "inodesUsed": fs.inodes_used})
}

fn container_summary(sandbox: &str, stats: &ContainerStats, rates: &Rates) -> Value {
    let time = stats.timestamp;
    let name = container_key(sandbox, &stats.metadata.name);
    json!({
        "name": stats.metadata.name,
        "startTime": stats.started_at.unwrap_or(time),
        "cpu": stats.cpu.map(|cpu| cpu_summary(rates, &name, time, cpu.usage_core_nano_seconds)),
        "memory": stats.memory.map(|memory| memory_summary(&memory, time)),
        "rootfs": fs_summary(&stats.writable_layer),
    })
}

fn pod_summary(sandbox: &PodSandboxStatus, stats: &PodSandboxStats, rates: &Rates) -> Value {
    let time = stats.timestamp;
    let interfaces: Vec<Value> = stats
        .network
        .iter()
        .map(|link| {
            json!({"name": link.name, "rxBytes": link.rx_bytes, "rxErrors": link.rx_errors,
                "txBytes": link.tx_bytes, "txErrors": link.tx_errors})
        })
        .collect();
    let mut network = interfaces.first().cloned().unwrap_or_else(|| json!({}));
    if let Some(network) = network.as_object_mut() {
        network.insert("time".into(), json!(time));
        network.insert("interfaces".into(), Value::Array(interfaces));
    }
    let containers = stats.containers.iter();
    let containers: Vec<Value> = containers
        .map(|stats| container_summary(&sandbox.id, stats, rates))
        .collect();
    json!({
        "podRef": {"name": sandbox.metadata.name, "namespace": sandbox.metadata.namespace, "uid": sandbox.metadata.uid},
        "startTime": sandbox.created_at,
        "containers": containers,
        "cpu": stats.cpu.map(|cpu| cpu_summary(rates, &sandbox.id, time, cpu.usage_core_nano_seconds)),
        "memory": stats.memory.map(|memory| memory_summary(&memory, time)),
        "network": network,
        "process_stats": {"process_count": stats.process_count},
    })
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// What the whole machine uses.
struct NodeUsage {
    time: jiff::Timestamp,
    /// Seconds of all cores.
    cpu: f64,
    memory: u64,
}

/// One sample: labels, value, and when it was taken.
type Sample = (String, f64, Option<jiff::Timestamp>);

/// One family of metrics: header, then a line per sample.
fn family(out: &mut String, name: &str, help: &str, kind: &str, samples: impl IntoIterator<Item = Sample>) {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return;
    }
    // Writing to a String cannot fail.
    let _infallible = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value, time) in samples {
        let _infallible = match time {
            Some(time) => writeln!(out, "{name}{labels} {value} {}", time.as_millisecond()),
            None => writeln!(out, "{name}{labels} {value}"),
        };
    }
}

/// Families in the order upstream's collector prints them: by name.
fn resource_text(pods: &[(PodSandboxStatus, PodUsage)], node: &NodeUsage) -> String {
    let of_pod = |sandbox: &PodSandboxStatus| {
        format!(
            "namespace=\"{}\",pod=\"{}\"",
            sandbox.metadata.namespace, sandbox.metadata.name
        )
    };
    let whole = |value: fn(&PodUsage) -> Option<f64>| -> Vec<Sample> {
        let known = pods.iter().filter_map(|(sandbox, usage)| {
            let labels = format!("{{{}}}", of_pod(sandbox));
            Some((labels, value(usage)?, Some(usage.timestamp)))
        });
        known.collect()
    };
    let containers = |value: fn(&ContainerUsage) -> Option<f64>, timed: bool| -> Vec<Sample> {
        let each = pods.iter().flat_map(|(sandbox, usage)| {
            usage.containers.iter().filter_map(move |container| {
                let labels = format!("{{container=\"{}\",{}}}", container.name, of_pod(sandbox));
                Some((labels, value(container)?, timed.then_some(container.timestamp)))
            })
        });
        each.collect()
    };
    let mut out = String::new();
    family(
        &mut out,
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        "counter",
        containers(|usage| Some(seconds(usage.cpu?.usage_core_nano_seconds)), true),
    );
    family(
        &mut out,
        "container_memory_working_set_bytes",
        "[STABLE] Current working set of the container in bytes",
        "gauge",
        containers(|usage| Some(usage.memory?.working_set_bytes as f64), true),
    );
    family(
        &mut out,
        "container_start_time_seconds",
        "[STABLE] Start time of the container since unix epoch in seconds",
        "gauge",
        containers(|usage| Some(usage.started_at?.as_millisecond() as f64 / 1e3), false),
    );
    family(
        &mut out,
        "node_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        "counter",
        [(String::new(), node.cpu, Some(node.time))],
    );
    family(
        &mut out,
        "node_memory_working_set_bytes",
        "[STABLE] Current working set of the node in bytes",
        "gauge",
        [(String::new(), node.memory as f64, Some(node.time))],
    );
    family(
        &mut out,
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        "counter",
        whole(|usage| Some(seconds(usage.cpu?.usage_core_nano_seconds))),
    );
    family(
        &mut out,
        "pod_memory_working_set_bytes",
        "[STABLE] Current working set of the pod in bytes",
        "gauge",
        whole(|usage| Some(usage.memory?.working_set_bytes as f64)),
    );
    family(
        &mut out,
        "resource_scrape_error",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        "gauge",
        [(String::new(), 0.0, None)],
    );
    out
}
