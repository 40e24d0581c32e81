//! How server and shim speak: frames of JSON on a Unix stream socket, descriptors beside them.
//!
//! A frame is its length (four bytes, little-endian) and that many bytes. One connection carries one
//! request and its replies; `Events` and `Exec` stay open for what happens later. Descriptors travel
//! with the first byte of the frame they belong to, and a frame says how many it has.

use serde::{Deserialize, Serialize};

use crate::spec::{ExitRecord, StartRecord};
use crate::types::TerminalSize;

/// Frames longer than this are nonsense.
const MAX_FRAME: usize = 16 << 20;

/// What the server asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Is it there, and did its setup succeed?
    Hello,
    /// What has exited, then what exits.
    Events,
    /// Start the container whose `spec.json` is written.
    Start { id: String },
    /// Send a signal to the container's first process, or with `all` to every one.
    Kill { id: String, signal: i32, all: bool },
    /// Run a process in a container. Descriptors: standard streams as flagged, unless `tty`.
    Exec(Exec),
    /// Connect descriptors (as flagged) to the container's streams.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Size of the container's terminal.
    Resize { id: String, size: TerminalSize },
    /// Close and open the log.
    ReopenLog { id: String },
    /// Sockets of the sandbox's network namespace: TCP over IPv4, and IPv6 where there is such.
    Sockets,
    /// Forget an exited container.
    Forget { id: String },
    /// Kill everything and end.
    Shutdown,
}

/// A process to run in a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    pub id: String,
    pub args: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub size: Option<TerminalSize>,
    /// Kill the process when this connection closes.
    pub bound: bool,
}

/// What the shim says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Reply {
    /// Done. `fds` descriptors come with it.
    Ok { fds: usize },
    /// The shim lives; the process that holds its namespaces.
    Hello { pid: u32 },
    /// The container or process runs.
    Started { start: StartRecord, fds: usize },
    /// A container or exec'ed process has ended.
    Exited { id: String, exit: ExitRecord },
    /// `Events`: all that had happened before has been said.
    Current,
    /// `Attach`: the container's streams have ended.
    Detached,
    /// It did not work.
    Error { message: String, missing: bool },
}

/// A value as a frame.
pub fn encode<T: Serialize>(value: &T) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value).map_err(std::io::Error::other)?;
    let length = u32::try_from(bytes.len() - 4).map_err(std::io::Error::other)?;
    for (to, from) in bytes.iter_mut().zip(length.to_le_bytes()) {
        *to = from;
    }
    Ok(bytes)
}

/// Collects bytes and gives whole frames.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// More bytes have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame, decoded.
    pub fn next<T: serde::de::DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let Some((length, rest)) = self.0.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(std::io::Error::other("a frame is too long"));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let value = serde_json::from_slice(frame).map_err(std::io::Error::other)?;
        self.0.drain(..4 + length);
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut(names in proptest::collection::vec(".{0,20}", 0..5), cut in 1..40_usize) {
            let mut bytes = Vec::new();
            for name in &names {
                bytes.extend(encode(&Request::Start { id: name.clone() }).unwrap());
            }
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                frames.push(part);
                while let Some(Request::Start { id }) = frames.next().unwrap() {
                    seen.push(id);
                }
            }
            prop_assert_eq!(seen, names);
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut frames = Frames::default();
        frames.push(&[0xff; 8]);
        assert!(frames.next::<Request>().is_err());
        let mut frames = Frames::default();
        frames.push(&[2, 0, 0, 0, b'{', b'x']);
        assert!(frames.next::<Request>().is_err());
    }
}
