//! The APIServices of what we answer ourselves.
//!
//! Every built-in and custom group version has one, as clients expect: made when it is missing, taken away with the
//! custom resources it stood for, and always available. What somebody else made or took over (no label of ours) is
//! left alone, and one for a built-in group version is looked after once, at start, as upstream does. That of resource
//! metrics is ours while nobody else's: it gives way to one that names a Service, and comes back when that goes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use sampan_api::{Object, meta, time};
use sampan_kinds::{Part, metrics};
use sampan_tasks::OnExit;
use serde_json::{Value, json};

use super::{GROUP, PLURAL, priority};
use crate::Refusal;
use crate::control_plane::ControlPlane;
use crate::registry::Call;
use crate::request::{DeleteOptions, WriteOptions};
use crate::watch_cache::{Scope, Start, Storage};

const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Looked after at start, and looked after always.
const ON_START: &str = "onstart";
const ALWAYS: &str = "true";
/// Writes at once.
const WIDTH: usize = 64;

pub fn start(plane: &Arc<ControlPlane>) {
    let Some(storage) = plane.registry.storage_of(GROUP, PLURAL) else {
        return;
    };
    let plane = plane.clone();
    plane
        .tasks
        .clone()
        .spawn_until_drain("local-api-services", OnExit::Critical, async move {
            let mut rows = plane.registry.rows.changes();
            let mut settled = HashSet::new();
            while !plane.tasks.drain().is_started() {
                let known = plane.registry.cache.revision();
                let Ok(mut watch) = storage.watch(Scope::All, Start::After(known), known) else {
                    continue;
                };
                loop {
                    rows.borrow_and_update();
                    settle(&plane, &storage, &mut settled).await;
                    let open = tokio::select! {
                        change = watch.queue.recv() => change.is_some(),
                        changed = rows.changed() => changed.is_ok(),
                    };
                    if !open {
                        break;
                    }
                    while watch.queue.try_recv().is_ok() {}
                }
            }
        });
}

/// One write that is due.
enum Due {
    Create(Object),
    Spec(String, Value),
    Delete(String),
    Available(String),
}

/// One round; a change it makes is seen and leads to the next. `settled` are those for built-in group versions that
/// were looked after once.
async fn settle(plane: &Arc<ControlPlane>, storage: &Storage, settled: &mut HashSet<String>) {
    let wanted = wanted(plane);
    let stored: BTreeMap<String, Object> = storage
        .snapshot(0)
        .index
        .iter()
        .map(|entry| (entry.name().to_owned(), entry.object()))
        .collect();
    let due = due(&wanted, &stored, settled);
    let results: Vec<(String, Result<(), Refusal>)> = futures::stream::iter(due)
        .map(|due| write(plane, due))
        .buffer_unordered(WIDTH)
        .collect()
        .await;
    for (name, result) in results {
        match result {
            // Somebody was quicker; their change brings us back.
            Err(refusal) if !matches!(&*refusal.reason, "AlreadyExists" | "NotFound" | "Conflict") => {
                tracing::warn!(
                    name,
                    error = refusal.message,
                    "a local APIService is not as it should be"
                );
                settled.remove(&name);
            }
            _ => {}
        }
    }
}

fn due(
    wanted: &BTreeMap<String, Object>,
    stored: &BTreeMap<String, Object>,
    settled: &mut HashSet<String>,
) -> Vec<Due> {
    let managed = |object: &Object| meta::label(object, MANAGED).map(str::to_owned);
    let first = settled.is_empty();
    let mut due = Vec::new();
    for (name, object) in wanted {
        if *name == metrics_service() {
            match stored.get(name) {
                None => due.push(Due::Create(object.clone())),
                Some(current)
                    if current
                        .pointer("/spec/service")
                        .is_some_and(|service| !service.is_null()) => {}
                Some(current) if managed(current).is_some() && current.get("spec") != object.get("spec") => {
                    due.push(Due::Spec(name.clone(), object["spec"].clone()));
                }
                Some(_) => {}
            }
            settled.insert(name.clone());
            continue;
        }
        let once = managed(object).as_deref() == Some(ON_START);
        if once && !settled.insert(name.clone()) {
            continue;
        }
        match stored.get(name) {
            None => due.push(Due::Create(object.clone())),
            Some(current) if managed(current).is_none() => {}
            Some(current) if current.get("spec") != object.get("spec") => {
                due.push(Due::Spec(name.clone(), object["spec"].clone()));
            }
            Some(_) => {}
        }
    }
    for (name, current) in stored {
        let spurious = match managed(current).as_deref() {
            Some(ALWAYS) => !wanted.contains_key(name),
            Some(ON_START) => first && !wanted.contains_key(name),
            _ => false,
        };
        if spurious {
            due.push(Due::Delete(name.clone()));
        } else if current.pointer("/spec/service").is_none() && !is_local(current) {
            due.push(Due::Available(name.clone()));
        }
    }
    due
}

