//! Differences that are known, each with its reason. Everything else fails the comparison.

use super::Difference;

/// One row: the kind ("" for any), texts that must be in the mutant, upstream's answer and ours, and why this stays.
type Row = (&'static str, [&'static str; 3], &'static str);

const ROWS: &[Row] = &[
    (
        "",
        ["", ": Invalid value: {}: ", ": Invalid value: null: "],
        "a map that is given and empty is as good as none by the time it is checked; only the text of an error tells",
    ),
    (
        "PersistentVolume",
        ["spec.capacity", "Unsupported value: {}", "Unsupported value: null"],
        "a map that is given and empty is as good as none by the time it is checked; only the text of an error tells",
    ),
    (
        "",
        ["", ": Invalid value: []: ", ": Invalid value: null: "],
        "a list that is given and empty is as good as none by the time it is checked; only the text of an error tells",
    ),
    (
        "PersistentVolume",
        ["spec.nodeAffinity", "Values\":[]", "Values\":null"],
        "a list that is given and empty is as good as none by the time it is checked; only the text of an error tells",
    ),
    (
        "LimitRange",
        [".spec.limits = []", "201 ", "201"],
        "a list that is given and empty is as good as none by the time owners are noted",
    ),
    (
        "Node",
        [".status.allocatable = {}", "200", "f:allocatable"],
        "a map that is given and empty is as good as none by the time defaults are filled in",
    ),
    (
        "PersistentVolume",
        ["spec.nodeAffinity", "Expressions\":[]", "Expressions\":null"],
        "a list that is given and empty is as good as none by the time it is checked; only the text of an error tells",
    ),
    (
        "Pod",
        ["privileged = true", "disallowed by cluster policy", ""],
        "whether containers may be privileged is up to Pod Security, not to a flag of the server",
    ),
    (
        "Pod",
        ["hostProcess = true", "disallowed by cluster policy", ""],
        "whether containers may be privileged is up to Pod Security, not to a flag of the server",
    ),
    (
        "ReplicationController",
        ["terminationGracePeriodSeconds", "", "negative values are invalid"],
        "an update is warned of its own template; upstream passes the old one instead",
    ),
    (
        "",
        ["", "Invalid value: {\"MatchExpressions\"", "Invalid value: {"],
        "upstream prints its internal type, in Go's names",
    ),
    (
        "ResourceClaim",
        ["", "spec: Invalid value: {\"Devices\"", "spec: Invalid value: {"],
        "upstream prints its internal type, in Go's names",
    ),
    (
        "Job",
        [
            "",
            "podFailurePolicy: Invalid value: {\"Rules\"",
            "podFailurePolicy: Invalid value: {",
        ],
        "upstream prints its internal type, in Go's names",
    ),
    (
        "Service",
        ["odePort", "", "provided port is not in the valid range"],
        "upstream's dry runs reserve no port and so do not notice one out of range",
    ),
    (
        "",
        [
            "",
            "in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            "in scheme \"sampan\"",
        ],
        "each server names its own registry of kinds",
    ),
];

/// Why a difference is expected.
pub(super) fn reason(kind: &str, difference: &Difference) -> Option<&'static str> {
    ROWS.iter()
        .find(|(of, [mutant, upstream, ours], _)| {
            (of.is_empty() || *of == kind)
                && difference.mutant.contains(mutant)
                && difference.upstream.contains(upstream)
                && difference.ours.contains(ours)
        })
        .map(|(.., why)| *why)
}
