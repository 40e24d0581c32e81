//! NetworkPolicies, enforced by this node for its own Pods.
//!
//! [`spec`] reads policies and Pods, [`model`] keeps the plan up to date by what changed, [`rules`] tells the kernel:
//! each is a pure function of the one before, and the last a transaction.
//!
//! Invariants:
//! - a Pod is connected only when its policies are in the kernel ([`Gate::admit`]), and its rules go after its link;
//! - what a process left stays in force until the next one knows enough to replace it as a whole;
//! - where something is not known (a namespace's labels, an operator), less is allowed and never more;
//! - a cluster without policies pays nothing: no rule, and no Pod is followed before the first policy comes.
//!
//! The labels of a Pod that was just made are those it was set up with, until the cache shows it; a Pod that the API
//! forgot while it still runs here keeps what it had.

mod model;
mod plan;
mod rules;
mod selector;
pub mod spec;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use sampan_client::{Cached, Informer, Informers, Key, Selection};
use sampan_tasks::Drain;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};

use crate::host::Host;
use crate::kernel::nft::NftError;
use crate::kernel::watch::TableWatch;
use model::{Local, Model, Update};
use plan::Changes;
use spec::{PodView, Policy};

pub(crate) use rules::TABLE;

/// How long a Pod waits for its policies before its setup fails with a reason (and is tried again).
const PATIENCE: Duration = Duration::from_secs(20);
/// Between tries while the kernel refuses the rules.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Who a Pod is to policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    /// As it was set up.
    #[serde(flatten)]
    pub view: PodView,
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    Rules(#[from] NftError),
    #[error("cannot enter the machine's network namespace: {0}")]
    Host(std::io::Error),
    #[error("the network policies' task was cancelled")]
    Cancelled,
    #[error("network policies are not in force yet (are they, Pods and namespaces readable to the node?)")]
    NotInForce,
}

#[derive(Clone, Debug)]
pub struct PolicyConfig {
    pub host: Host,
    /// Nobody else in the process reads Pods through these informers: keep only what policies need of them.
    pub alone: bool,
}

/// An address of this node's Pods that is given or taken back, and who waits for that.
struct Given {
    address: IpAddr,
    local: Option<Local>,
    done: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct News {
    policies: BTreeSet<Key>,
    pods: BTreeSet<Key>,
    namespaces: BTreeSet<String>,
    given: Vec<Given>,
}

/// What happened and was not worked on yet.
#[derive(Default)]
struct Inbox {
    news: Mutex<News>,
    woken: Notify,
}

impl Inbox {
    fn tell(&self, tell: impl FnOnce(&mut News)) {
        tell(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner));
        self.woken.notify_one();
    }
    fn take(&self) -> News {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where the Pod network says which addresses its Pods have, and waits until they may be used.
#[derive(Clone)]
pub struct Gate(Arc<Inbox>);

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    fn give(&self, address: Ipv4Addr, pod: Option<&PodIdentity>, done: Option<oneshot::Sender<()>>) {
        let local = pod.map(|pod| Local {
            pod: Key::new(pod.namespace.as_str(), pod.name.as_str()),
            view: pod.view.clone(),
        });
        let address = IpAddr::V4(address);
        self.0.tell(|news| news.given.push(Given { address, local, done }));
    }

    /// A Pod has an address, and is connected already.
    pub fn note(&self, address: Ipv4Addr, pod: &PodIdentity) {
        self.give(address, Some(pod), None);
    }

    /// A Pod has an address and is about to be connected. Resolves when its policies are in the kernel.
    pub async fn admit(&self, address: Ipv4Addr, pod: &PodIdentity) -> Result<(), PolicyError> {
        let (done, heard) = oneshot::channel();
        self.give(address, Some(pod), Some(done));
        match tokio::time::timeout(PATIENCE, heard).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(PolicyError::Cancelled),
            Err(_) => Err(PolicyError::NotInForce),
        }
    }

