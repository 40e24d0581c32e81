//! The cluster's name server as a Service: `kube-system/kube-dns`, with an EndpointSlice for each node that answers.
//!
//! Every node of ours has a name server on its bridge, so where they are follows from the Node objects, and one
//! publisher beside the API tells it for all of them: no node needs the right to say where names are resolved. Each
//! endpoint is meant for its own node (a hint, and `trafficDistribution: PreferSameNode` for people to see), so Pods
//! ask their own node and go elsewhere only when it is told to be out of service. A slice belongs to its Node and goes
//! with it.
//!
//! A Service of that name that somebody else made with a selector (CoreDNS, say) is left alone, and so are its slices.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, DeleteParams, PostParams};
use sampan_client::{
    Change, Informer, Informers, Selection, WorkQueue, is_already_exists, is_not_found, or_absent, retry_on_conflict,
    run_controller,
};
use sampan_tasks::{OnExit, Tasks};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const US: &str = "sampan-dns";
const SAME_NODE: &str = "PreferSameNode";
/// (port name, protocol)
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];

struct Publisher {
    client: kube::Client,
    address: IpAddr,
    services: Informer<Service>,
    nodes: Informer<Node>,
    /// Ours alone.
    slices: Informer<EndpointSlice>,
}

/// Keeps the Service and the slices of all nodes until the tasks drain. `address` is the Service's.
pub fn publish(client: kube::Client, informers: &Informers, tasks: &Tasks, address: IpAddr) {
    let publisher = Arc::new(Publisher {
        client,
        address,
        services: informers.of(),
        nodes: informers.of(),
        slices: informers.with(Selection::labels(format!("{MANAGED_BY}={US}"))),
    });
    let queue: WorkQueue<String> = WorkQueue::default();
    let changed = queue.clone();
    publisher.nodes.on_change(move |change| {
        let same = |old: &Arc<Node>| slice(old) == slice(change.object());
        if matches!(change, Change::Deleted(_)) || !change.old().is_some_and(same) {
            changed.add(change.object().metadata.name.clone().unwrap_or_default());
        }
    });
    let changed = queue.clone();
    publisher.slices.on_change(move |change| {
        if let Some(node) = node_of(change.object()) {
            changed.add(node.to_owned());
        }
    });
    let drain = tasks.drain();
    tasks.spawn("cluster-dns-endpoints", OnExit::Critical, async move {
        let synced = async {
            publisher.services.synced().await;
            publisher.nodes.synced().await;
            publisher.slices.synced().await;
        };
        if drain.until(synced).await.is_some() {
            let sync = |node: String| {
                let publisher = Arc::clone(&publisher);
                async move { publisher.sync(&node).await }
            };
            run_controller("cluster-dns-endpoints", queue, 2, sync, drain).await;
        }
    });
}

impl Publisher {
    /// Brings the slices of one node up to date.
    async fn sync(&self, node: &str) -> kube::Result<()> {
        let object = self.nodes.get("", node);
        let mut wanted = object.as_ref().and_then(|object| slice(object));
        if wanted.is_some() && !self.ensure_service().await? {
            wanted = None;
        }
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        let have = self.slices.list();
        let have = have.iter().filter(|slice| node_of(slice) == Some(node));
        let mut current = false;
        for slice in have {
            match &wanted {
                Some(wanted) if slice.metadata.name == wanted.metadata.name => current = is_current(slice, wanted),
                _ => {
                    let name = slice.metadata.name.as_deref().unwrap_or_default();
                    or_absent(api.delete(name, &DeleteParams::default()).await)?;
                }
            }
        }
        match wanted {
            Some(wanted) if !current => write(&api, wanted).await,
            _ => Ok(()),
        }
    }

