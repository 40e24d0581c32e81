//! What Go prints of an object though nobody has given it: lists, times and pointers without `omitempty` as null,
//! structs by value, zeros. [`complete`] puts all of it into a tree on its way to the store, to a client, a webhook or
//! under a JSON patch; [`bare`] takes the nulls out again, so that rules only ever see what is there; [`settle`]
//! makes two trees comparable, whichever of the zeros was written.

use serde_json::Value;

use super::check::zero;
use crate::schema::{self, Field, Printed, Type};
use crate::{Object, meta};

/// Puts into a tree of a built-in kind what Go prints anyway. Other trees stay as they are.
pub fn complete(object: &mut Object) {
    if let Some(ty) = type_of(object) {
        complete_value(&ty, object);
    }
}

/// Takes the nulls of what is not there out of a tree of a built-in kind.
pub fn bare(object: &mut Object) {
    if let Some(ty) = type_of(object) {
        bare_value(&ty, object);
    }
}

/// Makes of a tree what a reader will find when it has been stored: all zeros, no nulls.
pub fn settle(object: &mut Object) {
    if let Some(ty) = type_of(object) {
        complete_value(&ty, object);
        bare_value(&ty, object);
    }
}

/// The tree of stored bytes, without the nulls of what is not there.
pub fn read(bytes: &[u8]) -> Object {
    let mut object = serde_json::from_slice(bytes).unwrap_or(Object::Null);
    bare(&mut object);
    object
}

/// What Go prints of a field that is not there.
pub fn absent(field: &Field) -> Option<Value> {
    match field.printed {
        Printed::Nothing => None,
        Printed::Zero => Some(zero(&field.ty)),
        Printed::Null => Some(Value::Null),
    }
}

fn type_of(object: &Object) -> Option<Type> {
    let schema = schema::builtin();
    let definition = schema.api_kind(meta::api_version(object), meta::kind(object))?;
    schema.type_of(&definition.name)
}

fn complete_value(ty: &Type, value: &mut Value) {
    match (ty, value) {
        (Type::List(list), Value::Array(items)) if !list.items.is_leaf() => {
            items.iter_mut().for_each(|item| complete_value(&list.items, item));
        }
        (Type::Map(map), Value::Object(values)) if !map.values.is_leaf() => {
            values.values_mut().for_each(|item| complete_value(&map.values, item));
        }
        (Type::Def(_), Value::Object(map)) => {
            let Some(below) = ty.as_struct() else {
                return;
            };
            for (key, value) in map.iter_mut() {
                match below.field(key) {
                    // Go's storage keeps no empty lists and maps: they come back as none. What is pointed to stays.
                    Some(field) if field.printed == Printed::Null && holds_nothing(&field.ty, value) => {
                        *value = Value::Null;
                    }
                    Some(field) => complete_value(&field.ty, value),
                    None => {}
                }
            }
            for field in &below.fields {
                if field.printed != Printed::Nothing && !map.contains_key(field.name.as_ref()) {
                    let mut value = absent(field).unwrap_or_default();
                    complete_value(&field.ty, &mut value);
                    map.insert(field.name.clone().into_owned(), value);
                }
            }
        }
        _ => {}
    }
}

fn bare_value(ty: &Type, value: &mut Value) {
    match (ty, value) {
        (Type::List(list), Value::Array(items)) if !list.items.is_leaf() => {
            items.iter_mut().for_each(|item| bare_value(&list.items, item));
        }
        (Type::Map(map), Value::Object(values)) if !map.values.is_leaf() => {
            values.values_mut().for_each(|item| bare_value(&map.values, item));
        }
        (Type::Def(_), Value::Object(map)) => {
            let Some(below) = ty.as_struct() else {
                return;
            };
            map.retain(|key, value| {
                let Some(field) = below.field(key) else {
                    return true;
                };
                if value.is_null() {
                    return field.printed != Printed::Null;
                }
                bare_value(&field.ty, value);
                true
            });
        }
        _ => {}
    }
}

/// An empty list or map.
fn holds_nothing(ty: &Type, value: &Value) -> bool {
    match (ty, value) {
        (Type::List(_) | Type::Strings, Value::Array(items)) => items.is_empty(),
        (Type::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_there_is_printed_and_taken_out_again() {
        // The tree, what is printed, what is left without the nulls.
        let rbac = "rbac.authorization.k8s.io/v1";
        for (tree, printed, without) in [
            (
                json!({"apiVersion": rbac, "kind": "Role", "metadata": {"name": "a"}}),
                json!({"apiVersion": rbac, "kind": "Role", "metadata": {"name": "a"}, "rules": null}),
                json!({"apiVersion": rbac, "kind": "Role", "metadata": {"name": "a"}}),
            ),
            (
                json!({"apiVersion": rbac, "kind": "Role", "metadata": {}, "rules": []}),
                json!({"apiVersion": rbac, "kind": "Role", "metadata": {}, "rules": null}),
                json!({"apiVersion": rbac, "kind": "Role", "metadata": {}}),
            ),
            (
                json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {}}),
                json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {}, "spec": {"drivers": null}}),
                json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {}, "spec": {}}),
            ),
            (
                json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {},
                    "spec": {"drivers": [{"name": "d", "nodeID": "n"}]}}),
                json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {},
                    "spec": {"drivers": [{"name": "d", "nodeID": "n", "topologyKeys": null}]}}),
                json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {},
                    "spec": {"drivers": [{"name": "d", "nodeID": "n"}]}}),
            ),
            (
                json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {}, "spec": {"selector": {},
                    "serviceName": "", "template": {"metadata": {}, "spec": {"containers": []}}, "updateStrategy": {}},
                    "status": {"availableReplicas": 0, "replicas": 0}}),
                json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {}, "spec": {"selector": {},
                    "serviceName": "", "template": {"metadata": {}, "spec": {"containers": null}}, "updateStrategy": {}},
                    "status": {"availableReplicas": 0, "replicas": 0}}),
                json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {}, "spec": {"selector": {},
                    "serviceName": "", "template": {"metadata": {}, "spec": {}}, "updateStrategy": {}},
                    "status": {"availableReplicas": 0, "replicas": 0}}),
            ),
            (
                json!({"apiVersion": "example.com/v1", "kind": "Custom", "spec": {"a": null}}),
                json!({"apiVersion": "example.com/v1", "kind": "Custom", "spec": {"a": null}}),
                json!({"apiVersion": "example.com/v1", "kind": "Custom", "spec": {"a": null}}),
            ),
        ] {
            let mut object = tree;
            complete(&mut object);
            assert_eq!(object, printed);
            bare(&mut object);
            assert_eq!(object, without);
            complete(&mut object);
            assert_eq!(object, printed);
            settle(&mut object);
            assert_eq!(object, without);
            assert_eq!(read(printed.to_string().as_bytes()), without);
        }
    }
}