fn metrics_service() -> String {
    format!("{}.{}", metrics::VERSION, metrics::GROUP)
}

/// What there should be, by name.
fn wanted(plane: &ControlPlane) -> BTreeMap<String, Object> {
    let table = plane.registry.rows.get();
    let mut wanted = BTreeMap::new();
    for row in &table.rows {
        let (group, version) = (row.spec.group, row.spec.version);
        if group == GROUP {
            continue;
        }
        let name = format!("{version}.{group}");
        let custom = row.custom.is_some();
        wanted.entry(name.clone()).or_insert_with(|| {
            let place = if custom {
                priority::CUSTOM
            } else {
                priority::of(group, version)
            };
            let mut spec = json!({
                "version": version, "groupPriorityMinimum": place.group, "versionPriority": place.version,
            });
            if !group.is_empty() {
                spec["group"] = group.into();
            }
            let label = if custom { ALWAYS } else { ON_START };
            json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": name, "labels": {MANAGED: label}}, "spec": spec,
            })
        });
    }
    wanted
}

async fn write(plane: &Arc<ControlPlane>, due: Due) -> (String, Result<(), Refusal>) {
    let registry = &plane.registry;
    let name = match &due {
        Due::Create(object) => meta::name(object).to_owned(),
        Due::Spec(name, _) | Due::Delete(name) | Due::Available(name) => name.clone(),
    };
    let Some(row) = registry.row(GROUP, PLURAL) else {
        return (name, Ok(()));
    };
    let options = WriteOptions::default();
    let call = |verb: &str| Call::internal(row.clone(), verb, "", &name);
    let result = match due {
        Due::Create(mut object) => {
            row.default(&mut object);
            registry.create(&mut call("create"), object, &options).await.map(|_| ())
        }
        Due::Delete(_) => registry
            .delete(&mut call("delete"), &DeleteOptions::default())
            .await
            .map(|_| ()),
        Due::Spec(_, spec) => {
            let make = &mut |_: &mut Call, current: &Object| {
                let mut new = current.clone();
                new["spec"] = spec.clone();
                Ok(new)
            };
            registry
                .rewrite(&mut call("update"), Part::Main, &options, make)
                .await
                .map(|_| ())
        }
        Due::Available(_) => set_available(plane, &name, &local()).await,
    };
    (name, result)
}

/// One verdict on an APIService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub available: bool,
    pub reason: &'static str,
    pub message: String,
}

fn local() -> Verdict {
    Verdict {
        available: true,
        reason: "Local",
        message: "Local APIServices are always available".to_owned(),
    }
}

fn is_local(object: &Object) -> bool {
    condition(object).is_some_and(|condition| says(condition, &local()))
}

/// The condition `Available`.
pub fn condition(object: &Object) -> Option<&Value> {
    object
        .pointer("/status/conditions")?
        .as_array()?
        .iter()
        .find(|condition| condition.get("type").and_then(Value::as_str) == Some("Available"))
}

/// Whether a condition says just this.
pub fn says(condition: &Value, verdict: &Verdict) -> bool {
    let is = |field: &str, text: &str| condition.get(field).and_then(Value::as_str) == Some(text);
    is("status", if verdict.available { "True" } else { "False" })
        && is("reason", verdict.reason)
        && is("message", &verdict.message)
}

/// Tells a verdict in an APIService's status.
pub async fn set_available(plane: &Arc<ControlPlane>, name: &str, verdict: &Verdict) -> Result<(), Refusal> {
    let registry = &plane.registry;
    let Some(row) = registry.row(GROUP, PLURAL) else {
        return Ok(());
    };
    let mut call = Call::internal(row, "update", "", name);
    let make = &mut |_: &mut Call, current: &Object| Ok(with_verdict(current, verdict));
    registry
        .rewrite(&mut call, Part::View("status"), &WriteOptions::default(), make)
        .await
        .map(|_| ())
}

