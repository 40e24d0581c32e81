//! What a client is warned of in the spec of a Pod or of a template.

use std::collections::{BTreeMap, BTreeSet};

use sampan_api::field::Path;
use serde_json::Value;

use crate::core::pod::change::{APP_ARMOR, app_armor};
use crate::tree;
use crate::warnings as common;

const DEPRECATED_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

/// The warnings of a Pod or a template: something with `metadata` and `spec`.
pub(crate) fn of(pod: &Value, at: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let Some(spec) = tree::get(pod, "spec") else {
        return out;
    };
    let path = at.child("spec");
    selection(spec, &path, &mut out);
    annotations(pod, spec, at, &mut out);
    volumes(spec, &path.child("volumes"), &mut out);
    duplicates(spec, &path, &mut out);
    let overhead = tree::get(spec, "overhead");
    bytes(overhead, &path.child("overhead"), &mut out);
    for (container, path) in containers(spec, &path) {
        for list in ["limits", "requests"] {
            let quantities = tree::get(container, "resources").and_then(|resources| resources.get(list));
            bytes(quantities, &path.child("resources").child(list), &mut out);
        }
        env(container, &path.child("env"), &mut out);
    }
    ports(spec, &path, &mut out);
    if tree::int(spec, "terminationGracePeriodSeconds") < 0 {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    pod_affinity(spec, &path.child("affinity"), &mut out);
    let servers = path.child("dnsConfig").child("nameservers");
    common::addresses(tree::items(spec, "dnsConfig.nameservers"), &servers, &mut out);
    for (index, alias) in tree::items(spec, "hostAliases").iter().enumerate() {
        let path = path.child("hostAliases").index(index).child("ip");
        common::address(tree::text(alias, "ip"), &path, &mut out);
    }
    out
}

/// Every container with its path.
fn containers<'a>(spec: &'a Value, path: &Path) -> Vec<(&'a Value, Path)> {
    super::CONTAINER_LISTS
        .iter()
        .flat_map(|list| {
            let path = path.child(list);
            tree::items(spec, list)
                .iter()
                .enumerate()
                .map(move |(index, container)| (container, path.index(index)))
        })
        .collect()
}

fn selection(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for key in tree::map(spec, "nodeSelector").into_iter().flat_map(|map| map.keys()) {
        if let Some(why) = common::node_label(key) {
            out.push(format!("{}: {why}", path.child("nodeSelector").key(key)));
        }
    }
    let affinity = path.child("affinity").child("nodeAffinity");
    let terms = affinity
        .child("requiredDuringSchedulingIgnoredDuringExecution")
        .child("nodeSelectorTerms");
    let required = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    for (index, term) in tree::items(spec, required).iter().enumerate() {
        common::node_selector_term(term, false, &terms.index(index), out);
    }
    let terms = affinity.child("preferredDuringSchedulingIgnoredDuringExecution");
    let preferred = "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution";
    for (index, term) in tree::items(spec, preferred).iter().enumerate() {
        if let Some(term) = tree::get(term, "preference") {
            common::node_selector_term(term, true, &terms.index(index).child("preference"), out);
        }
    }
    for (index, constraint) in tree::items(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(index);
        let key = tree::text(constraint, "topologyKey");
        if let Some(why) = common::node_label(key) {
            out.push(format!("{}: {key} is {why}", path.child("topologyKey")));
        }
        null_selector(constraint, &path, out);
    }
}

fn null_selector(term: &Value, path: &Path, out: &mut Vec<String>) {
    if tree::get(term, "labelSelector").is_none() {
        out.push(format!(
            "{}: a null labelSelector results in matching no pod",
            path.child("labelSelector")
        ));
    }
}

fn pod_affinity(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let list = "requiredDuringSchedulingIgnoredDuringExecution";
        let terms = path.child(kind).child(list);
        for (index, term) in tree::items(spec, &format!("affinity.{kind}.{list}")).iter().enumerate() {
            null_selector(term, &terms.index(index), out);
        }
        let list = "preferredDuringSchedulingIgnoredDuringExecution";
        let terms = path.child(kind).child(list);
        for (index, term) in tree::items(spec, &format!("affinity.{kind}.{list}")).iter().enumerate() {
            if let Some(term) = tree::get(term, "podAffinityTerm") {
                null_selector(term, &terms.index(index).child("podAffinityTerm"), out);
            }
        }
    }
}

