//! Resource quantities (`100m`, `1.5Gi`, `12e6`), exactly as `resource.Quantity` reads, computes and prints them.
//!
//! A quantity is an exact decimal, never finer than a nano: what is finer is rounded up, away from zero. It keeps its
//! format (decimal or binary suffixes, or an exponent) and prints canonically: the largest suffix that leaves an
//! integer. A text that upstream's fast path considers canonical already is printed back as it was written.
//!
//! Differences from upstream, on purpose: numbers hold 38 significant digits (upstream has no limit); decimal values
//! beyond exa print with `E` (upstream drops the suffix); [`Quantity::value`] saturates where upstream wraps or
//! answers 0.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;
use thiserror::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// An exact amount: `unscaled × 10^scale`.
#[derive(Clone, Debug)]
pub struct Quantity {
    unscaled: i128,
    scale: i32,
    format: Format,
    /// The text as written, when it is printed back unchanged.
    written: Option<Box<str>>,
}

const NANO: i32 = -9;
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

enum Suffix {
    Decimal(i32, Format),
    Binary(u32),
}

fn suffix(text: &str) -> Option<Suffix> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == text) {
        return Some(Suffix::Decimal(*exponent, Format::DecimalSi));
    }
    if let Some((_, exponent)) = BINARY.iter().find(|(name, _)| *name == text) {
        return Some(Suffix::Binary(*exponent));
    }
    let digits = text.strip_prefix(['e', 'E'])?;
    Some(Suffix::Decimal(digits.parse().ok()?, Format::DecimalExponent))
}

/// The parts of a quantity's text.
struct Parts<'a> {
    negative: bool,
    /// Integer digits without leading zeros; `0` when there are none.
    integer: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    fn digits(text: &str) -> (&str, &str) {
        text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
    }
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (integer, rest) = digits(unsigned);
    let integer = integer.trim_start_matches('0');
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => digits(rest),
        None => ("", rest),
    };
    let tail = suffix.trim_start_matches(|ch| "eEinumkKMGTP".contains(ch));
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if !tail.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    let integer = if integer.is_empty() { "0" } else { integer };
    Ok(Parts {
        negative,
        integer,
        fraction,
        suffix,
    })
}

fn pow10(exponent: u32) -> Option<i128> {
    10i128.checked_pow(exponent)
}

/// `value / divisor`, away from zero; and whether that was exact.
fn divide_up(value: i128, divisor: i128) -> (i128, bool) {
    let (quotient, remainder) = (value / divisor, value % divisor);
    match remainder.signum() {
        0 => (quotient, true),
        sign => (quotient + sign, false),
    }
}

/// Divides by `10^drop`, away from zero; and whether that was exact.
fn drop_digits(value: i128, drop: u32) -> (i128, bool) {
    match pow10(drop) {
        Some(divisor) => divide_up(value, divisor),
        None => (value.signum(), value == 0),
    }
}

