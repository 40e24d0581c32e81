//! Every endpoint and verb is authorized: refused without a right and in upstream's words, not refused with exactly it,
//! refused with what is nearly it, and closed to those who do not say who they are.
//!
//! The list is made from what the server says of itself (discovery, OpenAPI, its list of paths), so what is added to the
//! API is in it by itself. What could not be tried is collected and must stay empty.

use std::collections::BTreeMap;

use crate::common::{Api, boats};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sampan_apiserver::InProcess;
use sampan_pki::tls;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tower::Service;

const METHODS: [&str; 7] = ["get", "head", "post", "put", "patch", "delete", "options"];
/// Paths that are no resources, besides those that the server lists.
const PATHS: [&str; 25] = [
    "/",
    "/apis/apps",
    "/apis/no.such.group",
    "/apis/no.such.group/v1",
    "/healthz/ping",
    "/livez/etcd",
    "/readyz/ping",
    "/metrics/cadvisor",
    "/metrics/slis",
    "/openapi/v3/api/v1",
    "/openapi/v3/apis/apps/v1",
    "/debug/pprof/",
    "/debug/flags/v",
    "/debug/api_priority_and_fairness/dump_priority_levels",
    "/debug/api_priority_and_fairness/dump_queues",
    "/debug/api_priority_and_fairness/dump_requests",
    "/logs",
    "/logs/audit.log",
    "/configz",
    "/statusz",
    "/flagz",
    "/sampan/v1/backup",
    "/sampan/v1/migrate",
    "/sampan/v1/certificates",
    "/no/such/path",
];
/// What anybody may see, as its makers meant it.
const OPEN: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// A request and the rights it needs, each of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trial {
    pub method: String,
    pub path: String,
    pub needs: Needs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    Path(String),
    Resource {
        verbs: Vec<&'static str>,
        group: String,
        resource: String,
        namespace: String,
        name: String,
    },
}

/// Upstream's rules of what a request is about, once more and for well-formed paths only.
fn trial(method: &str, uri: &str) -> Trial {
    let path = uri.split('?').next().unwrap_or_default();
    let made = |needs| Trial {
        method: method.to_owned(),
        path: uri.to_owned(),
        needs,
    };
    let mut parts: Vec<&str> = path.split('/').skip(1).filter(|part| !part.is_empty()).collect();
    let group = match parts.as_slice() {
        ["api", _, _, ..] => {
            parts.drain(..2);
            String::new()
        }
        ["apis", group, _, _, ..] => {
            let group = (*group).to_owned();
            parts.drain(..3);
            group
        }
        _ => return made(Needs::Path(path.to_owned())),
    };
    let old_watch = parts[0] == "watch";
    if old_watch {
        parts.remove(0);
    }
    let mut namespace = String::new();
    if parts[0] == "namespaces" && parts.len() > 1 {
        namespace = parts[1].to_owned();
        if parts.len() > 2 && !["status", "finalize"].contains(&parts[2]) {
            parts.drain(..2);
        }
    }
    let mut resource = parts[0].to_owned();
    let name = parts.get(1).copied().unwrap_or_default().to_owned();
    let subresource = parts.get(2).copied().unwrap_or_default();
    if !subresource.is_empty() {
        resource = format!("{resource}/{subresource}");
    }
    let one = !name.is_empty();
    let streams = ["pods/exec", "pods/attach", "pods/portforward"].contains(&resource.as_str());
    let verbs = match method {
        _ if old_watch || (method == "get" && !one && uri.contains("watch=true")) => vec!["watch"],
        // What a WebSocket can only ask for by GET is nevertheless a creation.
        "get" | "head" if streams && group.is_empty() => vec!["get", "create"],
        "get" | "head" if one => vec!["get"],
        "get" | "head" => vec!["list"],
        "post" => vec!["create"],
        "put" => vec!["update"],
        "patch" => vec!["patch"],
        "delete" if one => vec!["delete"],
        "delete" => vec!["deletecollection"],
        // No verb; whoever may everything may this.
        _ => vec!["*"],
    };
    made(Needs::Resource {
        verbs,
        group,
        resource,
        namespace,
        name,
    })
}

