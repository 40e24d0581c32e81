//! What neither crate states, as small hand-kept tables. Every entry says why it is here.

use std::collections::{BTreeMap, BTreeSet};

use super::protobuf::Markers;

/// Definitions that are not plain structs: how the table writes their type.
pub const SPECIAL: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "q"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "t"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "m"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "v"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "x"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "o"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "j"),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray",
        "A",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool",
        "B",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
        "S",
    ),
];

/// Definitions that exist only as messages in k8s-pb: never in upstream's OpenAPI document, but clients send
/// or ask for them. Their JSON names are the lower camel case of the message's. Group, version of the kind.
pub const MESSAGE_ONLY: &[(&str, &str, &str)] = &[
    ("io.k8s.apimachinery.pkg.apis.meta.v1.CreateOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.UpdateOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.PatchOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.GetOptions", "", "v1"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ListOptions", "", "v1"),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata",
        "meta.k8s.io",
        "v1",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList",
        "meta.k8s.io",
        "v1",
    ),
];

/// Message-only definitions whose messages carry no `apiVersion` and `kind` but whose JSON does.
pub const TYPE_META: [&str; 2] = ["apiVersion", "kind"];

/// Names in the interface definitions that are not the snake case of the JSON name: definition, JSON name,
/// prost name.
pub const RENAMED: &[(&str, &str, &str)] = &[
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "$ref",
        "ref",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "$schema",
        "schema",
    ),
    // Acronyms the case conversion cuts differently.
    ("io.k8s.api.core.v1.PodStatus", "hostIPs", "host_ips"),
    ("io.k8s.api.core.v1.PodStatus", "podIPs", "pod_ips"),
    ("io.k8s.api.core.v1.ServiceSpec", "clusterIPs", "cluster_ips"),
    ("io.k8s.api.core.v1.ServiceSpec", "externalIPs", "external_ips"),
    // Upstream's own odd names: `uID` and `aPIGroup`.
    ("io.k8s.api.authentication.v1.BoundObjectReference", "uid", "u_id"),
    (
        "io.k8s.api.networking.v1.IngressClassParametersReference",
        "apiGroup",
        "a_pi_group",
    ),
];

/// Definitions upstream has no protobuf for.
pub const NO_MESSAGE: &[&str] = &["io.k8s.apimachinery.pkg.version.Info"];

/// Message fields that are not in the JSON: `workloadRef` of 1.35's Pods, gone in 1.36.
pub const NO_JSON: &[(&str, &str)] = &[
    ("io.k8s.api.core.v1.PodSpec", "name"),
    ("io.k8s.api.core.v1.PodSpec", "pod_group"),
    ("io.k8s.api.core.v1.PodSpec", "pod_group_replica_key"),
];

/// What 1.36 added after k8s-pb's definitions: `(definition, field) -> tag and markers`.
pub fn added() -> BTreeMap<(&'static str, &'static str), (u32, Markers)> {
    include_str!("added.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split(' ');
            let key = (words.next()?, words.next()?);
            let tag = words.next()?.parse().ok()?;
            let mut markers = Markers::default();
            for word in words {
                match word.split_at_checked(1)? {
                    ("L", list) => {
                        let (kind, keys) = list.split_once(':').unwrap_or((list, ""));
                        markers.list_type = Some(kind.to_owned());
                        markers.list_map_keys = keys
                            .split(',')
                            .filter(|key| !key.is_empty())
                            .map(str::to_owned)
                            .collect();
                    }
                    ("a", "") => markers.map_type = Some("atomic".to_owned()),
                    ("P", strategy) => markers.patch_strategy = Some(strategy.to_owned()),
                    ("K", key) => markers.patch_merge_key = Some(key.to_owned()),
                    _ => return None,
                }
            }
            Some((key, (tag, markers)))
        })
        .collect()
}

/// Where k8s-openapi's `required` is not upstream's: definition, field, upstream's answer. The names have an
/// empty default for backward compatibility; k8s-openapi makes no exception for these objects' metadata.
pub const REQUIRED: &[(&str, &str, bool)] = &[
    ("io.k8s.api.core.v1.ConfigMapEnvSource", "name", false),
    ("io.k8s.api.core.v1.ConfigMapKeySelector", "name", false),
    ("io.k8s.api.core.v1.ConfigMapProjection", "name", false),
    ("io.k8s.api.core.v1.ConfigMapVolumeSource", "name", false),
    ("io.k8s.api.core.v1.LocalObjectReference", "name", false),
    ("io.k8s.api.core.v1.SecretEnvSource", "name", false),
    ("io.k8s.api.core.v1.SecretKeySelector", "name", false),
    ("io.k8s.api.core.v1.SecretProjection", "name", false),
    ("io.k8s.api.core.v1.Event", "metadata", true),
    ("io.k8s.api.events.v1.Event", "eventTime", true),
    ("io.k8s.api.apiserverinternal.v1alpha1.StorageVersion", "metadata", true),
    (
        "io.k8s.api.resource.v1alpha3.ResourcePoolStatusRequest",
        "metadata",
        true,
    ),
];

/// `definition -> fields` whose zero value is kept.
pub fn kept_zero() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    include_str!("kept_zero.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.collect()))
        })
        .collect()
}

/// What Go's own types say: `definition -> field -> marks of the table`.
pub fn go() -> BTreeMap<&'static str, BTreeMap<&'static str, &'static str>> {
    include_str!("go.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.filter_map(|word| word.split_once('=')).collect()))
        })
        .collect()
}
