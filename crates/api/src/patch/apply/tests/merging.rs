//! What becomes of values: lists, sets, atoms, custom kinds.

use super::*;

#[test]
fn quantities_are_compared_by_meaning() {
    let with = |cpu: &str| {
        format!("{{template: {{spec: {{containers: [{{name: c, resources: {{limits: {{cpu: {cpu}}}}}}}]}}}}}}")
    };
    let ty = deployment();
    let reset = FieldSet::default();
    let first = apply(context(&ty, &reset, "a", NOW), None, &config(&with("500m")), false).expect("applied");
    let again = apply(
        context(&ty, &reset, "a", LATER),
        Some(&first),
        &config(&with("0.5")),
        false,
    )
    .expect("applied");
    assert_eq!(entries(&again), entries(&first));
    assert_eq!(again["metadata"]["managedFields"][0]["time"], NOW);
    apply(
        context(&ty, &reset, "b", LATER),
        Some(&first),
        &config(&with("0.5")),
        false,
    )
    .expect("agreed");
    apply(
        context(&ty, &reset, "b", LATER),
        Some(&first),
        &config(&with("0.6")),
        false,
    )
    .expect_err("a conflict");
}

#[test]
fn bad_configurations_are_refused() {
    for (spec, words) in [
        ("{replicaz: 1}", ".spec.replicaz: field not declared in schema"),
        (
            "{replicas: two}",
            ".spec.replicas: expected numeric (int or float), got &value.valueUnstructured{Value:\"two\"}",
        ),
        (
            "{template: {spec: {containers: [{name: a}, {name: a}]}}}",
            ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            "{template: {spec: {containers: [{image: a}]}}}",
            ".spec.template.spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
        (
            "{template: [1]}",
            ".spec.template: expected map, got &value.valueUnstructured{Value:[1]}",
        ),
    ] {
        let status = steps(&[("a", spec)]).expect_err(spec);
        assert_eq!(
            status.message,
            format!("failed to create typed patch object (default/web; apps/v1, Kind=Deployment): {words}")
        );
    }
    let ty = deployment();
    let reset = FieldSet::default();
    let mut wrong = config("{}");
    wrong["apiVersion"] = "apps/v1beta1".into();
    let status = apply(context(&ty, &reset, "a", NOW), None, &wrong, false).expect_err("a version");
    assert_eq!(
        status.message,
        "Incorrect version specified in apply patch. Specified patch version: apps/v1beta1, expected: apps/v1"
    );
    let mut carrying = config("{}");
    carrying["metadata"]["managedFields"] = json!([]);
    let status = apply(context(&ty, &reset, "a", NOW), None, &carrying, false).expect_err("managed fields");
    assert_eq!(status.message, "metadata.managedFields must be nil");
}

#[test]
fn merged_lists_keep_a_sensible_order() {
    let list = |names: &str| {
        let items: Vec<String> = names.chars().map(|name| format!("{{name: {name}}}")).collect();
        format!("{{template: {{spec: {{containers: [{}]}}}}}}", items.join(", "))
    };
    for (left, right, expected) in [
        ("abc", "d", "abcd"),
        ("abc", "ca", "bca"),
        ("abc", "xa", "xabc"),
        ("abc", "axc", "abxc"),
        ("ab", "ba", "ba"),
        ("abcd", "dxb", "acdxb"),
    ] {
        let object = steps(&[("one=", &list(left)), ("two", &list(right))]).expect("applied");
        let names: String = object["spec"]["template"]["spec"]["containers"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|item| item["name"].as_str())
            .collect();
        assert_eq!(names, expected, "{left} and {right}");
    }
}

#[test]
fn sets_and_atoms() {
    let ty = deployment();
    let reset = FieldSet::default();
    let with = |finalizers: Value| {
        let mut object = config("{}");
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let first = apply(context(&ty, &reset, "a", NOW), None, &with(json!(["x"])), false).expect("applied");
    let second = apply(context(&ty, &reset, "b", NOW), Some(&first), &with(json!(["y"])), false).expect("applied");
    assert_eq!(second["metadata"]["finalizers"], json!(["x", "y"]));
    assert_eq!(
        entries(&second)[1].2,
        json!({"f:metadata": {"f:finalizers": {"v:\"y\"": {}}}, "f:spec": {}})
    );
    let third = apply(context(&ty, &reset, "a", NOW), Some(&second), &config("{}"), false).expect("applied");
    assert_eq!(third["metadata"]["finalizers"], json!(["y"]));
    // An atomic map is one value.
    let status = steps(&[
        ("a", "{template: {spec: {nodeSelector: {x: v}}}}"),
        ("b", "{template: {spec: {nodeSelector: {z: w}}}}"),
    ])
    .expect_err("a conflict");
    assert!(
        status
            .message
            .ends_with("conflict with \"a\": .spec.template.spec.nodeSelector"),
        "{}",
        status.message
    );
}

#[test]
fn field_sets_survive_their_json() {
    let value = json!({
        "f:metadata": {"f:labels": {".": {}, "f:a/b": {}}},
        "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}, "f:set": {"v:\"x\"": {}, "v:3": {}}},
    });
    let set = FieldSet::from_value(&value);
    assert_eq!(set.to_value(), value);
    let shown: Vec<String> = set.paths().iter().map(|path| show(path)).collect();
    assert_eq!(
        shown,
        [
            ".metadata.labels",
            ".metadata.labels.a/b",
            ".spec.ports[port=80,protocol=\"TCP\"]",
            ".spec.ports[port=80,protocol=\"TCP\"].port",
            ".spec.set[=\"x\"]",
            ".spec.set[=3]",
        ]
    );
    assert_eq!(
        FieldSet::from_value(&json!({"q:future": {}, "x": {}, "k:broken": {}})),
        FieldSet::default()
    );
}

