//! Configuration: flags, environment and one YAML file, parsed once and refused early with the reason and the fix.
//!
//! [`Options`] is the same set of names three times: as flags (`--data-dir`), as environment (`SAMPAN_DATA_DIR`) and as
//! keys of the file (`dataDir`). A flag beats the environment beats the file beats the default. [`Settings`] is what
//! comes out: complete, checked, and all that the rest of the program sees.

mod audit;

pub use audit::AuditOptions;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ipnet::{IpNet, Ipv4Net};
use sampan_node::Eviction;
use sampan_node::devices::DeviceResource;
use serde::Deserialize;

/// What may be set. `None`: not said here.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    /// Where everything is kept: the store, certificates, images, volumes, the admin kubeconfig
    #[arg(long, env = "SAMPAN_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The API's address; an address without a port means port 6443
    #[arg(long, env = "SAMPAN_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Roles to leave out, separated by commas
    #[arg(long, env = "SAMPAN_DISABLE", value_name = "ROLE,...", value_delimiter = ',')]
    pub disable: Option<Vec<Role>>,
    /// This machine's name in the cluster [default: the host name]
    #[arg(long, env = "SAMPAN_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// This machine's address for the rest of the cluster [default: that of the default route]
    #[arg(long, env = "SAMPAN_NODE_IP", value_name = "ADDR")]
    pub node_ip: Option<IpAddr>,
    /// Port of the node's own server (logs, exec, metrics)
    #[arg(long, env = "SAMPAN_NODE_PORT", value_name = "PORT")]
    pub node_port: Option<u16>,
    /// Pods get their addresses from here
    #[arg(long, env = "SAMPAN_POD_CIDR", value_name = "CIDR")]
    pub pod_cidr: Option<Ipv4Net>,
    /// Services get their addresses from here
    #[arg(long, env = "SAMPAN_SERVICE_CIDR", value_name = "CIDR")]
    pub service_cidr: Option<Ipv4Net>,
    /// Keep the cluster in this etcd instead of the data directory; several servers may share it
    #[arg(long, env = "SAMPAN_ETCD_SERVERS", value_name = "URL,...", value_delimiter = ',')]
    pub etcd_servers: Option<Vec<String>>,
    /// The authority that etcd's certificates are checked against (PEM)
    #[arg(long, env = "SAMPAN_ETCD_CAFILE", value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// The certificate that etcd knows this server by (PEM)
    #[arg(long, env = "SAMPAN_ETCD_CERTFILE", value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of --etcd-certfile (PEM)
    #[arg(long, env = "SAMPAN_ETCD_KEYFILE", value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Where in etcd the cluster's keys begin [default: /registry]
    #[arg(long, env = "SAMPAN_ETCD_PREFIX", value_name = "PATH")]
    pub etcd_prefix: Option<String>,
    /// How much history the store keeps (etcd's or the embedded one), for watches and long lists: older states are
    /// forgotten as often; 0 keeps everything [default: 5m]
    #[arg(long, env = "SAMPAN_ETCD_COMPACTION_INTERVAL", value_name = "DURATION")]
    pub etcd_compaction_interval: Option<String>,
    /// The token that opens the cluster's sealed keys, from another server [default: cluster-token in the data directory]
    #[arg(long, env = "SAMPAN_CLUSTER_TOKEN_FILE", value_name = "FILE")]
    pub cluster_token_file: Option<PathBuf>,
    /// Ports that NodePort Services get, as FIRST-LAST
    #[arg(long, env = "SAMPAN_NODE_PORT_RANGE", value_name = "FIRST-LAST")]
    pub node_port_range: Option<String>,
    /// The cluster's DNS domain
    #[arg(long, env = "SAMPAN_CLUSTER_DOMAIN", value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Further names and addresses for the API's certificate, separated by commas
    #[arg(long, env = "SAMPAN_TLS_SAN", value_name = "NAME,...", value_delimiter = ',')]
    pub tls_san: Option<Vec<String>>,
    /// Requests that change nothing, worked on at once; together with the other number, the seats that priority
    /// levels share [default: 400]
    #[arg(long, env = "SAMPAN_MAX_REQUESTS_INFLIGHT", value_name = "NUMBER")]
    pub max_requests_inflight: Option<usize>,
    /// Requests that change something, worked on at once [default: 200]
    #[arg(long, env = "SAMPAN_MAX_MUTATING_REQUESTS_INFLIGHT", value_name = "NUMBER")]
    pub max_mutating_requests_inflight: Option<usize>,
    /// Registries (host or host:port) that may be spoken to without TLS, separated by commas
    #[arg(
        long,
        env = "SAMPAN_INSECURE_REGISTRIES",
        value_name = "HOST,...",
        value_delimiter = ','
    )]
    pub insecure_registries: Option<Vec<String>>,
    /// Devices of this machine that Pods may ask for under a name, as example.com/tun=/dev/net/tun*10: for ten at a time;
    /// several files of one name are separated by commas, names by semicolons, and the option may be repeated
    #[arg(
        long = "device",
        env = "SAMPAN_DEVICES",
        value_name = "NAME=PATH[*COUNT],...",
        value_delimiter = ';'
    )]
    pub devices: Option<Vec<String>>,
    /// How little of a resource may be left before Pods are evicted and none are taken; signals that are not named are
    /// off [default: memory.available<100Mi,pid.available<5% and of disks nodefs.available<10%, imagefs.available<15%,
    /// nodefs.inodesFree<5% and imagefs.inodesFree<5%]
    #[arg(long, env = "SAMPAN_EVICTION_HARD", value_name = "SIGNAL<VALUE,...")]
    pub eviction_hard: Option<String>,
    /// Unused images are removed once their file system is fuller than this percentage; 100 keeps them [default: 85]
    #[arg(long, env = "SAMPAN_IMAGE_GC_HIGH_THRESHOLD", value_name = "PERCENT")]
    pub image_gc_high_threshold: Option<u8>,
    /// ... until it is this full [default: 80]
    #[arg(long, env = "SAMPAN_IMAGE_GC_LOW_THRESHOLD", value_name = "PERCENT")]
    pub image_gc_low_threshold: Option<u8>,
    /// Admission plugins to switch on besides the usual ones, separated by commas
    #[arg(
        long,
        env = "SAMPAN_ENABLE_ADMISSION_PLUGINS",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub enable_admission_plugins: Option<Vec<String>>,
    /// Admission plugins to switch off, separated by commas
    #[arg(
        long,
        env = "SAMPAN_DISABLE_ADMISSION_PLUGINS",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub disable_admission_plugins: Option<Vec<String>>,
    /// A file that configures admission plugins (an AdmissionConfiguration)
    #[arg(long, env = "SAMPAN_ADMISSION_CONTROL_CONFIG_FILE", value_name = "FILE")]
    pub admission_control_config_file: Option<PathBuf>,
    /// Whether priority levels share the seats; else the two numbers of requests are limits of their own [default: true]
    #[arg(
        long,
        env = "SAMPAN_ENABLE_PRIORITY_AND_FAIRNESS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub enable_priority_and_fairness: Option<bool>,
    /// Who is asking and who may
    #[command(flatten)]
    pub access: crate::access::Access,
    #[command(flatten)]
    pub cloud: crate::cloud::Cloud,
    #[command(flatten)]
    pub controllers: crate::tuning::Tuning,
    /// What to do with Pods and the Pod network when the server is asked to stop
    #[arg(long, env = "SAMPAN_ON_EXIT", value_name = "WHAT")]
    pub on_exit: Option<OnExit>,
    /// What is encrypted in the store, and how (an EncryptionConfiguration)
    #[arg(long, env = "SAMPAN_ENCRYPTION_PROVIDER_CONFIG", value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Follow changes of --encryption-provider-config [default: false]
    #[arg(
        long,
        env = "SAMPAN_ENCRYPTION_PROVIDER_CONFIG_AUTOMATIC_RELOAD",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub encryption_provider_config_automatic_reload: Option<bool>,
    /// The scheduler's profiles, plugins and extenders (a KubeSchedulerConfiguration)
    #[arg(long, env = "SAMPAN_SCHEDULER_CONFIG", value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// The audit log
    #[command(flatten)]
    pub audit: AuditOptions,
}

