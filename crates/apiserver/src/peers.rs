//! The API servers of one cluster: who is there, so that `default/kubernetes` leads to all of them and to no dead one.
//!
//! A server with its own store is the only one. Where a store is shared, each server keeps a key below
//! `/registry/masterleases/` alive with a lease, as upstream's servers do, makes the Endpoints and slices of
//! `default/kubernetes` say what those keys say, and keeps an identity Lease in `kube-system`.
//!
//! Unlike upstream's, servers may listen on different ports: each port is a subset, and a slice of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sampan_api::{Object, meta};
use sampan_store::{self as store, Condition, LeaseId, Op, Write, prefix_end};
use sampan_tasks::Drain;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use crate::Refusal;
use crate::bootstrap;
use crate::control_plane::ControlPlane;
use crate::registry::{Call, store_failure};
use crate::request::DeleteOptions;

const ROOT: &str = "/registry/masterleases/";
/// As upstream: how long a silent server counts as there, and how often it says that it is.
const TTL: Duration = Duration::from_secs(15);
const BEAT: Duration = Duration::from_secs(10);
/// How long an identity Lease is good for.
const IDENTITY: i64 = 3600;
const LABEL: &str = "apiserver.kubernetes.io/identity";

/// Addresses by port.
pub type Addresses = BTreeMap<u16, BTreeSet<IpAddr>>;

/// This server among the others.
pub struct Peers {
    me: SocketAddr,
    lease: Mutex<Option<LeaseId>>,
    left: AtomicBool,
    /// Unique to this run of the process.
    holder: String,
}

impl Peers {
    pub fn new(me: SocketAddr) -> Self {
        Peers {
            me,
            lease: Mutex::default(),
            left: AtomicBool::new(false),
            holder: format!("{}_{}", identity(me), uuid::Uuid::new_v4()),
        }
    }

    /// Whether this server has taken itself out.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    fn key(&self) -> String {
        format!("{ROOT}{}", self.me)
    }

    /// Says that this server is there (unless it is alone), and who else is.
    pub async fn addresses(&self, store: &dyn store::Store) -> Result<Addresses, store::Error> {
        let mut addresses = Addresses::new();
        addresses.entry(self.me.port()).or_default().insert(self.me.ip());
        if store.shared() {
            self.announce(store).await?;
            for entry in store.range(ROOT, &prefix_end(ROOT), 0).await?.entries {
                let value: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
                let ip = value.pointer("/subsets/0/addresses/0/ip").and_then(Value::as_str);
                let port = value.pointer("/subsets/0/ports/0/port").and_then(Value::as_u64);
                if let Some(ip) = ip.and_then(|ip| ip.parse().ok())
                    && let Some(port) = port.and_then(|port| u16::try_from(port).ok())
                {
                    addresses.entry(port).or_default().insert(ip);
                }
            }
        }
        // Nothing outside its own machine could follow a loopback address.
        addresses.retain(|_, ips| {
            ips.retain(|ip| !ip.is_loopback());
            !ips.is_empty()
        });
        Ok(addresses)
    }

    async fn announce(&self, store: &dyn store::Store) -> Result<(), store::Error> {
        let mut lease = self.lease.lock().await;
        if let Some(known) = *lease {
            match store.keep_alive(known).await {
                Ok(()) if store.get(&self.key()).await?.is_some() => return Ok(()),
                Ok(()) | Err(store::Error::LeaseNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let granted = store.grant(TTL).await?;
        let value = json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {},
            "subsets": [{"addresses": [{"ip": self.me.ip().to_string()}],
                "ports": [{"name": "https", "port": self.me.port(), "protocol": "TCP"}]}],
        });
        store
            .write(Write {
                key: self.key().into(),
                condition: Condition::None,
                op: Op::Put {
                    value: value.to_string().into(),
                    lease: Some(granted),
                },
            })
            .await?;
        *lease = Some(granted);
        Ok(())
    }
}

