//! The controllers: one module each, all on the same frame.
//!
//! A controller is: handlers on shared informers that put keys into a queue; one `sync(key)` that reads the caches,
//! decides with pure functions, and writes what differs. It acts under its own service account, writes a status only
//! when it changed, and holds no state that it could not build again from the API (expectations and timers aside).
//!
//! [`TABLE`] lists them with their names and identities; [`Controllers::start`] starts those that the configuration
//! enables. Names are upstream's, so that `--controllers` arguments carry over.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use ipnet::IpNet;
use sampan_client::metrics::Queues;
use sampan_client::{Clock, Informers, Key, Recorder, SystemClock, WorkQueue, run_controller};
use sampan_pki::Present;
use sampan_tasks::{Drain, OnExit, Tasks};

mod accounttokens;
mod bootstrap;
mod certificates;
mod choice;
mod clusterrole;
mod cronjob;
mod daemonset;
mod deployment;
mod devicetaints;
mod discovery;
mod disruption;
mod endpoints;
mod gc;
mod history;
mod hpa;
mod job;
mod metrics;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod nodettl;
mod podgc;
mod pods;
mod policystatus;
mod protection;
mod quota;
mod replicaset;
mod resourceclaims;
mod rootca;
mod serviceaccount;
mod servicecidrs;
mod statefulset;
#[cfg(test)]
mod stopped;
mod tainteviction;
#[cfg(test)]
mod testing;
mod tokencleaner;
mod ttl;
mod volumes;

pub use accounttokens::{TokenSigner, WantedToken};
pub use certificates::Signing;
pub use choice::{UnknownController, check_choice};
pub use metrics::Metrics;

/// The controllers, in the order they start.
pub const TABLE: &[Row] = &[
    row(
        "serviceaccount-token-controller",
        "system:kube-controller-manager",
        accounttokens::start,
    ),
    row(
        "serviceaccount-controller",
        "service-account-controller",
        serviceaccount::start,
    ),
    row(
        "legacy-serviceaccount-token-cleaner-controller",
        "legacy-service-account-token-cleaner",
        tokencleaner::start,
    ),
    row("token-cleaner-controller", "token-cleaner", bootstrap::start_cleaner),
    row(
        "bootstrap-signer-controller",
        "bootstrap-signer",
        bootstrap::start_signer,
    ),
    row("node-ipam-controller", "node-controller", nodeipam::start),
    row(
        "root-ca-certificate-publisher-controller",
        "root-ca-cert-publisher",
        rootca::start,
    ),
    row("deployment-controller", "deployment-controller", deployment::start),
    row("replicaset-controller", "replicaset-controller", replicaset::start),
    row(
        "endpointslice-controller",
        "endpointslice-controller",
        endpoints::start_slices,
    ),
    row("endpoints-controller", "endpoint-controller", endpoints::start_legacy),
    row(
        "replicationcontroller-controller",
        "replication-controller",
        replicaset::start_replication_controllers,
    ),
    row("statefulset-controller", "statefulset-controller", statefulset::start),
    row("daemonset-controller", "daemon-set-controller", daemonset::start),
    row("cronjob-controller", "cronjob-controller", cronjob::start),
    row("job-controller", "job-controller", job::start),
    row("node-lifecycle-controller", "node-controller", nodelifecycle::start),
    row("taint-eviction-controller", "node-controller", tainteviction::start),
    row(
        "device-taint-eviction-controller",
        "device-taint-eviction-controller",
        devicetaints::start,
    ),
    row("ttl-controller", "ttl-controller", nodettl::start),
    row(
        "pod-garbage-collector-controller",
        "pod-garbage-collector",
        podgc::start,
    ),
    row(
        "ttl-after-finished-controller",
        "ttl-after-finished-controller",
        ttl::start,
    ),
    row("garbage-collector-controller", "generic-garbage-collector", gc::start),
    row(
        "clusterrole-aggregation-controller",
        "clusterrole-aggregation-controller",
        clusterrole::start,
    ),
    row(
        "certificatesigningrequest-signing-controller",
        "certificate-controller",
        certificates::start_signing,
    ),
    row(
        "certificatesigningrequest-approving-controller",
        "certificate-controller",
        certificates::start_approving,
    ),
    row(
        "certificatesigningrequest-cleaner-controller",
        "certificate-controller",
        certificates::start_cleaning,
    ),
    row(
        "sampan-node-certificate-approving-controller",
        "sampan-node-certificate-approver",
        certificates::start_nodes,
    ),
    row("disruption-controller", "disruption-controller", disruption::start),
    row(
        "horizontal-pod-autoscaler-controller",
        "horizontal-pod-autoscaler",
        hpa::start,
    ),
    row(
        "endpointslice-mirroring-controller",
        "endpointslicemirroring-controller",
        endpoints::start_mirror,
    ),
    row("resourcequota-controller", "resourcequota-controller", quota::start),
    row(
        "resourceclaim-controller",
        "resource-claim-controller",
        resourceclaims::start,
    ),
    row(
        "validatingadmissionpolicy-status-controller",
        "validatingadmissionpolicy-status-controller",
        policystatus::start,
    ),
    row("namespace-controller", "namespace-controller", namespace::start),
    row(
        "service-cidr-controller",
        "service-cidrs-controller",
        servicecidrs::start,
    ),
    row(
        "persistentvolume-binder-controller",
        "persistent-volume-binder",
        volumes::start,
    ),
    row(
        "sampan-local-volume-provisioner-controller",
        "sampan-local-volume-provisioner",
        volumes::start_local,
    ),
    row(
        "persistentvolume-attach-detach-controller",
        "attachdetach-controller",
        volumes::start_attaching,
    ),
    row(
        "persistentvolume-expander-controller",
        "expand-controller",
        volumes::start_expanding,
    ),
    row(
        "ephemeral-volume-controller",
        "ephemeral-volume-controller",
        volumes::start_ephemeral,
    ),
    row(
        "persistentvolumeclaim-protection-controller",
        "pvc-protection-controller",
        protection::start_claims,
    ),
    row(
        "persistentvolume-protection-controller",
        "pv-protection-controller",
        protection::start_volumes,
    ),
    row(
        "volumeattributesclass-protection-controller",
        "volumeattributesclass-protection-controller",
        protection::start_classes,
    ),
];