/// A part of the cluster that can be left out of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Node,
    Scheduler,
    Controllers,
    Dns,
    Proxy,
}

/// What stopping the server means for what runs on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExit {
    /// Containers go on; the next start adopts them.
    #[default]
    Keep,
    /// Everything the server made on the machine is removed: containers, mounts, network.
    Clean,
}

/// Why the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not valid: {reason}", path.display())]
    Parse { path: PathBuf, reason: String },
    #[error(transparent)]
    Scheduler(#[from] sampan_scheduler::ConfigurationError),
    #[error("{option} is {value:?}: {reason}")]
    Invalid {
        option: &'static str,
        value: String,
        reason: String,
    },
}

/// The complete configuration of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub disabled: BTreeSet<Role>,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub node_port: u16,
    pub pod_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    /// `None`: the store is embedded.
    pub etcd: Option<sampan_store::etcd::Options>,
    /// `None`: history is never forgotten.
    pub compaction_interval: Option<std::time::Duration>,
    pub cluster_token_file: PathBuf,
    pub node_port_range: (u16, u16),
    pub cluster_domain: String,
    pub tls_san: Vec<String>,
    /// Reading and writing requests at once.
    pub in_flight: (usize, usize),
    pub insecure_registries: Vec<String>,
    pub devices: Vec<DeviceResource>,
    pub eviction: Eviction,
    /// Percent of the images' file system: collection begins above the first and ends at the second.
    pub image_gc: (u8, u8),
    pub enable_admission_plugins: Vec<String>,
    pub disable_admission_plugins: Vec<String>,
    pub admission_control_config_file: Option<PathBuf>,
    pub priority_and_fairness: bool,
    pub access: crate::access::Settled,
    pub registration: sampan_node::Registration,
    pub controllers: crate::tuning::Tuning,
    pub on_exit: OnExit,
    /// An EncryptionConfiguration, and whether its file is followed.
    pub encryption_provider_config: Option<PathBuf>,
    pub encryption_reload: bool,
    pub audit: sampan_apiserver::audit::Options,
    pub scheduler: sampan_scheduler::Configuration,
}

