//! What a client is warned of although its object is accepted, for every kind but the pod spec's part
//! (`pod_spec::warnings`) and Services: parts of the API that are on their way out, values that work differently from
//! how they look.
//!
//! A strategy sees one object, not what it was, so an update repeats what upstream says only when the part changed.
//! What upstream says at creation alone is said of objects without a resource version.

use sampan_api::field::Path;
use sampan_api::quantity::Quantity;
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::tree;

const DEPRECATED_LABELS: &[(&str, &str)] = &[
    (
        "beta.kubernetes.io/arch",
        "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
    ),
    (
        "beta.kubernetes.io/os",
        "deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    (
        "node-role.kubernetes.io/master",
        "use \"node-role.kubernetes.io/control-plane\" instead",
    ),
];

/// Why a label of nodes should no longer be selected by.
pub(crate) fn node_label(key: &str) -> Option<&'static str> {
    DEPRECATED_LABELS
        .iter()
        .find(|(label, _)| *label == key)
        .map(|(_, why)| *why)
}

/// Sources of volumes that are gone or going, in Pods and in PersistentVolumes.
pub(crate) const DEPRECATED_VOLUMES: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// The deprecated sources a volume or a PersistentVolume's spec has.
pub(crate) fn volume_source(volume: &Value, path: &Path, skip: &[&str], out: &mut Vec<String>) {
    for (source, why) in DEPRECATED_VOLUMES {
        if !skip.contains(source) && tree::get(volume, source).is_some() {
            // Upstream names this source by its Go field.
            let shown = if *source == "storageos" { "storageOS" } else { *source };
            out.push(format!("{}: {why}", path.child(shown)));
        }
    }
}

/// Deprecated labels, and (where asked) impossible values, in a node selector term.
pub(crate) fn node_selector_term(term: &Value, check_values: bool, path: &Path, out: &mut Vec<String>) {
    for (index, expression) in tree::items(term, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let key = tree::text(expression, "key");
        if let Some(why) = node_label(key) {
            out.push(format!("{}: {key} is {why}", path.child("key")));
        }
        if check_values {
            for (index, value) in tree::items(expression, "values").iter().enumerate() {
                let value = value.as_str().unwrap_or_default();
                for why in api::label_value(value) {
                    out.push(format!(
                        "{}: {value} is invalid, {why}",
                        path.child("values").index(index)
                    ));
                }
            }
        }
    }
}

/// A quantity of bytes in a list that is not whole.
pub(crate) fn fractional(list: Option<&Value>, name: &str, path: &Path, out: &mut Vec<String>) {
    let Some(Ok(quantity)) = list.and_then(|list| list.get(name)).map(Quantity::from_value) else {
        return;
    };
    if !quantity
        .sub(&Quantity::new(quantity.value(), quantity.format()))
        .is_zero()
    {
        let path = path.key(name);
        out.push(format!(
            "{path}: fractional byte value \"{quantity}\" is invalid, must be an integer"
        ));
    }
}

/// An IPv6 address not written in the one form in which addresses can be compared as text.
pub(crate) fn address(text: &str, path: &Path, out: &mut Vec<String>) {
    if let Ok(std::net::IpAddr::V6(address)) = text.parse()
        && address.to_string() != text
    {
        out.push(format!(
            "{path}: IPv6 address \"{text}\" should be in RFC 5952 canonical format (\"{address}\")"
        ));
    }
}

/// [`address`] for a list of addresses.
pub(crate) fn addresses(list: &[Value], path: &Path, out: &mut Vec<String>) {
    for (index, text) in list.iter().enumerate() {
        address(text.as_str().unwrap_or_default(), &path.index(index), out);
    }
}

/// [`address`] for a range of addresses.
pub(crate) fn range(text: &str, path: &Path, out: &mut Vec<String>) {
    if let Ok(ipnet::IpNet::V6(range)) = text.parse()
        && range.to_string() != text
    {
        out.push(format!(
            "{path}: IPv6 CIDR value \"{text}\" should be in RFC 5952 canonical format (\"{range}\")"
        ));
    }
}

