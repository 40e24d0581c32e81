//! Deployments: replica sets of changing templates, rolled from one to the next.
//!
//! A sync takes one step: it finds or makes the replica set of the current template, lets the new set grow or the old
//! ones shrink as the strategy allows, and writes what it sees into the status. The next step follows the replica sets'
//! own changes. Every write of a replica set carries the version it was decided on, so a stale cache ends in a conflict
//! and another sync, never in a wrong size.
//!
//! Differs from upstream: annotations, conditions and counts of the deployment are written together, once a sync.

mod revision;
mod rolling;
mod status;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use sampan_client::owner::{self, Claimer};
use sampan_client::{
    Change, EventType, Informer, Key, WorkQueue, is_already_exists, is_terminating_namespace, or_absent,
};

use crate::pods::{self, BY_OWNER};
use crate::{Context, SyncError};

pub(crate) use revision::hash;
pub(crate) use rolling::scaled;

struct Controller {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

pub(crate) fn start(context: Context) {
    let deployments = context.informers.of::<Deployment>();
    let sets = context.informers.of::<ReplicaSet>();
    let pods = context.informers.of::<Pod>();
    sets.add_index(BY_OWNER, pods::owner_keys);
    pods.add_index(BY_OWNER, pods::owner_keys);
    let queue: WorkQueue<Key> = WorkQueue::default();
    let controller = Arc::new(Controller {
        context: context.clone(),
        deployments: deployments.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
    });
    let changed = queue.clone();
    deployments.on_change(move |change| changed.add(Key::of(change.object().as_ref())));
    let (changed, this) = (queue.clone(), Arc::clone(&controller));
    sets.on_change(move |change| {
        for set in change.old().into_iter().chain([change.object()]) {
            this.wake_owner(&changed, set);
        }
    });
    let (changed, this) = (queue.clone(), Arc::clone(&controller));
    pods.on_change(move |change| {
        // Only Recreate waits for Pods; everything else follows the replica sets' status.
        let pod = change.object();
        if (matches!(change, Change::Deleted(_)) || pods::is_terminal(pod))
            && let Some(name) = owner::controller_name::<ReplicaSet>(&pod.metadata)
            && let Some(set) = this.sets.get(&pod.namespace().unwrap_or_default(), name)
            && let Some(deployment) = this.owner_of(&set)
            && !rolling::is_rolling(&deployment)
        {
            changed.add(Key::of(deployment.as_ref()));
        }
    });
    let ready = async move {
        deployments.synced().await;
        sets.synced().await;
        pods.synced().await;
    };
    let again = queue.clone();
    context.run(&queue, ready, move |key| {
        let (controller, queue) = (Arc::clone(&controller), again.clone());
        async move { controller.sync(&key, &queue).await }
    });
}

/// A deployment in the middle of a sync.
struct Rollout {
    /// A working copy: status conditions and annotations collect here until the end of the sync.
    deployment: Deployment,
    new: Option<ReplicaSet>,
    /// By age, oldest first.
    old: Vec<ReplicaSet>,
}

impl Controller {
    fn owner_of(&self, set: &ReplicaSet) -> Option<Arc<Deployment>> {
        let name = owner::controller_name::<Deployment>(&set.metadata)?;
        let deployment = self.deployments.get(&set.namespace().unwrap_or_default(), name)?;
        let uid = deployment.metadata.uid.as_deref()?;
        owner::is_controlled_by(&set.metadata, uid).then_some(deployment)
    }

    fn wake_owner(&self, queue: &WorkQueue<Key>, set: &ReplicaSet) {
        if let Some(deployment) = self.owner_of(set) {
            queue.add(Key::of(deployment.as_ref()));
        } else if owner::controller_of(&set.metadata).is_none() {
            let namespace = set.namespace().unwrap_or_default();
            for deployment in self.deployments.list_namespace(&namespace) {
                if owner::selects(selector(&deployment).as_ref(), &set.metadata) {
                    queue.add(Key::of(deployment.as_ref()));
                }
            }
        }
    }

