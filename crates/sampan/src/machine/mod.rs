//! What needs the machine: node, pod network, service proxy and DNS. The same for a server and for a machine that joined one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_client::{Informers, Recorder, SystemClock};
use sampan_network::{
    Dns, DnsConfig, Fabric, FabricConfig, Host, PodNetwork, PodNetworkConfig, Policies, PolicyConfig, PolicyError,
    Proxy, ProxyConfig,
};
use sampan_node::{ClusterDns, Node, NodeConfig, ServerTls};
use sampan_runtime::embedded::{Config as RuntimeConfig, Embedded};
use sampan_tasks::{OnExit, Tasks};
use tokio::sync::watch;

use crate::options::{Role, Settings};

mod dns;
mod network;
pub mod report;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What the roles of a machine work with. Each reads and writes under its own name.
#[derive(Clone)]
pub struct Machine {
    pub settings: Settings,
    pub tasks: Tasks,
    /// Writes as the node.
    pub node: kube::Client,
    /// Reads as the node: itself, its Pods, Services.
    pub node_informers: Informers,
    /// Reads as the service proxy: Services, their endpoints, nodes.
    pub network_informers: Informers,
    /// Controllers read Pods through the same informers.
    pub shares_informers: bool,
    /// Writes where the cluster's DNS answers, on all nodes; `None`: others do.
    pub dns: Option<kube::Client>,
}

impl Machine {
    /// Starts what is enabled. `tls` is what the node's server shows and believes.
    pub async fn start(&self, tls: ServerTls) -> Result<()> {
        if self.settings.runs(Role::Node) {
            self.start_node(tls).await?;
        }
        if let Some(client) = &self.dns {
            let address = self.settings.dns_service();
            dns::publish(client.clone(), &self.network_informers, &self.tasks, address);
        }
        if self.settings.runs(Role::Proxy) {
            let config = proxy_config(&self.settings);
            Proxy::prepare(&config).await?;
            let (node, clock) = (&self.settings.node_name, Arc::new(SystemClock));
            let events = Recorder::new(self.node.clone(), "kube-proxy", Some(node), clock, &self.tasks);
            let proxy = Proxy::new(config, &self.network_informers).reporting(events);
            self.tasks
                .spawn("service-proxy", OnExit::Critical, proxy.run(self.tasks.drain()));
        }
        Ok(())
    }

    /// The container runtime, the node's agent on it, and the Pod network.
    async fn start_node(&self, tls: ServerTls) -> Result<()> {
        let settings = &self.settings;
        let runtime = Embedded::open(runtime_config(settings), &self.tasks).await?;
        let (adapter, network) = network::NodeNetwork::new(netns_dir(settings));
        Node::start(
            node_config(settings),
            self.node.clone(),
            &self.node_informers,
            runtime,
            Arc::new(adapter),
            Some(tls),
            &self.tasks,
        )
        .await?;
        let work = network_parts(self.clone(), network);
        self.tasks.spawn_until_drain("pod-network", OnExit::Expected, work);
        Ok(())
    }
}

fn node_config(settings: &Settings) -> NodeConfig {
    let mut config = NodeConfig::new(
        settings.node_name.clone(),
        vec![settings.node_ip],
        settings.data_dir.join("node"),
    );
    config.port = settings.node_port;
    config.devices.clone_from(&settings.devices);
    config.registration = settings.registration.clone();
    config.housekeeping.eviction = settings.eviction.clone();
    (config.housekeeping.image_gc_high, config.housekeeping.image_gc_low) = settings.image_gc;
    config.cluster_dns = ClusterDns {
        servers: vec![settings.dns_service().to_string()],
        domain: settings.cluster_domain.clone(),
    };
    config
}

fn runtime_config(settings: &Settings) -> RuntimeConfig {
    let mut config = RuntimeConfig::new(settings.runtime_dir(), settings.data_dir.join("run"));
    config.registries.insecure = settings.insecure_registries.iter().cloned().collect();
    config
}

fn node_dir(settings: &Settings) -> PathBuf {
    settings.data_dir.join("node")
}

fn netns_dir(settings: &Settings) -> PathBuf {
    settings.data_dir.join("run/netns")
}

