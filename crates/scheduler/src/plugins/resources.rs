//! Room on the node: the hard check, and the rankings that fill nodes evenly or tightly, and squarely.
//!
//! The arithmetic is upstream's to the last rounding: whole numbers where it has whole numbers, the same order of
//! operations where it has fractions. Products are taken in 128 bits, so that no amount of anything wraps around.

use crate::config::args::{NodeResourcesFit, ResourceWeight, ShapePoint, Strategy};
use crate::framework::{MAX_SCORE, NodeCheck, NodeRank, Refusal};
use crate::pod::Class;
use crate::resources::Resources;
use crate::snapshot::NodeInfo;

/// Shapes are drawn with scores up to this.
const MAX_SHAPE_SCORE: i64 = 10;

/// Whether the node has room for the Pod, resource by resource.
pub fn fit(args: &NodeResourcesFit) -> NodeCheck {
    if args.ignored.is_empty() && args.ignored_groups.is_empty() {
        return Box::new(|class, info| room(class, info, |_| false));
    }
    let args = args.clone();
    Box::new(move |class, info| room(class, info, |name| ignored(&args, name)))
}

/// Only extended resources can be ignored, by name or by what stands before the slash.
fn ignored(args: &NodeResourcesFit, name: &str) -> bool {
    is_extended(name)
        && (args.ignored.contains(name)
            || args
                .ignored_groups
                .contains(name.split_once('/').map_or(name, |(group, _)| group)))
}

/// Whether a resource is of somebody else's making.
pub fn is_extended(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native
        && !name.starts_with("requests.")
        && sampan_api::names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn room(class: &Class, info: &NodeInfo, ignored: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    let mut resolvable = true;
    if info.pods.len() as i64 + 1 > info.allowed_pods {
        reasons.push("Too many pods".to_owned());
    }
    let (asked, used, have) = (&class.requests, &info.requested, &info.allocatable);
    let mut check = |name: &str, asked: i64, used: i64, have: i64| {
        if asked > 0 && asked > have.saturating_sub(used) {
            reasons.push(format!("Insufficient {name}"));
            // Not even an empty node of this size would do.
            resolvable &= asked <= have;
        }
    };
    check("cpu", asked.milli_cpu, used.milli_cpu, have.milli_cpu);
    check("memory", asked.memory, used.memory, have.memory);
    check(
        "ephemeral-storage",
        asked.ephemeral_storage,
        used.ephemeral_storage,
        have.ephemeral_storage,
    );
    for (name, &amount) in &asked.other {
        if amount > 0 && !ignored(name) {
            let of = |side: &Resources| side.other.get(name).copied().unwrap_or(0);
            check(name, amount, of(used), of(have));
        }
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Refusal { reasons, resolvable })
    }
}

/// The amount of a resource by its name.
fn amount(of: &Resources, name: &str) -> i64 {
    match name {
        "cpu" => of.milli_cpu,
        "memory" => of.memory,
        "ephemeral-storage" => of.ephemeral_storage,
        other => of.other.get(other).copied().unwrap_or(0),
    }
}

/// One resource of a node that takes part in its score.
struct Usage {
    weight: i64,
    /// With the Pod, and without it.
    requested: i64,
    allocated: i64,
    capacity: i64,
}

/// The resources that count for this Pod on this node: those the node has, and of all but CPU, memory and storage those
/// the Pod asks for. `assumed`: silent containers count as if they asked for a little CPU and memory.
fn usage<'a>(
    class: &'a Class,
    info: &'a NodeInfo,
    resources: &'a [ResourceWeight],
    assumed: bool,
) -> impl Iterator<Item = Usage> + 'a {
    resources.iter().filter_map(move |resource| {
        let name = resource.name.as_str();
        let (asked, used) = match name {
            "cpu" | "memory" if assumed => (&class.assumed, &info.assumed),
            _ => (&class.requests, &info.requested),
        };
        let asked = amount(asked, name);
        if asked == 0 && !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
            return None;
        }
        let capacity = amount(&info.allocatable, name);
        if capacity == 0 {
            return None;
        }
        let allocated = amount(used, name);
        Some(Usage {
            weight: resource.weight,
            requested: allocated.saturating_add(asked),
            allocated,
            capacity,
        })
    })
}

