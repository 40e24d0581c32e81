//! Signed tokens of outside issuers: their published keys, and whether one of them made a signature.
//!
//! Only the asymmetric algorithms of RFC 7518 are known; `none` and the symmetric ones do not exist here, so no token
//! can ask for them. A key is used only for algorithms of its own kind, and only as it says itself (`use`, `alg`): a
//! token cannot choose how a key is read.

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

/// Longer ones are refused before any work is spent on them.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// How a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

impl Algorithm {
    pub const ALL: [Algorithm; 9] = [
        Algorithm::Rs256,
        Algorithm::Rs384,
        Algorithm::Rs512,
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::Es512,
        Algorithm::Ps256,
        Algorithm::Ps384,
        Algorithm::Ps512,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs256 => "RS256",
            Algorithm::Rs384 => "RS384",
            Algorithm::Rs512 => "RS512",
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
            Algorithm::Es512 => "ES512",
            Algorithm::Ps256 => "PS256",
            Algorithm::Ps384 => "PS384",
            Algorithm::Ps512 => "PS512",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// Why a token is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the token is too long")]
    TooLong,
    #[error("the token has not three parts")]
    Parts,
    #[error("the token is not properly encoded")]
    Encoding,
    #[error("the token's signature algorithm is not supported")]
    Algorithm,
    #[error("the token's header asks for an extension")]
    Critical,
}

/// A token taken apart. Nothing of it is to be believed before [`Keys::verify`] says so.
#[derive(Clone, Debug)]
pub struct Signed<'a> {
    pub algorithm: Algorithm,
    /// Empty where the token does not name its key.
    pub key_id: String,
    pub claims: Value,
    message: &'a [u8],
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    crit: Option<Value>,
}

impl<'a> Signed<'a> {
    pub fn parse(token: &'a str) -> Result<Self, Malformed> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Malformed::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Malformed::Parts)?;
        let (header, payload) = message.split_once('.').ok_or(Malformed::Parts)?;
        if payload.contains('.') {
            return Err(Malformed::Parts);
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Malformed::Encoding);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Malformed::Encoding)?;
        if header.crit.is_some() {
            return Err(Malformed::Critical);
        }
        Ok(Signed {
            algorithm: Algorithm::of_name(&header.alg).ok_or(Malformed::Algorithm)?,
            key_id: header.kid,
            claims: serde_json::from_slice(&decode(payload)?).map_err(|_| Malformed::Encoding)?,
            message: message.as_bytes(),
            signature: decode(signature)?,
        })
    }
}

/// The issuer a token names, without believing it: to know whom to ask.
pub fn issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice::<Issuer>(&payload).ok().map(|claims| claims.iss)
}