    async fn sync(&self, key: &Key, queue: &WorkQueue<Key>) -> Result<(), SyncError> {
        let Some(original) = self.deployments.get_key(key) else {
            return Ok(());
        };
        let Some(selector) = selector(&original) else {
            self.context.recorder.event(
                original.as_ref(),
                EventType::Warning,
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return self.note_seen(&original).await;
        };
        let sets = self.claim(&original, &selector).await?;
        let deployment = Deployment::clone(&original);
        let (new, old) = revision::split(&deployment, sets);
        let mut rollout = Rollout { deployment, new, old };
        if original.metadata.deletion_timestamp.is_some() {
            return self.finish(&original, &mut rollout, false, queue).await;
        }
        self.note_pause(&mut rollout);
        let paused = original.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        let rollback = revision::rollback_to(&original);
        if let Some(revision) = rollback.filter(|_| !paused) {
            return self.roll_back(&original, &mut rollout, revision).await;
        }
        if paused || is_scaling(&rollout) {
            self.sync_new(&mut rollout, false).await?;
            self.scale(&mut rollout).await?;
            if paused && rollback.is_none() {
                self.clean_up(&rollout).await?;
            }
            return self.finish(&original, &mut rollout, false, queue).await;
        }
        let stepped = if rolling::is_rolling(&original) {
            self.roll(&mut rollout).await
        } else {
            self.recreate(&mut rollout).await
        };
        match stepped {
            Ok(()) => self.finish(&original, &mut rollout, true, queue).await,
            Err(error) => {
                // A failure to make the new set shows in the conditions.
                self.finish(&original, &mut rollout, true, queue).await?;
                Err(error)
            }
        }
    }

    /// Only says that this generation was looked at.
    async fn note_seen(&self, deployment: &Deployment) -> Result<(), SyncError> {
        let generation = deployment.metadata.generation;
        let seen = deployment.status.as_ref().and_then(|status| status.observed_generation);
        if seen >= generation {
            return Ok(());
        }
        let mut changed = deployment.clone();
        changed.status.get_or_insert_default().observed_generation = generation;
        let api: Api<Deployment> =
            Api::namespaced(self.context.client.clone(), &deployment.namespace().unwrap_or_default());
        let written = api
            .replace_status(&deployment.name_any(), &PostParams::default(), &changed)
            .await;
        or_absent(written)?;
        Ok(())
    }

    /// Gives the deployment the template of an earlier revision, and takes the wish for it off.
    async fn roll_back(&self, original: &Deployment, rollout: &mut Rollout, wanted: i64) -> Result<(), SyncError> {
        self.sync_new(rollout, true).await?;
        let mut revisions: Vec<i64> = rollout.old.iter().chain(&rollout.new).map(revision::revision).collect();
        revisions.sort_unstable();
        let last = revisions.iter().rev().nth(1).copied().unwrap_or(0);
        let target = if wanted == 0 { last } else { wanted };
        let mut sets = rollout.old.iter().chain(&rollout.new);
        let set = sets.find(|set| target != 0 && revision::revision(set) == target);
        let mut changed = original.clone();
        let name = original.name_any();
        let template = original.spec.as_ref().map(|spec| &spec.template);
        let (kind, reason, message) = match set {
            None if target == 0 => (
                EventType::Warning,
                "DeploymentRollbackRevisionNotFound",
                "Unable to find last revision.".to_owned(),
            ),
            None => (
                EventType::Warning,
                "DeploymentRollbackRevisionNotFound",
                "Unable to find the revision to rollback to.".to_owned(),
            ),
            Some(set) => {
                let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
                if matches!((own, template), (Some(a), Some(b)) if revision::same_template(a, b)) {
                    let message =
                        format!("The rollback revision contains the same template as current deployment {name:?}");
                    (EventType::Warning, "DeploymentRollbackTemplateUnchanged", message)
                } else {
                    revision::return_to(&mut changed, set);
                    let message = format!("Rolled back deployment {name:?} to revision {target}");
                    (EventType::Normal, "DeploymentRollback", message)
                }
            }
        };
        changed
            .metadata
            .annotations
            .get_or_insert_default()
            .remove(revision::ROLLBACK);
        let api: Api<Deployment> =
            Api::namespaced(self.context.client.clone(), &original.namespace().unwrap_or_default());
        or_absent(api.replace(&name, &PostParams::default(), &changed).await)?;
        self.context.recorder.event(original, kind, reason, message);
        Ok(())
    }

    async fn claim(
        &self,
        deployment: &Deployment,
        selector: &kube::core::Selector,
    ) -> Result<Vec<ReplicaSet>, SyncError> {
        let namespace = deployment.namespace().unwrap_or_default();
        let uid = deployment.uid().unwrap_or_default();
        let mut candidates = self.sets.by_index(BY_OWNER, &uid);
        candidates.extend(self.sets.by_index(BY_OWNER, &pods::orphans(&namespace)));
        let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &namespace);
        let claimer = Claimer {
            api: &api,
            reference: owner::controller_ref(deployment),
            deleting: deployment.metadata.deletion_timestamp.is_some(),
            selector: Some(selector),
            also: &|_| true,
            finalizers: &[],
        };
        let client = self.context.client.clone();
        let claimed = claimer
            .claim(candidates, || async {
                let api: Api<Deployment> = Api::namespaced(client, &namespace);
                let fresh = or_absent(api.get(&deployment.name_any()).await)?;
                Ok(fresh.is_some_and(|fresh| {
                    fresh.metadata.uid == deployment.metadata.uid && fresh.metadata.deletion_timestamp.is_none()
                }))
            })
            .await?;
        Ok(claimed.iter().map(|set| ReplicaSet::clone(set)).collect())
    }

