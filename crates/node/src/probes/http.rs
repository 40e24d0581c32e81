//! A small HTTP client for probes and hooks: one connection, one request, no verification of certificates (as
//! upstream: the target is a container that the manifest names), redirects only on the same host.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// What was asked: enough to say it again in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub https: bool,
    pub host: String,
    pub port: u16,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

const BODY_LIMIT: usize = 10 * 1024;

impl Target {
    /// From a manifest's action; `None` when its port names nothing.
    pub fn of(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Option<Self> {
        let path = action.path.as_deref().unwrap_or_default();
        Some(Self {
            https: action.scheme.as_deref() == Some("HTTPS"),
            host: action
                .host
                .clone()
                .filter(|host| !host.is_empty())
                .unwrap_or_else(|| pod_ip.to_owned()),
            port: crate::pod::resolve_port(&action.port, container)?,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
            headers: action
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }
}

/// The answer to a GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub body: String,
    /// It redirects to another host, which is not followed.
    pub redirected_away: bool,
}

/// GETs `target` within `timeout`; follows redirects on the same host. The error is text for an event.
pub async fn get(target: &Target, agent: &str, timeout: Duration) -> Result<Answer, String> {
    let url = target.url();
    match tokio::time::timeout(timeout, follow(target.clone(), agent)).await {
        Ok(result) => result.map_err(|error| format!("Get \"{url}\": {error}")),
        Err(_) => Err(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn follow(mut target: Target, agent: &str) -> Result<Answer, String> {
    for _ in 0..10 {
        let (status, location, body) = once(&target, agent).await?;
        let Some(location) = location.filter(|_| status.is_redirection()) else {
            return Ok(Answer {
                status,
                body,
                redirected_away: false,
            });
        };
        let next: Uri = location
            .parse()
            .map_err(|error| format!("the redirect to {location:?} is no address: {error}"))?;
        if next
            .host()
            .is_some_and(|host| host.trim_matches(['[', ']']) != target.host)
        {
            return Ok(Answer {
                status,
                body,
                redirected_away: true,
            });
        }
        if let Some(scheme) = next.scheme_str() {
            target.https = scheme == "https";
        }
        if next.host().is_some() {
            let default = if target.https { 443 } else { 80 };
            target.port = next.port_u16().unwrap_or(default);
        }
        target.path = next.path_and_query().map_or("/".into(), |path| path.to_string());
        if !target.path.starts_with('/') {
            target.path.insert(0, '/');
        }
    }
    Err("stopped after 10 redirects".into())
}

type Parts = (StatusCode, Option<String>, String);

async fn once(target: &Target, agent: &str) -> Result<Parts, String> {
    let authority = target.authority();
    let stream = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(|error| dial_error(&authority, &error))?;
    if !target.https {
        return exchange(stream, target, agent).await;
    }
    let name = ServerName::try_from(target.host.clone())
        .map_err(|error| format!("{:?} is no server name: {error}", target.host))?;
    let connector = tokio_rustls::TlsConnector::from(unverified());
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS handshake with {authority}: {error}"))?;
    exchange(stream, target, agent).await
}

/// As Go prints a failed dial, which is what people search for.
pub fn dial_error(authority: &str, error: &std::io::Error) -> String {
    let why = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {authority}: {why}")
}

async fn exchange<S>(stream: S, target: &Target, agent: &str) -> Result<Parts, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = build(target, agent)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        read(response).await
    };
    tokio::pin!(talk);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        result = &mut talk => result,
        // The server may close right after its answer: what arrived is still to be read.
        _closed = &mut connection => talk.await,
    }
}

fn build(target: &Target, agent: &str) -> Result<Request<Empty<Bytes>>, String> {
    let mut builder = Request::get(&target.path);
    let named = |name: &str| {
        let mut all = target.headers.iter();
        all.any(|(have, _)| have.eq_ignore_ascii_case(name))
    };
    if !named("host") {
        builder = builder.header(header::HOST, target.authority());
    }
    if !named("user-agent") {
        builder = builder.header(header::USER_AGENT, agent);
    }
    if !named("accept") {
        builder = builder.header(header::ACCEPT, "*/*");
    }
    builder = builder.header(header::CONNECTION, "close");
    for (name, value) in &target.headers {
        // An empty value is how a manifest asks for the default to be left out.
        if !value.is_empty() {
            builder = builder.header(name, value);
        }
    }
    builder.body(Empty::new()).map_err(|error| error.to_string())
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Parts, String> {
    let status = response.status();
    let location = response
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    // Only the beginning matters, and only for messages.
    let body = match Limited::new(response.into_body(), BODY_LIMIT).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => String::new(),
    };
    Ok((status, location, body))
}

/// Takes any certificate: see the module.
#[derive(Debug)]
struct TakeAny(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn unverified() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(TakeAny(Arc::clone(&provider)));
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = match builder.with_safe_default_protocol_versions() {
        Ok(builder) => builder,
        // The provider supports the default versions: it is the one the library is built with.
        Err(_) => rustls::ClientConfig::builder(),
    };
    Arc::new(
        builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth(),
    )
}
