//! Decisions of the whole engine for small clusters.

use super::*;
use crate::testing::{labelled_pod, node, node_with, pod};
use serde_json::{Value, json};

fn engine() -> Engine {
    Engine::new([("default-scheduler".to_owned(), Framework::default())], 7)
}

fn asks(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]})
}

fn room(cpu: &str) -> Value {
    json!({"cpu": cpu, "memory": "8Gi", "pods": "110"})
}

/// Runs the engine dry: (bindings as "pod→node", messages as "pod: why").
fn settle(engine: &mut Engine) -> (Vec<String>, Vec<String>) {
    let (mut bound, mut told) = (Vec::new(), Vec::new());
    while let Some(decision) = engine.next(Instant::now()) {
        match decision {
            Decision::Bind { pod, node } => bound.push(format!("{}→{node}", pod.name)),
            Decision::Tell { message, pods } => {
                // What preemption says of it is tested on its own.
                let (message, _) = message.split_once(" preemption: ").unwrap_or((&message, ""));
                told.extend(pods.iter().map(|pod| format!("{}: {message}", pod.name)));
            }
            Decision::Preempt { pod, .. } | Decision::Unnominate { pod } => panic!("{} preempts", pod.name),
            Decision::Consult { pod, .. } | Decision::ConsultVictims { pod, .. } => {
                panic!("{} has no extenders", pod.name)
            }
        }
    }
    (bound, told)
}

#[test]
fn pods_fill_nodes_evenly_and_the_rest_is_told_why() {
    let mut engine = engine();
    for name in ["n1", "n2"] {
        engine.node_changed(node(name, room("2")));
    }
    for index in 0..5 {
        engine.pod_changed(&pod(&format!("p{index}"), asks("1")));
    }
    let (bound, told) = settle(&mut engine);
    assert_eq!(bound.iter().filter(|text| text.ends_with("n1")).count(), 2);
    assert_eq!(bound.iter().filter(|text| text.ends_with("n2")).count(), 2);
    assert_eq!(told, ["p4: 0/2 nodes are available: 2 Insufficient cpu."]);
    assert_eq!(
        settle(&mut engine),
        (vec![], vec![]),
        "nothing happens until something changes"
    );
}

