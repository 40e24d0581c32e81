//! Reviews: may somebody, may I, what may I, who am I.

use sampan_api::selector::FieldSelector;
use sampan_api::status::Status;
use sampan_api::{Object, field};
use sampan_auth::{Attributes, Reasons, Requirement, Selectors, UserInfo};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, field_demands, label_demands};
use crate::registry::Call;
use crate::registry::reply::Reply;
use crate::{Refusal, refuse};

pub async fn review(plane: &ControlPlane, call: &Call, mut review: Object) -> Result<Reply, Refusal> {
    if call.row.spec.plural == "selfsubjectrulesreviews" {
        let namespace = review.pointer("/spec/namespace").and_then(Value::as_str);
        if namespace.is_none_or(str::is_empty) {
            return Err(refuse(Status::bad_request("no namespace on request")));
        }
        review["metadata"] = json!({});
        let answer = rules(plane, call, review);
        return Ok(Reply::Plain(201, answer));
    }
    let spec = review.get("spec").cloned().unwrap_or_default();
    let own = call.row.spec.plural == "selfsubjectaccessreviews";
    let subject = if own { (*call.user).clone() } else { subject(&spec) };
    let resource = spec.get("resourceAttributes").filter(|value| !value.is_null());
    let path = spec.get("nonResourceAttributes").filter(|value| !value.is_null());
    let at = field::Path::new("spec");
    let mut errors = field::Errors::new();
    if resource.is_some() && path.is_some() {
        errors.push(field::Error::invalid(
            &at.child("nonResourceAttributes"),
            path.cloned().unwrap_or_default(),
            "cannot be specified in combination with resourceAttributes",
        ));
    } else if resource.is_none() && path.is_none() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(field::Error::invalid(
            &at.child("resourceAttributes"),
            resource.cloned().unwrap_or_default(),
            why,
        ));
    }
    if !own && subject.name.is_empty() && subject.groups.is_empty() {
        errors.push(field::Error::invalid(
            &at.child("user"),
            "",
            "at least one of user or group must be specified",
        ));
    }
    let text = |value: Option<&Value>, field: &str| -> String {
        value
            .and_then(|value| value.get(field))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let local = call.row.spec.plural == "localsubjectaccessreviews";
    if let Some(resource) = resource {
        selector_errors(resource, &mut errors);
    }
    let empty = if call.row.spec.plural == "localsubjectaccessreviews" {
        "must be empty except for namespace"
    } else {
        "must be empty"
    };
    let mut metadata = review
        .get("metadata")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    metadata.remove("managedFields");
    if empty != "must be empty" {
        metadata.remove("namespace");
    }
    if metadata.values().any(|value| !value.is_null()) {
        errors.push(field::Error::invalid(
            &field::Path::new("metadata"),
            Value::Object(metadata),
            empty,
        ));
    }
    if local {
        let namespace = text(resource, "namespace");
        if resource.is_some() && namespace != call.info.namespace {
            errors.push(field::Error::invalid(
                &field::Path::new("spec.resourceAttributes.namespace"),
                namespace,
                "must match metadata.namespace",
            ));
        }
        if path.is_some() {
            errors.push(field::Error::invalid(
                &field::Path::new("spec.nonResourceAttributes"),
                path.cloned().unwrap_or_default(),
                "disallowed on this kind of request",
            ));
        }
    }
    if !errors.is_empty() {
        // Upstream's internal form of a review does not know its own kind.
        return Err(refuse(Status::invalid(call.row.spec.group, "", "", &errors)));
    }
    let decision = match (resource, path) {
        (Some(_), _) => {
            let get = |field: &str| text(resource, field);
            let (verb, group, version) = (get("verb"), get("group"), get("version"));
            let (plural, sub, namespace, name) = (get("resource"), get("subresource"), get("namespace"), get("name"));
            let fields = resource.map(stated_fields).unwrap_or_default();
            let fields: Vec<(&str, &str)> = fields.iter().map(|(field, value)| (&**field, &**value)).collect();
            let selectors = Selectors {
                fields: requirements(resource, "fieldSelector"),
                labels: requirements(resource, "labelSelector"),
            };
            let request = Attributes {
                selectors: Some(&selectors),
                version: &version,
                field_equals: &fields,
                subresource: &sub,
                namespace: &namespace,
                name: &name,
                ..Attributes::resource(&subject, &verb, &group, &plural)
            };
            plane.authorizer.decide_with(&request, Reasons::All).await
        }
        _ => {
            let (verb, path) = (text(path, "verb"), text(path, "path"));
            let request = Attributes::path(&subject, &verb, &path);
            plane.authorizer.decide_with(&request, Reasons::All).await
        }
    };
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    if decision.denied {
        status["denied"] = true.into();
    }
    if !decision.error.is_empty() {
        status["evaluationError"] = decision.error.into();
    }
    review["status"] = status;
    Ok(Reply::Plain(201, review))
}

