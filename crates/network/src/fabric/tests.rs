//! Real packets between nodes: two on one segment, a third behind a router that knows nothing of Pods. Root only.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::NodeAddress;
use sampan_client::testing::{FakeApi, eventually};
use sampan_tasks::{OnExit, Tasks};
use serde_json::json;

use super::plan::{DEVICE, gateway, mac_of};
use super::*;
use crate::kernel::link::Links;
use crate::kernel::neighbour::{Entry, Table};
use crate::kernel::nft::{self, Transaction};
use crate::kernel::route::Route;
use crate::kernel::sysctl;
use crate::testing::{Pod, answers, ask, exchange, is_root, ping, pod, serve, serve_echo, service, slice};
use crate::{PodNetwork, PodNetworkConfig, Proxy, ProxyConfig, cleanup, netns};

const CLUSTER: &str = "10.244.0.0/16";
/// (name, address, Pods, the router's address on that side)
const NODES: [(&str, &str, &str, &str); 3] = [
    ("a", "192.0.2.11/24", "10.244.0.0/24", "192.0.2.254"),
    ("b", "192.0.2.12/24", "10.244.1.0/24", "192.0.2.254"),
    ("c", "198.51.100.13/24", "10.244.2.0/24", "198.51.100.254"),
];

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}
fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

struct Machine {
    name: &'static str,
    address: Ipv4Addr,
    netns: PathBuf,
    config: PodNetworkConfig,
    network: PodNetwork,
    tasks: Tasks,
}

