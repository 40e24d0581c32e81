//! Which admission plugins are on: upstream's defaults, changed by `--enable-admission-plugins` and
//! `--disable-admission-plugins`.

use super::Exemptions;

/// Off unless asked for. NodeRestriction is on here: there is no cluster without nodes' own credentials.
const OFF: [&str; 3] = [
    "AlwaysPullImages",
    "DenyServiceExternalIPs",
    "OwnerReferencesPermissionEnforcement",
];
/// All that can be named.
const KNOWN: [&str; 30] = [
    "AlwaysPullImages",
    "CertificateApproval",
    "CertificateSigning",
    "CertificateSubjectRestriction",
    "ClusterTrustBundleAttest",
    "DefaultIngressClass",
    "DefaultStorageClass",
    "DefaultTolerationSeconds",
    "DenyServiceExternalIPs",
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

/// What was asked for. A plugin that is both enabled and disabled is off.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub enable: Vec<String>,
    pub disable: Vec<String>,
    /// Who is not held to Pod security standards.
    pub exemptions: Exemptions,
}

#[derive(Debug, thiserror::Error)]
#[error("{option} plugin {name:?} is unknown; the plugins are: {}", KNOWN.join(", "))]
pub struct UnknownPlugin {
    pub option: &'static str,
    pub name: String,
}

impl Selection {
    pub fn check(&self) -> Result<(), UnknownPlugin> {
        let lists = [
            ("enable-admission-plugins", &self.enable),
            ("disable-admission-plugins", &self.disable),
        ];
        for (option, names) in lists {
            if let Some(name) = names.iter().find(|name| !KNOWN.contains(&name.as_str())) {
                return Err(UnknownPlugin {
                    option,
                    name: name.clone(),
                });
            }
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
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
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
        let wrong = Selection {
            disable: names(&["Nonsense"]),
            ..Selection::default()
        };
        let error = wrong.check().unwrap_err().to_string();
        assert!(error.starts_with("disable-admission-plugins plugin \"Nonsense\" is unknown"));
    }
}
