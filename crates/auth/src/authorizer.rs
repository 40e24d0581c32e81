//! The authorizers in a row: the node rules, then RBAC. The first that allows decides.

use std::sync::Arc;

use serde_json::Value;

use crate::attributes::{Attributes, Decision};
use crate::node::NodeGraph;
use crate::rbac::Rbac;
use crate::rule::{self, Rule};
use crate::user::{MASTERS, UserInfo};

/// Decides whether a user may. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Authorizer {
    pub nodes: Arc<NodeGraph>,
    pub rbac: Arc<Rbac>,
}

impl Authorizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it is allowed; for the way of every request.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        request.user.in_group(MASTERS)
            || (request.user.is_node() && self.nodes.authorize(request).allowed)
            || self.rbac.allows(request)
    }

    /// Whether it is allowed, and why or why not; for reviews and refusals.
    pub fn authorize(&self, request: &Attributes<'_>) -> Decision {
        if request.user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let by_node = self.nodes.authorize(request);
        if by_node.allowed {
            return by_node;
        }
        let by_rbac = self.rbac.authorize(request);
        if by_rbac.allowed {
            return by_rbac;
        }
        let reasons = [by_node.reason, by_rbac.reason];
        let reasons: Vec<_> = reasons.into_iter().filter(|reason| !reason.is_empty()).collect();
        Decision::deny(reasons.join("\n"))
    }

    /// The `why` of a Forbidden status if it is not allowed.
    pub fn check(&self, request: &Attributes<'_>) -> Result<(), String> {
        if self.allows(request) {
            return Ok(());
        }
        Err(request.forbidden(&self.authorize(request).reason))
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
        let all = || vec!["*".to_owned()];
        let everything = [
            Rule {
                verbs: all(),
                api_groups: all(),
                resources: all(),
                ..Rule::default()
            },
            Rule {
                verbs: all(),
                non_resource_urls: all(),
                ..Rule::default()
            },
        ];
        self.may_define_role(user, plural, namespace, name, &everything)
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
