//! Tables of statuses.

use super::super::observed::testing::*;
use super::super::testing::pod;
use super::*;
use serde_json::{Value, json};

fn status_of(
    spec: Value,
    observed: &Observed,
    probes: &ProbeResults,
    waiting: &[(&str, &str)],
    terminal: bool,
) -> PodStatus {
    let pod = pod(spec);
    let waiting = waiting
        .iter()
        .map(|(name, reason)| {
            let waiting = Waiting {
                reason: (*reason).into(),
                message: "why".into(),
            };
            ((*name).to_owned(), waiting)
        })
        .collect();
    compute(&Input {
        pod: &pod,
        old: &PodStatus::default(),
        observed,
        waiting: &waiting,
        probes,
        host_ips: &["192.0.2.1".to_owned()],
        terminal,
        verdict: None,
        now: at(100),
    })
}

fn two(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]})
}

#[test]
fn phases() {
    let init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]});
    let init_never = json!({"restartPolicy": "Never", "containers": [{"name": "a"}],
        "initContainers": [{"name": "i"}]});
    let sidecar = json!({"restartPolicy": "Never", "containers": [{"name": "a"}],
        "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    for (label, spec, containers, terminal, expected) in [
        ("nothing", two("Always"), vec![], false, "Pending"),
        ("one of two", two("Always"), vec![running("a", 0)], false, "Pending"),
        (
            "both",
            two("Always"),
            vec![running("a", 0), running("b", 0)],
            false,
            "Running",
        ),
        (
            "one ended",
            two("Never"),
            vec![running("a", 0), exited("b", 0, 1)],
            false,
            "Running",
        ),
        (
            "both ended well",
            two("Never"),
            vec![exited("a", 0, 0), exited("b", 0, 0)],
            false,
            "Succeeded",
        ),
        (
            "one failed",
            two("Never"),
            vec![exited("a", 0, 0), exited("b", 0, 2)],
            false,
            "Failed",
        ),
        (
            "restarting",
            two("Always"),
            vec![exited("a", 0, 0), exited("b", 0, 2)],
            false,
            "Running",
        ),
        (
            "retrying",
            two("OnFailure"),
            vec![exited("a", 0, 0), exited("b", 0, 2)],
            false,
            "Running",
        ),
        (
            "stopped for good",
            two("Always"),
            vec![exited("a", 0, 0), exited("b", 0, 2)],
            true,
            "Failed",
        ),
        (
            "stopped well",
            two("Always"),
            vec![exited("a", 0, 0), exited("b", 0, 0)],
            true,
            "Succeeded",
        ),
        ("init runs", init.clone(), vec![running("i", 0)], false, "Pending"),
        (
            "init failed, again",
            init.clone(),
            vec![exited("i", 0, 1)],
            false,
            "Pending",
        ),
        (
            "init done, main not yet",
            init.clone(),
            vec![exited("i", 0, 0)],
            false,
            "Pending",
        ),
        (
            "init done",
            init,
            vec![exited("i", 0, 0), running("a", 0)],
            false,
            "Running",
        ),
        (
            "init failed for good",
            init_never,
            vec![exited("i", 0, 1)],
            false,
            "Failed",
        ),
        (
            "sidecar still runs",
            sidecar.clone(),
            vec![running("s", 0), exited("a", 0, 0)],
            false,
            "Running",
        ),
        (
            "sidecar stopped too",
            sidecar,
            vec![exited("s", 0, 143), exited("a", 0, 0)],
            true,
            "Succeeded",
        ),
    ] {
        let got = status_of(spec, &observed(containers), &ProbeResults::default(), &[], terminal);
        assert_eq!(got.phase.as_deref(), Some(expected), "{label}");
    }
}

#[test]
fn waiting_reasons_restart_counts_and_last_states() {
    let seen = observed(vec![exited("a", 2, 1), exited("a", 1, 3), running("b", 0)]);
    let got = status_of(
        two("Always"),
        &seen,
        &ProbeResults::default(),
        &[("a", "CrashLoopBackOff")],
        false,
    );
    let a = &got.container_statuses.as_ref().unwrap()[0];
    let state = a.state.as_ref().unwrap();
    assert_eq!(
        state.waiting.as_ref().unwrap().reason.as_deref(),
        Some("CrashLoopBackOff")
    );
    let last = a.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, a.restart_count), (1, 2));
    assert_eq!(got.phase.as_deref(), Some("Running"));
    // Without a reason the end itself is shown, and the one before as the last state.
    let got = status_of(two("Always"), &seen, &ProbeResults::default(), &[], false);
    let a = &got.container_statuses.as_ref().unwrap()[0];
    assert_eq!(a.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert_eq!(a.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);

    let got = status_of(
        two("Always"),
        &Observed::default(),
        &ProbeResults::default(),
        &[("a", "ErrImagePull")],
        false,
    );
    let reasons: Vec<_> = got
        .container_statuses
        .as_ref()
        .unwrap()
        .iter()
        .map(|status| {
            status
                .state
                .as_ref()
                .unwrap()
                .waiting
                .as_ref()
                .unwrap()
                .reason
                .clone()
                .unwrap()
        })
        .collect();
    assert_eq!(reasons, ["ErrImagePull", "ContainerCreating"]);
    assert_eq!(got.phase.as_deref(), Some("Pending"));
}

