//! What can go wrong on the way out, in the words Go's HTTP client has for it.

use std::io;
use std::net::SocketAddr;

/// Why a call failed. [`Error::during`] puts the request in front, as `url.Error` prints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("service {0:?} not found")]
    NoService(String),
    #[error("no service port {port} found for service {service:?}")]
    NoPort { service: String, port: u16 },
    #[error("no endpoints available for service {0:?}")]
    NoEndpoints(String),
    #[error("dial tcp: lookup {host}: {why}")]
    Lookup { host: String, why: String },
    #[error("dial tcp {address}: {why}")]
    Dial { address: SocketAddr, why: String },
    #[error("{0}")]
    Tls(String),
    #[error("context deadline exceeded")]
    Deadline,
    /// The same, after the answer had begun.
    #[error("context deadline exceeded")]
    DeadlineReading,
    /// The connection ended before an answer did.
    #[error("{0}")]
    Broken(&'static str),
    #[error("{0}")]
    Http(String),
    #[error("the response body is larger than {0} bytes")]
    TooLarge(usize),
    /// The specification itself: a bundle without certificates, an address that is none.
    #[error("{0}")]
    Unusable(String),
}

impl Error {
    /// `Post "https://…": why`
    pub fn during(&self, method: &str, url: &str) -> String {
        format!("{method} {url:?}: {self}")
    }

    pub(super) fn dial(address: SocketAddr, error: &io::Error) -> Self {
        Error::Dial {
            address,
            why: format!("connect: {}", os_words(error)),
        }
    }

    pub(super) fn of_hyper(error: &hyper::Error) -> Self {
        if error.is_incomplete_message() {
            return Error::Broken("EOF");
        }
        if error.is_parse() {
            return Error::Http(format!(
                "net/http: HTTP/1.x transport connection broken: malformed HTTP response: {error}"
            ));
        }
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if let Some(cause) = cause.downcast_ref::<io::Error>() {
                return Error::of_io(cause);
            }
            source = cause.source();
        }
        Error::Http(format!("http: {error}"))
    }

    pub(super) fn of_io(error: &io::Error) -> Self {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return super::tls::refused(inner);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Broken("EOF"),
            io::ErrorKind::ConnectionReset => Error::Broken("read: connection reset by peer"),
            io::ErrorKind::BrokenPipe => Error::Broken("write: broken pipe"),
            _ => Error::Http(os_words(error)),
        }
    }
}

fn os_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        io::ErrorKind::HostUnreachable => "no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "network is unreachable".into(),
        io::ErrorKind::TimedOut => "connection timed out".into(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
    }
}
