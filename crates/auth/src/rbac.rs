//! Role-based access control over an index that follows the objects.
//!
//! A request is answered by: subjects of the user (its name, its groups) → bindings of those subjects, cluster-wide
//! and in the request's namespace → rules of their roles. Work therefore depends on how many bindings the *user*
//! has, not on how many there are; deciding allocates nothing unless a reason is asked for.
//!
//! Deliberate difference: upstream walks all bindings; here only the order of evaluation, hence which of several
//! allowing bindings is named as the reason, may differ.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde_json::Value;

use crate::attributes::{Attributes, Decision, quoted};
use crate::rule::Rule;
use crate::user::{MASTERS, UserInfo};

/// The kinds RBAC is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Role,
    ClusterRole,
    RoleBinding,
    ClusterRoleBinding,
}

impl Kind {
    /// From the plural of the group `rbac.authorization.k8s.io`.
    pub fn from_plural(plural: &str) -> Option<Self> {
        Some(match plural {
            "roles" => Kind::Role,
            "clusterroles" => Kind::ClusterRole,
            "rolebindings" => Kind::RoleBinding,
            "clusterrolebindings" => Kind::ClusterRoleBinding,
            _ => return None,
        })
    }
}

/// A role by where it is (`""`: a ClusterRole) and its name.
type RoleKey = (String, String);
/// Where the rules of a role are kept while the role or a binding to it exists.
type Slot = usize;

#[derive(Debug, Default)]
struct RoleSlot {
    key: RoleKey,
    /// `None` while bindings refer to a role that does not exist.
    rules: Option<Vec<Rule>>,
    bindings: usize,
}

#[derive(Debug)]
struct Binding {
    namespace: String,
    name: String,
    role: Slot,
    subjects: Vec<Subject>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    /// Kept apart from a user for the reason's text only.
    ServiceAccount {
        namespace: String,
        name: String,
    },
}

impl Subject {
    fn from_value(value: &Value, binding_namespace: &str) -> Option<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let name = text("name").to_owned();
        match text("kind") {
            "User" => Some(Subject::User(name)),
            "Group" => Some(Subject::Group(name)),
            "ServiceAccount" => {
                let namespace = match text("namespace") {
                    "" => binding_namespace,
                    own => own,
                };
                (!namespace.is_empty()).then(|| Subject::ServiceAccount {
                    namespace: namespace.into(),
                    name,
                })
            }
            _ => None,
        }
    }
    /// Whether it is a group, and the name it is found by.
    fn key(&self) -> (bool, String) {
        match self {
            Subject::User(name) => (false, name.clone()),
            Subject::Group(name) => (true, name.clone()),
            Subject::ServiceAccount { namespace, name } => (false, sampan_pki::token::username(namespace, name)),
        }
    }
    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => user.name == *name,
            Subject::Group(name) => user.in_group(name),
            Subject::ServiceAccount { namespace, name } => user.as_service_account() == Some((namespace, name)),
        }
    }
    fn describe(&self) -> String {
        match self {
            Subject::User(name) => format!("User {}", quoted(name)),
            Subject::Group(name) => format!("Group {}", quoted(name)),
            Subject::ServiceAccount { namespace, name } => {
                format!("ServiceAccount {}", quoted(&format!("{name}/{namespace}")))
            }
        }
    }
}

/// The bindings of one namespace (or of the cluster), by subject.
#[derive(Debug, Default)]
struct Scope {
    bindings: HashMap<String, Arc<Binding>>,
    users: HashMap<String, Vec<Arc<Binding>>>,
    groups: HashMap<String, Vec<Arc<Binding>>>,
}

impl Scope {
    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Binding> {
        let named = self.users.get(user.name.as_str());
        let grouped = user.groups.iter().filter_map(|group| self.groups.get(group.as_str()));
        named.into_iter().chain(grouped).flatten().map(Arc::as_ref)
    }
    fn by_subject(&mut self, group: bool) -> &mut HashMap<String, Vec<Arc<Binding>>> {
        if group { &mut self.groups } else { &mut self.users }
    }
    fn insert(&mut self, binding: Arc<Binding>) {
        for subject in &binding.subjects {
            let (group, key) = subject.key();
            let list = self.by_subject(group).entry(key).or_default();
            if !list.iter().any(|one| Arc::ptr_eq(one, &binding)) {
                list.push(binding.clone());
            }
        }
        self.bindings.insert(binding.name.clone(), binding);
    }
    fn remove(&mut self, name: &str) -> Option<Arc<Binding>> {
        let binding = self.bindings.remove(name)?;
        for subject in &binding.subjects {
            let (group, key) = subject.key();
            let by_subject = self.by_subject(group);
            if let Some(list) = by_subject.get_mut(&key) {
                list.retain(|one| !Arc::ptr_eq(one, &binding));
                if list.is_empty() {
                    by_subject.remove(&key);
                }
            }
        }
        Some(binding)
    }
}