fn with_verdict(object: &Object, verdict: &Verdict) -> Object {
    let status = if verdict.available { "True" } else { "False" };
    let since = condition(object)
        .filter(|known| known.get("status").and_then(Value::as_str) == Some(status))
        .and_then(|known| known.get("lastTransitionTime").cloned())
        .unwrap_or_else(|| time::now().into());
    let new = json!({
        "type": "Available", "status": status, "lastTransitionTime": since,
        "reason": verdict.reason, "message": verdict.message,
    });
    let mut object = object.clone();
    let mut conditions: Vec<Value> = object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    match conditions
        .iter_mut()
        .find(|known| known.get("type").and_then(Value::as_str) == Some("Available"))
    {
        Some(known) => *known = new,
        None => conditions.push(new),
    }
    let status = meta::ensure_map(meta::ensure_map(&mut object).entry("status").or_insert(Value::Null));
    status.insert("conditions".into(), conditions.into());
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, label: &str, spec: Value) -> (String, Object) {
        let mut object = json!({"metadata": {"name": name}, "spec": spec});
        if !label.is_empty() {
            object["metadata"]["labels"] = json!({MANAGED: label});
        }
        (name.to_owned(), with_verdict(&object, &local()))
    }

    fn names(due: &[Due]) -> Vec<String> {
        due.iter()
            .map(|due| match due {
                Due::Create(object) => format!("create {}", meta::name(object)),
                Due::Spec(name, _) => format!("update {name}"),
                Due::Delete(name) => format!("delete {name}"),
                Due::Available(name) => format!("available {name}"),
            })
            .collect()
    }

    #[test]
    fn what_is_ours_is_kept_and_what_is_not_is_left_alone() {
        let (good, bad) = (json!({"version": "v1"}), json!({"version": "v1", "versionPriority": 7}));
        let wanted: BTreeMap<_, _> = [
            service("v1.new", ON_START, good.clone()),
            service("v1.changed", ON_START, good.clone()),
            service("v1.taken", ON_START, good.clone()),
            service("v1.custom", ALWAYS, good.clone()),
        ]
        .into();
        let mut stored: BTreeMap<_, _> = [
            service("v1.changed", ON_START, bad.clone()),
            service("v1.taken", "", bad.clone()),
            service("v1.custom", ALWAYS, bad.clone()),
            service("v1.gone", ON_START, good.clone()),
            service("v1.gone-custom", ALWAYS, good.clone()),
            service("v1.theirs", "", good.clone()),
        ]
        .into();
        stored.insert("v1.fresh".into(), json!({"metadata": {"name": "v1.fresh"}, "spec": {}}));
        let (ours, theirs) = (json!({"version": "v1beta1"}), json!({"service": {"name": "theirs"}}));
        let own = BTreeMap::from([service("v1beta1.metrics.k8s.io", ON_START, ours)]);
        for settled in [HashSet::new(), HashSet::from(["v1beta1.metrics.k8s.io".to_owned()])] {
            let all = |stored| names(&due(&own, &stored, &mut settled.clone()));
            assert_eq!(all(BTreeMap::new()), ["create v1beta1.metrics.k8s.io"]);
            let taken = BTreeMap::from([service("v1beta1.metrics.k8s.io", ON_START, theirs.clone())]);
            assert!(all(taken).is_empty() && all(own.clone()).is_empty());
        }
        let mut settled = HashSet::new();
        let mut first = names(&due(&wanted, &stored, &mut settled));
        first.sort();
        assert_eq!(
            first,
            [
                "available v1.fresh",
                "create v1.new",
                "delete v1.gone",
                "delete v1.gone-custom",
                "update v1.changed",
                "update v1.custom"
            ]
        );
        let mut second = names(&due(&wanted, &stored, &mut settled));
        second.sort();
        assert_eq!(
            second,
            ["available v1.fresh", "delete v1.gone-custom", "update v1.custom"]
        );
    }

    #[test]
    fn the_time_of_a_verdict_is_that_of_its_change() {
        let at = |object: &Object| condition(object).unwrap()["lastTransitionTime"].clone();
        let mut object = with_verdict(&json!({}), &local());
        object["status"]["conditions"][0]["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        let other = Verdict {
            reason: "Passed",
            ..local()
        };
        assert_eq!(at(&with_verdict(&object, &other)), "2020-01-01T00:00:00Z");
        let failed = Verdict {
            available: false,
            ..other
        };
        assert_ne!(at(&with_verdict(&object, &failed)), "2020-01-01T00:00:00Z");
    }
}
