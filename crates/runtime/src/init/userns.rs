//! A container's side of its Pod's user namespace.
//!
//! Files are mounted with the node's powers, because only those can show layers and volumes under other owners
//! ([`sys::map_ids`]); then the process enters the namespace, and its mounts become a copy that belongs to it. The
//! process namespace stays the node's property: who wants to mount `/proc` anew makes a namespace of their own, as
//! containers in containers do anyway.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{Result, doing};
use crate::spec::ProcessSpec;
use crate::sys;
use crate::types::UserNamespace;

/// A user namespace that is going to be entered.
pub struct Users {
    config: UserNamespace,
    namespace: OwnedFd,
}

impl Users {
    /// While the node's files can still be seen.
    pub fn open(process: &ProcessSpec) -> Result<Option<Self>> {
        let Some(config) = &process.users else { return Ok(None) };
        let opened = File::open(&config.path);
        let opened = opened.map_err(doing(format!("open user namespace {}", config.path.display())))?;
        Ok(Some(Self {
            config: config.clone(),
            namespace: opened.into(),
        }))
    }

    /// The namespace.
    pub fn namespace(&self) -> &OwnedFd {
        &self.namespace
    }

    /// The node's id of a user or group inside.
    pub fn outside(&self, id: u32) -> u32 {
        self.config.outside(id)
    }

    /// Shows a detached mount with owners inside the namespace. Owners that are not there show as nobody.
    pub fn map(&self, mount: &OwnedFd, recursive: bool, what: &Path) -> Result<()> {
        let mapped = sys::map_ids(mount.as_fd(), self.namespace.as_fd(), recursive);
        mapped.map_err(|errno| match errno {
            Errno::EINVAL => super::Failure(format!(
                "{} cannot be mounted for a user namespace: its file system has no id-mapped mounts",
                what.display()
            )),
            errno => doing(format!("map the owners of {}", what.display()))(errno),
        })
    }

    /// Becomes root of the namespace. The first process of a container makes the mounts the namespace's.
    pub fn enter(self, first: bool) -> Result<()> {
        enter(&self.namespace)?;
        if first {
            unshare(CloneFlags::CLONE_NEWNS).map_err(doing("make a mount namespace"))?;
        }
        Ok(())
    }
}

/// Becomes root of a user namespace, with all of its powers and no other.
pub fn enter(namespace: &OwnedFd) -> Result<()> {
    let doing_so = || doing("enter the user namespace");
    setns(namespace, CloneFlags::CLONE_NEWUSER).map_err(doing_so())?;
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).map_err(doing_so())?;
    setresgid(group, group, group).map_err(doing_so())?;
    setresuid(root, root, root).map_err(doing_so())
}
