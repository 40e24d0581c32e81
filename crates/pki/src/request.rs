//! Certificate requests (PKCS #10): making one, reading one, and signing what one asks for.
//!
//! A signed certificate carries the subject and the public key of its request byte for byte, so every kind of key and
//! every form of name survives. Only what is listed in [`Request`] is taken over; other extensions a request may ask for
//! (to be an authority, say) are not. The certificate's shape is that of upstream's signer: usages, "not an authority", the
//! authority's key id, names.
//! Source: `pkg/controller/certificates/authority` upstream, RFC 2986, RFC 5280.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, SigningKey};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::PkiError;
use crate::cert::{BadPair, Facts, LeafSpec, Subject, address, issue_error, new_key, parse_chain, subject};

/// Certificates begin this long in the past, for clocks that differ.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// Certificates that live shorter than this keep their whole life before them.
const SHORT: SignedDuration = SignedDuration::from_hours(8);

/// What a request asks for. Its signature was checked: whoever made it has the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub subject: Subject,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    raw_subject: Vec<u8>,
    public_key: Vec<u8>,
}

/// Why a request cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    #[error("not a certificate request: {0}")]
    Malformed(String),
    #[error("the request is not signed with its own key")]
    Signature,
    #[error("unrecognized usage: {0:?}")]
    Usage(String),
    #[error("the certificate could not be signed: {0}")]
    Sign(String),
    #[error("the certificate authority expired at {0}")]
    Expired(Timestamp),
}

impl Request {
    /// Reads a request.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| RequestError::Pem)?;
        if !["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"].contains(&pem.label.as_str()) {
            return Err(RequestError::Pem);
        }
        let malformed = |error: &dyn std::fmt::Display| RequestError::Malformed(error.to_string());
        let (rest, request) = X509CertificationRequest::from_der(&pem.contents).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes follow it"));
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let info = &request.certification_request_info;
        let mut out = Request {
            subject: subject(&info.subject),
            dns_names: Vec::new(),
            addresses: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            raw_subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else {
                continue;
            };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => out.dns_names.push((*name).to_owned()),
                    GeneralName::RFC822Name(name) => out.emails.push((*name).to_owned()),
                    GeneralName::URI(uri) => out.uris.push((*uri).to_owned()),
                    GeneralName::IPAddress(bytes) => {
                        let address =
                            address(bytes).ok_or_else(|| malformed(&"an address has neither 4 nor 16 bytes"))?;
                        out.addresses.push(address);
                    }
                    _ => {}
                }
            }
        }
        Ok(out)
    }

    fn names(&self) -> Vec<u8> {
        let text = |tag: u8, texts: &[String]| -> Vec<u8> {
            let encoded = texts.iter().map(|text| der::tlv(tag, text.as_bytes()));
            encoded.flatten().collect()
        };
        let addresses = self.addresses.iter().map(|address| match address {
            IpAddr::V4(address) => der::tlv(0x87, &address.octets()),
            IpAddr::V6(address) => der::tlv(0x87, &address.octets()),
        });
        [
            text(0x82, &self.dns_names),
            text(0x81, &self.emails),
            addresses.flatten().collect(),
            text(0x86, &self.uris),
        ]
        .concat()
    }
}

