//! ServiceCIDRs: a finalizer keeps a range of Service addresses for as long as an address needs it, and the condition
//! `Ready` says how it is.
//!
//! Who gives addresses out is the API server; it takes none from a range that is leaving. A range goes when what it has is
//! had by ranges that stay, or no address of a Service is left that only it has, and not within [`GRACE`] of being deleted:
//! other API servers of the same store may not have heard, and give an address out meanwhile.
//!
//! Different from upstream: ranges that are leaving too keep nobody's addresses (upstream lets two equal ranges that are
//! deleted together go, with their addresses); the grace is measured by the steady clock from when the deletion is seen.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use sampan_client::{Change, EventType, Informer, Key, WorkQueue, or_absent, retry_on_conflict};
use serde_json::json;
use tokio::time::{Duration, Instant};

use crate::{Context, SyncError};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
const GRACE: Duration = Duration::from_secs(10);

pub(crate) fn start(context: Context) {
    let ranges = context.informers.of::<ServiceCIDR>();
    let addresses = context.informers.of::<IPAddress>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let (changed, all) = (queue.clone(), ranges.clone());
    ranges.on_change(move |change| {
        changed.add(Key::of(change.object().as_ref()));
        if bears_on_others(change) {
            wake(&changed, &all, |_| true);
        }
    });
    let (changed, all) = (queue.clone(), ranges.clone());
    addresses.on_change(move |change| {
        if matches!(change, Change::Modified { .. }) {
            return;
        }
        if let Some(address) = allocated(change.object()) {
            wake(&changed, &all, |range| {
                networks(range).iter().any(|net| net.contains(&address))
            });
        }
    });
    let (first, second) = (ranges.clone(), addresses.clone());
    let ready = async move {
        first.synced().await;
        second.synced().await;
    };
    let controller = Arc::new(Controller {
        context: context.clone(),
        ranges,
        addresses,
        queue: queue.clone(),
        leaving: Mutex::default(),
    });
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&key).await }
    });
}

/// Looks again at ranges that are leaving.
fn wake(queue: &WorkQueue<Key>, ranges: &Informer<ServiceCIDR>, which: impl Fn(&ServiceCIDR) -> bool) {
    for range in ranges.list() {
        if is_leaving(&range) && which(&range) {
            queue.add(Key::of(range.as_ref()));
        }
    }
}

/// Whether a range may go depends on what others have that stay.
fn bears_on_others(change: &Change<ServiceCIDR>) -> bool {
    match change {
        Change::Modified { old, new } => is_leaving(old) != is_leaving(new) || networks(old) != networks(new),
        _ => true,
    }
}

fn is_leaving(range: &ServiceCIDR) -> bool {
    range.metadata.deletion_timestamp.is_some()
}

fn networks(range: &ServiceCIDR) -> Vec<IpNet> {
    let texts = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// The address, if it was given out by an API server.
fn allocated(address: &IPAddress) -> Option<IpAddr> {
    let managed = address.labels().get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR);
    managed.then(|| address.name_any().parse().ok()).flatten()
}

/// Whether an address is in `own` and in none of `staying`, which are the networks that do not leave.
fn is_needed(own: &[IpNet], staying: &[IpNet], mut addresses: impl Iterator<Item = IpAddr>) -> bool {
    if own.iter().all(|net| staying.iter().any(|other| other.contains(net))) {
        return false;
    }
    addresses.any(|address| {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        within(own) && !within(staying)
    })
}