const fn row(name: &'static str, service_account: &'static str, start: fn(Context)) -> Row {
    Row {
        name,
        service_account,
        start,
    }
}

/// How workloads are scaled automatically.
#[derive(Clone, Debug)]
pub struct Autoscaling {
    /// How often each autoscaler is looked at.
    pub period: std::time::Duration,
    /// How far, as a part of the target, usage may be off without consequence.
    pub tolerance: f64,
    /// How long a recommendation to shrink waits for a higher one.
    pub downscale_stabilization: std::time::Duration,
    /// How long after a Pod's start its processor time may be that of its start.
    pub cpu_initialization: std::time::Duration,
    /// How long after its start a Pod may become unready and count as never having been ready.
    pub initial_readiness_delay: std::time::Duration,
}

impl Default for Autoscaling {
    fn default() -> Self {
        let seconds = std::time::Duration::from_secs;
        Autoscaling {
            period: seconds(15),
            tolerance: 0.1,
            downscale_stabilization: seconds(300),
            cpu_initialization: seconds(300),
            initial_readiness_delay: seconds(30),
        }
    }
}

/// When a node counts as gone, and how fast Pods are driven away from those that are.
#[derive(Clone, Copy, Debug)]
pub struct NodeLifecycle {
    /// How long a node may be silent.
    pub monitor_grace_period: std::time::Duration,
    /// The same for a node that has never said anything.
    pub startup_grace_period: std::time::Duration,
    /// How long trouble of a node must last before its Pods are driven away.
    pub settle: std::time::Duration,
    /// From how many nodes of a zone Pods are driven away in a second.
    pub eviction_rate: f32,
    /// The same while most of a large zone is not well.
    pub secondary_eviction_rate: f32,
    /// Zones of up to so many nodes stop while most of them is not well.
    pub large_cluster: usize,
    /// The share of nodes not well from which that is most.
    pub unhealthy_zone: f32,
}

