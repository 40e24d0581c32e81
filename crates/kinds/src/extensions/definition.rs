//! Validation of CustomResourceDefinitions; their schemas are judged by `sampan-structural`.
//!
//! Upstream validates an internal form in which what all versions state alike stands once at the top
//! (`spec.validation`, `spec.subresources`, …). Paths of errors are of that form, and clients know them so.

use std::collections::BTreeSet;

use sampan_api::field::{Error, Errors, Path, quote};
use sampan_api::{Object, names as api};
use sampan_structural::Schema;
use sampan_structural::definition::{self as schemas, Strictness};
use serde_json::Value;

use super::conversion;
use crate::checks;
use crate::print::is_true;
use crate::spec::Part;
use crate::tree;

const APPROVAL: &str = "api-approved.kubernetes.io";
/// Selectable fields of one version.
const MOST_FIELDS: usize = 8;

/// What an update need not keep, because what is stored does not.
pub(super) struct Options {
    strict: Strictness,
    /// Every version must have a schema.
    schemas: bool,
    /// `conversionReviewVersions` must name one that is known.
    pub reviews: bool,
    /// A webhook's bundle must be one.
    pub bundle: bool,
    /// Versions whose many selectable fields were there before.
    many_fields: Vec<String>,
    /// Versions whose schema is what it was.
    unchanged: Vec<String>,
}

pub(super) fn create(object: &Object, errors: &mut Errors) {
    let name = tree::text(object, "metadata.name");
    let at = Path::new("metadata").child("name");
    let wanted = format!(
        "{}.{}",
        tree::text(object, "spec.names.plural"),
        tree::text(object, "spec.group")
    );
    if !name.is_empty() && name != wanted {
        errors.push(Error::invalid(&at, name, "must be spec.names.plural+\".\"+spec.group"));
    }
    let options = Options {
        strict: Strictness::default(),
        schemas: true,
        reviews: true,
        // Nothing is converted before the definition is established.
        bundle: false,
        many_fields: Vec::new(),
        unchanged: Vec::new(),
    };
    whole(object, None, &options, errors);
}

pub(super) fn update(part: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if part != Part::Main {
        names(new, "status.acceptedNames", errors);
        return;
    }
    let stored: Vec<&Value> = tree::items(old, "spec.versions")
        .iter()
        .filter_map(|version| tree::get(version, "schema.openAPIV3Schema"))
        .collect();
    let of = |object: &'_ Object, name: &str| {
        tree::items(object, "spec.versions")
            .iter()
            .find(|version| tree::text(version, "name") == name)
            .map(|version| tree::items(version, "selectableFields").to_vec())
            .unwrap_or_default()
    };
    let options = Options {
        schemas: stored.len() == tree::items(old, "spec.versions").len(),
        strict: Strictness::of_update(stored.into_iter()),
        reviews: {
            let reviews = tree::items(old, "spec.conversion.webhook.conversionReviewVersions");
            reviews.is_empty() || reviews.iter().any(conversion::is_known_review)
        },
        bundle: is_true(old, "status.conditions", "Established") && conversion::has_good_bundle(old),
        many_fields: tree::items(new, "spec.versions")
            .iter()
            .map(|version| tree::text(version, "name").to_owned())
            .filter(|name| {
                let fields = of(old, name);
                fields.len() > MOST_FIELDS && fields == of(new, name)
            })
            .collect(),
        unchanged: tree::items(new, "spec.versions")
            .iter()
            .filter(|version| {
                let name = tree::text(version, "name");
                tree::items(old, "spec.versions").iter().any(|old| {
                    tree::text(old, "name") == name && tree::get(old, "schema") == tree::get(version, "schema")
                })
            })
            .map(|version| tree::text(version, "name").to_owned())
            .collect(),
    };
    whole(new, Some(old), &options, errors);
}

/// Formats nobody knows.
pub(super) fn warnings(object: &Object) -> Vec<String> {
    let mut found = Vec::new();
    for version in tree::items(object, "spec.versions") {
        if let Some(schema) = tree::get(version, "schema.openAPIV3Schema") {
            formats(schema, &mut found);
        }
    }
    found
}