/// `part * 100 / whole`, cut off as Go cuts it off.
fn percent(part: i64, whole: i64) -> i64 {
    (i128::from(part) * i128::from(MAX_SCORE) / i128::from(whole)) as i64
}

/// How free or how full the node would be with the Pod.
pub fn allocation(args: &NodeResourcesFit) -> NodeRank {
    let resources = args.resources.clone();
    match &args.strategy {
        Strategy::LeastAllocated => Box::new(move |class, info| {
            weighted(usage(class, info, &resources, true), |usage| {
                if usage.requested > usage.capacity {
                    0
                } else {
                    percent(usage.capacity - usage.requested, usage.capacity)
                }
            })
        }),
        Strategy::MostAllocated => Box::new(move |class, info| {
            weighted(usage(class, info, &resources, true), |usage| {
                // Assumed requests may exceed what there is.
                percent(usage.requested.min(usage.capacity), usage.capacity)
            })
        }),
        Strategy::RequestedToCapacityRatio(shape) => {
            let shape: Vec<ShapePoint> = shape
                .iter()
                .map(|point| ShapePoint {
                    score: point.score * (MAX_SCORE / MAX_SHAPE_SCORE),
                    ..*point
                })
                .collect();
            Box::new(move |class, info| ratio(usage(class, info, &resources, true), &shape))
        }
    }
}

fn weighted(usages: impl Iterator<Item = Usage>, score: impl Fn(&Usage) -> i64) -> i64 {
    let (sum, weights) = usages.fold((0, 0), |(sum, weights), usage| {
        (sum + score(&usage) * usage.weight, weights + usage.weight)
    });
    if weights == 0 { 0 } else { sum / weights }
}

/// Like [`weighted`], but resources that score nothing do not count at all, and the mean is rounded.
fn ratio(usages: impl Iterator<Item = Usage>, shape: &[ShapePoint]) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for usage in usages {
        let utilization = if usage.requested > usage.capacity {
            100
        } else {
            percent(usage.requested, usage.capacity)
        };
        let score = value_at(shape, utilization);
        if score > 0 {
            sum += score * usage.weight;
            weights += usage.weight;
        }
    }
    if weights == 0 {
        0
    } else {
        (sum as f64 / weights as f64).round() as i64
    }
}

/// The value of the broken line through the points of a shape.
fn value_at(shape: &[ShapePoint], utilization: i64) -> i64 {
    let Some(at) = shape.iter().position(|point| utilization <= point.utilization) else {
        return shape.last().map_or(0, |point| point.score);
    };
    match (at.checked_sub(1).and_then(|before| shape.get(before)), shape.get(at)) {
        (Some(from), Some(to)) => {
            from.score
                + (to.score - from.score) * (utilization - from.utilization) / (to.utilization - from.utilization)
        }
        (None, Some(first)) => first.score,
        (_, None) => 0,
    }
}

/// How much the Pod would improve the balance between resources: 75 if it changes nothing, more if it evens them out.
pub fn balanced(resources: &[ResourceWeight]) -> NodeRank {
    let resources = resources.to_vec();
    Box::new(move |class, info| {
        // A Pod that asks for nothing would be drawn to one node with all of its like.
        if resources
            .iter()
            .all(|resource| amount(&class.requests, &resource.name) == 0)
        {
            return 0;
        }
        let usages = || usage(class, info, &resources, false);
        let with = evenness(usages().map(|usage| (usage.requested, usage.capacity)));
        let without = evenness(usages().map(|usage| (usage.allocated, usage.capacity)));
        MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
    })
}

/// 100 less the standard deviation of the used shares.
fn evenness(amounts: impl Iterator<Item = (i64, i64)>) -> i64 {
    let shares: Vec<f64> = amounts
        .map(|(used, capacity)| (used as f64 / capacity as f64).min(1.0))
        .collect();
    let deviation = match shares.as_slice() {
        [] | [_] => 0.0,
        [one, two] => ((one - two) / 2.0).abs(),
        many => {
            let mean = many.iter().sum::<f64>() / many.len() as f64;
            let squares: f64 = many.iter().map(|share| (share - mean) * (share - mean)).sum();
            (squares / many.len() as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
