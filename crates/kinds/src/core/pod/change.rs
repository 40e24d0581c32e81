//! What creating, updating and deleting a Pod implies.

use sampan_api::Object;
use serde_json::{Value, json};

use super::qos;
use crate::rules::keep_all_but;
use crate::tree;

pub(super) fn prepare_create(pod: &mut Object) {
    let class = tree::get(pod, "spec").map_or("BestEffort", qos::qos_class);
    let mut status = json!({"phase": "Pending", "qosClass": class});
    if !tree::items(pod, "spec.schedulingGates").is_empty() {
        tree::set(
            &mut status,
            "conditions",
            json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastTransitionTime": sampan_api::time::now(),
            }]),
        );
    }
    tree::set(pod, "status", status);
    merge_match_label_keys(pod);
    copy_app_armor(pod);
}

/// The annotations AppArmor profiles were once named in, one per container.
pub(crate) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Makes fields of AppArmor annotations, for containers without the field.
fn copy_app_armor(pod: &mut Object) {
    if tree::text(pod, "spec.os.name") == "windows" {
        return;
    }
    let profiles: Vec<(String, Value)> = tree::map(pod, "metadata.annotations")
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.strip_prefix(APP_ARMOR)?.to_owned(), app_armor(value.as_str()?)?)))
        .collect();
    if profiles.is_empty() {
        return;
    }
    let common = tree::get(pod, "spec.securityContext.appArmorProfile").cloned();
    for list in crate::pod_spec::CONTAINER_LISTS {
        for container in tree::items_mut(pod, &format!("spec.{list}")) {
            let own = profiles.iter().find(|(name, _)| name == tree::text(container, "name"));
            if let Some((_, profile)) = own
                && tree::get(container, "securityContext.appArmorProfile").is_none()
                && common.as_ref() != Some(profile)
            {
                tree::set(container, "securityContext.appArmorProfile", profile.clone());
            }
        }
    }
}

/// The field an annotation's value stands for; nothing for a value that says nothing valid.
pub(crate) fn app_armor(annotation: &str) -> Option<Value> {
    const LONGEST: usize = 4095;
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        other => {
            let name = other.strip_prefix("localhost/")?;
            let good = !name.is_empty() && name.trim() == name && name.len() <= LONGEST;
            good.then(|| json!({"type": "Localhost", "localhostProfile": name}))
        }
    }
}

/// The three views beside `status`' common rule: what each may change, everything else staying as it was.
pub(super) fn prepare_view(view: &str, new: &mut Object, old: &Object) -> bool {
    match view {
        "status" => {
            keep_all_but(&["status"], new, old);
            // Old node agents corrupt owner references and drop the class.
            tree::carry(new, old, "metadata.ownerReferences");
            if tree::text(new, "status.qosClass").is_empty() {
                tree::carry(new, old, "status.qosClass");
            }
            if tree::int(new, "status.observedGeneration") == 0 {
                tree::carry(new, old, "status.observedGeneration");
            }
        }
        "ephemeralcontainers" => keep_all_but(&["spec.ephemeralContainers"], new, old),
        "resize" => resize(new, old),
        _ => return false,
    }
    true
}

/// Takes over resources and resize policies of containers known by name, and the Pod's own resources.
fn resize(new: &mut Object, old: &Object) {
    let asked = new.clone();
    keep_all_but(&["spec.resources"], new, old);
    for list in ["spec.containers", "spec.initContainers"] {
        for container in tree::items_mut(new, list) {
            let named = |one: &&Value| tree::text(one, "name") == tree::text(container, "name");
            if let Some(wanted) = tree::items(&asked, list).iter().find(named).cloned() {
                tree::carry(container, &wanted, "resources");
                tree::carry(container, &wanted, "resizePolicy");
            }
        }
    }
}

/// `matchLabelKeys` and `mismatchLabelKeys` stand for the Pod's own values of those labels: they become part of the
/// selector they extend, so that the scheduler sees plain selectors.
fn merge_match_label_keys(pod: &mut Object) {
    let labels = tree::map(pod, "metadata.labels").cloned().unwrap_or_default();
    let extend = |owner: &mut Value| {
        for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            for key in tree::items(owner, keys).to_vec() {
                let value = key.as_str().and_then(|key| labels.get(key)).and_then(Value::as_str);
                let (Some(value), true) = (value, tree::get(owner, "labelSelector").is_some()) else {
                    continue;
                };
                let mut expressions = tree::items(owner, "labelSelector.matchExpressions").to_vec();
                expressions.push(json!({"key": key, "operator": operator, "values": [value]}));
                tree::set(owner, "labelSelector.matchExpressions", expressions);
            }
        }
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = format!("spec.affinity.{kind}");
        for term in tree::items_mut(pod, &format!("{path}.requiredDuringSchedulingIgnoredDuringExecution")) {
            extend(term);
        }
        for term in tree::items_mut(pod, &format!("{path}.preferredDuringSchedulingIgnoredDuringExecution")) {
            if let Some(term) = tree::get_mut(term, "podAffinityTerm") {
                extend(term);
            }
        }
    }
    for constraint in tree::items_mut(pod, "spec.topologySpreadConstraints") {
        extend(constraint);
    }
}

