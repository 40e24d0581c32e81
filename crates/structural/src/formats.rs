//! The string and number formats a schema may state, and what fits them.
//!
//! A format nobody knows, or one that does not go with the type, is not checked (and warned of when a definition
//! states it).

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const STRINGS: [&str; 26] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
];

fn is_known(ty: &str, format: &str) -> bool {
    match ty {
        "" | "string" => STRINGS.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

/// The format as far as it is checked for values of a type.
pub(crate) fn checked<'a>(ty: &str, int_or_string: bool, format: &'a str) -> Option<&'a str> {
    let ty = if int_or_string { "" } else { ty };
    (!format.is_empty() && is_known(ty, format)).then_some(format)
}

/// Whether a definition is warned of a format.
pub fn unrecognized(ty: &str, format: &str) -> bool {
    !format.is_empty() && !is_known(ty, format)
}

/// Whether a text has a format.
pub(crate) fn fits(format: &str, text: &str) -> bool {
    match format.replace('-', "").as_str() {
        "bsonobjectid" => text.len() == 24 && is_hex(text),
        "uri" => is_request_uri(text),
        "email" => is_email(text),
        "hostname" => is_hostname(text),
        "ipv4" => sloppy_ipv4(text).is_some() || (text.contains('.') && text.parse::<Ipv6Addr>().is_ok()),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some(b'3')),
        "uuid4" => is_uuid(text, Some(b'4')),
        "uuid5" => is_uuid(text, Some(b'5')),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_credit_card(text),
        "ssn" => is_ssn(text),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && is_hex(digits)
        }
        "rgbcolor" => is_rgb(text),
        "byte" => !text.is_empty() && STANDARD.decode(text).is_ok(),
        "date" => is_date(text),
        "duration" => is_duration(text),
        "datetime" => is_datetime(text),
        "k8sshortname" => text.len() <= 63 && is_short_name(text),
        "k8slongname" => text.len() <= 253 && text.split('.').all(is_short_name),
        _ => true,
    }
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_short_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|byte| fits(*byte))
        && bytes.last().is_some_and(|byte| fits(*byte))
        && bytes.iter().all(|byte| fits(*byte) || *byte == b'-')
}

/// An absolute URI or an absolute path, as the first line of an HTTP request has it.
fn is_request_uri(text: &str) -> bool {
    if text.is_empty() || text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return false;
    }
    if !has_good_escapes(text) {
        return false;
    }
    if text.starts_with('/') {
        return !text.contains(' ') || !text.starts_with("//");
    }
    if text == "*" {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return false;
    };
    let mut letters = scheme.bytes();
    let good = letters.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    if !good {
        return false;
    }
    match rest.strip_prefix("//") {
        Some(authority) => {
            let host = authority.split(['/', '?']).next().unwrap_or_default();
            let host = host.rsplit('@').next().unwrap_or_default();
            let port = match host.strip_prefix('[') {
                Some(literal) => match literal.split_once(']') {
                    Some((_, port)) => port,
                    None => return false,
                },
                None => host.find(':').and_then(|at| host.get(at..)).unwrap_or_default(),
            };
            !host.contains([' ', '<', '>', '"', '\\', '^', '`', '{', '|', '}'])
                && (port.is_empty()
                    || port
                        .strip_prefix(':')
                        .is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit())))
        }
        // Opaque after a scheme.
        None => !rest.is_empty() || text.ends_with(':'),
    }
}

fn has_good_escapes(text: &str) -> bool {
    let path = text.split('?').next().unwrap_or_default();
    path.split('%').skip(1).all(|after| {
        after
            .as_bytes()
            .get(..2)
            .is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    })
}

/// `user@host` or `Name <user@host>`.
fn is_email(text: &str) -> bool {
    let text = text.trim();
    let address = match (text.find('<'), text.strip_suffix('>')) {
        (Some(at), Some(body)) => body.get(at + 1..).unwrap_or_default(),
        (None, None) => text,
        _ => return false,
    };
    let Some((local, domain)) = address.rsplit_once('@') else {
        return false;
    };
    let atom = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|char| char.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(char) || !char.is_ascii())
    };
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    let literal = domain.starts_with('[') && domain.ends_with(']');
    (quoted || local.split('.').all(atom)) && (literal || domain.split('.').all(atom))
}

fn is_hostname(text: &str) -> bool {
    if text.is_empty() || text.len() > 255 || text.split('.').any(|label| label.len() > 63) {
        return false;
    }
    let letter = |char: char| char.is_alphabetic() || is_symbol(char);
    let inner = |char: char| letter(char) || char.is_ascii_digit();
    let labels: Vec<&str> = text.split('.').collect();
    let label = |label: &str| {
        label.chars().next().is_some_and(inner)
            && label.chars().last().is_some_and(inner)
            && label.chars().all(|char| inner(char) || char == '-')
    };
    match labels.as_slice() {
        [only] => {
            // One dash at most right after the first character, as upstream's expression has it.
            let mut chars = only.chars();
            let first = chars.next().is_some_and(inner);
            let rest = chars.as_str();
            let rest = rest.strip_prefix('-').unwrap_or(rest);
            first && rest.chars().all(inner)
        }
        [firsts @ .., last] => {
            firsts.iter().all(|one| label(one))
                && last.chars().count() >= 2
                && last.chars().all(|char| char.is_alphabetic())
        }
        [] => false,
    }
}

