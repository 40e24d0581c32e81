//! Calls to etcd: endpoints, TLS, failover, deadlines, and what a failure means.
//!
//! One lazily connected HTTP/2 channel per endpoint; all calls go to the current one. A call that could not be sent is
//! tried at the next endpoint. A read is repeated until its deadline. A write whose answer did not come is never
//! repeated: it may have been committed, and only the caller can find out.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, ConnectError, Status, Streaming};
use tonic_prost::ProstCodec;

use super::failed;
use crate::types::Error;

/// As upstream's client: how often an idle connection is checked, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// One try of a read; an endpoint that takes longer is left for the next.
const READ_TRY: Duration = Duration::from_secs(10);
/// All tries of a read, and the one try of a write.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a write that cannot be sent waits for etcd to come back.
const UNSENT: Duration = Duration::from_secs(15);
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// `https://host:2379` (or `http://`), at least one.
    pub servers: Vec<String>,
    /// The authority that etcd's certificates are checked against.
    pub ca_file: Option<PathBuf>,
    /// The certificate and the key that show etcd who we are.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// What stands for `/registry` in etcd.
    pub prefix: String,
}

/// Whether a call may be made again when its answer did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    Safely,
    Never,
}

/// How a call ended that has no reply.
#[derive(Debug)]
pub(super) enum Failure {
    /// It never left.
    Unsent(String),
    /// It left, and what became of it is unknown.
    Unanswered(String),
    /// etcd said no and did nothing.
    Refused(Status),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unsent(reason) => Error::Unavailable { reason },
            Failure::Unanswered(reason) => Error::Uncertain { reason },
            Failure::Refused(status) => Error::Rejected {
                reason: status.message().to_owned(),
            },
        }
    }
}

pub(super) struct Client {
    endpoints: Vec<(String, Channel)>,
    current: AtomicUsize,
    /// Changes with the current endpoint: streams move too.
    moved: watch::Sender<usize>,
    /// Whether the last call failed; only changes are logged.
    failing: AtomicBool,
}

