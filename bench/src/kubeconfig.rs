//! The little of a kubeconfig that is needed to connect: server, trust, client certificate or token.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::Result;

/// Where and how to connect.
pub struct Connection {
    pub host: String,
    pub port: u16,
    pub tls: Arc<ClientConfig>,
    /// The value of the Authorization header, if there is a token.
    pub authorization: Option<String>,
}

fn entry<'a>(config: &'a Value, list: &str, name: &str, key: &str) -> Result<&'a Value> {
    config[list]
        .as_array()
        .and_then(|items| items.iter().find(|item| item["name"] == name))
        .map(|item| &item[key])
        .ok_or_else(|| format!("the kubeconfig has no {key} named {name:?}").into())
}

/// `KEY-data` decoded, or the file that `KEY` names.
fn material(entry: &Value, key: &str) -> Result<Option<Vec<u8>>> {
    if let Some(data) = entry[format!("{key}-data")].as_str() {
        return Ok(Some(base64::engine::general_purpose::STANDARD.decode(data)?));
    }
    Ok(match entry[key].as_str() {
        Some(path) => Some(std::fs::read(path)?),
        None => None,
    })
}

/// Reads the current context of a kubeconfig.
pub fn read(path: &Path) -> Result<Connection> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let config: Value = serde_saphyr::from_str(&text)?;
    let context = config["current-context"]
        .as_str()
        .ok_or("the kubeconfig has no current-context")?;
    let context = entry(&config, "contexts", context, "context")?;
    let cluster = entry(
        &config,
        "clusters",
        context["cluster"].as_str().unwrap_or_default(),
        "cluster",
    )?;
    let user = entry(&config, "users", context["user"].as_str().unwrap_or_default(), "user")?;

    let mut roots = rustls::RootCertStore::empty();
    let authority = material(cluster, "certificate-authority")?.ok_or("the cluster names no certificate-authority")?;
    for certificate in CertificateDer::pem_slice_iter(&authority) {
        roots.add(certificate?)?;
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let tls = match (material(user, "client-certificate")?, material(user, "client-key")?) {
        (Some(certificate), Some(key)) => {
            let chain = CertificateDer::pem_slice_iter(&certificate).collect::<std::result::Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?
        }
        _ => builder.with_no_client_auth(),
    };
    let uri: http::Uri = cluster["server"].as_str().unwrap_or_default().parse()?;
    let host = uri
        .host()
        .ok_or("the cluster's server has no host")?
        .trim_matches(['[', ']'])
        .to_owned();
    Ok(Connection {
        host,
        port: uri.port_u16().unwrap_or(443),
        tls: Arc::new(tls),
        authorization: user["token"].as_str().map(|token| format!("Bearer {token}")),
    })
}
