//! Security contexts: the container's over the Pod's, into what the runtime is told.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile, SecurityContext, Sysctl};
use sampan_runtime::{Capabilities, Image, LinuxContainerSecurityContext, SecurityProfile, SupplementalGroupsPolicy};

/// Kernel parameters any Pod may set: they are confined to its namespaces.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The first parameter of the Pod that this node does not allow. `/` and `.` both separate.
pub fn forbidden_sysctl(pod: &Pod) -> Option<String> {
    let context = super::spec(pod).security_context.as_ref()?;
    let mut all = context.sysctls.iter().flatten();
    let bad = all.find(|sysctl: &&Sysctl| {
        let name = sysctl.name.replace('/', ".");
        let network = name.starts_with("net.") && super::host_network(pod);
        network || !SAFE_SYSCTLS.contains(&name.as_str())
    })?;
    Some(bad.name.clone())
}

fn profile(profile: Option<&SeccompProfile>, root: &Path, default: bool) -> SecurityProfile {
    match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => SecurityProfile::RuntimeDefault,
        Some("Localhost") => {
            let name = profile.and_then(|profile| profile.localhost_profile.as_deref());
            let path = root.join(name.unwrap_or_default());
            SecurityProfile::Localhost(path.display().to_string())
        }
        None if default => SecurityProfile::RuntimeDefault,
        _ => SecurityProfile::Unconfined,
    }
}

/// Refuses to start as root what must not: the error is the message shown.
fn check_non_root(pod: &Pod, container: &Container, image: &Image) -> Result<(), String> {
    let of_pod = super::spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let required = own
        .and_then(|context| context.run_as_non_root)
        .or_else(|| of_pod.and_then(|context| context.run_as_non_root));
    if required != Some(true) {
        return Ok(());
    }
    let shown = || format!("(pod: \"{}\", container: {})", super::display(pod), container.name);
    match run_as_user(pod, container) {
        Some(0) => Err(format!("container's runAsUser breaks non-root policy {}", shown())),
        Some(_) => Ok(()),
        None if !image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {}",
            image.username,
            shown()
        )),
        None if image.uid.unwrap_or(0) == 0 => Err(format!(
            "container has runAsNonRoot and image will run as root {}",
            shown()
        )),
        None => Ok(()),
    }
}

fn run_as_user(pod: &Pod, container: &Container) -> Option<i64> {
    let own = container.security_context.as_ref();
    own.and_then(|context| context.run_as_user).or_else(|| {
        let of_pod = super::spec(pod).security_context.as_ref();
        of_pod.and_then(|context| context.run_as_user)
    })
}

