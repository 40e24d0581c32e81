//! Which admission plugins are on: upstream's defaults, changed by `--enable-admission-plugins` and
//! `--disable-admission-plugins`.

use super::Configuration;

/// Off unless asked for. NodeRestriction is on here: there is no cluster without nodes' own credentials.
const OFF: [&str; 4] = [
    "AlwaysPullImages",
    "DenyServiceExternalIPs",
    "EventRateLimit",
    "OwnerReferencesPermissionEnforcement",
];
/// Upstream's that are off there as well and have no part here.
const ABSENT: [&str; 10] = [
    "AlwaysAdmit",
    "AlwaysDeny",
    "ExtendedResourceToleration",
    "ImagePolicyWebhook",
    "LimitPodHardAntiAffinityTopology",
    "NamespaceAutoProvision",
    "NamespaceExists",
    "PodGroupWorkloadExists",
    "PodNodeSelector",
    "PodTolerationRestriction",
];
/// All that can be named.
const KNOWN: [&str; 31] = [
    "AlwaysPullImages",
    "CertificateApproval",
    "CertificateSigning",
    "CertificateSubjectRestriction",
    "ClusterTrustBundleAttest",
    "DefaultIngressClass",
    "DefaultStorageClass",
    "DefaultTolerationSeconds",
    "DenyServiceExternalIPs",
    "EventRateLimit",
    "JobValidation",
    "LimitRanger",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "NamespaceLifecycle",
    "NodeDeclaredFeatureValidator",
    "NodeRestriction",
    "OwnerReferencesPermissionEnforcement",
    "PersistentVolumeClaimResize",
    "PodGroupProtection",
    "PodResizeValidator",
    "PodSecurity",
    "PodTopologyLabels",
    "Priority",
    "ResourceQuota",
    "RuntimeClass",
    "ServiceAccount",
    "StorageObjectInUseProtection",
    "TaintNodesByCondition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
];

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub enable: Vec<String>,
    pub disable: Vec<String>,
    /// What is said to single plugins.
    pub configuration: Configuration,
}

#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    #[error("{option} plugin {name:?} is unknown; the plugins are: {}", KNOWN.join(", "))]
    Unknown { option: &'static str, name: String },
    #[error("enable-admission-plugins plugin {0:?} is not part of this server; admission policies can do its work")]
    Absent(String),
    #[error("[{}] in enable-admission-plugins and disable-admission-plugins overlapped", .0.join(" "))]
    Overlap(Vec<String>),
    #[error(
        "enable-admission-plugins plugin \"EventRateLimit\" has no limits; give them in the file of admission-control-config-file"
    )]
    NoLimits,
}

impl Selection {
    pub fn check(&self) -> Result<(), SelectionError> {
        let lists = [
            ("enable-admission-plugins", &self.enable),
            ("disable-admission-plugins", &self.disable),
        ];
        for (option, names) in lists {
            let known = |name: &String| KNOWN.contains(&name.as_str()) || ABSENT.contains(&name.as_str());
            if let Some(name) = names.iter().find(|name| !known(name)) {
                let name = name.clone();
                return Err(SelectionError::Unknown { option, name });
            }
        }
        if let Some(name) = self.enable.iter().find(|name| ABSENT.contains(&name.as_str())) {
            return Err(SelectionError::Absent(name.clone()));
        }
        let mut both: Vec<String> = self
            .enable
            .iter()
            .filter(|name| self.disable.contains(name))
            .cloned()
            .collect();
        if !both.is_empty() {
            both.sort();
            both.dedup();
            return Err(SelectionError::Overlap(both));
        }
        if self.has("EventRateLimit") && self.configuration.event_limits.is_empty() {
            return Err(SelectionError::NoLimits);
        }
        Ok(())
    }

    /// Whether a plugin runs. Those without a name of upstream's always do: they are part of how resources work.
    pub(super) fn has(&self, name: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|known| known == name);
        !KNOWN.contains(&name) || !listed(&self.disable) && (!OFF.contains(&name) || listed(&self.enable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_chosen() {
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let selection = Selection {
            enable: names(&["AlwaysPullImages"]),
            disable: names(&["PodSecurity"]),
            ..Selection::default()
        };
        assert!(selection.check().is_ok());
        for (name, on) in [
            ("AlwaysPullImages", true),
            ("DenyServiceExternalIPs", false),
            ("PodSecurity", false),
            ("LimitRanger", true),
            ("RBACEscalation", true),
        ] {
            assert_eq!(selection.has(name), on, "{name}");
        }
        for (enable, disable, why) in [
            (
                &[][..],
                &["Nonsense"][..],
                "disable-admission-plugins plugin \"Nonsense\" is unknown",
            ),
            (
                &["podsecurity"],
                &[],
                "enable-admission-plugins plugin \"podsecurity\" is unknown",
            ),
            (
                &["ImagePolicyWebhook"],
                &[],
                "enable-admission-plugins plugin \"ImagePolicyWebhook\" is not part of",
            ),
            (
                &["Priority", "LimitRanger"],
                &["LimitRanger", "Priority"],
                "[LimitRanger Priority] in enable-admission-plugins and disable-admission-plugins overlapped",
            ),
            (
                &["EventRateLimit"],
                &[],
                "enable-admission-plugins plugin \"EventRateLimit\" has no limits",
            ),
        ] {
            let wrong = Selection {
                enable: names(enable),
                disable: names(disable),
                ..Selection::default()
            };
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
        // What is not here is off, whoever says so.
        let off = Selection {
            disable: names(&["AlwaysDeny", "EventRateLimit"]),
            ..Selection::default()
        };
        assert!(off.check().is_ok());
    }
}
