//! Extenders that are real servers, over HTTP and TLS.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::Api;
use kube::api::PostParams;
use sampan_apiserver::body::Body;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use sampan_scheduler::Configuration;
use sampan_tasks::{OnExit, Tasks};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{Cluster, eventually};

type Reply = Arc<dyn Fn(&str, &Value) -> (u16, Value) + Send + Sync>;

/// An extender: what it was asked, and what it answers.
#[derive(Clone)]
struct Theirs {
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    reply: Reply,
}

impl Theirs {
    fn new(reply: impl Fn(&str, &Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        Theirs {
            asked: Arc::default(),
            reply: Arc::new(reply),
        }
    }

    fn answer(&self, path: &str, body: &Bytes) -> (u16, Bytes) {
        let verb = path.rsplit('/').next().unwrap().to_owned();
        let document: Value = serde_json::from_slice(body).unwrap();
        let (code, answer) = (self.reply)(&verb, &document);
        self.asked.lock().unwrap().push((verb, document));
        (code, Bytes::from(answer.to_string()))
    }

    /// What it was asked about a Pod, verb by verb.
    fn asked(&self, pod: &str) -> Vec<(String, Value)> {
        let asked = self.asked.lock().unwrap();
        let about = |document: &Value| document["Pod"]["metadata"]["name"] == pod || document["PodName"] == pod;
        asked.iter().filter(|(_, document)| about(document)).cloned().collect()
    }

    /// Serves it over HTTP; its address.
    async fn serve(&self, tasks: &Tasks) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (theirs, spawner) = (self.clone(), tasks.clone());
        tasks.spawn_until_drain("extender", OnExit::Expected, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let theirs = theirs.clone();
                spawner.spawn_until_drain("extender's connection", OnExit::Expected, async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let theirs = theirs.clone();
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let (code, answer) = theirs.answer(&path, &body);
                            let response = Response::builder().status(code).body(Full::new(answer)).unwrap();
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let serving =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // It ends with its client.
                    let _ended = serving.await;
                });
            }
        });
        format!("http://{address}/scheduler")
    }
}

fn configuration(extenders: Value) -> Configuration {
    let document = json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "extenders": extenders,
    });
    Configuration::parse(document.to_string().as_bytes()).unwrap()
}

fn asks(resource: &str, priority: i32) -> Value {
    let amounts = json!({"cpu": "1", resource: "1"});
    json!({"priority": priority, "containers": [
        {"name": "c", "image": "i", "resources": {"requests": amounts, "limits": amounts}},
    ]})
}

fn names(document: &Value) -> Vec<String> {
    let items = document["Nodes"]["items"].as_array().unwrap();
    let names = items
        .iter()
        .map(|node| node["metadata"]["name"].as_str().unwrap().to_owned());
    names.collect()
}

const GPU: &str = "example.com/gpu";
const TPU: &str = "example.com/tpu";
/// Only its extender knows how much there is of it.
const SECRET: &str = "example.com/secret";

