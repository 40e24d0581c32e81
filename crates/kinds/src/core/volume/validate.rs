//! Validation of PersistentVolumes and PersistentVolumeClaims.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api, quantity::Quantity};
use serde_json::Value;

use crate::checks::{self, Check, Rule};
use crate::internal;
use crate::pod_spec::{quantities, resources, scheduling, validate::selector};
use crate::spec::Part;
use crate::volume_sources::{self, Place};
use crate::{diff, names, tree};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("accessModes");
    let modes = tree::items(spec, "accessModes");
    for mode in modes.iter().filter_map(Value::as_str) {
        if !MODES.contains(&mode) {
            errors.push(Error::not_supported(&path, mode, &MODES));
        }
    }
    let alone = modes.iter().any(|mode| mode == "ReadWriteOncePod");
    if alone && modes.iter().any(|mode| mode != "ReadWriteOncePod") {
        errors.push(Error::forbidden(
            &path,
            "may not use ReadWriteOncePod with other access modes",
        ));
    }
}

fn positive(value: &Value, path: &Path, errors: &mut Errors) {
    if let Ok(quantity) = Quantity::from_value(value)
        && quantity.sign() <= 0
    {
        errors.push(Error::invalid(path, quantity.to_string(), "must be greater than zero"));
    }
}

const COMMON: &[Check] = &[
    ("storageClassName", Rule::Named(names::whole_subdomain)),
    ("volumeMode", Rule::GivenOneOf(&["Block", "Filesystem"])),
    ("volumeAttributesClassName", Rule::Named(names::whole_subdomain)),
];

/// A claim's spec, of its own or in a template.
pub(crate) fn claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    checked_claim_spec(spec, path, true, errors);
}

/// `strict`: groups of data sources have to be possible ones.
fn checked_claim_spec(spec: &Value, path: &Path, strict: bool, errors: &mut Errors) {
    if tree::items(spec, "accessModes").is_empty() {
        errors.push(Error::required(
            &path.child("accessModes"),
            "at least 1 access mode is required",
        ));
    }
    selector(spec, "selector", &path.child("selector"), errors);
    access_modes(spec, path, errors);
    let size_path = path.child("resources").key("storage");
    match tree::get(spec, "resources.requests.storage") {
        None => errors.push(Error::required(&size_path, "")),
        Some(size) => {
            let before = errors.len();
            positive(size, &size_path, errors);
            if errors.len() == before {
                resources::amount("storage", size, &size_path, errors);
            }
        }
    }
    checks::run_at(&COMMON[..2], spec, path, None, errors);
    for field in ["dataSource", "dataSourceRef"] {
        if let Some(source) = tree::get(spec, field) {
            data_source(source, &path.child(field), strict, errors);
        }
    }
    agreeing_sources(spec, path, errors);
    checks::run_at(&COMMON[2..], spec, path, None, errors);
}

/// Two fields for the source of a claim's data do not contradict each other.
fn agreeing_sources(spec: &Value, path: &Path, errors: &mut Errors) {
    let (source, reference) = (tree::get(spec, "dataSource"), tree::get(spec, "dataSourceRef"));
    if let (Some(source), Some(reference)) = (source, reference) {
        let why = if !tree::text(reference, "namespace").is_empty() {
            "may not be specified when dataSourceRef.namespace is specified"
        } else if ["apiGroup", "kind", "name"]
            .iter()
            .any(|field| !tree::same_at(source, reference, field))
        {
            "must match dataSourceRef"
        } else {
            return;
        };
        // Upstream gives a path for the value, of which Go prints nothing.
        errors.push(Error::invalid(path, Value::Null, why).showing("{}".to_owned()));
    }
}

fn data_source(source: &Value, path: &Path, strict: bool, errors: &mut Errors) {
    checks::run_at(
        &[("name", Rule::Required("")), ("kind", Rule::Required(""))],
        source,
        path,
        None,
        errors,
    );
    let kind = tree::text(source, "kind");
    if tree::text(source, "apiGroup").is_empty() && kind != "PersistentVolumeClaim" {
        errors.push(Error::invalid(
            path,
            kind,
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ));
    }
    if strict {
        const GROUP: &[Check] = &[("apiGroup", Rule::Named(api::dns1123_subdomain))];
        checks::run_at(GROUP, source, path, None, errors);
    }
    const NAMESPACE: &[Check] = &[("namespace", Rule::Named(api::dns1123_label))];
    checks::run_at(NAMESPACE, source, path, None, errors);
}

pub(super) fn claim(claim: &Object, errors: &mut Errors) {
    let nothing = Value::Null;
    claim_spec(tree::get(claim, "spec").unwrap_or(&nothing), &Path::new("spec"), errors);
}

