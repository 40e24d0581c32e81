//! The published schemas of a group version: which fields a map may have, and a plausible value of each.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::client::Client;

pub struct Schemas {
    group_version: String,
    schemas: Map<String, Value>,
}

/// Types written as text or number whatever their schema looks like, and a value of each.
const SCALARS: &[(&str, &str)] = &[
    (".Quantity", "1"),
    (".IntOrString", "1"),
    (".Time", "2026-01-02T03:04:05Z"),
    (".MicroTime", "2026-01-02T03:04:05.000000Z"),
    (".Duration", "1s"),
];

impl Schemas {
    pub async fn of(client: &Client, group_version: &str) -> Result<Self> {
        let root = if group_version.contains('/') { "apis" } else { "api" };
        let document = client.get(&format!("/openapi/v3/{root}/{group_version}")).await?;
        Ok(Schemas {
            group_version: group_version.to_owned(),
            schemas: document["components"]["schemas"]
                .as_object()
                .cloned()
                .unwrap_or_default(),
        })
    }

    /// The schema of a kind of this group version.
    pub fn kind(&self, kind: &str) -> Option<&Value> {
        let (group, version) = self.group_version.split_once('/').unwrap_or(("", &self.group_version));
        self.schemas.values().find(|schema| {
            schema["x-kubernetes-group-version-kind"]
                .as_array()
                .is_some_and(|list| {
                    list.iter()
                        .any(|gvk| gvk["group"] == group && gvk["version"] == version && gvk["kind"] == kind)
                })
        })
    }

    /// A schema without the reference it may be: the name it goes by, and itself.
    fn resolve<'a>(&'a self, schema: &'a Value) -> (&'a str, &'a Value) {
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        match reference.and_then(|reference| reference.rsplit('/').next()) {
            Some(name) => (name, self.schemas.get(name).unwrap_or(&Value::Null)),
            None => ("", schema),
        }
    }

    /// The declared fields of a map.
    pub fn properties<'a>(&'a self, schema: &'a Value) -> Option<&'a Map<String, Value>> {
        self.resolve(schema).1["properties"].as_object()
    }

    pub fn property<'a>(&'a self, schema: &'a Value, name: &str) -> &'a Value {
        let schema = self.resolve(schema).1;
        match &schema["properties"][name] {
            Value::Null => &schema["additionalProperties"],
            found => found,
        }
    }

    pub fn items<'a>(&'a self, schema: &'a Value) -> &'a Value {
        &self.resolve(schema).1["items"]
    }

    /// A plausible value: required fields filled in, nothing else.
    pub fn sample(&self, schema: &Value) -> Value {
        let (name, schema) = self.resolve(schema);
        if let Some((_, text)) = SCALARS.iter().find(|(suffix, _)| name.ends_with(suffix)) {
            return (*text).into();
        }
        if let Some(first) = schema["enum"].as_array().and_then(|list| list.first()) {
            return first.clone();
        }
        match schema["type"].as_str() {
            Some("string") if schema["format"] == "byte" => "c2FtcGxl".into(),
            Some("string") => "sample".into(),
            Some("integer" | "number") => 1.into(),
            Some("boolean") => true.into(),
            Some("array") => json!([self.sample(&schema["items"])]),
            _ => {
                if schema["additionalProperties"].is_object() {
                    return json!({"sample": self.sample(&schema["additionalProperties"])});
                }
                let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
                required
                    .iter()
                    .filter_map(Value::as_str)
                    .map(|name| (name.to_owned(), self.sample(&schema["properties"][name])))
                    .collect::<Map<_, _>>()
                    .into()
            }
        }
    }
}
