//! Whether quotas have room for an object. Pure.

use std::sync::Arc;

use bytes::Bytes;
use sampan_api::Object;
use sampan_api::meta;
use sampan_api::quota::amounts::{self, Amounts};
use sampan_api::quota::{self, Evaluator, Scope};
use sampan_store::Revision;

/// A quota as a round goes on.
pub(super) struct Quota {
    pub(super) key: Arc<str>,
    pub(super) revision: Revision,
    pub(super) name: String,
    object: Object,
    scopes: Vec<Scope>,
    /// From the status: what counts is what the controller has taken note of.
    hard: Amounts,
    pub(super) used: Amounts,
    /// Whether `used` has to be written.
    pub(super) charged: bool,
}

impl Quota {
    pub(super) fn new(key: Arc<str>, revision: Revision, object: Object) -> Self {
        Quota {
            key,
            revision,
            name: meta::name(&object).to_owned(),
            scopes: quota::scopes(&object),
            hard: amounts::read(object.pointer("/status/hard")),
            used: amounts::read(object.pointer("/status/used")),
            object,
            charged: false,
        }
    }

    /// What goes to the store.
    pub(super) fn encoded(mut self) -> Bytes {
        self.object["status"]["used"] = amounts::write(&self.used);
        crate::registry::encode(&mut self.object)
    }
}

/// What a request wants.
pub(super) struct Demand {
    evaluator: Evaluator,
    object: Object,
    old: Option<Object>,
    usage: Amounts,
    /// Of an update: what it wants beyond what it has.
    more: Option<Amounts>,
    /// Whether it is charged even beyond the limit: what has happened cannot be refused.
    unbounded: bool,
}

