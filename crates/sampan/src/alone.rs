//! A role alone, against any API server: `sampan scheduler` and `sampan controllers`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;

use sampan_client::leader::{self, Election};
use sampan_client::metrics::Exposition;
use sampan_client::{EventType, Informers, Recorder, SystemClock};
use sampan_pki::Present;
use sampan_scheduler::Configuration;
use sampan_scheduler::config::{GoDuration, LeaderElection};
use sampan_tasks::{Drain, OnExit, Tasks};

use crate::component::{Check, Component, SecurePort};
use crate::{cli, options};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub async fn scheduler(command: cli::Scheduler) -> Result<()> {
    let configuration = match &command.config {
        Some(path) => Configuration::read(path)?,
        None => Configuration::default(),
    };
    let kubeconfig = command.kubeconfig.or_else(|| configuration.kubeconfig.clone()).ok_or(
        "nothing says how the API server is reached: give --kubeconfig, or clientConnection.kubeconfig in the file of --config",
    )?;
    let client = sampan_client::from_kubeconfig(&kubeconfig).await?;
    let election = command.election.over(configuration.leader_election.clone())?;
    let metrics = sampan_scheduler::Metrics::default();
    let term = Term::default();
    let role = Role {
        name: "kube-scheduler",
        reporter: "default-scheduler",
        client: client.clone(),
        port: (command.port, 10259),
        metrics: {
            let metrics = metrics.clone();
            Box::new(move |out| metrics.tell(out))
        },
        checks: vec![Check {
            name: "sched-handler-sync",
            only_ready: true,
            well: {
                let term = term.clone();
                // One that waits for its turn keeps no caches that could be behind.
                Box::new(move || term.synced.load(Relaxed) || !term.leads.load(Relaxed))
            },
        }],
        configuration: {
            let in_force = Configuration {
                leader_election: election.clone(),
                kubeconfig: Some(kubeconfig),
                ..configuration.clone()
            };
            ("componentconfig", in_force.document())
        },
        term: term.clone(),
    };
    let work = move |tasks: Tasks, drain: Drain| {
        let recorder = Recorder::new(client.clone(), "default-scheduler", None, Arc::new(SystemClock), &tasks);
        let informers = Informers::new(client.clone(), &tasks);
        let run = sampan_scheduler::run(
            sampan_scheduler::Config {
                configuration: configuration.clone(),
                metrics: metrics.clone(),
                synced: term.synced.clone(),
                ..sampan_scheduler::Config::default()
            },
            client.clone(),
            informers,
            recorder,
            drain,
        );
        Box::pin(run) as Pin<Box<dyn Future<Output = ()> + Send>>
    };
    run(role, election, work).await
}

