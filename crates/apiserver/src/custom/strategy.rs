//! The rules of a custom kind, from its schema: defaults, validation, what its status may change.

use sampan_api::schema::{Struct, Type};
use sampan_api::{Object, field, names};
use sampan_kinds::{Part, STATUS_KEEPS_METADATA, Strategy, keep_metadata, keep_other_parts};
use serde_json::Value;

use super::validate;

/// For rows before their custom strategy is asked: names only.
pub static PLAIN: Plain = Plain;

pub struct Plain;

impl Strategy for Plain {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::name_is_dns_subdomain(name, prefix)
    }
}

pub struct CustomStrategy {
    ty: Type,
    schema: Option<Value>,
    has_status: bool,
}

impl CustomStrategy {
    pub fn new(ty: Type, schema: Option<Value>, has_status: bool) -> Self {
        CustomStrategy { ty, schema, has_status }
    }

    fn check(&self, object: &Object) -> field::Errors {
        let mut errors = field::Errors::new();
        if let Some(schema) = &self.schema {
            validate::object(schema, object, &mut errors);
        }
        errors
    }
}

impl Strategy for CustomStrategy {
    fn default(&self, object: &mut Object) {
        fill(&self.ty, object);
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
        }
        if part != Part::Main {
            keep_metadata(STATUS_KEEPS_METADATA, new, old);
        }
    }

    fn reset_fields(&self, part: Part<'_>) -> &'static [&'static str] {
        match part {
            Part::Main if self.has_status => &["status"],
            Part::Main => &[],
            Part::View(_) => STATUS_KEEPS_METADATA,
        }
    }

    fn validate_create(&self, object: &Object) -> field::Errors {
        self.check(object)
    }

    fn validate_update(&self, _: Part<'_>, new: &Object, _: &Object) -> field::Errors {
        self.check(new)
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::name_is_dns_subdomain(name, prefix)
    }
}

/// Structural defaults: a missing field, or a null one that may not be null, gets its default.
fn fill(ty: &Type, value: &mut Value) {
    match (ty, value) {
        (Type::Struct(own), Value::Object(map)) => fill_fields(own, map),
        (Type::List(list), Value::Array(items)) => items.iter_mut().for_each(|item| fill(&list.items, item)),
        (Type::Map(below), Value::Object(map)) => map.values_mut().for_each(|value| fill(&below.values, value)),
        _ => {}
    }
}

fn fill_fields(own: &Struct, map: &mut serde_json::Map<String, Value>) {
    for field in &own.fields {
        if let Some(default) = &field.default {
            let missing = match map.get(field.name.as_ref()) {
                None => true,
                Some(Value::Null) => !field.nullable,
                Some(_) => false,
            };
            if missing {
                map.insert(field.name.to_string(), (**default).clone());
            }
        }
        if let Some(value) = map.get_mut(field.name.as_ref()) {
            fill(&field.ty, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampan_api::schema::structural;
    use serde_json::json;

    #[test]
    fn defaults_go_where_something_is_missing() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": {
            "replicas": {"type": "integer", "default": 1},
            "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}}}}}});
        let strategy = CustomStrategy::new(structural::of_kind(&schema).unwrap(), None, false);
        let mut object = json!({"metadata": {}});
        strategy.default(&mut object);
        assert_eq!(object["spec"], json!({"replicas": 1}));
        let mut object = json!({"spec": {"replicas": null, "list": [{}, {"p": "UDP"}]}});
        strategy.default(&mut object);
        assert_eq!(
            object["spec"],
            json!({"replicas": 1, "list": [{"p": "TCP"}, {"p": "UDP"}]})
        );
    }
}
