//! The directory a cluster keeps its identity in: made at first start, checked and renewed at every other.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use crate::cert::{Authority, BadPair, Identity, LeafSpec, new_key, unix_now};
use crate::token::TokenKeys;
use crate::{PkiError, files};

/// What certificates and tokens must say about this cluster.
#[derive(Clone, Debug)]
pub struct Params {
    /// This machine's host name.
    pub host_name: String,
    /// The machine's addresses, and any other (a load balancer's) clients use.
    pub addresses: Vec<IpAddr>,
    /// Further DNS names clients use.
    pub extra_names: Vec<String>,
    /// The address of Service `default/kubernetes`, the first of the service range.
    pub service_address: Option<IpAddr>,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
    /// Who issues service-account tokens, in place of [`Params::issuer`]: the first signs, all are believed.
    pub issuers: Vec<String>,
    /// What the API server calls itself in tokens. Empty: as the issuers are called.
    pub api_audiences: Vec<String>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            host_name: "localhost".into(),
            addresses: Vec::new(),
            extra_names: Vec::new(),
            service_address: None,
            cluster_domain: "cluster.local".into(),
            issuers: Vec::new(),
            api_audiences: Vec::new(),
        }
    }
}

impl Params {
    /// `https://kubernetes.default.svc.cluster.local`: who issues service-account tokens, and their default audience.
    pub fn issuer(&self) -> String {
        match self.issuers.first() {
            Some(issuer) => issuer.clone(),
            None => format!("https://kubernetes.default.svc.{}", self.cluster_domain),
        }
    }

    fn serving(&self) -> LeafSpec {
        let in_cluster = [
            "localhost".to_owned(),
            self.host_name.to_ascii_lowercase(),
            "kubernetes".into(),
            "kubernetes.default".into(),
            "kubernetes.default.svc".into(),
            format!("kubernetes.default.svc.{}", self.cluster_domain),
        ];
        let names: BTreeSet<_> = in_cluster
            .into_iter()
            .chain(self.extra_names.iter().cloned())
            .filter(|name| !name.is_empty())
            .collect();
        let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            .into_iter()
            .chain(self.addresses.iter().copied())
            .chain(self.service_address);
        LeafSpec::server("kube-apiserver", names, addresses)
    }
}

/// The identity of a cluster: authorities, the API server's certificates, the key of service accounts.
pub struct Pki {
    dir: PathBuf,
    params: Params,
    authority: Authority,
    front_proxy_authority: Authority,
    serving: Identity,
    kubelet_client: Identity,
    front_proxy_client: Identity,
    tokens: Arc<TokenKeys>,
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Pki {
    /// Loads the identity kept in `dir`; makes what is missing and renews what is stale.
    /// The caller holds the lock of the data directory.
    pub fn load_or_create(dir: &Path, params: Params) -> Result<Self, PkiError> {
        files::private_dir(dir)?;
        let authority = load_authority(dir, "ca")?;
        let front_proxy_authority = load_authority(dir, "front-proxy-ca")?;
        let serving = load_leaf(dir, "apiserver", &params.serving(), &authority)?;
        let kubelet_client = load_leaf(
            dir,
            "apiserver-kubelet-client",
            &LeafSpec::client("kube-apiserver-kubelet-client", Some("system:masters")),
            &authority,
        )?;
        let front_proxy_client = load_leaf(
            dir,
            "front-proxy-client",
            &LeafSpec::client("front-proxy-client", None),
            &front_proxy_authority,
        )?;
        let tokens = load_tokens(dir, &params.issuer())?
            .with_issuers(params.issuers.clone())
            .with_audiences(params.api_audiences.clone());
        let tokens = Arc::new(tokens);
        Ok(Pki {
            dir: dir.to_owned(),
            params,
            authority,
            front_proxy_authority,
            serving,
            kubelet_client,
            front_proxy_client,
            tokens,
        })
    }

    pub fn params(&self) -> &Params {
        &self.params
    }
    /// The cluster's certificate authority: what clients, nodes and the ConfigMap `kube-root-ca.crt` need.
    pub fn ca_pem(&self) -> &str {
        &self.authority.certificate_pem
    }
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.authority.certificate
    }
    /// Signs the requests an aggregated API server accepts from this one.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy_authority.certificate_pem
    }
    /// The API server's own serving certificate.
    pub fn serving(&self) -> &Identity {
        &self.serving
    }
    /// What the API server shows to nodes (user `kube-apiserver-kubelet-client`, group `system:masters`).
    pub fn kubelet_client(&self) -> &Identity {
        &self.kubelet_client
    }
    /// What the API server shows to aggregated API servers.
    pub fn front_proxy_client(&self) -> &Identity {
        &self.front_proxy_client
    }
    /// Signs and verifies service-account tokens.
    pub fn tokens(&self) -> Arc<TokenKeys> {
        self.tokens.clone()
    }
    /// Signs what others ask the cluster's authority for.
    pub fn signer(&self) -> Arc<crate::request::Signer> {
        self.authority.signer.clone()
    }
    /// A certificate of the cluster's authority, in memory only.
    pub fn issue(&self, spec: &LeafSpec) -> Result<Identity, PkiError> {
        self.authority.issue(spec)
    }
    /// A certificate of the cluster's authority kept as `NAME.crt` and `NAME.key`, renewed when stale.
    pub fn stored(&self, name: &str, spec: &LeafSpec) -> Result<Identity, PkiError> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(PkiError::Issue {
                what: format!("a certificate kept as {name:?}"),
                reason: "this cannot be a file's name".into(),
            });
        }
        load_leaf(&self.dir, name, spec, &self.authority)
    }
    /// The administrator: group `system:masters`, which may do everything.
    pub fn admin_client(&self) -> Result<Identity, PkiError> {
        self.stored("admin", &LeafSpec::client("kubernetes-admin", Some("system:masters")))
    }
    /// The client certificate of the node `name`: user `system:node:NAME`, group `system:nodes`.
    pub fn node_client(&self, name: &str) -> Result<Identity, PkiError> {
        self.stored(
            &format!("kubelet-client-{name}"),
            &LeafSpec::client(&format!("system:node:{name}"), Some("system:nodes")),
        )
    }
    /// The certificate the server of the node `name` shows.
    pub fn node_serving(&self, name: &str, addresses: &[IpAddr]) -> Result<Identity, PkiError> {
        let mut spec = LeafSpec::server(
            &format!("system:node:{name}"),
            [name.to_owned(), "localhost".into()],
            addresses.iter().copied().chain([IpAddr::V4(Ipv4Addr::LOCALHOST)]),
        );
        spec.organization = Some("system:nodes".into());
        self.stored(&format!("kubelet-{name}"), &spec)
    }
}

