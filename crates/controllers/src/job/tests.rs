use std::time::Duration;

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, PodSpec, PodTemplateSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::api::{DeleteParams, ObjectMeta};
use sampan_client::testing::{FakeApi, eventually};

use super::*;
use crate::testing::Cluster;

fn job(change: impl FnOnce(&mut JobSpec)) -> Job {
    let labels = std::collections::BTreeMap::from([("job-name".to_owned(), "j".to_owned())]);
    let mut spec = JobSpec {
        parallelism: Some(1),
        completions: Some(1),
        backoff_limit: Some(6),
        selector: Some(LabelSelector {
            match_labels: Some(labels.clone()),
            ..Default::default()
        }),
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels),
                ..Default::default()
            }),
            spec: Some(PodSpec {
                restart_policy: Some("Never".into()),
                containers: vec![Container::default()],
                ..Default::default()
            }),
        },
        ..Default::default()
    };
    change(&mut spec);
    Job {
        metadata: ObjectMeta {
            name: Some("j".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: Some(spec),
        ..Default::default()
    }
}

fn indexed(completions: i32, change: impl FnOnce(&mut JobSpec)) -> Job {
    job(|spec| {
        spec.completion_mode = Some("Indexed".into());
        spec.completions = Some(completions);
        spec.parallelism = Some(completions);
        change(spec);
    })
}

fn cluster() -> Cluster {
    Cluster::start(&["job-controller"])
}

fn end(cluster: &Cluster, name: &str, code: i32) {
    cluster.api.change::<Pod>("ns", name, |pod| {
        let status = pod.status.get_or_insert_default();
        status.phase = Some(if code == 0 { "Succeeded" } else { "Failed" }.into());
        status.container_statuses = Some(vec![ContainerStatus {
            name: "main".into(),
            state: Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: code,
                    finished_at: Some(Time(cluster.context_now())),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }]);
    });
}

impl Cluster {
    fn context_now(&self) -> Timestamp {
        sampan_client::Clock::now(&self.clock)
    }
}

async fn active(api: &FakeApi, count: usize) -> Vec<Pod> {
    eventually(&format!("{count} active Pods"), || async {
        let pods: Vec<Pod> = api.all::<Pod>().into_iter().filter(pods::is_active).collect();
        (pods.len() == count).then_some(pods)
    })
    .await
}

async fn status(api: &FakeApi, what: &str, check: impl Fn(&JobStatus) -> bool) -> JobStatus {
    eventually(what, || async {
        let status = api.get::<Job>("ns", "j")?.status.unwrap_or_default();
        check(&status).then_some(status)
    })
    .await
}

async fn complete(api: &FakeApi) -> JobStatus {
    status(api, "complete", |s| view::condition(s, "Complete").is_some()).await
}

async fn failed(api: &FakeApi, reason: &str) -> JobStatus {
    status(api, "failed", |s| {
        view::condition(s, "Failed").is_some_and(|c| c.reason.as_deref() == Some(reason))
    })
    .await
}

fn finalizers_left(api: &FakeApi) -> usize {
    api.all::<Pod>().iter().filter(|pod| view::has_finalizer(pod)).count()
}

#[tokio::test(start_paused = true)]
async fn pods_run_to_completion_and_are_counted_once() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&job(|spec| {
        spec.completions = Some(5);
        spec.parallelism = Some(2);
    }));
    for done in 0..5 {
        let running = active(api, 2.min(5 - done)).await;
        assert!(view::has_finalizer(&running[0]));
        end(&cluster, &running[0].name_any(), 0);
        status(api, "counted", |s| {
            s.succeeded == Some(i32::try_from(done).unwrap() + 1)
        })
        .await;
    }
    let status = complete(api).await;
    assert_eq!((status.succeeded, status.active, status.failed), (Some(5), None, None));
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    assert!(view::condition(&status, "SuccessCriteriaMet").is_some());
    assert_eq!(status.uncounted_terminated_pods, Some(Default::default()));
    assert_eq!(finalizers_left(api), 0);
    assert_eq!(api.all::<Pod>().len(), 5, "never one too many");
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_with_growing_pauses_up_to_the_limit() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&job(|spec| spec.backoff_limit = Some(2)));
    let begun = tokio::time::Instant::now();
    for pause in [10, 20] {
        let pod = active(api, 1).await.remove(0);
        end(&cluster, &pod.name_any(), 1);
        tokio::time::sleep(Duration::from_secs(pause - 1)).await;
        active(api, 0).await;
        active(api, 1).await;
    }
    assert!(begun.elapsed().as_secs() >= 30);
    let pod = active(api, 1).await.remove(0);
    end(&cluster, &pod.name_any(), 1);
    let status = failed(api, "BackoffLimitExceeded").await;
    assert_eq!(status.failed, Some(3));
    assert!(view::condition(&status, "FailureTarget").is_some());
    assert_eq!(finalizers_left(api), 0);
}

