//! The rules of CustomResourceDefinitions and APIServices.

use sampan_api::Object;
use serde_json::Value;

use super::{definition, validate};
use crate::defaults::Fill;
use crate::names;
use crate::rules::{RULES, Rules};
use crate::spec::Part;
use crate::tree;

pub(super) static DEFINITION: Rules = Rules {
    generation: true,
    unconditional_update: false,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.names", Fill::Map),
        ("spec.conversion.webhook.clientConfig.service.port", Fill::Int(443)),
        ("status", Fill::Map),
        ("status.acceptedNames", Fill::Map),
        ("status.acceptedNames.kind", Fill::Text("")),
        ("status.acceptedNames.plural", Fill::Text("")),
    ],
    default,
    create: default,
    update: |part, new, _| {
        if part == Part::Main {
            remember_storage_version(new);
        }
    },
    validate_create: definition::create,
    validate_update: definition::update,
    warnings: definition::warnings,
    warns_of_news: true,
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};

pub(super) static API_SERVICE: Rules = Rules {
    name: names::path_segment,
    unconditional_update: false,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.service.port", Fill::Int(443)),
        ("status", Fill::Map),
    ],
    validate: validate::api_service,
    validate_update: validate::api_service_status,
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};

fn default(definition: &mut Object) {
    if tree::get(definition, "spec.conversion").is_none() {
        tree::set(definition, "spec.conversion.strategy", "None");
    }
    let kind = tree::text(definition, "spec.names.kind").to_owned();
    if !kind.is_empty() {
        for (path, name) in [
            ("spec.names.singular", kind.to_lowercase()),
            ("spec.names.listKind", format!("{kind}List")),
        ] {
            if tree::text(definition, path).is_empty() {
                tree::set(definition, path, name);
            }
        }
    }
    if tree::items(definition, "status.storedVersions").is_empty() {
        remember_storage_version(definition);
    }
}

/// `status.storedVersions` has every version objects were ever stored in, the present one included.
fn remember_storage_version(definition: &mut Object) {
    let storage = tree::items(definition, "spec.versions")
        .iter()
        .find(|version| tree::flag(version, "storage"))
        .map(|version| Value::from(tree::text(version, "name")));
    let mut versions = tree::items(definition, "status.storedVersions").to_vec();
    if let Some(storage) = storage.filter(|storage| !versions.contains(storage)) {
        versions.push(storage);
        tree::set(definition, "status.storedVersions", versions);
    }
}
