//! The Pod's status: container statuses, phase and conditions from what the runtime and the probes say.
//!
//! Pure. The previous status matters in three ways: it keeps the times at which conditions changed, it remembers
//! containers the runtime has forgotten, and a terminal phase is never left.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus as ApiStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sampan_runtime::{ContainerState, ContainerStatus};

use super::actions::{needs_sandbox, should_start};
use super::{Observed, Role};
use crate::probes::{ProbeKind, ProbeResults};

/// Why a container waits, as its status shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// A verdict of the node on the whole Pod that its containers do not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub phase: String,
    pub reason: String,
    pub message: String,
    /// A condition that goes with it (`DisruptionTarget`).
    pub condition: Option<(String, String, String)>,
}

/// Everything a status is computed from.
pub struct Input<'a> {
    pub pod: &'a Pod,
    /// The last status this node computed, or the API's.
    pub old: &'a PodStatus,
    pub observed: &'a Observed,
    pub waiting: &'a BTreeMap<String, Waiting>,
    pub probes: &'a ProbeResults,
    pub host_ips: &'a [String],
    /// Nothing of the Pod will run again.
    pub terminal: bool,
    pub verdict: Option<&'a Verdict>,
    pub now: Timestamp,
}

/// Conditions that only the node writes.
pub const OWNED_CONDITIONS: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// Whole seconds, as the API keeps times.
pub fn api_time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// Computes the status.
pub fn compute(input: &Input<'_>) -> PodStatus {
    let pod = input.pod;
    let mut init = statuses(input, super::init_containers(pod), Role::Init);
    let mut regular = statuses(input, super::containers(pod), Role::Regular);
    let ephemeral = statuses(input, &super::ephemeral_containers(pod), Role::Ephemeral);
    set_readiness(input, super::init_containers(pod), &mut init);
    set_readiness(input, super::containers(pod), &mut regular);

    let mut phase = phase(pod, &init, &regular, input.terminal).to_owned();
    let api_phase = super::phase(pod);
    let old_phase = input.old.phase.as_deref().unwrap_or("Pending");
    for earlier in [old_phase, api_phase] {
        if super::is_terminal_phase(earlier) {
            phase = earlier.to_owned();
        }
    }
    let mut status = PodStatus {
        phase: Some(phase.clone()),
        qos_class: input
            .old
            .qos_class
            .clone()
            .or_else(|| Some(super::qos::class(pod).as_str().to_owned())),
        observed_generation: pod.metadata.generation,
        start_time: input.old.start_time.clone().or_else(|| Some(api_time(input.now))),
        ..PodStatus::default()
    };
    if phase == old_phase {
        status.reason = input.old.reason.clone();
        status.message = input.old.message.clone();
    }
    if let Some(verdict) = input.verdict
        && !super::is_terminal_phase(api_phase)
    {
        phase = verdict.phase.clone();
        status.phase = Some(phase.clone());
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone()).filter(|text| !text.is_empty());
    }
    let ends = super::is_terminal_phase(&phase) && !super::is_terminal_phase(old_phase);
    if ends && input.observed.containers.iter().any(super::observed::may_run) {
        // Whoever sees a terminal phase may count on everything having stopped.
        phase = old_phase.to_owned();
        status.phase = Some(phase.clone());
        status.reason = input.old.reason.clone();
        status.message = input.old.message.clone();
    }
    set_addresses(input, &mut status);
    status.conditions = Some(conditions(input, &init, &regular, &phase));
    let some = |list: Vec<ApiStatus>| (!list.is_empty()).then_some(list);
    status.container_statuses = some(regular);
    status.init_container_statuses = some(init);
    status.ephemeral_container_statuses = some(ephemeral);
    status
}

fn set_addresses(input: &Input<'_>, status: &mut PodStatus) {
    status.host_ip = input.host_ips.first().cloned();
    let host_ips = input.host_ips.iter().map(|ip| HostIP { ip: ip.clone() });
    status.host_ips = Some(host_ips.collect::<Vec<_>>()).filter(|ips| !ips.is_empty());
    let mut ips = if super::host_network(input.pod) {
        if input.observed.sandbox().is_some() {
            input.host_ips.to_vec()
        } else {
            Vec::new()
        }
    } else {
        input.observed.ips()
    };
    if ips.is_empty() {
        // A Pod that is over keeps showing where it was.
        ips = input.old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    }
    status.pod_ip = ips.first().cloned();
    let pod_ips: Vec<PodIP> = ips.into_iter().map(|ip| PodIP { ip }).collect();
    status.pod_ips = (!pod_ips.is_empty()).then_some(pod_ips);
}

