//! Outside issuers in use.
//!
//! A token is looked at by the one issuer it names. Who came of a token is remembered for at most ten seconds and never
//! beyond its end, and forgotten when the configuration changes. Issuers that stay the same keep their keys then.

use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sampan_auth::authentication::Asked;
use sampan_auth::{AuthenticationError, Sourced, TokenSource, UserInfo};
use sampan_pki::jws::{self, Algorithm, Signed};
use sha2::{Digest, Sha256};

use super::jwt::Issuer;
use super::keys::Provider;
use crate::answers::Answers;
use crate::outbound::Outbound;
use crate::sync::{read, write};

const REMEMBERED: usize = 4096;
const GOOD_FOR: Duration = Duration::from_secs(10);
/// What Google called itself once.
const GOOGLE: (&str, &str) = ("accounts.google.com", "https://accounts.google.com");

struct Known {
    issuer: Issuer,
    provider: Arc<Provider>,
}

/// What is configured at one time, and what was found by it.
struct Generation {
    issuers: Vec<Known>,
    answers: Answers<Arc<UserInfo>>,
}

pub struct Issuers {
    current: RwLock<Arc<Generation>>,
    algorithms: Vec<Algorithm>,
    outbound: Outbound,
}

impl Issuers {
    pub fn new(issuers: Vec<Issuer>, algorithms: &[Algorithm], outbound: &Outbound) -> Arc<Self> {
        let empty = Generation {
            issuers: Vec::new(),
            answers: Answers::new(REMEMBERED),
        };
        let made = Issuers {
            current: RwLock::new(Arc::new(empty)),
            algorithms: algorithms.to_vec(),
            outbound: outbound.clone(),
        };
        made.replace(issuers);
        Arc::new(made)
    }

    /// Believes these and no others from now on.
    pub fn replace(&self, issuers: Vec<Issuer>) {
        let before = read(&self.current).clone();
        let known = issuers.into_iter().map(|issuer| {
            let same = before
                .issuers
                .iter()
                .find(|known| known.provider.origin == issuer.origin);
            let provider = match same {
                Some(known) => known.provider.clone(),
                None => Arc::new(Provider::new(issuer.origin.clone(), &self.outbound)),
            };
            Known { issuer, provider }
        });
        let generation = Generation {
            issuers: known.collect(),
            answers: Answers::new(REMEMBERED),
        };
        *write(&self.current) = Arc::new(generation);
    }

    async fn user(&self, token: &str) -> Result<Option<Arc<UserInfo>>, String> {
        let Some(mut issuer) = jws::issuer(token) else {
            return Ok(None);
        };
        if issuer == GOOGLE.0 {
            issuer = GOOGLE.1.into();
        }
        let current = read(&self.current).clone();
        let Some(known) = current
            .issuers
            .iter()
            .find(|known| known.issuer.origin.issuer == issuer)
        else {
            return Ok(None);
        };
        let key = Sha256::digest(token).into();
        let checking = async {
            let mut signed = Signed::parse(token).map_err(|error| format!("verify token: {error}"))?;
            if !self.algorithms.contains(&signed.algorithm) {
                return Err(format!(
                    "verify token: oidc: id token signed with unsupported algorithm, expected {:?} got {:?}",
                    self.algorithms.iter().map(|one| one.name()).collect::<Vec<_>>(),
                    signed.algorithm.name()
                ));
            }
            known
                .provider
                .verify(&signed)
                .await
                .map_err(|why| format!("verify token: {why}"))?;
            if signed.claims.get("iss").is_some_and(|iss| iss == GOOGLE.0) {
                signed.claims["iss"] = GOOGLE.1.into();
            }
            let now = unix_now();
            let (user, expires) = known.issuer.user(&signed.claims, now)?;
            let left = Duration::from_secs(u64::try_from(expires - now).unwrap_or_default());
            Ok((Arc::new(user), left.min(GOOD_FOR)))
        };
        let user = current.answers.get(key, checking).await;
        user.map(Some).map_err(|why: String| format!("oidc: {why}"))
    }

    /// The metrics.
    pub fn text(&self, out: &mut String) {
        use std::fmt::Write;
        let current = read(&self.current).clone();
        let _ok = writeln!(
            out,
            "# TYPE apiserver_authentication_jwt_authenticator_jwks_fetches_total counter"
        );
        for known in &current.issuers {
            let issuer = hex::encode(Sha256::digest(&known.provider.origin.issuer));
            let (good, bad) = &known.provider.fetches;
            for (result, count) in [("success", good), ("failure", bad)] {
                let _ok = writeln!(
                    out,
                    "apiserver_authentication_jwt_authenticator_jwks_fetches_total{{result=\"{result}\",jwt_issuer_hash=\"sha256:{issuer}\"}} {}",
                    count.load(Ordering::Relaxed)
                );
            }
        }
    }
}

impl TokenSource for Issuers {
    fn find<'a>(&'a self, token: &'a str, _: &'a [String]) -> Asked<'a> {
        Box::pin(async move {
            let user = self.user(token).await.map_err(AuthenticationError::Source)?;
            Ok(user.map(|user| Sourced { user, audiences: None }))
        })
    }
}

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
