//! Paths to fields as rules and selectable fields state them: `.spec.name`, `.spec['a.b']`.

use crate::schema::Schema;

/// A path that leads to a field of the schema.
#[derive(Clone, Debug)]
pub struct FieldPath<'a> {
    /// As field errors write it: `spec.name`, `spec.map[key]`.
    pub shown: String,
    pub names: Vec<String>,
    /// The schema it leads to.
    pub schema: &'a Schema,
}

/// Follows a path; the error says what is wrong with it. `brackets`: whether `['name']` is allowed.
pub fn field_path<'a>(text: &str, schema: &'a Schema, brackets: bool) -> Result<FieldPath<'a>, String> {
    let mut found = FieldPath {
        shown: String::new(),
        names: Vec::new(),
        schema,
    };
    let mut tokens = tokens(text).into_iter();
    while let Some(token) = tokens.next() {
        let name = match token {
            "." => tokens.next().ok_or("unexpected end of JSON path")?.to_owned(),
            "[" => {
                if !brackets {
                    return Err("array notation is not allowed".into());
                }
                let quoted = tokens.next().ok_or("unexpected end of JSON path")?;
                let inner = quoted
                    .strip_prefix('\'')
                    .and_then(|rest| rest.strip_suffix('\''))
                    .ok_or_else(|| format!("expected single quoted string but got {quoted}"))?;
                let name = unescape(inner)?;
                match tokens.next() {
                    Some("]") => {}
                    Some(other) => return Err(format!("expected ] but got {other}")),
                    None => return Err("unexpected end of JSON path".into()),
                }
                name
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        found.step(name)?;
    }
    Ok(found)
}

impl FieldPath<'_> {
    fn step(&mut self, name: String) -> Result<(), String> {
        let missing = || "does not refer to a valid field".to_owned();
        if !self.schema.properties.is_empty() {
            self.schema = self.schema.properties.get(&name).ok_or_else(missing)?;
            if !self.shown.is_empty() {
                self.shown.push('.');
            }
            self.shown.push_str(&name);
        } else {
            self.schema = self.schema.additional.as_deref().ok_or_else(missing)?;
            self.shown.push('[');
            self.shown.push_str(&name);
            self.shown.push(']');
        }
        self.names.push(name);
        Ok(())
    }
}

/// Dots and brackets one by one, what is between them whole; quoted text keeps its delimiters.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = if first == '\'' {
            let mut escaped = false;
            rest.char_indices()
                .skip(1)
                .find(|(_, char)| {
                    let closes = *char == '\'' && !escaped;
                    escaped = *char == '\\' && !escaped;
                    closes
                })
                .map_or(rest.len(), |(at, _)| at + 1)
        } else if matches!(first, '.' | '[' | ']') {
            1
        } else {
            rest.find(['.', '[', ']']).unwrap_or(rest.len())
        };
        let (token, after) = rest.split_at(end);
        found.push(token);
        rest = after;
    }
    found
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            out.push(char);
            continue;
        }
        out.push(match chars.next() {
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\x0b',
            Some(same @ ('\'' | '\\')) => same,
            other => {
                let shown = other.map(String::from).unwrap_or_default();
                return Err(format!("invalid string literal: invalid escape char \\{shown}"));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_are_followed() {
        let schema = Schema::parse(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a.b": {"type": "string"}, "map": {"type": "object", "additionalProperties": {"type": "integer"}}}}}}),
        )
        .unwrap();
        let shown = |text: &str| field_path(text, &schema, true).map(|path| path.shown);
        assert_eq!(shown(".spec['a.b']"), Ok("spec.a.b".into()));
        assert_eq!(shown(".spec.map.x"), Ok("spec.map[x]".into()));
        assert_eq!(shown(".spec.map['x\\'y']"), Ok("spec.map[x'y]".into()));
        assert_eq!(shown(".none"), Err("does not refer to a valid field".into()));
        assert_eq!(shown("spec"), Err("expected [ or . but got: spec".into()));
        assert_eq!(shown(".spec[0]"), Err("expected single quoted string but got 0".into()));
        assert_eq!(shown("."), Err("unexpected end of JSON path".into()));
        assert!(field_path(".spec['a.b']", &schema, false).is_err());
    }
}
