//! What to do next for a Pod: the decision, not the doing.
//!
//! [`compute`] compares the Pod with what the runtime reports and with the probes' results. It is a pure function
//! called after every event; an action that was interrupted is simply decided again.

use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_runtime::{ContainerState, ContainerStatus, NamespaceMode, PodSandboxState};

use super::{Observed, label};
use crate::probes::{ProbeKind, ProbeResults};

/// A container to stop although its Pod goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    /// The probe that condemned it: such a kill may have a grace period of its own.
    pub probe: Option<ProbeKind>,
}

/// The next steps, in this order: kill, sandbox, ephemeral, init, regular containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Stop every container and the sandbox.
    pub kill_pod: bool,
    pub create_sandbox: bool,
    /// Attempt number for a new sandbox.
    pub attempt: u32,
    pub kill: Vec<Kill>,
    pub start_ephemeral: Vec<usize>,
    pub start_init: Vec<usize>,
    pub start: Vec<usize>,
}

/// Whether the Pod needs another sandbox, and the number it would get.
pub fn needs_sandbox(pod: &Pod, observed: &Observed) -> (bool, u32) {
    let Some(latest) = observed.sandbox() else {
        return (true, 0);
    };
    let next = latest.metadata.attempt.saturating_add(1);
    let ready = observed
        .sandboxes
        .iter()
        .filter(|sandbox| sandbox.state == PodSandboxState::Ready)
        .count();
    let network = if super::host_network(pod) {
        NamespaceMode::Node
    } else {
        NamespaceMode::Pod
    };
    let wrong = ready > 1 || latest.state != PodSandboxState::Ready || latest.namespaces.network != network;
    (wrong, if wrong { next } else { latest.metadata.attempt })
}

/// Whether `container` should be running and is not.
pub fn should_start(pod: &Pod, container: &Container, latest: Option<&ContainerStatus>) -> bool {
    if super::is_deleting(pod) {
        return false;
    }
    match latest {
        None => true,
        Some(status) => match status.state {
            ContainerState::Running => false,
            ContainerState::Created | ContainerState::Unknown => true,
            ContainerState::Exited => super::restarts_after(pod, container, status.exit_code.unwrap_or(137)),
        },
    }
}

