//! Who asks the node's server, and whether they may.
//!
//! A client proves itself by a certificate of the cluster's authority, or by a token that the API server vouches for
//! (TokenReview). What it may do is the API server's decision as well (SubjectAccessReview on a subresource of `nodes`): a
//! narrow right such as `nodes/pods` is enough, the broad `nodes/proxy` too. Answers are remembered for as long as the kubelet
//! remembers them by default; how many is bounded. Nobody is anonymous.
//! Source: `pkg/kubelet/server/auth.go` and the defaults of KubeletConfiguration upstream.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use rustls_pki_types::CertificateDer;
use sampan_client::reviews::{Caller, Lives, Reviews, Wish, bearer};
use sampan_pki::tls::ClientVerifier;

use super::Refusal;

/// The kubelet's defaults.
const LIVES: Lives = Lives {
    tokens: Duration::from_secs(120),
    allowed: Duration::from_secs(300),
    denied: Duration::from_secs(30),
};

/// Decides about requests.
pub struct Access {
    reviews: Reviews,
    verifier: ClientVerifier,
    node: String,
}

impl Access {
    pub fn new(client: kube::Client, verifier: ClientVerifier, node: &str) -> Self {
        Access {
            reviews: Reviews::new(client, LIVES),
            verifier,
            node: node.to_owned(),
        }
    }

    /// Whom the certificates of a connection name, if they are to be believed.
    pub fn by_certificate(&self, chain: &[CertificateDer<'_>]) -> Option<Caller> {
        if chain.is_empty() {
            return None;
        }
        let subject = match self.verifier.verify(chain) {
            Ok(subject) => subject,
            Err(error) => {
                tracing::debug!(error, "a client's certificate is not to be believed");
                return None;
            }
        };
        Some(Caller::certified(subject.common_name, subject.organizations))
    }

    /// Lets a request through or says why not. `certified` is whom the connection's certificate names.
    pub async fn check<B>(&self, request: &Request<B>, certified: Option<&Caller>) -> Result<(), Refusal> {
        let unauthorized = || Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into());
        let user = match certified {
            Some(user) => user.clone(),
            None => match bearer(request.headers()) {
                Some(token) => self.by_token(token).await?.ok_or_else(unauthorized)?,
                None => return Err(unauthorized()),
            },
        };
        if user.is_master() {
            return Ok(());
        }
        let verb = verb(request.method());
        let mut why = String::new();
        let mut last = "";
        for subresource in subresources(request.uri().path()) {
            last = subresource;
            match self.decide(&user, verb, subresource).await? {
                Ok(()) => return Ok(()),
                Err(reason) => why = reason,
            }
        }
        tracing::debug!(
            user = user.name,
            verb,
            subresource = last,
            why,
            "a request to the node was refused"
        );
        Err(Refusal(
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource={last})",
                user.name
            ),
        ))
    }

    async fn by_token(&self, token: &str) -> Result<Option<Caller>, Refusal> {
        self.reviews.caller(token).await.map_err(|error| {
            tracing::warn!(%error, "a token could not be reviewed");
            Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into())
        })
    }

    async fn decide(
        &self,
        user: &Caller,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<Result<(), String>, Refusal> {
        let name = self.node.clone();
        let wish = Wish::Node {
            verb,
            name,
            subresource,
        };
        let decision = self.reviews.may(user, wish).await;
        decision.map_err(|error| Refusal::internal(format!("Authorization error: {error}")))
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::GET => "get",
        // As upstream: no verb, which only a rule for all verbs allows.
        _ => "",
    }
}

/// The subresources of `nodes` of which one is enough for a path.
pub fn subresources(path: &str) -> &'static [&'static str] {
    // The first part as it is routed: however many slashes are in front of it.
    match path.split('/').find(|part| !part.is_empty()).unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        "pods" | "runningPods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_subresources() {
        for (path, expected) in [
            ("/exec/ns/p/c", &["proxy"][..]),
            ("/containerLogs/ns/p/c", &["proxy"]),
            ("//exec/ns/p/c", &["proxy"]),
            ("/stats/summary", &["stats"]),
            ("/metrics/resource", &["metrics"]),
            ("/pods", &["pods", "proxy"]),
            ("//pods", &["pods", "proxy"]),
            ("/podsx", &["proxy"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/", &["proxy"]),
        ] {
            assert_eq!(subresources(path), expected, "{path}");
        }
    }
}
