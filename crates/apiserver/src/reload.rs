//! Configuration files that may change while the server runs.
//!
//! The kernel tells of changes in the directory of a file: files are replaced by renaming more often than they are
//! written over, and a mounted ConfigMap changes by a link beside them. Then the file is read again, and if it is not
//! what it was, taken or refused; a file that is refused leaves things as they are.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use sampan_tasks::{OnExit, Tasks};

use crate::sync::lock;

/// Whoever writes a file in several steps gets this long to finish.
const SETTLE: Duration = Duration::from_millis(100);

/// How often a file was taken anew, and when.
#[derive(Debug, Default)]
pub struct Reloads {
    taken: AtomicU64,
    refused: AtomicU64,
    /// When it was taken and refused last, in seconds since 1970.
    last: Mutex<(Option<f64>, Option<f64>)>,
}

impl Reloads {
    fn count(&self, taken: bool) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |now| now.as_secs_f64());
        let mut last = lock(&self.last);
        if taken {
            self.taken.fetch_add(1, Ordering::Relaxed);
            last.0 = Some(now);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            last.1 = Some(now);
        }
    }

    /// Taken and refused so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.taken.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    /// The metrics, under upstream's names that begin with `prefix`.
    pub fn text(&self, prefix: &str, out: &mut String) {
        use std::fmt::Write;
        let (taken, refused) = self.counts();
        if taken + refused == 0 {
            return;
        }
        let last = *lock(&self.last);
        let _ok = writeln!(out, "# TYPE {prefix}_automatic_reloads_total counter");
        for (status, count) in [("success", taken), ("failure", refused)] {
            let _ok = writeln!(out, "{prefix}_automatic_reloads_total{{status=\"{status}\"}} {count}");
        }
        let _ok = writeln!(out, "# TYPE {prefix}_automatic_reload_last_timestamp_seconds gauge");
        for (status, at) in [("success", last.0), ("failure", last.1)] {
            if let Some(at) = at {
                let _ok = writeln!(
                    out,
                    "{prefix}_automatic_reload_last_timestamp_seconds{{status=\"{status}\"}} {at}"
                );
            }
        }
    }
}

/// Calls `take` with the content of a file whenever it has changed. `content` is what it was when it was read first.
pub fn follow(
    tasks: &Tasks,
    path: &Path,
    content: Vec<u8>,
    reloads: std::sync::Arc<Reloads>,
    take: impl Fn(&[u8]) -> Result<(), String> + Send + Sync + 'static,
) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let inotify = Inotify::init()?;
    let changes = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::ONLYDIR;
    inotify.watches().add(&directory, changes)?;
    let mut events = inotify.into_event_stream(vec![0; 4096])?;
    let path = path.to_owned();
    tasks.spawn_until_drain(format!("reload {}", path.display()), OnExit::Critical, async move {
        let mut known = content;
        while let Some(event) = events.next().await {
            if let Err(error) = event {
                tracing::warn!(%error, path = %path.display(), "changes of a file could not be read");
                continue;
            }
            tokio::time::sleep(SETTLE).await;
            let content = match tokio::fs::read(&path).await {
                Ok(content) => content,
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a configuration file cannot be read; its last content counts");
                    continue;
                }
            };
            if content == known {
                continue;
            }
            let taken = take(&content);
            reloads.count(taken.is_ok());
            match taken {
                Ok(()) => tracing::info!(path = %path.display(), "a configuration file was taken anew"),
                Err(why) => {
                    tracing::error!(why, path = %path.display(), "a configuration file is refused; its last good content counts");
                }
            }
            known = content;
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn changes_are_seen_however_they_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "one").unwrap();
        let tasks = Tasks::new();
        let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let reloads = Arc::new(Reloads::default());
        follow(&tasks, &path, b"one".to_vec(), reloads.clone(), move |content| {
            let text = String::from_utf8_lossy(content).into_owned();
            let refused = text.starts_with("bad");
            sender.send(text).unwrap();
            if refused { Err("bad".into()) } else { Ok(()) }
        })
        .unwrap();
        let mut next = async || {
            let waiting = tokio::time::timeout(Duration::from_secs(10), seen.recv());
            waiting.await.unwrap().unwrap()
        };
        std::fs::write(&path, "two").unwrap();
        assert_eq!(next().await, "two");
        std::fs::write(dir.path().join("other"), "bad three").unwrap();
        std::fs::rename(dir.path().join("other"), &path).unwrap();
        assert_eq!(next().await, "bad three");
        // As a mounted ConfigMap changes: a link beside the file.
        std::fs::create_dir(dir.path().join("v1")).unwrap();
        std::fs::write(dir.path().join("v1/config"), "four").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("data/config", &path).unwrap();
        std::os::unix::fs::symlink("v1", dir.path().join("data")).unwrap();
        assert_eq!(next().await, "four");
        assert_eq!(reloads.counts(), (2, 1));
        let mut text = String::new();
        reloads.text("x", &mut text);
        assert!(text.contains("x_automatic_reloads_total{status=\"failure\"} 1"));
        tasks.shutdown(Duration::from_secs(5)).await;
    }
}
