//! Addresses and ports of Services where several servers write: each is claimed by a key of the store before a Service
//! with it is written.
//!
//! The in-memory allocator knows every stored Service but not what another server is about to store. So a new address
//! is first made ours by creating `/registry/sampan/claims/{what}`, which succeeds for one server only. A claim names
//! the Service (path and UID). It goes when that Service goes or lets go; one that was left behind by a dead server is
//! taken over when its Service does not hold it and it is older than any request can be.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sampan_store::{Condition, Error, Op, Store, Write, Written};
use sampan_tasks::{OnExit, Tasks};
use serde::{Deserialize, Serialize};

const ROOT: &str = "/registry/sampan/claims/";
/// Longer than a request may take, with room for clocks that differ.
const OLD: Duration = Duration::from_secs(180);
const ATTEMPTS: usize = 8;

/// Whose a claim is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub path: String,
    pub uid: String,
}

#[derive(Serialize, Deserialize)]
struct Claim {
    #[serde(flatten)]
    owner: Owner,
    /// Seconds since 1970.
    at: u64,
}

/// The claims of one store.
#[derive(Clone)]
pub struct Claims {
    store: Arc<dyn Store>,
    tasks: Tasks,
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Claims {
    pub fn new(store: Arc<dyn Store>, tasks: &Tasks) -> Self {
        Claims {
            store,
            tasks: tasks.clone(),
        }
    }

    /// Whether claims are needed: only where others write too.
    pub fn needed(&self) -> bool {
        self.store.shared()
    }

    /// Claims `what` (`ip/10.96.0.7`, `port/30080`) for `owner`. `Err(Ok(owner))`: it is another's. `holds` says
    /// whether an owner's Service is known to hold it.
    pub async fn take(
        &self,
        what: &str,
        owner: &Owner,
        holds: impl Fn(&Owner) -> bool,
    ) -> Result<(), Result<Owner, Error>> {
        let mut condition = Condition::ModRevision(0);
        let claim = Claim {
            owner: owner.clone(),
            at: now(),
        };
        let value = serde_json::to_vec(&claim).unwrap_or_default();
        for _ in 0..ATTEMPTS {
            let write = Write {
                key: format!("{ROOT}{what}").into(),
                condition,
                op: Op::Put {
                    value: value.clone().into(),
                    lease: None,
                },
            };
            let current = match self.store.write(write).await.map_err(Err)? {
                Written::Committed { .. } => return Ok(()),
                Written::Refused { current, .. } => current,
            };
            let Some(current) = current else {
                condition = Condition::ModRevision(0);
                continue;
            };
            // A claim that cannot be read is nobody's.
            let theirs = serde_json::from_slice::<Claim>(&current.value).ok();
            if let Some(theirs) = theirs
                && theirs.owner.path != owner.path
                && (holds(&theirs.owner) || theirs.at + OLD.as_secs() > now())
            {
                return Err(Ok(theirs.owner));
            }
            condition = Condition::ModRevision(current.mod_revision);
        }
        Err(Err(Error::Uncertain {
            reason: format!("the claim of {what} keeps changing"),
        }))
    }

    /// Gives claims back, soon. What a failure leaves is taken over by whoever needs it.
    pub fn release(&self, what: Vec<String>, owner: Owner) {
        if what.is_empty() || !self.needed() {
            return;
        }
        let store = self.store.clone();
        self.tasks.spawn("release-claims", OnExit::Expected, async move {
            for what in what {
                if let Err(error) = release(&*store, &what, &owner).await {
                    tracing::warn!(%error, what, "a claim could not be given back; it will be taken over when needed");
                }
            }
        });
    }
}

async fn release(store: &dyn Store, what: &str, owner: &Owner) -> Result<(), Error> {
    let key = format!("{ROOT}{what}");
    let Some(current) = store.get(&key).await? else {
        return Ok(());
    };
    let ours = serde_json::from_slice::<Claim>(&current.value).is_ok_and(|claim| claim.owner == *owner);
    if ours {
        // Refused: somebody else has it already, and rightly.
        store
            .write(Write {
                key: key.into(),
                condition: Condition::ModRevision(current.mod_revision),
                op: Op::Delete,
            })
            .await?;
    }
    Ok(())
}
