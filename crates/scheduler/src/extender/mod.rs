//! Extenders: other people's servers that have a say in where Pods go.
//!
//! They are asked over HTTP, outside the engine: it names a Pod and the nodes its own plugins accept, [`Extenders::ask`]
//! brings back what the extenders make of them, and the engine decides on the state of that moment
//! ([`crate::engine::Engine::consulted`]). Only Pods an extender is interested in wait for it. As upstream has it,
//! extenders filter one after another, those that may be ignored last, and rank all at once.
//!
//! Where this differs from upstream: several Pods are asked about at a time (`parallelism`; upstream's scheduler stands
//! still for one), and a node that was not proposed is refused in the answer whichever form it comes in.

mod client;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::Value;

use crate::config::{self, Configuration};
use crate::framework::MAX_SCORE;
use crate::pod::{Class, PodInfo};
use crate::preemption::Victims;
use client::Client;
pub use client::ExtenderError;

/// Upstream's name of extenders where a plugin's stands.
pub const PLUGIN: &str = "Extender";

/// Extenders score from 0 to this.
const MAX_PRIORITY: i64 = 10;

/// What the extenders make of one node.
#[derive(Clone, Debug, PartialEq)]
pub enum Opinion {
    /// It will do; what they add to its score.
    Accepted(i64),
    /// It will not; why, if they said it. Its own plugins have nothing against the Pod there, so that whether other
    /// Pods' leaving could help makes no difference: there is nobody whose leaving they would ask for.
    Refused { reason: Option<String> },
}

/// What the extenders make of the nodes they were asked about, by name.
pub type Opinions = HashMap<Arc<str>, Opinion>;

/// Pods that would have to leave a node, as extenders speak of them: by uid, and how many a budget protects.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedVictims {
    pub uids: Vec<String>,
    pub violations: usize,
}

/// Which Pods extenders want to be asked about; what the engine has to know of them.
#[derive(Clone, Debug, Default)]
pub struct Interests {
    /// Of each extender with a say about nodes.
    nodes: Vec<Interest>,
    /// Of each extender with a say about victims.
    victims: Vec<Interest>,
    /// Most Pods they are asked about at a time.
    pub at_a_time: usize,
}

/// The resources an extender sees to; none: it is interested in every Pod.
#[derive(Clone, Debug, Default)]
struct Interest(BTreeSet<String>);

impl Interest {
    fn has(&self, class: &Class) -> bool {
        // These are extended resources: a limit without a request is not let in, so requests tell all.
        self.0.is_empty() || self.0.iter().any(|name| class.requests.other.contains_key(name))
    }
}

impl Interests {
    pub fn nodes_of(&self, class: &Class) -> bool {
        self.nodes.iter().any(|interest| interest.has(class))
    }
    pub fn victims_of(&self, class: &Class) -> bool {
        self.victims.iter().any(|interest| interest.has(class))
    }
}

struct Extender {
    config: config::Extender,
    interest: Interest,
    client: Client,
}

/// All extenders, in the order in which they are asked.
pub struct Extenders {
    all: Vec<Extender>,
    at_a_time: usize,
}

impl Extenders {
    pub fn new(configuration: &Configuration) -> Result<Extenders, ExtenderError> {
        let extenders = configuration.extenders.iter().map(|config| {
            let managed = config.managed_resources.iter();
            Ok(Extender {
                interest: Interest(managed.map(|resource| resource.name.clone()).collect()),
                client: Client::new(config)?,
                config: config.clone(),
            })
        });
        let mut all = extenders.collect::<Result<Vec<_>, _>>()?;
        all.sort_by_key(|extender| extender.config.ignorable);
        Ok(Extenders {
            all,
            at_a_time: configuration.parallelism,
        })
    }

    pub fn interests(&self) -> Interests {
        let of = |which: fn(&config::Extender) -> bool| {
            let extenders = self.all.iter().filter(|extender| which(&extender.config));
            extenders.map(|extender| extender.interest.clone()).collect()
        };
        Interests {
            nodes: of(|config| !config.filter_verb.is_empty() || !config.prioritize_verb.is_empty()),
            victims: of(|config| !config.preempt_verb.is_empty()),
            at_a_time: self.at_a_time,
        }
    }

    fn interested<'a>(&'a self, class: &'a Class) -> impl Iterator<Item = &'a Extender> {
        self.all.iter().filter(|extender| extender.interest.has(class))
    }