/// Characters that stand for themselves: mathematics, currency, pictures.
fn is_symbol(char: char) -> bool {
    matches!(char, '$' | '+' | '<' | '=' | '>' | '^' | '`' | '|' | '~')
        || matches!(char as u32, 0x2000..=0x2BFF | 0x1F000..=0x1FAFF)
}

/// Four numbers; leading zeros are forgiven.
fn sloppy_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let most = if sloppy_ipv4(address).is_some() {
        32
    } else if address.parse::<Ipv6Addr>().is_ok() {
        128
    } else {
        return false;
    };
    !bits.is_empty()
        && bits.bytes().all(|byte| byte.is_ascii_digit())
        && bits.parse::<u32>().is_ok_and(|bits| bits <= most)
}

fn is_mac(text: &str) -> bool {
    let groups = |separator: char, width: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        let bytes = parts.len() * width / 2;
        matches!(bytes, 6 | 8 | 20) && parts.iter().all(|part| part.len() == width && is_hex(part))
    };
    groups(':', 2) || groups('-', 2) || groups('.', 4)
}

fn is_uuid(text: &str, version: Option<u8>) -> bool {
    let mut digits = Vec::with_capacity(32);
    let mut rest = text;
    for (group, width) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if group > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let Some(part) = rest.get(..width) else { return false };
        if !is_hex(part) {
            return false;
        }
        digits.extend(part.bytes());
        rest = rest.get(width..).unwrap_or_default();
    }
    let variant = |digit: Option<&u8>| digit.is_some_and(|digit| b"89abAB".contains(digit));
    rest.is_empty()
        && version
            .is_none_or(|version| digits.get(12) == Some(&version) && (version == b'3' || variant(digits.get(16))))
}

fn without_spaces_and_dashes(text: &str) -> Vec<u8> {
    text.bytes()
        .filter(|byte| !byte.is_ascii_whitespace() && *byte != b'-')
        .collect()
}

fn is_isbn10(text: &str) -> bool {
    let bytes = without_spaces_and_dashes(text);
    let mut sum = 0u32;
    for (at, byte) in bytes.iter().enumerate() {
        let value = match byte {
            b'0'..=b'9' => u32::from(byte - b'0'),
            b'X' if at == 9 => 10,
            _ => return false,
        };
        sum += (at as u32 + 1) * value;
    }
    bytes.len() == 10 && sum.is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let bytes = without_spaces_and_dashes(text);
    if bytes.len() != 13 || !bytes.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .map(|(at, byte)| u32::from(byte - b'0') * if at % 2 == 0 { 1 } else { 3 })
        .sum();
    sum.is_multiple_of(10)
}

fn is_credit_card(text: &str) -> bool {
    let digits: Vec<u8> = text
        .bytes()
        .filter(u8::is_ascii_digit)
        .map(|byte| byte - b'0')
        .collect();
    if !(13..=16).contains(&digits.len()) {
        return false;
    }
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| {
            let value = u32::from(*digit) * if at % 2 == 1 { 2 } else { 1 };
            if value >= 10 { value % 10 + 1 } else { value }
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_ssn(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 11
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            3 | 6 => matches!(byte, b'-' | b' '),
            _ => byte.is_ascii_digit(),
        })
}

fn is_rgb(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("rgb(").and_then(|rest| rest.strip_suffix(')')) else {
        return false;
    };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    parts.len() == 3
        && parts.iter().all(|part| {
            part.bytes().all(|byte| byte.is_ascii_digit())
                && (*part == "0" || !part.starts_with('0'))
                && part.parse::<u8>().is_ok()
        })
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10 && bytes.get(4) == Some(&b'-') && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_datetime(text: &str) -> bool {
    let lower = text.to_lowercase();
    let Some((date, time)) = lower.split_once('t') else {
        return false;
    };
    if !is_date(date) {
        return false;
    }
    let two = |at: usize, most: &str| {
        time.get(at..at + 2)
            .is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()) && part <= most)
    };
    let colons = time.get(2..3) == Some(":") && time.get(5..6) == Some(":");
    if !(two(0, "23") && two(3, "59") && two(6, "59") && colons) {
        return false;
    }
    let mut rest = time.get(8..).unwrap_or_default();
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction
            .find(|char: char| !char.is_ascii_digit())
            .unwrap_or(fraction.len());
        if end == 0 {
            return false;
        }
        rest = fraction.get(end..).unwrap_or_default();
    }
    let zone = rest.as_bytes();
    rest == "z"
        || (zone.len() == 6
            && matches!(zone.first(), Some(b'+' | b'-'))
            && zone.get(3) == Some(&b':')
            && zone
                .iter()
                .enumerate()
                .all(|(at, byte)| matches!(at, 0 | 3) || byte.is_ascii_digit()))
}

