use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use sampan_claims::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONER, SELECTED_NODE, annotation, claim_ref, volume_name,
};
use sampan_client::testing::{FakeApi, PausedClock, eventually};
use sampan_client::{Informers, connect};
use sampan_tasks::Tasks;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::binder::phase_of;
use crate::testing::Cluster;
use crate::{Config, Controllers};

const BINDER: &str = "persistentvolume-binder-controller";

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn volume(name: &str, size: &str, spec: Value) -> PersistentVolume {
    let mut whole = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/x"}});
    extend(&mut whole, spec);
    typed(json!({"metadata": {"name": name}, "spec": whole, "status": {"phase": "Pending"}}))
}

fn claim(name: &str, size: &str, spec: Value) -> PersistentVolumeClaim {
    let mut whole = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}});
    extend(&mut whole, spec);
    typed(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": whole, "status": {"phase": "Pending"}}))
}

fn class(name: &str, provisioner: &str, mode: &str, default: bool) -> StorageClass {
    let annotations = json!({"storageclass.kubernetes.io/is-default-class": default.to_string()});
    typed(
        json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner,
        "volumeBindingMode": mode, "reclaimPolicy": "Delete"}),
    )
}

fn extend(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().cloned().unwrap_or_default() {
        into[key] = value;
    }
}

fn the_claim(api: &FakeApi, name: &str) -> PersistentVolumeClaim {
    api.get("ns", name).unwrap()
}

fn the_volume(api: &FakeApi, name: &str) -> PersistentVolume {
    api.get("", name).unwrap()
}

fn claim_phase(api: &FakeApi, name: &str) -> String {
    let status = the_claim(api, name).status.unwrap_or_default();
    status.phase.unwrap_or_default()
}

async fn claim_becomes(api: &FakeApi, name: &str, phase: &str) {
    eventually(&format!("{name} is {phase}"), || async {
        (claim_phase(api, name) == phase).then_some(())
    })
    .await;
}

async fn volume_becomes(api: &FakeApi, name: &str, phase: &str) {
    eventually(&format!("{name} is {phase}"), || async {
        (phase_of(&the_volume(api, name)) == phase).then_some(())
    })
    .await;
}

async fn says(api: &FakeApi, reason: &str, text: &str) {
    eventually(&format!("{reason}: {text}"), || async {
        let events: Vec<Event> = api.all();
        let said = |event: &Event| {
            event.reason.as_deref() == Some(reason)
                && event.message.as_deref().is_some_and(|message| message.contains(text))
        };
        events.iter().any(said).then_some(())
    })
    .await;
}

/// Long enough for whatever would happen to have happened.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_bound_to_the_smallest_volume_that_suits_it() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    for (name, size) in [("small", "1Gi"), ("large", "100Gi"), ("fit", "10Gi")] {
        api.create(&volume(name, size, json!({})));
        volume_becomes(api, name, "Available").await;
    }
    api.create(&claim("c", "5Gi", json!({})));
    claim_becomes(api, "c", "Bound").await;
    let (claim, volume) = (the_claim(api, "c"), the_volume(api, "fit"));
    assert_eq!(volume_name(&claim), Some("fit"));
    for mark in [BIND_COMPLETED, BOUND_BY_CONTROLLER] {
        assert_eq!(annotation(&claim.metadata.annotations, mark), Some("yes"));
    }
    let status = claim.status.unwrap();
    assert_eq!(status.capacity.unwrap()["storage"].0, "10Gi");
    assert_eq!(status.access_modes.unwrap(), ["ReadWriteOnce"]);
    assert_eq!(phase_of(&volume), "Bound");
    assert_eq!(claim_ref(&volume).unwrap().uid, claim.metadata.uid);
    assert_eq!(
        annotation(&volume.metadata.annotations, BOUND_BY_CONTROLLER),
        Some("yes")
    );
}

#[tokio::test(start_paused = true)]
async fn a_claim_waits_for_its_volume_and_is_told() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    api.create(&claim("c", "5Gi", json!({})));
    says(
        api,
        "FailedBinding",
        "no persistent volumes available for this claim and no storage class is set",
    )
    .await;
    api.create(&volume("v", "5Gi", json!({})));
    claim_becomes(api, "c", "Bound").await;
}

