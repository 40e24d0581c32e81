//! Cases of every check: what violates it from which version on until which, in which words, and what does not.
//!
//! A Pod that is fine is changed in one point and held to every version there is. That no check and no step of one is
//! without a failing and a passing case is asserted. Where upstream's own collection of Pods is at hand
//! (`SAMPAN_UPSTREAM_DATA`, or `../shared/data` beside the workspace), all of it is tried as well.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::checks::{CHECKS, Subject, details, violations};
use super::policy::{Level, Standard};

/// Later than any version.
const NEWEST: u32 = 37;
const EVER: std::ops::Range<u32> = 0..NEWEST;

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

/// A container that nothing is to be said against, but for `change`.
fn container(name: &str, change: Value) -> Value {
    let mut made = json!({"name": name, "securityContext": {"allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}}});
    merge(&mut made, &change);
    made
}

/// The same of a Pod.
fn pod(change: Value) -> Value {
    let mut made = json!({"metadata": {"name": "p"}, "spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container("a", json!({})), container("b", json!({}))]}});
    merge(&mut made, &change);
    made
}

/// With a change of the spec.
fn spec(change: Value) -> Value {
    pod(json!({ "spec": change }))
}

/// With a change of one container.
fn one(change: Value) -> Value {
    spec(json!({"containers": [container("a", change), container("b", json!({}))]}))
}

/// With a change of the security context of one container.
fn context(change: Value) -> Value {
    one(json!({ "securityContext": change }))
}

/// Without what the restricted standard demands of containers.
fn bare(change: Value) -> Value {
    let mut made = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
    merge(&mut made, &json!({ "spec": change }));
    made
}

/// Since which version a check is what it is in this one, if it is anything by then.
fn step(check: &str, minor: u32) -> Option<u32> {
    let check = CHECKS.iter().find(|known| known.id == check).expect("a check");
    let mut steps = check.versions.iter().map(|(from, _)| *from);
    steps.rfind(|from| *from <= minor)
}

struct Case {
    /// The check it is a case of.
    check: &'static str,
    level: Level,
    /// The minor versions that find something; none for what is fine.
    versions: std::ops::Range<u32>,
    pod: Value,
    /// All that these versions say.
    says: String,
}

struct Table(Vec<Case>);

impl Table {
    fn bad(
        &mut self,
        level: Level,
        check: &'static str,
        versions: std::ops::Range<u32>,
        pod: Value,
        says: impl Into<String>,
    ) {
        let says = says.into();
        self.0.push(Case {
            check,
            level,
            versions,
            pod,
            says,
        });
    }
    fn good(&mut self, level: Level, check: &'static str, pod: Value) {
        self.bad(level, check, 0..0, pod, "");
    }
}

fn baseline(table: &mut Table) {
    let b = Level::Baseline;
    for kind in ["RuntimeDefault", "Localhost"] {
        let profile = json!({"appArmorProfile": {"type": kind}});
        table.good(b, "appArmorProfile", spec(json!({"securityContext": profile})));
        table.good(b, "appArmorProfile", context(profile));
        let profile = json!({"seccompProfile": {"type": kind}});
        table.good(b, "seccompProfile_baseline", spec(json!({"securityContext": profile})));
        table.good(b, "seccompProfile_baseline", context(profile));
    }
    let armor = |what: &str| format!("forbidden AppArmor profile ({what} must not set AppArmor profile type to");
    let profile = json!({"appArmorProfile": {"type": "Unconfined"}});
    table.bad(
        b,
        "appArmorProfile",
        EVER,
        spec(json!({"securityContext": profile})),
        armor("pod") + " \"Unconfined\")",
    );
    table.bad(
        b,
        "appArmorProfile",
        EVER,
        context(profile.clone()),
        armor("container \"a\"") + " \"Unconfined\")",
    );
    let both = spec(
        json!({"securityContext": profile, "containers": [container("a", json!({"securityContext": profile})),
        container("b", json!({"securityContext": {"appArmorProfile": {"type": "Other"}}}))]}),
    );
    let says = "forbidden AppArmor profiles (pod and containers \"a\", \"b\" must not set AppArmor profile type to \"Other\", \"Unconfined\")";
    table.bad(b, "appArmorProfile", EVER, both, says);
    let key = "container.apparmor.security.beta.kubernetes.io/a";
    let noted = |value: &str| pod(json!({"metadata": {"annotations": {key: value}}}));
    for fine in ["", "runtime/default", "localhost/x"] {
        table.good(b, "appArmorProfile", noted(fine));
    }
    let says = armor("annotation") + " \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")";
    table.bad(b, "appArmorProfile", EVER, noted("unconfined"), says);

    for fine in [
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
    ] {
        table.good(
            b,
            "capabilities_baseline",
            context(json!({"capabilities": {"add": [fine]}})),
        );
    }
    for bad in [
        "NET_RAW",
        "SYS_ADMIN",
        "ALL",
        "NET_ADMIN",
        "SYS_PTRACE",
        "CAP_CHOWN",
        "chown",
        "BPF",
        "SYS_TIME",
    ] {
        let says = format!(
            "non-default capabilities (container \"a\" must not include \"{bad}\" in securityContext.capabilities.add)"
        );
        let add = context(json!({"capabilities": {"add": ["CHOWN", bad]}}));
        table.bad(b, "capabilities_baseline", EVER, add, says);
    }

    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        table.good(b, "hostNamespaces", spec(json!({field: false})));
        table.bad(
            b,
            "hostNamespaces",
            EVER,
            spec(json!({field: true})),
            format!("host namespaces ({field}=true)"),
        );
    }
    let all = spec(json!({"hostIPC": true, "hostPID": true, "hostNetwork": true}));
    table.bad(
        b,
        "hostNamespaces",
        EVER,
        all,
        "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)",
    );

    table.good(
        b,
        "hostPathVolumes",
        spec(json!({"volumes": [{"name": "v", "nfs": {}}, {"name": "w"}]})),
    );
    let path = spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}));
    table.bad(b, "hostPathVolumes", EVER, path, "hostPath volumes (volume \"v\")");
    let paths = spec(
        json!({"volumes": [{"name": "v", "hostPath": {}}, {"name": "x", "emptyDir": {}}, {"name": "w", "hostPath": {}}]}),
    );
    table.bad(
        b,
        "hostPathVolumes",
        EVER,
        paths,
        "hostPath volumes (volumes \"v\", \"w\")",
    );

    table.good(
        b,
        "hostPorts",
        one(json!({"ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 0}]})),
    );
    table.bad(
        b,
        "hostPorts",
        EVER,
        one(json!({"ports": [{"hostPort": 80}]})),
        "hostPort (container \"a\" uses hostPort 80)",
    );
    let ports = spec(
        json!({"initContainers": [container("i", json!({"ports": [{"hostPort": 9}, {"hostPort": 80}]}))],
        "containers": [container("a", json!({"ports": [{"hostPort": 9}]}))]}),
    );
    table.bad(
        b,
        "hostPorts",
        EVER,
        ports,
        "hostPort (containers \"i\", \"a\" use hostPorts 80, 9)",
    );

    for handler in ["livenessProbe", "readinessProbe", "startupProbe"] {
        for how in ["httpGet", "tcpSocket"] {
            let with = |host: &str| one(json!({handler: {how: {"host": host, "port": 1}}}));
            table.good(b, "hostProbesAndHostLifecycle", with(""));
            let says = "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"h.example\")";
            table.bad(b, "hostProbesAndHostLifecycle", 34..NEWEST, with("h.example"), says);
        }
    }
    for handler in ["postStart", "preStop"] {
        for how in ["httpGet", "tcpSocket"] {
            let with = |host: &str| one(json!({"lifecycle": {handler: {how: {"host": host, "port": 1}}}}));
            table.good(b, "hostProbesAndHostLifecycle", with(""));
            let says = "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"127.0.0.1\")";
            table.bad(b, "hostProbesAndHostLifecycle", 34..NEWEST, with("127.0.0.1"), says);
        }
    }

    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        let with = |on: bool| spec(json!({kind: [container("c", json!({"securityContext": {"privileged": on}}))]}));
        table.good(b, "privileged", with(false));
        let says = "privileged (container \"c\" must not set securityContext.privileged=true)";
        table.bad(b, "privileged", EVER, with(true), says);
    }

    let unmasked = json!({"procMount": "Unmasked"});
    let says = "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")";
    table.good(b, "procMount", context(json!({"procMount": "Default"})));
    table.bad(b, "procMount", EVER, context(unmasked.clone()), says);
    let mut relaxed = context(unmasked);
    merge(&mut relaxed, &json!({"spec": {"hostUsers": false}}));
    table.bad(b, "procMount", 0..35, relaxed.clone(), says);
    table.bad(Level::Restricted, "procMount_restricted", EVER, relaxed, says);
    table.good(
        Level::Restricted,
        "procMount_restricted",
        context(json!({"procMount": "Default"})),
    );

    for kind in ["", "container_t", "container_init_t", "container_kvm_t"] {
        table.good(
            b,
            "seLinuxOptions",
            context(json!({"seLinuxOptions": {"type": kind, "level": "s0"}})),
        );
    }
    let se =
        |text: &str| format!("seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: {text})");
    let engine = context(json!({"seLinuxOptions": {"type": "container_engine_t"}}));
    table.bad(b, "seLinuxOptions", 0..31, engine, se("type \"container_engine_t\""));
    for (options, says) in [
        (json!({"type": "spc_t"}), "type \"spc_t\""),
        (json!({"user": "u"}), "user may not be set"),
        (json!({"role": "r"}), "role may not be set"),
        (
            json!({"type": "x", "user": "u", "role": "r"}),
            "type \"x\"; user may not be set; role may not be set",
        ),
    ] {
        table.bad(
            b,
            "seLinuxOptions",
            EVER,
            context(json!({"seLinuxOptions": options})),
            se(says),
        );
    }
    let both = spec(json!({"securityContext": {"seLinuxOptions": {"type": "x"}},
        "initContainers": [container("i", json!({"securityContext": {"seLinuxOptions": {"type": "y"}}}))]}));
    let says =
        "seLinuxOptions (pod and container \"i\" set forbidden securityContext.seLinuxOptions: types \"x\", \"y\")";
    table.bad(b, "seLinuxOptions", EVER, both, says);

    for key in [
        "seccomp.security.alpha.kubernetes.io/pod",
        "container.seccomp.security.alpha.kubernetes.io/a",
    ] {
        let noted = |value: &str| pod(json!({"metadata": {"annotations": {key: value}}}));
        for fine in ["runtime/default", "docker/default", "localhost/x"] {
            table.good(b, "seccompProfile_baseline", noted(fine));
        }
        let says = format!("seccompProfile (forbidden annotation {key}=\"unconfined\")");
        table.bad(b, "seccompProfile_baseline", 0..19, noted("unconfined"), says);
    }
    let other =
        pod(json!({"metadata": {"annotations": {"container.seccomp.security.alpha.kubernetes.io/x": "unconfined"}}}));
    table.good(b, "seccompProfile_baseline", other);
    let open = json!({"seccompProfile": {"type": "Unconfined"}});
    let seccomp = |who: &str| {
        format!("seccompProfile ({who} must not set securityContext.seccompProfile.type to \"Unconfined\")")
    };
    table.bad(
        b,
        "seccompProfile_baseline",
        19..NEWEST,
        context(open.clone()),
        seccomp("container \"a\""),
    );
    table.bad(
        b,
        "seccompProfile_baseline",
        19..NEWEST,
        spec(json!({"securityContext": open})),
        seccomp("pod"),
    );

    let sysctl = |name: &str| spec(json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}}));
    for (names, from) in [
        (
            &[
                "kernel.shm_rmid_forced",
                "net.ipv4.ip_local_port_range",
                "net.ipv4.tcp_syncookies",
                "net.ipv4.ping_group_range",
                "net.ipv4.ip_unprivileged_port_start",
            ][..],
            0,
        ),
        (&["net.ipv4.ip_local_reserved_ports"], 27),
        (
            &[
                "net.ipv4.tcp_keepalive_time",
                "net.ipv4.tcp_fin_timeout",
                "net.ipv4.tcp_keepalive_intvl",
                "net.ipv4.tcp_keepalive_probes",
            ],
            29,
        ),
        (&["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"], 32),
        (
            &[
                "kernel.msgmax",
                "net.ipv4.ip_forward",
                "net/ipv4/tcp_syncookies",
                "fs.mqueue.msg_max",
            ],
            NEWEST,
        ),
    ] {
        for name in names {
            table.bad(
                b,
                "sysctls",
                0..from,
                sysctl(name),
                format!("forbidden sysctls ({name})"),
            );
        }
    }
    let two = spec(json!({"securityContext": {"sysctls": [{"name": "z"}, {"name": "a"}]}}));
    table.bad(b, "sysctls", EVER, two, "forbidden sysctls (z, a)");

    let host = |on: bool| json!({"windowsOptions": {"hostProcess": on}});
    let process =
        |who: &str| format!("hostProcess ({who} must not set securityContext.windowsOptions.hostProcess=true)");
    table.good(b, "windowsHostProcess", context(host(false)));
    table.bad(
        b,
        "windowsHostProcess",
        EVER,
        context(host(true)),
        process("container \"a\""),
    );
    table.bad(
        b,
        "windowsHostProcess",
        EVER,
        spec(json!({"securityContext": host(true)})),
        process("pod"),
    );
}

