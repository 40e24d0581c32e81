//! From policies, Pods and namespaces to the plan: pure, and only what a change concerns is worked on.
//!
//! Policies that select no Pod of this node cost a look at their selector. Of those that do, each direction is a chain;
//! Pods with the same policies share a chain that asks them one after the other; and each group of Pods that a policy
//! names as a peer is a set, shared by all that name the same. So a Pod that comes, goes or is relabelled anywhere in
//! the cluster is an element of some sets, whatever the number of policies and Pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sampan_client::Key;

use super::plan::{Changes, Draft, Element, Kind, Match, Plan, Step};
use super::selector::Labels;
use super::spec::{DIRECTIONS, Direction, Namespaces, Peer, PodView, PodsOf, Policy, Port, Rule, merged, merged_ports};
use crate::pods::Protocol;

/// A Pod of this node: who has an address, and what was known of it when it got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub pod: Key,
    pub view: PodView,
}

/// Something became known.
#[derive(Clone, Debug)]
pub enum Update {
    Policy(Key, Option<Policy>),
    Pod(Key, Option<PodView>),
    Namespace(String, Option<Labels>),
    Local(IpAddr, Option<Local>),
}

/// The policies that isolate a Pod in a direction, in order.
type Group = (Direction, Vec<Key>);

/// A named port of some protocol.
type PortName = (Protocol, String);

/// A set that policies share, and how often each element is meant: addresses change hands.
#[derive(Debug, Default)]
struct Shared {
    set: String,
    users: usize,
    counts: BTreeMap<Element, usize>,
}

/// A policy in force in one direction: its chain, and what it uses.
#[derive(Debug, Default)]
struct Active {
    chain: String,
    users: usize,
    peers: Vec<PodsOf>,
    named: Vec<PortName>,
    own_sets: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Model {
    policies: BTreeMap<Key, Arc<Policy>>,
    pods: BTreeMap<Key, PodView>,
    namespaces: BTreeMap<String, Labels>,
    locals: BTreeMap<IpAddr, Local>,
    addresses_of: BTreeMap<Key, BTreeSet<IpAddr>>,

    assigned: BTreeMap<(Direction, IpAddr), Group>,
    groups: BTreeMap<Group, (String, usize)>,
    active: BTreeMap<(Direction, Key), Active>,
    peers: BTreeMap<PodsOf, Shared>,
    named: BTreeMap<PortName, Shared>,
    draft: Draft,
    last_name: u64,
}

/// The entries of a map whose keys are in a namespace.
fn within<'m, V>(map: &'m BTreeMap<Key, V>, namespace: &'m str) -> impl Iterator<Item = (&'m Key, &'m V)> {
    map.range(Key::new(namespace, "")..)
        .take_while(move |(key, _)| key.namespace == namespace)
}

impl Model {
    pub fn plan(&self) -> &Plan {
        &self.draft.plan
    }

    /// Takes in what became known, all at once, and says what that means for the kernel.
    pub fn apply(&mut self, updates: impl IntoIterator<Item = Update>) -> Changes {
        let (mut touched, mut edited) = (BTreeSet::new(), BTreeSet::new());
        for update in updates {
            match update {
                Update::Policy(key, policy) => {
                    if self.policies.get(&key).map(|known| &**known) == policy.as_ref() {
                        continue;
                    }
                    touched.extend(within(&self.addresses_of, &key.namespace).flat_map(|(_, all)| all.iter().copied()));
                    match policy {
                        Some(policy) => self.policies.insert(key.clone(), Arc::new(policy)),
                        None => self.policies.remove(&key),
                    };
                    edited.insert(key);
                }
                Update::Pod(key, view) => {
                    touched.extend(self.addresses_of.get(&key).into_iter().flatten().copied());
                    self.pod(&key, view);
                }
                Update::Namespace(name, labels) => self.namespace(&name, labels),
                Update::Local(address, local) => {
                    touched.insert(address);
                    self.local(address, local);
                }
            }
        }
        // What stays in force with another content; what comes into force is compiled on its way.
        for key in &edited {
            for direction in DIRECTIONS {
                if self.active.contains_key(&(direction, key.clone())) {
                    self.compile(direction, key);
                }
            }
        }
        for address in touched {
            for direction in DIRECTIONS {
                self.assign(direction, address);
            }
        }
        self.draft.changes()
    }

    fn name(&mut self, what: &str) -> String {
        self.last_name += 1;
        format!("{what}/{}", self.last_name)
    }

