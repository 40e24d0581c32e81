//! LimitRanges and ResourceQuotas at admission, on a whole control plane. No controllers run here, so the tests write the
//! quotas' status themselves, as the controller would.

use crate::common::{Api, pod};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

async fn account(api: &Api) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
}

async fn quota(api: &Api, name: &str, hard: Value, used: Value) {
    let quota =
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}});
    let mut made = api.post(QUOTAS, quota).await.ok();
    made["status"] = json!({"hard": hard, "used": used});
    api.put(&format!("{QUOTAS}/{name}/status"), made).await.ok();
}

async fn used(api: &Api, name: &str) -> Value {
    api.get(&format!("{QUOTAS}/{name}")).await.ok()["status"]["used"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creates_never_overrun_a_quota_and_are_charged_together() {
    let api = Api::start().await;
    account(&api).await;
    quota(&api, "small", json!({"pods": "50"}), json!({"pods": "0"})).await;
    quota(&api, "large", json!({"count/pods": "1k"}), json!({"count/pods": "0"})).await;
    let before = api.get(&format!("{QUOTAS}/small")).await.ok();
    let names: Vec<String> = (0..200).map(|number| format!("p-{number}")).collect();
    let answers = futures::future::join_all(names.iter().map(|name| api.post(PODS, pod(name)))).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.code != 201).collect();
    assert_eq!(answers.len() - refused.len(), 50);
    for answer in refused {
        assert_eq!(answer.code, 403);
        assert!(
            answer
                .message()
                .ends_with("exceeded quota: small, requested: pods=1, used: pods=50, limited: pods=50"),
            "{}",
            answer.message()
        );
    }
    assert_eq!(used(&api, "small").await, json!({"pods": "50"}));
    assert_eq!(used(&api, "large").await, json!({"count/pods": "50"}));
    let list = api.get(PODS).await.ok();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(50));
    let revision = |quota: &Value| -> u64 {
        let text = quota["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        text.parse().expect("a revision")
    };
    // 50 Pods and two quotas: were every Pod charged alone there would be 150 writes.
    let after = revision(&api.get(&format!("{QUOTAS}/small")).await.ok());
    assert!(after - revision(&before) < 120, "charged one by one");
}

#[tokio::test]
async fn what_is_charged_and_what_is_not() {
    let api = Api::start().await;
    account(&api).await;
    let hard = json!({"configmaps": "1", "requests.cpu": "1", "services.nodeports": "1"});
    let none = json!({"configmaps": "0", "requests.cpu": "0", "services.nodeports": "0"});
    quota(&api, "q", hard, none).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let dry = api
        .post(&format!("{maps}?dryRun=All"), crate::common::config_map("a"))
        .await;
    assert_eq!(dry.code, 201);
    assert_eq!(used(&api, "q").await["configmaps"], "0");
    api.post(maps, crate::common::config_map("a")).await.ok();
    for path in [maps.to_owned(), format!("{maps}?dryRun=All")] {
        api.post(&path, crate::common::config_map("b")).await.refused(
            403,
            "Forbidden",
            "configmaps \"b\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1",
        );
    }
    api.post(PODS, pod("p")).await.refused(
        403,
        "Forbidden",
        "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: main",
    );
    let services = "/api/v1/namespaces/default/services";
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "ClusterIP", "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}});
    api.post(services, service.clone()).await.ok();
    service["spec"]["type"] = "NodePort".into();
    api.put(&format!("{services}/s"), service.clone()).await.refused(
        403,
        "Forbidden",
        "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1",
    );
    service["spec"]["ports"] = json!([{"name": "a", "port": 1}]);
    api.put(&format!("{services}/s"), service).await.ok();
    assert_eq!(
        used(&api, "q").await,
        json!({"configmaps": "1", "requests.cpu": "0", "services.nodeports": "1"})
    );
}

#[tokio::test]
async fn limits_default_and_bound() {
    let api = Api::start().await;
    account(&api).await;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "r"}, "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}}]}});
    api.post("/api/v1/namespaces/default/limitranges", range).await.ok();
    let made = api.post(PODS, pod("p")).await.ok();
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
    );
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container main; cpu limit for container main"
    );
    let mut large = pod("large");
    large["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    api.post(PODS, large).await.refused(
        403,
        "Forbidden",
        "pods \"large\" is forbidden: maximum cpu usage per Container is 1, but limit is 2",
    );
}
