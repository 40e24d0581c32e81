//! A command's standard streams, for exec and attach.
//!
//! Versions of the stream protocol, for SPDY `vN.channel.k8s.io` and for WebSocket the same with their own rules:
//! 1 and 2 have no terminal sizes, 1 to 3 tell a failure as plain text, 4 tells the result as a `Status` object,
//! 5 (WebSocket only) lets the client end its input.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::future::BoxFuture;
use http::Request;
use sampan_tasks::Tasks;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use crate::http_upgrade::{self, query_pairs, refusal};
use crate::spdy::{Session, Stream};
use crate::websocket::{self, Channels, Codec};
use crate::{Reader, Refusal, StreamError, UpgradeResponse, Writer};
use std::sync::Arc;

/// How long a client may take to create its streams.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
const SPDY_PROTOCOLS: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
const WEBSOCKET_PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Which streams a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Options {
    /// From a query, with the API's names (`stdin=true`) or the node's (`input=1`). A terminal has no stderr.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let mut options = Options::default();
        for (name, value) in query_pairs(query) {
            let place = match name.as_str() {
                "stdin" | "input" => &mut options.stdin,
                "stdout" | "output" => &mut options.stdout,
                "stderr" | "error" => &mut options.stderr,
                "tty" => &mut options.tty,
                _ => continue,
            };
            *place = matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
        }
        options.stderr &= !options.tty;
        if !(options.stdin || options.stdout || options.stderr) {
            return Err("you must specify at least 1 of stdin, stdout, stderr".into());
        }
        Ok(options)
    }
    /// The same with the node's names, as upstream's API server asks its nodes.
    pub fn to_node_query(self) -> String {
        let flags = [
            (self.stdin, "input=1"),
            (self.stdout, "output=1"),
            (self.stderr, "error=1"),
            (self.tty, "tty=1"),
        ];
        let set: Vec<_> = flags
            .into_iter()
            .filter_map(|(set, text)| set.then_some(text))
            .collect();
        set.join("&")
    }
}

/// The size of the client's terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// The sizes of the client's terminal as they change.
pub struct Resizes {
    reader: Reader,
    buffer: BytesMut,
}

impl std::fmt::Debug for Resizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resizes").finish_non_exhaustive()
    }
}

impl Resizes {
    /// A size is a short JSON object.
    const MAX: usize = 1024;

    pub fn new(reader: Reader) -> Self {
        Resizes {
            reader,
            buffer: BytesMut::new(),
        }
    }

    /// The next size; `None` when there are no more, or what came is none.
    pub async fn next(&mut self) -> Option<TerminalSize> {
        loop {
            let mut sizes = serde_json::Deserializer::from_slice(&self.buffer).into_iter();
            match sizes.next() {
                Some(Ok(size)) => {
                    let taken = sizes.byte_offset();
                    self.buffer.advance(taken);
                    return Some(size);
                }
                Some(Err(error)) if !error.is_eof() => return None,
                Some(Err(_)) | None => {}
            }
            if self.buffer.len() > Self::MAX || self.reader.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq)]
pub enum ExitStatus {
    Success,
    /// It ran and said so.
    Code(i32),
    /// It did not run, or was lost.
    Failed(String),
    /// A ready-made `Status` object.
    Status(Value),
}

impl ExitStatus {
    /// The `Status` object of protocols 4 and 5.
    pub fn to_status(&self) -> Value {
        match self {
            ExitStatus::Success => json!({"metadata": {}, "status": "Success"}),
            ExitStatus::Code(0) => ExitStatus::Success.to_status(),
            ExitStatus::Code(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            ExitStatus::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {why}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": why}]},
                "code": 500,
            }),
            ExitStatus::Status(status) => status.clone(),
        }
    }

    /// From what a node wrote to the error stream of protocol 4.
    pub fn from_status(status: Value) -> Self {
        if status["status"] == "Success" {
            ExitStatus::Success
        } else {
            ExitStatus::Status(status)
        }
    }

    /// As older protocols have it: nothing for a success, else the message.
    fn to_text(&self) -> String {
        let status = self.to_status();
        if status["status"] == "Success" {
            return String::new();
        }
        status["message"].as_str().unwrap_or("the command failed").to_owned()
    }
}

