//! Certificates: issuing them, and reading what matters back out of one.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use crate::PkiError;
use crate::request::Signer;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Ten years, as kubeadm and others have it.
const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(3650);
pub(crate) const LEAF_LIFETIME: Duration = DAY.saturating_mul(365);
/// Certificates begin a little in the past, for machines whose clocks differ; short-lived ones less.
const BACKDATE: Duration = Duration::from_secs(60 * 60);
/// Between which percentages of its life a certificate is renewed. Each has its own moment, so that not all are renewed at once.
const RENEWAL: (i64, i64) = (70, 90);

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    /// Both directions, as etcd's peers and some kubelets need.
    Both,
}

/// A leaf certificate to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafSpec {
    /// The user name (client) or just a name (server).
    pub common_name: String,
    /// The user's group. One is enough for every identity of a cluster; tokens and RBAC do the rest.
    pub organization: Option<String>,
    pub usage: Usage,
    pub dns_names: BTreeSet<String>,
    pub addresses: BTreeSet<IpAddr>,
}

impl LeafSpec {
    /// A client certificate for `user`, in `group`.
    pub fn client(user: &str, group: Option<&str>) -> Self {
        LeafSpec {
            common_name: user.into(),
            organization: group.map(Into::into),
            usage: Usage::Client,
            dns_names: BTreeSet::new(),
            addresses: BTreeSet::new(),
        }
    }
    /// A serving certificate.
    pub fn server(
        name: &str,
        dns_names: impl IntoIterator<Item = String>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        LeafSpec {
            common_name: name.into(),
            organization: None,
            usage: Usage::Server,
            dns_names: dns_names.into_iter().collect(),
            addresses: addresses.into_iter().collect(),
        }
    }
}

/// Whom a client certificate names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
}

/// A certificate with its key. Cheap to clone; `Debug` shows no key.
#[derive(Clone)]
pub struct Identity(Arc<Parts>);

struct Parts {
    certificate_pem: String,
    key_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// From PEM texts; the error says which one is wrong and how.
    pub(crate) fn from_pem(certificate_pem: String, key_pem: String) -> Result<Self, BadPair> {
        let chain = parse_chain(&certificate_pem).map_err(BadPair::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| BadPair::Key(error.to_string()))?;
        let pair = KeyPair::from_pem(&key_pem).map_err(|error| BadPair::Key(error.to_string()))?;
        let facts = Facts::of(&chain[0]).map_err(BadPair::Certificate)?;
        if facts.public_key != pair.subject_public_key_info() {
            return Err(BadPair::Strangers);
        }
        Ok(Identity(Arc::new(Parts {
            certificate_pem,
            key_pem,
            chain,
            key,
        })))
    }
    /// A certificate (its chain, the leaf first) and its key, from one PEM text that holds both.
    pub fn from_one_pem(text: &str) -> Result<Self, PkiError> {
        let (certificate, key) = match text.find("-----BEGIN PRIVATE KEY-----") {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        Self::from_pem(certificate.to_owned(), key.to_owned()).map_err(|bad| PkiError::Issue {
            what: "an identity from this text".into(),
            reason: bad.to_string(),
        })
    }
    /// The same, shown with further certificates that lead to its authority.
    pub fn followed_by(&self, others: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut chain = self.0.chain.clone();
        chain.extend(others);
        Identity(Arc::new(Parts {
            certificate_pem: self.0.certificate_pem.clone(),
            key_pem: self.0.key_pem.clone(),
            chain,
            key: self.0.key.clone_key(),
        }))
    }
    /// Whether both are one and the same, not only alike.
    pub fn is_same(&self, other: &Identity) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
    /// Whether `authority` has issued it, as far as names tell.
    pub fn is_of(&self, authority: &CertificateDer<'_>) -> bool {
        matches!((self.facts(), Facts::of(authority)), (Ok(own), Ok(authority)) if own.is_of(&authority))
    }
    /// When it is to be renewed, in seconds since 1970.
    pub fn renewal(&self) -> Result<i64, PkiError> {
        let facts = self.facts().map_err(|reason| PkiError::Issue {
            what: "the renewal of a certificate".into(),
            reason,
        })?;
        Ok(facts.renewal())
    }
    /// Both halves as one PEM text.
    pub fn to_one_pem(&self) -> String {
        format!("{}{}", self.0.certificate_pem, self.0.key_pem)
    }
    /// Whom it names.
    pub fn subject(&self) -> Result<Subject, PkiError> {
        self.facts()
            .map(|facts| facts.subject)
            .map_err(|reason| PkiError::Issue {
                what: "the subject of a certificate".into(),
                reason,
            })
    }
    /// Whether it is for the subject, the use and the names of `spec`.
    pub fn fits(&self, spec: &LeafSpec) -> Result<bool, PkiError> {
        let facts = self.facts().map_err(|reason| PkiError::Issue {
            what: "a judgement of a certificate".into(),
            reason,
        })?;
        Ok(facts.is_for(spec) && facts.dns_names == spec.dns_names && facts.addresses == spec.addresses)
    }
    /// From when until when it is valid, in seconds since 1970.
    pub fn validity(&self) -> Result<(i64, i64), PkiError> {
        let facts = self.facts().map_err(|reason| PkiError::Issue {
            what: "the validity of a certificate".into(),
            reason,
        })?;
        Ok((facts.not_before, facts.not_after))
    }
    /// An identity somebody else made, from PEM texts.
    pub fn parse(certificate_pem: String, key_pem: String) -> Result<Self, String> {
        Self::from_pem(certificate_pem, key_pem).map_err(|bad| bad.to_string())
    }
    pub fn certificate_pem(&self) -> &str {
        &self.0.certificate_pem
    }
    pub fn key_pem(&self) -> &str {
        &self.0.key_pem
    }
    /// The leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.0.chain.clone()
    }
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.0.key.clone_key()
    }
    pub(crate) fn facts(&self) -> Result<Facts, String> {
        Facts::of(&self.0.chain[0])
    }
}

