//! PodDisruptionBudgets: how many of the selected Pods may be evicted now.
//!
//! The eviction API decides by the status that is written here and notes in it which Pods it has let go; those count as
//! gone until they are, or until two minutes have shown that they stay.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use kube::core::{ApiResource, Selector, SelectorExt};
use sampan_client::{Change, EventType, Informer, Key, WorkQueue, or_absent, owner};
use serde_json::Value;

use crate::deployment::scaled;
use crate::pods;
use crate::{Context, SyncError};

/// How long the eviction API's notes are believed.
const DISRUPTION: SignedDuration = SignedDuration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";

struct Controller {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    queue: WorkQueue<Key>,
}

pub(crate) fn start(context: Context) {
    let budgets = context.informers.of::<PodDisruptionBudget>();
    let pods = context.informers.of::<Pod>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let controller = Arc::new(Controller {
        context: context.clone(),
        budgets: budgets.clone(),
        pods: pods.clone(),
        deployments: context.informers.of(),
        replica_sets: context.informers.of(),
        stateful_sets: context.informers.of(),
        replication_controllers: context.informers.of(),
        queue: queue.clone(),
    });
    let changed = queue.clone();
    budgets.on_change(move |change| changed.add(Key::of(change.object().as_ref())));
    let (changed, known) = (queue.clone(), budgets);
    pods.on_change(move |change| {
        let pod = change.object();
        for budget in known.list_namespace(&pod.namespace().unwrap_or_default()) {
            let Some(selector) = selector(&budget) else {
                continue;
            };
            let selected = |pod: &Pod| selector.matches(pod.labels());
            if selected(pod) || change.old().is_some_and(|old| selected(old)) {
                changed.add(Key::of(budget.as_ref()));
            }
        }
    });
    let this = Arc::clone(&controller);
    let ready = async move {
        this.budgets.synced().await;
        this.pods.synced().await;
        this.deployments.synced().await;
        this.replica_sets.synced().await;
        this.stateful_sets.synced().await;
        this.replication_controllers.synced().await;
    };
    // A workload that is scaled changes what is expected before its Pods change.
    wake_namespace(&controller.deployments, &controller);
    wake_namespace(&controller.replica_sets, &controller);
    wake_namespace(&controller.stateful_sets, &controller);
    wake_namespace(&controller.replication_controllers, &controller);
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&key).await }
    });
}

fn wake_namespace<K>(informer: &Informer<K>, controller: &Arc<Controller>)
where
    K: sampan_client::Cached + kube::Resource,
{
    let (budgets, queue) = (controller.budgets.clone(), controller.queue.clone());
    informer.on_change(move |change: &Change<K>| {
        let same_spec = change.old().is_some_and(|old| {
            matches!(change, Change::Modified { .. })
                && old.meta().generation.is_some()
                && old.meta().generation == change.object().meta().generation
        });
        if !same_spec {
            for budget in budgets.list_namespace(change.object().namespace()) {
                queue.add(Key::of(budget.as_ref()));
            }
        }
    });
}

