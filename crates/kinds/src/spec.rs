//! What a row of the resource table holds, and the strategy behind it.

use jiff::Timestamp;
use sampan_api::{Object, field};
use serde_json::Value;

/// A served resource: one row of the table. Rows are `'static` for built-in kinds and leaked or
/// reference-counted by the engine for custom ones, which is why everything is owned or `'static` text.
#[derive(Clone, Copy)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    /// `pods`
    pub plural: &'static str,
    /// `pod`
    pub singular: &'static str,
    /// `Pod`
    pub kind: &'static str,
    /// Usually `{kind}List`.
    pub list_kind: &'static str,
    pub namespaced: bool,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub verbs: Verbs,
    pub subresources: &'static [Subresource],
    /// Columns of the Table output in upstream's order (usually Name first), wide ones included.
    /// Empty: the resource has no table and a request for one is answered 406 (bindings, reviews).
    pub columns: &'static [Column],
    /// The cells of one row, one per column, those of wide columns included.
    pub cells: fn(&Object, Timestamp) -> Vec<Value>,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`.
    pub fields: &'static [SelectableField],
    /// Where objects of this resource live in the store, as upstream lays them out: `/registry/{storage_prefix}/…`.
    pub storage_prefix: &'static str,
    /// `Some` when this version is another face of a resource whose objects are stored in a different group or
    /// version (`autoscaling/v1` HPAs, `events.k8s.io/v1` Events). See [`Conversion`].
    pub stored_as: Option<Conversion>,
    pub strategy: &'static dyn Strategy,
    /// The warning every answer about this resource carries; empty for one that is not deprecated.
    pub deprecated: &'static str,
}

impl Resource {
    /// `v1` or `apps/v1`: what `apiVersion` says in this resource's objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }
}

/// How one served version relates to the version objects are stored in. The row with `stored_as: None` and the
/// same `storage_prefix` is the storage version.
///
/// `cells` and `fields` of a converted row read the stored form.
///
/// The engine decodes and defaults a request in the version asked for, calls `to_storage`, and from there on
/// works on the storage version alone: its strategy prepares and validates, its bytes go to the store and the watch cache.
/// A reply (get, list item, watch event, Table row) is made from the stored object with `from_storage`.
/// Both functions are total: they set `apiVersion`, never fail, and `to_storage(from_storage(x))` loses nothing
/// that matters to the kind (what the older version cannot say travels in annotations, as upstream does it).
#[derive(Clone, Copy)]
pub struct Conversion {
    /// Group and version of the row objects are stored as.
    pub storage_version: (&'static str, &'static str),
    pub to_storage: fn(&mut Object),
    pub from_storage: fn(&mut Object),
}

/// Which verbs a resource answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbs {
    /// create delete deletecollection get list patch update watch
    All,
    /// All but deletecollection (namespaces).
    NoDeleteCollection,
    /// create only, nothing is stored (reviews, bindings).
    CreateOnly,
    /// get and list only (componentstatuses).
    ReadOnly,
}

impl Verbs {
    /// The verbs in the order discovery prints them.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Verbs::All => &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
            Verbs::NoDeleteCollection => &["create", "delete", "get", "list", "patch", "update", "watch"],
            Verbs::CreateOnly => &["create"],
            Verbs::ReadOnly => &["get", "list"],
        }
    }
}

/// A subresource such as `pods/status`.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// `status`
    pub name: &'static str,
    pub kind: SubresourceKind,
    /// Group, version and kind discovery advertises. Group and version are both empty when they are the parent's;
    /// otherwise they name another API (`autoscaling/v1 Scale`, `policy/v1 Eviction`, `authentication.k8s.io/v1 TokenRequest`).
    pub gvk: (&'static str, &'static str, &'static str),
    pub verbs: &'static [&'static str],
}

/// How the engine serves a subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubresourceKind {
    /// A view of the same object: get, update and patch through [`Strategy::prepare_update`] with the subresource's name
    /// (`status`, `resize`, `ephemeralcontainers`, `approval`, `finalize`).
    View,
    /// `autoscaling/v1 Scale` over the paths given.
    Scale(ScalePaths),
    /// Code of the engine's own (binding, eviction, token, exec, log, attach, portforward, proxy).
    Special,
}

/// Where a Scale view reads and writes: dotted paths without a leading dot (`spec.replicas`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: &'static str,
    pub status_replicas: &'static str,
    /// Path of the label selector: a map of labels (ReplicationController), a LabelSelector, or,
    /// for custom resources, a selector already written as text.
    pub selector: &'static str,
}

/// A column of the Table output (`meta.k8s.io/v1 TableColumnDefinition`).
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, `boolean`, `number`
    pub kind: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 0: always shown; above: only with `-o wide`.
    pub priority: i32,
}

/// A label usable in `fieldSelector`.
#[derive(Clone, Copy)]
pub struct SelectableField {
    /// `spec.nodeName`
    pub label: &'static str,
    /// The value as a string; absent fields read as "".
    pub read: fn(&Object) -> String,
}

/// Which change is being prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The main resource.
    Main,
    /// A [`SubresourceKind::View`], by name: `status`, `resize`, `finalize`, …
    View(&'a str),
}

/// How a kind's own validation of an update looks at metadata, besides what the engine does for all kinds: clients see
/// what is wrong with metadata once for every look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataCheck {
    /// As of a new object.
    Whole,
    /// What an update may do.
    Change,
}

/// The rules of one kind. All methods are pure. Defaults are filled in before admission, `prepare_*` runs
/// after mutating admission and before validation. The engine itself owns metadata (name, generateName,
/// uid, creationTimestamp, resourceVersion, managedFields, deletion fields) and its validation; strategies
/// see objects whose metadata is already in order.
pub trait Strategy: Send + Sync {
    /// Fills in default values. Called on every decoded object of this kind, stored ones included.
    fn default(&self, _object: &mut Object) {}

    /// Whether the engine keeps `metadata.generation` (1 at creation, +1 when anything but metadata and status changes).
    fn has_generation(&self) -> bool {
        true
    }

    /// Drops what a creator may not set (usually `status`) and sets what creation implies.
    /// The engine has already set `metadata.name`, `namespace`, `uid` and `creationTimestamp`: a Job's
    /// generated selector names its uid.
    fn prepare_create(&self, object: &mut Object) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
    }

    /// Carries over from `old` what this part may not change. For `Part::Main` that is usually `status`;
    /// for `Part::View("status")` everything but `status` and what upstream lets a status writer change in metadata.
    fn prepare_update(&self, part: Part<'_>, new: &mut Object, old: &Object) {
        keep_other_parts(part, new, old);
    }

    /// Fields a write through this part never changes, whatever it says: dotted paths, with everything below them.
    /// They are never owned through it (`metadata.managedFields`).
    fn reset_fields(&self, part: Part<'_>) -> &'static [&'static str] {
        match part {
            Part::Main => &["status"],
            Part::View("status") => &["spec"],
            Part::View(_) => &[],
        }
    }

    /// Whether metadata counts for `metadata.generation` too: Deployments copy their annotations to their ReplicaSets.
    fn metadata_counts(&self, _new: &Object, _old: &Object) -> bool {
        false
    }

    /// What upstream could not even convert to work with, in Go's words, though it fits the published type.
    fn unreadable(&self, _object: &Object) -> Option<String> {
        None
    }

    fn validate_create(&self, _object: &Object) -> field::Errors {
        Vec::new()
    }

    fn validate_update(&self, _part: Part<'_>, _new: &Object, _old: &Object) -> field::Errors {
        Vec::new()
    }

    /// See [`MetadataCheck`].
    fn metadata_checks(&self, _part: Part<'_>) -> &'static [MetadataCheck] {
        &[MetadataCheck::Change]
    }

    /// For the strategy of a version that is converted to be stored: whether its rules stand for those of the stored
    /// version, instead of adding to them.
    fn validates_alone(&self) -> bool {
        false
    }

    /// Warnings for the `Warning` header (deprecated fields, surprising values).
    fn warnings(&self, _object: &Object) -> Vec<String> {
        Vec::new()
    }

    /// Warnings of an update; usually those of the object as it then is.
    fn update_warnings(&self, new: &Object, _old: &Object) -> Vec<String> {
        self.warnings(new)
    }

    /// How long a deletion waits for the object's agent, in seconds: `asked` is the client's gracePeriodSeconds.
    /// `None`: deleted at once (all kinds but Pods).
    fn graceful_deletion(&self, _object: &Object, _asked: Option<i64>) -> Option<i64> {
        None
    }

    /// Whether an update of an absent object creates it (PUT as create).
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether an update without resourceVersion is accepted.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// The check of `metadata.name`: messages of what is wrong with it, worded as upstream words them.
    /// `prefix` is true when `name` is a generateName.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String>;

    /// Finalizers a new object starts with (Namespaces: `spec.finalizers` is set in `prepare_create` instead).
    fn initial_finalizers(&self, _object: &Object) -> Vec<String> {
        Vec::new()
    }

    /// Default propagation when a delete does not say: upstream orphans for none of today's built-in v1 kinds but
    /// keeps a hook (`batch/v1 jobs` orphan their Pods when deleted without a policy).
    fn default_propagation(&self) -> Propagation {
        Propagation::Background
    }
}

/// Deletion propagation policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// The status view of kinds that keep their metadata to themselves.
pub const STATUS_KEEPS_METADATA: &[&str] = &["metadata", "spec"];

/// Puts back what [`Strategy::reset_fields`] says of metadata after a view has been prepared.
pub fn keep_metadata(reset: &[&str], new: &mut Object, old: &Object) {
    for path in reset.iter().filter(|path| path.starts_with("metadata")) {
        if *path == "metadata" {
            for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
                crate::tree::carry(new, old, &format!("metadata.{field}"));
            }
        } else {
            crate::tree::carry(new, old, path);
        }
    }
}

/// The common rule: a main update keeps `status`; a `status` update keeps everything else but the
/// metadata the engine manages.
pub fn keep_other_parts(part: Part<'_>, new: &mut Object, old: &Object) {
    let (Some(new_map), Some(old_map)) = (new.as_object_mut(), old.as_object()) else {
        return;
    };
    match part {
        Part::Main => match old_map.get("status") {
            Some(status) => {
                new_map.insert("status".into(), status.clone());
            }
            None => {
                new_map.remove("status");
            }
        },
        Part::View(_) => {
            let status = new_map.remove("status");
            let metadata = new_map.remove("metadata");
            *new_map = old_map.clone();
            if let Some(metadata) = metadata {
                new_map.insert("metadata".into(), metadata);
            }
            match status {
                Some(status) => {
                    new_map.insert("status".into(), status);
                }
                None => {
                    new_map.remove("status");
                }
            }
        }
    }
}
