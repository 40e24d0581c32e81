//! Controllers on the API in memory, for their tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use sampan_client::testing::{FakeApi, PausedClock};
use sampan_client::{Change, Clock, Informers};
use sampan_tasks::Tasks;

use crate::{Config, Controllers};

/// By how many seconds the time of day has been set.
type Stepped = Arc<AtomicI64>;

/// A clock that can be set.
struct Stepping(PausedClock, Stepped);

impl Clock for Stepping {
    fn now(&self) -> Timestamp {
        let seconds = SignedDuration::from_secs(self.1.load(Ordering::Relaxed));
        self.0.now().checked_add(seconds).unwrap()
    }
}

/// An API with some controllers running on it.
pub(crate) struct Cluster {
    pub(crate) api: FakeApi,
    pub(crate) clock: PausedClock,
    stepped: Stepped,
    informers: Informers,
    tasks: Tasks,
}

impl Cluster {
    pub(crate) fn start(controllers: &[&str]) -> Self {
        Self::with(FakeApi::new(), controllers, |_| {})
    }

    pub(crate) fn with(api: FakeApi, controllers: &[&str], configure: impl FnOnce(&mut Config)) -> Self {
        let tasks = Tasks::new();
        let informers = Informers::new(api.client("system:kube-controller-manager"), &tasks);
        let mut config = Config {
            enabled: controllers.iter().map(|name| (*name).to_owned()).collect(),
            ..Config::default()
        };
        configure(&mut config);
        let clock = PausedClock::default();
        let (clients, stepped) = (api.clone(), Stepped::default());
        let clocks = Arc::new(Stepping(clock, stepped.clone()));
        Controllers::start_with_clock(config, |user| clients.client(user), &informers, &tasks, clocks).unwrap();
        Cluster {
            api,
            clock,
            stepped,
            informers,
            tasks,
        }
    }

    /// Sets the controllers' time of day forwards or back; what has been waited for so far stays.
    pub(crate) fn step_clock(&self, seconds: i64) {
        self.stepped.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Ends the controllers, and those who play scheduler and node with them.
    pub(crate) fn stop(self) {
        self.tasks.drain().start();
    }

    /// Plays scheduler and node for every Pod: runs it (an image `bad` never gets ready, an image `ends` succeeds at once),
    /// and ends it when asked to.
    pub(crate) fn run_pods(&self) {
        self.run_pods_with(|_| "node".to_owned());
    }

    /// The same, on the node that `place` says.
    pub(crate) fn run_pods_with(&self, place: impl Fn(&Pod) -> String + Send + 'static) {
        let (api, clock) = (self.api.clone(), self.clock);
        self.informers.of::<Pod>().on_change(move |change| {
            let pod = change.object();
            let namespace = pod.namespace().unwrap_or_default();
            match change {
                Change::Deleted(_) => {}
                _ if pod.metadata.deletion_timestamp.is_some() => {
                    api.remove::<Pod>(&namespace, &pod.name_any());
                }
                _ if crate::pods::phase(pod).is_empty() => {
                    let bad = pod
                        .spec
                        .iter()
                        .flat_map(|spec| &spec.containers)
                        .any(|c| c.image.as_deref() == Some("bad"));
                    let ends = pod
                        .spec
                        .iter()
                        .flat_map(|spec| &spec.containers)
                        .any(|c| c.image.as_deref() == Some("ends"));
                    if api.get::<Pod>(&namespace, &pod.name_any()).is_none() {
                        return;
                    }
                    api.change::<Pod>(&namespace, &pod.name_any(), |pod| {
                        let node = place(pod);
                        pod.spec.get_or_insert_default().node_name = Some(node);
                        set_ready(pod, !bad && !ends, clock.time());
                        if ends {
                            pod.status.get_or_insert_default().phase = Some("Succeeded".into());
                        }
                    });
                }
                _ => {}
            }
        });
    }
}

/// Makes a Pod running, and ready or not.
pub(crate) fn set_ready(pod: &mut Pod, ready: bool, since: Time) {
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Running".into());
    status.pod_ip = Some("10.0.0.1".into());
    status.conditions = Some(vec![PodCondition {
        type_: "Ready".into(),
        status: if ready { "True" } else { "False" }.into(),
        last_transition_time: Some(since),
        ..Default::default()
    }]);
}
