//! Cron schedules: five fields, names, the usual shorthands, in a time zone. Pure.
//!
//! As in classic cron, when both the day of the month and the day of the week are restricted a day matches by either.

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};

/// When something is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    Fields(Box<Fields>),
    /// `@every 90m`
    Every(SignedDuration),
}

/// One bit per allowed value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    any_day: bool,
    any_weekday: bool,
}

/// What is wrong with a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{schedule:?} is not a schedule: {problem}")]
pub(super) struct ScheduleError {
    schedule: String,
    problem: String,
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// How far ahead a date is looked for: February 29 comes at least every eight years.
const HORIZON_DAYS: i32 = 8 * 366;
/// The most hours that a clock change repeats.
const REPEATED: i64 = 3;

impl Schedule {
    pub(super) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let fail = |problem: String| ScheduleError {
            schedule: text.to_owned(),
            problem,
        };
        let fields = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => match other.strip_prefix("@every ") {
                Some(interval) => return every(interval).map(Schedule::Every).map_err(fail),
                None => other,
            },
        };
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(fail(format!("expected 5 fields, found {}", parts.len())));
        };
        let fields = Fields {
            minutes: field(minute, 0, 59, &[]).map_err(fail)?,
            hours: field(hour, 0, 23, &[]).map_err(fail)?,
            days: field(day, 1, 31, &[]).map_err(fail)?,
            months: field(month, 1, 12, &MONTHS).map_err(fail)?,
            weekdays: field(weekday, 0, 6, &WEEKDAYS).map_err(fail)?,
            any_day: day.starts_with(['*', '?']),
            any_weekday: weekday.starts_with(['*', '?']),
        };
        Ok(Schedule::Fields(Box::new(fields)))
    }

    /// The first time after `after`. `None` if there is none (30 February).
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Schedule::Every(interval) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*interval).ok()
            }
            Schedule::Fields(fields) => fields.next(after, zone),
        }
    }

    /// The latest time in (`since`, `until`], and whether very many have passed since.
    pub(super) fn latest(&self, since: Timestamp, until: Timestamp, zone: &TimeZone) -> (Option<Timestamp>, bool) {
        let mut found = None;
        let mut next = self.next(since, zone);
        let mut missed = 0_u32;
        while let Some(time) = next.filter(|time| *time <= until) {
            found = Some(time);
            missed += 1;
            if missed > 100 {
                // Long away: jump close to the end instead of walking there.
                let recent = self.latest_near(until, zone).or(found);
                return (recent, true);
            }
            next = self.next(time, zone);
        }
        (found, false)
    }

    /// The latest time up to `until`, looking back in growing steps.
    fn latest_near(&self, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut back = SignedDuration::from_hours(1);
        for _ in 0..18 {
            let from = until.checked_sub(back).ok()?;
            let mut next = self.next(from, zone);
            let mut found = None;
            while let Some(time) = next.filter(|time| *time <= until) {
                found = Some(time);
                next = self.next(time, zone);
            }
            if found.is_some() {
                return found;
            }
            back = back.checked_mul(2)?;
        }
        None
    }
}

impl Fields {
    /// Times of day that a clock change skips do not come; those that it repeats come twice.
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        // What comes once more may have been before `after` on the clock.
        let start = zone.to_datetime(after).checked_sub(REPEATED.hours()).ok()?;
        let mut date = start.date();
        let mut best: Option<Timestamp> = None;
        for offset in 0..HORIZON_DAYS {
            if self.matches(date) {
                for hour in ones(self.hours, 0, 23) {
                    if offset == 0 && hour < start.hour() {
                        continue;
                    }
                    for minute in ones(self.minutes, 0, 59) {
                        let time = DateTime::new(date.year(), date.month(), date.day(), hour, minute, 0, 0).ok()?;
                        let (first, second) = instants(time, zone);
                        if best.is_some() && first.or(second) > best {
                            return best;
                        }
                        for instant in [first, second].into_iter().flatten() {
                            if instant > after && best.is_none_or(|best| instant < best) {
                                best = Some(instant);
                            }
                        }
                    }
                }
            }
            if best.is_some() {
                return best;
            }
            date = date.tomorrow().ok()?;
        }
        best
    }

    fn matches(&self, date: Date) -> bool {
        let has = |bits: u64, value: i8| bits & (1 << value) != 0;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month())
            && if self.any_day || self.any_weekday {
                day && weekday
            } else {
                day || weekday
            }
    }
}

/// When the clock shows `time`: never in a gap, twice in a fold.
fn instants(time: DateTime, zone: &TimeZone) -> (Option<Timestamp>, Option<Timestamp>) {
    let at = |offset: Offset| offset.to_timestamp(time).ok();
    match zone.to_ambiguous_timestamp(time).offset() {
        AmbiguousOffset::Unambiguous { offset } => (at(offset), None),
        AmbiguousOffset::Gap { .. } => (None, None),
        AmbiguousOffset::Fold { before, after } => (at(before), at(after)),
    }
}

