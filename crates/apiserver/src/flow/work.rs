//! What a request will cost, in seats, before it is known.
//!
//! Most cost one. A list costs by the bytes it is likely to hold in memory, so does the beginning of a watch that
//! starts with the state; a write costs more afterwards the more watchers will be told of it.
//! The figures are upstream's, so that limits mean the same here and there.

use std::time::Duration;

use super::queues::Work;
use crate::request::{Query, RequestInfo};
use crate::watch_cache::Storage;

const BYTES_PER_SEAT: usize = 100_000;
/// A list from the cache is streamed: no more than this of it is in memory at once.
const STREAMED: usize = 1_000_000;
const MOST_LIST_SEATS: usize = 100;
const MOST_WRITE_SEATS: usize = 10;
const WATCHES_PER_SEAT: usize = 10;
const PER_EVENT: Duration = Duration::from_millis(5);

/// `most`: the level's own bound on the seats of one request, 0 for none.
pub fn estimate(info: &RequestInfo, query: &Query, most: usize, storage: Option<&Storage>) -> Work {
    let bound = |limit: usize| if most == 0 { limit } else { most.min(limit) };
    match info.verb.as_str() {
        "list" | "watch" => storage.map_or(Work::ONE, |storage| {
            Work::seats(list(info, query, storage).clamp(1, bound(MOST_LIST_SEATS)))
        }),
        "create" | "update" | "patch" | "delete" => {
            let silent = info.resource == "serviceaccounts" && info.subresource == "token";
            match storage {
                Some(storage) if !silent => {
                    write(storage.interested(&info.namespace, &info.name), bound(MOST_WRITE_SEATS))
                }
                _ => Work::ONE,
            }
        }
        _ => Work::ONE,
    }
}

fn list(info: &RequestInfo, query: &Query, storage: &Storage) -> usize {
    let version = query.text("resourceVersion");
    let watch = info.verb == "watch";
    if watch && !query.flag("sendInitialEvents") && !matches!(version, None | Some("0")) {
        return 1;
    }
    let (count, bytes) = storage.weight();
    let limit = query
        .text("limit")
        .and_then(|text| text.parse::<usize>().ok())
        .unwrap_or(0);
    let matching = query.text("resourceVersionMatch");
    let from_cache = watch
        || match matching {
            Some("NotOlderThan") => true,
            None => query.text("continue").is_none() && (limit == 0 || matches!(version, None | Some("0"))),
            _ => false,
        };
    let selects = query.text("fieldSelector").is_some() || query.text("labelSelector").is_some();
    let page = if limit > 0 { limit.min(count) } else { count };
    let objects = if !info.name.is_empty() {
        1
    } else if !from_cache && selects {
        page.max(count / 2)
    } else {
        page
    };
    let average = bytes / count.max(1);
    let mut memory = objects.saturating_mul(average);
    if from_cache {
        memory = memory.min(STREAMED);
    }
    memory.div_ceil(BYTES_PER_SEAT)
}

fn write(watchers: usize, most: usize) -> Work {
    if watchers < WATCHES_PER_SEAT {
        return Work::ONE;
    }
    let seats = watchers.div_ceil(WATCHES_PER_SEAT);
    let last = seats.min(most);
    Work {
        initial: 1,
        last,
        // The same work on fewer seats takes longer.
        latency: PER_EVENT.mul_f64(seats as f64 / last.max(1) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch_cache::{ChangeType, Entry};
    use std::sync::Arc;

    #[test]
    fn writes_cost_by_watchers() {
        assert_eq!(write(9, 10), Work::ONE);
        let work = |last, millis| Work {
            initial: 1,
            last,
            latency: Duration::from_millis(millis),
        };
        assert_eq!(write(10, 10), work(1, 5));
        assert_eq!(write(95, 10), work(10, 5));
        assert_eq!(write(500, 10), work(10, 25));
    }

    #[test]
    fn lists_cost_by_bytes() {
        let storage = Storage::new("configmaps", Vec::new(), None);
        let value = format!(r#"{{"metadata":{{}},"data":{{"d":"{}"}}}}"#, "x".repeat(1000));
        let entries = (0..500)
            .map(|number| {
                let key = format!("/registry/configmaps/n/{number:04}");
                Arc::new(Entry::new(key.into(), 21, value.as_bytes(), 1, ChangeType::Added))
            })
            .collect();
        storage.preload(entries, 1);
        let seats = |verb: &str, name: &str, query: &str, most| {
            let info = RequestInfo {
                is_resource: true,
                verb: verb.into(),
                name: name.into(),
                ..RequestInfo::default()
            };
            estimate(&info, &Query::parse(query), most, Some(&storage)).initial
        };
        // 500 objects of a little more than 1,000 bytes.
        assert_eq!(seats("list", "", "", 0), 6);
        assert_eq!(seats("list", "", "", 4), 4);
        assert_eq!(seats("list", "", "limit=100", 0), 2);
        assert_eq!(seats("list", "one", "", 0), 1);
        assert_eq!(seats("list", "", "limit=100&resourceVersion=5&labelSelector=a", 0), 3);
        assert_eq!(seats("watch", "", "resourceVersion=7", 0), 1);
        assert_eq!(seats("watch", "", "resourceVersion=0", 0), 6);
        assert_eq!(seats("watch", "", "resourceVersion=7&sendInitialEvents=true", 0), 6);
        assert_eq!(seats("get", "one", "", 0), 1);
    }
}
