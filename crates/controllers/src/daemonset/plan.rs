//! Which daemons to make and which to end. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Round;
use super::node::Fit;
use crate::pods;

/// What is to be done about the nodes.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
    }
}

/// The running Pods of a node that are too many.
pub(super) fn excess(round: &Round, running: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    if round.most_surge == 0 {
        return running.into_iter().skip(1).collect();
    }
    let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| round.is_new(pod));
    let (mut new, mut old) = (new.into_iter(), old.into_iter());
    let (first_new, first_old) = (new.next(), old.next());
    let mut gone: Vec<_> = new.chain(old).collect();
    if let (Some(new), Some(old)) = (first_new, first_old)
        && (!pods::is_ready(&old) || round.is_available(&new))
    {
        gone.push(old);
    }
    gone
}

/// The new and the old Pod of a node; `None` if there are several of either, which is not the update's business.
type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

fn pair<'a>(round: &Round, pods: &'a [Arc<Pod>]) -> Option<Pair<'a>> {
    let (mut new, mut old) = (None, None);
    for pod in pods.iter().filter(|pod| !pods::is_terminating(pod)) {
        let place = if round.is_new(pod) { &mut new } else { &mut old };
        if place.replace(pod).is_some() {
            return None;
        }
    }
    Some((new, old))
}

/// The next step of an update, once every node is in order.
pub(super) fn roll(round: &Round, fits: &BTreeMap<String, Fit>, by_node: &BTreeMap<String, Vec<Arc<Pod>>>) -> Plan {
    if round.most_surge > 0 {
        surge(round, fits, by_node)
    } else {
        replace(round, by_node)
    }
}

/// Old Pods go first, as many as may be unavailable; those that do not serve anyway go at once.
fn replace(round: &Round, by_node: &BTreeMap<String, Vec<Arc<Pod>>>) -> Plan {
    let (mut plan, mut candidates, mut away) = (Plan::default(), Vec::new(), 0);
    for pods in by_node.values() {
        match pair(round, pods) {
            Some((Some(new), None)) => away += usize::from(!round.is_available(new)),
            Some((None, Some(old))) if !round.is_available(old) => {
                plan.delete.push(Arc::clone(old));
                away += 1;
            }
            Some((None, Some(old))) => candidates.push(Arc::clone(old)),
            _ => away += 1,
        }
    }
    let room = round.most_unavailable.saturating_sub(away);
    plan.delete.extend(candidates.into_iter().take(room));
    plan
}

/// New Pods come first, as many as may be there twice; an old one goes when its successor is available, or when its node
/// does not want it any more and enough others serve.
fn surge(round: &Round, fits: &BTreeMap<String, Fit>, by_node: &BTreeMap<String, Vec<Arc<Pod>>>) -> Plan {
    let (mut plan, mut candidates, mut unwanted) = (Plan::default(), Vec::new(), Vec::new());
    let (mut twice, mut serving) = (0, 0);
    for (name, pods) in by_node {
        let Some(fit) = fits.get(name) else { continue };
        let Some((new, old)) = pair(round, pods) else {
            twice += 1;
            continue;
        };
        serving += usize::from(old.or(new).is_some_and(|pod| round.is_available(pod)));
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) => match (round.is_available(old), *fit == Fit::Run) {
                (false, false) => plan.delete.push(Arc::clone(old)),
                (false, true) => plan.create.push(name.clone()),
                (true, false) => unwanted.push(Arc::clone(old)),
                (true, true) => candidates.push(name.clone()),
            },
            (Some(new), Some(_)) if !round.is_available(new) => twice += 1,
            (Some(_), Some(old)) => plan.delete.push(Arc::clone(old)),
        }
    }
    let desired = fits.values().filter(|fit| **fit == Fit::Run).count();
    plan.delete
        .extend(unwanted.into_iter().take(serving.saturating_sub(desired)));
    let room = round.most_surge.saturating_sub(twice);
    plan.create.extend(candidates.into_iter().take(room));
    plan
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodTemplateSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::ResourceExt;
    use serde_json::json;

    use super::*;
    use crate::history::POD_HASH;

    fn pod(node: &str, state: char) -> Arc<Pod> {
        let hash = if state.eq_ignore_ascii_case(&'n') { "new" } else { "old" };
        let ready = if state.is_uppercase() { "True" } else { "False" };
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("{node}{state}"), "labels": {POD_HASH: hash}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap();
        if state == 'x' {
            pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        }
        Arc::new(pod)
    }

    #[test]
    fn the_next_step() {
        // A node: its fit (r: run, s: stay) and its Pods (n: new, o: old; capital: available; x: ending).
        // (maxUnavailable, maxSurge, nodes, to create, to delete)
        let cases = [
            (1, 0, "rO rO rO", "", "aO"),
            (2, 0, "rO rO rO", "", "aO bO"),
            (1, 0, "rn rO rO", "", ""),
            (1, 0, "rN rO rO", "", "bO"),
            (1, 0, "rn ro rO", "", "bo"),
            (2, 0, "ro rO rO", "", "ao bO"),
            (1, 0, "rx rO", "", ""),
            (1, 0, "sO rN", "", "aO"),
            (1, 0, "rOO rO", "", ""),
            (0, 1, "rO rO", "a", ""),
            (0, 1, "rOn rO", "", ""),
            (0, 1, "rON rO", "b", "aO"),
            (0, 1, "ro rO", "a b", ""),
            (0, 2, "rO rO rO", "a b", ""),
            (0, 1, "so rN", "", "ao"),
            (0, 1, "sO rN", "", "aO"),
            (0, 1, "sO rn", "", ""),
        ];
        for (unavailable, surge, nodes, create, delete) in cases {
            let round = Round {
                template: PodTemplateSpec::default(),
                hash: "new".into(),
                min_ready: 0,
                most_unavailable: unavailable,
                most_surge: surge,
                now: jiff::Timestamp::UNIX_EPOCH,
            };
            let (mut fits, mut by_node) = (BTreeMap::new(), BTreeMap::new());
            for (name, node) in ["a", "b", "c"].into_iter().zip(nodes.split(' ')) {
                let fit = if node.starts_with('r') { Fit::Run } else { Fit::Stay };
                fits.insert(name.to_owned(), fit);
                by_node.insert(
                    name.to_owned(),
                    node.chars().skip(1).map(|state| pod(name, state)).collect(),
                );
            }
            let plan = roll(&round, &fits, &by_node);
            let gone: Vec<String> = plan.delete.iter().map(|pod| pod.name_any()).collect();
            assert_eq!(
                (plan.create.join(" "), gone.join(" ")),
                (create.into(), delete.into()),
                "{nodes}"
            );
        }
    }
}
