//! Cases after the behaviour of upstream's strategicpatch tests, and properties of diffs.

use super::*;
use proptest::prelude::*;
use serde_json::json;

/// A type whose fields are told apart by their names.
#[derive(Clone, Copy)]
struct Item;

impl MergeSchema<'static> for Item {
    fn field(&self, name: &str) -> Option<MergeField<'static, Self>> {
        let (strategies, key) = match name {
            "mergingList" => ("merge", Some("name")),
            "ports" => ("merge", Some("port")),
            "mergingInts" | "finalizers" => ("merge", None),
            "replacingMap" => ("replace", None),
            "retainingMap" => ("retainKeys", None),
            "retainingList" => ("merge,retainKeys", Some("name")),
            "map" | "list" | "name" | "value" | "other" => ("", None),
            _ => return None,
        };
        Some(MergeField {
            strategy: FieldStrategy::from_markers(strategies, key),
            schema: Item,
        })
    }
    fn name(&self) -> String {
        "Item".to_owned()
    }
}

#[test]
fn patches_apply() {
    let cases = [
        // maps and scalars
        (
            json!({"name": 1, "value": 2}),
            json!({"value": 3}),
            json!({"name": 1, "value": 3}),
        ),
        (
            json!({"name": 1, "value": 2}),
            json!({"value": null}),
            json!({"name": 1}),
        ),
        (json!({"name": 1}), json!({"value": null}), json!({"name": 1})),
        (
            json!({}),
            json!({"map": {"name": null, "value": 1}}),
            json!({"map": {"value": 1}}),
        ),
        (
            json!({"map": {"name": 1}}),
            json!({"map": {"value": 2}}),
            json!({"map": {"name": 1, "value": 2}}),
        ),
        (json!({"map": {"name": 1}}), json!({"map": 5}), json!({"map": 5})),
        (
            json!({"map": {"name": 1}}),
            json!({"map": {"$patch": "replace", "value": 2}}),
            json!({"map": {"value": 2}}),
        ),
        (
            json!({"map": {"name": 1}}),
            json!({"map": {"$patch": "delete"}}),
            json!({"map": {}}),
        ),
        (
            json!({"map": {"name": 1}}),
            json!({"$patch": "replace", "value": 2}),
            json!({"value": 2}),
        ),
        (
            json!({"name": 1}),
            json!({"map": {"$patch": "delete"}}),
            json!({"name": 1}),
        ),
        (
            json!({"replacingMap": {"name": 1}}),
            json!({"replacingMap": {"value": 2}}),
            json!({"replacingMap": {"value": 2}}),
        ),
        // lists that are atoms
        (json!({"list": [1, 2]}), json!({"list": [3]}), json!({"list": [3]})),
        (
            json!({"list": [{"name": 1}]}),
            json!({"list": [{"name": 2}]}),
            json!({"list": [{"name": 2}]}),
        ),
        // lists by key
        (
            json!({"mergingList": [{"name": "1"}, {"name": "2", "value": 2}]}),
            json!({"mergingList": [{"name": "1", "value": "a"}]}),
            json!({"mergingList": [{"name": "1", "value": "a"}, {"name": "2", "value": 2}]}),
        ),
        (
            json!({"mergingList": [{"name": "1"}, {"name": "2"}]}),
            json!({"mergingList": [{"name": "3", "value": 1}]}),
            json!({"mergingList": [{"name": "3", "value": 1}, {"name": "1"}, {"name": "2"}]}),
        ),
        (
            json!({"mergingList": [{"name": "1"}, {"name": "2"}]}),
            json!({"mergingList": [{"name": "1", "$patch": "delete"}]}),
            json!({"mergingList": [{"name": "2"}]}),
        ),
        (
            json!({"mergingList": [{"name": "1"}, {"name": "2"}]}),
            json!({"mergingList": [{"name": "4", "$patch": "delete"}]}),
            json!({"mergingList": [{"name": "1"}, {"name": "2"}]}),
        ),
        (
            json!({"mergingList": [{"name": "1"}, {"name": "2"}]}),
            json!({"mergingList": [{"$patch": "replace"}, {"name": "3"}]}),
            json!({"mergingList": [{"name": "3"}]}),
        ),
        (
            json!({"mergingList": [{"name": "1"}, {"name": "2"}]}),
            json!({"mergingList": [{"$patch": "replace"}]}),
            json!({"mergingList": []}),
        ),
        (
            json!({}),
            json!({"mergingList": [{"name": "1", "$patch": "delete"}]}),
            json!({"mergingList": []}),
        ),
        (
            json!({"mergingList": [{"name": "1", "mergingList": [{"name": "x", "value": 1}]}]}),
            json!({"mergingList": [{"name": "1", "mergingList": [{"name": "x", "value": 2}]}]}),
            json!({"mergingList": [{"name": "1", "mergingList": [{"name": "x", "value": 2}]}]}),
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}]}),
            json!({"ports": [{"port": 443, "name": "b"}, {"port": 80, "name": null}]}),
            json!({"ports": [{"port": 443, "name": "b"}, {"port": 80}]}),
        ),
        // sets of scalars
        (
            json!({"mergingInts": [1, 2, 3]}),
            json!({"mergingInts": [4, 1]}),
            json!({"mergingInts": [4, 1, 2, 3]}),
        ),
        (
            json!({"mergingInts": [1, 2, 3]}),
            json!({"$deleteFromPrimitiveList/mergingInts": [2]}),
            json!({"mergingInts": [1, 3]}),
        ),
        (
            json!({"finalizers": ["a", "b"]}),
            json!({"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["b", "c"], "finalizers": ["c"]}),
            json!({"finalizers": ["b", "c"]}),
        ),
        (
            json!({"name": 1}),
            json!({"$deleteFromPrimitiveList/mergingInts": [2]}),
            json!({"name": 1}),
        ),
        // order
        (
            json!({"mergingList": [{"name": "1"}, {"name": "2"}, {"name": "3"}]}),
            json!({"$setElementOrder/mergingList": [{"name": "3"}, {"name": "1"}, {"name": "2"}]}),
            json!({"mergingList": [{"name": "3"}, {"name": "1"}, {"name": "2"}]}),
        ),
        (
            json!({"mergingList": [{"name": "1"}, {"name": "2"}, {"name": "3"}]}),
            json!({"$setElementOrder/mergingList": [{"name": "4"}, {"name": "1"}], "mergingList": [{"name": "4"}, {"name": "3", "$patch": "delete"}]}),
            json!({"mergingList": [{"name": "4"}, {"name": "1"}, {"name": "2"}]}),
        ),
        (
            json!({"mergingList": [{"name": "s1"}, {"name": "1"}, {"name": "s2"}, {"name": "2"}]}),
            json!({"$setElementOrder/mergingList": [{"name": "1"}, {"name": "2"}, {"name": "3"}], "mergingList": [{"name": "3"}]}),
            json!({"mergingList": [{"name": "s1"}, {"name": "1"}, {"name": "s2"}, {"name": "2"}, {"name": "3"}]}),
        ),
        (
            json!({}),
            json!({"$setElementOrder/mergingInts": [2, 1], "mergingInts": [2, 1]}),
            json!({"mergingInts": [2, 1]}),
        ),
        (json!({}), json!({"$setElementOrder/mergingInts": [2, 1]}), json!({})),
        // keys to retain
        (
            json!({"retainingMap": {"name": 1, "value": 2, "other": 3}}),
            json!({"retainingMap": {"$retainKeys": ["name", "value"], "value": 4}}),
            json!({"retainingMap": {"name": 1, "value": 4}}),
        ),
        (
            json!({"retainingList": [{"name": "a", "value": 1}, {"name": "b"}]}),
            json!({"retainingList": [{"name": "a", "$retainKeys": ["name", "other"], "other": 1}]}),
            json!({"retainingList": [{"name": "a", "other": 1}, {"name": "b"}]}),
        ),
        // directives in what is new
        (
            json!({}),
            json!({"map": {"$retainKeys": ["value"], "$setElementOrder/list": [], "value": {"$patch": "delete"}, "name": [1]}}),
            json!({"map": {"name": [1]}}),
        ),
    ];
    for (object, patch, result) in cases {
        assert_eq!(
            apply(object.clone(), patch.clone(), &Item),
            Ok(result),
            "{object} {patch}"
        );
    }
}

