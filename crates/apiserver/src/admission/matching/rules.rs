//! The rules of webhooks and policies: which requests they name.

use serde_json::Value;

use crate::admission::{Review, text};
use crate::rows::Row;

/// One rule: all of it must match.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    scope: Scope,
    /// `resourceNames`; none names all. A name that the server is yet to make is no name.
    names: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scope {
    #[default]
    All,
    Cluster,
    Namespaced,
}

/// What a rule is held against.
struct Asked<'a> {
    operation: &'a str,
    group: &'a str,
    version: &'a str,
    plural: &'a str,
    subresource: &'a str,
    name: &'a str,
    /// Whether it is about something in a namespace.
    namespaced: bool,
}

impl Rule {
    /// The rules in a field of a configuration.
    pub fn list(of: &Value, field: &str) -> Vec<Rule> {
        let rules = of.get(field).and_then(Value::as_array);
        rules.into_iter().flatten().map(Rule::of).collect()
    }

    fn of(rule: &Value) -> Self {
        let list = |field: &str| -> Vec<String> {
            let texts = rule.get(field).and_then(Value::as_array).into_iter().flatten();
            texts.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let split = |resource: String| match resource.split_once('/') {
            Some((resource, sub)) => (resource.to_owned(), sub.to_owned()),
            None => (resource, String::new()),
        };
        Rule {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources").into_iter().map(split).collect(),
            scope: match text(rule, "/scope") {
                "Cluster" => Scope::Cluster,
                "Namespaced" => Scope::Namespaced,
                _ => Scope::All,
            },
            names: list("resourceNames"),
        }
    }

    /// Whether the rule names this request, were it one of `row`.
    pub fn names(&self, review: &Review<'_>, row: &Row) -> bool {
        let spec = row.spec;
        self.matches(&Asked {
            operation: review.operation.name(),
            group: spec.group,
            version: spec.version,
            plural: spec.plural,
            subresource: review.subresource,
            name: review.name,
            namespaced: !review.namespace.is_empty() && !row.is("", "namespaces"),
        })
    }

    fn matches(&self, asked: &Asked<'_>) -> bool {
        let any = |wanted: &[String], asked: &str| wanted.iter().any(|wanted| wanted == "*" || wanted == asked);
        let scope = match self.scope {
            Scope::All => true,
            Scope::Cluster => !asked.namespaced,
            Scope::Namespaced => asked.namespaced,
        };
        scope
            && any(&self.operations, asked.operation)
            && any(&self.groups, asked.group)
            && any(&self.versions, asked.version)
            && self.resources.iter().any(|(resource, sub)| {
                (resource == "*" || resource == asked.plural) && (sub == "*" || sub == asked.subresource)
            })
            && (self.names.is_empty() || self.names.iter().any(|name| name == asked.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_match_as_upstream_has_it() {
        let rule = |resources: Value, scope: &str, names: Value| {
            Rule::of(
                &json!({"operations": ["CREATE"], "apiGroups": ["", "apps"], "apiVersions": ["*"],
                "resources": resources, "scope": scope, "resourceNames": names}),
            )
        };
        let named = |resources: Value, scope: &str| rule(resources, scope, Value::Null);
        let (pods, nodes, jobs) = (("", "pods"), ("", "nodes"), ("batch", "jobs"));
        for (rule, (group, plural), subresource, namespaced, expected) in [
            (named(json!(["pods"]), "*"), pods, "", true, true),
            (named(json!(["pods"]), "*"), pods, "status", true, false),
            (named(json!(["pods/*"]), "*"), pods, "status", true, true),
            (named(json!(["pods/*"]), "*"), pods, "", true, true),
            (named(json!(["*"]), "*"), pods, "", true, true),
            (named(json!(["*"]), "*"), pods, "exec", true, false),
            (named(json!(["*/*"]), "*"), pods, "exec", true, true),
            (named(json!(["*/exec"]), "*"), pods, "exec", true, true),
            (named(json!(["*"]), "Cluster"), pods, "", true, false),
            (named(json!(["*"]), "Cluster"), nodes, "", false, true),
            (named(json!(["*"]), "Namespaced"), nodes, "", false, false),
            (named(json!(["*"]), "*"), jobs, "", true, false),
            (rule(json!(["*"]), "*", json!(["this"])), pods, "", true, true),
            (rule(json!(["*"]), "*", json!(["that", "other"])), pods, "", true, false),
            (rule(json!(["*"]), "*", json!(["*"])), pods, "", true, false),
        ] {
            let asked = |operation: &'static str| Asked {
                operation,
                group,
                version: "v1",
                plural,
                subresource,
                name: "this",
                namespaced,
            };
            assert_eq!(
                rule.matches(&asked("CREATE")),
                expected,
                "{rule:?} {plural} {subresource}"
            );
            assert!(!rule.matches(&asked("DELETE")));
        }
    }
}
