//! What the node needs of the pod network: a namespace with addresses before a sandbox is made, and its end after.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

/// A port of the node that leads to the Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub host_ip: String,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: String,
}

/// For which Pod. `uid` and `attempt` together name one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkRequest {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub attempt: u32,
    pub host_ports: Vec<HostPort>,
    pub annotations: BTreeMap<String, String>,
    /// What network policies ask of it: its labels and the names of its ports.
    pub policy: sampan_network::policy::spec::PodView,
}

/// What the Pod got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetworkStatus {
    pub netns: PathBuf,
    /// The preferred address first.
    pub ips: Vec<String>,
}

/// Why the network could not be set up or removed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// The pod network as the node uses it. All operations are idempotent.
#[async_trait]
pub trait PodNetworking: Send + Sync {
    /// Makes the Pod's network namespace and gives it addresses and host ports.
    async fn setup(&self, request: &NetworkRequest) -> Result<PodNetworkStatus, NetworkError>;
    /// Says that a Pod set up by an earlier process still has its network.
    async fn adopt(&self, request: &NetworkRequest, status: &PodNetworkStatus) -> Result<(), NetworkError>;
    /// Where network namespaces are kept.
    fn namespaces(&self) -> &Path;
    /// Where the Pod's network namespace is, or will be.
    fn namespace(&self, request: &NetworkRequest) -> PathBuf {
        self.namespaces().join(key(request))
    }
    /// Gives addresses and ports back and removes the namespace, and the user namespace it belongs to.
    async fn teardown(&self, request: &NetworkRequest) -> Result<(), NetworkError>;
}

/// Where the user namespace that a network namespace belongs to is kept.
pub fn users_path(netns: &Path) -> PathBuf {
    let mut name = netns.as_os_str().to_owned();
    name.push(".users");
    name.into()
}

/// The request for a Pod's sandbox.
pub fn request(pod: &Pod, attempt: u32) -> NetworkRequest {
    NetworkRequest {
        namespace: crate::pod::namespace(pod).to_owned(),
        name: crate::pod::name(pod).to_owned(),
        uid: crate::pod::uid(pod).to_owned(),
        attempt,
        host_ports: host_ports(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        policy: sampan_network::policy::spec::PodView {
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ports: sampan_network::policy::spec::named_ports(pod),
            ..Default::default()
        },
    }
}

/// The host ports of a Pod's containers and sidecars. Ports that are no ports are left to validation.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let sidecars = crate::pod::init_containers(pod)
        .iter()
        .filter(|container| crate::pod::is_sidecar(container));
    let ports = crate::pod::containers(pod)
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_port = u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?;
            Some(HostPort {
                host_ip: port.host_ip.clone().unwrap_or_default(),
                host_port,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect()
}

/// A network for tests: hands out addresses, makes nothing.
#[derive(Default)]
pub struct FakeNetworking {
    state: Mutex<(u8, BTreeMap<String, PodNetworkStatus>, Vec<String>)>,
}

impl FakeNetworking {
    /// What was asked, in order.
    pub fn calls(&self) -> Vec<String> {
        self.lock().2.clone()
    }
    /// The uids that have a network now.
    pub fn present(&self) -> Vec<String> {
        self.lock().1.keys().cloned().collect()
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, (u8, BTreeMap<String, PodNetworkStatus>, Vec<String>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl PodNetworking for FakeNetworking {
    async fn setup(&self, request: &NetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        let mut state = self.lock();
        state.2.push(format!("setup {}", request.name));
        if let Some(status) = state.1.get(&request.uid) {
            return Ok(status.clone());
        }
        state.0 = state.0.wrapping_add(1);
        // Loopback addresses, so that probes in tests reach listeners of the test.
        let status = PodNetworkStatus {
            netns: self.namespace(request),
            ips: vec![format!("127.0.1.{}", state.0)],
        };
        state.1.insert(request.uid.clone(), status.clone());
        Ok(status)
    }
    async fn adopt(&self, request: &NetworkRequest, status: &PodNetworkStatus) -> Result<(), NetworkError> {
        let mut state = self.lock();
        state.2.push(format!("adopt {}", request.name));
        state.1.insert(request.uid.clone(), status.clone());
        Ok(())
    }
    fn namespaces(&self) -> &Path {
        Path::new("/var/run/netns")
    }
    async fn teardown(&self, request: &NetworkRequest) -> Result<(), NetworkError> {
        let mut state = self.lock();
        state.2.push(format!("teardown {}", request.name));
        state.1.remove(&request.uid);
        Ok(())
    }
}

/// One network namespace per attempt at a Pod's sandbox: an attempt that ends takes nothing from the next.
fn key(request: &NetworkRequest) -> String {
    format!("{}-{}", request.uid, request.attempt)
}

/// The network crate's pod network, as the node uses it.
#[async_trait]
impl PodNetworking for sampan_network::PodNetwork {
    async fn setup(&self, request: &NetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        let dir = self.config().netns_dir.clone();
        let name = key(request);
        let made = tokio::task::spawn_blocking(move || sampan_network::netns::create(&dir, &name));
        let netns = made
            .await
            .map_err(|error| NetworkError(error.to_string()))?
            .map_err(|error| NetworkError(format!("cannot make a network namespace: {error}")))?;
        wire(self, request, netns).await
    }

    async fn adopt(&self, request: &NetworkRequest, status: &PodNetworkStatus) -> Result<(), NetworkError> {
        wire(self, request, status.netns.clone()).await.map(drop)
    }

    fn namespaces(&self) -> &Path {
        &self.config().netns_dir
    }

    async fn teardown(&self, request: &NetworkRequest) -> Result<(), NetworkError> {
        let down = sampan_network::PodNetwork::teardown(self, &key(request)).await;
        down.map_err(|error| NetworkError(error.to_string()))?;
        let path = self.namespace(request);
        let removed = tokio::task::spawn_blocking(move || {
            sampan_network::netns::remove(&path)?;
            sampan_network::netns::remove(&users_path(&path))
        });
        removed
            .await
            .map_err(|error| NetworkError(error.to_string()))?
            .map_err(|error| NetworkError(format!("cannot remove a network namespace: {error}")))
    }
}

async fn wire(
    network: &sampan_network::PodNetwork,
    request: &NetworkRequest,
    netns: PathBuf,
) -> Result<PodNetworkStatus, NetworkError> {
    let host_ports = request.host_ports.iter().map(|port| {
        let host_ip = match port.host_ip.as_str() {
            "" | "0.0.0.0" => None,
            text => Some(
                text.parse()
                    .map_err(|_| NetworkError(format!("host address {text} is not an IPv4 address")))?,
            ),
        };
        Ok(sampan_network::HostPort {
            protocol: sampan_network::Protocol::parse(Some(&port.protocol))
                .ok_or_else(|| NetworkError(format!("no protocol {}", port.protocol)))?,
            host_ip,
            host_port: port.host_port,
            container_port: port.container_port,
        })
    });
    let host_ports = host_ports.collect::<Result<_, NetworkError>>()?;
    let setup = sampan_network::PodSetup {
        uid: key(request),
        netns: netns.clone(),
        host_ports,
        pod: Some(sampan_network::PodIdentity {
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            view: request.policy.clone(),
        }),
    };
    let status = sampan_network::PodNetwork::setup(network, setup)
        .await
        .map_err(|error| NetworkError(error.to_string()))?;
    Ok(PodNetworkStatus {
        netns,
        ips: vec![status.ip.to_string()],
    })
}
