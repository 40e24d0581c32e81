//! Validation of containers: the three lists, and what is in one.

use std::collections::BTreeSet;

use sampan_api::names as api;
use serde_json::Value;

use super::validate::{Error, Errors, Path};
use super::volumes::Volumes;
use super::{probes, resources, security};
use crate::checks::{self, Check, Rule};
use crate::names;
use crate::tree;

const COMMON: &[Check] = &[
    ("name", Rule::RequiredNamed(api::dns1123_label)),
    ("image", Rule::Required("")),
    (
        "terminationMessagePolicy",
        Rule::RequiredOneOf(&["File", "FallbackToLogsOnError"]),
    ),
];

const PULL_POLICY: &[Check] = &[(
    "imagePullPolicy",
    Rule::RequiredOneOf(&["Always", "IfNotPresent", "Never"]),
)];

pub(super) fn validate(spec: &Value, path: &Path, volumes: &Volumes<'_>, errors: &mut Errors) {
    regular(spec, &path.child("containers"), volumes, errors);
    init(spec, &path.child("initContainers"), volumes, errors);
    ephemeral(spec, &path.child("ephemeralContainers"), volumes, errors);
}

fn names_of<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a str> {
    tree::items(spec, list)
        .iter()
        .map(|container| tree::text(container, "name"))
}

fn regular(spec: &Value, path: &Path, volumes: &Volumes<'_>, errors: &mut Errors) {
    let containers = tree::items(spec, "containers");
    if containers.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        common(spec, container, &path, volumes, errors);
        let name = tree::text(container, "name");
        if !names.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        probes::lifecycle(spec, container, &path, errors);
        probes::all(spec, container, &path, errors);
        restart_rules(container, &path, errors);
    }
    host_ports(containers, path, errors);
}

fn init(spec: &Value, path: &Path, volumes: &Volumes<'_>, errors: &mut Errors) {
    let mut names: BTreeSet<_> = names_of(spec, "containers").collect();
    for (index, container) in tree::items(spec, "initContainers").iter().enumerate() {
        let at = path.index(index);
        common(spec, container, &at, volumes, errors);
        restart_rules(container, &at, errors);
        let name = tree::text(container, "name");
        if !name.is_empty() && !names.insert(name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        host_ports(std::slice::from_ref(container), path, errors);
        if tree::text(container, "restartPolicy") == "Always" {
            probes::lifecycle(spec, container, &at, errors);
            probes::all(spec, container, &at, errors);
            continue;
        }
        const ONLY_SIDECARS: Rule = Rule::Forbidden("may not be set for init containers without restartPolicy=Always");
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            checks::run_at(&[(field, ONLY_SIDECARS)], container, &at, None, errors);
        }
        for (number, policy) in tree::items(container, "resizePolicy").iter().enumerate() {
            if tree::text(policy, "restartPolicy") == "RestartContainer" {
                errors.push(Error::invalid(
                    &at.child("resizePolicy").index(number).child("restartPolicy"),
                    "RestartContainer",
                    "must not be set to 'RestartContainer' for non-sidecar initContainers",
                ));
            }
        }
    }
}

/// What an ephemeral container may have; everything else is refused, so that new fields are thought about.
const EPHEMERAL_FIELDS: &[&str] = &[
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "env",
    "envFrom",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
];

fn ephemeral(spec: &Value, path: &Path, volumes: &Volumes<'_>, errors: &mut Errors) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    let others: BTreeSet<_> = names_of(spec, "containers")
        .chain(names_of(spec, "initContainers"))
        .collect();
    let mut names = others.clone();
    for (index, container) in tree::items(spec, "ephemeralContainers").iter().enumerate() {
        let path = path.index(index);
        common(spec, container, &path, volumes, errors);
        image_spaces(container, &path, errors);
        let name = tree::text(container, "name");
        if !names.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        let target = tree::text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.push(Error::not_found(&path.child("targetContainerName"), target));
        }
        for (field, value) in container.as_object().into_iter().flatten() {
            let empty = tree::is_empty(value);
            if !empty && !EPHEMERAL_FIELDS.contains(&field.as_str()) {
                errors.push(Error::forbidden(&path.child(field), WHY));
            }
        }
        for field in ["volumeMounts[].subPath", "volumeMounts[].subPathExpr"] {
            checks::run_at(&[(field, Rule::Forbidden(WHY))], container, &path, None, errors);
        }
    }
}

