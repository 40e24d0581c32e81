//! Reaching a registry: directly, or through the proxy the environment names.
//!
//! `HTTPS_PROXY` and `NO_PROXY` (also in lower case) mean what they mean to other programs: TLS goes
//! through a tunnel the proxy is asked for by CONNECT. Plain HTTP, which is for loopback and registries
//! declared insecure, never goes through a proxy.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::Service;

const CONNECT: Duration = Duration::from_secs(15);
const MAX_ANSWER: usize = 16 << 10;

/// A proxy and what does not go through it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// Where it listens.
    address: Option<Uri>,
    /// `Proxy-Authorization`.
    authorization: Option<String>,
    /// Host names and domains reached directly.
    direct: Vec<String>,
}

impl Proxy {
    /// What the environment says; `variable` reads it.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let either = |name: &str| {
            let found = variable(name).or_else(|| variable(&name.to_lowercase()));
            found.filter(|value| !value.is_empty())
        };
        let direct = either("NO_PROXY").unwrap_or_default();
        let direct = direct.split(',').map(|name| name.trim().to_lowercase());
        let direct = direct.filter(|name| !name.is_empty()).collect();
        let Some(text) = either("HTTPS_PROXY") else {
            return Ok(Self {
                direct,
                ..Self::default()
            });
        };
        let bad = |why: &str| format!("HTTPS_PROXY: {why}");
        let whole = match text.contains("://") {
            true => text,
            false => format!("http://{text}"),
        };
        let Some(rest) = whole.strip_prefix("http://") else {
            return Err(bad("only proxies reached by http:// are known"));
        };
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        let address: Uri = format!("http://{host}").parse().map_err(|_| bad("not an address"))?;
        if address.host().is_none() {
            return Err(bad("not an address"));
        }
        Ok(Self {
            address: Some(address),
            authorization: user.map(|user| format!("Basic {}", BASE64_STANDARD.encode(unescape(user)))),
            direct,
        })
    }

    /// The proxy for `target`, if it goes through one.
    fn through(&self, target: &Uri) -> Option<&Uri> {
        let host = target.host()?.trim_matches(['[', ']']).to_lowercase();
        let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let direct = self.direct.iter().any(|name| {
            let domain = name.trim_start_matches("*.").trim_start_matches('.');
            name == "*" || host == domain || host.ends_with(&format!(".{domain}"))
        });
        let plain = target.scheme_str() != Some("https");
        self.address.as_ref().filter(|_| !(loopback || direct || plain))
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Connects by TCP, through the proxy where there is one.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    proxy: Proxy,
}

impl Connector {
    pub fn new(proxy: Proxy) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        Self { tcp, proxy }
    }
}

type Connection = TokioIo<TcpStream>;
type Connecting = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_ready(cx).map_err(io::Error::other)
    }

    fn call(&mut self, target: Uri) -> Connecting {
        let Some(proxy) = self.proxy.through(&target).cloned() else {
            let connecting = self.tcp.call(target);
            return Box::pin(async move { connecting.await.map_err(io::Error::other) });
        };
        let authorization = self.proxy.authorization.clone();
        let connecting = self.tcp.call(proxy.clone());
        Box::pin(async move {
            let failed = |why: &dyn std::fmt::Display| {
                io::Error::other(format!("proxy {}: {why}", proxy.authority().map_or("", |a| a.as_str())))
            };
            let connected = connecting.await.map_err(|error| failed(&error))?;
            let tunnel = tunnel(connected.into_inner(), &target, authorization.as_deref());
            let opened = tokio::time::timeout(CONNECT, tunnel).await;
            let opened = opened.map_err(|_| failed(&"no answer in time"))?;
            opened.map(TokioIo::new).map_err(|error| failed(&error))
        })
    }
}

/// Asks a proxy for a tunnel to `target`.
async fn tunnel(mut stream: TcpStream, target: &Uri, authorization: Option<&str>) -> io::Result<TcpStream> {
    let host = target.host().unwrap_or_default();
    let port = target.port_u16().unwrap_or(443);
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(value) = authorization {
        request.push_str(&format!("Proxy-Authorization: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    // Byte by byte: what follows the answer belongs to the tunnel.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_ANSWER {
            return Err(io::Error::other("its answer is too long"));
        }
        answer.push(stream.read_u8().await?);
    }
    let first = String::from_utf8_lossy(&answer)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    match first.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(stream),
        _ => Err(io::Error::other(format!("it refused: {first}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(pairs: &[(&str, &str)]) -> Result<Proxy, String> {
        Proxy::from_env(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_says_what_goes_through_the_proxy() {
        let found = proxy(&[
            ("https_proxy", "http://us%65r:pw@proxy.example:3128"),
            ("NO_PROXY", "internal.example, .corp,10.0.0.5"),
        ])
        .unwrap();
        assert_eq!(found.authorization.as_deref(), Some("Basic dXNlcjpwdw=="));
        let table = [
            ("https://quay.io/v2/", true),
            ("https://internal.example/", false),
            ("https://a.internal.example/", false),
            ("https://reg.corp/", false),
            ("https://notcorp/", true),
            ("https://10.0.0.5:5000/", false),
            ("https://127.0.0.1:5000/", false),
            ("https://[::1]:5000/", false),
            ("http://quay.io/", false),
        ];
        for (target, through) in table {
            assert_eq!(found.through(&target.parse().unwrap()).is_some(), through, "{target}");
        }
        assert_eq!(proxy(&[]).unwrap(), Proxy::default());
        assert!(proxy(&[("HTTPS_PROXY", "proxy:3128")]).unwrap().address.is_some());
        for bad in ["https://proxy", "socks5://proxy", "http://"] {
            assert!(proxy(&[("HTTPS_PROXY", bad)]).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_and_a_refusal_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for (answer, works) in [("200 Connection established", true), ("407 Who are you", false)] {
            let found = proxy(&[("HTTPS_PROXY", &format!("http://u:p@{address}"))]).unwrap();
            let mut connector = Connector::new(found);
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = vec![0; 4096];
                let count = stream.read(&mut asked).await.unwrap();
                let reply = format!("HTTP/1.1 {answer}\r\nX: y\r\n\r\n");
                stream.write_all(reply.as_bytes()).await.unwrap();
                String::from_utf8(asked[..count].to_vec()).unwrap()
            };
            let connecting = connector.call("https://quay.io/v2/".parse().unwrap());
            let (connected, asked) = tokio::join!(connecting, server);
            assert!(asked.starts_with("CONNECT quay.io:443 HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains("Proxy-Authorization: Basic dTpw\r\n"), "{asked}");
            assert_eq!(connected.is_ok(), works);
            if let Err(error) = connected {
                assert!(error.to_string().contains("407"), "{error}");
            }
        }
    }
}
