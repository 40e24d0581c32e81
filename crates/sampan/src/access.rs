//! Who is asking and who may: the options of authentication and authorization, under upstream's names.
//!
//! In the configuration file they stand under the key `access`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use sampan_apiserver::authentication::{self, Algorithm, Oidc, RequestHeader, Webhook};
use sampan_apiserver::authorization;
use serde::Deserialize;

use crate::options::{OptionsError, invalid};

/// What may be set. `None`: not said here.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Authentication and authorization")]
pub struct Access {
    /// Whether requests without credentials are let through to authorization [default: only to health and version]
    #[arg(long, env = "SAMPAN_ANONYMOUS_AUTH", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    /// A file of static tokens: token,user,uid[,"group,..."]
    #[arg(long, env = "SAMPAN_TOKEN_AUTH_FILE", value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Whether Secrets of type bootstrap.kubernetes.io/token in kube-system are tokens; machines join with them [default: true]
    #[arg(long, env = "SAMPAN_ENABLE_BOOTSTRAP_TOKEN_AUTH", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_bootstrap_token_auth: Option<bool>,
    /// A file that configures outside issuers of tokens and anonymous access (an AuthenticationConfiguration); it may change while the server runs
    #[arg(long, env = "SAMPAN_AUTHENTICATION_CONFIG", value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// An outside issuer whose tokens are believed
    #[arg(long, env = "SAMPAN_OIDC_ISSUER_URL", value_name = "TEXT")]
    pub oidc_issuer_url: Option<String>,
    /// What that issuer calls this cluster
    #[arg(long, env = "SAMPAN_OIDC_CLIENT_ID", value_name = "TEXT")]
    pub oidc_client_id: Option<String>,
    /// The authority of the issuer's certificate (PEM) [default: those this machine trusts]
    #[arg(long, env = "SAMPAN_OIDC_CA_FILE", value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that names the user [default: sub]
    #[arg(long, env = "SAMPAN_OIDC_USERNAME_CLAIM", value_name = "TEXT")]
    pub oidc_username_claim: Option<String>,
    /// What is put before names; - for nothing [default: the issuer and #, but for the claim email]
    #[arg(long, env = "SAMPAN_OIDC_USERNAME_PREFIX", value_name = "TEXT")]
    pub oidc_username_prefix: Option<String>,
    /// The claim that names the user's groups
    #[arg(long, env = "SAMPAN_OIDC_GROUPS_CLAIM", value_name = "TEXT")]
    pub oidc_groups_claim: Option<String>,
    /// What is put before groups
    #[arg(long, env = "SAMPAN_OIDC_GROUPS_PREFIX", value_name = "TEXT")]
    pub oidc_groups_prefix: Option<String>,
    /// Algorithms the issuer may sign with [default: RS256]
    #[arg(
        long,
        env = "SAMPAN_OIDC_SIGNING_ALGS",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub oidc_signing_algs: Option<Vec<String>>,
    /// Claims that tokens must have, as CLAIM=VALUE
    #[arg(
        long,
        env = "SAMPAN_OIDC_REQUIRED_CLAIM",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub oidc_required_claim: Option<Vec<String>>,
    /// A webhook that knows tokens (a kubeconfig)
    #[arg(long, env = "SAMPAN_AUTHENTICATION_TOKEN_WEBHOOK_CONFIG_FILE", value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// The version of TokenReview it is asked in [default: v1beta1]
    #[arg(long, env = "SAMPAN_AUTHENTICATION_TOKEN_WEBHOOK_VERSION", value_name = "TEXT")]
    pub authentication_token_webhook_version: Option<String>,
    /// How long its answers are remembered [default: 2m]
    #[arg(long, env = "SAMPAN_AUTHENTICATION_TOKEN_WEBHOOK_CACHE_TTL", value_name = "TEXT")]
    pub authentication_token_webhook_cache_ttl: Option<String>,
    /// The authority of the front proxy's certificates (PEM) [default: the cluster's own for that]
    #[arg(long, env = "SAMPAN_REQUESTHEADER_CLIENT_CA_FILE", value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of the front proxy
    #[arg(
        long,
        env = "SAMPAN_REQUESTHEADER_ALLOWED_NAMES",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub requestheader_allowed_names: Option<Vec<String>>,
    /// Headers that name the user [default: X-Remote-User]
    #[arg(
        long,
        env = "SAMPAN_REQUESTHEADER_USERNAME_HEADERS",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub requestheader_username_headers: Option<Vec<String>>,
    /// Headers that name the user's uid [default: X-Remote-Uid]
    #[arg(
        long,
        env = "SAMPAN_REQUESTHEADER_UID_HEADERS",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub requestheader_uid_headers: Option<Vec<String>>,
    /// Headers that name the user's groups [default: X-Remote-Group]
    #[arg(
        long,
        env = "SAMPAN_REQUESTHEADER_GROUP_HEADERS",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub requestheader_group_headers: Option<Vec<String>>,
    /// Beginnings of headers that say more of the user [default: X-Remote-Extra-]
    #[arg(
        long,
        env = "SAMPAN_REQUESTHEADER_EXTRA_HEADERS_PREFIX",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub requestheader_extra_headers_prefix: Option<Vec<String>>,
    /// Who issues service-account tokens: the first signs, all are believed [default: https://kubernetes.default.svc.DOMAIN]
    #[arg(
        long,
        env = "SAMPAN_SERVICE_ACCOUNT_ISSUER",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub service_account_issuer: Option<Vec<String>>,
    /// Where the keys of tokens are published for others, an https URL [default: the API server's /openid/v1/jwks]
    #[arg(long, env = "SAMPAN_SERVICE_ACCOUNT_JWKS_URI", value_name = "URL")]
    pub service_account_jwks_uri: Option<String>,
    /// What the API server is called in tokens [default: as their issuers]
    #[arg(long, env = "SAMPAN_API_AUDIENCES", value_name = "NAME,...", value_delimiter = ',')]
    pub api_audiences: Option<Vec<String>>,
    /// Whether the tokens Pods get by default live a year, for clients that do not renew them [default: true]
    #[arg(long, env = "SAMPAN_SERVICE_ACCOUNT_EXTEND_TOKEN_EXPIRATION", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub service_account_extend_token_expiration: Option<bool>,
    /// No token that is asked for lives longer
    #[arg(long, env = "SAMPAN_SERVICE_ACCOUNT_MAX_TOKEN_EXPIRATION", value_name = "TEXT")]
    pub service_account_max_token_expiration: Option<String>,
    /// Authorizers in their order: Node, RBAC, Webhook, AlwaysAllow, AlwaysDeny [default: Node,RBAC]
    #[arg(
        long,
        env = "SAMPAN_AUTHORIZATION_MODE",
        value_name = "NAME,...",
        value_delimiter = ','
    )]
    pub authorization_mode: Option<Vec<String>>,
    /// A file that configures authorizers (an AuthorizationConfiguration); it may change while the server runs
    #[arg(long, env = "SAMPAN_AUTHORIZATION_CONFIG", value_name = "FILE")]
    pub authorization_config: Option<PathBuf>,
    /// Refused: the policies of ABAC are not supported
    #[arg(long, env = "SAMPAN_AUTHORIZATION_POLICY_FILE", value_name = "FILE")]
    pub authorization_policy_file: Option<PathBuf>,
    /// The webhook of the mode Webhook (a kubeconfig)
    #[arg(long, env = "SAMPAN_AUTHORIZATION_WEBHOOK_CONFIG_FILE", value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// The version of SubjectAccessReview it is asked in [default: v1beta1]
    #[arg(long, env = "SAMPAN_AUTHORIZATION_WEBHOOK_VERSION", value_name = "TEXT")]
    pub authorization_webhook_version: Option<String>,
    /// How long it is remembered that something is allowed [default: 5m]
    #[arg(long, env = "SAMPAN_AUTHORIZATION_WEBHOOK_CACHE_AUTHORIZED_TTL", value_name = "TEXT")]
    pub authorization_webhook_cache_authorized_ttl: Option<String>,
    /// ... and that it is not [default: 30s]
    #[arg(
        long,
        env = "SAMPAN_AUTHORIZATION_WEBHOOK_CACHE_UNAUTHORIZED_TTL",
        value_name = "TEXT"
    )]
    pub authorization_webhook_cache_unauthorized_ttl: Option<String>,
}

