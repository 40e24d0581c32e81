//! Deletes Pods whose allocated devices have `NoExecute` taints that the allocation does not tolerate, or no longer.
//!
//! Devices and their taints are in ResourceSlices; what a Pod has of them, and what it tolerates, is in the allocations of
//! its claims. Times count from when the taint was added, which its owner says.
//!
//! Differs from upstream: a toleration without an effect covers every effect, as it is documented and as the scheduler
//! has it. Taints come from slices only: DeviceTaintRules are not served.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};
use kube::ResourceExt;
use sampan_client::{Change, EventType, Informer, Key, WorkQueue, owner};

use crate::pods;
use crate::{Context, SyncError};

const BY_POOL: &str = "controllers/pool";

struct Evictor {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    queue: WorkQueue<Key>,
    /// The Pods whose time runs.
    leaving: Mutex<HashSet<Key>>,
}

pub(crate) fn start(context: Context) {
    let pods = context.informers.of::<Pod>();
    let claims = context.informers.of::<ResourceClaim>();
    let slices = context.informers.of::<ResourceSlice>();
    claims.add_index(BY_POOL, |claim| {
        let mut pools: Vec<String> = results(claim)
            .map(|result| pool(&result.driver, &result.pool))
            .collect();
        pools.sort();
        pools.dedup();
        pools
    });
    slices.add_index(BY_POOL, |slice| vec![pool_of(slice)]);
    let queue: WorkQueue<Key> = WorkQueue::default();
    let evictor = Arc::new(Evictor {
        context: context.clone(),
        pods: pods.clone(),
        claims: claims.clone(),
        slices: slices.clone(),
        queue: queue.clone(),
        leaving: Mutex::default(),
    });
    let this = Arc::clone(&evictor);
    slices.on_change(move |change| {
        let slice = change.object();
        let pool = pool_of(slice);
        // The newest generation of a pool counts: a slice that says nothing of taints can end those of others.
        let tainted = [Some(slice), change.old()]
            .into_iter()
            .flatten()
            .any(|slice| is_tainted(slice))
            || this
                .slices
                .by_index(BY_POOL, &pool)
                .iter()
                .any(|slice| is_tainted(slice));
        if tainted {
            for claim in this.claims.by_index(BY_POOL, &pool) {
                this.queue_users(&claim);
            }
        }
    });
    let this = Arc::clone(&evictor);
    claims.on_change(move |change| {
        let claim = change.object();
        let used = |claim: &ResourceClaim| {
            let status = claim.status.clone().unwrap_or_default();
            (status.allocation, status.reserved_for)
        };
        if change.old().is_some_and(|old| used(old) == used(claim)) {
            return;
        }
        for claim in [Some(claim), change.old()].into_iter().flatten() {
            this.queue_users(claim);
        }
    });
    let this = Arc::clone(&evictor);
    pods.on_change(move |change| {
        let pod = change.object();
        let key = Key::of(pod.as_ref());
        if matches!(change, Change::Deleted(_)) {
            this.leaving().remove(&key);
            return;
        }
        let claims = |pod: &Pod| {
            pod.status
                .as_ref()
                .and_then(|status| status.resource_claim_statuses.clone())
        };
        let moved = change
            .old()
            .is_none_or(|old| pods::node_name(old) != pods::node_name(pod) || claims(old) != claims(pod));
        if moved && pod.spec.as_ref().is_some_and(|spec| spec.resource_claims.is_some()) {
            this.queue.add(key);
        }
    });
    let ready = async move {
        pods.synced().await;
        claims.synced().await;
        slices.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let evictor = Arc::clone(&evictor);
        async move { evictor.sync(key).await }
    });
}

