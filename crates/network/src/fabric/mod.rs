//! The way to the Pods of other nodes.
//!
//! Every node has a range of Pod addresses and an address of its own. To a node on the same segment leads a route by
//! that address; to any other one through a VXLAN device, which carries the Pods' packets in datagrams between the
//! nodes. Nodes exchange nothing for it: all there is to know follows from the Node objects ([`plan`]).
//!
//! Invariants:
//! - what is in the kernel is what the nodes and the machine's links ask for, however it came to be otherwise: a node
//!   that comes, goes or moves, an address or a link of this machine that changes, somebody who removes our routes,
//!   an earlier process that left some;
//! - nothing is made that is not needed: no device while all nodes share a segment, nothing at all while there is one;
//! - a stop leaves everything as it is: Pods go on without us.
//!
//! The UDP port is VXLAN's own, 4789: network cards and firewalls know it, and several virtual networks share a port
//! by their numbers. 8472, the kernel's historical default, is flannel's, and a firewall that lets it through does so
//! for flannel. The virtual network's number is one nobody is known to use (flannel's is 1, Calico's and Docker's
//! begin at 4096).
//!
//! Packets to Pods through the device may be 50 bytes shorter than the machine's link carries. That is said by the
//! routes, so Pods on one segment lose nothing; who sends more is told so (path MTU discovery) by the node it sends
//! through.

mod apply;
mod plan;
mod rules;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use sampan_client::{Change, Informer, Informers};
use sampan_tasks::Drain;
use tokio::sync::Notify;

use crate::host::Host;
use crate::kernel::sysctl::Remembered;
use crate::kernel::watch::{Event, RoutingWatch, TableWatch};
use crate::pods::{self, PodNetworkConfig};
use apply::Applied;
use plan::{Own, Peer, Plan};

pub use apply::ApplyError;
pub(crate) use apply::remove_all;

/// The virtual network's number, unless configured otherwise.
pub const VNI: u32 = 0x5350;
/// The virtual network's UDP port, unless configured otherwise.
pub const PORT: u16 = 4789;

/// The kernel tells of one change in several messages, and changes come together.
const BREATH: Duration = Duration::from_millis(50);
/// Between tries while something cannot be applied.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the fabric of a node is made of.
#[derive(Clone, Debug)]
pub struct FabricConfig {
    /// This node's name: the others are the other nodes.
    pub node: String,
    pub pod_cidr: Ipv4Net,
    pub cluster_cidr: Option<Ipv4Net>,
    pub bridge: String,
    /// On all nodes the same, below 2^24.
    pub vni: u32,
    /// On all nodes the same.
    pub port: u16,
    /// Where changed settings are remembered.
    settings: PathBuf,
    pub host: Host,
}

impl FabricConfig {
    /// For the node whose Pods have this network.
    pub fn new(node: impl Into<String>, pods: &PodNetworkConfig) -> Self {
        FabricConfig {
            node: node.into(),
            pod_cidr: pods.pod_cidr,
            cluster_cidr: pods.cluster_cidr,
            bridge: pods.bridge.clone(),
            vni: VNI,
            port: PORT,
            settings: pods::settings_file(pods),
            host: pods.host.clone(),
        }
    }

    fn own(&self) -> Own {
        Own {
            name: self.node.clone(),
            pods: self.pod_cidr.trunc(),
            cluster: self.cluster_cidr,
            bridge: self.bridge.clone(),
            vni: self.vni,
            port: self.port,
        }
    }
}

/// Keeps the ways to other nodes' Pods.
pub struct Fabric {
    config: FabricConfig,
    nodes: Informer<Node>,
    woken: Arc<Notify>,
}

impl Fabric {
    pub fn new(config: FabricConfig, informers: &Informers) -> Self {
        let nodes = informers.of::<Node>();
        let woken = Arc::new(Notify::new());
        let waker = Arc::clone(&woken);
        // Nodes say how they are all the time; where they are changes rarely.
        nodes.on_change(move |change| match change {
            Change::Modified { old, new } if Peer::of(old) == Peer::of(new) => {}
            _ => waker.notify_one(),
        });
        Fabric { config, nodes, woken }
    }

