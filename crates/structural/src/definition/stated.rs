//! Defaults must be good values themselves.

use sampan_api::field::{Error, Errors, Path};
use serde_json::Value;

use crate::rules::Rules;
use crate::schema::Schema;
use crate::{defaults, embedded, values};

/// Checks every default of a whole object's schema.
pub(super) fn check(stated: &Value, schema: &Schema, pruned: bool, path: &Path, errors: &mut Errors) {
    let place = Place {
        root: true,
        inside: false,
        pruned,
    };
    walk(stated, schema, place, path, errors);
}

#[derive(Clone, Copy)]
struct Place {
    /// The schema is of a whole object.
    root: bool,
    /// Below the metadata or type of one.
    inside: bool,
    pruned: bool,
}

fn walk(stated: &Value, schema: &Schema, place: Place, path: &Path, errors: &mut Errors) {
    let inside = place.inside && !schema.embedded;
    if let Some(default) = &schema.default {
        let at = path.child("default");
        let before = errors.len();
        let mut good = true;
        if !inside {
            let mut bare = default.clone();
            if place.pruned {
                defaults::prune(schema, &mut bare, schema.embedded);
                if bare != *default {
                    errors.push(Error::invalid(&at, default.clone(), "must not have unknown fields"));
                }
            }
            let whole = errors.len();
            embedded::check(schema, default, schema.embedded || place.root, &at, errors);
            good = errors.len() == whole;
        }
        if good {
            values::check(schema, default, None, &at, errors);
        }
        if errors.len() == before
            && let Some(rules) = Rules::of(stated, schema, place.root)
        {
            // As a value that stays, and as one that is new.
            rules.check(schema, default, Some(default), false, &at, errors);
            if errors.len() == before {
                rules.check(schema, default, None, false, &at, errors);
            }
        }
    }
    // Defaults below additionalProperties are refused elsewhere.
    let below = Place {
        root: false,
        inside,
        ..place
    };
    if let (Some(items), Some(stated)) = (&schema.items, stated.get("items")) {
        walk(stated, items, below, &path.child("items"), errors);
    }
    for (name, property) in &schema.properties {
        let Some(stated) = stated.get("properties").and_then(|all| all.get(name)) else {
            continue;
        };
        let whole = place.root || schema.embedded;
        let below = Place {
            inside: inside || (whole && matches!(name.as_str(), "metadata" | "apiVersion" | "kind")),
            ..below
        };
        walk(stated, property, below, &path.child("properties").key(name), errors);
    }
}

/// Whether a stored schema has defaults with unknown fields.
pub(super) fn has_unpruned(schema: &Value) -> bool {
    let Ok(parsed) = Schema::parse(schema) else {
        return false;
    };
    parsed.any(&|schema| {
        schema.default.as_ref().is_some_and(|default| {
            let mut bare = default.clone();
            defaults::prune(schema, &mut bare, schema.embedded);
            bare != *default
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_must_validate() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
            "default": {"mode": "X", "what": 1}, "properties": {"mode": {"type": "string", "enum": ["A"]},
            "count": {"type": "integer", "default": "x"}, "good": {"type": "integer", "default": 1}}}}});
        let mut errors = Errors::new();
        check(
            &schema,
            &Schema::parse(&schema).unwrap(),
            true,
            &Path::new("s"),
            &mut errors,
        );
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "s.properties[spec].default: Invalid value: {\"mode\":\"X\",\"what\":1}: must not have unknown fields",
                "s.properties[spec].default.mode: Unsupported value: \"X\": supported values: \"A\"",
                "s.properties[spec].properties[count].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
            ]
        );
        assert!(has_unpruned(&schema));
    }
}
