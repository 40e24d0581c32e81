//! The audit policy: which requests are recorded, at which level, without which stages.
//!
//! Rules are asked in order and the first that matches decides; a request no rule matches is not recorded. Fields
//! nobody knows are told in the log and passed over, as upstream does; everything else that is wrong is an error.

use std::collections::BTreeMap;
use std::path::Path;

use sampan_api::field::{Error, Errors, Path as Field};
use sampan_api::{codec, names};
use sampan_auth::UserInfo;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::request::RequestInfo;

/// How much of a request is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// When an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

const LEVELS: [(&str, Level); 4] = [
    ("None", Level::None),
    ("Metadata", Level::Metadata),
    ("Request", Level::Request),
    ("RequestResponse", Level::RequestResponse),
];
const STAGES: [(&str, Stage); 4] = [
    ("RequestReceived", Stage::RequestReceived),
    ("ResponseStarted", Stage::ResponseStarted),
    ("ResponseComplete", Stage::ResponseComplete),
    ("Panic", Stage::Panic),
];

impl Level {
    pub const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];
    pub fn name(self) -> &'static str {
        LEVELS[self as usize].0
    }
}

impl Stage {
    pub fn name(self) -> &'static str {
        STAGES[self as usize].0
    }
}

/// A set of stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages(u8);

impl Stages {
    fn with(self, stage: Stage) -> Self {
        Stages(self.0 | 1 << stage as u8)
    }
    fn and(self, other: Stages) -> Self {
        Stages(self.0 | other.0)
    }
    pub fn holds(self, stage: Stage) -> bool {
        self.0 & (1 << stage as u8) != 0
    }
}

/// What a policy says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    pub omit_stages: Stages,
    pub omit_managed_fields: bool,
}

