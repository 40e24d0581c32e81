//! What the engine makes of extenders' answers.

use super::*;
use std::time::Duration;

use crate::config::{Configuration, Extender, ManagedResource};
use crate::extender::{Extenders, Opinion, Opinions};
use crate::testing::{node, pod};
use serde_json::{Value, json};

const GPU: &str = "example.com/gpu";

/// An engine with one extender for Pods that ask for GPUs.
fn engine(at_a_time: usize) -> Engine {
    let configuration = Configuration {
        parallelism: at_a_time,
        extenders: vec![Extender {
            url_prefix: "http://127.0.0.1:1".into(),
            filter_verb: "filter".into(),
            preempt_verb: "preempt".into(),
            managed_resources: vec![ManagedResource {
                name: GPU.into(),
                ignored_by_scheduler: false,
            }],
            ..Extender::default()
        }],
        ..Configuration::default()
    };
    let interests = Extenders::new(&configuration).unwrap().interests();
    Engine::new([("default-scheduler".to_owned(), Framework::default())], 7).asking(interests)
}

fn cluster(at_a_time: usize, nodes: &[&str]) -> Engine {
    let mut engine = engine(at_a_time);
    for name in nodes {
        engine.node_changed(node(
            name,
            json!({"cpu": "2", "memory": "8Gi", "pods": "110", GPU: "8"}),
        ));
    }
    engine
}

fn asks(cpu: &str, gpus: u32, priority: i32) -> Value {
    let mut requests = json!({"cpu": cpu});
    if gpus > 0 {
        requests[GPU] = gpus.to_string().into();
    }
    json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": requests}}]})
}

fn show(decision: Decision) -> String {
    match decision {
        Decision::Bind { pod, node } => format!("{}→{node}", pod.name),
        Decision::Tell { message, pods } => format!("{}: {message}", pods[0].name),
        Decision::Consult { pod, nodes } => {
            let mut nodes: Vec<_> = nodes.iter().map(|node| node.metadata.name.clone().unwrap()).collect();
            nodes.sort();
            format!("{}? {}", pod.name, nodes.join(" "))
        }
        Decision::ConsultVictims { pod, candidates, .. } => format!("{} for whom? {}", pod.name, candidates.len()),
        Decision::Preempt { pod, node, victims, .. } => format!("{}⇒{node} without {}", pod.name, victims[0].name),
        Decision::Unnominate { pod } => format!("{} no more", pod.name),
    }
}

fn all(engine: &mut Engine, now: Instant) -> Vec<String> {
    std::iter::from_fn(|| engine.next(now)).map(show).collect()
}

fn follow(followed: Followed) -> String {
    match followed {
        Followed::Decision(decision) => show(decision),
        Followed::Tell(told) => format!(
            "{}{} {}",
            told.pod.name,
            if told.failed { "!" } else { ":" },
            told.message
        ),
        Followed::Nothing => "nothing".into(),
    }
}

fn opinions(rows: &[(&str, Result<i64, &str>)]) -> Result<Opinions, String> {
    let rows = rows.iter().map(|(node, opinion)| {
        let opinion = match opinion {
            Ok(score) => Opinion::Accepted(*score),
            Err(reason) => Opinion::Refused {
                reason: Some((*reason).to_owned()),
            },
        };
        (Arc::from(*node), opinion)
    });
    Ok(rows.collect())
}

