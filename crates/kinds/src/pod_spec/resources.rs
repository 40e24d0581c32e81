//! Validation of resource requirements and resource names.

use std::collections::BTreeSet;

use sampan_api::{names as api, quantity::Quantity};
use serde_json::{Map, Value};

use super::quantities;
use super::validate::{Error, Errors, Path};
use crate::checks;
use crate::tree;

const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Names without a group that mean something somewhere (containers, quotas, limits).
const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

/// Resources counted in whole numbers.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

pub(crate) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && api::qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_integer(name: &str) -> bool {
    COUNTED.contains(&name) || is_extended(name)
}

/// Whether more of it may be promised than there is.
pub(crate) fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// A resource's name anywhere.
pub(crate) fn any_name(name: &str, path: &Path, errors: &mut Errors) {
    let wrong = api::qualified_name(name);
    if !wrong.is_empty() {
        checks::named(path, name, api::qualified_name, errors);
        return;
    }
    let quota_huge_page = is_huge_page(name) || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !STANDARD.contains(&name) && !quota_huge_page {
        errors.push(Error::invalid(
            path,
            name,
            "must be a standard resource type or fully qualified",
        ));
    }
}

/// A resource a quota may speak of.
pub(crate) fn quota_name(name: &str, path: &Path, errors: &mut Errors) {
    any_name(name, path, errors);
    let known = STANDARD.contains(&name) && name != "storage";
    let huge_page = is_huge_page(name) || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !known && !huge_page {
        errors.push(Error::invalid(path, name, "must be a standard resource for quota"));
    }
}

