//! What a Job's rules say about failed Pods and reached successes. Pure.

use k8s_openapi::api::batch::v1::{
    Job, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::indexes::Indexes;

/// What becomes of a failed Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts towards the limits.
    Count,
    /// It does not count.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The whole Job fails, with this message.
    FailJob(String),
}

/// The first rule that matches a failed Pod decides; without any the failure counts.
pub(super) fn judge(job: &Job, pod: &Pod) -> Verdict {
    let policy: Option<&PodFailurePolicy> = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref());
    for (number, rule) in policy.into_iter().flat_map(|p| &p.rules).enumerate() {
        let Some(what) = matched(rule, pod) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {number}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// How a rule applies to a Pod, in words, if it does.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = exit_code(codes, pod)?;
        return Some(format!(
            "Container {container} for pod {name} failed with exit code {code}"
        ));
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions = conditions.filter(|condition| {
        patterns.iter().any(|pattern| {
            pattern.type_ == condition.type_ && pattern.status.as_deref().unwrap_or("True") == condition.status
        })
    });
    let found = conditions.next()?;
    Some(format!("Pod {name} has condition {}", found.type_))
}

fn exit_code(rule: &PodFailurePolicyOnExitCodesRequirement, pod: &Pod) -> Option<(String, i32)> {
    let status = pod.status.as_ref()?;
    status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten()
        .filter(|container| {
            rule.container_name
                .as_ref()
                .is_none_or(|wanted| *wanted == container.name)
        })
        .filter_map(|container| {
            let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
            (code != 0).then_some((container.name.clone(), code))
        })
        .find(|(_, code)| match rule.operator.as_str() {
            "In" => rule.values.contains(code),
            "NotIn" => !rule.values.contains(code),
            _ => false,
        })
}

/// Whether the indexes that succeeded are enough for the Job to have succeeded; the message says by which rule.
pub(super) fn succeeded(job: &Job, done: &Indexes, completions: i32) -> Option<String> {
    let policy = job.spec.as_ref()?.success_policy.as_ref()?;
    let met = policy.rules.iter().position(|rule| {
        let wanted = rule
            .succeeded_indexes
            .as_ref()
            .map(|text| Indexes::parse(text, completions));
        match (wanted, rule.succeeded_count) {
            (Some(wanted), Some(count)) => done.common(&wanted) >= count,
            (Some(wanted), None) => !wanted.is_empty() && done.common(&wanted) == wanted.len(),
            (None, Some(count)) => done.len() >= count,
            (None, None) => false,
        }
    })?;
    Some(format!("Matched rules at index {met}"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::{
        JobSpec, PodFailurePolicyOnPodConditionsPattern, SuccessPolicy, SuccessPolicyRule,
    };
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, PodCondition};

    use super::*;

    fn job(rules: Vec<PodFailurePolicyRule>) -> Job {
        Job {
            spec: Some(JobSpec {
                pod_failure_policy: Some(PodFailurePolicy { rules }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn codes(action: &str, operator: &str, values: &[i32]) -> PodFailurePolicyRule {
        PodFailurePolicyRule {
            action: action.into(),
            on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                container_name: None,
                operator: operator.into(),
                values: values.to_vec(),
            }),
            on_pod_conditions: None,
        }
    }

    fn failed(code: i32) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.name = Some("p".into());
        pod.status.get_or_insert_default().container_statuses = Some(vec![ContainerStatus {
            name: "main".into(),
            state: Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: code,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }]);
        pod
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let disrupted = PodFailurePolicyRule {
            action: "Ignore".into(),
            on_exit_codes: None,
            on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                type_: "DisruptionTarget".into(),
                status: Some("True".into()),
            }]),
        };
        let job = job(vec![
            disrupted,
            codes("FailJob", "In", &[42]),
            codes("FailIndex", "In", &[43]),
            codes("Ignore", "NotIn", &[1, 2]),
        ]);
        let mut evicted = failed(42);
        evicted.status.as_mut().unwrap().conditions = Some(vec![PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            ..Default::default()
        }]);
        let message = "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        let cases = [
            (evicted, Verdict::Ignore),
            (failed(42), Verdict::FailJob(message.into())),
            (failed(43), Verdict::FailIndex),
            (failed(7), Verdict::Ignore),
            (failed(1), Verdict::Count),
            (failed(0), Verdict::Count),
        ];
        for (pod, expected) in cases {
            assert_eq!(judge(&job, &pod), expected);
        }
    }

    #[test]
    fn success_by_indexes_count_or_both() {
        let rule = |indexes: Option<&str>, count: Option<i32>| SuccessPolicyRule {
            succeeded_indexes: indexes.map(str::to_owned),
            succeeded_count: count,
        };
        let done = Indexes::parse("0,2,5", 10);
        let cases = [
            (rule(Some("0,2"), None), true),
            (rule(Some("0-2"), None), false),
            (rule(Some("0-5"), Some(3)), true),
            (rule(Some("0-4"), Some(3)), false),
            (rule(None, Some(3)), true),
            (rule(None, Some(4)), false),
        ];
        for (rule, expected) in cases {
            let shown = format!("{rule:?}");
            let mut job = Job::default();
            job.spec.get_or_insert_default().success_policy = Some(SuccessPolicy { rules: vec![rule] });
            assert_eq!(succeeded(&job, &done, 10).is_some(), expected, "{shown}");
        }
    }
}
