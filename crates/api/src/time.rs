//! Times and durations as Go's Kubernetes types write them.
//!
//! `Time` is RFC 3339 in UTC without fractions (a fraction is accepted and dropped); `MicroTime` always has six
//! fractional digits, and demands them when parsing. Errors are worded as Go's `time.Parse` words them.

use jiff::{Timestamp, tz::Offset};
use thiserror::Error;

const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
const MICROS: &str = "2006-01-02T15:04:05.000000Z07:00";

/// The text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("parsing time {} as {}: {why}", crate::field::quote(.text), crate::field::quote(.layout))]
pub struct TimeError {
    text: String,
    layout: &'static str,
    why: String,
}

/// Parses a `metav1.Time`.
pub fn parse(text: &str) -> Result<Timestamp, TimeError> {
    parse_layout(text, SECONDS, None)
}

/// Parses a `metav1.MicroTime`: exactly six fractional digits.
pub fn parse_micro(text: &str) -> Result<Timestamp, TimeError> {
    parse_layout(text, MICROS, Some(6))
}

/// `2006-01-02T15:04:05Z`
pub fn format(time: Timestamp) -> String {
    let civil = Offset::UTC.to_datetime(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        civil.year(),
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second()
    )
}

/// `2006-01-02T15:04:05.000000Z`
pub fn format_micro(time: Timestamp) -> String {
    let civil = Offset::UTC.to_datetime(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        civil.year(),
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second(),
        civil.subsec_nanosecond() / 1000
    )
}

/// Now, as `metav1.Time` prints it.
pub fn now() -> String {
    format(Timestamp::now())
}

/// Now, as `metav1.MicroTime` prints it.
pub fn now_micro() -> String {
    format_micro(Timestamp::now())
}

/// A cursor over the text that fails the way Go's parser does.
struct Cursor<'a> {
    whole: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl<'a> Cursor<'a> {
    fn fail(&self, why: String) -> TimeError {
        TimeError {
            text: self.whole.to_owned(),
            layout: self.layout,
            why,
        }
    }
    fn cannot(&self, element: &str) -> TimeError {
        self.fail(format!(
            "cannot parse {} as {}",
            crate::field::quote(self.rest),
            crate::field::quote(element)
        ))
    }
    fn out_of_range(&self, what: &str) -> TimeError {
        TimeError {
            text: self.whole.to_owned(),
            layout: self.layout,
            why: format!("{what} out of range"),
        }
    }
    fn literal(&mut self, ch: char) -> Result<(), TimeError> {
        match self.rest.strip_prefix(ch) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(self.cannot(ch.encode_utf8(&mut [0; 4]))),
        }
    }
    fn digits(&mut self, count: usize, element: &str) -> Result<i32, TimeError> {
        let digits = self
            .rest
            .get(..count)
            .filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
        let (Some(digits), Some(rest)) = (digits, self.rest.get(count..)) else {
            return Err(self.cannot(element));
        };
        let number = digits.parse().map_err(|_| self.cannot(element))?;
        self.rest = rest;
        Ok(number)
    }
}

fn parse_layout(text: &str, layout: &'static str, fraction: Option<usize>) -> Result<Timestamp, TimeError> {
    let mut at = Cursor {
        whole: text,
        rest: text,
        layout,
    };
    let year = at.digits(4, "2006")?;
    at.literal('-')?;
    let month = at.digits(2, "01")?;
    if !(1..=12).contains(&month) {
        return Err(at.out_of_range("month"));
    }
    at.literal('-')?;
    let day = at.digits(2, "02")?;
    at.literal('T')?;
    let hour = at.digits(2, "15")?;
    if hour > 23 {
        return Err(at.out_of_range("hour"));
    }
    at.literal(':')?;
    let minute = at.digits(2, "04")?;
    if minute > 59 {
        return Err(at.out_of_range("minute"));
    }
    at.literal(':')?;
    let second = at.digits(2, "05")?;
    if second > 59 {
        return Err(at.out_of_range("second"));
    }
    let nanos = match fraction {
        Some(count) => {
            let element = ".000000";
            if !at.rest.starts_with('.') {
                return Err(at.cannot(element));
            }
            at.rest = &at.rest[1..];
            at.digits(count, element)? * 1000
        }
        None => optional_fraction(&mut at),
    };
    let offset = zone(&mut at)?;
    if !at.rest.is_empty() {
        return Err(at.fail(format!("extra text: {}", crate::field::quote(at.rest))));
    }
    let narrow = |number: i32| i8::try_from(number).unwrap_or(i8::MAX);
    let year = i16::try_from(year).map_err(|_| at.out_of_range("year"))?;
    let civil = jiff::civil::DateTime::new(
        year,
        narrow(month),
        narrow(day),
        narrow(hour),
        narrow(minute),
        narrow(second),
        nanos,
    )
    .map_err(|_| at.out_of_range("day"))?;
    offset.to_timestamp(civil).map_err(|_| at.out_of_range("time"))
}

/// Any number of fractional digits, of which nine count.
fn optional_fraction(at: &mut Cursor<'_>) -> i32 {
    let Some(tail) = at.rest.strip_prefix(['.', ',']) else {
        return 0;
    };
    let length = tail.bytes().take_while(u8::is_ascii_digit).count();
    if length == 0 {
        return 0;
    }
    let nanos = tail
        .bytes()
        .take(length)
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |sum, digit| sum * 10 + i32::from(digit - b'0'));
    at.rest = &tail[length..];
    nanos
}

