//! Objects that cannot be: names, references, immutable fields, stale versions.

use super::*;

#[test]
fn objects_that_cannot_be() {
    if !ready("objects_that_cannot_be") {
        return;
    }
    let cluster = api("objects");
    let http = Http::new(&cluster);
    let mut findings = Findings::default();
    let found = &mut findings;
    const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

    let answer = http.post(CM, &config_map("Bad_Name"));
    found.refused(
        "an impossible name",
        &answer,
        422,
        "Invalid",
        &format!(r#"ConfigMap "Bad_Name" is invalid: metadata.name: Invalid value: "Bad_Name": {SUBDOMAIN}"#),
    );
    found.causes("an impossible name", &answer, &[("FieldValueInvalid", "metadata.name")]);
    let answer = http.post(
        "/api/v1/namespaces",
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a.b"}}),
    );
    found.refused(
        "an impossible namespace",
        &answer,
        422,
        "Invalid",
        r#"Namespace "a.b" is invalid: metadata.name: Invalid value: "a.b": must not contain dots"#,
    );
    found.refused_with(
        "a name too long",
        &http.post(CM, &config_map(&"a".repeat(254))),
        422,
        "Invalid",
        "must be no more than 253 characters",
    );
    let answer = http.post(CM, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}));
    found.refused(
        "no name",
        &answer,
        422,
        "Invalid",
        r#"ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required"#,
    );
    found.causes("no name", &answer, &[("FieldValueRequired", "metadata.name")]);
    found.refused(
        "a namespace that is not there",
        &http.post("/api/v1/namespaces/none/configmaps", &config_map("a")),
        404,
        "NotFound",
        r#"namespaces "none" not found"#,
    );
    let mut labeled = config_map("labeled");
    labeled["metadata"]["labels"] = json!({"a b": "x", "ok": "not ok!"});
    let answer = http.post(CM, &labeled);
    found.causes(
        "bad labels",
        &answer,
        &[
            ("FieldValueInvalid", "metadata.labels"),
            ("FieldValueInvalid", "metadata.labels"),
        ],
    );
    let mut keyed = config_map("keyed");
    keyed["data"] = json!({"not/a/key": "x"});
    found.refused(
        "an impossible key",
        &http.post(CM, &keyed),
        422,
        "Invalid",
        r#"ConfigMap "keyed" is invalid: data[not/a/key]: Invalid value: "not/a/key": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#,
    );
    let answer = http.post(
        PODS,
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "empty"}, "spec": {}}),
    );
    found.refused(
        "a Pod without containers",
        &answer,
        422,
        "Invalid",
        r#"Pod "empty" is invalid: spec.containers: Required value"#,
    );
    let mut several = pod("several");
    several["spec"]["restartPolicy"] = "Sometimes".into();
    several["spec"]["containers"] =
        json!([{"name": "a", "image": ""}, {"name": "a", "image": "i", "ports": [{"containerPort": 70000}]}]);
    let answer = http.post(PODS, &several);
    found.causes(
        "several mistakes",
        &answer,
        &[
            ("FieldValueRequired", "spec.containers[0].image"),
            ("FieldValueInvalid", "spec.containers[1].ports[0].containerPort"),
            ("FieldValueDuplicate", "spec.containers[1].name"),
            ("FieldValueNotSupported", "spec.restartPolicy"),
        ],
    );
    let mut mismatched = deployment("d");
    mismatched["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    found.refused(
        "a selector that does not match",
        &http.post(DEPLOYMENTS, &mismatched),
        422,
        "Invalid",
        r#"Deployment.apps "d" is invalid: spec.template.metadata.labels: Invalid value: {"app":"other"}: `selector` does not match template `labels`"#,
    );

    // Options.
    let create = |query: &str| http.post(&format!("{CM}?{query}"), &config_map("options"));
    found.refused(
        "an unknown dry run",
        &create("dryRun=Some"),
        422,
        "Invalid",
        r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Some"]: supported values: "All""#,
    );
    found.refused_with(
        "a field manager too long",
        &create(&format!("fieldManager={}", "m".repeat(129))),
        422,
        "Invalid",
        "fieldManager: Too long: may not be more than 128 bytes",
    );
    found.accepted("a dry run", &create("dryRun=All"), 201);
    found.refused(
        "a dry run made nothing",
        &http.get(&format!("{CM}/options")),
        404,
        "NotFound",
        r#"configmaps "options" not found"#,
    );
    let generated = http.post(
        CM,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "gen-"}}),
    );
    found.accepted("generateName", &generated, 201);
    let name = generated.json()["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    found.check("a generated name", name.len() == 9 && name.starts_with("gen-"), &name);

    // Updates.
    let made = http.post(CM, &config_map("a")).json();
    let mut changed = made.clone();
    changed["data"]["key"] = "other".into();
    found.accepted("an update", &http.put(&format!("{CM}/a"), &changed), 200);
    changed["data"]["key"] = "third".into();
    let answer = http.put(&format!("{CM}/a"), &changed);
    found.refused(
        "a stale version",
        &answer,
        409,
        "Conflict",
        r#"Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again"#,
    );
    let details = &answer.json()["details"];
    found.check(
        "a stale version's details",
        *details == json!({"name": "a", "kind": "configmaps"}),
        details,
    );
    found.refused(
        "another name in the path",
        &http.put(&format!("{CM}/b"), &config_map("a")),
        400,
        "BadRequest",
        "the name of the object (a) does not match the name on the URL (b)",
    );
    found.refused(
        "an update of what is not there",
        &http.put(&format!("{CM}/absent"), &config_map("absent")),
        404,
        "NotFound",
        r#"configmaps "absent" not found"#,
    );
    found.refused(
        "created with a version",
        &http.post(CM, &made),
        500,
        "",
        "resourceVersion should not be set on objects to be created",
    );
    let mut stranger = config_map("a");
    stranger["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555".into();
    found.refused_with(
        "an update of another object of that name",
        &http.put(&format!("{CM}/a"), &stranger),
        409,
        "Conflict",
        "Precondition failed: UID in precondition: 11111111-2222-3333-4444-555555555555, UID in object meta: ",
    );

    // What may not change.
    let mut fixed = config_map("fixed");
    fixed["immutable"] = true.into();
    found.accepted("an immutable map", &http.post(CM, &fixed), 201);
    fixed["data"]["key"] = "other".into();
    let answer = http.put(&format!("{CM}/fixed"), &fixed);
    found.refused(
        "a change of an immutable map",
        &answer,
        422,
        "Invalid",
        r#"ConfigMap "fixed" is invalid: data: Forbidden: field is immutable when `immutable` is set"#,
    );
    found.causes(
        "a change of an immutable map",
        &answer,
        &[("FieldValueForbidden", "data")],
    );
    found.accepted("a deployment", &http.post(DEPLOYMENTS, &deployment("d")), 201);
    let mut other = deployment("d");
    other["spec"]["selector"]["matchLabels"] = json!({"app": "other"});
    other["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    found.refused(
        "another selector",
        &http.put(&format!("{DEPLOYMENTS}/d"), &other),
        422,
        "Invalid",
        r#"Deployment.apps "d" is invalid: spec.selector: Invalid value: {"matchLabels":{"app":"other"}}: field is immutable"#,
    );
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = |kind: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": kind});
    found.accepted("a secret", &http.post(secrets, &secret("Opaque")), 201);
    found.refused(
        "another type",
        &http.put(&format!("{secrets}/s"), &secret("example.com/other")),
        422,
        "Invalid",
        r#"Secret "s" is invalid: type: Invalid value: "example.com/other": field is immutable"#,
    );
    found.accepted("a Pod", &http.post(PODS, &pod("p")), 201);
    let answer = http.patch(
        "merge-patch+json",
        &format!("{PODS}/p"),
        r#"{"spec":{"hostNetwork":true}}"#,
    );
    found.refused_with(
        "a change of a Pod",
        &answer,
        422,
        "Invalid",
        "Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
    );
    let services = "/api/v1/namespaces/default/services";
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    found.accepted("a Service", &http.post(services, &service), 201);
    let answer = http.patch(
        "merge-patch+json",
        &format!("{services}/s"),
        r#"{"spec":{"clusterIP":"10.96.99.99","clusterIPs":["10.96.99.99"]}}"#,
    );
    found.refused_with(
        "another address",
        &answer,
        422,
        "Invalid",
        r#"spec.clusterIPs[0]: Invalid value: ["10.96.99.99"]: may not change once set"#,
    );

    // Deletion.
    let answer = http.delete(
        &format!("{CM}/a"),
        &json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "11111111-2222-3333-4444-555555555555"}}),
    );
    found.refused_with(
        "a deletion of another object",
        &answer,
        409,
        "Conflict",
        r#"Operation cannot be fulfilled on ConfigMap "a": the UID in the precondition (11111111-2222-3333-4444-555555555555) does not match the UID in record ("#,
    );
    let answer = http.delete(&format!("{CM}/a"), &json!({"preconditions": {"resourceVersion": "1"}}));
    found.refused_with(
        "a deletion of another version",
        &answer,
        409,
        "Conflict",
        r#"Operation cannot be fulfilled on ConfigMap "a": the ResourceVersion in the precondition (1) does not match the ResourceVersion in record ("#,
    );
    let answer = http.delete(&format!("{CM}/a"), &json!({"propagationPolicy": "Sideways"}));
    found.refused_with(
        "an unknown propagation",
        &answer,
        422,
        "Invalid",
        r#"DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "Sideways""#,
    );
    let answer = http.delete(
        &format!("{CM}/a"),
        &json!({"orphanDependents": true, "propagationPolicy": "Orphan"}),
    );
    found.refused_with(
        "two propagations",
        &answer,
        422,
        "Invalid",
        "orphanDependents and deletionPropagation cannot be both set",
    );
    found.accepted(
        "a dry deletion",
        &http.send("DELETE", &format!("{CM}/a?dryRun=All"), &[], &[]),
        200,
    );
    found.accepted("still there", &http.get(&format!("{CM}/a")), 200);
    let mut held = config_map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    found.accepted("with a finalizer", &http.post(CM, &held), 201);
    let answer = http.send("DELETE", &format!("{CM}/held"), &[], &[]);
    found.accepted("its deletion", &answer, 200);
    found.check(
        "its deletion answers with the object",
        answer.json()["metadata"]["deletionTimestamp"].is_string() && answer.json()["kind"] == "ConfigMap",
        &answer.body,
    );
    let answer = http.patch(
        "merge-patch+json",
        &format!("{CM}/held"),
        r#"{"metadata":{"finalizers":["example.com/hold","example.com/more"]}}"#,
    );
    found.refused_with(
        "a new finalizer on what goes",
        &answer,
        422,
        "Invalid",
        r#"ConfigMap "held" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{"example.com/more"}"#,
    );
    found.accepted(
        "its release",
        &http.patch(
            "merge-patch+json",
            &format!("{CM}/held"),
            r#"{"metadata":{"finalizers":null}}"#,
        ),
        200,
    );
    found.refused(
        "it is gone",
        &http.get(&format!("{CM}/held")),
        404,
        "NotFound",
        r#"configmaps "held" not found"#,
    );
    let mut finalized = config_map("finalized");
    finalized["metadata"]["finalizers"] = json!(["nonsense"]);
    found.refused_with("a finalizer without a domain", &http.post(CM, &finalized), 422, "Invalid", "metadata.finalizers[0]: Invalid value: \"nonsense\": name is neither a standard finalizer name nor is it fully qualified");
    found.refused(
        "the default namespace",
        &http.send("DELETE", "/api/v1/namespaces/default", &[], &[]),
        403,
        "Forbidden",
        r#"namespaces "default" is forbidden: this namespace may not be deleted"#,
    );
    found.accepted("the server goes on", &http.get("/readyz"), 200);
    findings.none();
}
