//! Validation of FlowSchemas and PriorityLevelConfigurations, in upstream's words.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api_names};
use serde_json::{Value, json};

use crate::checks;
use crate::names;
use crate::spec::Part;
use crate::tree;

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];
const SUBJECTS: &[&str] = &["Group", "ServiceAccount", "User"];
const MOST_QUEUES: i64 = 10_000_000;
/// How much a hash value can decide.
const ENTROPY: u32 = 60;

pub(super) fn schema(schema: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let name = tree::text(schema, "metadata.name");
    let precedence = tree::int(schema, "spec.matchingPrecedence");
    let at = path.child("matchingPrecedence");
    if precedence <= 0 {
        errors.push(Error::invalid(&at, precedence, "must be a positive value"));
    }
    if precedence > 10000 {
        errors.push(Error::invalid(&at, precedence, "must not be greater than 10000"));
    }
    if precedence == 1 && name != "exempt" {
        errors.push(Error::invalid(
            &at,
            precedence,
            "only the schema named 'exempt' may have matchingPrecedence 1",
        ));
    }
    if let Some(method) = tree::get(schema, "spec.distinguisherMethod") {
        let kind = tree::text(method, "type");
        let methods = ["ByNamespace", "ByUser"];
        if !methods.contains(&kind) {
            let at = path.child("distinguisherMethod").child("type");
            // Upstream shows the method, not its type.
            errors.push(Error::not_supported(&at, serde_json::json!({"Type": kind}), &methods));
        }
    }
    let level = tree::text(schema, "spec.priorityLevelConfiguration.name");
    let at = path.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errors.push(Error::required(&at, "must reference a priority level"));
    } else {
        checks::named(&at, level, names::whole_subdomain, errors);
    }
    for (index, item) in tree::items(schema, "spec.rules").iter().enumerate() {
        rule(item, &path.child("rules").index(index), errors);
    }
    fixed(schema, mandatory_schema(name), errors);
    conditions(schema, errors);
}

fn rule(rule: &Value, path: &Path, errors: &mut Errors) {
    let subjects = tree::items(rule, "subjects");
    for (index, item) in subjects.iter().enumerate() {
        subject(item, &path.child("subjects").index(index), errors);
    }
    if subjects.is_empty() {
        errors.push(Error::required(
            &path.child("subjects"),
            "subjects must contain at least one value",
        ));
    }
    let (resources, paths) = (
        tree::items(rule, "resourceRules"),
        tree::items(rule, "nonResourceRules"),
    );
    if resources.is_empty() && paths.is_empty() {
        errors.push(Error::required(
            path,
            "at least one of resourceRules and nonResourceRules has to be non-empty",
        ));
    }
    for (index, item) in resources.iter().enumerate() {
        resource_rule(item, &path.child("resourceRules").index(index), errors);
    }
    for (index, item) in paths.iter().enumerate() {
        path_rule(item, &path.child("nonResourceRules").index(index), errors);
    }
}

fn subject(subject: &Value, path: &Path, errors: &mut Errors) {
    let kind = tree::text(subject, "kind");
    // The member each kind has, in the order the others are complained about.
    let members = [
        ("User", "user"),
        ("ServiceAccount", "serviceAccount"),
        ("Group", "group"),
    ];
    let Some((_, member)) = members.iter().find(|(known, _)| *known == kind) else {
        errors.push(Error::not_supported(&path.child("kind"), kind, SUBJECTS));
        return;
    };
    let at = path.child(member);
    match tree::get(subject, member) {
        None => errors.push(Error::required(
            &at,
            format!("{member} is required when subject kind is '{kind}'"),
        )),
        Some(value) => {
            let name = tree::text(value, "name");
            if name.is_empty() {
                errors.push(Error::required(&at.child("name"), ""));
            } else if kind == "ServiceAccount" && name != "*" {
                checks::named(&at.child("name"), name, names::whole_subdomain, errors);
            }
            if kind == "ServiceAccount" {
                let namespace = tree::text(value, "namespace");
                if namespace.is_empty() {
                    errors.push(Error::required(
                        &at.child("namespace"),
                        "must specify namespace for service account",
                    ));
                } else {
                    checks::named(&at.child("namespace"), namespace, api_names::dns1123_label, errors);
                }
            }
        }
    }
    for (other, member) in members.iter().filter(|(other, _)| *other != kind) {
        if tree::get(subject, member).is_some() {
            errors.push(Error::forbidden(
                &path.child(member),
                format!("{member} is forbidden when subject kind is not '{other}'"),
            ));
        }
    }
}

fn texts<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    tree::items(rule, field).iter().filter_map(Value::as_str).collect()
}

