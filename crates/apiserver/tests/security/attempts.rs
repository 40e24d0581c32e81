//! What attacks are tried with: requests in process and over TLS as they stand, and a count of what was refused.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::common::Api;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use sampan_apiserver::InProcess;
use sampan_pki::{Identity, tls};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::Service;

/// What was tried, and what got through.
#[derive(Default)]
pub struct Attempts {
    tried: usize,
    through: Vec<String>,
}

impl Attempts {
    pub fn note(&mut self, what: impl Into<String>, refused: bool) {
        self.tried += 1;
        if !refused {
            self.through.push(what.into());
        }
    }
    #[track_caller]
    pub fn all_refused(self, what: &str, at_least: usize) {
        println!(
            "{what}: {} attempts, {} refused",
            self.tried,
            self.tried - self.through.len()
        );
        assert_eq!(self.through, Vec::<String>::new(), "{what}: these got through");
        assert!(self.tried >= at_least, "{what}: only {} attempts", self.tried);
    }
}

pub async fn send(
    service: &InProcess,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (u16, Value) {
    let content_type = match method {
        "PATCH" => "application/merge-patch+json",
        "APPLY" => "application/apply-patch+yaml",
        _ => "application/json",
    };
    let mut request = Request::builder()
        .method(if method == "APPLY" { "PATCH" } else { method })
        .uri(path)
        .header("content-type", content_type);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let response = service
        .clone()
        .call(request.body(Full::new(Bytes::from(body))).unwrap())
        .await
        .unwrap();
    let code = response.status().as_u16();
    if code == 200 && path.contains("watch=") {
        return (code, Value::Null);
    }
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

pub fn pod(name: &str, node: &str, secret: &str, account: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "s", "secret": {"secretName": secret}}, {"name": "m", "configMap": {"name": secret}}]}})
}

pub async fn make(api: &Api, namespace: &str, plural: &str, object: Value) {
    api.post(&format!("/api/v1/namespaces/{namespace}/{plural}"), object)
        .await
        .ok();
}

pub fn named(kind: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}})
}

/// One request over TLS as it stands; everything that comes back.
pub async fn raw(api: &Api, identity: Option<&Identity>, alpn: &str, bytes: &[u8]) -> Vec<u8> {
    let config = tls::client_config(api.server.pki.ca(), identity, &[alpn]).unwrap();
    let stream = TcpStream::connect(api.server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
    let Ok(mut socket) = tokio_rustls::TlsConnector::from(config).connect(name, stream).await else {
        return Vec::new();
    };
    if socket.write_all(bytes).await.is_err() {
        return Vec::new();
    }
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    // What is refused without an answer must not be waited for long.
    while let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(700), socket.read(&mut buffer)).await {
        if read == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..read]);
    }
    all
}

pub async fn get(api: &Api, identity: Option<&Identity>, path: &str, headers: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    let answer = raw(api, identity, "http/1.1", request.as_bytes()).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, text)
}