/// Both halves of what `NAME.crt` and `NAME.key` hold.
struct Pair {
    certificate_path: PathBuf,
    key_path: PathBuf,
    certificate: Option<String>,
    key: Option<String>,
}

impl Pair {
    fn read(dir: &Path, name: &str) -> Result<Self, PkiError> {
        let certificate_path = dir.join(format!("{name}.crt"));
        let key_path = dir.join(format!("{name}.key"));
        Ok(Pair {
            certificate: files::read(&certificate_path)?,
            key: files::read(&key_path)?,
            certificate_path,
            key_path,
        })
    }

    fn bad(&self, bad: BadPair, remedy: &'static str) -> PkiError {
        let (path, what) = match bad {
            BadPair::Certificate(what) => (&self.certificate_path, what),
            BadPair::Key(what) => (&self.key_path, what),
            BadPair::Strangers => {
                return PkiError::Mismatch {
                    certificate: self.certificate_path.clone(),
                    key: self.key_path.clone(),
                };
            }
        };
        PkiError::Corrupt {
            path: path.clone(),
            what,
            remedy,
        }
    }
}

fn load_authority(dir: &Path, name: &str) -> Result<Authority, PkiError> {
    let pair = Pair::read(dir, name)?;
    let (certificate, key) = match (&pair.certificate, &pair.key) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        (Some(_), None) => {
            return Err(PkiError::KeyMissing {
                certificate: pair.certificate_path,
                key: pair.key_path,
            });
        }
        (None, key) => {
            // No certificate: a first start, or one that was interrupted after the key was written.
            let key = match key {
                Some(key) => {
                    rcgen::KeyPair::from_pem(key).map_err(|error| pair.bad(BadPair::Key(error.to_string()), ""))?
                }
                None => {
                    let key = new_key("the key of the certificate authority")?;
                    files::write_private(&pair.key_path, key.serialize_pem().as_bytes())?;
                    key
                }
            };
            let certificate = Authority::self_signed(name, &key)?;
            files::write_private(&pair.certificate_path, certificate.as_bytes())?;
            (certificate, key.serialize_pem())
        }
    };
    let authority = Authority::from_pem(certificate, &key).map_err(|bad| pair.bad(bad, ""))?;
    if !authority.facts.valid_at(unix_now()) {
        return Err(PkiError::AuthorityNotValid {
            path: pair.certificate_path,
        });
    }
    Ok(authority)
}

fn load_leaf(dir: &Path, name: &str, spec: &LeafSpec, authority: &Authority) -> Result<Identity, PkiError> {
    const REMEDY: &str = ", or delete it and its other half: a new one will be made";
    let pair = Pair::read(dir, name)?;
    if let (Some(certificate), Some(key)) = (&pair.certificate, &pair.key) {
        match Identity::from_pem(certificate.clone(), key.clone()) {
            Ok(identity) => {
                let facts = identity
                    .facts()
                    .map_err(|what| pair.bad(BadPair::Certificate(what), REMEDY))?;
                match facts.stale(spec, &authority.facts, unix_now()) {
                    None => return Ok(identity),
                    Some(why) => tracing::info!(
                        certificate = %pair.certificate_path.display(), why, "renewing a certificate"
                    ),
                }
            }
            // A renewal was interrupted between its two files.
            Err(BadPair::Strangers) => {}
            Err(bad) => return Err(pair.bad(bad, REMEDY)),
        }
    }
    let identity = authority.issue(spec)?;
    files::write_private(&pair.key_path, identity.key_pem().as_bytes())?;
    files::write_private(&pair.certificate_path, identity.certificate_pem().as_bytes())?;
    Ok(identity)
}

