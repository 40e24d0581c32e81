//! The published keys of an outside issuer.
//!
//! Found as OpenID Connect has it: a discovery document names the issuer, which must be the one that is configured,
//! and where its keys are. They are asked for when a token needs them for the first time, and again when a token is
//! signed by a key that is not among them (issuers change their keys), but never more often than [`PAUSE`] allows and
//! by one request at a time: strangers can make up key names as fast as they like.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue};
use http::{HeaderMap, Method};
use sampan_pki::jws::{Keys, Signed};
use serde::Deserialize;

use crate::outbound::{Exchange, Outbound, Place, Spec, Trust};
use crate::sync::{read, write};

const TIMEOUT: Duration = Duration::from_secs(10);
const LIMIT: usize = 1 << 20;
/// Between two attempts to get keys.
const PAUSE: Duration = Duration::from_secs(1);
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Where an issuer's keys come from. Two that are equal share what they got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub issuer: String,
    /// Where the discovery document is, if not below the issuer.
    pub discovery: Option<String>,
    /// PEM; empty: what the machine trusts.
    pub authority: Vec<u8>,
}

pub struct Provider {
    pub origin: Origin,
    outbound: Outbound,
    keys: RwLock<Arc<Keys>>,
    /// When keys were asked for last, and where they were found. Held while they are asked for.
    fetching: tokio::sync::Mutex<(Option<Instant>, Option<String>)>,
    /// Fetches that worked and did not.
    pub fetches: (std::sync::atomic::AtomicU64, std::sync::atomic::AtomicU64),
}

impl Provider {
    pub fn new(origin: Origin, outbound: &Outbound) -> Self {
        Provider {
            origin,
            outbound: outbound.clone(),
            keys: RwLock::default(),
            fetching: tokio::sync::Mutex::default(),
            fetches: Default::default(),
        }
    }

    /// Whether a key of the issuer signed the token.
    pub async fn verify(&self, token: &Signed<'_>) -> Result<(), String> {
        let known = read(&self.keys).clone();
        if known.verify(token) {
            return Ok(());
        }
        let mut fetching = self.fetching.lock().await;
        let now = read(&self.keys).clone();
        if !Arc::ptr_eq(&known, &now) && now.verify(token) {
            return Ok(());
        }
        if fetching.0.is_some_and(|last| last.elapsed() < PAUSE) {
            return Err(unsigned(&now));
        }
        let fetched = self.fetch(&mut fetching.1).await;
        fetching.0 = Some(Instant::now());
        let count = if fetched.is_ok() {
            &self.fetches.0
        } else {
            &self.fetches.1
        };
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let fetched = Arc::new(fetched.map_err(|why| format!("fetching keys {why}"))?);
        write(&self.keys).clone_from(&fetched);
        match fetched.verify(token) {
            true => Ok(()),
            false => Err(unsigned(&fetched)),
        }
    }

    async fn fetch(&self, place: &mut Option<String>) -> Result<Keys, String> {
        if place.is_none() {
            *place = Some(self.discover().await?);
        }
        let url = place.as_deref().unwrap_or_default();
        let got = match self.get(url).await {
            Ok(body) => Keys::parse(&body).map_err(|why| format!("{url}: {why}")),
            Err(why) => Err(why),
        };
        if got.is_err() {
            // They may have moved.
            *place = None;
        }
        got
    }

    async fn discover(&self) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            jwks_uri: String,
        }
        let below = || format!("{}{WELL_KNOWN}", self.origin.issuer.trim_end_matches('/'));
        let url = self.origin.discovery.clone().unwrap_or_else(below);
        let body = self.get(&url).await?;
        let document: Document = serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))?;
        if document.issuer != self.origin.issuer {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {:?}",
                self.origin.issuer, document.issuer
            ));
        }
        Ok(document.jwks_uri)
    }

    async fn get(&self, url: &str) -> Result<Bytes, String> {
        let (place, path) = Place::of_url(url).map_err(|error| error.to_string())?;
        let peer = self
            .outbound
            .peer(&Spec {
                place,
                trust: Trust::Bundle(self.origin.authority.clone()),
                identity: None,
            })
            .map_err(|error| error.to_string())?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let exchange = Exchange {
            method: Method::GET,
            path: &path,
            headers,
            body: Bytes::new(),
            timeout: TIMEOUT,
            limit: LIMIT,
        };
        let answer = peer.call(&exchange).await.map_err(|error| error.during("Get", url))?;
        if !answer.status.is_success() {
            return Err(format!("Get {url:?}: status {}", answer.status.as_u16()));
        }
        Ok(answer.body)
    }
}

fn unsigned(keys: &Keys) -> String {
    match keys.is_empty() {
        true => "failed to verify signature: the issuer's keys are not known".into(),
        false => "failed to verify signature: failed to verify id token signature".into(),
    }
}