fn old_status<'a>(old: &'a PodStatus, role: Role, name: &str) -> Option<&'a ApiStatus> {
    let list = match role {
        Role::Init | Role::Sidecar => &old.init_container_statuses,
        Role::Regular => &old.container_statuses,
        Role::Ephemeral => &old.ephemeral_container_statuses,
    };
    list.iter().flatten().find(|status| status.name == name)
}

fn statuses(input: &Input<'_>, containers: &[Container], role: Role) -> Vec<ApiStatus> {
    containers
        .iter()
        .map(|container| container_status(input, container, role))
        .collect()
}

fn waiting_state(reason: &str, message: &str) -> ApiState {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: text(reason),
            message: text(message),
        }),
        ..ApiState::default()
    }
}

fn terminated_state(reason: &str, message: &str, exit_code: i32) -> ApiState {
    ApiState {
        terminated: Some(ContainerStateTerminated {
            exit_code,
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ApiState::default()
    }
}

const UNKNOWN: &str = "ContainerStatusUnknown";

fn container_status(input: &Input<'_>, container: &Container, role: Role) -> ApiStatus {
    let name = &container.name;
    let old = old_status(input.old, role, name);
    let mut records = input
        .observed
        .containers
        .iter()
        .filter(|record| record.metadata.name == *name);
    let (latest, previous) = (records.next(), records.next());
    let mut status = match latest {
        Some(latest) => observed_status(input, container, latest, old),
        None => forgotten_status(input, container, old),
    };
    if let Some(previous) = previous {
        let state = state_of(input, previous);
        if state.terminated.is_some() {
            status.last_state = Some(state);
        }
    } else if status.last_state.is_none() {
        status.last_state = old.and_then(|old| {
            let moved_on = old.container_id != status.container_id;
            let ended = old.state.clone().filter(|state| moved_on && state.terminated.is_some());
            ended.or_else(|| old.last_state.clone())
        });
    }
    status.last_state.get_or_insert_with(ApiState::default);
    status.volume_mounts = volume_mounts(container);
    if role == Role::Init
        && !super::is_sidecar(container)
        && latest.is_none_or(|record| record.state == ContainerState::Exited && record.exit_code == Some(0))
        && status.state.as_ref().is_some_and(|state| state.terminated.is_some())
    {
        return status;
    }
    // What failed to start, or waits for its back-off, is waiting; its end becomes the last state.
    if should_start(input.pod, container, latest)
        && let Some(waiting) = input.waiting.get(name)
    {
        if status.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
            status.last_state = status.state.take();
        }
        status.state = Some(waiting_state(&waiting.reason, &waiting.message));
    }
    status
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let mounts: Vec<VolumeMountStatus> = mounts
        .iter()
        .map(|mount| {
            let read_only = mount.read_only.filter(|read_only| *read_only);
            VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only,
                recursive_read_only: read_only.map(|_| match mount.recursive_read_only.as_deref() {
                    Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
                    _ => "Disabled".to_owned(),
                }),
                ..VolumeMountStatus::default()
            }
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn state_of(input: &Input<'_>, record: &ContainerStatus) -> ApiState {
    match record.state {
        ContainerState::Running => ApiState {
            running: Some(ContainerStateRunning {
                started_at: record.started_at.map(api_time),
            }),
            ..ApiState::default()
        },
        ContainerState::Exited => {
            let message = input.observed.messages.get(&record.id).unwrap_or(&record.message);
            ApiState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: record.exit_code.unwrap_or(137),
                    signal: None,
                    reason: Some(record.reason.clone()).filter(|text| !text.is_empty()),
                    message: Some(message.clone()).filter(|text| !text.is_empty()),
                    started_at: Some(api_time(record.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
                    finished_at: Some(api_time(record.finished_at.unwrap_or(record.created_at))),
                    container_id: Some(container_id(record)),
                }),
                ..ApiState::default()
            }
        }
        ContainerState::Created | ContainerState::Unknown => waiting_state("", ""),
    }
}

fn container_id(record: &ContainerStatus) -> String {
    format!("{}://{}", crate::RUNTIME_NAME, record.id)
}

fn observed_status(
    input: &Input<'_>,
    container: &Container,
    record: &ContainerStatus,
    old: Option<&ApiStatus>,
) -> ApiStatus {
    let mut restart_count = i32::try_from(record.metadata.attempt).unwrap_or(i32::MAX);
    let mut state = state_of(input, record);
    let was_running = old
        .and_then(|old| old.state.as_ref())
        .is_some_and(|state| state.running.is_some());
    if record.state == ContainerState::Unknown && was_running {
        state = terminated_state(
            UNKNOWN,
            "The container could not be located when the pod was terminated",
            137,
        );
        restart_count = restart_count.saturating_add(1);
    } else if record.state == ContainerState::Created {
        state = default_waiting(input.pod);
    }
    let limits = container.resources.clone();
    ApiStatus {
        name: container.name.clone(),
        container_id: Some(container_id(record)),
        image: record.image.clone(),
        image_id: record.image_ref.clone(),
        restart_count,
        state: Some(state),
        allocated_resources: limits.as_ref().and_then(|r| r.requests.clone()),
        resources: limits,
        user: record.user.as_ref().map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: Some(user.supplemental_groups.iter().map(|gid| i64::from(*gid)).collect()),
            }),
        }),
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone()),
        ..ApiStatus::default()
    }
}

