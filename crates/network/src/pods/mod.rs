//! The pod network: an address and a link for every Pod.
//!
//! A Pod's `eth0` is one end of a veth pair whose other end is a port of the bridge. The Pod has its address alone
//! (`/32`) and reaches everything, its neighbours too, through the bridge's own address. So every packet passes this
//! machine's rules in both directions: Services work between Pods of one node whether or not the bridge calls
//! netfilter (`br_netfilter`, which is the machine's setting and not ours to change). On the node an address is reached
//! through the bridge's network as usual.
//!
//! One file per Pod under the state directory is both the record and the address book: written before the kernel is
//! told, removed after. An address given up is taken again only when the others have had their turn.

pub(crate) mod frames;
mod rules;
mod store;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::Ipv4Net;
use sampan_tasks::Drain;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::kernel::link::{Links, mac_of, show_mac};
use crate::kernel::netns;
use crate::kernel::nft::{Family, NftError};
use crate::kernel::sysctl::{self, Remembered};
use crate::kernel::watch::TableWatch;
use crate::policy::{Gate, PodIdentity, PolicyError};
use store::{Record, Store};

pub(crate) use rules::TABLE;

/// What the pod network of a node is made of.
#[derive(Clone, Debug)]
pub struct PodNetworkConfig {
    /// The bridge's name.
    pub bridge: String,
    /// This node's Pods. The first address is the gateway.
    pub pod_cidr: Ipv4Net,
    /// All Pods of the cluster: traffic to them keeps its source.
    pub cluster_cidr: Option<Ipv4Net>,
    /// Services. On a machine without a route to them (no default route), one is added, so that the node itself
    /// can reach Services.
    pub service_cidr: Option<Ipv4Net>,
    pub mtu: Option<u32>,
    /// Where records of Pods and of changed settings are kept.
    pub state_dir: PathBuf,
    /// Where network namespaces are kept.
    pub netns_dir: PathBuf,
    pub host: Host,
    /// Who says when a Pod may be connected; `None`: nobody has to be asked.
    pub gate: Option<Gate>,
}

