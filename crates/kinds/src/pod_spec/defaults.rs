//! Defaults of a PodSpec, the same in a Pod and in a template (what only a Pod gets is in `core::pod`).

use serde_json::{Map, Value, json};

use super::{CONTAINER_LISTS, quantities};
use crate::defaults::{Default, Fill, apply};
use crate::tree;

const SPEC: &[Default] = &[
    ("dnsPolicy", Fill::Text("ClusterFirst")),
    ("restartPolicy", Fill::Text("Always")),
    ("securityContext", Fill::Map),
    ("terminationGracePeriodSeconds", Fill::Int(30)),
    ("schedulerName", Fill::Text("default-scheduler")),
    ("volumes[].hostPath.type", Fill::Text("")),
    ("volumes[].secret.defaultMode", Fill::Int(0o644)),
    ("volumes[].configMap.defaultMode", Fill::Int(0o644)),
    ("volumes[].downwardAPI.defaultMode", Fill::Int(0o644)),
    ("volumes[].downwardAPI.items[].fieldRef.apiVersion", Fill::Text("v1")),
    (
        "volumes[].downwardAPI.items[].resourceFieldRef.divisor",
        Fill::Text("0"),
    ),
    (
        "volumes[].projected.sources[].downwardAPI.items[].resourceFieldRef.divisor",
        Fill::Text("0"),
    ),
    ("volumes[].projected.defaultMode", Fill::Int(0o644)),
    (
        "volumes[].projected.sources[].downwardAPI.items[].fieldRef.apiVersion",
        Fill::Text("v1"),
    ),
    (
        "volumes[].projected.sources[].serviceAccountToken.expirationSeconds",
        Fill::Int(3600),
    ),
    ("volumes[].ephemeral.volumeClaimTemplate.metadata", Fill::Map),
    ("volumes[].ephemeral.volumeClaimTemplate.spec.resources", Fill::Map),
    (
        "volumes[].ephemeral.volumeClaimTemplate.spec.volumeMode",
        Fill::Pointer("Filesystem"),
    ),
    ("volumes[].iscsi.iscsiInterface", Fill::Text("default")),
    ("volumes[].rbd.pool", Fill::Text("rbd")),
    ("volumes[].rbd.user", Fill::Text("admin")),
    ("volumes[].rbd.keyring", Fill::Text("/etc/ceph/keyring")),
    ("volumes[].azureDisk.cachingMode", Fill::Text("ReadWrite")),
    ("volumes[].azureDisk.fsType", Fill::Text("ext4")),
    ("volumes[].azureDisk.readOnly", Fill::Bool(false)),
    ("volumes[].azureDisk.kind", Fill::Text("Shared")),
    ("volumes[].scaleIO.storageMode", Fill::Text("ThinProvisioned")),
    ("volumes[].scaleIO.fsType", Fill::Text("xfs")),
];

const CONTAINER: &[Default] = &[
    ("terminationMessagePath", Fill::Text("/dev/termination-log")),
    ("terminationMessagePolicy", Fill::Text("File")),
    ("resources", Fill::Map),
    ("ports[].protocol", Fill::Text("TCP")),
    ("env[].valueFrom.fieldRef.apiVersion", Fill::Text("v1")),
    ("env[].valueFrom.resourceFieldRef.divisor", Fill::Text("0")),
    ("env[].valueFrom.fileKeyRef.optional", Fill::Bool(false)),
    ("lifecycle.postStart.httpGet.path", Fill::Text("/")),
    ("lifecycle.postStart.httpGet.scheme", Fill::Text("HTTP")),
    ("lifecycle.preStop.httpGet.path", Fill::Text("/")),
    ("lifecycle.preStop.httpGet.scheme", Fill::Text("HTTP")),
];

const PROBE: &[Default] = &[
    ("timeoutSeconds", Fill::NonZero(1)),
    ("periodSeconds", Fill::NonZero(10)),
    ("successThreshold", Fill::NonZero(1)),
    ("failureThreshold", Fill::NonZero(3)),
    ("httpGet.path", Fill::Text("/")),
    ("httpGet.scheme", Fill::Text("HTTP")),
    ("grpc.service", Fill::Text("")),
];

/// Fills in the defaults of a PodSpec.
pub(crate) fn default(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    apply(SPEC, spec);
    for volume in tree::items_mut(spec, "volumes") {
        default_volume(volume);
    }
    for list in CONTAINER_LISTS {
        for container in tree::items_mut(spec, list) {
            default_container(container);
        }
    }
    quantities::canonical_at(spec, &["overhead", "resources.requests", "resources.limits"]);
    mirror_service_account(spec);
}