/// A policy ready to be asked.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Stages,
    omit_managed_fields: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    verdict: Verdict,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    urls: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Option<Vec<String>>,
    resource_names: Option<Vec<String>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawPolicy {
    api_version: String,
    kind: String,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    rules: Option<Vec<RawRule>>,
    omit_stages: Option<Vec<String>>,
    omit_managed_fields: Option<bool>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawRule {
    level: String,
    users: Option<Vec<String>>,
    user_groups: Option<Vec<String>>,
    verbs: Option<Vec<String>>,
    resources: Option<Vec<GroupResources>>,
    namespaces: Option<Vec<String>>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Option<Vec<String>>,
    omit_stages: Option<Vec<String>>,
    omit_managed_fields: Option<bool>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// Why a policy was refused.
#[derive(Debug, thiserror::Error)]
#[error("loading audit policy file: {why}: from file {path}")]
pub struct PolicyError {
    path: String,
    why: String,
}

impl Policy {
    pub fn read(path: &Path) -> Result<Policy, PolicyError> {
        let failed = |why: String| PolicyError {
            path: path.display().to_string(),
            why,
        };
        let text = std::fs::read(path).map_err(|error| failed(format!("failed to read file path: {error}")))?;
        let (policy, unknown) = Policy::parse(&text).map_err(failed)?;
        if !unknown.is_empty() {
            tracing::warn!(
                path = %path.display(),
                fields = unknown.join(", "),
                "the audit policy has fields that nobody knows; they are passed over"
            );
        }
        Ok(policy)
    }

    /// The policy, and the paths of fields nobody knows.
    pub fn parse(text: &[u8]) -> Result<(Policy, Vec<String>), String> {
        let parsed = codec::yaml::decode(text).map_err(|error| format!("failed decoding: {error}"))?;
        // Nothing is a policy that says nothing.
        let object = match parsed.object {
            serde_json::Value::Null => serde_json::json!({}),
            object => object,
        };
        let raw: RawPolicy = serde_json::from_value(object).map_err(|error| format!("failed decoding: {error}"))?;
        if raw.api_version != "audit.k8s.io/v1" || raw.kind != "Policy" {
            return Err(format!(
                "failed decoding: no kind {:?} is registered for version {:?}; it must be a Policy of audit.k8s.io/v1",
                raw.kind, raw.api_version
            ));
        }
        let mut errors = Errors::new();
        let mut unknown: Vec<String> = parsed.duplicates;
        unknown.extend(raw.unknown.into_keys());
        let omit_stages = stages(&raw.omit_stages, &Field::new("omitStages"), &mut errors);
        let omit_managed_fields = raw.omit_managed_fields.unwrap_or(false);
        let mut rules = Vec::new();
        for (index, rule) in raw.rules.unwrap_or_default().into_iter().enumerate() {
            let path = Field::new("rules").index(index);
            unknown.extend(rule.unknown.keys().map(|key| path.child(key).as_str().to_owned()));
            let own = stages(&rule.omit_stages, &path.child("omitStages"), &mut errors);
            let verdict = Verdict {
                level: level(&rule.level, &path.child("level"), &mut errors),
                omit_stages: omit_stages.and(own),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(omit_managed_fields),
            };
            let resources = rule.resources.unwrap_or_default();
            for (at, entry) in resources.iter().enumerate() {
                let path = path.child("resources").index(at);
                unknown.extend(entry.unknown.keys().map(|key| path.child(key).as_str().to_owned()));
            }
            let rule = Rule {
                verdict,
                users: rule.users.unwrap_or_default(),
                groups: rule.user_groups.unwrap_or_default(),
                verbs: rule.verbs.unwrap_or_default(),
                resources,
                namespaces: rule.namespaces.unwrap_or_default(),
                urls: rule.non_resource_urls.unwrap_or_default(),
            };
            rule.check(&path, &mut errors);
            rules.push(rule);
        }
        match errors.as_slice() {
            [] => {}
            [one] => return Err(one.to_string()),
            several => {
                let all: Vec<_> = several.iter().map(ToString::to_string).collect();
                return Err(format!("[{}]", all.join(", ")));
            }
        }
        if rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        let policy = Policy {
            rules,
            omit_stages,
            omit_managed_fields,
        };
        Ok((policy, unknown))
    }

    /// What becomes of a request. `user`: who proved to be asking, before any impersonation.
    pub fn evaluate(&self, user: Option<&UserInfo>, info: &RequestInfo) -> Verdict {
        self.rules.iter().find(|rule| rule.matches(user, info)).map_or(
            Verdict {
                level: Level::None,
                omit_stages: self.omit_stages,
                omit_managed_fields: self.omit_managed_fields,
            },
            |rule| rule.verdict,
        )
    }
}

fn level(text: &str, path: &Field, errors: &mut Errors) -> Level {
    if let Some((_, level)) = LEVELS.iter().find(|(name, _)| *name == text) {
        return *level;
    }
    errors.push(if text.is_empty() {
        Error::required(path, "")
    } else {
        Error::not_supported(path, text, &LEVELS.map(|(name, _)| name))
    });
    Level::None
}

fn stages(given: &Option<Vec<String>>, path: &Field, errors: &mut Errors) -> Stages {
    let mut set = Stages::default();
    for (index, text) in given.iter().flatten().enumerate() {
        match STAGES.iter().find(|(name, _)| name == text) {
            Some((_, stage)) => set = set.with(*stage),
            None => errors.push(Error::invalid(
                &path.index(index),
                text.as_str(),
                format!("allowed stages are {}", STAGES.map(|(name, _)| name).join(",")),
            )),
        }
    }
    set
}

impl Rule {
    fn check(&self, path: &Field, errors: &mut Errors) {
        let at = path.child("nonResourceURLs");
        for (index, url) in self.urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            if !url.starts_with('/') {
                errors.push(Error::invalid(
                    &at.index(index),
                    url.as_str(),
                    "non-resource URL rules must begin with a '/' character",
                ));
            }
            if url.strip_suffix('*').unwrap_or(url).contains('*') {
                errors.push(Error::invalid(
                    &at.index(index),
                    url.as_str(),
                    "non-resource URL wildcards '*' must be the final character of the rule",
                ));
            }
        }
        let resources = path.child("resources");
        for entry in &self.resources {
            if !entry.group.is_empty() && entry.group != "*" {
                let problems = names::dns1123_subdomain(&entry.group);
                if !problems.is_empty() {
                    let why = problems.join(",");
                    errors.push(Error::invalid(&resources.child("group"), entry.group.as_str(), why));
                }
            }
            let resource_names = entry.resource_names.clone().unwrap_or_default();
            if !resource_names.is_empty() && entry.resources.iter().flatten().next().is_none() {
                errors.push(Error::invalid(
                    &resources.child("resourceNames"),
                    resource_names,
                    "using resourceNames requires at least one resource",
                ));
            }
        }
        if !self.urls.is_empty() && (!self.resources.is_empty() || !self.namespaces.is_empty()) {
            errors.push(Error::invalid(
                &at,
                self.urls.clone(),
                "rules cannot apply to both regular resources and non-resource URLs",
            ));
        }
    }

    fn matches(&self, user: Option<&UserInfo>, info: &RequestInfo) -> bool {
        let is_one = |list: &[String], wanted: &str| list.iter().any(|entry| entry == wanted);
        if !self.users.is_empty() && !user.is_some_and(|user| is_one(&self.users, &user.name)) {
            return false;
        }
        if !self.groups.is_empty()
            && !user.is_some_and(|user| user.groups.iter().any(|group| is_one(&self.groups, group)))
        {
            return false;
        }
        if !self.verbs.is_empty() && !is_one(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && (self.namespaces.is_empty() || is_one(&self.namespaces, &info.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|entry| entry.matches(info)));
        }
        if !self.urls.is_empty() {
            return !info.is_resource && self.urls.iter().any(|url| path_matches(url, &info.path));
        }
        true
    }
}

impl GroupResources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.group && self.group != "*" {
            return false;
        }
        let mut resources = self.resources.iter().flatten().peekable();
        if resources.peek().is_none() {
            return true;
        }
        let mut names = self.resource_names.iter().flatten().peekable();
        if names.peek().is_some() && !names.any(|name| *name == info.name) {
            return false;
        }
        resources.any(|wanted| {
            let (of, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
            match (of, subresource) {
                ("*", "") => !wanted.contains('/'),
                (of, "*") if of == info.resource => true,
                ("*", subresource) => subresource == info.subresource,
                (of, subresource) => of == info.resource && subresource == info.subresource,
            }
        })
    }
}

