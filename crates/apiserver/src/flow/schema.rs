//! FlowSchemas: which request belongs to which flow of which priority level.
//!
//! A schema is parsed once, when its object changes; matching a request compares strings and allocates nothing.

use std::cmp::Ordering;
use std::sync::Arc;

use http::HeaderValue;
use sampan_api::{Object, meta};
use sampan_auth::UserInfo;
use serde_json::Value;

use super::level::Level;
use super::stats::Stats;
use crate::request::RequestInfo;

const ACCOUNTS: &str = "system:serviceaccount:";

/// What a FlowSchema object says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    pub name: String,
    pub uid: String,
    pub precedence: i64,
    /// The name of its priority level.
    pub level: String,
    pub distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

/// What tells the flows of one schema apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distinguisher {
    #[default]
    None,
    User,
    Namespace,
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Clone, Debug, PartialEq)]
enum Subject {
    User(String),
    Group(String),
    /// Namespace and name; the name may be `*`.
    Account(String, String),
}

#[derive(Clone, Debug, PartialEq)]
struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    namespaces: Names,
    cluster: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct PathRule {
    verbs: Names,
    paths: Vec<String>,
}

/// A list in which a single `*` stands for everything.
#[derive(Clone, Debug, PartialEq)]
enum Names {
    All,
    Some(Vec<String>),
}

impl Names {
    fn of(value: &Value, field: &str) -> Self {
        let names = texts(value, field);
        if names == ["*"] { Names::All } else { Names::Some(names) }
    }
    fn has(&self, name: &str) -> bool {
        match self {
            Names::All => true,
            Names::Some(names) => names.iter().any(|known| known == name),
        }
    }
    /// `resource` or `resource/subresource`.
    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        match self {
            Names::All => true,
            Names::Some(names) if subresource.is_empty() => names.iter().any(|known| known == resource),
            Names::Some(names) => names.iter().any(|known| {
                known
                    .strip_prefix(resource)
                    .and_then(|rest| rest.strip_prefix('/'))
                    .is_some_and(|rest| rest == subresource)
            }),
        }
    }
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    items(value, field)
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

impl Spec {
    pub fn parse(object: &Object) -> Self {
        Spec {
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            precedence: object
                .pointer("/spec/matchingPrecedence")
                .and_then(Value::as_i64)
                .unwrap_or(1000),
            level: text(object, "/spec/priorityLevelConfiguration/name"),
            distinguisher: match object.pointer("/spec/distinguisherMethod/type").and_then(Value::as_str) {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: object
                .get("spec")
                .map(|spec| items(spec, "rules").iter().map(Rule::parse).collect())
                .unwrap_or_default(),
        }
    }

    /// The order schemas are tried in: by precedence, then by name.
    pub fn order(&self, other: &Self) -> Ordering {
        (self.precedence, &self.name).cmp(&(other.precedence, &other.name))
    }

    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| rule.matches(user, info))
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        Rule {
            subjects: items(rule, "subjects").iter().filter_map(Subject::parse).collect(),
            resources: items(rule, "resourceRules")
                .iter()
                .map(|rule| ResourceRule {
                    verbs: Names::of(rule, "verbs"),
                    groups: Names::of(rule, "apiGroups"),
                    resources: Names::of(rule, "resources"),
                    namespaces: Names::of(rule, "namespaces"),
                    cluster: rule.get("clusterScope").and_then(Value::as_bool).unwrap_or(false),
                })
                .collect(),
            paths: items(rule, "nonResourceRules")
                .iter()
                .map(|rule| PathRule {
                    verbs: Names::of(rule, "verbs"),
                    paths: texts(rule, "nonResourceURLs"),
                })
                .collect(),
        }
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        if !self.subjects.iter().any(|subject| subject.matches(user)) {
            return false;
        }
        if info.is_resource {
            self.resources.iter().any(|rule| rule.matches(info))
        } else {
            self.paths.iter().any(|rule| rule.matches(info))
        }
    }
}

