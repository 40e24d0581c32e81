//! The network side: TLS, HTTP/1.1 and HTTP/2, who is connected, and a graceful end.
//!
//! Everything a client can make large has a bound: connections, the time of a handshake, of headers and of silence,
//! headers, streams, resets, and what waits for a client that does not read. Dead peers are noticed by keepalive
//! (TCP's, and HTTP/2's pings).

mod activity;
mod heads;
mod stall;
mod unread;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::{HeaderName, HeaderValue};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use sampan_api::status::Status;
use sampan_auth::Connection;
use sampan_pki::Present;
use sampan_tasks::{Drain, OnExit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::body::Body;
use crate::compress;
use crate::control_plane::ControlPlane;
use crate::registry::reply::refusal;
use crate::request::Encoding;
use activity::Activity;
use heads::Heads;
use stall::Stalling;

/// Connections at once; beyond this, new ones wait in the kernel's line.
const CONNECTIONS: usize = 10_000;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the next request on a kept connection, as upstream has it. [`heads`] has the time of a head itself.
const IDLE: Duration = Duration::from_secs(90);
/// HTTP/2 streams a client may have open on one connection, as upstream allows.
const STREAMS: u32 = 250;
/// What a request's line and headers may take, in either protocol. URLs have a limit of 64 KiB of their own.
const HEAD: usize = 128 << 10;
/// Bytes of an answer that wait for one HTTP/2 stream's window.
const SEND: usize = 128 << 10;
/// Streams a client may open and reset before they were looked at; more is an attack.
const RESETS: usize = 50;
/// When a silent peer is asked whether it still lives, how often, and how many answers may fail to come.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);
/// Names one request in logs here and wherever it is passed on to.
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Who is on the other side of a request's connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The name of a request, its client's if it gave one.
#[derive(Clone, Debug)]
pub struct AuditId(pub HeaderValue);

/// Serves the control plane until `drain`, then lets what is under way finish. Each connection gets the configuration
/// of its beginning (see [`ControlPlane::serving_tls`]).
pub async fn serve(listener: TcpListener, tls: Present<ServerConfig>, plane: Arc<ControlPlane>, drain: Drain) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Some(Ok(seat)) = drain.until(seats.clone().acquire_owned()).await else {
            return;
        };
        let (stream, peer) = match drain.until(listener.accept()).await {
            None => return,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                // Usually out of file descriptors: others must close theirs first.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(tls.get());
        let (plane, drain) = (plane.clone(), drain.clone());
        plane.tasks.clone().spawn("connection", OnExit::Expected, async move {
            let _seat = seat;
            if let Err(error) = connection(stream, peer, acceptor, plane, drain).await {
                tracing::debug!(%peer, error, "connection ended");
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    plane: Arc<ControlPlane>,
    drain: Drain,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    keep_alive(&stream).map_err(|error| error.to_string())?;
    let activity = Activity::new();
    let stream = Stalling::new(stream, activity.clone());
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(|_| "TLS handshake took too long".to_owned())?
        .map_err(|error| format!("TLS handshake: {error}"))?;
    // A connection whose certificate is not believed may still carry requests with a token.
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let user = Arc::new(plane.authenticator.connection(certificates));
    let standing = plane.authenticator.standing(&user);
    if let Err(error) = &standing.user
        && !standing.is_front_proxy
    {
        tracing::debug!(%peer, %error, "client certificate");
    }
    let multiplexed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = Heads::new(stream, activity.clone(), multiplexed);
    let service = service_fn({
        let (drain, activity) = (drain.clone(), activity.clone());
        move |request: Request<Incoming>| {
            let (plane, user, closing) = (plane.clone(), user.clone(), drain.is_started());
            let activity = activity.clone();
            async move {
                let busy = activity.begin();
                // Somebody in between may have thought the body longer or shorter, or that what follows is a tunnel's: it is
                // not read.
                let doubtful = request.headers().contains_key(http::header::TRANSFER_ENCODING)
                    || request.method() == http::Method::CONNECT;
                let closing = closing || doubtful;
                let mut response = answer(&plane, &user, peer, request).await;
                if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                    activity.upgrade();
                }
                response = response.map(|body| busy.until_end_of(body));
                if closing && response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
                    response
                        .headers_mut()
                        .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD)
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 22)
        .max_send_buf_size(SEND)
        .max_header_list_size(HEAD as u32)
        .max_pending_accept_reset_streams(RESETS)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(15));
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = drain.started() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
        () = activity.idle(IDLE) => {
            served.as_mut().graceful_shutdown();
            // Nothing is under way: all that is left is to say goodbye.
            tokio::time::timeout(HANDSHAKE, served).await.unwrap_or(Ok(()))
        }
    };
    result.map_err(|error| error.to_string())
}

/// Peers that vanished without a word are noticed, whatever is or is not under way.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    let (after, between, tries) = KEEPALIVE;
    let settings = socket2::TcpKeepalive::new()
        .with_time(after)
        .with_interval(between)
        .with_retries(tries);
    socket2::SockRef::from(stream).set_tcp_keepalive(&settings)
}

async fn answer(
    plane: &Arc<ControlPlane>,
    connection: &Connection,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> http::Response<Body> {
    // Whoever waits to be told to send its body sends none when it is not told.
    let waits = request.headers().contains_key(http::header::EXPECT);
    let mut request = request.map(|body| {
        if waits {
            Body::incoming(body)
        } else {
            unread::drained(body, &plane.tasks)
        }
    });
    let audit_id = request
        .headers()
        .get(&AUDIT_ID)
        .filter(|id| !id.is_empty())
        .cloned()
        .or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
    let compression = compress::asked(request.headers(), peer);
    let user = plane
        .authenticator
        .request(connection, request.headers(), request.uri().path())
        .await;
    let mut response = match user {
        Ok(user) => {
            plane.authenticator.remove_credentials(request.headers_mut());
            request.extensions_mut().insert(user);
            request.extensions_mut().insert(Peer(peer));
            if let Some(audit_id) = &audit_id {
                request.extensions_mut().insert(AuditId(audit_id.clone()));
            }
            plane.handle(request).await
        }
        Err(error) => {
            tracing::debug!(%peer, %error, "unauthenticated request");
            let refused = Status::unauthorized();
            if let Some(audit) = &plane.audit {
                request.extensions_mut().insert(Peer(peer));
                if let Some(audit_id) = &audit_id {
                    request.extensions_mut().insert(AuditId(audit_id.clone()));
                }
                let (parts, _body) = request.into_parts();
                let certificate = !matches!(plane.authenticator.standing(connection).user, Ok(None));
                audit.unauthenticated(&parts, certificate, &refused).await;
            }
            refusal(&refused, Encoding::Json)
        }
    };
    if let Some(audit_id) = audit_id {
        response.headers_mut().insert(AUDIT_ID, audit_id);
    }
    if compression {
        compress::response(response)
    } else {
        response
    }
}
