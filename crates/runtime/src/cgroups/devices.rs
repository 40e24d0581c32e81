//! Which devices a container may use: the `devices` controller in version 1, a small program attached
//! to the group in version 2 (which has no such controller).

use std::fs::File;
use std::os::fd::AsFd;

use super::{Cgroups, Result, at, put};
use crate::sys::{self, Bpf};
use crate::types::CgroupVersion;

/// One permission. `None` is any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// `c` or `b`; `a` is both.
    pub kind: char,
    pub major: Option<u64>,
    pub minor: Option<u64>,
    /// Some of `rwm`.
    pub access: String,
}

impl DeviceRule {
    /// A rule of its parts.
    pub fn new(kind: char, major: Option<u64>, minor: Option<u64>, access: &str) -> Self {
        Self {
            kind,
            major,
            minor,
            access: access.into(),
        }
    }

    /// What every container may: make any node, use the harmless ones and terminals.
    pub fn usual() -> Vec<Self> {
        let mut rules = vec![Self::new('c', None, None, "m"), Self::new('b', None, None, "m")];
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
            rules.push(Self::new('c', Some(major), Some(minor), "rwm"));
        }
        rules.push(Self::new('c', Some(136), None, "rwm"));
        rules
    }
}

impl Cgroups {
    /// Forbids all devices but those of `rules`.
    pub fn restrict_devices(&self, group: &str, rules: &[DeviceRule]) -> Result<()> {
        let Some(dir) = self.dir("devices", group)? else {
            return Ok(());
        };
        match self.version {
            CgroupVersion::V1 => {
                put(&dir.join("devices.deny"), "a")?;
                for rule in rules {
                    let part = |n: Option<u64>| n.map_or("*".into(), |n| n.to_string());
                    let (major, minor) = (part(rule.major), part(rule.minor));
                    let line = format!("{} {major}:{minor} {}", rule.kind, rule.access);
                    put(&dir.join("devices.allow"), &line)?;
                }
                Ok(())
            }
            CgroupVersion::V2 => {
                let group = File::open(&dir).map_err(at(&dir))?;
                sys::attach_device_program(group.as_fd(), &program(rules)).map_err(|errno| at(&dir)(errno.into()))
            }
        }
    }
}

/// The program: for each rule compare type, access, major and minor; allow if all fit; else refuse.
fn program(rules: &[DeviceRule]) -> Vec<Bpf> {
    const MOVE: u8 = 0xbf; // r = r
    const MOVE_VALUE: u8 = 0xb7; // r = value
    const LOAD: u8 = 0x61; // r = *(u32 *)(r + offset)
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let insn = |code: u8, to: u8, from: u8, offset: i16, value: i32| Bpf {
        code,
        registers: to | (from << 4),
        offset,
        value,
    };
    // r2 type, r3 access, r4 major, r5 minor; the context is in r1.
    let mut program = vec![
        insn(LOAD, 2, 1, 0, 0),
        insn(AND, 2, 0, 0, 0xffff),
        insn(LOAD, 3, 1, 0, 0),
        insn(SHIFT_RIGHT, 3, 0, 0, 16),
        insn(LOAD, 4, 1, 4, 0),
        insn(LOAD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut tests = Vec::new();
        match rule.kind {
            'b' => tests.push((2, 1)),
            'c' => tests.push((2, 2)),
            _ => {}
        }
        let mut block = Vec::new();
        let bits = [('m', 1), ('r', 2), ('w', 4)];
        let allowed: i32 = bits.iter().filter(|(c, _)| rule.access.contains(*c)).map(|b| b.1).sum();
        // Nothing may be asked beyond what is allowed: access & !allowed must be zero.
        block.push(insn(MOVE, 6, 3, 0, 0));
        block.push(insn(AND, 6, 0, 0, !allowed & 7));
        tests.push((6, 0));
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number.and_then(|n| i32::try_from(n).ok()) {
                tests.push((register, number));
            }
        }
        let count = tests.len();
        for (index, (register, value)) in tests.into_iter().enumerate() {
            // Past the remaining tests and the two instructions that allow.
            let past = i16::try_from(count - index - 1 + 2).unwrap_or(i16::MAX);
            block.push(insn(JUMP_NOT_EQUAL, register, 0, past, value));
        }
        block.push(insn(MOVE_VALUE, 0, 0, 0, 1));
        block.push(insn(EXIT, 0, 0, 0, 0));
        program.extend(block);
    }
    program.push(insn(MOVE_VALUE, 0, 0, 0, 0));
    program.push(insn(EXIT, 0, 0, 0, 0));
    program
}
