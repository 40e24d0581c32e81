//! Where webhooks are, and as whom they are called.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use sampan_apiserver::Body;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use serde_json::{Value, json};

use super::{CM, REGISTRATION, handler, rules};
use crate::common::{Api, config_map};

/// An address of this machine that Services may lead to.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel only says which address it would send from.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_meets_a_webhook_behind_a_service() {
    let Some(address) = own_address() else {
        eprintln!("kubectl_meets_a_webhook_behind_a_service: skipped, this machine has no address but loopback");
        return;
    };
    if std::process::Command::new("kubectl")
        .arg("version")
        .arg("--client")
        .output()
        .is_err()
    {
        eprintln!("kubectl_meets_a_webhook_behind_a_service: skipped, there is no kubectl");
        return;
    }
    let api = Api::start().await;
    let server = &api.server;
    let (_, handler) = handler();
    let https = HttpsServer::start_on(address, &server.pki, &server.tasks, &["hook.default.svc"], handler)
        .await
        .unwrap();
    let config = server.kubeconfig().unwrap();
    let kubectl = async |line: &str, input: String| {
        let mut command = std::process::Command::new("kubectl");
        command.arg("--kubeconfig").arg(&config).args(line.split(' '));
        let file = config.with_extension("input.json");
        std::fs::write(&file, input).unwrap();
        command.stdin(std::fs::File::open(&file).unwrap());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let hook = |name: &str, path: &str, selector: &str| {
        json!({"name": format!("{name}.example.com"), "rules": rules(&["CREATE"], &["configmaps"]), "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "objectSelector": {"matchLabels": {"ask": selector}},
            "clientConfig": {"service": {"namespace": "default", "name": "hook", "path": path},
                "caBundle": STANDARD.encode(server.pki.ca_pem())}})
    };
    let registration = |kind: &str, hooks: Vec<Value>| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hook"}, "webhooks": hooks});
    let all = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "default"},
            "spec": {"ports": [{"port": 443, "targetPort": https.address.port()}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "hook-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "hook"}},
            "ports": [{"name": "", "port": https.address.port(), "protocol": "TCP"}],
            "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}]},
        registration("MutatingWebhookConfiguration", vec![hook("one", "/stage-1", "change")]),
        registration("ValidatingWebhookConfiguration", vec![hook("deny", "/deny", "deny"), hook("warn", "/warn", "warn")]),
    ]});
    let (ok, text) = kubectl("apply -f -", all.to_string()).await;
    assert!(ok, "{text}");
    let labelled = |name: &str, label: &str| {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"ask": label});
        object.to_string()
    };
    let (ok, text) = kubectl("create -f -", labelled("denied", "deny")).await;
    assert!(!ok);
    assert!(
        text.contains("Error from server (Forbidden): error when creating \"STDIN\": admission webhook \"deny.example.com\" denied the request: the object contains unwanted data"),
        "{text}"
    );
    let (ok, text) = kubectl("create -f -", labelled("warned", "warn")).await;
    assert!(ok && text.contains("Warning: first"), "{text}");
    let (ok, text) = kubectl("create -f - -o yaml", labelled("changed", "change")).await;
    assert!(ok && text.contains("mutation-stage-1: \"yes\""), "{text}");
    // Without its endpoints the Service leads nowhere, and kubectl is told so.
    let (ok, text) = kubectl("delete endpointslice hook-1", String::new()).await;
    assert!(ok, "{text}");
    let (ok, text) = kubectl("delete service hook", String::new()).await;
    assert!(ok, "{text}");
    let (ok, text) = kubectl("create -f -", labelled("late", "deny")).await;
    assert!(!ok);
    assert!(
        text.contains("failed calling webhook \"deny.example.com\": failed to call webhook: Post \"https://hook.default.svc:443/deny?timeout=10s\": service \"hook\" not found"),
        "{text}"
    );
}