    /// Pausing stops the clock of the progress deadline, resuming starts it again.
    fn note_pause(&self, rollout: &mut Rollout) {
        let paused = rollout.deployment.spec.as_ref().and_then(|s| s.paused) == Some(true);
        if status::progress_deadline(&rollout.deployment).is_none() {
            return;
        }
        let current = rollout.deployment.status.get_or_insert_default();
        let reason = status::condition(current, status::PROGRESSING)
            .and_then(|known| known.reason.clone())
            .unwrap_or_default();
        let (reason, message) = match (paused, reason.as_str()) {
            (_, status::TIMED_OUT) => return,
            (true, "DeploymentPaused") => return,
            (true, _) => ("DeploymentPaused", "Deployment is paused"),
            (false, "DeploymentPaused") => ("DeploymentResumed", "Deployment is resumed"),
            (false, _) => return,
        };
        let now = self.context.clock.now();
        status::set_condition(current, status::PROGRESSING, "Unknown", reason, message.into(), now);
    }

    /// Brings the revision of the new set up to date; makes the set when there is none and `create` says so.
    async fn sync_new(&self, rollout: &mut Rollout, create: bool) -> Result<(), SyncError> {
        let newest = rollout.old.iter().map(revision::revision).max().unwrap_or(0);
        let now = self.context.clock.now();
        if let Some(mut set) = rollout.new.take() {
            let annotations = set.metadata.annotations.get_or_insert_default();
            let mut changed = revision::update_new(annotations, &rollout.deployment, newest + 1, true);
            let wanted = rollout.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
            if let Some(spec) = &mut set.spec
                && spec.min_ready_seconds.unwrap_or(0) != wanted.unwrap_or(0)
            {
                spec.min_ready_seconds = wanted;
                changed = true;
            }
            if changed {
                set = self.replace(&set).await?;
            }
            self.note_revision(rollout, &set);
            let has_deadline = status::progress_deadline(&rollout.deployment).is_some();
            let current = rollout.deployment.status.get_or_insert_default();
            if has_deadline && status::condition(current, status::PROGRESSING).is_none() {
                let message = format!("Found new replica set {:?}", set.name_any());
                status::set_condition(current, status::PROGRESSING, "True", "FoundNewReplicaSet", message, now);
            }
            rollout.new = Some(set);
            return Ok(());
        }
        if !create {
            return Ok(());
        }
        let set = self.build(rollout, newest + 1)?;
        let name = set.name_any();
        let api: Api<ReplicaSet> = Api::namespaced(
            self.context.client.clone(),
            &rollout.deployment.namespace().unwrap_or_default(),
        );
        let has_deadline = status::progress_deadline(&rollout.deployment).is_some();
        match api.create(&PostParams::default(), &set).await {
            Ok(made) => {
                let size = rolling::replicas(&made);
                if size > 0 {
                    self.say_scaled(&rollout.deployment, &made, 0, size);
                }
                self.note_revision(rollout, &made);
                if has_deadline {
                    let message = format!("Created new replica set {name:?}");
                    let current = rollout.deployment.status.get_or_insert_default();
                    status::set_condition(
                        current,
                        status::PROGRESSING,
                        "True",
                        "NewReplicaSetCreated",
                        message,
                        now,
                    );
                }
                rollout.new = Some(made);
                Ok(())
            }
            Err(error) if is_already_exists(&error) => self.resolve_collision(rollout, &api, &name).await,
            Err(error) if is_terminating_namespace(&error) => Ok(()),
            Err(error) => {
                if has_deadline {
                    let message = format!(
                        "Failed to create new replica set {name:?}: {}",
                        pods::api_message(&error)
                    );
                    let current = rollout.deployment.status.get_or_insert_default();
                    status::set_condition(
                        current,
                        status::PROGRESSING,
                        "False",
                        "ReplicaSetCreateError",
                        message.clone(),
                        now,
                    );
                    self.context.recorder.event(
                        &rollout.deployment,
                        EventType::Warning,
                        "ReplicaSetCreateError",
                        message,
                    );
                }
                Err(error.into())
            }
        }
    }

