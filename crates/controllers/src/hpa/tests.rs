//! Whole looks, with the metrics APIs and scales played here and everything else by the API in memory.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::client::Body;
use sampan_client::testing::{FakeApi, PausedClock};
use sampan_client::{Clock, Informers};
use sampan_tasks::Tasks;
use serde_json::{Value, json};

use crate::{Config, Controllers};

#[derive(Default)]
struct World {
    replicas: i64,
    selector: String,
    /// The processor time of each Pod, in thousandths.
    usage: Vec<i64>,
    /// What custom and external metrics answer, in thousandths; `None`: there is no such API.
    custom: Option<i64>,
    external: Option<i64>,
    asked: Vec<String>,
    /// How many writes of the scale are refused with a conflict.
    conflicts: usize,
}

struct Rig {
    api: FakeApi,
    world: Arc<Mutex<World>>,
    _tasks: Tasks,
}

fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code}),
    )
}

fn missing() -> (u16, Value) {
    status(404, "NotFound", "the server could not find the requested resource")
}

impl World {
    fn scale(&self) -> Value {
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "web", "namespace": "ns"},
            "spec": {"replicas": self.replicas}, "status": {"replicas": self.replicas, "selector": self.selector}})
    }

    fn answer(&mut self, method: &Method, path: &str, body: &Value, now: Timestamp) -> Option<(u16, Value)> {
        let found = match path {
            "/apis/example.com/v1/namespaces/ns/boats/web/scale" if method == Method::PUT => {
                if self.conflicts > 0 {
                    self.conflicts -= 1;
                    return Some(status(409, "Conflict", "it was changed"));
                }
                self.replicas = body["spec"]["replicas"].as_i64().unwrap();
                self.scale()
            }
            "/apis/example.com/v1/namespaces/ns/boats/web/scale" => self.scale(),
            "/api" => json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {}, "versions": [
                {"version": "v1", "resources": [{"resource": "services", "responseKind": {"kind": "Service"}, "scope": "Namespaced", "verbs": ["get"]}]}]}]}),
            "/apis" => {
                json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {"name": "example.com"}, "versions": [
                {"version": "v1", "resources": [{"resource": "boats", "responseKind": {"kind": "Boat"}, "scope": "Namespaced", "verbs": ["get"]}]}]}]})
            }
            "/apis/metrics.k8s.io/v1beta1/namespaces/ns/pods" => {
                let items = self.usage.iter().enumerate().map(|(index, milli)| {
                    json!({"metadata": {"name": format!("p{index}")}, "timestamp": now.to_string(), "window": "15s",
                        "containers": [{"name": "main", "usage": {"cpu": format!("{milli}m"), "memory": "64Mi"}}]})
                });
                json!({"items": items.collect::<Vec<_>>()})
            }
            "/apis/custom.metrics.k8s.io" if self.custom.is_some() => {
                json!({"versions": [{"version": "v1beta2"}], "preferredVersion": {"version": "v1beta2"}})
            }
            path if path.starts_with("/apis/custom.metrics.k8s.io/v1beta2/") => {
                self.asked.push(path.to_owned());
                let value = format!("{}m", self.custom?);
                let of = |name: String| json!({"describedObject": {"name": name}, "timestamp": now.to_string(), "value": value});
                let items: Vec<_> = if path.contains("/pods/*/") {
                    (0..self.usage.len()).map(|index| of(format!("p{index}"))).collect()
                } else {
                    vec![of("it".into())]
                };
                json!({"items": items})
            }
            path if path.starts_with("/apis/external.metrics.k8s.io/v1beta1/") && self.external.is_some() => {
                self.asked.push(path.to_owned());
                let value = format!("{}m", self.external?);
                json!({"items": [{"value": value}, {"value": "0"}]})
            }
            path if path.contains("metrics.k8s.io") => return Some(missing()),
            _ => return None,
        };
        Some((200, found))
    }
}

