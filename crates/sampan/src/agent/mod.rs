//! `sampan agent`: this machine as a node of a cluster that another machine serves.
//!
//! What it needs is a token and the address of the API. The token's fingerprint says which authority to believe, its secret
//! lets the machine ask for a certificate under its own name; from then on it is that node and nothing else, and the token is
//! forgotten. Certificates are kept in the data directory and renewed long before they end ([`certificates`]). Whom to believe
//! is what the cluster says, so that its authority can be replaced: the bundle is kept, everything that verifies is told, and
//! certificates of another authority than the one that issues now are asked for anew.
//!
//! Everything acts under its own name: the node as `system:node:NAME`, the service proxy, the routes to other nodes and the
//! name server as `system:kube-proxy`, which may only read. Nothing is done as an administrator.

mod certificates;
mod join;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::api::Api;
use sampan_client::{Informers, Renewable};
use sampan_node::ServerTls;
use sampan_pki::tls::{ClientVerifier, ServingCertificate, authorities_of_pem, server_config_of};
use sampan_pki::{Identity, Kubeconfig, LeafSpec, Present, UserCredential, write_private};
use sampan_tasks::Tasks;

use crate::cli;
use crate::facts::Facts;
use crate::machine::{self, Machine, report};
use crate::options::{self, OnExit, Options, Role, Settings};
use certificates::{Keeper, Wanted};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How long tasks may take to finish once asked to.
const DRAIN: Duration = Duration::from_secs(20);
/// How long to wait before the cluster is asked again after that failed.
const RETRY: Duration = Duration::from_secs(2);

pub async fn run(command: cli::Agent) -> Result<()> {
    let mut here = options::Machine::here();
    let file = match &command.config {
        Some(path) => Options::read(path)?,
        None => Options::default(),
    };
    let node = options(command.node).over(file);
    if command.cleanup {
        return machine::cleanup(&node.settle(&here)?).await;
    }
    let server = command
        .server
        .ok_or("say where the cluster's API is with --server https://ADDRESS:6443")?;
    let endpoint = join::Endpoint::parse(&server)?;
    // Without an address of its own choice the machine is known by the one it reaches the server from.
    if let Some(address) = endpoint.source_address() {
        here.address = Some(address);
    }
    // Refused early what is wrong here; the cluster's part follows.
    let settings = node.clone().settle(&here)?;
    sampan_pki::private_dir(&settings.data_dir)?;
    sampan_pki::private_dir(&settings.pki_dir())?;
    let token = match &command.token_file {
        Some(path) => Some(join::read_token(path)?),
        None => command.token,
    };
    let authority = join::authority(&endpoint, &settings.pki_dir(), token.as_ref()).await?;
    let cluster = Cluster {
        server,
        authorities: Present::from(authority),
    };
    let wanted = Wanted::node_client(&settings.node_name);
    let keeper = Keeper::new(settings.pki_dir(), cluster.authorities.clone());
    let identity = match keeper.load(&wanted)? {
        Some(identity) => identity,
        None => join::first_certificate(&cluster, token.as_ref(), &keeper, &wanted).await?,
    };
    let renewable = Renewable::default();
    renewable.renew(cluster.client(&identity).await?);
    let facts = join::facts(&renewable.client()).await;
    let settings = within(node, &facts).settle(&here)?;

    let tasks = Tasks::new();
    let outcome = start(&cluster, keeper, identity, renewable, &settings, &tasks).await;
    let why = match outcome {
        Ok(()) => {
            println!(
                "This machine is the node {} of the cluster at {}.",
                settings.node_name, cluster.server
            );
            until_the_end(&tasks).await
        }
        Err(error) => Err(error),
    };
    let left = tasks.shutdown(DRAIN).await;
    if left > 0 {
        tracing::warn!(left, "some tasks did not finish in time");
    }
    if settings.on_exit == OnExit::Clean {
        machine::cleanup(&settings).await?;
    }
    why
}

/// The node's options as a server has them.
fn options(node: cli::NodeOptions) -> Options {
    Options {
        data_dir: node.data_dir,
        node_name: node.node_name,
        node_ip: node.node_ip,
        node_port: node.node_port,
        disable: node.disable,
        insecure_registries: node.insecure_registries,
        devices: node.devices,
        eviction_hard: node.eviction_hard,
        image_gc_high_threshold: node.image_gc_high_threshold,
        image_gc_low_threshold: node.image_gc_low_threshold,
        cloud: node.cloud,
        on_exit: node.on_exit,
        ..Options::default()
    }
}

/// What the cluster says beats what a file may say of it.
fn within(node: Options, facts: &Facts) -> Options {
    let mut disable = node.disable.clone().unwrap_or_default();
    disable.extend([Role::Scheduler, Role::Controllers]);
    Options {
        pod_cidr: Some(facts.pod_cidr),
        service_cidr: Some(facts.service_cidr),
        cluster_domain: Some(facts.cluster_domain.clone()),
        disable: Some(disable),
        ..node
    }
}

/// A cluster and whom to believe that it is the one.
#[derive(Clone)]
pub struct Cluster {
    /// The URL of its API.
    server: String,
    /// PEM, the one that issues first.
    authorities: Present<String>,
}