/// What comes out, checked as far as it can be without reading the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub authentication: authentication::Options,
    pub authorization: authorization::Options,
    /// Of service-account tokens. Empty: after the cluster's domain.
    pub issuers: Vec<String>,
    /// `None`: our own address.
    pub jwks_uri: Option<String>,
    /// Empty: as the issuers.
    pub audiences: Vec<String>,
}

impl Access {
    /// What is said here, and for the rest what `file` says.
    pub fn over(self, file: Access) -> Access {
        Access {
            anonymous_auth: self.anonymous_auth.or(file.anonymous_auth),
            token_auth_file: self.token_auth_file.or(file.token_auth_file),
            enable_bootstrap_token_auth: self.enable_bootstrap_token_auth.or(file.enable_bootstrap_token_auth),
            authentication_config: self.authentication_config.or(file.authentication_config),
            oidc_issuer_url: self.oidc_issuer_url.or(file.oidc_issuer_url),
            oidc_client_id: self.oidc_client_id.or(file.oidc_client_id),
            oidc_ca_file: self.oidc_ca_file.or(file.oidc_ca_file),
            oidc_username_claim: self.oidc_username_claim.or(file.oidc_username_claim),
            oidc_username_prefix: self.oidc_username_prefix.or(file.oidc_username_prefix),
            oidc_groups_claim: self.oidc_groups_claim.or(file.oidc_groups_claim),
            oidc_groups_prefix: self.oidc_groups_prefix.or(file.oidc_groups_prefix),
            oidc_signing_algs: self.oidc_signing_algs.or(file.oidc_signing_algs),
            oidc_required_claim: self.oidc_required_claim.or(file.oidc_required_claim),
            authentication_token_webhook_config_file: self
                .authentication_token_webhook_config_file
                .or(file.authentication_token_webhook_config_file),
            authentication_token_webhook_version: self
                .authentication_token_webhook_version
                .or(file.authentication_token_webhook_version),
            authentication_token_webhook_cache_ttl: self
                .authentication_token_webhook_cache_ttl
                .or(file.authentication_token_webhook_cache_ttl),
            requestheader_client_ca_file: self.requestheader_client_ca_file.or(file.requestheader_client_ca_file),
            requestheader_allowed_names: self.requestheader_allowed_names.or(file.requestheader_allowed_names),
            requestheader_username_headers: self
                .requestheader_username_headers
                .or(file.requestheader_username_headers),
            requestheader_uid_headers: self.requestheader_uid_headers.or(file.requestheader_uid_headers),
            requestheader_group_headers: self.requestheader_group_headers.or(file.requestheader_group_headers),
            requestheader_extra_headers_prefix: self
                .requestheader_extra_headers_prefix
                .or(file.requestheader_extra_headers_prefix),
            service_account_issuer: self.service_account_issuer.or(file.service_account_issuer),
            service_account_jwks_uri: self.service_account_jwks_uri.or(file.service_account_jwks_uri),
            api_audiences: self.api_audiences.or(file.api_audiences),
            service_account_extend_token_expiration: self
                .service_account_extend_token_expiration
                .or(file.service_account_extend_token_expiration),
            service_account_max_token_expiration: self
                .service_account_max_token_expiration
                .or(file.service_account_max_token_expiration),
            authorization_mode: self.authorization_mode.or(file.authorization_mode),
            authorization_config: self.authorization_config.or(file.authorization_config),
            authorization_policy_file: self.authorization_policy_file.or(file.authorization_policy_file),
            authorization_webhook_config_file: self
                .authorization_webhook_config_file
                .or(file.authorization_webhook_config_file),
            authorization_webhook_version: self
                .authorization_webhook_version
                .or(file.authorization_webhook_version),
            authorization_webhook_cache_authorized_ttl: self
                .authorization_webhook_cache_authorized_ttl
                .or(file.authorization_webhook_cache_authorized_ttl),
            authorization_webhook_cache_unauthorized_ttl: self
                .authorization_webhook_cache_unauthorized_ttl
                .or(file.authorization_webhook_cache_unauthorized_ttl),
        }
    }

