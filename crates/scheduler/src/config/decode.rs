//! From a document to what it says, with defaults where it is silent; nothing is judged yet.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use sampan_api::field::Path;
use serde_json::Value;

use super::args::{
    Arguments, DefaultPreemption, InterPodAffinity, NodeResourcesFit, PodTopologySpread, ResourceWeight, ShapePoint,
    Strategy, VolumeBinding,
};
use super::plugins::{ALIVE, POINTS, Plugin, PluginSet, Plugins, find};
use super::read::{Fields, GoDuration};
use super::{API_VERSION, Configuration, Extender, ExtenderTls, LeaderElection, ManagedResource, Profile};
use crate::framework::DEFAULT_SCHEDULER;

/// A document as it stands there, completed.
#[derive(Default)]
pub struct Said {
    pub parallelism: i32,
    pub leader_election: LeaderElection,
    pub burst: i32,
    pub kubeconfig: String,
    pub percentage_of_nodes_to_score: Option<i32>,
    pub initial_backoff: i64,
    pub max_backoff: i64,
    pub profiles: Vec<SaidProfile>,
    pub extenders: Vec<Extender>,
    pub ineffective: Vec<String>,
}

#[derive(Default)]
pub struct SaidProfile {
    pub name: String,
    pub percentage_of_nodes_to_score: Option<i32>,
    /// As written, for messages, and with the defaults in.
    pub own: Plugins,
    pub plugins: Plugins,
    /// The plugins that were configured, with the paths of their arguments.
    pub configured: Vec<(String, Path)>,
    pub args: SaidArgs,
}

/// The arguments of plugins before they are judged.
pub struct SaidArgs {
    pub preemption: (i32, i32),
    pub hard_pod_affinity_weight: i32,
    pub ignore_preferred_terms: bool,
    pub node_affinity: Option<NodeAffinity>,
    pub ignored: Vec<String>,
    pub ignored_groups: Vec<String>,
    pub strategy: String,
    pub resources: Vec<ResourceWeight>,
    pub shape: Option<Vec<ShapePoint>>,
    pub balanced: Vec<ResourceWeight>,
    pub default_constraints: Vec<TopologySpreadConstraint>,
    pub defaulting: String,
    pub bind_timeout: i64,
    pub volume_shape: bool,
    pub filter_timeout: Option<GoDuration>,
    pub binding_timeout: Option<GoDuration>,
}

impl Default for SaidArgs {
    fn default() -> Self {
        SaidArgs {
            preemption: (10, 100),
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms: false,
            node_affinity: None,
            ignored: Vec::new(),
            ignored_groups: Vec::new(),
            strategy: "LeastAllocated".into(),
            resources: ResourceWeight::usual(),
            shape: None,
            balanced: ResourceWeight::usual(),
            default_constraints: Vec::new(),
            defaulting: "System".into(),
            bind_timeout: 600,
            volume_shape: false,
            filter_timeout: None,
            binding_timeout: None,
        }
    }
}

pub fn decode(tree: Value) -> Result<Said, String> {
    let mut unknown = Vec::new();
    let said = whole(Fields::of(tree, Path::default())?, &mut unknown)?;
    if unknown.is_empty() {
        Ok(said)
    } else {
        Err(format!("strict decoding error: {}", unknown.join(", ")))
    }
}

