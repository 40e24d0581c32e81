//! EndpointSlices: at most a hundred endpoints each, kept as they are as far as possible.
//!
//! After its own writes the controller waits for its cache to show them before it acts on a Service again, so that a
//! slow watch never makes a slice twice. A slice that would go while another is to be made becomes that other, so what a
//! Service has is never empty in between.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use sampan_client::{Change, EventType, Informer, Key, WorkQueue, is_terminating_namespace, or_absent, owner};
use tokio::time::Instant;

use super::hints::{self, Routing};
use super::reconcile::identity;
use super::trigger::{self, Triggers};
use super::{Backend, Port, backends, is_headless, publishes_not_ready, reconcile, wake_for_node, wake_services};
use crate::metrics::{
    ENDPOINTS_ADDED, ENDPOINTS_DESIRED, ENDPOINTS_REMOVED, SLICE_CHANGES, SLICE_SYNCS, SLICES, SLICES_CHANGED,
    SLICES_DESIRED,
};
use crate::pods;
use crate::{Context, SyncError};

pub(super) const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const US: &str = "endpointslice-controller.k8s.io";
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
const BY_SERVICE: &str = "service";

/// What the cache must show before a Service is looked at again: slice name → at least this version, or gone; and since
/// when that is waited for.
type Awaited = HashMap<Key, HashMap<String, (Option<u64>, Instant)>>;

/// What was told last of topology-aware hints, by Service and family: `Ok` that they are on.
type Told = HashMap<(Key, &'static str), Result<(), String>>;

/// After this long a write that never showed counts as seen (its slice was deleted while the watch was cut).
const PATIENCE: Duration = Duration::from_secs(30);

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    queue: WorkQueue<Key>,
    awaited: Mutex<Awaited>,
    triggers: Triggers,
    told: Mutex<Told>,
    desired: Mutex<Desired>,
}

/// How many endpoints, in how few slices, there ought to be: of each Service and together.
#[derive(Default)]
struct Desired {
    of: HashMap<Key, (usize, usize)>,
    endpoints: usize,
    slices: usize,
}

/// The index of Services whose endpoints zones share: a node that changes may change all of theirs.
const SHARED: &str = "endpoints shared by zones";

fn service_key(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(MANAGED_BY).is_some_and(|by| by == US);
    let service = labels.get(SERVICE).filter(|_| ours)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), service))
}

