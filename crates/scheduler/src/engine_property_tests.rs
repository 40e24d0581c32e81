//! The engine against the plain saying of the plugins ([`crate::naive`]), under clusters and events made by chance.

use std::time::Duration;

use super::*;
use crate::naive::{Answer, World};
use crate::testing::node_with;
use serde_json::{Value, json};

struct Chance(SmallRng);

impl Chance {
    fn of(&mut self, cases: u32) -> bool {
        self.0.random_range(0..cases) == 0
    }
    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.random_range(0..of.len())].clone()
    }

    fn node(&mut self, name: &str) -> Arc<Node> {
        let host = if self.of(8) { "twin" } else { name };
        let mut labels = json!({"kubernetes.io/hostname": host});
        if !self.of(6) {
            labels["topology.kubernetes.io/zone"] = self.one(&["x", "y", "z"]).into();
        }
        if self.of(2) {
            labels["pool"] = self.one(&["a", "b"]).into();
        }
        let mut spec = json!({});
        if self.of(6) {
            spec["unschedulable"] = true.into();
        }
        if self.of(5) {
            let effect = self.one(&["NoSchedule", "PreferNoSchedule"]);
            spec["taints"] = json!([{"key": "k", "effect": effect}]);
        }
        let cpu = self.one(&["2", "3", "6"]);
        node_with(name, labels, spec, json!({"cpu": cpu, "memory": "8Gi", "pods": "20"}))
    }

    fn labels(&mut self) -> Value {
        let mut labels = json!({"app": self.one(&["a", "b", "c"]), "index": self.one(&["0", "1", "2", "3"])});
        if self.of(3) {
            labels["tier"] = self.one(&["f", "g"]).into();
        }
        labels
    }

    fn selector(&mut self) -> Value {
        match self.0.random_range(0..6) {
            0 => json!({"matchLabels": {"index": self.one(&["0", "1"])}}),
            1 => json!({"matchExpressions": [{"key": "tier", "operator": self.one(&["Exists", "DoesNotExist"])}]}),
            2 => json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}),
            3 if self.of(3) => json!({}),
            _ => json!({"matchLabels": {"app": self.one(&["a", "b", "c"])}}),
        }
    }

    fn key(&mut self) -> &'static str {
        self.one(&[
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
            "topology.kubernetes.io/zone",
            "pool",
        ])
    }

    fn term(&mut self) -> Value {
        let mut term = json!({"topologyKey": self.key(), "labelSelector": self.selector()});
        if self.of(4) {
            term["namespaces"] = json!([self.one(&["default", "other"])]);
        }
        if self.of(4) {
            let labels = self.one(&[json!({}), json!({"team": "red"})]);
            term["namespaceSelector"] = json!({"matchLabels": labels});
        }
        term
    }

    fn pod(&mut self, name: &str) -> Pod {
        let cpu = self.one(&["100m", "500m", "1"]);
        let mut spec = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]});
        if self.of(6) {
            spec["nodeSelector"] = json!({"pool": "a"});
        }
        if self.of(3) {
            spec["tolerations"] = json!([{"operator": "Exists"}]);
        }
        let mut affinity = json!({});
        for field in ["podAffinity", "podAntiAffinity"] {
            let mut terms = json!({});
            if self.of(6) {
                let many = 1 + usize::from(self.of(3));
                let list: Vec<Value> = (0..many).map(|_| self.term()).collect();
                terms["requiredDuringSchedulingIgnoredDuringExecution"] = list.into();
            }
            if self.of(5) {
                let weight = self.one(&[1, 10, 100]);
                let term = json!([{"weight": weight, "podAffinityTerm": self.term()}]);
                terms["preferredDuringSchedulingIgnoredDuringExecution"] = term;
            }
            affinity[field] = terms;
        }
        spec["affinity"] = affinity;
        if self.of(4) {
            let many = 1 + usize::from(self.of(3));
            let constraints = (0..many).map(|_| {
                let when = self.one(&["DoNotSchedule", "ScheduleAnyway"]);
                let mut constraint =
                    json!({"maxSkew": self.one(&[1, 2]), "topologyKey": self.key(), "whenUnsatisfiable": when});
                if !self.of(8) {
                    constraint["labelSelector"] = self.selector();
                }
                if when == "DoNotSchedule" && self.of(3) {
                    constraint["minDomains"] = self.one(&[2, 3]).into();
                }
                if self.of(3) {
                    constraint["nodeTaintsPolicy"] = "Honor".into();
                }
                if self.of(4) {
                    constraint["nodeAffinityPolicy"] = "Ignore".into();
                }
                if self.of(4) {
                    constraint["matchLabelKeys"] = json!(["tier"]);
                }
                constraint
            });
            spec["topologySpreadConstraints"] = constraints.collect();
        }
        let namespace = self.one(&["default", "default", "other"]);
        let metadata =
            json!({"name": name, "namespace": namespace, "uid": name, "labels": self.labels(), "generation": 1});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }
}

