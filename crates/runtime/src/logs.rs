//! Container logs as files: writing a line's head, and reading with follow, tail and since.
//!
//! A line is `2026-11-22T17:00:00.000000000Z stdout F text`; `P` instead of `F` means that the line
//! goes on in the next record. Following waits on inotify, not on a clock, and goes on in the new file
//! when the log was rotated. Lines that are not in this form are passed over.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};

use crate::sys;

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// As it stands in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Now, as it stands in the log: always nine digits, so that records line up.
pub fn stamp() -> String {
    format!("{:.9}", Timestamp::now())
}

/// What to read of a log.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Wait for more until the container has ended.
    pub follow: bool,
    /// Only so many records from the end.
    pub tail: Option<u64>,
    /// Only what was written at this time or later.
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// Only this stream.
    pub stream: Option<Stream>,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub time: &'a str,
    pub stream: Stream,
    /// Whether the line goes on in the next record.
    pub partial: bool,
    pub text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads a record without its line end.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |&b| b == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let partial = match parts.next()?.split(|&b| b == b':').next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self {
            time,
            stream,
            partial,
            text: parts.next().unwrap_or_default(),
        })
    }
}

/// What is being written out.
struct Output<'a, W> {
    out: &'a mut W,
    options: &'a LogOptions,
    left: u64,
    in_line: bool,
}

impl<W: AsyncWrite + Unpin> Output<'_, W> {
    /// Writes a record as wanted; false when the limit is reached.
    async fn record(&mut self, line: &[u8]) -> io::Result<bool> {
        let Some(record) = Record::parse(line) else {
            return Ok(true);
        };
        if self.options.stream.is_some_and(|wanted| wanted != record.stream) {
            return Ok(true);
        }
        if let Some(since) = self.options.since
            && record.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return Ok(true);
        }
        let mut bytes = Vec::with_capacity(record.text.len() + 40);
        if self.options.timestamps && !self.in_line {
            bytes.extend_from_slice(record.time.as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(record.text);
        if !record.partial {
            bytes.push(b'\n');
        }
        self.in_line = record.partial;
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        bytes.truncate(room);
        self.left -= bytes.len() as u64;
        self.out.write_all(&bytes).await?;
        Ok(self.left > 0)
    }
}

/// Where the last `count` records begin.
async fn tail_offset(file: &mut File, count: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let size = file.metadata().await?.len();
    if count == 0 {
        return Ok(size);
    }
    let (mut end, mut found) = (size, 0);
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start)).await?;
        block.resize(usize::try_from(end - start).unwrap_or(0), 0);
        file.read_exact(&mut block).await?;
        for (index, &byte) in block.iter().enumerate().rev() {
            let position = start + index as u64;
            // The end of the last record does not begin another one.
            if byte == b'\n' && position + 1 < size {
                found += 1;
                if found == count {
                    return Ok(position + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// A log is a plain file: what took its place (a link, a pipe) is not read, for this process may read more than whoever
/// put it there.
async fn plain(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = options.read(true).custom_flags(flags).open(path).await?;
    match file.metadata().await?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other(format!("{} is no plain file", path.display()))),
    }
}

/// Copies the log at `path` to `out` as `options` want it. With `follow`, until `ended` resolves (and
/// what was written before is read) or `out` fails.
pub async fn read<W: AsyncWrite + Unpin>(
    path: &Path,
    options: &LogOptions,
    ended: impl Future<Output = ()>,
    out: &mut W,
) -> io::Result<()> {
    // The watch begins before the first read: nothing written in between is missed.
    let watch = if options.follow {
        let dir = path.parent().unwrap_or(Path::new("/"));
        Some(sys::watched(sys::watch_directory(dir)?)?)
    } else {
        None
    };
    let mut file = plain(path).await?;
    if let Some(count) = options.tail {
        let offset = tail_offset(&mut file, count).await?;
        file.seek(SeekFrom::Start(offset)).await?;
    }
    let mut output = Output {
        out,
        options,
        left: options.limit_bytes.unwrap_or(u64::MAX),
        in_line: false,
    };
    let mut ended = std::pin::pin!(ended);
    let mut over = false;
    let mut pending = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer).await?;
        if count > 0 {
            pending.extend_from_slice(buffer.get(..count).unwrap_or_default());
            let mut done = 0;
            while let Some(length) = memchr(pending.get(done..).unwrap_or_default()) {
                let line = pending.get(done..done + length).unwrap_or_default();
                if !output.record(line).await? {
                    return output.out.flush().await;
                }
                done += length + 1;
            }
            pending.drain(..done);
            continue;
        }
        output.out.flush().await?;
        let Some(watch) = &watch else { break };
        if rotated(&file, path).await {
            file = plain(path).await?;
            pending.clear();
            continue;
        }
        if over {
            break;
        }
        tokio::select! {
            () = &mut ended => over = true,
            ready = watch.readable() => {
                let mut ready = ready?;
                drain(watch);
                ready.clear_ready();
            }
        }
    }
    if !pending.is_empty() {
        output.record(&pending).await?;
    }
    output.out.flush().await
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&b| b == b'\n')
}

