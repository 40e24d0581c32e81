//! Declarations: the type of a variable together with how its JSON is read and how large it can get.
//!
//! `Decl::of_schema` makes one from a structural schema, as upstream's rules see it: fields with names that no
//! expression can write are left out, unknown fields are not visible, a schema without a type is not visible.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use sampan_api::schema;
use serde_json::Value as Json;

use crate::types::{Fields, ObjectType, Type};

/// The largest request that is accepted; bounds what has no bound of its own.
pub const MAX_REQUEST_BYTES: u64 = 3 * 1024 * 1024;

/// How JSON is to be read.
#[derive(Clone, Debug)]
pub enum Shape {
    /// As it comes.
    Dyn,
    Bool,
    Int,
    Double,
    String,
    /// Base64.
    Bytes,
    Duration,
    Date,
    DateTime,
    List(Arc<Decl>, ListKind),
    Map(Arc<Decl>),
    Object(Arc<ObjectType>),
    /// No JSON: the value is made by the caller.
    Made,
}

/// What makes two lists equal, and what adding two means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    Map(Vec<String>),
}

#[derive(Clone, Debug)]
pub struct Decl {
    pub ty: Type,
    pub shape: Shape,
    /// The most elements (characters, items, entries) it can have; 0 for scalars and objects.
    pub max_elements: u64,
    /// The least bytes it takes in JSON.
    pub min_size: u64,
}

/// What is known of a value nothing is known of.
pub static DYN: LazyLock<Arc<Decl>> = LazyLock::new(|| Arc::new(Decl::new(Type::Dyn, Shape::Dyn, 0, 1)));

fn known(schema: &Json, pointer: &str) -> Option<u64> {
    schema.get(pointer)?.as_i64().map(|number| number.max(0) as u64)
}

fn flag(schema: &Json, field: &str) -> bool {
    schema.get(field).and_then(Json::as_bool).unwrap_or(false)
}

fn text<'a>(schema: &'a Json, field: &str) -> &'a str {
    schema.get(field).and_then(Json::as_str).unwrap_or_default()
}

impl Decl {
    pub(crate) fn new(ty: Type, shape: Shape, max_elements: u64, min_size: u64) -> Decl {
        Decl {
            ty,
            shape,
            max_elements,
            min_size,
        }
    }

    /// A variable whose value is JSON of any form.
    pub fn dynamic() -> Arc<Decl> {
        DYN.clone()
    }

    /// A variable of a type the caller makes values of.
    pub fn made(ty: Type) -> Arc<Decl> {
        Arc::new(Decl::new(ty, Shape::Made, 0, 1))
    }

