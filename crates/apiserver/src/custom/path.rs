//! The part of JSONPath that printer columns use: `.spec.list[0].name`, `['a.b']`, `[*]` and
//! `[?(@.type=="Ready")]`. Anything else reads as nothing.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Elements whose field (by steps) has this text.
    Where(Vec<String>, String),
}

/// A parsed path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JsonPath(Option<Vec<Step>>);

impl JsonPath {
    pub fn parse(text: &str) -> Self {
        JsonPath(parse(text))
    }

    /// The first value the path finds.
    pub fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        let mut found = vec![root];
        for step in self.0.as_ref()? {
            found = found.into_iter().flat_map(|value| take(step, value)).collect();
        }
        found.into_iter().next()
    }
}

fn take<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            let Some(list) = value.as_array() else {
                return Vec::new();
            };
            let at = if *index < 0 { list.len() as i64 + index } else { *index };
            usize::try_from(at)
                .ok()
                .and_then(|at| list.get(at))
                .into_iter()
                .collect()
        }
        Step::All => match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Where(path, wanted) => value
            .as_array()
            .into_iter()
            .flatten()
            .filter(|element| {
                let mut at = Some(*element);
                for name in path {
                    at = at.and_then(|value| value.get(name));
                }
                match at {
                    Some(Value::String(text)) => text == wanted,
                    Some(other) => format!("{other}").eq(wanted),
                    None => false,
                }
            })
            .collect(),
    }
}

fn parse(text: &str) -> Option<Vec<Step>> {
    let mut rest = text.strip_prefix('$').unwrap_or(text);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            let inner = after.get(..end)?.trim();
            rest = after.get(end + 1..)?;
            steps.push(bracket(inner)?);
        } else {
            let after = rest.strip_prefix('.').unwrap_or(rest);
            if after.is_empty() {
                break;
            }
            let mut name = String::new();
            let mut taken = 0;
            let mut chars = after.char_indices();
            while let Some((at, char)) = chars.next() {
                match char {
                    '\\' => {
                        let (next, escaped) = chars.next()?;
                        name.push(escaped);
                        taken = next + escaped.len_utf8();
                    }
                    '.' | '[' => break,
                    _ => {
                        name.push(char);
                        taken = at + char.len_utf8();
                    }
                }
            }
            if name.is_empty() {
                return None;
            }
            rest = after.get(taken..)?;
            steps.push(if name == "*" { Step::All } else { Step::Field(name) });
        }
    }
    Some(steps)
}

/// Where the bracket closes, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, char) in text.char_indices() {
        match (quote, char) {
            (Some(open), _) if open == char => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(char),
            (None, ']') => return Some(at),
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<&str> {
    ['\'', '"']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
}

fn bracket(inner: &str) -> Option<Step> {
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquoted(inner) {
        return Some(Step::Field(name.to_owned()));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|inner| inner.strip_suffix(')')) {
        let (left, right) = filter.split_once("==")?;
        let path = left.trim().strip_prefix("@.")?;
        let right = right.trim();
        let wanted = unquoted(right).unwrap_or(right);
        return Some(Step::Where(
            path.split('.').map(str::to_owned).collect(),
            wanted.to_owned(),
        ));
    }
    inner.parse().ok().map(Step::Index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_find_their_values() {
        let object = json!({"spec": {"a.b": 1, "list": [{"n": "x"}, {"n": "y"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Done", "status": "False"}]}});
        let cases = [
            (".spec.list[1].n", json!("y")),
            (".spec.list[-1].n", json!("y")),
            (".spec.list[*].n", json!("x")),
            (".spec['a.b']", json!(1)),
            (".spec.a\\.b", json!(1)),
            ("$.spec.list[0].n", json!("x")),
            (".status.conditions[?(@.type==\"Done\")].status", json!("False")),
            (".status.conditions[?(@.type=='Ready')].status", json!("True")),
        ];
        for (path, wanted) in cases {
            assert_eq!(JsonPath::parse(path).first(&object), Some(&wanted), "{path}");
        }
        for nothing in [".spec.none", ".spec[", "..", ".spec.list[?(@.n>1)]", "{"] {
            assert_eq!(JsonPath::parse(nothing).first(&object), None, "{nothing}");
        }
    }
}
