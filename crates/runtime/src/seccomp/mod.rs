//! Filtering system calls: the engine's default profile and profiles in OCI JSON.
//!
//! Profiles become a program for the kernel on the server's side; the process that becomes the
//! container only loads the bytes. A crate was set aside for three reasons: it loads filters only
//! together with `no_new_privs` (which would break set-user-id programs in containers that may use
//! them), it knows one action besides the default (the default profile needs two error numbers), and
//! the kernel's interface is small.
//!
//! When the filter is loaded decides what it may forbid. With `no_new_privs` it is the very last step
//! before `execve`. Without, loading needs `CAP_SYS_ADMIN`, so it happens before capabilities and
//! user are given up; the few calls after it (capset, setresuid, …) are allowed by every sensible
//! profile, as with other runtimes.

mod bpf;
mod default;
mod table;

use std::collections::BTreeSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

pub use bpf::Instruction;

use crate::caps::Capability;

/// What the kernel does with a call.
pub mod action {
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x0003_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
}

/// A comparison of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Equal(u64),
    NotEqual(u64),
    MaskedEqual { mask: u64, value: u64 },
    Greater(u64),
    AtLeast(u64),
    Less(u64),
    AtMost(u64),
}

/// What to do with one call, if all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub number: u32,
    pub action: u32,
    /// Argument index and comparison.
    pub conditions: Vec<(u32, Compare)>,
}

/// A program ready to load; stored as base64 of the kernel's layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(pub Vec<Instruction>);

/// A profile that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not the JSON of a profile.
    #[error("the seccomp profile cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// It says something unknown.
    #[error("the seccomp profile is invalid: {0}")]
    Invalid(String),
}

impl Filter {
    /// The default profile for a process with these capabilities.
    pub fn runtime_default(capabilities: &BTreeSet<Capability>) -> Self {
        Self(bpf::assemble(default::OTHERWISE, &default::rules(capabilities)))
    }

    /// A profile in OCI JSON.
    pub fn from_json(text: &[u8]) -> Result<Self, ProfileError> {
        let profile: Profile = serde_json::from_slice(text)?;
        let default = action_of(&profile.default_action, profile.default_errno_ret)?;
        let mut rules = Vec::new();
        for entry in &profile.syscalls {
            let action = action_of(&entry.action, entry.errno_ret)?;
            let conditions = conditions_of(&entry.args)?;
            // Calls of other architectures or newer kernels cannot be made here.
            for number in entry.names.iter().filter_map(|name| table::number(name)) {
                for conditions in &conditions {
                    rules.push(Rule {
                        number,
                        action,
                        conditions: conditions.clone(),
                    });
                }
            }
        }
        Ok(Self(bpf::assemble(default, &rules)))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

fn action_of(name: &str, errno: Option<u32>) -> Result<u32, ProfileError> {
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs()) & 0xffff;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => action::KILL_PROCESS,
        "SCMP_ACT_TRAP" => action::TRAP,
        "SCMP_ACT_ERRNO" => action::ERRNO | errno,
        "SCMP_ACT_TRACE" => action::TRACE | errno,
        "SCMP_ACT_LOG" => action::LOG,
        "SCMP_ACT_ALLOW" => action::ALLOW,
        other => return Err(ProfileError::Invalid(format!("unknown action {other:?}"))),
    })
}

/// Conditions of a rule; several on one argument are alternatives, as other runtimes read them.
fn conditions_of(args: &[Argument]) -> Result<Vec<Vec<(u32, Compare)>>, ProfileError> {
    let mut all = Vec::new();
    for arg in args {
        if arg.index > 5 {
            let why = format!("argument {} does not exist", arg.index);
            return Err(ProfileError::Invalid(why));
        }
        let compare = match arg.op.as_str() {
            "SCMP_CMP_EQ" => Compare::Equal(arg.value),
            "SCMP_CMP_NE" => Compare::NotEqual(arg.value),
            "SCMP_CMP_MASKED_EQ" => Compare::MaskedEqual {
                mask: arg.value,
                value: arg.value_two,
            },
            "SCMP_CMP_GT" => Compare::Greater(arg.value),
            "SCMP_CMP_GE" => Compare::AtLeast(arg.value),
            "SCMP_CMP_LT" => Compare::Less(arg.value),
            "SCMP_CMP_LE" => Compare::AtMost(arg.value),
            other => return Err(ProfileError::Invalid(format!("unknown comparison {other:?}"))),
        };
        all.push((arg.index, compare));
    }
    let indexes: BTreeSet<u32> = all.iter().map(|(index, _)| *index).collect();
    if indexes.len() < all.len() {
        return Ok(all.into_iter().map(|condition| vec![condition]).collect());
    }
    Ok(vec![all])
}

