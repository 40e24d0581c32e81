//! Webhook configurations, compiled.
//!
//! The storage's hook keeps the list: a configuration counts from the moment its write is answered. Connections are
//! made ready by the first call, not while a change is being applied.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use base64::Engine;
use http::HeaderMap;
use sampan_api::{Object, meta};
use sampan_cel::policy::Compiler;
use serde_json::Value;

use super::super::matching::{Conditions, Criteria};
use super::super::text;
use crate::outbound::{Credentials, Error, Outbound, Peer, Place, Spec, Trust, User};
use crate::sync::{lock, read, write};
use crate::watch_cache::{ChangeType, Storage};

/// One webhook of one configuration.
pub struct Hook {
    pub configuration: String,
    pub name: String,
    /// Unique among all webhooks, whatever their configurations call them.
    pub uid: String,
    pub criteria: Criteria,
    pub ignores_failure: bool,
    pub reinvocable: bool,
    /// Whether a dry run may call it.
    pub dry_runs: bool,
    pub timeout: Duration,
    /// The first version of the review that both sides know.
    pub version: Option<&'static str>,
    pub conditions: Conditions,
    target: Result<(Place, String), Error>,
    bundle: Vec<u8>,
    outbound: Outbound,
    /// As whom it is called, if not as nobody.
    user: Option<Arc<User>>,
    peer: OnceLock<Result<Arc<Peer>, Error>>,
}

impl Hook {
    /// What a call says of who makes it.
    pub fn credentials(&self) -> HeaderMap {
        self.user.as_ref().map(|user| user.headers()).unwrap_or_default()
    }

    /// Whom to call, and the path.
    pub fn peer(&self) -> Result<(&Arc<Peer>, &str), Error> {
        let (place, path) = self.target.as_ref().map_err(Clone::clone)?;
        let peer = self.peer.get_or_init(|| {
            self.outbound.peer(&Spec {
                place: place.clone(),
                trust: Trust::Bundle(self.bundle.clone()),
                identity: self.user.as_ref().and_then(|user| user.identity().cloned()),
            })
        });
        match peer {
            Ok(peer) => Ok((peer, path)),
            Err(error) => Err(error.clone()),
        }
    }
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    value
        .get(field)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn compile(configuration: &Object, way: &Way) -> Vec<Arc<Hook>> {
    let named = meta::name(configuration);
    let hooks = configuration.get("webhooks").and_then(Value::as_array);
    hooks
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(index, hook)| Arc::new(compile_one(named, index, hook, way)))
        .collect()
}

fn compile_one(configuration: &str, index: usize, hook: &Value, way: &Way) -> Hook {
    let name = text(hook, "/name");
    let bundle = text(hook, "/clientConfig/caBundle");
    let bundle = base64::engine::general_purpose::STANDARD.decode(bundle);
    let target = target(hook);
    let user = target.as_ref().ok().and_then(|(place, _)| way.credentials.of(place));
    let seconds = hook.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10);
    Hook {
        configuration: configuration.to_owned(),
        name: name.to_owned(),
        uid: format!("{configuration}/{name}/{index}"),
        criteria: Criteria::of_webhook(hook),
        ignores_failure: text(hook, "/failurePolicy") == "Ignore",
        reinvocable: text(hook, "/reinvocationPolicy") == "IfNeeded",
        dry_runs: matches!(text(hook, "/sideEffects"), "None" | "NoneOnDryRun"),
        timeout: Duration::from_secs(seconds),
        version: texts(hook, "admissionReviewVersions")
            .iter()
            .find_map(|version| match version.as_str() {
                "v1" => Some("v1"),
                "v1beta1" => Some("v1beta1"),
                _ => None,
            }),
        conditions: Conditions::of(hook, &Compiler::new(None)),
        target,
        bundle: bundle.unwrap_or_default().trim_ascii().to_vec(),
        outbound: way.outbound.clone(),
        user,
        peer: OnceLock::new(),
    }
}

fn target(hook: &Value) -> Result<(Place, String), Error> {
    let service = |field: &str| text(hook, &format!("/clientConfig/service/{field}")).to_owned();
    match hook.pointer("/clientConfig/service") {
        Some(Value::Object(_)) => {
            let port = hook.pointer("/clientConfig/service/port").and_then(Value::as_u64);
            let place = Place::Service {
                namespace: service("namespace"),
                name: service("name"),
                port: port.and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            };
            let path = service("path");
            Ok((place, if path.is_empty() { "/".to_owned() } else { path }))
        }
        _ => match text(hook, "/clientConfig/url") {
            "" => Err(Error::Unusable(
                "webhook configuration must have either service or URL".into(),
            )),
            url => Place::of_url(url),
        },
    }
}

/// How webhooks are reached, and as whom.
struct Way {
    outbound: Outbound,
    credentials: Arc<Credentials>,
}

/// All webhooks of one kind, in the order they are called in.
pub struct Source {
    way: Way,
    configurations: Mutex<BTreeMap<String, Vec<Arc<Hook>>>>,
    hooks: RwLock<Arc<Vec<Arc<Hook>>>>,
}

impl Source {
    pub fn new(outbound: Outbound, credentials: Arc<Credentials>) -> Arc<Self> {
        Arc::new(Source {
            way: Way { outbound, credentials },
            configurations: Mutex::default(),
            hooks: RwLock::default(),
        })
    }

    /// Keeps to what `storage` holds.
    pub fn follow(self: &Arc<Self>, storage: &Storage) {
        let source = self.clone();
        storage.set_hook(Box::new(move |change, object| {
            source.set(
                change.entry.name(),
                (change.kind != ChangeType::Deleted).then_some(object),
            );
        }));
    }

    fn set(&self, name: &str, configuration: Option<&Object>) {
        let mut configurations = lock(&self.configurations);
        match configuration {
            Some(configuration) => configurations.insert(name.to_owned(), compile(configuration, &self.way)),
            None => configurations.remove(name),
        };
        let all = configurations.values().flatten().cloned().collect();
        *write(&self.hooks) = Arc::new(all);
    }

    pub fn hooks(&self) -> Arc<Vec<Arc<Hook>>> {
        read(&self.hooks).clone()
    }
}
