//! JSON as Go reads it: the last of repeated keys wins, and each repetition is reported with its path.
//!
//! The fast path is `serde_json`; only when it fails is the text scanned again, to say what is wrong in Go's
//! words, and only when a key was repeated is it parsed again, to say where. Nesting is limited to
//! `serde_json`'s 128 levels (Go: 10,000): no API object comes near, and the limit bounds every walker's stack.
//! Invalid UTF-8 is an error (Go replaces it).

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::Parsed;
use crate::Object;

/// The text is not JSON; worded as Go's scanner words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError(String);

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SyntaxError {}

impl From<String> for SyntaxError {
    fn from(text: String) -> Self {
        SyntaxError(text)
    }
}

/// Parses one JSON value and nothing after it.
pub fn decode(bytes: &[u8]) -> Result<Parsed, SyntaxError> {
    let repeated = Cell::new(false);
    let object = run(
        bytes,
        Tree {
            repeated: &repeated,
            trail: None,
        },
    )?;
    let duplicates = if repeated.get() { duplicates(bytes)? } else { Vec::new() };
    Ok(Parsed {
        object,
        duplicates,
        complaint: None,
    })
}

/// A JSON object without repeated keys, if that is what it is.
pub(super) fn plain(bytes: &[u8]) -> Option<Object> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let repeated = Cell::new(false);
    let seed = Tree {
        repeated: &repeated,
        trail: None,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let object = seed.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    (!repeated.get()).then_some(object)
}

fn run(bytes: &[u8], seed: Tree<'_>) -> Result<Value, SyntaxError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    seed.deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| SyntaxError(explain(bytes).unwrap_or_else(|| error.to_string())))
}

/// Paths of repeated keys.
fn duplicates(bytes: &[u8]) -> Result<Vec<String>, SyntaxError> {
    let repeated = Cell::new(false);
    let trail = RefCell::new(Trail::default());
    run(
        bytes,
        Tree {
            repeated: &repeated,
            trail: Some(&trail),
        },
    )?;
    Ok(trail.into_inner().found)
}

/// Unknown fields (found by the check of the tree) and repeated keys, worded and in the order they stand in the text.
///
/// A key repeated below an unknown field is not reported: Go never looks there.
pub(super) fn complaints(bytes: &[u8], unknown: &[String]) -> Vec<String> {
    let trail = RefCell::new(Trail {
        unknown: unknown.iter().cloned().collect(),
        ..Trail::default()
    });
    let repeated = Cell::new(false);
    let tree = Tree {
        repeated: &repeated,
        trail: Some(&trail),
    };
    // The text has been parsed before; should it fail now, what was found stands.
    let _ = run(bytes, tree);
    trail.into_inner().worded
}

/// Compact JSON with sorted keys.
pub fn encode(object: &Object) -> Vec<u8> {
    // A tree of maps with string keys always serializes, and a Vec always accepts bytes.
    serde_json::to_vec(object).unwrap_or_default()
}

/// Where the reader is, for reporting repeated keys.
#[derive(Default)]
pub(super) struct Trail {
    path: String,
    pub(super) found: Vec<String>,
    /// Paths to report when they are come by.
    unknown: std::collections::HashSet<String>,
    /// The length of the path of the unknown field the reader is below, if any.
    below: Option<usize>,
    worded: Vec<String>,
}

impl Trail {
    /// Go keeps at most this many complaints.
    const MOST: usize = 100;

    pub(super) fn enter_key(&mut self, key: &str) -> usize {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        if self.below.is_none() && self.unknown.contains(&self.path) {
            self.below = Some(self.path.len());
            self.word("unknown");
        }
        before
    }
    fn word(&mut self, what: &str) {
        if self.worded.len() >= Self::MOST {
            return;
        }
        let text = format!("{what} field {}", crate::field::quote(&self.path));
        if !self.worded.contains(&text) {
            self.worded.push(text);
        }
    }
    pub(super) fn enter_index(&mut self, index: usize) -> usize {
        let before = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        before
    }
    pub(super) fn leave(&mut self, before: usize) {
        self.path.truncate(before);
        if self.below.is_some_and(|below| before < below) {
            self.below = None;
        }
    }
    pub(super) fn repeated(&mut self) {
        if self.below.is_none() {
            self.word("duplicate");
        }
        if self.found.len() < Self::MOST && !self.found.contains(&self.path) {
            self.found.push(self.path.clone());
        }
    }
}

