//! One connection and its streams, for either side.
//!
//! One task runs a connection: it reads and writes at once and ends when the peer goes, when the session was closed
//! and everything has been sent, or when draining begins. Streams and the task share a table behind a short lock.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use sampan_tasks::{Drain, OnExit, Tasks};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::codec::{Decoder, Encoder};
use super::frame::{Frame, FrameError, Headers, reset, setting};
use super::stream::{RECEIVE_WINDOW, Stream, Window};
use crate::StreamError;
use crate::outbox::Outbox;
use crate::pipe::{Budget, PipeSender, pipe};

/// Streams at once on one connection.
const MAX_STREAMS: usize = 1024;
/// Streams the peer created that nobody has accepted yet.
const MAX_WAITING: usize = 64;
/// How long a peer may take to answer, and to hang up after we are done.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
const LINGER: Duration = Duration::from_secs(5);
const READ_SIZE: usize = 32 * 1024;
const WRITE_BATCH: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// A stream as the connection sees it.
#[derive(Debug)]
struct Entry {
    /// Where its data goes; gone once the peer's half has ended.
    pipe: Option<PipeSender>,
    /// Who waits for the peer to accept it.
    reply: Option<oneshot::Sender<()>>,
    window: Arc<Window>,
}

#[derive(Debug)]
struct Table {
    streams: HashMap<u32, Entry>,
    next_id: u32,
    last_from_peer: u32,
    /// The window the peer announced for new streams.
    peer_window: Option<u32>,
    /// One of us takes no new streams.
    going_away: bool,
    /// We said goodbye.
    closed: bool,
}

/// What a session, its streams and its task share.
#[derive(Debug)]
pub(super) struct Shared {
    pub outbox: Outbox<Frame>,
    table: Mutex<Table>,
    budget: Budget,
    ended: CancellationToken,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream was dropped.
    pub fn forget(&self, id: u32) {
        let entry = self.table().streams.remove(&id);
        drop(entry);
    }

    /// Adds a stream to the table.
    fn register(
        self: &Arc<Self>,
        table: &mut Table,
        id: u32,
        headers: Headers,
        reply: Option<oneshot::Sender<()>>,
    ) -> Stream {
        let (sender, reader) = pipe(&self.budget);
        let window = Arc::new(Window::new(table.peer_window));
        table.streams.insert(
            id,
            Entry {
                pipe: Some(sender),
                reply,
                window: window.clone(),
            },
        );
        Stream {
            id,
            headers,
            shared: self.clone(),
            reader,
            window,
            consumed: 0,
        }
    }

    /// The peer's half of the stream has ended.
    fn remote_finished(&self, id: u32) {
        let pipe = self.table().streams.get_mut(&id).and_then(|entry| entry.pipe.take());
        if let Some(pipe) = pipe {
            pipe.finish();
        }
    }

    fn close(&self) {
        let mut table = self.table();
        if std::mem::replace(&mut table.closed, true) {
            return;
        }
        table.going_away = true;
        let last_stream = table.last_from_peer;
        let mut open: Vec<_> = table
            .streams
            .iter()
            .filter(|(_, entry)| entry.window.finish())
            .map(|(id, _)| *id)
            .collect();
        drop(table);
        open.sort_unstable();
        // Streams that are still written to end with what they have written so far.
        for stream in open {
            let end = Frame::Data {
                stream,
                fin: true,
                bytes: bytes::Bytes::new(),
            };
            self.outbox.push(end).unwrap_or_default();
        }
        let goodbye = Frame::GoAway { last_stream, status: 0 };
        // Closed already: then it was said or cannot be said.
        self.outbox.push(goodbye).unwrap_or_default();
        self.outbox.close();
    }

    /// The connection is gone: every stream learns it.
    fn end(&self) {
        self.outbox.abort();
        let mut table = self.table();
        table.going_away = true;
        let entries = std::mem::take(&mut table.streams);
        drop(table);
        for entry in entries.into_values() {
            entry.window.reset();
        }
        self.ended.cancel();
    }
}