fn path_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => rule == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use http::Method;

    fn policy(rules: &str) -> Policy {
        let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}");
        Policy::parse(text.as_bytes()).unwrap().0
    }

    fn info(method: &Method, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::resolve(method, path, &Query::parse(query))
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = policy(
            "rules:
- {level: None, users: [quiet]}
- {level: Metadata, userGroups: [devs], verbs: [get, list]}
- level: RequestResponse
  namespaces: [kube-system, '']
  resources: [{group: '', resources: [secrets, 'pods/*', '*/scale'], resourceNames: []}]
- {level: Request, resources: [{group: apps}]}
- {level: Request, resources: [{group: '*', resources: [configmaps], resourceNames: [one]}]}
- {level: Metadata, nonResourceURLs: ['/healthz*', /version]}
- {level: None, nonResourceURLs: ['*']}
- {level: Metadata, resources: [{resources: ['*']}]}
",
        );
        let plain = UserInfo::new("eve", ["people"]);
        let quiet = UserInfo::new("quiet", ["devs"]);
        let developer = UserInfo::new("dan", ["devs"]);
        let get = Method::GET;
        for (user, method, uri, level) in [
            (&quiet, &get, "/api/v1/namespaces/kube-system/secrets/x", Level::None),
            (
                &developer,
                &get,
                "/api/v1/namespaces/kube-system/secrets/x",
                Level::Metadata,
            ),
            (
                &developer,
                &Method::PUT,
                "/api/v1/namespaces/kube-system/secrets/x",
                Level::RequestResponse,
            ),
            (
                &plain,
                &get,
                "/api/v1/namespaces/kube-system/secrets/x",
                Level::RequestResponse,
            ),
            // A namespace's list is not in any namespace.
            (&plain, &get, "/api/v1/secrets", Level::RequestResponse),
            (&plain, &get, "/api/v1/namespaces/other/secrets/x", Level::Metadata),
            (
                &plain,
                &get,
                "/api/v1/namespaces/kube-system/pods/x",
                Level::RequestResponse,
            ),
            (
                &plain,
                &get,
                "/api/v1/namespaces/kube-system/pods/x/log",
                Level::RequestResponse,
            ),
            (
                &plain,
                &get,
                "/api/v1/namespaces/kube-system/replicationcontrollers/x/scale",
                Level::RequestResponse,
            ),
            (
                &plain,
                &get,
                "/apis/apps/v1/namespaces/a/deployments/x/status",
                Level::Request,
            ),
            (&plain, &get, "/api/v1/namespaces/a/configmaps/one", Level::Request),
            (&plain, &get, "/api/v1/namespaces/a/configmaps/two", Level::Metadata),
            // As upstream: one star is every subresource, too.
            (&plain, &get, "/api/v1/namespaces/a/pods/x/status", Level::Metadata),
            (&plain, &get, "/healthz/ping", Level::Metadata),
            (&plain, &get, "/version", Level::Metadata),
            (&plain, &get, "/version/", Level::None),
            (&plain, &get, "/apis/batch/v1/jobs", Level::None),
        ] {
            let verdict = policy.evaluate(Some(user), &info(method, uri));
            assert_eq!(verdict.level, level, "{} {method} {uri}", user.name);
        }
        // Rules about users do not match who proved nothing.
        assert_eq!(
            policy
                .evaluate(None, &info(&get, "/api/v1/namespaces/kube-system/secrets"))
                .level,
            Level::RequestResponse
        );
    }

    #[test]
    fn what_is_left_out_adds_up() {
        let policy = policy(
            "omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: Request, users: [a], omitStages: [Panic], omitManagedFields: false}
- {level: Request}
",
        );
        let version = info(&Method::GET, "/version");
        let first = policy.evaluate(Some(&UserInfo::new("a", ["x"])), &version);
        assert!(first.omit_stages.holds(Stage::RequestReceived) && first.omit_stages.holds(Stage::Panic));
        assert!(!first.omit_managed_fields && !first.omit_stages.holds(Stage::ResponseComplete));
        let second = policy.evaluate(None, &version);
        assert!(second.omit_managed_fields && !second.omit_stages.holds(Stage::Panic));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "no kind \"\" is registered"),
            (
                "apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]",
                "audit.k8s.io/v1beta1",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy",
                "loaded illegal policy with 0 rules",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{}]",
                "rules[0].level: Required value",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Meta}]",
                "rules[0].level: Unsupported value: \"Meta\": supported values: \"None\", \"Metadata\", \"Request\", \"RequestResponse\"",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, omitStages: [x]}]",
                "rules[0].omitStages[0]: Invalid value: \"x\": allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, nonResourceURLs: [a, /b*c]}]",
                "[rules[0].nonResourceURLs[0]: Invalid value: \"a\": non-resource URL rules must begin with a '/' character, \
                 rules[0].nonResourceURLs[1]: Invalid value: \"/b*c\": non-resource URL wildcards '*' must be the final character of the rule]",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, nonResourceURLs: [/], namespaces: [x]}]",
                "rules cannot apply to both regular resources and non-resource URLs",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, resources: [{group: apps/v1}]}]",
                "rules[0].resources.group: Invalid value: \"apps/v1\"",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, resources: [{resourceNames: [x]}]}]",
                "using resourceNames requires at least one resource",
            ),
            ("rules: {", "failed decoding"),
        ] {
            let error = Policy::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}\n{error}");
        }
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, userGroup: [x]}]";
        assert_eq!(Policy::parse(text.as_bytes()).unwrap().1, ["rules[0].userGroup"]);
    }
}
