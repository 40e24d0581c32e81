//! Validation of webhooks and admission policies (all but their expressions).

use std::collections::BTreeSet;

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use super::expressions;
use crate::checks::{self, Check, Rule};
use crate::names;
use crate::pod_spec::validate::selector;
use crate::tree;

const FAILURES: [&str; 2] = ["Fail", "Ignore"];
const MATCHES: [&str; 2] = ["Equivalent", "Exact"];

const WEBHOOK: &[Check] = &[
    ("failurePolicy", Rule::GivenOneOf(&FAILURES)),
    ("matchPolicy", Rule::GivenOneOf(&MATCHES)),
];

pub(super) fn webhooks(configuration: &Object, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, hook) in tree::items(configuration, "webhooks").iter().enumerate() {
        let path = Path::new("webhooks").index(index);
        let name = tree::text(hook, "name");
        qualified(name, &path.child("name"), errors);
        for (number, rule) in tree::items(hook, "rules").iter().enumerate() {
            operations(rule, &path.child("rules").index(number), errors);
        }
        checks::run_at(WEBHOOK, hook, &path, None, errors);
        side_effects(hook, &path.child("sideEffects"), errors);
        if let Some(seconds) = tree::opt_int(hook, "timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
            errors.push(Error::invalid(
                &path.child("timeoutSeconds"),
                seconds,
                "the timeout value must be between 1 and 30 seconds",
            ));
        }
        for field in ["namespaceSelector", "objectSelector"] {
            selector(hook, field, &path.child(field), errors);
        }
        let again = [("reinvocationPolicy", Rule::GivenOneOf(&["IfNeeded", "Never"]))];
        checks::run_at(&again, hook, &path, None, errors);
        client(hook, &path.child("clientConfig"), errors);
        let conditions = tree::items(hook, "matchConditions");
        expressions::conditions(None, conditions, &path.child("matchConditions"), errors);
        review_versions(hook, &path.child("admissionReviewVersions"), errors);
        if !name.is_empty() && !seen.insert(name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
    }
}

fn side_effects(hook: &Value, path: &Path, errors: &mut Errors) {
    const EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
    match tree::get(hook, "sideEffects").and_then(Value::as_str) {
        None => errors.push(Error::required(path, "must specify one of None, NoneOnDryRun")),
        Some(effects) if !EFFECTS.contains(&effects) => errors.push(Error::not_supported(path, effects, &EFFECTS)),
        Some(_) => {}
    }
}

/// A name of at least three parts, so that it can hardly clash.
fn qualified(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let wrong = api::dns1123_subdomain(name);
    if !wrong.is_empty() {
        errors.push(Error::invalid(path, name, wrong.join(",")));
    } else if name.split('.').count() < 3 {
        errors.push(Error::invalid(
            path,
            name,
            "should be a domain with at least three segments separated by dots",
        ));
    }
}

fn operations(rule: &Value, path: &Path, errors: &mut Errors) {
    let list = |field: &str| tree::items(rule, field);
    let several = |field: &str, what: &str, errors: &mut Errors| {
        let at = path.child(field);
        if list(field).is_empty() {
            errors.push(Error::required(&at, ""));
        } else if list(field).len() > 1 && list(field).iter().any(|value| value == "*") {
            let why = format!("if '*' is present, must not specify other {what}");
            errors.push(Error::invalid(&at, list(field).to_vec(), why));
        }
    };
    several("operations", "operations", errors);
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    checks::run_at(
        &[("operations[]", Rule::GivenOneOf(&OPERATIONS))],
        rule,
        path,
        None,
        errors,
    );
    several("apiGroups", "API groups", errors);
    several("apiVersions", "API versions", errors);
    for (index, _) in list("apiVersions")
        .iter()
        .enumerate()
        .filter(|(_, version)| *version == "")
    {
        errors.push(Error::required(&path.child("apiVersions").index(index), ""));
    }
    resources(list("resources"), &path.child("resources"), errors);
    const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
    checks::run_at(&[("scope", Rule::GivenOneOf(&SCOPES))], rule, path, None, errors);
}

