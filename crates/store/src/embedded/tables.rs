//! How the embedded engine lays its data out on disk.
//!
//! - `keys`: the present: key → header and value;
//! - `history`: the past: revision → the change made at it, kept until compacted. A change newer than the compaction
//!   names the revision its key had before; that one's record is kept too, however old, so that every state since the
//!   compaction can be told. It is written again where it was not kept because nothing had followed it yet;
//! - `leases` and `lease_keys`: time limits and what hangs on them;
//! - `meta`: a few counters.
//!
//! Integers are big-endian. A record that does not decode is corruption and is reported, never skipped.

use std::sync::Arc;

use bytes::Bytes;
use redb::TableDefinition;

use crate::types::{Change, Event, Key, KeyValue, LeaseId, Revision};

pub(super) const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
pub(super) const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
/// lease → time to live in milliseconds
pub(super) const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
pub(super) const LEASE_KEYS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("lease_keys");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

pub(super) const META_REVISION: &str = "revision";
pub(super) const META_COMPACTED: &str = "compacted";
pub(super) const META_NEXT_LEASE: &str = "next-lease";
pub(super) const META_FORMAT: &str = "format";
/// The layout described above.
pub(super) const FORMAT: u64 = 1;

#[derive(Debug, thiserror::Error)]
#[error("a {table} record is damaged ({length} bytes)")]
pub(super) struct Damaged {
    table: &'static str,
    length: usize,
}

const HEADER: usize = 24;

/// `create_revision | mod_revision | lease | value`
pub(super) fn encode_entry(entry: &KeyValue) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + entry.value.len());
    bytes.extend_from_slice(&entry.create_revision.to_be_bytes());
    bytes.extend_from_slice(&entry.mod_revision.to_be_bytes());
    bytes.extend_from_slice(&entry.lease.unwrap_or(0).to_be_bytes());
    bytes.extend_from_slice(&entry.value);
    bytes
}

pub(super) fn decode_entry(key: Key, bytes: &[u8]) -> Result<KeyValue, Damaged> {
    let damaged = || Damaged {
        table: "keys",
        length: bytes.len(),
    };
    let (create_revision, rest) = take_u64(bytes).ok_or_else(damaged)?;
    let (mod_revision, rest) = take_u64(rest).ok_or_else(damaged)?;
    let (lease, value) = take_u64(rest).ok_or_else(damaged)?;
    Ok(KeyValue {
        key,
        value: Bytes::copy_from_slice(value),
        create_revision,
        mod_revision,
        lease: lease_of(lease),
    })
}

/// `previous mod_revision (0: none) | 0: delete, 1: put | key length (4) | key | entry if put`
pub(super) fn encode_event(event: &Event) -> Vec<u8> {
    let previous = event.previous.as_ref().map_or(0, |entry| entry.mod_revision);
    let key = event.key.as_bytes();
    let mut bytes = Vec::with_capacity(13 + key.len());
    bytes.extend_from_slice(&previous.to_be_bytes());
    bytes.push(matches!(event.change, Change::Put(_)).into());
    // Keys are bounded by the API's own limits, far below 4 GiB.
    bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
    bytes.extend_from_slice(key);
    if let Change::Put(entry) = &event.change {
        bytes.extend_from_slice(&encode_entry(entry));
    }
    bytes
}

/// The event at `revision`, without its previous entry, and the revision that entry stands at in the history.
pub(super) fn decode_event(revision: Revision, bytes: &[u8]) -> Result<(Event, Revision), Damaged> {
    let damaged = || Damaged {
        table: "history",
        length: bytes.len(),
    };
    let (previous, rest) = take_u64(bytes).ok_or_else(damaged)?;
    let (&put, rest) = rest.split_first().ok_or_else(damaged)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (key, rest) = rest
        .split_at_checked(u32::from_be_bytes(*length) as usize)
        .ok_or_else(damaged)?;
    let key: Key = Arc::from(std::str::from_utf8(key).map_err(|_| damaged())?);
    let change = match put {
        0 => Change::Delete,
        _ => Change::Put(decode_entry(key.clone(), rest).map_err(|_| damaged())?),
    };
    Ok((
        Event {
            revision,
            key,
            change,
            previous: None,
        },
        previous,
    ))
}

/// Only what an event says of the time before it: its key, and the revision the key had (0: it was not there).
pub(super) fn decode_previous(bytes: &[u8]) -> Result<(&str, Revision), Damaged> {
    let damaged = || Damaged {
        table: "history",
        length: bytes.len(),
    };
    let (previous, rest) = take_u64(bytes).ok_or_else(damaged)?;
    let (length, rest) = rest
        .get(1..)
        .and_then(<[u8]>::split_first_chunk::<4>)
        .ok_or_else(damaged)?;
    let key = rest.get(..u32::from_be_bytes(*length) as usize).ok_or_else(damaged)?;
    Ok((std::str::from_utf8(key).map_err(|_| damaged())?, previous))
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), rest))
}

fn lease_of(number: u64) -> Option<LeaseId> {
    (number != 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entries_and_events_survive_a_round_trip(
            key in "/[a-z/]{0,40}", value in proptest::collection::vec(any::<u8>(), 0..200),
            create in 1u64.., modified in 1u64.., lease in proptest::option::of(1u64..), put: bool,
        ) {
            let key: Key = Arc::from(key);
            let entry = KeyValue { key: key.clone(), value: value.into(), create_revision: create, mod_revision: modified, lease };
            prop_assert_eq!(&decode_entry(key.clone(), &encode_entry(&entry)).unwrap(), &entry);
            let change = if put { Change::Put(entry.clone()) } else { Change::Delete };
            let event = Event { revision: modified, key, change, previous: Some(entry.clone()) };
            let record = encode_event(&event);
            let (decoded, previous) = decode_event(modified, &record).unwrap();
            prop_assert_eq!(previous, entry.mod_revision);
            prop_assert_eq!(decode_previous(&record).unwrap(), (&*event.key, previous));
            prop_assert_eq!(decoded.key, event.key);
            match decoded.change {
                Change::Put(decoded) => prop_assert_eq!(decoded, entry),
                Change::Delete => prop_assert!(!put),
            }
        }

        #[test]
        fn damaged_records_are_refused_not_panicked_on(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _any_answer_but_a_panic = (decode_entry(Arc::from("k"), &bytes).is_ok(), decode_event(1, &bytes).is_ok(), decode_previous(&bytes).is_ok());
        }
    }
}
