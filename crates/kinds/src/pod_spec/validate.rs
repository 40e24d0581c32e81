//! Validation of a PodSpec, in a Pod or a template.

use sampan_api::{field, names as api, selector::validate_label_selector};
use serde_json::Value;

use super::{containers, resources, scheduling, security, volumes, windows};
use crate::checks::{self, Check, Rule};
use crate::names;
use crate::tree;

pub(super) use sampan_api::field::{Error, Errors, Path};

/// What the spec belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    /// A Pod itself, not a template: some rules are for real Pods only.
    pub is_pod: bool,
    /// The Pod's name, "" when not known.
    pub name: &'a str,
}

/// A template: what its Pods will be called is not known.
pub(crate) const TEMPLATE: Owner<'static> = Owner {
    is_pod: false,
    name: "",
};

const POLICIES: &[Check] = &[
    ("restartPolicy", Rule::RequiredOneOf(&["Always", "OnFailure", "Never"])),
    (
        "dnsPolicy",
        Rule::RequiredOneOf(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]),
    ),
];

const READINESS: &[Check] = &[("readinessGates[].conditionType", Rule::AlwaysNamed(api::qualified_name))];

const PLACE: &[Check] = &[
    ("serviceAccountName", Rule::Named(names::whole_subdomain)),
    ("nodeName", Rule::Named(names::whole_subdomain)),
    ("activeDeadlineSeconds", Rule::Between(1, i32::MAX as i64)),
    ("hostname", Rule::Named(api::dns1123_label)),
    ("subdomain", Rule::Named(api::dns1123_label)),
];

const CLASSES: &[Check] = &[
    ("priorityClassName", Rule::Named(names::whole_subdomain)),
    ("runtimeClassName", Rule::GivenNamed(names::whole_subdomain)),
];

fn host_aliases(spec: &Value, path: &Path, errors: &mut Errors) {
    for (index, alias) in tree::items(spec, "hostAliases").iter().enumerate() {
        const ALIAS: &[Check] = &[
            ("ip", Rule::AlwaysNamed(names::ip)),
            ("hostnames[]", Rule::GivenNamed(api::dns1123_subdomain)),
        ];
        checks::run_at(ALIAS, alias, &path.index(index), None, errors);
    }
}

fn preemption(spec: &Value, path: &Path, errors: &mut Errors) {
    match tree::get(spec, "preemptionPolicy").and_then(Value::as_str) {
        None | Some("PreemptLowerPriority" | "Never") => {}
        Some("") => errors.push(Error::required(path, "")),
        Some(other) => errors.push(Error::not_supported(path, other, &["PreemptLowerPriority", "Never"])),
    }
}

