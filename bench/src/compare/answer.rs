//! What a server answered, without what differs between any two servers.

use std::collections::BTreeMap;

use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Map, Value};

use crate::Result;

pub struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Result<Self> {
        let code = response.status().as_u16();
        let warnings = response
            .headers()
            .get_all("warning")
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        let bytes = response.into_body().collect().await?.to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(Answer { code, warnings, body })
    }

    /// The connection ended instead.
    pub fn none() -> Self {
        Answer {
            code: 0,
            warnings: Vec::new(),
            body: "no answer".into(),
        }
    }

    /// The object of a successful answer.
    pub fn object(&self) -> Option<&Value> {
        (200..300).contains(&self.code).then_some(&self.body)
    }

    /// The answer on one line.
    pub fn text(&self, uid: &str) -> String {
        let mut text = format!("{}", self.code);
        for warning in &self.warnings {
            text.push_str(&format!(" warning {warning}"));
        }
        if self.object().is_none() {
            let reason = self.body["reason"].as_str().unwrap_or_default();
            let message = match &self.body {
                Value::String(text) => text.as_str(),
                body => body["message"].as_str().unwrap_or_default(),
            };
            // How a forbidden change is shown line by line differs with the language the server is written in.
            let message: Vec<_> = message
                .split('\n')
                .enumerate()
                .filter(|(index, line)| *index == 0 || !line.starts_with(['@', ' ', '+', '-', '\t', '\u{a0}']))
                .map(|(_, line)| line)
                .collect();
            text.push_str(&format!(" {reason}: {}", message.join(" ")));
        }
        text = without_addresses(&text.replace(&"a".repeat(300), "<300 a>"));
        without(&text, uid)
    }

    /// Whether somebody else wrote the object since it was read.
    pub fn outdated(&self) -> bool {
        let message = self.body["message"].as_str().unwrap_or_default();
        self.code == 409 && message.contains("the object has been modified")
    }
}

/// Fields a server gives out of what only it has.
fn normal(body: &Value, uid: &str) -> Value {
    let own_uid = body["metadata"]["uid"].as_str().unwrap_or(uid);
    let text = without(&body.to_string(), own_uid);
    let mut body: Value = serde_json::from_str(&text).unwrap_or_default();
    let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) else {
        return body;
    };
    metadata.remove("resourceVersion");
    metadata.remove("creationTimestamp");
    metadata.remove("deletionTimestamp");
    if let Some(prefix) = metadata.get("generateName").and_then(Value::as_str).map(str::to_owned)
        && let Some(Value::String(name)) = metadata.get_mut("name")
        && name.starts_with(&prefix)
    {
        *name = format!("{prefix}<suffix>");
    }
    for managed in metadata
        .get_mut("managedFields")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        managed.remove("time");
    }
    let metadata_name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if is_uuid(metadata_name) || metadata_name == "<uid>" {
        metadata.insert("name".into(), "<uuid>".into());
    }
    if let Some(status) = body.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("lastPhaseTransitionTime");
        // The server's own clock, too.
        for condition in status
            .get_mut("conditions")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if condition["reason"] == "SchedulingGated" && condition["lastTransitionTime"].is_string() {
                condition["lastTransitionTime"] = "<now>".into();
            }
        }
    }
    match body["kind"].as_str() {
        Some("Service") => allocated(&mut body["spec"]),
        // Who asks is somebody else at each server.
        Some("SelfSubjectReview") => asking(&mut body["status"]["userInfo"]),
        Some("CertificateSigningRequest") => asking(&mut body["spec"]),
        // Rules come in the order of upstream's hash tables.
        Some("SelfSubjectRulesReview") => {
            for list in ["resourceRules", "nonResourceRules"] {
                if let Some(rules) = body["status"][list].as_array_mut() {
                    // Upstream's binary may be of a distribution that has a role of its own.
                    rules.retain(|rule| rule["nonResourceURLs"][1] != "/.well-known/*");
                    rules.sort_by_key(Value::to_string);
                }
            }
        }
        // Our API server is also the controller that holds ranges and says that they are ready; beside upstream's
        // there is none here.
        Some("ServiceCIDR") => held(&mut body),
        // Each server writes into these when it gets round to it, and notes it in its own way.
        Some("FlowSchema" | "APIService" | "CustomResourceDefinition") => {
            if let Some(metadata) = body["metadata"].as_object_mut() {
                metadata.remove("managedFields");
            }
            for condition in body["status"]["conditions"].as_array_mut().into_iter().flatten() {
                if let Some(condition) = condition.as_object_mut() {
                    condition.remove("lastTransitionTime");
                }
            }
        }
        // The moment it was made.
        Some("ResourceSlice") => body["spec"]["devices"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .filter_map(|device| device["taints"].as_array_mut())
            .flatten()
            .filter_map(Value::as_object_mut)
            .for_each(|taint| {
                taint.remove("timeAdded");
            }),
        _ => {}
    }
    body
}

/// A text without the addresses of Services in it.
fn without_addresses(text: &str) -> String {
    const START: &str = "10.96.";
    let mut parts = text.split(START);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("<address>");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.'));
    }
    out
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn is_time(key: &str) -> bool {
    ["Time", "Timestamp", "startedAt", "finishedAt"]
        .iter()
        .any(|suffix| key.ends_with(suffix))
}

/// Takes out times that were never set.
pub fn never_set(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| !(is_time(key) && value.is_null()));
            map.values_mut().for_each(never_set);
        }
        Value::Array(list) => list.iter_mut().for_each(never_set),
        _ => {}
    }
}