    fn in_namespace(&self, peers: &PodsOf, namespace: &str) -> bool {
        match &peers.namespaces {
            Namespaces::Named(name) => name == namespace,
            // A namespace that is not known yet is in no selection.
            Namespaces::Labelled(selector) => self
                .namespaces
                .get(namespace)
                .is_some_and(|labels| selector.matches(labels)),
        }
    }

    fn pod(&mut self, key: &Key, view: Option<PodView>) {
        let before = self.pods.get(key).cloned();
        if before == view {
            return;
        }
        let selected: Vec<PodsOf> = self
            .peers
            .keys()
            .filter(|peers| self.in_namespace(peers, &key.namespace))
            .cloned()
            .collect();
        for peers in selected {
            let members = |view: &Option<PodView>| members(&peers, view.as_ref());
            let (old, new) = (members(&before), members(&view));
            if let Some(shared) = self.peers.get_mut(&peers) {
                shared.turn(old, new, &mut self.draft);
            }
        }
        for (name, shared) in &mut self.named {
            shared.turn(
                ports(name, before.as_ref()),
                ports(name, view.as_ref()),
                &mut self.draft,
            );
        }
        match view {
            Some(view) => {
                self.pods.insert(key.clone(), view);
            }
            None => {
                // The API forgets a Pod that may still run here: it stays as it was.
                for address in self.addresses_of.get(key).into_iter().flatten() {
                    if let (Some(local), Some(last)) = (self.locals.get_mut(address), &before) {
                        local.view = last.clone();
                    }
                }
                self.pods.remove(key);
            }
        }
    }