fn whole(mut fields: Fields, unknown: &mut Vec<String>) -> Result<Said, String> {
    let (_kind, _version) = (fields.take("kind"), fields.take("apiVersion"));
    let mut idle = Vec::new();
    let parallelism = fields.int32("parallelism")?;
    let percentage_of_nodes_to_score = fields.int32("percentageOfNodesToScore")?;
    let mut said = Said {
        parallelism: parallelism.unwrap_or(16),
        percentage_of_nodes_to_score,
        initial_backoff: fields.int64("podInitialBackoffSeconds")?.unwrap_or(1),
        max_backoff: fields.int64("podMaxBackoffSeconds")?.unwrap_or(10),
        ..Said::default()
    };
    if let Some(election) = fields.object("leaderElection")? {
        said.leader_election = leader_election(election, unknown)?;
    }
    if let Some(mut connection) = fields.object("clientConnection")? {
        said.kubeconfig = connection.text("kubeconfig")?.unwrap_or_default();
        said.burst = connection.int32("burst")?.unwrap_or(0);
        let qps = connection.number("qps")?.unwrap_or(0.0);
        if said.burst > 0 || qps != 0.0 {
            idle.push(
                "clientConnection.qps, burst: requests are not counted here, the API server's flow control is heeded"
                    .into(),
            );
        }
        for name in ["acceptContentTypes", "contentType"] {
            if connection
                .text(name)?
                .is_some_and(|text| !text.is_empty() && text != "application/json")
            {
                idle.push(format!(
                    "clientConnection.{name}: the API server is always spoken to in JSON"
                ));
            }
        }
        connection.finish(unknown);
    }
    for name in ["enableProfiling", "enableContentionProfiling"] {
        if fields.boolean(name)? == Some(true) {
            idle.push(format!("{name}: profiles are not served"));
        }
    }
    if fields.boolean("delayCacheUntilActive")? == Some(false) {
        idle.push("delayCacheUntilActive: one that waits for the lease never keeps caches".into());
    }
    for (at, profile) in fields.objects("profiles")?.into_iter().enumerate() {
        said.profiles.push(self::profile(profile, at, unknown, &mut idle)?);
    }
    if said.profiles.is_empty() {
        said.profiles.push(SaidProfile {
            plugins: Plugins::default().merged(),
            ..SaidProfile::default()
        });
    }
    if let [only] = said.profiles.as_mut_slice()
        && only.name.is_empty()
    {
        only.name = DEFAULT_SCHEDULER.into();
    }
    for extender in fields.objects("extenders")? {
        said.extenders.push(self::extender(extender, unknown)?);
    }
    let sampled = said
        .profiles
        .iter()
        .filter_map(|profile| profile.percentage_of_nodes_to_score);
    if sampled
        .chain(percentage_of_nodes_to_score)
        .any(|percent| percent > 0 && percent < 100)
    {
        idle.push("percentageOfNodesToScore: all nodes are scored, what is learned of them is remembered".into());
    }
    if parallelism.is_some() && said.extenders.is_empty() {
        idle.push("parallelism: it says how many Pods extenders are asked about at a time, and there are none".into());
    }
    fields.finish(unknown);
    said.ineffective = idle;
    Ok(said)
}

fn leader_election(mut fields: Fields, unknown: &mut Vec<String>) -> Result<LeaderElection, String> {
    let usual = LeaderElection::default();
    // A length of zero is as good as none.
    let length = |given: Option<GoDuration>, usual: GoDuration| given.filter(|given| given.0 != 0).unwrap_or(usual);
    let name = |given: Option<String>, usual: String| given.filter(|given| !given.is_empty()).unwrap_or(usual);
    let election = LeaderElection {
        elect: fields.boolean("leaderElect")?.unwrap_or(true),
        lease: length(fields.duration("leaseDuration")?, usual.lease),
        renew: length(fields.duration("renewDeadline")?, usual.renew),
        retry: length(fields.duration("retryPeriod")?, usual.retry),
        lock: name(fields.text("resourceLock")?, usual.lock),
        name: name(fields.text("resourceName")?, usual.name),
        namespace: name(fields.text("resourceNamespace")?, usual.namespace),
    };
    fields.finish(unknown);
    Ok(election)
}