    /// An address is nobody's any more.
    pub fn forget(&self, address: Ipv4Addr) {
        self.give(address, None, None);
    }
}

/// What is followed once there are policies.
struct Followed {
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
}

/// Keeps the rules of a node in step with the cluster's NetworkPolicies.
pub struct Policies {
    config: PolicyConfig,
    informers: Informers,
    policies: Informer<NetworkPolicy>,
    followed: OnceLock<Followed>,
    inbox: Arc<Inbox>,
}

impl Policies {
    pub fn new(config: PolicyConfig, informers: &Informers) -> Self {
        let policies = informers.of::<NetworkPolicy>();
        let inbox = Arc::new(Inbox::default());
        let news = Arc::clone(&inbox);
        policies.on_change(move |change| {
            news.tell(|news| {
                news.policies.insert(Key::of(&**change.object()));
            });
        });
        Policies {
            config,
            informers: informers.clone(),
            policies,
            followed: OnceLock::new(),
            inbox,
        }
    }

    pub fn gate(&self) -> Gate {
        Gate(Arc::clone(&self.inbox))
    }

    /// Checks that the kernel can do what policies need. Blocking.
    pub fn prepare(config: &PolicyConfig) -> Result<(), PolicyError> {
        Ok(config.host.run(rules::probe).map_err(PolicyError::Host)??)
    }

    /// Follows Pods and namespaces from now on.
    async fn follow(&self) {
        let followed = self.followed.get_or_init(|| {
            let pods = if self.config.alone {
                // The others have no part in the Pod network, or none any more.
                let living = "spec.hostNetwork!=true,status.phase!=Succeeded,status.phase!=Failed";
                self.informers.transformed(Selection::fields(living), slim)
            } else {
                self.informers.of::<Pod>()
            };
            let namespaces = self.informers.of::<Namespace>();
            let news = Arc::clone(&self.inbox);
            pods.on_change(move |change| {
                if change.old().and_then(|old| PodView::of(old)) == PodView::of(change.object())
                    && !matches!(change, sampan_client::Change::Deleted(_))
                {
                    return;
                }
                news.tell(|news| {
                    news.pods.insert(Key::of(&**change.object()));
                });
            });
            let news = Arc::clone(&self.inbox);
            namespaces.on_change(move |change| {
                if let sampan_client::Change::Modified { old, new } = change
                    && old.metadata.labels == new.metadata.labels
                {
                    return;
                }
                news.tell(|news| {
                    news.namespaces.insert(change.object().name().to_owned());
                });
            });
            Followed { pods, namespaces }
        });
        followed.pods.synced().await;
        followed.namespaces.synced().await;
    }

    fn updates(&self, news: &mut News) -> Vec<Update> {
        let mut updates = Vec::new();
        for key in std::mem::take(&mut news.policies) {
            let policy = self.policies.get_key(&key).map(|policy| Policy::of(&policy));
            updates.push(Update::Policy(key, policy));
        }
        if let Some(followed) = self.followed.get() {
            for key in std::mem::take(&mut news.pods) {
                let view = followed.pods.get_key(&key).and_then(|pod| PodView::of(&pod));
                updates.push(Update::Pod(key, view));
            }
            for name in std::mem::take(&mut news.namespaces) {
                let namespace = followed.namespaces.get("", &name);
                let labels = namespace.map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
                updates.push(Update::Namespace(name, labels));
            }
        }
        let given = news
            .given
            .iter()
            .map(|given| Update::Local(given.address, given.local.clone()));
        updates.extend(given);
        updates
    }

