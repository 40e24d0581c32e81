//! Which plugins a profile uses, and where: upstream's table, its defaults, and its rules for changing them.
//!
//! A configuration names plugins per extension point, or for all points at once (`multiPoint`). It is laid over the
//! defaults (which are all `multiPoint`) set by set, and `multiPoint` is then spread over the points a plugin has.
//!
//! Several points have no life of their own here: a plugin that filters or scores prepares itself when it does, so
//! `preFilter` and `preScore` follow `filter` and `score`.

use std::collections::{BTreeMap, BTreeSet};

/// The extension points, in the order in which upstream goes through them, with the names of their interfaces.
pub const POINTS: [(&str, &str); 15] = [
    ("preFilter", "PreFilterPlugin"),
    ("filter", "FilterPlugin"),
    ("postFilter", "PostFilterPlugin"),
    ("reserve", "ReservePlugin"),
    ("preScore", "PreScorePlugin"),
    ("score", "ScorePlugin"),
    ("preBind", "PreBindPlugin"),
    ("bind", "BindPlugin"),
    ("postBind", "PostBindPlugin"),
    ("permit", "PermitPlugin"),
    ("preEnqueue", "PreEnqueuePlugin"),
    ("queueSort", "QueueSortPlugin"),
    ("placementGenerate", "PlacementGeneratePlugin"),
    ("placementScore", "PlacementScorePlugin"),
    ("multiPoint", ""),
];

/// The points that mean something here.
pub const ALIVE: [&str; 8] = [
    "filter",
    "postFilter",
    "score",
    "reserve",
    "preBind",
    "bind",
    "preEnqueue",
    "multiPoint",
];

/// A plugin of upstream.
pub struct Known {
    pub name: &'static str,
    pub points: &'static [&'static str],
    /// Whether it does anything here.
    pub lives: bool,
}

const fn known(name: &'static str, points: &'static [&'static str]) -> Known {
    Known {
        name,
        points,
        lives: true,
    }
}

const FILTERS: &[&str] = &["preFilter", "filter"];
const FILTERS_AND_SCORES: &[&str] = &["preFilter", "filter", "preScore", "score"];

/// The plugins there are.
pub const KNOWN: [Known; 20] = [
    known("SchedulingGates", &["preEnqueue"]),
    known("PrioritySort", &["queueSort"]),
    known("NodeUnschedulable", &["filter"]),
    known("NodeName", &["filter"]),
    known("TaintToleration", &["filter", "preScore", "score"]),
    known("NodeAffinity", FILTERS_AND_SCORES),
    known("NodePorts", FILTERS),
    known("NodeResourcesFit", FILTERS_AND_SCORES),
    known("VolumeRestrictions", FILTERS),
    known("NodeVolumeLimits", FILTERS),
    known(
        "VolumeBinding",
        &["preFilter", "filter", "reserve", "preBind", "preScore", "score"],
    ),
    known("VolumeZone", FILTERS),
    known("PodTopologySpread", FILTERS_AND_SCORES),
    known("InterPodAffinity", FILTERS_AND_SCORES),
    Known {
        name: "DynamicResources",
        points: &[
            "preEnqueue",
            "preFilter",
            "filter",
            "postFilter",
            "preScore",
            "score",
            "reserve",
            "preBind",
        ],
        lives: true,
    },
    known("DefaultPreemption", &["preEnqueue", "postFilter"]),
    known("NodeResourcesBalancedAllocation", &["preScore", "score"]),
    known("ImageLocality", &["score"]),
    known("DefaultBinder", &["bind"]),
    Known {
        name: "NodeDeclaredFeatures",
        points: FILTERS,
        lives: false,
    },
];

/// What is enabled if nothing is said, in order.
const DEFAULTS: [(&str, i32); 20] = [
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DynamicResources", 2),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
    ("NodeDeclaredFeatures", 0),
];

pub fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|plugin| plugin.name == name)
}

