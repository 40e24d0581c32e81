//! What nodes may do: their own objects, and what their Pods need.
//!
//! A small graph follows Pods, PersistentVolumes, VolumeAttachments and ResourceSlices. A node may read a Secret,
//! ConfigMap, claim, volume or service account only if a Pod bound to it uses that object. What cannot be seen
//! from the request alone (whose Pod a status belongs to, the name in a created object) is left to
//! [`crate::node_restriction`].

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use crate::attributes::{Attributes, Decision};
use crate::pod_references::{self, Referenced};
use crate::policy;
use crate::rule::Rule;

/// An object nodes reach through Pods.
type ObjectKey = (Referenced, Arc<str>, Arc<str>);

/// What one bound Pod gives its node.
#[derive(Debug)]
struct PodEntry {
    node: Arc<str>,
    references: Vec<ObjectKey>,
}

#[derive(Debug, Default)]
struct Graph {
    pods: HashMap<(String, String), PodEntry>,
    /// How many Pods of each node use the object.
    users: HashMap<ObjectKey, HashMap<Arc<str>, usize>>,
    /// PersistentVolume → the claim it is bound to, and the Secrets the node needs to mount it.
    volumes: HashMap<String, (ObjectKey, Vec<ObjectKey>)>,
    /// Secret → PersistentVolumes that need it.
    volume_secrets: HashMap<ObjectKey, Vec<String>>,
    attachments: HashMap<String, String>,
    slices: HashMap<String, String>,
}

impl Graph {
    fn remove_pod(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(pod) = self.pods.remove(&key) else {
            return;
        };
        for reference in pod.references {
            if let Some(nodes) = self.users.get_mut(&reference) {
                if let Some(count) = nodes.get_mut(&pod.node) {
                    *count -= 1;
                    if *count == 0 {
                        nodes.remove(&pod.node);
                    }
                }
                if nodes.is_empty() {
                    self.users.remove(&reference);
                }
            }
        }
    }
    fn remove_volume(&mut self, name: &str) {
        let Some((_, secrets)) = self.volumes.remove(name) else {
            return;
        };
        for secret in secrets {
            if let Some(volumes) = self.volume_secrets.get_mut(&secret) {
                volumes.retain(|volume| volume != name);
                if volumes.is_empty() {
                    self.volume_secrets.remove(&secret);
                }
            }
        }
    }
    fn uses(&self, node: &str, key: &ObjectKey) -> bool {
        self.users.get(key).is_some_and(|nodes| nodes.contains_key(node))
    }
    fn uses_volume(&self, node: &str, volume: &str) -> bool {
        self.volumes
            .get(volume)
            .is_some_and(|(claim, _)| self.uses(node, claim))
    }
}

/// The graph and the node authorizer over it.
#[derive(Debug)]
pub struct NodeGraph {
    graph: RwLock<Graph>,
    /// What every node may do, whatever runs on it.
    rules: Vec<Rule>,
}