    /// A set of the wanted name exists: ours with the same template (the cache was behind), or a collision of hashes.
    async fn resolve_collision(
        &self,
        rollout: &mut Rollout,
        api: &Api<ReplicaSet>,
        name: &str,
    ) -> Result<(), SyncError> {
        let found = api.get(name).await?;
        let uid = rollout.deployment.uid().unwrap_or_default();
        let template = rollout.deployment.spec.as_ref().map(|spec| &spec.template);
        let own = found.spec.as_ref().and_then(|spec| spec.template.as_ref());
        let ours = owner::is_controlled_by(&found.metadata, &uid)
            && matches!((own, template), (Some(a), Some(b)) if revision::same_template(a, b));
        if ours {
            rollout.new = Some(found);
            return Ok(());
        }
        let current = rollout.deployment.status.get_or_insert_default();
        let collisions = current.collision_count.unwrap_or(0);
        current.collision_count = Some(collisions.saturating_add(1));
        Err(SyncError::other(format!(
            "the name {name} is taken by another replica set, trying another hash"
        )))
    }

    fn build(&self, rollout: &Rollout, revision: i64) -> Result<ReplicaSet, SyncError> {
        let deployment = &rollout.deployment;
        let spec = deployment.spec.clone().unwrap_or_default();
        let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
        let hash = revision::hash(&spec.template, collisions).map_err(|error| SyncError::other(error.to_string()))?;
        let label = (revision::HASH_LABEL.to_owned(), hash.clone());
        let mut template = spec.template;
        let labels = {
            let meta = template.metadata.get_or_insert_default();
            let labels = meta.labels.get_or_insert_default();
            labels.insert(label.0.clone(), label.1.clone());
            labels.clone()
        };
        let mut selector: LabelSelector = spec.selector;
        selector.match_labels.get_or_insert_default().insert(label.0, label.1);
        let total: i32 = rollout.old.iter().map(rolling::replicas).sum();
        let mut annotations = Default::default();
        revision::update_new(&mut annotations, deployment, revision, false);
        let mut prefix = deployment.name_any();
        prefix.truncate(252_usize.saturating_sub(hash.len()));
        Ok(ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{prefix}-{hash}")),
                namespace: deployment.namespace(),
                owner_references: Some(vec![owner::controller_ref(deployment)]),
                labels: Some(labels),
                annotations: Some(annotations),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(rolling::new_size(deployment, total, 0)),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        })
    }

    /// The deployment carries the revision of its new set.
    fn note_revision(&self, rollout: &mut Rollout, set: &ReplicaSet) {
        let revision = revision::revision(set).to_string();
        rollout
            .deployment
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(revision::REVISION.into(), revision);
    }

