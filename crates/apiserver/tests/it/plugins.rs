//! In-process admission plugins on a whole control plane: Pod security, volumes in use, topology labels, certificates.

use crate::common::{Api, pod};
use serde_json::{Value, json};

async fn namespace(api: &Api, name: &str, labels: Value) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    api.post("/api/v1/namespaces", namespace).await.ok();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), account)
        .await
        .ok();
}

#[tokio::test]
async fn namespaces_hold_their_pods_to_a_standard() {
    let api = Api::start().await;
    namespace(
        &api,
        "strict",
        json!({"pod-security.kubernetes.io/enforce": "baseline"}),
    )
    .await;
    let pods = "/api/v1/namespaces/strict/pods";
    api.post(pods, pod("plain")).await.ok();
    let mut host = pod("host");
    host["spec"]["hostNetwork"] = true.into();
    api.post(pods, host.clone()).await.refused(
        403,
        "Forbidden",
        "pods \"host\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)",
    );
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": host["spec"]}}});
    let made = api
        .post("/apis/apps/v1/namespaces/strict/deployments", deployment)
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let warning = made
        .headers
        .get("warning")
        .and_then(|text| text.to_str().ok())
        .unwrap_or_default();
    assert_eq!(
        warning,
        "299 - \"would violate PodSecurity \\\"baseline:latest\\\": host namespaces (hostNetwork=true)\""
    );
    let label = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let stricter = api.merge("/api/v1/namespaces/strict", label("restricted")).await;
    let warnings: Vec<&str> = stricter
        .headers
        .get_all("warning")
        .iter()
        .filter_map(|text| text.to_str().ok())
        .collect();
    assert!(
        warnings[0].contains("existing pods in namespace \\\"strict\\\" violate the new PodSecurity enforce level \\\"restricted:latest\\\""),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("plain: allowPrivilegeEscalation != false, "),
        "{warnings:?}"
    );
    api.merge("/api/v1/namespaces/strict", label("nonsense")).await.refused(
        422,
        "Invalid",
        "Namespace \"strict\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"nonsense\": must be one of privileged, baseline, restricted",
    );
}

#[tokio::test]
async fn volumes_nodes_and_certificates() {
    let api = Api::start().await;
    namespace(&api, "n", json!({})).await;
    let claims = "/api/v1/namespaces/n/persistentvolumeclaims";
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "s", "resources": {"requests": {"storage": "1Gi"}}}});
    let mut made = api.post(claims, claim).await.ok();
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    made["status"] = json!({"phase": "Bound"});
    api.put(&format!("{claims}/c/status"), made).await.ok();
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    api.merge(&format!("{claims}/c"), larger).await.refused(
        403,
        "Forbidden",
        "persistentvolumeclaims \"c\" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    );

    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "labels": {
        "topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "other": "x"}}});
    api.post("/api/v1/nodes", node).await.ok();
    let pods = "/api/v1/namespaces/n/pods";
    api.post(pods, pod("p")).await.ok();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "node-1"}});
    api.post(&format!("{pods}/p/binding"), binding).await.ok();
    let bound = api.get(&format!("{pods}/p")).await.ok();
    assert_eq!(
        bound["metadata"]["labels"],
        json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"})
    );
}

