//! Passing an upgraded connection on: what an API server does between a client and a node.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sampan_tasks::{OnExit, Tasks};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::http_upgrade::{self, UpgradedIo};

/// In the extensions of a request that may be upgraded: kept until the upgraded connection ends, so that whoever counts
/// or records it knows.
#[derive(Clone)]
pub struct Held(pub Arc<dyn Any + Send + Sync>);

/// What is sent back: nothing for 101, else what the backend said.
pub type ProxyBody = BoxBody<Bytes, hyper::Error>;

/// Why a request could not be passed on. The client can be told.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the request does not ask for an upgrade")]
    NoUpgrade,
    #[error("the address {0:?} cannot be asked for")]
    Address(String),
    #[error("the backend did not answer: {0}")]
    Backend(#[from] hyper::Error),
    #[error("the backend answered an upgrade with status {0} but without the protocol")]
    Answer(StatusCode),
}

/// Headers that are about the client's own connection or identity, not about what it wants of the backend.
fn is_private(name: &HeaderName) -> bool {
    const PRIVATE: [HeaderName; 6] = [
        header::HOST,
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TE,
    ];
    PRIVATE.contains(name) || name.as_str().starts_with("impersonate-") || name.as_str().starts_with("x-remote-")
}

/// The request for the backend: the client's, without what is private, for `target`.
pub(crate) fn backend_request<B>(
    request: &Request<B>,
    host: &str,
    target: &str,
) -> Result<Request<Empty<Bytes>>, ProxyError> {
    let bad = |text: &str| ProxyError::Address(text.to_owned());
    let mut passed = Request::new(Empty::new());
    *passed.method_mut() = request.method().clone();
    *passed.uri_mut() = target.parse::<Uri>().map_err(|_| bad(target))?;
    let headers = request.headers().iter().filter(|(name, _)| !is_private(name));
    passed
        .headers_mut()
        .extend(headers.map(|(name, value)| (name.clone(), value.clone())));
    let host = HeaderValue::from_str(host).map_err(|_| bad(host))?;
    passed.headers_mut().insert(header::HOST, host);
    Ok(passed)
}

/// Sends a request over a connection of its own that may become another protocol.
pub(crate) async fn send<IO>(
    request: Request<Empty<Bytes>>,
    io: IO,
    tasks: &Tasks,
) -> Result<Response<Incoming>, ProxyError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tasks.spawn_until_drain("upgrade to a node", OnExit::Expected, async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node failed");
        }
    });
    Ok(sender.send_request(request).await?)
}

/// Passes an upgrade request on over `io`, a fresh connection to the backend that answers to the name `host`, asking
/// it for `target` (path and query). If the backend agrees, bytes flow both ways until both ends are done;
/// otherwise its answer is the client's. The caller has authorized the request; its credentials are not passed on.
pub async fn proxy_upgrade<B, IO>(
    request: &mut Request<B>,
    host: &str,
    target: &str,
    io: IO,
    tasks: &Tasks,
) -> Result<Response<ProxyBody>, ProxyError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    proxy_upgrade_with(request, host, target, HeaderMap::new(), io, tasks).await
}

/// Like [`proxy_upgrade`], with headers of the proxy's own (on whose behalf it asks, say).
pub async fn proxy_upgrade_with<B, IO>(
    request: &mut Request<B>,
    host: &str,
    target: &str,
    own: HeaderMap,
    io: IO,
    tasks: &Tasks,
) -> Result<Response<ProxyBody>, ProxyError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if !http_upgrade::is_upgrade(request.headers()) {
        return Err(ProxyError::NoUpgrade);
    }
    let mut passed = backend_request(request, host, target)?;
    passed.headers_mut().extend(own);
    let response = send(passed, io, tasks).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(relayed(response));
    }
    if !http_upgrade::is_upgrade(response.headers()) {
        return Err(ProxyError::Answer(response.status()));
    }
    let mut answer = Response::new(empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = response.headers().clone();
    let client = http_upgrade::taken(request);
    let backend = hyper::upgrade::on(response);
    let held = request.extensions_mut().remove::<Held>();
    tasks.spawn_until_drain("upgraded connection", OnExit::Expected, async move {
        let both = tokio::try_join!(http_upgrade::upgraded(client), http_upgrade::upgraded(backend));
        match both {
            Ok((client, backend)) => join(client, backend).await,
            Err(error) => tracing::debug!(%error, "an upgraded connection did not come about"),
        }
        drop(held);
    });
    Ok(answer)
}

/// Copies both ways until both are done.
pub(crate) async fn join<A, B>(mut a: A, mut b: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    const BUFFER: usize = 32 * 1024;
    match tokio::io::copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER).await {
        Ok(_) => {}
        // One of them hung up: that is how most of these end.
        Err(error) => tracing::trace!(%error, "an upgraded connection ended"),
    }
}

pub(crate) fn empty() -> ProxyBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// The backend's answer without what is about its own connection.
pub(crate) fn relayed(response: Response<Incoming>) -> Response<ProxyBody> {
    let (mut parts, body) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers);
    Response::from_parts(parts, body.boxed())
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TRAILER,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

/// The upgraded connection of a backend's answer.
pub(crate) async fn upgraded_backend(response: Response<Incoming>) -> Result<UpgradedIo, ProxyError> {
    Ok(TokioIo::new(hyper::upgrade::on(response).await?))
}
