//! Where volume content comes from: API objects and tokens, behind one trait so that this crate needs no client.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenRequestSpec;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret,
};

use crate::SourceError;

/// A service-account token and when it ends.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub token: String,
    pub expires: Timestamp,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token {{ expires: {} }}", self.expires)
    }
}

/// The API objects that volumes read. `None` means the object does not exist.
#[async_trait]
pub trait Sources: Send + Sync {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, SourceError>;
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, SourceError>;
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError>;
    async fn persistent_volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, SourceError>;
    /// Asks the API server for a token; caching is [`crate::tokens::TokenCache`]'s.
    async fn token(
        &self,
        namespace: &str,
        service_account: &str,
        spec: &TokenRequestSpec,
    ) -> Result<Token, SourceError>;
    /// The PEM bundle a projection selects, `None` when nothing matches.
    async fn trust_bundle(&self, _projection: &ClusterTrustBundleProjection) -> Result<Option<String>, SourceError> {
        Err(SourceError(
            "cluster trust bundles are not served by this cluster".into(),
        ))
    }
}

/// In-memory sources for tests, here and in the node crate.
#[derive(Default)]
pub struct FakeSources {
    pub config_maps: Mutex<BTreeMap<(String, String), ConfigMap>>,
    pub secrets: Mutex<BTreeMap<(String, String), Secret>>,
    pub claims: Mutex<BTreeMap<(String, String), PersistentVolumeClaim>>,
    pub volumes: Mutex<BTreeMap<String, PersistentVolume>>,
    pub tokens_issued: Mutex<Vec<TokenRequestSpec>>,
    pub token_lifetime_seconds: Mutex<i64>,
}

fn key(namespace: &str, name: &str) -> (String, String) {
    (namespace.to_owned(), name.to_owned())
}

fn read<K: Ord, V: Clone>(map: &Mutex<BTreeMap<K, V>>, key: &K) -> Option<Arc<V>> {
    let map = map.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    map.get(key).cloned().map(Arc::new)
}

#[async_trait]
impl Sources for FakeSources {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        Ok(read(&self.config_maps, &key(namespace, name)))
    }
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, SourceError> {
        Ok(read(&self.secrets, &key(namespace, name)))
    }
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError> {
        Ok(read(&self.claims, &key(namespace, name)))
    }
    async fn persistent_volume(&self, name: &str) -> Result<Option<Arc<PersistentVolume>>, SourceError> {
        Ok(read(&self.volumes, &name.to_owned()))
    }
    async fn token(
        &self,
        _namespace: &str,
        service_account: &str,
        spec: &TokenRequestSpec,
    ) -> Result<Token, SourceError> {
        let mut issued = self
            .tokens_issued
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        issued.push(spec.clone());
        let seconds = match *self
            .token_lifetime_seconds
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            0 => spec.expiration_seconds.unwrap_or(3600),
            fixed => fixed,
        };
        Ok(Token {
            token: format!("token-{service_account}-{}", issued.len()),
            expires: Timestamp::now()
                .saturating_add(jiff::SignedDuration::from_secs(seconds))
                .unwrap_or(Timestamp::MAX),
        })
    }
}