#[test]
fn extenders_choose_among_the_nodes_that_fit_and_others_do_not_wait() {
    let mut engine = cluster(1, &["n1", "n2"]);
    let now = Instant::now();
    for name in ["g1", "g2"] {
        engine.pod_changed(&pod(name, asks("1", 1, 0)));
    }
    engine.pod_changed(&pod("plain", asks("500m", 0, 0)));
    let said = all(&mut engine, now);
    assert_eq!(said[0], "g1? n1 n2");
    assert!(
        said[1].starts_with("plain→") && said.len() == 2,
        "{said:?}: one is asked about at a time"
    );
    assert!(engine.is_waiting("g1") && engine.is_waiting("g2"));
    assert_eq!(engine.counts().0, 2);
    // Whatever the plugins prefer, a hundred tens are more.
    let said = follow(engine.consulted("g1", opinions(&[("n1", Ok(0)), ("n2", Ok(10_000))]), now));
    assert_eq!(said, "g1→n2");
    assert!(all(&mut engine, now)[0].starts_with("g2? n1"));
    assert_eq!(follow(engine.consulted("g1", opinions(&[]), now)), "nothing");
    // It goes while they think.
    engine.pod_gone("g2");
    assert_eq!(
        follow(engine.consulted("g2", opinions(&[("n1", Ok(0))]), now)),
        "nothing"
    );
    assert_eq!(engine.counts(), (0, 0, 0));
}

#[test]
fn refused_pods_wait_one_by_one_for_any_event_and_their_time() {
    let mut engine = cluster(16, &["n1", "n2"]);
    let now = Instant::now();
    for name in ["g1", "g2"] {
        engine.pod_changed(&pod(name, asks("1", 1, 0)));
    }
    assert_eq!(all(&mut engine, now), ["g1? n1 n2", "g2? n1 n2"]);
    let no = opinions(&[("n1", Err("too hot")), ("n2", Err("too far"))]);
    let said = follow(engine.consulted("g1", no.clone(), now));
    assert!(
        said.starts_with("g1: 0/2 nodes are available: 1 too far, 1 too hot. preemption: 0/2 nodes are available:"),
        "{said}"
    );
    // Its equal is asked about on its own.
    let yes = opinions(&[("n1", Ok(0)), ("n2", Err("too far"))]);
    assert_eq!(follow(engine.consulted("g2", yes, now)), "g2→n1");
    // That was an event, but its back-off runs.
    assert_eq!(all(&mut engine, now), [""; 0]);
    let ready = engine.next_deadline().unwrap();
    assert_eq!(ready - now, Duration::from_secs(1));
    assert_eq!(all(&mut engine, ready), ["g1? n1 n2"]);
    assert_eq!(follow(engine.consulted("g1", no, ready)), "nothing", "told already");
    assert_eq!(
        engine.next_deadline().unwrap() - ready,
        LEFTOVER,
        "nothing happened since"
    );
    // An error is tried again though nothing happens.
    engine.node_changed(node("n3", json!({"cpu": "2", "pods": "1", GPU: "8"})));
    let ready = engine.next_deadline().unwrap();
    assert_eq!(all(&mut engine, ready), ["g1? n1 n2 n3"]);
    assert_eq!(
        follow(engine.consulted("g1", Err("on fire".into()), ready)),
        "g1! on fire"
    );
    let next = engine.next_deadline().unwrap();
    assert_eq!(next - ready, Duration::from_secs(4));
    // What changes in the Pod makes it another.
    engine.pod_changed(&pod("g1", asks("500m", 1, 0)));
    assert_eq!(all(&mut engine, ready), ["g1? n1 n2 n3"]);
}

#[test]
fn the_cluster_may_change_while_extenders_think() {
    let mut engine = cluster(16, &["n1"]);
    let now = Instant::now();
    engine.pod_changed(&pod("g1", asks("2", 1, 0)));
    assert_eq!(all(&mut engine, now), ["g1? n1"]);
    // Its room is kept for it.
    engine.pod_changed(&pod("plain", asks("1", 0, 0)));
    assert!(all(&mut engine, now)[0].starts_with("plain: 0/1 nodes"));
    engine.node_changed(node(
        "n2",
        json!({"cpu": "4", "memory": "8Gi", "pods": "110", GPU: "8"}),
    ));
    assert_eq!(all(&mut engine, now), ["plain→n2"]);
    // They refuse the only node they were asked about, and there is another now.
    let no = opinions(&[("n1", Err("no"))]);
    assert_eq!(follow(engine.consulted("g1", no, now)), "nothing");
    assert_eq!(all(&mut engine, now), ["g1? n1 n2"]);
    engine.node_gone("n2");
    let said = follow(engine.consulted("g1", opinions(&[("n1", Err("no")), ("n2", Ok(0))]), now));
    assert!(said.starts_with("g1: 0/1 nodes are available: 1 no."), "{said}");
}

