//! Which controllers run: upstream's `--controllers`.
//!
//! A list of `*`, `name` and `-name`. The first entry that names a controller decides about it, wherever it stands; `*`
//! decides about those that no entry names. Names that upstream gave up are understood as upstream understands them.
//! Different from upstream: `*` means every row of [`TABLE`], because none of ours is off unless asked for.

use crate::{Row, TABLE};

/// Controllers of upstream that do not run here, and why. Their names are understood where controllers are chosen.
const ELSEWHERE: &[(&str, &str)] = &[
    ("node-route-controller", "nodes find each other's Pods by themselves"),
    ("service-lb-controller", "comes with a cloud provider"),
    ("cloud-node-lifecycle-controller", "comes with a cloud provider"),
    (
        "selinux-warning-controller",
        "off by default; volumes are not relabelled",
    ),
    (
        "storageversion-garbage-collector-controller",
        "its API is off by default",
    ),
    ("storage-version-migrator-controller", "its API is off by default"),
    ("podcertificaterequest-cleaner-controller", "its API is off by default"),
    (
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "its API is off by default",
    ),
    ("resourcepoolstatusrequest-controller", "its API is off by default"),
    ("podgroup-protection-controller", "its API is off by default"),
];

/// Names of earlier releases of upstream, and today's.
const FORMER: &[(&str, &str)] = &[
    ("attachdetach", "persistentvolume-attach-detach-controller"),
    ("bootstrapsigner", "bootstrap-signer-controller"),
    ("cloud-node-lifecycle", "cloud-node-lifecycle-controller"),
    ("clusterrole-aggregation", "clusterrole-aggregation-controller"),
    ("cronjob", "cronjob-controller"),
    ("csrapproving", "certificatesigningrequest-approving-controller"),
    ("csrcleaner", "certificatesigningrequest-cleaner-controller"),
    ("csrsigning", "certificatesigningrequest-signing-controller"),
    ("daemonset", "daemonset-controller"),
    ("deployment", "deployment-controller"),
    ("disruption", "disruption-controller"),
    ("endpoint", "endpoints-controller"),
    ("endpointslice", "endpointslice-controller"),
    ("endpointslicemirroring", "endpointslice-mirroring-controller"),
    ("ephemeral-volume", "ephemeral-volume-controller"),
    ("garbagecollector", "garbage-collector-controller"),
    ("horizontalpodautoscaling", "horizontal-pod-autoscaler-controller"),
    ("job", "job-controller"),
    (
        "legacy-service-account-token-cleaner",
        "legacy-serviceaccount-token-cleaner-controller",
    ),
    ("namespace", "namespace-controller"),
    ("nodeipam", "node-ipam-controller"),
    ("nodelifecycle", "node-lifecycle-controller"),
    ("persistentvolume-binder", "persistentvolume-binder-controller"),
    ("persistentvolume-expander", "persistentvolume-expander-controller"),
    ("podgc", "pod-garbage-collector-controller"),
    ("pv-protection", "persistentvolume-protection-controller"),
    ("pvc-protection", "persistentvolumeclaim-protection-controller"),
    ("replicaset", "replicaset-controller"),
    ("replicationcontroller", "replicationcontroller-controller"),
    ("resource-claim-controller", "resourceclaim-controller"),
    ("resourcequota", "resourcequota-controller"),
    ("root-ca-cert-publisher", "root-ca-certificate-publisher-controller"),
    ("route", "node-route-controller"),
    ("service", "service-lb-controller"),
    ("serviceaccount", "serviceaccount-controller"),
    ("serviceaccount-token", "serviceaccount-token-controller"),
    ("statefulset", "statefulset-controller"),
    ("storage-version-gc", "storageversion-garbage-collector-controller"),
    ("svm", "storage-version-migrator-controller"),
    ("tokencleaner", "token-cleaner-controller"),
    ("ttl", "ttl-controller"),
    ("ttl-after-finished", "ttl-after-finished-controller"),
];

/// A list that names what is no controller.
#[derive(Debug, thiserror::Error)]
#[error("there is no controller {name:?}; the controllers are: {known}")]
pub struct UnknownController {
    pub name: String,
    pub known: String,
}

/// Whether every entry of a list names something.
pub fn check_choice(asked: &[String]) -> Result<(), UnknownController> {
    for ask in asked.iter().filter(|ask| *ask != "*") {
        let (_, name) = entry(ask);
        let ours = TABLE.iter().any(|row| row.name == name);
        if !ours && !ELSEWHERE.iter().any(|(other, _)| *other == name) {
            let known: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
            return Err(UnknownController {
                name: name.to_owned(),
                known: known.join(", "),
            });
        }
    }
    Ok(())
}

/// Whether an entry asks for a controller, and for which.
fn entry(ask: &str) -> (bool, &str) {
    let (wanted, name) = match ask.strip_prefix('-') {
        Some(name) => (false, name),
        None => (true, ask),
    };
    let former = FORMER.iter().find(|(former, _)| *former == name);
    (wanted, former.map_or(name, |(_, today)| today))
}

/// The controllers that a list asks for.
pub(crate) fn enabled(asked: &[String]) -> Result<Vec<&'static Row>, UnknownController> {
    check_choice(asked)?;
    for ask in asked {
        let (_, name) = entry(ask);
        if let Some((_, why)) = ELSEWHERE.iter().find(|(other, _)| *other == name) {
            tracing::info!("there is nothing to choose for {name}: {why}");
        }
    }
    let all = asked.iter().any(|ask| ask == "*");
    let on = |row: &&Row| {
        let mut named = asked.iter().map(|ask| entry(ask)).filter(|(_, name)| *name == row.name);
        named.next().map_or(all, |(wanted, _)| wanted)
    };
    Ok(TABLE.iter().filter(on).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(asked: &[&str]) -> Vec<&'static str> {
        let asked: Vec<String> = asked.iter().map(|ask| (*ask).to_owned()).collect();
        enabled(&asked).unwrap().iter().map(|row| row.name).collect()
    }

    #[test]
    fn controllers_are_chosen_by_name() {
        assert_eq!(names(&["*"]).len(), TABLE.len());
        assert_eq!(names(&[]).len(), 0);
        assert_eq!(names(&["*", "-namespace-controller"]).len(), TABLE.len() - 1);
        assert_eq!(names(&["-namespace-controller", "*"]).len(), TABLE.len() - 1);
        assert_eq!(names(&["*", "-nodelifecycle"]).len(), TABLE.len() - 1);
        assert_eq!(names(&["namespace-controller"]), ["namespace-controller"]);
        assert_eq!(names(&["job", "-job-controller", "-deployment"]), ["job-controller"]);
        assert_eq!(names(&["namespace-controller", "-node-route-controller"]).len(), 1);
    }

    #[test]
    fn what_is_no_controller_is_refused() {
        for wrong in ["nonsense", "-nonsense", "-*", ""] {
            let error = enabled(&[wrong.into()]).err().unwrap().to_string();
            assert!(
                error.contains("no controller") && error.contains("namespace-controller"),
                "{error}"
            );
        }
    }

    #[test]
    fn every_name_is_in_one_place() {
        let ours = |name| TABLE.iter().any(|row| row.name == name);
        let elsewhere = |name| ELSEWHERE.iter().any(|(other, _)| *other == name);
        assert!(!ELSEWHERE.iter().any(|(name, _)| ours(*name)));
        for (former, today) in FORMER {
            assert!(!ours(*former) && !elsewhere(*former), "{former}");
            assert!(ours(*today) || elsewhere(*today), "{today}");
        }
    }
}
