//! Validation of CustomResourceDefinitions (all but what is inside their schemas) and APIServices.

use std::collections::BTreeSet;

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::checks::{self, Check, Rule};
use crate::print::is_true;
use crate::spec::Part;
use crate::tree;

const NAMES: &[Check] = &[
    ("plural", Rule::RequiredNamed(api::dns1035_label)),
    ("singular", Rule::RequiredNamed(api::dns1035_label)),
    ("kind", Rule::Required("")),
    ("listKind", Rule::Required("")),
    ("shortNames[]", Rule::Named(api::dns1035_label)),
    ("categories[]", Rule::Named(api::dns1035_label)),
];

pub(super) fn definition(object: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let nothing = Value::Object(serde_json::Map::new());
    let spec = tree::get(object, "spec").unwrap_or(&nothing);
    let group = tree::text(spec, "group");
    let at = path.child("group");
    let wrong = api::dns1123_subdomain(group);
    if group.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if !wrong.is_empty() {
        errors.push(Error::invalid(&at, group, wrong.join(",")));
    } else if !group.contains('.') {
        errors.push(Error::invalid(&at, group, "should be a domain with at least one dot"));
    }
    checks::run_at(
        &[("scope", Rule::RequiredOneOf(&["Cluster", "Namespaced"]))],
        spec,
        &path,
        None,
        errors,
    );
    versions(spec, &path.child("versions"), errors);
    let empty = Value::Object(serde_json::Map::new());
    let names = tree::get(spec, "names").unwrap_or(&empty);
    let at = path.child("names");
    checks::run_at(NAMES, names, &at, None, errors);
    for field in ["kind", "listKind"] {
        let name = tree::text(names, field);
        if !name.is_empty() {
            let wrong = api::dns1035_label(&name.to_lowercase());
            if !wrong.is_empty() {
                let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                errors.push(Error::invalid(&at.child(field), name, why));
            }
        }
    }
    let (kind, list) = (tree::text(names, "kind"), tree::text(names, "listKind"));
    if !kind.is_empty() && kind == list {
        errors.push(Error::invalid(
            &at.child("listKind"),
            list,
            "kind and listKind may not be the same",
        ));
    }
    conversion(spec, &path.child("conversion"), errors);
    stored_versions(object, spec, errors);
}

fn versions(spec: &Value, path: &Path, errors: &mut Errors) {
    let versions = tree::items(spec, "versions");
    let preserves = tree::flag(spec, "preserveUnknownFields");
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        if tree::get(version, "schema.openAPIV3Schema").is_none() && !preserves {
            errors.push(Error::required(&path.child("schema").child("openAPIV3Schema"), ""));
        }
        let name = tree::text(version, "name");
        let wrong = api::dns1035_label(name);
        if !wrong.is_empty() {
            errors.push(Error::invalid(&path.child("name"), name, wrong.join(",")));
        }
        let warning = tree::get(version, "deprecationWarning").and_then(Value::as_str);
        if let Some(warning) = warning {
            let at = path.child("deprecationWarning");
            if !tree::flag(version, "deprecated") {
                errors.push(Error::invalid(&at, warning, "can only be set for deprecated versions"));
            } else if warning.is_empty() {
                errors.push(Error::invalid(&at, warning, "must not be an empty string"));
            } else if warning.len() > 256 {
                errors.push(Error::invalid(&at, warning, "must be <= 256 characters long"));
            }
        }
        if let Some(scale) = tree::get(version, "subresources.scale") {
            scale_paths(scale, &path.child("subresources").child("scale"), errors);
        }
        checks::run_at(
            &[
                ("additionalPrinterColumns[].name", Rule::Required("")),
                (
                    "additionalPrinterColumns[].type",
                    Rule::RequiredOneOf(&["boolean", "date", "integer", "number", "string"]),
                ),
                ("additionalPrinterColumns[].jsonPath", Rule::Required("")),
                ("selectableFields[].jsonPath", Rule::Required("")),
            ],
            version,
            &path,
            None,
            errors,
        );
    }
    let shown = || Value::from(versions.to_vec());
    let unique: BTreeSet<_> = versions.iter().map(|version| tree::text(version, "name")).collect();
    if unique.len() != versions.len() {
        errors.push(Error::invalid(path, shown(), "must contain unique version names"));
    }
    if versions.iter().filter(|version| tree::flag(version, "storage")).count() != 1 {
        errors.push(Error::invalid(
            path,
            shown(),
            "must have exactly one version marked as storage version",
        ));
    }
}

