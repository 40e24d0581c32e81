//! Differences that are known, each with its reason. Everything else fails the comparison.

use serde_json::Value;

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
        "Job",
        ["", "no answer", "spec.completions: Required value"],
        "upstream crashes over it",
    ),
    (
        "CustomResourceDefinition",
        [
            "x-kubernetes-preserve-unknown-fields = false",
            "no answer",
            "must be true or undefined",
        ],
        "upstream crashes over it",
    ),
    (
        "CustomResourceDefinition",
        [
            ".status.conditions = []",
            ".status.conditions=[]",
            ".status.conditions=null",
        ],
        "what is kept as JSON keeps empty lists; here they are none, as with every other kind",
    ),
    (
        "CustomResourceDefinition",
        [".items = ", "items: Required value: must be specified", "items"],
        "a list of schemas, which nothing allows, is refused in words of its own",
    ),
    (
        "CustomResourceDefinition",
        [
            "maxLength = -1",
            "default: Too long: value is too long",
            "default: Too long",
        ],
        "a limit below zero is zero",
    ),
    (
        "Job",
        [".metadata.name = ", "spec.template.labels: ", "metadata.labels: "],
        "a Job's own labels are made before it is checked instead of after: one error more tells of the same name",
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
        "Service",
        ["odePort", "", "provided port is not in the valid range"],
        "upstream's dry runs reserve no port and so do not notice one out of range",
    ),
    (
        "",
        ["", "in scheme \"", "in scheme \"sampan\""],
        "each server names its own registry of kinds",
    ),
];

/// Why a difference is expected.
pub(super) fn reason(kind: &str, difference: &Difference) -> Option<&'static str> {
    let (theirs, internal) = without_internal(&difference.upstream);
    if internal && theirs == without_internal(&difference.ours).0 {
        return Some("upstream prints its internal type, in Go's names: everything else is the same");
    }
    ROWS.iter()
        .find(|(of, [mutant, upstream, ours], _)| {
            (of.is_empty() || *of == kind)
                && difference.mutant.contains(mutant)
                && difference.upstream.contains(upstream)
                && difference.ours.contains(ours)
        })
        .map(|(.., why)| *why)
}

/// A refusal without the objects it shows; whether one of them is in the names of Go's fields.
fn without_internal(text: &str) -> (String, bool) {
    const SHOWN: &[&str] = &["Invalid value: ", "Duplicate value: ", "Unsupported value: "];
    let (mut out, mut internal, mut rest) = (String::new(), false, text);
    loop {
        let next = SHOWN
            .iter()
            .filter_map(|words| Some(rest.find(words)? + words.len()))
            .min();
        let Some(at) = next else {
            out.push_str(rest);
            return (out, internal);
        };
        let (head, tail) = rest.split_at(at);
        out.push_str(head);
        rest = tail;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        if let Some(Ok(value @ (Value::Object(_) | Value::Array(_)))) = values.next() {
            internal |= is_internal(&value);
            rest = rest.get(values.byte_offset()..).unwrap_or_default();
        }
    }
}

fn is_internal(value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            let go = |key: &String| key.starts_with(|c: char| c.is_ascii_uppercase());
            map.keys().any(go) || map.values().any(is_internal)
        }
        Value::Array(items) => items.iter().any(is_internal),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shown_object_may_differ() {
        let stripped = |text: &str| without_internal(text);
        let theirs = stripped(r#"[a: Invalid value: {"Kind":"","Name":"x"}: fixed, b: Invalid value: "y": no]"#);
        let ours = stripped(r#"[a: Invalid value: {"name":"x"}: fixed, b: Invalid value: "y": no]"#);
        assert_eq!((theirs.0 == ours.0, theirs.1, ours.1), (true, true, false));
        assert_ne!(theirs.0, stripped(r#"[a: Invalid value: {"name":"x"}: fixed]"#).0);
    }
}
