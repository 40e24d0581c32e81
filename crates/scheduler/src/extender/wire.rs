//! What is said to extenders and what they answer, as JSON.
//!
//! Names are upstream's, which has them without tags: they are written as Go writes them and read in whichever case the
//! extender prefers, as Go reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Map, Value, json};

use super::NamedVictims;
use crate::pod::PodInfo;
use crate::preemption::Victims;

/// A filter's answer.
#[derive(Debug, Default, PartialEq)]
pub struct Filtered {
    pub accepted: BTreeSet<String>,
    pub failed: BTreeMap<String, String>,
    pub unresolvable: BTreeMap<String, String>,
}

/// The Pod and the nodes; one that knows the nodes is told their names.
pub fn arguments(pod: &Pod, nodes: &[(Arc<str>, Arc<Node>)], names_only: bool) -> Value {
    let mut arguments = json!({"Pod": pod, "Nodes": null, "NodeNames": null});
    if names_only {
        arguments["NodeNames"] = nodes.iter().map(|(name, _)| &**name).collect();
    } else {
        let items: Vec<&Node> = nodes.iter().map(|(_, node)| &**node).collect();
        arguments["Nodes"] = json!({"metadata": {}, "items": items});
    }
    arguments
}

pub fn preemption(
    pod: &Pod,
    candidates: &BTreeMap<Arc<str>, Victims>,
    names_only: bool,
    object: &impl Fn(&PodInfo) -> Option<Arc<Pod>>,
) -> Value {
    let mut arguments = json!({"Pod": pod, "NodeNameToVictims": null, "NodeNameToMetaVictims": null});
    let shown = candidates.iter().map(|(node, victims)| {
        let pods: Vec<Value> = victims
            .pods
            .iter()
            .filter_map(|victim| match names_only {
                true => Some(json!({"UID": &*victim.uid})),
                // One that has left since needs not leave.
                false => object(victim).map(|pod| json!(&*pod)),
            })
            .collect();
        let shown = json!({"Pods": pods, "NumPDBViolations": victims.violations});
        (node.to_string(), shown)
    });
    let field = match names_only {
        true => "NodeNameToMetaVictims",
        false => "NodeNameToVictims",
    };
    arguments[field] = Value::Object(shown.collect());
    arguments
}

pub fn binding(pod: &PodInfo, node: &str) -> Value {
    json!({"PodName": &*pod.name, "PodNamespace": &*pod.namespace, "PodUID": &*pod.uid, "Node": node})
}

fn wrong(what: &str, value: &Value) -> String {
    let mut shown = value.to_string();
    if shown.len() > 100 {
        let cut = (0..=100).rev().find(|at| shown.is_char_boundary(*at)).unwrap_or(0);
        shown.truncate(cut);
        shown.push_str("...");
    }
    format!("the extender's answer is not one: {what} is {shown}")
}

/// A field under its name, in whatever case; null is as good as nothing.
fn take(map: &mut Map<String, Value>, name: &str) -> Option<Value> {
    let exact = map.remove(name);
    exact
        .or_else(|| {
            let key = map.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned()?;
            map.remove(&key)
        })
        .filter(|value| !value.is_null())
}

fn object(what: &str, value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        other => Err(wrong(what, &other)),
    }
}

fn list(what: &str, value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Null => Ok(Vec::new()),
        other => Err(wrong(what, &other)),
    }
}

fn text(what: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong(what, &other)),
    }
}

fn said_error(map: &mut Map<String, Value>) -> Result<(), String> {
    match take(map, "Error").map(|error| text("Error", error)).transpose()? {
        Some(error) if !error.is_empty() => Err(error),
        _ => Ok(()),
    }
}

pub fn filtered(answer: Value, names_only: bool) -> Result<Filtered, String> {
    let mut answer = object("it", answer)?;
    said_error(&mut answer)?;
    let reasons = |name: &str, map: &mut Map<String, Value>| -> Result<BTreeMap<String, String>, String> {
        let nodes = object(name, take(map, name).unwrap_or_default())?;
        let reasons = nodes.into_iter().map(|(node, reason)| Ok((node, text(name, reason)?)));
        reasons.collect()
    };
    let failed = reasons("FailedNodes", &mut answer)?;
    let unresolvable = reasons("FailedAndUnresolvableNodes", &mut answer)?;
    let names = take(&mut answer, "NodeNames").filter(|_| names_only);
    let accepted = match (names, take(&mut answer, "Nodes")) {
        (Some(names), _) => {
            let names = list("NodeNames", names)?.into_iter();
            names
                .map(|name| text("NodeNames", name))
                .collect::<Result<BTreeSet<_>, _>>()?
        }
        (None, Some(nodes)) => {
            let items = take(&mut object("Nodes", nodes)?, "items").unwrap_or_default();
            let names = list("Nodes.items", items)?.into_iter().map(|node| {
                let metadata = take(&mut object("Nodes.items", node)?, "metadata").unwrap_or_default();
                let name = take(&mut object("metadata", metadata)?, "name").unwrap_or_default();
                text("metadata.name", name)
            });
            names.collect::<Result<BTreeSet<_>, _>>()?
        }
        (None, None) => BTreeSet::new(),
    };
    Ok(Filtered {
        accepted,
        failed,
        unresolvable,
    })
}

