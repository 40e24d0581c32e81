//! Upstream's arithmetic, by the numbers.

use super::*;
use crate::pod::Class;
use crate::snapshot::Snapshot;
use crate::testing::{node, pod, pod_info};
use serde_json::{Value, json};

fn containers(requests: &[Value]) -> Value {
    let containers: Vec<_> = requests
        .iter()
        .enumerate()
        .map(|(at, requests)| json!({"name": format!("c{at}"), "resources": {"requests": requests}}))
        .collect();
    json!({"containers": containers})
}

/// What a node scores, with one Pod on it already.
fn score(score: &NodeRank, allocatable: Value, there: &[Value], asks: &[Value]) -> i64 {
    let mut snapshot = Snapshot::default();
    let at = snapshot.set_node(node("n", allocatable)).unwrap();
    snapshot.place(pod_info("there", containers(there)), "n");
    let class = Class::of(&pod("new", containers(asks)));
    score(&class, snapshot.node(at).unwrap())
}

fn strategy(strategy: Strategy, resources: &[(&str, i64)]) -> NodeRank {
    allocation(&NodeResourcesFit {
        strategy,
        resources: resources
            .iter()
            .map(|(name, weight)| ResourceWeight::new(name, *weight))
            .collect(),
        ..NodeResourcesFit::default()
    })
}

fn shape(points: &[(i64, i64)]) -> Strategy {
    Strategy::RequestedToCapacityRatio(
        points
            .iter()
            .map(|&(utilization, score)| ShapePoint { utilization, score })
            .collect(),
    )
}

const USUAL: [(&str, i64); 2] = [("cpu", 1), ("memory", 1)];

