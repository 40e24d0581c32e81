//! Durations and timestamps as Go writes and reads them.

use jiff::civil::Date;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

const SECOND: i64 = 1_000_000_000;

/// `1h15m30.5s`, `-3ms`, `0`.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, after) = rest.split_at(end);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => {
                let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
                after.split_at(end)
            }
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let mut scale = unit;
        for digit in fraction.bytes() {
            scale /= 10;
            total += i128::from(digit - b'0') * scale;
        }
        if total > i128::from(i64::MAX) + 1 {
            return None;
        }
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// `3600s`, as CEL turns durations into text.
pub(crate) fn format_duration(nanos: i64) -> String {
    let seconds = nanos / SECOND;
    let fraction = (nanos % SECOND).abs();
    let sign = if nanos < 0 && seconds == 0 { "-" } else { "" };
    if fraction == 0 {
        return format!("{seconds}s");
    }
    let digits = format!("{fraction:09}");
    format!("{sign}{seconds}.{}s", digits.trim_end_matches('0'))
}

pub(crate) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    // Go wants the full form; jiff would take more.
    let bytes = text.as_bytes();
    let separated = bytes.get(4) == Some(&b'-') && bytes.get(7) == Some(&b'-');
    let joined =
        matches!(bytes.get(10), Some(b'T' | b't')) && bytes.get(13) == Some(&b':') && bytes.get(16) == Some(&b':');
    if !separated || !joined {
        return None;
    }
    text.parse().ok()
}

pub(crate) fn parse_date(text: &str) -> Option<Timestamp> {
    let date: Date = text.parse().ok()?;
    Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

pub(crate) fn format_timestamp(at: Timestamp) -> String {
    // Go leaves trailing zeros of the fraction away, and so does jiff.
    at.to_string()
}

/// `UTC`, `America/New_York`, `-08:00`.
pub(crate) fn zoned(at: Timestamp, zone: &str) -> Option<Zoned> {
    let zone = match zone {
        "" | "UTC" => TimeZone::UTC,
        other => match offset(other) {
            Some(offset) => TimeZone::fixed(offset),
            None => TimeZone::get(other).ok()?,
        },
    };
    Some(at.to_zoned(zone))
}

fn offset(text: &str) -> Option<Offset> {
    let (hours, minutes) = text.split_once(':')?;
    let negative = hours.starts_with('-');
    let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok()?;
    let minutes: i32 = minutes.parse().ok()?;
    let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
    Offset::from_seconds(if negative { -seconds } else { seconds }).ok()
}

pub(crate) fn add(at: Timestamp, nanos: i64) -> Option<Timestamp> {
    at.checked_add(SignedDuration::from_nanos(nanos)).ok()
}

pub(crate) fn between(from: Timestamp, to: Timestamp) -> Option<i64> {
    i64::try_from(to.as_nanosecond() - from.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, nanos, back) in [
            ("1h", Some(3600 * SECOND), "3600s"),
            ("1h30m", Some(5400 * SECOND), "5400s"),
            ("-1.5s", Some(-1_500_000_000), "-1.5s"),
            ("-0.5s", Some(-500_000_000), "-0.5s"),
            ("10ms", Some(10_000_000), "0.01s"),
            ("0", Some(0), "0s"),
            ("1d", None, ""),
            ("", None, ""),
            ("1", None, ""),
            ("99999999999999999h", None, ""),
        ] {
            assert_eq!(parse_duration(text), nanos, "{text}");
            if let Some(nanos) = nanos {
                assert_eq!(format_duration(nanos), back);
            }
        }
        assert!(parse_timestamp("2023-01-01T00:00:00Z").is_some());
        assert!(parse_timestamp("2023-01-01").is_none());
    }
}
