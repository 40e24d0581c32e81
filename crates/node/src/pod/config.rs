//! What the runtime is told to make: sandbox and container configurations. Pure; what needed I/O (variables,
//! prepared volumes, the image's configuration) comes in.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_runtime::{
    ContainerConfig, ContainerMetadata, DnsConfig, Image, KeyValue, LinuxContainerConfig, LinuxPodSandboxConfig, Mount,
    MountPropagation, NamespaceMode, NamespaceOptions, PodSandboxConfig, PodSandboxMetadata, StringMap,
};

use super::{env, label, qos, security};
use crate::NodeConfig;

/// Labels of everything that belongs to a Pod.
pub fn pod_labels(pod: &Pod) -> StringMap {
    let mut labels: StringMap = pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(label::POD_NAME.into(), super::name(pod).into());
    labels.insert(label::POD_NAMESPACE.into(), super::namespace(pod).into());
    labels.insert(label::POD_UID.into(), super::uid(pod).into());
    labels
}

/// Where a Pod's logs are: `<namespace>_<name>_<uid>`.
pub fn log_directory(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join(format!("{namespace}_{name}_{uid}"))
}

/// A sandbox's configuration.
pub fn sandbox(
    node: &NodeConfig,
    pod: &Pod,
    attempt: u32,
    hostname: String,
    dns: DnsConfig,
    netns: Option<PathBuf>,
    ips: &[String],
) -> PodSandboxConfig {
    let spec = super::spec(pod);
    let host_network = super::host_network(pod);
    let node_or_pod = |node: Option<bool>| {
        if node.unwrap_or(false) {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        }
    };
    let sysctls = spec
        .security_context
        .iter()
        .flat_map(|context| context.sysctls.iter().flatten())
        .map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone()))
        .collect();
    PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: super::name(pod).into(),
            namespace: super::namespace(pod).into(),
            uid: super::uid(pod).into(),
            attempt,
        },
        // With the node's network goes the node's name.
        hostname: if host_network { String::new() } else { hostname },
        log_directory: log_directory(
            &node.pod_logs_dir(),
            super::namespace(pod),
            super::name(pod),
            super::uid(pod),
        ),
        dns: Some(dns),
        labels: pod_labels(pod),
        annotations: [(label::POD_IPS.to_owned(), ips.join(","))].into(),
        linux: LinuxPodSandboxConfig {
            cgroup_parent: qos::cgroup_parent(&node.cgroup_root, pod),
            sysctls,
            namespaces: NamespaceOptions {
                network: node_or_pod(Some(host_network)),
                ipc: node_or_pod(spec.host_ipc),
                pid: if spec.host_pid.unwrap_or(false) {
                    NamespaceMode::Node
                } else if spec.share_process_namespace.unwrap_or(false) {
                    NamespaceMode::Pod
                } else {
                    NamespaceMode::Container
                },
            },
            netns,
            users: None,
            shm_size: None,
            resources: Some(qos::pod_resources(pod)),
        },
    }
}

/// A mount with the host path its volume or sub-path came to.
pub fn mount(of: &k8s_openapi::api::core::v1::VolumeMount, host_path: PathBuf, volume_read_only: bool) -> Mount {
    let readonly = of.read_only.unwrap_or(false) || volume_read_only;
    Mount {
        container_path: container_path(&of.mount_path),
        host_path,
        readonly,
        recursive_readonly: readonly && matches!(of.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        propagation: match of.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
        ..Mount::default()
    }
}

/// Mount paths are absolute inside, however they are written.
fn container_path(path: &str) -> PathBuf {
    if path.starts_with('/') {
        PathBuf::from(path)
    } else {
        PathBuf::from(format!("/{path}"))
    }
}

/// What a container's configuration is made of.
pub struct ContainerInput<'a> {
    pub node: &'a NodeConfig,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub attempt: u32,
    pub image: &'a Image,
    pub envs: Vec<KeyValue>,
    pub mounts: Vec<Mount>,
    /// The file on the node that receives the termination message.
    pub message_file: Option<PathBuf>,
    pub memory_capacity: i64,
}

/// Where a container writes its last words.
pub fn message_path(container: &Container) -> &str {
    container
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/dev/termination-log")
}