fn annotations(pod: &Value, spec: &Value, at: &Path, out: &mut Vec<String>) {
    const POD_SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let Some(set) = tree::map(pod, "metadata.annotations") else {
        return;
    };
    let path = at.child("metadata").child("annotations");
    for (key, why) in DEPRECATED_ANNOTATIONS {
        if set.contains_key(*key) {
            out.push(format!("{}: {why}", path.key(key)));
        }
    }
    let mut instead = |key: &str, missing: bool, why: &str, field: &str| {
        if missing && set.contains_key(key) {
            out.push(format!("{}: {why}; use the \"{field}\" field instead", path.key(key)));
        }
    };
    let unset = |value: &Value, field: &str| tree::get(value, &format!("securityContext.{field}")).is_none();
    let is_pod = *at == Path::default();
    let gone = "non-functional in v1.27+";
    instead(POD_SECCOMP, unset(spec, "seccompProfile"), gone, "seccompProfile");
    for (container, _) in containers(spec, at) {
        let name = tree::text(container, "name");
        let key = format!("{SECCOMP}{name}");
        instead(&key, unset(container, "seccompProfile"), gone, "seccompProfile");
        let key = format!("{APP_ARMOR}{name}");
        let stated = set.get(&key).and_then(Value::as_str).and_then(app_armor);
        // A Pod's annotation has become a field by now (see `copy_app_armor`); who stated both the same is told too,
        // which upstream would not.
        let missing = match (is_pod, stated) {
            (true, None) => unset(container, "appArmorProfile"),
            (true, stated) => tree::get(container, "securityContext.appArmorProfile") == stated.as_ref(),
            (false, _) => unset(container, "appArmorProfile") && unset(spec, "appArmorProfile"),
        };
        instead(&key, missing, "deprecated since v1.30", "appArmorProfile");
    }
}

fn volumes(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for (index, volume) in tree::items(spec, "volumes").iter().enumerate() {
        let path = path.index(index);
        common::volume_source(volume, &path, &[], out);
        let claim = path.child("ephemeral").child("volumeClaimTemplate").child("spec");
        common::claim_spec(tree::get(volume, "ephemeral.volumeClaimTemplate.spec"), &claim, out);
    }
    for volume in tree::items(spec, "volumes") {
        overlaps(volume, out);
    }
}

/// A file of a volume and where it comes from.
type File<'a> = (&'a str, String);

fn shown((path, source): &File<'_>) -> String {
    if source.is_empty() {
        format!("\"{path}\"")
    } else {
        format!("\"{path}\" ({source})")
    }
}

/// Files of `items`, without the slashes at their ends.
fn files<'a>(items: &'a [Value], source: &str) -> Vec<File<'a>> {
    items
        .iter()
        .map(|item| (tree::text(item, "path").trim_end_matches('/'), source.to_owned()))
        .collect()
}

/// Files of which one is the other, or lies below the other.
fn colliding<'a>(files: &[File<'a>]) -> Vec<(File<'a>, File<'a>)> {
    let within = |a: &str, b: &str| format!("{a}/").starts_with(&format!("{b}/"));
    let mut found = Vec::new();
    for (index, file) in files.iter().enumerate() {
        for earlier in files.iter().take(index) {
            if !file.0.is_empty() && !earlier.0.is_empty() && (within(file.0, earlier.0) || within(earlier.0, file.0)) {
                found.push((file.clone(), earlier.clone()));
            }
        }
    }
    found
}

