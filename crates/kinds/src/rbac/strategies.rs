//! The rules of roles and bindings.

use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::names as api;
use sampan_api::selector::validate_label_selector;

use serde_json::Value;

use crate::checks;
use crate::defaults::{Default, Fill};
use crate::names;
use crate::rules::{RULES as PLAIN, Rules, Status};
use crate::spec::Part;
use crate::tree;

const RBAC: Rules = Rules {
    name: names::path_segment,
    status: Status::Plain,
    create_on_update: true,
    ..PLAIN
};

pub(super) static ROLE: Rules = Rules {
    validate: |role, errors| rules(role, true, errors),
    ..RBAC
};
pub(super) static CLUSTER_ROLE: Rules = Rules {
    validate: |role, errors| {
        rules(role, false, errors);
        aggregation(role, errors);
    },
    ..RBAC
};
pub(super) static BINDING: Rules = Rules {
    defaults: BINDING_DEFAULTS,
    validate: |binding, errors| validate_binding(binding, true, errors),
    validate_update: fixed_role,
    ..RBAC
};
pub(super) static CLUSTER_BINDING: Rules = Rules {
    defaults: BINDING_DEFAULTS,
    validate: |binding, errors| validate_binding(binding, false, errors),
    validate_update: fixed_role,
    ..RBAC
};

const GROUP: &str = "rbac.authorization.k8s.io";

const BINDING_DEFAULTS: &[Default] = &[
    ("roleRef", Fill::Map),
    ("roleRef.apiGroup", Fill::Text(GROUP)),
    ("subjects[](kind=User).apiGroup", Fill::Text(GROUP)),
    ("subjects[](kind=Group).apiGroup", Fill::Text(GROUP)),
];

/// A rule is about resources or about paths, and only a ClusterRole's may be about paths.
fn rules(role: &Object, namespaced: bool, errors: &mut Errors) {
    for (index, rule) in tree::items(role, "rules").iter().enumerate() {
        let path = Path::new("rules").index(index);
        let empty = |field: &str| tree::items(rule, field).is_empty();
        if empty("verbs") {
            errors.push(Error::required(
                &path.child("verbs"),
                "verbs must contain at least one value",
            ));
        }
        let paths = tree::items(rule, "nonResourceURLs");
        if !paths.is_empty() {
            let at = path.child("nonResourceURLs");
            if namespaced {
                errors.push(Error::invalid(
                    &at,
                    paths.to_vec(),
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if !(empty("apiGroups") && empty("resources") && empty("resourceNames")) {
                errors.push(Error::invalid(
                    &at,
                    paths.to_vec(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        for (field, why) in [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if empty(field) {
                errors.push(Error::required(&path.child(field), why));
            }
        }
    }
}

fn aggregation(role: &Object, errors: &mut Errors) {
    let Some(aggregation) = tree::get(role, "aggregationRule") else {
        return;
    };
    let path = Path::new("aggregationRule").child("clusterRoleSelectors");
    let selectors = tree::items(aggregation, "clusterRoleSelectors");
    if selectors.is_empty() {
        errors.push(Error::required(
            &path,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        ));
    }
    for (index, selector) in selectors.iter().enumerate() {
        let path = path.index(index);
        let wrong = validate_label_selector(selector, &path);
        // What upstream shows here is the selector it could not make.
        let unreadable = (!wrong.is_empty()).then(|| Error::invalid(&path, Value::Null, "invalid label selector."));
        errors.extend(wrong.into_iter().chain(unreadable));
    }
}

fn validate_binding(binding: &Object, namespaced: bool, errors: &mut Errors) {
    let path = Path::new("roleRef");
    let text = |field: &str| tree::get(binding, "roleRef").map_or("", |role| tree::text(role, field));
    if text("apiGroup") != GROUP {
        errors.push(Error::not_supported(
            &path.child("apiGroup"),
            text("apiGroup"),
            &[GROUP],
        ));
    }
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&text("kind")) {
        errors.push(Error::not_supported(&path.child("kind"), text("kind"), kinds));
    }
    if text("name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        checks::named(&path.child("name"), text("name"), api::path_segment, errors);
    }
    for (index, subject) in tree::items(binding, "subjects").iter().enumerate() {
        let path = Path::new("subjects").index(index);
        let text = |field: &str| tree::text(subject, field);
        if text("name").is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        }
        match text("kind") {
            "ServiceAccount" => {
                if !text("name").is_empty() {
                    checks::named(&path.child("name"), text("name"), names::whole_subdomain, errors);
                }
                if !text("apiGroup").is_empty() {
                    errors.push(Error::not_supported(&path.child("apiGroup"), text("apiGroup"), &[""]));
                }
                if !namespaced && text("namespace").is_empty() {
                    errors.push(Error::required(&path.child("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if text("apiGroup") != GROUP {
                    errors.push(Error::not_supported(
                        &path.child("apiGroup"),
                        text("apiGroup"),
                        &[GROUP],
                    ));
                }
            }
            other => errors.push(Error::not_supported(
                &path.child("kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
}

/// Who may bind a role was decided for that role: a binding never moves to another.
fn fixed_role(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if !tree::same_at(new, old, "roleRef") {
        errors.push(Error::invalid(
            &Path::new("roleRef"),
            tree::get(new, "roleRef").cloned().unwrap_or_default(),
            "cannot change roleRef",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Strategy;
    use serde_json::{Value, json};

    fn said(rules: &Rules, mut object: Value) -> Vec<String> {
        rules.default(&mut object);
        rules.validate_create(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn roles_and_bindings() {
        let none: Vec<String> = Vec::new();
        assert_eq!(
            said(
                &CLUSTER_ROLE,
                json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]})
            ),
            none
        );
        assert_eq!(
            said(
                &ROLE,
                json!({"rules": [{"nonResourceURLs": ["/healthz"]}, {"verbs": ["get"]}]})
            ),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].nonResourceURLs: Invalid value: [\"/healthz\"]: namespaced rules cannot apply to non-resource URLs",
                "rules[1].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[1].resources: Required value: resource rules must supply at least one resource",
            ]
        );
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        assert_eq!(said(&CLUSTER_BINDING, binding.clone()), none);
        let mut other = binding.clone();
        other["roleRef"]["name"] = "edit".into();
        let mut errors = Vec::new();
        fixed_role(Part::Main, &other, &binding, &mut errors);
        assert_eq!(errors.len(), 1);
        assert_eq!(
            said(
                &CLUSTER_BINDING,
                json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "s"}]})
            ),
            [
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "subjects[0].namespace: Required value",
            ]
        );
    }
}