/// Absent selects nothing, empty selects everything.
fn selector(budget: &PodDisruptionBudget) -> Option<Selector> {
    let selector = budget.spec.as_ref()?.selector.clone()?;
    Selector::try_from(selector).ok()
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(budget) = self.budgets.get_key(key) else {
            return Ok(());
        };
        let pods: Vec<Arc<Pod>> = match selector(&budget) {
            Some(selector) => self
                .pods
                .list_namespace(&key.namespace)
                .into_iter()
                .filter(|pod| selector.matches(pod.labels()))
                .collect(),
            None => Vec::new(),
        };
        if pods.is_empty() {
            self.context
                .recorder
                .event(budget.as_ref(), EventType::Normal, "NoPods", "No matching pods found");
        }
        let spec = budget.spec.clone().unwrap_or_default();
        let before = budget.status.clone().unwrap_or_default();
        let now = self.context.clock.now();
        let status = match self.expected(&key.namespace, &spec, &pods).await {
            Ok((expected, desired)) => {
                let (status, wait) = assess(&budget, &pods, expected, desired, now);
                if let Some(wait) = wait {
                    self.queue.add_after(key.clone(), pods::delay(wait));
                }
                status
            }
            Err(error) => {
                // Better no disruption than one too many.
                let mut status = before.clone();
                status.disruptions_allowed = Some(0);
                status.observed_generation = budget.metadata.generation;
                set_condition(&mut status, &budget, "False", "SyncFailed", &error.to_string(), now);
                status
            }
        };
        if status == before {
            return Ok(());
        }
        let mut changed = PodDisruptionBudget::clone(&budget);
        changed.status = Some(status);
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let written = api.replace_status(&key.name, &PostParams::default(), &changed).await;
        or_absent(written)?;
        Ok(())
    }

    /// (how many Pods there should be, how many must be healthy)
    async fn expected(
        &self,
        namespace: &str,
        spec: &PodDisruptionBudgetSpec,
        pods: &[Arc<Pod>],
    ) -> Result<(i32, i32), SyncError> {
        if let Some(unavailable) = &spec.max_unavailable {
            let expected = self.scale(namespace, pods).await?;
            let desired = expected - scaled(unavailable, expected, true);
            return Ok((expected, desired.max(0)));
        }
        match &spec.min_available {
            Some(IntOrString::Int(number)) => Ok((i32::try_from(pods.len()).unwrap_or(i32::MAX), *number)),
            Some(percent) => {
                let expected = self.scale(namespace, pods).await?;
                Ok((expected, scaled(percent, expected, true)))
            }
            None => Ok((0, 0)),
        }
    }

    /// The sum of the sizes of the Pods' controllers.
    async fn scale(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<i32, SyncError> {
        let mut seen: HashSet<String> = HashSet::new();
        let mut total = 0_i32;
        for pod in pods {
            let Some(reference) = owner::controller_of(&pod.metadata) else {
                // A Pod of its own is expected once, as it is.
                continue;
            };
            let (uid, size) = self.size_of(namespace, reference).await?;
            if seen.insert(uid) {
                total = total.saturating_add(size);
            }
        }
        Ok(total)
    }

    async fn size_of(&self, namespace: &str, reference: &OwnerReference) -> Result<(String, i32), SyncError> {
        let name = &reference.name;
        let direct = match reference.kind.as_str() {
            "ReplicaSet" => {
                let set = self.replica_sets.get(namespace, name);
                let deployment = set.as_ref().and_then(|set| {
                    let name = owner::controller_name::<Deployment>(&set.metadata)?;
                    self.deployments.get(namespace, name)
                });
                match deployment {
                    Some(deployment) => {
                        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
                        return Ok((deployment.uid().unwrap_or_default(), replicas.unwrap_or(1)));
                    }
                    None => set.and_then(|set| set.spec.as_ref()?.replicas),
                }
            }
            "StatefulSet" => {
                let set = self.stateful_sets.get(namespace, name);
                set.and_then(|set| set.spec.as_ref()?.replicas)
            }
            "ReplicationController" => {
                let set = self.replication_controllers.get(namespace, name);
                set.and_then(|set| set.spec.as_ref()?.replicas)
            }
            _ => None,
        };
        if let Some(replicas) = direct {
            return Ok((reference.uid.clone(), replicas));
        }
        // Anything else that has a size shows it under `scale`.
        let (group, version) = reference
            .api_version
            .split_once('/')
            .unwrap_or(("", &reference.api_version));
        let resource = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(group, version, &reference.kind));
        let prefix = if group.is_empty() { "/api" } else { "/apis" };
        let path = format!(
            "{prefix}/{}/namespaces/{namespace}/{}/{name}/scale",
            reference.api_version, resource.plural
        );
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| SyncError::other(error.to_string()))?;
        let scale: Value = self.context.client.request(request).await?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64);
        let replicas = replicas.and_then(|number| i32::try_from(number).ok());
        Ok((reference.uid.clone(), replicas.unwrap_or(0)))
    }
}

