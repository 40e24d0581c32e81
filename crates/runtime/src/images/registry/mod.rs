//! Pulling images from registries that speak the OCI distribution protocol.
//!
//! Written on hyper rather than on a registry crate: pulls must resume, report progress, stop at
//! the first wrong byte, and say plainly whose fault a failure is. That is most of such a crate.
//!
//! Invariants: content counts only when its digest is right; a broken transfer goes on where it
//! stopped; credentials go only to the registry they are for and to the token service it names, and
//! never over plain HTTP except to loopback or a registry configured as insecure.

mod auth;
mod connect;
mod http;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ::http::{StatusCode, header};
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;

use self::http::{Http, Reply};
use super::layer::Hashing;
use super::manifest::{self, ConfigFile, Descriptor, Document};
use super::reference::{Reference, is_digest};
use super::store::{ImageStore, NewImage};
use super::{ImageError, Result, at, sha256};
use crate::types::{PullProgress, PullProgressFn, RegistryAuth};

/// Attempts at one transfer.
const ATTEMPTS: u32 = 4;
/// Layers fetched at the same time.
const PARALLEL: usize = 3;
/// Documents larger than this are refused.
const MAX_DOCUMENT: usize = 8 << 20;

/// How registries are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// `host` or `host:port` that may be spoken to over plain HTTP. Loopback always may.
    pub insecure: BTreeSet<String>,
    /// Certificate authorities (PEM files) trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
}

/// A client for all registries.
pub struct Registry {
    http: Http,
    insecure: BTreeSet<String>,
    pulls: Mutex<std::collections::HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// One pull: where from, as whom.
struct Session<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    credentials: Option<&'a RegistryAuth>,
    /// `https://host` or `http://host`.
    base: String,
    authorization: tokio::sync::Mutex<Option<String>>,
}

impl Registry {
    /// A client; fails when a certificate authority file cannot be read.
    pub fn new(config: &RegistryConfig) -> Result<Self> {
        Ok(Self {
            http: Http::new(&config.ca_files)?,
            insecure: config.insecure.clone(),
            pulls: Mutex::default(),
        })
    }

    /// Fetches `reference` into `store`; returns the image's id.
    pub async fn pull(
        &self,
        store: &Arc<ImageStore>,
        reference: &Reference,
        credentials: Option<&RegistryAuth>,
        progress: Option<PullProgressFn>,
    ) -> Result<String> {
        // Twenty Pods of one new image pull it once.
        let one_at_a_time = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            pulls.retain(|_, lock| Arc::strong_count(lock) > 1);
            pulls.entry(reference.to_string()).or_default().clone()
        };
        let _guard = one_at_a_time.lock().await;
        let session = self.session(reference, credentials).await?;
        session.pull(store, progress).await
    }

    fn may_be_plain(&self, registry: &str) -> bool {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback || bare == "localhost" || self.insecure.contains(registry) || self.insecure.contains(host)
    }

    /// Finds out how to speak to the registry.
    async fn session<'a>(
        &'a self,
        reference: &'a Reference,
        credentials: Option<&'a RegistryAuth>,
    ) -> Result<Session<'a>> {
        let host = match reference.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let mut session = Session {
            registry: self,
            reference,
            credentials,
            base: format!("https://{host}"),
            authorization: tokio::sync::Mutex::default(),
        };
        if self.may_be_plain(&reference.registry) {
            let ping = self.http.get(&format!("https://{host}/v2/"), &[]).await;
            if ping.is_err() {
                session.base = format!("http://{host}");
            }
        }
        Ok(session)
    }
}

