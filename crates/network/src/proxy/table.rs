//! The table `sampan`: what the kernel has, and the transaction from there to what it should have.
//!
//! Only what differs is sent. The order within a transaction keeps every reference valid: entries that lead nowhere
//! any more go first, chains and sets nothing refers to go last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use sampan_client::Key;

use super::plan::{Address, NodePort, ServiceRules, Step, Target};
use crate::kernel::nft::{
    self, Data, HOOK_FORWARD, HOOK_INPUT, HOOK_OUTPUT, HOOK_POSTROUTING, HOOK_PREROUTING, Rule, SetData, SetSpec,
    Transaction, Verdict, show,
};

pub(crate) const TABLE: &str = "sampan";

const SERVICES: &str = "services";
const NODE_PORTS: &str = "node-ports";
const NO_ENDPOINTS: &str = "no-endpoints";
const NO_ENDPOINTS_NODE_PORTS: &str = "no-endpoints-node-ports";
const CLUSTER_IPS: &str = "cluster-ips";
const REJECT: &str = "reject";
/// The bit of a packet's mark that asks for this node's address as source. The same as upstream's.
const MARK: u32 = 0x4000;

/// Something several Services may claim; the first in order has it.
#[derive(Clone, Debug)]
struct Claims<K, V> {
    by_key: BTreeMap<K, BTreeMap<Key, V>>,
    /// What was in force before this batch, for keys it touched.
    before: BTreeMap<K, Option<V>>,
}

impl<K: Ord + Clone, V: Clone + PartialEq> Claims<K, V> {
    fn new() -> Self {
        Claims {
            by_key: BTreeMap::new(),
            before: BTreeMap::new(),
        }
    }
    fn in_force(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)?.values().next()
    }
    fn touch(&mut self, key: &K) {
        if !self.before.contains_key(key) {
            self.before.insert(key.clone(), self.in_force(key).cloned());
        }
    }
    fn withdraw(&mut self, owner: &Key, key: &K) {
        self.touch(key);
        if let Some(claims) = self.by_key.get_mut(key) {
            claims.remove(owner);
            if claims.is_empty() {
                self.by_key.remove(key);
            }
        }
    }
    fn claim(&mut self, owner: &Key, key: &K, value: V) {
        self.touch(key);
        self.by_key.entry(key.clone()).or_default().insert(owner.clone(), value);
    }
    /// What changed in this batch: key, before, after.
    fn changes(&mut self) -> Vec<(K, Option<V>, Option<V>)> {
        let before = std::mem::take(&mut self.before);
        before
            .into_iter()
            .map(|(key, old)| {
                let new = self.in_force(&key).cloned();
                (key, old, new)
            })
            .filter(|(_, old, new)| old != new)
            .collect()
    }
}

/// The rules of all Services as the kernel has them (once the last transaction was committed).
#[derive(Clone, Debug)]
pub struct Table {
    pods: Ipv4Net,
    services: BTreeMap<Key, ServiceRules>,
    addresses: Claims<Address, Target>,
    node_ports: Claims<NodePort, Target>,
    cluster_ips: Claims<Ipv4Addr, ()>,
}

/// A transaction in the making, by phase.
#[derive(Default)]
struct Phases {
    new_chains: Vec<String>,
    emptied_chains: Vec<String>,
    rules: Vec<(String, Vec<Step>)>,
    old_chains: Vec<String>,
    new_sets: Vec<(String, u64)>,
    old_sets: Vec<String>,
}

impl Table {
    pub fn new(pods: Ipv4Net) -> Self {
        Table {
            pods,
            services: BTreeMap::new(),
            addresses: Claims::new(),
            node_ports: Claims::new(),
            cluster_ips: Claims::new(),
        }
    }

    pub fn service(&self, key: &Key) -> Option<&ServiceRules> {
        self.services.get(key)
    }

    /// A table with these Services and nothing else, and the transaction that makes it from whatever is there.
    pub fn fresh(pods: Ipv4Net, services: impl IntoIterator<Item = (Key, ServiceRules)>) -> (Self, Transaction) {
        let mut table = Table::new(pods);
        let mut transaction = Transaction::new(TABLE);
        table.frame(&mut transaction);
        table.update(
            services.into_iter().map(|(key, rules)| (key, Some(rules))),
            &mut transaction,
        );
        (table, transaction)
    }