#[test]
fn bad_patches_say_why() {
    let object = json!({"mergingList": [{"name": "1"}], "mergingInts": [1], "map": {}, "retainingMap": {}, "weird": {}, "list": [[1]]});
    for (patch, message) in [
        (
            json!({"$patch": "jump"}),
            "unknown patch type: jump in map: map[$patch:jump]",
        ),
        (
            json!({"mergingList": [{"value": 1}]}),
            "map: map[value:1] does not contain declared merge key: name",
        ),
        (
            json!({"mergingList": [{"$patch": "delete"}]}),
            "map: map[$patch:delete] does not contain declared merge key: name",
        ),
        (
            json!({"mergingList": [{"$patch": "merge", "name": "1"}]}),
            "merging lists cannot yet be specified in the patch",
        ),
        (
            json!({"mergingList": [1]}),
            "list element types are not identical: [[map[name:1]] [1]]",
        ),
        (
            json!({"mergingInts": [[1]]}),
            "list element types are not identical: [[1] [[1]]]",
        ),
        (
            json!({"mergingInts": [null]}),
            "list element types are not identical: [[1] [<nil>]]",
        ),
        (
            json!({"weird": {"a": 1}}),
            "unable to find api field in struct Item for the json field \"weird\"",
        ),
        (
            json!({"retainingMap": {"$retainKeys": 1}}),
            "invalid patch format of retainKeys",
        ),
        (
            json!({"retainingMap": {"$retainKeys": ["a"], "b": 1}}),
            "invalid patch format of retainKeys",
        ),
        (
            json!({"$deleteFromPrimitiveList": [1]}),
            "invalid patch format of primitive list",
        ),
        (
            json!({"$setElementOrder/mergingInts": {}}),
            "expected a []interface {}, but received a map[string]interface {}",
        ),
        (
            json!({"$setElementOrder/mergingInts": [1, 2], "mergingInts": [2, 1]}),
            "The order in patch list:\n[2 1]\n doesn't match $setElementOrder list:\n[1 2]\n",
        ),
        (
            json!({"$setElementOrder/mergingList": [{"name": "2"}], "mergingList": [{"name": "3"}]}),
            "The order in patch list:\n[map[name:3]]\n doesn't match $setElementOrder list:\n[map[name:2]]\n",
        ),
    ] {
        assert_eq!(
            apply(object.clone(), patch.clone(), &Item).unwrap_err().to_string(),
            message,
            "{patch}"
        );
    }
    assert_eq!(apply(object, json!([1]), &Item), Err(StrategicPatchError::NotAnObject));
}

