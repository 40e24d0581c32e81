//! What a node may change, seen from the objects themselves: the admission half of [`crate::node`].
//!
//! A pure function over one write; admission calls it for users that are nodes and turns the text into a Forbidden
//! status. Subresources and resources not named here are not its business.

use serde_json::Value;

use crate::pod_references;
use crate::user::UserInfo;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
        }
    }
}

/// One write by a node.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    pub operation: Operation,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// From the path, or of the created object.
    pub name: &'a str,
    /// What shall be written; for an eviction the Eviction, for a token the TokenRequest.
    pub new: Option<&'a Value>,
    /// What is there now.
    pub old: Option<&'a Value>,
}

/// What the check has to look up: both answers come from the API server's cache.
pub trait Existing {
    /// The Pod, if there is one: asked for evictions and tokens.
    fn pod(&self, namespace: &str, name: &str) -> Option<Value>;
    /// The UID of the Node, if there is one: asked for mirror Pods.
    fn node_uid(&self, name: &str) -> Option<String>;
}

const OWN_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const MIRROR: &str = "kubernetes.io/config.mirror";

fn text<'a>(value: Option<&'a Value>, pointer: &str) -> &'a str {
    value
        .and_then(|value| value.pointer(pointer))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Whether the write is one a node may do. Users that are no nodes may always, as far as this is concerned.