    /// Fills in defaults and checks everything. Files that are not absolute are below `directory`.
    pub fn settle(self, directory: &Path) -> Result<Settled, OptionsError> {
        let file = |path: Option<PathBuf>| path.map(|path| directory.join(path));
        if let Some(path) = &self.authorization_policy_file {
            return Err(invalid(
                "--authorization-policy-file",
                path.display(),
                "ABAC is not supported here: say the same with roles and bindings (RBAC), or ask a Webhook",
            ));
        }
        let issuers = self.service_account_issuer.clone().unwrap_or_default();
        for (index, issuer) in issuers.iter().enumerate() {
            let earlier = issuers.iter().take(index).any(|known| known == issuer);
            if issuer.is_empty() || earlier {
                return Err(invalid("--service-account-issuer", issuer, "name each issuer once"));
            }
        }
        if let Some(uri) = &self.service_account_jwks_uri
            && !uri.starts_with("https://")
        {
            return Err(invalid(
                "--service-account-jwks-uri",
                uri,
                "give a URL that begins with https://",
            ));
        }
        let longest = duration(
            "--service-account-max-token-expiration",
            self.service_account_max_token_expiration,
        )?;
        if longest.is_some_and(|longest| !(3600..=1 << 32).contains(&longest.as_secs())) {
            return Err(invalid(
                "--service-account-max-token-expiration",
                format!("{longest:?}"),
                "give an hour to 2^32 seconds",
            ));
        }
        let mut webhook = None;
        if let Some(config_file) = file(self.authentication_token_webhook_config_file) {
            let ttl = duration(
                "--authentication-token-webhook-cache-ttl",
                self.authentication_token_webhook_cache_ttl,
            )?;
            webhook = Some(Webhook {
                config_file,
                version: self
                    .authentication_token_webhook_version
                    .unwrap_or_else(|| "v1beta1".into()),
                cache_ttl: ttl.unwrap_or(Duration::from_secs(120)),
            });
        }
        let oidc = match (self.oidc_issuer_url, self.oidc_client_id) {
            (None, None) => None,
            (Some(url), None) => {
                return Err(invalid(
                    "--oidc-issuer-url",
                    url,
                    "--oidc-client-id must be given with it",
                ));
            }
            (None, Some(id)) => {
                return Err(invalid(
                    "--oidc-client-id",
                    id,
                    "--oidc-issuer-url must be given with it",
                ));
            }
            (Some(issuer_url), Some(client_id)) => Some(Oidc {
                issuer_url,
                client_id,
                ca_file: file(self.oidc_ca_file),
                username_claim: self.oidc_username_claim.unwrap_or_else(|| "sub".into()),
                username_prefix: self.oidc_username_prefix,
                groups_claim: self.oidc_groups_claim,
                groups_prefix: self.oidc_groups_prefix.unwrap_or_default(),
                required_claims: required(self.oidc_required_claim.unwrap_or_default())?,
                algorithms: algorithms(self.oidc_signing_algs)?,
            }),
        };
        let defaults = authorization::Options::default();
        let authorized = duration(
            "--authorization-webhook-cache-authorized-ttl",
            self.authorization_webhook_cache_authorized_ttl,
        )?;
        let unauthorized = duration(
            "--authorization-webhook-cache-unauthorized-ttl",
            self.authorization_webhook_cache_unauthorized_ttl,
        )?;
        Ok(Settled {
            authentication: authentication::Options {
                anonymous: self.anonymous_auth,
                token_file: file(self.token_auth_file),
                bootstrap_tokens: self.enable_bootstrap_token_auth.unwrap_or(true),
                config_file: file(self.authentication_config),
                oidc,
                webhook,
                request_header: RequestHeader {
                    client_ca_file: file(self.requestheader_client_ca_file),
                    allowed_names: self.requestheader_allowed_names,
                    username_headers: self.requestheader_username_headers,
                    uid_headers: self.requestheader_uid_headers,
                    group_headers: self.requestheader_group_headers,
                    extra_headers_prefix: self.requestheader_extra_headers_prefix,
                },
                extend_token_expiration: self.service_account_extend_token_expiration.unwrap_or(true),
                max_token_expiration: longest,
            },
            authorization: authorization::Options {
                modes: self.authorization_mode.unwrap_or_default(),
                config_file: file(self.authorization_config),
                webhook_config_file: file(self.authorization_webhook_config_file),
                webhook_version: self.authorization_webhook_version.unwrap_or(defaults.webhook_version),
                webhook_authorized_ttl: authorized.unwrap_or(defaults.webhook_authorized_ttl),
                webhook_unauthorized_ttl: unauthorized.unwrap_or(defaults.webhook_unauthorized_ttl),
            },
            issuers,
            jwks_uri: self.service_account_jwks_uri,
            audiences: self.api_audiences.unwrap_or_default(),
        })
    }
}

