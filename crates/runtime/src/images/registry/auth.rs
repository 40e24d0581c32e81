//! Answering a registry's `WWW-Authenticate`: basic, or a bearer token from its token service.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, header};
use serde::Deserialize;

use super::http::{Http, collect};
use crate::types::RegistryAuth;

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token of the service at `realm`.
    Bearer {
        realm: String,
        service: String,
        scope: Option<String>,
    },
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Token {
    token: String,
    access_token: String,
}

impl Challenge {
    /// The challenge of a reply; bearer is preferred.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let mut found: Vec<Self> = values.filter_map(|v| Self::parse(v.to_str().ok()?)).collect();
        found.sort_by_key(|challenge| *challenge == Self::Basic);
        found.into_iter().next()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let get = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        Some(Self::Bearer {
            realm: get("realm")?,
            service: get("service").unwrap_or_default(),
            scope: get("scope"),
        })
    }

    /// Whether answering would send credentials over plain HTTP.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Bearer { realm, .. } if !realm.starts_with("https://"))
    }

    /// The `Authorization` header's value, or why there is none.
    pub async fn answer(&self, http: &Http, credentials: Option<&RegistryAuth>, scope: &str) -> Result<String, String> {
        let token = credentials.map(|c| c.registry_token.as_str()).unwrap_or_default();
        if !token.is_empty() {
            return Ok(format!("Bearer {token}"));
        }
        let basic = credentials.filter(|c| !c.username.is_empty()).map(|c| {
            let pair = BASE64_STANDARD.encode(format!("{}:{}", c.username, c.password));
            format!("Basic {pair}")
        });
        let Self::Bearer {
            realm,
            service,
            scope: asked,
        } = self
        else {
            return basic
                .ok_or_else(|| "the registry asks for a user and password; give the Pod imagePullSecrets".into());
        };
        let scope = asked.as_deref().unwrap_or(scope);
        let identity = credentials.map(|c| c.identity_token.as_str()).unwrap_or_default();
        let reply = if identity.is_empty() {
            let glue = if realm.contains('?') { '&' } else { '?' };
            let (service, scope) = (escape(service), escape(scope));
            let url = format!("{realm}{glue}service={service}&scope={scope}");
            let headers: Vec<_> = basic.map(|v| (header::AUTHORIZATION, v)).into_iter().collect();
            http.get(&url, &headers).await
        } else {
            let form = format!(
                "grant_type=refresh_token&client_id=sampan&service={}&scope={}&refresh_token={}",
                escape(service),
                escape(scope),
                escape(identity)
            );
            http.post_form(realm, form).await
        };
        let unreached = |why| format!("the token service {realm} cannot be reached: {why}");
        let reply = reply.map_err(unreached)?;
        let status = reply.status();
        if !status.is_success() {
            return Err(format!(
                "authorization failed: the token service {realm} answered {status}; \
                 check the image name and the Pod's imagePullSecrets"
            ));
        }
        let body = collect(reply.into_body(), 1 << 20).await.map_err(unreached)?;
        let token: Token = serde_json::from_slice(&body)
            .map_err(|error| format!("the token service {realm} answered nonsense: {error}"))?;
        match (token.token, token.access_token) {
            (token, _) if !token.is_empty() => Ok(format!("Bearer {token}")),
            (_, token) if !token.is_empty() => Ok(format!("Bearer {token}")),
            _ => Err(format!("the token service {realm} gave no token")),
        }
    }
}

/// `a="x, y",b=z` as pairs.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim().trim_start_matches(',').trim().to_owned();
        let value;
        if let Some(quoted) = after.strip_prefix('"') {
            let (inside, after) = quoted.split_once('"').unwrap_or((quoted, ""));
            value = inside.to_owned();
            rest = after.trim_start();
        } else {
            let (plain, after) = after.split_once(',').unwrap_or((after, ""));
            value = plain.trim().to_owned();
            rest = after.trim_start();
        }
        pairs.push((key, value));
    }
    pairs
}

/// Percent-encoding for query and form values.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_quotes_and_commas() {
        let text = r#"Bearer realm="https://a/token",service="r.io",scope="repository:x:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://a/token".into(),
            service: "r.io".into(),
            scope: Some("repository:x:pull,push".into()),
        };
        assert_eq!(Challenge::parse(text), Some(expected));
        assert_eq!(Challenge::parse("basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Digest a=b"), None);
        assert_eq!(escape("a b/:"), "a%20b%2F%3A");
    }
}