fn verbs(rule: &Value, path: &Path, errors: &mut Errors) {
    let at = path.child("verbs");
    let verbs = texts(rule, "verbs");
    if verbs.is_empty() {
        errors.push(Error::required(&at, "verbs must contain at least one value"));
    } else if verbs.contains(&"*") {
        if verbs.len() > 1 {
            errors.push(Error::invalid(
                &at,
                json!(verbs),
                "if '*' is present, must not specify other verbs",
            ));
        }
    } else if verbs.iter().any(|verb| !VERBS.contains(verb)) {
        errors.push(Error::not_supported(&at, json!(verbs), VERBS));
    }
}

fn resource_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    verbs(rule, path, errors);
    for (field, missing, others) in [
        (
            "apiGroups",
            "resource rules must supply at least one api group",
            "api groups",
        ),
        (
            "resources",
            "resource rules must supply at least one resource",
            "resources",
        ),
    ] {
        let names = texts(rule, field);
        if names.is_empty() {
            errors.push(Error::required(&path.child(field), missing));
        } else if names.len() > 1 && names.contains(&"*") {
            errors.push(Error::invalid(
                &path.child(field),
                json!(names),
                format!("if '*' is present, must not specify other {others}"),
            ));
        }
    }
    let at = path.child("namespaces");
    let namespaces = texts(rule, "namespaces");
    if namespaces.is_empty() {
        if !tree::flag(rule, "clusterScope") {
            errors.push(Error::required(
                &at,
                "resource rules that are not cluster scoped must supply at least one namespace",
            ));
        }
    } else if namespaces.contains(&"*") {
        if namespaces.len() > 1 {
            errors.push(Error::invalid(
                &at,
                json!(namespaces),
                "if '*' is present, must not specify other namespaces",
            ));
        }
    } else {
        for (index, namespace) in namespaces.iter().enumerate() {
            for problem in api_names::dns1123_label(namespace) {
                errors.push(Error::invalid(
                    &at.index(index),
                    *namespace,
                    format!("each member of this list must be '*' or a DNS-1123 label; {problem}"),
                ));
            }
        }
    }
}

fn path_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    verbs(rule, path, errors);
    let at = path.child("nonResourceURLs");
    let urls = texts(rule, "nonResourceURLs");
    if urls.is_empty() {
        errors.push(Error::required(&at, "nonResourceURLs must contain at least one value"));
    } else if urls.contains(&"*") {
        if urls.len() > 1 {
            errors.push(Error::invalid(
                &at,
                json!(urls),
                "if '*' is present, must not specify other non-resource URLs",
            ));
        }
    } else {
        for (index, url) in urls.iter().enumerate() {
            if let Some(problem) = url_problem(url) {
                errors.push(Error::invalid(&at.index(index), *url, problem));
            }
        }
    }
}

fn url_problem(url: &str) -> Option<&'static str> {
    Some(match url {
        "" => "must not be empty",
        "/" => return None,
        _ if !url.starts_with('/') => "must start with slash",
        _ if url.contains(' ') => "must not contain white-space",
        _ if url.contains("//") => "must not contain double slash",
        _ => {
            let stars = url.matches('*').count();
            if stars > 1 || (stars == 1 && !url.ends_with("/*")) {
                "wildcard can only do suffix matching"
            } else {
                return None;
            }
        }
    })
}

pub(super) fn level(level: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let kind = tree::text(level, "spec.type");
    let name = tree::text(level, "metadata.name");
    if (name == "exempt") != (kind == "Exempt") {
        errors.push(Error::invalid(
            &path.child("type"),
            kind,
            "must be 'Exempt' if and only if `name` is 'exempt'",
        ));
    }
    let (limited, exempt) = (tree::get(level, "spec.limited"), tree::get(level, "spec.exempt"));
    match kind {
        "Exempt" => {
            let limited_at = path.child("limited");
            if limited.is_some() {
                errors.push(Error::forbidden(&limited_at, "must be nil if the type is not Limited"));
            }
            if let Some(exempt) = exempt {
                shares(exempt, &path.child("exempt"), errors);
                lendable(exempt, &path.child("exempt"), errors);
            }
        }
        "Limited" => {
            if exempt.is_some() {
                errors.push(Error::forbidden(
                    &path.child("exempt"),
                    "must be nil if the type is Limited",
                ));
            }
            let at = path.child("limited");
            match limited {
                None => errors.push(Error::required(&at, "must not be empty when type is Limited")),
                Some(limited) => {
                    shares(limited, &at, errors);
                    response(limited, &at.child("limitResponse"), errors);
                    lendable(limited, &at, errors);
                    if let Some(percent) =
                        tree::opt_int(limited, "borrowingLimitPercent").filter(|percent| *percent < 0)
                    {
                        errors.push(Error::invalid(
                            &at.child("borrowingLimitPercent"),
                            percent,
                            "if specified, must be a non-negative integer",
                        ));
                    }
                }
            }
        }
        _ => errors.push(Error::not_supported(&path.child("type"), kind, &["Exempt", "Limited"])),
    }
    fixed(level, mandatory_level(name), errors);
    conditions(level, errors);
}

