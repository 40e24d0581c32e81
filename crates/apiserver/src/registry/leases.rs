//! Objects that expire (Events). Leases are shared: everything written within a minute ends together.

use std::time::{Duration, Instant};

use sampan_store::{self as store, LeaseId, Store};
use tokio::sync::Mutex;

const BUCKET: Duration = Duration::from_secs(60);

/// The lease of the current minute.
pub struct Leases {
    ttl: Duration,
    current: Mutex<Option<(Instant, LeaseId)>>,
}

impl Leases {
    pub fn new(ttl: Duration) -> Self {
        Leases {
            ttl,
            current: Mutex::default(),
        }
    }

    /// A lease that lasts at least the time to live.
    pub async fn get(&self, store: &dyn Store) -> Result<LeaseId, store::Error> {
        let mut current = self.current.lock().await;
        if let Some((since, lease)) = *current
            && since.elapsed() < BUCKET
        {
            return Ok(lease);
        }
        let lease = store.grant(self.ttl + BUCKET).await?;
        *current = Some((Instant::now(), lease));
        Ok(lease)
    }

    /// Forgets the lease (it has ended behind our back).
    pub async fn forget(&self) {
        *self.current.lock().await = None;
    }
}
