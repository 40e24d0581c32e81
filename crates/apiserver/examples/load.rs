//! A rough measure of the in-process API: creates, reads, lists and a fan-out, with many clients at once.

use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http_body_util::{BodyExt, Full};
use sampan_apiserver::InProcess;
use sampan_apiserver::testing::{AnyError, TestServer};
use serde_json::json;
use tower::Service;

const PATH: &str = "/api/v1/namespaces/default/configmaps";

async fn send(mut service: InProcess, method: &str, path: String, body: String) -> (u16, usize) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap_or_default();
    let response = match service.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let code = response.status().as_u16();
    let size = response
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes().len())
        .unwrap_or(0);
    (code, size)
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let at = |index: usize| {
        rest.split(' ')
            .nth(index)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (at(11) + at(12)) / 100.0
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let count = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(2000usize);
    let server = TestServer::start().await?;
    let service = server.connect();
    let filler = "x".repeat(1024);
    let report = |what: &str, begun: Instant, used: f64, good: usize, count: usize| {
        let took = begun.elapsed().as_secs_f64();
        println!(
            "{what}: {:.0}/s, {:.0} µs of CPU each ({good} of {count} good)",
            count as f64 / took,
            (cpu() - used) * 1e6 / count as f64
        );
    };
    for (what, method) in [
        ("create", "POST"),
        ("get", "GET"),
        ("patch", "PATCH"),
        ("delete", "DELETE"),
    ] {
        let (begun, used) = (Instant::now(), cpu());
        let good = futures::stream::iter(0..count)
            .map(|number| {
                let (service, filler) = (service.clone(), &filler);
                let (path, body) = match method {
                    "POST" => (
                        PATH.to_owned(),
                        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{number}")}, "data": {"a": filler}}).to_string(),
                    ),
                    "PATCH" => (format!("{PATH}/c{number}"), String::new()),
                    _ => (format!("{PATH}/c{number}"), String::new()),
                };
                let mut service = service;
                async move {
                    if method == "PATCH" {
                        let request = Request::builder()
                            .method("PATCH")
                            .uri(path)
                            .header("content-type", "application/merge-patch+json")
                            .body(Full::new(Bytes::from_static(b"{\"data\":{\"b\":\"1\"}}")))
                            .unwrap_or_default();
                        let response = match service.call(request).await {
                            Ok(response) => response,
                            Err(never) => match never {},
                        };
                        return response.status().is_success();
                    }
                    send(service, method, path, body).await.0 < 300
                }
            })
            .buffer_unordered(32)
            .filter(|good| futures::future::ready(*good))
            .count()
            .await;
        report(what, begun, used, good, count);
        if what == "patch" {
            let (begun, used) = (Instant::now(), cpu());
            let mut bytes = 0;
            for _ in 0..20 {
                bytes = send(service.clone(), "GET", PATH.to_owned(), String::new()).await.1;
            }
            report(&format!("list of {bytes} bytes"), begun, used, 20, 20);
        }
    }
    server.stop().await;
    Ok(())
}
