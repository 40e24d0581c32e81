//! Where the Pods of a Service can be reached: EndpointSlices, and the older Endpoints.
//!
//! Both controllers work per Service on the same view of its Pods ([`backends`]); they differ in how they write it down.

mod hints;
mod legacy;
mod mirror;
mod reconcile;
mod slices;
mod trigger;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use sampan_client::{Change, Informer, Key, WorkQueue};

use crate::{add_paced, pods};

pub(crate) use legacy::start as start_legacy;
pub(crate) use mirror::start as start_mirror;
pub(crate) use slices::start as start_slices;

/// One Pod behind a Service.
#[derive(Clone, Debug)]
struct Backend {
    pod: Arc<Pod>,
    addresses: Vec<IpAddr>,
    ready: bool,
    terminating: bool,
    hostname: Option<String>,
    ports: Vec<Port>,
}

/// A port of a backend, as the Service names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Port {
    name: String,
    protocol: String,
    number: i32,
    app_protocol: Option<String>,
}

fn selector(spec: &ServiceSpec) -> Option<Selector> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    Some(labels.clone().into_iter().collect())
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

fn publishes_not_ready(spec: &ServiceSpec) -> bool {
    spec.publish_not_ready_addresses == Some(true)
}

/// The Pods behind a Service, by name. `None` when the Service selects none by definition.
fn backends(service: &Service, pods: &Informer<Pod>) -> Option<Vec<Backend>> {
    let spec = service.spec.as_ref()?;
    let selector = selector(spec)?;
    let namespace = service.namespace().unwrap_or_default();
    let name = service.name_any();
    let found = pods
        .list_namespace(&namespace)
        .into_iter()
        .filter(|pod| selector.matches(pod.labels()) && !pods::is_terminal(pod))
        .filter_map(|pod| {
            let addresses = addresses(&pod);
            if addresses.is_empty() {
                return None;
            }
            let pod_spec = pod.spec.as_ref();
            let hostname = pod_spec
                .filter(|spec| spec.subdomain.as_ref() == Some(&name))
                .and_then(|spec| spec.hostname.clone())
                .filter(|hostname| !hostname.is_empty());
            Some(Backend {
                addresses,
                ready: pods::is_ready(&pod),
                terminating: pods::is_terminating(&pod),
                hostname,
                ports: ports(spec, &pod),
                pod,
            })
        })
        .collect();
    Some(found)
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let mut found: Vec<IpAddr> = status
        .pod_ips
        .iter()
        .flatten()
        .filter_map(|ip| ip.ip.parse().ok())
        .collect();
    if found.is_empty() {
        found.extend(status.pod_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    found
}

fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<Port> {
    let mut found: Vec<Port> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port).to_owned(),
                number: target(port, pod)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    found.sort();
    found
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

/// The port number in the Pod that a Service's port leads to; a name is looked up among the containers' ports.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|known| known.name.as_ref() == Some(name) && known.protocol.as_deref().unwrap_or("TCP") == protocol(port))
        .map(|known| known.container_port)
}

/// Queues the Services that a change of a Pod may concern.
fn wake_services(queue: &WorkQueue<Key>, services: &Informer<Service>, pods: &Informer<Pod>, change: &Change<Pod>) {
    if let Change::Modified { old, new } = change
        && !matters(old, new)
    {
        return;
    }
    let namespace = change.object().namespace().unwrap_or_default();
    for service in services.list_namespace(&namespace) {
        let Some(selector) = service.spec.as_ref().and_then(selector) else {
            continue;
        };
        let selected = |pod: &Pod| selector.matches(pod.labels());
        if selected(change.object()) || change.old().is_some_and(|old| selected(old)) {
            add_paced(queue, Key::of(service.as_ref()), pods.len_namespace(&namespace));
        }
    }
}

/// Queues the Services with Pods on a node that came, went or moved: endpoints say where they are.
fn wake_for_node(queue: &WorkQueue<Key>, services: &Informer<Service>, all: &Informer<Pod>, change: &Change<Node>) {
    let zone = |node: &Node| node.labels().get(hints::ZONE).cloned();
    if let Change::Modified { old, new } = change
        && zone(old) == zone(new)
    {
        return;
    }
    for pod in all.by_index(pods::BY_NODE, &change.object().name_any()) {
        wake_services(queue, services, all, &Change::Added(pod));
    }
}

/// Whether a change of a Pod can change an endpoint.
fn matters(old: &Pod, new: &Pod) -> bool {
    let place = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        (
            spec.and_then(|spec| spec.node_name.clone()),
            spec.and_then(|spec| spec.hostname.clone()),
            spec.and_then(|spec| spec.subdomain.clone()),
        )
    };
    pods::is_ready(old) != pods::is_ready(new)
        || pods::is_terminating(old) != pods::is_terminating(new)
        || pods::is_terminal(old) != pods::is_terminal(new)
        || addresses(old) != addresses(new)
        || old.metadata.labels != new.metadata.labels
        || place(old) != place(new)
}

#[cfg(test)]
mod tests;
