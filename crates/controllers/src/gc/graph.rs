//! Who owns whom, by UID. Pure.
//!
//! An owner that is referred to but has not been seen is in the graph too, as unobserved: somebody must find out whether
//! it exists. Every change returns the work it causes.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ApiResource;
use sampan_client::Summary;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// A served resource.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) resource: ApiResource,
    pub(super) namespaced: bool,
}

/// Something to look into.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Work {
    /// Whether the object (by UID) should go, or be let go.
    Delete(String),
    /// The object is being deleted and its dependents are to stay.
    Orphan(String),
    /// Which resources exist has changed.
    Discover,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Delete(uid) => write!(f, "delete {uid}"),
            Work::Orphan(uid) => write!(f, "orphan the dependents of {uid}"),
            Work::Discover => f.write_str("discover"),
        }
    }
}

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// `None` while unobserved.
    pub(super) kind: Option<Arc<Kind>>,
    pub(super) api_version: String,
    pub(super) kind_name: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) dependents: BTreeSet<String>,
    pub(super) deleting: bool,
    /// Deleted in the foreground: it waits for its dependents.
    pub(super) waiting: bool,
    /// Deleted, and its dependents are to be orphaned.
    orphaning: bool,
}

impl Node {
    /// Never seen, and nobody refers to it any more.
    fn is_idle_guess(&self) -> bool {
        self.kind.is_none() && self.dependents.is_empty()
    }

    /// Whether this is the object that `reference` in an object of `namespace` means.
    pub(super) fn is_meant_by(&self, reference: &OwnerReference, namespace: &str) -> bool {
        let group = |version: &str| version.split_once('/').map_or("", |(g, _)| g).to_owned();
        self.kind_name == reference.kind
            && group(&self.api_version) == group(&reference.api_version)
            && self.name == reference.name
            && (self.namespace.is_empty() || self.namespace == namespace)
    }
}

