//! Validation of Pods: what only a Pod is checked for, and what may change in one.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, quantity::Quantity};
use serde_json::{Map, Value};

use super::qos::qos_class;
use crate::checks::{self, Rule};
use crate::internal;
use crate::names;
use crate::pod_spec::{image_spaces, scheduling, validate};
use crate::spec::Part;
use crate::{diff, tree};

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn spec_path() -> Path {
    Path::new("spec")
}

/// Metadata and spec, for a new Pod and for an update.
pub(super) fn pod(pod: &Object, errors: &mut Errors) {
    let nothing = Value::Null;
    let spec = tree::get(pod, "spec").unwrap_or(&nothing);
    annotations(pod, errors);
    let owner = validate::Owner {
        is_pod: true,
        name: tree::text(pod, "metadata.name"),
    };
    validate::spec(spec, &spec_path(), owner, errors);
    if tree::text(spec, "serviceAccountName").is_empty() {
        checks::run_at(
            &[(
                "volumes[].projected.sources[].serviceAccountToken",
                Rule::Forbidden("must not be specified when serviceAccountName is not set"),
            )],
            spec,
            &spec_path(),
            None,
            errors,
        );
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in tree::items(spec, list).iter().enumerate() {
            image_spaces(container, &spec_path().child(list).index(index), errors);
        }
    }
}

fn annotations(pod: &Object, errors: &mut Errors) {
    let path = Path::new("metadata").child("annotations");
    let has = |key: &str| tree::map(pod, "metadata.annotations").is_some_and(|map| map.contains_key(key));
    if has(MIRROR) && tree::text(pod, "spec.nodeName").is_empty() {
        errors.push(Error::invalid(
            &path.key(MIRROR),
            tree::annotation(pod, MIRROR),
            "must set spec.nodeName if mirror pod annotation is set",
        ));
    }
    if has(DELETION_COST) {
        let cost = tree::annotation(pod, DELETION_COST);
        if cost.parse::<i32>().map(|number| number.to_string()).as_deref() != Ok(cost) {
            errors.push(Error::invalid(
                &path.key(DELETION_COST),
                cost,
                "must be a 32bit integer",
            ));
        }
    }
}

