//! Claims of generic ephemeral volumes: one for each such volume of a Pod, owned by the Pod and gone with it.
//!
//! A claim of that name that belongs to somebody else is left alone, and the Pod is told. Unlike upstream a claim that
//! was made in the meantime is no failure: it is looked at again when the cache has it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::api::{Api, ObjectMeta, PostParams};
use sampan_claims as claims;
use sampan_client::{Change, EventType, Informer, Key, Recorder, WorkQueue, is_already_exists, owner::controller_ref};

use crate::{Context, SyncError};

struct Ephemeral {
    client: kube::Client,
    recorder: Recorder,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
}

/// Pods with ephemeral volumes by their claims, `namespace/name`.
const BY_CLAIM: &str = "controllers/pods/ephemeral";

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.ephemeral.is_some())
}

fn wants_claims(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && ephemeral(pod).next().is_some()
}

pub(crate) fn start(context: Context) {
    let this = Arc::new(Ephemeral {
        client: context.client.clone(),
        recorder: context.recorder.clone(),
        pods: context.informers.of(),
        claims: context.informers.of(),
    });
    let queue = WorkQueue::default();
    this.pods.add_index(BY_CLAIM, |pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        ephemeral(pod)
            .map(|volume| Key::new(namespace, claims::ephemeral_name(pod, &volume.name)).to_string())
            .collect()
    });
    let added = queue.clone();
    this.pods.on_change(move |change| {
        // What a Pod wants never changes, but another Pod may have its name.
        let new = change
            .old()
            .is_none_or(|old| old.metadata.uid != change.object().metadata.uid);
        if new && wants_claims(change.object()) {
            added.add(Key::of(change.object().as_ref()));
        }
    });
    let (added, pods) = (queue.clone(), this.pods.clone());
    this.claims.on_change(move |change| {
        let gone = matches!(change, Change::Deleted(_));
        if gone || change.old().is_none() {
            for pod in pods.by_index(BY_CLAIM, &Key::of(change.object().as_ref()).to_string()) {
                if wants_claims(&pod) && (gone || !owns(&pod, change.object())) {
                    added.add(Key::of(pod.as_ref()));
                }
            }
        }
    });
    let waits = Arc::clone(&this);
    let ready = async move {
        waits.pods.synced().await;
        waits.claims.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let this = Arc::clone(&this);
        async move { this.sync(&key).await }
    });
}

fn owns(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    claims::is_owned_by(claim, pod.metadata.uid.as_deref().unwrap_or_default())
}

impl Ephemeral {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(pod) = self.pods.get_key(key).filter(|pod| wants_claims(pod)) else {
            return Ok(());
        };
        for volume in ephemeral(&pod) {
            if let Err(why) = self.provide(&pod, volume).await {
                let message = format!("ephemeral volume {}: {why}", volume.name);
                self.recorder
                    .event(pod.as_ref(), EventType::Warning, "FailedBinding", &*message);
                return Err(SyncError::other(message));
            }
        }
        Ok(())
    }

    /// Makes the claim of one volume unless it is there.
    async fn provide(&self, pod: &Pod, volume: &Volume) -> Result<(), String> {
        let name = claims::ephemeral_name(pod, &volume.name);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let known = self.claims.get(namespace, &name);
        if let Some(claim) = known {
            return match owns(pod, &claim) {
                true => Ok(()),
                false => Err(format!(
                    "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
                    pod.metadata.name.as_deref().unwrap_or_default()
                )),
            };
        }
        let template = volume
            .ephemeral
            .as_ref()
            .and_then(|source| source.volume_claim_template.clone())
            .unwrap_or_default();
        let told = template.metadata.unwrap_or_default();
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                labels: told.labels,
                annotations: told.annotations,
                owner_references: Some(vec![controller_ref(pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec),
            status: None,
        };
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), &claim).await {
            Ok(_) => Ok(()),
            // The cache will have it, and this is looked at again if it is somebody else's.
            Err(error) if is_already_exists(&error) => Ok(()),
            Err(error) => Err(format!("create PVC {name}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Event;
    use sampan_client::testing::eventually;
    use serde_json::json;

    use super::*;
    use crate::testing::Cluster;

    fn pod(uid: &str) -> Pod {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": uid}, "spec": {
            "containers": [], "volumes": [{"name": "e", "ephemeral": {"volumeClaimTemplate": template}},
                {"name": "other", "emptyDir": {}}]}}),
        )
        .unwrap()
    }

    #[tokio::test]
    async fn claims_come_with_pods_and_again_when_they_are_taken_away() {
        let cluster = Cluster::start(&["ephemeral-volume-controller"]);
        let api = &cluster.api;
        let pod = api.create::<Pod>(&pod("u1"));
        let made = || async { api.get::<PersistentVolumeClaim>("ns", "p-e") };
        let claim = eventually("a claim", made).await;
        assert!(owns(&pod, &claim));
        assert_eq!(claim.metadata.labels.unwrap()["a"], "b");
        api.remove::<PersistentVolumeClaim>("ns", "p-e");
        eventually("another claim", made).await;
        assert_eq!(api.all::<PersistentVolumeClaim>().len(), 1);
    }

    #[tokio::test]
    async fn somebody_elses_claim_is_not_touched() {
        let cluster = Cluster::start(&["ephemeral-volume-controller"]);
        let api = &cluster.api;
        let foreign = serde_json::from_value(json!({"metadata": {"name": "p-e", "namespace": "ns"}})).unwrap();
        api.create::<PersistentVolumeClaim>(&foreign);
        let pod = api.create::<Pod>(&pod("u1"));
        let told = eventually("an event", || async { api.all::<Event>().pop() }).await;
        assert_eq!(
            told.message.unwrap(),
            "ephemeral volume e: PVC ns/p-e was not created for pod ns/p (pod is not owner)"
        );
        api.remove::<PersistentVolumeClaim>("ns", "p-e");
        eventually("its own claim", || async {
            api.get::<PersistentVolumeClaim>("ns", "p-e")
                .filter(|claim| owns(&pod, claim))
        })
        .await;
    }
}