/// A detached signature (RFC 7515, appendix F) with a secret both sides know: how a joining node checks that what it is
/// told of the cluster was said by someone who knows its bootstrap token.
pub fn detached(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(serde_json::json!({"alg": "HS256", "kid": id}).to_string());
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let signature = aws_lc_rs::hmac::sign(&key, message.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// A published key.
#[derive(Clone)]
enum Public {
    Rsa(PublicKeyComponents<Vec<u8>>),
    /// An uncompressed point, and the one algorithm of its curve.
    Ec(Vec<u8>, Algorithm),
}

#[derive(Clone)]
struct Key {
    id: String,
    algorithm: Option<String>,
    public: Public,
}

/// A set of keys (RFC 7517).
#[derive(Clone, Default)]
pub struct Keys(Vec<Key>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Jwk {
    kty: String,
    kid: String,
    r#use: Option<String>,
    alg: Option<String>,
    crv: String,
    n: String,
    e: String,
    x: String,
    y: String,
}

impl Jwk {
    fn key(self) -> Option<Key> {
        if self.r#use.as_deref().is_some_and(|for_what| for_what != "sig") {
            return None;
        }
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| !bytes.is_empty());
        let public = match self.kty.as_str() {
            "RSA" => Public::Rsa(PublicKeyComponents {
                n: decode(&self.n)?,
                e: decode(&self.e)?,
            }),
            "EC" => {
                let (algorithm, size) = match self.crv.as_str() {
                    "P-256" => (Algorithm::Es256, 32),
                    "P-384" => (Algorithm::Es384, 48),
                    "P-521" => (Algorithm::Es512, 66),
                    _ => return None,
                };
                let mut point = vec![4];
                for coordinate in [&self.x, &self.y] {
                    let bytes = decode(coordinate)?;
                    if bytes.len() > size {
                        return None;
                    }
                    point.resize(point.len() + size - bytes.len(), 0);
                    point.extend(bytes);
                }
                Public::Ec(point, algorithm)
            }
            _ => return None,
        };
        Some(Key {
            id: self.kid,
            algorithm: self.alg,
            public,
        })
    }
}

impl Key {
    fn made(&self, token: &Signed<'_>) -> bool {
        if self
            .algorithm
            .as_deref()
            .is_some_and(|own| own != token.algorithm.name())
        {
            return false;
        }
        let (message, signature) = (token.message, token.signature.as_slice());
        match &self.public {
            Public::Rsa(key) => {
                let parameters: &RsaParameters = match token.algorithm {
                    Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                key.verify(parameters, message, signature).is_ok()
            }
            Public::Ec(point, algorithm) if *algorithm == token.algorithm => {
                let parameters = match algorithm {
                    Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED,
                    Algorithm::Es384 => &ECDSA_P384_SHA384_FIXED,
                    _ => &ECDSA_P521_SHA512_FIXED,
                };
                UnparsedPublicKey::new(parameters, point)
                    .verify(message, signature)
                    .is_ok()
            }
            Public::Ec(..) => false,
        }
    }
}

impl Keys {
    /// From a JSON Web Key Set. Keys of kinds that are not known here are passed over, as everybody does.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let keys = set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<Jwk>(key).ok()?.key());
        Ok(Keys(keys.collect()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the keys made the signature: the one the token names, or any if it names none.
    pub fn verify(&self, token: &Signed<'_>) -> bool {
        self.0
            .iter()
            .filter(|key| token.key_id.is_empty() || key.id == token.key_id)
            .any(|key| key.made(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::TokenKeys;
    use crate::token::{Bound, NewToken, ObjectRef};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaEncoding,
    };
    use serde_json::json;

    fn encode(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn message(alg: &str, kid: &str) -> String {
        let header = json!({"alg": alg, "kid": kid}).to_string();
        format!("{}.{}", encode(header), encode(r#"{"iss":"https://i","sub":"x"}"#))
    }

    #[test]
    fn our_own_tokens_verify_by_what_we_publish() {
        let keys = TokenKeys::ephemeral("https://issuer").unwrap();
        let token = keys
            .issue(&NewToken {
                namespace: "n",
                service_account: ObjectRef::new("a", "u"),
                bound: Bound::ServiceAccountOnly,
                audiences: vec!["x".into()],
                lifetime: std::time::Duration::from_secs(60),
                warn_after: None,
            })
            .unwrap()
            .token;
        let published = Keys::parse(keys.jwks().to_string().as_bytes()).unwrap();
        let signed = Signed::parse(&token).unwrap();
        assert!(published.verify(&signed));
        assert_eq!(issuer(&token).as_deref(), Some("https://issuer"));
        assert_eq!(signed.claims["aud"], json!(["x"]));
        let other = Keys::parse(TokenKeys::ephemeral("x").unwrap().jwks().to_string().as_bytes()).unwrap();
        assert!(!other.verify(&signed));
    }

    #[test]
    fn detached_signatures_are_upstreams() {
        // What upstream's library makes of the same.
        let signature = detached(
            "Hello from the other side. I must have called a thousand times.",
            "joshua",
            "my voice is my passcode",
        );
        assert_eq!(
            signature,
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
        );
    }

    #[test]
    fn rsa_and_ec_in_their_own_algorithms_only() {
        let random = SystemRandom::new();
        let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let public = rsa.public_key();
        let n = encode(public.modulus().big_endian_without_leading_zero());
        let e = encode(public.exponent().big_endian_without_leading_zero());
        let ec = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let point = ec.public_key().as_ref();
        let set = json!({"keys": [
            {"kty": "RSA", "kid": "r", "n": n, "e": e},
            {"kty": "RSA", "kid": "only-ps", "alg": "PS512", "n": n, "e": e},
            {"kty": "RSA", "kid": "enc", "use": "enc", "n": n, "e": e},
            {"kty": "EC", "kid": "e", "crv": "P-384", "x": encode(&point[1..49]), "y": encode(&point[49..])},
            {"kty": "OKP", "kid": "o", "crv": "Ed25519", "x": "AA"},
            {"kty": "oct", "kid": "s", "k": "AAAA"},
        ]});
        let keys = Keys::parse(set.to_string().as_bytes()).unwrap();
        let by_rsa = |encoding: &'static dyn RsaEncoding, alg: &str, kid: &str| {
            let message = message(alg, kid);
            let mut signature = vec![0; rsa.public_modulus_len()];
            rsa.sign(encoding, &random, message.as_bytes(), &mut signature).unwrap();
            format!("{message}.{}", encode(signature))
        };
        let by_ec = |alg: &str, kid: &str| {
            let message = message(alg, kid);
            let signature = ec.sign(&random, message.as_bytes()).unwrap();
            format!("{message}.{}", encode(signature))
        };
        for (token, good) in [
            (by_rsa(&RSA_PKCS1_SHA256, "RS256", "r"), true),
            (by_rsa(&RSA_PKCS1_SHA256, "RS256", ""), true),
            (by_rsa(&RSA_PSS_SHA512, "PS512", "r"), true),
            (by_rsa(&RSA_PSS_SHA512, "PS512", "only-ps"), true),
            (by_rsa(&RSA_PKCS1_SHA256, "RS256", "only-ps"), false),
            (by_rsa(&RSA_PKCS1_SHA256, "RS256", "enc"), false),
            (by_rsa(&RSA_PKCS1_SHA256, "RS384", "r"), false),
            (by_rsa(&RSA_PKCS1_SHA256, "ES384", "r"), false),
            (by_rsa(&RSA_PKCS1_SHA256, "RS256", "unknown"), false),
            (by_ec("ES384", "e"), true),
            (by_ec("ES256", "e"), false),
            (by_ec("RS256", "e"), false),
        ] {
            assert_eq!(keys.verify(&Signed::parse(&token).unwrap()), good, "{token:.60}");
        }
        let good = by_ec("ES384", "e");
        let (start, _) = good.rsplit_once('.').unwrap();
        for (token, why) in [
            (message("none", "") + ".", Malformed::Algorithm),
            (message("HS256", "s") + ".AAAA", Malformed::Algorithm),
            ("a.b".into(), Malformed::Parts),
            ("a.b.c.d".into(), Malformed::Parts),
            (format!("{start}.!"), Malformed::Encoding),
            ("x".repeat(MAX_TOKEN_BYTES + 1), Malformed::TooLong),
            (
                format!("{}.e30.AA", encode(r#"{"alg":"RS256","crit":["b64"]}"#)),
                Malformed::Critical,
            ),
        ] {
            assert_eq!(Signed::parse(&token).unwrap_err(), why, "{token:.40}");
        }
        assert!(Keys::parse(b"{}").is_err());
    }
}
