//! Timestamps and durations.

use jiff::Zoned;

use crate::error::EvalError;
use crate::functions::{Cost, Outcome, Row};
use crate::library::standard::{conversion, timestamp_overflow};
use crate::time;
use crate::value::Value;

const OF_TIME: &[&str] = &["timestamp.() int", "timestamp.(string) int"];
const OF_BOTH: &[&str] = &["timestamp.() int", "timestamp.(string) int", "duration.() int"];
const SECOND: i64 = 1_000_000_000;

pub(crate) const ROWS: &[Row] = &[
    (
        "duration",
        &["(duration) duration", "(int) duration", "(string) duration"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Duration(value)] | [Value::Int(value)] => Ok(Value::Duration(*value)),
            [Value::String(text)] => time::parse_duration(text)
                .map(Value::Duration)
                .ok_or_else(|| conversion("string", "google.protobuf.Duration")),
            _ => Err(EvalError::no_overload()),
        },
    ),
    (
        "timestamp",
        &["(timestamp) timestamp", "(int) timestamp", "(string) timestamp"],
        Cost::Fixed(1),
        |_, args| match args {
            [Value::Timestamp(at)] => Ok(Value::Timestamp(*at)),
            [Value::Int(seconds)] => jiff::Timestamp::from_second(*seconds)
                .map(Value::Timestamp)
                .map_err(|_| timestamp_overflow()),
            [Value::String(text)] => time::parse_timestamp(text)
                .map(Value::Timestamp)
                .ok_or_else(|| conversion("string", "google.protobuf.Timestamp")),
            _ => Err(EvalError::no_overload()),
        },
    ),
    ("getFullYear", OF_TIME, Cost::Fixed(1), |_, args| {
        part(args, |at| at.year().into(), |_| None)
    }),
    ("getMonth", OF_TIME, Cost::Fixed(1), |_, args| {
        part(args, |at| i64::from(at.month()) - 1, |_| None)
    }),
    ("getDayOfYear", OF_TIME, Cost::Fixed(1), |_, args| {
        part(args, |at| i64::from(at.day_of_year()) - 1, |_| None)
    }),
    ("getDayOfMonth", OF_TIME, Cost::Fixed(1), |_, args| {
        part(args, |at| i64::from(at.day()) - 1, |_| None)
    }),
    ("getDate", OF_TIME, Cost::Fixed(1), |_, args| {
        part(args, |at| at.day().into(), |_| None)
    }),
    ("getDayOfWeek", OF_TIME, Cost::Fixed(1), |_, args| {
        part(args, |at| at.weekday().to_sunday_zero_offset().into(), |_| None)
    }),
    ("getHours", OF_BOTH, Cost::Fixed(1), |_, args| {
        part(args, |at| at.hour().into(), |nanos| Some(nanos / SECOND / 3600))
    }),
    ("getMinutes", OF_BOTH, Cost::Fixed(1), |_, args| {
        part(args, |at| at.minute().into(), |nanos| Some(nanos / SECOND / 60))
    }),
    ("getSeconds", OF_BOTH, Cost::Fixed(1), |_, args| {
        part(args, |at| at.second().into(), |nanos| Some(nanos / SECOND))
    }),
    ("getMilliseconds", OF_BOTH, Cost::Fixed(1), |_, args| {
        part(args, |at| at.millisecond().into(), |nanos| Some(nanos / 1_000_000))
    }),
];

fn part<'a>(args: &[Value<'a>], of_time: impl Fn(&Zoned) -> i64, of_span: impl Fn(i64) -> Option<i64>) -> Outcome<'a> {
    let zone = match args.get(1) {
        Some(Value::String(zone)) => &**zone,
        Some(_) => return Err(EvalError::no_overload()),
        None => "UTC",
    };
    match args.first() {
        Some(Value::Timestamp(at)) => match time::zoned(*at, zone) {
            Some(at) => Ok(Value::Int(of_time(&at))),
            None => Err(EvalError::Failed(format!("unknown time zone {zone}"))),
        },
        Some(Value::Duration(nanos)) => of_span(*nanos).map(Value::Int).ok_or_else(EvalError::no_overload),
        _ => Err(EvalError::no_overload()),
    }
}
