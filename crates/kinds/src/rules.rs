//! The one [`Strategy`] of built-in kinds: a row of tables and functions.
//!
//! A kind says what is particular to it ([`Rules`] fields) and leaves the rest at [`RULES`]. Tables
//! ([`Default`](crate::defaults::Default), [`Check`](crate::checks::Check)) hold what is declarative; functions hold
//! what depends on other fields. Everything is a constant: a kind's rules are a `static`.

use sampan_api::{Object, field};

use crate::checks::{self, Check};
use crate::defaults::{self, Default};
use crate::spec::{MetadataCheck, Part, Propagation, STATUS_KEEPS_METADATA, Strategy, keep_metadata, keep_other_parts};
use crate::{names, pod_spec, tree, warnings};

/// Who writes `status`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Only the status subresource; a creator's is dropped.
    Reserved,
    /// The creator, then only the status subresource (Nodes register with one).
    FromCreator,
    /// The kind has none, or it is a field like any other.
    Plain,
}

/// The rules of one kind.
pub(crate) struct Rules {
    /// The check of `metadata.name`.
    pub name: fn(&str, bool) -> Vec<String>,
    pub generation: bool,
    /// Where a PodSpec lives in this kind ("" for none): it gets the pod template's defaults.
    pub pod_spec: &'static str,
    pub defaults: &'static [Default],
    /// Defaults that depend on other fields; run after the table.
    pub default: fn(&mut Object),
    /// See [`Strategy::unreadable`].
    pub unreadable: fn(&Object) -> Option<String>,
    /// What creation implies beyond dropping `status`.
    pub create: fn(&mut Object),
    pub status: Status,
    /// Prepares an update through a view in a way of its own and says true; false: the common rule of
    /// [`keep_other_parts`] is right for it.
    pub view: fn(&str, &mut Object, &Object) -> bool,
    /// What writes through a view never change, where it is not the common rule; see [`Strategy::reset_fields`].
    pub reset: fn(Part<'_>) -> Option<&'static [&'static str]>,
    /// See [`Strategy::metadata_counts`].
    pub metadata_counts: fn(&Object, &Object) -> bool,
    /// What an update carries over, after the common rule.
    pub update: fn(Part<'_>, &mut Object, &Object),
    /// Checks of one object, run for a creation and for an update of the main resource.
    pub checks: &'static [Check],
    pub validate: fn(&Object, &mut field::Errors),
    /// See [`MetadataCheck`]; for the main resource.
    pub metadata: &'static [MetadataCheck],
    /// See [`Strategy::validates_alone`].
    pub alone: bool,
    /// What only a new object is checked for.
    pub validate_create: fn(&Object, &mut field::Errors),
    /// What an update did wrong is told before what is wrong with the object itself.
    pub changes_first: bool,
    /// Rules between old and new.
    pub validate_update: fn(Part<'_>, &Object, &Object, &mut field::Errors),
    pub warnings: fn(&Object) -> Vec<String>,
    /// Whether an update is worth the warnings; it usually is.
    pub warns_of_update: fn(&Object, &Object) -> bool,
    /// An update is warned only of what the old object was not.
    pub warns_of_news: bool,
    pub grace: fn(&Object, Option<i64>) -> Option<i64>,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    pub propagation: Propagation,
}

/// A kind with nothing particular: name is a DNS subdomain, no generation, `status` kept apart.
pub(crate) const RULES: Rules = Rules {
    name: names::subdomain,
    generation: false,
    pod_spec: "",
    defaults: &[],
    default: |_| {},
    unreadable: |_| None,
    create: |_| {},
    status: Status::Reserved,
    view: |_, _, _| false,
    reset: |_| None,
    metadata_counts: |_, _| false,
    update: |_, _, _| {},
    checks: &[],
    validate: |_, _| {},
    metadata: &[MetadataCheck::Change],
    alone: false,
    validate_create: |_, _| {},
    changes_first: false,
    validate_update: |_, _, _, _| {},
    warnings: |_| Vec::new(),
    warns_of_update: |_, _| true,
    warns_of_news: false,
    grace: |_, _| None,
    create_on_update: false,
    unconditional_update: true,
    propagation: Propagation::Background,
};

/// [`Rules::reset`] of kinds whose status view leaves labels, annotations, finalizers and owners alone.
pub(crate) fn status_keeps_metadata(part: Part<'_>) -> Option<&'static [&'static str]> {
    (part == Part::View("status")).then_some(STATUS_KEEPS_METADATA)
}

/// Leaves everything as it was but `metadata` and the fields at `paths`: what a view may write.
pub(crate) fn keep_all_but(paths: &[&str], new: &mut Object, old: &Object) {
    let free = |key: &str| key == "metadata" || paths.contains(&key);
    if let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object())
        && paths.iter().all(|path| !path.contains('.'))
    {
        // Nearly always the rest is what it was: nothing is copied then.
        new.retain(|key, value| {
            if !free(key)
                && let Some(was) = old.get(key)
                && value != was
            {
                value.clone_from(was);
            }
            match free(key) {
                true => !value.is_null(),
                false => old.contains_key(key),
            }
        });
        for (key, was) in old.iter().filter(|(key, _)| !free(key)) {
            if !new.contains_key(key) {
                new.insert(key.clone(), was.clone());
            }
        }
        return;
    }
    let mut kept = old.clone();
    for path in ["metadata"].iter().chain(paths) {
        tree::carry(&mut kept, new, path);
    }
    *new = kept;
}

impl Strategy for Rules {
    fn default(&self, object: &mut Object) {
        defaults::apply(self.defaults, object);
        if !self.pod_spec.is_empty()
            && let Some(spec) = tree::get_mut(object, self.pod_spec)
        {
            pod_spec::default(spec);
        }
        (self.default)(object);
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn prepare_create(&self, object: &mut Object) {
        if self.status == Status::Reserved {
            tree::set(object, "status", serde_json::Map::new());
            // What upstream's type always prints of an empty status.
            for row in self.defaults.iter().filter(|(path, _)| path.starts_with("status")) {
                defaults::apply(std::slice::from_ref(row), object);
            }
        }
        (self.create)(object);
    }

    fn prepare_update(&self, part: Part<'_>, new: &mut Object, old: &Object) {
        let done = match part {
            Part::Main => self.status == Status::Plain,
            Part::View(name) => (self.view)(name, new, old),
        };
        if !done {
            keep_other_parts(part, new, old);
        }
        if part != Part::Main {
            keep_metadata(self.reset_fields(part), new, old);
        }
        (self.update)(part, new, old);
    }

    fn reset_fields(&self, part: Part<'_>) -> &'static [&'static str] {
        if let Some(fields) = (self.reset)(part) {
            return fields;
        }
        match part {
            Part::Main if self.status == Status::Plain => &[],
            Part::Main => &["status"],
            Part::View("status") => &["spec"],
            Part::View(_) => &[],
        }
    }

    fn metadata_counts(&self, new: &Object, old: &Object) -> bool {
        (self.metadata_counts)(new, old)
    }

    fn unreadable(&self, object: &Object) -> Option<String> {
        (self.unreadable)(object)
    }

    fn validate_create(&self, object: &Object) -> field::Errors {
        let mut errors = Vec::new();
        checks::run(self.checks, object, None, &mut errors);
        (self.validate)(object, &mut errors);
        (self.validate_create)(object, &mut errors);
        errors
    }

    fn validate_update(&self, part: Part<'_>, new: &Object, old: &Object) -> field::Errors {
        let mut errors = Vec::new();
        if self.changes_first {
            (self.validate_update)(part, new, old, &mut errors);
        }
        if part == Part::Main {
            checks::run(self.checks, new, Some(old), &mut errors);
            (self.validate)(new, &mut errors);
        }
        if !self.changes_first {
            (self.validate_update)(part, new, old, &mut errors);
        }
        errors
    }

    fn metadata_checks(&self, part: Part<'_>) -> &'static [MetadataCheck] {
        match part {
            Part::Main => self.metadata,
            Part::View(_) => &[MetadataCheck::Change],
        }
    }

    fn validates_alone(&self) -> bool {
        self.alone
    }

    fn warnings(&self, object: &Object) -> Vec<String> {
        let mut warnings = (self.warnings)(object);
        // Pods are mostly updated by controllers: only who makes one is told.
        if self.pod_spec == "spec" && warnings::is_new(object) {
            warnings.extend(pod_spec::warnings::of(object, &field::Path::default()));
        } else if let Some(template) = self.pod_spec.strip_suffix(".spec")
            && let Some(pod) = tree::get(object, template)
        {
            let path = template
                .split('.')
                .fold(field::Path::default(), |path, name| path.child(name));
            warnings.extend(pod_spec::warnings::of(pod, &path));
        }
        warnings
    }

    fn update_warnings(&self, new: &Object, old: &Object) -> Vec<String> {
        if !(self.warns_of_update)(new, old) {
            return Vec::new();
        }
        let mut warnings = self.warnings(new);
        if self.warns_of_news {
            let known = self.warnings(old);
            warnings.retain(|warning| !known.contains(warning));
        }
        warnings
    }

    fn graceful_deletion(&self, object: &Object, asked: Option<i64>) -> Option<i64> {
        (self.grace)(object, asked)
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        (self.name)(name, prefix)
    }

    fn default_propagation(&self) -> Propagation {
        self.propagation
    }
}
