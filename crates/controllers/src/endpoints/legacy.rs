//! Endpoints, the older form: one object per Service, at most a thousand addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service, ServiceSpec};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use sampan_client::{Change, Informer, Key, WorkQueue, is_already_exists, is_terminating_namespace, or_absent};

use super::slices::{HEADLESS, families, family_of, target};
use super::trigger::{self, Triggers};
use super::{Backend, Port, backends, is_headless, publishes_not_ready, wake_services};
use crate::pods;
use crate::{Context, SyncError};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const US: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const CAPACITY: usize = 1000;

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    triggers: Triggers,
}

pub(crate) fn start(context: Context) {
    let services = context.informers.of::<Service>();
    let pods = context.informers.of::<Pod>();
    let endpoints = context.informers.of::<Endpoints>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    services.on_change(move |change| changed.add(Key::of(change.object().as_ref())));
    let (changed, known, all) = (queue.clone(), services.clone(), pods.clone());
    pods.on_change(move |change| wake_services(&changed, &known, &all, change));
    let changed = queue.clone();
    endpoints.on_change(move |change| {
        // At the start every object of ours is looked at: its Service may have gone while nobody watched.
        let ours = change.object().labels().contains_key(MANAGED_BY);
        if ours || matches!(change, Change::Deleted(_)) {
            changed.add(Key::of(change.object().as_ref()));
        }
    });
    let ready = {
        let (services, pods, endpoints) = (services.clone(), pods.clone(), endpoints.clone());
        async move {
            services.synced().await;
            pods.synced().await;
            endpoints.synced().await;
        }
    };
    let controller = Arc::new(Controller {
        context: context.clone(),
        services,
        pods,
        endpoints,
        triggers: Triggers::default(),
    });
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&key).await }
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let cached = self.endpoints.get_key(key);
        let Some(service) = self.services.get_key(key) else {
            self.triggers.forget(key);
            // Endpoints without our label belong to somebody else.
            if cached.is_some_and(|found| found.labels().get(MANAGED_BY).is_some_and(|by| by == US)) {
                or_absent(api.delete(&key.name, &DeleteParams::default()).await)?;
            }
            return Ok(());
        };
        let (Some(spec), Some(backends)) = (&service.spec, backends(&service, &self.pods)) else {
            return Ok(());
        };
        let selected = backends.iter().map(|backend| &*backend.pod);
        let since = self.triggers.since(key, &service, selected);
        let (subsets, truncated) = subsets(spec, &backends);
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        if is_headless(spec) {
            labels.insert(HEADLESS.into(), String::new());
        }
        labels.insert(MANAGED_BY.into(), US.into());
        let over = |endpoints: &mut Endpoints| {
            if truncated {
                endpoints
                    .annotations_mut()
                    .insert(OVER_CAPACITY.into(), "truncated".into());
            } else if endpoints.metadata.annotations.is_some() {
                endpoints.annotations_mut().remove(OVER_CAPACITY);
            }
            trigger::annotate(endpoints, since);
        };
        let Some(cached) = cached else {
            let mut endpoints = Endpoints {
                metadata: ObjectMeta {
                    name: Some(key.name.clone()),
                    namespace: Some(key.namespace.clone()),
                    labels: Some(labels),
                    ..Default::default()
                },
                subsets: Some(subsets).filter(|subsets| !subsets.is_empty()),
            };
            over(&mut endpoints);
            return match api.create(&PostParams::default(), &endpoints).await {
                Err(error) if is_already_exists(&error) || is_terminating_namespace(&error) => Ok(()),
                Err(error) => Err(error.into()),
                Ok(_) => Ok(()),
            };
        };
        let same = cached.subsets.as_deref().unwrap_or_default() == subsets
            && cached.metadata.labels.as_ref() == Some(&labels)
            && cached.annotations().contains_key(OVER_CAPACITY) == truncated;
        if same {
            return Ok(());
        }
        let mut endpoints = Endpoints::clone(&cached);
        endpoints.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
        endpoints.metadata.labels = Some(labels);
        over(&mut endpoints);
        let written = api.replace(&key.name, &PostParams::default(), &endpoints).await;
        or_absent(written)?;
        Ok(())
    }
}

/// Addresses by equal ports, in a stable order, and whether some had to be left out.
fn subsets(spec: &ServiceSpec, backends: &[Backend]) -> (Vec<EndpointSubset>, bool) {
    let tolerant = publishes_not_ready(spec);
    // Endpoints know one family: the Service's first.
    let family = families(spec).first().copied();
    let mut counted = 0;
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let listed = |backend: &&Backend| tolerant || !backend.terminating;
    let truncated = backends.iter().filter(listed).count() > CAPACITY;
    // Ready ones first, so that they are the last to be left out.
    let serves = |backend: &&Backend| tolerant || backend.ready;
    let (ready, not_ready): (Vec<&Backend>, Vec<&Backend>) = backends.iter().filter(listed).partition(serves);
    for (ready, backend) in ready
        .iter()
        .map(|backend| (true, backend))
        .chain(not_ready.iter().map(|backend| (false, backend)))
    {
        let has_ports = !backend.ports.is_empty() || spec.ports.iter().flatten().next().is_none();
        let address = backend.addresses.iter().find(|ip| Some(family_of(ip)) == family);
        let Some(address) = address.filter(|_| has_ports) else {
            continue;
        };
        counted += 1;
        if counted > CAPACITY {
            break;
        }
        let node = Some(pods::node_name(&backend.pod).to_owned());
        let address = EndpointAddress {
            ip: address.to_string(),
            hostname: backend.hostname.clone(),
            node_name: node.filter(|name| !name.is_empty()),
            target_ref: Some(target(&backend.pod)),
        };
        let group = groups.entry(backend.ports.clone()).or_default();
        if ready {
            group.0.push(address);
        } else {
            group.1.push(address);
        }
    }
    let list = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip).then_with(|| uid(a).cmp(&uid(b))));
        Some(addresses).filter(|addresses| !addresses.is_empty())
    };
    let subsets = groups
        .into_iter()
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: list(ready),
            not_ready_addresses: list(not_ready),
            ports: Some(ports.into_iter().map(port).collect()).filter(|ports: &Vec<_>| !ports.is_empty()),
        })
        .collect();
    (subsets, truncated)
}

fn uid(address: &EndpointAddress) -> Option<&String> {
    address.target_ref.as_ref()?.uid.as_ref()
}

fn port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name).filter(|name| !name.is_empty()),
        port: port.number,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}
