use serde_json::json;

use super::*;

const NOW: &str = "2026-11-22T10:00:00Z";
const LATER: &str = "2026-11-22T11:00:00Z";

fn deployment() -> Type {
    builtin_type("apps/v1", "Deployment").expect("Deployment")
}

fn context<'a>(ty: &'a Type, reset: &'a FieldSet, manager: &'a str, now: &'a str) -> Context<'a> {
    Context {
        ty,
        api_version: "apps/v1",
        kind: "Deployment",
        subresource: "",
        manager,
        now,
        reset,
        versions: &OneVersion,
    }
}

fn yaml(text: &str) -> Value {
    crate::codec::yaml::decode(text.as_bytes()).expect("YAML").object
}

/// A Deployment with the given spec.
fn config(spec: &str) -> Value {
    let mut object = yaml("{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: default}}");
    object["spec"] = yaml(spec);
    object
}

fn entries(object: &Value) -> Vec<(String, String, Value)> {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            (
                entry["manager"].as_str().expect("a manager").to_owned(),
                entry["operation"].as_str().expect("an operation").to_owned(),
                entry["fieldsV1"].clone(),
            )
        })
        .collect()
}

/// An object by a series of steps: `manager: spec` applies (or `manager!: spec` forces, `manager=: spec` updates).
fn steps(list: &[(&str, &str)]) -> Result<Value, Status> {
    let ty = deployment();
    let reset = FieldSet::of(&[&["status"]]);
    let mut live: Option<Value> = None;
    for (who, spec) in list {
        let name = who.trim_end_matches(['!', '=']);
        let context = context(&ty, &reset, name, NOW);
        let next = config(spec);
        live = Some(if who.ends_with('=') {
            let mut new = next;
            update(context, live.as_ref(), &mut new);
            new
        } else {
            apply(context, live.as_ref(), &next, who.ends_with('!'))?
        });
    }
    Ok(live.expect("a step"))
}

#[test]
fn apply_creates_and_owns_what_it_states() {
    let object = steps(&[(
        "kubectl",
        "{replicas: 2, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {tolerations: [{key: x}], containers: [{name: c, image: i, ports: [{containerPort: 80}], env: [{name: E, value: v}]}]}}}",
    )])
    .expect("applied");
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "kubectl", "operation": "Apply", "apiVersion": "apps/v1", "time": NOW, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {
                "f:replicas": {}, "f:selector": {},
                "f:template": {
                    "f:metadata": {"f:labels": {"f:a": {}}},
                    "f:spec": {
                        "f:tolerations": {},
                        "f:containers": {"k:{\"name\":\"c\"}": {
                            ".": {}, "f:name": {}, "f:image": {},
                            "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                            "f:env": {"k:{\"name\":\"E\"}": {".": {}, "f:name": {}, "f:value": {}}},
                        }},
                    },
                },
            }},
        }])
    );
}

#[test]
fn what_is_no_longer_applied_goes() {
    let object = steps(&[
        ("a", "{replicas: 1, minReadySeconds: 5, template: {spec: {containers: [{name: x, image: i}, {name: z, image: i}]}}}"),
        ("a", "{replicas: 1, template: {spec: {containers: [{name: z, image: i}]}}}"),
    ])
    .expect("applied");
    assert_eq!(
        object["spec"],
        json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "z", "image": "i"}]}}})
    );
}

#[test]
fn what_others_own_stays() {
    // Both state the image; one stops.
    let object = steps(&[
        ("a", "{template: {spec: {containers: [{name: x, image: i}]}}}"),
        (
            "b",
            "{template: {spec: {containers: [{name: x, image: i, tty: true}]}}}",
        ),
        ("a", "{replicas: 3}"),
    ])
    .expect("applied");
    assert_eq!(
        object["spec"],
        json!({"replicas": 3, "template": {"spec": {"containers": [{"name": "x", "image": "i", "tty": true}]}}})
    );
    let ty = deployment();
    let reset = FieldSet::default();
    let first = steps(&[("a", "{template: {spec: {containers: [{name: x, image: i}]}}}")]).expect("applied");
    let mut second = first.clone();
    second["spec"]["template"]["spec"]["containers"][0]["stdin"] = true.into();
    update(context(&ty, &reset, "editor", NOW), Some(&first), &mut second);
    let third = apply(
        context(&ty, &reset, "a", LATER),
        Some(&second),
        &config("{replicas: 1}"),
        false,
    )
    .expect("applied");
    // Nobody owns the item itself any more, so it goes with what the editor set inside it, as upstream has it.
    assert_eq!(third["spec"], json!({"replicas": 1}));
    assert_eq!(entries(&third).len(), 1);
}

