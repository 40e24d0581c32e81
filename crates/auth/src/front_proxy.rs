//! The front proxy: a server that authenticates clients itself and says in headers who they are.
//!
//! The headers are believed only on a connection whose certificate is of the front proxy's own authority and carries
//! one of the allowed names. On every other connection they mean nothing, and they are taken out of every request, so
//! that nobody further on believes them either.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use rustls_pki_types::CertificateDer;
use sampan_pki::tls::ClientVerifier;

use crate::impersonation::unescaped;
use crate::user::UserInfo;

/// Whose headers are believed, and which they are.
#[derive(Clone, Debug)]
pub struct FrontProxy {
    pub verifier: ClientVerifier,
    /// Common names of the proxy's certificate. Empty: any of its authority.
    pub names: Vec<String>,
    pub headers: Headers,
}

/// The names of the headers, the first that is there counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    pub user: Vec<HeaderName>,
    pub uid: Vec<HeaderName>,
    pub groups: Vec<HeaderName>,
    /// In lower case.
    pub extra_prefixes: Vec<String>,
}

impl Default for Headers {
    /// `X-Remote-User` and so on: what kubeadm sets up, and what this server sends to extension servers.
    fn default() -> Self {
        Headers {
            user: vec![HeaderName::from_static("x-remote-user")],
            uid: vec![HeaderName::from_static("x-remote-uid")],
            groups: vec![HeaderName::from_static("x-remote-group")],
            extra_prefixes: vec!["x-remote-extra-".into()],
        }
    }
}

impl FrontProxy {
    /// Whether a connection's certificates (leaf first) are the front proxy's.
    pub fn is(&self, chain: &[CertificateDer<'_>]) -> bool {
        !chain.is_empty()
            && self
                .verifier
                .verify(chain)
                .is_ok_and(|subject| self.names.is_empty() || self.names.contains(&subject.common_name))
    }

    /// Whom the front proxy speaks for in this request, if it names anyone.
    pub fn user(&self, headers: &HeaderMap) -> Option<Arc<UserInfo>> {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let first = |names: &[HeaderName]| {
            let mut values = names.iter().filter_map(|name| headers.get(name)).map(text);
            values.find(|value| !value.is_empty())
        };
        let name = first(&self.headers.user)?;
        let groups = self
            .headers
            .groups
            .iter()
            .flat_map(|name| headers.get_all(name))
            .map(text);
        let mut user = UserInfo {
            uid: first(&self.headers.uid).unwrap_or_default(),
            groups: groups.filter(|group| !group.is_empty()).collect(),
            name,
            ..UserInfo::default()
        };
        for prefix in &self.headers.extra_prefixes {
            for header in headers.keys() {
                if let Some(key) = header.as_str().strip_prefix(prefix.as_str()) {
                    let values = headers.get_all(header).iter().map(text);
                    user.extra.entry(unescaped(key)).or_default().extend(values);
                }
            }
        }
        user.imply_groups();
        Some(Arc::new(user))
    }
}

impl Headers {
    /// Takes them out of a request.
    pub fn remove(&self, headers: &mut HeaderMap) {
        for name in self.user.iter().chain(&self.uid).chain(&self.groups) {
            headers.remove(name);
        }
        let extra = |name: &&HeaderName| {
            let mut prefixes = self.extra_prefixes.iter();
            prefixes.any(|prefix| name.as_str().starts_with(prefix.as_str()))
        };
        let names: Vec<HeaderName> = headers.keys().filter(extra).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}
