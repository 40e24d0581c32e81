//! `resource.k8s.io/v1`: dynamic resource allocation.

mod published;
mod strategies;
mod validate;

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::core::text_field;
use crate::print::{AGE, NAME, age, cell, name, text};
use crate::spec::{Column, Resource, SelectableField};
use crate::table::{row, status};
use crate::tree;

const GROUP: &str = "resource.k8s.io";

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        strategy: &strategies::DEVICE_CLASS,
        ..row(GROUP, "DeviceClass", "DeviceClassList", "deviceclasses", "deviceclass")
    },
    Resource {
        subresources: &[status("ResourceClaim")],
        columns: CLAIM,
        cells: claim,
        strategy: &strategies::CLAIM,
        ..row(
            GROUP,
            "ResourceClaim",
            "ResourceClaimList",
            "resourceclaims",
            "resourceclaim",
        )
    },
    Resource {
        strategy: &strategies::CLAIM_TEMPLATE,
        ..row(
            GROUP,
            "ResourceClaimTemplate",
            "ResourceClaimTemplateList",
            "resourceclaimtemplates",
            "resourceclaimtemplate",
        )
    },
    Resource {
        namespaced: false,
        columns: SLICE,
        cells: slice,
        fields: &[text_field!("spec.nodeName"), text_field!("spec.driver")],
        strategy: &strategies::SLICE,
        ..row(
            GROUP,
            "ResourceSlice",
            "ResourceSliceList",
            "resourceslices",
            "resourceslice",
        )
    },
];

const CLAIM: &[Column] = &[NAME, text("State", "Pending, allocated, reserved, deleted."), AGE];

fn claim(object: &Object, now: Timestamp) -> Vec<Value> {
    let deleted = tree::get(object, "metadata.deletionTimestamp").is_some();
    let allocated = tree::get(object, "status.allocation").is_some();
    let reserved = allocated && !tree::items(object, "status.reservedFor").is_empty();
    let states: Vec<_> = [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (reserved, "reserved"),
    ]
    .into_iter()
    .filter_map(|(holds, state)| holds.then_some(state))
    .collect();
    vec![name(object), states.join(",").into(), age(object, now)]
}

const SLICE: &[Column] = &[
    NAME,
    text("Node", "The node the devices are at."),
    text("Driver", "The driver that publishes them."),
    text("Pool", "The pool they belong to."),
    AGE,
];

fn slice(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        cell(object, "spec.nodeName"),
        cell(object, "spec.driver"),
        cell(object, "spec.pool.name"),
        age(object, now),
    ]
}
