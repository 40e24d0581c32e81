//! The rules of a ClusterRole that is made of others.

use serde_json::Value;

/// The rules `role` must have by its `aggregationRule`, given all ClusterRoles, if they are not the ones it has.
pub fn aggregate(role: &Value, all: &[Value]) -> Option<Value> {
    let selectors = role.pointer("/aggregationRule/clusterRoleSelectors")?.as_array()?;
    let name = |role: &Value| {
        role.pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let own = name(role);
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        let mut selected: Vec<_> = all
            .iter()
            .filter(|other| name(other) != own && selects(selector, other))
            .collect();
        selected.sort_by_key(|other| name(other));
        let theirs = selected
            .into_iter()
            .flat_map(|other| other.get("rules").and_then(Value::as_array).into_iter().flatten());
        for rule in theirs {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    let has = role
        .get("rules")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    (has != rules).then_some(Value::Array(rules))
}

/// Whether a label selector selects the object. One that cannot be understood selects nothing.
fn selects(selector: &Value, object: &Value) -> bool {
    let label = |key: &str| object.pointer("/metadata/labels")?.get(key)?.as_str();
    let mut exact = selector
        .get("matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let mut expressions = selector
        .get("matchExpressions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    exact.all(|(key, value)| label(key) == value.as_str() && value.is_string())
        && expressions.all(|expression| {
            let Some(key) = expression.get("key").and_then(Value::as_str) else {
                return false;
            };
            let mut values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let mut listed = || label(key).is_some_and(|own| values.any(|value| value == own));
            match expression.get("operator").and_then(Value::as_str) {
                Some("In") => listed(),
                Some("NotIn") => !listed(),
                Some("Exists") => label(key).is_some(),
                Some("DoesNotExist") => label(key).is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_are_gathered_by_label_once_and_in_order() {
        let role = |name: &str, labels: Value, rules: Value| json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
        let all = [
            role("b", json!({"to": "x"}), json!([2, 1])),
            role("a", json!({"to": "x", "more": "1"}), json!([1])),
            role("c", json!({"to": "y"}), json!([3])),
            role("sum", json!({"to": "x"}), json!([9])),
        ];
        let sum = |selectors: Value| {
            let mut sum = all[3].clone();
            sum["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
            aggregate(&sum, &all)
        };
        assert_eq!(sum(json!([{"matchLabels": {"to": "x"}}])), Some(json!([1, 2])));
        assert_eq!(
            sum(
                json!([{"matchExpressions": [{"key": "to", "operator": "In", "values": ["y"]}]}, {"matchLabels": {"more": "1"}}])
            ),
            Some(json!([3, 1]))
        );
        assert_eq!(
            sum(
                json!([{"matchExpressions": [{"key": "more", "operator": "DoesNotExist"}, {"key": "to", "operator": "NotIn", "values": ["y"]}]}])
            ),
            Some(json!([2, 1]))
        );
        assert_eq!(
            sum(json!([{"matchExpressions": [{"key": "to", "operator": "Near"}]}])),
            Some(json!([]))
        );
        assert_eq!(aggregate(&all[0], &all), None);
        let mut done = all[3].clone();
        done["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "y"}}]});
        done["rules"] = json!([3]);
        assert_eq!(aggregate(&done, &all), None);
    }
}
