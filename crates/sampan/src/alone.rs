//! A role alone, against any API server: `sampan scheduler` and `sampan controllers`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sampan_client::leader::{self, Election};
use sampan_client::{Informers, Recorder, SystemClock};
use sampan_pki::Present;
use sampan_tasks::{Drain, OnExit, Tasks};

use crate::{cli, options};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub async fn scheduler(command: cli::Alone) -> Result<()> {
    let client = sampan_client::from_kubeconfig(&command.kubeconfig).await?;
    let leading = client.clone();
    let work = move |tasks: Tasks, drain: Drain| {
        let recorder = Recorder::new(client.clone(), "default-scheduler", None, Arc::new(SystemClock), &tasks);
        let informers = Informers::new(client.clone(), &tasks);
        let run = sampan_scheduler::run(
            sampan_scheduler::Config::default(),
            client.clone(),
            informers,
            recorder,
            drain,
        );
        Box::pin(run) as Pin<Box<dyn Future<Output = ()> + Send>>
    };
    run("kube-scheduler", leading, command.leader_elect, work).await
}

fn text(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

pub async fn controllers(command: cli::Controllers) -> Result<()> {
    let client = sampan_client::from_kubeconfig(&command.alone.kubeconfig).await?;
    let mut config = sampan_controllers::Config {
        enabled: command.controllers,
        ..sampan_controllers::Config::default()
    };
    if let Some(cidr) = command.cluster_cidr {
        config.cluster_cidr = cidr;
    }
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
        config.root_ca = sampan_client::authority_of_kubeconfig(&command.alone.kubeconfig)
            .await?
            .map(Present::from);
    }
    let leading = client.clone();
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
    run("kube-controller-manager", leading, command.alone.leader_elect, work).await
}

/// Runs `work` until the process is asked to stop; with `elect` only while holding the lease `name`.
async fn run<F>(name: &'static str, client: kube::Client, elect: bool, work: F) -> Result<()>
where
    F: Fn(Tasks, Drain) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static,
{
    use tokio::signal::unix::{SignalKind, signal};
    let tasks = Tasks::new();
    let drain = tasks.drain();
    if elect {
        let identity = format!("{}_{}", options::Machine::here().host_name, std::process::id());
        let election = Election::new("kube-system", name, &identity);
        let within = tasks.clone();
        tasks.spawn(name, OnExit::Critical, async move {
            let lead = || work(within.clone(), drain.clone());
            let ended = leader::run(client, election, &SystemClock, lead, drain.clone()).await;
            // Having lost the lease the process ends, and whoever supervises it starts it anew.
            tracing::info!(?ended, "no longer the leader");
        });
    } else {
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