#[test]
fn strategies_score_as_upstream_does() {
    let node = json!({"cpu": "4", "memory": "10000", "pods": "9"});
    let small = json!({"cpu": "1", "memory": "2000"});
    let half = json!({"cpu": "2", "memory": "3000"});
    let gpus = |count: &str| json!({"cpu": "4", "memory": "10000", "pods": "9", "example.com/gpu": count});
    let gpu = |count: &str| json!({"cpu": "1", "memory": "2000", "example.com/gpu": count});
    let ratio = |points: &[(i64, i64)], resources: &[(&str, i64)]| strategy(shape(points), resources);
    let rising = [(0, 0), (100, 10)];
    type Case<'a> = (&'a str, NodeRank, &'a Value, &'a [Value], Vec<Value>, i64);
    let storage = json!({"ephemeral-storage": "1000", "pods": "9"});
    let huge = json!({"hugepages-2Mi": "10Mi", "pods": "9"});
    let (four, none) = (gpus("8"), [json!({"cpu": "0", "memory": "0"})]);
    let there = [half.clone()];
    let cases: Vec<Case<'_>> = vec![
        // cpu (4000-3000)*100/4000 = 25, memory (10000-5000)*100/10000 = 50.
        (
            "least",
            strategy(Strategy::LeastAllocated, &USUAL),
            &node,
            &there,
            vec![small.clone()],
            37,
        ),
        // 25*2 + 50*1 over 3.
        (
            "least, weighted",
            strategy(Strategy::LeastAllocated, &[("cpu", 2), ("memory", 1)]),
            &node,
            &there,
            vec![small.clone()],
            33,
        ),
        // More than there is counts as no room.
        (
            "least, over",
            strategy(Strategy::LeastAllocated, &USUAL),
            &node,
            &there,
            vec![json!({"cpu": "3", "memory": "1000"})],
            30,
        ),
        (
            "most",
            strategy(Strategy::MostAllocated, &USUAL),
            &node,
            &there,
            vec![small.clone()],
            62,
        ),
        (
            "most, weighted",
            strategy(Strategy::MostAllocated, &[("cpu", 3), ("memory", 2)]),
            &node,
            &there,
            vec![small.clone()],
            65,
        ),
        // Silent containers count 200 MiB each, which is more than this node has.
        (
            "most, assumed",
            strategy(Strategy::MostAllocated, &USUAL),
            &node,
            &none,
            vec![json!({})],
            51,
        ),
        (
            "least, assumed",
            strategy(Strategy::LeastAllocated, &USUAL),
            &node,
            &none,
            vec![json!({})],
            48,
        ),
        // A resource that the Pod does not ask for does not count, nor one the node has not.
        (
            "least, not asked",
            strategy(Strategy::LeastAllocated, &[("cpu", 1), ("example.com/gpu", 5)]),
            &four,
            &there,
            vec![small.clone()],
            25,
        ),
        (
            "least, not there",
            strategy(Strategy::LeastAllocated, &[("cpu", 1), ("example.com/gpu", 5)]),
            &node,
            &there,
            vec![gpu("1")],
            25,
        ),
        (
            "least, asked",
            strategy(Strategy::LeastAllocated, &[("cpu", 1), ("example.com/gpu", 3)]),
            &four,
            &there,
            vec![gpu("2")],
            62,
        ),
        (
            "least, storage",
            strategy(Strategy::LeastAllocated, &[("ephemeral-storage", 1)]),
            &storage,
            &[],
            vec![json!({"ephemeral-storage": "250"})],
            75,
        ),
        (
            "least, huge pages",
            strategy(Strategy::LeastAllocated, &[("hugepages-2Mi", 1)]),
            &huge,
            &[],
            vec![json!({"hugepages-2Mi": "4Mi"})],
            60,
        ),
        // cpu 75 %, memory 50 %: 75 and 50.
        ("ratio", ratio(&rising, &USUAL), &node, &there, vec![small.clone()], 63),
        (
            "ratio, falling",
            ratio(&[(0, 10), (100, 0)], &USUAL),
            &node,
            &there,
            vec![small.clone()],
            38,
        ),
        // 75 % lies between (70, 20) and (100, 100): 20 + 80*5/30 = 33; memory between (0, 0) and (70, 20): 20*50/70 = 14.
        (
            "ratio, broken line",
            ratio(&[(0, 0), (70, 2), (100, 10)], &USUAL),
            &node,
            &there,
            vec![small.clone()],
            24,
        ),
        // What scores nothing does not pull the mean down.
        (
            "ratio, zero",
            ratio(&[(50, 0), (100, 10)], &USUAL),
            &node,
            &there,
            vec![small.clone()],
            50,
        ),
        (
            "ratio, one point",
            ratio(&[(60, 7)], &USUAL),
            &node,
            &there,
            vec![small.clone()],
            70,
        ),
        (
            "ratio, over",
            ratio(&[(0, 10), (100, 3)], &[("cpu", 1)]),
            &node,
            &there,
            vec![json!({"cpu": "9"})],
            30,
        ),
        (
            "ratio, weighted",
            ratio(&rising, &[("cpu", 1), ("example.com/gpu", 5)]),
            &four,
            &there,
            vec![gpu("6")],
            75,
        ),
    ];
    for (what, scorer, allocatable, there, asks, expected) in cases {
        assert_eq!(score(&scorer, allocatable.clone(), there, &asks), expected, "{what}");
    }
}

#[test]
fn balance_is_judged_by_its_improvement() {
    let node = json!({"cpu": "10", "memory": "20000", "example.com/gpu": "10", "pods": "9"});
    let usual = ResourceWeight::usual();
    let three =
        [("cpu", 1), ("memory", 1), ("example.com/gpu", 1)].map(|(name, weight)| ResourceWeight::new(name, weight));
    let none = json!({"cpu": "0", "memory": "0"});
    let cases = [
        // Asks for nothing: not scored.
        ("nothing", &usual[..], none.clone(), json!({"cpu": "0"}), 0),
        // Both 30 %: as even as before.
        ("even", &usual, none.clone(), json!({"cpu": "3", "memory": "6000"}), 75),
        // 60 % and 25 %: deviation 17.5 %, 82 after 100 before.
        ("worse", &usual, none.clone(), json!({"cpu": "6", "memory": "5000"}), 66),
        // 60 % and 25 % before, 60 % and 60 % after.
        (
            "better",
            &usual,
            json!({"cpu": "6", "memory": "5000"}),
            json!({"memory": "7000"}),
            84,
        ),
        // Shares 30, 30 and 60 %: deviation 14.14 %, 85 after 100 before (only the Pod's resources count).
        (
            "three",
            &three,
            none.clone(),
            json!({"cpu": "3", "memory": "6000", "example.com/gpu": "6"}),
            67,
        ),
        ("one not asked", &three, none, json!({"cpu": "3", "memory": "6000"}), 75),
        // Shares end at 100 %.
        (
            "over",
            &usual,
            json!({"cpu": "10", "memory": "20000"}),
            json!({"cpu": "5"}),
            75,
        ),
    ];
    for (what, resources, there, asks, expected) in cases {
        let scorer = balanced(resources);
        assert_eq!(score(&scorer, node.clone(), &[there], &[asks]), expected, "{what}");
    }
}

