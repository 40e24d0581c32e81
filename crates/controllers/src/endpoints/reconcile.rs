//! How the endpoints of a Service are spread over slices with as few writes as possible. Pure.

use std::collections::HashMap;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// The most endpoints in a slice.
pub(super) const FULL: usize = 100;

/// What becomes of the slices of one address type and one set of ports.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Contents of slices to be made.
    pub(super) create: Vec<Vec<Endpoint>>,
    /// Slices whose endpoints change, with the new ones.
    pub(super) update: Vec<(EndpointSlice, Vec<Endpoint>)>,
    pub(super) delete: Vec<EndpointSlice>,
    pub(super) keep: Vec<EndpointSlice>,
    /// How many endpoints come and go.
    pub(super) added: usize,
    pub(super) removed: usize,
}

/// Addresses and the UID of what has them.
pub(super) type Identity = (String, Option<String>);

/// Who an endpoint is, whatever its condition.
pub(super) fn identity(endpoint: &Endpoint) -> Identity {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (endpoint.addresses.join(","), uid)
}

/// Endpoints stay in the slice they are in. Those that are new fill slices that change anyway, then the fullest one that
/// takes them all, then new slices.
pub(super) fn plan(existing: Vec<EndpointSlice>, wanted: Vec<Endpoint>) -> Plan {
    let mut order = Vec::with_capacity(wanted.len());
    let mut missing: HashMap<_, Endpoint> = HashMap::with_capacity(wanted.len());
    for endpoint in wanted {
        let id = identity(&endpoint);
        order.push(id.clone());
        missing.insert(id, endpoint);
    }
    let (mut changed, mut same) = (Vec::new(), Vec::new());
    let mut plan = Plan::default();
    for slice in existing {
        let before = slice.endpoints.as_ref().map_or(0, Vec::len);
        let mut kept: Vec<Endpoint> = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|endpoint| missing.remove(&identity(endpoint)))
            .collect();
        // A slice over its limit (made by another implementation) gives back what is too much.
        plan.removed += before.saturating_sub(kept.len());
        for endpoint in kept.split_off(kept.len().min(FULL)) {
            missing.insert(identity(&endpoint), endpoint);
        }
        if Some(&kept) == slice.endpoints.as_ref() || (kept.is_empty() && slice.endpoints.is_none()) {
            same.push(slice);
        } else {
            changed.push((slice, kept));
        }
    }
    let mut fresh: Vec<Endpoint> = order.into_iter().filter_map(|id| missing.remove(&id)).collect();
    plan.added = fresh.len();
    // The fullest first, so that slices end up full.
    changed.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.len()));
    for (slice, mut kept) in changed {
        let room = (FULL - kept.len()).min(fresh.len());
        if kept.is_empty() && room == 0 {
            plan.delete.push(slice);
            continue;
        }
        kept.extend(fresh.drain(..room));
        plan.update.push((slice, kept));
    }
    let len = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);
    let rest = fresh.len() % FULL;
    if rest > 0 {
        let fits = same
            .iter()
            .enumerate()
            .filter(|(_, slice)| len(slice) + rest <= FULL)
            .max_by_key(|(_, slice)| len(slice))
            .map(|(place, _)| place);
        if let Some(place) = fits {
            let slice = same.swap_remove(place);
            let mut endpoints = slice.endpoints.clone().unwrap_or_default();
            endpoints.extend(fresh.drain(..rest));
            plan.update.push((slice, endpoints));
        }
    }
    while !fresh.is_empty() {
        let some = fresh.drain(..fresh.len().min(FULL)).collect();
        plan.create.push(some);
    }
    plan.keep = same;
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(range: std::ops::Range<usize>) -> Vec<Endpoint> {
        range
            .map(|i| Endpoint {
                addresses: vec![format!("10.0.{}.{}", i / 256, i % 256)],
                ..Default::default()
            })
            .collect()
    }

    fn slice(name: &str, range: std::ops::Range<usize>) -> EndpointSlice {
        let mut slice = EndpointSlice {
            endpoints: Some(endpoints(range)),
            ..Default::default()
        };
        slice.metadata.name = Some(name.into());
        slice
    }

    fn shape(plan: &Plan) -> (Vec<usize>, Vec<usize>, usize, usize) {
        (
            plan.create.iter().map(Vec::len).collect(),
            plan.update.iter().map(|(_, e)| e.len()).collect(),
            plan.delete.len(),
            plan.keep.len(),
        )
    }

    #[test]
    fn slices_are_filled_and_left_alone() {
        let none = || Vec::new();
        // (existing, wanted) → (create, update, delete, keep)
        let cases = [
            (none(), endpoints(0..250), (vec![100, 100, 50], vec![], 0, 0)),
            (
                vec![slice("a", 0..100), slice("b", 100..150)],
                endpoints(0..150),
                (vec![], vec![], 0, 2),
            ),
            (
                vec![slice("a", 0..100), slice("b", 100..150)],
                endpoints(0..160),
                (vec![], vec![60], 0, 1),
            ),
            (
                vec![slice("a", 0..100), slice("b", 100..150)],
                endpoints(0..310),
                (vec![100, 60], vec![], 0, 2),
            ),
            (
                vec![slice("a", 0..10), slice("b", 10..20)],
                endpoints(0..10),
                (vec![], vec![], 1, 1),
            ),
            // One goes, two come: the slice that changes anyway takes them.
            (
                vec![slice("a", 0..50), slice("b", 50..140)],
                endpoints(1..142),
                (vec![], vec![51], 0, 1),
            ),
        ];
        for (i, (existing, wanted, expected)) in cases.into_iter().enumerate() {
            assert_eq!(shape(&plan(existing, wanted)), expected, "case {i}");
        }
    }

    #[test]
    fn every_wanted_endpoint_is_somewhere_exactly_once() {
        let existing = vec![slice("a", 0..90), slice("b", 90..130), slice("c", 200..230)];
        let wanted = endpoints(50..400);
        let plan = plan(existing, wanted.clone());
        let mut all: Vec<String> = plan
            .create
            .iter()
            .chain(plan.update.iter().map(|(_, endpoints)| endpoints))
            .chain(plan.keep.iter().filter_map(|slice| slice.endpoints.as_ref()))
            .inspect(|endpoints| assert!(endpoints.len() <= FULL))
            .flatten()
            .map(|endpoint| endpoint.addresses[0].clone())
            .collect();
        all.sort();
        let mut expected: Vec<String> = wanted.iter().map(|e| e.addresses[0].clone()).collect();
        expected.sort();
        assert_eq!(all, expected);
    }
}
