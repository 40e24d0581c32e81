//! What the fuzzers call: one function per decoder, any bytes in, nothing but an answer or a refusal out.
//!
//! Shared by the bounded test beside this folder and by the targets in `fuzz/`. Beyond not panicking, each states
//! what must hold of its answer: what was read can be written and reads back the same, a patch that applied left an
//! object, an answer is not out of proportion to the question.

use sampan_api::codec::{self, Media, Validation, json, protobuf, yaml};
use sampan_api::patch::apply::{self, Context, FieldSet};
use sampan_api::patch::{json as json_patch, merge, strategic};
use sampan_api::quantity::Quantity;
use sampan_api::schema::{self, Type};
use sampan_api::selector::{FieldSelector, LabelSelector};
use sampan_api::time;
use serde_json::{Value, json};

pub type Target = fn(&[u8]);

/// All targets by name.
pub const ALL: &[(&str, Target)] = &[
    ("json", read_json),
    ("yaml", read_yaml),
    ("protobuf", read_protobuf),
    ("object", read_object),
    ("custom", read_custom),
    ("json_patch", patch_json),
    ("merge_patch", patch_merge),
    ("strategic_patch", patch_strategic),
    ("apply", patch_apply),
    ("selectors", selectors),
    ("quantity", quantity),
    ("times", times),
];

/// An answer may be so many times as long as the question, and so much more: YAML's aliases may repeat what is bounded by
/// a number, however short the question.
const GROWTH: usize = 64;
const SLACK: usize = 4 << 20;

fn proportionate(bytes: &[u8], value: &Value) {
    let size = json::encode(value).len();
    assert!(
        size <= bytes.len().saturating_mul(GROWTH) + SLACK,
        "{} bytes became {size}",
        bytes.len()
    );
}

fn read_json(bytes: &[u8]) {
    if let Ok(parsed) = json::decode(bytes) {
        proportionate(bytes, &parsed.object);
        let again = json::decode(&json::encode(&parsed.object)).expect("what was written reads");
        assert_eq!(again.object, parsed.object);
        assert!(again.duplicates.is_empty());
    }
}

fn read_yaml(bytes: &[u8]) {
    if let Ok(parsed) = yaml::decode(bytes) {
        proportionate(bytes, &parsed.object);
        let text = yaml::encode(&parsed.object);
        let again = yaml::decode(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(again.object, parsed.object, "{text}");
    }
}

fn read_protobuf(bytes: &[u8]) {
    let mut framed = b"k8s\0".to_vec();
    framed.extend_from_slice(bytes);
    for bytes in [bytes, framed.as_slice()] {
        let _ = protobuf::decode(bytes, Some(("apps/v1", "Deployment")));
        if let Ok(mut object) = protobuf::decode(bytes, Some(("v1", "Pod"))) {
            let (api_version, kind) = (
                object["apiVersion"].as_str().unwrap_or_default().to_owned(),
                object["kind"].as_str().unwrap_or_default().to_owned(),
            );
            if let Some(ty) = apply::builtin_type(&api_version, &kind)
                && codec::check(&ty, &mut object).is_ok()
            {
                let written = protobuf::encode(&object).expect("a checked object has a message");
                let again = protobuf::decode(&written, None).expect("what was written reads");
                assert_eq!(without_nothing(again), without_nothing(object));
            }
        }
    }
}

/// Protobuf cannot tell an empty list or map from none.
fn without_nothing(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let map: serde_json::Map<String, Value> = map
                .into_iter()
                .map(|(key, value)| (key, without_nothing(value)))
                .filter(|(_, value)| match value {
                    Value::Null => false,
                    Value::Object(map) => !map.is_empty(),
                    Value::Array(items) => !items.is_empty(),
                    _ => true,
                })
                .collect();
            Value::Object(map)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nothing).collect()),
        other => other,
    }
}

fn deployment() -> Type {
    apply::builtin_type("apps/v1", "Deployment").expect("Deployments are built in")
}

fn read_object(bytes: &[u8]) {
    let ty = deployment();
    for media in [Media::Json, Media::Yaml, Media::Protobuf] {
        for validation in [Validation::Strict, Validation::Warn, Validation::Ignore] {
            match codec::decode(bytes, media, ("apps/v1", "Deployment"), &ty, validation) {
                Ok(decoded) => {
                    proportionate(bytes, &decoded.object);
                    // What a check leaves, a check leaves alone.
                    let mut again = decoded.object.clone();
                    codec::check(&ty, &mut again).expect("checked once, checked again");
                    assert_eq!(again, decoded.object);
                }
                Err(status) => assert!((400..500).contains(&status.code), "{}", status.message),
            }
        }
    }
}