/// A container's configuration; the error is the message for `CreateContainerConfigError`.
pub fn container(input: ContainerInput<'_>) -> Result<ContainerConfig, String> {
    let ContainerInput {
        node,
        pod,
        container,
        attempt,
        image,
        envs,
        mut mounts,
        message_file,
        memory_capacity,
    } = input;
    let security_context = security::context(
        pod,
        container,
        image,
        &node.seccomp_profile_root(),
        node.seccomp_default,
    )?;
    let lookup = env::lookup_in(&envs);
    let expand_all = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| env::expand(text, &lookup)).collect()
    };
    let (command, args) = (expand_all(&container.command), expand_all(&container.args));
    drop(lookup);
    if let Some(host_path) = message_file {
        mounts.push(Mount {
            container_path: message_path(container).into(),
            host_path,
            ..Mount::default()
        });
    }
    let mut labels = pod_labels(pod);
    labels.insert(label::CONTAINER_NAME.into(), container.name.clone());
    let annotations = [
        (label::CONTAINER_HASH, super::container_hash(container)),
        (label::TERMINATION_MESSAGE_PATH, message_path(container).to_owned()),
        (
            label::TERMINATION_MESSAGE_POLICY,
            container
                .termination_message_policy
                .clone()
                .unwrap_or_else(|| "File".into()),
        ),
        (
            label::GRACE_PERIOD,
            super::spec(pod)
                .termination_grace_period_seconds
                .unwrap_or(30)
                .to_string(),
        ),
    ];
    let stop_signal = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.clone());
    Ok(ContainerConfig {
        metadata: ContainerMetadata {
            name: container.name.clone(),
            attempt,
        },
        image: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs,
        mounts,
        devices: Vec::new(),
        labels,
        annotations: annotations
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        stop_signal,
        linux: LinuxContainerConfig {
            resources: qos::container_resources(pod, container, memory_capacity, node.pod_pids_limit),
            security_context,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_is_described_fully() {
        let node = NodeConfig::for_tests(Path::new("/data"));
        let pod = pod(
            json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "c", "image": "i:1",
            "command": ["sh", "-c", "echo $(A) $(B)"], "args": ["$$(A)"], "tty": true,
            "lifecycle": {"stopSignal": "SIGINT"}}]}),
        );
        let got = container(ContainerInput {
            node: &node,
            pod: &pod,
            container: &super::super::containers(&pod)[0],
            attempt: 3,
            image: &Image::default(),
            envs: vec![KeyValue {
                key: "A".into(),
                value: "1".into(),
            }],
            mounts: vec![],
            message_file: Some("/m".into()),
            memory_capacity: 1 << 30,
        })
        .unwrap();
        assert_eq!(got.command, ["sh", "-c", "echo 1 $(B)"]);
        assert_eq!(got.args, ["$(A)"]);
        assert_eq!(got.log_path, "c/3.log");
        assert_eq!(got.mounts[0].container_path, Path::new("/dev/termination-log"));
        assert_eq!(got.labels[label::CONTAINER_NAME], "c");
        assert_eq!(got.annotations[label::GRACE_PERIOD], "7");
        assert_eq!(got.stop_signal.as_deref(), Some("SIGINT"));
    }

    #[test]
    fn a_sandbox_has_its_namespaces() {
        let node = NodeConfig::for_tests(Path::new("/data"));
        let pod = pod(json!({"hostPID": true, "hostIPC": true, "containers": [],
            "securityContext": {"sysctls": [{"name": "kernel/shm_rmid_forced", "value": "1"}]}}));
        let got = sandbox(
            &node,
            &pod,
            1,
            "h".into(),
            DnsConfig::default(),
            Some("/ns".into()),
            &["10.0.0.7".into()],
        );
        assert_eq!(got.linux.namespaces.network, NamespaceMode::Pod);
        assert_eq!(got.linux.namespaces.pid, NamespaceMode::Node);
        assert_eq!(got.linux.namespaces.ipc, NamespaceMode::Node);
        assert_eq!(got.linux.sysctls["kernel.shm_rmid_forced"], "1");
        assert_eq!(got.annotations[label::POD_IPS], "10.0.0.7");
        assert_eq!(got.linux.cgroup_parent, "/kubepods/besteffort/poduid-1");
        assert!(got.log_directory.ends_with("ns_p_uid-1"));
    }
}
