//! Schemas of custom kinds: what a CustomResourceDefinition may state, and values against what it states.
//!
//! [`Schema`] is one node of a structural schema, parsed once per definition. Everything else walks it:
//! [`values`] checks objects (with ratcheting: what an update leaves alone is not complained about), [`lists`] the
//! uniqueness in sets and maps, [`embedded`] whole objects inside objects, [`Rules`] the CEL rules, [`defaults`] fills in, prunes and
//! drops nulls, and [`definition`] judges the schema itself when a definition is written. No I/O, no state.
//!
//! Messages, field paths and their order are upstream's; where upstream walks Go maps in random order, this walks
//! sorted keys.

mod correlate;
pub mod defaults;
pub mod definition;
pub mod embedded;
mod formats;
pub mod lists;
pub mod pattern;
mod rules;
mod schema;
pub mod values;

pub use correlate::Node;
pub use formats::unrecognized;
pub use rules::Rules;
pub use schema::{ListType, Rule, Schema};