/// Go's durations (`1h15m30.5s`), or a number and a unit in words (`22 ns`, `3 days`).
fn is_duration(text: &str) -> bool {
    is_go_duration(text) || is_worded_duration(text)
}

fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|char: char| !char.is_ascii_digit() && char != '.')
            .unwrap_or(rest.len());
        let number = rest.get(..digits).unwrap_or_default();
        if number.is_empty() || number == "." || number.matches('.').count() > 1 {
            return false;
        }
        rest = rest.get(digits..).unwrap_or_default();
        let Some(unit) = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"]
            .into_iter()
            .find(|unit| rest.starts_with(unit))
        else {
            return false;
        };
        rest = rest.get(unit.len()..).unwrap_or_default();
    }
    true
}

fn is_worded_duration(text: &str) -> bool {
    const UNITS: [&[&str]; 8] = [
        &["ns", "nano"],
        &["us", "µs", "micro"],
        &["ms", "milli"],
        &["s", "sec"],
        &["m", "min"],
        &["h", "hr", "hour"],
        &["d", "day"],
        &["w", "wk", "week"],
    ];
    let mut found = false;
    let mut rest = text;
    while let Some(start) = rest.find(|char: char| char.is_ascii_digit()) {
        let after = rest.get(start..).unwrap_or_default();
        let digits = after.find(|char: char| !char.is_ascii_digit()).unwrap_or(after.len());
        if after.get(..digits).is_none_or(|number| number.parse::<i64>().is_err()) {
            return false;
        }
        let after = after.get(digits..).unwrap_or_default().trim_start();
        let letters = after
            .find(|char: char| !char.is_ascii_alphabetic() && char != 'µ')
            .unwrap_or(after.len());
        let unit = after.get(..letters).unwrap_or_default().to_lowercase();
        found |= !unit.is_empty()
            && UNITS.iter().any(|variants| {
                variants.contains(&unit.as_str()) || variants.last().is_some_and(|last| unit.starts_with(last))
            });
        rest = after.get(letters..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_checked_as_upstream_checks_them() {
        let cases = [
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f1f77"),
            ("uri", "http://example.com/a?b=c", "example.com"),
            ("uri", "/a/b", "http://[::1"),
            ("email", "a.b@example.com", "a b@example.com"),
            ("email", "A B <a@b.c>", "a@"),
            ("hostname", "a-b.example.com", "a..b"),
            ("hostname", "host", "a_b"),
            ("ipv4", "192.168.000.1", "192.168.0"),
            ("ipv6", "2001:db8::1", "192.168.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("cidr", "::/0", "::/129"),
            ("mac", "01:02:03:04:05:06", "01:02:03:04:05"),
            ("mac", "0123.4567.89ab", "0123.4567.89ag"),
            ("uuid", "A97CBE4C-0bdf-4f5a-8f5f-0a8a4b1f0f4e", "a97cbe4c"),
            (
                "uuid4",
                "a97cbe4c0bdf4f5a8f5f0a8a4b1f0f4e",
                "a97cbe4c-0bdf-3f5a-8f5f-0a8a4b1f0f4e",
            ),
            ("isbn10", "0321751043", "0321751044"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111-1111-1111-1111", "4111-1111-1111-1112"),
            ("ssn", "111-11-1111", "111-11-111"),
            ("hexcolor", "#fFf", "#ffff"),
            ("rgbcolor", "rgb(255, 0,12)", "rgb(256,0,0)"),
            ("byte", "aGVsbG8=", "aGVsbG8"),
            ("date", "2024-02-29", "2023-02-29"),
            ("duration", "1h15m30.5s", "1 parsec"),
            ("duration", "22 ns", "h"),
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15 19:30:20Z"),
            ("date-time", "2014-12-15t19:30:20+01:00", "2014-12-15T24:30:20Z"),
            ("k8s-short-name", "a-b", "A"),
            ("k8s-long-name", "a.b-c", "a..b"),
        ];
        for (format, good, bad) in cases {
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
        assert!(fits("password", "anything"));
        assert_eq!(checked("string", false, "date-time"), Some("date-time"));
        assert_eq!(checked("string", false, "semver"), None);
        assert_eq!(checked("integer", false, "int64"), Some("int64"));
        assert!(unrecognized("integer", "float") && !unrecognized("number", "float"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in ".{0,40}") {
            for format in STRINGS {
                fits(format, &text);
            }
        }
    }
}
