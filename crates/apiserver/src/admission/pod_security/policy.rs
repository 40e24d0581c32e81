//! Which standard a namespace asks for: levels and versions in its labels.

use std::collections::BTreeMap;
use std::fmt;

use sampan_api::field::{Error, Errors, Path};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "privileged" => Level::Privileged,
            "baseline" => Level::Baseline,
            "restricted" => Level::Restricted,
            _ => return None,
        })
    }
}

/// The minor version of a standard; `None` is the latest.
pub type Version = Option<u32>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Privileged => "privileged:",
            Level::Baseline => "baseline:",
            Level::Restricted => "restricted:",
        })?;
        match self.version {
            None => f.write_str("latest"),
            Some(minor) => write!(f, "v1.{minor}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

const ANYTHING: Standard = Standard {
    level: Level::Privileged,
    version: None,
};
const LEVELS: &str = "must be one of privileged, baseline, restricted";
const VERSIONS: &str = "must be \"latest\" or \"v1.x\"";
const PREFIX: &str = "pod-security.kubernetes.io/";

impl Default for Policy {
    fn default() -> Self {
        Policy {
            enforce: ANYTHING,
            audit: ANYTHING,
            warn: ANYTHING,
        }
    }
}

fn version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(None);
    }
    let digits = text.strip_prefix("v1.")?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| plain).map(Some)
}

impl Policy {
    /// What a configuration says where labels say nothing, and what is wrong with it.
    pub fn of_defaults(given: &BTreeMap<String, String>) -> (Self, Errors) {
        let mut policy = Policy::default();
        let mut errors = Errors::new();
        let at = |name: &str| Path::new("defaults").child(name);
        for (name, text) in given {
            let (mode, is_version) = match name.strip_suffix("-version") {
                Some(mode) => (mode, true),
                None => (name.as_str(), false),
            };
            let standard = match mode {
                "enforce" => &mut policy.enforce,
                "audit" => &mut policy.audit,
                "warn" => &mut policy.warn,
                _ => {
                    errors.push(Error::invalid(&at(name), text.as_str(), "unknown field"));
                    continue;
                }
            };
            if text.is_empty() {
                continue;
            }
            match (is_version, version(text), Level::parse(text)) {
                (true, Some(version), _) => standard.version = version,
                (true, None, _) => errors.push(Error::invalid(&at(name), text.as_str(), VERSIONS)),
                (false, _, Some(level)) => standard.level = level,
                (false, ..) => errors.push(Error::invalid(&at(name), text.as_str(), LEVELS)),
            }
        }
        (policy, errors)
    }

    /// What the labels ask for, and what is wrong with them. What cannot be read is enforced as `restricted`, and
    /// neither audited nor warned of.
    pub fn of<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>, defaults: Policy) -> (Self, Errors) {
        let mut policy = defaults;
        let mut errors = Errors::new();
        let known: Vec<(&str, &str)> = labels
            .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)))
            .collect();
        if known.is_empty() {
            return (policy, errors);
        }
        let get = |name: &str| known.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let mut wrong = |name: &str, value: &str, why: &str| {
            let path = Path::new("metadata").child("labels").key(&format!("{PREFIX}{name}"));
            errors.push(Error::invalid(&path, value, why));
        };
        let mut enforced = false;
        for (mode, standard, fallback) in [
            ("enforce", &mut policy.enforce, Level::Restricted),
            ("audit", &mut policy.audit, Level::Privileged),
            ("warn", &mut policy.warn, Level::Privileged),
        ] {
            if let Some(text) = get(mode) {
                let level = Level::parse(text);
                if level.is_none() {
                    wrong(mode, text, LEVELS);
                } else if mode == "enforce" {
                    enforced = true;
                }
                standard.level = level.unwrap_or(fallback);
            }
            let mode = format!("{mode}-version");
            if let Some(text) = get(&mode) {
                let version = version(text);
                if version.is_none() {
                    wrong(&mode, text, VERSIONS);
                }
                standard.version = version.unwrap_or(None);
            }
        }
        // Who enforces warns as well, unless the labels say otherwise.
        if get("warn").is_none() && enforced && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if get("warn-version").is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }

    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn]
            .iter()
            .all(|standard| standard.level == Level::Privileged)
    }

    /// Whether both come to the same.
    pub fn same_as(&self, other: &Self) -> bool {
        let same = |a: Standard, b: Standard| a == b || (a.level == Level::Privileged && b.level == Level::Privileged);
        same(self.enforce, other.enforce) && same(self.audit, other.audit) && same(self.warn, other.warn)
    }

    /// `enforce=baseline:latest, warn=…`: the modes that labels set to more than nothing.
    pub fn stated<'a>(&self, labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
        let keys: Vec<&str> = labels.filter_map(|(key, _)| key.strip_prefix(PREFIX)).collect();
        let parts: Vec<String> = [("enforce", self.enforce), ("audit", self.audit), ("warn", self.warn)]
            .into_iter()
            .filter(|(mode, standard)| {
                standard.level != Level::Privileged
                    && keys
                        .iter()
                        .any(|key| *key == *mode || key.strip_suffix("-version") == Some(mode))
            })
            .map(|(mode, standard)| format!("{mode}={standard}"))
            .collect();
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read() {
        let of = |labels: &[(&'static str, &'static str)]| {
            let full: Vec<(String, &str)> = labels.iter().map(|(k, v)| (format!("{PREFIX}{k}"), *v)).collect();
            let (policy, errors) = Policy::of(full.iter().map(|(k, v)| (k.as_str(), *v)), Policy::default());
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            (format!("{} {} {}", policy.enforce, policy.audit, policy.warn), errors)
        };
        type Case = (
            &'static [(&'static str, &'static str)],
            &'static str,
            &'static [&'static str],
        );
        let cases: [Case; 6] = [
            (&[], "privileged:latest privileged:latest privileged:latest", &[]),
            (
                &[("enforce", "baseline"), ("enforce-version", "v1.30")],
                "baseline:v1.30 privileged:latest baseline:v1.30",
                &[],
            ),
            (
                &[("enforce", "restricted"), ("warn", "privileged")],
                "restricted:latest privileged:latest privileged:latest",
                &[],
            ),
            (
                &[("enforce", "nonsense")],
                "restricted:latest privileged:latest privileged:latest",
                &[
                    "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"nonsense\": must be one of privileged, baseline, restricted",
                ],
            ),
            (
                &[("audit", "x"), ("warn-version", "v1.09")],
                "privileged:latest privileged:latest privileged:latest",
                &[
                    "metadata.labels[pod-security.kubernetes.io/audit]: Invalid value: \"x\": must be one of privileged, baseline, restricted",
                    "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"v1.09\": must be \"latest\" or \"v1.x\"",
                ],
            ),
            (
                &[("enforce", "baseline"), ("warn-version", "v1.20")],
                "baseline:latest privileged:latest baseline:v1.20",
                &[],
            ),
        ];
        for (labels, policy, errors) in cases {
            let (got, wrong) = of(labels);
            assert_eq!(got, policy, "{labels:?}");
            assert_eq!(wrong, errors, "{labels:?}");
        }
    }
}
