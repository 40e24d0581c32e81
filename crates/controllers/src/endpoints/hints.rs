//! For whom endpoints are: hints that tell proxies to prefer what is near. Pure.
//!
//! With `trafficDistribution` a hint follows from the endpoint alone. With the annotation of topology-aware routing
//! endpoints are shared out among zones by their processors: each in its own zone first, then as few as possible given
//! to zones that have too little. What is hinted stays so while no zone has too few or too many for it.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};
use kube::ResourceExt;
use sampan_api::quantity::Quantity;

use super::reconcile::{Identity, identity};

/// How much more than its share a zone's endpoints may have to bear.
const OVERLOAD: f64 = 0.2;
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const ENABLED: &str = "Topology Aware Hints has been enabled";
pub(super) const DISABLED: &str = "Topology Aware Hints has been disabled";

/// How a Service wants its traffic distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Routing {
    Anywhere,
    SameZone,
    SameNode,
    /// By the annotation: zones share endpoints by their size.
    Shared,
}

pub(super) fn routing(service: &Service) -> Routing {
    let annotations = service.annotations();
    let mode = annotations
        .get("service.kubernetes.io/topology-aware-hints")
        .or_else(|| annotations.get("service.kubernetes.io/topology-mode"));
    if mode.is_some_and(|mode| mode == "Auto" || mode == "auto") {
        return Routing::Shared;
    }
    let distribution = service
        .spec
        .as_ref()
        .and_then(|spec| spec.traffic_distribution.as_deref());
    match distribution {
        Some("PreferClose" | "PreferSameZone") => Routing::SameZone,
        Some("PreferSameNode") => Routing::SameNode,
        _ => Routing::Anywhere,
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .is_some_and(|conditions| conditions.ready == Some(true))
}

fn for_zone(zone: &str) -> EndpointHints {
    EndpointHints {
        for_zones: Some(vec![ForZone { name: zone.to_owned() }]),
        ..Default::default()
    }
}

/// The hint that follows from where an endpoint is.
pub(super) fn near(routing: Routing, endpoint: &Endpoint) -> Option<EndpointHints> {
    if !is_ready(endpoint) || !matches!(routing, Routing::SameZone | Routing::SameNode) {
        return None;
    }
    let node = endpoint.node_name.as_ref().filter(|_| routing == Routing::SameNode);
    let hints = EndpointHints {
        for_zones: endpoint.zone.as_ref().map(|zone| vec![ForZone { name: zone.clone() }]),
        for_nodes: node.map(|node| vec![ForNode { name: node.clone() }]),
    };
    (hints != EndpointHints::default()).then_some(hints)
}

/// What part of the cluster's processors each zone has.
pub(super) type Zones = BTreeMap<String, f64>;

/// What counts of a node for [`zones`]: its zone and processors, if it takes part.
pub(super) fn weight(node: &Node) -> Option<(Option<String>, i64)> {
    let excluded = [
        "node-role.kubernetes.io/control-plane",
        "node-role.kubernetes.io/master",
    ];
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready");
    if excluded.iter().any(|label| node.labels().contains_key(*label))
        || ready.is_none_or(|condition| condition.status != "True")
    {
        return None;
    }
    let cpu = status.and_then(|status| status.allocatable.as_ref()?.get("cpu"));
    let cpu = cpu
        .and_then(|cpu| Quantity::parse(&cpu.0).ok())
        .map_or(0, |cpu| cpu.milli_value());
    let zone = node.labels().get(ZONE).filter(|zone| !zone.is_empty()).cloned();
    Some((zone, cpu))
}

/// `None`: not every node says where and how large it is, or there is only one zone.
pub(super) fn zones<'n>(nodes: impl IntoIterator<Item = &'n Node>) -> Option<Zones> {
    let mut sizes: BTreeMap<String, i64> = BTreeMap::new();
    for (zone, cpu) in nodes.into_iter().filter_map(weight) {
        let zone = zone.filter(|_| cpu > 0)?;
        let size = sizes.entry(zone).or_default();
        *size = size.saturating_add(cpu);
    }
    let total: f64 = sizes.values().map(|cpu| *cpu as f64).sum();
    (sizes.len() > 1).then(|| {
        sizes
            .into_iter()
            .map(|(zone, cpu)| (zone, cpu as f64 / total))
            .collect()
    })
}

