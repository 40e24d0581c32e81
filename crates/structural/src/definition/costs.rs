//! What expressions are estimated to cost, beside the figures of upstream's library for the same schema.

use serde_json::{Value, json};

use crate::rules::{compile, declare};
use crate::schema::Rule;

fn schema() -> Value {
    let short = || json!({"type": "string", "maxLength": 10});
    let list = |items: Value| json!({"type": "array", "items": items});
    let bounded = |items: Value, most: u32| json!({"type": "array", "items": items, "maxItems": most});
    let map = |values: Value| json!({"type": "object", "additionalProperties": values});
    json!({"type": "object", "properties": {
        "a": {"type": "integer"}, "n": {"type": "number"}, "b": {"type": "boolean"},
        "s": {"type": "string"}, "t": short(), "e": {"type": "string", "enum": ["a", "bbb"]},
        "d": {"type": "string", "format": "date-time"}, "du": {"type": "string", "format": "duration"},
        "da": {"type": "string", "format": "date"}, "by": {"type": "string", "format": "byte"},
        "x": {"x-kubernetes-int-or-string": true},
        "l": bounded(short(), 5), "lu": list(json!({"type": "string"})), "li": bounded(json!({"type": "integer"}), 7),
        "lo": bounded(json!({"type": "object", "properties": {"name": short(), "v": {"type": "integer"}}}), 4),
        "m": {"type": "object", "additionalProperties": short(), "maxProperties": 6},
        "mu": map(json!({"type": "string"})),
        "mo": map(json!({"type": "object", "properties": {"q": {"type": "integer"}}})),
        "ll": bounded(bounded(json!({"type": "integer"}), 3), 2),
        "lt": bounded(json!({"type": "string", "enum": ["a", "bbb"]}), 9),
        "o": {"type": "object", "properties": {"p": {"type": "object", "properties": {"q": short()}}}}}})
}

/// The estimate of a rule, or, where the expression is no condition, of a message.
fn cost(schema: &Value, expression: &str) -> Option<u64> {
    let decl = declare(schema, false)?;
    let rule = |rule: &str, message: &str| {
        let parsed =
            json!({"type": "object", "x-kubernetes-validations": [{"rule": rule, "messageExpression": message}]});
        crate::Schema::parse(&parsed).ok()?.rules.first().cloned()
    };
    let cost_of = |rule: &Rule| {
        let made = compile(rule, &decl);
        let program = made.rule.ok()?;
        match made.message {
            Some(message) => message.ok().map(|message| message.cost().max),
            None => Some(program.cost().max),
        }
    };
    cost_of(&rule(expression, "")?).or_else(|| cost_of(&rule("true", expression)?))
}

#[test]
fn estimates_are_upstreams() {
    let schema = schema();
    let mut wrong = Vec::new();
    let lines = include_str!("costs.tsv").lines().filter(|line| !line.starts_with('#'));
    for (wanted, expression) in lines.filter_map(|line| line.split_once('\t')) {
        let own = cost(&schema, expression).map_or("refused".to_owned(), |cost| cost.to_string());
        if own != wanted {
            wrong.push(format!("{expression}: {own}, upstream {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
