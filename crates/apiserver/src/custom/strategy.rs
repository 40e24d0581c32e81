//! The rules of a custom kind, from its schema: defaults, validation, what its status may change.

use std::sync::Arc;

use sampan_api::field::{Error, Errors, Kind, Path};
use sampan_api::{Object, meta, names};
use sampan_kinds::{Part, STATUS_KEEPS_METADATA, ScalePaths, Strategy, keep_metadata, keep_other_parts};
use sampan_structural::{Rules, Schema, defaults, embedded, lists, values};
use serde_json::Value;

use super::go_type;

/// For rows before their custom strategy is asked: names only.
pub static PLAIN: Plain = Plain;

pub struct Plain;

impl Strategy for Plain {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::name_is_dns_subdomain(name, prefix)
    }
}

pub struct CustomStrategy {
    pub schema: Option<Arc<Schema>>,
    /// The schema's CEL rules, if it has any.
    pub rules: Option<Rules>,
    pub has_status: bool,
    pub scale: Option<ScalePaths>,
    /// `group/version`
    pub api_version: String,
    pub kind: String,
}

impl CustomStrategy {
    /// What kind an object is, is not for its writer to say.
    fn types(&self, object: &Object) -> Errors {
        let mut errors = Errors::new();
        for (field, wanted) in [("kind", &self.kind), ("apiVersion", &self.api_version)] {
            let stated = object.get(field).and_then(Value::as_str).unwrap_or_default();
            if stated != wanted {
                errors.push(Error::invalid(&Path::new(field), stated, format!("must be {wanted}")));
            }
        }
        errors
    }

    fn check(&self, part: Part<'_>, new: &Object, old: Option<&Object>) -> Errors {
        let mut errors = self.types(new);
        if !errors.is_empty() {
            return errors;
        }
        let here = Path::default();
        if let Some(schema) = &self.schema {
            match part {
                Part::Main => values::check(schema, new, old, &here, &mut errors),
                Part::View(_) => {
                    if let (Some(below), Some(status)) = (schema.properties.get("status"), new.get("status")) {
                        let old = old.and_then(|old| old.get("status"));
                        values::check(below, status, old, &Path::new("status"), &mut errors);
                    }
                }
            }
        }
        self.scale_numbers(part, new, &mut errors);
        if let Some(schema) = &self.schema {
            if part == Part::Main {
                embedded::check(schema, new, false, &here, &mut errors);
            }
            let mut repeated = Errors::new();
            lists::check(schema, new, &here, &mut repeated);
            if !repeated.is_empty() {
                let mut before = Errors::new();
                if let Some(old) = old {
                    lists::check(schema, old, &here, &mut before);
                }
                if before.is_empty() {
                    errors.extend(repeated);
                }
            }
            if let Some(rules) = &self.rules {
                if blocks_rules(&errors) {
                    errors.push(Error::invalid(&here, Value::Null, UNCHECKED));
                } else {
                    rules.check(schema, new, old, true, &here, &mut errors);
                }
            }
        }
        errors
    }

    fn scale_numbers(&self, part: Part<'_>, object: &Object, errors: &mut Errors) {
        let Some(paths) = &self.scale else { return };
        let mut number = |dotted: &str| {
            let found = object.pointer(&format!("/{}", dotted.replace('.', "/")));
            let path = Path::new(&format!(".{dotted}"));
            match found {
                None => {}
                Some(value) => match value.as_i64() {
                    None => errors.push(Error::invalid(
                        &path,
                        0,
                        format!(
                            ".{dotted} accessor error: {value} is of the type {}, expected int64",
                            go_type(value)
                        ),
                    )),
                    Some(own) if own < 0 => {
                        errors.push(Error::invalid(&path, own, "should be a non-negative integer"));
                    }
                    Some(own) if own > i64::from(i32::MAX) => errors.push(Error::invalid(
                        &path,
                        own,
                        format!("should be less than or equal to {}", i32::MAX),
                    )),
                    Some(_) => {}
                },
            }
        };
        if part == Part::Main {
            number(paths.spec_replicas);
        }
        number(paths.status_replicas);
        if !paths.selector.is_empty()
            && let Some(value) = object.pointer(&format!("/{}", paths.selector.replace('.', "/")))
            && !value.is_string()
        {
            errors.push(Error::invalid(
                &Path::new(&format!(".{}", paths.selector)),
                "",
                format!(
                    ".{} accessor error: {value} is of the type {}, expected string",
                    paths.selector,
                    go_type(value)
                ),
            ));
        }
    }
}

const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// Whether an error makes rules meaningless: they are not run then, and the client is told so.
fn blocks_rules(errors: &Errors) -> bool {
    errors.iter().any(|error| {
        matches!(
            error.kind,
            Kind::NotSupported | Kind::Required | Kind::TooLong | Kind::TooMany | Kind::TypeInvalid
        )
    })
}

