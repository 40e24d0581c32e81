//! Endpoints that people or other controllers keep by hand, mirrored into EndpointSlices, because those are what the
//! proxy and DNS read.
//!
//! Only Services without a selector are mirrored, and no Endpoints that say they do not want it or that a leader
//! election lives in.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use sampan_client::{Informer, Key, WorkQueue, is_already_exists, is_terminating_namespace, or_absent, owner};

use super::reconcile::FULL;
use super::slices::SERVICE;
use crate::{Context, SyncError};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const US: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const BY_SERVICE: &str = "mirrored service";

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
        let wanted = match (self.services.get_key(key), self.endpoints.get_key(key)) {
            (Some(service), Some(endpoints)) if wants_mirror(&endpoints, &service) => wanted(&endpoints),
            _ => BTreeMap::new(),
        };
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), &key.namespace);
        for known in self.slices.by_index(BY_SERVICE, &key.to_string()) {
            let name = known.name_any();
            let Some(slice) = wanted.get(&name) else {
                or_absent(api.delete(&name, &DeleteParams::default()).await)?;
                continue;
            };
            if known.endpoints != slice.endpoints
                || known.ports != slice.ports
                || known.metadata.labels != slice.metadata.labels
            {
                let mut changed = EndpointSlice::clone(&known);
                changed.endpoints = slice.endpoints.clone();
                changed.ports = slice.ports.clone();
                changed.metadata.labels = slice.metadata.labels.clone();
                or_absent(api.replace(&name, &PostParams::default(), &changed).await)?;
            }
        }
        for (name, slice) in &wanted {
            if self.slices.get(&key.namespace, name).is_some() {
                continue;
            }
            match api.create(&PostParams::default(), slice).await {
                Err(error) if is_already_exists(&error) || is_terminating_namespace(&error) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// The slices that Endpoints should have. Their names count up, so that making one twice is one object.
fn wanted(endpoints: &Endpoints) -> BTreeMap<String, EndpointSlice> {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), US.into());
    let mut found = BTreeMap::new();
    let mut number = 0;
    for subset in endpoints.subsets.iter().flatten() {
        for family in ["IPv4", "IPv6"] {
            let all = addresses(subset, family);
            for some in all.chunks(FULL) {
                let name = format!("{}-mirror-{number}", endpoints.name_any());
                number += 1;
                let slice = EndpointSlice {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: endpoints.namespace(),
                        labels: Some(labels.clone()),
                        owner_references: Some(vec![owner::controller_ref(endpoints)]),
                        ..Default::default()
                    },
                    address_type: family.into(),
                    endpoints: Some(some.to_vec()),
                    ports: Some(ports(subset)),
                };
                found.insert(name, slice);
            }
        }
    }
    found
}

fn addresses(subset: &EndpointSubset, family: &str) -> Vec<Endpoint> {
    let make = |address: &EndpointAddress, ready: bool| Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    };
    let of_family = |address: &&EndpointAddress| address.ip.contains(':') == (family == "IPv6");
    let ready = subset.addresses.iter().flatten().filter(of_family);
    let not_ready = subset.not_ready_addresses.iter().flatten().filter(of_family);
    ready
        .map(|address| make(address, true))
        .chain(not_ready.map(|address| make(address, false)))
        .collect()
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten();
    ports
        .map(|port| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}
