//! Records of Pods on disk: who has which address.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::HostPort;
use crate::files;
use crate::policy::PodIdentity;

/// One Pod's share of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub uid: String,
    pub ip: Ipv4Addr,
    pub link: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
    /// Who it is to network policies; not known of Pods set up by versions that had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodIdentity>,
}

/// All records, and the addresses they leave.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    range: Ipv4Net,
    records: BTreeMap<String, Record>,
    taken: BTreeSet<Ipv4Addr>,
    /// The address given last: the next search begins behind it.
    last: Ipv4Addr,
}

impl Store {
    pub(crate) fn read(dir: &Path) -> io::Result<Vec<Record>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                records.extend(files::read_json::<Record>(&path)?);
            }
        }
        Ok(records)
    }

    pub(super) fn open(dir: &Path, range: Ipv4Net) -> io::Result<Self> {
        let records: BTreeMap<_, _> = Self::read(dir)?
            .into_iter()
            .map(|record| (record.uid.clone(), record))
            .collect();
        let taken: BTreeSet<_> = records.values().map(|record| record.ip).collect();
        let last = taken.last().copied().unwrap_or(range.network());
        Ok(Store {
            dir: dir.to_owned(),
            range,
            records,
            taken,
            last,
        })
    }

    fn file(&self, uid: &str) -> io::Result<PathBuf> {
        // A UID names a file; the API server makes them, but a static Pod's comes from its manifest.
        let plain = !uid.is_empty() && !uid.starts_with('.') && !uid.contains(['/', '\0']);
        if !plain {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{uid:?} is not a Pod's UID"),
            ));
        }
        Ok(self.dir.join(format!("{uid}.json")))
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Record> {
        self.records.get(uid)
    }
    pub(super) fn all(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }
    pub(super) fn uids(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }

    /// The next address nobody has: not the network's, the gateway's, or the broadcast address.
    pub(super) fn free_address(&mut self) -> Option<Ipv4Addr> {
        let (first, last) = (
            u32::from(self.range.network()) + 2,
            u32::from(self.range.broadcast()).checked_sub(1)?,
        );
        let after = u32::from(self.last)
            .checked_add(1)
            .filter(|next| (first..=last).contains(next))
            .unwrap_or(first);
        let found = (after..=last)
            .chain(first..after)
            .map(Ipv4Addr::from)
            .find(|ip| !self.taken.contains(ip))?;
        self.last = found;
        Some(found)
    }

    /// The first of the ports another Pod already has.
    pub(super) fn port_taken<'p>(&self, uid: &str, ports: &'p [HostPort]) -> Option<&'p HostPort> {
        let others = || {
            self.records
                .values()
                .filter(|record| record.uid != uid)
                .flat_map(|record| &record.host_ports)
        };
        ports.iter().find(|port| {
            others().any(|other| {
                other.protocol == port.protocol
                    && other.host_port == port.host_port
                    && (other.host_ip.is_none() || port.host_ip.is_none() || other.host_ip == port.host_ip)
            })
        })
    }

    pub(super) fn put(&mut self, record: Record) -> io::Result<()> {
        if self.records.get(&record.uid) != Some(&record) {
            files::write_json(&self.file(&record.uid)?, &record)?;
            self.taken.insert(record.ip);
            self.records.insert(record.uid.clone(), record);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, uid: &str) -> io::Result<()> {
        if self.records.contains_key(uid) {
            files::remove(&self.file(uid)?)?;
            if let Some(record) = self.records.remove(uid) {
                self.taken.remove(&record.ip);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str, ip: Ipv4Addr) -> Record {
        Record {
            uid: uid.into(),
            ip,
            link: "x".into(),
            host_ports: vec![],
            pod: None,
        }
    }

    #[test]
    fn addresses_go_round_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let range: Ipv4Net = "10.9.0.0/29".parse().unwrap();
        let mut store = Store::open(dir.path(), range).unwrap();
        let mut given = Vec::new();
        for pod in 0..5 {
            let ip = store.free_address().unwrap();
            store.put(record(&pod.to_string(), ip)).unwrap();
            given.push(ip.octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6]);
        assert_eq!(store.free_address(), None);
        store.remove("1").unwrap();
        store.remove("1").unwrap();
        let mut store = Store::open(dir.path(), range).unwrap();
        assert_eq!(store.uids().count(), 4);
        assert_eq!(store.free_address(), Some("10.9.0.3".parse().unwrap()));
    }

    #[test]
    fn an_address_given_up_waits_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), "10.9.0.0/24".parse().unwrap()).unwrap();
        let first = store.free_address().unwrap();
        store.put(record("a", first)).unwrap();
        store.remove("a").unwrap();
        assert_ne!(store.free_address(), Some(first));
    }

    #[test]
    fn a_uid_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), "10.9.0.0/24".parse().unwrap()).unwrap();
        for uid in ["", "../x", "a/b", ".hidden"] {
            assert!(store.put(record(uid, Ipv4Addr::LOCALHOST)).is_err());
        }
    }

    #[test]
    fn host_ports_collide_by_address() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), "10.9.0.0/24".parse().unwrap()).unwrap();
        let port = |host_ip: Option<&str>, host_port| HostPort {
            protocol: super::super::Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port: 80,
        };
        let mut one = record("a", Ipv4Addr::LOCALHOST);
        one.host_ports = vec![port(Some("127.0.0.1"), 80), port(None, 81)];
        store.put(one).unwrap();
        assert!(store.port_taken("b", &[port(None, 80)]).is_some());
        assert!(store.port_taken("b", &[port(Some("127.0.0.2"), 80)]).is_none());
        assert!(store.port_taken("b", &[port(Some("127.0.0.2"), 81)]).is_some());
        assert!(store.port_taken("a", &[port(None, 80)]).is_none());
    }
}
