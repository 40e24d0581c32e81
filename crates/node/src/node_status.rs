//! The node's own object: registration, status and lease.
//!
//! The object is built by pure functions from what the machine and the runtime say; written when it differs from
//! what was written last, or when that was long ago, or when somebody else has written what is not so: a node that was
//! cut off comes back with its first heartbeat. The lease is the heartbeat.
//!
//! With a cloud provider outside, the node is born with a taint that the provider takes away, and what the provider says
//! of its addresses stays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node as ApiNode, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, Taint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_client::{EventType, Informer, Recorder, is_already_exists, is_conflict, is_not_found};
use sampan_runtime::{Image, Runtime, RuntimeStatus};
use sampan_tasks::Drain;
use serde_json::json;
use tokio::sync::watch;

use crate::devices::Devices;
use crate::pod::status::api_time;
use crate::{NodeConfig, machine};

const PROVIDED_IP: &str = "alpha.kubernetes.io/provided-node-ip";

/// What is scarce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

/// Annotations: where every node's local volumes are, and the address that was chosen, for a cloud provider to check.
pub fn annotations(config: &NodeConfig) -> BTreeMap<String, String> {
    let local = config.local_volumes.to_string_lossy().into_owned();
    let mut annotations = BTreeMap::from([(sampan_claims::local::DIRECTORY.to_owned(), local)]);
    if config.registration.external_cloud && config.registration.address_given {
        annotations.insert(PROVIDED_IP.to_owned(), config.host_ips().join(","));
    }
    annotations
}

/// Labels every node has.
pub fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let arch = machine::architecture();
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    labels.extend(config.labels.iter().cloned());
    labels
}

/// What the node is created with.
fn spec(config: &NodeConfig) -> Option<NodeSpec> {
    let registration = &config.registration;
    let mut taints = registration.taints.clone();
    if registration.external_cloud {
        taints.push(Taint {
            key: "node.cloudprovider.kubernetes.io/uninitialized".into(),
            value: Some("true".into()),
            effect: "NoSchedule".into(),
            time_added: None,
        });
    }
    let spec = NodeSpec {
        provider_id: registration.provider_id.clone(),
        taints: (!taints.is_empty()).then_some(taints),
        ..NodeSpec::default()
    };
    (spec != NodeSpec::default()).then_some(spec)
}

/// What the API says of the node, if its conditions there are not those that were written last.
fn displaced(told: Option<&ApiNode>, known: &NodeStatus) -> Option<NodeStatus> {
    let told = told?.status.as_ref()?;
    let stands = |condition: &NodeCondition| {
        let mut conditions = told.conditions.iter().flatten();
        conditions.any(|other| other.type_ == condition.type_ && other.status == condition.status)
    };
    let all = known.conditions.iter().flatten().all(stands);
    (!all).then(|| told.clone())
}

/// Why the node is not ready, or `None`.
pub fn not_ready(runtime: &Result<RuntimeStatus, String>) -> Option<String> {
    match runtime {
        Err(error) => Some(format!("container runtime is down: {error}")),
        Ok(status) => {
            let failed: Vec<String> = status
                .conditions
                .iter()
                .filter(|condition| !condition.status)
                .map(|condition| {
                    format!(
                        "container runtime not ready: {}=false reason:{} message:{}",
                        condition.kind, condition.reason, condition.message
                    )
                })
                .collect();
            (!failed.is_empty()).then(|| failed.join(", "))
        }
    }
}

/// The four conditions, keeping the times of those that did not change.
pub fn conditions(
    old: &[NodeCondition],
    pressure: Pressure,
    not_ready: Option<String>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let pressed = |kind: &'static str, pressed: bool, yes: [&'static str; 2], no: [&'static str; 2]| {
        let [reason, message] = if pressed { yes } else { no };
        (kind, pressed, reason, message.to_owned())
    };
    let ready = match not_ready {
        None => (
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        Some(why) => ("Ready", false, "KubeletNotReady", why),
    };
    [
        pressed(
            "MemoryPressure",
            pressure.memory,
            [
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ],
            ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
        ),
        pressed(
            "DiskPressure",
            pressure.disk,
            ["KubeletHasDiskPressure", "kubelet has disk pressure"],
            ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
        ),
        pressed(
            "PIDPressure",
            pressure.pids,
            ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
            ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
        ),
        ready,
    ]
    .into_iter()
    .map(|(kind, status, reason, message)| {
        let status = if status { "True" } else { "False" };
        let since = old
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == status)
            .and_then(|condition| condition.last_transition_time.clone())
            .unwrap_or_else(|| api_time(now));
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_heartbeat_time: Some(api_time(now)),
            last_transition_time: Some(since),
        }
    })
    .collect()
}

