//! The arithmetic of rollouts: how many replicas each replica set should have next. Pure.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::revision;

pub(super) fn wanted(deployment: &Deployment) -> i32 {
    let spec = deployment.spec.as_ref();
    spec.and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    let spec = set.spec.as_ref();
    spec.and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    let status = set.status.as_ref();
    status.and_then(|s| s.available_replicas).unwrap_or(0)
}

pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate")
}

/// A number or a share of `total`, rounded as asked. What cannot be read counts as 0 (validation keeps it out).
pub(crate) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|number| number.parse().ok())
                .unwrap_or(0);
            let product = percent * i64::from(total);
            let share = if round_up {
                product.div_euclid(100) + i64::from(product.rem_euclid(100) > 0)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// (how many Pods above the wanted number, how many below) a rolling update allows. Never both zero.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let total = wanted(deployment);
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref()?.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
    let surge = scaled(surge, total, true);
    let unavailable = scaled(unavailable, total, false);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let total = wanted(deployment);
    if total == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(total)
}

/// How many replicas the new set may have now. `total` is what all sets are asked for, the new one included.
pub(super) fn new_size(deployment: &Deployment, total: i32, current: i32) -> i32 {
    let wanted = wanted(deployment);
    if !is_rolling(deployment) {
        return wanted;
    }
    let room = wanted + max_surge(deployment) - total;
    if room <= 0 {
        return current;
    }
    current + room.min(wanted - current)
}

/// What a rolling update takes off the old sets (oldest first): their new sizes, in the same order.
pub(super) fn shrink_old(deployment: &Deployment, old: &[(i32, i32)], new: (i32, i32)) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|(replicas, _)| *replicas).collect();
    let old_total: i32 = sizes.iter().sum();
    if old_total == 0 {
        return sizes;
    }
    let minimum = wanted(deployment) - max_unavailable(deployment);
    // New Pods that are not available yet do not justify taking old ones away.
    let mut may_go = old_total + new.0 - minimum - (new.0 - new.1);
    if may_go <= 0 {
        return sizes;
    }
    // Pods that do not serve go first: that costs no availability.
    for (size, (replicas, available)) in sizes.iter_mut().zip(old) {
        let gone = may_go.min(replicas - available).max(0);
        *size -= gone;
        may_go -= gone;
    }
    // Then as many of those that serve as the minimum allows.
    let serving: i32 = old.iter().map(|(_, available)| available).sum::<i32>() + new.1;
    let mut spare = serving - minimum;
    for size in &mut sizes {
        if spare <= 0 {
            break;
        }
        let gone = spare.min(*size);
        *size -= gone;
        spare -= gone;
    }
    sizes
}