fn pod_network_config(settings: &Settings, pod_cidr: ipnet::Ipv4Net) -> PodNetworkConfig {
    let mut config = PodNetworkConfig::new(pod_cidr, settings.data_dir.join("network"));
    config.cluster_cidr = Some(settings.pod_cidr);
    config.service_cidr = Some(settings.service_cidr);
    config.netns_dir = netns_dir(settings);
    config
}

/// The port at which load balancers ask whether the proxy of a machine is well.
const PROXY_HEALTH: u16 = 10256;

fn proxy_config(settings: &Settings) -> ProxyConfig {
    ProxyConfig {
        node: settings.node_name.clone(),
        cluster_cidr: settings.pod_cidr,
        host: Host::This,
        health: Some((std::net::Ipv4Addr::UNSPECIFIED, PROXY_HEALTH).into()),
    }
}

/// Waits for the node's Pod range, then brings up the pod network, the ways to other nodes' and, where enabled, DNS on
/// its bridge.
async fn network_parts(machine: Machine, ready: watch::Sender<Option<PodNetwork>>) {
    let (settings, tasks) = (&machine.settings, &machine.tasks);
    let range = network::pod_range(&machine.node_informers, &settings.node_name).await;
    let mut config = pod_network_config(settings, range);
    let policies = PolicyConfig {
        host: config.host.clone(),
        alone: !machine.shares_informers,
    };
    let checked = policies.clone();
    let prepared = tokio::task::spawn_blocking(move || Policies::prepare(&checked)).await;
    if let Err(error) = prepared.map_err(|_| PolicyError::Cancelled).and_then(|result| result) {
        tracing::error!(%error, "network policies cannot be enforced on this machine; Pods of this node stay without network");
        return;
    }
    let policies = Policies::new(policies, &machine.network_informers);
    config.gate = Some(policies.gate());
    tasks.spawn("network-policies", OnExit::Critical, policies.run(tasks.drain()));
    let network = match PodNetwork::new(config).await {
        Ok(network) => network,
        Err(error) => {
            tracing::error!(%error, "the pod network could not be set up; Pods of this node stay without");
            return;
        }
    };
    let gateway = network.gateway();
    let fabric = FabricConfig::new(&settings.node_name, network.config());
    let fabric = Fabric::new(fabric, &machine.network_informers);
    tasks.spawn("pod-network-fabric", OnExit::Critical, fabric.run(tasks.drain()));
    let (guarded, drain) = (network.clone(), tasks.drain());
    tasks.spawn("pod-network-rules", OnExit::Expected, async move {
        if let Err(error) = guarded.guard(drain).await {
            tracing::error!(%error, "the rules of Pods are no longer watched; if somebody removes them, restart");
        }
    });
    tracing::info!(%range, "pod network ready");
    ready.send_replace(Some(network));
    if settings.runs(Role::Dns)
        && let Err(error) = machine.start_dns(gateway)
    {
        tracing::error!(
            error,
            "cluster DNS could not be started; names of Services do not resolve"
        );
    }
    // The sender stays: Pods ask for the network as long as the server runs.
    std::future::pending::<()>().await;
}

impl Machine {
    fn start_dns(&self, gateway: std::net::Ipv4Addr) -> std::result::Result<(), String> {
        let settings = &self.settings;
        let mut config = DnsConfig::new(
            settings.cluster_domain.clone(),
            vec![SocketAddr::new(gateway.into(), 53)],
        );
        config.own_addresses = vec![settings.dns_service(), gateway.into()];
        let dns = Dns::bind(&config, &self.network_informers).map_err(|error| error.to_string())?;
        self.tasks
            .spawn("cluster-dns", OnExit::Critical, dns.run(self.tasks.drain()));
        Ok(())
    }
}

/// Removes what a server left on this machine; its data stays.
pub async fn cleanup(settings: &Settings) -> Result<()> {
    let tasks = Tasks::new();
    let runtime = Embedded::open(runtime_config(settings), &tasks).await?;
    runtime.cleanup().await?;
    tasks.shutdown(Duration::from_secs(5)).await;
    // The range only says which rules and links are ours; those are found by name.
    let config = pod_network_config(settings, ipnet::Ipv4Net::new_assert(settings.pod_cidr.network(), 24));
    let node = node_dir(settings);
    tokio::task::spawn_blocking(move || sampan_volumes::cleanup(&node)).await??;
    tokio::task::spawn_blocking(move || sampan_network::cleanup(&config)).await??;
    Ok(())
}
