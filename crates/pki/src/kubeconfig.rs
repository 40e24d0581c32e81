//! Kubeconfig files: how a client learns where the cluster is and who it is.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::{Identity, PkiError, files};

/// How the user of a kubeconfig proves who it is.
#[derive(Clone, Debug)]
pub enum UserCredential {
    Certificate(Identity),
    Token(String),
}

/// One cluster, one user, one context.
#[derive(Clone, Debug)]
pub struct Kubeconfig<'a> {
    pub cluster: &'a str,
    /// Such as `https://127.0.0.1:6443`.
    pub server: &'a str,
    pub ca_pem: &'a str,
    pub user: &'a str,
    pub credential: UserCredential,
}

impl Kubeconfig<'_> {
    /// The file's text: YAML, with everything embedded.
    pub fn to_yaml(&self) -> String {
        let (cluster, server, user) = (quoted(self.cluster), quoted(self.server), quoted(self.user));
        let context = quoted(&format!("{}@{}", self.user, self.cluster));
        let ca = STANDARD.encode(self.ca_pem);
        let credential = match &self.credential {
            UserCredential::Certificate(identity) => format!(
                "client-certificate-data: {}\n    client-key-data: {}",
                STANDARD.encode(identity.certificate_pem()),
                STANDARD.encode(identity.key_pem()),
            ),
            UserCredential::Token(token) => format!("token: {}", quoted(token)),
        };
        format!(
            "apiVersion: v1
kind: Config
clusters:
- name: {cluster}
  cluster:
    server: {server}
    certificate-authority-data: {ca}
users:
- name: {user}
  user:
    {credential}
contexts:
- name: {context}
  context:
    cluster: {cluster}
    user: {user}
current-context: {context}
preferences: {{}}
"
        )
    }

    /// Writes the file whole, mode 0600, unless it already says exactly this.
    pub fn write(&self, path: &Path) -> Result<(), PkiError> {
        let text = self.to_yaml();
        if files::read(path)?.as_deref() == Some(&text) {
            return Ok(());
        }
        files::write_private(path, text.as_bytes())
    }
}

/// A JSON string is a YAML string, whatever it holds.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_embedded_and_quoted() {
        let yaml = Kubeconfig {
            cluster: "c: #1",
            server: "https://127.0.0.1:6443",
            ca_pem: "CA",
            user: "admin",
            credential: UserCredential::Token("t\"o".into()),
        }
        .to_yaml();
        for line in [
            r#"- name: "c: #1""#,
            r#"    server: "https://127.0.0.1:6443""#,
            "    certificate-authority-data: Q0E=",
            r#"    token: "t\"o""#,
            r#"current-context: "admin@c: #1""#,
        ] {
            assert!(yaml.lines().any(|have| have == line), "{line}\n{yaml}");
        }
    }
}