fn scale_paths(scale: &Value, path: &Path, errors: &mut Errors) {
    for (field, root) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let text = tree::text(scale, field);
        let at = path.child(field);
        if text.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if !text.starts_with(root) {
            let why = format!("should be a json path under {}", root.trim_end_matches('.'));
            errors.push(Error::invalid(&at, text, why));
        }
    }
    let selector = tree::text(scale, "labelSelectorPath");
    if !selector.is_empty() && !selector.starts_with(".spec.") && !selector.starts_with(".status.") {
        errors.push(Error::invalid(
            &path.child("labelSelectorPath"),
            selector,
            "should be a json path under either .spec or .status",
        ));
    }
}

fn conversion(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(conversion) = tree::get(spec, "conversion") else {
        return;
    };
    checks::run_at(
        &[("strategy", Rule::RequiredOneOf(&["None", "Webhook"]))],
        conversion,
        path,
        None,
        errors,
    );
    let hook = tree::get(conversion, "webhook");
    if tree::text(conversion, "strategy") != "Webhook" {
        if hook.is_some() {
            errors.push(Error::forbidden(
                &path.child("webhook"),
                "should not be set when strategy is not set to Webhook",
            ));
        }
        return;
    }
    let path = path.child("webhook");
    let client = hook.and_then(|hook| tree::get(hook, "clientConfig"));
    match client {
        None => errors.push(Error::required(
            &path.child("clientConfig"),
            "required when strategy is set to Webhook, but not allowed if preserveUnknownFields is true",
        )),
        Some(client) => {
            let (url, service) = (tree::get(client, "url"), tree::get(client, "service"));
            if url.is_some() == service.is_some() {
                errors.push(Error::required(
                    &path.child("clientConfig"),
                    "exactly one of url or service is required",
                ));
            }
        }
    }
    let reviews = hook.map_or(&[][..], |hook| tree::items(hook, "conversionReviewVersions"));
    let at = path.child("conversionReviewVersions");
    if reviews.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if !reviews.iter().any(|version| version == "v1" || version == "v1beta1") {
        errors.push(Error::invalid(
            &at,
            reviews.to_vec(),
            "must include at least one of v1, v1beta1",
        ));
    }
}

/// No version is given up while objects may still be stored in it.
fn stored_versions(object: &Object, spec: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("storedVersions");
    let stored = tree::items(object, "status.storedVersions");
    if stored.is_empty() {
        errors.push(Error::invalid(
            &path,
            Value::Null,
            "must have at least one stored version",
        ));
        return;
    }
    let versions = tree::items(spec, "versions");
    for (index, name) in stored.iter().filter_map(Value::as_str).enumerate() {
        if !versions.iter().any(|version| tree::text(version, "name") == name) {
            errors.push(Error::invalid(
                &path.index(index),
                name,
                format!("missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"),
            ));
        }
    }
}

/// The name is made of what it defines.
pub(super) fn definition_create(object: &Object, errors: &mut Errors) {
    let wanted = format!(
        "{}.{}",
        tree::text(object, "spec.names.plural"),
        tree::text(object, "spec.group")
    );
    let name = tree::text(object, "metadata.name");
    if name != wanted {
        errors.insert(
            0,
            Error::invalid(
                &Path::new("metadata").child("name"),
                name,
                "must be spec.names.plural+\".\"+spec.group",
            ),
        );
    }
    let group = tree::text(object, "spec.group");
    let is_ours = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|owner| group == *owner || group.ends_with(&format!(".{owner}")));
    const APPROVAL: &str = "api-approved.kubernetes.io";
    if is_ours && tree::annotation(object, APPROVAL).is_empty() {
        errors.push(Error::required(
            &Path::new("metadata").child("annotations").key(APPROVAL),
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ));
    }
}

pub(super) fn definition_update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part != Part::Main {
        return;
    }
    let here = Path::default();
    if is_true(old, "status.conditions", "Established") {
        for field in ["spec.scope", "spec.names.kind"] {
            checks::immutable(new, old, &here, field, errors);
        }
    }
    for field in ["spec.group", "spec.names.plural"] {
        checks::immutable(new, old, &here, field, errors);
    }
}

