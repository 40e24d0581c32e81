//! Validation of a Pod's volumes.

use std::collections::{BTreeMap, BTreeSet};

use sampan_api::{names as api, quantity::Quantity};
use serde_json::Value;

use super::validate::{Error, Errors, Owner, Path};
use super::{containers, resources};
use crate::checks::{self, Rule};
use crate::names;
use crate::tree;
use crate::volume_sources::{self, Place};

/// The volumes a container may mount, by name: those without errors of their own.
pub(super) type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

pub(super) fn validate<'a>(spec: &'a Value, path: &Path, owner: Owner<'_>, errors: &mut Errors) -> Volumes<'a> {
    let volumes = tree::items(spec, "volumes");
    let claims: BTreeSet<_> = volumes
        .iter()
        .filter(|volume| !owner.name.is_empty() && tree::get(volume, "ephemeral").is_some())
        .map(|volume| format!("{}-{}", owner.name, tree::text(volume, "name")))
        .collect();
    let mut known = Volumes::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let name = tree::text(volume, "name");
        let before = errors.len();
        source(volume, &path, owner, errors);
        checks::run_at(
            &[("name", Rule::RequiredNamed(api::dns1123_label))],
            volume,
            &path,
            None,
            errors,
        );
        if known.contains_key(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        if errors.len() == before {
            known.insert(name, volume);
        }
        let claim = tree::text(volume, "persistentVolumeClaim.claimName");
        if claims.contains(claim) {
            errors.push(Error::invalid(
                &path.child("persistentVolumeClaim").child("claimName"),
                claim,
                "must not reference a PVC that gets created for an ephemeral volume",
            ));
        }
    }
    known
}

fn source(volume: &Value, path: &Path, owner: Owner<'_>, errors: &mut Errors) {
    let place = Place::Pod(tree::text(volume, "name"));
    let volume_path = path;
    let Some((kind, source, path)) = volume_sources::check(volume, path, place, errors) else {
        return;
    };
    match kind {
        "emptyDir" => size_limit(source, &path, errors),
        "downwardAPI" => {
            for file in tree::items(source, "items") {
                downward_file(file, &path, errors);
            }
        }
        "projected" => projected(source, &path, errors),
        "ephemeral" => claim_template(volume, source, (volume_path, &path), owner, errors),
        "image" if owner.is_pod && tree::text(source, "reference").is_empty() => {
            errors.push(Error::required(&path.child("reference"), ""));
        }
        _ => {}
    }
}

fn size_limit(source: &Value, path: &Path, errors: &mut Errors) {
    if let Some(limit) = tree::get(source, "sizeLimit")
        && Quantity::from_value(limit).is_ok_and(|limit| limit.is_negative())
    {
        errors.push(Error::forbidden(
            &path.child("sizeLimit"),
            "SizeLimit field must be a valid resource quantity",
        ));
    }
}

/// The claim an ephemeral volume makes, and the name it will have.
fn claim_template(
    volume: &Value,
    source: &Value,
    (volume_path, path): (&Path, &Path),
    owner: Owner<'_>,
    errors: &mut Errors,
) {
    if let Some(template) = tree::get(source, "volumeClaimTemplate") {
        let path = path.child("volumeClaimTemplate");
        template_metadata(template, &path.child("metadata"), errors);
        let spec = tree::get(template, "spec").unwrap_or(&Value::Null);
        crate::core::volume::claim_spec(spec, &path.child("spec"), errors);
    }
    let name = tree::text(volume, "name");
    if !owner.name.is_empty() && !name.is_empty() {
        let claim = format!("{}-{name}", owner.name);
        for message in names::whole_subdomain(&claim) {
            let why = format!("PVC name \"{claim}\": {message}");
            errors.push(Error::invalid(&volume_path.child("name"), name, why));
        }
    }
}

