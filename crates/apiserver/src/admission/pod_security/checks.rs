//! The checks of the Pod security standards, as a table: what each finds wrong with a Pod, from which version on.
//!
//! A restricted check may take the place of a baseline one that it includes. Reasons and details are worded as upstream
//! words them.

use std::collections::BTreeSet;

use sampan_api::{Object, meta};
use serde_json::Value;

use super::policy::{Level, Standard};

/// What a check finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

/// A Pod, or the template of one.
pub struct Subject<'a> {
    pod: &'a Object,
    spec: &'a Value,
    containers: Vec<&'a Value>,
}

pub(super) type Run = fn(&Subject<'_>) -> Option<Violation>;

pub(super) struct Check {
    pub(super) id: &'static str,
    level: Level,
    /// From which minor version on, in order.
    pub(super) versions: &'static [(u32, Run)],
    /// The baseline check it stands in for.
    replaces: &'static str,
}

const fn check(id: &'static str, level: Level, replaces: &'static str, versions: &'static [(u32, Run)]) -> Check {
    Check {
        id,
        level,
        versions,
        replaces,
    }
}

pub(super) const CHECKS: [Check; 19] = [
    check("appArmorProfile", Level::Baseline, "", &[(0, app_armor)]),
    check(
        "capabilities_baseline",
        Level::Baseline,
        "",
        &[(0, capabilities_baseline)],
    ),
    check("hostNamespaces", Level::Baseline, "", &[(0, host_namespaces)]),
    check("hostPathVolumes", Level::Baseline, "", &[(0, host_path_volumes)]),
    check("hostPorts", Level::Baseline, "", &[(0, host_ports)]),
    check("hostProbesAndHostLifecycle", Level::Baseline, "", &[(34, probe_hosts)]),
    check("privileged", Level::Baseline, "", &[(0, privileged)]),
    check(
        "procMount",
        Level::Baseline,
        "",
        &[(0, proc_mount), (35, |pod| pod.unless_user_namespace(proc_mount))],
    ),
    check(
        "seLinuxOptions",
        Level::Baseline,
        "",
        &[
            (0, |pod| selinux(pod, &SELINUX_TYPES[..4])),
            (31, |pod| selinux(pod, &SELINUX_TYPES)),
        ],
    ),
    check(
        "seccompProfile_baseline",
        Level::Baseline,
        "",
        &[(0, seccomp_annotations), (19, |pod| seccomp(pod, false))],
    ),
    check(
        "sysctls",
        Level::Baseline,
        "",
        &[
            (0, |pod| sysctls(pod, &SYSCTLS[..5])),
            (27, |pod| sysctls(pod, &SYSCTLS[..6])),
            (29, |pod| sysctls(pod, &SYSCTLS[..10])),
            (32, |pod| sysctls(pod, &SYSCTLS)),
        ],
    ),
    check("windowsHostProcess", Level::Baseline, "", &[(0, windows_host_process)]),
    check(
        "allowPrivilegeEscalation",
        Level::Restricted,
        "",
        &[
            (8, privilege_escalation),
            (25, |pod| pod.unless_windows(privilege_escalation)),
        ],
    ),
    check(
        "capabilities_restricted",
        Level::Restricted,
        "capabilities_baseline",
        &[
            (22, capabilities_restricted),
            (25, |pod| pod.unless_windows(capabilities_restricted)),
        ],
    ),
    check(
        "procMount_restricted",
        Level::Restricted,
        "procMount",
        &[(35, proc_mount)],
    ),
    check(
        "restrictedVolumes",
        Level::Restricted,
        "hostPathVolumes",
        &[(0, volumes)],
    ),
    check(
        "runAsNonRoot",
        Level::Restricted,
        "",
        &[
            (0, run_as_non_root),
            (35, |pod| pod.unless_user_namespace(run_as_non_root)),
        ],
    ),
    check(
        "runAsUser",
        Level::Restricted,
        "",
        &[(23, run_as_user), (35, |pod| pod.unless_user_namespace(run_as_user))],
    ),
    check(
        "seccompProfile_restricted",
        Level::Restricted,
        "seccompProfile_baseline",
        &[
            (19, |pod| seccomp(pod, true)),
            (25, |pod| pod.unless_windows(|pod| seccomp(pod, true))),
        ],
    ),
];

/// All that a standard finds wrong, baseline first.
pub fn violations(standard: Standard, subject: &Subject<'_>) -> Vec<Violation> {
    if standard.level == Level::Privileged {
        return Vec::new();
    }
    let asked = standard.version.unwrap_or(u32::MAX);
    let at = |check: &Check| -> Option<Run> {
        let current = check.versions.iter().rev().find(|(from, _)| *from <= asked);
        current.map(|(_, run)| *run).filter(|_| check.level <= standard.level)
    };
    let replaced: Vec<&str> = CHECKS
        .iter()
        .filter(|check| at(check).is_some())
        .map(|check| check.replaces)
        .collect();
    CHECKS
        .iter()
        .filter(|check| !replaced.contains(&check.id))
        .filter_map(|check| at(check)?(subject))
        .collect()
}

/// `reason (detail), reason (detail)`
pub fn details(violations: &[Violation]) -> String {
    let parts: Vec<String> = violations
        .iter()
        .map(|violation| match violation.detail.as_str() {
            "" => violation.reason.clone(),
            detail => format!("{} ({detail})", violation.reason),
        })
        .collect();
    parts.join(", ")
}

pub fn reasons(violations: &[Violation]) -> String {
    let parts: Vec<&str> = violations.iter().map(|violation| violation.reason.as_str()).collect();
    parts.join(", ")
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// A field that is there and not null.
fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    value.pointer(pointer).filter(|value| !value.is_null())
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    at(value, pointer).and_then(Value::as_str)
}

fn name(value: &Value) -> &str {
    text(value, "/name").unwrap_or_default()
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    format!("\"{}\"", names.join("\", \""))
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    format!(
        "{} {}",
        plural("container", "containers", names.len()),
        quoted(names.iter().copied())
    )
}

fn found(reason: impl Into<String>, detail: impl Into<String>) -> Option<Violation> {
    Some(Violation {
        reason: reason.into(),
        detail: detail.into(),
    })
}

impl<'a> Subject<'a> {
    /// `pod` has `metadata` and `spec`.
    pub fn new(pod: &'a Object) -> Self {
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        let containers = ["/initContainers", "/containers", "/ephemeralContainers"]
            .into_iter()
            .flat_map(|field| list(spec, field))
            .collect();
        Subject { pod, spec, containers }
    }

    /// The names of containers that `bad` finds bad.
    fn containers_that(&self, mut bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers
            .iter()
            .filter(|container| bad(container))
            .map(|container| name(container))
            .collect()
    }

    /// Who sets something bad: the Pod, containers, or both.
    fn setters(&self, mut bad: impl FnMut(&'a Value) -> bool) -> Option<String> {
        let mut setters = Vec::new();
        if bad(self.spec) {
            setters.push("pod".to_owned());
        }
        let names = self.containers_that(bad);
        if !names.is_empty() {
            setters.push(containers(&names));
        }
        (!setters.is_empty()).then(|| setters.join(" and "))
    }

    fn unless_windows(&self, run: Run) -> Option<Violation> {
        if text(self.spec, "/os/name") == Some("windows") {
            return None;
        }
        run(self)
    }

    fn unless_user_namespace(&self, run: Run) -> Option<Violation> {
        if at(self.spec, "/hostUsers") == Some(&Value::Bool(false)) {
            return None;
        }
        run(self)
    }
}

fn app_armor(pod: &Subject<'_>) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values = BTreeSet::new();
    let setters = pod.setters(|part| match at(part, "/securityContext/appArmorProfile") {
        None => false,
        Some(profile) => match text(profile, "/type") {
            Some("RuntimeDefault" | "Localhost") => false,
            other => {
                values.insert(other.unwrap_or_default());
                true
            }
        },
    });
    let mut annotations: Vec<String> = meta::annotations(pod.pod)
        .filter(|(key, value)| {
            let allowed = value.is_empty() || *value == "runtime/default" || value.starts_with("localhost/");
            key.starts_with(PREFIX) && !allowed
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    annotations.sort();
    let noted = (!annotations.is_empty()).then(|| plural("annotation", "annotations", annotations.len()).to_owned());
    let setters: Vec<String> = setters.into_iter().chain(noted).collect();
    if setters.is_empty() {
        return None;
    }
    let count = values.len() + annotations.len();
    let all = values.into_iter().chain(annotations.iter().map(String::as_str));
    found(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", count),
        format!(
            "{} must not set AppArmor profile type to {}",
            setters.join(" and "),
            quoted(all)
        ),
    )
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Containers that add what is not allowed, and what that is.
fn added<'a>(pod: &Subject<'a>, allowed: &[&str]) -> (Vec<&'a str>, BTreeSet<&'a str>) {
    let mut bad = BTreeSet::new();
    let names = pod.containers_that(|container| {
        let wrong: Vec<&str> = list(container, "/securityContext/capabilities/add")
            .filter_map(Value::as_str)
            .filter(|capability| !allowed.contains(capability))
            .collect();
        bad.extend(wrong.iter().copied());
        !wrong.is_empty()
    });
    (names, bad)
}

fn must_not_add(names: &[&str], capabilities: BTreeSet<&str>) -> String {
    format!(
        "{} must not include {} in securityContext.capabilities.add",
        containers(names),
        quoted(capabilities)
    )
}

fn capabilities_baseline(pod: &Subject<'_>) -> Option<Violation> {
    let (names, bad) = added(pod, &CAPABILITIES);
    if names.is_empty() {
        return None;
    }
    found("non-default capabilities", must_not_add(&names, bad))
}

fn capabilities_restricted(pod: &Subject<'_>) -> Option<Violation> {
    let keeps = pod.containers_that(|container| {
        !list(container, "/securityContext/capabilities/drop").any(|capability| capability == "ALL")
    });
    let (adds, bad) = added(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            containers(&keeps)
        ));
    }
    if !adds.is_empty() {
        details.push(must_not_add(&adds, bad));
    }
    if details.is_empty() {
        return None;
    }
    found("unrestricted capabilities", details.join("; "))
}

fn host_namespaces(pod: &Subject<'_>) -> Option<Violation> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec.get(field) == Some(&Value::Bool(true)))
        .map(|field| format!("{field}=true"))
        .collect();
    if used.is_empty() {
        return None;
    }
    found("host namespaces", used.join(", "))
}

fn host_path_volumes(pod: &Subject<'_>) -> Option<Violation> {
    let names: Vec<&str> = list(pod.spec, "/volumes")
        .filter(|volume| at(volume, "/hostPath").is_some())
        .map(name)
        .collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {}",
        plural("volume", "volumes", names.len()),
        quoted(names.iter().copied())
    );
    found("hostPath volumes", detail)
}

fn host_ports(pod: &Subject<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names = pod.containers_that(|container| {
        let mut any = false;
        for port in list(container, "/ports").filter_map(|port| at(port, "/hostPort")?.as_i64()) {
            if port != 0 {
                any = true;
                ports.insert(port.to_string());
            }
        }
        any
    });
    if names.is_empty() {
        return None;
    }
    let shown: Vec<String> = ports.iter().cloned().collect();
    found(
        "hostPort",
        format!(
            "{} {} {} {}",
            containers(&names),
            plural("uses", "use", names.len()),
            plural("hostPort", "hostPorts", ports.len()),
            shown.join(", ")
        ),
    )
}

fn probe_hosts(pod: &Subject<'_>) -> Option<Violation> {
    const HANDLERS: [&str; 5] = [
        "/livenessProbe",
        "/readinessProbe",
        "/startupProbe",
        "/lifecycle/postStart",
        "/lifecycle/preStop",
    ];
    let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
    for container in &pod.containers {
        for handler in HANDLERS.iter().filter_map(|handler| at(container, handler)) {
            for host in ["/httpGet/host", "/tcpSocket/host"]
                .iter()
                .filter_map(|pointer| text(handler, pointer))
                .filter(|host| !host.is_empty())
            {
                names.insert(name(container));
                hosts.insert(host);
            }
        }
    }
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    found(
        "probe or lifecycle host",
        format!(
            "{} {} {} {}",
            containers(&names),
            plural("uses", "use", names.len()),
            plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len()),
            quoted(hosts)
        ),
    )
}

