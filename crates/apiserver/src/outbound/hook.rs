//! Webhooks that a kubeconfig describes, for authentication and authorization: a document goes there, one comes back.
//!
//! What may work a moment later is tried again, within the caller's time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use serde_json::Value;

use super::kubeconfig::{KubeconfigError, Remote};
use super::{Error, Exchange, Outbound, Peer};

/// How often a call is tried, and how long is waited first; half as long again each time.
const TRIES: u32 = 5;
const WAIT: Duration = Duration::from_millis(500);
/// The largest answer.
const LIMIT: usize = 1 << 20;

/// Why a webhook gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// In time there was none.
    #[error("context deadline exceeded")]
    Deadline,
    #[error("{0}")]
    Failed(String),
}

/// A server to which documents are sent, at one path.
#[derive(Clone)]
pub struct Hook {
    remote: Remote,
    peer: Arc<Peer>,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hook").field(&self.peer.url(&self.remote.path)).finish()
    }
}

impl Hook {
    /// The server that the file's current context leads to.
    pub fn read(path: &Path, outbound: &Outbound) -> Result<Hook, KubeconfigError> {
        let remote = Remote::read(path)?;
        let peer = outbound.peer(&remote.spec).map_err(|error| KubeconfigError::Invalid {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
        Ok(Hook { remote, peer })
    }

    /// Sends a document and reads the one that comes back, within `timeout`.
    pub async fn post(&self, document: &Value, timeout: Duration) -> Result<Value, CallError> {
        tokio::time::timeout(timeout, self.persist(document, timeout))
            .await
            .unwrap_or(Err(CallError::Deadline))
    }

    async fn persist(&self, document: &Value, timeout: Duration) -> Result<Value, CallError> {
        let body = Bytes::from(document.to_string());
        let mut wait = WAIT;
        let mut attempt = 1;
        loop {
            let failed = match self.once(body.clone(), timeout).await {
                Ok(answer) => return Ok(answer),
                Err((error, again)) if !again || attempt >= TRIES => return Err(error),
                Err((error, _)) => error,
            };
            tracing::debug!(%failed, attempt, hook = ?self, "a webhook is tried again");
            attempt += 1;
            tokio::time::sleep(wait).await;
            wait = wait * 3 / 2;
        }
    }

    /// One try; an error says whether another may help.
    async fn once(&self, body: Bytes, timeout: Duration) -> Result<Value, (CallError, bool)> {
        let path = self.remote.path.as_str();
        let failed = |why: String| CallError::Failed(format!("Post {:?}: {why}", self.peer.url(path)));
        let mut headers = self.remote.headers();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let exchange = Exchange {
            method: Method::POST,
            path,
            headers,
            body,
            timeout,
            limit: LIMIT,
        };
        let answer = self.peer.call(&exchange).await.map_err(|error| match error {
            Error::Deadline => (CallError::Deadline, false),
            Error::Tls(_) | Error::Unusable(_) | Error::TooLarge(_) => (failed(error.to_string()), false),
            _ => (failed(error.to_string()), true),
        })?;
        let code = answer.status.as_u16();
        if !answer.status.is_success() {
            let again = code == 429 || code >= 500;
            return Err((failed(format!("the server answered with status {code}")), again));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| (failed(format!("the answer is not JSON: {error}")), false))
    }
}
