//! Credentials good, bad, old and forged, and who they turn out to be.

use super::headers::WEBSOCKET_BEARER;
use super::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, header};
use sampan_pki::token::{Bound, NewToken, ObjectRef};
use sampan_pki::{LeafSpec, Params, Pki};
use std::time::Duration;

/// What a future that need not wait comes to.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(ready) => ready,
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}

#[derive(Default)]
struct Objects(Mutex<HashMap<(LookupKind, String, String), Found>>);

impl Objects {
    fn put(&self, kind: LookupKind, namespace: &str, name: &str, found: Found) {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.0.lock().unwrap().insert(key, found);
    }
    fn remove(&self, kind: LookupKind, namespace: &str, name: &str) {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.0.lock().unwrap().remove(&key);
    }
}

impl ObjectLookup for Objects {
    fn find(&self, kind: LookupKind, namespace: &str, name: &str) -> Option<Found> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.0.lock().unwrap().get(&key).cloned()
    }
}

fn found(uid: &str) -> Found {
    Found {
        uid: uid.into(),
        ..Found::default()
    }
}

fn setup() -> (Arc<Objects>, Arc<TokenKeys>, Authenticator) {
    let objects = Arc::new(Objects::default());
    objects.put(LookupKind::ServiceAccount, "web", "robot", found("sa-1"));
    objects.put(LookupKind::Pod, "web", "p", found("pod-1"));
    let keys = TokenKeys::ephemeral("https://kubernetes.default.svc.cluster.local").unwrap();
    let authenticator = Authenticator::new(None, keys.clone(), objects.clone());
    (objects, keys, authenticator)
}

fn token(keys: &TokenKeys, bound: Bound, audiences: &[&str]) -> String {
    keys.issue(&NewToken {
        namespace: "web",
        service_account: ObjectRef::new("robot", "sa-1"),
        bound,
        audiences: audiences.iter().map(ToString::to_string).collect(),
        lifetime: Duration::from_secs(600),
        warn_after: None,
    })
    .unwrap()
    .token
}

fn pod_bound() -> Bound {
    Bound::Pod {
        pod: ObjectRef::new("p", "pod-1"),
        node: Some(ObjectRef::new("n", "node-1")),
    }
}

#[test]
fn a_token_lives_no_longer_than_its_pod_or_account() {
    let (objects, keys, authenticator) = setup();
    let token = token(&keys, pod_bound(), &[]);
    let user = now(authenticator.token(&token, &[])).unwrap().user;
    assert_eq!(user.name, "system:serviceaccount:web:robot");
    assert_eq!(user.uid, "sa-1");
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
    assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["node-1"]);
    assert!(user.extra[user::CREDENTIAL_ID][0].starts_with("JTI="));

    let refused = |says: &str| {
        let error = now(authenticator.token(&token, &[])).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let deleting = |ago: i64| Found {
        deleted_at: Some(unix_now() - ago),
        ..found("pod-1")
    };
    objects.put(LookupKind::Pod, "web", "p", deleting(5));
    assert!(now(authenticator.token(&token, &[])).is_ok());
    objects.put(LookupKind::Pod, "web", "p", deleting(120));
    refused("has been invalidated");
    objects.put(LookupKind::Pod, "web", "p", found("pod-2"));
    refused("pod UID (pod-2) does not match service account pod ref claim (pod-1)");
    objects.remove(LookupKind::Pod, "web", "p");
    refused("has been invalidated");
    objects.put(LookupKind::Pod, "web", "p", found("pod-1"));
    assert!(now(authenticator.token(&token, &[])).is_ok());
    objects.put(LookupKind::ServiceAccount, "web", "robot", found("sa-2"));
    refused("service account UID (sa-2) does not match claim (sa-1)");
    objects.remove(LookupKind::ServiceAccount, "web", "robot");
    refused("not found");
}