fn restricted(table: &mut Table) {
    let r = Level::Restricted;
    let windows = |mut pod: Value| {
        merge(&mut pod, &json!({"spec": {"os": {"name": "windows"}}}));
        pod
    };
    let own_users = |mut pod: Value| {
        merge(&mut pod, &json!({"spec": {"hostUsers": false}}));
        pod
    };
    let says =
        "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false)";
    for value in [json!(true), Value::Null] {
        let raised = context(json!({"allowPrivilegeEscalation": value}));
        table.bad(r, "allowPrivilegeEscalation", 8..NEWEST, raised.clone(), says);
        table.bad(r, "allowPrivilegeEscalation", 8..25, windows(raised), says);
    }
    table.good(r, "allowPrivilegeEscalation", pod(json!({})));

    table.good(
        r,
        "capabilities_restricted",
        context(json!({"capabilities": {"add": ["NET_BIND_SERVICE"]}})),
    );
    table.good(
        r,
        "capabilities_restricted",
        context(json!({"capabilities": {"drop": ["CHOWN", "ALL"]}})),
    );
    let keeps = context(json!({"capabilities": {"drop": ["NET_RAW"]}}));
    let says = "unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"])";
    table.bad(r, "capabilities_restricted", 22..NEWEST, keeps.clone(), says);
    table.bad(r, "capabilities_restricted", 22..25, windows(keeps), says);
    let adds = context(json!({"capabilities": {"add": ["CHOWN", "NET_BIND_SERVICE"]}}));
    let says =
        "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)";
    table.bad(r, "capabilities_restricted", 22..NEWEST, adds, says);
    let both = context(json!({"capabilities": {"drop": [], "add": ["CHOWN", "KILL"]}}));
    let says = "unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]; \
                container \"a\" must not include \"CHOWN\", \"KILL\" in securityContext.capabilities.add)";
    table.bad(r, "capabilities_restricted", 22..NEWEST, both, says);

    let volume = |kind: &str| spec(json!({"volumes": [{"name": "v", kind: {}}]}));
    for kind in [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ] {
        table.good(r, "restrictedVolumes", volume(kind));
    }
    for kind in [
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "gitRepo",
        "glusterfs",
        "hostPath",
        "iscsi",
        "nfs",
        "photonPersistentDisk",
        "portworxVolume",
        "quobyte",
        "rbd",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    ] {
        let says = format!("restricted volume types (volume \"v\" uses restricted volume type \"{kind}\")");
        table.bad(r, "restrictedVolumes", EVER, volume(kind), says);
    }
    let says = "restricted volume types (volume \"v\" uses restricted volume type \"unknown\")";
    table.bad(
        r,
        "restrictedVolumes",
        EVER,
        spec(json!({"volumes": [{"name": "v"}]})),
        says,
    );

    let user = |change: Value| spec(json!({ "securityContext": change }));
    let missing = "runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true)";
    let says = |who: &str| format!("runAsNonRoot != true ({who} must not set securityContext.runAsNonRoot=false)");
    for (given, says) in [
        (user(json!({"runAsNonRoot": null})), missing.to_owned()),
        (user(json!({"runAsNonRoot": false})), says("pod")),
        (context(json!({"runAsNonRoot": false})), says("container \"a\"")),
    ] {
        table.bad(r, "runAsNonRoot", EVER, given.clone(), says.clone());
        table.bad(r, "runAsNonRoot", 0..35, own_users(given.clone()), says.clone());
        // Windows has no part in this.
        table.bad(r, "runAsNonRoot", EVER, windows(given), says);
    }
    let each = spec(json!({"securityContext": {"runAsNonRoot": null}, "containers": [
        container("a", json!({"securityContext": {"runAsNonRoot": true}}))]}));
    table.good(r, "runAsNonRoot", each);

    for (given, who) in [
        (user(json!({"runAsUser": 0})), "pod"),
        (context(json!({"runAsUser": 0})), "container \"a\""),
    ] {
        let says = format!("runAsUser=0 ({who} must not set runAsUser=0)");
        table.bad(r, "runAsUser", 23..NEWEST, given.clone(), says.clone());
        table.bad(r, "runAsUser", 23..35, own_users(given), says);
    }
    table.good(r, "runAsUser", user(json!({"runAsUser": 1000})));

    let open = user(json!({"seccompProfile": null}));
    let says = "seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \
                \"RuntimeDefault\" or \"Localhost\")";
    table.bad(r, "seccompProfile_restricted", 19..NEWEST, open.clone(), says);
    table.bad(r, "seccompProfile_restricted", 19..25, windows(open), says);
    let says = "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")";
    table.bad(
        r,
        "seccompProfile_restricted",
        19..NEWEST,
        user(json!({"seccompProfile": {"type": "Unconfined"}})),
        says,
    );
    let each = spec(json!({"securityContext": {"seccompProfile": null}, "containers": [
        container("a", json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}))]}));
    table.good(r, "seccompProfile_restricted", each);
    let says = "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), \
                runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true)";
    table.bad(r, "allowPrivilegeEscalation", 8..19, bare(json!({})), says);
}

