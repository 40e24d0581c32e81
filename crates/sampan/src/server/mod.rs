//! `sampan server`: every role in one process, each a client of the API under its own name.
//!
//! The order of things: store, identity, control plane, listener; then whoever is enabled. Nothing waits for anything
//! it can watch for: the scheduler starts before there are nodes, the node before it has a Pod range.

mod certificates;
mod identity;
mod roles;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sampan_apiserver::ControlPlane;
use sampan_auth::UserInfo;
use sampan_client::{Informers, Recorder, SystemClock};
use sampan_node::ServerTls;
use sampan_pki::token::{LegacyClaims, ObjectRef};
use sampan_pki::{Params, Pki};
use sampan_store::Store;
use sampan_store::embedded::{Embedded, Options as StoreOptions};
use sampan_store::etcd::Etcd;
use sampan_store::movable::Movable;
use sampan_tasks::{OnExit, Tasks};
use tokio::net::TcpListener;

use crate::machine::Machine;
use crate::options::{self, Role, Settings};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How long tasks may take to finish once asked to.
const DRAIN: Duration = Duration::from_secs(20);
/// How often the encryption configuration is looked at, where changes are followed.
const ENCRYPTION_RELOAD: Duration = Duration::from_secs(10);
/// How long controllers and the scheduler, which are drained first, may take.
const ROLES: Duration = Duration::from_secs(8);

/// Runs a server until it is asked to stop or a part that it cannot do without fails.
pub async fn run(settings: Settings) -> Result<()> {
    let tasks = Tasks::new();
    // Ask for the port before anything is made: a taken port is the commonest mistake.
    let listener = TcpListener::bind(settings.listen).await.map_err(|error| {
        format!(
            "cannot listen on {}: {error}; stop what uses the port, or choose another with --listen",
            settings.listen
        )
    })?;
    // Keys, Secrets, and what Pods were given of them.
    sampan_pki::private_dir(&settings.data_dir).map_err(|error| format!("{error}; choose another with --data-dir"))?;
    let mut embedded = None;
    let store: Arc<dyn Store> = match &settings.etcd {
        Some(etcd) => Etcd::connect(etcd, &tasks).await?,
        None => {
            let opened = Embedded::open(&settings.data_dir.join("store"), StoreOptions::default())?;
            embedded = Some(opened.clone());
            Movable::new(opened, &tasks)
        }
    };
    identity::share(&*store, &settings).await?;
    let pki = Arc::new(Pki::load_or_create(&settings.pki_dir(), params(&settings))?);
    let mut config =
        sampan_apiserver::Config::new(pki.clone(), SocketAddr::new(settings.node_ip, settings.listen.port()));
    config.service_range = settings.service_cidr;
    config.node_ports = settings.node_port_range;
    config.admission.enable = settings.enable_admission_plugins.clone();
    config.admission.disable = settings.disable_admission_plugins.clone();
    if let Some(path) = &settings.admission_control_config_file {
        config.admission.configuration = sampan_apiserver::admission::Configuration::read(path)?;
    }
    config.authentication = settings.access.authentication.clone();
    config.authorization = settings.access.authorization.clone();
    config.in_flight = settings.in_flight;
    config.compaction_interval = settings.compaction_interval;
    config.priority_and_fairness = settings.priority_and_fairness;
    config.audit = settings.audit.clone();
    config.encryption = settings.encryption_provider_config.clone().map(|path| {
        let reload = settings.encryption_reload.then_some(ENCRYPTION_RELOAD);
        sampan_apiserver::EncryptionSource { path, reload }
    });
    let plane = ControlPlane::start(config, store.clone(), &tasks).await?;
    tasks.spawn(
        "api-server",
        OnExit::Critical,
        sampan_apiserver::serve(listener, plane.serving_tls()?, plane.clone(), tasks.drain()),
    );
    let keys = Arc::new(certificates::Keys::new(store, &settings, pki.clone()));
    certificates::start(&settings, &keys, &tasks)?;

    let server = Server {
        informers: Informers::new(client(&plane, UserInfo::component("system:sampan:informers")), &tasks),
        settings,
        tasks,
        roles: Tasks::new(),
        plane,
        pki,
    };
    let writer = server.client(UserInfo::api_server());
    certificates::publish(&server.settings, &server.pki, writer.clone(), &server.tasks).await?;
    let keeper = certificates::Keeper::new(keys, writer);
    server.plane.look_after_certificates(Arc::new(keeper));
    server.start_roles().await?;
    println!(
        "Sampan serves the Kubernetes API at {}. To use it:",
        server.settings.local_url()
    );
    println!("  export KUBECONFIG={}", server.settings.admin_kubeconfig().display());

    let why = server.until_the_end().await;
    tracing::info!(
        "stopping: {}",
        why.as_ref()
            .err()
            .map_or_else(|| "asked to".to_owned(), ToString::to_string)
    );
    // Leases are given back while there still is an API to do it with.
    let left = server.roles.shutdown(ROLES).await + server.tasks.shutdown(DRAIN).await;
    if left > 0 {
        tracing::warn!(left, "some tasks did not finish in time");
    }
    if let Some(store) = embedded {
        store.close();
    }
    if server.settings.on_exit == options::OnExit::Clean {
        let settings = server.settings.clone();
        drop(server);
        crate::machine::cleanup(&settings).await?;
    }
    why
}

fn tell(out: &mut String, what: impl FnOnce(&mut sampan_client::metrics::Exposition)) {
    let mut exposition = sampan_client::metrics::Exposition::default();
    what(&mut exposition);
    out.push_str(&exposition.into_text());
}

