//! What plugins leave behind besides the object: warnings, audit annotations, and what they remember between rounds.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What admission has to say to the audit log, by qualified key: in the extensions of an answer, for whoever writes
/// the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotations(pub Arc<BTreeMap<String, String>>);

/// The side notes of one request, carried through both phases.
#[derive(Default)]
pub struct Notes {
    /// For the `Warning` header.
    pub warnings: Vec<String>,
    /// For the audit log, by qualified key.
    pub annotations: BTreeMap<String, String>,
    again: bool,
    reinvocation: bool,
    memory: HashMap<&'static str, Box<dyn Any + Send + Sync>>,
}

impl Notes {
    pub fn warn(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !text.is_empty() && !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    /// Notes something for the audit log. What is noted first stays.
    pub fn annotate(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.annotations.entry(key.into()).or_insert_with(|| value.into());
    }

    /// Takes up what was noted of a part of the request.
    pub fn take_up(&mut self, other: Notes) {
        for warning in other.warnings {
            self.warn(warning);
        }
        for (key, value) in other.annotations {
            self.annotate(key, value);
        }
    }

    pub fn are_empty(&self) -> bool {
        self.warnings.is_empty() && self.annotations.is_empty()
    }

    /// Said by a policy or a webhook that changed the object: all mutating plugins shall see it once more.
    pub fn ask_again(&mut self) {
        self.again = true;
    }

    /// Whether this is the second round.
    pub fn is_reinvocation(&self) -> bool {
        self.reinvocation
    }

    /// Starts the second round, if there is to be one.
    pub(super) fn begin_again(&mut self) -> bool {
        let begins = self.again && !self.reinvocation;
        self.reinvocation |= begins;
        begins
    }

    /// What a plugin remembers about this request. One type per name.
    pub fn memory<T: Any + Send + Sync + Default>(&mut self, plugin: &'static str) -> &mut T {
        let known = self.memory.entry(plugin).or_insert_with(|| Box::new(T::default()));
        if !known.is::<T>() {
            *known = Box::new(T::default());
        }
        match known.downcast_mut::<T>() {
            Some(known) => known,
            None => unreachable!("it was just made one"),
        }
    }
}