impl Trial {
    /// How a refusal is worded for lack of the first right.
    fn refusal(&self, user: &str) -> String {
        match &self.needs {
            Needs::Path(path) => format!("forbidden: User {user:?} cannot {} path {path:?}", self.method),
            Needs::Resource {
                verbs,
                group,
                resource,
                namespace,
                name,
            } => {
                let plural = resource.split('/').next().unwrap_or_default();
                let mut what = match group.as_str() {
                    "" => plural.to_owned(),
                    group => format!("{plural}.{group}"),
                };
                if !name.is_empty() {
                    what = format!("{what} {name:?}");
                }
                let verb = if verbs[0] == "*" { "" } else { verbs[0] };
                let place = match namespace.as_str() {
                    "" => "at the cluster scope".to_owned(),
                    namespace => format!("in the namespace {namespace:?}"),
                };
                format!(
                    "{what} is forbidden: User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {place}"
                )
            }
        }
    }

    /// Exactly the right, and what is nearly it.
    fn rules(&self) -> (Value, Vec<(&'static str, Value)>) {
        match &self.needs {
            Needs::Path(path) => {
                let verb = self.method.as_str();
                let other = if verb == "get" { "post" } else { "get" };
                let right = json!({"nonResourceURLs": [path], "verbs": [verb]});
                let near = vec![
                    ("another verb", json!({"nonResourceURLs": [path], "verbs": [other]})),
                    (
                        "another path",
                        json!({"nonResourceURLs": [format!("{path}x")], "verbs": [verb]}),
                    ),
                    (
                        "what is below",
                        json!({"nonResourceURLs": [format!("{}/*", path.trim_end_matches('/'))], "verbs": [other]}),
                    ),
                ];
                (right, near)
            }
            Needs::Resource {
                verbs,
                group,
                resource,
                name,
                ..
            } => {
                let rule = |group: &str, resource: &str, verbs: &[&str], names: &[&str]| {
                    let mut rule = json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
                    if !names.is_empty() {
                        rule["resourceNames"] = names.into();
                    }
                    rule
                };
                let other = if verbs[0] == "get" { "list" } else { "get" };
                let mut near = vec![
                    ("another verb", rule(group, resource, &[other], &[])),
                    ("another resource", rule(group, &format!("{resource}x"), verbs, &[])),
                    ("another group", rule("another.group", resource, verbs, &[])),
                ];
                if let Some((plural, subresource)) = resource.split_once('/') {
                    near.push(("the whole of the part", rule(group, plural, verbs, &[])));
                    near.push((
                        "the part of another",
                        rule(group, &format!("others/{subresource}"), verbs, &[]),
                    ));
                } else {
                    near.push(("a part of it", rule(group, &format!("{resource}/status"), verbs, &[])));
                }
                for one in verbs.iter().filter(|_| verbs.len() > 1) {
                    near.push(("one right of two", rule(group, resource, &[one], &[])));
                }
                near.push(("another name", rule(group, resource, verbs, &["other"])));
                let names = [name.as_str()];
                let names = if name.is_empty() { &names[..0] } else { &names };
                (rule(group, resource, verbs, names), near)
            }
        }
    }
}

pub async fn ask(service: &InProcess, trial: &Trial) -> (u16, String) {
    let (content_type, body) = match trial.method.as_str() {
        "patch" => ("application/merge-patch+json", "{}"),
        "post" | "put" => ("application/json", "{}"),
        _ => ("application/json", ""),
    };
    // Nothing is to be changed: the next trial needs what this one would delete.
    let path = match trial.method.as_str() {
        "get" | "head" | "options" => trial.path.clone(),
        _ => format!("{}?dryRun=All", trial.path),
    };
    let request = Request::builder()
        .method(trial.method.to_uppercase().as_str())
        .uri(path)
        .header("content-type", content_type)
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = service.clone().call(request).await.unwrap();
    let code = response.status().as_u16();
    // Answers that go on for ever are told from refusals by their head.
    if code != 403 {
        return (code, String::new());
    }
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    (code, status["message"].as_str().unwrap_or_default().to_owned())
}

/// All that discovery names: what it is called, and its requests.
pub async fn discovered(api: &Api) -> Vec<(String, Vec<Trial>)> {
    let groups = api.get("/apis").await.ok();
    let mut roots = vec!["/api/v1".to_owned()];
    for group in groups["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            roots.push(format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
        }
    }
    let mut all = Vec::new();
    for root in roots {
        // Of a group that somebody else serves only the root is known.
        let list = api.get(&root).await;
        if list.code != 200 {
            continue;
        }
        for resource in list.body["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            let namespaced = resource["namespaced"].as_bool().unwrap();
            for verb in resource["verbs"].as_array().unwrap() {
                let verb = verb.as_str().unwrap();
                all.push((format!("{verb} {root}/{name}"), requests(&root, name, namespaced, verb)));
            }
        }
    }
    all
}