impl Serialize for Filter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(self.0.len() * 8);
        for i in &self.0 {
            bytes.extend(i.code.to_ne_bytes());
            bytes.extend([i.jump_true, i.jump_false]);
            bytes.extend(i.operand.to_ne_bytes());
        }
        serializer.serialize_str(&BASE64_STANDARD_NO_PAD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD_NO_PAD.decode(text).map_err(serde::de::Error::custom)?;
        let (chunks, _) = bytes.as_chunks::<8>();
        let instructions = chunks.iter().map(|&[a, b, t, f, w, x, y, z]| Instruction {
            code: u16::from_ne_bytes([a, b]),
            jump_true: t,
            jump_false: f,
            operand: u32::from_ne_bytes([w, x, y, z]),
        });
        Ok(Self(instructions.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
        bpf::run(&filter.0, table::number(name).unwrap(), args)
    }

    #[test]
    fn the_default_profile_allows_ordinary_work_and_refuses_the_rest() {
        let none = Filter::runtime_default(&BTreeSet::new());
        let refused = action::ERRNO | libc::EPERM as u32;
        for name in ["read", "openat", "execve", "futex", "clone", "socket", "statx", "mmap"] {
            assert_eq!(call(&none, name, [0; 6]), action::ALLOW, "{name}");
        }
        for name in [
            "mount",
            "unshare",
            "bpf",
            "kexec_load",
            "keyctl",
            "setns",
            "reboot",
            "io_uring_setup",
        ] {
            assert_eq!(call(&none, name, [0; 6]), refused, "{name}");
        }
        let new_user = [0x1000_0000, 0, 0, 0, 0, 0];
        assert_eq!(call(&none, "clone", new_user), refused);
        // C libraries fall back to clone when clone3 does not exist, not when it is forbidden.
        assert_eq!(call(&none, "clone3", [0; 6]), action::ERRNO | libc::ENOSYS as u32);
        assert_eq!(call(&none, "socket", [40, 0, 0, 0, 0, 0]), refused);
        assert_eq!(call(&none, "personality", [0xffff_ffff, 0, 0, 0, 0, 0]), action::ALLOW);
        assert_eq!(call(&none, "personality", [0x40000, 0, 0, 0, 0, 0]), refused);
        assert_eq!(bpf::run(&none.0, 0x4000_0000, [0; 6]), refused, "x32");
    }

    #[test]
    fn capabilities_open_what_they_are_for() {
        let admin = BTreeSet::from([Capability::named("SYS_ADMIN").unwrap()]);
        let admin = Filter::runtime_default(&admin);
        for name in ["mount", "unshare", "setns", "clone3", "bpf"] {
            assert_eq!(call(&admin, name, [u64::MAX; 6]), action::ALLOW, "{name}");
        }
        let chroot = BTreeSet::from([Capability::named("CAP_SYS_CHROOT").unwrap()]);
        let chroot = Filter::runtime_default(&chroot);
        assert_eq!(call(&chroot, "chroot", [0; 6]), action::ALLOW);
        assert_ne!(call(&chroot, "mount", [0; 6]), action::ALLOW);
    }

    #[test]
    fn profiles_in_json_work_and_survive_being_stored() {
        let text = br#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
          "syscalls":[{"names":["mkdir","mkdirat","from_the_future"],"action":"SCMP_ACT_ERRNO","errnoRet":5},
          {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS",
           "args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"},{"index":1,"value":15,"op":"SCMP_CMP_EQ"}]}]}"#;
        let filter = Filter::from_json(text).unwrap();
        let stored = serde_json::to_string(&filter).unwrap();
        let filter: Filter = serde_json::from_str(&stored).unwrap();
        assert_eq!(call(&filter, "mkdirat", [0; 6]), action::ERRNO | 5);
        assert_eq!(call(&filter, "kill", [1, 9, 0, 0, 0, 0]), action::KILL_PROCESS);
        assert_eq!(call(&filter, "kill", [1, 15, 0, 0, 0, 0]), action::KILL_PROCESS);
        assert_eq!(call(&filter, "kill", [1, 1, 0, 0, 0, 0]), action::ALLOW);
        for bad in [&b"{}"[..], br#"{"defaultAction":"NO"}"#, b"x"] {
            assert!(Filter::from_json(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn comparisons_are_those_of_64_bit_numbers(a: u64, b: u64, near in 0..3_u64) {
            for (x, v) in [(a, b), (a, a.wrapping_add(near).wrapping_sub(1)), (a, a ^ (near << 32))] {
                let table = [
                    (Compare::Equal(v), x == v),
                    (Compare::NotEqual(v), x != v),
                    (Compare::MaskedEqual { mask: b, value: v }, x & b == v),
                    (Compare::Greater(v), x > v),
                    (Compare::AtLeast(v), x >= v),
                    (Compare::Less(v), x < v),
                    (Compare::AtMost(v), x <= v),
                ];
                for (compare, expected) in table {
                    let always = (0, Compare::Equal(7));
                    let rule = Rule { number: 1, action: action::ALLOW, conditions: vec![always, (3, compare), always] };
                    let program = bpf::assemble(0, &[rule]);
                    let result = bpf::run(&program, 1, [7, 0, 0, x, 0, 0]);
                    prop_assert_eq!(result == action::ALLOW, expected, "{:?} {}", compare, x);
                }
            }
        }
    }
}