/// Decides the next steps.
pub fn compute(pod: &Pod, observed: &Observed, probes: &ProbeResults) -> Actions {
    let (create_sandbox, attempt) = needs_sandbox(pod, observed);
    let mut actions = Actions {
        kill_pod: create_sandbox,
        create_sandbox,
        attempt,
        ..Actions::default()
    };
    if create_sandbox {
        plan_sandbox(pod, observed, &mut actions);
        return actions;
    }
    for (index, container) in super::ephemeral_containers(pod).iter().enumerate() {
        // Never restarted.
        if observed.latest(&container.name).is_none() {
            actions.start_ephemeral.push(index);
        }
    }
    let initialized = init_actions(pod, observed, probes, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    let mut kept = 0;
    for (index, container) in super::containers(pod).iter().enumerate() {
        let latest = observed.latest(&container.name);
        let Some(status) = latest.filter(|status| status.state == ContainerState::Running) else {
            if should_start(pod, container, latest) {
                actions.start.push(index);
                if let Some(status) = latest
                    && status.state == ContainerState::Unknown
                {
                    actions.kill.push(unknown_state(container, status));
                }
            }
            continue;
        };
        let Some((message, probe)) = condemned(container, status, probes, "Container") else {
            kept += 1;
            continue;
        };
        // A changed definition restarts whatever the policy says; a failed probe only if the policy allows.
        let restart = match probe {
            None => true,
            Some(_) => match container.restart_policy.as_deref() {
                Some(policy) => policy != "Never",
                None => super::restarts_on_failure(pod),
            },
        };
        let message = if restart {
            actions.start.push(index);
            format!("{message}, will be restarted")
        } else {
            message
        };
        actions.kill.push(Kill {
            id: status.id.clone(),
            name: container.name.clone(),
            message,
            probe,
        });
    }
    if kept == 0 && actions.start.is_empty() {
        // Nothing is left to run: sidecars must not keep the Pod alive.
        actions.kill_pod = true;
        actions.start_init.clear();
    }
    actions
}

fn plan_sandbox(pod: &Pod, observed: &Observed, actions: &mut Actions) {
    let had_containers = !observed.containers.is_empty();
    if !super::restarts_on_failure(pod) && actions.attempt != 0 && had_containers {
        // It ran in the sandbox that is gone and must not run again.
        actions.create_sandbox = false;
        return;
    }
    let start: Vec<usize> = super::containers(pod)
        .iter()
        .enumerate()
        .filter(|(_, container)| {
            let done = observed
                .latest(&container.name)
                .is_some_and(|status| status.state == ContainerState::Exited && status.exit_code == Some(0));
            !done || super::restarts_after(pod, container, 0)
        })
        .map(|(index, _)| index)
        .collect();
    let was_initialized = super::containers(pod)
        .iter()
        .any(|container| observed.latest(&container.name).is_some());
    if start.is_empty() && was_initialized {
        actions.create_sandbox = false;
        return;
    }
    if super::init_containers(pod).is_empty() {
        actions.start = start;
    } else {
        actions.start_init = vec![0];
    }
}

/// Why a running container must go: its definition changed, or a probe says so.
fn condemned(
    container: &Container,
    status: &ContainerStatus,
    probes: &ProbeResults,
    what: &str,
) -> Option<(String, Option<ProbeKind>)> {
    let name = &container.name;
    let hash = status.annotations.get(label::CONTAINER_HASH);
    if hash.is_some_and(|hash| *hash != super::container_hash(container)) {
        return Some((format!("{what} {name} definition changed"), None));
    }
    for (kind, text) in [(ProbeKind::Liveness, "liveness"), (ProbeKind::Startup, "startup")] {
        if probes.get(&status.id, kind) == Some(false) {
            return Some((format!("{what} {name} failed {text} probe"), Some(kind)));
        }
    }
    None
}

fn unknown_state(container: &Container, status: &ContainerStatus) -> Kill {
    Kill {
        id: status.id.clone(),
        name: container.name.clone(),
        message: "Container is in \"unknown\" state, try killing it before restart".into(),
        probe: None,
    }
}

/// The part about init containers; says whether regular containers may run.
///
/// Walks backwards: the last init container that has a record tells how far initialization came, since records of
/// earlier ones may have been removed.
fn init_actions(pod: &Pod, observed: &Observed, probes: &ProbeResults, actions: &mut Actions) -> bool {
    let init = super::init_containers(pod);
    if init.is_empty() {
        return true;
    }
    let mut initialized = super::containers(pod).iter().any(|container| {
        observed
            .latest_in_sandbox(&container.name)
            .is_some_and(|status| status.state != ContainerState::Unknown)
    });
    // Whether a later container shows that this one was done before.
    let mut passed = initialized;
    let last = init.len() - 1;
    for (index, container) in init.iter().enumerate().rev() {
        let sidecar = super::is_sidecar(container);
        let Some(status) = observed.latest_in_sandbox(&container.name) else {
            if passed && sidecar {
                actions.start_init.push(index);
            }
            continue;
        };
        if passed && !sidecar {
            continue;
        }
        let first_seen = !passed;
        passed = true;
        let mut done = || {
            if index == last {
                initialized = true;
            } else if first_seen {
                actions.start_init.push(index + 1);
            }
        };
        match status.state {
            ContainerState::Created => actions.start_init.push(index),
            ContainerState::Running if !sidecar => {}
            ContainerState::Running => {
                let started =
                    container.startup_probe.is_none() || probes.get(&status.id, ProbeKind::Startup) == Some(true);
                if started {
                    done();
                }
                if let Some((message, probe)) = condemned(container, status, probes, "Init container") {
                    actions.kill.push(Kill {
                        id: status.id.clone(),
                        name: container.name.clone(),
                        message,
                        probe,
                    });
                    actions.start_init.push(index);
                }
            }
            ContainerState::Exited if sidecar => actions.start_init.push(index),
            ContainerState::Exited if status.exit_code == Some(0) => done(),
            ContainerState::Exited | ContainerState::Unknown => {
                let code = status.exit_code.unwrap_or(137);
                let again = sidecar || super::restarts_after(pod, container, if code == 0 { 137 } else { code });
                if !again {
                    actions.kill_pod = true;
                    actions.start_init.clear();
                    return false;
                }
                if status.state == ContainerState::Unknown {
                    actions.kill.push(unknown_state(container, status));
                }
                actions.start_init.push(index);
            }
        }
    }
    if !passed {
        actions.start_init.push(0);
    }
    actions.start_init.sort_unstable();
    actions.start_init.dedup();
    initialized
}

#[cfg(test)]
mod tests {
    use super::super::observed::testing::*;
    use super::super::testing::pod;
    use super::*;
    use serde_json::{Value, json};

    fn plain(policy: &str) -> Value {
        json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]})
    }

    fn with_init(policy: &str) -> Value {
        json!({"restartPolicy": policy, "containers": [{"name": "a"}], "initContainers": [
            {"name": "i1"},
            {"name": "side", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}},
            {"name": "i2"}]})
    }

    struct Want {
        kill_pod: bool,
        create: bool,
        kill: &'static [&'static str],
        init: &'static [usize],
        start: &'static [usize],
    }

    const NOTHING: Want = Want {
        kill_pod: false,
        create: false,
        kill: &[],
        init: &[],
        start: &[],
    };

    fn check(label: &str, spec: Value, observed: &Observed, probes: &ProbeResults, want: &Want) {
        let got = compute(&pod(spec), observed, probes);
        assert_eq!(got.kill_pod, want.kill_pod, "{label}: kill_pod {got:?}");
        assert_eq!(got.create_sandbox, want.create, "{label}: create {got:?}");
        let kill: Vec<&str> = got.kill.iter().map(|kill| kill.name.as_str()).collect();
        assert_eq!(kill, want.kill, "{label}: kill");
        assert_eq!(got.start_init, want.init, "{label}: init");
        assert_eq!(got.start, want.start, "{label}: start");
    }

    #[test]
    fn regular_containers() {
        let none = ProbeResults::default();
        check(
            "new pod",
            plain("Always"),
            &Observed::default(),
            &none,
            &Want {
                kill_pod: true,
                create: true,
                start: &[0, 1],
                ..NOTHING
            },
        );
        check(
            "sandbox only",
            plain("Always"),
            &observed(vec![]),
            &none,
            &Want {
                start: &[0, 1],
                ..NOTHING
            },
        );
        check(
            "all run",
            plain("Always"),
            &observed(vec![running("a", 0), running("b", 0)]),
            &none,
            &NOTHING,
        );
        for (policy, code, start) in [
            ("Always", 0, &[1][..]),
            ("OnFailure", 0, &[]),
            ("OnFailure", 1, &[1]),
            ("Never", 1, &[]),
        ] {
            check(
                &format!("b exited {code} under {policy}"),
                plain(policy),
                &observed(vec![running("a", 0), exited("b", 0, code)]),
                &none,
                &Want { start, ..NOTHING },
            );
        }
        check(
            "everything is done",
            plain("Never"),
            &observed(vec![exited("a", 0, 0), exited("b", 0, 1)]),
            &none,
            &Want {
                kill_pod: true,
                ..NOTHING
            },
        );
        check(
            "created but never started",
            plain("Never"),
            &observed(vec![running("a", 0), container("b", 0, ContainerState::Created)]),
            &none,
            &Want { start: &[1], ..NOTHING },
        );
        check(
            "unknown",
            plain("Always"),
            &observed(vec![running("a", 0), container("b", 0, ContainerState::Unknown)]),
            &none,
            &Want {
                start: &[1],
                kill: &["b"],
                ..NOTHING
            },
        );
    }

    #[test]
    fn probes_and_changed_definitions() {
        let mut probes = ProbeResults::default();
        probes.set("b-0", ProbeKind::Liveness, false);
        let both = observed(vec![running("a", 0), running("b", 0)]);
        let pod_always = pod(plain("Always"));
        let got = compute(&pod_always, &both, &probes);
        assert_eq!(
            got.kill[0].message,
            "Container b failed liveness probe, will be restarted"
        );
        assert_eq!(got.start, [1]);
        check(
            "never restarts after a failed probe",
            plain("Never"),
            &both,
            &probes,
            &Want {
                kill: &["b"],
                ..NOTHING
            },
        );
        let mut changed = running("a", 0);
        changed.annotations.insert(label::CONTAINER_HASH.into(), "old".into());
        check(
            "a new image restarts whatever the policy",
            plain("Never"),
            &observed(vec![changed, running("b", 0)]),
            &ProbeResults::default(),
            &Want {
                kill: &["a"],
                start: &[0],
                ..NOTHING
            },
        );
    }

    #[test]
    fn init_containers_and_sidecars_in_order() {
        let none = ProbeResults::default();
        let mut started = ProbeResults::default();
        started.set("side-0", ProbeKind::Startup, true);
        let init = |n| exited(n, 0, 0);
        for (label, containers, probes, want) in [
            ("nothing ran", vec![], &none, Want { init: &[0], ..NOTHING }),
            ("first runs", vec![running("i1", 0)], &none, NOTHING),
            ("first done", vec![init("i1")], &none, Want { init: &[1], ..NOTHING }),
            (
                "sidecar not started",
                vec![init("i1"), running("side", 0)],
                &none,
                NOTHING,
            ),
            (
                "sidecar started",
                vec![init("i1"), running("side", 0)],
                &started,
                Want { init: &[2], ..NOTHING },
            ),
            (
                "last done",
                vec![init("i1"), running("side", 0), init("i2")],
                &started,
                Want { start: &[0], ..NOTHING },
            ),
            (
                "sidecar died before the last",
                vec![init("i1"), exited("side", 0, 1)],
                &none,
                Want { init: &[1], ..NOTHING },
            ),
            (
                "sidecar died later",
                vec![init("i1"), exited("side", 0, 1), init("i2"), running("a", 0)],
                &none,
                Want { init: &[1], ..NOTHING },
            ),
            (
                "records removed",
                vec![running("side", 0), running("a", 0)],
                &started,
                NOTHING,
            ),
            (
                "sidecar record lost",
                vec![running("a", 0)],
                &none,
                Want { init: &[1], ..NOTHING },
            ),
            (
                "first failed",
                vec![exited("i1", 0, 1)],
                &none,
                Want { init: &[0], ..NOTHING },
            ),
        ] {
            check(label, with_init("Always"), &observed(containers), probes, &want);
        }
        check(
            "a failed init ends a pod that never restarts",
            with_init("Never"),
            &observed(vec![exited("i1", 0, 1)]),
            &none,
            &Want {
                kill_pod: true,
                ..NOTHING
            },
        );
        check(
            "sidecars do not keep a finished pod",
            with_init("Never"),
            &observed(vec![init("i1"), running("side", 0), init("i2"), exited("a", 0, 0)]),
            &started,
            &Want {
                kill_pod: true,
                ..NOTHING
            },
        );
        let mut failed = ProbeResults::default();
        failed.set("side-0", ProbeKind::Startup, false);
        check(
            "a sidecar that never starts is restarted",
            with_init("Always"),
            &observed(vec![init("i1"), running("side", 0)]),
            &failed,
            &Want {
                kill: &["side"],
                init: &[1],
                ..NOTHING
            },
        );
    }

    #[test]
    fn lost_sandboxes() {
        let none = ProbeResults::default();
        let lost = |containers| Observed::new(vec![sandbox(0, PodSandboxState::NotReady)], containers);
        check(
            "begin again, init first",
            with_init("Always"),
            &lost(vec![exited("i1", 0, 0), exited("a", 0, 137)]),
            &none,
            &Want {
                kill_pod: true,
                create: true,
                init: &[0],
                ..NOTHING
            },
        );
        check(
            "a pod that never restarts stays down",
            plain("Never"),
            &lost(vec![exited("a", 0, 137)]),
            &none,
            &Want {
                kill_pod: true,
                ..NOTHING
            },
        );
        check(
            "never, but nothing had run",
            plain("Never"),
            &lost(vec![]),
            &none,
            &Want {
                kill_pod: true,
                create: true,
                start: &[0, 1],
                ..NOTHING
            },
        );
        check(
            "finished containers are not run twice",
            plain("OnFailure"),
            &lost(vec![exited("a", 0, 0), exited("b", 0, 1)]),
            &none,
            &Want {
                kill_pod: true,
                create: true,
                start: &[1],
                ..NOTHING
            },
        );
        let got = compute(&pod(plain("Always")), &lost(vec![]), &none);
        assert_eq!(got.attempt, 1);
    }
}