/// However the task ends, the streams learn it.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A connection. Dropped: it is closed once what was written has been sent, and its streams end.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Stream>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Session {
    /// The side that accepted the connection.
    pub fn server<IO>(io: IO, tasks: &Tasks) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        Self::start(io, Side::Server, tasks)
    }

    /// The side that made the connection.
    pub fn client<IO>(io: IO, tasks: &Tasks) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        Self::start(io, Side::Client, tasks)
    }

    fn start<IO>(io: IO, side: Side, tasks: &Tasks) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let shared = Arc::new(Shared {
            outbox: Outbox::new(),
            table: Mutex::new(Table {
                streams: HashMap::new(),
                next_id: if side == Side::Client { 1 } else { 2 },
                last_from_peer: 0,
                peer_window: None,
                going_away: false,
                closed: false,
            }),
            budget: Budget::new(),
            ended: CancellationToken::new(),
        });
        let (waiting, incoming) = mpsc::channel(MAX_WAITING);
        let settings = Frame::Settings(vec![(setting::INITIAL_WINDOW_SIZE, RECEIVE_WINDOW)]);
        // A new outbox takes it.
        shared.outbox.push(settings).unwrap_or_default();
        let (drain, own) = (tasks.drain(), shared.clone());
        tasks.spawn("spdy session", OnExit::Expected, async move {
            let own = EndOnDrop(own);
            run(io, side, &own.0, waiting, drain).await;
        });
        Session { shared, incoming }
    }

    /// The next stream the peer created; `None` when the connection is over.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Creates a stream and waits for the peer to accept it.
    pub async fn open(&self, headers: Headers) -> Result<Stream, StreamError> {
        let (accepted, reply) = oneshot::channel();
        let stream = {
            let mut table = self.shared.table();
            if table.going_away {
                return Err(StreamError::Closed);
            }
            let id = table.next_id;
            table.next_id += 2;
            let stream = self.shared.register(&mut table, id, headers.clone(), Some(accepted));
            // Under the lock, so that ids go out in order.
            let syn = Frame::SynStream {
                stream: id,
                associated: 0,
                priority: 0,
                fin: false,
                unidirectional: false,
                headers,
            };
            let pushed = self.shared.outbox.push(syn);
            drop(table);
            pushed.map_err(|_| StreamError::Closed)?;
            stream
        };
        match tokio::time::timeout(REPLY_TIMEOUT, reply).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(_)) => Err(StreamError::Closed),
            Err(_) => Err(StreamError::Timeout),
        }
    }

    /// Takes nothing more from streams, sends what they wrote, and closes the connection.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Resolves when the connection is gone.
    pub fn ended(&self) -> CancellationToken {
        self.shared.ended.clone()
    }
}

/// Runs the connection until it is over.
async fn run<IO>(io: IO, side: Side, shared: &Arc<Shared>, waiting: mpsc::Sender<Stream>, drain: Drain)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(io);
    let reading = read(reader, side, shared, waiting);
    let writing = write(writer, shared);
    let (mut reading, mut writing) = (std::pin::pin!(reading), std::pin::pin!(writing));
    let mut draining = false;
    loop {
        tokio::select! {
            result = &mut reading => {
                match result {
                    Ok(()) => {}
                    Err(ReadError::Frame(error)) => {
                        tracing::debug!(%error, "a SPDY peer broke the protocol");
                        shared.close();
                        // Best effort: tell it before hanging up.
                        let _in_time = tokio::time::timeout(LINGER, writing).await;
                    }
                    Err(ReadError::Io(error)) => tracing::debug!(%error, "a SPDY connection failed"),
                }
                return;
            }
            result = &mut writing => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a SPDY connection failed");
                } else {
                    // Closing at once could destroy what the peer has not read yet: let it hang up first.
                    let _in_time = tokio::time::timeout(LINGER, reading).await;
                }
                return;
            }
            () = drain.started(), if !draining => {
                draining = true;
                shared.close();
            }
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(mut io: W, shared: &Shared) -> io::Result<()> {
    let mut encoder = Encoder::new();
    let mut batch = BytesMut::new();
    while let Some(frame) = shared.outbox.next().await {
        encoder.encode(&frame, &mut batch);
        while batch.len() < WRITE_BATCH
            && let Some(frame) = shared.outbox.try_next()
        {
            encoder.encode(&frame, &mut batch);
        }
        io.write_all_buf(&mut batch).await?;
        io.flush().await?;
    }
    io.shutdown().await
}

enum ReadError {
    Io(io::Error),
    Frame(FrameError),
}

