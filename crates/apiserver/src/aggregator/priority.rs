//! Where groups and versions stand in discovery.
//!
//! Clients take the first resource that fits a bare name, so the order is part of the interface. The figures are
//! upstream's.

use std::cmp::Ordering;

/// Of a group, and of a version within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    pub group: i64,
    pub version: i64,
}

/// Of custom resources: behind everything built in, versions by their names.
pub const CUSTOM: Priority = Priority {
    group: 1000,
    version: 100,
};

const GROUPS: &[(&str, i64)] = &[
    ("", 18000),
    ("admissionregistration.k8s.io", 16700),
    ("apiextensions.k8s.io", 16700),
    ("apiregistration.k8s.io", 20000),
    ("apps", 17800),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("coordination.k8s.io", 16500),
    ("discovery.k8s.io", 16200),
    ("events.k8s.io", 17750),
    ("flowcontrol.apiserver.k8s.io", 16100),
    ("internal.apiserver.k8s.io", 16000),
    ("metrics.k8s.io", 100),
    ("networking.k8s.io", 17200),
    ("node.k8s.io", 16300),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("resource.k8s.io", 16200),
    ("scheduling.k8s.io", 16600),
    ("storage.k8s.io", 16800),
    ("storagemigration.k8s.io", 15800),
];

/// Versions that do not have the usual 15 (`v1`) or 9.
const VERSIONS: &[(&str, &str, i64)] = &[
    ("", "v1", 1),
    ("admissionregistration.k8s.io", "v1beta1", 12),
    ("authentication.k8s.io", "v1alpha1", 1),
    ("autoscaling", "v2", 30),
    ("certificates.k8s.io", "v1alpha1", 1),
    ("coordination.k8s.io", "v1alpha2", 12),
    ("coordination.k8s.io", "v1beta1", 13),
    ("discovery.k8s.io", "v1beta1", 12),
    ("flowcontrol.apiserver.k8s.io", "v1", 21),
    ("metrics.k8s.io", "v1beta1", 100),
    ("resource.k8s.io", "v1", 21),
    ("resource.k8s.io", "v1alpha3", 1),
    ("resource.k8s.io", "v1beta2", 15),
    ("scheduling.k8s.io", "v1alpha2", 2),
    ("storage.k8s.io", "v1alpha1", 1),
];

/// Of a group version we answer ourselves.
pub fn of(group: &str, version: &str) -> Priority {
    let Some((_, own)) = GROUPS.iter().find(|(known, _)| *known == group) else {
        return CUSTOM;
    };
    let listed = VERSIONS
        .iter()
        .find(|(known, name, _)| (*known, *name) == (group, version))
        .map(|(.., priority)| *priority);
    Priority {
        group: *own,
        version: listed.unwrap_or(if version == "v1" { 15 } else { 9 }),
    }
}

/// The better version name first: stable before beta before alpha, then higher numbers, then anything else by name.
pub fn by_name(one: &str, other: &str) -> Ordering {
    let rank = |name: &str| -> Option<(u8, u64, u64)> {
        let rest = name.strip_prefix('v')?;
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        let number = |text: &str| text.parse::<u64>().ok().filter(|_| !text.starts_with('0'));
        let major = number(rest.get(..digits)?)?;
        let (stage, minor) = match rest.get(digits..)? {
            "" => (2, 0),
            tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                (Some(minor), _) => (1, number(minor)?),
                (_, Some(minor)) => (0, number(minor)?),
                _ => return None,
            },
        };
        Some((stage, major, minor))
    };
    match (rank(one), rank(other)) {
        (Some(one), Some(other)) => other.cmp(&one),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => one.cmp(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_by_name() {
        let mut names = [
            "v1alpha1", "v2", "v1beta2", "v10", "foo", "v1beta10", "v1", "bar", "v01",
        ];
        names.sort_by(|one, other| by_name(one, other));
        assert_eq!(
            names,
            [
                "v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "bar", "foo", "v01"
            ]
        );
    }

    #[test]
    fn what_is_built_in_comes_before_what_is_not() {
        assert!(of("apps", "v1").group > of("stable.example.com", "v1").group);
        assert_eq!(of("autoscaling", "v1").version, 15);
        assert_eq!(of("storage.k8s.io", "v1beta1").version, 9);
        // Every group that is served has its place.
        for row in sampan_kinds::resources() {
            assert_ne!(of(row.group, row.version), CUSTOM, "{}", row.group);
        }
    }
}