fn shares(limits: &Value, path: &Path, errors: &mut Errors) {
    if let Some(shares) = tree::opt_int(limits, "nominalConcurrencyShares").filter(|shares| *shares < 0) {
        let at = path.child("nominalConcurrencyShares");
        errors.push(Error::invalid(&at, shares, "must be a non-negative integer"));
    }
}

fn lendable(limits: &Value, path: &Path, errors: &mut Errors) {
    if let Some(percent) = tree::opt_int(limits, "lendablePercent").filter(|percent| !(0..=100).contains(percent)) {
        let at = path.child("lendablePercent");
        errors.push(Error::invalid(&at, percent, "must be between 0 and 100, inclusive"));
    }
}

fn response(limited: &Value, path: &Path, errors: &mut Errors) {
    let queuing = tree::get(limited, "limitResponse.queuing");
    let at = path.child("queuing");
    match (tree::text(limited, "limitResponse.type"), queuing) {
        ("Reject", None) => {}
        ("Reject", Some(_)) => errors.push(Error::forbidden(
            &at,
            "must be nil if limited.limitResponse.type is not Limited",
        )),
        ("Queue", None) => errors.push(Error::required(
            &at,
            "must not be empty if limited.limitResponse.type is Limited",
        )),
        ("Queue", Some(queuing)) => queues(queuing, &at, errors),
        (other, _) => errors.push(Error::not_supported(&path.child("type"), other, &["Queue", "Reject"])),
    }
}

fn queues(queuing: &Value, path: &Path, errors: &mut Errors) {
    let [length, queues, hand] = ["queueLengthLimit", "queues", "handSize"].map(|field| tree::int(queuing, field));
    let mut refuse = |field: &str, value: i64, why: String| errors.push(Error::invalid(&path.child(field), value, why));
    if length <= 0 {
        refuse("queueLengthLimit", length, "must be positive".into());
    }
    if queues <= 0 {
        refuse("queues", queues, "must be positive".into());
    } else if queues > MOST_QUEUES {
        refuse("queues", queues, format!("must not be greater than {MOST_QUEUES}"));
    }
    if hand <= 0 {
        refuse("handSize", hand, "must be positive".into());
    } else if hand > queues {
        refuse(
            "handSize",
            hand,
            format!("should not be greater than queues ({queues})"),
        );
    } else if entropy(queues, hand) > ENTROPY {
        refuse(
            "handSize",
            hand,
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {ENTROPY}"
            ),
        );
    }
}

/// How many bits it takes to deal a hand.
fn entropy(deck: i64, hand: i64) -> u32 {
    // A larger hand needs more than enough; there is no use in counting on.
    let bits: f64 = (0..hand.min(64)).map(|dealt| ((deck - dealt) as f64).log2()).sum();
    bits.ceil() as u32
}

/// The specification of a mandatory object is what it is, but for the exempt level's own part.
fn fixed(object: &Object, wanted: Option<Value>, errors: &mut Errors) {
    let Some(mut wanted) = wanted else { return };
    let name = tree::text(object, "metadata.name");
    let spec = tree::get(object, "spec").cloned().unwrap_or_default();
    let mut what = String::new();
    if wanted.get("exempt").is_some() {
        what = " except the 'spec.exempt' field".to_owned();
        wanted["exempt"] = spec.get("exempt").cloned().unwrap_or_default();
    }
    if !tree::same(Some(&spec), Some(&wanted)) {
        errors.push(Error::invalid(
            &Path::new("spec"),
            spec,
            format!("spec of '{name}'{what} must equal the fixed value"),
        ));
    }
}

fn conditions(object: &Object, errors: &mut Errors) {
    let path = Path::new("status").child("conditions");
    let mut seen = Vec::new();
    for (index, condition) in tree::items(object, "status.conditions").iter().enumerate() {
        let kind = tree::text(condition, "type");
        let at = path.index(index).child("type");
        if seen.contains(&kind) {
            errors.push(Error::duplicate(&at, kind));
        }
        seen.push(kind);
        if kind.is_empty() {
            errors.push(Error::required(&at, ""));
        }
    }
}

