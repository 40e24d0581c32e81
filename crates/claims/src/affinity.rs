//! Label and node selectors of volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, PersistentVolume, TopologySelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sampan_api::selector::holds;

type Labels = BTreeMap<String, String>;

/// Whether labels are what a selector asks for; an absent selector asks for nothing.
pub fn labels_match(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector else { return true };
    let get = |key: &str| labels?.get(key).map(String::as_str);
    let exact = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    exact.into_iter().all(|(key, value)| get(key) == Some(value.as_str()))
        && expressions.into_iter().all(|wanted| {
            holds(
                &wanted.operator,
                get(&wanted.key),
                wanted.values.as_deref().unwrap_or_default(),
            )
        })
}

/// Whether a volume can be reached from a node with these labels. Upstream looks at labels only: a term that asks for
/// fields matches no node, as does one that asks for nothing.
pub fn node_affinity(volume: &PersistentVolume, labels: Option<&Labels>) -> bool {
    let required = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    required.is_none_or(|selector| selector_matches(selector, labels))
}

fn selector_matches(selector: &NodeSelector, labels: Option<&Labels>) -> bool {
    let matches = |wanted: &NodeSelectorRequirement| {
        let value = labels.and_then(|labels| labels.get(&wanted.key));
        holds(
            &wanted.operator,
            value.map(String::as_str),
            wanted.values.as_deref().unwrap_or_default(),
        )
    };
    selector.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        !expressions.is_empty() && fields.is_empty() && expressions.iter().all(matches)
    })
}

/// Whether a node with these labels is where a class allows volumes: any of its terms, or it has none.
pub fn terms_match(terms: &[TopologySelectorTerm], labels: Option<&Labels>) -> bool {
    let matches = |term: &TopologySelectorTerm| {
        let wanted = term.match_label_expressions.as_deref().unwrap_or_default();
        !wanted.is_empty()
            && wanted.iter().all(|wanted| {
                let value = labels.and_then(|labels| labels.get(&wanted.key));
                value.is_some_and(|value| wanted.values.contains(value))
            })
    };
    terms.is_empty() || terms.iter().any(matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_are_where_their_affinity_says() {
        let labels: Labels = [("kubernetes.io/hostname".to_owned(), "a".to_owned())].into();
        let on = |names: &[&str]| json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": names}]);
        for (terms, expected) in [
            (json!([{"matchExpressions": on(&["a", "b"])}]), true),
            (json!([{"matchExpressions": on(&["b"])}]), false),
            (
                json!([{"matchExpressions": on(&["b"])}, {"matchExpressions": on(&["a"])}]),
                true,
            ),
            (json!([{}]), false),
            (json!([]), false),
        ] {
            let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {},
                "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}}))
            .unwrap();
            assert_eq!(node_affinity(&volume, Some(&labels)), expected, "{terms}");
        }
        assert!(node_affinity(&PersistentVolume::default(), None));
    }

    #[test]
    fn classes_allow_where_any_term_matches() {
        let labels: Labels = [("zone".to_owned(), "a".to_owned())].into();
        let terms = |value| serde_json::from_value::<Vec<TopologySelectorTerm>>(value).unwrap();
        assert!(terms_match(&[], None));
        let both = terms(json!([{"matchLabelExpressions": [{"key": "zone", "values": ["b", "a"]}]}]));
        assert!(terms_match(&both, Some(&labels)));
        assert!(!terms_match(&both, None));
    }
}