    /// Runs until `drain`; the rules stay.
    pub async fn run(self, drain: Drain) {
        if drain.until(self.policies.synced()).await.is_none() {
            return;
        }
        let watch = TableWatch::open(&self.config.host, TABLE)
            .inspect_err(
                |error| tracing::warn!(%error, "cannot watch the rules of network policies; if somebody flushes them, restart"),
            )
            .ok();
        let gone = || async {
            match &watch {
                Some(watch) => watch.gone().await,
                None => std::future::pending().await,
            }
        };
        let (mut model, mut kernel, mut waiting) = (Model::default(), Kernel::default(), Vec::new());
        let mut failures = 0u32;
        loop {
            if self.followed.get().is_none() && !self.policies.is_empty() && drain.until(self.follow()).await.is_none()
            {
                return;
            }
            let mut news = self.inbox.take();
            let changes = model.apply(self.updates(&mut news));
            waiting.extend(news.given.into_iter().filter_map(|given| given.done));
            match self.commit(&model, &mut kernel, changes).await {
                Ok(()) => {
                    failures = 0;
                    for done in waiting.drain(..) {
                        // Who gave up waiting asks again.
                        let _gone: Result<(), ()> = done.send(());
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::error!(%error, "the rules of network policies were not applied, will retry with all of them");
                    let pause = Duration::from_millis(100) * 2u32.saturating_pow(failures.min(10));
                    if drain
                        .until(tokio::time::sleep(pause.min(LONGEST_PAUSE)))
                        .await
                        .is_none()
                    {
                        return;
                    }
                    continue;
                }
            }
            tokio::select! {
                () = drain.started() => return,
                () = self.inbox.woken.notified() => {}
                lost = gone() => match lost {
                    // There is none while nobody is isolated.
                    Ok(()) => kernel.lost(),
                    Err(error) => {
                        tracing::warn!(%error, "cannot watch the rules of network policies");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
            }
        }
    }

    async fn commit(&self, model: &Model, kernel: &mut Kernel, changes: Changes) -> Result<(), PolicyError> {
        let plan = model.plan();
        let wanted = !plan.entries.is_empty();
        let host = self.config.host.clone();
        let work: Box<dyn FnOnce() -> Result<(), NftError> + Send> = match *kernel {
            Kernel::Table if wanted && changes.is_empty() => return Ok(()),
            Kernel::Empty if !wanted => return Ok(()),
            Kernel::Table if wanted => Box::new(move || rules::change(&changes)),
            _ => {
                let plan = plan.clone();
                tracing::debug!(isolated = plan.entries.len(), "rules of network policies built anew");
                Box::new(move || rules::sync(&plan))
            }
        };
        *kernel = Kernel::Unknown;
        let done = tokio::task::spawn_blocking(move || host.run(work)).await;
        done.map_err(|_| PolicyError::Cancelled)?.map_err(PolicyError::Host)??;
        *kernel = if wanted { Kernel::Table } else { Kernel::Empty };
        Ok(())
    }
}

/// What the kernel is known to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kernel {
    /// Whatever an earlier process left, or part of nothing.
    #[default]
    Unknown,
    /// No table, as nobody is isolated.
    Empty,
    /// The plan as it was.
    Table,
}

impl Kernel {
    fn lost(&mut self) {
        if *self == Kernel::Table {
            tracing::warn!("somebody removed the rules of network policies; making them anew");
            *self = Kernel::Unknown;
        }
    }
}

/// Drops of a Pod what policies do not ask for.
fn slim(pod: &mut Pod) {
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    if let Some(spec) = &mut pod.spec {
        let sidecar =
            |container: &k8s_openapi::api::core::v1::Container| container.restart_policy.as_deref() == Some("Always");
        let mut containers = std::mem::take(&mut spec.containers);
        containers.extend(spec.init_containers.take().into_iter().flatten().filter(sidecar));
        let containers = containers.into_iter().filter(|container| container.ports.is_some());
        let containers = containers.map(|container| k8s_openapi::api::core::v1::Container {
            ports: container.ports,
            ..Default::default()
        });
        *spec = k8s_openapi::api::core::v1::PodSpec {
            containers: containers.collect(),
            host_network: spec.host_network,
            ..Default::default()
        };
    }
    if let Some(status) = &mut pod.status {
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase: status.phase.take(),
            pod_ip: status.pod_ip.take(),
            pod_ips: status.pod_ips.take(),
            ..Default::default()
        };
    }
}

#[cfg(test)]
mod tests;
