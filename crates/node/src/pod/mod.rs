//! What a Pod means to a node, without I/O: which containers to start, stop or keep, what its status says, what
//! its containers are given. Every decision here is a pure function of the Pod, of what the runtime reports
//! ([`Observed`]) and of the time, so that the worker that acts on it can be interrupted and started again anywhere.

pub mod actions;
pub mod backoff;
pub mod config;
pub mod credentials;
pub mod env;
pub mod files;
pub mod observed;
pub mod qos;
pub mod security;
pub mod status;

use k8s_openapi::api::core::v1::{Container, ContainerPort, EphemeralContainer, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub use observed::Observed;

/// Labels and annotations on sandboxes and containers. The names are those other tools look for.
pub mod label {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
    /// The addresses a sandbox was given, so that a restarted node knows them.
    pub const POD_IPS: &str = "sampan.io/pod-ips";
}

/// Which list of the spec a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Init,
    Sidecar,
    Regular,
    Ephemeral,
}

/// The spec, or an empty one for an object that has none.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// As upstream prints a Pod in messages: `name_namespace(uid)`.
pub fn display(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

pub fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub fn containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

/// Ephemeral containers in the form of the others: they differ only in the container they look at.
pub fn ephemeral_containers(pod: &Pod) -> Vec<Container> {
    let all = spec(pod).ephemeral_containers.iter().flatten();
    all.map(as_container).collect()
}

fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let e = ephemeral.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        name: e.name,
        ports: e.ports,
        resources: e.resources,
        security_context: e.security_context,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
        ..Container::default()
    }
}

/// A container of the Pod by name, with its role.
pub fn find_container(pod: &Pod, name: &str) -> Option<(Role, Container)> {
    let named = |container: &&Container| container.name == name;
    if let Some(found) = containers(pod).iter().find(named) {
        return Some((Role::Regular, found.clone()));
    }
    if let Some(found) = init_containers(pod).iter().find(named) {
        let role = if is_sidecar(found) { Role::Sidecar } else { Role::Init };
        return Some((role, found.clone()));
    }
    let ephemeral = ephemeral_containers(pod).into_iter();
    ephemeral
        .filter(|container| container.name == name)
        .map(|found| (Role::Ephemeral, found))
        .next()
}

/// An init container that keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// Whether a container that ended with `exit_code` is to be started again.
pub fn restarts_after(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else {
            continue;
        };
        let listed = codes.values.iter().flatten().any(|value| *value == exit_code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if matches && rule.action.starts_with("Restart") {
            return true;
        }
    }
    let policy = container
        .restart_policy
        .as_deref()
        .unwrap_or_else(|| restart_policy(pod));
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether anything of the Pod may be started again after a failure.
pub fn restarts_on_failure(pod: &Pod) -> bool {
    restart_policy(pod) != "Never"
}

pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// Whether the Pod's users are the node's.
pub fn host_users(pod: &Pod) -> bool {
    spec(pod).host_users.unwrap_or(true)
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// How long the Pod's containers have to end by themselves: at least a second, as upstream.
pub fn grace_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30)
        .max(1)
}

/// What the Pod asks for and this node cannot give: better said than left out in silence.
pub fn unsupported(pod: &Pod) -> Option<String> {
    let spec = spec(pod);
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some("dynamic resource allocation is not supported on this node; leave resourceClaims out".into());
    }
    let devices = containers(pod).iter().chain(init_containers(pod)).any(|container| {
        container
            .volume_devices
            .as_ref()
            .is_some_and(|devices| !devices.is_empty())
    });
    devices.then(|| "block volumes are not supported on this node; leave volumeDevices out".into())
}

/// A port by number or by the name it has in the container.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Option<u16> {
    let by_name = |name: &str| {
        let ports = container.ports.iter().flatten();
        ports
            .filter(|port: &&ContainerPort| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .next()
            .or_else(|| name.parse().ok())
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => by_name(name),
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port > 0)
}

/// What a container's definition comes down to for the question whether a running one is still right. Everything
/// but the image is immutable, so name and image are enough.
pub fn container_hash(container: &Container) -> String {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    hasher.update(container.name.as_bytes());
    hasher.update([0]);
    hasher.update(container.image.as_deref().unwrap_or_default().as_bytes());
    hex::encode(&hasher.finalize()[..8])
}

#[cfg(test)]
pub(crate) mod testing {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    /// A bound Pod with the given spec.
    pub fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "uid-1", "generation": 1},
            "spec": spec
        }))
        .expect("a pod")
    }
}

#[cfg(test)]
mod tests {
    use super::testing::pod;
    use super::*;
    use serde_json::json;

    #[test]
    fn restart_policies_and_rules() {
        for (policy, container, code, expected) in [
            ("Always", json!({"name": "c"}), 0, true),
            ("OnFailure", json!({"name": "c"}), 0, false),
            ("OnFailure", json!({"name": "c"}), 1, true),
            ("Never", json!({"name": "c"}), 1, false),
            ("Never", json!({"name": "c", "restartPolicy": "Always"}), 0, true),
            (
                "Never",
                json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules":
                    [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}),
                42,
                true,
            ),
            (
                "Never",
                json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules":
                    [{"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [42]}}]}),
                42,
                false,
            ),
        ] {
            let pod = pod(json!({"restartPolicy": policy, "containers": [container]}));
            let got = restarts_after(&pod, &containers(&pod)[0], code);
            assert_eq!(got, expected, "{policy} {container} {code}");
        }
    }

    #[test]
    fn what_cannot_be_given_is_named() {
        for (spec, named) in [
            (json!({"containers": []}), None),
            (json!({"containers": [], "hostUsers": true}), None),
            (json!({"containers": [], "hostUsers": false}), None),
            (
                json!({"containers": [], "resourceClaims": [{"name": "r"}]}),
                Some("resourceClaims"),
            ),
            (
                json!({"containers": [{"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]}),
                Some("volumeDevices"),
            ),
        ] {
            let got = unsupported(&pod(spec.clone()));
            assert_eq!(got.is_some(), named.is_some(), "{spec}");
            assert!(got.unwrap_or_default().contains(named.unwrap_or_default()));
        }
    }

    #[test]
    fn ports_resolve_by_number_and_name() {
        let pod = pod(json!({"containers": [{"name": "c",
            "ports": [{"name": "web", "containerPort": 8080}]}]}));
        let container = &containers(&pod)[0];
        for (port, expected) in [
            (json!(80), Some(80)),
            (json!("web"), Some(8080)),
            (json!("81"), Some(81)),
            (json!("nope"), None),
            (json!(0), None),
            (json!(70000), None),
        ] {
            let parsed: IntOrString = serde_json::from_value(port.clone()).unwrap();
            assert_eq!(resolve_port(&parsed, container), expected, "{port}");
        }
    }
}
