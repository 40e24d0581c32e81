//! What a new cluster starts with: default roles and bindings, and how they are kept.
//!
//! The tables ([`table`], [`controllers`]) hold facts as short rows; [`objects`] makes trees of them with the labels
//! and annotations upstream gives them. [`reconcile`] says what a start must change about those that exist, and
//! [`aggregate`] what the rules of an aggregated ClusterRole are.
//!
//! Deliberate difference: upstream leaves the aggregated roles (`admin`, `edit`, `view`) empty until a controller
//! fills them; here they are complete from the first moment.

mod aggregation;
mod controllers;
mod reconciliation;
mod table;

pub use aggregation::aggregate;
pub use reconciliation::{Change, reconcile};

use serde_json::{Value, json};

use crate::rbac::Kind;
use crate::rule::Rule;

const API_GROUP: &str = "rbac.authorization.k8s.io";
const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const AGGREGATE_TO: &str = "rbac.authorization.k8s.io/aggregate-to-";
const CONTROLLER_PREFIX: &str = "system:controller:";

/// Words separated by spaces; `core` stands for the core API group.
#[derive(Clone, Copy, Debug)]
struct RuleRow {
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
    urls: &'static str,
}

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL: &str = "create delete deletecollection get list patch update watch";
const EVENTS: RuleRow = rule("create patch update", "core events.k8s.io", "events");

const fn rule(verbs: &'static str, groups: &'static str, resources: &'static str) -> RuleRow {
    RuleRow {
        verbs,
        groups,
        resources,
        names: "",
        urls: "",
    }
}

const fn named(verbs: &'static str, groups: &'static str, resources: &'static str, names: &'static str) -> RuleRow {
    RuleRow {
        names,
        ..rule(verbs, groups, resources)
    }
}

const fn url(verbs: &'static str, urls: &'static str) -> RuleRow {
    RuleRow {
        urls,
        ..rule(verbs, "", "")
    }
}