fn overlaps(volume: &Value, out: &mut Vec<String>) {
    let name = tree::text(volume, "name");
    let mut say = |what: &str, files: &[File<'_>]| {
        for (file, earlier) in colliding(files) {
            out.push(format!(
                "volume \"{name}\" ({what}): overlapping paths: {} with {}",
                shown(&file),
                shown(&earlier)
            ));
        }
    };
    for (source, title, field) in [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")] {
        if let Some(source) = tree::get(volume, source) {
            let what = format!("{title} \"{}\"", tree::text(source, field));
            say(&what, &files(tree::items(source, "items"), ""));
        }
    }
    say("DownwardAPI", &files(tree::items(volume, "downwardAPI.items"), ""));
    let mut all = Vec::new();
    let mut empty = 0;
    for source in tree::items(volume, "projected.sources") {
        if source
            .as_object()
            .is_some_and(|source| source.values().all(Value::is_null))
        {
            empty += 1;
        }
        all.extend(projected(source));
    }
    say("Projected", &all);
    for _ in 0..empty {
        out.push(format!("volume \"{name}\" (Projected) has no sources provided"));
    }
}

fn projected(source: &Value) -> Vec<File<'_>> {
    let named = |title: &str, name: &str| format!("{title} \"{name}\"");
    for (field, title) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
        if let Some(source) = tree::get(source, field) {
            return files(tree::items(source, "items"), &named(title, tree::text(source, "name")));
        }
    }
    if let Some(source) = tree::get(source, "downwardAPI") {
        return files(tree::items(source, "items"), "DownwardAPI");
    }
    let one = |path: &'static str, what: String| vec![(tree::text(source, path).trim_end_matches('/'), what)];
    if tree::get(source, "serviceAccountToken").is_some() {
        return one("serviceAccountToken.path", "ServiceAccountToken".to_owned());
    }
    if let Some(bundle) = tree::get(source, "clusterTrustBundle") {
        let name = tree::get(bundle, "name").and_then(Value::as_str);
        let name = name.unwrap_or_else(|| tree::text(bundle, "signerName"));
        return one("clusterTrustBundle.path", named("ClusterTrustBundle", name));
    }
    [
        ("certificateChainPath", "PodCertificate chain"),
        ("keyPath", "PodCertificate key"),
        ("credentialBundlePath", "PodCertificate credential bundle"),
    ]
    .iter()
    .filter_map(|(field, what)| {
        let path = tree::get(source, "podCertificate")?.get(field)?.as_str()?;
        Some((path.trim_end_matches('/'), (*what).to_owned()))
    })
    .collect()
}

fn duplicates(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for (list, field) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen = BTreeSet::new();
        for (index, item) in tree::items(spec, list).iter().enumerate() {
            let value = tree::text(item, field);
            if !seen.insert(value) {
                let path = path.child(list).index(index).child(field);
                out.push(format!("{path}: duplicate {field} \"{value}\""));
            }
        }
    }
    for (index, secret) in tree::items(spec, "imagePullSecrets").iter().enumerate() {
        if tree::text(secret, "name").is_empty() {
            let path = path.child("imagePullSecrets").index(index).child("name");
            out.push(format!("{path}: invalid empty name \"\""));
        }
    }
}

fn bytes(list: Option<&Value>, path: &Path, out: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        common::fractional(list, name, path, out);
    }
}

/// A variable defined twice is fine when the second builds on the first.
fn env(container: &Value, path: &Path, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, variable) in tree::items(container, "env").iter().enumerate() {
        let name = tree::text(variable, "name");
        if seen.insert(name) {
            continue;
        }
        let value = tree::text(variable, "value");
        let earlier = format!("$({name})");
        if tree::get(variable, "valueFrom").is_some() || value == earlier || !value.contains(&earlier) {
            out.push(format!(
                "{}: hides previous definition of \"{name}\", which may be dropped when using apply",
                path.index(index)
            ));
        }
    }
}