    async fn roll(&self, rollout: &mut Rollout) -> Result<(), SyncError> {
        self.sync_new(rollout, true).await?;
        let Some(new) = &rollout.new else {
            return Ok(());
        };
        let (size, wanted) = (rolling::replicas(new), rolling::wanted(&rollout.deployment));
        let total: i32 = size + rollout.old.iter().map(rolling::replicas).sum::<i32>();
        let next = if size > wanted {
            wanted
        } else {
            rolling::new_size(&rollout.deployment, total, size)
        };
        if next != size {
            rollout.new = Some(self.resize(&rollout.deployment, new, next).await?);
            return Ok(());
        }
        let counts = |set: &ReplicaSet| (rolling::replicas(set), rolling::available(set));
        let old: Vec<(i32, i32)> = rollout.old.iter().map(counts).collect();
        let sizes = rolling::shrink_old(&rollout.deployment, &old, counts(new));
        let mut shrunk = false;
        for (set, size) in rollout.old.iter_mut().zip(sizes) {
            if rolling::replicas(set) != size {
                *set = self.resize(&rollout.deployment, set, size).await?;
                shrunk = true;
            }
        }
        if !shrunk {
            self.clean_up_if_complete(rollout).await?;
        }
        Ok(())
    }

    async fn recreate(&self, rollout: &mut Rollout) -> Result<(), SyncError> {
        self.sync_new(rollout, false).await?;
        let mut shrunk = false;
        for set in &mut rollout.old {
            if rolling::replicas(set) != 0 {
                *set = self.resize(&rollout.deployment, set, 0).await?;
                shrunk = true;
            }
        }
        if shrunk || self.old_pods_run(rollout) {
            return Ok(());
        }
        if rollout.new.is_none() {
            self.sync_new(rollout, true).await?;
        }
        let wanted = rolling::wanted(&rollout.deployment);
        if let Some(new) = &rollout.new
            && rolling::replicas(new) != wanted
        {
            rollout.new = Some(self.resize(&rollout.deployment, new, wanted).await?);
        }
        self.clean_up_if_complete(rollout).await
    }

    fn old_pods_run(&self, rollout: &Rollout) -> bool {
        rollout.old.iter().any(|set| {
            set.status.as_ref().is_some_and(|status| status.replicas > 0)
                || self
                    .pods
                    .by_index(BY_OWNER, &set.uid().unwrap_or_default())
                    .iter()
                    .any(|pod| !pods::is_terminal(pod))
        })
    }

    /// Gives the deployment its new size without moving the rollout.
    async fn scale(&self, rollout: &mut Rollout) -> Result<(), SyncError> {
        let wanted = rolling::wanted(&rollout.deployment);
        let active = |set: &&ReplicaSet| rolling::replicas(set) > 0;
        let count = rollout.old.iter().chain(&rollout.new).filter(active).count();
        if count <= 1 {
            // The one that is active; when none is, the new one, else the latest.
            let old = rollout.old.iter().rposition(|set| count == 0 || active(&set));
            let new_is_it = rollout.new.as_ref().is_some_and(|set| count == 0 || active(&set));
            let target = if new_is_it {
                rollout.new.as_mut()
            } else {
                old.and_then(|place| rollout.old.get_mut(place))
            };
            if let Some(set) = target {
                *set = self.resize(&rollout.deployment, set, wanted).await?;
            }
            return Ok(());
        }
        if rollout
            .new
            .as_ref()
            .is_some_and(|new| is_saturated(&rollout.deployment, new))
        {
            for set in &mut rollout.old {
                if rolling::replicas(set) > 0 {
                    *set = self.resize(&rollout.deployment, set, 0).await?;
                }
            }
            return Ok(());
        }
        if rolling::is_rolling(&rollout.deployment) {
            let mut sets: Vec<&mut ReplicaSet> = rollout
                .old
                .iter_mut()
                .chain(&mut rollout.new)
                .filter(|set| rolling::replicas(set) > 0)
                .collect();
            let shared: Vec<&ReplicaSet> = sets.iter().map(|set| &**set).collect();
            let sizes = rolling::proportional(&rollout.deployment, &shared);
            for (set, size) in sets.iter_mut().zip(sizes) {
                **set = self.resize(&rollout.deployment, set, size).await?;
            }
        } else {
            // Sizes are the strategy's business; only note that this size of the deployment has been seen.
            for set in rollout.old.iter_mut().chain(&mut rollout.new) {
                let size = rolling::replicas(set);
                if size > 0 {
                    *set = self.resize(&rollout.deployment, set, size).await?;
                }
            }
        }
        Ok(())
    }

