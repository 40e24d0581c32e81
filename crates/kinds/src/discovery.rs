//! `discovery.k8s.io/v1`: EndpointSlices.

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::defaults::Fill;
use crate::print::{AGE, NAME, age, cell, first_three, name, text};
use crate::rules::{RULES, Rules, Status};
use crate::spec::{Column, Resource};
use crate::table::row;
use crate::tree;

pub(crate) static RESOURCES: &[Resource] = &[Resource {
    columns: COLUMNS,
    cells,
    strategy: &SLICE,
    ..row(
        "discovery.k8s.io",
        "EndpointSlice",
        "EndpointSliceList",
        "endpointslices",
        "endpointslice",
    )
}];

static SLICE: Rules = Rules {
    generation: true,
    status: Status::Plain,
    defaults: &[
        ("ports[].name", Fill::Text("")),
        ("ports[].protocol", Fill::Text("TCP")),
    ],
    ..RULES
};

const COLUMNS: &[Column] = &[
    NAME,
    text("AddressType", "What its addresses are."),
    text("Ports", "The first ports of every endpoint."),
    text("Endpoints", "The first addresses."),
    AGE,
];

fn cells(slice: &Object, now: Timestamp) -> Vec<Value> {
    let ports: Vec<_> = tree::items(slice, "ports")
        .iter()
        .map(|port| match (tree::opt_int(port, "port"), tree::get(port, "name")) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => tree::scalar(name),
            (None, None) => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<_> = tree::items(slice, "endpoints")
        .iter()
        .flat_map(|endpoint| tree::items(endpoint, "addresses"))
        .map(tree::scalar)
        .collect();
    vec![
        name(slice),
        cell(slice, "addressType"),
        first_three(&ports, "<unset>").into(),
        first_three(&addresses, "<unset>").into(),
        age(slice, now),
    ]
}
