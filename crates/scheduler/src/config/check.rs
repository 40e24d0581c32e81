//! Upstream's rules for a configuration, in its words and its order.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelectorTerm, TopologySpreadConstraint};
use sampan_api::field::{Error, Errors, Path};
use sampan_api::names;
use serde_json::{Value, json};

use super::API_VERSION;
use super::args::{ResourceWeight, ShapePoint};
use super::decode::{Said, SaidArgs, SaidProfile};
use super::plugins::{POINTS, PluginSet};
use super::{Extender, LeaderElection};
use crate::plugins::resources::is_extended;

/// Plugins that were, and are no more.
const GONE: [&str; 4] = ["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];

fn gone(path: &Path, name: &str) -> Option<Error> {
    GONE.contains(&name).then(|| {
        let why =
            format!("was invalid in version {API_VERSION:?} (KubeSchedulerConfiguration is version {API_VERSION:?})");
        Error::invalid(path, name, why)
    })
}

pub fn check(said: &Said) -> Errors {
    let mut errors = Errors::new();
    let top = Path::default();
    if said.burst < 0 {
        let path = top.child("clientConnection").child("burst");
        errors.push(Error::invalid(&path, said.burst, "must be non-negative"));
    }
    leader_election(&said.leader_election, &top.child("leaderElection"), &mut errors);
    if said.parallelism <= 0 {
        let why = "should be an integer value greater than zero";
        errors.push(Error::invalid(&top.child("parallelism"), said.parallelism, why));
    }
    let profiles = top.child("profiles");
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, profile) in said.profiles.iter().enumerate() {
        let path = profiles.index(at);
        self::profile(profile, &path, &mut errors);
        if let Some(before) = names.insert(&profile.name, at) {
            let first = profiles.index(before).child("schedulerName");
            errors.push(Error::duplicate(&path.child("schedulerName"), first.as_str()));
        }
    }
    queue_sort(&said.profiles, &profiles, &mut errors);
    percentage(
        said.percentage_of_nodes_to_score,
        &top.child("percentageOfNodesToScore"),
        &mut errors,
    );
    if said.initial_backoff <= 0 {
        let path = top.child("podInitialBackoffSeconds");
        errors.push(Error::invalid(&path, said.initial_backoff, "must be greater than 0"));
    }
    if said.max_backoff < said.initial_backoff {
        let why = "must be greater than or equal to PodInitialBackoffSeconds";
        errors.push(Error::invalid(
            &top.child("podMaxBackoffSeconds"),
            said.max_backoff,
            why,
        ));
    }
    extenders(&said.extenders, &top.child("extenders"), &mut errors);
    errors
}

fn leader_election(election: &LeaderElection, path: &Path, errors: &mut Errors) {
    if !election.elect {
        return;
    }
    for (name, length) in [
        ("leaseDuration", election.lease),
        ("renewDeadline", election.renew),
        ("retryPeriod", election.retry),
    ] {
        if length.0 <= 0 {
            let why = "must be greater than zero";
            errors.push(Error::invalid(&path.child(name), length.to_string(), why));
        }
    }
    if election.lease <= election.renew {
        let why = "must be greater than `RenewDeadline`";
        errors.push(Error::invalid(
            &path.child("leaseDuration"),
            election.renew.to_string(),
            why,
        ));
    }
    if election.lock != "leases" {
        let why = "resourceLock value must be \"leases\"";
        errors.push(Error::invalid(&path.child("resourceLock"), election.lock.as_str(), why));
    }
}

fn percentage(given: Option<i32>, path: &Path, errors: &mut Errors) {
    if let Some(given) = given
        && !(0..=100).contains(&given)
    {
        errors.push(Error::invalid(path, given, "not in valid range [0-100]"));
    }
}

fn profile(profile: &SaidProfile, path: &Path, errors: &mut Errors) {
    if profile.name.is_empty() {
        errors.push(Error::required(&path.child("schedulerName"), ""));
    }
    percentage(
        profile.percentage_of_nodes_to_score,
        &path.child("percentageOfNodesToScore"),
        errors,
    );
    for (point, _) in POINTS {
        let enabled = path.child("plugins").child(point).child("enabled");
        let set = profile.own.set(point);
        let plugins = set.enabled.iter().enumerate();
        errors.extend(plugins.filter_map(|(at, plugin)| gone(&enabled.index(at), &plugin.name)));
    }
    let mut seen = BTreeSet::new();
    for (at, (name, args)) in profile.configured.iter().enumerate() {
        let path = path.child("pluginConfig").index(at);
        if !seen.insert(name) {
            errors.push(Error::duplicate(&path, name.as_str()));
        }
        match gone(&path, name) {
            Some(error) => errors.push(error),
            None => arguments(name, &profile.args, args, errors),
        }
    }
}