pub fn check(user: &UserInfo, write: &Write<'_>, existing: &dyn Existing) -> Result<(), String> {
    if !user.is_node() {
        return Ok(());
    }
    let Some(node) = user.node_name() else {
        return Err(format!("could not determine node from user {:?}", user.name));
    };
    match (write.group, write.resource, write.subresource) {
        ("", "pods", "") => pod(node, write, existing),
        ("", "pods", "status") => pod_status(node, write),
        ("", "pods", "eviction") => eviction(node, write, existing),
        ("", "pods", other) => Err(format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
        ("", "nodes", _) => own_node(node, write),
        ("", "persistentvolumeclaims", "status") => claim_status(node, write),
        ("", "persistentvolumeclaims", _) => Err("may only update PVC status".into()),
        ("", "serviceaccounts", "token") if write.operation == Operation::Create => token(node, write, existing),
        ("coordination.k8s.io", "leases", _) if write.namespace != "kube-node-lease" => {
            Err(r#"can only access leases in the "kube-node-lease" system namespace"#.into())
        }
        ("coordination.k8s.io", "leases", _) => same_name(node, write, "node lease"),
        ("storage.k8s.io", "csinodes", _) => same_name(node, write, "CSINode"),
        ("resource.k8s.io", "resourceslices", _) => slice(node, write),
        _ => Ok(()),
    }
}

fn same_name(node: &str, write: &Write<'_>, noun: &str) -> Result<(), String> {
    let name = match write.operation {
        Operation::Create => text(write.new, "/metadata/name"),
        _ => write.name,
    };
    if name == node {
        return Ok(());
    }
    Err(format!(
        "can only access {noun} with the same name as the requesting node"
    ))
}

fn slice(node: &str, write: &Write<'_>) -> Result<(), String> {
    let (object, verb) = match write.operation {
        Operation::Create => (write.new, "create"),
        Operation::Delete => (write.old, "delete"),
        Operation::Update => return Ok(()),
    };
    if text(object, "/spec/nodeName") == node {
        return Ok(());
    }
    Err(format!(
        "can only {verb} ResourceSlice with the same NodeName as the requesting node"
    ))
}

fn pod(node: &str, write: &Write<'_>, existing: &dyn Existing) -> Result<(), String> {
    match write.operation {
        Operation::Create => mirror_pod(node, write.new.unwrap_or(&Value::Null), existing),
        Operation::Delete if text(write.old, "/spec/nodeName") == node => Ok(()),
        Operation::Delete => Err(format!(
            "node {node:?} can only delete pods with spec.nodeName set to itself"
        )),
        Operation::Update => Err(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            write.operation.word()
        )),
    }
}

fn mirror_pod(node: &str, pod: &Value, existing: &dyn Existing) -> Result<(), String> {
    let annotations = pod.pointer("/metadata/annotations");
    if annotations.and_then(|all| all.get(MIRROR)).is_none() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if text(Some(pod), "/spec/nodeName") != node {
        return Err(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let owner = match owners.map(Vec::as_slice).unwrap_or_default() {
        [owner] => owner,
        [] => {
            return Err(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            return Err(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    let is = |pointer, wanted| text(Some(owner), pointer) == wanted;
    if !(is("/apiVersion", "v1") && is("/kind", "Node") && is("/name", node)) {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    let flag = |name: &str| owner.get(name).and_then(Value::as_bool).unwrap_or(false);
    if !flag("controller") {
        return Err(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if flag("blockOwnerDeletion") {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let uid = existing
        .node_uid(node)
        .ok_or_else(|| format!("nodes {node:?} not found"))?;
    let claimed = text(Some(owner), "/uid");
    if uid != claimed {
        return Err(format!("node {node} UID mismatch: expected {claimed} got {uid}"));
    }
    match pod_references::needs_api(pod) {
        Some(what) => Err(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// Equal, where an absent and an empty value are the same.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    a.filter(|v| !empty(v)) == b.filter(|v| !empty(v))
}

fn same_at(write: &Write<'_>, pointer: &str) -> bool {
    same(
        write.old.and_then(|old| old.pointer(pointer)),
        write.new.and_then(|new| new.pointer(pointer)),
    )
}

fn pod_status(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.operation != Operation::Update {
        return Err(format!("unexpected operation {:?}", write.operation.word()));
    }
    if text(write.old, "/spec/nodeName") != node {
        return Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    for (pointer, what) in [
        ("/metadata/labels", "labels through pod status"),
        ("/status/resourceClaimStatuses", "resource claim statues"),
        ("/status/extendedResourceClaimStatus", "extended resource claim status"),
    ] {
        if !same_at(write, pointer) {
            return Err(format!("node {node:?} cannot update {what}"));
        }
    }
    Ok(())
}

fn eviction(node: &str, write: &Write<'_>, existing: &dyn Existing) -> Result<(), String> {
    if write.operation != Operation::Create {
        return Err(format!("unexpected operation {}", write.operation.word()));
    }
    let name = if write.name.is_empty() {
        text(write.new, "/metadata/name")
    } else {
        write.name
    };
    if name.is_empty() {
        return Err("could not determine pod from request data".into());
    }
    let pod = existing
        .pod(write.namespace, name)
        .ok_or_else(|| format!("pods {name:?} not found"))?;
    if text(Some(&pod), "/spec/nodeName") == node {
        return Ok(());
    }
    Err(format!(
        "node {node} can only evict pods with spec.nodeName set to itself"
    ))
}

fn token(node: &str, write: &Write<'_>, existing: &dyn Existing) -> Result<(), String> {
    let bound = |field: &str| text(write.new, &format!("/spec/boundObjectRef/{field}"));
    let (name, uid) = (bound("name"), bound("uid"));
    if bound("apiVersion") != "v1" || bound("kind") != "Pod" || name.is_empty() {
        return Err("node requested token not bound to a pod".into());
    }
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid".into());
    }
    let pod = existing
        .pod(write.namespace, name)
        .ok_or_else(|| format!("pods {name:?} not found"))?;
    let pod = Some(&pod);
    if text(pod, "/metadata/uid") != uid {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if text(pod, "/spec/nodeName") != node {
        return Err("node requested token bound to a pod scheduled on a different node".into());
    }
    Ok(())
}

fn claim_status(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.operation != Operation::Update {
        return Err(format!("unexpected operation {:?}", write.operation.word()));
    }
    let stripped = |object: Option<&Value>| {
        let mut object = object.cloned().unwrap_or_default();
        for (parent, fields) in [
            ("/metadata", &["resourceVersion", "managedFields"][..]),
            (
                "/status",
                &[
                    "capacity",
                    "conditions",
                    "allocatedResources",
                    "allocatedResourceStatuses",
                ],
            ),
        ] {
            if let Some(map) = object.pointer_mut(parent).and_then(Value::as_object_mut) {
                for field in fields {
                    map.remove(*field);
                }
            }
        }
        object
    };
    if stripped(write.old) == stripped(write.new) {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
    ))
}

fn own_node(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.name != node {
        return Err(format!("node {node:?} is not allowed to modify node {:?}", write.name));
    }
    let config_source = write.new.and_then(|new| new.pointer("/spec/configSource"));
    let sets_config_source = config_source.is_some_and(|source| !source.is_null());
    match write.operation {
        Operation::Create => {
            if sets_config_source {
                return Err(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let labels = foreign_labels(write);
            if !labels.is_empty() {
                return Err(format!(
                    "node {node:?} is not allowed to set the following labels: {}",
                    labels.join(", ")
                ));
            }
        }
        Operation::Update => {
            if sets_config_source && !same_at(write, "/spec/configSource") {
                return Err(format!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            // Otherwise a node could shed its taints and draw Pods to it.
            if !same_at(write, "/spec/taints") {
                return Err(format!("node {node:?} is not allowed to modify taints"));
            }
            if !same_at(write, "/metadata/ownerReferences") {
                return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
            }
            let labels = foreign_labels(write);
            if !labels.is_empty() {
                return Err(format!("is not allowed to modify labels: {}", labels.join(", ")));
            }
        }
        Operation::Delete => {}
    }
    Ok(())
}

/// Changed labels that are not a node's to change, sorted.
fn foreign_labels(write: &Write<'_>) -> Vec<String> {
    let labels = |object: Option<&'_ Value>| {
        let map = object.and_then(|object| object.pointer("/metadata/labels"));
        map.and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (old, new) = (labels(write.old), labels(write.new));
    let mut changed: Vec<String> = new
        .keys()
        .chain(old.keys())
        .filter(|key| old.get(*key) != new.get(*key) && !may_set_label(key))
        .cloned()
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

fn may_set_label(label: &str) -> bool {
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let below = |domain: &str| {
        namespace == domain
            || namespace
                .strip_suffix(domain)
                .is_some_and(|prefix| prefix.ends_with('.'))
    };
    if below("node-restriction.kubernetes.io") {
        return false;
    }
    let reserved = below("kubernetes.io") || below("k8s.io");
    !reserved || OWN_LABELS.contains(&label) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Cluster;
    impl Existing for Cluster {
        fn pod(&self, _: &str, name: &str) -> Option<Value> {
            let node = name.strip_prefix("on-")?;
            Some(json!({"metadata": {"uid": "u"}, "spec": {"nodeName": node}}))
        }
        fn node_uid(&self, name: &str) -> Option<String> {
            Some(format!("uid-{name}"))
        }
    }

    fn write<'a>(operation: Operation, resource: &'a str, name: &'a str, old: &'a Value, new: &'a Value) -> Write<'a> {
        let (path, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (group, resource) = match path {
            "leases" => ("coordination.k8s.io", path),
            "csinodes" => ("storage.k8s.io", path),
            "resourceslices" => ("resource.k8s.io", path),
            _ => ("", path),
        };
        Write {
            operation,
            group,
            resource,
            subresource,
            namespace: if resource == "leases" { "kube-node-lease" } else { "web" },
            name,
            new: Some(new).filter(|v| !v.is_null()),
            old: Some(old).filter(|v| !v.is_null()),
        }
    }

    #[test]
    fn a_node_changes_only_what_is_its_own() {
        use Operation::{Create, Delete, Update};
        let none = Value::Null;
        let on = |node: &str| json!({"spec": {"nodeName": node}});
        let named = |name: &str| json!({"metadata": {"name": name}});
        let labels = |key: &str| json!({"metadata": {"name": "n1", "labels": {key: "x"}}});
        let tainted = json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "a"}]}});
        let bound = |pod: &str, uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}});
        let mirror = |node: &str| {
            json!({
                "metadata": {
                    "annotations": {MIRROR: "x"},
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": format!("uid-{node}"), "controller": true}],
                },
                "spec": {"nodeName": node},
            })
        };
        let mut greedy = mirror("n1");
        greedy["spec"]["volumes"] = json!([{"secret": {"secretName": "s"}}]);
        let relabelled = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n1"}});
        let user = UserInfo::node("n1");
        for (operation, resource, name, old, new, says) in [
            (Update, "nodes/status", "n1", &tainted, &tainted, ""),
            (
                Update,
                "nodes",
                "n2",
                &none,
                &none,
                r#"node "n1" is not allowed to modify node "n2""#,
            ),
            (
                Update,
                "nodes",
                "n1",
                &tainted,
                &named("n1"),
                "not allowed to modify taints",
            ),
            (Create, "nodes", "n1", &none, &labels("kubernetes.io/hostname"), ""),
            (Create, "nodes", "n1", &none, &labels("example.com/x"), ""),
            (
                Create,
                "nodes",
                "n1",
                &none,
                &labels("x.node-restriction.kubernetes.io/y"),
                "x.node-restriction.kubernetes.io/y",
            ),
            (
                Update,
                "nodes",
                "n1",
                &named("n1"),
                &labels("node-role.kubernetes.io/control-plane"),
                "is not allowed to modify labels: node-role.kubernetes.io/control-plane",
            ),
            (Update, "nodes", "n1", &labels("node.kubernetes.io/z"), &named("n1"), ""),
            (Update, "leases", "n1", &none, &none, ""),
            (Create, "leases", "", &none, &named("n2"), "same name"),
            (Create, "csinodes", "", &none, &named("n1"), ""),
            (Create, "resourceslices", "", &none, &on("n2"), "NodeName"),
            (Delete, "pods", "p", &on("n1"), &none, ""),
            (Delete, "pods", "p", &on("n2"), &none, "can only delete pods"),
            (
                Update,
                "pods",
                "p",
                &on("n1"),
                &on("n1"),
                "can only create and delete mirror pods",
            ),
            (Update, "pods/status", "p", &on("n1"), &on("n1"), ""),
            (
                Update,
                "pods/status",
                "p",
                &on("n2"),
                &on("n2"),
                "can only update pod status",
            ),
            (Update, "pods/status", "p", &on("n1"), &relabelled, "labels"),
            (Create, "pods/exec", "p", &none, &none, "unexpected pod subresource"),
            (Create, "pods/eviction", "on-n1", &none, &none, ""),
            (Create, "pods/eviction", "on-n2", &none, &none, "can only evict"),
            (Create, "pods/eviction", "x", &none, &none, "not found"),
            (Create, "pods", "m", &none, &mirror("n1"), ""),
            (Create, "pods", "m", &none, &mirror("n2"), "spec.nodeName"),
            (Create, "pods", "m", &none, &on("n1"), "mirror pods"),
            (
                Create,
                "pods",
                "m",
                &none,
                &greedy,
                "can not create pods that reference secrets",
            ),
            (Create, "serviceaccounts/token", "sa", &none, &bound("on-n1", "u"), ""),
            (
                Create,
                "serviceaccounts/token",
                "sa",
                &none,
                &bound("on-n1", "v"),
                "does not match the UID",
            ),
            (
                Create,
                "serviceaccounts/token",
                "sa",
                &none,
                &bound("on-n2", "u"),
                "different node",
            ),
            (
                Create,
                "serviceaccounts/token",
                "sa",
                &none,
                &none,
                "not bound to a pod",
            ),
            (
                Update,
                "persistentvolumeclaims",
                "c",
                &none,
                &none,
                "may only update PVC status",
            ),
            (
                Update,
                "persistentvolumeclaims/status",
                "c",
                &json!({"status": {"capacity": {}}}),
                &json!({"status": {"conditions": []}}),
                "",
            ),
            (
                Update,
                "persistentvolumeclaims/status",
                "c",
                &none,
                &json!({"spec": {"x": 1}}),
                "is not allowed to update fields",
            ),
            (Update, "configmaps", "c", &none, &none, ""),
        ] {
            let write = write(operation, resource, name, old, new);
            let answer = check(&user, &write, &Cluster);
            match says {
                "" => assert_eq!(answer, Ok(()), "{write:?}"),
                says => assert!(
                    answer.as_ref().is_err_and(|text| text.contains(says)),
                    "{write:?}: {answer:?}"
                ),
            }
            assert_eq!(check(&UserInfo::component("jane"), &write, &Cluster), Ok(()));
        }
        let nameless = UserInfo::node("");
        let any = write(Update, "configmaps", "c", &none, &none);
        assert!(check(&nameless, &any, &Cluster).is_err());
    }
}