fn formats(schema: &Value, found: &mut Vec<String>) {
    let collected = std::cell::RefCell::new(Vec::new());
    schemas::any(schema, &|node| {
        let (ty, format) = (tree::text(node, "type"), tree::text(node, "format"));
        if sampan_structural::unrecognized(ty, format) {
            collected
                .borrow_mut()
                .push(format!("unrecognized format {}", quote(format)));
        }
        false
    });
    found.extend(collected.into_inner());
}

fn whole(object: &Object, old: Option<&Object>, options: &Options, errors: &mut Errors) {
    spec(object, options, errors);
    if let Some(old) = old {
        let here = Path::default();
        if is_true(old, "status.conditions", "Established") {
            for field in ["spec.scope", "spec.names.kind"] {
                checks::immutable(object, old, &here, field, errors);
            }
        }
        for field in ["spec.group", "spec.names.plural"] {
            checks::immutable(object, old, &here, field, errors);
        }
    }
    names(object, "status.acceptedNames", errors);
    stored_versions(object, errors);
    approval(object, old, errors);
    let preserved = old.is_some_and(|old| tree::flag(old, "spec.preserveUnknownFields"));
    if tree::flag(object, "spec.preserveUnknownFields") && !preserved {
        errors.push(Error::invalid(
            &Path::new("spec").child("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ));
    }
}

fn spec(object: &Object, options: &Options, errors: &mut Errors) {
    let path = Path::new("spec");
    let group = tree::text(object, "spec.group");
    let at = path.child("group");
    let wrong = api::dns1123_subdomain(group);
    if group.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if !wrong.is_empty() {
        errors.push(Error::invalid(&at, group, wrong.join(",")));
    } else if !group.contains('.') {
        errors.push(Error::invalid(&at, group, "should be a domain with at least one dot"));
    }
    one_of(
        tree::text(object, "spec.scope"),
        &["Cluster", "Namespaced"],
        &path.child("scope"),
        errors,
    );
    let preserves = tree::flag(object, "spec.preserveUnknownFields");
    let versions = tree::items(object, "spec.versions");
    let at = path.child("versions");
    for (index, version) in versions.iter().enumerate() {
        if tree::get(version, "schema.openAPIV3Schema").is_some() {
            continue;
        }
        let here = at.index(index).child("schema").child("openAPIV3Schema");
        if options.schemas {
            errors.push(Error::required(&here, ""));
        } else if !preserves && tree::flag(version, "served") {
            errors.push(Error::required(&here, "because otherwise all fields are pruned"));
        }
    }
    let has_default = versions
        .iter()
        .filter_map(|version| tree::get(version, "schema.openAPIV3Schema"))
        .any(|schema| {
            schemas::any(schema, &|node| {
                node.get("default").is_some_and(|value| !value.is_null())
            })
        });
    let has_markers = versions
        .iter()
        .filter_map(|version| tree::get(version, "schema.openAPIV3Schema"))
        .any(|schema| schemas::any(schema, &is_marked));
    if has_default && preserves {
        errors.push(Error::invalid(
            &path.child("preserveUnknownFields"),
            true,
            "must be false in order to use defaults in the schema",
        ));
    }
    let strict = Strictness {
        structural: options.strict.structural || !preserves || has_default || has_markers,
        ..options.strict
    };
    let of_version = |version: &Value| Strictness {
        expression_cost: !options.unchanged.iter().any(|name| name == tree::text(version, "name")),
        ..strict
    };
    // What all versions state alike is validated once, as upstream's internal form has it.
    let alike = |field: &str| {
        versions
            .iter()
            .all(|version| tree::get(version, field) == versions.first().and_then(|first| tree::get(first, field)))
    };
    let one_schema = alike("schema");
    let one_subresources = alike("subresources");
    let one_columns = alike("additionalPrinterColumns");
    let one_fields = alike("selectableFields");
    let has_status = |version: &Value| tree::get(version, "subresources.status").is_some();
    for (index, version) in versions.iter().enumerate() {
        let at = at.index(index);
        let name = tree::text(version, "name");
        let wrong = api::dns1035_label(name);
        if !wrong.is_empty() {
            errors.push(Error::invalid(&at.child("name"), name, wrong.join(",")));
        }
        deprecation(version, &at.child("deprecationWarning"), errors);
        if !one_schema {
            schema(
                version,
                has_status(version),
                of_version(version),
                &at.child("schema"),
                errors,
            );
        }
        if !one_subresources {
            scale(version, &at.child("subresources"), errors);
        }
        if !one_columns {
            columns(version, &at.child("additionalPrinterColumns"), errors);
        }
        if !one_fields {
            const NO_SCHEMA: &str = "may only be set when `version.schema.openAPIV3Schema` is not included";
            selectable_fields(version, options, NO_SCHEMA, &at.child("selectableFields"), errors);
        }
    }
    let shown = || tree::get(object, "spec.versions").cloned().unwrap_or_default();
    let unique: BTreeSet<_> = versions.iter().map(|version| tree::text(version, "name")).collect();
    if unique.len() != versions.len() {
        errors.push(Error::invalid(&at, shown(), "must contain unique version names"));
    }
    if versions.iter().filter(|version| tree::flag(version, "storage")).count() != 1 {
        errors.push(Error::invalid(
            &at,
            shown(),
            "must have exactly one version marked as storage version",
        ));
    }
    // Upstream's internal form says the first version's name once more.
    if let Some(name) = versions.first().map(|first| tree::text(first, "name")) {
        let wrong = api::dns1035_label(name);
        if !name.is_empty() && !wrong.is_empty() {
            errors.push(Error::invalid(&path.child("version"), name, wrong.join(",")));
        }
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        if tree::text(object, &format!("spec.names.{field}")).is_empty() {
            errors.push(Error::required(&path.child("names").child(field), ""));
        }
    }
    names(object, "spec.names", errors);
    if let Some(first) = versions.first() {
        if one_schema {
            let has_status = versions.iter().any(has_status);
            schema(first, has_status, of_version(first), &path.child("validation"), errors);
        }
        if one_subresources {
            scale(first, &path.child("subresources"), errors);
        }
        if one_columns {
            columns(first, &path.child("additionalPrinterColumns"), errors);
        }
        if one_fields {
            const NO_SCHEMA: &str = "may only be set when validations.schema is included";
            selectable_fields(first, options, NO_SCHEMA, &path.child("selectableFields"), errors);
        }
    }
    conversion::check(object, preserves, options, &path.child("conversion"), errors);
}

/// Whether a node says what only structural schemas can.
fn is_marked(node: &Value) -> bool {
    tree::flag(node, "x-kubernetes-embedded-resource")
        || tree::flag(node, "x-kubernetes-int-or-string")
        || node
            .get("x-kubernetes-preserve-unknown-fields")
            .is_some_and(|value| !value.is_null())
        || !tree::text(node, "x-kubernetes-list-type").is_empty()
        || !tree::items(node, "x-kubernetes-list-map-keys").is_empty()
        || !tree::items(node, "x-kubernetes-validations").is_empty()
}

pub(super) fn one_of(value: &str, allowed: &[&str], path: &Path, errors: &mut Errors) {
    if value.is_empty() {
        errors.push(Error::required(path, ""));
    } else if !allowed.contains(&value) {
        errors.push(Error::not_supported(path, value, allowed));
    }
}

fn schema(version: &Value, has_status: bool, strict: Strictness, path: &Path, errors: &mut Errors) {
    if let Some(schema) = tree::get(version, "schema.openAPIV3Schema") {
        schemas::check(schema, has_status, strict, path, errors);
    }
}

fn deprecation(version: &Value, path: &Path, errors: &mut Errors) {
    let Some(warning) = tree::get(version, "deprecationWarning").and_then(Value::as_str) else {
        return;
    };
    let mut wrong = |why: &str| errors.push(Error::invalid(path, warning, why));
    if !tree::flag(version, "deprecated") {
        return wrong("can only be set for deprecated versions");
    }
    if warning.len() > 256 {
        wrong("must be <= 256 characters long");
    }
    if warning.is_empty() {
        wrong("must not be an empty string");
    }
    if let Some((at, _)) = warning
        .char_indices()
        .find(|(_, char)| char.is_control() || (char.is_whitespace() && *char != ' '))
    {
        wrong(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
}

/// Names as they must be; which of them must be there is asked elsewhere.
fn names(object: &Object, at: &str, errors: &mut Errors) {
    let path = at.split('.').fold(Path::default(), |path, name| path.child(name));
    let nothing = Value::Null;
    let names = tree::get(object, at).unwrap_or(&nothing);
    for field in ["plural", "singular"] {
        let name = tree::text(names, field);
        let wrong = api::dns1035_label(name);
        if !name.is_empty() && !wrong.is_empty() {
            errors.push(Error::invalid(&path.child(field), name, wrong.join(",")));
        }
    }
    for field in ["kind", "listKind"] {
        let name = tree::text(names, field);
        let wrong = api::dns1035_label(&name.to_lowercase());
        if !name.is_empty() && !wrong.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
            errors.push(Error::invalid(&path.child(field), name, why));
        }
    }
    let each = |field: &str, errors: &mut Errors| {
        for (index, name) in tree::items(names, field).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            let wrong = api::dns1035_label(name);
            if !wrong.is_empty() {
                errors.push(Error::invalid(&path.child(field).index(index), name, wrong.join(",")));
            }
        }
    };
    each("shortNames", errors);
    let (kind, list) = (tree::text(names, "kind"), tree::text(names, "listKind"));
    if !kind.is_empty() && kind == list {
        errors.push(Error::invalid(
            &path.child("listKind"),
            list,
            "kind and listKind may not be the same",
        ));
    }
    each("categories", errors);
}

fn columns(version: &Value, path: &Path, errors: &mut Errors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = [
        "byte",
        "date",
        "date-time",
        "double",
        "float",
        "int32",
        "int64",
        "password",
    ];
    for (index, column) in tree::items(version, "additionalPrinterColumns").iter().enumerate() {
        let at = path.index(index);
        if tree::text(column, "name").is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        }
        let ty = tree::text(column, "type");
        let why = format!("must be one of {}", TYPES.join(","));
        if ty.is_empty() {
            errors.push(Error::required(&at.child("type"), why));
        } else if !TYPES.contains(&ty) {
            errors.push(Error::invalid(&at.child("type"), ty, why));
        }
        let format = tree::text(column, "format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            errors.push(Error::invalid(
                &at.child("format"),
                format,
                format!("must be one of {}", FORMATS.join(",")),
            ));
        }
        let json_path = tree::text(column, "jsonPath");
        if json_path.is_empty() {
            errors.push(Error::required(&at.child("JSONPath"), ""));
        } else {
            simple_path(json_path, &at.child("JSONPath"), errors);
        }
    }
}

