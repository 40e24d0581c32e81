//! Counting for people's monitoring, told in Prometheus' text format.
//!
//! The pieces are plain values: whoever counts keeps them behind the lock it holds anyway. Nothing here is global.

use std::fmt::{Display, Write};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::WorkQueue;

/// How often a value was how large.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds, and how many values each has that none before it has.
    buckets: Vec<(f64, u64)>,
    count: u64,
    sum: f64,
}

impl Histogram {
    /// So many buckets, each bound `factor` times the one before.
    pub fn exponential(first: f64, factor: f64, buckets: i32) -> Self {
        Histogram {
            buckets: (0..buckets).map(|power| (first * factor.powi(power), 0)).collect(),
            count: 0,
            sum: 0.0,
        }
    }

    pub fn observe(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        let at = self.buckets.partition_point(|(bound, _)| *bound < value);
        if let Some((_, count)) = self.buckets.get_mut(at) {
            *count += 1;
        }
    }

    pub fn took(&mut self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }

    pub fn count(&self) -> u64 {
        self.count
    }
}

/// An exposition being written.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    pub fn heading(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ok = self.0.write_fmt(text);
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        self.0.push_str(suffix);
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            // Backslash, quote and line feed are escaped in this format as in Rust's.
            self.write(format_args!("{before}{label}={text:?}"));
        }
        self.write(format_args!("{} {value}\n", if labels.is_empty() { "" } else { "}" }));
    }

    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.line(name, "", labels, value);
    }

    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut total = 0;
        for (bound, count) in &histogram.buckets {
            total += count;
            let bound = bound.to_string();
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.line(name, "_bucket", &labels, total);
        }
        let labels_to_infinity: Vec<_> = labels.iter().copied().chain([("le", "+Inf")]).collect();
        self.line(name, "_bucket", &labels_to_infinity, histogram.count);
        self.line(name, "_sum", labels, histogram.sum);
        self.line(name, "_count", labels, histogram.count);
    }

    pub fn into_text(self) -> String {
        self.0
    }
}

/// What a work queue has seen.
#[derive(Clone, Debug)]
pub struct QueueFigures {
    pub waiting: usize,
    pub added: u64,
    pub retried: u64,
    /// Of keys before work on them begins, and of the work.
    pub waited: Histogram,
    pub worked: Histogram,
    /// How long the keys in work have been, together and the longest.
    pub unfinished: Duration,
    pub longest: Duration,
}

type Look = Box<dyn Fn() -> QueueFigures + Send + Sync>;

/// Work queues by name, for `workqueue_*`. Clones share them.
#[derive(Clone, Default)]
pub struct Queues(Arc<Mutex<Vec<(String, Look)>>>);

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queues").finish_non_exhaustive()
    }
}

impl Queues {
    /// Tells of a queue from now on, in the place of one of the same name.
    pub fn add<K: Clone + Eq + Hash + Send + Sync + 'static>(&self, name: &str, queue: WorkQueue<K>) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|(known, _)| known != name);
        queues.push((name.to_owned(), Box::new(move || queue.figures())));
        queues.sort_by(|left, right| left.0.cmp(&right.0));
    }

    pub fn tell(&self, out: &mut Exposition) {
        let queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<(&str, QueueFigures)> = queues.iter().map(|(name, look)| (name.as_str(), look())).collect();
        type Row = (&'static str, &'static str, &'static str, fn(&QueueFigures) -> f64);
        let rows: [Row; 5] = [
            ("workqueue_depth", "gauge", "Keys that wait.", |queue| {
                queue.waiting as f64
            }),
            ("workqueue_adds_total", "counter", "Keys added.", |queue| {
                queue.added as f64
            }),
            (
                "workqueue_retries_total",
                "counter",
                "Keys that are to be tried again.",
                |queue| queue.retried as f64,
            ),
            (
                "workqueue_unfinished_work_seconds",
                "gauge",
                "How long the keys in work have been, together.",
                |queue| queue.unfinished.as_secs_f64(),
            ),
            (
                "workqueue_longest_running_processor_seconds",
                "gauge",
                "How long the oldest key in work has been.",
                |queue| queue.longest.as_secs_f64(),
            ),
        ];
        for (name, kind, help, value) in rows {
            out.heading(name, kind, help);
            for (queue, figures) in &all {
                out.sample(name, &[("name", queue)], value(figures));
            }
        }
        type OfQueue = fn(&QueueFigures) -> &Histogram;
        let histograms: [(&str, &str, OfQueue); 2] = [
            ("workqueue_queue_duration_seconds", "How long keys wait.", |queue| {
                &queue.waited
            }),
            (
                "workqueue_work_duration_seconds",
                "How long work on a key takes.",
                |queue| &queue.worked,
            ),
        ];
        for (name, help, value) in histograms {
            out.heading(name, "histogram", help);
            for (queue, figures) in &all {
                out.histogram(name, &[("name", queue)], value(figures));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expositions_read_as_prometheus_reads_them() {
        let mut histogram = Histogram::exponential(0.5, 2.0, 2);
        for value in [0.5, 0.75, 3.0] {
            histogram.observe(value);
        }
        let mut out = Exposition::default();
        out.heading("x", "histogram", "Some.");
        out.histogram("x", &[("a", "b\"c")], &histogram);
        out.sample("y", &[], 2);
        let expected = "# HELP x Some.\n# TYPE x histogram\n\
            x_bucket{a=\"b\\\"c\",le=\"0.5\"} 1\nx_bucket{a=\"b\\\"c\",le=\"1\"} 2\nx_bucket{a=\"b\\\"c\",le=\"+Inf\"} 3\n\
            x_sum{a=\"b\\\"c\"} 4.25\nx_count{a=\"b\\\"c\"} 3\ny 2\n";
        assert_eq!(out.into_text(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn queues_are_measured_by_name() {
        let queue: WorkQueue<&str> = WorkQueue::default();
        let queues = Queues::default();
        queues.add("q", queue.clone());
        queue.add("a");
        queue.add("b");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(queue.get().await, Some("a"));
        tokio::time::advance(Duration::from_secs(3)).await;
        let mut out = Exposition::default();
        queues.tell(&mut out);
        let text = out.into_text();
        for line in [
            "workqueue_depth{name=\"q\"} 1",
            "workqueue_adds_total{name=\"q\"} 2",
            "workqueue_unfinished_work_seconds{name=\"q\"} 3",
            "workqueue_queue_duration_seconds_sum{name=\"q\"} 2",
            "workqueue_work_duration_seconds_count{name=\"q\"} 0",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        queue.done(&"a");
        assert_eq!(queue.figures().worked.count(), 1);
    }
}
