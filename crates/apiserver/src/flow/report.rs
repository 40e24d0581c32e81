//! What those who look see: the debug pages and the metrics, laid out as upstream lays them out.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Flow;
use super::level::{Details, Note};
use super::queues::Work;
use super::stats::{Histogram, Reason};
use crate::sync::{lock, read};

/// One page below `/debug/api_priority_and_fairness/`; `None`: no such page.
pub fn page(flow: &Flow, name: &str, details: bool) -> Option<String> {
    let rows = match name {
        "dump_priority_levels" => levels(flow),
        "dump_queues" => queues(flow),
        "dump_requests" => requests(flow, details),
        _ => return None,
    };
    Some(layout(&rows))
}

fn head(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|column| (*column).to_owned()).collect()
}

fn levels(flow: &Flow) -> Vec<Vec<String>> {
    let mut rows = vec![head(&[
        "PriorityLevelName",
        "ActiveQueues",
        "IsIdle",
        "IsQuiescing",
        "WaitingRequests",
        "ExecutingRequests",
        "DispatchedRequests",
        "RejectedRequests",
        "TimedoutRequests",
        "CancelledRequests",
    ])];
    for level in &read(&flow.table).levels {
        let state = lock(&level.state);
        let active = state.queues.iter().filter(|queue| !queue.waiting.is_empty()).count();
        rows.push(vec![
            level.name.clone(),
            active.to_string(),
            state.is_idle().to_string(),
            level.quiescing.load(Relaxed).to_string(),
            state.waiting.to_string(),
            state.executing.to_string(),
            state.dispatched.to_string(),
            state.rejected.to_string(),
            state.timed_out.to_string(),
            (state.cancelled + state.timed_out).to_string(),
        ]);
    }
    rows
}

fn queues(flow: &Flow) -> Vec<Vec<String>> {
    let mut rows = vec![head(&[
        "PriorityLevelName",
        "Index",
        "PendingRequests",
        "ExecutingRequests",
        "SeatsInUse",
        "NextDispatchR",
        "InitialSeatsSum",
        "MaxSeatsSum",
        "TotalWorkSum",
    ])];
    for level in &read(&flow.table).levels {
        let state = lock(&level.state);
        for (index, queue) in state.queues.iter().enumerate() {
            let (initial, most, work) = queue.sums();
            rows.push(vec![
                level.name.clone(),
                index.to_string(),
                queue.waiting.len().to_string(),
                queue.executing.to_string(),
                queue.seats.to_string(),
                format!("{:.8}ss", queue.next_r),
                initial.to_string(),
                most.to_string(),
                format!("{work:.8}ss"),
            ]);
        }
    }
    rows
}

fn requests(flow: &Flow, detailed: bool) -> Vec<Vec<String>> {
    let mut columns = vec![
        "PriorityLevelName",
        "FlowSchemaName",
        "QueueIndex",
        "RequestIndexInQueue",
        "FlowDistingsher",
        "ArriveTime",
        "InitialSeats",
        "FinalSeats",
        "AdditionalLatency",
        "StartTime",
    ];
    if detailed {
        columns.extend([
            "UserName",
            "Verb",
            "APIPath",
            "Namespace",
            "Name",
            "APIVersion",
            "Resource",
            "SubResource",
        ]);
    }
    let mut rows = vec![head(&columns)];
    let (now, wall) = (Instant::now(), jiff::Timestamp::now());
    let clock = |at: Option<Instant>| match at {
        None => "0001-01-01T00:00:00Z".to_owned(),
        Some(at) => {
            let ago = now.saturating_duration_since(at);
            jiff::SignedDuration::try_from(ago)
                .ok()
                .and_then(|ago| wall.checked_sub(ago).ok())
                .unwrap_or(wall)
                .to_string()
        }
    };
    for level in &read(&flow.table).levels {
        let state = lock(&level.state);
        let mut row = |queue: i64, index: i64, note: &Note, work: &Work, arrived, started| {
            let mut row = vec![
                level.name.clone(),
                note.schema.spec.name.clone(),
                queue.to_string(),
                index.to_string(),
                note.flow.to_string(),
                clock(Some(arrived)),
                work.initial.to_string(),
                work.last.to_string(),
                go_duration(work.latency),
                clock(started),
            ];
            if detailed {
                row.extend(describe(note.details.as_deref()));
            }
            rows.push(row);
        };
        for (index, queue) in state.queues.iter().enumerate() {
            for (place, waiting) in queue.waiting.iter().enumerate() {
                row(
                    index as i64,
                    place as i64,
                    &waiting.note,
                    &waiting.work,
                    waiting.arrived,
                    None,
                );
            }
        }
        for running in state.running.iter().flatten() {
            let queue = running.queue.map_or(-1, |queue| queue as i64);
            row(
                queue,
                -1,
                &running.note,
                &running.work,
                running.arrived,
                Some(running.started),
            );
        }
    }
    rows
}

