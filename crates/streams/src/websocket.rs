//! WebSocket: the handshake, numbered channels in messages, and a plain byte stream in messages.
//!
//! A channel message is a number and bytes. In the binary protocols the number is the first byte; in the base64 ones
//! it is a digit and the rest is base64. Version 5 adds channel 255: "the sender ends the channel with this number".

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use http::{HeaderValue, Request, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use sampan_tasks::{Drain, OnExit, Tasks};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use crate::http_upgrade::{self, refusal, switching};
use crate::outbox::Outbox;
use crate::pipe::{Budget, PipeReader, PipeSender, pipe};
use crate::{Refusal, UpgradeResponse, is_websocket};

/// As the library upstream uses: some clients send a whole file as one message.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;
const MAX_WRITE: usize = 16 * 1024;
const LINGER: Duration = Duration::from_secs(5);
const CLOSE_SIGNAL: u8 = 255;

fn config() -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = 32 * 1024;
    config.write_buffer_size = 32 * 1024;
    config.max_write_buffer_size = 1024 * 1024;
    config.max_message_size = Some(MAX_MESSAGE);
    config.max_frame_size = Some(MAX_MESSAGE);
    config
}

/// Answers a WebSocket handshake with the first of the client's subprotocols that is supported.
/// A client that names none gets the one called `""`, if that is supported.
pub(crate) fn accept<B>(
    request: &mut Request<B>,
    supported: &[&'static str],
) -> Result<(UpgradeResponse, &'static str, OnUpgrade), Refusal> {
    let headers = request.headers();
    let bad = |text: &str| refusal(StatusCode::BAD_REQUEST, format!("unable to upgrade: {text}"));
    if !is_websocket(headers) {
        return Err(bad("this is not a WebSocket request"));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        let mut response = refusal(StatusCode::UPGRADE_REQUIRED, "only WebSocket version 13 is supported");
        let ours = HeaderValue::from_static("13");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, ours);
        return Err(response);
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| bad("Sec-WebSocket-Key is missing"))?;
    let accept =
        HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| bad("Sec-WebSocket-Key is malformed"))?;
    let wanted = http_upgrade::list(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let ours = |name: &str| supported.iter().copied().find(|own| *own == name);
    let protocol = if wanted.is_empty() {
        ours("")
    } else {
        wanted.iter().find_map(|name| ours(name))
    };
    let Some(protocol) = protocol else {
        return Err(refusal(
            StatusCode::FORBIDDEN,
            format!(
                "requested protocol(s) are not supported: [{}]; supports [{}]",
                wanted.join(" "),
                supported.join(" ")
            ),
        ));
    };
    let mut response = switching("websocket");
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        let protocol = HeaderValue::from_static(protocol);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok((response, protocol, http_upgrade::taken(request)))
}

/// The server's end of an upgraded connection.
pub(crate) async fn server<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> WebSocketStream<IO> {
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await
}

/// How bytes are put into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codec {
    pub base64: bool,
    /// Whether channels can be ended by a message.
    pub close_signal: bool,
}

impl Codec {
    fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(bytes.len() * 4 / 3 + 5);
            text.push(char::from(b'0'.saturating_add(channel)));
            STANDARD.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(bytes);
        Message::binary(message.freeze())
    }

    /// Channel and bytes; `None` for what is no channel message.
    fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        let first = bytes.try_get_u8().ok()?;
        if !self.base64 {
            return Some((first, bytes));
        }
        let channel = first.checked_sub(b'0')?;
        Some((channel, STANDARD.decode(&bytes).ok()?.into()))
    }
}

/// What is shared by everything that writes to a WebSocket of channels.
#[derive(Debug)]
pub(crate) struct Channels {
    outbox: Outbox<Message>,
    codec: Codec,
    ended: CancellationToken,
}

/// However the task ends, writers and waiters learn it.
struct EndOnDrop(Arc<Channels>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.outbox.abort();
        self.0.ended.cancel();
    }
}

impl Channels {
    /// Starts serving; returns a reader for each of the `readable` channels.
    pub fn start<IO>(
        socket: WebSocketStream<IO>,
        codec: Codec,
        readable: impl IntoIterator<Item = u8>,
        tasks: &Tasks,
    ) -> (Arc<Self>, HashMap<u8, PipeReader>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let budget = Budget::new();
        let (mut senders, mut readers) = (HashMap::new(), HashMap::new());
        for channel in readable {
            let (sender, reader) = pipe(&budget);
            senders.insert(channel, sender);
            readers.insert(channel, reader);
        }
        let channels = Arc::new(Channels {
            outbox: Outbox::new(),
            codec,
            ended: CancellationToken::new(),
        });
        let (own, drain) = (channels.clone(), tasks.drain());
        tasks.spawn("websocket channels", OnExit::Expected, async move {
            let own = EndOnDrop(own);
            run(socket, &own.0, senders, drain).await;
        });
        (channels, readers)
    }

