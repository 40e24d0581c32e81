//! Server-side apply and the bookkeeping of who owns which field.
//!
//! Every write goes through here: [`apply`] merges a configuration into an object, [`update`] notes what any
//! other write changed. Ownership is in `metadata.managedFields`. The rules are upstream's (structured-merge-diff
//! and the field manager around it): an applier owns what it states; what it stated last time and no longer
//! states is removed unless someone else owns it; changing a value another manager owns is a conflict unless
//! forced, and moves the ownership; an update moves the ownership of what it changes without asking.
//!
//! Both take the tree as the client meant it and as stored: checked trees, custom kinds with their own types.
//! Defaults and strategy come after [`apply`], as with any patch.
//!
//! What is recorded in another version of the kind is judged in that version ([`Versions`]).
//!
//! Different from upstream: a new co-owner's entry always has a time; quantities are compared by what they mean, so
//! that `cpu: 0.5` is no conflict with a stored `500m`; an update keeps entries whose version cannot be worked out
//! just now (upstream forgets all of them).

#![allow(clippy::result_large_err)]

mod managed;
mod quick;
mod set;
mod versions;
mod walk;

use std::sync::LazyLock;

use serde_json::{Value, json};

pub use managed::Manager;
pub use set::FieldSet;
pub use versions::{OneVersion, Versions};
pub use walk::builtin_type;

use crate::schema::Type;
use crate::status::{Cause, Details, Status};
use crate::{Object, meta};
use managed::{Managers, Owned, Read};
use set::{Path, show};
use versions::{Comparisons, shown};
use walk::{Comparison, Node};

/// The annotation client-side apply keeps its last configuration in.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Update entries beyond this many are merged, oldest first.
const MOST_UPDATERS: usize = 10;

/// Who writes what, and how.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub ty: &'a Type,
    /// `apps/v1`, the version of the request.
    pub api_version: &'a str,
    pub kind: &'a str,
    /// `status`, or empty for the object itself.
    pub subresource: &'a str,
    /// The `fieldManager` parameter, or [`manager_name`]'s answer.
    pub manager: &'a str,
    /// The time of the request, as [`crate::time::now`] prints it.
    pub now: &'a str,
    /// Fields this endpoint resets whatever the client says, with everything below them: `status` for the object
    /// itself, `spec` for its status. They are never owned through it.
    pub reset: &'a FieldSet,
    /// The kind's other versions.
    pub versions: &'a dyn Versions,
}

/// The manager's name: the parameter, else the user agent up to the first slash.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let head = user_agent.split('/').next().unwrap_or_default();
    let name: String = head.chars().filter(|c| !c.is_control()).take(128).collect();
    if name.is_empty() { "unknown".into() } else { name }
}

/// Fields nobody owns.
static STRIPPED: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::of(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// The entries themselves, which are not compared.
static ENTRIES: LazyLock<FieldSet> = LazyLock::new(|| FieldSet::of(&[&["metadata", "managedFields"]]));

/// One conflict: a field of another manager's that this one would change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Conflict {
    manager: Manager,
    path: Path,
}

enum Refusal {
    Conflicts(Vec<Conflict>),
    Other(Status),
}

impl<'a> Context<'a> {
    fn node(&self) -> Node<'a> {
        Node::root(self.ty)
    }

    /// Owners of parts of what has become one thing since own the thing.
    fn reconciled(&self, mut managers: Managers) -> Managers {
        for owned in managers
            .values_mut()
            .filter(|owned| owned.api_version == self.api_version)
        {
            owned.fields = walk::reconciled(self.node(), &owned.fields);
        }
        managers
    }

    fn empty(&self) -> Object {
        json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": {}})
    }

    fn as_manager(&self, name: &str, applied: bool) -> Manager {
        Manager {
            name: name.into(),
            applied,
            api_version: if applied {
                String::new()
            } else {
                self.api_version.into()
            },
            subresource: self.subresource.into(),
        }
    }

    /// Compares trees without looking at what is reset, or at managed fields themselves.
    fn compare(&self, node: Node<'_>, old: &Object, new: &Object) -> Comparison {
        walk::compare(node, old, new).without(self.reset).without(&ENTRIES)
    }
}

/// Notes in `new` who owns what after a create, an update or a patch. `live` is the object as stored, if any.
///
/// Entries the request itself carries are taken over for the object; a subresource's requests cannot set them.
pub fn update(context: Context<'_>, live: Option<&Object>, new: &mut Object) {
    note(context, live, new, true);
}

