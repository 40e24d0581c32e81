//! What a definition's status says of it: which names it got, whether it serves, whether it is going.

use std::collections::BTreeSet;

use sampan_api::{Object, meta, time};
use sampan_structural::definition::violations;
use serde_json::{Value, json};

use super::{flag, items, text};

/// Holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Names in use in a group by others.
#[derive(Debug, Default)]
pub struct Taken {
    /// Plurals, singulars and short names.
    pub resources: BTreeSet<String>,
    /// Kinds and list kinds.
    pub kinds: BTreeSet<String>,
}

impl Taken {
    /// The names another definition has got.
    pub fn add(&mut self, accepted: &Value) {
        let mut resource = |name: &str| {
            if !name.is_empty() {
                self.resources.insert(name.to_owned());
            }
        };
        resource(text(accepted, "/plural"));
        resource(text(accepted, "/singular"));
        items(accepted, "/shortNames")
            .iter()
            .filter_map(Value::as_str)
            .for_each(resource);
        for field in ["/kind", "/listKind"] {
            let name = text(accepted, field);
            if !name.is_empty() {
                self.kinds.insert(name.to_owned());
            }
        }
    }
}

pub fn condition<'a>(definition: &'a Object, kind: &str) -> Option<&'a Value> {
    items(definition, "/status/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == kind)
}

pub fn is_true(definition: &Object, kind: &str) -> bool {
    condition(definition, kind).is_some_and(|found| text(found, "/status") == "True")
}

/// Sets a condition; the time moves only when its status does.
pub fn set_condition(definition: &mut Object, kind: &str, status: &str, reason: &str, message: &str) {
    let now = time::now();
    let old = condition(definition, kind);
    let since = match old {
        Some(found) if text(found, "/status") == status && !text(found, "/lastTransitionTime").is_empty() => {
            text(found, "/lastTransitionTime").to_owned()
        }
        _ => now,
    };
    let new =
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
    let conditions = conditions_mut(definition);
    match conditions.iter_mut().find(|found| text(found, "/type") == kind) {
        Some(found) => *found = new,
        None => conditions.push(new),
    }
}

fn conditions_mut(definition: &mut Object) -> &mut Vec<Value> {
    let status = meta::ensure_map(meta::ensure_map(definition).entry("status").or_insert(Value::Null));
    meta::ensure_list(status.entry("conditions").or_insert(Value::Null))
}

/// What the first delete of a definition does to it.
pub fn begin_deletion(definition: &mut Object) {
    meta::add_finalizer(definition, CLEANUP);
    set_condition(
        definition,
        "Terminating",
        "True",
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    );
}

/// Gives the definition the names it can have and says so; what serves is then established.
pub fn settle(definition: &mut Object, taken: &Taken) {
    names(definition, taken);
    structure(definition);
    approval(definition);
}

fn names(definition: &mut Object, taken: &Taken) {
    let wanted = definition.pointer("/spec/names").cloned().unwrap_or_default();
    let mut accepted = definition
        .pointer("/status/acceptedNames")
        .cloned()
        .unwrap_or_else(|| json!({}));
    if accepted == wanted && condition(definition, "NamesAccepted").is_some() {
        establish(definition);
        return;
    }
    let mut conflict: Option<(&str, String)> = None;
    for (field, reason, of_kinds) in [
        ("plural", "PluralConflict", false),
        ("singular", "SingularConflict", false),
        ("shortNames", "ShortNamesConflict", false),
        ("kind", "KindConflict", true),
        ("listKind", "ListKindConflict", true),
    ] {
        let pointer = format!("/{field}");
        let used = if of_kinds { &taken.kinds } else { &taken.resources };
        let known: Vec<&str> = items(&accepted, &pointer).iter().filter_map(Value::as_str).collect();
        let clashes: Vec<String> = match wanted.get(field) {
            Some(Value::String(name)) => (text(&accepted, &pointer) != name && used.contains(name))
                .then(|| format!("{name:?} is already in use"))
                .into_iter()
                .collect(),
            Some(Value::Array(names)) => names
                .iter()
                .filter_map(Value::as_str)
                .filter(|name| !known.contains(name) && used.contains(*name))
                .map(|name| format!("{name:?} is already in use"))
                .collect(),
            _ => Vec::new(),
        };
        match clashes.as_slice() {
            [] => {
                if let Some(map) = accepted.as_object_mut() {
                    match wanted.get(field) {
                        Some(value) => map.insert(field.to_owned(), value.clone()),
                        None => map.remove(field),
                    };
                }
            }
            [one] => conflict = Some((reason, one.clone())),
            many => conflict = Some((reason, format!("[{}]", many.join(", ")))),
        }
    }
    if let Some(map) = accepted.as_object_mut() {
        match wanted.get("categories") {
            Some(value) => map.insert("categories".to_owned(), value.clone()),
            None => map.remove("categories"),
        };
    }
    let status = meta::ensure_map(meta::ensure_map(definition).entry("status").or_insert(Value::Null));
    status.insert("acceptedNames".into(), accepted);
    match conflict {
        Some((reason, why)) => {
            set_condition(definition, "NamesAccepted", "False", reason, &why);
            if !is_true(definition, "Established") {
                set_condition(
                    definition,
                    "Established",
                    "False",
                    "NotAccepted",
                    "not all names are accepted",
                );
            }
        }
        None => {
            set_condition(definition, "NamesAccepted", "True", "NoConflicts", "no conflicts found");
            establish(definition);
        }
    }
}