#[test]
fn node_and_secret_bindings_are_looked_up() {
    let (objects, keys, authenticator) = setup();
    for (bound, kind, namespace) in [
        (Bound::Secret(ObjectRef::new("b", "u")), LookupKind::Secret, "web"),
        (Bound::Node(ObjectRef::new("b", "u")), LookupKind::Node, ""),
    ] {
        let token = token(&keys, bound, &[]);
        assert!(now(authenticator.token(&token, &[])).is_err());
        objects.put(kind, namespace, "b", found("u"));
        assert!(now(authenticator.token(&token, &[])).is_ok());
    }
}

#[test]
fn audiences_decide_who_a_token_is_for() {
    let (_, keys, authenticator) = setup();
    let vault = token(&keys, Bound::default(), &["vault"]);
    assert!(now(authenticator.token(&vault, &[])).is_err());
    let ok = now(authenticator.token(&vault, &["vault".into(), "x".into()])).unwrap();
    assert_eq!(ok.audiences, ["vault"]);
    assert!(now(authenticator.token(&vault, &[])).is_err());
}

#[test]
fn a_legacy_token_is_only_as_good_as_its_secret() {
    let (objects, keys, authenticator) = setup();
    let token = keys
        .issue_legacy(&LegacyClaims {
            namespace: "web".into(),
            service_account: ObjectRef::new("robot", "sa-1"),
            secret: "s".into(),
        })
        .unwrap();
    assert!(now(authenticator.token(&token, &[])).is_err());
    let holding = |content: &str| Found {
        token: Some(content.into()),
        ..found("s")
    };
    objects.put(LookupKind::Secret, "web", "s", holding(&token));
    assert!(now(authenticator.token(&token, &[])).is_ok());
    let marked = Found {
        invalid_since: Some("2026-01-01".into()),
        ..holding(&token)
    };
    objects.put(LookupKind::Secret, "web", "s", marked);
    let error = now(authenticator.token(&token, &[])).unwrap_err().to_string();
    assert!(error.contains("the token in secret web/s for service account web/robot has been marked invalid"));
    objects.put(LookupKind::Secret, "web", "s", holding("another"));
    assert!(now(authenticator.token(&token, &[])).is_err());
}

#[test]
fn certificates_come_first_and_bad_credentials_are_never_anonymous() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::load_or_create(dir.path(), Params::default()).unwrap();
    let (_, keys, authenticator) = setup();
    let authenticator = Authenticator {
        certificates: Some(ClientVerifier::new(pki.ca()).unwrap()),
        ..authenticator
    };
    let user = |common_name: &str| {
        let leaf = pki.issue(&LeafSpec::client(common_name, Some("devs"))).unwrap();
        authenticator.certificate(&leaf.chain())
    };
    let jane = user("jane").unwrap().unwrap();
    assert_eq!(
        (jane.name.as_str(), &*jane.groups),
        ("jane", &["devs".to_owned(), "system:authenticated".into()][..])
    );
    assert!(jane.extra[user::CREDENTIAL_ID][0].starts_with("X509SHA256="));
    assert!(user("").is_err());
    let bad = authenticator.certificate(&pki.serving().chain());
    assert!(bad.is_err());

    let with_token = |token: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("bearer  {token}").parse().unwrap());
        headers
    };
    let good = with_token(&token(&keys, Bound::default(), &[]));
    let none = HeaderMap::new();
    let name = |user: &Result<_, _>, headers: &HeaderMap, path: &str| {
        let connection = Connection::from(Standing::of(user.clone()));
        now(authenticator.request(&connection, headers, path)).map(|user| user.name.clone())
    };
    let robot = Ok("system:serviceaccount:web:robot".to_owned());
    assert_eq!(name(&Ok(Some(jane)), &good, "/api"), Ok("jane".to_owned()));
    assert_eq!(name(&bad, &good, "/api"), robot);
    assert_eq!(name(&Ok(None), &good, "/api"), robot);
    assert!(name(&bad, &none, "/healthz").is_err());
    assert!(name(&Ok(None), &with_token("rubbish"), "/healthz").is_err());
    assert_eq!(name(&Ok(None), &none, "/api"), Err(AuthenticationError::NoCredentials));
    for path in ["/healthz", "/readyz/ping", "/version"] {
        assert_eq!(name(&Ok(None), &none, path), Ok(user::ANONYMOUS.to_owned()), "{path}");
    }
    assert!(name(&Ok(None), &none, "/healthzz").is_err());
}

