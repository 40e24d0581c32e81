//! What a StatefulSet's sync does: fills places, ends Pods beyond the size, replaces those of older revisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use sampan_client::{EventType, is_already_exists, is_conflict, is_terminating_namespace, or_absent, slow_start_batch};
use serde_json::json;

use super::claims::{self, Owners};
use super::{Controller, Round, identity};
use crate::SyncError;
use crate::deployment::scaled;
use crate::pods;

/// Whether to go on with the next Pod.
#[derive(PartialEq)]
enum Step {
    Next,
    Wait,
}

impl Controller {
    /// `replaced` counts the Pods ended for an update, as far as it got.
    pub(super) async fn act(&self, round: &Round<'_>, pods: &[Arc<Pod>], replaced: &mut i32) -> Result<(), SyncError> {
        let name = round.set.name_any();
        let first = identity::first_ordinal(round.set);
        let range = first..first.saturating_add(identity::replicas(round.set));
        let mut places: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        let mut condemned: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        for pod in pods {
            if let Some(ordinal) = identity::ordinal(&name, &pod.name_any()) {
                let place = if range.contains(&ordinal) {
                    &mut places
                } else {
                    &mut condemned
                };
                place.insert(ordinal, Arc::clone(pod));
            }
        }
        let ordinals: Vec<i32> = range.collect();
        if self
            .for_all(round, &ordinals, |ordinal| {
                self.tend(round, ordinal, places.get(&ordinal))
            })
            .await?
            == Step::Wait
        {
            return Ok(());
        }
        for (ordinal, pod) in &condemned {
            self.keep_owners(round, *ordinal, pod).await?;
        }
        // The first one in trouble may go although not everybody is well.
        let trouble = places
            .values()
            .chain(condemned.values())
            .find(|pod| !round.is_available(pod))
            .and_then(|pod| pod.metadata.name.clone());
        let ordinals: Vec<i32> = condemned.keys().rev().copied().collect();
        let dismissed = self
            .for_all(round, &ordinals, |ordinal| {
                self.dismiss(round, condemned.get(&ordinal), trouble.as_ref())
            })
            .await?;
        if dismissed == Step::Wait {
            return Ok(());
        }
        self.update(round, &places, replaced).await
    }