async fn read<R: AsyncRead + Unpin>(
    mut io: R,
    side: Side,
    shared: &Arc<Shared>,
    waiting: mpsc::Sender<Stream>,
) -> Result<(), ReadError> {
    let mut decoder = Decoder::new();
    let mut buffer = BytesMut::with_capacity(READ_SIZE);
    loop {
        while let Some(frame) = decoder.decode(&mut buffer).map_err(ReadError::Frame)? {
            handle(frame, side, shared, &waiting).await;
        }
        buffer.reserve(READ_SIZE);
        if io.read_buf(&mut buffer).await.map_err(ReadError::Io)? == 0 {
            return Ok(());
        }
    }
}

async fn handle(frame: Frame, side: Side, shared: &Arc<Shared>, waiting: &mpsc::Sender<Stream>) {
    match frame {
        Frame::Data { stream, fin, bytes } => {
            let pipe = {
                let table = shared.table();
                let entry = table.streams.get(&stream);
                entry.and_then(|entry| entry.pipe.as_ref()).map(PipeSender::handle)
            };
            if let Some(pipe) = pipe {
                pipe.send(bytes).await;
            }
            if fin {
                shared.remote_finished(stream);
            }
        }
        Frame::SynStream {
            stream,
            fin,
            unidirectional,
            headers,
            ..
        } => incoming(stream, fin, unidirectional, headers, side, shared, waiting),
        Frame::SynReply { stream, fin, .. } => {
            let reply = shared
                .table()
                .streams
                .get_mut(&stream)
                .and_then(|entry| entry.reply.take());
            if let Some(reply) = reply {
                // Whoever asked may have given up waiting.
                reply.send(()).unwrap_or_default();
            }
            if fin {
                shared.remote_finished(stream);
            }
        }
        Frame::Headers { stream, fin, .. } => {
            if fin {
                shared.remote_finished(stream);
            }
        }
        Frame::Rst { stream, .. } => {
            let entry = {
                let mut table = shared.table();
                table
                    .streams
                    .get_mut(&stream)
                    .map(|entry| (entry.pipe.take(), entry.reply.take(), entry.window.clone()))
            };
            if let Some((pipe, reply, window)) = entry {
                window.reset();
                drop((pipe, reply));
            }
        }
        Frame::Settings(settings) => {
            let window = settings
                .iter()
                .rev()
                .find(|(id, _)| *id == setting::INITIAL_WINDOW_SIZE);
            if let Some((_, initial)) = window {
                let windows: Vec<_> = {
                    let mut table = shared.table();
                    table.peer_window = Some(*initial);
                    table.streams.values().map(|entry| entry.window.clone()).collect()
                };
                windows.iter().for_each(|window| window.announce(*initial));
            }
        }
        Frame::Ping(id) => {
            let from_peer = (id % 2 == 1) == (side == Side::Server);
            if from_peer {
                // On a connection that is closing there is no need to answer.
                shared.outbox.push(Frame::Ping(id)).unwrap_or_default();
            }
        }
        Frame::GoAway { .. } => shared.table().going_away = true,
        Frame::WindowUpdate { stream, delta } => {
            let window = shared.table().streams.get(&stream).map(|entry| entry.window.clone());
            if let Some(window) = window {
                window.credit(delta);
            }
        }
    }
}