#[test]
fn what_does_not_fit_is_named_and_may_be_ignored() {
    let args = |ignored: &[&str], groups: &[&str]| NodeResourcesFit {
        ignored: ignored.iter().map(ToString::to_string).collect(),
        ignored_groups: groups.iter().map(ToString::to_string).collect(),
        ..NodeResourcesFit::default()
    };
    let mut snapshot = Snapshot::default();
    let allocatable = json!({"cpu": "2", "memory": "1Gi", "ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi", "example.com/gpu": "1", "pods": "1"});
    let at = snapshot.set_node(node("n", allocatable)).unwrap();
    let ask = |requests: Value| Class::of(&pod("new", containers(&[requests])));
    let cases: [(NodeResourcesFit, Value, &[&str], bool); 9] = [
        (args(&[], &[]), json!({"cpu": "2", "memory": "1Gi"}), &[], false),
        (args(&[], &[]), json!({"cpu": "2001m"}), &["Insufficient cpu"], true),
        (
            args(&[], &[]),
            json!({"memory": "2Gi", "ephemeral-storage": "2Gi"}),
            &["Insufficient memory", "Insufficient ephemeral-storage"],
            true,
        ),
        (
            args(&[], &[]),
            json!({"hugepages-2Mi": "6Mi"}),
            &["Insufficient hugepages-2Mi"],
            true,
        ),
        (
            args(&[], &[]),
            json!({"example.com/gpu": "2", "example.org/fpga": "1"}),
            &["Insufficient example.com/gpu", "Insufficient example.org/fpga"],
            true,
        ),
        (
            args(&["example.com/gpu"], &[]),
            json!({"example.com/gpu": "2", "example.org/fpga": "1"}),
            &["Insufficient example.org/fpga"],
            true,
        ),
        (
            args(&[], &["example.com", "example.org"]),
            json!({"example.com/gpu": "2", "example.org/fpga": "1"}),
            &[],
            false,
        ),
        // What is not extended is always checked.
        (
            args(&["hugepages-2Mi", "cpu"], &[]),
            json!({"hugepages-2Mi": "6Mi", "cpu": "3"}),
            &["Insufficient cpu", "Insufficient hugepages-2Mi"],
            true,
        ),
        (args(&[], &[]), json!({"example.com/gpu": "0"}), &[], false),
    ];
    for (args, requests, expected, unresolvable) in cases {
        let class = ask(requests.clone());
        let refusal = fit(&args)(&class, snapshot.node(at).unwrap()).err();
        let (reasons, for_good) = refusal.map_or((vec![], false), |refusal| (refusal.reasons, !refusal.resolvable));
        assert_eq!(reasons, expected, "{requests}");
        assert_eq!(for_good, unresolvable, "{requests}");
    }
    // Full, but not for ever.
    snapshot.place(pod_info("there", containers(&[json!({"cpu": "1"})])), "n");
    let refusal = fit(&args(&[], &[]))(&ask(json!({"cpu": "2"})), snapshot.node(at).unwrap()).expect_err("fits");
    assert_eq!(refusal.reasons, ["Too many pods", "Insufficient cpu"]);
    assert!(refusal.resolvable);
}

#[test]
fn amounts_beyond_all_reason_do_not_wrap_around() {
    let node = json!({"cpu": "9223372036854775", "memory": "9223372036854775807", "pods": "9"});
    let asks = [json!({"cpu": "9223372036854775", "memory": "9223372036854775807"})];
    for (how, expected) in [
        (Strategy::LeastAllocated, 0),
        (Strategy::MostAllocated, 100),
        (shape(&[(0, 0), (100, 10)]), 100),
    ] {
        assert_eq!(
            score(
                &strategy(how, &USUAL),
                node.clone(),
                &[json!({"cpu": "0", "memory": "0"})],
                &asks
            ),
            expected
        );
    }
}
