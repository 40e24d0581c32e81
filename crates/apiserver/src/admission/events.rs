//! EventRateLimit: how many Events a second the server, a namespace, a user, or one source about one object may
//! write. Off unless asked for and configured.
//!
//! Where it differs from upstream: Events of `events.k8s.io` are counted as well. They are the same objects, and a
//! limit that the other group steps around is none.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Instant;

use async_trait::async_trait;
use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::status::Status;
use serde::Deserialize;

use super::{Notes, Operation, Plugin, Review, text};
use crate::sync::lock;
use crate::{Refusal, refuse};

/// Buckets that are remembered where the configuration does not say how many.
const CACHE_SIZE: usize = 4096;
const KINDS: [&str; 4] = ["Namespace", "Server", "SourceAndObject", "User"];

/// One limit, as it is configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limit {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    qps: i32,
    #[serde(default)]
    burst: i32,
    #[serde(default)]
    cache_size: i32,
}

impl Limit {
    pub fn check(limits: &[Limit]) -> Errors {
        let mut errors = Errors::new();
        let path = Path::new("limits");
        if limits.is_empty() {
            errors.push(Error::invalid(&path, serde_json::json!([]), "must not be empty"));
        }
        for (index, limit) in limits.iter().enumerate() {
            let path = path.index(index);
            if !KINDS.contains(&limit.kind.as_str()) {
                errors.push(Error::not_supported(&path.child("type"), limit.kind.as_str(), &KINDS));
            }
            for (field, value) in [("burst", limit.burst), ("qps", limit.qps)] {
                if value <= 0 {
                    errors.push(Error::invalid(&path.child(field), value, "must be positive"));
                }
            }
            if limit.kind != "Server" && limit.cache_size < 0 {
                errors.push(Error::invalid(
                    &path.child("cacheSize"),
                    limit.cache_size,
                    "must not be negative",
                ));
            }
        }
        errors
    }

    /// What is counted together.
    fn key(&self, review: &Review<'_>, event: &Object) -> String {
        match self.kind.as_str() {
            "Namespace" => review.namespace.to_owned(),
            "User" => review.user.name.clone(),
            "SourceAndObject" => [
                "/source/component",
                "/source/host",
                "/involvedObject/kind",
                "/involvedObject/namespace",
                "/involvedObject/name",
                "/involvedObject/uid",
                "/involvedObject/apiVersion",
            ]
            .map(|pointer| text(event, pointer))
            .concat(),
            _ => String::new(),
        }
    }
}

/// What may still be written at once.
struct Bucket {
    tokens: f64,
    filled: Instant,
    /// Its place in the order of use.
    used: u64,
}

/// The buckets of a limit: as many as configured, those least recently used are forgotten.
#[derive(Default)]
struct Buckets {
    known: HashMap<String, Bucket>,
    order: BTreeMap<u64, String>,
    next: u64,
}

impl Buckets {
    /// Takes a token, if there is one.
    fn take(&mut self, key: &str, limit: &Limit, now: Instant) -> bool {
        let (qps, burst) = (f64::from(limit.qps), f64::from(limit.burst));
        let used = self.next;
        self.next += 1;
        let bucket = match self.known.get_mut(key) {
            Some(bucket) => {
                self.order.remove(&bucket.used);
                bucket
            }
            None => self.known.entry(key.to_owned()).or_insert(Bucket {
                tokens: burst,
                filled: now,
                used,
            }),
        };
        bucket.used = used;
        let since = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + since * qps).min(burst);
        bucket.filled = now;
        let taken = bucket.tokens >= 1.0;
        if taken {
            bucket.tokens -= 1.0;
        }
        self.order.insert(used, key.to_owned());
        let most = usize::try_from(limit.cache_size).ok().filter(|most| *most > 0);
        while self.known.len() > most.unwrap_or(CACHE_SIZE) {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.known.remove(&oldest);
        }
        taken
    }
}

pub struct EventRateLimit(Vec<(Limit, Mutex<Buckets>)>);

impl EventRateLimit {
    pub fn new(limits: &[Limit]) -> Self {
        EventRateLimit(limits.iter().map(|limit| (limit.clone(), Mutex::default())).collect())
    }

    /// What is exceeded; every limit counts the request, whatever the others say.
    fn exceeded(&self, review: &Review<'_>, event: &Object, now: Instant) -> Vec<String> {
        let over = self.0.iter().filter_map(|(limit, buckets)| {
            let key = limit.key(review, event);
            let taken = lock(buckets).take(&key, limit, now);
            (!taken).then(|| format!("limit reached on type {} for key {key}", limit.kind))
        });
        over.collect()
    }
}

#[async_trait]
impl Plugin for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        matches!(review.operation, Operation::Create | Operation::Update)
            && review.row.spec.kind == "Event"
            && matches!(review.row.spec.group, "" | "events.k8s.io")
            && !review.dry_run
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(event) = object else { return Ok(()) };
        let exceeded = self.exceeded(review, event, Instant::now());
        let why = match exceeded.len() {
            0 => return Ok(()),
            1 => exceeded.concat(),
            _ => format!("[{}]", exceeded.join(", ")),
        };
        let message = format!("Too many requests: {why}");
        Err(refuse(Status::new(429, "TooManyRequests", message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limit(kind: &str, qps: i32, burst: i32, cache_size: i32) -> Limit {
        Limit {
            kind: kind.to_owned(),
            qps,
            burst,
            cache_size,
        }
    }

    #[test]
    fn a_bucket_fills_as_time_goes_by() {
        let limit = limit("Server", 2, 3, 0);
        let mut buckets = Buckets::default();
        let start = Instant::now();
        for (after, taken) in [(0, 3), (100, 0), (500, 1), (1500, 2), (60_000, 3)] {
            let now = start + Duration::from_millis(after);
            let got = (0..10).filter(|_| buckets.take("", &limit, now)).count();
            assert_eq!(got, taken, "after {after} ms");
        }
    }

    #[test]
    fn the_least_recently_used_is_forgotten() {
        let limit = limit("Namespace", 1, 1, 2);
        let mut buckets = Buckets::default();
        let now = Instant::now();
        for (key, taken) in [
            ("a", true),
            ("b", true),
            ("a", false),
            ("c", true),
            ("a", false),
            ("b", true),
            ("c", true),
        ] {
            assert_eq!(buckets.take(key, &limit, now), taken, "{key}");
            assert!(buckets.known.len() <= 2 && buckets.order.len() == buckets.known.len());
        }
    }
}