/// Three machines, their router, and the API they share.
struct Site {
    dir: tempfile::TempDir,
    router: PathBuf,
    api: FakeApi,
    machines: Vec<Machine>,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let router = netns::create(dir.path(), "router").unwrap();
        netns::within(&router, || {
            sysctl::set("net/ipv4/ip_forward", "1").unwrap();
            let mut links = Links::open().unwrap();
            links.add_bridge("lan", [2, 0, 0, 0, 0, 1]).unwrap();
            links.add_address("lan", net("192.0.2.254/24")).unwrap();
            links.up("lan").unwrap();
        })
        .unwrap();
        let mut site = Site {
            dir,
            router,
            api: FakeApi::new(),
            machines: Vec::new(),
        };
        for (number, (name, address, pods, router)) in NODES.into_iter().enumerate() {
            let machine = site
                .machine(name, net(address), net(pods), ip(router), number as u8)
                .await;
            site.machines.push(machine);
        }
        site
    }

    async fn machine(
        &self,
        name: &'static str,
        address: Ipv4Net,
        pods: Ipv4Net,
        router: Ipv4Addr,
        number: u8,
    ) -> Machine {
        let path = netns::create(self.dir.path(), name).unwrap();
        netns::within(&self.router, || {
            let mut links = Links::open().unwrap();
            links.add_pair(name, &path, [2, 0, 0, 0, 1, number], None).unwrap();
            if name == "c" {
                links.add_address(name, Ipv4Net::new(router, 24).unwrap()).unwrap();
            } else {
                links.attach(name, "lan").unwrap();
            }
        })
        .unwrap();
        netns::within(&path, || {
            // As strict as machines are set up.
            sysctl::set("net/ipv4/conf/all/rp_filter", "1").unwrap();
            let mut links = Links::open().unwrap();
            links.add_address("eth0", address).unwrap();
            links.up("eth0").unwrap();
            links
                .add_route("eth0", Ipv4Net::default(), Some(router), None, None)
                .unwrap();
        })
        .unwrap();
        let state = self.dir.path().join(format!("{name}-state"));
        let config = PodNetworkConfig {
            cluster_cidr: Some(net(CLUSTER)),
            service_cidr: Some(net("10.96.0.0/12")),
            netns_dir: self.dir.path().join(format!("{name}-pods")),
            host: Host::Namespace(path.clone()),
            ..PodNetworkConfig::new(pods, state)
        };
        Machine {
            name,
            address: address.addr(),
            netns: path,
            network: PodNetwork::new(config.clone()).await.unwrap(),
            config,
            tasks: Tasks::new(),
        }
    }

    /// All nodes in the API, and a fabric and a proxy on each.
    async fn started() -> Self {
        let site = Site::new().await;
        for machine in &site.machines {
            site.register(machine);
        }
        for machine in &site.machines {
            site.start_fabric(machine);
            let informers = Informers::new(site.api.client(machine.name), &machine.tasks);
            let config = ProxyConfig {
                node: machine.name.to_owned(),
                cluster_cidr: net(CLUSTER),
                host: machine.config.host.clone(),
                health: None,
            };
            let proxy = Proxy::new(config, &informers);
            let drain = machine.tasks.drain();
            machine.tasks.spawn("proxy", OnExit::Critical, proxy.run(drain));
        }
        site
    }

    fn register(&self, machine: &Machine) {
        let node = json!({
            "metadata": {"name": machine.name}, "spec": {"podCIDR": machine.config.pod_cidr},
            "status": {"addresses": [{"type": "InternalIP", "address": machine.address}]},
        });
        self.api.create(&serde_json::from_value::<Node>(node).unwrap());
    }

    fn start_fabric(&self, machine: &Machine) {
        let informers = Informers::new(self.api.client(machine.name), &machine.tasks);
        let fabric = Fabric::new(FabricConfig::new(machine.name, &machine.config), &informers);
        let drain = machine.tasks.drain();
        machine.tasks.spawn("fabric", OnExit::Critical, fabric.run(drain));
    }

    fn of(&self, name: &str) -> &Machine {
        self.machines.iter().find(|machine| machine.name == name).unwrap()
    }

    async fn pods(&self) -> Vec<Pod> {
        let mut pods = Vec::new();
        for machine in &self.machines {
            let made = pod(&machine.network, &format!("pod-{}", machine.name), vec![]).await;
            made.serve(80);
            serve_echo(&made.netns, 81);
            pods.push(made);
        }
        pods
    }

    async fn done(self) {
        for machine in &self.machines {
            assert_eq!(machine.tasks.shutdown(Duration::from_secs(5)).await, 0);
            assert!(machine.routes().len() < 3, "a stop leaves what is there");
            cleanup(&machine.config).unwrap();
            let left = machine.seen();
            assert_eq!((left.routes.len(), left.device, left.rules), (0, false, false));
            let local = machine.on(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/route_localnet").unwrap());
            assert_eq!(local.trim(), "0");
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for machine in &self.machines {
            // The namespaces of Pods, too; a failed test has failed already.
            let _cleaned = cleanup(&machine.config);
            netns::remove(&machine.netns).unwrap();
        }
        netns::remove(&self.router).unwrap();
    }
}

/// What a machine has for other nodes.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Range and gateway.
    routes: Vec<(String, String)>,
    device: bool,
    neighbours: Vec<Entry>,
    forwarding: Vec<Entry>,
    rules: bool,
}

impl Machine {
    fn on<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::within(&self.netns, work).unwrap()
    }
    fn routes(&self) -> Vec<Route> {
        self.on(|| Links::open().unwrap().routes(apply::PROTOCOL).unwrap())
    }
    fn seen(&self) -> Seen {
        let shown = |route: Route| (route.to.to_string(), route.gateway.unwrap().to_string());
        let routes = self.routes().into_iter().map(shown).collect();
        self.on(|| {
            let mut links = Links::open().unwrap();
            let device = links.find(DEVICE).unwrap();
            let mut entries = |table| device.map_or(vec![], |device| links.entries(table, device).unwrap());
            Seen {
                routes,
                device: device.is_some(),
                neighbours: entries(Table::Neighbours),
                forwarding: entries(Table::Forwarding),
                rules: nft::table_exists(rules::TABLE).unwrap(),
            }
        })
    }
    async fn until(&self, what: &str, is_so: impl Fn(&Seen) -> bool) {
        eventually(what, || async { Some(()).filter(|()| is_so(&self.seen())) }).await;
    }
    async fn until_routes(&self, wanted: &[(&str, &str)]) {
        let wanted: Vec<_> = wanted.iter().map(|(to, by)| (to.to_string(), by.to_string())).collect();
        self.until(&format!("the routes are {wanted:?}"), |seen| seen.routes == wanted)
            .await;
    }
}