pub(crate) fn start(context: Context) {
    let services = context.informers.of::<Service>();
    let pods = context.informers.of::<Pod>();
    let nodes = context.informers.of::<Node>();
    let slices = context.informers.of::<EndpointSlice>();
    slices.add_index(BY_SERVICE, |slice| {
        service_key(slice).map(|key| key.to_string()).into_iter().collect()
    });
    let queue: WorkQueue<Key> = WorkQueue::default();
    let controller = Arc::new(Controller {
        context: context.clone(),
        services: services.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        slices: slices.clone(),
        queue: queue.clone(),
        awaited: Mutex::default(),
        triggers: Triggers::default(),
        told: Mutex::default(),
        desired: Mutex::default(),
    });
    services.add_index(SHARED, |service| {
        let shared = hints::routing(service) == Routing::Shared;
        shared.then(String::new).into_iter().collect()
    });
    pods.add_index(pods::BY_NODE, pods::node_keys);
    let (changed, known, all) = (queue.clone(), services.clone(), pods.clone());
    nodes.on_change(move |change| {
        wake_for_node(&changed, &known, &all, change);
        let weight = |node: &Node| hints::weight(node);
        let resized = match change {
            Change::Modified { old, new } => weight(old) != weight(new),
            Change::Added(node) | Change::Deleted(node) => weight(node).is_some(),
        };
        if resized {
            for service in known.by_index(SHARED, "") {
                changed.add(Key::of(service.as_ref()));
            }
        }
    });
    let (changed, this) = (queue.clone(), Arc::clone(&controller));
    services.on_change(move |change| {
        let key = Key::of(change.object().as_ref());
        if matches!(change, Change::Deleted(_)) {
            this.lock_awaited().remove(&key);
            this.triggers.forget(&key);
            this.lock_told().retain(|(service, _), _| *service != key);
            this.desire(&key, None);
        }
        changed.add(key);
    });
    let (changed, known, all) = (queue.clone(), services.clone(), pods.clone());
    pods.on_change(move |change| wake_services(&changed, &known, &all, change));
    let (changed, metrics, number) = (queue.clone(), context.metrics().clone(), AtomicUsize::new(0));
    slices.on_change(move |change| {
        let ours = |slice: &EndpointSlice| service_key(slice).is_some();
        let was = match change {
            Change::Deleted(slice) => ours(slice),
            _ => change.old().is_some_and(|old| ours(old)),
        };
        let is = !matches!(change, Change::Deleted(_)) && ours(change.object());
        if was != is {
            let now = match is {
                true => number.fetch_add(1, Ordering::Relaxed) + 1,
                false => number.fetch_sub(1, Ordering::Relaxed).saturating_sub(1),
            };
            metrics.set(&SLICES, &[], now as f64);
        }
        for slice in change.old().into_iter().chain([change.object()]) {
            if let Some(key) = service_key(slice) {
                changed.add(key);
            }
        }
    });
    let ready = async move {
        services.synced().await;
        pods.synced().await;
        nodes.synced().await;
        slices.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move {
            let done = controller.sync(&key).await;
            let result = match &done {
                Ok(true) => "success",
                Ok(false) => "stale",
                Err(_) => "error",
            };
            controller.context.metrics().add(&SLICE_SYNCS, &[result], 1);
            done.map(|_| ())
        }
    });
}

