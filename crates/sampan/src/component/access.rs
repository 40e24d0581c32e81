//! Who asks, and whether they may: the API server decides both.
//!
//! A client certificate is believed if it comes from the authority that the API server publishes for this; a token is
//! shown to the API server (TokenReview). Whether the path may be read it is asked as well (SubjectAccessReview). Answers
//! are remembered for a short while, and a bounded number of them.

use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use rustls_pki_types::CertificateDer;
use sampan_client::reviews::{Caller, Lives, Reviews, Wish, bearer};
use sampan_pki::tls::{self, ClientVerifier};
use sampan_tasks::{OnExit, Tasks};

/// As long as upstream remembers by default.
const LIVES: Lives = Lives {
    tokens: Duration::from_secs(10),
    allowed: Duration::from_secs(10),
    denied: Duration::from_secs(10),
};

/// Anybody may ask whether it is well.
const OPEN: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub String);

pub struct Access {
    reviews: Reviews,
    verifier: ClientVerifier,
}

impl Access {
    pub fn new(client: kube::Client, verifier: ClientVerifier) -> Self {
        Access {
            reviews: Reviews::new(client, LIVES),
            verifier,
        }
    }

    /// Lets a request through, or says why not. `chain` is the connection's client certificate.
    pub async fn check<B>(&self, request: &Request<B>, chain: &[CertificateDer<'_>]) -> Result<(), Refusal> {
        let path = request.uri().path();
        let open = |open: &str| {
            path.strip_prefix(open)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if OPEN.into_iter().any(open) {
            return Ok(());
        }
        let user = self.user(request, chain).await?;
        if user.is_master() {
            return Ok(());
        }
        let verb = verb(request.method());
        if self.decide(&user, verb, path).await? {
            return Ok(());
        }
        let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
        Err(Refusal(StatusCode::FORBIDDEN, message))
    }

    async fn user<B>(&self, request: &Request<B>, chain: &[CertificateDer<'_>]) -> Result<Caller, Refusal> {
        let unauthorized = || Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into());
        if !chain.is_empty()
            && let Ok(subject) = self.verifier.verify(chain)
        {
            return Ok(Caller::certified(subject.common_name, subject.organizations));
        }
        match bearer(request.headers()) {
            Some(token) => self.by_token(token).await?.ok_or_else(unauthorized),
            None if request.headers().contains_key(header::AUTHORIZATION) => Err(unauthorized()),
            None => Ok(Caller::named("system:anonymous", vec!["system:unauthenticated".into()])),
        }
    }

    async fn by_token(&self, token: &str) -> Result<Option<Caller>, Refusal> {
        self.reviews.caller(token).await.map_err(|error| {
            tracing::warn!(%error, "a token could not be reviewed");
            Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into())
        })
    }

    async fn decide(&self, user: &Caller, verb: &'static str, path: &str) -> Result<bool, Refusal> {
        let wish = Wish::Path {
            verb,
            path: path.to_owned(),
        };
        let decision = self.reviews.may(user, wish).await.map_err(|error| {
            tracing::warn!(%error, "the API server did not say whether a request may be answered");
            Refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("Internal Server Error: {path:?}: {error}"),
            )
        })?;
        Ok(decision.is_ok())
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::GET => "get",
        // No verb, which only a rule for all verbs allows.
        _ => "",
    }
}

/// Learns from the API server whose client certificates are to be believed.
pub fn follow_authority(client: kube::Client, verifier: ClientVerifier, tasks: &Tasks) {
    const PAUSE: Duration = Duration::from_secs(5);
    tasks.spawn_until_drain("client authority", OnExit::Expected, async move {
        let api: Api<ConfigMap> = Api::namespaced(client, "kube-system");
        // Until it has been read once; only where the API server is away does this repeat.
        loop {
            match api.get("extension-apiserver-authentication").await {
                Ok(map) => {
                    let bundle = map.data.as_ref().and_then(|data| data.get("client-ca-file"));
                    let believed = bundle.map(|pem| {
                        let authorities = tls::authorities_of_pem(pem).map_err(|error| error.to_string())?;
                        verifier.believe(&authorities).map_err(|error| error.to_string())
                    });
                    if let Some(Err(error)) = believed {
                        tracing::warn!(
                            error,
                            "the authority of clients that the API server publishes cannot be used"
                        );
                    }
                    return;
                }
                Err(error) if sampan_client::is_forbidden(&error) || sampan_client::is_not_found(&error) => {
                    tracing::warn!(%error, "client certificates are not believed: the API server does not say whose");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "the authority of clients could not be read, will retry");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
}