fn default_waiting(pod: &Pod) -> ApiState {
    if super::init_containers(pod).is_empty() {
        waiting_state("ContainerCreating", "")
    } else {
        waiting_state("PodInitializing", "")
    }
}

/// The status of a container the runtime has no record of.
fn forgotten_status(input: &Input<'_>, container: &Container, old: Option<&ApiStatus>) -> ApiStatus {
    let mut status = ApiStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(default_waiting(input.pod)),
        ..ApiStatus::default()
    };
    let Some(old) = old else {
        return status;
    };
    let old_state = old.state.clone().unwrap_or_default();
    if old_state.terminated.is_some() {
        return ApiStatus {
            started: None,
            ready: false,
            ..old.clone()
        };
    }
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone();
    if old_state.running.is_some() {
        // It ran, and now there is no trace of it: it must have ended, whatever its code was.
        if input.terminal || super::is_deleting(input.pod) {
            status.state = Some(terminated_state(
                UNKNOWN,
                "The container could not be located when the pod was terminated",
                137,
            ));
        } else {
            status.last_state = Some(terminated_state(
                UNKNOWN,
                "The container could not be located when the pod was deleted.  The container used to be Running",
                137,
            ));
            status.restart_count = status.restart_count.saturating_add(1);
        }
    }
    status
}

fn set_readiness(input: &Input<'_>, containers: &[Container], statuses: &mut [ApiStatus]) {
    for (container, status) in containers.iter().zip(statuses) {
        let state = status.state.as_ref();
        let running = state.is_some_and(|state| state.running.is_some());
        let id = input.observed.latest(&container.name).map(|record| record.id.as_str());
        let result = |kind| id.and_then(|id| input.probes.get(id, kind));
        let started = running && (container.startup_probe.is_none() || result(ProbeKind::Startup) == Some(true));
        status.started = Some(started);
        let one_shot = input
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.init_containers.as_ref())
            .is_some_and(|init| init.iter().any(|other| other.name == container.name) && !super::is_sidecar(container));
        status.ready = if one_shot {
            state
                .and_then(|state| state.terminated.as_ref())
                .is_some_and(|end| end.exit_code == 0)
        } else {
            started && (container.readiness_probe.is_none() || result(ProbeKind::Readiness) == Some(true))
        };
    }
}

/// What counts for the phase of one container.
enum Course {
    Running,
    /// Ended; the flag is whether it will be started again.
    Stopped {
        code: i32,
        again: bool,
    },
    Waiting,
    Unknown,
}

