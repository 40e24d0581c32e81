//! Who is asking, as the server is configured to find out.
//!
//! `sampan-auth` decides about certificates, service accounts and static tokens from memory. Here are the sources that
//! need the API server: bootstrap tokens ([`bootstrap`], Secrets), outside issuers ([`issuers`], their published keys)
//! and a webhook ([`webhook`]). They are put together once; the file of outside issuers may change meanwhile.
//!
//! Deliberate differences from upstream: without `--anonymous-auth` only health and version are open to everybody;
//! anonymous access in the configuration file follows the file when it changes; distributed claims are not followed.

mod bootstrap;
mod config;
mod issuers;
mod jwt;
mod keys;
mod legacy;
mod proxy;
mod webhook;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_auth::{Anonymous, Authenticator, token_file};
use sampan_tasks::Tasks;

use crate::admission::Reader;
use crate::control_plane::{BoundObjects, Config};
use crate::outbound::Outbound;
use crate::reload::{self, Reloads};

pub use config::Oidc;
pub use legacy::Tracker;
pub use proxy::RequestHeader;
pub use sampan_pki::jws::Algorithm;

/// How requests are authenticated, besides certificates and service accounts' tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether requests without credentials are let through to authorization. `None`: to health and version only.
    pub anonymous: Option<bool>,
    /// A file of static tokens.
    pub token_file: Option<PathBuf>,
    /// Whether Secrets of type `bootstrap.kubernetes.io/token` are tokens.
    pub bootstrap_tokens: bool,
    /// An AuthenticationConfiguration.
    pub config_file: Option<PathBuf>,
    /// One outside issuer, in the older way.
    pub oidc: Option<Oidc>,
    pub webhook: Option<Webhook>,
    pub request_header: RequestHeader,
    /// Whether the tokens that Pods get by default live a year, for clients that do not renew them.
    pub extend_token_expiration: bool,
    /// No token that is asked for lives longer.
    pub max_token_expiration: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            anonymous: None,
            token_file: None,
            bootstrap_tokens: false,
            config_file: None,
            oidc: None,
            webhook: None,
            request_header: RequestHeader::default(),
            extend_token_expiration: true,
            max_token_expiration: None,
        }
    }
}

/// A webhook that knows tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// A kubeconfig.
    pub config_file: PathBuf,
    /// Of TokenReview: `v1` or `v1beta1`.
    pub version: String,
    pub cache_ttl: Duration,
}

