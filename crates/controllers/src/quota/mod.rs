//! The status of ResourceQuotas: what a namespace uses of what it may.
//!
//! Admission charges quotas as objects come; this controller gives back what goes, and puts right what was charged and
//! never came. Pods, Services and claims are weighed, everything else is counted (`configmaps`,
//! `count/deployments.apps`) through metadata informers, which are followed once a quota names their resource and left
//! when its definition goes.
//!
//! A quota is looked at whenever something it is about comes, goes or weighs otherwise, and when it was charged; a
//! crowd of changes is few looks, because a quota then rests in proportion to what the look cost.
//!
//! Invariant: a fresh charge may be for an object that the caches here do not show yet; lowering it away would let others
//! take its place. So use is lowered at once only where the caches have agreed with the quota since it last changed
//! (then every charge has come), and otherwise once the last charge is old enough. A quota that is charged meanwhile
//! refuses the write, by its revision.

mod trees;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::api::{Api, PostParams};
use kube::core::ApiResource;
use sampan_api::quantity::{Format, Quantity};
use sampan_api::quota::{self, Amounts, Evaluator, Scope, amounts};
use sampan_client::{Cached, Change, Informer, Key, Summary, WorkQueue, or_absent};
use tokio::time::Instant;

use crate::discovery::served;
use crate::pods;
use crate::{Context, SyncError};

/// How many times as long as a look took a quota is left alone, and how long at least and at most.
const PACE: u32 = 20;
const PACES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(1));
/// How old a charge must be to be taken back when something went, and how long use stays too low.
const REST: Duration = Duration::from_millis(250);
/// How old a charge must be to count as one whose object never came.
const REVIEW: Duration = Duration::from_secs(5);
/// What a clock may be behind the one that said when a Pod was told to go.
const GRACE: Duration = Duration::from_secs(2);
/// A definition needs a moment to be served.
const SERVED: Duration = Duration::from_secs(1);
/// Core resources that quotas count by their bare name.
const COUNTED: [&str; 4] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
/// `count/` names of what is weighed.
const WEIGHED: [&str; 4] = [
    "pods",
    "services",
    "persistentvolumeclaims",
    "resourceclaims.resource.k8s.io",
];

struct Controller {
    context: Context,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    /// Followed once a quota names devices.
    devices: OnceLock<Informer<ResourceClaim>>,
    queue: WorkQueue<Key>,
    /// `deployments.apps` → its objects.
    counted: Mutex<HashMap<String, Informer<Summary>>>,
    known: Mutex<HashMap<Key, Known>>,
}

/// What is remembered of a quota between looks.
#[derive(Default)]
struct Known {
    /// When its use last rose.
    charged: Option<Instant>,
    /// The revision at which the caches agreed with it.
    agreed: Option<String>,
    /// Something it is about went or weighs otherwise since the caches agreed.
    gone: bool,
    /// Since when less was charged than is there.
    short: Option<Instant>,
    /// When it may be looked at again.
    next: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn start(context: Context) {
    let controller = Arc::new(Controller {
        context: context.clone(),
        quotas: context.informers.of(),
        pods: context.informers.of(),
        services: context.informers.of(),
        claims: context.informers.of(),
        devices: OnceLock::new(),
        queue: WorkQueue::default(),
        counted: Mutex::default(),
        known: Mutex::default(),
    });
    let this = Arc::clone(&controller);
    controller.quotas.on_change(move |change| this.quota_changed(change));
    controller.wake_on(&controller.pods, |old, new| {
        pods::is_terminal(old) != pods::is_terminal(new) || old.spec != new.spec || trees::given_differs(old, new)
    });
    let this = Arc::clone(&controller);
    controller.pods.on_change(move |change| this.pod_leaves(change));
    controller.wake_on(&controller.services, |old, new| old.spec != new.spec);
    controller.wake_on(&controller.claims, |old, new| {
        old.spec != new.spec || old.status != new.status
    });
    let this = Arc::clone(&controller);
    let definitions = context
        .informers
        .metadata(&ApiResource::erase::<CustomResourceDefinition>(&()));
    definitions.on_change(move |change| this.definition_changed(change));
    let queue = controller.queue.clone();
    let this = Arc::clone(&controller);
    let ready = async move {
        this.quotas.synced().await;
        this.pods.synced().await;
        this.services.synced().await;
        this.claims.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let controller = Arc::clone(&controller);
        async move { controller.sync(&key).await }
    });
}