    /// Writes the size of a set and for which size of the deployment it was chosen.
    async fn resize(&self, deployment: &Deployment, set: &ReplicaSet, size: i32) -> Result<ReplicaSet, SyncError> {
        let before = rolling::replicas(set);
        let mut changed = set.clone();
        let annotated = revision::set_replicas(changed.metadata.annotations.get_or_insert_default(), deployment);
        if before == size && !annotated {
            return Ok(changed);
        }
        if let Some(spec) = &mut changed.spec {
            spec.replicas = Some(size);
        }
        let written = self.replace(&changed).await?;
        if before != size {
            self.say_scaled(deployment, &written, before, size);
        }
        Ok(written)
    }

    async fn replace(&self, set: &ReplicaSet) -> Result<ReplicaSet, SyncError> {
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &namespace);
        Ok(api.replace(&set.name_any(), &PostParams::default(), set).await?)
    }

    fn say_scaled(&self, deployment: &Deployment, set: &ReplicaSet, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        self.context.recorder.event(
            deployment,
            EventType::Normal,
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {} from {from} to {to}", set.name_any()),
        );
    }

    async fn clean_up_if_complete(&self, rollout: &Rollout) -> Result<(), SyncError> {
        let complete = rollout
            .deployment
            .status
            .as_ref()
            .is_some_and(|s| status::is_complete(&rollout.deployment, s));
        if complete {
            self.clean_up(rollout).await?;
        }
        Ok(())
    }

    /// Deletes the oldest empty sets beyond the history limit.
    async fn clean_up(&self, rollout: &Rollout) -> Result<(), SyncError> {
        let spec = rollout.deployment.spec.as_ref();
        let Some(limit) = spec.and_then(|spec| spec.revision_history_limit) else {
            return Ok(());
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut sets: Vec<&ReplicaSet> = rollout
            .old
            .iter()
            .filter(|set| set.metadata.deletion_timestamp.is_none())
            .collect();
        sets.sort_by_key(|set| revision::revision(set));
        let surplus = sets.len().saturating_sub(limit);
        for set in sets.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let settled = status.observed_generation >= set.metadata.generation;
            if status.replicas != 0 || rolling::replicas(set) != 0 || !settled {
                continue;
            }
            let namespace = set.namespace().unwrap_or_default();
            let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &namespace);
            or_absent(api.delete(&set.name_any(), &DeleteParams::background()).await)?;
        }
        Ok(())
    }

    /// Writes status and revision if they differ from what is stored.
    async fn finish(
        &self,
        original: &Deployment,
        rollout: &mut Rollout,
        rolling: bool,
        queue: &WorkQueue<Key>,
    ) -> Result<(), SyncError> {
        let now = self.context.clock.now();
        let new = rollout.new.as_ref();
        let status = if rolling {
            status::rollout(&rollout.deployment, &rollout.old, new, now)
        } else {
            status::calculate(&rollout.deployment, &rollout.old, new, now)
        };
        if rolling && let Some(wait) = status::next_check(&rollout.deployment, &status, now) {
            queue.add_after(Key::of(original), pods::delay(wait));
        }
        let annotations = &rollout.deployment.metadata.annotations;
        let unchanged = original.status.as_ref() == Some(&status)
            && original.metadata.annotations.clone().unwrap_or_default() == annotations.clone().unwrap_or_default();
        if unchanged {
            return Ok(());
        }
        rollout.deployment.status = Some(status);
        let namespace = original.namespace().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.context.client.clone(), &namespace);
        let written = api
            .replace_status(&original.name_any(), &PostParams::default(), &rollout.deployment)
            .await;
        or_absent(written)?;
        Ok(())
    }
}

fn selector(deployment: &Deployment) -> Option<kube::core::Selector> {
    owner::selector(deployment.spec.as_ref().map(|spec| &spec.selector))
}

/// Whether the deployment's size has changed since its active sets were sized.
fn is_scaling(rollout: &Rollout) -> bool {
    let wanted = rolling::wanted(&rollout.deployment);
    rollout
        .old
        .iter()
        .chain(&rollout.new)
        .filter(|set| rolling::replicas(set) > 0)
        .any(|set| revision::desired_replicas(set).is_some_and(|desired| desired != wanted))
}

fn is_saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    let wanted = rolling::wanted(deployment);
    rolling::replicas(new) == wanted
        && revision::desired_replicas(new) == Some(wanted)
        && rolling::available(new) == wanted
}

#[cfg(test)]
mod tests;
