//! Validation of the workload kinds.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::selector::{LabelSelector, validate_label_selector};
use sampan_api::{Object, names as api};
use serde_json::{Map, Value};

use crate::checks::{self, Check, Rule};
use crate::core::volume::claim_spec;
use crate::internal;
use crate::pod_spec::validate::template as validate_template;
use crate::spec::Part;
use crate::tree;

fn at(dotted: &str) -> Path {
    dotted.split('.').fold(Path::default(), |path, name| path.child(name))
}

/// Counts every workload's spec has in common.
pub(super) const COUNTS: &[Check] = &[
    ("spec.replicas", Rule::NonNegative),
    ("spec.minReadySeconds", Rule::NonNegative),
    ("spec.revisionHistoryLimit", Rule::NonNegative),
    ("spec.progressDeadlineSeconds", Rule::NonNegative),
    ("spec.ordinals.start", Rule::NonNegative),
];

/// Those of StatefulSets: a negative history is only warned of.
const STATEFUL_COUNTS: &[Check] = &[
    ("spec.replicas", Rule::NonNegative),
    ("spec.minReadySeconds", Rule::NonNegative),
    ("spec.ordinals.start", Rule::NonNegative),
];

/// A selector there must be, that selects something, and selects the template's Pods.
/// `empty`: what upstream calls the kind when the selector is empty.
fn selector(object: &Object, empty: &str, errors: &mut Errors) {
    let path = at("spec.selector");
    let Some(selector) = tree::get(object, "spec.selector") else {
        errors.push(Error::required(&path, ""));
        mismatch(object, errors);
        return;
    };
    errors.extend(validate_label_selector(selector, &path));
    if tree::len(selector, "matchLabels") + tree::items(selector, "matchExpressions").len() == 0 {
        let why = format!("empty selector is invalid for {empty}");
        errors.push(Error::invalid(&path, selector.clone(), why));
    }
    match LabelSelector::from_value(selector) {
        // Each kind has its own words for what was told above already.
        Err(_) => match empty {
            "daemonset" => {}
            "statefulset" => errors.push(Error::invalid(&path, selector.clone(), "")),
            _ => errors.push(Error::invalid(&path, selector.clone(), "invalid label selector")),
        },
        Ok(parsed) => {
            let none = Map::new();
            let labels = tree::map(object, "spec.template.metadata.labels").unwrap_or(&none);
            if !parsed.is_empty() && !parsed.matches(labels) {
                mismatch(object, errors);
            }
        }
    }
}

/// The template's Pods are not selected; no selector selects none.
fn mismatch(object: &Object, errors: &mut Errors) {
    errors.push(Error::invalid(
        &at("spec.template.metadata.labels"),
        object
            .pointer("/spec/template/metadata/labels")
            .cloned()
            .unwrap_or_default(),
        "`selector` does not match template `labels`",
    ));
}

/// The template of Pods that are meant to run on and on. `kind`: how upstream names it when refusing a deadline.
pub(crate) fn lasting_template(object: &Object, path: &Path, kind: &str, errors: &mut Errors) {
    let nothing = Value::Null;
    let template = tree::get(object, "spec.template").unwrap_or(&nothing);
    validate_template(template, path, errors);
    let spec = path.child("spec");
    let policy = tree::text(template, "spec.restartPolicy");
    if policy != "Always" {
        errors.push(Error::not_supported(&spec.child("restartPolicy"), policy, &["Always"]));
    }
    if tree::get(template, "spec.activeDeadlineSeconds").is_some() {
        errors.push(Error::forbidden(
            &spec.child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        ));
    }
}

/// A count or a percentage; its number, 0 when it is neither.
pub(crate) fn int_or_percent(value: Option<&Value>, path: &Path, errors: &mut Errors) -> i64 {
    match value {
        Some(Value::String(text)) => {
            let wrong = api::percent(text);
            let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
            if wrong.is_empty() {
                number.unwrap_or_default()
            } else {
                checks::named(path, text, api::percent, errors);
                0
            }
        }
        Some(other) => {
            let number = other.as_i64().unwrap_or_default();
            checks::non_negative(path, number, errors);
            number
        }
        None => 0,
    }
}

pub(crate) fn at_most_all(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    if let Some(text) = value.and_then(Value::as_str)
        && let Some(number) = text.strip_suffix('%').and_then(|number| number.parse::<i64>().ok())
        && number > 100
    {
        errors.push(Error::invalid(path, text, "must not be greater than 100%"));
    }
}