const STORAGE: [&str; 1] = ["storage"];
const RESIZES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

/// A resource a claim may be resized in.
fn resized_resource(name: &str, path: &Path, errors: &mut Errors) -> bool {
    let before = errors.len();
    checks::named(path, name, api::qualified_name, errors);
    if errors.len() == before && resources::is_native(name) && name != "storage" {
        errors.push(Error::not_supported(path, name, &STORAGE));
    }
    errors.len() == before
}

/// Whether an amount is one at all; in upstream's words for it.
fn basic_amount(value: &Value, path: &Path, errors: &mut Errors) -> bool {
    let negative = Quantity::from_value(value)
        .map(|amount| amount.value())
        .ok()
        .filter(|amount| *amount < 0);
    if let Some(amount) = negative {
        errors.push(Error::invalid(path, amount, "must be a valid resource quantity"));
    }
    negative.is_none()
}

fn claim_status(claim: &Object, errors: &mut Errors) {
    if tree::items(claim, "spec.accessModes").is_empty() {
        errors.push(Error::required(&Path::new("Spec").child("accessModes"), ""));
    }
    let status = Path::new("status");
    for (name, amount) in tree::map(claim, "status.capacity").into_iter().flatten() {
        basic_amount(amount, &status.child("capacity").key(name), errors);
    }
    let path = status.child("allocatedResourceStatuses");
    for (name, state) in tree::map(claim, "status.allocatedResourceStatuses")
        .into_iter()
        .flatten()
    {
        resized_resource(name, &path, errors);
        if !state.as_str().is_some_and(|state| RESIZES.contains(&state)) {
            errors.push(Error::not_supported(&path, name.as_str(), &RESIZES));
        }
    }
    let path = status.child("allocatedResources");
    for (name, amount) in tree::map(claim, "status.allocatedResources").into_iter().flatten() {
        let at = path.key(name);
        if resized_resource(name, &path, errors) && basic_amount(amount, &at, errors) {
            resources::amount("storage", amount, &at, errors);
        }
    }
}

/// A claim's spec is fixed but for its size and class once it is bound.
pub(super) fn claim_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part == Part::View("status") {
        claim_status(new, errors);
    }
    if part != Part::Main {
        return;
    }
    let nothing = Value::Null;
    let grouped = ["spec.dataSource.apiGroup", "spec.dataSourceRef.apiGroup"]
        .iter()
        .any(|path| tree::get(old, path).is_some());
    let spec = tree::get(new, "spec").unwrap_or(&nothing);
    checked_claim_spec(spec, &Path::new("spec"), !grouped, errors);
    let mut now = tree::get(new, "spec").cloned().unwrap_or_default();
    let mut was = tree::get(old, "spec").unwrap_or(&nothing).clone();
    if tree::text(&was, "volumeName").is_empty() {
        tree::carry(&mut was, &now, "volumeName");
    }
    if tree::get(&was, "storageClassName").is_none() {
        let annotated = tree::annotation(old, super::CLASS_ANNOTATION);
        if annotated.is_empty() || annotated == tree::text(&now, "storageClassName") {
            tree::carry(&mut now, &was, "storageClassName");
        }
    }
    let sizes = [&now, &was].map(|spec| quantities::of(tree::map(spec, "resources.requests"), "storage"));
    if tree::text(new, "status.phase") == "Bound" {
        tree::carry(&mut now, &was, "resources.requests.storage");
        tree::carry(&mut now, &was, "volumeAttributesClassName");
    }
    if !tree::same(Some(&now), Some(&was)) {
        let changes = diff::lines(&was, &now);
        errors.push(Error::forbidden(
            &Path::new("spec"),
            format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{changes}\n"
            ),
        ));
    }
    let [size, old_size] = sizes;
    let capacity = quantities::of(tree::map(old, "status.capacity"), "storage");
    if size.sub(&old_size).sign() < 0 && size.sub(&capacity).sign() <= 0 {
        let path = ["resources", "requests", "storage"]
            .iter()
            .fold(Path::new("spec"), |path, name| path.child(name));
        errors.push(Error::forbidden(&path, "field can not be less than status.capacity"));
    }
    checks::fixed(new, old, "spec.volumeMode", &Path::new("volumeMode"), errors);
    let class = "spec.volumeAttributesClassName";
    if tree::get(old, "status.currentVolumeAttributesClassName").is_some() && !tree::same_at(new, old, class) {
        let why = match tree::get(new, class).and_then(Value::as_str) {
            None => "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil",
            Some("") => "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil",
            Some(_) => return,
        };
        errors.push(Error::forbidden(
            &Path::new("spec").child("volumeAttributesClassName"),
            why,
        ));
    }
}