/// What the engine makes of every node, and whether it may take one that is not the best.
fn examined(engine: &mut Engine, pod: &PodInfo) -> BTreeMap<String, Result<(), Vec<String>>> {
    let class = &pod.class;
    let framework = &engine.profiles[&class.scheduler];
    let watch = &mut Watch::start(false);
    let memory = remembered(&mut engine.memories, framework, class, &engine.snapshot, watch);
    let tracking = tracked(&mut engine.trackings, framework, class, &engine.snapshot, watch);
    let mut answer = BTreeMap::new();
    for (at, info) in engine.snapshot.nodes() {
        let here = match memory.refusal(at) {
            Some((_, refusal)) => Err(refusal.reasons.clone()),
            None => tracking
                .check(at)
                .map_err(|(_, refused)| vec![refused.reason.to_owned()]),
        };
        answer.insert(info.name.to_string(), here);
    }
    answer
}

fn compare(engine: &mut Engine, world: &World, pod: &Pod, step: usize) -> Answer {
    let info = engine.read(pod, None).unwrap();
    let plain = world.answer(&engine.profiles["default-scheduler"], pod);
    let mine = examined(engine, &info);
    let feasible = |answer: &Answer| -> BTreeMap<String, Result<(), Vec<String>>> {
        let each = answer.iter().map(|(name, here)| (name.clone(), here.clone().map(drop)));
        each.collect()
    };
    assert_eq!(
        mine,
        feasible(&plain),
        "step {step}: {}",
        serde_json::to_string(pod).unwrap()
    );
    let best = plain.values().flatten().max();
    let watch = &mut Watch::start(step.is_multiple_of(2));
    match engine.choose(&info, Gate::Open, watch) {
        Ok(at) => {
            let name = engine.snapshot.name(at);
            let total = plain[name].as_ref().ok();
            assert_eq!(
                total,
                best,
                "step {step}: {name} of {plain:?} for {}",
                serde_json::to_string(pod).unwrap()
            );
        }
        Err(refused) => {
            assert_eq!(best, None, "step {step}");
            let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
            for reason in plain.values().filter_map(|here| here.as_ref().err()).flatten() {
                *reasons.entry(reason.clone()).or_default() += 1;
            }
            assert_eq!(refused.diagnosis.message, explain(plain.len(), reasons));
        }
    }
    plain
}

