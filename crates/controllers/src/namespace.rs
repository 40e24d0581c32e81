//! Empties namespaces that are being deleted, then lets them go.
//!
//! Pods go first and alone: while they terminate they may still need their ConfigMaps, Secrets and policies. After them
//! every other resource that discovery knows and that can be deleted. What remains is told in the namespace's
//! conditions. When nothing remains the finalizer `kubernetes` is taken off through the `finalize` subresource.
//!
//! Differs from upstream: the end of the last Pod is an event here, not a waiting time; other leftovers (objects with
//! finalizers) are looked at again after a pause that grows up to ten seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, PartialObjectMeta};
use sampan_client::{Backoff, Change, Informer, Key, WorkQueue, is_not_found, or_absent, retry_on_conflict};

use crate::discovery::{Served, discover};
use crate::{Context, SyncError};

const FINALIZER: &str = "kubernetes";

/// Whether a namespace is on its way out.
pub(crate) fn is_terminating(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
        || namespace
            .status
            .as_ref()
            .is_some_and(|status| status.phase.as_deref() == Some("Terminating"))
}

struct Deleter {
    context: Context,
    namespaces: Informer<Namespace>,
    queue: WorkQueue<Key>,
}

pub(crate) fn start(context: Context) {
    let namespaces = context.informers.of::<Namespace>();
    let pods = context.informers.of::<Pod>();
    let queue: WorkQueue<Key> = WorkQueue::new(Backoff {
        base: Duration::from_millis(200),
        max: Duration::from_secs(10),
    });
    let changed = queue.clone();
    namespaces.on_change(move |change| {
        let namespace = change.object();
        if namespace.metadata.deletion_timestamp.is_some() && !matches!(change, Change::Deleted(_)) {
            changed.add(Key::of(namespace.as_ref()));
        }
    });
    let (gone, known) = (queue.clone(), namespaces.clone());
    pods.on_change(move |change| {
        if let Change::Deleted(pod) = change {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            if known.get("", namespace).is_some_and(|n| is_terminating(&n)) {
                gone.add(Key::new("", namespace));
            }
        }
    });
    let ready = {
        let namespaces = namespaces.clone();
        async move {
            namespaces.synced().await;
            pods.synced().await;
        }
    };
    let deleter = Arc::new(Deleter {
        context: context.clone(),
        namespaces,
        queue: queue.clone(),
    });
    context.run(&queue, ready, move |key| {
        let deleter = Arc::clone(&deleter);
        async move { deleter.sync(&key.name).await }
    });
}

/// What deleting the content of a namespace has come to.
#[derive(Default)]
struct Outcome {
    discovery_error: Option<String>,
    errors: Vec<String>,
    /// `pods.` → how many are left.
    remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
}

impl Deleter {
    async fn sync(&self, name: &str) -> Result<(), SyncError> {
        if self.namespaces.get("", name).is_none() {
            return Ok(());
        }
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        // Several controllers may work on a dying namespace: the cache is not good enough.
        let Some(namespace) = or_absent(api.get(name).await)? else {
            return Ok(());
        };
        let ours = namespace
            .spec
            .iter()
            .flat_map(|spec| spec.finalizers.iter().flatten())
            .any(|finalizer| finalizer == FINALIZER);
        if namespace.metadata.deletion_timestamp.is_none() || !ours {
            return Ok(());
        }
        let since = namespace.metadata.deletion_timestamp.as_ref();
        let age = since.map_or(SignedDuration::ZERO, |since| {
            self.context.clock.now().duration_since(since.0)
        });
        let mut outcome = self.delete_content(name, age).await;
        outcome.errors.sort();
        self.report(&api, &namespace, &outcome).await?;
        if let Some(error) = outcome.errors.first().or(outcome.discovery_error.as_ref()) {
            return Err(SyncError::other(error.clone()));
        }
        if !outcome.remaining.is_empty() {
            // The end of a Pod brings us back at once; anything else is looked at less and less often.
            let pause = u64::try_from(age.as_millis() / 5).unwrap_or(0).clamp(200, 10_000);
            self.queue.add_after(Key::new("", name), Duration::from_millis(pause));
            return Ok(());
        }
        let finalized = retry_on_conflict(|| async {
            let mut namespace = api.get(name).await?;
            if let Some(spec) = &mut namespace.spec {
                spec.finalizers
                    .get_or_insert_default()
                    .retain(|finalizer| finalizer != FINALIZER);
            }
            api.replace_subresource("finalize", name, &PostParams::default(), &namespace)
                .await
        })
        .await;
        or_absent(finalized)?;
        Ok(())
    }

