//! Which address families a Service has: what the client left open follows from its addresses, from what it had before
//! and from what the cluster has.

use sampan_api::Object;
use sampan_api::field::{Error, Errors, Path};
use serde_json::{Value, json};

use super::{needs_cluster_ip, validate};
use crate::tree;

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn policy(service: &Object) -> &str {
    tree::text(service, "spec.ipFamilyPolicy")
}

fn families(service: &Object) -> &[Value] {
    tree::items(service, "spec.ipFamilies")
}

fn addresses(service: &Object) -> &[Value] {
    tree::items(service, "spec.clusterIPs")
}

fn of(address: &Value) -> &'static str {
    if address.as_str().is_some_and(|text| text.contains(':')) {
        "IPv6"
    } else {
        "IPv4"
    }
}

/// Fills in `ipFamilyPolicy` and `ipFamilies`, before addresses are given out. `configured`: the families of the cluster,
/// its default one first. What is returned is wrong with the request.
pub fn settle_families(service: &mut Object, old: Option<&Object>, configured: &[&str]) -> Errors {
    if !needs_cluster_ip(service) || old.is_some_and(|old| prefers_as_before(service, old)) {
        return Errors::new();
    }
    // Such a Service has no addresses for the cluster to have families of.
    let free = super::is_headless(service) && tree::len(service, "spec.selector") == 0;
    if tree::get(service, "spec.ipFamilyPolicy").is_none() {
        let before = old.map(policy).filter(|policy| !policy.is_empty());
        let policy = match before {
            Some(before) => before.to_owned(),
            None if free => REQUIRE.to_owned(),
            None => SINGLE.to_owned(),
        };
        tree::set(service, "spec.ipFamilyPolicy", policy);
    }
    let mut errors = Errors::new();
    let known = old.map(addresses).unwrap_or_default();
    validate::addresses(service, known, &Path::new("spec"), &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    if let Some(old) = old {
        release_second(service, old, &mut errors);
    }
    if policy(service) == SINGLE {
        let second = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
        if addresses(service).len() == 2 {
            errors.push(wrong_policy(
                service,
                format!("{second} cluster IPs are specified").as_str(),
            ));
        }
        if families(service).len() == 2 {
            errors.push(wrong_policy(
                service,
                format!("{second} IP families are specified").as_str(),
            ));
        }
    }
    follow_addresses(service, configured, &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    if free {
        start_with_default(service, configured);
        if policy(service) != SINGLE {
            add_other(service);
        }
        return errors;
    }
    if policy(service) == REQUIRE && configured.len() < 2 {
        errors.push(wrong_policy(
            service,
            "this cluster is not configured for dual-stack services",
        ));
    }
    for (index, family) in families(service).iter().enumerate() {
        if !configured.iter().any(|known| family == known) {
            let path = Path::new("spec").child("ipFamilies").index(index);
            errors.push(Error::invalid(&path, family.clone(), "not configured on this cluster"));
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    start_with_default(service, configured);
    if policy(service) != SINGLE && configured.len() == 2 {
        add_other(service);
    }
    errors
}

/// A Service that prefers two families and changed nothing of it keeps what it has, whatever the cluster has by now.
fn prefers_as_before(new: &Object, old: &Object) -> bool {
    let same = |path| tree::items(new, path) == tree::items(old, path);
    policy(new) == PREFER
        && matches!(policy(old), "" | PREFER)
        && tree::text(new, "spec.type") == tree::text(old, "spec.type")
        && same("spec.clusterIPs")
        && same("spec.ipFamilies")
}

/// Going from two families to one takes the policy to say so; then the second ones go by themselves.
fn release_second(service: &mut Object, old: &Object, errors: &mut Errors) {
    for (path, what) in [("spec.clusterIPs", "cluster IP"), ("spec.ipFamilies", "IP family")] {
        let (now, was) = (tree::items(service, path), tree::items(old, path));
        if policy(service) == SINGLE {
            if now == was
                && let [first, _, ..] = now
            {
                let first = json!([first]);
                tree::set(service, path, first);
            }
        } else if !now.is_empty() && now.len() < was.len() {
            errors.push(wrong_policy(
                service,
                &format!("must be 'SingleStack' to release the secondary {what}"),
            ));
        }
    }
}

fn wrong_policy(service: &Object, why: &str) -> Error {
    Error::invalid(&Path::new("spec").child("ipFamilyPolicy"), policy(service), why)
}

/// Families that are not said are those of the addresses that are.
fn follow_addresses(service: &mut Object, configured: &[&str], errors: &mut Errors) {
    let all = addresses(service).to_vec();
    let mut known = families(service).to_vec();
    let before = known.len();
    for (index, address) in all.iter().enumerate().take_while(|(_, address)| *address != "None") {
        if index < known.len() {
            continue;
        }
        let family = of(address);
        if configured.contains(&family) {
            known.push(family.into());
        } else {
            errors.push(Error::invalid(
                &Path::new("spec").child("clusterIPs").index(index),
                all.clone(),
                format!("{family} is not configured on this cluster"),
            ));
        }
    }
    if known.len() > before {
        tree::set(service, "spec.ipFamilies", known);
    }
}

fn start_with_default(service: &mut Object, configured: &[&str]) {
    if let (true, Some(first)) = (families(service).is_empty(), configured.first()) {
        tree::set(service, "spec.ipFamilies", json!([first]));
    }
}

fn add_other(service: &mut Object) {
    if let [only] = families(service) {
        let other = if only == "IPv4" { "IPv6" } else { "IPv4" };
        let both = json!([only, other]);
        tree::set(service, "spec.ipFamilies", both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_follow_from_what_is_said() {
        let cases = [
            // Selector, what is said, what becomes of it.
            (json!({"a": "b"}), json!({}), json!(["SingleStack", ["IPv4"]])),
            (
                json!({"a": "b"}),
                json!({"clusterIP": "None", "clusterIPs": ["None"]}),
                json!(["SingleStack", ["IPv4"]]),
            ),
            (
                json!({}),
                json!({"clusterIP": "None", "clusterIPs": ["None"]}),
                json!(["RequireDualStack", ["IPv4", "IPv6"]]),
            ),
            (
                json!({}),
                json!({"clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv6"]}),
                json!(["RequireDualStack", ["IPv6", "IPv4"]]),
            ),
            (
                json!({}),
                json!({"clusterIP": "None", "clusterIPs": ["None"], "ipFamilyPolicy": "SingleStack"}),
                json!(["SingleStack", ["IPv4"]]),
            ),
            (
                json!({"a": "b"}),
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                json!(["PreferDualStack", ["IPv4"]]),
            ),
        ];
        for (selector, said, wanted) in cases {
            let mut service = json!({"spec": said});
            service["spec"]["type"] = "ClusterIP".into();
            service["spec"]["selector"] = selector;
            assert_eq!(settle_families(&mut service, None, &["IPv4"]), [], "{service}");
            assert_eq!(
                json!([service["spec"]["ipFamilyPolicy"], service["spec"]["ipFamilies"]]),
                wanted
            );
        }
    }

    #[test]
    fn impossible_families_are_refused() {
        let old = json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack"}});
        let cases = [
            (
                None,
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                None,
                json!({"ipFamilies": ["IPv6"]}),
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                None,
                json!({"ipFamilyPolicy": ""}),
                "spec.ipFamilyPolicy: Unsupported value: \"\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
            ),
            (
                None,
                json!({"clusterIP": "::1", "clusterIPs": ["::1"]}),
                "spec.clusterIPs[0]: Invalid value: [\"::1\"]: IPv6 is not configured on this cluster",
            ),
            (
                None,
                json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            ),
            (
                Some(&old),
                json!({"clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary IP family",
            ),
            (
                Some(&old),
                json!({"clusterIP": "None", "clusterIPs": ["None", "None"], "ipFamilies": ["IPv4", "IPv6"]}),
                "spec.clusterIPs: Invalid value: [\"None\",\"None\"]: 'None' must be the first and only value",
            ),
        ];
        for (old, said, wanted) in cases {
            let mut service = json!({"spec": said});
            let errors = settle_families(&mut service, old, &["IPv4"]);
            let first = errors.first().map(ToString::to_string);
            assert_eq!(first.as_deref(), Some(wanted), "{service}");
        }
    }

    #[test]
    fn one_family_is_enough_when_said() {
        let old = json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack"}});
        let mut new = old.clone();
        new["spec"]["ipFamilyPolicy"] = SINGLE.into();
        assert_eq!(settle_families(&mut new, Some(&old), &["IPv4"]), []);
        assert_eq!(new["spec"]["ipFamilies"], json!(["IPv4"]));
    }
}
