//! Field paths and field errors, worded as upstream's `field` package words them: clients match on these texts.
//!
//! Source of the wording: k8s.io/apimachinery `pkg/util/validation/field` (read for behaviour).

use std::fmt;

use serde_json::Value;

/// A path to a field, such as `spec.containers[0].name` or `metadata.labels[a/b]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path of one name.
    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }
    /// `self.name`
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Path(name.to_owned())
        } else {
            Path(format!("{}.{name}", self.0))
        }
    }
    /// `self[index]`
    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }
    /// `self[key]`
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{key}]", self.0))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with a field; [`Kind::cause`] is the `reason` of the Status cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    Internal,
    TypeInvalid,
}

impl Kind {
    /// The machine-readable reason, as in `metav1.StatusCause.reason`.
    pub fn cause(self) -> &'static str {
        match self {
            Kind::NotFound => "FieldValueNotFound",
            Kind::Required => "FieldValueRequired",
            Kind::Duplicate => "FieldValueDuplicate",
            Kind::Invalid => "FieldValueInvalid",
            Kind::NotSupported => "FieldValueNotSupported",
            Kind::Forbidden => "FieldValueForbidden",
            Kind::TooLong => "FieldValueTooLong",
            Kind::TooShort => "FieldValueTooShort",
            Kind::TooMany => "FieldValueTooMany",
            Kind::TooFew => "FieldValueTooFew",
            Kind::Internal => "InternalError",
            Kind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
    fn words(self) -> &'static str {
        match self {
            Kind::NotFound => "Not found",
            Kind::Required => "Required value",
            Kind::Duplicate => "Duplicate value",
            Kind::Invalid | Kind::TypeInvalid => "Invalid value",
            Kind::NotSupported => "Unsupported value",
            Kind::Forbidden => "Forbidden",
            Kind::TooLong => "Too long",
            Kind::TooShort => "Too short",
            Kind::TooMany => "Too many",
            Kind::TooFew => "Too few",
            Kind::Internal => "Internal error",
        }
    }
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub kind: Kind,
    pub path: Path,
    /// The offending value; shown for kinds that show it.
    pub value: Value,
    pub detail: String,
    /// The value is too much to repeat.
    pub omitted: bool,
    /// The value is a text that already reads as Go would print the value.
    pub printed: bool,
}

/// Every error found in one object, in the order found.
pub type Errors = Vec<Error>;

impl Error {
    pub fn new(kind: Kind, path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Error {
            kind,
            path: path.clone(),
            value: value.into(),
            detail: detail.into(),
            omitted: false,
            printed: false,
        }
    }
    /// Shows the value in these words: for values whose Go type prints in a way of its own.
    pub fn showing(mut self, printed: String) -> Self {
        self.value = Value::String(printed);
        self.printed = true;
        self
    }
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(Kind::Required, path, Value::Null, detail)
    }
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, path, value, detail)
    }
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(Kind::Forbidden, path, Value::Null, detail)
    }
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(Kind::Duplicate, path, value, "")
    }
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(Kind::NotFound, path, value, "")
    }
    /// `supported values: "A", "B"`, in the order given: upstream sorts some lists and not others.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let names: Vec<_> = supported.iter().map(|name| quote(name)).collect();
        let detail = if names.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", names.join(", "))
        };
        Self::new(Kind::NotSupported, path, value, detail)
    }
    /// For a string longer than `max` bytes. The value itself is not repeated.
    pub fn too_long(path: &Path, max: usize) -> Self {
        Self::new(
            Kind::TooLong,
            path,
            Value::Null,
            format!("may not be more than {max} {}", counted(max, "byte")),
        )
    }
    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        Self::new(
            Kind::TooMany,
            path,
            actual,
            format!("must have at most {max} {}", counted(max, "item")),
        )
    }
    pub fn too_few(path: &Path, actual: usize, min: usize) -> Self {
        Self::new(
            Kind::TooFew,
            path,
            actual,
            format!("must have at least {min} {}", counted(min, "item")),
        )
    }
    pub fn too_short(path: &Path, min: usize) -> Self {
        Self::new(
            Kind::TooShort,
            path,
            Value::Null,
            format!("must be at least {min} {}", counted(min, "character")),
        )
    }
    /// Something that should not happen while validating; not the client's fault.
    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(Kind::Internal, path, Value::Null, detail)
    }

    /// The text after the path: `Invalid value: "x": must be …`.
    pub fn body(&self) -> String {
        let words = self.kind.words();
        let shows_value = !self.omitted
            && !matches!(
                self.kind,
                Kind::Required | Kind::Forbidden | Kind::TooLong | Kind::TooShort | Kind::Internal
            );
        let mut text = if shows_value {
            let value = match &self.value {
                Value::String(text) if self.printed => text.clone(),
                value => shown(value),
            };
            format!("{words}: {value}")
        } else {
            words.to_owned()
        };
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A value as Go would print it in an error: strings quoted, numbers and booleans bare, trees as JSON, nothing as `null`.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        // The one type shown in errors whose fields Go declares in another order than the alphabet's.
        Value::Object(map) if map.len() == 2 => match (map.get("matchLabels"), map.get("matchExpressions")) {
            (Some(labels), Some(expressions)) => {
                format!("{{\"matchLabels\":{labels},\"matchExpressions\":{expressions}}}")
            }
            _ => value.to_string(),
        },
        other => other.to_string(),
    }
}