fn duration(option: &'static str, text: Option<String>) -> Result<Option<Duration>, OptionsError> {
    text.map(|text| {
        sampan_apiserver::request::go_duration(&text)
            .ok_or_else(|| invalid(option, text, "give a duration such as 30s, 5m or 1h30m"))
    })
    .transpose()
}

fn required(claims: Vec<String>) -> Result<Vec<(String, String)>, OptionsError> {
    let pair = |text: String| match text.split_once('=') {
        Some((claim, value)) if !claim.is_empty() => Ok((claim.to_owned(), value.to_owned())),
        _ => Err(invalid("--oidc-required-claim", text, "give CLAIM=VALUE")),
    };
    claims.into_iter().map(pair).collect()
}

fn algorithms(names: Option<Vec<String>>) -> Result<Vec<Algorithm>, OptionsError> {
    let Some(names) = names else {
        return Ok(vec![Algorithm::Rs256]);
    };
    let algorithm = |name: String| {
        Algorithm::of_name(&name).ok_or_else(|| {
            let known: Vec<&str> = Algorithm::ALL.iter().map(|one| one.name()).collect();
            invalid(
                "--oidc-signing-algs",
                name,
                format!("give some of {}", known.join(", ")),
            )
        })
    };
    names.into_iter().map(algorithm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_secure_default() {
        let settled = Access::default().settle(Path::new("/srv")).unwrap();
        let mut wanted = Settled::default();
        wanted.authentication.bootstrap_tokens = true;
        assert_eq!(settled, wanted);
    }

    #[test]
    fn what_is_said_is_heard() {
        let access = Access {
            token_auth_file: Some("tokens.csv".into()),
            authorization_mode: Some(vec!["RBAC".into()]),
            oidc_issuer_url: Some("https://i".into()),
            oidc_client_id: Some("c".into()),
            oidc_required_claim: Some(vec!["hd=x".into()]),
            service_account_max_token_expiration: Some("2h".into()),
            ..Access::default()
        };
        let settled = access.settle(Path::new("/srv")).unwrap();
        assert_eq!(
            settled.authentication.token_file.as_deref(),
            Some(Path::new("/srv/tokens.csv"))
        );
        assert_eq!(settled.authorization.modes, ["RBAC"]);
        let oidc = settled.authentication.oidc.unwrap();
        assert_eq!(oidc.required_claims, [("hd".to_owned(), "x".to_owned())]);
        assert_eq!(oidc.algorithms, [Algorithm::Rs256]);
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        let text = |text: &str| Some(text.to_owned());
        let list = |text: &str| Some(vec![text.to_owned()]);
        for (access, part) in [
            (
                Access {
                    oidc_issuer_url: text("https://i"),
                    ..Access::default()
                },
                "--oidc-client-id",
            ),
            (
                Access {
                    oidc_issuer_url: text("https://i"),
                    oidc_client_id: text("c"),
                    oidc_signing_algs: list("HS256"),
                    ..Access::default()
                },
                "RS256, RS384",
            ),
            (
                Access {
                    authorization_policy_file: Some("x".into()),
                    ..Access::default()
                },
                "ABAC",
            ),
            (
                Access {
                    service_account_max_token_expiration: text("1s"),
                    ..Access::default()
                },
                "an hour",
            ),
            (
                Access {
                    service_account_jwks_uri: text("http://k"),
                    ..Access::default()
                },
                "https://",
            ),
            (
                Access {
                    service_account_issuer: Some(vec!["a".into(), "a".into()]),
                    ..Access::default()
                },
                "once",
            ),
            (
                Access {
                    authorization_webhook_cache_authorized_ttl: text("soon"),
                    ..Access::default()
                },
                "such as 30s",
            ),
        ] {
            let error = access.clone().settle(Path::new("/")).expect_err("accepted").to_string();
            assert!(error.contains(part), "{access:?}: {error}");
        }
    }
}