#[test]
fn refusals_read_as_upstream_words_them() {
    let cases = [
        (
            node_with("n", json!({}), json!({"unschedulable": true}), room("2")),
            asks("1"),
            "1 node(s) were unschedulable",
        ),
        (
            node_with(
                "n",
                json!({}),
                json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
                room("2"),
            ),
            asks("1"),
            "1 node(s) had untolerated taint(s)",
        ),
        (
            node("n", room("2")),
            json!({"nodeSelector": {"a": "b"}, "containers": []}),
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        (
            node("n", json!({"cpu": "2", "pods": "0"})),
            asks("4"),
            "1 Insufficient cpu, 1 Too many pods",
        ),
    ];
    for (node, spec, reason) in cases {
        let mut engine = engine();
        engine.node_changed(node);
        engine.pod_changed(&pod("p", spec));
        assert_eq!(
            settle(&mut engine).1,
            [format!("p: 0/1 nodes are available: {reason}.")]
        );
    }
    let mut engine = engine();
    engine.pod_changed(&pod("p", asks("1")));
    assert_eq!(settle(&mut engine).1, ["p: no nodes available to schedule pods"]);
}

#[test]
fn a_parked_class_wakes_only_for_what_can_help() {
    let mut engine = engine();
    engine.node_changed(node("n1", room("1")));
    engine.pod_changed(&pod("first", asks("1")));
    settle(&mut engine);
    for index in 0..3 {
        engine.pod_changed(&pod(&format!("waiting{index}"), asks("1")));
    }
    assert_eq!(settle(&mut engine).1.len(), 3);
    // Too small to help, so nobody is even tried.
    engine.node_changed(node("small", room("500m")));
    assert_eq!(engine.counts(), (0, 3, 0));
    engine.pod_gone("first");
    assert_eq!(settle(&mut engine).0, ["waiting0→n1"]);
    engine.node_changed(node("big", room("8")));
    assert_eq!(settle(&mut engine).0, ["waiting1→big", "waiting2→big"]);
}

#[test]
fn a_failed_binding_frees_the_room_and_tries_again_later() {
    let mut engine = engine();
    engine.node_changed(node("n1", room("1")));
    engine.pod_changed(&pod("a", asks("1")));
    let now = Instant::now();
    let Some(Decision::Bind { pod: booked, .. }) = engine.next(now) else {
        panic!("no binding")
    };
    engine.pod_changed(&pod("b", asks("1")));
    assert_eq!(settle(&mut engine).0, [] as [&str; 0]);
    engine.bind_failed(booked, now);
    let Some(Decision::Bind { pod, .. }) = engine.next(now) else {
        panic!("the room was not freed")
    };
    assert_eq!(&*pod.name, "b");
    engine.pod_gone("b");
    let later = engine.next_deadline().expect("a is due again");
    assert!(later > now);
    assert!(matches!(engine.next(later), Some(Decision::Bind { pod, .. }) if &*pod.name == "a"));
}

#[test]
fn a_placed_pod_seen_again_without_its_node_is_not_queued_twice() {
    let mut engine = engine();
    engine.node_changed(node("n1", room("4")));
    engine.pod_changed(&pod("a", asks("1")));
    assert_eq!(settle(&mut engine).0, ["a→n1"]);
    engine.pod_changed(&pod("a", asks("1")));
    assert_eq!(settle(&mut engine).0, [] as [&str; 0]);
    let mut bound = asks("1");
    bound["nodeName"] = "n1".into();
    engine.pod_changed(&pod("a", bound));
    assert_eq!(engine.snapshot.node(0).unwrap().requested.milli_cpu, 1000);
}

#[test]
fn priority_goes_first_and_others_schedulers_pods_are_left_alone() {
    let mut engine = engine();
    let mut urgent = asks("1");
    urgent["priority"] = 100.into();
    let mut foreign = asks("1");
    foreign["schedulerName"] = "other".into();
    let mut gated = asks("1");
    gated["schedulingGates"] = json!([{"name": "wait"}]);
    for (name, spec) in [
        ("plain", asks("1")),
        ("urgent", urgent),
        ("foreign", foreign),
        ("gated", gated),
    ] {
        engine.pod_changed(&pod(name, spec));
    }
    engine.node_changed(node("n1", room("8")));
    assert_eq!(settle(&mut engine).0, ["urgent→n1", "plain→n1"]);
}

#[test]
fn anti_affinity_keeps_pods_apart_and_binds_newcomers() {
    let mut engine = engine();
    for name in ["n1", "n2"] {
        engine.node_changed(node_with(name, json!({"host": name}), json!({}), room("8")));
    }
    let apart = json!({"containers": [], "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "db"}}}]}}});
    for name in ["a", "b", "c"] {
        engine.pod_changed(&labelled_pod(name, json!({"app": "db"}), apart.clone()));
    }
    let (bound, told) = settle(&mut engine);
    assert_eq!(bound.len(), 2);
    assert_eq!(
        told,
        ["c: 0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."]
    );
    engine.pod_changed(&labelled_pod("plain", json!({"app": "db"}), json!({"containers": []})));
    assert_eq!(
        settle(&mut engine).1,
        ["plain: 0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."]
    );
    engine.pod_gone("a");
    assert_eq!(settle(&mut engine).0.len(), 1);
}

#[test]
fn affinity_brings_pods_together_and_the_first_may_go_anywhere() {
    let mut engine = engine();
    for (name, zone) in [("n1", "x"), ("n2", "y")] {
        engine.node_changed(node_with(name, json!({"zone": zone}), json!({}), room("8")));
    }
    let together = json!({"containers": [], "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
    engine.pod_changed(&labelled_pod("a", json!({"app": "web"}), together.clone()));
    engine.pod_changed(&labelled_pod("b", json!({"app": "web"}), together));
    let (bound, _) = settle(&mut engine);
    assert_eq!(bound[0].trim_start_matches("a→"), bound[1].trim_start_matches("b→"));
}

#[test]
fn one_pod_must_meet_all_affinity_terms() {
    let mut engine = engine();
    for (name, zone) in [("n1", "x"), ("n2", "y")] {
        engine.node_changed(node_with(name, json!({"zone": zone}), json!({}), room("8")));
    }
    for (name, node, labels) in [
        ("half", "n1", json!({"a": "1"})),
        ("other-half", "n1", json!({"b": "1"})),
        ("whole", "n2", json!({"a": "1", "b": "1"})),
    ] {
        engine.pod_changed(&labelled_pod(name, labels, json!({"nodeName": node, "containers": []})));
    }
    let term = |key: &str| json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {key: "1"}}});
    let both = json!({"containers": [], "affinity": {"podAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": [term("a"), term("b")]}}});
    engine.pod_changed(&pod("p", both));
    assert_eq!(settle(&mut engine).0, ["p→n2"]);
}

#[test]
fn existing_pods_preferences_draw_and_repel_newcomers() {
    let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}});
    let weighted = json!([{"weight": 100, "podAffinityTerm": term}]);
    for (affinity, expected) in [
        (
            json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": weighted}}),
            "p→n2",
        ),
        (
            json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": weighted}}),
            "p→n1",
        ),
        (
            json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}),
            "p→n2",
        ),
    ] {
        let mut engine = engine();
        for (name, zone) in [("n1", "x"), ("n2", "y")] {
            engine.node_changed(node_with(name, json!({"zone": zone}), json!({}), room("8")));
        }
        let there = json!({"nodeName": "n2", "containers": [], "affinity": affinity});
        engine.pod_changed(&pod("there", there));
        engine.pod_changed(&labelled_pod("p", json!({"app": "web"}), json!({"containers": []})));
        assert_eq!(settle(&mut engine).0, [expected]);
    }
}

