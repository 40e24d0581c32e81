//! Validation of APIServices.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};

use crate::checks::{self, Rule};
use crate::spec::Part;
use crate::tree;

pub(super) fn api_service(service: &Object, errors: &mut Errors) {
    named_after_its_version(service, errors);
    let path = Path::new("spec");
    let (group, version) = (tree::text(service, "spec.group"), tree::text(service, "spec.version"));
    if group.is_empty() && version != "v1" {
        errors.push(Error::required(
            &path.child("group"),
            "only v1 may have an empty group and it better be legacy kube",
        ));
    }
    checks::run(
        &[("spec.group", Rule::Named(api::dns1123_subdomain))],
        service,
        None,
        errors,
    );
    checks::named(&path.child("version"), version, api::dns1035_label, errors);
    for (field, limit) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let priority = tree::get(service, "spec").map_or(0, |spec| tree::int(spec, field));
        if !(1..=limit).contains(&priority) {
            let why = format!("must be positive and less than {limit}");
            errors.push(Error::invalid(&path.child(field), priority, why));
        }
    }
    let bundle = tree::text(service, "spec.caBundle");
    let insecure = tree::flag(service, "spec.insecureSkipTLSVerify");
    let at = path.child("insecureSkipTLSVerify");
    if tree::get(service, "spec.service").is_none() {
        if !bundle.is_empty() {
            errors.push(Error::invalid(
                &path.child("caBundle"),
                format!("{} bytes", bundle.len() * 3 / 4),
                "local APIServices may not have a caBundle",
            ));
        }
        if insecure {
            errors.push(Error::invalid(
                &at,
                true,
                "local APIServices may not have insecureSkipTLSVerify",
            ));
        }
        return;
    }
    checks::run(
        &[
            ("spec.service.namespace", Rule::Required("")),
            ("spec.service.name", Rule::Required("")),
        ],
        service,
        None,
        errors,
    );
    let port = tree::int(service, "spec.service.port");
    let wrong = api::port_number(port);
    if !wrong.is_empty() {
        errors.push(Error::invalid(
            &path.child("service").child("port"),
            port,
            format!("port is not valid: {}", wrong.join(", ")),
        ));
    }
    if insecure && !bundle.is_empty() {
        errors.push(Error::invalid(&at, true, "may not be true if caBundle is present"));
    }
}

/// An APIService is named after what it serves. What is wrong with the name itself is told by others.
fn named_after_its_version(service: &Object, errors: &mut Errors) {
    let wanted = format!(
        "{}.{}",
        tree::text(service, "spec.version"),
        tree::text(service, "spec.group")
    );
    let name = tree::text(service, "metadata.name");
    if !name.is_empty() && api::path_segment(name).is_empty() && name != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(Error::invalid(&Path::new("metadata").child("name"), name, why));
    }
}

pub(super) fn api_service_status(part: Part<'_>, new: &Object, _: &Object, errors: &mut Errors) {
    if part != Part::View("status") {
        return;
    }
    const STATUSES: [&str; 3] = ["True", "False", "Unknown"];
    for (index, condition) in tree::items(new, "status.conditions").iter().enumerate() {
        let status = tree::text(condition, "status");
        if !STATUSES.contains(&status) {
            let at = Path::new("status").child("conditions").index(index).child("status");
            errors.push(Error::not_supported(&at, status, &STATUSES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{said, strategies};
    use serde_json::json;

    #[test]
    fn api_services() {
        assert_eq!(
            said(
                &strategies::API_SERVICE,
                json!({"metadata": {"name": "v1.x.y"}, "spec": {"group": "x.y", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}})
            ),
            Vec::<String>::new()
        );
        assert_eq!(
            said(
                &strategies::API_SERVICE,
                json!({"metadata": {"name": "v1.z"}, "spec": {"group": "x.y", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}})
            ),
            ["metadata.name: Invalid value: \"v1.z\": must be `spec.version+\".\"+spec.group`: \"v1.x.y\""]
        );
        assert_eq!(
            said(
                &strategies::API_SERVICE,
                json!({"metadata": {"name": "v1.x.y"}, "spec": {"group": "x.y", "version": "v1", "insecureSkipTLSVerify": true, "versionPriority": 1}})
            ),
            [
                "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
            ]
        );
    }
}
