//! Who has to go for whom.

use super::*;
use crate::testing::{labelled_pod, node, node_with};
use serde_json::{Value, json};

fn engine(nodes: &[&str], cpu: &str) -> Engine {
    let mut engine = Engine::new([("default-scheduler".to_owned(), Framework::default())], 7);
    for name in nodes {
        let labels = json!({"kubernetes.io/hostname": name});
        let room = json!({"cpu": cpu, "memory": "8Gi", "pods": "110"});
        engine.node_changed(node_with(name, labels, json!({}), room));
    }
    engine
}

fn spec(priority: i32, cpu: &str) -> Value {
    json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
}

/// A Pod that runs since `minute`.
fn running(name: &str, node: &str, priority: i32, cpu: &str, minute: u32) -> Pod {
    let mut spec = spec(priority, cpu);
    spec["nodeName"] = node.into();
    let mut pod = labelled_pod(name, json!({"app": name}), spec);
    let status = json!({"phase": "Running", "startTime": format!("2026-01-01T00:{minute:02}:00Z")});
    pod.status = Some(serde_json::from_value(status).unwrap());
    pod
}

fn waiting(name: &str, spec: Value) -> Pod {
    labelled_pod(name, json!({}), spec)
}

fn settle(engine: &mut Engine) -> Vec<String> {
    let mut decisions = Vec::new();
    while let Some(decision) = engine.next(Instant::now()) {
        match decision {
            Decision::Bind { pod, node } => decisions.push(format!("{}→{node}", pod.name)),
            Decision::Tell { message, pods } => {
                decisions.extend(pods.iter().map(|pod| format!("{}: {message}", pod.name)));
            }
            Decision::Preempt { pod, node, victims, .. } => {
                let victims: Vec<&str> = victims.iter().map(|victim| &*victim.name).collect();
                decisions.push(format!("{}⇒{node} without {}", pod.name, victims.join(" ")));
            }
            Decision::Unnominate { pod } => decisions.push(format!("{} no more", pod.name)),
            Decision::Consult { pod, .. } | Decision::ConsultVictims { pod, .. } => {
                panic!("{} has no extenders", pod.name)
            }
        }
    }
    decisions
}

#[test]
fn the_cheapest_victims_go() {
    // (Pods as (name, node, priority, cpu, minute), protected Pods, what the newcomer of priority 100 asks, decision)
    type Row = (&'static str, &'static str, i32, &'static str, u32);
    type Case = (
        &'static str,
        &'static [Row],
        &'static [&'static str],
        &'static str,
        &'static str,
    );
    let cases: &[Case] = &[
        (
            "as many as possible stay, the most important first",
            &[
                ("a", "n1", 1, "1", 0),
                ("b", "n1", 5, "1", 0),
                ("c", "n1", 3, "2", 0),
                ("x", "n2", 100, "4", 0),
            ],
            &[],
            "1",
            "p⇒n1 without a",
        ),
        (
            "of equals the older stay",
            &[("a", "n1", 1, "2", 5), ("b", "n1", 1, "2", 9), ("x", "n2", 100, "4", 0)],
            &[],
            "2",
            "p⇒n1 without b",
        ),
        (
            "protected Pods stay before more important ones",
            &[("a", "n1", 1, "2", 0), ("b", "n1", 5, "2", 0), ("x", "n2", 100, "4", 0)],
            &["a"],
            "2",
            "p⇒n1 without b",
        ),
        (
            "fewest protected",
            &[("a", "n1", 1, "4", 0), ("b", "n2", 50, "4", 0)],
            &["a"],
            "2",
            "p⇒n2 without b",
        ),
        (
            "least important",
            &[("a", "n1", 7, "4", 0), ("b", "n2", 6, "4", 0)],
            &[],
            "2",
            "p⇒n2 without b",
        ),
        (
            "smallest sum",
            &[
                ("a", "n1", 7, "2", 0),
                ("b", "n1", 5, "2", 0),
                ("c", "n2", 7, "2", 0),
                ("d", "n2", 4, "2", 0),
            ],
            &[],
            "4",
            "p⇒n2 without c d",
        ),
        (
            "fewest",
            &[("a", "n1", 0, "2", 0), ("b", "n1", 0, "2", 0), ("c", "n2", 0, "4", 0)],
            &[],
            "4",
            "p⇒n2 without c",
        ),
        (
            "youngest",
            &[("a", "n1", 1, "4", 3), ("b", "n2", 1, "4", 4)],
            &[],
            "4",
            "p⇒n2 without b",
        ),
    ];
    for (what, pods, protected, cpu, expected) in cases {
        let mut engine = engine(&["n1", "n2"], "4");
        for (name, node, priority, cpu, minute) in *pods {
            engine.pod_changed(&running(name, node, *priority, cpu, *minute));
        }
        for name in *protected {
            let budget = json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"selector": {"matchLabels": {"app": name}}},
                "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
            });
            engine.budget_changed(&serde_json::from_value(budget).unwrap());
        }
        engine.pod_changed(&waiting("p", spec(100, cpu)));
        assert_eq!(settle(&mut engine), [*expected], "{what}");
    }
}

