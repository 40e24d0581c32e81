//! PodDisruptionBudgets: how many of the selected Pods may be evicted now.
//!
//! The eviction API decides by the status that is written here and notes in it which Pods it has let go; those count as
//! gone until they are, or until two minutes have shown that they stay. A Pod that says of itself that it is about to be
//! disrupted, and stays, is told after two minutes that it is not.
//!
//! Differs from upstream: a Pod that several budgets select wakes them all, and a workload that is scaled wakes the
//! budgets of its namespace.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use kube::core::{ApiResource, Selector, SelectorExt};
use sampan_client::{Change, EventType, Informer, Key, WorkQueue, is_conflict, or_absent, owner};
use serde_json::{Value, json};

use crate::deployment::scaled;
use crate::discovery::discover;
use crate::pods;
use crate::{Context, SyncError, add_paced};

/// How long the eviction API's notes are believed.
const DISRUPTION: SignedDuration = SignedDuration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";
/// Marks the key of a Pod among the keys of budgets; no budget's name has a slash.
const POD: &str = "pod/";

struct Controller {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    queue: WorkQueue<Key>,
    /// group and kind → how it is served; of kinds that no informer here follows.
    kinds: Mutex<HashMap<(String, String), ApiResource>>,
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
        kinds: Mutex::default(),
    });
    let changed = queue.clone();
    budgets.on_change(move |change| changed.add(Key::of(change.object().as_ref())));
    let (changed, known, clock) = (queue.clone(), budgets, Arc::clone(&context.clock));
    pods.on_change(move |change| {
        let pod = change.object();
        if !matches!(change, Change::Deleted(_))
            && let Some(wait) = stale_in(pod, clock.now())
        {
            let name = format!("{POD}{}", pod.name_any());
            changed.add_after(Key::new(pod.namespace().unwrap_or_default(), name), pods::delay(wait));
        }
        for budget in known.list_namespace(&pod.namespace().unwrap_or_default()) {
            let Some(selector) = selector(&budget) else {
                continue;
            };
            let selected = |pod: &Pod| selector.matches(pod.labels());
            if selected(pod) || change.old().is_some_and(|old| selected(old)) {
                let expected = budget.status.as_ref().and_then(|status| status.expected_pods);
                let many = usize::try_from(expected.unwrap_or(0)).unwrap_or(0);
                add_paced(&changed, Key::of(budget.as_ref()), many);
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
        async move {
            match key.name.strip_prefix(POD) {
                Some(name) => controller.sync_pod(&key, name).await,
                None => controller.sync(&key).await,
            }
        }
    });
}

/// In how long a Pod's word that it is about to be disrupted is stale; `None` if it gives none, or keeps it.
fn stale_in(pod: &Pod, now: Timestamp) -> Option<SignedDuration> {
    if pods::is_terminating(pod) || pods::is_terminal(pod) {
        return None;
    }
    let said = pods::condition(pod, "DisruptionTarget").filter(|said| said.status == "True")?;
    if said.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = said
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Some((DISRUPTION - now.duration_since(since)).max(SignedDuration::ZERO))
}

/// A selector as upstream prints it.
fn shown(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else {
        return "nil".into();
    };
    let labels: String = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}: {value},"))
        .collect();
    let expressions: String = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|one| {
            let values = one.values.clone().unwrap_or_default().join(" ");
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
                one.key, one.operator
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
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
        let say = |kind, reason: &str, text: String| {
            self.context.recorder.event(budget.as_ref(), kind, reason, text);
        };
        if pods.is_empty() {
            say(EventType::Normal, "NoPods", "No matching pods found".into());
        }
        let spec = budget.spec.clone().unwrap_or_default();
        let before = budget.status.clone().unwrap_or_default();
        let now = self.context.clock.now();
        let status = match self.expected(&key.namespace, &spec, &pods).await {
            Ok(size) => {
                if size.unmanaged {
                    let text = format!(
                        "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                        shown(spec.selector.as_ref())
                    );
                    say(EventType::Warning, "UnmanagedPods", text);
                }
                for pod in overdue(&before, &pods, now) {
                    let text = format!(
                        "Pod was expected by PDB {}/{} to be deleted but it wasn't",
                        key.namespace, key.name
                    );
                    self.context
                        .recorder
                        .event(pod.as_ref(), EventType::Warning, "NotDeleted", text);
                }
                let (status, wait) = assess(&budget, &pods, size.expected, size.desired, now);
                if let Some(wait) = wait {
                    self.queue.add_after(key.clone(), pods::delay(wait));
                }
                status
            }
            Err(error) => {
                let text = format!("Failed to calculate the number of expected pods: {error}");
                say(EventType::Warning, "CalculateExpectedPodCountFailed", text);
                // Better no disruption than one too many.
                let mut status = before.clone();
                status.disruptions_allowed = Some(0);
                let observed = status.observed_generation;
                set_condition(&mut status, observed, "False", "SyncFailed", &error.to_string(), now);
                status
            }
        };
        if status == before {
            return Ok(());
        }
        let mut changed = PodDisruptionBudget::clone(&budget);
        changed.status = Some(status);
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match or_absent(api.replace_status(&key.name, &PostParams::default(), &changed).await) {
            // The eviction API writes the same status: the next version is on its way here.
            Err(error) if is_conflict(&error) => {
                self.queue.add_after(key.clone(), std::time::Duration::from_millis(20));
                Ok(())
            }
            other => Ok(other.map(|_| ())?),
        }
    }

    /// Takes back a Pod's word that it is about to be disrupted.
    async fn sync_pod(&self, key: &Key, name: &str) -> Result<(), SyncError> {
        let Some(pod) = self.pods.get(&key.namespace, name) else {
            return Ok(());
        };
        let now = self.context.clock.now();
        match stale_in(&pod, now) {
            None => {}
            Some(wait) if wait.is_positive() => self.queue.add_after(key.clone(), pods::delay(wait)),
            Some(_) => {
                let since = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
                let condition = json!({
                    "type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
                    "lastTransitionTime": since, "observedGeneration": pod.metadata.generation,
                });
                pods::patch_status(&self.context.client, &pod, json!({"conditions": [condition]})).await?;
            }
        }
        Ok(())
    }

    async fn expected(
        &self,
        namespace: &str,
        spec: &PodDisruptionBudgetSpec,
        pods: &[Arc<Pod>],
    ) -> Result<Size, SyncError> {
        let share = |value: &IntOrString, total: i32| match value {
            IntOrString::String(text) if !is_percentage(text) => Err(SyncError::other(format!(
                "invalid value for IntOrString: invalid type: string is not a percentage: {text:?}"
            ))),
            value => Ok(scaled(value, total, true)),
        };
        match (&spec.max_unavailable, &spec.min_available) {
            (Some(unavailable), _) => {
                let (expected, unmanaged) = self.scale(namespace, pods).await?;
                let desired = expected.saturating_sub(share(unavailable, expected)?).max(0);
                Ok(Size {
                    expected,
                    desired,
                    unmanaged,
                })
            }
            (None, Some(IntOrString::Int(number))) => Ok(Size {
                expected: i32::try_from(pods.len()).unwrap_or(i32::MAX),
                desired: *number,
                unmanaged: false,
            }),
            (None, Some(percent)) => {
                let (expected, unmanaged) = self.scale(namespace, pods).await?;
                let desired = share(percent, expected)?;
                Ok(Size {
                    expected,
                    desired,
                    unmanaged,
                })
            }
            (None, None) => Ok(Size::default()),
        }
    }

    /// The sum of the sizes of the Pods' controllers, and whether there are Pods without one.
    async fn scale(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<(i32, bool), SyncError> {
        // By the controller of a Pod, and by what is scaled: a Deployment has several replica sets.
        let (mut asked, mut sizes) = (HashMap::new(), HashMap::new());
        let mut unmanaged = false;
        for pod in pods {
            let Some(reference) = owner::controller_of(&pod.metadata) else {
                unmanaged = true;
                continue;
            };
            if asked.contains_key(&reference.uid) {
                continue;
            }
            let found = self.size_of(namespace, reference).await?;
            let (uid, size) =
                found.ok_or_else(|| SyncError::other(format!("found no controllers for pod {:?}", pod.name_any())))?;
            asked.insert(reference.uid.clone(), ());
            sizes.insert(uid, size);
        }
        let total = sizes.values().fold(0_i32, |total, size| total.saturating_add(*size));
        Ok((total, unmanaged))
    }

    /// UID and size of what controls a Pod; `None` if that is not there any more.
    async fn size_of(&self, namespace: &str, reference: &OwnerReference) -> Result<Option<(String, i32)>, SyncError> {
        let name = &reference.name;
        let (group, version) = reference
            .api_version
            .split_once('/')
            .unwrap_or(("", &reference.api_version));
        let same = |uid: &Option<String>| uid.as_deref() == Some(&reference.uid);
        let in_apps = matches!(group, "apps" | "extensions");
        let direct = match (group, reference.kind.as_str()) {
            (_, "ReplicaSet") if in_apps => {
                let set = self.replica_sets.get(namespace, name);
                let set = set.filter(|set| same(&set.metadata.uid));
                let by = set.as_ref().and_then(|set| owner::controller_of(&set.metadata));
                match by.filter(|by| by.kind == "Deployment") {
                    Some(by) => self
                        .deployments
                        .get(namespace, &by.name)
                        .filter(|deployment| deployment.metadata.uid.as_deref() == Some(&by.uid))
                        .map(|deployment| {
                            let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
                            (deployment.uid().unwrap_or_default(), replicas.unwrap_or(1))
                        }),
                    None => set.map(|set| {
                        let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
                        (reference.uid.clone(), replicas.unwrap_or(1))
                    }),
                }
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful_sets.get(namespace, name);
                set.filter(|set| same(&set.metadata.uid)).map(|set| {
                    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
                    (reference.uid.clone(), replicas.unwrap_or(1))
                })
            }
            ("", "ReplicationController") => {
                let set = self.replication_controllers.get(namespace, name);
                set.filter(|set| same(&set.metadata.uid)).map(|set| {
                    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
                    (reference.uid.clone(), replicas.unwrap_or(1))
                })
            }
            _ => None,
        };
        match direct {
            Some(found) => Ok(Some(found)),
            // Anything else that has a size shows it under `scale`.
            None => self.scale_of(namespace, reference, group, version).await,
        }
    }

    async fn scale_of(
        &self,
        namespace: &str,
        reference: &OwnerReference,
        group: &str,
        version: &str,
    ) -> Result<Option<(String, i32)>, SyncError> {
        let resource = self.kind(group, version, &reference.kind).await?;
        let prefix = if group.is_empty() { "/api" } else { "/apis" };
        let served = format!("{prefix}/{}", resource.api_version);
        let path = format!(
            "{served}/namespaces/{namespace}/{}/{}/scale",
            resource.plural, reference.name
        );
        let get = |path: String| {
            http::Request::get(path)
                .body(Vec::new())
                .map_err(|error| SyncError::other(error.to_string()))
        };
        let scale: Option<Value> = or_absent(self.context.client.request(get(path)?).await)?;
        let Some(scale) = scale else {
            // Is it this object that is absent, or has the kind no size?
            let list: Value = self.context.client.request(get(served)?).await?;
            let wanted = format!("{}/scale", resource.plural);
            let resources = list.get("resources").and_then(Value::as_array);
            let has_size = resources
                .into_iter()
                .flatten()
                .any(|known| known.get("name").and_then(Value::as_str) == Some(&wanted));
            if has_size {
                return Ok(None);
            }
            let name = match group {
                "" => resource.plural,
                group => format!("{}.{group}", resource.plural),
            };
            return Err(SyncError::other(format!(
                "{name} does not implement the scale subresource"
            )));
        };
        let uid = scale.pointer("/metadata/uid").and_then(Value::as_str);
        if uid != Some(&reference.uid) {
            return Ok(None);
        }
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64);
        let replicas = replicas.and_then(|number| i32::try_from(number).ok());
        Ok(Some((reference.uid.clone(), replicas.unwrap_or(0))))
    }

    /// How a kind is served; asked for once.
    async fn kind(&self, group: &str, version: &str, kind: &str) -> Result<ApiResource, SyncError> {
        let id = (group.to_owned(), kind.to_owned());
        let known = || {
            let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            kinds.get(&id).cloned()
        };
        if let Some(known) = known() {
            return Ok(known);
        }
        let found = discover(&self.context.client).await?;
        {
            let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            *kinds = found
                .resources
                .into_iter()
                .map(|one| ((one.resource.group.clone(), one.resource.kind.clone()), one.resource))
                .collect();
        }
        known().ok_or_else(|| {
            let version = match group {
                "" => version.to_owned(),
                group => format!("{group}/{version}"),
            };
            SyncError::other(format!("no matches for kind {kind:?} in version {version:?}"))
        })
    }
}