impl RuleRow {
    fn to_rule(self) -> Rule {
        let words = |text: &str| -> Vec<String> {
            let core = |word: &str| if word == "core" { String::new() } else { word.into() };
            text.split_ascii_whitespace().map(core).collect()
        };
        Rule {
            verbs: words(self.verbs),
            api_groups: words(self.groups),
            resources: words(self.resources),
            resource_names: words(self.names),
            non_resource_urls: words(self.urls),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct RoleRow {
    /// Empty: a ClusterRole.
    namespace: &'static str,
    name: &'static str,
    rules: &'static [RuleRow],
    /// Gathers the rules of the roles that join this.
    aggregates: &'static str,
    joins: &'static str,
}

const fn role_in(namespace: &'static str, name: &'static str, rules: &'static [RuleRow]) -> RoleRow {
    RoleRow {
        namespace,
        name,
        rules,
        aggregates: "",
        joins: "",
    }
}

const fn role(name: &'static str, rules: &'static [RuleRow]) -> RoleRow {
    role_in("", name, rules)
}

impl RoleRow {
    const fn aggregates(self, aggregates: &'static str) -> Self {
        RoleRow { aggregates, ..self }
    }
    const fn joins(self, joins: &'static str) -> Self {
        RoleRow { joins, ..self }
    }

    fn to_object(self, prefix: &str) -> (Kind, Value) {
        let (kind, word) = if self.namespace.is_empty() {
            (Kind::ClusterRole, "ClusterRole")
        } else {
            (Kind::Role, "Role")
        };
        let mut object = skeleton(word, self.namespace, &format!("{prefix}{}", self.name));
        let rules = self.rules.iter().map(|row| row.to_rule().to_value());
        object["rules"] = rules.collect();
        if !self.joins.is_empty() {
            object["metadata"]["labels"][format!("{AGGREGATE_TO}{}", self.joins)] = "true".into();
        }
        if !self.aggregates.is_empty() {
            let label = format!("{AGGREGATE_TO}{}", self.aggregates);
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
        (kind, object)
    }
}

#[derive(Clone, Copy, Debug)]
enum Subject {
    User(&'static str),
    Group(&'static str),
    ServiceAccount(&'static str, &'static str),
}

impl Subject {
    fn to_value(self) -> Value {
        match self {
            Subject::User(name) => json!({"apiGroup": API_GROUP, "kind": "User", "name": name}),
            Subject::Group(name) => json!({"apiGroup": API_GROUP, "kind": "Group", "name": name}),
            Subject::ServiceAccount(namespace, name) => {
                json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct BindingRow {
    /// Empty: a ClusterRoleBinding to a ClusterRole; else a RoleBinding to a Role.
    namespace: &'static str,
    name: &'static str,
    role: &'static str,
    subjects: &'static [Subject],
}

const fn bind_in(
    namespace: &'static str,
    name: &'static str,
    role: &'static str,
    subjects: &'static [Subject],
) -> BindingRow {
    BindingRow {
        namespace,
        name,
        role,
        subjects,
    }
}

/// A ClusterRoleBinding of the role of the same name.
const fn bind(name: &'static str, subjects: &'static [Subject]) -> BindingRow {
    bind_in("", name, name, subjects)
}

impl BindingRow {
    fn to_object(self) -> (Kind, Value) {
        let (kind, word, role) = if self.namespace.is_empty() {
            (Kind::ClusterRoleBinding, "ClusterRoleBinding", "ClusterRole")
        } else {
            (Kind::RoleBinding, "RoleBinding", "Role")
        };
        let mut object = skeleton(word, self.namespace, self.name);
        object["roleRef"] = json!({"apiGroup": API_GROUP, "kind": role, "name": self.role});
        let subjects: Vec<_> = self.subjects.iter().map(|subject| subject.to_value()).collect();
        if !subjects.is_empty() {
            object["subjects"] = subjects.into();
        }
        (kind, object)
    }
}

fn skeleton(kind: &str, namespace: &str, name: &str) -> Value {
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "annotations": {AUTO_UPDATE: "true"},
            "labels": {BOOTSTRAPPING: "rbac-defaults"},
        },
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

/// What every node may do (the role `system:node`, which is bound to nobody: the node authorizer reads it).
pub fn node_rules() -> Vec<Rule> {
    let role = table::CLUSTER_ROLES.iter().find(|role| role.name == "system:node");
    let rows = role.map(|role| role.rules).unwrap_or_default();
    rows.iter().map(|row| row.to_rule()).collect()
}

/// The roles and bindings of upstream's tables, as upstream writes them.
fn upstream() -> Vec<(Kind, Value)> {
    let roles = table::CLUSTER_ROLES
        .iter()
        .chain(table::ROLES)
        .map(|row| row.to_object(""));
    let controllers = controllers::CONTROLLER_ROLES
        .iter()
        .map(|row| row.to_object(CONTROLLER_PREFIX));
    let bindings = table::BINDINGS.iter().map(|row| row.to_object());
    let controller_bindings = controllers::CONTROLLER_ROLES.iter().map(|row| {
        let name = format!("{CONTROLLER_PREFIX}{}", row.name);
        let mut object = skeleton("ClusterRoleBinding", "", &name);
        object["roleRef"] = json!({"apiGroup": API_GROUP, "kind": "ClusterRole", "name": name});
        object["subjects"] = json!([Subject::ServiceAccount("kube-system", row.name).to_value()]);
        (Kind::ClusterRoleBinding, object)
    });
    roles
        .chain(controllers)
        .chain(bindings)
        .chain(controller_bindings)
        .collect()
}

/// Everything a new cluster starts with: roles first, then bindings. Needs the namespaces `kube-system` and `kube-public`.
pub fn objects() -> Vec<(Kind, Value)> {
    let own = table::OWN_CLUSTER_ROLES.iter().chain(table::OWN_ROLES);
    let own = own.map(|row| row.to_object(""));
    let own_bindings = table::OWN_BINDINGS.iter().map(|row| row.to_object());
    let mut objects: Vec<_> = own.chain(upstream()).chain(own_bindings).collect();
    let is_binding = |kind: Kind| matches!(kind, Kind::RoleBinding | Kind::ClusterRoleBinding);
    objects.sort_by_key(|(kind, _)| is_binding(*kind));
    // `admin` gathers from `edit`, which gathers from `view`: until nothing changes.
    loop {
        let roles: Vec<Value> = objects
            .iter()
            .filter(|(kind, _)| *kind == Kind::ClusterRole)
            .map(|(_, object)| object.clone())
            .collect();
        let mut changed = false;
        for (kind, object) in &mut objects {
            if *kind == Kind::ClusterRole
                && let Some(rules) = aggregate(object, &roles)
            {
                object["rules"] = rules;
                changed = true;
            }
        }
        if !changed {
            return objects;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Differential test against upstream's own list (`testdata` of its bootstrap policy), where there is a copy.
    #[test]
    fn the_tables_say_what_upstream_says() {
        let Ok(dir) = std::env::var("SAMPAN_UPSTREAM_RBAC") else {
            println!("skipped: set SAMPAN_UPSTREAM_RBAC to upstream's bootstrappolicy/testdata");
            return;
        };
        let key = |object: &Value| {
            format!(
                "{} {} {}",
                object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]
            )
        };
        let mut theirs = BTreeMap::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("featuregates") {
                continue;
            }
            let list: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            for object in list["items"].as_array().unwrap() {
                theirs.insert(key(object), object.clone());
            }
        }
        // Additions of a distribution are not upstream's.
        theirs.retain(|key, _| !key.contains("openshift") && !key.contains("service-ca-cert-publisher"));
        let mut ours = BTreeMap::new();
        for (_, object) in upstream() {
            ours.insert(key(&object), object);
        }
        for (key, object) in &mut theirs {
            if object["rules"].is_null() && key.contains("Role\"") {
                object["rules"] = json!([]);
            }
            assert_eq!(ours.get(key), Some(&*object), "{key}");
        }
        assert_eq!(ours.len(), theirs.len());
        println!("{} objects are the same", ours.len());
    }

    #[test]
    fn aggregated_roles_are_complete_from_the_start() {
        let objects = objects();
        let rules = |name: &str| {
            let (_, role) = objects
                .iter()
                .find(|(kind, object)| *kind == Kind::ClusterRole && object["metadata"]["name"] == name)
                .unwrap();
            Rule::all_of(role)
        };
        let (view, edit, admin) = (rules("view"), rules("edit"), rules("admin"));
        assert!(!view.is_empty());
        assert!(crate::rule::covers(&edit, &view) && crate::rule::covers(&admin, &edit));
        assert!(!crate::rule::covers(&view, &edit) && !crate::rule::covers(&edit, &admin));
        assert!(!node_rules().is_empty());
        let first_binding = objects
            .iter()
            .position(|(kind, _)| *kind == Kind::ClusterRoleBinding)
            .unwrap();
        assert!(
            objects[first_binding..]
                .iter()
                .all(|(kind, _)| !matches!(kind, Kind::Role | Kind::ClusterRole))
        );
    }
}
