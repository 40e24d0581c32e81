//! The way to one extender: HTTP with kept connections, TLS as configured, bounded answers, errors in Go's words.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client as HyperClient};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;

use crate::config;

/// An answer about tens of thousands of nodes with all they have fits in.
const LARGEST: usize = 256 << 20;

/// Why an extender cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ExtenderError {
    #[error("extender {url}: cannot read {path}: {source}")]
    Read {
        url: String,
        path: String,
        source: std::io::Error,
    },
    #[error("extender {url}: {why}")]
    Tls { url: String, why: String },
}

pub struct Client {
    prefix: String,
    timeout: Duration,
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    pub fn new(config: &config::Extender) -> Result<Client, ExtenderError> {
        let refused = |why: String| ExtenderError::Tls {
            url: config.url_prefix.clone(),
            why,
        };
        let tls = tls(config)?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let name = config.tls.as_ref().map_or("", |tls| &tls.server_name);
        let connector = if name.is_empty() {
            builder.enable_http1().wrap_connector(connector)
        } else {
            let name = ServerName::try_from(name.to_owned())
                .map_err(|error| refused(format!("tlsConfig.serverName {name:?}: {error}")))?;
            let resolver = FixedServerNameResolver::new(name);
            builder
                .with_server_name_resolver(resolver)
                .enable_http1()
                .wrap_connector(connector)
        };
        Ok(Client {
            prefix: config.url_prefix.trim_end_matches('/').to_owned(),
            timeout: config.timeout,
            http: HyperClient::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(Duration::from_secs(90))
                .build(connector),
        })
    }

    /// Posts a document; its answer.
    pub async fn send(&self, verb: &str, document: &Value) -> Result<Value, String> {
        let url = format!("{}/{verb}", self.prefix);
        let failed = |why: String| format!("Post {url:?}: {why}");
        let exchange = async {
            let uri: Uri = url.parse().map_err(|error| failed(format!("{error}")))?;
            let host = uri.authority().map(ToString::to_string).unwrap_or_default();
            let request = Request::post(uri)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(document.to_string())))
                .map_err(|error| failed(error.to_string()))?;
            let response = self
                .http
                .request(request)
                .await
                .map_err(|error| failed(cause(&error, &host)))?;
            if response.status() != http::StatusCode::OK {
                let code = response.status().as_u16();
                return Err(format!("failed {verb} with extender at URL {url}, code {code}"));
            }
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
            // What follows the document is nobody's business, as in Go.
            let mut documents = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
            match documents.next() {
                Some(read) => read.map_err(|error| format!("the extender's answer is not JSON: {error}")),
                None => Err("EOF".into()),
            }
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failed(
                "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
            )),
        }
    }
}

/// What lies at the bottom of a failed request.
fn cause(error: &legacy::Error, host: &str) -> String {
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(std::io::ErrorKind::ConnectionRefused) => format!("dial tcp {host}: connect: connection refused"),
        Some(std::io::ErrorKind::ConnectionReset) => "read: connection reset by peer".into(),
        _ => cause.to_string(),
    }
}

/// Whom to believe, and who we are.
fn tls(config: &config::Extender) -> Result<ClientConfig, ExtenderError> {
    let refused = |why: String| ExtenderError::Tls {
        url: config.url_prefix.clone(),
        why,
    };
    let said = config.tls.clone().unwrap_or_default();
    let read = |data: Vec<u8>, path: &str| match (data.is_empty(), path.is_empty()) {
        (true, false) => std::fs::read(Path::new(path)).map_err(|source| ExtenderError::Read {
            url: config.url_prefix.clone(),
            path: path.to_owned(),
            source,
        }),
        _ => Ok(data),
    };
    let authority = read(said.ca_data, &said.ca_file)?;
    let (certificate, key) = (
        read(said.cert_data, &said.cert_file)?,
        read(said.key_data, &said.key_file)?,
    );
    if said.insecure && !authority.is_empty() {
        return Err(refused(
            "specifying a root certificates file with the insecure flag is not allowed".into(),
        ));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?;
    // Without an authority `enableHTTPS` means encryption only: upstream's rule.
    let builder = if said.insecure || (config.https && authority.is_empty()) {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        let mut roots = RootCertStore::empty();
        if authority.is_empty() {
            if config.url_prefix.starts_with("https:") {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        } else {
            for certificate in CertificateDer::pem_slice_iter(&authority) {
                let certificate = certificate.map_err(|error| refused(format!("its authority: {error}")))?;
                roots
                    .add(certificate)
                    .map_err(|error| refused(format!("its authority: {error}")))?;
            }
            if roots.is_empty() {
                return Err(refused(
                    "its authority: unable to load root certificates: no certificate in it".into(),
                ));
            }
        }
        builder.with_root_certificates(roots)
    };
    match (certificate.is_empty(), key.is_empty()) {
        (true, true) => Ok(builder.with_no_client_auth()),
        (false, false) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
            let chain = chain.map_err(|error| refused(format!("our certificate for it: {error}")))?;
            let key =
                PrivateKeyDer::from_pem_slice(&key).map_err(|error| refused(format!("our key for it: {error}")))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| refused(format!("our certificate for it: {error}")))
        }
        _ => Err(refused("a certificate needs its key and a key its certificate".into())),
    }
}

/// Believes anybody, where the configuration asks for that; signatures are checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
