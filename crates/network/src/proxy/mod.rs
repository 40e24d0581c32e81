//! The service proxy: Services and EndpointSlices as nftables rules.
//!
//! A packet's way does not grow with the number of Services: one look-up in a map, a jump, one random choice. A change
//! of one Service is one small transaction. At start the table is built anew in one transaction, so that there is
//! never a moment with half the rules; when a transaction is refused, the next one is again the whole table.
//!
//! Hints of endpoints (for which node, for which zone) are followed as upstream follows them: only where they leave
//! somebody to answer. Different from upstream: node ports also answer on loopback.

mod health;
pub mod plan;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node as NodeObject, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sampan_client::{Cached, Change, Informer, Informers, Key, Recorder};
use sampan_tasks::Drain;
use tokio::sync::Notify;

use crate::host::Host;
use crate::kernel::conntrack;
use crate::kernel::nft::{NftError, Transaction};
use crate::kernel::watch::TableWatch;
use health::Health;
use plan::{Node, ServiceRules, desired};
use table::Table;

pub(crate) use table::TABLE;

/// The label that says which Service a slice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The index of slices by `namespace/service`.
pub(crate) const BY_SERVICE: &str = "network/service";

#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// This node's name: which endpoints are local.
    pub node: String,
    /// Addresses of Pods on any node: traffic from elsewhere to Services gets this node's address.
    pub cluster_cidr: Ipv4Net,
    pub host: Host,
    /// Where the proxy tells of its own health, if it does.
    pub health: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(transparent)]
    Rules(#[from] NftError),
    #[error("cannot enter the machine's network namespace: {0}")]
    Host(std::io::Error),
    #[error("the proxy's task was cancelled")]
    Cancelled,
}

/// Services whose rules may be out of date.
#[derive(Debug, Default)]
struct Dirty {
    keys: Mutex<BTreeSet<Key>>,
    woken: Notify,
    health: Arc<Health>,
}

