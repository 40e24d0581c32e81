//! Policy rules: what one allows, and whether some rules cover others.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::attributes::{Attributes, quoted_list};
use crate::user::UserInfo;

/// One rule of a role. An empty list allows nothing, but for `resource_names`, where it means any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|one| one == item)
}

fn has_or_all(list: &[String], item: &str) -> bool {
    list.iter().any(|one| one == item || one == "*")
}

/// `/path*` covers everything that begins with `/path`.
fn url_covers(own: &str, wanted: &str) -> bool {
    own == wanted || (own.ends_with('*') && wanted.starts_with(own.trim_end_matches('*')))
}

impl Rule {
    /// Every verb on every resource and every path.
    pub fn everything() -> [Rule; 2] {
        let all = || vec!["*".to_owned()];
        let resources = Rule {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..Rule::default()
        };
        let paths = Rule {
            verbs: all(),
            non_resource_urls: all(),
            ..Rule::default()
        };
        [resources, paths]
    }

    /// From `rules[i]` of a role; what is not a string is ignored, as validation never lets it be stored.
    pub fn from_value(value: &Value) -> Self {
        let list = |name: &str| -> Vec<String> {
            let items = value.get(name).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).map(Into::into).collect()
        };
        Rule {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn all_of(role: &Value) -> Vec<Self> {
        let rules = role.get("rules").and_then(Value::as_array).into_iter().flatten();
        rules.map(Self::from_value).collect()
    }

    /// As in a role; empty lists are left out, except `verbs`.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (name, list) in [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                map.insert(name.into(), list.as_slice().into());
            }
        }
        map.insert("verbs".into(), self.verbs.as_slice().into());
        Value::Object(map)
    }

    /// Whether this rule allows the request.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        if !has_or_all(&self.verbs, request.verb) {
            return false;
        }
        if !request.resource_request {
            return self.non_resource_urls.iter().any(|own| url_covers(own, request.path));
        }
        has_or_all(&self.api_groups, request.group)
            && self.names_resource(request.resource, request.subresource)
            && (self.resource_names.is_empty() || has(&self.resource_names, request.name))
    }

    fn names_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|own| {
            if own == "*" {
                return true;
            }
            if subresource.is_empty() {
                return own == resource;
            }
            match own.split_once('/') {
                Some((of, sub)) => sub == subresource && (of == resource || of == "*"),
                None => false,
            }
        })
    }

    /// One verb, one resource (or URL), one name each.
    fn atoms(&self) -> impl Iterator<Item = Rule> {
        let one = |item: &String| vec![item.clone()];
        let names: Vec<Vec<String>> = if self.resource_names.is_empty() {
            vec![Vec::new()]
        } else {
            self.resource_names.iter().map(one).collect()
        };
        let mut atoms = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    for name in &names {
                        atoms.push(Rule {
                            verbs: one(verb),
                            api_groups: one(group),
                            resources: one(resource),
                            resource_names: name.clone(),
                            non_resource_urls: Vec::new(),
                        });
                    }
                }
            }
        }
        for url in &self.non_resource_urls {
            for verb in &self.verbs {
                atoms.push(Rule {
                    verbs: one(verb),
                    non_resource_urls: one(url),
                    ..Rule::default()
                });
            }
        }
        atoms.into_iter()
    }

    /// Whether this rule covers `atom`, which has at most one of everything.
    fn covers(&self, atom: &Rule) -> bool {
        let all = |own: &[String], wanted: &[String]| has(own, "*") || wanted.iter().all(|item| has(own, item));
        let resources = atom.resources.iter().all(|wanted| {
            has_or_all(&self.resources, wanted)
                || wanted
                    .split_once('/')
                    .is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
        });
        let names = self.resource_names.is_empty()
            || (!atom.resource_names.is_empty()
                && atom.resource_names.iter().all(|name| has(&self.resource_names, name)));
        let urls = atom
            .non_resource_urls
            .iter()
            .all(|wanted| self.non_resource_urls.iter().any(|own| url_covers(own, wanted)));
        all(&self.verbs, &atom.verbs) && all(&self.api_groups, &atom.api_groups) && resources && names && urls
    }

    /// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`
    fn compact(&self) -> String {
        let parts: Vec<_> = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted_list(list)))
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// What of `wanted` the holder of `own` does not have, in the smallest pieces. Empty: it is covered.
pub fn missing(own: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(Rule::atoms)
        .filter(|atom| !own.iter().any(|rule| rule.covers(atom)))
        .collect()
}

/// Whether `own` allows everything `wanted` allows.
pub fn covers(own: &[Rule], wanted: &[Rule]) -> bool {
    missing(own, wanted).is_empty()
}

