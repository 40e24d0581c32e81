//! TLS configurations, and the verification of client certificates.
//!
//! A server asks for a client certificate but does not fail the handshake over a bad one: as upstream, the
//! request then has no user (401), which a client can show, where a broken handshake tells it nothing. So the
//! handshake proves only possession of the key; [`ClientVerifier::verify`] decides whether to believe the chain,
//! and must be asked before a certificate names anyone.

use std::borrow::Borrow;
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
use crate::present::Present;

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

fn roots<'a>(
    authorities: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.clone())
            .map_err(|error| TlsError::Authority(error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// Decides whether a client's certificate chain is to be believed. Clones share whom they believe.
#[derive(Clone, Debug)]
pub struct ClientVerifier {
    believed: Present<Believed>,
    /// Whose certificates are asked for besides.
    also: Vec<Present<Believed>>,
}

#[derive(Debug)]
struct Believed {
    verifier: Arc<dyn ClientCertVerifier>,
    version: u64,
}

impl Believed {
    fn new(roots: Arc<RootCertStore>, version: u64) -> Result<Self, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| TlsError::Authority(error.to_string()))?;
        Ok(Believed { verifier, version })
    }
}

impl ClientVerifier {
    /// Believes chains that end at `authority`.
    pub fn new(authority: impl Borrow<CertificateDer<'static>>) -> Result<Self, TlsError> {
        Self::of_authorities(std::slice::from_ref(authority.borrow()))
    }

    /// Believes chains that end at one of `authorities`.
    pub fn of_authorities(authorities: &[CertificateDer<'static>]) -> Result<Self, TlsError> {
        Ok(ClientVerifier {
            believed: Present::new(Believed::new(roots(authorities)?, 0)?),
            also: Vec::new(),
        })
    }

    /// Believes chains that end at one of the authorities of a PEM bundle.
    pub fn of_bundle(pem: &[u8]) -> Result<Self, TlsError> {
        let authorities: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        Self::of_authorities(&authorities.map_err(|error| TlsError::Authority(error.to_string()))?)
    }

    /// Believes other authorities from now on, here and in every clone.
    pub fn believe(&self, authorities: &[CertificateDer<'static>]) -> Result<(), TlsError> {
        let next = self.version() + 1;
        self.believed.set(Believed::new(roots(authorities)?, next)?);
        Ok(())
    }

    /// Another number when others are believed: what was verified before must be verified again.
    pub fn version(&self) -> u64 {
        self.believed.get().version
    }

    /// In a handshake, asks also for certificates of another verifier's authorities. Whom this one believes stays as it is.
    pub fn asking_also_for(mut self, other: &ClientVerifier) -> Self {
        self.also.push(other.believed.clone());
        self.also.extend(other.also.iter().cloned());
        self
    }

    /// Whom the chain (leaf first) names, if it is valid now and for a client.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Subject, String> {
        let (leaf, intermediates) = chain.split_first().ok_or("no certificate was sent")?;
        self.believed
            .get()
            .verifier
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|error| error.to_string())?;
        Subject::of(leaf)
    }
}

/// Asks for a certificate, and takes any whose owner has its key.
#[derive(Debug)]
struct AskOnly {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Whose certificates are asked for, as of when the configuration was made.
    names: Vec<DistinguishedName>,
}

impl AskOnly {
    fn new(verifier: &ClientVerifier) -> Self {
        let all = std::iter::once(&verifier.believed).chain(&verifier.also);
        let names = all.flat_map(|one| one.get().verifier.root_hint_subjects().to_vec());
        AskOnly {
            names: names.collect(),
            verifier: verifier.believed.get().verifier.clone(),
        }
    }
}

impl ClientCertVerifier for AskOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.names
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
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
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
pub fn server_config(
    identity: impl Borrow<Identity>,
    verifier: &ClientVerifier,
) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_of(Arc::new(ServingCertificate::new(identity.borrow())?), verifier)
}