/// The runtime's view of a container's security context.
pub fn context(
    pod: &Pod,
    container: &Container,
    image: &Image,
    seccomp_root: &Path,
    seccomp_default: bool,
) -> Result<LinuxContainerSecurityContext, String> {
    check_non_root(pod, container, image)?;
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let of_pod = super::spec(pod).security_context.as_ref();
    let privileged = own.privileged.unwrap_or(false);
    let explicit = run_as_user(pod, container);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let mut groups = of_pod
        .and_then(|context| context.supplemental_groups.clone())
        .unwrap_or_default();
    groups.extend(of_pod.and_then(|context| context.fs_group));
    let seccomp = own
        .seccomp_profile
        .as_ref()
        .or_else(|| of_pod.and_then(|context| context.seccomp_profile.as_ref()));
    let apparmor = own
        .app_armor_profile
        .as_ref()
        .or_else(|| of_pod.and_then(|context| context.app_armor_profile.as_ref()));
    let capabilities = own.capabilities.as_ref();
    let list = |names: Option<&Option<Vec<String>>>| names.cloned().flatten().unwrap_or_default();
    Ok(LinuxContainerSecurityContext {
        capabilities: Capabilities {
            add: list(capabilities.map(|capabilities| &capabilities.add)),
            drop: list(capabilities.map(|capabilities| &capabilities.drop)),
        },
        privileged,
        run_as_user: explicit.or(image.uid.filter(|_| image.username.is_empty())),
        run_as_group: own
            .run_as_group
            .or_else(|| of_pod.and_then(|context| context.run_as_group)),
        run_as_username: if explicit.is_none() {
            image.username.clone()
        } else {
            String::new()
        },
        supplemental_groups: groups,
        supplemental_groups_policy: match of_pod.and_then(|context| context.supplemental_groups_policy.as_deref()) {
            Some("Strict") => SupplementalGroupsPolicy::Strict,
            _ => SupplementalGroupsPolicy::Merge,
        },
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp: if privileged && seccomp.is_none() {
            SecurityProfile::Unconfined
        } else {
            profile(seccomp, seccomp_root, seccomp_default)
        },
        apparmor: match apparmor.map(|profile| profile.type_.as_str()) {
            Some("Unconfined") => SecurityProfile::Unconfined,
            Some("Localhost") => SecurityProfile::Localhost(
                apparmor
                    .and_then(|profile| profile.localhost_profile.clone())
                    .unwrap_or_default(),
            ),
            _ if privileged => SecurityProfile::Unconfined,
            _ => SecurityProfile::RuntimeDefault,
        },
        masked_paths: unmasked.then(Vec::new),
        readonly_paths: unmasked.then(Vec::new),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;
    use serde_json::json;

    #[test]
    fn non_root_is_enforced() {
        let image = |uid: Option<i64>, name: &str| Image {
            uid,
            username: name.into(),
            ..Image::default()
        };
        for (context, image, expected) in [
            (json!({}), image(None, ""), Ok(())),
            (
                json!({"runAsNonRoot": true}),
                image(Some(0), ""),
                Err("will run as root"),
            ),
            (json!({"runAsNonRoot": true}), image(None, ""), Err("will run as root")),
            (
                json!({"runAsNonRoot": true}),
                image(None, "nginx"),
                Err("non-numeric user (nginx)"),
            ),
            (json!({"runAsNonRoot": true}), image(Some(5), ""), Ok(())),
            (
                json!({"runAsNonRoot": true, "runAsUser": 5}),
                image(Some(0), ""),
                Ok(()),
            ),
            (
                json!({"runAsNonRoot": true, "runAsUser": 0}),
                image(Some(5), ""),
                Err("breaks non-root policy"),
            ),
        ] {
            let pod = pod(json!({"securityContext": context, "containers": [{"name": "c"}]}));
            let got = check_non_root(&pod, &super::super::containers(&pod)[0], &image);
            match expected {
                Ok(()) => assert_eq!(got, Ok(()), "{context}"),
                Err(part) => assert!(got.unwrap_err().contains(part), "{context}"),
            }
        }
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let pod = pod(json!({
            "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
                "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 9, "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                "seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}}]}));
        let image = Image {
            username: "nginx".into(),
            ..Image::default()
        };
        let got = context(&pod, &super::super::containers(&pod)[0], &image, Path::new("/s"), false).unwrap();
        assert_eq!((got.run_as_user, got.run_as_group), (Some(9), Some(2)));
        assert_eq!(got.run_as_username, "");
        assert_eq!(got.supplemental_groups, [4, 3]);
        assert_eq!(got.seccomp, SecurityProfile::Localhost("/s/p.json".into()));
        assert!(got.no_new_privs && got.readonly_rootfs);
        assert_eq!(got.capabilities.drop, ["ALL"]);
        assert_eq!(got.masked_paths, None);
    }

    #[test]
    fn only_safe_sysctls() {
        for (name, host, bad) in [
            ("kernel.shm_rmid_forced", false, false),
            ("net/ipv4/tcp_syncookies", false, false),
            ("net.ipv4.tcp_syncookies", true, true),
            ("kernel.msgmax", false, true),
        ] {
            let pod = pod(json!({"hostNetwork": host, "containers": [],
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}));
            assert_eq!(forbidden_sysctl(&pod).is_some(), bad, "{name}");
        }
    }
}