/// With preemption Pods have priorities, and victims leave at once or after a while.
fn run(seed: u64, steps: usize, preemption: bool) {
    let mut chance = Chance(SmallRng::seed_from_u64(seed));
    let mut framework = Framework::default();
    if !preemption {
        framework.preemption = None;
    }
    let mut engine = Engine::new([("default-scheduler".to_owned(), framework)], seed);
    let mut world = World::default();
    let mut waiting: BTreeMap<String, Pod> = BTreeMap::new();
    let mut now = Instant::now();
    for step in 0..steps {
        match chance.0.random_range(0..16) {
            0 | 1 => {
                let name = format!("n{}", chance.0.random_range(0..7));
                let node = chance.node(&name);
                world.nodes.insert(name, Arc::clone(&node));
                engine.node_changed(node);
            }
            2 if chance.of(2) => {
                let name = format!("n{}", chance.0.random_range(0..7));
                world.nodes.remove(&name);
                engine.node_gone(&name);
            }
            3 => {
                let (name, team) = (chance.one(&["default", "other"]), chance.one(&["red", "blue"]));
                let labels = Labels::from([("team".to_owned(), team.to_owned())]);
                world.namespaces.insert(name.to_owned(), labels.clone());
                engine.namespace_changed(name, Some(labels));
            }
            4 => {
                let (name, there) = (chance.one(&["s", "t"]), !chance.of(3));
                let labels = Labels::from([("app".to_owned(), chance.one(&["a", "b"]).to_owned())]);
                let key = ("default".to_owned(), name.to_owned());
                let selector = LabelSelector {
                    match_labels: Some(labels.clone()),
                    ..LabelSelector::default()
                };
                if there {
                    world.services.insert(key, labels);
                } else {
                    world.services.remove(&key);
                }
                engine.owner_changed(OwnerKind::Service, "default", name, there.then_some(selector));
            }
            5..=7 => {
                let uids: Vec<String> = world.pods.keys().chain(waiting.keys()).cloned().collect();
                if !uids.is_empty() {
                    let uid = chance.one(&uids);
                    world.pods.remove(&uid);
                    waiting.remove(&uid);
                    engine.pod_gone(&uid);
                }
            }
            8 if !world.pods.is_empty() => {
                let uids: Vec<String> = world.pods.keys().cloned().collect();
                let pod = world.pods.get_mut(&chance.one(&uids)).unwrap();
                if chance.of(2) {
                    pod.metadata.labels = serde_json::from_value(chance.labels()).unwrap();
                } else {
                    pod.metadata.deletion_timestamp =
                        Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
                }
                engine.pod_changed(pod);
            }
            _ => {
                let mut pod = chance.pod(&format!("p{step}"));
                if preemption && let Some(spec) = &mut pod.spec {
                    spec.priority = Some(chance.one(&[0, 0, 10, 100]));
                }
                engine.pod_changed(&pod);
                waiting.insert(format!("p{step}"), pod);
            }
        }
        // Rests are over, the longest wait is not.
        now += Duration::from_millis(20);
        let mut turns = 0;
        loop {
            let mut leaving: Vec<PodInfo> = Vec::new();
            loop {
                let Some(decision) = engine.next(now) else {
                    let Some(victim) = leaving.pop() else { break };
                    world.pods.remove(&*victim.uid);
                    engine.pod_gone(&victim.uid);
                    continue;
                };
                if let Decision::Preempt { pod, victims, .. } = &decision {
                    assert!(!victims.is_empty());
                    for victim in victims {
                        assert!(victim.class.priority < pod.class.priority);
                        if chance.of(2) {
                            leaving.push(victim.clone());
                        } else {
                            world.pods.remove(&*victim.uid);
                            engine.pod_gone(&victim.uid);
                        }
                    }
                }
                let Decision::Bind { pod, node } = decision else {
                    continue;
                };
                let mut bound = waiting.remove(&*pod.uid).unwrap();
                bound.spec.as_mut().unwrap().node_name = Some(node.to_string());
                engine.pod_changed(&bound);
                world.pods.insert(pod.uid.to_string(), bound);
            }
            let resting = engine.next_try().filter(|due| *due < now + Duration::from_secs(30));
            let Some(due) = resting else { break };
            now = due;
            turns += 1;
            assert!(turns < 100, "it never comes to rest");
        }
        assert_eq!(engine.nominations.len(), 0, "all victims are gone");
        let pod = chance.pod("probe");
        compare(&mut engine, &world, &pod, step);
        if step % 4 == 0 {
            for pod in waiting.values() {
                let answer = compare(&mut engine, &world, pod, step);
                assert!(
                    answer.values().all(Result::is_err),
                    "step {step}: nobody woke {}, whom {answer:?} take",
                    serde_json::to_string(pod).unwrap()
                );
            }
        }
    }
}

#[test]
fn the_engine_decides_as_the_plugins_plainly_said() {
    for seed in 0..4 {
        run(seed, 150, false);
    }
}

#[test]
fn preemption_comes_to_rest_with_nobody_left_who_fits() {
    for seed in 50..54 {
        run(seed, 150, true);
    }
}

#[test]
#[ignore = "takes minutes"]
fn the_engine_decides_as_the_plugins_plainly_said_for_long() {
    for seed in 100..130 {
        run(seed, 300, false);
        run(seed, 300, true);
    }
}
