//! A webhook that knows tokens: TokenReview, asked of somebody else.
//!
//! Answers, yes and no alike, are remembered for the configured time; failures are not. The webhook is told which
//! audiences are asked for; if it does not say for whom the token is, it is for this API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sampan_auth::authentication::Asked;
use sampan_auth::{AuthenticationError, Sourced, TokenSource, UserInfo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::SetupError;
use crate::answers::Answers;
use crate::outbound::{Hook, Outbound};

const REMEMBERED: usize = 8192;
/// For a whole question with its repetitions, as upstream has it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The webhook's verdict.
#[derive(Clone)]
enum Verdict {
    Known(Sourced),
    /// With what it says to it, if anything.
    Unknown(String),
}

pub struct Reviewer {
    hook: Hook,
    api_version: String,
    own: Vec<String>,
    good_for: Duration,
    answers: Answers<Verdict>,
    asked: (AtomicU64, AtomicU64),
}

impl Reviewer {
    pub fn new(options: &super::Webhook, own: &[String], outbound: &Outbound) -> Result<Arc<Self>, SetupError> {
        if !["v1", "v1beta1"].contains(&options.version.as_str()) {
            return Err(SetupError::Version(options.version.clone()));
        }
        Ok(Arc::new(Reviewer {
            hook: Hook::read(&options.config_file, outbound)?,
            api_version: format!("authentication.k8s.io/{}", options.version),
            own: own.to_vec(),
            good_for: options.cache_ttl,
            answers: Answers::new(REMEMBERED),
            asked: Default::default(),
        }))
    }

    async fn verdict(&self, token: &str, audiences: &[String]) -> Result<Verdict, String> {
        let mut digest = Sha256::new();
        digest.update(Sha256::digest(token));
        for audience in audiences {
            digest.update(Sha256::digest(audience));
        }
        let asking = async {
            let review = json!({
                "apiVersion": self.api_version, "kind": "TokenReview", "metadata": {"creationTimestamp": null},
                "spec": {"token": token, "audiences": audiences}, "status": {"user": {}},
            });
            let answer = self.hook.post(&review, TIMEOUT).await;
            let count = if answer.is_ok() { &self.asked.0 } else { &self.asked.1 };
            count.fetch_add(1, Ordering::Relaxed);
            let answer = answer.map_err(|error| error.to_string())?;
            Ok((self.read(&answer)?, self.good_for))
        };
        self.answers.get(digest.finalize().into(), asking).await
    }

    fn read(&self, answer: &Value) -> Result<Verdict, String> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = (text(answer.get("apiVersion")), text(answer.get("kind")));
        if kind != (self.api_version.clone(), "TokenReview".to_owned()) {
            return Err(format!(
                "the webhook answered with {} of {:?} instead of TokenReview of {:?}",
                kind.1, kind.0, self.api_version
            ));
        }
        let status = answer.get("status").unwrap_or(&Value::Null);
        if status.get("authenticated").and_then(Value::as_bool) != Some(true) {
            return Ok(Verdict::Unknown(text(status.get("error"))));
        }
        let mut user: UserInfo = serde_json::from_value(status.get("user").cloned().unwrap_or_default())
            .map_err(|error| format!("the webhook names no user that can be read: {error}"))?;
        if user.name.is_empty() {
            return Err("the webhook names a user without a name".into());
        }
        user.imply_groups();
        let audiences: Vec<String> = status
            .get("audiences")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|one| one.as_str().map(str::to_owned))
            .collect();
        Ok(Verdict::Known(Sourced {
            user: Arc::new(user),
            audiences: Some(if audiences.is_empty() {
                self.own.clone()
            } else {
                audiences
            }),
        }))
    }

    /// The metrics.
    pub fn text(&self, out: &mut String) {
        use std::fmt::Write;
        let _ok = writeln!(out, "# TYPE apiserver_delegated_authn_request_total counter");
        for (code, count) in [("200", &self.asked.0), ("<error>", &self.asked.1)] {
            let count = count.load(Ordering::Relaxed);
            let _ok = writeln!(
                out,
                "apiserver_delegated_authn_request_total{{code=\"{code}\"}} {count}"
            );
        }
    }
}

impl TokenSource for Reviewer {
    fn find<'a>(&'a self, token: &'a str, audiences: &'a [String]) -> Asked<'a> {
        Box::pin(async move {
            match self.verdict(token, audiences).await {
                Ok(Verdict::Known(found)) => Ok(Some(found)),
                Ok(Verdict::Unknown(why)) if why.is_empty() => Ok(None),
                Ok(Verdict::Unknown(why)) => Err(AuthenticationError::Source(why)),
                Err(why) => {
                    tracing::warn!(why, "the webhook for tokens gave no answer");
                    Err(AuthenticationError::Source(why))
                }
            }
        })
    }
}