impl Session<'_> {
    fn refused(&self, why: impl Into<String>) -> ImageError {
        ImageError::Refused {
            image: self.reference.to_string(),
            why: why.into(),
        }
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> ImageError {
        ImageError::Unreachable {
            image: self.reference.to_string(),
            registry: self.reference.registry.clone(),
            why: why.to_string(),
        }
    }

    /// GET with authentication: asked for once, then remembered.
    async fn get(&self, path: &str, headers: &[(header::HeaderName, String)]) -> Result<Reply> {
        let url = format!("{}/v2/{}/{path}", self.base, self.reference.repository);
        let mut retried = false;
        loop {
            let mut headers = headers.to_vec();
            let known = self.authorization.lock().await.clone();
            if let Some(value) = &known {
                headers.push((header::AUTHORIZATION, value.clone()));
            }
            let reply = self.registry.http.get(&url, &headers).await;
            let reply = reply.map_err(|error| self.unreachable(error))?;
            if reply.status() != StatusCode::UNAUTHORIZED || retried {
                return self.check(reply).await;
            }
            retried = true;
            let challenge = auth::Challenge::of(reply.headers())
                .ok_or_else(|| self.refused("the registry asks for an unknown authentication"))?;
            let mut authorization = self.authorization.lock().await;
            // Another transfer of this pull may have been faster.
            if *authorization == known {
                *authorization = Some(self.authorize(&challenge).await?);
            }
        }
    }

    async fn authorize(&self, challenge: &auth::Challenge) -> Result<String> {
        if self.base.starts_with("https:") && challenge.is_plain() {
            return Err(self.refused("the registry names a token service without TLS"));
        }
        let scope = format!("repository:{}:pull", self.reference.repository);
        let answer = challenge.answer(&self.registry.http, self.credentials, &scope).await;
        answer.map_err(|why| self.refused(why))
    }

    /// Turns refusals of the registry into words.
    async fn check(&self, reply: Reply) -> Result<Reply> {
        let status = reply.status();
        if status.is_success() {
            return Ok(reply);
        }
        let said = http::collect(reply.into_body(), 64 << 10).await.unwrap_or_default();
        let said = serde_json::from_slice::<serde_json::Value>(&said)
            .ok()
            .and_then(|v| v.pointer("/errors/0/message")?.as_str().map(str::to_owned))
            .map(|message| format!(" ({message})"))
            .unwrap_or_default();
        let why = match status {
            StatusCode::NOT_FOUND => format!("not found in the registry{said}"),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
                "authorization failed: the repository does not exist or needs other credentials; \
                 check the image name and the Pod's imagePullSecrets{said}"
            ),
            StatusCode::TOO_MANY_REQUESTS => {
                format!("the registry's request limit is reached; try later or log in{said}")
            }
            other => format!("the registry answered {other}{said}"),
        };
        Err(self.refused(why))
    }

    /// A manifest or index; returns its digest and bytes.
    async fn document(&self, wanted: &str) -> Result<(String, Vec<u8>)> {
        let accept = (header::ACCEPT, manifest::ACCEPT.to_owned());
        let reply = self.get(&format!("manifests/{wanted}"), &[accept]).await?;
        let bytes = http::collect(reply.into_body(), MAX_DOCUMENT).await;
        let bytes = bytes.map_err(|error| self.unreachable(error))?;
        let actual = sha256(&bytes);
        if is_digest(wanted) && actual != wanted {
            return Err(ImageError::Digest {
                expected: wanted.into(),
                actual,
            });
        }
        Ok((actual, bytes))
    }

    async fn pull(&self, store: &Arc<ImageStore>, told: Option<PullProgressFn>) -> Result<String> {
        let (digest, bytes) = self.document(self.reference.wanted()).await?;
        let mut document: Document = manifest::parse(&bytes, "the image's manifest")?;
        for _ in 0..4 {
            let Some(manifests) = &document.manifests else { break };
            let chosen = manifest::select(manifests)?.checked_digest()?.to_owned();
            let (_, bytes) = self.document(&chosen).await?;
            document = manifest::parse(&bytes, "the image's manifest")?;
        }
        let Some(config) = &document.config else {
            return Err(self.refused("its manifest has no configuration (schema 1 is not known)"));
        };
        let config_path = self.blob(store, config, &mut |_| {}).await?;
        let config_bytes = std::fs::read(&config_path).map_err(at(&config_path))?;
        std::fs::remove_file(&config_path).map_err(at(&config_path))?;
        let config_file: ConfigFile = manifest::parse(&config_bytes, "the image's configuration")?;
        let chain = Arc::new(config_file.chain_ids()?);
        if chain.len() != document.layers.len() {
            return Err(self.refused("its configuration and its manifest disagree on the layers"));
        }
        self.layers(store, &document, &chain, &config_file.rootfs.diff_ids, told)
            .await?;
        let new = NewImage {
            id: sha256(&config_bytes),
            tags: self.reference.tagged().into_iter().collect(),
            digests: vec![format!("{}@{digest}", self.reference.name())],
            manifest_digest: None,
            layers: chain.to_vec(),
            config: config_file.image_config(),
        };
        let store = store.clone();
        let added = tokio::task::spawn_blocking(move || store.add(vec![new])).await;
        let ids = added.map_err(|error| ImageError::Invalid(error.to_string()))??;
        ids.into_iter()
            .next()
            .ok_or_else(|| ImageError::NotFound(self.reference.to_string()))
    }

    /// Fetches missing layers side by side and unpacks them in order as they arrive.
    async fn layers(
        &self,
        store: &Arc<ImageStore>,
        document: &Document,
        chain: &Arc<Vec<String>>,
        diff_ids: &[String],
        told: Option<PullProgressFn>,
    ) -> Result<()> {
        let layers: Vec<(usize, &Descriptor, bool)> = document
            .layers
            .iter()
            .zip(chain.iter())
            .enumerate()
            .map(|(index, (layer, id))| (index, layer, store.has_layer(id)))
            .collect();
        let missing = |l: &&(usize, &Descriptor, bool)| !l.2;
        let state = Mutex::new(PullProgress {
            layers: layers.len(),
            layers_done: layers.iter().filter(|l| l.2).count(),
            bytes: layers.iter().filter(missing).map(|l| l.1.size).sum(),
            bytes_done: 0,
        });
        let moved = |change: &dyn Fn(&mut PullProgress)| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            if let Some(told) = &told {
                told(state.clone());
            }
        };
        moved(&|_| {});
        let diff_ids: Arc<Vec<String>> = Arc::new(diff_ids.to_vec());
        let moved = &moved;
        // Collected first: a closure inside the stream would make this future not `Send`.
        let fetches: Vec<_> = layers
            .iter()
            .filter(missing)
            .map(|&(index, layer, _)| async move {
                let mut count = |bytes: u64| moved(&|p: &mut PullProgress| p.bytes_done += bytes);
                let path = self.blob(store, layer, &mut count).await?;
                Ok::<_, ImageError>((index, path))
            })
            .collect();
        let mut arrived = futures::stream::iter(fetches).buffered(PARALLEL);
        while let Some((index, path)) = arrived.try_next().await? {
            let (store, chain, diff_ids) = (store.clone(), chain.clone(), diff_ids.clone());
            let unpacked = tokio::task::spawn_blocking(move || {
                let open = || File::open(&path).map_err(at(&path));
                let result = store.unpack(index, &chain, &diff_ids, open);
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => result.and(Err(at(&path)(error))),
                    _ => result,
                }
            });
            unpacked
                .await
                .map_err(|error| ImageError::Invalid(error.to_string()))??;
            moved(&|p: &mut PullProgress| p.layers_done += 1);
        }
        Ok(())
    }

    /// Fetches a blob into a file of its own; verified.
    async fn blob(
        &self,
        store: &Arc<ImageStore>,
        descriptor: &Descriptor,
        count: &mut (dyn FnMut(u64) + Send),
    ) -> Result<PathBuf> {
        let digest = descriptor.checked_digest()?;
        let partial = store.download_path(digest);
        let mut attempt = 0;
        let mut counted = 0;
        loop {
            attempt += 1;
            match self
                .transfer(digest, descriptor.size, &partial, &mut counted, count)
                .await
            {
                Ok(()) => {}
                Err(error @ ImageError::Unreachable { .. }) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, digest, "transfer broken off, goes on");
                    let pause = std::time::Duration::from_millis(200) * 4_u32.pow(attempt - 1);
                    tokio::time::sleep(pause).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let path = partial.clone();
            let hashed = tokio::task::spawn_blocking(move || {
                let mut file = Hashing::new(File::open(&path).map_err(at(&path))?);
                std::io::copy(&mut file, &mut std::io::sink()).map_err(at(&path))?;
                Ok::<_, ImageError>(file.digest())
            });
            let actual = hashed.await.map_err(|error| ImageError::Invalid(error.to_string()))??;
            if actual == digest {
                let done = partial.with_extension(format!("{:08x}", rand::random::<u32>()));
                std::fs::rename(&partial, &done).map_err(at(&partial))?;
                return Ok(done);
            }
            std::fs::remove_file(&partial).map_err(at(&partial))?;
            if attempt >= ATTEMPTS {
                return Err(ImageError::Digest {
                    expected: digest.into(),
                    actual,
                });
            }
        }
    }

    async fn transfer(
        &self,
        digest: &str,
        size: u64,
        partial: &PathBuf,
        counted: &mut u64,
        count: &mut (dyn FnMut(u64) + Send),
    ) -> Result<()> {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(partial)
            .map_err(at(partial))?;
        let have = file.metadata().map_err(at(partial))?.len();
        let mut tell = |position: u64, count: &mut (dyn FnMut(u64) + Send)| {
            if position > *counted {
                count(position - *counted);
                *counted = position;
            }
        };
        if have > 0 && have >= size {
            tell(size, count);
            return Ok(());
        }
        let range = (have > 0).then(|| (header::RANGE, format!("bytes={have}-")));
        let headers: Vec<_> = range.into_iter().collect();
        let reply = self.get(&format!("blobs/{digest}"), &headers).await?;
        let mut position = have;
        if reply.status() != StatusCode::PARTIAL_CONTENT {
            file.set_len(0).map_err(at(partial))?;
            position = 0;
        }
        let mut body = reply.into_body();
        loop {
            let frame = tokio::time::timeout(http::IDLE, body.frame()).await;
            let frame = frame.map_err(|_| self.unreachable("the transfer stood still"))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| self.unreachable(error))?;
            let Ok(data) = frame.into_data() else { continue };
            position += data.len() as u64;
            if size > 0 && position > size {
                drop(file);
                std::fs::remove_file(partial).map_err(at(partial))?;
                return Err(self.refused(format!(
                    "blob {digest} is longer than the {size} bytes its manifest says"
                )));
            }
            file.write_all(&data).map_err(at(partial))?;
            tell(position, count);
        }
        if position < size {
            return Err(self.unreachable("the transfer ended early"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
