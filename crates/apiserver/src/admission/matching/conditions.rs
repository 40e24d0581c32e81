//! Match conditions: CEL that spares calls and evaluations.
//!
//! One condition that does not hold outweighs the errors of all others; otherwise an error is the failure policy's
//! business.

use sampan_cel::policy::Compiler;
use sampan_cel::{Activation, Budget, EvalError, MATCH_CONDITIONS_BUDGET, Program};
use serde_json::Value;

use crate::admission::text;

/// `matchConditions`, compiled.
#[derive(Default)]
pub struct Conditions(Vec<(String, Result<Program, String>)>);

impl Conditions {
    /// Those in the field `matchConditions`.
    pub fn of(value: &Value, compiler: &Compiler) -> Self {
        let conditions = value.get("matchConditions").and_then(Value::as_array);
        let compile = |condition: &Value| {
            let expression = text(condition, "/expression").trim();
            (expression.to_owned(), compiler.condition(expression))
        };
        Conditions(conditions.into_iter().flatten().map(compile).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold; else the errors, where none failed to.
    pub fn hold(&self, activation: &Activation<'_>) -> Result<bool, String> {
        let budget = Budget::new(MATCH_CONDITIONS_BUDGET);
        let mut errors = Vec::new();
        for (expression, program) in &self.0 {
            let program = match program {
                Ok(program) => program,
                Err(why) => {
                    errors.push(format!("compilation error: {why}"));
                    continue;
                }
            };
            match program.eval(activation, &budget) {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => return Ok(false),
                Err(error @ EvalError::Budget) => {
                    errors.push(error.to_string());
                    break;
                }
                Err(error) => errors.push(format!("expression '{expression}' resulted in error: {error}")),
            }
        }
        match errors.len() {
            0 => Ok(true),
            1 => Err(errors.concat()),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }
}
