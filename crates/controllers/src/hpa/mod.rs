//! Horizontal autoscaling: how many replicas a workload has, by what its Pods or others measure.
//!
//! An autoscaler is looked at once in a period, as its definition has it (changes do not hurry it); those that are there at the start
//! are spread over the first period. A look reads the target's scale, asks the metrics APIs, decides with pure functions
//! ([`replicas`], [`behavior`]), and writes scale and status where they differ. Without autoscalers nothing is done.
//!
//! What is remembered between looks ([`behavior::History`], whose Pods an autoscaler selects) is lost with the process,
//! as upstream's is: the first recommendation is then the size found.

mod behavior;
mod metrics;
mod replicas;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, CrossVersionObjectReference, ExternalMetricStatus, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricIdentifier, MetricSpec, MetricStatus,
    MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as LabelSelectorText, Time};
use kube::api::{Api, PostParams};
use sampan_api::quantity::{Format, Quantity};
use sampan_api::selector::LabelSelector;
use sampan_client::{Change, EventType, Informer, Key, Recorder, WorkQueue, is_conflict, or_absent, owner};
use tokio::time::Instant;

use crate::pods::api_message;
use crate::{Context, SyncError};
use behavior::{Decision, History, Rules, Wish};
use metrics::{Described, Metrics, Place, Places, go_selector};
use replicas::{Readiness, Target, Tolerances};

/// How often a scale is written anew after a conflict.
const CONFLICTS: usize = 5;
const SCALED_TO_ZERO: &str = "ScaledToZero";

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
            }
            Change::Modified { .. } => this.queue.add_after(key, period),
            _ => {
                this.memory().entry(key.clone()).or_default();
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

/// What a metric asks for.
struct Proposal {
    replicas: i32,
    /// How the metric is called in messages.
    name: String,
    status: MetricStatus,
}

/// Why a metric asks for nothing: the condition's reason and message, and the error beside them.
struct Failure {
    reason: &'static str,
    message: String,
    error: String,
}

/// One look at one autoscaler.
struct Look {
    key: Key,
    before: Arc<HorizontalPodAutoscaler>,
    status: HorizontalPodAutoscalerStatus,
    now: Time,
}

impl Look {
    fn set(&mut self, kind: &str, status: bool, reason: &str, message: impl Into<String>) {
        let conditions = self.status.conditions.get_or_insert_default();
        let status = if status { "True" } else { "False" };
        let at = conditions.iter().position(|known| known.type_ == kind);
        let since = at
            .and_then(|at| conditions.get(at))
            .filter(|known| known.status == status)
            .and_then(|known| known.last_transition_time.clone());
        let new = HorizontalPodAutoscalerCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: since.or_else(|| Some(self.now.clone())),
        };
        match at.and_then(|at| conditions.get_mut(at)) {
            Some(known) => *known = new,
            None => conditions.push(new),
        }
    }

    fn forget(&mut self, kind: &str) {
        if let Some(conditions) = &mut self.status.conditions {
            conditions.retain(|condition| condition.type_ != kind);
        }
    }

    fn measured(&mut self, current: i32, desired: i32, metrics: Vec<MetricStatus>) {
        self.status.current_replicas = Some(current);
        self.status.desired_replicas = desired;
        self.status.current_metrics = Some(metrics).filter(|metrics| !metrics.is_empty());
        self.status.observed_generation = None;
    }
}

impl Controller {
    fn memory(&self) -> MutexGuard<'_, HashMap<Key, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
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
        };
        if let Err(error) = self.look(&mut look).await {
            tracing::debug!(autoscaler = %key, error, "an autoscaler could not do all of its work");
        }
        self.write(look).await;
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
            look.forget(SCALED_TO_ZERO);
            look.status.last_scale_time = Some(look.now.clone());
        }
        look.measured(current, desired, statuses);
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
            match asked.metric(spec).await {
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

/// What the metrics of one look are asked with.
struct Asked<'a> {
    controller: &'a Controller,
    namespace: &'a str,
    selector: &'a LabelSelector,
    pods: &'a [Arc<Pod>],
    current: i32,
    /// Replicas there are, by the scale's status.
    observed: i32,
    tolerances: Tolerances,
}

