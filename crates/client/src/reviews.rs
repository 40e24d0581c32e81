//! Who asks a server that is not the API server, and whether they may: the API server decides both.
//!
//! A bearer token is shown to the API server (TokenReview), what its owner wants is asked as well (SubjectAccessReview). Answers are
//! remembered for as long as the asker says, and a bounded number of them; a question that got no answer is asked again.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};

/// At most this many answers of a kind are remembered.
const REMEMBERED: usize = 1024;
/// Longer tokens are nobody's.
const LONGEST: usize = 16 * 1024;

/// Whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Caller {
    pub fn named(name: impl Into<String>, groups: Vec<String>) -> Self {
        Caller {
            name: name.into(),
            uid: String::new(),
            groups,
            extra: BTreeMap::new(),
        }
    }

    /// Whom a certificate names that was found to be good.
    pub fn certified(name: String, mut organizations: Vec<String>) -> Self {
        organizations.push("system:authenticated".into());
        Caller::named(name, organizations)
    }

    /// Whether they may do everything, whatever the API server says.
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
    }
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    Path {
        verb: &'static str,
        path: String,
    },
    /// A subresource of the node of this name.
    Node {
        verb: &'static str,
        name: String,
        subresource: &'static str,
    },
}

/// For how long answers are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    pub tokens: Duration,
    pub allowed: Duration,
    pub denied: Duration,
}

/// Asks the API server, and remembers.
pub struct Reviews {
    client: kube::Client,
    lives: Lives,
    /// By the token itself: it is in memory anyway while it is used, and goes with the entry.
    tokens: Memory<String, Option<Caller>>,
    decisions: Memory<(Caller, Wish), Result<(), String>>,
}

impl Reviews {
    pub fn new(client: kube::Client, lives: Lives) -> Self {
        Reviews {
            client,
            lives,
            tokens: Memory::default(),
            decisions: Memory::default(),
        }
    }

    /// Whose token it is; nobody's, if the API server does not vouch for it.
    ///
    /// # Errors
    /// When the API server did not answer.
    pub async fn caller(&self, token: &str) -> Result<Option<Caller>, kube::Error> {
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
        let answer = api.create(&PostParams::default(), &review).await?;
        let caller = answer
            .status
            .filter(|status| status.authenticated == Some(true))
            .and_then(|status| status.user)
            .map(|info| Caller {
                name: info.username.unwrap_or_default(),
                uid: info.uid.unwrap_or_default(),
                groups: info.groups.unwrap_or_default(),
                extra: info.extra.unwrap_or_default(),
            });
        self.tokens.put(token.to_owned(), caller.clone(), self.lives.tokens);
        Ok(caller)
    }

    /// Whether `caller` may have what is wished, or why not.
    ///
    /// # Errors
    /// When the API server did not answer.
    pub async fn may(&self, caller: &Caller, wish: Wish) -> Result<Result<(), String>, kube::Error> {
        let key = (caller.clone(), wish);
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let mut spec = SubjectAccessReviewSpec {
            user: Some(caller.name.clone()),
            uid: Some(caller.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(caller.groups.clone()),
            extra: Some(caller.extra.clone()).filter(|extra| !extra.is_empty()),
            ..SubjectAccessReviewSpec::default()
        };
        match &key.1 {
            Wish::Path { verb, path } => {
                spec.non_resource_attributes = Some(NonResourceAttributes {
                    path: Some(path.clone()),
                    verb: Some((*verb).into()),
                });
            }
            Wish::Node {
                verb,
                name,
                subresource,
            } => {
                spec.resource_attributes = Some(ResourceAttributes {
                    verb: Some((*verb).into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some((*subresource).into()),
                    name: Some(name.clone()),
                    ..ResourceAttributes::default()
                });
            }
        }
        let review = SubjectAccessReview {
            spec,
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let status = api
            .create(&PostParams::default(), &review)
            .await?
            .status
            .unwrap_or_default();
        let (decision, life) = match status.allowed {
            true => (Ok(()), self.lives.allowed),
            false => (Err(status.reason.unwrap_or_default()), self.lives.denied),
        };
        self.decisions.put(key, decision.clone(), life);
        Ok(decision)
    }
}

/// The token of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= LONGEST).then_some(token)
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
        K: Borrow<Q>,
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
    fn bearers() {
        let headers = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert_eq!(bearer(&headers("Bearer abc")), Some("abc"));
        assert_eq!(bearer(&headers("bearer  abc ")), Some("abc"));
        for bad in [
            "Basic abc",
            "Bearer",
            "Bearer ",
            &format!("Bearer {}", "x".repeat(LONGEST + 1)),
        ] {
            assert_eq!(bearer(&headers(bad)), None);
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
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