/// The rows are there by now: whoever waits for this condition can use the resource at once.
fn establish(definition: &mut Object) {
    if is_true(definition, "NamesAccepted") && !is_true(definition, "Established") {
        set_condition(
            definition,
            "Established",
            "True",
            "InitialNamesAccepted",
            "the initial names have been accepted",
        );
    }
}

/// Whether its resource is served.
pub fn serves(definition: &Object) -> bool {
    is_true(definition, "NamesAccepted") || is_true(definition, "Established")
}

fn structure(definition: &mut Object) {
    let mut broken = Vec::new();
    if flag(definition, "/spec/preserveUnknownFields") {
        broken.push("spec.preserveUnknownFields: Invalid value: true: must be false".to_owned());
    }
    for (index, version) in items(definition, "/spec/versions").iter().enumerate() {
        if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
            let path = sampan_api::field::Path::new("spec")
                .child("versions")
                .index(index)
                .child("schema")
                .child("openAPIV3Schema");
            broken.extend(violations(schema, &path).iter().map(ToString::to_string));
        }
    }
    if broken.is_empty() {
        if condition(definition, "NonStructuralSchema").is_some() {
            conditions_mut(definition).retain(|found| text(found, "/type") != "NonStructuralSchema");
        }
        return;
    }
    let why = if broken.len() == 1 {
        broken.concat()
    } else {
        format!("[{}]", broken.join(", "))
    };
    set_condition(definition, "NonStructuralSchema", "True", "Violations", &why);
}

fn approval(definition: &mut Object) {
    if !sampan_kinds::definition::is_protected(text(definition, "/spec/group")) {
        return;
    }
    let (status, reason, why) = sampan_kinds::definition::approval_state(definition);
    set_condition(
        definition,
        "KubernetesAPIApprovalPolicyConformant",
        status,
        reason,
        &why,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"spec": {"group": "g.x", "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList", "shortNames": ["th", "ti"], "categories": ["all"]}, "versions": []}})
    }

    #[test]
    fn names_are_accepted_or_not() {
        let mut free = definition();
        settle(&mut free, &Taken::default());
        assert_eq!(free["status"]["acceptedNames"], free["spec"]["names"]);
        assert!(is_true(&free, "NamesAccepted") && is_true(&free, "Established") && serves(&free));

        let mut taken = Taken::default();
        taken.add(&json!({"plural": "others", "kind": "Thing", "shortNames": ["th", "ti"]}));
        let mut clashing = definition();
        settle(&mut clashing, &taken);
        let named = condition(&clashing, "NamesAccepted").unwrap();
        assert_eq!(
            (text(named, "/reason"), text(named, "/message")),
            ("KindConflict", "\"Thing\" is already in use")
        );
        assert_eq!(clashing["status"]["acceptedNames"]["plural"], "things");
        assert_eq!(clashing["status"]["acceptedNames"].get("kind"), None);
        assert!(!serves(&clashing));
        let before = clashing.clone();
        settle(&mut clashing, &taken);
        assert_eq!(before, clashing, "settled means settled");
        settle(&mut clashing, &Taken::default());
        assert!(serves(&clashing));
    }

    #[test]
    fn schemas_without_structure_are_said_to_be_so() {
        let mut old = definition();
        old["spec"]["versions"] = json!([{"name": "v1", "schema": {"openAPIV3Schema": {"properties": {}}}}]);
        settle(&mut old, &Taken::default());
        assert_eq!(
            text(condition(&old, "NonStructuralSchema").unwrap(), "/message"),
            "spec.versions[0].schema.openAPIV3Schema.type: Required value: must not be empty at the root"
        );
        old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["type"] = "object".into();
        settle(&mut old, &Taken::default());
        assert!(condition(&old, "NonStructuralSchema").is_none());
    }
}