    /// Calls `step` for each ordinal: in order until one has to be waited for, or for all at once.
    async fn for_all<F, Fut>(&self, round: &Round<'_>, ordinals: &[i32], step: F) -> Result<Step, SyncError>
    where
        F: Fn(i32) -> Fut,
        Fut: Future<Output = Result<Step, SyncError>>,
    {
        if round.ordered {
            for ordinal in ordinals {
                if step(*ordinal).await? == Step::Wait {
                    return Ok(Step::Wait);
                }
            }
            return Ok(Step::Next);
        }
        let step = &step;
        let (_, error) = slow_start_batch(ordinals.len(), 1, |number| async move {
            match ordinals.get(number) {
                Some(ordinal) => step(*ordinal).await.map(|_| ()),
                None => Ok(()),
            }
        })
        .await;
        error.map_or(Ok(Step::Next), Err)
    }

    /// Makes the Pod of one place what it should be.
    async fn tend(&self, round: &Round<'_>, ordinal: i32, pod: Option<&Arc<Pod>>) -> Result<Step, SyncError> {
        let Some(pod) = pod else {
            return self.create(round, ordinal).await;
        };
        if pods::is_terminal(pod) {
            // However it ended, its place must be filled again.
            if !pods::is_terminating(pod) {
                self.delete(round, pod).await?;
            }
            return Ok(Step::Wait);
        }
        if pods::phase(pod) == "Pending" {
            self.make_claims(round, ordinal, &pod.name_any()).await?;
            self.keep_owners(round, ordinal, pod).await?;
        }
        if round.ordered && !round.is_available(pod) {
            return Ok(Step::Wait);
        }
        self.keep_owners(round, ordinal, pod).await?;
        if !identity::matches(pod) || !identity::has_claims(round.set, pod, ordinal) {
            self.settle(round, ordinal, pod).await?;
        }
        Ok(Step::Next)
    }

    async fn create(&self, round: &Round<'_>, ordinal: i32) -> Result<Step, SyncError> {
        let name = format!("{}-{ordinal}", round.set.name_any());
        if self.awaits_claims(round, ordinal, &name) {
            return Ok(Step::Wait);
        }
        if let Err(error) = self.make_claims(round, ordinal, &name).await {
            self.say(round.set, "Create", &name, Some(&error));
            return Err(error);
        }
        let (revision, template) = if round.keeps_current(ordinal) {
            &round.current
        } else {
            &round.update
        };
        let pod = identity::pod(round.set, template, revision, ordinal);
        match self.pods_api(round.set).create(&PostParams::default(), &pod).await {
            Ok(_) => self.say(round.set, "Create", &name, None),
            // Made by us a moment ago, or in the way until it is gone; its event brings the set back.
            Err(error) if is_already_exists(&error) || is_terminating_namespace(&error) => {}
            Err(error) => {
                let error = error.into();
                self.say(round.set, "Create", &name, Some(&error));
                return Err(error);
            }
        }
        Ok(if round.ordered { Step::Wait } else { Step::Next })
    }

    /// Whether a claim of the place still belongs to the Pod that was there before, and will go with it.
    fn awaits_claims(&self, round: &Round<'_>, ordinal: i32, name: &str) -> bool {
        let (_, when_scaled) = claims::policy(round.set);
        let owners = Owners {
            set: round.set,
            pod: name,
            pod_uid: "",
            scaled_away: false,
        };
        let namespace = round.set.namespace().unwrap_or_default();
        when_scaled
            && identity::claims(round.set, ordinal).iter().any(|(_, claim)| {
                let known = self.claims.get(&namespace, &claim.name_any());
                known.is_some_and(|known| owners.is_stale(&known))
            })
    }

    /// Ends a Pod beyond the set's size, if it is its turn.
    async fn dismiss(
        &self,
        round: &Round<'_>,
        pod: Option<&Arc<Pod>>,
        trouble: Option<&String>,
    ) -> Result<Step, SyncError> {
        let Some(pod) = pod else {
            return Ok(Step::Next);
        };
        if pods::is_terminating(pod) {
            return Ok(Step::Wait);
        }
        if round.ordered && !round.is_available(pod) && pod.metadata.name.as_ref() != trouble {
            return Ok(Step::Wait);
        }
        self.delete(round, pod).await?;
        Ok(Step::Wait)
    }

    /// Replaces Pods of older revisions, from the highest ordinal down to the partition.
    async fn update(
        &self,
        round: &Round<'_>,
        places: &BTreeMap<i32, Arc<Pod>>,
        replaced: &mut i32,
    ) -> Result<(), SyncError> {
        for pod in outdated(round, places) {
            self.delete(round, &pod).await?;
            *replaced += i32::from(identity::revision(&pod) == round.current.0);
        }
        Ok(())
    }

    async fn delete(&self, round: &Round<'_>, pod: &Pod) -> Result<(), SyncError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let name = pod.name_any();
        match or_absent(self.pods_api(round.set).delete(&name, &params).await) {
            Ok(_) => self.say(round.set, "Delete", &name, None),
            // Another Pod has its name already.
            Err(error) if is_conflict(&error) => {}
            Err(error) => {
                let error = error.into();
                self.say(round.set, "Delete", &name, Some(&error));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives a Pod the labels and volumes of its place.
    async fn settle(&self, round: &Round<'_>, ordinal: i32, pod: &Pod) -> Result<(), SyncError> {
        let name = pod.name_any();
        let mut settled = pod.clone();
        identity::settle(round.set, &mut settled, ordinal);
        let outcome = match self.make_claims(round, ordinal, &name).await {
            Ok(()) => {
                let written = self
                    .pods_api(round.set)
                    .replace(&name, &PostParams::default(), &settled)
                    .await;
                or_absent(written).map(|_| ()).map_err(SyncError::from)
            }
            Err(error) => Err(error),
        };
        self.say(round.set, "Update", &name, outcome.as_ref().err());
        outcome
    }

    /// Makes the missing claims of a place.
    async fn make_claims(&self, round: &Round<'_>, ordinal: i32, pod: &str) -> Result<(), SyncError> {
        let set = round.set;
        let api = self.claims_api(set);
        let mut problems = Vec::new();
        for (_, mut claim) in identity::claims(set, ordinal) {
            let name = claim.name_any();
            match self.claims.get(&set.namespace().unwrap_or_default(), &name) {
                Some(known) if known.metadata.deletion_timestamp.is_some() => {
                    problems.push(format!("pvc {name} is being deleted"));
                }
                Some(_) => {}
                None => {
                    let owners = Owners {
                        set,
                        pod,
                        pod_uid: "",
                        scaled_away: false,
                    };
                    claim.metadata.owner_references = owners.changed(&claim);
                    let (reason, kind, text) = match api.create(&PostParams::default(), &claim).await {
                        Ok(_) => {
                            let text = format!(
                                "Create Claim {name} Pod {pod} in StatefulSet {} success",
                                set.name_any()
                            );
                            ("SuccessfulCreate", EventType::Normal, text)
                        }
                        Err(error) if is_already_exists(&error) => continue,
                        Err(error) => {
                            let why = pods::api_message(&error);
                            problems.push(format!("failed to create PVC {name}: {why}"));
                            let text = format!(
                                "Create Claim {name} for Pod {pod} in StatefulSet {} failed error: {why}",
                                set.name_any()
                            );
                            ("FailedCreate", EventType::Warning, text)
                        }
                    };
                    self.context.recorder.event(set, kind, reason, text);
                }
            }
        }
        match problems.as_slice() {
            [] => Ok(()),
            [one] => Err(SyncError::other(one.clone())),
            many => Err(SyncError::other(format!("[{}]", many.join(", ")))),
        }
    }

    /// Brings the owner references of a Pod's claims in line with the retention policy.
    async fn keep_owners(&self, round: &Round<'_>, ordinal: i32, pod: &Pod) -> Result<(), SyncError> {
        let set = round.set;
        let first = identity::first_ordinal(set);
        let range = first..first.saturating_add(identity::replicas(set));
        let name = pod.name_any();
        let owners = Owners {
            set,
            pod: &name,
            pod_uid: pod.metadata.uid.as_deref().unwrap_or_default(),
            scaled_away: !range.contains(&ordinal),
        };
        for (_, claim) in identity::claims(set, ordinal) {
            let claim = claim.name_any();
            let Some(known) = self.claims.get(&set.namespace().unwrap_or_default(), &claim) else {
                continue;
            };
            let Some(references) = owners.changed(&known) else {
                continue;
            };
            if owners.is_contested(&known) {
                let text = format!(
                    "PersistentVolumeClaim {claim} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
                );
                self.context
                    .recorder
                    .event(set, EventType::Warning, "ConflictingController", text);
            }
            let patch = Patch::Merge(json!({"metadata": {
                "uid": known.metadata.uid,
                "resourceVersion": known.metadata.resource_version,
                "ownerReferences": references,
            }}));
            let written = self
                .claims_api(set)
                .patch(&claim, &PatchParams::default(), &patch)
                .await;
            if let Err(error) = or_absent(written) {
                let error = SyncError::other(format!(
                    "could not update claim {claim} for delete policy ownerRefs: {}",
                    pods::api_message(&error)
                ));
                self.say(set, "Update", &name, Some(&error));
                return Err(error);
            }
        }
        Ok(())
    }

    fn pods_api(&self, set: &StatefulSet) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &set.namespace().unwrap_or_default())
    }

    fn claims_api(&self, set: &StatefulSet) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.context.client.clone(), &set.namespace().unwrap_or_default())
    }

