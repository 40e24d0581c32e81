use k8s_openapi::api::core::v1::Event;
use sampan_client::Clock;
use sampan_client::testing::{FakeApi, eventually};
use serde_json::{Value, json};

use super::*;
use crate::testing::Cluster;

fn cluster() -> Cluster {
    Cluster::start(&["resourceclaim-controller"])
}

fn template(api: &FakeApi, name: &str) {
    let template: ResourceClaimTemplate = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {
            "metadata": {"labels": {"l": "1"}, "annotations": {"a": "1"}},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}},
        },
    }))
    .unwrap();
    api.create(&template);
}

fn pod(name: &str, claims: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"containers": [], "resourceClaims": claims},
    }))
    .unwrap()
}

fn claim(api: &FakeApi, name: &str, mut metadata: Value, status: Value) -> ResourceClaim {
    metadata["name"] = json!(name);
    metadata["namespace"] = json!("ns");
    let claim: ResourceClaim =
        serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap();
    api.create(&claim)
}

fn user(pod: &Pod) -> Value {
    json!({"resource": "pods", "name": pod.name_any(), "uid": pod.metadata.uid})
}

fn recorded(pod: &Pod) -> Vec<(String, Option<String>)> {
    let statuses = pod
        .status
        .iter()
        .flat_map(|status| status.resource_claim_statuses.iter().flatten());
    statuses
        .map(|status| (status.name.clone(), status.resource_claim_name.clone()))
        .collect()
}

fn finish(api: &FakeApi, name: &str) {
    api.change::<Pod>("ns", name, |pod| {
        pod.status.get_or_insert_default().phase = Some("Succeeded".into());
    });
}

async fn settled(api: &FakeApi, name: &str, what: &str, holds: impl Fn(&ResourceClaim) -> bool) -> ResourceClaim {
    let found = || async { api.get::<ResourceClaim>("ns", name).filter(|claim| holds(claim)) };
    eventually(what, found).await
}

#[tokio::test]
async fn a_template_becomes_a_claim_of_the_pods_own() {
    let cluster = cluster();
    let api = &cluster.api;
    template(api, "t");
    api.create(&pod("plain", json!(null)));
    let made = api.create(&pod(
        "p",
        json!([{"name": "one", "resourceClaimTemplateName": "t"}, {"name": "two", "resourceClaimTemplateName": "t"},
            {"name": "own", "resourceClaimName": "own"}]),
    ));
    let names = eventually("two names", || async {
        let names = recorded(&api.get::<Pod>("ns", "p").unwrap());
        (names.len() == 2).then_some(names)
    })
    .await;
    assert_eq!((names[0].0.as_str(), names[1].0.as_str()), ("one", "two"));
    let name = names[0].1.clone().unwrap();
    let claim: ResourceClaim = api.get("ns", &name).unwrap();
    assert_eq!(claim.metadata.generate_name.as_deref(), Some("p-one-"));
    let annotations = claim.metadata.annotations.as_ref().unwrap();
    assert_eq!(
        (annotations["a"].as_str(), annotations[MADE_FOR].as_str()),
        ("1", "one")
    );
    assert_eq!(claim.metadata.labels.as_ref().unwrap()["l"], "1");
    let owner = made_for(&claim).unwrap();
    assert_eq!(Some(&owner.uid), made.metadata.uid.as_ref());
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), None));
    assert_eq!(claim.spec.devices.as_ref().unwrap().requests.as_ref().unwrap().len(), 1);
    // One that is taken away is made again, and the other stays recorded.
    api.remove::<ResourceClaim>("ns", &name);
    let again = eventually("another claim", || async {
        let names = recorded(&api.get::<Pod>("ns", "p").unwrap());
        (names[0].1.as_deref() != Some(&*name)).then_some(names)
    })
    .await;
    assert_eq!(again[1], names[1]);
    assert_eq!(api.all::<ResourceClaim>().len(), 2);
    assert!(recorded(&api.get::<Pod>("ns", "plain").unwrap()).is_empty());
}

#[tokio::test]
async fn a_missing_template_is_told_and_waited_for() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&pod("p", json!([{"name": "c", "resourceClaimTemplateName": "t"}])));
    let told = eventually("an event", || async { api.all::<Event>().pop() }).await;
    assert_eq!(told.reason.as_deref(), Some("FailedResourceClaimCreation"));
    assert_eq!(
        told.message.unwrap(),
        "PodResourceClaim c: resource claim template \"t\": resourceclaimtemplate.resource.k8s.io \"t\" not found"
    );
    template(api, "t");
    eventually("a claim", || async { api.all::<ResourceClaim>().pop() }).await;
}