fn course(pod: &Pod, container: &Container, status: Option<&ApiStatus>) -> Course {
    let Some(status) = status else {
        return Course::Unknown;
    };
    let state = status.state.as_ref();
    let ended = |end: &ContainerStateTerminated| Course::Stopped {
        code: end.exit_code,
        again: super::restarts_after(pod, container, end.exit_code),
    };
    if state.is_some_and(|state| state.running.is_some()) {
        return Course::Running;
    }
    if let Some(end) = state.and_then(|state| state.terminated.as_ref()) {
        return ended(end);
    }
    if state.is_some_and(|state| state.waiting.is_some()) {
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        return last.map_or(Course::Waiting, ended);
    }
    Course::Unknown
}

fn find<'a>(statuses: &'a [ApiStatus], name: &str) -> Option<&'a ApiStatus> {
    statuses.iter().find(|status| status.name == name)
}

/// The phase that container statuses amount to.
pub fn phase(pod: &Pod, init: &[ApiStatus], regular: &[ApiStatus], terminal: bool) -> &'static str {
    let (mut pending_init, mut pending_sidecars, mut failed_init) = (0, 0, 0);
    let (mut unknown, mut running, mut waiting) = (0, 0, 0);
    let (mut stopped, mut stopped_for_good, mut succeeded) = (0, 0, 0);
    for container in super::init_containers(pod) {
        let status = find(init, &container.name);
        let course = course(pod, container, status);
        if super::is_sidecar(container) {
            match course {
                Course::Running => {
                    running += 1;
                    if status.and_then(|status| status.started) != Some(true) {
                        pending_sidecars += 1;
                    }
                }
                // Ended sidecars do not count.
                Course::Stopped { .. } => {}
                Course::Waiting => {
                    pending_sidecars += 1;
                    waiting += 1;
                }
                Course::Unknown => {
                    pending_sidecars += 1;
                    unknown += 1;
                }
            }
            continue;
        }
        match course {
            Course::Stopped { code: 0, .. } => {}
            Course::Stopped { again: false, .. } => failed_init += 1,
            // It will be tried again: the Pod waits for it.
            Course::Stopped { .. } | Course::Running | Course::Waiting | Course::Unknown => {
                pending_init += 1;
            }
        }
    }
    for container in super::containers(pod) {
        match course(pod, container, find(regular, &container.name)) {
            Course::Running => running += 1,
            Course::Stopped { code, again } => {
                stopped += 1;
                stopped_for_good += u32::from(!again);
                succeeded += u32::from(code == 0);
            }
            Course::Waiting => waiting += 1,
            Course::Unknown => unknown += 1,
        }
    }
    // Regular containers that ran once show that initialization is over, whatever sidecars do now.
    let initialized = regular.iter().any(has_started);
    if failed_init > 0 {
        return "Failed";
    }
    let initializing = pending_init + pending_sidecars > 0 && !initialized;
    if initializing || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if stopped > 0 && unknown == 0 {
        return match (succeeded == stopped, terminal || stopped == stopped_for_good) {
            (true, true) => "Succeeded",
            (false, true) => "Failed",
            // Somebody is about to be started again.
            (_, false) => "Running",
        };
    }
    "Pending"
}

fn has_started(status: &ApiStatus) -> bool {
    let ran =
        |state: Option<&ApiState>| state.is_some_and(|state| state.running.is_some() || state.terminated.is_some());
    ran(status.state.as_ref()) || ran(status.last_state.as_ref())
}

