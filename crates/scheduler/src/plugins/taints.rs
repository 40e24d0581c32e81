//! Taints and tolerations.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::framework::Refusal;
use crate::pod::Class;
use crate::snapshot::NodeInfo;

/// Whether one toleration covers a taint: empty effect and empty key mean any; `Exists` ignores the value.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (effect, key, value) = (text(&toleration.effect), text(&toleration.key), text(&toleration.value));
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let had = taint.value.clone().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => !key.is_empty() && value == had,
        "Exists" => true,
        "Gt" | "Lt" => match (value.parse::<i64>(), had.parse::<i64>()) {
            (Ok(bound), Ok(had)) if toleration.operator.as_deref() == Some("Gt") => had > bound,
            (Ok(bound), Ok(had)) => had < bound,
            _ => false,
        },
        _ => false,
    }
}

/// Whether any toleration covers the taint.
pub fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

fn taints(info: &NodeInfo) -> impl Iterator<Item = &Taint> {
    info.node
        .iter()
        .filter_map(|node| node.spec.as_ref()?.taints.as_ref())
        .flatten()
}

pub fn filter(class: &Class, info: &NodeInfo) -> Result<(), Refusal> {
    let bars = |taint: &&Taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") && !tolerated(taint, &class.tolerations)
    };
    match taints(info).find(bars) {
        Some(_) => Err(Refusal::unresolvable("node(s) had untolerated taint(s)")),
        None => Ok(()),
    }
}

/// How many soft taints the Pod does not tolerate: less is better.
pub fn score(class: &Class, info: &NodeInfo) -> i64 {
    let soft = taints(info).filter(|taint| taint.effect == "PreferNoSchedule" && !tolerated(taint, &class.tolerations));
    soft.count() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations_cover_what_they_say() {
        let taint: Taint = serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"})).unwrap();
        let cases = [
            (
                json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}),
                true,
            ),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "other"}), false),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({}), false),
        ];
        for (toleration, expected) in cases {
            let typed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&typed, &taint), expected, "{toleration}");
        }
    }
}
