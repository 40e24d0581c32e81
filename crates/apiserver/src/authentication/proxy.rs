//! The front proxy of this server, by its options: upstream's `--requestheader-*`.
//!
//! Without options it is the cluster's own front proxy authority and its one client, as kubeadm sets clusters up.

use std::path::PathBuf;

use http::HeaderName;
use sampan_auth::FrontProxy;
use sampan_auth::front_proxy::Headers;
use sampan_pki::Pki;
use sampan_pki::tls::ClientVerifier;

/// The common name of the cluster's own front proxy.
const OWN: &str = "front-proxy-client";

/// Whose headers are believed. What is not said is as kubeadm has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader {
    pub client_ca_file: Option<PathBuf>,
    pub allowed_names: Option<Vec<String>>,
    pub username_headers: Option<Vec<String>>,
    pub uid_headers: Option<Vec<String>>,
    pub group_headers: Option<Vec<String>>,
    pub extra_headers_prefix: Option<Vec<String>>,
}

impl RequestHeader {
    /// Certificates of the front proxy's authority: that of the options, else the cluster's own.
    pub fn authority(&self, pki: &Pki) -> Result<Vec<u8>, String> {
        match &self.client_ca_file {
            None => Ok(pki.front_proxy_ca_pem().into_bytes()),
            Some(path) => std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display())),
        }
    }

    /// Which of its authority's clients are the front proxy. None: all.
    pub fn names(&self) -> Vec<String> {
        match (&self.allowed_names, &self.client_ca_file) {
            (Some(names), _) => names.clone(),
            (None, None) => vec![OWN.to_owned()],
            (None, Some(_)) => Vec::new(),
        }
    }

    pub fn front_proxy(&self, pki: &Pki) -> Result<Option<FrontProxy>, String> {
        let names = |list: &Option<Vec<String>>, default: Vec<HeaderName>| match list {
            None => Ok(default),
            Some(list) => list.iter().map(|name| header(name)).collect(),
        };
        let default = Headers::default();
        let headers = Headers {
            user: names(&self.username_headers, default.user)?,
            uid: names(&self.uid_headers, default.uid)?,
            groups: names(&self.group_headers, default.groups)?,
            extra_prefixes: match &self.extra_headers_prefix {
                None => default.extra_prefixes,
                Some(list) => {
                    let list = list
                        .iter()
                        .map(|name| header(name).map(|name| name.as_str().to_owned()));
                    list.collect::<Result<_, _>>()?
                }
            },
        };
        let verifier = match &self.client_ca_file {
            // That one follows what becomes of the authority.
            None => pki.front_proxy_verifier(),
            Some(_) => ClientVerifier::of_bundle(&self.authority(pki)?).map_err(|error| error.to_string())?,
        };
        let names = match (&self.allowed_names, &self.client_ca_file) {
            // Whoever shares an authority with ordinary clients has to say which of them is the proxy.
            (None, Some(_)) if verifier_overlaps(&self.authority(pki)?, pki) => {
                return Err("--requestheader-client-ca-file and --client-ca-file contain overlapping certificates; --requestheader-allowed-names must be specified to ensure regular client certificates cannot set authenticating proxy headers for arbitrary users".into());
            }
            _ => self.names(),
        };
        Ok(Some(FrontProxy {
            verifier,
            names,
            headers,
        }))
    }
}

fn header(name: &str) -> Result<HeaderName, String> {
    name.trim()
        .parse()
        .map_err(|_| format!("{name:?} is no name of a header"))
}

fn verifier_overlaps(bundle: &[u8], pki: &Pki) -> bool {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(bundle)
        .flatten()
        .any(|one| pki.authorities().contains(&one))
}
