//! Who asks the node's server, and whether they may.
//!
//! A client proves itself by a certificate of the cluster's authority, or by a token that the API server vouches for
//! (TokenReview). What it may do is the API server's decision as well (SubjectAccessReview on a subresource of `nodes`): a
//! narrow right such as `nodes/pods` is enough, the broad `nodes/proxy` too. Answers are remembered for as long as the kubelet
//! remembers them by default; how many is bounded. Nobody is anonymous.
//! Source: `pkg/kubelet/server/auth.go` and the defaults of KubeletConfiguration upstream.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use rustls_pki_types::CertificateDer;
use sampan_pki::tls::ClientVerifier;

use super::Refusal;

const TOKENS: Duration = Duration::from_secs(120);
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
/// At most this many answers of a kind are remembered.
const REMEMBERED: usize = 1024;
/// Longer tokens are nobody's.
const LONGEST: usize = 16 * 1024;

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// Decides about requests.
pub struct Access {
    client: kube::Client,
    verifier: ClientVerifier,
    node: String,
    /// By the token itself: it is in memory anyway while it is used, and goes with the entry.
    tokens: Memory<String, Option<User>>,
    decisions: Memory<(User, &'static str, &'static str), Result<(), String>>,
}

impl Access {
    pub fn new(client: kube::Client, verifier: ClientVerifier, node: &str) -> Self {
        Access {
            client,
            verifier,
            node: node.to_owned(),
            tokens: Memory::default(),
            decisions: Memory::default(),
        }
    }

    /// Whom the certificates of a connection name, if they are to be believed.
    pub fn by_certificate(&self, chain: &[CertificateDer<'_>]) -> Option<User> {
        if chain.is_empty() {
            return None;
        }
        let subject = match self.verifier.verify(chain) {
            Ok(subject) => subject,
            Err(error) => {
                tracing::debug!(error, "a client's certificate is not to be believed");
                return None;
            }
        };
        let mut groups = subject.organizations;
        groups.push("system:authenticated".into());
        Some(User {
            name: subject.common_name,
            uid: String::new(),
            groups,
            extra: BTreeMap::new(),
        })
    }

    /// Lets a request through or says why not. `certified` is whom the connection's certificate names.
    pub async fn check<B>(&self, request: &Request<B>, certified: Option<&User>) -> Result<(), Refusal> {
        let unauthorized = || Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into());
        let user = match certified {
            Some(user) => user.clone(),
            None => match bearer(request) {
                Some(token) => self.by_token(token).await?.ok_or_else(unauthorized)?,
                None => return Err(unauthorized()),
            },
        };
        if user.groups.iter().any(|group| group == "system:masters") {
            return Ok(());
        }
        let verb = verb(request.method());
        let mut why = String::new();
        let mut last = "";
        for subresource in subresources(request.uri().path()) {
            last = subresource;
            match self.decide(&user, verb, subresource).await? {
                Ok(()) => return Ok(()),
                Err(reason) => why = reason,
            }
        }
        tracing::debug!(
            user = user.name,
            verb,
            subresource = last,
            why,
            "a request to the node was refused"
        );
        Err(Refusal(
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource={last})",
                user.name
            ),
        ))
    }

    async fn by_token(&self, token: &str) -> Result<Option<User>, Refusal> {
        if let Some(known) = self.tokens.get(token) {
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
        let answer = api.create(&PostParams::default(), &review).await;
        // Not remembered: the API server may only be away.
        let answer = answer.map_err(|error| {
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
        self.tokens.put(token.to_owned(), user.clone(), TOKENS);
        Ok(user)
    }

    async fn decide(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<Result<(), String>, Refusal> {
        let key = (user.clone(), verb, subresource);
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let extra = (!user.extra.is_empty()).then(|| user.extra.clone());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(user.groups.clone()),
                extra,
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| Refusal::internal(format!("Authorization error: {error}")))?;
        let status = answer.status.unwrap_or_default();
        let (decision, life) = if status.allowed {
            (Ok(()), ALLOWED)
        } else {
            (Err(status.reason.unwrap_or_default()), DENIED)
        };
        self.decisions.put(key, decision.clone(), life);
        Ok(decision)
    }
}

fn bearer<B>(request: &Request<B>) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= LONGEST).then_some(token)
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::GET => "get",
        // As upstream: no verb, which only a rule for all verbs allows.
        _ => "",
    }
}

/// The subresources of `nodes` of which one is enough for a path.
pub fn subresources(path: &str) -> &'static [&'static str] {
    // The first part as it is routed: however many slashes are in front of it.
    match path.split('/').find(|part| !part.is_empty()).unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        "pods" | "runningPods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

/// Answers that are remembered for a while.
struct Memory<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Memory(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = memory.get(key)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    fn put(&self, key: K, value: V, life: Duration) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if memory.len() >= REMEMBERED {
            memory.retain(|_, (_, until)| now < *until);
        }
        if memory.len() >= REMEMBERED {
            // Everybody is asked about again: rather that than to grow.
            memory.clear();
        }
        memory.insert(key, (value, now + life));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_subresources() {
        for (path, expected) in [
            ("/exec/ns/p/c", &["proxy"][..]),
            ("/containerLogs/ns/p/c", &["proxy"]),
            ("//exec/ns/p/c", &["proxy"]),
            ("/stats/summary", &["stats"]),
            ("/metrics/resource", &["metrics"]),
            ("/pods", &["pods", "proxy"]),
            ("//pods", &["pods", "proxy"]),
            ("/podsx", &["proxy"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/", &["proxy"]),
        ] {
            assert_eq!(subresources(path), expected, "{path}");
        }
    }

    #[test]
    fn bearers() {
        let request = |value: &str| Request::builder().header("authorization", value).body(()).unwrap();
        assert_eq!(bearer(&request("Bearer abc")), Some("abc"));
        assert_eq!(bearer(&request("bearer  abc ")), Some("abc"));
        for bad in [
            "Basic abc",
            "Bearer",
            "Bearer ",
            &format!("Bearer {}", "x".repeat(LONGEST + 1)),
        ] {
            assert_eq!(bearer(&request(bad)), None);
        }
        assert_eq!(bearer(&Request::new(())), None);
    }

    #[test]
    fn memory_is_bounded_and_ends() {
        let memory: Memory<usize, usize> = Memory::default();
        for key in 0..3 * REMEMBERED {
            memory.put(key, key, Duration::from_secs(60));
        }
        assert!(memory.0.lock().unwrap().len() <= REMEMBERED);
        memory.put(1, 1, Duration::ZERO);
        assert_eq!(memory.get(&1), None);
    }
}