/// A score may be missing, which is zero.
fn number(what: &str, value: Option<Value>) -> Result<i64, String> {
    match value {
        None => Ok(0),
        Some(value) => value.as_i64().ok_or_else(|| wrong(what, &value)),
    }
}

pub fn ranked(answer: Value) -> Result<Vec<(String, i64)>, String> {
    let ranking = list("it", answer)?.into_iter().map(|host| {
        let mut host = object("a rank", host)?;
        let score = number("Score", take(&mut host, "Score"))?;
        Ok((text("Host", take(&mut host, "Host").unwrap_or_default())?, score))
    });
    ranking.collect()
}

pub fn preempted(answer: Value) -> Result<Vec<(String, NamedVictims)>, String> {
    let mut answer = object("it", answer)?;
    let nodes = take(&mut answer, "NodeNameToMetaVictims").unwrap_or_default();
    let nodes = object("NodeNameToMetaVictims", nodes)?.into_iter();
    let victims = nodes.map(|(node, victims)| {
        let mut victims = object(&node, victims)?;
        let violations = number("NumPDBViolations", take(&mut victims, "NumPDBViolations"))?;
        let pods = list("Pods", take(&mut victims, "Pods").unwrap_or_default())?.into_iter();
        let uids = pods.map(|pod| text("UID", take(&mut object("Pods", pod)?, "UID").unwrap_or_default()));
        let victims = NamedVictims {
            uids: uids.collect::<Result<_, String>>()?,
            violations: usize::try_from(violations).unwrap_or(0),
        };
        Ok((node, victims))
    });
    victims.collect()
}

pub fn bound(answer: Value) -> Result<(), String> {
    said_error(&mut object("it", answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_any_case_and_refused_where_they_are_none() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let full = json!({"nodenames": ["a"], "Nodes": {"items": [{"metadata": {"name": "b"}}]},
            "failedNodes": {"c": "no"}, "FailedAndUnresolvableNodes": {"d": "never"}, "error": ""});
        let read = filtered(full.clone(), true).unwrap();
        assert_eq!(read.accepted, names(&["a"]));
        assert_eq!(
            (read.failed["c"].as_str(), read.unresolvable["d"].as_str()),
            ("no", "never")
        );
        assert_eq!(filtered(full, false).unwrap().accepted, names(&["b"]));
        // As upstream: names are not asked for of one that was given nodes.
        assert_eq!(
            filtered(json!({"NodeNames": ["a"]}), false).unwrap().accepted,
            names(&[])
        );
        assert_eq!(filtered(Value::Null, false), Ok(Filtered::default()));
        assert_eq!(filtered(json!({"Error": "on fire"}), true), Err("on fire".into()));
        for bad in [
            json!([]),
            json!({"NodeNames": "a"}),
            json!({"NodeNames": [1]}),
            json!({"FailedNodes": {"a": 1}}),
        ] {
            assert!(filtered(bad.clone(), true).is_err(), "{bad}");
        }
        let ranking = ranked(json!([{"Host": "a", "Score": 3}, {"host": "b"}])).unwrap();
        assert_eq!(ranking, [("a".into(), 3), ("b".into(), 0)]);
        assert!(ranked(json!([{"Host": "a", "Score": "3"}])).is_err());
        let victims =
            preempted(json!({"nodeNameToMetaVictims": {"n": {"pods": [{"uid": "1"}], "numPDBViolations": 2}}}));
        let expected = NamedVictims {
            uids: vec!["1".into()],
            violations: 2,
        };
        assert_eq!(victims.unwrap(), [("n".into(), expected)]);
        assert_eq!(bound(json!({"Error": "taken"})), Err("taken".into()));
        assert_eq!(bound(json!({})), Ok(()));
    }
}