#[test]
fn who_cannot_preempt_is_told_why() {
    let refused = "p: 0/2 nodes are available: 2 Insufficient cpu. preemption: ";
    let mut never = spec(100, "2");
    never["preemptionPolicy"] = "Never".into();
    let mut picky = spec(100, "2");
    picky["nodeSelector"] = json!({"a": "b"});
    let cases = [
        (
            spec(1, "2"),
            format!("{refused}0/2 nodes are available: 2 No preemption victims found for incoming pod."),
        ),
        (never, format!("{refused}not eligible due to preemptionPolicy=Never.")),
        (
            spec(100, "9"),
            format!("{refused}0/2 nodes are available: 2 Preemption is not helpful for scheduling."),
        ),
        (
            picky,
            "p: 0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/2 nodes \
             are available: 2 Preemption is not helpful for scheduling."
                .to_owned(),
        ),
    ];
    for (spec, expected) in cases {
        let mut engine = engine(&["n1", "n2"], "4");
        engine.pod_changed(&running("a", "n1", 1, "4", 0));
        engine.pod_changed(&running("b", "n2", 1, "4", 0));
        engine.pod_changed(&waiting("p", spec));
        assert_eq!(settle(&mut engine), [expected]);
    }
}

#[test]
fn equal_pods_each_get_their_own_room() {
    let names = ["n1", "n2", "n3", "n4", "n5"];
    let mut engine = engine(&names, "4");
    for name in names {
        engine.pod_changed(&running(&format!("low-{name}"), name, 1, "4", 0));
    }
    for index in 0..6 {
        engine.pod_changed(&waiting(&format!("p{index}"), spec(100, "3")));
    }
    let decisions = settle(&mut engine);
    for name in names {
        let ending = format!("⇒{name} without low-{name}");
        assert_eq!(
            decisions.iter().filter(|text| text.ends_with(&ending)).count(),
            1,
            "{decisions:?}"
        );
    }
    assert!(decisions.iter().any(|text| text.starts_with("p5: ")), "{decisions:?}");
    // One of less importance does not take the room, even when it is free.
    engine.pod_changed(&waiting("small", spec(1, "2")));
    settle(&mut engine);
    let mut bound = Vec::new();
    for name in names {
        engine.pod_gone(&format!("low-{name}"));
        bound.extend(settle(&mut engine));
    }
    bound.retain(|text| text.contains('→'));
    assert_eq!(bound.len(), 5, "{bound:?}");
    for name in names {
        assert!(
            bound.iter().any(|text| text.starts_with('p') && text.ends_with(name)),
            "{bound:?}"
        );
    }
}

#[test]
fn a_nominated_pod_waits_for_its_victims_unless_it_fits_elsewhere() {
    let mut engine = engine(&["n1"], "4");
    engine.pod_changed(&running("a", "n1", 1, "2", 0));
    engine.pod_changed(&running("b", "n1", 1, "2", 0));
    engine.pod_changed(&waiting("p", spec(100, "4")));
    assert_eq!(settle(&mut engine), ["p⇒n1 without a b"]);
    engine.pod_gone("a");
    let waits = "p: 0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a terminating pod on the \
                 nominated node.";
    assert_eq!(settle(&mut engine), [waits], "one victim is left");
    engine.pod_changed(&running("b", "n1", 1, "2", 1));
    assert!(settle(&mut engine).is_empty(), "it knows that already");
    assert!(engine.is_waiting("p"));
    engine.node_changed(node("n2", json!({"cpu": "8", "memory": "8Gi", "pods": "110"})));
    assert_eq!(settle(&mut engine), ["p→n2"]);
}

#[test]
fn the_more_important_displaces_a_nominated_pod() {
    let mut engine = engine(&["n1"], "4");
    engine.pod_changed(&running("a", "n1", 1, "4", 0));
    engine.pod_changed(&waiting("p", spec(100, "4")));
    assert_eq!(settle(&mut engine), ["p⇒n1 without a"]);
    engine.pod_changed(&waiting("q", spec(200, "4")));
    let decisions = settle(&mut engine);
    assert_eq!(decisions[0], "q⇒n1 without a");
    assert!(decisions.contains(&"p no more".to_owned()), "{decisions:?}");
    engine.pod_gone("a");
    assert_eq!(settle(&mut engine)[0], "q→n1");
}