/// Requests that never had to wait were not written down in full.
fn describe(details: Option<&Details>) -> [String; 8] {
    details.map_or_else(Default::default, |Details { user, info }| {
        let version = if info.group.is_empty() {
            info.version.clone()
        } else {
            format!("{}/{}", info.group, info.version)
        };
        [
            user.clone(),
            info.verb.clone(),
            info.path.clone(),
            info.namespace.clone(),
            info.name.clone(),
            version,
            info.resource.clone(),
            info.subresource.clone(),
        ]
    })
}

fn go_duration(duration: Duration) -> String {
    match duration.as_nanos() {
        0 => "0s".to_owned(),
        nanos if nanos < 1_000_000 => format!("{}µs", nanos as f64 / 1e3),
        nanos if nanos < 1_000_000_000 => format!("{}ms", nanos as f64 / 1e6),
        nanos => format!("{}s", nanos as f64 / 1e9),
    }
}

/// Columns of at least eight, one blank between; a comma after every cell but the last.
fn layout(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let widest = rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count() + 1)
                .max();
            (widest.unwrap_or_default() + 1).max(8)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == row.len() {
                out.push_str(cell);
            } else {
                let cell = format!("{cell},");
                let width = widths.get(column).copied().unwrap_or_default();
                let _ok = write!(out, "{cell:<width$}");
            }
        }
        out.push('\n');
    }
    out
}

const PREFIX: &str = "apiserver_flowcontrol_";

