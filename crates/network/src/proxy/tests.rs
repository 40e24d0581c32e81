//! The plan as a table of cases, and real packets through the kernel (root only).

use std::net::SocketAddrV4;

use k8s_openapi::api::core::v1::Event;
use sampan_client::SystemClock;
use sampan_client::testing::{FakeApi, eventually};
use sampan_tasks::{OnExit, Tasks};
use serde_json::json;

use super::plan::{Step, Target};
use super::*;
use crate::netns;
use crate::pods::Protocol;
use crate::testing::{MACHINE, OUTSIDE, Pod, World, answers, ask, is_root, service, slice};

fn node() -> Node {
    Node {
        name: "here".into(),
        zone: Some("east".into()),
        pods: "10.244.0.0/16".parse().unwrap(),
    }
}
fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}
fn at(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}
fn http() -> serde_json::Value {
    json!({"name": "http", "port": 8080, "protocol": "TCP"})
}

#[test]
fn ready_endpoints_share_the_load() {
    let service = service(
        "web",
        json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]}),
    );
    let slice = slice(
        "web",
        http(),
        &[
            (ip("10.244.0.3"), json!({})),
            (ip("10.244.0.2"), json!({"conditions": {"ready": true}})),
            (ip("10.244.0.2"), json!({})),
            (
                ip("10.244.0.4"),
                json!({"conditions": {"ready": false, "serving": true, "terminating": true}}),
            ),
        ],
    );
    let rules = desired(&service, [&slice], &node());
    let steps = vec![
        Step::MarkOutside,
        Step::Balance(vec![at("10.244.0.2:8080"), at("10.244.0.3:8080")]),
    ];
    assert_eq!(rules.chains, [("svc/default/web/http".to_owned(), steps)].into());
    let entry = (
        (ip("10.96.0.9"), Protocol::Tcp, 80),
        Target::Chain("svc/default/web/http".into()),
    );
    assert_eq!(rules.addresses, [entry].into());
    assert!(rules.node_ports.is_empty() && rules.cluster_ips.contains(&ip("10.96.0.9")));
}

#[test]
fn endings_serve_while_nobody_is_ready_and_nobody_means_refusal() {
    let service = service(
        "web",
        json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]}),
    );
    let ending = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    let unready = json!({"conditions": {"ready": false, "serving": false, "terminating": false}});
    let target = |endpoint: &serde_json::Value| {
        let slice = slice("web", http(), &[(ip("10.244.0.2"), endpoint.clone())]);
        desired(&service, [&slice], &node()).addresses.into_values().next()
    };
    assert!(matches!(target(&ending), Some(Target::Chain(_))));
    assert_eq!(target(&unready), Some(Target::Reject));
    assert_eq!(
        desired(&service, [], &node()).addresses.into_values().next(),
        Some(Target::Reject)
    );
}

#[test]
fn services_without_an_address_have_no_rules() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "x", "clusterIP": "10.96.0.9"}),
        json!({"clusterIP": "fd00::1", "ports": [{"port": 80}]}),
        json!({"ports": [{"port": 80}]}),
    ] {
        assert_eq!(desired(&service("x", spec), [], &node()), ServiceRules::default());
    }
}

#[test]
fn policies_choose_among_endpoints() {
    let spec = |external: &str, internal: &str| {
        service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.96.0.9", "externalTrafficPolicy": external, "internalTrafficPolicy": internal,
                   "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
        )
    };
    let elsewhere = slice("web", http(), &[(ip("10.244.1.2"), json!({"nodeName": "there"}))]);
    let both = slice(
        "web",
        http(),
        &[
            (ip("10.244.1.2"), json!({"nodeName": "there"})),
            (ip("10.244.0.2"), json!({})),
        ],
    );
    let chain = |name: &str| Target::Chain(format!("{name}/default/web/http"));
    let (address, port) = ((ip("10.96.0.9"), Protocol::Tcp, 80), (Protocol::Tcp, 30080));
    for (external, internal, slice, inside, outside) in [
        ("Cluster", "Cluster", &both, chain("svc"), chain("ext")),
        ("Cluster", "Local", &both, chain("local"), chain("ext")),
        ("Cluster", "Local", &elsewhere, Target::Drop, chain("ext")),
        ("Local", "Cluster", &both, chain("svc"), chain("ext")),
        ("Local", "Cluster", &elsewhere, chain("svc"), chain("ext")),
    ] {
        let rules = desired(&spec(external, internal), [slice], &node());
        assert_eq!(rules.addresses.get(&address), Some(&inside), "{external} {internal}");
        assert_eq!(rules.node_ports.get(&port), Some(&outside), "{external} {internal}");
    }
    let last = |slice| {
        desired(&spec("Local", "Cluster"), [slice], &node()).chains["ext/default/web/http"]
            .last()
            .cloned()
    };
    assert_eq!(last(&elsewhere), Some(Step::Drop));
    assert_eq!(last(&both), Some(Step::Goto("local/default/web/http".into())));
}

