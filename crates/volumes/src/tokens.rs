//! Service-account tokens kept until 80 % of their life is over (or a day has passed).
//!
//! Pure bookkeeping apart from the one call to [`Sources::token`]. A token that must be refreshed but cannot be is
//! still handed out while it is valid: a short outage of the API server must not break a running pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::TokenRequestSpec;

use crate::{SourceError, Sources, Token};

const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

#[derive(Clone)]
struct Kept {
    token: Token,
    refresh_at: Timestamp,
}

/// Which token: one per service account, bound pod, audiences and lifetime.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: String,
    account: String,
    pod_uid: String,
    audiences: Vec<String>,
    seconds: Option<i64>,
}

/// The cache. One per node.
#[derive(Default)]
pub struct TokenCache {
    kept: Mutex<HashMap<Key, Kept>>,
}

/// When a token obtained at `now` and ending at `expires` should be replaced.
pub fn refresh_at(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now);
    let due = SignedDuration::from_secs(life.as_secs().max(0) / 5 * 4).min(MAX_AGE);
    now.saturating_add(due).unwrap_or(expires)
}

impl TokenCache {
    /// A valid token and when to ask again.
    pub async fn get(
        &self,
        sources: &Arc<dyn Sources>,
        namespace: &str,
        account: &str,
        spec: &TokenRequestSpec,
        now: Timestamp,
    ) -> Result<(Token, Timestamp), SourceError> {
        let key = Key {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            pod_uid: spec
                .bound_object_ref
                .as_ref()
                .and_then(|bound| bound.uid.clone())
                .unwrap_or_default(),
            audiences: spec.audiences.clone().unwrap_or_default(),
            seconds: spec.expiration_seconds,
        };
        let kept = self.lock().get(&key).cloned();
        if let Some(kept) = &kept
            && now < kept.refresh_at
        {
            return Ok((kept.token.clone(), kept.refresh_at));
        }
        match sources.token(namespace, account, spec).await {
            Ok(token) => {
                let refresh_at = refresh_at(now, token.expires);
                let fresh = Kept {
                    token: token.clone(),
                    refresh_at,
                };
                self.lock().insert(key, fresh);
                Ok((token, refresh_at))
            }
            Err(error) => match kept {
                Some(kept) if now < kept.token.expires => {
                    tracing::warn!(namespace, account, %error, "a token could not be refreshed; keeping the old one");
                    let retry = now.saturating_add(SignedDuration::from_secs(10)).unwrap_or(now);
                    Ok((kept.token, retry))
                }
                _ => Err(error),
            },
        }
    }

    /// Forgets the tokens bound to a pod.
    pub fn forget_pod(&self, uid: &str) {
        self.lock().retain(|key, _| key.pod_uid != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FakeSources;

    #[test]
    fn refresh_is_at_four_fifths_but_never_later_than_a_day() {
        let now = Timestamp::UNIX_EPOCH;
        let at = |seconds: i64| now + SignedDuration::from_secs(seconds);
        assert_eq!(refresh_at(now, at(1000)), at(800));
        assert_eq!(refresh_at(now, at(3607)), at(3607 / 5 * 4));
        assert_eq!(refresh_at(now, at(365 * 86400)), at(86400));
        assert_eq!(refresh_at(now, at(-5)), now);
    }

    #[tokio::test]
    async fn a_token_is_asked_for_once_until_it_is_due() {
        let fake = Arc::new(FakeSources::default());
        let sources: Arc<dyn Sources> = fake.clone();
        let cache = TokenCache::default();
        let spec = TokenRequestSpec {
            expiration_seconds: Some(1000),
            ..Default::default()
        };
        let now = Timestamp::now();
        let (first, due) = cache.get(&sources, "a", "b", &spec, now).await.unwrap();
        let (second, _) = cache
            .get(&sources, "a", "b", &spec, now + SignedDuration::from_secs(700))
            .await
            .unwrap();
        assert_eq!(first, second);
        let (third, _) = cache.get(&sources, "a", "b", &spec, due).await.unwrap();
        assert_ne!(first, third);
        assert_eq!(fake.tokens_issued.lock().unwrap().len(), 2);
    }
}
