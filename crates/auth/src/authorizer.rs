//! The authorizers in a row: by default the node rules, then RBAC. The first that allows or forbids decides.
//!
//! The row can be replaced while it is in use: a request sees the old one or the new one, whole. Members of
//! `system:masters` are allowed before any of them is asked, as upstream has it.
//!
//! Most rows decide from memory. A row with a [`Remote`] in it has to wait: requests do so with
//! [`Authorizer::decide`]; code that cannot wait (CEL's authorizer, escalation checks) asks [`Authorizer::authorize`],
//! which blocks its thread where the remote one permits that.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use crate::attributes::{Attributes, Decision};
use crate::node::NodeGraph;
use crate::rbac::Rbac;
use crate::rule::{self, Rule};
use crate::user::{MASTERS, UserInfo};

/// An authorizer that is asked over a network.
pub trait Remote: Send + Sync + std::fmt::Debug {
    fn decide<'a>(&'a self, request: &'a Attributes<'a>) -> Pin<Box<dyn Future<Output = Decision> + Send + 'a>>;
    /// The same from code that cannot wait. Where that is impossible the answer is no.
    fn decide_now(&self, request: &Attributes<'_>) -> Decision;
}

/// What one authorizer of the row is.
#[derive(Clone, Debug)]
pub enum Step {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    Remote(Arc<dyn Remote>),
}

/// Which decisions are explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reasons {
    /// For reviews and the audit log.
    All,
    /// For everybody else.
    OfRefusals,
}

/// One authorizer of the row, and how often it decided.
#[derive(Debug)]
struct Stage {
    name: String,
    step: Step,
    allowed: AtomicU64,
    denied: AtomicU64,
}

impl Step {
    /// As configurations and metrics call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Step::Node => "Node",
            Step::Rbac => "RBAC",
            Step::AlwaysAllow => "AlwaysAllow",
            Step::AlwaysDeny => "AlwaysDeny",
            Step::Remote(_) => "Webhook",
        }
    }
}

