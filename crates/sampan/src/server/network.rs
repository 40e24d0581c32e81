//! The pod network as the node sees it: an adapter between two crates that do not know each other.
//!
//! A node learns its Pod range from the cluster, so the network comes into being some moments after the node does.
//! Until then a Pod that asks for a network waits, and is told why if it waits long.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use sampan_client::{Informers, Selection};
use sampan_network::{HostPort, PodNetwork, PodSetup, Protocol, netns};
use sampan_node::network::{NetworkError, NetworkRequest, PodNetworkStatus, PodNetworking};
use tokio::sync::watch;

/// How long a Pod waits for the network before its sandbox fails with a reason (and is tried again).
const PATIENCE: Duration = Duration::from_secs(20);

/// The pod network once it exists.
#[derive(Clone)]
pub struct NodeNetwork {
    ready: watch::Receiver<Option<PodNetwork>>,
    netns_dir: PathBuf,
}

impl NodeNetwork {
    /// The adapter, and where to put the network when it is there.
    pub fn new(netns_dir: PathBuf) -> (Self, watch::Sender<Option<PodNetwork>>) {
        let (sender, ready) = watch::channel(None);
        (NodeNetwork { ready, netns_dir }, sender)
    }

    async fn network(&self) -> Result<PodNetwork, NetworkError> {
        let mut ready = self.ready.clone();
        let wait = ready.wait_for(Option::is_some);
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(network)) => network
                .clone()
                .ok_or_else(|| NetworkError("the pod network is gone".into())),
            Ok(Err(_)) => Err(NetworkError(
                "the pod network could not be set up; the server's log says why".into(),
            )),
            Err(_) => Err(NetworkError(
                "network is not ready: this node has no Pod range yet (do controllers run?)".into(),
            )),
        }
    }
}

/// One network namespace per attempt at a Pod's sandbox.
fn key(request: &NetworkRequest) -> String {
    format!("{}-{}", request.uid, request.attempt)
}

fn failed(error: impl std::fmt::Display) -> NetworkError {
    NetworkError(error.to_string())
}

fn host_ports(request: &NetworkRequest) -> Result<Vec<HostPort>, NetworkError> {
    let ports = request.host_ports.iter().map(|port| {
        let host_ip: Option<Ipv4Addr> = match port.host_ip.as_str() {
            "" | "0.0.0.0" => None,
            text => Some(
                text.parse()
                    .map_err(|_| NetworkError(format!("host address {text} is not an IPv4 address")))?,
            ),
        };
        Ok(HostPort {
            protocol: Protocol::parse(Some(&port.protocol))
                .ok_or_else(|| NetworkError(format!("no protocol {}", port.protocol)))?,
            host_ip,
            host_port: port.host_port,
            container_port: port.container_port,
        })
    });
    ports.collect()
}

#[async_trait]
impl PodNetworking for NodeNetwork {
    async fn setup(&self, request: &NetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        let network = self.network().await?;
        let (dir, name) = (self.netns_dir.clone(), key(request));
        let made = tokio::task::spawn_blocking(move || netns::create(&dir, &name))
            .await
            .map_err(failed)?;
        let netns = made.map_err(failed)?;
        let setup = PodSetup {
            uid: key(request),
            netns: netns.clone(),
            host_ports: host_ports(request)?,
        };
        let status = network.setup(setup).await.map_err(failed)?;
        Ok(PodNetworkStatus {
            netns,
            ips: vec![status.ip.to_string()],
        })
    }

    async fn adopt(&self, request: &NetworkRequest, status: &PodNetworkStatus) -> Result<(), NetworkError> {
        // The network keeps records of its own; setting up again mends whatever is missing.
        let network = self.network().await?;
        let setup = PodSetup {
            uid: key(request),
            netns: status.netns.clone(),
            host_ports: host_ports(request)?,
        };
        network.setup(setup).await.map(|_| ()).map_err(failed)
    }

    async fn teardown(&self, request: &NetworkRequest) -> Result<(), NetworkError> {
        let network = self.network().await?;
        network.teardown(&key(request)).await.map_err(failed)?;
        let (dir, name) = (self.netns_dir.clone(), key(request));
        tokio::task::spawn_blocking(move || netns::remove(&dir.join(name)))
            .await
            .map_err(failed)?
            .map_err(failed)
    }
}

/// Waits until the cluster has given this node its Pod range.
pub async fn pod_range(informers: &Informers, node: &str) -> Ipv4Net {
    let nodes = informers.with::<Node>(Selection::fields(format!("metadata.name={node}")));
    let (found, mut range) = watch::channel(None);
    nodes.on_change(move |change| {
        let spec = change.object().spec.as_ref();
        let ranges = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let first = ranges.into_iter().chain(spec.and_then(|spec| spec.pod_cidr.clone()));
        if let Some(range) = first.filter_map(|range| range.parse::<Ipv4Net>().ok()).next() {
            found.send_replace(Some(range));
        }
    });
    match range.wait_for(Option::is_some).await.map(|range| *range) {
        Ok(Some(range)) => range,
        // The informer ended: the process is draining.
        _ => std::future::pending().await,
    }
}