impl Rig {
    /// A scale of `replicas` with as many ready Pods that request a core.
    fn start(replicas: i64, spec: Value) -> Self {
        let (api, tasks) = (FakeApi::new(), Tasks::new());
        let world = Arc::new(Mutex::new(World {
            replicas,
            selector: "app=web".into(),
            usage: vec![0; replicas as usize],
            ..World::default()
        }));
        let clock = PausedClock::default();
        let client_for = {
            let (api, world) = (api.clone(), Arc::clone(&world));
            move |user: &str| {
                let (inner, user, world) = (api.clone(), user.to_owned(), Arc::clone(&world));
                sampan_client::connect(tower::service_fn(move |request: Request<Body>| {
                    let (inner, user, world) = (inner.clone(), user.clone(), Arc::clone(&world));
                    async move {
                        let (parts, body) = request.into_parts();
                        let bytes = body.collect().await.unwrap().to_bytes();
                        let value = serde_json::from_slice(&bytes).unwrap_or_default();
                        let answer = world
                            .lock()
                            .unwrap()
                            .answer(&parts.method, parts.uri.path(), &value, clock.now());
                        match answer {
                            Some((code, answer)) => {
                                let builder = Response::builder()
                                    .status(code)
                                    .header("content-type", "application/json");
                                let bytes = Bytes::from(answer.to_string());
                                Ok::<_, Infallible>(builder.body(Full::new(bytes).boxed_unsync()).unwrap())
                            }
                            None => Ok(inner.answer(&user, Request::from_parts(parts, Body::from(bytes))).await),
                        }
                    }
                }))
            }
        };
        let informers = Informers::new(api.client("system:kube-controller-manager"), &tasks);
        let config = Config {
            enabled: vec!["horizontal-pod-autoscaler-controller".into()],
            ..Config::default()
        };
        let rig = Rig {
            api,
            world,
            _tasks: tasks.clone(),
        };
        for index in 0..replicas {
            rig.add_pod(index, clock.now());
        }
        rig.autoscale("a", spec);
        Controllers::start_with_clock(config, client_for, &informers, &tasks, Arc::new(clock)).unwrap();
        rig
    }

    fn add_pod(&self, index: i64, now: Timestamp) {
        let before = now - jiff::SignedDuration::from_hours(1);
        let pod = json!({
            "metadata": {"name": format!("p{index}"), "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running", "startTime": before.to_string(),
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": before.to_string()}]},
        });
        self.api.create(&serde_json::from_value::<Pod>(pod).unwrap());
    }

    fn autoscale(&self, name: &str, spec: Value) {
        let mut whole = json!({"scaleTargetRef": {"apiVersion": "example.com/v1", "kind": "Boat", "name": "web"}, "maxReplicas": 10});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let object = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": whole});
        self.api
            .create(&serde_json::from_value::<HorizontalPodAutoscaler>(object).unwrap());
    }

    fn world(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.lock().unwrap());
    }

    fn replicas(&self) -> i64 {
        self.world.lock().unwrap().replicas
    }

    fn status(&self, name: &str) -> Value {
        let found: HorizontalPodAutoscaler = self.api.get("ns", name).unwrap();
        serde_json::to_value(found.status).unwrap()
    }

    /// `Type=Status/Reason` of every condition.
    fn conditions(&self, name: &str) -> Vec<String> {
        let status = self.status(name);
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        all.iter()
            .map(|one| format!("{}={}/{}", text(one, "type"), text(one, "status"), text(one, "reason")))
            .collect()
    }

    fn events(&self) -> Vec<String> {
        let all = self.api.all::<Event>();
        let texts = all.iter().map(|event| {
            let source = event.source.as_ref().and_then(|source| source.component.as_deref());
            assert_eq!(source, Some("horizontal-pod-autoscaler"));
            format!(
                "{}: {}",
                event.reason.as_deref().unwrap_or_default(),
                event.message.as_deref().unwrap_or_default()
            )
        });
        texts.collect()
    }
}

async fn rounds(count: u64) {
    tokio::time::sleep(Duration::from_secs(15 * count + 1)).await;
}

fn cpu(target: Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn half() -> Value {
    json!({"metrics": [cpu(json!({"type": "Utilization", "averageUtilization": 50}))]})
}

#[tokio::test(start_paused = true)]
async fn grows_and_shrinks_with_the_load() {
    let rig = Rig::start(2, half());
    rig.world(|world| {
        world.usage = vec![900, 700];
        world.conflicts = 1;
    });
    rounds(1).await;
    assert_eq!(rig.replicas(), 4);
    let status = rig.status("a");
    assert_eq!(
        (&status["currentReplicas"], &status["desiredReplicas"]),
        (&json!(2), &json!(4))
    );
    assert!(status["lastScaleTime"].is_string());
    assert_eq!(
        status["currentMetrics"],
        json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 80, "averageValue": "800m"}}}])
    );
    assert_eq!(
        rig.conditions("a"),
        [
            "AbleToScale=True/SucceededRescale",
            "ScalingActive=True/ValidMetricFound",
            "ScalingLimited=False/DesiredWithinRange"
        ]
    );
    let said = "SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target";
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.events().contains(&said.to_owned()), "{:?}", rig.events());
    // The load goes; it shrinks once no recommendation of the last five minutes says otherwise.
    for index in 2..4 {
        rig.add_pod(index, PausedClock::default().now());
    }
    rig.world(|world| world.usage = vec![10; 4]);
    rounds(10).await;
    assert_eq!(rig.replicas(), 4);
    assert!(
        rig.conditions("a")
            .contains(&"AbleToScale=True/ScaleDownStabilized".to_owned())
    );
    rounds(14).await;
    assert_eq!(rig.replicas(), 1, "{:?}", rig.conditions("a"));
}

