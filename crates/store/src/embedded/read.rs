//! Ranges of the present and of the past.
//!
//! The past is the present with what happened since undone: every change names the revision its key had before, and
//! that revision's record is in the history. So a state costs a walk over the changes since.

use std::collections::{BTreeMap, HashSet};

use redb::{Database, ReadableDatabase};

use super::tables::{self, HISTORY, KEYS, META};
use super::{failed, writer};
use crate::types::{Change, Error, Key, KeyValue, Page, Revision};

const ACTION: &str = "read a range";

pub(super) fn range(database: &Database, start: &str, end: &str, limit: usize) -> Result<Page, Error> {
    let transaction = database.begin_read().map_err(failed(ACTION))?;
    let meta = transaction.open_table(META).map_err(failed(ACTION))?;
    let revision = writer::counter(&meta, tables::META_REVISION).map_err(failed(ACTION))?;
    let keys = transaction.open_table(KEYS).map_err(failed(ACTION))?;
    let mut page = Page {
        entries: Vec::new(),
        more: false,
        revision,
    };
    if start >= end {
        return Ok(page);
    }
    for item in keys.range::<&str>(start..end).map_err(failed(ACTION))? {
        let (key, value) = item.map_err(failed(ACTION))?;
        let entry = tables::decode_entry(Key::from(key.value()), value.value()).map_err(failed(ACTION))?;
        if !add(&mut page, limit, entry) {
            break;
        }
    }
    Ok(page)
}

pub(super) fn range_at(database: &Database, start: &str, end: &str, limit: usize, at: Revision) -> Result<Page, Error> {
    let transaction = database.begin_read().map_err(failed(ACTION))?;
    let meta = transaction.open_table(META).map_err(failed(ACTION))?;
    let current = writer::counter(&meta, tables::META_REVISION).map_err(failed(ACTION))?;
    let compacted = writer::counter(&meta, tables::META_COMPACTED).map_err(failed(ACTION))?;
    if at < compacted {
        return Err(Error::Compacted {
            requested: at,
            oldest: compacted,
        });
    }
    if at > current {
        return Err(Error::Future { requested: at, current });
    }
    let mut page = Page {
        entries: Vec::new(),
        more: false,
        revision: at,
    };
    if start >= end {
        return Ok(page);
    }
    let history = transaction.open_table(HISTORY).map_err(failed(ACTION))?;
    // The first change of each key since says what it was at the time.
    let mut changed: BTreeMap<Key, Revision> = BTreeMap::new();
    for item in history.range(at + 1..).map_err(failed(ACTION))? {
        let (_, record) = item.map_err(failed(ACTION))?;
        let (key, previous) = tables::decode_previous(record.value()).map_err(failed(ACTION))?;
        if (start..end).contains(&key) && !changed.contains_key(key) {
            changed.insert(key.into(), previous);
        }
    }
    let then = |revision: Revision| -> Result<KeyValue, Error> {
        let gone = Error::Compacted {
            requested: at,
            oldest: current,
        };
        let Some(record) = history.get(revision).map_err(failed(ACTION))? else {
            // Compacted by a version that did not keep it.
            return Err(gone);
        };
        match tables::decode_event(revision, record.value())
            .map_err(failed(ACTION))?
            .0
            .change
        {
            Change::Put(entry) => Ok(entry),
            Change::Delete => Err(gone),
        }
    };
    let keys = transaction.open_table(KEYS).map_err(failed(ACTION))?;
    let mut present = keys.range::<&str>(start..end).map_err(failed(ACTION))?;
    let mut changed = changed.into_iter().peekable();
    let mut standing = present.next().transpose().map_err(failed(ACTION))?;
    loop {
        let next_changed = changed.peek().map(|(key, _)| key);
        let changed_first = match (&standing, next_changed) {
            (None, None) => return Ok(page),
            (Some(_), None) => false,
            (None, Some(_)) => true,
            (Some((key, _)), Some(changed)) => **changed <= *key.value(),
        };
        let entry = if changed_first {
            let Some((key, previous)) = changed.next() else {
                return Ok(page);
            };
            if standing.as_ref().is_some_and(|(standing, _)| standing.value() == &*key) {
                standing = present.next().transpose().map_err(failed(ACTION))?;
            }
            match previous {
                0 => continue,
                previous => then(previous)?,
            }
        } else {
            let Some((key, value)) = standing else { return Ok(page) };
            let entry = tables::decode_entry(Key::from(key.value()), value.value()).map_err(failed(ACTION))?;
            standing = present.next().transpose().map_err(failed(ACTION))?;
            entry
        };
        if !add(&mut page, limit, entry) {
            return Ok(page);
        }
    }
}

/// The revisions up to `until` that changes after it lead back to, and up to which revision changes were looked at.
pub(super) fn led_back_to(database: &Database, until: Revision) -> Result<(HashSet<Revision>, Revision), Error> {
    let action = "compact its history";
    let transaction = database.begin_read().map_err(failed(action))?;
    let history = transaction.open_table(HISTORY).map_err(failed(action))?;
    let (mut found, mut looked) = (HashSet::new(), until);
    for item in history.range(until.saturating_add(1)..).map_err(failed(action))? {
        let (revision, record) = item.map_err(failed(action))?;
        let (_, previous) = tables::decode_previous(record.value()).map_err(failed(action))?;
        if (1..=until).contains(&previous) {
            found.insert(previous);
        }
        looked = revision.value();
    }
    Ok((found, looked))
}

/// Adds an entry if there is room for it, or notes that there is more.
fn add(page: &mut Page, limit: usize, entry: KeyValue) -> bool {
    if limit != 0 && page.entries.len() == limit {
        page.more = true;
        return false;
    }
    page.entries.push(entry);
    true
}
