//! Horizontal autoscaling: how many replicas a workload has, by what its Pods or others measure.
//!
//! An autoscaler is looked at once in a period, as its definition has it (changes do not hurry it); those that are there at the start
//! are spread over the first period. A look reads the target's scale, asks the metrics APIs, decides with pure functions
//! ([`replicas`], [`behavior`]), and writes scale and status where they differ. Without autoscalers nothing is done.
//!
//! What is remembered between looks ([`behavior::History`], whose Pods an autoscaler selects) is lost with the process,
//! as upstream's is: the first recommendation is then the size found.

mod asked;
mod behavior;
mod look;
mod metrics;
mod replicas;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, HorizontalPodAutoscaler, MetricStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::api::{Api, PostParams};
use sampan_api::quantity::Quantity;
use sampan_api::selector::LabelSelector;
use sampan_client::{Change, EventType, Informer, Key, Recorder, WorkQueue, is_conflict, or_absent};
use tokio::time::Instant;

use crate::metrics::{
    AUTOSCALERS, COMPUTATION_TIME, COMPUTATIONS, DESIRED_REPLICAS, RECONCILIATION_TIME, RECONCILIATIONS,
};
use crate::pods::api_message;
use crate::{Context, SyncError};
use asked::Asked;
use behavior::{Decision, History, Rules, Wish};
use look::{Failure, Look, action};
use metrics::{Metrics, Places};
use replicas::Tolerances;

/// How often a scale is written anew after a conflict.
const CONFLICTS: usize = 5;
const SCALED_TO_ZERO: &str = "ScaledToZero";
/// Why a metric of a type that nobody knows asks for nothing.
const MISDEFINED: &str = "InvalidMetricSourceType";

struct Controller {
    context: Context,
    recorder: Recorder,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    queue: WorkQueue<Key>,
    metrics: Metrics,
    places: Places,
    memory: Mutex<HashMap<Key, Memory>>,
}

/// What is remembered of one autoscaler.
#[derive(Default)]
struct Memory {
    history: History,
    /// Which Pods it counts; none until it was first looked at.
    selector: Option<LabelSelector>,
}

pub(crate) fn start(context: Context) {
    let autoscalers = context.informers.of::<HorizontalPodAutoscaler>();
    let pods = context.informers.of::<Pod>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let recorder = Recorder::new(
        context.client.clone(),
        "horizontal-pod-autoscaler",
        None,
        Arc::clone(&context.clock),
        &context.tasks,
    );
    let controller = Arc::new(Controller {
        context: context.clone(),
        recorder,
        autoscalers: autoscalers.clone(),
        pods: pods.clone(),
        queue: queue.clone(),
        metrics: Metrics {
            client: context.client.clone(),
        },
        places: Places::default(),
        memory: Mutex::default(),
    });
    let (this, period) = (Arc::clone(&controller), context.config.autoscaler.period);
    autoscalers.on_change(move |change| {
        let key = Key::of(change.object().as_ref());
        match change {
            Change::Deleted(_) => {
                this.memory().remove(&key);
                let of = [key.namespace.as_str(), &key.name];
                this.context.metrics().forget(&DESIRED_REPLICAS, &of);
                this.count();
            }
            Change::Modified { .. } => this.queue.add_after(key, period),
            _ => {
                this.memory().entry(key.clone()).or_default();
                this.count();
                let share = share(&key, period);
                this.queue.add_after(key, share);
            }
        }
    });
    let ready = async move {
        autoscalers.synced().await;
        pods.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move {
            controller.sync(&key).await;
            Ok::<(), SyncError>(())
        }
    });
}

/// When in the first period an autoscaler has its turn.
fn share(key: &Key, period: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    period.mul_f64((hasher.finish() % 1000 + 1) as f64 / 1000.0)
}