fn ones(bits: u64, first: i8, last: i8) -> impl Iterator<Item = i8> {
    (first..=last).filter(move |value| bits & (1 << value) != 0)
}

/// One field: a list of `*`, `n`, `a-b`, each with an optional `/step`.
fn field(text: &str, first: u32, last: u32, names: &[&str]) -> Result<u64, String> {
    let number = |text: &str| -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        if let Some(place) = names.iter().position(|name| *name == lower) {
            let place = u32::try_from(place).map_err(|error| error.to_string())?;
            return Ok(place + first);
        }
        text.parse().map_err(|_| format!("{text:?} is not a number"))
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        let (from, to) = match range {
            "*" | "?" => (first, last),
            _ => match range.split_once('-') {
                Some((from, to)) => (number(from)?, number(to)?),
                None => {
                    let only = number(range)?;
                    (only, if step.is_some() { last } else { only })
                }
            },
        };
        if from < first || to > last || from > to {
            return Err(format!("{range:?} is outside {first}-{last}"));
        }
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err("a step of 0".into());
        }
        let mut value = from;
        while value <= to {
            bits |= 1_u64 << value;
            value += step;
        }
    }
    Ok(bits)
}

/// A Go duration of whole seconds, at least one: `1h30m`, `90s`.
fn every(text: &str) -> Result<SignedDuration, String> {
    let mut seconds = 0_i64;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: i64 = number.parse().map_err(|_| format!("{text:?} is not a duration"))?;
        let (unit, after) = match tail.chars().next() {
            Some('h') => (3600, &tail[1..]),
            Some('m') if !tail.starts_with("ms") => (60, &tail[1..]),
            Some('s') => (1, &tail[1..]),
            _ => return Err(format!("{text:?} is not a duration in h, m and s")),
        };
        seconds = number
            .checked_mul(unit)
            .and_then(|part| seconds.checked_add(part))
            .ok_or_else(|| format!("{text:?} is too long"))?;
        rest = after;
    }
    Ok(SignedDuration::from_secs(seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule).unwrap();
        let after: Timestamp = after.parse().unwrap();
        schedule
            .next(after, &TimeZone::UTC)
            .map_or("never".into(), |time| time.to_string())
    }

    #[test]
    fn next_times() {
        let cases = [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2026-01-01T00:00:59.5Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:46:00Z", "2026-01-01T01:00:00Z"),
            ("5/20 3 * * *", "2026-01-01T03:05:00Z", "2026-01-01T03:25:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 30 2 *", "2026-01-01T00:00:00Z", "never"),
            ("0 9 * * MON-FRI", "2026-01-02T09:00:00Z", "2026-01-05T09:00:00Z"),
            ("0 0 13 * FRI", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 1 jan,jul ?", "2026-01-01T00:00:00Z", "2026-07-01T00:00:00Z"),
            ("@hourly", "2026-12-31T23:30:00Z", "2027-01-01T00:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:00Z", "2026-01-01T01:30:00Z"),
        ];
        for (schedule, after, expected) in cases {
            assert_eq!(next(schedule, after), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "x * * * *",
            "* * * * 7",
            "@every x",
            "@never",
        ] {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_latest_missed_time() {
        let schedule = Schedule::parse("*/5 * * * *").unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let latest = |since: &str| schedule.latest(at(since), at("2026-01-10T00:12:00Z"), &TimeZone::UTC);
        let newest = Some(at("2026-01-10T00:10:00Z"));
        assert_eq!(latest("2026-01-10T00:03:00Z"), (newest, false));
        assert_eq!(latest("2026-01-10T00:10:00Z"), (None, false));
        assert_eq!(latest("2026-01-01T00:00:00Z"), (newest, true));
    }

    #[test]
    fn clock_changes() {
        // Central Europe, as a rule: in 2026 summer time begins on March 29 at 2:00.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let schedule = Schedule::parse("30 2 * * *").unwrap();
        let after: Timestamp = "2026-03-28T12:00:00Z".parse().unwrap();
        let next = schedule.next(after, &zone).unwrap();
        assert_eq!(
            next.to_string(),
            "2026-03-30T00:30:00Z",
            "2:30 does not exist on the 29th"
        );
        // On October 25 the hour from 2:00 comes twice.
        let times = |schedule: &str, after: &str, count: usize| -> Vec<String> {
            let schedule = Schedule::parse(schedule).unwrap();
            let mut at: Timestamp = after.parse().unwrap();
            (0..count)
                .map(|_| {
                    at = schedule.next(at, &zone).unwrap();
                    at.strftime("%dT%H:%M").to_string()
                })
                .collect()
        };
        let after = "2026-10-24T23:50:00Z";
        assert_eq!(times("30 2 * * *", after, 3), ["25T00:30", "25T01:30", "26T01:30"]);
        assert_eq!(
            times("*/30 * * * *", after, 5),
            ["25T00:00", "25T00:30", "25T01:00", "25T01:30", "25T02:00"]
        );
    }
}