#[test]
fn hints_choose_the_nearest_unless_nobody_is_left() {
    let service = service(
        "web",
        json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]}),
    );
    let endpoint = |nodes: &[&str], zones: &[&str], ready: bool| {
        let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let conditions = json!({"ready": ready, "serving": true, "terminating": !ready});
        json!({"hints": {"forNodes": named(nodes), "forZones": named(zones)}, "conditions": conditions})
    };
    let both = |first, second| [first, second];
    for (what, endpoints, wanted) in [
        (
            "for the node",
            both(endpoint(&["here"], &[], true), endpoint(&["there"], &[], true)),
            "2",
        ),
        (
            "one has no hint",
            both(endpoint(&["here"], &[], true), endpoint(&[], &[], true)),
            "2 3",
        ),
        (
            "none for the node",
            both(endpoint(&["there"], &[], true), endpoint(&["else"], &[], true)),
            "2 3",
        ),
        (
            "the node's is not ready",
            both(endpoint(&["here"], &[], false), endpoint(&["there"], &[], true)),
            "3",
        ),
        (
            "only the node's is left, ending",
            both(endpoint(&["here"], &[], false), endpoint(&["there"], &[], false)),
            "2 3",
        ),
        (
            "for the zone",
            both(endpoint(&[], &["west"], true), endpoint(&[], &["east", "west"], true)),
            "3",
        ),
        (
            "the node before the zone",
            both(
                endpoint(&["here"], &["west"], true),
                endpoint(&["there"], &["east"], true),
            ),
            "2",
        ),
        (
            "the zone if not the node",
            both(
                endpoint(&["else"], &["west"], true),
                endpoint(&["there"], &["east"], true),
            ),
            "3",
        ),
        (
            "no zone of ours",
            both(endpoint(&[], &["west"], true), endpoint(&[], &["north"], true)),
            "2 3",
        ),
    ] {
        let [first, second] = endpoints;
        let slice = slice("web", http(), &[(ip("10.244.0.2"), first), (ip("10.244.0.3"), second)]);
        let rules = desired(&service, [&slice], &node());
        let Some(Step::Balance(chosen)) = rules.chains["svc/default/web/http"].last() else {
            panic!("{what}: no endpoints");
        };
        let chosen: Vec<_> = chosen
            .iter()
            .map(|endpoint| endpoint.ip().octets()[3].to_string())
            .collect();
        assert_eq!(chosen.join(" "), wanted, "{what}");
    }
}

#[test]
fn load_balancers_keep_strangers_out() {
    let mut service = service(
        "web",
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "externalIPs": ["192.0.2.50"], "loadBalancerSourceRanges": ["198.51.100.0/24"],
               "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
    );
    service.status = serde_json::from_value(
        json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.60"}, {"ip": "192.0.2.61", "ipMode": "Proxy"}]}}),
    )
    .unwrap();
    let slice = slice("web", http(), &[(ip("10.244.0.2"), json!({}))]);
    let rules = desired(&service, [&slice], &node());
    let reached: Vec<_> = rules
        .addresses
        .iter()
        .map(|((ip, ..), target)| (ip.to_string(), target.clone()))
        .collect();
    let chain = |name: &str| Target::Chain(format!("{name}/default/web/http"));
    assert_eq!(
        reached,
        [
            ("10.96.0.9".into(), chain("svc")),
            ("192.0.2.50".into(), chain("ext")),
            ("192.0.2.60".into(), chain("lb"))
        ]
    );
    let range = Step::FromGoto("198.51.100.0/24".parse().unwrap(), "ext/default/web/http".into());
    assert_eq!(rules.chains["lb/default/web/http"], [range, Step::Drop]);
}

