//! Label selectors.
//!
//! The grammar is upstream's: a scanner that knows special symbols and the words `in` and `notin`, and a parser of
//! one look-ahead. Values of a set are kept sorted and distinct.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use thiserror::Error;

use super::Lookup;
use crate::field::{self, Errors, Path};
use crate::names;

/// Why a selector cannot be read; the text is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SelectorError(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, values: impl IntoIterator<Item = String>) -> Result<Self, SelectorError> {
        let mut errors = Errors::new();
        let mut values: Vec<String> = values.into_iter().collect();
        let key_errors = names::qualified_name(key);
        if !key_errors.is_empty() {
            errors.push(field::Error::invalid(&Path::new("key"), key, key_errors.join("; ")));
        }
        let path = Path::new("values");
        let complaint = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                "for 'in', 'notin' operators, values set can't be empty"
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                "exact-match compatibility requires one single value"
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                "values set must be empty for exists and does not exist"
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                "for 'Gt', 'Lt' operators, exactly one value is required"
            }
            _ => "",
        };
        if !complaint.is_empty() {
            errors.push(field::Error::invalid(&path, values.clone(), complaint));
        }
        for (index, value) in values.iter().enumerate() {
            let path = path.index(index);
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && value.parse::<i64>().is_err() {
                errors.push(field::Error::invalid(
                    &path,
                    value.as_str(),
                    "for 'Gt', 'Lt' operators, the value must be an integer",
                ));
            }
            let value_errors = names::label_value(value);
            if !value_errors.is_empty() {
                errors.push(field::Error::invalid(
                    &path.key(key),
                    value.as_str(),
                    value_errors.join("; "),
                ));
            }
        }
        match errors.as_slice() {
            [] => {
                values.sort_unstable();
                values.dedup();
                Ok(Requirement {
                    key: key.to_owned(),
                    operator,
                    values,
                })
            }
            [one] => Err(SelectorError(one.to_string())),
            many => {
                let texts: Vec<_> = many.iter().map(ToString::to_string).collect();
                Err(SelectorError(format!("[{}]", texts.join(", "))))
            }
        }
    }

    pub fn key(&self) -> &str {
        &self.key
    }
    pub fn operator(&self) -> Operator {
        self.operator
    }
    /// Sorted and distinct.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    pub fn matches(&self, labels: &(impl Lookup + ?Sized)) -> bool {
        let have = labels.lookup(&self.key);
        let listed = |value: &str| self.values.iter().any(|listed| listed == value);
        match self.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => have.is_some_and(listed),
            Operator::NotEquals | Operator::NotIn => !have.is_some_and(listed),
            Operator::Exists => have.is_some(),
            Operator::DoesNotExist => have.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |text: &str| text.parse::<i64>().ok();
                let (Some(have), Some(bound)) =
                    (have.and_then(number), self.values.first().and_then(|text| number(text)))
                else {
                    return false;
                };
                if self.operator == Operator::GreaterThan {
                    have > bound
                } else {
                    have < bound
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.join(",");
        let key = &self.key;
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A conjunction of requirements sorted by key. Empty matches everything; [`LabelSelector::nothing`] matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }
    /// What an absent selector object means.
    pub fn nothing() -> Self {
        LabelSelector {
            requirements: Vec::new(),
            nothing: true,
        }
    }
    pub fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector {
            requirements,
            nothing: false,
        }
    }
    /// Every pair must be there. Not validated: for selectors such as a Service's, which validation has seen.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::from_requirements(
            pairs
                .into_iter()
                .map(|(key, value)| Requirement {
                    key: key.into(),
                    operator: Operator::Equals,
                    values: vec![value.into()],
                })
                .collect(),
        )
    }

    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser::new(text).parse().map(Self::from_requirements)
    }

    /// From a `metav1.LabelSelector` object: null matches nothing, an empty one everything.
    pub fn from_value(selector: &Value) -> Result<Self, SelectorError> {
        let Some(selector) = selector.as_object() else {
            return Ok(Self::nothing());
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut requirements = Vec::new();
        for (key, value) in selector
            .get("matchLabels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            requirements.push(Requirement::new(key, Operator::Equals, [text(value)])?);
        }
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let part = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let values = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(text);
            requirements.push(Requirement::new(
                part("key"),
                object_operator(part("operator"))?,
                values,
            )?);
        }
        Ok(Self::from_requirements(requirements))
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }
    pub fn matches_nothing(&self) -> bool {
        self.nothing
    }
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
    pub fn matches(&self, labels: &(impl Lookup + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|need| need.matches(labels))
    }
    /// Matches the labels of a typed object.
    pub fn matches_labels(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        match labels {
            Some(labels) => self.matches(labels),
            None => self.matches(&BTreeMap::new()),
        }
    }
    /// The one value this label must have, if the selector says so: what an index can use.
    pub fn exact_match(&self, key: &str) -> Option<&str> {
        let need = self.requirements.iter().find(|need| need.key == key)?;
        match (need.operator, need.values.as_slice()) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, [value]) => Some(value),
            _ => None,
        }
    }
}

