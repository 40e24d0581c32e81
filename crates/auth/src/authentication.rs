//! Turning certificates and headers into users.
//!
//! Order as upstream: what the front proxy says, the connection's client certificate, then a bearer token, then the
//! anonymous user. Of tokens: those of the static file, service accounts', then the other [`TokenSource`]s in their
//! order (bootstrap tokens, outside issuers, a webhook). A bad credential beside a good one is overlooked; a bad one
//! alone is refused.
//!
//! A service-account token is believed when its signature, times and audience are right *and* the objects it is
//! bound to still exist. The first part is remembered (bounded, until the token ends), the second is looked up
//! every time, in memory: deleting a Pod ends its tokens at once. Upstream remembers the whole answer for ten seconds.
//!
//! Deliberate difference: the anonymous user exists only for a few paths unless configured otherwise; elsewhere a
//! request without credentials is 401. Upstream lets it through to RBAC everywhere by default.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};
use rustls_pki_types::CertificateDer;
use sampan_pki::Subject;
use sampan_pki::tls::ClientVerifier;
use sampan_pki::token::{Claims, KubernetesClaims, LegacyClaims, TokenError, TokenKeys, Verified};
use sha2::{Digest, Sha256};

use crate::front_proxy::FrontProxy;
use crate::token_file;
use crate::user::{self, UserInfo};

const LEEWAY_SECONDS: i64 = 60;
/// Marks a Secret whose token nobody used for long.
pub const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Says of a Secret when its token was used last, to the day.
pub const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Tokens whose verification is remembered.
const CACHE_SIZE: usize = 4096;
/// The WebSocket subprotocol that carries a token, since browsers cannot set headers.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// What a token can be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LookupKind {
    ServiceAccount,
    Pod,
    Secret,
    Node,
}

/// An object that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub uid: String,
    /// Its `deletionTimestamp`, in seconds since 1970.
    pub deleted_at: Option<i64>,
    /// Of a Secret: its `data.token`, decoded.
    pub token: Option<Vec<u8>>,
    /// Of a Secret: since when its token is not to be used any more, by its label.
    pub invalid_since: Option<String>,
}

/// Finds the objects tokens are bound to, in the API server's cache: quick, without waiting.
pub trait ObjectLookup: Send + Sync {
    /// `namespace` is empty for a Node.
    fn find(&self, kind: LookupKind, namespace: &str, name: &str) -> Option<Found>;
    /// The token of a Secret was shown and is its own: whoever keeps track of that may do so.
    fn used(&self, _namespace: &str, _secret: &str) {}
}

/// Whom another source of tokens knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    pub user: Arc<UserInfo>,
    /// Whom the token is for; `None`: it does not say, so for the API server.
    pub audiences: Option<Vec<String>>,
}

/// The answer of a [`TokenSource`], when it comes.
pub type Asked<'a> = Pin<Box<dyn Future<Output = Result<Option<Sourced>, AuthenticationError>> + Send + 'a>>;

/// Tokens that others made. May wait for them.
pub trait TokenSource: Send + Sync {
    /// `Ok(None)`: not a token of this source; the next one is asked. `audiences` is never empty.
    fn find<'a>(&'a self, token: &'a str, audiences: &'a [String]) -> Asked<'a>;
}

/// What a connection says of the client.
#[derive(Clone, Debug)]
pub struct Standing {
    /// By its certificate.
    pub user: Result<Option<Arc<UserInfo>>, AuthenticationError>,
    /// Whether it is the front proxy, whose requests say on whose behalf they are.
    pub is_front_proxy: bool,
    /// Until when that holds, unless others are believed: seconds since 1970.
    until: i64,
    /// Of the verifiers of clients and of the front proxy.
    versions: (u64, u64),
}

impl Standing {
    /// Of a user who is known for good.
    pub fn of(user: Result<Option<Arc<UserInfo>>, AuthenticationError>) -> Self {
        Standing {
            user,
            is_front_proxy: false,
            until: i64::MAX,
            versions: (0, 0),
        }
    }
}

/// A connection's client. Its certificates are looked at when it is made, and again when they have expired or
/// others are believed than before: a connection may outlive both.
#[derive(Debug)]
pub struct Connection {
    /// The leaf first.
    chain: Vec<CertificateDer<'static>>,
    standing: RwLock<Arc<Standing>>,
}

