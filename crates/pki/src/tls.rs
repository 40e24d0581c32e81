//! TLS configurations, and the verification of client certificates.
//!
//! A server asks for a client certificate but does not fail the handshake over a bad one: as upstream, the
//! request then has no user (401), which a client can show, where a broken handshake tells it nothing. So the
//! handshake proves only possession of the key; [`ClientVerifier::verify`] decides whether to believe the chain,
//! and must be asked before a certificate names anyone.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::cert::{Facts, Identity, Subject, parse_chain};

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificate authority cannot be used: {0}")]
    Authority(String),
    #[error("cannot use the certificate or its key: {0}")]
    Identity(rustls::Error),
}

/// The one cryptography provider of the process. `main` may also install it as rustls' default for crates that ask for that.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(authority.clone())
        .map_err(|error| TlsError::Authority(error.to_string()))?;
    Ok(Arc::new(roots))
}

/// Decides whether a client's certificate chain is to be believed.
#[derive(Clone, Debug)]
pub struct ClientVerifier(Arc<dyn ClientCertVerifier>, Arc<[DistinguishedName]>);

impl ClientVerifier {
    /// Believes chains that end at `authority`.
    pub fn new(authority: &CertificateDer<'static>) -> Result<Self, TlsError> {
        Self::of_roots(roots(authority)?)
    }

    /// Believes chains that end at one of the authorities of a PEM bundle.
    pub fn of_bundle(pem: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let unusable = |error: &dyn std::fmt::Display| TlsError::Authority(error.to_string());
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
        Self::of_roots(Arc::new(roots))
    }

    fn of_roots(roots: Arc<RootCertStore>) -> Result<Self, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| TlsError::Authority(error.to_string()))?;
        let hints = verifier.root_hint_subjects().into();
        Ok(ClientVerifier(verifier, hints))
    }

    /// In a handshake, asks also for certificates of another verifier's authorities. Whom this one believes stays as it is.
    pub fn asking_also_for(mut self, other: &ClientVerifier) -> Self {
        self.1 = self.1.iter().chain(other.1.iter()).cloned().collect();
        self
    }

    /// Whom the chain (leaf first) names, if it is valid now and for a client.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Subject, String> {
        let (leaf, intermediates) = chain.split_first().ok_or("no certificate was sent")?;
        self.0
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|error| error.to_string())?;
        Subject::of(leaf)
    }
}

/// Asks for a certificate, and takes any whose owner has its key.
#[derive(Debug)]
struct AskOnly(ClientVerifier);

impl ClientCertVerifier for AskOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0.1
    }
    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.0.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.0.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.0.supported_verify_schemes()
    }
}

/// The certificate a server shows. It may be replaced while the server runs; as long as there is none handshakes fail.
#[derive(Debug, Default)]
pub struct ServingCertificate(RwLock<Option<Arc<CertifiedKey>>>);

impl ServingCertificate {
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        let certificate = Self::default();
        certificate.set(identity.chain(), identity)?;
        Ok(certificate)
    }

    /// Shows `identity` from the next handshake on.
    pub fn replace(&self, identity: &Identity) -> Result<(), TlsError> {
        self.set(identity.chain(), identity)
    }

    fn set(&self, chain: Vec<CertificateDer<'static>>, identity: &Identity) -> Result<(), TlsError> {
        let key = CertifiedKey::from_der(chain, identity.key(), &provider()).map_err(TlsError::Identity)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn server(
    certificate: Arc<ServingCertificate>,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Identity)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A server that asks clients for a certificate; h2 and HTTP/1.1. The chain of a connection must go through
/// [`ClientVerifier::verify`] before it is believed.
pub fn server_config(identity: &Identity, verifier: &ClientVerifier) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_of(Arc::new(ServingCertificate::new(identity)?), verifier)
}

/// The same with a certificate that changes.
pub fn server_config_of(
    certificate: Arc<ServingCertificate>,
    verifier: &ClientVerifier,
) -> Result<Arc<ServerConfig>, TlsError> {
    server(certificate, Arc::new(AskOnly(verifier.clone())))
}

