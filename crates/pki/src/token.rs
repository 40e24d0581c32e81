//! Service-account tokens: JSON Web Tokens signed with ES256.
//!
//! The claims are upstream's, name for name: clients and other clusters' tools read them. A signature says that
//! this cluster issued the token; whether the objects it is bound to still exist is for `sampan-auth` to check.
//! Deliberate difference: upstream signs with whatever key it is given; here it is always ECDSA P-256.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, ParsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::PublicKeyData;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::cert::unix_now;
use crate::present::Present;

/// How far the clock of another machine may be off.
const LEEWAY: i64 = 60;
/// Longer ones are not ours; refuse before spending work on them.
const MAX_TOKEN_BYTES: usize = 64 * 1024;
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// Name and identity of an object a token speaks for or is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

impl ObjectRef {
    pub fn new(name: impl Into<String>, uid: impl Into<String>) -> Self {
        ObjectRef {
            name: name.into(),
            uid: uid.into(),
        }
    }
}

/// The object whose end is the token's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    #[default]
    ServiceAccountOnly,
    /// With the node it runs on, once known.
    Pod {
        pod: ObjectRef,
        node: Option<ObjectRef>,
    },
    Secret(ObjectRef),
    Node(ObjectRef),
}

/// What a new token shall say.
#[derive(Clone, Debug)]
pub struct NewToken<'a> {
    pub namespace: &'a str,
    pub service_account: ObjectRef,
    pub bound: Bound,
    /// Empty: the API server itself.
    pub audiences: Vec<String>,
    pub lifetime: Duration,
    /// When its holder ought to have fetched a newer one, if sooner than its end.
    pub warn_after: Option<Duration>,
}

/// A token that was just signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub token: String,
    /// Seconds since 1970.
    pub expires: i64,
    /// The `jti`.
    pub id: String,
    pub audiences: Vec<String>,
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default)]
    pub serviceaccount: ObjectRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// The claims of a token kept in a Secret of type `kubernetes.io/service-account-token`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LegacyClaims {
    pub namespace: String,
    pub service_account: ObjectRef,
    pub secret: String,
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claims {
    Bound(KubernetesClaims),
    Legacy(LegacyClaims),
}

/// A token whose signature, time and audience are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub subject: String,
    pub claims: Claims,
    /// Those of the token that were asked for.
    pub audiences: Vec<String>,
    /// The `jti`; empty for legacy tokens.
    pub id: String,
    /// Seconds since 1970; legacy tokens have no end.
    pub expires: Option<i64>,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of this issuer: another authenticator may know it.
    #[error("not a service account token of this cluster")]
    NotOurs,
    #[error("invalid signature, no keys found")]
    UnknownKey,
    #[error("invalid signature")]
    Signature,
    #[error("malformed service account token: {0}")]
    Malformed(String),
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYetValid,
    #[error("service account token is issued in the future")]
    FromTheFuture,
    #[error("token audiences {token:?} is invalid for the target audiences {wanted:?}")]
    Audience { token: Vec<String>, wanted: Vec<String> },
}

/// A claim that is one string or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Times are whole seconds; other issuers write fractions.
#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum NumericDate {
    Whole(i64),
    Fraction(f64),
}

impl NumericDate {
    fn seconds(self) -> i64 {
        match self {
            NumericDate::Whole(seconds) => seconds,
            #[allow(clippy::cast_possible_truncation)] // `as` saturates
            NumericDate::Fraction(seconds) => seconds as i64,
        }
    }
}

#[derive(Deserialize)]
struct RawClaims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    sub: String,
    aud: Option<OneOrMany>,
    exp: Option<NumericDate>,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
    #[serde(default, rename = "kubernetes.io/serviceaccount/namespace")]
    legacy_namespace: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.name")]
    legacy_name: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.uid")]
    legacy_uid: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/secret.name")]
    legacy_secret: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// Signs tokens and verifies what it signed.