fn object_operator(name: &str) -> Result<Operator, SelectorError> {
    match name {
        "In" => Ok(Operator::In),
        "NotIn" => Ok(Operator::NotIn),
        "Exists" => Ok(Operator::Exists),
        "DoesNotExist" => Ok(Operator::DoesNotExist),
        other => Err(SelectorError(format!(
            "{} is not a valid label selector operator",
            field::quote(other)
        ))),
    }
}

/// Checks a `metav1.LabelSelector` object as validation of workloads does.
pub fn validate_label_selector(selector: &Value, path: &Path) -> Errors {
    let mut errors = names::validate_labels(
        selector.get("matchLabels").unwrap_or(&Value::Null),
        &path.child("matchLabels"),
    );
    let expressions = selector
        .get("matchExpressions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    for (index, expression) in expressions.enumerate() {
        let path = path.child("matchExpressions").index(index);
        let part = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
        let values: Vec<&str> = expression
            .get("values")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match part("operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(field::Error::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(field::Error::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(field::Error::invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        errors.extend(names::validate_label_key(part("key"), &path.child("key")));
        for (at, value) in values.iter().enumerate() {
            for message in names::label_value(value) {
                errors.push(field::Error::invalid(&path.child("values").index(at), *value, message));
            }
        }
    }
    errors
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, need) in self.requirements.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            write!(f, "{need}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for LabelSelector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// A symbol that means nothing, such as `!!`'s second half.
    Error,
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

const SYMBOLS: [(&str, Token); 9] = [
    (")", Token::Close),
    (",", Token::Comma),
    ("!", Token::Not),
    ("==", Token::DoubleEquals),
    ("=", Token::Equals),
    (">", Token::Greater),
    ("<", Token::Less),
    ("!=", Token::NotEquals),
    ("(", Token::Open),
];

fn is_special(ch: char) -> bool {
    "=!(),><".contains(ch)
}
fn is_space(ch: char) -> bool {
    " \t\r\n".contains(ch)
}

/// The next token, its text, and what follows. A NUL ends the text, as it does upstream.
fn next_token(text: &str) -> (Token, &str, &str) {
    let text = text.trim_start_matches(is_space);
    let Some(first) = text.chars().next().filter(|ch| *ch != '\0') else {
        return (Token::End, "", "");
    };
    if !is_special(first) {
        let end = text
            .find(|ch| is_special(ch) || is_space(ch) || ch == '\0')
            .unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let token = match word {
            "in" => Token::In,
            "notin" => Token::NotIn,
            _ => Token::Identifier,
        };
        return (token, word, rest);
    }
    // The longest symbol that can be read; every one begins with a symbol of one character.
    let run = text.find(|ch| !is_special(ch)).unwrap_or(text.len());
    let symbol = |length: usize| {
        let candidate = text.get(..length.min(run))?;
        SYMBOLS
            .iter()
            .find(|(name, _)| *name == candidate)
            .map(|(name, token)| (*token, name.len()))
    };
    match symbol(2).or_else(|| symbol(1)) {
        Some((token, length)) => (token, &text[..length], &text[length..]),
        None => (Token::Error, &text[..run], &text[run..]),
    }
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    position: usize,
}

type Values = std::collections::BTreeSet<String>;

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let (mut tokens, mut rest) = (Vec::new(), text);
        loop {
            let (token, literal, tail) = next_token(rest);
            tokens.push((token, literal));
            if token == Token::End {
                return Parser { tokens, position: 0 };
            }
            rest = tail;
        }
    }

    fn raw(&self) -> (Token, &'a str) {
        self.tokens.get(self.position).copied().unwrap_or((Token::End, ""))
    }
    /// What comes next, where `in` and `notin` are ordinary words.
    fn look(&self) -> (Token, &'a str) {
        match self.raw() {
            (Token::In | Token::NotIn, word) => (Token::Identifier, word),
            other => other,
        }
    }
    fn take(&mut self) -> (Token, &'a str) {
        let next = self.look();
        self.position += 1;
        next
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.look() {
                (Token::End, _) => return Ok(requirements),
                (Token::Identifier | Token::Not, _) => {
                    let requirement = self
                        .requirement()
                        .map_err(|error| SelectorError(format!("unable to parse requirement: {error}")))?;
                    requirements.push(requirement);
                    match self.take() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => {
                            let (token, word) = self.look();
                            if !matches!(token, Token::Identifier | Token::Not) {
                                return fail(format!("found '{word}', expected: identifier after ','"));
                            }
                        }
                        (_, word) => return fail(format!("found '{word}', expected: ',' or 'end of string'")),
                    }
                }
                (_, word) => return fail(format!("found '{word}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.take();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.take();
        }
        if token != Token::Identifier {
            return fail(format!("found '{key}', expected: identifier"));
        }
        let key_errors = names::qualified_name(key);
        if !key_errors.is_empty() {
            return fail(field::Error::invalid(&Path::default(), key, key_errors.join("; ")).to_string());
        }
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, []);
        }
        if matches!(self.look().0, Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, []);
        }
        let (token, word) = self.raw();
        self.position += 1;
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return fail(format!("found '{word}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.set()?,
            _ => self.exact()?,
        };
        Requirement::new(key, operator, values)
    }

    fn exact(&mut self) -> Result<Values, SelectorError> {
        if matches!(self.look().0, Token::End | Token::Comma) {
            return Ok([String::new()].into());
        }
        match self.take() {
            (Token::Identifier, value) => Ok([value.to_owned()].into()),
            (_, word) => fail(format!("found '{word}', expected: identifier")),
        }
    }

    fn set(&mut self) -> Result<Values, SelectorError> {
        let (token, word) = self.take();
        if token != Token::Open {
            return fail(format!("found '{word}' expected: '('"));
        }
        match self.look() {
            (Token::Identifier | Token::Comma, word) => {
                let values = self.identifiers()?;
                match self.take() {
                    (Token::Close, _) => Ok(values),
                    _ => fail(format!("found '{word}', expected: ')'")),
                }
            }
            (Token::Close, _) => {
                self.position += 1;
                Ok([String::new()].into())
            }
            (_, word) => fail(format!("found '{word}', expected: ',', ')' or identifier")),
        }
    }

    /// `a,b,,c`: nothing between or beside commas is the empty value.
    fn identifiers(&mut self) -> Result<Values, SelectorError> {
        let mut values = Values::new();
        loop {
            match self.take() {
                (Token::Identifier, value) => {
                    values.insert(value.to_owned());
                    match self.look() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, word) => return fail(format!("found '{word}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    let next = self.look().0;
                    if values.is_empty() || matches!(next, Token::Close | Token::Comma) {
                        values.insert(String::new());
                    }
                    if next == Token::Close {
                        return Ok(values);
                    }
                }
                (_, word) => return fail(format!("found '{word}', expected: ',', or identifier")),
            }
        }
    }
}

