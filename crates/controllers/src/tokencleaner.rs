//! Removes tokens that were once made for service accounts automatically and that nobody uses any more.
//!
//! Such a token stands in a Secret that its account refers to. One that is older than the period, was not used for that
//! long, and is in no Pod, is first marked as invalid; after the period again it is deleted. Nothing happens before the
//! use of tokens has been followed for the whole period: since when stands in a ConfigMap that the API server keeps.
//!
//! Differs from upstream: each Secret has its own time at which it is looked at, instead of a round over all once a day.

use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp, ToSpan};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use sampan_client::{Change, Informer, Key, Selection, WorkQueue, is_conflict, or_absent};
use serde_json::json;

use crate::{Context, SyncError, pods};

const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const DAY: SignedDuration = SignedDuration::from_hours(24);

struct Cleaner {
    context: Context,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    pods: Informer<Pod>,
    queue: WorkQueue<Key>,
}

pub(crate) fn start(context: Context) {
    let only = Selection::fields(format!("type={SECRET_TYPE}"));
    let secrets = context.informers.with::<Secret>(only);
    let accounts = context.informers.of::<ServiceAccount>();
    let pods = context.informers.of::<Pod>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    secrets.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            changed.add(Key::of(change.object().as_ref()));
        }
    });
    let cleaner = Arc::new(Cleaner {
        context: context.clone(),
        secrets: secrets.clone(),
        accounts: accounts.clone(),
        pods: pods.clone(),
        queue: queue.clone(),
    });
    let ready = async move {
        secrets.synced().await;
        accounts.synced().await;
        pods.synced().await;
    };
    context.run(&queue, ready, move |key| {
        let cleaner = Arc::clone(&cleaner);
        async move { cleaner.sync(&key).await }
    });
}

/// What becomes of a Secret that was made automatically and is in no Pod.
#[derive(Debug, PartialEq)]
enum Verdict {
    Later(SignedDuration),
    Invalidate,
    Delete,
}

fn date(text: Option<&String>) -> Option<Date> {
    text?.parse().ok()
}

fn midnight(date: Date) -> Option<Timestamp> {
    let zoned = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(zoned.timestamp())
}

/// How long from `now` until `period` has passed since `begun`.
fn until(begun: Timestamp, period: SignedDuration, now: Timestamp) -> SignedDuration {
    period - now.duration_since(begun)
}

/// `None`: its labels cannot be read.
fn verdict(secret: &Secret, tracked: Date, period: SignedDuration, now: Timestamp) -> Option<Verdict> {
    let labels = secret.labels();
    let mut waits = vec![until(midnight(tracked.checked_add(1.day()).ok()?)?, period, now)];
    if let Some(created) = secret.creation_timestamp() {
        waits.push(until(created.0, period, now));
    }
    // A day that is named is over a day later.
    let after = |day: Date| Some(until(midnight(day)?, period + DAY, now));
    if let Some(used) = labels.get(LAST_USED) {
        waits.push(after(date(Some(used))?)?);
    }
    let invalid = date(labels.get(INVALID_SINCE));
    let longest = waits.into_iter().max().filter(SignedDuration::is_positive);
    Some(match (longest, invalid) {
        (Some(wait), _) => Verdict::Later(wait),
        (None, None) => Verdict::Invalidate,
        (None, Some(since)) => match after(since)? {
            wait if wait.is_positive() => Verdict::Later(wait),
            _ => Verdict::Delete,
        },
    })
}

/// Whether a Pod needs a Secret: in volumes, variables, or to pull images.
fn mounts(pod: &Pod, secret: &str) -> bool {
    // Whoever names it anywhere in its spec keeps it; a name that means something else only keeps it for longer.
    let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
    names(&spec, secret)
}

fn names(value: &serde_json::Value, text: &str) -> bool {
    match value {
        serde_json::Value::String(found) => found == text,
        serde_json::Value::Array(items) => items.iter().any(|item| names(item, text)),
        serde_json::Value::Object(fields) => fields.values().any(|field| names(field, text)),
        _ => false,
    }
}

impl Cleaner {
    fn account(&self, secret: &Secret) -> Option<Arc<ServiceAccount>> {
        let annotations = secret.annotations();
        let namespace = secret.namespace()?;
        let account = self.accounts.get(&namespace, annotations.get(ACCOUNT)?)?;
        let same = annotations
            .get(ACCOUNT_UID)
            .is_none_or(|uid| uid.is_empty() || Some(uid) == account.metadata.uid.as_ref());
        same.then_some(account)
    }

