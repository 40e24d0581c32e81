//! Who asks, and whether they may: the API server decides both.
//!
//! A client certificate is believed if it comes from the authority that the API server publishes for this; a token is
//! shown to the API server (TokenReview). Whether the path may be read it is asked as well (SubjectAccessReview). Answers
//! are remembered for a short while, and a bounded number of them.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use rustls_pki_types::CertificateDer;
use sampan_pki::tls::{self, ClientVerifier};
use sampan_tasks::{OnExit, Tasks};

/// As long as upstream remembers them by default.
const LIFE: Duration = Duration::from_secs(10);
const REMEMBERED: usize = 1024;
const LONGEST_TOKEN: usize = 16 * 1024;

/// Anybody may ask whether it is well.
const OPEN: [&str; 3] = ["/healthz", "/livez", "/readyz"];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct User {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl User {
    fn named(name: &str, groups: impl IntoIterator<Item = String>) -> Self {
        User {
            name: name.to_owned(),
            uid: String::new(),
            groups: groups.into_iter().collect(),
            extra: BTreeMap::new(),
        }
    }
}

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub String);

pub struct Access {
    client: kube::Client,
    verifier: ClientVerifier,
    tokens: Memory<String, Option<User>>,
    decisions: Memory<(User, &'static str, String), bool>,
}

impl Access {
    pub fn new(client: kube::Client, verifier: ClientVerifier) -> Self {
        Access {
            client,
            verifier,
            tokens: Memory::default(),
            decisions: Memory::default(),
        }
    }

    /// Lets a request through, or says why not. `chain` is the connection's client certificate.
    pub async fn check<B>(&self, request: &Request<B>, chain: &[CertificateDer<'_>]) -> Result<(), Refusal> {
        let path = request.uri().path();
        let open = |open: &str| {
            path.strip_prefix(open)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if OPEN.into_iter().any(open) {
            return Ok(());
        }
        let user = self.user(request, chain).await?;
        if user.groups.iter().any(|group| group == "system:masters") {
            return Ok(());
        }
        let verb = verb(request.method());
        if self.decide(&user, verb, path).await? {
            return Ok(());
        }
        let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
        Err(Refusal(StatusCode::FORBIDDEN, message))
    }

    async fn user<B>(&self, request: &Request<B>, chain: &[CertificateDer<'_>]) -> Result<User, Refusal> {
        let unauthorized = || Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into());
        let authenticated = || "system:authenticated".to_owned();
        if !chain.is_empty()
            && let Ok(subject) = self.verifier.verify(chain)
        {
            let groups = subject.organizations.into_iter().chain([authenticated()]);
            return Ok(User::named(&subject.common_name, groups));
        }
        match bearer(request) {
            Some(token) => self.by_token(token).await?.ok_or_else(unauthorized),
            None if request.headers().contains_key(header::AUTHORIZATION) => Err(unauthorized()),
            None => Ok(User::named("system:anonymous", ["system:unauthenticated".to_owned()])),
        }
    }

    async fn by_token(&self, token: &str) -> Result<Option<User>, Refusal> {
        if let Some(known) = self.tokens.get(&token.to_owned()) {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|error| {
            tracing::warn!(%error, "a token could not be reviewed");
            Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into())
        })?;
        let user = answer
            .status
            .filter(|status| status.authenticated == Some(true))
            .and_then(|status| status.user)
            .map(|info| User {
                name: info.username.unwrap_or_default(),
                uid: info.uid.unwrap_or_default(),
                groups: info.groups.unwrap_or_default(),
                extra: info.extra.unwrap_or_default(),
            });
        self.tokens.put(token.to_owned(), user.clone());
        Ok(user)
    }

    async fn decide(&self, user: &User, verb: &'static str, path: &str) -> Result<bool, Refusal> {
        let key = (user.clone(), verb, path.to_owned());
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(path.to_owned()),
                    verb: Some(verb.to_owned()),
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|error| {
            tracing::warn!(%error, "the API server did not say whether a request may be answered");
            Refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("Internal Server Error: {path:?}: {error}"),
            )
        })?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        self.decisions.put(key, allowed);
        Ok(allowed)
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::GET => "get",
        // No verb, which only a rule for all verbs allows.
        _ => "",
    }
}

fn bearer<B>(request: &Request<B>) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= LONGEST_TOKEN).then_some(token)
}

/// Learns from the API server whose client certificates are to be believed.
pub fn follow_authority(client: kube::Client, verifier: ClientVerifier, tasks: &Tasks) {
    const PAUSE: Duration = Duration::from_secs(5);
    tasks.spawn_until_drain("client authority", OnExit::Expected, async move {
        let api: Api<ConfigMap> = Api::namespaced(client, "kube-system");
        // Until it has been read once; only where the API server is away does this repeat.
        loop {
            match api.get("extension-apiserver-authentication").await {
                Ok(map) => {
                    let bundle = map.data.as_ref().and_then(|data| data.get("client-ca-file"));
                    let believed = bundle.map(|pem| {
                        let authorities = tls::authorities_of_pem(pem).map_err(|error| error.to_string())?;
                        verifier.believe(&authorities).map_err(|error| error.to_string())
                    });
                    if let Some(Err(error)) = believed {
                        tracing::warn!(
                            error,
                            "the authority of clients that the API server publishes cannot be used"
                        );
                    }
                    return;
                }
                Err(error) if sampan_client::is_forbidden(&error) || sampan_client::is_not_found(&error) => {
                    tracing::warn!(%error, "client certificates are not believed: the API server does not say whose");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "the authority of clients could not be read, will retry");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
}

/// Answers that are remembered for a while.
struct Memory<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Memory(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = memory.get(key)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() >= REMEMBERED {
            memory.clear();
        }
        memory.insert(key, (value, Instant::now() + LIFE));
    }
}
