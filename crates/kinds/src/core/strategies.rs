//! The rules of the simpler core kinds.

use sampan_api::Object;
use serde_json::Value;

use super::{tls, validate};
use crate::checks::Rule;
use crate::defaults::Fill;
use crate::names;
use crate::pod_spec::quantities;
use crate::rules::{RULES, Rules, Status, keep_all_but};
use crate::spec::{MetadataCheck, Part};
use crate::tree;
use crate::warnings;

/// Kinds that are never stored and have no status.
pub(super) static UNSTORED: Rules = Rules {
    status: Status::Plain,
    ..RULES
};

pub(super) static CONFIG_MAP: Rules = Rules {
    status: Status::Plain,
    metadata: &[MetadataCheck::Change, MetadataCheck::Whole],
    validate: validate::config_map,
    changes_first: true,
    validate_update: validate::config_map_update,
    ..RULES
};

pub(super) static ENDPOINTS: Rules = Rules {
    status: Status::Plain,
    create_on_update: true,
    defaults: &[("subsets[].ports[].protocol", Fill::Text("TCP"))],
    metadata: &[MetadataCheck::Change, MetadataCheck::Whole],
    validate: validate::endpoints,
    warnings: warnings::endpoints,
    ..RULES
};

pub(super) static LIMIT_RANGE: Rules = Rules {
    status: Status::Plain,
    create: name_limits,
    create_on_update: true,
    defaults: &[("spec", Fill::Map)],
    default: default_limits,
    metadata: &[MetadataCheck::Whole],
    validate: validate::limit_range,
    ..RULES
};

pub(super) static NAMESPACE: Rules = Rules {
    name: names::label,
    defaults: &[
        ("spec", Fill::Map),
        ("status", Fill::Map),
        ("status.phase", Fill::Text("Active")),
    ],
    default: label_namespace,
    create: prepare_namespace,
    view: |name, new, old| {
        let finalize = name == "finalize";
        if finalize {
            keep_all_but(&["spec.finalizers"], new, old);
        }
        finalize
    },
    reset: |part| (part == Part::View("finalize")).then_some(&["status"]),
    // The finalizers of the spec are for the finalize view alone.
    update: |part, new, old| {
        if part == Part::Main {
            tree::carry(new, old, "spec.finalizers");
        }
    },
    metadata: &[MetadataCheck::Whole, MetadataCheck::Change],
    validate_create: validate::namespace_create,
    validate_update: validate::namespace_update,
    ..RULES
};

pub(super) static POD_TEMPLATE: Rules = Rules {
    generation: true,
    status: Status::Plain,
    defaults: &[
        ("template", Fill::Map),
        ("template.metadata", Fill::Map),
        ("template.spec", Fill::Map),
    ],
    pod_spec: "template.spec",
    validate: validate::pod_template,
    ..RULES
};

pub(super) static REPLICATION_CONTROLLER: Rules = Rules {
    name: names::long_name,
    generation: true,
    defaults: &[
        ("spec", Fill::Map),
        ("spec.replicas", Fill::Int(1)),
        ("spec.template.metadata", Fill::Map),
        ("spec.template.spec", Fill::Map),
        ("status", Fill::Map),
        ("status.replicas", Fill::Int(0)),
    ],
    default: labels_from_template,
    pod_spec: "spec.template.spec",
    checks: &[
        ("spec.minReadySeconds", Rule::NonNegative),
        ("spec.replicas", Rule::NonNegative),
    ],
    validate: validate::replication_controller,
    validate_update: validate::replication_controller_update,
    warnings: warnings::name_in_pods,
    ..RULES
};

pub(super) static RESOURCE_QUOTA: Rules = Rules {
    defaults: &[("spec", Fill::Map), ("status", Fill::Map)],
    default: |quota| quantities::canonical_at(quota, &["spec.hard", "status.hard", "status.used"]),
    validate: validate::resource_quota,
    validate_update: validate::resource_quota_update,
    ..RULES
};

pub(super) static SECRET: Rules = Rules {
    status: Status::Plain,
    defaults: &[("type", Fill::Text("Opaque"))],
    default: fold_string_data,
    metadata: &[MetadataCheck::Change, MetadataCheck::Whole],
    validate: validate::secret,
    changes_first: true,
    validate_update: validate::secret_update,
    warnings: tls::warnings,
    ..RULES
};

pub(super) static SERVICE_ACCOUNT: Rules = Rules {
    status: Status::Plain,
    metadata: &[MetadataCheck::Change, MetadataCheck::Whole],
    create: only_names_of_secrets,
    update: |_, new, _| only_names_of_secrets(new),
    ..RULES
};

/// Secrets of an account are its namespace's: all but their names is dropped.
fn only_names_of_secrets(account: &mut Object) {
    for secret in tree::items_mut(account, "secrets") {
        if let Some(map) = secret.as_object_mut() {
            map.retain(|field, _| field == "name");
        }
    }
}

/// Limits without a name get one that says nothing.
fn name_limits(range: &mut Object) {
    if tree::text(range, "metadata.name").is_empty() {
        let name = tree::text(range, "metadata.uid").to_owned();
        tree::set(range, "metadata.name", name);
    }
}

/// Container limits: what is not said follows from what is, max to default, default to request, min to request.
fn default_limits(range: &mut Object) {
    if tree::items(range, "spec.limits").is_empty() {
        // As Go prints a list that is not there.
        tree::set(range, "spec.limits", Value::Null);
    }
    const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    for item in tree::items_mut(range, "spec.limits") {
        quantities::canonical_at(item, &LISTS);
        if tree::text(item, "type") != "Container" {
            continue;
        }
        for (to, from) in [
            ("default", "max"),
            ("defaultRequest", "default"),
            ("defaultRequest", "min"),
        ] {
            let from = tree::map(item, from).cloned().unwrap_or_default();
            if let Some(list) = tree::child(item, to) {
                quantities::fill(list, &from);
            }
        }
    }
}

/// Every namespace carries its own name as a label.
fn label_namespace(namespace: &mut Object) {
    let name = tree::text(namespace, "metadata.name").to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = namespace
        .get_mut("metadata")
        .and_then(|metadata| tree::child(metadata, "labels"))
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

/// A new namespace is active and holds its content's finalizer.
fn prepare_namespace(namespace: &mut Object) {
    const FINALIZER: &str = "kubernetes";
    tree::set(namespace, "status.phase", "Active");
    let mut finalizers = tree::items(namespace, "spec.finalizers").to_vec();
    if !finalizers.iter().any(|one| one == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    tree::set(namespace, "spec.finalizers", finalizers);
}

/// A controller without selector or labels gets those of its template.
fn labels_from_template(controller: &mut Object) {
    let Some(labels) = tree::get(controller, "spec.template.metadata.labels").cloned() else {
        return;
    };
    for path in ["spec.selector", "metadata.labels"] {
        if tree::len(controller, path) == 0 {
            tree::set(controller, path, labels.clone());
        }
    }
}

/// `stringData` is write-only: it overwrites `data` and is never kept.
fn fold_string_data(secret: &mut Object) {
    use base64::Engine;
    let Some(Value::Object(plain)) = tree::remove(secret, "stringData") else {
        return;
    };
    if let Some(data) = tree::child(secret, "data") {
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            let encoded = base64::engine::general_purpose::STANDARD.encode(text);
            data.insert(key, encoded.into());
        }
        if data.is_empty() {
            tree::remove(secret, "data");
        }
    }
}