/// Why authentication cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the token file {} is not valid: {why}", path.display())]
    TokenFile { path: PathBuf, why: String },
    #[error("the authentication configuration {} is not valid: {why}", path.display())]
    Configuration { path: PathBuf, why: String },
    #[error("the --oidc-* options are not valid: {0}")]
    Oidc(String),
    #[error("{0}")]
    Conflict(&'static str),
    #[error(transparent)]
    Webhook(#[from] crate::outbound::KubeconfigError),
    #[error("unsupported authentication webhook version {0:?}, supported versions are \"v1\", \"v1beta1\"")]
    Version(String),
    #[error("the front proxy's authority is unusable: {0}")]
    FrontProxy(String),
    #[error(transparent)]
    Tls(#[from] sampan_pki::tls::TlsError),
    #[error("changes of {} cannot be followed: {source}", path.display())]
    Follow { path: PathBuf, source: std::io::Error },
}

/// What authentication is made of while the server runs.
pub struct Setup {
    pub authenticator: Arc<Authenticator>,
    pub reloads: Arc<Reloads>,
    pub issuers: Option<Arc<issuers::Issuers>>,
    pub webhook: Option<Arc<webhook::Reviewer>>,
    pub tracker: Tracker,
}

impl Setup {
    /// The metrics.
    pub fn text(&self, out: &mut String) {
        self.reloads.text("apiserver_authentication_config_controller", out);
        if let Some(issuers) = &self.issuers {
            issuers.text(out);
        }
        if let Some(webhook) = &self.webhook {
            webhook.text(out);
        }
    }
}

/// Puts it together, and follows the files that may change.
pub fn setup(config: &Config, reader: &Reader, outbound: &Outbound, tasks: &Tasks) -> Result<Setup, SetupError> {
    let (options, pki) = (&config.authentication, &config.pki);
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| SetupError::Read {
            path: path.clone(),
            source,
        })
    };
    let tracker = Tracker::default();
    let objects = BoundObjects {
        reader: reader.clone(),
        tracker: tracker.clone(),
    };
    let verifier = pki.verifier();
    let tokens = pki.tokens();
    let mut authenticator = Authenticator::new(Some(verifier), tokens.clone(), Arc::new(objects)).with_front_proxy(
        options
            .request_header
            .front_proxy(pki)
            .map_err(SetupError::FrontProxy)?,
    );
    for (token, user) in &config.fixed_tokens {
        authenticator = authenticator.with_fixed_token(token, user.clone());
    }
    if let Some(path) = &options.token_file {
        let wrong = |why: String| SetupError::TokenFile {
            path: path.clone(),
            why,
        };
        let text = String::from_utf8(read(path)?).map_err(|error| wrong(error.to_string()))?;
        for (token, user) in token_file::parse(&text).map_err(wrong)? {
            authenticator = authenticator.with_fixed_token(&token, user);
        }
    }
    if options.bootstrap_tokens {
        authenticator = authenticator.with_source(Arc::new(bootstrap::BootstrapTokens(reader.clone())));
    }
    let reserved: Vec<String> = tokens.issuers().map(str::to_owned).collect();
    let mut issuers = None;
    let mut anonymous = match options.anonymous {
        None => Anonymous::default(),
        Some(true) => Anonymous::Everywhere,
        Some(false) => Anonymous::Never,
    };
    let mut file = None;
    if let Some(path) = &options.config_file {
        if options.oidc.is_some() {
            return Err(SetupError::Conflict(
                "--authentication-config and the --oidc-* options are mutually exclusive",
            ));
        }
        let content = read(path)?;
        let configured = config::parse(&content, &reserved).map_err(|why| SetupError::Configuration {
            path: path.clone(),
            why,
        })?;
        if let Some(configured) = configured.anonymous {
            if options.anonymous.is_some() {
                return Err(SetupError::Conflict(
                    "anonymous: Forbidden: --anonymous-auth flag cannot be set when anonymous field is configured in authentication configuration file",
                ));
            }
            anonymous = configured;
        }
        issuers = Some(issuers::Issuers::new(configured.issuers, &Algorithm::ALL, outbound));
        file = Some((path.clone(), content));
    } else if let Some(oidc) = &options.oidc {
        let issuer = oidc.issuer(&reserved).map_err(SetupError::Oidc)?;
        issuers = Some(issuers::Issuers::new(vec![issuer], &oidc.algorithms, outbound));
    }
    if let Some(issuers) = &issuers {
        authenticator = authenticator.with_source(issuers.clone());
    }
    let mut reviewer = None;
    if let Some(webhook) = &options.webhook {
        let built = webhook::Reviewer::new(webhook, tokens.audiences(), outbound)?;
        authenticator = authenticator.with_source(built.clone());
        reviewer = Some(built);
    }
    authenticator.set_anonymous(anonymous);
    let authenticator = Arc::new(authenticator);
    let reloads = Arc::new(Reloads::default());
    if let (Some((path, content)), Some(issuers)) = (file, issuers.clone()) {
        let live = authenticator.clone();
        let by_flag = options.anonymous.is_some();
        let take = move |content: &[u8]| {
            let configured = config::parse(content, &reserved)?;
            match configured.anonymous {
                Some(_) if by_flag => {
                    return Err("anonymous: Forbidden: --anonymous-auth flag is set".to_owned());
                }
                Some(anonymous) => live.set_anonymous(anonymous),
                None if by_flag => {}
                None => live.set_anonymous(Anonymous::default()),
            }
            issuers.replace(configured.issuers);
            Ok(())
        };
        reload::follow(tasks, &path, content, reloads.clone(), take).map_err(|source| SetupError::Follow {
            path: path.clone(),
            source,
        })?;
    }
    Ok(Setup {
        authenticator,
        reloads,
        issuers,
        webhook: reviewer,
        tracker,
    })
}
