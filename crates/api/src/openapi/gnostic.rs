//! Swagger JSON as the protobuf of gnostic's `openapi.v2.Document`: a walk over tables of its messages' fields.
//!
//! Only what our own documents contain is in the tables. Vendor extensions (`x-…`) are written as YAML text,
//! which JSON is.

use serde_json::Value;

use crate::codec::protobuf::wire::Writer;

/// How a JSON member becomes a field.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Flag,
    Integer,
    Double,
    Texts,
    /// `Any { yaml = 2 }`
    Any,
    Anys,
    Message(Message),
    /// A map as repeated `{ name = 1, value = 2 }` inside a message's given field.
    Named(u32, Message),
    /// A message that wraps one of several others.
    Custom(fn(&mut Writer, u32, &Value)),
}

/// A message's fields: JSON member, tag, shape; and the tag of its vendor extensions.
#[derive(Clone, Copy)]
struct Message {
    fields: &'static [(&'static str, u32, Shape)],
    extensions: u32,
}

const DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Shape::Text),
        ("info", 2, Shape::Message(INFO)),
        ("paths", 8, Shape::Named(2, PATH_ITEM)),
        ("definitions", 9, Shape::Custom(definitions)),
        ("parameters", 10, Shape::Custom(parameter_definitions)),
        ("security", 12, Shape::Custom(security)),
        ("securityDefinitions", 13, Shape::Custom(security_definitions)),
    ],
    extensions: 16,
};

const INFO: Message = Message {
    fields: &[("title", 1, Shape::Text), ("version", 2, Shape::Text)],
    extensions: 7,
};

const PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Shape::Message(OPERATION)),
        ("put", 3, Shape::Message(OPERATION)),
        ("post", 4, Shape::Message(OPERATION)),
        ("delete", 5, Shape::Message(OPERATION)),
        ("options", 6, Shape::Message(OPERATION)),
        ("head", 7, Shape::Message(OPERATION)),
        ("patch", 8, Shape::Message(OPERATION)),
        ("parameters", 9, Shape::Custom(parameter_items)),
    ],
    extensions: 10,
};

const OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Shape::Texts),
        ("description", 3, Shape::Text),
        ("operationId", 5, Shape::Text),
        ("produces", 6, Shape::Texts),
        ("consumes", 7, Shape::Texts),
        ("parameters", 8, Shape::Custom(parameter_items)),
        ("responses", 9, Shape::Custom(responses)),
        ("schemes", 10, Shape::Texts),
    ],
    extensions: 13,
};

const RESPONSE: Message = Message {
    fields: &[
        ("description", 1, Shape::Text),
        ("schema", 2, Shape::Custom(schema_item)),
    ],
    extensions: 5,
};

const BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Shape::Text),
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("required", 4, Shape::Flag),
        ("schema", 5, Shape::Custom(schema)),
    ],
    extensions: 6,
};

const QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Shape::Flag),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 6, Shape::Text),
        ("uniqueItems", 20, Shape::Flag),
    ],
    extensions: 23,
};

const PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Shape::Flag),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 5, Shape::Text),
        ("uniqueItems", 19, Shape::Flag),
    ],
    extensions: 22,
};

const JSON_REFERENCE: Message = Message {
    fields: &[("$ref", 1, Shape::Text)],
    extensions: 0,
};

const API_KEY: Message = Message {
    fields: &[
        ("type", 1, Shape::Text),
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("description", 4, Shape::Text),
    ],
    extensions: 5,
};

const SCHEMA_FIELDS: &[(&str, u32, Shape)] = &[
    ("$ref", 1, Shape::Text),
    ("format", 2, Shape::Text),
    ("title", 3, Shape::Text),
    ("description", 4, Shape::Text),
    ("default", 5, Shape::Any),
    ("multipleOf", 6, Shape::Double),
    ("maximum", 7, Shape::Double),
    ("exclusiveMaximum", 8, Shape::Flag),
    ("minimum", 9, Shape::Double),
    ("exclusiveMinimum", 10, Shape::Flag),
    ("maxLength", 11, Shape::Integer),
    ("minLength", 12, Shape::Integer),
    ("pattern", 13, Shape::Text),
    ("maxItems", 14, Shape::Integer),
    ("minItems", 15, Shape::Integer),
    ("uniqueItems", 16, Shape::Flag),
    ("maxProperties", 17, Shape::Integer),
    ("minProperties", 18, Shape::Integer),
    ("required", 19, Shape::Texts),
    ("enum", 20, Shape::Anys),
    ("additionalProperties", 21, Shape::Custom(additional_properties)),
    ("type", 22, Shape::Custom(type_item)),
    ("items", 23, Shape::Custom(items_item)),
    ("allOf", 24, Shape::Custom(schemas)),
    ("properties", 25, Shape::Custom(definitions)),
    ("example", 30, Shape::Any),
];

const SCHEMA_EXTENSIONS: u32 = 31;

/// Writes a whole document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    message(&mut writer, DOCUMENT.fields, DOCUMENT.extensions, document);
    writer.finish()
}

/// The content of a message, last field first.
fn message(writer: &mut Writer, fields: &[(&str, u32, Shape)], extensions: u32, value: &Value) {
    let Value::Object(map) = value else {
        return;
    };
    if extensions > 0 {
        for (key, extension) in map.iter().rev().filter(|(key, _)| key.starts_with("x-")) {
            let end = writer.len();
            any(writer, 2, extension);
            writer.bytes(1, key.as_bytes());
            writer.close(extensions, end);
        }
    }
    for (key, tag, shape) in fields.iter().rev() {
        if let Some(value) = map.get(*key) {
            member(writer, *tag, *shape, value);
        }
    }
}

