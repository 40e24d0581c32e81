//! Attempts to run what a restricted namespace forbids: by every field and every way a Pod can come to be or to change.

use crate::attempts::{Attempts, named, send};
use crate::common::Api;
use serde_json::{Value, json};

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

fn container(name: &str, change: &Value) -> Value {
    let mut made = json!({"name": name, "image": "i", "securityContext": {"allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}}});
    merge(&mut made, change);
    made
}

/// A Pod that keeps to the standard, but for `change` of its spec.
fn pod(name: &str, change: &Value) -> Value {
    let mut made = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container("a", &json!({}))]}});
    merge(&mut made["spec"], change);
    made
}

/// What nobody may set here, as changes of a container.
fn bad_containers() -> Vec<Value> {
    let context = |change: Value| json!({ "securityContext": change });
    vec![
        context(json!({"privileged": true, "allowPrivilegeEscalation": null})),
        context(json!({"allowPrivilegeEscalation": true})),
        context(json!({"allowPrivilegeEscalation": null})),
        context(json!({"capabilities": {"add": ["SYS_ADMIN"]}})),
        context(json!({"capabilities": {"add": ["NET_RAW"]}})),
        context(json!({"capabilities": {"drop": ["NET_RAW"]}})),
        context(json!({"capabilities": null})),
        context(json!({"runAsUser": 0})),
        context(json!({"runAsNonRoot": false})),
        context(json!({"seccompProfile": {"type": "Unconfined"}})),
        context(json!({"appArmorProfile": {"type": "Unconfined"}})),
        context(json!({"seLinuxOptions": {"type": "spc_t"}})),
        context(json!({"seLinuxOptions": {"user": "system_u"}})),
        context(json!({"procMount": "Unmasked"})),
        json!({"securityContext": null}),
    ]
}

/// The same of a Pod's spec.
fn bad_pods() -> Vec<Value> {
    let context = |change: Value| json!({ "securityContext": change });
    let volume = |source: Value| json!({"volumes": [source]});
    vec![
        json!({"hostNetwork": true}),
        json!({"hostPID": true}),
        json!({"hostIPC": true}),
        volume(json!({"name": "v", "hostPath": {"path": "/"}})),
        volume(json!({"name": "v", "nfs": {"server": "s", "path": "/"}})),
        volume(
            json!({"name": "v", "iscsi": {"targetPortal": "1.2.3.4", "iqn": "iqn.2001-04.com.example:x", "lun": 0}}),
        ),
        context(json!({"runAsNonRoot": false})),
        context(json!({"runAsNonRoot": null})),
        context(json!({"runAsUser": 0})),
        context(json!({"seccompProfile": {"type": "Unconfined"}})),
        context(json!({"seccompProfile": null})),
        context(json!({"appArmorProfile": {"type": "Unconfined"}})),
        context(json!({"seLinuxOptions": {"role": "r"}})),
        context(json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]})),
        json!({"securityContext": null}),
        json!({"containers": [container("a", &json!({"ports": [{"containerPort": 80, "hostPort": 80}]}))]}),
        json!({"containers": [container("a", &json!({"livenessProbe": {"httpGet": {"host": "169.254.169.254", "port": 80}}}))]}),
        json!({"containers": [container("a", &json!({"lifecycle": {"preStop": {"tcpSocket": {"host": "h", "port": 80}}}}))]}),
        // An operating system, or users of its own, excuse from some of the standard and not from this.
        json!({"hostUsers": false, "containers": [container("a", &json!({"securityContext": {"procMount": "Unmasked"}}))]}),
        json!({"hostUsers": false, "containers": [container("a", &json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}))]}),
        json!({"hostUsers": false, "securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
    ]
}

