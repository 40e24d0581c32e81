//! YAML as Go's Kubernetes tools read it: YAML 1.1 booleans, merge keys, JSON's types. Repeated keys are
//! reported with their lines, in the words of Go's YAML reader; the last value is kept.
//!
//! Different on purpose: leading-zero numbers are octal as in YAML 1.1; a second document in the stream is an
//! error (upstream reads the first and drops the rest in silence); nesting ends at 64 levels, where it is JSON at JSON's 128 (Go: 10,000),
//! and what aliases add is bounded by a number (Go: by how much of the document they are).

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::budget::{Budget, BudgetBreach};
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};
use thiserror::Error;

use super::Parsed;
use super::json::{self, Trail};
use crate::Object;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum YamlError {
    #[error("yaml: invalid UTF-8 after byte {0}")]
    Utf8(usize),
    #[error("yaml: {0}")]
    Syntax(String),
}

/// Repeated keys that are reported; Go would list them all.
const MOST: usize = 100;

/// Characters of a complaint.
const LONGEST: usize = 500;
/// Levels of lists and maps: a level takes many kilobytes of stack in a build without optimisation.
const DEEPEST: usize = 64;
/// Values that aliases may add to those that stand there.
const REPEATED: usize = 100_000;
/// Bytes of text that aliases may add.
const REPEATED_TEXT: usize = 1 << 20;

/// Values that stand there: five times what an object of the largest size has that can be stored, and less than two
/// seconds of work.
const MOST_VALUES: usize = 500_000;

/// What reading a document may take: what stands there (no value takes less than two bytes) and what aliases may add.
fn budget(size: usize) -> Budget {
    let mut budget = Budget::default();
    budget.max_depth = DEEPEST;
    budget.flow_nesting_limit = DEEPEST;
    budget.max_nodes = (size / 2).min(MOST_VALUES) + REPEATED;
    budget.max_events = budget.max_nodes * 2;
    budget.max_total_scalar_bytes = size * 2 + REPEATED_TEXT;
    budget.max_recorded_anchor_events = REPEATED * 2;
    budget.max_recorded_anchor_bytes = REPEATED_TEXT * 8;
    budget
}

/// What went wrong, without what is said around it.
fn bare(mut error: &serde_saphyr::Error) -> &serde_saphyr::Error {
    use serde_saphyr::Error;
    while let Error::AliasError { error: inner, .. } | Error::WithSnippet { error: inner, .. } = error {
        error = inner;
    }
    error
}

/// Go's words for what it refuses as well. Values of any length are quoted in part.
fn words_of(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match bare(error) {
        Error::Budget {
            breach: BudgetBreach::Depth { .. },
            ..
        } => format!("exceeded max depth of {DEEPEST}"),
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::Budget {
            breach:
                BudgetBreach::Aliases { .. }
                | BudgetBreach::Anchors { .. }
                | BudgetBreach::AliasAnchorRatio { .. }
                | BudgetBreach::MergeKeys { .. }
                | BudgetBreach::ScalarBytes { .. }
                | BudgetBreach::RecordedAnchorEvents { .. }
                | BudgetBreach::RecordedAnchorBytes { .. },
            ..
        } => "document contains excessive aliasing".to_owned(),
        Error::Budget {
            breach: BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. },
            ..
        } => "document contains too many values".to_owned(),
        other if other.to_string().starts_with("recursion limit exceeded") => {
            format!("exceeded max depth of {DEEPEST}")
        }
        _ => {
            let mut text = error.to_string();
            if let Some((end, _)) = text.char_indices().nth(LONGEST) {
                text.truncate(end);
                text.push_str("...");
            }
            text
        }
    }
}

#[derive(Default)]
struct Notes {
    trail: Trail,
    /// `line 3: key "a" already set in map`
    repeated: Vec<String>,
}

/// Parses one YAML document.
pub fn decode(bytes: &[u8]) -> Result<Parsed, YamlError> {
    // JSON is YAML: what clients send as YAML mostly is JSON, which is read many times as fast. Repeated keys are told
    // in YAML's words, so those go the long way.
    if let Some(object) = json::plain(bytes) {
        return Ok(Parsed {
            object,
            duplicates: Vec::new(),
            complaint: None,
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| YamlError::Utf8(error.valid_up_to()))?;
    let mut options = Options::default();
    options.budget = Some(budget(bytes.len()));
    options.alias_limits.max_total_replayed_events = REPEATED;
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    options.ignore_binary_tag_for_string = true;
    let notes = RefCell::new(Notes::default());
    let object = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        Tree { notes: &notes }.deserialize(deserializer)
    })
    .map_err(|error| YamlError::Syntax(words_of(&error)))?;
    let notes = notes.into_inner();
    let complaint =
        (!notes.repeated.is_empty()).then(|| format!("yaml: unmarshal errors:\n  {}", notes.repeated.join("\n  ")));
    Ok(Parsed {
        object,
        duplicates: notes.trail.found,
        complaint,
    })
}

/// Block-style YAML with sorted keys.
pub fn encode(object: &Object) -> String {
    // Writing a tree into a string fails only if formatting does.
    serde_saphyr::to_string(object).unwrap_or_default()
}

#[derive(Clone, Copy)]
struct Tree<'a> {
    notes: &'a RefCell<Notes>,
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
        f.write_str("a YAML value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
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
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number must be finite"))
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
            let before = self.notes.borrow_mut().trail.enter_index(items.len());
            let next = seq.next_element_seed(self)?;
            self.notes.borrow_mut().trail.leave(before);
            match next {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            let key = key.value;
            let before = {
                let mut notes = self.notes.borrow_mut();
                let before = notes.trail.enter_key(&key);
                if entries.contains_key(&key) {
                    notes.trail.repeated();
                    let quoted = crate::field::quote(&key);
                    if notes.repeated.len() < MOST {
                        notes
                            .repeated
                            .push(format!("line {line}: key {quoted} already set in map"));
                    }
                }
                before
            };
            let value = map.next_value_seed(self)?;
            self.notes.borrow_mut().trail.leave(before);
            entries.insert(key, value);
        }
        Ok(Value::Object(entries))
    }
}
