//! `flowcontrol.apiserver.k8s.io/v1`: FlowSchemas and PriorityLevelConfigurations.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::defaults::Fill;
use crate::print::{AGE, NAME, age, cell, cell_or, count, name, text};
use crate::rules::{RULES, Rules};
use crate::spec::{Column, Resource};
use crate::table::{row, status};
use crate::tree;

mod validate;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        subresources: &[status("FlowSchema")],
        columns: FLOW_SCHEMA_COLUMNS,
        cells: flow_schema,
        strategy: &FLOW_SCHEMA,
        ..row(GROUP, "FlowSchema", "FlowSchemaList", "flowschemas", "flowschema")
    },
    Resource {
        namespaced: false,
        subresources: &[status("PriorityLevelConfiguration")],
        columns: LEVEL_COLUMNS,
        cells: level,
        strategy: &PRIORITY_LEVEL,
        ..row(
            GROUP,
            "PriorityLevelConfiguration",
            "PriorityLevelConfigurationList",
            "prioritylevelconfigurations",
            "prioritylevelconfiguration",
        )
    },
];

static FLOW_SCHEMA: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.matchingPrecedence", Fill::NonZero(1000)),
        ("status", Fill::Map),
    ],
    generation: true,
    validate: validate::schema,
    validate_update: validate::status,
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};
static PRIORITY_LEVEL: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.exempt.nominalConcurrencyShares", Fill::Int(0)),
        ("spec.exempt.lendablePercent", Fill::Int(0)),
        ("spec.limited.nominalConcurrencyShares", Fill::Int(30)),
        ("spec.limited.lendablePercent", Fill::Int(0)),
        ("spec.limited.limitResponse.queuing.handSize", Fill::NonZero(8)),
        ("spec.limited.limitResponse.queuing.queues", Fill::NonZero(64)),
        ("spec.limited.limitResponse.queuing.queueLengthLimit", Fill::NonZero(50)),
        ("status", Fill::Map),
    ],
    generation: true,
    validate: validate::level,
    validate_update: validate::status,
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};

const FLOW_SCHEMA_COLUMNS: &[Column] = &[
    NAME,
    text("PriorityLevel", "Where matching requests go."),
    text("MatchingPrecedence", "Lower is tried first."),
    text("DistinguisherMethod", "What tells flows apart."),
    AGE,
    text("MissingPL", "Whether its priority level is missing."),
];

fn flow_schema(object: &Object, now: Timestamp) -> Vec<Value> {
    let dangling = tree::items(object, "status.conditions")
        .iter()
        .find(|condition| tree::text(condition, "type") == "Dangling")
        .map_or("?", |condition| tree::text(condition, "status"));
    vec![
        name(object),
        cell(object, "spec.priorityLevelConfiguration.name"),
        count(object, "spec.matchingPrecedence"),
        cell_or(object, "spec.distinguisherMethod.type", "<none>"),
        age(object, now),
        dangling.into(),
    ]
}

const LEVEL_COLUMNS: &[Column] = &[
    NAME,
    text("Type", "Exempt or Limited."),
    text("NominalConcurrencyShares", "Its share of the server."),
    text("Queues", "Queues it has."),
    text("HandSize", "Queues a flow may use."),
    text("QueueLengthLimit", "Requests a queue holds."),
    AGE,
];

fn level(object: &Object, now: Timestamp) -> Vec<Value> {
    let limited = tree::get(object, "spec.limited");
    let queuing = limited.and_then(|limited| tree::get(limited, "limitResponse.queuing"));
    let number = |from: Option<&Value>, field: &str| match from {
        None => Value::from("<none>"),
        Some(from) => tree::int(from, field).into(),
    };
    vec![
        name(object),
        cell(object, "spec.type"),
        number(limited, "nominalConcurrencyShares"),
        number(queuing, "queues"),
        number(queuing, "handSize"),
        number(queuing, "queueLengthLimit"),
        age(object, now),
    ]
}
