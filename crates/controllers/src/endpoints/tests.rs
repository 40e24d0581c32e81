use k8s_openapi::api::core::v1::{Container, ContainerPort, Endpoints, Node, PodSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::ObjectMeta;
use sampan_client::Clock;
use sampan_client::testing::{FakeApi, eventually};

use super::*;
use crate::testing::{Cluster, set_ready};

fn labels() -> std::collections::BTreeMap<String, String> {
    [("app".to_owned(), "web".to_owned())].into()
}

fn service(change: impl FnOnce(&mut ServiceSpec)) -> Service {
    let mut spec = ServiceSpec {
        cluster_ip: Some("10.96.0.10".into()),
        selector: Some(labels()),
        ports: Some(vec![ServicePort {
            name: Some("http".into()),
            port: 80,
            target_port: Some(IntOrString::String("web".into())),
            ..Default::default()
        }]),
        ..Default::default()
    };
    change(&mut spec);
    Service {
        metadata: ObjectMeta {
            name: Some("svc".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: Some(spec),
        ..Default::default()
    }
}

fn pod(cluster: &Cluster, number: usize, ready: bool) {
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: Some(format!("p{number:03}")),
            namespace: Some("ns".into()),
            labels: Some(labels()),
            ..Default::default()
        },
        spec: Some(PodSpec {
            node_name: Some("n1".into()),
            hostname: Some(format!("h{number}")),
            subdomain: Some("svc".into()),
            containers: vec![Container {
                ports: Some(vec![ContainerPort {
                    name: Some("web".into()),
                    container_port: 8080,
                    ..Default::default()
                }]),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    set_ready(&mut pod, ready, cluster.clock.time());
    pod.status.as_mut().unwrap().pod_ip = Some(format!("10.1.{}.{}", number / 200, number % 200));
    cluster.api.create(&pod);
}

fn all(api: &FakeApi) -> Vec<Endpoint> {
    let slices = api.all::<EndpointSlice>();
    slices
        .into_iter()
        .flat_map(|slice| slice.endpoints.unwrap_or_default())
        .collect()
}

async fn endpoints(api: &FakeApi, what: &str, check: impl Fn(&[Endpoint]) -> bool) -> Vec<Endpoint> {
    eventually(what, || async {
        let found = all(api);
        check(&found).then_some(found)
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn slices_follow_pods() {
    let cluster = Cluster::start(&["endpointslice-controller"]);
    let api = &cluster.api;
    let mut node = Node::default();
    node.metadata.name = Some("n1".into());
    node.metadata.labels = Some([("topology.kubernetes.io/zone".to_owned(), "z".to_owned())].into());
    api.create(&node);
    api.create(&service(|_| {}));
    let empty = eventually("a slice to say that there is nothing", || async {
        api.all::<EndpointSlice>().pop()
    })
    .await;
    assert_eq!(empty.labels()["kubernetes.io/service-name"], "svc");
    assert_eq!(empty.address_type, "IPv4");

    pod(&cluster, 1, true);
    let one = endpoints(api, "one endpoint", |found| found.len() == 1).await;
    let conditions = one[0].conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(true), Some(true), Some(false))
    );
    assert_eq!(one[0].addresses, ["10.1.0.1"]);
    assert_eq!(one[0].node_name.as_deref(), Some("n1"));
    assert_eq!(one[0].zone.as_deref(), Some("z"));
    assert_eq!(one[0].hostname.as_deref(), Some("h1"));
    assert_eq!(one[0].target_ref.as_ref().unwrap().name.as_deref(), Some("p001"));
    let slices = api.all::<EndpointSlice>();
    let with_ports = slices
        .iter()
        .find(|s| s.endpoints.as_ref().is_some_and(|e| !e.is_empty()))
        .unwrap();
    let port = &with_ports.ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));

    for number in 2..=150 {
        pod(&cluster, number, number % 2 == 0);
    }
    endpoints(api, "150 endpoints", |found| found.len() == 150).await;
    let slices = api.all::<EndpointSlice>();
    assert!(slices.len() <= 3, "{} slices", slices.len());
    assert!(
        slices
            .iter()
            .all(|s| s.endpoints.as_ref().is_none_or(|e| e.len() <= 100))
    );

    // On its way out it still serves, and is no longer ready.
    api.change::<Pod>("ns", "p002", |pod| {
        pod.metadata.deletion_timestamp = Some(cluster.clock.time());
    });
    endpoints(api, "a terminating endpoint", |found| {
        found.iter().any(|e| {
            let c = e.conditions.as_ref().unwrap();
            c.terminating == Some(true) && c.serving == Some(true) && c.ready == Some(false)
        })
    })
    .await;
    for number in 2..=150 {
        api.remove::<Pod>("ns", &format!("p{number:03}"));
    }
    endpoints(api, "one is left", |found| found.len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn headless_services_may_publish_what_is_not_ready() {
    let cluster = Cluster::start(&["endpointslice-controller", "endpoints-controller"]);
    let api = &cluster.api;
    api.create(&service(|spec| {
        spec.cluster_ip = Some("None".into());
        spec.publish_not_ready_addresses = Some(true);
        spec.ports = None;
    }));
    pod(&cluster, 1, false);
    let found = endpoints(api, "published", |found| found.len() == 1).await;
    let conditions = found[0].conditions.clone().unwrap();
    assert_eq!((conditions.ready, conditions.serving), (Some(true), Some(false)));
    let slice = api.all::<EndpointSlice>().remove(0);
    assert!(slice.labels().contains_key("service.kubernetes.io/headless"));
    eventually("Endpoints too", || async {
        let subsets = api.get::<Endpoints>("ns", "svc")?.subsets?;
        (subsets[0].addresses.as_ref()?.len() == 1).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn endpoints_keep_ready_and_not_ready_apart() {
    let cluster = Cluster::start(&["endpoints-controller"]);
    let api = &cluster.api;
    api.create(&service(|_| {}));
    eventually("empty Endpoints", || async { api.get::<Endpoints>("ns", "svc") }).await;
    pod(&cluster, 1, true);
    pod(&cluster, 2, false);
    eventually("one of each", || async {
        let subsets = api.get::<Endpoints>("ns", "svc")?.subsets?;
        let subset = subsets.first()?;
        let port = subset.ports.as_ref()?.first()?;
        (port.port == 8080
            && subset.addresses.as_ref()?[0].ip == "10.1.0.1"
            && subset.not_ready_addresses.as_ref()?[0].ip == "10.1.0.2")
            .then_some(())
    })
    .await;
    api.remove::<Service>("ns", "svc");
    eventually("gone with its Service", || async {
        api.get::<Endpoints>("ns", "svc").is_none().then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn hand_made_endpoints_are_mirrored() {
    let cluster = Cluster::start(&["endpointslice-mirroring-controller"]);
    let api = &cluster.api;
    let make = |addresses: &[&str]| -> Endpoints {
        let addresses: Vec<_> = addresses.iter().map(|ip| serde_json::json!({"ip": ip})).collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "svc", "namespace": "ns"},
            "subsets": [{"addresses": addresses, "ports": [{"name": "http", "port": 8080}]}],
        }))
        .unwrap()
    };
    api.create(&make(&["192.0.2.1", "2001:db8::1"]));
    api.create(&service(|spec| spec.selector = None));
    eventually("one slice per family", || async {
        let mut found: Vec<String> = api
            .all::<EndpointSlice>()
            .into_iter()
            .map(|slice| slice.address_type)
            .collect();
        found.sort();
        (found == ["IPv4", "IPv6"]).then_some(())
    })
    .await;
    api.change::<Endpoints>("ns", "svc", |endpoints| {
        endpoints.subsets = make(&["192.0.2.9"]).subsets
    });
    let found = endpoints(api, "only the new one", |found| found.len() == 1).await;
    assert_eq!(found[0].addresses, ["192.0.2.9"]);
    // A Service that selects Pods has slices of its own.
    api.change::<Service>("ns", "svc", |service| {
        service.spec.as_mut().unwrap().selector = Some(labels())
    });
    endpoints(api, "no mirror", |found| found.is_empty()).await;
}