pub struct TokenKeys {
    issuer: String,
    /// Issuers whose tokens are believed besides: this cluster's own former names.
    also: Vec<String>,
    /// What the API server is called in tokens.
    audiences: Vec<String>,
    keys: Present<KeySet>,
    random: SystemRandom,
}

/// What signs, and by what signatures are verified.
struct KeySet {
    pair: EcdsaKeyPair,
    public_pem: String,
    /// That of `pair` first, then those that have signed before or will sign next.
    public: Vec<PublicKey>,
    version: u64,
}

struct PublicKey {
    id: String,
    /// Uncompressed: 4, x, y.
    point: Vec<u8>,
    parsed: ParsedPublicKey,
}

impl PublicKey {
    /// From a key's DER (SubjectPublicKeyInfo) and its point.
    fn new(info: &[u8], point: &[u8]) -> Result<Self, String> {
        Ok(PublicKey {
            id: URL_SAFE_NO_PAD.encode(Sha256::digest(info)),
            parsed: ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .map_err(|error| format!("not an ECDSA P-256 key: {error}"))?,
            point: point.to_vec(),
        })
    }

    /// From the PEM of a public or a private key.
    fn of_pem(pem: &str) -> Result<Self, String> {
        if pem.contains("PRIVATE KEY") {
            return pair(pem).map(|(_, _, public)| public);
        }
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&block.contents).map_err(|error| error.to_string())?;
        PublicKey::new(&block.contents, &info.subject_public_key.data)
    }
}

/// Both halves of a PKCS#8 PEM, and the public one as PEM.
fn pair(pem: &str) -> Result<(EcdsaKeyPair, String, PublicKey), String> {
    let key = rcgen::KeyPair::from_pem(pem).map_err(|error| error.to_string())?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der())
        .map_err(|error| format!("not an ECDSA P-256 key: {error}"))?;
    let public = PublicKey::new(&key.subject_public_key_info(), pair.public_key().as_ref())?;
    Ok((pair, key.public_key_pem(), public))
}

impl KeySet {
    fn new(signing: &str, others: &[String], version: u64) -> Result<Self, String> {
        let (pair, public_pem, first) = pair(signing)?;
        let mut public = vec![first];
        for other in others {
            public.push(PublicKey::of_pem(other)?);
        }
        Ok(KeySet {
            pair,
            public_pem,
            public,
            version,
        })
    }
}

/// Which key a token says it is signed by. Says nothing about whether it is.
pub fn key_id(token: &str) -> Option<String> {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    let header: Header = serde_json::from_slice(&header).ok()?;
    Some(header.kid)
}

/// The public half of a private key, as PEM.
pub fn public_pem(pem: &str) -> Result<String, String> {
    pair(pem).map(|(_, public, _)| public)
}

impl std::fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKeys")
            .field("issuer", &self.issuer)
            .field("key_id", &self.key_id())
            .finish_non_exhaustive()
    }
}

impl TokenKeys {
    /// From a PKCS#8 PEM of an ECDSA P-256 key.
    pub fn from_pem(pem: &str, issuer: &str) -> Result<Self, String> {
        Ok(TokenKeys {
            issuer: issuer.into(),
            also: Vec::new(),
            audiences: vec![issuer.into()],
            keys: Present::new(KeySet::new(pem, &[], 0)?),
            random: SystemRandom::new(),
        })
    }

    /// Signs with `signing` from now on, and believes also what `others` (PEM, public or private) have signed.
    pub fn replace(&self, signing: &str, others: &[String]) -> Result<(), String> {
        self.keys.set(KeySet::new(signing, others, self.version() + 1)?);
        Ok(())
    }

    /// Another number when there are other keys: what was verified before must be verified again.
    pub fn version(&self) -> u64 {
        self.keys.get().version
    }

    /// With a key nobody else has: for tests and throw-away control planes.
    pub fn ephemeral(issuer: &str) -> Result<Arc<Self>, crate::PkiError> {
        let what = "the key of service accounts";
        let key = crate::cert::new_key(what)?;
        Self::from_pem(&key.serialize_pem(), issuer)
            .map(Arc::new)
            .map_err(|reason| crate::PkiError::Issue {
                what: what.into(),
                reason,
            })
    }