impl PodNetworkConfig {
    pub fn new(pod_cidr: Ipv4Net, state_dir: impl Into<PathBuf>) -> Self {
        PodNetworkConfig {
            bridge: "sampan0".to_owned(),
            pod_cidr,
            cluster_cidr: None,
            service_cidr: None,
            mtu: None,
            state_dir: state_dir.into(),
            netns_dir: netns::DIR.into(),
            host: Host::This,
            gate: None,
        }
    }
    /// The bridge's own address, which Pods know as their gateway and name server.
    pub fn gateway(&self) -> Ipv4Addr {
        self.pod_cidr.hosts().next().unwrap_or_else(|| self.pod_cidr.network())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PodNetworkError {
    #[error("every address of {0} is in use; Pods must end, or the node needs a larger Pod range")]
    NoAddress(Ipv4Net),
    #[error("{0} has no room for Pods; give the node a range of at least four addresses")]
    SmallRange(Ipv4Net),
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("host port {protocol} {port} of the Pod is already used by another Pod on this node")]
    HostPortTaken { protocol: Protocol, port: u16 },
    #[error(transparent)]
    Rules(#[from] NftError),
    #[error(transparent)]
    Policies(#[from] PolicyError),
    #[error("the network task was cancelled")]
    Cancelled,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> PodNetworkError {
    let what = what.into();
    move |source| PodNetworkError::Io { what, source }
}

/// A transport protocol of Services and ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// From `protocol` of the API; absent means TCP.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP" | "") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }
    pub(crate) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A port of the machine that leads to a port of the Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    /// `None`: on every address of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub container_port: u16,
}

/// A Pod that needs a network.
#[derive(Clone, Debug)]
pub struct PodSetup {
    pub uid: String,
    /// The Pod's network namespace, made by [`netns::create`] or by the runtime.
    pub netns: PathBuf,
    pub host_ports: Vec<HostPort>,
    /// Who it is to network policies; `None`: they do not concern it.
    pub pod: Option<PodIdentity>,
}

/// What a Pod got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetworkStatus {
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// `0a:58:0a:f4:00:02`
    pub mac: String,
    /// The Pod's link on the node.
    pub link: String,
}

pub(crate) fn records_dir(config: &PodNetworkConfig) -> PathBuf {
    config.state_dir.join("pods")
}
pub(crate) fn settings_file(config: &PodNetworkConfig) -> PathBuf {
    config.state_dir.join("settings.json")
}
pub(crate) fn records(config: &PodNetworkConfig) -> io::Result<Vec<Record>> {
    Store::read(&records_dir(config))
}

/// The pod network of one node. Clones share it.
#[derive(Clone, Debug)]
pub struct PodNetwork(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: PodNetworkConfig,
    /// Held over changes to the kernel too, so that records and kernel agree.
    store: Mutex<Store>,
}

impl PodNetwork {
    /// Makes (or finds) the bridge and the rules, and remembers the Pods of before. Fails with a clear error where
    /// the kernel or the rights are missing.
    pub async fn new(config: PodNetworkConfig) -> Result<Self, PodNetworkError> {
        if config.pod_cidr.prefix_len() > 30 {
            return Err(PodNetworkError::SmallRange(config.pod_cidr));
        }
        blocking(move || {
            let store =
                Store::open(&records_dir(&config), config.pod_cidr).map_err(failed("read the records of Pods"))?;
            let network = PodNetwork(Arc::new(Inner {
                config,
                store: Mutex::new(store),
            }));
            let inner = &network.0;
            inner.on_host(|| inner.start())?;
            if let Some(gate) = &inner.config.gate {
                let store = inner.store.lock().unwrap_or_else(PoisonError::into_inner);
                for record in store.all() {
                    if let Some(pod) = &record.pod {
                        gate.note(record.ip, pod);
                    }
                }
            }
            Ok(network)
        })
        .await
    }

    pub fn config(&self) -> &PodNetworkConfig {
        &self.0.config
    }
    pub fn gateway(&self) -> Ipv4Addr {
        self.0.config.gateway()
    }

    /// Gives the Pod its address and link; done before, it says so again and mends what is missing. In between its
    /// policies come into force: nobody reaches it, and it reaches nobody, before.
    pub async fn setup(&self, pod: PodSetup) -> Result<PodNetworkStatus, PodNetworkError> {
        let (inner, pod) = (Arc::clone(&self.0), Arc::new(pod));
        let (reserving, asked) = (Arc::clone(&inner), Arc::clone(&pod));
        let reserved = blocking(move || reserving.reserve(&asked)).await?;
        if let (Some(gate), Some(identity)) = (&inner.config.gate, &reserved.record.pod) {
            let ip = reserved.record.ip;
            if reserved.connected {
                gate.note(ip, identity);
            } else if let Err(error) = gate.admit(ip, identity).await {
                blocking(move || inner.give_up(&reserved)).await?;
                return Err(error.into());
            }
        }
        blocking(move || inner.finish(&pod, &reserved)).await
    }

    /// Takes the Pod's link, address and host ports back. A Pod that has none is no error.
    pub async fn teardown(&self, uid: &str) -> Result<(), PodNetworkError> {
        let (inner, uid) = (Arc::clone(&self.0), uid.to_owned());
        blocking(move || inner.teardown(&uid)).await
    }

    /// What the Pod has.
    pub fn status(&self, uid: &str) -> Option<PodNetworkStatus> {
        let store = self.0.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.get(uid).map(|record| self.0.status(record))
    }

    /// Keeps the rules until `drain`: when somebody removes them (a firewall's reload), they are made anew.
    pub async fn guard(&self, drain: Drain) -> Result<(), PodNetworkError> {
        let host = &self.0.config.host;
        let watch = TableWatch::open(host, TABLE).map_err(failed("watch the rules of Pods"))?;
        let frames = TableWatch::open_in(host, Family::Bridge, frames::TABLE)
            .map_err(failed("watch the rules of Pods' links"))?;
        let either = || async {
            tokio::select! {
                gone = watch.gone() => gone,
                gone = frames.gone() => gone,
            }
        };
        loop {
            match drain.until(either()).await {
                None => return Ok(()),
                Some(gone) => gone.map_err(failed("watch the rules of Pods"))?,
            }
            tracing::warn!("somebody removed the rules of Pods; making them anew");
            let inner = Arc::clone(&self.0);
            blocking(move || {
                let store = inner.store.lock().unwrap_or_else(PoisonError::into_inner);
                inner.on_host(|| inner.sync_rules(&store))
            })
            .await?;
        }
    }

    /// Takes back what belongs to Pods that are not in `live`; says which.
    pub async fn gc(&self, live: BTreeSet<String>) -> Result<Vec<String>, PodNetworkError> {
        let inner = Arc::clone(&self.0);
        blocking(move || {
            let dead: Vec<String> = {
                let store = inner.store.lock().unwrap_or_else(PoisonError::into_inner);
                store
                    .uids()
                    .filter(|uid| !live.contains(*uid))
                    .map(str::to_owned)
                    .collect()
            };
            for uid in &dead {
                inner.teardown(uid)?;
            }
            Ok(dead)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodNetworkError> + Send + 'static,
) -> Result<T, PodNetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(PodNetworkError::Cancelled))
}

/// What a Pod is to have, and what it had.
#[derive(Debug)]
struct Reserved {
    old: Option<Record>,
    record: Record,
    /// It has its link already.
    connected: bool,
}

impl Inner {
    fn on_host<T: Send>(&self, work: impl FnOnce() -> Result<T, PodNetworkError> + Send) -> Result<T, PodNetworkError> {
        self.config
            .host
            .run(work)
            .map_err(failed("enter the machine's network namespace"))?
    }

    fn status(&self, record: &Record) -> PodNetworkStatus {
        PodNetworkStatus {
            ip: record.ip,
            gateway: self.config.gateway(),
            mac: show_mac(mac_of(record.ip)),
            link: record.link.clone(),
        }
    }

    fn start(&self) -> Result<(), PodNetworkError> {
        let config = &self.config;
        let (bridge, gateway) = (config.bridge.as_str(), config.gateway());
        let make = || -> io::Result<()> {
            let mut links = Links::open()?;
            links.add_bridge(bridge, mac_of(gateway))?;
            let network = Ipv4Net::new(gateway, config.pod_cidr.prefix_len()).unwrap_or(config.pod_cidr);
            links.add_address(bridge, network)?;
            links.up(bridge)?;
            if let Some(services) = config.service_cidr
                && !links.reaches(services.network())
            {
                links.add_route(bridge, services, None, Some(gateway), Some(4096))?;
            }
            Ok(())
        };
        make().map_err(failed(format!("make the bridge {bridge}")))?;
        let set = || -> io::Result<()> {
            Remembered::at(settings_file(config)).set("net/ipv4/ip_forward", "1")?;
            // Node ports on 127.0.0.1 lead to Pods; the rules drop what a Pod forges the other way.
            sysctl::set(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1")?;
            // Pods are routed to each other through the link they came from, on purpose.
            sysctl::set(&format!("net/ipv4/conf/{bridge}/send_redirects"), "0")?;
            sysctl::set(&format!("net/ipv4/conf/{bridge}/rp_filter"), "0")
        };
        set().map_err(failed("set kernel network settings under /proc/sys/net"))?;
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync_rules(&store)
    }

    fn sync_rules(&self, store: &Store) -> Result<(), PodNetworkError> {
        let bridge = self.config.bridge.as_str();
        let gateway = Links::open().and_then(|mut links| links.mac(bridge));
        frames::sync_all(
            gateway.map_err(failed(format!("look at the bridge {bridge}")))?,
            store.all(),
        )?;
        Ok(rules::sync_all(&self.config, store.all())?)
    }

    /// Writes down which address and ports the Pod has, or says that it cannot have them.
    fn reserve(&self, pod: &PodSetup) -> Result<Reserved, PodNetworkError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = store.port_taken(&pod.uid, &pod.host_ports) {
            return Err(PodNetworkError::HostPortTaken {
                protocol: taken.protocol,
                port: taken.host_port,
            });
        }
        let old = store.get(&pod.uid).cloned();
        let record = match &old {
            Some(old) => Record {
                host_ports: pod.host_ports.clone(),
                pod: pod.pod.clone().or_else(|| old.pod.clone()),
                ..old.clone()
            },
            None => {
                let ip = store
                    .free_address()
                    .ok_or(PodNetworkError::NoAddress(self.config.pod_cidr))?;
                Record {
                    uid: pod.uid.clone(),
                    ip,
                    link: link_name(&pod.uid),
                    host_ports: pod.host_ports.clone(),
                    pod: pod.pod.clone(),
                }
            }
        };
        store.put(record.clone()).map_err(failed("record the Pod's address"))?;
        let connected = match &old {
            None => false,
            Some(_) => self.on_host(|| {
                let link = Links::open().and_then(|mut links| links.find(&record.link));
                Ok(link.map_err(failed("look for the Pod's link"))?.is_some())
            })?,
        };
        Ok(Reserved { old, record, connected })
    }

    /// A Pod that got nothing holds nothing; one that had it before keeps it.
    fn give_up(&self, reserved: &Reserved) -> Result<(), PodNetworkError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let record = &reserved.record;
        match &reserved.old {
            Some(old) => store.put(old.clone()).map_err(failed("record the Pod's host ports")),
            None => {
                self.on_host(|| {
                    Links::open()
                        .and_then(|mut links| links.remove(&record.link))
                        .map_err(failed("remove the Pod's link"))?;
                    Ok(frames::remove(record)?)
                })?;
                if let Some(gate) = &self.config.gate {
                    gate.forget(record.ip);
                }
                store.remove(&record.uid).map_err(failed("forget the Pod's address"))
            }
        }
    }

    fn finish(&self, pod: &PodSetup, reserved: &Reserved) -> Result<PodNetworkStatus, PodNetworkError> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let made = self.on_host(|| {
            frames::add(&reserved.record)?;
            self.connect(pod, &reserved.record)?;
            rules::replace(reserved.old.as_ref(), Some(&reserved.record))?;
            Ok(())
        });
        drop(store);
        match made {
            Ok(()) => Ok(self.status(&reserved.record)),
            Err(error) => {
                self.give_up(reserved)?;
                Err(error)
            }
        }
    }

    fn connect(&self, pod: &PodSetup, record: &Record) -> Result<(), PodNetworkError> {
        let config = &self.config;
        let gateway = config.gateway();
        let inside = || -> io::Result<bool> {
            netns::within(&pod.netns, || -> io::Result<bool> {
                Ok(Links::open()?.find("eth0")?.is_some())
            })?
        };
        let cannot = || failed(format!("connect the Pod's network namespace {}", pod.netns.display()));
        let connected = inside().map_err(cannot())?;
        let connect = || -> io::Result<()> {
            let mut links = Links::open()?;
            if !(connected && links.find(&record.link)?.is_some()) {
                // One end without the other, or a pair to a namespace that is gone.
                links.remove(&record.link)?;
                links.add_pair(&record.link, &pod.netns, mac_of(record.ip), config.mtu)?;
                links.attach(&record.link, &config.bridge)?;
            }
            links.pin(&record.link, mac_of(record.ip))?;
            netns::within(&pod.netns, || -> io::Result<()> {
                let mut links = Links::open()?;
                links.up("lo")?;
                for scope in ["all", "eth0"] {
                    sysctl::set(&format!("net/ipv4/conf/{scope}/accept_redirects"), "0")?;
                    // On a hairpin port a Pod hears itself, and would take that for another with its address.
                    sysctl::set(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
                }
                links.add_address("eth0", Ipv4Net::from(record.ip))?;
                links.up("eth0")?;
                links.add_route("eth0", Ipv4Net::from(gateway), None, None, None)?;
                links.add_route("eth0", Ipv4Net::default(), Some(gateway), None, None)
            })?
        };
        connect().map_err(cannot())
    }

    fn teardown(&self, uid: &str) -> Result<(), PodNetworkError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = store.get(uid).cloned() else {
            return Ok(());
        };
        self.on_host(|| {
            rules::replace(Some(&record), None)?;
            Links::open()
                .and_then(|mut links| links.remove(&record.link))
                .map_err(failed("remove the Pod's link"))?;
            Ok(frames::remove(&record)?)
        })?;
        if let Some(gate) = &self.config.gate {
            gate.forget(record.ip);
        }
        store.remove(uid).map_err(failed("forget the Pod's address"))
    }
}

/// The Pod's link on the node: `sp` and twelve hexadecimal digits of a hash (FNV-1a) of its UID, since a link's name
/// has at most 15 characters.
fn link_name(uid: &str) -> String {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("sp{:012x}", hash >> 16)
}

/// Whether a link's name is one of those.
pub(crate) fn is_link_name(name: &str) -> bool {
    let digits = name.strip_prefix("sp").filter(|digits| digits.len() == 12);
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod forged;
#[cfg(test)]
mod tests;
