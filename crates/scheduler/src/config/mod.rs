//! What may be configured: upstream's `KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`), read strictly,
//! completed with upstream's defaults and checked by upstream's rules, in upstream's words.
//!
//! Nothing that is accepted is passed over in silence: what has no effect here is listed in
//! [`Configuration::ineffective`], with the reason, and said at the start. Paths of unknown fields are those of the whole
//! document, where upstream counts anew in the arguments of plugins.

pub mod args;
mod check;
mod decode;
mod document;
mod plugins;
mod read;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sampan_api::codec;
use serde_json::Value;

use crate::extender::Extenders;
use crate::framework::{DEFAULT_SCHEDULER, Framework, Preemption};
use args::Arguments;
use plugins::{Expanded, Plugins};
pub use read::GoDuration;

/// The only version there is.
pub const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("cannot read the scheduler's configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the scheduler's configuration {} is not valid: {why}", path.display())]
    Invalid { path: PathBuf, why: String },
}

/// The whole configuration, complete and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// How many Pods extenders are asked about at a time.
    pub parallelism: usize,
    pub leader_election: LeaderElection,
    /// How the API server is reached, where nothing else says so.
    pub kubeconfig: Option<PathBuf>,
    /// How long a Pod whose attempt failed waits before the next, at first and at most.
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    pub profiles: Vec<Profile>,
    pub extenders: Vec<Extender>,
    /// What was said and has no effect: the field, and why.
    pub ineffective: Vec<String>,
}

/// Who of several schedulers works.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaderElection {
    pub elect: bool,
    pub lease: GoDuration,
    pub renew: GoDuration,
    pub retry: GoDuration,
    pub lock: String,
    pub name: String,
    pub namespace: String,
}

impl Default for LeaderElection {
    fn default() -> Self {
        LeaderElection {
            elect: true,
            lease: GoDuration::seconds(15),
            renew: GoDuration::seconds(10),
            retry: GoDuration::seconds(2),
            lock: "leases".into(),
            name: "kube-scheduler".into(),
            namespace: "kube-system".into(),
        }
    }
}

/// How the Pods are scheduled that name one scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    pub name: String,
    /// As the document has them, with the defaults in.
    plugins: Plugins,
    expanded: Expanded,
    pub arguments: Arguments,
}

impl Default for Profile {
    fn default() -> Self {
        let plugins = Plugins::default().merged();
        // The defaults always expand: a test says so.
        let expanded = plugins.expanded().unwrap_or_default();
        Profile {
            name: DEFAULT_SCHEDULER.into(),
            plugins,
            expanded,
            arguments: Arguments::default(),
        }
    }
}

impl Profile {
    /// Whether a plugin is enabled at an extension point.
    pub fn enables(&self, point: &str, plugin: &str) -> bool {
        self.at(point).any(|(name, _)| name == plugin)
    }

    /// The plugins that are enabled at an extension point, in order.
    pub fn enabled_at(&self, point: &str) -> impl Iterator<Item = &str> {
        self.at(point).map(|(name, _)| name)
    }

    fn at(&self, point: &str) -> impl Iterator<Item = (&str, i64)> {
        let plugins = self.expanded.get(point).into_iter().flatten();
        plugins.map(|(name, weight)| (name.as_str(), *weight))
    }

    /// The plugins of this profile, ready to work.
    pub fn framework(&self) -> Framework {
        let preempts = self.enables("postFilter", "DefaultPreemption");
        Framework {
            preemption: preempts.then_some(Preemption {
                ..self.arguments.preemption
            }),
            ..Framework::new(
                self.at("filter").map(|(name, _)| name),
                self.at("score"),
                &self.arguments,
            )
        }
    }
}

/// A server that has a say in scheduling.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extender {
    pub url_prefix: String,
    pub filter_verb: String,
    pub preempt_verb: String,
    pub prioritize_verb: String,
    pub weight: i64,
    pub bind_verb: String,
    pub https: bool,
    pub tls: Option<ExtenderTls>,
    pub timeout: Duration,
    /// It knows the nodes and is only told their names.
    pub node_cache_capable: bool,
    /// It is only asked about Pods that ask for one of these; about all if there are none.
    pub managed_resources: Vec<ManagedResource>,
    /// Scheduling goes on without it while it cannot be asked.
    pub ignorable: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ManagedResource {
    pub name: String,
    /// NodeResourcesFit does not look at it.
    pub ignored_by_scheduler: bool,
}

/// Whom an extender is taken for. Data goes before files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExtenderTls {
    pub insecure: bool,
    pub server_name: String,
    pub cert_file: String,
    pub key_file: String,
    pub ca_file: String,
    pub cert_data: Vec<u8>,
    pub key_data: Vec<u8>,
    pub ca_data: Vec<u8>,
}

impl Default for Configuration {
    fn default() -> Self {
        Configuration {
            parallelism: 16,
            leader_election: LeaderElection::default(),
            kubeconfig: None,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
            profiles: vec![Profile::default()],
            extenders: Vec::new(),
            ineffective: Vec::new(),
        }
    }
}

impl Configuration {
    pub fn read(path: &Path) -> Result<Configuration, ConfigurationError> {
        let text = std::fs::read(path).map_err(|source| ConfigurationError::Read {
            path: path.into(),
            source,
        })?;
        let invalid = |why| ConfigurationError::Invalid { path: path.into(), why };
        let configuration = Configuration::parse(&text).map_err(invalid)?;
        // Certificates that cannot be used are found now, not when somebody is asked.
        Extenders::new(&configuration).map_err(|error| invalid(error.to_string()))?;
        Ok(configuration)
    }

    /// A document in YAML, of which JSON is a part.
    pub fn parse(text: &[u8]) -> Result<Configuration, String> {
        let parsed = codec::yaml::decode(text).map_err(|error| error.to_string())?;
        if let Some(complaint) = parsed.complaint {
            return Err(format!("strict decoding error: {complaint}"));
        }
        Configuration::of(parsed.object)
    }

    fn of(tree: Value) -> Result<Configuration, String> {
        let text = |field: &str| tree.get(field).and_then(Value::as_str).unwrap_or_default();
        let (kind, version) = (text("kind"), text("apiVersion"));
        if kind != KIND || version != API_VERSION {
            return Err(format!(
                "no kind {kind:?} is registered for version {version:?} here: it must be {KIND} of {API_VERSION}"
            ));
        }
        let mut said = decode::decode(tree)?;
        let errors = check::check(&said);
        if !errors.is_empty() {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(match texts.as_slice() {
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            });
        }
        said.settle()
    }
}

#[cfg(test)]
mod tests;
