//! `metrics.k8s.io/v1beta1`: what nodes and Pods use, measured when it is asked for and never stored.
//!
//! These rows are not among [`resources`](crate::resources): upstream has them from an add-on, and whoever brings an
//! API server of their own for this group version takes their place.

use jiff::Timestamp;
use sampan_api::Object;
use sampan_api::quantity::Quantity;
use serde_json::{Value, json};

use crate::print::NAME;
use crate::spec::{Column, Resource, Verbs};
use crate::table::review;
use crate::tree;

pub const GROUP: &str = "metrics.k8s.io";
pub const VERSION: &str = "v1beta1";

const fn quantity(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "quantity",
        description: "",
        priority: 0,
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    quantity("cpu"),
    quantity("memory"),
    Column {
        format: "duration",
        ..quantity("Window")
    },
];

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        version: VERSION,
        verbs: Verbs::ReadOnly,
        columns: COLUMNS,
        cells: |object, _| cells(object, &object["usage"]),
        ..review(GROUP, "NodeMetrics", "NodeMetricsList", "nodes", "")
    },
    Resource {
        version: VERSION,
        namespaced: true,
        verbs: Verbs::ReadOnly,
        columns: COLUMNS,
        cells: pod,
        ..review(GROUP, "PodMetrics", "PodMetricsList", "pods", "")
    },
];

fn cells(object: &Object, usage: &Value) -> Vec<Value> {
    vec![
        tree::text(object, "metadata.name").into(),
        usage["cpu"].clone(),
        usage["memory"].clone(),
        tree::text(object, "window").into(),
    ]
}

fn pod(object: &Object, _: Timestamp) -> Vec<Value> {
    let containers = object["containers"].as_array();
    let total = |resource: &str| {
        let of = |container: &Value| Quantity::from_value(&container["usage"][resource]).ok();
        let each = containers.into_iter().flatten().filter_map(of);
        each.reduce(|sum, one| sum.add(&one)).unwrap_or_else(Quantity::zero)
    };
    let usage = json!({"cpu": total("cpu").to_string(), "memory": total("memory").to_string()});
    cells(object, &usage)
}

/// The JSON schema of a kind of this group: the built-in table of definitions has none.
pub fn schema(kind: &str) -> Value {
    let usage = json!({
        "type": "object",
        "description": "The memory usage is the memory working set.",
        "additionalProperties": {"type": "string"},
    });
    let mut properties = json!({
        "timestamp": {
            "type": "string", "format": "date-time",
            "description": "The end of the interval in which the figures were measured: [timestamp-window, timestamp].",
        },
        "window": {"type": "string", "description": "The length of that interval."},
    });
    let (what, own) = match kind {
        "NodeMetrics" => ("a node", ("usage", usage)),
        _ => (
            "a Pod",
            (
                "containers",
                json!({
                    "type": "array",
                    "description": "What each running container uses.",
                    "items": {
                        "type": "object", "required": ["name", "usage"],
                        "properties": {"name": {"type": "string", "description": "The container's name in the Pod."}, "usage": usage},
                    },
                }),
            ),
        ),
    };
    properties[own.0] = own.1;
    json!({
        "type": "object", "description": format!("{kind} says what {what} uses."),
        "required": ["timestamp", "window", own.0], "properties": properties,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_uses_what_its_containers_use() {
        let of = |cpu: &str, memory: &str| json!({"name": "c", "usage": {"cpu": cpu, "memory": memory}});
        let object = json!({
            "metadata": {"name": "p"}, "window": "15s",
            "containers": [of("1500000n", "1Ki"), of("1m", "2Ki")],
        });
        let shown = pod(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(shown, [json!("p"), json!("2500u"), json!("3Ki"), json!("15s")]);
        assert_eq!(pod(&json!({}), Timestamp::UNIX_EPOCH).len(), COLUMNS.len());
        for row in RESOURCES {
            assert_eq!(
                (row.cells)(&json!({"metadata": {"name": "x"}}), Timestamp::UNIX_EPOCH).len(),
                4
            );
            assert!(schema(row.kind)["properties"]["window"].is_object());
        }
    }
}