fn ports(spec: &Value, path: &Path, out: &mut Vec<String>) {
    let mut by_port: BTreeMap<(i64, &str), Vec<(&Value, Path)>> = BTreeMap::new();
    let all = || {
        containers(spec, path).into_iter().flat_map(|(container, path)| {
            let path = path.child("ports");
            tree::items(container, "ports")
                .iter()
                .enumerate()
                .map(move |(index, port)| (port, path.index(index)))
        })
    };
    let host = |port: &Value| (tree::text(port, "hostIP").to_owned(), tree::int(port, "hostPort"));
    for (port, path) in all() {
        let (ip, host_port) = host(port);
        let number = tree::int(port, "containerPort");
        let protocol = tree::text(port, "protocol");
        if !ip.is_empty() && host_port == 0 {
            out.push(format!(
                "{path}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{number} Protocol:{protocol} \
                 HostIP:{ip}}}",
                tree::text(port, "name")
            ));
        }
        let others = by_port.entry((number, protocol)).or_default();
        for (other, at) in others.iter() {
            let (other_ip, other_port) = host(other);
            let how = if ip == other_ip && host_port == other_port {
                "duplicate"
            } else if host_port == 0 || other_port == 0 {
                "overlapping"
            } else if host_port == other_port && (ip.is_empty() != other_ip.is_empty()) {
                "dangerously ambiguous"
            } else {
                continue;
            };
            out.push(format!("{path}: {how} port definition with {at}"));
        }
        others.push((port, path));
    }
    let mut by_name: BTreeMap<&str, Path> = BTreeMap::new();
    for (port, path) in all() {
        let name = tree::text(port, "name");
        if name.is_empty() {
            continue;
        }
        if let Some(first) = by_name.get(name) {
            out.push(format!(
                "{path}: duplicate port name \"{name}\" with {first}, services and probes that select ports by name \
                 will use {first}"
            ));
        } else {
            by_name.insert(name, path);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_surprises_is_said() {
        let cases = [
            (json!({"containers": [{"name": "a"}]}), vec![]),
            (
                json!({"nodeSelector": {"beta.kubernetes.io/arch": "x"}}),
                vec![
                    "spec.nodeSelector[beta.kubernetes.io/arch]: deprecated since v1.14; use \"kubernetes.io/arch\" instead",
                ],
            ),
            (
                json!({"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"}]}]}),
                vec![
                    "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                ],
            ),
            (
                json!({"containers": [{"ports": [{"name": "p", "containerPort": 80, "protocol": "TCP"}]},
                    {"ports": [{"name": "p", "containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP", "hostPort": 8}]}]}),
                vec![
                    "spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]",
                    "spec.containers[1].ports[1]: overlapping port definition with spec.containers[0].ports[0]",
                    "spec.containers[1].ports[1]: overlapping port definition with spec.containers[1].ports[0]",
                    "spec.containers[1].ports[0]: duplicate port name \"p\" with spec.containers[0].ports[0], services and probes that select ports by name will use spec.containers[0].ports[0]",
                ],
            ),
            (
                json!({"volumes": [{"name": "v", "gitRepo": {}}, {"name": "c", "configMap": {"name": "m", "items": [{"path": "a"}, {"path": "a/b"}]}}]}),
                vec![
                    "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
                    "volume \"c\" (ConfigMap \"m\"): overlapping paths: \"a/b\" with \"a\"",
                ],
            ),
            (
                json!({"volumes": [{"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}},
                    {"secret": {"name": "s", "items": [{"path": "t/"}]}}]}}]}),
                vec![
                    "volume \"p\" (Projected): overlapping paths: \"t\" (Secret \"s\") with \"t\" (ServiceAccountToken)",
                ],
            ),
            (
                json!({"containers": [{"resources": {"limits": {"memory": "128m"}}}], "topologySpreadConstraints": [{"topologyKey": "zone"}]}),
                vec![
                    "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                    "spec.containers[0].resources.limits[memory]: fractional byte value \"128m\" is invalid, must be an integer",
                ],
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(of(&json!({"spec": spec}), &Path::default()), expected, "{spec}");
        }
        let pod = json!({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "x"}}, "spec": {}});
        assert_eq!(
            of(&pod, &Path::new("spec").child("template")),
            [
                "spec.template.metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: non-functional in v1.27+; use the \"seccompProfile\" field instead"
            ]
        );
    }
}
