//! Images: references, credentials, progress, and what is known of a present image.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::StringMap;

/// Credentials for a registry. Never logged: `Debug` hides the secrets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryAuth {
    /// User name for basic authentication.
    pub username: String,
    /// Password for basic authentication.
    pub password: String,
    /// A refresh token for the registry's token service.
    pub identity_token: String,
    /// A bearer token to send as it is.
    pub registry_token: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How far a pull has come. Sent whenever something moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Layers of the image.
    pub layers: usize,
    /// Layers present and unpacked.
    pub layers_done: usize,
    /// Bytes to fetch in all.
    pub bytes: u64,
    /// Bytes fetched.
    pub bytes_done: u64,
}

/// Called as a pull moves on; must not block.
pub type PullProgressFn = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// A present image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// Digest of the configuration, `sha256:…`.
    pub id: String,
    /// Names with a tag, normalized (`docker.io/library/nginx:1.27`).
    pub repo_tags: Vec<String>,
    /// Names with the manifest's digest.
    pub repo_digests: Vec<String>,
    /// Bytes of the layers as unpacked.
    pub size: u64,
    /// The numeric user the image runs as, when its configuration says a number.
    pub uid: Option<i64>,
    /// The user's name, when it says a name.
    pub username: String,
    /// Whether garbage collection must leave it.
    pub pinned: bool,
    /// What containers of it run by default.
    pub config: ImageConfig,
}

/// The part of an image's configuration that containers inherit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Program that `command` replaces.
    pub entrypoint: Vec<String>,
    /// Arguments that `args` replaces.
    pub cmd: Vec<String>,
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// Directory to start in.
    pub working_dir: String,
    /// `user`, `user:group`, numbers or names.
    pub user: String,
    /// Signal that asks it to stop, `SIGTERM` when empty.
    pub stop_signal: String,
    /// Paths the image wants on volumes.
    pub volumes: Vec<String>,
    /// `80/tcp` entries.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: StringMap,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`.
    pub os: String,
}
