//! The status of ResourceQuotas: what a namespace uses of what it may.
//!
//! Pods, Services and claims are weighed, everything else is counted (`configmaps`, `count/deployments.apps`) through
//! metadata informers, which are followed once a quota names their resource. Quotas are recomputed when something they
//! are about changes, a moment later, so that a crowd of changes is one computation.

mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::api::{Api, PostParams};
use kube::core::ApiResource;
use sampan_api::quantity::{Format, Quantity};
use sampan_client::{Cached, Change, Informer, Key, Summary, WorkQueue, or_absent};

use crate::discovery::served;
use crate::pods;
use crate::{Context, SyncError};
use usage::Amounts;

/// How long changes are collected.
const PACE: Duration = Duration::from_millis(100);
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// Core resources that quotas count by their bare name.
const COUNTED: [&str; 4] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];

struct Controller {
    context: Context,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    queue: WorkQueue<Key>,
    /// `deployments.apps` → its objects.
    counted: Mutex<HashMap<String, Informer<Summary>>>,
}

pub(crate) fn start(context: Context) {
    let controller = Arc::new(Controller {
        context: context.clone(),
        quotas: context.informers.of(),
        pods: context.informers.of(),
        services: context.informers.of(),
        claims: context.informers.of(),
        queue: WorkQueue::default(),
        counted: Mutex::default(),
    });
    let queue = controller.queue.clone();
    let changed = queue.clone();
    controller.quotas.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            changed.add(Key::of(change.object().as_ref()));
        }
    });
    let weight = |pod: &Pod| (pods::is_terminal(pod), pod.spec.clone());
    controller.wake_on(&controller.pods, move |old, new| weight(old) != weight(new));
    controller.wake_on(&controller.services, |old, new| {
        usage::of_service(old) != usage::of_service(new)
    });
    controller.wake_on(&controller.claims, |old, new| {
        usage::of_claim(old) != usage::of_claim(new)
    });
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
        Some("pods") => None,
        Some(resource) => Some(resource),
        None => COUNTED.into_iter().find(|known| *known == name),
    }
}

impl Controller {
    /// Queues the quotas of a namespace when an object there comes, goes, or changes what it uses.
    fn wake_on<K: Cached>(&self, informer: &Informer<K>, differs: impl Fn(&K, &K) -> bool + Send + 'static) {
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        informer.on_change(move |change| {
            if let Change::Modified { old, new } = change
                && !differs(old, new)
            {
                return;
            }
            for quota in quotas.list_namespace(change.object().namespace()) {
                queue.add_after(Key::of(quota.as_ref()), PACE);
            }
        });
    }

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(quota) = self.quotas.get_key(key) else {
            return Ok(());
        };
        let hard: BTreeMap<String, Text> = quota
            .spec
            .as_ref()
            .and_then(|spec| spec.hard.clone())
            .unwrap_or_default();
        let mut used = self.weigh(&quota, &key.namespace, &hard);
        for name in hard.keys() {
            if let Some(resource) = counts(name) {
                let number = self.count(resource, &key.namespace).await?;
                let number = i64::try_from(number).unwrap_or(i64::MAX);
                used.insert(name.clone(), Quantity::new(number, Format::DecimalSi));
            }
        }
        let before = quota.status.clone().unwrap_or_default();
        let used: BTreeMap<String, Text> = hard
            .keys()
            .map(|name| {
                let amount = used.get(name).cloned().unwrap_or_else(Quantity::zero);
                // What is written another way but is as much stays as it is.
                let known = before.used.as_ref().and_then(|used| used.get(name));
                let same = known.filter(|text| Quantity::parse(&text.0).is_ok_and(|known| known == amount));
                (name.clone(), same.cloned().unwrap_or_else(|| Text(amount.to_string())))
            })
            .collect();
        let status = ResourceQuotaStatus {
            hard: Some(hard),
            used: Some(used),
        };
        if status.hard == before.hard && status.used == before.used {
            return Ok(());
        }
        let mut changed = ResourceQuota::clone(&quota);
        changed.status = Some(status);
        let api: Api<ResourceQuota> = Api::namespaced(self.context.client.clone(), &key.namespace);
        or_absent(api.replace_status(&key.name, &PostParams::default(), &changed).await)?;
        Ok(())
    }

    /// What the Pods, Services and claims of a namespace use of what the quota is about.
    fn weigh(&self, quota: &ResourceQuota, namespace: &str, hard: &BTreeMap<String, Text>) -> Amounts {
        let spec = quota.spec.clone().unwrap_or_default();
        let mut used = Amounts::new();
        let mut take = |amounts: Amounts| {
            for (name, amount) in amounts {
                if hard.contains_key(&name) {
                    usage::add(&mut used, &name, &amount);
                }
            }
        };
        if hard
            .keys()
            .any(|name| usage::is_about_pods(name) || name == "count/pods")
        {
            for pod in self.pods.list_namespace(namespace) {
                if usage::in_scope(&spec, &pod) {
                    take(usage::of_pod(&pod));
                }
            }
        }
        if hard.keys().any(|name| name.starts_with("services")) {
            for service in self.services.list_namespace(namespace) {
                take(usage::of_service(&service));
            }
        }
        for claim in self.claims.list_namespace(namespace) {
            take(usage::of_claim(&claim));
        }
        used
    }

    /// Looks at all quotas again when a custom resource comes or goes.
    fn wake_on_definitions(&self) {
        let resource = ApiResource::erase::<CustomResourceDefinition>(&());
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.contains_key(DEFINITIONS) {
            return;
        }
        let informer = self.context.informers.metadata(&resource);
        counted.insert(DEFINITIONS.into(), informer.clone());
        drop(counted);
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        informer.on_change(move |_| {
            for quota in quotas.list() {
                // A definition needs a moment to be served.
                queue.add_after(Key::of(quota.as_ref()), Duration::from_secs(1));
            }
        });
    }

    /// How many objects of a resource a namespace has.
    async fn count(&self, resource: &str, namespace: &str) -> Result<usize, SyncError> {
        let known = self
            .counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(resource)
            .cloned();
        if let Some(informer) = known {
            return Ok(informer.len_namespace(namespace));
        }
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        let all = served(&self.context.client).await?;
        let found = all.into_iter().find(|one| {
            one.resource.plural == plural && one.resource.group == group && one.can("list") && one.can("watch")
        });
        let Some(found) = found else {
            // Nothing of it can exist before its definition does.
            self.wake_on_definitions();
            return Ok(0);
        };
        let informer = self.context.informers.metadata(&found.resource);
        informer.synced().await;
        self.wake_on(&informer, |_, _| false);
        self.counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(resource.to_owned(), informer.clone());
        Ok(informer.len_namespace(namespace))
    }
}

#[cfg(test)]
mod tests {
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
}
