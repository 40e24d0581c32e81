//! Table output of Pods: the STATUS column is a small story told by the container statuses.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{AGE, NAME, age, cell_or, is_true, name, or, since, text};
use crate::spec::Column;
use crate::tree;

pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "Ready containers of all that keep running."),
    text("Status", "What the Pod is doing, or why it is not."),
    text("Restarts", "How often its containers restarted, and when last."),
    AGE,
    text("IP", "The Pod's first address.").wide(),
    text("Node", "The node it runs on.").wide(),
    text("Nominated Node", "The node being freed for it by preemption.").wide(),
    text("Readiness Gates", "Conditions that are true of those it waits for.").wide(),
];

/// Restarts counted so far and the latest end of an earlier run.
#[derive(Clone, Default)]
struct Restarts {
    count: i64,
    last: String,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += tree::int(status, "restartCount");
        let finished = tree::text(status, "lastState.terminated.finishedAt");
        // RFC 3339 in UTC sorts as text.
        if finished > self.last.as_str() {
            self.last = finished.to_owned();
        }
    }

    fn text(&self, now: Timestamp) -> String {
        if self.count != 0 && !self.last.is_empty() {
            format!("{} ({} ago)", self.count, since(&self.last, now))
        } else {
            self.count.to_string()
        }
    }
}

/// `Reason`, or what ended the container when it gave none.
fn ended(terminated: &Value) -> String {
    match (tree::text(terminated, "reason"), tree::int(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", tree::int(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

pub(crate) fn cells(pod: &Object, now: Timestamp) -> Vec<Value> {
    let init_containers = tree::items(pod, "spec.initContainers");
    let is_sidecar = |container: &Value| tree::text(container, "restartPolicy") == "Always";
    let is_sidecar_name = |name: &str| {
        init_containers
            .iter()
            .any(|container| tree::text(container, "name") == name && is_sidecar(container))
    };
    let total =
        tree::items(pod, "spec.containers").len() + init_containers.iter().filter(|one| is_sidecar(one)).count();

    let phase = tree::text(pod, "status.phase");
    let mut reason = or(tree::text(pod, "status.reason"), phase).to_owned();
    let gated = tree::items(pod, "status.conditions").iter().any(|condition| {
        tree::text(condition, "type") == "PodScheduled" && tree::text(condition, "reason") == "SchedulingGated"
    });
    if gated {
        reason = "SchedulingGated".to_owned();
    }

    let mut ready = 0;
    let mut restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();
    let mut initializing = false;
    for (index, status) in tree::items(pod, "status.initContainerStatuses").iter().enumerate() {
        let sidecar = is_sidecar_name(tree::text(status, "name"));
        restarts.add(status);
        if sidecar {
            sidecar_restarts.add(status);
        }
        let terminated = tree::get(status, "state.terminated");
        let waiting = tree::text(status, "state.waiting.reason");
        if terminated.is_some_and(|end| tree::int(end, "exitCode") == 0) {
            continue;
        }
        if sidecar && tree::flag(status, "started") {
            ready += usize::from(tree::flag(status, "ready"));
            continue;
        }
        reason = match terminated {
            Some(end) => format!("Init:{}", ended(end)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{}", init_containers.len()),
        };
        initializing = true;
        break;
    }

    if !initializing || is_true(pod, "status.conditions", "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        let mut error = String::new();
        for status in tree::items(pod, "status.containerStatuses").iter().rev() {
            restarts.add(status);
            let waiting = tree::text(status, "state.waiting.reason");
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if let Some(end) = tree::get(status, "state.terminated") {
                reason = ended(end);
                if tree::int(end, "exitCode") != 0 {
                    error.clone_from(&reason);
                }
            } else if tree::flag(status, "ready") && tree::get(status, "state.running").is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" {
            if running && is_true(pod, "status.conditions", "Ready") {
                reason = "Running".to_owned();
            } else if !error.is_empty() {
                reason = error;
            } else if running {
                reason = "NotReady".to_owned();
            }
        }
    }

    if tree::get(pod, "metadata.deletionTimestamp").is_some() {
        if tree::text(pod, "status.reason") == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if phase != "Succeeded" && phase != "Failed" {
            reason = "Terminating".to_owned();
        }
    }

    let ip = tree::items(pod, "status.podIPs")
        .first()
        .map(|ip| tree::text(ip, "ip"))
        .unwrap_or_default();
    vec![
        name(pod),
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.text(now).into(),
        age(pod, now),
        or(ip, "<none>").into(),
        cell_or(pod, "spec.nodeName", "<none>"),
        cell_or(pod, "status.nominatedNodeName", "<none>"),
        gates(pod).into(),
    ]
}

fn gates(pod: &Object) -> String {
    let gates = tree::items(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates
        .iter()
        .filter(|gate| is_true(pod, "status.conditions", tree::text(gate, "conditionType")))
        .count();
    format!("{met}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(spec: Value, status: Value, metadata: Value) -> Vec<String> {
        let mut pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
        for (key, value) in metadata.as_object().unwrap() {
            pod["metadata"][key] = value.clone();
        }
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        cells(&pod, now)[1..4]
            .iter()
            .map(|cell| cell.as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn status_tells_what_upstream_tells() {
        let one = json!({"containers": [{"name": "a"}]});
        let running = json!({"name": "a", "ready": true, "state": {"running": {}}});
        let cases = [
            (
                one.clone(),
                json!({"phase": "Pending"}),
                json!({}),
                ["0/1", "Pending", "0"],
            ),
            (
                one.clone(),
                json!({"phase": "Running", "containerStatuses": [running]}),
                json!({}),
                ["1/1", "Running", "0"],
            ),
            (
                one.clone(),
                json!({"phase": "Running", "containerStatuses": [running]}),
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
                ["1/1", "Terminating", "0"],
            ),
            (
                one.clone(),
                json!({"phase": "Succeeded", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                json!({}),
                ["0/1", "Completed", "0"],
            ),
            (
                one.clone(),
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:05:00Z"}}}]}),
                json!({}),
                ["0/1", "CrashLoopBackOff", "3 (5m ago)"],
            ),
            (
                one.clone(),
                json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
                json!({}),
                ["0/1", "Signal:9", "0"],
            ),
            (
                json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]}),
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
                json!({}),
                ["0/1", "Init:1/2", "0"],
            ),
            (
                json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}),
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}]}),
                json!({}),
                ["0/1", "Init:Error", "0"],
            ),
            (
                json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]}),
                json!({"phase": "Running",
                    "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                    "containerStatuses": [running]}),
                json!({}),
                ["2/2", "Running", "0"],
            ),
            (
                one,
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
                json!({}),
                ["0/1", "SchedulingGated", "0"],
            ),
        ];
        for (spec, status, metadata, wanted) in cases {
            assert_eq!(row(spec, status.clone(), metadata), wanted, "{status}");
        }
    }
}
