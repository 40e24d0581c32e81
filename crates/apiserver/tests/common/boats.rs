//! Boats, a custom kind in two versions: definitions, objects, and the webhook that converts them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use http::Response;
use sampan_apiserver::Body;
use sampan_apiserver::testing::https::{Handler, HttpsServer};
use sampan_pki::Pki;
use sampan_tasks::Tasks;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Api, Events};

pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const BOATS: &str = "/apis/example.com/v1/namespaces/default/boats";

pub fn version(name: &str, schema: Value) -> Value {
    json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": schema}})
}

pub fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "enum": ["red", "blue"]},
            "crew": {"type": "array", "maxItems": 3, "x-kubernetes-list-type": "set", "items": {"type": "string", "maxLength": 5}}}},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
}

pub fn definition(versions: Vec<Value>) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boats", "kind": "Boat", "shortNames": ["bt"]}, "versions": versions}})
}

pub fn boat(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": name}, "spec": spec})
}

pub fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    definition["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|found| found["type"] == kind)
}

/// Waits until the definition's condition is so.
pub async fn until(api: &Api, name: &str, kind: &str, status: &str) -> Value {
    for _ in 0..500 {
        let found = api.get(&format!("{DEFINITIONS}/{name}")).await.body;
        if condition(&found, kind).is_some_and(|found| found["status"] == status) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name} never had {kind}={status}");
}

pub async fn define(api: &Api, definition: Value) {
    let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
    api.post(DEFINITIONS, definition).await.ok();
    until(api, &name, "Established", "True").await;
}

/// Changes the stored definition and waits until it is served so.
pub async fn redefine(api: &Api, change: impl Fn(&mut Value)) {
    let path = format!("{DEFINITIONS}/boats.example.com");
    let mut found = api.get(&path).await.ok();
    change(&mut found);
    // Its watches end when a definition is served otherwise.
    let watch = api.watch(&format!("{BOATS}?watch=1")).await;
    api.put(&path, found).await.ok();
    drained(watch).await;
}

pub async fn drained(mut events: Events) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(format!(
            "{} {}",
            event["type"].as_str().unwrap(),
            event["object"]["metadata"]["name"].as_str().unwrap_or_default()
        ));
    }
    seen
}

/// A webhook that knows `size` (v1) as `length` (v2), and that thirteen is neither. It notes in an annotation that it
/// was here, and lies about the generation.
pub struct Converter {
    port: u16,
    bundle: String,
    seen: Arc<Seen>,
    hanging: watch::Sender<bool>,
    tasks: Tasks,
}

#[derive(Default)]
struct Seen {
    calls: AtomicUsize,
    objects: AtomicUsize,
}

impl Converter {
    /// Outlives a server that is started again over the same directory.
    pub async fn start(pki: &Pki) -> Self {
        let seen = Arc::new(Seen::default());
        let (hanging, hangs) = watch::channel(false);
        let handler: Handler = {
            let seen = seen.clone();
            Arc::new(move |parts, body| {
                let (seen, mut hangs) = (seen.clone(), hangs.clone());
                Box::pin(async move {
                    assert_eq!(parts.uri.path(), "/convert");
                    let review: Value = serde_json::from_slice(&body)?;
                    seen.calls.fetch_add(1, Ordering::Relaxed);
                    hangs.wait_for(|hangs| !hangs).await?;
                    Ok(Response::new(Body::from(convert(&review, &seen).to_string())))
                })
            })
        };
        let tasks = Tasks::new();
        let https = HttpsServer::start(pki, &tasks, &["localhost"], handler).await.unwrap();
        Converter {
            port: https.address.port(),
            bundle: base64::engine::general_purpose::STANDARD.encode(pki.ca_pem()),
            seen,
            hanging,
            tasks,
        }
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}/convert", self.port)
    }

    /// The `conversion` of a definition.
    pub fn conversion(&self) -> Value {
        json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1", "v1beta1"],
            "clientConfig": {"url": self.url(), "caBundle": self.bundle}}})
    }

    /// How often it was called, and for how many objects.
    pub fn calls(&self) -> usize {
        self.seen.calls.load(Ordering::Relaxed)
    }
    pub fn objects(&self) -> usize {
        self.seen.objects.load(Ordering::Relaxed)
    }

    /// Whether calls are answered never.
    pub fn hang(&self, hangs: bool) {
        self.hanging.send_replace(hangs);
    }
}

impl Drop for Converter {
    fn drop(&mut self) {
        self.tasks.drain().start();
    }
}

fn convert(review: &Value, seen: &Seen) -> Value {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap_or_default();
    let (from, to) = if wanted.ends_with("v2") {
        ("size", "length")
    } else {
        ("length", "size")
    };
    let mut objects = request["objects"].as_array().cloned().unwrap_or_default();
    seen.objects.fetch_add(objects.len(), Ordering::Relaxed);
    let mut result = json!({"status": "Success"});
    for object in &mut objects {
        assert_ne!(
            object["apiVersion"], wanted,
            "what is of a version needs no conversion to it"
        );
        object["apiVersion"] = wanted.into();
        object["metadata"]["annotations"]["converted"] = wanted.into();
        object["metadata"]["generation"] = 99.into();
        if let Some(spec) = object["spec"].as_object_mut()
            && let Some(value) = spec.remove(from)
        {
            if value == 13 {
                result = json!({"status": "Failure", "message": "thirteen is not a size"});
            }
            spec.insert(to.into(), value);
        }
    }
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
        "response": {"uid": request["uid"], "result": result, "convertedObjects": objects}})
}

/// What v2 says of a boat.
pub fn second_schema() -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "length": {"type": "integer"}, "color": {"type": "string"}}}}})
}

/// Boats in both versions; the first is stored.
pub fn converted(converter: &Converter) -> Value {
    let mut both = definition(vec![version("v1", schema()), version("v2", second_schema())]);
    both["spec"]["conversion"] = converter.conversion();
    both
}
