//! Patterns of schemas: Go's regular expressions, matched in linear time (`sampan_cel::pattern`).

use std::sync::Arc;

use regex::Regex;
pub use sampan_cel::pattern::compile;

/// A pattern with its program, or with why there is none.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub text: String,
    program: Arc<Result<Regex, String>>,
}

impl Pattern {
    pub fn new(text: &str) -> Self {
        Pattern {
            text: text.to_owned(),
            program: Arc::new(compile(text)),
        }
    }

    /// Whether the pattern is found in `text`; why it is not a pattern at all.
    pub fn is_match(&self, text: &str) -> Result<bool, &str> {
        match &*self.program {
            Ok(program) => Ok(program.is_match(text)),
            Err(why) => Err(why),
        }
    }

    pub fn error(&self) -> Option<&str> {
        self.program.as_ref().as_ref().err().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_go_matches_them() {
        let cases = [
            ("^[a-z]+$", "abc", true),
            ("^[a-z]+$", "aBc", false),
            (r"^\d{3}$", "123", true),
            (r"^\d{3}$", "١٢٣", false),
            (r"^[\w.-]+$", "a_b.c-d", true),
            ("^[[]$", "[", true),
            ("^[]a]+$", "]a", true),
            ("^[[:alpha:]]+$", "ab", true),
            ("^a{,2}$", "a{,2}", true),
            ("^{x}$", "{x}", true),
            (r"^\-\_\/$", "-_/", true),
            (r"^\S+$", "a b", false),
            ("^[a&&b]$", "&", true),
            (r"\bfoo\b", "a foo b", true),
            ("^(([0-9]+)|(v[0-9]+))$", "v1", true),
        ];
        for (pattern, text, wanted) in cases {
            assert_eq!(Pattern::new(pattern).is_match(text), Ok(wanted), "{pattern} {text}");
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for bad in ["[a", "(", ")", "*", "(?=a)", "\\", "((a{1000}){1000}){1000}"] {
            let why = Pattern::new(bad).error().map(str::to_owned).unwrap_or_default();
            assert!(why.starts_with("error parsing regexp: "), "{bad}: {why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(pattern in ".{0,40}", text in ".{0,40}") {
            let _ = Pattern::new(&pattern).is_match(&text);
        }
    }
}
