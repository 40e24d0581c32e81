//! Owners in other versions of a kind.

use super::*;

/// `g/v2` calls `v1`'s `old` `new`, and keeps a list in a map.
struct Renamed(Vec<(&'static str, Type)>);

impl Renamed {
    fn new() -> Self {
        let of = |field: &str| {
            crate::schema::structural::of_kind(&json!({"type": "object", "properties": {"spec": {"type": "object",
                "properties": {field: {"type": "string"}, "same": {"type": "string"}}}}}))
            .expect("a type")
        };
        Renamed(vec![("g/v1", of("old")), ("g/v2", of("new"))])
    }
    fn ty(&self, version: &str) -> &Type {
        &self.0.iter().find(|(known, _)| *known == version).expect("a version").1
    }
}

impl Versions for Renamed {
    fn convert(&self, object: &Object, version: &str) -> Result<Option<(Object, Type)>, String> {
        if version == "g/v3" {
            return Err("no answer".into());
        }
        let Some((_, ty)) = self.0.iter().find(|(known, _)| *known == version) else {
            return Ok(None);
        };
        let mut object = object.clone();
        if meta::api_version(&object) != version {
            let (from, to) = if version == "g/v2" {
                ("old", "new")
            } else {
                ("new", "old")
            };
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
                && let Some(value) = spec.remove(from)
            {
                spec.insert(to.to_owned(), value);
            }
            object["apiVersion"] = version.into();
        }
        Ok(Some((object, ty.clone())))
    }
}

#[test]
fn entries_of_other_versions_are_judged_there() {
    let versions = Renamed::new();
    let reset = FieldSet::default();
    let context = |version: &'static str, manager: &'static str| Context {
        ty: versions.ty(version),
        api_version: version,
        kind: "K",
        subresource: "",
        manager,
        now: NOW,
        reset: &reset,
        versions: &versions,
    };
    let object = |version: &str, spec: Value| json!({"apiVersion": version, "kind": "K", "metadata": {"name": "n"}, "spec": spec});
    let to = |version: &str, object: &Object| {
        versions
            .convert(object, version)
            .expect("converted")
            .expect("a version")
            .0
    };
    let first = apply(
        context("g/v1", "a"),
        None,
        &object("g/v1", json!({"old": "x", "same": "y"})),
        false,
    )
    .expect("applied");

    // The other name of the same field is a conflict, and of the field as its owner knows it.
    let live = to("g/v2", &first);
    let refused = apply(
        context("g/v2", "b"),
        Some(&live),
        &object("g/v2", json!({"new": "z"})),
        false,
    )
    .expect_err("a conflict");
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"a\": .spec.old"
    );
    let forced = apply(
        context("g/v2", "b"),
        Some(&live),
        &object("g/v2", json!({"new": "z"})),
        true,
    )
    .expect("forced");
    assert_eq!(forced["spec"], json!({"new": "z", "same": "y"}));
    assert_eq!(
        entries(&forced)[0],
        ("a".into(), "Apply".into(), json!({"f:spec": {"f:same": {}}}))
    );

    // What was stated in one version and is not in the other any more goes; what another owns stays.
    let shared = apply(
        context("g/v2", "b"),
        Some(&live),
        &object("g/v2", json!({"new": "x"})),
        false,
    )
    .expect("shared");
    let taken = apply(context("g/v2", "a"), Some(&shared), &object("g/v2", json!({})), false).expect("taken back");
    assert_eq!(taken["spec"], json!({"new": "x"}));
    let alone = apply(
        context("g/v2", "a"),
        Some(&live),
        &object("g/v2", json!({"same": "y"})),
        false,
    )
    .expect("taken back");
    assert_eq!(alone["spec"], json!({"same": "y"}));

    // Updates take fields from their owners in the owners' terms.
    let mut updated = live.clone();
    updated["spec"]["new"] = "w".into();
    update(context("g/v2", "c"), Some(&live), &mut updated);
    assert_eq!(entries(&updated)[0].2, json!({"f:spec": {"f:same": {}}}));
    assert_eq!(entries(&updated)[1].2, json!({"f:spec": {"f:new": {}}}));

    // A version that is gone takes its entries with it; one that cannot be shown now keeps them.
    for (version, left) in [("g/v0", 1), ("g/v3", 2)] {
        let mut old = live.clone();
        old["metadata"]["managedFields"][0]["apiVersion"] = version.into();
        let mut updated = old.clone();
        updated["spec"]["new"] = "w".into();
        update(context("g/v2", "c"), Some(&old), &mut updated);
        assert_eq!(entries(&updated).len(), left, "{version}");
    }
    let mut old = live.clone();
    old["metadata"]["managedFields"][0]["apiVersion"] = "g/v3".into();
    let failed = apply(
        context("g/v2", "b"),
        Some(&old),
        &object("g/v2", json!({"new": "z"})),
        true,
    )
    .expect_err("no conversion");
    assert_eq!(failed.message, "failed to convert old object: no answer");
}

#[test]
fn owners_of_parts_own_what_has_become_one() {
    let granular = json!({"type": "object", "properties": {"spec": {"type": "object", "additionalProperties": {"type": "string"}}}});
    let mut atomic = granular.clone();
    atomic["properties"]["spec"]["x-kubernetes-map-type"] = "atomic".into();
    let ty = |schema: &Value| crate::schema::structural::of_kind(schema).expect("a type");
    let (before, after) = (ty(&granular), ty(&atomic));
    let reset = FieldSet::default();
    let context = |ty, manager| Context {
        ty,
        api_version: "g/v1",
        kind: "K",
        subresource: "",
        manager,
        now: NOW,
        reset: &reset,
        versions: &OneVersion,
    };
    let object = |spec: Value| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "spec": spec});
    let first = apply(context(&before, "a"), None, &object(json!({"x": "1"})), false).expect("applied");
    let refused = apply(context(&after, "b"), Some(&first), &object(json!({"y": "1"})), false).expect_err("a conflict");
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"a\": .spec"
    );
}