    async fn delete_content(&self, namespace: &str, age: SignedDuration) -> Outcome {
        let mut outcome = Outcome::default();
        let all = match discover(&self.context.client).await {
            // What is known is deleted; what is not holds the namespace.
            Ok(found) => {
                outcome.discovery_error = found.trouble().map(|trouble| {
                    let failing = found.failed.len();
                    format!("Discovery failed for some groups, {failing} failing: {trouble}")
                });
                found.resources
            }
            Err(error) => {
                outcome.discovery_error = Some(crate::pods::api_message(&error));
                return outcome;
            }
        };
        let is_pods = |one: &&Served| one.resource.group.is_empty() && one.resource.plural == "pods";
        let deletable = |one: &&Served| one.namespaced && one.can("delete") && one.can("list");
        let mut deletable: Vec<&Served> = all.iter().filter(deletable).collect();
        if let Some(place) = deletable.iter().position(is_pods) {
            let pods = deletable.swap_remove(place);
            self.delete_all(namespace, pods, age, &mut outcome).await;
            if !outcome.remaining.is_empty() || !outcome.errors.is_empty() {
                return outcome;
            }
        }
        for one in deletable {
            self.delete_all(namespace, one, age, &mut outcome).await;
        }
        outcome
    }

    /// Deletes the objects of one resource and counts what is left. `age`: since when the namespace is to go.
    async fn delete_all(&self, namespace: &str, one: &Served, age: SignedDuration, outcome: &mut Outcome) {
        let api: Api<DynamicObject> = Api::namespaced_with(self.context.client.clone(), namespace, &one.resource);
        match self.try_delete_all(&api, one).await {
            Ok(left) if left.is_empty() => {}
            Ok(left) => {
                let name = format!("{}.{}", one.resource.plural, one.resource.group);
                outcome.remaining.insert(name, left.len());
                // Until their grace is over it is no wonder that Pods are there.
                let grace = left
                    .iter()
                    .filter_map(|object| object.metadata.deletion_grace_period_seconds);
                let late = age >= SignedDuration::from_secs(grace.max().unwrap_or(0));
                let held = |finalizers: &Option<Vec<String>>| finalizers.iter().flatten().next().is_some();
                if late && !left.iter().any(|object| held(&object.metadata.finalizers)) {
                    let ApiResource {
                        group, version, plural, ..
                    } = &one.resource;
                    outcome.errors.push(format!(
                        "unexpected items still remain in namespace: {namespace} for gvr: {group}/{version}, Resource={plural}"
                    ));
                }
                for object in left {
                    for finalizer in object.metadata.finalizers.unwrap_or_default() {
                        *outcome.finalizers.entry(finalizer).or_default() += 1;
                    }
                }
            }
            // The resource itself went away (its CRD was deleted): nothing is left.
            Err(error) if is_not_found(&error) => {}
            Err(error) => outcome.errors.push(crate::pods::api_message(&error)),
        }
    }

    async fn try_delete_all(
        &self,
        api: &Api<DynamicObject>,
        one: &Served,
    ) -> kube::Result<Vec<PartialObjectMeta<DynamicObject>>> {
        let everything = ListParams::default();
        let before = api.list_metadata(&everything).await?.items;
        if before.is_empty() {
            return Ok(Vec::new());
        }
        let params = DeleteParams::background();
        if before.iter().any(|o| o.metadata.deletion_timestamp.is_none()) {
            if one.can("deletecollection") {
                api.delete_collection(&params, &everything).await?;
            } else {
                for object in &before {
                    let name = object.metadata.name.as_deref().unwrap_or_default();
                    or_absent(api.delete(name, &params).await)?;
                }
            }
        }
        Ok(api.list_metadata(&everything).await?.items)
    }

    async fn report(&self, api: &Api<Namespace>, namespace: &Namespace, outcome: &Outcome) -> Result<(), SyncError> {
        let old = namespace.status.clone().unwrap_or_default();
        let mut status = old.clone();
        status.phase = Some("Terminating".into());
        update_conditions(&mut status, outcome, &*self.context.clock);
        if status == old {
            return Ok(());
        }
        let mut changed = namespace.clone();
        changed.status = Some(status);
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let written = api.replace_status(name, &PostParams::default(), &changed).await;
        or_absent(written)?;
        Ok(())
    }
}

/// type, reason and message while all is well, reason while it is not
const CONDITIONS: [(&str, &str, &str, &str); 5] = [
    (
        "NamespaceDeletionDiscoveryFailure",
        "ResourcesDiscovered",
        "All resources successfully discovered",
        "DiscoveryFailed",
    ),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
        "GroupVersionParsingFailed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
        "ContentDeletionFailed",
    ),
    (
        "NamespaceContentRemaining",
        "ContentRemoved",
        "All content successfully removed",
        "SomeResourcesRemain",
    ),
    (
        "NamespaceFinalizersRemaining",
        "ContentHasNoFinalizers",
        "All content-preserving finalizers finished",
        "SomeFinalizersRemain",
    ),
];

