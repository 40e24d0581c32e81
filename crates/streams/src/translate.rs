//! Newer clients and nodes that speak only SPDY: the API server speaks WebSocket with the one and SPDY with the other.
//!
//! Upstream's API server always does this; here it is needed only for nodes that are not ours. A version 5 exec
//! becomes a version 4 one over SPDY, and a port-forward's tunnel is taken apart.

use futures::future::join_all;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use sampan_tasks::{OnExit, Tasks};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::http_upgrade::{self, PROTOCOL_VERSION, SPDY, UpgradedIo};
use crate::port_forward::TUNNEL_PROTOCOL;
use crate::proxy::{self, ProxyBody, ProxyError, backend_request};
use crate::remote_command::{ExitStatus, Options, RemoteCommand, accept_remote_command};
use crate::spdy::{Headers, Session, Stream};
use crate::websocket::{self, Tunnel};
use crate::{StreamError, UpgradeResponse, is_websocket};

/// A result is a short object.
const MAX_STATUS: u64 = 64 * 1024;

/// Whether the request must be translated for a node that speaks SPDY and the older WebSocket protocols only.
pub fn is_needed<B>(request: &Request<B>) -> bool {
    let newer = |name: &str| name == "v5.channel.k8s.io" || name == TUNNEL_PROTOCOL;
    is_websocket(request.headers())
        && http_upgrade::list(request.headers(), header::SEC_WEBSOCKET_PROTOCOL)
            .into_iter()
            .any(newer)
}

fn boxed(response: UpgradeResponse) -> Response<ProxyBody> {
    use http_body_util::BodyExt;
    response.map(|body| body.map_err(|never| match never {}).boxed())
}

/// Asks the backend for SPDY with one stream protocol.
async fn connect<B, IO>(
    request: &Request<B>,
    (host, target): (&str, &str),
    protocol: &'static str,
    io: IO,
    tasks: &Tasks,
) -> Result<Result<UpgradedIo, Response<ProxyBody>>, ProxyError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut passed = backend_request(request, host, target)?;
    *passed.method_mut() = Method::POST;
    let headers = passed.headers_mut();
    for name in [
        header::SEC_WEBSOCKET_PROTOCOL,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_EXTENSIONS,
    ] {
        headers.remove(name);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
    headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
    let response = proxy::send(passed, io, tasks).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Err(proxy::relayed(response)));
    }
    if !http_upgrade::is_spdy(response.headers()) {
        return Err(ProxyError::Answer(response.status()));
    }
    Ok(Ok(proxy::upgraded_backend(response).await?))
}

/// Takes the WebSocket off a tunnelled port-forward and passes its SPDY on. Arguments as of [`crate::proxy_upgrade`].
pub async fn port_forward<B, IO>(
    request: &mut Request<B>,
    host: &str,
    target: &str,
    io: IO,
    tasks: &Tasks,
) -> Result<Response<ProxyBody>, ProxyError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let backend = match connect(request, (host, target), "portforward.k8s.io", io, tasks).await? {
        Ok(backend) => backend,
        Err(refusal) => return Ok(refusal),
    };
    let (response, taken) = match websocket::accept(request, &[TUNNEL_PROTOCOL]) {
        Ok((response, _, taken)) => (response, taken),
        Err(refusal) => return Ok(boxed(*refusal)),
    };
    tasks.spawn_until_drain("port-forward tunnel", OnExit::Expected, async move {
        match http_upgrade::upgraded(taken).await {
            Ok(client) => proxy::join(Tunnel::new(websocket::server(client).await), backend).await,
            Err(error) => tracing::debug!(%error, "an upgraded connection did not come about"),
        }
    });
    Ok(boxed(response))
}