#[tokio::test(start_paused = true)]
async fn what_users_tied_together_stays_so() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    // A volume kept for a claim to come.
    api.create(&volume(
        "kept",
        "50Gi",
        json!({"claimRef": {"namespace": "ns", "name": "c"}}),
    ));
    volume_becomes(api, "kept", "Available").await;
    api.create(&volume("free", "5Gi", json!({})));
    volume_becomes(api, "free", "Available").await;
    api.create(&claim("other", "20Gi", json!({})));
    settle().await;
    assert_eq!(claim_phase(api, "other"), "Pending");
    api.create(&claim("c", "5Gi", json!({})));
    claim_becomes(api, "c", "Bound").await;
    let kept = the_volume(api, "kept");
    assert_eq!(claim_ref(&kept).unwrap().name.as_deref(), Some("c"));
    assert_eq!(annotation(&kept.metadata.annotations, BOUND_BY_CONTROLLER), None);
    // A claim that names its volume, which comes later, first too small.
    api.create(&claim("named", "5Gi", json!({"volumeName": "mine"})));
    settle().await;
    api.create(&volume("mine", "1Gi", json!({})));
    says(
        api,
        "VolumeMismatch",
        "Cannot bind to requested volume \"mine\": requested PV is too small",
    )
    .await;
    api.change::<PersistentVolume>("", "mine", |volume| {
        let capacity = volume.spec.as_mut().unwrap().capacity.as_mut().unwrap();
        capacity.insert("storage".into(), typed(json!("5Gi")));
    });
    claim_becomes(api, "named", "Bound").await;
    assert_eq!(
        annotation(&the_claim(api, "named").metadata.annotations, BOUND_BY_CONTROLLER),
        None
    );
    // One that names another's.
    api.create(&claim("late", "5Gi", json!({"volumeName": "mine"})));
    says(
        api,
        "FailedBinding",
        "volume \"mine\" already bound to a different claim.",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_claims_that_want_one_volume_one_gets_it() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    for n in 0..20 {
        api.create(&claim(&format!("c{n}"), "5Gi", json!({})));
    }
    for n in 0..3 {
        api.create(&volume(&format!("v{n}"), "5Gi", json!({})));
    }
    for n in 0..3 {
        volume_becomes(api, &format!("v{n}"), "Bound").await;
    }
    settle().await;
    let claims: Vec<PersistentVolumeClaim> = api.all();
    let bound: BTreeSet<_> = claims.iter().filter_map(|claim| volume_name(claim)).collect();
    assert_eq!(bound.len(), 3);
    assert_eq!(claims.iter().filter(|claim| volume_name(claim).is_some()).count(), 3);
    for claim in claims.iter().filter(|claim| volume_name(claim).is_some()) {
        let volume = the_volume(api, volume_name(claim).unwrap());
        assert_eq!(claim_ref(&volume).unwrap().uid, claim.metadata.uid);
    }
    // Nothing was bound and taken back.
    let taken_back = api
        .actions()
        .iter()
        .filter(|action| action.resource == "persistentvolumes" && action.verb == "update")
        .count();
    assert_eq!(taken_back, 3);
}