/// What makes slices different: endpoints of one slice share both.
type Group = (&'static str, Vec<Port>);

impl Controller {
    fn lock_awaited(&self) -> std::sync::MutexGuard<'_, Awaited> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the cache shows our last writes. If not, its next change brings us back.
    fn cache_is_current(&self, key: &Key) -> bool {
        let mut all = self.lock_awaited();
        let Some(awaited) = all.get_mut(key) else {
            return true;
        };
        awaited.retain(|name, (version, since)| {
            if since.elapsed() > PATIENCE {
                return false;
            }
            let cached = self.slices.get(&key.namespace, name);
            match (cached, version) {
                (Some(cached), Some(version)) => self::version(&cached) < *version,
                (Some(_), None) => true,
                // Not seen yet, or made and deleted since: only the first is to be waited for.
                (None, Some(_)) => true,
                (None, None) => false,
            }
        });
        awaited.is_empty()
    }

    fn wrote(&self, key: &Key, name: &str, version: Option<u64>) {
        self.lock_awaited()
            .entry(key.clone())
            .or_default()
            .insert(name.to_owned(), (version, Instant::now()));
    }

    fn lock_told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: the cache is behind, and nothing could be done.
    async fn sync(&self, key: &Key) -> Result<bool, SyncError> {
        let Some(service) = self.services.get_key(key) else {
            return Ok(true);
        };
        let Some(spec) = &service.spec else {
            return Ok(true);
        };
        if !self.cache_is_current(key) {
            self.queue.add_after(key.clone(), PATIENCE);
            return Ok(false);
        }
        let Some(backends) = backends(&service, &self.pods) else {
            return Ok(true);
        };
        let selected = backends.iter().map(|backend| &*backend.pod);
        let since = self.triggers.since(key, &service, selected);
        let mut existing: HashMap<Group, Vec<EndpointSlice>> = HashMap::new();
        let mut foreign = Vec::new();
        for slice in self.slices.by_index(BY_SERVICE, &key.to_string()) {
            if slice.metadata.deletion_timestamp.is_some() {
                continue;
            }
            // One of a Service that had the name before goes; the garbage collector may be about to take it.
            if owned_by(&slice, &service) {
                existing
                    .entry(group_of(&slice))
                    .or_default()
                    .push(EndpointSlice::clone(&slice));
            } else {
                foreign.push(EndpointSlice::clone(&slice));
            }
        }
        let routing = hints::routing(&service);
        let mut wanted: HashMap<Group, Vec<Endpoint>> = HashMap::new();
        for family in families(spec) {
            for backend in &backends {
                if let Some(mut endpoint) = self.endpoint(spec, backend, family) {
                    endpoint.hints = hints::near(routing, &endpoint);
                    wanted
                        .entry((family, backend.ports.clone()))
                        .or_default()
                        .push(endpoint);
                }
            }
            self.share(key, &service, routing, family, &existing, &mut wanted);
            // A Service without endpoints has an empty slice: clients see that it is known.
            if !wanted.keys().any(|group| group.0 == family) {
                wanted.insert((family, Vec::new()), Vec::new());
            }
        }
        let least = |endpoints: &Vec<Endpoint>| endpoints.len().div_ceil(reconcile::FULL).max(1);
        let number = wanted.values().map(Vec::len).sum();
        self.desire(key, Some((number, wanted.values().map(least).sum())));
        let writes = plan(&service, existing, wanted, foreign);
        let (metrics, number) = (self.context.metrics(), writes.number());
        metrics.observe(&ENDPOINTS_ADDED, &[], writes.added as f64);
        metrics.observe(&ENDPOINTS_REMOVED, &[], writes.removed as f64);
        let topology = if routing == Routing::Shared { "Auto" } else { "Disabled" };
        let distribution = spec.traffic_distribution.as_deref().unwrap_or_default();
        metrics.observe(&SLICES_CHANGED, &[topology, distribution], number as f64);
        self.write(key, &service, writes, since).await?;
        Ok(true)
    }

    /// Notes what there ought to be for a Service; nothing of one that is gone.
    fn desire(&self, key: &Key, wanted: Option<(usize, usize)>) {
        let mut desired = self.desired.lock().unwrap_or_else(PoisonError::into_inner);
        // The Service may have gone meanwhile: then this came before, or will come after.
        let wanted = wanted.filter(|_| self.services.get_key(key).is_some());
        let before = match wanted {
            Some(wanted) => desired.of.insert(key.clone(), wanted),
            None => desired.of.remove(key),
        };
        if before == wanted {
            return;
        }
        let (old, new) = (before.unwrap_or_default(), wanted.unwrap_or_default());
        desired.endpoints = (desired.endpoints + new.0).saturating_sub(old.0);
        desired.slices = (desired.slices + new.1).saturating_sub(old.1);
        let metrics = self.context.metrics();
        metrics.set(&ENDPOINTS_DESIRED, &[], desired.endpoints as f64);
        metrics.set(&SLICES_DESIRED, &[], desired.slices as f64);
    }

    /// Hints for zones that share endpoints, where the Service asks for that, and an event where that changed.
    fn share(
        &self,
        key: &Key,
        service: &Service,
        routing: Routing,
        family: &'static str,
        existing: &HashMap<Group, Vec<EndpointSlice>>,
        wanted: &mut HashMap<Group, Vec<Endpoint>>,
    ) {
        let slot = (key.clone(), family);
        let (mut told, now) = if routing == Routing::Shared {
            let slices = existing
                .iter()
                .filter(|(group, _)| group.0 == family)
                .flat_map(|(_, slices)| slices);
            let hinted = |endpoint: &Endpoint| {
                let zones = endpoint.hints.as_ref()?.for_zones.as_ref()?;
                Some((identity(endpoint), zones.first()?.name.clone()))
            };
            let before = slices
                .flat_map(|slice| slice.endpoints.iter().flatten())
                .filter_map(hinted)
                .collect();
            let of_family = wanted.iter_mut().filter(|(group, _)| group.0 == family);
            let endpoints = of_family.flat_map(|(_, endpoints)| endpoints).collect();
            let nodes = self.nodes.list();
            let zones = hints::zones(nodes.iter().map(|node| &**node));
            (self.lock_told(), Some(hints::share(endpoints, &before, zones.as_ref())))
        } else {
            (self.lock_told(), None)
        };
        let was = match &now {
            Some(now) => told.insert(slot, now.clone()),
            None => told.remove(&slot),
        };
        drop(told);
        if was == now {
            return;
        }
        let (kind, reason, message) = match (&was, &now) {
            (_, Some(Ok(()))) => (EventType::Normal, "TopologyAwareHintsEnabled", hints::ENABLED),
            (_, Some(Err(why))) => (EventType::Warning, "TopologyAwareHintsDisabled", why.as_str()),
            (Some(Ok(())), None) => (EventType::Warning, "TopologyAwareHintsDisabled", hints::DISABLED),
            _ => return,
        };
        let message = format!("{message}, addressType: {family}");
        self.context.recorder.event(service, kind, reason, message);
    }

    async fn write(
        &self,
        key: &Key,
        service: &Service,
        writes: Writes,
        since: Option<jiff::Timestamp>,
    ) -> Result<(), SyncError> {
        // The garbage collector is about to take what a Service on its way out has.
        let create = writes
            .create
            .into_iter()
            .filter(|_| service.metadata.deletion_timestamp.is_none());
        for mut slice in create {
            trigger::annotate(&mut slice, since);
            self.create(key, &slice).await?;
        }
        for mut slice in writes.update {
            trigger::annotate(&mut slice, since);
            self.update(key, &slice).await?;
        }
        for slice in writes.delete {
            self.delete(key, &slice).await?;
        }
        Ok(())
    }

    fn api(&self, key: &Key) -> Api<EndpointSlice> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    async fn create(&self, key: &Key, slice: &EndpointSlice) -> Result<(), SyncError> {
        match self.api(key).create(&PostParams::default(), slice).await {
            Ok(made) => {
                self.wrote(key, &made.name_any(), Some(version(&made)));
                self.context.metrics().add(&SLICE_CHANGES, &["create"], 1);
                Ok(())
            }
            Err(error) if is_terminating_namespace(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn update(&self, key: &Key, slice: &EndpointSlice) -> Result<(), SyncError> {
        let name = slice.name_any();
        let written = self.api(key).replace(&name, &PostParams::default(), slice).await?;
        self.wrote(key, &name, Some(version(&written)));
        self.context.metrics().add(&SLICE_CHANGES, &["update"], 1);
        Ok(())
    }

    async fn delete(&self, key: &Key, slice: &EndpointSlice) -> Result<(), SyncError> {
        let name = slice.name_any();
        or_absent(self.api(key).delete(&name, &DeleteParams::default()).await)?;
        self.wrote(key, &name, None);
        self.context.metrics().add(&SLICE_CHANGES, &["delete"], 1);
        Ok(())
    }

    /// `None`: the Pod has no address of the family, or its node is not known; what is on no node may not be there.
    fn endpoint(&self, spec: &ServiceSpec, backend: &Backend, family: &str) -> Option<Endpoint> {
        let addresses = backend.addresses.iter().filter(|ip| family_of(ip) == family);
        let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
        let pod = &backend.pod;
        let name = Some(pods::node_name(pod).to_owned()).filter(|name| !name.is_empty());
        let node = name.as_ref().and_then(|name| self.nodes.get("", name));
        if addresses.is_empty() || (node.is_none() && !publishes_not_ready(spec)) {
            return None;
        }
        let zone = node.and_then(|node| node.labels().get(hints::ZONE).filter(|zone| !zone.is_empty()).cloned());
        Some(Endpoint {
            addresses,
            conditions: Some(EndpointConditions {
                ready: Some(publishes_not_ready(spec) || (backend.ready && !backend.terminating)),
                serving: Some(backend.ready),
                terminating: Some(backend.terminating),
            }),
            hostname: backend.hostname.clone(),
            node_name: name,
            zone,
            target_ref: Some(target(pod)),
            ..Default::default()
        })
    }
}

/// What is to be written for a Service.
#[derive(Debug, Default)]
struct Writes {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<EndpointSlice>,
    /// How many endpoints come and go.
    added: usize,
    removed: usize,
}

impl Writes {
    fn number(&self) -> usize {
        self.create.len() + self.update.len() + self.delete.len()
    }
}

fn owned_by(slice: &EndpointSlice, service: &Service) -> bool {
    let owners = slice.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| {
        owner.kind == "Service"
            && owner.api_version == "v1"
            && owner.uid == service.metadata.uid.as_deref().unwrap_or_default()
    })
}

/// From what there is to what there ought to be.
fn plan(
    service: &Service,
    mut existing: HashMap<Group, Vec<EndpointSlice>>,
    wanted: HashMap<Group, Vec<Endpoint>>,
    foreign: Vec<EndpointSlice>,
) -> Writes {
    let labels = labels(service);
    let mut writes = Writes::default();
    for (group, endpoints) in wanted {
        let mut slices = existing.remove(&group).unwrap_or_default();
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let empty = endpoints.is_empty();
        let mut plan = reconcile::plan(slices, endpoints);
        writes.added += plan.added;
        writes.removed += plan.removed;
        if empty && plan.keep.is_empty() {
            match plan.delete.pop() {
                Some(slice) => plan.update.push((slice, Vec::new())),
                None => plan.create.push(Vec::new()),
            }
        }
        // A kept slice may carry labels of the Service that have changed.
        for slice in plan.keep {
            if slice.metadata.labels.as_ref() != Some(&labels) {
                let endpoints = slice.endpoints.clone().unwrap_or_default();
                plan.update.push((slice, endpoints));
            }
        }
        writes.create.extend(
            plan.create
                .into_iter()
                .map(|some| new_slice(service, &group, &labels, some)),
        );
        writes
            .update
            .extend(plan.update.into_iter().map(|(mut slice, endpoints)| {
                slice.endpoints = Some(endpoints);
                slice.metadata.labels = Some(labels.clone());
                slice
            }));
        writes.delete.extend(plan.delete);
    }
    // Groups that nothing belongs to any more.
    writes.delete.extend(existing.into_values().flatten());
    writes.delete.retain_mut(|old| {
        let place = writes
            .create
            .iter()
            .position(|new| new.address_type == old.address_type);
        let Some(new) = place.map(|place| writes.create.swap_remove(place)) else {
            return true;
        };
        old.endpoints = new.endpoints;
        old.ports = new.ports;
        old.metadata.labels = new.metadata.labels;
        writes.update.push(std::mem::take(old));
        false
    });
    writes.delete.extend(foreign);
    writes
}

pub(super) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

fn version(slice: &EndpointSlice) -> u64 {
    let version = slice.metadata.resource_version.as_deref();
    version.and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(super) fn family_of(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The address types of a Service.
pub(super) fn families(spec: &ServiceSpec) -> Vec<&'static str> {
    let known = |text: &String| if text == "IPv6" { "IPv6" } else { "IPv4" };
    let mut found: Vec<_> = spec.ip_families.iter().flatten().map(known).collect();
    found.dedup();
    if found.is_empty() && is_headless(spec) {
        return vec!["IPv4", "IPv6"];
    }
    if found.is_empty() {
        let address: Option<IpAddr> = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
        found.push(address.as_ref().map_or("IPv4", family_of));
    }
    found
}

fn group_of(slice: &EndpointSlice) -> Group {
    let family = if slice.address_type == "IPv6" { "IPv6" } else { "IPv4" };
    let mut ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            number: port.port.unwrap_or(0),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    (family, ports)
}

/// The labels of a Service's slices: its own, and those that say whose they are.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(is_headless) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), US.into());
    labels
}

fn new_slice(
    service: &Service,
    group: &Group,
    labels: &BTreeMap<String, String>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let ports = group
        .1
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.clone()),
            port: Some(port.number),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.namespace(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![owner::controller_ref(service)]),
            ..Default::default()
        },
        address_type: group.0.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}
