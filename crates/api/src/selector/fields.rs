//! Field selectors: `metadata.name=x,spec.nodeName!=y`, with `\` escaping `,`, `=` and itself in values.

use std::fmt;

use thiserror::Error;

use super::Lookup;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FieldSelectorError {
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// Upstream prints the character's number.
    #[error("invalid field selector: unescaped character in value: {}", *.0 as u32)]
    Unescaped(char),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldRequirement {
    pub field: String,
    pub negated: bool,
    pub value: String,
}

/// A conjunction; empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

fn unescape(text: &str) -> Result<String, FieldSelectorError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(ch) = chars.next() {
        match ch {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                other => {
                    return Err(FieldSelectorError::Escape(std::iter::once('\\').chain(other).collect()));
                }
            },
            ',' | '=' => return Err(FieldSelectorError::Unescaped(ch)),
            ch => out.push(ch),
        }
    }
    Ok(out)
}

/// Splits at commas that are not escaped.
fn terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, ch) in text.char_indices() {
        match ch {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Splits at the first operator: field, whether it negates, and the raw value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in term.char_indices() {
        let (field, rest) = term.split_at(at);
        for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((field, negated, value));
            }
        }
    }
    None
}

impl FieldSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn equal(field: &str, value: &str) -> Self {
        FieldSelector {
            requirements: vec![FieldRequirement {
                field: field.into(),
                negated: false,
                value: value.into(),
            }],
        }
    }

    pub fn parse(text: &str) -> Result<Self, FieldSelectorError> {
        let mut parts = terms(text);
        parts.sort_unstable();
        let mut requirements = Vec::new();
        for term in parts.into_iter().filter(|term| !term.is_empty()) {
            let Some((field, negated, value)) = split_term(term) else {
                return Err(FieldSelectorError::Term {
                    selector: text.to_owned(),
                    term: term.to_owned(),
                });
            };
            let value = unescape(value)?;
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                negated,
                value,
            });
        }
        Ok(FieldSelector { requirements })
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }
    /// A missing field reads as the empty string.
    pub fn matches(&self, fields: &(impl Lookup + ?Sized)) -> bool {
        self.requirements
            .iter()
            .all(|need| (fields.lookup(&need.field).unwrap_or_default() == need.value) != need.negated)
    }
    /// The one value this field must have, if the selector says so.
    pub fn exact_match(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|need| need.field == field && !need.negated)
            .map(|need| need.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, need) in self.requirements.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            f.write_str(&need.field)?;
            f.write_str(if need.negated { "!=" } else { "=" })?;
            for ch in need.value.chars() {
                if matches!(ch, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                fmt::Write::write_char(f, ch)?;
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for FieldSelector {
    type Err = FieldSelectorError;
    fn from_str(text: &str) -> Result<Self, FieldSelectorError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn selectors_parse_and_print() {
        for (text, printed) in [
            ("", ""),
            ("a=b", "a=b"),
            ("a==b", "a=b"),
            ("b!=c,a=b", "a=b,b!=c"),
            ("a=", "a="),
            (",a=b,", "a=b"),
            (r"a=b\,c\=d\\", r"a=b\,c\=d\\"),
            ("a!=", "a!="),
            ("=x", "=x"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap().to_string(), printed, "{text}");
        }
        for (text, message) in [
            ("abc", "invalid selector: 'abc'; can't understand 'abc'"),
            ("a=b,c", "invalid selector: 'a=b,c'; can't understand 'c'"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
            (r"a=b\c", r"invalid field selector: invalid escape sequence: \c"),
            (r"a=b\", r"invalid field selector: invalid escape sequence: \"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn missing_fields_are_empty() {
        let fields = [("metadata.name", "x"), ("status.phase", "Running")];
        for (text, matches) in [
            ("", true),
            ("metadata.name=x", true),
            ("metadata.name!=x", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            ("metadata.name=x,status.phase!=Failed", true),
            ("metadata.name=x,status.phase=Failed", false),
        ] {
            assert_eq!(
                FieldSelector::parse(text).unwrap().matches(&fields[..]),
                matches,
                "{text}"
            );
        }
        assert_eq!(FieldSelector::parse("b!=1,a=2").unwrap().exact_match("a"), Some("2"));
        assert_eq!(FieldSelector::parse("a!=2").unwrap().exact_match("a"), None);
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(pairs in proptest::collection::vec(("[a-z.]{1,8}", any::<bool>(), "\\PC{0,12}"), 0..4)) {
            let selector = FieldSelector { requirements: pairs.into_iter().map(|(field, negated, value)| FieldRequirement { field, negated, value }).collect() };
            let again = FieldSelector::parse(&selector.to_string()).unwrap();
            let (mut a, mut b) = (selector.requirements, again.requirements);
            a.sort();
            b.sort();
            prop_assert_eq!(a, b);
        }
        #[test]
        fn any_text_is_read_or_refused(text in "[a=!,\\\\b]{0,20}") {
            if let Ok(selector) = FieldSelector::parse(&text) {
                selector.to_string();
            }
        }
    }
}