#[tokio::test(start_paused = true)]
async fn volumes_are_reclaimed_as_they_say() {
    let csi = json!({"hostPath": null, "csi": {"driver": "d", "volumeHandle": "h"}});
    for (policy, source, phase, said) in [
        ("Retain", json!({}), "Released", None),
        ("Delete", csi, "Released", None),
        (
            "Delete",
            json!({}),
            "Failed",
            Some((
                "VolumeFailedDelete",
                "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched",
            )),
        ),
        (
            "Recycle",
            json!({}),
            "Failed",
            Some(("VolumeFailedRecycle", "No recycler plugin found for the volume!")),
        ),
    ] {
        let cluster = Cluster::start(&[BINDER]);
        let api = &cluster.api;
        let mut spec = source;
        spec["persistentVolumeReclaimPolicy"] = json!(policy);
        api.create(&volume("v", "5Gi", spec));
        api.create(&claim("c", "5Gi", json!({})));
        claim_becomes(api, "c", "Bound").await;
        api.remove::<PersistentVolumeClaim>("ns", "c");
        volume_becomes(api, "v", phase).await;
        if let Some((reason, text)) = said {
            says(api, reason, text).await;
        }
        // A claim of the same name is another claim.
        api.create(&claim("c", "5Gi", json!({})));
        settle().await;
        assert_eq!(claim_phase(api, "c"), "Pending", "{policy}");
        assert_eq!(phase_of(&the_volume(api, "v")), phase);
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_volume_goes_is_lost_and_told() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    api.create(&volume("v", "5Gi", json!({})));
    api.create(&claim("c", "5Gi", json!({})));
    claim_becomes(api, "c", "Bound").await;
    api.remove::<PersistentVolume>("", "v");
    claim_becomes(api, "c", "Lost").await;
    says(
        api,
        "ClaimLost",
        "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
    )
    .await;
    assert!(the_claim(api, "c").status.unwrap().capacity.is_none());
    // And found, if it comes back.
    api.create(&volume("v", "5Gi", json!({})));
    claim_becomes(api, "c", "Bound").await;
}

#[tokio::test(start_paused = true)]
async fn claims_without_a_class_get_the_default_when_there_is_one() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    api.create(&claim("c", "5Gi", json!({})));
    api.create(&claim("none", "5Gi", json!({"storageClassName": ""})));
    settle().await;
    api.create(&class("plain", "example.com/p", "Immediate", false));
    settle().await;
    assert_eq!(the_claim(api, "c").spec.unwrap().storage_class_name, None);
    api.create(&class("fast", "example.com/p", "Immediate", true));
    eventually("the class is asked for a volume", || async {
        let claim = the_claim(api, "c");
        (annotation(&claim.metadata.annotations, PROVISIONER) == Some("example.com/p")).then_some(())
    })
    .await;
    assert_eq!(
        the_claim(api, "c").spec.unwrap().storage_class_name.as_deref(),
        Some("fast")
    );
    assert_eq!(
        the_claim(api, "none").spec.unwrap().storage_class_name.as_deref(),
        Some("")
    );
    says(
        api,
        "ExternalProvisioning",
        "either by the external provisioner 'example.com/p' or manually",
    )
    .await;
    // The provisioner does its part.
    let uid = the_claim(api, "c").metadata.uid;
    let reference = json!({"namespace": "ns", "name": "c", "uid": uid});
    api.create(&volume(
        "made",
        "5Gi",
        json!({"storageClassName": "fast", "claimRef": reference}),
    ));
    claim_becomes(api, "c", "Bound").await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_a_waiting_class_waits_for_a_placed_pod() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    api.create(&class("late", "example.com/p", "WaitForFirstConsumer", false));
    api.create(&volume("v", "5Gi", json!({"storageClassName": "late"})));
    api.create(&claim("c", "5Gi", json!({"storageClassName": "late"})));
    says(
        api,
        "WaitForFirstConsumer",
        "waiting for first consumer to be created before binding",
    )
    .await;
    api.create::<Pod>(&typed(
        json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
    ));
    says(api, "WaitForPodScheduled", "waiting for pod p to be scheduled").await;
    assert_eq!(claim_phase(api, "c"), "Pending");
    assert_eq!(annotation(&the_claim(api, "c").metadata.annotations, PROVISIONER), None);
    api.change::<PersistentVolumeClaim>("ns", "c", |claim| {
        sampan_claims::mark(&mut claim.metadata.annotations, SELECTED_NODE, "n");
    });
    says(api, "ExternalProvisioning", "'example.com/p'").await;
    assert_eq!(phase_of(&the_volume(api, "v")), "Available");
    // What the scheduler ties together the binder completes.
    let uid = the_claim(api, "c").metadata.uid;
    api.change::<PersistentVolume>("", "v", |volume| {
        volume.spec.as_mut().unwrap().claim_ref = Some(typed(json!({"namespace": "ns", "name": "c", "uid": uid})));
        sampan_claims::mark(&mut volume.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
    });
    claim_becomes(api, "c", "Bound").await;
}

#[tokio::test(start_paused = true)]
async fn classes_that_nobody_serves_are_told_of() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    api.create(&class("manual", "kubernetes.io/no-provisioner", "Immediate", false));
    api.create(&class("ebs", "kubernetes.io/aws-ebs", "Immediate", false));
    for (name, of) in [("a", "manual"), ("b", "absent"), ("c", "ebs")] {
        api.create(&claim(name, "5Gi", json!({"storageClassName": of})));
    }
    says(
        api,
        "ProvisioningFailed",
        "no volume plugin matched name: kubernetes.io/no-provisioner",
    )
    .await;
    says(
        api,
        "ProvisioningFailed",
        "storageclass.storage.k8s.io \"absent\" not found",
    )
    .await;
    says(api, "ExternalProvisioning", "'ebs.csi.aws.com'").await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_made_for_a_claim_that_went_elsewhere_is_given_back() {
    let cluster = Cluster::start(&[BINDER]);
    let api = &cluster.api;
    api.create(&volume("v", "5Gi", json!({})));
    api.create(&claim("c", "5Gi", json!({})));
    claim_becomes(api, "c", "Bound").await;
    let uid = the_claim(api, "c").metadata.uid;
    let reference = json!({"namespace": "ns", "name": "c", "uid": uid});
    let mut ours = volume("ours", "5Gi", json!({"claimRef": reference}));
    sampan_claims::mark(&mut ours.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
    let mut made = volume(
        "made",
        "5Gi",
        json!({"claimRef": reference, "persistentVolumeReclaimPolicy": "Delete"}),
    );
    sampan_claims::mark(
        &mut made.metadata.annotations,
        sampan_claims::PROVISIONED_BY,
        "example.com/p",
    );
    api.create(&ours);
    api.create(&made);
    api.create(&volume("users", "5Gi", json!({"claimRef": reference})));
    volume_becomes(api, "ours", "Available").await;
    volume_becomes(api, "made", "Released").await;
    volume_becomes(api, "users", "Available").await;
    assert!(claim_ref(&the_volume(api, "ours")).is_none());
    assert_eq!(claim_ref(&the_volume(api, "users")).unwrap().uid, None);
}

/// A binder whose writes stop reaching the API after `allowed` of them, as if it had been killed.
struct Mortal {
    _tasks: Tasks,
    made: Arc<AtomicUsize>,
}

fn mortal(api: &FakeApi, allowed: usize) -> Mortal {
    let tasks = Tasks::new();
    let informers = Informers::new(api.client("system:kube-controller-manager"), &tasks);
    let made = Arc::new(AtomicUsize::new(0));
    let (count, api) = (Arc::clone(&made), api.clone());
    let client = move |user: &str| {
        let (inner, count) = (api.client(user), Arc::clone(&count));
        connect(tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (inner, count) = (inner.clone(), Arc::clone(&count));
            async move {
                let event = request.uri().path().ends_with("/events");
                if request.method() != http::Method::GET && !event && count.fetch_add(1, Ordering::SeqCst) >= allowed {
                    std::future::pending::<()>().await;
                }
                inner.send(request).await
            }
        }))
    };
    let config = Config {
        enabled: vec![BINDER.into()],
        ..Config::default()
    };
    Controllers::start_with_clock(config, client, &informers, &tasks, Arc::new(PausedClock::default())).unwrap();
    Mortal { _tasks: tasks, made }
}