    /// Makes the Service, or says of ours what it did not say before. False: it is somebody else's.
    async fn ensure_service(&self) -> kube::Result<bool> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        let Some(found) = self.services.get(NAMESPACE, NAME) else {
            return match api.create(&PostParams::default(), &service(self.address)).await {
                Err(error) if !is_already_exists(&error) => Err(error),
                _ => Ok(true),
            };
        };
        let spec = found.spec.clone().unwrap_or_default();
        if spec.selector.is_some_and(|selector| !selector.is_empty()) {
            return Ok(false);
        }
        if spec.traffic_distribution.is_none() {
            retry_on_conflict(|| async {
                let mut service = api.get(NAME).await?;
                service.spec.get_or_insert_default().traffic_distribution = Some(SAME_NODE.into());
                api.replace(NAME, &PostParams::default(), &service).await.map(|_| ())
            })
            .await?;
        }
        Ok(true)
    }
}

async fn write(api: &Api<EndpointSlice>, wanted: EndpointSlice) -> kube::Result<()> {
    let name = wanted.metadata.name.clone().unwrap_or_default();
    retry_on_conflict(|| async {
        match api.get(&name).await {
            Err(error) if is_not_found(&error) => api.create(&PostParams::default(), &wanted).await.map(|_| ()),
            Err(error) => Err(error),
            Ok(before) if is_current(&before, &wanted) => Ok(()),
            Ok(before) => {
                let mut update = wanted.clone();
                update.metadata.resource_version = before.metadata.resource_version;
                api.replace(&name, &PostParams::default(), &update).await.map(|_| ())
            }
        }
    })
    .await
}

fn is_current(have: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    have.endpoints == wanted.endpoints
        && have.ports == wanted.ports
        && have.metadata.labels == wanted.metadata.labels
        && have.metadata.owner_references == wanted.metadata.owner_references
}

fn node_of(slice: &EndpointSlice) -> Option<&str> {
    slice.endpoints.as_ref()?.first()?.node_name.as_deref()
}

fn labels(more: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    let common = [
        ("k8s-app", NAME),
        ("kubernetes.io/cluster-service", "true"),
        ("kubernetes.io/name", "CoreDNS"),
    ];
    Some(
        common
            .iter()
            .chain(more)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    )
}