/// The requests of a verb: some have several.
fn requests(root: &str, resource: &str, namespaced: bool, verb: &str) -> Vec<Trial> {
    let (plural, subresource) = match resource.split_once('/') {
        Some((plural, subresource)) => (plural, format!("/{subresource}")),
        None => (resource, String::new()),
    };
    let namespace = if namespaced { "/namespaces/default" } else { "" };
    let many = format!("{root}{namespace}/{plural}");
    let everywhere = format!("{root}/{plural}");
    let one = format!("{many}/nothing{subresource}");
    let slow = "timeoutSeconds=1";
    let paths = match verb {
        "list" => vec![("get", many), ("get", everywhere)],
        "watch" => vec![
            ("get", format!("{many}?watch=true&{slow}")),
            ("get", format!("{everywhere}?watch=true&{slow}")),
            ("get", format!("{root}/watch{namespace}/{plural}?{slow}")),
            ("get", format!("{root}/watch{namespace}/{plural}/nothing?{slow}")),
        ],
        "create" if subresource.is_empty() => vec![("post", many)],
        "create" => vec![("post", one)],
        "get" => vec![("get", one.clone()), ("head", one)],
        "update" => vec![("put", one)],
        "patch" => vec![("patch", one)],
        "delete" => vec![("delete", one)],
        "deletecollection" => vec![("delete", many)],
        _ => Vec::new(),
    };
    paths.into_iter().map(|(method, path)| trial(method, &path)).collect()
}

/// All operations of the OpenAPI documents.
async fn documented(api: &Api) -> Vec<(String, Vec<Trial>)> {
    let root = api.get("/openapi/v3").await.ok();
    let mut all = Vec::new();
    for document in root["paths"].as_object().unwrap().values() {
        let document = api.get(document["serverRelativeURL"].as_str().unwrap()).await;
        if document.code != 200 {
            continue;
        }
        for (path, operations) in document.body["paths"].as_object().unwrap() {
            let mut filled = path.replace("{namespace}", "default");
            for (parameter, value) in [("{name}", "nothing"), ("{path}", "some/where"), ("{logpath}", "x.log")] {
                filled = filled.replace(parameter, value);
            }
            for method in operations
                .as_object()
                .unwrap()
                .keys()
                .filter(|key| *key != "parameters")
            {
                let known = METHODS.contains(&method.as_str()) && !filled.contains('{');
                let trials = known.then(|| trial(method, &filled));
                all.push((format!("{method} {path}"), trials.into_iter().collect()));
            }
        }
    }
    all
}

/// A connection of somebody who shows no certificate.
async fn anonymous(api: &Api) -> http1::SendRequest<Full<Bytes>> {
    let config = tls::client_config(api.server.pki.ca(), None, &["http/1.1"]).unwrap();
    let stream = TcpStream::connect(api.server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(api.server.address.ip().into());
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
        .unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let tasks = api.server.tasks.clone();
    tasks.spawn_until_drain("anonymous", sampan_tasks::OnExit::Expected, async move {
        let _ended = connection.await;
    });
    sender
}

/// Puts the rule in the role, in the index alone: thousands of writes to the disk would prove nothing more.
fn allow(api: &Api, rule: &Value) {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "exactly"}, "rules": [rule]});
    let rbac = &api.server.plane.authorizer().rbac;
    rbac.apply(sampan_auth::Kind::ClusterRole, &role);
}