/// PEM requests of `CN=bob`, for the masters and for the friends.
const MASTERS: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIaE1JR0pBZ0VBTUNjeEZ6QVZCZ05WQkFvTURuTjVjM1JsYlRwdFlYTjBaWEp6TVF3d0NnWURWUVFEREFOaQpiMkl3V1RBVEJnY3Foa2pPUFFJQkJnZ3Foa2pPUFFNQkJ3TkNBQVQwdkk0Y2o2djVQWTU4UVplbVFXMGF2N21WCmt0M3JzcEZScWRBb0ZXRG40Y3Z1blpIZjJoaHJqZHNnS1NkbzJuQWZUTEcrc0g0R1BORUdkdDdoL2dYRm9BQXcKQ2dZSUtvWkl6ajBFQXdJRFJ3QXdSQUlnUVJxb0RrZ0FWZXdGZG5ub3pnV0lCQkhqUXBhcTJSakt0NzNyWDR3VQpEeEVDSUU4NGoweFZYS2NEZHZJV0JOUjQ2UjVxYzNTanNwc2twSy9qSDNYa1puakoKLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg==";
const FRIENDS: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIYk1JR0NBZ0VBTUNBeEVEQU9CZ05WQkFvTUIyWnlhV1Z1WkhNeEREQUtCZ05WQkFNTUEySnZZakJaTUJNRwpCeXFHU000OUFnRUdDQ3FHU000OUF3RUhBMElBQkd3UURjWE1qOHZuR1hXVGNKd3UweDYzUUttVTZoOWpLbk5jCnRvVDRzQlB4b1pNNnFKV01LUUh5UnJrSTFlV2hKRXhTTzlCYmtsSkFnaXlUdUNsUGUweWdBREFLQmdncWhrak8KUFFRREFnTklBREJGQWlBY3hXWFdUVkc1a25OYmlxbnZ1NjIrQWwrSTdCQnplVzM2dDlRcm5kejM5QUloQU13bwp5dWVJRm1TOCtLbmxweWhhVnNCcXVHMWkrNnVZMnlrSitUMHI0RDViCi0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVFU1QtLS0tLQo=";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Gives a user rights everywhere.
async fn grant(api: &Api, user: &str, rules: Value) {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": user}, "rules": rules});
    api.post(&format!("{RBAC}/clusterroles"), role).await.ok();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": user}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user}});
    api.post(&format!("{RBAC}/clusterrolebindings"), binding).await.ok();
}

/// Does something as somebody else.
async fn as_user(api: &Api, user: &str, method: &str, path: &str, body: Value) -> crate::common::Answer {
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(http_body_util::Full::new(bytes::Bytes::from(body.to_string())))
        .unwrap();
    let answer = tower::Service::call(&mut api.transport(user, &[]), request)
        .await
        .unwrap();
    let (parts, body) = answer.into_parts();
    let bytes = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    crate::common::Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))),
    }
}