/// Builds a tree; notices repeated keys, and writes them down when there is a trail.
#[derive(Clone, Copy)]
struct Tree<'a> {
    repeated: &'a Cell<bool>,
    trail: Option<&'a RefCell<Trail>>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let before = self.trail.map(|trail| trail.borrow_mut().enter_index(items.len()));
            let next = seq.next_element_seed(self)?;
            if let (Some(trail), Some(before)) = (self.trail, before) {
                trail.borrow_mut().leave(before);
            }
            match next {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let before = self.trail.map(|trail| {
                let mut trail = trail.borrow_mut();
                let before = trail.enter_key(&key);
                if entries.contains_key(&key) {
                    trail.repeated();
                }
                before
            });
            let value = map.next_value_seed(self)?;
            if let (Some(trail), Some(before)) = (self.trail, before) {
                trail.borrow_mut().leave(before);
            }
            if entries.insert(key, value).is_some() {
                self.repeated.set(true);
            }
        }
        Ok(Value::Object(entries))
    }
}

/// What Go's scanner says is wrong with the text; nothing when it finds no fault.
fn explain(bytes: &[u8]) -> Option<String> {
    let mut scanner = Scanner { bytes, at: 0 };
    scanner.value(0).and_then(|()| scanner.end()).err()
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    const DEEPEST: usize = 127;

    fn skip(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }
    fn peek(&self) -> Result<u8, String> {
        self.bytes
            .get(self.at)
            .copied()
            .ok_or_else(|| "unexpected end of JSON input".to_owned())
    }
    fn invalid<T>(&self, byte: u8, context: &str) -> Result<T, String> {
        let shown = match byte {
            b'\'' => r"'\''".to_owned(),
            b'"' => r#"'"'"#.to_owned(),
            b'\\' => r"'\\'".to_owned(),
            b'\n' => r"'\n'".to_owned(),
            b'\r' => r"'\r'".to_owned(),
            b'\t' => r"'\t'".to_owned(),
            0x20..=0x7e => format!("'{}'", char::from(byte)),
            // Go prints the byte as the code point of that number.
            0xa1..=0xff => format!("'{}'", char::from(byte)),
            other => format!(r"'\x{other:02x}'"),
        };
        Err(format!("invalid character {shown} {context}"))
    }
    fn end(&mut self) -> Result<(), String> {
        self.skip();
        match self.bytes.get(self.at) {
            None => Ok(()),
            Some(byte) => self.invalid(*byte, "after top-level value"),
        }
    }
    fn value(&mut self, depth: usize) -> Result<(), String> {
        if depth > Self::DEEPEST {
            return Err("exceeded max depth".into());
        }
        self.skip();
        match self.peek()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            other => self.invalid(other, "looking for beginning of value"),
        }
    }
    fn object(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        self.skip();
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip();
            match self.peek()? {
                b'"' => self.string()?,
                other => return self.invalid(other, "looking for beginning of object key string"),
            }
            self.skip();
            match self.peek()? {
                b':' => self.at += 1,
                other => return self.invalid(other, "after object key"),
            }
            self.value(depth + 1)?;
            self.skip();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                other => return self.invalid(other, "after object key:value pair"),
            }
        }
    }
    fn array(&mut self, depth: usize) -> Result<(), String> {
        self.at += 1;
        self.skip();
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.skip();
            match self.peek()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(());
                }
                other => return self.invalid(other, "after array element"),
            }
        }
    }
    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'"' => return Ok(()),
                b'\\' => {
                    let escape = self.peek()?;
                    self.at += 1;
                    match escape {
                        b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                        b'u' => {
                            for _ in 0..4 {
                                let digit = self.peek()?;
                                if !digit.is_ascii_hexdigit() {
                                    return self.invalid(digit, r"in \u hexadecimal character escape");
                                }
                                self.at += 1;
                            }
                        }
                        other => return self.invalid(other, "in string escape code"),
                    }
                }
                0..=0x1f => return self.invalid(byte, "in string literal"),
                _ => {}
            }
        }
    }
    fn number(&mut self) -> Result<(), String> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        match self.peek()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            other => return self.invalid(other, "in numeric literal"),
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            match self.peek()? {
                b'0'..=b'9' => self.digits(),
                other => return self.invalid(other, "after decimal point in numeric literal"),
            }
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek()?, b'+' | b'-') {
                self.at += 1;
            }
            match self.peek()? {
                b'0'..=b'9' => self.digits(),
                other => return self.invalid(other, "in exponent of numeric literal"),
            }
        }
        Ok(())
    }
    fn digits(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }
    fn word(&mut self, word: &str) -> Result<(), String> {
        for expected in word.bytes() {
            let byte = self.peek()?;
            if byte != expected {
                let context = format!("in literal {word} (expecting '{}')", char::from(expected));
                return self.invalid(byte, &context);
            }
            self.at += 1;
        }
        Ok(())
    }
}
