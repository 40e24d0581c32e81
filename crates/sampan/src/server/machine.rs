//! What needs the machine: node, pod network, service proxy and DNS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_auth::UserInfo;
use sampan_client::Informers;
use sampan_network::{Dns, DnsConfig, Host, PodNetwork, PodNetworkConfig, Proxy, ProxyConfig};
use sampan_node::{ClusterDns, Node, NodeConfig, ServerTls};
use sampan_pki::tls::{self, ClientVerifier};
use sampan_runtime::embedded::{Config as RuntimeConfig, Embedded};
use sampan_tasks::{OnExit, Tasks};
use tokio::sync::watch;

use super::{Result, Server, dns, network};
use crate::options::{Role, Settings};

/// Starts what is enabled.
pub(super) async fn start(server: &Server) -> Result<()> {
    let settings = &server.settings;
    if settings.runs(Role::Node) {
        let (adapter, network) = network::NodeNetwork::new();
        start_node(server, adapter).await?;
        let dns_client = settings
            .runs(Role::Dns)
            .then(|| server.client(UserInfo::new("system:sampan:dns", ["system:masters"])));
        let work = network_parts(
            settings.clone(),
            server.informers.clone(),
            server.tasks.clone(),
            dns_client,
            network,
        );
        server.tasks.spawn_until_drain("pod-network", OnExit::Expected, work);
    }
    if settings.runs(Role::Proxy) {
        let config = proxy_config(settings);
        Proxy::prepare(&config).await?;
        let proxy = Proxy::new(config, &server.informers);
        server
            .tasks
            .spawn("service-proxy", OnExit::Critical, proxy.run(server.tasks.drain()));
    }
    Ok(())
}

/// The container runtime and the node's agent on it.
async fn start_node(server: &Server, network: network::NodeNetwork) -> Result<()> {
    let (settings, pki) = (&server.settings, &server.pki);
    let runtime = Embedded::open(runtime_config(settings), &server.tasks).await?;
    let mut config = NodeConfig::new(
        settings.node_name.clone(),
        vec![settings.node_ip],
        settings.data_dir.join("node"),
    );
    config.port = settings.node_port;
    config.housekeeping.eviction = settings.eviction.clone();
    (config.housekeeping.image_gc_high, config.housekeeping.image_gc_low) = settings.image_gc;
    config.cluster_dns = ClusterDns {
        servers: vec![settings.dns_service().to_string()],
        domain: settings.cluster_domain.clone(),
    };
    let identity = pki.node_serving(&settings.node_name, &[settings.node_ip])?;
    let tls = ServerTls {
        config: tls::strict_server_config(&identity, &ClientVerifier::new(pki.ca())?)?,
    };
    let client = server.client(UserInfo::node(&settings.node_name));
    Node::start(
        config,
        client,
        &server.informers,
        runtime,
        Arc::new(network),
        Some(tls),
        &server.tasks,
    )
    .await?;
    Ok(())
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

fn proxy_config(settings: &Settings) -> ProxyConfig {
    ProxyConfig {
        node: settings.node_name.clone(),
        cluster_cidr: settings.pod_cidr,
        host: Host::This,
    }
}

/// Waits for the node's Pod range, then brings up the pod network and, where enabled, DNS on its bridge.
async fn network_parts(
    settings: Settings,
    informers: Informers,
    tasks: Tasks,
    dns_client: Option<kube::Client>,
    ready: watch::Sender<Option<PodNetwork>>,
) {
    let range = network::pod_range(&informers, &settings.node_name).await;
    let network = match PodNetwork::new(pod_network_config(&settings, range)).await {
        Ok(network) => network,
        Err(error) => {
            tracing::error!(%error, "the pod network could not be set up; Pods of this node stay without");
            return;
        }
    };
    let gateway = network.gateway();
    let (guarded, drain) = (network.clone(), tasks.drain());
    tasks.spawn("pod-network-rules", OnExit::Expected, async move {
        if let Err(error) = guarded.guard(drain).await {
            tracing::error!(%error, "the rules of Pods are no longer watched; if somebody removes them, restart");
        }
    });
    tracing::info!(%range, "pod network ready");
    ready.send_replace(Some(network));
    if let Some(client) = dns_client
        && let Err(error) = start_dns(&settings, &informers, &tasks, &client, gateway).await
    {
        tracing::error!(
            error,
            "cluster DNS could not be started; names of Services do not resolve"
        );
    }
    // The sender stays: Pods ask for the network as long as the server runs.
    std::future::pending::<()>().await;
}

async fn start_dns(
    settings: &Settings,
    informers: &Informers,
    tasks: &Tasks,
    client: &kube::Client,
    gateway: std::net::Ipv4Addr,
) -> std::result::Result<(), String> {
    let mut config = DnsConfig::new(
        settings.cluster_domain.clone(),
        vec![SocketAddr::new(gateway.into(), 53)],
    );
    config.own_addresses = vec![settings.dns_service(), gateway.into()];
    let dns = Dns::bind(&config, informers).map_err(|error| error.to_string())?;
    tasks.spawn("cluster-dns", OnExit::Critical, dns.run(tasks.drain()));
    dns::publish(client, &settings.node_name, settings.dns_service(), gateway)
        .await
        .map_err(|error| error.to_string())
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