fn fail<T>(text: String) -> Result<T, SelectorError> {
    Err(SelectorError(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn selectors_parse_and_print() {
        for (text, printed) in [
            ("", ""),
            ("x=a,y=b,z=c", "x=a,y=b,z=c"),
            ("z=c,y==b", "y==b,z=c"),
            ("x!=a,y=b", "x!=a,y=b"),
            ("x=", "x="),
            ("x= ", "x="),
            ("x=,z= ", "x=,z="),
            ("x= ,z= ", "x=,z="),
            ("!x", "!x"),
            ("x>1", "x>1"),
            ("x>1,z<5", "x>1,z<5"),
            ("x", "x"),
            ("x,!y", "x,!y"),
            ("a in (b, c)", "a in (b,c)"),
            ("a notin (c,b,b)", "a notin (b,c)"),
            ("a in ()", "a in ()"),
            ("a in (,)", "a in ()"),
            ("a in (b,,c)", "a in (,b,c)"),
            ("in in (in, notin)", "in in (in,notin)"),
            ("a=in", "a=in"),
            ("x in (a),!y", "x in (a),!y"),
            ("a.b/c=d", "a.b/c=d"),
            ("!in", "!in"),
        ] {
            let selector = LabelSelector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.to_string(), printed, "{text}");
        }
    }

    #[test]
    fn errors_are_upstreams() {
        for (text, message) in [
            (
                "x=a||y=b",
                "unable to parse requirement: values[0][x]: Invalid value: \"a||y\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            ("x==a==b", "found '==', expected: ',' or 'end of string'"),
            ("!x=a", "found '=', expected: ',' or 'end of string'"),
            (
                "x<a",
                "unable to parse requirement: values[0]: Invalid value: \"a\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            (
                "a in (=)",
                "unable to parse requirement: found '=', expected: ',', ')' or identifier",
            ),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a=(", "unable to parse requirement: found '(', expected: identifier"),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), message, "{text}");
        }
        let error = LabelSelector::parse("-a").unwrap_err().to_string();
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist"),
            "{error}"
        );
    }

    #[test]
    fn requirements_match() {
        let labels: BTreeMap<String, String> = [("a", "1"), ("b", "x"), ("empty", "")]
            .map(|(key, value)| (key.into(), value.into()))
            .into();
        for (text, matches) in [
            ("", true),
            ("a=1", true),
            ("a!=1", false),
            ("c!=1", true),
            ("c", false),
            ("!c", true),
            ("b in (x,y)", true),
            ("b notin (x,y)", false),
            ("c notin (x)", true),
            ("a>0", true),
            ("a>1", false),
            ("a<2", true),
            ("b>0", false),
            ("empty=", true),
            ("empty", true),
            ("c=", false),
            ("a,b,!c", true),
            ("a,b,c", false),
        ] {
            let selector = LabelSelector::parse(text).unwrap();
            assert_eq!(selector.matches(&labels), matches, "{text}");
            assert_eq!(
                selector.matches(&super::super::By::new(|key: &str| labels.get(key).map(String::as_str))),
                matches,
                "{text}"
            );
            assert_eq!(
                selector.matches(&json!({"metadata": {"labels": labels}})),
                matches,
                "{text}"
            );
        }
        assert!(!LabelSelector::nothing().matches(&labels));
        let selector = LabelSelector::parse("a=1,b in (x),c in (x,y),d!=1").unwrap();
        assert_eq!(
            ["a", "b", "c", "d", "e"].map(|key| selector.exact_match(key)),
            [Some("1"), Some("x"), None, None, None]
        );
    }

    #[test]
    fn selector_objects() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"}]});
        assert_eq!(
            LabelSelector::from_value(&selector).unwrap().to_string(),
            "a=1,b in (x,y),!c"
        );
        assert!(LabelSelector::from_value(&json!({})).unwrap().is_empty());
        assert!(LabelSelector::from_value(&json!(null)).unwrap().matches_nothing());
        let bad = json!({"matchExpressions": [{"key": "b", "operator": "Near"}, {"key": "b", "operator": "In"}, {"key": "b", "operator": "Exists", "values": ["x y"]}]});
        assert_eq!(
            LabelSelector::from_value(&bad).unwrap_err().to_string(),
            "\"Near\" is not a valid label selector operator"
        );
        let texts: Vec<_> = validate_label_selector(&bad, &Path::new("spec").child("selector"))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts[0],
            "spec.selector.matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator"
        );
        assert_eq!(
            texts[1],
            "spec.selector.matchExpressions[1].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
        );
        assert_eq!(texts.len(), 4);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c=!(),<> 1\\-]{0,24}|(a|in|notin|=|==|!|,|\\(|\\)| ){0,12}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let again = LabelSelector::parse(&selector.to_string()).unwrap();
                prop_assert_eq!(selector, again);
            }
        }
    }
}