impl Subject {
    fn parse(subject: &Value) -> Option<Self> {
        Some(match subject.get("kind")?.as_str()? {
            "User" => Subject::User(text(subject, "/user/name")),
            "Group" => Subject::Group(text(subject, "/group/name")),
            "ServiceAccount" => Subject::Account(
                text(subject, "/serviceAccount/namespace"),
                text(subject, "/serviceAccount/name"),
            ),
            _ => return None,
        })
    }

    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.groups.contains(name),
            Subject::Account(namespace, name) => user
                .name
                .strip_prefix(ACCOUNTS)
                .and_then(|rest| rest.strip_prefix(namespace.as_str()))
                .and_then(|rest| rest.strip_prefix(':'))
                .is_some_and(|account| name == "*" || name == account),
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb)
            && self.resources.has_resource(&info.resource, &info.subresource)
            && self.groups.has(&info.group)
            && if info.namespace.is_empty() {
                self.cluster
            } else {
                self.namespaces.has(&info.namespace)
            }
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb)
            && self.paths.iter().any(|path| {
                if path == "*" || *path == info.path {
                    return true;
                }
                let prefix = path.trim_end_matches('*').trim_end_matches('/');
                info.path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
            })
    }
}

/// A schema in use: with its level, and what its answers are marked with.
pub struct Schema {
    pub spec: Spec,
    pub level: Arc<Level>,
    pub stats: Arc<Stats>,
    pub uid: HeaderValue,
    pub level_uid: HeaderValue,
}

impl Schema {
    /// The text that tells this request's flow from others of the schema.
    pub fn flow<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.spec.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &info.namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn info(path: &str, resource: &[&str; 4]) -> RequestInfo {
        let [verb, group, kind, namespace] = resource.map(str::to_owned);
        let (resource, subresource) = kind.split_once('/').unwrap_or((&kind, ""));
        RequestInfo {
            is_resource: !resource.is_empty(),
            path: path.into(),
            verb,
            group,
            resource: resource.into(),
            subresource: subresource.into(),
            namespace,
            ..RequestInfo::default()
        }
    }

    #[test]
    fn rules_match_as_upstream_matches_them() {
        let spec = Spec::parse(&json!({"metadata": {"name": "s"}, "spec": {
        "priorityLevelConfiguration": {"name": "l"}, "matchingPrecedence": 7,
        "rules": [
            {"subjects": [{"kind": "User", "user": {"name": "u"}}, {"kind": "ServiceAccount", "serviceAccount": {"namespace": "n", "name": "*"}}],
             "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"], "namespaces": ["a"]}],
             "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/healthz", "/metrics/*"]}]},
            {"subjects": [{"kind": "Group", "group": {"name": "g"}}],
             "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": []}]}
        ]}}));
        assert_eq!((spec.precedence, spec.level.as_str()), (7, "l"));
        let user = |name: &str, group: &str| UserInfo::new(name, [group]);
        let cases = [
            ("u", "x", info("", &["get", "", "pods", "a"]), true),
            ("u", "x", info("", &["get", "", "pods/log", "a"]), true),
            ("u", "x", info("", &["get", "", "pods/exec", "a"]), false),
            ("u", "x", info("", &["list", "", "pods", "a"]), false),
            ("u", "x", info("", &["get", "", "pods", "b"]), false),
            ("u", "x", info("", &["get", "apps", "pods", "a"]), false),
            ("u", "x", info("", &["get", "", "pods", ""]), false),
            (
                "system:serviceaccount:n:any",
                "x",
                info("", &["get", "", "pods", "a"]),
                true,
            ),
            (
                "system:serviceaccount:nn:any",
                "x",
                info("", &["get", "", "pods", "a"]),
                false,
            ),
            ("v", "g", info("", &["delete", "apps", "deployments", ""]), true),
            ("v", "g", info("", &["delete", "apps", "deployments", "a"]), false),
            ("u", "x", info("/healthz", &["get", "", "", ""]), true),
            ("u", "x", info("/healthz/etcd", &["get", "", "", ""]), true),
            ("u", "x", info("/healthzz", &["get", "", "", ""]), false),
            ("u", "x", info("/metrics/slis", &["get", "", "", ""]), true),
            ("v", "g", info("/metrics/slis", &["get", "", "", ""]), false),
        ];
        for (name, group, info, wanted) in cases {
            assert_eq!(spec.matches(&user(name, group), &info), wanted, "{name} {info:?}");
        }
    }
}