#[tokio::test]
async fn every_endpoint_and_verb_is_authorized() {
    let api = Api::start().await;
    boats::define(&api, boats::definition(vec![boats::version("v1", boats::schema())])).await;
    let remote = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.elsewhere.example"}, "spec": {"group": "elsewhere.example", "version": "v1",
            "groupPriorityMinimum": 1, "versionPriority": 1, "insecureSkipTLSVerify": true,
            "service": {"namespace": "default", "name": "elsewhere"}}});
    api.post("/apis/apiregistration.k8s.io/v1/apiservices", remote)
        .await
        .ok();
    // In no group that any role is bound to.
    let nobody = |name: &str| {
        api.server.plane.connect(sampan_auth::UserInfo {
            name: name.into(),
            groups: vec!["strangers".into()],
            ..Default::default()
        })
    };
    // The neighbour has every right that is tried, in another namespace.
    let (without, with, neighbour) = (nobody("without"), nobody("with"), nobody("neighbour"));
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "exactly"}, "rules": []});
    api.post(&format!("{rbac}/clusterroles"), role).await.ok();
    for (kind, path, user) in [
        ("ClusterRoleBinding", "clusterrolebindings", "with"),
        ("RoleBinding", "namespaces/kube-system/rolebindings", "neighbour"),
    ] {
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": "exactly"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "exactly"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]});
        api.post(&format!("{rbac}/{path}"), binding).await.ok();
    }

    // What there is, and what of it cannot be tried.
    let mut untested = Vec::new();
    let mut trials: BTreeMap<Trial, String> = BTreeMap::new();
    let (discovered, documented) = (discovered(&api).await, documented(&api).await);
    println!(
        "{} verbs in discovery, {} operations in OpenAPI",
        discovered.len(),
        documented.len()
    );
    assert!(discovered.len() > 500 && documented.len() > 600);
    for (what, requests) in discovered.into_iter().chain(documented) {
        if requests.is_empty() {
            untested.push(what.clone());
        }
        trials.extend(requests.into_iter().map(|request| (request, what.clone())));
    }
    let listed = api.get("/").await.ok();
    let listed = listed["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|path| path.as_str().unwrap());
    for path in listed.chain(PATHS) {
        trials.extend(METHODS.map(|method| (trial(method, path), format!("{method} {path}"))));
    }
    for path in [
        "/apis/elsewhere.example/v1/things",
        "/apis/no.such.group/v1/things",
        "/api/v1/things",
    ] {
        for method in METHODS {
            let path = if method == "put" || method == "patch" {
                format!("{path}/x")
            } else {
                path.to_owned()
            };
            trials.insert(trial(method, &path), format!("{method} {path}"));
        }
    }

    let mut stranger = anonymous(&api).await;
    let (mut refused, mut allowed, mut closed) = (0, 0, 0);
    for (trial, what) in &trials {
        let shown = format!("{what}: {} {}", trial.method, trial.path);
        let (right, near) = trial.rules();
        // A HEAD is refused without words.
        let told = |user: &str, message: &str, whole: bool| {
            if trial.method != "head" {
                let expected = trial.refusal(user);
                let same = if whole {
                    message == expected
                } else {
                    message.contains(&format!("User {user:?} cannot "))
                };
                assert!(same, "{shown}:\n{message}\n{expected}");
            }
        };
        let (code, message) = ask(&without, trial).await;
        assert_eq!(code, 403, "{shown} needs no right");
        told("without", &message, true);
        allow(&api, &right);
        let (code, message) = ask(&neighbour, trial).await;
        assert_eq!(code, 403, "{shown} by a right in another namespace");
        told("neighbour", &message, true);
        let (code, message) = ask(&with, trial).await;
        // Admission may refuse what authorization allowed, and special rights come on top.
        let by_authorization = code == 403 && message.contains("User \"with\" cannot ");
        assert!(!by_authorization && code != 401, "{shown}: {code} {message}");
        allowed += 1;
        refused += 2;
        for (how, rule) in near {
            allow(&api, &rule);
            let (code, message) = ask(&with, trial).await;
            assert_eq!(code, 403, "{shown} by {how}");
            told("with", &message, false);
            refused += 1;
        }
        // Nobody at all.
        let open = OPEN
            .iter()
            .any(|open| trial.path == *open || trial.path == format!("{open}/"));
        let request = Request::builder()
            .method(trial.method.to_uppercase().as_str())
            .uri(&trial.path)
            .header("host", "x")
            .body(Full::default());
        stranger.ready().await.unwrap();
        let response = stranger.send_request(request.unwrap()).await.unwrap();
        let code = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text);
        if open {
            assert!([200, 403, 405].contains(&code), "{shown}: {code} {text}");
        } else {
            assert!(matches!(code, 401 | 403), "{shown} is open to everybody: {code} {text}");
            assert!(!text.contains("nothing"), "{shown}: {text}");
            closed += 1;
        }
    }
    println!(
        "{} requests: {refused} times refused for want of exactly the right, {allowed} times let through with it, {closed} closed to strangers",
        trials.len()
    );
    assert_eq!(
        untested,
        Vec::<String>::new(),
        "endpoints without a test of their authorization"
    );
}