async fn until_answers(from: &Path, to: (Ipv4Addr, u16)) {
    eventually("somebody answers", || async { ask(from, to).ok() }).await;
}

/// A counter of a namespace's kernel: `/proc/net/FILE`, a line of names and a line of values behind `group`.
fn counter(netns: &Path, file: &str, group: &str, name: &str) -> u64 {
    let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let text = netns::within(netns, read).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|have| have == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// How often the kernel of a namespace was told that a destination cannot be reached, or not that way.
fn unreachables(netns: &Path) -> u64 {
    counter(netns, "snmp", "Icmp:", "InDestUnreachs")
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_all_nodes_reach_each_other_and_nothing_is_left_of_a_node_that_goes() {
    if !is_root() {
        return;
    }
    let site = Site::started().await;
    let pods = site.pods().await;
    for (machine, pod) in site.machines.iter().zip(&pods) {
        for other in &pods {
            until_answers(&pod.netns, (other.ip(), 80)).await;
            // Pods see each other's own address.
            let source = ask(&pod.netns, (other.ip(), 80)).unwrap().1;
            assert_eq!(source, pod.ip().to_string());
            assert!(ping(&pod.netns, other.ip()));
            exchange(&pod.netns, (other.ip(), 81)).unwrap();
            until_answers(&machine.netns, (other.ip(), 80)).await;
            exchange(&machine.netns, (other.ip(), 81)).unwrap();
        }
    }
    // Both ends of a way through VXLAN were told that it is narrower than their links; nobody else was.
    let told: Vec<bool> = pods.iter().map(|pod| unreachables(&pod.netns) > 0).collect();
    assert_eq!(told, [true, true, true]);
    let source = |from: &Path, to: &Pod| ask(from, (to.ip(), 80)).unwrap().1;
    let (a, b, c) = (site.of("a"), site.of("b"), site.of("c"));
    // A node itself: its own address where the segment is one, else the one it has among Pods.
    assert_eq!(source(&a.netns, &pods[1]), a.address.to_string());
    assert_eq!(source(&a.netns, &pods[2]), a.network.gateway().to_string());
    assert_eq!(source(&c.netns, &pods[0]), c.network.gateway().to_string());
    // Outside nobody knows Pods: they go by their node's address.
    serve(&site.router, "router", 80);
    assert_eq!(
        ask(&pods[0].netns, (ip("192.0.2.254"), 80)).unwrap().1,
        a.address.to_string()
    );
    assert_eq!(
        ask(&pods[2].netns, (ip("192.0.2.254"), 80)).unwrap().1,
        c.address.to_string()
    );

    let to = |name| site.of(name).config.pod_cidr;
    let mtus = |machine: &Machine| -> Vec<_> { machine.routes().iter().map(|route| (route.to, route.mtu)).collect() };
    assert_eq!(mtus(a), [(to("b"), None), (to("c"), Some(1450))]);
    assert_eq!(mtus(c), [(to("a"), Some(1450)), (to("b"), Some(1450))]);
    let forwarding: Vec<_> = c.seen().forwarding.iter().map(|entry| entry.address).collect();
    assert_eq!(forwarding.len(), 2, "{forwarding:?}");

    site.api.remove::<Node>("", "c");
    for machine in [a, b] {
        machine
            .until("nothing is left of the node behind the router", |seen| {
                seen.routes.len() == 1 && !seen.device && !seen.rules
            })
            .await;
    }
    assert_eq!(source(&pods[0].netns, &pods[1]), pods[0].ip().to_string());
    site.api.remove::<Node>("", "b");
    a.until_routes(&[]).await;
    // It comes back.
    site.register(b);
    a.until_routes(&[("10.244.1.0/24", "192.0.2.12")]).await;
    site.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_lead_to_pods_of_other_nodes() {
    if !is_root() {
        return;
    }
    let site = Site::started().await;
    let pods = site.pods().await;
    let http = || json!({"name": "http", "port": 80, "protocol": "TCP"});
    let echo = || json!({"name": "http", "port": 81, "protocol": "TCP"});
    let port = |port| json!([{"name": "http", "port": 80, "nodePort": port}]);
    let make = |name: &str, address: &str, policy: &str, number: u16, of: &[usize], target: serde_json::Value| {
        site.api.create(&service(
            name,
            json!({"type": "NodePort", "clusterIP": address, "externalTrafficPolicy": policy, "ports": port(number)}),
        ));
        let endpoints: Vec<_> = of
            .iter()
            .map(|at| (pods[*at].ip(), json!({"nodeName": site.machines[*at].name})))
            .collect();
        site.api.create(&slice(name, target, &endpoints));
    };
    make("all", "10.96.0.20", "Cluster", 30020, &[0, 1, 2], http());
    make("far", "10.96.0.21", "Local", 30021, &[2], http());
    make("near", "10.96.0.22", "Local", 30022, &[1], http());
    make("much", "10.96.0.23", "Cluster", 30023, &[2], echo());
    let everyone = ["pod-a", "pod-b", "pod-c"];
    for (machine, pod) in site.machines.iter().zip(&pods) {
        for (vip, node_port) in [("10.96.0.20", 30020), ("10.96.0.21", 30021), ("10.96.0.22", 30022)] {
            for from in [&pod.netns, &machine.netns] {
                until_answers(from, (ip(vip), 80)).await;
                until_answers(from, (machine.address, node_port)).await;
            }
            until_answers(&machine.netns, (Ipv4Addr::LOCALHOST, node_port)).await;
        }
        // Whoever asks, whoever answers: from Pods, from the node itself, by each of its addresses, from outside.
        assert_eq!(answers(&pod.netns, (ip("10.96.0.20"), 80), 40), everyone);
        assert_eq!(answers(&machine.netns, (ip("10.96.0.20"), 80), 40), everyone);
        assert_eq!(answers(&pod.netns, (machine.address, 30020), 40), everyone);
        assert_eq!(answers(&machine.netns, (machine.address, 30020), 40), everyone);
        assert_eq!(answers(&machine.netns, (Ipv4Addr::LOCALHOST, 30020), 40), everyone);
        assert_eq!(answers(&site.router, (machine.address, 30020), 40), everyone);
        exchange(&pod.netns, (ip("10.96.0.23"), 80)).unwrap();
        exchange(&machine.netns, (ip("10.96.0.23"), 80)).unwrap();
        exchange(&site.router, (machine.address, 30023)).unwrap();
        // Pods keep their address on the way through a Service, on all nodes; but who reaches itself comes from the
        // gateway.
        for (vip, of) in [("10.96.0.21", "c"), ("10.96.0.22", "b")] {
            let source = ask(&pod.netns, (ip(vip), 80)).unwrap().1;
            let wanted = if machine.name == of {
                machine.network.gateway()
            } else {
                pod.ip()
            };
            assert_eq!(source, wanted.to_string(), "{} asks {of}", machine.name);
        }
    }
    // Local: strangers keep their address where the Pod is, and get no answer where it is not.
    let (a, b, c) = (site.of("a"), site.of("b"), site.of("c"));
    assert_eq!(ask(&site.router, (c.address, 30021)).unwrap().1, "198.51.100.254");
    assert_eq!(ask(&site.router, (b.address, 30022)).unwrap().1, "192.0.2.254");
    assert!(ask(&site.router, (a.address, 30021)).is_err());
    // Nothing is lost on the way: of more than a hundred connections hardly one had to ask twice.
    for machine in [a, b, c] {
        let lost = counter(&machine.netns, "netstat", "TcpExt:", "TCPSynRetrans");
        assert!(
            lost < 10,
            "{lost} connections of node {} had to ask again",
            machine.name
        );
    }
    site.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_disturb_is_mended_and_what_moves_is_followed() {
    if !is_root() {
        return;
    }
    let site = Site::started().await;
    let a = site.of("a");
    let (b_way, c_way) = (("10.244.1.0/24", "192.0.2.12"), ("10.244.2.0/24", "10.244.2.1"));
    let whole = |seen: &Seen| {
        seen.routes.len() == 2 && seen.device && seen.rules && seen.neighbours.len() == 1 && seen.forwarding.len() == 1
    };
    a.until_routes(&[b_way, c_way]).await;
    a.until("everything is there", whole).await;

    type Disturb = fn(&mut Links);
    let disturbances: [(&str, Disturb); 5] = [
        ("routes are removed", |links| {
            for route in links.routes(apply::PROTOCOL).unwrap() {
                links.remove_route(apply::PROTOCOL, &route).unwrap();
            }
        }),
        ("the device is removed", |links| links.remove(DEVICE).unwrap()),
        ("neighbours are forgotten", |links| {
            let device = links.find(DEVICE).unwrap().unwrap();
            for table in [Table::Neighbours, Table::Forwarding] {
                for entry in links.entries(table, device).unwrap() {
                    links.remove_entry(table, device, entry).unwrap();
                }
            }
        }),
        ("the rules are flushed", |_| {
            let mut transaction = Transaction::new(rules::TABLE);
            transaction.drop_table();
            transaction.commit().unwrap();
        }),
        ("the link flaps", |links| {
            links.set_up("eth0", false).unwrap();
            links.up("eth0").unwrap();
        }),
    ];
    for (what, disturb) in disturbances {
        // What the last one stirred up has been seen to.
        tokio::time::sleep(BREATH * 4).await;
        a.on(|| disturb(&mut Links::open().unwrap()));
        a.until(what, whole).await;
        a.until_routes(&[b_way, c_way]).await;
    }

    // The link carries less.
    a.on(|| Links::open().unwrap().set_mtu("eth0", 1400).unwrap());
    let narrower = || async { (a.routes().last()?.mtu? == 1350).then_some(()) };
    eventually("the way is narrower", narrower).await;

    // The node behind the router moves, to another network and onto our segment; a node that we are on one segment
    // with leaves it because our address changes.
    let moves = |name: &'static str, to: &'static str| {
        site.api.change::<Node>("", name, |node| {
            let address = NodeAddress {
                type_: "InternalIP".into(),
                address: to.into(),
            };
            node.status.as_mut().unwrap().addresses = Some(vec![address]);
        })
    };
    moves("c", "203.0.113.13");
    a.until("the machine's address is another", |seen| {
        seen.forwarding.iter().any(|entry| entry.address == ip("203.0.113.13")) && seen.forwarding.len() == 1
    })
    .await;
    moves("c", "192.0.2.13");
    a.until_routes(&[b_way, ("10.244.2.0/24", "192.0.2.13")]).await;
    a.until("the device is not needed", |seen| !seen.device && !seen.rules)
        .await;
    a.on(|| {
        let mut links = Links::open().unwrap();
        links.remove_address("eth0", net("192.0.2.11/24")).unwrap();
        links.add_address("eth0", net("192.0.2.11/32")).unwrap();
    });
    a.until_routes(&[("10.244.1.0/24", "10.244.1.1"), c_way]).await;
    // Its Pods are others.
    site.api.change::<Node>("", "b", |node| {
        node.spec.as_mut().unwrap().pod_cidr = Some("10.244.7.0/24".into())
    });
    a.until_routes(&[c_way, ("10.244.7.0/24", "10.244.7.1")]).await;
    let macs: Vec<_> = a.seen().neighbours.iter().map(|entry| entry.mac).collect();
    assert!(macs.contains(&mac_of(ip("10.244.7.1"))), "{macs:?}");
    site.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_go_and_what_is_not_ours_stays() {
    if !is_root() {
        return;
    }
    let site = Site::new().await;
    let a = site.of("a");
    let eth0 = a.on(|| Links::open().unwrap().find("eth0").unwrap().unwrap());
    let route = |to: &str, by: &str| Route {
        to: net(to),
        link: eth0,
        gateway: Some(ip(by)),
        source: None,
        mtu: None,
        metric: None,
    };
    let by_administrator = 4;
    a.on(|| {
        let mut links = Links::open().unwrap();
        for to in ["10.244.9.0/24", "10.244.1.0/24"] {
            links
                .put_route(apply::PROTOCOL, &route(to, "192.0.2.99"), false)
                .unwrap();
        }
        links
            .put_route(by_administrator, &route("10.244.2.0/24", "192.0.2.77"), false)
            .unwrap();
        let device = crate::kernel::vxlan::Vxlan {
            vni: 9,
            port: 4789,
            local: None,
            learning: true,
        };
        links.add_vxlan(DEVICE, [2, 0, 0, 0, 0, 9], 1400, &device).unwrap();
    });
    // Alone: what is left of an earlier time goes, nothing is made.
    site.register(a);
    site.start_fabric(a);
    a.until_routes(&[]).await;
    a.until("the device of before is gone", |seen| !seen.device).await;
    let foreign = || a.on(|| Links::open().unwrap().routes(by_administrator).unwrap());
    assert!(foreign().iter().any(|route| route.gateway == Some(ip("192.0.2.77"))));
    // A range somebody else has a route to is theirs, until they give it up; the other nodes are none the worse.
    site.register(site.of("c"));
    site.register(site.of("b"));
    a.until_routes(&[("10.244.1.0/24", "192.0.2.12")]).await;
    assert!(foreign().iter().any(|route| route.gateway == Some(ip("192.0.2.77"))));
    let theirs = route("10.244.2.0/24", "192.0.2.77");
    a.on(|| Links::open().unwrap().remove_route(by_administrator, &theirs).unwrap());
    a.until_routes(&[("10.244.1.0/24", "192.0.2.12"), ("10.244.2.0/24", "10.244.2.1")])
        .await;
    site.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_get_into_the_virtual_network() {
    if !is_root() {
        return;
    }
    let site = Site::started().await;
    let pods = site.pods().await;
    until_answers(&pods[0].netns, (pods[2].ip(), 80)).await;
    let inside = netns::within(&pods[0].netns, || UdpSocket::bind("0.0.0.0:5000").unwrap()).unwrap();
    inside.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (a, c) = (site.of("a"), site.of("c"));
    let send = |from: &Path, text: u8| {
        let datagram = frame(pods[2].ip(), pods[0].ip(), gateway(a.config.pod_cidr), text);
        let socket = netns::within(from, || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        socket.send_to(&datagram, (a.address, PORT)).unwrap();
    };
    let heard = || {
        let mut buffer = [0; 8];
        let length = inside.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    };
    send(&c.netns, b'1');
    assert_eq!(heard(), b"1");
    // The same from the router, who is no node: only what the node sends after it arrives.
    send(&site.router, b'2');
    send(&c.netns, b'3');
    assert_eq!(heard(), b"3");
    site.done().await;
}

/// A VXLAN datagram with a UDP packet to port 5000 in it.
fn frame(from: Ipv4Addr, to: Ipv4Addr, gateway: Ipv4Addr, text: u8) -> Vec<u8> {
    let mut ip_header = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0];
    ip_header.extend(from.octets());
    ip_header.extend(to.octets());
    let sum: u32 = ip_header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    ip_header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let [_, vni @ ..] = VNI.to_be_bytes();
    [
        &[8, 0, 0, 0][..],
        &vni,
        &[0],
        &mac_of(gateway),
        &[2, 0, 0, 0, 0, 7, 8, 0],
        &ip_header,
        &[0x13, 0x88, 0x13, 0x88, 0, 9, 0, 0, text],
    ]
    .concat()
}
