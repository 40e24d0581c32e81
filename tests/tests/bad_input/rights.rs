//! Subresources, reviews, and those who may not.

use super::*;

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
        // Upstream leaves the kind out here, and says so in its words.
        r#".authorization.k8s.io "" is invalid: "#,
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