#[test]
fn conflicts_are_worded_as_upstream_words_them() {
    let status = steps(&[
        ("kubectl-client-side-apply=", "{replicas: 1, paused: true}"),
        ("helm", "{replicas: 2}"),
    ])
    .expect_err("a conflict");
    assert_eq!((status.code, &*status.reason), (409, "Conflict"));
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let causes = status.details.expect("details").causes;
    assert_eq!(causes[0].reason, "FieldManagerConflict");
    assert_eq!(
        causes[0].message,
        "conflict with \"kubectl-client-side-apply\" using apps/v1"
    );
    assert_eq!(causes[0].field, ".spec.replicas");
    let status = steps(&[
        ("a", "{template: {spec: {containers: [{name: x, image: i}]}}}"),
        (
            "b=",
            "{replicas: 1, paused: true, template: {spec: {containers: [{name: x, image: i}]}}}",
        ),
        (
            "c",
            "{replicas: 2, paused: false, template: {spec: {containers: [{name: x, image: j}]}}}",
        ),
    ])
    .expect_err("conflicts");
    assert_eq!(
        status.message,
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .spec.template.spec.containers[name=\"x\"].image\n\
         conflicts with \"b\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn force_takes_and_agreement_shares() {
    let object = steps(&[("a", "{replicas: 1}"), ("b!", "{replicas: 2}")]).expect("forced");
    assert_eq!(object["spec"]["replicas"], 2);
    assert_eq!(
        entries(&object),
        [(
            "b".to_owned(),
            "Apply".to_owned(),
            json!({"f:spec": {"f:replicas": {}}})
        )]
    );
    let object = steps(&[("a", "{replicas: 1}"), ("b", "{replicas: 1}")]).expect("agreed");
    assert_eq!(entries(&object).len(), 2);
}

#[test]
fn an_update_takes_what_it_changes() {
    let object = steps(&[
        ("a", "{replicas: 1, minReadySeconds: 3}"),
        ("scaler=", "{replicas: 5, minReadySeconds: 3}"),
    ])
    .expect("updated");
    assert_eq!(
        entries(&object),
        [
            (
                "a".to_owned(),
                "Apply".to_owned(),
                json!({"f:spec": {"f:minReadySeconds": {}}})
            ),
            (
                "scaler".to_owned(),
                "Update".to_owned(),
                json!({"f:spec": {"f:replicas": {}}})
            ),
        ]
    );
    // Applying the old value again is a conflict; not stating it is not.
    let list = [
        ("a", "{replicas: 1, minReadySeconds: 3}"),
        ("scaler=", "{replicas: 5, minReadySeconds: 3}"),
    ];
    let mut again = list.to_vec();
    again.push(("a", "{replicas: 1, minReadySeconds: 3}"));
    assert!(
        steps(&again)
            .expect_err("a conflict")
            .message
            .contains("conflict with \"scaler\" using apps/v1: .spec.replicas")
    );
    let mut without = list.to_vec();
    without.push(("a", "{minReadySeconds: 3}"));
    assert_eq!(steps(&without).expect("applied")["spec"]["replicas"], 5);
}

#[test]
fn create_by_update_reads_as_upstream_prints_it() {
    let ty = deployment();
    let reset = FieldSet::of(&[&["status"]]);
    let mut object = config(
        "{replicas: 1, selector: {matchLabels: {a: b}}, strategy: {rollingUpdate: {maxSurge: 25%}, type: RollingUpdate}, template: {metadata: {labels: {a: b}}, spec: {dnsPolicy: ClusterFirst, securityContext: {}, containers: [{name: c, image: i}]}}}",
    );
    object["metadata"]["labels"] = json!({"x": "y"});
    object["status"] = json!({"replicas": 1});
    update(context(&ty, &reset, "kubectl-create", NOW), None, &mut object);
    assert_eq!(
        entries(&object),
        [(
            "kubectl-create".to_owned(),
            "Update".to_owned(),
            json!({
                "f:metadata": {"f:labels": {".": {}, "f:x": {}}},
                "f:spec": {
                    "f:replicas": {}, "f:selector": {},
                    "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
                    "f:template": {
                        "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                        "f:spec": {
                            "f:dnsPolicy": {}, "f:securityContext": {},
                            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}},
                        },
                    },
                },
            })
        )]
    );
    // A write of the same thing changes nothing.
    let mut same = object.clone();
    update(context(&ty, &reset, "kubectl-create", LATER), Some(&object), &mut same);
    assert_eq!(same, object);
    // The status endpoint owns its part apart.
    let status_reset = FieldSet::of(&[&["spec"]]);
    let mut status_context = context(&ty, &status_reset, "controller", LATER);
    status_context.subresource = "status";
    let mut new = object.clone();
    new["status"] = json!({"replicas": 2});
    update(status_context, Some(&object), &mut new);
    assert_eq!(
        entries(&new)[1],
        (
            "controller".to_owned(),
            "Update".to_owned(),
            json!({"f:status": {"f:replicas": {}}})
        )
    );
    assert_eq!(new["metadata"]["managedFields"][1]["subresource"], "status");
}

