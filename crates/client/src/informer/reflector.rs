//! The life of an informer: list, watch, resume, list again when it must.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::wire::{Event, Source, WireError};
use super::{Cached, Shared, Transform};
use crate::{Backoff, Key};

const BACKOFF: Backoff = Backoff {
    base: Duration::from_millis(100),
    max: Duration::from_secs(30),
};

/// Follows `source` for ever.
pub(super) async fn run<K: Cached>(
    source: &Source,
    shared: &Shared<K>,
    transform: Option<&Transform<K>>,
) -> std::convert::Infallible {
    let mut reflector = Reflector {
        source,
        shared,
        transform,
        version: String::new(),
        failures: 0,
    };
    loop {
        if let Err(error) = reflector.list().await {
            reflector.pause(&error, "list").await;
            continue;
        }
        reflector.shared.synced.send_replace(true);
        reflector.watch_until_expired().await;
    }
}

struct Reflector<'a, K> {
    source: &'a Source,
    shared: &'a Shared<K>,
    transform: Option<&'a Transform<K>>,
    version: String,
    failures: u32,
}

impl<K: Cached> Reflector<'_, K> {
    /// Reads everything, then drops from the cache what was not there.
    async fn list(&mut self) -> Result<(), WireError> {
        let known = self.shared.cache.read().unwrap_or_else(PoisonError::into_inner).len();
        let mut seen = (known > 0).then(HashSet::new);
        let mut next = String::new();
        loop {
            let page = self.source.list(&next).await?;
            for object in page.items {
                if let Some(seen) = &mut seen {
                    seen.insert(Key::of::<K>(&object));
                }
                self.upsert(object);
            }
            // A long list must not hold the thread.
            tokio::task::yield_now().await;
            next = page.next;
            if next.is_empty() {
                self.version = page.resource_version;
                break;
            }
        }
        if let Some(seen) = seen {
            let gone: Vec<Key> = {
                let cache = self.shared.cache.read().unwrap_or_else(PoisonError::into_inner);
                cache
                    .iter()
                    .map(|object| Key::of(object.as_ref()))
                    .filter(|key| !seen.contains(key))
                    .collect()
            };
            for key in gone {
                self.shared.remove(&key.namespace, &key.name, None);
            }
        }
        Ok(())
    }

    /// Watches, resuming as often as needed, until the server says that the version is gone.
    async fn watch_until_expired(&mut self) {
        loop {
            let begun = Instant::now();
            match self.watch().await {
                Ok(()) => {
                    // An end at once, again and again, is a server that cannot serve: do not spin.
                    if begun.elapsed() < Duration::from_secs(1) {
                        let delay = BACKOFF.delay(self.failures.min(4));
                        self.failures += 1;
                        sleep(jittered(delay)).await;
                    }
                }
                Err(WireError::Expired) => {
                    tracing::info!(
                        path = self.source.path,
                        "the watch fell behind the kept history, listing again"
                    );
                    let delay = BACKOFF.delay(self.failures);
                    self.failures += 1;
                    sleep(jittered(delay)).await;
                    return;
                }
                Err(error) => self.pause(&error, "watch").await,
            }
        }
    }

    async fn watch(&mut self) -> Result<(), WireError> {
        // The server ends the watch after a while; a connection that died silently is noticed soon after.
        let seconds = rand::random_range(300..600_u32);
        let deadline = Instant::now() + Duration::from_secs(u64::from(seconds) + 30);
        let mut lines = self.source.watch(&self.version, seconds).await?;
        loop {
            let Ok(line) = timeout_at(deadline, lines.next()).await else {
                return Ok(());
            };
            let Some(line) = line? else {
                return Ok(());
            };
            self.failures = 0;
            match self.source.event::<K>(&line)? {
                Event::Upsert(object) => {
                    self.version = object.resource_version().to_owned();
                    self.upsert(object);
                }
                Event::Delete(mut object) => {
                    self.version = object.resource_version().to_owned();
                    self.prepare(&mut object);
                    let object = Arc::new(object);
                    self.shared
                        .remove(object.namespace(), object.name(), Some(Arc::clone(&object)));
                }
                Event::Bookmark(version) => self.version = version,
                Event::Bad(Some(version)) if !version.is_empty() => self.version = version,
                Event::Bad(_) => {}
            }
        }
    }

    fn prepare(&self, object: &mut K) {
        object.slim();
        if let Some(transform) = self.transform {
            transform(object);
        }
    }

    fn upsert(&self, mut object: K) {
        self.prepare(&mut object);
        self.shared.upsert(Arc::new(object));
    }

    async fn pause(&mut self, error: &WireError, doing: &str) {
        let delay = BACKOFF.delay(self.failures);
        self.failures = self.failures.saturating_add(1);
        let path = &self.source.path;
        if self.failures > 3 {
            tracing::warn!(path, %error, ?delay, "cannot {doing}, will retry");
        } else {
            tracing::debug!(path, %error, ?delay, "cannot {doing}, will retry");
        }
        sleep(jittered(delay)).await;
    }
}

fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(1.0..1.5))
}