#[test]
fn built_in_kinds_merge_by_their_keys() {
    let pod = crate::schema::builtin()
        .kind("", "v1", "Pod")
        .map(|definition| &definition.ty)
        .unwrap();
    let object = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x"]}, "spec": {
        "containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80}], "env": [{"name": "E", "value": "1"}]}, {"name": "b", "args": ["1", "2"]}],
        "volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {"x": "y"}}});
    let patch = json!({"metadata": {"labels": {"a": null, "b": "2"}, "finalizers": ["y"]}, "spec": {
        "containers": [{"name": "a", "image": "2", "env": [{"name": "F", "value": "2"}]}, {"name": "b", "args": ["3"]}],
        "volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}, "emptyDir": null}],
        "nodeSelector": {"x": "z"}}});
    let result = json!({"metadata": {"labels": {"b": "2"}, "finalizers": ["y", "x"]}, "spec": {
        "containers": [{"name": "a", "image": "2", "ports": [{"containerPort": 80}], "env": [{"name": "F", "value": "2"}, {"name": "E", "value": "1"}]}, {"name": "b", "args": ["3"]}],
        "volumes": [{"name": "v", "secret": {"secretName": "s"}}], "nodeSelector": {"x": "z"}}});
    assert_eq!(apply(object.clone(), patch, &pod), Ok(result.clone()));
    let patch = diff(&object, &result, &pod).unwrap();
    assert_eq!(apply(object, patch, &pod), Ok(result));
    let error = apply(json!({"spec": {"nope": {}}}), json!({"spec": {"nope": {}}}), &pod).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unable to find api field in struct PodSpec for the json field \"nope\""
    );
}

/// An object of [`Item`]'s type, its lists proper: keys and scalars distinct.
fn item(depth: u32) -> BoxedStrategy<Value> {
    let scalars = (any::<bool>(), 0..9i64)
        .prop_map(|(text, number)| if text { json!(number.to_string()) } else { json!(number) });
    if depth == 0 {
        return proptest::collection::btree_map("name|value|other", scalars, 0..3)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
            .boxed();
    }
    let keyed = |key: &'static str| {
        proptest::collection::vec((0..5i64, item(depth - 1)), 0..5).prop_map(move |items| {
            let mut seen = std::collections::BTreeSet::new();
            let list = items
                .into_iter()
                .filter(|(id, _)| seen.insert(*id))
                .map(|(id, mut item)| {
                    item[key] = json!(id);
                    item
                });
            Value::Array(list.collect())
        })
    };
    let ints = Just(vec![1, 2, 3, 4, 5])
        .prop_shuffle()
        .prop_flat_map(|all| (0..5usize).prop_map(move |n| json!(all[..n])));
    let field = prop_oneof![
        keyed("name").prop_map(|list| ("mergingList", list)),
        keyed("port").prop_map(|list| ("ports", list)),
        keyed("name").prop_map(|list| ("retainingList", list)),
        ints.prop_map(|list| ("mergingInts", list)),
        item(depth - 1).prop_map(|map| ("map", map)),
        item(depth - 1).prop_map(|map| ("replacingMap", map)),
        item(depth - 1).prop_map(|map| ("retainingMap", map)),
        scalars.prop_map(|value| ("value", value)),
    ];
    proptest::collection::vec(field, 0..5)
        .prop_map(|fields| {
            Value::Object(
                fields
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            )
        })
        .boxed()
}

proptest! {
    #[test]
    fn a_diff_reaches_its_target_and_again_changes_nothing(from in item(3), to in item(3)) {
        let patch = diff(&from, &to, &Item).unwrap();
        let at = apply(from, patch.clone(), &Item).unwrap();
        prop_assert_eq!(&at, &to, "{}", patch);
        prop_assert_eq!(apply(at, patch, &Item).unwrap(), to);
    }

    #[test]
    fn any_patch_applies_or_is_refused(object in crate::patch::tests::tree(), patch in crate::patch::tests::tree()) {
        let wrap = |tree: Value| json!({"map": {"mergingList": tree}, "mergingInts": tree});
        if let Ok(result) = apply(wrap(object), wrap(patch), &Item) {
            prop_assert!(result.is_object());
        }
    }
}