/// How many endpoints a zone needs, may have and ought to have.
struct Allocation {
    least: usize,
    most: usize,
    desired: f64,
}

fn allocations(zones: &Zones, endpoints: usize) -> Result<BTreeMap<&str, Allocation>, String> {
    let counted = |why: &str| format!("{why} ({endpoints} endpoints, {} zones)", zones.len());
    if zones.len() > endpoints {
        return Err(counted("Insufficient number of endpoints"));
    }
    let mut all: BTreeMap<&str, Allocation> = BTreeMap::new();
    for (zone, share) in zones {
        let desired = share * endpoints as f64;
        let least = (desired / (1.0 + OVERLOAD)).ceil() as usize;
        all.insert(
            zone,
            Allocation {
                least,
                most: 0,
                desired: desired.max(least as f64),
            },
        );
    }
    let least: usize = all.values().map(|zone| zone.least).sum();
    let Some(spare) = endpoints.checked_sub(least) else {
        return Err(counted(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold",
        ));
    };
    for zone in all.values_mut() {
        zone.most = zone.least + spare;
    }
    Ok(all)
}

/// Shares the ready endpoints of a Service (of one family) out among zones; says why it cannot be. `before` are the zones
/// they were hinted for.
pub(super) fn share(
    mut endpoints: Vec<&mut Endpoint>,
    before: &HashMap<Identity, String>,
    zones: Option<&Zones>,
) -> Result<(), String> {
    for endpoint in &mut endpoints {
        endpoint.hints = None;
    }
    let Some(zones) = zones else {
        return Err("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes".into());
    };
    let mut ready: Vec<(Identity, &mut Endpoint)> = endpoints
        .into_iter()
        .filter(|endpoint| is_ready(endpoint))
        .map(|endpoint| (identity(endpoint), endpoint))
        .collect();
    ready.sort_by(|(a, _), (b, _)| a.cmp(b));
    let allocations = allocations(zones, ready.len())?;
    let own: Vec<String> = ready
        .iter()
        .map(|(_, endpoint)| endpoint.zone.clone().filter(|zone| !zone.is_empty()))
        .collect::<Option<_>>()
        .ok_or("One or more endpoints do not have a zone specified")?;

    let kept: Option<Vec<String>> = ready
        .iter()
        .map(|(identity, _)| before.get(identity).cloned())
        .collect();
    let chosen = kept.filter(|kept| {
        let count = |zone: &str| kept.iter().filter(|hinted| *hinted == zone).count();
        kept.iter().all(|zone| allocations.contains_key(zone.as_str()))
            && allocations
                .iter()
                .all(|(zone, limits)| (limits.least..=limits.most).contains(&count(zone)))
    });
    let chosen = chosen.unwrap_or_else(|| spread(own, &allocations));
    for ((_, endpoint), zone) in ready.into_iter().zip(chosen) {
        endpoint.hints = Some(for_zone(&zone));
    }
    Ok(())
}

