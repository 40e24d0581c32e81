//! Resource metrics: `metrics.k8s.io/v1beta1`, what nodes and their Pods use at the moment.
//!
//! The figures are the nodes' own (`/metrics/resource`, upstream's nodes have it too). Nothing is stored and nothing is
//! asked while nobody wants to know: a request asks those nodes that it is about, all at once but for a bound, and what
//! they said is told again for some seconds (see [`series`]). A node that is known to be gone, or did not answer
//! lately, is not asked, and left out of the answer.
//!
//! An APIService that names a Service for this group version is answered by that Service, like any other: then
//! nothing here is reached.

mod sample;
mod series;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Request;
use http_body_util::{BodyExt, Limited};
use jiff::{SignedDuration, Timestamp};
use sampan_api::quantity::{Format, Quantity};
use sampan_api::status::Status;
use sampan_api::{Object, time};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::registry::reply::Reply;
use crate::registry::{Call, Filter};
use crate::request::ListOptions;
use crate::streaming::{forward, node_target};
use crate::sync::lock;
use crate::watch_cache::{Entry, Scope, Storage};
use crate::{Refusal, refuse};

use sample::Sample;
use series::{Rate, Series, Window};

/// Nodes asked at once.
const AT_ONCE: usize = 64;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The largest answer.
const LARGEST: usize = 16 << 20;

/// What is remembered of nodes.
pub struct Usage {
    nodes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Series>>>>,
    turns: Semaphore,
}

impl Default for Usage {
    fn default() -> Self {
        Usage {
            nodes: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
        }
    }
}

/// Answers a get or a list of one of the two resources.
pub async fn read(plane: &Arc<ControlPlane>, call: &Call) -> Result<Reply, Refusal> {
    let (Some(nodes), Some(pods)) = (
        plane.registry.storage_of("", "nodes"),
        plane.registry.storage_of("", "pods"),
    ) else {
        return Err(call.not_supported());
    };
    let of_nodes = call.row.spec.plural == "nodes";
    // A list of one by its name has a name too.
    let named = call.info.verb == "get";
    let wanted = if named {
        let path = if of_nodes { call.info.name.clone() } else { call.path() };
        let storage = if of_nodes { &nodes } else { &pods };
        let found = storage.get(&path).filter(|entry| of_nodes || runs(&pods, entry));
        vec![found.ok_or_else(|| refuse(Status::not_found("", call.row.spec.plural, &call.info.name)))?]
    } else {
        select(plane, call, if of_nodes { &nodes } else { &pods })?
    };
    let mut objects = if of_nodes {
        let names = wanted.iter().map(|node| node.name());
        let windows = plane.usage.windows(plane, &nodes, names).await;
        let rate = |node: &Entry| windows.get(node.name())?.node();
        wanted
            .iter()
            .filter_map(|node| Some(node_metrics(&nodes, node, rate(node)?)))
            .collect::<Vec<_>>()
    } else {
        let places: Vec<_> = wanted.iter().map(|pod| field(&pods, pod, "spec.nodeName")).collect();
        let windows = plane
            .usage
            .windows(plane, &nodes, places.iter().map(String::as_str))
            .await;
        let both = wanted.iter().zip(&places);
        both.filter_map(|(pod, node)| {
            let measured = windows.get(node)?.pod(pod.namespace(), pod.name())?;
            pod_metrics(&pods, pod, &measured)
        })
        .collect()
    };
    if !named {
        return Ok(Reply::Objects(objects));
    }
    let Some(mut object) = objects.pop() else {
        let name = if of_nodes {
            call.info.name.clone()
        } else {
            format!("{}/{}", call.info.namespace, call.info.name)
        };
        let spec = call.row.spec;
        return Err(refuse(Status::not_found(spec.group, spec.plural, &name)));
    };
    object["kind"] = call.row.spec.kind.into();
    object["apiVersion"] = call.row.api_version.as_str().into();
    Ok(Reply::Object(200, object))
}

/// The nodes or running Pods that a list is about.
fn select(plane: &ControlPlane, call: &Call, storage: &Storage) -> Result<Vec<Arc<Entry>>, Refusal> {
    let mut options = ListOptions::parse(&call.query, false)?;
    let plural = call.row.spec.plural;
    if plural == "pods" {
        if !options.field_selector.is_empty() {
            options.field_selector.push(',');
        }
        options.field_selector.push_str("status.phase=Running");
    }
    let table = plane.registry.rows.get();
    let row = table.of("", plural).ok_or_else(|| call.not_supported())?;
    let filter = Filter::new(row, storage, &call.info.namespace, "", &options)?;
    let snapshot = storage.snapshot(plane.registry.cache.revision());
    if let Scope::Object(path) = &filter.scope {
        let found = snapshot.index.get(path).filter(|entry| filter.matches(storage, entry));
        return Ok(found.cloned().into_iter().collect());
    }
    let prefix = match filter.namespace() {
        "" => String::new(),
        namespace => format!("{namespace}/"),
    };
    let scope = snapshot.index.from(&prefix);
    let scope = scope.take_while(|entry| entry.path().starts_with(&prefix));
    Ok(scope.filter(|entry| filter.matches(storage, entry)).cloned().collect())
}

fn field(storage: &Storage, entry: &Entry, label: &str) -> String {
    let at = storage.fields().iter().position(|known| known.label == label);
    let fields = &entry.attributes(storage.fields()).fields;
    at.and_then(|at| fields.get(at)).map_or("", |value| value).to_owned()
}

