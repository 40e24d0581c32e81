//! What processes cost, read from /proc: CPU-seconds used, memory now and at its peak.

use std::fs;
use std::io;

use crate::Result;

/// The processes of one control plane.
#[derive(Clone)]
pub struct Meter {
    pids: Vec<u32>,
}

/// A reading; differences of two are what a workload cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    pub cpu_seconds: f64,
    pub resident_mib: f64,
    pub peak_mib: f64,
}

/// /proc counts CPU in these; Linux fixes it for user space.
const TICKS_PER_SECOND: f64 = 100.0;

impl Meter {
    /// # Errors
    /// When a process does not exist.
    pub fn new(pids: &[u32]) -> Result<Self> {
        let meter = Meter { pids: pids.to_vec() };
        meter.read()?;
        Ok(meter)
    }

    pub fn is_blind(&self) -> bool {
        self.pids.is_empty()
    }

    /// Forgets earlier peaks, where the kernel lets us.
    pub fn reset_peak(&self) {
        for pid in &self.pids {
            if let Err(error) = fs::write(format!("/proc/{pid}/clear_refs"), "5") {
                eprintln!("cannot reset the peak of process {pid}: {error}; the peak shown is since its start");
            }
        }
    }

    /// Memory in MiB with pages that several processes share counted once: what the processes together take away
    /// from the machine.
    pub fn proportional_mib(&self) -> Result<f64> {
        let mut sum = 0.0;
        for pid in &self.pids {
            sum += proportional(*pid).map_err(|error| format!("cannot read process {pid}: {error}"))?;
        }
        Ok(sum)
    }

    pub fn read(&self) -> Result<Reading> {
        let mut sum = Reading::default();
        for pid in &self.pids {
            let one = read_one(*pid).map_err(|error| format!("cannot read process {pid}: {error}"))?;
            sum.cpu_seconds += one.cpu_seconds;
            sum.resident_mib += one.resident_mib;
            sum.peak_mib += one.peak_mib;
        }
        Ok(sum)
    }
}

fn proportional(pid: u32) -> io::Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(kib(&rollup, "Pss:") / 1024.0)
}

/// The value of a `KEY   1234 kB` line; nothing counts as none.
fn kib(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .unwrap_or(0.0)
}

fn read_one(pid: u32) -> io::Result<Reading> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name may hold anything, so count fields from its closing parenthesis.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Reading {
        cpu_seconds: (ticks(11) + ticks(12)) / TICKS_PER_SECOND,
        resident_mib: kib(&status, "VmRSS:") / 1024.0,
        peak_mib: kib(&status, "VmHWM:") / 1024.0,
    })
}