#[test]
fn conditions_follow_probes_and_gates() {
    let spec = json!({"readinessGates": [{"conditionType": "x/gate"}], "containers": [
        {"name": "a", "readinessProbe": {"exec": {"command": ["x"]}}},
        {"name": "b", "startupProbe": {"exec": {"command": ["x"]}}}]});
    let seen = observed(vec![running("a", 0), running("b", 0)]);
    let find = |status: &PodStatus, kind: &str| {
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == kind)
            .cloned()
            .unwrap();
        (
            condition.status,
            condition.reason.unwrap_or_default(),
            condition.message.unwrap_or_default(),
        )
    };
    let mut probes = ProbeResults::default();
    let got = status_of(spec.clone(), &seen, &probes, &[], false);
    assert_eq!(
        find(&got, "ContainersReady"),
        (
            "False".into(),
            "ContainersNotReady".into(),
            "containers with unready status: [a b]".into()
        )
    );
    assert_eq!(got.container_statuses.as_ref().unwrap()[1].started, Some(false));
    probes.set("a-0", ProbeKind::Readiness, true);
    probes.set("b-0", ProbeKind::Startup, true);
    let got = status_of(spec, &seen, &probes, &[], false);
    assert_eq!(find(&got, "ContainersReady").0, "True");
    let (status, reason, message) = find(&got, "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ReadinessGatesNotReady"));
    assert!(message.contains("x/gate"));
    assert_eq!(got.pod_ip.as_deref(), Some("10.0.0.7"));
    assert_eq!(got.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(got.observed_generation, Some(1));
}

#[test]
fn transition_times_are_kept_and_terminal_phases_stay() {
    let mut pod = pod(two("Never"));
    let seen = observed(vec![exited("a", 0, 0), exited("b", 0, 1)]);
    let (waiting, probes) = (BTreeMap::new(), ProbeResults::default());
    let status = |pod: &Pod, old: &PodStatus, observed: &Observed, now| {
        compute(&Input {
            pod,
            old,
            observed,
            waiting: &waiting,
            probes: &probes,
            host_ips: &[],
            terminal: false,
            verdict: None,
            now: at(now),
        })
    };
    let first = status(&pod, &PodStatus::default(), &seen, 100);
    let second = status(&pod, &first, &seen, 200);
    assert_eq!(first, second);
    pod.status = Some(first.clone());
    let gone = status(&pod, &first, &Observed::default(), 300);
    assert_eq!(gone.phase.as_deref(), Some("Failed"));
    let codes: Vec<_> = gone
        .container_statuses
        .as_ref()
        .unwrap()
        .iter()
        .map(|status| status.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code)
        .collect();
    assert_eq!(codes, [0, 1]);
    assert_eq!(gone.pod_ip.as_deref(), Some("10.0.0.7"));
}

#[test]
fn verdicts_override() {
    let pod = pod(two("Always"));
    let verdict = Verdict {
        phase: "Failed".into(),
        reason: "DeadlineExceeded".into(),
        message: "too long".into(),
        condition: Some(("DisruptionTarget".into(), "TerminationByKubelet".into(), "m".into())),
    };
    let got = compute(&Input {
        pod: &pod,
        old: &PodStatus::default(),
        observed: &observed(vec![exited("a", 0, 137), exited("b", 0, 137)]),
        waiting: &BTreeMap::new(),
        probes: &ProbeResults::default(),
        host_ips: &[],
        terminal: false,
        verdict: Some(&verdict),
        now: at(1),
    });
    assert_eq!(got.phase.as_deref(), Some("Failed"));
    assert_eq!(got.reason.as_deref(), Some("DeadlineExceeded"));
    assert!(got.conditions.unwrap().iter().any(|c| c.type_ == "DisruptionTarget"));
}
