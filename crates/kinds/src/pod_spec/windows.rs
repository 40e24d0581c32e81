//! What Pods for Windows may and may not say, and what those for Linux may not.

use serde_json::Value;

use super::CONTAINER_LISTS;
use super::validate::{Error, Errors, Path};
use crate::checks;
use crate::tree;

/// The Windows part of a security context, a Pod's or a container's.
pub(super) fn options(context: &Value, path: &Path, errors: &mut Errors) {
    let Some(options) = tree::get(context, "windowsOptions") else {
        return;
    };
    let path = path.child("windowsOptions");
    let given = |field: &str| tree::get(options, field).and_then(Value::as_str);
    if let Some(name) = given("gmsaCredentialSpecName") {
        let at = path.child("gmsaCredentialSpecName");
        checks::named(&at, name, sampan_api::names::dns1123_subdomain, errors);
    }
    if let Some(text) = given("gmsaCredentialSpec") {
        let why = match text.len() {
            0 => "gmsaCredentialSpec cannot be an empty string",
            length if length > 64 * 1024 => "gmsaCredentialSpec size must be under 64 KiB",
            _ => "",
        };
        if !why.is_empty() {
            errors.push(Error::invalid(&path.child("gmsaCredentialSpec"), text, why));
        }
    }
    if let Some(name) = given("runAsUserName") {
        let at = path.child("runAsUserName");
        errors.extend(user_faults(name).into_iter().map(|why| Error::invalid(&at, name, why)));
    }
}

/// `USER` or `DOMAIN\USER`, by the rules of Windows.
fn user_faults(name: &str) -> Vec<&'static str> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    if name.contains(|c: char| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    let parts: Vec<_> = name.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return vec!["runAsUserName cannot contain more than one backslash"],
    };
    let mut faults = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            faults.push("runAsUserName's Domain length must be under 256 characters");
        }
        if !is_net_bios(domain) && !is_dns(domain) {
            faults.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        faults.push("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        faults.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        faults.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c: char| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        faults.push(r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#);
    }
    faults
}

fn is_net_bios(domain: &str) -> bool {
    !domain.starts_with('.')
        && (1..=15).contains(&domain.chars().count())
        && !domain.contains(|c: char| "\\/:*?\"<>|".contains(c))
}

fn is_dns(domain: &str) -> bool {
    domain.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    })
}

