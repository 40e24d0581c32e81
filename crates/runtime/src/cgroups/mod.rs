//! Control groups, both layouts: make, enter, limit, read, kill, remove.
//!
//! A group is a path like `/kubepods/burstable/podX/container`. Version 2 has one directory for it;
//! version 1 (and a hybrid machine, whose controllers are in version 1) one per controller. The shape
//! is found once, from the mount table. Written here and not taken from libcgroups because that wants
//! systemd or a container's specification at every turn, and what is needed is files.
//!
//! Invariants: a group's name has no `..`; removing what is gone succeeds; limits are written in an
//! order the kernel accepts whether they grow or shrink.

mod devices;
mod limits;
mod stats;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use devices::DeviceRule;
pub use stats::Usage;

use crate::types::CgroupVersion;

/// Controllers containers are accounted by.
const V1_CONTROLLERS: [&str; 8] = [
    "cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "blkio", "hugetlb",
];
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file could not be read or written.
    #[error("control group file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No usable layout.
    #[error("{0}")]
    Unusable(String),
    /// The name leads elsewhere.
    #[error("control group name {0:?} is not absolute or contains \"..\"")]
    Name(String),
}

type Result<T, E = CgroupError> = std::result::Result<T, E>;

fn at(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_path_buf();
    move |source| CgroupError::File { path, source }
}

fn put(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(at(path))
}

/// The machine's control groups.
#[derive(Clone, Debug)]
pub struct Cgroups {
    version: CgroupVersion,
    /// v1: controller to mount point. v2: only `""`.
    mounts: BTreeMap<String, PathBuf>,
}

impl Cgroups {
    /// Looks at what is mounted.
    pub fn detect() -> Result<Self> {
        Self::detect_as(None)
    }

