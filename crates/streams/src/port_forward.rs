//! Connections to ports of a Pod.
//!
//! Over SPDY each connection is a pair of streams, `data` and `error`, that name the port and a request id; newer
//! clients put that SPDY into a WebSocket. The older WebSocket protocol fixes the ports in the query and has one
//! pair of channels for each, so one connection per port.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http::{Request, StatusCode};
use sampan_tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::http_upgrade::{self, query_pairs, refusal};
use crate::pipe::PipeReader;
use crate::spdy::{Session, Stream};
use crate::websocket::{self, ChannelWriter, Channels, Codec, Tunnel};
use crate::{Refusal, StreamError, UpgradeResponse};

const PROTOCOL: &str = "portforward.k8s.io";
pub(crate) const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET_PROTOCOLS: [&str; 4] = [TUNNEL_PROTOCOL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// How long the second stream of a pair may take.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Half pairs at once.
const MAX_HALVES: usize = 128;
/// Ports of one WebSocket: two channels each, numbered by one byte, one number being taken.
const MAX_PORTS: usize = 127;

/// Where a connection's bytes flow.
pub trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// Tells the client what went wrong with one connection.
#[derive(Debug)]
pub struct ErrorWriter(ErrorSink);

#[derive(Debug)]
enum ErrorSink {
    Spdy(Stream),
    WebSocket(Arc<CloseWithLast>, u8),
}

impl ErrorWriter {
    /// Ends the connection with a message. Dropping the writer instead ends it without one.
    pub fn fail(self, message: &str) {
        match self.0 {
            ErrorSink::Spdy(stream) => stream.finish_with(message.to_owned().into()),
            ErrorSink::WebSocket(channels, channel) => channels.0.send_now(channel, message.as_bytes()),
        }
    }
}

/// One connection to one port.
pub struct Connection {
    pub port: u16,
    /// Shut down: our half has ended. Dropped: the connection is over.
    pub data: Pin<Box<dyn Io>>,
    pub error: ErrorWriter,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// A client's connections as it makes them. Keep it as long as any of them is in use.
#[derive(Debug)]
pub struct PortForward(Kind);

#[derive(Debug)]
enum Kind {
    Spdy(Pairs),
    WebSocket {
        waiting: std::vec::IntoIter<Connection>,
        ended: CancellationToken,
    },
}

impl PortForward {
    /// The next connection; `None` when the client is gone.
    pub async fn accept(&mut self) -> Option<Connection> {
        match &mut self.0 {
            Kind::Spdy(pairs) => pairs.next().await,
            Kind::WebSocket { waiting, ended } => match waiting.next() {
                Some(connection) => Some(connection),
                None => {
                    ended.cancelled().await;
                    None
                }
            },
        }
    }

    /// Cancelled when the client is gone.
    pub fn gone(&self) -> CancellationToken {
        match &self.0 {
            Kind::Spdy(pairs) => pairs.session.ended(),
            Kind::WebSocket { ended, .. } => ended.clone(),
        }
    }

    fn over_spdy(session: Session) -> Self {
        PortForward(Kind::Spdy(Pairs {
            session,
            halves: HashMap::new(),
        }))
    }
}

/// Finds the streams that belong together.
#[derive(Debug)]
struct Pairs {
    session: Session,
    halves: HashMap<String, (Stream, Instant)>,
}

impl Pairs {
    async fn next(&mut self) -> Option<Connection> {
        loop {
            let stream = self.session.accept().await?;
            // Halves whose other half never came; dropping them tells the client.
            self.halves.retain(|_, (_, since)| since.elapsed() < PAIR_TIMEOUT);
            match self.add(stream) {
                Ok(Some(connection)) => return Some(connection),
                Ok(None) => {}
                Err(why) => tracing::debug!(why, "a port-forward stream was refused"),
            }
        }
    }

    fn add(&mut self, stream: Stream) -> Result<Option<Connection>, &'static str> {
        let is_error = match stream.headers().get("streamtype") {
            "error" => true,
            "data" => false,
            _ => return Err("its type is neither data nor error"),
        };
        let id = match stream.headers().get("requestid") {
            // Old clients send none, and create the data stream right after the error stream.
            "" if is_error => stream.id().to_string(),
            "" => stream.id().saturating_sub(2).to_string(),
            id => id.to_owned(),
        };
        let Some((other, since)) = self.halves.remove(&id) else {
            if self.halves.len() >= MAX_HALVES {
                return Err("too many streams wait for their other half");
            }
            self.halves.insert(id, (stream, Instant::now()));
            return Ok(None);
        };
        let other_is_error = other.headers().get("streamtype") == "error";
        if other_is_error == is_error {
            self.halves.insert(id, (other, since));
            return Err("there is one of its type with the same request id");
        }
        let (data, error) = if is_error { (other, stream) } else { (stream, other) };
        let error = ErrorWriter(ErrorSink::Spdy(error));
        let Some(port) = data.headers().get("port").parse().ok().filter(|port| *port > 0) else {
            error.fail("the header port must be a number from 1 to 65535");
            return Err("its port is none");
        };
        Ok(Some(Connection {
            port,
            data: Box::pin(data),
            error,
        }))
    }
}

/// Closes the WebSocket when the last connection over it is done.
#[derive(Debug)]
struct CloseWithLast(Arc<Channels>);

impl Drop for CloseWithLast {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A channel in both directions.
#[derive(Debug)]
struct ChannelIo {
    reader: PipeReader,
    writer: ChannelWriter,
    _closes: Arc<CloseWithLast>,
}

impl AsyncRead for ChannelIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for ChannelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

/// The `ports` of the query; `port` and lists in one value are understood too.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let values = query_pairs(query).filter(|(name, _)| name == "ports" || name == "port");
    let mut ports = Vec::new();
    for (_, value) in values {
        for port in value.split(',') {
            let number = port.parse().ok().filter(|number| *number > 0);
            ports.push(number.ok_or_else(|| format!("{port:?} is not a port from 1 to 65535"))?);
        }
    }
    if ports.is_empty() {
        return Err("query parameter \"ports\" is required".into());
    }
    if ports.len() > MAX_PORTS {
        return Err(format!("at most {MAX_PORTS} ports can be forwarded at once"));
    }
    Ok(ports)
}

/// Resolves once the response was sent and the connection became another protocol.
pub type PortForwardFuture = BoxFuture<'static, Result<PortForward, StreamError>>;

/// Answers a port-forward request, over whichever transport it asks for. Send the response, then await the future.
/// `Err` is a refusal to be sent instead.
pub fn accept_port_forward<B>(
    request: &mut Request<B>,
    tasks: &Tasks,
) -> Result<(UpgradeResponse, PortForwardFuture), Refusal> {
    let tasks = tasks.clone();
    if !crate::is_websocket(request.headers()) {
        if !http_upgrade::is_spdy(request.headers()) {
            return Err(refusal(
                StatusCode::BAD_REQUEST,
                "unable to upgrade: the request must upgrade to a WebSocket or to SPDY/3.1",
            ));
        }
        let (response, _) = http_upgrade::accept_spdy(request.headers(), &[PROTOCOL])?;
        let taken = http_upgrade::taken(request);
        let streams = async move {
            let io = http_upgrade::upgraded(taken).await?;
            Ok(PortForward::over_spdy(Session::server(io, &tasks)))
        };
        return Ok((response, Box::pin(streams)));
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (response, protocol, taken) = websocket::accept(request, &WEBSOCKET_PROTOCOLS)?;
    if protocol == TUNNEL_PROTOCOL {
        let streams = async move {
            let io = http_upgrade::upgraded(taken).await?;
            let tunnel = Tunnel::new(websocket::server(io).await);
            Ok(PortForward::over_spdy(Session::server(tunnel, &tasks)))
        };
        return Ok((response, Box::pin(streams)));
    }
    let ports = ports(&query).map_err(|why| refusal(StatusCode::BAD_REQUEST, why))?;
    let streams = async move {
        let io = http_upgrade::upgraded(taken).await?;
        let codec = Codec {
            base64: protocol.contains("base64."),
            close_signal: false,
        };
        let numbered: Vec<(u8, u16)> = (0u8..).step_by(2).zip(ports).collect();
        let readable = numbered.iter().map(|(channel, _)| *channel);
        let (channels, mut readers) = Channels::start(websocket::server(io).await, codec, readable, &tasks);
        let ended = channels.ended();
        let closes = Arc::new(CloseWithLast(channels.clone()));
        let mut waiting = Vec::new();
        for (channel, port) in numbered {
            // Each channel begins with the port it is for.
            channels.send_now(channel, &port.to_le_bytes());
            channels.send_now(channel + 1, &port.to_le_bytes());
            let Some(reader) = readers.remove(&channel) else {
                continue;
            };
            waiting.push(Connection {
                port,
                data: Box::pin(ChannelIo {
                    reader,
                    writer: channels.writer(channel),
                    _closes: closes.clone(),
                }),
                error: ErrorWriter(ErrorSink::WebSocket(closes.clone(), channel + 1)),
            });
        }
        let waiting = waiting.into_iter();
        Ok(PortForward(Kind::WebSocket { waiting, ended }))
    };
    Ok((response, Box::pin(streams)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::Headers;

    #[test]
    fn ports_come_from_the_query() {
        assert_eq!(ports("ports=80&ports=443,8080"), Ok(vec![80, 443, 8080]));
        assert_eq!(ports("port=80"), Ok(vec![80]));
        for bad in ["", "ports=", "ports=0", "ports=65536", "ports=a"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
        assert!(ports(&"ports=1&".repeat(128)).is_err());
    }

    #[tokio::test]
    async fn streams_are_paired_by_request_id_or_by_number() {
        let tasks = Tasks::new();
        let (a, b) = tokio::io::duplex(64 * 1024);
        let client = Session::client(a, &tasks);
        let mut forward = PortForward::over_spdy(Session::server(b, &tasks));
        let open = |kind: &'static str, port: &'static str, id: &'static str| {
            let headers = Headers::new(&[("streamType", kind), ("port", port), ("requestID", id)]);
            client.open(headers)
        };
        let _e7 = open("error", "80", "7").await.unwrap();
        let _e8 = open("error", "81", "8").await.unwrap();
        let _twice = open("error", "81", "8").await.unwrap();
        let _odd = open("other", "81", "8").await.unwrap();
        let _d8 = open("data", "81", "8").await.unwrap();
        let _d7 = open("data", "80", "7").await.unwrap();
        assert_eq!(forward.accept().await.unwrap().port, 81);
        assert_eq!(forward.accept().await.unwrap().port, 80);
        let _old_error = open("error", "82", "").await.unwrap();
        let _old_data = open("data", "82", "").await.unwrap();
        assert_eq!(forward.accept().await.unwrap().port, 82);
        let mut error = open("error", "x", "9").await.unwrap();
        let _data = open("data", "x", "9").await.unwrap();
        let reading = tokio::spawn(async move {
            let mut text = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut error, &mut text)
                .await
                .unwrap();
            text
        });
        let _next = tokio::time::timeout(Duration::from_millis(200), forward.accept()).await;
        assert!(reading.await.unwrap().contains("1 to 65535"));
        drop(client);
        assert!(forward.accept().await.is_none());
    }
}