fn service(address: IpAddr) -> Service {
    let port = |(name, protocol): (&str, &str)| ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: 53,
        target_port: Some(IntOrString::Int(53)),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(NAMESPACE.into()),
            labels: labels(&[]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.to_string()),
            ports: Some(PORTS.into_iter().map(port).collect()),
            traffic_distribution: Some(SAME_NODE.into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Where a node's name server listens: on the bridge, as the gateway of its Pods. `None`: it has no range yet, or is
/// not of our making.
fn listener(node: &Node) -> Option<Ipv4Addr> {
    let version = &node.status.as_ref()?.node_info.as_ref()?.kubelet_version;
    let ours = version
        .split_once('+')
        .is_some_and(|(_, build)| build.starts_with("sampan"));
    let spec = node.spec.as_ref().filter(|_| ours)?;
    let several = spec.pod_cidrs.iter().flatten();
    let range = several
        .chain(&spec.pod_cidr)
        .find_map(|range| range.parse::<Ipv4Net>().ok())?;
    range.hosts().next()
}

/// Whether anybody has heard of the node of late. One that is not ready for Pods may well answer questions.
fn is_alive(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut ready = conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition.type_ == "Ready");
    ready.next().is_some_and(|ready| ready.status != "Unknown")
}

fn slice(node: &Node) -> Option<EndpointSlice> {
    let listener = listener(node)?;
    let (name, uid) = (node.metadata.name.clone()?, node.metadata.uid.clone()?);
    let port = |(name, protocol): (&str, &str)| EndpointPort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: Some(53),
        ..EndpointPort::default()
    };
    let alive = is_alive(node);
    let own_name = format!("{NAME}-{name}");
    Some(EndpointSlice {
        metadata: ObjectMeta {
            // The longest of nodes' names leaves no room for ours.
            name: Some(if own_name.len() <= 253 {
                own_name
            } else {
                format!("{NAME}-{uid}")
            }),
            namespace: Some(NAMESPACE.into()),
            labels: labels(&[("kubernetes.io/service-name", NAME), (MANAGED_BY, US)]),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.clone(),
                uid,
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![listener.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(alive),
                serving: Some(alive),
                terminating: Some(false),
            }),
            hints: Some(EndpointHints {
                for_nodes: Some(vec![ForNode { name: name.clone() }]),
                ..EndpointHints::default()
            }),
            node_name: Some(name),
            ..Endpoint::default()
        }]),
        ports: Some(PORTS.into_iter().map(port).collect()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sampan_client::testing::{FakeApi, eventually};
    use serde_json::json;

    use super::*;

    fn node(name: &str, range: &str, version: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"podCIDR": range},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {
                    "kubeletVersion": version, "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": "",
                },
            },
        }))
        .unwrap()
    }

    /// Each slice as `name address ready`.
    fn slices(api: &FakeApi, names: &[&str]) -> Vec<String> {
        let shown = |name: &&str| {
            let slice = api.get::<EndpointSlice>(NAMESPACE, name)?;
            let endpoint = slice.endpoints?.into_iter().next()?;
            let hint = endpoint.hints?.for_nodes?.first()?.name.clone();
            assert_eq!(Some(hint), endpoint.node_name);
            Some(format!(
                "{name} {} {}",
                endpoint.addresses[0], endpoint.conditions?.ready?
            ))
        };
        names.iter().filter_map(shown).collect()
    }

    #[tokio::test]
    async fn every_node_of_ours_is_an_endpoint_for_itself() {
        let (api, tasks) = (FakeApi::new(), Tasks::new());
        let client = api.client("dns");
        publish(
            client.clone(),
            &Informers::new(client, &tasks),
            &tasks,
            [10, 96, 0, 10].into(),
        );
        let names = ["kube-dns-a", "kube-dns-b", "kube-dns-other"];
        let until = |wanted: &'static [&'static str]| {
            let api = &api;
            eventually("the slices are as wanted", move || async move {
                (slices(api, &names) == wanted).then_some(())
            })
        };
        api.create(&node("other", "10.244.9.0/24", "v1.36.0"));
        api.create(&node("a", "10.244.0.0/24", "v1.36.0+sampan0.1.0"));
        until(&["kube-dns-a 10.244.0.1 true"]).await;
        let made = api.get::<Service>(NAMESPACE, NAME).unwrap().spec.unwrap();
        assert_eq!(made.cluster_ip.as_deref(), Some("10.96.0.10"));
        assert_eq!(made.traffic_distribution.as_deref(), Some(SAME_NODE));

        api.create(&node("b", "10.244.1.0/24", "v1.36.0+sampan0.1.0"));
        until(&["kube-dns-a 10.244.0.1 true", "kube-dns-b 10.244.1.1 true"]).await;
        api.change::<Node>("", "a", |node| {
            node.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "Unknown".into();
        });
        until(&["kube-dns-a 10.244.0.1 false", "kube-dns-b 10.244.1.1 true"]).await;
        // Somebody removes one; a node goes.
        api.remove::<EndpointSlice>(NAMESPACE, "kube-dns-a");
        until(&["kube-dns-a 10.244.0.1 false", "kube-dns-b 10.244.1.1 true"]).await;
        api.remove::<Node>("", "a");
        until(&["kube-dns-b 10.244.1.1 true"]).await;
        // Somebody else provides the name server.
        api.change::<Service>(NAMESPACE, NAME, |service| {
            service.spec.as_mut().unwrap().selector = Some([("k8s-app".to_owned(), "coredns".to_owned())].into());
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        api.change::<Node>("", "b", |node| {
            node.spec.as_mut().unwrap().pod_cidr = Some("10.244.2.0/24".into())
        });
        until(&[]).await;
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, 0);
    }
}