#[test]
fn hard_spread_holds_the_skew() {
    let mut engine = engine();
    for (name, zone) in [("n1", "x"), ("n2", "x"), ("n3", "y")] {
        engine.node_changed(node_with(name, json!({"zone": zone}), json!({}), room("8")));
    }
    let spread = json!({"containers": [], "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    for index in 0..6 {
        engine.pod_changed(&labelled_pod(
            &format!("p{index}"),
            json!({"app": "web"}),
            spread.clone(),
        ));
    }
    let (bound, told) = settle(&mut engine);
    assert_eq!((bound.len(), told.len()), (6, 0));
    assert_eq!(bound.iter().filter(|text| text.ends_with("n3")).count(), 3);
}

#[test]
fn a_spread_counts_only_nodes_with_all_keys() {
    let mut engine = engine();
    for (name, labels) in [
        ("n1", json!({"zone": "x", "rack": "1"})),
        ("n2", json!({"zone": "y", "rack": "2"})),
        ("n3", json!({"zone": "z"})),
    ] {
        engine.node_changed(node_with(name, labels, json!({}), room("8")));
    }
    for (name, node) in [("a", "n1"), ("b", "n2")] {
        let spec = json!({"nodeName": node, "containers": []});
        engine.pod_changed(&labelled_pod(name, json!({"app": "web"}), spec));
    }
    let by = |key: &str| {
        json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}})
    };
    let spec = json!({"containers": [], "topologySpreadConstraints": [by("zone"), by("rack")]});
    engine.pod_changed(&labelled_pod("p", json!({"app": "web"}), spec));
    // Were the zone of n3 counted, it would be the emptiest and nobody could be placed.
    assert_eq!(settle(&mut engine).0.len(), 1);
}

#[test]
fn heartbeats_wake_nobody() {
    let mut engine = engine();
    engine.node_changed(node("n1", room("1")));
    engine.pod_changed(&pod("big", asks("4")));
    settle(&mut engine);
    let mut beaten = (*node("n1", room("1"))).clone();
    beaten.metadata.resource_version = Some("9".into());
    let generation = engine.snapshot.node(0).unwrap().generation;
    engine.node_changed(Arc::new(beaten));
    assert_eq!(engine.snapshot.node(0).unwrap().generation, generation);
}

#[test]
fn accounts_never_go_wrong_under_random_events() {
    let mut random = SmallRng::seed_from_u64(11);
    let mut engine = engine();
    let mut alive: Vec<String> = Vec::new();
    for step in 0..3000 {
        match random.random_range(0..10) {
            0 => engine.node_changed(node(
                &format!("n{}", random.random_range(0..6)),
                room(["1", "2", "4"][random.random_range(0..3)]),
            )),
            1 if step % 7 == 0 => engine.node_gone(&format!("n{}", random.random_range(0..6))),
            2..=4 if !alive.is_empty() => {
                let gone = alive.swap_remove(random.random_range(0..alive.len()));
                engine.pod_gone(&gone);
            }
            _ => {
                let name = format!("p{step}");
                engine.pod_changed(&pod(&name, asks(["100m", "500m", "1"][random.random_range(0..3)])));
                alive.push(name);
            }
        }
        settle(&mut engine);
        for (_, info) in engine.snapshot.nodes() {
            let sum: i64 = info.pods.values().map(|pod| pod.class.requests.milli_cpu).sum();
            assert_eq!(info.requested.milli_cpu, sum);
        }
        let (active, parked, _) = engine.counts();
        assert_eq!(active, 0, "the engine ran dry");
        // Every parked Pod really fits nowhere.
        if step % 50 == 0 && parked > 0 {
            for class in engine.queue.all_parked() {
                let fits = engine
                    .snapshot
                    .nodes()
                    .any(|(_, info)| engine.profiles["default-scheduler"].refusal(&class, info).is_none());
                assert!(!fits, "a parked class was not woken");
            }
        }
    }
}

