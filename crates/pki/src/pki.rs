//! The directory a cluster keeps its identity in: made at first start, checked and renewed at every other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::cert::{self, Authority, Identity, LeafSpec, unix_now};
use crate::keys::{CA, FRONT_PROXY_CA};
use crate::present::Present;
use crate::request::Signer;
use crate::stored::{account_keys, bad_account_key, load_authority, load_leaf};
use crate::tls::{self, ClientVerifier};
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
    /// Where the keys of tokens are published for others (an https URL), if that is not this server.
    pub jwks_uri: Option<String>,
    /// How long leaf certificates live.
    pub leaf_lifetime: Duration,
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
            jwks_uri: None,
            leaf_lifetime: cert::LEAF_LIFETIME,
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
///
/// Leaves and authorities are replaced while others use them: ask for what is needed when it is needed, or follow
/// [`Pki::changes`]. What is handed out as a place ([`Present`], [`ClientVerifier`], [`TokenKeys`]) changes by itself.
pub struct Pki {
    dir: PathBuf,
    params: Params,
    state: Present<State>,
    /// One change at a time.
    changing: Mutex<()>,
    verifier: ClientVerifier,
    front_proxy_verifier: ClientVerifier,
    tokens: Arc<TokenKeys>,
    signer: Present<Signer>,
    bundle: Present<String>,
}

/// Everything that is replaced together.
pub struct State {
    ca: Trusted,
    front_proxy: Trusted,
    /// By name, these three and whatever else was asked for.
    leaves: BTreeMap<String, Leaf>,
    serving: Identity,
    kubelet_client: Identity,
    front_proxy_client: Identity,
    /// How nodes are talked to.
    node_client: Arc<ClientConfig>,
}

/// An authority, and who else is believed in its place.
struct Trusted {
    authority: Authority,
    /// The one that issues first.
    all: Vec<CertificateDer<'static>>,
    /// What makes its leaves believed by those who know only the old one.
    cross: Option<CertificateDer<'static>>,
    bundle: String,
}