fn update_conditions(status: &mut NamespaceStatus, outcome: &Outcome, clock: &dyn sampan_client::Clock) {
    let listed = |map: &BTreeMap<String, usize>, verb: &str, noun: &str| {
        let parts: Vec<String> = map
            .iter()
            .map(|(name, count)| format!("{name} {verb} {count} {noun}"))
            .collect();
        parts.join(", ")
    };
    for (kind, good_reason, good_message, bad_reason) in CONDITIONS {
        let trouble = match kind {
            "NamespaceDeletionDiscoveryFailure" => outcome.discovery_error.clone(),
            "NamespaceDeletionContentFailure" if !outcome.errors.is_empty() => Some(format!(
                "Failed to delete all resource types, {} remaining: {}",
                outcome.errors.len(),
                outcome.errors.join(", ")
            )),
            "NamespaceContentRemaining" if !outcome.remaining.is_empty() => Some(format!(
                "Some resources are remaining: {}",
                listed(&outcome.remaining, "has", "resource instances")
            )),
            "NamespaceFinalizersRemaining" if !outcome.finalizers.is_empty() => Some(format!(
                "Some content in the namespace has finalizers remaining: {}",
                listed(&outcome.finalizers, "in", "resource instances")
            )),
            _ => None,
        };
        let (truth, reason, message) = match trouble {
            Some(message) => ("True", bad_reason, message),
            None => ("False", good_reason, good_message.to_owned()),
        };
        let conditions = status.conditions.get_or_insert_default();
        let known = conditions.iter_mut().find(|known| known.type_ == kind);
        match known {
            Some(known) => {
                if known.status != truth {
                    known.last_transition_time = Some(clock.time());
                }
                known.status = truth.into();
                known.reason = Some(reason.into());
                known.message = Some(message);
            }
            None => conditions.push(NamespaceCondition {
                type_: kind.into(),
                status: truth.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(clock.time()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;
    use sampan_client::testing::eventually;

    use super::*;
    use crate::testing::Cluster;

    fn meta(namespace: &str, name: &str) -> ObjectMeta {
        ObjectMeta {
            namespace: Some(namespace.into()).filter(|n: &String| !n.is_empty()),
            name: Some(name.into()),
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_go_first_then_the_rest_then_the_namespace() {
        let cluster = Cluster::start(&["namespace-controller"]);
        let api = &cluster.api;
        api.create(&Namespace {
            metadata: meta("", "doomed"),
            ..Default::default()
        });
        let mut pod = Pod {
            metadata: meta("doomed", "p"),
            ..Default::default()
        };
        pod.spec.get_or_insert_default().node_name = Some("n".into());
        api.create(&pod);
        let mut map = ConfigMap {
            metadata: meta("doomed", "c"),
            ..Default::default()
        };
        map.metadata.finalizers = Some(vec!["example.com/wait".into()]);
        api.create(&map);
        let namespaces: Api<Namespace> = Api::all(api.client("admin"));
        namespaces.delete("doomed", &DeleteParams::default()).await.unwrap();

        eventually("the Pod is told to end", || async {
            api.get::<Pod>("doomed", "p")?.metadata.deletion_timestamp.map(|_| ())
        })
        .await;
        eventually("the namespace says why it waits", || async {
            remaining(&api.get::<Namespace>("", "doomed")?).filter(|text| text.contains("pods."))
        })
        .await;
        let failure = || {
            let conditions = api.get::<Namespace>("", "doomed")?.status?.conditions?;
            let mut conditions = conditions.into_iter();
            conditions.find(|c| c.type_ == "NamespaceDeletionContentFailure" && c.status == "True")
        };
        tokio::time::sleep(Duration::from_secs(55)).await;
        assert!(failure().is_none(), "its grace is not over");
        // Nothing holds the Pod, and its grace is over.
        tokio::time::sleep(Duration::from_secs(8)).await;
        eventually("it says that the Pod should be gone", || async {
            let failure = failure()?;
            let expected = "Failed to delete all resource types, 1 remaining: \
                unexpected items still remain in namespace: doomed for gvr: /v1, Resource=pods";
            (failure.message.as_deref() == Some(expected)).then_some(())
        })
        .await;
        let waiting: ConfigMap = api.get("doomed", "c").unwrap();
        assert!(waiting.metadata.deletion_timestamp.is_none());

        api.remove::<Pod>("doomed", "p");
        eventually("the finalizer is named", || async {
            let namespace: Namespace = api.get("", "doomed")?;
            let conditions = namespace.status?.conditions?;
            conditions
                .into_iter()
                .find(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")?
                .message
                .filter(|text| text.contains("example.com/wait in 1 resource instances"))
        })
        .await;
        api.remove::<ConfigMap>("doomed", "c");
        tokio::time::sleep(Duration::from_secs(15)).await;
        eventually("the namespace is gone", || async {
            api.get::<Namespace>("", "doomed").is_none().then_some(())
        })
        .await;
    }

    fn remaining(namespace: &Namespace) -> Option<String> {
        namespace
            .status
            .as_ref()?
            .conditions
            .as_ref()?
            .iter()
            .find(|c| c.type_ == "NamespaceContentRemaining" && c.status == "True")?
            .message
            .clone()
    }
}