/// `quick`: the usual case is dealt with as such; what comes out is the same.
fn note(context: Context<'_>, live: Option<&Object>, new: &mut Object, quick: bool) {
    let mut sent = meta::strip_managed_fields(new);
    if walk::has_unkeyed(Node::root(context.ty), new) {
        // Who owns what cannot be said.
        return;
    }
    let stored = live.and_then(managed::entries);
    let empty = context.empty();
    let old = live.unwrap_or(&empty);
    let mut comparisons = Comparisons::new(context, old, new);
    let as_stored = sent.as_ref() == stored;
    if quick && (as_stored || !context.subresource.is_empty()) {
        let entries = if as_stored { sent.take() } else { stored.cloned() };
        if let Some(Value::Array(mut entries)) = entries {
            if quick::note(context, comparisons.own(), &mut entries) {
                if !entries.is_empty() {
                    meta::ensure_metadata(new).insert("managedFields".into(), entries.into());
                }
                return;
            }
            if as_stored {
                sent = Some(entries.into());
            }
        }
    }
    let carried = match context.subresource.is_empty() {
        true => managed::read(sent.as_ref()),
        false => Read::None,
    };
    let own_entries = matches!(carried, Read::Reset | Read::Managers(_)) && !as_stored;
    if let (Some(entries), false, true) = (stored, own_entries, comparisons.own().is_empty()) {
        // Nothing changed: neither do the owners.
        meta::ensure_metadata(new).insert("managedFields".into(), entries.clone());
        return;
    }
    let managers = match carried {
        Read::Managers(managers) => managers,
        Read::Reset => Managers::new(),
        Read::None | Read::Malformed(_) => match managed::read(stored) {
            Read::Managers(managers) => managers,
            _ => Managers::new(),
        },
    };
    if managers.is_empty() && live.is_some() {
        // Nobody tracks this object until somebody applies it.
        return;
    }
    let manager = context.as_manager(context.manager, false);
    let mut managers = note_update(context, &mut comparisons, context.reconciled(managers), manager);
    cap(&mut managers);
    managed::write(new, &managers);
}

/// Moves what changed to `manager`.
fn note_update(
    context: Context<'_>,
    comparisons: &mut Comparisons<'_>,
    mut managers: Managers,
    manager: Manager,
) -> Managers {
    managers.retain(|_, owned| {
        match comparisons.of(&owned.api_version) {
            Ok(Some(comparison)) => {
                let changed = comparison.modified.union(&comparison.added);
                owned.fields = owned.fields.difference(&owned.fields.intersection(&changed));
                owned.fields = owned.fields.difference(&comparison.removed);
            }
            // A version that is no more: so are its fields.
            Ok(None) => return false,
            // Who owns what in a version that cannot be shown now is not known to have changed.
            Err(_) => {}
        }
        !owned.fields.is_empty()
    });
    let comparison = comparisons.own();
    let changed = comparison.modified.union(&comparison.added);
    let taken = changed.without_trees(context.reset).difference(&STRIPPED);
    if !taken.is_empty() {
        let owned = managers.entry(manager).or_default();
        owned.fields = owned.fields.union(&taken);
        owned.api_version = context.api_version.into();
        owned.time = context.now.into();
    }
    managers
}

/// Merges the oldest update entries when there are too many.
fn cap(managers: &mut Managers) {
    let mut updaters: Vec<(String, Manager)> = managers
        .iter()
        .filter(|(manager, _)| !manager.applied)
        .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
        .collect();
    let mut count = updaters.len();
    if count <= MOST_UPDATERS {
        return;
    }
    updaters.sort();
    let mut first: std::collections::BTreeMap<String, Manager> = std::collections::BTreeMap::new();
    for (time, manager) in updaters {
        if count <= MOST_UPDATERS {
            return;
        }
        let version = manager.api_version.clone();
        let Some(oldest) = first.get(&version) else {
            first.insert(version, manager);
            continue;
        };
        let bucket = Manager {
            name: "ancient-changes".into(),
            applied: false,
            api_version: version,
            subresource: String::new(),
        };
        if !managers.contains_key(&bucket)
            && let Some(owned) = managers.remove(oldest)
        {
            managers.insert(bucket.clone(), owned);
        }
        if manager == bucket {
            continue;
        }
        if let Some(owned) = managers.remove(&manager) {
            let merged = managers.entry(bucket).or_default();
            merged.fields = merged.fields.union(&owned.fields);
            merged.api_version = owned.api_version;
            merged.time = time;
            count -= 1;
        }
    }
}

