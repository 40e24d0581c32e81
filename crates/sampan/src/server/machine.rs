//! What needs the machine: node, pod network, service proxy and DNS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sampan_auth::UserInfo;
use sampan_client::Informers;
use sampan_network::{Dns, DnsConfig, Host, PodNetwork, PodNetworkConfig, Proxy, ProxyConfig};
use sampan_tasks::{OnExit, Tasks};
use tokio::sync::watch;

use super::{Result, Server, dns, network};
use crate::options::{Role, Settings};

/// What needs the machine: node, pod network, proxy, DNS.
pub(super) async fn start(server: &Server) -> Result<()> {
    let settings = &self.settings;
    let netns_dir = netns_dir(settings);
    let (adapter, network) = network::NodeNetwork::new(netns_dir);
    if settings.runs(Role::Node) {
        self.start_node(adapter).await?;
        let work = network_parts(
            self.settings.clone(),
            self.informers.clone(),
            self.tasks.clone(),
            self.dns_client(),
            network,
        );
        self.tasks.spawn_until_drain("pod-network", OnExit::Expected, work);
    }
    if settings.runs(Role::Proxy) {
        let config = proxy_config(settings);
        Proxy::prepare(&config).await?;
        let proxy = Proxy::new(config, &self.informers);
        self.tasks
            .spawn("service-proxy", OnExit::Critical, proxy.run(self.tasks.drain()));
    }
    Ok(())
}

fn dns_client(&self) -> Option<kube::Client> {
    let enabled = self.settings.runs(Role::Dns);
    enabled.then(|| self.client(UserInfo::new("system:sampan:dns", ["system:masters"])))
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
    // The range only says which rules and links are ours; those are found by name.
    let config = pod_network_config(settings, ipnet::Ipv4Net::new_assert(settings.pod_cidr.network(), 24));
    let root = settings.data_dir.clone();
    sampan_runtime::embedded::cleanup(&runtime_config(&root)).await?;
    tokio::task::spawn_blocking(move || sampan_network::cleanup(&config)).await??;
    Ok(())
}