/// Whether the object is being created.
pub(crate) fn is_new(object: &Object) -> bool {
    tree::text(object, "metadata.resourceVersion").is_empty()
}

fn label_name(object: &Object, used_in: &str, out: &mut Vec<String>) {
    let wrong = api::dns1123_label(tree::text(object, "metadata.name"));
    if is_new(object) && !wrong.is_empty() {
        out.push(format!(
            "metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            wrong.join(" ")
        ));
    }
}

/// A name that becomes that of a host.
pub(crate) fn pod(pod: &Object) -> Vec<String> {
    let mut out = Vec::new();
    label_name(pod, "the Pod's hostname", &mut out);
    out
}

/// A name that becomes part of those of Pods.
pub(crate) fn name_in_pods(object: &Object) -> Vec<String> {
    let mut out = Vec::new();
    label_name(object, "Pod names and hostnames", &mut out);
    out
}

fn job_spec(spec: Option<&Value>, path: &Path, out: &mut Vec<String>) {
    const MANY_COMPLETIONS: i64 = 100_000;
    const MANY_AT_ONCE: i64 = 10_000;
    if let Some(spec) = spec
        && tree::text(spec, "completionMode") == "Indexed"
        && tree::int(spec, "completions") > MANY_COMPLETIONS
        && tree::int(spec, "parallelism") > MANY_AT_ONCE
    {
        out.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
}

pub(crate) fn job(job: &Object) -> Vec<String> {
    let mut out = name_in_pods(job);
    job_spec(tree::get(job, "spec"), &Path::new("spec"), &mut out);
    out
}

pub(crate) fn cron_job(cron_job: &Object) -> Vec<String> {
    let mut out = name_in_pods(cron_job);
    let path = Path::new("spec").child("jobTemplate").child("spec");
    job_spec(tree::get(cron_job, "spec.jobTemplate.spec"), &path, &mut out);
    if tree::text(cron_job, "spec.schedule").contains("TZ") {
        out.push(
            "cannot use TZ or CRON_TZ in spec.schedule, use timeZone instead, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                .to_owned(),
        );
    }
    out
}

pub(crate) fn stateful_set(set: &Object) -> Vec<String> {
    let mut out = Vec::new();
    let path = Path::new("spec").child("volumeClaimTemplates");
    for (index, claim) in tree::items(set, "spec.volumeClaimTemplates").iter().enumerate() {
        claim_spec(tree::get(claim, "spec"), &path.index(index).child("spec"), &mut out);
    }
    if tree::int(set, "spec.revisionHistoryLimit") < 0 {
        out.push(
            "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                .to_owned(),
        );
    }
    out
}

pub(crate) fn claim_spec(spec: Option<&Value>, path: &Path, out: &mut Vec<String>) {
    for list in ["requests", "limits"] {
        let quantities = spec.and_then(|spec| tree::get(spec, "resources")?.get(list));
        fractional(quantities, "storage", &path.child("resources").child(list), out);
    }
}

fn annotations(object: &Object, table: &[(&str, &str)], out: &mut Vec<String>) {
    let path = Path::new("metadata").child("annotations");
    for (key, why) in table {
        if tree::map(object, "metadata.annotations").is_some_and(|set| set.contains_key(*key)) {
            out.push(format!("{}: {why}", path.key(key)));
        }
    }
}

const CLASS_ANNOTATION: (&str, &str) = (
    "volume.beta.kubernetes.io/storage-class",
    "deprecated since v1.8; use \"storageClassName\" attribute instead",
);

pub(crate) fn claim(claim: &Object) -> Vec<String> {
    let mut out = Vec::new();
    annotations(claim, &[CLASS_ANNOTATION], &mut out);
    claim_spec(tree::get(claim, "spec"), &Path::new("spec"), &mut out);
    out
}

pub(crate) fn volume(volume: &Object) -> Vec<String> {
    const MOUNT_OPTIONS: (&str, &str) = (
        "volume.beta.kubernetes.io/mount-options",
        "deprecated since v1.31; use \"mountOptions\" attribute instead",
    );
    let mut out = Vec::new();
    annotations(volume, &[CLASS_ANNOTATION, MOUNT_OPTIONS], &mut out);
    if tree::text(volume, "spec.persistentVolumeReclaimPolicy") == "Recycle" {
        out.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    let path = Path::new("spec");
    let terms = path.child("nodeAffinity").child("required").child("nodeSelectorTerms");
    for (index, term) in tree::items(volume, "spec.nodeAffinity.required.nodeSelectorTerms")
        .iter()
        .enumerate()
    {
        node_selector_term(term, false, &terms.index(index), &mut out);
    }
    if let Some(spec) = tree::get(volume, "spec") {
        volume_source(spec, &path, &["flocker", "quobyte"], &mut out);
    }
    out
}

pub(crate) fn node(node: &Object) -> Vec<String> {
    let mut out = Vec::new();
    if tree::get(node, "spec.configSource").is_some() {
        out.push("spec.configSource: the feature is removed".to_owned());
    }
    if !tree::text(node, "spec.externalID").is_empty() {
        out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
    }
    let path = Path::new("spec").child("podCIDRs");
    for (index, text) in tree::items(node, "spec.podCIDRs").iter().enumerate() {
        range(text.as_str().unwrap_or_default(), &path.index(index), &mut out);
    }
    out
}

pub(crate) fn endpoints(endpoints: &Object) -> Vec<String> {
    let mut out = Vec::new();
    for (index, subset) in tree::items(endpoints, "subsets").iter().enumerate() {
        for list in ["addresses", "notReadyAddresses"] {
            let path = Path::new("subsets").index(index).child(list);
            for (index, entry) in tree::items(subset, list).iter().enumerate() {
                address(tree::text(entry, "ip"), &path.index(index).child("ip"), &mut out);
            }
        }
    }
    out
}

pub(crate) fn endpoint_slice(slice: &Object) -> Vec<String> {
    let mut out = Vec::new();
    if tree::text(slice, "addressType") == "FQDN" {
        if is_new(slice) {
            out.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        return out;
    }
    for (index, endpoint) in tree::items(slice, "endpoints").iter().enumerate() {
        let path = Path::new("endpoints").index(index).child("addresses");
        addresses(tree::items(endpoint, "addresses"), &path, &mut out);
    }
    out
}

pub(crate) fn network_policy(policy: &Object) -> Vec<String> {
    let mut out = Vec::new();
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        let path = Path::new("spec").child(rules);
        for (index, rule) in tree::items(policy, &format!("spec.{rules}")).iter().enumerate() {
            let path = path.index(index).child(peers);
            for (index, peer) in tree::items(rule, peers).iter().enumerate() {
                let path = path.index(index).child("ipBlock");
                range(tree::text(peer, "ipBlock.cidr"), &path.child("cidr"), &mut out);
                for (index, text) in tree::items(peer, "ipBlock.except").iter().enumerate() {
                    let path = path.child("except").index(index);
                    range(text.as_str().unwrap_or_default(), &path, &mut out);
                }
            }
        }
    }
    out
}

pub(crate) fn ingress(ingress: &Object) -> Vec<String> {
    const CLASS: &str = "kubernetes.io/ingress.class";
    let annotated = tree::map(ingress, "metadata.annotations").is_some_and(|set| set.contains_key(CLASS));
    if annotated && is_new(ingress) && tree::get(ingress, "spec.ingressClassName").is_none() {
        vec![format!(
            "annotation \"{CLASS}\" is deprecated, please use 'spec.ingressClassName' instead"
        )]
    } else {
        Vec::new()
    }
}

pub(crate) fn runtime_class(class: &Object) -> Vec<String> {
    tree::map(class, "scheduling.nodeSelector")
        .into_iter()
        .flat_map(|selector| selector.keys())
        .filter_map(|key| Some(format!("scheduling.nodeSelector: {}", node_label(key)?)))
        .collect()
}

pub(crate) fn storage_class(class: &Object) -> Vec<String> {
    let mut out = Vec::new();
    for (index, topology) in tree::items(class, "allowedTopologies").iter().enumerate() {
        let path = Path::new("allowedTopologies")
            .index(index)
            .child("matchLabelExpressions");
        for (index, expression) in tree::items(topology, "matchLabelExpressions").iter().enumerate() {
            if let Some(why) = node_label(tree::text(expression, "key")) {
                out.push(format!("{}: {why}", path.index(index).child("key")));
            }
        }
    }
    out
}

pub(crate) fn storage_capacity(capacity: &Object) -> Vec<String> {
    let mut out = Vec::new();
    let path = Path::new("nodeTopology");
    if let Some(selector) = tree::get(capacity, "nodeTopology") {
        node_selector_term(selector, false, &path, &mut out);
    }
    for key in tree::map(capacity, "nodeTopology.matchLabels")
        .into_iter()
        .flat_map(|labels| labels.keys())
    {
        if let Some(why) = node_label(key) {
            out.push(format!("{}: {why}", path.child("matchLabels").child(key)));
        }
    }
    out
}

pub(crate) fn csi_driver(driver: &Object) -> Vec<String> {
    if !tree::items(driver, "spec.tokenRequests").is_empty()
        && tree::get(driver, "spec.serviceAccountTokenInSecrets").is_none()
    {
        vec![
            "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent \
             possible logging of tokens in volume attributes"
                .to_owned(),
        ]
    } else {
        Vec::new()
    }
}

/// Configurations read from files have names of their own.
pub(crate) fn static_name(object: &Object) -> Vec<String> {
    const SUFFIX: &str = ".static.k8s.io";
    if tree::text(object, "metadata.name").ends_with(SUFFIX) {
        vec![format!(
            "metadata.name: names ending with \"{SUFFIX}\" are reserved for static manifest-based configurations and \
             cannot be managed via the API"
        )]
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_warns_of_its_own() {
        type Case = (fn(&Object) -> Vec<String>, Value, &'static [&'static str]);
        let cases: &[Case] = &[
            (
                name_in_pods,
                json!({"metadata": {"name": "a.b"}}),
                &[
                    "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]",
                ],
            ),
            (
                name_in_pods,
                json!({"metadata": {"name": "a.b", "resourceVersion": "3"}}),
                &[],
            ),
            (
                job,
                json!({"metadata": {"name": "j"}, "spec": {"completionMode": "Indexed", "completions": 100001, "parallelism": 10001}}),
                &[
                    "spec: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail",
                ],
            ),
            (
                claim,
                json!({"spec": {"resources": {"requests": {"storage": "100m"}}}}),
                &["spec.resources.requests[storage]: fractional byte value \"100m\" is invalid, must be an integer"],
            ),
            (
                claim,
                json!({"spec": {"resources": {"requests": {"storage": "10Ei"}}}}),
                &[],
            ),
            (
                volume,
                json!({"spec": {"persistentVolumeReclaimPolicy": "Recycle", "rbd": {}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "beta.kubernetes.io/os", "operator": "Exists"}]}]}}}}),
                &[
                    "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.",
                    "spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key: beta.kubernetes.io/os is deprecated since v1.14; use \"kubernetes.io/os\" instead",
                    "spec.rbd: deprecated in v1.28, non-functional in v1.31+",
                ],
            ),
            (
                ingress,
                json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "nginx"}}}),
                &[
                    "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead",
                ],
            ),
            (
                endpoint_slice,
                json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fd00:0::1"]}]}),
                &[
                    "endpoints[0].addresses[0]: IPv6 address \"fd00:0::1\" should be in RFC 5952 canonical format (\"fd00::1\")",
                ],
            ),
            (
                network_policy,
                json!({"spec": {"egress": [{"to": [{"ipBlock": {"cidr": "FD00::/8"}}]}]}}),
                &[
                    "spec.egress[0].to[0].ipBlock.cidr: IPv6 CIDR value \"FD00::/8\" should be in RFC 5952 canonical format (\"fd00::/8\")",
                ],
            ),
        ];
        for (warn, object, expected) in cases {
            assert_eq!(warn(object), *expected, "{object}");
        }
    }
}
