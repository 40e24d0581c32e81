//! A running server's certificates: renewed in time, shown by the listener, told to extension servers.
//!
//! Nothing looks every so often: the renewal sleeps until the next certificate is due, and everyone else is woken by a
//! change of the [`Pki`]. Who talks to nodes and extension servers asks the `Pki` for each connection and needs no telling.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::ServerConfig;
use sampan_pki::{Pki, Present};
use sampan_tasks::OnExit;

use crate::bootstrap;
use crate::control_plane::{ControlPlane, StartError};

/// The clock may be set while we sleep: look at it this often.
const LOOK: Duration = Duration::from_secs(3600);
/// Between two rounds, whatever certificates say of their lives; and after a failure, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(300);

/// Renews leaf certificates when their time has come, for as long as it is run.
pub async fn renewals(pki: Arc<Pki>, now: impl Fn() -> Timestamp) {
    let mut changes = pki.changes();
    let mut pause = PAUSE;
    loop {
        changes.mark_unchanged();
        let left = match pki.next_renewal() {
            Some(due) => Duration::from_secs(u64::try_from(due - now().as_second()).unwrap_or(0)),
            None => LOOK,
        };
        if !left.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK)) => {}
                // Other leaves, other times.
                _ = changes.changed() => {}
            }
            continue;
        }
        let (at, renewing) = (now().as_second(), pki.clone());
        let renewed = tokio::task::spawn_blocking(move || renewing.renew_due(at)).await;
        match renewed
            .map_err(|error| error.to_string())
            .and_then(|renewed| renewed.map_err(|error| error.to_string()))
        {
            Ok(names) => {
                tracing::info!(certificates = names.join(", "), "certificates were renewed");
                pause = PAUSE;
            }
            Err(error) => {
                tracing::error!(error, "certificates could not be renewed; trying again");
                pause = (pause * 2).min(SLOWEST);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// What the listener shows and asks for.
pub(crate) fn serving(plane: &Arc<ControlPlane>) -> Result<Present<ServerConfig>, StartError> {
    let verifier = plane.client_verifier()?;
    let pki = plane.config.pki.clone();
    let mut changes = pki.changes();
    let shown = Present::from(pki.serving_config(&verifier)?);
    let present = shown.clone();
    plane
        .tasks
        .spawn_until_drain("serving certificate", OnExit::Critical, async move {
            while changes.changed().await.is_ok() {
                match pki.serving_config(&verifier) {
                    Ok(config) => shown.set(config),
                    Err(error) => {
                        tracing::error!(%error, "a new serving certificate cannot be used; the old one stays")
                    }
                }
            }
        });
    Ok(present)
}

/// Keeps the ConfigMap by which extension servers know whom to believe. The control plane has just made it.
pub(crate) fn publish(plane: &Arc<ControlPlane>) {
    let mut changes = plane.config.pki.changes();
    let tasks = plane.tasks.clone();
    let plane = plane.clone();
    tasks.spawn_until_drain("published authorities", OnExit::Critical, async move {
        let mut pause = PAUSE;
        while changes.changed().await.is_ok() {
            while let Err(refusal) = bootstrap::keep_authorities(&plane).await {
                tracing::warn!(
                    error = refusal.message,
                    "the cluster's authorities could not be published; trying again"
                );
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(SLOWEST);
            }
            pause = PAUSE;
        }
    });
}
