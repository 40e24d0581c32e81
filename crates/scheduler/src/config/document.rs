//! The configuration in force as a document: what `/configz` shows.

use serde_json::{Map, Value, json};

use super::args::{Arguments, ResourceWeight, Strategy};
use super::plugins::PluginSet;
use super::{API_VERSION, Configuration, Extender, GoDuration, KIND, Profile};

impl Configuration {
    /// The whole configuration as upstream would write it, defaults included.
    pub fn document(&self) -> Value {
        let election = &self.leader_election;
        let kubeconfig = self.kubeconfig.as_ref().map(|path| path.display().to_string());
        json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "parallelism": self.parallelism,
            "leaderElection": {
                "leaderElect": election.elect,
                "leaseDuration": election.lease.to_string(),
                "renewDeadline": election.renew.to_string(),
                "retryPeriod": election.retry.to_string(),
                "resourceLock": election.lock,
                "resourceName": election.name,
                "resourceNamespace": election.namespace,
            },
            "clientConnection": {
                "kubeconfig": kubeconfig.unwrap_or_default(),
                "acceptContentTypes": "",
                "contentType": "application/json",
                "qps": 0,
                "burst": 0,
            },
            "enableProfiling": false,
            "enableContentionProfiling": false,
            "percentageOfNodesToScore": 100,
            "podInitialBackoffSeconds": self.initial_backoff.as_secs(),
            "podMaxBackoffSeconds": self.max_backoff.as_secs(),
            "profiles": self.profiles.iter().map(profile).collect::<Vec<_>>(),
            "extenders": self.extenders.iter().map(extender).collect::<Vec<_>>(),
        })
    }
}

fn profile(profile: &Profile) -> Value {
    let sets: Map<String, Value> = profile
        .plugins
        .0
        .iter()
        .map(|(point, set)| ((*point).to_owned(), plugin_set(set)))
        .collect();
    json!({
        "schedulerName": profile.name,
        "plugins": sets,
        "pluginConfig": arguments(&profile.arguments),
    })
}

fn plugin_set(set: &PluginSet) -> Value {
    let mut shown = Map::new();
    if !set.enabled.is_empty() {
        let enabled = set.enabled.iter().map(|plugin| match plugin.weight {
            0 => json!({"name": plugin.name}),
            weight => json!({"name": plugin.name, "weight": weight}),
        });
        shown.insert("enabled".into(), enabled.collect());
    }
    if !set.disabled.is_empty() {
        let disabled = set.disabled.iter().map(|name| json!({"name": name}));
        shown.insert("disabled".into(), disabled.collect());
    }
    Value::Object(shown)
}

fn weights(resources: &[ResourceWeight]) -> Value {
    let shown = resources
        .iter()
        .map(|resource| json!({"name": resource.name, "weight": resource.weight}));
    shown.collect()
}

fn arguments(arguments: &Arguments) -> Value {
    let fit = &arguments.fit;
    let mut strategy = json!({"resources": weights(&fit.resources)});
    strategy["type"] = match &fit.strategy {
        Strategy::LeastAllocated => "LeastAllocated",
        Strategy::MostAllocated => "MostAllocated",
        Strategy::RequestedToCapacityRatio(shape) => {
            let shape = shape
                .iter()
                .map(|point| json!({"utilization": point.utilization, "score": point.score}));
            strategy["requestedToCapacityRatio"] = json!({"shape": shape.collect::<Vec<_>>()});
            "RequestedToCapacityRatio"
        }
    }
    .into();
    let mut fit_args = json!({"scoringStrategy": strategy});
    if !fit.ignored.is_empty() {
        fit_args["ignoredResources"] = json!(fit.ignored);
    }
    if !fit.ignored_groups.is_empty() {
        fit_args["ignoredResourceGroups"] = json!(fit.ignored_groups);
    }
    let mut spread = json!({"defaultingType": if arguments.spread.system { "System" } else { "List" }});
    if !arguments.spread.system {
        spread["defaultConstraints"] = json!(arguments.spread.defaults);
    }
    let mut affinity = json!({});
    if arguments.node_affinity != Default::default() {
        affinity["addedAffinity"] = json!(arguments.node_affinity);
    }
    let all = [
        (
            "DefaultPreemption",
            json!({
                "minCandidateNodesPercentage": arguments.preemption.min_candidate_nodes_percentage,
                "minCandidateNodesAbsolute": arguments.preemption.min_candidate_nodes_absolute,
            }),
        ),
        (
            "InterPodAffinity",
            json!({
                "hardPodAffinityWeight": arguments.pod_affinity.hard_pod_affinity_weight,
                "ignorePreferredTermsOfExistingPods":
                    arguments.pod_affinity.ignore_preferred_terms_of_existing_pods,
            }),
        ),
        ("NodeAffinity", affinity),
        (
            "NodeResourcesBalancedAllocation",
            json!({"resources": weights(&arguments.balanced)}),
        ),
        ("NodeResourcesFit", fit_args),
        ("PodTopologySpread", spread),
        (
            "VolumeBinding",
            json!({"bindTimeoutSeconds": arguments.volume_binding.bind_timeout.as_secs()}),
        ),
    ];
    let shown = all.into_iter().map(|(name, mut args)| {
        args["apiVersion"] = API_VERSION.into();
        args["kind"] = format!("{name}Args").into();
        json!({"name": name, "args": args})
    });
    shown.collect()
}

/// Keys are nobody's business: of `tlsConfig` only the files are shown.
fn extender(extender: &Extender) -> Value {
    let timeout = GoDuration(i64::try_from(extender.timeout.as_nanos()).unwrap_or(i64::MAX));
    let mut shown = json!({
        "urlPrefix": extender.url_prefix,
        "filterVerb": extender.filter_verb,
        "preemptVerb": extender.preempt_verb,
        "prioritizeVerb": extender.prioritize_verb,
        "weight": extender.weight,
        "bindVerb": extender.bind_verb,
        "enableHTTPS": extender.https,
        "httpTimeout": timeout.to_string(),
        "nodeCacheCapable": extender.node_cache_capable,
        "ignorable": extender.ignorable,
        "managedResources": extender.managed_resources.iter().map(|resource| {
            json!({"name": resource.name, "ignoredByScheduler": resource.ignored_by_scheduler})
        }).collect::<Vec<_>>(),
    });
    if let Some(tls) = &extender.tls {
        shown["tlsConfig"] = json!({
            "insecure": tls.insecure,
            "serverName": tls.server_name,
            "certFile": tls.cert_file,
            "keyFile": tls.key_file,
            "caFile": tls.ca_file,
        });
    }
    shown
}