pub(super) fn volume(volume: &Object, errors: &mut Errors) {
    let nothing = Value::Null;
    let spec = tree::get(volume, "spec").unwrap_or(&nothing);
    let path = Path::new("spec");
    if tree::items(spec, "accessModes").is_empty() {
        errors.push(Error::required(&path.child("accessModes"), ""));
    }
    access_modes(spec, &path, errors);
    let capacity_path = path.child("capacity");
    match tree::map(spec, "capacity").filter(|capacity| !capacity.is_empty()) {
        None => {
            errors.push(Error::required(&capacity_path, ""));
            errors.push(Error::not_supported(&capacity_path, Value::Null, &["storage"]));
        }
        Some(capacity) => {
            if !capacity.contains_key("storage") || capacity.len() > 1 {
                errors.push(Error::not_supported(&capacity_path, capacity.clone(), &["storage"]));
            }
            for (name, amount) in capacity {
                basic_amount(amount, &capacity_path.key(name), errors);
                positive(amount, &capacity_path.key(name), errors);
            }
        }
    }
    checks::run_at(
        &[(
            "persistentVolumeReclaimPolicy",
            Rule::OneOf(&["Delete", "Recycle", "Retain"]),
        )],
        spec,
        &path,
        None,
        errors,
    );
    if let Some(required) = tree::get(spec, "nodeAffinity.required") {
        let path = path.child("nodeAffinity").child("required");
        scheduling::node_selector(required, &path, errors);
    } else if tree::get(spec, "nodeAffinity").is_some() {
        errors.push(Error::required(
            &path.child("nodeAffinity").child("required"),
            "must specify required node constraints",
        ));
    }
    let place = Place::Volume(tree::text(volume, "metadata.name"));
    let source = volume_sources::check(spec, &path, place, errors);
    if matches!(source, Some(("local", ..))) && tree::get(spec, "nodeAffinity").is_none() {
        errors.push(Error::required(
            &path.child("nodeAffinity"),
            "Local volume requires node affinity",
        ));
    }
    if let Some(("hostPath", source, _)) = source
        && is_root(tree::text(source, "path"))
        && tree::text(spec, "persistentVolumeReclaimPolicy") == "Recycle"
    {
        errors.push(Error::forbidden(
            &path.child("persistentVolumeReclaimPolicy"),
            "may not be 'recycle' for a hostPath mount of '/'",
        ));
    }
    checks::run_at(COMMON, spec, &path, None, errors);
}

/// Whether a path is another way to write `/`.
fn is_root(path: &str) -> bool {
    let depth = path.split('/').fold(0usize, |depth, part| match part {
        "" | "." => depth,
        ".." => depth.saturating_sub(1),
        _ => depth + 1,
    });
    path.starts_with('/') && depth == 0
}