/// An image name with spaces around it: a template may have them, for old times' sake, a Pod not.
pub(crate) fn image_spaces(container: &Value, path: &Path, errors: &mut Errors) {
    let image = tree::text(container, "image");
    if image != image.trim() {
        errors.push(Error::invalid(
            &path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
}

fn common(spec: &Value, container: &Value, path: &Path, volumes: &Volumes<'_>, errors: &mut Errors) {
    checks::run_at(COMMON, container, path, None, errors);
    ports(container, &path.child("ports"), errors);
    env(container, &path.child("env"), errors);
    env_from(container, &path.child("envFrom"), errors);
    mounts(container, &path.child("volumeMounts"), volumes, errors);
    devices(container, &path.child("volumeDevices"), volumes, errors);
    checks::run_at(PULL_POLICY, container, path, None, errors);
    resources::container(spec, container, &path.child("resources"), errors);
    resize_policy(spec, container, &path.child("resizePolicy"), errors);
    security::container(spec, container, &path.child("securityContext"), errors);
}

fn ports(container: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, port) in tree::items(container, "ports").iter().enumerate() {
        let path = path.index(index);
        let name = tree::text(port, "name");
        if !name.is_empty() {
            let wrong = api::port_name(name);
            if wrong.is_empty() {
                if !seen.insert(name) {
                    errors.push(Error::duplicate(&path.child("name"), name));
                }
            } else {
                checks::named(&path.child("name"), name, api::port_name, errors);
            }
        }
        if tree::int(port, "containerPort") == 0 {
            errors.push(Error::required(&path.child("containerPort"), ""));
        }
        for field in ["containerPort", "hostPort"] {
            let number = tree::int(port, field);
            if number != 0 {
                checks::port_or_name(&path.child(field), tree::get(port, field), errors);
            }
        }
        checks::run_at(
            &[("protocol", Rule::RequiredOneOf(&["SCTP", "TCP", "UDP"]))],
            port,
            &path,
            None,
            errors,
        );
    }
}

/// Two containers may not take the same port of the host.
fn host_ports(containers: &[Value], path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (number, port) in tree::items(container, "ports").iter().enumerate() {
            let host = tree::int(port, "hostPort");
            if host == 0 {
                continue;
            }
            let key = format!("{}/{}/{host}", tree::text(port, "protocol"), tree::text(port, "hostIP"));
            if !seen.insert(key.clone()) {
                let path = path.index(index).child("ports").index(number).child("hostPort");
                errors.push(Error::duplicate(&path, key));
            }
        }
    }
}

const KEY_REF: &[Check] = &[("key", Rule::RequiredNamed(api::config_map_key))];

const FILE_KEY_REF: &[Check] = &[
    ("key", Rule::RequiredNamed(api::relaxed_env_var_name)),
    ("volumeName", Rule::RequiredNamed(api::dns1123_label)),
    ("path", Rule::RequiredNamed(names::no_backsteps)),
];

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn env(container: &Value, path: &Path, errors: &mut Errors) {
    for (index, variable) in tree::items(container, "env").iter().enumerate() {
        let path = path.index(index);
        checks::run_at(
            &[("name", Rule::RequiredNamed(api::relaxed_env_var_name))],
            variable,
            &path,
            None,
            errors,
        );
        if let Some(from) = tree::get(variable, "valueFrom") {
            value_from(from, tree::text(variable, "value"), &path.child("valueFrom"), errors);
        }
    }
}

fn value_from(from: &Value, value: &str, path: &Path, errors: &mut Errors) {
    let mut sources = 0;
    if let Some(source) = tree::get(from, "fieldRef") {
        sources += 1;
        field_ref(source, ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(source) = tree::get(from, "resourceFieldRef") {
        sources += 1;
        resources::field_ref(source, false, &path.child("resourceFieldRef"), errors);
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(source) = tree::get(from, field) {
            sources += 1;
            let path = path.child(field);
            checks::named(
                &path.child("name"),
                tree::text(source, "name"),
                names::whole_subdomain,
                errors,
            );
            checks::run_at(KEY_REF, source, &path, None, errors);
        }
    }
    if let Some(source) = tree::get(from, "fileKeyRef") {
        sources += 1;
        checks::run_at(FILE_KEY_REF, source, &path.child("fileKeyRef"), None, errors);
    }
    let why = match sources {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !value.is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(Error::invalid(path, "", why));
}

/// A reference to a field of the Pod itself.
pub(super) fn field_ref(reference: &Value, allowed: &[&str], path: &Path, errors: &mut Errors) {
    for field in ["apiVersion", "fieldPath"] {
        if tree::text(reference, field).is_empty() {
            errors.push(Error::required(&path.child(field), ""));
            return;
        }
    }
    let (version, wanted) = (tree::text(reference, "apiVersion"), tree::text(reference, "fieldPath"));
    let at = path.child("fieldPath");
    const LABELS: [&str; 14] = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if version != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        errors.push(Error::invalid(&at, wanted, why));
        return;
    }
    let subscript = wanted
        .split_once("['")
        .and_then(|(field, rest)| Some((field, rest.strip_suffix("']")?)));
    if let Some((field, key)) = subscript {
        match field {
            "metadata.annotations" => checks::named(path, &key.to_lowercase(), api::qualified_name, errors),
            "metadata.labels" => checks::named(path, key, api::qualified_name, errors),
            _ if !LABELS.contains(&field) => errors.push(unknown_field(&at, wanted)),
            _ => errors.push(Error::invalid(path, field, "does not support subscript")),
        }
        return;
    }
    let wanted = if wanted == "spec.host" { "spec.nodeName" } else { wanted };
    if !LABELS.contains(&wanted) {
        errors.push(unknown_field(&at, wanted));
    } else if !allowed.contains(&wanted) {
        errors.push(Error::not_supported(&at, wanted, allowed));
    }
}

fn unknown_field(path: &Path, field: &str) -> Error {
    let why = format!("error converting fieldPath: field label not supported: {field}");
    Error::invalid(path, field, why)
}

fn env_from(container: &Value, path: &Path, errors: &mut Errors) {
    for (index, source) in tree::items(container, "envFrom").iter().enumerate() {
        let at = path.index(index);
        checks::run_at(
            &[("prefix", Rule::Named(api::relaxed_env_var_name))],
            source,
            &at,
            None,
            errors,
        );
        let mut sources = 0;
        for field in ["configMapRef", "secretRef"] {
            if let Some(reference) = tree::get(source, field) {
                sources += 1;
                let partial = |name: &str| names::subdomain(name, true);
                checks::run_at(
                    &[("name", Rule::RequiredNamed(partial))],
                    reference,
                    &at.child(field),
                    None,
                    errors,
                );
            }
        }
        let why = match sources {
            1 => continue,
            0 => "must specify one of: `configMapRef` or `secretRef`",
            _ => "may not have more than one field specified at a time",
        };
        errors.push(Error::invalid(path, "", why));
    }
}

fn mounts(container: &Value, path: &Path, volumes: &Volumes<'_>, errors: &mut Errors) {
    let devices = tree::items(container, "volumeDevices");
    let mut points = BTreeSet::new();
    let privileged = tree::flag(container, "securityContext.privileged");
    for (index, mount) in tree::items(container, "volumeMounts").iter().enumerate() {
        let at = path.index(index);
        let (name, point) = (tree::text(mount, "name"), tree::text(mount, "mountPath"));
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        }
        if !volumes.contains_key(name) {
            errors.push(Error::not_found(&at.child("name"), name));
        }
        if point.is_empty() {
            errors.push(Error::required(&at.child("mountPath"), ""));
        }
        if !points.insert(point) {
            errors.push(Error::invalid(&at.child("mountPath"), point, "must be unique"));
        }
        if devices.iter().any(|device| tree::text(device, "name") == name) {
            errors.push(Error::invalid(
                &at.child("name"),
                name,
                "must not already exist in volumeDevices",
            ));
        }
        if devices.iter().any(|device| tree::text(device, "devicePath") == point) {
            errors.push(Error::invalid(
                &at.child("mountPath"),
                point,
                "must not already exist as a path in volumeDevices",
            ));
        }
        let (sub, expression) = (tree::text(mount, "subPath"), tree::text(mount, "subPathExpr"));
        if !sub.is_empty() {
            checks::named(&path.child("subPath"), sub, names::descending_path, errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                errors.push(Error::invalid(
                    &at.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                ));
            }
            checks::named(&path.child("subPathExpr"), expression, names::descending_path, errors);
        }
        let propagation = tree::text(mount, "mountPropagation");
        checks::run_at(
            &[(
                "mountPropagation",
                Rule::GivenOneOf(&["Bidirectional", "HostToContainer", "None"]),
            )],
            mount,
            path,
            None,
            errors,
        );
        if propagation == "Bidirectional" && !privileged {
            errors.push(Error::forbidden(
                &path.child("mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            ));
        }
        recursive_read_only(mount, &path.child("recursiveReadOnly"), errors);
    }
}

fn recursive_read_only(mount: &Value, path: &Path, errors: &mut Errors) {
    match tree::text(mount, "recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !tree::flag(mount, "readOnly") {
                errors.push(Error::forbidden(path, "may only be specified when readOnly is true"));
            }
            if !matches!(tree::text(mount, "mountPropagation"), "" | "None") {
                errors.push(Error::forbidden(
                    path,
                    "may only be specified when mountPropagation is None or not specified",
                ));
            }
        }
        other => errors.push(Error::not_supported(
            path,
            other,
            &["Disabled", "Enabled", "IfPossible"],
        )),
    }
}

fn devices(container: &Value, path: &Path, volumes: &Volumes<'_>, errors: &mut Errors) {
    let mounts = tree::items(container, "volumeMounts");
    let (mut names_seen, mut paths_seen) = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in tree::items(container, "volumeDevices").iter().enumerate() {
        let at = path.index(index);
        let (name, point) = (tree::text(device, "name"), tree::text(device, "devicePath"));
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else if !names_seen.insert(name) {
            errors.push(Error::invalid(&at.child("name"), name, "must be unique"));
        }
        match volumes.get(name) {
            None => errors.push(Error::not_found(&at.child("name"), name)),
            Some(volume) => {
                let block = ["persistentVolumeClaim", "ephemeral"]
                    .iter()
                    .any(|source| tree::get(volume, source).is_some());
                if !block {
                    errors.push(Error::invalid(
                        &at.child("name"),
                        name,
                        "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                    ));
                }
            }
        }
        if point.is_empty() {
            errors.push(Error::required(&at.child("devicePath"), ""));
        }
        if !paths_seen.insert(point) {
            errors.push(Error::invalid(&at.child("devicePath"), point, "must be unique"));
        }
        if !names::no_backsteps(point).is_empty() {
            errors.push(Error::invalid(
                &at.child("devicePath"),
                point,
                "can not contain backsteps ('..')",
            ));
        }
        if mounts.iter().any(|mount| tree::text(mount, "name") == name) {
            errors.push(Error::invalid(
                &at.child("name"),
                name,
                "must not already exist in volumeMounts",
            ));
        }
        if mounts.iter().any(|mount| tree::text(mount, "mountPath") == point) {
            errors.push(Error::invalid(
                &at.child("devicePath"),
                point,
                "must not already exist as a path in volumeMounts",
            ));
        }
    }
}

fn resize_policy(spec: &Value, container: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    let never = tree::text(spec, "restartPolicy") == "Never";
    for (index, policy) in tree::items(container, "resizePolicy").iter().enumerate() {
        let (resource, restart) = (tree::text(policy, "resourceName"), tree::text(policy, "restartPolicy"));
        if !seen.insert(resource) {
            errors.push(Error::duplicate(&path.index(index), resource));
        }
        for (value, allowed) in [
            (resource, ["cpu", "memory"]),
            (restart, ["NotRequired", "RestartContainer"]),
        ] {
            if value.is_empty() {
                errors.push(Error::required(path, ""));
            } else if !allowed.contains(&value) {
                errors.push(Error::not_supported(path, value, &allowed));
            }
        }
        if never && restart != "NotRequired" {
            errors.push(Error::invalid(
                path,
                restart,
                "must be 'NotRequired' when pod `restartPolicy` is 'Never'",
            ));
        }
    }
}

const RESTART: &[Check] = &[
    ("restartPolicy", Rule::GivenOneOf(&["Always", "Never", "OnFailure"])),
    ("restartPolicyRules[].action", Rule::RequiredOneOf(&["Restart"])),
    ("restartPolicyRules[].exitCodes", Rule::Required("must be specified")),
    (
        "restartPolicyRules[].exitCodes.operator",
        Rule::RequiredOneOf(&["In", "NotIn"]),
    ),
];

fn restart_rules(container: &Value, path: &Path, errors: &mut Errors) {
    let rules = tree::items(container, "restartPolicyRules");
    if !rules.is_empty() && tree::get(container, "restartPolicy").is_none() {
        errors.push(Error::required(
            &path.child("restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        ));
    }
    if rules.len() > 20 {
        errors.push(Error::too_many(&path.child("restartPolicyRules"), rules.len(), 20));
    }
    checks::run_at(RESTART, container, path, None, errors);
}
