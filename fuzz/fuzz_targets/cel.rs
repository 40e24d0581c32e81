//! Expressions: whatever is typed is refused or compiled, and what compiles ends within its budget.

#![no_main]

use std::sync::LazyLock;

use sampan_cel::{Activation, Budget, Decl, Env, Value};
use serde_json::json;

static SELF: LazyLock<serde_json::Value> = LazyLock::new(|| {
    json!({"i": 7, "s": "some text", "b": true, "l": ["a", "b", "c"], "m": {"k": "v"}, "n": 1.5, "o": {"p": {"q": 1}}})
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    let env = Env::new().with("self", Decl::dynamic());
    let Ok(program) = env.compile(text) else { return };
    let _estimate = program.cost();
    let mut activation = Activation::new();
    activation.set("self", Value::json(&SELF));
    let _answer = program.eval(&activation, &Budget::new(100_000));
});