    /// What was done to a Pod, or why it could not be.
    fn say(&self, set: &StatefulSet, verb: &str, pod: &str, error: Option<&SyncError>) {
        let name = set.name_any();
        let (kind, reason, text) = match error {
            None => (
                EventType::Normal,
                format!("Successful{verb}"),
                format!("{verb} Pod {pod} in StatefulSet {name} successful"),
            ),
            Some(error) => (
                EventType::Warning,
                format!("Failed{verb}"),
                format!("{verb} Pod {pod} in StatefulSet {name} failed error: {error}"),
            ),
        };
        self.context.recorder.event(set, kind, &reason, text);
    }
}

impl Round<'_> {
    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        let seconds = self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        pods::phase(pod) == "Running"
            && !pods::is_terminating(pod)
            && pods::is_available(pod, seconds.unwrap_or(0), self.now)
    }

    /// Whether a missing Pod comes back as it was before the update under way.
    fn keeps_current(&self, ordinal: i32) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
            return false;
        }
        let first = identity::first_ordinal(self.set);
        let below = match strategy.and_then(|s| s.rolling_update.as_ref()) {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None => {
                let status = self.set.status.as_ref();
                status.and_then(|s| s.current_replicas).unwrap_or(0)
            }
        };
        ordinal < first.saturating_add(below)
    }
}

