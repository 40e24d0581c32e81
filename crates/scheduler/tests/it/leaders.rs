//! Two schedulers on one cluster: one works, the other takes over, nothing is doubled; and what they count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use sampan_client::leader::{self, Election};
use sampan_client::metrics::Exposition;
use sampan_client::{Informers, Recorder, SystemClock};
use sampan_scheduler::{Config, Metrics};
use sampan_tasks::Tasks;
use serde_json::json;

use crate::{Cluster, eventually};

impl Cluster {
    /// A scheduler that works while it holds the lease, in a runtime of its own: dropping that is its sudden death.
    fn candidate(&self, name: &'static str, metrics: Metrics) -> tokio::runtime::Runtime {
        let kubeconfig = self.server.kubeconfig_as("system:kube-scheduler", None).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(async move {
            let tasks = Tasks::new();
            let client = sampan_client::from_kubeconfig(&kubeconfig).await.unwrap();
            let election = Election {
                lease: Duration::from_secs(8),
                renew: Duration::from_secs(6),
                retry: Duration::from_millis(500),
                ..Election::new("kube-system", "kube-scheduler", name)
            };
            let reader = client.clone();
            let within = tasks.clone();
            let work = move || {
                let recorder = Recorder::new(
                    reader.clone(),
                    "default-scheduler",
                    None,
                    Arc::new(SystemClock),
                    &within,
                );
                let config = Config {
                    metrics,
                    ..Config::default()
                };
                let informers = Informers::new(reader.clone(), &within);
                sampan_scheduler::run(config, reader, informers, recorder, within.drain())
            };
            leader::run(client, election, &SystemClock, work, tasks.drain()).await;
        });
        runtime
    }

    async fn holder(&self) -> String {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-system");
        let lease = leases.get_opt("kube-scheduler").await.unwrap();
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        holder.unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_takes_over_and_nothing_is_doubled() {
    let cluster = Cluster::start().await;
    for name in ["n1", "n2"] {
        cluster
            .node(name, json!({"cpu": "100", "memory": "80Gi", "pods": "1000"}))
            .await;
    }
    let first = cluster.candidate("first", Metrics::default());
    eventually("the first leads", async || {
        (cluster.holder().await == "first").then_some(())
    })
    .await;
    let metrics = Metrics::default();
    let second = cluster.candidate("second", metrics.clone());
    let spec = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]});
    for index in 0..50 {
        cluster.pod(&format!("early{index}"), spec.clone()).await;
        if index == 40 {
            // In the middle of its work.
            cluster.until("early20", "n").await;
            break;
        }
    }
    // A sudden death: nothing of it is finished.
    tokio::task::spawn_blocking(move || first.shutdown_timeout(Duration::from_secs(30)))
        .await
        .unwrap();
    for index in 0..50 {
        cluster.pod(&format!("late{index}"), spec.clone()).await;
    }
    eventually("the second leads", async || {
        (cluster.holder().await == "second").then_some(())
    })
    .await;
    for index in 0..50 {
        cluster.until(&format!("late{index}"), "n").await;
    }
    for index in 0..41 {
        cluster.until(&format!("early{index}"), "n").await;
    }
    let mut said: BTreeMap<String, usize> = BTreeMap::new();
    for event in cluster.events("Scheduled").await {
        assert_eq!(event.reporting_component.as_deref(), Some("default-scheduler"));
        assert_eq!(event.action.as_deref(), Some("Binding"));
        *said.entry(event.involved_object.name.unwrap_or_default()).or_default() += 1;
    }
    assert!(said.values().all(|times| *times == 1), "bound once each: {said:?}");
    cluster
        .pod(
            "huge",
            json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1000"}}}]}),
        )
        .await;
    cluster.until("huge", "Unschedulable: ").await;
    let mut told = String::new();
    for _ in 0..200 {
        let mut out = Exposition::default();
        metrics.tell(&mut out);
        told = out.into_text();
        let bound = told
            .lines()
            .find_map(|line| line.strip_prefix("scheduler_pod_scheduling_attempts_count "));
        if bound
            .and_then(|count| count.parse::<usize>().ok())
            .is_some_and(|count| count >= 50)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for line in [
        "scheduler_pod_scheduling_attempts_count ",
        "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"unschedulable\"} 1",
        "scheduler_pending_pods{queue=\"unschedulable\"} 1",
        "scheduler_pending_pods{queue=\"active\"} 0",
        "scheduler_unschedulable_pods{plugin=\"NodeResourcesFit\",profile=\"default-scheduler\"} 1",
        "scheduler_queue_incoming_pods_total{event=\"ScheduleAttemptFailure\",queue=\"unschedulable\"} 1",
        "scheduler_preemption_attempts_total 1",
        "scheduler_cache_size{type=\"nodes\"} 2",
        "scheduler_plugin_evaluation_total{extension_point=\"Filter\",plugin=\"NodeResourcesFit\",profile=\"default-scheduler\"}",
        "scheduler_plugin_execution_duration_seconds_count{extension_point=\"Filter\",plugin=\"NodeResourcesFit\",status=\"Success\"}",
        "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"Filter\",profile=\"default-scheduler\",status=\"Unschedulable\"} 1",
        "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"PostFilter\",profile=\"default-scheduler\",status=\"Unschedulable\"} 1",
        "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"PreFilter\",profile=\"default-scheduler\",status=\"Success\"}",
        "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"Score\",profile=\"default-scheduler\",status=\"Success\"}",
        "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"Reserve\",profile=\"default-scheduler\",status=\"Success\"}",
        "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"PreBind\",profile=\"default-scheduler\",status=\"Success\"}",
        "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"Bind\",profile=\"default-scheduler\",status=\"Success\"}",
        "scheduler_pod_scheduling_sli_duration_seconds_count{attempts=\"1\"}",
        "scheduler_scheduling_attempt_duration_seconds_count{profile=\"default-scheduler\",result=\"scheduled\"}",
        "scheduler_scheduling_algorithm_duration_seconds_count",
    ] {
        assert!(told.contains(line), "{line} in:\n{told}");
    }
    second.shutdown_background();
    cluster.server.stop().await;
}