fn arguments(name: &str, args: &SaidArgs, path: &Path, errors: &mut Errors) {
    match name {
        "DefaultPreemption" => preemption(args.preemption, path, errors),
        "InterPodAffinity" if !(0..=100).contains(&args.hard_pod_affinity_weight) => {
            let path = path.child("hardPodAffinityWeight");
            errors.push(Error::invalid(
                &path,
                args.hard_pod_affinity_weight,
                "not in valid range [0, 100]",
            ));
        }
        "NodeAffinity" => {
            if let Some(affinity) = &args.node_affinity {
                node_affinity(affinity, &path.child("addedAffinity"), errors);
            }
        }
        "NodeResourcesFit" => fit(args, path, errors),
        "NodeResourcesBalancedAllocation" => {
            let path = path.child("resources");
            let mut seen = BTreeSet::new();
            for (at, resource) in args.balanced.iter().enumerate() {
                if !seen.insert(&resource.name) {
                    errors.push(Error::duplicate(&path.index(at).child("name"), resource.name.as_str()));
                }
                if resource.weight != 1 {
                    errors.push(Error::invalid(
                        &path.index(at).child("weight"),
                        resource.weight,
                        "must be 1",
                    ));
                }
            }
        }
        "PodTopologySpread" => spread(&args.defaulting, &args.default_constraints, path, errors),
        "VolumeBinding" => {
            if args.bind_timeout < 0 {
                let why = "invalid BindTimeoutSeconds, should not be a negative value";
                errors.push(Error::invalid(
                    &path.child("bindTimeoutSeconds"),
                    args.bind_timeout,
                    why,
                ));
            }
            if args.volume_shape {
                let why = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
                let error = Error::invalid(&path.child("shape"), Value::Null, why);
                errors.push(Error { omitted: true, ..error });
            }
        }
        "DynamicResources" => {
            if args.filter_timeout.is_some_and(|timeout| timeout.0 < 0) {
                let shown = args.filter_timeout.unwrap_or_default().to_string();
                errors.push(Error::invalid(
                    &path.child("filterTimeout"),
                    shown,
                    "must be zero or positive",
                ));
            }
            if args.binding_timeout.is_some_and(|timeout| timeout.0 < 1_000_000_000) {
                let shown = args.binding_timeout.unwrap_or_default().to_string();
                errors.push(Error::invalid(
                    &path.child("bindingTimeout"),
                    shown,
                    "must be at least 1 second",
                ));
            }
        }
        _ => {}
    }
}

fn preemption((percentage, absolute): (i32, i32), path: &Path, errors: &mut Errors) {
    let (of_all, at_least) = (
        path.child("minCandidateNodesPercentage"),
        path.child("minCandidateNodesAbsolute"),
    );
    if !(0..=100).contains(&percentage) {
        errors.push(Error::invalid(&of_all, percentage, "not in valid range [0, 100]"));
    }
    if absolute < 0 {
        errors.push(Error::invalid(&at_least, absolute, "not in valid range [0, inf)"));
    }
    if percentage == 0 && absolute == 0 {
        let why = "cannot be zero at the same time as ";
        errors.push(Error::invalid(&of_all, 0, format!("{why}minCandidateNodesAbsolute")));
        errors.push(Error::invalid(
            &at_least,
            0,
            format!("{why}minCandidateNodesPercentage"),
        ));
    }
}

fn label_name(name: &str, path: &Path, errors: &mut Errors) {
    let wrong = names::qualified_name(name);
    errors.extend(wrong.into_iter().map(|why| Error::invalid(path, name, why)));
}

fn fit(args: &SaidArgs, path: &Path, errors: &mut Errors) {
    for (at, name) in args.ignored.iter().enumerate() {
        label_name(name, &path.child("ignoredResources").index(at), errors);
    }
    for (at, group) in args.ignored_groups.iter().enumerate() {
        let path = path.child("ignoredResourceGroups").index(at);
        if group.contains('/') {
            let why = "resource group name can't contain '/'";
            errors.push(Error::invalid(&path, group.as_str(), why));
        }
        label_name(group, &path, errors);
    }
    let path = path.child("scoringStrategy");
    let kinds = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
    if !kinds.contains(&args.strategy.as_str()) {
        errors.push(Error::not_supported(
            &path.child("type"),
            args.strategy.as_str(),
            &kinds,
        ));
    }
    resource_weights(&args.resources, &path.child("resources"), errors);
    let ratio = path.child("requestedToCapacityRatio");
    match (&args.shape, args.strategy == "RequestedToCapacityRatio") {
        (Some(shape), true) => function_shape(shape, &ratio.child("shape"), errors),
        (None, true) => {
            let why = "must be specified when type is RequestedToCapacityRatio";
            errors.push(Error::required(&ratio, why));
        }
        (Some(_), false) => {
            let why = "must be nil when type is not RequestedToCapacityRatio";
            errors.push(Error::forbidden(&ratio, why));
        }
        (None, false) => {}
    }
}