impl Stage {
    fn new(name: String, step: Step) -> Self {
        Stage {
            name,
            step,
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
        }
    }
    fn count(&self, decision: &Decision) {
        if decision.allowed {
            self.allowed.fetch_add(1, Ordering::Relaxed);
        } else if decision.denied {
            self.denied.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Decides whether a user may. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authorizer {
    pub nodes: Arc<NodeGraph>,
    pub rbac: Arc<Rbac>,
    row: Arc<RwLock<Arc<[Stage]>>>,
}

impl Default for Authorizer {
    fn default() -> Self {
        let stages = [
            Stage::new("node".into(), Step::Node),
            Stage::new("rbac".into(), Step::Rbac),
        ];
        Authorizer {
            nodes: Arc::default(),
            rbac: Arc::default(),
            row: Arc::new(RwLock::new(Arc::new(stages))),
        }
    }
}

/// What the authorizers that did not decide had to say.
#[derive(Default)]
struct Said {
    reasons: Vec<String>,
    errors: Vec<String>,
}

impl Said {
    /// The decision, if this one decides.
    fn hear(&mut self, decision: Decision) -> Option<Decision> {
        let keep = |list: &mut Vec<String>, text: String| {
            if !text.is_empty() {
                list.push(text);
            }
        };
        if decision.allowed || decision.denied {
            return Some(decision);
        }
        keep(&mut self.reasons, decision.reason);
        keep(&mut self.errors, decision.error);
        None
    }
    fn nobody_decided(self) -> Decision {
        Decision {
            reason: self.reasons.join("\n"),
            error: match self.errors.as_slice() {
                [] => String::new(),
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            },
            ..Decision::default()
        }
    }
}

impl Authorizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the row of authorizers.
    pub fn set(&self, steps: impl IntoIterator<Item = (String, Step)>) {
        let stages: Arc<[Stage]> = steps.into_iter().map(|(name, step)| Stage::new(name, step)).collect();
        *self.row.write().unwrap_or_else(PoisonError::into_inner) = stages;
    }

    fn row(&self) -> Arc<[Stage]> {
        self.row.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether an authorizer of the row is of this kind.
    pub fn has(&self, kind: &str) -> bool {
        self.row().iter().any(|stage| stage.step.kind() == kind)
    }

    /// Type, name, and how often it allowed and forbade, of each authorizer.
    pub fn counts(&self) -> Vec<(&'static str, String, u64, u64)> {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let row = self.row();
        row.iter()
            .map(|stage| {
                (
                    stage.step.kind(),
                    stage.name.clone(),
                    read(&stage.allowed),
                    read(&stage.denied),
                )
            })
            .collect()
    }

    /// What an authorizer says that need not wait; `None`: it must.
    fn local(&self, step: &Step, request: &Attributes<'_>, reasons: Reasons) -> Option<Decision> {
        Some(match step {
            Step::Node if request.user.is_node() => self.nodes.authorize(request),
            Step::Node => Decision::default(),
            Step::Rbac if reasons == Reasons::All => self.rbac.authorize(request),
            Step::Rbac => self.rbac.decide(request),
            Step::AlwaysAllow => Decision::allow(""),
            Step::AlwaysDeny => Decision::deny("Everything is forbidden."),
            Step::Remote(_) => return None,
        })
    }

    /// Asks each authorizer once, until one decides; for code that cannot wait.
    fn now(&self, request: &Attributes<'_>, reasons: Reasons) -> Decision {
        if request.user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let mut said = Said::default();
        for stage in self.row().iter() {
            let decision = match &stage.step {
                Step::Remote(remote) => remote.decide_now(request),
                step => self.local(step, request, reasons).unwrap_or_default(),
            };
            stage.count(&decision);
            if let Some(decision) = said.hear(decision) {
                return decision;
            }
        }
        said.nobody_decided()
    }

    /// Whether it is allowed, and why or why not; from code that cannot wait.
    pub fn authorize(&self, request: &Attributes<'_>) -> Decision {
        self.now(request, Reasons::All)
    }

    /// Whether it is allowed, waiting for whom there is to wait for; for the way of every request.
    pub async fn decide(&self, request: &Attributes<'_>) -> Decision {
        self.decide_with(request, Reasons::OfRefusals).await
    }

    /// The same with as many reasons as are wanted. Each authorizer is asked once at most; without [`Reasons::All`]
    /// what RBAC allows costs no allocation.
    pub async fn decide_with(&self, request: &Attributes<'_>, reasons: Reasons) -> Decision {
        if request.user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let mut said = Said::default();
        for stage in self.row().iter() {
            let decision = match &stage.step {
                Step::Remote(remote) => remote.decide(request).await,
                step => self.local(step, request, reasons).unwrap_or_default(),
            };
            stage.count(&decision);
            if let Some(decision) = said.hear(decision) {
                return decision;
            }
        }
        said.nobody_decided()
    }

    /// Whether it is allowed, from code that cannot wait.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        self.now(request, Reasons::OfRefusals).allowed
    }

    /// The `why` of a Forbidden status if it is not allowed; from code that cannot wait.
    pub fn check(&self, request: &Attributes<'_>) -> Result<(), String> {
        self.now(request, Reasons::OfRefusals).into_permission(request)
    }

    /// The `why` of a Forbidden status if it is not allowed.
    pub async fn permit(&self, request: &Attributes<'_>) -> Result<(), String> {
        self.decide(request).await.into_permission(request)
    }

    /// The rules of `user` in `namespace`, and why they are not all there are.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut missing) = (Vec::new(), Vec::new());
        for stage in self.row().iter() {
            match &stage.step {
                Step::Node if user.is_node() => {
                    missing.push("node authorizer does not support user rule resolution".to_owned());
                }
                Step::Node | Step::AlwaysDeny => {}
                Step::Rbac => rules.extend(self.rbac.rules_for(user, namespace)),
                Step::AlwaysAllow => rules.extend(Rule::everything()),
                Step::Remote(_) => missing.push("webhook authorizer does not support user rule resolution".to_owned()),
            }
        }
        (rules, missing)
    }

    /// Whether `user` may write this Role or ClusterRole: it has all its rules, or may `escalate` it. What an
    /// aggregated role will hold cannot be known, so that takes the right to everything.
    pub fn may_write_role(&self, user: &UserInfo, plural: &str, namespace: &str, role: &Value) -> Result<(), String> {
        let name = role
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        self.may_define_role(user, plural, namespace, name, &Rule::all_of(role))?;
        if role.get("aggregationRule").is_none_or(Value::is_null) {
            return Ok(());
        }
        self.may_define_role(user, plural, namespace, name, &Rule::everything())
            .map_err(|_| "must have cluster-admin privileges to use the aggregationRule".into())
    }

    /// Whether `user` may write a role with `wanted` rules: it has them all, or may `escalate` that role.
    /// Use [`Authorizer::may_write_role`] for a whole role.
    pub fn may_define_role(
        &self,
        user: &UserInfo,
        plural: &str,
        namespace: &str,
        name: &str,
        wanted: &[Rule],
    ) -> Result<(), String> {
        let escalate = Attributes {
            version: "*",
            namespace,
            name,
            ..Attributes::resource(user, "escalate", "rbac.authorization.k8s.io", plural)
        };
        self.may_grant(user, namespace, wanted, &escalate)
    }

    /// Whether `user` may write a binding in `namespace` (empty: cluster-wide) to a role: it has all its rules, or may `bind` it.
    /// `Ok` also when the role does not exist and the user may bind it; otherwise a missing role is refused.
    pub fn may_bind(&self, user: &UserInfo, namespace: &str, role_kind: &str, role_name: &str) -> Result<(), String> {
        let plural = if role_kind == "Role" { "roles" } else { "clusterroles" };
        let bind = Attributes {
            version: "*",
            namespace,
            name: role_name,
            ..Attributes::resource(user, "bind", "rbac.authorization.k8s.io", plural)
        };
        if self.allows(&bind) {
            return Ok(());
        }
        let wanted = self.rbac.rules_of(role_kind, namespace, role_name).ok_or_else(|| {
            format!(
                "{}.rbac.authorization.k8s.io {} not found",
                role_kind.to_ascii_lowercase(),
                crate::attributes::quoted(role_name)
            )
        })?;
        self.may_grant(user, namespace, &wanted, &bind)
    }

    fn may_grant(
        &self,
        user: &UserInfo,
        namespace: &str,
        wanted: &[Rule],
        instead: &Attributes<'_>,
    ) -> Result<(), String> {
        if self.allows(instead) {
            return Ok(());
        }
        let own = self.rbac.rules_for(user, namespace);
        rule::escalation(user, &own, wanted).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;

    fn cluster() -> Authorizer {
        let authorizer = Authorizer::new();
        for (kind, object) in policy::objects() {
            authorizer.rbac.apply(kind, &object);
        }
        authorizer
    }

    #[test]
    fn a_new_cluster_lets_its_parts_do_their_work_and_no_more() {
        let cluster = cluster();
        let deployment = UserInfo::controller("deployment-controller");
        let scheduler = UserInfo::component("system:kube-scheduler");
        let node = UserInfo::node("n1");
        let robot = UserInfo::service_account("web", "robot", "");
        for (user, verb, group, resource, sub, allowed) in [
            (&deployment, "create", "apps", "replicasets", "", true),
            (&deployment, "create", "", "pods", "", false),
            (&scheduler, "create", "", "pods", "binding", true),
            (&scheduler, "get", "", "secrets", "", false),
            (&node, "create", "", "nodes", "", true),
            (&node, "list", "", "secrets", "", false),
            (
                &robot,
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews",
                "",
                true,
            ),
            (&robot, "list", "", "pods", "", false),
            (&UserInfo::new("a", [MASTERS]), "x", "y", "z", "", true),
        ] {
            let request = Attributes {
                namespace: "web",
                subresource: sub,
                ..Attributes::resource(user, verb, group, resource)
            };
            assert_eq!(cluster.allows(&request), allowed, "{request:?}");
            assert_eq!(cluster.authorize(&request).allowed, allowed, "{request:?}");
        }
        let nobody = UserInfo::anonymous();
        assert!(cluster.allows(&Attributes::path(&nobody, "get", "/readyz")));
        let refused = cluster
            .check(&Attributes::path(&nobody, "get", "/metrics"))
            .unwrap_err();
        assert_eq!(refused, r#"User "system:anonymous" cannot get path "/metrics""#);
    }

    /// Says one thing to everybody, at once or after having waited.
    #[derive(Debug)]
    struct Says(Decision);

    impl Remote for Says {
        fn decide<'a>(&'a self, _: &'a Attributes<'a>) -> Pin<Box<dyn Future<Output = Decision> + Send + 'a>> {
            Box::pin(std::future::ready(self.0.clone()))
        }
        fn decide_now(&self, _: &Attributes<'_>) -> Decision {
            self.0.clone()
        }
    }

    #[test]
    fn the_first_that_decides_decides() {
        let cluster = cluster();
        let remote = |decision: Decision| ("hook".to_owned(), Step::Remote(Arc::new(Says(decision))));
        let step = |step: Step| (step.kind().to_lowercase(), step);
        let jane = UserInfo::component("jane");
        let asked = Attributes::resource(&jane, "list", "", "pods");
        let may = Attributes::path(&jane, "get", "/version");
        let ask = |request: &Attributes<'_>| {
            let now = cluster.authorize(request);
            let waited = crate::authentication::tests::now(cluster.decide(request));
            assert_eq!((now.allowed, now.denied), (waited.allowed, waited.denied));
            assert_eq!(now.allowed, cluster.allows(request));
            waited
        };
        for (steps, pods, version) in [
            (vec![step(Step::Node), step(Step::Rbac)], false, true),
            (vec![step(Step::AlwaysAllow)], true, true),
            (vec![step(Step::AlwaysDeny), step(Step::Rbac)], false, true),
            (vec![remote(Decision::allow("so")), step(Step::Rbac)], true, true),
            (
                vec![remote(Decision::forbid("no")), step(Step::AlwaysAllow)],
                false,
                false,
            ),
            (vec![step(Step::Rbac), remote(Decision::forbid("no"))], false, true),
            (vec![remote(Decision::deny("unsure")), step(Step::Rbac)], false, true),
        ] {
            cluster.set(steps);
            assert_eq!(
                (ask(&asked).allowed, ask(&may).allowed),
                (pods, version),
                "{:?}",
                cluster.row()
            );
            let master = UserInfo::new("root", [MASTERS]);
            assert!(ask(&Attributes::resource(&master, "x", "y", "z")).allowed);
        }
        assert_eq!(ask(&asked).reason, "unsure");
        cluster.set([remote(Decision::forbid("never")), step(Step::AlwaysAllow)]);
        assert!(cluster.check(&asked).unwrap_err().ends_with(": never"));
        assert_eq!(
            cluster.rules_for(&jane, "x").1,
            ["webhook authorizer does not support user rule resolution"]
        );
        // Also for its reason it is asked once.
        assert_eq!(cluster.counts()[0].3, 1);
    }