fn runs(pods: &Storage, pod: &Entry) -> bool {
    field(pods, pod, "status.phase") == "Running"
}

impl Usage {
    /// The windows of these nodes, of those that answer.
    async fn windows<'a>(
        &self,
        plane: &ControlPlane,
        nodes: &Storage,
        names: impl Iterator<Item = &'a str>,
    ) -> HashMap<String, Window> {
        let distinct: BTreeMap<&str, Arc<Entry>> = names
            .filter(|name| !name.is_empty())
            .filter_map(|name| Some((name, nodes.get(name)?)))
            .collect();
        let asked: FuturesUnordered<_> = distinct
            .into_iter()
            .map(|(name, node)| async move { Some((name.to_owned(), self.window(plane, name, &node).await?)) })
            .collect();
        let known = asked.filter_map(std::future::ready).collect().await;
        let mut remembered = lock(&self.nodes);
        if remembered.len() > nodes.len() {
            remembered.retain(|name, _| nodes.get(name).is_some());
        }
        known
    }

    async fn window(&self, plane: &ControlPlane, name: &str, node: &Entry) -> Option<Window> {
        let node = node.object();
        if is_unheard_of(&node) {
            return None;
        }
        let series = lock(&self.nodes).entry(name.to_owned()).or_default().clone();
        // Who comes meanwhile waits for the same answer.
        let mut series = series.lock().await;
        series.window(|| self.take(plane, &node)).await
    }

    async fn take(&self, plane: &ControlPlane, node: &Object) -> Result<Sample, String> {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        let asked = tokio::time::timeout(PATIENCE, ask(plane, node));
        asked.await.unwrap_or_else(|_| Err("it takes too long".to_owned()))
    }
}

/// Whether a node has not been heard of for so long that asking it is in vain.
fn is_unheard_of(node: &Object) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "Unknown")
}

async fn ask(plane: &ControlPlane, node: &Object) -> Result<Sample, String> {
    let target = node_target(node, "/metrics/resource".into()).map_err(|refused| refused.message.clone())?;
    let request = Request::new(Body::Empty);
    let answer = forward(&plane.backends, &plane.tasks, request, &target, &target.authority())
        .await
        .map_err(|failure| failure.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    Ok(Sample::parse(&String::from_utf8_lossy(&body), Timestamp::now()))
}

fn amounts(rate: &Rate) -> Value {
    // A sum is printed canonically, a text read is not.
    let cpu = Quantity::parse(&format!("{}n", rate.cpu)).map(|cpu| Quantity::zero().add(&cpu));
    let memory = i64::try_from(rate.memory).unwrap_or(i64::MAX);
    json!({
        "cpu": cpu.unwrap_or_else(|_| Quantity::zero()).to_string(),
        "memory": Quantity::new(memory, Format::BinarySi).to_string(),
    })
}

/// The head of both kinds.
fn described(storage: &Storage, entry: &Entry, at: Timestamp, window: SignedDuration) -> Object {
    let labels: BTreeMap<&str, &str> = entry
        .attributes(storage.fields())
        .labels
        .iter()
        .map(|(key, value)| (&**key, &**value))
        .collect();
    let mut metadata = json!({"name": entry.name(), "creationTimestamp": time::now()});
    if !entry.namespace().is_empty() {
        metadata["namespace"] = entry.namespace().into();
    }
    if !labels.is_empty() {
        metadata["labels"] = json!(labels);
    }
    json!({"metadata": metadata, "timestamp": time::format(at), "window": go_duration(window)})
}

fn node_metrics(nodes: &Storage, node: &Entry, rate: Rate) -> Object {
    let mut object = described(nodes, node, rate.at, rate.window);
    object["usage"] = amounts(&rate);
    object
}

/// The window of a Pod is that of the container that was read first.
fn pod_metrics(pods: &Storage, pod: &Entry, containers: &[(&str, Rate)]) -> Option<Object> {
    let (_, first) = containers.iter().min_by_key(|(_, rate)| rate.at)?;
    let mut object = described(pods, pod, first.at, first.window);
    let each = containers.iter();
    object["containers"] = each
        .map(|(name, rate)| json!({"name": name, "usage": amounts(rate)}))
        .collect();
    Some(object)
}

/// A duration as Go prints it: `1m0.5s`.
fn go_duration(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos().max(0);
    let (minutes, nanos) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
    let (whole, part) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let seconds = format!("{whole}.{part:09}");
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.').to_owned();
    match (minutes / 60, minutes % 60) {
        (0, 0) if whole == 0 && part > 0 => format!("{}ms", part as f64 / 1e6),
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_amounts_are_printed_as_go_prints_them() {
        let cases = [
            (0, "0s"),
            (500, "500ms"),
            (1_000, "1s"),
            (15_021, "15.021s"),
            (60_500, "1m0.5s"),
            (3_600_000, "1h0m0s"),
        ];
        for (milliseconds, text) in cases {
            assert_eq!(go_duration(SignedDuration::from_millis(milliseconds)), text);
        }
        let rate = |cpu, memory| Rate {
            cpu,
            memory,
            at: Timestamp::UNIX_EPOCH,
            window: SignedDuration::ZERO,
        };
        let cases = [
            (rate(123_456_789, 1 << 20), "123456789n", "1Mi"),
            (rate(1_500_000_000, 1000), "1500m", "1k"),
            (rate(0, 2048), "0", "2Ki"),
        ];
        for (rate, cpu, memory) in cases {
            assert_eq!(amounts(&rate), json!({"cpu": cpu, "memory": memory}));
        }
    }
}