pub const DEFAULT_DATA_DIR: &str = "/var/lib/sampan";

pub(crate) fn invalid(option: &'static str, value: impl ToString, reason: impl Into<String>) -> OptionsError {
    OptionsError::Invalid {
        option,
        value: value.to_string(),
        reason: reason.into(),
    }
}

fn devices(given: &[String]) -> Result<Vec<DeviceResource>, OptionsError> {
    let mut devices: Vec<DeviceResource> = Vec::new();
    for text in given {
        let device: DeviceResource = text.parse().map_err(|reason: String| invalid("device", text, reason))?;
        if devices.iter().any(|other| other.name() == device.name()) {
            return Err(invalid(
                "device",
                text,
                "this name was given already; separate its files by commas",
            ));
        }
        devices.push(device);
    }
    Ok(devices)
}

impl Options {
    /// The options of a file.
    pub fn read(path: &Path) -> Result<Options, OptionsError> {
        let text = std::fs::read_to_string(path).map_err(|source| OptionsError::Read {
            path: path.into(),
            source,
        })?;
        if text.trim().is_empty() {
            return Ok(Options::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| OptionsError::Parse {
            path: path.into(),
            reason: error.to_string(),
        })
    }

    /// What is said here, and for the rest what `file` says.
    pub fn over(self, file: Options) -> Options {
        Options {
            data_dir: self.data_dir.or(file.data_dir),
            listen: self.listen.or(file.listen),
            disable: self.disable.or(file.disable),
            node_name: self.node_name.or(file.node_name),
            node_ip: self.node_ip.or(file.node_ip),
            node_port: self.node_port.or(file.node_port),
            pod_cidr: self.pod_cidr.or(file.pod_cidr),
            service_cidr: self.service_cidr.or(file.service_cidr),
            etcd_servers: self.etcd_servers.or(file.etcd_servers),
            etcd_cafile: self.etcd_cafile.or(file.etcd_cafile),
            etcd_certfile: self.etcd_certfile.or(file.etcd_certfile),
            etcd_keyfile: self.etcd_keyfile.or(file.etcd_keyfile),
            etcd_prefix: self.etcd_prefix.or(file.etcd_prefix),
            etcd_compaction_interval: self.etcd_compaction_interval.or(file.etcd_compaction_interval),
            cluster_token_file: self.cluster_token_file.or(file.cluster_token_file),
            node_port_range: self.node_port_range.or(file.node_port_range),
            cluster_domain: self.cluster_domain.or(file.cluster_domain),
            tls_san: self.tls_san.or(file.tls_san),
            max_requests_inflight: self.max_requests_inflight.or(file.max_requests_inflight),
            max_mutating_requests_inflight: self
                .max_mutating_requests_inflight
                .or(file.max_mutating_requests_inflight),
            insecure_registries: self.insecure_registries.or(file.insecure_registries),
            devices: self.devices.or(file.devices),
            eviction_hard: self.eviction_hard.or(file.eviction_hard),
            image_gc_high_threshold: self.image_gc_high_threshold.or(file.image_gc_high_threshold),
            image_gc_low_threshold: self.image_gc_low_threshold.or(file.image_gc_low_threshold),
            enable_admission_plugins: self.enable_admission_plugins.or(file.enable_admission_plugins),
            disable_admission_plugins: self.disable_admission_plugins.or(file.disable_admission_plugins),
            admission_control_config_file: self
                .admission_control_config_file
                .or(file.admission_control_config_file),
            enable_priority_and_fairness: self.enable_priority_and_fairness.or(file.enable_priority_and_fairness),
            access: self.access.over(file.access),
            cloud: self.cloud.over(file.cloud),
            controllers: self.controllers.over(file.controllers),
            on_exit: self.on_exit.or(file.on_exit),
            encryption_provider_config: self.encryption_provider_config.or(file.encryption_provider_config),
            encryption_provider_config_automatic_reload: self
                .encryption_provider_config_automatic_reload
                .or(file.encryption_provider_config_automatic_reload),
            audit: self.audit.over(file.audit),
            scheduler_config: self.scheduler_config.or(file.scheduler_config),
        }
    }

    /// Fills in defaults from `machine` and checks everything.
    pub fn settle(self, machine: &Machine) -> Result<Settings, OptionsError> {
        let data_dir = self.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
        let data_dir = if data_dir.is_absolute() {
            data_dir
        } else {
            machine.directory.join(data_dir)
        };
        let listen = listen(self.listen.as_deref().unwrap_or("0.0.0.0:6443"))?;
        let node_name = self.node_name.unwrap_or_else(|| machine.host_name.to_ascii_lowercase());
        let problems = sampan_api::names::dns1123_subdomain(&node_name);
        if let Some(problem) = problems.first() {
            return Err(invalid("--node-name", node_name, problem.clone()));
        }
        let pod_cidr = self
            .pod_cidr
            .unwrap_or_else(|| Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16))
            .trunc();
        let service_cidr = self
            .service_cidr
            .unwrap_or_else(|| Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16))
            .trunc();
        if pod_cidr.prefix_len() > 24 {
            return Err(invalid(
                "--pod-cidr",
                pod_cidr,
                "each node takes a /24 of it; give at least a /24",
            ));
        }
        if !(12..=28).contains(&service_cidr.prefix_len()) {
            return Err(invalid("--service-cidr", service_cidr, "give a /12 to a /28"));
        }
        if pod_cidr.contains(&service_cidr) || service_cidr.contains(&pod_cidr) {
            return Err(invalid(
                "--service-cidr",
                service_cidr,
                format!("it overlaps --pod-cidr {pod_cidr}; choose another"),
            ));
        }
        let node_port_range = port_range(self.node_port_range.as_deref().unwrap_or("30000-32767"))?;
        let cluster_domain = self.cluster_domain.unwrap_or_else(|| "cluster.local".into());
        if let Some(problem) = sampan_api::names::dns1123_subdomain(&cluster_domain).first() {
            return Err(invalid("--cluster-domain", cluster_domain, problem.clone()));
        }
        let node_port = self.node_port.unwrap_or(10250);
        if node_port == listen.port() {
            return Err(invalid(
                "--node-port",
                node_port,
                "the API listens on this port; choose another",
            ));
        }
        let eviction = match &self.eviction_hard {
            None => Eviction::default(),
            Some(text) => text
                .parse()
                .map_err(|reason: String| invalid("--eviction-hard", text, reason))?,
        };
        let high = self.image_gc_high_threshold.unwrap_or(85);
        let low = self.image_gc_low_threshold.unwrap_or(80.min(high));
        if high > 100 {
            return Err(invalid("--image-gc-high-threshold", high, "give a percentage"));
        }
        if low > high {
            return Err(invalid(
                "--image-gc-low-threshold",
                low,
                format!("it is above the high threshold {high}; give less"),
            ));
        }
        let in_flight = (
            self.max_requests_inflight.unwrap_or(400),
            self.max_mutating_requests_inflight.unwrap_or(200),
        );
        let priority_and_fairness = self.enable_priority_and_fairness.unwrap_or(true);
        if priority_and_fairness && in_flight == (0, 0) {
            return Err(invalid(
                "--max-requests-inflight",
                0,
                "this and --max-mutating-requests-inflight cannot both be 0: nothing would be worked on",
            ));
        }
        let etcd = etcd(
            self.etcd_servers.unwrap_or_default(),
            [self.etcd_cafile, self.etcd_certfile, self.etcd_keyfile],
            self.etcd_prefix,
        )?;
        let text = self.etcd_compaction_interval.as_deref().unwrap_or("5m");
        let compaction_interval = match sampan_apiserver::request::go_duration(text) {
            Some(std::time::Duration::ZERO) => None,
            Some(interval) if interval.as_secs() > 0 => Some(interval),
            _ => {
                return Err(invalid(
                    "--etcd-compaction-interval",
                    text,
                    "give a second or more, such as 5m or 1h30m, or 0 for never",
                ));
            }
        };
        Ok(Settings {
            compaction_interval,
            etcd,
            cluster_token_file: self
                .cluster_token_file
                .unwrap_or_else(|| data_dir.join("cluster-token")),
            data_dir,
            in_flight,
            listen,
            disabled: self.disable.unwrap_or_default().into_iter().collect(),
            node_name,
            node_ip: self
                .node_ip
                .or(machine.address)
                .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            node_port,
            pod_cidr,
            service_cidr,
            node_port_range,
            cluster_domain,
            tls_san: self.tls_san.unwrap_or_default(),
            insecure_registries: self.insecure_registries.unwrap_or_default(),
            devices: devices(&self.devices.unwrap_or_default())?,
            eviction,
            image_gc: (high, low),
            enable_admission_plugins: self.enable_admission_plugins.unwrap_or_default(),
            disable_admission_plugins: self.disable_admission_plugins.unwrap_or_default(),
            admission_control_config_file: self
                .admission_control_config_file
                .map(|path| machine.directory.join(path)),
            priority_and_fairness,
            access: self.access.settle(&machine.directory)?,
            registration: self.cloud.settle(self.node_ip.is_some())?,
            controllers: {
                self.controllers.apply(&mut sampan_controllers::Config::default())?;
                self.controllers
            },
            on_exit: self.on_exit.unwrap_or_default(),
            encryption_provider_config: self.encryption_provider_config.map(|path| machine.directory.join(path)),
            encryption_reload: self.encryption_provider_config_automatic_reload.unwrap_or(false),
            audit: self.audit.settle(&machine.directory)?,
            scheduler: scheduler(self.scheduler_config.map(|path| machine.directory.join(path)))?,
        })
    }
}

