//! The first minutes of a machine in a cluster: whom to believe, the first certificate, the cluster's facts.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::time::Duration;

use rustls_pki_types::ServerName;
use sampan_pki::{Identity, UserCredential, tls, write_private};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificates::{Keeper, Wanted};
use super::{Cluster, Result};
use crate::facts::Facts;
use crate::token::JoinToken;

/// How long the server may take to answer before it is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before the cluster is asked again, at first and at most.
const RETRY: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(30);
/// How long the first certificate may take.
const FIRST: Duration = Duration::from_secs(60);

/// Host and port of a cluster's API.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    pub fn parse(url: &str) -> Result<Self> {
        let bad = |why: &str| format!("--server is {url:?}: {why}; give a URL such as https://192.0.2.10:6443");
        let rest = url
            .strip_prefix("https://")
            .ok_or_else(|| bad("it does not begin with https://"))?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority = authority
            .parse()
            .map_err(|_| bad("it has more than a host and a port"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(bad("it names no host").into());
        }
        if authority.port_u16().is_none() && authority.as_str() != authority.host() {
            return Err(bad("its port is no number").into());
        }
        Ok(Endpoint {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(443),
        })
    }

    /// The address this machine reaches it from. Nothing is sent.
    pub fn source_address(&self) -> Option<IpAddr> {
        let target = (self.host.as_str(), self.port).to_socket_addrs().ok()?.next()?;
        let any: SocketAddr = if target.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(target).ok()?;
        let address = socket.local_addr().ok()?.ip();
        Some(address).filter(|address| !address.is_loopback() && !address.is_unspecified())
    }
}

pub fn read_token(path: &Path) -> Result<JoinToken> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text.parse().map_err(|error| format!("{}: {error}", path.display()))?)
}

/// The cluster's authority: as kept in `dir`, or as the server shows it if its fingerprint is the token's.
pub async fn authority(endpoint: &Endpoint, dir: &Path, token: Option<&JoinToken>) -> Result<String> {
    let path = dir.join("ca.crt");
    match std::fs::read_to_string(&path) {
        Ok(kept) => {
            if let Some(token) = token
                && !knows(&kept, &token.fingerprint)?
            {
                return Err(format!(
                    "this machine has joined another cluster: its authority is in {}; run `sampan agent --cleanup` and move {} away to join this one",
                    path.display(),
                    dir.display()
                )
                .into());
            }
            return Ok(kept);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("cannot read {}: {error}", path.display()).into()),
    }
    let token = token.ok_or(
        "this machine has not joined a cluster yet: give --token, which `sampan token create` prints on the server",
    )?;
    let pem = fetch(endpoint, token.fingerprint).await?;
    write_private(&path, pem.as_bytes())?;
    Ok(pem)
}

/// Whether one of the authorities of a bundle has this fingerprint.
fn knows(bundle: &str, wanted: &[u8; 32]) -> Result<bool> {
    for authority in tls::authorities_of_pem(bundle)? {
        if tls::fingerprint(&authority)? == *wanted {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn fetch(endpoint: &Endpoint, fingerprint: [u8; 32]) -> Result<String> {
    let name = ServerName::try_from(endpoint.host.clone())?;
    let at = format!("{}:{}", endpoint.host, endpoint.port);
    let (config, pinned) = tls::pinned_client(fingerprint)?;
    let shake = async {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        TlsConnector::from(config).connect(name, stream).await
    };
    match tokio::time::timeout(PATIENCE, shake).await {
        Err(_) => Err(format!("{at} does not answer; is it the cluster's API, and is the way to it open?").into()),
        Ok(Err(error)) => {
            let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
            let hint = if is_tls {
                "it is not the cluster of this token, or somebody is in between"
            } else {
                "is it the cluster's API?"
            };
            Err(format!("cannot talk to {at}: {error}; {hint}").into())
        }
        Ok(Ok(_stream)) => pinned
            .authority()
            .ok_or_else(|| format!("{at} did not show its authority").into()),
    }
}

/// The node's first certificate, by the token's secret.
pub async fn first_certificate(
    cluster: &Cluster,
    token: Option<&JoinToken>,
    keeper: &Keeper,
    wanted: &Wanted,
) -> Result<Identity> {
    let token = token.ok_or(
        "the certificate of this node is missing, of another name or no longer valid: give --token, which `sampan token create` prints on the server",
    )?;
    let client = cluster.client_with(UserCredential::Token(token.bearer())).await?;
    tracing::info!(
        node = wanted.spec.common_name,
        "asking the cluster for this node's certificate"
    );
    match tokio::time::timeout(FIRST, keeper.obtain(&client, wanted)).await {
        Ok(Ok(identity)) => Ok(identity),
        Ok(Err(error)) if error.contains("Unauthorized") => {
            Err(format!("the cluster does not know the token {} (any more): {error}", token.id).into())
        }
        Ok(Err(error)) => Err(format!("no certificate for this node: {error}").into()),
        Err(_) => Err(format!(
            "the request for this node's certificate was not answered within {} seconds; do controllers run? `kubectl get csr` shows it, `kubectl certificate approve` lets it through",
            FIRST.as_secs()
        )
        .into()),
    }
}

/// The cluster's facts, as soon as it tells them.
pub async fn facts(client: &kube::Client) -> Facts {
    let mut wait = RETRY;
    loop {
        match tokio::time::timeout(PATIENCE, Facts::read(client.clone())).await {
            Ok(Ok(facts)) => return facts,
            Ok(Err(error)) => tracing::warn!(error, "the cluster cannot be asked, will try again"),
            Err(_) => tracing::warn!("the cluster does not answer, will try again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(SLOWEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (url, host, port) in [
            ("https://192.0.2.1:6443", "192.0.2.1", 6443),
            ("https://api.example.org/", "api.example.org", 443),
            ("https://[2001:db8::1]:6443", "2001:db8::1", 6443),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port));
        }
        for bad in [
            "http://192.0.2.1",
            "192.0.2.1:6443",
            "https://",
            "https://a/b",
            "https://a@b:1",
            "https://a:x",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }
}
