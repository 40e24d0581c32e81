//! DynamicResources: a Pod goes where the devices of its claims are, and is bound once the claims say they are for it.
//!
//! A claim that is allocated is followed to the nodes its allocation names; one that asks for no devices is allocated
//! here, which is nothing more than saying so. A Pod whose claim is missing, leaving or somebody else's waits, with the
//! reason, for a change of that claim.
//!
//! Differs from upstream: devices themselves are not allocated here yet. A claim that asks for some waits until somebody
//! else (a driver, another scheduler) has allocated it, as upstream's scheduler has it wait while no node has them. A Pod
//! that is not bound after all stays reserved for: it comes again or goes, and then the claims' controller takes it out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimConsumerReference};
use kube::api::{Api, Patch, PatchParams};
use sampan_client::{Cached, Change, Informer, Informers, owner, retry_on_conflict};
use serde_json::json;

use crate::framework::{BindingPlugin, Event, NodeFilter, PreFilter, Refusal};
use crate::labels::node_matches;
use crate::pod::{Class, PodInfo};
use crate::snapshot::NodeInfo;

pub const NAME: &str = "DynamicResources";
const HELPED_BY: &[Event] = &[Event::ResourceClaim, Event::Node];

/// Keeps an allocated claim until nobody uses it.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// So many users an API server lets a claim have.
const MOST_USERS: usize = 256;

/// A claim as a Pod asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// `None`: it is still to be made.
    pub name: Option<String>,
    /// It was made for the Pod and must belong to it.
    pub own: bool,
}

/// The claims a Pod asks for, but for those that were found not to be needed.
pub fn asked(pod: &Pod) -> Vec<Asked> {
    let claims = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let status = pod.status.as_ref();
    let recorded = |name: &str| {
        let mut statuses = status?.resource_claim_statuses.iter().flatten();
        statuses.find(|status| status.name == name)
    };
    claims
        .filter_map(|claim| {
            if let Some(name) = &claim.resource_claim_name {
                return Some(Asked {
                    name: Some(name.clone()),
                    own: false,
                });
            }
            let name = match recorded(&claim.name) {
                Some(status) => Some(status.resource_claim_name.clone()?),
                None => None,
            };
            Some(Asked { name, own: true })
        })
        .collect()
}

/// Whether Pods of a class ask for this claim (namespace and name), or for any.
pub fn concerned(class: &Class, claim: Option<(&str, &str)>) -> bool {
    match claim {
        None => !class.claims.is_empty(),
        Some((namespace, name)) => {
            let mut names = class.claims.iter().filter_map(|asked| asked.name.as_deref());
            class.namespace == namespace && names.any(|asked| asked == name)
        }
    }
}

