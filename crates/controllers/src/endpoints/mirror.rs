//! Endpoints that people or other controllers keep by hand, mirrored into EndpointSlices, because those are what the
//! proxy and DNS read.
//!
//! Only Services without a selector are mirrored, and no Endpoints that say they do not want it or that a leader
//! election lives in. Subsets are first put into their canonical form: a slice for each address family of those
//! addresses that have the same ports, of at most [`MOST`] each. What does not fit, or is no address, is told in an event.
//!
//! Different from upstream: a slice's name follows from its family and ports, so that making one twice is one object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort as LegacyPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use sampan_client::{
    EventType, Informer, Key, WorkQueue, is_already_exists, is_terminating_namespace, or_absent, owner,
};

use super::slices::SERVICE;
use crate::{Context, SyncError};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const US: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const BY_SERVICE: &str = "mirrored service";
/// Annotations that are the Endpoints' own.
const OWN: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];
/// The most addresses of a subset that are mirrored.
const MOST: usize = 1000;

struct Controller {
    context: Context,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
}

pub(crate) fn start(context: Context) {
    let services = context.informers.of::<Service>();
    let endpoints = context.informers.of::<Endpoints>();
    let slices = context.informers.of::<EndpointSlice>();
    slices.add_index(BY_SERVICE, |slice| {
        mirrored(slice).map(|key| key.to_string()).into_iter().collect()
    });
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    services.on_change(move |change| changed.add(Key::of(change.object().as_ref())));
    let changed = queue.clone();
    endpoints.on_change(move |change| changed.add(Key::of(change.object().as_ref())));
    let changed = queue.clone();
    slices.on_change(move |change| {
        if let Some(key) = mirrored(change.object()) {
            changed.add(key);
        }
    });
    let ready = {
        let (services, endpoints, slices) = (services.clone(), endpoints.clone(), slices.clone());
        async move {
            services.synced().await;
            endpoints.synced().await;
            slices.synced().await;
        }
    };
    let controller = Arc::new(Controller {
        context: context.clone(),
        services,
        endpoints,
        slices,
    });
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&key).await }
    });
}

/// The Service whose mirror a slice is.
fn mirrored(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    let service = labels
        .get(SERVICE)
        .filter(|_| labels.get(MANAGED_BY).is_some_and(|by| by == US))?;
    Some(Key::new(slice.namespace().unwrap_or_default(), service))
}