/// A world with a proxy over an API in memory.
struct Cluster {
    world: World,
    api: FakeApi,
    tasks: Tasks,
}

impl Cluster {
    async fn new(bridge_netfilter: bool) -> Self {
        let world = World::with_bridge_netfilter(bridge_netfilter).await;
        let (api, tasks) = (FakeApi::new(), Tasks::new());
        let config = ProxyConfig {
            node: "here".into(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            host: world.config.host.clone(),
            health: Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 10256))),
        };
        Proxy::prepare(&config).await.unwrap();
        let informers = Informers::new(api.client("proxy"), &tasks);
        let events = Recorder::new(api.client("node"), "kube-proxy", None, Arc::new(SystemClock), &tasks);
        let proxy = Proxy::new(config, &informers).reporting(events);
        let drain = tasks.drain();
        tasks.spawn("proxy", OnExit::Critical, proxy.run(drain));
        Cluster { world, api, tasks }
    }

    async fn done(self) {
        assert_eq!(self.tasks.shutdown(Duration::from_secs(5)).await, 0);
    }

    async fn until_answers(&self, netns: &std::path::Path, to: (Ipv4Addr, u16)) {
        eventually("the service answers", || async { ask(netns, to).ok() }).await;
    }
    async fn until_refused(&self, netns: &std::path::Path, to: (Ipv4Addr, u16)) {
        let refused = || async {
            ask(netns, to)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
                .then_some(())
        };
        eventually("the service refuses", refused).await;
    }
}

