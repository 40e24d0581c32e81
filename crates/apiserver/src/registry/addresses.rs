//! IPAddress and ServiceCIDR objects: the allocator's book, as others can read and write it.
//!
//! Each cluster address of a Service is an IPAddress object of that name. Making it is what takes the address, so two
//! servers on one store cannot give one away twice, and an address somebody wrote down by hand is respected. It is
//! made just before the Service is written and taken back if that fails; when a Service goes or gives its address up, the
//! object goes with the same request. ServiceCIDRs are where addresses come from, unless one is being deleted or said not to be
//! ready; that it stays until no address needs it is a controller's work (`service-cidr-controller`). Of the range a server is
//! given it says itself that it is ready.
//!
//! Different from upstream: no bitmap is kept beside (an upstream server older than 1.33 cannot share the store).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use sampan_api::codec::printed;
use sampan_api::status::Status;
use sampan_api::{Object, field, meta as access};
use sampan_kinds::Part;
use sampan_store::{Condition, Op, Write, Written};
use sampan_tasks::OnExit;
use serde_json::{Value, json};

use super::create::encode;
use super::{Call, Registry, meta, store_failure};
use crate::allocate::Reserved;
use crate::control_plane::ControlPlane;
use crate::request::WriteOptions;
use crate::rows::Row;
use crate::watch_cache::{Scope, Start, Storage};
use crate::{Refusal, refuse};

const GROUP: &str = "networking.k8s.io";
const ADDRESSES: &str = "ipaddresses";
const RANGES: &str = "servicecidrs";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// The range of the servers' own configuration.
const DEFAULT: &str = "kubernetes";
/// Addresses tried when others are quicker.
const ATTEMPTS: usize = 32;
/// Between tries to write what was refused.
const AGAIN: Duration = Duration::from_secs(5);

impl Registry {
    /// Writes the addresses a Service is about to get down. One that turns out to be another's is replaced, unless the
    /// client asked for it.
    pub(super) async fn claim(&self, reserved: &mut Reserved, service: &mut Object) -> Result<(), Refusal> {
        let mut claimed = Vec::new();
        for address in reserved.addresses().to_vec() {
            let mut address = address;
            let mut attempt = 0;
            while !self.write_down(address, service).await? {
                attempt += 1;
                // The watch will say whose it is, but not before the next try.
                let other = self.services.replace(reserved, address).filter(|_| attempt < ATTEMPTS);
                let Some(other) = other else {
                    self.give_back(&claimed, service).await;
                    let why = format!("failed to allocate IP {address}: provided IP is already allocated");
                    let at = field::Path::new("spec").child("clusterIPs");
                    let error = field::Error::invalid(&at, json!([address.to_string()]), why);
                    return Err(refuse(Status::invalid("", "Service", access::name(service), &[error])));
                };
                service["spec"]["clusterIP"] = other.to_string().into();
                service["spec"]["clusterIPs"] = json!([other.to_string()]);
                address = other;
            }
            claimed.push(address);
        }
        Ok(())
    }

    /// Makes the IPAddress of a Service's address. False: the address is another's.
    async fn write_down(&self, address: Ipv4Addr, service: &Object) -> Result<bool, Refusal> {
        let Some((row, storage)) = self.book() else {
            return Ok(true);
        };
        let name = address.to_string();
        let mut entry = book_entry(address, service);
        row.default(&mut entry);
        meta::fill_system_fields(&mut entry);
        if row.strategy().has_generation() {
            access::set_generation(&mut entry, 1);
        }
        let write = Write {
            key: storage.key(&name).into(),
            condition: Condition::ModRevision(0),
            op: Op::Put {
                value: encode(&mut entry),
                lease: None,
            },
        };
        match self.cache.store().write(write).await.map_err(store_failure)? {
            Written::Committed { .. } => Ok(true),
            Written::Refused { current, .. } => {
                Ok(current.is_some_and(|current| is_of(&printed::read(&current.value), service)))
            }
        }
    }

    /// Removes the IPAddresses of addresses a Service has no more, or was not given after all.
    pub(super) async fn give_back(&self, addresses: &[Ipv4Addr], service: &Object) {
        let Some((_, storage)) = self.book() else { return };
        for address in addresses {
            let name = address.to_string();
            let Some(entry) = self.current(&storage, &name).await else {
                continue;
            };
            if !is_of(&entry.object(), service) {
                continue;
            }
            let write = Write {
                key: entry.key().clone(),
                condition: Condition::ModRevision(entry.revision()),
                op: Op::Delete,
            };
            // What stays is found at the next start.
            if let Err(error) = self.cache.store().write(write).await {
                tracing::warn!(name, %error, "an address could not be given back");
            }
        }
    }

    fn book(&self) -> Option<(Arc<Row>, Arc<Storage>)> {
        let row = self.row(GROUP, ADDRESSES)?;
        let storage = row.storage.clone()?;
        Some((row, storage))
    }
}

/// The IPv4 addresses a Service holds or asks for.
pub(super) fn cluster_addresses(service: &Object) -> BTreeSet<Ipv4Addr> {
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .chain(service.pointer("/spec/clusterIP"))
        .filter_map(|text| text.as_str()?.parse().ok())
        .collect()
}

fn book_entry(address: Ipv4Addr, service: &Object) -> Object {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": address.to_string(), "labels": {FAMILY: "IPv4", MANAGED_BY: ALLOCATOR}},
        "spec": {"parentRef": {"group": "", "resource": "services",
            "namespace": access::namespace(service), "name": access::name(service)}},
    })
}

