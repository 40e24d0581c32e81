//! Documents, and what is said of them.

use super::*;
use crate::framework::Framework;

const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

fn parse(text: &str) -> Result<Configuration, String> {
    Configuration::parse(format!("{HEAD}{text}").as_bytes())
}

fn scores(framework: &Framework) -> Vec<(&'static str, i64)> {
    let node = framework.scores.iter().map(|row| (row.name, row.weight));
    let cluster = framework.cluster.iter().map(|row| (row.name(), row.weight()));
    node.chain(cluster).collect()
}

#[test]
fn an_empty_document_is_the_default() {
    let configuration = parse("").unwrap();
    assert_eq!(configuration, Configuration::default());
    assert_eq!(configuration.profiles[0].name, "default-scheduler");
    assert!(!configuration.profiles[0].expanded.is_empty(), "the defaults expand");
    assert!(configuration.leader_election.elect);
    assert_eq!(configuration.max_backoff.as_secs(), 10);
}

#[test]
fn everything_that_may_be_said_is_understood() {
    let configuration = parse(
        "parallelism: 4
clientConnection: {kubeconfig: /etc/kc, qps: 100, burst: 200}
leaderElection: {leaderElect: false, leaseDuration: 30s, renewDeadline: 20s, retryPeriod: 1m, resourceName: mine, resourceNamespace: here}
percentageOfNodesToScore: 50
podInitialBackoffSeconds: 2
podMaxBackoffSeconds: 20
profiles:
- schedulerName: default-scheduler
  plugins:
    score:
      disabled: [{name: ImageLocality}]
    multiPoint:
      enabled: [{name: NodeAffinity, weight: 9}]
  pluginConfig:
  - name: NodeResourcesFit
    args:
      apiVersion: kubescheduler.config.k8s.io/v1
      kind: NodeResourcesFitArgs
      ignoredResourceGroups: [example.com]
      scoringStrategy:
        type: RequestedToCapacityRatio
        resources: [{name: cpu, weight: 3}, {name: example.com/gpu}]
        requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}
  - name: InterPodAffinity
    args: {hardPodAffinityWeight: 5, ignorePreferredTermsOfExistingPods: true}
  - name: NodeAffinity
    args:
      addedAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: In, values: [a]}]}]
  - name: PodTopologySpread
    args: {defaultingType: List, defaultConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]}
  - name: DefaultPreemption
    args: {minCandidateNodesPercentage: 20, minCandidateNodesAbsolute: 5}
  - name: VolumeBinding
    args: {bindTimeoutSeconds: 30}
  - name: NodeResourcesBalancedAllocation
    args: {resources: [{name: cpu}, {name: memory}, {name: example.com/gpu}]}
- schedulerName: tight
  plugins:
    postFilter: {disabled: [{name: '*'}]}
    filter: {disabled: [{name: InterPodAffinity}]}
extenders:
- urlPrefix: https://127.0.0.1:1/x
  filterVerb: filter
  prioritizeVerb: rank
  weight: 2
  httpTimeout: 100ms
  nodeCacheCapable: true
  ignorable: true
  enableHTTPS: true
  tlsConfig: {caData: Y2E=, serverName: ext}
  managedResources: [{name: example.org/fpga, ignoredByScheduler: true}]