impl Default for NodeGraph {
    fn default() -> Self {
        NodeGraph {
            graph: RwLock::default(),
            rules: policy::node_rules(),
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn key(kind: Referenced, namespace: &str, name: &str) -> ObjectKey {
    (kind, namespace.into(), name.into())
}

/// Such as `pods`, `persistentvolumes`; see [`NodeGraph::follows`].
const FOLLOWED: [(&str, &str); 4] = [
    ("", "pods"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "volumeattachments"),
    ("resource.k8s.io", "resourceslices"),
];

impl NodeGraph {
    pub fn new() -> Self {
        Self::default()
    }

    /// The resources (group, plural) whose objects [`NodeGraph::apply`] wants.
    pub fn follows() -> &'static [(&'static str, &'static str)] {
        &FOLLOWED
    }

    fn write(&self, change: impl FnOnce(&mut Graph)) {
        change(&mut self.graph.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes in a created or changed object of a followed resource; of others nothing.
    pub fn apply(&self, plural: &str, object: &Value) {
        let name = text(object, "/metadata/name");
        let node = text(object, "/spec/nodeName");
        match plural {
            "pods" => self.apply_pod(object),
            "persistentvolumes" => self.apply_volume(object),
            "volumeattachments" => self.write(|graph| {
                graph.attachments.insert(name.into(), node.into());
            }),
            "resourceslices" if !node.is_empty() => self.write(|graph| {
                graph.slices.insert(name.into(), node.into());
            }),
            _ => {}
        }
    }

    /// Forgets a deleted object.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.write(|graph| match plural {
            "pods" => graph.remove_pod(namespace, name),
            "persistentvolumes" => graph.remove_volume(name),
            "volumeattachments" => {
                graph.attachments.remove(name);
            }
            "resourceslices" => {
                graph.slices.remove(name);
            }
            _ => {}
        });
    }

    fn apply_pod(&self, pod: &Value) {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let node = text(pod, "/spec/nodeName");
        let shared: Arc<str> = namespace.into();
        let mut references: Vec<ObjectKey> = Vec::new();
        let mirror = pod
            .pointer("/metadata/annotations")
            .is_some_and(|annotations| annotations.get("kubernetes.io/config.mirror").is_some());
        // A node creates mirror Pods itself: they must never give it anything.
        if !node.is_empty() && !mirror {
            pod_references::visit(pod, |kind, name| {
                let reference = (kind, shared.clone(), Arc::from(name));
                if !references.contains(&reference) {
                    references.push(reference);
                }
            });
        }
        self.write(|graph| {
            let key = (namespace.to_owned(), name.to_owned());
            if let Some(known) = graph.pods.get(&key)
                && *known.node == *node
                && known.references == references
            {
                return;
            }
            graph.remove_pod(namespace, name);
            if node.is_empty() {
                return;
            }
            let node: Arc<str> = node.into();
            for reference in &references {
                *graph
                    .users
                    .entry(reference.clone())
                    .or_default()
                    .entry(node.clone())
                    .or_default() += 1;
            }
            graph.pods.insert(key, PodEntry { node, references });
        });
    }

    fn apply_volume(&self, volume: &Value) {
        let name = text(volume, "/metadata/name");
        let claim_namespace = text(volume, "/spec/claimRef/namespace");
        let claim = key(Referenced::Claim, claim_namespace, text(volume, "/spec/claimRef/name"));
        let bound = volume.pointer("/spec/claimRef").is_some_and(|claim| !claim.is_null());
        // Those the kubelet itself needs; the ones for attaching and provisioning are not its business.
        let sources = [
            "/azureFile/secretName",
            "/cephfs/secretRef/name",
            "/cinder/secretRef/name",
            "/flexVolume/secretRef/name",
            "/rbd/secretRef/name",
            "/scaleIO/secretRef/name",
            "/iscsi/secretRef/name",
            "/storageos/secretRef/name",
            "/csi/nodePublishSecretRef/name",
            "/csi/nodeStageSecretRef/name",
            "/csi/nodeExpandSecretRef/name",
        ];
        let spec = volume.get("spec").unwrap_or(&Value::Null);
        let secrets: Vec<_> = sources
            .into_iter()
            .filter_map(|pointer| {
                let secret = text(spec, pointer);
                let (reference, _) = pointer.rsplit_once('/')?;
                let namespace = spec
                    .pointer(&format!("{reference}/namespace"))
                    .or_else(|| spec.pointer(&format!("{reference}/secretNamespace")))
                    .and_then(Value::as_str)
                    .filter(|namespace| !namespace.is_empty())
                    .unwrap_or(claim_namespace);
                (!secret.is_empty()).then(|| key(Referenced::Secret, namespace, secret))
            })
            .collect();
        self.write(|graph| {
            graph.remove_volume(name);
            if !bound {
                return;
            }
            for secret in &secrets {
                graph
                    .volume_secrets
                    .entry(secret.clone())
                    .or_default()
                    .push(name.into());
            }
            graph.volumes.insert(name.into(), (claim, secrets));
        });
    }

    /// Whether Pods of `node` need the object.
    fn related(&self, node: &str, kind: Referenced, namespace: &str, name: &str) -> bool {
        let graph = self.graph.read().unwrap_or_else(PoisonError::into_inner);
        let key = key(kind, namespace, name);
        graph.uses(node, &key)
            || graph
                .volume_secrets
                .get(&key)
                .is_some_and(|volumes| volumes.iter().any(|volume| graph.uses_volume(node, volume)))
    }

    fn with_graph(&self, ask: impl FnOnce(&Graph) -> bool) -> bool {
        ask(&self.graph.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a node may. Says nothing (denied, no reason) about users that are no nodes.
    pub fn authorize(&self, request: &Attributes<'_>) -> Decision {
        if !request.user.is_node() {
            return Decision::deny("");
        }
        let Some(node) = request.user.node_name() else {
            let user = crate::attributes::quoted(&request.user.name);
            return Decision::deny(format!("unknown node for user {user}"));
        };
        let answer = if request.resource_request {
            self.resource(node, request)
        } else {
            None
        };
        match answer {
            Some(Ok(())) => Decision::allow(""),
            Some(Err(reason)) => Decision::deny(reason),
            None if self.rules.iter().any(|rule| rule.allows(request)) => Decision::allow(""),
            None => Decision::deny(""),
        }
    }

    /// `None`: the resource is not subdivided among nodes; their common rules decide.
    fn resource(&self, node: &str, request: &Attributes<'_>) -> Option<Result<(), String>> {
        let (namespace, name) = (request.namespace, request.name);
        let relation = |related: bool| {
            if name.is_empty() {
                Err("No Object name found".to_owned())
            } else if related {
                Ok(())
            } else {
                Err(format!("no relationship found between node '{node}' and this object"))
            }
        };
        let get = |related: &dyn Fn() -> bool| {
            if request.verb != "get" {
                Err("can only get individual resources of this type".to_owned())
            } else if !request.subresource.is_empty() {
                Err("cannot get subresource".to_owned())
            } else {
                relation(related())
            }
        };
        let read = |kind| {
            if !["get", "list", "watch"].contains(&request.verb) {
                Err("can only read resources of this type".to_owned())
            } else if !request.subresource.is_empty() {
                Err("cannot read subresource".to_owned())
            } else if namespace.is_empty() {
                Err("can only read namespaced object of this type".to_owned())
            } else {
                relation(self.related(node, kind, namespace, name))
            }
        };
        Some(match (request.group, request.resource) {
            ("", "secrets") => read(Referenced::Secret),
            ("", "configmaps") => read(Referenced::ConfigMap),
            ("", "persistentvolumeclaims") => {
                let related = || self.related(node, Referenced::Claim, namespace, name);
                if request.subresource != "status" {
                    get(&related)
                } else if ["update", "patch"].contains(&request.verb) {
                    relation(related())
                } else {
                    Err("can only get/update/patch this type".into())
                }
            }
            ("", "persistentvolumes") => get(&|| self.with_graph(|graph| graph.uses_volume(node, name))),
            ("resource.k8s.io", "resourceclaims") => {
                get(&|| self.related(node, Referenced::ResourceClaim, namespace, name))
            }
            ("storage.k8s.io", "volumeattachments") => {
                get(&|| self.with_graph(|graph| graph.attachments.get(name).is_some_and(|on| on == node)))
            }
            ("", "serviceaccounts") if request.verb == "get" && request.subresource.is_empty() => {
                read(Referenced::ServiceAccount)
            }
            ("", "serviceaccounts") => {
                if request.verb != "create" || name.is_empty() {
                    Err("can only create tokens for individual service accounts".into())
                } else if request.subresource != "token" {
                    Err("can only create token subresource of serviceaccount".into())
                } else {
                    relation(self.related(node, Referenced::ServiceAccount, namespace, name))
                }
            }
            ("coordination.k8s.io", "leases") => {
                own_object(node, request, "a node lease", "node lease", Some("kube-node-lease"))
            }
            ("storage.k8s.io", "csinodes") if !request.subresource.is_empty() => {
                Err("cannot authorize CSINode subresources".into())
            }
            ("storage.k8s.io", "csinodes") => own_object(node, request, "a CSINode", "CSINode", None),
            ("resource.k8s.io", "resourceslices") => self.slice(node, request, &relation),
            ("", "nodes") => own_node(node, request),
            ("", "pods") => self.pod(node, request, &relation),
            _ => return None,
        })
    }

    fn slice(
        &self,
        node: &str,
        request: &Attributes<'_>,
        relation: &dyn Fn(bool) -> Result<(), String>,
    ) -> Result<(), String> {
        if !request.subresource.is_empty() {
            return Err("cannot authorize ResourceSlice subresources".into());
        }
        match request.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => relation(self.with_graph(|graph| {
                graph.slices.get(request.name).is_some_and(|on| on == node)
            })),
            "watch" | "list" | "deletecollection" => selects(request, node, &["spec.nodeName"])
                .then_some(())
                .ok_or_else(|| {
                    "can only list/watch/deletecollection resourceslices with nodeName field selector".into()
                }),
            _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection".into()),
        }
    }

    fn pod(
        &self,
        node: &str,
        request: &Attributes<'_>,
        relation: &dyn Fn(bool) -> Result<(), String>,
    ) -> Result<(), String> {
        let ours = || {
            self.with_graph(|graph| {
                let key = (request.namespace.to_owned(), request.name.to_owned());
                graph.pods.get(&key).is_some_and(|pod| *pod.node == *node)
            })
        };
        match (request.subresource, request.verb) {
            ("", "get") => relation(ours()),
            ("", "list" | "watch") => {
                if selects(request, node, &["spec.nodeName"]) {
                    Ok(())
                } else if !request.name.is_empty() {
                    relation(ours())
                } else {
                    Err("can only list/watch pods with spec.nodeName field selector".into())
                }
            }
            // Mirror Pods, status and evictions: whose they are is for admission to see.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(String::new()),
        }
    }
}

/// Whether the request's field selector keeps it to this node.
fn selects(request: &Attributes<'_>, node: &str, fields: &[&str]) -> bool {
    request
        .field_equals
        .iter()
        .any(|(field, value)| fields.contains(field) && *value == node)
}

/// Objects named after the node. On create the name is not known yet: admission checks it.
fn own_object(
    node: &str,
    request: &Attributes<'_>,
    a: &str,
    noun: &str,
    namespace: Option<&str>,
) -> Result<(), String> {
    if !["get", "create", "update", "patch", "delete"].contains(&request.verb) {
        return Err(format!("can only get, create, update, patch, or delete {a}"));
    }
    if let Some(namespace) = namespace
        && request.namespace != namespace
    {
        return Err(format!("can only access leases in the {namespace:?} system namespace"));
    }
    if request.verb != "create" && request.name != node {
        return Err(format!(
            "can only access {noun} with the same name as the requesting node"
        ));
    }
    Ok(())
}

fn own_node(node: &str, request: &Attributes<'_>) -> Result<(), String> {
    match (request.subresource, request.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") => match request.name {
            name if name == node => Ok(()),
            "" if selects(request, node, &["metadata.name"]) => Ok(()),
            "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
            other => Err(format!("node '{node}' cannot read '{other}', only its own Node object")),
        },
        _ => Err(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::UserInfo;
    use serde_json::json;

    fn pod(name: &str, node: &str, spec: Value) -> Value {
        let mut pod = json!({"metadata": {"namespace": "web", "name": name}, "spec": spec});
        pod["spec"]["nodeName"] = node.into();
        pod
    }
    fn ask(graph: &NodeGraph, node: &str, verb: &str, group: &str, resource: &str, name: &str) -> Decision {
        let user = UserInfo::node(node);
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        graph.authorize(&Attributes {
            namespace: "web",
            subresource,
            name,
            ..Attributes::resource(&user, verb, group, resource)
        })
    }

    #[test]
    fn a_node_reads_what_its_pods_use_as_long_as_they_do() {
        let graph = NodeGraph::new();
        let spec = json!({
            "serviceAccountName": "robot",
            "volumes": [{"secret": {"secretName": "s"}}, {"configMap": {"name": "c"}}, {"persistentVolumeClaim": {"claimName": "d"}}],
        });
        let needs = [
            ("get", "", "secrets", "s"),
            ("watch", "", "configmaps", "c"),
            ("get", "", "persistentvolumeclaims", "d"),
            ("patch", "", "persistentvolumeclaims/status", "d"),
            ("create", "", "serviceaccounts/token", "robot"),
            ("get", "", "serviceaccounts", "robot"),
        ];
        let all = |node: &str| -> Vec<bool> {
            needs
                .iter()
                .map(|(verb, group, resource, name)| ask(&graph, node, verb, group, resource, name).allowed)
                .collect()
        };
        graph.apply("pods", &pod("a", "", spec.clone()));
        assert_eq!(all("n1"), [false; 6]);
        graph.apply("pods", &pod("a", "n1", spec.clone()));
        graph.apply("pods", &pod("b", "n1", spec.clone()));
        assert_eq!(all("n1"), [true; 6]);
        assert_eq!(all("n2"), [false; 6]);
        graph.remove("pods", "web", "a");
        assert_eq!(all("n1"), [true; 6]);
        graph.remove("pods", "web", "b");
        assert_eq!(all("n1"), [false; 6]);
        assert_eq!(
            ask(&graph, "n1", "get", "", "secrets", "s").reason,
            "no relationship found between node 'n1' and this object"
        );
        assert_eq!(
            ask(&graph, "n1", "list", "", "secrets", "").reason,
            "No Object name found"
        );
        let mut mirror = pod("m", "n1", spec);
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        graph.apply("pods", &mirror);
        assert_eq!(all("n1"), [false; 6]);
        assert!(ask(&graph, "n1", "get", "", "pods", "m").allowed);
        assert!(graph.graph.read().unwrap().users.is_empty());
    }

    #[test]
    fn volumes_are_reached_through_claims() {
        let graph = NodeGraph::new();
        let volume = json!({
            "metadata": {"name": "pv"},
            "spec": {"claimRef": {"namespace": "web", "name": "d"}, "csi": {"nodeStageSecretRef": {"namespace": "web", "name": "stage"}}},
        });
        graph.apply("persistentvolumes", &volume);
        let may = |node: &str| {
            (
                ask(&graph, node, "get", "", "persistentvolumes", "pv").allowed,
                ask(&graph, node, "get", "", "secrets", "stage").allowed,
            )
        };
        assert_eq!(may("n1"), (false, false));
        graph.apply(
            "pods",
            &pod(
                "a",
                "n1",
                json!({"volumes": [{"persistentVolumeClaim": {"claimName": "d"}}]}),
            ),
        );
        assert_eq!(may("n1"), (true, true));
        assert_eq!(may("n2"), (false, false));
        graph.remove("persistentvolumes", "", "pv");
        assert_eq!(may("n1"), (false, false));
        graph.apply(
            "volumeattachments",
            &json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}),
        );
        assert!(ask(&graph, "n1", "get", "storage.k8s.io", "volumeattachments", "va").allowed);
        assert!(!ask(&graph, "n2", "get", "storage.k8s.io", "volumeattachments", "va").allowed);
    }

    #[test]
    fn own_objects_and_common_rules() {
        let graph = NodeGraph::new();
        for (verb, group, resource, name, allowed) in [
            ("create", "", "nodes", "", true),
            ("get", "", "nodes", "n1", true),
            ("get", "", "nodes", "n2", false),
            ("delete", "", "nodes", "n1", false),
            ("patch", "", "nodes/status", "n1", true),
            ("create", "", "pods/eviction", "a", true),
            ("list", "", "pods", "", false),
            ("list", "", "services", "", true),
            ("create", "", "events", "", true),
            ("create", "certificates.k8s.io", "certificatesigningrequests", "", true),
            ("delete", "", "services", "x", false),
            ("get", "coordination.k8s.io", "leases", "n1", false),
            ("get", "storage.k8s.io", "csinodes", "n1", true),
            ("get", "storage.k8s.io", "csinodes", "n2", false),
        ] {
            assert_eq!(
                ask(&graph, "n1", verb, group, resource, name).allowed,
                allowed,
                "{verb} {resource} {name}"
            );
        }
        let user = UserInfo::node("n1");
        let lease = |name| Attributes {
            namespace: "kube-node-lease",
            name,
            ..Attributes::resource(&user, "update", "coordination.k8s.io", "leases")
        };
        assert!(graph.authorize(&lease("n1")).allowed && !graph.authorize(&lease("n2")).allowed);
        let mine = [("spec.nodeName", "n1")];
        let list = Attributes {
            field_equals: &mine,
            ..Attributes::resource(&user, "list", "", "pods")
        };
        assert!(graph.authorize(&list).allowed);
        let person = UserInfo::component("jane");
        assert_eq!(
            graph.authorize(&Attributes::resource(&person, "list", "", "pods")),
            Decision::deny("")
        );
        let nameless = UserInfo::node("");
        let refused = graph.authorize(&Attributes::resource(&nameless, "list", "", "pods"));
        assert_eq!(refused.reason, r#"unknown node for user "system:node:""#);
    }
}