    /// Sends a small message, room or not.
    pub fn send_now(&self, channel: u8, bytes: &[u8]) {
        // On a connection that is closed there is nobody to tell.
        self.outbox.push(self.codec.encode(channel, bytes)).unwrap_or_default();
    }

    /// Sends what was written, then says goodbye.
    pub fn close(&self) {
        let goodbye = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        // Closed already: then it was said or cannot be said.
        self.outbox.push(Message::Close(Some(goodbye))).unwrap_or_default();
        self.outbox.close();
    }

    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    pub fn writer(self: &Arc<Self>, channel: u8) -> ChannelWriter {
        ChannelWriter {
            channels: self.clone(),
            channel,
            finished: false,
        }
    }
}

async fn run<IO>(socket: WebSocketStream<IO>, channels: &Channels, senders: HashMap<u8, PipeSender>, drain: Drain)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (sink, stream) = socket.split();
    let reading = read(stream, channels.codec, senders);
    let writing = write(sink, channels);
    let (mut reading, mut writing) = (std::pin::pin!(reading), std::pin::pin!(writing));
    let mut draining = false;
    loop {
        tokio::select! {
            result = &mut reading => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a WebSocket connection failed");
                }
                return;
            }
            result = &mut writing => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a WebSocket connection failed");
                } else {
                    // Closing at once could destroy what the peer has not read yet: let it hang up first.
                    let _in_time = tokio::time::timeout(LINGER, reading).await;
                }
                return;
            }
            () = drain.started(), if !draining => {
                draining = true;
                channels.close();
            }
        }
    }
}

/// Nothing is sent before this has passed: clients up to client-go 0.32 read before they have made their streams, and
/// discard what comes for a stream they do not know yet. Upstream is never that quick.
const SETTLING: std::time::Duration = std::time::Duration::from_millis(100);

async fn read(
    mut stream: impl Stream<Item = Result<Message, WsError>> + Unpin,
    codec: Codec,
    mut senders: HashMap<u8, PipeSender>,
) -> Result<(), WsError> {
    while let Some(message) = stream.next().await {
        let message = message?;
        if let Message::Close(_) = message {
            return Ok(());
        }
        match codec.decode(message) {
            Some((CLOSE_SIGNAL, bytes)) if codec.close_signal => {
                if let Some(sender) = bytes.first().and_then(|channel| senders.remove(channel)) {
                    sender.finish();
                }
            }
            Some((channel, bytes)) => {
                if let Some(sender) = senders.get(&channel) {
                    sender.handle().send(bytes).await;
                }
            }
            None => {}
        }
    }
    Ok(())
}

async fn write(mut sink: impl Sink<Message, Error = WsError> + Unpin, channels: &Channels) -> Result<(), WsError> {
    tokio::time::sleep(SETTLING).await;
    while let Some(message) = channels.outbox.next().await {
        sink.feed(message).await?;
        while let Some(message) = channels.outbox.try_next() {
            sink.feed(message).await?;
        }
        sink.flush().await?;
    }
    Ok(())
}

/// One channel's bytes to the peer. Ending it sends nothing: in this direction no protocol has a signal for that.
#[derive(Debug)]
pub(crate) struct ChannelWriter {
    channels: Arc<Channels>,
    channel: u8,
    finished: bool,
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the channel was already shut down",
            )));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let length = buf.len().min(MAX_WRITE);
        let (codec, channel) = (self.channels.codec, self.channel);
        ready!(
            self.channels
                .outbox
                .poll_push(cx, length, || { codec.encode(channel, &buf[..length]) })
        )?;
        Poll::Ready(Ok(length))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        Poll::Ready(Ok(()))
    }
}

/// A byte stream carried in binary messages, whose boundaries mean nothing.
#[derive(Debug)]
pub struct Tunnel<IO> {
    socket: WebSocketStream<IO>,
    current: Bytes,
    said_goodbye: bool,
}

impl<IO> Tunnel<IO> {
    pub(crate) fn new(socket: WebSocketStream<IO>) -> Self {
        Tunnel {
            socket,
            current: Bytes::new(),
            said_goodbye: false,
        }
    }
}