/// Nobody may grant what they do not have: the text of the refusal if `user`, who has `own`, may not grant `wanted`.
pub fn escalation(user: &UserInfo, own: &[Rule], wanted: &[Rule]) -> Option<String> {
    let missing = missing(own, wanted);
    if missing.is_empty() {
        return None;
    }
    // Verbs of the same resource (and name) are told in one line.
    let mut merged: Vec<Rule> = Vec::new();
    for atom in missing {
        let same = merged.iter_mut().find(|rule| {
            !atom.resources.is_empty()
                && rule.api_groups == atom.api_groups
                && rule.resources == atom.resources
                && rule.resource_names == atom.resource_names
        });
        match same {
            Some(rule) => rule.verbs.extend(atom.verbs),
            None => merged.push(atom),
        }
    }
    let lines: BTreeSet<_> = merged.iter().map(Rule::compact).collect();
    Some(format!(
        "user {} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        crate::attributes::quoted(&user.name),
        quoted_list(&user.groups),
        lines.into_iter().collect::<Vec<_>>().join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ')
            .filter(|w| !w.is_empty())
            .map(|w| if w == "core" { "" } else { w }.into())
            .collect()
    }
    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        Rule {
            verbs: words(verbs),
            api_groups: words(groups),
            resources: words(resources),
            resource_names: words(names),
            non_resource_urls: Vec::new(),
        }
    }
    fn urls(verbs: &str, urls: &str) -> Rule {
        Rule {
            verbs: words(verbs),
            non_resource_urls: words(urls),
            ..Rule::default()
        }
    }

    #[test]
    fn rules_match_as_upstreams() {
        let user = UserInfo::anonymous();
        let asks = |rule: &Rule, verb: &str, group: &str, resource: &str, sub: &str, name: &str| {
            rule.allows(&Attributes {
                subresource: sub,
                name,
                ..Attributes::resource(&user, verb, group, resource)
            })
        };
        let pods = rule("get list", "core", "pods", "");
        assert!(asks(&pods, "get", "", "pods", "", "a"));
        assert!(!asks(&pods, "get", "", "pods", "log", "a"));
        assert!(!asks(&pods, "delete", "", "pods", "", "a"));
        assert!(!asks(&pods, "get", "apps", "pods", "", "a"));
        let scale = rule("*", "*", "*/scale", "");
        assert!(asks(&scale, "update", "apps", "deployments", "scale", "d"));
        assert!(!asks(&scale, "update", "apps", "deployments", "", "d"));
        let everything = rule("*", "*", "*", "");
        assert!(asks(&everything, "x", "y", "z", "sub", ""));
        let named = rule("get", "core", "secrets", "a b");
        assert!(asks(&named, "get", "", "secrets", "", "b"));
        assert!(!asks(&named, "get", "", "secrets", "", "c"));
        assert!(!asks(&named, "get", "", "secrets", "", ""));
        assert!(!asks(&Rule::default(), "get", "", "pods", "", ""));

        let path = |rule: &Rule, path: &str| rule.allows(&Attributes::path(&user, "get", path));
        let health = urls("get", "/healthz /healthz/*");
        assert!(path(&health, "/healthz") && path(&health, "/healthz/ping"));
        assert!(!path(&health, "/health") && !path(&pods, "/healthz"));
        assert!(path(&urls("*", "*"), "/anything"));
        assert!(!asks(&urls("*", "*"), "get", "", "pods", "", ""));
    }

    #[test]
    fn nobody_grants_more_than_they_have() {
        let own = [
            rule("get list", "core", "pods", ""),
            rule("*", "apps", "*", ""),
            rule("get", "core", "secrets", "mine"),
        ];
        assert!(covers(&own, &[rule("list", "core", "pods", "x")]));
        assert!(covers(&own, &[rule("delete", "apps", "deployments/scale", "")]));
        assert!(covers(&own, &[rule("get", "core", "secrets", "mine")]));
        assert!(!covers(&own, &[rule("get", "core", "secrets", "")]));
        assert!(!covers(&own, &[rule("*", "core", "pods", "")]));
        assert!(covers(
            &[rule("get", "*", "*/scale", "")],
            &[rule("get", "apps", "x/scale", "")]
        ));
        assert!(covers(&[urls("get", "/api*")], &[urls("get", "/api/v1 /apis/*")]));
        assert!(!covers(&[urls("get", "/api")], &[urls("get", "/api/*")]));

        let jane = UserInfo::new("jane", ["devs"]);
        let text = escalation(&jane, &own, &[rule("get delete patch", "core", "pods configmaps", "")]).unwrap();
        assert_eq!(
            text,
            "user \"jane\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"configmaps\"], Verbs:[\"get\" \"delete\" \"patch\"]}\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"patch\"]}"
        );
        assert_eq!(escalation(&jane, &own, &[rule("get", "core", "pods", "")]), None);
    }

    fn some_rule() -> impl Strategy<Value = Rule> {
        let pick = |of: &'static [&'static str]| {
            proptest::sample::subsequence(of, 0..=of.len())
                .prop_map(|items| items.into_iter().map(String::from).collect::<Vec<_>>())
        };
        (
            pick(&["get", "list", "*"]),
            pick(&["", "apps", "*"]),
            pick(&["pods", "pods/log", "*/log", "*"]),
            pick(&["a", "b"]),
        )
            .prop_map(|(verbs, api_groups, resources, resource_names)| Rule {
                verbs,
                api_groups,
                resources,
                resource_names,
                non_resource_urls: Vec::new(),
            })
    }

    proptest! {
        /// Covering is sound: what a covered rule allows, its cover allows.
        #[test]
        fn a_cover_allows_what_is_covered(
            own in proptest::collection::vec(some_rule(), 0..3),
            wanted in some_rule(),
            verb in prop::sample::select(vec!["get", "list", "watch"]),
            group in prop::sample::select(vec!["", "apps", "batch"]),
            resource in prop::sample::select(vec!["pods", "jobs"]),
            subresource in prop::sample::select(vec!["", "log", "status"]),
            name in prop::sample::select(vec!["", "a", "c"]),
        ) {
            let user = UserInfo::anonymous();
            let request = Attributes { subresource, name, ..Attributes::resource(&user, verb, group, resource) };
            if covers(&own, std::slice::from_ref(&wanted)) && wanted.allows(&request) {
                prop_assert!(own.iter().any(|rule| rule.allows(&request)));
            }
            prop_assert!(covers(std::slice::from_ref(&wanted), std::slice::from_ref(&wanted)));
            let back = Rule::from_value(&wanted.to_value());
            prop_assert_eq!(back, wanted);
        }
    }
}
