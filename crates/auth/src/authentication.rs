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

mod headers;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use rustls_pki_types::CertificateDer;
use sampan_pki::Subject;
use sampan_pki::tls::ClientVerifier;
use sampan_pki::token::{Claims, KubernetesClaims, LegacyClaims, TokenError, TokenKeys, Verified};
use sha2::{Digest, Sha256};

use crate::front_proxy::FrontProxy;
use crate::token_file;
use crate::user::{self, UserInfo};
pub use headers::{bearer_token, remove_credentials};

const LEEWAY_SECONDS: i64 = 60;
/// Marks a Secret whose token nobody used for long.
pub const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Says of a Secret when its token was used last, to the day.
pub const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Tokens whose verification is remembered.
const CACHE_SIZE: usize = 4096;

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