    /// Transactions that make an empty table of another name and remove it: whether the kernel can do all this, found
    /// out without touching rules in use.
    pub fn probe(pods: Ipv4Net) -> [Transaction; 2] {
        let [mut make, mut remove] = [(); 2].map(|()| Transaction::new("sampan-probe"));
        Table::new(pods).frame(&mut make);
        let endpoints = [1, 2].map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).to_vec();
        make.add_chain("probe");
        Table::new(pods).step(&mut make, "probe", &Step::Balance(endpoints));
        remove.drop_table();
        [make, remove]
    }

    /// Replaces (or with `None` removes) the rules of some Services.
    pub fn change(&mut self, changes: impl IntoIterator<Item = (Key, Option<ServiceRules>)>) -> Transaction {
        let mut transaction = Transaction::new(TABLE);
        self.update(changes, &mut transaction);
        transaction
    }

    fn update(&mut self, changes: impl IntoIterator<Item = (Key, Option<ServiceRules>)>, t: &mut Transaction) {
        let mut phases = Phases::default();
        for (key, new) in changes {
            let old = self.services.remove(&key).unwrap_or_default();
            self.claim(&key, &old, new.as_ref());
            let none = ServiceRules::default();
            phases.compare(&old, new.as_ref().unwrap_or(&none));
            if let Some(new) = new {
                self.services.insert(key, new);
            }
        }
        self.emit(phases, t);
    }

    fn claim(&mut self, owner: &Key, old: &ServiceRules, new: Option<&ServiceRules>) {
        for address in old.addresses.keys() {
            self.addresses.withdraw(owner, address);
        }
        for port in old.node_ports.keys() {
            self.node_ports.withdraw(owner, port);
        }
        for ip in &old.cluster_ips {
            self.cluster_ips.withdraw(owner, ip);
        }
        let Some(new) = new else {
            return;
        };
        for (address, target) in &new.addresses {
            self.addresses.claim(owner, address, target.clone());
        }
        for (port, target) in &new.node_ports {
            self.node_ports.claim(owner, port, target.clone());
        }
        for ip in &new.cluster_ips {
            self.cluster_ips.claim(owner, ip, ());
        }
    }

    fn emit(&mut self, phases: Phases, t: &mut Transaction) {
        let addresses: Vec<_> = self
            .addresses
            .changes()
            .into_iter()
            .map(|(key, old, new)| (address_key(key), old, new))
            .collect();
        let node_ports: Vec<_> = self
            .node_ports
            .changes()
            .into_iter()
            .map(|(key, old, new)| (node_port_key(key), old, new))
            .collect();
        let ips = self.cluster_ips.changes();
        let maps = [
            (&addresses, SERVICES, NO_ENDPOINTS),
            (&node_ports, NODE_PORTS, NO_ENDPOINTS_NODE_PORTS),
        ];

        for (changes, open, closed) in maps {
            let gone = |is_open: bool| {
                changes
                    .iter()
                    .filter(move |(_, old, _)| {
                        old.as_ref()
                            .is_some_and(|old| matches!(old, Target::Chain(_)) == is_open)
                    })
                    .map(|(key, ..)| key.clone())
            };
            t.delete_elements(open, gone(true));
            t.delete_elements(closed, gone(false));
        }
        t.delete_elements(
            CLUSTER_IPS,
            ips.iter()
                .filter(|(_, old, _)| old.is_some())
                .map(|(ip, ..)| nft::word(*ip).to_vec()),
        );

        for (set, seconds) in &phases.new_sets {
            let spec = SetSpec {
                key_len: 4,
                key_show: show::ADDRESS,
                data: SetData::None,
                timeout_ms: Some(seconds.saturating_mul(1000)),
                intervals: false,
            };
            t.add_set(set, &spec);
        }
        for chain in &phases.new_chains {
            t.add_chain(chain);
        }
        for chain in phases.emptied_chains.iter().chain(&phases.old_chains) {
            t.flush_chain(chain);
        }
        for (chain, steps) in &phases.rules {
            for step in steps {
                self.step(t, chain, step);
            }
        }

        for (changes, open, closed) in maps {
            let verdict = |target: &Target| match target {
                Target::Chain(chain) => (true, Verdict::Goto(chain.clone())),
                Target::Reject => (false, Verdict::Goto(REJECT.to_owned())),
                Target::Drop => (false, Verdict::Drop),
            };
            for (name, wanted) in [(open, true), (closed, false)] {
                let elements: Vec<_> = changes
                    .iter()
                    .filter_map(|(key, _, new)| Some((key, verdict(new.as_ref()?))))
                    .filter(|(_, (is_open, _))| *is_open == wanted)
                    .map(|(key, (_, verdict))| (key.clone(), Data::Verdict(verdict)))
                    .collect();
                t.add_elements(name, &elements);
            }
        }
        let new_ips: Vec<_> = ips
            .iter()
            .filter(|(_, _, new)| new.is_some())
            .map(|(ip, ..)| (nft::word(*ip).to_vec(), Data::None))
            .collect();
        t.add_elements(CLUSTER_IPS, &new_ips);

        for chain in &phases.old_chains {
            t.delete_chain(chain);
        }
        for set in &phases.old_sets {
            t.delete_set(set);
        }
    }

    fn step(&self, t: &mut Transaction, chain: &str, step: &Step) {
        let rule = Rule::new();
        let goto = |chain: &String| Verdict::Goto(chain.clone());
        let rule = match step {
            Step::Mark => rule.set_mark(MARK),
            Step::MarkOutside => rule.source_in(self.pods, false).set_mark(MARK),
            Step::FromGoto(network, chain) => rule.source_in(*network, true).verdict(&goto(chain)),
            Step::FromHostGoto(chain) => rule.source_is_local(true).set_mark(MARK).verdict(&goto(chain)),
            Step::Goto(chain) => rule.verdict(&goto(chain)),
            Step::Drop => rule.verdict(&Verdict::Drop),
            Step::Stick { set, chain } => rule.load_source(0).in_set(set).verdict(&goto(chain)),
            Step::Spread(chains) => match chains.as_slice() {
                [one] => rule.verdict(&goto(one)),
                many => rule.random_verdict(many.iter().map(goto)),
            },
            Step::Balance(endpoints) => match endpoints.as_slice() {
                [one] => to_endpoint(rule, one),
                many => {
                    let values = many
                        .iter()
                        .map(|endpoint| [nft::word(*endpoint.ip()), nft::port(endpoint.port())].concat());
                    rule.load_random(8, show::all(&[show::ADDRESS, show::PORT]), values)
                        .translate_destination()
                }
            },
            Step::Remember { set, endpoint } => to_endpoint(rule.load_source(0).remember_in(set), endpoint),
        };
        t.add_rule(chain, rule);
    }

    /// The table itself: its maps, and the chains packets come through.
    fn frame(&self, t: &mut Transaction) {
        t.fresh_table();
        let set = |key: &[u32], data| SetSpec {
            key_len: 4 * key.len() as u32,
            key_show: show::all(key),
            data,
            timeout_ms: None,
            intervals: false,
        };
        let (address, port) = (
            &[show::ADDRESS, show::PROTOCOL, show::PORT],
            &[show::PROTOCOL, show::PORT],
        );
        for (name, key) in [
            (SERVICES, &address[..]),
            (NO_ENDPOINTS, address),
            (NODE_PORTS, port),
            (NO_ENDPOINTS_NODE_PORTS, port),
        ] {
            t.add_set(name, &set(key, SetData::Verdicts));
        }
        t.add_set(CLUSTER_IPS, &set(&[show::ADDRESS], SetData::None));
        t.add_chain(REJECT);
        t.add_rule(REJECT, Rule::new().only_tcp().reset());
        t.add_rule(REJECT, Rule::new().reject());

        let by_address = || Rule::new().load_destination(0).load_protocol(1).load_port(2);
        let by_node_port = |rule: Rule| rule.destination_is_local().load_protocol(0).load_port(1);
        for (chain, hook) in [("prerouting", HOOK_PREROUTING), ("output", HOOK_OUTPUT)] {
            t.add_base_chain(chain, "nat", hook, -100);
            t.add_rule(chain, by_address().verdict_of(SERVICES));
            t.add_rule(chain, by_node_port(Rule::new()).verdict_of(NODE_PORTS));
        }
        t.add_base_chain("postrouting", "nat", HOOK_POSTROUTING, 100);
        t.add_rule("postrouting", Rule::new().take_mark(MARK).masquerade());

        // Ports without endpoints: before translation on the way out, anywhere else where they show up untranslated.
        for (chain, hook) in [
            ("filter-input", HOOK_INPUT),
            ("filter-forward", HOOK_FORWARD),
            ("filter-output", HOOK_OUTPUT),
        ] {
            t.add_base_chain(chain, "filter", hook, -110);
            if hook != HOOK_INPUT {
                let first = Rule::new()
                    .new_connection()
                    .load_destination(0)
                    .load_protocol(1)
                    .load_port(2);
                t.add_rule(chain, first.verdict_of(NO_ENDPOINTS));
            }
            if hook != HOOK_FORWARD {
                t.add_rule(
                    chain,
                    by_node_port(Rule::new().new_connection()).verdict_of(NO_ENDPOINTS_NODE_PORTS),
                );
            }
        }
        // Ports a Service does not have. What it has is translated by now.
        t.add_base_chain("filter-output-translated", "filter", HOOK_OUTPUT, -90);
        for chain in ["filter-forward", "filter-output-translated"] {
            t.add_rule(
                chain,
                Rule::new()
                    .new_connection()
                    .load_destination(0)
                    .in_set(CLUSTER_IPS)
                    .verdict(&Verdict::Goto(REJECT.to_owned())),
            );
        }
    }
}

