//! Measures in rows, targets in columns, ratios to the first target.

use serde_json::{Map, Value, json};

/// One figure: (name, value, unit). Lower or higher being better is for the reader.
pub type Measure = (String, f64, &'static str);

pub struct Report {
    targets: Vec<String>,
    /// (name, unit) in the order first seen, with every round's values per target.
    rows: Vec<(String, &'static str, Vec<Vec<f64>>)>,
}

impl Report {
    pub fn new(targets: Vec<String>) -> Self {
        Report {
            targets,
            rows: Vec::new(),
        }
    }

    pub fn add(&mut self, target: &str, measures: Vec<Measure>) {
        let Some(column) = self.targets.iter().position(|name| name == target) else {
            return;
        };
        for (name, value, unit) in measures {
            let row = match self.rows.iter().position(|row| row.0 == name) {
                Some(row) => row,
                None => {
                    self.rows.push((name, unit, vec![Vec::new(); self.targets.len()]));
                    self.rows.len() - 1
                }
            };
            self.rows[row].2[column].push(value);
        }
    }

    pub fn table(&self) -> String {
        let mut lines = vec![vec!["MEASURE".to_owned(), "UNIT".to_owned()]];
        for (column, target) in self.targets.iter().enumerate() {
            lines[0].push(target.to_uppercase());
            if column > 0 {
                lines[0].push(format!("{}/{}", target.to_uppercase(), self.targets[0].to_uppercase()));
            }
        }
        for (name, unit, values) in &self.rows {
            let mut line = vec![name.clone(), (*unit).to_owned()];
            let reference = median(&values[0]);
            for (column, values) in values.iter().enumerate() {
                line.push(spread(values));
                if column > 0 {
                    line.push(match (median(values), reference) {
                        (Some(value), Some(reference)) if reference != 0.0 => format!("{:.2}", value / reference),
                        _ => "-".into(),
                    });
                }
            }
            lines.push(line);
        }
        let widths: Vec<usize> = (0..lines[0].len())
            .map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0))
            .collect();
        let padded = lines.iter().map(|line| {
            let cells: Vec<_> = line
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            cells.join("   ").trim_end().to_owned()
        });
        padded.collect::<Vec<_>>().join("\n")
    }

    pub fn json(&self) -> String {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(name, unit, values)| {
                let targets: Map<String, Value> = self
                    .targets
                    .iter()
                    .zip(values)
                    .map(|(target, values)| (target.clone(), json!(values)))
                    .collect();
                json!({"measure": name, "unit": unit, "values": targets})
            })
            .collect();
        Value::Array(rows).to_string()
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The median, and the extremes when there was more than one round.
fn spread(values: &[f64]) -> String {
    let Some(middle) = median(values) else {
        return "-".into();
    };
    let (least, most) = (
        values.iter().copied().fold(f64::MAX, f64::min),
        values.iter().copied().fold(f64::MIN, f64::max),
    );
    if values.len() > 1 {
        format!("{} ({}..{})", shown(middle), shown(least), shown(most))
    } else {
        shown(middle)
    }
}

fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Percentiles of latencies, as measures in milliseconds.
pub fn latencies(name: &str, seconds: &mut [f64]) -> Vec<Measure> {
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = ((seconds.len() as f64 - 1.0) * share).round().max(0.0) as usize;
        seconds.get(index).copied().unwrap_or(0.0) * 1000.0
    };
    [("p50", 0.5), ("p99", 0.99), ("max", 1.0)]
        .map(|(label, share)| (format!("{name} {label}"), at(share), "ms"))
        .into()
}

/// What the servers spent between two readings, and their memory.
pub fn cost(
    target: &crate::Target,
    before: crate::meter::Reading,
    per: Option<(&str, f64)>,
) -> crate::Result<Vec<Measure>> {
    if target.meter.is_blind() {
        return Ok(Vec::new());
    }
    let after = target.meter.read()?;
    let spent = after.cpu_seconds - before.cpu_seconds;
    let mut measures = vec![("server CPU".to_owned(), spent, "s")];
    if let Some((what, count)) = per {
        measures.push((format!("server CPU per {what}"), spent / count.max(1.0) * 1e6, "us"));
    }
    measures.push(("server memory".to_owned(), after.resident_mib, "MiB"));
    measures.push(("server memory peak".to_owned(), after.peak_mib, "MiB"));
    Ok(measures)
}