/// The configuration of a scheduler that is a part of the server.
fn scheduler(path: Option<PathBuf>) -> Result<sampan_scheduler::Configuration, OptionsError> {
    let Some(path) = path else {
        return Ok(sampan_scheduler::Configuration::default());
    };
    let mut configuration = sampan_scheduler::Configuration::read(&path)?;
    let usual = sampan_scheduler::Configuration::default();
    if configuration.leader_election != usual.leader_election {
        let why = "leaderElection: a server elects where several share a store, and only there";
        configuration.ineffective.push(why.to_owned());
    }
    if configuration.kubeconfig.is_some() {
        let why = "clientConnection.kubeconfig: the scheduler is in the server it works for";
        configuration.ineffective.push(why.to_owned());
    }
    Ok(configuration)
}

/// How to reach etcd, if it is to be used: authority, certificate and key are files.
pub fn etcd(
    servers: Vec<String>,
    [ca_file, cert_file, key_file]: [Option<PathBuf>; 3],
    prefix: Option<String>,
) -> Result<Option<sampan_store::etcd::Options>, OptionsError> {
    if servers.is_empty() {
        let without = [
            ("--etcd-cafile", &ca_file),
            ("--etcd-certfile", &cert_file),
            ("--etcd-keyfile", &key_file),
        ];
        return match without
            .into_iter()
            .find_map(|(flag, file)| Some((flag, file.as_ref()?)))
        {
            Some((flag, file)) => Err(invalid(flag, file.display(), "it is of no use without --etcd-servers")),
            None => Ok(None),
        };
    }
    for server in &servers {
        if !server.starts_with("http://") && !server.starts_with("https://") {
            return Err(invalid(
                "--etcd-servers",
                server,
                "give URLs such as https://192.0.2.10:2379, separated by commas",
            ));
        }
    }
    Ok(Some(sampan_store::etcd::Options {
        servers,
        ca_file,
        cert_file,
        key_file,
        prefix: prefix.unwrap_or_else(|| "/registry".into()),
    }))
}