fn privileged(pod: &Subject<'_>) -> Option<Violation> {
    let names =
        pod.containers_that(|container| at(container, "/securityContext/privileged") == Some(&Value::Bool(true)));
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.privileged=true", containers(&names));
    found("privileged", detail)
}

fn proc_mount(pod: &Subject<'_>) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let names = pod.containers_that(|container| {
        let kind = text(container, "/securityContext/procMount").filter(|kind| *kind != "Default");
        kinds.extend(kind);
        kind.is_some()
    });
    if names.is_empty() {
        return None;
    }
    found(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            containers(&names),
            quoted(kinds)
        ),
    )
}

const SELINUX_TYPES: [&str; 5] = [
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];

fn selinux(pod: &Subject<'_>, allowed: &[&str]) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let setters = pod.setters(|part| {
        let Some(options) = at(part, "/securityContext/seLinuxOptions") else {
            return false;
        };
        let kind = text(options, "/type").unwrap_or_default();
        let filled = |field: &str| text(options, field).is_some_and(|text| !text.is_empty());
        let bad_type = !allowed.contains(&kind);
        if bad_type {
            types.insert(kind);
        }
        user |= filled("/user");
        role |= filled("/role");
        bad_type || filled("/user") || filled("/role")
    })?;
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    if user {
        data.push("user may not be set".into());
    }
    if role {
        data.push("role may not be set".into());
    }
    found(
        "seLinuxOptions",
        format!(
            "{setters} set forbidden securityContext.seLinuxOptions: {}",
            data.join("; ")
        ),
    )
}