pub(super) fn api_service(service: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let (group, version) = (tree::text(service, "spec.group"), tree::text(service, "spec.version"));
    if group.is_empty() && version != "v1" {
        errors.push(Error::required(
            &path.child("group"),
            "only v1 may have an empty group and it better be legacy kube",
        ));
    }
    checks::run(
        &[("spec.group", Rule::Named(api::dns1123_subdomain))],
        service,
        None,
        errors,
    );
    checks::named(&path.child("version"), version, api::dns1035_label, errors);
    for (field, limit) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let priority = tree::get(service, "spec").map_or(0, |spec| tree::int(spec, field));
        if !(1..=limit).contains(&priority) {
            let why = format!("must be positive and less than {limit}");
            errors.push(Error::invalid(&path.child(field), priority, why));
        }
    }
    let bundle = tree::text(service, "spec.caBundle");
    let insecure = tree::flag(service, "spec.insecureSkipTLSVerify");
    let at = path.child("insecureSkipTLSVerify");
    if tree::get(service, "spec.service").is_none() {
        if !bundle.is_empty() {
            errors.push(Error::invalid(
                &path.child("caBundle"),
                format!("{} bytes", bundle.len() * 3 / 4),
                "local APIServices may not have a caBundle",
            ));
        }
        if insecure {
            errors.push(Error::invalid(
                &at,
                true,
                "local APIServices may not have insecureSkipTLSVerify",
            ));
        }
        return;
    }
    checks::run(
        &[
            ("spec.service.namespace", Rule::Required("")),
            ("spec.service.name", Rule::Required("")),
        ],
        service,
        None,
        errors,
    );
    let port = tree::int(service, "spec.service.port");
    let wrong = api::port_number(port);
    if !wrong.is_empty() {
        errors.push(Error::invalid(
            &path.child("service").child("port"),
            port,
            format!("port is not valid: {}", wrong.join(", ")),
        ));
    }
    if insecure && !bundle.is_empty() {
        errors.push(Error::invalid(&at, true, "may not be true if caBundle is present"));
    }
}

pub(super) fn api_service_create(service: &Object, errors: &mut Errors) {
    let wanted = format!(
        "{}.{}",
        tree::text(service, "spec.version"),
        tree::text(service, "spec.group")
    );
    let name = tree::text(service, "metadata.name");
    if name != wanted {
        errors.insert(
            0,
            Error::invalid(
                &Path::new("metadata").child("name"),
                name,
                format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"),
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies;
    use super::*;
    use crate::rules::Rules;
    use crate::spec::Strategy;
    use serde_json::json;

    fn said(rules: &Rules, mut object: Value) -> Vec<String> {
        rules.default(&mut object);
        rules.prepare_create(&mut object);
        rules.validate_create(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn definitions() {
        let version =
            json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let good = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"}, "versions": [version]}});
        assert_eq!(said(&strategies::DEFINITION, good.clone()), Vec::<String>::new());
        let mut bad = good.clone();
        bad["metadata"]["name"] = "other".into();
        bad["spec"]["scope"] = "Everywhere".into();
        bad["spec"]["versions"][0]["storage"] = false.into();
        let texts = said(&strategies::DEFINITION, bad);
        assert_eq!(
            texts[0],
            "metadata.name: Invalid value: \"other\": must be spec.names.plural+\".\"+spec.group"
        );
        assert_eq!(
            texts[1],
            "spec.scope: Unsupported value: \"Everywhere\": supported values: \"Cluster\", \"Namespaced\""
        );
        assert!(
            texts[2].ends_with("must have exactly one version marked as storage version"),
            "{}",
            texts[2]
        );
        let mut made = good;
        strategies::DEFINITION.default(&mut made);
        strategies::DEFINITION.prepare_create(&mut made);
        assert_eq!(
            made["spec"]["names"],
            json!({"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"})
        );
        assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    }

    #[test]
    fn api_services() {
        assert_eq!(
            said(
                &strategies::API_SERVICE,
                json!({"metadata": {"name": "v1.x.y"}, "spec": {"group": "x.y", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}})
            ),
            Vec::<String>::new()
        );
        assert_eq!(
            said(
                &strategies::API_SERVICE,
                json!({"metadata": {"name": "v1.x.y"}, "spec": {"group": "x.y", "version": "v1", "insecureSkipTLSVerify": true, "versionPriority": 1}})
            ),
            [
                "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
            ]
        );
    }
}