fn pool(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

fn pool_of(slice: &ResourceSlice) -> String {
    pool(&slice.spec.driver, &slice.spec.pool.name)
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices
        .and_then(|devices| devices.results.as_ref())
        .into_iter()
        .flatten()
}

fn no_execute<'a>(slice: &'a ResourceSlice, device: Option<&'a str>) -> impl Iterator<Item = &'a DeviceTaint> {
    let devices = slice.spec.devices.iter().flatten();
    let devices = devices.filter(move |found| device.is_none_or(|name| found.name == name));
    let taints = devices.flat_map(|device| device.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute")
}

fn is_tainted(slice: &ResourceSlice) -> bool {
    no_execute(slice, None).next().is_some()
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match text(&toleration.operator).as_str() {
            "Exists" => true,
            "" | "Equal" => text(&toleration.value) == text(&taint.value),
            _ => false,
        }
}

/// When a device that is tainted so must be given up by whom it was allocated to. `None`: it need not.
fn due(result: &DeviceRequestAllocationResult, taint: &DeviceTaint, now: Timestamp) -> Option<Timestamp> {
    let added = taint.time_added.as_ref().map_or(now, |time| time.0);
    let tolerations = result.tolerations.iter().flatten();
    let matching: Vec<Option<i64>> = tolerations
        .filter(|toleration| tolerates(toleration, taint))
        .map(|toleration| toleration.toleration_seconds)
        .collect();
    if matching.iter().any(Option::is_none) && !matching.is_empty() {
        return None;
    }
    let seconds = matching.into_iter().flatten().min().unwrap_or(0).max(0);
    added.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// The claims of a Pod by name, and whether they were made for it alone.
fn claims_of(pod: &Pod) -> Vec<(String, bool)> {
    let made = |name: &str| {
        let statuses = pod.status.as_ref()?.resource_claim_statuses.as_ref()?;
        let status = statuses.iter().find(|status| status.name == name)?;
        status.resource_claim_name.clone()
    };
    let claims = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    claims
        .filter_map(|claim| match &claim.resource_claim_name {
            Some(name) => Some((name.clone(), false)),
            None => Some((made(&claim.name)?, true)),
        })
        .collect()
}

fn is_reserved_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    let reserved = claim
        .status
        .iter()
        .flat_map(|status| status.reserved_for.iter().flatten());
    let mut uids = reserved.map(|consumer| &consumer.uid);
    uids.any(|uid| Some(uid) == pod.metadata.uid.as_ref())
}

impl Evictor {
    fn leaving(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue_users(&self, claim: &ResourceClaim) {
        let namespace = claim.namespace().unwrap_or_default();
        let reserved = claim
            .status
            .iter()
            .flat_map(|status| status.reserved_for.iter().flatten());
        for consumer in reserved {
            if consumer.resource == "pods" && consumer.api_group.as_deref().unwrap_or_default().is_empty() {
                self.queue.add(Key::new(namespace.clone(), consumer.name.clone()));
            }
        }
    }

    /// The taints of a device, by the newest generation of its pool.
    fn taints(&self, result: &DeviceRequestAllocationResult) -> Vec<DeviceTaint> {
        let slices = self.slices.by_index(BY_POOL, &pool(&result.driver, &result.pool));
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
        let slices = slices.iter().filter(|slice| Some(slice.spec.pool.generation) == newest);
        slices
            .flat_map(|slice| no_execute(slice, Some(&result.device)).cloned())
            .collect()
    }

    /// When a Pod must go; `None`: it may stay.
    fn due(&self, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        if pods::node_name(pod).is_empty() {
            return None;
        }
        let namespace = pod.namespace().unwrap_or_default();
        let mut soonest = None;
        for (name, own) in claims_of(pod) {
            let Some(claim) = self.claims.get(&namespace, &name) else {
                continue;
            };
            let foreign = own && owner::controller_of(&claim.metadata).map(|by| &by.uid) != pod.metadata.uid.as_ref();
            if foreign || !is_reserved_for(&claim, pod) {
                continue;
            }
            for result in results(&claim) {
                let dues = self
                    .taints(result)
                    .into_iter()
                    .filter_map(|taint| due(result, &taint, now));
                soonest = soonest.into_iter().chain(dues).min();
            }
        }
        soonest
    }

    async fn sync(&self, key: Key) -> Result<(), SyncError> {
        let Some(pod) = self.pods.get_key(&key) else {
            return Ok(());
        };
        let now = self.context.clock.now();
        let Some(due) = self.due(&pod, now) else {
            if self.leaving().remove(&key) {
                self.say(&pod, "Cancelling deletion");
            }
            return Ok(());
        };
        let left = due.duration_since(now);
        if left.is_positive() {
            self.leaving().insert(key.clone());
            self.queue.add_after(key, pods::delay(left));
            return Ok(());
        }
        if pods::is_terminating(&pod) {
            return Ok(());
        }
        self.say(&pod, "Marking for deletion");
        let client = &self.context.client;
        pods::mark_disrupted(
            client,
            &pod,
            "DeletionByDeviceTaintManager",
            "Device Taint manager: deleting due to NoExecute taint",
            false,
            self.context.clock.time(),
        )
        .await?;
        pods::delete(client, &pod, false).await?;
        self.leaving().remove(&key);
        Ok(())
    }

    fn say(&self, pod: &Pod, message: &str) {
        let recorder = &self.context.recorder;
        recorder.event(pod, EventType::Normal, "DeviceTaintManagerEviction", message);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sampan_client::Clock;
    use serde_json::json;

    use super::*;
    use crate::testing::Cluster;

    fn taint(added: Timestamp) -> DeviceTaint {
        serde_json::from_value(json!({"key": "sick", "effect": "NoExecute", "timeAdded": added})).unwrap()
    }

    #[test]
    fn a_device_is_given_up_when_no_toleration_holds() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| Some(now + SignedDuration::from_secs(seconds));
        let cases = [
            (json!([]), at(0)),
            (json!([{"key": "other", "operator": "Exists"}]), at(0)),
            (json!([{"operator": "Exists"}]), None),
            (json!([{"operator": "Exists", "effect": "NoSchedule"}]), at(0)),
            (
                json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
                       {"key": "sick", "operator": "Equal", "effect": "NoExecute", "tolerationSeconds": 10}]),
                at(10),
            ),
            (json!([{"operator": "Exists", "tolerationSeconds": -1}]), at(0)),
            (
                json!([{"operator": "Exists", "tolerationSeconds": 9}, {"operator": "Exists"}]),
                None,
            ),
        ];
        for (tolerations, expected) in cases {
            let result: DeviceRequestAllocationResult = serde_json::from_value(json!({
                "driver": "d", "pool": "p", "device": "x", "request": "r", "tolerations": tolerations,
            }))
            .unwrap();
            assert_eq!(due(&result, &taint(now), now), expected, "{tolerations}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_leave_sick_devices() {
        let cluster = Cluster::start(&["device-taint-eviction-controller"]);
        let api = &cluster.api;
        let slice = |generation: i64, taints: serde_json::Value| -> ResourceSlice {
            serde_json::from_value(json!({
                "metadata": {"name": format!("s{generation}")},
                "spec": {"driver": "d", "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
                    "nodeName": "n", "devices": [{"name": "x", "taints": taints}, {"name": "y"}]},
            }))
            .unwrap()
        };
        api.create(&slice(1, json!([])));
        for (name, device, seconds) in [("one", "x", 0), ("two", "x", 60), ("well", "y", 0)] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns"},
                "spec": {"nodeName": "n", "containers": [],
                    "resourceClaims": [{"name": "c", "resourceClaimName": name}]},
            }))
            .unwrap();
            let pod = api.create(&pod);
            let claim: ResourceClaim = serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns"}, "spec": {},
                "status": {
                    "reservedFor": [{"resource": "pods", "name": name, "uid": pod.metadata.uid}],
                    "allocation": {"devices": {"results": [{
                        "driver": "d", "pool": "p", "device": device, "request": "r",
                        "tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}],
                    }]}},
                },
            }))
            .unwrap();
            api.create(&claim);
        }
        let leaves = |name: &str| pods::is_terminating(&api.get::<Pod>("ns", name).unwrap());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!leaves("one"));
        api.change::<ResourceSlice>("", "s1", |known| {
            known.spec = slice(1, json!([taint(cluster.clock.time().0)])).spec;
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(leaves("one") && !leaves("two"));
        let pod: Pod = api.get("ns", "one").unwrap();
        assert!(pods::condition(&pod, "DisruptionTarget").is_some());
        // The driver publishes anew, and the device is well.
        api.create(&slice(2, json!([])));
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(!leaves("two") && !leaves("well"));
    }
}