/// The resource that a name of a quota counts, as `plural.group`.
fn counts(name: &str) -> Option<&str> {
    match name.strip_prefix("count/") {
        Some(resource) if WEIGHED.contains(&resource) => None,
        Some(resource) => Some(resource),
        None => COUNTED.into_iter().find(|known| *known == name),
    }
}

impl Controller {
    fn quota_changed(&self, change: &Change<ResourceQuota>) {
        let key = Key::of(change.object().as_ref());
        match change {
            Change::Deleted(_) => {
                lock(&self.known).remove(&key);
            }
            Change::Modified { old, new } if old.spec == new.spec => {
                if old.status != new.status {
                    if rose(old, new) {
                        lock(&self.known).entry(key.clone()).or_default().charged = Some(Instant::now());
                        self.queue.add_after(key.clone(), REVIEW);
                    }
                    self.look(key, false);
                }
            }
            _ => self.queue.add(key),
        }
    }

    /// A Pod that is told to go weighs as much as before, and less later: the look finds out when.
    fn pod_leaves(&self, change: &Change<Pod>) {
        if let Change::Modified { old, new } = change
            && stops_counting(old) != stops_counting(new)
        {
            for quota in self.quotas.list_namespace(new.namespace()) {
                self.look(Key::of(quota.as_ref()), false);
            }
        }
    }

    /// Queues a quota as soon as it may be looked at again.
    fn look(&self, key: Key, gone: bool) {
        let now = Instant::now();
        let after = {
            let mut known = lock(&self.known);
            let known = known.entry(key.clone()).or_default();
            known.gone |= gone;
            known
                .next
                .map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
        };
        self.queue.add_after(key, after);
    }

    /// Queues the quotas of a namespace when an object there comes, goes, or changes what it uses.
    fn wake_on<K: Cached>(self: &Arc<Self>, informer: &Informer<K>, differs: impl Fn(&K, &K) -> bool + Send + 'static) {
        let this = Arc::downgrade(self);
        informer.on_change(move |change| {
            let Some(this) = this.upgrade() else { return };
            let gone = match &change {
                Change::Modified { old, new } if !differs(old, new) => return,
                Change::Modified { .. } | Change::Deleted(_) => true,
                _ => false,
            };
            for quota in this.quotas.list_namespace(change.object().namespace()) {
                this.look(Key::of(quota.as_ref()), gone);
            }
        });
    }

    /// Custom resources come and go: what was counted of them is forgotten, and quotas that name them are looked at.
    fn definition_changed(&self, change: &Change<Summary>) {
        let name = change.object().metadata.name.as_str();
        match change {
            Change::Modified { .. } => return,
            Change::Deleted(_) => {
                let informer = lock(&self.counted).remove(name);
                if let Some(informer) = informer {
                    informer.stop();
                }
            }
            _ => {}
        }
        for quota in self.quotas.list() {
            let names = quota
                .spec
                .iter()
                .flat_map(|spec| spec.hard.iter().flatten().map(|(name, _)| name));
            if names.into_iter().any(|hard| counts(hard) == Some(name)) {
                self.queue.add_after(Key::of(quota.as_ref()), SERVED);
            }
        }
    }