#[test]
fn extenders_have_a_say_in_who_has_to_leave() {
    let mut engine = cluster(16, &["n1", "n2"]);
    let now = Instant::now();
    for (name, node) in [("low1", "n1"), ("low2", "n2"), ("other1", "n1")] {
        let mut spec = asks(if name == "other1" { "0" } else { "2" }, 1, 0);
        spec["nodeName"] = node.into();
        engine.pod_changed(&pod(name, spec));
    }
    engine.pod_changed(&pod("high", asks("1", 1, 10)));
    let Some(Decision::ConsultVictims {
        candidates, message, ..
    }) = engine.next(now)
    else {
        panic!("asks about victims")
    };
    assert_eq!(candidates.len(), 2);
    assert!(engine.pod_on("n1", "other1").is_some() && engine.pod_on("n2", "other1").is_none());
    let theirs = Victims {
        pods: vec![engine.pod_on("n1", "other1").unwrap()],
        violations: 0,
    };
    let answer = BTreeMap::from([(Arc::from("n1"), theirs)]);
    let said = follow(engine.victims_consulted("high", Ok(answer), message.clone(), now));
    assert_eq!(said, "high⇒n1 without other1");
    engine.pod_changed(&pod("high2", asks("1500m", 1, 10)));
    assert_eq!(show(engine.next(now).unwrap()), "high2 for whom? 1");
    let said = follow(engine.victims_consulted("high2", Ok(BTreeMap::new()), message, now));
    assert!(
        said.ends_with(" preemption: no candidate node for preemption"),
        "{said}"
    );
}

#[test]
fn who_was_refused_protected_victims_tries_again_when_budgets_change() {
    let mut engine = cluster(16, &["n1"]);
    let mut now = Instant::now();
    let budget = |allowed: i32| {
        let object = json!({
            "metadata": {"name": "b", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "low"}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
        });
        serde_json::from_value(object).unwrap()
    };
    let mut spec = asks("4", 1, 0);
    spec["nodeName"] = "n1".into();
    let mut low = pod("low", spec);
    low.metadata.labels = Some([("app".to_owned(), "low".to_owned())].into());
    engine.pod_changed(&low);
    let mut refuse = |engine: &mut Engine| {
        now += Duration::from_secs(30);
        assert_eq!(show(engine.next(now).unwrap()), "high for whom? 1");
        engine.victims_consulted("high", Ok(BTreeMap::new()), "no".into(), now);
        engine.next_deadline().unwrap() - now
    };
    // Nobody protects the victim: budgets are not why.
    engine.pod_changed(&pod("high", asks("1", 1, 10)));
    assert_eq!(refuse(&mut engine), LEFTOVER);
    let resting = engine.next_deadline();
    engine.budget_changed(&budget(0));
    assert_eq!(engine.next_deadline(), resting);
    engine.pod_gone("nobody");
    engine.node_changed(node("n2", json!({"cpu": "1", "pods": "0"})));
    assert_eq!(refuse(&mut engine), LEFTOVER);
    let resting = engine.next_deadline();
    engine.budget_changed(&budget(0));
    assert_eq!(engine.next_deadline(), resting, "nothing changed");
    engine.budget_changed(&budget(1));
    assert!(engine.next_deadline() < resting);
    assert_eq!(refuse(&mut engine), LEFTOVER);
    engine.budget_gone("default", "b");
    assert!(engine.next_deadline() > resting, "no budget protects anyone");
}