#[derive(Clone)]
struct Leaf {
    spec: LeafSpec,
    of: Issuer,
    identity: Identity,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Issuer {
    Cluster,
    FrontProxy,
}

const SERVING: &str = "apiserver";
const KUBELET_CLIENT: &str = "apiserver-kubelet-client";
pub(crate) const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl State {
    /// From what lies in `dir`. Leaves that are missing, stale or `renewed` are made.
    fn load(
        dir: &Path,
        wanted: BTreeMap<String, (LeafSpec, Issuer)>,
        lifetime: Duration,
        now: i64,
        renewed: &dyn Fn(&str) -> bool,
    ) -> Result<Self, PkiError> {
        let ca = Trusted::load(dir, CA)?;
        let front_proxy = Trusted::load(dir, FRONT_PROXY_CA)?;
        let mut leaves = BTreeMap::new();
        for (name, (spec, of)) in wanted {
            let trusted = match of {
                Issuer::Cluster => &ca,
                Issuer::FrontProxy => &front_proxy,
            };
            let identity = load_leaf(dir, &name, &spec, &trusted.authority, lifetime, now, renewed(&name))?;
            let identity = identity.followed_by(trusted.cross.clone());
            leaves.insert(name, Leaf { spec, of, identity });
        }
        let leaf = |name: &str| {
            let found = leaves.get(name).map(|leaf: &Leaf| leaf.identity.clone());
            found.ok_or_else(|| PkiError::Issue {
                what: name.to_owned(),
                reason: "it was not asked for".into(),
            })
        };
        let (serving, kubelet_client) = (leaf(SERVING)?, leaf(KUBELET_CLIENT)?);
        let front_proxy_client = leaf(FRONT_PROXY_CLIENT)?;
        let node_client = tls::client_config_of(&ca.all, Some(&kubelet_client), &["http/1.1"]).map_err(unusable)?;
        Ok(State {
            serving,
            kubelet_client,
            front_proxy_client,
            ca,
            front_proxy,
            leaves,
            node_client,
        })
    }
}

impl Trusted {
    fn load(dir: &Path, name: &str) -> Result<Self, PkiError> {
        let authority = load_authority(dir, name)?;
        let mut all = vec![authority.certificate.clone()];
        let mut bundle = authority.certificate_pem.clone();
        let read = |what: &str| {
            let path = dir.join(format!("{name}-{what}.crt"));
            let text = files::read(&path)?;
            let parsed = text.as_deref().map(cert::parse_chain).transpose();
            let parsed = parsed.map_err(|what| PkiError::Corrupt { path, what, remedy: "" })?;
            Ok::<_, PkiError>(parsed.map(|mut chain| chain.swap_remove(0)))
        };
        for what in ["next", "old"] {
            if let Some(certificate) = read(what)? {
                bundle.push_str(&crate::request::certificate_pem(&certificate));
                all.push(certificate);
            }
        }
        // Left over where a retirement was interrupted.
        let cross = read("cross")?.filter(|_| all.len() > 1);
        Ok(Trusted {
            authority,
            all,
            cross,
            bundle,
        })
    }
}

fn unusable(error: tls::TlsError) -> PkiError {
    PkiError::Issue {
        what: "a TLS configuration of the cluster's certificates".into(),
        reason: error.to_string(),
    }
}

impl Pki {
    /// Loads the identity kept in `dir`; makes what is missing and renews what is stale.
    /// The caller holds the lock of the data directory.
    pub fn load_or_create(dir: &Path, params: Params) -> Result<Self, PkiError> {
        files::private_dir(dir)?;
        let client = LeafSpec::client("kube-apiserver-kubelet-client", Some("system:masters"));
        let proxy = LeafSpec::client("front-proxy-client", None);
        let wanted = BTreeMap::from([
            (SERVING.to_owned(), (params.serving(), Issuer::Cluster)),
            (KUBELET_CLIENT.to_owned(), (client, Issuer::Cluster)),
            (FRONT_PROXY_CLIENT.to_owned(), (proxy, Issuer::FrontProxy)),
        ]);
        let state = State::load(dir, wanted, params.leaf_lifetime, unix_now(), &|_| false)?;
        let (signing, others) = account_keys(dir)?;
        let tokens = TokenKeys::from_pem(&signing, &params.issuer())
            .and_then(|keys| {
                keys.replace(&signing, &others)?;
                Ok(keys)
            })
            .map_err(|what| bad_account_key(dir, what))?
            .with_issuers(params.issuers.clone())
            .with_audiences(params.api_audiences.clone());
        Ok(Pki {
            dir: dir.to_owned(),
            params,
            changing: Mutex::default(),
            verifier: ClientVerifier::of_authorities(&state.ca.all).map_err(unusable)?,
            front_proxy_verifier: ClientVerifier::of_authorities(&state.front_proxy.all).map_err(unusable)?,
            tokens: Arc::new(tokens),
            signer: Present::new(state.ca.authority.signer.clone()),
            bundle: Present::new(state.ca.bundle.clone()),
            state: Present::new(state),
        })
    }

    /// Takes in what others have made of the directory's authorities and keys, and makes leaves of other authorities anew.
    pub fn reload(&self) -> Result<Vec<String>, PkiError> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (signing, others) = account_keys(&self.dir)?;
        let renewed = self.change(unix_now(), &|_| false)?;
        self.tokens
            .replace(&signing, &others)
            .map_err(|what| bad_account_key(&self.dir, what))?;
        Ok(renewed)
    }

    /// When the next leaf is to be renewed, in seconds since 1970.
    pub fn next_renewal(&self) -> Option<i64> {
        let state = self.state.get();
        state
            .leaves
            .values()
            .filter_map(|leaf| leaf.identity.renewal().ok())
            .min()
    }

