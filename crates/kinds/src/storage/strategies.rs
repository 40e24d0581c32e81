//! The rules of the storage kinds.

use std::collections::{BTreeMap, BTreeSet};

use sampan_api::field::{Error, Errors, Path};
use sampan_api::quantity::Quantity;
use sampan_api::selector::validate_label_selector;
use sampan_api::{Object, names as api};
use serde_json::{Map, Value};

use crate::checks::{self, IMMUTABLE, Rule};
use crate::defaults::Fill;
use crate::names;
use crate::rules::{RULES, Rules, Status};
use crate::spec::{MetadataCheck, Part};
use crate::tree;
use crate::warnings;

pub(super) static CSI_DRIVER: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.attachRequired", Fill::Bool(true)),
        ("spec.podInfoOnMount", Fill::Bool(false)),
        ("spec.storageCapacity", Fill::Bool(false)),
        ("spec.fsGroupPolicy", Fill::Pointer("ReadWriteOnceWithFSType")),
        ("spec.volumeLifecycleModes", Fill::Texts(&["Persistent"])),
        ("spec.requiresRepublish", Fill::Bool(false)),
        ("spec.seLinuxMount", Fill::Bool(false)),
    ],
    // A new driver has no generation; the first change of its spec makes it 1.
    update: |_, new, old| {
        if !tree::same_at(new, old, "spec") {
            let generation = tree::int(old, "metadata.generation");
            tree::set(new, "metadata.generation", generation.saturating_add(1));
        }
    },
    status: Status::Plain,
    unconditional_update: false,
    checks: &[(
        "spec.fsGroupPolicy",
        Rule::GivenOneOf(&["File", "None", "ReadWriteOnceWithFSType"]),
    )],
    validate: driver,
    validate_update: |_, new, old, errors| {
        if !tree::same_at(new, old, "spec.attachRequired") {
            let required = tree::flag(new, "spec.attachRequired");
            let path = Path::new("spec").child("attachedRequired");
            errors.push(Error::invalid(&path, required, IMMUTABLE));
        }
        checks::immutable(new, old, &Path::default(), "spec.volumeLifecycleModes", errors);
    },
    warnings: warnings::csi_driver,
    warns_of_update: |new, old| !tree::same_at(new, old, "spec.tokenRequests"),
    ..RULES
};
pub(super) static CSI_NODE: Rules = Rules {
    status: Status::Plain,
    unconditional_update: false,
    checks: &[("spec.drivers[].allocatable.count", Rule::NonNegative)],
    validate: node,
    validate_update: node_update,
    ..RULES
};
pub(super) static CSI_STORAGE_CAPACITY: Rules = Rules {
    status: Status::Plain,
    unconditional_update: false,
    validate: |capacity, errors| {
        if let Some(selector) = tree::get(capacity, "nodeTopology") {
            errors.extend(validate_label_selector(selector, &Path::new("nodeTopology")));
        }
        checks::run(
            &[("storageClassName", Rule::AlwaysNamed(names::whole_subdomain))],
            capacity,
            None,
            errors,
        );
        if let Some(amount) = tree::get(capacity, "capacity").and_then(|amount| Quantity::from_value(amount).ok())
            && amount.sign() < 0
        {
            errors.push(Error::invalid(
                &Path::new("capacity"),
                amount.to_string(),
                "must be greater than or equal to 0",
            ));
        }
    },
    validate_update: |_, new, old, errors| {
        for field in ["nodeTopology", "storageClassName"] {
            checks::immutable(new, old, &Path::default(), field, errors);
        }
    },
    default: |capacity| {
        // The amounts are fields of the object itself, not a list of resources.
        for field in ["capacity", "maximumVolumeSize"] {
            if let Some(amount) = tree::get(capacity, field).and_then(|amount| Quantity::from_value(amount).ok()) {
                tree::set(capacity, field, amount.to_string());
            }
        }
    },
    warnings: warnings::storage_capacity,
    ..RULES
};
pub(super) static STORAGE_CLASS: Rules = Rules {
    defaults: &[
        ("reclaimPolicy", Fill::Pointer("Delete")),
        ("volumeBindingMode", Fill::Pointer("Immediate")),
    ],
    status: Status::Plain,
    validate: |class, errors| {
        provisioner(class, "provisioner", errors);
        parameters(class, true, errors);
        checks::run(
            &[
                ("reclaimPolicy", Rule::OneOf(&["Delete", "Retain"])),
                (
                    "volumeBindingMode",
                    Rule::GivenOneOf(&["Immediate", "WaitForFirstConsumer"]),
                ),
            ],
            class,
            None,
            errors,
        );
        topologies(class, errors);
    },
    validate_update: |_, new, old, errors| {
        for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            checks::immutable(new, old, &Path::default(), field, errors);
        }
    },
    warnings: warnings::storage_class,
    ..RULES
};
pub(super) static VOLUME_ATTACHMENT: Rules = Rules {
    unconditional_update: false,
    defaults: &[
        ("spec", Fill::Map),
        ("status", Fill::Map),
        ("status.attached", Fill::Bool(false)),
    ],
    validate: attachment,
    validate_update: |part, new, old, errors| {
        if part == Part::Main {
            checks::immutable(new, old, &Path::default(), "spec", errors);
        }
        // Upstream checks all of the object whichever view is written.
        for field in ["attachError", "detachError"] {
            let path = Path::new("status").child(field).child("errorCode");
            if let Some(code) = tree::opt_int(new, path.as_str())
                && !(0..=i64::from(i32::MAX)).contains(&code)
            {
                errors.push(Error::invalid(
                    &path,
                    code,
                    api::inclusive_range(0, i64::from(i32::MAX)),
                ));
            }
        }
    },
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};
pub(super) static VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    metadata: &[MetadataCheck::Change, MetadataCheck::Whole],
    status: Status::Plain,
    validate: |class, errors| {
        provisioner(class, "driverName", errors);
        parameters(class, false, errors);
    },
    changes_first: true,
    validate_update: |_, new, old, errors| {
        for field in ["driverName", "parameters"] {
            if !tree::same_at(new, old, field) {
                errors.push(Error::forbidden(
                    &Path::new(field),
                    format!("updates to {field} are forbidden."),
                ));
            }
        }
    },
    ..RULES
};