#[test]
fn untracked_objects_stay_untracked_until_applied() {
    let ty = deployment();
    let reset = FieldSet::default();
    let live = config("{replicas: 1}");
    let mut new = config("{replicas: 2}");
    update(context(&ty, &reset, "x", NOW), Some(&live), &mut new);
    assert_eq!(new["metadata"].get("managedFields"), None);
    let object = apply(
        context(&ty, &reset, "a", NOW),
        Some(&live),
        &config("{paused: true}"),
        false,
    )
    .expect("applied");
    let names: Vec<String> = entries(&object).into_iter().map(|(name, _, _)| name).collect();
    assert_eq!(names, ["a", "before-first-apply"]);
    // Asking to forget all owners.
    let mut reset_request = object.clone();
    reset_request["metadata"]["managedFields"] = json!([{}]);
    update(context(&ty, &reset, "x", NOW), Some(&object), &mut reset_request);
    assert_eq!(reset_request["metadata"].get("managedFields"), None);
    // A client that does not know managed fields does not lose them.
    let mut unaware = object.clone();
    meta::strip_managed_fields(&mut unaware);
    update(context(&ty, &reset, "x", NOW), Some(&object), &mut unaware);
    assert_eq!(unaware, object);
}

#[test]
fn applying_twice_changes_nothing() {
    let spec = "{replicas: 2, template: {spec: {containers: [{name: c, image: i}]}}}";
    let first = steps(&[("a", spec)]).expect("applied");
    let ty = deployment();
    let reset = FieldSet::default();
    let second = apply(context(&ty, &reset, "a", LATER), Some(&first), &config(spec), false).expect("applied");
    assert_eq!(second, first);
    let third = apply(
        context(&ty, &reset, "a", LATER),
        Some(&first),
        &config("{replicas: 3}"),
        false,
    )
    .expect("applied");
    assert_eq!(third["metadata"]["managedFields"][0]["time"], LATER);
}

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
fn kubectl_takes_over_from_client_side_apply() {
    let ty = deployment();
    let reset = FieldSet::default();
    let last = config("{replicas: 1, paused: true}");
    let mut live = last.clone();
    live["metadata"]["annotations"] = json!({ LAST_APPLIED: last.to_string() });
    update(context(&ty, &reset, "kubectl-client-side-apply", NOW), None, &mut live);
    let new = apply(
        context(&ty, &reset, "kubectl", LATER),
        Some(&live),
        &config("{replicas: 3}"),
        false,
    )
    .expect("taken over");
    assert_eq!(new["spec"]["replicas"], 3);
    assert_eq!(
        new["metadata"]["annotations"][LAST_APPLIED],
        format!("{}\n", config("{replicas: 3}"))
    );
    // Others are refused, and so is kubectl where someone changed the value since.
    apply(
        context(&ty, &reset, "helm", LATER),
        Some(&live),
        &config("{replicas: 3}"),
        false,
    )
    .expect_err("a conflict");
    let mut drifted = live.clone();
    drifted["spec"]["replicas"] = 7.into();
    update(context(&ty, &reset, "scaler", NOW), Some(&live), &mut drifted);
    let status = apply(
        context(&ty, &reset, "kubectl", LATER),
        Some(&drifted),
        &config("{replicas: 3, paused: false}"),
        false,
    )
    .expect_err("a conflict");
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas"
    );
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
fn old_updaters_are_merged() {
    let ty = deployment();
    let reset = FieldSet::default();
    let mut live = steps(&[("a", "{replicas: 1}")]).expect("applied");
    for turn in 0..15u32 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{turn}")] = "x".into();
        let now = format!("2026-11-22T10:00:{turn:02}Z");
        let name = format!("m{turn:02}");
        update(context(&ty, &reset, &name, &now), Some(&live), &mut new);
        live = new;
    }
    let names: Vec<String> = entries(&live).into_iter().map(|(name, _, _)| name).collect();
    assert_eq!(names.len(), 11);
    assert_eq!(names[..3], ["a", "ancient-changes", "m06"]);
    assert!(entries(&live)[1].2["f:metadata"]["f:labels"].get("f:l5").is_some());
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

#[test]
fn managers_have_names() {
    assert_eq!(manager_name("me", "kubectl/v1"), "me");
    assert_eq!(manager_name("", "kubectl/v1.36 (linux/amd64)"), "kubectl");
    assert_eq!(manager_name("", ""), "unknown");
}

mod properties {
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
    }
}

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