/// What failed while nobody looked has waited since then, though the first write of it fails.
#[tokio::test(start_paused = true)]
async fn a_failed_write_makes_no_failure_newer() {
    let before = cluster();
    let api = before.api.clone();
    api.create(&job(|_| {}));
    let pod = active(&api, 1).await.remove(0);
    before.stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    end(&Cluster::with(api.clone(), &[], |_| {}), &pod.name_any(), 1);
    api.fail_next("update", "jobs/status", 500, "InternalError", "try again");
    let after = Cluster::with(api.clone(), &["job-controller"], |_| {});
    after.step_clock(6);
    let begun = Instant::now();
    active(&api, 1).await;
    let waited = begun.elapsed();
    assert!(
        (3..7).contains(&waited.as_secs()),
        "{waited:?} of the four seconds left"
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_pods_always_fail_costs_little() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&job(|spec| {
        spec.backoff_limit = Some(1_000_000);
        (spec.parallelism, spec.completions) = (Some(10), Some(10));
    }));
    let hours = Duration::from_secs(3 * 3600);
    let begun = tokio::time::Instant::now();
    let (mut made, mut steps) = (0, 0);
    while begun.elapsed() < hours {
        for pod in api.all::<Pod>().into_iter().filter(pods::is_active) {
            end(&cluster, &pod.name_any(), 1);
            made += 1;
        }
        // The clock is set now and then, which hastens nothing.
        steps += 1;
        if steps % 100 == 0 {
            cluster.step_clock(if steps % 200 == 0 { -3600 } else { 3600 });
        }
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    // Six pauses that double, then one of ten minutes after the other, for ten Pods at a time.
    assert!((100..=400).contains(&made), "{made} Pods in three hours");
    let writes = api
        .actions()
        .iter()
        .filter(|action| action.resource != "events")
        .count();
    assert!(writes < made * 8, "{writes} writes for {made} Pods");
    assert_eq!(finalizers_left(api), 0);
    let status = api.get::<Job>("ns", "j").unwrap().status.unwrap();
    assert_eq!(status.failed, i32::try_from(made).ok());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_what_runs() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&job(|spec| {
        spec.active_deadline_seconds = Some(60);
        spec.parallelism = Some(3);
        spec.completions = Some(3);
    }));
    let running = active(api, 3).await;
    for pod in &running {
        api.change::<Pod>("ns", &pod.name_any(), |pod| {
            pod.spec.get_or_insert_default().node_name = Some("n".into());
        });
    }
    tokio::time::sleep(Duration::from_secs(61)).await;
    let status = status(api, "announced", |s| view::condition(s, "FailureTarget").is_some()).await;
    assert!(view::condition(&status, "Failed").is_none(), "its Pods still end");
    for pod in &running {
        api.remove::<Pod>("ns", &pod.name_any());
    }
    let status = failed(api, "DeadlineExceeded").await;
    assert_eq!((status.failed, status.active), (Some(3), None));
}

#[tokio::test(start_paused = true)]
async fn suspension_and_resumption() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&job(|spec| spec.suspend = Some(true)));
    let waiting = status(api, "suspended", |s| view::condition(s, "Suspended").is_some()).await;
    assert!(waiting.start_time.is_none());
    assert!(api.all::<Pod>().is_empty());
    let suspend = |on: bool| {
        api.change::<Job>("ns", "j", |job| job.spec.as_mut().unwrap().suspend = Some(on));
    };
    suspend(false);
    active(api, 1).await;
    status(api, "started", |s| s.start_time.is_some() && s.active == Some(1)).await;
    suspend(true);
    eventually("the Pod is gone", || async {
        api.all::<Pod>().is_empty().then_some(())
    })
    .await;
    suspend(false);
    let pod = active(api, 1).await.remove(0);
    end(&cluster, &pod.name_any(), 0);
    let status = complete(api).await;
    assert_eq!(status.failed, None, "being suspended is no failure");
}

