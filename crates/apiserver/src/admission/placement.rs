//! Pods and the nodes they are on: topology labels come along with the node, and a resize must fit it.

use async_trait::async_trait;
use sampan_api::quantity::Quantity;
use sampan_api::quota::PodTotals;
use sampan_api::quota::amounts;
use sampan_api::status::Cause;
use sampan_api::{Object, meta};

use super::{Notes, Operation, Plugin, Reader, Review, text};
use crate::{Refusal, refuse};

const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// PodTopologyLabels: zone and region of the node, on Pods that are created there and on bindings, which hand their
/// labels on to the Pod.
pub struct TopologyLabels(pub Reader);

#[async_trait]
impl Plugin for TopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create
            && review.row.is("", "pods")
            && matches!(review.subresource, "" | "binding")
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        let node = match review.subresource {
            "binding" if text(object, "/target/kind") != "Node" => return Ok(()),
            "binding" => text(object, "/target/name"),
            _ => text(object, "/spec/nodeName"),
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(storage) = self.0.storage("minions") else {
            return Ok(());
        };
        let Some(node) = storage.get(node) else { return Ok(()) };
        let labels = &node.attributes(storage.fields()).labels;
        for (key, value) in labels.iter().filter(|(key, _)| TOPOLOGY.contains(&&**key)) {
            meta::set_label(object, key, value);
        }
        Ok(())
    }
}

/// PodResizeValidator.
pub struct PodResize(pub Reader);

#[async_trait]
impl Plugin for PodResize {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Update && review.row.is("", "pods") && review.subresource == "resize"
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let (Some(pod), Some(old)) = (object, review.old) else {
            return Ok(());
        };
        let name = text(pod, "/spec/nodeName");
        if name.is_empty() || meta::generation(pod) == meta::generation(old) {
            return Ok(());
        }
        let Some(node) = self.0.get("minions", name) else {
            return Err(review.refuse(pod, &format!("node {name:?} not found")));
        };
        let node = node.object();
        let caused = |why: &str, reason: &str| {
            let mut status = review.forbid(Some(pod), why);
            status.details.get_or_insert_default().causes.push(Cause {
                reason: reason.into(),
                message: String::new(),
                field: String::new(),
            });
            Err(refuse(status))
        };
        if let Some(os) = meta::label(&node, "kubernetes.io/os").filter(|os| *os != "linux") {
            let why = format!("pod resize is only supported on linux nodes, node {name:?} is {os:?}");
            return caused(&why, "UnsupportedPlatform");
        }
        let short = shortage(pod, &node);
        if short.is_empty() {
            return Ok(());
        }
        let why = format!("node didn't have enough allocatable resources: {}", short.join("; "));
        caused(&why, "NodeCapacity")
    }
}

/// What the Pod asks for beyond all that its node has.
fn shortage(pod: &Object, node: &Object) -> Vec<String> {
    let allocatable = amounts::read(node.pointer("/status/allocatable"));
    let totals = PodTotals::of_spec(pod);
    let overhead = amounts::read(pod.pointer("/spec/overhead"));
    let both = |name: &str| {
        let mut asked = totals.requests.get(name).cloned().unwrap_or_else(Quantity::zero);
        if let Some(more) = overhead.get(name) {
            asked = asked.add(more);
        }
        (asked, allocatable.get(name).cloned().unwrap_or_else(Quantity::zero))
    };
    let mut short = Vec::new();
    for name in ["cpu", "memory"] {
        let (asked, has) = both(name);
        let figure = |amount: &Quantity| match name {
            "cpu" => amount.milli_value(),
            _ => amount.value(),
        };
        if asked > has {
            short.push(format!(
                "{name}, requested: {}, allocatable: {}",
                figure(&asked),
                figure(&has)
            ));
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_node_lacks() {
        let node = json!({"status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}});
        let pod = |cpu: &str, memory: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
        assert!(shortage(&pod("2", "1Gi"), &node).is_empty());
        assert_eq!(
            shortage(&pod("2500m", "2Gi"), &node),
            [
                "cpu, requested: 2500, allocatable: 2000",
                "memory, requested: 2147483648, allocatable: 1073741824"
            ]
        );
    }
}
