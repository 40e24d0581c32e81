//! One stored object, encoded once.
//!
//! The store keeps an object without its `resourceVersion` (which is only known when the write commits).
//! An [`Entry`] is that value with the revision spliced in, laid out as a complete watch line
//! `{"type":"ADDED","object":…}\n`; the object's own bytes are a slice of the line. So get, list and
//! every watcher share one allocation, and nothing is parsed to build it.
//!
//! Labels and selectable fields are read out of the bytes the first time a selector asks.
//!
//! What was written a moment ago is likely to be written again: the newest entries of a storage also keep the tree that
//! their writer made, so that neither the indexes nor the next writer parse it (see [`super::recent`]).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use sampan_api::Object;
use sampan_api::codec::printed;
use sampan_kinds::SelectableField;
use sampan_store::Revision;
use serde::Deserialize;

use super::scan;
use crate::sync::lock;

const ADDED: &[u8] = br#"{"type":"ADDED","object":"#;
const MODIFIED: &[u8] = br#"{"type":"MODIFIED","object":"#;
const DELETED: &[u8] = br#"{"type":"DELETED","object":"#;
const END: &[u8] = b"}\n";

/// What happened to an object, as a watch names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeType {
    Added,
    Modified,
    Deleted,
}

impl ChangeType {
    pub fn name(self) -> &'static str {
        match self {
            ChangeType::Added => "ADDED",
            ChangeType::Modified => "MODIFIED",
            ChangeType::Deleted => "DELETED",
        }
    }
    fn opening(self) -> &'static [u8] {
        match self {
            ChangeType::Added => ADDED,
            ChangeType::Modified => MODIFIED,
            ChangeType::Deleted => DELETED,
        }
    }
}

/// What selectors look at. Kept small: every Pod has one.
#[derive(Debug, Default)]
pub struct Attributes {
    pub labels: Labels,
    /// One value per [`SelectableField`] of the storage, in its order.
    pub fields: Box<[Box<str>]>,
}

/// Labels and their values.
pub type Labels = Box<[(Box<str>, Box<str>)]>;

/// An object at one revision. Immutable.
pub struct Entry {
    key: Arc<str>,
    /// Where the path below the storage prefix begins in `key`.
    path_start: usize,
    revision: Revision,
    written_as: ChangeType,
    line: Bytes,
    body: Range<usize>,
    attributes: OnceLock<Attributes>,
    /// The object as a settled tree, while the entry is one of the newest.
    tree: Mutex<Option<Arc<Object>>>,
    /// Why the stored value cannot be read; the object is then a name and nothing else.
    unreadable: Option<Box<str>>,
}

impl Entry {
    /// The object `value` (stored JSON without a resourceVersion) as of `revision`.
    /// `prefix_len` is the length of the storage's key prefix, its trailing slash included.
    pub fn new(key: Arc<str>, prefix_len: usize, value: &[u8], revision: Revision, written_as: ChangeType) -> Self {
        let unreadable = sampan_store::why_unreadable(value);
        let stub = unreadable.map(|_| stub(key.get(prefix_len..).unwrap_or_default()));
        let value = stub.as_deref().unwrap_or(value);
        let opening = written_as.opening();
        let mut line = BytesMut::with_capacity(opening.len() + value.len() + END.len() + 44);
        line.put_slice(opening);
        scan::splice_revision(value, revision, &mut line);
        let body = opening.len()..line.len();
        line.put_slice(END);
        Entry {
            path_start: prefix_len.min(key.len()),
            key,
            revision,
            written_as,
            line: line.freeze(),
            body,
            attributes: OnceLock::new(),
            tree: Mutex::default(),
            unreadable: unreadable.map(Into::into),
        }
    }

