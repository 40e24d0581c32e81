//! `flowcontrol.apiserver.k8s.io/v1`: FlowSchemas and PriorityLevelConfigurations.

use jiff::Timestamp;
use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};
use serde_json::Value;

use crate::checks::{self, Check, Rule};
use crate::defaults::Fill;
use crate::names;
use crate::print::{AGE, NAME, age, cell, cell_or, count, name, text};
use crate::rules::{RULES, Rules};
use crate::spec::{Column, Resource};
use crate::table::{row, status};
use crate::tree;

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
    checks: FLOW_SCHEMA_CHECKS,
    validate: validate_schema,
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
    checks: LEVEL_CHECKS,
    validate: validate_level,
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};

const FLOW_SCHEMA_CHECKS: &[Check] = &[
    (
        "spec.distinguisherMethod.type",
        Rule::RequiredOneOf(&["ByNamespace", "ByUser"]),
    ),
    (
        "spec.rules[].subjects",
        Rule::Required("subjects must contain at least one value"),
    ),
    (
        "spec.rules[].subjects[].kind",
        Rule::RequiredOneOf(&["Group", "ServiceAccount", "User"]),
    ),
    (
        "spec.rules[].resourceRules[].verbs",
        Rule::Required("verbs must contain at least one value"),
    ),
    (
        "spec.rules[].resourceRules[].apiGroups",
        Rule::Required("resource rules must supply at least one api group"),
    ),
    (
        "spec.rules[].resourceRules[].resources",
        Rule::Required("resource rules must supply at least one resource"),
    ),
    (
        "spec.rules[].nonResourceRules[].verbs",
        Rule::Required("verbs must contain at least one value"),
    ),
    (
        "spec.rules[].nonResourceRules[].nonResourceURLs",
        Rule::Required("nonResourceURLs must contain at least one value"),
    ),
];

fn validate_schema(schema: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let precedence = tree::int(schema, "spec.matchingPrecedence");
    let at = path.child("matchingPrecedence");
    if precedence <= 0 {
        errors.push(Error::invalid(&at, precedence, "must be a positive value"));
    }
    if precedence > 10000 {
        errors.push(Error::invalid(&at, precedence, "must not be greater than 10000"));
    }
    if precedence == 1 && tree::text(schema, "metadata.name") != "exempt" {
        errors.push(Error::invalid(
            &at,
            precedence,
            "only the schema named 'exempt' may have matchingPrecedence 1",
        ));
    }
    let level = tree::text(schema, "spec.priorityLevelConfiguration.name");
    let at = path.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errors.push(Error::required(&at, "must reference a priority level"));
    } else {
        checks::named(&at, level, names::whole_subdomain, errors);
    }
    for (index, rule) in tree::items(schema, "spec.rules").iter().enumerate() {
        if ["resourceRules", "nonResourceRules"]
            .iter()
            .all(|list| tree::items(rule, list).is_empty())
        {
            errors.push(Error::required(
                &path.child("rules").index(index),
                "at least one of resourceRules and nonResourceRules has to be non-empty",
            ));
        }
    }
}

const LEVEL_CHECKS: &[Check] = &[
    ("spec.type", Rule::RequiredOneOf(&["Exempt", "Limited"])),
    ("spec.limited.nominalConcurrencyShares", Rule::NonNegative),
    ("spec.exempt.nominalConcurrencyShares", Rule::NonNegative),
    ("spec.limited.lendablePercent", Rule::Between(0, 100)),
    ("spec.exempt.lendablePercent", Rule::Between(0, 100)),
    (
        "spec.limited.limitResponse.type",
        Rule::RequiredOneOf(&["Queue", "Reject"]),
    ),
    ("spec.limited.limitResponse.queuing.queues", Rule::Positive),
    ("spec.limited.limitResponse.queuing.handSize", Rule::Positive),
    ("spec.limited.limitResponse.queuing.queueLengthLimit", Rule::Positive),
];

fn validate_level(level: &Object, errors: &mut Errors) {
    let path = Path::new("spec");
    let kind = tree::text(level, "spec.type");
    if (tree::text(level, "metadata.name") == "exempt") != (kind == "Exempt") {
        errors.push(Error::invalid(
            &path.child("type"),
            kind,
            "must be 'Exempt' if and only if `name` is 'exempt'",
        ));
    }
    let has = |field: &str| tree::get(level, field).is_some();
    match kind {
        "Exempt" if has("spec.limited") => errors.push(Error::forbidden(
            &path.child("limited"),
            "must be nil if the type is not Limited",
        )),
        "Limited" => {
            if has("spec.exempt") {
                errors.push(Error::forbidden(
                    &path.child("exempt"),
                    "must be nil if the type is Limited",
                ));
            }
            if !has("spec.limited") {
                errors.push(Error::required(
                    &path.child("limited"),
                    "must not be empty when type is Limited",
                ));
            }
        }
        _ => {}
    }
    let path = path.child("limited").child("limitResponse");
    let queuing = has("spec.limited.limitResponse.queuing");
    match tree::text(level, "spec.limited.limitResponse.type") {
        "Reject" if queuing => errors.push(Error::forbidden(
            &path.child("queuing"),
            "must be nil if limited.limitResponse.type is not Limited",
        )),
        "Queue" if !queuing => errors.push(Error::required(
            &path.child("queuing"),
            "must not be empty if limited.limitResponse.type is Limited",
        )),
        _ => {}
    }
}

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
