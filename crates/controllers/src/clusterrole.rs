//! ClusterRoles made of others: their rules are the rules of all roles that their aggregation rule selects.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use sampan_client::{Informer, Key, WorkQueue, is_conflict, or_absent};
use serde_json::json;

use crate::{Context, SyncError};

/// Who the rules belong to, as `managedFields` has it.
const MANAGER: &str = "clusterrole-aggregation-controller";

pub(crate) fn start(context: Context) {
    let roles = context.informers.of::<ClusterRole>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let (changed, known) = (queue.clone(), roles.clone());
    roles.on_change(move |_| {
        // Any role may be part of any other: there are few that are made of others, and they are cheap to check.
        for role in known.list() {
            if role.aggregation_rule.is_some() {
                changed.add(Key::of(role.as_ref()));
            }
        }
    });
    let ready = {
        let roles = roles.clone();
        async move { roles.synced().await }
    };
    let state = Arc::new((context.client.clone(), roles));
    context.run(&queue, ready, move |key| {
        let state = Arc::clone(&state);
        async move { sync(&state.0, &state.1, &key).await }
    });
}

async fn sync(client: &kube::Client, roles: &Informer<ClusterRole>, key: &Key) -> Result<(), SyncError> {
    let Some(role) = roles.get_key(key) else {
        return Ok(());
    };
    let Some(wanted) = aggregate(&role, &roles.list()) else {
        return Ok(());
    };
    if role.rules.as_deref().unwrap_or_default() == wanted {
        return Ok(());
    }
    let api: Api<ClusterRole> = Api::all(client.clone());
    let applied = Patch::Apply(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        // Without the UID a role that has gone meanwhile would be made anew.
        "metadata": {"name": key.name, "uid": role.metadata.uid}, "rules": wanted,
    }));
    match api
        .patch(&key.name, &PatchParams::apply(MANAGER).force(), &applied)
        .await
    {
        // An API server that knows no apply.
        Err(kube::Error::Api(status)) if status.code == 415 => {
            let patch = Patch::Merge(json!({
                "metadata": {"resourceVersion": role.metadata.resource_version},
                "rules": wanted,
            }));
            let params = PatchParams {
                field_manager: Some(MANAGER.into()),
                ..PatchParams::default()
            };
            or_absent(api.patch(&key.name, &params, &patch).await)?;
        }
        // It has gone, or another has its name: that comes as a change.
        Err(error) if is_conflict(&error) => {}
        applied => {
            or_absent(applied)?;
        }
    }
    Ok(())
}

/// The rules of `role` as its aggregation rule wants them, each once, in the order of the roles' names.
fn aggregate(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors: Vec<Selector> = role
        .aggregation_rule
        .as_ref()?
        .cluster_role_selectors
        .iter()
        .flatten()
        .filter_map(|selector| Selector::try_from(selector.clone()).ok())
        .collect();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in &selectors {
        for other in all {
            if other.metadata.name == role.metadata.name || !selector.matches(other.labels()) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use http_body_util::{BodyExt, Full};
    use sampan_client::Informers;
    use sampan_client::testing::{FakeApi, eventually};
    use sampan_tasks::Tasks;
    use serde_json::Value;

    use super::*;
    use crate::testing::Cluster;

    #[tokio::test(start_paused = true)]
    async fn rules_follow_the_parts() {
        let cluster = Cluster::start(&["clusterrole-aggregation-controller"]);
        let api = &cluster.api;
        let make = |value: Value| api.create::<ClusterRole>(&serde_json::from_value(value).unwrap());
        make(json!({
            "metadata": {"name": "all"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]},
            "rules": null,
        }));
        let part = |name: &str, resource: &str| {
            json!({
                "metadata": {"name": name, "labels": {"to": "all"}},
                "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}],
            })
        };
        make(part("b", "pods"));
        make(part("a", "secrets"));
        make(part("c", "pods"));
        let resources = || {
            let role: ClusterRole = api.get("", "all").unwrap();
            let rules = role.rules.unwrap_or_default();
            rules
                .into_iter()
                .flat_map(|rule| rule.resources.unwrap_or_default())
                .collect::<Vec<_>>()
        };
        eventually("both, once", || async {
            (resources() == ["secrets", "pods"]).then_some(())
        })
        .await;
        api.remove::<ClusterRole>("", "a");
        eventually("one is gone", || async { (resources() == ["pods"]).then_some(()) }).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_that_has_gone_is_not_made_anew() {
        let api = FakeApi::new();
        let make = |value: Value| api.create::<ClusterRole>(&serde_json::from_value(value).unwrap());
        let role = make(json!({"metadata": {"name": "all"}, "rules": null,
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}}));
        make(json!({"metadata": {"name": "a", "labels": {"to": "all"}},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}));
        let tasks = Tasks::new();
        let roles = Informers::new(api.client("cache"), &tasks).of::<ClusterRole>();
        roles.synced().await;
        // What is applied, answered as where the role is not there any more.
        let applied: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = Arc::clone(&applied);
        let client = sampan_client::connect(tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let seen = Arc::clone(&seen);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                seen.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409,
                    "reason": "Conflict", "message": "there is no such object"});
                let answer = http::Response::builder()
                    .status(409)
                    .header("content-type", "application/json");
                let body = Full::new(bytes::Bytes::from(status.to_string()));
                Ok::<_, Infallible>(answer.body(body.boxed_unsync()).unwrap())
            }
        }));
        sync(&client, &roles, &Key::new("", "all")).await.unwrap();
        let applied = applied.lock().unwrap();
        assert_eq!(applied.len(), 1);
        assert_eq!(applied[0]["metadata"]["uid"].as_str(), role.uid().as_deref());
    }
}