#[tokio::test(start_paused = true)]
async fn what_keeps_it_from_working_is_told() {
    // No figures, nothing to do.
    let rig = Rig::start(1, half());
    rig.world(|world| world.usage.clear());
    rounds(2).await;
    let message = rig.status("a")["conditions"][1]["message"].clone();
    assert_eq!(
        message,
        "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"
    );
    assert!(
        rig.conditions("a")
            .contains(&"ScalingActive=False/FailedGetResourceMetric".to_owned())
    );
    assert_eq!(rig.status("a")["currentMetrics"], json!([{"type": ""}]));
    let failed = "FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API";
    assert!(rig.events().contains(&failed.to_owned()), "{:?}", rig.events());
    // Nobody scales what stands still.
    rig.world(|world| world.replicas = 0);
    rounds(1).await;
    assert!(
        rig.conditions("a")
            .contains(&"ScalingActive=False/ScalingDisabled".to_owned())
    );
    assert_eq!(rig.replicas(), 0);
    // Out of its range, whatever is measured.
    rig.world(|world| world.replicas = 12);
    rounds(1).await;
    assert_eq!(rig.replicas(), 10);
    // A selector is needed.
    rig.world(|world| world.selector.clear());
    rounds(1).await;
    assert!(
        rig.conditions("a")
            .contains(&"ScalingActive=False/InvalidSelector".to_owned())
    );
    // A kind nobody knows.
    rig.api
        .change::<HorizontalPodAutoscaler>("ns", "a", |own| own.spec.scale_target_ref.kind = "Ship".into());
    rounds(1).await;
    assert!(
        rig.conditions("a")
            .contains(&"AbleToScale=False/FailedGetScale".to_owned())
    );
    let message = rig.status("a")["conditions"][0]["message"].clone();
    assert!(
        message
            .as_str()
            .unwrap()
            .ends_with("no matches for kind \"Ship\" in group \"example.com\""),
        "{message}"
    );
}

