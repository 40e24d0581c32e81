//! Byte streams over one HTTP connection: `kubectl exec`, `attach`, `cp` and `port-forward`.
//!
//! Clients speak two transports, SPDY/3.1 ([`spdy`]) and WebSocket ([`websocket`]), in several versions, and newer
//! ones put SPDY inside WebSocket. Here the server's side of all of them becomes the same few values:
//! [`RemoteCommand`] (a command's standard streams) and [`PortForward`] (connections to ports). Nothing above
//! this crate knows which transport a client chose.
//!
//! An API server needs none of that: [`proxy_upgrade`] passes an upgraded connection on to a node byte by byte.
//! For nodes that speak only SPDY, [`translate`] does what upstream's API server does for its newer clients.
//!
//! Invariants:
//! - memory per connection is bounded in both directions: a reader that does not read stops the sender, through
//!   the transport to the peer;
//! - what was written before the end arrives before the end: streams finish, then the status, then the connection;
//! - input of any shape ends in an error for that connection only.

// Tests spawn what they like: they end with their runtime.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod http_upgrade;
mod outbox;
mod pipe;
mod port_forward;
mod proxy;
mod remote_command;
pub mod spdy;
pub mod translate;
pub mod websocket;

pub use http_upgrade::{is_upgrade, is_websocket};
pub use port_forward::{Connection, PortForward, accept_port_forward};
pub use proxy::{Held, ProxyBody, ProxyError, proxy_upgrade, proxy_upgrade_with};
pub use remote_command::{
    ExitStatus, Options, RemoteCommand, Resizes, StatusWriter, TerminalSize, accept_remote_command,
};

use std::pin::Pin;

use bytes::Bytes;
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes from the client.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
/// Bytes to the client. Shutting it down, or dropping it, ends the stream.
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;
/// The answer to an upgrade request: 101, or a refusal in plain text.
pub type UpgradeResponse = http::Response<Full<Bytes>>;
/// A refusal to be sent instead of an upgrade.
pub type Refusal = Box<UpgradeResponse>;

/// Why an upgraded connection did not become streams.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the connection could not be upgraded: {0}")]
    Upgrade(#[from] hyper::Error),
    #[error("the client did not create its streams in time")]
    Timeout,
    #[error("the client went away")]
    Closed,
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