fn load_tokens(dir: &Path, issuer: &str) -> Result<TokenKeys, PkiError> {
    let path = dir.join("sa.key");
    let pem = match files::read(&path)? {
        Some(pem) => pem,
        None => {
            let pem = new_key("the key of service accounts")?.serialize_pem();
            files::write_private(&path, pem.as_bytes())?;
            pem
        }
    };
    TokenKeys::from_pem(&pem, issuer).map_err(|what| PkiError::Corrupt {
        path,
        what,
        remedy: ", or delete it: every service-account token then becomes invalid",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn params() -> Params {
        Params {
            host_name: "Box".into(),
            addresses: vec!["192.0.2.7".parse().unwrap()],
            service_address: Some("10.43.0.1".parse().unwrap()),
            ..Params::default()
        }
    }

    #[test]
    fn a_second_start_finds_the_same_identity() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(dir.path(), params()).unwrap();
        let admin = first.admin_client().unwrap();
        let second = Pki::load_or_create(dir.path(), params()).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.serving().key_pem(), second.serving().key_pem());
        assert_eq!(first.tokens().key_id(), second.tokens().key_id());
        assert_eq!(admin.key_pem(), second.admin_client().unwrap().key_pem());
        for entry in fs::read_dir(dir.path()).unwrap() {
            use std::os::unix::fs::PermissionsExt;
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }

    #[test]
    fn the_serving_certificate_names_every_way_to_reach_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(dir.path(), params()).unwrap();
        let facts = pki.serving().facts().unwrap();
        for name in [
            "localhost",
            "box",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ] {
            assert!(facts.dns_names.contains(name), "{name}");
        }
        for address in ["127.0.0.1", "::1", "192.0.2.7", "10.43.0.1"] {
            assert!(facts.addresses.contains(&address.parse().unwrap()), "{address}");
        }
        assert!(facts.server_auth && !facts.client_auth);
    }

    #[test]
    fn a_leaf_follows_its_names_and_its_authority_but_the_authority_stays() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(dir.path(), params()).unwrap();
        let mut moved = params();
        moved.addresses.push("192.0.2.8".parse().unwrap());
        let second = Pki::load_or_create(dir.path(), moved.clone()).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_ne!(first.serving().certificate_pem(), second.serving().certificate_pem());
        assert_eq!(
            first.kubelet_client().certificate_pem(),
            second.kubelet_client().certificate_pem()
        );
        // Somebody installs another authority: leaves of the old one are made again.
        for file in ["ca.crt", "ca.key"] {
            fs::remove_file(dir.path().join(file)).unwrap();
        }
        let third = Pki::load_or_create(dir.path(), moved).unwrap();
        assert_ne!(third.ca_pem(), second.ca_pem());
        assert_ne!(
            third.kubelet_client().certificate_pem(),
            second.kubelet_client().certificate_pem()
        );
    }

    #[test]
    fn an_interrupted_start_or_renewal_heals() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(dir.path(), params()).unwrap();
        // Killed between the key and the certificate of the authority.
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        // Killed between the key and the certificate of a renewed leaf.
        let other = first.issue(&LeafSpec::client("x", None)).unwrap();
        fs::write(dir.path().join("apiserver.key"), other.key_pem()).unwrap();
        let second = Pki::load_or_create(dir.path(), params()).unwrap();
        assert_eq!(first.authority.facts.public_key, second.authority.facts.public_key);
        assert_eq!(first.authority.facts.raw_subject, second.authority.facts.raw_subject);
        assert_eq!(first.kubelet_client().key_pem(), second.kubelet_client().key_pem());
    }

    #[test]
    fn damage_is_named_and_never_papered_over() {
        let damaged = |file: &str, content: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            Pki::load_or_create(dir.path(), params()).unwrap();
            let path = dir.path().join(file);
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let error = Pki::load_or_create(dir.path(), params()).unwrap_err();
            (error.to_string(), path.display().to_string())
        };
        for (file, content, says) in [
            ("ca.key", None, "missing"),
            ("ca.crt", Some("rubbish"), "damaged"),
            ("ca.key", Some("rubbish"), "damaged"),
            ("sa.key", Some(""), "damaged"),
            ("apiserver.crt", Some("rubbish"), "delete it"),
        ] {
            let (message, path) = damaged(file, content);
            assert!(message.contains(says), "{file}: {message}");
            assert!(message.contains(&path), "{file}: {message}");
        }
        let stranger = new_key("x").unwrap().serialize_pem();
        let (message, _) = damaged("ca.key", Some(&stranger));
        assert!(message.contains("do not belong together"), "{message}");
    }

    #[test]
    fn names_that_cannot_be_in_a_certificate_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut bad = params();
        bad.extra_names.push("höst".into());
        assert!(matches!(
            Pki::load_or_create(dir.path(), bad),
            Err(PkiError::Issue { .. })
        ));
    }
}