impl Demand {
    pub(super) fn new(evaluator: Evaluator, object: Object, old: Option<Object>, unbounded: bool) -> Self {
        let now = jiff::Timestamp::now();
        let usage = evaluator.usage(&object, now);
        let more = old
            .as_ref()
            .map(|old| amounts::beyond(&usage, &evaluator.usage(old, now)));
        Demand {
            evaluator,
            object,
            old,
            usage,
            more,
            unbounded,
        }
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    names.join(",")
}

/// Which quotas would be used how far, or why not.
pub(super) fn check(quotas: &[Quota], demand: &Demand) -> Result<Vec<(usize, Amounts)>, String> {
    let evaluator = &demand.evaluator;
    let mut concerned = Vec::new();
    for (place, quota) in quotas.iter().enumerate() {
        let about: Vec<&str> = quota
            .hard
            .keys()
            .map(String::as_str)
            .filter(|name| evaluator.covers(name))
            .collect();
        if about.is_empty() || !evaluator.in_scope(&quota.scopes, &demand.object) {
            continue;
        }
        if let Some(why) = evaluator.missing(&about, &demand.object) {
            return Err(format!("failed quota: {}: {why}", quota.name));
        }
        if about.iter().any(|name| !quota.used.contains_key(*name)) {
            return Err(format!(
                "status unknown for quota: {}, resources: {}",
                quota.name,
                names(about.into_iter())
            ));
        }
        concerned.push(place);
    }
    let negative = names(
        demand
            .usage
            .iter()
            .filter(|(_, amount)| amount.is_negative())
            .map(|(name, _)| name.as_str()),
    );
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {negative}"));
    }
    let mut charges = Vec::new();
    for place in concerned {
        let Some(quota) = quotas.get(place) else { continue };
        // Only what the quota has been charged for already is taken off.
        let delta = match (&demand.more, &demand.old) {
            (Some(more), Some(old)) if evaluator.in_scope(&quota.scopes, old) => more,
            _ => &demand.usage,
        };
        let requested: Amounts = delta
            .iter()
            .filter(|(name, amount)| !amount.is_zero() && quota.hard.contains_key(*name))
            .map(|(name, amount)| (name.clone(), amount.clone()))
            .collect();
        if requested.is_empty() {
            continue;
        }
        let mut used = quota.used.clone();
        amounts::add_all(&mut used, &requested);
        let exceeded =
            |name: &String| matches!((used.get(name), quota.hard.get(name)), (Some(used), Some(hard)) if used > hard);
        let of = |list: &Amounts| -> String {
            let part: Amounts = list
                .iter()
                .filter(|(name, _)| requested.contains_key(*name) && exceeded(name))
                .map(|(name, amount)| (name.clone(), amount.clone()))
                .collect();
            amounts::shown(&part)
        };
        if !demand.unbounded && requested.keys().any(exceeded) {
            return Err(format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                quota.name,
                of(&requested),
                of(&quota.used),
                of(&quota.hard)
            ));
        }
        charges.push((place, used));
    }
    Ok(charges)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn quota(name: &str, spec: Value, hard: Value, used: Value) -> Quota {
        let object = json!({"metadata": {"name": name}, "spec": spec, "status": {"hard": hard, "used": used}});
        Quota::new("key".into(), 1, object)
    }

    fn pod(cpu: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn used(charges: &[(usize, Amounts)]) -> Value {
        charges
            .iter()
            .map(|(place, used)| json!([place, amounts::write(used)]))
            .collect()
    }

    #[test]
    fn room_is_taken_in_every_quota_that_is_concerned() {
        let quotas = [
            quota(
                "all",
                json!({}),
                json!({"pods": "2", "cpu": "1"}),
                json!({"pods": "1", "cpu": "500m"}),
            ),
            quota(
                "services",
                json!({}),
                json!({"services": "1"}),
                json!({"services": "0"}),
            ),
            quota(
                "short",
                json!({"scopes": ["Terminating"]}),
                json!({"pods": "0"}),
                json!({"pods": "0"}),
            ),
        ];
        let demand = |cpu| Demand::new(Evaluator::Pods, pod(cpu), None, false);
        let charges = check(&quotas, &demand("500m")).unwrap();
        assert_eq!(used(&charges), json!([[0, {"pods": "2", "cpu": "1"}]]));
        assert_eq!(
            check(&quotas, &demand("600m")).unwrap_err(),
            "exceeded quota: all, requested: cpu=600m, used: cpu=500m, limited: cpu=1"
        );
        let bare = Demand::new(
            Evaluator::Pods,
            json!({"spec": {"containers": [{"name": "c"}]}}),
            None,
            false,
        );
        assert_eq!(
            check(&quotas, &bare).unwrap_err(),
            "failed quota: all: must specify cpu for: c"
        );
    }

    #[test]
    fn several_names_in_one_refusal() {
        let quotas = [quota(
            "q",
            json!({}),
            json!({"count/pods": "1", "pods": "1", "services": "1"}),
            json!({"count/pods": "1", "pods": "1", "services": "0"}),
        )];
        let demand = Demand::new(Evaluator::Pods, pod("1"), None, false);
        assert_eq!(
            check(&quotas, &demand).unwrap_err(),
            "exceeded quota: q, requested: count/pods=1,pods=1, used: count/pods=1,pods=1, limited: count/pods=1,pods=1"
        );
    }

    #[test]
    fn unknown_use_is_refused_and_unknown_limits_are_not() {
        let quotas = [quota("q", json!({}), json!({"pods": "1"}), json!({}))];
        let demand = Demand::new(Evaluator::Pods, pod("1"), None, false);
        assert_eq!(
            check(&quotas, &demand).unwrap_err(),
            "status unknown for quota: q, resources: pods"
        );
        let fresh = [quota("q", json!({"hard": {"pods": "1"}}), Value::Null, Value::Null)];
        assert!(check(&fresh, &demand).unwrap().is_empty());
    }

    #[test]
    fn updates_are_charged_for_what_they_add() {
        let quotas = [quota(
            "q",
            json!({}),
            json!({"services.nodeports": "2", "services": "1"}),
            json!({"services.nodeports": "1", "services": "1"}),
        )];
        let service =
            |kind: &str, ports: usize| json!({"spec": {"type": kind, "ports": vec![json!({"port": 1}); ports]}});
        let change = |new, old| Demand::new(Evaluator::Services, new, Some(old), false);
        let more = check(&quotas, &change(service("NodePort", 2), service("NodePort", 1))).unwrap();
        assert_eq!(used(&more), json!([[0, {"services.nodeports": "2", "services": "1"}]]));
        let same = check(&quotas, &change(service("NodePort", 2), service("NodePort", 2))).unwrap();
        assert!(same.is_empty());
        let less = check(&quotas, &change(service("ClusterIP", 1), service("NodePort", 1))).unwrap();
        assert!(less.is_empty(), "the controller gives back");
        assert_eq!(
            check(&quotas, &change(service("NodePort", 3), service("ClusterIP", 3))).unwrap_err(),
            "exceeded quota: q, requested: services.nodeports=3, used: services.nodeports=1, limited: services.nodeports=2"
        );
    }

    #[test]
    fn entering_a_scope_is_charged_in_full() {
        let quotas = [quota(
            "short",
            json!({"scopes": ["Terminating"]}),
            json!({"pods": "1"}),
            json!({"pods": "0"}),
        )];
        let mut limited = pod("1");
        limited["spec"]["activeDeadlineSeconds"] = 5.into();
        let demand = Demand::new(Evaluator::Pods, limited, Some(pod("1")), false);
        assert_eq!(used(&check(&quotas, &demand).unwrap()), json!([[0, {"pods": "1"}]]));
    }
}
