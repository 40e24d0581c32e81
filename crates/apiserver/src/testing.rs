//! A whole control plane for tests: its own store in a temporary directory, on a loopback port, gone when dropped.

pub mod https;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sampan_auth::UserInfo;
use sampan_pki::{Identity, Kubeconfig, LeafSpec, Params, Pki, UserCredential};
use sampan_store::Store;
use sampan_store::embedded::{Embedded, Options};
use sampan_tasks::{OnExit, Tasks};
use tokio::net::TcpListener;

use crate::connect::InProcess;
use crate::control_plane::{Config, ControlPlane, DEFAULT_SERVICE_RANGE};

pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A running server. Call [`TestServer::stop`] for an orderly end; dropping it drains without waiting.
pub struct TestServer {
    pub plane: Arc<ControlPlane>,
    pub address: SocketAddr,
    pub pki: Arc<Pki>,
    pub tasks: Tasks,
    dir: PathBuf,
    owned: bool,
    store: Option<Arc<Embedded>>,
}

impl TestServer {
    /// Starts with an empty store.
    pub async fn start() -> Result<Self, AnyError> {
        Self::start_with(|_| ()).await
    }

    /// Starts with an empty store and another configuration.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Result<Self, AnyError> {
        let dir = std::env::temp_dir().join(format!("sampan-test-{}", uuid::Uuid::new_v4()));
        let mut server = Self::start_as(&dir, change).await?;
        server.owned = true;
        Ok(server)
    }

    /// Starts with an empty store and leaf certificates that live this long.
    pub async fn start_for(lifetime: Duration, change: impl FnOnce(&mut Config)) -> Result<Self, AnyError> {
        let dir = std::env::temp_dir().join(format!("sampan-test-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir)?;
        let store = Embedded::open(&dir.join("store"), Options::default())?;
        let mut server = Self::start_changed(&dir, store.clone(), Tasks::new(), Some(lifetime), change).await?;
        (server.owned, server.store) = (true, Some(store));
        Ok(server)
    }

    /// Starts over a directory that stays (for restarts).
    pub async fn start_in(dir: &Path) -> Result<Self, AnyError> {
        Self::start_as(dir, |_| ()).await
    }

    /// The same with another configuration.
    pub async fn start_in_with(dir: &Path, change: impl FnOnce(&mut Config)) -> Result<Self, AnyError> {
        Self::start_as(dir, change).await
    }

    async fn start_as(dir: &Path, change: impl FnOnce(&mut Config)) -> Result<Self, AnyError> {
        std::fs::create_dir_all(dir)?;
        let store = Embedded::open(&dir.join("store"), Options::default())?;
        let mut server = Self::start_changed(dir, store.clone(), Tasks::new(), None, change).await?;
        server.store = Some(store);
        Ok(server)
    }

    /// Starts over any store; whoever opened it closes it.
    pub async fn start_over(dir: &Path, store: Arc<dyn Store>, tasks: Tasks) -> Result<Self, AnyError> {
        Self::start_changed(dir, store, tasks, None, |_| ()).await
    }

    async fn start_changed(
        dir: &Path,
        store: Arc<dyn Store>,
        tasks: Tasks,
        lifetime: Option<Duration>,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self, AnyError> {
        let defaults = Params::default();
        std::fs::create_dir_all(dir)?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let service_address = u32::from(DEFAULT_SERVICE_RANGE.network()) + 1;
        let pki = Arc::new(Pki::load_or_create(
            &dir.join("pki"),
            Params {
                addresses: vec![loopback],
                service_address: Some(IpAddr::V4(service_address.into())),
                leaf_lifetime: lifetime.unwrap_or(defaults.leaf_lifetime),
                ..defaults
            },
        )?);
        let listener = TcpListener::bind((loopback, 0)).await?;
        let address = listener.local_addr()?;
        // Endpoints may not be loopback addresses; nobody follows this one (it is for documentation).
        let advertise = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), address.port());
        let mut config = Config::new(pki.clone(), advertise);
        change(&mut config);
        let plane = ControlPlane::start(config, store, &tasks).await?;
        let tls = plane.serving_tls()?;
        tasks.spawn(
            "front",
            OnExit::Critical,
            crate::front::serve(listener, tls, plane.clone(), tasks.drain()),
        );
        Ok(TestServer {
            plane,
            address,
            pki,
            tasks,
            dir: dir.to_owned(),
            owned: false,
            store: None,
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A kubeconfig of the administrator, as a file.
    pub fn kubeconfig(&self) -> Result<PathBuf, AnyError> {
        self.kubeconfig_of("admin", &self.pki.admin_client()?)
    }

    /// A kubeconfig of any user, with a certificate made for it.
    pub fn kubeconfig_as(&self, user: &str, group: Option<&str>) -> Result<PathBuf, AnyError> {
        self.kubeconfig_of(user, &self.pki.issue(&LeafSpec::client(user, group))?)
    }

    fn kubeconfig_of(&self, user: &str, identity: &Identity) -> Result<PathBuf, AnyError> {
        let path = self.dir.join(format!("{}.kubeconfig", user.replace([':', '/'], "-")));
        let config = Kubeconfig {
            cluster: "test",
            server: &self.url(),
            ca_pem: &self.pki.ca_pem(),
            user,
            credential: UserCredential::Certificate(identity.clone()),
        };
        config.write(&path)?;
        Ok(path)
    }

    /// An in-process transport as the administrator.
    pub fn connect(&self) -> InProcess {
        self.plane.connect(UserInfo::new("admin", ["system:masters"]))
    }

    /// Ends everything, the store last.
    pub async fn stop(self) {
        let left = self.tasks.shutdown(Duration::from_secs(10)).await;
        if left > 0 {
            tracing::warn!(left, "tasks were still running at the end of a test");
        }
        if let Some(store) = &self.store {
            store.close();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.tasks.drain().start();
        if self.owned
            && let Err(error) = std::fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(%error, dir = %self.dir.display(), "a test's directory was left behind");
        }
    }
}