fn nested(writer: &mut Writer, tag: u32, own: Message, value: &Value) {
    let end = writer.len();
    message(writer, own.fields, own.extensions, value);
    writer.close(tag, end);
}

fn any(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    writer.bytes(2, format!("{value}\n").as_bytes());
    writer.close(tag, end);
}

fn member(writer: &mut Writer, tag: u32, shape: Shape, value: &Value) {
    match (shape, value) {
        (Shape::Text, Value::String(text)) => writer.bytes(tag, text.as_bytes()),
        (Shape::Flag, Value::Bool(true)) => writer.integer(tag, 1),
        (Shape::Integer, Value::Number(number)) => {
            if let Some(number) = number.as_i64() {
                writer.integer(tag, number);
            }
        }
        (Shape::Double, Value::Number(number)) => {
            if let Some(number) = number.as_f64() {
                writer.double(tag, number);
            }
        }
        (Shape::Texts, Value::Array(items)) => {
            for text in items.iter().rev().filter_map(Value::as_str) {
                writer.bytes(tag, text.as_bytes());
            }
        }
        (Shape::Any, value) => any(writer, tag, value),
        (Shape::Anys, Value::Array(items)) => items.iter().rev().for_each(|item| any(writer, tag, item)),
        (Shape::Message(own), value) => nested(writer, tag, own, value),
        (Shape::Named(inner, own), Value::Object(map)) => {
            let end = writer.len();
            for (name, value) in map.iter().rev() {
                let entry = writer.len();
                nested(writer, 2, own, value);
                writer.bytes(1, name.as_bytes());
                writer.close(inner, entry);
            }
            writer.close(tag, end);
        }
        (Shape::Custom(write), value) => write(writer, tag, value),
        _ => {}
    }
}

fn schema(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    message(writer, SCHEMA_FIELDS, SCHEMA_EXTENSIONS, value);
    writer.close(tag, end);
}

fn schemas(writer: &mut Writer, tag: u32, value: &Value) {
    for item in value.as_array().into_iter().flatten().rev() {
        schema(writer, tag, item);
    }
}

/// `Definitions` and `Properties`: repeated named schemas in field 1.
fn definitions(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    for (name, value) in value.as_object().into_iter().flatten().rev() {
        let entry = writer.len();
        schema(writer, 2, value);
        writer.bytes(1, name.as_bytes());
        writer.close(1, entry);
    }
    writer.close(tag, end);
}

fn schema_item(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    schema(writer, 1, value);
    writer.close(tag, end);
}

fn additional_properties(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    match value {
        Value::Bool(flag) => writer.integer(2, i64::from(*flag)),
        other => schema(writer, 1, other),
    }
    writer.close(tag, end);
}

fn type_item(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    match value {
        Value::String(text) => writer.bytes(1, text.as_bytes()),
        other => member(writer, 1, Shape::Texts, other),
    }
    writer.close(tag, end);
}

fn items_item(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    match value {
        Value::Array(_) => schemas(writer, 1, value),
        other => schema(writer, 1, other),
    }
    writer.close(tag, end);
}

/// `Parameter`: a body parameter, or a query or path parameter two messages down.
fn parameter(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    match value.get("in").and_then(Value::as_str) {
        Some("body") => nested(writer, 1, BODY_PARAMETER, value),
        place => {
            let inner = writer.len();
            if place == Some("path") {
                nested(writer, 4, PATH_PARAMETER, value);
            } else {
                nested(writer, 3, QUERY_PARAMETER, value);
            }
            writer.close(2, inner);
        }
    }
    writer.close(tag, end);
}

/// Repeated `ParametersItem`: a parameter or a reference to one.
fn parameter_items(writer: &mut Writer, tag: u32, value: &Value) {
    for item in value.as_array().into_iter().flatten().rev() {
        let end = writer.len();
        if item.get("$ref").is_some() {
            nested(writer, 2, JSON_REFERENCE, item);
        } else {
            parameter(writer, 1, item);
        }
        writer.close(tag, end);
    }
}

fn parameter_definitions(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    for (name, value) in value.as_object().into_iter().flatten().rev() {
        let entry = writer.len();
        parameter(writer, 2, value);
        writer.bytes(1, name.as_bytes());
        writer.close(1, entry);
    }
    writer.close(tag, end);
}

/// `Responses`: named `ResponseValue`s, each a response.
fn responses(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    for (code, response) in value.as_object().into_iter().flatten().rev() {
        let entry = writer.len();
        let wrapper = writer.len();
        nested(writer, 1, RESPONSE, response);
        writer.close(2, wrapper);
        writer.bytes(1, code.as_bytes());
        writer.close(1, entry);
    }
    writer.close(tag, end);
}

fn security(writer: &mut Writer, tag: u32, value: &Value) {
    for requirement in value.as_array().into_iter().flatten().rev() {
        let end = writer.len();
        for (name, scopes) in requirement.as_object().into_iter().flatten().rev() {
            let entry = writer.len();
            let array = writer.len();
            member(writer, 1, Shape::Texts, scopes);
            writer.close(2, array);
            writer.bytes(1, name.as_bytes());
            writer.close(1, entry);
        }
        writer.close(tag, end);
    }
}

fn security_definitions(writer: &mut Writer, tag: u32, value: &Value) {
    let end = writer.len();
    for (name, definition) in value.as_object().into_iter().flatten().rev() {
        let entry = writer.len();
        let item = writer.len();
        nested(writer, 2, API_KEY, definition);
        writer.close(2, item);
        writer.bytes(1, name.as_bytes());
        writer.close(1, entry);
    }
    writer.close(tag, end);
}