fn asking(user: &mut Value) {
    if let Some(map) = user.as_object_mut() {
        for name in ["username", "groups", "uid", "extra"] {
            if let Some(value) = map.get_mut(name) {
                *value = format!("<{name}>").into();
            }
        }
    }
}

fn held(range: &mut Value) {
    if let Some(metadata) = range["metadata"].as_object_mut() {
        metadata.remove("finalizers");
        metadata.remove("managedFields");
    }
    if let Some(status) = range["status"].as_object_mut() {
        if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
            conditions.retain(|condition| condition["message"] != "Kubernetes Service CIDR is ready");
        }
        status.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
    }
}

/// Addresses and ports of Services are whatever was free.
fn allocated(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match key.as_str() {
                    "nodePort" | "healthCheckNodePort" => *value = "<port>".into(),
                    _ => allocated(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(allocated),
        Value::String(text) if text.starts_with("10.96.") => *text = "<address>".into(),
        _ => {}
    }
}

/// Every leaf with its path.
fn leaves<'a>(value: &'a Value, path: &str, out: &mut BTreeMap<String, &'a Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                leaves(value, &format!("{path}.{key}"), out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (index, value) in list.iter().enumerate() {
                leaves(value, &format!("{path}[{index}]"), out);
            }
        }
        leaf => {
            out.insert(path.to_owned(), leaf);
        }
    }
}

/// The two answers as text where they are not the same; of two accepted objects, only the leaves that differ.
pub fn differ(upstream: &Answer, ours: &Answer, their_uid: &str, our_uid: &str) -> Option<(String, String)> {
    let (their_text, our_text) = (upstream.text(their_uid), ours.text(our_uid));
    if let (Some(theirs), Some(our)) = (upstream.object(), ours.object()) {
        let (theirs, our) = (normal(theirs, their_uid), normal(our, our_uid));
        if theirs == our && their_text == our_text {
            return None;
        }
        let (mut a, mut b) = (BTreeMap::new(), BTreeMap::new());
        leaves(&theirs, "", &mut a);
        leaves(&our, "", &mut b);
        let only = |of: &BTreeMap<String, &Value>, other: &BTreeMap<String, &Value>| {
            of.iter()
                .filter(|(path, value)| other.get(*path) != Some(value))
                .map(|(path, value)| format!(" {path}={value}"))
                .collect::<String>()
        };
        return Some((
            format!("{their_text}{}", only(&a, &b)),
            format!("{our_text}{}", only(&b, &a)),
        ));
    }
    if their_text != our_text {
        return Some((their_text, our_text));
    }
    let told =
        |answer: &Answer, uid: &str| without_addresses(&without(&format!("details {}", answer.body["details"]), uid));
    (details(upstream, their_uid) != details(ours, our_uid)).then(|| (told(upstream, their_uid), told(ours, our_uid)))
}

fn without(text: &str, uid: &str) -> String {
    if uid.is_empty() {
        text.to_owned()
    } else {
        text.replace(uid, "<uid>")
    }
}

/// Details without the lines that show a forbidden change.
fn details(answer: &Answer, uid: &str) -> Option<Map<String, Value>> {
    let body: Value =
        serde_json::from_str(&without_addresses(&without(&answer.body.to_string(), uid))).unwrap_or_default();
    let mut details = body["details"].as_object().filter(|map| !map.is_empty())?.clone();
    for cause in details
        .get_mut("causes")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(Value::String(message)) = cause.get_mut("message") {
            message.truncate(message.find('\n').unwrap_or(message.len()));
        }
    }
    Some(details)
}

/// A text without positions, numbers and quoted values: what differences of one cause have in common.
pub fn shape(text: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    let mut previous = ' ';
    for c in text.chars() {
        if c == '"' && previous != '\\' {
            quoted = !quoted;
        } else if !quoted && !c.is_ascii_digit() {
            out.push(c);
        }
        previous = c;
    }
    out.truncate(out.floor_char_boundary(400));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(code: u16, body: Value) -> Answer {
        Answer {
            code,
            warnings: Vec::new(),
            body,
        }
    }

    #[test]
    fn what_any_two_servers_differ_in_does_not_count() {
        let object = |uid: &str, version: &str, replicas: i64| json!({"metadata": {"uid": uid, "resourceVersion": version, "labels": {"owner": uid}}, "spec": {"replicas": replicas}});
        let same = differ(
            &answer(201, object("a-1", "5", 1)),
            &answer(201, object("b-2", "6", 1)),
            "",
            "",
        );
        assert_eq!(same, None);
        let other = differ(
            &answer(201, object("a-1", "5", 1)),
            &answer(201, object("b-2", "6", 2)),
            "",
            "",
        );
        assert_eq!(
            other,
            Some(("201 .spec.replicas=1".into(), "201 .spec.replicas=2".into()))
        );
    }

    #[test]
    fn refusals_are_compared_to_the_letter() {
        let refusal = |message: &str| answer(422, json!({"reason": "Invalid", "message": message, "details": {}}));
        assert_eq!(differ(&refusal("a"), &refusal("a"), "", ""), None);
        assert!(differ(&refusal("a"), &refusal("b"), "", "").is_some());
        assert_eq!(
            shape(r#"spec.a[1]: Invalid "x": 12"#),
            shape(r#"spec.a[2]: Invalid "y": 3"#)
        );
    }
}
