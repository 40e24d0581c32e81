//! What is counted of values on their way, of plug-ins and of configurations; by upstream's names.
//!
//! Differs from upstream: keys within a provider are not counted one by one, and there is no `apiserver_id_hash`, which
//! tells servers apart that are told apart by where the page was fetched.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::config::GroupResource;
use crate::store::lock;

/// The way a value goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    FromStorage,
    ToStorage,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::FromStorage => "from_storage",
            Way::ToStorage => "to_storage",
        }
    }
}

/// Keys of plug-ins that are remembered.
const KEYS: usize = 100;

/// From 5 µs, each twice the one before.
const TRANSFORMATIONS: (f64, usize) = (5e-6, 25);
/// From 0.1 ms.
const CALLS: (f64, usize) = (1e-4, 20);

struct Histogram {
    first: f64,
    buckets: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    fn new((first, buckets): (f64, usize)) -> Self {
        Histogram {
            first,
            buckets: vec![0; buckets],
            sum: 0.0,
            count: 0,
        }
    }

    fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.sum += seconds;
        self.count += 1;
        let mut limit = self.first;
        for bucket in &mut self.buckets {
            if seconds <= limit {
                *bucket += 1;
                return;
            }
            limit *= 2.0;
        }
    }

    fn text(&self, name: &str, labels: &str, out: &mut String) {
        let (mut limit, mut below) = (self.first, 0);
        for bucket in &self.buckets {
            below += bucket;
            line(out, format_args!("{name}_bucket{{{labels},le=\"{limit}\"}} {below}"));
            limit *= 2.0;
        }
        line(
            out,
            format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count),
        );
        line(out, format_args!("{name}_sum{{{labels}}} {}", self.sum));
        line(out, format_args!("{name}_count{{{labels}}} {}", self.count));
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ok = writeln!(out, "{text}");
}

/// How often, by status.
type Counts = BTreeMap<(Way, Arc<str>, String), u64>;

#[derive(Default)]
struct Reloads {
    count: u64,
    at: u64,
}

#[derive(Default)]
struct Used {
    count: u64,
    at: u64,
    /// Which use of all it was.
    turn: u64,
}