#[test]
fn a_connection_does_not_outlive_its_certificate_or_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let params = Params {
        leaf_lifetime: std::time::Duration::from_secs(2),
        ..Params::default()
    };
    let pki = Pki::load_or_create(dir.path(), params).unwrap();
    let (_, _, authenticator) = setup();
    let authenticator = Authenticator {
        certificates: Some(pki.verifier()),
        ..authenticator
    };
    let connect = || authenticator.connection(&pki.issue(&LeafSpec::client("jane", None)).unwrap().chain());
    let ask = |connection: &Connection| now(authenticator.request(connection, &HeaderMap::new(), "/api"));
    let short = connect();
    assert_eq!(ask(&short).unwrap().name, "jane");
    std::thread::sleep(std::time::Duration::from_millis(3100));
    assert!(ask(&short).unwrap_err().to_string().contains("expired"));
    let distrusted = connect();
    assert_eq!(ask(&distrusted).unwrap().name, "jane");
    let other = tempfile::tempdir().unwrap();
    let foreign = Pki::load_or_create(other.path(), Params::default()).unwrap();
    pki.verifier().believe(&[foreign.ca()]).unwrap();
    assert!(ask(&distrusted).is_err());
    pki.verifier().believe(&pki.authorities()).unwrap();
    assert_eq!(ask(&connect()).unwrap().name, "jane");
}

#[test]
fn a_remembered_token_ends_with_its_key() {
    let (_, keys, authenticator) = setup();
    let mine = token(&keys, Bound::default(), &[]);
    assert!(now(authenticator.token(&mine, &[])).is_ok() && now(authenticator.token(&mine, &[])).is_ok());
    let next = rcgen_key();
    keys.replace(&next, &[keys.public_key_pem()]).unwrap();
    assert!(now(authenticator.token(&mine, &[])).is_ok());
    keys.replace(&next, &[]).unwrap();
    assert!(now(authenticator.token(&mine, &[])).is_err());
}

fn rcgen_key() -> String {
    let (key, _) = sampan_pki::request::ask(&LeafSpec::client("x", None)).unwrap();
    key
}

#[test]
fn fixed_tokens_come_from_lines() {
    let (_, _, authenticator) = setup();
    let authenticator = authenticator
        .with_token_file("# people\n\nsecret,jane,7,\"devs, ops\"\nother,joe,8\n")
        .unwrap();
    let jane = now(authenticator.token("secret", &[])).unwrap().user;
    assert_eq!(jane.groups, ["devs", "ops", "system:authenticated"]);
    assert_eq!(now(authenticator.token("other", &[])).unwrap().user.uid, "8");
    assert!(now(authenticator.token("secret", &["vault".into()])).is_err());
    let (_, _, authenticator) = setup();
    assert!(
        authenticator
            .with_token_file("just-a-token")
            .err()
            .unwrap()
            .contains("line 1")
    );
}

struct Source(&'static str, Option<Vec<String>>);

impl TokenSource for Source {
    fn find<'a>(&'a self, token: &'a str, audiences: &'a [String]) -> Asked<'a> {
        assert!(!audiences.is_empty());
        let found = (token == self.0).then(|| Sourced {
            user: Arc::new(UserInfo::component("outsider")),
            audiences: self.1.clone(),
        });
        let broken = token == "broken";
        Box::pin(async move {
            if broken {
                return Err(AuthenticationError::Source("out of order".into()));
            }
            Ok(found)
        })
    }
}

