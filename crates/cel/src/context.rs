//! What bounds an evaluation: the cost as upstream counts it, and the work that upstream's figures do not cover.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use regex::Regex;

use crate::error::EvalError;

/// What one expression may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// What the rules of one object, or the expressions of one policy, may cost together.
pub const RUNTIME_BUDGET: u64 = 10_000_000;
/// What the match conditions of one webhook or binding may cost together.
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;

/// Steps of our own (items compared or copied) per expression; about a second.
const WORK_LIMIT: u64 = 20_000_000;
/// What compiling a pattern that is not written in the expression counts as.
const PATTERN_WORK: u64 = 20_000;

/// What several evaluations may cost together. Not shared between threads; evaluation never waits.
#[derive(Debug)]
pub struct Budget {
    left: Cell<u64>,
}

impl Budget {
    pub fn new(limit: u64) -> Budget {
        Budget { left: Cell::new(limit) }
    }
    pub fn left(&self) -> u64 {
        self.left.get()
    }
    /// Takes what an evaluation has cost.
    pub(crate) fn spend(&self, cost: u64) -> Result<(), EvalError> {
        match self.left.get().checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(EvalError::Budget)
            }
        }
    }
}

/// The meters of one evaluation.
pub(crate) struct Context<'p> {
    cost: Cell<u64>,
    work: Cell<u64>,
    limit: u64,
    /// Patterns made while evaluating.
    patterns: RefCell<HashMap<String, Regex>>,
    /// The pattern of the call that is running, if it is written in the expression.
    pub pattern: Cell<Option<&'p Regex>>,
}

impl<'p> Context<'p> {
    pub fn new(limit: u64) -> Self {
        Context {
            cost: Cell::new(0),
            work: Cell::new(0),
            limit,
            patterns: RefCell::default(),
            pattern: Cell::new(None),
        }
    }

    pub fn cost(&self) -> u64 {
        self.cost.get()
    }

    pub fn charge(&self, cost: u64) -> Result<(), EvalError> {
        let cost = self.cost.get().saturating_add(cost);
        self.cost.set(cost);
        if cost > self.limit {
            return Err(EvalError::CallLimit);
        }
        Ok(())
    }

    /// Counts steps before they are taken.
    pub fn work(&self, steps: u64) -> Result<(), EvalError> {
        let work = self.work.get().saturating_add(steps);
        self.work.set(work);
        if work > WORK_LIMIT {
            return Err(EvalError::CallLimit);
        }
        Ok(())
    }

    pub fn regex(&self, pattern: &str) -> Result<Regex, EvalError> {
        if let Some(known) = self.pattern.get() {
            return Ok(known.clone());
        }
        if let Some(known) = self.patterns.borrow().get(pattern) {
            return Ok(known.clone());
        }
        self.work(PATTERN_WORK)?;
        let made = crate::pattern::compile(pattern).map_err(EvalError::Failed)?;
        self.patterns.borrow_mut().insert(pattern.to_owned(), made.clone());
        Ok(made)
    }
}