    pub fn string() -> Arc<Decl> {
        Arc::new(Decl::new(Type::String, Shape::String, MAX_REQUEST_BYTES - 2, 2))
    }
    pub fn boolean() -> Arc<Decl> {
        Arc::new(Decl::new(Type::Bool, Shape::Bool, 0, 4))
    }
    pub fn int() -> Arc<Decl> {
        Arc::new(Decl::new(Type::Int, Shape::Int, 0, 1))
    }
    pub fn double() -> Arc<Decl> {
        Arc::new(Decl::new(Type::Double, Shape::Double, 0, 1))
    }
    pub fn timestamp() -> Arc<Decl> {
        Arc::new(Decl::new(Type::Timestamp, Shape::DateTime, 32, 21))
    }
    pub fn bytes() -> Arc<Decl> {
        Arc::new(Decl::new(Type::Bytes, Shape::Bytes, MAX_REQUEST_BYTES - 2, 2))
    }
    pub fn list(item: Arc<Decl>) -> Arc<Decl> {
        let max = (MAX_REQUEST_BYTES - 2) / (item.min_size + 1);
        Self::list_of(item, ListKind::Atomic, max)
    }
    fn list_of(item: Arc<Decl>, kind: ListKind, max: u64) -> Arc<Decl> {
        Arc::new(Decl::new(Type::list(item.ty.clone()), Shape::List(item, kind), max, 2))
    }
    pub fn map(value: Arc<Decl>) -> Arc<Decl> {
        let max = (MAX_REQUEST_BYTES - 2) / (value.min_size + 6);
        Self::map_of(value, max)
    }
    pub(crate) fn map_of(value: Arc<Decl>, max: u64) -> Arc<Decl> {
        Arc::new(Decl::new(
            Type::map(Type::String, value.ty.clone()),
            Shape::Map(value),
            max,
            2,
        ))
    }
    /// An object with these fields, by their names in JSON. None is escaped: `request.namespace` is written so.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Arc<Decl>)>) -> Arc<Decl> {
        let fields = fields.into_iter().map(|(name, decl)| (name.to_owned(), decl)).collect();
        Self::of_object(ObjectType {
            name: name.to_owned(),
            fields: Fields::Known(fields),
            constructible: false,
        })
    }
    pub fn of_object(object: ObjectType) -> Arc<Decl> {
        let object = Arc::new(object);
        Arc::new(Decl::new(Type::Object(object.clone()), Shape::Object(object), 0, 2))
    }

    /// The declaration of a built-in type. Types may contain themselves, so fields are looked up when asked for.
    pub fn of_type(ty: &schema::Type) -> Arc<Decl> {
        match ty {
            schema::Type::String | schema::Type::Quantity => Self::string(),
            schema::Type::Bool => Self::boolean(),
            schema::Type::Int32 | schema::Type::Int64 => Self::int(),
            schema::Type::Double => Self::double(),
            schema::Type::Bytes => Self::bytes(),
            schema::Type::Time | schema::Type::MicroTime => Self::timestamp(),
            schema::Type::Strings => Self::list(Self::string()),
            schema::Type::List(list) => Self::list(Self::of_type(&list.items)),
            schema::Type::Map(map) => Self::map(Self::of_type(&map.values)),
            schema::Type::Def(_) | schema::Type::Struct(_) => match ty.as_struct() {
                Some(own) if !own.fields.is_empty() => {
                    let (name, ty) = (own.name.to_string(), ty.clone());
                    let resolve = move |field: &str| {
                        let own = ty.as_struct()?;
                        Some(Self::of_type(&own.field(&unescape(field))?.ty))
                    };
                    Self::of_object(ObjectType {
                        name,
                        fields: Fields::Lazy(Box::new(resolve)),
                        constructible: false,
                    })
                }
                _ => DYN.clone(),
            },
            _ => DYN.clone(),
        }
    }

    /// The declaration of a structural schema (`openAPIV3Schema` or a part of it); `None` if rules cannot see it.
    /// `name` becomes the name of the type and must be unique among the variables of an expression.
    /// `is_root` for the root of a resource: it has `apiVersion`, `kind`, `metadata.name` and
    /// `metadata.generateName` whatever the schema says.
    pub fn of_schema(schema: &Json, name: &str, is_root: bool) -> Option<Arc<Decl>> {
        let max_length = known(schema, "maxLength");
        if flag(schema, "x-kubernetes-int-or-string") {
            let max = max_length.map_or(MAX_REQUEST_BYTES - 2, |max| max.saturating_mul(4));
            return Some(Arc::new(Decl::new(Type::Dyn, Shape::Dyn, max, 1)));
        }
        let is_root = is_root || flag(schema, "x-kubernetes-embedded-resource");
        let kind = match text(schema, "type") {
            "" if is_root => "object",
            kind => kind,
        };
        let unbounded = MAX_REQUEST_BYTES - 2;
        Some(match kind {
            "array" => {
                let item = Self::of_schema(schema.get("items")?, &format!("{name}.@idx"), false)?;
                let kind = match text(schema, "x-kubernetes-list-type") {
                    "set" => ListKind::Set,
                    "map" => ListKind::Map(
                        schema
                            .get("x-kubernetes-list-map-keys")
                            .and_then(Json::as_array)
                            .into_iter()
                            .flatten()
                            .filter_map(|key| key.as_str().map(str::to_owned))
                            .collect(),
                    ),
                    _ => ListKind::Atomic,
                };
                let max = known(schema, "maxItems").unwrap_or(unbounded / (item.min_size + 1));
                Self::list_of(item, kind, max)
            }
            "object" => {
                if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
                    let value = Self::of_schema(values, &format!("{name}.@elem"), false)?;
                    let max = known(schema, "maxProperties").unwrap_or(unbounded / (value.min_size + 6));
                    return Some(Self::map_of(value, max));
                }
                Self::of_properties(schema, name, is_root)
            }
            "string" => {
                let simple = |ty, shape, max, min| Arc::new(Decl::new(ty, shape, max, min));
                match text(schema, "format") {
                    "byte" => simple(Type::Bytes, Shape::Bytes, max_length.unwrap_or(unbounded), 2),
                    "duration" => simple(Type::Duration, Shape::Duration, 32, 3),
                    "date" => simple(Type::Timestamp, Shape::Date, 12, 12),
                    "date-time" => simple(Type::Timestamp, Shape::DateTime, 32, 21),
                    _ => {
                        let longest = schema
                            .get("enum")
                            .and_then(Json::as_array)
                            .filter(|values| !values.is_empty())
                            .map(|values| {
                                let lengths = values.iter().filter_map(|value| value.as_str().map(str::len));
                                lengths.max().unwrap_or(0) as u64
                            });
                        let max = max_length.map(|max| max.saturating_mul(4)).or(longest);
                        simple(Type::String, Shape::String, max.unwrap_or(unbounded), 2)
                    }
                }
            }
            "boolean" => Self::boolean(),
            "number" => Self::double(),
            "integer" => Self::int(),
            _ => return None,
        })
    }

    fn of_properties(schema: &Json, name: &str, is_root: bool) -> Arc<Decl> {
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        let mut fields = BTreeMap::new();
        let mut min_size = 2;
        let properties = schema.get("properties").and_then(Json::as_object);
        for (field, property) in properties.into_iter().flatten() {
            if is_root && matches!(field.as_str(), "kind" | "apiVersion" | "metadata") {
                continue;
            }
            let Some(decl) = Self::of_schema(property, &format!("{name}.{field}"), false) else {
                continue;
            };
            if required.contains(&field.as_str()) && property.get("default").is_none_or(Json::is_null) {
                min_size += field.len() as u64 + decl.min_size + 4;
            }
            if let Some(escaped) = escape(field) {
                fields.insert(escaped, decl);
            }
        }
        if is_root {
            fields.insert("kind".to_owned(), Self::string());
            fields.insert("apiVersion".to_owned(), Self::string());
            let metadata = [("name", Self::string()), ("generateName", Self::string())];
            fields.insert(
                "metadata".to_owned(),
                Self::object(&format!("{name}.metadata"), metadata),
            );
        }
        let object = Arc::new(ObjectType {
            name: name.to_owned(),
            fields: Fields::Known(fields),
            constructible: false,
        });
        Arc::new(Decl::new(
            Type::Object(object.clone()),
            Shape::Object(object),
            0,
            min_size,
        ))
    }

    /// How often something of this size fits into one request: upstream's worst case for a rule below an
    /// unbounded list or map.
    pub fn max_cardinality(&self) -> u64 {
        MAX_REQUEST_BYTES / (self.min_size + 1)
    }
}

