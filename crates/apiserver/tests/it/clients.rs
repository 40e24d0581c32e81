//! kube-rs over both transports, and discovery compared with upstream's.

use std::io::Read;
use std::path::PathBuf;

use crate::common::Api;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};

async fn lives(client: kube::Client) {
    let api: kube::Api<ConfigMap> = kube::Api::default_namespaced(client);
    let mut events = Box::pin(watcher(api.clone(), watcher::Config::default()).applied_objects());
    let object = ConfigMap {
        metadata: ObjectMeta {
            name: Some("typed".into()),
            ..Default::default()
        },
        data: Some([("a".to_owned(), "1".to_owned())].into()),
        ..Default::default()
    };
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    assert!(made.metadata.resource_version.is_some());
    let patch = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"b": "2"}});
    let applied = api
        .patch("typed", &PatchParams::apply("test"), &Patch::Apply(patch))
        .await
        .unwrap();
    assert_eq!(applied.data.unwrap().len(), 2);
    let seen = loop {
        let object = events.try_next().await.unwrap().unwrap();
        if object.metadata.name.as_deref() == Some("typed") && object.data.as_ref().is_some_and(|data| data.len() == 2)
        {
            break object;
        }
    };
    assert_eq!(seen.metadata.uid, made.metadata.uid);
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
    api.delete("typed", &DeleteParams::default()).await.unwrap();
    let error = api.get("typed").await.unwrap_err();
    assert!(
        matches!(&error, kube::Error::Api(status) if status.code == 404),
        "{error}"
    );
    drop(events);
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_in_process() {
    let api = Api::start().await;
    lives(kube::Client::new(api.service.clone(), "default")).await;
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_over_tls() {
    let api = Api::start().await;
    let path = api.server.kubeconfig().unwrap();
    let config = kube::config::Kubeconfig::read_from(path).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
        .await
        .unwrap();
    lives(kube::Client::try_from(config).unwrap()).await;
    api.server.stop().await;
}

/// Upstream's recorded documents, where they are kept on this machine.
fn upstream(file: &str) -> Option<Value> {
    let dir = std::env::var_os("SAMPAN_UPSTREAM_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")),
        PathBuf::from,
    );
    let bytes = std::fs::read(dir.join(file)).ok()?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[..])
        .read_to_string(&mut text)
        .ok()?;
    serde_json::from_str(&text).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_is_upstreams() {
    let Some(theirs) = upstream("kubernetes-1.36-discovery-aggregated.json.gz") else {
        println!("skipped: upstream's documents are not here; SAMPAN_UPSTREAM_DATA names their directory");
        return;
    };
    let api = Api::start().await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let ours = api.send_as("GET", "/apis", "", accept, "").await.ok();
    let versions = |document: &Value| -> std::collections::BTreeMap<String, Value> {
        let mut found = std::collections::BTreeMap::new();
        for group in document["items"].as_array().unwrap() {
            let name = group["metadata"]["name"].as_str().unwrap();
            for version in group["versions"].as_array().unwrap() {
                let text = version["version"].as_str().unwrap();
                let stable = !text.contains("alpha") && !text.contains("beta");
                if stable {
                    found.insert(format!("{name}/{text}"), version["resources"].clone());
                }
            }
        }
        found
    };
    let (ours, theirs) = (versions(&ours), versions(&theirs));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (version, resources) in &theirs {
        let find = |name: &Value| {
            ours[version]
                .as_array()
                .unwrap()
                .iter()
                .find(|own| own["resource"] == *name)
                .cloned()
                .unwrap_or_default()
        };
        for wanted in resources.as_array().unwrap() {
            let own = find(&wanted["resource"]);
            for field in [
                "responseKind",
                "scope",
                "singularResource",
                "verbs",
                "shortNames",
                "categories",
                "subresources",
            ] {
                let strip = |value: &Value| -> Value {
                    // Upstream fills in only what differs for subresources; compare names and verbs.
                    match value.as_array() {
                        Some(all) if field == "subresources" => all
                            .iter()
                            .map(|sub| json!([sub["subresource"], sub["verbs"], sub["responseKind"]["kind"]]))
                            .collect(),
                        // Group and version are left out where they are the resource's own; ours are always there.
                        _ if field == "responseKind" => value["kind"].clone(),
                        _ => value.clone(),
                    }
                };
                assert_eq!(
                    strip(&own[field]),
                    strip(&wanted[field]),
                    "{version} {} {field}",
                    wanted["resource"]
                );
            }
        }
    }
    api.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_document_is_served() {
    let api = Api::start().await;
    let index = api.get("/openapi/v3").await.ok();
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
    let url = paths["apis/batch/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = api.get(url).await;
    assert!(
        document.headers["cache-control"]
            .to_str()
            .unwrap()
            .contains("immutable")
    );
    assert!(document.ok()["components"]["schemas"]["io.k8s.api.batch.v1.Job"].is_object());
    assert_eq!(api.get("/openapi/v3/apis/batch/v1?hash=old").await.code, 301);
    let metrics = api.get("/metrics").await;
    let text = metrics.body.as_str().unwrap().to_owned();
    for name in [
        "apiserver_request_total",
        "apiserver_storage_objects",
        "process_resident_memory_bytes",
    ] {
        assert!(text.contains(name), "{name}");
    }
    for path in [
        "/",
        "/api",
        "/apis",
        "/apis/apps",
        "/apis/apps/v1",
        "/version",
        "/healthz",
        "/livez",
        "/readyz",
        "/openid/v1/jwks",
    ] {
        assert_eq!(api.get(path).await.code, 200, "{path}");
    }
    let mut all = futures::stream::iter(["/apis/none", "/api/v2", "/nothing", "/readyz/nothing"]);
    while let Some(path) = all.next().await {
        assert_eq!(api.get(path).await.code, 404, "{path}");
    }
    api.server.stop().await;
}

/// Splits a protobuf watch stream and decodes each event's object.
fn watch_frames(mut bytes: &[u8]) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    while bytes.len() > 4 {
        let (length, rest) = bytes.split_at(4);
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let (frame, rest) = rest.split_at(length);
        bytes = rest;
        let field = |bytes: &[u8]| -> (usize, usize) {
            // Start and end of a length-delimited field's content.
            let (mut at, mut size, mut shift) = (1, 0usize, 0);
            loop {
                let byte = bytes[at];
                size |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                at += 1;
                if byte < 0x80 {
                    return (at, at + size);
                }
            }
        };
        let (start, end) = field(frame);
        let kind = String::from_utf8(frame[start..end].to_vec()).unwrap();
        let object = &frame[end..];
        let (start, end) = field(object);
        let raw = &object[start..end];
        let (start, end) = field(raw);
        let decoded = sampan_api::codec::protobuf::decode(&raw[start..end], None).unwrap();
        events.push((kind, decoded));
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_both_ways() {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    let api = Api::start().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let protobuf = "application/vnd.kubernetes.protobuf";
    let body = sampan_api::codec::protobuf::encode(&crate::common::config_map("pb")).unwrap();
    let ask = async |method: &str, path: &str, accept: &str, body: Vec<u8>| {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", protobuf)
            .header("accept", accept)
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = api.raw(request).await;
        let code = response.status().as_u16();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        (code, kind, response.into_body().collect().await.unwrap().to_bytes())
    };
    let (code, kind, bytes) = ask("POST", path, protobuf, body).await;
    assert_eq!((code, kind.as_str()), (201, protobuf));
    let made = sampan_api::codec::protobuf::decode(&bytes, None).unwrap();
    assert_eq!(made["data"]["key"], "value");
    let (_, _, bytes) = ask(
        "GET",
        path,
        "application/vnd.kubernetes.protobuf,application/json",
        Vec::new(),
    )
    .await;
    let list = sampan_api::codec::protobuf::decode(&bytes, None).unwrap();
    assert_eq!(
        (list["kind"].as_str(), &list["items"][0]["metadata"]["name"]),
        (Some("ConfigMapList"), &json!("pb"))
    );
    let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (code, _, bytes) = ask("GET", path, metadata, Vec::new()).await;
    assert_eq!(code, 200);
    let list = sampan_api::codec::protobuf::decode(&bytes, None).unwrap();
    assert_eq!(list["items"][0]["metadata"]["name"], "pb");
    let (code, kind, bytes) = ask("GET", &format!("{path}?watch=1&timeoutSeconds=1"), protobuf, Vec::new()).await;
    assert_eq!(
        (code, kind.as_str()),
        (200, "application/vnd.kubernetes.protobuf;stream=watch")
    );
    let events = watch_frames(&bytes);
    assert_eq!(events[0].0, "ADDED");
    assert_eq!(events[0].1["metadata"]["name"], "pb");
    let (code, kind, bytes) = ask("GET", &format!("{path}/none"), protobuf, Vec::new()).await;
    assert_eq!((code, kind.as_str()), (404, protobuf));
    assert_eq!(
        sampan_api::codec::protobuf::decode(&bytes, None).unwrap()["reason"],
        "NotFound"
    );
    api.server.stop().await;
}