/// What only a new Pod is checked for.
pub(super) fn create(pod: &Object, errors: &mut Errors) {
    self::pod(pod, errors);
    if !tree::items(pod, "spec.ephemeralContainers").is_empty() {
        errors.push(Error::forbidden(
            &spec_path().child("ephemeralContainers"),
            "cannot be set on create",
        ));
    }
    if !tree::text(pod, "spec.nodeName").is_empty() && !tree::items(pod, "spec.schedulingGates").is_empty() {
        errors.push(Error::forbidden(
            &spec_path().child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

pub(super) fn update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    match part {
        Part::Main => {
            pod(new, errors);
            spec_update(new, old, errors);
        }
        Part::View("status") => status_update(new, old, errors),
        Part::View("ephemeralcontainers") => {
            pod(new, errors);
            ephemeral_update(new, old, errors);
        }
        Part::View("resize") => {
            pod(new, errors);
            resize(new, old, errors);
        }
        Part::View(_) => {}
    }
}

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A Pod's spec is what its node runs: little of it may change.
fn spec_update(new: &Object, old: &Object, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        let path = format!("spec.{list}");
        if tree::items(new, &path).len() != tree::items(old, &path).len() {
            errors.push(Error::forbidden(
                &spec_path().child(list),
                "pod updates may not add or remove containers",
            ));
            return;
        }
        for (index, container) in tree::items(new, &path).iter().enumerate() {
            let at = spec_path().child(list).index(index);
            if tree::text(container, "image").is_empty() {
                errors.push(Error::required(&at.child("image"), ""));
            }
            image_spaces(container, &at, errors);
        }
    }
    if !deadline_update(new, old, errors) {
        return;
    }
    only_added_tolerations(new, old, errors);
    only_removed_gates(new, old, errors);

    let nothing = Value::Null;
    let old_spec = tree::get(old, "spec").unwrap_or(&nothing);
    // What may change is made what it was; what then still differs may not.
    let mut munged = tree::get(new, "spec").cloned().unwrap_or_default();
    for list in ["containers", "initContainers"] {
        let was = tree::items(old_spec, list);
        for (container, was) in tree::items_mut(&mut munged, list).iter_mut().zip(was) {
            tree::carry(container, was, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        tree::carry(&mut munged, old_spec, field);
    }
    if tree::int(old_spec, "terminationGracePeriodSeconds") < 0
        && tree::int(&munged, "terminationGracePeriodSeconds") == 1
    {
        tree::carry(&mut munged, old_spec, "terminationGracePeriodSeconds");
    }
    if !tree::items(old_spec, "schedulingGates").is_empty() {
        gated_update(&mut munged, old_spec, errors);
    }
    if !tree::same(Some(&munged), Some(old_spec)) {
        let changes = diff::lines(old_spec, &munged);
        errors.push(Error::forbidden(
            &spec_path(),
            format!("pod updates may not change fields other than {UPDATABLE}\n{changes}\n"),
        ));
    }
}

/// A deadline may be set or brought nearer. False: no use in looking further.
fn deadline_update(new: &Object, old: &Object, errors: &mut Errors) -> bool {
    let path = spec_path().child("activeDeadlineSeconds");
    let (now, before) = (
        tree::opt_int(new, "spec.activeDeadlineSeconds"),
        tree::opt_int(old, "spec.activeDeadlineSeconds"),
    );
    match (now, before) {
        (Some(now), _) if !(0..=i64::from(i32::MAX)).contains(&now) => {
            let why = format!("must be between 0 and {}, inclusive", i32::MAX);
            errors.push(Error::invalid(&path, now, why));
            false
        }
        (Some(now), Some(before)) if before < now => {
            errors.push(Error::invalid(
                &path,
                now,
                "must be less than or equal to previous value",
            ));
            false
        }
        (None, Some(_)) => {
            errors.push(Error::invalid(
                &path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
            true
        }
        _ => true,
    }
}

fn only_added_tolerations(new: &Object, old: &Object, errors: &mut Errors) {
    let path = spec_path().child("tolerations");
    let now = tree::items(new, "spec.tolerations");
    let same_but_time = |one: &Value, other: &Value| {
        let mut one = one.clone();
        tree::carry(&mut one, other, "tolerationSeconds");
        tree::same(Some(&one), Some(other))
    };
    let kept = tree::items(old, "spec.tolerations")
        .iter()
        .all(|was| now.iter().any(|is| same_but_time(was, is)));
    if kept {
        scheduling::tolerations(now, &path, errors);
    } else {
        errors.push(Error::forbidden(
            &path,
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
}

fn only_removed_gates(new: &Object, old: &Object, errors: &mut Errors) {
    let was = tree::items(old, "spec.schedulingGates");
    for (index, gate) in tree::items(new, "spec.schedulingGates").iter().enumerate() {
        let name = tree::text(gate, "name");
        if !was.iter().any(|gate| tree::text(gate, "name") == name) {
            errors.push(Error::forbidden(
                &spec_path().child("schedulingGates").index(index).child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            ));
        }
    }
}

/// A gated Pod may still be told more about the nodes it wants, never less.
fn gated_update(munged: &mut Value, old: &Value, errors: &mut Errors) {
    if !tree::same_at(munged, old, "nodeSelector") {
        let path = spec_path().child("nodeSelector");
        for (key, value) in tree::map(old, "nodeSelector").into_iter().flatten() {
            if tree::map(munged, "nodeSelector").and_then(|now| now.get(key)) != Some(value) {
                errors.push(Error::invalid(
                    &path,
                    tree::get(munged, "nodeSelector").cloned().unwrap_or_default(),
                    "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
                ));
                break;
            }
        }
        tree::carry(munged, old, "nodeSelector");
    }
    if !tree::same_at(munged, old, "affinity.nodeAffinity") {
        const TERMS: &str = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        let (was, now) = (tree::items(old, TERMS), tree::items(munged, TERMS));
        let path = TERMS.split('.').fold(spec_path(), |path, name| path.child(name));
        if !was.is_empty() && was.len() != now.len() {
            let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
            let shown = internal::list(internal::NODE_SELECTOR_TERM, now);
            errors.push(Error::invalid(&path, Value::Null, why).showing(shown));
        } else {
            for (index, (was, now)) in was.iter().zip(now).enumerate() {
                let grew = |list: &str| tree::items(now, list).starts_with(tree::items(was, list));
                if !grew("matchExpressions") || !grew("matchFields") {
                    let why = "only additions are allowed (no mutations or deletions)";
                    let shown = internal::object(internal::NODE_SELECTOR_TERM, Some(now));
                    errors.push(Error::invalid(&path.index(index), Value::Null, why).showing(shown));
                }
            }
        }
        if tree::get(old, "affinity").is_some() {
            tree::carry(munged, old, "affinity.nodeAffinity");
        } else {
            tree::remove(munged, "affinity.nodeAffinity");
        }
    }
}

/// Containers that ended for good do not come back, and a Pod's class never changes.
fn status_update(new: &Object, old: &Object, errors: &mut Errors) {
    let path = Path::new("status");
    conditions(new, &path.child("conditions"), errors);
    let nominated = tree::text(new, "status.nominatedNodeName");
    if nominated != tree::text(old, "status.nominatedNodeName") && !nominated.is_empty() {
        let at = path.child("nominatedNodeName");
        checks::named(&at, nominated, names::whole_subdomain, errors);
        if !tree::text(old, "spec.nodeName").is_empty() {
            errors.push(Error::forbidden(
                &at,
                "may not be set on pods that are already bound to a node",
            ));
        }
    }
    checks::immutable(new, old, &Path::default(), "status.qosClass", errors);
    container_transitions(new, old, &path, errors);
    addresses((new, old), &path.child("podIPs"), "status.podIPs", errors);
    let at = path.child("hostIPs");
    if let Some(first) = tree::items(new, "status.hostIPs").first()
        && tree::text(first, "ip") != tree::text(new, "status.hostIP")
    {
        let at = at.index(0).child("ip");
        errors.push(Error::invalid(
            &at,
            tree::text(first, "ip"),
            "must be equal to `hostIP`",
        ));
    }
    addresses((new, old), &at, "status.hostIPs", errors);
}

/// Names of conditions other than the system's own are qualified names.
fn conditions(pod: &Object, path: &Path, errors: &mut Errors) {
    for (index, condition) in tree::items(pod, "status.conditions").iter().enumerate() {
        let at = path.index(index);
        let generation = tree::int(condition, "observedGeneration");
        if generation < 0 {
            let why = "must be a non-negative integer";
            errors.push(Error::invalid(&at.child("observedGeneration"), generation, why));
        }
        let kind = tree::text(condition, "type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            checks::named(&at.child("Type"), kind, sampan_api::names::qualified_name, errors);
        }
    }
}

fn container_transitions(new: &Object, old: &Object, path: &Path, errors: &mut Errors) {
    for (statuses, containers) in [
        ("containerStatuses", "spec.containers"),
        ("initContainerStatuses", "spec.initContainers"),
    ] {
        let now = tree::items(new, &format!("status.{statuses}"));
        for (index, was) in tree::items(old, &format!("status.{statuses}")).iter().enumerate() {
            let Some(end) = tree::get(was, "state.terminated") else {
                continue;
            };
            let name = tree::text(was, "name");
            let revived = now
                .iter()
                .any(|is| tree::text(is, "name") == name && tree::get(is, "state.terminated").is_none());
            let container = tree::items(old, containers)
                .iter()
                .find(|container| tree::text(container, "name") == name);
            if revived && !may_restart(old, container, containers, tree::int(end, "exitCode")) {
                errors.push(Error::forbidden(
                    &path.child(statuses).index(index).child("state"),
                    "may not be transitioned to non-terminated state",
                ));
            }
        }
    }
}

fn may_restart(pod: &Object, container: Option<&Value>, list: &str, code: i64) -> bool {
    let own = container
        .map(|container| tree::text(container, "restartPolicy"))
        .unwrap_or_default();
    if container.is_some_and(|container| !tree::items(container, "restartPolicyRules").is_empty()) {
        return true;
    }
    let policy = if own.is_empty() {
        tree::text(pod, "spec.restartPolicy")
    } else {
        own
    };
    match policy {
        // An init container of a restarting Pod runs again when it failed, or when the sandbox was made anew.
        "Always" => true,
        "OnFailure" => code != 0 || list == "spec.initContainers",
        _ => false,
    }
}

/// At most one address of each family; those that were there before may stay.
fn addresses((pod, old): (&Object, &Object), path: &Path, list: &str, errors: &mut Errors) {
    let all = tree::items(pod, list);
    let known = tree::items(old, list);
    for (index, one) in all.iter().enumerate().filter(|(_, one)| !known.contains(one)) {
        checks::named(&path.index(index), tree::text(one, "ip"), names::ip, errors);
    }
    let sixes = all.iter().filter(|one| tree::text(one, "ip").contains(':')).count();
    if all.len() > 1 && (all.len() > 2 || sixes != 1) {
        let why = "may specify no more than one IP for each IP family";
        errors.push(Error::invalid(path, Value::Null, why).showing(internal::list(internal::IP, all)));
    }
}

fn ephemeral_update(new: &Object, old: &Object, errors: &mut Errors) {
    let path = spec_path().child("ephemeralContainers");
    let now = tree::items(new, "spec.ephemeralContainers");
    for was in tree::items(old, "spec.ephemeralContainers") {
        let name = tree::text(was, "name");
        match now.iter().find(|is| tree::text(is, "name") == name) {
            None => errors.push(Error::forbidden(
                &path,
                format!("existing ephemeral containers {name:?} may not be removed\n"),
            )),
            Some(is) if !tree::same(Some(was), Some(is)) => {
                let changes = diff::lines(was, is);
                errors.push(Error::forbidden(
                    &path,
                    format!("existing ephemeral containers {name:?} may not be changed\n{changes}\n"),
                ));
            }
            Some(_) => {}
        }
    }
}

/// Only CPU and memory of containers change, none is taken away, and the Pod's class stays.
fn resize(new: &Object, old: &Object, errors: &mut Errors) {
    if tree::map(old, "metadata.annotations").is_some_and(|map| map.contains_key(MIRROR)) {
        errors.push(Error::forbidden(&Path::default(), "static pods cannot be resized"));
        return;
    }
    let class = tree::get(new, "spec").map_or("BestEffort", qos_class);
    if class != tree::get(old, "spec").map_or("BestEffort", qos_class) {
        errors.push(Error::invalid(
            &spec_path(),
            class,
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    for list in ["containers", "initContainers"] {
        let path = spec_path().child(list);
        let full = format!("spec.{list}");
        for (index, (is, was)) in tree::items(new, &full).iter().zip(tree::items(old, &full)).enumerate() {
            let path = path.index(index).child("resources");
            for kind in ["requests", "limits"] {
                resized_list(is, was, kind, &path.child(kind), errors);
            }
        }
    }
}

fn resized_list(new: &Value, old: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let list = format!("resources.{kind}");
    let empty = Map::new();
    let (now, was) = (
        tree::map(new, &list).unwrap_or(&empty),
        tree::map(old, &list).unwrap_or(&empty),
    );
    let differs = |name: &String| {
        let parsed = |list: &Map<String, Value>| list.get(name).and_then(|value| Quantity::from_value(value).ok());
        match (parsed(now), parsed(was)) {
            (Some(a), Some(b)) => !a.sub(&b).is_zero(),
            (None, None) => false,
            _ => true,
        }
    };
    for name in was.keys().chain(now.keys().filter(|name| !was.contains_key(*name))) {
        let scalable = matches!(name.as_str(), "cpu" | "memory");
        if !scalable && differs(name) {
            errors.push(Error::forbidden(
                &spec_path(),
                "only cpu and memory resources are mutable",
            ));
        } else if !now.contains_key(name) {
            errors.push(Error::forbidden(path, format!("resource {kind} cannot be removed")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Strategy;
    use serde_json::json;

    const RULES: &crate::rules::Rules = &super::super::RULES;

    fn valid() -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [{"name": "a", "image": "nginx"}]}});
        RULES.default(&mut pod);
        pod
    }

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    /// A valid Pod with changes at paths of the spec, and what is said of it.
    fn said(changes: &[(&str, Value)]) -> Vec<String> {
        let mut pod = valid();
        for (path, value) in changes {
            let pointer = format!("/spec/{path}");
            match pod.pointer_mut(&pointer) {
                Some(slot) => *slot = value.clone(),
                None => {
                    let (parent, name) = pointer.rsplit_once('/').unwrap();
                    pod.pointer_mut(parent).unwrap()[name] = value.clone();
                }
            }
        }
        RULES.default(&mut pod);
        texts(RULES.validate_create(&pod))
    }

    #[test]
    fn a_minimal_pod_is_valid() {
        assert_eq!(said(&[]), Vec::<String>::new());
    }

    #[test]
    fn wrong_pods_are_refused_in_upstreams_words() {
        type Case<'a> = (Vec<(&'a str, Value)>, Vec<&'a str>);
        let cases: Vec<Case<'_>> = vec![
            (vec![("containers", json!([]))], vec!["spec.containers: Required value"]),
            (
                vec![("containers/0/name", json!("A"))],
                vec![
                    "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                vec![("containers/0/image", json!(""))],
                vec!["spec.containers[0].image: Required value"],
            ),
            (
                vec![("containers/0/image", json!(" nginx"))],
                vec![
                    "spec.containers[0].image: Invalid value: \" nginx\": must not have leading or trailing whitespace",
                ],
            ),
            (
                vec![("restartPolicy", json!("Sometimes"))],
                vec![
                    "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                ],
            ),
            (
                vec![(
                    "containers/0/ports",
                    json!([{"containerPort": 0}, {"containerPort": 70000, "name": "x"}, {"containerPort": 1, "name": "x"}]),
                )],
                vec![
                    "spec.containers[0].ports[0].containerPort: Required value",
                    "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    "spec.containers[0].ports[2].name: Duplicate value: \"x\"",
                ],
            ),
            (
                vec![("containers/0/volumeMounts", json!([{"name": "v", "mountPath": "/v"}]))],
                vec!["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
            ),
            (
                vec![(
                    "volumes",
                    json!([{"name": "v", "configMap": {}, "secret": {"secretName": "s"}}]),
                )],
                vec!["spec.volumes[0].configMap: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                vec![(
                    "containers/0/livenessProbe",
                    json!({"httpGet": {"port": 0}, "exec": {"command": ["x"]}, "successThreshold": 2}),
                )],
                vec![
                    "spec.containers[0].livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type",
                    "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                ],
            ),
            (
                vec![("containers/0/readinessProbe", json!({}))],
                vec!["spec.containers[0].readinessProbe: Required value: must specify a handler type"],
            ),
            (
                vec![(
                    "containers/0/resources",
                    json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
                )],
                vec![
                    "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
                ],
            ),
            (
                vec![("containers/0/resources", json!({"requests": {"gpu": "1"}}))],
                vec![
                    "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
                    "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
                ],
            ),
            (
                vec![(
                    "containers/0/env",
                    json!([{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}}]),
                )],
                vec![
                    "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
                    "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.nope\": error converting fieldPath: field label not supported: spec.nope",
                ],
            ),
            (
                vec![(
                    "initContainers",
                    json!([{"name": "i", "image": "x", "livenessProbe": {"exec": {"command": ["x"]}}}]),
                )],
                vec![
                    "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
                ],
            ),
            (
                vec![("tolerations", json!([{"operator": "Equal", "value": "x"}]))],
                vec![
                    "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \\\"match all values and all keys\\\"",
                ],
            ),
            (
                vec![("dnsPolicy", json!("None"))],
                vec!["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
            ),
            (
                vec![("ephemeralContainers", json!([{"name": "e", "image": "x"}]))],
                vec!["spec.ephemeralContainers: Forbidden: cannot be set on create"],
            ),
            (
                vec![("dnsConfig", json!({"nameservers": [""]}))],
                vec![
                    "spec.dnsConfig.nameservers[0]: Invalid value: \"\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            (
                vec![("readinessGates", json!([{"conditionType": "a b"}]))],
                vec![
                    "spec.readinessGates[0].conditionType: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                ],
            ),
            (
                vec![(
                    "securityContext",
                    json!({"fsGroupChangePolicy": "", "seccompProfile": {"type": "X", "localhostProfile": "p"}}),
                )],
                vec![
                    "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"\": supported values: \"Always\", \"OnRootMismatch\"",
                    "spec.securityContext.seccompProfile.type: Unsupported value: \"X\": supported values: \"Localhost\", \"RuntimeDefault\", \"Unconfined\"",
                    "spec.securityContext.seccompProfile.localhostProfile: Invalid value: {\"Type\":\"X\",\"LocalhostProfile\":\"p\"}: can only be set when seccomp type is Localhost",
                ],
            ),
            (
                vec![(
                    "containers/0/resources",
                    json!({"limits": {"cpu": "1", "hugepages-2Mi": "3Mi"}}),
                )],
                vec![
                    "spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
                    "spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
                ],
            ),
            (
                vec![(
                    "volumes",
                    json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": {"metadata": {"name": "n"}}}}]),
                )],
                vec![
                    "spec.volumes[0].ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set",
                    "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.accessModes: Required value: at least 1 access mode is required",
                    "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value",
                ],
            ),
            (
                vec![("preemptionPolicy", json!(""))],
                vec!["spec.preemptionPolicy: Required value"],
            ),
            (
                vec![("hostAliases", json!([{"ip": "1.2.3"}]))],
                vec![
                    "spec.hostAliases[0].ip: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            (
                vec![(
                    "containers/0/securityContext",
                    json!({"privileged": true, "allowPrivilegeEscalation": false}),
                )],
                vec![
                    "spec.containers[0].securityContext: Invalid value: {\"Capabilities\":null,\"Privileged\":true,\"SELinuxOptions\":null,\"WindowsOptions\":null,\"RunAsUser\":null,\"RunAsGroup\":null,\"RunAsNonRoot\":null,\"ReadOnlyRootFilesystem\":null,\"AllowPrivilegeEscalation\":false,\"ProcMount\":null,\"SeccompProfile\":null,\"AppArmorProfile\":null}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
                ],
            ),
            (
                vec![(
                    "topologySpreadConstraints",
                    json!([{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]),
                )],
                vec!["spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero"],
            ),
            (
                vec![(
                    "affinity",
                    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}),
                )],
                vec![
                    "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
                ],
            ),
        ];
        for (changes, wanted) in cases {
            let wanted: Vec<_> = wanted.iter().map(|text| text.replace("\\\"", "\"")).collect();
            assert_eq!(said(&changes), wanted, "{changes:?}");
        }
    }

    #[test]
    fn little_of_a_pod_may_change() {
        let old = valid();
        let changed = |path: &str, value: Value| {
            let mut new = old.clone();
            tree::set(&mut new, path, value);
            texts(RULES.validate_update(Part::Main, &new, &old))
        };
        let none: Vec<String> = Vec::new();
        let mut container = old["spec"]["containers"][0].clone();
        container["image"] = "other".into();
        assert_eq!(
            changed("spec.containers", json!([container])),
            none,
            "an image may change"
        );
        assert_eq!(changed("metadata.labels", json!({"a": "b"})), none);
        assert_eq!(changed("spec.tolerations", json!([{"operator": "Exists"}])), none);
        assert_eq!(changed("spec.activeDeadlineSeconds", json!(5)), none);
        container["command"] = json!(["x"]);
        let text = changed("spec.containers", json!([container])).join("");
        assert!(
            text.starts_with(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
            ),
            "{text}"
        );
        assert!(text.ends_with("+ containers[0].command: [\"x\"]\n"), "{text}");
        assert_eq!(
            changed(
                "spec.containers",
                json!([container, {"name": "b", "image": "x", "imagePullPolicy": "Never", "terminationMessagePolicy": "File"}])
            ),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }

    #[test]
    fn what_a_node_tells_is_looked_at() {
        let old = valid();
        let told = |status: Value| {
            let mut new = old.clone();
            new["status"] = status;
            texts(RULES.validate_update(Part::View("status"), &new, &old))
        };
        assert_eq!(
            told(json!({"hostIP": "10.0.0.2", "hostIPs": [{"ip": "10.0.0.1"}]})),
            ["status.hostIPs[0].ip: Invalid value: \"10.0.0.1\": must be equal to `hostIP`"]
        );
        assert_eq!(
            told(json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]})),
            [
                "status.podIPs: Invalid value: [{\"IP\":\"10.0.0.1\"},{\"IP\":\"10.0.0.2\"}]: may specify no more than one IP for each IP family"
            ]
        );
        assert_eq!(
            told(json!({"conditions": [{"type": "Ready"}, {"type": "example.com/x"}]})),
            [""; 0]
        );
        assert_eq!(told(json!({"conditions": [{"type": ""}]})).len(), 2);
        // A pointer's zero is not the same as no pointer.
        let mut old = old.clone();
        old["spec"]["automountServiceAccountToken"] = false.into();
        assert_eq!(RULES.validate_update(Part::Main, &valid(), &old).len(), 1);
    }

    #[test]
    fn what_ended_for_good_stays_ended() {
        let mut old = valid();
        old["spec"]["restartPolicy"] = "Never".into();
        old["status"] = json!({"qosClass": "BestEffort", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 1}}}]});
        let mut new = old.clone();
        new["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        assert_eq!(
            texts(RULES.validate_update(Part::View("status"), &new, &old)),
            ["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"]
        );
        new["spec"]["restartPolicy"] = "Always".into();
        let old = {
            let mut pod = old.clone();
            pod["spec"]["restartPolicy"] = "Always".into();
            pod
        };
        assert_eq!(
            texts(RULES.validate_update(Part::View("status"), &new, &old)),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_resize_keeps_the_class() {
        let mut old = valid();
        old["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        let mut new = old.clone();
        new["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "2"}});
        assert_eq!(
            texts(RULES.validate_update(Part::View("resize"), &new, &old)),
            Vec::<String>::new()
        );
        new["spec"]["containers"][0]["resources"] = json!({});
        assert_eq!(
            texts(RULES.validate_update(Part::View("resize"), &new, &old)),
            [
                "spec: Invalid value: \"BestEffort\": Pod QOS Class may not change as a result of resizing",
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
            ]
        );
    }
}