/// `serviceAccount` is the old name of `serviceAccountName`: the new one wins, both say the same.
fn mirror_service_account(spec: &mut Value) {
    let name = match (
        tree::text(spec, "serviceAccountName"),
        tree::text(spec, "serviceAccount"),
    ) {
        ("", old) => old,
        (new, _) => new,
    }
    .to_owned();
    if !name.is_empty() {
        tree::set(spec, "serviceAccountName", name.clone());
        tree::set(spec, "serviceAccount", name);
    }
}

fn default_volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else {
        return;
    };
    let has_source = map.iter().any(|(field, source)| field != "name" && !source.is_null());
    if !has_source {
        map.insert("emptyDir".to_owned(), json!({}));
    }
    if let Some(image) = tree::get_mut(volume, "image") {
        default_pull_policy(image, "reference", "pullPolicy");
    }
    quantities::canonical_at(
        volume,
        &[
            "ephemeral.volumeClaimTemplate.spec.resources.requests",
            "ephemeral.volumeClaimTemplate.spec.resources.limits",
        ],
    );
    if let Some(directory) = tree::get_mut(volume, "emptyDir").and_then(Value::as_object_mut)
        && let Some(limit) = directory.remove("sizeLimit").filter(|limit| !limit.is_null())
    {
        let mut list = Map::from_iter([("sizeLimit".to_owned(), limit)]);
        quantities::canonical(&mut list);
        directory.append(&mut list);
    }
}

fn default_container(container: &mut Value) {
    if !container.is_object() {
        return;
    }
    default_pull_policy(container, "image", "imagePullPolicy");
    apply(CONTAINER, container);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = tree::get_mut(container, probe).filter(|probe| probe.is_object()) {
            apply(PROBE, probe);
        }
    }
    quantities::canonical_at(container, &["resources.requests", "resources.limits"]);
}

/// `Always` for an image that may change under its name (`latest`, said or implied), else `IfNotPresent`.
fn default_pull_policy(owner: &mut Value, image: &str, policy: &str) {
    if tree::text(owner, policy).is_empty() {
        let policy_value = if is_latest(tree::text(owner, image)) {
            "Always"
        } else {
            "IfNotPresent"
        };
        tree::set(owner, policy, policy_value);
    }
}

fn is_latest(image: &str) -> bool {
    if !is_image_name(image) {
        return false;
    }
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => !digest,
    }
}

/// Whether a registry could know the name at all: lower-case path parts, at most 255 characters without tag and digest.
fn is_image_name(image: &str) -> bool {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    let (host, path) = match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("", image),
    };
    let (path, tag) = path.split_once(':').unwrap_or((path, "latest"));
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(plain) && part.ends_with(plain) && part.chars().all(|c| plain(c) || "._-".contains(c))
    };
    let in_tag = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    host.len() + path.len() < 255
        && path.split('/').all(part)
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && !tag.is_empty()
        && tag.chars().all(in_tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_can_mean_the_latest() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1", false),
            ("example.com:5000/a/b", true),
            ("example.com:5000/a/b:1", false),
            ("nginx@sha256:0", false),
            ("", false),
            ("Bad_Name!", false),
            ("/../x", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image:?}");
        }
        assert!(!is_latest(&"a".repeat(300)));
    }

    #[test]
    fn a_tag_decides_when_to_pull() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.25", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:abc", false),
            ("nginx:latest@sha256:abc", true),
            ("", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn a_spec_gets_everything_it_did_not_say() {
        let mut spec = json!({
            "serviceAccount": "robot",
            "containers": [{
                "name": "a", "image": "nginx",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "0.5", "memory": 1024}},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5},
                "lifecycle": {"preStop": {"httpGet": {"port": 80}}},
            }],
            "volumes": [
                {"name": "e"},
                {"name": "c", "configMap": {"name": "cm"}},
                {"name": "h", "hostPath": {"path": "/x"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
            ],
        });
        default(&mut spec);
        let wanted = json!({
            "serviceAccount": "robot",
            "serviceAccountName": "robot",
            "dnsPolicy": "ClusterFirst",
            "restartPolicy": "Always",
            "schedulerName": "default-scheduler",
            "securityContext": {},
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "a", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "500m", "memory": "1024"}},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
                "livenessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "periodSeconds": 5,
                    "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3},
                "lifecycle": {"preStop": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}}},
            }],
            "volumes": [
                {"name": "e", "emptyDir": {}},
                {"name": "c", "configMap": {"name": "cm", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/x", "type": ""}},
                {"name": "p", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}]}},
            ],
        });
        assert_eq!(spec, wanted);
        default(&mut spec);
        assert_eq!(spec, wanted, "defaulting is idempotent");
    }
}