fn signing_request(name: &str, signer: &str, pem: &str) -> Value {
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"signerName": signer, "request": pem, "usages": ["digital signature", "client auth"]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_approved_and_signed_by_those_who_may() {
    let api = Api::start().await;
    let requests = json!({"apiGroups": ["certificates.k8s.io"], "verbs": ["*"], "resources":
        ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"]});
    let signers = |verb: &str, name: &str| {
        json!([requests, {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
            "verbs": [verb], "resourceNames": [name]}])
    };
    for (user, rules) in [
        ("nobody", json!([requests])),
        ("approver", signers("approve", "example.com/one")),
        ("domain-approver", signers("approve", "example.com/*")),
        ("signer", signers("sign", "example.com/one")),
        ("domain-signer", signers("sign", "example.com/*")),
    ] {
        grant(&api, user, rules).await;
    }
    for (user, subresource, signer, may) in [
        ("nobody", "approval", "example.com/one", false),
        ("approver", "approval", "example.com/one", true),
        ("approver", "approval", "example.com/two", false),
        ("domain-approver", "approval", "example.com/two", true),
        ("domain-approver", "approval", "example.org/two", false),
        ("signer", "approval", "example.com/one", false),
        ("nobody", "status", "example.com/one", false),
        ("signer", "status", "example.com/one", true),
        ("signer", "status", "example.com/two", false),
        ("domain-signer", "status", "example.com/two", true),
        ("approver", "status", "example.com/one", false),
    ] {
        let name = format!("{user}-{subresource}-{}", signer.replace('/', "-"));
        let mut made = api.post(REQUESTS, signing_request(&name, signer, FRIENDS)).await.ok();
        let (kind, verb, done) = match subresource {
            "approval" => ("Approved", "approve", "approve"),
            _ => ("Failed", "sign", "sign"),
        };
        made["status"]["conditions"] = json!([{"type": kind, "status": "True", "reason": "R", "message": "m"}]);
        let path = format!("{REQUESTS}/{name}/{subresource}");
        let answer = as_user(&api, user, "PUT", &path, made).await;
        if may {
            assert_eq!(answer.code, 200, "{user} {verb} {signer}: {}", answer.body);
        } else {
            answer.refused(
                403,
                "Forbidden",
                &format!(
                    "certificatesigningrequests.certificates.k8s.io \"{name}\" is forbidden: user not permitted to {done} requests with signerName \"{signer}\""
                ),
            );
        }
    }
    // A status that signs nothing needs no right to sign.
    let made = api.get(&format!("{REQUESTS}/nobody-status-example.com-one")).await.ok();
    let path = format!("{REQUESTS}/nobody-status-example.com-one/status");
    as_user(&api, "nobody", "PUT", &path, made).await.ok();
    // Nobody becomes a master by request.
    const CLIENTS: &str = "kubernetes.io/kube-apiserver-client";
    for (name, signer, pem, refused) in [
        ("friend", CLIENTS, FRIENDS, false),
        ("master", CLIENTS, MASTERS, true),
        ("elsewhere", "example.com/one", MASTERS, false),
    ] {
        let answer = api.post(REQUESTS, signing_request(name, signer, pem)).await;
        if refused {
            answer.refused(
                403,
                "Forbidden",
                &format!(
                    "certificatesigningrequests.certificates.k8s.io \"{name}\" is forbidden: use of {CLIENTS} signer with system:masters group is not allowed"
                ),
            );
        } else {
            answer.ok();
        }
    }
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overhead_is_what_the_class_says() {
    let api = Api::start().await;
    namespace(&api, "sandboxed", json!({})).await;
    let pods = "/api/v1/namespaces/sandboxed/pods";
    for (name, overhead) in [("plain", Value::Null), ("heavy", json!({"podFixed": {"cpu": "250m"}}))] {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
            "handler": "h", "overhead": overhead});
        api.post("/apis/node.k8s.io/v1/runtimeclasses", class).await.ok();
    }
    let undefined = "Pod Overhead set without corresponding RuntimeClass defined Overhead";
    let different = "Pod's Overhead doesn't match RuntimeClass's defined Overhead";
    for (index, (class, overhead, expected)) in [
        ("", json!({"cpu": "1"}), Err(undefined)),
        ("plain", json!({"cpu": "1"}), Err(undefined)),
        ("plain", Value::Null, Ok(Value::Null)),
        ("heavy", Value::Null, Ok(json!({"cpu": "250m"}))),
        ("heavy", json!({"cpu": "0.25"}), Ok(json!({"cpu": "250m"}))),
        ("heavy", json!({"cpu": "1"}), Err(different)),
        ("absent", Value::Null, Err("RuntimeClass \"absent\" not found")),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("p{index}");
        let mut pod = pod(&name);
        pod["spec"]["overhead"] = overhead;
        if !class.is_empty() {
            pod["spec"]["runtimeClassName"] = class.into();
        }
        let answer = api.post(pods, pod).await;
        match expected {
            Ok(overhead) => assert_eq!(answer.ok()["spec"]["overhead"], overhead, "{name}"),
            Err(why) => {
                let message = format!("pods \"{name}\" is forbidden: pod rejected: {why}");
                answer.refused(403, "Forbidden", &message);
            }
        }
    }
    api.server.stop().await;
}

fn enabled(names: &'static [&'static str]) -> impl FnOnce(&mut sampan_apiserver::Config) {
    move |config| config.admission.enable = names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_always_pulled_and_external_addresses_denied() {
    let api = Api::start_with(enabled(&["AlwaysPullImages", "DenyServiceExternalIPs"])).await;
    namespace(&api, "n", json!({})).await;
    let pods = "/api/v1/namespaces/n/pods";
    let mut pod = pod("p");
    pod["spec"]["containers"][0]["imagePullPolicy"] = "Never".into();
    pod["spec"]["initContainers"] = json!([{"name": "i", "image": "i:1", "imagePullPolicy": "IfNotPresent"}]);
    pod["spec"]["volumes"] = json!([{"name": "v", "image": {"reference": "v:1", "pullPolicy": "Never"}}]);
    let made = api.post(pods, pod).await.ok();
    for pointer in [
        "/spec/containers/0/imagePullPolicy",
        "/spec/initContainers/0/imagePullPolicy",
        "/spec/volumes/0/image/pullPolicy",
    ] {
        assert_eq!(made.pointer(pointer), Some(&json!("Always")), "{pointer}");
    }
    let services = "/api/v1/namespaces/n/services";
    let service = |name: &str, addresses: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": 80}], "externalIPs": addresses}})
    };
    let denied =
        |name: &str| format!("services \"{name}\" is forbidden: Use of external IPs is denied by admission control");
    api.post(services, service("s", json!(["192.0.2.7"])))
        .await
        .refused(403, "Forbidden", &denied("s"));
    api.post(services, service("s", json!([]))).await.ok();
    let add = json!({"spec": {"externalIPs": ["192.0.2.7"]}});
    api.merge(&format!("{services}/s"), add)
        .await
        .refused(403, "Forbidden", &denied("s"));
    api.merge(&format!("{services}/s"), json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .ok();
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_are_named_by_those_who_may() {
    let api = Api::start_with(enabled(&["OwnerReferencesPermissionEnforcement"])).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let rule = |resources: Value, verbs: Value| json!({"apiGroups": [""], "resources": resources, "verbs": verbs});
    let writes = rule(json!(["configmaps"]), json!(["create", "get", "update", "patch"]));
    let deletes = rule(json!(["configmaps"]), json!(["delete"]));
    let finalizes = rule(json!(["pods/finalizers"]), json!(["update"]));
    for (user, rules) in [
        ("writer", json!([writes])),
        ("deleter", json!([writes, deletes])),
        ("owner", json!([writes, deletes, finalizes])),
    ] {
        grant(&api, user, rules).await;
    }
    let reference = |kind: &str, blocks: Value| json!([{"apiVersion": "v1", "kind": kind, "name": "o", "uid": "u", "blockOwnerDeletion": blocks}]);
    let cannot_delete = "cannot set an ownerRef on a resource you can't delete: ";
    let cannot_finalize =
        "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: ";
    let unknown = "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion v1 Kind Nonsense: no matches for kind \"Nonsense\" in version \"v1\"";
    for (index, (user, owners, on_create, on_update)) in [
        ("writer", reference("Pod", Value::Null), "", cannot_delete),
        ("writer", reference("Pod", json!(false)), "", cannot_delete),
        ("writer", reference("Pod", json!(true)), cannot_finalize, cannot_delete),
        ("deleter", reference("Pod", Value::Null), "", ""),
        (
            "deleter",
            reference("Pod", json!(true)),
            cannot_finalize,
            cannot_finalize,
        ),
        ("deleter", reference("Nonsense", json!(true)), unknown, unknown),
        ("owner", reference("Pod", json!(true)), "", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let judge = |answer: crate::common::Answer, name: &str, why: &str| {
            let expected = format!("configmaps \"{name}\" is forbidden: {why}");
            match why {
                "" => assert!(answer.code < 300, "{user} {index}: {}", answer.body),
                _ => assert!(
                    answer.code == 403 && answer.message().starts_with(&expected),
                    "{user} {index}: {}",
                    answer.body
                ),
            }
        };
        let (created, updated) = (format!("c-{index}"), format!("u-{index}"));
        let mut map = crate::common::config_map(&created);
        map["metadata"]["ownerReferences"] = owners.clone();
        judge(as_user(&api, user, "POST", maps, map).await, &created, on_create);
        as_user(&api, user, "POST", maps, crate::common::config_map(&updated))
            .await
            .ok();
        let patch = json!({"metadata": {"ownerReferences": owners}});
        let answer = as_user(&api, user, "PATCH", &format!("{maps}/{updated}"), patch).await;
        judge(answer, &updated, on_update);
    }
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_configures_pod_security_and_event_limits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admission.yaml");
    std::fs::write(
        &path,
        "apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults:
      enforce: baseline
      warn: restricted
    exemptions:
      usernames: [robot]
      namespaces: [free]
- name: EventRateLimit
  path: events.yaml
",
    )
    .unwrap();
    std::fs::write(
        dir.path().join("events.yaml"),
        "apiVersion: eventratelimit.admission.k8s.io/v1alpha1
kind: Configuration
limits:
- {type: Namespace, qps: 1, burst: 2}
- {type: User, qps: 1, burst: 100}
",
    )
    .unwrap();
    let api = Api::start_with(|config| {
        config.admission.enable = vec!["EventRateLimit".to_owned()];
        config.admission.configuration = sampan_apiserver::admission::Configuration::read(&path).unwrap();
    })
    .await;
    for (name, labels) in [
        ("plain", json!({})),
        ("free", json!({})),
        ("open", json!({"pod-security.kubernetes.io/enforce": "privileged"})),
    ] {
        namespace(&api, name, labels).await;
    }
    let mut host = pod("host");
    host["spec"]["hostNetwork"] = true.into();
    let pods = |namespace: &str| format!("/api/v1/namespaces/{namespace}/pods");
    api.post(&pods("plain"), host.clone()).await.refused(
        403,
        "Forbidden",
        "pods \"host\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)",
    );
    let made = api.post(&pods("plain"), pod("plain")).await;
    let warning = made.headers.get("warning").unwrap().to_str().unwrap().to_owned();
    assert!(
        made.code == 201 && warning.contains("would violate PodSecurity \\\"restricted:latest\\\""),
        "{warning}"
    );
    let made = api.post(&pods("free"), host.clone()).await;
    assert!(made.code == 201 && !made.headers.contains_key("warning"));
    api.post(&pods("open"), host.clone()).await.ok();
    let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    grant(&api, "robot", all).await;
    let mut other = host;
    other["metadata"]["name"] = "other".into();
    as_user(&api, "robot", "POST", &pods("plain"), other).await.ok();

    // Two events at once and one a second, in either group; another namespace has its own.
    let event = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "plain"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "plain"}, "reason": "r", "message": "m"})
    };
    let events = "/api/v1/namespaces/plain/events";
    let mut refused = None;
    for index in 0..20 {
        let answer = api.post(&format!("{events}?dryRun=All"), event("dry")).await;
        assert_eq!(answer.code, 201, "a dry run costs nothing");
        let answer = api.post(events, event(&format!("e{index}"))).await;
        if answer.code != 201 {
            refused = Some(answer);
            break;
        }
    }
    refused.unwrap().refused(
        429,
        "TooManyRequests",
        "Too many requests: limit reached on type Namespace for key plain",
    );
    let elsewhere = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "free"}, "reason": "r", "message": "m"});
    api.post("/api/v1/namespaces/free/events", elsewhere).await.ok();
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_without_a_resource_and_methods() {
    let api = Api::start().await;
    for (method, path, code) in [
        ("POST", "/nonsense", 404),
        ("DELETE", "/no/such/path", 404),
        ("PUT", "/apis/no.such.group", 404),
        ("POST", "/apis/apps/v9", 404),
        ("GET", "/nonsense", 404),
        ("POST", "/version", 405),
        ("DELETE", "/api", 405),
        ("PUT", "/apis/apps/v1", 405),
        ("POST", "/api/v1", 405),
    ] {
        let answer = api.send(method, path, "application/json", "{}").await;
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.body);
    }
    api.server.stop().await;
}