/// The users of a kubeconfig are those as whom webhooks are called, each at the server it is named after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_are_called_as_a_file_says() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    // The certificate is of whichever authority the webhook believes; here of one that is no cluster's.
    let pki = sampan_pki::Pki::load_or_create(&dir.path().join("pki"), sampan_pki::Params::default()).unwrap();
    let identity = pki
        .issue(&sampan_pki::LeafSpec::client("the-api-server", None))
        .unwrap();
    write("client.pem", identity.certificate_pem().to_owned());
    write("client.key", identity.key_pem().to_owned());
    write("token", "from-a-file\n".to_owned());
    let users = "apiVersion: v1\nkind: Config\nusers:\n\
        - {name: '*', user: {client-certificate: client.pem, client-key: client.key, tokenFile: token, as: someone}}\n";
    let others = "apiVersion: v1\nkind: Config\nusers:\n- {name: other.example.com, user: {token: not-for-you}}\n";
    let (users, others) = (write("users", users.to_owned()), write("others", others.to_owned()));
    let plugin = |name: &str, path: &str| {
        format!(
            "- name: {name}AdmissionWebhook\n  configuration:\n    apiVersion: apiserver.config.k8s.io/v1\n    \
             kind: WebhookAdmissionConfiguration\n    kubeConfigFile: {path}\n"
        )
    };
    let whole = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n{}{}",
        plugin("Mutating", &users),
        plugin("Validating", &others)
    );
    let whole = std::path::PathBuf::from(write("admission.yaml", whole));
    let api = Api::start_with(|config| {
        config.admission.configuration = sampan_apiserver::admission::Configuration::read(&whole).unwrap();
    })
    .await;
    // A server that lets in nobody without a certificate of that authority, and one that lets in everybody.
    let told: Arc<Mutex<Vec<(String, String, String)>>> = Arc::default();
    let handler: Handler = {
        let told = told.clone();
        Arc::new(move |parts, body| {
            let told = told.clone();
            Box::pin(async move {
                let header = |name: &str| {
                    let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
                    value.unwrap_or_default().to_owned()
                };
                let who = (
                    parts.uri.path().to_owned(),
                    header("authorization"),
                    header("impersonate-user"),
                );
                told.lock().unwrap().push(who);
                let review: Value = serde_json::from_slice(&body)?;
                let answer = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                    "response": {"uid": review["request"]["uid"], "allowed": true}});
                Ok(Response::new(Body::from(answer.to_string())))
            })
        })
    };
    let strict = HttpsServer::start_strict(
        &pki.ca(),
        &api.server.pki,
        &api.server.tasks,
        &["localhost"],
        handler.clone(),
    )
    .await
    .unwrap();
    let open = HttpsServer::start(&api.server.pki, &api.server.tasks, &["localhost"], handler)
        .await
        .unwrap();
    for (kind, https, path) in [
        ("Mutating", &strict, "/m"),
        ("Validating", &open, "/v"),
        ("Validating", &strict, "/s"),
    ] {
        let name = format!("{}{}", kind.to_lowercase(), path.trim_start_matches('/'));
        let hook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}WebhookConfiguration"),
            "metadata": {"name": name}, "webhooks": [{"name": "who.example.com", "sideEffects": "None",
                "failurePolicy": if path == "/s" { "Ignore" } else { "Fail" }, "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": https.url(path), "caBundle": STANDARD.encode(api.server.pki.ca_pem())},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}]});
        let plural = format!("{}webhookconfigurations", kind.to_lowercase());
        api.post(&format!("{REGISTRATION}/{plural}"), hook).await.ok();
    }
    api.post(CM, config_map("who")).await.ok();
    let text = |text: &str| text.to_owned();
    // Whoever is in no file goes without credentials, and is not let in where they are asked for.
    assert_eq!(
        *told.lock().unwrap(),
        [
            (text("/m"), text("Bearer from-a-file"), text("someone")),
            (text("/v"), text(""), text(""))
        ]
    );
    api.server.stop().await;
}