fn profile(
    mut fields: Fields,
    at: usize,
    unknown: &mut Vec<String>,
    idle: &mut Vec<String>,
) -> Result<SaidProfile, String> {
    let mut profile = SaidProfile {
        name: fields.text("schedulerName")?.unwrap_or_default(),
        percentage_of_nodes_to_score: fields.int32("percentageOfNodesToScore")?,
        ..SaidProfile::default()
    };
    if let Some(mut plugins) = fields.object("plugins")? {
        for (point, _) in POINTS {
            let Some(set) = plugins.object(point)? else { continue };
            let path = set.path.clone();
            let set = plugin_set(set, unknown)?;
            if !ALIVE.contains(&point) && set != PluginSet::default() && point != "queueSort" {
                idle.push(format!(
                    "{path}: plugins prepare themselves where they filter, score and bind"
                ));
            }
            for plugin in &set.enabled {
                if find(&plugin.name).is_some_and(|known| !known.lives) {
                    idle.push(format!("{path}: {} does nothing here", plugin.name));
                }
            }
            profile.own.0.insert(point, set);
        }
        plugins.finish(unknown);
    }
    profile.plugins = profile.own.merged();
    for mut config in fields.objects("pluginConfig")? {
        let name = config.text("name")?.unwrap_or_default();
        let path = config.at("args");
        if let Some(args) = config.object("args")? {
            let where_ = format!(".profiles[{at}].pluginConfig[{}]", profile.configured.len());
            plugin_args(&name, args, &where_, &mut profile.args, unknown, idle)?;
        }
        profile.configured.push((name, path));
        config.finish(unknown);
    }
    fields.finish(unknown);
    Ok(profile)
}

fn plugin_set(mut fields: Fields, unknown: &mut Vec<String>) -> Result<PluginSet, String> {
    let mut set = PluginSet::default();
    for mut plugin in fields.objects("enabled")? {
        set.enabled.push(Plugin {
            name: plugin.text("name")?.unwrap_or_default(),
            weight: plugin.int32("weight")?.unwrap_or(0),
        });
        plugin.finish(unknown);
    }
    for mut plugin in fields.objects("disabled")? {
        set.disabled.push(plugin.text("name")?.unwrap_or_default());
        plugin.take("weight");
        plugin.finish(unknown);
    }
    fields.finish(unknown);
    Ok(set)
}

fn plugin_args(
    name: &str,
    mut fields: Fields,
    at: &str,
    args: &mut SaidArgs,
    unknown: &mut Vec<String>,
    idle: &mut Vec<String>,
) -> Result<(), String> {
    const CONFIGURABLE: [&str; 8] = [
        "DefaultPreemption",
        "InterPodAffinity",
        "NodeAffinity",
        "NodeResourcesFit",
        "NodeResourcesBalancedAllocation",
        "PodTopologySpread",
        "VolumeBinding",
        "DynamicResources",
    ];
    if !CONFIGURABLE.contains(&name) {
        let path = &fields.path;
        idle.push(match find(name) {
            Some(_) => format!("{path}: {name} has no arguments"),
            None => format!("{path}: there is no plugin {name:?}"),
        });
        return Ok(());
    }
    let group = "kubescheduler.config.k8s.io";
    let kind = fields.text("kind")?.unwrap_or_else(|| format!("{name}Args"));
    let version = fields.text("apiVersion")?.unwrap_or_else(|| API_VERSION.into());
    if kind != format!("{name}Args") || version != API_VERSION {
        let got = version.split_once('/').map_or("", |(group, _)| group);
        return Err(format!(
            "decoding {at}: args for plugin {name} were not of type {name}Args.{group}, got {kind}.{got}"
        ));
    }
    match name {
        "DefaultPreemption" => {
            args.preemption = (
                fields.int32("minCandidateNodesPercentage")?.unwrap_or(10),
                fields.int32("minCandidateNodesAbsolute")?.unwrap_or(100),
            );
        }
        "InterPodAffinity" => {
            args.hard_pod_affinity_weight = fields.int32("hardPodAffinityWeight")?.unwrap_or(1);
            args.ignore_preferred_terms = fields.boolean("ignorePreferredTermsOfExistingPods")?.unwrap_or(false);
        }
        "NodeAffinity" => args.node_affinity = fields.typed("addedAffinity", unknown)?,
        "NodeResourcesFit" => {
            args.ignored = fields.texts("ignoredResources")?;
            args.ignored_groups = fields.texts("ignoredResourceGroups")?;
            if let Some(mut strategy) = fields.object("scoringStrategy")? {
                args.strategy = strategy.text("type")?.unwrap_or_default();
                args.resources = weights(&mut strategy, "resources", unknown)?;
                if let Some(mut ratio) = strategy.object("requestedToCapacityRatio")? {
                    args.shape = Some(shape(&mut ratio, unknown)?);
                    ratio.finish(unknown);
                }
                strategy.finish(unknown);
            }
        }
        "NodeResourcesBalancedAllocation" => args.balanced = weights(&mut fields, "resources", unknown)?,
        "PodTopologySpread" => {
            let constraints: Option<Vec<TopologySpreadConstraint>> = fields.typed("defaultConstraints", unknown)?;
            args.default_constraints = constraints.unwrap_or_default();
            let defaulting = fields.text("defaultingType")?.filter(|text| !text.is_empty());
            args.defaulting = defaulting.unwrap_or_else(|| "System".into());
        }
        "VolumeBinding" => {
            args.bind_timeout = fields.int64("bindTimeoutSeconds")?.unwrap_or(600);
            args.volume_shape = !shape(&mut fields, unknown)?.is_empty();
        }
        _ => {
            args.filter_timeout = fields.duration("filterTimeout")?;
            args.binding_timeout = fields.duration("bindingTimeout")?;
            idle.push(format!("{}: devices are not allocated here", fields.path));
        }
    }
    fields.finish(unknown);
    Ok(())
}

