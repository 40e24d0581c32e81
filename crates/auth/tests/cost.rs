//! What it costs to find out who asks and whether they may, at 1,000 role bindings. The goal, 30 µs a request, is for
//! an optimised build: `cargo test --release -p sampan-auth --test cost -- --nocapture`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sampan_auth::{Attributes, Authenticator, Authorizer, Found, Kind, LookupKind, ObjectLookup, UserInfo};
use sampan_pki::token::{Bound, NewToken, ObjectRef, TokenKeys};
use serde_json::json;

const BINDINGS: usize = 1000;
const GOAL: Duration = Duration::from_micros(30);
/// The best of so many rounds: others use the machine too.
const ROUNDS: usize = 20;
const EACH: u32 = if cfg!(debug_assertions) { 50 } else { 2000 };

struct Objects(Mutex<HashMap<(LookupKind, String, String), Found>>);

impl ObjectLookup for Objects {
    fn find(&self, kind: LookupKind, namespace: &str, name: &str) -> Option<Found> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.0.lock().unwrap().get(&key).cloned()
    }
}

/// What a future that need not wait comes to.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(ready) => ready,
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}

/// The best time of one of many.
fn measured(what: &str, mut once: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..EACH {
            once();
        }
        best = best.min(started.elapsed() / EACH);
    }
    println!("{what}: {best:?} each");
    best
}

/// What every cluster begins with, and 1,000 bindings in each of two namespaces.
fn rights() -> Authorizer {
    let authorizer = Authorizer::new();
    for (kind, object) in sampan_auth::policy::objects() {
        authorizer.rbac.apply(kind, &object);
    }
    for n in 0..BINDINGS {
        let role = json!({"metadata": {"name": format!("r{n}"), "namespace": "web"},
            "rules": [{"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list"]},
                {"apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"], "verbs": ["*"]}]});
        authorizer.rbac.apply(Kind::Role, &role);
        // The account that asks has ten of them, half of them by a group.
        let subject = match n % 200 {
            0 => json!({"kind": "ServiceAccount", "name": "robot", "namespace": "web"}),
            1 => json!({"kind": "Group", "name": "system:serviceaccounts:web"}),
            _ => json!({"kind": "User", "name": format!("u{n}")}),
        };
        let binding = json!({"metadata": {"name": format!("b{n}"), "namespace": "web"},
            "roleRef": {"kind": "Role", "name": format!("r{n}")}, "subjects": [subject]});
        authorizer.rbac.apply(Kind::RoleBinding, &binding);
        // The worst there is: a group that all of them name.
        let binding = json!({"metadata": {"name": format!("all{n}"), "namespace": "crowded"},
            "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "Group", "name": "system:serviceaccounts"}]});
        authorizer.rbac.apply(Kind::RoleBinding, &binding);
    }
    authorizer
}

#[test]
fn authentication_and_authorization_cost_little() {
    let authorizer = rights();
    let found = |uid: &str| Found {
        uid: uid.into(),
        ..Found::default()
    };
    let key = |kind: LookupKind, namespace: &str, name: &str| (kind, namespace.to_owned(), name.to_owned());
    let objects = HashMap::from([
        (key(LookupKind::ServiceAccount, "web", "robot"), found("sa-1")),
        (key(LookupKind::Pod, "web", "p"), found("pod-1")),
        (key(LookupKind::Node, "", "n"), found("node-1")),
    ]);
    let keys = TokenKeys::ephemeral("https://kubernetes.default.svc.cluster.local").unwrap();
    let authenticator = Authenticator::new(None, keys.clone(), Arc::new(Objects(Mutex::new(objects))));
    let issue = || {
        let new = NewToken {
            namespace: "web",
            service_account: ObjectRef::new("robot", "sa-1"),
            bound: Bound::Pod {
                pod: ObjectRef::new("p", "pod-1"),
                node: Some(ObjectRef::new("n", "node-1")),
            },
            audiences: Vec::new(),
            lifetime: Duration::from_secs(600),
            warn_after: None,
        };
        let token = keys.issue(&new).unwrap().token;
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        headers
    };
    let shown = issue();
    let connection = authenticator.connection(&[]);
    let who = |headers: &http::HeaderMap| now(authenticator.request(&connection, headers, "/api/v1/pods")).unwrap();
    let may = |user: &UserInfo, namespace: &str, resource: &str| {
        let asked = Attributes {
            namespace,
            version: "v1",
            ..Attributes::resource(user, "get", "", resource)
        };
        now(authorizer.decide(&asked)).allowed
    };
    let mut slowest = Duration::ZERO;
    for (what, resource, allowed) in [("allowed", "pods", true), ("refused", "secrets", false)] {
        let both = measured(&format!("a token of a Pod, {BINDINGS} bindings, {what}"), || {
            assert_eq!(may(&who(&shown), "web", resource), allowed);
        });
        slowest = slowest.max(both);
    }
    let user = who(&shown);
    measured("authorization alone, allowed", || assert!(may(&user, "web", "pods")));
    measured("authorization alone, refused", || {
        assert!(!may(&user, "web", "secrets"))
    });
    measured("the worst: a group that a thousand bindings name, refused", || {
        assert!(!may(&user, "crowded", "secrets"));
    });
    // A token that was never seen is verified once.
    let fresh: Vec<http::HeaderMap> = (0..200).map(|_| issue()).collect();
    let started = Instant::now();
    for headers in &fresh {
        who(headers);
    }
    println!("a token seen for the first time: {:?} each", started.elapsed() / 200);
    let goal = if cfg!(debug_assertions) { 50 * GOAL } else { GOAL };
    assert!(slowest < goal, "{slowest:?}");
}
