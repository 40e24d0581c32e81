//! CEL rules of a definition: they must compile, and what they can cost must be bearable.
//!
//! A rule's estimate is multiplied by how often its schema can occur in one object: what the limits of the lists
//! and maps above it say, or, without limits, how often the smallest such value fits into a request.

use sampan_api::field::{Error, Errors, Path};
use serde_json::{Value, json};

use crate::rules::{compile, declare};
use crate::schema::{Schema, flag, text};

/// The most one expression may be estimated to cost.
const EXPRESSION: u64 = 10_000_000;
/// The most all expressions of a schema may be estimated to cost.
const TOTAL: u64 = 100_000_000;

/// What is known of a place in the schema.
#[derive(Clone)]
struct Place {
    /// How often it can occur; nothing when there is no limit.
    cardinality: Option<u64>,
    /// The first place above whose values cannot be matched with old ones.
    uncorrelatable: Option<Path>,
    root: bool,
}

struct Walk<'a> {
    /// Whether the limit of one expression is enforced.
    strict: bool,
    total: u64,
    /// The dearest expressions, dearest first.
    dearest: Vec<(u64, Path)>,
    errors: &'a mut Errors,
}

/// Checks every rule of a sound schema.
pub(super) fn check(schema: &Value, strict: bool, path: &Path, errors: &mut Errors) {
    let mut walk = Walk {
        strict,
        total: 0,
        dearest: Vec::new(),
        errors,
    };
    let place = Place {
        cardinality: Some(1),
        uncorrelatable: None,
        root: true,
    };
    walk.node(schema, &place, path);
    let (total, dearest) = (walk.total, walk.dearest);
    if total > TOTAL {
        for (_, place) in dearest {
            errors.push(Error::forbidden(
                &place,
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
            ));
        }
        errors.push(Error::forbidden(
            path,
            exceeds(
                "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema",
                total,
                TOTAL,
            ),
        ));
    }
}

fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// How many values there can be below one value of a schema.
fn below(schema: &Value) -> Option<u64> {
    let limit = |key: &str| {
        let stated = schema.get(key)?;
        stated.as_u64().or_else(|| stated.as_i64().map(|_| 0))
    };
    match text(schema, "type") {
        "object" if schema.get("additionalProperties").is_some_and(|value| !value.is_null()) => limit("maxProperties"),
        "array" => limit("maxItems"),
        _ => Some(1),
    }
}