fn counted(count: usize, unit: &str) -> String {
    if count == 1 {
        unit.to_owned()
    } else {
        format!("{unit}s")
    }
}

/// A string as Go's `%q` prints it: double quotes, Go's escapes, printable Unicode as it is.
pub fn quote(text: &str) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for ch in text.chars() {
        match ch {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            ch if (ch as u32) < 0x20 || ch == '\x7f' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{:02x}", ch as u32);
            }
            ch if is_printable(ch) => out.push(ch),
            ch if (ch as u32) < 0x1_0000 => {
                let _ = write!(out, "\\u{:04x}", ch as u32);
            }
            ch => {
                let _ = write!(out, "\\U{:08x}", ch as u32);
            }
        }
    }
    out.push('"');
    out
}

/// Whether a character prints as itself; the standard library's own judgement, taken from its escaper.
fn is_printable(ch: char) -> bool {
    ch == ' ' || ch == '\'' || (!ch.is_control() && !ch.is_whitespace() && ch.escape_debug().len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream_words_them() {
        let name = Path::new("metadata").child("name");
        let cases = [
            (
                Error::required(&name, "name or generateName is required"),
                "metadata.name: Required value: name or generateName is required",
            ),
            (
                Error::invalid(&name, "A", "must be lower case"),
                r#"metadata.name: Invalid value: "A": must be lower case"#,
            ),
            (
                Error::not_supported(&Path::new("spec").child("type"), "X", &["B", "A"]),
                r#"spec.type: Unsupported value: "X": supported values: "B", "A""#,
            ),
            (
                Error::duplicate(&Path::new("spec").child("ports").index(1).child("name"), "http"),
                r#"spec.ports[1].name: Duplicate value: "http""#,
            ),
            (
                Error::invalid(
                    &Path::new("spec").child("selector"),
                    serde_json::json!({"matchExpressions": [], "matchLabels": {"a": "b"}}),
                    "field is immutable",
                ),
                r#"spec.selector: Invalid value: {"matchLabels":{"a":"b"},"matchExpressions":[]}: field is immutable"#,
            ),
            (
                Error::duplicate(&Path::new("spec").child("taints").index(1), "").showing(r#"{"Key":"k"}"#.into()),
                r#"spec.taints[1]: Duplicate value: {"Key":"k"}"#,
            ),
            (
                Error::forbidden(&Path::new("spec"), "pod updates may not change fields"),
                "spec: Forbidden: pod updates may not change fields",
            ),
            (
                Error::too_long(&name, 63),
                "metadata.name: Too long: may not be more than 63 bytes",
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}