struct Controller {
    context: Context,
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    queue: WorkQueue<Key>,
    /// Which object of a name was first seen leaving when.
    leaving: Mutex<HashMap<String, (Option<String>, Instant)>>,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(range) = self.ranges.get_key(key) else {
            self.leaving().remove(&key.name);
            return Ok(());
        };
        if !is_leaving(&range) {
            self.leaving().remove(&key.name);
            self.hold(&range, true).await?;
            let written = self.tell(&range, "True", "", "Kubernetes Service CIDR is ready").await;
            if written.is_err() {
                let message = "The ServiceCIDR Status can not be set to Ready=True";
                let recorder = &self.context.recorder;
                recorder.event(
                    range.as_ref(),
                    EventType::Warning,
                    "KubernetesServiceCIDRError",
                    message,
                );
            }
            return written;
        }
        let seen = self.seen_leaving(&range);
        let others = self.ranges.list();
        let staying = others.iter().filter(|other| !is_leaving(other));
        let staying: Vec<IpNet> = staying.flat_map(|other| networks(other)).collect();
        let addresses = self.addresses.list();
        let addresses = addresses.iter().filter_map(|address| allocated(address));
        if is_needed(&networks(&range), &staying, addresses) {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            return self.tell(&range, "False", "Terminating", message).await;
        }
        let left = GRACE.saturating_sub(seen.elapsed());
        if !left.is_zero() {
            self.queue.add_after(key.clone(), left);
            return Ok(());
        }
        self.hold(&range, false).await
    }

    fn leaving(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Option<String>, Instant)>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When this object was first seen leaving.
    fn seen_leaving(&self, range: &ServiceCIDR) -> Instant {
        let mut leaving = self.leaving();
        let (uid, since) = leaving
            .entry(range.name_any())
            .or_insert_with(|| (range.uid(), Instant::now()));
        if *uid != range.uid() {
            (*uid, *since) = (range.uid(), Instant::now());
        }
        *since
    }

    /// Puts the finalizer on, or takes it off, if it is still the object that was seen.
    async fn hold(&self, range: &ServiceCIDR, hold: bool) -> Result<(), SyncError> {
        let held = |range: &ServiceCIDR| range.finalizers().iter().any(|name| name == FINALIZER);
        if held(range) == hold {
            return Ok(());
        }
        let (name, api) = (range.name_any(), self.api());
        let written = retry_on_conflict(|| async {
            let mut live = api.get(&name).await?;
            if live.uid() != range.uid() || held(&live) == hold || (hold && is_leaving(&live)) {
                return Ok(());
            }
            let finalizers = live.finalizers_mut();
            if hold {
                finalizers.push(FINALIZER.to_owned());
            } else {
                finalizers.retain(|name| name != FINALIZER);
            }
            api.replace(&name, &PostParams::default(), &live).await.map(|_| ())
        })
        .await;
        or_absent(written)?;
        Ok(())
    }

    /// Writes the condition, if it is another.
    async fn tell(&self, range: &ServiceCIDR, status: &str, reason: &str, message: &str) -> Result<(), SyncError> {
        let conditions = range
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let told = conditions
            .filter(|condition| condition.type_ == "Ready")
            .any(|condition| {
                (&*condition.status, &*condition.reason, &*condition.message) == (status, reason, message)
            });
        if told {
            return Ok(());
        }
        let name = range.name_any();
        let status = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": self.context.clock.time()}]},
        });
        let params = PatchParams::apply(self.context.name).force();
        or_absent(self.api().patch_status(&name, &params, &Patch::Apply(status)).await)?;
        Ok(())
    }

    fn api(&self) -> Api<ServiceCIDR> {
        Api::all(self.context.client.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_range_that_grows_bears_on_others() {
        let range = |cidrs: &[&str], ready: bool| -> Arc<ServiceCIDR> {
            let metadata = json!({"name": "r", "labels": {"ready": ready.to_string()}});
            let range = json!({"metadata": metadata, "spec": {"cidrs": cidrs}});
            Arc::new(serde_json::from_value(range).unwrap())
        };
        let modified = |new| Change::Modified {
            old: range(&["fd00::/64"], false),
            new,
        };
        assert!(!bears_on_others(&modified(range(&["fd00::/64"], true))));
        assert!(bears_on_others(&modified(range(&["fd00::/64", "10.1.0.0/24"], false))));
        assert!(bears_on_others(&Change::Deleted(range(&["fd00::/64"], false))));
    }

    /// A range's own networks, those that stay, addresses, and whether it is needed.
    type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], bool);

    #[test]
    fn a_range_is_needed_by_what_only_it_has() {
        let cases: [Case<'_>; 6] = [
            (&["10.1.0.0/24"], &[], &[], false),
            (&["10.1.0.0/24"], &[], &["10.1.0.9"], true),
            (&["10.1.0.0/24"], &[], &["10.2.0.9"], false),
            (&["10.1.0.0/24"], &["10.1.0.0/16"], &["10.1.0.9"], false),
            (&["10.1.0.0/16"], &["10.1.0.0/24"], &["10.1.0.9", "10.1.1.9"], true),
            (
                &["10.1.0.0/24", "fd00::/64"],
                &["10.1.0.0/24"],
                &["10.1.0.9", "fd00::9"],
                true,
            ),
        ];
        for (own, staying, addresses, needed) in cases {
            let addresses = addresses.iter().map(|text| text.parse().unwrap());
            assert_eq!(
                is_needed(&nets(own), &nets(staying), addresses),
                needed,
                "{own:?} {staying:?}"
            );
        }
    }
}
