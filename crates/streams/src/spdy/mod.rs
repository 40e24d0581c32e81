//! SPDY/3.1: many streams over one connection, as far as Kubernetes uses it.
//!
//! [`codec`] turns bytes into frames and back, without I/O; [`session`] runs a connection and gives out [`Stream`]s.
//!
//! Deliberate deviations, all for the sake of the one implementation every Kubernetes client uses (spdystream):
//! it neither keeps send windows nor announces its own, so windows are kept towards peers that announce one and
//! the receiving side never takes an overrun amiss; frames for streams that are gone are ignored.

mod codec;
mod frame;
mod headers;
mod session;
mod stream;

pub use codec::{Decoder, Encoder};
pub use frame::{Frame, FrameError, Headers, reset, setting};
pub use session::Session;
pub use stream::Stream;