/// Whether a path is one; says why not.
fn simple_path(text: &str, path: &Path, errors: &mut Errors) -> bool {
    if !text.starts_with('.') {
        errors.push(Error::invalid(path, text, "must be a simple json path starting with ."));
        return false;
    }
    true
}

fn scale(version: &Value, path: &Path, errors: &mut Errors) {
    let Some(scale) = tree::get(version, "subresources.scale") else {
        return;
    };
    for (field, root) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let text = tree::text(scale, field);
        let at = path.child(&format!("scale.{field}"));
        if text.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if simple_path(text, &at, errors) && !text.starts_with(root) {
            let why = format!("should be a json path under {}", root.trim_end_matches('.'));
            errors.push(Error::invalid(&at, text, why));
        }
    }
    let selector = tree::text(scale, "labelSelectorPath");
    let at = path.child("scale.labelSelectorPath");
    if !selector.is_empty()
        && simple_path(selector, &at, errors)
        && !selector.starts_with(".spec.")
        && !selector.starts_with(".status.")
    {
        errors.push(Error::invalid(
            &at,
            selector,
            "should be a json path under either .spec or .status",
        ));
    }
}

fn selectable_fields(version: &Value, options: &Options, no_schema: &str, path: &Path, errors: &mut Errors) {
    let fields = tree::items(version, "selectableFields");
    if fields.is_empty() {
        return;
    }
    let Some(Ok(schema)) = tree::get(version, "schema.openAPIV3Schema").map(Schema::parse) else {
        errors.push(Error::invalid(path, "", no_schema));
        return;
    };
    let mut known = BTreeSet::new();
    for (index, field) in fields.iter().enumerate() {
        let text = tree::text(field, "jsonPath");
        let at = path.index(index).child("jsonPath");
        if text.is_empty() {
            errors.push(Error::required(&at, ""));
            continue;
        }
        let found = match schemas::field_path(text, &schema, false) {
            Ok(found) => found,
            Err(why) => {
                errors.push(Error::invalid(&at, text, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if found.names.first().is_some_and(|first| first == "metadata") {
            errors.push(Error::invalid(&at, text, "must not point to fields in metadata"));
        }
        if !matches!(found.schema.ty.as_str(), "string" | "boolean" | "integer") {
            errors.push(Error::invalid(
                &at,
                text,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ));
        }
        if !known.insert(found.shown) {
            errors.push(Error::duplicate(&at, text));
        }
    }
    let name = tree::text(version, "name");
    if known.len() > MOST_FIELDS && !options.many_fields.iter().any(|allowed| allowed == name) {
        errors.push(Error::too_many(path, known.len(), MOST_FIELDS));
    }
}

/// No version is given up while objects may still be stored in it.
fn stored_versions(object: &Object, errors: &mut Errors) {
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
    let versions = tree::items(object, "spec.versions");
    let mut left: BTreeSet<&str> = stored.iter().filter_map(Value::as_str).collect();
    for version in versions {
        let name = tree::text(version, "name");
        // Each counts for one version.
        if !left.remove(name) && tree::flag(version, "storage") {
            errors.push(Error::invalid(
                &path,
                stored.to_vec(),
                format!("must have the storage version {name}"),
            ));
        }
    }
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

/// Whether a group is the community's own.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|owner| group == *owner || group.strip_suffix(owner).is_some_and(|rest| rest.ends_with('.')))
}

/// What the approval annotation says, as a condition's status and reason has it, and the message.
pub fn approval_state(object: &Object) -> (&'static str, &'static str, String) {
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let stated = tree::annotation(object, APPROVAL);
    let shown = quote(APPROVAL);
    let is_url = stated
        .split_once("://")
        .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.split('/').next().unwrap_or_default().is_empty());
    if stated.is_empty() {
        let why = format!("protected groups must have approval annotation {shown}, {SEE}");
        ("False", "MissingAnnotation", why)
    } else if stated.starts_with("unapproved") {
        (
            "False",
            "UnapprovedAnnotation",
            format!("not approved: {}", quote(stated)),
        )
    } else if is_url {
        ("True", "ApprovedAnnotation", format!("approved in {stated}"))
    } else {
        let why = format!(
            "protected groups must have approval annotation {shown} with either a URL or a reason starting with \"unapproved\", {SEE}"
        );
        ("False", "InvalidAnnotation", why)
    }
}

fn approval(object: &Object, old: Option<&Object>, errors: &mut Errors) {
    if !is_protected(tree::text(object, "spec.group")) {
        return;
    }
    let (_, reason, why) = approval_state(object);
    if old.is_some_and(|old| approval_state(old).1 == reason) {
        return;
    }
    let at = Path::new("metadata").child("annotations").key(APPROVAL);
    match reason {
        "MissingAnnotation" => errors.push(Error::required(&at, why)),
        "InvalidAnnotation" => errors.push(Error::invalid(&at, tree::annotation(object, APPROVAL), why)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::{said, strategies};
    use super::*;
    use crate::spec::Strategy;
    use serde_json::json;

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

    fn good() -> Value {
        let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties":
            {"spec": {"type": "object", "properties": {"color": {"type": "string"}, "size": {"type": "integer"}, "list": {"type": "array", "items": {"type": "string"}}}}}}}});
        json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"}, "versions": [version]}})
    }

    #[test]
    fn every_part_has_its_words() {
        type Change = fn(&mut Value);
        let cases: Vec<(Change, &[&str])> = vec![
            (|_| {}, &[]),
            (
                |crd| crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({}),
                &[
                    "spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields",
                ],
            ),
            (
                |crd| {
                    crd["spec"]["versions"][0]["additionalPrinterColumns"] =
                        json!([{"name": "A", "type": "text", "jsonPath": "spec"}])
                },
                &[
                    "spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
                    "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting with .",
                ],
            ),
            (
                |crd| {
                    crd["spec"]["versions"][0]["subresources"] =
                        json!({"scale": {"specReplicasPath": ".status.x", "statusReplicasPath": ".status.y"}})
                },
                &[
                    "spec.subresources.scale.specReplicasPath: Invalid value: \".status.x\": should be a json path under .spec",
                ],
            ),
            (
                |crd| crd["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.color"}, {"jsonPath": ".spec.list"}, {"jsonPath": ".spec.none"}, {"jsonPath": ".spec.color"}]),
                &[
                    "spec.selectableFields[1].jsonPath: Invalid value: \".spec.list\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                    "spec.selectableFields[2].jsonPath: Invalid value: \".spec.none\": is an invalid path: does not refer to a valid field",
                    "spec.selectableFields[3].jsonPath: Duplicate value: \".spec.color\"",
                ],
            ),
            (
                |crd| crd["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "http://u@h/?q"}, "conversionReviewVersions": ["v2"]}}),
                &[
                    "spec.conversion.webhookClientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
                    "spec.conversion.webhookClientConfig.url: Invalid value: \"u\": user information is not permitted in the URL",
                    "spec.conversion.webhookClientConfig.url: Invalid value: \"q\": query parameters are not permitted in the URL",
                    "spec.conversion.conversionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
                ],
            ),
            (
                |crd| {
                    crd["spec"]["group"] = "x.k8s.io".into();
                    crd["metadata"]["name"] = "things.x.k8s.io".into();
                },
                &[
                    "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
                ],
            ),
            (
                |crd| crd["spec"]["preserveUnknownFields"] = true.into(),
                &[
                    "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
                ],
            ),
            (
                |crd| crd["spec"]["names"]["shortNames"] = json!(["A"]),
                &[
                    "spec.names.shortNames[0]: Invalid value: \"A\": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                |crd| crd["spec"]["versions"][0]["deprecationWarning"] = "x".into(),
                &["spec.versions[0].deprecationWarning: Invalid value: \"x\": can only be set for deprecated versions"],
            ),
        ];
        for (change, wanted) in cases {
            let mut crd = good();
            change(&mut crd);
            assert_eq!(said(&strategies::DEFINITION, crd), wanted);
        }
    }

    #[test]
    fn updates_keep_what_may_not_change() {
        let mut old = good();
        strategies::DEFINITION.default(&mut old);
        strategies::DEFINITION.prepare_create(&mut old);
        old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
        let mut new = old.clone();
        new["spec"]["scope"] = "Cluster".into();
        new["spec"]["versions"][0]["name"] = "v2".into();
        let said: Vec<String> = strategies::DEFINITION
            .validate_update(Part::Main, &new, &old)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(said[0], "spec.scope: Invalid value: \"Cluster\": field is immutable");
        assert!(said[1].contains("must have the storage version v2"), "{said:?}");
        assert!(
            said[2].starts_with("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions"),
            "{said:?}"
        );
    }

    #[test]
    fn bundles_of_established_definitions_stay_good() {
        let with = |bundle: &str| {
            let mut crd = good();
            strategies::DEFINITION.default(&mut crd);
            strategies::DEFINITION.prepare_create(&mut crd);
            crd["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": {"url": "https://example.com/convert", "caBundle": bundle}}});
            crd
        };
        let established = |bundle: &str| {
            let mut crd = with(bundle);
            crd["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
            crd
        };
        let said = |new: &Value, old: &Value| -> Vec<String> {
            let errors = strategies::DEFINITION.validate_update(Part::Main, new, old);
            errors.iter().map(ToString::to_string).collect()
        };
        // "junk" and "more"
        let (junk, other) = ("anVuaw==", "bW9yZQ==");
        assert_eq!(
            said(&established(junk), &established("")),
            [
                "spec.conversion.webhookClientConfig.caBundle: Invalid value: \"anVuaw==\": unable to load root certificates: unable to parse bytes as PEM block"
            ]
        );
        assert_eq!(said(&established(junk), &established(other)), Vec::<String>::new());
        assert_eq!(said(&with(junk), &with("")), Vec::<String>::new());
    }
}