impl Walk<'_> {
    fn node(&mut self, schema: &Value, place: &Place, path: &Path) {
        let child = Place {
            cardinality: place
                .cardinality
                .zip(below(schema))
                .map(|(all, each)| all.saturating_mul(each)),
            uncorrelatable: place.uncorrelatable.clone(),
            root: false,
        };
        if let Some(additional) = schema.get("additionalProperties").filter(|value| value.is_object()) {
            self.node(additional, &child, &path.child("additionalProperties"));
        }
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            self.node(property, &child, &path.child("properties").key(name));
        }
        if let Some(items) = schema.get("items").filter(|value| value.is_object()) {
            let mut child = child;
            if text(schema, "x-kubernetes-list-type") != "map" {
                child.uncorrelatable.get_or_insert_with(|| path.clone());
            }
            self.node(items, &child, &path.child("items"));
        }
        self.rules(schema, place, path);
    }

    fn rules(&mut self, stated: &Value, place: &Place, path: &Path) {
        let Ok(schema) = Schema::parse(stated) else { return };
        if schema.rules.is_empty() {
            return;
        }
        let all = path.child("x-kubernetes-validations");
        let root = place.root || flag(stated, "x-kubernetes-embedded-resource");
        let Some(decl) = declare(stated, root) else {
            self.errors.push(Error::internal(
                &all,
                "internal error: failed to retrieve type information for x-kubernetes-validations",
            ));
            return;
        };
        let times = place.cardinality.unwrap_or_else(|| decl.max_cardinality());
        for (index, rule) in schema.rules.iter().enumerate() {
            let at = all.index(index);
            let shown = || {
                json!({"Rule": rule.rule, "Message": rule.message, "MessageExpression": rule.message_expression,
                    "Reason": rule.reason, "FieldPath": rule.field_path,
                    "OptionalOldSelf": stated.pointer(&format!("/x-kubernetes-validations/{index}/optionalOldSelf"))})
            };
            let made = compile(rule, &decl);
            let uses_old = made.rule.as_ref().is_ok_and(|program| program.uses("oldSelf"));
            match &made.rule {
                Err(why) => self
                    .errors
                    .push(Error::invalid(&at.child("rule"), shown(), why.as_str())),
                Ok(program) => self.observe(
                    "estimated rule cost",
                    program.cost().max.saturating_mul(times),
                    &at.child("rule"),
                ),
            }
            match &made.message {
                Some(Err(why)) => {
                    self.errors
                        .push(Error::invalid(&at.child("messageExpression"), shown(), why.as_str()));
                }
                Some(Ok(program)) => self.observe(
                    "estimated messageExpression cost",
                    program.cost().max,
                    &at.child("messageExpression"),
                ),
                None => {}
            }
            let optional = stated.pointer(&format!("/x-kubernetes-validations/{index}/optionalOldSelf"));
            match (&place.uncorrelatable, optional) {
                (Some(within), _) if uses_old => self.errors.push(Error::invalid(
                    &at.child("rule"),
                    rule.rule.as_str(),
                    format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"),
                )),
                (_, Some(optional)) if !uses_old && !optional.is_null() => self.errors.push(Error::invalid(
                    &at.child("optionalOldSelf"),
                    optional.clone(),
                    "may not be set if oldSelf is not used in rule",
                )),
                _ => {}
            }
        }
    }

    fn observe(&mut self, what: &str, cost: u64, at: &Path) {
        if self.strict && cost > EXPRESSION {
            self.errors.push(Error::forbidden(at, exceeds(what, cost, EXPRESSION)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= TOTAL / 100 {
            self.dearest.push((cost, at.clone()));
            self.dearest.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            self.dearest.truncate(4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(schema: Value) -> Vec<String> {
        let mut errors = Errors::new();
        check(&schema, true, &Path::new("s"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_must_compile_and_be_bearable() {
        let spec = |spec: Value| json!({"type": "object", "properties": {"spec": spec}});
        let p = "s.properties[spec].x-kubernetes-validations[0]";
        assert!(said(spec(json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "self.a > oldSelf.a"}]}))).is_empty());
        let wrong = said(spec(
            json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "self.b > 1"}]}),
        ));
        assert!(wrong[0].starts_with(&format!("{p}.rule: Invalid value: ")), "{wrong:?}");
        assert!(
            wrong[0].contains("compilation failed: ERROR: <input>:1:5: undefined field 'b'"),
            "{wrong:?}"
        );
        let wrong = said(spec(
            json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self + 1"}]}),
        ));
        assert!(
            wrong[0].ends_with("cel expression must evaluate to a bool"),
            "{wrong:?}"
        );
        let list = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, a == b))"}]});
        let dear = said(spec(list.clone()));
        assert_eq!(dear.len(), 3, "{dear:?}");
        assert_eq!(
            dear[0],
            format!(
                "{p}.rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
            )
        );
        assert!(
            dear[1]
                .ends_with("contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema")
        );
        let mut bounded = list;
        bounded["maxItems"] = 10.into();
        bounded["items"]["maxLength"] = 10.into();
        assert!(said(spec(bounded)).is_empty());
        let items = json!({"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}});
        assert_eq!(
            said(spec(items)),
            [
                "s.properties[spec].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[spec]"
            ]
        );
        let unused =
            json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self > 1", "optionalOldSelf": true}]});
        assert_eq!(
            said(spec(unused)),
            [format!(
                "{p}.optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"
            )]
        );
    }
}
