//! Apply and patches through the whole server: who owns what, through which endpoint, and the words of refusals.

use crate::common::{Answer, Api, config_map};
use serde_json::{Value, json};

const CM: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const APPLY: &str = "application/apply-patch+yaml";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";

async fn apply(api: &Api, path: &str, manager: &str, body: impl ToString) -> Answer {
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}fieldManager={manager}");
    api.send("PATCH", &path, APPLY, body.to_string()).await
}

fn data(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn deployment(replicas: i64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}}})
}

/// Manager, operation, subresource of every entry.
fn owners(object: &Value) -> Vec<String> {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", text("manager"), text("operation"), text("subresource"))
                .trim_end()
                .to_owned()
        })
        .collect()
}

fn fields(object: &Value, manager: &str) -> Value {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["manager"] == manager)
        .map(|entry| entry["fieldsV1"].clone())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_shares_conflicts_and_takes() {
    let api = Api::start().await;
    let path = format!("{CM}/a");
    let made = apply(&api, &path, "one", data("a", json!({"x": "1", "y": "1"}))).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let made = made.body;
    assert_eq!(owners(&made), ["one Apply"]);
    // The same again: nothing changes, not even the time.
    let again = apply(&api, &path, "one", data("a", json!({"x": "1", "y": "1"})))
        .await
        .ok();
    assert_eq!(again, made);
    // A dry run answers as if, and writes nothing.
    let dry = apply(&api, &format!("{path}?dryRun=All"), "one", data("a", json!({"x": "2"})))
        .await
        .ok();
    assert_eq!(dry["data"], json!({"x": "2"}));
    assert_eq!(api.get(&path).await.ok(), made);
    apply(&api, &path, "two", data("a", json!({"x": "2", "z": "1"})))
        .await
        .refused(
            409,
            "Conflict",
            "Apply failed with 1 conflict: conflict with \"one\": .data.x",
        );
    let forced = apply(
        &api,
        &format!("{path}?force=true"),
        "two",
        data("a", json!({"x": "2", "z": "1"})),
    )
    .await
    .ok();
    assert_eq!(forced["data"], json!({"x": "2", "y": "1", "z": "1"}));
    assert_eq!(fields(&forced, "one"), json!({"f:data": {"f:y": {}}}));
    // What the second states no longer goes; what the first states stays.
    let less = apply(&api, &path, "two", data("a", json!({"z": "1"}))).await.ok();
    assert_eq!(less["data"], json!({"y": "1", "z": "1"}));
    // An update takes what it changes from an applier without asking; the applier then has a conflict.
    let updated = api.merge(&path, json!({"data": {"z": "9"}})).await.ok();
    assert!(owners(&updated).contains(&"tests Update".to_owned()), "{updated}");
    let conflict = apply(&api, &path, "two", data("a", json!({"z": "1"}))).await;
    conflict.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"tests\" using v1: .data.z",
    );
    assert_eq!(conflict.body["details"]["causes"][0]["reason"], "FieldManagerConflict");
    assert_eq!(conflict.body["details"]["causes"][0]["field"], ".data.z");
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_apply_are_upstreams() {
    let api = Api::start().await;
    let path = format!("{CM}/a");
    let url = |query: &str| format!("{path}?{query}");
    let good = data("a", json!({})).to_string();
    let refused = api.send("PATCH", &path, APPLY, good.clone()).await;
    refused.refused(
        422,
        "Invalid",
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    );
    for (query, body, code, message) in [
        (
            "fieldManager=m",
            "{".to_owned(),
            400,
            "error decoding YAML: error converting YAML to JSON: yaml: ",
        ),
        (
            "fieldManager=m",
            "[1]".to_owned(),
            400,
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (
            "fieldManager=m",
            data("b", json!({})).to_string(),
            400,
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            "fieldManager=m",
            good.replace("\"v1\"", "\"v2\""),
            400,
            "Incorrect version specified in apply patch. Specified patch version: v2, expected: v1",
        ),
        (
            "fieldManager=m",
            good.replace("\"name\"", "\"managedFields\":[{}],\"name\""),
            400,
            "metadata.managedFields must be nil",
        ),
        (
            "fieldManager=m&fieldValidation=Strict",
            "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: '1'\n  a: '2'\n".to_owned(),
            400,
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 5: key \"a\" already set in map",
        ),
    ] {
        let answer = api.send("PATCH", &url(query), APPLY, body.clone()).await;
        assert_eq!(answer.code, code, "{body}: {}", answer.body);
        assert!(answer.message().starts_with(message), "{body}: {}", answer.message());
    }
    let unknown = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "dta": {}});
    let answer = api
        .send("PATCH", &url("fieldManager=m"), APPLY, unknown.to_string())
        .await;
    assert_eq!(answer.code, 500, "{}", answer.body);
    assert_eq!(
        answer.message(),
        "failed to create typed patch object (default/a; /v1, Kind=ConfigMap): .dta: field not declared in schema"
    );
    let force = api
        .send("PATCH", &url("force=true"), "application/merge-patch+json", "{}")
        .await;
    assert_eq!(
        force.message(),
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
    assert_eq!(api.get(&path).await.code, 404, "nothing was made");
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_keeps_its_own_account() {
    let api = Api::start().await;
    let path = format!("{DEPLOYMENTS}/web");
    let made = apply(&api, &path, "author", deployment(1)).await.ok();
    assert_eq!(made["metadata"]["generation"], 1);
    // Through status: spec and labels are left alone and never owned.
    let mut status = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"no": "1"}, "annotations": {"yes": "1"}},
        "spec": {"replicas": 9}, "status": {"replicas": 1}});
    let after = api
        .send(
            "PATCH",
            &format!("{path}/status?fieldManager=agent"),
            "application/merge-patch+json",
            status.to_string(),
        )
        .await
        .ok();
    assert_eq!(after["spec"]["replicas"], 1);
    assert_eq!(after["status"]["replicas"], 1);
    assert_eq!(after["metadata"].get("labels"), None);
    assert_eq!(after["metadata"]["annotations"]["yes"], "1");
    assert_eq!(after["metadata"]["generation"], 1);
    assert_eq!(owners(&after), ["author Apply", "agent Update status"]);
    assert_eq!(
        fields(&after, "agent"),
        json!({"f:metadata": {"f:annotations": {".": {}, "f:yes": {}}}, "f:status": {"f:replicas": {}}})
    );
    // Applied status: another entry for the same manager, with its subresource.
    status["status"] = json!({"readyReplicas": 1});
    let Some(map) = status.as_object_mut() else {
        panic!("an object")
    };
    map.remove("spec");
    status["metadata"] = json!({"name": "web"});
    let after = apply(&api, &format!("{path}/status"), "author", status).await.ok();
    assert_eq!(
        owners(&after),
        ["author Apply", "author Apply status", "agent Update status"]
    );
    // Scale writes spec.replicas under its own name.
    let scaled = api
        .send(
            "PATCH",
            &format!("{path}/scale?fieldManager=hand"),
            "application/merge-patch+json",
            r#"{"spec":{"replicas":3}}"#,
        )
        .await
        .ok();
    assert_eq!(scaled["spec"]["replicas"], 3);
    let after = api.get(&path).await.ok();
    assert_eq!(fields(&after, "hand"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(after["metadata"]["generation"], 2);
    apply(&api, &path, "author", deployment(1)).await.refused(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"hand\" with subresource \"scale\" using apps/v1: .spec.replicas",
    );
    // Annotations of a Deployment count, its labels do not.
    let labelled = api.merge(&path, json!({"metadata": {"labels": {"l": "1"}}})).await.ok();
    assert_eq!(labelled["metadata"]["generation"], 2);
    let annotated = api
        .merge(&path, json!({"metadata": {"annotations": {"n": "1"}}}))
        .await
        .ok();
    assert_eq!(annotated["metadata"]["generation"], 3);
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_side_appliers_come_over() {
    let api = Api::start().await;
    let path = format!("{CM}/a");
    // As kubectl's client-side apply leaves it.
    let mut object = data("a", json!({"x": "1", "y": "1"}));
    let last = object.to_string();
    object["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    api.post(&format!("{CM}?fieldManager=kubectl-client-side-apply"), object)
        .await
        .ok();
    // Anyone else has a conflict; kubectl may change what it last applied.
    let changed = data("a", json!({"x": "2"}));
    let conflict = apply(&api, &path, "other", changed.clone()).await;
    assert!(
        conflict
            .message()
            .starts_with("Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.x"),
        "{}",
        conflict.message()
    );
    let taken = apply(&api, &path, "kubectl", changed).await.ok();
    assert_eq!(taken["data"], json!({"x": "2", "y": "1"}));
    let last = taken["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
        .as_str()
        .unwrap_or_default();
    assert_eq!(
        serde_json::from_str::<Value>(last).expect("JSON")["data"],
        json!({"x": "2"})
    );
    // An object nobody tracks: all it holds belongs to a manager of that name.
    let mut untracked = config_map("b");
    untracked["metadata"]["managedFields"] = json!([{}]);
    api.post(CM, config_map("b")).await.ok();
    api.put(&format!("{CM}/b"), untracked).await.ok();
    let applied = apply(&api, &format!("{CM}/b"), "m", data("b", json!({"new": "1"})))
        .await
        .ok();
    assert!(
        owners(&applied).contains(&"before-first-apply Update".to_owned()),
        "{:?}",
        owners(&applied)
    );
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_are_refused_in_upstreams_words() {
    let api = Api::start().await;
    let path = format!("{CM}/a");
    api.post(CM, config_map("a")).await.ok();
    api.send("PATCH", &path, STRATEGIC, "{}").await.ok();
    let deep = format!(
        "[{}]",
        vec![r#"{"op":"test","path":"/kind","value":"ConfigMap"}"#; 10_001].join(",")
    );
    for (kind, query, body, code, message) in [
        (
            "application/merge-patch+json",
            "",
            "{",
            400,
            "error decoding patch: unexpected end of JSON input",
        ),
        (
            "application/merge-patch+json",
            "fieldValidation=Ignore",
            "{",
            400,
            "Invalid JSON Patch",
        ),
        (
            "application/merge-patch+json",
            "",
            "[]",
            400,
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (STRATEGIC, "", "{", 400, "unexpected end of JSON input"),
        (
            JSON_PATCH,
            "",
            "[{",
            400,
            "error decoding patch: unexpected end of JSON input",
        ),
        (
            JSON_PATCH,
            "",
            deep.as_str(),
            413,
            "The allowed maximum operations in a JSON patch is 10000, got 10001",
        ),
        (
            JSON_PATCH,
            "fieldValidation=Strict",
            r#"[{"op":"add","path":"/data/n","value":"1","valeu":1}]"#,
            422,
            " \"\" is invalid: patch: Invalid value: ",
        ),
        (
            "application/merge-patch+json",
            "fieldValidation=Strict",
            r#"{"data":{"n":"1","n":"2"},"dta":{}}"#,
            422,
            " \"\" is invalid: patch: Invalid value: ",
        ),
        (
            "text/plain",
            "",
            "",
            415,
            "the body of the request was in an unknown format - accepted media types include: ",
        ),
    ] {
        let answer = api
            .send("PATCH", &format!("{path}?{query}"), kind, body.to_owned())
            .await;
        assert_eq!(answer.code, code, "{kind} {query}: {}", answer.body);
        let found = answer.message();
        assert!(found.contains(message), "{kind} {query}: {found}");
        if code == 422 {
            let complaint = if kind == JSON_PATCH {
                "strict decoding error: json patch unknown field \"[0].valeu\""
            } else {
                "strict decoding error: duplicate field \"data.n\", unknown field \"dta\""
            };
            assert!(found.ends_with(complaint), "{found}");
        }
    }
    // Warned instead, both kinds of complaint arrive.
    let warned = api
        .send(
            "PATCH",
            &path,
            "application/merge-patch+json",
            r#"{"data":{"n":"1","n":"2"},"dta":{}}"#,
        )
        .await;
    let warnings: Vec<_> = warned.headers.get_all("warning").iter().collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_and_errors_as_upstream() {
    let api = Api::start().await;
    let mut object = config_map("a");
    object["metadata"]["resourceVersion"] = "1".into();
    api.post(CM, object)
        .await
        .refused(500, "", "resourceVersion should not be set on objects to be created");
    // Errors come in the encoding asked for; transformations do not apply to them.
    let yaml = api
        .send_as("GET", &format!("{CM}/none"), "", "application/yaml", "")
        .await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let status = api.send_as("GET", &format!("{CM}/none"), "", table, "").await;
    assert_eq!((status.code, status.body["kind"].as_str()), (404, Some("Status")));
    let mut large = config_map("large");
    large["data"]["key"] = "x".repeat(1 << 20).into();
    large["data"]["more"] = "x".into();
    api.post(CM, large).await.refused(
        422,
        "Invalid",
        "ConfigMap \"large\" is invalid: []: Too long: may not be more than 1048576 bytes",
    );
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {
        "resourceAttributes": {"verb": "list", "resource": "pods", "fieldSelector": {}}}});
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = api.post(reviews, review).await;
    assert_eq!(answer.code, 422, "{}", answer.body);
    assert!(
        answer.message().contains("requirements or rawSelector is required"),
        "{}",
        answer.message()
    );
    let head = api.send("HEAD", "/version", "", "").await;
    assert_eq!((head.code, &head.body), (200, &json!("")), "a HEAD has no body");
    assert!(
        head.headers["content-length"]
            .to_str()
            .is_ok_and(|length| length.parse::<u64>().is_ok_and(|length| length > 99))
    );
    let pretty = api.get(&format!("{CM}?pretty=true&limit=1")).await;
    assert_eq!(pretty.ok()["kind"], "ConfigMapList");
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_the_api_is_kept() {
    let api = Api::start().await;
    let path = "/api/v1/namespaces/default/services/kubernetes";
    let before = api.get(path).await.ok();
    api.delete(path).await.ok();
    for _ in 0..200 {
        let now = api.get(path).await;
        if now.code == 200 {
            assert_eq!(now.body["spec"]["clusterIP"], before["spec"]["clusterIP"]);
            api.server.stop().await;
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the Service did not come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_written_down() {
    let api = Api::start().await;
    const SERVICES: &str = "/api/v1/namespaces/default/services";
    const BOOK: &str = "/apis/networking.k8s.io/v1/ipaddresses";
    let service = |name: &str, ip: Option<&str>| {
        let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": 80}]}});
        if let Some(ip) = ip {
            service["spec"]["clusterIP"] = ip.into();
        }
        service
    };
    let made = api.post(SERVICES, service("a", None)).await.ok();
    let ip = made["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    let entry = api.get(&format!("{BOOK}/{ip}")).await.ok();
    assert_eq!(
        entry["spec"]["parentRef"],
        json!({"group": "", "resource": "services", "namespace": "default", "name": "a"})
    );
    assert_eq!(
        entry["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"],
        "ipallocator.k8s.io"
    );
    // Neither a dry run nor a refused Service leaves an entry.
    let count = || async { api.get(BOOK).await.ok()["items"].as_array().map_or(0, Vec::len) };
    let before = count().await;
    api.post(&format!("{SERVICES}?dryRun=All"), service("b", None))
        .await
        .ok();
    assert_eq!(api.post(SERVICES, service("a", None)).await.code, 409);
    assert_eq!(api.post(SERVICES, service("b", Some(&ip))).await.code, 422);
    assert_eq!(count().await, before);
    // What somebody wrote down by hand is theirs.
    let by_hand = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.96.77.7"},
        "spec": {"parentRef": {"group": "example.com", "resource": "things", "name": "x"}}});
    api.post(BOOK, by_hand).await.ok();
    let refused = api.post(SERVICES, service("b", Some("10.96.77.7"))).await;
    assert_eq!(
        refused.message(),
        "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.77.7\"]: failed to allocate IP 10.96.77.7: provided IP is already allocated"
    );
    // An address goes with its Service, and may be asked for again at once.
    api.delete(&format!("{SERVICES}/a")).await.ok();
    assert_eq!(api.get(&format!("{BOOK}/{ip}")).await.code, 404);
    api.post(SERVICES, service("a", Some(&ip))).await.ok();
    api.merge(
        &format!("{SERVICES}/a"),
        json!({"spec": {"type": "ExternalName", "externalName": "x.example.com", "clusterIP": null, "clusterIPs": null, "ports": null}}),
    )
    .await
    .ok();
    assert_eq!(api.get(&format!("{BOOK}/{ip}")).await.code, 404);
    // Another range serves until it goes.
    const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
    assert_eq!(api.post(SERVICES, service("c", Some("10.200.0.9"))).await.code, 422);
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.200.0.0/24"]}});
    api.post(RANGES, range).await.ok();
    api.post(SERVICES, service("c", Some("10.200.0.9"))).await.ok();
    let default = format!("{RANGES}/kubernetes");
    let ready = format!("{RANGES}/more/status");
    let status = |status: &str| {
        json!({"status": {"conditions": [{"type": "Ready", "status": status, "reason": "Tried", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    // One that is said not to be ready gives nothing, and what it gave stays.
    api.merge(&ready, status("False")).await.ok();
    assert_eq!(api.post(SERVICES, service("d", Some("10.200.0.10"))).await.code, 422);
    api.merge(&ready, status("True")).await.ok();
    api.post(SERVICES, service("d", Some("10.200.0.10"))).await.ok();
    // No controller holds it here.
    api.delete(&format!("{RANGES}/more")).await.ok();
    assert_eq!(api.post(SERVICES, service("e", Some("10.200.0.11"))).await.code, 422);
    // The server says of its own range that it is ready.
    let mut told = serde_json::Value::Null;
    for _ in 0..200 {
        told = api.get(&default).await.body["status"]["conditions"][0].clone();
        if told["status"] == "True" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(told["message"], "Kubernetes default Service CIDR is ready");
    api.server.stop().await;
}
