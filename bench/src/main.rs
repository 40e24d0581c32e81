//! A load generator that speaks only the Kubernetes API.
//!
//! It knows a cluster by its kubeconfig and, for the account, by the ids of the processes that serve it; so the same
//! command measures Sampan and any other control plane, side by side in one run. It is light on purpose: it shares the
//! machine with what it measures, so it counts bytes and decodes little, and the servers' own CPU-seconds are the
//! first judge.
//!
//! `sampan-bench --target a=A.kubeconfig,pid=1+2 --target b=B.kubeconfig,pid=3 crud` runs a workload against each
//! target in turn and prints a row per measure with the ratio to the first target.

mod client;
mod compare;
mod fleet;
mod kubeconfig;
mod meter;
mod report;
mod workloads;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand};

use client::Client;
use meter::Meter;
use report::Report;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Parser)]
#[command(
    name = "sampan-bench",
    about = "Measures control planes through the Kubernetes API",
    version
)]
struct Cli {
    /// A control plane to measure: NAME=KUBECONFIG[,pid=PID[+PID...]]. Repeat to compare; the first is the reference.
    #[arg(long = "target", required = true)]
    targets: Vec<TargetSpec>,
    /// Runs of the workload against each target, in turn.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// Create, get, patch and delete ConfigMaps.
    Crud(workloads::crud::Args),
    /// List many Pods from several clients at once.
    List(workloads::list::Args),
    /// Create many Pods, under a ResourceQuota if wanted, and see what they cost.
    Load(workloads::load::Args),
    /// Many watchers of the same objects while these change.
    Watch(workloads::watch::Args),
    /// Create Pods, have them bound and run by fake nodes, and finish.
    Burst(workloads::burst::Args),
    /// Create Pods that fit nowhere, wait until each is told why, and hold them.
    Held(workloads::held::Args),
    /// Create Pods of some shape for many nodes, and wait until each has a node.
    Schedule(workloads::schedule::Args),
    /// Let Pods wait, then let nodes join, and wait until each Pod has a node.
    Arrive(workloads::arrive::Args),
    /// Let nodes say that they are alive, and see what that costs.
    Beat(workloads::beat::Args),
    /// Create single Pods of a real image and wait until a real node runs each.
    Pod(workloads::pod::Args),
    /// Do nothing, and see what that costs.
    Idle(workloads::idle::Args),
    /// Ask two targets the same questions and list where the answers differ; the first is upstream.
    Compare(compare::Args),
}

#[derive(Clone, Debug)]
struct TargetSpec {
    name: String,
    kubeconfig: PathBuf,
    pids: Vec<u32>,
}

impl FromStr for TargetSpec {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, rest) = text
            .split_once('=')
            .ok_or("a target is NAME=KUBECONFIG[,pid=PID+PID]")?;
        let (path, pids) = match rest.split_once(",pid=") {
            None => (rest, Vec::new()),
            Some((path, pids)) => {
                let pids: std::result::Result<_, _> = pids.split('+').map(u32::from_str).collect();
                (path, pids.map_err(|error| format!("{text}: {error}"))?)
            }
        };
        Ok(TargetSpec {
            name: name.into(),
            kubeconfig: path.into(),
            pids,
        })
    }
}

/// A control plane under measurement.
pub struct Target {
    pub client: Client,
    pub meter: Meter,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider is installed already");
        return std::process::ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let mut targets = Vec::new();
    for spec in &cli.targets {
        let target = Target {
            client: Client::new(&spec.kubeconfig)?,
            meter: Meter::new(&spec.pids)?,
        };
        target
            .client
            .get("/version")
            .await
            .map_err(|error| format!("{}: {error}", spec.name))?;
        targets.push((spec.name.clone(), target));
    }
    if let Workload::Compare(args) = &cli.workload {
        let [(_, upstream), (_, ours)] = targets.as_slice() else {
            return Err("compare wants two targets: upstream, then ours".into());
        };
        return match compare::run(&upstream.client, &ours.client, args).await? {
            0 => Ok(()),
            count => Err(format!("{count} differences that nobody expected").into()),
        };
    }
    let mut report = Report::new(targets.iter().map(|(name, _)| name.clone()).collect());
    for round in 0..cli.rounds {
        for (name, target) in &targets {
            eprintln!("round {} of {}: {name}", round + 1, cli.rounds);
            let measures = match &cli.workload {
                Workload::Crud(args) => workloads::crud::run(target, args).await,
                Workload::List(args) => workloads::list::run(target, args).await,
                Workload::Load(args) => workloads::load::run(target, args).await,
                Workload::Watch(args) => workloads::watch::run(target, args).await,
                Workload::Burst(args) => workloads::burst::run(target, args).await,
                Workload::Held(args) => workloads::held::run(target, args).await,
                Workload::Schedule(args) => workloads::schedule::run(target, args).await,
                Workload::Arrive(args) => workloads::arrive::run(target, args).await,
                Workload::Beat(args) => workloads::beat::run(target, args).await,
                Workload::Pod(args) => workloads::pod::run(target, args).await,
                Workload::Idle(args) => workloads::idle::run(target, args).await,
                // Does not measure; answered above.
                Workload::Compare(_) => continue,
            };
            report.add(name, measures.map_err(|error| format!("{name}: {error}"))?);
        }
    }
    println!("{}", if cli.json { report.json() } else { report.table() });
    Ok(())
}