    /// Why the stored value cannot be read, if it cannot.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// The store's key.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }
    /// `namespace/name`, or `name` for cluster-scoped objects.
    pub fn path(&self) -> &str {
        &self.key[self.path_start..]
    }
    /// Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.path().rsplit_once('/').map_or("", |(namespace, _)| namespace)
    }
    pub fn name(&self) -> &str {
        self.path().rsplit_once('/').map_or(self.path(), |(_, name)| name)
    }
    pub fn revision(&self) -> Revision {
        self.revision
    }
    /// The object's JSON, resourceVersion included.
    pub fn bytes(&self) -> Bytes {
        self.line.slice(self.body.clone())
    }
    pub fn as_slice(&self) -> &[u8] {
        &self.line[self.body.clone()]
    }
    pub fn size(&self) -> usize {
        self.body.len()
    }
    /// The object as a tree, without the nulls of what is not there. Costs a parse: for writes and other formats only.
    pub fn object(&self) -> Object {
        printed::read(self.as_slice())
    }
    /// The same, shared where the entry has it: what only reads need not parse.
    pub fn tree(&self) -> Arc<Object> {
        self.kept().unwrap_or_else(|| Arc::new(self.object()))
    }
    /// The object as a tree in the form that writes compare ([`printed::settle`]).
    pub fn settled(&self) -> Arc<Object> {
        self.kept().unwrap_or_else(|| {
            let mut object = self.object();
            printed::settle(&mut object);
            Arc::new(object)
        })
    }
    fn kept(&self) -> Option<Arc<Object>> {
        lock(&self.tree).clone()
    }
    /// Gives the entry the tree its bytes were made of.
    pub(super) fn keep(&self, tree: Object) {
        debug_assert_eq!(tree, self.object(), "a kept tree is what its bytes say");
        *lock(&self.tree) = Some(Arc::new(tree));
    }
    pub(super) fn let_go(&self) {
        lock(&self.tree).take();
    }
    /// The object's metadata as a tree: a fraction of [`Entry::object`]'s cost.
    pub fn metadata(&self) -> Object {
        self.at(&["metadata"]).unwrap_or_default()
    }
    /// What is at a path of maps: a scan of the bytes up to there, and a parse of that alone.
    pub fn at(&self, path: &[&str]) -> Option<Object> {
        let mut from = 0;
        let mut found = None;
        for name in path {
            let (start, end) = scan::member(self.as_slice(), from, name.as_bytes())?;
            from = start;
            found = Some((start, end));
        }
        let (start, end) = found?;
        serde_json::from_slice(self.as_slice().get(start..end)?).ok()
    }
    /// A watch line of this object. Shared bytes when it was written as `kind`.
    pub fn line(&self, kind: ChangeType) -> Bytes {
        if kind == self.written_as {
            return self.line.clone();
        }
        let opening = kind.opening();
        let mut line = BytesMut::with_capacity(opening.len() + self.size() + END.len());
        line.put_slice(opening);
        line.put_slice(self.as_slice());
        line.put_slice(END);
        line.freeze()
    }
    /// The same object as a deletion at `revision` reports it.
    pub fn deleted_at(&self, revision: Revision) -> Entry {
        Entry::new(
            self.key.clone(),
            self.path_start,
            self.as_slice(),
            revision,
            ChangeType::Deleted,
        )
    }
    /// Labels and fields, read on first use.
    pub fn attributes(&self, fields: &[SelectableField]) -> &Attributes {
        self.attributes.get_or_init(|| {
            if fields.is_empty() {
                Attributes {
                    labels: labels(self.as_slice()),
                    fields: Box::default(),
                }
            } else {
                Attributes::of(&self.tree(), fields)
            }
        })
    }
    /// The same from a tree that is at hand, to spare the parse.
    pub fn learn(&self, object: &Object, fields: &[SelectableField]) {
        self.attributes.get_or_init(|| Attributes::of(object, fields));
    }
}

impl Attributes {
    fn of(object: &Object, fields: &[SelectableField]) -> Self {
        Attributes {
            labels: sampan_api::meta::labels(object)
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            fields: fields
                .iter()
                .map(|field| (field.read)(object).into_boxed_str())
                .collect(),
        }
    }
}

/// What is known of an object that cannot be read.
fn stub(path: &str) -> Vec<u8> {
    let (namespace, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut metadata = serde_json::Map::new();
    metadata.insert("name".into(), name.into());
    if !namespace.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    }
    serde_json::json!({ "metadata": metadata }).to_string().into_bytes()
}

fn labels(bytes: &[u8]) -> Labels {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(default)]
        metadata: Metadata,
    }
    #[derive(Deserialize, Default)]
    struct Metadata {
        #[serde(default)]
        labels: Option<BTreeMap<String, String>>,
    }
    serde_json::from_slice::<Probe>(bytes)
        .ok()
        .and_then(|probe| probe.metadata.labels)
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key.into_boxed_str(), value.into_boxed_str()))
        .collect()
}

/// An entry by its path, for ordered sets.
pub struct ByPath(pub Arc<Entry>);

impl Borrow<str> for ByPath {
    fn borrow(&self) -> &str {
        self.0.path()
    }
}
impl PartialEq for ByPath {
    fn eq(&self, other: &Self) -> bool {
        self.0.path() == other.0.path()
    }
}
impl Eq for ByPath {}
impl PartialOrd for ByPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.path().cmp(other.0.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_its_own_watch_line() {
        let value = br#"{"kind":"ConfigMap","metadata":{"labels":{"a":"b"},"name":"x","namespace":"n","uid":"u"}}"#;
        let entry = Entry::new("/registry/configmaps/n/x".into(), 21, value, 7, ChangeType::Added);
        assert_eq!(entry.path(), "n/x");
        assert_eq!((entry.namespace(), entry.name()), ("n", "x"));
        let text = r#"{"kind":"ConfigMap","metadata":{"labels":{"a":"b"},"name":"x","namespace":"n","resourceVersion":"7","uid":"u"}}"#;
        assert_eq!(entry.as_slice(), text.as_bytes());
        assert_eq!(
            entry.line(ChangeType::Added),
            format!("{{\"type\":\"ADDED\",\"object\":{text}}}\n")
        );
        assert_eq!(
            entry.line(ChangeType::Modified),
            format!("{{\"type\":\"MODIFIED\",\"object\":{text}}}\n")
        );
        assert_eq!(*entry.attributes(&[]).labels, [("a".into(), "b".into())]);
        assert_eq!(entry.at(&["metadata", "labels", "a"]), Some("b".into()));
        assert_eq!(entry.at(&["metadata", "labels", "b"]), None);
        assert_eq!(entry.at(&["metadata", "name", "a"]), None);
        assert_eq!(entry.at(&["status", "phase"]), None);
        let gone = entry.deleted_at(9);
        assert!(
            std::str::from_utf8(gone.as_slice())
                .unwrap()
                .contains(r#""resourceVersion":"9","uid""#)
        );
    }
}