impl Cluster {
    async fn client_with(&self, credential: UserCredential) -> Result<kube::Client> {
        let kubeconfig = Kubeconfig {
            cluster: "sampan",
            server: &self.server,
            ca_pem: &self.authorities.get(),
            user: "agent",
            credential,
        };
        Ok(sampan_client::from_kubeconfig_text(&kubeconfig.to_yaml()).await?)
    }

    async fn client(&self, identity: &Identity) -> Result<kube::Client> {
        self.client_with(UserCredential::Certificate(identity.clone())).await
    }
}

async fn start(
    cluster: &Cluster,
    keeper: Keeper,
    identity: Identity,
    node: Renewable,
    settings: &Settings,
    tasks: &Tasks,
) -> Result<()> {
    let keeper = Arc::new(keeper);
    let client = node.client();
    let renew = |renewable: Renewable| {
        let cluster = cluster.clone();
        move |identity: Identity| {
            let (renewable, cluster) = (renewable.clone(), cluster.clone());
            async move {
                let client = cluster.client(&identity).await.map_err(|error| error.to_string())?;
                renewable.renew(client);
                Ok(())
            }
        }
    };
    let wanted = Wanted::node_client(&settings.node_name);
    keeper.keep(tasks, client.clone(), wanted, Some(identity), renew(node));

    let proxy = Renewable::default();
    keeper.keep(
        tasks,
        client.clone(),
        Wanted::proxy_client(),
        None,
        renew(proxy.clone()),
    );

    let serving = Arc::new(ServingCertificate::default());
    let addresses: [IpAddr; 1] = [settings.node_ip];
    let wanted = Wanted::serving(&settings.node_name, &addresses);
    let shown = Arc::clone(&serving);
    keeper.keep(tasks, client.clone(), wanted, None, move |identity: Identity| {
        let replaced = shown.replace(&identity).map_err(|error| error.to_string());
        async move { replaced }
    });
    let verifier = ClientVerifier::of_authorities(&authorities_of_pem(&cluster.authorities.get())?)?;
    let config = Present::from(server_config_of(serving.clone(), &verifier)?);
    let tls = ServerTls {
        config: config.clone(),
        verifier: verifier.clone(),
    };
    let trust = Trust {
        path: settings.pki_dir().join("ca.crt"),
        authorities: cluster.authorities.clone(),
        serving,
        verifier,
        config,
    };
    let facts = Facts::authorities(client.clone());
    tasks.spawn_until_drain(
        "cluster authorities",
        sampan_tasks::OnExit::Critical,
        trust.follow(facts),
    );
    let telling = report::keep(Api::all(client.clone()), settings.node_name.clone(), keeper.report());
    tasks.spawn_until_drain("node certificate report", sampan_tasks::OnExit::Critical, telling);
    let machine = Machine {
        settings: settings.clone(),
        tasks: tasks.clone(),
        node_informers: Informers::new(client.clone(), tasks),
        node: client,
        network_informers: Informers::new(proxy.client(), tasks),
        shares_informers: false,
        dns: None,
    };
    machine.start(tls).await
}

/// Whom this machine believes.
struct Trust {
    path: PathBuf,
    authorities: Present<String>,
    serving: Arc<ServingCertificate>,
    verifier: ClientVerifier,
    /// Of the node's server.
    config: Present<rustls::ServerConfig>,
}

impl Trust {
    /// Believes whom the cluster says. What it says came over a connection to a server that was believed before.
    async fn follow(self, told: impl Stream<Item = std::result::Result<String, String>>) {
        let mut told = std::pin::pin!(told);
        while let Some(next) = told.next().await {
            let outcome = match next {
                Ok(bundle) if bundle == *self.authorities.get() => continue,
                Ok(bundle) => self.adopt(bundle).map_err(|error| error.to_string()),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => tracing::info!("the cluster's authorities have changed"),
                Err(error) => {
                    tracing::warn!(error, "the cluster's authorities cannot be followed, will try again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn adopt(&self, bundle: String) -> Result<()> {
        let authorities = authorities_of_pem(&bundle)?;
        write_private(&self.path, bundle.as_bytes())?;
        self.verifier.believe(&authorities)?;
        self.config.set(server_config_of(self.serving.clone(), &self.verifier)?);
        self.authorities.set(bundle);
        Ok(())
    }
}

async fn until_the_end(tasks: &Tasks) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        reason = tasks.failed() => Err(reason.into()),
    }
}

impl Wanted {
    fn node_client(name: &str) -> Self {
        Wanted {
            file: "kubelet-client",
            signer: "kubernetes.io/kube-apiserver-client-kubelet",
            usages: &["digital signature", "client auth"],
            spec: LeafSpec::client(&format!("system:node:{name}"), Some("system:nodes")),
        }
    }

    fn proxy_client() -> Self {
        Wanted {
            file: "kube-proxy-client",
            signer: "kubernetes.io/kube-apiserver-client",
            usages: &["digital signature", "client auth"],
            spec: LeafSpec::client("system:kube-proxy", None),
        }
    }

    fn serving(name: &str, addresses: &[IpAddr]) -> Self {
        let mut spec = LeafSpec::server(
            &format!("system:node:{name}"),
            [name.to_owned()],
            addresses.iter().copied(),
        );
        spec.organization = Some("system:nodes".into());
        Wanted {
            file: "kubelet-serving",
            signer: "kubernetes.io/kubelet-serving",
            usages: &["digital signature", "server auth"],
            spec,
        }
    }
}