/// How a change of the deployment's size is shared out among its active sets: their new sizes, in the same order.
/// Every set keeps its share; what rounding leaves over goes to the largest (of equals: the newer one when growing, the
/// older one when shrinking).
pub(super) fn proportional(deployment: &Deployment, active: &[&ReplicaSet]) -> Vec<i32> {
    let total: i32 = active.iter().map(|set| replicas(set)).sum();
    let wanted = wanted(deployment);
    let allowed = if wanted > 0 { wanted + max_surge(deployment) } else { 0 };
    let to_add = allowed - total;
    let mut order: Vec<usize> = (0..active.len()).collect();
    order.sort_by(|a, b| {
        let (Some(a), Some(b)) = (active.get(*a), active.get(*b)) else {
            return std::cmp::Ordering::Equal;
        };
        let created = |set: &ReplicaSet| set.metadata.creation_timestamp.clone();
        let by_age = created(a)
            .cmp(&created(b))
            .then_with(|| a.metadata.name.cmp(&b.metadata.name));
        let by_age = if to_add > 0 { by_age.reverse() } else { by_age };
        replicas(b).cmp(&replicas(a)).then(by_age)
    });
    let mut sizes: Vec<i32> = active.iter().map(|set| replicas(set)).collect();
    let mut added = 0;
    for place in &order {
        if let (Some(set), Some(size)) = (active.get(*place), sizes.get_mut(*place)) {
            let share = share(deployment, set, allowed, to_add, added);
            *size += share;
            added += share;
        }
    }
    if let Some(size) = order.first().and_then(|largest| sizes.get_mut(*largest))
        && to_add != 0
    {
        *size = (*size + to_add - added).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, set: &ReplicaSet, allowed: i32, to_add: i32, added: i32) -> i32 {
    let size = replicas(set);
    if size == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = if wanted(deployment) == 0 {
        -size
    } else {
        let before = revision::max_replicas(set).filter(|max| *max != 0).unwrap_or_else(|| {
            let status = deployment.status.as_ref();
            status.and_then(|status| status.replicas).unwrap_or(0)
        });
        if before == 0 {
            return 0;
        }
        let exact = f64::from(size) * f64::from(allowed) / f64::from(before);
        // Within i32: a size times a ratio of two sizes.
        exact.round() as i32 - size
    };
    if to_add > 0 {
        fraction.min(to_add - added)
    } else {
        fraction.max(to_add - added)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, ReplicaSetSpec, RollingUpdateDeployment};

    use super::*;

    fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
        let value = |text: &str| match text.parse() {
            Ok(number) => IntOrString::Int(number),
            Err(_) => IntOrString::String(text.into()),
        };
        Deployment {
            spec: Some(DeploymentSpec {
                replicas: Some(replicas),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".into()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(value(surge)),
                        max_unavailable: Some(value(unavailable)),
                    }),
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down() {
        let cases = [
            (10, "25%", "25%", 3, 2),
            (1, "25%", "25%", 1, 0),
            (3, "0", "30%", 0, 1),
            (4, "0", "10%", 0, 1),
            (2, "0", "5", 0, 2),
            (0, "25%", "25%", 0, 0),
            (5, "100%", "0", 5, 0),
        ];
        for (replicas, surge, unavailable, more, less) in cases {
            let deployment = deployment(replicas, surge, unavailable);
            let got = (max_surge(&deployment), max_unavailable(&deployment));
            assert_eq!(got, (more, less), "{replicas} {surge} {unavailable}");
        }
    }

    #[test]
    fn the_new_set_grows_as_far_as_the_surge_allows() {
        let deployment = deployment(10, "3", "2");
        for (total, current, expected) in [(10, 0, 3), (13, 3, 3), (8, 0, 5), (11, 5, 7), (10, 9, 10)] {
            assert_eq!(new_size(&deployment, total, current), expected, "{total} {current}");
        }
    }

    #[test]
    fn old_sets_shrink_without_losing_availability() {
        let deployment = deployment(10, "3", "2");
        type Case = (&'static [(i32, i32)], (i32, i32), &'static [i32]);
        let cases: [Case; 6] = [
            (&[(10, 10)], (3, 0), &[8]),
            (&[(8, 8)], (5, 0), &[8]),
            (&[(8, 8)], (5, 5), &[3]),
            // Broken old Pods go first, whatever set they are in.
            (&[(4, 0), (6, 6)], (3, 0), &[2, 6]),
            (&[(0, 0)], (10, 10), &[0]),
            (&[(3, 3), (3, 3)], (7, 7), &[0, 1]),
        ];
        for (old, new, expected) in cases {
            assert_eq!(shrink_old(&deployment, old, new), expected, "{old:?} {new:?}");
        }
    }

    fn set(name: &str, replicas: i32, max: i32) -> ReplicaSet {
        let mut set = ReplicaSet {
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                ..Default::default()
            }),
            ..Default::default()
        };
        set.metadata.name = Some(name.into());
        set.metadata
            .annotations
            .get_or_insert_default()
            .insert(revision::MAX.into(), max.to_string());
        set
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_shared_out() {
        let cases = [
            // 10 → 20 with surge 0: 5 of 10 become 10 of 20.
            (20, vec![5, 5], 10, vec![10, 10]),
            (15, vec![8, 5], 13, vec![9, 6]),
            (5, vec![8, 2], 10, vec![4, 1]),
            (0, vec![8, 2], 10, vec![0, 0]),
        ];
        for (replicas, sizes, max, expected) in cases {
            let deployment = deployment(replicas, "0", "1");
            let sets: Vec<ReplicaSet> = sizes
                .iter()
                .enumerate()
                .map(|(i, size)| set(&format!("s{i}"), *size, max))
                .collect();
            let borrowed: Vec<&ReplicaSet> = sets.iter().collect();
            assert_eq!(proportional(&deployment, &borrowed), expected, "{replicas} {sizes:?}");
        }
    }
}
