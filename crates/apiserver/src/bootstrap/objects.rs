//! The objects themselves.

use sampan_api::Object;
use sampan_claims::local;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::peers::Addresses;

pub fn namespaces() -> Vec<Object> {
    ["default", "kube-system", "kube-public", "kube-node-lease"]
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .collect()
}

/// Created once and then the administrator's.
pub fn fixed(plane: &ControlPlane) -> Vec<Object> {
    let mut objects = priority_classes();
    objects.extend(flow_control());
    objects.push(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [plane.config.service_range.to_string()]},
    }));
    // Since when it is known which tokens in Secrets are used.
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    objects.push(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking", "namespace": "kube-system"},
        "data": {"since": today.to_string()},
    }));
    objects
}

/// The class of volumes on the nodes' own disks. Made once: whoever changes it or marks another as the default is not
/// overruled, and a cluster that has classes already has its own default.
pub fn storage_class() -> Object {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": local::CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": local::PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

/// Whom extension servers are to believe: kept as it must be.
pub fn authorities(plane: &ControlPlane) -> Result<Object, String> {
    let (options, pki) = (&plane.config.authentication.request_header, &plane.config.pki);
    let bundle = String::from_utf8(options.authority(pki)?).map_err(|error| error.to_string())?;
    let list = |own: &Option<Vec<String>>, default: &str| match own {
        Some(own) => json!(own).to_string(),
        None => json!([default]).to_string(),
    };
    Ok(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": pki.ca_pem(),
            "requestheader-allowed-names": json!(options.names()).to_string(),
            "requestheader-client-ca-file": bundle,
            "requestheader-extra-headers-prefix": list(&options.extra_headers_prefix, "X-Remote-Extra-"),
            "requestheader-group-headers": list(&options.group_headers, "X-Remote-Group"),
            "requestheader-uid-headers": list(&options.uid_headers, "X-Remote-Uid"),
            "requestheader-username-headers": list(&options.username_headers, "X-Remote-User"),
        },
    }))
}

/// The Service `default/kubernetes`: kept as it must be.
pub fn service(plane: &ControlPlane) -> Object {
    let cluster_ip = plane.registry.services.first_address().to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": plane.config.advertise.port()}],
        },
    })
}

/// The names of the slices that [`endpoints`] makes.
pub fn slice_names(addresses: &Addresses) -> impl Iterator<Item = String> {
    addresses.keys().enumerate().map(|(nth, port)| match nth {
        0 => "kubernetes".to_owned(),
        _ => format!("kubernetes-{port}"),
    })
}

/// Where `default/kubernetes` leads: Endpoints, and a slice for each port. Nothing, if nobody can be reached.
pub fn endpoints(addresses: &Addresses) -> Vec<Object> {
    if addresses.is_empty() {
        return Vec::new();
    }
    let ports = |port: u16| json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let subsets: Vec<Value> = addresses
        .iter()
        .map(|(port, ips)| {
            let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
            json!({"addresses": ips, "ports": ports(*port)})
        })
        .collect();
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    })];
    for (name, (port, ips)) in slice_names(addresses).zip(addresses) {
        let endpoints: Vec<_> = ips
            .iter()
            .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
            .collect();
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports(*port),
        }));
    }
    objects
}

fn priority_classes() -> Vec<Object> {
    [
        ("system-node-critical", 2_000_001_000i64, "Used for system critical pods that must not be moved from their current node."),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
    .iter()
    .map(|(name, value, description)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        })
    })
    .collect()
}

