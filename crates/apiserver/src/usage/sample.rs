//! What a node says of itself and its containers at one moment: its `/metrics/resource`, read.
//!
//! Only what resource metrics are made of is taken, whatever else is there; lines that cannot be read are passed over.
//! A sample carries the time the node has put beside it, or else that of its arrival.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

/// A counter of CPU time and the rest, at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// Seconds of all cores since the start, and when that was read.
    pub cpu: Option<(f64, Timestamp)>,
    /// The working set, in bytes.
    pub memory: Option<f64>,
    /// When the container was started.
    pub started: Option<Timestamp>,
}

/// Everything of one node at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    pub node: Point,
    /// By namespace, then by name: the containers.
    pub pods: HashMap<String, HashMap<String, BTreeMap<String, Point>>>,
}

#[derive(Clone, Copy)]
enum Measure {
    Cpu,
    Memory,
    Start,
}

impl Sample {
    pub fn parse(text: &str, arrived: Timestamp) -> Self {
        let mut sample = Sample::default();
        for line in text.lines() {
            let Some(line) = Line::parse(line) else { continue };
            let (of_node, measure) = match line.name {
                "node_cpu_usage_seconds_total" => (true, Measure::Cpu),
                "node_memory_working_set_bytes" => (true, Measure::Memory),
                "container_cpu_usage_seconds_total" => (false, Measure::Cpu),
                "container_memory_working_set_bytes" => (false, Measure::Memory),
                "container_start_time_seconds" => (false, Measure::Start),
                _ => continue,
            };
            let point = if of_node {
                &mut sample.node
            } else {
                let (Some(container), Some(pod), Some(namespace)) =
                    (line.label("container"), line.label("pod"), line.label("namespace"))
                else {
                    continue;
                };
                let pods = sample.pods.entry(namespace).or_default();
                pods.entry(pod).or_default().entry(container).or_default()
            };
            match measure {
                Measure::Cpu => point.cpu = Some((line.value, line.time.unwrap_or(arrived))),
                Measure::Memory => point.memory = Some(line.value),
                Measure::Start => point.started = Timestamp::from_millisecond((line.value * 1e3) as i64).ok(),
            }
        }
        sample
    }

    /// The containers of a Pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&BTreeMap<String, Point>> {
        self.pods.get(namespace)?.get(name)
    }
}

/// `name{label="value",…} value time`
struct Line<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
    time: Option<Timestamp>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let end = line.find(|char: char| char == '{' || char.is_whitespace())?;
        let (name, rest) = line.split_at_checked(end)?;
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_at_checked(labels_end(rest)?)?,
            None => ("", rest),
        };
        let mut numbers = rest.trim_start_matches('}').split_whitespace();
        let value: f64 = numbers.next()?.parse().ok()?;
        let time = numbers.next().and_then(|time| time.parse().ok());
        Some(Line {
            name,
            labels,
            value: Some(value).filter(|value| value.is_finite() && *value >= 0.0)?,
            time: time.and_then(|time| Timestamp::from_millisecond(time).ok()),
        })
    }

    fn label(&self, wanted: &str) -> Option<String> {
        let mut rest = self.labels;
        loop {
            let (name, after) = rest.split_once("=\"")?;
            let end = quote_end(after)?;
            let value = after.get(..end)?;
            if name.trim_start_matches([',', ' ']).trim_end() == wanted {
                return Some(unescaped(value));
            }
            rest = after.get(end + 1..)?;
        }
    }
}

/// Where the brace is that closes the labels.
fn labels_end(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    text.bytes().position(|byte| {
        let was = std::mem::replace(&mut escaped, false);
        match byte {
            b'\\' if quoted && !was => escaped = true,
            b'"' if !was => quoted = !quoted,
            b'}' => return !quoted,
            _ => {}
        }
        false
    })
}

fn quote_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let was = escaped;
        escaped = byte == b'\\' && !was;
        byte == b'"' && !was
    })
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_node_says_is_read() {
        let text = r#"
# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="c",namespace="ns",pod="p"} 4.710169 1624022543107
container_memory_working_set_bytes{pod="p", namespace="ns", container="c"} 1.253376e+06 1624022543107
container_start_time_seconds{container="c",namespace="ns",pod="p"} 1.6240224e+09 1624022543107
container_cpu_usage_seconds_total{container="odd}\"",namespace="ns",pod="p"} 1
container_cpu_usage_seconds_total{container="nameless"} 1
node_cpu_usage_seconds_total 357.35 1624022546000
node_memory_working_set_bytes NaN
unknown_total 1
nonsense{
"#;
        let arrived = Timestamp::from_second(7).unwrap();
        let sample = Sample::parse(text, arrived);
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        assert_eq!(sample.node.cpu, Some((357.35, at(1_624_022_546_000))));
        assert_eq!(sample.node.memory, None);
        let pod = sample.pod("ns", "p").unwrap();
        assert_eq!(pod.len(), 2);
        assert_eq!(
            pod["c"],
            Point {
                cpu: Some((4.710169, at(1_624_022_543_107))),
                memory: Some(1_253_376.0),
                started: Some(at(1_624_022_400_000)),
            }
        );
        assert_eq!(pod["odd}\""].cpu, Some((1.0, arrived)));
        assert!(sample.pod("ns", "other").is_none());
    }

    proptest! {
        #[test]
        fn anything_can_be_read(text in "(container_cpu_usage_seconds_total|[ -~])[ -~\n]{0,80}") {
            Sample::parse(&text, Timestamp::UNIX_EPOCH);
        }
    }
}