#[test]
fn every_check_has_cases_in_every_version() {
    let mut table = Table(Vec::new());
    baseline(&mut table);
    restricted(&mut table);
    let (mut held, mut refused) = (0, 0);
    let mut failing = BTreeSet::new();
    let mut passing = BTreeSet::new();
    for case in &table.0 {
        let subject = Subject::new(&case.pod);
        // Only the last case of the table says something else in later versions.
        let whole = case.pod.pointer("/spec/securityContext").is_some();
        for minor in (0..NEWEST).map(Some).chain([None]) {
            let standard = Standard {
                level: case.level,
                version: minor,
            };
            let bad = case.versions.contains(&minor.unwrap_or(NEWEST - 1));
            let says = details(&violations(standard, &subject));
            if whole || bad {
                let expected = if bad { case.says.as_str() } else { "" };
                assert_eq!(says, expected, "{} at {standard}: {}", case.check, case.pod);
            }
            held += 1;
            refused += usize::from(bad);
            if let Some(minor) = minor
                && let Some(step) = step(case.check, minor)
            {
                if bad { &mut failing } else { &mut passing }.insert((case.check, step));
            }
        }
        // The restricted standard includes the baseline.
        if case.level == Level::Baseline {
            for minor in case.versions.clone() {
                let standard = Standard {
                    level: Level::Restricted,
                    version: Some(minor),
                };
                assert!(
                    !violations(standard, &subject).is_empty(),
                    "{} at {standard}",
                    case.check
                );
            }
        }
        // And nothing is too bad for the privileged one.
        let standard = Standard {
            level: Level::Privileged,
            version: None,
        };
        assert!(violations(standard, &subject).is_empty());
    }
    let all: BTreeSet<(&str, u32)> = CHECKS
        .iter()
        .flat_map(|check| check.versions.iter().map(|(from, _)| (check.id, *from)))
        .collect();
    assert_eq!(failing, all, "each step of each check has a case that fails");
    assert_eq!(passing, all, "each step of each check has a case that passes");
    println!(
        "{} checks, {} steps, {} Pods: held to a standard {held} times, {refused} times refused",
        CHECKS.len(),
        all.len(),
        table.0.len()
    );
}

