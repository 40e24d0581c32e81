//! Controllers on the API in memory, for their tests.

use std::sync::Arc;

use sampan_client::Informers;
use sampan_client::testing::{FakeApi, PausedClock};
use sampan_tasks::Tasks;

use crate::{Config, Controllers};

/// An API with some controllers running on it.
pub(crate) struct Cluster {
    pub(crate) api: FakeApi,
    pub(crate) clock: PausedClock,
    _tasks: Tasks,
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
        let clients = api.clone();
        Controllers::start_with_clock(config, |user| clients.client(user), &informers, &tasks, Arc::new(clock))
            .unwrap();
        Cluster {
            api,
            clock,
            _tasks: tasks,
        }
    }
}
