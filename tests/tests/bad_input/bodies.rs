//! Bodies that are no objects: syntax, size, types, fields.

use super::*;

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
        "the object provided is unrecognized (must be of type ConfigMap): yaml: illegal placement of ':' indicator at line 2, column 2 (613a205b310a623a20320a)",
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
        r#"ConfigMap "large" is invalid: []: Too long: may not be more than 1048576 bytes"#,
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
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: duplicate field "data", unknown field "nonsense""#,
    );
    let warned = send("Warn");
    found.accepted("warn", &warned, 201);
    let expected = [
        r#"299 - "duplicate field \"data\"""#,
        r#"299 - "unknown field \"nonsense\"""#,
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