impl From<Standing> for Connection {
    /// One without certificates.
    fn from(standing: Standing) -> Self {
        Connection {
            chain: Vec::new(),
            standing: RwLock::new(Arc::new(standing)),
        }
    }
}

/// Why there is no user. The client learns only `Unauthorized`; the log gets the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    #[error("no credentials were sent and this path needs them")]
    NoCredentials,
    #[error("x509: {0}")]
    Certificate(String),
    #[error("[invalid bearer token, {0}]")]
    Token(#[from] TokenError),
    #[error("[invalid bearer token, {0}]")]
    Bound(String),
    /// Another source knows the token, and will not have it.
    #[error("{0}")]
    Source(String),
    /// Nobody knows the token.
    #[error("invalid bearer token")]
    Unknown,
}

/// A user known by a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    pub user: Arc<UserInfo>,
    /// Those of the token that were asked for.
    pub audiences: Vec<String>,
}

/// Where requests without credentials are let through to authorization, as `system:anonymous`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anonymous {
    Never,
    /// These paths, and those below the ones that end in `/`.
    Paths(Vec<String>),
    /// These paths and no others.
    Exactly(Vec<String>),
    Everywhere,
}

impl Default for Anonymous {
    /// Health and version.
    fn default() -> Self {
        let paths = [
            "/healthz",
            "/healthz/",
            "/livez",
            "/livez/",
            "/readyz",
            "/readyz/",
            "/version",
            "/version/",
        ];
        Anonymous::Paths(paths.map(Into::into).into())
    }
}

impl Anonymous {
    pub fn allows(&self, path: &str) -> bool {
        match self {
            Anonymous::Never => false,
            Anonymous::Everywhere => true,
            Anonymous::Exactly(paths) => paths.iter().any(|own| own == path),
            Anonymous::Paths(paths) => paths
                .iter()
                .any(|own| own == path || (own.ends_with('/') && path.starts_with(own.as_str()))),
        }
    }
}

/// A token that verified once.
struct Remembered {
    verified: Arc<Verified>,
    user: Arc<UserInfo>,
    /// Of the keys it was verified by.
    version: u64,
}

/// Decides who is asking.
pub struct Authenticator {
    certificates: Option<ClientVerifier>,
    tokens: Arc<TokenKeys>,
    objects: Arc<dyn ObjectLookup>,
    anonymous: RwLock<Arc<Anonymous>>,
    front_proxy: Option<FrontProxy>,
    others: Vec<Arc<dyn TokenSource>>,
    /// By the digest of the token, so that a search by value tells nothing about it.
    fixed: HashMap<[u8; 32], Arc<UserInfo>>,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Believes certificates of `certificates`' authority and tokens of `tokens` whose objects `objects` finds.
    pub fn new(certificates: Option<ClientVerifier>, tokens: Arc<TokenKeys>, objects: Arc<dyn ObjectLookup>) -> Self {
        Authenticator {
            certificates,
            tokens,
            objects,
            anonymous: RwLock::default(),
            front_proxy: None,
            others: Vec::new(),
            fixed: HashMap::new(),
            remembered: Mutex::default(),
        }
    }
    pub fn with_anonymous(self, anonymous: Anonymous) -> Self {
        self.set_anonymous(anonymous);
        self
    }
    /// Where requests without credentials are let through from now on.
    pub fn set_anonymous(&self, anonymous: Anonymous) {
        *self.anonymous.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(anonymous);
    }
    pub fn with_front_proxy(mut self, front_proxy: Option<FrontProxy>) -> Self {
        self.front_proxy = front_proxy;
        self
    }
    /// Adds a source of tokens, to be asked after those that are there.
    pub fn with_source(mut self, source: Arc<dyn TokenSource>) -> Self {
        self.others.push(source);
        self
    }
    /// Adds a token that names a user as long as the process runs.
    pub fn with_fixed_token(mut self, token: &str, user: UserInfo) -> Self {
        self.fixed.insert(digest(token), Arc::new(user));
        self
    }
    /// Adds the tokens of a file; see [`token_file`].
    pub fn with_token_file(mut self, content: &str) -> Result<Self, String> {
        for (token, user) in token_file::parse(content)? {
            self = self.with_fixed_token(&token, user);
        }
        Ok(self)
    }
    pub fn tokens(&self) -> &Arc<TokenKeys> {
        &self.tokens
    }