/// A custom kind that keeps unknown fields: their maps merge, their lists are atoms.
#[test]
fn custom_kinds_without_types() {
    use crate::schema::{Field, Struct};
    let root = Struct {
        fields: vec![
            Field::new("apiVersion", Type::String),
            Field::new("kind", Type::String),
            Field::new(
                "metadata",
                crate::schema::builtin()
                    .type_of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
                    .expect("ObjectMeta"),
            ),
        ],
        preserve_unknown: true,
        ..Struct::default()
    };
    let ty = Type::Struct(std::sync::Arc::new(root));
    let reset = FieldSet::default();
    let context = |manager: &'static str| Context {
        ty: &ty,
        api_version: "x.example.com/v1",
        kind: "X",
        subresource: "",
        manager,
        now: NOW,
        reset: &reset,
        versions: &OneVersion,
    };
    let object = |spec: &str| {
        let mut object = yaml("{apiVersion: x.example.com/v1, kind: X, metadata: {name: x}}");
        object["spec"] = yaml(spec);
        object
    };
    let first = apply(
        context("a"),
        None,
        &object("{map: {a: 1}, list: [1, 2], gone: true}"),
        false,
    )
    .expect("applied");
    let second = apply(context("b"), Some(&first), &object("{map: {b: {c: 2}}}"), false).expect("applied");
    assert_eq!(
        entries(&second)[1].2,
        json!({"f:spec": {".": {}, "f:map": {".": {}, "f:b": {".": {}, "f:c": {}}}}})
    );
    let third = apply(context("a"), Some(&second), &object("{map: {a: 1}, list: [3]}"), false).expect("applied");
    assert_eq!(third["spec"], json!({"map": {"a": 1, "b": {"c": 2}}, "list": [3]}));
    let status = apply(
        context("b"),
        Some(&third),
        &object("{map: {b: {c: 2}}, list: [1]}"),
        false,
    )
    .expect_err("a conflict");
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"a\": .spec.list"
    );
}
