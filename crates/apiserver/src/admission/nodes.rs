//! Nodes: new ones start tainted, and a node's own credential reaches only what is the node's.

use async_trait::async_trait;
use sampan_api::Object;
use sampan_auth::node_restriction;
use serde_json::{Value, json};

use super::{Notes, Operation, Plugin, Reader, Review, spec_list, text};
use crate::{Refusal, refuse};

/// TaintNodesByCondition: a new node takes no Pods until it has reported that it is ready.
pub struct TaintNewNodes;

#[async_trait]
impl Plugin for TaintNewNodes {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create && review.is_core("nodes")
    }

    async fn mutate(&self, _: &Review<'_>, node: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        const NOT_READY: &str = "node.kubernetes.io/not-ready";
        let taints = spec_list(node, "taints");
        let known = taints
            .iter()
            .any(|taint| text(taint, "/key") == NOT_READY && text(taint, "/effect") == "NoSchedule");
        if !known {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

/// NodeRestriction.
pub struct Restriction(Reader);

impl Restriction {
    pub fn new(reader: Reader) -> Self {
        Restriction(reader)
    }
}

#[async_trait]
impl Plugin for Restriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.user.is_node() && review.operation != Operation::Connect
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let name = match (review.name, object) {
            ("", Some(object)) => sampan_api::meta::name(object),
            (name, _) => name,
        };
        let write = node_restriction::Write {
            operation: match review.operation {
                Operation::Create => node_restriction::Operation::Create,
                Operation::Update => node_restriction::Operation::Update,
                Operation::Delete | Operation::Connect => node_restriction::Operation::Delete,
            },
            group: review.row.spec.group,
            resource: review.row.spec.plural,
            subresource: review.subresource,
            namespace: review.namespace,
            name,
            new: object,
            old: review.old,
        };
        node_restriction::check(review.user, &write, self).map_err(|why| refuse(review.forbid(object, &why)))
    }
}

impl node_restriction::Existing for Restriction {
    fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        Some(self.0.get("pods", &format!("{namespace}/{name}"))?.object())
    }
    fn node_uid(&self, name: &str) -> Option<String> {
        let node = self.0.get("minions", name)?.object();
        Some(sampan_api::meta::uid(&node).to_owned())
    }
}