/// The largest images, at most fifty, as upstream lists them.
pub fn image_list(images: &[Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&Image> = images.iter().collect();
    images.sort_by(|a, b| (b.size, &a.id).cmp(&(a.size, &b.id)));
    images
        .into_iter()
        .take(50)
        .map(|image| {
            let names = image.repo_digests.iter().chain(&image.repo_tags).take(5);
            ContainerImage {
                names: Some(names.cloned().collect()),
                size_bytes: i64::try_from(image.size).ok(),
            }
        })
        .collect()
}

/// Everything that is known of the node now.
async fn build(
    config: &NodeConfig,
    devices: &Devices,
    runtime: &Arc<dyn Runtime>,
    pressure: Pressure,
    old: &NodeStatus,
) -> NodeStatus {
    let state = runtime.status().await.map_err(|error| error.to_string());
    let version = match runtime.version().await {
        Ok(version) => format!("{}://{}", version.runtime_name, version.runtime_version),
        Err(_) => format!("{}://unknown", crate::RUNTIME_NAME),
    };
    let images = runtime.list_images().await.unwrap_or_default();
    let disk = machine::disk(&config.data_dir).unwrap_or_default();
    let (mut capacity, mut allocatable) = machine::resources(
        machine::cpus(),
        machine::memory(),
        disk,
        &machine::hugepages(),
        config.max_pods,
    );
    for (name, all, present) in devices.amounts() {
        capacity.insert(name.to_owned(), all);
        allocatable.insert(name.to_owned(), present);
    }
    let mut addresses: Vec<NodeAddress> = config
        .host_ips()
        .into_iter()
        .map(|address| NodeAddress {
            type_: "InternalIP".into(),
            address,
        })
        .collect();
    addresses.push(NodeAddress {
        type_: "Hostname".into(),
        address: config.name.clone(),
    });
    let addresses = match &old.addresses {
        Some(provided) if config.registration.external_cloud && !provided.is_empty() => provided.clone(),
        _ => addresses,
    };
    let old_conditions = old.conditions.as_deref().unwrap_or_default();
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(
            old_conditions,
            pressure,
            not_ready(&state),
            Timestamp::now(),
        )),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: config.port.into(),
            }),
        }),
        images: Some(image_list(&images)),
        node_info: Some(machine::info(&config.version, &version)),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(true),
        }),
        // The one handler, which Pods without a RuntimeClass use.
        runtime_handlers: Some(vec![NodeRuntimeHandler {
            name: Some(String::new()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(true),
                user_namespaces: Some(state.as_ref().is_ok_and(|status| status.user_namespaces)),
            }),
        }]),
        ..NodeStatus::default()
    }
}

/// Without the times of heartbeats: what decides whether there is news.
fn timeless(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    status
}

/// What is wanted and not there.
fn missing<'a>(
    wanted: &'a BTreeMap<String, String>,
    have: Option<&BTreeMap<String, String>>,
) -> BTreeMap<&'a String, &'a String> {
    let there = |key: &String| have.and_then(|have| have.get(key));
    wanted.iter().filter(|(key, value)| there(key) != Some(value)).collect()
}

/// Keeps the node's object and lease.
pub struct NodeKeeper {
    pub devices: Arc<Devices>,
    pub config: NodeConfig,
    pub client: kube::Client,
    pub runtime: Arc<dyn Runtime>,
    pub recorder: Recorder,
    pub pressure: watch::Receiver<Pressure>,
    /// The node's own object as the API has it.
    pub seen: Informer<ApiNode>,
}

impl NodeKeeper {
    /// Creates the node's object, or takes over the one that is there. Retries until it is done or drained.
    pub async fn register(&self, drain: &Drain) -> Option<ApiNode> {
        let mut delay = Duration::from_millis(200);
        loop {
            match self.try_register().await {
                Ok(node) => return Some(node),
                Err(error) => {
                    tracing::warn!(node = self.config.name, %error, "the node could not be registered, will retry");
                }
            }
            drain.until(tokio::time::sleep(delay)).await?;
            delay = (delay * 2).min(Duration::from_secs(7));
        }
    }