#[tokio::test(start_paused = true)]
async fn indexed_pods_know_their_place() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&indexed(4, |_| {}));
    let running = active(api, 4).await;
    let second = running.iter().find(|pod| indexes::of(pod) == Some(2)).unwrap();
    let spec = second.spec.as_ref().unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("j-2"));
    assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    end(&cluster, &second.name_any(), 0);
    status(api, "2 is done", |s| s.completed_indexes.as_deref() == Some("2")).await;
    for pod in active(api, 3).await {
        end(&cluster, &pod.name_any(), 0);
    }
    let status = complete(api).await;
    assert_eq!(status.completed_indexes.as_deref(), Some("0-3"));
    assert_eq!(status.succeeded, Some(4));
    assert_eq!(api.all::<Pod>().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn limits_per_index() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&indexed(2, |spec| {
        spec.backoff_limit_per_index = Some(1);
        spec.backoff_limit = Some(i32::MAX);
    }));
    let of = |pods: &[Pod], index: i32| pods.iter().find(|pod| indexes::of(pod) == Some(index)).unwrap().clone();
    let first = active(api, 2).await;
    end(&cluster, &of(&first, 1).name_any(), 0);
    end(&cluster, &of(&first, 0).name_any(), 1);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let again = active(api, 1).await.remove(0);
    assert_eq!(view::earlier_failures(&again), (1, 0));
    end(&cluster, &again.name_any(), 1);
    let status = failed(api, "FailedIndexes").await;
    assert_eq!(status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(status.completed_indexes.as_deref(), Some("1"));
    assert_eq!(status.failed, Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_index_waits_as_long_whatever_the_clock_says() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&indexed(1, |spec| {
        spec.backoff_limit_per_index = Some(5);
        spec.backoff_limit = Some(i32::MAX);
    }));
    let running = || api.all::<Pod>().into_iter().any(|pod| pods::is_active(&pod));
    // The clock is ahead of the node's, then behind it, then set while an index waits.
    for (pause, before, meanwhile) in [(10, 7200, 0), (20, -86_400, 0), (40, 0, 7200), (80, 0, -7200)] {
        let pod = active(api, 1).await.remove(0);
        cluster.step_clock(before);
        end(&cluster, &pod.name_any(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.step_clock(meanwhile);
        // What changes makes the Job be looked at.
        api.change::<Job>("ns", "j", |job| {
            job.metadata.labels = Some([("pause".to_owned(), pause.to_string())].into());
        });
        tokio::time::sleep(Duration::from_secs(pause - 4)).await;
        assert!(!running(), "sooner than {pause} s");
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(running(), "later than {pause} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_policy_can_end_the_job_at_once() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&job(|spec| {
        spec.parallelism = Some(2);
        spec.completions = Some(2);
        spec.pod_failure_policy = Some(PodFailurePolicy {
            rules: vec![PodFailurePolicyRule {
                action: "FailJob".into(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    container_name: None,
                    operator: "In".into(),
                    values: vec![42],
                }),
                on_pod_conditions: None,
            }],
        });
    }));
    let running = active(api, 2).await;
    end(&cluster, &running[0].name_any(), 42);
    let status = failed(api, "PodFailurePolicy").await;
    let message = view::condition(&status, "Failed").unwrap().message.clone().unwrap();
    assert!(
        message.contains("exit code 42 matching FailJob rule at index 0"),
        "{message}"
    );
    active(api, 0).await;
}

#[tokio::test(start_paused = true)]
async fn parallelism_changes_and_deleted_jobs_let_go() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&job(|spec| {
        spec.parallelism = Some(4);
        spec.completions = Some(100);
    }));
    active(api, 4).await;
    api.change::<Job>("ns", "j", |job| job.spec.as_mut().unwrap().parallelism = Some(2));
    active(api, 2).await;
    let shrunk = status(api, "two run", |s| s.active == Some(2)).await;
    assert_eq!(shrunk.failed, None, "those taken away did not fail");
    let jobs: Api<Job> = Api::namespaced(api.client("admin"), "ns");
    jobs.delete("j", &DeleteParams::background()).await.unwrap();
    eventually("no finalizer is left", || async {
        (finalizers_left(api) == 0).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn many_pods_at_once_are_counted_in_portions() {
    let cluster = cluster();
    let api = &cluster.api;
    api.create(&job(|spec| {
        spec.parallelism = Some(700);
        spec.completions = Some(700);
    }));
    for pod in active(api, 700).await {
        end(&cluster, &pod.name_any(), 0);
    }
    let status = complete(api).await;
    assert_eq!(status.succeeded, Some(700));
    assert_eq!(api.all::<Pod>().len(), 700);
    assert_eq!(finalizers_left(api), 0);
}
