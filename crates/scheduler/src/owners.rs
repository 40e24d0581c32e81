//! What a Pod belongs to, as far as spreading by default needs it: the Services that select it and the workload that
//! controls it.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::labels::{Labels, selects};
use crate::pod::Class;

/// Labels and selectors that must all match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    pub labels: Labels,
    pub selectors: Vec<LabelSelector>,
    /// It selects nothing, whatever else it says.
    pub nothing: bool,
}

impl Selection {
    pub fn nothing() -> Self {
        Selection {
            nothing: true,
            ..Selection::default()
        }
    }

    /// Whether it asks for nothing at all, so that it selects everything.
    pub fn is_empty(&self) -> bool {
        let empty = |selector: &LabelSelector| {
            selector.match_labels.iter().flatten().next().is_none()
                && selector.match_expressions.iter().flatten().next().is_none()
        };
        !self.nothing && self.labels.is_empty() && self.selectors.iter().all(empty)
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        !self.nothing
            && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.selectors.iter().all(|selector| selects(Some(selector), labels))
    }
}

/// Something that selects Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OwnerKind {
    Service,
    ReplicationController,
    ReplicaSet,
    StatefulSet,
}

impl OwnerKind {
    /// The kind of a controller by its owner reference.
    pub fn of(api_version: &str, kind: &str) -> Option<OwnerKind> {
        match (api_version, kind) {
            ("v1", "ReplicationController") => Some(OwnerKind::ReplicationController),
            ("apps/v1", "ReplicaSet") => Some(OwnerKind::ReplicaSet),
            ("apps/v1", "StatefulSet") => Some(OwnerKind::StatefulSet),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Namespace {
    services: HashMap<String, Labels>,
    workloads: HashMap<(OwnerKind, String), LabelSelector>,
    generation: u64,
}

#[derive(Debug, Default)]
pub struct Owners {
    namespaces: HashMap<String, Namespace>,
    changes: u64,
}

impl Owners {
    /// Notes what an object selects; `None`: it is gone, or selects nothing.
    pub fn set(&mut self, kind: OwnerKind, namespace: &str, name: &str, selector: Option<LabelSelector>) {
        self.changes += 1;
        let space = self.namespaces.entry(namespace.to_owned()).or_default();
        let changed = match (kind, selector) {
            (OwnerKind::Service, Some(selector)) => {
                let labels = selector.match_labels.unwrap_or_default();
                space.services.insert(name.to_owned(), labels.clone()) != Some(labels)
            }
            (OwnerKind::Service, None) => space.services.remove(name).is_some(),
            (kind, Some(selector)) => {
                let key = (kind, name.to_owned());
                space.workloads.insert(key, selector.clone()) != Some(selector)
            }
            (kind, None) => space.workloads.remove(&(kind, name.to_owned())).is_some(),
        };
        if changed {
            space.generation = self.changes;
        }
    }

    /// Changes whenever the answer for Pods of the namespace may have.
    pub fn generation(&self, namespace: &str) -> u64 {
        self.namespaces.get(namespace).map_or(0, |space| space.generation)
    }

    /// What everything that the class's Pods belong to selects.
    pub fn selection(&self, class: &Class) -> Selection {
        let mut selection = Selection::default();
        let Some(space) = self.namespaces.get(&class.namespace) else {
            return selection;
        };
        for labels in space.services.values() {
            if labels.iter().all(|(key, value)| class.labels.get(key) == Some(value)) {
                selection.labels.extend(labels.clone());
            }
        }
        if let Some(owner) = &class.owner
            && let Some(selector) = space.workloads.get(owner)
        {
            selection.selectors.push(selector.clone());
        }
        selection
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::json;

    fn labels(value: serde_json::Value) -> LabelSelector {
        serde_json::from_value(json!({"matchLabels": value})).unwrap()
    }

    #[test]
    fn services_and_the_controller_select_together() {
        let mut owners = Owners::default();
        owners.set(
            OwnerKind::Service,
            "default",
            "all",
            Some(labels(json!({"app": "web"}))),
        );
        owners.set(
            OwnerKind::Service,
            "default",
            "other",
            Some(labels(json!({"app": "db"}))),
        );
        owners.set(
            OwnerKind::Service,
            "elsewhere",
            "all",
            Some(labels(json!({"tier": "x"}))),
        );
        owners.set(
            OwnerKind::ReplicaSet,
            "default",
            "rs",
            Some(labels(json!({"hash": "1"}))),
        );
        let mut object = pod("p", json!({"containers": []}));
        object.metadata.labels = Some([("app".into(), "web".into()), ("tier".into(), "x".into())].into());
        let selection = owners.selection(&Class::of(&object));
        assert_eq!((selection.labels.len(), selection.selectors.len()), (1, 0));
        object.metadata.owner_references = serde_json::from_value(
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "u", "controller": true}]),
        )
        .unwrap();
        let selection = owners.selection(&Class::of(&object));
        let of = |hash: &str| [("app".into(), "web".into()), ("hash".into(), hash.to_owned())].into();
        assert!(selection.matches(&of("1")) && !selection.matches(&of("2")));
        let before = owners.generation("default");
        owners.set(
            OwnerKind::Service,
            "default",
            "other",
            Some(labels(json!({"app": "db"}))),
        );
        assert_eq!(owners.generation("default"), before, "nothing changed");
        owners.set(OwnerKind::ReplicaSet, "default", "rs", None);
        assert!(owners.generation("default") > before);
    }

    #[test]
    fn nothing_is_not_everything() {
        let any = Labels::from([("a".to_owned(), "b".to_owned())]);
        assert!(Selection::default().matches(&any) && Selection::default().is_empty());
        assert!(!Selection::nothing().matches(&any) && !Selection::nothing().is_empty());
    }
}
