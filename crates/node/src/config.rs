//! How a node is set up. Read once at start; nothing here changes while it runs.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use crate::devices::DeviceResource;
use crate::pod::files::ClusterDns;
use crate::thresholds::Eviction;

/// Thresholds and bounds of housekeeping.
#[derive(Clone, Debug)]
pub struct Housekeeping {
    /// Images are removed once their file system is fuller than this (percent) …
    pub image_gc_high: u8,
    /// … until it is this full.
    pub image_gc_low: u8,
    /// An image younger than this is never removed.
    pub image_min_age: Duration,
    /// A log file larger than this is rotated …
    pub log_max_bytes: u64,
    /// … and this many files are kept of a container.
    pub log_max_files: usize,
    /// How often sizes are looked at. What happens on the disk gives no events.
    pub period: Duration,
    pub eviction: Eviction,
}

impl Default for Housekeeping {
    fn default() -> Self {
        Self {
            image_gc_high: 85,
            image_gc_low: 80,
            image_min_age: Duration::from_secs(120),
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            period: Duration::from_secs(10),
            eviction: Eviction::default(),
        }
    }
}

/// The machine's resolver configuration. A stub resolver on loopback is out of reach for Pods: then the servers behind it.
fn host_resolv_conf() -> PathBuf {
    let usual = PathBuf::from("/etc/resolv.conf");
    let behind = PathBuf::from("/run/systemd/resolve/resolv.conf");
    let stub = std::fs::read_to_string(&usual).is_ok_and(|text| text.contains("nameserver 127.0.0.53"));
    if stub && behind.exists() { behind } else { usual }
}

/// What a node's object is created with besides what is measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registration {
    /// A cloud provider says what the node's addresses are, and takes the taint away once it has.
    pub external_cloud: bool,
    /// Somebody chose the node's address: the provider is told.
    pub address_given: bool,
    /// What the provider calls the machine.
    pub provider_id: Option<String>,
    /// Further taints.
    pub taints: Vec<Taint>,
}

/// The configuration of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub name: String,
    /// The node's own addresses, the preferred first.
    pub addresses: Vec<IpAddr>,
    /// Everything the node keeps is below this.
    pub data_dir: PathBuf,
    pub cluster_dns: ClusterDns,
    /// The resolver configuration Pods inherit from the machine.
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    pub pod_pids_limit: Option<i64>,
    /// Port of the node's server.
    pub port: u16,
    /// Parent of `kubepods` in every control-group hierarchy; empty for the root.
    pub cgroup_root: String,
    /// Containers that name no seccomp profile get the runtime's.
    pub seccomp_default: bool,
    /// Labels to register with, besides the well-known ones.
    pub labels: Vec<(String, String)>,
    pub registration: Registration,
    /// Version shown as the kubelet's.
    pub version: String,
    /// How often the lease is renewed.
    pub lease_period: Duration,
    /// How often an unchanged status is written again.
    pub status_report_period: Duration,
    pub housekeeping: Housekeeping,
    /// Devices that Pods can ask for.
    pub devices: Vec<DeviceResource>,
    /// Where the directories of local volumes are: data that outlives Pods.
    pub local_volumes: PathBuf,
}

impl NodeConfig {
    /// Defaults for a node of this name.
    pub fn new(name: impl Into<String>, addresses: Vec<IpAddr>, data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            name: name.into(),
            addresses,
            local_volumes: data_dir.join("local-volumes"),
            data_dir,
            cluster_dns: ClusterDns::default(),
            resolv_conf: host_resolv_conf(),
            max_pods: 110,
            pod_pids_limit: None,
            port: 10250,
            cgroup_root: String::new(),
            seccomp_default: false,
            labels: Vec::new(),
            registration: Registration::default(),
            version: format!("v1.36.0+sampan{}", env!("CARGO_PKG_VERSION")),
            lease_period: Duration::from_secs(10),
            status_report_period: Duration::from_secs(300),
            housekeeping: Housekeeping::default(),
            devices: Vec::new(),
        }
    }

    /// Logs of all Pods.
    pub fn pod_logs_dir(&self) -> PathBuf {
        self.data_dir.join("logs")
    }

    /// Seccomp profiles that manifests name.
    pub fn seccomp_profile_root(&self) -> PathBuf {
        self.data_dir.join("seccomp")
    }

    pub fn host_ips(&self) -> Vec<String> {
        self.addresses.iter().map(IpAddr::to_string).collect()
    }

    /// A node that takes Pods however full the disk of the machine under the tests is.
    #[cfg(test)]
    pub(crate) fn for_tests(data_dir: &std::path::Path) -> Self {
        let mut config = Self::new("node-1", vec![IpAddr::from([192, 0, 2, 1])], data_dir);
        config.housekeeping.eviction = Eviction::OFF;
        config.housekeeping.image_gc_high = 100;
        config
    }
}