fn seccomp_annotations(pod: &Subject<'_>) -> Option<Violation> {
    let pod_key = "seccomp.security.alpha.kubernetes.io/pod".to_owned();
    let keys = pod
        .containers
        .iter()
        .map(|container| format!("container.seccomp.security.alpha.kubernetes.io/{}", name(container)));
    let forbidden: BTreeSet<String> = std::iter::once(pod_key)
        .chain(keys)
        .filter_map(|key| {
            let value = meta::annotation(pod.pod, &key)?;
            let allowed = matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!allowed).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    let all: Vec<String> = forbidden.iter().cloned().collect();
    found(
        "seccompProfile",
        format!(
            "forbidden {} {}",
            plural("annotation", "annotations", all.len()),
            all.join(", ")
        ),
    )
}

fn seccomp(pod: &Subject<'_>, required: bool) -> Option<Violation> {
    const FIELD: &str = "/securityContext/seccompProfile";
    let valid = |profile: &Value| matches!(text(profile, "/type"), Some("RuntimeDefault" | "Localhost"));
    let mut values = BTreeSet::new();
    let setters = pod.setters(|part| match at(part, FIELD) {
        Some(profile) if !valid(profile) => {
            values.insert(text(profile, "/type").unwrap_or_default());
            true
        }
        _ => false,
    });
    if let Some(setters) = setters {
        let detail = format!(
            "{setters} must not set securityContext.seccompProfile.type to {}",
            quoted(values)
        );
        return found("seccompProfile", detail);
    }
    if !required || at(pod.spec, FIELD).is_some() {
        return None;
    }
    let open = pod.containers_that(|container| at(container, FIELD).is_none());
    if open.is_empty() {
        return None;
    }
    found(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&open)
        ),
    )
}