    fn namespace(&mut self, name: &str, labels: Option<Labels>) {
        let matched = |selector: &super::selector::Selector, labels: Option<&Labels>| {
            labels.is_some_and(|labels| selector.matches(labels))
        };
        let before = self.namespaces.get(name);
        let turned: Vec<(PodsOf, bool)> = self
            .peers
            .keys()
            .filter_map(|peers| match &peers.namespaces {
                Namespaces::Named(_) => None,
                Namespaces::Labelled(selector) => {
                    let (was, is) = (matched(selector, before), matched(selector, labels.as_ref()));
                    (was != is).then(|| (peers.clone(), is))
                }
            })
            .collect();
        for (peers, inside) in turned {
            let all: Vec<Element> = within(&self.pods, name)
                .flat_map(|(_, view)| members(&peers, Some(view)))
                .collect();
            if let Some(shared) = self.peers.get_mut(&peers) {
                let (old, new) = if inside { (Vec::new(), all) } else { (all, Vec::new()) };
                shared.turn(old, new, &mut self.draft);
            }
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    fn local(&mut self, address: IpAddr, local: Option<Local>) {
        if let Some(old) = self.locals.remove(&address)
            && let Some(addresses) = self.addresses_of.get_mut(&old.pod)
        {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.addresses_of.remove(&old.pod);
            }
        }
        if let Some(local) = local {
            self.addresses_of.entry(local.pod.clone()).or_default().insert(address);
            self.locals.insert(address, local);
        }
    }

    /// The policies that isolate a Pod of this node.
    fn isolating(&self, direction: Direction, address: IpAddr) -> Vec<Key> {
        let Some(local) = self.locals.get(&address) else {
            return Vec::new();
        };
        let labels = &self.pods.get(&local.pod).unwrap_or(&local.view).labels;
        within(&self.policies, &local.pod.namespace)
            .filter(|(_, policy)| policy.rules(direction).is_some() && policy.pods.matches(labels))
            .map(|(key, _)| key.clone())
            .collect()
    }

    fn assign(&mut self, direction: Direction, address: IpAddr) {
        let policies = self.isolating(direction, address);
        let wanted = (!policies.is_empty()).then_some((direction, policies));
        let slot = (direction, address);
        let before = self.assigned.get(&slot).cloned();
        if before == wanted {
            return;
        }
        // First what is new, so that what both use stays.
        match &wanted {
            Some(group) => {
                let chain = self.acquire_group(group);
                self.draft.entry(slot, Some(chain));
                self.assigned.insert(slot, group.clone());
            }
            None => {
                self.draft.entry(slot, None);
                self.assigned.remove(&slot);
            }
        }
        if let Some(group) = before {
            self.release_group(&group);
        }
    }

    fn acquire_group(&mut self, group: &Group) -> String {
        if let Some((chain, users)) = self.groups.get_mut(group) {
            *users += 1;
            return chain.clone();
        }
        let (direction, policies) = group;
        let mut steps: Vec<Step> = Vec::with_capacity(policies.len() + 1);
        for policy in policies {
            steps.push(Step::Ask(self.acquire_policy(*direction, policy)));
        }
        steps.push(Step::Drop);
        let chain = self.name(match direction {
            Direction::Ingress => "to",
            Direction::Egress => "from",
        });
        self.draft.chain(&chain, Some(steps));
        self.groups.insert(group.clone(), (chain.clone(), 1));
        chain
    }

    fn release_group(&mut self, group: &Group) {
        let Some((_, users)) = self.groups.get_mut(group) else {
            return;
        };
        *users -= 1;
        if *users > 0 {
            return;
        }
        if let Some((chain, _)) = self.groups.remove(group) {
            self.draft.chain(&chain, None);
        }
        let (direction, policies) = group;
        for policy in policies {
            self.release_policy(*direction, policy);
        }
    }

    fn acquire_policy(&mut self, direction: Direction, key: &Key) -> String {
        let slot = (direction, key.clone());
        if let Some(active) = self.active.get_mut(&slot) {
            active.users += 1;
            return active.chain.clone();
        }
        let what = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        // For whoever looks at the rules; names are longer than the kernel's may be.
        let shown: String = format!("{what}/{key}").chars().take(180).collect();
        let chain = self.name(&shown);
        let active = Active {
            chain: chain.clone(),
            users: 1,
            ..Active::default()
        };
        self.active.insert(slot, active);
        self.compile(direction, key);
        chain
    }

    fn release_policy(&mut self, direction: Direction, key: &Key) {
        let slot = (direction, key.clone());
        let Some(active) = self.active.get_mut(&slot) else {
            return;
        };
        active.users -= 1;
        if active.users == 0
            && let Some(active) = self.active.remove(&slot)
        {
            self.draft.chain(&active.chain, None);
            self.release(active);
        }
    }

    /// Gives back what a policy used.
    fn release(&mut self, active: Active) {
        for peers in active.peers {
            release(&mut self.peers, &peers, &mut self.draft);
        }
        for name in active.named {
            release(&mut self.named, &name, &mut self.draft);
        }
        for set in active.own_sets {
            self.draft.remove_set(&set);
        }
    }

    /// Makes the chain of a policy in force (anew). A policy that is gone, or no longer about the direction, allows
    /// nothing until nobody asks it.
    fn compile(&mut self, direction: Direction, key: &Key) {
        let slot = (direction, key.clone());
        let Some(before) = self.active.remove(&slot) else {
            return;
        };
        let mut active = Active {
            chain: before.chain.clone(),
            users: before.users,
            ..Active::default()
        };
        let policy = self.policies.get(key).cloned();
        let rules = policy
            .as_ref()
            .and_then(|policy| policy.rules(direction))
            .unwrap_or_default();
        let mut steps = Vec::new();
        for rule in rules {
            self.rule(direction, rule, &mut active, &mut steps);
        }
        self.draft.chain(&active.chain, Some(steps));
        self.active.insert(slot, active);
        self.release(before);
    }

    fn rule(&mut self, direction: Direction, rule: &Rule, active: &mut Active, steps: &mut Vec<Step>) {
        let mut peers: Vec<Option<Match>> = Vec::new();
        match &rule.peers {
            None => peers.push(None),
            Some(list) => {
                let mut blocks = Vec::new();
                let mut selectors = BTreeSet::new();
                for peer in list {
                    match peer {
                        Peer::Pods(pods) => {
                            selectors.insert(pods);
                        }
                        Peer::Block(ranges) => blocks.extend(ranges.iter().copied()),
                    }
                }
                for pods in selectors {
                    let set = self.acquire_peers(pods);
                    active.peers.push(pods.clone());
                    peers.push(Some(Match::Peer(direction, set)));
                }
                if !blocks.is_empty() {
                    let ranges = merged(blocks)
                        .into_iter()
                        .map(|(first, last)| Element::Block(first, last));
                    let set = self.own_set(active, "blocks", Kind::Blocks, ranges.collect());
                    peers.push(Some(Match::Peer(direction, set)));
                }
            }
        }
        let mut ports: Vec<Option<Match>> = Vec::new();
        match &rule.ports {
            None => ports.push(None),
            Some(list) => {
                let mut numbers = Vec::new();
                let mut names = BTreeSet::new();
                for port in list {
                    match port {
                        Port::Numbers(protocol, first, last) => numbers.push((*protocol, *first, *last)),
                        Port::Named(protocol, name) => {
                            names.insert((*protocol, name.clone()));
                        }
                    }
                }
                let numbers = merged_ports(numbers);
                if !numbers.is_empty() {
                    let ranges = numbers
                        .into_iter()
                        .map(|(protocol, a, b)| Element::Ports(protocol, a, b));
                    let set = self.own_set(active, "ports", Kind::Ports, ranges.collect());
                    ports.push(Some(Match::Port(set)));
                }
                for name in names {
                    let set = self.acquire_named(&name);
                    active.named.push(name);
                    ports.push(Some(Match::Named(set)));
                }
            }
        }
        for peer in &peers {
            for port in &ports {
                let all = peer.iter().chain(port).cloned().collect();
                steps.push(Step::Allow(direction, all));
            }
        }
    }

    fn own_set(&mut self, active: &mut Active, what: &str, kind: Kind, elements: BTreeSet<Element>) -> String {
        let name = self.name(what);
        self.draft.add_set(&name, kind, elements);
        active.own_sets.push(name.clone());
        name
    }

    fn acquire_peers(&mut self, peers: &PodsOf) -> String {
        if let Some(shared) = self.peers.get_mut(peers) {
            shared.users += 1;
            return shared.set.clone();
        }
        let set = self.name("pods");
        let mut shared = Shared {
            set: set.clone(),
            users: 1,
            ..Shared::default()
        };
        self.draft.add_set(&set, Kind::Addresses, BTreeSet::new());
        let all: Vec<Element> = match &peers.namespaces {
            Namespaces::Named(name) => within(&self.pods, name)
                .flat_map(|(_, view)| members(peers, Some(view)))
                .collect(),
            Namespaces::Labelled(selector) => self
                .namespaces
                .iter()
                .filter(|(_, labels)| selector.matches(labels))
                .flat_map(|(name, _)| within(&self.pods, name))
                .flat_map(|(_, view)| members(peers, Some(view)))
                .collect(),
        };
        shared.turn(Vec::new(), all, &mut self.draft);
        self.peers.insert(peers.clone(), shared);
        set
    }

    fn acquire_named(&mut self, name: &PortName) -> String {
        if let Some(shared) = self.named.get_mut(name) {
            shared.users += 1;
            return shared.set.clone();
        }
        let set = self.name("named");
        let mut shared = Shared {
            set: set.clone(),
            users: 1,
            ..Shared::default()
        };
        self.draft.add_set(&set, Kind::Named, BTreeSet::new());
        let all = self.pods.values().flat_map(|view| ports(name, Some(view))).collect();
        shared.turn(Vec::new(), all, &mut self.draft);
        self.named.insert(name.clone(), shared);
        set
    }
}

/// A Pod's addresses, if it is among the peers (its namespace being so).
fn members(peers: &PodsOf, view: Option<&PodView>) -> Vec<Element> {
    let chosen = view.filter(|view| peers.pods.matches(&view.labels));
    chosen
        .into_iter()
        .flat_map(|view| view.addresses.iter().copied().map(Element::Address))
        .collect()
}

/// Where a Pod has the named port.
fn ports((protocol, name): &PortName, view: Option<&PodView>) -> Vec<Element> {
    let Some(view) = view else {
        return Vec::new();
    };
    let numbers = view
        .ports
        .iter()
        .filter(|port| port.protocol == *protocol && port.name == *name);
    numbers
        .flat_map(|port| {
            view.addresses
                .iter()
                .map(|ip| Element::Named(*ip, port.protocol, port.number))
        })
        .collect()
}

impl Shared {
    /// Some elements are meant once less, others once more.
    fn turn(&mut self, old: Vec<Element>, new: Vec<Element>, draft: &mut Draft) {
        for element in new {
            let count = self.counts.entry(element.clone()).or_default();
            *count += 1;
            if *count == 1 {
                draft.element(&self.set, element, true);
            }
        }
        for element in old {
            let Some(count) = self.counts.get_mut(&element) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&element);
                draft.element(&self.set, element, false);
            }
        }
    }
}

fn release<K: Ord>(all: &mut BTreeMap<K, Shared>, key: &K, draft: &mut Draft) {
    let Some(shared) = all.get_mut(key) else {
        return;
    };
    shared.users -= 1;
    if shared.users == 0 {
        draft.remove_set(&shared.set);
        all.remove(key);
    }
}