impl Strategy for CustomStrategy {
    fn default(&self, object: &mut Object) {
        if let Some(schema) = &self.schema {
            defaults::drop_nulls(schema, object);
            defaults::fill(schema, object);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        if self.has_status
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
    }

    fn prepare_update(&self, part: Part<'_>, new: &mut Object, old: &Object) {
        if self.has_status || part != Part::Main {
            keep_other_parts(part, new, old);
        } else if new.get("status") != old.get("status") {
            // Without a subresource the status is content like any other.
            let next = meta::generation(old) + 1;
            meta::set_generation(new, next);
        }
        if part != Part::Main {
            keep_metadata(STATUS_KEEPS_METADATA, new, old);
        }
    }

    fn reset_fields(&self, part: Part<'_>) -> &'static [&'static str] {
        match part {
            Part::Main if self.has_status => &["status"],
            Part::View("status") => STATUS_KEEPS_METADATA,
            Part::Main | Part::View(_) => &[],
        }
    }

    fn validate_create(&self, object: &Object) -> Errors {
        self.check(Part::Main, object, None)
    }

    fn validate_update(&self, part: Part<'_>, new: &Object, old: &Object) -> Errors {
        self.check(part, new, Some(old))
    }

    fn warnings(&self, object: &Object) -> Vec<String> {
        // Upstream warns of finalizers that are added; what was there is not known here, so only a new object's.
        if !meta::resource_version(object).is_empty() {
            return Vec::new();
        }
        let mut finalizers: Vec<&str> = meta::finalizers(object).collect();
        finalizers.sort_unstable();
        finalizers.into_iter().flat_map(finalizer_warnings).collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::name_is_dns_subdomain(name, prefix)
    }
}

fn finalizer_warnings(name: &str) -> Vec<String> {
    const PATH: &str = "metadata.finalizers";
    let mut found: Vec<String> = names::qualified_name(name)
        .into_iter()
        .map(|why| format!("{PATH}: {name:?}: {why}"))
        .collect();
    if !name.contains('/') && !matches!(name, "orphan" | "foregroundDeletion" | "kubernetes") {
        let why = if name.contains('.') {
            "prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers"
        } else {
            "prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers"
        };
        found.push(format!("{PATH}: {name:?}: {why}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn strategy(schema: Value, has_status: bool) -> CustomStrategy {
        let parsed = Schema::parse(&schema).unwrap();
        CustomStrategy {
            rules: Rules::of(&schema, &parsed, true),
            schema: Some(Arc::new(parsed)),
            has_status,
            scale: Some(ScalePaths {
                spec_replicas: "spec.replicas",
                status_replicas: "status.replicas",
                selector: "status.selector",
            }),
            api_version: "g.x/v1".into(),
            kind: "K".into(),
        }
    }

    #[test]
    fn every_rule_has_its_say() {
        let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": "!has(self.status) || !has(self.status.replicas) || self.status.replicas != 3"}],
            "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}},
            "status": {"type": "object", "properties": {"replicas": {"type": "integer", "maximum": 5}, "selector": {"type": "string"}}}}});
        let strategy = strategy(schema, true);
        let object = |spec: Value, status: Value| json!({"apiVersion": "g.x/v1", "kind": "K", "metadata": {"name": "x"}, "spec": spec, "status": status});
        let said = |errors: Errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(said(strategy.validate_create(&object(json!({"replicas": 1}), json!({})))).is_empty());
        assert_eq!(
            said(strategy.validate_create(&object(json!({"replicas": -1, "set": ["a", "a"]}), json!({})))),
            [
                ".spec.replicas: Invalid value: -1: should be a non-negative integer",
                "spec.set[1]: Duplicate value: \"a\"",
            ]
        );
        let old = object(json!({"set": ["a", "a"]}), json!({}));
        assert!(
            said(strategy.validate_update(Part::Main, &object(json!({"set": ["b", "b"]}), json!({})), &old)).is_empty()
        );
        assert_eq!(
            said(strategy.validate_update(Part::View("status"), &object(json!({}), json!({"replicas": 6})), &old)),
            ["status.replicas: Invalid value: 6: replicas in body should be less than or equal to 5"]
        );
        assert_eq!(
            said(strategy.validate_update(Part::View("status"), &object(json!({}), json!({"replicas": 3})), &old)),
            [
                "<nil>: Invalid value: failed rule: !has(self.status) || !has(self.status.replicas) || self.status.replicas != 3"
            ]
        );
        assert_eq!(
            said(strategy.validate_update(Part::View("status"), &object(json!({}), json!({"replicas": "x"})), &old))
                .last()
                .map(String::as_str),
            Some(
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
            )
        );
        assert_eq!(
            said(strategy.validate_create(&json!({"apiVersion": "g.x/v2", "kind": "K"}))),
            ["apiVersion: Invalid value: \"g.x/v2\": must be g.x/v1"]
        );
        assert_eq!(
            finalizer_warnings("x"),
            [
                "metadata.finalizers: \"x\": prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers"
            ]
        );
    }
}
