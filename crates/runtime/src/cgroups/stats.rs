//! Reading what a group uses, in the words of either layout.

use std::fs;
use std::path::Path;

use super::{Cgroups, Result};
use crate::types::{CgroupVersion, CpuUsage, MemoryUsage};

/// What a group uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu: Option<CpuUsage>,
    pub memory: Option<MemoryUsage>,
    pub processes: u64,
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of `key` in a file of `key value` lines.
fn field(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

impl Cgroups {
    /// Reads the group's counters. Absent when the group is gone.
    pub fn usage(&self, group: &str) -> Result<Usage> {
        match self.version {
            CgroupVersion::V1 => self.usage_v1(group),
            CgroupVersion::V2 => self.usage_v2(group),
        }
    }

    fn usage_v1(&self, group: &str) -> Result<Usage> {
        let cpu = self
            .dir("cpuacct", group)?
            .and_then(|dir| number(&dir.join("cpuacct.usage")));
        let memory = self.dir("memory", group)?.and_then(|dir| {
            let usage = number(&dir.join("memory.usage_in_bytes"))?;
            let limit = number(&dir.join("memory.limit_in_bytes"));
            let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
            Some(memory_usage(usage, limit, |key| match key {
                "inactive_file" => field(&stat, "total_inactive_file"),
                "anon" => field(&stat, "total_rss"),
                "pgfault" => field(&stat, "total_pgfault"),
                _ => field(&stat, "total_pgmajfault"),
            }))
        });
        Ok(self.complete(group, cpu, memory))
    }

    fn usage_v2(&self, group: &str) -> Result<Usage> {
        let Some(dir) = self.dir("", group)? else {
            return Ok(Usage::default());
        };
        let cpu = fs::read_to_string(dir.join("cpu.stat")).ok();
        let cpu = cpu.map(|stat| field(&stat, "usage_usec") * 1000);
        let memory = number(&dir.join("memory.current")).and_then(|usage| {
            let limit = number(&dir.join("memory.max"));
            let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
            Some(memory_usage(usage, limit, |key| field(&stat, key)))
        });
        Ok(self.complete(group, cpu, memory))
    }

    fn complete(&self, group: &str, cpu: Option<u64>, memory: Option<MemoryUsage>) -> Usage {
        let pids = self.dir("pids", group).ok().flatten();
        Usage {
            cpu: cpu.map(|usage_core_nano_seconds| CpuUsage {
                usage_core_nano_seconds,
            }),
            memory,
            processes: pids.and_then(|dir| number(&dir.join("pids.current"))).unwrap_or(0),
        }
    }
}

/// `stat` answers by version 2's names.
fn memory_usage(usage: u64, limit: Option<u64>, stat: impl Fn(&str) -> u64) -> MemoryUsage {
    let working_set = usage.saturating_sub(stat("inactive_file"));
    // Version 1 says "no limit" with a number near the largest.
    let limit = limit.filter(|&limit| limit < 1 << 62);
    MemoryUsage {
        usage_bytes: usage,
        working_set_bytes: working_set,
        rss_bytes: stat("anon"),
        available_bytes: limit.map(|limit| limit.saturating_sub(working_set)),
        page_faults: stat("pgfault"),
        major_page_faults: stat("pgmajfault"),
    }
}