    /// What the extenders make of these nodes for the Pod. An error: one that may not be passed over could not say.
    pub async fn ask(&self, class: &Class, pod: &Pod, nodes: Vec<Arc<Node>>) -> Result<Opinions, String> {
        let name = |node: &Arc<Node>| Arc::<str>::from(node.metadata.name.as_deref().unwrap_or_default());
        let mut left: Vec<(Arc<str>, Arc<Node>)> = nodes.into_iter().map(|node| (name(&node), node)).collect();
        let mut opinions = Opinions::new();
        for extender in self.interested(class) {
            if left.is_empty() {
                break;
            }
            if extender.config.filter_verb.is_empty() {
                continue;
            }
            let filtered = match extender.filter(pod, &left).await {
                Ok(filtered) => filtered,
                Err(error) if extender.config.ignorable => {
                    tracing::info!(extender = extender.config.url_prefix, %error, "passed over an extender that may be ignored");
                    continue;
                }
                Err(error) => return Err(error),
            };
            left.retain(|(name, _)| {
                if filtered.accepted.contains(&**name) {
                    return true;
                }
                let forever = filtered.unresolvable.get(&**name);
                let reason = forever.or_else(|| filtered.failed.get(&**name)).cloned();
                opinions.insert(Arc::clone(name), Opinion::Refused { reason });
                false
            });
        }
        let mut scores: HashMap<String, i64> = HashMap::new();
        // The only one left needs no rank.
        if left.len() > 1 {
            let rankings = self
                .interested(class)
                .filter(|extender| !extender.config.prioritize_verb.is_empty());
            for (extender, ranking) in join_all(rankings.map(|extender| extender.rank(pod, &left))).await {
                match ranking {
                    Ok(ranking) => {
                        for (node, score) in ranking {
                            let weighted = score.saturating_mul(extender.config.weight);
                            let total = scores.entry(node).or_default();
                            *total = total.saturating_add(weighted.saturating_mul(MAX_SCORE / MAX_PRIORITY));
                        }
                    }
                    // Others decide where one has nothing to say.
                    Err(error) => {
                        tracing::debug!(extender = extender.config.url_prefix, %error, "no ranking from an extender");
                    }
                }
            }
        }
        for (name, _) in left {
            let score = scores.get(&*name).copied().unwrap_or(0);
            opinions.insert(name, Opinion::Accepted(score));
        }
        Ok(opinions)
    }

    /// Which of these candidates the extenders agree to, perhaps with other victims. `named` finds a victim on a node
    /// by its uid, `object` the Pod of one.
    pub async fn ask_about_victims(
        &self,
        class: &Class,
        pod: &Pod,
        mut candidates: BTreeMap<Arc<str>, Victims>,
        named: impl Fn(&str, &str) -> Option<PodInfo>,
        object: impl Fn(&PodInfo) -> Option<Arc<Pod>>,
    ) -> Result<BTreeMap<Arc<str>, Victims>, String> {
        for extender in self.interested(class) {
            if extender.config.preempt_verb.is_empty() {
                continue;
            }
            let answer = match extender.preempt(pod, &candidates, &object).await {
                Ok(answer) => answer,
                Err(error) if extender.config.ignorable => {
                    tracing::info!(extender = extender.config.url_prefix, %error, "passed over an extender that may be ignored");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut agreed = BTreeMap::new();
            for (node, victims) in answer {
                if victims.uids.is_empty() {
                    if extender.config.ignorable {
                        continue;
                    }
                    return Err(format!("expected at least one victim pod on node {node:?}"));
                }
                let pods = victims.uids.iter().map(|uid| {
                    named(&node, uid).ok_or_else(|| {
                        format!(
                            "extender: {} claims to preempt pod (UID: {uid}) on node: {node}, but the pod is not found on that node",
                            extender.config.url_prefix
                        )
                    })
                });
                let pods = match pods.collect::<Result<Vec<_>, _>>() {
                    Ok(pods) => pods,
                    Err(_) if extender.config.ignorable => continue,
                    Err(error) => return Err(error),
                };
                agreed.insert(
                    Arc::from(node),
                    Victims {
                        pods,
                        violations: victims.violations,
                    },
                );
            }
            candidates = agreed;
            if candidates.is_empty() {
                break;
            }
        }
        Ok(candidates)
    }

    /// Has the extender bind the Pod that does that for such Pods; `None`: there is none.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Option<Result<(), String>> {
        for extender in self.interested(&pod.class) {
            if extender.config.bind_verb.is_empty() {
                continue;
            }
            match extender.bind(pod, node).await {
                Err(error) if extender.config.ignorable => {
                    tracing::info!(extender = extender.config.url_prefix, %error, "passed over an extender that may be ignored");
                }
                outcome => return Some(outcome),
            }
        }
        None
    }
}

type Proposed = [(Arc<str>, Arc<Node>)];

impl Extender {
    fn arguments(&self, pod: &Pod, nodes: &Proposed) -> Value {
        wire::arguments(pod, nodes, self.config.node_cache_capable)
    }

    async fn filter(&self, pod: &Pod, nodes: &Proposed) -> Result<wire::Filtered, String> {
        let answer = self
            .client
            .send(&self.config.filter_verb, &self.arguments(pod, nodes))
            .await?;
        let filtered = wire::filtered(answer, self.config.node_cache_capable)?;
        let known: BTreeSet<&str> = nodes.iter().map(|(name, _)| &**name).collect();
        match filtered.accepted.iter().find(|name| !known.contains(name.as_str())) {
            Some(stranger) => Err(format!(
                "extender {:?} claims a filtered node {stranger:?} which is not found in the input node list",
                self.config.url_prefix
            )),
            None => Ok(filtered),
        }
    }

    async fn rank(&self, pod: &Pod, nodes: &Proposed) -> (&Extender, Result<Vec<(String, i64)>, String>) {
        let arguments = self.arguments(pod, nodes);
        let answer = self.client.send(&self.config.prioritize_verb, &arguments).await;
        (self, answer.and_then(wire::ranked))
    }

    async fn preempt(
        &self,
        pod: &Pod,
        candidates: &BTreeMap<Arc<str>, Victims>,
        object: &impl Fn(&PodInfo) -> Option<Arc<Pod>>,
    ) -> Result<Vec<(String, NamedVictims)>, String> {
        let arguments = wire::preemption(pod, candidates, self.config.node_cache_capable, object);
        wire::preempted(self.client.send(&self.config.preempt_verb, &arguments).await?)
    }

    async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        wire::bound(
            self.client
                .send(&self.config.bind_verb, &wire::binding(pod, node))
                .await?,
        )
    }
}
