//! Questions about the rest of the world, handed to the machine's own resolvers as they came.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(2);

/// The machine's resolvers, read again when their file changes.
#[derive(Debug)]
pub struct Forwarder {
    resolv_conf: PathBuf,
    /// Addresses that are this server: asking them would go in circles.
    own: Vec<IpAddr>,
    servers: Mutex<(Option<SystemTime>, Vec<SocketAddr>)>,
}

/// `nameserver` lines; an IPv6 zone and comments are understood.
fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let keyword = words.next()?;
            let address = words.next()?;
            let ip: IpAddr = address.split('%').next()?.parse().ok()?;
            (keyword == "nameserver").then_some(SocketAddr::new(ip, 53))
        })
        .take(3)
        .collect()
}

impl Forwarder {
    pub fn new(resolv_conf: impl Into<PathBuf>, own: Vec<IpAddr>) -> Self {
        Forwarder {
            resolv_conf: resolv_conf.into(),
            own,
            servers: Mutex::default(),
        }
    }

    /// Fixed servers instead of a file's.
    pub fn to(servers: Vec<SocketAddr>) -> Self {
        Forwarder {
            resolv_conf: PathBuf::new(),
            own: Vec::new(),
            servers: Mutex::new((None, servers)),
        }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut known = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.resolv_conf == Path::new("") {
            return known.1.clone();
        }
        let changed = fs::metadata(&self.resolv_conf).and_then(|meta| meta.modified()).ok();
        if known.0 != changed || changed.is_none() {
            let text = fs::read_to_string(&self.resolv_conf).unwrap_or_default();
            let servers = parse(&text)
                .into_iter()
                .filter(|server| !self.own.contains(&server.ip()))
                .collect();
            *known = (changed, servers);
        }
        known.1.clone()
    }

    /// The answer to a question (a whole message), or `None` when nobody answers in time.
    pub async fn ask(&self, question: &[u8], stream: bool) -> Option<Vec<u8>> {
        let servers = self.servers();
        for _round in 0..2 {
            for server in &servers {
                let asked = async {
                    if stream {
                        ask_stream(*server, question).await
                    } else {
                        ask_datagram(*server, question).await
                    }
                };
                match timeout(PATIENCE, asked).await {
                    Ok(Ok(answer)) => return Some(answer),
                    Ok(Err(error)) => tracing::debug!(%server, %error, "resolver did not answer"),
                    Err(_) => tracing::debug!(%server, "resolver did not answer in time"),
                }
            }
        }
        None
    }
}

async fn ask_datagram(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        // Only the answer to what was asked: the same number, and marked as an answer.
        if answer.len() >= 12
            && answer.get(..2) == question.get(..2)
            && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
        {
            return Ok(answer.to_vec());
        }
    }
}

async fn ask_stream(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, question).await?;
    read_framed(&mut stream)
        .await?
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// One message of a stream: its length in two bytes, then itself. `None` at the end.
pub(super) async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

pub(super) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length =
        u16::try_from(message.len()).map_err(|_| io::Error::other("a DNS message has at most 65,535 bytes"))?;
    let framed = [&length.to_be_bytes()[..], message].concat();
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_circles_avoided() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "# x\nsearch a b\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver 10.244.0.1 # us\nnameserver x\nnameserver\n").unwrap();
        let forwarder = Forwarder::new(&path, vec!["10.244.0.1".parse().unwrap()]);
        let servers: Vec<_> = forwarder
            .servers()
            .iter()
            .map(|server| server.ip().to_string())
            .collect();
        assert_eq!(servers, ["10.0.0.1", "fe80::1"]);
        std::fs::remove_file(&path).unwrap();
        assert!(forwarder.servers().is_empty());
    }
}
