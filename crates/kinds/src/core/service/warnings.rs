//! What a client is warned of in a Service.

use sampan_api::Object;
use sampan_api::field::Path;

use super::is_headless;
use crate::tree;
use crate::warnings as common;

pub(super) fn of(service: &Object) -> Vec<String> {
    let mut out = Vec::new();
    let path = Path::new("spec");
    let mut say = |when: bool, what: &str| {
        if when {
            out.push(what.to_owned());
        }
    };
    let kind = tree::text(service, "spec.type");
    let external = !tree::items(service, "spec.externalIPs").is_empty();
    let headless = kind == "ClusterIP" && is_headless(service);
    let hints = "service.kubernetes.io/topology-aware-hints";
    say(
        tree::map(service, "metadata.annotations").is_some_and(|set| set.contains_key(hints)),
        "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
         service.kubernetes.io/topology-mode instead",
    );
    if headless {
        let ignored = [
            ("loadBalancerIP", !tree::text(service, "spec.loadBalancerIP").is_empty()),
            ("externalIPs", external),
            ("SessionAffinity", tree::text(service, "spec.sessionAffinity") != "None"),
        ];
        for (field, set) in ignored {
            say(set, &format!("spec.{field} is ignored for headless services"));
        }
    }
    say(
        external && !headless && kind != "ExternalName",
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
    );
    say(
        kind == "ExternalName" && external,
        "spec.externalIPs is ignored when spec.type is \"ExternalName\"",
    );
    say(
        kind != "ExternalName" && !tree::text(service, "spec.externalName").is_empty(),
        "spec.externalName is ignored when spec.type is not \"ExternalName\"",
    );
    say(
        tree::text(service, "spec.trafficDistribution") == "PreferClose",
        "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
    );
    for list in ["clusterIPs", "externalIPs"] {
        let addresses = tree::items(service, &format!("spec.{list}"));
        common::addresses(addresses, &path.child(list), &mut out);
    }
    let address = tree::text(service, "spec.loadBalancerIP");
    common::address(address, &path.child("loadBalancerIP"), &mut out);
    let ranges = path.child("loadBalancerSourceRanges");
    for (index, range) in tree::items(service, "spec.loadBalancerSourceRanges").iter().enumerate() {
        common::range(range.as_str().unwrap_or_default(), &ranges.index(index), &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ignored_and_deprecated_fields_are_named() {
        let cases = [
            (
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "sessionAffinity": "None"}),
                vec![],
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "sessionAffinity": "ClientIP"}),
                vec!["spec.SessionAffinity is ignored for headless services"],
            ),
            (
                json!({"type": "ClusterIP", "externalName": "x", "externalIPs": ["1.2.3.4"], "trafficDistribution": "PreferClose"}),
                vec![
                    "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
                    "spec.externalName is ignored when spec.type is not \"ExternalName\"",
                    "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
                ],
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(of(&json!({"spec": spec})), expected, "{spec}");
        }
    }
}
