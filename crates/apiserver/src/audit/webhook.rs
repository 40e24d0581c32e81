//! The audit webhook: batches posted as `EventList`s, again after a while when that fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderValue};
use rand::Rng;
use sampan_tasks::Drain;

use super::event;
use crate::outbound::kubeconfig::{KubeconfigError, Remote};
use crate::outbound::{Error, Exchange, Outbound, Peer};

/// For one attempt, as upstream has it.
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: usize = 5;
const FACTOR: f64 = 1.5;
const JITTER: f64 = 0.2;
/// The longest pause while the server drains.
const HURRY: Duration = Duration::from_millis(500);
/// Nobody needs to read more of an answer.
const ANSWER: usize = 1 << 20;

pub struct Webhook {
    remote: Remote,
    peer: Arc<Peer>,
    initial: Duration,
    drain: Drain,
}

impl Webhook {
    pub fn new(config: &Path, initial: Duration, outbound: &Outbound, drain: Drain) -> Result<Self, WebhookError> {
        let remote = Remote::read(config)?;
        let peer = outbound.peer(&remote.spec)?;
        Ok(Webhook {
            remote,
            peer,
            initial,
            drain,
        })
    }

    /// Sends items; every failure is tried again, a few times. While the server drains the pauses are short.
    pub async fn send(&self, items: &[Vec<u8>]) -> Result<(), String> {
        let body = Bytes::from(event::list(items));
        let mut pause = self.initial;
        let mut attempt = 1;
        loop {
            let Err(why) = self.post(body.clone()).await else {
                return Ok(());
            };
            if attempt == ATTEMPTS {
                return Err(why);
            }
            attempt += 1;
            tracing::debug!(why, "the audit webhook failed; trying again");
            let jitter = rand::rng().random_range(0.0..JITTER);
            let wait = pause.mul_f64(1.0 + jitter);
            if self.drain.until(tokio::time::sleep(wait)).await.is_none() {
                tokio::time::sleep(wait.min(HURRY)).await;
            }
            pause = pause.mul_f64(FACTOR);
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), String> {
        let mut headers = self.remote.headers();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let exchange = Exchange {
            method: Method::POST,
            path: &self.remote.path,
            headers,
            body,
            timeout: TIMEOUT,
            limit: ANSWER,
        };
        let url = self.peer.url(&self.remote.path);
        let answer = match self.peer.call(&exchange).await {
            Ok(answer) => answer,
            Err(error) => return Err(error.during("Post", &url)),
        };
        if answer.status.is_success() {
            return Ok(());
        }
        Err(format!("Post {url:?}: the server answered {}", answer.status))
    }
}

/// Why a webhook cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(transparent)]
    Outbound(#[from] Error),
}
