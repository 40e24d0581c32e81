//! The whole scheduler on a real API server.

mod extenders;
mod leaders;
mod whole;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use sampan_apiserver::testing::TestServer;
use sampan_client::{Informers, Recorder, SystemClock};
use sampan_scheduler::{Config, Configuration};
use sampan_tasks::{OnExit, Tasks};
use serde_json::{Value, json};

/// Waits for at most a minute: builds may run beside the tests.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A control plane without controllers.
pub struct Cluster {
    pub server: TestServer,
    pub client: kube::Client,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let server = TestServer::start().await.unwrap();
        let client = sampan_client::connect(server.connect());
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
        Cluster { server, client }
    }

    /// Runs a scheduler as upstream's user until the tasks end.
    pub async fn scheduler(&self, configuration: Configuration, tasks: &Tasks) {
        let kubeconfig = self.server.kubeconfig_as("system:kube-scheduler", None).unwrap();
        let client = sampan_client::from_kubeconfig(&kubeconfig).await.unwrap();
        let recorder = Recorder::new(client.clone(), "default-scheduler", None, Arc::new(SystemClock), tasks);
        let config = Config {
            configuration,
            ..Config::default()
        };
        let informers = Informers::new(client.clone(), tasks);
        let run = sampan_scheduler::run(config, client, informers, recorder, tasks.drain());
        tasks.spawn("scheduler", OnExit::Expected, run);
    }

    pub async fn node(&self, name: &str, allocatable: Value) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut metadata = json!({"name": name});
        metadata["labels"] = json!({"kubernetes.io/hostname": name});
        let node = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let status = json!({"status": {"allocatable": allocatable, "capacity": allocatable}});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
        // Nobody is there to take its taint off.
        let untainted = json!({"spec": {"taints": null}});
        nodes
            .patch(name, &PatchParams::default(), &Patch::Merge(untainted))
            .await
            .unwrap();
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub async fn pod(&self, name: &str, spec: Value) {
        let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap();
    }

    /// The node a Pod is bound to, or the reason and message of the condition that says why it waits.
    pub async fn fate(&self, name: &str) -> Option<String> {
        let pod = self.pods().get(name).await.unwrap();
        if let Some(node) = pod.spec.and_then(|spec| spec.node_name) {
            return Some(node);
        }
        let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
        let condition = conditions
            .into_iter()
            .find(|condition| condition.type_ == "PodScheduled")?;
        Some(format!("{}: {}", condition.reason?, condition.message?))
    }

    /// Waits until a Pod is bound, or waits, as expected.
    pub async fn until(&self, name: &str, expected: &str) {
        eventually(&format!("{name} is {expected}"), async || {
            self.fate(name).await.filter(|fate| fate.starts_with(expected))
        })
        .await;
    }

    pub async fn events(&self, reason: &str) -> Vec<Event> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let events = events.list(&ListParams::default()).await.unwrap();
        let events = events.items.into_iter();
        events.filter(|event| event.reason.as_deref() == Some(reason)).collect()
    }
}