impl Client {
    pub fn new(options: &Options) -> Result<Self, Error> {
        if options.servers.is_empty() {
            return Err(failed("connect to etcd")("no server is given; use --etcd-servers"));
        }
        let tls = tls(options)?;
        let mut endpoints = Vec::new();
        for server in &options.servers {
            let bad = |why: String| failed("connect to etcd")(format!("--etcd-servers {server}: {why}"));
            let mut endpoint = Endpoint::from_shared(server.clone())
                .map_err(|error| bad(error.to_string()))?
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_ANSWER)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20);
            match (endpoint.uri().scheme_str(), &tls) {
                (Some("http"), _) => {}
                (Some("https"), Some(tls)) => {
                    endpoint = endpoint.tls_config(tls.clone()).map_err(|error| bad(chain(&error)))?;
                }
                (Some("https"), None) => {
                    return Err(bad(
                        "give --etcd-cafile, the authority its certificate is checked against".into(),
                    ));
                }
                _ => return Err(bad("give a URL such as https://192.0.2.10:2379".into())),
            }
            endpoints.push((server.clone(), endpoint.connect_lazy()));
        }
        Ok(Client {
            // Several servers spread over the members.
            current: AtomicUsize::new(rand::random_range(0..endpoints.len())),
            endpoints,
            moved: watch::Sender::new(0),
            failing: AtomicBool::new(false),
        })
    }

    fn pick(&self) -> (usize, Grpc<Channel>) {
        let index = self.current.load(Ordering::Acquire) % self.endpoints.len();
        let grpc = Grpc::new(self.endpoints[index].1.clone()).max_decoding_message_size(i32::MAX as usize);
        (index, grpc)
    }

    /// Leaves the endpoint `index` for the next one, unless somebody else just did.
    pub fn leave(&self, index: usize, why: &str) {
        let server = &self.endpoints[index].0;
        if !self.failing.swap(true, Ordering::AcqRel) {
            tracing::warn!(server, why, "etcd does not answer; trying on");
        }
        let next = (index + 1) % self.endpoints.len();
        if next != index
            && self
                .current
                .compare_exchange(index, next, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            self.moved.send_replace(next);
        }
    }

    fn answered(&self, index: usize) {
        if self.failing.swap(false, Ordering::AcqRel) {
            tracing::info!(server = self.endpoints[index].0, "etcd answers again");
        }
    }

    /// One unary call, with tries as `repeat` allows.
    pub async fn call<Q, R>(&self, path: &'static str, request: Q, repeat: Repeat) -> Result<R, Failure>
    where
        Q: prost::Message + Clone + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let begun = Instant::now();
        let mut pause = PAUSE.0;
        loop {
            let (index, mut grpc) = self.pick();
            let attempt = async {
                grpc.ready().await.map_err(|error| Failure::Unsent(chain(&error)))?;
                let codec = ProstCodec::<Q, R>::default();
                grpc.unary(
                    tonic::Request::new(request.clone()),
                    PathAndQuery::from_static(path),
                    codec,
                )
                .await
                .map_err(judge)
            };
            let bound = if repeat == Repeat::Safely { READ_TRY } else { DEADLINE };
            let failure = match timeout(bound, attempt).await {
                Ok(Ok(reply)) => {
                    self.answered(index);
                    return Ok(reply.into_inner());
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Unanswered("etcdserver: request timed out".into()),
            };
            let (again, why) = match &failure {
                Failure::Unsent(why) => {
                    self.leave(index, why);
                    let bound = if repeat == Repeat::Safely { DEADLINE } else { UNSENT };
                    (begun.elapsed() + pause < bound, why)
                }
                Failure::Unanswered(why) => {
                    self.leave(index, why);
                    (repeat == Repeat::Safely && begun.elapsed() + pause < DEADLINE, why)
                }
                // etcd's queue is full; nothing was proposed.
                Failure::Refused(status) if status.message().contains("too many requests") => {
                    (begun.elapsed() + pause < UNSENT, &"too many requests".to_owned())
                }
                Failure::Refused(_) => return Err(failure),
            };
            if !again {
                return Err(failure);
            }
            tracing::debug!(path, why, "a call to etcd is made again");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Opens a stream of replies to one request; the request's side stays open. Says at which endpoint.
    pub async fn stream<Q, R>(&self, path: &'static str, request: Q) -> (usize, Result<Streaming<R>, Failure>)
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        use futures::StreamExt;
        let (index, mut grpc) = self.pick();
        let open = async {
            grpc.ready().await.map_err(|error| Failure::Unsent(chain(&error)))?;
            let requests = futures::stream::once(std::future::ready(request)).chain(futures::stream::pending());
            let mut requests = tonic::Request::new(requests);
            // A member that lost its leader must end the stream instead of leaving us behind.
            requests
                .metadata_mut()
                .insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
            let codec = ProstCodec::<Q, R>::default();
            grpc.streaming(requests, PathAndQuery::from_static(path), codec)
                .await
                .map_err(judge)
        };
        let opened = match timeout(READ_TRY, open).await {
            Ok(Ok(reply)) => {
                self.answered(index);
                Ok(reply.into_inner())
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::Unanswered("etcdserver: request timed out".into())),
        };
        (index, opened)
    }

    /// Resolves when calls go to another endpoint than they did.
    pub fn follow(&self) -> watch::Receiver<usize> {
        self.moved.subscribe()
    }
}

/// What a failed call's status means.
pub(super) fn judge(status: Status) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(&status);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return Failure::Unsent(chain(error));
        }
        cause = error.source();
    }
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Failure::Refused(status),
        _ => Failure::Unanswered(match status.message() {
            "" => chain(&status),
            message => message.to_owned(),
        }),
    }
}

/// An error with its causes: the outermost alone seldom says anything.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

fn tls(options: &Options) -> Result<Option<ClientTlsConfig>, Error> {
    let read = |flag: &'static str, path: &Path| {
        std::fs::read(path).map_err(|error| failed("connect to etcd")(format!("{flag} {}: {error}", path.display())))
    };
    let Some(ca) = &options.ca_file else {
        if options.cert_file.is_some() || options.key_file.is_some() {
            return Err(failed("connect to etcd")(
                "--etcd-certfile and --etcd-keyfile need --etcd-cafile",
            ));
        }
        return Ok(None);
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--etcd-cafile", ca)?));
    match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => {
            let identity = Identity::from_pem(read("--etcd-certfile", cert)?, read("--etcd-keyfile", key)?);
            tls = tls.identity(identity);
        }
        (None, None) => {}
        _ => {
            return Err(failed("connect to etcd")(
                "--etcd-certfile and --etcd-keyfile come together",
            ));
        }
    }
    Ok(Some(tls))
}
