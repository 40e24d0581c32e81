//! Writing limits, in the words of either layout.

use std::fs;
use std::path::Path;

use super::{CgroupError, Cgroups, Result, put};
use crate::types::{CgroupVersion, LinuxContainerResources};

/// Files of `unified` must be plain names in the group's own directory.
fn is_file_name(name: &str) -> bool {
    !name.contains('/') && name.contains('.') && !name.starts_with("cgroup.")
}

/// cgroup v1's CPU shares (2–262144) as a v2 weight (1–10000).
pub fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + ((shares - 2) * 9999) / 262_142
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

impl Cgroups {
    /// Applies the limits that are present.
    pub fn limit(&self, group: &str, limits: &LinuxContainerResources) -> Result<()> {
        match self.version {
            CgroupVersion::V1 => self.limit_v1(group, limits),
            CgroupVersion::V2 => self.limit_v2(group, limits),
        }
    }

    fn limit_v1(&self, group: &str, limits: &LinuxContainerResources) -> Result<()> {
        let write = |controller: &str, file: &str, value: String| -> Result<()> {
            let dir = self.dir(controller, group)?.ok_or_else(|| {
                CgroupError::Unusable(format!(
                    "limit {file} needs control group controller {controller}, which is not mounted"
                ))
            })?;
            put(&dir.join(file), &value)
        };
        if let Some(shares) = limits.cpu_shares.filter(|&shares| shares > 0) {
            write("cpu", "cpu.shares", shares.to_string())?;
        }
        let period = limits.cpu_period.filter(|&period| period > 0);
        let quota = limits.cpu_quota.filter(|&quota| quota != 0);
        // Quota over period must stay below the parent's at every step: a smaller quota goes first.
        let quota_file = self.dir("cpu", group)?.map(|dir| dir.join("cpu.cfs_quota_us"));
        let current: i64 = quota_file
            .and_then(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
            .unwrap_or(-1);
        let shrinks = quota.is_some_and(|new| new > 0 && (current < 0 || new < current));
        if let Some(quota) = quota.filter(|_| shrinks)
            && period.is_none()
        {
            write("cpu", "cpu.cfs_quota_us", quota.to_string())?;
        } else {
            if let Some(period) = period {
                write("cpu", "cpu.cfs_period_us", period.to_string())?;
            }
            if let Some(quota) = quota {
                write("cpu", "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        self.limit_memory_v1(group, limits)?;
        if let Some(pids) = limits.pids_limit.filter(|&pids| pids != 0) {
            write("pids", "pids.max", or_max(pids))?;
        }
        if let Some(cpus) = limits.cpuset_cpus.as_ref().filter(|cpus| !cpus.is_empty()) {
            write("cpuset", "cpuset.cpus", cpus.clone())?;
        }
        if let Some(mems) = limits.cpuset_mems.as_ref().filter(|mems| !mems.is_empty()) {
            write("cpuset", "cpuset.mems", mems.clone())?;
        }
        for page in &limits.hugepage_limits {
            let file = format!("hugetlb.{}.limit_in_bytes", page.page_size);
            // Without the controller huge pages cannot be limited, and a limit of none needs no file.
            if self.mounts.contains_key("hugetlb") || page.limit > 0 {
                write("hugetlb", &file, page.limit.to_string())?;
            }
        }
        Ok(())
    }

    fn limit_memory_v1(&self, group: &str, limits: &LinuxContainerResources) -> Result<()> {
        let Some(dir) = self.dir("memory", group)? else {
            return Ok(());
        };
        let memory = limits.memory_limit_in_bytes.filter(|&limit| limit != 0);
        let both_file = dir.join("memory.memsw.limit_in_bytes");
        // Absent where the kernel does not account swap.
        let both = limits
            .memory_swap_limit_in_bytes
            .filter(|&limit| limit != 0 && both_file.exists());
        let memory_file = dir.join("memory.limit_in_bytes");
        let set = |file: &Path, value: Option<i64>| match value {
            Some(value) => put(file, &value.to_string()),
            None => Ok(()),
        };
        // The two together may never be below memory alone: growing starts with the sum.
        let sum: u64 = fs::read_to_string(&both_file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(u64::MAX);
        let grows = memory.is_some_and(|new| new < 0 || new.unsigned_abs() > sum);
        if grows {
            set(&both_file, both)?;
            set(&memory_file, memory)
        } else {
            set(&memory_file, memory)?;
            set(&both_file, both)
        }
    }

    fn limit_v2(&self, group: &str, limits: &LinuxContainerResources) -> Result<()> {
        let Some(dir) = self.dir("", group)? else {
            return Ok(());
        };
        let write = |file: &str, value: String| put(&dir.join(file), &value);
        if let Some(shares) = limits.cpu_shares.filter(|&shares| shares > 0) {
            write("cpu.weight", weight(shares).to_string())?;
        }
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let current = fs::read_to_string(dir.join("cpu.max")).unwrap_or_default();
            let (quota, period) = current.trim().split_once(' ').unwrap_or(("max", "100000"));
            let quota = match limits.cpu_quota {
                Some(quota) if quota > 0 => quota.to_string(),
                Some(_) => "max".into(),
                None => quota.into(),
            };
            let period = limits.cpu_period.map_or(period.into(), |period| period.to_string());
            write("cpu.max", format!("{quota} {period}"))?;
        }
        if let Some(memory) = limits.memory_limit_in_bytes.filter(|&limit| limit != 0) {
            write("memory.max", or_max(memory))?;
            // v2 counts swap apart from memory; the configuration counts both together.
            let both = limits.memory_swap_limit_in_bytes.filter(|&limit| limit != 0);
            if let Some(both) = both
                && dir.join("memory.swap.max").exists()
            {
                let swap = if both < 0 || memory < 0 {
                    -1
                } else {
                    (both - memory).max(0)
                };
                write("memory.swap.max", or_max(swap))?;
            }
        }
        if let Some(pids) = limits.pids_limit.filter(|&pids| pids != 0) {
            write("pids.max", or_max(pids))?;
        }
        if let Some(cpus) = limits.cpuset_cpus.as_ref().filter(|cpus| !cpus.is_empty()) {
            write("cpuset.cpus", cpus.clone())?;
        }
        if let Some(mems) = limits.cpuset_mems.as_ref().filter(|mems| !mems.is_empty()) {
            write("cpuset.mems", mems.clone())?;
        }
        for page in &limits.hugepage_limits {
            let file = format!("hugetlb.{}.max", page.page_size);
            if dir.join(&file).exists() || page.limit > 0 {
                write(&file, page.limit.to_string())?;
            }
        }
        for (file, value) in &limits.unified {
            if !is_file_name(file) {
                return Err(CgroupError::Name(file.clone()));
            }
            write(file, value.clone())?;
        }
        Ok(())
    }
}
