//! The one way the API server calls other people's HTTPS servers: webhooks, conversions, aggregated APIs.
//!
//! [`Outbound::peer`] turns a place (a Service or a host), whom to trust, and who we are into a [`Peer`]. Equal
//! specifications share one peer, and with it its connections. A peer finds its addresses at every call:
//! endpoints of a Service come from the watch cache, so nothing here needs the service proxy, and an endpoint
//! that is gone is not talked to again over an old connection.
//!
//! Everything has a bound: connecting and answering by the caller's deadline, answers by a size. Errors read as
//! Go's clients print them, because people and tools match on those words.
//!
//! Where it differs from upstream: HTTP/1.1 only (upstream does so for webhooks, to spread calls over the
//! endpoints; here also for aggregated APIs); redirects are never followed; if an endpoint refuses the
//! connection, the next one is tried.

mod credentials;
mod error;
mod hook;
pub mod kubeconfig;
mod peer;
mod resolve;
mod tls;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use rustls::RootCertStore;
use sampan_pki::Identity;
use sampan_tasks::Tasks;

pub use credentials::{Credentials, User};
pub use error::Error;
pub use hook::{CallError, Hook};
pub use kubeconfig::KubeconfigError;
pub use peer::{Answer, Exchange, Peer, Stream};

use crate::admission::{Reader, WeakReader};
use crate::sync::lock;

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Service { namespace: String, name: String, port: u16 },
    Host { host: String, port: u16 },
}

impl Place {
    /// The place of an `https` URL, and its path with the query.
    pub fn of_url(url: &str) -> Result<(Place, String), Error> {
        let parsed: http::Uri = url
            .parse()
            .map_err(|error| Error::Unusable(format!("Unparsable URL: {error}")))?;
        if parsed.scheme_str() != Some("https") {
            return Err(Error::Unusable(format!(
                "'https' is the only allowed URL scheme: {url}"
            )));
        }
        let host = parsed.host().unwrap_or_default();
        if host.is_empty() {
            return Err(Error::Unusable(format!("the URL names no host: {url}")));
        }
        let path = parsed.path_and_query().map_or("/", |path| path.as_str());
        let place = Place::Host {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: parsed.port_u16().unwrap_or(443),
        };
        Ok((place, path.to_owned()))
    }

    /// The name its certificate must carry.
    pub fn server_name(&self) -> String {
        match self {
            Place::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
            Place::Host { host, .. } => host.clone(),
        }
    }

    /// `host:port` as requests name it.
    pub fn authority(&self) -> String {
        let port = match self {
            Place::Service { port, .. } | Place::Host { port, .. } => port,
        };
        let name = self.server_name();
        if name.contains(':') {
            format!("[{name}]:{port}")
        } else {
            format!("{name}:{port}")
        }
    }
}

/// Whose certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// PEM. Empty: what the machine trusts.
    Bundle(Vec<u8>),
    /// `insecureSkipTLSVerify`
    Anyone,
}

/// Everything that makes two peers the same.
#[derive(Clone)]
pub struct Spec {
    pub place: Place,
    pub trust: Trust,
    /// Our own certificate, if the other side shall know us by it.
    pub identity: Option<Identity>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key(Place, Trust, Option<String>);

/// TLS with whoever answers: for Pods behind a proxy path, whose certificates nobody could verify.
pub fn unverified() -> Result<Arc<rustls::ClientConfig>, Error> {
    tls::config(&Trust::Anyone, None, || Arc::new(RootCertStore::empty()))
}

/// Makes peers. Cheap to clone.
#[derive(Clone)]
pub struct Outbound(Arc<Shared>);

struct Shared {
    reader: WeakReader,
    tasks: Tasks,
    peers: Mutex<HashMap<Key, Weak<Peer>>>,
    system: OnceLock<Arc<RootCertStore>>,
}

impl Outbound {
    pub fn new(reader: &Reader, tasks: &Tasks) -> Self {
        Outbound(Arc::new(Shared {
            reader: reader.weak(),
            tasks: tasks.clone(),
            peers: Mutex::default(),
            system: OnceLock::new(),
        }))
    }

    /// The peer of a specification. Keep it: its connections live as long as somebody does.
    pub fn peer(&self, spec: &Spec) -> Result<Arc<Peer>, Error> {
        let own = spec
            .identity
            .as_ref()
            .map(|identity| identity.certificate_pem().to_owned());
        let key = Key(spec.place.clone(), spec.trust.clone(), own);
        if let Some(known) = lock(&self.0.peers).get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let tls = tls::config(&spec.trust, spec.identity.as_ref(), || self.system_roots())?;
        let peer = Arc::new(Peer::new(
            spec.place.clone(),
            tls,
            self.0.reader.clone(),
            self.0.tasks.clone(),
        )?);
        let mut peers = lock(&self.0.peers);
        peers.retain(|_, peer| peer.strong_count() > 0);
        peers.insert(key, Arc::downgrade(&peer));
        Ok(peer)
    }

    fn system_roots(&self) -> Arc<RootCertStore> {
        self.0
            .system
            .get_or_init(|| {
                let found = rustls_native_certs::load_native_certs();
                for error in &found.errors {
                    tracing::debug!(%error, "a certificate of the machine's trust store is unusable");
                }
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(found.certs);
                Arc::new(roots)
            })
            .clone()
    }
}
