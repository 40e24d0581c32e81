//! Bad input at the API: each answer is a Status with the code, reason, causes and wording clients know from upstream.

use sampan_e2e::http::{Findings, Http};
use sampan_e2e::{Cluster, ready};
use serde_json::{Value, json};

const CM: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// An API without machines below it: nothing here needs a Pod to run.
fn api(name: &str) -> Cluster {
    let mut cluster = Cluster::prepare(name, &["--disable=node,dns,proxy"]);
    cluster.start_server();
    cluster.wait("the default service account", 30, |cluster| {
        cluster.try_kubectl("get serviceaccount default").is_ok()
    });
    cluster
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": "value"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"schedulingGates": [{"name": "example.com/held"}], "containers": [{"name": "c", "image": "i"}]}})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[test]
fn bodies_that_are_not_objects() {
    if !ready("bodies_that_are_not_objects") {
        return;
    }
    let cluster = api("bodies");
    let http = Http::new(&cluster);
    let mut findings = Findings::default();
    let found = &mut findings;

    let bad = |body: &str| http.send("POST", CM, &[], body.as_bytes());
    found.refused(
        "truncated JSON",
        &bad(r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":"#),
        400,
        "BadRequest",
        r#"the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input ({"apiVersion":"v1","kind":"Con ...)"#,
    );
    found.refused(
        "not JSON at all",
        &bad("hello"),
        400,
        "BadRequest",
        "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: invalid character 'h' looking for beginning of value (68656c6c6f)",
    );
    found.refused_with(
        "an array",
        &bad("[]"),
        400,
        "BadRequest",
        "couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct",
    );
    found.refused_with("an empty body", &bad(""), 400, "BadRequest", "(<empty>)");
    found.refused(
        "broken YAML",
        &http.send("POST", CM, &["Content-Type: application/yaml"], b"a: [1\nb: 2\n"),
        400,
        "BadRequest",
        "the object provided is unrecognized (must be of type ConfigMap): error converting YAML to JSON: yaml: illegal placement of ':' indicator at line 2, column 2 (613a205b310a623a20320a)",
    );
    found.refused_with(
        "bytes that are not UTF-8",
        &http.send("POST", CM, &[], b"\xff\xfe{\"kind\""),
        400,
        "BadRequest",
        "",
    );
    found.refused(
        "an unknown kind",
        &bad(r#"{"apiVersion":"v1","kind":"Nonsense","metadata":{"name":"a"}}"#),
        400,
        "BadRequest",
        r#"Nonsense in version "v1" cannot be handled as a ConfigMap: no kind "Nonsense" is registered for version "v1" in scheme "sampan""#,
    );
    found.refused_with(
        "another kind",
        &bad(r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"}}"#),
        400,
        "BadRequest",
        r#"Secret in version "v1" cannot be handled as a ConfigMap: "#,
    );
    found.refused(
        "a number where a map is due",
        &bad(r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":5}"#),
        400,
        "BadRequest",
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type map[string]string"#,
    );
    found.refused(
        "a number where a text is due",
        &bad(r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":5}}"#),
        400,
        "BadRequest",
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string"#,
    );
    let mut wrong = deployment("d");
    wrong["spec"]["replicas"] = "three".into();
    found.refused(
        "a text where a number is due",
        &http.post(DEPLOYMENTS, &wrong),
        400,
        "BadRequest",
        r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#,
    );
    wrong["spec"]["replicas"] = json!(3_000_000_000_u64);
    found.refused(
        "a number too large",
        &http.post(DEPLOYMENTS, &wrong),
        400,
        "BadRequest",
        r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32"#,
    );
    let mut quantity = pod("q");
    quantity["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "much"}});
    found.refused_with(
        "a quantity that is none",
        &http.post(PODS, &quantity),
        400,
        "BadRequest",
        r#"Pod in version "v1" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"#,
    );

    // Depth and size.
    for depth in [5_000, 20_000, 400_000] {
        let nested = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"deep"}},"extra":{}{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        );
        let answer = http.send(
            "POST",
            &format!("{CM}?dryRun=All&fieldValidation=Strict"),
            &[],
            nested.as_bytes(),
        );
        found.refused_with(&format!("JSON {depth} deep"), &answer, 400, "BadRequest", "");
        let objects = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let answer = http.patch(
            "merge-patch+json",
            &format!("{CM}/kube-root-ca.crt?dryRun=All&fieldValidation=Strict"),
            &objects,
        );
        found.check(
            &format!("a merge patch {depth} deep"),
            (400..500).contains(&answer.code),
            format!("{} {:.200}", answer.code, answer.body),
        );
    }
    let deep_yaml = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = http.send("POST", CM, &["Content-Type: application/yaml"], deep_yaml.as_bytes());
    found.refused_with("YAML 100,000 deep", &answer, 400, "BadRequest", "");
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        bomb += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    let answer = http.send("POST", CM, &["Content-Type: application/yaml"], bomb.as_bytes());
    found.refused_with("a YAML bomb", &answer, 400, "BadRequest", "");

    let mut large = config_map("large");
    large["data"]["key"] = "x".repeat(3 * 1024 * 1024 + 10).into();
    found.refused(
        "a body above 3 MiB",
        &http.post(CM, &large),
        413,
        "RequestEntityTooLarge",
        "Request entity too large: limit is 3145728",
    );
    found.refused(
        "a patch above 3 MiB",
        &http.patch(
            "merge-patch+json",
            &format!("{CM}/kube-root-ca.crt"),
            &large.to_string(),
        ),
        413,
        "RequestEntityTooLarge",
        "Request entity too large: limit is 3145728",
    );
    large["data"]["key"] = "x".repeat(1024 * 1024 + 1).into();
    let answer = http.post(CM, &large);
    found.refused(
        "data above 1 MiB",
        &answer,
        422,
        "Invalid",
        r#"ConfigMap "large" is invalid: <nil>: Too long: may not be more than 1048576 bytes"#,
    );

    // Fields nobody knows, and fields said twice.
    let twice = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"twice"},"data":{"a":"1"},"data":{"a":"1"},"nonsense":1}"#;
    let send = |mode: &str| {
        http.send(
            "POST",
            &format!("{CM}?dryRun=All&fieldValidation={mode}"),
            &[],
            twice.as_bytes(),
        )
    };
    found.refused(
        "strict",
        &send("Strict"),
        400,
        "BadRequest",
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "nonsense", duplicate field "data""#,
    );
    let warned = send("Warn");
    found.accepted("warn", &warned, 201);
    let expected = [
        r#"299 - "unknown field \"nonsense\"""#,
        r#"299 - "duplicate field \"data\"""#,
    ];
    found.check(
        "warnings",
        warned.header("Warning") == expected,
        format!("{:?}", warned.header("Warning")),
    );
    let ignored = send("Ignore");
    found.accepted("ignore", &ignored, 201);
    found.check("no warnings", ignored.header("Warning").is_empty(), &ignored.headers);
    let quiet = http.send("POST", &format!("{CM}?dryRun=All"), &[], twice.as_bytes());
    found.check(
        "warnings without asking",
        quiet.header("Warning") == expected,
        &quiet.headers,
    );
    found.refused(
        "an unknown way of validating",
        &send("Loud"),
        422,
        "Invalid",
        r#"CreateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "Loud": supported values: "", "Ignore", "Strict", "Warn""#,
    );
    let mut nested = deployment("d");
    nested["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x".into();
    found.refused(
        "an unknown field deep inside",
        &http.post(&format!("{DEPLOYMENTS}?fieldValidation=Strict"), &nested),
        400,
        "BadRequest",
        r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.template.spec.containers[0].imagee""#,
    );
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: twice}\ndata: {a: one}\ndata: {a: two}\n";
    let answer = http.send(
        "POST",
        &format!("{CM}?fieldValidation=Strict"),
        &["Content-Type: application/yaml"],
        yaml.as_bytes(),
    );
    found.refused(
        "YAML with a key twice",
        &answer,
        400,
        "BadRequest",
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:
  line 5: key "data" already set in map"#,
    );
    found.accepted("the server goes on", &http.get("/readyz"), 200);
    found.refused(
        "nothing was made",
        &http.get(&format!("{CM}/twice")),
        404,
        "NotFound",
        r#"configmaps "twice" not found"#,
    );
    findings.none();
}

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
        400,
        "BadRequest",
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

#[test]
fn patches_queries_and_paths() {
    if !ready("patches_queries_and_paths") {
        return;
    }
    let cluster = api("patches");
    let http = Http::new(&cluster);
    let mut findings = Findings::default();
    let found = &mut findings;
    found.accepted("a map", &http.post(CM, &config_map("a")), 201);
    found.accepted("a deployment", &http.post(DEPLOYMENTS, &deployment("d")), 201);
    let path = format!("{CM}/a");

    let json_patch = |body: &str| http.patch("json-patch+json", &path, body);
    found.refused_with(
        "a JSON patch that is no JSON",
        &json_patch("nonsense"),
        400,
        "BadRequest",
        "",
    );
    found.refused_with(
        "a JSON patch that is no array",
        &json_patch(r#"{"op":"add"}"#),
        400,
        "BadRequest",
        "json: cannot unmarshal object into Go value of type",
    );
    // Upstream says why only in a cause; here the message says it too.
    found.refused_with(
        "a JSON patch whose test fails",
        &json_patch(r#"[{"op":"test","path":"/data/key","value":"wrong"}]"#),
        422,
        "Invalid",
        "the server rejected our request due to an error in our request: testing value /data/key failed: test failed",
    );
    found.refused_with(
        "a JSON patch of what is not there",
        &json_patch(r#"[{"op":"remove","path":"/data/absent"}]"#),
        422,
        "Invalid",
        "Unable to remove nonexistent key: absent: missing value",
    );
    found.refused_with(
        "an unknown operation",
        &json_patch(r#"[{"op":"wiggle","path":"/data"}]"#),
        422,
        "Invalid",
        "the server rejected our request due to an error in our request",
    );
    found.refused_with(
        "a JSON patch to the wrong type",
        &json_patch(r#"[{"op":"add","path":"/data","value":5}]"#),
        422,
        "Invalid",
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type map[string]string",
    );
    let many = format!(
        "[{}]",
        vec![r#"{"op":"test","path":"/kind","value":"ConfigMap"}"#; 10_001].join(",")
    );
    found.refused(
        "too many operations",
        &json_patch(&many),
        413,
        "RequestEntityTooLarge",
        "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001",
    );
    let merge = |body: &str| http.patch("merge-patch+json", &path, body);
    found.refused_with(
        "a merge patch that is no JSON",
        &merge("{"),
        400,
        "BadRequest",
        "error decoding patch: ",
    );
    found.refused_with(
        "a merge patch that is a list",
        &merge("[]"),
        400,
        "BadRequest",
        "Invalid JSON Patch",
    );
    found.refused_with(
        "a merge patch to the wrong type",
        &merge(r#"{"data":{"key":5}}"#),
        422,
        "Invalid",
        r#" "" is invalid: patch: Invalid value: "{"#,
    );
    let strategic = |body: &str| http.patch("strategic-merge-patch+json", &format!("{DEPLOYMENTS}/d"), body);
    found.refused_with(
        "a strategic patch that is no JSON",
        &strategic("{"),
        400,
        "BadRequest",
        "error decoding patch: ",
    );
    found.refused_with(
        "a strategic patch without the merge key",
        &strategic(r#"{"spec":{"template":{"spec":{"containers":[{"image":"x"}]}}}}"#),
        500,
        "InternalError",
        "does not contain declared merge key: name",
    );
    found.refused_with(
        "an unknown directive",
        &strategic(r#"{"spec":{"$patch":"wiggle"}}"#),
        500,
        "InternalError",
        "wiggle",
    );
    found.refused(
        "a patch of what is not there",
        &http.patch("merge-patch+json", &format!("{CM}/absent"), "{}"),
        404,
        "NotFound",
        r#"configmaps "absent" not found"#,
    );
    let accepted = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";
    found.refused_with(
        "an unknown type of patch",
        &http.send("PATCH", &path, &["Content-Type: application/json"], b"{}"),
        415,
        "UnsupportedMediaType",
        &format!("the body of the request was in an unknown format - accepted media types include: {accepted}"),
    );
    found.refused(
        "apply without a manager",
        &http.patch(
            "apply-patch+yaml",
            &path,
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}",
        ),
        422,
        "Invalid",
        r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#,
    );
    found.refused(
        "force without apply",
        &http.patch("merge-patch+json", &format!("{path}?force=true"), "{}"),
        422,
        "Invalid",
        r#"PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch"#,
    );
    found.refused_with(
        "apply of broken YAML",
        &http.patch("apply-patch+yaml", &format!("{path}?fieldManager=m"), "a: [1\nb: 2"),
        400,
        "BadRequest",
        "error decoding YAML: ",
    );
    let apply = |manager: &str, value: &str| {
        let body = format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: shared}}, data: {{k: {value}}}}}");
        http.patch(
            "apply-patch+yaml",
            &format!("{CM}/shared?fieldManager={manager}"),
            &body,
        )
    };
    found.accepted("an apply", &apply("one", "word"), 201);
    let answer = apply("two", "other");
    found.refused(
        "a conflict",
        &answer,
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"one\": .data.k",
    );
    found.causes("a conflict", &answer, &[("FieldManagerConflict", ".data.k")]);

    // Media types.
    found.refused(
        "an unknown type of body",
        &http.send("POST", CM, &["Content-Type: text/plain"], b"{}"),
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    );
    found.refused(
        "an unknown type of answer",
        &http.send("GET", CM, &["Accept: text/html"], b""),
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    );
    found.accepted(
        "anything",
        &http.send("GET", CM, &["Accept: text/html, */*;q=0.1"], b""),
        200,
    );

    // Selectors and options.
    let list = |query: &str| http.get(&format!("{CM}?{query}"));
    found.refused(
        "a label selector",
        &list("labelSelector=a%20in%20b"),
        400,
        "BadRequest",
        "unable to parse requirement: found 'b' expected: '('",
    );
    found.refused_with(
        "another",
        &list("labelSelector=a==b,,c"),
        400,
        "BadRequest",
        "found ',', expected: identifier after ','",
    );
    found.refused_with(
        "a label that cannot be",
        &list("labelSelector=-a=b"),
        400,
        "BadRequest",
        "name part must consist of alphanumeric characters",
    );
    found.refused(
        "a field selector",
        &list("fieldSelector=nonsense"),
        400,
        "BadRequest",
        "invalid selector: 'nonsense'; can't understand 'nonsense'",
    );
    found.refused(
        "a field nobody selects by",
        &list("fieldSelector=spec.x=y"),
        400,
        "BadRequest",
        r#""spec.x" is not a known field selector: only "metadata.name", "metadata.namespace""#,
    );
    found.refused(
        "a field Pods are not selected by",
        &http.get(&format!("{PODS}?fieldSelector=spec.x%3Dy")),
        400,
        "BadRequest",
        "field label not supported: spec.x",
    );
    found.refused(
        "a limit that is no number",
        &list("limit=many"),
        400,
        "BadRequest",
        r#"invalid limit: strconv.ParseInt: parsing "many": invalid syntax"#,
    );
    found.refused_with(
        "a continuation",
        &list("limit=1&continue=nonsense!"),
        400,
        "BadRequest",
        "invalid continue token: ",
    );
    found.refused(
        "a match without a version",
        &list("resourceVersionMatch=Exact"),
        422,
        "Invalid",
        r#"ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"#,
    );
    found.refused_with(
        "an unknown match",
        &list("resourceVersion=1&resourceVersionMatch=About"),
        422,
        "Invalid",
        r#"resourceVersionMatch: Unsupported value: "About": supported values: "#,
    );
    found.refused_with(
        "a version that is none",
        &list("resourceVersion=new"),
        400,
        "BadRequest",
        "resourceVersion: Invalid value: \"new\"",
    );
    let answer = list("resourceVersion=99999999");
    found.refused_with(
        "a version to come",
        &answer,
        504,
        "Timeout",
        "Too large resource version: 99999999, current: ",
    );
    found.causes("a version to come", &answer, &[("ResourceVersionTooLarge", "")]);
    found.refused_with(
        "a watch with sendInitialEvents alone",
        &list("watch=true&sendInitialEvents=true"),
        422,
        "Invalid",
        "sendInitialEvents",
    );

    // Paths and verbs.
    let not_found = "the server could not find the requested resource";
    found.refused(
        "an unknown resource",
        &http.get("/api/v1/nonsense"),
        404,
        "NotFound",
        not_found,
    );
    found.check(
        "an unknown group",
        http.get("/apis/nonsense.example.com/v1/things").code == 404,
        "not 404",
    );
    found.check("an unknown path", http.get("/nonsense").code == 404, "not 404");
    found.refused(
        "an unknown subresource",
        &http.get(&format!("{CM}/a/status")),
        404,
        "NotFound",
        not_found,
    );
    let not_allowed = "the server does not allow this method on the requested resource";
    found.refused(
        "create at a name",
        &http.post(&path, &config_map("a")),
        405,
        "MethodNotAllowed",
        not_allowed,
    );
    found.refused(
        "update of a collection",
        &http.put(CM, &config_map("a")),
        405,
        "MethodNotAllowed",
        not_allowed,
    );
    found.refused(
        "a verb of one's own",
        &http.send("WIGGLE", &path, &[], &[]),
        405,
        "MethodNotAllowed",
        not_allowed,
    );
    found.refused(
        "create across namespaces",
        &http.post("/api/v1/configmaps", &config_map("a")),
        405,
        "MethodNotAllowed",
        not_allowed,
    );
    for odd in [
        "/api/v1/namespaces/default/configmaps/..%2f..%2fsecrets",
        "/api/v1/namespaces/default/configmaps/%00",
        "/api/v1/namespaces//configmaps/a",
        "/api/v1/namespaces/default/configmaps/%ff",
        "/api/v1/namespaces/default/configmaps/../secrets",
    ] {
        let answer = http.get(odd);
        found.check(
            &format!("the path {odd}"),
            (300..500).contains(&answer.code),
            format!("{} {}", answer.code, answer.body),
        );
    }
    found.accepted("the server goes on", &http.get("/readyz"), 200);
    findings.none();
}

#[test]
fn subresources_and_rights() {
    if !ready("subresources_and_rights") {
        return;
    }
    let cluster = api("rights");
    let http = Http::new(&cluster);
    let mut findings = Findings::default();
    let found = &mut findings;
    let mut free = pod("p");
    free["spec"].as_object_mut().expect("a spec").remove("schedulingGates");
    found.accepted("a Pod", &http.post(PODS, &free), 201);
    found.accepted("a held Pod", &http.post(PODS, &pod("held")), 201);

    // Binding.
    let binding = |name: &str, target: Value| {
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target});
        http.post(&format!("{PODS}/{name}/binding"), &body)
    };
    found.refused_with(
        "a binding to nothing",
        &binding("p", json!({"kind": "Node"})),
        422,
        "Invalid",
        r#"Binding "p" is invalid: target.name: Required value"#,
    );
    found.refused_with(
        "a binding to a Service",
        &binding("p", json!({"kind": "Service", "name": "n"})),
        422,
        "Invalid",
        r#"target.kind: Unsupported value: "Service": supported values: "#,
    );
    found.accepted("a binding", &binding("p", json!({"kind": "Node", "name": "n"})), 201);
    found.refused(
        "a second binding",
        &binding("p", json!({"kind": "Node", "name": "m"})),
        409,
        "Conflict",
        r#"Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n""#,
    );
    found.refused_with(
        "a binding of a held Pod",
        &binding("held", json!({"kind": "Node", "name": "n"})),
        409,
        "Conflict",
        r#"Operation cannot be fulfilled on pods/binding "held": pod held has non-empty .spec.schedulingGates"#,
    );
    found.refused_with(
        "a binding of what is not there",
        &binding("absent", json!({"kind": "Node", "name": "n"})),
        404,
        "NotFound",
        r#"pods "absent" not found"#,
    );
    let misnamed = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "q"}, "target": {"kind": "Node", "name": "n"}});
    found.refused(
        "a misnamed binding",
        &http.post(&format!("{PODS}/p/binding"), &misnamed),
        400,
        "BadRequest",
        "name in URL does not match name in Binding object",
    );

    // Eviction.
    let eviction = |name: &str, path: &str| {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        http.post(&format!("{PODS}/{path}/eviction"), &body)
    };
    found.refused(
        "a misnamed eviction",
        &eviction("q", "p"),
        400,
        "BadRequest",
        "name in URL does not match name in Eviction object",
    );
    found.refused(
        "an eviction of what is not there",
        &eviction("absent", "absent"),
        404,
        "NotFound",
        r#"pods "absent" not found"#,
    );
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {}}});
    found.accepted(
        "a budget",
        &http.post("/apis/policy/v1/namespaces/default/poddisruptionbudgets", &budget),
        201,
    );
    let answer = eviction("held", "held");
    found.check(
        "an eviction of a pending Pod",
        answer.code == 201,
        format!("{} {}", answer.code, answer.body),
    );

    // Tokens.
    let token = |account: &str, spec: Value| {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        http.post(
            &format!("/api/v1/namespaces/default/serviceaccounts/{account}/token"),
            &body,
        )
    };
    found.refused(
        "a token for nobody",
        &token("absent", json!({})),
        404,
        "NotFound",
        r#"serviceaccounts "absent" not found"#,
    );
    found.refused(
        "a short token",
        &token("default", json!({"expirationSeconds": 60})),
        422,
        "Invalid",
        r#"TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes"#,
    );
    found.refused_with(
        "a token for a Pod that is not there",
        &token(
            "default",
            json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "absent"}}),
        ),
        404,
        "NotFound",
        r#"pods "absent" not found"#,
    );
    found.refused(
        "a token for a Service",
        &token(
            "default",
            json!({"boundObjectRef": {"kind": "Service", "apiVersion": "v1", "name": "s"}}),
        ),
        400,
        "BadRequest",
        "cannot bind token to object of type /v1, Kind=Service",
    );
    let made = token("default", json!({}));
    found.accepted("a token", &made, 201);
    let made = made.json()["status"]["token"].as_str().unwrap_or_default().to_owned();

    // Reviews.
    let review = |spec: Value| {
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        http.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &body)
    };
    let answer = review(json!({"resourceAttributes": {"verb": "get"}, "nonResourceAttributes": {"path": "/"}}));
    found.refused_with(
        "a review of two things by nobody",
        &answer,
        422,
        "Invalid",
        r#"SubjectAccessReview.authorization.k8s.io "" is invalid: "#,
    );
    found.causes(
        "a review of two things by nobody",
        &answer,
        &[
            ("FieldValueInvalid", "spec.nonResourceAttributes"),
            ("FieldValueInvalid", "spec.user"),
        ],
    );
    let answer = review(
        json!({"user": "jane", "resourceAttributes": {"verb": "get", "resource": "secrets", "namespace": "default"}}),
    );
    found.accepted("a review", &answer, 201);
    found.check("its answer", answer.json()["status"]["allowed"] == false, &answer.body);
    let answer = review(
        json!({"user": "root", "groups": ["system:masters"], "resourceAttributes": {"verb": "get", "resource": "secrets"}}),
    );
    found.check("a master", answer.json()["status"]["allowed"] == true, &answer.body);
    let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
    let answer = http.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &body);
    found.accepted("a rules review", &answer, 201);
    let rules = answer.json()["status"]["resourceRules"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let distinct: std::collections::BTreeSet<String> = rules.iter().map(Value::to_string).collect();
    found.check(
        "each rule once",
        !rules.is_empty() && distinct.len() == rules.len(),
        &answer.body,
    );
    found.refused(
        "a rules review of everywhere",
        &http.post(
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            &json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {}}),
        ),
        400,
        "BadRequest",
        "no namespace on request",
    );

    // Who may what.
    // Unlike upstream by default, nobody is somebody only where everybody may go.
    let anonymous = Http::anonymous(&cluster);
    found.refused(
        "nobody",
        &anonymous.get("/api/v1/pods"),
        401,
        "Unauthorized",
        "Unauthorized",
    );
    found.accepted("nobody's health", &anonymous.get("/healthz"), 200);
    found.accepted("nobody's version", &anonymous.get("/version"), 200);
    found.refused(
        "nobody's metrics",
        &anonymous.get("/metrics"),
        401,
        "Unauthorized",
        "Unauthorized",
    );
    let bearer = |token: &str, method: &str, path: &str| {
        anonymous.send(method, path, &[&format!("Authorization: Bearer {token}")], &[])
    };
    found.refused(
        "a bad token",
        &bearer("nonsense", "GET", "/api"),
        401,
        "Unauthorized",
        "Unauthorized",
    );
    let forged = format!("{}AAAA", made.get(..made.len().saturating_sub(4)).unwrap_or_default());
    found.refused(
        "a forged token",
        &bearer(&forged, "GET", "/api"),
        401,
        "Unauthorized",
        "Unauthorized",
    );
    found.refused(
        "a service account",
        &bearer(&made, "GET", "/api/v1/namespaces/default/secrets"),
        403,
        "Forbidden",
        r#"secrets is forbidden: User "system:serviceaccount:default:default" cannot list resource "secrets" in API group "" in the namespace "default""#,
    );
    found.refused(
        "a service account's deletion",
        &bearer(&made, "DELETE", "/apis/apps/v1/namespaces/default/deployments/d"),
        403,
        "Forbidden",
        r#"deployments.apps "d" is forbidden: User "system:serviceaccount:default:default" cannot delete resource "deployments" in API group "apps" in the namespace "default""#,
    );
    found.refused(
        "a subresource",
        &bearer(&made, "POST", "/api/v1/namespaces/default/pods/p/exec"),
        403,
        "Forbidden",
        r#"pods "p" is forbidden: User "system:serviceaccount:default:default" cannot create resource "pods/exec" in API group "" in the namespace "default""#,
    );
    let jane = |path: &str| http.send("GET", path, &["Impersonate-User: jane"], &[]);
    found.refused(
        "another user",
        &jane("/api/v1/nodes/n"),
        403,
        "Forbidden",
        r#"nodes "n" is forbidden: User "jane" cannot get resource "nodes" in API group "" at the cluster scope"#,
    );
    let answer = anonymous.send("GET", "/api", &["Impersonate-User: system:admin"], &[]);
    found.refused("nobody as somebody", &answer, 401, "Unauthorized", "Unauthorized");
    found.accepted("the server goes on", &http.get("/readyz"), 200);
    findings.none();
}