/// What a wildcard covers must not be named again.
fn resources(resources: &[Value], path: &Path, errors: &mut Errors) {
    if resources.is_empty() {
        errors.push(Error::required(path, ""));
    }
    let (mut whole, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    let mut bare = false;
    for (index, resource) in resources.iter().filter_map(Value::as_str).enumerate() {
        let at = path.index(index);
        let Some((plural, sub)) = resource.split_once('/') else {
            match resource {
                "" => errors.push(Error::required(&at, "")),
                // As upstream has it: the last one without a subresource decides.
                _ => bare = resource != "*",
            }
            continue;
        };
        let covered = |by: String| format!("if '{by}' is present, must not specify {resource}");
        if whole.contains(plural) {
            errors.push(Error::invalid(&at, resource, covered(format!("{plural}/*"))));
        }
        if everywhere.contains(sub) {
            errors.push(Error::invalid(&at, resource, covered(format!("*/{sub}"))));
        }
        if sub == "*" {
            whole.insert(plural);
        }
        if plural == "*" {
            everywhere.insert(sub);
        }
    }
    let has = |wanted: &str| resources.iter().any(|resource| resource == wanted);
    if resources.len() > 1 && has("*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.push(Error::invalid(path, resources.to_vec(), why));
    }
    if has("*") && bare {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(Error::invalid(path, resources.to_vec(), why));
    }
}

fn client(hook: &Value, path: &Path, errors: &mut Errors) {
    let url = tree::get(hook, "clientConfig.url").and_then(Value::as_str);
    let service = tree::get(hook, "clientConfig.service");
    match (url, service) {
        (Some(address), None) => url_of(address, &path.child("url"), errors),
        (None, Some(service)) => service_of(service, &path.child("service"), errors),
        _ => errors.push(Error::required(path, "exactly one of url or service is required")),
    }
}

fn url_of(url: &str, path: &Path, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    if url.chars().any(|char| char.is_control()) {
        let why = format!("url must be a valid URL: parse {url:?}: net/url: invalid control character in URL{FORM}");
        errors.push(Error::required(path, &why));
        return;
    }
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if !scheme.is_empty() && !scheme.contains('/') => (scheme.to_lowercase(), rest),
        _ => (String::new(), rest),
    };
    let authority = rest
        .strip_prefix("//")
        .map_or("", |rest| rest.split('/').next().unwrap_or_default());
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut wrong = |value: &str, why: &str| errors.push(Error::invalid(path, value, why));
    if scheme != "https" {
        wrong(&scheme, &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        wrong("", &format!("host must be specified{FORM}"));
    }
    for (part, why) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            wrong(part, why);
        }
    }
}

fn service_of(service: &Value, path: &Path, errors: &mut Errors) {
    // Each is reported under the other's name, as upstream does; clients have learnt it.
    for (field, told) in [("namespace", "name"), ("name", "namespace")] {
        if tree::text(service, field).is_empty() {
            errors.push(Error::required(&path.child(told), ""));
        }
    }
    let port = tree::int(service, "port");
    let wrong = api::port_number(port);
    if !wrong.is_empty() {
        let why = format!("port is not valid: {}", wrong.join(", "));
        errors.push(Error::invalid(&path.child("port"), port, why));
    }
    let asked = tree::text(service, "path");
    let mut wrong = |why: String| errors.push(Error::invalid(&path.child("path"), asked, why));
    if asked.is_empty() || asked == "/" {
        return;
    }
    if asked == "//" {
        wrong("segment[0] may not be empty".into());
        return;
    }
    if !asked.starts_with('/') {
        wrong("must start with a '/'".into());
    }
    let mut chars = asked.chars();
    chars.next();
    let rest = chars.as_str();
    for (index, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            wrong(format!("segment[{index}] may not be empty"));
            continue;
        }
        for why in api::dns1123_subdomain(step) {
            wrong(format!("segment[{index}]: {why}"));
        }
    }
}