    /// Believes tokens of all these issuers, and is meant by all these names; the one who signs is the first.
    pub fn with_issuers(mut self, issuers: Vec<String>) -> Self {
        if let Some((first, also)) = issuers.split_first() {
            self.issuer.clone_from(first);
            self.also = also.to_vec();
            self.audiences.clone_from(&issuers);
        }
        self
    }
    /// What the API server calls itself, where that is not the issuers' names.
    pub fn with_audiences(mut self, audiences: Vec<String>) -> Self {
        if !audiences.is_empty() {
            self.audiences = audiences;
        }
        self
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }
    /// Everybody whose tokens are ours.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.issuer.as_str()).chain(self.also.iter().map(String::as_str))
    }
    /// What the API server calls itself; a token for it names one of these.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }
    /// Of the key that signs.
    pub fn key_id(&self) -> String {
        self.keys
            .get()
            .public
            .first()
            .map(|key| key.id.clone())
            .unwrap_or_default()
    }
    /// What others need to verify the tokens signed now, as PEM.
    pub fn public_key_pem(&self) -> String {
        self.keys.get().public_pem.clone()
    }

    /// Signs a token that ends.
    pub fn issue(&self, new: &NewToken<'_>) -> Result<Issued, TokenError> {
        self.issue_at(new, unix_now())
    }

    fn issue_at(&self, new: &NewToken<'_>, now: i64) -> Result<Issued, TokenError> {
        let after = |duration: Duration| now.saturating_add(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX));
        let (mut pod, mut secret, mut node) = (None, None, None);
        match &new.bound {
            Bound::ServiceAccountOnly => {}
            Bound::Pod { pod: bound, node: on } => {
                pod = Some(bound.clone());
                node = on.clone();
            }
            Bound::Secret(bound) => secret = Some(bound.clone()),
            Bound::Node(bound) => node = Some(bound.clone()),
        }
        let audiences = if new.audiences.is_empty() {
            self.audiences.clone()
        } else {
            new.audiences.clone()
        };
        let expires = after(new.lifetime);
        let id = uuid::Uuid::new_v4().to_string();
        let claims = json!({
            "aud": audiences,
            "exp": expires,
            "iat": now,
            "nbf": now,
            "iss": self.issuer,
            "jti": id,
            "sub": username(new.namespace, &new.service_account.name),
            "kubernetes.io": KubernetesClaims {
                namespace: new.namespace.into(),
                serviceaccount: new.service_account.clone(),
                pod, secret, node,
                warnafter: new.warn_after.map(after),
            },
        });
        Ok(Issued {
            token: self.sign(&claims)?,
            expires,
            id,
            audiences,
        })
    }

    /// Signs a token without an end, for a Secret of type `kubernetes.io/service-account-token`.
    pub fn issue_legacy(&self, claims: &LegacyClaims) -> Result<String, TokenError> {
        self.sign(&json!({
            "iss": LEGACY_ISSUER,
            "sub": username(&claims.namespace, &claims.service_account.name),
            "kubernetes.io/serviceaccount/namespace": claims.namespace,
            "kubernetes.io/serviceaccount/secret.name": claims.secret,
            "kubernetes.io/serviceaccount/service-account.name": claims.service_account.name,
            "kubernetes.io/serviceaccount/service-account.uid": claims.service_account.uid,
        }))
    }

    /// Signs any claims. What they say is the caller's business: tests of outside issuers, which this one is not.
    pub fn sign_claims(&self, claims: &Value) -> Result<String, TokenError> {
        self.sign(claims)
    }

    fn sign(&self, claims: &Value) -> Result<String, TokenError> {
        let keys = self.keys.get();
        let header = json!({"alg": "ES256", "kid": keys.public.first().map(|key| key.id.as_str())});
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature = keys
            .pair
            .sign(&self.random, token.as_bytes())
            .map_err(|_| TokenError::Signature)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }

    /// Checks signature, issuer, times and that one of `audiences` (empty: the API server) is meant.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Result<Verified, TokenError> {
        self.verify_at(token, audiences, unix_now())
    }

    fn verify_at(&self, token: &str, audiences: &[String], now: i64) -> Result<Verified, TokenError> {
        let claims = self.signed_claims(token)?;
        let seconds = |date: Option<NumericDate>| date.map(NumericDate::seconds);
        if seconds(claims.exp).is_some_and(|exp| now.saturating_sub(LEEWAY) > exp) {
            return Err(TokenError::Expired);
        }
        if seconds(claims.nbf).is_some_and(|nbf| now.saturating_add(LEEWAY) < nbf) {
            return Err(TokenError::NotYetValid);
        }
        if seconds(claims.iat).is_some_and(|iat| now.saturating_add(LEEWAY) < iat) {
            return Err(TokenError::FromTheFuture);
        }
        let own = self.audiences.as_slice();
        let wanted = if audiences.is_empty() { own } else { audiences };
        let mut meant = match claims.aud {
            Some(OneOrMany::One(one)) => vec![one],
            Some(OneOrMany::Many(many)) => many,
            None => Vec::new(),
        };
        if meant.is_empty() {
            // Legacy tokens name none: they are for the API server only.
            meant = own.to_vec();
        }
        let both: Vec<_> = meant.iter().filter(|name| wanted.contains(name)).cloned().collect();
        if both.is_empty() {
            return Err(TokenError::Audience {
                token: meant,
                wanted: wanted.to_vec(),
            });
        }
        let missing = |what: &str| TokenError::Malformed(format!("{what} claim is missing"));
        let (of, private) = if claims.iss == LEGACY_ISSUER {
            for (value, what) in [
                (&claims.sub, "sub"),
                (&claims.legacy_namespace, "namespace"),
                (&claims.legacy_secret, "secretName"),
                (&claims.legacy_name, "serviceAccountName"),
                (&claims.legacy_uid, "serviceAccountUID"),
            ] {
                if value.is_empty() {
                    return Err(missing(what));
                }
            }
            let legacy = LegacyClaims {
                namespace: claims.legacy_namespace,
                service_account: ObjectRef::new(claims.legacy_name, claims.legacy_uid),
                secret: claims.legacy_secret,
            };
            (
                username(&legacy.namespace, &legacy.service_account.name),
                Claims::Legacy(legacy),
            )
        } else {
            let bound = claims.kubernetes.ok_or_else(|| missing("kubernetes.io"))?;
            // Without an end it was not made by `issue`.
            if claims.exp.is_none() {
                return Err(missing("exp"));
            }
            (
                username(&bound.namespace, &bound.serviceaccount.name),
                Claims::Bound(bound),
            )
        };
        if claims.sub != of {
            return Err(TokenError::Malformed("sub claim is invalid".into()));
        }
        Ok(Verified {
            subject: claims.sub,
            claims: private,
            audiences: both,
            id: claims.jti,
            expires: seconds(claims.exp),
        })
    }

    /// The claims, once the issuer is ours and the signature right.
    fn signed_claims(&self, token: &str) -> Result<RawClaims, TokenError> {
        #[derive(Deserialize)]
        struct Issuer {
            #[serde(default)]
            iss: String,
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::NotOurs);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::NotOurs)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::NotOurs)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::NotOurs);
        let payload = decode(payload)?;
        let issuer: Issuer = serde_json::from_slice(&payload).map_err(|_| TokenError::NotOurs)?;
        if issuer.iss != LEGACY_ISSUER && !self.issuers().any(|known| known == issuer.iss) {
            return Err(TokenError::NotOurs);
        }
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::NotOurs)?;
        let keys = self.keys.get();
        let named = |key: &&PublicKey| header.kid.is_empty() || header.kid == key.id;
        let mut candidates = keys.public.iter().filter(named).peekable();
        if candidates.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        // The algorithm is ours to choose, not the token's.
        if header.alg != "ES256" {
            return Err(TokenError::Signature);
        }
        let signature = decode(signature)?;
        if !candidates.any(|key| key.parsed.verify_sig(signed.as_bytes(), &signature).is_ok()) {
            return Err(TokenError::Signature);
        }
        let claims: RawClaims =
            serde_json::from_slice(&payload).map_err(|error| TokenError::Malformed(error.to_string()))?;
        Ok(claims)
    }

    /// `/openid/v1/jwks`: every key by which tokens are verified.
    pub fn jwks(&self) -> Value {
        let keys = self.keys.get();
        let all = keys.public.iter().map(|key| {
            let half = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(key.point.get(range).unwrap_or_default());
            json!({
                "use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256",
                "x": half(1..33), "y": half(33..65),
            })
        });
        json!({"keys": all.collect::<Vec<_>>()})
    }

    /// `/.well-known/openid-configuration`; `address` is where others reach the API server (`host:port`), `elsewhere` where the
    /// keys are published in its place. `None`: the issuer's name is not one that OpenID Connect allows, and nothing is
    /// published.
    pub fn openid_configuration(&self, address: &str, elsewhere: Option<&str>) -> Option<Value> {
        let rest = self.issuer.strip_prefix("https://")?;
        if rest.is_empty() || rest.contains(['?', '#']) {
            return None;
        }
        let keys = elsewhere.map_or_else(|| format!("https://{address}/openid/v1/jwks"), str::to_owned);
        Some(json!({
            "issuer": self.issuer,
            "jwks_uri": keys,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }))
    }
}

