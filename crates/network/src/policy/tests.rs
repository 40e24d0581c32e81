//! The plan against a naive reading of the policies, packets through the kernel, and Pods that come while policies do.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use sampan_client::testing::{FakeApi, eventually};
use sampan_tasks::{OnExit, Tasks};
use serde_json::{Value, json};

use super::plan::{Element, Match, Plan, Step};
use super::selector::{Labels, Selector};
use super::spec::{Direction, NamedPort, Namespaces, Peer, Port};
use super::*;
use crate::netns;
use crate::pods::Protocol;
use crate::testing::{OUTSIDE, Pod as World0, World, ask, is_root, known_pod, ping};

#[derive(Clone, Copy, Debug)]
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
}

// What the kernel would do with a plan.

fn holds(plan: &Plan, one: &Match, packet: &Packet) -> bool {
    let set = |name: &String| &plan.sets[name].elements;
    match one {
        Match::Peer(direction, name) => {
            let peer = if *direction == Direction::Ingress {
                packet.from
            } else {
                packet.to
            };
            set(name).iter().any(|element| match element {
                Element::Address(ip) => *ip == peer,
                Element::Block(first, last) => (*first..=*last).contains(&peer),
                _ => false,
            })
        }
        Match::Port(name) => set(name).iter().any(|element| {
            matches!(element, Element::Ports(protocol, first, last)
                if *protocol == packet.protocol && (*first..=*last).contains(&packet.port))
        }),
        Match::Named(name) => set(name).contains(&Element::Named(packet.to, packet.protocol, packet.port)),
    }
}

fn judged(plan: &Plan, direction: Direction, packet: &Packet) -> bool {
    let of = if direction == Direction::Ingress {
        packet.to
    } else {
        packet.from
    };
    let Some(chain) = plan.entries.get(&(direction, of)) else {
        return true;
    };
    plan.chains[chain].iter().any(|step| match step {
        Step::Ask(policy) => plan.chains[policy].iter().any(|step| match step {
            Step::Allow(_, all) => all.iter().all(|one| holds(plan, one, packet)),
            Step::Ask(_) | Step::Drop => false,
        }),
        Step::Allow(..) | Step::Drop => false,
    })
}

fn passes(plan: &Plan, packet: &Packet) -> bool {
    let isolated = plan.entries.keys().any(|(_, ip)| *ip == packet.from);
    (isolated && packet.from == packet.to)
        || (judged(plan, Direction::Egress, packet) && judged(plan, Direction::Ingress, packet))
}

/// What changes make of a plan, as the kernel would.
fn follow(shadow: &mut Plan, changes: &Changes) {
    for (entry, old, new) in &changes.entries {
        assert_eq!(shadow.entries.get(entry), old.as_ref());
        match new {
            Some(chain) => shadow.entries.insert(*entry, chain.clone()),
            None => shadow.entries.remove(entry),
        };
    }
    for (chain, old, new) in &changes.chains {
        assert_eq!(shadow.chains.get(chain), old.as_ref());
        match new {
            Some(steps) => shadow.chains.insert(chain.clone(), steps.clone()),
            None => shadow.chains.remove(chain),
        };
    }
    for (set, elements) in &changes.removed {
        for element in elements {
            assert!(shadow.sets.get_mut(set).unwrap().elements.remove(element));
        }
    }
    for (set, kind) in &changes.new_sets {
        let fresh = plan::Set {
            kind: *kind,
            elements: BTreeSet::new(),
        };
        assert!(shadow.sets.insert(set.clone(), fresh).is_none());
    }
    for (set, (_, elements)) in &changes.added {
        for element in elements {
            assert!(shadow.sets.get_mut(set).unwrap().elements.insert(element.clone()));
        }
    }
    for set in &changes.old_sets {
        assert!(shadow.sets.remove(set).is_some());
    }
}

// The cluster as it is, and what its policies say read one by one.

#[derive(Clone, Debug, Default)]
struct Cluster {
    policies: BTreeMap<Key, Policy>,
    pods: BTreeMap<Key, PodView>,
    namespaces: BTreeMap<String, Labels>,
    locals: BTreeMap<IpAddr, Local>,
}