/// A field of an object whose fields are all known, by its escaped name.
pub(crate) fn field_of<'o>(object: &'o ObjectType, name: &str) -> Option<&'o Decl> {
    match &object.fields {
        Fields::Known(fields) => fields.get(name).map(|decl| &**decl),
        Fields::Lazy(_) => None,
    }
}

/// The words of the language, which no field can be called.
const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name of a property in expressions; `None` if it has none.
pub fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut escaped = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("__") {
            escaped.push_str("__underscores__");
            rest = after;
            continue;
        }
        match c {
            '.' => escaped.push_str("__dot__"),
            '-' => escaped.push_str("__dash__"),
            '/' => escaped.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => escaped.push(c),
            _ => return None,
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    Some(escaped)
}

/// The property an escaped name stands for.
pub fn unescape(name: &str) -> std::borrow::Cow<'_, str> {
    if !name.contains("__") {
        return name.into();
    }
    if let Some(word) = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && RESERVED.contains(&word)
    {
        return word.to_owned().into();
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    'next: while !rest.is_empty() {
        for (code, plain) in [
            ("__underscores__", "__"),
            ("__dot__", "."),
            ("__dash__", "-"),
            ("__slash__", "/"),
        ] {
            if let Some(after) = rest.strip_prefix(code) {
                out.push_str(plain);
                rest = after;
                continue 'next;
            }
        }
        let mut chars = rest.chars();
        out.extend(chars.next());
        rest = chars.as_str();
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_escaped_and_back() {
        for (plain, escaped) in [
            ("a", Some("a")),
            ("namespace", Some("__namespace__")),
            ("a-b", Some("a__dash__b")),
            ("a.b/c", Some("a__dot__b__slash__c")),
            ("a__b", Some("a__underscores__b")),
            ("_a", Some("_a")),
            ("1a", None),
            ("a b", None),
            ("ä", None),
        ] {
            assert_eq!(escape(plain).as_deref(), escaped, "{plain}");
            if let Some(escaped) = escaped {
                assert_eq!(unescape(escaped), plain);
            }
        }
    }

    #[test]
    fn a_schema_is_a_declaration() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "string", "maxLength": 10},
            "list": {"type": "array", "items": {"type": "integer"}},
            "unseen": {"x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "string", "format": "date-time"}},
        }});
        let decl = Decl::of_schema(&schema, "self", true).unwrap();
        let Type::Object(object) = &decl.ty else { panic!() };
        assert_eq!(object.field("a").unwrap().max_elements, 40);
        assert_eq!(object.field("list").unwrap().max_elements, (MAX_REQUEST_BYTES - 2) / 2);
        assert!(object.field("unseen").is_none());
        assert_eq!(object.field("map").unwrap().ty.to_string(), "map(string, timestamp)");
        assert!(object.field("kind").is_some());
    }
}
