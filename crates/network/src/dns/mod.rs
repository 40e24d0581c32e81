//! The cluster's DNS server, on UDP and TCP.
//!
//! Answers come from informers, in memory; what is not the cluster's is forwarded byte for byte. Everything runs in
//! one task: answers of our own need no waiting, and what waits (forwarding, connections) is bounded.
//!
//! Written on `hickory-proto` alone: a forwarder wants the client's bytes as they came, and the rest of a server is
//! two loops.

mod forward;
mod zone;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sampan_client::{Informer, Informers};
use sampan_tasks::Drain;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::host::Host;
use crate::proxy::{BY_SERVICE, index_slices};
use forward::Forwarder;
use zone::{Answer, Outcome, Source, Zone};

/// Questions being forwarded at once, and connections open at once.
const MOST_FORWARDED: usize = 512;
const MOST_CONNECTIONS: usize = 256;
/// A silent connection is closed.
const IDLE: Duration = Duration::from_secs(10);
/// The most a datagram carries, whatever the client offers: larger ones are lost in fragments.
const LARGEST_DATAGRAM: u16 = 1232;

const BY_IP: &str = "network/ip";

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The cluster's domain: `cluster.local`.
    pub domain: String,
    /// Where to listen, on UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Addresses by which this server is known besides, such as the DNS Service's: never forwarded to.
    pub own_addresses: Vec<IpAddr>,
    /// Where the machine's resolvers are written.
    pub resolv_conf: PathBuf,
    /// Resolvers to use instead.
    pub resolvers: Option<Vec<SocketAddr>>,
    pub host: Host,
}

impl DnsConfig {
    pub fn new(domain: impl Into<String>, listen: Vec<SocketAddr>) -> Self {
        DnsConfig {
            domain: domain.into(),
            listen,
            own_addresses: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            resolvers: None,
            host: Host::This,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("{0:?} is not a domain name; give the cluster a domain such as cluster.local")]
    Domain(String),
    #[error("cluster DNS cannot listen on {address}: {source}; stop what uses that port, or choose another address")]
    Listen { address: SocketAddr, source: io::Error },
}

/// The facts of the zone, from informers.
struct Facts {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

impl Source for Facts {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &format!("{namespace}/{name}"))
    }
    fn has_services(&self, namespace: &str) -> bool {
        !self.services.list_namespace(namespace).is_empty()
    }
    fn services_with_ip(&self, ip: Ipv4Addr) -> Vec<Arc<Service>> {
        self.services.by_index(BY_IP, &ip.to_string())
    }
    fn slices_with_ip(&self, ip: Ipv4Addr) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_IP, &ip.to_string())
    }
}

/// The server, bound and ready to run.
pub struct Dns {
    sockets: Vec<(UdpSocket, TcpListener)>,
    server: Server<Facts>,
    facts_synced: (Informer<Service>, Informer<EndpointSlice>),
}

impl Dns {
    /// Binds every address; the error says which could not be had. Needs tokio's context.
    pub fn bind(config: &DnsConfig, informers: &Informers) -> Result<Self, DnsError> {
        let zone = Zone::new(&config.domain).ok_or_else(|| DnsError::Domain(config.domain.clone()))?;
        let mut sockets = Vec::new();
        for address in &config.listen {
            let failed = |source| DnsError::Listen {
                address: *address,
                source,
            };
            let bound = config
                .host
                .run(|| bind(*address))
                .and_then(|bound| bound)
                .map_err(failed)?;
            let sockets_of = || Ok((UdpSocket::from_std(bound.0)?, TcpListener::from_std(bound.1)?));
            sockets.push(sockets_of().map_err(failed)?);
        }
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        index_slices(&slices);
        services.add_index(BY_IP, |service| {
            crate::proxy::plan::cluster_ip(service)
                .map(|ip| ip.to_string())
                .into_iter()
                .collect()
        });
        slices.add_index(BY_IP, |slice| {
            slice
                .endpoints
                .iter()
                .flatten()
                .filter_map(|endpoint| endpoint.addresses.first().cloned())
                .collect()
        });
        let own = config
            .listen
            .iter()
            .map(SocketAddr::ip)
            .chain(config.own_addresses.iter().copied())
            .collect();
        let forwarder = match &config.resolvers {
            Some(servers) => Forwarder::to(servers.clone()),
            None => Forwarder::new(&config.resolv_conf, own),
        };
        let facts_synced = (services.clone(), slices.clone());
        let server = Server {
            zone,
            source: Facts { services, slices },
            forwarder,
        };
        Ok(Dns {
            sockets,
            server,
            facts_synced,
        })
    }