impl Cluster {
    fn take(&mut self, update: &Update) {
        fn put<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: &Option<V>) {
            match value {
                Some(value) => map.insert(key.clone(), value.clone()),
                None => map.remove(key),
            };
        }
        match update {
            Update::Policy(key, policy) => put(&mut self.policies, key, policy),
            Update::Pod(key, view) => {
                if view.is_none()
                    && let Some(last) = self.pods.get(key)
                {
                    let locals = self.locals.values_mut().filter(|local| local.pod == *key);
                    locals.for_each(|local| local.view = last.clone());
                }
                put(&mut self.pods, key, view);
            }
            Update::Namespace(name, labels) => put(&mut self.namespaces, name, labels),
            Update::Local(ip, local) => put(&mut self.locals, ip, local),
        }
    }

    fn is_peer(&self, peer: &Peer, ip: IpAddr) -> bool {
        match peer {
            Peer::Block(ranges) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&ip)),
            Peer::Pods(of) => self.pods.iter().any(|(key, view)| {
                let namespace = match &of.namespaces {
                    Namespaces::Named(name) => *name == key.namespace,
                    Namespaces::Labelled(selector) => self
                        .namespaces
                        .get(&key.namespace)
                        .is_some_and(|labels| selector.matches(labels)),
                };
                namespace && of.pods.matches(&view.labels) && view.addresses.contains(&ip)
            }),
        }
    }

    fn allows(&self, direction: Direction, packet: &Packet) -> bool {
        let (of, peer) = match direction {
            Direction::Ingress => (packet.to, packet.from),
            Direction::Egress => (packet.from, packet.to),
        };
        let Some(local) = self.locals.get(&of) else {
            return true;
        };
        let labels = &self.pods.get(&local.pod).unwrap_or(&local.view).labels;
        let isolating: Vec<_> = self
            .policies
            .iter()
            .filter(|(key, policy)| key.namespace == local.pod.namespace && policy.pods.matches(labels))
            .filter_map(|(_, policy)| policy.rules(direction))
            .collect();
        isolating.is_empty()
            || isolating.into_iter().flatten().any(|rule| {
                let peers = rule.peers.as_ref();
                let ports = rule.ports.as_ref();
                peers.is_none_or(|peers| peers.iter().any(|one| self.is_peer(one, peer)))
                    && ports.is_none_or(|ports| ports.iter().any(|port| self.is_port(port, packet)))
            })
    }

    fn is_port(&self, port: &Port, packet: &Packet) -> bool {
        match port {
            Port::Numbers(protocol, first, last) => {
                *protocol == packet.protocol && (*first..=*last).contains(&packet.port)
            }
            Port::Named(protocol, name) => self.pods.values().any(|view| {
                let named = NamedPort {
                    protocol: *protocol,
                    name: name.clone(),
                    number: packet.port,
                };
                *protocol == packet.protocol && view.addresses.contains(&packet.to) && view.ports.contains(&named)
            }),
        }
    }

    fn passes(&self, packet: &Packet) -> bool {
        let isolated = |ip: IpAddr| {
            self.locals.contains_key(&ip)
                && [Direction::Ingress, Direction::Egress].into_iter().any(|direction| {
                    let local = &self.locals[&ip];
                    let labels = &self.pods.get(&local.pod).unwrap_or(&local.view).labels;
                    self.policies.iter().any(|(key, policy)| {
                        key.namespace == local.pod.namespace
                            && policy.pods.matches(labels)
                            && policy.rules(direction).is_some()
                    })
                })
        };
        (packet.from == packet.to && isolated(packet.from))
            || (self.allows(Direction::Egress, packet) && self.allows(Direction::Ingress, packet))
    }
}

fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))
}