fn listen(text: &str) -> Result<SocketAddr, OptionsError> {
    if let Ok(address) = SocketAddr::from_str(text) {
        return Ok(address);
    }
    if let Ok(address) = IpAddr::from_str(text) {
        return Ok(SocketAddr::new(address, 6443));
    }
    if let Some(port) = text.strip_prefix(':').and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    Err(invalid(
        "--listen",
        text,
        "give an address and a port such as 0.0.0.0:6443 or [::]:6443",
    ))
}

fn port_range(text: &str) -> Result<(u16, u16), OptionsError> {
    let bounds = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
    match bounds {
        Some((first, last)) if 0 < first && first <= last => Ok((first, last)),
        _ => Err(invalid("--node-port-range", text, "give two ports such as 30000-32767")),
    }
}

impl Settings {
    pub fn runs(&self, role: Role) -> bool {
        !self.disabled.contains(&role)
    }
    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }
    /// Images, sandboxes, containers.
    pub fn runtime_dir(&self) -> PathBuf {
        runtime_dir(&self.data_dir)
    }
    pub fn cluster_cidrs(&self) -> Vec<IpNet> {
        vec![IpNet::V4(self.pod_cidr)]
    }
    /// The address of the Service `default/kubernetes`: the first of the range.
    pub fn kubernetes_service(&self) -> IpAddr {
        self.service_address(1)
    }
    /// The address of the Service `kube-system/kube-dns`: the tenth, as is customary.
    pub fn dns_service(&self) -> IpAddr {
        self.service_address(10)
    }
    fn service_address(&self, nth: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(u32::from(self.service_cidr.network()) + nth))
    }
    /// Where a client on this machine reaches the API.
    pub fn local_url(&self) -> String {
        let address = if self.listen.ip().is_unspecified() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.listen.ip()
        };
        format!("https://{}", SocketAddr::new(address, self.listen.port()))
    }
}