fn review_versions(hook: &Value, path: &Path, errors: &mut Errors) {
    let versions = tree::items(hook, "admissionReviewVersions");
    if versions.is_empty() {
        errors.push(Error::required(path, "must specify one of v1, v1beta1"));
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().filter_map(Value::as_str).enumerate() {
        let at = path.index(index);
        if !seen.insert(version) {
            errors.push(Error::invalid(&at, version, "duplicate version"));
            continue;
        }
        for why in api::dns1035_label(version) {
            errors.push(Error::invalid(&at, version, why));
        }
    }
    if !versions.iter().any(|version| version == "v1" || version == "v1beta1") {
        errors.push(Error::invalid(
            path,
            versions.to_vec(),
            "must include at least one of v1, v1beta1",
        ));
    }
}

/// What policies of both kinds have before their expressions, in upstream's order.
pub(super) fn policy(policy: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    given(
        policy,
        "spec.failurePolicy",
        &path.child("failurePolicy"),
        &FAILURES,
        errors,
    );
    if tree::get(policy, "spec.paramKind").is_some() {
        param_kind(policy, errors);
    }
    let at = path.child("matchConstraints");
    match tree::get(policy, "spec.matchConstraints") {
        None => errors.push(Error::required(&at, "")),
        Some(constraints) => {
            criteria(constraints, &at, errors);
            if tree::items(constraints, "resourceRules").is_empty() {
                errors.push(Error::required(&at.child("resourceRules"), ""));
            }
        }
    }
}

/// A pointer in Go that has to be given, and be one of these.
fn given(owner: &Value, field: &str, path: &Path, allowed: &[&str], errors: &mut Errors) {
    match tree::get(owner, field).and_then(Value::as_str) {
        None => errors.push(Error::required(path, "")),
        Some(text) if !allowed.contains(&text) => errors.push(Error::not_supported(path, text, allowed)),
        Some(_) => {}
    }
}

/// The kind of parameters must be possible.
fn param_kind(policy: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("paramKind");
    let (api_version, kind) = (
        tree::text(policy, "spec.paramKind.apiVersion"),
        tree::text(policy, "spec.paramKind.kind"),
    );
    let at = path.child("apiVersion");
    match api_version.split_once('/').unwrap_or(("", api_version)) {
        _ if api_version.is_empty() => errors.push(Error::required(&at, "")),
        (_, version) if version.contains('/') => errors.push(Error::invalid(
            &at,
            api_version,
            format!("unexpected GroupVersion string: {api_version}"),
        )),
        (group, version) => {
            let why = api::dns1123_subdomain(group);
            if !group.is_empty() && !why.is_empty() {
                errors.push(Error::invalid(&at, group, why.join(",")));
            }
            let why = api::dns1035_label(version);
            if version.is_empty() {
                errors.push(Error::invalid(&at, api_version, "version must be specified"));
            } else if !why.is_empty() {
                errors.push(Error::invalid(&at, version, why.join(",")));
            }
        }
    }
    let why = api::dns1035_label(&kind.to_lowercase());
    if kind.is_empty() {
        errors.push(Error::required(&path.child("kind"), ""));
    } else if !why.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", why.join(","));
        errors.push(Error::invalid(&path.child("kind"), kind, why));
    }
}

