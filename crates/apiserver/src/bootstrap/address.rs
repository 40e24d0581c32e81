//! `default/kubernetes`: Service, Endpoints and EndpointSlices are what they must be, whoever changes them.
//!
//! Settled at start and whenever one of them changes; where servers share a store, also whenever one comes or goes
//! (see [`crate::peers`], which knows who is there).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sampan_tasks::OnExit;

use super::{all, objects};
use crate::Refusal;
use crate::control_plane::ControlPlane;
use crate::peers::Addresses;
use crate::registry::{Call, store_failure};
use crate::request::DeleteOptions;
use crate::watch_cache::{Scope, Start, Storage, Watch};

const PATH: &str = "default/kubernetes";
const PAUSE: Duration = Duration::from_millis(100);

/// Brings the objects to what they must be.
pub async fn settle(plane: &Arc<ControlPlane>) -> Result<(), Refusal> {
    if plane.peers.has_left() {
        return Ok(());
    }
    let store = plane.registry.cache.store();
    let addresses = plane.peers.addresses(&**store).await.map_err(store_failure)?;
    settle_to(plane, &addresses).await
}

/// Makes the objects lead to `addresses`.
pub async fn settle_to(plane: &Arc<ControlPlane>, addresses: &Addresses) -> Result<(), Refusal> {
    let mut wanted = objects::endpoints(addresses);
    wanted.push(objects::service(plane));
    all(&plane.registry, wanted, true).await?;
    // Slices of ports that nobody listens on any more.
    let Some(row) = plane.registry.row("discovery.k8s.io", "endpointslices") else {
        return Ok(());
    };
    let Some(storage) = &row.storage else { return Ok(()) };
    let wanted: BTreeSet<String> = objects::slice_names(addresses).collect();
    let snapshot = storage.snapshot(0);
    let begin = "default/kubernetes-";
    for entry in snapshot
        .index
        .from(begin)
        .take_while(|entry| entry.path().starts_with(begin))
    {
        let port = entry.name().strip_prefix("kubernetes-").unwrap_or_default();
        if port.parse::<u16>().is_ok() && !wanted.contains(entry.name()) {
            let mut call = Call::internal(row.clone(), "delete", "default", entry.name());
            match plane.registry.delete(&mut call, &DeleteOptions::default()).await {
                Err(refusal) if refusal.code != 404 => return Err(refusal),
                _ => {}
            }
        }
    }
    Ok(())
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