#[derive(Debug)]
enum Transport {
    Spdy { session: Session, error: Stream },
    WebSocket(Arc<Channels>),
}

/// Tells the client how the command ended, then ends the connection. Dropped, it tells that the command was lost.
#[derive(Debug)]
pub struct StatusWriter {
    transport: Option<Transport>,
    /// As a `Status` object rather than as text.
    object: bool,
}

impl StatusWriter {
    /// What was written so far arrives first, what is written after this does not. Needs no waiting; the connection
    /// closes by itself once the client has everything.
    pub fn finish(mut self, status: ExitStatus) {
        self.send(&status);
    }

    fn send(&mut self, status: &ExitStatus) {
        let Some(transport) = self.transport.take() else {
            return;
        };
        let text = if self.object {
            status.to_status().to_string()
        } else {
            status.to_text()
        };
        match transport {
            Transport::Spdy { session, error } => {
                error.finish_with(text.into());
                session.close();
            }
            Transport::WebSocket(channels) => {
                if !text.is_empty() {
                    channels.send_now(ERROR, text.as_bytes());
                }
                channels.close();
            }
        }
    }
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        self.send(&ExitStatus::Failed("the command was interrupted".into()));
    }
}

/// A command's streams, as the client wants them.
pub struct RemoteCommand {
    /// Ends when the client ends its input; fails when the client goes away.
    pub stdin: Option<Reader>,
    pub stdout: Option<Writer>,
    pub stderr: Option<Writer>,
    /// Only with a terminal.
    pub resize: Option<Resizes>,
    pub status: StatusWriter,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
}

impl std::fmt::Debug for RemoteCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteCommand").finish_non_exhaustive()
    }
}

/// Resolves to the streams once the response was sent and the client has set them up.
pub type RemoteCommandFuture = BoxFuture<'static, Result<RemoteCommand, StreamError>>;

/// Answers an exec or attach request, over whichever transport it asks for. Send the response, then await the future.
/// `Err` is a refusal to be sent instead.
pub fn accept_remote_command<B>(
    request: &mut Request<B>,
    options: Options,
    tasks: &Tasks,
) -> Result<(UpgradeResponse, RemoteCommandFuture), Refusal> {
    let tasks = tasks.clone();
    if crate::is_websocket(request.headers()) {
        let (response, protocol, taken) = websocket::accept(request, &WEBSOCKET_PROTOCOLS)?;
        let streams = async move {
            let io = http_upgrade::upgraded(taken).await?;
            Ok(over_websocket(websocket::server(io).await, protocol, options, &tasks))
        };
        return Ok((response, Box::pin(streams)));
    }
    if !http_upgrade::is_spdy(request.headers()) {
        return Err(refusal(
            http::StatusCode::BAD_REQUEST,
            "unable to upgrade: the request must upgrade to a WebSocket or to SPDY/3.1",
        ));
    }
    let (response, protocol) = http_upgrade::accept_spdy(request.headers(), &SPDY_PROTOCOLS)?;
    let taken = http_upgrade::taken(request);
    let streams = async move {
        let io = http_upgrade::upgraded(taken).await?;
        let session = Session::server(io, &tasks);
        match tokio::time::timeout(CREATION_TIMEOUT, over_spdy(session, protocol, options)).await {
            Ok(streams) => streams,
            Err(_) => Err(StreamError::Timeout),
        }
    };
    Ok((response, Box::pin(streams)))
}

