use serde_json::json;

use super::*;

fn deployment() -> Type {
    schema::builtin()
        .type_of("io.k8s.api.apps.v1.Deployment")
        .expect("a definition")
}

fn pod() -> Type {
    schema::builtin()
        .type_of("io.k8s.api.core.v1.Pod")
        .expect("a definition")
}

fn message(body: &str, validation: Validation) -> String {
    decode(
        body.as_bytes(),
        Media::Json,
        ("apps/v1", "Deployment"),
        &deployment(),
        validation,
    )
    .map_or_else(|status| status.message, |decoded| format!("{:?}", decoded.warnings))
}

#[test]
fn syntax_errors_read_as_go_words_them() {
    for (text, words) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        (r#"{"a":1"#, "unexpected end of JSON input"),
        (
            r#"{a:1}"#,
            "invalid character 'a' looking for beginning of object key string",
        ),
        (r#"{"a" 1}"#, "invalid character '1' after object key"),
        (
            r#"{"a":1,}"#,
            "invalid character '}' looking for beginning of object key string",
        ),
        (
            r#"{"a":1 "b":2}"#,
            r#"invalid character '"' after object key:value pair"#,
        ),
        ("[1 2]", "invalid character '2' after array element"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("nul", "unexpected end of JSON input"),
        ("nulL", "invalid character 'L' in literal null (expecting 'l')"),
        ("01", "invalid character '1' after top-level value"),
        ("1.x", "invalid character 'x' after decimal point in numeric literal"),
        ("\"\n\"", r"invalid character '\n' in string literal"),
        (r#""\x""#, "invalid character 'x' in string escape code"),
        (
            r#""\u00zz""#,
            r"invalid character 'z' in \u hexadecimal character escape",
        ),
        ("apiVersion: v1", "invalid character 'a' looking for beginning of value"),
    ] {
        let error = json::decode(text.as_bytes()).expect_err(text);
        assert_eq!(error.to_string(), words, "{text}");
    }
    let deep = "[".repeat(5000) + &"]".repeat(5000);
    assert_eq!(
        json::decode(deep.as_bytes()).expect_err("deep").to_string(),
        "exceeded max depth"
    );
    json::decode(b"\"\xff\"").expect_err("invalid UTF-8");
    json::decode(br#""\ud800""#).expect_err("half a surrogate pair");
}

#[test]
fn repeated_keys_are_reported_where_they_are() {
    let parsed =
        json::decode(br#"{"a":1,"spec":{"replicas":1,"replicas":2,"list":[{"x":1},{"x":1,"x":2,"x":3}]},"a":{"b":1}}"#)
            .expect("JSON");
    assert_eq!(parsed.duplicates, ["spec.replicas", "spec.list[1].x", "a"]);
    assert_eq!(
        parsed.object,
        json!({"a": {"b": 1}, "spec": {"replicas": 2, "list": [{"x": 1}, {"x": 3}]}})
    );
}

#[test]
fn strict_warn_and_ignore() {
    let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","unknownMeta":1},
        "spec":{"unknownField":"x","unknownField":"y","replicas":1,"replicas":2,"selector":{},"template":{"spec":{"containers":[{"name":"a","imagePullPolicies":"x"}]}}}}"#;
    assert_eq!(
        message(body, Validation::Strict),
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: \
         unknown field \"metadata.unknownMeta\", unknown field \"spec.unknownField\", \
         duplicate field \"spec.replicas\", unknown field \"spec.template.spec.containers[0].imagePullPolicies\""
    );
    let decoded = decode(
        body.as_bytes(),
        Media::Json,
        ("apps/v1", "Deployment"),
        &deployment(),
        Validation::Warn,
    )
    .expect("warned");
    assert_eq!(decoded.warnings.len(), 4);
    assert_eq!(decoded.object["spec"]["replicas"], 2);
    assert_eq!(decoded.object["spec"].get("unknownField"), None);
    assert_eq!(message(body, Validation::Ignore), "[]");
}

#[test]
fn refusals_read_as_upstream_words_them() {
    for (body, words) in [
        (
            r#"{"apiVersion":"apps/v1","kind":"Deployment","spec":{"replicas":"3"}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"replicas":1.5}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"replicas":3000000000}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"template":{"spec":{"containers":{}}}}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            r#"{"metadata":{"labels":{"a":1}}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            r#"{"spec":{"strategy":{"type":1}}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field DeploymentStrategy.spec.strategy.type of type v1.DeploymentStrategyType",
        ),
        (
            r#"{"spec":{"template":{"spec":{"containers":[{"securityContext":{"capabilities":{"add":1}}}]}}}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field Capabilities.spec.template.spec.containers.securityContext.capabilities.add of type []v1.Capability",
        ),
        (
            r#"{"metadata":{"uid":1}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.uid of type types.UID",
        ),
        (
            r#"{"spec":5}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field Deployment.spec of type v1.DeploymentSpec",
        ),
        (
            r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"lots"}}}]}}}}"#,
            "Deployment in version \"v1\" cannot be handled as a Deployment: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "{\"spec\"",
            "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; json parse error: unexpected end of JSON input ({\"spec\")",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\n",
            "the object provided is unrecognized (must be of type Deployment): couldn't get version/kind; json parse error: invalid character 'a' looking for beginning of value (61706956657273696f6e3a20617070732f76310a6b696e643a204465706c ...)",
        ),
        (
            r#"{"apiVersion":"apps/v1beta1","kind":"Deployment"}"#,
            "the API version in the data (apps/v1beta1) does not match the expected API version (apps/v1)",
        ),
    ] {
        assert_eq!(message(body, Validation::Strict), words, "{body}");
    }
    assert!(
        message(r#"{"kind":"Pod","apiVersion":"v1"}"#, Validation::Strict)
            .starts_with("Pod in version \"v1\" cannot be handled as a Deployment: no kind \"Pod\"")
    );
    assert!(message("[]", Validation::Strict).contains("cannot unmarshal array"));
}

