//! What Table output is made of: column constructors and the cell formats kinds share.

use jiff::Timestamp;
use sampan_api::Object;
use sampan_api::time::human_duration;
use serde_json::Value;

use crate::spec::Column;
use crate::tree;

pub(crate) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "The object's name, unique among objects of its kind in its namespace.",
    priority: 0,
};
pub(crate) const AGE: Column = text("Age", "Time since the object was created.");
pub(crate) const CREATED_AT: Column = Column {
    name: "Created At",
    kind: "date",
    format: "",
    description: "When the object was created, in UTC.",
    priority: 0,
};
/// Name and Age: kinds with nothing else to show.
pub(crate) const NAME_AND_AGE: &[Column] = &[NAME, AGE];
/// Name and Created At: kinds upstream has no printer for.
pub(crate) const PLAIN: &[Column] = &[NAME, CREATED_AT];

pub(crate) const CONTAINERS: Column = text("Containers", "Names of the template's containers.").wide();
pub(crate) const IMAGES: Column = text("Images", "Images of the template's containers.").wide();
pub(crate) const SELECTOR: Column = text("Selector", "Labels of the Pods this object selects.").wide();

pub(crate) const fn text(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        description,
        priority: 0,
    }
}

pub(crate) const fn integer(name: &'static str, description: &'static str) -> Column {
    Column {
        kind: "integer",
        ..text(name, description)
    }
}

pub(crate) const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column {
        kind: "boolean",
        ..text(name, description)
    }
}

impl Column {
    /// Shown only with `-o wide`.
    pub(crate) const fn wide(mut self) -> Column {
        self.priority = 1;
        self
    }
}

/// The cells of [`PLAIN`].
pub(crate) fn plain(object: &Object, _now: Timestamp) -> Vec<Value> {
    vec![name(object), tree::text(object, "metadata.creationTimestamp").into()]
}

/// The cells of [`NAME_AND_AGE`].
pub(crate) fn name_and_age(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// No cells: kinds without a Table.
pub(crate) fn none(_object: &Object, _now: Timestamp) -> Vec<Value> {
    Vec::new()
}

pub(crate) fn name(object: &Object) -> Value {
    tree::text(object, "metadata.name").into()
}

pub(crate) fn age(object: &Object, now: Timestamp) -> Value {
    since(tree::text(object, "metadata.creationTimestamp"), now).into()
}

/// The text or integer at a path as a cell.
pub(crate) fn cell(object: &Object, path: &str) -> Value {
    tree::text(object, path).into()
}

pub(crate) fn count(object: &Object, path: &str) -> Value {
    tree::int(object, path).into()
}

/// The text at a path, or a stand-in when there is none.
pub(crate) fn cell_or(object: &Object, path: &str, otherwise: &str) -> Value {
    or(tree::text(object, path), otherwise).into()
}

pub(crate) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// Time since an RFC 3339 time, as people say it; `<unknown>` when it is no time.
pub(crate) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human_duration(now.as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Time between two RFC 3339 times.
pub(crate) fn between(from: &str, until: &str) -> Option<String> {
    let (from, until) = (from.parse::<Timestamp>().ok()?, until.parse::<Timestamp>().ok()?);
    Some(human_duration(until.as_second() - from.as_second()))
}

/// `a=b,c=d` or `<none>`.
pub(crate) fn labels(object: &Object, path: &str) -> String {
    let pairs: Vec<_> = tree::map(object, path)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or(&pairs.join(","), "<none>").to_owned()
}

/// A LabelSelector as text: `a=b,c in (d,e),!f`, sorted by key; `<none>` when empty, `<error>` when it makes no sense.
pub(crate) fn selector(object: &Object, path: &str) -> String {
    let Some(selector) = tree::get(object, path) else {
        return "<none>".to_owned();
    };
    match selector_text(selector) {
        Some(text) => or(&text, "<none>").to_owned(),
        None => "<error>".to_owned(),
    }
}

/// A LabelSelector as text, "" when it selects everything, `None` when an operator is unknown.
pub(crate) fn selector_text(selector: &Value) -> Option<String> {
    let mut parts: Vec<(String, String)> = tree::map(selector, "matchLabels")
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())))
        .collect();
    for expression in tree::items(selector, "matchExpressions") {
        let key = tree::text(expression, "key");
        let mut values: Vec<_> = tree::items(expression, "values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match tree::text(expression, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    let parts: Vec<_> = parts.into_iter().map(|(_, text)| text).collect();
    Some(parts.join(","))
}

/// The Containers and Images cells of a PodSpec.
pub(crate) fn containers_and_images(object: &Object, pod_spec: &str) -> [Value; 2] {
    let containers = tree::get(object, pod_spec)
        .map(|spec| tree::items(spec, "containers"))
        .unwrap_or_default();
    ["name", "image"].map(|field| {
        let texts: Vec<_> = containers
            .iter()
            .map(|container| tree::text(container, field))
            .collect();
        texts.join(",").into()
    })
}

/// The first three of a list and how many more there are; `otherwise` for an empty list.
pub(crate) fn first_three(texts: &[String], otherwise: &str) -> String {
    match texts {
        [] => otherwise.to_owned(),
        [a, b, c, more @ ..] if !more.is_empty() => format!("{a},{b},{c} + {} more...", more.len()),
        few => or(&few.join(","), otherwise).to_owned(),
    }
}

/// Whether a condition of the type is `True`.
pub(crate) fn is_true(object: &Object, conditions: &str, kind: &str) -> bool {
    tree::items(object, conditions)
        .iter()
        .find(|condition| tree::text(condition, "type") == kind)
        .is_some_and(|condition| tree::text(condition, "status") == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_read_as_kubectl_prints_them() {
        let object = json!({"s": {"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]},
            {"key": "c", "operator": "DoesNotExist"},
        ]}});
        assert_eq!(selector(&object, "s"), "a in (x,y),b=1,!c");
        assert_eq!(selector(&json!({"s": {}}), "s"), "<none>");
        assert_eq!(selector(&json!({}), "s"), "<none>");
    }
}
