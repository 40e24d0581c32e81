//! Matching of typed label selectors and node selectors.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sampan_api::selector::holds;

pub type Labels = BTreeMap<String, String>;

/// A selector over labels. Empty selects everything; an absent selector (`None`) selects nothing.
pub fn selects(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return false };
    let exact = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    exact
        && selector.match_expressions.iter().flatten().all(|requirement| {
            holds(
                &requirement.operator,
                labels.get(&requirement.key).map(String::as_str),
                requirement.values.as_deref().unwrap_or_default(),
            )
        })
}

/// The keys that a selector reads.
pub fn keys(selector: &LabelSelector) -> impl Iterator<Item = &str> {
    let exact = selector.match_labels.iter().flatten().map(|(key, _)| key.as_str());
    let asked = selector.match_expressions.iter().flatten();
    exact.chain(asked.map(|requirement| requirement.key.as_str()))
}

fn node_requirement(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    holds(
        &requirement.operator,
        value.map(String::as_str),
        requirement.values.as_deref().unwrap_or_default(),
    )
}

/// Whether a node matches a term. A term that asks for nothing matches no node.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (expressions, fields) = (
        term.match_expressions.as_deref().unwrap_or_default(),
        term.match_fields.as_deref().unwrap_or_default(),
    );
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    expressions
        .iter()
        .all(|requirement| node_requirement(requirement, labels.and_then(|labels| labels.get(&requirement.key))))
        && fields.iter().all(|requirement| {
            let value = if requirement.key == "metadata.name" {
                node.metadata.name.as_ref()
            } else {
                None
            };
            node_requirement(requirement, value)
        })
}

/// Whether any term of a node selector matches.
pub fn node_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_follow_upstreams_rules() {
        let labels: Labels = [
            ("app".to_owned(), "web".to_owned()),
            ("size".to_owned(), "7".to_owned()),
        ]
        .into();
        let cases = [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db", "web"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "gone", "operator": "NotIn", "values": ["x"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "gone", "operator": "Exists"}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}),
                false,
            ),
        ];
        for (selector, expected) in cases {
            let typed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(Some(&typed), &labels), expected, "{selector}");
        }
        assert!(!selects(None, &labels));
    }

    #[test]
    fn node_selectors_compare_numbers_and_fields() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"size": "7"}}})).unwrap();
        let cases = [
            (
                json!({"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["6"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "size", "operator": "Lt", "values": ["6"]}]}),
                false,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}),
                true,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}),
                false,
            ),
            (json!({}), false),
        ];
        for (term, expected) in cases {
            let typed: NodeSelectorTerm = serde_json::from_value(term.clone()).unwrap();
            assert_eq!(term_matches(&typed, &node), expected, "{term}");
        }
    }
}
