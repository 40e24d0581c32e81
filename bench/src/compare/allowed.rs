//! Differences that are known, each with its reason. Everything else fails the comparison.

use super::Difference;

/// One row: the kind ("" for any), texts that must be in the mutant, upstream's answer and ours, and why this stays.
type Row = (&'static str, [&'static str; 3], &'static str);

const ROWS: &[Row] = &[
    (
        "",
        ["", "Time=null", ""],
        "a time that was never set is left out, not printed as null",
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
    (
        "",
        [" = 7", " of type v1.", " of type string"],
        "Go names the type of an enumeration, which no schema tells",
    ),
    (
        "",
        ["", " of type []v1.", " of type []string"],
        "Go names the type of an enumeration, which no schema tells",
    ),
    (
        "",
        [
            ".spec.ports",
            "Duplicate value: {\"Name\":",
            "Duplicate value: {\"port\":",
        ],
        "upstream prints its internal type, in Go's names",
    ),
    (
        "",
        [".strategy", ": Unsupported value: {\"Type\":", ": Unsupported value: {"],
        "upstream prints its internal type, in Go's names",
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