/// Where the data is never changes.
pub(super) fn volume_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part != Part::Main {
        return;
    }
    // Upstream checks the whole object once more, and clients see every cause twice.
    volume(new, errors);
    let only_source = |volume: &Object| -> Value {
        let spec = tree::get(volume, "spec").cloned().unwrap_or_default();
        volume_sources::only(&spec, Place::Volume(""))
            .map(|(kind, source)| (kind.to_owned(), source.clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let (now, was) = (only_source(new), only_source(old));
    if !tree::same(Some(&now), Some(&was)) {
        let changes = diff::lines(&was, &now);
        errors.push(Error::forbidden(
            &Path::new("spec").child("persistentvolumesource"),
            format!("spec.persistentvolumesource is immutable after creation\n{changes}\n"),
        ));
    }
    checks::fixed(new, old, "spec.volumeMode", &Path::new("volumeMode"), errors);
    affinity_update(new, old, errors);
    let class = "spec.volumeAttributesClassName";
    if tree::get(old, class).is_some() && tree::get(new, class).is_none() {
        let path = Path::new("spec").child("volumeAttributesClassName");
        errors.push(Error::forbidden(&path, "update from non-nil value to nil is forbidden"));
    }
}

/// Labels of nodes that were renamed when they became stable.
const RENAMED: &[(&str, &str)] = &[
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "topology.kubernetes.io/region",
    ),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

/// Where a volume may be used does not change, but for labels that got another name.
fn affinity_update(new: &Object, old: &Object, errors: &mut Errors) {
    let Some(was) = tree::get(old, "spec.nodeAffinity") else {
        return;
    };
    let now = tree::get(new, "spec.nodeAffinity");
    let mut was = was.clone();
    let names: Vec<_> = keys(now.cloned().unwrap_or_default()).collect();
    rename(&mut was, &mut names.into_iter());
    if !tree::same(now, Some(&was)) {
        let shown = now.map_or("null".to_owned(), |now| {
            internal::object(internal::VOLUME_NODE_AFFINITY, Some(now))
        });
        let why = "field is immutable, except for updating from beta label to GA";
        errors.push(Error::invalid(&Path::new("nodeAffinity"), Value::Null, why).showing(shown));
    }
}

/// The keys of all requirements, in order.
fn keys(affinity: Value) -> impl Iterator<Item = String> {
    let terms = tree::items(&affinity, "required.nodeSelectorTerms").to_vec();
    terms.into_iter().flat_map(|term| {
        let all = ["matchExpressions", "matchFields"].map(|list| tree::items(&term, list).to_vec());
        all.concat()
            .into_iter()
            .map(|requirement| tree::text(&requirement, "key").to_owned())
    })
}

/// Gives old labels the names they have in `now`, where they only got another name.
fn rename(affinity: &mut Value, now: &mut dyn Iterator<Item = String>) {
    for term in tree::items_mut(affinity, "required.nodeSelectorTerms") {
        for list in ["matchExpressions", "matchFields"] {
            for requirement in tree::items_mut(term, list) {
                let name = now.next().unwrap_or_default();
                let key = tree::text(requirement, "key");
                // To upstream's table no name at all is what a label not in it became.
                let dropped = name.is_empty() && !key.is_empty() && RENAMED.iter().all(|(old, _)| *old != key);
                if dropped || RENAMED.contains(&(key, &name)) {
                    tree::set(requirement, "key", name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Strategy;
    use serde_json::json;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn claims_change_as_upstream_lets_them() {
        let rules = &super::super::CLAIM_RULES;
        let old = json!({"metadata": {"name": "c"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "resources": {"requests": {"storage": "1Gi"}},
            "dataSource": {"apiGroup": "example.com", "kind": "K", "name": "n"},
            "dataSourceRef": {"apiGroup": "example.com", "kind": "K", "name": "n"}}, "status": {}});
        const FIXED: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        let cases = [
            (
                "/spec/dataSource/apiGroup",
                json!("Bad_Name!"),
                vec!["spec: Invalid value: {}: must match dataSourceRef", FIXED],
            ),
            (
                "/spec/volumeMode",
                json!("Block"),
                vec![FIXED, "volumeMode: Invalid value: \"Block\": field is immutable"],
            ),
        ];
        for (path, value, wanted) in cases {
            let mut new = old.clone();
            *new.pointer_mut(path).unwrap() = value;
            let told: Vec<_> = texts(rules.validate_update(Part::Main, &new, &old))
                .iter()
                .map(|text| text.lines().next().unwrap_or_default().to_owned())
                .collect();
            assert_eq!(told, wanted, "{path}");
        }
        let mut new = old.clone();
        new["status"] = json!({"capacity": {"storage": "-1"}, "allocatedResources": {"other": "1"},
            "allocatedResourceStatuses": {"storage": "Other"}});
        assert_eq!(
            texts(rules.validate_update(Part::View("status"), &new, &old)),
            [
                "status.capacity[storage]: Invalid value: -1: must be a valid resource quantity",
                "status.allocatedResourceStatuses: Unsupported value: \"storage\": supported values: \"ControllerResizeInProgress\", \"ControllerResizeInfeasible\", \"NodeResizeInProgress\", \"NodeResizeInfeasible\", \"NodeResizePending\"",
                "status.allocatedResources: Unsupported value: \"other\": supported values: \"storage\"",
            ]
        );
    }

    #[test]
    fn volumes_stay_where_they_are() {
        let affinity = |key: &str, value: &str| {
            json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}]}}}})
        };
        let old = affinity("failure-domain.beta.kubernetes.io/zone", "a");
        let mut cases = vec![
            (affinity("failure-domain.beta.kubernetes.io/zone", "a"), 0),
            (affinity("topology.kubernetes.io/zone", "a"), 0),
            (affinity("topology.kubernetes.io/region", "a"), 1),
            (affinity("topology.kubernetes.io/zone", "b"), 1),
        ];
        for (new, wanted) in cases.drain(..) {
            let mut errors = Errors::new();
            affinity_update(&new, &old, &mut errors);
            assert_eq!(errors.len(), wanted, "{new}");
        }
        let mut errors = Errors::new();
        affinity_update(&json!({}), &old, &mut errors);
        assert_eq!(
            texts(errors),
            ["nodeAffinity: Invalid value: null: field is immutable, except for updating from beta label to GA"]
        );
    }
}