    async fn try_register(&self) -> Result<ApiNode, kube::Error> {
        let api: Api<ApiNode> = Api::all(self.client.clone());
        let (wanted, annotations) = (labels(&self.config), annotations(&self.config));
        let found = match api.get_opt(&self.config.name).await? {
            Some(found) => found,
            None => {
                let status = build(
                    &self.config,
                    &self.devices,
                    &self.runtime,
                    Pressure::default(),
                    &NodeStatus::default(),
                )
                .await;
                let node = ApiNode {
                    metadata: ObjectMeta {
                        name: Some(self.config.name.clone()),
                        labels: Some(wanted.clone()),
                        annotations: Some(annotations.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: spec(&self.config),
                    status: Some(status),
                };
                match api.create(&PostParams::default(), &node).await {
                    Ok(created) => return Ok(created),
                    Err(error) if is_already_exists(&error) => api.get(&self.config.name).await?,
                    Err(error) => return Err(error),
                }
            }
        };
        let labels = missing(&wanted, found.metadata.labels.as_ref());
        let annotations = missing(&annotations, found.metadata.annotations.as_ref());
        if labels.is_empty() && annotations.is_empty() {
            return Ok(found);
        }
        let patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
        api.patch(&self.config.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    }

    /// Writes the status when it changed and the lease when it is due, until drained.
    pub async fn run(mut self, registered: ApiNode, drain: Drain) {
        let uid = registered.metadata.uid.clone().unwrap_or_default();
        let mut known = registered.status.unwrap_or_default();
        let mut written: Option<tokio::time::Instant> = None;
        let mut lease: Option<Lease> = None;
        let mut ticks = tokio::time::interval(self.config.lease_period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.started() => return,
                _ = ticks.tick() => {
                    match self.renew(lease.take(), &uid).await {
                        Ok(renewed) => lease = Some(renewed),
                        Err(error) => tracing::warn!(%error, "the node's lease could not be renewed"),
                    }
                }
                changed = self.pressure.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let pressure = *self.pressure.borrow_and_update();
            if let Some(told) = displaced(self.seen.get("", &self.config.name).as_deref(), &known) {
                known = told;
            }
            let fresh = build(&self.config, &self.devices, &self.runtime, pressure, &known).await;
            let due = written.is_none_or(|at| at.elapsed() >= self.config.status_report_period);
            if !due && timeless(&fresh) == timeless(&known) {
                continue;
            }
            match self.write(&fresh, &known).await {
                Ok(()) => {
                    self.announce(&known, &fresh, &uid);
                    known = fresh;
                    written = Some(tokio::time::Instant::now());
                }
                Err(error) if is_not_found(&error) => {
                    // Somebody deleted the node: it is still here.
                    if let Some(node) = self.register(&drain).await {
                        known = node.status.unwrap_or_default();
                        written = None;
                    }
                }
                Err(error) => tracing::warn!(%error, "the node's status could not be written"),
            }
        }
    }

    fn announce(&self, old: &NodeStatus, new: &NodeStatus, uid: &str) {
        for condition in new.conditions.iter().flatten() {
            let before = old
                .conditions
                .iter()
                .flatten()
                .find(|other| other.type_ == condition.type_);
            if before.is_some_and(|before| before.status == condition.status) {
                continue;
            }
            let reason = match (condition.type_.as_str(), condition.status.as_str()) {
                ("Ready", "True") => "NodeReady",
                ("Ready", _) => "NodeNotReady",
                _ => condition.reason.as_deref().unwrap_or_default(),
            };
            let about = k8s_openapi::api::core::v1::ObjectReference {
                kind: Some("Node".into()),
                name: Some(self.config.name.clone()),
                uid: Some(uid.to_owned()),
                ..Default::default()
            };
            let message = format!("Node {} status is now: {reason}", self.config.name);
            self.recorder.event_about(about, EventType::Normal, reason, message);
        }
    }

    async fn write(&self, fresh: &NodeStatus, known: &NodeStatus) -> Result<(), kube::Error> {
        let api: Api<ApiNode> = Api::all(self.client.clone());
        let mut status = serde_json::to_value(fresh).map_err(kube::Error::SerdeError)?;
        if fresh.addresses != known.addresses {
            // Two addresses of one type would be merged into one: say all of them anew.
            let list = status.get_mut("addresses").and_then(|list| list.as_array_mut());
            if let Some(list) = list {
                list.insert(0, json!({"$patch": "replace"}));
            }
        } else if let Some(status) = status.as_object_mut() {
            status.remove("addresses");
        }
        let patch = Patch::Strategic(json!({"status": status}));
        api.patch_status(&self.config.name, &PatchParams::default(), &patch)
            .await
            .map(drop)
    }

    async fn renew(&self, lease: Option<Lease>, uid: &str) -> Result<Lease, kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let name = &self.config.name;
        let known = match lease {
            Some(lease) => Some(lease),
            None => api.get_opt(name).await?,
        };
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = known else {
            let fresh = Lease {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some("kube-node-lease".into()),
                    owner_references: Some(vec![OwnerReference {
                        api_version: "v1".into(),
                        kind: "Node".into(),
                        name: name.clone(),
                        uid: uid.to_owned(),
                        ..OwnerReference::default()
                    }]),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(name.clone()),
                    lease_duration_seconds: Some(40),
                    renew_time: Some(now),
                    ..LeaseSpec::default()
                }),
            };
            return api.create(&PostParams::default(), &fresh).await;
        };
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(name.clone());
        spec.lease_duration_seconds = Some(40);
        spec.renew_time = Some(now);
        match api.replace(name, &PostParams::default(), &lease).await {
            Err(error) if is_conflict(&error) || is_not_found(&error) => {
                // Changed or removed by somebody: look again at once.
                let current = api.get_opt(name).await?;
                match current {
                    Some(current) => {
                        lease.metadata = current.metadata;
                        api.replace(name, &PostParams::default(), &lease).await
                    }
                    None => {
                        lease.metadata.resource_version = None;
                        lease.metadata.uid = None;
                        api.create(&PostParams::default(), &lease).await
                    }
                }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampan_runtime::RuntimeCondition;

    #[test]
    fn a_provider_outside_is_waited_for() {
        let mut config = NodeConfig::new("n", vec!["192.0.2.7".parse().unwrap()], "/nowhere");
        assert_eq!(spec(&config), None);
        config.registration.external_cloud = true;
        config.registration.provider_id = Some("cloud://n".into());
        let born = spec(&config).unwrap();
        assert_eq!(born.provider_id.as_deref(), Some("cloud://n"));
        let taint = &born.taints.unwrap()[0];
        assert_eq!(
            (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()),
            (
                "node.cloudprovider.kubernetes.io/uninitialized",
                Some("true"),
                "NoSchedule"
            )
        );
        assert!(
            !annotations(&config).contains_key(PROVIDED_IP),
            "nobody chose the address"
        );
        config.registration.address_given = true;
        assert_eq!(annotations(&config)[PROVIDED_IP], "192.0.2.7");
        let mut have = annotations(&config);
        have.insert(PROVIDED_IP.to_owned(), "192.0.2.8".to_owned());
        assert_eq!(missing(&annotations(&config), Some(&have)).len(), 1);
        assert!(missing(&annotations(&config), Some(&annotations(&config))).is_empty());
    }

    #[test]
    fn what_others_say_of_the_node_is_corrected() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let known = NodeStatus {
            conditions: Some(conditions(&[], Pressure::default(), None, at(10))),
            ..NodeStatus::default()
        };
        let mut node = ApiNode {
            status: Some(known.clone()),
            ..ApiNode::default()
        };
        assert_eq!(displaced(None, &known), None);
        assert_eq!(displaced(Some(&node), &known), None);
        // Further conditions are other people's.
        let told = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
        told.push(NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "False".into(),
            ..NodeCondition::default()
        });
        assert_eq!(displaced(Some(&node), &known), None);
        for condition in node.status.as_mut().unwrap().conditions.iter_mut().flatten() {
            condition.status = "Unknown".into();
        }
        let told = displaced(Some(&node), &known).unwrap();
        // It has been ready since now, not since before it was cut off.
        let fresh = conditions(told.conditions.as_ref().unwrap(), Pressure::default(), None, at(99));
        let ready = fresh.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!(ready.last_transition_time, Some(api_time(at(99))));
    }

    #[test]
    fn conditions_keep_their_times() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let first = conditions(&[], Pressure::default(), None, at(10));
        assert_eq!(first.len(), 4);
        let pressed = Pressure {
            memory: true,
            ..Pressure::default()
        };
        let second = conditions(&first, pressed, Some("no runtime".into()), at(20));
        let since = |list: &[NodeCondition], kind: &str| {
            let found = list.iter().find(|condition| condition.type_ == kind).unwrap();
            (
                found.status.clone(),
                found.last_transition_time.clone().unwrap().0.as_second(),
            )
        };
        assert_eq!(since(&second, "MemoryPressure"), ("True".into(), 20));
        assert_eq!(since(&second, "DiskPressure"), ("False".into(), 10));
        assert_eq!(since(&second, "Ready"), ("False".into(), 20));
    }

    #[test]
    fn readiness_follows_the_runtime() {
        let with = |status| {
            Ok(RuntimeStatus {
                conditions: vec![RuntimeCondition {
                    kind: "NetworkReady".into(),
                    status,
                    reason: "R".into(),
                    message: "m".into(),
                }],
                ..RuntimeStatus::default()
            })
        };
        assert_eq!(not_ready(&with(true)), None);
        assert!(
            not_ready(&with(false))
                .unwrap()
                .contains("NetworkReady=false reason:R message:m")
        );
        assert!(not_ready(&Err("gone".into())).unwrap().contains("gone"));
    }
}