/// Where the container runtime of a data directory keeps its things.
pub fn runtime_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("runtime")
}

/// What defaults are taken from.
#[derive(Clone, Debug)]
pub struct Machine {
    pub host_name: String,
    pub address: Option<IpAddr>,
    /// What relative paths are relative to.
    pub directory: PathBuf,
}

impl Machine {
    /// This machine.
    pub fn here() -> Machine {
        let host_name = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_default();
        Machine {
            host_name: if host_name.is_empty() {
                "localhost".into()
            } else {
                host_name
            },
            address: default_address(),
            directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        }
    }
}

/// The address this machine would use to reach the world. Nothing is sent: connecting a datagram socket only looks
/// up the route. Without a default route, the first address that is not loopback.
fn default_address() -> Option<IpAddr> {
    let by_route = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
        // An address of the documentation range: never a real peer.
        socket.connect(("192.0.2.1", 9))?;
        Ok(socket.local_addr()?.ip())
    };
    let usable = |address: &IpAddr| !address.is_loopback() && !address.is_unspecified();
    by_route().ok().filter(usable).or_else(|| {
        let interfaces = nix::ifaddrs::getifaddrs().ok()?;
        let mut addresses =
            interfaces.filter_map(|interface| Some(IpAddr::V4(interface.address?.as_sockaddr_in()?.ip())));
        addresses.find(usable)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            host_name: "Box-1".into(),
            address: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))),
            directory: "/srv".into(),
        }
    }

    fn file(text: &str) -> Options {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn defaults_make_a_whole_cluster() {
        let settings = Options::default().settle(&machine()).unwrap();
        assert_eq!(settings.data_dir, Path::new("/var/lib/sampan"));
        assert_eq!(settings.listen, "0.0.0.0:6443".parse().unwrap());
        assert_eq!(settings.node_name, "box-1");
        assert_eq!(settings.kubernetes_service().to_string(), "10.96.0.1");
        assert_eq!(settings.dns_service().to_string(), "10.96.0.10");
        assert_eq!(settings.local_url(), "https://127.0.0.1:6443");
        assert!(settings.runs(Role::Node) && settings.runs(Role::Dns));
    }

    #[test]
    fn a_flag_beats_the_file() {
        let flags = Options {
            listen: Some("127.0.0.1:7443".into()),
            ..Options::default()
        };
        let settings = flags
            .over(file("listen: 127.0.0.1:8443\ndisable: [node, dns]\n"))
            .settle(&machine())
            .unwrap();
        assert_eq!(settings.listen.port(), 7443);
        assert!(!settings.runs(Role::Node) && settings.runs(Role::Scheduler));
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        let cases = [
            (
                Options {
                    listen: Some("everywhere".into()),
                    ..Options::default()
                },
                "--listen",
            ),
            (
                Options {
                    node_name: Some("Not_A_Name".into()),
                    ..Options::default()
                },
                "--node-name",
            ),
            (
                Options {
                    node_port_range: Some("9-1".into()),
                    ..Options::default()
                },
                "--node-port-range",
            ),
            (
                Options {
                    node_port: Some(6443),
                    ..Options::default()
                },
                "--node-port",
            ),
            (
                Options {
                    pod_cidr: Some("10.96.0.0/12".parse().unwrap()),
                    ..Options::default()
                },
                "overlaps",
            ),
            (
                Options {
                    pod_cidr: Some("10.1.0.0/28".parse().unwrap()),
                    ..Options::default()
                },
                "/24",
            ),
            (
                Options {
                    eviction_hard: Some("disk<1%".into()),
                    ..Options::default()
                },
                "unknown signal",
            ),
            (
                Options {
                    etcd_compaction_interval: Some("soon".into()),
                    ..Options::default()
                },
                "such as 5m",
            ),
            (
                Options {
                    image_gc_low_threshold: Some(90),
                    ..Options::default()
                },
                "--image-gc-low-threshold",
            ),
        ];
        for (options, part) in cases {
            let text = options.clone().settle(&machine()).expect_err("accepted").to_string();
            assert!(text.contains(part), "{options:?}: {text}");
        }
    }

    #[test]
    fn limits_without_priority_and_fairness_may_be_none() {
        let none = Options {
            max_requests_inflight: Some(0),
            max_mutating_requests_inflight: Some(0),
            ..Options::default()
        };
        assert!(none.clone().settle(&machine()).is_err());
        let settings = none
            .over(file(
                "enablePriorityAndFairness: false\nadmissionControlConfigFile: admission.yaml\n",
            ))
            .settle(&machine())
            .unwrap();
        assert!(!settings.priority_and_fairness);
        assert_eq!(
            settings.admission_control_config_file.as_deref(),
            Some(Path::new("/srv/admission.yaml"))
        );
    }

    #[test]
    fn unknown_keys_of_the_file_are_errors() {
        let error = serde_saphyr::from_str::<Options>("lisen: 1.2.3.4:5\n").expect_err("accepted");
        assert!(error.to_string().contains("lisen"), "{error}");
    }
}