/// The same, and it shows its authority's certificate too, so that who knows only that one's fingerprint can check it
/// ([`pinned_client`]).
pub fn server_config_with_authority(
    identity: &Identity,
    authority: &CertificateDer<'static>,
    verifier: &ClientVerifier,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut chain = identity.chain();
    chain.push(authority.clone());
    let certificate = ServingCertificate::default();
    certificate.set(chain, identity)?;
    server(Arc::new(certificate), Arc::new(AskOnly(verifier.clone())))
}

/// A server that talks only to clients with a certificate of the authority.
pub fn strict_server_config(identity: &Identity, verifier: &ClientVerifier) -> Result<Arc<ServerConfig>, TlsError> {
    server(Arc::new(ServingCertificate::new(identity)?), verifier.0.clone())
}

/// SHA-256 of the public key of a certificate: how an authority is named where its certificate is too long to type
/// (kubeadm's `--discovery-token-ca-cert-hash` without its prefix).
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Result<[u8; 32], TlsError> {
    let facts = Facts::of(certificate).map_err(TlsError::Authority)?;
    Ok(Sha256::digest(&facts.public_key).into())
}

/// The same of the first certificate of a PEM text.
pub fn fingerprint_of_pem(pem: &str) -> Result<[u8; 32], TlsError> {
    fingerprint(&authority_of_pem(pem)?)
}

/// The first certificate of a PEM text.
pub fn authority_of_pem(pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    parse_chain(pem)
        .map(|mut chain| chain.swap_remove(0))
        .map_err(TlsError::Authority)
}

/// Believes a server whose chain holds the authority with a known fingerprint, and keeps that authority.
#[derive(Debug)]
pub struct Pinned {
    fingerprint: [u8; 32],
    authority: Mutex<Option<CertificateDer<'static>>>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// The authority, after a handshake; as PEM.
    pub fn authority(&self) -> Option<String> {
        let authority = self.authority.lock().unwrap_or_else(PoisonError::into_inner);
        authority.as_ref().map(|der| crate::request::certificate_pem(der))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_pinned = |der: &&CertificateDer<'_>| fingerprint(der).is_ok_and(|have| have == self.fingerprint);
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let authority = others.iter().find(is_pinned).ok_or_else(unknown)?.clone().into_owned();
        let roots = roots(&authority).map_err(|error| rustls::Error::General(error.to_string()))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(leaf, others, name, ocsp, now)?;
        *self.authority.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority);
        Ok(verified)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A client for one purpose: to learn the authority of a server by its fingerprint.
pub fn pinned_client(fingerprint: [u8; 32]) -> Result<(Arc<ClientConfig>, Arc<Pinned>), TlsError> {
    let pinned = Arc::new(Pinned {
        fingerprint,
        authority: Mutex::default(),
        provider: provider(),
    });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Identity)?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    Ok((Arc::new(config), pinned))
}