fn text(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

pub async fn controllers(command: cli::Controllers) -> Result<()> {
    let mut config = sampan_controllers::Config::default();
    if let Some(cidrs) = command.cluster_cidr {
        config.cluster_cidrs = cidrs;
    }
    command.tuning.apply(&mut config)?;
    let client = sampan_client::from_kubeconfig(&command.kubeconfig).await?;
    if let (Some(certificate), Some(key)) = (&command.cluster_signing_cert_file, &command.cluster_signing_key_file) {
        let signer = sampan_pki::request::Signer::from_pem(&text(certificate)?, &text(key)?)?;
        config.signing = Some(sampan_controllers::Signing {
            signer: Present::new(signer),
            duration: sampan_controllers::Signing::YEAR,
        });
    }
    if let Some(path) = &command.root_ca_file {
        config.root_ca = Some(text(path)?.into());
    } else {
        // Without it no namespace gets kube-root-ca.crt and no Pod that asks for a token can start.
        config.root_ca = sampan_client::authority_of_kubeconfig(&command.kubeconfig)
            .await?
            .map(Present::from);
    }
    let election = command.election.over(LeaderElection {
        name: "kube-controller-manager".into(),
        ..LeaderElection::default()
    })?;
    let role = Role {
        name: "kube-controller-manager",
        reporter: "kube-controller-manager",
        client: client.clone(),
        port: (command.port, 10257),
        metrics: {
            let (queues, metrics) = (config.queues.clone(), config.metrics.clone());
            Box::new(move |out| {
                queues.tell(out);
                metrics.tell(out);
            })
        },
        checks: Vec::new(),
        configuration: ("kubecontrollermanager.config.k8s.io", manager(&config, &election)),
        term: Term::default(),
    };
    let work = move |tasks: Tasks, drain: Drain| {
        let informers = Informers::new(client.clone(), &tasks);
        // One kubeconfig, one identity: all controllers act as its user.
        let started = sampan_controllers::Controllers::start(config.clone(), |_| client.clone(), &informers, &tasks);
        Box::pin(async move {
            match started {
                Ok(_running) => drain.started().await,
                Err(error) => tracing::error!(%error, "the controllers did not start"),
            }
        }) as Pin<Box<dyn Future<Output = ()> + Send>>
    };
    run(role, election, work).await
}

/// What of upstream's configuration of the controllers there is here.
fn manager(config: &sampan_controllers::Config, election: &LeaderElection) -> serde_json::Value {
    let cidrs: Vec<String> = config.cluster_cidrs.iter().map(ToString::to_string).collect();
    serde_json::json!({
        "Generic": {
            "Controllers": config.enabled,
            "LeaderElection": {
                "LeaderElect": election.elect,
                "LeaseDuration": election.lease.to_string(),
                "RenewDeadline": election.renew.to_string(),
                "RetryPeriod": election.retry.to_string(),
                "ResourceLock": election.lock,
                "ResourceName": election.name,
                "ResourceNamespace": election.namespace,
            },
        },
        "KubeCloudShared": {"ClusterCIDR": cidrs.join(",")},
    })
}

/// A role that runs alone.
struct Role {
    name: &'static str,
    /// As whom it reports that it leads.
    reporter: &'static str,
    client: kube::Client,
    /// Its own port, and which that is if nothing else is said.
    port: (SecurePort, u16),
    metrics: Box<dyn Fn(&mut Exposition) + Send + Sync>,
    checks: Vec<Check>,
    configuration: (&'static str, serde_json::Value),
    term: Term,
}

/// How far it is.
#[derive(Clone, Default)]
struct Term {
    leads: Arc<AtomicBool>,
    synced: Arc<AtomicBool>,
}

impl Role {
    /// Serves its port, if it is to have one.
    async fn serve(self, election: &LeaderElection, tasks: &Tasks) -> Result<()> {
        let (port, usual) = self.port;
        let mut checks = self.checks;
        if election.elect {
            // Whoever cannot renew its lease stops working and ends: who answers is well.
            checks.push(Check {
                name: "leaderElection",
                only_ready: false,
                well: Box::new(|| true),
            });
        }
        let (name, leads, tell) = (self.name, self.term.leads, self.metrics);
        let component = Component {
            name,
            checks,
            metrics: Box::new(move || {
                let mut out = Exposition::default();
                tell(&mut out);
                let leading = "leader_election_master_status";
                out.heading(leading, "gauge", "Whether this one leads.");
                out.sample(leading, &[("name", name)], u8::from(leads.load(Relaxed)));
                out.into_text()
            }),
            configuration: self.configuration,
        };
        port.serve(usual, component, self.client, tasks).await?;
        Ok(())
    }
}

impl cli::LeaderElect {
    /// What flags say, and for the rest `file`; checked as a configuration file is.
    fn over(self, file: LeaderElection) -> Result<LeaderElection> {
        let length = |flag: &str, given: Option<String>, file: GoDuration| match given {
            None => Ok(file),
            Some(text) => GoDuration::parse(&text)
                .filter(|length| length.0 > 0)
                .ok_or(format!("--leader-elect-{flag} is {text:?}: give a time such as 15s")),
        };
        let election = LeaderElection {
            elect: self.leader_elect.unwrap_or(file.elect),
            lease: length("lease-duration", self.leader_elect_lease_duration, file.lease)?,
            renew: length("renew-deadline", self.leader_elect_renew_deadline, file.renew)?,
            retry: length("retry-period", self.leader_elect_retry_period, file.retry)?,
            name: self.leader_elect_resource_name.unwrap_or(file.name),
            namespace: self.leader_elect_resource_namespace.unwrap_or(file.namespace),
            lock: file.lock,
        };
        if election.elect && election.lease <= election.renew {
            return Err(format!(
                "--leader-elect-lease-duration is {}: give more than --leader-elect-renew-deadline, which is {}",
                election.lease, election.renew
            )
            .into());
        }
        Ok(election)
    }
}

fn lease(election: &Election) -> ObjectReference {
    ObjectReference {
        api_version: Some("coordination.k8s.io/v1".into()),
        kind: Some("Lease".into()),
        namespace: Some(election.namespace.clone()),
        name: Some(election.name.clone()),
        ..ObjectReference::default()
    }
}

/// Runs `work` until the process is asked to stop; where there is an election, only while holding its lease.
async fn run<F>(role: Role, election: LeaderElection, work: F) -> Result<()>
where
    F: Fn(Tasks, Drain) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static,
{
    use tokio::signal::unix::{SignalKind, signal};
    let tasks = Tasks::new();
    let drain = tasks.drain();
    let (name, client, term) = (role.name, role.client.clone(), role.term.clone());
    let recorder = Recorder::new(client.clone(), role.reporter, None, Arc::new(SystemClock), &tasks);
    role.serve(&election, &tasks).await?;
    if election.elect {
        let identity = format!("{}_{}", options::Machine::here().host_name, uuid::Uuid::new_v4());
        let election = Election {
            lease: election.lease.wait(),
            renew: election.renew.wait(),
            retry: election.retry.wait(),
            ..Election::new(&election.namespace, &election.name, &identity)
        };
        let (within, elected) = (tasks.clone(), election.clone());
        tasks.spawn(name, OnExit::Critical, async move {
            let lead = || {
                term.leads.store(true, Relaxed);
                let message = format!("{} became leader", elected.identity);
                recorder.event_about(lease(&elected), EventType::Normal, "LeaderElection", message);
                work(within.clone(), drain.clone())
            };
            let ended = leader::run(client, election, &SystemClock, lead, drain.clone()).await;
            // Having lost the lease the process ends, and whoever supervises it starts it anew.
            tracing::info!(?ended, "no longer the leader");
        });
    } else {
        term.leads.store(true, Relaxed);
        tasks.spawn(name, OnExit::Critical, work(tasks.clone(), drain));
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        reason = tasks.failed() => Err(reason.into()),
    };
    tasks.shutdown(Duration::from_secs(10)).await;
    outcome
}