fn resource_weights(resources: &[ResourceWeight], path: &Path, errors: &mut Errors) {
    for (at, resource) in resources.iter().enumerate() {
        if !(1..=100).contains(&resource.weight) {
            let why = format!("resource weight of {} not in valid range (0, 100]", resource.name);
            errors.push(Error::invalid(&path.index(at).child("weight"), resource.weight, why));
        }
    }
}

fn function_shape(shape: &[ShapePoint], path: &Path, errors: &mut Errors) {
    if shape.is_empty() {
        errors.push(Error::required(path, "at least one point must be specified"));
        return;
    }
    for (at, pair) in shape.windows(2).enumerate() {
        if let [before, after] = pair
            && before.utilization >= after.utilization
        {
            let path = path.index(at + 1).child("utilization");
            let why = "values must be sorted in increasing order";
            errors.push(Error::invalid(&path, after.utilization, why));
            break;
        }
    }
    for (at, point) in shape.iter().enumerate() {
        let path = path.index(at);
        if !(0..=100).contains(&point.utilization) {
            let why = "not in valid range [0, 100]";
            errors.push(Error::invalid(&path.child("utilization"), point.utilization, why));
        }
        if !(0..=10).contains(&point.score) {
            let why = "not in valid range [0, 10]";
            errors.push(Error::invalid(&path.child("score"), point.score, why));
        }
    }
}