    #[test]
    fn an_admin_of_a_namespace_grants_what_it_has() {
        let cluster = cluster();
        let binding = serde_json::json!({
            "metadata": {"namespace": "web", "name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "admin"},
            "subjects": [{"kind": "User", "name": "jane"}],
        });
        cluster.rbac.apply(crate::Kind::RoleBinding, &binding);
        let jane = UserInfo::component("jane");
        let grants = |role: Value| cluster.may_define_role(&jane, "roles", "web", "r", &Rule::all_of(&role));
        let role = |verb: &str, resource: &str| serde_json::json!({"rules": [{"verbs": [verb], "apiGroups": [""], "resources": [resource]}]});
        assert_eq!(grants(role("delete", "pods")), Ok(()));
        assert!(
            grants(role("delete", "nodes"))
                .unwrap_err()
                .contains("not currently held")
        );
        assert_eq!(cluster.may_bind(&jane, "web", "ClusterRole", "view"), Ok(()));
        assert!(cluster.may_bind(&jane, "web", "ClusterRole", "cluster-admin").is_err());
        assert!(cluster.may_bind(&jane, "", "ClusterRole", "view").is_err());
        assert!(
            cluster
                .may_bind(&jane, "web", "Role", "none")
                .unwrap_err()
                .contains("not found")
        );
        // Whoever could aggregate could gather any right.
        let mut gathering = role("delete", "pods");
        gathering["aggregationRule"] = serde_json::json!({"clusterRoleSelectors": []});
        let write = |user: &UserInfo| cluster.may_write_role(user, "clusterroles", "web", &gathering);
        assert!(write(&jane).unwrap_err().contains("must have cluster-admin privileges"));
        assert_eq!(
            cluster.may_write_role(&jane, "roles", "web", &role("delete", "pods")),
            Ok(())
        );
        let root = UserInfo::new("root", [MASTERS]);
        assert_eq!(write(&root), Ok(()));
        assert_eq!(cluster.may_bind(&root, "", "ClusterRole", "none"), Ok(()));
    }
}
