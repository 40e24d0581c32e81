//! Events: one store behind two faces, `v1` (stored) and `events.k8s.io/v1`.

use jiff::Timestamp;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use super::text_field;
use crate::checks::{self, Rule};
use crate::defaults::Fill;
use crate::internal::{self, Shape};
use crate::names;
use crate::print::{or, since, text};
use crate::rules::{RULES as PLAIN, Rules, Status};
use crate::spec::{Column, Conversion, Part, SelectableField};
use crate::tree;

pub(crate) static RULES: Rules = Rules {
    status: Status::Plain,
    create_on_update: true,
    defaults: &[
        ("involvedObject", Fill::Map),
        ("source", Fill::Map),
        ("reportingComponent", Fill::Text("")),
        ("reportingInstance", Fill::Text("")),
    ],
    name: names::path_segment,
    validate: |event, errors| validate(event, "reportingComponent", errors),
    ..PLAIN
};

/// What an `events.k8s.io` object gets before it is converted, and is checked for, converted.
pub(crate) static NEW_RULES: Rules = Rules {
    status: Status::Plain,
    create_on_update: true,
    defaults: &[("regarding", Fill::Map), ("deprecatedSource", Fill::Map)],
    alone: true,
    validate: |event, errors| validate(event, "reportingController", errors),
    validate_create: new_event,
    validate_update: changed_event,
    ..PLAIN
};

/// Events are hints: little is asked of them. Those of the newer kind say when, who and what. `controller`: what the
/// request's version calls the field that says who.
fn validate(event: &Object, controller: &str, errors: &mut Errors) {
    let own = tree::text(event, "metadata.namespace");
    let about = tree::text(event, "involvedObject.namespace");
    let is_new = tree::get(event, "eventTime").is_some();
    let agrees = match (is_new, about) {
        (false, "") => matches!(own, "" | "default"),
        (false, about) => own == about,
        (true, "") => matches!(own, "default" | "kube-system"),
        (true, _) => true,
    };
    if !agrees {
        errors.push(Error::invalid(
            &Path::new("involvedObject").child("namespace"),
            about,
            "does not match event.namespace",
        ));
    }
    if !is_new {
        return;
    }
    let (who, path) = (tree::text(event, "reportingComponent"), Path::new(controller));
    if who.is_empty() {
        errors.push(Error::required(&path, ""));
    }
    checks::named(&path, who, api::qualified_name, errors);
    for (field, needed, limit) in [
        ("reportingInstance", true, 128),
        ("action", true, 128),
        ("reason", true, 128),
        ("message", false, 1024),
    ] {
        if needed && tree::text(event, field).is_empty() {
            errors.push(Error::required(&Path::new(field), ""));
        }
        if tree::text(event, field).len() > limit {
            let why = format!("can have at most {limit} characters");
            errors.push(Error::invalid(&Path::new(field), "", why));
        }
    }
}

/// Events made by way of the newer API use none of the older one's fields.
fn new_event(event: &Object, errors: &mut Errors) {
    series(event, errors);
    checks::run(&[("eventTime", Rule::Required(""))], event, None, errors);
    let kind = tree::text(event, "type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(Error::invalid(
            &Path::new("type"),
            "",
            format!("has invalid value: {kind}"),
        ));
    }
    let source = ["component", "host"].map(|field| tree::entry(event, "source", field));
    for (field, set) in [
        ("firstTimestamp", tree::get(event, "firstTimestamp").is_some()),
        ("lastTimestamp", tree::get(event, "lastTimestamp").is_some()),
        ("count", tree::int(event, "count") != 0),
        ("source", source.iter().any(|text| !text.is_empty())),
    ] {
        if set {
            errors.push(Error::invalid(&Path::new(field), "", "needs to be unset"));
        }
    }
}

fn series(event: &Object, errors: &mut Errors) {
    if let Some(series) = tree::get(event, "series") {
        if tree::int(series, "count") < 2 {
            errors.push(Error::invalid(&Path::new("series.count"), "", "should be at least 2"));
        }
        let when = [("series.lastObservedTime", Rule::Required(""))];
        checks::run(&when, event, None, errors);
    }
}