#[test]
fn a_deleted_nominated_pod_leaves_its_room_to_others() {
    let mut engine = engine(&["n1"], "4");
    engine.pod_changed(&running("a", "n1", 1, "4", 0));
    engine.pod_changed(&waiting("p", spec(100, "4")));
    settle(&mut engine);
    engine.pod_changed(&waiting("low", spec(0, "1")));
    settle(&mut engine);
    engine.pod_gone("p");
    engine.pod_gone("a");
    assert_eq!(settle(&mut engine), ["low→n1"]);
}

#[test]
fn a_nomination_survives_the_scheduler() {
    let mut engine = engine(&["n1", "n2"], "4");
    let mut leaving = serde_json::to_value(running("a", "n1", 1, "4", 0)).unwrap();
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    leaving["status"]["conditions"] =
        json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
    engine.pod_changed(&serde_json::from_value(leaving).unwrap());
    engine.pod_changed(&running("b", "n2", 0, "4", 0));
    let mut nominated = serde_json::to_value(waiting("p", spec(100, "4"))).unwrap();
    nominated["status"] = json!({"nominatedNodeName": "n1"});
    engine.pod_changed(&serde_json::from_value(nominated).unwrap());
    let decisions = settle(&mut engine);
    assert!(
        decisions[0].ends_with("not eligible due to a terminating pod on the nominated node."),
        "its victim is on its way out: {decisions:?}"
    );
    engine.pod_gone("a");
    assert_eq!(settle(&mut engine), ["p→n1"]);
}

#[test]
fn victims_may_be_those_that_keep_others_away() {
    let mut engine = engine(&["n1"], "4");
    let mut away = running("a", "n1", 1, "1", 0);
    away.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    engine.pod_changed(&away);
    engine.pod_changed(&running("b", "n1", 1, "1", 0));
    let mut alone = spec(100, "1");
    alone["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}
    ]}});
    engine.pod_changed(&waiting("p", alone));
    assert_eq!(settle(&mut engine), ["p⇒n1 without a"]);
    engine.pod_gone("a");
    assert_eq!(settle(&mut engine), ["p→n1"]);
}

#[test]
fn a_nomination_survives_a_failed_binding() {
    let mut engine = engine(&["n1"], "4");
    engine.pod_changed(&running("a", "n1", 1, "4", 0));
    engine.pod_changed(&waiting("p", spec(100, "4")));
    assert_eq!(settle(&mut engine), ["p⇒n1 without a"]);
    engine.pod_gone("a");
    let now = Instant::now();
    let Some(Decision::Bind { pod, .. }) = engine.next(now) else {
        panic!("no binding")
    };
    engine.bind_failed(pod, now);
    // While it rests nobody of less importance takes its room.
    engine.pod_changed(&waiting("low", spec(0, "4")));
    let decisions = settle(&mut engine);
    assert!(
        decisions.iter().all(|text| text.starts_with("low: 0/1")),
        "{decisions:?}"
    );
    let due = engine.next_deadline().unwrap();
    assert!(matches!(engine.next(due), Some(Decision::Bind { pod, .. }) if &*pod.name == "p"));
    engine.pod_changed(&running("p", "n1", 100, "4", 1));
    engine.pod_gone("p");
    assert_eq!(settle(&mut engine), ["low→n1"]);
}

#[test]
fn the_end_of_a_nomination_is_written_until_it_is() {
    let mut engine = engine(&["n1"], "4");
    engine.pod_changed(&running("a", "n1", 1, "4", 0));
    engine.pod_changed(&waiting("p", spec(100, "4")));
    settle(&mut engine);
    engine.pod_changed(&waiting("q", spec(200, "4")));
    let mut ended = None;
    let now = Instant::now();
    while let Some(decision) = engine.next(now) {
        if let Decision::Unnominate { pod } = decision {
            ended = Some(pod);
        }
    }
    engine.unnominate_failed(ended.unwrap(), now);
    assert!(engine.next(now).is_none());
    let later = engine.next_deadline().unwrap();
    assert!(matches!(engine.next(later), Some(Decision::Unnominate { pod }) if &*pod.name == "p"));
}

#[test]
fn budgets_hold_no_preemption_back_and_wake_nobody() {
    let mut engine = engine(&["n1"], "4");
    let budget = |allowed: i32| {
        let object = json!({
            "metadata": {"name": "a", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "a"}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
        });
        serde_json::from_value(object).unwrap()
    };
    engine.pod_changed(&running("a", "n1", 0, "4", 0));
    engine.budget_changed(&budget(0));
    engine.pod_changed(&waiting("equal", spec(0, "2")));
    settle(&mut engine);
    engine.budget_changed(&budget(1));
    assert_eq!(settle(&mut engine), [""; 0], "the equal waits on");
    engine.budget_changed(&budget(0));
    engine.pod_changed(&waiting("high", spec(100, "2")));
    assert_eq!(settle(&mut engine), ["high⇒n1 without a"]);
}
