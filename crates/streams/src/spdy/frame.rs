//! Frames, and what can be wrong with one.

use bytes::Bytes;

/// `RST_STREAM` status codes that occur here.
pub mod reset {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const REFUSED_STREAM: u32 = 3;
    pub const CANCEL: u32 = 5;
}

/// `SETTINGS` ids that occur here.
pub mod setting {
    pub const INITIAL_WINDOW_SIZE: u32 = 7;
}

/// Names are lower case; a name occurs once, values of repeated ones are separated by NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    pub fn new(pairs: &[(&str, &str)]) -> Self {
        Headers(
            pairs
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), (*value).to_owned()))
                .collect(),
        )
    }
    /// The first value of the header `name` (lower case); empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        let values = self
            .0
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str());
        values.and_then(|values| values.split('\0').next()).unwrap_or_default()
    }
}

/// One frame; a data frame may come in pieces of which only the last has its `fin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream: u32,
        associated: u32,
        priority: u8,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Rst {
        stream: u32,
        status: u32,
    },
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway {
        last_stream: u32,
        status: u32,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
}

/// Why the bytes are no frames. The connection cannot go on after any of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("protocol version {0} instead of 3")]
    Version(u16),
    #[error("a frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("stream 0 in a frame of type {0}")]
    StreamZero(u16),
    #[error("headers that cannot be decompressed")]
    Compression,
    #[error("headers longer than {0} bytes")]
    HeadersTooLong(usize),
    #[error("malformed headers: {0}")]
    Headers(&'static str),
}