/// Merges an applied configuration into the stored object (or into nothing) and notes who owns what.
///
/// The result is not defaulted and not validated. When it equals `live`, nothing is to be written.
pub fn apply(context: Context<'_>, live: Option<&Object>, config: &Object, force: bool) -> Result<Object, Status> {
    let api_version = meta::api_version(config);
    if api_version != context.api_version {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {api_version}, expected: {}",
            context.api_version
        )));
    }
    if config
        .pointer("/metadata/managedFields")
        .is_some_and(|entries| !entries.is_null())
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let faults = walk::validate(context.node(), config);
    if !faults.is_empty() {
        let (group, version) = meta::group_version(api_version).unwrap_or(("", api_version));
        // Upstream answers 500 with no reason; so do its clients expect it.
        return Err(Status::new(
            500,
            "",
            format!(
                "failed to create typed patch object ({}/{}; {group}/{version}, Kind={}): {}",
                meta::namespace(config),
                meta::name(config),
                meta::kind(config),
                walk::join(&faults)
            ),
        ));
    }
    let empty = context.empty();
    let mut old = live.unwrap_or(&empty).clone();
    let mut managers = match managed::read(managed::entries(&old)) {
        Read::Managers(managers) => managers,
        Read::None | Read::Reset => Managers::new(),
        Read::Malformed(why) => {
            return Err(Status::internal(format!("failed to decode managed fields: {why}")));
        }
    };
    meta::strip_managed_fields(&mut old);
    if managers.is_empty() && live.is_some() {
        let before = context.as_manager("before-first-apply", false);
        managers = note_update(context, &mut Comparisons::new(context, &empty, &old), managers, before);
    }
    let managers = context.reconciled(managers);
    let result = merge_in(context, &old, config, managers.clone(), force);
    let (mut new, managers) = match result {
        Ok(done) => done,
        Err(Refusal::Other(status)) => return Err(status),
        Err(Refusal::Conflicts(conflicts)) => {
            let allowed = (context.manager == "kubectl")
                .then(|| from_last_applied(context, &old))
                .flatten();
            let remaining: Vec<Conflict> = match &allowed {
                Some(allowed) => conflicts
                    .into_iter()
                    .filter(|conflict| !allowed.has(&conflict.path))
                    .collect(),
                None => conflicts,
            };
            if !remaining.is_empty() {
                return Err(conflict_status(&remaining));
            }
            match merge_in(context, &old, config, managers, true) {
                Ok(done) => done,
                Err(Refusal::Other(status)) => return Err(status),
                Err(Refusal::Conflicts(conflicts)) => return Err(conflict_status(&conflicts)),
            }
        }
    };
    managed::write(&mut new, &managers);
    keep_last_applied(context, &mut new, config);
    Ok(new)
}

/// The merge itself: lay the configuration over the object, take out what is no longer stated, find conflicts.
fn merge_in(
    context: Context<'_>,
    old: &Object,
    config: &Object,
    mut managers: Managers,
    force: bool,
) -> Result<(Object, Managers), Refusal> {
    let node = context.node();
    let manager = context.as_manager(context.manager, true);
    let merged = walk::merge(node, old, config);
    let last = managers.get(&manager).cloned();
    let stated = walk::fields_of(node, config).without_trees(context.reset);
    managers.insert(
        manager.clone(),
        Owned {
            fields: stated,
            api_version: context.api_version.into(),
            time: last.as_ref().map(|last| last.time.clone()).unwrap_or_default(),
        },
    );
    let new = match &last {
        Some(last) if !last.fields.is_empty() => {
            prune(context, merged, &managers, last).map_err(|why| Refusal::Other(Status::new(500, "", why)))?
        }
        _ => merged,
    };
    if !new.is_object() {
        return Err(Refusal::Other(Status::internal(
            "an applied configuration left no object",
        )));
    }
    let mut comparisons = Comparisons::new(context, old, &new);
    let mut conflicts = Vec::new();
    let mut gone = Vec::new();
    for (other, owned) in managers.iter_mut().filter(|(other, _)| **other != manager) {
        let comparison = comparisons
            .of(&owned.api_version)
            .map_err(|why| Refusal::Other(Status::new(500, "", why)))?;
        let Some(comparison) = comparison else {
            gone.push(other.clone());
            continue;
        };
        let changed = comparison.modified.union(&comparison.added);
        let contested = owned.fields.intersection(&changed);
        if !contested.is_empty() {
            conflicts.extend(contested.paths().into_iter().map(|path| Conflict {
                manager: other.clone(),
                path,
            }));
            owned.fields = owned.fields.difference(&contested);
        }
        owned.fields = owned.fields.difference(&comparison.removed);
    }
    for other in gone {
        managers.remove(&other);
    }
    let unchanged = comparisons.own().is_empty();
    if !force && !conflicts.is_empty() {
        return Err(Refusal::Conflicts(conflicts));
    }
    if let Some(own) = managers.get_mut(&manager) {
        own.fields = own.fields.difference(&STRIPPED);
        let same = last.is_some_and(|last| last.fields == own.fields && last.api_version == own.api_version);
        if !same || !unchanged || own.time.is_empty() {
            own.time = context.now.into();
        }
    }
    managers.retain(|_, owned| !owned.fields.is_empty());
    Ok((new, managers))
}