/// Seconds a Pod has to go: what was asked, else what its spec says; at once when nothing runs for it.
pub(super) fn grace(pod: &Object, asked: Option<i64>) -> Option<i64> {
    let scheduled = !tree::text(pod, "spec.nodeName").is_empty();
    let finished = matches!(tree::text(pod, "status.phase"), "Failed" | "Succeeded");
    if !scheduled || finished {
        return Some(0);
    }
    let seconds = asked.unwrap_or_else(|| tree::int(pod, "spec.terminationGracePeriodSeconds"));
    Some(if seconds < 0 { 1 } else { seconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;
    use crate::spec::{Part, Strategy};

    const RULES: &Rules = &super::super::RULES;

    #[test]
    fn a_new_pod_is_pending_with_its_class() {
        let mut pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}], "schedulingGates": [{"name": "g"}]},
            "status": {"phase": "Running"}});
        RULES.prepare_create(&mut pod);
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["status"]["qosClass"], "Burstable");
        assert_eq!(pod["status"]["conditions"][0]["reason"], "SchedulingGated");
        assert!(pod["status"]["conditions"][0]["lastTransitionTime"].is_string());
    }

    #[test]
    fn app_armor_annotations_become_fields() {
        let mut pod = json!({
            "metadata": {"annotations": {
                format!("{APP_ARMOR}a"): "localhost/web", format!("{APP_ARMOR}b"): "unconfined",
                format!("{APP_ARMOR}c"): "localhost/ x", format!("{APP_ARMOR}d"): "runtime/default"}},
            "spec": {"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}, "containers": [
                {"name": "a"}, {"name": "b", "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}},
                {"name": "c"}, {"name": "d"}]},
        });
        RULES.prepare_create(&mut pod);
        let profile = |index: usize| &pod["spec"]["containers"][index]["securityContext"]["appArmorProfile"];
        assert_eq!(profile(0), &json!({"type": "Localhost", "localhostProfile": "web"}));
        assert_eq!(
            profile(1),
            &json!({"type": "RuntimeDefault"}),
            "a field beats its annotation"
        );
        assert_eq!(profile(2), &Value::Null, "an invalid value is not copied");
        assert_eq!(profile(3), &Value::Null, "the Pod's own profile says the same");
    }

    #[test]
    fn views_change_only_their_part() {
        let old = json!({"metadata": {"name": "p", "ownerReferences": [{"uid": "1"}]},
            "spec": {"nodeName": "n", "containers": [{"name": "a", "image": "x", "resources": {}}]},
            "status": {"phase": "Pending", "qosClass": "BestEffort"}});
        let mut new =
            json!({"metadata": {"name": "p", "labels": {"l": "1"}}, "spec": {}, "status": {"phase": "Running"}});
        RULES.prepare_update(Part::View("status"), &mut new, &old);
        assert_eq!(
            new,
            json!({"metadata": {"name": "p", "labels": {"l": "1"}, "ownerReferences": [{"uid": "1"}]}, "spec": old["spec"],
                "status": {"phase": "Running", "qosClass": "BestEffort"}})
        );
        let mut new = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "a", "image": "y", "resources": {"limits": {"cpu": "1"}}}]}});
        RULES.prepare_update(Part::View("resize"), &mut new, &old);
        assert_eq!(
            new["spec"]["containers"],
            json!([{"name": "a", "image": "x", "resources": {"limits": {"cpu": "1"}}}])
        );
        assert_eq!(new["status"], old["status"]);
    }

    #[test]
    fn grace_is_for_pods_that_run() {
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}});
        for (node, phase, asked, seconds) in [
            ("", "Pending", None, 0),
            ("n", "Running", None, 30),
            ("n", "Running", Some(5), 5),
            ("n", "Running", Some(-3), 1),
            ("n", "Succeeded", Some(5), 0),
        ] {
            assert_eq!(
                grace(&pod(node, phase), asked),
                Some(seconds),
                "{node} {phase} {asked:?}"
            );
        }
    }

    #[test]
    fn label_keys_become_selectors() {
        let mut pod = json!({"metadata": {"labels": {"v": "1"}}, "spec": {"topologySpreadConstraints": [
            {"matchLabelKeys": ["v", "absent"], "labelSelector": {"matchLabels": {"a": "b"}}}]}});
        merge_match_label_keys(&mut pod);
        assert_eq!(
            pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"],
            json!([{"key": "v", "operator": "In", "values": ["1"]}])
        );
    }
}
