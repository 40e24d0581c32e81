//! The file that configures admission plugins: upstream's `AdmissionConfiguration`, with the configuration of a plugin
//! in it or in a file beside it.
//!
//! Strict where upstream is: unknown fields, kinds and versions are errors, and so is what no plugin here can honour,
//! instead of being passed over.

use std::path::Path;
use std::sync::Arc;

use sampan_api::field::{Error, Errors, Path as Field};
use sampan_api::{codec, names};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::events::Limit;
use super::pod_security::{self, Exemptions};
use crate::outbound::Credentials;

/// What plugins are told.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    pub pod_security: pod_security::Configuration,
    /// The limits of EventRateLimit.
    pub event_limits: Vec<Limit>,
    /// As whom mutating and validating webhooks are called.
    pub mutating_webhooks: Arc<Credentials>,
    pub validating_webhooks: Arc<Credentials>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("unable to read admission control configuration from {path:?} [{source}]")]
    Read { path: String, source: std::io::Error },
    #[error("the admission control configuration {path:?} is not valid: {why}")]
    Invalid { path: String, why: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Whole {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    plugins: Option<Vec<Plugin>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    configuration: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodSecurity {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    defaults: Option<std::collections::BTreeMap<String, String>>,
    #[serde(default)]
    exemptions: Option<ExemptionLists>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct ExemptionLists {
    usernames: Option<Vec<String>>,
    namespaces: Option<Vec<String>>,
    runtime_classes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EventLimits {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    limits: Option<Vec<Limit>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Webhooks {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    kube_config_file: String,
    #[serde(default)]
    static_manifests_dir: String,
}

impl Configuration {
    pub fn read(path: &Path) -> Result<Configuration, ConfigurationError> {
        let text = read(path)?;
        Self::parse(&text, &|name| {
            let beside = path.parent().unwrap_or(Path::new("."));
            read(&beside.join(name)).map_err(|error| error.to_string())
        })
        .map_err(|why| ConfigurationError::Invalid {
            path: path.display().to_string(),
            why,
        })
    }

    fn parse(text: &[u8], file: &dyn Fn(&str) -> Result<Vec<u8>, String>) -> Result<Configuration, String> {
        let whole: Whole = typed(
            tree(text)?,
            "AdmissionConfiguration",
            &["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1"],
        )?;
        let mut configuration = Configuration::default();
        for plugin in whole.plugins.unwrap_or_default() {
            let own = match (plugin.configuration, plugin.path.as_str()) {
                (Some(own), _) => own,
                (None, "") => continue,
                (None, path) => tree(&file(path)?)?,
            };
            configuration
                .plugin(&plugin.name, own)
                .map_err(|why| format!("plugin {:?}: {why}", plugin.name))?;
        }
        Ok(configuration)
    }

    fn plugin(&mut self, name: &str, own: Value) -> Result<(), String> {
        match name {
            "PodSecurity" => {
                let versions =
                    ["v1", "v1beta1", "v1alpha1"].map(|v| format!("pod-security.admission.config.k8s.io/{v}"));
                let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
                let own: PodSecurity = typed(own, "PodSecurityConfiguration", &versions)?;
                self.pod_security = own.checked()?;
            }
            "EventRateLimit" => {
                let own: EventLimits = typed(own, "Configuration", &["eventratelimit.admission.k8s.io/v1alpha1"])?;
                self.event_limits = own.limits.unwrap_or_default();
                told(Limit::check(&self.event_limits))?;
            }
            "MutatingAdmissionWebhook" => self.mutating_webhooks = Webhooks::credentials(own)?,
            "ValidatingAdmissionWebhook" => self.validating_webhooks = Webhooks::credentials(own)?,
            _ => return Err("this server has nothing to configure in it".to_owned()),
        }
        Ok(())
    }
}

impl Webhooks {
    fn credentials(own: Value) -> Result<Arc<Credentials>, String> {
        let own: Webhooks = typed(own, "WebhookAdmissionConfiguration", &["apiserver.config.k8s.io/v1"])?;
        let path = own.kube_config_file;
        if !own.static_manifests_dir.is_empty() {
            let why = "manifests are not read: webhooks of this server are objects of its API";
            let field = Field::new("staticManifestsDir");
            return Err(Error::invalid(&field, own.static_manifests_dir, why).to_string());
        }
        if path.is_empty() {
            return Ok(Arc::default());
        }
        if !Path::new(&path).is_absolute() {
            let field = Field::new("kubeConfigFile");
            return Err(Error::invalid(&field, path, "must be an absolute file path").to_string());
        }
        Credentials::read(Path::new(&path)).map(Arc::new)
    }
}

impl PodSecurity {
    fn checked(self) -> Result<pod_security::Configuration, String> {
        let lists = self.exemptions.unwrap_or_default();
        let exemptions = Exemptions {
            namespaces: lists.namespaces.unwrap_or_default(),
            users: lists.usernames.unwrap_or_default(),
            runtime_classes: lists.runtime_classes.unwrap_or_default(),
        };
        let (defaults, mut errors) = pod_security::Policy::of_defaults(&self.defaults.unwrap_or_default());
        let user = |name: &str| match name {
            "" => vec!["username must not be empty".to_owned()],
            _ => Vec::new(),
        };
        each(&exemptions.namespaces, "namespaces", &names::dns1123_label, &mut errors);
        each(
            &exemptions.runtime_classes,
            "runtimeClasses",
            &names::dns1123_subdomain,
            &mut errors,
        );
        each(&exemptions.users, "usernames", &user, &mut errors);
        told(errors)?;
        Ok(pod_security::Configuration { defaults, exemptions })
    }
}

/// Every exemption must be possible, and stand there once.
fn each(list: &[String], field: &str, wrong: &dyn Fn(&str) -> Vec<String>, errors: &mut Errors) {
    let path = Field::new("exemptions").child(field);
    for (index, name) in list.iter().enumerate() {
        let why = wrong(name);
        if !why.is_empty() {
            errors.push(Error::invalid(&path.index(index), name.as_str(), why.join(", ")));
        } else if list.iter().take(index).any(|known| known == name) {
            errors.push(Error::duplicate(&path.index(index), name.as_str()));
        }
    }
}

pub(crate) fn told(errors: Errors) -> Result<(), String> {
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match all.len() {
        0 => Ok(()),
        1 => Err(all.concat()),
        _ => Err(format!("[{}]", all.join(", "))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigurationError> {
    std::fs::read(path).map_err(|source| ConfigurationError::Read {
        path: path.display().to_string(),
        source,
    })
}

/// YAML, of which JSON is a part.
pub(crate) fn tree(text: &[u8]) -> Result<Value, String> {
    let parsed = codec::yaml::decode(text).map_err(|error| error.to_string())?;
    parsed.complaint.map_or(Ok(parsed.object), Err)
}

pub(crate) fn typed<T: DeserializeOwned>(tree: Value, kind: &str, versions: &[&str]) -> Result<T, String> {
    let text = |field: &str| tree.get(field).and_then(Value::as_str).unwrap_or_default();
    let (found, version) = (text("kind"), text("apiVersion"));
    if found != kind || !versions.contains(&version) {
        return Err(format!(
            "no kind {found:?} is registered for version {version:?} here: it must be {kind} of {}",
            versions.join(" or ")
        ));
    }
    serde_json::from_value(tree).map_err(|error| format!("strict decoding error: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n";

    fn parse(plugins: &str) -> Result<Configuration, String> {
        Configuration::parse(format!("{HEAD}{plugins}").as_bytes(), &|name| {
            match name {
            "events.yaml" => Ok(b"apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\nlimits:\n- {type: User, qps: 5, burst: 10}\n".to_vec()),
            _ => Err(format!("{name} is not there")),
        }
        })
    }

    fn pod_security(rest: &str) -> String {
        format!(
            "- name: PodSecurity\n  configuration:\n    apiVersion: pod-security.admission.config.k8s.io/v1\n    kind: PodSecurityConfiguration\n{rest}"
        )
    }

    #[test]
    fn upstreams_files_are_read() {
        let file = pod_security(
            "    defaults:\n      enforce: baseline\n      enforce-version: v1.30\n      warn: restricted\n    exemptions:\n      usernames: [system:robot]\n      namespaces: [kube-system]\n      runtimeClasses: []\n",
        );
        let read = parse(&file).unwrap();
        let defaults = read.pod_security.defaults;
        assert_eq!(
            [defaults.enforce, defaults.audit, defaults.warn].map(|standard| standard.to_string()),
            ["baseline:v1.30", "privileged:latest", "restricted:latest"]
        );
        assert_eq!(read.pod_security.exemptions.namespaces, ["kube-system"]);
        assert_eq!(read.pod_security.exemptions.users, ["system:robot"]);
        let read = parse("- name: EventRateLimit\n  path: events.yaml\n").unwrap();
        assert_eq!(read.event_limits.len(), 1);
        // What says nothing about a plugin says nothing.
        assert!(parse("- name: LimitRanger\n").is_ok());
    }

    #[test]
    fn wrong_files_are_refused() {
        let limits = |limits: &str| {
            format!(
                "- name: EventRateLimit\n  configuration:\n    apiVersion: eventratelimit.admission.k8s.io/v1alpha1\n    kind: Configuration\n    limits: {limits}\n"
            )
        };
        let webhooks = |kind: &str, own: &str| {
            let head = "apiVersion: apiserver.config.k8s.io/v1, kind: WebhookAdmissionConfiguration";
            let own = own.trim_start_matches('{');
            format!("- name: {kind}AdmissionWebhook\n  configuration: {{{head}, {own}\n")
        };
        for (file, why) in [
            (pod_security("    default: {}\n"), "unknown field `default`"),
            (
                pod_security("    defaults: {enforce: strict}\n"),
                "defaults.enforce: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
            ),
            (
                pod_security("    defaults: {warn-version: v2}\n"),
                "defaults.warn-version: Invalid value: \"v2\": must be \"latest\" or \"v1.x\"",
            ),
            (
                pod_security("    defaults: {enforced: baseline}\n"),
                "defaults.enforced",
            ),
            (
                pod_security("    exemptions: {namespaces: [A, b, b]}\n"),
                "exemptions.namespaces[0]: Invalid value: \"A\"",
            ),
            (
                pod_security("    exemptions: {namespaces: [b, b]}\n"),
                "exemptions.namespaces[1]: Duplicate value: \"b\"",
            ),
            (
                pod_security("    exemptions: {usernames: ['']}\n"),
                "exemptions.usernames[0]: Invalid value: \"\": username must not be empty",
            ),
            (limits("[]"), "limits: Invalid value"),
            (
                limits("[{type: Node, qps: 1, burst: 1}]"),
                "limits[0].type: Unsupported value: \"Node\": supported values: \"Namespace\", \"Server\", \"SourceAndObject\", \"User\"",
            ),
            (
                limits("[{type: Server, qps: 0, burst: 1}]"),
                "limits[0].qps: Invalid value: 0: must be positive",
            ),
            (
                limits("[{type: User, qps: 1, burst: 1, cacheSize: -1}]"),
                "limits[0].cacheSize: Invalid value: -1: must not be negative",
            ),
            (
                "- name: ImagePolicyWebhook\n  configuration: {a: b}\n".to_owned(),
                "\"ImagePolicyWebhook\": this server has nothing",
            ),
            (
                "- name: PodSecurity\n  path: gone.yaml\n".to_owned(),
                "gone.yaml is not there",
            ),
            (
                "- name: PodSecurity\n  configuration: {kind: Other, apiVersion: v1}\n".to_owned(),
                "no kind \"Other\" is registered for version \"v1\"",
            ),
            ("- nam: x\n".to_owned(), "unknown field `nam`"),
            (
                webhooks("Mutating", "{kubeConfigFile: here}"),
                "kubeConfigFile: Invalid value: \"here\": must be an absolute file path",
            ),
            (
                webhooks("Validating", "{kubeConfigFile: /no/such/file}"),
                "/no/such/file",
            ),
            (
                webhooks("Validating", "{kubeconfigFile: /a}"),
                "unknown field `kubeconfigFile`",
            ),
            (
                webhooks("Mutating", "{staticManifestsDir: /a}"),
                "staticManifestsDir: Invalid value: \"/a\"",
            ),
        ] {
            let found = parse(&file).unwrap_err();
            assert!(found.contains(why), "{found}\n{why}");
        }
        let gone = Configuration::read(Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(
            gone.starts_with("unable to read admission control configuration"),
            "{gone}"
        );
    }
}