fn spread(defaulting: &str, constraints: &[TopologySpreadConstraint], path: &Path, errors: &mut Errors) {
    let kind = path.child("defaultingType");
    if !["System", "List"].contains(&defaulting) {
        errors.push(Error::not_supported(&kind, defaulting, &["System", "List"]));
    } else if defaulting == "System" && !constraints.is_empty() {
        errors.push(Error::invalid(
            &kind,
            defaulting,
            "when .defaultConstraints are not empty",
        ));
    }
    let path = path.child("defaultConstraints");
    let mut seen = BTreeSet::new();
    for (at, constraint) in constraints.iter().enumerate() {
        let here = path.index(at);
        if constraint.max_skew <= 0 {
            let why = "not in valid range (0, inf)";
            errors.push(Error::invalid(&here.child("maxSkew"), constraint.max_skew, why));
        }
        let (key, action) = (constraint.topology_key.as_str(), constraint.when_unsatisfiable.as_str());
        if key.is_empty() {
            errors.push(Error::required(&here.child("topologyKey"), "can not be empty"));
        } else {
            label_name(key, &here.child("topologyKey"), errors);
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if action.is_empty() {
            errors.push(Error::required(&here.child("whenUnsatisfiable"), "can not be empty"));
        } else if !actions.contains(&action) {
            errors.push(Error::not_supported(&here.child("whenUnsatisfiable"), action, &actions));
        }
        if constraint.label_selector.is_some() {
            let why = "constraint must not define a selector, as they deduced for each pod";
            errors.push(Error::forbidden(&here.child("labelSelector"), why));
        }
        if !seen.insert((key, action)) {
            errors.push(Error::duplicate(&here, format!("{{{key}, {action}}}")));
        }
    }
}

fn node_affinity(affinity: &NodeAffinity, path: &Path, errors: &mut Errors) {
    if let Some(required) = &affinity.required_during_scheduling_ignored_during_execution {
        let path = path
            .child("requiredDuringSchedulingIgnoredDuringExecution")
            .child("nodeSelectorTerms");
        for (at, term) in required.node_selector_terms.iter().enumerate() {
            node_term(term, &path.index(at), errors);
        }
    }
    let path = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    let preferred = affinity
        .preferred_during_scheduling_ignored_during_execution
        .iter()
        .flatten();
    for (at, preference) in preferred.enumerate() {
        if preference.weight != 0 {
            node_term(&preference.preference, &path.index(at), errors);
        }
    }
}

fn node_term(term: &NodeSelectorTerm, path: &Path, errors: &mut Errors) {
    let operators = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    for (at, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(at);
        let values = requirement.values.as_deref().unwrap_or_default();
        let (operator, at_values) = (requirement.operator.as_str(), path.child("values"));
        if !operators.contains(&operator) {
            errors.push(Error::not_supported(&path.child("operator"), operator, &operators));
            continue;
        }
        label_name(&requirement.key, &path.child("key"), errors);
        let wrong = match operator {
            "In" | "NotIn" if values.is_empty() => "for 'in', 'notin' operators, values set can't be empty",
            "Exists" | "DoesNotExist" if !values.is_empty() => "values set must be empty for exists and does not exist",
            "Gt" | "Lt" if values.len() != 1 => "for 'Gt', 'Lt' operators, exactly one value is required",
            "Gt" | "Lt" if values.iter().any(|value| value.parse::<i64>().is_err()) => {
                "for 'Gt', 'Lt' operators, the value must be an integer"
            }
            _ => continue,
        };
        errors.push(Error::invalid(&at_values, json!(values), wrong));
    }
    for (at, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(at);
        let values = requirement.values.as_deref().unwrap_or_default();
        if !["In", "NotIn"].contains(&requirement.operator.as_str()) {
            let operator = requirement.operator.as_str();
            errors.push(Error::not_supported(
                &path.child("operator"),
                operator,
                &["In", "NotIn"],
            ));
        } else if values.len() != 1 {
            errors.push(Error::invalid(
                &path.child("values"),
                json!(values),
                "must have one element",
            ));
        }
    }
}

/// A set as Go prints it.
fn shown(set: &PluginSet) -> Value {
    let enabled: Vec<Value> = set
        .enabled
        .iter()
        .map(|plugin| json!({"Name": plugin.name, "Weight": plugin.weight}))
        .collect();
    let disabled: Vec<Value> = set
        .disabled
        .iter()
        .map(|name| json!({"Name": name, "Weight": 0}))
        .collect();
    json!({"Enabled": enabled, "Disabled": disabled})
}

/// All profiles share one queue, so its order is the same for all.
fn queue_sort(profiles: &[SaidProfile], path: &Path, errors: &mut Errors) {
    let Some((first, others)) = profiles.split_first() else {
        return;
    };
    let canon = first.plugins.set("queueSort");
    if canon.enabled.len() > 1 {
        let path = path.index(0).child("plugins").child("queueSort").child("Enabled");
        let why = "only one queue sort plugin can be enabled";
        errors.push(Error::invalid(&path, canon.enabled.len(), why));
    }
    for (at, profile) in others.iter().enumerate() {
        let set = profile.plugins.set("queueSort");
        if set != canon {
            let path = path.index(at + 1).child("plugins").child("queueSort");
            errors.push(Error::invalid(&path, shown(&set), "must be the same for all profiles"));
        }
    }
}

fn extenders(extenders: &[Extender], path: &Path, errors: &mut Errors) {
    let mut managed = BTreeSet::new();
    for (at, extender) in extenders.iter().enumerate() {
        let path = path.index(at);
        // Upstream finds out when it first asks.
        if let Err(why) = extender
            .url_prefix
            .parse::<http::Uri>()
            .map_err(|error| error.to_string())
            .and_then(|url| match (url.scheme_str(), url.authority()) {
                (Some("http" | "https"), Some(_)) => Ok(()),
                _ => Err("must be a URL such as http://127.0.0.1:8888/scheduler".to_owned()),
            })
        {
            errors.push(Error::invalid(
                &path.child("urlPrefix"),
                extender.url_prefix.as_str(),
                why,
            ));
        }
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            let why = "must have a positive weight applied to it";
            errors.push(Error::invalid(&path.child("weight"), extender.weight, why));
        }
        for (at, resource) in extender.managed_resources.iter().enumerate() {
            let path = path.child("managedResources").index(at).child("name");
            let wrong = names::qualified_name(&resource.name);
            if wrong.is_empty() && !is_extended(&resource.name) {
                let why = "is an invalid extended resource name";
                errors.push(Error::invalid(&path, resource.name.as_str(), why));
            }
            errors.extend(
                wrong
                    .into_iter()
                    .map(|why| Error::invalid(&path, resource.name.as_str(), why)),
            );
            if !managed.insert(&resource.name) {
                let why = "duplicate extender managed resource name";
                errors.push(Error::invalid(&path, resource.name.as_str(), why));
            }
        }
    }
    let binders = extenders
        .iter()
        .filter(|extender| !extender.bind_verb.is_empty())
        .count();
    if binders > 1 {
        let found = format!("found {binders} extenders implementing bind");
        errors.push(Error::invalid(path, found, "only one extender can implement bind"));
    }
}
