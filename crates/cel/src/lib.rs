//! The Common Expression Language, as Kubernetes 1.36 uses it.
//!
//! An expression comes from a stranger and runs within a request, so everything about it is bounded: its length and
//! nesting when it is parsed, what it can cost before it is accepted (where the caller asks), what it does cost
//! when it runs, the size of patterns and of what it makes. Types are checked before anything runs, with cel-go's
//! messages, because clients read them.
//!
//! ```
//! use sampan_cel::{Activation, Budget, Decl, Env, RUNTIME_BUDGET, Value};
//! use serde_json::json;
//!
//! // Once, when a rule is written. A structural schema types `self` and `oldSelf`; a name per type.
//! let schema = json!({"type": "object", "properties": {"replicas": {"type": "integer"}}});
//! let decl = Decl::of_schema(&schema, "selfType", false).unwrap();
//! let env = Env::new().with("self", decl.clone()).with("oldSelf", decl.clone());
//! let rule = env.compile("self.replicas >= oldSelf.replicas").unwrap();
//! assert_eq!(rule.output().to_string(), "bool");
//! assert!(rule.uses("oldSelf") && rule.cost().max < 10_000_000);
//! let wrong = env.compile("self.z == 1").err().unwrap();
//! assert!(wrong.to_string().starts_with("ERROR: <input>:1:5: undefined field 'z'\n | self.z == 1\n | ....^"));
//!
//! // For every object. Values are views of the JSON; the budget is shared by all the rules of the object.
//! let (new, old) = (json!({"replicas": 3}), json!({"replicas": 2}));
//! let budget = Budget::new(RUNTIME_BUDGET);
//! let activation = Activation::new()
//!     .with("self", Value::typed(&new, &decl))
//!     .with("oldSelf", Value::typed(&old, &decl));
//! assert_eq!(rule.eval(&activation, &budget).unwrap().as_bool(), Some(true));
//! ```
//!
//! For match conditions and policies, `object`, `oldObject` and `params` are `Decl::dynamic()` with `Value::json`,
//! `request` and `namespaceObject` are `admission::request()` and `admission::namespace()`, `authorizer` is
//! `Decl::made(AUTHORIZER)` with `Value::authorizer`.
//!
//! Differences from upstream: lists that are added are copied, and pay for it by a limit on work of their own;
//! maps are walked in the order of their keys.

pub mod admission;
mod ast;
mod checker;
mod context;
mod cost;
pub mod device;
mod env;
mod error;
mod eval;
mod functions;
mod lexer;
mod library;
mod macros;
mod parser;
pub mod pattern;
pub mod policy;
mod schema;
#[cfg(test)]
mod tests;
mod time;
mod types;
mod value;

pub use context::{Budget, MATCH_CONDITIONS_BUDGET, PER_CALL_LIMIT, RUNTIME_BUDGET};
pub use cost::Range;
pub use env::{Env, Program};
pub use error::{CompileError, EvalError, Issue};
pub use eval::Activation;
pub use library::authorizer::{Authorize, Decision, Question};
pub use schema::{DYN, Decl, ListKind, MAX_REQUEST_BYTES, Shape, escape, unescape};
pub use types::{AUTHORIZER, Fields, ObjectType, RESOURCE_CHECK, Type};
pub use value::{Key, Lazy, List, Made, Map, Text, Value};