/// Everything wrong with a PodSpec.
pub(crate) fn spec(spec: &Value, path: &Path, owner: Owner<'_>, errors: &mut Errors) {
    if tree::get(spec, "terminationGracePeriodSeconds").is_none() {
        errors.push(Error::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let volumes = volumes::validate(spec, &path.child("volumes"), owner, errors);
    claims(spec, &path.child("resourceClaims"), errors);
    containers::validate(spec, path, &volumes, errors);
    resources::pod_level(spec, path, errors);
    host_network(spec, path, owner, errors);
    checks::run_at(POLICIES, spec, path, None, errors);
    if let Some(selector) = tree::get(spec, "nodeSelector") {
        errors.extend(api::validate_labels(selector, &path.child("nodeSelector")));
    }
    security::pod(spec, path, errors);
    scheduling::affinity(spec, &path.child("affinity"), errors);
    dns_config(spec, &path.child("dnsConfig"), errors);
    checks::run_at(READINESS, spec, path, None, errors);
    scheduling_gates(spec, &path.child("schedulingGates"), errors);
    scheduling::topology_spread(spec, &path.child("topologySpreadConstraints"), errors);
    windows::host_processes(spec, path, errors);
    security::own_users(spec, path, errors);
    hostname_override(spec, path, errors);
    checks::run_at(PLACE, spec, path, None, errors);
    scheduling::tolerations(tree::items(spec, "tolerations"), &path.child("tolerations"), errors);
    host_aliases(spec, &path.child("hostAliases"), errors);
    checks::run_at(CLASSES, spec, path, None, errors);
    preemption(spec, &path.child("preemptionPolicy"), errors);
    if let Some(overhead) = tree::map(spec, "overhead") {
        resources::list(overhead, &path.child("overhead"), resources::container_name, errors);
    }
    windows::system(spec, path, errors);
}

/// Everything wrong with a pod template, its metadata included.
pub(crate) fn template(template: &Value, path: &Path, errors: &mut Errors) {
    if let Some(labels) = tree::get(template, "metadata.labels") {
        errors.extend(api::validate_labels(labels, &path.child("labels")));
    }
    if let Some(annotations) = tree::get(template, "metadata.annotations") {
        errors.extend(api::validate_annotations(annotations, &path.child("annotations")));
    }
    let nothing = Value::Null;
    let template_spec = tree::get(template, "spec").unwrap_or(&nothing);
    spec(template_spec, &path.child("spec"), TEMPLATE, errors);
    if !tree::items(template_spec, "ephemeralContainers").is_empty() {
        errors.push(Error::forbidden(
            &path.child("spec").child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

fn claims(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (index, claim) in tree::items(spec, "resourceClaims").iter().enumerate() {
        let path = path.index(index);
        let name = tree::text(claim, "name");
        if seen.contains(&name) && !name.is_empty() {
            errors.push(Error::duplicate(&path.child("name"), name));
        } else {
            checks::run_at(
                &[("name", Rule::RequiredNamed(api::dns1123_label))],
                claim,
                &path,
                None,
                errors,
            );
        }
        seen.push(name);
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources
            .iter()
            .filter(|source| tree::get(claim, source).is_some())
            .count()
        {
            1 => {}
            0 => errors.push(Error::invalid(
                &path,
                claim.clone(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            )),
            _ => errors.push(Error::invalid(
                &path,
                claim.clone(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            )),
        }
        for source in sources {
            checks::run_at(
                &[(source, Rule::Named(names::whole_subdomain))],
                claim,
                &path,
                None,
                errors,
            );
        }
    }
}

/// With the host's network a container's port is the host's port too.
fn host_network(spec: &Value, path: &Path, owner: Owner<'_>, errors: &mut Errors) {
    if !tree::flag(spec, "hostNetwork") {
        return;
    }
    for (index, container) in tree::items(spec, "containers").iter().enumerate() {
        for (number, port) in tree::items(container, "ports").iter().enumerate() {
            let (host, own) = (tree::int(port, "hostPort"), tree::int(port, "containerPort"));
            if (owner.is_pod || host != 0) && host != own {
                errors.push(Error::invalid(
                    &path
                        .child("containers")
                        .index(index)
                        .child("ports")
                        .index(number)
                        .child("hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

fn dns_config(spec: &Value, path: &Path, errors: &mut Errors) {
    let config = tree::get(spec, "dnsConfig");
    if tree::text(spec, "dnsPolicy") == "None" {
        match config {
            None => {
                errors.push(Error::required(
                    path,
                    "must provide `dnsConfig` when `dnsPolicy` is None",
                ));
                return;
            }
            Some(config) if tree::items(config, "nameservers").is_empty() => {
                errors.push(Error::required(
                    &path.child("nameservers"),
                    "must provide at least one DNS nameserver when `dnsPolicy` is None",
                ));
                return;
            }
            Some(_) => {}
        }
    }
    let Some(config) = config else {
        return;
    };
    let servers = tree::items(config, "nameservers");
    if servers.len() > 3 {
        errors.push(Error::invalid(
            &path.child("nameservers"),
            servers.to_vec(),
            "must not have more than 3 nameservers",
        ));
    }
    checks::run_at(
        &[("nameservers[]", Rule::GivenNamed(names::ip))],
        config,
        path,
        None,
        errors,
    );
    let searches = tree::items(config, "searches");
    if searches.len() > 32 {
        errors.push(Error::invalid(
            &path.child("searches"),
            searches.to_vec(),
            "must not have more than 32 search paths",
        ));
    }
    let texts: Vec<_> = searches.iter().filter_map(Value::as_str).collect();
    if texts.join(" ").len() > 2048 {
        errors.push(Error::invalid(
            &path.child("searches"),
            searches.to_vec(),
            "must not have more than 2048 characters (including spaces) in the search list",
        ));
    }
    for (index, search) in texts.iter().enumerate().filter(|(_, search)| **search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        checks::named(
            &path.child("searches").index(index),
            search,
            api::dns1123_subdomain_with_underscore,
            errors,
        );
    }
    for (index, option) in tree::items(config, "options").iter().enumerate() {
        if tree::text(option, "name").is_empty() {
            errors.push(Error::required(
                &path.child("options").index(index),
                "must not be empty",
            ));
        }
    }
}

fn scheduling_gates(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (index, gate) in tree::items(spec, "schedulingGates").iter().enumerate() {
        let (name, path) = (tree::text(gate, "name"), path.index(index));
        checks::named(&path, name, api::qualified_name, errors);
        if seen.contains(&name) {
            errors.push(Error::duplicate(&path, name));
        }
        seen.push(name);
    }
}

fn hostname_override(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(name) = tree::get(spec, "hostnameOverride").and_then(Value::as_str) else {
        return;
    };
    let path = path.child("hostnameOverride");
    for (field, why) in [
        (
            "setHostnameAsFQDN",
            "may not be specified when setHostnameAsFQDN is true",
        ),
        ("hostNetwork", "may not be specified when hostNetwork is true"),
    ] {
        if tree::flag(spec, field) {
            errors.push(Error::forbidden(&path, why));
        }
    }
    if name.len() > 64 {
        errors.push(Error::too_long(&path, 64));
    }
    checks::named(&path, name, api::dns1123_subdomain, errors);
}

/// Errors of a LabelSelector that may be absent.
pub(crate) fn selector(owner: &Value, field: &str, path: &Path, errors: &mut field::Errors) {
    if let Some(selector) = tree::get(owner, field) {
        errors.extend(validate_label_selector(selector, path));
    }
}