#[test]
fn other_sources_come_last_and_say_whom_their_tokens_are_for() {
    let (_, keys, authenticator) = setup();
    let authenticator = authenticator
        .with_source(Arc::new(Source("plain", None)))
        .with_source(Arc::new(Source("vaults", Some(vec!["vault".into()]))));
    let ask = |token: &str, audiences: &[&str]| {
        let audiences: Vec<String> = audiences.iter().map(ToString::to_string).collect();
        now(authenticator.token(token, &audiences)).map(|known| known.audiences)
    };
    assert_eq!(ask("plain", &[]).unwrap(), keys.audiences());
    assert_eq!(ask("plain", &["vault"]), Err(AuthenticationError::Unknown));
    assert_eq!(ask("vaults", &[]), Err(AuthenticationError::Unknown));
    assert_eq!(ask("vaults", &["x", "vault"]).unwrap(), ["vault"]);
    assert_eq!(ask("nobody's", &[]), Err(AuthenticationError::Unknown));
    assert_eq!(
        ask("broken", &[]),
        Err(AuthenticationError::Source("out of order".into()))
    );
}

#[test]
fn only_the_front_proxy_speaks_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::load_or_create(dir.path(), Params::default()).unwrap();
    let (_, _, authenticator) = setup();
    let proxy = |names: &[&str]| FrontProxy {
        verifier: ClientVerifier::of_bundle(pki.front_proxy_ca_pem().as_bytes()).unwrap(),
        names: names.iter().map(ToString::to_string).collect(),
        headers: Default::default(),
    };
    let authenticator = Authenticator {
        certificates: Some(ClientVerifier::new(pki.ca()).unwrap()),
        ..authenticator
    }
    .with_front_proxy(Some(proxy(&["front-proxy-client"])));
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("x-remote-user", "jane"),
        ("x-remote-group", "devs"),
        ("x-remote-group", "ops"),
        ("x-remote-uid", "7"),
        ("x-remote-extra-acme.com%2fkey", "v"),
    ] {
        headers.append(name, value.parse().unwrap());
    }
    let ask =
        |chain: &[CertificateDer<'_>]| now(authenticator.request(&authenticator.connection(chain), &headers, "/api"));
    let jane = ask(&pki.front_proxy_client().chain()).unwrap();
    assert_eq!((jane.name.as_str(), jane.uid.as_str()), ("jane", "7"));
    assert_eq!(jane.groups, ["devs", "ops", "system:authenticated"]);
    assert_eq!(jane.extra["acme.com/key"], ["v"]);
    // Of the wrong authority though of the right name, of the right authority without a certificate of it, nobody.
    let named = pki.issue(&LeafSpec::client("front-proxy-client", None)).unwrap();
    assert_eq!(ask(&named.chain()).unwrap().name, "front-proxy-client");
    assert!(ask(&[]).is_err());
    assert!(!proxy(&["another"]).is(&pki.front_proxy_client().chain()));
    assert!(proxy(&[]).is(&pki.front_proxy_client().chain()));
    authenticator.remove_credentials(&mut headers.clone());
    let mut left = headers.clone();
    authenticator.remove_credentials(&mut left);
    assert!(left.is_empty());
}

#[test]
fn a_websocket_may_carry_its_token_as_a_subprotocol() {
    let mut headers = HeaderMap::new();
    let protocols = format!("v5.channel.k8s.io, {WEBSOCKET_BEARER}{}", URL_SAFE_NO_PAD.encode("tok"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
    assert_eq!(bearer_token(&headers), None);
    headers.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
    assert_eq!(bearer_token(&headers).as_deref(), Some("tok"));
    remove_credentials(&mut headers);
    assert_eq!(headers[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
}

#[test]
fn the_memory_of_tokens_is_bounded() {
    let (_, keys, authenticator) = setup();
    let good = token(&keys, Bound::default(), &[]);
    let verified = Arc::new(keys.verify(&good, &[]).unwrap());
    let user = Arc::new(UserInfo::anonymous());
    for n in 0..CACHE_SIZE + 10 {
        let known = Remembered {
            verified: verified.clone(),
            user: user.clone(),
            version: 0,
        };
        authenticator.remember(digest(&n.to_string()), known, unix_now());
    }
    assert!(authenticator.remembered.lock().unwrap().len() <= CACHE_SIZE);
    assert!(now(authenticator.token(&good, &[])).is_ok());
}