const FLOW: &str = "flowcontrol.apiserver.k8s.io/v1";
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, lendable percent, and queues with hand size and length (none: reject when full).
type Level = (&'static str, i64, i64, Option<(i64, i64, i64)>);

/// The objects of priority and fairness, mandatory and suggested.
pub fn flow_control() -> Vec<Object> {
    let mut objects = vec![json!({
        "apiVersion": FLOW, "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "exempt", "annotations": {AUTO_UPDATE: "true"}},
        "spec": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}},
    })];
    let levels: [Level; 6] = [
        ("system", 30, 33, Some((64, 6, 50))),
        ("node-high", 40, 25, Some((64, 6, 50))),
        ("leader-election", 10, 0, Some((16, 4, 50))),
        ("workload-high", 40, 50, Some((128, 6, 50))),
        ("workload-low", 100, 90, Some((128, 6, 50))),
        ("global-default", 20, 50, Some((128, 6, 50))),
    ];
    for (name, shares, lendable, queues) in levels {
        objects.push(level(name, shares, lendable, queues));
    }
    objects.push(level("catch-all", 5, 0, None));
    let everyone = json!([group("system:unauthenticated"), group("system:authenticated")]);
    let schemas: Vec<(&str, &str, i64, &str, Value)> = vec![
        (
            "exempt",
            "exempt",
            1,
            "",
            json!([{"subjects": [group("system:masters")], "resourceRules": anything(), "nonResourceRules": any_path()}]),
        ),
        (
            "probes",
            "exempt",
            2,
            "",
            json!([{"subjects": everyone.clone(), "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]}]),
        ),
        (
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            json!([{
            "subjects": [user("system:kube-controller-manager"), user("system:kube-scheduler"), account("kube-system", "*")],
            "resourceRules": [resources(&["get", "create", "update"], &["coordination.k8s.io"], &["leases"], false)]}]),
        ),
        (
            "system-node-high",
            "node-high",
            400,
            "ByUser",
            json!([{
            "subjects": [group("system:nodes")],
            "resourceRules": [
                resources(&["*"], &[""], &["nodes", "nodes/status"], true),
                resources(&["*"], &["coordination.k8s.io"], &["leases"], false)]}]),
        ),
        (
            "system-nodes",
            "system",
            500,
            "ByUser",
            json!([{"subjects": [group("system:nodes")], "resourceRules": anything(), "nonResourceRules": any_path()}]),
        ),
        (
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            json!([{"subjects": [user("system:kube-controller-manager")], "resourceRules": anything(), "nonResourceRules": any_path()}]),
        ),
        (
            "kube-scheduler",
            "workload-high",
            800,
            "ByNamespace",
            json!([{"subjects": [user("system:kube-scheduler")], "resourceRules": anything(), "nonResourceRules": any_path()}]),
        ),
        (
            "kube-system-service-accounts",
            "workload-high",
            900,
            "ByNamespace",
            json!([{"subjects": [account("kube-system", "*")], "resourceRules": anything(), "nonResourceRules": any_path()}]),
        ),
        (
            "service-accounts",
            "workload-low",
            9000,
            "ByUser",
            json!([{"subjects": [group("system:serviceaccounts")], "resourceRules": anything(), "nonResourceRules": any_path()}]),
        ),
        (
            "global-default",
            "global-default",
            9900,
            "ByUser",
            json!([{"subjects": everyone.clone(), "resourceRules": anything(), "nonResourceRules": any_path()}]),
        ),
        (
            "catch-all",
            "catch-all",
            10_000,
            "ByUser",
            json!([{"subjects": everyone, "resourceRules": anything(), "nonResourceRules": any_path()}]),
        ),
    ];
    for (name, level, precedence, method, rules) in schemas {
        let mut schema = json!({
            "apiVersion": FLOW, "kind": "FlowSchema",
            "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
            "spec": {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": rules},
        });
        if !method.is_empty() {
            schema["spec"]["distinguisherMethod"] = json!({"type": method});
        }
        objects.push(schema);
    }
    objects
}

fn level(name: &str, shares: i64, lendable: i64, queues: Option<(i64, i64, i64)>) -> Object {
    let response = match queues {
        Some((queues, hand, length)) => {
            json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}})
        }
        None => json!({"type": "Reject"}),
    };
    json!({
        "apiVersion": FLOW, "kind": "PriorityLevelConfiguration",
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
        "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response}},
    })
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}})
}

fn resources(verbs: &[&str], groups: &[&str], resources: &[&str], cluster: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "namespaces": ["*"]});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn anything() -> Value {
    json!([resources(&["*"], &["*"], &["*"], true)])
}

fn any_path() -> Value {
    json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}])
}
