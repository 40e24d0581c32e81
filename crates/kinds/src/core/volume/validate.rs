//! Validation of PersistentVolumes and PersistentVolumeClaims.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api, quantity::Quantity};
use serde_json::Value;

use crate::checks::{self, Check, Rule};
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
    checks::run_at(COMMON, spec, path, None, errors);
    for field in ["dataSource", "dataSourceRef"] {
        if let Some(source) = tree::get(spec, field) {
            data_source(source, &path.child(field), errors);
        }
    }
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
        errors.push(Error::invalid(path, path.child("dataSource").as_str(), why));
    }
}

fn data_source(source: &Value, path: &Path, errors: &mut Errors) {
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
    checks::run_at(
        &[
            ("apiGroup", Rule::Named(api::dns1123_subdomain)),
            ("namespace", Rule::Named(api::dns1123_label)),
        ],
        source,
        path,
        None,
        errors,
    );
}

pub(super) fn claim(claim: &Object, errors: &mut Errors) {
    let nothing = Value::Null;
    claim_spec(tree::get(claim, "spec").unwrap_or(&nothing), &Path::new("spec"), errors);
}

/// A claim's spec is fixed but for its size and class once it is bound.
pub(super) fn claim_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part != Part::Main {
        return;
    }
    let nothing = Value::Null;
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
    if !tree::same_at(new, old, "spec.volumeMode") {
        let mode = tree::text(new, "spec.volumeMode");
        errors.push(Error::invalid(&Path::new("volumeMode"), mode, checks::IMMUTABLE));
    }
    if tree::get(old, "spec.nodeAffinity").is_some() && !tree::same_at(new, old, "spec.nodeAffinity") {
        let affinity = tree::get(new, "spec.nodeAffinity").cloned().unwrap_or_default();
        errors.push(Error::invalid(&Path::new("nodeAffinity"), affinity, checks::IMMUTABLE));
    }
}