struct Draft {
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

impl Draft {
    fn yes(kind: &'static str) -> Self {
        Self {
            kind,
            status: true,
            reason: "",
            message: String::new(),
        }
    }
    fn no(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self {
            kind,
            status: false,
            reason,
            message,
        }
    }
}

fn names(list: &[&str]) -> String {
    format!("[{}]", list.join(" "))
}

fn containers_ready(pod: &Pod, kind: &'static str, init: &[ApiStatus], regular: &[ApiStatus], phase: &str) -> Draft {
    let (mut missing, mut unready) = (Vec::new(), Vec::new());
    let sidecars = super::init_containers(pod)
        .iter()
        .filter(|container| super::is_sidecar(container))
        .map(|container| (container, find(init, &container.name)));
    let main = super::containers(pod)
        .iter()
        .map(|container| (container, find(regular, &container.name)));
    for (container, status) in sidecars.chain(main) {
        match status {
            None => missing.push(container.name.as_str()),
            Some(status) if !status.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    if phase == "Succeeded" && missing.is_empty() {
        return Draft::no(kind, "PodCompleted", String::new());
    }
    if phase == "Failed" {
        return Draft::no(kind, "PodFailed", String::new());
    }
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!("containers with unknown status: {}", names(&missing)));
    }
    if !unready.is_empty() {
        parts.push(format!("containers with unready status: {}", names(&unready)));
    }
    if parts.is_empty() {
        Draft::yes(kind)
    } else {
        Draft::no(kind, "ContainersNotReady", parts.join(", "))
    }
}

fn initialized(pod: &Pod, init: &[ApiStatus], regular: &[ApiStatus], phase: &str) -> Draft {
    const KIND: &str = "Initialized";
    let (mut missing, mut incomplete) = (Vec::new(), Vec::new());
    for container in super::init_containers(pod) {
        match find(init, &container.name) {
            None => missing.push(container.name.as_str()),
            Some(status) => {
                let done = if super::is_sidecar(container) {
                    status.started == Some(true)
                } else {
                    status.ready
                };
                if !done {
                    incomplete.push(container.name.as_str());
                }
            }
        }
    }
    if phase == "Succeeded" && missing.is_empty() {
        return Draft {
            reason: "PodCompleted",
            ..Draft::yes(KIND)
        };
    }
    if regular.iter().any(has_started) {
        return Draft::yes(KIND);
    }
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!("containers with unknown status: {}", names(&missing)));
    }
    if !incomplete.is_empty() {
        parts.push(format!("containers with incomplete status: {}", names(&incomplete)));
    }
    if parts.is_empty() {
        Draft::yes(KIND)
    } else {
        Draft::no(KIND, "ContainersNotInitialized", parts.join(", "))
    }
}

fn ready(pod: &Pod, containers: &Draft, known: &[PodCondition]) -> Draft {
    const KIND: &str = "Ready";
    if !containers.status {
        return Draft::no(KIND, containers.reason, containers.message.clone());
    }
    let mut parts = Vec::new();
    for gate in super::spec(pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match known.iter().find(|condition| condition.type_ == *kind) {
            None => parts.push(format!(
                "corresponding condition of pod readiness gate \"{kind}\" does not exist."
            )),
            Some(condition) if condition.status != "True" => parts.push(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    if parts.is_empty() {
        Draft::yes(KIND)
    } else {
        Draft::no(KIND, "ReadinessGatesNotReady", parts.join(", "))
    }
}

fn conditions(input: &Input<'_>, init: &[ApiStatus], regular: &[ApiStatus], phase: &str) -> Vec<PodCondition> {
    let pod = input.pod;
    let of_api = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    // Others' conditions are kept as they are.
    let mut out: Vec<PodCondition> = of_api
        .filter(|condition| !OWNED_CONDITIONS.contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    let containers = containers_ready(pod, "ContainersReady", init, regular, phase);
    let drafts = [
        Draft {
            status: !needs_sandbox(pod, input.observed).0,
            ..Draft::yes("PodReadyToStartContainers")
        },
        initialized(pod, init, regular, phase),
        ready(pod, &containers, &out),
        containers,
        Draft::yes("PodScheduled"),
    ];
    for draft in drafts {
        out.push(condition(input, draft.kind, draft.status, draft.reason, &draft.message));
    }
    if let Some((kind, reason, message)) = input.verdict.and_then(|verdict| verdict.condition.as_ref()) {
        out.retain(|condition| condition.type_ != *kind);
        out.push(condition(input, kind, true, reason, message));
    }
    out
}

fn condition(input: &Input<'_>, kind: &str, status: bool, reason: &str, message: &str) -> PodCondition {
    let status = if status { "True" } else { "False" };
    let before = |of: &PodStatus| {
        let mut all = of.conditions.iter().flatten();
        all.find(|condition| condition.type_ == kind).cloned()
    };
    let old = before(input.old).or_else(|| input.pod.status.as_ref().and_then(before));
    let since = old
        .filter(|old| old.status == status)
        .and_then(|old| old.last_transition_time)
        .unwrap_or_else(|| api_time(input.now));
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: text(reason),
        message: text(message),
        last_transition_time: Some(since),
        last_probe_time: None,
        observed_generation: input.pod.metadata.generation,
    }
}

#[cfg(test)]
mod tests;