    /// The user of a connection's client certificates (leaf first), asked once when the connection is made.
    /// `Ok(None)` when there are none.
    pub fn certificate(&self, chain: &[CertificateDer<'_>]) -> Result<Option<Arc<UserInfo>>, AuthenticationError> {
        let (Some(verifier), Some(leaf)) = (&self.certificates, chain.first()) else {
            return Ok(None);
        };
        let subject = verifier.verify(chain).map_err(AuthenticationError::Certificate)?;
        if subject.common_name.is_empty() {
            return Err(AuthenticationError::Certificate(
                "the certificate names no user: its common name is empty".into(),
            ));
        }
        let mut user = UserInfo::new(subject.common_name, subject.organizations);
        user.extra.insert(
            user::CREDENTIAL_ID.into(),
            vec![format!("X509SHA256={}", hex::encode(Sha256::digest(leaf)))],
        );
        Ok(Some(Arc::new(user)))
    }

    /// What is known of a connection by its certificates (leaf first).
    pub fn connection(&self, chain: &[CertificateDer<'_>]) -> Connection {
        Connection {
            standing: RwLock::new(Arc::new(self.judge(chain))),
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
        }
    }

    /// What is known of a connection now.
    pub fn standing(&self, connection: &Connection) -> Arc<Standing> {
        let known = connection
            .standing
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if connection.chain.is_empty() || (known.versions == self.versions() && unix_now() <= known.until) {
            return known;
        }
        let judged = Arc::new(self.judge(&connection.chain));
        *connection.standing.write().unwrap_or_else(PoisonError::into_inner) = judged.clone();
        judged
    }

    fn judge(&self, chain: &[CertificateDer<'_>]) -> Standing {
        // Before anything is verified: what changes meanwhile is found at the next request.
        let versions = self.versions();
        let user = self.certificate(chain);
        let is_front_proxy = self.front_proxy.as_ref().is_some_and(|proxy| proxy.is(chain));
        let good = is_front_proxy || matches!(user, Ok(Some(_)));
        Standing {
            until: if good {
                Subject::expiry(chain).unwrap_or(0)
            } else {
                i64::MAX
            },
            user,
            is_front_proxy,
            versions,
        }
    }

    fn versions(&self) -> (u64, u64) {
        let of = |verifier: Option<&ClientVerifier>| verifier.map_or(0, ClientVerifier::version);
        let proxy = self.front_proxy.as_ref().map(|proxy| &proxy.verifier);
        (of(self.certificates.as_ref()), of(proxy))
    }

    /// The user of one request: by the front proxy, its connection, its token, else nobody.
    pub async fn request(
        &self,
        connection: &Connection,
        headers: &HeaderMap,
        path: &str,
    ) -> Result<Arc<UserInfo>, AuthenticationError> {
        let connection = self.standing(connection);
        if connection.is_front_proxy
            && let Some(user) = self.front_proxy.as_ref().and_then(|proxy| proxy.user(headers))
        {
            return Ok(user);
        }
        if let Ok(Some(user)) = &connection.user {
            return Ok(user.clone());
        }
        if let Some(token) = bearer_token(headers) {
            return self.token(&token, &[]).await.map(|authenticated| authenticated.user);
        }
        let anonymous = || {
            self.anonymous
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .allows(path)
        };
        match &connection.user {
            // The front proxy's certificate is of another authority; without a name it speaks for nobody.
            Err(_) if connection.is_front_proxy && anonymous() => Ok(Arc::new(UserInfo::anonymous())),
            Err(error) => Err(error.clone()),
            Ok(_) if anonymous() => Ok(Arc::new(UserInfo::anonymous())),
            Ok(_) => Err(AuthenticationError::NoCredentials),
        }
    }

    /// Takes out of a request what proved who it is from, and what claims to.
    pub fn remove_credentials(&self, headers: &mut HeaderMap) {
        remove_credentials(headers);
        if let Some(proxy) = &self.front_proxy {
            proxy.headers.remove(headers);
        }
    }

    /// The user of a token that is meant for one of `audiences` (empty: this API server). TokenReview asks the same.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Result<Authenticated, AuthenticationError> {
        let mut first = None;
        match self.local_token(token, audiences) {
            Ok(known) => return Ok(known),
            Err(AuthenticationError::Unknown) => {}
            Err(error) => first = Some(error),
        }
        let wanted = if audiences.is_empty() {
            self.tokens.audiences()
        } else {
            audiences
        };
        for source in &self.others {
            match source.find(token, wanted).await {
                Ok(Some(found)) => {
                    let own = found.audiences.as_deref().unwrap_or(self.tokens.audiences());
                    let both: Vec<String> = wanted.iter().filter(|one| own.contains(one)).cloned().collect();
                    if !both.is_empty() {
                        return Ok(Authenticated {
                            user: found.user,
                            audiences: both,
                        });
                    }
                }
                Ok(None) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(AuthenticationError::Unknown))
    }

    /// What is known without asking others.
    fn local_token(&self, token: &str, audiences: &[String]) -> Result<Authenticated, AuthenticationError> {
        let key = digest(token);
        if let Some(user) = self.fixed.get(&key) {
            let own = self.tokens.audiences();
            let meant = |one: &&String| audiences.is_empty() || audiences.contains(one);
            let both: Vec<String> = own.iter().filter(meant).cloned().collect();
            if !both.is_empty() {
                return Ok(Authenticated {
                    user: user.clone(),
                    audiences: both,
                });
            }
        }
        let now = unix_now();
        let remembered = if audiences.is_empty() {
            self.remembered(&key, now)
        } else {
            None
        };
        let (verified, user) = match remembered {
            Some(known) => known,
            None => {
                let version = self.tokens.version();
                let verified = match self.tokens.verify(token, audiences) {
                    Err(TokenError::NotOurs) => return Err(AuthenticationError::Unknown),
                    verified => Arc::new(verified?),
                };
                let user = Arc::new(user_of(&verified));
                if audiences.is_empty() {
                    let (verified, user) = (verified.clone(), user.clone());
                    self.remember(
                        key,
                        Remembered {
                            verified,
                            user,
                            version,
                        },
                        now,
                    );
                }
                (verified, user)
            }
        };
        self.still_bound(token, &verified, now)
            .map_err(AuthenticationError::Bound)?;
        Ok(Authenticated {
            user,
            audiences: verified.audiences.clone(),
        })
    }

    fn remembered(&self, key: &[u8; 32], now: i64) -> Option<(Arc<Verified>, Arc<UserInfo>)> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let known = remembered.get(key)?;
        // Past its end it is verified again, which says how it failed.
        // So it is where the keys have changed.
        let current = known.version == self.tokens.version();
        (current && !ended(&known.verified, now)).then(|| (known.verified.clone(), known.user.clone()))
    }

    fn remember(&self, key: [u8; 32], known: Remembered, now: i64) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= CACHE_SIZE {
            remembered.retain(|_, known| !ended(&known.verified, now));
            if remembered.len() >= CACHE_SIZE {
                // Only as many live tokens as this are in use at once in a very large cluster: begin again.
                remembered.clear();
            }
        }
        remembered.insert(key, known);
    }

    /// Whether what the token is bound to still exists.
    fn still_bound(&self, token: &str, verified: &Verified, now: i64) -> Result<(), String> {
        match &verified.claims {
            Claims::Bound(claims) => self.bound(claims, now),
            Claims::Legacy(claims) => self.legacy(token, claims),
        }
    }

    fn bound(&self, claims: &KubernetesClaims, now: i64) -> Result<(), String> {
        let (namespace, account) = (&claims.namespace, &claims.serviceaccount);
        // What is being deleted stays valid for as long as clocks may differ.
        let gone = |found: &Found| found.deleted_at.is_some_and(|at| at < now - LEEWAY_SECONDS);
        let found = self
            .objects
            .find(LookupKind::ServiceAccount, namespace, &account.name)
            .ok_or_else(|| format!("serviceaccounts {:?} not found", account.name))?;
        if found.uid != account.uid {
            return Err(format!(
                "service account UID ({}) does not match claim ({})",
                found.uid, account.uid
            ));
        }
        if gone(&found) {
            return Err(format!("service account {namespace}/{} has been deleted", account.name));
        }
        // A Pod's token names its node for information only: the node may go before the Pod.
        let node = claims.node.as_ref().filter(|_| claims.pod.is_none());
        for (kind, namespace, bound, word) in [
            (LookupKind::Secret, namespace.as_str(), claims.secret.as_ref(), "secret"),
            (LookupKind::Pod, namespace.as_str(), claims.pod.as_ref(), "pod"),
            (LookupKind::Node, "", node, "node"),
        ] {
            let Some(bound) = bound else { continue };
            const INVALIDATED: &str = "service account token has been invalidated";
            let found = self.objects.find(kind, namespace, &bound.name).ok_or(INVALIDATED)?;
            if found.uid != bound.uid {
                return Err(format!(
                    "{word} UID ({}) does not match service account {word} ref claim ({})",
                    found.uid, bound.uid
                ));
            }
            if gone(&found) {
                return Err(INVALIDATED.into());
            }
        }
        Ok(())
    }

    fn legacy(&self, token: &str, claims: &LegacyClaims) -> Result<(), String> {
        let (namespace, account) = (&claims.namespace, &claims.service_account);
        let secret = self
            .objects
            .find(LookupKind::Secret, namespace, &claims.secret)
            .filter(|secret| secret.deleted_at.is_none())
            .ok_or("Token has been invalidated")?;
        // Compared as digests: the time taken says nothing about the content.
        let stored = secret.token.as_deref().map(Sha256::digest);
        if stored != Some(Sha256::digest(token)) {
            return Err("Token does not match server's copy".into());
        }
        let found = self
            .objects
            .find(LookupKind::ServiceAccount, namespace, &account.name)
            .ok_or_else(|| format!("serviceaccounts {:?} not found", account.name))?;
        if found.deleted_at.is_some() {
            return Err(format!("ServiceAccount {namespace}/{} has been deleted", account.name));
        }
        if found.uid != account.uid {
            return Err(format!(
                "ServiceAccount UID ({}) does not match claim ({})",
                found.uid, account.uid
            ));
        }
        self.objects.used(namespace, &claims.secret);
        if secret.invalid_since.is_some() {
            let (secret, account) = (&claims.secret, &account.name);
            return Err(format!(
                "the token in secret {namespace}/{secret} for service account {namespace}/{account} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            ));
        }
        Ok(())
    }
}

fn ended(verified: &Verified, now: i64) -> bool {
    verified.expires.is_some_and(|end| now - LEEWAY_SECONDS > end)
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn user_of(verified: &Verified) -> UserInfo {
    match &verified.claims {
        Claims::Legacy(claims) => UserInfo::service_account(
            &claims.namespace,
            &claims.service_account.name,
            &claims.service_account.uid,
        ),
        Claims::Bound(claims) => {
            let mut user = UserInfo::service_account(
                &claims.namespace,
                &claims.serviceaccount.name,
                &claims.serviceaccount.uid,
            );
            let mut extra = |key: &str, value: String| {
                user.extra.insert(key.into(), vec![value]);
            };
            if !verified.id.is_empty() {
                extra(user::CREDENTIAL_ID, format!("JTI={}", verified.id));
            }
            if let Some(pod) = &claims.pod {
                extra("authentication.kubernetes.io/pod-name", pod.name.clone());
                extra("authentication.kubernetes.io/pod-uid", pod.uid.clone());
            }
            if let Some(node) = &claims.node {
                extra("authentication.kubernetes.io/node-name", node.name.clone());
                extra("authentication.kubernetes.io/node-uid", node.uid.clone());
            }
            user
        }
    }
}

/// The token of `Authorization: Bearer …`, or of a WebSocket subprotocol.
pub fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let from_header = |value: &HeaderValue| {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
    };
    headers
        .get(header::AUTHORIZATION)
        .and_then(from_header)
        .or_else(|| websocket_token(headers))
}

fn websocket_token(headers: &HeaderMap) -> Option<String> {
    // Only an upgrade may carry one, and exactly one.
    let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return None;
    }
    let mut tokens = protocols(headers).filter_map(|protocol| protocol.strip_prefix(WEBSOCKET_BEARER));
    let token = tokens.next()?;
    if tokens.next().is_some() {
        return None;
    }
    String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
}

/// Takes credentials out of the headers, so that no one further on (a node, a log) sees them.
pub fn remove_credentials(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    if protocols(headers).any(|protocol| protocol.starts_with(WEBSOCKET_BEARER)) {
        let rest: Vec<_> = protocols(headers)
            .filter(|protocol| !protocol.starts_with(WEBSOCKET_BEARER))
            .collect();
        let rest = HeaderValue::from_str(&rest.join(", ")).ok();
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, rest);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
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
        let ask = |chain: &[CertificateDer<'_>]| {
            now(authenticator.request(&authenticator.connection(chain), &headers, "/api"))
        };
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
}
