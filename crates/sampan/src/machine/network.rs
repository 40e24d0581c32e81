//! The pod network as the node sees it before it is there.
//!
//! A node learns its Pod range from the cluster, so the network comes into being some moments after the node does.
//! Until then a Pod that asks for a network waits, and is told why if it waits long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use sampan_client::{Informers, Selection};
use sampan_network::PodNetwork;
use sampan_node::network::{NetworkError, NetworkRequest, PodNetworkStatus, PodNetworking};
use tokio::sync::watch;

/// How long a Pod waits for the network before its sandbox fails with a reason (and is tried again).
const PATIENCE: Duration = Duration::from_secs(20);

/// The pod network once it exists.
#[derive(Clone)]
pub struct NodeNetwork {
    ready: watch::Receiver<Option<PodNetwork>>,
    namespaces: PathBuf,
}

impl NodeNetwork {
    /// The adapter, and where to put the network when it is there.
    pub fn new(namespaces: PathBuf) -> (Self, watch::Sender<Option<PodNetwork>>) {
        let (sender, ready) = watch::channel(None);
        (NodeNetwork { ready, namespaces }, sender)
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

#[async_trait]
impl PodNetworking for NodeNetwork {
    fn namespaces(&self) -> &Path {
        &self.namespaces
    }

    async fn setup(&self, request: &NetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        PodNetworking::setup(&self.network().await?, request).await
    }

    async fn adopt(&self, request: &NetworkRequest, status: &PodNetworkStatus) -> Result<(), NetworkError> {
        PodNetworking::adopt(&self.network().await?, request, status).await
    }

    async fn teardown(&self, request: &NetworkRequest) -> Result<(), NetworkError> {
        PodNetworking::teardown(&self.network().await?, request).await
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