/// Runs a client's exec or attach against a backend that speaks SPDY. Arguments as of [`crate::proxy_upgrade`].
pub async fn remote_command<B, IO>(
    request: &mut Request<B>,
    options: Options,
    host: &str,
    target: &str,
    io: IO,
    tasks: &Tasks,
) -> Result<Response<ProxyBody>, ProxyError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let backend = match connect(request, (host, target), "v4.channel.k8s.io", io, tasks).await? {
        Ok(backend) => backend,
        Err(refusal) => return Ok(refusal),
    };
    let (response, command) = match accept_remote_command(request, options, tasks) {
        Ok(accepted) => accepted,
        Err(refusal) => return Ok(boxed(*refusal)),
    };
    let own = tasks.clone();
    tasks.spawn_until_drain("translated command", OnExit::Expected, async move {
        match command.await {
            Ok(command) => {
                let session = Session::client(backend, &own);
                run(command, session, options).await;
            }
            Err(error) => tracing::debug!(%error, "a remote command did not come about"),
        }
    });
    Ok(boxed(response))
}

/// The backend's streams.
struct Backend {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

async fn open(session: &Session, options: Options) -> Result<Backend, StreamError> {
    let open = async |kind: &str, wanted: bool| {
        if !wanted {
            return Ok(None);
        }
        session.open(Headers::new(&[("streamType", kind)])).await.map(Some)
    };
    Ok(Backend {
        error: session.open(Headers::new(&[("streamType", "error")])).await?,
        stdin: open("stdin", options.stdin).await?,
        stdout: open("stdout", options.stdout).await?,
        stderr: open("stderr", options.stderr).await?,
        resize: open("resize", options.tty).await?,
    })
}

async fn run(command: RemoteCommand, session: Session, options: Options) {
    let RemoteCommand {
        stdin,
        stdout,
        stderr,
        resize,
        status,
        gone,
    } = command;
    let backend = match open(&session, options).await {
        Ok(backend) => backend,
        Err(error) => {
            return status.finish(ExitStatus::Failed(format!(
                "the node did not take the command: {error}"
            )));
        }
    };
    let input = async {
        if let (Some(mut from), Some(mut to)) = (stdin, backend.stdin) {
            if let Err(error) = tokio::io::copy(&mut from, &mut to).await {
                tracing::trace!(%error, "a command's input ended");
            }
            if let Err(error) = to.shutdown().await {
                tracing::trace!(%error, "a command's input could not be ended");
            }
            // The stream stays until the command ends: dropping it would reset it.
            std::future::pending::<()>().await;
        }
    };
    let sizes = async {
        if let (Some(mut from), Some(mut to)) = (resize, backend.resize) {
            while let Some(size) = from.next().await {
                let json = serde_json::to_vec(&size).unwrap_or_default();
                if to.write_all(&json).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        }
    };
    let outputs = [(backend.stdout, stdout), (backend.stderr, stderr)].map(async |(from, to)| {
        if let (Some(mut from), Some(mut to)) = (from, to)
            && let Err(error) = tokio::io::copy(&mut from, &mut to).await
        {
            tracing::trace!(%error, "a command's output ended");
        }
    });
    let result = async {
        let mut text = Vec::new();
        let mut error = backend.error.take(MAX_STATUS);
        let read = async { error.read_to_end(&mut text).await };
        let (_, read) = tokio::join!(join_all(outputs), read);
        (read, text)
    };
    // Their end is not the command's: only the result is.
    let inputs = async {
        tokio::join!(input, sizes);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        (read, text) = result => status.finish(match (read, serde_json::from_slice::<Value>(&text)) {
            (_, Ok(value)) => ExitStatus::from_status(value),
            (Ok(_), Err(_)) if text.is_empty() => ExitStatus::Success,
            (Ok(_), Err(_)) => ExitStatus::Failed(String::from_utf8_lossy(&text).into_owned()),
            (Err(error), Err(_)) => ExitStatus::Failed(format!("the node was lost: {error}")),
        }),
        () = inputs => {}
        () = gone.cancelled() => {}
    }
}