const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    // 1.27
    "net.ipv4.ip_local_reserved_ports",
    // 1.29
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    // 1.32
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn sysctls(pod: &Subject<'_>, allowed: &[&str]) -> Option<Violation> {
    let forbidden: Vec<&str> = list(pod.spec, "/securityContext/sysctls")
        .map(name)
        .filter(|name| !allowed.contains(name))
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    found("forbidden sysctls", forbidden.join(", "))
}

fn windows_host_process(pod: &Subject<'_>) -> Option<Violation> {
    let setters =
        pod.setters(|part| at(part, "/securityContext/windowsOptions/hostProcess") == Some(&Value::Bool(true)))?;
    found(
        "hostProcess",
        format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn privilege_escalation(pod: &Subject<'_>) -> Option<Violation> {
    let names = pod.containers_that(|container| {
        at(container, "/securityContext/allowPrivilegeEscalation") != Some(&Value::Bool(false))
    });
    if names.is_empty() {
        return None;
    }
    found(
        "allowPrivilegeEscalation != false",
        format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            containers(&names)
        ),
    )
}

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn volumes(pod: &Subject<'_>) -> Option<Violation> {
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in list(pod.spec, "/volumes") {
        if VOLUMES
            .iter()
            .any(|kind| volume.get(kind).is_some_and(|source| !source.is_null()))
        {
            continue;
        }
        names.push(name(volume));
        let kind = volume
            .as_object()
            .into_iter()
            .flatten()
            .find(|(field, source)| *field != "name" && !source.is_null());
        kinds.insert(kind.map_or("unknown", |(field, _)| field.as_str()));
    }
    if names.is_empty() {
        return None;
    }
    found(
        "restricted volume types",
        format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", names.len()),
            quoted(names.iter().copied()),
            plural("uses", "use", names.len()),
            plural("restricted volume type", "restricted volume types", kinds.len()),
            quoted(kinds)
        ),
    )
}