fn incoming(
    id: u32,
    fin: bool,
    unidirectional: bool,
    headers: Headers,
    side: Side,
    shared: &Arc<Shared>,
    waiting: &mpsc::Sender<Stream>,
) {
    let refuse = |status| {
        let reset = Frame::Rst { stream: id, status };
        // On a connection that is closing nothing can be refused, or need be.
        shared.outbox.push(reset).unwrap_or_default();
    };
    let stream = {
        let mut table = shared.table();
        let from_peer = (id % 2 == 1) == (side == Side::Server);
        if !from_peer || id <= table.last_from_peer {
            drop(table);
            return refuse(reset::PROTOCOL_ERROR);
        }
        table.last_from_peer = id;
        if table.going_away || table.streams.len() >= MAX_STREAMS {
            drop(table);
            return refuse(reset::REFUSED_STREAM);
        }
        shared.register(&mut table, id, headers, None)
    };
    if unidirectional {
        stream.window.finish();
    }
    let Ok(place) = waiting.try_reserve() else {
        stream.window.finish();
        return refuse(reset::REFUSED_STREAM);
    };
    let reply = Frame::SynReply {
        stream: id,
        fin: unidirectional,
        headers: Headers::default(),
    };
    if shared.outbox.push(reply).is_ok() {
        if fin {
            shared.remote_finished(id);
        }
        place.send(stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    fn pair(tasks: &Tasks) -> (Session, Session) {
        let (a, b) = tokio::io::duplex(64 * 1024);
        (Session::client(a, tasks), Session::server(b, tasks))
    }

    async fn next_frame(io: &mut DuplexStream, decoder: &mut Decoder, buffer: &mut BytesMut) -> Option<Frame> {
        loop {
            if let Some(frame) = decoder.decode(buffer).unwrap() {
                return Some(frame);
            }
            if io.read_buf(buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_half_close() {
        let tasks = Tasks::new();
        let (client, mut server) = pair(&tasks);
        let mut ours = client.open(Headers::new(&[("StreamType", "data")])).await.unwrap();
        let mut theirs = server.accept().await.unwrap();
        assert_eq!(theirs.headers().get("streamtype"), "data");
        ours.write_all(b"ping").await.unwrap();
        ours.shutdown().await.unwrap();
        assert!(ours.write_all(b"x").await.is_err());
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "ping");
        theirs.write_all(b"pong").await.unwrap();
        drop(theirs);
        text.clear();
        ours.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "pong");
    }

    #[tokio::test]
    async fn many_streams_move_megabytes_at_once() {
        let tasks = Tasks::new();
        let (client, mut server) = pair(&tasks);
        tokio::spawn(async move {
            while let Some(stream) = server.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(stream);
                    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                    writer.shutdown().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                });
            }
        });
        let mut echoes = Vec::new();
        for n in 0..16u8 {
            let stream = client.open(Headers::default()).await.unwrap();
            echoes.push(tokio::spawn(async move {
                let sent = vec![n; 1 << 20];
                let (mut reader, mut writer) = tokio::io::split(stream);
                let copy = sent.clone();
                let send = async move {
                    writer.write_all(&copy).await.unwrap();
                    writer.shutdown().await.unwrap();
                };
                let mut got = Vec::new();
                let (_, read) = tokio::join!(send, reader.read_to_end(&mut got));
                read.unwrap();
                assert!(got == sent);
            }));
        }
        for echo in echoes {
            echo.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_closed_session_sends_what_was_written_first() {
        let tasks = Tasks::new();
        let (client, mut server) = pair(&tasks);
        let mut ours = client.open(Headers::default()).await.unwrap();
        let mut theirs = server.accept().await.unwrap();
        theirs.write_all(&vec![1; 200_000]).await.unwrap();
        theirs.shutdown().await.unwrap();
        server.close();
        let mut got = Vec::new();
        ours.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 200_000);
        assert!(matches!(
            client.open(Headers::default()).await,
            Err(StreamError::Closed | StreamError::Timeout)
        ));
    }

    #[tokio::test]
    async fn a_lost_connection_is_an_error_on_every_stream() {
        let tasks = Tasks::new();
        let (a, b) = tokio::io::duplex(1024);
        let mut server = Session::server(b, &tasks);
        let mut wire = BytesMut::new();
        let mut encoder = Encoder::new();
        let syn = |stream| Frame::SynStream {
            stream,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers: Headers::default(),
        };
        encoder.encode(&syn(1), &mut wire);
        encoder.encode(
            &Frame::Data {
                stream: 1,
                fin: false,
                bytes: "half".into(),
            },
            &mut wire,
        );
        let mut a = a;
        a.write_all(&wire).await.unwrap();
        let mut stream = server.accept().await.unwrap();
        drop(a);
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(server.accept().await.is_none());
        server.ended().cancelled().await;
        assert!(stream.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn odd_peers_get_resets_pings_are_answered_and_rubbish_ends_it() {
        let tasks = Tasks::new();
        let (mut peer, b) = tokio::io::duplex(64 * 1024);
        let mut server = Session::server(b, &tasks);
        let (mut encoder, mut wire) = (Encoder::new(), BytesMut::new());
        let syn = |stream| Frame::SynStream {
            stream,
            associated: 0,
            priority: 0,
            fin: true,
            unidirectional: false,
            headers: Headers::default(),
        };
        for frame in [
            syn(3),
            syn(1),
            syn(4),
            Frame::Ping(2),
            Frame::Ping(5),
            Frame::Data {
                stream: 77,
                fin: true,
                bytes: "nowhere".into(),
            },
            Frame::WindowUpdate { stream: 99, delta: 1 },
            Frame::Rst { stream: 55, status: 1 },
        ] {
            encoder.encode(&frame, &mut wire);
        }
        wire.extend_from_slice(b"\x80\x09rubbish");
        peer.write_all(&wire).await.unwrap();
        let mut stream = server.accept().await.unwrap();
        assert_eq!(stream.id(), 3);
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        let (mut decoder, mut buffer, mut got) = (Decoder::new(), BytesMut::new(), Vec::new());
        while let Some(frame) = next_frame(&mut peer, &mut decoder, &mut buffer).await {
            got.push(frame);
        }
        let rst = |stream| Frame::Rst {
            stream,
            status: reset::PROTOCOL_ERROR,
        };
        assert!(
            matches!(&got[..], [Frame::Settings(_), Frame::SynReply { stream: 3, .. }, a, b, Frame::Ping(5), Frame::Data { stream: 3, fin: true, .. }, Frame::GoAway { last_stream: 3, .. }] if *a == rst(1) && *b == rst(4)),
            "{got:?}"
        );
    }

    /// Whatever a peer sends, the session ends by itself and its task does not panic.
    #[tokio::test]
    async fn random_peers_are_survived() {
        let tasks = Tasks::new();
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for round in 0..200 {
            let (mut peer, b) = tokio::io::duplex(256 * 1024);
            let mut server = Session::server(b, &tasks);
            let (mut encoder, mut wire) = (Encoder::new(), BytesMut::new());
            for _ in 0..random() % 40 {
                let stream = u32::try_from(random() % 9).unwrap_or(1).max(1);
                let fin = random() % 4 == 0;
                let frame = match random() % 9 {
                    0..=2 => Frame::SynStream {
                        stream,
                        associated: 0,
                        priority: 0,
                        fin,
                        unidirectional: random() % 5 == 0,
                        headers: Headers::new(&[("streamType", "data")]),
                    },
                    3 | 4 => Frame::Data {
                        stream,
                        fin,
                        bytes: vec![7; usize::try_from(random() % 5000).unwrap_or(0)].into(),
                    },
                    5 => Frame::Rst { stream, status: 5 },
                    6 => Frame::WindowUpdate {
                        stream,
                        delta: u32::MAX >> 1,
                    },
                    7 => Frame::Settings(vec![(setting::INITIAL_WINDOW_SIZE, stream)]),
                    _ => Frame::SynReply {
                        stream,
                        fin,
                        headers: Headers::default(),
                    },
                };
                encoder.encode(&frame, &mut wire);
            }
            if round % 2 == 0 && !wire.is_empty() {
                let at = usize::try_from(random()).unwrap_or(0) % wire.len();
                wire[at] = random().to_le_bytes()[0];
            }
            peer.write_all(&wire).await.unwrap();
            peer.shutdown().await.unwrap();
            let serving = async {
                while let Some(stream) = server.accept().await {
                    drop(stream);
                }
            };
            tokio::time::timeout(Duration::from_secs(10), serving)
                .await
                .expect("the session hangs");
        }
        assert_eq!(tasks.shutdown(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test]
    async fn a_window_is_kept_towards_peers_that_announce_one() {
        let tasks = Tasks::new();
        let (mut peer, b) = tokio::io::duplex(1 << 20);
        let mut server = Session::server(b, &tasks);
        let (mut encoder, mut wire) = (Encoder::new(), BytesMut::new());
        encoder.encode(&Frame::Settings(vec![(setting::INITIAL_WINDOW_SIZE, 1000)]), &mut wire);
        encoder.encode(
            &Frame::SynStream {
                stream: 1,
                associated: 0,
                priority: 0,
                fin: false,
                unidirectional: false,
                headers: Headers::default(),
            },
            &mut wire,
        );
        peer.write_all(&wire).await.unwrap();
        let mut stream = server.accept().await.unwrap();
        let writing = tokio::spawn(async move {
            stream.write_all(&[7; 1500]).await.unwrap();
            stream
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!writing.is_finished());
        let mut more = BytesMut::new();
        encoder.encode(&Frame::WindowUpdate { stream: 1, delta: 500 }, &mut more);
        peer.write_all(&more).await.unwrap();
        let stream = tokio::time::timeout(Duration::from_secs(5), writing)
            .await
            .unwrap()
            .unwrap();
        drop((stream, server));
        let (mut decoder, mut buffer, mut data) = (Decoder::new(), BytesMut::new(), 0);
        while let Some(frame) = next_frame(&mut peer, &mut decoder, &mut buffer).await {
            if let Frame::Data { bytes, .. } = frame {
                data += bytes.len();
            }
        }
        assert_eq!(data, 1500);
    }
}