fn to_endpoint(rule: Rule, endpoint: &SocketAddrV4) -> Rule {
    rule.load(0, &nft::word(*endpoint.ip()))
        .load(1, &endpoint.port().to_be_bytes())
        .translate_destination()
}

fn address_key((ip, protocol, port): Address) -> Vec<u8> {
    [nft::word(ip), nft::protocol(protocol.number()), nft::port(port)].concat()
}
fn node_port_key((protocol, port): NodePort) -> Vec<u8> {
    [nft::protocol(protocol.number()), nft::port(port)].concat()
}

impl Phases {
    fn compare(&mut self, old: &ServiceRules, new: &ServiceRules) {
        for (chain, steps) in &new.chains {
            match old.chains.get(chain) {
                Some(have) if have == steps => continue,
                Some(_) => self.emptied_chains.push(chain.clone()),
                None => self.new_chains.push(chain.clone()),
            }
            self.rules.push((chain.clone(), steps.clone()));
        }
        let gone = |chain: &&String| !new.chains.contains_key(*chain);
        self.old_chains.extend(old.chains.keys().filter(gone).cloned());
        let new_sets = new.sticky.iter().filter(|(set, _)| !old.sticky.contains_key(*set));
        self.new_sets
            .extend(new_sets.map(|(set, seconds)| (set.clone(), *seconds)));
        self.old_sets
            .extend(old.sticky.keys().filter(|set| !new.sticky.contains_key(*set)).cloned());
    }
}

/// UDP ports whose endpoints are others now, with those they have.
pub fn udp_changes(
    old: Option<&ServiceRules>,
    new: Option<&ServiceRules>,
) -> Vec<(super::plan::UdpPort, BTreeSet<Ipv4Addr>)> {
    let none = ServiceRules::default();
    let (old, new) = (old.unwrap_or(&none), new.unwrap_or(&none));
    let ports: BTreeSet<_> = old.udp.keys().chain(new.udp.keys()).copied().collect();
    ports
        .into_iter()
        .filter(|port| old.udp.get(port) != new.udp.get(port))
        .map(|port| (port, new.udp.get(&port).cloned().unwrap_or_default()))
        .collect()
}
