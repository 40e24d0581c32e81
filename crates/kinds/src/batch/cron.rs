//! Cron schedules: what a CronJob's `schedule` may say.
//!
//! Five fields (minute, hour, day of month, month, day of week), each `*`, `?`, a value, a range, a step or a list of
//! these, with names for months and days; or one of `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`,
//! `@midnight`, `@hourly`, `@every DURATION`. Worded as the parser upstream uses words its errors.

struct Field {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const FIELDS: [Field; 5] = [
    Field {
        low: 0,
        high: 59,
        names: &[],
    },
    Field {
        low: 0,
        high: 23,
        names: &[],
    },
    Field {
        low: 1,
        high: 31,
        names: &[],
    },
    Field {
        low: 1,
        high: 12,
        names: MONTHS,
    },
    Field {
        low: 0,
        high: 6,
        names: DAYS,
    },
];

/// What is wrong with a schedule, if anything. A leading `TZ=…` or `CRON_TZ=…` is passed over.
pub(super) fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".to_owned());
    }
    let plain = match schedule.strip_prefix("TZ=").or(schedule.strip_prefix("CRON_TZ=")) {
        Some(rest) => rest.split_once(' ').map_or("", |(_, plain)| plain.trim()),
        None => schedule,
    };
    if plain.starts_with('@') {
        return descriptor(plain);
    }
    let fields: Vec<_> = plain.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    fields.iter().zip(&FIELDS).try_for_each(|(text, field)| {
        text.split(',')
            .filter(|part| !part.is_empty())
            .try_for_each(|part| range(part, field))
    })
}

fn descriptor(text: &str) -> Result<(), String> {
    const KNOWN: [&str; 7] = [
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    if KNOWN.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        Some(duration) if is_duration(duration) => Ok(()),
        Some(duration) => Err(format!(
            "failed to parse duration {text}: time: invalid duration \"{duration}\""
        )),
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

/// A duration as Go writes it: numbers with units.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        if digits.len() == rest.len() {
            return false;
        }
        let unit = ["ns", "us", "µs", "ms", "h", "m", "s"]
            .into_iter()
            .find_map(|unit| digits.strip_prefix(unit));
        match unit {
            Some(after) => rest = after,
            None => return false,
        }
    }
    true
}

fn range(text: &str, field: &Field) -> Result<(), String> {
    let parts: Vec<_> = text.split('/').collect();
    let bounds: Vec<_> = parts.first().map_or_else(Vec::new, |part| part.split('-').collect());
    let single = bounds.len() == 1;
    let (low, mut high) = match bounds.as_slice() {
        ["*" | "?"] => (field.low, field.high),
        [one] => {
            let value = number(one, field)?;
            (value, value)
        }
        [from, to] => (number(from, field)?, number(to, field)?),
        _ => return Err(format!("too many hyphens: {text}")),
    };
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => {
            let step = whole(step)?;
            if single {
                high = field.high;
            }
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    if low < field.low {
        return Err(format!(
            "beginning of range ({low}) below minimum ({}): {text}",
            field.low
        ));
    }
    if high > field.high {
        return Err(format!("end of range ({high}) above maximum ({}): {text}", field.high));
    }
    if low > high {
        return Err(format!(
            "beginning of range ({low}) beyond end of range ({high}): {text}"
        ));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(())
}

fn number(text: &str, field: &Field) -> Result<u32, String> {
    let lower = text.to_lowercase();
    match field.names.iter().position(|name| *name == lower) {
        Some(index) => Ok(field.low + u32::try_from(index).unwrap_or_default()),
        None => whole(text),
    }
}

fn whole(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        if text.strip_prefix('-').is_some_and(|rest| rest.parse::<u32>().is_ok()) {
            format!("negative number ({text}) not allowed: {text}")
        } else {
            format!("failed to parse int from {text}: strconv.Atoi: parsing \"{text}\": invalid syntax")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn schedules() {
        for good in [
            "* * * * *",
            "*/5 0-6 1,15 jan-mar MON",
            "0 0 ? * 6",
            "@hourly",
            "@every 1h30m",
            "TZ=UTC 0 0 * * *",
            "1/2 * * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            (
                "x * * * *",
                "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax",
            ),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[-*/?,@a-z0-9 ]{0,40}") {
            let _ = check(&text).is_ok();
        }

        #[test]
        fn values_within_bounds_are_good(minute in 0u32..60, hour in 0u32..24, day in 1u32..32, month in 1u32..13, weekday in 0u32..7) {
            prop_assert_eq!(check(&format!("{minute} {hour} {day} {month} {weekday}")), Ok(()));
        }
    }
}
