//! Claims that ask for more than they have.
//!
//! Local volumes are directories whose size is not limited: making one larger is a matter of saying so, on the volume and
//! then on the claim. What is under way is on the claim's status, as it is for every resizer. Other volumes are made
//! larger by their drivers' own controllers; here their claims are only told so.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition};
use kube::api::{Api, Patch, PatchParams};
use sampan_api::quantity::Quantity;
use sampan_claims::{self as claims, local};
use sampan_client::{Cached, Change, Clock, EventType, Informer, Key, Recorder, WorkQueue, or_absent};
use serde_json::{Value, json};

use crate::{Context, SyncError};

const UNDER_WAY: &str = "ControllerResizeInProgress";
/// Conditions of a resize under way.
const RESIZING: [&str; 4] = [
    "Resizing",
    "FileSystemResizePending",
    "ControllerResizeError",
    "NodeResizeError",
];

struct Expander {
    client: kube::Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

/// What a claim has.
fn has(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    let capacity = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
    Quantity::parse(&capacity.0).ok()
}

/// Whether a bound claim asks for more than it has.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Bound") && has(claim).is_some_and(|has| claims::request(claim) > has)
}

pub(crate) fn start(context: Context) {
    let expander = Arc::new(Expander {
        client: context.client.clone(),
        recorder: context.recorder.clone(),
        clock: Arc::clone(&context.clock),
        claims: context.informers.of(),
        volumes: context.informers.of(),
    });
    let queue = WorkQueue::default();
    let added = queue.clone();
    expander.claims.on_change(move |change| {
        let claim = change.object();
        let news = match change {
            Change::Added(_) => true,
            Change::Modified { old, .. } => claims::request(old) != claims::request(claim) || !wants_more(old),
            Change::Deleted(_) => false,
        };
        if news && wants_more(claim) {
            added.add(Key::of(claim.as_ref()));
        }
    });
    let waits = Arc::clone(&expander);
    let ready = async move {
        waits.claims.synced().await;
        waits.volumes.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let expander = Arc::clone(&expander);
        async move { expander.sync(&key).await }
    });
}

impl Expander {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(claim) = self.claims.get_key(key).filter(|claim| wants_more(claim)) else {
            return Ok(());
        };
        let volume = claims::volume_name(&claim).and_then(|name| self.volumes.get("", name));
        let Some(volume) = volume
            .filter(|volume| claims::claim_ref(volume).is_some_and(|reference| reference.uid == claim.metadata.uid))
        else {
            return Err(SyncError::other(format!(
                "persistent Volume is not bound to PVC being updated : {key}"
            )));
        };
        if !local::is_ours(&volume) {
            let csi = volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
            let kind = match csi {
                true => EventType::Normal,
                false => EventType::Warning,
            };
            let message = "waiting for an external controller to expand this PVC";
            self.recorder.event(claim.as_ref(), kind, "ExternalExpanding", message);
            return Ok(());
        }
        self.expand(&claim, &volume).await
    }

    async fn expand(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), SyncError> {
        let asked = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
        let Some(asked) = asked else { return Ok(()) };
        // Against the version that was looked at: the size must be the one that is written on the volume.
        let begun = PersistentVolumeClaimCondition {
            type_: "Resizing".into(),
            status: "True".into(),
            last_transition_time: Some(self.clock.time()),
            ..PersistentVolumeClaimCondition::default()
        };
        let conditions: Vec<_> = others(claim).chain([begun]).collect();
        let status = json!({
            "allocatedResources": {"storage": asked},
            "allocatedResourceStatuses": {"storage": UNDER_WAY},
            "conditions": conditions,
        });
        let Some(claim) = self.write(claim, status).await? else {
            return Ok(());
        };
        if claims::capacity(volume).is_none_or(|capacity| capacity < claims::request(&claim)) {
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            let patch = json!({"metadata": {"uid": volume.uid()}, "spec": {"capacity": {"storage": asked}}});
            api.patch(volume.name(), &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        let status = json!({
            "capacity": {"storage": asked},
            "allocatedResourceStatuses": {"storage": null},
            "conditions": others(&claim).collect::<Vec<_>>(),
        });
        if let Some(claim) = self.write(&claim, status).await? {
            let message = format!("ExpandVolume succeeded for volume {}", Key::of(&claim));
            self.recorder
                .event(&claim, EventType::Normal, "VolumeResizeSuccessful", message);
        }
        Ok(())
    }

    async fn write(
        &self,
        claim: &PersistentVolumeClaim,
        status: Value,
    ) -> Result<Option<PersistentVolumeClaim>, SyncError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), claim.namespace());
        let patch = json!({
            "metadata": {"uid": claim.uid(), "resourceVersion": claim.resource_version()},
            "status": status,
        });
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        Ok(or_absent(api.patch_status(claim.name(), &params, &patch).await)?)
    }
}