#[tokio::test]
async fn nothing_privileged_runs_in_a_restricted_namespace() {
    let api = Api::start().await;
    let mut attempts = Attempts::default();
    let mut space = named("Namespace", "strict");
    api.post("/api/v1/namespaces", space.clone()).await.ok();
    let accounts = "/api/v1/namespaces/strict/serviceaccounts";
    api.post(accounts, named("ServiceAccount", "default")).await.ok();
    let pods = "/api/v1/namespaces/strict/pods";
    // From before the namespace became strict.
    let old = pod(
        "old",
        &json!({"containers": [{"name": "a", "image": "i", "securityContext": {"privileged": true}}]}),
    );
    api.post(pods, old).await.ok();
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    api.merge("/api/v1/namespaces/strict", label.clone()).await.ok();
    api.post(pods, pod("fine", &json!({}))).await.ok();
    // The one who tries may do everything in the namespace.
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/strict/rolebindings";
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "admin"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "joe"}]});
    api.post(rbac, binding).await.ok();
    let joe = api.transport("joe", &["system:authenticated"]);
    let root = api.transport("admin", &["system:masters"]);

    let mut specs = bad_pods();
    for bad in bad_containers() {
        specs.push(json!({"containers": [container("a", &bad)]}));
        specs.push(json!({"containers": [container("a", &json!({})), container("b", &bad)]}));
        specs.push(json!({"initContainers": [container("i", &bad)]}));
        specs.push(json!({"initContainers": [container("i", &{
            let mut sidecar = bad.clone();
            merge(&mut sidecar, &json!({"restartPolicy": "Always"}));
            sidecar
        })]}));
    }
    let forbidden = |code: u16, answer: &Value| {
        let message = answer["message"].as_str().unwrap_or_default();
        // That a Pod of the node's users shows /proc unmasked is not even valid.
        (code == 403 && message.contains("violates PodSecurity \"restricted:latest\": "))
            || (code == 422 && message.contains("`hostUsers` must be false to use `Unmasked`"))
    };
    for (index, change) in specs.iter().enumerate() {
        let body = pod("bad", change);
        for (who, service) in [("joe", &joe), ("an administrator", &root)] {
            let (code, answer) = send(service, "POST", pods, &[], body.clone()).await;
            attempts.note(
                format!("{who} makes {change}: {code} {answer}"),
                forbidden(code, &answer),
            );
        }
        // Other ways to the same.
        let mut generated = body.clone();
        generated["metadata"] = json!({"generateName": "bad-"});
        let (method, path, body) = match index % 4 {
            0 => ("APPLY", format!("{pods}/bad?fieldManager=x&force=true"), body),
            1 => ("POST", format!("{pods}?dryRun=All"), body),
            2 => ("POST", pods.to_owned(), generated),
            _ => ("POST", format!("{pods}?fieldValidation=Ignore"), body),
        };
        let (code, answer) = send(&joe, method, &path, &[], body).await;
        attempts.note(
            format!("{method} {path} {change}: {code} {answer}"),
            forbidden(code, &answer),
        );
    }
    // Ephemeral containers of a Pod that is fine, and of one that is not. Not even who may add them may add these.
    for bad in bad_containers() {
        for (name, method) in [("fine", "PATCH"), ("old", "PATCH"), ("fine", "PUT"), ("fine", "APPLY")] {
            let one = container("debug", &bad);
            let mut body = json!({"spec": {"ephemeralContainers": [one]}});
            if method != "PATCH" {
                body = api.get(&format!("{pods}/{name}")).await.ok();
                body["spec"]["ephemeralContainers"] = json!([one]);
                body["metadata"].as_object_mut().unwrap().remove("managedFields");
            }
            let query = if method == "APPLY" {
                "?fieldManager=x&force=true"
            } else {
                ""
            };
            let path = format!("{pods}/{name}/ephemeralcontainers{query}");
            let (code, answer) = send(&root, method, &path, &[], body).await;
            attempts.note(
                format!("{method} {path} {bad}: {code} {answer}"),
                forbidden(code, &answer),
            );
        }
    }
    let (code, answer) = send(
        &root,
        "PATCH",
        &format!("{pods}/old/ephemeralcontainers"),
        &[],
        json!({"spec": {"ephemeralContainers": [container("debug", &json!({}))]}}),
    )
    .await;
    attempts.note(
        format!("a fine one in a bad Pod: {code} {answer}"),
        forbidden(code, &answer),
    );
    // Changes of what is there: another image makes the old Pod be looked at; the rest cannot be changed.
    let image = |name: &str| json!({"spec": {"containers": [{"name": name, "image": "other"}]}});
    let whole = |image: &str| json!([{"op": "replace", "path": "/spec/containers/0/image", "value": image}]);
    let patched = api
        .send(
            "PATCH",
            &format!("{pods}/old"),
            "application/strategic-merge-patch+json",
            image("a").to_string(),
        )
        .await;
    attempts.note(
        format!("another image: {}", patched.body),
        forbidden(patched.code, &patched.body),
    );
    let patched = api
        .send(
            "PATCH",
            &format!("{pods}/old"),
            "application/json-patch+json",
            whole("x").to_string(),
        )
        .await;
    attempts.note(
        format!("another image: {}", patched.body),
        forbidden(patched.code, &patched.body),
    );
    for change in specs.iter().step_by(3) {
        let (code, answer) = send(&joe, "PATCH", &format!("{pods}/fine"), &[], json!({ "spec": change })).await;
        // Nothing of this is mutable; where a patch changes nothing that counts, it changes nothing.
        let same = code == 200
            && answer["spec"]["containers"] == api.get(&format!("{pods}/fine")).await.ok()["spec"]["containers"];
        let after = api.get(&format!("{pods}/fine")).await.ok();
        let kept = after["spec"]["containers"][0]["securityContext"]["capabilities"]["drop"] == json!(["ALL"])
            && after["spec"]["securityContext"]["runAsNonRoot"] == true;
        attempts.note(
            format!("PATCH {change}: {code} {answer}"),
            (matches!(code, 403 | 422) || same) && kept,
        );
    }
    let (code, answer) = send(&joe, "PATCH", &format!("{pods}/fine/status"), &[],
        json!({"spec": {"hostNetwork": true, "containers": [{"name": "a", "image": "other", "securityContext": {"privileged": true}}]}})).await;
    let after = api.get(&format!("{pods}/fine")).await.ok();
    attempts.note(
        format!("by the status: {code} {answer}"),
        after["spec"]["hostNetwork"].is_null() && after["spec"]["containers"][0]["image"] == "i",
    );
    // Said twice, or nearly: what is kept is what was looked at.
    let text = pod("twice", &json!({})).to_string();
    for (what, body) in [
        (
            "a field twice",
            text.replace(
                "\"allowPrivilegeEscalation\":false",
                "\"allowPrivilegeEscalation\":false,\"allowPrivilegeEscalation\":true",
            ),
        ),
        (
            "privileged twice",
            text.replace(
                "\"allowPrivilegeEscalation\":false",
                "\"privileged\":false,\"allowPrivilegeEscalation\":false,\"privileged\":true",
            ),
        ),
        (
            "a spec twice",
            text.replacen(
                "\"kind\":\"Pod\"",
                "\"kind\":\"Pod\",\"spec\":{\"hostNetwork\":true}",
                1,
            )
            .replace("\"spec\":{\"automount", "\"spec\":{\"hostNetwork\":true,\"automount"),
        ),
    ] {
        let answer = api
            .send(
                "POST",
                &format!("{pods}?fieldValidation=Ignore"),
                "application/json",
                body,
            )
            .await;
        attempts.note(
            format!("{what}: {} {}", answer.code, answer.body),
            matches!(answer.code, 400 | 403 | 422),
        );
    }
    for (what, body) in [
        (
            "another case",
            text.replace(
                "\"allowPrivilegeEscalation\":false",
                "\"allowPrivilegeEscalation\":false,\"Privileged\":true",
            ),
        ),
        (
            "another place",
            text.replace(
                "\"image\":\"i\"",
                "\"image\":\"i\",\"privileged\":true,\"hostNetwork\":true",
            ),
        ),
    ] {
        let answer = api
            .send(
                "POST",
                &format!("{pods}?fieldValidation=Ignore&dryRun=All"),
                "application/json",
                body,
            )
            .await;
        let kept = answer.body.to_string();
        attempts.note(
            format!("{what}: {kept}"),
            !kept.contains("rivileged\":true") && !kept.contains("hostNetwork"),
        );
    }
    // Joe may not make the namespace what he wants, nor go where it is so.
    space["metadata"]["labels"] = json!({"pod-security.kubernetes.io/enforce": "privileged"});
    for (method, path, body) in [
        ("PATCH", "/api/v1/namespaces/strict", space.clone()),
        ("PUT", "/api/v1/namespaces/strict", space.clone()),
        (
            "APPLY",
            "/api/v1/namespaces/strict?fieldManager=x&force=true",
            space.clone(),
        ),
        ("PATCH", "/api/v1/namespaces/strict/status", space.clone()),
        ("PUT", "/api/v1/namespaces/strict/finalize", space.clone()),
        ("DELETE", "/api/v1/namespaces/strict", Value::Null),
        ("POST", "/api/v1/namespaces", named("Namespace", "mine")),
        ("POST", "/api/v1/namespaces/default/pods", pod("p", &json!({}))),
    ] {
        let (code, answer) = send(&joe, method, path, &[], body).await;
        attempts.note(format!("{method} {path}: {code} {answer}"), code == 403);
    }
    // Whoever controls Pods in his stead is warned, and his Pods are refused like any.
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}}}});
    let answer = api
        .send(
            "POST",
            "/apis/apps/v1/namespaces/strict/deployments",
            "application/json",
            deployment.to_string(),
        )
        .await;
    let warned = answer.headers.get("warning").is_some_and(|text| {
        text.to_str()
            .is_ok_and(|text| text.contains("would violate PodSecurity \\\"restricted:latest\\\": host namespaces"))
    });
    assert!(answer.code == 201 && warned, "{} {:?}", answer.body, answer.headers);
    attempts.all_refused("Pods in a restricted namespace", 250);
}