/// A client that trusts only `authority`, with a certificate of its own if given. `alpn` such as `&["h2", "http/1.1"]`.
pub fn client_config(
    authority: &CertificateDer<'static>,
    identity: Option<&Identity>,
    alpn: &[&str],
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Identity)?
        .with_root_certificates(roots(authority)?);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain(), identity.key())
            .map_err(TlsError::Identity)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LeafSpec, Params, Pki};
    use rustls::{ClientConnection, ServerConnection};
    use std::io::{Read, Write};

    /// Shakes hands in memory; returns the certificates the server saw.
    fn handshake(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    ) -> Result<Option<Vec<CertificateDer<'static>>>, String> {
        let mut client = ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().map_err(|e| e.to_string())?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().map_err(|e| e.to_string())?;
        }
        client.writer().write_all(b"hello").unwrap();
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().map_err(|e| e.to_string())?;
        let mut hello = [0; 5];
        server.reader().read_exact(&mut hello).unwrap();
        Ok(server
            .peer_certificates()
            .map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect()))
    }

    #[test]
    fn only_a_chain_of_our_authority_names_a_user() {
        let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pki = Pki::load_or_create(home.path(), Params::default()).unwrap();
        let foreign = Pki::load_or_create(away.path(), Params::default()).unwrap();
        let verifier = ClientVerifier::new(pki.ca()).unwrap();
        let asking = server_config(pki.serving(), &verifier).unwrap();
        let strict = strict_server_config(pki.serving(), &verifier).unwrap();
        let admin = pki.admin_client().unwrap();
        let intruder = foreign.admin_client().unwrap();
        let client = |identity| client_config(pki.ca(), identity, &["h2"]).unwrap();

        let chain = handshake(client(Some(&admin)), asking.clone()).unwrap().unwrap();
        let subject = verifier.verify(&chain).unwrap();
        assert_eq!(subject.common_name, "kubernetes-admin");
        assert_eq!(subject.organizations, ["system:masters"]);

        let chain = handshake(client(Some(&intruder)), asking.clone()).unwrap().unwrap();
        assert!(verifier.verify(&chain).is_err());
        assert_eq!(handshake(client(None), asking).unwrap(), None);

        assert!(handshake(client(Some(&admin)), strict.clone()).is_ok());
        assert!(handshake(client(Some(&intruder)), strict.clone()).is_err());
        assert!(handshake(client(None), strict).is_err());
        // A server's certificate does not make a client.
        assert!(verifier.verify(&pki.serving().chain()).is_err());
        assert!(verifier.verify(&[]).is_err());
        // And a client does not take a foreign server for ours.
        let impostor = server_config(foreign.serving(), &verifier).unwrap();
        assert!(handshake(client(None), impostor).is_err());
    }

    #[test]
    fn an_authority_is_known_by_its_fingerprint() {
        let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pki = Pki::load_or_create(home.path(), Params::default()).unwrap();
        let foreign = Pki::load_or_create(away.path(), Params::default()).unwrap();
        let verifier = ClientVerifier::new(pki.ca()).unwrap();
        let server = server_config_with_authority(pki.serving(), pki.ca(), &verifier).unwrap();
        let (client, pinned) = pinned_client(fingerprint(pki.ca()).unwrap()).unwrap();
        assert_eq!(pinned.authority(), None);
        handshake(client.clone(), server.clone()).unwrap();
        assert_eq!(pinned.authority().as_deref(), Some(pki.ca_pem()));
        // Another cluster, and one that shows our authority's certificate without being ours.
        let impostor = server_config_with_authority(foreign.serving(), foreign.ca(), &verifier).unwrap();
        assert!(handshake(client.clone(), impostor).is_err());
        let liar = server_config_with_authority(foreign.serving(), pki.ca(), &verifier).unwrap();
        assert!(handshake(client.clone(), liar).is_err());
        // Who trusts the authority anyway is not disturbed by seeing it.
        let usual = client_config(pki.ca(), None, &["h2"]).unwrap();
        assert!(handshake(usual, server).is_ok());
    }

    #[test]
    fn a_serving_certificate_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(dir.path(), Params::default()).unwrap();
        let verifier = ClientVerifier::new(pki.ca()).unwrap();
        let certificate = Arc::new(ServingCertificate::default());
        let server = server_config_of(certificate.clone(), &verifier).unwrap();
        let client = client_config(pki.ca(), Some(pki.kubelet_client()), &[]).unwrap();
        assert!(handshake(client.clone(), server.clone()).is_err(), "there is none yet");
        for _ in 0..2 {
            certificate
                .replace(&pki.node_serving("localhost", &[]).unwrap())
                .unwrap();
            assert!(handshake(client.clone(), server.clone()).is_ok());
        }
    }

    #[test]
    fn a_node_has_both_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(dir.path(), Params::default()).unwrap();
        let verifier = ClientVerifier::new(pki.ca()).unwrap();
        let subject = verifier.verify(&pki.node_client("n1").unwrap().chain()).unwrap();
        assert_eq!(subject.common_name, "system:node:n1");
        assert_eq!(subject.organizations, ["system:nodes"]);
        let serving = pki.node_serving("n1", &["192.0.2.1".parse().unwrap()]).unwrap();
        let server = strict_server_config(&serving, &verifier).unwrap();
        let client = client_config(pki.ca(), Some(pki.kubelet_client()), &[]).unwrap();
        assert!(handshake(client, server).is_ok());
        let both = LeafSpec {
            usage: crate::Usage::Both,
            ..LeafSpec::client("peer", None)
        };
        assert!(verifier.verify(&pki.issue(&both).unwrap().chain()).is_ok());
    }
}