/// The Pods to replace next. Without `maxUnavailable` the first one from the top that is outdated goes, well or not, but
/// nothing below one that has been replaced and is not available yet: so a broken revision stops, and going on from it
/// to a good one does not.
fn outdated(round: &Round<'_>, places: &BTreeMap<i32, Arc<Pod>>) -> Vec<Arc<Pod>> {
    let strategy = round
        .set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.clone())
        .unwrap_or_default();
    if strategy.type_.as_deref() == Some("OnDelete") {
        return Vec::new();
    }
    let rolling = strategy.rolling_update.unwrap_or_default();
    let lowest = identity::first_ordinal(round.set).saturating_add(rolling.partition.unwrap_or(0));
    let is_old = |pod: &Pod| identity::revision(pod) != round.update.0 && !pods::is_terminating(pod);
    let from_top = || places.range(lowest..).rev().map(|(_, pod)| pod);
    if let Some(most) = rolling.max_unavailable {
        let replicas = identity::replicas(round.set);
        let most = usize::try_from(scaled(&most, replicas, false)).unwrap_or(0).max(1);
        let there = places.values().filter(|pod| round.is_available(pod)).count();
        let away = usize::try_from(replicas).unwrap_or(0).saturating_sub(there);
        let room = most.saturating_sub(away);
        return from_top().filter(|pod| is_old(pod)).take(room).cloned().collect();
    }
    // A place that has just been filled is not in the cache: what is below it waits.
    let last = identity::first_ordinal(round.set).saturating_add(identity::replicas(round.set)) - 1;
    for ordinal in (lowest..=last).rev() {
        match places.get(&ordinal) {
            Some(pod) if is_old(pod) => return vec![Arc::clone(pod)],
            Some(pod) if round.is_available(pod) => {}
            _ => return Vec::new(),
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_next_to_be_replaced() {
        // One letter a Pod from ordinal 0: new, old; capital: available, small: not; '-': not there; x: ending.
        let cases = [
            (json!({"partition": 0}), "OOO", "2"),
            (json!({"partition": 0}), "OON", "1"),
            (json!({"partition": 0}), "OOn", ""),
            (json!({"partition": 0}), "OOo", "2"),
            (json!({"partition": 0}), "OoN", "1"),
            (json!({"partition": 0}), "OO-", ""),
            (json!({"partition": 0}), "OOx", ""),
            (json!({"partition": 2}), "OON", ""),
            (json!({"partition": 1}), "OON", "1"),
            (json!({"partition": 9}), "OOO", ""),
            (json!({"maxUnavailable": 2}), "OOOO", "3,2"),
            (json!({"maxUnavailable": 2}), "OOOn", "2"),
            (json!({"maxUnavailable": 2}), "OOno", ""),
            (json!({"maxUnavailable": "50%", "partition": 3}), "OOOOO", "4,3"),
            (json!({"maxUnavailable": "10%"}), "OOO", "2"),
            (Value::Null, "OON", "1"),
        ];
        for (rolling, pods, expected) in cases {
            let set: StatefulSet = serde_json::from_value(json!({
                "metadata": {"name": "s"},
                "spec": {"replicas": pods.len(), "selector": {}, "template": {}, "serviceName": "s",
                    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}},
            }))
            .unwrap();
            let places: BTreeMap<i32, Arc<Pod>> = pods
                .chars()
                .enumerate()
                .filter(|(_, letter)| *letter != '-')
                .map(|(ordinal, letter)| {
                    let revision = if letter.eq_ignore_ascii_case(&'n') {
                        "new"
                    } else {
                        "old"
                    };
                    let ready = if letter.is_uppercase() { "True" } else { "False" };
                    let mut pod: Pod = serde_json::from_value(json!({
                        "metadata": {"name": format!("s-{ordinal}"), "labels": {"controller-revision-hash": revision}},
                        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
                    }))
                    .unwrap();
                    if letter == 'x' {
                        pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
                    }
                    (i32::try_from(ordinal).unwrap(), Arc::new(pod))
                })
                .collect();
            let round = Round {
                set: &set,
                now: jiff::Timestamp::UNIX_EPOCH,
                ordered: false,
                current: ("old".into(), Default::default()),
                update: ("new".into(), Default::default()),
            };
            let got: Vec<String> = outdated(&round, &places)
                .iter()
                .map(|pod| pod.name_any().replace("s-", ""))
                .collect();
            assert_eq!(got.join(","), expected, "{pods} {rolling}");
        }
    }
}