fn weights(fields: &mut Fields, name: &str, unknown: &mut Vec<String>) -> Result<Vec<ResourceWeight>, String> {
    let mut resources = Vec::new();
    for mut resource in fields.objects(name)? {
        resources.push(ResourceWeight {
            name: resource.text("name")?.unwrap_or_default(),
            // Nothing and zero mean one.
            weight: resource.int64("weight")?.filter(|weight| *weight != 0).unwrap_or(1),
        });
        resource.finish(unknown);
    }
    Ok(if resources.is_empty() {
        ResourceWeight::usual()
    } else {
        resources
    })
}

fn shape(fields: &mut Fields, unknown: &mut Vec<String>) -> Result<Vec<ShapePoint>, String> {
    let mut points = Vec::new();
    for mut point in fields.objects("shape")? {
        points.push(ShapePoint {
            utilization: i64::from(point.int32("utilization")?.unwrap_or(0)),
            score: i64::from(point.int32("score")?.unwrap_or(0)),
        });
        point.finish(unknown);
    }
    Ok(points)
}

fn extender(mut fields: Fields, unknown: &mut Vec<String>) -> Result<Extender, String> {
    const TIMEOUT: GoDuration = GoDuration(5_000_000_000);
    let timeout = fields.duration("httpTimeout")?.filter(|given| given.0 != 0);
    let mut extender = Extender {
        url_prefix: fields.text("urlPrefix")?.unwrap_or_default(),
        filter_verb: fields.text("filterVerb")?.unwrap_or_default(),
        preempt_verb: fields.text("preemptVerb")?.unwrap_or_default(),
        prioritize_verb: fields.text("prioritizeVerb")?.unwrap_or_default(),
        weight: fields.int64("weight")?.unwrap_or(0),
        bind_verb: fields.text("bindVerb")?.unwrap_or_default(),
        https: fields.boolean("enableHTTPS")?.unwrap_or(false),
        tls: None,
        timeout: timeout.unwrap_or(TIMEOUT).wait(),
        node_cache_capable: fields.boolean("nodeCacheCapable")?.unwrap_or(false),
        managed_resources: Vec::new(),
        ignorable: fields.boolean("ignorable")?.unwrap_or(false),
    };
    if let Some(mut tls) = fields.object("tlsConfig")? {
        extender.tls = Some(ExtenderTls {
            insecure: tls.boolean("insecure")?.unwrap_or(false),
            server_name: tls.text("serverName")?.unwrap_or_default(),
            cert_file: tls.text("certFile")?.unwrap_or_default(),
            key_file: tls.text("keyFile")?.unwrap_or_default(),
            ca_file: tls.text("caFile")?.unwrap_or_default(),
            cert_data: tls.bytes("certData")?.unwrap_or_default(),
            key_data: tls.bytes("keyData")?.unwrap_or_default(),
            ca_data: tls.bytes("caData")?.unwrap_or_default(),
        });
        tls.finish(unknown);
    }
    for mut resource in fields.objects("managedResources")? {
        extender.managed_resources.push(ManagedResource {
            name: resource.text("name")?.unwrap_or_default(),
            ignored_by_scheduler: resource.boolean("ignoredByScheduler")?.unwrap_or(false),
        });
        resource.finish(unknown);
    }
    fields.finish(unknown);
    Ok(extender)
}

