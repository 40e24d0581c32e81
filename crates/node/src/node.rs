//! Starting a node: the parts and how they are wired.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as ApiNode, ObjectReference, Pod, Service};
use sampan_client::{Backoff, EventType, Informers, Recorder, Selection, SystemClock, WorkQueue};
use sampan_pki::Present;
use sampan_pki::tls::ClientVerifier;
use sampan_runtime::Runtime;
use sampan_tasks::{OnExit, Tasks};
use sampan_volumes::downward::{Allocatable, units};
use sampan_volumes::{NodeFacts, Volumes};
use tokio::sync::watch;

use crate::devices::Devices;
use crate::eviction::Housekeeper;
use crate::manager::Manager;
use crate::network::PodNetworking;
use crate::node_status::{NodeKeeper, Pressure};
use crate::server::{self, Server};
use crate::sources::ObjectSources;
use crate::status_writer::StatusWriter;
use crate::user_ids::{Range, UserIds};
use crate::worker::{Context, Images};
use crate::{NodeConfig, machine};

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot create the node's directory {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error(transparent)]
    Server(#[from] server::ServerError),
}

/// How the node's server proves itself, and whom it believes.
pub struct ServerTls {
    /// Must ask for client certificates (`pki::tls::server_config`). New connections get what is there then.
    pub config: Present<rustls::ServerConfig>,
    /// Believes those of the cluster's authority.
    pub verifier: ClientVerifier,
}

/// A running node.
pub struct Node {
    manager: Arc<Manager>,
    server_address: Option<std::net::SocketAddr>,
}

impl Node {
    #[cfg(test)]
    pub(crate) fn manager(&self) -> Arc<Manager> {
        Arc::clone(&self.manager)
    }

    /// Starts everything on `tasks` and returns at once; registration and the rest go on in the background.
    /// Without `tls` there is no server.
    pub async fn start(
        config: NodeConfig,
        client: kube::Client,
        informers: &Informers,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetworking>,
        tls: Option<ServerTls>,
        tasks: &Tasks,
    ) -> Result<Node, NodeError> {
        let failed = |dir: &Path| {
            let path = dir.display().to_string();
            move |source| NodeError::Directory { path, source }
        };
        let logs = config.pod_logs_dir();
        std::fs::create_dir_all(&logs).map_err(failed(&logs))?;
        // Files of Secret volumes may be readable by all: that is all of the Pod.
        std::fs::set_permissions(&config.data_dir, Permissions::from_mode(0o700)).map_err(failed(&config.data_dir))?;
        // Exits from here on are not missed, and those before are found by asking.
        let events = runtime.events();
        let clock = Arc::new(SystemClock);
        let recorder = Recorder::new(client.clone(), "kubelet", Some(&config.name), clock, tasks);
        let statuses: WorkQueue<String> = WorkQueue::new(Backoff {
            base: Duration::from_millis(50),
            max: Duration::from_secs(10),
        });
        let holder: Arc<Mutex<Option<std::sync::Weak<Manager>>>> = Arc::default();
        let waker = Arc::clone(&holder);
        let wake = Arc::new(move |uid: &str| {
            let manager = waker
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .as_ref()
                .and_then(std::sync::Weak::upgrade);
            if let Some(manager) = manager {
                manager.poke(uid);
            }
        });
        let sources = Arc::new(ObjectSources::new(client.clone(), tasks, wake));
        let memory = machine::memory();
        let disk = machine::disk(&config.data_dir).unwrap_or_default();
        let (capacity, mut allocatable) =
            machine::resources(machine::cpus(), memory, disk, &machine::hugepages(), config.max_pods);
        let devices = Arc::new(Devices::load(&config.data_dir.join("pods"), config.devices.clone()));
        allocatable.extend(devices.amounts().map(|(name, _, present)| (name.to_owned(), present)));
        let users = UserIds::load(&config.data_dir.join("pods"), Range::of_machine(config.max_pods));
        let cx = Arc::new(Context {
            users,
            devices: Arc::clone(&devices),
            volumes: Volumes::new(config.data_dir.clone(), sources.clone()).keeping(&config.local_volumes),
            config: config.clone(),
            runtime: Arc::clone(&runtime),
            network,
            sources,
            recorder: recorder.clone(),
            services: informers.of::<Service>(),
            facts: NodeFacts {
                allocatable: Allocatable(allocatable),
            },
            memory_capacity: capacity.get("memory").and_then(units).unwrap_or(0),
            images: Images::new(3),
            restarts: Mutex::default(),
            statuses: statuses.clone(),
            tasks: tasks.clone(),
            started: Timestamp::now(),
        });
        let node_name = format!("metadata.name={}", config.name);
        let node_informer = informers.with::<ApiNode>(Selection::fields(node_name));
        let writer = StatusWriter::new(client.clone());
        let (pressure, pressure_seen) = watch::channel(Pressure::default());
        let manager = Manager::new(Arc::clone(&cx), writer, node_informer.clone(), pressure_seen.clone());
        *holder.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::downgrade(&manager));

        let server_address = match tls {
            Some(tls) => Some(Server::start(Arc::clone(&manager), client.clone(), tls, tasks).await?),
            None => None,
        };
        tasks.spawn_until_drain("runtime events", OnExit::Critical, Arc::clone(&manager).route(events));
        let writers = Arc::clone(&manager);
        tasks.spawn(
            "pod statuses",
            OnExit::Critical,
            sampan_client::run_controller(
                "pod status",
                statuses,
                8,
                move |uid: String| {
                    let manager = Arc::clone(&writers);
                    async move { manager.write_status(&uid).await }
                },
                tasks.drain(),
            ),
        );
        let keeper = NodeKeeper {
            devices,
            config: config.clone(),
            client,
            runtime,
            recorder: recorder.clone(),
            pressure: pressure_seen,
            seen: node_informer.clone(),
        };
        let (informers, drain) = (informers.clone(), tasks.drain());
        let starting = Arc::clone(&manager);
        let all = tasks.clone();
        tasks.spawn("node", OnExit::Critical, async move {
            let Some(registered) = keeper.register(&drain).await else {
                return;
            };
            let about = ObjectReference {
                kind: Some("Node".into()),
                name: Some(config.name.clone()),
                uid: registered.metadata.uid.clone(),
                ..ObjectReference::default()
            };
            starting.set_registered(registered.clone());
            recorder.event_about(about.clone(), EventType::Normal, "Starting", "Starting kubelet.");
            let housekeeper = Housekeeper {
                manager: Arc::clone(&starting),
                pressure,
                node: about,
            };
            all.spawn("housekeeping", OnExit::Critical, housekeeper.run(all.drain()));
            let first = async {
                node_informer.synced().await;
                let of_node = format!("spec.nodeName={}", config.name);
                let pods = informers.with::<Pod>(Selection::fields(of_node));
                starting.follow(&pods);
                pods.synced().await;
                starting.remove_orphans().await;
            };
            // The heartbeat must not wait for the first list.
            let keep = keeper.run(registered, drain.clone());
            tokio::join!(async { drain.until(first).await }, keep);
        });
        Ok(Node {
            manager,
            server_address,
        })
    }

    /// Where the node's server listens.
    pub fn server_address(&self) -> Option<std::net::SocketAddr> {
        self.server_address
    }

    /// How many Pods are on the node, finished ones included.
    pub fn pod_count(&self) -> usize {
        self.manager.pods().len()
    }
}
