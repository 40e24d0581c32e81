//! What can go wrong, worded as cel-go words it.

use std::fmt;

/// Complaints about an expression. `Display` shows each with its place in the source, as upstream's
/// `compilation failed: …` messages do after the colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    source: String,
    pub issues: Vec<Issue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Characters from the beginning of the expression.
    pub at: u32,
    pub message: String,
}

impl Issue {
    pub(crate) fn new(at: u32, message: impl Into<String>) -> Issue {
        Issue {
            at,
            message: message.into(),
        }
    }
}

/// Longer lines are not shown.
const MAX_SNIPPET: usize = 16384;
/// More complaints than this help nobody.
const MAX_ISSUES: usize = 100;

impl CompileError {
    pub(crate) fn new(source: &str, mut issues: Vec<Issue>) -> CompileError {
        issues.sort_by_key(|issue| issue.at);
        issues.dedup();
        issues.truncate(MAX_ISSUES);
        CompileError {
            source: source.to_owned(),
            issues,
        }
    }

    /// A complaint about the whole, without a place.
    pub fn plain(message: impl Into<String>) -> CompileError {
        CompileError {
            source: String::new(),
            issues: vec![Issue::new(u32::MAX, message)],
        }
    }

    fn show(&self, issue: &Issue, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if issue.at == u32::MAX {
            return f.write_str(&issue.message);
        }
        let (mut line, mut column, mut start) = (1, 0, 0);
        for (index, (byte, c)) in self.source.char_indices().enumerate() {
            if index as u32 == issue.at {
                break;
            }
            if c == '\n' {
                (line, column, start) = (line + 1, 0, byte + 1);
            } else {
                column += 1;
            }
        }
        // Nothing at all has no first column either.
        let shown = if self.source.is_empty() { 0 } else { column + 1 };
        write!(f, "ERROR: <input>:{line}:{shown}: {}", issue.message)?;
        let snippet = self.source.get(start..).unwrap_or_default();
        let snippet = snippet.split('\n').next().unwrap_or_default().replace('\t', " ");
        if snippet.len() > MAX_SNIPPET {
            return Ok(());
        }
        write!(f, "\n | {snippet}\n | ")?;
        let mut chars = snippet.chars();
        for c in chars.by_ref().take(column) {
            f.write_str(if c.is_ascii() { "." } else { "\u{ff0e}" })?;
        }
        let wide = chars.next().is_some_and(|c| !c.is_ascii());
        f.write_str(if wide { "\u{ff3e}" } else { "^" })
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, issue) in self.issues.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            self.show(issue, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileError {}

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// This expression alone cost more than one may.
    #[error("operation cancelled: actual cost limit exceeded")]
    CallLimit,
    /// All expressions that share the budget cost more than they may together.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    Budget,
    #[error("{0}")]
    Failed(String),
}

impl EvalError {
    pub fn failed(message: impl Into<String>) -> EvalError {
        EvalError::Failed(message.into())
    }
    pub(crate) fn no_overload() -> EvalError {
        EvalError::failed("no such overload")
    }
    pub(crate) fn no_key(key: impl fmt::Display) -> EvalError {
        EvalError::Failed(format!("no such key: {key}"))
    }
    pub fn is_call_limit(&self) -> bool {
        *self == EvalError::CallLimit
    }
    pub fn is_budget(&self) -> bool {
        *self == EvalError::Budget
    }
    /// Whether evaluation must stop whatever `||` and `&&` would make of it.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, EvalError::CallLimit | EvalError::Budget)
    }
}
