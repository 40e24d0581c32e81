//! Who owns what: applied, updated, forced, taken over.

use super::*;

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
        "{replicas: 1, selector: {matchLabels: {a: b}}, strategy: {rollingUpdate: {maxSurge: 25%}, type: RollingUpdate}, template: {metadata: {labels: {a: b}}, spec: {dnsPolicy: ClusterFirst, securityContext: {}, containers: [{name: c, image: i, resources: {}}]}}}",
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
                            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}},
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
fn managers_have_names() {
    assert_eq!(manager_name("me", "kubectl/v1"), "me");
    assert_eq!(manager_name("", "kubectl/v1.36 (linux/amd64)"), "kubectl");
    assert_eq!(manager_name("", ""), "unknown");
}

#[test]
fn what_go_always_prints_is_nobodys() {
    let (reset, versions) = (FieldSet::default(), OneVersion);
    let written = |api_version: &str, kind: &str, mut object: Value| {
        let ty = builtin_type(api_version, kind).expect("a type");
        object["apiVersion"] = api_version.into();
        object["kind"] = kind.into();
        let context = Context {
            ty: &ty,
            api_version,
            kind,
            subresource: "",
            manager: "a",
            now: NOW,
            reset: &reset,
            versions: &versions,
        };
        crate::codec::check(&ty, &mut object).expect("an object");
        update(context, None, &mut object);
        entries(&object)
            .into_iter()
            .map(|(.., fields)| fields)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        written(
            "apps/v1",
            "StatefulSet",
            json!({"spec": {"serviceName": "", "replicas": 1}})
        ),
        [json!({"f:spec": {"f:replicas": {}}})]
    );
    assert_eq!(
        written("apps/v1", "ControllerRevision", json!({"data": {}})),
        [json!({"f:data": {}})]
    );
    // Items without their key cannot be owned, nor can anything beside them.
    let account = json!({"secrets": [{}], "automountServiceAccountToken": true});
    assert_eq!(written("v1", "ServiceAccount", account), [Value::Null; 0]);
}