    async fn tracked_since(&self) -> Result<Option<Date>, SyncError> {
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), "kube-system");
        let map = or_absent(api.get(TRACKING).await)?;
        let since = map.and_then(|map| map.data?.remove("since"));
        Ok(date(since.as_ref()))
    }

    fn later(&self, key: &Key, wait: SignedDuration) {
        // Looked at again at least once a month: clocks are set, and timers are not made for years.
        let wait = pods::delay(wait).min(Duration::from_secs(30 * 86_400));
        self.queue.add_after(key.clone(), wait);
    }

    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(secret) = self.secrets.get_key(key) else {
            return Ok(());
        };
        if secret.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let period = self.context.config.token_clean_up_period;
        let period = SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX);
        let now = self.context.clock.now();
        // Young ones need no look at anything else.
        let young = secret.creation_timestamp().map(|created| until(created.0, period, now));
        if let Some(wait) = young.filter(SignedDuration::is_positive) {
            self.later(key, wait);
            return Ok(());
        }
        let refers = |account: &ServiceAccount| {
            let mut secrets = account.secrets.iter().flatten();
            secrets.any(|reference| reference.name.as_deref() == Some(&key.name))
        };
        let automatic = self.account(&secret).is_some_and(|account| refers(&account));
        let used = || {
            self.pods
                .list_namespace(&key.namespace)
                .iter()
                .any(|pod| mounts(pod, &key.name))
        };
        if !automatic || used() {
            self.later(key, DAY);
            return Ok(());
        }
        let Some(tracked) = self.tracked_since().await? else {
            self.later(key, DAY);
            return Ok(());
        };
        let api: Api<Secret> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match verdict(&secret, tracked, period, now) {
            None => {}
            Some(Verdict::Later(wait)) => self.later(key, wait),
            Some(Verdict::Invalidate) => {
                let today = now.to_zoned(jiff::tz::TimeZone::UTC).date().to_string();
                let patch = json!({"metadata": {"uid": secret.metadata.uid, "labels": {INVALID_SINCE: today}}});
                let written = api
                    .patch_metadata(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await;
                or_absent(written)?;
            }
            Some(Verdict::Delete) => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        resource_version: secret.metadata.resource_version.clone(),
                        uid: None,
                    }),
                    ..DeleteParams::default()
                };
                match api.delete(&key.name, &params).await {
                    Err(error) if is_conflict(&error) => self.later(key, DAY),
                    other => {
                        or_absent(other)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;

    fn secret(name: &str, labels: &[(&str, &str)], created: Timestamp) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.name = Some(name.into());
        secret.metadata.namespace = Some("ns".into());
        secret.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        secret.metadata.labels = Some(labels.collect());
        secret.metadata.annotations = Some([(ACCOUNT.to_owned(), "robot".to_owned())].into());
        secret.type_ = Some(SECRET_TYPE.into());
        secret
    }

    #[test]
    fn old_and_unused_tokens_go_in_two_steps() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = time("2026-06-30T12:00:00Z");
        let old = time("2020-01-01T00:00:00Z");
        let tracked: Date = "2025-01-01".parse().unwrap();
        let period = SignedDuration::from_hours(100 * 24);
        let hours = SignedDuration::from_hours;
        type Case = (
            &'static str,
            &'static [(&'static str, &'static str)],
            Timestamp,
            Option<Verdict>,
        );
        let cases: [Case; 8] = [
            ("never used", &[], old, Some(Verdict::Invalidate)),
            (
                "young",
                &[],
                time("2026-06-30T00:00:00Z"),
                Some(Verdict::Later(hours(2400 - 12))),
            ),
            (
                "used lately",
                &[(LAST_USED, "2026-06-29")],
                old,
                Some(Verdict::Later(hours(2400 - 12))),
            ),
            (
                "used long ago",
                &[(LAST_USED, "2025-06-29")],
                old,
                Some(Verdict::Invalidate),
            ),
            ("nonsense", &[(LAST_USED, "yesterday")], old, None),
            (
                "just invalid",
                &[(INVALID_SINCE, "2026-06-30")],
                old,
                Some(Verdict::Later(hours(2424 - 12))),
            ),
            (
                "long invalid",
                &[(INVALID_SINCE, "2026-01-01")],
                old,
                Some(Verdict::Delete),
            ),
            ("marked badly", &[(INVALID_SINCE, "x")], old, Some(Verdict::Invalidate)),
        ];
        for (what, labels, created, expected) in cases {
            assert_eq!(
                verdict(&secret("s", labels, created), tracked, period, now),
                expected,
                "{what}"
            );
        }
        let lately: Date = "2026-06-29".parse().unwrap();
        assert_eq!(
            verdict(&secret("s", &[], old), lately, period, now),
            Some(Verdict::Later(hours(2400 - 12)))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_was_made_automatically_and_is_in_no_pod() {
        let cluster = Cluster::with(
            Default::default(),
            &["legacy-serviceaccount-token-cleaner-controller"],
            |config| config.token_clean_up_period = Duration::from_secs(10 * 86_400),
        );
        let api = &cluster.api;
        let account: ServiceAccount = serde_json::from_value(json!({
            "metadata": {"name": "robot", "namespace": "ns"},
            "secrets": [{"name": "forgotten"}, {"name": "mounted"}],
        }))
        .unwrap();
        api.create(&account);
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": TRACKING, "namespace": "kube-system"}, "data": {"since": "2020-01-01"},
        }))
        .unwrap();
        api.create(&map);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [], "volumes": [{"name": "v", "secret": {"secretName": "mounted"}}]},
        }))
        .unwrap();
        api.create(&pod);
        let old = Timestamp::from_second(1_500_000_000).unwrap();
        for name in ["forgotten", "mounted", "by-hand"] {
            api.create(&secret(name, &[], old));
        }
        tokio::time::sleep(Duration::from_secs(2 * 86_400)).await;
        let marked = |name: &str| {
            api.get::<Secret>("ns", name)
                .unwrap()
                .labels()
                .contains_key(INVALID_SINCE)
        };
        assert!(marked("forgotten") && !marked("mounted") && !marked("by-hand"));
        tokio::time::sleep(Duration::from_secs(10 * 86_400)).await;
        assert!(api.get::<Secret>("ns", "forgotten").is_none());
        assert_eq!(api.all::<Secret>().len(), 2);
    }
}
