//! What every component is built on: a client over any transport, shared informers, work queues, events.
//!
//! Components meet only at the Kubernetes API. In one process they reach it through [`connect`], which turns the
//! API server's `tower` service into a [`kube::Client`] without sockets; elsewhere through [`from_kubeconfig`].
//! Reads go through one shared [`Informer`] per kind and process; writes go through the component's own client.
//!
//! The pieces, in the order a controller uses them: [`Informers`] → [`WorkQueue`] → [`run_controller`] →
//! [`owner`] / [`Expectations`] / [`slow_start_batch`] → [`Recorder`]; [`leader::run`] around all of it when several
//! processes share a cluster. [`testing`] holds an in-memory API for tests of whatever is built on this crate.

use std::path::Path;

use base64::Engine;
use http::{Request, Response};
use kube::client::Body;
use tower::{BoxError, Service};

mod batch;
mod clock;
mod controller;
mod events;
mod expectations;
pub mod informer;
mod key;
pub mod leader;
pub mod metrics;
pub mod owner;
mod queue;
mod renewable;
mod retry;
pub mod reviews;
pub mod testing;

pub use batch::slow_start_batch;
pub use clock::{Clock, SystemClock};
pub use controller::run_controller;
pub use events::{EventType, Recorder};
pub use expectations::Expectations;
pub use informer::{Cached, Change, Informer, Informers, Selection, Summary};
pub use key::Key;
pub use queue::{Backoff, WorkQueue};
pub use renewable::Renewable;
pub use retry::{
    is_already_exists, is_conflict, is_forbidden, is_gone, is_invalid, is_not_found, is_terminating_namespace,
    or_absent, retry_on_conflict,
};

/// A client over a service in this process: no socket, no TLS; who calls is known to the service.
pub fn connect<S, B>(service: S) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    kube::Client::new(service, "default")
}

/// Why a kubeconfig file did not give a client.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    #[error("cannot use the kubeconfig {path}: {source}; check that the file exists and names a current context")]
    Read {
        path: String,
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("cannot build a client from the kubeconfig {path}: {source}")]
    Client { path: String, source: Box<kube::Error> },
}

/// A client for the current context of a kubeconfig file.
pub async fn from_kubeconfig(path: &Path) -> Result<kube::Client, KubeconfigError> {
    let config = configuration(path).await?;
    kube::Client::try_from(config).map_err(|source| KubeconfigError::Client {
        path: path.display().to_string(),
        source: Box::new(source),
    })
}

/// The same for the text of one.
pub async fn from_kubeconfig_text(text: &str) -> Result<kube::Client, KubeconfigError> {
    let path = "in memory";
    let read = |source| KubeconfigError::Read {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let kubeconfig = kube::config::Kubeconfig::from_yaml(text).map_err(read)?;
    let options = Default::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(read)?;
    kube::Client::try_from(config).map_err(|source| KubeconfigError::Client {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// The authorities that the current context of a kubeconfig file trusts for its server, as PEM, if it names any.
pub async fn authority_of_kubeconfig(path: &Path) -> Result<Option<String>, KubeconfigError> {
    let certificates = configuration(path).await?.root_cert;
    Ok(certificates.map(|certificates| certificates.iter().map(|der| pem(der)).collect()))
}

async fn configuration(path: &Path) -> Result<kube::Config, KubeconfigError> {
    let read = |source| KubeconfigError::Read {
        path: path.display().to_string(),
        source: Box::new(source),
    };
    let kubeconfig = kube::config::Kubeconfig::read_from(path).map_err(read)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .map_err(read)
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, further) = rest.split_at(rest.len().min(64));
        pem += line;
        pem.push('\n');
        rest = further;
    }
    pem + "-----END CERTIFICATE-----\n"
}
