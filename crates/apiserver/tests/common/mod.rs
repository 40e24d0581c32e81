//! A server and a small client of raw requests over the in-process transport.

#![allow(dead_code)]

pub mod boats;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use sampan_apiserver::testing::TestServer;
use sampan_apiserver::{Body, InProcess};
use serde_json::{Value, json};
use tower::Service;

pub struct Api {
    pub server: TestServer,
    pub service: InProcess,
}

/// An answer, read whole.
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.code < 300, "{}: {}", self.code, self.body);
        self.body
    }
    /// Code, reason and message of a refusal.
    #[track_caller]
    pub fn refused(&self, code: u16, reason: &str, message: &str) {
        assert_eq!(self.code, code, "{}", self.body);
        assert_eq!(
            self.body["reason"].as_str().unwrap_or_default(),
            reason,
            "{}",
            self.body
        );
        assert_eq!(self.message(), message);
        assert_eq!(self.body["code"], code);
        assert_eq!(self.body["kind"], "Status");
    }
}

impl Api {
    pub async fn start() -> Self {
        let server = TestServer::start().await.expect("the server starts");
        let service = server.connect();
        Api { server, service }
    }

    /// The administrator's view of a server.
    pub fn of(server: TestServer) -> Self {
        let service = server.connect();
        Api { server, service }
    }

    /// Ends the server so that another may start over its directory.
    pub async fn stop(self) {
        drop(self.service);
        self.server.stop().await;
    }

    /// A cluster of another configuration.
    pub async fn start_with(change: impl FnOnce(&mut sampan_apiserver::Config)) -> Self {
        let server = TestServer::start_with(change).await.expect("the server starts");
        let service = server.connect();
        Api { server, service }
    }

    /// The same cluster as somebody else sees it.
    pub fn transport(&self, name: &str, groups: &[&str]) -> InProcess {
        let groups = groups.iter().map(|group| (*group).to_owned());
        self.server.plane.connect(sampan_auth::UserInfo::new(name, groups))
    }

    pub async fn raw(&self, request: Request<Full<Bytes>>) -> Response<Body> {
        self.service.clone().call(request).await.expect("infallible")
    }

    pub async fn send(&self, method: &str, path: &str, content_type: &str, body: impl Into<Bytes>) -> Answer {
        self.send_as(method, path, content_type, "application/json", body).await
    }

    pub async fn send_as(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        accept: &str,
        body: impl Into<Bytes>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("accept", accept)
            .header("user-agent", "tests/1")
            .body(Full::new(body.into()))
            .expect("a request");
        let (parts, body) = self.raw(request).await.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "").await
    }
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, "application/json", body.to_string()).await
    }
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send("PUT", path, "application/json", body.to_string()).await
    }
    pub async fn merge(&self, path: &str, body: Value) -> Answer {
        self.send("PATCH", path, "application/merge-patch+json", body.to_string())
            .await
    }
    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, "", "").await
    }

    /// Opens a watch.
    pub async fn watch(&self, path: &str) -> Events {
        let request = Request::builder().uri(path).body(Full::default()).expect("a request");
        let response = self.raw(request).await;
        assert_eq!(response.status(), 200);
        Events {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }
}

/// The events of a watch.
pub struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        self.next_within(Duration::from_secs(10)).await
    }
    /// The same with another patience.
    pub async fn next_within(&mut self, patience: Duration) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event"));
            }
            let frame = tokio::time::timeout(patience, self.body.frame())
                .await
                .expect("an event in time")?;
            self.rest
                .extend_from_slice(&frame.expect("a frame").into_data().unwrap_or_default());
        }
    }
    /// Type and name of the next event.
    pub async fn brief(&mut self) -> String {
        let event = self.next().await.expect("an event");
        format!(
            "{} {}",
            event["type"].as_str().unwrap_or_default(),
            event["object"]["metadata"]["name"].as_str().unwrap_or_default()
        )
    }
}

pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": "value"}})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "main", "image": "pause"}]}})
}