/// By way of the newer API only an event's series goes on.
fn changed_event(_: Part<'_>, new: &Object, old: &Object, errors: &mut Errors) {
    if !tree::same_at(new, old, "series") {
        series(new, errors);
    }
    for (field, called, kind) in FIXED {
        if tree::same_at(new, old, field) {
            continue;
        }
        // Older clients send times more exact than those that are kept.
        let exact = |event| tree::text(event, "eventTime").get(..26).map(str::to_owned);
        if *field == "eventTime" && exact(new).is_some() && exact(new) == exact(old) {
            continue;
        }
        let value = tree::get(new, field);
        let shown = match (kind, value) {
            (Shape::Text, None) => "\"\"".to_owned(),
            (Shape::Int, None) => "0".to_owned(),
            (Shape::Struct(fields), value) => internal::object(fields, value),
            (Shape::Pointer(fields), Some(value)) => internal::object(fields, Some(value)),
            (_, value) => value.map_or("null".to_owned(), Value::to_string),
        };
        let error = Error::invalid(&Path::new(called), Value::Null, checks::IMMUTABLE);
        errors.push(error.showing(shown));
    }
}

/// What stays, with the name errors have for it.
const FIXED: &[internal::Field] = &[
    (
        "involvedObject",
        "involvedObject",
        Shape::Struct(internal::OBJECT_REFERENCE),
    ),
    ("reason", "reason", Shape::Text),
    ("message", "message", Shape::Text),
    (
        "source",
        "source",
        Shape::Struct(&[("component", "Component", Shape::Text), ("host", "Host", Shape::Text)]),
    ),
    ("firstTimestamp", "firstTimestamp", Shape::Plain),
    ("lastTimestamp", "lastTimestamp", Shape::Plain),
    ("count", "count", Shape::Int),
    ("reason", "reason", Shape::Text),
    ("type", "type", Shape::Text),
    ("eventTime", "eventTime", Shape::Plain),
    ("action", "action", Shape::Text),
    ("related", "related", Shape::Pointer(internal::OBJECT_REFERENCE)),
    ("reportingComponent", "reportingController", Shape::Text),
    ("reportingInstance", "reportingInstance", Shape::Text),
];

pub(crate) const COLUMNS: &[Column] = &[
    text("Last Seen", "When it happened last."),
    text("Type", "Normal or Warning."),
    text("Reason", "Why, in one word."),
    text("Object", "What it is about."),
    text("Subobject", "The part of the object it is about.").wide(),
    text("Source", "Who reported it.").wide(),
    text("Message", "What happened."),
    text("First Seen", "When it happened first.").wide(),
    text("Count", "How often it happened.").wide(),
    Column {
        format: "name",
        ..text("Name", "The event's own name.").wide()
    },
];

pub(crate) fn cells(event: &Object, now: Timestamp) -> Vec<Value> {
    let first = tree::text(event, "firstTimestamp");
    let first = since(or(first, tree::text(event, "eventTime")), now);
    let mut last = match tree::text(event, "lastTimestamp") {
        "" => first.clone(),
        last => since(last, now),
    };
    let mut count = tree::int(event, "count").max(1);
    if let Some(series) = tree::get(event, "series") {
        last = since(tree::text(series, "lastObservedTime"), now);
        count = tree::int(series, "count");
    }
    let kind = tree::text(event, "involvedObject.kind").to_lowercase();
    let target = match tree::text(event, "involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = or(
        tree::text(event, "source.component"),
        tree::text(event, "reportingComponent"),
    );
    let source = match or(tree::text(event, "source.host"), tree::text(event, "reportingInstance")) {
        "" => component.to_owned(),
        instance => format!("{component}, {instance}"),
    };
    let field = |path| Value::from(tree::text(event, path));
    vec![
        last.into(),
        field("type"),
        field("reason"),
        target.into(),
        field("involvedObject.fieldPath"),
        source.into(),
        tree::text(event, "message").trim().into(),
        first.into(),
        count.into(),
        field("metadata.name"),
    ]
}

fn source(event: &Object) -> String {
    or(
        tree::text(event, "source.component"),
        tree::text(event, "reportingComponent"),
    )
    .to_owned()
}

pub(crate) const FIELDS: &[SelectableField] = &[
    text_field!("involvedObject.kind"),
    text_field!("involvedObject.namespace"),
    text_field!("involvedObject.name"),
    text_field!("involvedObject.uid"),
    text_field!("involvedObject.apiVersion"),
    text_field!("involvedObject.resourceVersion"),
    text_field!("involvedObject.fieldPath"),
    text_field!("reason"),
    text_field!("reportingComponent"),
    SelectableField {
        label: "source",
        read: source,
    },
    text_field!("type"),
];

