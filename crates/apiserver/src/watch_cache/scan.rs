//! Finds its way in encoded JSON without parsing it.
//!
//! Used on bytes this server encoded itself (valid JSON); on anything else it gives up and the caller
//! falls back to a real parse.

use bytes::{BufMut, BytesMut};
use sampan_store::Revision;
use serde_json::Value;

const KEY: &[u8] = b"resourceVersion";

/// Appends `value` to `out` with `metadata.resourceVersion` set to `revision`, at its sorted place.
pub fn splice_revision(value: &[u8], revision: Revision, out: &mut BytesMut) {
    match place(value) {
        Some(place) => {
            out.put_slice(&value[..place.start]);
            if place.comma_before {
                out.put_u8(b',');
            }
            out.put_slice(b"\"resourceVersion\":\"");
            put_number(out, revision);
            out.put_u8(b'"');
            if place.comma_after {
                out.put_u8(b',');
            }
            out.put_slice(&value[place.end..]);
        }
        None => {
            let mut object: Value = serde_json::from_slice(value).unwrap_or(Value::Null);
            if let Some(map) = object.as_object_mut() {
                let metadata = map
                    .entry("metadata")
                    .or_insert_with(|| Value::Object(Default::default()));
                if let Some(metadata) = metadata.as_object_mut() {
                    metadata.insert("resourceVersion".into(), revision.to_string().into());
                }
            }
            out.put_slice(object.to_string().as_bytes());
        }
    }
}

fn put_number(out: &mut BytesMut, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// The gap where the member goes: `value[start..end]` is replaced.
struct Place {
    start: usize,
    end: usize,
    comma_before: bool,
    comma_after: bool,
}

fn place(value: &[u8]) -> Option<Place> {
    let (start, _) = member(value, 0, b"metadata")?;
    if value.get(start) != Some(&b'{') {
        return None;
    }
    let mut at = start + 1;
    if value.get(at) == Some(&b'}') {
        return Some(Place {
            start: at,
            end: at,
            comma_before: false,
            comma_after: false,
        });
    }
    loop {
        let key_start = at;
        let key_end = skip_string(value, at)?;
        let key = value.get(key_start + 1..key_end - 1)?;
        if value.get(key_end) != Some(&b':') {
            return None;
        }
        let value_end = skip_value(value, key_end + 1)?;
        if key == KEY {
            return Some(Place {
                start: key_start,
                end: value_end,
                comma_before: false,
                comma_after: false,
            });
        }
        if key > KEY {
            return Some(Place {
                start: key_start,
                end: key_start,
                comma_before: false,
                comma_after: true,
            });
        }
        match value.get(value_end)? {
            b',' => at = value_end + 1,
            b'}' => {
                return Some(Place {
                    start: value_end,
                    end: value_end,
                    comma_before: true,
                    comma_after: false,
                });
            }
            _ => return None,
        }
    }
}

/// Start and end of the value of member `name` of the object that begins at `at`.
pub fn member(value: &[u8], at: usize, name: &[u8]) -> Option<(usize, usize)> {
    if value.get(at) != Some(&b'{') {
        return None;
    }
    let mut at = at + 1;
    loop {
        let key_end = skip_string(value, at)?;
        let key = value.get(at + 1..key_end - 1)?;
        if value.get(key_end) != Some(&b':') {
            return None;
        }
        let end = skip_value(value, key_end + 1)?;
        if key == name {
            return Some((key_end + 1, end));
        }
        match value.get(end)? {
            b',' => at = end + 1,
            _ => return None,
        }
    }
}

/// The position after the string that begins at `at`.
fn skip_string(value: &[u8], at: usize) -> Option<usize> {
    if value.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        let found = at + value.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if value[found] == b'"' {
            return Some(found + 1);
        }
        at = found + 2;
    }
}

/// The position after the value that begins at `at`.
fn skip_value(value: &[u8], at: usize) -> Option<usize> {
    match value.get(at)? {
        b'"' => skip_string(value, at),
        b'{' | b'[' => {
            let mut depth = 0usize;
            let mut at = at;
            loop {
                match value.get(at)? {
                    b'"' => {
                        at = skip_string(value, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
        }
        byte if !byte.is_ascii_whitespace() => {
            let rest = value.get(at..)?;
            Some(
                at + rest
                    .iter()
                    .position(|byte| matches!(byte, b',' | b'}' | b']'))
                    .unwrap_or(rest.len()),
            )
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn spliced(value: &str, revision: u64) -> String {
        let mut out = BytesMut::new();
        splice_revision(value.as_bytes(), revision, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn the_revision_goes_to_its_sorted_place() {
        let cases = [
            (r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"5"}}"#),
            (
                r#"{"metadata":{"name":"a"}}"#,
                r#"{"metadata":{"name":"a","resourceVersion":"5"}}"#,
            ),
            (
                r#"{"metadata":{"uid":"a"}}"#,
                r#"{"metadata":{"resourceVersion":"5","uid":"a"}}"#,
            ),
            (
                r#"{"a":[{"x":"}\"{"}],"metadata":{"name":"a","uid":"a"}}"#,
                r#"{"a":[{"x":"}\"{"}],"metadata":{"name":"a","resourceVersion":"5","uid":"a"}}"#,
            ),
            (
                r#"{"metadata":{"resourceVersion":"12","uid":"a"}}"#,
                r#"{"metadata":{"resourceVersion":"5","uid":"a"}}"#,
            ),
            // No metadata, or not our own encoding: the slow way.
            (r#"{"a":1}"#, r#"{"a":1,"metadata":{"resourceVersion":"5"}}"#),
            (
                r#"{ "metadata" : { "uid" : "a" } }"#,
                r#"{"metadata":{"resourceVersion":"5","uid":"a"}}"#,
            ),
        ];
        for (value, wanted) in cases {
            assert_eq!(spliced(value, 5), wanted);
        }
    }

    proptest! {
        #[test]
        fn splicing_equals_setting(name in ".*", text in ".*", number in any::<f64>(), revision in any::<u64>()) {
            let mut object = json!({"apiVersion": "v1", "data": {name.clone(): [text, number, null, true]},
                "metadata": {"annotations": {"q\"\\": name}, "uid": "u"}, "z": {}});
            let value = object.to_string();
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            prop_assert_eq!(spliced(&value, revision), object.to_string());
        }
    }
}