#[derive(Debug, Default)]
struct Index {
    slots: Vec<RoleSlot>,
    free: Vec<Slot>,
    roles: HashMap<RoleKey, Slot>,
    cluster: Scope,
    namespaces: HashMap<String, Scope>,
}

impl Index {
    fn slot(&mut self, key: RoleKey) -> Slot {
        if let Some(slot) = self.roles.get(&key) {
            return *slot;
        }
        let role = RoleSlot {
            key: key.clone(),
            ..RoleSlot::default()
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = role;
                slot
            }
            None => {
                self.slots.push(role);
                self.slots.len() - 1
            }
        };
        self.roles.insert(key, slot);
        slot
    }
    /// Gives the slot back when nothing needs it any more.
    fn release(&mut self, slot: Slot) {
        let role = &mut self.slots[slot];
        if role.rules.is_none() && role.bindings == 0 {
            self.roles.remove(&role.key);
            *role = RoleSlot::default();
            self.free.push(slot);
        }
    }
    fn set_rules(&mut self, namespace: &str, name: &str, rules: Option<Vec<Rule>>) {
        let slot = self.slot((namespace.into(), name.into()));
        self.slots[slot].rules = rules;
        self.release(slot);
    }
    fn remove_binding(&mut self, namespace: &str, name: &str) {
        let removed = if namespace.is_empty() {
            self.cluster.remove(name)
        } else {
            let removed = self.namespaces.get_mut(namespace).and_then(|scope| scope.remove(name));
            if self
                .namespaces
                .get(namespace)
                .is_some_and(|scope| scope.bindings.is_empty())
            {
                self.namespaces.remove(namespace);
            }
            removed
        };
        if let Some(binding) = removed {
            self.slots[binding.role].bindings -= 1;
            self.release(binding.role);
        }
    }
    fn set_binding(&mut self, namespace: &str, name: &str, object: &Value) {
        self.remove_binding(namespace, name);
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let role_namespace = match text("/roleRef/kind") {
            "ClusterRole" => "",
            "Role" if !namespace.is_empty() => namespace,
            _ => return,
        };
        let role = self.slot((role_namespace.into(), text("/roleRef/name").into()));
        self.slots[role].bindings += 1;
        let subjects = object.get("subjects").and_then(Value::as_array).into_iter().flatten();
        let binding = Arc::new(Binding {
            namespace: namespace.into(),
            name: name.into(),
            role,
            subjects: subjects.filter_map(|one| Subject::from_value(one, namespace)).collect(),
        });
        if namespace.is_empty() {
            self.cluster.insert(binding);
        } else {
            self.namespaces.entry(namespace.into()).or_default().insert(binding);
        }
    }
    /// The bindings that apply to `user` for a request in `namespace`.
    fn bindings<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Binding> {
        let local = if namespace.is_empty() {
            None
        } else {
            self.namespaces.get(namespace)
        };
        self.cluster
            .of(user)
            .chain(local.into_iter().flat_map(|scope| scope.of(user)))
    }
}

/// The evaluator. Share it behind an `Arc`; feeding and asking may happen at once.
#[derive(Debug, Default)]
pub struct Rbac(RwLock<Index>);