impl Default for NodeLifecycle {
    fn default() -> Self {
        let seconds = std::time::Duration::from_secs;
        NodeLifecycle {
            monitor_grace_period: seconds(50),
            startup_grace_period: seconds(60),
            settle: seconds(5),
            eviction_rate: 0.1,
            secondary_eviction_rate: 0.01,
            large_cluster: 50,
            unhealthy_zone: 0.55,
        }
    }
}

/// What the controllers need to know of the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which controllers run: `*` (all of them), `name`, `-name`; what names one counts before `*`, and the first that does.
    pub enabled: Vec<String>,
    /// Published as `kube-root-ca.crt` in every namespace; the publisher does not run without it.
    pub root_ca: Option<Present<String>>,
    /// What approved certificate requests are signed with; without it they are not.
    pub signing: Option<Signing>,
    /// Signs the tokens kept in Secrets; they get none without it.
    pub account_tokens: Option<TokenSigner>,
    /// Where nodes get their Pod ranges from: one, or one of each family.
    pub cluster_cidrs: Vec<IpNet>,
    /// The prefix length of a node's range.
    pub node_mask: u8,
    /// The same for its IPv6 range.
    pub node_mask_v6: u8,
    pub nodes: NodeLifecycle,
    /// How long a token made automatically must have been out of use before it is removed.
    pub token_clean_up_period: std::time::Duration,
    /// How many finished Pods are kept; 0 keeps all.
    pub terminated_pods: usize,
    pub autoscaler: Autoscaling,
    /// How many keys of one controller are worked on at a time.
    pub workers: usize,
    /// Where the controllers' queues are told of.
    pub queues: Queues,
    /// Where they count.
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            enabled: vec!["*".into()],
            root_ca: None,
            signing: None,
            account_tokens: None,
            cluster_cidrs: vec![IpNet::V4(ipnet::Ipv4Net::new_assert(
                std::net::Ipv4Addr::new(10, 244, 0, 0),
                16,
            ))],
            node_mask: 24,
            node_mask_v6: 64,
            nodes: NodeLifecycle::default(),
            token_clean_up_period: std::time::Duration::from_secs(365 * 86_400),
            terminated_pods: 12_500,
            autoscaler: Autoscaling::default(),
            workers: 8,
            queues: Queues::default(),
            metrics: Metrics::default(),
        }
    }
}

/// One controller: its name, the service account it acts as, and how it starts.
pub struct Row {
    pub name: &'static str,
    /// In `kube-system`; the full name of a user where it is none.
    pub service_account: &'static str,
    start: fn(Context),
}

/// The running controllers.
#[derive(Debug)]
pub struct Controllers {
    running: Vec<&'static str>,
}

impl Controllers {
    /// Starts the enabled controllers on `tasks`. `client_for` gives the client of an identity, a full user name such as
    /// `system:serviceaccount:kube-system:deployment-controller`.
    pub fn start(
        config: Config,
        client_for: impl Fn(&str) -> kube::Client,
        informers: &Informers,
        tasks: &Tasks,
    ) -> Result<Controllers, UnknownController> {
        Self::start_with_clock(config, client_for, informers, tasks, Arc::new(SystemClock))
    }

    /// Like [`Controllers::start`] with another clock than the machine's.
    pub fn start_with_clock(
        config: Config,
        client_for: impl Fn(&str) -> kube::Client,
        informers: &Informers,
        tasks: &Tasks,
        clock: Arc<dyn Clock>,
    ) -> Result<Controllers, UnknownController> {
        let enabled = choice::enabled(&config.enabled)?;
        let config = Arc::new(config);
        let (metrics, drain) = (config.metrics.clone(), tasks.drain());
        tasks.spawn("controllers' figures", OnExit::Expected, async move {
            drain.started().await;
            metrics.rest();
        });
        let mut running = Vec::new();
        for row in enabled {
            let client = match row.service_account.starts_with("system:") {
                true => client_for(row.service_account),
                false => client_for(&format!("system:serviceaccount:kube-system:{}", row.service_account)),
            };
            let recorder = Recorder::new(client.clone(), source(row.name), None, Arc::clone(&clock), tasks);
            (row.start)(Context {
                name: row.name,
                client,
                informers: informers.clone(),
                recorder,
                clock: Arc::clone(&clock),
                config: Arc::clone(&config),
                tasks: tasks.clone(),
            });
            running.push(row.name);
        }
        Ok(Controllers { running })
    }

