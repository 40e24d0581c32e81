//! Room on the node: the hard check, and the two rankings that keep nodes evenly and squarely filled.

use crate::framework::{MAX_SCORE, Refusal};
use crate::pod::Class;
use crate::resources::Resources;
use crate::snapshot::NodeInfo;

pub fn fit(class: &Class, info: &NodeInfo) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    if info.pods.len() as i64 + 1 > info.allowed_pods {
        reasons.push("Too many pods".to_owned());
    }
    reasons.extend(info.allocatable.lacks(&info.requested, &class.requests));
    if reasons.is_empty() {
        return Ok(());
    }
    // More than the node has in all will not come free, whoever leaves.
    let resolvable = info
        .allocatable
        .lacks(&Resources::default(), &class.requests)
        .is_empty();
    Err(Refusal { reasons, resolvable })
}

/// (with the Pod, without it, capacity) of CPU and memory, where the node has any.
fn usage(class: &Class, info: &NodeInfo, assumed: bool) -> Vec<(i64, i64, i64)> {
    let (used, asked) = if assumed {
        (&info.assumed, &class.assumed)
    } else {
        (&info.requested, &class.requests)
    };
    [
        (
            used.milli_cpu + asked.milli_cpu,
            used.milli_cpu,
            info.allocatable.milli_cpu,
        ),
        (used.memory + asked.memory, used.memory, info.allocatable.memory),
    ]
    .into_iter()
    .filter(|&(_, _, capacity)| capacity > 0)
    .collect()
}

/// The free share of CPU and memory after the Pod came, averaged.
pub fn least_allocated(class: &Class, info: &NodeInfo) -> i64 {
    let usage = usage(class, info, true);
    if usage.is_empty() {
        return 0;
    }
    let free = usage
        .iter()
        .map(|&(with, _, capacity)| (capacity - with).max(0).saturating_mul(MAX_SCORE) / capacity);
    free.sum::<i64>() / usage.len() as i64
}

/// How much the Pod would improve the balance between CPU and memory.
pub fn balanced(class: &Class, info: &NodeInfo) -> i64 {
    if class.requests.milli_cpu == 0 && class.requests.memory == 0 {
        return 0;
    }
    let usage = usage(class, info, false);
    let share = |part: i64, capacity: i64| (part as f64 / capacity as f64).min(1.0);
    let evenness = |shares: &[f64]| match shares {
        [one, two] => ((1.0 - (one - two).abs() / 2.0) * MAX_SCORE as f64) as i64,
        _ => MAX_SCORE,
    };
    let with: Vec<_> = usage.iter().map(|&(with, _, capacity)| share(with, capacity)).collect();
    let without: Vec<_> = usage
        .iter()
        .map(|&(_, without, capacity)| share(without, capacity))
        .collect();
    MAX_SCORE / 2 + (MAX_SCORE / 2 + evenness(&with) - evenness(&without)) / 2
}
