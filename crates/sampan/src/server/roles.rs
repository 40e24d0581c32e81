//! Roles of which a cluster has one: controllers and the scheduler.
//!
//! A server with its own store is alone and starts them at once. Where several servers share a store, each role works
//! in whichever holds its Lease (upstream's names, so upstream's components may compete too); the others wait without
//! doing anything. Whoever loses the Lease stops its work before the next may begin, and waits again.

use std::time::Duration;

use sampan_auth::UserInfo;
use sampan_client::leader::{self, Election, Ended};
use sampan_client::{Informers, SystemClock};
use sampan_tasks::{Drain, OnExit, Tasks};

use super::{Server, client};

/// How long a role's tasks may take to stop: less than lies between a leader's last renewal and the Lease's end.
const STOP: Duration = Duration::from_secs(4);

/// Runs a role: `start` spawns its work on the tasks it is given.
pub(super) fn start<F>(server: &Server, name: &'static str, start: F)
where
    F: Fn(&Informers, &Tasks) -> Result<(), String> + Send + Sync + 'static,
{
    let (plane, tasks) = (server.plane.clone(), server.roles.clone());
    let store = plane.registry().cache.store().clone();
    let informers = server.informers.clone();
    server.roles.spawn(name, OnExit::Critical, async move {
        let drain = tasks.drain();
        if !store.shared() {
            let term = tasks.child();
            tokio::select! {
                () = work(&start, &informers, &term) => return,
                () = drain.started() => {}
                // The store was moved: from now on others may be there.
                () = store.until_shared() => {}
            }
            term.shutdown(STOP).await;
        }
        let identity = format!("{}_{}", crate::options::Machine::here().host_name, uuid::Uuid::new_v4());
        while !drain.is_started() {
            let term = tasks.child();
            let leave = Drain::new();
            let lead = || async {
                // Own informers: a server that does not lead keeps nothing.
                let reader = client(&plane, UserInfo::component("system:sampan:informers"));
                work(&start, &Informers::new(reader, &term), &term).await;
            };
            let election = Election::new("kube-system", name, &identity);
            let component = client(&plane, UserInfo::component(&format!("system:{name}")));
            let ended = tokio::select! {
                ended = leader::run(component, election, &SystemClock, lead, leave.clone()) => ended,
                // First the work ends, then the Lease is given back.
                () = async {
                    drain.started().await;
                    term.shutdown(STOP).await;
                    leave.start();
                    std::future::pending().await
                } => return,
            };
            term.shutdown(STOP).await;
            match ended {
                Ended::Lost => tracing::warn!(role = name, "another server leads now; waiting"),
                Ended::Drained | Ended::Finished => return,
            }
        }
    });
}

/// Works until something it cannot do without fails.
async fn work<F>(start: &F, informers: &Informers, term: &Tasks)
where
    F: Fn(&Informers, &Tasks) -> Result<(), String>,
{
    match start(informers, term) {
        Ok(()) => {
            let reason = term.failed().await;
            tracing::error!(reason, "a role failed");
        }
        Err(error) => tracing::error!(error, "a role could not be started"),
    }
}
