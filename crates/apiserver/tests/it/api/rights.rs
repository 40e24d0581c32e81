//! Who may do what, and tokens.

use serde_json::json;

use super::{CM, PODS, with_default_account};
use crate::common::{Api, config_map, pod};

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_asked_for() {
    let api = Api::start().await;
    let nobody = api
        .server
        .plane
        .connect(sampan_auth::UserInfo::new("jane", ["system:authenticated"]));
    let api = Api {
        service: nobody,
        server: api.server,
    };
    api.get(PODS).await.refused(
        403,
        "Forbidden",
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
    );
    assert_eq!(api.get("/version").await.code, 200);
    let mine = api
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        )
        .await
        .ok();
    assert_eq!(mine["status"]["allowed"], false);
    // Who may patch may not therefore create.
    let admin = Api {
        service: api.server.connect(),
        server: api.server,
    };
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "patcher"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]});
    admin.post(&format!("{roles}/roles"), role).await.ok();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "patcher"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "patcher"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    admin.post(&format!("{roles}/rolebindings"), binding).await.ok();
    let jane = admin
        .server
        .plane
        .connect(sampan_auth::UserInfo::new("jane", ["system:authenticated"]));
    let api = Api {
        service: jane,
        server: admin.server,
    };
    let apply = |name: &str| (format!("{CM}/{name}?fieldManager=jane"), config_map(name).to_string());
    let (path, body) = apply("new");
    api.send("PATCH", &path, "application/apply-patch+yaml", body).await.refused(
        403,
        "Forbidden",
        "configmaps \"new\" is forbidden: User \"jane\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\"",
    );
    let admin = Api {
        service: api.server.connect(),
        server: api.server,
    };
    admin.post(CM, config_map("old")).await.ok();
    let jane = admin
        .server
        .plane
        .connect(sampan_auth::UserInfo::new("jane", ["system:authenticated"]));
    let api = Api {
        service: jane,
        server: admin.server,
    };
    let (path, body) = apply("old");
    assert_eq!(
        api.send("PATCH", &path, "application/apply-patch+yaml", body)
            .await
            .code,
        200
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregated_roles_follow_their_parts() {
    let api = Api::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let list = api.get(roles).await.ok();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = api
        .watch(&format!(
            "{roles}?watch=1&fieldSelector=metadata.name%3Dedit&resourceVersion={version}"
        ))
        .await;
    let part = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "boats", "labels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["boats"], "verbs": ["get"]}]});
    api.post(roles, part).await.ok();
    let event = events.next().await.unwrap();
    assert!(event["object"]["rules"].to_string().contains("boats"));
    api.delete(&format!("{roles}/boats")).await.ok();
    let event = events.next().await.unwrap();
    assert!(!event["object"]["rules"].to_string().contains("boats"));
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_made_reviewed_and_bound() {
    let api = with_default_account().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let review = async |token: &str| {
        api.post(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            json!({"spec": {"token": token}}),
        )
        .await
        .ok()["status"]
            .clone()
    };
    api.post(PODS, pod("p")).await.ok();
    let request = json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}});
    let made = api.post(path, request).await.ok();
    let token = made["status"]["token"].as_str().unwrap();
    let known = review(token).await;
    assert_eq!(
        (&known["authenticated"], known["user"]["username"].as_str()),
        (&json!(true), Some("system:serviceaccount:default:default"))
    );
    assert_eq!(
        known["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    api.delete(&format!("{PODS}/p")).await.ok();
    assert_ne!(
        review(token).await["authenticated"],
        true,
        "the token ends with its Pod"
    );
    assert_ne!(review("nonsense").await["authenticated"], true);
    let short = api.post(path, json!({"spec": {"expirationSeconds": 60}})).await;
    assert!(
        short.code == 422
            && short
                .message()
                .contains("may not specify a duration less than 10 minutes"),
        "{}",
        short.body
    );
    let other = api
        .post(
            path,
            json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "none"}}}),
        )
        .await;
    assert_eq!(other.code, 404);
    api.server.stop().await;
}
