//! A small world for tests: a namespace that plays the machine, Pods, and somebody outside.
//!
//! Needs root; tests that use it skip with a message otherwise. Nothing outside the namespaces made here is touched.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::kernel::link::{Links, mac_of};
use crate::{Host, HostPort, PodNetwork, PodNetworkConfig, PodNetworkStatus, PodSetup, cleanup, netns};

pub(crate) const SERVICES: &str = "10.96.0.0/12";
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const MACHINE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Whether the test can run; says so when it cannot.
pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root, to make network namespaces");
    }
    root
}

pub(crate) struct World {
    pub config: PodNetworkConfig,
    pub network: PodNetwork,
    pub machine: PathBuf,
    pub outside: PathBuf,
    dir: tempfile::TempDir,
}

impl World {
    /// A machine (192.0.2.1) with a neighbour outside (192.0.2.2) that knows nothing of the cluster.
    pub(crate) async fn new() -> Self {
        Self::with_bridge_netfilter(false).await
    }

    /// Bridges may call netfilter or not, as the machine likes it; both must work. Where the kernel has no such
    /// setting, it is as if it were off.
    pub(crate) async fn with_bridge_netfilter(on: bool) -> Self {
        Self::with(on, |_| None).await
    }

    /// The machine's Pods are connected when `gate` (for the machine) says so.
    pub(crate) async fn with(on: bool, gate: impl FnOnce(&Host) -> Option<crate::Gate>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = netns::create(dir.path(), "machine").unwrap();
        let outside = netns::create(dir.path(), "outside").unwrap();
        netns::within(&machine, || {
            crate::kernel::sysctl::set("net/bridge/bridge-nf-call-iptables", if on { "1" } else { "0" }).unwrap();
            let mut links = Links::open().unwrap();
            links.add_pair("out0", &outside, mac_of(OUTSIDE), None).unwrap();
            links.add_address("out0", Ipv4Net::new_assert(MACHINE, 24)).unwrap();
        })
        .unwrap();
        netns::within(&outside, || {
            let mut links = Links::open().unwrap();
            links.add_address("eth0", Ipv4Net::new_assert(OUTSIDE, 24)).unwrap();
            links.up("eth0").unwrap();
        })
        .unwrap();
        let config = PodNetworkConfig {
            service_cidr: Some(SERVICES.parse().unwrap()),
            netns_dir: dir.path().join("pods-netns"),
            host: Host::Namespace(machine.clone()),
            gate: gate(&Host::Namespace(machine.clone())),
            ..PodNetworkConfig::new("10.244.0.0/24".parse().unwrap(), dir.path().join("state"))
        };
        let network = PodNetwork::new(config.clone()).await.unwrap();
        World {
            config,
            network,
            machine,
            outside,
            dir,
        }
    }

    pub(crate) async fn pod(&self, uid: &str, host_ports: Vec<HostPort>) -> Pod {
        pod(&self.network, uid, host_ports).await
    }
}

/// A Pod on a node's network.
pub(crate) async fn pod(network: &PodNetwork, uid: &str, host_ports: Vec<HostPort>) -> Pod {
    known_pod(network, uid, host_ports, None).await
}

/// A Pod on a node's network that policies know as somebody.
pub(crate) async fn known_pod(
    network: &PodNetwork,
    uid: &str,
    host_ports: Vec<HostPort>,
    pod: Option<crate::PodIdentity>,
) -> Pod {
    let netns = netns::create(&network.config().netns_dir, uid).unwrap();
    let setup = PodSetup {
        uid: uid.to_owned(),
        netns: netns.clone(),
        host_ports,
        pod,
    };
    let status = network.setup(setup).await.unwrap();
    Pod {
        uid: uid.to_owned(),
        netns,
        status,
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let cleaned = cleanup(&self.config);
        for path in [&self.machine, &self.outside] {
            netns::remove(path).unwrap();
        }
        if !std::thread::panicking() {
            cleaned.unwrap();
            assert!(self.dir.path().exists());
        }
    }
}

