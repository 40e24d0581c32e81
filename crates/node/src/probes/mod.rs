//! Probes: startup, readiness and liveness checks of running containers.
//!
//! A probe is a small task per container and kind, started once the container runs (and, but for startup, once it
//! has started) and ended with it. What a series of answers means is [`Verdict`]'s pure arithmetic; the answers
//! come from [`run::Prober`]. Results are kept by container id, so a new container begins with none.

pub mod grpc;
pub mod http;
pub mod run;

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Probe};

/// Which of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    pub const ALL: [ProbeKind; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// As events name it.
    pub fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// The settled results: container id and kind to success or failure. Absent means not known yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults(HashMap<(String, ProbeKind), bool>);

impl ProbeResults {
    pub fn get(&self, container_id: &str, kind: ProbeKind) -> Option<bool> {
        self.0.get(&(container_id.to_owned(), kind)).copied()
    }

    /// Says whether this changed anything.
    pub fn set(&mut self, container_id: &str, kind: ProbeKind, success: bool) -> bool {
        self.0.insert((container_id.to_owned(), kind), success) != Some(success)
    }

    /// Forgets containers for which `keep` says no.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|(id, _), _| keep(id));
    }
}

/// Turns single answers into settled results by the probe's thresholds.
#[derive(Clone, Debug)]
pub struct Verdict {
    kind: ProbeKind,
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is settled by it.
    Wait,
    /// The result is this; go on probing.
    Settled(bool),
    /// The result is this, and this container needs no more probing.
    Final(bool),
}

fn threshold(value: Option<i32>, default: u32) -> u32 {
    value
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value > 0)
        .unwrap_or(default)
}

impl Verdict {
    pub fn new(kind: ProbeKind, probe: &Probe) -> Self {
        Self {
            kind,
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    /// Takes one answer.
    pub fn take(&mut self, success: bool) -> Step {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let needed = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.run < needed {
            return Step::Wait;
        }
        match (self.kind, success) {
            // A condemned or started container is left in peace.
            (ProbeKind::Startup, _) | (ProbeKind::Liveness, false) => Step::Final(success),
            _ => Step::Settled(success),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_settle_results() {
        use Step::*;
        for (kind, success, failure, answers, steps) in [
            (
                ProbeKind::Liveness,
                1,
                3,
                &[false, false, false][..],
                &[Wait, Wait, Final(false)][..],
            ),
            (
                ProbeKind::Liveness,
                1,
                3,
                &[false, true, false, false],
                &[Wait, Settled(true), Wait, Wait],
            ),
            (
                ProbeKind::Readiness,
                2,
                2,
                &[true, true, false, false, true],
                &[Wait, Settled(true), Wait, Settled(false), Wait],
            ),
            (ProbeKind::Startup, 1, 2, &[false, true], &[Wait, Final(true)]),
            (ProbeKind::Startup, 1, 2, &[false, false], &[Wait, Final(false)]),
        ] {
            let probe = Probe {
                success_threshold: Some(success),
                failure_threshold: Some(failure),
                ..Probe::default()
            };
            let mut verdict = Verdict::new(kind, &probe);
            let got: Vec<Step> = answers.iter().map(|answer| verdict.take(*answer)).collect();
            assert_eq!(got, steps, "{kind:?} {answers:?}");
        }
    }

    #[test]
    fn results_belong_to_containers() {
        let mut results = ProbeResults::default();
        assert!(results.set("a", ProbeKind::Readiness, true));
        assert!(!results.set("a", ProbeKind::Readiness, true));
        assert_eq!(results.get("b", ProbeKind::Readiness), None);
        results.retain(|id| id == "b");
        assert_eq!(results.get("a", ProbeKind::Readiness), None);
    }
}