fn io_error(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        WsError::ConnectionClosed | WsError::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.socket.poll_next_unpin(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.current = bytes,
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a text message where only binary ones belong",
                    )));
                }
                Some(Ok(Message::Close(_)) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) | None => {
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let length = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current[..length]);
        self.current.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.socket.poll_ready_unpin(cx)).map_err(io_error)?;
        let length = buf.len().min(MAX_WRITE * 2);
        let message = Message::binary(Bytes::copy_from_slice(&buf[..length]));
        self.socket.start_send_unpin(message).map_err(io_error)?;
        Poll::Ready(Ok(length))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush_unpin(cx).map_err(io_error)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.said_goodbye {
            ready!(self.socket.poll_ready_unpin(cx)).map_err(io_error)?;
            let goodbye = CloseFrame {
                code: CloseCode::Normal,
                reason: "".into(),
            };
            self.said_goodbye = true;
            match self.socket.start_send_unpin(Message::Close(Some(goodbye))) {
                Ok(()) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => {}
                Err(error) => return Poll::Ready(Err(io_error(error))),
            }
        }
        match ready!(self.socket.poll_flush_unpin(cx)) {
            Ok(()) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(io_error(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn messages_are_channel_and_bytes() {
        let raw = Codec {
            base64: false,
            close_signal: true,
        };
        let base64 = Codec {
            base64: true,
            close_signal: false,
        };
        assert_eq!(raw.encode(1, b"ab"), Message::binary(vec![1, b'a', b'b']));
        assert_eq!(base64.encode(1, b"foo\n"), Message::text("1Zm9vCg=="));
        for codec in [raw, base64] {
            for bytes in [&b""[..], b"x", &[0, 255, 7]] {
                assert_eq!(
                    codec.decode(codec.encode(3, bytes)),
                    Some((3, Bytes::copy_from_slice(bytes)))
                );
            }
        }
        assert_eq!(base64.decode(Message::text("0%%%")), None);
        assert_eq!(base64.decode(Message::text("!")), None);
        assert_eq!(raw.decode(Message::binary(vec![])), None);
    }

    #[test]
    fn handshakes_are_checked() {
        let request = |pairs: &[(&'static str, &'static str)]| {
            let mut request = Request::new(());
            for (name, value) in [
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ] {
                request.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            for (name, value) in pairs {
                request.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            request
        };
        let supported = ["v5.channel.k8s.io", "channel.k8s.io", ""];
        let (response, protocol, _) = accept(
            &mut request(&[("sec-websocket-protocol", "x, v5.channel.k8s.io, channel.k8s.io")]),
            &supported,
        )
        .unwrap();
        assert_eq!(protocol, "v5.channel.k8s.io");
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let (response, protocol, _) = accept(&mut request(&[]), &supported).unwrap();
        assert!(protocol.is_empty() && !response.headers().contains_key("sec-websocket-protocol"));
        let status = |pairs: &[(&'static str, &'static str)]| {
            accept(&mut request(pairs), &supported).unwrap_err().status().as_u16()
        };
        assert_eq!(status(&[("sec-websocket-protocol", "v9")]), 403);
        assert_eq!(status(&[("sec-websocket-version", "8")]), 426);
        assert_eq!(status(&[("upgrade", "SPDY/3.1")]), 400);
    }

    #[tokio::test]
    async fn a_tunnel_is_a_plain_byte_stream() {
        let (a, b) = tokio::io::duplex(64 * 1024);
        let client = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
        let (mut near, mut far) = (Tunnel::new(client), Tunnel::new(server(b).await));
        let sent: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0]).collect();
        let copy = sent.clone();
        let sending = tokio::spawn(async move {
            near.write_all(&copy).await.unwrap();
            near.flush().await.unwrap();
            near.shutdown().await.unwrap();
            near
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn channels_end_by_signal_and_by_loss() {
        let tasks = Tasks::new();
        let (a, b) = tokio::io::duplex(64 * 1024);
        let mut client = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
        let codec = Codec {
            base64: false,
            close_signal: true,
        };
        let (channels, mut readers) = Channels::start(server(b).await, codec, [0, 4], &tasks);
        for message in [&[0, b'h', b'i'][..], &[9, 1], &[], &[255, 0], &[0, b'x'], &[4, b'z']] {
            client.send(Message::binary(message.to_vec())).await.unwrap();
        }
        let mut text = String::new();
        readers.get_mut(&0).unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hi");
        channels.writer(1).write_all(b"out").await.unwrap();
        channels.send_now(3, b"status");
        assert_eq!(
            client.next().await.unwrap().unwrap(),
            Message::binary(b"\x01out".to_vec())
        );
        assert_eq!(
            client.next().await.unwrap().unwrap(),
            Message::binary(b"\x03status".to_vec())
        );
        drop(client);
        let mut rest = Vec::new();
        let end = readers.get_mut(&4).unwrap().read_to_end(&mut rest).await;
        assert!(end.is_err() && rest == b"z");
        channels.ended().cancelled().await;
    }
}
