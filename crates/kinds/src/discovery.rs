//! `discovery.k8s.io/v1`: EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use crate::checks::{self, Rule};
use crate::core::validate::endpoint_ip;
use crate::defaults::Fill;
use crate::names;
use crate::print::{AGE, NAME, age, cell, first_three, name, text};
use crate::rules::{RULES, Rules, Status};
use crate::spec::{Column, Resource};
use crate::table::row;
use crate::tree;
use crate::warnings;

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
    metadata_counts: |new, old| !tree::same_at(new, old, "metadata.labels"),
    defaults: &[
        ("endpoints[].conditions", Fill::Map),
        ("ports[].name", Fill::Pointer("")),
        ("ports[].protocol", Fill::Pointer("TCP")),
    ],
    checks: &[
        ("addressType", Rule::RequiredOneOf(&["FQDN", "IPv4", "IPv6"])),
        ("addressType", Rule::Immutable),
        (
            "endpoints[].addresses",
            Rule::Required("must contain at least 1 address"),
        ),
        ("endpoints[].nodeName", Rule::GivenNamed(names::whole_subdomain)),
        ("endpoints[].hostname", Rule::GivenNamed(api::dns1123_label)),
        ("endpoints[].hints.forZones[].name", Rule::Named(api::label_value)),
        (
            "endpoints[].hints.forNodes[].name",
            Rule::AlwaysNamed(names::whole_subdomain),
        ),
        ("ports[].name", Rule::Named(api::dns1123_label)),
        ("ports[].protocol", Rule::GivenOneOf(&["SCTP", "TCP", "UDP"])),
        ("ports[].appProtocol", Rule::GivenNamed(api::qualified_name)),
    ],
    validate,
    warnings: warnings::endpoint_slice,
    ..RULES
};

/// Addresses are of the slice's type, and ports differ in name.
fn validate(slice: &Object, errors: &mut Errors) {
    let kind = tree::text(slice, "addressType");
    let endpoints = tree::items(slice, "endpoints");
    let path = Path::new("endpoints");
    if endpoints.len() > 1000 {
        errors.push(Error::too_many(&path, endpoints.len(), 1000));
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(index).child("addresses");
        let addresses = tree::items(endpoint, "addresses");
        if addresses.len() > 100 {
            errors.push(Error::too_many(&path, addresses.len(), 100));
        }
        for (number, address) in addresses.iter().enumerate() {
            let (text, at) = (address.as_str().unwrap_or_default(), path.index(number));
            match kind {
                "FQDN" => checks::named(&at, text, api::dns1123_subdomain, errors),
                "IPv4" | "IPv6" => {
                    if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() != (kind == "IPv6")) {
                        errors.push(Error::invalid(&path, text, format!("must be an {kind} address")));
                    }
                    endpoint_ip(text, &at, errors);
                }
                _ => {}
            }
        }
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        for list in ["forZones", "forNodes"] {
            let path = path.index(index).child("hints").child(list);
            let mut seen = BTreeSet::new();
            for (number, hint) in tree::items(endpoint, &format!("hints.{list}")).iter().enumerate() {
                let name = tree::text(hint, "name");
                if !seen.insert(name) {
                    errors.push(Error::duplicate(&path.index(number).child("name"), name));
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    for (index, port) in tree::items(slice, "ports").iter().enumerate() {
        let name = tree::text(port, "name");
        if !names.insert(name) {
            errors.push(Error::duplicate(&Path::new("ports").index(index).child("name"), name));
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Strategy;
    use serde_json::json;

    #[test]
    fn slices_are_refused_in_upstreams_words() {
        let said = |object: Value| {
            let mut object = object;
            SLICE.default(&mut object);
            let errors = SLICE.validate_create(&object);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            said(json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]})),
            Vec::<String>::new()
        );
        assert_eq!(
            said(
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::2"]}, {"addresses": []}], "ports": [{}, {}]})
            ),
            [
                "endpoints[1].addresses: Required value: must contain at least 1 address",
                "endpoints[0].addresses: Invalid value: \"::2\": must be an IPv4 address",
                "ports[1].name: Duplicate value: \"\"",
            ]
        );
        assert_eq!(said(json!({})), ["addressType: Required value"]);
    }
}