/// An amount in thousandths, as text.
fn quantity(milli: i64, resource: &str) -> Text {
    let format = if resource == "memory" {
        Format::BinarySi
    } else {
        Format::DecimalSi
    };
    Text(Quantity::milli(milli, format).to_string())
}

fn milli(target: Option<&Text>) -> Option<i64> {
    Some(Quantity::parse(&target?.0).ok()?.milli_value())
}

/// What a metric is called where `kubectl` and others read of it.
fn external_name(metric: &MetricIdentifier) -> String {
    format!(
        "external metric {}({})",
        metric.name,
        go_selector(metric.selector.as_ref())
    )
}

fn selector_text(selector: Option<&LabelSelectorText>) -> String {
    owner::selector(selector).map_or_else(String::new, |selector| selector.to_string())
}

impl Asked<'_> {
    fn readiness(&self) -> Readiness {
        let context = &self.controller.context;
        let span = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        Readiness {
            now: context.clock.now(),
            cpu_initialization: span(context.config.autoscaler.cpu_initialization),
            initial_delay: span(context.config.autoscaler.initial_readiness_delay),
        }
    }

    async fn metric(&self, spec: &MetricSpec) -> Result<Proposal, Failure> {
        let (reason, prefix, found) = if let Some(source) = &spec.resource {
            let found = self.resource(&source.target, &source.name, "").await;
            let found = found.map(|(replicas, name, current)| Proposal {
                replicas,
                name,
                status: MetricStatus {
                    type_: spec.type_.clone(),
                    resource: Some(ResourceMetricStatus {
                        name: source.name.clone(),
                        current,
                    }),
                    ..Default::default()
                },
            });
            let prefix = format!("failed to get {} resource metric value", source.name);
            ("FailedGetResourceMetric", prefix, found)
        } else if let Some(source) = &spec.container_resource {
            let found = self.resource(&source.target, &source.name, &source.container).await;
            let found = found.map(|(replicas, name, current)| Proposal {
                replicas,
                name,
                status: MetricStatus {
                    type_: spec.type_.clone(),
                    container_resource: Some(ContainerResourceMetricStatus {
                        name: source.name.clone(),
                        container: source.container.clone(),
                        current,
                    }),
                    ..Default::default()
                },
            });
            let prefix = format!("failed to get {} container metric value", source.container);
            ("FailedGetContainerResourceMetric", prefix, found)
        } else if spec.pods.is_some() {
            let prefix = "failed to get pods metric value".to_owned();
            ("FailedGetPodsMetric", prefix, self.of_pods(spec).await)
        } else if spec.object.is_some() {
            let prefix = "failed to get object metric value".to_owned();
            ("FailedGetObjectMetric", prefix, self.object(spec).await)
        } else if let Some(source) = &spec.external {
            let prefix = format!("failed to get {} external metric value", source.metric.name);
            ("FailedGetExternalMetric", prefix, self.external(spec).await)
        } else {
            let error = format!("unknown metric source type {:?}", spec.type_);
            return Err(Failure {
                reason: "InvalidMetricSourceType",
                message: error.clone(),
                error,
            });
        };
        found.map_err(|(message, error)| Failure {
            reason,
            message,
            error: format!("{prefix}: {error}"),
        })
    }

    /// Of Pods or of one container of each.
    async fn resource(
        &self,
        target: &MetricTarget,
        resource: &str,
        container: &str,
    ) -> Result<(i32, String, MetricValueStatus), (String, String)> {
        let found = self.resource_usage(target, resource, container).await;
        found.map_err(|error| (error.clone(), error))
    }

    async fn resource_usage(
        &self,
        target: &MetricTarget,
        resource: &str,
        container: &str,
    ) -> Result<(i32, String, MetricValueStatus), String> {
        let average = milli(target.average_value.as_ref());
        let (what, name) = match (average, target.average_utilization) {
            (Some(_), _) => ("usage", format!("{resource} resource")),
            (None, Some(_)) => {
                let of = if container.is_empty() {
                    "resource"
                } else {
                    "container resource"
                };
                (
                    "utilization",
                    format!("{resource} {of} utilization (percentage of request)"),
                )
            }
            (None, None) => {
                return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".into());
            }
        };
        let failed = |error: String| format!("failed to get {resource} {what}: {error}");
        let selector = self.selector.to_string();
        let metrics = self
            .controller
            .metrics
            .resource(resource, self.namespace, &selector, container);
        let metrics = metrics
            .await
            .map_err(|error| failed(format!("unable to get metrics for resource {resource}: {error}")))?;
        let target = || match (average, target.average_utilization) {
            (Some(average), _) => Ok(Target::Average(average)),
            (None, percent) => Ok(Target::Utilization {
                percent: percent.unwrap_or_default(),
                requests: replicas::requests(self.pods, container, resource)?,
            }),
        };
        let cpu = resource == "cpu";
        let found = replicas::for_pods(
            self.current,
            self.pods,
            metrics,
            cpu,
            self.readiness(),
            self.tolerances,
            target,
        );
        let (wanted, usage) = found.map_err(failed)?;
        let status = MetricValueStatus {
            average_utilization: usage.utilization,
            average_value: Some(quantity(usage.average, resource)),
            value: None,
        };
        Ok((wanted, name, status))
    }

    async fn of_pods(&self, spec: &MetricSpec) -> Result<Proposal, (String, String)> {
        let twice = |error: String| (error.clone(), error);
        let Some(source) = &spec.pods else {
            return Err(twice("invalid pods metric source".into()));
        };
        let metric = &source.metric;
        let (selector, own) = (self.selector.to_string(), selector_text(metric.selector.as_ref()));
        let metrics = self
            .controller
            .metrics
            .pods(&metric.name, self.namespace, &selector, &own);
        let metrics = metrics
            .await
            .map_err(|error| twice(format!("unable to get metric {}: {error}", metric.name)))?;
        let target = || {
            milli(source.target.average_value.as_ref())
                .map(Target::Average)
                .ok_or_else(|| "invalid pods metric source: no average value target was set".to_owned())
        };
        let found = replicas::for_pods(
            self.current,
            self.pods,
            metrics,
            false,
            self.readiness(),
            self.tolerances,
            target,
        );
        let (replicas, usage) = found.map_err(twice)?;
        Ok(Proposal {
            replicas,
            name: format!("pods metric {}", metric.name),
            status: MetricStatus {
                type_: spec.type_.clone(),
                pods: Some(PodsMetricStatus {
                    metric: metric.clone(),
                    current: MetricValueStatus {
                        average_value: Some(quantity(usage.average, "")),
                        ..Default::default()
                    },
                }),
                ..Default::default()
            },
        })
    }

    async fn object(&self, spec: &MetricSpec) -> Result<Proposal, (String, String)> {
        let twice = |error: String| (error.clone(), error);
        let Some(source) = &spec.object else {
            return Err(twice("invalid object metric source".into()));
        };
        let (metric, described) = (&source.metric, &source.described_object);
        let value = async {
            let kind = described.kind.as_str();
            let group = group_of(described.api_version.as_deref().unwrap_or_default())?;
            let resource = if (group, kind) == ("", "Namespace") {
                String::new()
            } else {
                let client = &self.controller.context.client;
                let places = self.controller.places.of(client, group, kind).await;
                let unable = |error| {
                    let group = if group.is_empty() {
                        String::new()
                    } else {
                        format!(".{group}")
                    };
                    format!(
                        "unable to fetch metrics from custom metrics API: unable to map kind {kind}{group} to resource: {error}"
                    )
                };
                places
                    .map_err(unable)?
                    .first()
                    .map(Place::qualified)
                    .unwrap_or_default()
            };
            let object = Described {
                resource: &resource,
                name: &described.name,
            };
            let own = selector_text(metric.selector.as_ref());
            self.controller
                .metrics
                .object(&metric.name, self.namespace, &object, &own)
                .await
        };
        let value = value.await.map_err(|error: String| {
            let about = format!("{} {}/{}", described.kind, self.namespace, described.name);
            format!("unable to get metric {}: {error} on {about}", metric.name)
        });
        let target = &source.target;
        let status = |current| MetricStatus {
            type_: spec.type_.clone(),
            object: Some(ObjectMetricStatus {
                described_object: described.clone(),
                metric: metric.clone(),
                current,
            }),
            ..Default::default()
        };
        match (
            target.type_.as_str(),
            milli(target.value.as_ref()),
            milli(target.average_value.as_ref()),
        ) {
            ("Value", Some(target), _) => {
                let value = value.map_err(twice)?;
                let replicas = replicas::for_value(self.current, self.pods, value, target, self.tolerances);
                Ok(Proposal {
                    replicas: replicas.map_err(twice)?,
                    name: format!("{} metric {}", described.kind, metric.name),
                    status: status(MetricValueStatus {
                        value: Some(quantity(value, "")),
                        ..Default::default()
                    }),
                })
            }
            ("AverageValue", _, Some(target)) => {
                let failed = |error: String| {
                    let whole = format!("failed to get {} object metric: {error}", metric.name);
                    (error, whole)
                };
                let value = value.map_err(failed)?;
                let (replicas, share) = replicas::for_share(self.observed, value, target, self.tolerances);
                Ok(Proposal {
                    replicas,
                    name: external_name(metric),
                    status: status(MetricValueStatus {
                        average_value: Some(quantity(share, "")),
                        ..Default::default()
                    }),
                })
            }
            _ => Err(twice(
                "invalid object metric source: neither a value target nor an average value target was set".into(),
            )),
        }
    }

    async fn external(&self, spec: &MetricSpec) -> Result<Proposal, (String, String)> {
        let twice = |error: String| (error.clone(), error);
        let Some(source) = &spec.external else {
            return Err(twice("invalid external metric source".into()));
        };
        let metric = &source.metric;
        let name = &metric.name;
        let (average, whole) = (
            milli(source.target.average_value.as_ref()),
            milli(source.target.value.as_ref()),
        );
        if average.is_none() && whole.is_none() {
            return Err(twice(
                "invalid external metric source: neither a value target nor an average value target was set".into(),
            ));
        }
        let own = selector_text(metric.selector.as_ref());
        let values = self.controller.metrics.external(name, self.namespace, &own).await;
        let values = values.map_err(|error| {
            let namespace = self.namespace;
            let selector = go_selector(metric.selector.as_ref());
            format!("unable to get external metric {namespace}/{name}/{selector}: {error}")
        });
        let failed = |error: String| {
            let whole = match average {
                Some(_) => format!("failed to get {name} external metric: {error}"),
                None => format!("failed to get external metric {name}: {error}"),
            };
            (error, whole)
        };
        let sum = values.map_err(failed)?.into_iter().fold(0i64, i64::saturating_add);
        let (replicas, current) = match (average, whole) {
            (Some(average), _) => {
                let (replicas, share) = replicas::for_share(self.observed, sum, average, self.tolerances);
                let current = MetricValueStatus {
                    average_value: Some(quantity(share, "")),
                    ..Default::default()
                };
                (replicas, current)
            }
            (None, target) => {
                let target = target.unwrap_or_default();
                let replicas = replicas::for_value(self.current, self.pods, sum, target, self.tolerances);
                let current = MetricValueStatus {
                    value: Some(quantity(sum, "")),
                    ..Default::default()
                };
                (replicas.map_err(failed)?, current)
            }
        };
        Ok(Proposal {
            replicas,
            name: external_name(metric),
            status: MetricStatus {
                type_: spec.type_.clone(),
                external: Some(ExternalMetricStatus {
                    metric: metric.clone(),
                    current,
                }),
                ..Default::default()
            },
        })
    }
}
