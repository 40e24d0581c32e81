//! What changed between two trees, as text for people: one line for each value gone and each value come.

use serde_json::Value;

use crate::tree;

/// `- path: old` and `+ path: new` lines, in path order; as far as [`tree::same`] sees a difference.
pub(crate) fn lines(old: &Value, new: &Value) -> String {
    let mut out = Vec::new();
    walk("", Some(old), Some(new), &mut out);
    out.join("\n")
}

fn walk(path: &str, old: Option<&Value>, new: Option<&Value>, out: &mut Vec<String>) {
    if tree::same(old, new) {
        return;
    }
    match (old, new) {
        (Some(Value::Object(was)), Some(Value::Object(is))) => {
            let mut keys: Vec<_> = was.keys().chain(is.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                walk(&path, was.get(key), is.get(key), out);
            }
        }
        (Some(Value::Array(was)), Some(Value::Array(is))) => {
            for index in 0..was.len().max(is.len()) {
                walk(&format!("{path}[{index}]"), was.get(index), is.get(index), out);
            }
        }
        _ => {
            for (sign, value) in [('-', old), ('+', new)] {
                if let Some(value) = value {
                    out.push(format!("{sign} {path}: {value}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_told() {
        let old = json!({"a": 1, "b": [{"c": "x"}], "d": {"e": true}});
        let new = json!({"a": 2, "b": [{"c": "x"}, {"c": "y"}], "d": {"e": true}, "f": []});
        assert_eq!(lines(&old, &new), "- a: 1\n+ a: 2\n+ b[1]: {\"c\":\"y\"}");
    }
}