/// Whether another file has taken the path.
async fn rotated(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata().await, tokio::fs::metadata(path).await) else {
        return false;
    };
    open.ino() != there.ino()
}

fn drain(watch: &AsyncFd<std::os::fd::OwnedFd>) {
    let mut buffer = [0; 4096];
    while matches!(nix::unistd::read(watch.get_ref(), &mut buffer), Ok(count) if count > 0) {}
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use sampan_tasks::{OnExit, Tasks};

    fn line(second: u8, rest: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z {rest}\n")
    }

    fn log() -> String {
        [
            line(1, "stdout F one"),
            line(2, "stderr F two"),
            line(3, "stdout P three-"),
            line(4, "stdout F four"),
            "broken\n".into(),
            line(5, "stdout F "),
        ]
        .concat()
    }

    async fn get(options: LogOptions) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(log().as_bytes()).unwrap();
        let mut out = Vec::new();
        read(file.path(), &options, std::future::pending(), &mut out)
            .await
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn options_choose_what_is_read() {
        let all = || LogOptions::default();
        assert_eq!(get(all()).await, "one\ntwo\nthree-four\n\n");
        let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
        let table = [
            (LogOptions { tail: Some(0), ..all() }, ""),
            (LogOptions { tail: Some(3), ..all() }, "four\n\n"),
            (
                LogOptions {
                    tail: Some(100),
                    ..all()
                },
                "one\ntwo\nthree-four\n\n",
            ),
            (LogOptions { since, ..all() }, "two\nthree-four\n\n"),
            (
                LogOptions {
                    limit_bytes: Some(6),
                    ..all()
                },
                "one\ntw",
            ),
            (
                LogOptions {
                    limit_bytes: Some(0),
                    ..all()
                },
                "",
            ),
            (
                LogOptions {
                    stream: Some(Stream::Stderr),
                    ..all()
                },
                "two\n",
            ),
            (
                LogOptions {
                    timestamps: true,
                    stream: Some(Stream::Stderr),
                    ..all()
                },
                "2026-01-01T00:00:02.000000000Z two\n",
            ),
        ];
        for (options, expected) in table {
            assert_eq!(get(options.clone()).await, expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line(1, "stdout F one")).unwrap();
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let tasks = Tasks::new();
        let follow = path.clone();
        let done = tasks.spawn("reader", OnExit::Expected, async move {
            let options = LogOptions {
                follow: true,
                ..LogOptions::default()
            };
            let ended = async {
                let _sender_gone_counts_too = ended.await;
            };
            read(&follow, &options, ended, &mut theirs).await.unwrap();
        });
        let mut seen = [0; 4];
        ours.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"one\n");
        std::fs::rename(&path, dir.path().join("0.log.old")).unwrap();
        std::fs::write(&path, line(2, "stdout F two")).unwrap();
        tokio::time::timeout(Duration::from_secs(10), ours.read_exact(&mut seen))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&seen, b"two\n");
        let mut file = std::fs::File::options().append(true).open(&path).unwrap();
        file.write_all(line(3, "stdout F end").as_bytes()).unwrap();
        end.send(()).unwrap();
        let mut rest = String::new();
        ours.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "end\n");
        done.await.unwrap();
    }

    #[test]
    fn stamps_have_nine_digits() {
        let stamp = stamp();
        assert_eq!(stamp.len(), "2026-11-22T17:00:00.000000000Z".len(), "{stamp}");
        assert!(stamp.parse::<Timestamp>().is_ok());
    }
}
