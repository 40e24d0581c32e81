//! KMS v2: a plug-in behind a socket of this machine keeps the key; here are seeds that it has encrypted.
//!
//! A seed is made at start and whenever the plug-in's key changes; every value has a key of its own, derived from the
//! seed. The plug-in is asked for its status every minute (every ten seconds while it fails), which is upstream's
//! interface and cannot be an event. As upstream: reading goes on with the seeds that are known; writing goes on for
//! three minutes after the last good status, so that a key that was changed is surely seen.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use sampan_tasks::{OnExit, Tasks};
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::cipher::{Cipher, new_seed};
use crate::config::KmsProvider;
use crate::metrics::{Metrics, Way};
use crate::proto::{
    AES_GCM_KEY, DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, EncryptedObject,
    HKDF_SHA256_XNONCE_AES_GCM_SEED, StatusRequest, StatusResponse,
};
use crate::store::{lock, read, write};

const GOOD: Duration = Duration::from_secs(60);
const BAD: Duration = Duration::from_secs(10);
/// How long a seed writes without a good status.
const WRITES: Duration = Duration::from_secs(180);
/// The largest key id and encrypted seed, and all annotations.
const LARGEST: usize = 1024;
const ANNOTATIONS: usize = 32 * 1024;
/// Seeds that are remembered; there is one for each key and start of a server.
const SEEDS: usize = 10_000;
/// How long a seed that could not be decrypted is not asked for again: a list must not wait once for every value.
const REFUSED: Duration = Duration::from_secs(3);

pub struct Kms {
    name: String,
    timeout: Duration,
    grpc: Grpc<Channel>,
    state: RwLock<Option<State>>,
    /// By [`fingerprint`].
    seeds: Mutex<HashMap<[u8; 32], Arc<Cipher>>>,
    refused: Mutex<HashMap<[u8; 32], (Instant, String)>>,
    health: RwLock<Result<(), String>>,
    metrics: Arc<Metrics>,
    version: Mutex<String>,
}

/// What writes.
#[derive(Clone)]
struct State {
    cipher: Arc<Cipher>,
    /// Everything but the data.
    object: EncryptedObject,
    expires: Instant,
}

/// One seed, whichever value it is found with.
fn fingerprint(object: &EncryptedObject) -> [u8; 32] {
    let mut sum = Sha256::new();
    sum.update(object.encrypted_dek_source_type.to_be_bytes());
    let mut part = |bytes: &[u8]| {
        sum.update((bytes.len() as u64).to_be_bytes());
        sum.update(bytes);
    };
    part(&object.encrypted_dek_source);
    part(object.key_id.as_bytes());
    for (key, value) in &object.annotations {
        part(key.as_bytes());
        part(value);
    }
    sum.finalize().into()
}