pub(crate) struct Pod {
    pub uid: String,
    pub netns: PathBuf,
    pub status: PodNetworkStatus,
}

impl Pod {
    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.status.ip
    }
    /// Answers connections to the port with the Pod's UID and who asks.
    pub(crate) fn serve(&self, port: u16) {
        serve(&self.netns, &self.uid, port);
    }
    pub(crate) fn serve_datagrams(&self, port: u16) {
        let name = self.uid.clone();
        let socket = netns::within(&self.netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                if socket.send_to(name.as_bytes(), from).is_err() {
                    return;
                }
            }
        });
    }
}

/// Serves `name source-address` on a port of all addresses in the namespace, for as long as the tests run.
pub(crate) fn serve(netns: &Path, name: &str, port: u16) {
    let name = name.to_owned();
    let listener = netns::within(netns, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            // A client that has gone is no concern of the server's.
            let _gone = write!(stream, "{name} {}", from.ip());
        }
    });
}

/// How much [`exchange`] sends each way: more than any buffer holds.
const MUCH: usize = 1 << 20;

/// Takes connections to a port and sends each as much back as it has taken, the same bytes.
pub(crate) fn serve_echo(netns: &Path, port: u16) {
    let listener = netns::within(netns, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut all = vec![0; MUCH];
            // A client that has gone is no concern of the server's.
            let _gone = stream.read_exact(&mut all).and_then(|()| stream.write_all(&all));
        }
    });
}

/// Sends a megabyte and gets it back.
pub(crate) fn exchange(netns: &Path, to: (Ipv4Addr, u16)) -> Result<(), std::io::Error> {
    netns::within(netns, || {
        let patience = Duration::from_secs(30);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let sent: Vec<u8> = (0..MUCH).map(|at| (at % 251) as u8).collect();
        stream.write_all(&sent)?;
        let mut back = vec![0; MUCH];
        stream.read_exact(&mut back)?;
        assert!(sent == back, "what came back is not what was sent");
        Ok(())
    })
    .unwrap()
}

/// Sends an echo request (ping) and says whether it was answered.
pub(crate) fn ping(netns: &Path, to: Ipv4Addr) -> bool {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn};
    use std::os::fd::AsRawFd;
    netns::within(netns, || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, flags, SockProtocol::Icmp).unwrap();
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
        let request = [8, 0, 0, 0, 0, 0, 0, 1, b'?'];
        if nix::sys::socket::sendto(socket.as_raw_fd(), &request, &to, MsgFlags::empty()).is_err() {
            return false;
        }
        let mut answer = [0; 64];
        socket
            .recv(&mut answer)
            .is_ok_and(|length| length == request.len() && answer[0] == 0)
    })
    .unwrap()
}

/// Asks from inside a namespace: the answer's name and the source the server saw; or the error.
pub(crate) fn ask(netns: &Path, to: (Ipv4Addr, u16)) -> Result<(String, String), std::io::Error> {
    netns::within(netns, || {
        let to = SocketAddr::from(SocketAddrV4::new(to.0, to.1));
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (name, source) = text.split_once(' ').unwrap_or_default();
        Ok((name.to_owned(), source.to_owned()))
    })
    .unwrap()
}

/// Who answers over some tries, sorted.
pub(crate) fn answers(netns: &Path, to: (Ipv4Addr, u16), tries: usize) -> Vec<String> {
    let mut names: Vec<_> = (0..tries).map(|_| ask(netns, to).unwrap().0).collect();
    names.sort();
    names.dedup();
    names
}

pub(crate) fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})).unwrap()
}

/// A slice of a Service: endpoints as (address, more fields), one port.
pub(crate) fn slice(service: &str, port: Value, endpoints: &[(Ipv4Addr, Value)]) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, more)| {
            let mut endpoint = json!({"addresses": [ip], "nodeName": "here"});
            for (key, value) in more.as_object().into_iter().flatten() {
                endpoint[key] = value.clone();
            }
            endpoint
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": format!("{service}-x"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [port], "endpoints": endpoints,
    }))
    .unwrap()
}
