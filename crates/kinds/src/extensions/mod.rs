//! How the API is extended: `apiextensions.k8s.io/v1` CustomResourceDefinitions and `apiregistration.k8s.io/v1` APIServices.

mod conversion;
pub mod definition;
mod strategies;
mod validate;

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{AGE, NAME, PLAIN, age, name, or, plain, text};
use crate::spec::{Column, Resource};
use crate::table::{row, status};
use crate::tree;

pub(crate) static REGISTRATION_RESOURCES: &[Resource] = &[Resource {
    namespaced: false,
    categories: &["api-extensions"],
    storage_prefix: "apiregistration.k8s.io/apiservices",
    subresources: &[status("APIService")],
    columns: API_SERVICE,
    cells: api_service,
    strategy: &strategies::API_SERVICE,
    ..row(
        "apiregistration.k8s.io",
        "APIService",
        "APIServiceList",
        "apiservices",
        "apiservice",
    )
}];

pub(crate) static EXTENSION_RESOURCES: &[Resource] = &[Resource {
    namespaced: false,
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    storage_prefix: "apiextensions.k8s.io/customresourcedefinitions",
    subresources: &[status("CustomResourceDefinition")],
    columns: PLAIN,
    cells: plain,
    strategy: &strategies::DEFINITION,
    ..row(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "CustomResourceDefinitionList",
        "customresourcedefinitions",
        "customresourcedefinition",
    )
}];

const API_SERVICE: &[Column] = &[
    NAME,
    text("Service", "The Service that answers, or Local."),
    text("Available", "Whether it answers."),
    AGE,
];

fn api_service(object: &Object, now: Timestamp) -> Vec<Value> {
    let service = match tree::get(object, "spec.service") {
        None => "Local".to_owned(),
        Some(service) => format!("{}/{}", tree::text(service, "namespace"), tree::text(service, "name")),
    };
    let available = tree::items(object, "status.conditions")
        .iter()
        .find(|condition| tree::text(condition, "type") == "Available");
    let available = match available {
        None => "Unknown".to_owned(),
        Some(condition) => {
            let (status, reason) = (tree::text(condition, "status"), tree::text(condition, "reason"));
            if status == "True" || reason.is_empty() {
                or(status, "Unknown").to_owned()
            } else {
                format!("{status} ({reason})")
            }
        }
    };
    vec![name(object), service.into(), available.into(), age(object, now)]
}

/// What is said of a new object, defaulted as it would be.
#[cfg(test)]
fn said(rules: &crate::rules::Rules, mut object: sampan_api::Object) -> Vec<String> {
    use crate::spec::Strategy;
    rules.default(&mut object);
    rules.prepare_create(&mut object);
    rules.validate_create(&object).iter().map(ToString::to_string).collect()
}