    /// Answers until `drain`. Questions about the cluster wait for the informers; none is answered from half a cache.
    pub async fn run(self, drain: Drain) {
        let synced = async {
            self.facts_synced.0.synced().await;
            self.facts_synced.1.synced().await;
        };
        if drain.until(synced).await.is_none() {
            return;
        }
        let server = &self.server;
        let all = self.sockets.into_iter().map(|(datagrams, streams)| async move {
            tokio::join!(server.serve_datagrams(&datagrams), server.serve_streams(&streams));
        });
        drain.until(futures::future::join_all(all)).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let both = || {
        let datagrams = std::net::UdpSocket::bind(address)?;
        let streams = std::net::TcpListener::bind(datagrams.local_addr()?)?;
        Ok((datagrams, streams))
    };
    // "Any port" must be free for both protocols, which the kernel does not look for.
    let mut bound: io::Result<_> = both();
    for _ in 0..8 {
        if address.port() != 0 || bound.is_ok() {
            break;
        }
        bound = both();
    }
    let (datagrams, streams) = bound?;
    datagrams.set_nonblocking(true)?;
    streams.set_nonblocking(true)?;
    Ok((datagrams, streams))
}

struct Server<S> {
    zone: Zone,
    source: S,
    forwarder: Forwarder,
}

/// What to do with a question.
enum Reply {
    Now(Message),
    /// The client's bytes go to the machine's resolvers; on failure this is the answer.
    Forward(Message),
    /// The records of an alias are to be found elsewhere, and added.
    Complete {
        message: Message,
        alias: Name,
        kind: RecordType,
    },
}

type Waiting<'a, T> = FuturesUnordered<Pin<Box<dyn Future<Output = T> + Send + 'a>>>;

impl<S: Source + Send + Sync> Server<S> {
    async fn serve_datagrams(&self, socket: &UdpSocket) {
        let mut buffer = vec![0; 65_535];
        let mut waiting: Waiting<'_, (SocketAddr, Vec<u8>)> = FuturesUnordered::new();
        loop {
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    let Ok((length, from)) = received else {
                        // An ICMP error of an earlier answer; the socket is fine.
                        continue;
                    };
                    let question = buffer.get(..length).unwrap_or_default();
                    let (reply, limit) = self.reply(question);
                    match reply {
                        Some(Reply::Now(message)) => send(socket, from, &encode(message, limit)).await,
                        Some(later) if waiting.len() < MOST_FORWARDED => {
                            let question = question.to_vec();
                            waiting.push(Box::pin(async move { (from, self.finish(later, &question, limit, false).await) }));
                        }
                        // Too many wait already: silence, and the client asks again.
                        Some(_) | None => {}
                    }
                }
                Some((from, answer)) = waiting.next(), if !waiting.is_empty() => send(socket, from, &answer).await,
            }
        }
    }

    async fn serve_streams(&self, listener: &TcpListener) {
        let mut open: Waiting<'_, ()> = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if open.len() < MOST_CONNECTIONS => match accepted {
                    Ok((stream, _)) => open.push(Box::pin(self.serve_stream(stream))),
                    Err(error) => {
                        tracing::warn!(%error, "cluster DNS cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(()) = open.next(), if !open.is_empty() => {}
            }
        }
    }

    async fn serve_stream(&self, mut stream: TcpStream) {
        while let Ok(Ok(Some(question))) = timeout(IDLE, forward::read_framed(&mut stream)).await {
            let answer = match self.reply(&question).0 {
                Some(Reply::Now(message)) => encode(message, u16::MAX),
                Some(later) => self.finish(later, &question, u16::MAX, true).await,
                None => return,
            };
            if forward::write_framed(&mut stream, &answer).await.is_err() {
                return;
            }
        }
    }

    /// The reply to a message, and how long it may be. `None` for what is no question at all.
    fn reply(&self, bytes: &[u8]) -> (Option<Reply>, u16) {
        let question = match Message::from_vec(bytes) {
            Ok(question) if question.metadata.message_type == MessageType::Query => question,
            Ok(_) => return (None, 512),
            Err(_) => return (malformed(bytes).map(Reply::Now), 512),
        };
        let limit = question
            .edns
            .as_ref()
            .map_or(512, |edns| edns.max_payload().clamp(512, LARGEST_DATAGRAM));
        let mut message = Message::response(question.metadata.id, question.metadata.op_code);
        message.metadata.recursion_desired = question.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.queries = question.queries.clone();
        message.edns = question.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_DATAGRAM);
            edns
        });
        let ([query], OpCode::Query) = (question.queries.as_slice(), question.metadata.op_code) else {
            let other = question.metadata.op_code != OpCode::Query;
            message.metadata.response_code = if other {
                ResponseCode::NotImp
            } else {
                ResponseCode::FormErr
            };
            return (Some(Reply::Now(message)), limit);
        };
        if query.query_class() != DNSClass::IN {
            message.metadata.response_code = ResponseCode::Refused;
            return (Some(Reply::Now(message)), limit);
        }
        (Some(self.answer(query, message)), limit)
    }

    fn answer(&self, query: &Query, mut message: Message) -> Reply {
        let answer = self.zone.answer(&self.source, query.name(), query.query_type());
        if answer.outcome == Outcome::NotOurs {
            message.metadata.response_code = ResponseCode::ServFail;
            return Reply::Forward(message);
        }
        message.metadata.authoritative = true;
        if answer.outcome == Outcome::NoSuchName {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        let Answer {
            mut answers,
            additionals,
            authority,
            alias,
            ..
        } = answer;
        // Clients tend to use the first address: let another be first each time.
        if answers.len() > 1 {
            let by = usize::from(message.metadata.id) % answers.len();
            answers.rotate_left(by);
        }
        message.answers = answers;
        message.additionals = additionals;
        message.authorities = authority.into_iter().collect();
        match alias {
            Some(alias) => Reply::Complete {
                message,
                alias,
                kind: query.query_type(),
            },
            None => Reply::Now(message),
        }
    }

    async fn finish(&self, reply: Reply, question: &[u8], limit: u16, stream: bool) -> Vec<u8> {
        match reply {
            Reply::Now(message) => encode(message, limit),
            Reply::Forward(failure) => match self.forwarder.ask(question, stream).await {
                Some(answer) => answer,
                None => encode(failure, limit),
            },
            Reply::Complete {
                mut message,
                alias,
                kind,
            } => {
                let own = self.zone.answer(&self.source, &alias, kind);
                if own.outcome == Outcome::NotOurs {
                    message
                        .answers
                        .extend(self.resolve(message.metadata.id, alias, kind).await);
                } else {
                    message.answers.extend(own.answers);
                }
                encode(message, limit)
            }
        }
    }

    /// Records of a name elsewhere; none when nobody knows.
    async fn resolve(&self, id: u16, name: Name, kind: RecordType) -> Vec<hickory_proto::rr::Record> {
        let mut question = Message::new(id, MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name, kind));
        let Ok(bytes) = question.to_vec() else {
            return Vec::new();
        };
        let answer = self.forwarder.ask(&bytes, false).await;
        answer
            .and_then(|bytes| Message::from_vec(&bytes).ok())
            .map(|message| message.answers)
            .unwrap_or_default()
    }
}

/// The answer to a message that cannot be read, if at least its number can.
fn malformed(bytes: &[u8]) -> Option<Message> {
    let header = bytes.first_chunk::<12>()?;
    let is_query = header[2] & 0x80 == 0;
    is_query.then(|| {
        Message::error_msg(
            u16::from_be_bytes([header[0], header[1]]),
            OpCode::Query,
            ResponseCode::FormErr,
        )
    })
}

/// The message's bytes; when they are more than `limit`, the same without records and marked as cut short.
fn encode(message: Message, limit: u16) -> Vec<u8> {
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= usize::from(limit) => bytes,
        Ok(_) => message.truncate().to_vec().unwrap_or_default(),
        Err(error) => {
            tracing::error!(%error, "cannot encode a DNS answer");
            let failure = Message::error_msg(message.metadata.id, message.metadata.op_code, ResponseCode::ServFail);
            failure.to_vec().unwrap_or_default()
        }
    }
}

async fn send(socket: &UdpSocket, to: SocketAddr, bytes: &[u8]) {
    if let Err(error) = socket.send_to(bytes, to).await {
        tracing::debug!(%to, %error, "DNS answer was not sent");
    }
}

#[cfg(test)]
mod tests;