fn zone(at: &mut Cursor<'_>) -> Result<Offset, TimeError> {
    if let Some(rest) = at.rest.strip_prefix('Z') {
        at.rest = rest;
        return Ok(Offset::UTC);
    }
    let bytes = at.rest.as_bytes();
    let two = |from: usize| -> Option<i32> {
        at.rest
            .get(from..from + 2)
            .filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?
            .parse()
            .ok()
    };
    let sign = match bytes.first() {
        Some(b'+') => 1,
        Some(b'-') => -1,
        _ => return Err(at.cannot("Z07:00")),
    };
    let (Some(hours), Some(b':'), Some(minutes)) = (two(1), bytes.get(3), two(4)) else {
        return Err(at.cannot("Z07:00"));
    };
    if hours > 24 {
        return Err(at.out_of_range("time zone offset hour"));
    }
    if minutes > 60 {
        return Err(at.out_of_range("time zone offset minute"));
    }
    at.rest = &at.rest[6..];
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).map_err(|_| at.out_of_range("time zone offset"))
}

/// A span as kubectl's Age columns print it: two or three significant figures, such as `5d3h`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let with_rest = |whole: i64, unit: char, rest: i64, small: char| {
        if rest == 0 {
            format!("{whole}{unit}")
        } else {
            format!("{whole}{unit}{rest}{small}")
        }
    };
    match () {
        // Clocks of two machines may differ a little; that is still "now".
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => with_rest(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => with_rest(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => with_rest(hours / 24, 'd', hours % 24, 'h'),
        () if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        () if hours < 24 * 365 * 8 => with_rest(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        () => format!("{}y", hours / 24 / 365),
    }
}

/// The age of something that happened at `time` (a `metav1.Time` or `MicroTime`), for Table cells.
pub fn age(time: Option<&str>, now: Timestamp) -> String {
    match time.map(parse) {
        None | Some(Err(_)) => "<unknown>".to_owned(),
        Some(Ok(time)) => human_duration(now.duration_since(time).as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_go_prints_them() {
        for (text, seconds, micros) in [
            (
                "2026-11-22T17:01:06Z",
                "2026-11-22T17:01:06Z",
                "2026-11-22T17:01:06.000000Z",
            ),
            (
                "2026-11-22T17:01:06.1234567Z",
                "2026-11-22T17:01:06Z",
                "2026-11-22T17:01:06.123456Z",
            ),
            (
                "2026-11-22T17:01:06+02:00",
                "2026-11-22T15:01:06Z",
                "2026-11-22T15:01:06.000000Z",
            ),
            (
                "0001-01-01T00:00:00Z",
                "0001-01-01T00:00:00Z",
                "0001-01-01T00:00:00.000000Z",
            ),
        ] {
            let time = parse(text).unwrap();
            assert_eq!(format(time), seconds);
            assert_eq!(format_micro(time), micros);
            assert_eq!(parse_micro(micros).unwrap().as_microsecond(), time.as_microsecond());
        }
    }

    #[test]
    fn bad_times_are_refused_as_go_refuses_them() {
        for (text, why) in [
            ("", r#"cannot parse "" as "2006""#),
            ("tomorrow", r#"cannot parse "tomorrow" as "2006""#),
            ("2026-13-01T00:00:00Z", "month out of range"),
            ("2026-02-30T00:00:00Z", "day out of range"),
            ("2026-02-03 00:00:00Z", r#"cannot parse " 00:00:00Z" as "T""#),
            ("2026-02-03T24:00:00Z", "hour out of range"),
            ("2026-02-03T00:00:00", r#"cannot parse "" as "Z07:00""#),
            ("2026-02-03T00:00:00Zx", r#"extra text: "x""#),
            ("2026-02-03T00:00:00é", r#"cannot parse "é" as "Z07:00""#),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.why, why, "{text}");
        }
        assert_eq!(
            parse("x").unwrap_err().to_string(),
            r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#
        );
        assert!(parse_micro("2026-11-22T17:01:06Z").is_err());
    }

    #[test]
    fn ages_read_as_kubectl_shows_them() {
        let (m, h, d) = (60, 3600, 86400);
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (130, "2m10s"),
            (10 * m, "10m"),
            (179 * m + 59, "179m"),
            (3 * h, "3h"),
            (3 * h + m, "3h1m"),
            (8 * h + m, "8h"),
            (47 * h, "47h"),
            (48 * h, "2d"),
            (5 * d + 3 * h, "5d3h"),
            (8 * d, "8d"),
            (729 * d, "729d"),
            (730 * d, "2y"),
            (731 * d, "2y1d"),
            (3000 * d, "8y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_typed_can_panic(text in "\\PC{0,40}") {
            if let Ok(time) = parse(&text) {
                proptest::prop_assert_eq!(parse(&format(time)).unwrap().as_second(), time.as_second());
            }
        }
        #[test]
        fn near_times_never_panic(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,12})?(Z|[+-][0-9]{2}:[0-9]{2})") {
            if let Ok(time) = parse(&text) {
                format_micro(time);
            }
        }
    }
}
