//! The API server: one generic engine over a table of resources.
//!
//! A request goes connection → [`front`] (TLS, authentication) → [`ControlPlane::handle`] (request info, flow
//! control, authorization, dispatch) → [`registry`] (decode, default, admit, validate, write) → store →
//! [`watch_cache`] → reply from the entry's bytes. In-process clients enter at `handle` through
//! [`ControlPlane::connect`] and skip nothing but the network.
//!
//! The engine knows rows of the table (`sampan-kinds`), never kinds. What is particular to a kind lives in its
//! strategy, in a small admission plugin, or in the short list of special subresources (binding, eviction,
//! token, exec and friends, proxy).

mod admin;
pub mod admission;
mod aggregation;
mod aggregator;
mod allocate;
mod answers;
pub mod audit;
pub mod authentication;
pub mod authorization;
pub mod body;
mod bootstrap;
mod certificates;
mod claims;
mod compress;
mod connect;
mod control_plane;
mod custom;
mod discovery;
mod dispatch;
mod flow;
pub mod front;
mod metrics;
mod openapi;
pub mod outbound;
mod peers;
mod pretty;
pub mod registry;
mod reload;
pub mod request;
pub mod rows;
mod special;
mod streaming;
pub(crate) mod sync;
pub mod testing;
mod usage;
pub mod watch_cache;

pub use admin::{AdminError, Certificates};
pub use body::Body;
pub use certificates::renewals;
pub use connect::InProcess;
pub use control_plane::{Config, ControlPlane, DEFAULT_SERVICE_RANGE, StartError, VERSION};
pub use front::serve;
pub use peers::run as follow_peers;
pub use sampan_encryption::Source as EncryptionSource;

use sampan_api::status::Status;

/// A refusal on its way to the client. Boxed: it is the rare and large half of every result.
pub type Refusal = Box<Status>;

/// Boxes a status.
pub(crate) fn refuse(status: Status) -> Refusal {
    Box::new(status)
}