/// The same with a certificate that changes.
pub fn server_config_of(
    certificate: Arc<ServingCertificate>,
    verifier: &ClientVerifier,
) -> Result<Arc<ServerConfig>, TlsError> {
    server(certificate, Arc::new(AskOnly::new(verifier)))
}

/// The same, and it shows its authorities' certificates too, so that who knows only the fingerprint of one can check it
/// ([`pinned_client`]).
pub fn server_config_with_authorities(
    identity: impl Borrow<Identity>,
    authorities: &[CertificateDer<'static>],
    verifier: &ClientVerifier,
) -> Result<Arc<ServerConfig>, TlsError> {
    let identity = identity.borrow();
    let mut chain = identity.chain();
    chain.extend(authorities.iter().cloned());
    let certificate = ServingCertificate::default();
    certificate.set(chain, identity)?;
    server(Arc::new(certificate), Arc::new(AskOnly::new(verifier)))
}

/// A server that talks only to clients with a certificate of the authority.
pub fn strict_server_config(
    identity: impl Borrow<Identity>,
    verifier: &ClientVerifier,
) -> Result<Arc<ServerConfig>, TlsError> {
    let certificate = ServingCertificate::new(identity.borrow())?;
    server(Arc::new(certificate), verifier.believed.get().verifier.clone())
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
    authorities_of_pem(pem).map(|mut chain| chain.swap_remove(0))
}

/// The certificates of a PEM text, at least one.
pub fn authorities_of_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    parse_chain(pem).map_err(TlsError::Authority)
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
        let roots = roots([&authority]).map_err(|error| rustls::Error::General(error.to_string()))?;
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
    authority: impl Borrow<CertificateDer<'static>>,
    identity: Option<&Identity>,
    alpn: &[&str],
) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_of(std::slice::from_ref(authority.borrow()), identity, alpn)
}

