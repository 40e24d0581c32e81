//! Checks a tree against a type and leaves it as Go's types would print it.
//!
//! Below a built-in type (the whole object, or the metadata of a custom one): a value of a wrong type is an
//! error; unknown fields are reported and dropped; nulls become absent; zeros, empty lists and empty maps of
//! optional fields are dropped unless the zero means something; quantities, times and base64 are validated and
//! made canonical. Below a custom kind's own schema only unknown fields are pruned: its types are validation's
//! business, as upstream has it.
//!
//! Different from upstream: findings come in the order of sorted keys, not of the document.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use crate::quantity::Quantity;
use crate::schema::{self, Field, Printed, Struct, Type};
use crate::{Object, time};

/// What a check noticed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Paths of unknown fields, such as `spec.template.spec.containers[0].imagePullPolicies`.
    pub unknown: Vec<String>,
}

/// A value that does not fit its type; `Display` is Go's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError(String);

impl TypeError {
    pub(super) fn root(value: &Value, go_type: &str) -> Self {
        TypeError(format!(
            "json: cannot unmarshal {} into Go value of type {go_type}",
            json_kind(value)
        ))
    }
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TypeError {}

/// What Go's decoder calls a value.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Checks `object` against `ty`, normalizing it in place.
pub fn check(ty: &Type, object: &mut Object) -> Result<Findings, TypeError> {
    let mut walker = Walker::default();
    if let Type::Struct(own) = ty {
        walker.custom_struct(own, object)?;
    } else {
        walker.value(ty, object)?;
    }
    Ok(Findings {
        unknown: walker.unknown,
    })
}

/// Go keeps at most this many strict errors.
const MOST: usize = 100;

#[derive(Default)]
struct Walker<'a> {
    /// `spec.containers[0]`
    path: String,
    /// Structs and their fields from the root, as Go's error context has them: no keys of maps, no indexes.
    fields: Vec<(&'a str, &'a str)>,
    /// The struct the innermost field belongs to.
    owner: &'a str,
    /// The Go type of the value at hand, where a field names it.
    go: &'a str,
    unknown: Vec<String>,
    /// Inside a value Go decodes apart, where it is not strict.
    lenient: bool,
}

impl<'a> Walker<'a> {
    fn error<T>(&self, what: &str, go_type: &str) -> Result<T, TypeError> {
        Err(TypeError(if self.fields.is_empty() {
            format!("json: cannot unmarshal {what} into Go value of type {go_type}")
        } else {
            format!(
                "json: cannot unmarshal {what} into Go struct field {}.{} of type {go_type}",
                self.owner,
                go_path(&self.fields)
            )
        }))
    }

    fn mismatch<T>(&self, value: &Value, ty: &Type) -> Result<T, TypeError> {
        let what = match (value, ty) {
            (Value::Number(number), Type::Int32 | Type::Int64 | Type::Double) => {
                format!("number {number}")
            }
            _ => json_kind(value).to_owned(),
        };
        let known = go_type(ty);
        self.error(&what, if self.go.is_empty() { &known } else { self.go })
    }

