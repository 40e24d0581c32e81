//! Aggregated ClusterRoles follow the roles they are made of.
//!
//! Upstream does this in a controller; here it is part of the server, because roles must be right also where no
//! controllers run.

use std::sync::Arc;

use sampan_api::{Object, meta};
use sampan_auth::policy;
use sampan_kinds::Part;
use sampan_tasks::OnExit;

use crate::control_plane::ControlPlane;
use crate::registry::Call;
use crate::request::WriteOptions;
use crate::watch_cache::{Scope, Start, Storage};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn start(plane: &Arc<ControlPlane>) {
    let Some(storage) = plane.registry.storage_of(GROUP, "clusterroles") else {
        return;
    };
    let plane = plane.clone();
    plane
        .tasks
        .clone()
        .spawn_until_drain("role-aggregation", OnExit::Critical, async move {
            while !plane.tasks.drain().is_started() {
                let known = plane.registry.cache.revision();
                let Ok(mut watch) = storage.watch(Scope::All, Start::After(known), known) else {
                    continue;
                };
                // What changed before the watch began is seen in the first round.
                loop {
                    settle(&plane, &storage).await;
                    if watch.queue.recv().await.is_none() {
                        break;
                    }
                    while watch.queue.try_recv().is_ok() {}
                }
            }
        });
}

/// One round over the aggregated roles; a change it makes is seen as a change and leads to the next.
async fn settle(plane: &Arc<ControlPlane>, storage: &Storage) {
    let roles: Vec<Object> = storage.snapshot(0).index.iter().map(|entry| entry.object()).collect();
    let Some(row) = plane.registry.row(GROUP, "clusterroles") else {
        return;
    };
    for role in roles.iter().filter(|role| role.get("aggregationRule").is_some()) {
        if policy::aggregate(role, &roles).is_none() {
            continue;
        }
        let mut call = Call::internal(row.clone(), "update", "", meta::name(role));
        let result = plane
            .registry
            .rewrite(&mut call, Part::Main, &WriteOptions::default(), &mut |_, current| {
                let mut new = current.clone();
                if let Some(rules) = policy::aggregate(current, &roles) {
                    new["rules"] = rules;
                }
                Ok(new)
            })
            .await;
        if let Err(refusal) = result {
            tracing::warn!(
                role = meta::name(role),
                error = refusal.message,
                "an aggregated role could not be updated"
            );
        }
    }
}