    async fn sync(self: &Arc<Self>, key: &Key) -> Result<(), SyncError> {
        let Some(quota) = self.quotas.get_key(key) else {
            lock(&self.known).remove(key);
            return Ok(());
        };
        let hard: BTreeMap<String, Text> = quota
            .spec
            .as_ref()
            .and_then(|spec| spec.hard.clone())
            .unwrap_or_default();
        let scopes = quota::scopes(&trees::tree(quota.as_ref()));
        if hard.keys().any(|name| Evaluator::ResourceClaims.covers(name)) {
            self.follow_devices().await;
        }
        let started = Instant::now();
        let (mut used, until) = self.weigh(&key.namespace, &hard, &scopes);
        if let Some(until) = until {
            // Set anew by every look: of several delays the queue keeps the shortest only.
            let left = until.duration_since(self.context.clock.now());
            self.queue.add_after(key.clone(), pods::delay(left) + GRACE);
        }
        let pace = started.elapsed().saturating_mul(PACE).clamp(PACES.0, PACES.1);
        for name in hard.keys() {
            if let Some(resource) = counts(name) {
                // What only counts is in no scope.
                let number = if scopes.is_empty() {
                    self.count(resource, &key.namespace).await?
                } else {
                    0
                };
                let number = i64::try_from(number).unwrap_or(i64::MAX);
                used.insert(name.clone(), Quantity::new(number, Format::DecimalSi));
            }
        }
        let before = quota.status.clone().unwrap_or_default();
        let (mut lowers, mut raises) = (false, false);
        let used: BTreeMap<String, Text> = hard
            .keys()
            .map(|name| {
                let amount = used.get(name).cloned().unwrap_or_else(Quantity::zero);
                let known = before.used.as_ref().and_then(|used| used.get(name));
                let parsed = known.and_then(|text| Quantity::parse(&text.0).ok());
                lowers |= parsed.as_ref().is_some_and(|known| *known > amount);
                raises |= parsed.as_ref().is_some_and(|known| *known < amount);
                // What is written another way but is as much stays as it is.
                let same = known.filter(|_| parsed == Some(amount.clone()));
                (name.clone(), same.cloned().unwrap_or_else(|| Text(amount.to_string())))
            })
            .collect();
        let status = ResourceQuotaStatus {
            hard: Some(hard),
            used: Some(used),
        };
        let same_limits = status.hard == before.hard;
        let wait = {
            let mut known = lock(&self.known);
            let known = known.entry(key.clone()).or_default();
            known.next = Some(Instant::now() + pace);
            if same_limits && status.used == before.used {
                known.agreed = quota.metadata.resource_version.clone();
                (known.gone, known.short) = (false, None);
                return Ok(());
            }
            let age = |since: Option<Instant>, needed: Duration| {
                since.map_or(Duration::ZERO, |since| needed.saturating_sub(since.elapsed()))
            };
            let agreed = known.agreed.is_some() && known.agreed == quota.metadata.resource_version;
            let lowering = match (lowers, agreed, known.gone) {
                (false, ..) | (_, true, _) => Duration::ZERO,
                (_, _, true) => age(known.charged, REST),
                (_, _, false) => age(known.charged, REVIEW),
            };
            // The charge for what is there may only be late here.
            known.short = raises.then(|| known.short.unwrap_or_else(Instant::now));
            let raising = if raises && same_limits {
                age(known.short, REST)
            } else {
                Duration::ZERO
            };
            lowering.max(raising)
        };
        if !wait.is_zero() {
            self.queue.add_after(key.clone(), wait);
            return Ok(());
        }
        let mut changed = ResourceQuota::clone(&quota);
        changed.status = Some(status);
        let api: Api<ResourceQuota> = Api::namespaced(self.context.client.clone(), &key.namespace);
        or_absent(api.replace_status(&key.name, &PostParams::default(), &changed).await)?;
        Ok(())
    }

    /// What the Pods, Services and claims of a namespace use of what the quota is about, and when the first Pod of them
    /// counts no more if nothing else happens.
    fn weigh(&self, namespace: &str, hard: &BTreeMap<String, Text>, scopes: &[Scope]) -> (Amounts, Option<Timestamp>) {
        let now = self.context.clock.now();
        let mut until: Option<Timestamp> = None;
        let mut used = Amounts::new();
        let mut take = |evaluator: &Evaluator, object: &serde_json::Value| {
            if evaluator.in_scope(scopes, object) {
                let usage = evaluator.usage(object, now);
                for (name, amount) in usage.iter().filter(|(name, _)| hard.contains_key(*name)) {
                    amounts::add(&mut used, name, amount);
                }
            }
        };
        let concerns = |evaluator: &Evaluator| hard.keys().any(|name| evaluator.covers(name));
        if concerns(&Evaluator::Pods) {
            for pod in self.pods.list_namespace(namespace) {
                take(&Evaluator::Pods, &trees::pod(&pod));
                let end = stops_counting(&pod).filter(|end| *end >= now && !pods::is_terminal(&pod));
                until = until.into_iter().chain(end).min();
            }
        }
        if concerns(&Evaluator::Services) {
            for service in self.services.list_namespace(namespace) {
                take(&Evaluator::Services, &trees::tree(service.as_ref()));
            }
        }
        if concerns(&Evaluator::Claims) {
            for claim in self.claims.list_namespace(namespace) {
                take(&Evaluator::Claims, &trees::tree(claim.as_ref()));
            }
        }
        if let Some(devices) = self.devices.get().filter(|_| concerns(&Evaluator::ResourceClaims)) {
            for claim in devices.list_namespace(namespace) {
                take(&Evaluator::ResourceClaims, &trees::tree(claim.as_ref()));
            }
        }
        (used, until)
    }