    /// The same, but insists on a layout where both are mounted.
    pub fn detect_as(wanted: Option<CgroupVersion>) -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let table = fs::read_to_string(path).map_err(at(path))?;
        Self::from_mounts(&table, wanted)
    }

    fn from_mounts(table: &str, wanted: Option<CgroupVersion>) -> Result<Self> {
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in table.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = mount.split(' ').nth(4) else {
                continue;
            };
            let mut kind = kind.split(' ');
            match kind.next() {
                Some("cgroup") => {
                    for option in kind.nth(1).unwrap_or_default().split(',') {
                        if V1_CONTROLLERS.contains(&option) {
                            v1.entry(option.to_owned()).or_insert_with(|| PathBuf::from(point));
                        }
                    }
                }
                Some("cgroup2") => v2 = v2.or_else(|| Some(PathBuf::from(point))),
                _ => {}
            }
        }
        let has_v1 = v1.contains_key("memory") || v1.contains_key("cpu");
        let version = match has_v1 {
            true => CgroupVersion::V1,
            false => CgroupVersion::V2,
        };
        if wanted.unwrap_or(version) == CgroupVersion::V1 {
            for needed in ["cpu", "cpuacct", "memory", "pids", "devices"] {
                if !v1.contains_key(needed) {
                    return Err(CgroupError::Unusable(format!(
                        "control group controller {needed} is not mounted; containers need it"
                    )));
                }
            }
            return Ok(Self {
                version: CgroupVersion::V1,
                mounts: v1,
            });
        }
        let root = v2.ok_or_else(|| {
            CgroupError::Unusable("no control groups are mounted; mount cgroup2 at /sys/fs/cgroup".into())
        })?;
        Ok(Self {
            version: CgroupVersion::V2,
            mounts: BTreeMap::from([(String::new(), root)]),
        })
    }

    /// Which layout.
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    fn relative(group: &str) -> Result<PathBuf> {
        let path = Path::new(group);
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::RootDir);
        if !path.is_absolute() || !path.components().all(plain) {
            return Err(CgroupError::Name(group.into()));
        }
        Ok(path.strip_prefix("/").unwrap_or(path).into())
    }

    /// The group's directory of each controller; in v2 one.
    pub fn dirs(&self, group: &str) -> Result<Vec<(String, PathBuf)>> {
        let relative = Self::relative(group)?;
        let mut dirs: Vec<(String, PathBuf)> = Vec::new();
        for (controller, mount) in &self.mounts {
            let dir = mount.join(&relative);
            if !dirs.iter().any(|(_, known)| *known == dir) {
                dirs.push((controller.clone(), dir));
            }
        }
        Ok(dirs)
    }

    fn dir(&self, controller: &str, group: &str) -> Result<Option<PathBuf>> {
        let relative = Self::relative(group)?;
        let key = match self.version {
            CgroupVersion::V1 => controller,
            CgroupVersion::V2 => "",
        };
        Ok(self.mounts.get(key).map(|mount| mount.join(relative)))
    }

    /// The file that counts kills for lack of memory.
    pub fn oom_file(&self, group: &str) -> Result<Option<PathBuf>> {
        let name = match self.version {
            CgroupVersion::V1 => "memory.oom_control",
            CgroupVersion::V2 => "memory.events",
        };
        Ok(self.dir("memory", group)?.map(|dir| dir.join(name)))
    }

    /// Whether processes can be counted and limited in the group.
    pub fn counts_processes(&self, group: &str) -> bool {
        self.dir("pids", group)
            .is_ok_and(|dir| dir.is_some_and(|dir| dir.join("pids.max").exists()))
    }

    /// Whether the group exists.
    pub fn exists(&self, group: &str) -> bool {
        self.dir("memory", group)
            .is_ok_and(|dir| dir.is_some_and(|dir| dir.is_dir()))
    }

    /// Makes the group and those above it, ready to hold processes and limits.
    pub fn create(&self, group: &str) -> Result<()> {
        let relative = Self::relative(group)?;
        for mount in self.mounts.values() {
            let mut dir = mount.clone();
            for part in &relative {
                if self.version == CgroupVersion::V2 {
                    self.enable_controllers(&dir)?;
                }
                let above = dir.clone();
                dir.push(part);
                match fs::create_dir(&dir) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(at(&dir)(error));
                    }
                    _ => {}
                }
                if self.version == CgroupVersion::V1 {
                    inherit_cpuset(&above, &dir)?;
                }
            }
        }
        Ok(())
    }

    /// v2: gives what lies below `dir` the controllers it may have.
    fn enable_controllers(&self, dir: &Path) -> Result<()> {
        let available = dir.join("cgroup.controllers");
        let available = fs::read_to_string(&available).map_err(at(&available))?;
        let control = dir.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control).map_err(at(&control))?;
        for controller in available.split_whitespace() {
            let known = V2_CONTROLLERS.contains(&controller);
            if !known || enabled.split_whitespace().any(|name| name == controller) {
                continue;
            }
            match put(&control, &format!("+{controller}")) {
                Err(error) if ["cpu", "memory", "pids"].contains(&controller) => return Err(error),
                // Limits of the others fail by themselves where they are asked for.
                Err(error) => tracing::debug!(%error, controller, "controller stays off"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Kills what is in the group and removes it with all below. Succeeds if it is gone.
    pub fn remove(&self, group: &str) -> Result<()> {
        for (_, dir) in self.dirs(group)? {
            remove_tree(&dir)?;
        }
        Ok(())
    }

    /// Ids of all processes in the group and below.
    pub fn processes(&self, group: &str) -> Result<Vec<i32>> {
        let dir = self.dir("pids", group)?;
        Ok(dir.map(|dir| processes(&dir)).unwrap_or_default())
    }

    /// Kills every process in the group.
    pub fn kill(&self, group: &str) -> Result<()> {
        if let Some((_, dir)) = self.dirs(group)?.into_iter().next() {
            kill_all(&dir);
        }
        Ok(())
    }
}

/// v1: a new cpuset group is unusable until it has CPUs and memory nodes.
fn inherit_cpuset(above: &Path, dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        let Ok(current) = fs::read_to_string(&file) else {
            continue; // another controller's directory
        };
        if current.trim().is_empty() {
            let from = above.join(name);
            let value = fs::read_to_string(&from).map_err(at(&from))?;
            put(&file, value.trim())?;
        }
    }
    Ok(())
}

fn processes(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(dir) {
        found.extend(processes(&child));
    }
    found
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Kills every process in a group's directory and below, until none is left or they resist.
pub fn kill_all(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // v1 has no such file: whoever forks faster than this is caught the next time round.
    for _ in 0..50 {
        let found = processes(dir);
        if found.is_empty() {
            return;
        }
        for pid in found.iter().filter(|pid| **pid > 0) {
            match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => tracing::warn!(pid, %error, "kill a process of a control group"),
            }
        }
        let zombies_only = found.iter().all(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with(['Z', 'X']))
        });
        if zombies_only {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn remove_tree(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for child in children(dir) {
        remove_tree(&child)?;
    }
    // A killed process leaves its group a moment after the kill.
    for attempt in 0.. {
        match fs::remove_dir(dir) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < 200 => {
                if attempt % 20 == 0 {
                    kill_all(dir);
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => return Err(at(dir)(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