",
    )
    .unwrap();
    assert_eq!(configuration.parallelism, 4);
    assert_eq!(configuration.leader_election.lease, GoDuration::seconds(30));
    assert_eq!(configuration.leader_election.retry, GoDuration::seconds(60));
    assert!(!configuration.leader_election.elect);
    assert_eq!(configuration.kubeconfig.as_deref(), Some(Path::new("/etc/kc")));
    assert_eq!(
        (
            configuration.initial_backoff.as_secs(),
            configuration.max_backoff.as_secs()
        ),
        (2, 20)
    );
    let [first, second] = configuration.profiles.as_slice() else {
        panic!("two profiles")
    };
    assert_eq!(first.arguments.preemption.min_candidate_nodes_absolute, 5);
    assert_eq!(first.arguments.pod_affinity.hard_pod_affinity_weight, 5);
    assert_eq!(first.arguments.spread.defaults.len(), 1);
    assert_eq!(first.arguments.fit.resources.len(), 2);
    assert_eq!(first.arguments.balanced.len(), 3);
    // What an extender sees to is nobody else's business, in all profiles.
    assert!(first.arguments.fit.ignored.contains("example.org/fpga"));
    assert!(second.arguments.fit.ignored.contains("example.org/fpga"));
    let framework = first.framework();
    assert!(scores(&framework).contains(&("NodeAffinity", 9)));
    assert!(!scores(&framework).iter().any(|(name, _)| *name == "ImageLocality"));
    assert!(framework.preemption.is_some());
    let framework = second.framework();
    assert_eq!(framework.preemption, None);
    // It ranks and refuses nothing, so nothing helps it.
    let affinity = framework
        .cluster
        .iter()
        .find(|row| row.name() == "InterPodAffinity")
        .unwrap();
    assert!(affinity.helped_by().is_empty());
    assert_eq!(affinity.weight(), 2);
    let extender = &configuration.extenders[0];
    assert_eq!(extender.timeout, Duration::from_millis(100));
    assert_eq!(extender.tls.as_ref().unwrap().ca_data, b"ca");
    let said = configuration.ineffective.join("\n");
    assert!(
        said.contains("clientConnection.qps") && said.contains("percentageOfNodesToScore"),
        "{said}"
    );
    assert_eq!(configuration.ineffective.len(), 2);
}

#[test]
fn the_document_in_force_reads_back_as_itself() {
    let configuration =
        parse("profiles: [{schedulerName: a, plugins: {score: {disabled: [{name: '*'}]}}}, {schedulerName: b}]")
            .unwrap();
    let again = Configuration::of(configuration.document()).unwrap();
    assert_eq!(again.document()["profiles"][1], configuration.document()["profiles"][1]);
    assert_eq!(again.profiles[0].expanded["score"], []);
    assert_eq!(again.profiles[1].arguments, configuration.profiles[1].arguments);
}

#[test]
fn what_has_no_effect_is_said() {
    for (text, part) in [
        ("enableProfiling: true", "enableProfiling"),
        ("parallelism: 3", "parallelism"),
        (
            "clientConnection: {contentType: application/vnd.kubernetes.protobuf}",
            "clientConnection.contentType",
        ),
        (
            "profiles: [{plugins: {permit: {disabled: [{name: '*'}]}}}]",
            "profiles[0].plugins.permit",
        ),
        (
            "profiles: [{plugins: {preScore: {disabled: [{name: NodeAffinity}]}}}]",
            "profiles[0].plugins.preScore",
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: NodeDeclaredFeatures}]}}}]",
            "NodeDeclaredFeatures does nothing here",
        ),
        (
            "profiles: [{pluginConfig: [{name: DynamicResources, args: {bindingTimeout: 5s}}]}]",
            "pluginConfig[0].args",
        ),
        (
            "profiles: [{pluginConfig: [{name: NodeName, args: {x: 1}}]}]",
            "NodeName has no arguments",
        ),
        (
            "profiles: [{pluginConfig: [{name: Theirs, args: {x: 1}}]}]",
            "there is no plugin \"Theirs\"",
        ),
    ] {
        let said = parse(text).unwrap().ineffective;
        assert!(said.len() == 1 && said[0].contains(part), "{text}: {said:?}");
    }
    assert_eq!(
        parse("enableProfiling: false\npercentageOfNodesToScore: 0")
            .unwrap()
            .ineffective,
        [] as [&str; 0]
    );
}