/// Selectors must be said one way, and sensibly.
fn selector_errors(resource: &Value, errors: &mut field::Errors) {
    for selector in ["fieldSelector", "labelSelector"] {
        let Some(stated) = resource.get(selector).filter(|stated| !stated.is_null()) else {
            continue;
        };
        let at = field::Path::new("spec.resourceAttributes").child(selector);
        let raw = stated.get("rawSelector").and_then(Value::as_str).unwrap_or_default();
        let requirements = stated
            .get("requirements")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        if !raw.is_empty() && !requirements.is_empty() {
            errors.push(field::Error::invalid(
                &at.child("rawSelector"),
                raw,
                "may not specified at the same time as requirements",
            ));
        }
        if raw.is_empty() && requirements.is_empty() {
            let why = format!("when {at} is specified, requirements or rawSelector is required");
            errors.push(field::Error::required(&at.child("requirements"), why));
        }
        for (index, requirement) in requirements.iter().enumerate() {
            let at = at.child("requirements").index(index);
            let text = |field: &str| requirement.get(field).and_then(Value::as_str).unwrap_or_default();
            let values = texts(requirement.get("values")).len();
            if text("key").is_empty() {
                errors.push(field::Error::required(&at.child("key"), "must be specified"));
            }
            let values_at = at.child("values");
            match text("operator") {
                "In" | "NotIn" if values == 0 => errors.push(field::Error::required(
                    &values_at,
                    "must be specified when `operator` is 'In' or 'NotIn'",
                )),
                "Exists" | "DoesNotExist" if values > 0 => errors.push(field::Error::forbidden(
                    &values_at,
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                )),
                // Operators a newer client knows are let through: they restrict, they never widen.
                _ => {}
            }
        }
    }
}

/// What a selector of a review demands. Operators that are not known are left out: without them the question is wider.
fn requirements(resource: Option<&Value>, selector: &str) -> Vec<Requirement> {
    let Some(stated) = resource.and_then(|resource| resource.get(selector)) else {
        return Vec::new();
    };
    if let Some(raw) = stated.get("rawSelector").and_then(Value::as_str) {
        return match selector {
            "fieldSelector" => field_demands(raw),
            _ => label_demands(raw),
        };
    }
    let list = stated.get("requirements").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|requirement| {
            let operator = match requirement.get("operator").and_then(Value::as_str)? {
                "In" => "In",
                "NotIn" => "NotIn",
                "Exists" => "Exists",
                "DoesNotExist" => "DoesNotExist",
                _ => return None,
            };
            Some(Requirement {
                key: requirement.get("key").and_then(Value::as_str)?.to_owned(),
                operator,
                values: texts(requirement.get("values")),
            })
        })
        .collect()
}

/// What the field selector of a review demands by equality; everything else says nothing to an authorizer.
fn stated_fields(resource: &Value) -> Vec<(String, String)> {
    let Some(selector) = resource.get("fieldSelector") else {
        return Vec::new();
    };
    if let Some(raw) = selector.get("rawSelector").and_then(Value::as_str) {
        return FieldSelector::parse(raw)
            .unwrap_or_default()
            .requirements()
            .iter()
            .filter(|requirement| !requirement.negated)
            .map(|requirement| (requirement.field.clone(), requirement.value.clone()))
            .collect();
    }
    let requirements = selector.get("requirements").and_then(Value::as_array);
    requirements
        .into_iter()
        .flatten()
        .filter(|requirement| requirement.get("operator").and_then(Value::as_str) == Some("In"))
        .filter_map(|requirement| {
            let key = requirement.get("key").and_then(Value::as_str)?;
            match texts(requirement.get("values")).as_slice() {
                [one] => Some((key.to_owned(), one.clone())),
                _ => None,
            }
        })
        .collect()
}

fn texts(value: Option<&Value>) -> Vec<String> {
    value
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn same_rule(one: &Value, other: &Value) -> bool {
    ["verbs", "apiGroups", "resources", "resourceNames", "nonResourceURLs"]
        .iter()
        .all(|field| texts(one.get(field)) == texts(other.get(field)))
}

fn subject(spec: &Value) -> UserInfo {
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    UserInfo {
        name: text("user"),
        uid: text("uid"),
        groups: texts(spec.get("groups")),
        extra: spec
            .get("extra")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.to_ascii_lowercase(), texts(Some(values))))
            .collect(),
    }
}

fn rules(plane: &ControlPlane, call: &Call, mut review: Object) -> Value {
    let namespace = review
        .pointer("/spec/namespace")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let mut resource_rules = Vec::new();
    let mut path_rules = Vec::new();
    let (rules, missing) = plane.authorizer.rules_for(&call.user, &namespace);
    let mut rules: Vec<Value> = rules.iter().map(|rule| rule.to_value()).collect();
    // Masters need no role; where one is bound to them nevertheless its rules are not said twice.
    if call.user.in_group("system:masters") {
        let all = [
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
            json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
        ];
        for rule in all {
            if !rules.iter().any(|known| same_rule(known, &rule)) {
                rules.push(rule);
            }
        }
    }
    for rule in rules {
        let has = |field: &str| {
            rule.get(field)
                .and_then(Value::as_array)
                .is_some_and(|all| !all.is_empty())
        };
        if has("nonResourceURLs") {
            path_rules.push(json!({"verbs": rule.get("verbs"), "nonResourceURLs": rule.get("nonResourceURLs")}));
        } else if has("resources") {
            let mut shown = json!({
                "verbs": rule.get("verbs"), "apiGroups": rule.get("apiGroups"), "resources": rule.get("resources")});
            if has("resourceNames") {
                shown["resourceNames"] = rule.get("resourceNames").cloned().unwrap_or_default();
            }
            resource_rules.push(shown);
        }
    }
    // The answer says nothing of the question.
    review["spec"] = json!({});
    review["status"] = json!({
        "resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": !missing.is_empty()});
    if !missing.is_empty() {
        review["status"]["evaluationError"] = missing.join(", ").into();
    }
    review
}

pub fn who_am_i(call: &Call, mut review: Object) -> Reply {
    let user = &call.user;
    let mut shown = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        shown["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        shown["extra"] = user
            .extra
            .iter()
            .map(|(key, values)| (key.clone(), Value::from(values.clone())))
            .collect();
    }
    review["status"] = json!({"userInfo": shown});
    review["metadata"] = json!({});
    sampan_api::meta::set_creation_timestamp(&mut review, &sampan_api::time::now());
    Reply::Plain(201, review)
}