    /// The names of the controllers that run.
    pub fn running(&self) -> &[&'static str] {
        &self.running
    }
}

/// What a controller is called in its events, where that is not its name.
fn source(name: &'static str) -> &'static str {
    match name {
        "node-lifecycle-controller" => "node-controller",
        "node-ipam-controller" => "cidrAllocator",
        "replicationcontroller-controller" => "replication-controller",
        "endpoints-controller" => "endpoint-controller",
        "endpointslice-controller" => "endpoint-slice-controller",
        "endpointslice-mirroring-controller" => "endpoint-slice-mirroring-controller",
        "horizontal-pod-autoscaler-controller" => "horizontal-pod-autoscaler",
        "disruption-controller" => "controllermanager",
        "resourceclaim-controller" => "resource_claim",
        "ephemeral-volume-controller" => "ephemeral_volume",
        "persistentvolume-binder-controller" => "persistentvolume-controller",
        "persistentvolume-attach-detach-controller" => "attachdetach-controller",
        "persistentvolume-expander-controller" => "volume_expand",
        other => other,
    }
}

/// What a controller is given.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) name: &'static str,
    pub(crate) client: kube::Client,
    pub(crate) informers: Informers,
    pub(crate) recorder: Recorder,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: Arc<Config>,
    pub(crate) tasks: Tasks,
}

impl Context {
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.config.metrics
    }

    pub(crate) fn drain(&self) -> Drain {
        self.tasks.drain()
    }

    /// Runs `sync` over `queue` once `ready` has resolved (the caches are filled), until the process drains.
    pub(crate) fn run<K, F, Fut>(&self, queue: &WorkQueue<K>, ready: impl Future<Output = ()> + Send + 'static, sync: F)
    where
        K: Clone + Eq + Hash + fmt::Display + Send + Sync + 'static,
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), SyncError>> + Send,
    {
        let (name, queue, drain) = (self.name, queue.clone(), self.drain());
        // Upstream's queues are called as its controllers were before their names ended so.
        self.config
            .queues
            .add(name.trim_end_matches("-controller"), queue.clone());
        let workers = self.config.workers;
        self.tasks
            .spawn(format!("controller {name}"), OnExit::Critical, async move {
                if drain.until(ready).await.is_some() {
                    run_controller(name, queue, workers, sync, drain).await;
                }
            });
    }
}

/// Calls `changed` whenever there is another authority to publish.
pub(crate) fn follow_root_ca(context: &Context, bundle: &Present<String>, changed: impl Fn() + Send + 'static) {
    let mut bundles = bundle.follow();
    let name = format!("authority of {}", context.name);
    context.tasks.spawn_until_drain(name, OnExit::Expected, async move {
        while bundles.changed().await.is_ok() {
            changed();
        }
    });
}

/// Queues a key for a change of one of `many` parts. What is made of many parts waits a moment, so that a crowd of changes
/// is one sync; what is small is served at once.
pub(crate) fn add_paced(queue: &WorkQueue<Key>, key: Key, many: usize) {
    if many > CROWD {
        queue.add_after(key, PACE);
    } else {
        queue.add(key);
    }
}

const CROWD: usize = 100;
const PACE: std::time::Duration = std::time::Duration::from_millis(50);

/// Why a sync did not reach its end; it will be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error("{}", pods::api_message(.0))]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Other(String),
}

impl SyncError {
    pub(crate) fn other(text: impl Into<String>) -> Self {
        SyncError::Other(text.into())
    }
}