fn labels() -> impl Strategy<Value = Labels> {
    let pair = (
        prop::sample::select(vec!["a", "b"]),
        prop::sample::select(vec!["1", "2"]),
    );
    prop::collection::btree_map(pair.0.prop_map(str::to_owned), pair.1.prop_map(str::to_owned), 0..3)
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        labels().prop_map(|labels| json!({ "matchLabels": labels })),
        prop::sample::select(vec!["Exists", "DoesNotExist"])
            .prop_map(|operator| json!({"matchExpressions": [{"key": "a", "operator": operator}]})),
        prop::sample::select(vec!["In", "NotIn"])
            .prop_map(|operator| json!({"matchExpressions": [{"key": "b", "operator": operator, "values": ["1"]}]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({ "podSelector": pods })),
        selector().prop_map(|namespaces| json!({ "namespaceSelector": namespaces })),
        (selector(), selector()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        (0u8..8, 29u8..=32, prop::collection::vec(0u8..8, 0..2)).prop_map(|(base, length, except)| {
            let except: Vec<String> = except.iter().map(|last| format!("10.0.0.{last}/32")).collect();
            json!({"ipBlock": {"cidr": format!("10.0.0.{base}/{length}"), "except": except}})
        }),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = || prop::sample::select(vec!["TCP", "UDP", "SCTP"]);
    prop_oneof![
        protocol().prop_map(|protocol| json!({ "protocol": protocol })),
        (protocol(), 1u16..6).prop_map(|(protocol, port)| json!({"protocol": protocol, "port": port})),
        (1u16..4, 0u16..3).prop_map(|(port, more)| json!({"port": port, "endPort": port + more})),
        prop::sample::select(vec!["http", "dns"]).prop_map(|name| json!({ "port": name })),
    ]
}

fn rules(peers: &'static str) -> impl Strategy<Value = Vec<Value>> {
    let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
    prop::collection::vec(
        rule.prop_map(move |(list, ports)| json!({peers: list, "ports": ports})),
        0..3,
    )
}

fn policy(namespace: &str, spec: Value) -> Policy {
    let object = json!({"metadata": {"namespace": namespace, "name": "p"}, "spec": spec});
    Policy::of(&serde_json::from_value::<NetworkPolicy>(object).unwrap())
}

fn view() -> impl Strategy<Value = PodView> {
    let port = (prop::sample::select(vec!["http", "dns"]), 1u16..6).prop_map(|(name, number)| NamedPort {
        protocol: Protocol::Tcp,
        name: name.into(),
        number,
    });
    (
        labels(),
        prop::collection::btree_set(0u8..8, 0..2),
        prop::collection::btree_set(port, 0..3),
    )
        .prop_map(|(labels, addresses, ports)| PodView {
            labels,
            addresses: addresses.into_iter().map(address).collect(),
            ports,
        })
}

fn update() -> impl Strategy<Value = Update> {
    let namespace = || prop::sample::select(vec!["x", "y"]);
    let name = || prop::sample::select(vec!["1", "2", "3"]);
    let key = move || (namespace(), name()).prop_map(|(namespace, name)| Key::new(namespace, name));
    let types = prop::sample::select(vec![
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
        json!([]),
    ]);
    prop_oneof![
        3 => (key(), selector(), rules("from"), rules("to"), types, 0..5).prop_map(|(key, pods, ingress, egress, types, there)| {
            let spec = json!({"podSelector": pods, "ingress": ingress, "egress": egress, "policyTypes": types});
            let policy = (there > 0).then(|| policy(&key.namespace, spec));
            Update::Policy(key, policy)
        }),
        3 => (key(), prop::option::weighted(0.8, view())).prop_map(|(key, view)| Update::Pod(key, view)),
        1 => (namespace(), prop::option::weighted(0.8, labels()))
            .prop_map(|(namespace, labels)| Update::Namespace(namespace.into(), labels)),
        3 => (0u8..8, key(), view(), 0..5).prop_map(|(ip, pod, view, there)| {
            Update::Local(address(ip), (there > 0).then_some(Local { pod, view }))
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_says_what_the_policies_say(batches in prop::collection::vec(prop::collection::vec(update(), 1..6), 1..8)) {
        let (mut model, mut cluster, mut shadow) = (Model::default(), Cluster::default(), Plan::default());
        for batch in batches {
            batch.iter().for_each(|update| cluster.take(update));
            let changes = model.apply(batch);
            follow(&mut shadow, &changes);
            prop_assert_eq!(&shadow, model.plan());
            for (from, to, port) in itertools(0..9, 0..9, 1..7) {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let packet = Packet { from: address(from), to: address(to), protocol, port };
                    prop_assert_eq!(passes(model.plan(), &packet), cluster.passes(&packet), "{:?}", packet);
                }
            }
        }
        // Nothing is left of what nobody needs.
        let gone: Vec<Update> = cluster.policies.keys().map(|key| Update::Policy(key.clone(), None)).collect();
        follow(&mut shadow, &model.apply(gone));
        prop_assert_eq!(&shadow, &Plan::default());
    }
}

/// All combinations of sources, destinations and ports.
fn itertools(
    from: std::ops::Range<u8>,
    to: std::ops::Range<u8>,
    port: std::ops::Range<u16>,
) -> impl Iterator<Item = (u8, u8, u16)> {
    from.flat_map(move |from| {
        let port = port.clone();
        to.clone()
            .flat_map(move |to| port.clone().map(move |port| (from, to, port)))
    })
}

#[test]
fn a_relabelled_pod_is_an_element_and_nothing_else() {
    let mut model = Model::default();
    let pod = |name: &str, app: &str, last: u8| {
        let view = PodView {
            labels: [("app".to_owned(), app.to_owned())].into(),
            addresses: [address(last)].into(),
            ..PodView::default()
        };
        Update::Pod(Key::new("n", name), Some(view))
    };
    let local = |name: &str, last: u8| {
        let local = Local {
            pod: Key::new("n", name),
            view: PodView::default(),
        };
        Update::Local(address(last), Some(local))
    };
    let allow = |app: &str| {
        let from = json!([{"podSelector": {"matchLabels": {"app": app}}}]);
        policy(
            "n",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": from}]}),
        )
    };
    model.apply([
        Update::Policy(Key::new("n", "one"), Some(allow("client"))),
        Update::Policy(Key::new("n", "two"), Some(allow("client"))),
        pod("web-1", "web", 1),
        pod("web-2", "web", 2),
        local("web-1", 1),
        local("web-2", 2),
    ]);
    // Two policies, two Pods: one chain for both Pods, one set for both policies.
    assert_eq!(
        (
            model.plan().chains.len(),
            model.plan().sets.len(),
            model.plan().entries.len()
        ),
        (3, 1, 2)
    );
    let changes = model.apply([pod("somewhere", "client", 9)]);
    let only = Changes {
        added: changes.added.clone(),
        ..Changes::default()
    };
    assert_eq!(changes, only);
    let added: Vec<_> = changes.added.into_values().map(|(_, elements)| elements).collect();
    assert_eq!(added, [[Element::Address(address(9))]]);
    let changes = model.apply([pod("somewhere", "other", 9)]);
    assert_eq!(changes.removed.len(), 1);
    assert!(model.apply([pod("somewhere", "another", 9)]).is_empty());
    // A Pod here that leaves a policy's selection loses its entry; the other keeps the chain.
    let changes = model.apply([pod("web-1", "plain", 1)]);
    assert_eq!(
        (changes.entries.len(), changes.chains.len(), changes.old_sets.len()),
        (1, 0, 0)
    );
    // A namespace's labels concern only who names them.
    assert!(
        model
            .apply([Update::Namespace("n".into(), Some(Labels::new()))])
            .is_empty()
    );
    assert_eq!(Selector::default(), Selector::of(&Default::default()));
}

// Packets.

/// Stores an object as it is now, there or not.
fn put<K: kube::Resource<DynamicType = ()> + serde::Serialize>(api: &FakeApi, object: &K) {
    let meta = object.meta();
    let (namespace, name) = (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    );
    api.put_raw::<K>(&namespace, &name, serde_json::to_value(object).unwrap());
}

/// A machine whose Pods wait for policies, and the API they come from.
struct Guarded {
    api: FakeApi,
    tasks: Tasks,
    world: World,
}

impl Guarded {
    async fn new(bridge_netfilter: bool) -> Self {
        let api = FakeApi::new();
        for name in ["default", "other"] {
            let labels = json!({"kubernetes.io/metadata.name": name});
            put(
                &api,
                &serde_json::from_value::<Namespace>(json!({"metadata": {"name": name, "labels": labels}})).unwrap(),
            );
        }
        let tasks = Tasks::new();
        let informers = Informers::new(api.client("node"), &tasks);
        let started = tasks.clone();
        let world = World::with(bridge_netfilter, move |host| {
            let config = PolicyConfig {
                host: host.clone(),
                alone: true,
            };
            Policies::prepare(&config).unwrap();
            let policies = Policies::new(config, &informers);
            let gate = policies.gate();
            started.spawn("policies", OnExit::Critical, policies.run(started.drain()));
            Some(gate)
        })
        .await;
        Guarded { api, tasks, world }
    }

    /// A Pod that serves its name on 8080 and 9090, first on the machine and then in the API, as it goes.
    async fn pod(&self, name: &str, labels: Value) -> World0 {
        let ports = json!([{"name": "http", "containerPort": 8080}]);
        let mut object = json!({"metadata": {"namespace": "default", "name": name, "labels": labels},
            "spec": {"nodeName": "here", "containers": [{"name": "c", "ports": ports}]}});
        let parsed: Pod = serde_json::from_value(object.clone()).unwrap();
        let identity = PodIdentity {
            namespace: "default".into(),
            name: name.into(),
            view: PodView::of(&parsed).unwrap(),
        };
        let pod = known_pod(&self.world.network, name, vec![], Some(identity)).await;
        object["status"] = json!({"phase": "Running", "podIP": pod.ip(), "podIPs": [{"ip": pod.ip()}]});
        put(&self.api, &serde_json::from_value::<Pod>(object).unwrap());
        pod.serve(8080);
        pod.serve(9090);
        pod
    }

    fn relabel(&self, pod: &World0, labels: Value) {
        let object = json!({"metadata": {"namespace": "default", "name": pod.uid, "labels": labels},
            "spec": {"nodeName": "here", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": pod.ip(), "podIPs": [{"ip": pod.ip()}]}});
        put(&self.api, &serde_json::from_value::<Pod>(object).unwrap());
    }

    fn policy(&self, name: &str, spec: Value) {
        let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        put(&self.api, &serde_json::from_value::<NetworkPolicy>(object).unwrap());
    }

    async fn end(self) {
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }
}

fn reaches(from: &std::path::Path, to: Ipv4Addr, port: u16) -> bool {
    ask(from, (to, port)).is_ok()
}

async fn becomes(what: &str, expected: bool, check: impl Fn() -> bool) {
    eventually(what, || async { (check() == expected).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn isolated_pods_hear_whom_they_may() {
    if !is_root() {
        return;
    }
    for bridge_netfilter in [false, true] {
        let guarded = Guarded::new(bridge_netfilter).await;
        let web = guarded.pod("web", json!({"app": "web"})).await;
        let client = guarded.pod("client", json!({"app": "client"})).await;
        let machine = guarded.world.machine.clone();
        assert!(reaches(&client.netns, web.ip(), 8080));

        guarded.policy("deny", json!({"podSelector": {"matchLabels": {"app": "web"}}}));
        becomes("denied", false, || reaches(&client.netns, web.ip(), 8080)).await;
        assert!(!ping(&client.netns, web.ip()));
        // Itself, its node, and what it asks itself.
        assert!(reaches(&web.netns, web.ip(), 8080));
        assert!(reaches(&machine, web.ip(), 8080));
        assert!(reaches(&web.netns, client.ip(), 8080));

        // Policies add up.
        guarded.policy(
            "allow",
            json!({"podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"port": "http"}]}]}),
        );
        guarded.relabel(&client, json!({"app": "client", "role": "friend"}));
        becomes("friends may", true, || reaches(&client.netns, web.ip(), 8080)).await;
        assert!(!reaches(&client.netns, web.ip(), 9090));
        guarded.relabel(&client, json!({"app": "client"}));
        becomes("no friend any more", false, || reaches(&client.netns, web.ip(), 8080)).await;

        guarded.policy(
            "allow",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}],
                             "ports": [{"port": 9000, "endPort": 9100}]}],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.244.0.0/24", "except": [format!("{}/32", web.ip())]}}]},
                           {"to": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 9090}]}]}),
        );
        becomes("a range of ports", true, || reaches(&client.netns, web.ip(), 9090)).await;
        assert!(!reaches(&client.netns, web.ip(), 8080));
        assert!(reaches(&web.netns, client.ip(), 9090));
        assert!(!reaches(&client.netns, OUTSIDE, 8080), "outside is not in the block");
        // The table is somebody else's to flush, and ours to make anew.
        netns::within(&machine, || {
            let mut t = crate::kernel::nft::Transaction::new(TABLE);
            t.drop_table();
            t.commit().unwrap();
        })
        .unwrap();
        becomes("rules come back", false, || reaches(&client.netns, web.ip(), 8080)).await;

        for name in ["deny", "allow"] {
            guarded.api.remove::<NetworkPolicy>("default", name);
        }
        becomes("free again", true, || reaches(&client.netns, web.ip(), 8080)).await;
        let left = || netns::within(&machine, || crate::kernel::nft::table_exists(TABLE).unwrap()).unwrap();
        becomes("no rules without need", false, left).await;
        guarded.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_never_there_before_its_policies() {
    if !is_root() {
        return;
    }
    let guarded = Guarded::new(false).await;
    let client = guarded.pod("client", json!({"app": "client"})).await;
    guarded.policy("deny", json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    // The policy is known when a Pod it isolates is already so.
    let first = guarded.pod("first", json!({"app": "web"})).await;
    becomes("the policy is known", false, || {
        reaches(&client.netns, first.ip(), 8080)
    })
    .await;
    for round in 0..10 {
        let name = format!("web-{round}");
        let pod = guarded.pod(&name, json!({"app": "web"})).await;
        assert!(!reaches_quickly(&client, pod.ip()), "{name}");
        guarded.world.network.teardown(&name).await.unwrap();
        guarded.api.remove::<Pod>("default", &name);
    }
    guarded.end().await;
}

fn reaches_quickly(from: &World0, to: Ipv4Addr) -> bool {
    netns::within(&from.netns, || {
        let to = std::net::SocketAddr::from((to, 8080));
        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(200)).is_ok()
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_cuts_what_it_forbids_and_outlives_its_process() {
    use std::io::{Read, Write};
    if !is_root() {
        return;
    }
    let guarded = Guarded::new(false).await;
    let web = guarded.pod("web", json!({"app": "web"})).await;
    let client = guarded.pod("client", json!({"app": "client"})).await;
    let listener = netns::within(&web.netns, || std::net::TcpListener::bind("0.0.0.0:7000").unwrap()).unwrap();
    let to = std::net::SocketAddr::from((web.ip(), 7000));
    let mut stream = netns::within(&client.netns, || std::net::TcpStream::connect(to).unwrap()).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    served.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(b"1").unwrap();
    let mut byte = [0];
    served.read_exact(&mut byte).unwrap();

    guarded.policy("deny", json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    becomes("denied", false, || reaches_quickly(&client, web.ip())).await;
    stream.write_all(b"2").unwrap();
    assert!(served.read_exact(&mut byte).is_err(), "what was open before is cut");

    // The process goes, the rules stay; the next one takes them over and brings what changed meanwhile.
    guarded.tasks.shutdown(Duration::from_secs(5)).await;
    assert!(!reaches_quickly(&client, web.ip()));
    let tasks = Tasks::new();
    let informers = Informers::new(guarded.api.client("node"), &tasks);
    let config = PolicyConfig {
        host: guarded.world.config.host.clone(),
        alone: true,
    };
    let policies = Policies::new(config, &informers);
    let network = crate::PodNetworkConfig {
        gate: Some(policies.gate()),
        ..guarded.world.config.clone()
    };
    let network = crate::PodNetwork::new(network).await.unwrap();
    assert!(!reaches_quickly(&client, web.ip()));
    tasks.spawn("policies", OnExit::Critical, policies.run(tasks.drain()));
    // A Pod that comes now is let in when all is known.
    let identity = PodIdentity {
        namespace: "default".into(),
        name: "late".into(),
        view: PodView {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..PodView::default()
        },
    };
    let late = known_pod(&network, "late", vec![], Some(identity)).await;
    late.serve(8080);
    assert!(!reaches_quickly(&client, late.ip()) && !reaches_quickly(&client, web.ip()));
    guarded.api.remove::<NetworkPolicy>("default", "deny");
    becomes("free", true, || {
        reaches_quickly(&client, late.ip()) && reaches_quickly(&client, web.ip())
    })
    .await;
    tasks.shutdown(Duration::from_secs(5)).await;
}
