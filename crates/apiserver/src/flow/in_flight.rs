//! The limits that hold where priority and fairness is off: so many requests that read and so many that write at
//! once, and whoever is too many comes back. Masters of the cluster always pass.

use std::sync::Arc;

use sampan_auth::UserInfo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::request::RequestInfo;

const MASTERS: &str = "system:masters";
/// Seconds after which those who were turned away may come back.
const LATER: i64 = 1;

pub struct InFlight {
    /// `None`: unlimited.
    reading: Option<Arc<Semaphore>>,
    writing: Option<Arc<Semaphore>>,
}

impl InFlight {
    /// Zero is no limit.
    pub fn new((reading, writing): (usize, usize)) -> Self {
        let limit = |most: usize| (most > 0).then(|| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))));
        InFlight {
            reading: limit(reading),
            writing: limit(writing),
        }
    }

    /// The request's place, if it needs one.
    pub fn enter(&self, user: &UserInfo, info: &RequestInfo) -> Result<Option<OwnedSemaphorePermit>, i64> {
        let limit = match info.verb.as_str() {
            "get" | "list" | "watch" => &self.reading,
            _ => &self.writing,
        };
        let Some(limit) = limit else { return Ok(None) };
        match limit.clone().try_acquire_owned() {
            Ok(place) => Ok(Some(place)),
            Err(_) if user.groups.iter().any(|group| group == MASTERS) => Ok(None),
            Err(_) => Err(LATER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_and_given_back() {
        let limits = InFlight::new((2, 1));
        let (anybody, master) = (UserInfo::new("a", ["b"]), UserInfo::new("m", [MASTERS]));
        let info = |verb: &str| RequestInfo {
            verb: verb.to_owned(),
            ..RequestInfo::default()
        };
        let first = limits.enter(&anybody, &info("list"));
        let second = limits.enter(&anybody, &info("get"));
        assert!(matches!((&first, &second), (Ok(Some(_)), Ok(Some(_)))));
        assert_eq!(limits.enter(&anybody, &info("get")).err(), Some(LATER));
        assert!(matches!(limits.enter(&master, &info("get")), Ok(None)));
        let write = limits.enter(&anybody, &info("create"));
        assert!(matches!(write, Ok(Some(_))));
        assert_eq!(limits.enter(&anybody, &info("delete")).err(), Some(LATER));
        drop(first);
        assert!(matches!(limits.enter(&anybody, &info("get")), Ok(Some(_))));
        let open = InFlight::new((0, 0));
        assert!(matches!(open.enter(&anybody, &info("get")), Ok(None)));
    }
}
