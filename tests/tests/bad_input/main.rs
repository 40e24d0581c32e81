//! Bad input at the API: each answer is a Status with the code, reason, causes and wording clients know from upstream.

mod bodies;
mod objects;
mod patches;
mod rights;

use sampan_e2e::http::{Findings, Http};
use sampan_e2e::{Cluster, ready};
use serde_json::{Value, json};

const CM: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// An API without machines below it: nothing here needs a Pod to run.
fn api(name: &str) -> Cluster {
    let mut cluster = Cluster::prepare(name, &["--disable=node,dns,proxy"]);
    cluster.start_server();
    cluster.wait("the default service account", 30, |cluster| {
        cluster.try_kubectl("get serviceaccount default").is_ok()
    });
    cluster
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": "value"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"schedulingGates": [{"name": "example.com/held"}], "containers": [{"name": "c", "image": "i"}]}})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}