/// Why a certificate and a key do not make an identity.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadPair {
    Certificate(String),
    Key(String),
    Strangers,
}

impl fmt::Display for BadPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadPair::Certificate(reason) => write!(f, "its certificate: {reason}"),
            BadPair::Key(reason) => write!(f, "its key: {reason}"),
            BadPair::Strangers => f.write_str("its certificate and its key do not belong together"),
        }
    }
}

/// At least one certificate.
pub(crate) fn parse_chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    if chain.is_empty() {
        return Err("it holds no certificate".into());
    }
    Ok(chain)
}

/// What decides whether a stored certificate can still be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub public_key: Vec<u8>,
    pub subject: Subject,
    /// The common name of who issued it.
    pub issuer: String,
    pub raw_issuer: Vec<u8>,
    pub raw_subject: Vec<u8>,
    pub key_id: Option<Vec<u8>>,
    pub authority_key_id: Option<Vec<u8>>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    pub is_authority: bool,
    pub dns_names: BTreeSet<String>,
    pub addresses: BTreeSet<IpAddr>,
    pub client_auth: bool,
    pub server_auth: bool,
}

impl Facts {
    pub fn of(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| format!("not a certificate: {error}"))?;
        let mut facts = Facts {
            public_key: certificate.public_key().raw.to_vec(),
            subject: subject_of(&certificate),
            issuer: subject(certificate.issuer()).common_name,
            raw_issuer: certificate.issuer().as_raw().to_vec(),
            raw_subject: certificate.subject().as_raw().to_vec(),
            key_id: None,
            authority_key_id: None,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            is_authority: certificate.is_ca(),
            dns_names: BTreeSet::new(),
            addresses: BTreeSet::new(),
            client_auth: false,
            server_auth: false,
        };
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::DNSName(name) => {
                                facts.dns_names.insert((*name).to_owned());
                            }
                            GeneralName::IPAddress(bytes) => {
                                facts.addresses.extend(address(bytes));
                            }
                            _ => {}
                        }
                    }
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    facts.client_auth = usage.client_auth;
                    facts.server_auth = usage.server_auth;
                }
                ParsedExtension::SubjectKeyIdentifier(id) => facts.key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    facts.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    pub fn valid_at(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// When it is to be renewed: at a moment of its own between 70 and 90 % of its life.
    pub fn renewal(&self) -> i64 {
        let chance = i64::from(*Sha256::digest(&self.public_key).first().unwrap_or(&0));
        let percent = RENEWAL.0 * 256 + (RENEWAL.1 - RENEWAL.0) * chance;
        let life = self.not_after.saturating_sub(self.not_before);
        self.not_before
            .saturating_add(life.saturating_mul(percent) / (256 * 100))
    }

    /// Whether it was issued by `authority`, as far as names tell.
    pub fn is_of(&self, authority: &Facts) -> bool {
        self.raw_issuer == authority.raw_subject
            && (self.authority_key_id.is_none() || self.authority_key_id == authority.key_id)
    }

    /// What would make the same again.
    pub fn spec(&self) -> LeafSpec {
        LeafSpec {
            common_name: self.subject.common_name.clone(),
            organization: self.subject.organizations.first().cloned(),
            usage: match (self.client_auth, self.server_auth) {
                (true, true) => Usage::Both,
                (true, false) => Usage::Client,
                _ => Usage::Server,
            },
            dns_names: self.dns_names.clone(),
            addresses: self.addresses.clone(),
        }
    }

    /// Whether subject and use are those of `spec`.
    fn is_for(&self, spec: &LeafSpec) -> bool {
        let (client, server) = match spec.usage {
            Usage::Client => (true, false),
            Usage::Server => (false, true),
            Usage::Both => (true, true),
        };
        self.subject.common_name == spec.common_name
            && self.subject.organizations.iter().eq(&spec.organization)
            && (self.client_auth, self.server_auth) == (client, server)
    }

    /// Why a stored leaf must be made again, if it must.
    pub fn stale(&self, spec: &LeafSpec, authority: &Facts, now: i64) -> Option<&'static str> {
        if !self.is_of(authority) {
            Some("it was issued by another authority")
        } else if !self.is_for(spec) {
            Some("it is for another subject or use")
        } else if self.dns_names != spec.dns_names || self.addresses != spec.addresses {
            Some("the names or addresses it is for have changed")
        } else if !self.valid_at(now) || now >= self.renewal() {
            Some("it has expired or soon will")
        } else {
            None
        }
    }
}

pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Common name and organizations, as Go's `pkix.Name` reads them (the last common name wins).
fn subject_of(certificate: &X509Certificate<'_>) -> Subject {
    subject(certificate.subject())
}

pub(crate) fn subject(name: &X509Name<'_>) -> Subject {
    let text =
        |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().map(str::to_owned).unwrap_or_default();
    Subject {
        common_name: name.iter_common_name().last().map(text).unwrap_or_default(),
        organizations: name.iter_organization().map(text).collect(),
    }
}

impl Subject {
    /// Reads the subject of a certificate. Says nothing about whether to believe it: see [`crate::tls::ClientVerifier`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|error| format!("not a certificate: {error}"))?;
        Ok(subject_of(&certificate))
    }

    /// When the first certificate of a chain expires, in seconds since 1970.
    pub fn expiry(chain: &[CertificateDer<'_>]) -> Option<i64> {
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        Some(certificate.validity().not_after.timestamp())
    }

    /// Reads the subject that a certificate request (PEM) asks for.
    pub fn of_request(pem: &[u8]) -> Result<Self, String> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|error| format!("not PEM: {error}"))?;
        let (_, request) = X509CertificationRequest::from_der(&pem.contents)
            .map_err(|error| format!("not a certificate request: {error}"))?;
        Ok(subject(&request.certification_request_info.subject))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn params(common_name: &str, organization: Option<&str>, lifetime: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE.min(lifetime / 10)).into();
    params.not_after = (now + lifetime).into();
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    // Random, positive, and at most 16 bytes long.
    let mut serial = *uuid::Uuid::new_v4().as_bytes();
    serial[0] = (serial[0] & 0x3f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn authority_params(name: &str, lifetime: Duration) -> CertificateParams {
    let mut params = params(name, None, lifetime);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    params
}

pub(crate) fn issue_error(what: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let what = what.to_owned();
    move |error| PkiError::Issue {
        what,
        reason: error.to_string(),
    }
}

/// A new private key, as PKCS#8 PEM.
pub(crate) fn new_key(what: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(issue_error(what))
}

/// A certificate authority: signs leaves.
pub(crate) struct Authority {
    pub certificate_pem: String,
    pub certificate: CertificateDer<'static>,
    pub facts: Facts,
    pub signer: Arc<Signer>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A self-signed certificate for `key`. The name is derived from the key, so making it twice makes
    /// authorities that vouch for the same leaves.
    pub fn self_signed(kind: &str, key: &KeyPair) -> Result<String, PkiError> {
        let digest = Sha256::digest(key.subject_public_key_info());
        let name = format!("sampan-{kind}-{}", hex::encode(&digest[..6]));
        Ok(authority_params(&name, AUTHORITY_LIFETIME)
            .self_signed(key)
            .map_err(issue_error("the certificate authority"))?
            .pem())
    }

    pub fn from_pem(certificate_pem: String, key_pem: &str) -> Result<Self, BadPair> {
        let certificate = parse_chain(&certificate_pem)
            .map_err(BadPair::Certificate)?
            .swap_remove(0);
        let facts = Facts::of(&certificate).map_err(BadPair::Certificate)?;
        if !facts.is_authority {
            return Err(BadPair::Certificate("it is not a certificate authority".into()));
        }
        let key = KeyPair::from_pem(key_pem).map_err(|error| BadPair::Key(error.to_string()))?;
        if facts.public_key != key.subject_public_key_info() {
            return Err(BadPair::Strangers);
        }
        let signer = Arc::new(Signer::read(&certificate_pem, key_pem)?);
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|error| BadPair::Certificate(error.to_string()))?;
        Ok(Authority {
            certificate_pem,
            certificate,
            facts,
            signer,
            issuer,
        })
    }

    /// A certificate for `next`, by which those who trust only this authority believe that one too.
    pub fn vouch_for(&self, next: &Authority) -> Result<String, PkiError> {
        const WHAT: &str = "a certificate for the next authority";
        let issue = |reason: String| PkiError::Issue {
            what: WHAT.into(),
            reason,
        };
        let end = self.facts.not_after.min(next.facts.not_after);
        let left = u64::try_from(end - unix_now()).map_err(|_| issue("the authority has expired".into()))?;
        let mut params = authority_params(&next.facts.subject.common_name, Duration::from_secs(left));
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(next.issuer.key(), &self.issuer)
            .map_err(issue_error(WHAT))?;
        let made = Facts::of(certificate.der()).map_err(issue)?;
        if made.raw_subject != next.facts.raw_subject || made.key_id != next.facts.key_id {
            return Err(issue(
                "that one was not made by Sampan: its name is of another form".into(),
            ));
        }
        Ok(certificate.pem())
    }

    /// A new key and a certificate for it, that does not live longer than its authority.
    pub fn issue(&self, spec: &LeafSpec, lifetime: Duration) -> Result<Identity, PkiError> {
        let what = format!("a certificate for {:?}", spec.common_name);
        let key = new_key(&what)?;
        let left = u64::try_from(self.facts.not_after - unix_now()).unwrap_or(0);
        let lifetime = lifetime.min(Duration::from_secs(left));
        let mut params = params(&spec.common_name, spec.organization.as_deref(), lifetime);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match spec.usage {
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        for name in &spec.dns_names {
            let name = Ia5String::try_from(name.as_str()).map_err(issue_error(&what))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params
            .subject_alt_names
            .extend(spec.addresses.iter().copied().map(SanType::IpAddress));
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue_error(&what))?;
        Identity::from_pem(certificate.pem(), key.serialize_pem()).map_err(|bad| PkiError::Issue {
            what,
            reason: bad.to_string(),
        })
    }
}