/// `system:serviceaccount:NAMESPACE:NAME`
pub fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    fn new(bound: Bound, audiences: &[&str]) -> NewToken<'static> {
        NewToken {
            namespace: "web",
            service_account: ObjectRef::new("robot", "u-1"),
            bound,
            audiences: audiences.iter().map(ToString::to_string).collect(),
            lifetime: Duration::from_secs(3600),
            warn_after: None,
        }
    }

    fn part(token: &str, index: usize) -> Value {
        let part = token.split('.').nth(index).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    #[test]
    fn claims_are_upstreams() {
        let keys = TokenKeys::ephemeral(ISSUER).unwrap();
        let bound = Bound::Pod {
            pod: ObjectRef::new("p", "u-2"),
            node: Some(ObjectRef::new("n", "u-3")),
        };
        let mut wanted = new(bound, &[]);
        wanted.warn_after = Some(Duration::from_secs(3607));
        let issued = keys.issue_at(&wanted, 1000).unwrap();
        let mut claims = part(&issued.token, 1);
        assert_eq!(claims["jti"].take(), json!(issued.id));
        assert_eq!(
            claims,
            json!({
                "aud": [ISSUER], "exp": 4600, "iat": 1000, "nbf": 1000, "iss": ISSUER, "jti": null,
                "sub": "system:serviceaccount:web:robot",
                "kubernetes.io": {
                    "namespace": "web",
                    "serviceaccount": {"name": "robot", "uid": "u-1"},
                    "pod": {"name": "p", "uid": "u-2"},
                    "node": {"name": "n", "uid": "u-3"},
                    "warnafter": 4607,
                },
            })
        );
        assert_eq!(part(&issued.token, 0), json!({"alg": "ES256", "kid": keys.key_id()}));
    }

    #[test]
    fn a_token_is_good_for_its_time_and_audience_only() {
        let keys = TokenKeys::ephemeral(ISSUER).unwrap();
        let issued = keys.issue_at(&new(Bound::default(), &["vault", ISSUER]), 1000).unwrap();
        let at = |audiences: &[&str], now| {
            let audiences: Vec<_> = audiences.iter().map(ToString::to_string).collect();
            keys.verify_at(&issued.token, &audiences, now)
        };
        let good = at(&[], 1000).unwrap();
        assert_eq!(good.audiences, [ISSUER]);
        assert_eq!((good.id.as_str(), good.expires), (issued.id.as_str(), Some(4600)));
        assert_eq!(at(&["vault", "other"], 2000).unwrap().audiences, ["vault"]);
        assert!(at(&[], 4600 + LEEWAY).is_ok());
        assert_eq!(at(&[], 4601 + LEEWAY), Err(TokenError::Expired));
        assert_eq!(at(&[], 1000 - LEEWAY - 1), Err(TokenError::NotYetValid));
        let error = at(&["other"], 1000).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(r#"token audiences ["vault", "{ISSUER}"] is invalid for the target audiences ["other"]"#)
        );
    }

    #[test]
    fn former_names_of_the_issuer_are_believed() {
        let pem = crate::cert::new_key("test").unwrap().serialize_pem();
        let issuers = |names: &[&str]| {
            let keys = TokenKeys::from_pem(&pem, "unused").unwrap();
            keys.with_issuers(names.iter().map(ToString::to_string).collect())
        };
        let (old, new) = (issuers(&["https://old"]), issuers(&["https://new", "https://old"]));
        let from_old = old.issue(&self::new(Bound::default(), &[])).unwrap();
        assert_eq!(part(&from_old.token, 1)["iss"], "https://old");
        assert_eq!(new.verify(&from_old.token, &[]).unwrap().audiences, ["https://old"]);
        let from_new = new.issue(&self::new(Bound::default(), &[])).unwrap();
        assert_eq!(part(&from_new.token, 1)["iss"], "https://new");
        assert_eq!(from_new.audiences, ["https://new", "https://old"]);
        assert_eq!(old.verify(&from_new.token, &[]), Err(TokenError::NotOurs));
        let named = issuers(&["https://new"]).with_audiences(vec!["api".into()]);
        assert!(matches!(
            named.verify(&from_new.token, &[]),
            Err(TokenError::Audience { .. })
        ));
        assert_eq!(
            named.issue(&self::new(Bound::default(), &[])).unwrap().audiences,
            ["api"]
        );
    }

    #[test]
    fn legacy_tokens_have_no_end_and_one_audience() {
        let keys = TokenKeys::ephemeral(ISSUER).unwrap();
        let claims = LegacyClaims {
            namespace: "web".into(),
            service_account: ObjectRef::new("robot", "u-1"),
            secret: "robot-token".into(),
        };
        let token = keys.issue_legacy(&claims).unwrap();
        assert_eq!(part(&token, 1)["iss"], "kubernetes/serviceaccount");
        let verified = keys.verify(&token, &[]).unwrap();
        assert_eq!(verified.claims, Claims::Legacy(claims));
        assert!(matches!(
            keys.verify(&token, &["vault".into()]),
            Err(TokenError::Audience { .. })
        ));
    }

    #[test]
    fn forgeries_and_rubbish_are_refused() {
        let keys = TokenKeys::ephemeral(ISSUER).unwrap();
        let stranger = TokenKeys::ephemeral(ISSUER).unwrap();
        let elsewhere = TokenKeys::ephemeral("https://elsewhere").unwrap();
        let wanted = new(Bound::default(), &[ISSUER]);
        let good = keys.issue(&wanted).unwrap().token;
        let parts: Vec<_> = good.split('.').collect();
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut claims = part(&good, 1);
        claims["sub"] = json!("system:serviceaccount:kube-system:admin");
        let none = encode(json!({"alg": "none"}));
        let no_kid = encode(json!({"alg": "ES256"}));
        for (token, error) in [
            (String::new(), TokenError::NotOurs),
            ("a.b".into(), TokenError::NotOurs),
            ("a.b.c".into(), TokenError::NotOurs),
            ("x".repeat(MAX_TOKEN_BYTES + 1), TokenError::NotOurs),
            (elsewhere.issue(&wanted).unwrap().token, TokenError::NotOurs),
            (stranger.issue(&wanted).unwrap().token, TokenError::UnknownKey),
            (format!("{none}.{}.", parts[1]), TokenError::Signature),
            (format!("{no_kid}.{}.{}", parts[1], parts[2]), TokenError::Signature),
            (
                format!("{}.{}.{}", parts[0], encode(claims), parts[2]),
                TokenError::Signature,
            ),
            (format!("{}.{}.", parts[0], parts[1]), TokenError::Signature),
        ] {
            assert_eq!(keys.verify(&token, &[]), Err(error), "{token:.40}");
        }
        assert!(keys.verify(&good, &[]).is_ok());
    }

    #[test]
    fn a_signed_token_with_odd_claims_is_refused() {
        let keys = TokenKeys::ephemeral(ISSUER).unwrap();
        let now = unix_now();
        let sa = json!({"namespace": "web", "serviceaccount": {"name": "robot", "uid": "u"}});
        for claims in [
            json!({"iss": ISSUER, "sub": "system:serviceaccount:web:robot", "exp": now + 10}),
            json!({"iss": ISSUER, "sub": "system:serviceaccount:web:robot", "kubernetes.io": sa}),
            json!({"iss": ISSUER, "sub": "system:serviceaccount:web:other", "kubernetes.io": sa, "exp": now + 10}),
            json!({"iss": LEGACY_ISSUER, "sub": "system:serviceaccount:web:robot"}),
            json!({"iss": ISSUER, "exp": "tomorrow"}),
        ] {
            let token = keys.sign(&claims).unwrap();
            assert!(
                matches!(keys.verify(&token, &[]), Err(TokenError::Malformed(_))),
                "{claims}"
            );
        }
    }

    #[test]
    fn the_key_is_replaced_in_three_steps() {
        let (old, new) = [(); 2]
            .map(|()| crate::cert::new_key("test").unwrap().serialize_pem())
            .into();
        let keys = TokenKeys::from_pem(&old, ISSUER).unwrap();
        let issue = || keys.issue(&new_(&[])).unwrap().token;
        let published = || keys.jwks()["keys"].as_array().unwrap().len();
        let first = issue();
        // The next is published before it signs.
        keys.replace(&old, std::slice::from_ref(&new)).unwrap();
        assert_eq!((published(), keys.version()), (2, 1));
        assert!(keys.verify(&first, &[]).is_ok());
        keys.replace(&new, &[public_pem(&old).unwrap()]).unwrap();
        let second = issue();
        assert_ne!(part(&first, 0)["kid"], part(&second, 0)["kid"]);
        assert_eq!(published(), 2);
        assert!(keys.verify(&first, &[]).is_ok() && keys.verify(&second, &[]).is_ok());
        keys.replace(&new, &[]).unwrap();
        assert_eq!(keys.verify(&first, &[]), Err(TokenError::UnknownKey));
        assert!(keys.verify(&second, &[]).is_ok());
        assert!(keys.replace("rubbish", &[]).is_err() && keys.replace(&new, &["x".into()]).is_err());
        assert!(keys.verify(&second, &[]).is_ok(), "what cannot be used changes nothing");
    }

    fn new_(audiences: &[&str]) -> NewToken<'static> {
        new(Bound::default(), audiences)
    }

    #[test]
    fn the_published_key_is_the_signing_key() {
        let keys = TokenKeys::ephemeral(ISSUER).unwrap();
        let jwks = keys.jwks();
        let key = &jwks["keys"][0];
        assert_eq!(key["kid"], keys.key_id());
        let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
        let point = [vec![4], coordinate("x"), coordinate("y")].concat();
        assert_eq!(point, keys.keys.get().pair.public_key().as_ref());
        let config = keys.openid_configuration("192.0.2.1:6443", None).unwrap();
        assert_eq!(config["jwks_uri"], "https://192.0.2.1:6443/openid/v1/jwks");
        for (issuer, published) in [
            ("https://issuer.example/path", true),
            ("http://issuer.example", false),
            ("issuer", false),
            ("https://issuer.example?x", false),
            ("https://issuer.example#x", false),
        ] {
            let keys = TokenKeys::ephemeral(issuer).unwrap();
            let config = keys.openid_configuration("a:1", Some("https://keys.example"));
            let told = published.then(|| json!([issuer, "https://keys.example"]));
            assert_eq!(config.map(|config| json!([config["issuer"], config["jwks_uri"]])), told);
        }
    }
}
