//! What the machine is and has: read from /proc, /sys and the file system. Parsing is pure.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    pub available: u64,
}

/// A file system's room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub total: u64,
    pub used: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Disk {
    /// What can be used at all. A file system may keep a part of itself back, which is neither used nor available:
    /// counting it as used, as upstream does, sees a full disk where there is none.
    pub fn usable(&self) -> u64 {
        self.used.saturating_add(self.available)
    }
}

/// Processes now and at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    pub used: u64,
    pub max: u64,
}

pub fn parse_meminfo(text: &str) -> Memory {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib.saturating_mul(1024))
    };
    Memory {
        total: field("MemTotal"),
        available: field("MemAvailable"),
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

pub fn memory() -> Memory {
    parse_meminfo(&read("/proc/meminfo"))
}

pub fn disk(path: &Path) -> Option<Disk> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size();
    Some(Disk {
        total: stat.blocks().saturating_mul(unit),
        used: stat.blocks().saturating_sub(stat.blocks_free()).saturating_mul(unit),
        available: stat.blocks_available().saturating_mul(unit),
        inodes: stat.files(),
        inodes_free: stat.files_available(),
    })
}

pub fn pids() -> Pids {
    let max = read("/proc/sys/kernel/pid_max").parse().unwrap_or(0);
    let threads: u64 = read("/proc/sys/kernel/threads-max").parse().unwrap_or(max);
    // `a/b` in the fourth field: b is how many there are.
    let used = read("/proc/loadavg")
        .split_whitespace()
        .nth(3)
        .and_then(|field| field.split_once('/')?.1.parse().ok())
        .unwrap_or(0);
    Pids {
        used,
        max: max.min(threads),
    }
}

pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Seconds of CPU all processes have used, from the first line of /proc/stat.
pub fn parse_cpu_seconds(stat: &str) -> f64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, irq, softirq, steal; not idle and not waiting.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
    busy as f64 / 100.0
}

pub fn cpu_seconds() -> f64 {
    parse_cpu_seconds(&read("/proc/stat"))
}

/// Reserved huge pages by size in bytes.
pub fn hugepages() -> BTreeMap<u64, u64> {
    let mut out = BTreeMap::new();
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else {
        return out;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let size = name
            .to_str()
            .and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
        let Some(size) = size else { continue };
        let count: u64 = read(entry.path().join("nr_hugepages")).parse().unwrap_or(0);
        out.insert(size * 1024, count);
    }
    out
}

fn size_name(bytes: u64) -> String {
    match bytes {
        b if b % (1 << 30) == 0 => format!("{}Gi", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}Mi", b >> 20),
        b => format!("{}Ki", b >> 10),
    }
}

type Amounts = BTreeMap<String, Quantity>;

/// What is kept back from Pods: the memory and disk at which eviction begins.
pub const RESERVED_MEMORY: u64 = 100 << 20;

/// Capacity and what Pods may use of it.
pub fn resources(
    cpus: usize,
    memory: Memory,
    disk: Disk,
    hugepages: &BTreeMap<u64, u64>,
    max_pods: u32,
) -> (Amounts, Amounts) {
    let kib = |bytes: u64| Quantity(format!("{}Ki", bytes >> 10));
    let mut capacity: Amounts = [
        ("cpu".to_owned(), Quantity(cpus.to_string())),
        ("memory".to_owned(), kib(memory.total)),
        ("ephemeral-storage".to_owned(), kib(disk.total)),
        ("pods".to_owned(), Quantity(max_pods.to_string())),
    ]
    .into();
    let mut allocatable = capacity.clone();
    let mut in_pages = 0u64;
    for (size, count) in hugepages {
        let name = format!("hugepages-{}", size_name(*size));
        let bytes = size.saturating_mul(*count);
        in_pages = in_pages.saturating_add(bytes);
        let amount = if bytes == 0 {
            Quantity("0".into())
        } else {
            Quantity(size_name(bytes))
        };
        capacity.insert(name.clone(), amount.clone());
        allocatable.insert(name, amount);
    }
    let usable = memory.total.saturating_sub(RESERVED_MEMORY).saturating_sub(in_pages);
    allocatable.insert("memory".into(), kib(usable));
    let usable = disk.total / 10 * 9;
    allocatable.insert("ephemeral-storage".into(), Quantity(usable.to_string()));
    (capacity, allocatable)
}

/// The identity of the machine and its system.
pub fn info(version: &str, runtime_version: &str) -> NodeSystemInfo {
    let uname = nix::sys::utsname::uname();
    let kernel = uname
        .as_ref()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let os = read("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_else(|| "Linux".into());
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime_version.to_owned(),
        kernel_version: kernel,
        kube_proxy_version: String::new(),
        kubelet_version: version.to_owned(),
        machine_id: read("/etc/machine-id"),
        operating_system: "linux".into(),
        os_image: os,
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        ..NodeSystemInfo::default()
    }
}

/// As Kubernetes names architectures.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_parsed() {
        let memory = parse_meminfo("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\n");
        assert_eq!((memory.total, memory.available), (1_024_000, 614_400));
        assert_eq!(parse_meminfo("nonsense"), Memory::default());
        let busy = parse_cpu_seconds("cpu  100 0 200 5000 50 0 100 0 0 0\ncpu0 1\n");
        assert!((busy - 4.0).abs() < 1e-9);
        assert!(memory_is_plausible());
    }

    fn memory_is_plausible() -> bool {
        let memory = memory();
        memory.total > 0 && memory.available <= memory.total && pids().max > 0
    }

    #[test]
    fn capacity_and_allocatable() {
        let memory = Memory {
            total: 1 << 30,
            available: 0,
        };
        let disk = Disk {
            total: 10 << 30,
            ..Disk::default()
        };
        let pages = BTreeMap::from([(2 << 20, 2u64), (1 << 30, 0)]);
        let (capacity, allocatable) = resources(4, memory, disk, &pages, 110);
        let text = |amounts: &Amounts, name: &str| amounts[name].0.clone();
        assert_eq!(text(&capacity, "cpu"), "4");
        assert_eq!(text(&capacity, "memory"), "1048576Ki");
        assert_eq!(text(&capacity, "hugepages-2Mi"), "4Mi");
        assert_eq!(text(&capacity, "hugepages-1Gi"), "0");
        assert_eq!(text(&allocatable, "memory"), format!("{}Ki", 1048576 - 102400 - 4096));
        assert_eq!(text(&allocatable, "pods"), "110");
    }
}
