//! Server-side apply by example and by property.

mod merging;
mod owning;
mod properties;
mod versions;

use serde_json::json;

use super::*;

const NOW: &str = "2026-11-22T10:00:00Z";
const LATER: &str = "2026-11-22T11:00:00Z";

fn deployment() -> Type {
    builtin_type("apps/v1", "Deployment").expect("Deployment")
}

fn context<'a>(ty: &'a Type, reset: &'a FieldSet, manager: &'a str, now: &'a str) -> Context<'a> {
    Context {
        ty,
        api_version: "apps/v1",
        kind: "Deployment",
        subresource: "",
        manager,
        now,
        reset,
        versions: &OneVersion,
    }
}

fn yaml(text: &str) -> Value {
    crate::codec::yaml::decode(text.as_bytes()).expect("YAML").object
}

/// A Deployment with the given spec.
fn config(spec: &str) -> Value {
    let mut object = yaml("{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: default}}");
    object["spec"] = yaml(spec);
    object
}

fn entries(object: &Value) -> Vec<(String, String, Value)> {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            (
                entry["manager"].as_str().expect("a manager").to_owned(),
                entry["operation"].as_str().expect("an operation").to_owned(),
                entry["fieldsV1"].clone(),
            )
        })
        .collect()
}

/// An object by a series of steps: `manager: spec` applies (or `manager!: spec` forces, `manager=: spec` updates).
fn steps(list: &[(&str, &str)]) -> Result<Value, Status> {
    let ty = deployment();
    let reset = FieldSet::of(&[&["status"]]);
    let mut live: Option<Value> = None;
    for (who, spec) in list {
        let name = who.trim_end_matches(['!', '=']);
        let context = context(&ty, &reset, name, NOW);
        let next = config(spec);
        live = Some(if who.ends_with('=') {
            let mut new = next;
            update(context, live.as_ref(), &mut new);
            new
        } else {
            apply(context, live.as_ref(), &next, who.ends_with('!'))?
        });
    }
    Ok(live.expect("a step"))
}
