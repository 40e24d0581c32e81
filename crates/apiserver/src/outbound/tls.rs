//! Trust on the way out.
//!
//! A bundle is read as Go reads it: what does not parse is passed over, nothing that parses is an error. And as
//! with Go a server may present the very certificate that stands in the bundle, whatever it says about being an
//! authority: that is what `openssl req -x509` makes, and what many webhooks run with.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sampan_pki::Identity;
use sampan_pki::tls::provider;

use super::{Error, Trust};

/// The configuration of a peer's connections.
pub fn config(
    trust: &Trust,
    identity: Option<&Identity>,
    system: impl FnOnce() -> Arc<RootCertStore>,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let rule = match trust {
        Trust::Anyone => Rule::Anyone,
        Trust::Bundle(pem) if pem.is_empty() => Rule::chains(system(), Vec::new(), provider.clone())?,
        Trust::Bundle(pem) => {
            let (roots, listed) = bundle(pem)?;
            Rule::chains(Arc::new(roots), listed, provider.clone())?
        }
    };
    let verifier = Arc::new(Verifier {
        rule,
        provider: provider.clone(),
    });
    let unusable = |error: rustls::Error| Error::Unusable(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain(), identity.key())
            .map_err(unusable)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The certificates of a PEM bundle that can be used.
fn bundle(pem: &[u8]) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), Error> {
    let listed: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem).flatten().collect();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(listed.iter().cloned());
    if usable == 0 {
        return Err(Error::Unusable(
            "unable to load root certificates: unable to parse bytes as PEM block".into(),
        ));
    }
    Ok((roots, listed))
}

/// Whose certificate is believed.
#[derive(Debug)]
enum Rule {
    /// `insecureSkipTLSVerify`: asked for in so many words by who registered the server.
    Anyone,
    /// The usual chains, and the listed certificates themselves.
    Chains {
        /// A machine without a trust store has none and believes nobody.
        chains: Option<Arc<WebPkiServerVerifier>>,
        listed: Vec<CertificateDer<'static>>,
    },
}

impl Rule {
    fn chains(
        roots: Arc<RootCertStore>,
        listed: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let chains = if roots.is_empty() {
            None
        } else {
            let built = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            Some(built.map_err(|error| Error::Unusable(error.to_string()))?)
        };
        Ok(Rule::Chains { chains, listed })
    }
}

/// Believes by a rule, and in every case demands proof of the key.
#[derive(Debug)]
struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (chains, listed) = match &self.rule {
            Rule::Anyone => return Ok(ServerCertVerified::assertion()),
            Rule::Chains { chains, listed } => (chains, listed),
        };
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let verdict = match chains {
            Some(chains) => chains.verify_server_cert(leaf, intermediates, name, ocsp, now),
            None => Err(unknown),
        };
        let Err(error) = verdict else { return verdict };
        if !listed.iter().any(|known| known.as_ref() == leaf.as_ref()) {
            // Of a leaf whose chain is fine only the name can be wrong; of any other the chain matters first.
            return Err(error);
        }
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now > certificate.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        if now < certificate.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A failed handshake in Go's words.
pub fn refused(error: &rustls::Error) -> Error {
    let certificate = match error {
        rustls::Error::InvalidCertificate(certificate) => certificate,
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            return Error::Tls("http: server gave HTTP response to HTTPS client".into());
        }
        rustls::Error::AlertReceived(alert) => {
            return Error::Tls(format!("remote error: tls: {alert:?}"));
        }
        other => return Error::Tls(format!("tls: {other}")),
    };
    let why = match certificate {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "certificate signed by unknown authority".to_owned()
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => "certificate has expired or is not yet valid".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => other_name(expected, presented),
        CertificateError::NotValidForName => "certificate is not valid for the name of the server".to_owned(),
        // What openssl makes by default, signed by nobody we know.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "certificate signed by unknown authority".to_owned()
        }
        other => other.to_string(),
    };
    Error::Tls(format!("tls: failed to verify certificate: x509: {why}"))
}

fn other_name(expected: &ServerName<'_>, presented: &[String]) -> String {
    let wanted = expected.to_str();
    let is_address = matches!(expected, ServerName::IpAddress(_));
    let names = |wrapper: &str| -> Vec<String> {
        presented
            .iter()
            .filter_map(|name| name.strip_prefix(wrapper)?.strip_prefix('(')?.strip_suffix(')'))
            .map(|name| name.trim_matches('"').to_owned())
            .collect()
    };
    let valid = if is_address {
        names("IpAddress")
    } else {
        names("DnsName")
    };
    match (valid.is_empty(), is_address) {
        (true, true) => format!("cannot validate certificate for {wanted} because it doesn't contain any IP SANs"),
        (true, false) if presented.is_empty() => {
            "certificate relies on legacy Common Name field, use SANs instead".to_owned()
        }
        (true, false) => format!("certificate is not valid for any names, but wanted to match {wanted}"),
        _ => format!("certificate is valid for {}, not {wanted}", valid.join(", ")),
    }
}