#[test]
fn a_checked_tree_is_what_go_prints() {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "creationTimestamp": null, "labels": {"x": null}, "annotations": {}, "generation": 0},
        "spec": {
            "hostNetwork": false, "hostUsers": false, "priority": 0, "nodeName": "", "volumes": [],
            "activeDeadlineSeconds": 0, "tolerations": null,
            "containers": [{
                "name": "", "stdin": false, "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
                "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 0},
                "securityContext": {}, "command": [null, "x"],
            }],
        },
        "status": {"startTime": "2026-11-22T12:00:00+02:00"},
    });
    let findings = check(&pod(), &mut object).expect("fits");
    assert_eq!(findings, Findings::default());
    assert_eq!(
        object,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "labels": {"x": ""}},
            "spec": {
                "hostUsers": false, "priority": 0, "activeDeadlineSeconds": 0,
                "containers": [{
                    "name": "", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"port": "http"}},
                    "securityContext": {}, "command": ["", "x"],
                }],
            },
            "status": {"startTime": "2026-11-22T10:00:00Z"},
        })
    );
    let again = object.clone();
    check(&pod(), &mut object).expect("fits");
    assert_eq!(object, again, "checking twice changes nothing");
}

#[test]
fn what_go_always_prints_is_there_and_pointers_are_not() {
    let ty = |name: &str| schema::builtin().type_of(name).expect("a definition");
    let mut ingress = json!({"spec": {"rules": [{"http": {"paths": [{"path": "/"}]}}]}});
    check(&ty("io.k8s.api.networking.v1.Ingress"), &mut ingress).unwrap();
    let path = &ingress["spec"]["rules"][0]["http"]["paths"][0];
    assert_eq!(path.get("pathType"), None, "a pointer in Go");
    let mut pod = json!({"spec": {"containers": [{"ports": [{}]}]}});
    check(&ty("io.k8s.api.core.v1.Pod"), &mut pod).unwrap();
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        (&container["name"], &container["ports"][0]["containerPort"]),
        (&json!(""), &json!(0))
    );
}