/// Who makes the volumes: a qualified name, whatever its case.
fn provisioner(class: &Object, field: &str, errors: &mut Errors) {
    let name = tree::text(class, field).to_lowercase();
    if name.is_empty() {
        errors.push(Error::required(&Path::new(field), ""));
    } else {
        checks::named(&Path::new(field), &name, api::qualified_name, errors);
    }
}

fn parameters(class: &Object, may_be_empty: bool, errors: &mut Errors) {
    const MOST: usize = 512;
    const SIZE: usize = 256 << 10;
    let path = Path::new("parameters");
    let all = tree::map(class, "parameters");
    let count = all.map_or(0, Map::len);
    if count > MOST {
        errors.push(Error::too_long(&path, MOST));
        return;
    }
    let mut size = 0usize;
    for (name, value) in all.into_iter().flatten() {
        if name.is_empty() {
            errors.push(Error::invalid(&path, "", "field can not be empty."));
        }
        size = size.saturating_add(name.len() + value.as_str().unwrap_or_default().len());
    }
    if size > SIZE {
        errors.push(Error::too_long(&path, SIZE));
    }
    if !may_be_empty && count == 0 {
        errors.push(Error::required(&path, "must contain at least one key/value pair"));
    }
}

/// Topologies differ, and say something: upstream compares each with as many empty ones as there are terms.
fn topologies(class: &Object, errors: &mut Errors) {
    let terms = tree::items(class, "allowedTopologies");
    let mut seen: Vec<BTreeMap<&str, BTreeSet<String>>> = vec![BTreeMap::new(); terms.len()];
    for (index, term) in terms.iter().enumerate() {
        let path = Path::new("allowedTopologies")
            .index(index)
            .child("matchLabelExpressions");
        let mut keys = BTreeMap::new();
        for (index, expression) in tree::items(term, "matchLabelExpressions").iter().enumerate() {
            let path = path.index(index);
            let values = tree::items(expression, "values");
            let at = path.child("values");
            if values.is_empty() {
                errors.push(Error::required(&at, ""));
            }
            let mut set = BTreeSet::new();
            for (index, value) in values.iter().enumerate() {
                if !set.insert(tree::scalar(value)) {
                    errors.push(Error::duplicate(&at.index(index), value.clone()));
                }
            }
            let key = tree::text(expression, "key");
            checks::named(&path.child("key"), key, api::qualified_name, errors);
            if keys.insert(key, set).is_some() {
                errors.push(Error::duplicate(&path.child("key"), key));
            }
        }
        let repeated = seen.iter().filter(|other| **other == keys).count();
        errors.extend(std::iter::repeat_n(Error::duplicate(&path, ""), repeated));
        seen.push(keys);
    }
}