#[tokio::test]
async fn a_claim_that_could_not_be_recorded_is_found_again() {
    let cluster = cluster();
    let api = &cluster.api;
    template(api, "t");
    api.fail_next("patch", "pods/status", 500, "InternalError", "not now");
    api.create(&pod("p", json!([{"name": "c", "resourceClaimTemplateName": "t"}])));
    eventually("a name", || async {
        recorded(&api.get::<Pod>("ns", "p").unwrap()).pop()
    })
    .await;
    assert_eq!(api.all::<ResourceClaim>().len(), 1);
}

#[tokio::test]
async fn with_its_last_user_a_claim_is_given_back() {
    let cluster = cluster();
    let api = &cluster.api;
    let (one, two) = (
        api.create(&pod("one", json!([{"name": "c", "resourceClaimName": "shared"}]))),
        api.create(&pod("two", json!([{"name": "c", "resourceClaimName": "shared"}]))),
    );
    let other = json!({"resource": "podgroups", "apiGroup": "scheduling.k8s.io", "name": "g", "uid": "g"});
    let protected = json!({"finalizers": [FINALIZER, "other/one"]});
    let status = json!({"allocation": {}, "reservedFor": [user(&one), user(&two)]});
    claim(api, "shared", protected.clone(), status);
    // Somebody that is not known here, and a Pod of that name that is another one by now.
    let status =
        json!({"allocation": {}, "reservedFor": [other, {"resource": "pods", "name": "one", "uid": "before"}]});
    claim(api, "foreign", protected.clone(), status);
    // Nobody reserved it: it was allocated by somebody else's plan and stays so.
    claim(api, "early", protected, json!({"allocation": {}}));
    settled(api, "foreign", "a user less", |claim| reserved(claim).len() == 1).await;
    finish(api, "one");
    let left = settled(api, "shared", "one user", |claim| reserved(claim).len() == 1).await;
    assert!(is_allocated(&left) && left.finalizers().len() == 2);
    api.remove::<Pod>("ns", "two");
    let free = settled(api, "shared", "no finalizer", |claim| claim.finalizers().len() == 1).await;
    assert!(!is_allocated(&free) && reserved(&free).is_empty());
    for name in ["foreign", "early"] {
        let kept: ResourceClaim = api.get("ns", name).unwrap();
        assert!(is_allocated(&kept) && kept.finalizers().len() == 2, "{name}");
    }
    // One that is to go lets go of what nobody uses.
    api.change::<ResourceClaim>("ns", "early", |claim| {
        claim.metadata.deletion_timestamp = Some(cluster.clock.time());
    });
    let leaving = settled(api, "early", "no finalizer", |claim| claim.finalizers().len() == 1).await;
    assert!(!is_allocated(&leaving));
}

#[tokio::test]
async fn what_was_made_for_a_pod_goes_when_the_pod_is_done() {
    let cluster = cluster();
    let api = &cluster.api;
    template(api, "t");
    let pod = api.create(&pod("p", json!([{"name": "c", "resourceClaimTemplateName": "t"}])));
    let name = eventually("a name", || async {
        recorded(&api.get::<Pod>("ns", "p").unwrap())
            .pop()
            .and_then(|(_, name)| name)
    })
    .await;
    api.change::<ResourceClaim>("ns", &name, |claim| {
        claim.metadata.finalizers = Some(vec![FINALIZER.into()]);
        claim.status = serde_json::from_value(json!({"allocation": {}, "reservedFor": [user(&pod)]})).unwrap();
    });
    finish(api, "p");
    eventually("no claim", || async {
        api.all::<ResourceClaim>().is_empty().then_some(())
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    // It is not made again, although the Pod still names it.
    eventually("no other claim", || async {
        api.all::<ResourceClaim>().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_came_to_its_node_by_itself_is_reserved_for() {
    let cluster = cluster();
    let api = &cluster.api;
    claim(api, "ready", json!({}), json!({"allocation": {}}));
    claim(api, "not", json!({}), json!({}));
    let mut pod = pod(
        "p",
        json!([{"name": "a", "resourceClaimName": "not"}, {"name": "b", "resourceClaimName": "ready"}]),
    );
    pod.spec.as_mut().unwrap().node_name = Some("n".into());
    let pod = api.create(&pod);
    let claim = settled(api, "ready", "a user", |claim| !reserved(claim).is_empty()).await;
    assert_eq!(reserved(&claim)[0].uid, uid(&pod));
    assert!(reserved(&api.get::<ResourceClaim>("ns", "not").unwrap()).is_empty());
}

#[test]
fn long_names_are_shortened_both() {
    let cases = [
        (
            "p".repeat(10),
            "c".repeat(10),
            format!("{}-{}-", "p".repeat(10), "c".repeat(10)),
        ),
        (
            "p".repeat(100),
            "c".repeat(12),
            format!("{}-{}", "p".repeat(50), "c".repeat(6)),
        ),
    ];
    for (pod, asked, expected) in cases {
        assert_eq!(name_prefix(&pod, &asked), expected);
    }
}