fn run_as_non_root(pod: &Subject<'_>) -> Option<Violation> {
    const FIELD: &str = "/securityContext/runAsNonRoot";
    const REASON: &str = "runAsNonRoot != true";
    if let Some(setters) = pod.setters(|part| at(part, FIELD) == Some(&Value::Bool(false))) {
        return found(
            REASON,
            format!("{setters} must not set securityContext.runAsNonRoot=false"),
        );
    }
    if at(pod.spec, FIELD) == Some(&Value::Bool(true)) {
        return None;
    }
    let open = pod.containers_that(|container| at(container, FIELD).is_none());
    if open.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.runAsNonRoot=true",
        containers(&open)
    );
    found(REASON, detail)
}

fn run_as_user(pod: &Subject<'_>) -> Option<Violation> {
    let setters = pod.setters(|part| at(part, "/securityContext/runAsUser").and_then(Value::as_i64) == Some(0))?;
    found("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(level: Level, version: Option<u32>, spec: Value) -> String {
        let pod = json!({"metadata": {}, "spec": spec});
        details(&violations(Standard { level, version }, &Subject::new(&pod)))
    }

    /// The least that the strictest standard lets through.
    fn good() -> Value {
        json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
        })
    }

    #[test]
    fn what_is_good_passes_everywhere() {
        for level in [Level::Privileged, Level::Baseline, Level::Restricted] {
            for version in [Some(0), Some(8), Some(19), Some(22), Some(25), Some(35), Some(99), None] {
                assert_eq!(of(level, version, good()), "", "{level:?} {version:?}");
            }
        }
    }

    #[test]
    fn a_plain_pod_in_upstreams_words() {
        let plain = json!({"containers": [{"name": "c"}]});
        assert_eq!(of(Level::Baseline, None, plain.clone()), "");
        assert_eq!(
            of(Level::Restricted, None, plain),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
    }

    #[test]
    fn each_baseline_check() {
        let with = |context: Value| json!({"containers": [{"name": "a", "securityContext": context}, {"name": "b"}]});
        let cases = [
            (
                json!({"hostNetwork": true, "hostPID": true, "hostIPC": false}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volumes \"v\", \"w\")",
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 9}]}]}),
                "hostPort (container \"a\" uses hostPorts 80, 9)",
            ),
            (
                json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "x.example"}}}]}),
                "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"x.example\")",
            ),
            (
                with(json!({"privileged": true})),
                "privileged (container \"a\" must not set securityContext.privileged=true)",
            ),
            (
                with(json!({"procMount": "Unmasked"})),
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                with(json!({"capabilities": {"add": ["NET_RAW", "CHOWN", "SYS_ADMIN"]}})),
                "non-default capabilities (container \"a\" must not include \"NET_RAW\", \"SYS_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                with(json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}})),
                "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}, "containers": [
                    {"name": "a", "securityContext": {"seccompProfile": {"type": "Unconfined"}}}]}),
                "seccompProfile (pod and container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
                "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(of(Level::Baseline, None, spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn restricted_checks_and_their_versions() {
        let mut spec = good();
        spec["volumes"] =
            json!([{"name": "v", "hostPath": {"path": "/"}}, {"name": "n", "nfs": {}}, {"name": "s", "secret": {}}]);
        assert_eq!(
            of(Level::Restricted, None, spec),
            "restricted volume types (volumes \"v\", \"n\" use restricted volume types \"hostPath\", \"nfs\")"
        );
        let mut root = good();
        root["securityContext"]["runAsUser"] = 0.into();
        assert_eq!(
            of(Level::Restricted, Some(23), root.clone()),
            "runAsUser=0 (pod must not set runAsUser=0)"
        );
        assert_eq!(of(Level::Restricted, Some(22), root.clone()), "");
        root["hostUsers"] = false.into();
        assert_eq!(of(Level::Restricted, Some(35), root), "");
        let windows = json!({"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]});
        assert_eq!(of(Level::Restricted, None, windows), "");
        let old = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
        assert_eq!(
            of(Level::Baseline, Some(31), old),
            "forbidden sysctls (net.ipv4.tcp_rmem)"
        );
    }

    #[test]
    fn annotations_count() {
        let pod = json!({"metadata": {"annotations": {
            "container.apparmor.security.beta.kubernetes.io/c": "unconfined",
            "seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}, "spec": {"containers": [{"name": "c"}]}});
        let at = |version| {
            let standard = Standard {
                level: Level::Baseline,
                version: Some(version),
            };
            details(&violations(standard, &Subject::new(&pod)))
        };
        let armor = "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"container.apparmor.security.beta.kubernetes.io/c=\"unconfined\"\")";
        assert_eq!(at(19), armor);
        assert_eq!(
            at(18),
            format!(
                "{armor}, seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
            )
        );
    }
}
