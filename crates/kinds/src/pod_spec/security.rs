//! Validation of security contexts.

use std::collections::BTreeSet;

use serde_json::Value;

use super::validate::{Error, Errors, Path};
use super::{CONTAINER_LISTS, windows};
use crate::checks::{self, Check, Rule};
use crate::internal;
use crate::names;
use crate::tree;

const POD: &[Check] = &[
    ("fsGroup", Rule::UnixId),
    ("runAsUser", Rule::UnixId),
    ("runAsGroup", Rule::UnixId),
    ("supplementalGroups[]", Rule::UnixId),
];

const FILES: &[Check] = &[("fsGroupChangePolicy", Rule::GivenOneOf(&["Always", "OnRootMismatch"]))];

const GROUPS: &[Check] = &[
    ("supplementalGroupsPolicy", Rule::GivenOneOf(&["Merge", "Strict"])),
    ("seLinuxChangePolicy", Rule::GivenOneOf(&["MountOption", "Recursive"])),
];

pub(super) fn pod(spec: &Value, path: &Path, errors: &mut Errors) {
    let at = path.child("securityContext");
    let nothing = Value::Null;
    let context = tree::get(spec, "securityContext").unwrap_or(&nothing);
    checks::run_at(POD, context, &at, None, errors);
    if tree::flag(spec, "shareProcessNamespace") && tree::flag(spec, "hostPID") {
        errors.push(Error::invalid(
            &at.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    sysctls(spec, context, &at.child("sysctls"), errors);
    checks::run_at(FILES, context, &at, None, errors);
    seccomp(context, &at, errors);
    windows::options(context, &at, errors);
    app_armor(context, &at, errors);
    checks::run_at(GROUPS, context, &at, None, errors);
}

/// With users of its own a Pod cannot have the host's namespaces.
pub(super) fn own_users(spec: &Value, path: &Path, errors: &mut Errors) {
    if has_own_users(spec) {
        host_namespaces(spec, path, errors);
    }
}

/// `hostUsers: false`: the Pod has a user namespace of its own.
fn has_own_users(spec: &Value) -> bool {
    tree::get(spec, "hostUsers").and_then(Value::as_bool) == Some(false)
}

fn host_namespaces(spec: &Value, path: &Path, errors: &mut Errors) {
    const WHY: &str = "when `hostUsers` is false";
    for (field, shown) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        if tree::flag(spec, field) {
            errors.push(Error::forbidden(&path.child(shown), WHY));
        }
    }
    for list in CONTAINER_LISTS {
        for (index, container) in tree::items(spec, list).iter().enumerate() {
            let path = path.child(list).index(index);
            checks::run_at(
                &[("volumeDevices", Rule::Forbidden(WHY))],
                container,
                &path,
                None,
                errors,
            );
        }
    }
}

/// Kernel settings that belong to a namespace; the host's are not a Pod's to change.
fn sysctls(spec: &Value, context: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, sysctl) in tree::items(context, "sysctls").iter().enumerate() {
        let path = path.index(index).child("name");
        let name = tree::text(sysctl, "name");
        if name.is_empty() {
            errors.push(Error::required(&path, ""));
        } else if !is_sysctl_name(name) {
            errors.push(Error::invalid(
                &path,
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ));
        } else if !seen.insert(name) {
            errors.push(Error::duplicate(&path, name));
        }
        let plain = name.replace('/', ".");
        let network = plain.starts_with("net.");
        let ipc = ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|prefix| plain.starts_with(prefix));
        if network && tree::flag(spec, "hostNetwork") {
            errors.push(Error::invalid(
                &path,
                name,
                "may not be specified when 'hostNetwork' is true",
            ));
        } else if ipc && tree::flag(spec, "hostIPC") {
            errors.push(Error::invalid(
                &path,
                name,
                "may not be specified when 'hostIPC' is true",
            ));
        }
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|b| plain(*b))
                && bytes.last().is_some_and(|b| plain(*b))
                && bytes.iter().all(|b| plain(*b) || matches!(b, b'-' | b'_'))
        })
}

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(context: &Value, path: &Path, errors: &mut Errors) {
    let Some(profile) = tree::get(context, "seccompProfile") else {
        return;
    };
    let path = path.child("seccompProfile");
    let at = path.child("localhostProfile");
    let kind = tree::text(profile, "type");
    if kind.is_empty() {
        errors.push(Error::required(
            &path.child("type"),
            "type is required when seccompProfile is set",
        ));
    } else if !PROFILES.contains(&kind) {
        errors.push(Error::not_supported(&path.child("type"), kind, &PROFILES));
    }
    match (kind, tree::get(profile, "localhostProfile").and_then(Value::as_str)) {
        ("Localhost", None) => errors.push(Error::required(&at, "must be set when seccomp type is Localhost")),
        ("Localhost", Some(name)) => checks::named(&at, name, names::descending_path, errors),
        (_, Some(_)) => {
            let shown = internal::object(internal::PROFILE, Some(profile));
            let why = "can only be set when seccomp type is Localhost";
            errors.push(Error::invalid(&at, Value::Null, why).showing(shown));
        }
        (_, None) => {}
    }
}

fn app_armor(context: &Value, path: &Path, errors: &mut Errors) {
    const LONGEST: usize = 4095;
    let Some(profile) = tree::get(context, "appArmorProfile") else {
        return;
    };
    let path = path.child("appArmorProfile");
    let at = path.child("localhostProfile");
    let local = tree::get(profile, "localhostProfile").and_then(Value::as_str);
    match (tree::text(profile, "type"), local) {
        ("", _) => errors.push(Error::required(
            &path.child("type"),
            "type is required when appArmorProfile is set",
        )),
        ("Localhost", name) => {
            let name = name.unwrap_or_default();
            if name.trim() != name {
                errors.push(Error::invalid(&at, name, "must not be padded with whitespace"));
            } else if name.is_empty() {
                errors.push(Error::required(&at, "must be set when AppArmor type is Localhost"));
            }
            if name.len() > LONGEST {
                errors.push(Error::too_long(&at, LONGEST));
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            let why = "can only be set when AppArmor type is Localhost";
            errors.push(Error::invalid(&at, name, why));
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        (kind, _) => errors.push(Error::not_supported(&path.child("type"), kind, &PROFILES)),
    }
}

const CONTAINER: &[Check] = &[
    ("runAsUser", Rule::UnixId),
    ("runAsGroup", Rule::UnixId),
    ("procMount", Rule::GivenOneOf(&["Default", "Unmasked"])),
];

pub(super) fn container(spec: &Value, container: &Value, path: &Path, errors: &mut Errors) {
    let Some(context) = tree::get(container, "securityContext") else {
        return;
    };
    checks::run_at(CONTAINER, context, path, None, errors);
    if tree::text(context, "procMount") == "Unmasked" && !has_own_users(spec) {
        errors.push(Error::invalid(
            &path.child("procMount"),
            "Unmasked",
            "`hostUsers` must be false to use `Unmasked`",
        ));
    }
    seccomp(context, path, errors);
    let shown = || internal::object(internal::SECURITY_CONTEXT, Some(context));
    let no_escalation = tree::get(context, "allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false);
    if no_escalation && tree::flag(context, "privileged") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(Error::invalid(path, Value::Null, why).showing(shown()));
    }
    if no_escalation
        && tree::items(context, "capabilities.add")
            .iter()
            .any(|cap| cap == "CAP_SYS_ADMIN")
    {
        let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        errors.push(Error::invalid(path, Value::Null, why).showing(shown()));
    }
    windows::options(context, path, errors);
    app_armor(context, path, errors);
}