/// A server whose control plane runs.
struct Server {
    settings: Settings,
    tasks: Tasks,
    /// What leaves before the API does.
    roles: Tasks,
    plane: Arc<ControlPlane>,
    pki: Arc<Pki>,
    informers: Informers,
}

/// A client in this process that acts as `user`.
fn client(plane: &Arc<ControlPlane>, user: UserInfo) -> kube::Client {
    sampan_client::connect(plane.connect(user))
}

impl Server {
    fn client(&self, user: UserInfo) -> kube::Client {
        client(&self.plane, user)
    }

    async fn start_roles(&self) -> Result<()> {
        let settings = &self.settings;
        let peers = sampan_apiserver::follow_peers(self.plane.clone(), self.roles.drain());
        self.roles.spawn("api-server-peers", OnExit::Critical, peers);
        if settings.runs(Role::Controllers) {
            let mut config = sampan_controllers::Config {
                root_ca: Some(self.pki.ca_bundle()),
                signing: Some(sampan_controllers::Signing {
                    signer: self.pki.signer(),
                    duration: sampan_controllers::Signing::YEAR,
                }),
                account_tokens: Some(account_tokens(&self.pki)),
                cluster_cidrs: settings.cluster_cidrs(),
                ..sampan_controllers::Config::default()
            };
            settings.controllers.apply(&mut config)?;
            let plane = self.plane.clone();
            let (queues, metrics) = (config.queues.clone(), config.metrics.clone());
            self.plane.tell_also(move |out| {
                tell(out, |told| {
                    queues.tell(told);
                    metrics.tell(told);
                });
            });
            roles::start(self, "kube-controller-manager", move |informers, tasks| {
                let client_for = |name: &str| client(&plane, named(name));
                sampan_controllers::Controllers::start(config.clone(), client_for, informers, tasks)
                    .map(|_running| ())
                    .map_err(|error| error.to_string())
            });
        }
        if settings.runs(Role::Scheduler) {
            let plane = self.plane.clone();
            let configuration = settings.scheduler.clone();
            let metrics = sampan_scheduler::Metrics::default();
            let told = metrics.clone();
            self.plane
                .tell_also(move |out| tell(out, |exposition| told.tell(exposition)));
            roles::start(self, "kube-scheduler", move |informers, tasks| {
                let client = client(&plane, UserInfo::component("system:kube-scheduler"));
                let clock = Arc::new(SystemClock);
                let recorder = Recorder::new(client.clone(), "default-scheduler", None, clock, tasks);
                let config = sampan_scheduler::Config {
                    configuration: configuration.clone(),
                    metrics: metrics.clone(),
                    ..sampan_scheduler::Config::default()
                };
                let work = sampan_scheduler::run(config, client, informers.clone(), recorder, tasks.drain());
                tasks.spawn("scheduler", OnExit::Critical, work);
                Ok(())
            });
        }
        if settings.runs(Role::Node) || settings.runs(Role::Proxy) || settings.runs(Role::Dns) {
            self.machine().start(self.node_tls()?).await?;
        }
        Ok(())
    }

    fn machine(&self) -> Machine {
        let dns = self.settings.runs(Role::Dns);
        Machine {
            settings: self.settings.clone(),
            tasks: self.tasks.clone(),
            node: self.client(UserInfo::node(&self.settings.node_name)),
            node_informers: self.informers.clone(),
            network_informers: self.informers.clone(),
            shares_informers: true,
            dns: dns.then(|| self.client(UserInfo::component("system:sampan:dns"))),
        }
    }

    fn node_tls(&self) -> Result<ServerTls> {
        let node = self.client(UserInfo::node(&self.settings.node_name));
        certificates::node_tls(&self.settings, &self.pki, node, &self.tasks)
    }

    /// Resolves when the process is asked to stop, or with the reason why it cannot go on.
    async fn until_the_end(&self) -> Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            reason = self.tasks.failed() => Err(reason.into()),
            reason = self.roles.failed() => Err(reason.into()),
        }
    }
}

/// Signs the tokens that are kept in Secrets.
fn account_tokens(pki: &Pki) -> sampan_controllers::TokenSigner {
    let keys = pki.tokens();
    sampan_controllers::TokenSigner::new(move |wanted| {
        let claims = LegacyClaims {
            namespace: wanted.namespace.to_owned(),
            service_account: ObjectRef::new(wanted.account, wanted.account_uid),
            secret: wanted.secret.to_owned(),
        };
        keys.issue_legacy(&claims).map_err(|error| error.to_string())
    })
}

/// A user by its full name; service accounts get their groups.
fn named(name: &str) -> UserInfo {
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => UserInfo::service_account(namespace, account, ""),
        None => UserInfo::component(name),
    }
}

fn params(settings: &Settings) -> Params {
    let listen = Some(settings.listen.ip()).filter(|address| !address.is_unspecified());
    let (addresses, names): (Vec<_>, Vec<_>) = settings
        .tls_san
        .iter()
        .partition(|name| name.parse::<std::net::IpAddr>().is_ok());
    Params {
        host_name: options::Machine::here().host_name,
        addresses: std::iter::once(settings.node_ip)
            .chain(listen)
            .chain(addresses.into_iter().filter_map(|address| address.parse().ok()))
            .collect(),
        extra_names: names.into_iter().cloned().collect(),
        service_address: Some(settings.kubernetes_service()),
        cluster_domain: settings.cluster_domain.clone(),
        issuers: settings.access.issuers.clone(),
        api_audiences: settings.access.audiences.clone(),
        jwks_uri: settings.access.jwks_uri.clone(),
        ..Params::default()
    }
}