/// A plugin as a set names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    pub name: String,
    /// 0: not said.
    pub weight: i32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PluginSet {
    pub enabled: Vec<Plugin>,
    /// Names, and `*` for all.
    pub disabled: Vec<String>,
}

impl PluginSet {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|disabled| disabled == name)
    }

    /// What this set makes of `defaults`: those it names anew stay in their place, the rest of it follows.
    fn over(&self, defaults: &PluginSet) -> PluginSet {
        let disabled: Vec<String> = self.disabled.iter().chain(&defaults.disabled).cloned().collect();
        let mut merged = PluginSet {
            enabled: Vec::new(),
            disabled,
        };
        let mut used = BTreeSet::new();
        if !merged.disables("*") {
            for default in &defaults.enabled {
                if merged.disables(&default.name) {
                    continue;
                }
                // Of several with one name the last counts, as it does upstream.
                let anew = self.enabled.iter().rposition(|plugin| plugin.name == default.name);
                used.extend(anew);
                let plugin = anew.and_then(|at| self.enabled.get(at)).unwrap_or(default);
                merged.enabled.push(plugin.clone());
            }
        }
        let rest = self.enabled.iter().enumerate().filter(|(at, _)| !used.contains(at));
        merged.enabled.extend(rest.map(|(_, plugin)| plugin.clone()));
        merged
    }
}

/// The sets of a profile by extension point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plugins(pub BTreeMap<&'static str, PluginSet>);

/// What is enabled at each point, in order. Scores have their weights.
pub type Expanded = BTreeMap<&'static str, Vec<(String, i64)>>;

impl Plugins {
    fn defaults() -> Plugins {
        let enabled = DEFAULTS.iter().map(|(name, weight)| Plugin {
            name: (*name).to_owned(),
            weight: *weight,
        });
        let all = PluginSet {
            enabled: enabled.collect(),
            disabled: Vec::new(),
        };
        Plugins([("multiPoint", all)].into())
    }

    pub fn set(&self, point: &str) -> PluginSet {
        self.0.get(point).cloned().unwrap_or_default()
    }

    /// Laid over the defaults.
    pub fn merged(&self) -> Plugins {
        let defaults = Plugins::defaults();
        let sets = POINTS.map(|(point, _)| (point, self.set(point).over(&defaults.set(point))));
        Plugins(sets.into())
    }