fn wants_mirror(endpoints: &Endpoints, service: &Service) -> bool {
    let selects = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref())
        .is_some_and(|selector| !selector.is_empty());
    !selects
        && endpoints.labels().get(SKIP).is_none_or(|skip| skip != "true")
        && !endpoints.annotations().contains_key(LEADER)
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let (service, endpoints) = (self.services.get_key(key), self.endpoints.get_key(key));
        let source = service
            .zip(endpoints)
            .filter(|(service, endpoints)| wants_mirror(endpoints, service))
            .map(|(_, endpoints)| endpoints);
        let mut mirror = source.as_deref().map(Mirror::of).unwrap_or_default();
        if let Some(endpoints) = source.as_deref() {
            self.complain(endpoints, &mirror);
        }
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let mut superfluous = Vec::new();
        for known in self.slices.by_index(BY_SERVICE, &key.to_string()) {
            let ports = known.ports.iter().flatten().map(Port::of).collect();
            let Some(slice) = mirror.slices.remove(&(known.address_type.clone(), ports)) else {
                superfluous.push(known.name_any());
                continue;
            };
            let (has, wants) = (&known.metadata, &slice.metadata);
            if known.endpoints != slice.endpoints
                || has.labels != wants.labels
                || has.annotations.clone().unwrap_or_default() != wants.annotations.clone().unwrap_or_default()
                || has.owner_references != wants.owner_references
            {
                let mut changed = EndpointSlice::clone(&known);
                changed.endpoints = slice.endpoints;
                changed.metadata.labels = slice.metadata.labels;
                changed.metadata.annotations = slice.metadata.annotations;
                changed.metadata.owner_references = slice.metadata.owner_references;
                or_absent(api.replace(&known.name_any(), &PostParams::default(), &changed).await)?;
            }
        }
        let stays = source.is_some_and(|endpoints| endpoints.metadata.deletion_timestamp.is_none());
        for slice in mirror.slices.values().filter(|_| stays) {
            match api.create(&PostParams::default(), slice).await {
                Err(error) if is_already_exists(&error) || is_terminating_namespace(&error) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
        for name in superfluous {
            or_absent(api.delete(&name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }

    /// Tells of addresses that have no mirror.
    fn complain(&self, endpoints: &Endpoints, mirror: &Mirror) {
        let say = |reason, message| {
            let recorder = &self.context.recorder;
            recorder.event(endpoints, EventType::Warning, reason, message);
        };
        if mirror.invalid > 0 {
            let count = mirror.invalid;
            say(
                "InvalidIPAddress",
                format!("Skipped {count} invalid IP addresses when mirroring to EndpointSlices"),
            );
        }
        if mirror.skipped > mirror.invalid {
            let count = mirror.skipped;
            say(
                "TooManyAddressesToMirror",
                format!(
                    "A max of {MOST} addresses can be mirrored to EndpointSlices per Endpoints subset. {count} addresses were skipped"
                ),
            );
        }
    }
}

/// A port as slices are told apart by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Port {
    name: String,
    number: Option<i32>,
    protocol: String,
    application: Option<String>,
}

impl Port {
    fn of(port: &EndpointPort) -> Self {
        Port {
            name: port.name.clone().unwrap_or_default(),
            number: port.port,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            application: port.app_protocol.clone(),
        }
    }

    fn of_legacy(port: &LegacyPort) -> Self {
        Port {
            name: port.name.clone().unwrap_or_default(),
            number: Some(port.port),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            application: port.app_protocol.clone(),
        }
    }

    fn of_slice(&self) -> EndpointPort {
        EndpointPort {
            name: Some(self.name.clone()),
            port: self.number,
            protocol: Some(self.protocol.clone()),
            app_protocol: self.application.clone(),
        }
    }
}

type Ports = BTreeSet<Port>;

/// The slices that Endpoints should have, by family and ports, and what has no place in them.
#[derive(Debug, Default)]
struct Mirror {
    slices: BTreeMap<(String, Ports), EndpointSlice>,
    /// What is no address.
    invalid: usize,
    /// All that is not mirrored.
    skipped: usize,
}

impl Mirror {
    fn of(endpoints: &Endpoints) -> Self {
        let mut mirror = Mirror::default();
        for (ports, addresses) in canonical(endpoints.subsets.as_deref().unwrap_or_default()) {
            let mut added = 0;
            for (address, ready) in &addresses {
                if added == MOST {
                    break;
                }
                let Ok(ip) = address.ip.parse::<IpAddr>() else {
                    mirror.invalid += 1;
                    continue;
                };
                added += 1;
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                let slices = mirror.slices.entry((family.to_owned(), ports.clone()));
                let slice = slices.or_insert_with(|| empty(endpoints, family, &ports));
                slice
                    .endpoints
                    .get_or_insert_default()
                    .push(endpoint(ip, address, *ready));
            }
            mirror.skipped += addresses.len() - added;
        }
        mirror
    }
}

/// Which addresses (and whether they are ready) have which ports: each address and each port once. The ready ones come
/// first.
fn canonical(subsets: &[EndpointSubset]) -> BTreeMap<Ports, Vec<(&EndpointAddress, bool)>> {
    type Address<'a> = (&'a str, Option<&'a str>);
    let mut known: BTreeMap<Address<'_>, &EndpointAddress> = BTreeMap::new();
    // Without ports there are addresses still.
    let mut by_port: BTreeMap<Option<Port>, BTreeMap<Address<'_>, bool>> = BTreeMap::new();
    for subset in subsets {
        let ports: Vec<Option<Port>> = match subset.ports.as_deref() {
            None | Some([]) => vec![None],
            Some(ports) => ports.iter().map(|port| Some(Port::of_legacy(port))).collect(),
        };
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready) {
            let target = address.target_ref.as_ref().and_then(|target| target.uid.as_deref());
            let id = (address.ip.as_str(), target);
            known.entry(id).or_insert(address);
            for port in &ports {
                let addresses = by_port.entry(port.clone()).or_default();
                // Who says not ready is believed.
                addresses.entry(id).and_modify(|was| *was &= ready).or_insert(ready);
            }
        }
    }
    let mut by_addresses: BTreeMap<BTreeMap<Address<'_>, bool>, Ports> = BTreeMap::new();
    for (port, addresses) in by_port {
        by_addresses.entry(addresses).or_default().extend(port);
    }
    let mut all: BTreeMap<Ports, Vec<(&EndpointAddress, bool)>> = BTreeMap::new();
    for (addresses, ports) in by_addresses {
        let found = addresses
            .iter()
            .filter_map(|(id, ready)| Some((*known.get(id)?, *ready)));
        all.entry(ports).or_default().extend(found);
    }
    for addresses in all.values_mut() {
        addresses.sort_by_key(|(_, ready)| !ready);
    }
    all
}

/// A slice of the Endpoints without addresses yet.
fn empty(endpoints: &Endpoints, family: &str, ports: &Ports) -> EndpointSlice {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), US.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !OWN.contains(&name.as_str()));
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name(&endpoints.name_any(), family, ports)),
            namespace: endpoints.namespace(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![owner::controller_ref(endpoints)]),
            ..Default::default()
        },
        address_type: family.into(),
        endpoints: Some(Vec::new()),
        ports: Some(ports.iter().map(Port::of_slice).collect()),
    }
}