/// How many Pods there should be, how many of them must be healthy, and whether some have no controller.
#[derive(Default)]
struct Size {
    expected: i32,
    desired: i32,
    unmanaged: bool,
}

fn is_percentage(text: &str) -> bool {
    text.strip_suffix('%')
        .is_some_and(|number| number.parse::<i32>().is_ok())
}

/// The Pods that the eviction API has let go and that are still there although their time is up.
fn overdue(before: &PodDisruptionBudgetStatus, pods: &[Arc<Pod>], now: Timestamp) -> Vec<Arc<Pod>> {
    let noted = before.disrupted_pods.as_ref();
    pods.iter()
        .filter(|pod| !pods::is_terminating(pod))
        .filter(|pod| {
            let since = noted.and_then(|noted| noted.get(&pod.name_any()));
            since.is_some_and(|since| now.duration_since(since.0) >= DISRUPTION)
        })
        .cloned()
        .collect()
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
    set_condition(&mut status, budget.metadata.generation, truth, reason, "", now);
    (status, wait)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    observed: Option<i64>,
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
        observed_generation: observed,
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
    async fn whose_size_cannot_be_known_may_not_be_disrupted() {
        let cluster = start(json!({"maxUnavailable": 1}), (3, 3));
        let api = &cluster.api;
        allowed(api, (3, 2, 1)).await;
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "foreign", "namespace": "ns", "labels": {"app": "web"}, "ownerReferences": [{
                "apiVersion": "example.com/v1", "kind": "Foo", "name": "f", "uid": "f", "controller": true}]},
        }))
        .unwrap();
        set_ready(&mut pod, true, cluster.clock.time());
        api.create(&pod);
        eventually("it says so", || async {
            let status = api.get::<PodDisruptionBudget>("ns", "b")?.status?;
            let condition = status.conditions?.into_iter().find(|c| c.reason == "SyncFailed")?;
            assert_eq!(
                condition.message,
                "no matches for kind \"Foo\" in version \"example.com/v1\""
            );
            (status.disruptions_allowed == Some(0)).then_some(())
        })
        .await;
        api.remove::<Pod>("ns", "foreign");
        allowed(api, (3, 2, 1)).await;
        // One without a controller counts for the healthy, not for the expected.
        pod.metadata.owner_references = None;
        api.create(&pod);
        allowed(api, (3, 2, 2)).await;
        let events = api.all::<k8s_openapi::api::core::v1::Event>();
        let reasons: Vec<_> = events.iter().filter_map(|event| event.reason.as_deref()).collect();
        assert!(reasons.contains(&"CalculateExpectedPodCountFailed"), "{reasons:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_disruption_that_does_not_come_is_taken_back() {
        let cluster = Cluster::start(&["disruption-controller"]);
        let api = &cluster.api;
        let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}})).unwrap();
        set_ready(&mut pod, true, cluster.clock.time());
        let condition = |pod: &Pod| pods::condition(pod, "DisruptionTarget").cloned();
        pod.status.as_mut().unwrap().conditions.as_mut().unwrap().push(
            serde_json::from_value(
                json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "m", "lastTransitionTime": cluster.clock.time()}),
            )
            .unwrap(),
        );
        api.create(&pod);
        tokio::time::sleep(std::time::Duration::from_secs(115)).await;
        assert_eq!(condition(&api.get("ns", "p").unwrap()).unwrap().status, "True");
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        let said = condition(&api.get("ns", "p").unwrap()).unwrap();
        assert_eq!((said.status.as_str(), said.reason, said.message), ("False", None, None));
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
