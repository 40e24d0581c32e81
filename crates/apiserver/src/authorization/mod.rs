//! Who may, as the server is configured to find out: the row of authorizers, from `--authorization-mode` or from an
//! `AuthorizationConfiguration`, which may change while the server runs.
//!
//! Deliberate differences from upstream: without any option the row is Node, RBAC (upstream allows everything); ABAC is
//! refused, since its file of policies can only be changed by a restart and says nothing that roles cannot say.

mod config;
mod metrics;
mod webhook;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_auth::{Authorizer, Step};
use sampan_tasks::Tasks;

use crate::outbound::Outbound;
use crate::reload::{self, Reloads};

pub use metrics::Metrics;

/// How requests are authorized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The row, by upstream's names. Empty: Node, RBAC.
    pub modes: Vec<String>,
    /// An AuthorizationConfiguration, in place of all the rest.
    pub config_file: Option<PathBuf>,
    /// A kubeconfig, for the mode Webhook.
    pub webhook_config_file: Option<PathBuf>,
    /// Of SubjectAccessReview: `v1` or `v1beta1`.
    pub webhook_version: String,
    pub webhook_authorized_ttl: Duration,
    pub webhook_unauthorized_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            modes: Vec::new(),
            config_file: None,
            webhook_config_file: None,
            webhook_version: "v1beta1".into(),
            webhook_authorized_ttl: Duration::from_secs(300),
            webhook_unauthorized_ttl: Duration::from_secs(30),
        }
    }
}

/// Why authorization cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the authorization configuration {} is not valid: {why}", path.display())]
    Configuration { path: PathBuf, why: String },
    #[error("{0}")]
    Options(String),
    #[error("changes of {} cannot be followed: {source}", path.display())]
    Follow { path: PathBuf, source: std::io::Error },
}

/// What there is to say of authorization while the server runs.
#[derive(Default)]
pub struct Setup {
    reloads: Arc<Reloads>,
    metrics: Arc<Metrics>,
}

impl Setup {
    /// The metrics.
    pub fn text(&self, authorizer: &Authorizer, out: &mut String) {
        use std::fmt::Write;
        let _ok = writeln!(out, "# TYPE apiserver_authorization_decisions_total counter");
        for (kind, name, allowed, denied) in authorizer.counts() {
            for (decision, count) in [("allowed", allowed), ("denied", denied)] {
                let _ok = writeln!(
                    out,
                    "apiserver_authorization_decisions_total{{decision=\"{decision}\",name={name:?},type=\"{kind}\"}} {count}"
                );
            }
        }
        self.metrics.text(out);
        self.reloads.text("apiserver_authorization_config_controller", out);
    }
}

/// Gives the authorizer its row, and follows the file it may come from.
pub fn setup(
    options: &Options,
    authorizer: &Authorizer,
    outbound: &Outbound,
    tasks: &Tasks,
) -> Result<Setup, SetupError> {
    let setup = Setup::default();
    let Some(path) = &options.config_file else {
        let row = config::of_options(options).map_err(SetupError::Options)?;
        let steps = steps(&row, outbound, &setup.metrics).map_err(SetupError::Options)?;
        authorizer.set(steps);
        return Ok(setup);
    };
    if *options
        != (Options {
            config_file: options.config_file.clone(),
            ..Options::default()
        })
    {
        return Err(SetupError::Options(
            "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined".into(),
        ));
    }
    let content = std::fs::read(path).map_err(|source| SetupError::Read {
        path: path.clone(),
        source,
    })?;
    let take = {
        let (authorizer, outbound, metrics) = (authorizer.clone(), outbound.clone(), setup.metrics.clone());
        move |content: &[u8]| -> Result<(), String> {
            let row = config::parse(content)?;
            authorizer.set(steps(&row, &outbound, &metrics)?);
            Ok(())
        }
    };
    take(&content).map_err(|why| SetupError::Configuration {
        path: path.clone(),
        why,
    })?;
    reload::follow(tasks, path, content, setup.reloads.clone(), take).map_err(|source| SetupError::Follow {
        path: path.clone(),
        source,
    })?;
    Ok(setup)
}

fn steps(
    row: &[config::Configured],
    outbound: &Outbound,
    metrics: &Arc<Metrics>,
) -> Result<Vec<(String, Step)>, String> {
    let step = |configured: &config::Configured| {
        let step = match &configured.what {
            config::What::Plain(step) => step.clone(),
            config::What::Webhook(webhook) => {
                let built = webhook::Webhook::new(&configured.name, webhook, outbound, metrics);
                Step::Remote(Arc::new(built.map_err(|error| error.to_string())?))
            }
        };
        Ok((configured.name.clone(), step))
    };
    row.iter().map(step).collect()
}