impl Said {
    /// What has been found right, as the scheduler works with it.
    pub fn settle(&mut self) -> Result<Configuration, String> {
        let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        // What extenders see to themselves is not checked by us.
        let theirs: Vec<String> = self
            .extenders
            .iter()
            .flat_map(|extender| &extender.managed_resources)
            .filter(|resource| resource.ignored_by_scheduler)
            .map(|resource| resource.name.clone())
            .collect();
        let mut profiles = Vec::new();
        for said in std::mem::take(&mut self.profiles) {
            let mut profile = said.settle()?;
            profile.arguments.fit.ignored.extend(theirs.iter().cloned());
            profiles.push(profile);
        }
        Ok(Configuration {
            parallelism: usize::try_from(self.parallelism).unwrap_or(1),
            leader_election: self.leader_election.clone(),
            kubeconfig: Some(&self.kubeconfig).filter(|path| !path.is_empty()).map(Into::into),
            initial_backoff: seconds(self.initial_backoff),
            max_backoff: seconds(self.max_backoff),
            profiles,
            extenders: std::mem::take(&mut self.extenders),
            ineffective: std::mem::take(&mut self.ineffective),
        })
    }
}

impl SaidProfile {
    fn settle(self) -> Result<Profile, String> {
        let refused = |why: String| {
            format!(
                "initializing profiles: creating profile for scheduler name {}: {why}",
                self.name
            )
        };
        let expanded = self.plugins.expanded().map_err(refused)?;
        let count = |point: &str| expanded.get(point).map_or(0, Vec::len);
        let quoted = sampan_api::field::quote(&self.name);
        if count("queueSort") != 1 {
            return Err(refused(format!(
                "only one queue sort plugin required for profile with scheduler name {quoted}, but got {}",
                count("queueSort")
            )));
        }
        if count("bind") == 0 {
            return Err(refused(format!(
                "at least one bind plugin is needed for profile with scheduler name {quoted}"
            )));
        }
        let args = self.args;
        let system = args.defaulting == "System";
        let positive = |number: i32| u32::try_from(number).unwrap_or(0);
        let arguments = Arguments {
            preemption: DefaultPreemption {
                min_candidate_nodes_percentage: positive(args.preemption.0),
                min_candidate_nodes_absolute: positive(args.preemption.1),
            },
            pod_affinity: InterPodAffinity {
                hard_pod_affinity_weight: args.hard_pod_affinity_weight,
                ignore_preferred_terms_of_existing_pods: args.ignore_preferred_terms,
            },
            node_affinity: args.node_affinity.unwrap_or_default(),
            fit: NodeResourcesFit {
                ignored: args.ignored.into_iter().collect(),
                ignored_groups: args.ignored_groups.into_iter().collect(),
                strategy: match args.strategy.as_str() {
                    "MostAllocated" => Strategy::MostAllocated,
                    "RequestedToCapacityRatio" => Strategy::RequestedToCapacityRatio(args.shape.unwrap_or_default()),
                    _ => Strategy::LeastAllocated,
                },
                resources: args.resources,
            },
            balanced: args.balanced,
            spread: if system {
                PodTopologySpread::default()
            } else {
                PodTopologySpread {
                    defaults: args.default_constraints,
                    system,
                }
            },
            volume_binding: VolumeBinding {
                bind_timeout: Duration::from_secs(u64::try_from(args.bind_timeout).unwrap_or(0)),
            },
        };
        Ok(Profile {
            name: self.name,
            plugins: self.plugins,
            expanded,
            arguments,
        })
    }
}
