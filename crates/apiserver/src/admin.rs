//! What only the cluster's administrators ask of a server, below `/sampan/v1/`: a backup of the store, its move to etcd,
//! and the renewal and replacement of certificates. Authorized like any path that is no resource: nobody but `system:masters` may, unless a role says so.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use sampan_api::status::Status;
use sampan_store::backup::Backup;
use sampan_store::etcd;
use sampan_tasks::OnExit;
use serde::Deserialize;
use serde_json::Value;

use crate::body::{Body, BoxError};
use crate::control_plane::ControlPlane;
use crate::dispatch::Incoming;
use crate::registry::reply::response;
use crate::registry::store_failure;
use crate::{Refusal, refuse};

pub const ROOT: &str = "/sampan/v1/";
/// A wish is a few file names.
const MAX_WISH: usize = 64 << 10;

/// Where a store is to be moved.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wish {
    servers: Vec<String>,
    prefix: String,
    force: bool,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

pub async fn serve(plane: &Arc<ControlPlane>, incoming: Incoming) -> Result<Response<Body>, Refusal> {
    let what = incoming.info.path.strip_prefix(ROOT).unwrap_or_default();
    match (&incoming.parts.method, what) {
        (&Method::GET, "backup") => backup(plane).await,
        (&Method::POST, "migrate") => migrate(plane, incoming.body).await,
        (&Method::GET, "certificates") => certificates(plane, None).await,
        (&Method::POST, "certificates") => certificates(plane, Some(incoming.body)).await,
        _ => Err(refuse(Status::no_such_path())),
    }
}

/// Whoever keeps the cluster's keys; see [`ControlPlane::look_after_certificates`].
#[async_trait]
pub trait Certificates: Send + Sync {
    /// How far replacements are, and who is behind.
    async fn status(&self) -> Result<Value, AdminError>;
    /// Does what is asked; the answer says what was done.
    async fn wish(&self, wish: Value) -> Result<Value, AdminError>;
}

/// Why a wish was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It makes no sense.
    #[error("{0}")]
    Bad(String),
    /// It cannot be now.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Internal(String),
}

impl AdminError {
    pub fn internal(error: impl std::fmt::Display) -> Self {
        AdminError::Internal(error.to_string())
    }
}

async fn certificates(plane: &Arc<ControlPlane>, wish: Option<Body>) -> Result<Response<Body>, Refusal> {
    let keeper = plane.certificates.get().ok_or_else(|| refuse(Status::no_such_path()))?;
    let answer = match wish {
        None => keeper.status().await,
        Some(body) => keeper.wish(read(body).await?).await,
    };
    let answer = answer.map_err(|error| {
        refuse(match error {
            AdminError::Bad(why) => Status::bad_request(why),
            AdminError::Refused(why) => Status::new(409, "Conflict", why),
            AdminError::Internal(why) => Status::internal(why),
        })
    })?;
    Ok(response(200, "application/json", answer.to_string()))
}

/// A wish is small.
async fn read<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let body = Limited::new(body, MAX_WISH)
        .collect()
        .await
        .map_err(|error| refuse(Status::bad_request(error.to_string())))?
        .to_bytes();
    serde_json::from_slice(&body).map_err(|error| refuse(Status::bad_request(error.to_string())))
}

async fn backup(plane: &Arc<ControlPlane>) -> Result<Response<Body>, Refusal> {
    let store = plane.registry.cache.store();
    // As it is on the disk: what is encrypted there stays so.
    let backup = Backup::of(&**store.below().unwrap_or(store))
        .await
        .map_err(store_failure)?;
    let encoded = tokio::task::spawn_blocking(move || {
        let mut file = Vec::new();
        backup.write(&mut file).map(|()| file)
    });
    let file = encoded
        .await
        .map_err(|error| refuse(Status::internal(error)))?
        .map_err(|error| refuse(Status::internal(error)))?;
    Ok(response(200, "application/octet-stream", file))
}

/// Answers with lines that say how far it is; the last begins with "moved" or "error".
async fn migrate(plane: &Arc<ControlPlane>, body: Body) -> Result<Response<Body>, Refusal> {
    let wish: Wish = read(body).await?;
    let options = etcd::Options {
        servers: wish.servers,
        ca_file: wish.ca_file,
        cert_file: wish.cert_file,
        key_file: wish.key_file,
        prefix: wish.prefix,
    };
    let store = plane.registry.cache.store().clone();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    // A task of its own: the move goes on when whoever asked goes away.
    plane.tasks.spawn("move-store", OnExit::Expected, async move {
        if let Err(error) = store.move_to(&options, wish.force, &tell).await {
            tracing::error!(%error, "the store could not be moved");
            // Nobody may be listening any more.
            drop(tell.send(format!("error: {error}")));
        }
    });
    let lines = futures::stream::unfold(told, |mut told| async move {
        let line = told.recv().await?;
        Some((Ok::<_, BoxError>(Frame::data(Bytes::from(line + "\n"))), told))
    });
    let mut answer = Response::new(Body::wrap(StreamBody::new(lines)));
    answer.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    Ok(answer)
}