/// The same with several authorities.
pub fn client_config_of(
    authorities: &[CertificateDer<'static>],
    identity: Option<&Identity>,
    alpn: &[&str],
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Identity)?
        .with_root_certificates(roots(authorities)?);
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
        let server = server_config_with_authorities(pki.serving(), &[pki.ca()], &verifier).unwrap();
        let (client, pinned) = pinned_client(fingerprint(&pki.ca()).unwrap()).unwrap();
        assert_eq!(pinned.authority(), None);
        handshake(client.clone(), server.clone()).unwrap();
        assert_eq!(pinned.authority().as_deref(), Some(&*pki.ca_pem()));
        // Another cluster, and one that shows our authority's certificate without being ours.
        let impostor = server_config_with_authorities(foreign.serving(), &[foreign.ca()], &verifier).unwrap();
        assert!(handshake(client.clone(), impostor).is_err());
        let liar = server_config_with_authorities(foreign.serving(), &[pki.ca()], &verifier).unwrap();
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
        let client = client_config(pki.ca(), Some(&pki.kubelet_client()), &[]).unwrap();
        assert!(handshake(client.clone(), server.clone()).is_err(), "there is none yet");
        for _ in 0..2 {
            certificate
                .replace(&pki.node_serving("localhost", &[]).unwrap())
                .unwrap();
            assert!(handshake(client.clone(), server.clone()).is_ok());
        }
    }

    /// Three clients: one that knows the first authority only, one that follows, and one that comes last.
    #[test]
    fn nobody_is_cut_off_while_the_authority_is_replaced() {
        use crate::keys::{Keys, Rotating, Step};
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(dir.path(), Params::default()).unwrap();
        let (old_ca, old_front, old_admin) = (pki.ca(), pki.front_proxy_client(), pki.admin_client().unwrap());
        let old_fingerprint = fingerprint(&old_ca).unwrap();
        // A node that has heard of nothing, and whose certificate is of the old authority.
        let (old_node, deaf) = (
            pki.node_serving("localhost", &[]).unwrap(),
            ClientVerifier::new(&old_ca).unwrap(),
        );
        let (verifier, bundle) = (pki.verifier(), pki.ca_bundle());
        let asked = verifier.version();
        let step = |step| {
            let keys = Keys::read(dir.path())
                .unwrap()
                .step(Rotating::Authorities, step)
                .unwrap();
            keys.write(dir.path()).unwrap();
            pki.reload().unwrap()
        };
        let reach = |authorities: &[CertificateDer<'static>], identity: Option<&Identity>| {
            let client = client_config_of(authorities, identity, &["h2"]).unwrap();
            let chain = handshake(client, pki.serving_config(&verifier).unwrap())?;
            chain
                .map(|chain| verifier.verify(&chain).map(|subject| subject.common_name))
                .transpose()
        };
        let name = Ok(Some("kubernetes-admin".to_owned()));
        let to_node = |identity: &Identity, verifier: &ClientVerifier| {
            let server = server_config(identity, verifier).unwrap();
            let chain = handshake(pki.node_client_config(), server)?.unwrap();
            verifier.verify(&chain)
        };

        assert_eq!(
            step(Step::Trust),
            Vec::<String>::new(),
            "nothing is of another authority yet"
        );
        assert_eq!(pki.authorities().len(), 2);
        assert!(bundle.get().contains(old_pem(&old_ca).as_str()));
        assert_ne!(verifier.version(), asked);
        let new_ca = pki.authorities()[1].clone();
        assert_eq!(reach(std::slice::from_ref(&old_ca), Some(&old_admin)), name);
        assert!(
            reach(std::slice::from_ref(&new_ca), None).is_err(),
            "it issues nothing yet"
        );

        let renewed = step(Step::Issue);
        assert_eq!(
            renewed,
            [
                "admin",
                "apiserver",
                "apiserver-kubelet-client",
                "front-proxy-client",
                "kubelet-localhost"
            ]
        );
        let (both, new_admin) = (pki.authorities(), pki.admin_client().unwrap());
        assert_eq!(both, [new_ca.clone(), old_ca.clone()]);
        for authorities in [&both[..], &both[..1], &both[1..]] {
            for admin in [&old_admin, &new_admin] {
                assert_eq!(reach(authorities, Some(admin)), name);
            }
        }
        let new_node = pki.node_serving("localhost", &[]).unwrap();
        assert!(to_node(&old_node, &deaf).is_ok() && to_node(&new_node, &deaf).is_ok());
        // Old join tokens and new ones lead here.
        for wanted in [old_fingerprint, fingerprint(&new_ca).unwrap()] {
            let (client, pinned) = pinned_client(wanted).unwrap();
            handshake(client, pki.serving_config(&verifier).unwrap()).unwrap();
            assert_eq!(fingerprint_of_pem(&pinned.authority().unwrap()).unwrap(), wanted);
        }
        let front = pki.front_proxy_verifier();
        for client in [&old_front, &pki.front_proxy_client()] {
            assert!(front.verify(&client.chain()).is_ok());
        }

        assert_eq!(step(Step::Retire), Vec::<String>::new());
        assert_eq!(pki.authorities(), std::slice::from_ref(&new_ca));
        assert_eq!(reach(std::slice::from_ref(&new_ca), Some(&new_admin)), name);
        assert!(reach(std::slice::from_ref(&new_ca), Some(&old_admin)).is_err());
        assert!(reach(std::slice::from_ref(&old_ca), Some(&new_admin)).is_err());
        assert!(to_node(&new_node, &deaf).is_err() && to_node(&old_node, &deaf).is_err());
        assert!(front.verify(&old_front.chain()).is_err());
    }

    fn old_pem(certificate: &CertificateDer<'_>) -> String {
        crate::request::certificate_pem(certificate)
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
        let client = client_config(pki.ca(), Some(&pki.kubelet_client()), &[]).unwrap();
        assert!(handshake(client, server).is_ok());
        let both = LeafSpec {
            usage: crate::Usage::Both,
            ..LeafSpec::client("peer", None)
        };
        assert!(verifier.verify(&pki.issue(&both).unwrap().chain()).is_ok());
    }
}
