//! How errors show whole objects: upstream prints the types it works with inside, by the Go names of all their fields,
//! whether they are set or not.
//!
//! A [`Shape`] is such a type, as far as an error shows it.

use std::fmt::Write;

use serde_json::Value;

/// A type as Go prints it.
pub(crate) enum Shape {
    Text,
    Int,
    /// A pointer, list or map of plain values: as it is, `null` when absent.
    Plain,
    /// A structure that is always there.
    Struct(&'static [Field]),
    /// A structure behind a pointer.
    Pointer(&'static [Field]),
    List(&'static [Field]),
}

/// A field by its name in JSON and in Go, in the order Go declares it.
pub(crate) type Field = (&'static str, &'static str, Shape);

/// A structure's text.
pub(crate) fn object(fields: &[Field], value: Option<&Value>) -> String {
    let mut out = String::new();
    structure(fields, value, &mut out);
    out
}

/// A list's text.
pub(crate) fn list(fields: &'static [Field], values: &[Value]) -> String {
    let mut out = String::new();
    if values.is_empty() {
        return "null".to_owned();
    }
    items(fields, values, &mut out);
    out
}

fn items(fields: &[Field], values: &[Value], out: &mut String) {
    out.push('[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        structure(fields, Some(value), out);
    }
    out.push(']');
}

fn structure(fields: &[Field], value: Option<&Value>, out: &mut String) {
    out.push('{');
    for (index, (name, go_name, shape)) in fields.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        // Writing to a String cannot fail.
        let _ = write!(out, "\"{go_name}\":");
        let below = value
            .and_then(|value| value.get(*name))
            .filter(|below| !below.is_null());
        match (shape, below) {
            (Shape::Struct(fields), below) => structure(fields, below, out),
            (Shape::Pointer(fields), Some(below)) => structure(fields, Some(below), out),
            (Shape::List(fields), Some(Value::Array(values))) => items(fields, values, out),
            (Shape::Text | Shape::Int | Shape::Plain, Some(below)) => {
                let _ = write!(out, "{below}");
            }
            (Shape::Text, None) => out.push_str("\"\""),
            (Shape::Int, None) => out.push('0'),
            _ => out.push_str("null"),
        }
    }
    out.push('}');
}

const REQUIREMENT: &[Field] = &[
    ("key", "Key", Shape::Text),
    ("operator", "Operator", Shape::Text),
    ("values", "Values", Shape::Plain),
];

pub(crate) const NODE_SELECTOR_TERM: &[Field] = &[
    ("matchExpressions", "MatchExpressions", Shape::List(REQUIREMENT)),
    ("matchFields", "MatchFields", Shape::List(REQUIREMENT)),
];

pub(crate) const VOLUME_NODE_AFFINITY: &[Field] = &[(
    "required",
    "Required",
    Shape::Pointer(&[(
        "nodeSelectorTerms",
        "NodeSelectorTerms",
        Shape::List(NODE_SELECTOR_TERM),
    )]),
)];

pub(crate) const TAINT: &[Field] = &[
    ("key", "Key", Shape::Text),
    ("value", "Value", Shape::Text),
    ("effect", "Effect", Shape::Text),
    ("timeAdded", "TimeAdded", Shape::Plain),
];

pub(crate) const NODE_ADDRESS: &[Field] = &[("type", "Type", Shape::Text), ("address", "Address", Shape::Text)];

pub(crate) const IP: &[Field] = &[("ip", "IP", Shape::Text)];

pub(crate) const OBJECT_REFERENCE: &[Field] = &[
    ("kind", "Kind", Shape::Text),
    ("namespace", "Namespace", Shape::Text),
    ("name", "Name", Shape::Text),
    ("uid", "UID", Shape::Text),
    ("apiVersion", "APIVersion", Shape::Text),
    ("resourceVersion", "ResourceVersion", Shape::Text),
    ("fieldPath", "FieldPath", Shape::Text),
];

pub(crate) const PROFILE: &[Field] = &[
    ("type", "Type", Shape::Text),
    ("localhostProfile", "LocalhostProfile", Shape::Plain),
];

pub(crate) const SECURITY_CONTEXT: &[Field] = &[
    (
        "capabilities",
        "Capabilities",
        Shape::Pointer(&[("add", "Add", Shape::Plain), ("drop", "Drop", Shape::Plain)]),
    ),
    ("privileged", "Privileged", Shape::Plain),
    (
        "seLinuxOptions",
        "SELinuxOptions",
        Shape::Pointer(&[
            ("user", "User", Shape::Text),
            ("role", "Role", Shape::Text),
            ("type", "Type", Shape::Text),
            ("level", "Level", Shape::Text),
        ]),
    ),
    (
        "windowsOptions",
        "WindowsOptions",
        Shape::Pointer(&[
            ("gmsaCredentialSpecName", "GMSACredentialSpecName", Shape::Plain),
            ("gmsaCredentialSpec", "GMSACredentialSpec", Shape::Plain),
            ("runAsUserName", "RunAsUserName", Shape::Plain),
            ("hostProcess", "HostProcess", Shape::Plain),
        ]),
    ),
    ("runAsUser", "RunAsUser", Shape::Plain),
    ("runAsGroup", "RunAsGroup", Shape::Plain),
    ("runAsNonRoot", "RunAsNonRoot", Shape::Plain),
    ("readOnlyRootFilesystem", "ReadOnlyRootFilesystem", Shape::Plain),
    ("allowPrivilegeEscalation", "AllowPrivilegeEscalation", Shape::Plain),
    ("procMount", "ProcMount", Shape::Plain),
    ("seccompProfile", "SeccompProfile", Shape::Pointer(PROFILE)),
    ("appArmorProfile", "AppArmorProfile", Shape::Pointer(PROFILE)),
];

pub(crate) const PARTITION: &[Field] = &[
    ("partition", "Partition", Shape::Int),
    ("maxUnavailable", "MaxUnavailable", Shape::Plain),
];

pub(crate) const STATEFUL_SET_STRATEGY: &[Field] = &[
    ("type", "Type", Shape::Text),
    ("rollingUpdate", "RollingUpdate", Shape::Pointer(PARTITION)),
];

/// Of Deployments.
pub(crate) const DEPLOYMENT_STRATEGY: &[Field] = DAEMON_SET_STRATEGY;

pub(crate) const DAEMON_SET_STRATEGY: &[Field] = &[
    ("type", "Type", Shape::Text),
    (
        "rollingUpdate",
        "RollingUpdate",
        Shape::Pointer(&[
            ("maxUnavailable", "MaxUnavailable", Shape::Int),
            ("maxSurge", "MaxSurge", Shape::Int),
        ]),
    ),
];

pub(crate) const SERVICE_PORT: &[Field] = &[
    ("name", "Name", Shape::Text),
    ("protocol", "Protocol", Shape::Text),
    ("appProtocol", "AppProtocol", Shape::Plain),
    ("port", "Port", Shape::Int),
    ("targetPort", "TargetPort", Shape::Int),
    ("nodePort", "NodePort", Shape::Int),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_fields_are_shown_by_their_go_names() {
        for (fields, value, text) in [
            (
                TAINT,
                json!({"key": "k", "effect": "NoSchedule"}),
                r#"{"Key":"k","Value":"","Effect":"NoSchedule","TimeAdded":null}"#,
            ),
            (VOLUME_NODE_AFFINITY, json!({}), r#"{"Required":null}"#),
            (
                VOLUME_NODE_AFFINITY,
                json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a"}]}]}}),
                r#"{"Required":{"NodeSelectorTerms":[{"MatchExpressions":[{"Key":"a","Operator":"","Values":null}],"MatchFields":null}]}}"#,
            ),
            (
                STATEFUL_SET_STRATEGY,
                json!({"type": "x", "rollingUpdate": {}}),
                r#"{"Type":"x","RollingUpdate":{"Partition":0,"MaxUnavailable":null}}"#,
            ),
        ] {
            assert_eq!(object(fields, Some(&value)), text);
        }
        assert_eq!(list(IP, &[json!({"ip": "::1"})]), r#"[{"IP":"::1"}]"#);
        assert_eq!(list(IP, &[]), "null");
    }
}