/// Whether Pods of the two classes ask for the same claim.
pub fn share_a_claim(class: &Class, other: &Class) -> bool {
    let mut names = other.claims.iter().filter_map(|asked| asked.name.as_deref());
    names.any(|name| concerned(class, Some((&other.namespace, name))))
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

fn users(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    let status = claim.status.as_ref();
    status
        .and_then(|status| status.reserved_for.as_deref())
        .unwrap_or_default()
}

fn is_reserved_for(claim: &ResourceClaim, uid: &str) -> bool {
    users(claim).iter().any(|user| user.uid == uid)
}

/// The device classes a claim names, with how its requests are called.
fn device_classes(claim: &ResourceClaim) -> impl Iterator<Item = (String, &str)> {
    let devices = claim.spec.devices.as_ref();
    let requests = devices.and_then(|devices| devices.requests.as_ref());
    requests.into_iter().flatten().flat_map(|request| {
        let exactly = request
            .exactly
            .iter()
            .map(|exactly| (request.name.clone(), exactly.device_class_name.as_str()));
        let alternatives = request.first_available.iter().flatten().map(|alternative| {
            let name = format!("{}/{}", request.name, alternative.name);
            (name, alternative.device_class_name.as_str())
        });
        exactly.chain(alternatives)
    })
}

/// The claims and device classes of the cluster; shared by all profiles.
pub struct Devices {
    client: kube::Client,
    claims: Informer<ResourceClaim>,
    classes: Informer<DeviceClass>,
    /// Claims that are being allocated, by their uid: for whom.
    in_flight: Mutex<HashMap<String, Arc<str>>>,
}

impl Devices {
    /// `concerns` is told what claim changed (namespace and name; `None`: any may be meant).
    pub fn new(
        client: kube::Client,
        informers: &Informers,
        concerns: impl Fn(Option<(&str, &str)>) + Clone + Send + 'static,
    ) -> Arc<Self> {
        let devices = Devices {
            client,
            claims: informers.of(),
            classes: informers.of(),
            in_flight: Mutex::default(),
        };
        let tell = concerns.clone();
        devices.claims.on_change(move |change| {
            let claim = change.object();
            tell(Some((claim.namespace(), claim.name())));
        });
        devices.classes.on_change(move |change| {
            // Only whether there is a class matters here.
            if change.old().is_none() && !matches!(change, Change::Deleted(_)) {
                concerns(None);
            }
        });
        Arc::new(devices)
    }

    pub async fn synced(&self) {
        self.claims.synced().await;
        self.classes.synced().await;
    }

    fn in_flight(&self) -> MutexGuard<'_, HashMap<String, Arc<str>>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is being allocated for the Pod any more.
    fn let_go(&self, pod: &str) {
        self.in_flight().retain(|_, by| **by != *pod);
    }

    /// The claims of a Pod, or what is wrong with one.
    fn claims_of(&self, class: &Class) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let (pod, uid) = match &class.pod {
            Some((pod, uid)) => (pod.as_str(), uid.as_str()),
            None => ("", ""),
        };
        let namespace = &class.namespace;
        let find = |asked: &Asked| {
            let Some(name) = &asked.name else {
                return Err(format!("pod \"{namespace}/{pod}\": ResourceClaim not created yet"));
            };
            let Some(claim) = self.claims.get(namespace, name) else {
                return Err(format!("could not find ResourceClaim \"{namespace}/{name}\""));
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("resourceclaim {name:?} is being deleted"));
            }
            if asked.own && !owner::is_controlled_by(&claim.metadata, uid) {
                return Err(format!(
                    "ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{pod} (Pod is not owner)"
                ));
            }
            Ok(claim)
        };
        class.claims.iter().map(find).collect()
    }

    fn check(&self, class: &Class) -> Result<(), String> {
        let uid = class.pod.as_ref().map_or("", |(_, uid)| uid.as_str());
        for claim in self.claims_of(class)? {
            if is_allocated(&claim) {
                if users(&claim).len() >= MOST_USERS && !is_reserved_for(&claim, uid) {
                    return Err("resourceclaim in use".into());
                }
                continue;
            }
            let busy = self.in_flight().get(claim.uid()).cloned();
            if busy.is_some_and(|by| *by != *uid) {
                let key = format!("{}/{}", claim.namespace(), claim.name());
                return Err(format!("resource claim {key} is in the process of being allocated"));
            }
            for (request, wanted) in device_classes(&claim) {
                if self.classes.get("", wanted).is_none() {
                    return Err(format!("request {request}: device class {wanted} does not exist"));
                }
            }
        }
        Ok(())
    }

    fn check_node(&self, class: &Class, node: &NodeInfo) -> Result<(), Refusal> {
        for claim in self.claims_of(class).map_err(Refusal::unresolvable)? {
            let status = claim.status.as_ref();
            let Some(allocation) = status.and_then(|status| status.allocation.as_ref()) else {
                if device_classes(&claim).next().is_some() {
                    return Err(Refusal::unresolvable("cannot allocate all claims"));
                }
                continue;
            };
            let reaches = allocation
                .node_selector
                .as_ref()
                .is_none_or(|selector| node.node.as_ref().is_some_and(|node| node_matches(selector, node)));
            if !reaches {
                return Err(Refusal::unresolvable("resourceclaim not available on the node"));
            }
        }
        Ok(())
    }

    /// Has a claim say that it is for the Pod, and allocates it where that is still to be done.
    async fn reserve_for(&self, pod: &PodInfo, claim: &ResourceClaim) -> Result<(), String> {
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), claim.namespace());
        let (name, key) = (
            claim.name().to_owned(),
            format!("{}/{}", claim.namespace(), claim.name()),
        );
        let params = PatchParams::default();
        let outcome = retry_on_conflict(|| async {
            let mut live = api.get(&name).await?;
            if live.metadata.uid != claim.metadata.uid || live.metadata.deletion_timestamp.is_some() {
                return Ok(Err(format!("claim {key} got deleted in the meantime")));
            }
            if is_reserved_for(&live, &pod.uid) {
                return Ok(Ok(()));
            }
            let mut status = json!({});
            if !is_allocated(&live) {
                if is_allocated(claim) || device_classes(&live).next().is_some() {
                    return Ok(Err(format!("claim {key} got deallocated elsewhere in the meantime")));
                }
                let mut finalizers = live.metadata.finalizers.clone().unwrap_or_default();
                if !finalizers.iter().any(|known| known == FINALIZER) {
                    finalizers.push(FINALIZER.into());
                    let patch = json!({"metadata": {
                        "resourceVersion": live.metadata.resource_version, "finalizers": finalizers}});
                    live = api.patch(&name, &params, &Patch::Merge(patch)).await?;
                }
                status["allocation"] = json!({"devices": {}});
            }
            let mut users = live.status.and_then(|status| status.reserved_for).unwrap_or_default();
            users.push(ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".into(),
                name: pod.name.to_string(),
                uid: pod.uid.to_string(),
            });
            status["reservedFor"] = json!(users);
            let patch = json!({"metadata": {"resourceVersion": live.metadata.resource_version}, "status": status});
            api.patch_status(&name, &params, &Patch::Merge(patch)).await?;
            Ok(Ok(()))
        })
        .await;
        match outcome {
            Ok(said) => said,
            Err(kube::Error::Api(status)) => Err(format!("add reservation to claim {key}: {}", status.message)),
            Err(error) => Err(format!("add reservation to claim {key}: {error}")),
        }
    }

    /// The check of the Pod's claims, whatever the node.
    pub fn pre_filter(self: &Arc<Self>) -> PreFilter {
        let this = Arc::clone(self);
        PreFilter {
            name: NAME,
            check: Box::new(move |class| match class.claims.is_empty() {
                true => Ok(()),
                false => this.check(class).map_err(Refusal::unresolvable),
            }),
            helped_by: HELPED_BY,
        }
    }

    /// The check of a node.
    pub fn filter(self: &Arc<Self>) -> NodeFilter {
        let this = Arc::clone(self);
        NodeFilter {
            name: NAME,
            check: Box::new(move |class, node| match class.claims.is_empty() {
                true => Ok(()),
                false => this.check_node(class, node),
            }),
            helped_by: HELPED_BY,
        }
    }
}