/// Rules, names and selectors, of policies and of bindings.
fn criteria(constraints: &Value, path: &Path, errors: &mut Errors) {
    given(constraints, "matchPolicy", &path.child("matchPolicy"), &MATCHES, errors);
    for field in ["namespaceSelector", "objectSelector"] {
        let at = path.child(field);
        if tree::get(constraints, field).is_none() {
            errors.push(Error::required(&at, ""));
        }
        selector(constraints, field, &at, errors);
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in tree::items(constraints, list).iter().enumerate() {
            let path = path.child(list).index(index);
            let names = tree::items(rule, "resourceNames");
            for (index, name) in names.iter().enumerate() {
                let at = path.child("resourceNames").index(index);
                for why in api::path_segment(name.as_str().unwrap_or_default()) {
                    errors.push(Error::invalid(&at, name.clone(), why));
                }
                if names.iter().take(index).any(|earlier| earlier == name) {
                    errors.push(Error::duplicate(&at, name.clone()));
                }
            }
            operations(rule, &path, errors);
        }
    }
}

pub(super) fn validating_policy(object: &Object, errors: &mut Errors) {
    policy(object, errors);
    expressions::validating(object, errors);
}

pub(super) fn mutating_policy(object: &Object, errors: &mut Errors) {
    policy(object, errors);
    let path = Path::new("spec").child("matchConstraints");
    expressions::operations(object, "spec.matchConstraints.resourceRules", &path, errors);
    expressions::mutating(object, errors);
}

pub(super) fn binding(binding: &Object, errors: &mut Errors) {
    let spec = Path::new("spec");
    let named = [("spec.policyName", Rule::RequiredNamed(names::whole_subdomain))];
    checks::run(&named, binding, None, errors);
    if let Some(parameters) = tree::get(binding, "spec.paramRef") {
        parameters_of(parameters, &spec.child("paramRef"), errors);
    }
    let path = spec.child("matchResources");
    if let Some(constraints) = tree::get(binding, "spec.matchResources") {
        criteria(constraints, &path, errors);
    }
    if tree::text(binding, "kind") == "MutatingAdmissionPolicyBinding" {
        expressions::operations(binding, "spec.matchResources.resourceRules", &path, errors);
        return;
    }
    let actions = tree::items(binding, "spec.validationActions");
    let path = spec.child("validationActions");
    const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
    for (index, action) in actions.iter().enumerate() {
        let at = path.index(index);
        if let Some(text) = action.as_str().filter(|text| !ACTIONS.contains(text)) {
            errors.push(Error::not_supported(&at, text, &ACTIONS));
        }
        if actions.iter().take(index).any(|earlier| earlier == action) {
            errors.push(Error::duplicate(&at, action.clone()));
        }
    }
    let has = |name: &str| actions.iter().any(|action| action == name);
    if has("Deny") && has("Warn") {
        errors.push(Error::invalid(
            &path,
            actions.to_vec(),
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        ));
    }
    if actions.is_empty() {
        errors.push(Error::required(&path, "at least one validation action is required"));
    }
}

