//! Which other objects a Pod needs: what its node may therefore read.

use serde_json::Value;

/// Kinds of objects nodes reach through their Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Referenced {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// Where in a volume the name of a Secret is. `csi` and the network volumes keep credentials there.
const VOLUME_SECRETS: [&str; 10] = [
    "/secret/secretName",
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/flexVolume/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
    "/iscsi/secretRef/name",
    "/storageos/secretRef/name",
    "/csi/nodePublishSecretRef/name",
];

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Calls `visit` with every object in the Pod's namespace that it refers to. Names may repeat; none is empty.
pub fn visit(pod: &Value, mut visit: impl FnMut(Referenced, &str)) {
    let mut found = |kind, name: &str| {
        if !name.is_empty() {
            visit(kind, name);
        }
    };
    found(Referenced::ServiceAccount, text(pod, "/spec/serviceAccountName"));
    for secret in items(pod, "/spec/imagePullSecrets") {
        found(Referenced::Secret, text(secret, "/name"));
    }
    for list in ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"] {
        for container in items(pod, list) {
            for source in items(container, "/envFrom") {
                found(Referenced::Secret, text(source, "/secretRef/name"));
                found(Referenced::ConfigMap, text(source, "/configMapRef/name"));
            }
            for variable in items(container, "/env") {
                found(Referenced::Secret, text(variable, "/valueFrom/secretKeyRef/name"));
                found(Referenced::ConfigMap, text(variable, "/valueFrom/configMapKeyRef/name"));
            }
        }
    }
    for volume in items(pod, "/spec/volumes") {
        for pointer in VOLUME_SECRETS {
            found(Referenced::Secret, text(volume, pointer));
        }
        found(Referenced::ConfigMap, text(volume, "/configMap/name"));
        for source in items(volume, "/projected/sources") {
            found(Referenced::Secret, text(source, "/secret/name"));
            found(Referenced::ConfigMap, text(source, "/configMap/name"));
        }
        found(Referenced::Claim, text(volume, "/persistentVolumeClaim/claimName"));
        if volume.get("ephemeral").is_some_and(|source| !source.is_null()) {
            // The claim made for a generic ephemeral volume is named after the Pod and the volume.
            let claim = format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name"));
            found(Referenced::Claim, &claim);
        }
    }
    for claim in items(pod, "/spec/resourceClaims") {
        found(Referenced::ResourceClaim, text(claim, "/resourceClaimName"));
    }
    for claim in items(pod, "/status/resourceClaimStatuses") {
        found(Referenced::ResourceClaim, text(claim, "/resourceClaimName"));
    }
    found(
        Referenced::ResourceClaim,
        text(pod, "/status/extendedResourceClaimStatus/resourceClaimName"),
    );
}

/// What keeps a Pod from being a mirror Pod: the first thing it needs from the API, if any.
pub fn needs_api(pod: &Value) -> Option<&'static str> {
    let mut first: Option<Referenced> = None;
    visit(pod, |kind, _| {
        let order = |kind| match kind {
            Referenced::ServiceAccount => 0,
            Referenced::Secret => 1,
            Referenced::ConfigMap => 2,
            Referenced::ResourceClaim => 3,
            Referenced::Claim => 4,
        };
        if first.is_none_or(|so_far| order(kind) < order(so_far)) {
            first = Some(kind);
        }
    });
    match first {
        Some(Referenced::ServiceAccount) => return Some("serviceaccounts"),
        Some(Referenced::Secret) => return Some("secrets"),
        Some(Referenced::ConfigMap) => return Some("configmaps"),
        Some(Referenced::ResourceClaim) => return Some("resourceclaims"),
        Some(Referenced::Claim) | None => {}
    }
    if items(pod, "/spec/resourceClaims").next().is_some() {
        return Some("resourceclaims");
    }
    let sources = [
        ("/csi", "csidrivers (via CSI volumes)"),
        ("/glusterfs", "endpoints (via glusterFS volumes)"),
        ("/persistentVolumeClaim", "persistentvolumeclaims"),
        ("/ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ];
    let projected = [
        ("/serviceAccountToken", "serviceaccounts (via projected volumes)"),
        ("/clusterTrustBundle", "clustertrustbundles"),
        ("/podCertificate", "podcertificates"),
    ];
    let has = |value: &Value, pointer: &str| value.pointer(pointer).is_some_and(|v| !v.is_null());
    items(pod, "/spec/volumes").find_map(|volume| {
        sources
            .into_iter()
            .find_map(|(pointer, what)| has(volume, pointer).then_some(what))
            .or_else(|| {
                items(volume, "/projected/sources").find_map(|source| {
                    projected
                        .into_iter()
                        .find_map(|(pointer, what)| has(source, pointer).then_some(what))
                })
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_reference_is_found() {
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {
                "serviceAccountName": "sa",
                "imagePullSecrets": [{"name": "pull"}],
                "containers": [{"envFrom": [{"secretRef": {"name": "e1"}}, {"configMapRef": {"name": "c1"}}]}],
                "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "e2"}}}]}],
                "ephemeralContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "c2"}}}, {"value": "x"}]}],
                "volumes": [
                    {"secret": {"secretName": "v1"}}, {"configMap": {"name": "c3"}},
                    {"projected": {"sources": [{"secret": {"name": "v2"}}, {"configMap": {"name": "c4"}}]}},
                    {"persistentVolumeClaim": {"claimName": "pvc"}}, {"name": "scratch", "ephemeral": {}},
                    {"csi": {"nodePublishSecretRef": {"name": "v3"}}},
                ],
                "resourceClaims": [{"resourceClaimName": "r1"}],
            },
            "status": {"resourceClaimStatuses": [{"resourceClaimName": "r2"}]},
        });
        let mut all = Vec::new();
        visit(&pod, |kind, name| all.push((kind, name.to_owned())));
        let names = |kind| -> Vec<_> {
            all.iter()
                .filter(|(k, _)| *k == kind)
                .map(|(_, name)| name.as_str())
                .collect()
        };
        assert_eq!(names(Referenced::Secret), ["pull", "e1", "e2", "v1", "v2", "v3"]);
        assert_eq!(names(Referenced::ConfigMap), ["c1", "c2", "c3", "c4"]);
        assert_eq!(names(Referenced::Claim), ["pvc", "p-scratch"]);
        assert_eq!(names(Referenced::ServiceAccount), ["sa"]);
        assert_eq!(names(Referenced::ResourceClaim), ["r1", "r2"]);
        assert_eq!(needs_api(&pod), Some("serviceaccounts"));
        assert_eq!(needs_api(&json!({"spec": {"volumes": [{"hostPath": {}}]}})), None);
        let token = json!({"spec": {"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]}});
        assert_eq!(needs_api(&token), Some("serviceaccounts (via projected volumes)"));
    }
}