/// The Endpoints' name and a hash (FNV-1a) of what tells its slices apart.
fn name(of: &str, family: &str, ports: &Ports) -> String {
    let text = format!("{family}{ports:?}");
    let hash = text.bytes().fold(0x811c_9dc5u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    // A Service's name has at most 63 characters, that of Endpoints without one does not matter.
    format!("{of}-{hash:08x}")
}

fn endpoint(ip: IpAddr, address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn mirror(subsets: Value) -> Mirror {
        let endpoints = json!({"metadata": {"name": "db", "namespace": "n", "uid": "u", "labels": {"a": "b"},
            "annotations": {"team": "x", OWN[0]: "now", OWN[1]: "{}"}}, "subsets": subsets});
        Mirror::of(&serde_json::from_value(endpoints).unwrap())
    }

    /// Family, port numbers, and addresses with whether they are ready.
    fn shape(mirror: &Mirror) -> Value {
        let slices = mirror.slices.values().map(|slice| {
            let ports = slice.ports.iter().flatten().map(|port| port.port).collect::<Vec<_>>();
            let endpoints = slice.endpoints.iter().flatten();
            let endpoints: Vec<_> = endpoints
                .map(|endpoint| json!([endpoint.addresses[0], endpoint.conditions.as_ref().unwrap().ready]))
                .collect();
            json!([slice.address_type, ports, endpoints])
        });
        slices.collect()
    }

    #[test]
    fn subsets_become_slices() {
        let (one, two) = (json!({"ip": "10.0.0.1"}), json!({"ip": "10.0.0.2"}));
        let six = json!({"ip": "fd00::1"});
        let (http, dns) = (
            json!({"name": "http", "port": 80}),
            json!({"name": "dns", "port": 53, "protocol": "UDP"}),
        );
        let cases = [
            (json!([]), json!([])),
            (
                json!([{"addresses": [one, six], "notReadyAddresses": [two], "ports": [http]}]),
                json!([
                    ["IPv4", [80], [["10.0.0.1", true], ["10.0.0.2", false]]],
                    ["IPv6", [80], [["fd00::1", true]]]
                ]),
            ),
            // The same addresses behind two ports, said apart.
            (
                json!([{"addresses": [one], "ports": [http]}, {"addresses": [one], "ports": [dns]}]),
                json!([["IPv4", [53, 80], [["10.0.0.1", true]]]]),
            ),
            // Said twice, and once that it is not ready.
            (
                json!([{"addresses": [one], "ports": [http]}, {"notReadyAddresses": [one], "ports": [http]}]),
                json!([["IPv4", [80], [["10.0.0.1", false]]]]),
            ),
            (
                json!([{"addresses": [one]}]),
                json!([["IPv4", [], [["10.0.0.1", true]]]]),
            ),
        ];
        for (subsets, expected) in cases {
            assert_eq!(shape(&mirror(subsets.clone())), expected, "{subsets}");
        }
        let mirror = mirror(json!([{"addresses": [one], "ports": [http]}]));
        let metadata = &mirror.slices.values().next().unwrap().metadata;
        assert_eq!(metadata.annotations, Some([("team".to_owned(), "x".to_owned())].into()));
        assert_eq!(metadata.labels.as_ref().unwrap()["a"], "b");
    }

    #[test]
    fn what_has_no_place_is_counted() {
        let many: Vec<Value> = (0..1010)
            .map(|at| json!({"ip": format!("10.0.{}.{}", at / 250, at % 250)}))
            .collect();
        let ready =
            mirror(json!([{"addresses": many, "notReadyAddresses": [{"ip": "10.9.9.9"}], "ports": [{"port": 1}]}]));
        assert_eq!((ready.invalid, ready.skipped), (0, 11));
        assert_eq!(
            ready.slices.values().next().unwrap().endpoints.as_ref().unwrap().len(),
            MOST
        );
        let wrong = mirror(json!([{"addresses": [{"ip": "somewhere"}, {"ip": "10.0.0.1"}], "ports": [{"port": 1}]}]));
        assert_eq!((wrong.invalid, wrong.skipped, wrong.slices.len()), (1, 1, 1));
    }
}