    /// Runs until `drain`; the ways stay.
    pub async fn run(self, drain: Drain) {
        if drain.until(self.nodes.synced()).await.is_none() {
            return;
        }
        let routing = RoutingWatch::open(&self.config.host)
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot watch links and routes; if the machine's network changes, restart");
            })
            .ok();
        let (mut table, mut state) = (None, State::default());
        loop {
            state.take(self.sync(state.applied.plan.clone()).await);
            let overlay = state.applied.plan.overlay.is_some();
            if overlay && table.is_none() {
                table = TableWatch::open(&self.config.host, rules::TABLE)
                    .inspect_err(|error| tracing::warn!(%error, "cannot watch the rules of the VXLAN device"))
                    .ok();
            }
            let changed = async {
                match &routing {
                    Some(routing) => routing.changed(|event| state.concerns(event)).await,
                    None => std::future::pending().await,
                }
            };
            let flushed = async {
                match &table {
                    Some(table) if overlay => table.gone().await,
                    _ => std::future::pending().await,
                }
            };
            let heard = tokio::select! {
                () = drain.started() => return,
                () = self.woken.notified() => Ok(()),
                heard = changed => heard,
                heard = flushed => heard,
                () = state.pause() => Ok(()),
            };
            let pause = match heard {
                Ok(()) => BREATH,
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the machine's network");
                    Duration::from_secs(1)
                }
            };
            if drain.until(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn sync(&self, before: Plan) -> Result<Applied, ApplyError> {
        let nodes: Vec<Peer> = self.nodes.list().iter().map(|node| Peer::of(node)).collect();
        let (own, host) = (self.config.own(), self.config.host.clone());
        let settings = Remembered::at(self.config.settings.clone());
        let work = move || host.run(|| apply::sync(&own, &nodes, &settings, &before));
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| ApplyError::Io { what, source }
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.map_err(io("enter the machine's network namespace"))?,
            Err(cancelled) => Err(io("finish")(std::io::Error::other(cancelled))),
        }
    }
}

/// What was applied last, and how that went.
#[derive(Default)]
struct State {
    applied: Applied,
    /// What could not be, as told last.
    told: Option<String>,
    failures: u32,
}

impl State {
    fn take(&mut self, outcome: Result<Applied, ApplyError>) {
        let (applied, trouble) = match outcome {
            Ok(applied) => {
                let problems = applied.problems.join("; ");
                (Some(applied), Some(problems).filter(|text| !text.is_empty()))
            }
            Err(error) => (None, Some(error.to_string())),
        };
        if let Some(applied) = applied {
            for (node, refusal) in &applied.plan.refused {
                if self.applied.plan.refused.get(node) != Some(refusal) {
                    tracing::warn!(node, "no way to this node's Pods: {refusal}");
                }
            }
            if applied.changes > 0 {
                let overlay = applied.plan.overlay.as_ref();
                let through = overlay.map_or(0, |overlay| overlay.neighbours.len());
                let nodes = applied.plan.routes.len();
                tracing::info!(
                    nodes,
                    through_vxlan = through,
                    changes = applied.changes,
                    "ways to other nodes' Pods"
                );
            }
            self.applied = applied;
        }
        self.failures = if trouble.is_some() { self.failures + 1 } else { 0 };
        if let Some(text) = trouble.as_ref().filter(|text| self.told.as_ref() != Some(*text)) {
            tracing::error!("not every way to other nodes' Pods could be made, will retry: {text}");
        }
        self.told = trouble;
    }

    /// Until it is worth another try; for ever while all is well.
    async fn pause(&self) {
        if self.failures == 0 {
            std::future::pending::<()>().await;
        }
        let pause = Duration::from_millis(100) * 2u32.saturating_pow(self.failures.min(12));
        tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
    }

    /// Whether something that happened may be a difference to what was applied.
    fn concerns(&self, event: &Event) -> bool {
        match event {
            Event::Link(name) => !pods::is_link_name(name),
            Event::Address => true,
            Event::RouteGone { protocol, to } => {
                *protocol == apply::PROTOCOL || self.applied.plan.routes.contains_key(to)
            }
            Event::NeighbourGone { link } => self.applied.device == Some(*link),
        }
    }
}

#[cfg(test)]
mod tests;
