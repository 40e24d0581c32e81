//! Regular expressions as Go reads them, run by an engine whose time is linear in the text.
//!
//! `regex` knows nearly the same language as Go's RE2; what differs is rewritten: `\d`, `\w`, `\s` and `\b` mean
//! ASCII, a brace that is no repetition is a character, and `[` or `&&` mean nothing special within a class.

use regex::{Regex, RegexBuilder};

/// How large a compiled pattern may get.
const MAX_COMPILED: usize = 1 << 20;
/// How long a pattern may be.
const MAX_LENGTH: usize = 64 * 1024;

/// Compiles a pattern; the error is worded as Go's.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let wrong = |why: &str| format!("error parsing regexp: {why}: `{pattern}`");
    if pattern.len() > MAX_LENGTH {
        return Err("error parsing regexp: expression too large".to_owned());
    }
    RegexBuilder::new(&translate(pattern))
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .nest_limit(250)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => wrong("expression nests too deeply or is too large"),
            regex::Error::Syntax(text) => {
                let line = text.lines().last().unwrap_or_default();
                let why = match line.trim_start_matches("error: ") {
                    "unclosed group" => "missing closing )",
                    "unopened group" => "unexpected )",
                    "unclosed character class" => "missing closing ]",
                    "repetition operator missing expression" => "missing argument to repetition operator",
                    "invalid character class range, the start must be <= the end" => "invalid character class range",
                    other => other,
                };
                wrong(why)
            }
            other => wrong(&other.to_string()),
        })
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let Some(next) = chars.next() else {
                    out.push('\\');
                    break;
                };
                match (next, in_class) {
                    ('Q', _) => quote(&mut chars, &mut out),
                    ('d', _) => out.push_str("[0-9]"),
                    ('D', _) => out.push_str("[^0-9]"),
                    ('w', _) => out.push_str("[0-9A-Za-z_]"),
                    ('W', _) => out.push_str("[^0-9A-Za-z_]"),
                    ('s', _) => out.push_str(r"[\t\n\x0C\r ]"),
                    ('S', _) => out.push_str(r"[^\t\n\x0C\r ]"),
                    ('b', false) => out.push_str(r"(?-u:\b)"),
                    ('B', false) => out.push_str(r"\B"),
                    _ => {
                        out.push('\\');
                        out.push(next);
                    }
                }
            }
            '[' if in_class => {
                // `[:alpha:]` is a class, any other bracket a character.
                let rest: String = chars.clone().take(12).collect();
                match rest.strip_prefix(':').and_then(|rest| rest.find(":]")) {
                    Some(end) => {
                        out.push('[');
                        out.extend(chars.by_ref().take(end + 3));
                    }
                    None => out.push_str(r"\["),
                }
            }
            '[' => {
                in_class = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
                if chars.peek() == Some(&']') {
                    chars.next();
                    out.push_str(r"\]");
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '{' if !in_class => {
                let rest: String = chars.clone().take(12).collect();
                let inner = rest.split('}').next().unwrap_or_default();
                let repeats = rest.contains('}')
                    && inner.starts_with(|c: char| c.is_ascii_digit())
                    && inner.chars().all(|c| c.is_ascii_digit() || c == ',')
                    && inner.matches(',').count() <= 1;
                out.push_str(if repeats { "{" } else { r"\{" });
            }
            '}' if !in_class => {
                // The end of a repetition is kept; a brace alone is a character.
                let open = out.rfind('{');
                let repeats = open.is_some_and(|at| {
                    out.get(at + 1..)
                        .is_some_and(|inner| !inner.is_empty() && inner.chars().all(|c| c.is_ascii_digit() || c == ','))
                        && !out.get(..at).is_some_and(|before| before.ends_with('\\'))
                });
                let named = open.is_some_and(|at| {
                    out.get(..at)
                        .is_some_and(|before| [r"\p", r"\P", r"\x"].iter().any(|code| before.ends_with(code)))
                });
                out.push_str(if repeats || named { "}" } else { r"\}" });
            }
            c => out.push(c),
        }
        // `\p{Greek}` and `\x{10FFFF}`: their braces belong to them.
        if (out.ends_with(r"\p") || out.ends_with(r"\P") || out.ends_with(r"\x"))
            && !out.ends_with(r"\\p")
            && !out.ends_with(r"\\x")
            && chars.peek() == Some(&'{')
        {
            for c in chars.by_ref() {
                out.push(c);
                if c == '}' {
                    break;
                }
            }
        }
    }
    out
}

/// `\Q…\E`: everything in between stands for itself.
fn quote(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    while let Some(c) = chars.next() {
        if c == '\\' && chars.peek() == Some(&'E') {
            chars.next();
            return;
        }
        out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_go_means() {
        for (pattern, text, matches) in [
            (r"^\d+$", "123", true),
            (r"^\d+$", "١", false),
            (r"^[\w.-]+$", "a.b-c", true),
            (r"^[\w.-]+$", "ä", false),
            ("^[]a]+$", "]a", true),
            ("^[^]a]+$", "b", true),
            ("^a{2,3}$", "aaa", true),
            ("^a{,3}$", "a{,3}", true),
            ("^{x}$", "{x}", true),
            ("^[[:alpha:]]+$", "ab", true),
            ("^[[:alpha:]_]+$", "a_", true),
            ("^[[a]+$", "[a", true),
            ("^[a&&b]+$", "a&b", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\p{Greek}+$", "λ", true),
            (r"^\x{41}$", "A", true),
            (r"\bfoo\b", "a foo b", true),
        ] {
            let regex = compile(pattern).unwrap_or_else(|why| panic!("{pattern}: {why}"));
            assert_eq!(regex.is_match(text), matches, "{pattern} on {text}");
        }
        assert_eq!(
            compile("(a").unwrap_err(),
            "error parsing regexp: missing closing ): `(a`"
        );
        assert!(compile("((((a{100}){100}){100}){100})").is_err());
    }
}
