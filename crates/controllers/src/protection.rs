//! Storage objects in use are not deleted under their users: the finalizers that admission puts on claims, volumes and
//! attribute classes come off once an object is being deleted and nothing uses it any more.
//!
//! One engine, three rows: what a change of a user wakes, and what counts as use.
//! - A claim is used by every Pod that has a node and names it (a Pod without a node will not be started with it).
//! - A volume is used while it is bound.
//! - An attributes class is used by the claims and volumes that name it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::Resource;
use kube::api::{Api, PostParams};
use sampan_client::{Cached, Change, Informer, Key, WorkQueue, or_absent, retry_on_conflict};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Context, SyncError};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const CLASS: &str = "kubernetes.io/vac-protection";

pub(crate) fn start_claims(context: Context) {
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::default();
    let (woken, known) = (queue.clone(), claims.clone());
    pods.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            return;
        }
        let pod = change.object();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for name in claims_of(pod) {
            if known
                .get(namespace, &name)
                .is_some_and(|claim| is_leaving(&*claim, CLAIM))
            {
                woken.add(Key::new(namespace, &name));
            }
        }
    });
    let user = pods.clone();
    protect(
        context,
        &queue,
        claims,
        CLAIM,
        vec![Box::pin(async move { user.synced().await })],
        move |claim: &PersistentVolumeClaim| {
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            pods.list_namespace(namespace).iter().any(|pod| {
                let placed = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                placed.is_some_and(|node| !node.is_empty()) && claims_of(pod).iter().any(|used| used == name)
            })
        },
    );
}

pub(crate) fn start_volumes(context: Context) {
    let volumes = context.informers.of::<PersistentVolume>();
    let queue = WorkQueue::default();
    protect(
        context,
        &queue,
        volumes,
        VOLUME,
        Vec::new(),
        |volume: &PersistentVolume| volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound"),
    );
}

pub(crate) fn start_classes(context: Context) {
    let classes = context.informers.of::<VolumeAttributesClass>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let queue = WorkQueue::default();
    wake(&claims, &classes, &queue, classes_of_claim);
    wake(&volumes, &classes, &queue, class_of_volume);
    let (users, others) = (claims.clone(), volumes.clone());
    let ready: Ready = Box::pin(async move {
        users.synced().await;
        others.synced().await;
    });
    protect(
        context,
        &queue,
        classes,
        CLASS,
        vec![ready],
        move |class: &VolumeAttributesClass| {
            let name = class.metadata.name.as_deref().unwrap_or_default();
            claims
                .list()
                .iter()
                .any(|claim| classes_of_claim(claim).iter().any(|used| used == name))
                || volumes
                    .list()
                    .iter()
                    .any(|volume| class_of_volume(volume).iter().any(|used| used == name))
        },
    );
}

type Ready = futures::future::BoxFuture<'static, ()>;

/// Wakes the classes that a user no longer names.
fn wake<K: Cached>(
    users: &Informer<K>,
    classes: &Informer<VolumeAttributesClass>,
    queue: &WorkQueue<Key>,
    names: fn(&K) -> Vec<String>,
) {
    let (classes, queue) = (classes.clone(), queue.clone());
    users.on_change(move |change| {
        let left = match change {
            Change::Deleted(object) => names(object),
            Change::Modified { old, .. } => names(old),
            _ => return,
        };
        for name in left {
            if classes.get("", &name).is_some_and(|class| is_leaving(&*class, CLASS)) {
                queue.add(Key::new("", &name));
            }
        }
    });
}