/// Takes out what this applier stated last time and nobody owns now, in the version it stated it in.
fn prune(context: Context<'_>, merged: Object, managers: &Managers, last: &Owned) -> Result<Object, String> {
    let (own, version) = (context.api_version, last.api_version.as_str());
    let convert = |what: &str| {
        let what = what.to_owned();
        move |why: String| format!("failed to convert {what} object: {why}")
    };
    // A version that is no more: what was stated in it stays.
    let Some(all) = shown(context, &merged, own, version).map_err(convert("merged"))? else {
        return Ok(merged);
    };
    let last = all.named(&last.fields);
    // Everything stated last time goes …
    let mut pruned = all.without(&last);
    // … but what anyone owns comes back …
    let mut owned: std::collections::BTreeMap<&str, FieldSet> = std::collections::BTreeMap::new();
    for entry in managers.values() {
        let fields = owned.entry(&entry.api_version).or_default();
        *fields = fields.union(&entry.fields);
    }
    // (first in this version: conversions may want what they own)
    let first = owned.remove_entry(version);
    for (other, fields) in first.into_iter().chain(owned) {
        let found = shown(context, &all.object, version, other).map_err(convert("merged"))?;
        let Some(whole) = found else { continue };
        let found = shown(context, &pruned, version, other).map_err(convert("pruned"))?;
        let Some(present) = found else { continue };
        let kept = whole.named(&present.fields()).union(&whole.named(&fields));
        let kept = whole.without(&whole.named(&whole.fields()).difference(&kept));
        let back = shown(context, &kept, other, version).map_err(convert("pruned"))?;
        pruned = back.map_or(pruned, |back| back.object.into_owned());
    }
    // … and so does what went only because it was below something that did.
    let kept = all.named(&walk::fields_of(all.node(), &pruned));
    let pruned = all.without(&all.named(&all.fields()).difference(&kept).intersection(&last));
    let back = shown(context, &pruned, version, own).map_err(convert("pruned"))?;
    Ok(back.map_or(merged, |back| back.object.into_owned()))
}

/// The fields a client-side applied object may hand over without conflict: those still as last applied.
fn from_last_applied(context: Context<'_>, live: &Object) -> Option<FieldSet> {
    let text = meta::annotation(live, LAST_APPLIED).filter(|text| !text.is_empty())?;
    let last: Value = serde_json::from_str(text).ok()?;
    if meta::api_version(&last) != context.api_version || !walk::validate(context.node(), &last).is_empty() {
        return None;
    }
    let comparison = walk::compare(context.node(), &last, live);
    Some(
        walk::fields_of(context.node(), &last)
            .difference(&comparison.modified)
            .difference(&comparison.added)
            .difference(&comparison.removed),
    )
}

/// Keeps the annotation of client-side apply in step, for people who go back and forth.
fn keep_last_applied(context: Context<'_>, object: &mut Object, config: &Object) {
    // As much as all annotations of an object may take.
    const MOST: usize = 256 * 1024;
    if context.manager != "kubectl" || meta::annotation(object, LAST_APPLIED).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(Value::Object(annotations)) = config.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty()
            && let Some(Value::Object(metadata)) = config.get_mut("metadata")
        {
            metadata.remove("annotations");
        }
    }
    let text = format!("{config}\n");
    let others: usize = meta::annotations(object)
        .filter(|(key, _)| *key != LAST_APPLIED)
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if others + LAST_APPLIED.len() + text.len() > MOST {
        meta::remove_annotation(object, LAST_APPLIED);
    } else {
        meta::set_annotation(object, LAST_APPLIED, &text);
    }
}

fn conflict_status(conflicts: &[Conflict]) -> Status {
    let message = match conflicts {
        [one] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager.shown(),
            show(&one.path)
        ),
        many => {
            let mut lines = Vec::new();
            let mut current = None;
            for conflict in many {
                if current != Some(&conflict.manager) {
                    lines.push(format!("conflicts with {}:", conflict.manager.shown()));
                    current = Some(&conflict.manager);
                }
                lines.push(format!("- {}", show(&conflict.path)));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    let mut status = Status::new(409, "Conflict", message);
    status.details = Some(Details {
        causes: conflicts
            .iter()
            .map(|conflict| Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {}", conflict.manager.shown()),
                field: show(&conflict.path),
            })
            .collect(),
        ..Details::default()
    });
    status
}

#[cfg(test)]
mod tests;