/// Everybody's own zone, but that zones with too many give to those with too few.
fn spread(mut zones: Vec<String>, allocations: &BTreeMap<&str, Allocation>) -> Vec<String> {
    let (mut over, mut under): (BTreeMap<&str, f64>, BTreeMap<&str, f64>) = Default::default();
    for (zone, limits) in allocations {
        let have = zones.iter().filter(|own| own == zone).count() as f64;
        if have > limits.desired {
            over.insert(zone, have - limits.desired);
        } else if have < limits.desired {
            under.insert(zone, limits.desired - have);
        }
    }
    let most = |zones: &BTreeMap<&str, f64>| {
        zones
            .iter()
            .fold(None, |most: Option<(String, f64)>, (zone, much)| match most {
                Some((_, most_yet)) if most_yet >= *much => most,
                _ if *much > 0.0 => Some(((*zone).to_owned(), *much)),
                _ => most,
            })
    };
    let (mut give, mut get): (HashMap<String, usize>, BTreeMap<String, usize>) = Default::default();
    while let (Some((giver, much)), Some((getter, little))) = (most(&over), most(&under)) {
        if (much < 1.0 && little < 1.0) || much < 0.5 || little < 0.5 {
            break;
        }
        if let Some(much) = over.get_mut(giver.as_str()) {
            *much -= 1.0;
        }
        if let Some(little) = under.get_mut(getter.as_str()) {
            *little -= 1.0;
        }
        *give.entry(giver).or_default() += 1;
        *get.entry(getter).or_default() += 1;
    }
    for zone in &mut zones {
        let Some(left) = give.get_mut(zone.as_str()).filter(|left| **left > 0) else {
            continue;
        };
        let Some((getter, wants)) = get.iter_mut().find(|(_, wants)| **wants > 0) else {
            break;
        };
        *left -= 1;
        *wants -= 1;
        *zone = getter.clone();
    }
    zones
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::discovery::v1::EndpointConditions;

    fn endpoint(number: usize, zone: &str) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.0.{number:03}")],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                ..Default::default()
            }),
            zone: Some(zone.to_owned()).filter(|zone| !zone.is_empty()),
            node_name: Some(format!("node-{number}")),
            ..Default::default()
        }
    }

    fn many(counts: &[(&str, usize)]) -> Vec<Endpoint> {
        let zones = counts
            .iter()
            .flat_map(|(zone, count)| std::iter::repeat_n(*zone, *count));
        zones.enumerate().map(|(number, zone)| endpoint(number, zone)).collect()
    }

    fn zones_of(counts: &[(&str, f64)]) -> Zones {
        counts
            .iter()
            .map(|(zone, share)| ((*zone).to_owned(), *share))
            .collect()
    }

    fn hinted(endpoints: &[Endpoint]) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for hints in endpoints.iter().filter_map(|endpoint| endpoint.hints.as_ref()) {
            *counts
                .entry(hints.for_zones.as_ref().unwrap()[0].name.clone())
                .or_default() += 1;
        }
        counts
    }

    #[test]
    fn near_means_zone_or_node() {
        let here = endpoint(1, "a");
        assert_eq!(near(Routing::SameZone, &here), Some(for_zone("a")));
        let both = near(Routing::SameNode, &here).unwrap();
        assert_eq!(
            (both.for_zones.unwrap().len(), both.for_nodes.unwrap()[0].name.as_str()),
            (1, "node-1")
        );
        assert_eq!(near(Routing::SameZone, &endpoint(1, "")), None);
        assert_eq!(near(Routing::Anywhere, &here), None);
        let mut unready = here;
        unready.conditions = None;
        assert_eq!(near(Routing::SameZone, &unready), None);
    }

    #[test]
    fn the_annotation_goes_before_the_field() {
        let service = |annotations: &[(&str, &str)], distribution: Option<&str>| {
            let mut service = Service::default();
            let annotations = annotations
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            service.metadata.annotations = Some(annotations.collect());
            service.spec.get_or_insert_default().traffic_distribution = distribution.map(str::to_owned);
            routing(&service)
        };
        let (old, new) = (
            "service.kubernetes.io/topology-aware-hints",
            "service.kubernetes.io/topology-mode",
        );
        assert_eq!(service(&[], None), Routing::Anywhere);
        assert_eq!(service(&[(new, "Auto")], Some("PreferSameNode")), Routing::Shared);
        assert_eq!(
            service(&[(old, "disabled"), (new, "Auto")], Some("PreferSameNode")),
            Routing::SameNode
        );
        assert_eq!(service(&[(old, "auto")], None), Routing::Shared);
        assert_eq!(service(&[], Some("PreferClose")), Routing::SameZone);
        assert_eq!(service(&[], Some("Unknown")), Routing::Anywhere);
    }

    #[test]
    fn zones_get_their_share_and_no_more_is_moved_than_must() {
        // (shares, endpoints by zone) → hints by zone, or why not
        type Case<'c> = (
            &'c [(&'c str, f64)],
            &'c [(&'c str, usize)],
            Result<&'c [(&'c str, usize)], &'c str>,
        );
        let cases: [Case<'_>; 6] = [
            (
                &[("a", 0.5), ("b", 0.5)],
                &[("a", 5), ("b", 5)],
                Ok(&[("a", 5), ("b", 5)]),
            ),
            (
                &[("a", 0.5), ("b", 0.5)],
                &[("a", 8), ("b", 2)],
                Ok(&[("a", 5), ("b", 5)]),
            ),
            (&[("a", 0.5), ("b", 0.5)], &[("a", 10)], Ok(&[("a", 5), ("b", 5)])),
            // A zone without nodes gives all it has.
            (
                &[("a", 0.5), ("b", 0.5)],
                &[("a", 1)],
                Err("Insufficient number of endpoints (1 endpoints, 2 zones)"),
            ),
            (
                &[("a", 0.5), ("b", 0.5)],
                &[("a", 3), ("", 1)],
                Err("One or more endpoints do not have a zone specified"),
            ),
            (
                &[("a", 0.34), ("b", 0.33), ("c", 0.33)],
                &[("a", 2), ("b", 2)],
                Err(
                    "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (4 endpoints, 3 zones)",
                ),
            ),
        ];
        for (shares, counts, expected) in cases {
            let mut endpoints = many(counts);
            let result = share(endpoints.iter_mut().collect(), &HashMap::new(), Some(&zones_of(shares)));
            match expected {
                Ok(expected) => {
                    result.unwrap();
                    let expected: BTreeMap<String, usize> = expected
                        .iter()
                        .map(|(zone, count)| ((*zone).to_owned(), *count))
                        .collect();
                    assert_eq!(hinted(&endpoints), expected, "{shares:?} {counts:?}");
                }
                Err(why) => {
                    assert_eq!(result, Err(why.to_owned()));
                    assert!(hinted(&endpoints).is_empty());
                }
            }
        }
        assert!(share(Vec::new(), &HashMap::new(), None).is_err());
    }

    #[test]
    fn what_is_good_enough_stays() {
        let shares = zones_of(&[("a", 0.5), ("b", 0.5)]);
        let mut endpoints = many(&[("a", 6), ("b", 5)]);
        let before: HashMap<_, _> = endpoints
            .iter()
            .map(|one| (identity(one), one.zone.clone().unwrap()))
            .collect();
        share(endpoints.iter_mut().collect(), &before, Some(&shares)).unwrap();
        assert_eq!(hinted(&endpoints), [("a".to_owned(), 6), ("b".to_owned(), 5)].into());
    }

    #[test]
    fn zones_are_weighed_by_ready_workers() {
        let node = |zone: &str, cpu: &str, ready: &str, role: &str| -> Node {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "n", "labels": {ZONE: zone, role: ""}},
                "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let workers = [
            node("a", "3", "True", "x"),
            node("b", "1000m", "True", "x"),
            node("c", "1", "False", "x"),
        ];
        assert_eq!(zones(&workers), Some(zones_of(&[("a", 0.75), ("b", 0.25)])));
        let master = node("b", "1", "True", "node-role.kubernetes.io/control-plane");
        assert_eq!(zones([&workers[0], &master]), None);
        assert_eq!(zones([&workers[0], &workers[1], &node("", "1", "True", "x")]), None);
    }
}