impl Quantity {
    pub fn zero() -> Self {
        Self::new(0, Format::DecimalSi)
    }
    pub fn new(value: i64, format: Format) -> Self {
        Self::scaled(value.into(), 0, format)
    }
    pub fn milli(value: i64, format: Format) -> Self {
        Self::scaled(value.into(), -3, format)
    }
    fn scaled(unscaled: i128, scale: i32, format: Format) -> Self {
        Quantity {
            unscaled,
            scale,
            format,
            written: None,
        }
    }

    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let parts = split(text)?;
        let suffix = suffix(parts.suffix).ok_or(QuantityError::Suffix)?;
        let mut quantity = match suffix {
            Suffix::Decimal(exponent, format) => parts.decimal(exponent, format),
            Suffix::Binary(exponent) => parts.binary(exponent),
        };
        if parts.negative {
            quantity.unscaled = -quantity.unscaled;
        }
        if text == "0" || parts.reads_as_canonical(&suffix) {
            quantity.written = Some(text.into());
        }
        Ok(quantity)
    }

    /// A quantity as it appears in an object: a string or a bare number; null is zero.
    pub fn from_value(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::Null => Ok(Self::zero()),
            Value::String(text) => Self::parse(text.trim()),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(QuantityError::Format),
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }
    pub fn is_zero(&self) -> bool {
        self.unscaled == 0
    }
    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.unscaled.signum() as i32
    }
    pub fn is_negative(&self) -> bool {
        self.unscaled < 0
    }

    /// In whole units, rounded up, away from zero.
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }
    /// In thousandths, rounded up, away from zero.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(-3)
    }
    fn scaled_value(&self, scale: i32) -> i64 {
        let wide = match i64::from(self.scale) - i64::from(scale) {
            0 => self.unscaled,
            up @ 1.. => u32::try_from(up)
                .ok()
                .and_then(pow10)
                .and_then(|factor| self.unscaled.checked_mul(factor))
                .unwrap_or(if self.unscaled == 0 {
                    0
                } else {
                    i128::MAX * self.unscaled.signum()
                }),
            down => drop_digits(self.unscaled, u32::try_from(-down).unwrap_or(u32::MAX)).0,
        };
        i64::try_from(wide).unwrap_or(if wide < 0 { i64::MIN } else { i64::MAX })
    }
    pub fn as_f64(&self) -> f64 {
        self.unscaled as f64 * 10f64.powi(self.scale)
    }

    fn add_signed(&self, other: &Self, sign: i128) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        let (a, b) = (self.trimmed(), other.trimmed());
        let (a, b) = if a.unscaled == 0 {
            (Self::scaled(0, b.scale, format), b)
        } else {
            (a, b)
        };
        let b = if b.unscaled == 0 {
            Self::scaled(0, a.scale, format)
        } else {
            b
        };
        let scale = a.scale.min(b.scale);
        let lift = |q: &Self| {
            u32::try_from(i64::from(q.scale) - i64::from(scale))
                .ok()
                .and_then(pow10)
                .and_then(|factor| q.unscaled.checked_mul(factor))
        };
        let sum = match (lift(&a), lift(&b).map(|b| b * sign)) {
            (Some(a), Some(b)) => a.checked_add(b),
            _ => None,
        };
        match sum {
            Some(sum) => Self::scaled(sum, scale, format),
            // Too far apart for 38 digits: the smaller one cannot show in the larger.
            None if a.magnitude() >= b.magnitude() => Self::scaled(a.unscaled, a.scale, format),
            None => Self::scaled(b.unscaled * sign, b.scale, format),
        }
    }
    /// The sum, in this quantity's format (in the other's when this is zero).
    pub fn add(&self, other: &Self) -> Self {
        self.add_signed(other, 1)
    }
    pub fn sub(&self, other: &Self) -> Self {
        self.add_signed(other, -1)
    }
    pub fn neg(&self) -> Self {
        Self::scaled(-self.unscaled, self.scale, self.format)
    }
    /// Multiplies; `None` when the product does not fit.
    pub fn mul(&self, factor: i64) -> Option<Self> {
        let product = self.unscaled.checked_mul(factor.into())?;
        Some(Self::scaled(product, self.scale, self.format))
    }

    /// Without trailing decimal zeros.
    fn trimmed(&self) -> Self {
        let (mut unscaled, mut scale) = (self.unscaled, self.scale);
        while unscaled != 0 && unscaled % 10 == 0 {
            unscaled /= 10;
            scale = scale.saturating_add(1);
        }
        Self::scaled(unscaled, if unscaled == 0 { 0 } else { scale }, self.format)
    }
    /// The power of ten just above the value.
    fn magnitude(&self) -> i64 {
        let digits = self
            .unscaled
            .unsigned_abs()
            .checked_ilog10()
            .map_or(0, |log| i64::from(log) + 1);
        digits + i64::from(self.scale)
    }

    /// The value as an integer, when it is one that fits.
    fn integer(&self) -> Option<i128> {
        if self.scale >= 0 {
            return self.unscaled.checked_mul(pow10(u32::try_from(self.scale).ok()?)?);
        }
        match drop_digits(self.unscaled, self.scale.unsigned_abs()) {
            (value, true) => Some(value),
            _ => None,
        }
    }

    fn canonical(&self) -> String {
        if self.is_zero() {
            return "0".to_owned();
        }
        if self.format == Format::BinarySi
            && let Some(value) = self.integer().filter(|value| value.unsigned_abs() >= 1024)
        {
            let (mut value, mut times) = (value, 0);
            while times < BINARY.len() && value % 1024 == 0 {
                value /= 1024;
                times += 1;
            }
            let suffix = times
                .checked_sub(1)
                .and_then(|at| BINARY.get(at))
                .map_or("", |(name, _)| name);
            return format!("{value}{suffix}");
        }
        let trimmed = self.trimmed();
        let mut exponent = trimmed.scale - trimmed.scale.rem_euclid(3);
        // A value no suffix comes near (a sum with `1e1000000`) is written with its exponent, not with its zeros.
        let with_exponent = self.format == Format::DecimalExponent || trimmed.scale > 60;
        if !with_exponent {
            exponent = exponent.min(18);
        }
        let zeros = "0".repeat(usize::try_from(trimmed.scale - exponent).unwrap_or_default());
        let number = format!("{}{zeros}", trimmed.unscaled);
        if with_exponent {
            return if exponent == 0 {
                number
            } else {
                format!("{number}e{exponent}")
            };
        }
        let suffix = DECIMAL
            .iter()
            .find(|(_, e)| *e == exponent)
            .map_or("", |(name, _)| name);
        format!("{number}{suffix}")
    }
}