/// A template has labels and annotations, and nothing else in its metadata.
fn template_metadata(template: &Value, path: &Path, errors: &mut Errors) {
    let metadata = tree::get(template, "metadata").unwrap_or(&Value::Null);
    if let Some(annotations) = tree::get(metadata, "annotations") {
        errors.extend(api::validate_annotations(annotations, &path.child("annotations")));
    }
    if let Some(labels) = tree::get(metadata, "labels") {
        errors.extend(api::validate_labels(labels, &path.child("labels")));
    }
    for (field, _) in metadata.as_object().into_iter().flatten() {
        if !matches!(field.as_str(), "annotations" | "labels") {
            errors.push(Error::forbidden(&path.child(field), "cannot be set"));
        }
    }
}

const FILE_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

fn downward_file(file: &Value, path: &Path, errors: &mut Errors) {
    checks::run_at(
        &[("path", Rule::RequiredNamed(names::local_path))],
        file,
        path,
        None,
        errors,
    );
    match (tree::get(file, "fieldRef"), tree::get(file, "resourceFieldRef")) {
        (Some(reference), resource) => {
            containers::field_ref(reference, FILE_FIELDS, &path.child("fieldRef"), errors);
            if resource.is_some() {
                errors.push(Error::invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                ));
            }
        }
        (None, Some(reference)) => {
            resources::field_ref(reference, true, &path.child("resourceFieldRef"), errors);
        }
        (None, None) => errors.push(Error::required(
            path,
            "one of fieldRef and resourceFieldRef is required",
        )),
    }
    checks::run_at(&[("mode", Rule::Mode)], file, path, None, errors);
}

const PROJECTIONS: [&str; 6] = [
    "secret",
    "configMap",
    "downwardAPI",
    "serviceAccountToken",
    "clusterTrustBundle",
    "podCertificate",
];

/// Several sources in one directory: no two may write the same file.
fn projected(volume: &Value, path: &Path, errors: &mut Errors) {
    let mut paths = BTreeSet::new();
    for (index, source) in tree::items(volume, "sources").iter().enumerate() {
        let at = path.child("sources").index(index);
        for kind in ["secret", "configMap"] {
            let Some(from) = tree::get(source, kind) else {
                continue;
            };
            let at = at.child(kind);
            checks::run_at(&[("name", Rule::Required(""))], from, &at, None, errors);
            checks::run_at(&volume_sources::ITEMS, from, &at, None, errors);
            for item in tree::items(from, "items") {
                let file = tree::text(item, "path");
                if !file.is_empty() && !paths.insert(file) {
                    errors.push(Error::invalid(
                        path,
                        tree::text(from, "name"),
                        "conflicting duplicate paths",
                    ));
                }
            }
        }
        for item in tree::items(source, "downwardAPI.items") {
            downward_file(item, &at.child("downwardAPI"), errors);
            let file = tree::text(item, "path");
            if !file.is_empty() && !paths.insert(file) {
                errors.push(Error::invalid(path, file, "conflicting duplicate paths"));
            }
        }
        if let Some(token) = tree::get(source, "serviceAccountToken") {
            service_account_token(token, path, &at.child("serviceAccountToken"), errors);
        }
        if PROJECTIONS
            .iter()
            .filter(|kind| tree::get(source, kind).is_some())
            .count()
            > 1
        {
            errors.push(Error::forbidden(
                &at,
                "may not specify more than 1 volume type per source",
            ));
        }
    }
}

fn service_account_token(token: &Value, volume: &Path, path: &Path, errors: &mut Errors) {
    let seconds = tree::int(token, "expirationSeconds");
    let at = path.child("expirationSeconds");
    if seconds < 600 {
        errors.push(Error::invalid(
            &at,
            seconds,
            "may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > 1 << 32 {
        errors.push(Error::invalid(
            &at,
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    checks::run_at(
        &[("path", Rule::RequiredNamed(names::local_path))],
        token,
        volume,
        None,
        errors,
    );
}