#[test]
fn bytes_and_times_are_validated() {
    let secret = schema::builtin().type_of("io.k8s.api.core.v1.Secret").expect("Secret");
    for (object, words) in [
        (json!({"data": {"a": "###"}}), "illegal base64 data at input byte 0"),
        (
            json!({"metadata": {"creationTimestamp": "yesterday"}}),
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\"",
        ),
        (
            json!({"metadata": {"creationTimestamp": 5}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
        ),
        (
            json!({"data": {"a": 5}}),
            "json: cannot unmarshal number into Go struct field Secret.data of type []uint8",
        ),
    ] {
        let mut object = object;
        assert_eq!(check(&secret, &mut object).expect_err("refused").to_string(), words);
    }
    let mut object = json!({"data": {"a": "aGVs\nbG8="}});
    check(&secret, &mut object).expect("fits");
    assert_eq!(object["data"]["a"], "aGVsbG8=");
}

#[test]
fn custom_kinds_are_pruned_but_not_typed() {
    use crate::schema::{Field, Struct};
    use std::sync::Arc;
    let field = |name: &'static str, ty: Type| Field::new(name, ty);
    let spec = Struct {
        fields: vec![field("known", Type::Int64), field("nested", Type::Json)],
        ..Struct::default()
    };
    let meta = schema::builtin()
        .type_of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
        .expect("ObjectMeta");
    let root = Struct {
        fields: vec![
            field("apiVersion", Type::String),
            field("kind", Type::String),
            field("metadata", meta),
            field("spec", Type::Struct(Arc::new(spec))),
        ],
        ..Struct::default()
    };
    let ty = Type::Struct(Arc::new(root));
    let body = br#"{"apiVersion":"x/v1","kind":"X","metadata":{"name":"a","creationTimestamp":null,"nope":1},
        "spec":{"known":"text","known":1.0,"nested":{"any":[1.0]},"other":{"a":1,"a":2}}}"#;
    let decoded = decode(body, Media::Json, ("x/v1", "X"), &ty, Validation::Warn).expect("X");
    assert_eq!(
        decoded.warnings,
        [
            "duplicate field \"spec.known\"",
            "duplicate field \"spec.other.a\"",
            "unknown field \"metadata.nope\"",
            "unknown field \"spec.other\"",
        ]
    );
    assert_eq!(
        decoded.object,
        json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"},
               "spec": {"known": 1, "nested": {"any": [1]}}})
    );
}

#[test]
fn yaml_is_read_as_go_tools_read_it() {
    let parsed = yaml::decode(
        b"a: yes\nb: \"yes\"\nc: 010\nd: [1, 2.5, null, ~]\ne: &x {k: v}\nf: *x\n1: one\ntrue: t\nt: 2026-01-01\n",
    )
    .expect("YAML");
    assert_eq!(
        parsed.object,
        json!({"a": true, "b": "yes", "c": 8, "d": [1, 2.5, null, null], "e": {"k": "v"}, "f": {"k": "v"},
               "1": "one", "true": "t", "t": "2026-01-01"})
    );
    assert_eq!(parsed.complaint, None);
    let parsed = yaml::decode(b"a: 1\nspec:\n  foo: 1\n  bar: 2\n  foo: 3\na: 2\n").expect("YAML");
    assert_eq!(
        parsed.complaint.as_deref(),
        Some(
            "yaml: unmarshal errors:\n  line 5: key \"foo\" already set in map\n  line 6: key \"a\" already set in map"
        )
    );
    assert_eq!(parsed.duplicates, ["spec.foo", "a"]);
    assert_eq!(parsed.object, json!({"a": 2, "spec": {"foo": 3, "bar": 2}}));
    yaml::decode(b"a: [").expect_err("not closed");
    yaml::decode(b"\xff").expect_err("not UTF-8");
    // A bomb of aliases ends in an error, not in memory.
    let mut bomb = String::from("a0: &a0 [x]\n");
    for level in 1..40 {
        let before = level - 1;
        bomb.push_str(&format!("a{level}: &a{level} [*a{before}, *a{before}, *a{before}]\n"));
    }
    yaml::decode(bomb.as_bytes()).expect_err("a bomb");
}

#[test]
fn written_yaml_reads_back() {
    let object = json!({"a": "yes", "b": "012", "c": [{"d": null}, 1.5, "line\nline\n"], "e": {}, "f": "", "g": "1e3", "h": "~"});
    assert_eq!(
        yaml::decode(yaml::encode(&object).as_bytes()).expect("YAML").object,
        object
    );
}