async fn over_spdy(mut session: Session, protocol: &str, options: Options) -> Result<RemoteCommand, StreamError> {
    let object = protocol.starts_with("v4.");
    let resizes = options.tty && (object || protocol.starts_with("v3."));
    let (mut stdin, mut stdout, mut stderr, mut resize, mut error) = (None, None, None, None, None);
    let missing = |have: &Option<Stream>, wanted: bool| wanted && have.is_none();
    while error.is_none()
        || missing(&stdin, options.stdin)
        || missing(&stdout, options.stdout)
        || missing(&stderr, options.stderr)
        || missing(&resize, resizes)
    {
        let stream = session.accept().await.ok_or(StreamError::Closed)?;
        let place = match stream.headers().get("streamtype") {
            "stdin" => &mut stdin,
            "stdout" => &mut stdout,
            "stderr" => &mut stderr,
            "resize" => &mut resize,
            "error" => &mut error,
            other => {
                return Err(StreamError::Protocol(format!("unexpected stream type {other:?}")));
            }
        };
        if place.is_some() {
            return Err(StreamError::Protocol("two streams of one type".into()));
        }
        *place = Some(stream);
    }
    let error = error.ok_or(StreamError::Closed)?;
    Ok(RemoteCommand {
        stdin: stdin.map(|stream| Box::pin(stream) as Reader),
        stdout: stdout.map(|stream| Box::pin(stream) as Writer),
        stderr: stderr.map(|stream| Box::pin(stream) as Writer),
        resize: resize.map(|stream| Resizes::new(Box::pin(stream))),
        gone: session.ended(),
        status: StatusWriter {
            transport: Some(Transport::Spdy { session, error }),
            object,
        },
    })
}

fn over_websocket<IO>(
    socket: tokio_tungstenite::WebSocketStream<IO>,
    protocol: &str,
    options: Options,
    tasks: &Tasks,
) -> RemoteCommand
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let codec = Codec {
        base64: protocol.contains("base64."),
        close_signal: protocol.starts_with("v5."),
    };
    let readable = [(options.stdin, STDIN), (options.tty, RESIZE)];
    let readable = readable
        .into_iter()
        .filter_map(|(wanted, channel)| wanted.then_some(channel));
    let (channels, mut readers) = Channels::start(socket, codec, readable, tasks);
    let outputs = [(options.stdout, STDOUT), (options.stderr, STDERR)];
    // Tells the client that the connection stands.
    let first = outputs.iter().find_map(|(wanted, channel)| wanted.then_some(*channel));
    channels.send_now(first.unwrap_or(ERROR), &[]);
    let mut reader = |channel| readers.remove(&channel).map(|reader| Box::pin(reader) as Reader);
    let writer = |wanted: bool, channel| wanted.then(|| Box::pin(channels.writer(channel)) as Writer);
    RemoteCommand {
        stdin: reader(STDIN),
        resize: reader(RESIZE).map(Resizes::new),
        stdout: writer(options.stdout, STDOUT),
        stderr: writer(options.stderr, STDERR),
        gone: channels.ended(),
        status: StatusWriter {
            object: protocol.starts_with("v4.") || protocol.starts_with("v5."),
            transport: Some(Transport::WebSocket(channels)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_with_either_set_of_names() {
        let options = |query: &str| Options::from_query(query);
        let all = Options {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        assert_eq!(options("command=sh&stdin=true&stdout=true&stderr=true"), Ok(all));
        assert_eq!(options("command=sh&input=1&output=1&error=1"), Ok(all));
        assert_eq!(options(&all.to_node_query()), Ok(all));
        assert!(!options("stdout=1&stderr=1&tty=1").unwrap().stderr);
        assert!(options("tty=true").is_err() && options("stdin=false").is_err());
    }

    #[tokio::test]
    async fn sizes_are_read_one_by_one() {
        let json = br#"{"Width":80,"Height":24}{"Width":1,"Height":2}
            {"Width":"x"}"#;
        let mut sizes = Resizes::new(Box::pin(&json[..]));
        assert_eq!(sizes.next().await, Some(TerminalSize { width: 80, height: 24 }));
        assert_eq!(sizes.next().await, Some(TerminalSize { width: 1, height: 2 }));
        assert_eq!(sizes.next().await, None);
        let endless = "{".to_owned() + &" ".repeat(5000);
        let reader = std::io::Cursor::new(endless.into_bytes());
        assert_eq!(Resizes::new(Box::pin(reader)).next().await, None);
    }

    #[test]
    fn the_status_is_upstreams() {
        assert_eq!(
            ExitStatus::Code(0).to_status(),
            json!({"metadata": {}, "status": "Success"})
        );
        let status = ExitStatus::Code(3).to_status();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"],
            json!([{"reason": "ExitCode", "message": "3"}])
        );
        assert_eq!(ExitStatus::Failed("x".into()).to_text(), "Internal error occurred: x");
        assert_eq!(ExitStatus::Success.to_text(), "");
        assert_eq!(ExitStatus::from_status(status.clone()), ExitStatus::Status(status));
    }
}
