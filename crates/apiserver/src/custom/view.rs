//! Stored objects as one version of their definition shows them.
//!
//! What is stored may be of another version, or older than the schema: it is converted, pruned and given its
//! defaults when it is read, as upstream does it. The result is remembered per object and revision, so a list
//! costs a walk and a watch event one conversion; an object that is shown as it is stored costs nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sampan_api::schema::Type;
use sampan_api::{Object, meta};
use sampan_store::Revision;
use sampan_structural::{Schema, defaults};

use super::convert::{Converter, set_version};
use crate::Refusal;
use crate::sync::lock;
use crate::watch_cache::{Change, ChangeType, Entry, Index, Snapshot, Storage, scan};

/// Remembered objects beyond twice what is stored are forgotten.
const SPARE: usize = 256;

pub struct View {
    /// `group/version` this shows.
    pub api_version: String,
    /// `group/version` that is written.
    pub stored_version: String,
    pub schema: Option<Arc<Schema>>,
    /// Every version of the definition, served or not, with the type of its objects.
    pub versions: Arc<[(String, Type)]>,
    /// Everything stored was written in this version under this schema.
    pub pristine: bool,
    pub converter: Converter,
    pub storage: Arc<Storage>,
    pub seen: Mutex<Seen>,
}

/// What has been shown, by key and revision.
pub type Seen = HashMap<(Arc<str>, Revision), Arc<Entry>>;

/// `apiVersion` of encoded JSON.
fn version_of(bytes: &[u8]) -> &str {
    scan::member(bytes, 0, b"apiVersion")
        .and_then(|(start, end)| std::str::from_utf8(bytes.get(start..end)?).ok())
        .map_or("", |text| text.trim_matches('"'))
}

impl View {
    /// Whether entries are shown as they are.
    pub fn is_plain(&self) -> bool {
        self.pristine
    }

    /// The entry as this version shows it, where nobody has to be asked.
    pub fn now(&self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        if self.pristine {
            return Some(entry.clone());
        }
        if let Some(known) = lock(&self.seen).get(&(entry.key().clone(), entry.revision())) {
            return Some(known.clone());
        }
        if self.converter.asks() && version_of(entry.as_slice()) != self.api_version {
            return None;
        }
        let mut object = entry.object();
        set_version(&mut object, &self.api_version);
        Some(self.remember(entry, object))
    }

    /// Entries as this version shows them.
    pub async fn entries(&self, entries: Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>, Refusal> {
        if self.pristine {
            return Ok(entries);
        }
        let mut shown: Vec<Option<Arc<Entry>>> = entries.iter().map(|entry| self.now(entry)).collect();
        let missing: Vec<usize> = (0..entries.len())
            .filter(|at| shown.get(*at).is_some_and(Option::is_none))
            .collect();
        if !missing.is_empty() {
            let objects = missing
                .iter()
                .filter_map(|at| entries.get(*at))
                .map(|entry| entry.object())
                .collect();
            let converted = self.converter.convert(objects, &self.api_version).await?;
            for (at, object) in missing.into_iter().zip(converted) {
                if let (Some(slot), Some(entry)) = (shown.get_mut(at), entries.get(at)) {
                    *slot = Some(self.remember(entry, object));
                }
            }
        }
        Ok(shown.into_iter().flatten().collect())
    }

    /// A snapshot as this version shows it.
    pub async fn snapshot(&self, snapshot: Snapshot) -> Result<Snapshot, Refusal> {
        if self.pristine {
            return Ok(snapshot);
        }
        let entries = self.entries(snapshot.index.iter().cloned().collect()).await?;
        Ok(Snapshot {
            revision: snapshot.revision,
            index: Index::from_sorted(entries),
        })
    }

    /// A change as this version shows it, where nobody has to be asked.
    pub fn change_now(&self, change: &Change) -> Option<Arc<Change>> {
        let previous = match &change.previous {
            Some(previous) => Some(self.now(previous)?),
            None => None,
        };
        let entry = match (change.kind, &previous) {
            (ChangeType::Deleted, Some(previous)) => Arc::new(previous.deleted_at(change.revision)),
            _ => self.now(&change.entry)?,
        };
        Some(Arc::new(Change::new(change.revision, change.kind, entry, previous)))
    }

    pub async fn change(&self, change: Arc<Change>) -> Result<Arc<Change>, Refusal> {
        let wanted: Vec<_> = change
            .previous
            .iter()
            .chain((change.kind != ChangeType::Deleted).then_some(&change.entry))
            .cloned()
            .collect();
        let mut shown = self.entries(wanted).await?.into_iter();
        let previous = change.previous.as_ref().and_then(|_| shown.next());
        let entry = match (change.kind, &previous) {
            (ChangeType::Deleted, Some(previous)) => Arc::new(previous.deleted_at(change.revision)),
            _ => shown.next().unwrap_or_else(|| change.entry.clone()),
        };
        Ok(Arc::new(Change::new(change.revision, change.kind, entry, previous)))
    }

    /// A tree as this version shows it.
    pub async fn object(&self, object: Object) -> Result<Object, Refusal> {
        if self.pristine {
            return Ok(object);
        }
        let mut object = self.in_version(object, &self.api_version).await?;
        self.finish(&mut object);
        Ok(object)
    }

    /// A tree of any version as this version shows it: what admission holds is of the request's version.
    pub async fn of_any(&self, object: Object) -> Result<Object, Refusal> {
        let mut object = self.in_version(object, &self.api_version).await?;
        self.finish(&mut object);
        Ok(object)
    }

    /// A tree of this version as it is stored.
    pub async fn to_storage(&self, object: Object) -> Result<Object, Refusal> {
        self.in_version(object, &self.stored_version).await
    }

    /// A tree in another version as it comes out, neither pruned nor with defaults; nothing where somebody has to
    /// be asked.
    pub fn convert_now(&self, object: &Object, version: &str) -> Option<Object> {
        let same = meta::api_version(object) == version;
        (same || !self.converter.asks()).then(|| {
            let mut object = object.clone();
            set_version(&mut object, version);
            object
        })
    }

    pub async fn convert(&self, object: Object, version: &str) -> Result<Object, Refusal> {
        self.in_version(object, version).await
    }

    async fn in_version(&self, mut object: Object, version: &str) -> Result<Object, Refusal> {
        if meta::api_version(&object) == version {
            return Ok(object);
        }
        if !self.converter.asks() {
            set_version(&mut object, version);
            return Ok(object);
        }
        let mut converted = self.converter.convert(vec![object], version).await?;
        Ok(converted.pop().unwrap_or_default())
    }

    fn finish(&self, object: &mut Object) {
        if let Some(schema) = &self.schema {
            defaults::prune(schema, object, true);
            defaults::drop_nulls(schema, object);
            defaults::fill(schema, object);
        }
    }

    fn remember(&self, entry: &Arc<Entry>, mut object: Object) -> Arc<Entry> {
        self.finish(&mut object);
        let shown = if object == entry.object() {
            entry.clone()
        } else {
            if let Some(metadata) = object.get_mut("metadata").and_then(Object::as_object_mut) {
                metadata.remove("resourceVersion");
            }
            let bytes = serde_json::to_vec(&object).unwrap_or_default();
            self.storage
                .entry(entry.key().clone(), &bytes, entry.revision(), ChangeType::Modified)
        };
        let mut seen = lock(&self.seen);
        if seen.len() > self.storage.len() * 2 + SPARE {
            seen.clear();
        }
        seen.insert((entry.key().clone(), entry.revision()), shown.clone());
        shown
    }
}