    /// Renews the leaves whose time has come; their names.
    pub fn renew_due(&self, now: i64) -> Result<Vec<String>, PkiError> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.change(now, &|_| false)
    }

    /// Renews leaves whether their time has come or not: those `wanted`; their names.
    pub fn renew(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>, PkiError> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.change(unix_now(), wanted)
    }

    fn change(&self, now: i64, renewed: &dyn Fn(&str) -> bool) -> Result<Vec<String>, PkiError> {
        let old = self.state.get();
        let wanted = old.leaves.iter();
        let wanted = wanted.map(|(name, leaf)| (name.clone(), (leaf.spec.clone(), leaf.of)));
        let new = State::load(&self.dir, wanted.collect(), self.params.leaf_lifetime, now, renewed)?;
        let is_new = |(name, leaf): &(&String, &Leaf)| {
            let before = old.leaves.get(*name);
            before.is_none_or(|before| before.identity.certificate_pem() != leaf.identity.certificate_pem())
        };
        let names: Vec<String> = new.leaves.iter().filter(is_new).map(|(name, _)| name.clone()).collect();
        // Whom to believe first: whoever sees a new leaf finds its authority believed.
        if new.ca.all != old.ca.all {
            self.verifier.believe(&new.ca.all).map_err(unusable)?;
        }
        if new.front_proxy.all != old.front_proxy.all {
            self.front_proxy_verifier
                .believe(&new.front_proxy.all)
                .map_err(unusable)?;
        }
        self.signer.set(new.ca.authority.signer.clone());
        self.bundle.set_if_new(new.ca.bundle.clone());
        self.state.set(new);
        Ok(names)
    }

    /// Tells of every change of what is here.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<Arc<State>> {
        self.state.follow()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
    pub fn params(&self) -> &Params {
        &self.params
    }
    /// The cluster's certificate authorities, the one that issues first: what clients and nodes need.
    pub fn ca_pem(&self) -> String {
        self.state.get().ca.bundle.clone()
    }
    /// The same, to be followed: what the ConfigMap `kube-root-ca.crt` needs.
    pub fn ca_bundle(&self) -> Present<String> {
        self.bundle.clone()
    }
    /// The authority that issues.
    pub fn ca(&self) -> CertificateDer<'static> {
        self.state.get().ca.authority.certificate.clone()
    }
    /// All authorities whose certificates are believed, the one that issues first.
    pub fn authorities(&self) -> Vec<CertificateDer<'static>> {
        self.state.get().ca.all.clone()
    }
    /// They sign the requests an aggregated API server accepts from this one.
    pub fn front_proxy_ca_pem(&self) -> String {
        self.state.get().front_proxy.bundle.clone()
    }
    /// Believes clients of the cluster's authorities.
    pub fn verifier(&self) -> ClientVerifier {
        self.verifier.clone()
    }
    /// Believes the front proxy.
    pub fn front_proxy_verifier(&self) -> ClientVerifier {
        self.front_proxy_verifier.clone()
    }
    /// The API server's own serving certificate.
    pub fn serving(&self) -> Identity {
        self.state.get().serving.clone()
    }
    /// What the API server's listener shows, and whose certificates it asks for; see
    /// [`tls::server_config_with_authorities`].
    pub fn serving_config(&self, verifier: &ClientVerifier) -> Result<Arc<ServerConfig>, tls::TlsError> {
        tls::server_config_with_authorities(self.serving(), &self.authorities(), verifier)
    }
    /// What the API server shows to nodes (user `kube-apiserver-kubelet-client`, group `system:masters`).
    pub fn kubelet_client(&self) -> Identity {
        self.state.get().kubelet_client.clone()
    }
    /// How the API server talks to nodes.
    pub fn node_client_config(&self) -> Arc<ClientConfig> {
        self.state.get().node_client.clone()
    }
    /// What the API server shows to aggregated API servers.
    pub fn front_proxy_client(&self) -> Identity {
        self.state.get().front_proxy_client.clone()
    }
    /// Signs and verifies service-account tokens.
    pub fn tokens(&self) -> Arc<TokenKeys> {
        self.tokens.clone()
    }
    /// Signs what others ask the cluster's authority for.
    pub fn signer(&self) -> Present<Signer> {
        self.signer.clone()
    }
    /// A certificate of the cluster's authority, in memory only.
    pub fn issue(&self, spec: &LeafSpec) -> Result<Identity, PkiError> {
        self.state.get().ca.authority.issue(spec, self.params.leaf_lifetime)
    }
    /// A certificate of the cluster's authority kept as `NAME.crt` and `NAME.key`, from now on renewed when stale.
    pub fn stored(&self, name: &str, spec: &LeafSpec) -> Result<Identity, PkiError> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(PkiError::Issue {
                what: format!("a certificate kept as {name:?}"),
                reason: "this cannot be a file's name".into(),
            });
        }
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.state.get();
        if let Some(known) = old.leaves.get(name)
            && known.spec == *spec
        {
            return Ok(known.identity.clone());
        }
        let (lifetime, now) = (self.params.leaf_lifetime, unix_now());
        let identity = load_leaf(&self.dir, name, spec, &old.ca.authority, lifetime, now, false)?;
        let identity = identity.followed_by(old.ca.cross.clone());
        let mut wanted: BTreeMap<String, (LeafSpec, Issuer)> = old
            .leaves
            .iter()
            .map(|(name, leaf)| (name.clone(), (leaf.spec.clone(), leaf.of)))
            .collect();
        wanted.insert(name.to_owned(), (spec.clone(), Issuer::Cluster));
        self.state
            .set(State::load(&self.dir, wanted, lifetime, now, &|_| false)?);
        Ok(identity)
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
    fn leaves_are_renewed_when_their_time_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let short = Params {
            leaf_lifetime: Duration::from_secs(1000),
            ..params()
        };
        let pki = Pki::load_or_create(dir.path(), short).unwrap();
        let admin = pki.admin_client().unwrap();
        let (mut changes, first) = (pki.changes(), pki.next_renewal().unwrap());
        let (from, until) = admin.validity().unwrap();
        assert!((1000..=1101).contains(&(until - from)), "{}", until - from);
        let all: Vec<i64> = pki
            .state
            .get()
            .leaves
            .values()
            .map(|leaf| leaf.identity.renewal().unwrap())
            .collect();
        for at in &all {
            assert!((from + 750..from + 1000).contains(at), "{at} of {from}..{until}");
        }
        assert_eq!(pki.renew_due(first - 1).unwrap(), Vec::<String>::new());
        let due = all.iter().filter(|at| **at == first).count();
        assert_eq!(pki.renew_due(first).unwrap().len(), due);
        assert!(changes.has_changed().unwrap());
        assert_eq!(pki.renew_due(until).unwrap().len(), 4);
        assert_eq!(pki.renew(&|name| name == "admin").unwrap(), ["admin"]);
        let renewed = pki.admin_client().unwrap();
        assert_ne!(renewed.certificate_pem(), admin.certificate_pem());
        changes.mark_unchanged();
        // A restart finds what was renewed.
        let again = Pki::load_or_create(dir.path(), params()).unwrap();
        assert_eq!(
            again.admin_client().unwrap().certificate_pem(),
            renewed.certificate_pem()
        );
    }

    #[test]
    fn the_leaves_of_a_stopped_server_are_renewed_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(dir.path(), params()).unwrap();
        pki.node_serving("n1", &[]).unwrap();
        let all = [
            "apiserver",
            "apiserver-kubelet-client",
            "front-proxy-client",
            "kubelet-n1",
        ];
        assert_eq!(crate::renew_stored(dir.path(), &|_| true).unwrap(), all);
        assert_eq!(
            crate::renew_stored(dir.path(), &|name| name == "kubelet-n1").unwrap(),
            ["kubelet-n1"]
        );
        let again = Pki::load_or_create(dir.path(), params()).unwrap();
        assert_ne!(again.serving().certificate_pem(), pki.serving().certificate_pem());
        let stored = fs::read_to_string(dir.path().join("apiserver.crt")).unwrap();
        assert_eq!(
            again.serving().certificate_pem(),
            stored,
            "it is what a server would have made"
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
        assert_eq!(
            first.state.get().ca.authority.facts.public_key,
            second.state.get().ca.authority.facts.public_key
        );
        assert_eq!(
            first.state.get().ca.authority.facts.raw_subject,
            second.state.get().ca.authority.facts.raw_subject
        );
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
        let stranger = cert::new_key("x").unwrap().serialize_pem();
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