    /// What the Go type at hand says of a list's items or a map's values.
    fn go_items(&mut self) -> &'a str {
        let items = match (self.go.strip_prefix("[]"), self.go.strip_prefix("map[")) {
            (Some(items), _) => items,
            (_, Some(map)) => map.split_once(']').map_or("", |(_, values)| values),
            _ => "",
        };
        std::mem::replace(&mut self.go, items)
    }

    fn enter_key(&mut self, key: &str) -> usize {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        before
    }

    fn enter_index(&mut self, index: usize) -> usize {
        let before = self.path.len();
        self.path.push('[');
        self.path.push_str(&index.to_string());
        self.path.push(']');
        before
    }

    fn report_unknown(&mut self, key: &str) {
        if self.lenient || self.unknown.len() >= MOST {
            return;
        }
        let before = self.enter_key(key);
        let path = self.path.clone();
        self.unknown.push(path);
        self.path.truncate(before);
    }

    /// A value below a built-in type.
    fn value(&mut self, ty: &'a Type, value: &mut Value) -> Result<(), TypeError> {
        match ty {
            Type::Def(_) | Type::Struct(_) => {
                let Some(below) = ty.as_struct() else {
                    return Ok(());
                };
                if value.is_null() {
                    *value = Value::Object(Map::new());
                }
                match value {
                    Value::Object(map) => self.go_struct(below, map),
                    other => self.mismatch(other, ty),
                }
            }
            Type::List(list) => match value {
                Value::Array(items) => {
                    let go = self.go_items();
                    for (index, item) in items.iter_mut().enumerate() {
                        let before = self.enter_index(index);
                        if item.is_null() {
                            *item = zero(&list.items);
                        }
                        self.value(&list.items, item)?;
                        self.path.truncate(before);
                    }
                    self.go = go;
                    Ok(())
                }
                Value::Null => Ok(()),
                other => self.mismatch(other, ty),
            },
            Type::Map(map_type) => match value {
                Value::Object(map) => {
                    let go = self.go_items();
                    for (key, item) in map.iter_mut() {
                        let before = self.enter_key(key);
                        if item.is_null() {
                            *item = zero(&map_type.values);
                        }
                        self.value(&map_type.values, item)?;
                        self.path.truncate(before);
                    }
                    self.go = go;
                    Ok(())
                }
                Value::Null => Ok(()),
                other => self.mismatch(other, ty),
            },
            Type::Strings => match value {
                Value::Array(items) => {
                    for item in items {
                        match item {
                            Value::String(_) => {}
                            Value::Null => *item = Value::String(String::new()),
                            other => return self.mismatch(other, &Type::String),
                        }
                    }
                    Ok(())
                }
                Value::Null => Ok(()),
                other => self.mismatch(other, ty),
            },
            _ => self.leaf(ty, value),
        }
    }

    fn leaf(&mut self, ty: &Type, value: &mut Value) -> Result<(), TypeError> {
        if value.is_null() {
            return Ok(());
        }
        match ty {
            Type::String if value.is_string() => Ok(()),
            Type::Bool if value.is_boolean() => Ok(()),
            Type::Int32 if value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
            Type::Int64 if value.is_i64() => Ok(()),
            Type::Double if value.is_number() => {
                integral(value);
                Ok(())
            }
            Type::Bytes => match value {
                Value::String(text) => {
                    if text.contains(['\r', '\n']) {
                        text.retain(|c| !matches!(c, '\r' | '\n'));
                    }
                    match STANDARD.decode(text.as_bytes()) {
                        Ok(_) => Ok(()),
                        Err(error) => Err(TypeError(base64_fault(text, error))),
                    }
                }
                other => self.mismatch(other, ty),
            },
            Type::IntOrString => match value {
                Value::String(_) => Ok(()),
                other => match other.as_i64() {
                    Some(number) if i32::try_from(number).is_ok() => Ok(()),
                    _ => self.mismatch(other, &Type::Int32),
                },
            },
            Type::Quantity => match Quantity::from_value(value) {
                Ok(quantity) => {
                    *value = Value::String(quantity.to_string());
                    Ok(())
                }
                Err(error) => Err(TypeError(error.to_string())),
            },
            Type::Time | Type::MicroTime => match value {
                Value::String(text) => {
                    let parsed = if matches!(ty, Type::Time) {
                        time::parse(text).map(time::format)
                    } else {
                        time::parse_micro(text).map(time::format_micro)
                    };
                    *text = parsed.map_err(|error| TypeError(error.to_string()))?;
                    Ok(())
                }
                other => self.mismatch(other, &Type::String),
            },
            Type::RawExtension | Type::FieldsV1 | Type::Json => {
                untyped(value);
                Ok(())
            }
            Type::PropsOrArray => match value {
                Value::Object(_) => self.schemas(value),
                Value::Array(items) => items.iter_mut().try_for_each(|item| self.schemas(item)),
                _ => Ok(()),
            },
            Type::PropsOrBool => match value {
                Value::Object(_) => self.schemas(value),
                Value::Bool(_) => Ok(()),
                _ => Err(TypeError("boolean or JSON schema expected".into())),
            },
            Type::PropsOrStrings => match value {
                Value::Object(_) => self.schemas(value),
                Value::Array(items) => match items.iter().find(|item| !item.is_string()) {
                    Some(other) => self.mismatch(other, &Type::String),
                    None => Ok(()),
                },
                _ => Ok(()),
            },
            _ => self.mismatch(value, ty),
        }
    }

    /// A CRD's schema inside one of the `PropsOr…` types, which Go decodes apart and not strictly.
    fn schemas(&mut self, value: &mut Value) -> Result<(), TypeError> {
        let props = schema::builtin()
            .definition("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .and_then(schema::Definition::as_struct);
        let (Some(props), Value::Object(map)) = (props, value) else {
            return Ok(());
        };
        let lenient = std::mem::replace(&mut self.lenient, true);
        let result = self.go_struct(props, map);
        self.lenient = lenient;
        result
    }

    fn go_struct(&mut self, below: &'a Struct, map: &mut Map<String, Value>) -> Result<(), TypeError> {
        let mut failed = None;
        map.retain(|key, value| {
            if failed.is_some() {
                return true;
            }
            let Some(field) = below.field(key) else {
                self.report_unknown(key);
                return false;
            };
            match self.go_field(below, field, value) {
                Ok(keep) => keep,
                Err(error) => {
                    failed = Some(error);
                    true
                }
            }
        });
        // Go prints these whether they were given or not.
        let scalar = |field: &Field| matches!(field.ty, Type::String | Type::Bool | Type::Int32 | Type::Int64);
        let printed = |field: &&Field| field.printed == Printed::Zero && scalar(field);
        for field in below.fields.iter().filter(printed) {
            if !map.contains_key(field.name.as_ref()) {
                map.insert(field.name.clone().into_owned(), zero(&field.ty));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Checks a field's value; answers whether the field stays.
    fn go_field(&mut self, owner: &'a Struct, field: &'a Field, value: &mut Value) -> Result<bool, TypeError> {
        if value.is_null() {
            return Ok(false);
        }
        let before = self.enter_key(&field.name);
        let outer = std::mem::replace(&mut self.owner, &owner.name);
        let go = std::mem::replace(&mut self.go, field.go_type.as_deref().unwrap_or_default());
        self.fields.push((&owner.name, &field.name));
        self.value(&field.ty, value)?;
        self.fields.pop();
        (self.owner, self.go) = (outer, go);
        self.path.truncate(before);
        let printed = field.printed != Printed::Nothing;
        Ok(printed || field.required || field.keep_zero || !is_zero(&field.ty, value))
    }

    /// A value below a custom kind's own schema.
    fn custom(&mut self, ty: &'a Type, value: &mut Value) -> Result<(), TypeError> {
        match (ty, value) {
            (Type::Def(_), value) => self.value(ty, value),
            (Type::Struct(below), value) => self.custom_struct(below, value),
            (Type::List(list), Value::Array(items)) => {
                for (index, item) in items.iter_mut().enumerate() {
                    let before = self.enter_index(index);
                    self.custom(&list.items, item)?;
                    self.path.truncate(before);
                }
                Ok(())
            }
            (Type::Map(map_type), Value::Object(map)) => {
                for (key, item) in map.iter_mut() {
                    let before = self.enter_key(key);
                    self.custom(&map_type.values, item)?;
                    self.path.truncate(before);
                }
                Ok(())
            }
            (_, value) => {
                untyped(value);
                Ok(())
            }
        }
    }

    fn custom_struct(&mut self, below: &'a Struct, value: &mut Value) -> Result<(), TypeError> {
        let Value::Object(map) = value else {
            untyped(value);
            return Ok(());
        };
        let mut failed = None;
        map.retain(|key, value| {
            if failed.is_some() {
                return true;
            }
            if let Some(field) = below.field(key) {
                let before = self.enter_key(key);
                self.fields.push(("", &field.name));
                if let Err(error) = self.custom(&field.ty, value) {
                    failed = Some(error);
                }
                self.fields.pop();
                self.path.truncate(before);
                return true;
            }
            let own = below.embedded && matches!(key.as_str(), "apiVersion" | "kind" | "metadata");
            if own || below.preserve_unknown {
                untyped(value);
                return true;
            }
            self.report_unknown(key);
            false
        });
        failed.map_or(Ok(()), Err)
    }
}

/// Go's zero value, for a null inside a list or a map.
pub(super) fn zero(ty: &Type) -> Value {
    match ty {
        Type::String | Type::Bytes => Value::String(String::new()),
        Type::Bool => Value::Bool(false),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => Value::from(0),
        Type::Quantity => Value::String("0".into()),
        Type::Def(_) | Type::Struct(_) => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

/// Whether Go's `omitempty` would leave the value out.
fn is_zero(ty: &Type, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag && matches!(ty, Type::Bool),
        Value::Number(number) => {
            number.as_f64() == Some(0.0) && matches!(ty, Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString)
        }
        Value::String(text) => text.is_empty() && matches!(ty, Type::String | Type::Bytes),
        Value::Array(items) => items.is_empty() && matches!(ty, Type::List(_) | Type::Strings),
        Value::Object(map) => map.is_empty() && matches!(ty, Type::Map(_)),
    }
}

/// Numbers as Go prints them again: `1.0` is `1`.
fn untyped(value: &mut Value) {
    match value {
        Value::Number(_) => integral(value),
        Value::Array(items) => items.iter_mut().for_each(untyped),
        Value::Object(map) => map.values_mut().for_each(untyped),
        _ => {}
    }
}

fn integral(value: &mut Value) {
    // Up to 2^53 every integer is a float and every such float an integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Value::Number(number) = value
        && number.is_f64()
        && let Some(float) = number.as_f64()
        && float.fract() == 0.0
        && float.abs() <= EXACT
    {
        *value = Value::Number(Number::from(float as i64));
    }
}

fn base64_fault(text: &str, error: base64::DecodeError) -> String {
    let foreign = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '='));
    let at = match error {
        // Where several are wrong, the first.
        _ if let Some(at) = text.find(foreign) => at,
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        // Go points at the start of the incomplete quantum's missing part.
        _ => text.len() / 4 * 4,
    };
    format!("illegal base64 data at input byte {at}")
}

/// Structs whose fields belong to another struct that Go embeds in them: its name is part of the path an error tells.
/// Named are the fields of the embedded one, or with `!` those of the struct's own.
const EMBEDDED: &[(&str, &[&str], &[&str])] = &[
    ("Volume", &["VolumeSource"], &["!", "name"]),
    (
        "PersistentVolumeSpec",
        &["PersistentVolumeSource"],
        &[
            "!",
            "accessModes",
            "capacity",
            "claimRef",
            "mountOptions",
            "nodeAffinity",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "volumeAttributesClassName",
            "volumeMode",
        ],
    ),
    ("PersistentVolumeClaim", &["TypeMeta"], &["apiVersion", "kind"]),
    ("IngressRule", &["IngressRuleValue"], &["http"]),
    ("Probe", &["ProbeHandler"], &["exec", "grpc", "httpGet", "tcpSocket"]),
    (
        "EphemeralContainer",
        &["EphemeralContainerCommon"],
        &["!", "targetContainerName"],
    ),
    ("ConfigMapEnvSource", &["LocalObjectReference"], &["name"]),
    ("ConfigMapKeySelector", &["LocalObjectReference"], &["name"]),
    ("ConfigMapProjection", &["LocalObjectReference"], &["name"]),
    ("ConfigMapVolumeSource", &["LocalObjectReference"], &["name"]),
    ("SecretEnvSource", &["LocalObjectReference"], &["name"]),
    ("SecretKeySelector", &["LocalObjectReference"], &["name"]),
    ("SecretProjection", &["LocalObjectReference"], &["name"]),
    ("RuleWithOperations", &["Rule"], &["!", "operations"]),
    ("NamedRuleWithOperations", &["RuleWithOperations"], &["operations"]),
    (
        "NamedRuleWithOperations",
        &["RuleWithOperations", "Rule"],
        &["!", "operations", "resourceNames"],
    ),
    ("DeviceClaimConfiguration", &["DeviceConfiguration"], &["opaque"]),
    ("DeviceClassConfiguration", &["DeviceConfiguration"], &["opaque"]),
    ("DeviceAllocationConfiguration", &["DeviceConfiguration"], &["opaque"]),
];

/// The embedded structs on the way from `owner` to one of its fields.
fn embedding(owner: &str, field: &str) -> &'static [&'static str] {
    EMBEDDED
        .iter()
        .find(|(of, _, fields)| {
            *of == owner
                && match fields {
                    ["!", own @ ..] => !own.contains(&field),
                    fields => fields.contains(&field),
                }
        })
        .map_or(&[], |(_, path, _)| path)
}

/// The path an error tells: the fields' names, with those of embedded structs on the way.
fn go_path(fields: &[(&str, &str)]) -> String {
    let steps = fields
        .iter()
        .flat_map(|(owner, field)| embedding(owner, field).iter().copied().chain([*field]));
    steps.collect::<Vec<_>>().join(".")
}

/// The type's name as Go prints it.
fn go_type(ty: &Type) -> String {
    match ty {
        Type::String => "string".into(),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::Bool => "bool".into(),
        Type::Int32 | Type::IntOrString => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Double => "float64".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::RawExtension => "runtime.RawExtension".into(),
        Type::Strings => "v1.ExtraValue".into(),
        Type::List(list) => format!("[]{}", go_type(&list.items)),
        Type::Map(map) if map.values == Type::Quantity => "v1.ResourceList".into(),
        Type::Map(map) => format!("map[string]{}", go_type(&map.values)),
        Type::Def(id) => {
            let definition = schema::builtin().definition_of(*id);
            let mut parts = definition.name.rsplit('.');
            let (name, package) = (parts.next(), parts.next());
            format!("{}.{}", package.unwrap_or_default(), name.unwrap_or_default())
        }
        Type::Struct(own) => own.name.clone().into_owned(),
        _ => "interface {}".into(),
    }
}