fn everything() -> (Value, Value) {
    (
        json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]),
        json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]),
    )
}

fn mandatory_schema(name: &str) -> Option<Value> {
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let (resources, paths) = everything();
    match name {
        "exempt" => Some(json!({
            "priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 1,
            "rules": [{"subjects": [group("system:masters")], "resourceRules": resources, "nonResourceRules": paths}],
        })),
        "catch-all" => Some(json!({
            "priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": 10000,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{"subjects": [group("system:unauthenticated"), group("system:authenticated")],
                "resourceRules": resources, "nonResourceRules": paths}],
        })),
        _ => None,
    }
}

fn mandatory_level(name: &str) -> Option<Value> {
    match name {
        "exempt" => Some(json!({"type": "Exempt", "exempt": {}})),
        "catch-all" => Some(json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}}})),
        _ => None,
    }
}

/// The conditions that are written on their own.
pub(super) fn status(part: Part<'_>, new: &Object, _: &Object, errors: &mut Errors) {
    if part == Part::View("status") {
        conditions(new, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(check: fn(&Object, &mut Errors), object: Value) -> Vec<String> {
        let mut errors = Errors::default();
        check(&object, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn schemas() {
        let with = |change: fn(&mut Value)| {
            let mut object = json!({"metadata": {"name": "s"}, "spec": {
                "matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "l"},
                "rules": [{"subjects": [{"kind": "User", "user": {"name": "u"}}],
                    "resourceRules": [{"verbs": ["get"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}],
                    "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/a/*", "/"]}]}]}});
            change(&mut object);
            texts(schema, object)
        };
        assert_eq!(with(|_| ()), [] as [&str; 0]);
        type Case = (fn(&mut Value), &'static str);
        let cases: [Case; 9] = [
            (
                |o| o["spec"]["matchingPrecedence"] = 1.into(),
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
            ),
            (
                |o| o["spec"]["rules"][0]["subjects"] = json!([]),
                "spec.rules[0].subjects: Required value: subjects must contain at least one value",
            ),
            (
                |o| o["spec"]["rules"][0]["subjects"][0]["group"] = json!({"name": "g"}),
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
            ),
            (
                |o| {
                    o["spec"]["rules"][0]["subjects"][0] =
                        json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*"}})
                },
                "spec.rules[0].subjects[0].serviceAccount.namespace: Required value: must specify namespace for service account",
            ),
            (
                |o| o["spec"]["rules"][0]["resourceRules"][0]["namespaces"] = json!([]),
                "spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace",
            ),
            (
                |o| o["spec"]["rules"][0]["resourceRules"][0]["resources"] = json!(["*", "pods"]),
                "spec.rules[0].resourceRules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources",
            ),
            (
                |o| o["spec"]["rules"][0]["nonResourceRules"][0]["nonResourceURLs"] = json!(["/a*"]),
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"/a*\": wildcard can only do suffix matching",
            ),
            (
                |o| o["spec"]["priorityLevelConfiguration"] = json!({}),
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
            ),
            (
                |o| {
                    o["spec"]["rules"][0]["resourceRules"] = json!([]);
                    o["spec"]["rules"][0]["nonResourceRules"] = json!([]);
                },
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
            ),
        ];
        for (change, wanted) in cases {
            assert_eq!(with(change), [wanted]);
        }
    }

    #[test]
    fn levels() {
        let queuing = |queues: i64, hand: i64| {
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 1,
            "limitResponse": {"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 5}}}})
        };
        let cases = [
            ("l", queuing(64, 6), None),
            ("l", queuing(4, 6), Some("should not be greater than queues (4)")),
            (
                "l",
                queuing(1000, 8),
                Some("required entropy bits of deckSize 1000 and handSize 8 should not be greater than 60"),
            ),
            ("l", queuing(20_000_000, 1), Some("must not be greater than 10000000")),
            (
                "l",
                json!({"type": "Limited"}),
                Some("must not be empty when type is Limited"),
            ),
            (
                "catch-all",
                json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 6, "lendablePercent": 0, "limitResponse": {"type": "Reject"}}}),
                Some("spec of 'catch-all' must equal the fixed value"),
            ),
            (
                "exempt",
                json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 9}}),
                None,
            ),
        ];
        for (name, spec, wanted) in cases {
            let errors = texts(level, json!({"metadata": {"name": name}, "spec": spec}));
            match wanted {
                None => assert_eq!(errors, [] as [&str; 0], "{name}"),
                Some(wanted) => assert!(errors.len() == 1 && errors[0].ends_with(wanted), "{errors:?}"),
            }
        }
    }
}