fn endpoints(pods: &[&Pod]) -> Vec<(Ipv4Addr, serde_json::Value)> {
    pods.iter().map(|pod| (pod.ip(), json!({}))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_from_everywhere() {
    if !is_root() {
        return;
    }
    for bridge_netfilter in [false, true] {
        a_service_answers_from_everywhere_with(bridge_netfilter).await;
    }
}

async fn a_service_answers_from_everywhere_with(bridge_netfilter: bool) {
    let cluster = Cluster::new(bridge_netfilter).await;
    let world = &cluster.world;
    let (a, b, client) = (
        world.pod("a", vec![]).await,
        world.pod("b", vec![]).await,
        world.pod("client", vec![]).await,
    );
    a.serve(8080);
    b.serve(8080);
    let vip = ip("10.96.0.9");
    cluster.api.create(&service(
        "web",
        json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]}),
    ));
    // Nobody is there yet: refused at once, from Pods, the machine, and outside.
    cluster.until_refused(&client.netns, (vip, 80)).await;
    cluster.until_refused(&world.machine, (vip, 80)).await;
    cluster.until_refused(&world.outside, (MACHINE, 30080)).await;

    cluster.api.create(&slice("web", http(), &endpoints(&[&a, &b])));
    cluster.until_answers(&client.netns, (vip, 80)).await;
    assert_eq!(answers(&client.netns, (vip, 80), 40), ["a", "b"]);
    assert_eq!(answers(&world.machine, (vip, 80), 40), ["a", "b"]);
    assert_eq!(answers(&world.outside, (MACHINE, 30080), 40), ["a", "b"]);
    assert_eq!(answers(&world.machine, (Ipv4Addr::LOCALHOST, 30080), 40), ["a", "b"]);
    assert_eq!(answers(&client.netns, (MACHINE, 30080), 40), ["a", "b"]);
    // A Pod that is its own Service (hairpin).
    assert_eq!(answers(&a.netns, (vip, 80), 40), ["a", "b"]);
    // Sources: a Pod's own inside; the node's for strangers.
    assert_eq!(ask(&client.netns, (vip, 80)).unwrap().1, client.ip().to_string());
    assert_eq!(
        ask(&world.outside, (MACHINE, 30080)).unwrap().1,
        world.network.gateway().to_string()
    );
    // A port the Service does not have.
    cluster.until_refused(&client.netns, (vip, 81)).await;
    cluster.until_refused(&world.machine, (vip, 81)).await;

    // Somebody flushes the firewall, ours included: it comes back.
    let guard = cluster.tasks.drain();
    let network = world.network.clone();
    cluster.tasks.spawn(
        "guard",
        OnExit::Critical,
        async move { network.guard(guard).await.unwrap() },
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    let flush = || {
        for table in [TABLE, crate::pods::TABLE] {
            let mut transaction = Transaction::new(table);
            transaction.drop_table();
            transaction.commit().unwrap();
        }
    };
    world.config.host.run(flush).unwrap();
    cluster.until_answers(&client.netns, (vip, 80)).await;
    let gateway = world.network.gateway();
    let masqueraded = || async {
        ask(&a.netns, (vip, 80))
            .ok()
            .filter(|answer| answer == &("a".into(), gateway.to_string()))
    };
    eventually("a Pod reaches itself again", masqueraded).await;

    // One endpoint leaves, then the Service.
    cluster.api.change::<EndpointSlice>("default", "web-x", |slice| {
        slice.endpoints.as_mut().unwrap().truncate(1)
    });
    let only_a = || async {
        let all: Option<Vec<String>> = (0..20)
            .map(|_| ask(&client.netns, (vip, 80)).ok().map(|(name, _)| name))
            .collect();
        all.filter(|names| names.iter().all(|name| name == "a"))
    };
    eventually("only one endpoint is left", only_a).await;
    cluster.api.remove::<Service>("default", "web");
    cluster.until_refused(&world.outside, (MACHINE, 30080)).await;
    cluster.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_policy_keeps_the_client_and_affinity_the_endpoint() {
    if !is_root() {
        return;
    }
    for bridge_netfilter in [false, true] {
        local_policy_keeps_the_client_and_affinity_the_endpoint_with(bridge_netfilter).await;
    }
}

async fn local_policy_keeps_the_client_and_affinity_the_endpoint_with(bridge_netfilter: bool) {
    let cluster = Cluster::new(bridge_netfilter).await;
    let world = &cluster.world;
    let pods = [
        world.pod("a", vec![]).await,
        world.pod("b", vec![]).await,
        world.pod("c", vec![]).await,
    ];
    pods.iter().for_each(|pod| pod.serve(8080));
    cluster.api.create(&service(
        "near",
        json!({"type": "NodePort", "clusterIP": "10.96.0.10", "externalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80, "nodePort": 30081}]}),
    ));
    cluster.api.create(&slice("near", http(), &endpoints(&[&pods[0]])));
    cluster.api.create(&service(
        "sticky",
        json!({"clusterIP": "10.96.0.11", "sessionAffinity": "ClientIP", "ports": [{"name": "http", "port": 80}]}),
    ));
    cluster
        .api
        .create(&slice("sticky", http(), &endpoints(&[&pods[0], &pods[1], &pods[2]])));
    cluster.until_answers(&world.outside, (MACHINE, 30081)).await;
    assert_eq!(
        ask(&world.outside, (MACHINE, 30081)).unwrap(),
        ("a".into(), OUTSIDE.to_string())
    );
    assert_eq!(
        ask(&pods[1].netns, (MACHINE, 30081)).unwrap().1,
        pods[1].ip().to_string()
    );

    let vip = ip("10.96.0.11");
    let client = world.pod("client", vec![]).await;
    cluster.until_answers(&client.netns, (vip, 80)).await;
    let chosen = answers(&client.netns, (vip, 80), 30);
    assert_eq!(chosen.len(), 1, "a client stays with its endpoint");
    // Its endpoint goes: another one, and again one only.
    let rest: Vec<&Pod> = pods.iter().filter(|pod| pod.uid != chosen[0]).collect();
    let rest = slice("sticky", http(), &endpoints(&rest)).endpoints;
    cluster
        .api
        .change::<EndpointSlice>("default", "sticky-x", |slice| slice.endpoints = rest);
    let moved = || async {
        ask(&client.netns, (vip, 80))
            .ok()
            .filter(|(name, _)| *name != chosen[0])
    };
    eventually("the client moves", moved).await;
    assert_eq!(answers(&client.netns, (vip, 80), 30).len(), 1);
    cluster.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_follow_their_service() {
    if !is_root() {
        return;
    }
    for bridge_netfilter in [false, true] {
        datagrams_follow_their_service_with(bridge_netfilter).await;
    }
}

async fn datagrams_follow_their_service_with(bridge_netfilter: bool) {
    let cluster = Cluster::new(bridge_netfilter).await;
    let world = &cluster.world;
    let (a, b, client) = (
        world.pod("a", vec![]).await,
        world.pod("b", vec![]).await,
        world.pod("client", vec![]).await,
    );
    a.serve_datagrams(53);
    b.serve_datagrams(53);
    let port = json!({"name": "dns", "port": 53, "protocol": "UDP"});
    cluster.api.create(&service(
        "dns",
        json!({"clusterIP": "10.96.0.12", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
    ));
    cluster.api.create(&slice("dns", port.clone(), &endpoints(&[&a])));
    // One socket, so one flow, all the time.
    let socket = netns::within(&client.netns, || std::net::UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let asked = || {
        let mut buffer = [0; 64];
        // Refused while there is no endpoint.
        socket.send_to(b"?", "10.96.0.12:53").ok()?;
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let until = |wanted: &'static str| {
        let asked = &asked;
        eventually("datagrams arrive", move || async move {
            (asked().as_deref() == Some(wanted)).then_some(())
        })
    };
    until("a").await;
    let other = slice("dns", port, &endpoints(&[&b])).endpoints;
    cluster
        .api
        .change::<EndpointSlice>("default", "dns-x", |slice| slice.endpoints = other);
    until("b").await;
    cluster.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_services_fit_in_one_transaction() {
    if !is_root() {
        return;
    }
    let world = World::new().await;
    let rules = |count: u16, endpoint: u8| {
        (0..count).map(move |number| {
            let [high, low] = number.to_be_bytes();
            let service = service(
                &format!("s{number}"),
                json!({"type": "NodePort", "clusterIP": format!("10.100.{high}.{low}"), "sessionAffinity": if number % 50 == 0 { "ClientIP" } else { "None" },
                       "ports": [{"name": "http", "port": 80, "nodePort": 30000 + u32::from(number)}]}),
            );
            let slice = slice("x", http(), &[(ip("10.244.0.7"), json!({})), (Ipv4Addr::new(10, 244, 1, endpoint), json!({}))]);
            (Key::new("default", format!("s{number}")), desired(&service, [&slice], &node()))
        })
    };
    let committed = world.config.host.run(|| {
        let (mut table, transaction) = Table::fresh(node().pods, rules(2000, 1));
        transaction.commit().unwrap();
        // Every service changes, half of them leave, one comes back.
        table
            .change(rules(2000, 2).map(|(key, rules)| (key, Some(rules))))
            .commit()
            .unwrap();
        table
            .change(rules(1000, 2).map(|(key, _)| (key, None)))
            .commit()
            .unwrap();
        table
            .change(rules(1, 2).map(|(key, rules)| (key, Some(rules))))
            .commit()
            .unwrap();
        // A transaction that cannot be is refused as a whole, and says what was wrong.
        let mut stranger = Table::new(node().pods);
        let unknown = Key::new("default", "unknown");
        let rules = rules(3000, 3).next_back().map(|(_, rules)| rules);
        stranger.change([(unknown.clone(), rules)]);
        stranger.change([(unknown, None)]).commit().unwrap_err().to_string()
    });
    let error = committed.unwrap();
    assert_eq!(
        error,
        "nftables table sampan: delete elements of services: No such file or directory (os error 2)"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_resolve_through_the_dns_service() {
    if !is_root() {
        return;
    }
    for bridge_netfilter in [false, true] {
        let cluster = Cluster::new(bridge_netfilter).await;
        let world = &cluster.world;
        let client = world.pod("client", vec![]).await;
        // As the binary wires it: a Service whose one endpoint is the gateway, an address of the machine itself.
        let gateway = world.network.gateway();
        let informers = Informers::new(cluster.api.client("dns"), &cluster.tasks);
        let config = crate::DnsConfig {
            host: world.config.host.clone(),
            resolvers: Some(vec![]),
            ..crate::DnsConfig::new("cluster.local", vec![(gateway, 53).into()])
        };
        let dns = crate::Dns::bind(&config, &informers).unwrap();
        let drain = cluster.tasks.drain();
        cluster.tasks.spawn("dns", OnExit::Critical, dns.run(drain));
        let port = json!({"name": "dns", "port": 53, "protocol": "UDP"});
        cluster.api.create(&service(
            "kube-dns",
            json!({"clusterIP": "10.96.0.10", "ports": [port]}),
        ));
        cluster.api.create(&slice("kube-dns", port, &[(gateway, json!({}))]));

        let name = "kube-dns.default.svc.cluster.local.";
        let mut question = hickory_proto::op::Message::query();
        let name = hickory_proto::rr::Name::from_ascii(name).unwrap();
        question.add_query(hickory_proto::op::Query::query(name, hickory_proto::rr::RecordType::A));
        let question = question.to_vec().unwrap();
        for from in [&client.netns, &world.machine] {
            let asked = || async {
                let socket = netns::within(from, || std::net::UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                socket.send_to(&question, "10.96.0.10:53").ok()?;
                let mut buffer = [0; 512];
                let (length, from) = socket.recv_from(&mut buffer).ok()?;
                let answer = hickory_proto::op::Message::from_vec(&buffer[..length]).unwrap();
                (!answer.answers.is_empty()).then(|| (from.to_string(), answer.answers[0].data.to_string()))
            };
            let answer = eventually("the name resolves", asked).await;
            assert_eq!(answer, ("10.96.0.10:53".to_owned(), "10.96.0.10".to_owned()));
        }
        cluster.done().await;
    }
}

/// Stores an object as it is now, there or not.
fn put<K: kube::Resource<DynamicType = ()> + serde::Serialize>(api: &FakeApi, object: &K) {
    let meta = object.meta();
    let (namespace, name) = (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    );
    api.put_raw::<K>(&namespace, &name, serde_json::to_value(object).unwrap());
}

/// The status and body of a page.
fn fetch(netns: &std::path::Path, port: u16, path: &str) -> Option<(u16, String)> {
    use std::io::{Read, Write};
    netns::within(netns, || {
        let to = SocketAddr::from((MACHINE, port));
        let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_are_told_where_endpoints_are() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(false).await;
    let outside = cluster.world.outside.clone();
    let status = |status: u16, port: u16, path: &'static str| {
        let outside = outside.clone();
        move || {
            let found = fetch(&outside, port, path);
            std::future::ready(found.filter(|(found, _)| *found == status))
        }
    };
    let spec = |port: u16, policy: &str| {
        service(
            "web",
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "externalTrafficPolicy": policy,
                   "healthCheckNodePort": port, "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
        )
    };
    let ready = json!({"conditions": {"ready": true}});
    let ending = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    put(&cluster.api, &spec(32000, "Local"));
    let slice_of = |state: &serde_json::Value| slice("web", http(), &[(ip("10.244.0.2"), state.clone())]);
    put(&cluster.api, &slice_of(&ready));
    let (_, body) = eventually("an endpoint here", status(200, 32000, "/")).await;
    assert!(body.contains("\"localEndpoints\": 1"), "{body}");
    put(&cluster.api, &slice_of(&ending));
    eventually("none here any more", status(503, 32000, "/any/path")).await;
    // Another port, and none.
    put(&cluster.api, &spec(32001, "Local"));
    eventually("the other port", status(503, 32001, "/")).await;
    let closed = |port: u16| {
        let outside = outside.clone();
        move || std::future::ready(fetch(&outside, port, "/").is_none().then_some(()))
    };
    eventually("the first port is closed", closed(32000)).await;
    put(&cluster.api, &spec(32001, "Cluster"));
    eventually("nobody asks", closed(32001)).await;
    // A port that somebody else has.
    let taken = || std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 32002));
    let taken = cluster.world.config.host.run(taken).unwrap().unwrap();
    put(&cluster.api, &spec(32002, "Local"));
    let said = || async {
        let events: Vec<Event> = cluster.api.all();
        events
            .into_iter()
            .find(|event| event.reason.as_deref() == Some("FailedToStartServiceHealthcheck"))
    };
    let event = eventually("the Service is told", said).await;
    let message = event.message.unwrap();
    let begins = "node here failed to start healthcheck \"default/web\" on port 32002: ";
    assert!(message.starts_with(begins), "{message}");
    assert_eq!(event.involved_object.name.as_deref(), Some("web"));
    drop(taken);
    put(&cluster.api, &spec(32002, "Cluster"));

    let node: NodeObject = serde_json::from_value(json!({"metadata": {"name": "here"}})).unwrap();
    assert_eq!(
        fetch(&outside, 10256, "/healthz").unwrap().0,
        503,
        "a node nobody knows"
    );
    put(&cluster.api, &node);
    let (_, body) = eventually("the node is known", status(200, 10256, "/healthz")).await;
    assert!(body.contains("\"nodeEligible\":true"), "{body}");
    assert_eq!(fetch(&outside, 10256, "/livez").unwrap().0, 200);
    assert_eq!(fetch(&outside, 10256, "/").unwrap().0, 404);
    drop(outside);
    cluster.done().await;
}
