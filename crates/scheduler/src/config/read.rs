//! Reading a tree field by field: what nobody asked for is unknown, and said with its path.

use std::time::Duration;

use sampan_api::field::{Path, quote};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of one object that were not read yet.
pub struct Fields {
    map: Map<String, Value>,
    pub path: Path,
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wrong(path: &Path, value: &Value, wanted: &str) -> String {
    format!(
        "json: cannot unmarshal {} into Go struct field KubeSchedulerConfiguration.{} of type {wanted}",
        kind(value),
        path.as_str()
    )
}

impl Fields {
    pub fn of(value: Value, path: Path) -> Result<Fields, String> {
        match value {
            Value::Object(map) => Ok(Fields { map, path }),
            Value::Null => Ok(Fields { map: Map::new(), path }),
            other => Err(wrong(&path, &other, "object")),
        }
    }

    pub fn at(&self, name: &str) -> Path {
        self.path.child(name)
    }

    /// Takes a field; null is as good as nothing.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    fn read<T>(&mut self, name: &str, wanted: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, String> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(wrong(&self.at(name), &value, wanted)),
        }
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        self.read(name, "string", |value| value.as_str().map(str::to_owned))
    }

    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, String> {
        self.read(name, "bool", Value::as_bool)
    }

    pub fn int32(&mut self, name: &str) -> Result<Option<i32>, String> {
        self.read(name, "int32", |value| i32::try_from(value.as_i64()?).ok())
    }

    pub fn int64(&mut self, name: &str) -> Result<Option<i64>, String> {
        self.read(name, "int64", Value::as_i64)
    }

    pub fn number(&mut self, name: &str) -> Result<Option<f64>, String> {
        self.read(name, "float32", Value::as_f64)
    }

    pub fn duration(&mut self, name: &str) -> Result<Option<GoDuration>, String> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match GoDuration::parse(&text) {
            Some(duration) => Ok(Some(duration)),
            None => Err(format!("{}: time: invalid duration {}", self.at(name), quote(&text))),
        }
    }

    /// Base64, as Go keeps bytes in JSON.
    pub fn bytes(&mut self, name: &str) -> Result<Option<Vec<u8>>, String> {
        use base64::Engine;
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(&text);
        decoded
            .map(Some)
            .map_err(|error| format!("{}: illegal base64 data: {error}", self.at(name)))
    }

    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, String> {
        let path = self.at(name);
        let items = self.list(name)?;
        let texts = items.into_iter().enumerate().map(|(at, item)| match item {
            Value::String(text) => Ok(text),
            other => Err(wrong(&path.index(at), &other, "string")),
        });
        texts.collect()
    }

    pub fn list(&mut self, name: &str) -> Result<Vec<Value>, String> {
        let path = self.at(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(wrong(&path, &other, "array")),
        }
    }

    /// The objects of a list.
    pub fn objects(&mut self, name: &str) -> Result<Vec<Fields>, String> {
        let path = self.at(name);
        let items = self.list(name)?.into_iter().enumerate();
        items.map(|(at, item)| Fields::of(item, path.index(at))).collect()
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, String> {
        let path = self.at(name);
        self.take(name).map(|value| Fields::of(value, path)).transpose()
    }

    /// A value of one of the API's own types; what the type does not know is unknown.
    pub fn typed<T: DeserializeOwned + Serialize>(
        &mut self,
        name: &str,
        unknown: &mut Vec<String>,
    ) -> Result<Option<T>, String> {
        let path = self.at(name);
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let read: T = serde_json::from_value(value.clone()).map_err(|error| format!("{path}: {error}"))?;
        let kept = serde_json::to_value(&read).map_err(|error| format!("{path}: {error}"))?;
        lost(&value, &kept, &path, unknown);
        Ok(Some(read))
    }

    /// Nothing more is to be read: what is left is unknown.
    pub fn finish(self, unknown: &mut Vec<String>) {
        for name in self.map.keys() {
            unknown.push(format!("unknown field {}", quote(self.path.child(name).as_str())));
        }
    }
}

/// What of a tree its type did not keep.
fn lost(given: &Value, kept: &Value, path: &Path, unknown: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                match kept.get(name) {
                    Some(kept) => lost(value, kept, &path.child(name), unknown),
                    None => unknown.push(format!("unknown field {}", quote(path.child(name).as_str()))),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (at, (given, kept)) in given.iter().zip(kept).enumerate() {
                lost(given, kept, &path.index(at), unknown);
            }
        }
        _ => {}
    }
}

/// A length of time in nanoseconds, as Go writes it: `1m30s`, and negative ones too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

impl GoDuration {
    pub fn seconds(seconds: i64) -> Self {
        GoDuration(seconds * 1_000_000_000)
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (sign, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (-1.0, rest),
            None => (1.0, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(GoDuration(0));
        }
        if rest.is_empty() {
            return None;
        }
        let mut total = 0.0;
        while !rest.is_empty() {
            let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
            let unit_ends = after
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_ends);
            let nanos = match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
            total += number.parse::<f64>().ok()? * nanos;
            rest = after;
        }
        (total < i64::MAX as f64).then_some(GoDuration((sign * total) as i64))
    }

    /// As a length that can be waited for.
    pub fn wait(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write!(f, "{}µs", nanos as f64 / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{}ms", nanos as f64 / 1e6),
            _ => {
                let (minutes, seconds) = (nanos / 60_000_000_000, (nanos % 60_000_000_000) as f64 / 1e9);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => write!(f, "{seconds}s"),
                    (0, minutes) => write!(f, "{minutes}m{seconds}s"),
                    (hours, minutes) => write!(f, "{hours}h{minutes}m{seconds}s"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_go_does() {
        for (text, nanos, printed) in [
            ("15s", 15_000_000_000, "15s"),
            ("1m30s", 90_000_000_000, "1m30s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            ("250ms", 250_000_000, "250ms"),
            ("-2s", -2_000_000_000, "-2s"),
            ("0", 0, "0s"),
            ("5m", 300_000_000_000, "5m0s"),
        ] {
            let duration = GoDuration::parse(text).unwrap();
            assert_eq!((duration.0, duration.to_string().as_str()), (nanos, printed), "{text}");
        }
        for bad in ["", "5", "s", "5 s", "5d", "-", "1e3s", "."] {
            assert_eq!(GoDuration::parse(bad), None, "{bad}");
        }
    }
}