#[derive(Default)]
struct Inner {
    operations: HashMap<GroupResource, Counts>,
    durations: BTreeMap<(Way, Arc<str>), Histogram>,
    /// By provider, method and code.
    calls: BTreeMap<(String, &'static str, String), Histogram>,
    /// By way (`None`: a status), provider and hash.
    keys: BTreeMap<(Option<Way>, String, String), Used>,
    /// Uses of keys so far.
    uses: u64,
    invalid: BTreeMap<(String, &'static str), u64>,
    seeds: BTreeMap<String, usize>,
    /// Failed, well.
    reloads: [Reloads; 2],
    configuration: String,
}

#[derive(Default)]
pub struct Metrics(Mutex<Inner>);

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// What gRPC called the error, if it came by it.
fn code(error: Option<&str>) -> &str {
    const HEAD: &str = "rpc error: code = ";
    let Some(error) = error else { return "OK" };
    match error.split_once(HEAD) {
        Some((_, rest)) => rest.split_whitespace().next().unwrap_or("Unknown"),
        None => "unknown-non-grpc",
    }
}

fn sum(text: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}

impl Metrics {
    /// A value went through a provider, or (`unknown`) found none.
    pub fn transformed(
        &self,
        resource: &GroupResource,
        way: Way,
        prefix: &Arc<str>,
        since: Instant,
        error: Option<&str>,
    ) {
        let time = since.elapsed();
        let mut inner = lock(&self.0);
        if !inner.operations.contains_key(resource) {
            inner.operations.insert(resource.clone(), Counts::new());
        }
        if let Some(counts) = inner.operations.get_mut(resource) {
            let key = (way, prefix.clone(), code(error).to_owned());
            *counts.entry(key).or_default() += 1;
        }
        if error.is_none() {
            inner
                .durations
                .entry((way, prefix.clone()))
                .or_insert_with(|| Histogram::new(TRANSFORMATIONS))
                .observe(time);
        }
    }

    pub fn called(&self, provider: &str, method: &'static str, since: Instant, error: Option<&str>) {
        let time = since.elapsed();
        lock(&self.0)
            .calls
            .entry((provider.to_owned(), method, code(error).to_owned()))
            .or_insert_with(|| Histogram::new(CALLS))
            .observe(time);
    }

    /// A plug-in's key was used, or (`None`) named by its status.
    pub fn key_used(&self, way: Option<Way>, provider: &str, key_id: &str) {
        let mut inner = lock(&self.0);
        inner.uses += 1;
        let turn = inner.uses;
        let used = inner.keys.entry((way, provider.to_owned(), sum(key_id))).or_default();
        (used.count, used.at, used.turn) = (used.count + 1, now(), turn);
        if inner.keys.len() > KEYS {
            let oldest = inner.keys.iter().min_by_key(|(_, used)| used.turn);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                inner.keys.remove(&oldest);
            }
        }
    }

    pub fn invalid_key(&self, provider: &str, what: &'static str) {
        *lock(&self.0).invalid.entry((provider.to_owned(), what)).or_default() += 1;
    }

    pub fn seeds(&self, provider: &str, known: usize) {
        lock(&self.0).seeds.insert(provider.to_owned(), known);
    }

    pub fn reloaded(&self, well: bool) {
        let reloads = &mut lock(&self.0).reloads[usize::from(well)];
        reloads.count += 1;
        reloads.at = now();
    }

    /// Which configuration counts. Servers of a cluster should have the same.
    pub fn configuration(&self, content: &[u8]) {
        lock(&self.0).configuration = hex::encode(Sha256::digest(content));
    }

    pub fn text(&self, out: &mut String) {
        let inner = lock(&self.0);
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
        };
        let name = "apiserver_encryption_config_controller_automatic_reloads_total";
        head(out, name, "counter", "Reloads of the encryption configuration.");
        for (status, reloads) in ["failure", "success"].into_iter().zip(&inner.reloads) {
            line(out, format_args!("{name}{{status=\"{status}\"}} {}", reloads.count));
        }
        let name = "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds";
        head(out, name, "gauge", "When the encryption configuration was read anew.");
        for (status, reloads) in ["failure", "success"].into_iter().zip(&inner.reloads) {
            if reloads.count > 0 {
                line(out, format_args!("{name}{{status=\"{status}\"}} {}", reloads.at));
            }
        }
        let name = "apiserver_encryption_config_controller_last_config_info";
        head(out, name, "gauge", "Which encryption configuration counts.");
        line(
            out,
            format_args!("{name}{{hash=\"k8s:enc:unstable:1:{}\"}} 1", inner.configuration),
        );

        let name = "apiserver_storage_transformation_operations_total";
        head(
            out,
            name,
            "counter",
            "Values that were encrypted, decrypted or passed on, and why not.",
        );
        for (resource, counts) in &inner.operations {
            for ((way, prefix, status), count) in counts {
                line(
                    out,
                    format_args!(
                        "{name}{{resource=\"{resource}\",status=\"{status}\",transformation_type=\"{}\",transformer_prefix=\"{prefix}\"}} {count}",
                        way.name()
                    ),
                );
            }
        }
        let name = "apiserver_storage_transformation_duration_seconds";
        head(out, name, "histogram", "How long encrypting and decrypting took.");
        for ((way, prefix), histogram) in &inner.durations {
            let labels = format!("transformation_type=\"{}\",transformer_prefix=\"{prefix}\"", way.name());
            histogram.text(name, &labels, out);
        }
        let name = "apiserver_envelope_encryption_kms_operations_latency_seconds";
        head(out, name, "histogram", "How long KMS plug-ins took.");
        for ((provider, method, status), histogram) in &inner.calls {
            let labels = format!("grpc_status_code=\"{status}\",method_name=\"{method}\",provider_name=\"{provider}\"");
            histogram.text(name, &labels, out);
        }
        for (name, kind, statuses, help) in [
            (
                "key_id_hash_total",
                "counter",
                false,
                "How often a plug-in's key was used.",
            ),
            (
                "key_id_hash_last_timestamp_seconds",
                "gauge",
                false,
                "When a plug-in's key was used last.",
            ),
            (
                "key_id_hash_status_last_timestamp_seconds",
                "gauge",
                true,
                "When a plug-in named this key last.",
            ),
        ] {
            let name = format!("apiserver_envelope_encryption_{name}");
            head(out, &name, kind, help);
            for ((way, provider, hash), used) in &inner.keys {
                let value = if kind == "counter" { used.count } else { used.at };
                match way {
                    Some(way) if !statuses => line(
                        out,
                        format_args!(
                            "{name}{{key_id_hash=\"{hash}\",provider_name=\"{provider}\",transformation_type=\"{}\"}} {value}",
                            way.name()
                        ),
                    ),
                    None if statuses => {
                        line(
                            out,
                            format_args!("{name}{{key_id_hash=\"{hash}\",provider_name=\"{provider}\"}} {value}"),
                        );
                    }
                    _ => {}
                }
            }
        }
        let name = "apiserver_envelope_encryption_invalid_key_id_from_status_total";
        head(out, name, "counter", "Keys that plug-ins named and that cannot be.");
        for ((provider, what), count) in &inner.invalid {
            line(
                out,
                format_args!("{name}{{error=\"{what}\",provider_name=\"{provider}\"}} {count}"),
            );
        }
        let name = "apiserver_envelope_encryption_dek_source_cache_size";
        head(out, name, "gauge", "Seeds that are known without asking the plug-in.");
        for (provider, known) in &inner.seeds {
            line(out, format_args!("{name}{{provider_name=\"{provider}\"}} {known}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_shown() {
        let metrics = Metrics::default();
        let secrets = GroupResource::new("", "secrets");
        let prefix: Arc<str> = "k8s:enc:kms:v2:x:".into();
        let started = Instant::now();
        metrics.transformed(&secrets, Way::ToStorage, &prefix, started, None);
        metrics.transformed(
            &secrets,
            Way::FromStorage,
            &prefix,
            started,
            Some("no matching prefix found"),
        );
        let why = "failed to decrypt DEK, error: rpc error: code = Unavailable desc = gone";
        metrics.transformed(&secrets, Way::FromStorage, &prefix, started, Some(why));
        metrics.called("x", "/v2.KeyManagementService/Status", started, Some(why));
        for number in 0..2 * KEYS {
            metrics.key_used(Some(Way::ToStorage), "x", &number.to_string());
        }
        metrics.key_used(None, "x", "key");
        metrics.invalid_key("x", "empty");
        metrics.seeds("x", 3);
        metrics.reloaded(true);
        metrics.configuration(b"x");
        let mut text = String::new();
        metrics.text(&mut text);
        for expected in [
            "apiserver_storage_transformation_operations_total{resource=\"secrets\",status=\"OK\",transformation_type=\"to_storage\",transformer_prefix=\"k8s:enc:kms:v2:x:\"} 1",
            "status=\"unknown-non-grpc\",transformation_type=\"from_storage\"",
            "status=\"Unavailable\",transformation_type=\"from_storage\"",
            "apiserver_storage_transformation_duration_seconds_count{transformation_type=\"to_storage\",transformer_prefix=\"k8s:enc:kms:v2:x:\"} 1",
            "apiserver_envelope_encryption_kms_operations_latency_seconds_count{grpc_status_code=\"Unavailable\",method_name=\"/v2.KeyManagementService/Status\",provider_name=\"x\"} 1",
            "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{key_id_hash=\"sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683\",provider_name=\"x\"}",
            "apiserver_envelope_encryption_invalid_key_id_from_status_total{error=\"empty\",provider_name=\"x\"} 1",
            "apiserver_envelope_encryption_dek_source_cache_size{provider_name=\"x\"} 3",
            "apiserver_encryption_config_controller_automatic_reloads_total{status=\"success\"} 1",
            "apiserver_encryption_config_controller_last_config_info{hash=\"k8s:enc:unstable:1:2d711642",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(text.matches("key_id_hash_total{").count() <= KEYS);
    }

    #[test]
    fn a_time_is_in_the_right_bucket() {
        let mut histogram = Histogram::new((1.0, 3));
        for seconds in [1, 2, 3, 4, 5, 9] {
            histogram.observe(Duration::from_secs(seconds));
        }
        let mut text = String::new();
        histogram.text("x", "a=\"b\"", &mut text);
        for expected in [
            "le=\"1\"} 1",
            "le=\"2\"} 2",
            "le=\"4\"} 4",
            "le=\"+Inf\"} 6",
            "x_sum{a=\"b\"} 24",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }
}