impl Dirty {
    fn add(&self, key: Key) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.health.waits();
        self.woken.notify_one();
    }
    fn is_empty(&self) -> bool {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
    fn take(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Files slices by the Service they name, for [`Informer::by_index`].
pub(crate) fn index_slices(slices: &Informer<EndpointSlice>) {
    slices.add_index(BY_SERVICE, |slice| {
        service_of(slice).map(|key| key.to_string()).into_iter().collect()
    });
}

/// The Service a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(Key::new(slice.namespace(), name.as_str()))
}

/// Keeps the rules of a node in step with its cluster's Services.
pub struct Proxy {
    config: ProxyConfig,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<NodeObject>,
    dirty: Arc<Dirty>,
    events: Option<Recorder>,
}

/// The zone a node says it is in.
fn zone(node: &NodeObject) -> Option<String> {
    node.metadata
        .labels
        .as_ref()?
        .get(ZONE)
        .filter(|zone| !zone.is_empty())
        .cloned()
}

impl Proxy {
    pub fn new(config: ProxyConfig, informers: &Informers) -> Self {
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        index_slices(&slices);
        let dirty = Arc::new(Dirty::default());
        let touched = Arc::clone(&dirty);
        services.on_change(move |change| touched.add(Key::of(&**change.object())));
        let touched = Arc::clone(&dirty);
        slices.on_change(move |change| {
            for slice in change.old().into_iter().chain([change.object()]) {
                service_of(slice).into_iter().for_each(|key| touched.add(key));
            }
        });
        let nodes = informers.of::<NodeObject>();
        let (touched, own, all) = (Arc::clone(&dirty), config.node.clone(), services.clone());
        nodes.on_change(move |change| {
            let now = Some(change.object()).filter(|_| !matches!(change, Change::Deleted(_)));
            let moved = now.and_then(|node| zone(node)) != change.old().and_then(|node| zone(node));
            if change.object().name() == own && moved {
                all.list().iter().for_each(|service| touched.add(Key::of(&**service)));
            }
        });
        Proxy {
            config,
            services,
            slices,
            nodes,
            dirty,
            events: None,
        }
    }

    /// Says in Events what Services ought to know.
    pub fn reporting(mut self, events: Recorder) -> Self {
        self.events = Some(events);
        self
    }

    fn node(&self) -> Node {
        Node {
            name: self.config.node.clone(),
            zone: self.nodes.get("", &self.config.node).and_then(|node| zone(&node)),
            pods: self.config.cluster_cidr,
        }
    }

    fn rules(&self, key: &Key) -> Option<ServiceRules> {
        let service = self.services.get_key(key)?;
        let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        let rules = desired(&service, slices.iter().map(|slice| &**slice), &self.node());
        (rules != ServiceRules::default()).then_some(rules)
    }

    /// What load balancers are told of the Service from now on.
    fn tell(&self, key: &Key) {
        let checked = self.services.get_key(key).and_then(|service| {
            let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
            health::checked(&service, slices.iter().map(|slice| &**slice), &self.config.node)
        });
        self.dirty.health.set(key, checked);
    }

    /// Checks that the kernel can do what the proxy needs. Call it before the rest of the node counts on it.
    pub async fn prepare(config: &ProxyConfig) -> Result<(), ProxyError> {
        let (host, pods) = (config.host.clone(), config.cluster_cidr);
        blocking(move || {
            let probe = || Table::probe(pods).into_iter().try_for_each(Transaction::commit);
            host.run(probe).map_err(ProxyError::Host)?.map_err(ProxyError::from)
        })
        .await
    }

    /// Runs until `drain`; the rules stay, since connections outlive a restart.
    pub async fn run(self, drain: Drain) {
        let synced = async {
            self.services.synced().await;
            self.slices.synced().await;
        };
        if drain.until(synced).await.is_none() {
            return;
        }
        let server = health::Server {
            health: Arc::clone(&self.dirty.health),
            host: self.config.host.clone(),
            own: self.config.health,
            node: self.config.node.clone(),
            nodes: self.nodes.clone(),
            events: self.events.clone(),
        };
        tokio::join!(self.follow(&drain), server.run(drain.clone()));
    }

    /// Keeps the rules.
    async fn follow(&self, drain: &Drain) {
        let watch = TableWatch::open(&self.config.host, TABLE)
            .inspect_err(
                |error| tracing::warn!(%error, "cannot watch the service rules; if somebody flushes them, restart"),
            )
            .ok();
        let gone = || async {
            match &watch {
                Some(watch) => watch.gone().await,
                None => std::future::pending().await,
            }
        };
        let mut table: Option<Table> = None;
        let mut failures = 0u32;
        loop {
            let dirty = self.dirty.take();
            if table.is_none() || !dirty.is_empty() {
                match self.sync(table.take(), &dirty).await {
                    Ok(fresh) => {
                        table = Some(fresh);
                        failures = 0;
                        self.dirty.health.updated(!self.dirty.is_empty());
                    }
                    Err(error) => {
                        failures += 1;
                        tracing::error!(%error, "service rules were not applied, will retry with all of them");
                        let pause = Duration::from_millis(100) * 2u32.saturating_pow(failures.min(8));
                        if drain.until(tokio::time::sleep(pause)).await.is_none() {
                            return;
                        }
                        continue;
                    }
                }
            }
            tokio::select! {
                () = drain.started() => return,
                () = self.dirty.woken.notified() => {}
                lost = gone() => match lost {
                    Ok(()) => {
                        tracing::warn!("somebody removed the service rules; making them anew");
                        table = None;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot watch the service rules");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
            }
        }
    }

    /// Applies what changed, or everything when there is no table yet.
    async fn sync(&self, table: Option<Table>, dirty: &BTreeSet<Key>) -> Result<Table, ProxyError> {
        let (host, pods) = (self.config.host.clone(), self.config.cluster_cidr);
        match table {
            None => {
                let keys = self.services.list();
                self.dirty.health.keep(|key| self.services.get_key(key).is_some());
                keys.iter().for_each(|service| self.tell(&Key::of(&**service)));
                let all: BTreeMap<Key, ServiceRules> = keys
                    .iter()
                    .map(|service| Key::of(&**service))
                    .filter_map(|key| Some((key.clone(), self.rules(&key)?)))
                    .collect();
                let udp = all
                    .values()
                    .flat_map(|rules| table::udp_changes(None, Some(rules)))
                    .collect();
                tracing::debug!(services = all.len(), "service rules built anew");
                blocking(move || {
                    let (table, transaction) = Table::fresh(pods, all);
                    host.run(|| apply(transaction, udp)).map_err(ProxyError::Host)??;
                    Ok(table)
                })
                .await
            }
            Some(mut table) => {
                dirty.iter().for_each(|key| self.tell(key));
                let changes: Vec<_> = dirty
                    .iter()
                    .map(|key| (key.clone(), self.rules(key)))
                    .filter(|(key, rules)| table.service(key) != rules.as_ref())
                    .collect();
                if changes.is_empty() {
                    return Ok(table);
                }
                let udp = changes
                    .iter()
                    .flat_map(|(key, rules)| table::udp_changes(table.service(key), rules.as_ref()))
                    .collect();
                blocking(move || {
                    let transaction = table.change(changes);
                    host.run(|| apply(transaction, udp)).map_err(ProxyError::Host)??;
                    Ok(table)
                })
                .await
            }
        }
    }
}

fn apply(transaction: Transaction, udp: BTreeMap<plan::UdpPort, BTreeSet<Ipv4Addr>>) -> Result<(), ProxyError> {
    transaction.commit()?;
    if udp.is_empty() {
        return Ok(());
    }
    // To an address of a Service, or to a node port on any address; answered by who is no endpoint (any more).
    let stale = |flow: &conntrack::Flow| {
        let port = udp.get(&(Some(flow.destination), flow.port)).or_else(|| {
            let translated = flow.answers != flow.destination;
            udp.get(&(None, flow.port)).filter(|_| translated)
        });
        flow.protocol == 17 && port.is_some_and(|endpoints| !endpoints.contains(&flow.answers))
    };
    if let Err(error) = conntrack::forget(stale) {
        tracing::warn!(%error, "UDP clients of changed Services may stay with their old endpoint until they pause");
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ProxyError> + Send + 'static,
) -> Result<T, ProxyError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(ProxyError::Cancelled))
}

#[cfg(test)]
mod tests;