/// Everything that says who is bound to whom.
fn outcome(api: &FakeApi) -> Vec<String> {
    let mut lines = Vec::new();
    for claim in api.all::<PersistentVolumeClaim>() {
        let phase = claim.status.clone().unwrap_or_default().phase.unwrap_or_default();
        let name = claim.metadata.name.clone().unwrap_or_default();
        lines.push(format!(
            "{name} {phase} {:?} {:?}",
            volume_name(&claim),
            claim.metadata.annotations
        ));
    }
    for volume in api.all::<PersistentVolume>() {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let of = claim_ref(&volume).map(|claim| (claim.name.clone(), claim.uid.is_some()));
        lines.push(format!(
            "{name} {} {of:?} {:?}",
            phase_of(&volume),
            volume.metadata.annotations
        ));
    }
    lines
}

/// Any prefix of the binder's writes, followed by a new binder, ends where an undisturbed one does.
#[tokio::test(start_paused = true)]
async fn a_binder_killed_between_any_two_writes_is_continued() {
    type Change = fn(&FakeApi);
    let bind: Change = |api| {
        api.create(&volume("v1", "5Gi", json!({})));
        api.create(&claim("a", "5Gi", json!({})));
        api.create(&volume(
            "v2",
            "9Gi",
            json!({"claimRef": {"namespace": "ns", "name": "b"}}),
        ));
        api.create(&claim("b", "5Gi", json!({})));
        api.create(&claim("c", "5Gi", json!({"volumeName": "v3"})));
        api.create(&volume("v3", "20Gi", json!({})));
    };
    let release: Change = |api| {
        api.remove::<PersistentVolumeClaim>("ns", "a");
        api.remove::<PersistentVolume>("", "v2");
    };
    let mut expected = None;
    for allowed in (0..64).rev() {
        let api = FakeApi::new();
        let mut used = 0;
        for change in [bind, release] {
            change(&api);
            let binder = mortal(&api, allowed);
            settle().await;
            used += binder.made.load(Ordering::SeqCst);
            drop(binder);
            let _next = mortal(&api, usize::MAX);
            settle().await;
        }
        let found = outcome(&api);
        match &expected {
            None => {
                assert!(used < 64, "an undisturbed binder makes few writes");
                assert!(
                    !found.iter().any(|line| line.starts_with("a ")) && found.len() == 4,
                    "{found:#?}"
                );
                expected = Some(found);
            }
            Some(expected) => assert_eq!(expected, &found, "killed after {allowed} writes"),
        }
    }
}