/// Appends the metrics of flow control.
pub fn metrics(flow: &Flow, out: &mut String) {
    let known = lock(&flow.known);
    let mut stats: Vec<_> = known.stats.iter().collect();
    stats.sort_by(|a, b| a.0.cmp(b.0));
    let levels: Vec<_> = known.used.values().map(|(_, level)| level.clone()).collect();
    let head = |out: &mut String, name: &str, kind: &str, help: &str| {
        let _ok = writeln!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
    };
    let label = |(level, schema): &(String, String)| format!("flow_schema={schema:?},priority_level={level:?}");
    head(out, "rejected_requests_total", "counter", "Requests turned away.");
    for (key, stats) in &stats {
        for reason in Reason::ALL {
            let count = stats.rejected(reason);
            if count > 0 {
                let _ok = writeln!(
                    out,
                    "{PREFIX}rejected_requests_total{{{},reason={:?}}} {count}",
                    label(key),
                    reason.name()
                );
            }
        }
    }
    head(out, "dispatched_requests_total", "counter", "Requests that got a seat.");
    for (key, stats) in &stats {
        let (_, count, _) = stats.ran.read();
        let now = stats.executing.load(Relaxed).max(0) as u64;
        let _ok = writeln!(
            out,
            "{PREFIX}dispatched_requests_total{{{}}} {}",
            label(key),
            count + now
        );
    }
    type Gauge = fn(&super::stats::Stats) -> i64;
    let gauges: [(&str, &str, Gauge); 4] = [
        ("current_inqueue_requests", "Requests waiting.", |stats| {
            stats.waiting.load(Relaxed)
        }),
        ("current_inqueue_seats", "Seats waited for.", |stats| {
            stats.waiting_seats.load(Relaxed)
        }),
        ("current_executing_requests", "Requests running.", |stats| {
            stats.executing.load(Relaxed)
        }),
        ("current_executing_seats", "Seats taken.", |stats| {
            stats.executing_seats.load(Relaxed)
        }),
    ];
    for (name, help, gauge) in gauges {
        head(out, name, "gauge", help);
        for (key, stats) in &stats {
            let _ok = writeln!(out, "{PREFIX}{name}{{{}}} {}", label(key), gauge(stats));
        }
    }
    head(out, "request_wait_duration_seconds", "histogram", "Time in a queue.");
    for (key, stats) in &stats {
        for (ran, waits) in [("true", &stats.waited), ("false", &stats.waited_in_vain)] {
            histogram(
                out,
                "request_wait_duration_seconds",
                &format!("{},execute=\"{ran}\"", label(key)),
                waits,
            );
        }
    }
    head(out, "request_execution_seconds", "histogram", "Time on a seat.");
    for (key, stats) in &stats {
        histogram(out, "request_execution_seconds", &label(key), &stats.ran);
    }
    head(
        out,
        "request_dispatch_no_accommodation_total",
        "counter",
        "How often the next in turn found too few seats.",
    );
    for level in &levels {
        let count = lock(&level.state).no_room;
        let _ok = writeln!(
            out,
            "{PREFIX}request_dispatch_no_accommodation_total{{priority_level={:?}}} {count}",
            level.name
        );
    }
    head(out, "current_r", "gauge", "Virtual time.");
    for level in &levels {
        let r = lock(&level.state).virtual_time();
        let _ok = writeln!(out, "{PREFIX}current_r{{priority_level={:?}}} {r}", level.name);
    }
    type Read = fn(&super::level::Limits) -> f64;
    let limits: [(&str, &str, Read); 9] = [
        ("nominal_limit_seats", "Seats by configuration.", |limits| {
            limits.nominal as f64
        }),
        ("lower_limit_seats", "Seats that are not lent.", |limits| {
            limits.low as f64
        }),
        ("upper_limit_seats", "Seats with all that may be borrowed.", |limits| {
            limits.high as f64
        }),
        ("current_limit_seats", "Seats now.", |limits| limits.current as f64),
        (
            "demand_seats_high_watermark",
            "Largest demand of the last period.",
            |limits| limits.demand.high as f64,
        ),
        ("demand_seats_average", "Average demand of the last period.", |limits| {
            limits.demand.average
        }),
        ("demand_seats_stdev", "Its standard deviation.", |limits| {
            limits.demand.deviation
        }),
        ("demand_seats_smoothed", "Smoothed demand.", |limits| {
            limits.demand.smoothed
        }),
        ("target_seats", "What the division aims at.", |limits| limits.target),
    ];
    for (name, help, read) in limits {
        head(out, name, "gauge", help);
        for level in &levels {
            let value = read(&lock(&level.limits));
            let _ok = writeln!(out, "{PREFIX}{name}{{priority_level={:?}}} {value}", level.name);
        }
    }
}

fn histogram<const N: usize>(out: &mut String, name: &str, labels: &str, histogram: &Histogram<N>) {
    let (rows, count, sum) = histogram.read();
    if count == 0 {
        return;
    }
    for (bound, count) in rows {
        let _ok = writeln!(out, "{PREFIX}{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
    }
    let _ok = writeln!(out, "{PREFIX}{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ok = writeln!(out, "{PREFIX}{name}_sum{{{labels}}} {sum}");
    let _ok = writeln!(out, "{PREFIX}{name}_count{{{labels}}} {count}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned() {
        let rows = vec![head(&["A", "LongerName", "Z"]), head(&["abcdefghij", "x", "y"])];
        assert_eq!(layout(&rows), "A,          LongerName, Z\nabcdefghij, x,          y\n");
        let flow = Flow::new(600);
        let text = page(&flow, "dump_priority_levels", false).unwrap();
        assert!(text.starts_with("PriorityLevelName, ActiveQueues, IsIdle, "), "{text}");
        assert!(
            text.contains("\nexempt,            0,            true,   false,       0, "),
            "{text}"
        );
        assert!(page(&flow, "dump_requests", true).is_some() && page(&flow, "other", false).is_none());
    }

    #[test]
    fn durations_read_as_go_writes_them() {
        for (millis, text) in [(0, "0s"), (5, "5ms"), (25, "25ms"), (1500, "1.5s")] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}
