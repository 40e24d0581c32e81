//! Services on a real node: what load balancers ask, and endpoints when the server dies in the middle of a rollout.

use std::collections::BTreeSet;

use sampan_e2e::{Cluster, NODE, ready};
use serde_json::Value;

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 1}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: localhost/sampan/busybox:1.35
        command: [sh, -c, 'mkdir /w; echo served > /w/index.html; exec httpd -f -p 8080 -h /w']
        env: [{name: ROUND, value: first}]
        readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

fn texts<'a>(values: impl Iterator<Item = &'a Value>) -> BTreeSet<String> {
    values.filter_map(|value| Some(value.as_str()?.to_owned())).collect()
}

/// Addresses of the Service's ready endpoints, and those of its Pods that are.
fn endpoints_and_pods(cluster: &Cluster) -> (BTreeSet<String>, BTreeSet<String>) {
    let items = |words: &str| cluster.get(words)["items"].as_array().cloned().unwrap_or_default();
    let slices = items("endpointslices -l kubernetes.io/service-name=web");
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    let addresses = texts(ready.map(|endpoint| &endpoint["addresses"][0]));
    let pods = items("pods -l app=web");
    let well = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        pod["metadata"]["deletionTimestamp"].is_null() && ready.next().is_some()
    };
    (
        addresses,
        texts(pods.iter().filter(well).map(|pod| &pod["status"]["podIP"])),
    )
}

#[test]
fn load_balancers_are_answered_and_endpoints_survive_a_death() {
    if !ready("load_balancers_are_answered_and_endpoints_survive_a_death") {
        return;
    }
    let mut cluster = Cluster::start("services");
    cluster.apply(WEB);
    cluster.kubectl("rollout status deployment/web --timeout=60s");
    let port = cluster.get("service web")["spec"]["healthCheckNodePort"]
        .as_u64()
        .expect("a port");
    let health = format!("http://{NODE}:{port}/");
    cluster.wait("the node to say that it has all four", 20, |cluster| {
        let told = cluster.fetch_outside(&health);
        told.is_some_and(|told| {
            told.contains("\"localEndpoints\": 4") && told.contains("\"serviceProxyHealthy\": true")
        })
    });
    let told = cluster.fetch_outside(&format!("http://{NODE}:10256/healthz"));
    assert!(
        told.as_ref().is_some_and(|told| told.contains("\"nodeEligible\":true")),
        "{told:?}"
    );

    // What keeps a load balancer says where it is; the node answers there, unless traffic comes by way of a proxy.
    let (virtual_ip, proxied) = ("192.0.2.200", "192.0.2.201");
    let status = format!(
        "{{\"status\":{{\"loadBalancer\":{{\"ingress\":[{{\"ip\":\"{virtual_ip}\"}},{{\"ip\":\"{proxied}\",\"ipMode\":\"Proxy\"}}]}}}}}}"
    );
    cluster.kubectl_args(&[
        "patch",
        "service",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ]);
    let ingress = cluster.get("service web")["status"]["loadBalancer"]["ingress"].clone();
    assert_eq!(
        (&ingress[0]["ipMode"], &ingress[1]["ipMode"]),
        (&"VIP".into(), &"Proxy".into()),
        "{ingress}"
    );
    let fetch = |cluster: &Cluster, ip: &str| {
        let mut curl = cluster.lab.on_node("curl");
        let fetched = sampan_e2e::output(curl.args(["-sS", "--max-time", "2", &format!("http://{ip}/")]));
        String::from_utf8_lossy(&fetched.stdout).contains("served")
    };
    cluster.wait("the balancer's address to answer", 20, |cluster| {
        fetch(cluster, virtual_ip)
    });
    assert!(!fetch(&cluster, proxied));

    // Dead in the middle of a rollout: endpoints are those of the Pods that are, soon, and none is left behind.
    let names = |cluster: &Cluster| cluster.kubectl("get endpointslices -l kubernetes.io/service-name=web -o name");
    let before = names(&cluster);
    cluster.kubectl("set env deployment/web ROUND=second");
    cluster.wait("the rollout to begin", 20, |cluster| {
        cluster.get("deployment web")["status"]["updatedReplicas"].as_u64() >= Some(1)
    });
    cluster.kill();
    cluster.start_server();
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    cluster.wait("endpoints to be those of the ready Pods", 30, |cluster| {
        let (endpoints, pods) = endpoints_and_pods(cluster);
        endpoints.len() == 4 && endpoints == pods
    });
    assert_eq!(names(&cluster), before, "the slice is the one of before");
    cluster.wait("the node to say so", 20, |cluster| {
        let told = cluster.fetch_outside(&health);
        told.is_some_and(|told| told.contains("\"localEndpoints\": 4"))
    });

    // None here: load balancers look elsewhere.
    cluster.kubectl("scale deployment web --replicas=0");
    cluster.wait("the node to have none", 30, |cluster| {
        cluster.fetch_outside(&health).is_none() && endpoints_and_pods(cluster).0.is_empty()
    });
}