impl Rbac {
    pub fn new() -> Self {
        Self::default()
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a created or changed object.
    pub fn apply(&self, kind: Kind, object: &Value) {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let name = text("/metadata/name");
        let namespace = text("/metadata/namespace");
        // Parsed before the lock is taken: readers never wait for it.
        let mut index;
        match kind {
            Kind::Role | Kind::ClusterRole => {
                let rules = Rule::all_of(object);
                let namespace = if kind == Kind::Role { namespace } else { "" };
                index = self.0.write().unwrap_or_else(PoisonError::into_inner);
                index.set_rules(namespace, name, Some(rules));
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                let namespace = if kind == Kind::RoleBinding { namespace } else { "" };
                index = self.0.write().unwrap_or_else(PoisonError::into_inner);
                index.set_binding(namespace, name, object);
            }
        }
    }

    /// Forgets a deleted object; `namespace` is empty for the cluster-wide kinds.
    pub fn remove(&self, kind: Kind, namespace: &str, name: &str) {
        let mut index = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match kind {
            Kind::Role => index.set_rules(namespace, name, None),
            Kind::ClusterRole => index.set_rules("", name, None),
            Kind::RoleBinding => index.remove_binding(namespace, name),
            Kind::ClusterRoleBinding => index.remove_binding("", name),
        }
    }

    /// Whether a rule allows it, or which roles could not be found. Allocates nothing where it allows.
    pub fn decide(&self, request: &Attributes<'_>) -> Decision {
        self.judge(request, |_, _| String::new())
    }

    /// The same, and which rule allows it.
    pub fn authorize(&self, request: &Attributes<'_>) -> Decision {
        self.judge(request, |binding, role| {
            let role_kind = if role.key.0.is_empty() { "ClusterRole" } else { "Role" };
            let (kind, name) = if binding.namespace.is_empty() {
                ("ClusterRoleBinding", binding.name.clone())
            } else {
                ("RoleBinding", format!("{}/{}", binding.name, binding.namespace))
            };
            let subject = binding.subjects.iter().find(|subject| subject.is(request.user));
            format!(
                "RBAC: allowed by {kind} {} of {role_kind} {} to {}",
                quoted(&name),
                quoted(&role.key.1),
                subject.map(Subject::describe).unwrap_or_default(),
            )
        })
    }

    fn judge(&self, request: &Attributes<'_>, explain: impl Fn(&Binding, &RoleSlot) -> String) -> Decision {
        if request.user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let index = self.index();
        let mut dangling = Vec::new();
        for binding in index.bindings(request.user, request.namespace) {
            let role = &index.slots[binding.role];
            match &role.rules {
                Some(rules) if rules.iter().any(|rule| rule.allows(request)) => {
                    return Decision::allow(explain(binding, role));
                }
                Some(_) => {}
                None => {
                    let kind = if role.key.0.is_empty() { "clusterrole" } else { "role" };
                    let text = format!("{kind}.rbac.authorization.k8s.io {} not found", quoted(&role.key.1));
                    if !dangling.contains(&text) {
                        dangling.push(text);
                    }
                }
            }
        }
        Decision::deny(match dangling.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// Every rule that applies to `user` in `namespace`, for reviews and escalation checks.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        let mut seen = Vec::new();
        let mut rules = Vec::new();
        for binding in index.bindings(user, namespace) {
            if !seen.contains(&binding.role) {
                seen.push(binding.role);
                rules.extend_from_slice(index.slots[binding.role].rules.as_deref().unwrap_or_default());
            }
        }
        rules
    }

    /// The rules of the role a binding in `namespace` refers to (`roleRef`), if it exists.
    pub fn rules_of(&self, role_kind: &str, namespace: &str, name: &str) -> Option<Vec<Rule>> {
        let namespace = match role_kind {
            "ClusterRole" => "",
            "Role" => namespace,
            _ => return None,
        };
        let index = self.index();
        let slot = index.roles.get(&(namespace.to_owned(), name.to_owned()))?;
        index.slots[*slot].rules.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn role(namespace: &str, name: &str, rules: Value) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name}, "rules": rules})
    }
    fn binding(namespace: &str, name: &str, role: (&str, &str), subjects: Value) -> Value {
        json!({
            "metadata": {"namespace": namespace, "name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1},
            "subjects": subjects,
        })
    }
    fn pods(verbs: &[&str]) -> Value {
        json!([{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}])
    }
    fn may(rbac: &Rbac, user: &UserInfo, verb: &str, namespace: &str) -> bool {
        let request = Attributes {
            namespace,
            ..Attributes::resource(user, verb, "", "pods")
        };
        let decision = rbac.authorize(&request);
        assert_eq!(decision.allowed, rbac.decide(&request).allowed);
        decision.allowed
    }

    #[test]
    fn bindings_grant_where_they_are() {
        let rbac = Rbac::new();
        rbac.apply(Kind::ClusterRole, &role("", "reader", pods(&["get"])));
        rbac.apply(Kind::Role, &role("web", "writer", pods(&["create"])));
        let user = json!([{"kind": "User", "name": "jane"}]);
        rbac.apply(
            Kind::ClusterRoleBinding,
            &binding(
                "",
                "all",
                ("ClusterRole", "reader"),
                json!([{"kind": "Group", "name": "devs"}]),
            ),
        );
        rbac.apply(
            Kind::RoleBinding,
            &binding("web", "w", ("Role", "writer"), user.clone()),
        );
        rbac.apply(Kind::RoleBinding, &binding("db", "r", ("ClusterRole", "reader"), json!([
            {"kind": "ServiceAccount", "name": "robot"}, {"kind": "ServiceAccount", "name": "robot", "namespace": "web"}])));
        let jane = UserInfo::component("jane");
        let dev = UserInfo::new("joe", ["devs"]);
        assert!(may(&rbac, &jane, "create", "web"));
        assert!(!may(&rbac, &jane, "create", "db") && !may(&rbac, &jane, "create", ""));
        assert!(may(&rbac, &dev, "get", "") && may(&rbac, &dev, "get", "web"));
        for namespace in ["db", "web"] {
            let robot = UserInfo::service_account(namespace, "robot", "");
            assert!(may(&rbac, &robot, "get", "db"));
            assert!(!may(&rbac, &robot, "get", "web"));
        }
        // A Role is nothing cluster-wide.
        rbac.apply(Kind::ClusterRoleBinding, &binding("", "bad", ("Role", "writer"), user));
        assert!(!may(&rbac, &jane, "create", "db"));
    }

    #[test]
    fn the_index_follows_the_objects() {
        let rbac = Rbac::new();
        let jane = UserInfo::component("jane");
        let subjects = json!([{"kind": "User", "name": "jane"}, {"kind": "User", "name": "jane"}]);
        rbac.apply(Kind::RoleBinding, &binding("web", "b", ("Role", "r"), subjects.clone()));
        let request = Attributes {
            namespace: "web",
            ..Attributes::resource(&jane, "get", "", "pods")
        };
        assert_eq!(
            rbac.authorize(&request),
            Decision::deny(r#"RBAC: role.rbac.authorization.k8s.io "r" not found"#)
        );
        rbac.apply(Kind::Role, &role("web", "r", pods(&["get"])));
        assert_eq!(
            rbac.authorize(&request),
            Decision::allow(r#"RBAC: allowed by RoleBinding "b/web" of Role "r" to User "jane""#)
        );
        rbac.apply(Kind::Role, &role("web", "r", pods(&["list"])));
        assert!(!may(&rbac, &jane, "get", "web") && may(&rbac, &jane, "list", "web"));
        rbac.apply(
            Kind::RoleBinding,
            &binding("web", "b", ("Role", "r"), json!([{"kind": "User", "name": "joe"}])),
        );
        assert!(!may(&rbac, &jane, "list", "web"));
        rbac.apply(Kind::RoleBinding, &binding("web", "b", ("Role", "r"), subjects));
        rbac.remove(Kind::Role, "web", "r");
        assert!(!may(&rbac, &jane, "list", "web"));
        rbac.remove(Kind::RoleBinding, "web", "b");
        rbac.remove(Kind::RoleBinding, "web", "b");
        let index = rbac.index();
        assert!(index.roles.is_empty() && index.namespaces.is_empty());
        assert_eq!(index.free.len(), index.slots.len());
    }

    #[test]
    fn masters_need_no_rule_and_names_are_exact() {
        let rbac = Rbac::new();
        assert!(may(&rbac, &UserInfo::new("x", [MASTERS]), "get", ""));
        assert!(!may(&rbac, &UserInfo::component(MASTERS), "get", ""));
    }

    /// Not a timing test: it would take minutes if every binding were walked for every request.
    #[test]
    fn other_peoples_bindings_cost_nothing() {
        let rbac = Rbac::new();
        rbac.apply(Kind::ClusterRole, &role("", "reader", pods(&["get"])));
        for n in 0..1000 {
            let subjects = json!([{"kind": "User", "name": format!("user-{n}")}]);
            rbac.apply(
                Kind::ClusterRoleBinding,
                &binding("", &format!("b-{n}"), ("ClusterRole", "reader"), subjects),
            );
        }
        let user = UserInfo::component("user-999");
        let request = Attributes::resource(&user, "get", "", "pods");
        let began = std::time::Instant::now();
        for _ in 0..10_000 {
            assert!(rbac.decide(&request).allowed);
        }
        println!("one decision among 1,000 bindings: {:?}", began.elapsed() / 10_000);
        assert_eq!(rbac.rules_for(&user, "").len(), 1);
        assert_eq!(rbac.rules_of("ClusterRole", "x", "reader").map(|r| r.len()), Some(1));
    }
}