/// Whether an IPAddress was made for this Service.
fn is_of(entry: &Object, service: &Object) -> bool {
    parent(entry)
        .is_some_and(|(namespace, name)| namespace == access::namespace(service) && name == access::name(service))
}

/// Namespace and name of the Service an allocator's IPAddress is for.
fn parent(entry: &Object) -> Option<(&str, &str)> {
    let text = |field: &str| {
        entry
            .pointer(&format!("/spec/parentRef/{field}"))
            .and_then(Value::as_str)
    };
    let managed = access::labels(entry).any(|(key, value)| key == MANAGED_BY && value == ALLOCATOR);
    (managed && text("resource") == Some("services") && text("group").unwrap_or_default().is_empty())
        .then(|| (text("namespace").unwrap_or_default(), text("name").unwrap_or_default()))
}

/// Puts the book in order, and says that the default range is ready whenever nobody says how it is.
pub fn keep(plane: &Arc<ControlPlane>) {
    let storages = (
        plane.registry.storage_of("", "services"),
        plane.registry.storage_of(GROUP, RANGES),
        plane.registry.storage_of(GROUP, ADDRESSES),
    );
    let (Some(services), Some(ranges), Some(addresses)) = storages else {
        return;
    };
    let plane = plane.clone();
    let tasks = plane.tasks.clone();
    tasks.spawn_until_drain("service-ranges", OnExit::Critical, async move {
        repair(&plane, &services, &addresses).await;
        while !plane.tasks.drain().is_started() {
            let known = plane.registry.cache.revision();
            let scope = Scope::Object(DEFAULT.to_owned());
            let Ok(mut watch) = ranges.watch(scope, Start::After(known), known) else {
                continue;
            };
            loop {
                let settled = settle_default(&plane, &ranges).await;
                let news = watch.queue.recv();
                let news = match settled {
                    true => news.await,
                    false => match tokio::time::timeout(AGAIN, news).await {
                        Ok(news) => news,
                        Err(_) => continue,
                    },
                };
                if news.is_none() {
                    break;
                }
            }
        }
    });
}

/// At start: every address has its object, and no object of ours is left without its Service.
async fn repair(plane: &Arc<ControlPlane>, services: &Storage, addresses: &Storage) {
    let known: Vec<Object> = services.snapshot(0).index.iter().map(|entry| entry.object()).collect();
    for service in &known {
        for address in cluster_addresses(service) {
            match plane.registry.write_down(address, service).await {
                Ok(true) => {}
                Ok(false) => tracing::warn!(%address, service = access::name(service), "an address is held twice"),
                Err(refusal) => {
                    tracing::warn!(%address, error = refusal.message, "an address could not be written down")
                }
            }
        }
    }
    let entries: Vec<Object> = addresses.snapshot(0).index.iter().map(|entry| entry.object()).collect();
    for entry in entries {
        let Some((namespace, name)) = parent(&entry) else {
            continue;
        };
        let Ok(address) = access::name(&entry).parse::<Ipv4Addr>() else {
            continue;
        };
        let holder = services.get(&format!("{namespace}/{name}")).map(|entry| entry.object());
        if holder
            .as_ref()
            .is_some_and(|service| cluster_addresses(service).contains(&address))
        {
            continue;
        }
        // Another server may be about to write the Service.
        if age(&entry) < 60 {
            continue;
        }
        let service = json!({"metadata": {"namespace": namespace, "name": name}});
        plane.registry.give_back(&[address], &service).await;
    }
}

fn age(object: &Object) -> i64 {
    let made = object
        .pointer("/metadata/creationTimestamp")
        .and_then(Value::as_str)
        .unwrap_or_default();
    sampan_api::time::parse(made).map_or(i64::MAX, |made| jiff::Timestamp::now().as_second() - made.as_second())
}

/// Nobody has said how the default range is, and it is the one this server was given.
fn lacks_condition(range: &Object, own: &str) -> bool {
    let conditions = range.pointer("/status/conditions").and_then(Value::as_array);
    let mut ready = conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition["type"] == "Ready");
    !access::is_deleting(range)
        && range.pointer("/spec/cidrs") == Some(&json!([own]))
        && ready.all(|condition| condition["status"] == "Unknown")
}

/// Whether there is nothing left to do.
async fn settle_default(plane: &Arc<ControlPlane>, ranges: &Storage) -> bool {
    let Some(row) = plane.registry.row(GROUP, RANGES) else {
        return true;
    };
    let own = plane.config.service_range.to_string();
    if !ranges
        .get(DEFAULT)
        .is_some_and(|range| lacks_condition(&range.object(), &own))
    {
        return true;
    }
    let condition = json!({"type": "Ready", "status": "True", "reason": "",
        "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": sampan_api::time::now()});
    let mut call = Call::internal(row, "update", "", DEFAULT);
    let mut make = |_: &mut Call, current: &Object| {
        let mut new = current.clone();
        if lacks_condition(&new, &own)
            && let Some(map) = new.as_object_mut()
        {
            map.insert("status".to_owned(), json!({"conditions": [condition]}));
        }
        Ok(new)
    };
    let options = WriteOptions::default();
    let written = plane
        .registry
        .rewrite(&mut call, Part::View("status"), &options, &mut make)
        .await;
    if let Err(refusal) = written
        && refusal.reason != "NotFound"
    {
        tracing::warn!(
            error = refusal.message,
            "the default ServiceCIDR could not be said to be ready; trying again"
        );
        return false;
    }
    true
}
