//! Capabilities: names, numbers, the default set, and what a configuration makes of it.

use std::collections::BTreeSet;

use crate::runtime::{Result, RuntimeError};
use crate::types::Capabilities;

/// One capability by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(pub u8);

/// Names by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers have unless told otherwise.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

impl Capability {
    /// By name, with or without `CAP_`, in any case.
    pub fn named(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let position = NAMES.iter().position(|known| *known == bare)?;
        u8::try_from(position).ok().map(Self)
    }

    /// Every capability this process could give away.
    pub fn all() -> BTreeSet<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or((1 << NAMES.len()) - 1);
        (0..64).filter(|bit| bounding & (1 << bit) != 0).map(Self).collect()
    }
}

/// The set a container gets.
pub fn effective(wanted: &Capabilities, privileged: bool) -> Result<BTreeSet<Capability>> {
    let available = Capability::all();
    if privileged {
        return Ok(available);
    }
    let is_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut set: BTreeSet<Capability> = if is_all(&wanted.add) {
        available.clone()
    } else if is_all(&wanted.drop) {
        BTreeSet::new()
    } else {
        DEFAULT.iter().filter_map(|name| Capability::named(name)).collect()
    };
    let parse = |name: &String| {
        Capability::named(name).ok_or_else(|| RuntimeError::invalid(format!("unknown capability {name:?}")))
    };
    for name in wanted.drop.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        set.remove(&parse(name)?);
    }
    for name in wanted.add.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        set.insert(parse(name)?);
    }
    // What the node itself lacks cannot be given.
    set.retain(|capability| available.contains(capability));
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_follow_add_and_drop() {
        let set = |add: &[&str], drop: &[&str]| {
            let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
            let wanted = Capabilities {
                add: names(add),
                drop: names(drop),
            };
            effective(&wanted, false)
        };
        let has = |set: &BTreeSet<Capability>, name| set.contains(&Capability::named(name).unwrap());
        assert!(has(&set(&[], &[]).unwrap(), "CHOWN"));
        assert!(!has(&set(&[], &["chown"]).unwrap(), "CHOWN"));
        assert!(set(&[], &["ALL"]).unwrap().is_empty());
        let only = set(&["CAP_NET_BIND_SERVICE"], &["ALL"]).unwrap();
        assert_eq!(only.len(), 1);
        assert!(has(&only, "net_bind_service"));
        assert!(set(&["FLY"], &[]).is_err());
        assert!(!has(&set(&["ALL"], &["KILL"]).unwrap(), "KILL"));
    }
}