async fn nodes(cluster: &Cluster) {
    for name in ["n1", "n2", "n3"] {
        cluster
            .node(
                name,
                json!({"cpu": "4", "memory": "8Gi", "pods": "110", GPU: "2", TPU: "2"}),
            )
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filter_rank_and_bind() {
    let cluster = Cluster::start().await;
    nodes(&cluster).await;
    let tasks = Tasks::new();
    let filtering = Theirs::new(|verb, document| match verb {
        "filter" => {
            let left: Vec<Value> = document["Nodes"]["items"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|node| node["metadata"]["name"] != "n1")
                .cloned()
                .collect();
            let hopeless = document["Pod"]["metadata"]["name"] == "hopeless";
            let refused = |name: &str| (name.to_owned(), Value::from("extender says no"));
            match hopeless {
                true => (
                    200,
                    json!({"failedAndUnresolvableNodes": {"n1": "never"}, "failedNodes": {"n2": "extender says no", "n1": "x"}}),
                ),
                false => (
                    200,
                    json!({"nodes": {"items": left}, "failedNodes": Value::Object([refused("n1")].into_iter().collect())}),
                ),
            }
        }
        _ => (200, json!([{"Host": "n2", "Score": 1}, {"Host": "n3", "Score": 10}])),
    });
    let url = filtering.serve(&tasks).await;
    let api: Api<Pod> = cluster.pods();
    let runtime = tokio::runtime::Handle::current();
    // Knows the nodes, and binds itself.
    let binding = Theirs::new(move |verb, document| {
        if verb == "filter" {
            return (200, json!({"NodeNames": document["NodeNames"]}));
        }
        let text = |field: &str| document[field].as_str().unwrap().to_owned();
        let mut binding = Binding {
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(text("Node")),
                ..ObjectReference::default()
            },
            ..Binding::default()
        };
        binding.metadata.name = Some(text("PodName"));
        binding.metadata.uid = Some(text("PodUID"));
        let (api, name) = (api.clone(), text("PodName"));
        let bound = tokio::task::block_in_place(|| {
            runtime.block_on(api.create_subresource::<Binding, Value>(
                "binding",
                &name,
                &PostParams::default(),
                &binding,
            ))
        });
        (
            200,
            json!({"Error": bound.err().map(|error| error.to_string()).unwrap_or_default()}),
        )
    });
    let binder = binding.serve(&tasks).await;
    let configuration = configuration(json!([
        // May be ignored, and is: nobody is there. Asked last.
        {"urlPrefix": "http://127.0.0.1:1", "filterVerb": "filter", "ignorable": true},
        {"urlPrefix": url, "filterVerb": "filter", "prioritizeVerb": "rank", "weight": 50, "managedResources": [{"name": GPU}]},
        {"urlPrefix": binder, "filterVerb": "filter", "bindVerb": "bind", "nodeCacheCapable": true,
         "managedResources": [{"name": TPU}, {"name": SECRET, "ignoredByScheduler": true}]},
    ]));
    cluster.scheduler(configuration, &tasks).await;

    cluster
        .pod("plain", json!({"containers": [{"name": "c", "image": "i"}]}))
        .await;
    cluster.pod("gpu", asks(GPU, 0)).await;
    cluster.pod("tpu", asks(TPU, 0)).await;
    cluster.pod("secret", asks(SECRET, 0)).await;
    cluster.pod("hopeless", asks(GPU, 0)).await;
    cluster.until("plain", "n").await;
    cluster.until("gpu", "n3").await;
    cluster.until("tpu", "n").await;
    cluster.until("secret", "n").await;
    cluster
        .until(
            "hopeless",
            "Unschedulable: 0/3 nodes are available: 1 extender says no, 1 never. preemption: ",
        )
        .await;
    assert!(filtering.asked("plain").is_empty() && binding.asked("plain").is_empty());
    assert!(filtering.asked("tpu").is_empty());
    let asked = filtering.asked("gpu");
    let verbs: Vec<&str> = asked.iter().map(|(verb, _)| verb.as_str()).collect();
    assert_eq!(verbs, ["filter", "rank"]);
    assert_eq!((names(&asked[0].1).len(), names(&asked[1].1).len()), (3, 2));
    assert_eq!(asked[0].1["Pod"]["spec"]["containers"][0]["name"], "c");
    let asked = binding.asked("tpu");
    assert_eq!(asked[0].1["NodeNames"].as_array().unwrap().len(), 3);
    assert!(asked[0].1["Nodes"].is_null());
    assert_eq!(asked[1].0, "bind");
    assert_eq!(binding.asked("secret").len(), 2);
    let scheduled = eventually("the events are written", async || {
        let events = cluster.events("Scheduled").await;
        (events.len() == 4).then_some(events)
    });
    scheduled.await;
    tasks.shutdown(Duration::from_secs(5)).await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_told_and_tried_again() {
    let cluster = Cluster::start().await;
    nodes(&cluster).await;
    let tasks = Tasks::new();
    let broken = Arc::new(Mutex::new(true));
    let flag = Arc::clone(&broken);
    let moody =
        Theirs::new(
            move |_, document| match (*flag.lock().unwrap(), document["Pod"]["metadata"]["name"].as_str()) {
                (true, Some("code")) => (503, json!({})),
                (true, Some("error")) => (200, json!({"Error": "cannot say"})),
                (true, Some("stranger")) => (200, json!({"NodeNames": ["n9"]})),
                (true, _) => (200, json!("what?")),
                _ => (200, json!({"nodeNames": document["NodeNames"]})),
            },
        );
    let url = moody.serve(&tasks).await;
    let extenders = json!([{"urlPrefix": url, "filterVerb": "filter", "nodeCacheCapable": true}]);
    cluster.scheduler(configuration(extenders), &tasks).await;
    for name in ["code", "error", "stranger", "nonsense"] {
        cluster
            .pod(name, json!({"containers": [{"name": "c", "image": "i"}]}))
            .await;
    }
    let expected = format!("SchedulerError: failed filter with extender at URL {url}/filter, code 503");
    cluster.until("code", &expected).await;
    cluster.until("error", "SchedulerError: cannot say").await;
    let expected = format!(
        "SchedulerError: extender {url:?} claims a filtered node \"n9\" which is not found in the input node list"
    );
    cluster.until("stranger", &expected).await;
    cluster.until("nonsense", "SchedulerError: ").await;
    *broken.lock().unwrap() = false;
    for name in ["code", "error", "stranger", "nonsense"] {
        cluster.until(name, "n").await;
    }
    tasks.shutdown(Duration::from_secs(5)).await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_victims() {
    let cluster = Cluster::start().await;
    cluster
        .node("n1", json!({"cpu": "1", "memory": "8Gi", "pods": "110", GPU: "2"}))
        .await;
    cluster
        .node("n2", json!({"cpu": "1", "memory": "8Gi", "pods": "110", GPU: "2"}))
        .await;
    let tasks = Tasks::new();
    // Agrees to n2 only.
    let theirs = Theirs::new(|verb, document| match verb {
        "filter" => (200, json!({"NodeNames": document["NodeNames"]})),
        _ => (
            200,
            json!({"NodeNameToMetaVictims": {"n2": document["NodeNameToMetaVictims"]["n2"]}}),
        ),
    });
    let answering = theirs.clone();
    let handler: Handler = Arc::new(move |parts, body| {
        let (code, answer) = answering.answer(parts.uri.path(), &body);
        Box::pin(async move { Ok(Response::builder().status(code).body(Body::from(answer))?) })
    });
    let pki = &cluster.server.pki;
    let server = HttpsServer::start_strict(&pki.ca(), pki, &tasks, &["extender.test"], handler)
        .await
        .unwrap();
    let identity = pki.issue(&sampan_pki::LeafSpec::client("scheduler", None)).unwrap();
    let dir = cluster.server.dir();
    for (name, text) in [
        ("ca", pki.ca_pem()),
        ("cert", identity.certificate_pem().to_owned()),
        ("key", identity.key_pem().to_owned()),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let extenders = json!([{
        "urlPrefix": server.url(""), "filterVerb": "filter", "preemptVerb": "preempt", "nodeCacheCapable": true,
        "enableHTTPS": true, "managedResources": [{"name": GPU}],
        "tlsConfig": {"caFile": dir.join("ca"), "certFile": dir.join("cert"), "keyFile": dir.join("key"), "serverName": "extender.test"},
    }]);
    cluster.scheduler(configuration(extenders), &tasks).await;
    cluster.pod("low1", asks(GPU, 0)).await;
    cluster.pod("low2", asks(GPU, 0)).await;
    cluster.until("low1", "n").await;
    cluster.until("low2", "n").await;
    let doomed = match cluster.fate("low1").await.as_deref() {
        Some("n2") => "low1",
        _ => "low2",
    };
    let class = json!({"metadata": {"name": "high"}, "value": 100});
    let classes: Api<k8s_openapi::api::scheduling::v1::PriorityClass> = Api::all(cluster.client.clone());
    let class = serde_json::from_value(class).unwrap();
    classes.create(&PostParams::default(), &class).await.unwrap();
    let mut spec = asks(GPU, 100);
    spec["priorityClassName"] = "high".into();
    cluster.pod("high", spec).await;
    cluster
        .until("high", "Unschedulable: 0/2 nodes are available: 2 Insufficient cpu.")
        .await;
    eventually("the victim on n2 goes", async || {
        let pods = cluster.pods();
        let gone = pods
            .get_opt(doomed)
            .await
            .unwrap()
            .is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        gone.then_some(())
    })
    .await;
    let high = cluster.pods().get("high").await.unwrap();
    assert_eq!(high.status.unwrap().nominated_node_name.as_deref(), Some("n2"));
    let asked = theirs.asked("high");
    assert_eq!(asked[0].0, "preempt");
    assert_eq!(asked[0].1["NodeNameToMetaVictims"].as_object().unwrap().len(), 2);
    tasks.shutdown(Duration::from_secs(5)).await;
    cluster.server.stop().await;
}