/// A selectable field of `events.k8s.io` that reads the stored event's field of another name.
macro_rules! renamed_field {
    ($label:literal, $path:literal) => {
        SelectableField {
            label: $label,
            read: |object| tree::text(object, $path).to_owned(),
        }
    };
}

pub(crate) const NEW_FIELDS: &[SelectableField] = &[
    text_field!("reason"),
    renamed_field!("regarding.kind", "involvedObject.kind"),
    renamed_field!("regarding.namespace", "involvedObject.namespace"),
    renamed_field!("regarding.name", "involvedObject.name"),
    renamed_field!("regarding.uid", "involvedObject.uid"),
    renamed_field!("regarding.apiVersion", "involvedObject.apiVersion"),
    renamed_field!("regarding.resourceVersion", "involvedObject.resourceVersion"),
    renamed_field!("regarding.fieldPath", "involvedObject.fieldPath"),
    renamed_field!("reportingController", "reportingComponent"),
    text_field!("type"),
];

/// Field names: `events.k8s.io/v1`, then `v1`.
const NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// `events.k8s.io/v1` events are stored as `v1` ones: the same fields under other names.
pub(crate) const CONVERSION: Conversion = Conversion {
    storage_version: ("", "v1"),
    to_storage: |event| rename(event, "v1", |(new, old)| (new, old)),
    from_storage: |event| rename(event, "events.k8s.io/v1", |(new, old)| (old, new)),
};

fn rename(
    event: &mut Object,
    api_version: &str,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    let Some(map) = event.as_object_mut() else {
        return;
    };
    for names in NAMES {
        let (from, to) = direction(*names);
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map.insert("apiVersion".to_owned(), api_version.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_faces_say_the_same() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"kind": "Pod", "name": "p"},
            "note": "hello", "reportingController": "c", "deprecatedCount": 2});
        let old = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod", "name": "p"},
            "message": "hello", "reportingComponent": "c", "count": 2});
        let mut event = new.clone();
        (CONVERSION.to_storage)(&mut event);
        assert_eq!(event, old);
        (CONVERSION.from_storage)(&mut event);
        assert_eq!(event, new);
    }

    #[test]
    fn the_newer_face_asks_more() {
        use crate::spec::Strategy;
        let good = json!({"metadata": {"name": "e", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "type": "Normal", "reason": "R", "action": "A", "reportingComponent": "c", "reportingInstance": "i", "source": {}});
        let with = |field: &str, value: Value| {
            let mut event = good.clone();
            event[field] = value;
            event
        };
        let created = [
            (good.clone(), vec![]),
            (
                with("type", json!("Other")),
                vec!["type: Invalid value: \"\": has invalid value: Other"],
            ),
            (
                with("count", json!(1)),
                vec!["count: Invalid value: \"\": needs to be unset"],
            ),
            (with("eventTime", Value::Null), vec!["eventTime: Required value"]),
            (
                with("series", json!({"count": 1})),
                vec![
                    "series.count: Invalid value: \"\": should be at least 2",
                    "series.lastObservedTime: Required value",
                ],
            ),
        ];
        let texts = |errors: Errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (event, wanted) in created {
            assert_eq!(texts(NEW_RULES.validate_create(&event)), wanted);
        }
        let changed = [
            (
                with(
                    "series",
                    json!({"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}),
                ),
                vec![],
            ),
            (with("eventTime", json!("2026-01-01T00:00:00.000000123Z")), vec![]),
            (
                with("action", json!("B")),
                vec!["action: Invalid value: \"B\": field is immutable"],
            ),
        ];
        for (event, wanted) in changed {
            assert_eq!(texts(NEW_RULES.validate_update(Part::Main, &event, &good)), wanted);
        }
    }

    #[test]
    fn a_row_names_object_source_and_times() {
        let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "R", "type": "Normal", "message": " m\n",
            "reportingComponent": "kubelet", "reportingInstance": "n1"});
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(
            Value::from(cells(&event, now)),
            json!(["5m", "Normal", "R", "pod/p", "", "kubelet, n1", "m", "5m", 1, "e"])
        );
    }
}