/// What happens around a binding.
pub struct Reservation(pub Arc<Devices>);

impl Reservation {
    /// The claims that do not say yet that they are for the Pod.
    fn missing(&self, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let mut claims = self.0.claims_of(&pod.class)?;
        claims.retain(|claim| !is_reserved_for(claim, &pod.uid));
        Ok(claims)
    }
}

impl BindingPlugin for Reservation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reserve(&self, pod: &PodInfo, _node: &str) -> Result<(), Refusal> {
        if pod.class.claims.is_empty() {
            return Ok(());
        }
        let claims = self.missing(pod).map_err(Refusal::unresolvable)?;
        self.0.check(&pod.class).map_err(Refusal::unresolvable)?;
        let mut in_flight = self.0.in_flight();
        for claim in claims.iter().filter(|claim| !is_allocated(claim)) {
            in_flight.insert(claim.uid().to_owned(), Arc::clone(&pod.uid));
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo) {
        if !pod.class.claims.is_empty() {
            self.0.let_go(&pod.uid);
        }
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, _node: &'a str) -> Option<BoxFuture<'a, Result<(), String>>> {
        if pod.class.claims.is_empty() {
            return None;
        }
        let missing = match self.missing(pod) {
            Ok(missing) if missing.is_empty() => {
                self.0.let_go(&pod.uid);
                return None;
            }
            missing => missing,
        };
        Some(Box::pin(async move {
            for claim in missing? {
                self.0.reserve_for(pod, &claim).await?;
            }
            // The claims say it now. Where they do not, `unreserve` follows, and others are told.
            self.0.let_go(&pod.uid);
            Ok(())
        }))
    }

    fn helped_by(&self) -> &'static [Event] {
        HELPED_BY
    }
}

#[cfg(test)]
#[path = "dynamic_resources_tests.rs"]
mod tests;