/// A claim's conditions that are not about resizing.
fn others(claim: &PersistentVolumeClaim) -> impl Iterator<Item = PersistentVolumeClaimCondition> + '_ {
    let conditions = claim
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| !RESIZING.contains(&condition.type_.as_str()))
        .cloned()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Event;
    use sampan_client::testing::{FakeApi, eventually};

    use super::*;
    use crate::testing::Cluster;

    fn world(annotations: Value, source: Value) -> Cluster {
        let cluster = Cluster::start(&["persistentvolume-expander-controller"]);
        let claim = json!({"metadata": {"name": "c", "namespace": "ns"}, "spec": {"volumeName": "v",
            "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"},
                "conditions": [{"type": "Other", "status": "True"}]}});
        let claim: PersistentVolumeClaim = cluster.api.create(&serde_json::from_value(claim).unwrap());
        let mut volume = json!({"metadata": {"name": "v", "annotations": annotations}, "spec": {
            "capacity": {"storage": "1Gi"}, "claimRef": claims::reference(&claim)}});
        for (key, value) in source.as_object().unwrap() {
            volume["spec"][key] = value.clone();
        }
        cluster
            .api
            .create::<PersistentVolume>(&serde_json::from_value(volume).unwrap());
        cluster
    }

    fn ask(api: &FakeApi, size: &str) {
        api.change::<PersistentVolumeClaim>("ns", "c", |claim| {
            let resources = claim.spec.get_or_insert_default().resources.get_or_insert_default();
            let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.into());
            resources
                .requests
                .get_or_insert_default()
                .insert("storage".into(), size);
        });
    }

    async fn told(api: &FakeApi) -> (String, String) {
        let event = eventually("an event", || async { api.all::<Event>().pop() }).await;
        (event.reason.unwrap(), event.message.unwrap())
    }

    #[tokio::test]
    async fn a_local_volume_grows_when_its_claim_does() {
        let ours = json!({claims::PROVISIONED_BY: local::PROVISIONER});
        let cluster = world(ours, json!({"local": {"path": "/x"}}));
        let api = &cluster.api;
        for size in ["2Gi", "3Gi"] {
            ask(api, size);
            eventually(&format!("{size} on the claim"), || async {
                let status = api.get::<PersistentVolumeClaim>("ns", "c")?.status?;
                let done = status.capacity?.get("storage")?.0 == size
                    && status.allocated_resources?.get("storage")?.0 == size
                    && status.allocated_resource_statuses.unwrap_or_default().is_empty()
                    && status
                        .conditions?
                        .iter()
                        .map(|condition| &*condition.type_)
                        .eq(["Other"]);
                done.then_some(())
            })
            .await;
            let volume = api.get::<PersistentVolume>("", "v").unwrap();
            assert_eq!(claims::capacity(&volume), Quantity::parse(size).ok());
        }
        let told = told(api).await;
        assert_eq!(
            (&*told.0, &*told.1),
            ("VolumeResizeSuccessful", "ExpandVolume succeeded for volume ns/c")
        );
    }

    #[tokio::test]
    async fn other_volumes_are_left_to_others() {
        let cluster = world(json!({}), json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        let api = &cluster.api;
        ask(api, "2Gi");
        let told = told(api).await;
        assert_eq!(
            (&*told.0, &*told.1),
            (
                "ExternalExpanding",
                "waiting for an external controller to expand this PVC"
            )
        );
        let volume = api.get::<PersistentVolume>("", "v").unwrap();
        assert_eq!(claims::capacity(&volume), Quantity::parse("1Gi").ok());
    }
}