    async fn follow_devices(self: &Arc<Self>) {
        let devices = self.devices.get_or_init(|| {
            let devices = self.context.informers.of::<ResourceClaim>();
            self.wake_on(&devices, |old, new| old.spec != new.spec);
            devices
        });
        devices.synced().await;
    }

    /// How many objects of a resource a namespace has.
    async fn count(self: &Arc<Self>, resource: &str, namespace: &str) -> Result<usize, SyncError> {
        let known = lock(&self.counted).get(resource).cloned();
        if let Some(informer) = known {
            return Ok(informer.len_namespace(namespace));
        }
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        let all = served(&self.context.client).await?;
        let found = all.into_iter().find(|one| {
            one.resource.plural == plural && one.resource.group == group && one.can("list") && one.can("watch")
        });
        // Nothing of it can exist before its definition does; that will wake us.
        let Some(found) = found else {
            return Ok(0);
        };
        let informer = self.context.informers.metadata(&found.resource);
        informer.synced().await;
        self.wake_on(&informer, |_, _| false);
        lock(&self.counted).insert(resource.to_owned(), informer.clone());
        Ok(informer.len_namespace(namespace))
    }
}

/// A Pod that is told to go counts no more once its grace is over, whether its node has let it go or not.
fn stops_counting(pod: &Pod) -> Option<Timestamp> {
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds?);
    let at = pod.metadata.deletion_timestamp.as_ref()?;
    at.0.checked_add(grace).ok()
}

/// Whether a quota's use grew in anything.
fn rose(old: &ResourceQuota, new: &ResourceQuota) -> bool {
    let used = |quota: &ResourceQuota| quota.status.clone().and_then(|status| status.used).unwrap_or_default();
    let old = used(old);
    used(new).iter().any(|(name, new)| {
        let parse = |text: &Text| Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::zero());
        old.get(name).is_none_or(|old| parse(old) < parse(new))
    })
}

#[cfg(test)]
mod tests {
    use sampan_client::Clock;
    use sampan_client::testing::eventually;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::Cluster;

