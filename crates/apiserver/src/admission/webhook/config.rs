//! Webhook configurations, compiled.
//!
//! The storage's hook keeps the list: a configuration counts from the moment its write is answered. Connections are
//! made ready by the first call, not while a change is being applied.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use base64::Engine;
use sampan_api::selector::LabelSelector;
use sampan_api::{Object, meta};
use serde_json::Value;

use super::super::{Operation, text};
use super::conditions::Conditions;
use crate::outbound::{Error, Outbound, Peer, Place, Spec, Trust};
use crate::sync::{lock, read, write};
use crate::watch_cache::{ChangeType, Storage};

/// One webhook of one configuration.
pub struct Hook {
    pub configuration: String,
    pub name: String,
    /// Unique among all webhooks, whatever their configurations call them.
    pub uid: String,
    pub rules: Vec<Rule>,
    pub namespaces: Result<LabelSelector, String>,
    pub objects: Result<LabelSelector, String>,
    /// Whether other versions of what a rule names match as well.
    pub equivalent: bool,
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
    peer: OnceLock<Result<Arc<Peer>, Error>>,
}

impl Hook {
    /// Whom to call, and the path.
    pub fn peer(&self) -> Result<(&Arc<Peer>, &str), Error> {
        let (place, path) = self.target.as_ref().map_err(Clone::clone)?;
        let peer = self.peer.get_or_init(|| {
            self.outbound.peer(&Spec {
                place: place.clone(),
                trust: Trust::Bundle(self.bundle.clone()),
                identity: None,
            })
        });
        match peer {
            Ok(peer) => Ok((peer, path)),
            Err(error) => Err(error.clone()),
        }
    }
}

/// One rule: all of it must match.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub operations: Vec<String>,
    pub groups: Vec<String>,
    pub versions: Vec<String>,
    /// Resource and subresource.
    pub resources: Vec<(String, String)>,
    pub scope: Scope,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    #[default]
    All,
    Cluster,
    Namespaced,
}

impl Rule {
    pub fn of(rule: &Value) -> Self {
        let list = |field: &str| texts(rule, field);
        Rule {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources")
                .into_iter()
                .map(|resource| match resource.split_once('/') {
                    Some((resource, sub)) => (resource.to_owned(), sub.to_owned()),
                    None => (resource, String::new()),
                })
                .collect(),
            scope: match text(rule, "/scope") {
                "Cluster" => Scope::Cluster,
                "Namespaced" => Scope::Namespaced,
                _ => Scope::All,
            },
        }
    }

    /// Whether the rule names this request. `namespaced`: it is about something in a namespace.
    pub fn matches(
        &self,
        operation: Operation,
        (group, version, plural): (&str, &str, &str),
        subresource: &str,
        namespaced: bool,
    ) -> bool {
        let any = |wanted: &[String], asked: &str| wanted.iter().any(|wanted| wanted == "*" || wanted == asked);
        let scope = match self.scope {
            Scope::All => true,
            Scope::Cluster => !namespaced,
            Scope::Namespaced => namespaced,
        };
        scope
            && any(&self.operations, operation.name())
            && any(&self.groups, group)
            && any(&self.versions, version)
            && self
                .resources
                .iter()
                .any(|(resource, sub)| (resource == "*" || resource == plural) && (sub == "*" || sub == subresource))
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

fn compile(configuration: &Object, outbound: &Outbound) -> Vec<Arc<Hook>> {
    let named = meta::name(configuration);
    let hooks = configuration.get("webhooks").and_then(Value::as_array);
    hooks
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(index, hook)| Arc::new(compile_one(named, index, hook, outbound)))
        .collect()
}

fn compile_one(configuration: &str, index: usize, hook: &Value, outbound: &Outbound) -> Hook {
    let name = text(hook, "/name");
    let selector = |field: &str| match hook.get(field) {
        None | Some(Value::Null) => Ok(LabelSelector::everything()),
        Some(selector) => LabelSelector::from_value(selector).map_err(|error| error.to_string()),
    };
    let bundle = text(hook, "/clientConfig/caBundle");
    let bundle = base64::engine::general_purpose::STANDARD.decode(bundle);
    let seconds = hook.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10);
    Hook {
        configuration: configuration.to_owned(),
        name: name.to_owned(),
        uid: format!("{configuration}/{name}/{index}"),
        rules: hook
            .get("rules")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(Rule::of)
            .collect(),
        namespaces: selector("namespaceSelector"),
        objects: selector("objectSelector"),
        equivalent: text(hook, "/matchPolicy") != "Exact",
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
        conditions: Conditions::of(hook),
        target: target(hook),
        bundle: bundle.unwrap_or_default().trim_ascii().to_vec(),
        outbound: outbound.clone(),
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

/// All webhooks of one kind, in the order they are called in.
pub struct Source {
    outbound: Outbound,
    configurations: Mutex<BTreeMap<String, Vec<Arc<Hook>>>>,
    hooks: RwLock<Arc<Vec<Arc<Hook>>>>,
}

impl Source {
    pub fn new(outbound: Outbound) -> Arc<Self> {
        Arc::new(Source {
            outbound,
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
            Some(configuration) => configurations.insert(name.to_owned(), compile(configuration, &self.outbound)),
            None => configurations.remove(name),
        };
        let all = configurations.values().flatten().cloned().collect();
        *write(&self.hooks) = Arc::new(all);
    }

    pub fn hooks(&self) -> Arc<Vec<Arc<Hook>>> {
        read(&self.hooks).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_match_as_upstream_has_it() {
        let rule = |resources: Value, scope: &str| {
            Rule::of(
                &json!({"operations": ["CREATE"], "apiGroups": ["", "apps"], "apiVersions": ["*"],
                "resources": resources, "scope": scope}),
            )
        };
        let pods = ("", "v1", "pods");
        for (rule, plural, sub, namespaced, expected) in [
            (rule(json!(["pods"]), "*"), pods, "", true, true),
            (rule(json!(["pods"]), "*"), pods, "status", true, false),
            (rule(json!(["pods/*"]), "*"), pods, "status", true, true),
            (rule(json!(["pods/*"]), "*"), pods, "", true, true),
            (rule(json!(["*"]), "*"), pods, "", true, true),
            (rule(json!(["*"]), "*"), pods, "exec", true, false),
            (rule(json!(["*/*"]), "*"), pods, "exec", true, true),
            (rule(json!(["*/exec"]), "*"), pods, "exec", true, true),
            (rule(json!(["*"]), "Cluster"), pods, "", true, false),
            (rule(json!(["*"]), "Cluster"), ("", "v1", "nodes"), "", false, true),
            (rule(json!(["*"]), "Namespaced"), ("", "v1", "nodes"), "", false, false),
            (rule(json!(["*"]), "*"), ("batch", "v1", "jobs"), "", true, false),
        ] {
            assert_eq!(
                rule.matches(Operation::Create, plural, sub, namespaced),
                expected,
                "{rule:?} {plural:?} {sub}"
            );
            assert!(!rule.matches(Operation::Delete, plural, sub, namespaced));
        }
    }
}