/// A new key (PKCS #8 PEM) and a request (PEM) for a certificate with the names of `spec`. Its usage is not part of a request.
pub fn ask(spec: &LeafSpec) -> Result<(String, String), PkiError> {
    let what = format!("a certificate request for {:?}", spec.common_name);
    let key = new_key(&what)?;
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    if let Some(organization) = &spec.organization {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, spec.common_name.as_str());
    params.distinguished_name = name;
    for name in &spec.dns_names {
        let name = name.as_str().try_into().map_err(issue_error(&what))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params
        .subject_alt_names
        .extend(spec.addresses.iter().copied().map(SanType::IpAddress));
    let request = params.serialize_request(&key).and_then(|request| request.pem());
    Ok((key.serialize_pem(), request.map_err(issue_error(&what))?))
}

/// A certificate as PEM.
pub(crate) fn certificate_pem(certificate: &[u8]) -> String {
    der::pem("CERTIFICATE", certificate)
}

/// When the first certificate of a PEM text expires; `None` for what is none.
pub fn expiry(pem: &[u8]) -> Option<Timestamp> {
    let chain = parse_chain(std::str::from_utf8(pem).ok()?).ok()?;
    let facts = Facts::of(chain.first()?).ok()?;
    Timestamp::from_second(facts.not_after).ok()
}

/// Key usages by their names in the API, and their bits.
const KEY_USAGES: &[(&str, u8)] = &[
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// Extended usages and the content of their object identifiers, in the order certificates have them.
const EXTENDED_USAGES: &[(&str, &[u8])] = &[
    ("any", &[0x55, 0x1d, 0x25, 0x00]),
    ("server auth", &[0x2b, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[0x2b, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[0x2b, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[0x2b, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[0x2b, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[0x2b, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[0x2b, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[0x2b, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[0x2b, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[0x2b, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 10, 3, 3]),
    ("netscape sgc", &[0x60, 0x86, 0x48, 1, 0x86, 0xf8, 0x42, 4, 1]),
];

/// A certificate authority that signs what others ask for.
pub struct Signer {
    raw_subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
    key: KeyPair,
    algorithm: Vec<u8>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// From the PEM texts of an authority's certificate and key.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        Self::read(certificate_pem, key_pem).map_err(|bad| PkiError::Issue {
            what: "a signer from this authority".into(),
            reason: bad.to_string(),
        })
    }

    pub(crate) fn read(certificate_pem: &str, key_pem: &str) -> Result<Self, BadPair> {
        let chain = parse_chain(certificate_pem).map_err(BadPair::Certificate)?;
        let facts = Facts::of(&chain[0]).map_err(BadPair::Certificate)?;
        if !facts.is_authority {
            return Err(BadPair::Certificate("it is not a certificate authority".into()));
        }
        let key = KeyPair::from_pem(key_pem).map_err(|error| BadPair::Key(error.to_string()))?;
        if facts.public_key != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(BadPair::Strangers);
        }
        let algorithm = algorithm(&key).ok_or_else(|| BadPair::Key("keys of this kind cannot sign here".into()))?;
        let not_after =
            Timestamp::from_second(facts.not_after).map_err(|error| BadPair::Certificate(error.to_string()))?;
        Ok(Signer {
            raw_subject: facts.raw_subject,
            key_id: facts.key_id,
            not_after,
            key,
            algorithm,
        })
    }

    /// Signs what `request` asks for, as PEM: for `usages` (names of the API), and for `lifetime`, but not for longer than
    /// the authority itself lives.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, RequestError> {
        if now >= self.not_after {
            return Err(RequestError::Expired(self.not_after));
        }
        let (not_before, not_after) = validity(lifetime, now, self.not_after);
        let mut serial = *uuid::Uuid::new_v4().as_bytes();
        // Positive, and never shorter.
        serial[0] = (serial[0] & 0x3f) | 0x40;
        let to_be_signed = der::sequence(&[
            der::tlv(0xa0, &der::tlv(0x02, &[2])),
            der::tlv(0x02, &serial),
            self.algorithm.clone(),
            self.raw_subject.clone(),
            der::sequence(&[der::time(not_before), der::time(not_after)]),
            request.raw_subject.clone(),
            request.public_key.clone(),
            der::tlv(0xa3, &der::sequence(&self.extensions(request, usages)?)),
        ]);
        let signature = self.key.sign(&to_be_signed);
        let signature = signature.map_err(|error| RequestError::Sign(error.to_string()))?;
        let bits = der::tlv(0x03, &[&[0], &signature[..]].concat());
        let certificate = der::sequence(&[to_be_signed, self.algorithm.clone(), bits]);
        Ok(der::pem("CERTIFICATE", &certificate))
    }

    fn extensions(&self, request: &Request, usages: &[String]) -> Result<Vec<Vec<u8>>, RequestError> {
        let (bits, extended) = usage_parts(usages)?;
        let mut out = Vec::new();
        if bits != 0 {
            out.push(der::extension(&[0x55, 0x1d, 0x0f], true, &der::bits(bits)));
        }
        if !extended.is_empty() {
            let list: Vec<Vec<u8>> = extended.iter().map(|oid| der::tlv(0x06, oid)).collect();
            out.push(der::extension(&[0x55, 0x1d, 0x25], false, &der::sequence(&list)));
        }
        out.push(der::extension(&[0x55, 0x1d, 0x13], true, &der::sequence(&[])));
        if let Some(id) = &self.key_id {
            let id = der::sequence(&[der::tlv(0x80, id)]);
            out.push(der::extension(&[0x55, 0x1d, 0x23], false, &id));
        }
        let names = request.names();
        if !names.is_empty() {
            // Where there is no subject the names are all there is to know.
            let critical = request.raw_subject == der::sequence(&[]);
            out.push(der::extension(&[0x55, 0x1d, 0x11], critical, &der::tlv(0x30, &names)));
        }
        Ok(out)
    }
}

fn usage_parts(usages: &[String]) -> Result<(u16, Vec<&'static [u8]>), RequestError> {
    let mut bits = 0u16;
    for usage in usages {
        match KEY_USAGES.iter().find(|(name, _)| name == usage) {
            Some((_, bit)) => bits |= 0x8000 >> bit,
            None if EXTENDED_USAGES.iter().any(|(name, _)| name == usage) => {}
            None => return Err(RequestError::Usage(usage.clone())),
        }
    }
    let mut extended: Vec<&'static [u8]> = Vec::new();
    for (name, oid) in EXTENDED_USAGES {
        if usages.iter().any(|usage| usage == name) && !extended.contains(oid) {
            extended.push(oid);
        }
    }
    Ok((bits, extended))
}

fn validity(lifetime: Duration, now: Timestamp, end: Timestamp) -> (Timestamp, Timestamp) {
    let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
    let not_before = now.checked_sub(BACKDATE).unwrap_or(now);
    let from = if lifetime < SHORT { now } else { not_before };
    let not_after = from.checked_add(lifetime).unwrap_or(end).min(end);
    (not_before, not_after)
}

/// The DER of the signature algorithm that goes with a key.
fn algorithm(key: &KeyPair) -> Option<Vec<u8>> {
    let oid = |content: &[u8]| der::sequence(&[der::tlv(0x06, content)]);
    const ECDSA: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    let ecdsa = |digest: u8| oid(&[&ECDSA[..], &[digest]].concat());
    let of = key.algorithm();
    Some(if of == &rcgen::PKCS_ECDSA_P256_SHA256 {
        ecdsa(2)
    } else if of == &rcgen::PKCS_ECDSA_P384_SHA384 {
        ecdsa(3)
    } else if of == &rcgen::PKCS_ED25519 {
        oid(&[0x2b, 0x65, 0x70])
    } else if of == &rcgen::PKCS_RSA_SHA256 {
        let oid = der::tlv(0x06, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b]);
        der::sequence(&[oid, der::tlv(0x05, &[])])
    } else {
        return None;
    })
}

/// The few forms of DER that a certificate is made of.
mod der {
    use base64::Engine;
    use jiff::Timestamp;

    pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut out = vec![tag];
        if length < 0x80 {
            out.push(length as u8);
        } else {
            let bytes = length.to_be_bytes();
            let used = bytes.len() - (length.leading_zeros() / 8) as usize;
            out.push(0x80 | used as u8);
            out.extend(&bytes[bytes.len() - used..]);
        }
        out.extend(content);
        out
    }

    pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
        tlv(0x30, &parts.concat())
    }

    /// A named bit list: bit 0 is the highest; zero bits at the end are left out.
    pub fn bits(bits: u16) -> Vec<u8> {
        let unused = bits.trailing_zeros().min(16);
        let used = 2 - (unused / 8) as usize;
        let mut content = vec![(unused % 8) as u8];
        content.extend(&bits.to_be_bytes()[..used]);
        tlv(0x03, &content)
    }

    /// UTCTime up to 2049, GeneralizedTime after, in whole seconds.
    pub fn time(at: Timestamp) -> Vec<u8> {
        let at = at.to_zoned(jiff::tz::TimeZone::UTC);
        if (1950..2050).contains(&at.year()) {
            tlv(0x17, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
        } else {
            tlv(0x18, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
        }
    }

    pub fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
        let mut parts = vec![tlv(0x06, oid)];
        if critical {
            parts.push(tlv(0x01, &[0xff]));
        }
        parts.push(tlv(0x04, value));
        sequence(&parts)
    }

    pub fn pem(label: &str, content: &[u8]) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(content);
        let mut out = format!("-----BEGIN {label}-----\n");
        for line in text.as_bytes().chunks(64) {
            out.push_str(&String::from_utf8_lossy(line));
            out.push('\n');
        }
        out.push_str(&format!("-----END {label}-----\n"));
        out
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use x509_parser::prelude::X509Certificate;

    use super::*;
    use crate::cert::{Authority, unix_now};

    fn signer() -> (String, Signer) {
        let key = new_key("ca").unwrap();
        let certificate = Authority::self_signed("ca", &key).unwrap();
        let signer = Signer::from_pem(&certificate, &key.serialize_pem()).unwrap();
        (certificate, signer)
    }

    fn spec() -> LeafSpec {
        let mut spec = LeafSpec::server(
            "system:node:n1",
            ["n1".to_owned(), "n1.example.org".to_owned()],
            [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), IpAddr::V6(Ipv6Addr::LOCALHOST)],
        );
        spec.organization = Some("system:nodes".into());
        spec
    }

    fn now() -> Timestamp {
        Timestamp::from_second(unix_now()).unwrap()
    }

    #[test]
    fn a_request_is_read_and_signed() {
        let (authority, signer) = signer();
        let (key, pem) = ask(&spec()).unwrap();
        let request = Request::parse(pem.as_bytes()).unwrap();
        assert_eq!(request.subject.common_name, "system:node:n1");
        assert_eq!(request.subject.organizations, ["system:nodes"]);
        assert_eq!(request.dns_names, ["n1", "n1.example.org"]);
        let usages = ["digital signature", "key encipherment", "server auth"].map(str::to_owned);
        let lifetime = Duration::from_secs(365 * 86_400);
        let certificate = signer.sign(&request, &usages, lifetime, now()).unwrap();
        // The pair works, and a verifier accepts it under the authority.
        let identity = crate::Identity::from_pem(certificate.clone(), key).unwrap();
        let facts = identity.facts().unwrap();
        assert!(facts.server_auth && !facts.client_auth && !facts.is_authority);
        assert_eq!(facts.addresses, spec().addresses);
        assert_eq!(facts.not_after - facts.not_before, 365 * 86_400);
        let chain = parse_chain(&authority).unwrap();
        let (_, issuer) = X509Certificate::from_der(&chain[0]).unwrap();
        let leaf = identity.chain();
        let (_, leaf) = X509Certificate::from_der(&leaf[0]).unwrap();
        leaf.verify_signature(Some(issuer.public_key())).unwrap();
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
        assert!(!usage.value.key_cert_sign());
    }

    #[test]
    fn several_organizations_survive() {
        // openssl req -new -subj "/O=dev/O=ops/OU=x/CN=jane"
        const REQUEST: &str = include_str!("../tests/data/several-organizations.csr");
        let request = Request::parse(REQUEST.as_bytes()).unwrap();
        assert_eq!(request.subject.organizations, ["dev", "ops"]);
        let (_, signer) = signer();
        let certificate = signer
            .sign(&request, &["client auth".to_owned()], Duration::from_secs(3600), now())
            .unwrap();
        let facts = Facts::of(&parse_chain(&certificate).unwrap()[0]).unwrap();
        assert_eq!(facts.subject, request.subject);
        assert_eq!(facts.raw_subject, request.raw_subject);
        assert!(facts.client_auth);
    }

    #[test]
    fn bad_requests_are_refused() {
        let (_, pem) = ask(&spec()).unwrap();
        assert_eq!(Request::parse(b"rubbish"), Err(RequestError::Pem));
        let other = pem.replace("CERTIFICATE REQUEST", "CERTIFICATE");
        assert_eq!(Request::parse(other.as_bytes()), Err(RequestError::Pem));
        // Another name under the same signature.
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let mut bytes = block.contents.clone();
        let at = bytes.windows(7).position(|window| window == b"node:n1").unwrap();
        bytes[at + 6] = b'2';
        let forged = der::pem("CERTIFICATE REQUEST", &bytes);
        assert_eq!(Request::parse(forged.as_bytes()), Err(RequestError::Signature));
        for cut in [1, 20, bytes.len() / 2] {
            let cut = der::pem("CERTIFICATE REQUEST", &bytes[..cut]);
            assert!(matches!(
                Request::parse(cut.as_bytes()),
                Err(RequestError::Malformed(_))
            ));
        }
        let (_, signer) = signer();
        let request = Request::parse(pem.as_bytes()).unwrap();
        let error = signer.sign(&request, &["flying".to_owned()], Duration::from_secs(600), now());
        assert_eq!(error, Err(RequestError::Usage("flying".into())));
        let late = signer.not_after + SignedDuration::from_secs(1);
        assert!(matches!(
            signer.sign(&request, &[], Duration::from_secs(600), late),
            Err(RequestError::Expired(_))
        ));
    }

    #[test]
    fn how_long_certificates_live() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (now, end) = (at("2030-01-01T00:00:00Z"), at("2030-06-01T00:00:00Z"));
        for (seconds, from, to) in [
            (600, "2029-12-31T23:55:00Z", "2030-01-01T00:10:00Z"),
            (8 * 3600, "2029-12-31T23:55:00Z", "2030-01-01T07:55:00Z"),
            (365 * 86_400, "2029-12-31T23:55:00Z", "2030-06-01T00:00:00Z"),
            (u64::MAX, "2029-12-31T23:55:00Z", "2030-06-01T00:00:00Z"),
        ] {
            assert_eq!(
                validity(Duration::from_secs(seconds), now, end),
                (at(from), at(to)),
                "{seconds}"
            );
        }
        assert_eq!(der::time(at("2049-12-31T23:59:59Z"))[0], 0x17);
        assert_eq!(der::time(at("2050-01-01T00:00:00Z"))[0], 0x18);
    }

    #[test]
    fn lengths_and_bits() {
        assert_eq!(der::tlv(4, &[0; 127])[..2], [4, 127]);
        assert_eq!(der::tlv(4, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(der::tlv(4, &[0; 256])[..4], [4, 0x82, 1, 0]);
        assert_eq!(der::bits(0xa000), [3, 2, 5, 0xa0]);
        assert_eq!(der::bits(0x0080), [3, 3, 7, 0, 0x80]);
    }
}