    #[tokio::test(start_paused = true)]
    async fn usage_follows_the_objects() {
        let cluster = Cluster::start(&["resourcequota-controller"]);
        let api = &cluster.api;
        let quota: ResourceQuota = serde_json::from_value(json!({
            "metadata": {"name": "q", "namespace": "ns"},
            "spec": {"hard": {"pods": "5", "requests.cpu": "2", "configmaps": "10", "count/jobs.batch": "3", "services": "1"}},
        }))
        .unwrap();
        api.create(&quota);
        let used = |expected: Value| async move {
            eventually(&expected.to_string(), || async {
                let status = api.get::<ResourceQuota>("ns", "q")?.status?;
                (serde_json::to_value(&status.used).unwrap() == expected).then_some(())
            })
            .await;
        };
        used(json!({"pods": "0", "requests.cpu": "0", "configmaps": "0", "count/jobs.batch": "0", "services": "0"}))
            .await;
        for name in ["a", "b"] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "ns"},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m"}}}]},
            }))
            .unwrap();
            api.create(&pod);
        }
        let map: k8s_openapi::api::core::v1::ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "m", "namespace": "ns"}})).unwrap();
        api.create(&map);
        let job: k8s_openapi::api::batch::v1::Job =
            serde_json::from_value(json!({"metadata": {"name": "j", "namespace": "ns"}})).unwrap();
        api.create(&job);
        used(json!({"pods": "2", "requests.cpu": "600m", "configmaps": "1", "count/jobs.batch": "1", "services": "0"}))
            .await;
        api.change::<Pod>("ns", "a", |pod| {
            pod.status.get_or_insert_default().phase = Some("Failed".into())
        });
        api.remove::<k8s_openapi::api::core::v1::ConfigMap>("ns", "m");
        used(json!({"pods": "1", "requests.cpu": "300m", "configmaps": "0", "count/jobs.batch": "1", "services": "0"}))
            .await;
    }

    /// What keeps a Pod that is told to go must not keep others from coming.
    #[tokio::test(start_paused = true)]
    async fn a_pod_that_does_not_go_in_time_counts_no_more() {
        let cluster = Cluster::start(&["resourcequota-controller"]);
        let api = &cluster.api;
        let quota = json!({"metadata": {"name": "q", "namespace": "ns"}, "spec": {"hard": {"pods": "5", "cpu": "5"}}});
        api.create::<ResourceQuota>(&serde_json::from_value(quota).unwrap());
        let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"nodeName": "lost", "initContainers":
            [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}], "containers": []}});
        api.create::<Pod>(&serde_json::from_value(pod).unwrap());
        let used = |name: &str| {
            let used = api.get::<ResourceQuota>("ns", "q")?.status?.used?;
            used.get(name).map(|used| used.0.clone())
        };
        let becomes = |name: &'static str, expected: &'static str| async move {
            eventually(expected, || async {
                (used(name).as_deref() == Some(expected)).then_some(())
            })
            .await;
        };
        becomes("cpu", "1").await;
        // A sidecar was given more than it asks for now.
        let given = json!({"initContainerStatuses": [{"name": "s", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "allocatedResources": {"cpu": "2"}, "resources": {"requests": {"cpu": "1"}}}]});
        api.change::<Pod>("ns", "p", |pod| pod.status = serde_json::from_value(given).unwrap());
        becomes("cpu", "2").await;
        api.change::<Pod>("ns", "p", |pod| {
            let at = jiff::Timestamp::from_second(cluster.clock.time().0.as_second() + 30).unwrap();
            pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
            pod.metadata.deletion_grace_period_seconds = Some(30);
        });
        // Looks for other reasons do not make it be forgotten.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let other = json!({"metadata": {"name": "other", "namespace": "ns"}, "spec": {"containers": []}});
        api.create::<Pod>(&serde_json::from_value(other).unwrap());
        becomes("pods", "2").await;
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(used("pods").as_deref(), Some("2"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        becomes("pods", "1").await;
    }

    /// Use is given back at once where every charge has come, and never from under a charge that has not.
    #[tokio::test(start_paused = true)]
    async fn a_charge_is_not_lowered_away() {
        use k8s_openapi::api::core::v1::ConfigMap;
        let cluster = Cluster::start(&["resourcequota-controller"]);
        let api = &cluster.api;
        let quota: ResourceQuota = serde_json::from_value(json!({
            "metadata": {"name": "q", "namespace": "ns"}, "spec": {"hard": {"configmaps": "10"}},
        }))
        .unwrap();
        api.create(&quota);
        let pass = |millis| tokio::time::sleep(Duration::from_millis(millis));
        let used = || {
            let status = api.get::<ResourceQuota>("ns", "q").and_then(|quota| quota.status);
            status
                .and_then(|status| status.used?.remove("configmaps"))
                .map(|used| used.0)
        };
        // What admission does before an object is stored.
        let charge = |used: &str| {
            api.change::<ResourceQuota>("ns", "q", |quota| {
                let all = quota.status.get_or_insert_default().used.get_or_insert_default();
                all.insert("configmaps".into(), Text(used.into()));
            });
        };
        let map = |name: &str| -> ConfigMap {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}})).unwrap()
        };
        eventually("the first computation", || async { used() }).await;

        charge("1");
        api.create(&map("a"));
        pass(50).await;
        api.remove::<ConfigMap>("ns", "a");
        pass(50).await;
        assert_eq!(used().as_deref(), Some("0"), "all charges had come");

        charge("1");
        api.create(&map("b"));
        pass(50).await;
        charge("2");
        api.remove::<ConfigMap>("ns", "b");
        pass(150).await;
        assert_eq!(used().as_deref(), Some("2"), "one charge is for what is still to come");
        api.create(&map("c"));
        pass(300).await;
        assert_eq!(used().as_deref(), Some("1"));

        charge("2");
        pass(2_000).await;
        assert_eq!(used().as_deref(), Some("2"), "nothing went: the object may still come");
        pass(4_000).await;
        assert_eq!(used().as_deref(), Some("1"), "it never came");
    }
}
