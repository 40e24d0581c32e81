//! What every cluster has from its first moment: namespaces, roles, priority classes, the address of the API.
//!
//! Everything is created side by side, so the store commits it in a few groups; what exists is left alone
//! (roles are reconciled as upstream reconciles them). Written under the server's own identity.

mod address;
mod objects;

pub(crate) use objects::flow_control;

use std::sync::Arc;

use futures::StreamExt;
use sampan_api::status::Status;
use sampan_api::{Object, meta};
use sampan_auth::policy::{self, Change};
use sampan_kinds::Part;

use crate::control_plane::ControlPlane;
use crate::registry::{Call, Registry};
use crate::request::{DeleteOptions, WriteOptions};
use crate::{Refusal, refuse};

pub use address::settle_to;

/// Writes in flight at once.
const WIDTH: usize = 128;
/// How often an object is tried that another server writes at the same time.
const ATTEMPTS: usize = 8;

pub async fn run(plane: &Arc<ControlPlane>) -> Result<(), Refusal> {
    let registry = &plane.registry;
    // Before anything that says the cluster is not new, so that no start in between leaves it out.
    if is_new(registry)? {
        all(registry, vec![objects::storage_class()], false).await?;
    }
    // Namespaces first: what lives in them is refused without.
    all(registry, objects::namespaces(), false).await?;
    let roles = policy::objects().into_iter().map(|(_, object)| object).collect();
    let fixed = objects::fixed(plane);
    let (roles, fixed, trusted, kept) = futures::join!(
        all(registry, roles, true),
        all(registry, fixed, false),
        keep_authorities(plane),
        address::settle(plane)
    );
    roles?;
    trusted?;
    fixed?;
    kept?;
    address::keep(plane);
    Ok(())
}

/// Whether nothing was ever written here.
fn is_new(registry: &Registry) -> Result<bool, Refusal> {
    let table = registry.rows.get();
    let Some(row) = table.of_kind("", "v1", "Namespace").cloned() else {
        return Ok(false);
    };
    let path = row.path("", "kube-system");
    let call = Call::internal(row, "get", "", "kube-system");
    Ok(call.storage()?.get(&path).is_none())
}

/// Makes `extension-apiserver-authentication` say whom to believe now.
pub async fn keep_authorities(plane: &Arc<ControlPlane>) -> Result<(), Refusal> {
    let object = objects::authorities(plane).map_err(|why| refuse(Status::internal(why)))?;
    keep(plane, vec![object]).await
}

/// Makes objects be as stated.
pub async fn keep(plane: &Arc<ControlPlane>, objects: Vec<Object>) -> Result<(), Refusal> {
    all(&plane.registry, objects, true).await
}

async fn all(registry: &Registry, objects: Vec<Object>, keep: bool) -> Result<(), Refusal> {
    let results: Vec<_> = futures::stream::iter(objects)
        .map(|object| ensure(registry, object, keep))
        .buffer_unordered(WIDTH)
        .collect()
        .await;
    results.into_iter().collect()
}

/// [`ensure_once`], again while other servers write the same objects.
async fn ensure(registry: &Registry, object: Object, keep: bool) -> Result<(), Refusal> {
    for _ in 1..ATTEMPTS {
        match ensure_once(registry, object.clone(), keep).await {
            Err(refusal) if matches!(refusal.code, 404 | 409) => {
                registry.cache.caught_up().await;
            }
            outcome => return outcome,
        }
    }
    ensure_once(registry, object, keep).await
}

/// Creates an object if it is absent; with `keep`, brings it back to what it must be.
async fn ensure_once(registry: &Registry, mut object: Object, keep: bool) -> Result<(), Refusal> {
    let (group, version) = meta::group_version(meta::api_version(&object)).unwrap_or_default();
    let table = registry.rows.get();
    let Some(row) = table.of_kind(group, version, meta::kind(&object)).cloned() else {
        tracing::warn!(
            kind = meta::kind(&object),
            "a bootstrap object of an unknown kind was left out"
        );
        return Ok(());
    };
    let (namespace, name) = (meta::namespace(&object).to_owned(), meta::name(&object).to_owned());
    let mut call = Call::internal(row.clone(), "create", &namespace, &name);
    let storage = call.storage()?;
    let options = WriteOptions::default();
    let Some(existing) = storage.get(&row.path(&namespace, &name)) else {
        row.default(&mut object);
        return match registry.create(&mut call, object, &options).await {
            Err(refusal) if refusal.reason != "AlreadyExists" => Err(refusal),
            _ => Ok(()),
        };
    };
    if !keep {
        return Ok(());
    }
    let existing = existing.object();
    if row.spec.group == "rbac.authorization.k8s.io" {
        return match policy::reconcile(&existing, &object) {
            Change::None => Ok(()),
            Change::Update(wanted) => put(registry, &mut call, wanted).await,
            Change::Recreate(wanted) => {
                registry.delete(&mut call, &DeleteOptions::default()).await?;
                registry.create(&mut call, wanted, &options).await.map(|_| ())
            }
        };
    }
    // The fields we state must be as stated; others stay.
    let mut wanted = existing.clone();
    for (field, value) in object.as_object().into_iter().flatten() {
        if field != "metadata" {
            wanted[field] = value.clone();
        }
    }
    row.default(&mut wanted);
    if wanted == existing {
        return Ok(());
    }
    put(registry, &mut call, wanted).await
}

async fn put(registry: &Registry, call: &mut Call, object: Object) -> Result<(), Refusal> {
    "update".clone_into(&mut call.info.verb);
    registry
        .update(call, Part::Main, object, &WriteOptions::default())
        .await
        .map(|_| ())
}
