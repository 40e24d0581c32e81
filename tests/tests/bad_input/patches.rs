//! Patches, query options and paths.

use super::*;

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
        "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
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
        "unexpected end of JSON input",
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
