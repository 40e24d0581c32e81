//! HTTP for registries: GET and POST with redirects, TLS by the system's and configured authorities.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::super::{ImageError, Result, at};
use super::connect::{Connector, Proxy};

/// A transfer that stands still for so long is broken.
pub const IDLE: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
const USER_AGENT: &str = concat!("sampan/", env!("CARGO_PKG_VERSION"));

/// A reply whose body has not been read.
pub type Reply = Response<Incoming>;

/// The client. Connections are kept and shared.
pub struct Http(Client<HttpsConnector<Connector>, Full<Bytes>>);

impl Http {
    /// Trusts the system's authorities and those in `ca_files`.
    pub fn new(ca_files: &[PathBuf]) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        for path in ca_files {
            let pem = std::fs::read(path).map_err(at(path))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let bad = |error: &dyn std::fmt::Display| ImageError::Invalid(format!("{}: {error}", path.display()));
                let certificate = certificate.map_err(|error| bad(&error))?;
                roots.add(certificate).map_err(|error| bad(&error))?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ImageError::Invalid(format!("TLS: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let proxy = Proxy::from_env(|name| std::env::var(name).ok()).map_err(ImageError::Invalid)?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(proxy));
        let builder = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        Ok(Self(builder))
    }

    /// GET, following redirects. Credentials do not follow to another host.
    pub async fn get(&self, url: &str, headers: &[(header::HeaderName, String)]) -> Result<Reply, String> {
        let mut url: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        let mut headers = headers.to_vec();
        for _ in 0..MAX_REDIRECTS {
            let reply = self.send(Method::GET, &url, &headers, Bytes::new()).await?;
            if !reply.status().is_redirection() {
                return Ok(reply);
            }
            let next = target(&url, reply.headers())?;
            if next.authority() != url.authority() || next.scheme() != url.scheme() {
                headers.retain(|(name, _)| name != header::AUTHORIZATION);
            }
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(format!("refused to follow a redirect to plain HTTP ({next})"));
            }
            url = next;
        }
        Err("too many redirects".into())
    }

    /// POST of a form.
    pub async fn post_form(&self, url: &str, form: String) -> Result<Reply, String> {
        let url: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
        let kind = "application/x-www-form-urlencoded".to_owned();
        self.send(Method::POST, &url, &[(header::CONTENT_TYPE, kind)], form.into())
            .await
    }

    async fn send(
        &self,
        method: Method,
        url: &Uri,
        headers: &[(header::HeaderName, String)],
        body: Bytes,
    ) -> Result<Reply, String> {
        let mut request = Request::builder().method(method).uri(url);
        request = request.header(header::USER_AGENT, USER_AGENT);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let reply = tokio::time::timeout(IDLE, self.0.request(request)).await;
        let reply = reply.map_err(|_| "no answer within a minute".to_owned())?;
        reply.map_err(|error| chain(&error))
    }
}

fn target(from: &Uri, headers: &HeaderMap) -> Result<Uri, String> {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or("a redirect without a target")?;
    let bad = |error: &dyn std::fmt::Display| format!("redirect to {location:?}: {error}");
    if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = from.clone().into_parts();
        parts.path_and_query = Some(location.parse().map_err(|error| bad(&error))?);
        return Uri::from_parts(parts).map_err(|error| bad(&error));
    }
    location.parse().map_err(|error| bad(&error))
}

/// An error with its causes: hyper's own text says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The whole body, at most `limit` bytes.
pub async fn collect(body: Incoming, limit: usize) -> Result<Vec<u8>, String> {
    let collected = tokio::time::timeout(IDLE, Limited::new(body, limit).collect()).await;
    let collected = collected.map_err(|_| "the answer stood still".to_owned())?;
    Ok(collected.map_err(|error| error.to_string())?.to_bytes().to_vec())
}
