//! `default/kubernetes`: Service, Endpoints and EndpointSlice are what they must be, whoever changes them.
//!
//! Settled at start and whenever one of the three changes. Several servers on one store share the objects: each puts
//! its own address in and takes out those of others that answer no more, which is looked at on every change and every
//! few minutes. Upstream keeps leases for this, renewed every few seconds; here silence costs nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sampan_api::Object;
use sampan_tasks::OnExit;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{all, objects};
use crate::Refusal;
use crate::control_plane::ControlPlane;
use crate::watch_cache::{Scope, Start, Storage, Watch};

const PATH: &str = "default/kubernetes";
/// A server that was killed is noticed after this long at the latest.
const LOOK: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(2);

/// Brings the three objects to what they must be.
pub async fn settle(plane: &Arc<ControlPlane>) -> Result<(), Refusal> {
    let mut wanted = objects::address(plane);
    let own = plane.config.advertise;
    let mut others = Vec::new();
    for address in known(plane).into_iter().filter(|address| *address != own) {
        if answers(address).await {
            others.push(address);
        }
    }
    for object in &mut wanted {
        add(object, own, &others);
    }
    all(&plane.registry, wanted, true).await
}

/// The addresses the slice holds now.
fn known(plane: &ControlPlane) -> Vec<SocketAddr> {
    let storage = plane.registry.storage_of("discovery.k8s.io", "endpointslices");
    let Some(slice) = storage
        .and_then(|storage| storage.get(PATH))
        .map(|entry| entry.object())
    else {
        return Vec::new();
    };
    let port = slice.pointer("/ports/0/port").and_then(Value::as_u64);
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else {
        return Vec::new();
    };
    slice
        .get("endpoints")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|endpoint| endpoint.pointer("/addresses/0")?.as_str()?.parse().ok())
        .map(|ip| SocketAddr::new(ip, port))
        .collect()
}

async fn answers(address: SocketAddr) -> bool {
    matches!(
        tokio::time::timeout(ANSWER, TcpStream::connect(address)).await,
        Ok(Ok(_))
    )
}

/// Puts other servers beside this one. All share one port: that is what a subset can say.
fn add(object: &mut Object, own: SocketAddr, others: &[SocketAddr]) {
    let mut all: Vec<SocketAddr> = others
        .iter()
        .copied()
        .filter(|other| other.port() == own.port())
        .collect();
    if all.is_empty() {
        return;
    }
    all.push(own);
    all.sort();
    if object.get("subsets").is_some() {
        object["subsets"][0]["addresses"] = all
            .iter()
            .map(|address| json!({"ip": address.ip().to_string()}))
            .collect();
    } else if object.get("endpoints").is_some() {
        object["endpoints"] = all
            .iter()
            .map(|address| json!({"addresses": [address.ip().to_string()], "conditions": {"ready": true}}))
            .collect();
    }
}

/// Settles again and again, for as long as the server runs.
pub fn keep(plane: &Arc<ControlPlane>) {
    let storages: Option<Vec<Arc<Storage>>> = [
        ("", "services"),
        ("", "endpoints"),
        ("discovery.k8s.io", "endpointslices"),
    ]
    .iter()
    .map(|(group, plural)| plane.registry.storage_of(group, plural))
    .collect();
    let Some(storages) = storages else { return };
    let plane = plane.clone();
    plane
        .tasks
        .clone()
        .spawn_until_drain("address-of-the-api", OnExit::Critical, async move {
            while !plane.tasks.drain().is_started() {
                let known = plane.registry.cache.revision();
                let watches: Result<Vec<Watch>, _> = storages
                    .iter()
                    .map(|storage| storage.watch(Scope::Object(PATH.into()), Start::After(known), known))
                    .collect();
                let Ok(mut watches) = watches else { continue };
                // What changed before the watches began is seen in the first round.
                loop {
                    if let Err(refusal) = settle(&plane).await {
                        tracing::warn!(error = refusal.message, "the API's own Service could not be kept");
                    }
                    // What this round wrote says nothing new.
                    for watch in &mut watches {
                        while watch.queue.try_recv().is_ok() {}
                    }
                    let mut changes = watches.iter_mut().map(|watch| Box::pin(watch.queue.recv()));
                    let [service, endpoints, slice] = [changes.next(), changes.next(), changes.next()];
                    let (Some(service), Some(endpoints), Some(slice)) = (service, endpoints, slice) else {
                        return;
                    };
                    let ended = tokio::select! {
                        change = service => change.is_none(),
                        change = endpoints => change.is_none(),
                        change = slice => change.is_none(),
                        () = tokio::time::sleep(LOOK) => false,
                    };
                    if ended {
                        break;
                    }
                    // Whoever fights for these objects does not get a busy loop.
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
}