/// Which objects are a policy's parameters: one by its name, or those a selector finds.
fn parameters_of(parameters: &Value, path: &Path, errors: &mut Errors) {
    const BOTH: &str = "name and selector are mutually exclusive";
    let name = tree::text(parameters, "name");
    let selected = tree::get(parameters, "selector").is_some();
    if !name.is_empty() {
        checks::named(&path.child("name"), name, api::path_segment, errors);
        if selected {
            errors.push(Error::forbidden(&path.child("name"), BOTH));
        }
    }
    selector(parameters, "selector", &path.child("selector"), errors);
    if selected && !name.is_empty() {
        errors.push(Error::forbidden(&path.child("selector"), BOTH));
    }
    if !selected && name.is_empty() {
        errors.push(Error::required(path, "one of name or selector must be specified"));
    }
    let at = path.child("parameterNotFoundAction");
    const ACTIONS: [&str; 2] = ["Deny", "Allow"];
    match tree::text(parameters, "parameterNotFoundAction") {
        "" => errors.push(Error::required(&at, "")),
        action if !ACTIONS.contains(&action) => errors.push(Error::not_supported(&at, action, &ACTIONS)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut hook = json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": "n", "name": "s", "port": 443, "path": "/a/b/"}},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["pods", "pods/status"]}]});
        change(&mut hook);
        let mut errors = Errors::new();
        webhooks(&json!({"webhooks": [hook]}), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn kinds_of_parameters_and_names_are_possible_ones() {
        let rule = |names: Value| {
            json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["pods"],
                "resourceNames": names})
        };
        for (api_version, kind, names, expected) in [
            ("v1", "ConfigMap", json!(["a", "b"]), None),
            ("example.com/v1beta1", "Thing", json!([]), None),
            (
                "a/b/c",
                "Thing",
                json!([]),
                Some("spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"),
            ),
            (
                "a/",
                "Thing",
                json!([]),
                Some("spec.paramKind.apiVersion: Invalid value: \"a/\": version must be specified"),
            ),
            (
                "A_/v1",
                "Thing",
                json!([]),
                Some("spec.paramKind.apiVersion: Invalid value: \"A_\": a lowercase RFC 1123 subdomain"),
            ),
            (
                "v1",
                "a-Thing-",
                json!([]),
                Some(
                    "spec.paramKind.kind: Invalid value: \"a-Thing-\": may have mixed case, but should otherwise match: a DNS-1035 label",
                ),
            ),
            (
                "v1",
                "Thing",
                json!(["a", "a/b"]),
                Some(
                    "spec.matchConstraints.resourceRules[0].resourceNames[1]: Invalid value: \"a/b\": may not contain '/'",
                ),
            ),
            (
                "v1",
                "Thing",
                json!(["a", "a"]),
                Some("spec.matchConstraints.resourceRules[0].resourceNames[1]: Duplicate value: \"a\""),
            ),
        ] {
            let object = json!({"spec": {"paramKind": {"apiVersion": api_version, "kind": kind}, "failurePolicy": "Fail",
                "matchConstraints": {"matchPolicy": "Exact", "namespaceSelector": {}, "objectSelector": {},
                    "resourceRules": [rule(names)]}}});
            let mut errors = Errors::new();
            policy(&object, &mut errors);
            let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
            match expected {
                None => assert_eq!(told, [""; 0]),
                Some(why) => assert!(told.len() == 1 && told[0].starts_with(why), "{told:?}"),
            }
        }
    }

    #[test]
    fn bindings_are_judged_in_upstreams_order() {
        for (spec, expected) in [
            (
                json!({"policyName": "p", "validationActions": ["", "Deny"], "paramRef": {}}),
                vec![
                    "spec.paramRef: Required value: one of name or selector must be specified",
                    "spec.paramRef.parameterNotFoundAction: Required value",
                    r#"spec.validationActions[0]: Unsupported value: "": supported values: "Audit", "Deny", "Warn""#,
                ],
            ),
            (
                json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"name": "a/b", "selector": {}, "parameterNotFoundAction": "x"}}),
                vec![
                    "spec.paramRef.name: Invalid value: \"a/b\": may not contain '/'",
                    "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
                    "spec.paramRef.selector: Forbidden: name and selector are mutually exclusive",
                    r#"spec.paramRef.parameterNotFoundAction: Unsupported value: "x": supported values: "Deny", "Allow""#,
                ],
            ),
            (
                json!({"policyName": "p", "matchResources": {"matchPolicy": "", "namespaceSelector": {}}}),
                vec![
                    r#"spec.matchResources.matchPolicy: Unsupported value: "": supported values: "Equivalent", "Exact""#,
                    "spec.matchResources.objectSelector: Required value",
                    "spec.validationActions: Required value: at least one validation action is required",
                ],
            ),
        ] {
            let mut errors = Errors::new();
            binding(
                &json!({"kind": "ValidatingAdmissionPolicyBinding", "spec": spec}),
                &mut errors,
            );
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn webhooks_are_refused_in_upstreams_words() {
        assert_eq!(told(|_| ()), [""; 0]);
        type Change = fn(&mut Value);
        let cases: &[(Change, &str)] = &[
            (
                |hook| hook["name"] = "a.b".into(),
                r#"webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots"#,
            ),
            (
                |hook| hook["sideEffects"] = Value::Null,
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
            ),
            (
                |hook| hook["sideEffects"] = "Some".into(),
                r#"webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun""#,
            ),
            (
                |hook| hook["failurePolicy"] = "".into(),
                r#"webhooks[0].failurePolicy: Unsupported value: "": supported values: "Fail", "Ignore""#,
            ),
            (
                |hook| hook["rules"][0]["operations"] = json!([""]),
                r#"webhooks[0].rules[0].operations[0]: Unsupported value: "": supported values: "*", "CONNECT""#,
            ),
            (
                |hook| hook["timeoutSeconds"] = 31.into(),
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                |hook| hook["clientConfig"] = json!({}),
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                |hook| hook["clientConfig"] = json!({"url": "http://x/y"}),
                r#"webhooks[0].clientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
            ),
            (
                |hook| hook["clientConfig"] = json!({"url": "https://u@x/y"}),
                r#"webhooks[0].clientConfig.url: Invalid value: "u": user information is not permitted in the URL"#,
            ),
            (
                |hook| hook["clientConfig"] = json!({"url": "https://x/y?z=1"}),
                r#"webhooks[0].clientConfig.url: Invalid value: "z=1": query parameters are not permitted in the URL"#,
            ),
            (
                |hook| hook["clientConfig"]["service"]["path"] = "a//b".into(),
                r#"webhooks[0].clientConfig.service.path: Invalid value: "a//b": must start with a '/'"#,
            ),
            (
                |hook| hook["clientConfig"]["service"]["port"] = 0.into(),
                "webhooks[0].clientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
            ),
            (
                |hook| hook["admissionReviewVersions"] = json!(["v1", "v1"]),
                r#"webhooks[0].admissionReviewVersions[1]: Invalid value: "v1": duplicate version"#,
            ),
            (
                |hook| hook["rules"][0]["resources"] = json!(["pods/*", "pods/status"]),
                r#"webhooks[0].rules[0].resources[1]: Invalid value: "pods/status": if 'pods/*' is present, must not specify pods/status"#,
            ),
            (
                |hook| hook["rules"][0]["resources"] = json!(["*/*", "a"]),
                r#"webhooks[0].rules[0].resources: Invalid value: ["*/*","a"]: if '*/*' is present, must not specify other resources"#,
            ),
            (
                |hook| hook["rules"][0]["resources"] = json!(["*", "a"]),
                r#"webhooks[0].rules[0].resources: Invalid value: ["*","a"]: if '*' is present, must not specify other resources without subresources"#,
            ),
            (
                |hook| hook["matchConditions"] = json!([{"name": "n", "expression": "1 +"}]),
                r#"webhooks[0].matchConditions[0].expression: Invalid value: "1 +": compilation failed: ERROR"#,
            ),
            (
                |hook| hook["matchConditions"] = json!([{"name": "n", "expression": "1"}]),
                r#"webhooks[0].matchConditions[0].expression: Invalid value: "1": must evaluate to bool but got int"#,
            ),
            (
                |hook| hook["matchConditions"] = json!([{"name": "n", "expression": "params.a"}]),
                r#"webhooks[0].matchConditions[0].expression: Invalid value: "params.a": compilation failed: ERROR"#,
            ),
            (
                |hook| {
                    hook["matchConditions"] =
                        json!([{"name": "n", "expression": "true"}, {"name": "n", "expression": "false"}])
                },
                r#"webhooks[0].matchConditions[1].name: Duplicate value: "n""#,
            ),
        ];
        for (change, expected) in cases {
            let told = told(change);
            assert!(
                told.iter().any(|told| told.starts_with(expected)),
                "{told:?}\n{expected}"
            );
        }
    }
}
