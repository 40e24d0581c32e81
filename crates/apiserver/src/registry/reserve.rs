//! Addresses and ports for a Service about to be written, also against other servers.

use sampan_api::Object;

use super::{Registry, store_failure};
use crate::Refusal;
use crate::allocate::Reserved;
use crate::rows::Row;

/// How often another address is tried because another server was faster.
const ATTEMPTS: usize = 32;

impl Registry {
    /// Reserves what `object` needs in this process and, where others write too, in the store; `dry`: nothing is held.
    pub(super) async fn reserve(
        &self,
        row: &Row,
        object: &mut Object,
        old: Option<&Object>,
        dry: bool,
    ) -> Result<Reserved, Refusal> {
        if !self.services.concerned(row) {
            return Ok(Reserved::nothing());
        }
        let mut elsewhere = Vec::new();
        let mut attempt = 0;
        let outcome = loop {
            attempt += 1;
            let mut tried = object.clone();
            let mut reserved = match self.services.reserve(row, &mut tried, old, dry) {
                Ok(reserved) => reserved,
                Err(refusal) => break Err(refusal),
            };
            match reserved.claim().await {
                Ok(None) => {
                    *object = tried;
                    break Ok(reserved);
                }
                Ok(Some((what, owner))) if attempt < ATTEMPTS => {
                    drop(reserved);
                    self.services.block(&what, &owner.path);
                    elsewhere.push((what, owner.path));
                }
                Ok(Some((what, _))) => {
                    break Err(store_failure(sampan_store::Error::Uncertain {
                        reason: format!("{what} and every other tried was taken by another server meanwhile"),
                    }));
                }
                Err(error) => break Err(store_failure(error)),
            }
        };
        // Those are known from the cache once their Services are stored.
        for (what, path) in elsewhere {
            self.services.unblock(&what, &path);
        }
        outcome
    }
}