/// A resource a container may ask for.
pub(crate) fn container_name(name: &str, path: &Path, errors: &mut Errors) {
    any_name(name, path, errors);
    if !name.contains('/') {
        if !CONTAINER_RESOURCES.contains(&name) && !is_huge_page(name) {
            errors.push(Error::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(Error::invalid(
            path,
            name,
            "doesn't follow extended resource name standard",
        ));
    }
}

/// A resource a whole Pod may ask for.
fn pod_name(name: &str, path: &Path, errors: &mut Errors) {
    let before = errors.len();
    any_name(name, path, errors);
    if errors.len() == before && !matches!(name, "cpu" | "memory") && !is_huge_page(name) {
        errors.push(Error::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
    }
}

type NameCheck = fn(&str, &Path, &mut Errors);

/// An amount of a resource: not negative, whole where it is counted.
pub(crate) fn amount(name: &str, value: &Value, path: &Path, errors: &mut Errors) {
    match Quantity::from_value(value) {
        Err(error) => errors.push(Error::invalid(path, value.clone(), error.to_string())),
        Ok(quantity) => {
            if quantity.is_negative() {
                errors.push(Error::invalid(
                    path,
                    quantity.to_string(),
                    "must be greater than or equal to 0",
                ));
            }
            if is_integer(name) && quantity.milli_value() % 1000 != 0 {
                errors.push(Error::invalid(path, quantity.to_string(), "must be an integer"));
            }
        }
    }
}

/// Huge pages come whole: an amount is a multiple of the size in its name.
fn whole_pages(name: &str, value: &Value, path: &Path, errors: &mut Errors) {
    let (Some(size), Ok(amount)) = (name.strip_prefix("hugepages-"), Quantity::from_value(value)) else {
        return;
    };
    let size = size.parse::<Quantity>().map_or(0, |size| match size.milli_value() {
        milli if milli > 0 && milli % 1000 == 0 => size.value(),
        _ => 0,
    });
    if size == 0 || amount.value() % size != 0 {
        let why = format!("{amount} is not positive integer multiple of {name}");
        errors.push(Error::invalid(path, amount.to_string(), why));
    }
}

/// Names and amounts of a list.
pub(crate) fn list(list: &Map<String, Value>, path: &Path, name_check: NameCheck, errors: &mut Errors) {
    for (name, value) in list {
        let path = path.key(name);
        name_check(name, &path, errors);
        amount(name, value, &path, errors);
    }
}

/// Requests and limits of a container.
pub(super) fn container(spec: &Value, container: &Value, path: &Path, errors: &mut Errors) {
    if let Some(requirements) = tree::get(container, "resources") {
        requirements_at(requirements, container_name, path, errors);
        claims(spec, requirements, &path.child("claims"), errors);
    }
}

fn requirements_at(requirements: &Value, name_check: NameCheck, path: &Path, errors: &mut Errors) {
    let (requests_path, limits_path) = (path.child("requests"), path.child("limits"));
    let limits = tree::map(requirements, "limits");
    let requests = tree::map(requirements, "requests");
    for (name, value) in limits.into_iter().flatten() {
        let at = limits_path.key(name);
        name_check(name, &at, errors);
        amount(name, value, &at, errors);
        whole_pages(name, value, &at, errors);
    }
    for (name, value) in requests.into_iter().flatten() {
        let at = requests_path.key(name);
        name_check(name, &at, errors);
        amount(name, value, &at, errors);
        let Ok(request) = Quantity::from_value(value) else {
            continue;
        };
        let limit = limits
            .and_then(|limits| limits.get(name))
            .and_then(|limit| Quantity::from_value(limit).ok());
        match limit {
            Some(limit) => {
                let over = request.sub(&limit).sign();
                if over != 0 && !may_overcommit(name) {
                    let why = format!("must be equal to {name} limit of {limit}");
                    errors.push(Error::invalid(&requests_path, request.to_string(), why));
                } else if over > 0 {
                    let why = format!("must be less than or equal to {name} limit of {limit}");
                    errors.push(Error::invalid(&requests_path, request.to_string(), why));
                }
            }
            None if !may_overcommit(name) => errors.push(Error::required(
                &limits_path,
                "Limit must be set for non overcommitable resources",
            )),
            None => {}
        }
        whole_pages(name, value, &at, errors);
    }
    let names: BTreeSet<_> = [requests, limits]
        .into_iter()
        .flatten()
        .flat_map(Map::keys)
        .map(String::as_str)
        .collect();
    if names.iter().any(|name| is_huge_page(name)) && !names.contains("cpu") && !names.contains("memory") {
        errors.push(Error::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// A container's claims name claims of its Pod, each once.
fn claims(spec: &Value, requirements: &Value, path: &Path, errors: &mut Errors) {
    let known: BTreeSet<_> = tree::items(spec, "resourceClaims")
        .iter()
        .map(|claim| tree::text(claim, "name"))
        .filter(|name| !name.is_empty())
        .collect();
    let mut seen = BTreeSet::new();
    for (index, claim) in tree::items(requirements, "claims").iter().enumerate() {
        let path = path.index(index);
        let name = tree::text(claim, "name");
        if name.is_empty() {
            errors.push(Error::required(&path, ""));
            continue;
        }
        if !seen.insert((name, tree::text(claim, "request"))) {
            errors.push(Error::duplicate(&path, name));
        }
        if !known.contains(name) {
            let mut error = Error::not_found(&path, name);
            let names: Vec<_> = known.iter().copied().collect();
            error.detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if names.is_empty() {
                error.detail.push_str(" which is empty");
            } else {
                error.detail.push_str(&format!(": {}", names.join(", ")));
            }
            errors.push(error);
        }
    }
}

/// Requests and limits of the Pod as a whole.
pub(super) fn pod_level(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(requirements) = tree::get(spec, "resources") else {
        return;
    };
    let path = path.child("resources");
    if tree::get(requirements, "claims").is_some() {
        errors.push(Error::forbidden(
            &path.child("claims"),
            "claims may not be set for Resources at pod-level",
        ));
    }
    requirements_at(requirements, pod_name, &path, errors);
    for name in tree::map(requirements, "requests").into_iter().flat_map(Map::keys) {
        let own = quantities::of(tree::map(requirements, "requests"), name);
        let total = crate::core::pod::qos::total_requests(spec, name);
        if total.sub(&own).sign() > 0 {
            errors.push(Error::invalid(
                &path.child("requests").key(name),
                own.to_string(),
                format!("must be greater than or equal to aggregate container requests of {total}"),
            ));
        }
    }
    for (index, container) in tree::items(spec, "containers").iter().enumerate() {
        for name in tree::map(container, "resources.limits").into_iter().flat_map(Map::keys) {
            if tree::map(requirements, "limits").is_none_or(|limits| !limits.contains_key(name)) {
                continue;
            }
            let limit = quantities::of(tree::map(container, "resources.limits"), name);
            let own = quantities::of(tree::map(requirements, "limits"), name);
            if limit.sub(&own).sign() > 0 {
                errors.push(Error::invalid(
                    &path.child("containers").index(index).key(name).child("limits"),
                    limit.to_string(),
                    format!("must be less than or equal to pod limits of {own}"),
                ));
            }
        }
    }
}

const REFERABLE: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

const SIZES: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";

/// A reference to a container's own resources (`resourceFieldRef`).
pub(super) fn field_ref(reference: &Value, in_volume: bool, path: &Path, errors: &mut Errors) {
    let resource = tree::text(reference, "resource");
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && tree::text(reference, "containerName").is_empty() {
        errors.push(Error::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(Error::required(&path.child("resource"), ""));
    } else if !REFERABLE.contains(&resource) && !huge {
        errors.push(Error::not_supported(&path.child("resource"), resource, &REFERABLE));
    }
    let divisor = tree::get(reference, "divisor").map(tree::scalar).unwrap_or_default();
    if matches!(divisor.as_str(), "" | "0") {
        return;
    }
    let (allowed, what) = match resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") if matches!(divisor.as_str(), "1m" | "1") => return,
        Some("cpu") => ("1m and 1", "cpu"),
        Some("memory") => (SIZES, "memory"),
        Some("ephemeral-storage") => (SIZES, "local ephemeral storage"),
        _ if huge => (SIZES, "hugepages"),
        _ => return,
    };
    if SIZES.split(", ").all(|size| size != divisor) || what == "cpu" {
        errors.push(Error::invalid(
            &path.child("divisor"),
            resource,
            format!("only divisor's values {allowed} are supported with the {what} resource"),
        ));
    }
}