fn driver(driver: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("tokenRequests");
    let mut audiences = BTreeSet::new();
    for (index, request) in tree::items(driver, "spec.tokenRequests").iter().enumerate() {
        let path = path.index(index);
        let audience = tree::text(request, "audience");
        if !audiences.insert(audience) {
            errors.push(Error::duplicate(&path.child("audience"), audience));
            continue;
        }
        checks::run_at(
            &[
                (
                    "expirationSeconds",
                    Rule::AtLeast(600, "may not specify a duration less than 10 minutes"),
                ),
                (
                    "expirationSeconds",
                    Rule::AtMost(1 << 32, "may not specify a duration larger than 2^32 seconds"),
                ),
            ],
            request,
            &path,
            None,
            errors,
        );
    }
    let modes = ["Persistent", "Ephemeral"];
    for mode in tree::items(driver, "spec.volumeLifecycleModes") {
        let mode = mode.as_str().unwrap_or_default();
        if !modes.contains(&mode) {
            let path = Path::new("spec").child("volumeLifecycleModes");
            errors.push(Error::not_supported(&path, mode, &modes));
        }
    }
    checks::run(
        &[(
            "spec.nodeAllocatableUpdatePeriodSeconds",
            Rule::AtLeast(10, "must be greater than or equal to 10 seconds"),
        )],
        driver,
        None,
        errors,
    );
    if let Some(given) = tree::get(driver, "spec.serviceAccountTokenInSecrets")
        && audiences.is_empty()
    {
        errors.push(Error::invalid(
            &Path::new("spec").child("serviceAccountTokenInSecrets"),
            given.clone(),
            "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
        ));
    }
}

fn node(node: &Object, errors: &mut Errors) {
    let mut names_seen = BTreeSet::new();
    for (index, driver) in tree::items(node, "spec.drivers").iter().enumerate() {
        let path = Path::new("spec").child("drivers").index(index);
        driver_name(tree::text(driver, "name"), &path.child("name"), errors);
        checks::run_at(&[("nodeID", Rule::Required(""))], driver, &path, None, errors);
        let id = tree::text(driver, "nodeID");
        if id.len() > 256 {
            errors.push(Error::invalid(
                &path.child("nodeID"),
                id,
                "must be 256 characters or less",
            ));
        }
        let name = tree::text(driver, "name");
        if !names_seen.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        let mut keys = BTreeSet::new();
        for key in tree::items(driver, "topologyKeys") {
            let key = key.as_str().unwrap_or_default();
            if key.is_empty() {
                errors.push(Error::required(&path, ""));
            }
            if !keys.insert(key) {
                errors.push(Error::duplicate(&path, key));
            }
            checks::named(&path, key, api::qualified_name, errors);
        }
    }
}

/// What a driver said of itself stays, but for how much it can attach.
fn node_update(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if tree::same_at(new, old, "spec.drivers") {
        return;
    }
    for was in tree::items(old, "spec.drivers") {
        for now in tree::items(new, "spec.drivers") {
            if tree::text(was, "name") == tree::text(now, "name")
                && ["nodeID", "topologyKeys"]
                    .iter()
                    .any(|field| !tree::same_at(now, was, field))
            {
                let mut shown = now.clone();
                tree::remove(&mut shown, "allocatable");
                errors.push(Error::invalid(&Path::new("spec").child("drivers"), shown, IMMUTABLE));
            }
        }
    }
}

/// The name of a CSI driver, in either case.
fn driver_name(name: &str, path: &Path, errors: &mut Errors) {
    const LENGTH: usize = 63;
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    if name.len() > LENGTH {
        errors.push(Error::too_long(path, LENGTH));
    }
    for why in names::whole_subdomain(&name.to_ascii_lowercase()) {
        errors.push(Error::invalid(path, name, why));
    }
}