/// The status that the Pods show, and when the oldest note of a disruption runs out.
fn assess(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i32,
    desired: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<SignedDuration>) {
    let before = budget.status.clone().unwrap_or_default();
    let mut noted: BTreeMap<String, Time> = before.disrupted_pods.clone().unwrap_or_default();
    noted.retain(|name, since| {
        let there = pods
            .iter()
            .any(|pod| pod.name_any() == *name && !pods::is_terminating(pod));
        there && now.duration_since(since.0) < DISRUPTION
    });
    let wait = noted
        .values()
        .map(|since| DISRUPTION - now.duration_since(since.0))
        .min();
    let healthy = pods
        .iter()
        .filter(|pod| !pods::is_terminating(pod) && pods::is_ready(pod))
        .filter(|pod| !noted.contains_key(&pod.name_any()))
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(noted).filter(|noted| !noted.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: before.conditions,
    };
    let (truth, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    set_condition(&mut status, budget, truth, reason, "", now);
    (status, wait)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    budget: &PodDisruptionBudget,
    truth: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let conditions = status.conditions.get_or_insert_default();
    let since = conditions
        .iter()
        .find(|known| known.type_ == ALLOWED && known.status == truth)
        .map_or(now, |known| known.last_transition_time.clone());
    conditions.retain(|known| known.type_ != ALLOWED);
    conditions.push(Condition {
        type_: ALLOWED.into(),
        status: truth.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: since,
        observed_generation: budget.metadata.generation,
    });
}

#[cfg(test)]
mod tests {
    use sampan_client::Clock;
    use sampan_client::testing::{FakeApi, eventually};
    use serde_json::json;

    use super::*;
    use crate::testing::{Cluster, set_ready};

    fn start(budget: Value, sizes: (i32, usize)) -> Cluster {
        let cluster = Cluster::start(&["disruption-controller"]);
        let api = &cluster.api;
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "rs", "namespace": "ns"},
            "spec": {"replicas": sizes.0, "selector": {"matchLabels": {"app": "web"}}},
        }))
        .unwrap();
        let set = api.create(&set);
        for number in 0..sizes.1 {
            let mut pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": format!("p{number}"), "namespace": "ns", "labels": {"app": "web"}},
            }))
            .unwrap();
            pod.metadata.owner_references = Some(vec![owner::controller_ref(&set)]);
            set_ready(&mut pod, true, cluster.clock.time());
            api.create(&pod);
        }
        let mut spec = budget;
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        let budget: PodDisruptionBudget =
            serde_json::from_value(json!({"metadata": {"name": "b", "namespace": "ns"}, "spec": spec})).unwrap();
        api.create(&budget);
        cluster
    }

    async fn allowed(api: &FakeApi, expected: (i32, i32, i32)) {
        eventually(&format!("{expected:?}"), || async {
            let status = api.get::<PodDisruptionBudget>("ns", "b")?.status?;
            let got = (status.expected_pods, status.desired_healthy, status.disruptions_allowed);
            (got == (Some(expected.0), Some(expected.1), Some(expected.2))).then_some(())
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn budgets_by_number_and_share() {
        let cases = [
            (json!({"minAvailable": 2}), (5, 4), (4, 2, 2)),
            (json!({"minAvailable": "50%"}), (5, 5), (5, 3, 2)),
            (json!({"maxUnavailable": 1}), (5, 5), (5, 4, 1)),
            (json!({"maxUnavailable": "30%"}), (5, 5), (5, 3, 2)),
            (json!({"maxUnavailable": 1}), (5, 4), (5, 4, 0)),
            (json!({"minAvailable": 0}), (0, 0), (0, 0, 0)),
        ];
        for (budget, sizes, expected) in cases {
            let cluster = start(budget, sizes);
            allowed(&cluster.api, expected).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn evicted_pods_count_as_gone_for_a_while() {
        let cluster = start(json!({"minAvailable": 2}), (4, 4));
        let api = &cluster.api;
        allowed(api, (4, 2, 2)).await;
        api.change::<PodDisruptionBudget>("ns", "b", |budget| {
            let status = budget.status.as_mut().unwrap();
            status.disruptions_allowed = Some(1);
            status.disrupted_pods = Some([("p0".to_owned(), cluster.clock.time())].into());
        });
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        allowed(api, (4, 2, 1)).await;
        tokio::time::sleep(std::time::Duration::from_secs(61)).await;
        allowed(api, (4, 2, 2)).await;
    }
}
