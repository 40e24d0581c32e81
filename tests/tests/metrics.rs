//! What nodes and Pods use, as people and autoscalers see it on a real node.

use sampan_e2e::{Cluster, ready};
use serde_json::Value;

/// Busy until somebody says otherwise, and never with more than a tenth of a processor.
const BUSY: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: localhost/sampan/busybox:1.35
        command: [sh, -c, 'while [ ! -e /tmp/idle ]; do :; done; sleep 3600']
        resources: {requests: {cpu: 50m, memory: 8Mi}, limits: {cpu: 100m}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  minReplicas: 1
  maxReplicas: 2
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
";

/// The number before the unit in a column of a table's line.
fn number(line: &str, column: usize) -> u64 {
    let word = line.split_whitespace().nth(column).unwrap_or_default();
    let digits = word.trim_end_matches(|char: char| !char.is_ascii_digit());
    digits.parse().unwrap_or_else(|_| panic!("column {column} of {line:?}"))
}

#[test]
fn use_is_shown_and_acted_on() {
    if !ready("use_is_shown_and_acted_on") {
        return;
    }
    let mut cluster = Cluster::start("metrics");
    cluster.apply(BUSY);
    cluster.wait("the Pod to run", 60, |cluster| {
        cluster.get("deployment busy")["status"]["readyReplicas"] == 1
    });

    // What the node itself says.
    let raw = cluster.kubectl("get --raw /api/v1/nodes/node-1/proxy/stats/summary");
    let summary: Value = serde_json::from_str(&raw).expect("JSON");
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"]["namespace"], "default", "{summary}");
    let cores = |cpu: &Value| {
        cpu["usageNanoCores"]
            .as_u64()
            .unwrap_or_else(|| panic!("{cpu} of {summary}"))
    };
    let (node, used) = (cores(&summary["node"]["cpu"]), cores(&pod["containers"][0]["cpu"]));
    assert!(
        (20_000_000..200_000_000).contains(&used),
        "a tenth of a processor: {used}"
    );
    assert!(node >= used / 2 && cores(&pod["cpu"]) >= used / 2, "{summary}");
    assert!(
        pod["containers"][0]["memory"]["workingSetBytes"].as_u64() > Some(0),
        "{summary}"
    );

    // What people see of it.
    cluster.wait("the Pod to be measured", 30, |cluster| {
        let shown = cluster.try_kubectl("top pods --no-headers");
        shown.is_ok_and(|line| line.starts_with("busy-") && number(&line, 1) >= 20)
    });
    let line = cluster.kubectl("top pods --containers --no-headers");
    assert!(line.contains(" main ") && number(&line, 2) <= 200, "{line}");
    let line = cluster.kubectl("top nodes --no-headers");
    assert!(
        line.starts_with("node-1") && number(&line, 1) >= 20 && number(&line, 3) > 0,
        "{line}"
    );

    // What the autoscaler makes of it, there and back.
    let replicas = |cluster: &Cluster| cluster.get("deployment busy")["status"]["readyReplicas"].clone();
    cluster.wait("a second Pod", 60, |cluster| replicas(cluster) == 2);
    let events = cluster.kubectl("get events --field-selector reason=SuccessfulRescale");
    assert!(
        events.contains("New size: 2; reason: cpu resource utilization"),
        "{events}"
    );
    let pods = cluster.kubectl("get pods -l app=busy -o name");
    for pod in pods.lines() {
        cluster.kubectl(&format!("exec {pod} -- touch /tmp/idle"));
    }
    cluster.wait("one Pod again", 60, |cluster| replicas(cluster) == 1);
    let status = &cluster.get("horizontalpodautoscaler busy")["status"];
    assert_eq!(status["desiredReplicas"], 1, "{status}");
}