fn containers<'a>(spec: &'a Value, path: &Path) -> Vec<(&'a Value, Path)> {
    CONTAINER_LISTS
        .iter()
        .flat_map(|list| {
            let path = path.child(list);
            let items = tree::items(spec, list).iter().enumerate();
            items
                .map(|(index, container)| (container, path.index(index)))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Containers that are processes of the host: all of a Pod or none, and only with the host's network.
///
/// Different from upstream: no flag of the server forbids them; policies do.
pub(super) fn host_processes(spec: &Value, path: &Path, errors: &mut Errors) {
    const HOST: &str = "securityContext.windowsOptions.hostProcess";
    let of = |value: &Value| tree::get(value, HOST).and_then(Value::as_bool);
    let whole = of(spec);
    let (mut all, mut hosted) = (0, 0);
    for (container, at) in containers(spec, path) {
        all += 1;
        let own = of(container);
        if let (Some(whole), Some(own)) = (whole, own)
            && whole != own
        {
            let at = HOST.split('.').fold(at, |at, name| at.child(name));
            let why = format!("pod hostProcess value must be identical if both are specified, was {whole}");
            errors.push(Error::invalid(&at, own, why));
        }
        hosted += usize::from(own.or(whole) == Some(true));
    }
    if hosted == 0 {
        return;
    }
    if hosted != all {
        errors.push(Error::invalid(
            path,
            "",
            "If pod contains any hostProcess containers then all containers must be HostProcess containers",
        ));
    }
    if !tree::flag(spec, "hostNetwork") {
        errors.push(Error::invalid(
            &path.child("hostNetwork"),
            false,
            "hostNetwork must be true if pod contains any hostProcess containers",
        ));
    }
}

const NOT_ON_WINDOWS: &str = "cannot be set for a windows pod";

/// Fields of a Pod that mean nothing on Windows, in the order upstream looks.
const POD_FIELDS: &[&str] = &[
    "securityContext.appArmorProfile",
    "securityContext.seLinuxOptions",
    "hostUsers",
    "hostPID",
    "hostIPC",
    "securityContext.seccompProfile",
    "securityContext.fsGroup",
    "securityContext.fsGroupChangePolicy",
    "securityContext.sysctls",
    "shareProcessNamespace",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.supplementalGroups",
    "securityContext.supplementalGroupsPolicy",
    "securityContext.seLinuxChangePolicy",
];

const CONTAINER_FIELDS: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// `spec.os`: known, and in agreement with everything else.
pub(super) fn system(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(system) = tree::get(spec, "os") else {
        return;
    };
    let at = path.child("os");
    match tree::text(system, "name") {
        "" => errors.push(Error::required(&at.child("name"), "")),
        "linux" => {
            const WHY: &str = "windows options cannot be set for a linux pod";
            let mut check = |value: &Value, at: &Path| {
                if tree::get(value, "securityContext.windowsOptions").is_some() {
                    errors.push(Error::forbidden(
                        &at.child("securityContext").child("windowsOptions"),
                        WHY,
                    ));
                }
            };
            check(spec, path);
            for (container, at) in containers(spec, path) {
                check(container, &at);
            }
        }
        "windows" => {
            for field in POD_FIELDS {
                if tree::get(spec, field).is_some() {
                    let at = field.split('.').fold(path.clone(), |at, name| at.child(name));
                    errors.push(Error::forbidden(&at, NOT_ON_WINDOWS));
                }
            }
            for (container, at) in containers(spec, path) {
                let context = tree::get(container, "securityContext").unwrap_or(&Value::Null);
                for field in CONTAINER_FIELDS {
                    if tree::get(context, field).is_some() {
                        errors.push(Error::forbidden(
                            &at.child("securityContext").child(field),
                            NOT_ON_WINDOWS,
                        ));
                    }
                }
            }
        }
        other => errors.push(Error::not_supported(&at, other, &["linux", "windows"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn users_are_windows_users() {
        for (name, faults) in [
            ("user", 0),
            (r"DOMAIN\user", 0),
            (r"example.com\user", 0),
            ("", 1),
            ("a\u{7}", 1),
            (r"a\b\c", 1),
            (r"\user", 1),
            (r".x/\user", 1),
            (r"DOMAIN\", 1),
            (". .", 1),
            ("/../x", 1),
        ] {
            assert_eq!(user_faults(name).len(), faults, "{name:?} {:?}", user_faults(name));
        }
        assert_eq!(user_faults(&"a".repeat(105)).len(), 1);
    }

    #[test]
    fn each_system_has_its_own_fields() {
        let cases = [
            (
                json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {}}}),
                "spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod",
            ),
            (
                json!({"os": {"name": "windows"}, "hostPID": true}),
                "spec.hostPID: Forbidden: cannot be set for a windows pod",
            ),
            (
                json!({"os": {"name": "windows"}, "containers": [{"securityContext": {"privileged": false}}]}),
                "spec.containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod",
            ),
            (
                json!({"os": {"name": "beos"}}),
                "spec.os: Unsupported value: \"beos\": supported values: \"linux\", \"windows\"",
            ),
            (json!({"os": {}}), "spec.os.name: Required value"),
            (
                json!({"containers": [{"securityContext": {"windowsOptions": {"hostProcess": true}}}]}),
                "spec.hostNetwork: Invalid value: false: hostNetwork must be true if pod contains any hostProcess containers",
            ),
            (
                json!({"hostNetwork": true, "containers": [{"securityContext": {"windowsOptions": {"hostProcess": true}}}, {}]}),
                "spec: Invalid value: \"\": If pod contains any hostProcess containers then all containers must be HostProcess containers",
            ),
        ];
        for (spec, wanted) in cases {
            let mut errors = Errors::new();
            host_processes(&spec, &Path::new("spec"), &mut errors);
            system(&spec, &Path::new("spec"), &mut errors);
            let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts, [wanted]);
        }
    }
}