#[test]
fn pods_that_differ_in_labels_nobody_reads_are_examined_once() {
    let mut engine = engine();
    engine.node_changed(node("n1", room("1")));
    let indexed = |index: usize| {
        let labels = json!({"batch.kubernetes.io/job-completion-index": index.to_string()});
        labelled_pod(&format!("p{index}"), labels, asks("4"))
    };
    for index in 0..300 {
        engine.pod_changed(&indexed(index));
    }
    assert_eq!(settle(&mut engine).1.len(), 300);
    assert_eq!(engine.queue.all_parked().len(), 1);
    // Now somebody reads the label, and they are no longer equal.
    let shy = json!({"containers": [], "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "host", "labelSelector": {"matchLabels": {"batch.kubernetes.io/job-completion-index": "7"}}}]}}});
    engine.pod_changed(&pod("shy", shy));
    settle(&mut engine);
    assert_eq!(engine.queue.all_parked().len(), 300);
}

#[test]
fn services_spread_pods_without_constraints() {
    let mut engine = engine();
    for (name, zone) in [("n1", "x"), ("n2", "x"), ("n3", "y")] {
        let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
        let cpu = if name == "n1" { "800" } else { "32" };
        engine.node_changed(node_with(name, labels, json!({}), room(cpu)));
    }
    engine.pod_changed(&labelled_pod("alone", json!({}), asks("1")));
    engine.pod_changed(&labelled_pod("alone-too", json!({}), asks("1")));
    assert_eq!(settle(&mut engine).0, ["alone→n1", "alone-too→n1"]);
    let selector = json!({"matchLabels": {"app": "web"}});
    let selector = serde_json::from_value(selector).unwrap();
    engine.owner_changed(OwnerKind::Service, "default", "web", Some(selector));
    for index in 0..8 {
        engine.pod_changed(&labelled_pod(&format!("p{index}"), json!({"app": "web"}), asks("1")));
    }
    let (bound, _) = settle(&mut engine);
    let on = |node: &str| bound.iter().filter(|text| text.ends_with(node)).count();
    assert!(["n1", "n2", "n3"].into_iter().all(|node| on(node) >= 2), "{bound:?}");
}

#[test]
fn those_who_leave_are_not_counted_in_a_spread() {
    let mut engine = engine();
    for name in ["n1", "n2"] {
        engine.node_changed(node_with(name, json!({"zone": name}), json!({}), room("8")));
    }
    let placed =
        |name: &str, node: &str| labelled_pod(name, json!({"app": "web"}), json!({"nodeName": node, "containers": []}));
    engine.node_changed(node_with(
        "n2",
        json!({"zone": "n2"}),
        json!({"unschedulable": true}),
        room("8"),
    ));
    engine.pod_changed(&placed("a", "n1"));
    let spread = json!({"containers": [], "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    engine.pod_changed(&labelled_pod("p", json!({"app": "web"}), spread));
    assert_eq!(settle(&mut engine).0, [] as [&str; 0]);
    let mut leaving = placed("a", "n1");
    leaving.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    engine.pod_changed(&leaving);
    assert_eq!(settle(&mut engine).0, ["p→n1"]);
}

#[test]
fn equal_pods_may_go_elsewhere_than_those_that_are_bound() {
    let mut engine = engine();
    for name in ["n1", "n2"] {
        engine.node_changed(node(name, room("1")));
    }
    let mut bound = asks("1");
    bound["nodeName"] = "n1".into();
    engine.pod_changed(&pod("a", bound));
    engine.pod_changed(&pod("b", asks("1")));
    assert_eq!(settle(&mut engine).0, ["b→n2"]);
}

#[test]
fn a_node_that_goes_wakes_only_whom_it_helps() {
    let mut engine = engine();
    for name in ["n1", "n2"] {
        engine.node_changed(node(name, room("1")));
    }
    engine.pod_changed(&pod("big", asks("4")));
    settle(&mut engine);
    engine.node_gone("n2");
    assert_eq!(engine.counts(), (0, 1, 0));
}
