//! What holds of any configuration.

use proptest::prelude::*;

use super::*;

/// A Deployment's configuration with some of its fields.
fn some_config() -> impl Strategy<Value = Value> {
    let env = proptest::collection::btree_map("[EF]", "[uv]", 0..3);
    let ports = proptest::collection::btree_set(80..83i32, 0..3);
    let container = ("[ij]", env, ports).prop_map(|(image, env, ports)| {
        let mut out = json!({ "image": image });
        if !env.is_empty() {
            out["env"] = env
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
        }
        if !ports.is_empty() {
            out["ports"] = ports.into_iter().map(|port| json!({"containerPort": port})).collect();
        }
        out
    });
    let containers = proptest::collection::btree_map("[abc]", container, 0..3);
    let labels = proptest::collection::btree_map("[xyz]", "[12]", 0..3);
    let replicas = proptest::option::of(0..3i32);
    (replicas, any::<bool>(), containers, labels).prop_map(|(replicas, paused, containers, labels)| {
        let mut object = config("{}");
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = replicas.into();
        }
        if paused {
            object["spec"]["paused"] = true.into();
        }
        if !containers.is_empty() {
            object["spec"]["template"]["spec"]["containers"] = containers
                .into_iter()
                .map(|(name, mut container)| {
                    container["name"] = name.into();
                    container
                })
                .collect();
        }
        if !labels.is_empty() {
            object["metadata"]["labels"] = json!(labels);
        }
        object
    })
}

fn without_owners(mut object: Value) -> Value {
    meta::strip_managed_fields(&mut object);
    // An empty spec is as good as none.
    if object["spec"] == json!({}) {
        object.as_object_mut().expect("an object").remove("spec");
    }
    object
}

proptest! {
    #[test]
    fn a_lone_applier_gets_what_it_states(first in some_config(), second in some_config()) {
        let (ty, reset) = (deployment(), FieldSet::default());
        let one = apply(context(&ty, &reset, "a", NOW), None, &first, false).expect("applied");
        let two = apply(context(&ty, &reset, "a", LATER), Some(&one), &second, false).expect("applied");
        let fresh = apply(context(&ty, &reset, "a", LATER), None, &second, false).expect("applied");
        prop_assert_eq!(without_owners(two.clone()), without_owners(fresh));
        let again = apply(context(&ty, &reset, "a", "2027-01-01T00:00:00Z"), Some(&two), &second, false).expect("applied");
        prop_assert_eq!(again, two);
    }

    #[test]
    fn force_wins_and_conflicts_change_nothing(first in some_config(), second in some_config()) {
        let (ty, reset) = (deployment(), FieldSet::default());
        let one = apply(context(&ty, &reset, "a", NOW), None, &first, false).expect("applied");
        let forced = apply(context(&ty, &reset, "b", LATER), Some(&one), &second, true).expect("forced");
        // Laying the configuration over the result changes nothing: every stated value is there.
        let over = walk::merge(Node::root(&ty), &forced, &second);
        prop_assert_eq!(without_owners(over), without_owners(forced.clone()));
        // Without force the result is the same, or a conflict.
        if let Ok(agreed) = apply(context(&ty, &reset, "b", LATER), Some(&one), &second, false) {
            prop_assert_eq!(agreed, forced.clone());
        }
        // Nothing the first applier stated is lost (an empty spec may be filled).
        for path in walk::fields_of(Node::root(&ty), &first).paths() {
            if path.len() == 1 {
                continue;
            }
            prop_assert!(walk::fields_of(Node::root(&ty), &forced).has(&path), "{}", show(&path));
        }
    }

    #[test]
    fn sets_are_sets(left in some_config(), right in some_config()) {
        let ty = deployment();
        let (a, b) = (walk::fields_of(Node::root(&ty), &left), walk::fields_of(Node::root(&ty), &right));
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(FieldSet::from_value(&a.to_value()), a);
    }

    #[test]
    fn noise_in_managed_fields_never_panics(text in "[fkvi.:{}\"a-c0-9]{0,12}", manager in "[a-c]{0,2}") {
        let (ty, reset) = (deployment(), FieldSet::default());
        let mut live = config("{replicas: 1}");
        live["metadata"]["managedFields"] = json!([{
            "manager": manager, "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
            "fieldsV1": {text.clone(): {text: {}}},
        }]);
        apply(context(&ty, &reset, "a", NOW), Some(&live), &config("{paused: true}"), true).expect("applied");
    }

    #[test]
    fn the_quick_way_is_the_general_one(
        writes in proptest::collection::vec((0..4usize, 0..13usize, some_config(), any::<bool>()), 1..24),
        odd in proptest::option::weighted(0.2, "[fkv]:([a-c.]|[{]\"a\":\"b\"[}]|[{]\"a\": \"b\"[}])"),
    ) {
        let (ty, main, status) = (deployment(), FieldSet::of(&[&["status"]]), FieldSet::of(&[&["spec"], &["metadata"]]));
        let mut live: Option<Value> = None;
        for (at, (kind, manager, config, sends)) in writes.into_iter().enumerate() {
            let (manager, now) = (format!("m{manager}"), format!("2026-11-22T10:{:02}:00Z", at / 2));
            let context = match kind {
                3 => Context { subresource: "status", ..context(&ty, &status, &manager, &now) },
                _ => context(&ty, &main, &manager, &now),
            };
            let mut new = config;
            if let Some(live) = &live {
                if kind == 3 {
                    let replicas = new["spec"].get("replicas").cloned().unwrap_or(json!(0));
                    new = live.clone();
                    new["status"] = json!({ "replicas": replicas });
                } else if let Some(status) = live.get("status") {
                    new["status"] = status.clone();
                }
                match managed::entries(live) {
                    Some(entries) if sends => new["metadata"]["managedFields"] = entries.clone(),
                    _ => drop(meta::strip_managed_fields(&mut new)),
                }
            }
            if kind == 2 {
                meta::strip_managed_fields(&mut new);
                live = Some(apply(context, live.as_ref(), &new, true).expect("applied"));
                continue;
            }
            let mut general = new.clone();
            note(context, live.as_ref(), &mut new, true);
            note(context, live.as_ref(), &mut general, false);
            prop_assert_eq!(&new, &general);
            // What older servers and other programs recorded.
            if let Some(odd) = &odd
                && let Some(first) = new.pointer_mut("/metadata/managedFields/0/fieldsV1")
            {
                first[odd] = json!({ odd: {}, ".": {} });
            }
            live = Some(new);
        }
    }
}

#[test]
fn the_quick_way_is_gone_when_nobody_elses_fields_change() {
    let ty = deployment();
    let reset = FieldSet::of(&[&["status"]]);
    let gone = |manager: &str, before: &Value, after: &Value| {
        let context = context(&ty, &reset, manager, LATER);
        let comparison = context.compare(context.node(), before, after);
        let mut entries = managed::entries(before)
            .and_then(Value::as_array)
            .cloned()
            .expect("entries");
        quick::note(context, &comparison, &mut entries)
    };
    let live = steps(&[("a", "{replicas: 1}"), ("b=", "{replicas: 1, paused: true}")]).expect("steps");
    let mut new = live.clone();
    new["spec"]["paused"] = false.into();
    assert!(gone("b", &live, &new));
    assert!(!gone("c", &live, &new), "b loses a field");
    new = live.clone();
    new["spec"]["minReadySeconds"] = 5.into();
    assert!(gone("b", &live, &new) && gone("c", &live, &new));
    new["spec"]["replicas"] = 2.into();
    assert!(!gone("b", &live, &new), "a loses a field");
}