#[test]
fn wrong_documents_are_refused_with_the_reason() {
    let args = |name: &str, args: &str| format!("profiles: [{{pluginConfig: [{{name: {name}, args: {args}}}]}}]");
    let at = "profiles[0].pluginConfig[0].args";
    let cases = [
        ("paralelism: 3".to_owned(), "strict decoding error: unknown field \"paralelism\"".to_owned()),
        ("profiles: [{plugins: {score: {enable: []}}}]".into(), "strict decoding error: unknown field \"profiles[0].plugins.score.enable\"".into()),
        (args("NodeResourcesFit", "{scoring: x}"), format!("strict decoding error: unknown field \"{at}.scoring\"")),
        (
            args("NodeAffinity", "{addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchLabels: {a: b}}]}}}"),
            format!("strict decoding error: unknown field \"{at}.addedAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchLabels\""),
        ),
        ("parallelism: many".into(), "json: cannot unmarshal string into Go struct field KubeSchedulerConfiguration.parallelism of type int32".into()),
        ("parallelism: 0".into(), "parallelism: Invalid value: 0: should be an integer value greater than zero".into()),
        ("percentageOfNodesToScore: 101".into(), "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]".into()),
        ("podInitialBackoffSeconds: 0".into(), "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0".into()),
        (
            "podInitialBackoffSeconds: 11".into(),
            "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to PodInitialBackoffSeconds".into(),
        ),
        (
            "leaderElection: {leaseDuration: 5s}".into(),
            "leaderElection.leaseDuration: Invalid value: \"10s\": must be greater than `RenewDeadline`".into(),
        ),
        (
            "leaderElection: {resourceLock: endpoints, retryPeriod: -1s}".into(),
            "[leaderElection.retryPeriod: Invalid value: \"-1s\": must be greater than zero, leaderElection.resourceLock: Invalid value: \"endpoints\": resourceLock value must be \"leases\"]".into(),
        ),
        ("leaderElection: {retryPeriod: 5}".into(), "json: cannot unmarshal number into Go struct field KubeSchedulerConfiguration.leaderElection.retryPeriod of type string".into()),
        ("leaderElection: {retryPeriod: soon}".into(), "leaderElection.retryPeriod: time: invalid duration \"soon\"".into()),
        ("clientConnection: {burst: -1}".into(), "clientConnection.burst: Invalid value: -1: must be non-negative".into()),
        ("profiles: [{schedulerName: a}, {}]".into(), "profiles[1].schedulerName: Required value".into()),
        (
            "profiles: [{schedulerName: a}, {schedulerName: a}]".into(),
            "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"".into(),
        ),
        (
            "profiles: [{schedulerName: a}, {schedulerName: b, plugins: {queueSort: {enabled: [{name: Other}]}}}]".into(),
            "profiles[1].plugins.queueSort: Invalid value: {\"Disabled\":[],\"Enabled\":[{\"Name\":\"Other\",\"Weight\":0}]}: must be the same for all profiles".into(),
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: EBSLimits}]}}}]".into(),
            "profiles[0].plugins.filter.enabled[0]: Invalid value: \"EBSLimits\": was invalid in version \"kubescheduler.config.k8s.io/v1\" (KubeSchedulerConfiguration is version \"kubescheduler.config.k8s.io/v1\")".into(),
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: Theirs}]}}}]".into(),
            "initializing profiles: creating profile for scheduler name default-scheduler: FilterPlugin \"Theirs\" does not exist".into(),
        ),
        (
            "profiles: [{plugins: {bind: {disabled: [{name: '*'}]}}}]".into(),
            "initializing profiles: creating profile for scheduler name default-scheduler: at least one bind plugin is needed for profile with scheduler name \"default-scheduler\"".into(),
        ),
        (
            "profiles: [{plugins: {multiPoint: {disabled: [{name: PrioritySort}]}}}]".into(),
            "initializing profiles: creating profile for scheduler name default-scheduler: only one queue sort plugin required for profile with scheduler name \"default-scheduler\", but got 0".into(),
        ),
        (
            "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {}}, {name: InterPodAffinity, args: {}}]}]".into(),
            "profiles[0].pluginConfig[1]: Duplicate value: \"InterPodAffinity\"".into(),
        ),
        (
            args("InterPodAffinity", "{kind: NodeAffinityArgs}"),
            "decoding .profiles[0].pluginConfig[0]: args for plugin InterPodAffinity were not of type InterPodAffinityArgs.kubescheduler.config.k8s.io, got NodeAffinityArgs.kubescheduler.config.k8s.io".into(),
        ),
        (args("InterPodAffinity", "{hardPodAffinityWeight: 101}"), format!("{at}.hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]")),
        (
            args("DefaultPreemption", "{minCandidateNodesPercentage: 0, minCandidateNodesAbsolute: 0}"),
            format!("[{at}.minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as minCandidateNodesAbsolute, {at}.minCandidateNodesAbsolute: Invalid value: 0: cannot be zero at the same time as minCandidateNodesPercentage]"),
        ),
        (args("DefaultPreemption", "{minCandidateNodesPercentage: 200}"), format!("{at}.minCandidateNodesPercentage: Invalid value: 200: not in valid range [0, 100]")),
        (
            args("NodeResourcesFit", "{scoringStrategy: {type: Best}}"),
            format!("{at}.scoringStrategy.type: Unsupported value: \"Best\": supported values: \"LeastAllocated\", \"MostAllocated\", \"RequestedToCapacityRatio\""),
        ),
        (
            args("NodeResourcesFit", "{scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 101}]}}"),
            format!("{at}.scoringStrategy.resources[0].weight: Invalid value: 101: resource weight of cpu not in valid range (0, 100]"),
        ),
        (
            args("NodeResourcesFit", "{scoringStrategy: {type: RequestedToCapacityRatio}}"),
            format!("{at}.scoringStrategy.requestedToCapacityRatio: Required value: must be specified when type is RequestedToCapacityRatio"),
        ),
        (
            args("NodeResourcesFit", "{scoringStrategy: {type: LeastAllocated, requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}]}}}"),
            format!("{at}.scoringStrategy.requestedToCapacityRatio: Forbidden: must be nil when type is not RequestedToCapacityRatio"),
        ),
        (
            args("NodeResourcesFit", "{scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: [{utilization: 50, score: 0}, {utilization: 50, score: 11}]}}}"),
            format!("[{at}.scoringStrategy.requestedToCapacityRatio.shape[1].utilization: Invalid value: 50: values must be sorted in increasing order, {at}.scoringStrategy.requestedToCapacityRatio.shape[1].score: Invalid value: 11: not in valid range [0, 10]]"),
        ),
        (
            args("NodeResourcesFit", "{ignoredResourceGroups: [a/b]}"),
            format!("{at}.ignoredResourceGroups[0]: Invalid value: \"a/b\": resource group name can't contain '/'"),
        ),
        (args("NodeResourcesBalancedAllocation", "{resources: [{name: cpu, weight: 2}]}"), format!("{at}.resources[0].weight: Invalid value: 2: must be 1")),
        (
            args("PodTopologySpread", "{defaultConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]}"),
            format!("{at}.defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty"),
        ),
        (
            args("PodTopologySpread", "{defaultingType: List, defaultConstraints: [{maxSkew: 0, topologyKey: zone, whenUnsatisfiable: Never, labelSelector: {}}]}"),
            format!("[{at}.defaultConstraints[0].maxSkew: Invalid value: 0: not in valid range (0, inf), {at}.defaultConstraints[0].whenUnsatisfiable: Unsupported value: \"Never\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\", {at}.defaultConstraints[0].labelSelector: Forbidden: constraint must not define a selector, as they deduced for each pod]"),
        ),
        (args("VolumeBinding", "{bindTimeoutSeconds: -1}"), format!("{at}.bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value")),
        (
            "extenders: [{urlPrefix: 'http://a', prioritizeVerb: p}]".into(),
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it".into(),
        ),
        (
            "extenders: [{urlPrefix: 'http://a', bindVerb: b}, {urlPrefix: 'http://b', bindVerb: b}]".into(),
            "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind".into(),
        ),
        (
            "extenders: [{urlPrefix: 'http://a', managedResources: [{name: cpu}]}]".into(),
            "extenders[0].managedResources[0].name: Invalid value: \"cpu\": is an invalid extended resource name".into(),
        ),
        (
            "extenders: [{urlPrefix: 'http://a', managedResources: [{name: a.b/c}, {name: a.b/c}]}]".into(),
            "extenders[0].managedResources[1].name: Invalid value: \"a.b/c\": duplicate extender managed resource name".into(),
        ),
        (
            "extenders: [{urlPrefix: a}]".into(),
            "extenders[0].urlPrefix: Invalid value: \"a\": must be a URL such as http://127.0.0.1:8888/scheduler".into(),
        ),
    ];
    for (text, expected) in cases {
        let said = parse(&text).expect_err(&text);
        assert!(
            said == expected || (expected.ends_with("'/'") && said.contains(&expected)),
            "{text}\n  said:     {said}\n  expected: {expected}"
        );
    }
    let other =
        Configuration::parse(b"apiVersion: kubescheduler.config.k8s.io/v1beta3\nkind: KubeSchedulerConfiguration\n");
    assert!(other.unwrap_err().contains("kubescheduler.config.k8s.io/v1beta3"));
    assert!(
        parse("parallelism: 3\nparallelism: 4\n")
            .unwrap_err()
            .contains("already set")
    );
}