impl Controller {
    fn memory(&self) -> MutexGuard<'_, HashMap<Key, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) {
        let number = self.memory().len();
        self.context.metrics().set(&AUTOSCALERS, &[], number as f64);
    }

    /// What the history of an autoscaler says; nothing is kept of one that is gone.
    fn with_history<T>(&self, key: &Key, ask: impl FnOnce(&mut History) -> T) -> T {
        let mut memory = self.memory();
        match memory.get_mut(key) {
            Some(known) => ask(&mut known.history),
            None => ask(&mut History::default()),
        }
    }

    async fn sync(&self, key: &Key) {
        let Some(autoscaler) = self.autoscalers.get_key(key) else {
            self.memory().remove(key);
            return;
        };
        let mut look = Look {
            key: key.clone(),
            status: autoscaler.status.clone().unwrap_or_default(),
            before: autoscaler,
            now: self.context.clock.time(),
            action: action(0, 0),
            misdefined: false,
        };
        let began = Instant::now();
        let done = self.look(&mut look).await;
        let error = match &done {
            Ok(()) => "none",
            Err(_) if look.misdefined => "spec",
            Err(_) => "internal",
        };
        let (counts, action) = (self.context.metrics(), look.action);
        counts.add(&RECONCILIATIONS, &[action, error], 1);
        if let Err(error) = done {
            tracing::debug!(autoscaler = %key, error, "an autoscaler could not do all of its work");
        }
        self.write(look).await;
        counts.took(&RECONCILIATION_TIME, &[action, error], began.elapsed());
        self.queue.add_after(key.clone(), self.context.config.autoscaler.period);
    }

    fn warn(&self, look: &Look, reason: &str, message: &str) {
        self.recorder
            .event(look.before.as_ref(), EventType::Warning, reason, message);
    }

    async fn write(&self, look: Look) {
        if look.before.status.clone().unwrap_or_default() == look.status {
            return;
        }
        let mut changed = HorizontalPodAutoscaler::clone(&look.before);
        changed.status = Some(look.status);
        let api: Api<HorizontalPodAutoscaler> = Api::namespaced(self.context.client.clone(), &look.key.namespace);
        let written = api
            .replace_status(&look.key.name, &PostParams::default(), &changed)
            .await;
        match or_absent(written) {
            // Somebody was quicker: the next look starts from there.
            Err(error) if !is_conflict(&error) => {
                let message = api_message(&error);
                self.recorder
                    .event(look.before.as_ref(), EventType::Warning, "FailedUpdateStatus", message);
            }
            _ => {}
        }
    }

    fn no_scale(&self, look: &mut Look, error: &str) {
        self.warn(look, "FailedGetScale", error);
        let message = format!("the HPA controller was unable to get the target's current scale: {error}");
        look.set("AbleToScale", false, "FailedGetScale", message);
    }

    async fn look(&self, look: &mut Look) -> Result<(), String> {
        let autoscaler = Arc::clone(&look.before);
        let target = &autoscaler.spec.scale_target_ref;
        look.misdefined = group_of(target.api_version.as_deref().unwrap_or_default()).is_err();
        let found = self.scale_of(&look.key.namespace, target).await;
        let (path, scale) = match found {
            Ok(found) => found,
            Err(error) => {
                self.no_scale(look, &error);
                return Err(error);
            }
        };
        look.set(
            "AbleToScale",
            true,
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
        );
        let current = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
        self.with_history(&look.key, |history| history.begin(current, Instant::now()));
        let min = autoscaler.spec.min_replicas.unwrap_or(1);
        let max = autoscaler.spec.max_replicas;
        let mut trouble = None;
        let mut statuses = Vec::new();
        let (desired, reason) = if current == 0 {
            look.set(
                "ScalingActive",
                false,
                "ScalingDisabled",
                "scaling is disabled since the replica count of the target is zero",
            );
            look.forget(SCALED_TO_ZERO);
            (0, String::new())
        } else if current > max {
            (max, "Current number of replicas above Spec.MaxReplicas".into())
        } else if current < min {
            (min, "Current number of replicas below Spec.MinReplicas".into())
        } else {
            let (proposal, error) = self.propose(look, &scale, &mut statuses).await;
            let Some((wanted, metric)) = proposal else {
                let error = error.unwrap_or_default();
                let desired = look.status.desired_replicas;
                look.measured(current, desired, statuses);
                self.warn(look, "FailedComputeMetricsReplicas", &error);
                return Err(error);
            };
            trouble = error;
            let wanted = wanted.max(0);
            let reason = match wanted.cmp(&current) {
                std::cmp::Ordering::Greater => format!("{metric} above target"),
                std::cmp::Ordering::Less => "All metrics below target".into(),
                std::cmp::Ordering::Equal => String::new(),
            };
            let wish = Wish {
                min,
                max,
                current,
                desired: wanted,
            };
            (self.decide(look, wish), reason)
        };
        let rescale = desired != current;
        if rescale {
            if let Err(error) = self.rescale(&path, scale, desired).await {
                let message = format!("New size: {desired}; reason: {reason}; error: {error}");
                self.warn(look, "FailedRescale", &message);
                let message = format!("the HPA controller was unable to update the target scale: {error}");
                look.set("AbleToScale", false, "FailedUpdateScale", message);
                let known = look.status.desired_replicas;
                look.measured(current, known, statuses);
                return Err(error);
            }
            let message = format!("the HPA controller was able to update the target scale to {desired}");
            look.set("AbleToScale", true, "SucceededRescale", message);
            let message = format!("New size: {desired}; reason: {reason}");
            self.recorder
                .event(autoscaler.as_ref(), EventType::Normal, "SuccessfulRescale", message);
            if let Some(rules) = self.rules(&autoscaler) {
                let now = Instant::now();
                self.with_history(&look.key, |history| history.scaled(current, desired, &rules, now));
            }
            look.action = action(current, desired);
            look.forget(SCALED_TO_ZERO);
            look.status.last_scale_time = Some(look.now.clone());
        }
        look.measured(current, desired, statuses);
        let (counts, of) = (self.context.metrics(), [look.key.namespace.as_str(), &look.key.name]);
        let memory = self.memory();
        // It may have been deleted meanwhile; what is told of it then was forgotten already, or will be after this.
        if memory.contains_key(&look.key) {
            counts.set(&DESIRED_REPLICAS, &of, f64::from(desired));
        }
        drop(memory);
        trouble.map_or(Ok(()), Err)
    }

    /// What limits, rates and stabilization make of a recommendation, told in conditions.
    fn decide(&self, look: &mut Look, wish: Wish) -> i32 {
        let rules = self.rules(&look.before);
        let (now, downscale) = (Instant::now(), self.context.config.autoscaler.downscale_stabilization);
        let decision: Decision = self.with_history(&look.key, |history| match &rules {
            None => history.plain(wish, downscale, now),
            Some(rules) => history.by_rules(wish, rules, now),
        });
        look.set("AbleToScale", true, decision.able.0, decision.able.1);
        let (limited, why) = decision.limited;
        look.set("ScalingLimited", limited, why.0, why.1);
        decision.replicas
    }

    /// The target's scale and where it is.
    async fn scale_of(&self, namespace: &str, target: &CrossVersionObjectReference) -> Result<(String, Scale), String> {
        let group = group_of(target.api_version.as_deref().unwrap_or_default())?;
        let client = &self.context.client;
        let mut first = None;
        for place in self.places.of(client, group, &target.kind).await? {
            let path = place.scale(namespace, &target.name);
            match self.get_scale(&path).await {
                Ok(scale) => return Ok((path, scale)),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| "unrecognized resource".into()))
    }

    async fn get_scale(&self, path: &str) -> Result<Scale, String> {
        let scale = metrics::get(&self.context.client, path).await;
        let scale = scale.map_err(|error| api_message(&error))?;
        serde_json::from_value(scale).map_err(|error| error.to_string())
    }

    async fn rescale(&self, path: &str, mut scale: Scale, desired: i32) -> Result<(), String> {
        let mut tries = 0;
        loop {
            tries += 1;
            scale.spec.get_or_insert_default().replicas = Some(desired);
            let body = serde_json::to_vec(&scale).map_err(|error| error.to_string())?;
            let request = http::Request::put(path)
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(body)
                .map_err(|error| error.to_string())?;
            match self.context.client.request::<serde_json::Value>(request).await {
                Ok(_) => return Ok(()),
                Err(error) if is_conflict(&error) && tries < CONFLICTS => {
                    scale = self.get_scale(path).await?;
                }
                Err(error) => return Err(api_message(&error)),
            }
        }
    }

    /// The most that any metric asks for, with the metric's name. Errors stand beside it as long as enough is known: to
    /// shrink, all of them must be.
    async fn propose(
        &self,
        look: &mut Look,
        scale: &Scale,
        statuses: &mut Vec<MetricStatus>,
    ) -> (Option<(i32, String)>, Option<String>) {
        let selector = match self.selector_of(look, scale) {
            Ok(selector) => selector,
            Err(error) => return (None, Some(error)),
        };
        let autoscaler = Arc::clone(&look.before);
        let specs = autoscaler.spec.metrics.as_deref().unwrap_or_default();
        let pods = self.pods_of(&look.key.namespace, &selector);
        let current = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
        let asked = Asked {
            controller: self,
            namespace: &look.key.namespace,
            selector: &selector,
            pods: &pods,
            current,
            observed: scale.status.as_ref().map_or(0, |status| status.replicas),
            tolerances: self.tolerances(&autoscaler),
        };
        let mut best: Option<(i32, String)> = None;
        let mut failures: Vec<Failure> = Vec::new();
        for spec in specs {
            let began = Instant::now();
            let outcome = asked.metric(spec).await;
            let (action, error) = match &outcome {
                Ok(proposal) => (action(current, proposal.replicas), "none"),
                Err(failure) if failure.reason == MISDEFINED => ("none", "spec"),
                Err(_) => ("none", "internal"),
            };
            let counts = self.context.metrics();
            let labels = [action, error, spec.type_.as_str()];
            counts.add(&COMPUTATIONS, &labels, 1);
            counts.took(&COMPUTATION_TIME, &labels, began.elapsed());
            match outcome {
                Ok(proposal) => {
                    statuses.push(proposal.status);
                    let higher = |(known, _): &(i32, String)| *known == 0 || proposal.replicas > *known;
                    if best.as_ref().is_none_or(higher) {
                        best = Some((proposal.replicas, proposal.name));
                    }
                }
                Err(failure) => {
                    statuses.push(MetricStatus::default());
                    self.warn(look, failure.reason, &failure.message);
                    failures.push(failure);
                }
            }
        }
        look.misdefined = failures.first().is_some_and(|first| first.reason == MISDEFINED);
        let error = failures.first().map(|first| {
            let (invalid, all) = (failures.len(), specs.len());
            let first = &first.error;
            format!("invalid metrics ({invalid} invalid out of {all}), first error is: {first}")
        });
        let shrinks = best.as_ref().is_none_or(|(wanted, _)| *wanted < current);
        if let Some(first) = failures.first()
            && (failures.len() >= specs.len() || shrinks)
        {
            let message = format!("the HPA was unable to compute the replica count: {}", first.message);
            look.set("ScalingActive", false, first.reason, message);
            return (None, error);
        }
        let (wanted, metric) = best.unwrap_or_default();
        let message = format!("the HPA was able to successfully calculate a replica count from {metric}");
        look.set("ScalingActive", true, "ValidMetricFound", message);
        (Some((wanted, metric)), error)
    }

    /// The rules of an autoscaler that has any.
    fn rules(&self, autoscaler: &HorizontalPodAutoscaler) -> Option<Rules> {
        let behavior = autoscaler.spec.behavior.as_ref()?;
        let downscale = self.context.config.autoscaler.downscale_stabilization;
        Some(Rules::of(
            behavior.scale_up.as_ref(),
            behavior.scale_down.as_ref(),
            downscale,
        ))
    }

    fn tolerances(&self, autoscaler: &HorizontalPodAutoscaler) -> Tolerances {
        let usual = self.context.config.autoscaler.tolerance;
        let behavior = autoscaler.spec.behavior.as_ref();
        let own = |tolerance: Option<&Text>| {
            let given = tolerance.and_then(|text| Quantity::parse(&text.0).ok());
            given.map_or(usual, |quantity| quantity.as_f64())
        };
        Tolerances {
            down: own(behavior.and_then(|behavior| behavior.scale_down.as_ref()?.tolerance.as_ref())),
            up: own(behavior.and_then(|behavior| behavior.scale_up.as_ref()?.tolerance.as_ref())),
        }
    }

    fn pods_of(&self, namespace: &str, selector: &LabelSelector) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.list_namespace(namespace);
        pods.retain(|pod| selector.matches_labels(pod.metadata.labels.as_ref()));
        pods
    }

    /// The selector of the target's Pods, if no other autoscaler counts any of them.
    fn selector_of(&self, look: &mut Look, scale: &Scale) -> Result<LabelSelector, String> {
        let text = scale.status.as_ref().and_then(|status| status.selector.as_deref());
        let text = text.unwrap_or_default();
        if text.is_empty() {
            self.warn(look, "SelectorRequired", "selector is required");
            let message = "the HPA target's scale is missing a selector";
            look.set("ScalingActive", false, "InvalidSelector", message);
            return Err("selector is required".into());
        }
        let selector = LabelSelector::parse(text).map_err(|error| {
            let message = format!("couldn't convert selector into a corresponding internal selector object: {error}");
            self.warn(look, "InvalidSelector", &message);
            look.set("ScalingActive", false, "InvalidSelector", &message);
            message
        })?;
        let others: Vec<(String, LabelSelector)> = {
            let mut memory = self.memory();
            if let Some(own) = memory.get_mut(&look.key) {
                own.selector = Some(selector.clone());
            }
            let near = memory.iter().filter(|(key, _)| key.namespace == look.key.namespace);
            near.filter_map(|(key, known)| Some((key.name.clone(), known.selector.clone()?)))
                .collect()
        };
        if others.len() > 1 {
            let pods = self.pods_of(&look.key.namespace, &selector);
            let counts = |other: &LabelSelector| {
                pods.iter()
                    .any(|pod| other.matches_labels(pod.metadata.labels.as_ref()))
            };
            let mut names: Vec<&str> = others
                .iter()
                .filter(|(_, other)| counts(other))
                .map(|(name, _)| name.as_str())
                .collect();
            if names.len() > 1 {
                names.sort_unstable();
                let namespace = &look.key.namespace;
                let keys: Vec<_> = names.iter().map(|name| format!("{{{name} {namespace}}}")).collect();
                let message = format!(
                    "pods by selector {text} are controlled by multiple HPAs: [{}]",
                    keys.join(" ")
                );
                self.warn(look, "AmbiguousSelector", &message);
                look.set("ScalingActive", false, "AmbiguousSelector", &message);
                return Err(message);
            }
        }
        Ok(selector)
    }
}

/// The group of an `apiVersion`.
fn group_of(api_version: &str) -> Result<&str, String> {
    match api_version.split('/').collect::<Vec<_>>().as_slice() {
        [_] => Ok(""),
        [group, _] => Ok(group),
        _ => Err(format!("unexpected GroupVersion string: {api_version}")),
    }
}
