//! The table of built-in resources: what each one is called, how it prints, what may be asked of it,
//! and the [`Strategy`] with its defaults, validation and rules of change.
//!
//! The engine in `sampan-apiserver` is generic: it knows rows, never kinds. A custom resource definition
//! makes the same row at run time. Nothing here does I/O; whatever a rule needs to know of the rest of
//! the cluster belongs to admission or to the engine.

mod spec;
pub use spec::*;