impl Kms {
    /// A plug-in that is asked once before this returns, and then as long as somebody holds it. `news` is told when it
    /// works again.
    pub async fn start(
        provider: &KmsProvider,
        news: Arc<watch::Sender<u64>>,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Arc<Kms> {
        let socket = provider.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        let kms = Arc::new(Kms {
            name: provider.name.clone(),
            timeout: provider.timeout,
            grpc: Grpc::new(channel),
            state: RwLock::new(None),
            seeds: Mutex::default(),
            refused: Mutex::default(),
            health: RwLock::new(Err("it was not asked yet".into())),
            metrics,
            version: Mutex::default(),
        });
        kms.check().await;
        let weak = Arc::downgrade(&kms);
        tasks.spawn_until_drain(format!("kms-{}", provider.name), OnExit::Expected, async move {
            loop {
                let Some(healthy) = weak.upgrade().map(|kms| kms.health().is_ok()) else {
                    return;
                };
                tokio::time::sleep(if healthy { GOOD } else { BAD }).await;
                let Some(kms) = weak.upgrade() else { return };
                kms.check().await;
                if !healthy && kms.health().is_ok() {
                    lock(&kms.refused).clear();
                    news.send_modify(|times| *times += 1);
                }
            }
        });
        kms
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn health(&self) -> Result<(), String> {
        read(&self.health).clone()
    }

    /// Asks for the status and follows a change of the key.
    async fn check(&self) {
        let result = self.status().await;
        let before = self.health();
        match (&before, &result) {
            (Ok(()), Err(why)) => tracing::warn!(kms = self.name, why, "the KMS plug-in does not work"),
            (Err(was), Err(why)) if was != why => tracing::warn!(kms = self.name, why, "the KMS plug-in does not work"),
            (Err(_), Ok(())) => tracing::info!(kms = self.name, "the KMS plug-in works"),
            _ => {}
        }
        *write(&self.health) = result;
    }

    async fn status(&self) -> Result<(), String> {
        // Counted from before the call: three minutes are the most.
        let expires = Instant::now() + WRITES;
        let status: StatusResponse = self
            .call("/v2.KeyManagementService/Status", StatusRequest {})
            .await
            .map_err(|why| {
                format!(
                    "failed to perform status section of the healthz check for KMS Provider {}, error: {why}",
                    self.name
                )
            })?;
        let unhealthy = |why: String| format!("kmsv2 Provider {} is not healthy, error: {why}", self.name);
        if status.healthz != "ok" {
            return Err(unhealthy(format!("got unexpected healthz status: {}", status.healthz)));
        }
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            return Err(unhealthy(format!(
                "expected KMSv2 API version v2, got {}",
                status.version
            )));
        }
        {
            let mut version = lock(&self.version);
            if version.is_empty() {
                version.clone_from(&status.version);
            }
            if *version != status.version {
                return Err(unhealthy(format!(
                    "KMSv2 API version should not change after the initial status response version {version}, got {}",
                    status.version
                )));
            }
        }
        check_key_id(&status.key_id).map_err(|why| {
            let what = if status.key_id.is_empty() { "empty" } else { "too_long" };
            self.metrics.invalid_key(&self.name, what);
            unhealthy(format!("got invalid KMSv2 KeyID: {why}"))
        })?;
        self.metrics.key_used(None, &self.name, &status.key_id);
        if let Some(state) = &mut *write(&self.state)
            && state.object.key_id == status.key_id
        {
            state.expires = expires;
            return Ok(());
        }
        self.rotate(&status.key_id, expires).await.map_err(unhealthy)
    }

    /// A new seed under the plug-in's present key. On failure the old one goes on until its time is over.
    async fn rotate(&self, key_id: &str, expires: Instant) -> Result<(), String> {
        let failed = |why: String| format!("failed to rotate DEK: {why}");
        let seed = new_seed().map_err(|error| failed(error.to_string()))?;
        let cipher = Arc::new(Cipher::seeded(&seed).map_err(|error| failed(error.to_string()))?);
        let request = EncryptRequest {
            plaintext: seed.to_vec(),
            uid: uuid::Uuid::new_v4().to_string(),
        };
        let answer: EncryptResponse = self
            .call("/v2.KeyManagementService/Encrypt", request)
            .await
            .map_err(|why| failed(format!("failed to encrypt DEK, error: {why}")))?;
        if answer.key_id != key_id {
            return Err(failed("the key changed between status and encryption".into()));
        }
        let object = EncryptedObject {
            encrypted_data: Vec::new(),
            key_id: answer.key_id,
            encrypted_dek_source: answer.ciphertext,
            annotations: answer.annotations,
            encrypted_dek_source_type: HKDF_SHA256_XNONCE_AES_GCM_SEED,
        };
        check(&object).map_err(failed)?;
        self.remember(fingerprint(&object), cipher.clone());
        *write(&self.state) = Some(State {
            cipher,
            object,
            expires,
        });
        tracing::info!(kms = self.name, "a new seed is in use");
        Ok(())
    }

    fn remember(&self, fingerprint: [u8; 32], cipher: Arc<Cipher>) {
        let mut seeds = lock(&self.seeds);
        if seeds.len() >= SEEDS {
            seeds.clear();
        }
        seeds.insert(fingerprint, cipher);
        self.metrics.seeds(&self.name, seeds.len());
    }

    /// Appends the encrypted value to `out`.
    pub fn encrypt(&self, value: &[u8], authenticated: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let state = read(&self.state).clone();
        let state = state.ok_or_else(|| match self.health() {
            Err(why) => why,
            Ok(()) => "got unexpected nil transformer".into(),
        })?;
        if Instant::now() > state.expires {
            return Err(format!(
                "the encrypted seed of KMS provider {} has expired: the plug-in has not worked for {} seconds",
                self.name,
                WRITES.as_secs()
            ));
        }
        let mut object = state.object;
        self.metrics.key_used(Some(Way::ToStorage), &self.name, &object.key_id);
        state
            .cipher
            .encrypt(value, authenticated, &mut object.encrypted_data)
            .map_err(|error| error.to_string())?;
        object.encode(out).map_err(|error| error.to_string())
    }

    /// The value, and whether it should be written anew.
    pub async fn decrypt(&self, data: &[u8], authenticated: &[u8]) -> Result<(Vec<u8>, bool), String> {
        let object = EncryptedObject::decode(data).map_err(|error| error.to_string())?;
        if object.encrypted_data.is_empty() {
            return Err("encrypted data is empty".into());
        }
        check(&object)?;
        self.metrics
            .key_used(Some(Way::FromStorage), &self.name, &object.key_id);
        let cipher = self.seed_of(&object).await?;
        let value = cipher
            .decrypt(&object.encrypted_data, authenticated)
            .map_err(|error| error.to_string())?;
        let current = read(&self.state).as_ref().is_some_and(|state| {
            state.object.key_id == object.key_id
                && state.object.encrypted_dek_source_type == object.encrypted_dek_source_type
        });
        Ok((value, !current))
    }

    async fn seed_of(&self, object: &EncryptedObject) -> Result<Arc<Cipher>, String> {
        let fingerprint = fingerprint(object);
        if let Some(known) = lock(&self.seeds).get(&fingerprint) {
            return Ok(known.clone());
        }
        if let Some((at, why)) = lock(&self.refused).get(&fingerprint)
            && at.elapsed() < REFUSED
        {
            return Err(why.clone());
        }
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let answer: Result<DecryptResponse, String> = self.call("/v2.KeyManagementService/Decrypt", request).await;
        let cipher = answer
            .map_err(|why| format!("failed to decrypt DEK, error: {why}"))
            .and_then(|answer| {
                let made = match object.encrypted_dek_source_type {
                    AES_GCM_KEY => Cipher::gcm(&answer.plaintext),
                    _ => Cipher::seeded(&answer.plaintext),
                };
                made.map_err(|error| error.to_string())
            });
        match cipher {
            Ok(cipher) => {
                let cipher = Arc::new(cipher);
                self.remember(fingerprint, cipher.clone());
                Ok(cipher)
            }
            Err(why) => {
                let mut refused = lock(&self.refused);
                refused.retain(|_, (at, _)| at.elapsed() < REFUSED);
                refused.insert(fingerprint, (Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    async fn call<Q, R>(&self, path: &'static str, request: Q) -> Result<R, String>
    where
        Q: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc.clone();
        let calling = async {
            grpc.ready()
                .await
                .map_err(|error| format!("rpc error: code = Unavailable desc = {}", chain(&error)))?;
            let codec: ProstCodec<Q, R> = ProstCodec::default();
            grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec)
                .await
                .map(tonic::Response::into_inner)
                .map_err(|status| format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
        };
        let started = std::time::Instant::now();
        let answer = tokio::time::timeout(self.timeout, calling)
            .await
            .unwrap_or_else(|_| Err("rpc error: code = DeadlineExceeded desc = context deadline exceeded".into()));
        let error = answer.as_ref().err().map(String::as_str);
        self.metrics.called(&self.name, path, started, error);
        answer
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn check_key_id(key_id: &str) -> Result<(), String> {
    if key_id.is_empty() {
        return Err("keyID is empty".into());
    }
    if key_id.len() > LARGEST {
        return Err(format!(
            "keyID is {} bytes, which exceeds the max size of {LARGEST}",
            key_id.len()
        ));
    }
    Ok(())
}

/// Everything but the data.
fn check(object: &EncryptedObject) -> Result<(), String> {
    if !matches!(
        object.encrypted_dek_source_type,
        AES_GCM_KEY | HKDF_SHA256_XNONCE_AES_GCM_SEED
    ) {
        return Err(format!(
            "unknown encryptedDEKSourceType: {}",
            object.encrypted_dek_source_type
        ));
    }
    let source = object.encrypted_dek_source.len();
    if source == 0 {
        return Err("failed to validate encrypted DEK source: encrypted DEK source is empty".into());
    }
    if source > LARGEST {
        return Err(format!(
            "failed to validate encrypted DEK source: encrypted DEK source is {source} bytes, which exceeds the max size of {LARGEST}"
        ));
    }
    check_key_id(&object.key_id).map_err(|why| format!("failed to validate key id: {why}"))?;
    check_annotations(&object.annotations).map_err(|why| format!("failed to validate annotations: {why}"))
}

fn check_annotations(annotations: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    for key in annotations.keys() {
        let problems = sampan_api::names::dns1123_subdomain(key);
        if let Some(problem) = problems.first() {
            return Err(format!("annotations: Invalid value: {key:?}: {problem}"));
        }
        if !key.contains('.') {
            return Err(format!(
                "annotations: Invalid value: {key:?}: should be a domain with at least two segments separated by dots"
            ));
        }
    }
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS {
        return Err(format!(
            "total size of annotations is {size}, which exceeds the max size of {ANNOTATIONS}"
        ));
    }
    Ok(())
}