pub(super) fn deployment(object: &Object, errors: &mut Errors) {
    selector(object, "deployment", errors);
    lasting_template(object, &at("spec.template"), "ReplicaSet", errors);
    deployment_strategy(object, errors);
    let deadline = tree::opt_int(object, "spec.progressDeadlineSeconds");
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= tree::int(object, "spec.minReadySeconds")) {
        errors.push(Error::invalid(
            &at("spec.progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

fn deployment_strategy(object: &Object, errors: &mut Errors) {
    let path = at("spec.strategy");
    let rolling = tree::get(object, "spec.strategy.rollingUpdate");
    match tree::text(object, "spec.strategy.type") {
        "Recreate" => {
            if rolling.is_some() {
                errors.push(Error::forbidden(
                    &path.child("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let Some(rolling) = rolling else {
                errors.push(Error::required(&path, "this should be defaulted and never be nil"));
                return;
            };
            let unavailable = tree::get(rolling, "maxUnavailable");
            let unavailable_path = path.child("maxUnavailable");
            let down = int_or_percent(unavailable, &unavailable_path, errors);
            let up = int_or_percent(tree::get(rolling, "maxSurge"), &path.child("maxSurge"), errors);
            if down == 0 && up == 0 {
                errors.push(Error::invalid(
                    &unavailable_path,
                    unavailable.cloned().unwrap_or_default(),
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
            at_most_all(unavailable, &unavailable_path, errors);
        }
        _ => errors.push(
            Error::not_supported(&path, Value::Null, &["Recreate", "RollingUpdate"]).showing(internal::object(
                internal::DEPLOYMENT_STRATEGY,
                tree::get(object, "spec.strategy"),
            )),
        ),
    }
}

pub(super) fn replica_set(object: &Object, errors: &mut Errors) {
    selector(object, "deployment", errors);
    lasting_template(object, &at("spec.template"), "ReplicaSet", errors);
}

/// What a selector selects must not change under a controller.
pub(super) fn fixed_selector(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    match part {
        Part::Main => checks::immutable(new, old, &Path::default(), "spec.selector", errors),
        Part::View("status") => status(new, old, errors),
        Part::View(_) => {}
    }
}

const STATUS_COUNTS: &[&str] = &[
    "replicas",
    "fullyLabeledReplicas",
    "updatedReplicas",
    "currentReplicas",
    "readyReplicas",
    "availableReplicas",
    "unavailableReplicas",
    "terminatingReplicas",
    "observedGeneration",
    "collisionCount",
    "currentNumberScheduled",
    "numberMisscheduled",
    "desiredNumberScheduled",
    "numberReady",
    "updatedNumberScheduled",
    "numberAvailable",
    "numberUnavailable",
];

/// Counts are counts, and no part is greater than the whole.
pub(crate) fn status(new: &Object, old: &Object, errors: &mut Errors) {
    let path = Path::new("status");
    let of = |name: &str| tree::get(new, "status").and_then(|status| tree::opt_int(status, name));
    for name in STATUS_COUNTS {
        if let Some(count) = of(name) {
            checks::non_negative(&path.child(name), count, errors);
        }
    }
    let all = of("replicas").unwrap_or_default();
    let is_stateful = tree::text(new, "kind") == "StatefulSet";
    let is_set = tree::get(new, "status.numberReady").is_some();
    for name in [
        "fullyLabeledReplicas",
        if is_stateful {
            "readyReplicas"
        } else {
            "updatedReplicas"
        },
        if is_stateful {
            "currentReplicas"
        } else {
            "readyReplicas"
        },
        if is_stateful {
            "updatedReplicas"
        } else {
            "currentReplicas"
        },
        "availableReplicas",
    ] {
        if let Some(count) = of(name).filter(|count| *count > all && !is_set) {
            errors.push(Error::invalid(
                &path.child(name),
                count,
                "cannot be greater than status.replicas",
            ));
        }
    }
    let (available, ready) = (of("availableReplicas"), of("readyReplicas").unwrap_or_default());
    if let Some(available) = available.filter(|available| *available > ready) {
        let why = match tree::text(new, "kind") {
            "StatefulSet" => "cannot be greater than status.readyReplicas",
            _ => "cannot be greater than readyReplicas",
        };
        errors.push(Error::invalid(&path.child("availableReplicas"), available, why));
    }
    let now = of("collisionCount").unwrap_or_default();
    if tree::opt_int(old, "status.collisionCount").is_some_and(|before| now < before) {
        errors.push(Error::invalid(
            &path.child("collisionCount"),
            now,
            "cannot be decremented",
        ));
    }
}

pub(super) fn daemon_set(object: &Object, errors: &mut Errors) {
    if tree::get(object, "spec.selector").is_some() {
        selector(object, "daemonset", errors);
    } else {
        // Upstream lets the template's mismatch speak for a missing selector.
        mismatch(object, errors);
    }
    lasting_template(object, &at("spec.template"), "DaemonSet", errors);
    let path = at("spec.updateStrategy");
    match tree::text(object, "spec.updateStrategy.type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let Some(rolling) = tree::get(object, "spec.updateStrategy.rollingUpdate") else {
                errors.push(Error::required(&path, ""));
                return;
            };
            let (unavailable, surge) = (tree::get(rolling, "maxUnavailable"), tree::get(rolling, "maxSurge"));
            let (unavailable_path, surge_path) = (path.child("maxUnavailable"), path.child("maxSurge"));
            let down = int_or_percent(unavailable, &unavailable_path, errors);
            let up = int_or_percent(surge, &surge_path, errors);
            at_most_all(unavailable, &unavailable_path, errors);
            at_most_all(surge, &surge_path, errors);
            if down != 0 && up != 0 {
                errors.push(Error::invalid(
                    &surge_path,
                    surge.cloned().unwrap_or_default(),
                    "may not be set when maxUnavailable is non-zero",
                ));
            } else if down == 0 && up == 0 {
                errors.push(Error::required(&unavailable_path, "cannot be 0 when maxSurge is 0"));
            }
        }
        _ => errors.push(
            Error::not_supported(&path, Value::Null, &["RollingUpdate", "OnDelete"]).showing(internal::object(
                internal::DAEMON_SET_STRATEGY,
                tree::get(object, "spec.updateStrategy"),
            )),
        ),
    }
}

const RETENTION: Rule = Rule::RequiredOneOf(&["Retain", "Delete"]);

/// `is_new`: what an old set may have broken before there was a rule is checked too.
fn stateful_set(object: &Object, is_new: bool, errors: &mut Errors) {
    one_of(object, "spec.podManagementPolicy", ["OrderedReady", "Parallel"], errors);
    let strategy = at("spec.updateStrategy");
    let rolling = tree::get(object, "spec.updateStrategy.rollingUpdate");
    match tree::text(object, "spec.updateStrategy.type") {
        "" => errors.push(Error::required(&strategy, "")),
        "OnDelete" => {
            if let Some(rolling) = rolling {
                let why = "only allowed for updateStrategy 'RollingUpdate'";
                let shown = internal::object(internal::PARTITION, Some(rolling));
                errors.push(Error::invalid(&strategy.child("rollingUpdate"), Value::Null, why).showing(shown));
            }
        }
        "RollingUpdate" => {
            if let Some(rolling) = rolling {
                rolling_stateful_set(rolling, &strategy.child("rollingUpdate"), errors);
            }
        }
        _ => {
            let shown = internal::object(
                internal::STATEFUL_SET_STRATEGY,
                tree::get(object, "spec.updateStrategy"),
            );
            let why = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(Error::invalid(&strategy, Value::Null, why).showing(shown));
        }
    }
    checks::run(
        &[
            ("spec.persistentVolumeClaimRetentionPolicy.whenDeleted", RETENTION),
            ("spec.persistentVolumeClaimRetentionPolicy.whenScaled", RETENTION),
        ],
        object,
        None,
        errors,
    );
    if is_new {
        for (index, claim) in tree::items(object, "spec.volumeClaimTemplates").iter().enumerate() {
            let path = at("spec.volumeClaimTemplates").index(index).child("spec");
            claim_spec(tree::get(claim, "spec").unwrap_or(&Value::Null), &path, errors);
        }
    }
    checks::run(STATEFUL_COUNTS, object, None, errors);
    if is_new {
        const SERVICE: &[Check] = &[("spec.serviceName", Rule::Named(api::dns1123_label))];
        checks::run(SERVICE, object, None, errors);
    }
    selector(object, "statefulset", errors);
    // The controller sets host name, subdomain and the claims' volumes of each Pod: they are checked as it will make them.
    let mut made = object.clone();
    tree::remove(&mut made, "spec.template.spec.hostname");
    tree::remove(&mut made, "spec.template.spec.subdomain");
    let claims = tree::items(object, "spec.volumeClaimTemplates");
    if !claims.is_empty() {
        let claimed = |name: &str| claims.iter().any(|claim| tree::text(claim, "metadata.name") == name);
        let mut volumes: Vec<_> = tree::items(object, "spec.template.spec.volumes")
            .iter()
            .filter(|volume| !claimed(tree::text(volume, "name")))
            .cloned()
            .collect();
        for (index, claim) in claims.iter().enumerate() {
            let name = tree::text(claim, "metadata.name");
            if claims
                .iter()
                .take(index)
                .any(|earlier| tree::text(earlier, "metadata.name") == name)
            {
                continue;
            }
            volumes.push(serde_json::json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        }
        tree::set(&mut made, "spec.template.spec.volumes", volumes);
    }
    lasting_template(&made, &at("spec.template"), "StatefulSet", errors);
    // Upstream looks at these once more.
    template_metadata(&made, errors);
}

fn template_metadata(set: &Object, errors: &mut Errors) {
    if let Some(labels) = tree::get(set, "spec.template.metadata.labels") {
        errors.extend(api::validate_labels(labels, &at("spec.template.labels")));
    }
    if let Some(annotations) = tree::get(set, "spec.template.metadata.annotations") {
        errors.extend(api::validate_annotations(annotations, &at("spec.template.annotations")));
    }
}

pub(super) fn stateful_set_create(object: &Object, errors: &mut Errors) {
    stateful_set(object, true, errors);
}

fn one_of(object: &Object, dotted: &str, allowed: [&str; 2], errors: &mut Errors) {
    match tree::text(object, dotted) {
        "" => errors.push(Error::required(&at(dotted), "")),
        value if allowed.contains(&value) => {}
        value => errors.push(Error::invalid(
            &at(dotted),
            value,
            format!("must be '{}' or '{}'", allowed[0], allowed[1]),
        )),
    }
}

fn rolling_stateful_set(rolling: &Value, path: &Path, errors: &mut Errors) {
    checks::non_negative(&path.child("partition"), tree::int(rolling, "partition"), errors);
    if let Some(unavailable) = tree::get(rolling, "maxUnavailable") {
        let path = path.child("maxUnavailable");
        if int_or_percent(Some(unavailable), &path, errors) == 0 {
            errors.push(Error::invalid(&path, unavailable.clone(), "cannot be 0"));
        }
        at_most_all(Some(unavailable), &path, errors);
    }
}

const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(super) fn stateful_set_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part == Part::View("status") {
        status(new, old, errors);
    }
    if part != Part::Main {
        return;
    }
    stateful_set(new, false, errors);
    let spec = |set| {
        let mut spec = tree::get(set, "spec").cloned().unwrap_or_default();
        for field in CHANGEABLE {
            tree::remove(&mut spec, field);
        }
        // Sets of old may lack what is filled in today.
        if tree::text(&spec, "serviceName").is_empty() {
            tree::remove(&mut spec, "serviceName");
        }
        spec
    };
    if !tree::same(Some(&spec(new)), Some(&spec(old))) {
        errors.push(Error::forbidden(
            &Path::new("spec"),
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

pub(super) fn controller_revision(object: &Object, errors: &mut Errors) {
    checks::non_negative(&Path::new("revision"), tree::int(object, "revision"), errors);
}

pub(super) fn controller_revision_create(object: &Object, errors: &mut Errors) {
    let path = Path::new("data");
    match tree::get(object, "data") {
        None => errors.push(Error::required(&path, "data is mandatory")),
        Some(Value::Object(_)) => {}
        Some(_) => errors.push(Error::required(&path, "data must be a valid JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies;
    use super::*;
    use crate::rules::Rules;
    use crate::spec::Strategy;
    use serde_json::json;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn workload(spec: Value, rules: &Rules) -> Value {
        let mut object = json!({"metadata": {"name": "x", "namespace": "d"}, "spec": {
            "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "a", "image": "nginx"}]}},
        }});
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        rules.default(&mut object);
        object
    }

    #[test]
    fn workloads_are_refused_in_upstreams_words() {
        let deployment: &Rules = &strategies::DEPLOYMENT;
        let cases: Vec<(&Rules, Value, Vec<&str>)> = vec![
            (deployment, json!({}), vec![]),
            (&strategies::REPLICA_SET, json!({}), vec![]),
            (&strategies::DAEMON_SET, json!({}), vec![]),
            (&strategies::STATEFUL_SET, json!({"serviceName": "s"}), vec![]),
            (
                deployment,
                json!({"selector": {"matchLabels": {"app": "y"}}}),
                vec![
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                deployment,
                json!({"selector": null}),
                vec![
                    "spec.selector: Required value",
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                deployment,
                json!({"selector": {}}),
                vec!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                deployment,
                json!({"replicas": -1}),
                vec!["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                deployment,
                json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}),
                vec!["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"],
            ),
            (
                deployment,
                json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
                vec!["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
            ),
            (
                deployment,
                json!({"minReadySeconds": 600}),
                vec!["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"],
            ),
            (
                deployment,
                json!({"template": {"metadata": {"labels": {"app": "x"}}, "spec": {"restartPolicy": "Never", "containers": []}}}),
                vec![
                    "spec.template.spec.containers: Required value",
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                ],
            ),
            (
                &strategies::DAEMON_SET,
                json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}),
                vec![
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
                ],
            ),
            (
                &strategies::STATEFUL_SET,
                json!({"podManagementPolicy": "Any"}),
                vec!["spec.podManagementPolicy: Invalid value: \"Any\": must be 'OrderedReady' or 'Parallel'"],
            ),
        ];
        for (rules, spec, wanted) in cases {
            let object = workload(spec.clone(), rules);
            assert_eq!(texts(rules.validate_create(&object)), wanted, "{spec}");
        }
    }

    #[test]
    fn a_claims_volume_may_be_mounted() {
        let rules: &Rules = &strategies::STATEFUL_SET;
        let object = workload(
            json!({
                "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [
                    {"name": "a", "image": "nginx", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
            }),
            rules,
        );
        assert_eq!(texts(rules.validate_create(&object)), Vec::<String>::new());
    }

    #[test]
    fn selectors_and_most_of_a_stateful_set_are_fixed() {
        let deployment: &Rules = &strategies::DEPLOYMENT;
        let old = workload(json!({}), deployment);
        let mut new = old.clone();
        new["spec"]["selector"]["matchLabels"] = json!({"app": "y"});
        new["spec"]["template"]["metadata"]["labels"] = json!({"app": "y"});
        assert_eq!(
            texts(deployment.validate_update(Part::Main, &new, &old)),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"]
        );
        let set: &Rules = &strategies::STATEFUL_SET;
        let old = workload(json!({}), set);
        let mut new = old.clone();
        new["spec"]["replicas"] = json!(5);
        assert_eq!(texts(set.validate_update(Part::Main, &new, &old)), Vec::<String>::new());
        new["spec"]["serviceName"] = json!("other");
        assert_eq!(texts(set.validate_update(Part::Main, &new, &old)).len(), 1);
    }

    #[test]
    fn a_status_adds_up() {
        let rules: &Rules = &strategies::REPLICA_SET;
        let old = workload(json!({}), rules);
        let mut new = old.clone();
        new["status"] = json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": -1});
        assert_eq!(
            texts(rules.validate_update(Part::View("status"), &new, &old)),
            [
                "status.availableReplicas: Invalid value: -1: must be greater than or equal to 0",
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
            ]
        );
    }

    #[test]
    fn a_set_shows_its_strategy_as_go_prints_it() {
        let mut set = json!({"metadata": {"name": "s"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "updateStrategy": {"type": "X"},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            "volumeClaimTemplates": [{}]}});
        strategies::STATEFUL_SET.default(&mut set);
        let texts: Vec<_> = strategies::STATEFUL_SET
            .validate_create(&set)
            .iter()
            .map(ToString::to_string)
            .take(2)
            .collect();
        assert_eq!(
            texts,
            [
                "spec.updateStrategy: Invalid value: {\"Type\":\"X\",\"RollingUpdate\":null}: must be 'RollingUpdate' or 'OnDelete'",
                "spec.volumeClaimTemplates[0].spec.accessModes: Required value: at least 1 access mode is required",
            ]
        );
        let generation = |text: &str| {
            let set = json!({"metadata": {"annotations": {"deprecated.daemonset.template.generation": text}}});
            strategies::DAEMON_SET.unreadable(&set)
        };
        assert_eq!(generation("3"), None);
        assert_eq!(
            generation("x").as_deref(),
            Some("strconv.ParseInt: parsing \"x\": invalid syntax")
        );
    }
}
