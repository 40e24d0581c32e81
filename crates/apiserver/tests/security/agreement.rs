//! What `kubectl auth can-i --list` is told agrees with what is answered: for users of several roles, over every endpoint
//! and verb of discovery.

use crate::common::Api;
use crate::every_endpoint::{Needs, ask, discovered};
use serde_json::{Value, json};

/// Whether a list of rules allows all that a request needs.
fn listed(status: &Value, needs: &Needs) -> bool {
    let Needs::Resource {
        verbs,
        group,
        resource,
        name,
        ..
    } = needs
    else {
        return false;
    };
    let has = |rule: &Value, field: &str, wanted: &str| {
        let list = rule[field].as_array();
        list.is_some_and(|list| list.iter().any(|item| item == "*" || item == wanted))
    };
    let part = resource.split_once('/').map(|(_, part)| format!("*/{part}"));
    verbs.iter().all(|verb| {
        status["resourceRules"].as_array().unwrap().iter().any(|rule| {
            let names = rule["resourceNames"].as_array();
            let named = names.is_none_or(|names| names.is_empty() || names.iter().any(|given| given == name.as_str()));
            let resources =
                has(rule, "resources", resource) || part.as_ref().is_some_and(|part| has(rule, "resources", part));
            has(rule, "verbs", verb) && has(rule, "apiGroups", group) && resources && named
        })
    })
}

#[tokio::test]
async fn what_is_listed_is_what_is_answered() {
    let api = Api::start().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["nothing"], "verbs": ["get", "delete"]},
        {"apiGroups": ["apps"], "resources": ["*"], "verbs": ["get", "list"]},
        {"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["update"]},
        {"apiGroups": ["batch", "policy"], "resources": ["jobs", "poddisruptionbudgets", "jobs/status"], "verbs": ["patch", "watch"]}]);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "odd"}, "rules": rules});
    api.post(&format!("{rbac}/namespaces/default/roles"), role).await.ok();
    let (mut compared, mut allowed) = (0, 0);
    for (name, kind, role, everywhere) in [
        ("viewer", "ClusterRole", "view", false),
        ("editor", "ClusterRole", "edit", false),
        ("owner", "ClusterRole", "admin", false),
        ("odd", "Role", "odd", false),
        ("reader", "ClusterRole", "view", true),
        ("nobody", "ClusterRole", "no-such-role", false),
        ("root", "ClusterRole", "cluster-admin", true),
    ] {
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": if everywhere { "ClusterRoleBinding" } else { "RoleBinding" }, "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]});
        let path = match everywhere {
            true => format!("{rbac}/clusterrolebindings"),
            false => format!("{rbac}/namespaces/default/rolebindings"),
        };
        api.post(&path, binding).await.ok();
        let user = api.transport(name, &["system:authenticated"]);
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": "default"}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
        let (code, answer) = crate::attempts::send(&user, "POST", path, &[], review).await;
        assert_eq!(
            (code, &answer["status"]["incomplete"]),
            (201, &json!(false)),
            "{answer}"
        );
        for (what, requests) in discovered(&api).await {
            for request in requests {
                let Needs::Resource { namespace, .. } = &request.needs else {
                    continue;
                };
                if request.method == "head" {
                    continue; // refused without words
                }
                let (code, message) = ask(&user, &request).await;
                let refused = code == 403 && message.contains(&format!("User {name:?} cannot "));
                // The list is of one namespace: what is asked of all, or of none, takes a right that is not bound to it.
                let clusterwide = everywhere
                    || matches!(
                        what.split('/').next_back(),
                        Some("selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "selfsubjectreviews")
                    );
                let expected = listed(&answer["status"], &request.needs) && (namespace == "default" || clusterwide);
                assert_eq!(
                    !refused, expected,
                    "{name}: {what}: {} {}: {code} {message}",
                    request.method, request.path
                );
                compared += 1;
                allowed += usize::from(!refused);
            }
        }
    }
    println!("{compared} answers agree with what is listed, {allowed} of them allowed");
    assert!(allowed > 500 && compared > 5000);
}