    /// Spreads `multiPoint` over the points. `self` has the defaults in it already.
    pub fn expanded(&self) -> Result<Expanded, String> {
        let everywhere = self.set("multiPoint");
        let mut expanded = Expanded::new();
        // Every name is looked at before the first set is filled: upstream makes the plugins first.
        for (point, interface) in POINTS.iter().filter(|(point, _)| *point != "multiPoint") {
            let own = self.set(point);
            let mut names: Vec<&str> = Vec::new();
            for plugin in &own.enabled {
                let name = plugin.name.as_str();
                match find(name) {
                    None => return Err(format!("{interface} {name:?} does not exist")),
                    Some(known) if !known.points.contains(point) => {
                        return Err(format!("plugin {name:?} does not extend {interface} plugin"));
                    }
                    Some(_) if names.contains(&name) => {
                        return Err(format!("plugin {name:?} already registered as {interface:?}"));
                    }
                    Some(_) => names.push(name),
                }
            }
            expanded.insert(point, names.into_iter().map(|name| (name.to_owned(), 0)).collect());
        }
        for (point, interface) in POINTS.iter().filter(|(point, _)| *point != "multiPoint") {
            let own = self.set(point);
            if own.disables("*") || everywhere.enabled.is_empty() {
                continue;
            }
            let mut spread: Vec<&str> = Vec::new();
            let mut overridden: Vec<&str> = Vec::new();
            for plugin in &everywhere.enabled {
                let name = plugin.name.as_str();
                let Some(known) = find(name) else {
                    return Err(format!("{interface} {name:?} does not exist"));
                };
                if !known.points.contains(point) || own.disables(name) {
                    continue;
                }
                if own.enabled.iter().any(|plugin| plugin.name == name) {
                    overridden.push(name);
                } else if spread.contains(&name) {
                    return Err(format!("plugin {name:?} already registered as {interface:?}"));
                } else {
                    spread.push(name);
                }
            }
            // First those named here and everywhere, then those named everywhere, then those named only here.
            let own: Vec<&str> = own.enabled.iter().map(|plugin| plugin.name.as_str()).collect();
            let (first, last): (Vec<&str>, Vec<&str>) = own.iter().partition(|name| overridden.contains(name));
            let order = first.into_iter().chain(spread).chain(last);
            expanded.insert(point, order.map(|name| (name.to_owned(), 0)).collect());
        }
        if let Some(scores) = expanded.get_mut("score") {
            let own = self.set("score");
            for (name, weight) in scores {
                // What the point itself says goes before what is said for all points.
                let said = own.enabled.iter().chain(&everywhere.enabled);
                let said = said.into_iter().find(|plugin| plugin.name == *name);
                *weight = said.map_or(1, |plugin| i64::from(plugin.weight));
                if *weight == 0 {
                    *weight = 1;
                }
            }
        }
        Ok(expanded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(enabled: &[(&str, i32)], disabled: &[&str]) -> PluginSet {
        PluginSet {
            enabled: enabled
                .iter()
                .map(|(name, weight)| Plugin {
                    name: (*name).to_owned(),
                    weight: *weight,
                })
                .collect(),
            disabled: disabled.iter().map(ToString::to_string).collect(),
        }
    }

    fn expand(sets: &[(&'static str, PluginSet)]) -> Result<Expanded, String> {
        Plugins(sets.iter().cloned().collect()).merged().expanded()
    }

    fn scores(expanded: &Expanded) -> String {
        let shown = expanded["score"]
            .iter()
            .map(|(name, weight)| format!("{name}={weight}"));
        shown.collect::<Vec<_>>().join(" ")
    }

    fn names(expanded: &Expanded, point: &str) -> String {
        let names: Vec<_> = expanded[point].iter().map(|(name, _)| name.as_str()).collect();
        names.join(" ")
    }

    const DEFAULT_SCORES: &str = "TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 VolumeBinding=1 \
        PodTopologySpread=2 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1";

    #[test]
    fn nothing_said_is_upstreams_profile() {
        let expanded = expand(&[]).unwrap();
        assert_eq!(scores(&expanded), DEFAULT_SCORES);
        assert_eq!(
            names(&expanded, "filter"),
            "NodeUnschedulable NodeName TaintToleration NodeAffinity NodePorts NodeResourcesFit VolumeRestrictions \
             NodeVolumeLimits VolumeBinding VolumeZone PodTopologySpread InterPodAffinity DynamicResources \
             NodeDeclaredFeatures"
        );
        assert_eq!(names(&expanded, "queueSort"), "PrioritySort");
        assert_eq!(names(&expanded, "bind"), "DefaultBinder");
        assert_eq!(names(&expanded, "postFilter"), "DynamicResources DefaultPreemption");
        assert_eq!(
            names(&expanded, "preEnqueue"),
            "SchedulingGates DynamicResources DefaultPreemption"
        );
    }

    #[test]
    fn sets_change_the_defaults_by_upstreams_rules() {
        type Case<'a> = (&'a str, Vec<(&'static str, PluginSet)>, &'a str);
        let cases: Vec<Case<'_>> = vec![
            ("all scores off", vec![("score", set(&[], &["*"]))], ""),
            (
                "all scores off but one",
                vec![("score", set(&[("ImageLocality", 5)], &["*"]))],
                "ImageLocality=5",
            ),
            (
                "one off",
                vec![("score", set(&[], &["ImageLocality"]))],
                &DEFAULT_SCORES[..DEFAULT_SCORES.len() - " ImageLocality=1".len()],
            ),
            (
                "a weight for one, which goes first",
                vec![("score", set(&[("ImageLocality", 9)], &[]))],
                "ImageLocality=9 TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 VolumeBinding=1 PodTopologySpread=2 \
                 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1",
            ),
            (
                "a weight without a number is one",
                vec![("score", set(&[("TaintToleration", 0)], &[]))],
                "TaintToleration=1 NodeAffinity=2 NodeResourcesFit=1 VolumeBinding=1 PodTopologySpread=2 \
                 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1",
            ),
            (
                "a weight for all points stays in its place",
                vec![("multiPoint", set(&[("NodeAffinity", 7)], &[]))],
                "TaintToleration=3 NodeAffinity=7 NodeResourcesFit=1 VolumeBinding=1 PodTopologySpread=2 \
                 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1",
            ),
            (
                "the point's weight beats the one for all points",
                vec![
                    ("multiPoint", set(&[("NodeAffinity", 7)], &[])),
                    ("score", set(&[("NodeAffinity", 8)], &[])),
                ],
                "NodeAffinity=8 TaintToleration=3 NodeResourcesFit=1 VolumeBinding=1 PodTopologySpread=2 \
                 InterPodAffinity=2 DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1",
            ),
            (
                "everything off, some on again",
                vec![(
                    "multiPoint",
                    set(
                        &[
                            ("PrioritySort", 0),
                            ("DefaultBinder", 0),
                            ("NodeResourcesFit", 4),
                            ("NodeName", 0),
                        ],
                        &["*"],
                    ),
                )],
                "NodeResourcesFit=4",
            ),
            (
                "off everywhere, on at one point",
                vec![
                    (
                        "multiPoint",
                        set(&[], &["ImageLocality", "VolumeBinding", "DynamicResources"]),
                    ),
                    ("score", set(&[("ImageLocality", 3)], &[])),
                ],
                "TaintToleration=3 NodeAffinity=2 NodeResourcesFit=1 PodTopologySpread=2 InterPodAffinity=2 \
                 NodeResourcesBalancedAllocation=1 ImageLocality=3",
            ),
            (
                "off and on again goes to the end",
                vec![("multiPoint", set(&[("TaintToleration", 6)], &["TaintToleration"]))],
                "NodeAffinity=2 NodeResourcesFit=1 VolumeBinding=1 PodTopologySpread=2 InterPodAffinity=2 \
                 DynamicResources=2 NodeResourcesBalancedAllocation=1 ImageLocality=1 TaintToleration=6",
            ),
        ];
        for (what, sets, expected) in cases {
            assert_eq!(scores(&expand(&sets).unwrap()), expected, "{what}");
        }
    }

    #[test]
    fn a_filter_may_go_while_its_score_stays() {
        let expanded = expand(&[("filter", set(&[], &["NodeResourcesFit"]))]).unwrap();
        assert!(!names(&expanded, "filter").contains("NodeResourcesFit"));
        assert_eq!(scores(&expanded), DEFAULT_SCORES);
    }

    #[test]
    fn what_cannot_be_is_refused_in_upstreams_words() {
        let cases = [
            (
                "filter",
                set(&[("Nowhere", 0)], &[]),
                "FilterPlugin \"Nowhere\" does not exist",
            ),
            (
                "multiPoint",
                set(&[("Nowhere", 0)], &[]),
                "PreFilterPlugin \"Nowhere\" does not exist",
            ),
            (
                "score",
                set(&[("NodeName", 0)], &[]),
                "plugin \"NodeName\" does not extend ScorePlugin plugin",
            ),
            (
                "filter",
                set(&[("NodeName", 0), ("NodeName", 0)], &[]),
                "plugin \"NodeName\" already registered as \"FilterPlugin\"",
            ),
            (
                "multiPoint",
                set(&[("NodeName", 0), ("NodeName", 0)], &[]),
                "plugin \"NodeName\" already registered as \"FilterPlugin\"",
            ),
        ];
        for (point, set, expected) in cases {
            assert_eq!(expand(&[(point, set)]).unwrap_err(), expected);
        }
    }
}