/// Keeps this server known and the Service's endpoints right, until `drain`; to be drained while the API still works.
pub async fn run(plane: Arc<ControlPlane>, drain: Drain) {
    let store = plane.registry.cache.store().clone();
    if drain.until(store.until_shared()).await.is_none() {
        return;
    }
    loop {
        if let Err(refusal) = beat(&plane).await {
            tracing::warn!(
                why = refusal.message,
                "the cluster's servers could not be brought up to date; trying again"
            );
        }
        if drain.until(tokio::time::sleep(BEAT)).await.is_none() {
            break;
        }
    }
    plane.peers.left.store(true, Ordering::Release);
    // Leaving politely: nobody is led here any more.
    let lease = plane.peers.lease.lock().await.take();
    if let Some(lease) = lease
        && let Err(error) = store.revoke(lease).await
    {
        tracing::debug!(%error, "this server's entry could not be taken back; it will run out");
        return;
    }
    let mut others = plane.peers.addresses_of_others(&*store).await.unwrap_or_default();
    others.retain(|_, ips| !ips.is_empty());
    if !others.is_empty()
        && let Err(refusal) = bootstrap::settle_to(&plane, &others).await
    {
        tracing::debug!(why = refusal.message, "this server's address could not be taken back");
    }
}

impl Peers {
    async fn addresses_of_others(&self, store: &dyn store::Store) -> Result<Addresses, store::Error> {
        let mut addresses = Addresses::new();
        for entry in store.range(ROOT, &prefix_end(ROOT), 0).await?.entries {
            let address = entry
                .key
                .strip_prefix(ROOT)
                .and_then(|text| text.parse::<SocketAddr>().ok());
            if let Some(address) = address.filter(|address| *address != self.me && !address.ip().is_loopback()) {
                addresses.entry(address.port()).or_default().insert(address.ip());
            }
        }
        Ok(addresses)
    }
}

async fn beat(plane: &Arc<ControlPlane>) -> Result<(), Refusal> {
    let store = plane.registry.cache.store();
    let addresses = plane.peers.addresses(&**store).await.map_err(store_failure)?;
    bootstrap::settle_to(plane, &addresses).await?;
    bootstrap::keep(plane, vec![identity_lease(plane)]).await?;
    forget_identities(plane).await
}

/// The name of a server's identity: fixed for where it listens, and saying nothing about that.
fn identity(me: SocketAddr) -> String {
    let hash = hex::encode(Sha256::digest(me.to_string()));
    format!("apiserver-{}", hash.get(..26).unwrap_or(&hash))
}

fn identity_lease(plane: &ControlPlane) -> Object {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": identity(plane.peers.me), "namespace": "kube-system",
            "labels": {LABEL: "kube-apiserver"}},
        "spec": {"holderIdentity": plane.peers.holder, "leaseDurationSeconds": IDENTITY,
            "renewTime": sampan_api::time::now_micro()},
    })
}

/// Removes the identities of servers that have not been there for longer than theirs is good for.
async fn forget_identities(plane: &Arc<ControlPlane>) -> Result<(), Refusal> {
    let Some(row) = plane.registry.row("coordination.k8s.io", "leases") else {
        return Ok(());
    };
    let Some(storage) = &row.storage else { return Ok(()) };
    let snapshot = storage.snapshot(0);
    let begin = "kube-system/apiserver-";
    for entry in snapshot
        .index
        .from(begin)
        .take_while(|entry| entry.path().starts_with(begin))
    {
        let lease = entry.object();
        let renewed = lease
            .pointer("/spec/renewTime")
            .and_then(Value::as_str)
            .and_then(|text| sampan_api::time::parse_micro(text).ok());
        let old = renewed.is_none_or(|at| jiff::Timestamp::now().as_second() > at.as_second() + IDENTITY);
        let ours = meta::label(&lease, LABEL).is_some();
        if ours && old {
            let mut call = Call::internal(row.clone(), "delete", "kube-system", entry.name());
            match plane.registry.delete(&mut call, &DeleteOptions::default()).await {
                Err(refusal) if refusal.code != 404 => return Err(refusal),
                _ => {}
            }
        }
    }
    Ok(())
}