#[tokio::test(start_paused = true)]
async fn two_that_count_the_same_pods_do_nothing() {
    let rig = Rig::start(2, half());
    rig.autoscale("b", half());
    rig.world(|world| world.usage = vec![900, 900]);
    rounds(3).await;
    for name in ["a", "b"] {
        let conditions = rig.conditions(name);
        assert!(
            conditions.contains(&"ScalingActive=False/AmbiguousSelector".to_owned()),
            "{conditions:?}"
        );
    }
    let message = rig.status("a")["conditions"][1]["message"].clone();
    assert_eq!(
        message,
        "pods by selector app=web are controlled by multiple HPAs: [{a ns} {b ns}]"
    );
    rig.api.remove::<HorizontalPodAutoscaler>("ns", "b");
    rounds(2).await;
    let conditions = rig.conditions("a");
    assert!(
        conditions.contains(&"ScalingActive=True/ValidMetricFound".to_owned()),
        "{conditions:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn metrics_of_others() {
    let metric = json!({"name": "m", "selector": {"matchLabels": {"k": "v"}}});
    let value = |value: &str| json!({"type": "Value", "value": value});
    let average = |value: &str| json!({"type": "AverageValue", "averageValue": value});
    let boat = json!({"apiVersion": "example.com/v1", "kind": "Boat", "name": "other"});
    let root = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns";
    let cases = [
        (
            json!({"type": "Pods", "pods": {"metric": metric, "target": average("10")}}),
            format!("{root}/pods/*/m"),
            json!({"pods": {"metric": metric, "current": {"averageValue": "30"}}, "type": "Pods"}),
            "pods metric m above target",
        ),
        (
            json!({"type": "Object", "object": {"metric": metric, "describedObject": boat, "target": value("10")}}),
            format!("{root}/boats.example.com/other/m"),
            json!({"object": {"metric": metric, "describedObject": boat, "current": {"value": "30"}}, "type": "Object"}),
            "Boat metric m above target",
        ),
        (
            json!({"type": "Object", "object": {"metric": metric,
                "describedObject": {"apiVersion": "v1", "kind": "Namespace", "name": "ns"}, "target": average("5")}}),
            format!("{root}/metrics/m"),
            json!({"object": {"metric": metric, "describedObject": {"apiVersion": "v1", "kind": "Namespace", "name": "ns"},
                "current": {"averageValue": "15"}}, "type": "Object"}),
            "external metric m(&LabelSelector{MatchLabels:map[string]string{k: v,},MatchExpressions:[]LabelSelectorRequirement{},}) above target",
        ),
        (
            json!({"type": "External", "external": {"metric": {"name": "m"}, "target": value("20")}}),
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/m".to_owned(),
            json!({"external": {"metric": {"name": "m"}, "current": {"value": "60"}}, "type": "External"}),
            "external metric m(nil) above target",
        ),
        (
            json!({"type": "External", "external": {"metric": {"name": "m"}, "target": average("10")}}),
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/m".to_owned(),
            json!({"external": {"metric": {"name": "m"}, "current": {"averageValue": "30"}}, "type": "External"}),
            "external metric m(nil) above target",
        ),
        (
            json!({"type": "ContainerResource", "containerResource": {"name": "memory", "container": "main", "target": average("21Mi")}}),
            String::new(),
            json!({"containerResource": {"name": "memory", "container": "main", "current": {"averageValue": "64Mi"}}, "type": "ContainerResource"}),
            "memory resource above target",
        ),
    ];
    for (spec, path, current, reason) in cases {
        let rig = Rig::start(2, json!({"metrics": [spec.clone()]}));
        rounds(1).await;
        if !path.is_empty() {
            let conditions = rig.conditions("a");
            assert!(
                conditions
                    .iter()
                    .any(|one| one.starts_with("ScalingActive=False/FailedGet")),
                "{spec} {conditions:?}"
            );
        }
        rig.world(|world| (world.custom, world.external) = (Some(30_000), Some(60_000)));
        rounds(2).await;
        assert!(
            rig.replicas() >= 6,
            "{spec}: {} {:?}",
            rig.replicas(),
            rig.conditions("a")
        );
        if !path.is_empty() {
            assert_eq!(rig.world.lock().unwrap().asked[0], path, "{spec}");
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let said = format!("SuccessfulRescale: New size: 6; reason: {reason}");
        assert!(
            path.is_empty() || rig.events().contains(&said),
            "{spec}: {:?}",
            rig.events()
        );
        let status = rig.status("a");
        assert_eq!(status["currentMetrics"].as_array().map(Vec::len), Some(1));
        if !path.contains("namespaces/ns/metrics") && !reason.contains("nil") {
            assert_eq!(status["currentMetrics"][0], current, "{spec}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn some_figures_are_enough_to_grow_but_not_to_shrink() {
    let metrics = json!({"metrics": [
        cpu(json!({"type": "Utilization", "averageUtilization": 50})),
        {"type": "External", "external": {"metric": {"name": "m"}, "target": {"type": "Value", "value": "20"}}},
    ]});
    let rig = Rig::start(4, metrics);
    rig.world(|world| world.usage = vec![10; 4]);
    rounds(30).await;
    assert_eq!(rig.replicas(), 4);
    assert!(
        rig.conditions("a")
            .contains(&"ScalingActive=False/FailedGetExternalMetric".to_owned())
    );
    rig.world(|world| world.usage = vec![900; 4]);
    rounds(1).await;
    assert_eq!(rig.replicas(), 8);
    assert_eq!(rig.status("a")["currentMetrics"][1], json!({"type": ""}));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_where_there_are_none() {
    let rig = Rig::start(2, half());
    rounds(2).await;
    rig.api.remove::<HorizontalPodAutoscaler>("ns", "a");
    rounds(1).await;
    rig.api.clear_actions();
    let looked = rig.world.lock().unwrap().asked.len();
    rounds(100).await;
    assert!(rig.api.actions().is_empty());
    assert_eq!(rig.world.lock().unwrap().asked.len(), looked);
}