/// Upstream's collection: a directory for each level and version with Pods that pass and Pods that fail.
#[test]
fn upstreams_own_pods_fare_as_there() {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let data = std::env::var_os("SAMPAN_UPSTREAM_DATA").map_or_else(beside, PathBuf::from);
    let data = data.join("pod-security");
    if !data.is_dir() {
        println!("skipped: upstream's Pods are not at {}", data.display());
        return;
    }
    let mut tried = 0;
    let mut wrong = Vec::new();
    for (level, name) in [(Level::Baseline, "baseline"), (Level::Restricted, "restricted")] {
        for version in std::fs::read_dir(data.join(name)).unwrap() {
            let version = version.unwrap().path();
            let minor: u32 = version.file_name().unwrap().to_str().unwrap()[3..].parse().unwrap();
            for fine in ["pass", "fail"] {
                let Ok(pods) = std::fs::read_dir(version.join(fine)) else {
                    continue;
                };
                for pod in pods {
                    let path = pod.unwrap().path();
                    let text = std::fs::read(&path).unwrap();
                    let mut pod = sampan_api::codec::yaml::decode(&text).unwrap().object;
                    // They are meant to be sent to a server, which makes a volume of no kind an empty directory.
                    for volume in pod
                        .pointer_mut("/spec/volumes")
                        .and_then(Value::as_array_mut)
                        .into_iter()
                        .flatten()
                    {
                        if let Some(volume) = volume.as_object_mut().filter(|volume| volume.len() == 1) {
                            volume.insert("emptyDir".into(), json!({}));
                        }
                    }
                    let standard = Standard {
                        level,
                        version: Some(minor),
                    };
                    let says = details(&violations(standard, &Subject::new(&pod)));
                    tried += 1;
                    if says.is_empty() != (fine == "pass") {
                        wrong.push(format!("{}: {says}", path.display()));
                    }
                }
            }
        }
    }
    println!("{tried} of upstream's Pods");
    assert_eq!(wrong, Vec::<String>::new());
    assert!(tried > 4000);
}