impl Parts<'_> {
    fn decimal(&self, exponent: i32, format: Format) -> Quantity {
        let digits: String = [self.integer, self.fraction].concat();
        let digits = digits.trim_start_matches('0');
        let mut scale = i64::from(exponent) - self.fraction.len() as i64;
        // Keep what fits and is not finer than a nano; any rest rounds up.
        let excess = (i64::from(NANO) - scale)
            .max(digits.len() as i64 - 38)
            .clamp(0, digits.len() as i64);
        let finer_than_all = i64::from(NANO) - scale > digits.len() as i64;
        let (kept, dropped) = digits.split_at(digits.len() - excess as usize);
        let mut unscaled: i128 = kept.parse().unwrap_or_default();
        scale = if finer_than_all { NANO.into() } else { scale + excess };
        if dropped.bytes().any(|byte| byte != b'0') {
            unscaled += 1;
        }
        Quantity::scaled(unscaled, scale.clamp(i32::MIN.into(), i32::MAX.into()) as i32, format)
    }

    fn binary(&self, exponent: u32) -> Quantity {
        const MOST: i128 = i64::MAX as i128;
        let most = Quantity::scaled(MOST, 0, Format::BinarySi);
        let Some(whole) = self
            .integer
            .get(..self.integer.len().min(20))
            .and_then(|digits| digits.parse::<i128>().ok())
        else {
            return most;
        };
        let whole = whole << exponent;
        if self.integer.len() > 19 || whole > MOST {
            return most;
        }
        // Twenty digits of the fraction are exact; what follows them can only round up.
        let (kept, dropped) = self.fraction.split_at(self.fraction.len().min(20));
        let fraction: i128 = kept.parse().unwrap_or_default();
        let unit = pow10(kept.len() as u32).unwrap_or(1);
        let shifted = fraction << exponent;
        let (units, rest) = (shifted / unit, shifted % unit);
        let (mut nanos, _) = divide_up(rest.saturating_mul(1_000_000_000), unit);
        if nanos == 0 && rest == 0 && dropped.bytes().any(|byte| byte != b'0') {
            nanos = 1;
        }
        let total = (whole + units) * 1_000_000_000 + nanos;
        if total > MOST * 1_000_000_000 {
            return most;
        }
        let below_one = total < 1_000_000_000;
        let format = if below_one { Format::DecimalSi } else { Format::BinarySi };
        Quantity::scaled(total, NANO, format)
    }

    /// Whether upstream would keep the text instead of printing the value anew.
    fn reads_as_canonical(&self, suffix: &Suffix) -> bool {
        let digits = self.integer.len() + self.fraction.len();
        match suffix {
            Suffix::Decimal(exponent, _) => {
                let scale = i64::from(*exponent) - self.fraction.len() as i64;
                digits <= 18
                    && scale >= i64::from(NANO)
                    && scale % 3 == 0
                    && !self.integer.starts_with('0')
                    && ![self.integer, self.fraction].concat().ends_with("000")
            }
            Suffix::Binary(exponent) => {
                self.fraction.is_empty()
                    && digits as i64 + i64::from(exponent * 3 / 10) < 15
                    && self.integer.parse::<i64>().is_ok_and(|value| value & 7 != 0)
            }
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.written {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.canonical()),
        }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.trimmed(), other.trimmed());
        let by_sign = a.unscaled.signum().cmp(&b.unscaled.signum());
        if by_sign.is_ne() || a.unscaled == 0 {
            return by_sign;
        }
        let larger = match a.magnitude().cmp(&b.magnitude()) {
            // Equally long numbers: give the coarser one the finer one's scale.
            Ordering::Equal => {
                let scale = a.scale.min(b.scale);
                let lift = |q: &Quantity| {
                    u32::try_from(q.scale - scale)
                        .ok()
                        .and_then(pow10)
                        .and_then(|factor| q.unscaled.unsigned_abs().checked_mul(factor.unsigned_abs()))
                };
                lift(&a).cmp(&lift(&b))
            }
            unequal => unequal,
        };
        if a.unscaled < 0 { larger.reverse() } else { larger }
    }
}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
/// Equal values are equal, however they are written.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Quantity {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_print_as_upstream_prints_them() {
        for (text, printed) in [
            ("0", "0"),
            ("0n", "0"),
            ("0.0Ki", "0"),
            ("-0", "0"),
            ("00", "0"),
            (".", "0"),
            ("+", "0"),
            ("1", "1"),
            ("+5", "+5"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1.500", "1.500"),
            ("2.50000", "2500m"),
            ("1001", "1001"),
            ("1000000", "1M"),
            ("100000", "100k"),
            ("0.1n", "1n"),
            ("1.1n", "2n"),
            ("-1.1n", "-2n"),
            ("0.0000000001", "1n"),
            ("1e-12", "1e-9"),
            ("10e-9", "10e-9"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("1e4", "10e3"),
            ("1E2", "100"),
            ("1E", "1E"),
            ("1000e0", "1e3"),
            ("1.1E6", "1100e3"),
            ("1024Ki", "1Mi"),
            ("100Mi", "100Mi"),
            ("1024", "1024"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            ("0.5i", ""),
            ("100Ki", "100Ki"),
            ("8Ki", "8Ki"),
            ("1.1Mi", "1153433600m"),
            ("9Ei", "9223372036854775807"),
            ("-9Ei", "-9223372036854775807"),
            ("7Ei", "7Ei"),
            ("1000000E", "1000000E"),
            ("1000000000000000000000", "1000E"),
            ("0.0000000001Ki", "103n"),
            ("0.00000000000000000000000001Ki", "1n"),
            ("9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "9223372036854775808"),
        ] {
            if printed.is_empty() {
                assert_eq!(Quantity::parse(text), Err(QuantityError::Suffix), "{text}");
            } else {
                assert_eq!(Quantity::parse(text).unwrap().to_string(), printed, "{text}");
            }
        }
    }

    #[test]
    fn bad_texts_are_refused() {
        use QuantityError::{Format as F, Suffix as S};
        for (text, error) in [
            ("", F),
            ("1.1.M", F),
            ("1+1.0M", F),
            ("0.1mi", S),
            ("0.1am", F),
            ("aoeu", F),
            (".5i", S),
            ("1i", S),
            ("-3.01i", S),
            ("-3.01e-", S),
            ("1Mib", F),
            ("1 ", F),
            (" 1", F),
            ("1K", S),
            ("1e", S),
            ("1e99999999999", S),
            ("é", F),
            ("1é", F),
        ] {
            assert_eq!(Quantity::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn numbers_round_up() {
        let q = |text| Quantity::parse(text).unwrap();
        for (text, value, milli) in [
            ("1", 1, 1000),
            ("1m", 1, 1),
            ("-1m", -1, -1),
            ("1u", 1, 1),
            ("1.5Ki", 1536, 1_536_000),
            ("0", 0, 0),
            ("1E", 1_000_000_000_000_000_000, i64::MAX),
            ("1e30", i64::MAX, i64::MAX),
            ("-1e30", i64::MIN, i64::MIN),
        ] {
            assert_eq!((q(text).value(), q(text).milli_value()), (value, milli), "{text}");
        }
    }

    #[test]
    fn sums_keep_the_first_format() {
        let q = |text| Quantity::parse(text).unwrap();
        for (a, b, sum, difference) in [
            ("1Gi", "1Gi", "2Gi", "0"),
            ("500m", "1", "1500m", "-500m"),
            ("0", "1Mi", "1Mi", "-1Mi"),
            ("1k", "1Ki", "2024", "-24"),
            ("1Ki", "1m", "1024001m", "1023999m"),
            ("1e100", "1", "10e99", "10e99"),
        ] {
            assert_eq!(q(a).add(&q(b)).to_string(), sum);
            assert_eq!(q(a).sub(&q(b)).to_string(), difference);
        }
        assert_eq!(q("0").sub(&q("1e100")), q("-1e100"));
    }

    #[test]
    fn order_is_by_value() {
        let sorted = [
            "-1e50", "-1Ki", "-1", "-1n", "0", "1n", "1m", "1000m", "1k", "1Ki", "1.1Ki", "1e50", "2e50",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(
                    Quantity::parse(a).unwrap().cmp(&Quantity::parse(b).unwrap()),
                    i.cmp(&j),
                    "{a} {b}"
                );
            }
        }
        assert_eq!(Quantity::parse("1000m"), Quantity::parse("1"));
        assert_eq!(Quantity::parse("1Ki"), Quantity::parse("1024"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            if let Ok(q) = Quantity::parse(&text) {
                prop_assert_eq!(Quantity::parse(&q.to_string()).unwrap(), q);
            }
        }
        #[test]
        fn printing_keeps_the_value(text in "[+-]?[0-9]{0,45}(\\.[0-9]{0,45})?(n|u|m||k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,5})") {
            let q = Quantity::parse(&text);
            if let Ok(q) = q {
                let again = Quantity::parse(&q.to_string()).unwrap();
                prop_assert_eq!(&again, &q);
                let canonical = q.canonical();
                let twice = Quantity::parse(&canonical).unwrap().canonical();
                prop_assert_eq!(twice, canonical);
                prop_assert!(q.sub(&q).is_zero());
                prop_assert_eq!(q.neg().neg(), q);
            }
        }
        #[test]
        fn sums_are_exact(a in -1_000_000_000_000i64..1_000_000_000_000, b in -1_000_000_000_000i64..1_000_000_000_000) {
            let (x, y) = (Quantity::milli(a, Format::DecimalSi), Quantity::milli(b, Format::BinarySi));
            prop_assert_eq!(x.add(&y).milli_value(), a + b);
            prop_assert_eq!(x.sub(&y).milli_value(), a - b);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }
    }
}