fn read_custom(bytes: &[u8]) {
    let Ok(parsed) = json::decode(bytes) else { return };
    if let Ok(ty) = schema::structural::of_kind(&parsed.object) {
        let mut object = json!({"apiVersion": "example.com/v1", "kind": "X", "spec": parsed.object});
        if codec::check(&ty, &mut object).is_ok() {
            let _ = merge::apply(&mut object, json!({"spec": null}));
        }
    }
}

fn live() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"a": "1"}, "finalizers": ["a/b", "c/d"]},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "1"}}, "template": {"metadata": {"labels": {"a": "1"}},
            "spec": {"containers": [
                {"name": "a", "image": "x", "ports": [{"containerPort": 80}], "env": [{"name": "E", "value": "1"}]},
                {"name": "b", "image": "y"}],
                "volumes": [{"name": "v", "emptyDir": {}}]}}},
    })
}

fn patch_json(bytes: &[u8]) {
    if let Ok(patch) = json_patch::JsonPatch::parse(bytes) {
        let mut object = live();
        let before = object.clone();
        if patch.apply(&mut object).is_err() {
            assert_eq!(object, before, "a patch that fails changes nothing");
        }
    }
}

fn patch_merge(bytes: &[u8]) {
    let Ok(parsed) = json::decode(bytes) else { return };
    let mut object = live();
    if merge::apply(&mut object, parsed.object.clone()).is_ok() {
        let once = object.clone();
        merge::apply(&mut object, parsed.object).expect("what applied applies again");
        assert_eq!(object, once);
    }
}

fn patch_strategic(bytes: &[u8]) {
    let Ok(parsed) = json::decode(bytes) else { return };
    let ty = deployment();
    if let Ok(object) = strategic::apply(live(), parsed.object, &&ty) {
        assert!(object.is_object());
    }
}

fn patch_apply(bytes: &[u8]) {
    let Ok(parsed) = yaml::decode(bytes) else { return };
    let (ty, reset) = (deployment(), FieldSet::of(&[&["status"]]));
    let context = |manager: &'static str, now: &'static str| Context {
        ty: &ty,
        api_version: "apps/v1",
        kind: "Deployment",
        subresource: "",
        manager,
        now,
        reset: &reset,
        versions: &apply::OneVersion,
    };
    let mut config = parsed.object;
    if !config.is_object() {
        return;
    }
    config["apiVersion"] = "apps/v1".into();
    config["kind"] = "Deployment".into();
    let first = apply::apply(context("a", "2026-01-01T00:00:00Z"), Some(&live()), &live(), true).expect("applied");
    if let Ok(forced) = apply::apply(context("b", "2026-01-01T00:00:01Z"), Some(&first), &config, true) {
        let again = apply::apply(context("b", "2026-01-01T00:00:02Z"), Some(&forced), &config, false)
            .expect("what was forced is no conflict the second time");
        assert_eq!(again, forced, "applying twice changes nothing");
    }
    // Whatever a client sends as managed fields is read or refused.
    let mut new = live();
    let entries = config.pointer_mut("/metadata/managedFields").map(Value::take);
    new["metadata"]["managedFields"] = entries.unwrap_or_default();
    apply::update(context("c", "2026-01-01T00:00:03Z"), Some(&first), &mut new);
}

fn selectors(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(selector) = LabelSelector::parse(&text) {
        let printed = selector.to_string();
        let again = LabelSelector::parse(&printed).unwrap_or_else(|error| panic!("{error}: {printed:?}"));
        assert_eq!(again.to_string(), printed);
    }
    if let Ok(selector) = FieldSelector::parse(&text) {
        let printed = selector.to_string();
        assert!(FieldSelector::parse(&printed).is_ok(), "{printed:?}");
    }
    if let Ok(parsed) = json::decode(bytes) {
        let _ = LabelSelector::from_value(&parsed.object);
    }
}

fn quantity(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(quantity) = Quantity::parse(&text) {
        let printed = quantity.to_string();
        assert!(printed.len() <= text.len() + 64, "{text} became {printed}");
        let again = Quantity::parse(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
        assert_eq!(again, quantity);
        let _ = (
            quantity.value(),
            quantity.milli_value(),
            quantity.as_f64(),
            quantity.neg(),
        );
        let _ = (quantity.add(&again), quantity.sub(&again), quantity.mul(i64::MIN));
    }
}

fn times(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(at) = time::parse(&text) {
        assert!(time::parse(&time::format(at)).is_ok());
    }
    if let Ok(at) = time::parse_micro(&text) {
        assert!(time::parse_micro(&time::format_micro(at)).is_ok());
    }
}

/// Runs a target by its name.
#[allow(dead_code)]
pub fn run(name: &str, bytes: &[u8]) {
    if let Some((_, target)) = ALL.iter().find(|(known, _)| *known == name) {
        target(bytes);
    }
}