/// An owner in another namespace than its dependent: not allowed, and taken for absent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Invalid {
    /// The dependent's UID, and what else it is known by.
    pub(super) dependent: String,
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) reference: OwnerReference,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// An object was seen in this state.
    pub(super) fn upsert(&mut self, kind: &Arc<Kind>, object: &Summary) -> (Vec<Work>, Vec<Invalid>) {
        let meta = &object.metadata;
        let deleting = meta.deletion_timestamp.is_some();
        let has = |finalizer: &str| deleting && meta.finalizers.iter().any(|f| f == finalizer);
        let (mut work, mut invalid) = (Vec::new(), Vec::new());
        let node = self.nodes.entry(meta.uid.clone()).or_insert_with(|| Node {
            kind: None,
            api_version: String::new(),
            kind_name: String::new(),
            namespace: String::new(),
            name: String::new(),
            owners: Vec::new(),
            dependents: BTreeSet::new(),
            deleting: false,
            waiting: false,
            orphaning: false,
        });
        if node.kind.is_none() {
            node.kind = Some(Arc::clone(kind));
            node.api_version.clone_from(&kind.resource.api_version);
            node.kind_name.clone_from(&kind.resource.kind);
            node.namespace.clone_from(&meta.namespace);
            node.name.clone_from(&meta.name);
            // Those that referred to it before it was seen may have meant another namespace.
            let dependents: Vec<String> = node.dependents.iter().cloned().collect();
            for dependent in dependents {
                if !meta.namespace.is_empty() {
                    invalid.extend(self.misplaced(&dependent, &meta.uid, &meta.namespace));
                }
                work.push(Work::Delete(dependent));
            }
        }
        let Some(node) = self.nodes.get_mut(&meta.uid) else {
            return (work, invalid);
        };
        if has(ORPHAN) && !node.orphaning {
            node.orphaning = true;
            work.push(Work::Orphan(meta.uid.clone()));
        }
        if has(FOREGROUND) && !node.waiting {
            node.waiting = true;
            work.extend(node.dependents.iter().cloned().map(Work::Delete));
            work.push(Work::Delete(meta.uid.clone()));
        }
        node.deleting = deleting;
        let before = std::mem::replace(&mut node.owners, meta.owner_references.clone());
        if before != meta.owner_references {
            self.relink(object, &before, &mut work, &mut invalid);
        }
        (work, invalid)
    }

    /// The reference of a dependent to an owner that is in another namespace.
    fn misplaced(&self, dependent: &str, owner: &str, namespace: &str) -> Option<Invalid> {
        let node = self.nodes.get(dependent).filter(|node| node.namespace != namespace)?;
        let reference = node.owners.iter().find(|reference| reference.uid == owner)?;
        Some(Invalid {
            dependent: dependent.to_owned(),
            api_version: node.api_version.clone(),
            kind: node.kind_name.clone(),
            namespace: node.namespace.clone(),
            name: node.name.clone(),
            reference: reference.clone(),
        })
    }

    /// An owner that nobody had seen does not exist by the name that was tried; `absent` says of a reference, and the
    /// namespace it is in, whether that is known of it too. Others may mean the same UID by another name: they are not
    /// judged by what was found out for this one.
    pub(super) fn disproved(&mut self, uid: &str, absent: impl Fn(&OwnerReference, &str) -> bool) -> Vec<Work> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        let (mut work, mut other) = (Vec::new(), None);
        for dependent in &node.dependents {
            let Some(known) = self.nodes.get(dependent) else {
                continue;
            };
            for reference in known.owners.iter().filter(|reference| reference.uid == uid) {
                if absent(reference, &known.namespace) {
                    work.push(Work::Delete(dependent.clone()));
                } else {
                    other.get_or_insert_with(|| (reference.clone(), known.namespace.clone()));
                }
            }
        }
        if node.kind.is_some() {
            // It was seen meanwhile, under another name.
            return work;
        }
        let Some((reference, namespace)) = other else {
            return self.remove(uid);
        };
        if let Some(node) = self.nodes.get_mut(uid) {
            (node.api_version, node.kind_name) = (reference.api_version, reference.kind);
            (node.name, node.namespace) = (reference.name, namespace);
        }
        work.push(Work::Delete(uid.to_owned()));
        work
    }

    fn relink(
        &mut self,
        object: &Summary,
        before: &[OwnerReference],
        work: &mut Vec<Work>,
        invalid: &mut Vec<Invalid>,
    ) {
        let meta = &object.metadata;
        for old in before {
            let now = meta.owner_references.iter().find(|now| now.uid == old.uid);
            let Some(owner) = self.nodes.get_mut(&old.uid) else {
                continue;
            };
            let blocks = |reference: &OwnerReference| reference.block_owner_deletion == Some(true);
            if now.is_none() {
                owner.dependents.remove(&meta.uid);
                if owner.is_idle_guess() {
                    self.nodes.remove(&old.uid);
                    continue;
                }
            }
            // An owner that waits may have waited for this one.
            if owner.waiting && blocks(old) && !now.is_some_and(blocks) {
                work.push(Work::Delete(old.uid.clone()));
            }
        }
        for reference in &meta.owner_references {
            let known = before.iter().any(|old| old.uid == reference.uid);
            match self.nodes.get_mut(&reference.uid) {
                Some(owner) => {
                    owner.dependents.insert(meta.uid.clone());
                    if known {
                        continue;
                    }
                    let seen = owner.kind.is_some();
                    let home = owner.namespace.clone();
                    if !owner.is_meant_by(reference, &meta.namespace) || !seen && home != meta.namespace {
                        work.push(Work::Delete(meta.uid.clone()));
                        if seen && !home.is_empty() {
                            invalid.extend(self.misplaced(&meta.uid, &reference.uid, &home));
                        }
                    } else if owner.waiting {
                        // Came too late: its owner is going.
                        work.push(Work::Delete(meta.uid.clone()));
                    }
                }
                None => {
                    self.nodes.insert(
                        reference.uid.clone(),
                        Node {
                            kind: None,
                            api_version: reference.api_version.clone(),
                            kind_name: reference.kind.clone(),
                            namespace: meta.namespace.clone(),
                            name: reference.name.clone(),
                            owners: Vec::new(),
                            dependents: BTreeSet::from([meta.uid.clone()]),
                            deleting: false,
                            waiting: false,
                            orphaning: false,
                        },
                    );
                    work.push(Work::Delete(reference.uid.clone()));
                }
            }
        }
    }

    /// An object is gone (or was found never to have been).
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut work: Vec<Work> = node.dependents.into_iter().map(Work::Delete).collect();
        for owner in &node.owners {
            if let Some(owner_node) = self.nodes.get_mut(&owner.uid) {
                owner_node.dependents.remove(uid);
                if owner_node.waiting {
                    work.push(Work::Delete(owner.uid.clone()));
                } else if owner_node.is_idle_guess() {
                    self.nodes.remove(&owner.uid);
                }
            }
        }
        work
    }

    /// The resource is served no more, so its objects are out of reach. Nothing is concluded for their dependents, but
    /// nobody waits for them.
    pub(super) fn forget(&mut self, kind: &Arc<Kind>) -> Vec<Work> {
        let of_kind = |node: &Node| {
            node.kind.as_ref().is_some_and(|known| {
                known.resource.group == kind.resource.group && known.resource.plural == kind.resource.plural
            })
        };
        let gone: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| of_kind(node))
            .map(|(uid, _)| uid.clone())
            .collect();
        let mut work = Vec::new();
        for uid in gone {
            let Some(node) = self.nodes.get_mut(&uid) else { continue };
            node.kind = None;
            (node.deleting, node.waiting, node.orphaning) = (false, false, false);
            let owners = std::mem::take(&mut node.owners);
            if node.dependents.is_empty() {
                self.nodes.remove(&uid);
            }
            for owner in owners {
                if let Some(owner_node) = self.nodes.get_mut(&owner.uid) {
                    owner_node.dependents.remove(&uid);
                    if owner_node.waiting {
                        work.push(Work::Delete(owner.uid));
                    } else if owner_node.is_idle_guess() {
                        self.nodes.remove(&owner.uid);
                    }
                }
            }
        }
        work
    }

    /// The dependents that a waiting owner must wait for.
    pub(super) fn blocking(&self, uid: &str) -> Vec<String> {
        let Some(owner) = self.nodes.get(uid) else {
            return Vec::new();
        };
        let blocks = |dependent: &&String| {
            self.nodes.get(*dependent).is_some_and(|node| {
                node.owners
                    .iter()
                    .any(|r| r.uid == uid && r.block_owner_deletion == Some(true))
            })
        };
        owner.dependents.iter().filter(blocks).cloned().collect()
    }

    /// Whether one of the object's dependents waits for its own dependents: together with the object waiting, a cycle.
    pub(super) fn has_waiting_dependent(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|node| {
            node.dependents
                .iter()
                .any(|dependent| self.nodes.get(dependent).is_some_and(|node| node.waiting))
        })
    }

    /// The owner that `reference` means, if it has been seen.
    pub(super) fn owner(&self, reference: &OwnerReference, namespace: &str) -> Option<&Node> {
        self.nodes
            .get(&reference.uid)
            .filter(|node| node.kind.is_some() && node.is_meant_by(reference, namespace))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn kind() -> Arc<Kind> {
        Arc::new(Kind {
            resource: ApiResource {
                group: String::new(),
                version: "v1".into(),
                api_version: "v1".into(),
                kind: "ConfigMap".into(),
                plural: "configmaps".into(),
            },
            namespaced: true,
        })
    }

    fn object(namespace: &str, uid: &str, owners: &[&str], finalizers: &[&str]) -> Summary {
        let mut object = Summary::default();
        object.metadata.namespace = namespace.into();
        object.metadata.name = uid.into();
        object.metadata.uid = uid.into();
        object.metadata.owner_references = owners
            .iter()
            .map(|uid| OwnerReference {
                api_version: "v1".into(),
                kind: "ConfigMap".into(),
                name: (*uid).into(),
                uid: (*uid).into(),
                block_owner_deletion: Some(true),
                controller: None,
            })
            .collect();
        object.metadata.finalizers = finalizers.iter().map(|f| (*f).into()).collect();
        object.metadata.deletion_timestamp = (!finalizers.is_empty()).then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        object
    }

    fn delete(uids: &[&str]) -> Vec<Work> {
        uids.iter().map(|uid| Work::Delete((*uid).into())).collect()
    }

    #[test]
    fn an_unseen_owner_is_looked_for() {
        let (mut graph, kind) = (Graph::default(), kind());
        assert_eq!(
            graph.upsert(&kind, &object("n", "child", &["owner"], &[])).0,
            delete(&["owner"])
        );
        assert!(graph.get("owner").unwrap().kind.is_none());
        // It comes, and its dependent is looked at once more.
        assert_eq!(
            graph.upsert(&kind, &object("n", "owner", &[], &[])).0,
            delete(&["child"])
        );
        assert_eq!(graph.upsert(&kind, &object("n", "owner", &[], &[])).0, []);
        assert_eq!(graph.remove("owner"), delete(&["child"]));
    }

    #[test]
    fn waiting_owners_are_told_of_what_unblocks_them() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.upsert(&kind, &object("n", "owner", &[], &[]));
        graph.upsert(&kind, &object("n", "a", &["owner"], &[]));
        graph.upsert(&kind, &object("n", "b", &["owner"], &[]));
        let work = graph.upsert(&kind, &object("n", "owner", &[], &[FOREGROUND])).0;
        assert_eq!(work, delete(&["a", "b", "owner"]));
        assert_eq!(graph.blocking("owner"), ["a", "b"]);
        assert_eq!(graph.remove("a"), delete(&["owner"]));
        assert_eq!(graph.upsert(&kind, &object("n", "b", &[], &[])).0, delete(&["owner"]));
        assert!(graph.blocking("owner").is_empty());
    }

    #[test]
    fn owners_in_other_namespaces_are_invalid() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.upsert(&kind, &object("n", "owner", &[], &[]));
        let (work, invalid) = graph.upsert(&kind, &object("other", "child", &["owner"], &[]));
        assert_eq!(work, delete(&["child"]));
        assert_eq!(invalid.len(), 1);
        let reference = &invalid[0].reference;
        assert!(graph.owner(reference, "other").is_none());
        assert!(graph.owner(reference, "n").is_some());
    }

    #[test]
    fn one_wrong_name_of_an_owner_says_nothing_of_the_others() {
        let (mut graph, kind) = (Graph::default(), kind());
        // Nobody has seen the owner, and the first to name it is in the wrong namespace.
        let asked = graph.upsert(&kind, &object("a", "bad", &["owner"], &[])).0;
        assert_eq!(asked, delete(&["owner"]));
        assert_eq!(
            graph.upsert(&kind, &object("b", "good", &["owner"], &[])).0,
            delete(&["good"])
        );
        let work = graph.disproved("owner", |_, namespace| namespace == "a");
        assert_eq!(work, delete(&["bad", "owner"]));
        assert_eq!(
            graph.get("owner").unwrap().namespace,
            "b",
            "it is looked for there next"
        );
        assert_eq!(graph.disproved("owner", |_, _| true), delete(&["bad", "good"]));
        assert!(graph.get("owner").is_none());
        // One that is seen at last under another name stays.
        graph.upsert(&kind, &object("a", "worse", &["late"], &[]));
        let (work, invalid) = graph.upsert(&kind, &object("b", "late", &[], &[]));
        assert_eq!((work, invalid.len()), (delete(&["worse"]), 1));
        assert_eq!(
            (invalid[0].name.as_str(), invalid[0].namespace.as_str()),
            ("worse", "a")
        );
        assert_eq!(graph.disproved("late", |_, _| true), delete(&["worse"]));
        assert!(graph.get("late").is_some_and(|late| late.kind.is_some()));
    }

    #[test]
    fn a_wrong_name_in_the_right_namespace_is_only_looked_into() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.upsert(&kind, &object("n", "owner", &[], &[]));
        let mut child = object("n", "child", &["owner"], &[]);
        child.metadata.owner_references[0].name = "other".into();
        assert_eq!(graph.upsert(&kind, &child), (delete(&["child"]), Vec::new()));
    }

    #[test]
    fn orphaning_is_asked_for_once() {
        let (mut graph, kind) = (Graph::default(), kind());
        let dying = object("n", "owner", &[], &[ORPHAN]);
        assert_eq!(graph.upsert(&kind, &dying).0, [Work::Orphan("owner".into())]);
        assert_eq!(graph.upsert(&kind, &dying).0, []);
    }

    #[test]
    fn guesses_that_nobody_refers_to_are_forgotten() {
        let (mut graph, kind) = (Graph::default(), kind());
        graph.upsert(&kind, &object("n", "a", &["absent"], &[]));
        graph.upsert(&kind, &object("n", "b", &["absent"], &[]));
        graph.remove("a");
        assert!(graph.get("absent").is_some());
        graph.upsert(&kind, &object("n", "b", &[], &[]));
        assert!(graph.get("absent").is_none());
    }

    #[test]
    fn a_resource_that_is_served_no_more_holds_nobody_up() {
        let (mut graph, kind) = (Graph::default(), kind());
        let other = Arc::new(Kind {
            resource: ApiResource {
                group: "example.com".into(),
                version: "v1".into(),
                api_version: "example.com/v1".into(),
                kind: "Foo".into(),
                plural: "foos".into(),
            },
            namespaced: true,
        });
        graph.upsert(&kind, &object("n", "owner", &[], &[]));
        graph.upsert(&other, &object("n", "foo", &["owner"], &[]));
        graph.upsert(&kind, &object("n", "child", &["foo"], &[]));
        graph.upsert(&kind, &object("n", "owner", &[], &[FOREGROUND]));
        assert_eq!(graph.blocking("owner"), ["foo"]);
        assert_eq!(graph.forget(&other), delete(&["owner"]));
        assert!(graph.blocking("owner").is_empty());
        assert!(
            graph.get("foo").is_some_and(|foo| foo.kind.is_none()),
            "its dependent still refers to it"
        );
        graph.remove("child");
        assert!(graph.get("foo").is_none());
    }

    /// What happens to one of a few objects.
    #[derive(Clone, Debug)]
    enum Step {
        Seen {
            object: usize,
            owners: Vec<usize>,
            finalizer: Option<&'static str>,
        },
        Gone(usize),
        Forgotten,
    }

    fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
        use proptest::prelude::*;
        let finalizer = prop_oneof![4 => Just(None), 1 => Just(Some(FOREGROUND)), 1 => Just(Some(ORPHAN))];
        let seen = (0usize..8, proptest::collection::vec(0usize..10, 0..3), finalizer).prop_map(
            |(object, mut owners, finalizer)| {
                owners.sort_unstable();
                owners.dedup();
                Step::Seen {
                    object,
                    owners,
                    finalizer,
                }
            },
        );
        let one = prop_oneof![12 => seen, 4 => (0usize..8).prop_map(Step::Gone), 1 => Just(Step::Forgotten)];
        proptest::collection::vec(one, 1..60)
    }

    proptest::proptest! {
        #[test]
        fn links_go_both_ways_and_nothing_is_left_behind(steps in steps()) {
            let (mut graph, kind) = (Graph::default(), kind());
            // What comes again is another object.
            let mut lives = [0; 10];
            let mut seen = std::collections::BTreeMap::new();
            for step in steps {
                match step {
                    Step::Seen { object: number, owners, finalizer } => {
                        let name = |number: usize| format!("o{number}-{}", lives[number]);
                        let names: Vec<String> = owners.into_iter().map(name).collect();
                        let names: Vec<&str> = names.iter().map(String::as_str).collect();
                        let finalizers: Vec<&str> = finalizer.into_iter().collect();
                        let object = object("n", &name(number), &names, &finalizers);
                        graph.upsert(&kind, &object);
                        seen.insert(name(number), object);
                    }
                    Step::Gone(number) => {
                        let name = format!("o{number}-{}", lives[number]);
                        graph.remove(&name);
                        seen.remove(&name);
                        lives[number] += 1;
                    }
                    Step::Forgotten => {
                        graph.forget(&kind);
                        seen.clear();
                        lives.iter_mut().for_each(|life| *life += 1);
                    }
                }
                for (uid, object) in &seen {
                    let node = graph.get(uid).expect("what was seen is known");
                    proptest::prop_assert!(node.kind.is_some());
                    for reference in &object.metadata.owner_references {
                        let linked = graph.get(&reference.uid).is_none_or(|owner| owner.dependents.contains(uid));
                        proptest::prop_assert!(linked, "{} does not know of {}", reference.uid, uid);
                    }
                }
                for (uid, node) in &graph.nodes {
                    proptest::prop_assert_eq!(node.kind.is_some(), seen.contains_key(uid));
                    proptest::prop_assert!(node.kind.is_some() || !node.dependents.is_empty(), "an idle guess: {}", uid);
                    for dependent in &node.dependents {
                        let refers = seen.get(dependent).is_some_and(|object| {
                            object.metadata.owner_references.iter().any(|reference| reference.uid == *uid)
                        });
                        proptest::prop_assert!(refers, "{} is no dependent of {}", dependent, uid);
                    }
                }
            }
            for uid in seen.keys() {
                graph.remove(uid);
            }
            proptest::prop_assert!(graph.nodes.is_empty());
        }
    }
}
