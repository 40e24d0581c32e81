//! Which users of the node Pods with a user namespace get: 65,536 ids each, no two the same.
//!
//! A Pod's ids are written into its directory before they are used, in upstream's file, and are read back when the
//! agent starts: containers that outlive it keep their owners. Ids come from `/etc/subuid` and `/etc/subgid` of a user
//! `kubelet`, as upstream, and else from 65536 up, one range for each Pod the node may have.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// Ids of one Pod.
const LENGTH: u32 = 1 << 16;
const FILE: &str = "userns";

/// Why a Pod gets no ids.
#[derive(Debug, thiserror::Error)]
pub enum UserIdsError {
    #[error("no user ids are free: all {0} ranges of this node are taken")]
    Exhausted(u32),
    #[error("the ids cannot be recorded: {0}")]
    Record(#[source] io::Error),
}

/// Ids that Pods may have: `count` times [`LENGTH`] from `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: u32,
    count: u32,
}

impl Range {
    /// What the machine's files give to `kubelet`; what is wrong with them is said in the log.
    pub fn of_machine(max_pods: u32) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::of_files(&read("/etc/subuid"), &read("/etc/subgid"), max_pods)
    }

    fn of_files(users: &str, groups: &str, max_pods: u32) -> Self {
        let usual = Self {
            first: LENGTH,
            count: max_pods,
        };
        let (users, groups) = (entry(users), entry(groups));
        match (users, groups) {
            (None, None) => usual,
            (Some((first, length)), groups)
                if groups == users && first >= LENGTH && first.is_multiple_of(LENGTH) && length >= LENGTH =>
            {
                Self {
                    first,
                    count: length / LENGTH,
                }
            }
            _ => {
                tracing::warn!(
                    "the ranges of user kubelet in /etc/subuid and /etc/subgid are not used: they must be the same, \
                     begin at a multiple of 65536 and have at least 65536 ids"
                );
                usual
            }
        }
    }
}

/// `kubelet:FIRST:LENGTH`, if the range fits into 32 bits.
fn entry(text: &str) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let named = fields.next() == Some("kubelet");
        let (first, length): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (named && first.checked_add(length).is_some()).then_some((first, length))
    })
}

/// Upstream's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The ids of the node's Pods.
pub struct UserIds {
    range: Range,
    /// First id by Pod.
    taken: Mutex<BTreeMap<String, u32>>,
}

impl UserIds {
    /// With the ids that Pods in `pods` already have.
    pub fn load(pods: &Path, range: Range) -> Self {
        let mut taken = BTreeMap::new();
        for entry in fs::read_dir(pods).into_iter().flatten().flatten() {
            let path = entry.path().join(FILE);
            let uid = entry.file_name().to_string_lossy().into_owned();
            match read(&path) {
                Ok(Some(first)) => drop(taken.insert(uid, first)),
                Ok(None) => {}
                Err(error) => tracing::error!(path = %path.display(), %error, "a pod's user ids cannot be read"),
            }
        }
        Self {
            range,
            taken: Mutex::new(taken),
        }
    }

    /// First id and number of ids of a Pod; always the same for the same Pod. `dir` is the Pod's directory.
    pub fn take(&self, uid: &str, dir: &Path) -> Result<(u32, u32), UserIdsError> {
        let mut taken = self.lock();
        if let Some(&first) = taken.get(uid) {
            return Ok((first, LENGTH));
        }
        let mut starts = (0..self.range.count).filter_map(|slot| self.range.first.checked_add(slot * LENGTH));
        let free = starts.find(|start| taken.values().all(|first| first != start));
        let first = free.ok_or(UserIdsError::Exhausted(self.range.count))?;
        write(dir, first).map_err(UserIdsError::Record)?;
        taken.insert(uid.to_owned(), first);
        Ok((first, LENGTH))
    }

    /// The Pod is gone, and its directory. Idempotent.
    pub fn give_back(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<Option<u32>> {
    let text = match fs::read(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        text => text?,
    };
    let record: Record = serde_json::from_slice(&text).map_err(io::Error::other)?;
    match record.uid_mappings.as_slice() {
        [only] if record.gid_mappings == [only.clone()] && only.container_id == 0 && only.length == LENGTH => {
            Ok(Some(only.host_id))
        }
        _ => Err(io::Error::other("these are not the ids of one range")),
    }
}

fn write(dir: &Path, first: u32) -> io::Result<()> {
    let mapping = Mapping {
        host_id: first,
        container_id: 0,
        length: LENGTH,
    };
    let record = Record {
        uid_mappings: vec![mapping.clone()],
        gid_mappings: vec![mapping],
    };
    fs::create_dir_all(dir)?;
    let new = dir.join(format!("{FILE}.new"));
    fs::write(&new, serde_json::to_vec(&record).map_err(io::Error::other)?)?;
    fs::rename(&new, dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_from_the_machine() {
        let usual = Range {
            first: 65_536,
            count: 110,
        };
        let table = [
            ("", "", usual),
            ("root:65536:9\n", "", usual),
            (
                "kubelet:131072:655360\n",
                "x:1:2\nkubelet:131072:655360",
                Range {
                    first: 131_072,
                    count: 10,
                },
            ),
            ("kubelet:131072:655360\n", "kubelet:131072:131072", usual),
            ("kubelet:131072:655360\n", "", usual),
            ("", "kubelet:131072:655360\n", usual),
            ("kubelet:1000:655360\n", "kubelet:1000:655360", usual),
            ("kubelet:131072:9\n", "kubelet:131072:9", usual),
            ("kubelet:4294901760:655360\n", "kubelet:4294901760:655360", usual),
        ];
        for (users, groups, expected) in table {
            assert_eq!(Range::of_files(users, groups, 110), expected, "{users}{groups}");
        }
    }

    #[test]
    fn no_two_pods_share_and_a_restart_remembers() {
        let dir = tempfile::tempdir().unwrap();
        let range = Range {
            first: 65_536,
            count: 2,
        };
        let ids = UserIds::load(dir.path(), range);
        let pod = |uid: &str| dir.path().join(uid);
        assert_eq!(ids.take("a", &pod("a")).unwrap(), (65_536, 65_536));
        assert_eq!(ids.take("b", &pod("b")).unwrap(), (131_072, 65_536));
        assert_eq!(ids.take("a", &pod("a")).unwrap(), (65_536, 65_536));
        assert!(matches!(ids.take("c", &pod("c")), Err(UserIdsError::Exhausted(2))));
        assert!(!pod("c").exists());
        let ids = UserIds::load(dir.path(), range);
        assert!(ids.take("c", &pod("c")).is_err());
        ids.give_back("a");
        ids.give_back("a");
        assert_eq!(ids.take("c", &pod("c")).unwrap(), (65_536, 65_536));
        assert_eq!(ids.take("b", &pod("b")).unwrap(), (131_072, 65_536));
    }
}