fn attachment(object: &Object, errors: &mut Errors) {
    driver_name(
        tree::text(object, "spec.attacher"),
        &Path::new("spec").child("attacher"),
        errors,
    );
    let path = Path::new("spec").child("source");
    let sources = ["spec.source.inlineVolumeSpec", "spec.source.persistentVolumeName"];
    const WHY: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match sources
        .iter()
        .filter(|source| tree::get(object, source).is_some())
        .count()
    {
        0 => errors.push(Error::required(&path, WHY)),
        1 => {}
        _ => errors.push(Error::forbidden(&path, WHY)),
    }
    let name_path = path.child("persistentVolumeName");
    let volume = tree::get(object, "spec.source.persistentVolumeName").and_then(Value::as_str);
    if volume == Some("") && tree::get(object, "spec.source.inlineVolumeSpec").is_none() {
        errors.push(Error::required(
            &name_path,
            "must specify non empty persistentVolumeName",
        ));
    }
    checks::run(
        &[
            ("spec.nodeName", Rule::AlwaysNamed(names::whole_subdomain)),
            (
                "spec.source.persistentVolumeName",
                Rule::GivenNamed(names::whole_subdomain),
            ),
        ],
        object,
        None,
        errors,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Strategy;
    use serde_json::json;

    #[test]
    fn objects_are_refused_in_upstreams_words() {
        let cases: [(&Rules, Value, &[&str]); 10] = [
            (
                &STORAGE_CLASS,
                json!({"provisioner": "X", "volumeBindingMode": "", "parameters": {"": "b"}}),
                &[
                    "parameters: Invalid value: \"\": field can not be empty.",
                    "volumeBindingMode: Unsupported value: \"\": supported values: \"Immediate\", \"WaitForFirstConsumer\"",
                ],
            ),
            (
                &STORAGE_CLASS,
                json!({"provisioner": "x", "allowedTopologies": [
                    {"matchLabelExpressions": [{"key": "a", "values": ["b", "b"]}, {"key": "a"}]}, {}]}),
                &[
                    "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"b\"",
                    "allowedTopologies[0].matchLabelExpressions[1].values: Required value",
                    "allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"a\"",
                    "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
                    "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
                ],
            ),
            (
                &VOLUME_ATTRIBUTES_CLASS,
                json!({"driverName": ""}),
                &[
                    "driverName: Required value",
                    "parameters: Required value: must contain at least one key/value pair",
                ],
            ),
            (
                &CSI_DRIVER,
                json!({"spec": {"fsGroupPolicy": "", "nodeAllocatableUpdatePeriodSeconds": 9,
                    "tokenRequests": [{"audience": "a", "expirationSeconds": 5}, {"audience": "a"}],
                    "volumeLifecycleModes": ["x"]}}),
                &[
                    "spec.fsGroupPolicy: Unsupported value: \"\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
                    "spec.tokenRequests[0].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
                    "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                    "spec.volumeLifecycleModes: Unsupported value: \"x\": supported values: \"Persistent\", \"Ephemeral\"",
                    "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds",
                ],
            ),
            (&CSI_DRIVER, json!({}), &[]),
            (
                &CSI_NODE,
                json!({"spec": {"drivers": [{"name": "d", "nodeID": "n", "topologyKeys": ["z", "z"]}, {"name": "d", "nodeID": "n"}]}}),
                &[
                    "spec.drivers[0]: Duplicate value: \"z\"",
                    "spec.drivers[1].name: Duplicate value: \"d\"",
                ],
            ),
            (
                &CSI_STORAGE_CAPACITY,
                json!({"storageClassName": "c", "capacity": "-1"}),
                &["capacity: Invalid value: \"-1\": must be greater than or equal to 0"],
            ),
            (
                &VOLUME_ATTACHMENT,
                json!({"spec": {"attacher": "a", "nodeName": "n", "source": {}}}),
                &["spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName"],
            ),
            (
                &VOLUME_ATTACHMENT,
                json!({"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}),
                &[],
            ),
            (
                &CSI_NODE,
                json!({"spec": {"drivers": [{"name": "D-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "nodeID": "n"}]}}),
                &["spec.drivers[0].name: Too long: may not be more than 63 bytes"],
            ),
        ];
        for (rules, mut object, wanted) in cases {
            rules.default(&mut object);
            let said: Vec<_> = rules.validate_create(&object).iter().map(ToString::to_string).collect();
            assert_eq!(said, wanted, "{object}");
        }
    }

    #[test]
    fn changes_are_refused_in_upstreams_words() {
        let class = |name: &str| json!({"driverName": name, "parameters": {"a": "b"}});
        let drivers = |id: &str, count: i64| json!({"spec": {"drivers": [{"name": "d", "nodeID": id, "allocatable": {"count": count}}]}});
        let cases: [(&Rules, Value, Value, &[&str]); 3] = [
            (
                &VOLUME_ATTRIBUTES_CLASS,
                class("a"),
                class("b"),
                &["driverName: Forbidden: updates to driverName are forbidden."],
            ),
            (&CSI_NODE, drivers("a", 1), drivers("a", 2), &[]),
            (
                &CSI_NODE,
                drivers("a", 1),
                drivers("b", 1),
                &["spec.drivers: Invalid value: {\"name\":\"d\",\"nodeID\":\"b\"}: field is immutable"],
            ),
        ];
        for (rules, old, new, wanted) in cases {
            let errors = rules.validate_update(Part::Main, &new, &old);
            let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(said, wanted, "{new}");
        }
    }

    #[test]
    fn a_driver_counts_changes_of_its_spec_only() {
        let old = json!({"metadata": {}, "spec": {"podInfoOnMount": false}});
        let mut new = json!({"metadata": {}, "spec": {"podInfoOnMount": true}});
        CSI_DRIVER.prepare_update(Part::Main, &mut new, &old);
        assert_eq!(new["metadata"]["generation"], 1);
        let mut same = old.clone();
        CSI_DRIVER.prepare_update(Part::Main, &mut same, &old);
        assert_eq!(same, old);
    }
}