/// Runs one row.
fn protect<K>(
    context: Context,
    queue: &WorkQueue<Key>,
    objects: Informer<K>,
    finalizer: &'static str,
    users: Vec<Ready>,
    in_use: impl Fn(&K) -> bool + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static,
    K: Cached,
    Api<K>: Scoped<K>,
{
    let changed = queue.clone();
    objects.on_change(move |change| {
        let object = change.object();
        if !matches!(change, Change::Deleted(_)) && is_leaving(object.as_ref(), finalizer) {
            changed.add(Key::of(object.as_ref()));
        }
    });
    let own = objects.clone();
    let ready = async move {
        own.synced().await;
        futures::future::join_all(users).await;
    };
    let (client, in_use) = (context.client.clone(), Arc::new(in_use));
    context.run(queue, ready, move |key| {
        let (client, objects, in_use) = (client.clone(), objects.clone(), Arc::clone(&in_use));
        async move {
            let Some(object) = objects.get_key(&key) else {
                return Ok(());
            };
            if !is_leaving(object.as_ref(), finalizer) || in_use(&object) {
                return Ok(());
            }
            let api = <Api<K> as Scoped<K>>::of(client, &key.namespace);
            release(&api, object.as_ref(), finalizer).await
        }
    });
}

/// How a kind's objects are reached.
trait Scoped<K> {
    fn of(client: kube::Client, namespace: &str) -> Api<K>;
}
impl Scoped<PersistentVolumeClaim> for Api<PersistentVolumeClaim> {
    fn of(client: kube::Client, namespace: &str) -> Self {
        Api::namespaced(client, namespace)
    }
}
impl Scoped<PersistentVolume> for Api<PersistentVolume> {
    fn of(client: kube::Client, _: &str) -> Self {
        Api::all(client)
    }
}
impl Scoped<VolumeAttributesClass> for Api<VolumeAttributesClass> {
    fn of(client: kube::Client, _: &str) -> Self {
        Api::all(client)
    }
}

fn is_leaving<K: Resource>(object: &K, finalizer: &str) -> bool {
    let meta = object.meta();
    meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|known| known == finalizer)
}

/// Takes the finalizer off, if it is still the object that was seen.
async fn release<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), SyncError>
where
    K: Resource + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    let written = retry_on_conflict(|| async {
        let mut live = api.get(name).await?;
        if live.meta().uid != meta.uid || !is_leaving(&live, finalizer) {
            return Ok(());
        }
        if let Some(finalizers) = &mut live.meta_mut().finalizers {
            finalizers.retain(|known| known != finalizer);
        }
        api.replace(name, &PostParams::default(), &live).await.map(|_| ())
    })
    .await;
    or_absent(written)?;
    Ok(())
}

/// The claims a Pod names, those made for its ephemeral volumes too.
fn claims_of(pod: &Pod) -> Vec<String> {
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{own}-{}", volume.name)),
            (None, None) => None,
        })
        .collect()
}

fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let spec = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let target = status.and_then(|status| {
        status
            .modify_volume_status
            .as_ref()?
            .target_volume_attributes_class_name
            .clone()
    });
    [spec, current, target].into_iter().flatten().collect()
}

fn class_of_volume(volume: &PersistentVolume) -> Vec<String> {
    let class = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_attributes_class_name.clone());
    class.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kube::api::DeleteParams;
    use sampan_client::testing::eventually;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::Cluster;

    fn typed<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_stays_as_long_as_a_pod_uses_it() {
        let cluster = Cluster::start(&["persistentvolumeclaim-protection-controller"]);
        let api = &cluster.api;
        api.create::<PersistentVolumeClaim>(&typed(json!({
            "metadata": {"name": "c", "namespace": "ns", "finalizers": [CLAIM]}, "spec": {}})));
        let pod = |name: &str, node: Value| {
            typed::<Pod>(
                json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"containers": [], "nodeName": node,
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
            )
        };
        api.create(&pod("running", json!("n")));
        api.create(&pod("waiting", Value::Null));
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(api.client("admin"), "ns");
        claims.delete("c", &DeleteParams::default()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(api.get::<PersistentVolumeClaim>("ns", "c").is_some());
        api.remove::<Pod>("ns", "running");
        eventually("the claim is gone", || async {
            api.get::<PersistentVolumeClaim>("ns", "c").is_none().then_some(())
        })
        .await;
    }
}
