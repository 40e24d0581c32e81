//! `AuthorizationConfiguration`, checked as upstream checks it, and the older options, which say the same.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_api::field::{Error, Errors, Path};
use sampan_auth::Step;
use sampan_cel::{Decl, Env, Program};
use serde::Deserialize;

use super::Options;
use crate::admission::configuration::{told, tree, typed};
use crate::request::go_duration;

const TYPES: [&str; 6] = ["ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
const MOST_CONDITIONS: usize = 64;
const LONGEST: Duration = Duration::from_secs(30);
const ABAC: &str = "ABAC is not supported here: say the same with roles and bindings (RBAC), or ask a Webhook";

/// One authorizer of the row.
pub struct Configured {
    pub name: String,
    pub what: What,
}

pub enum What {
    Plain(Step),
    Webhook(WebhookConfig),
}

/// A webhook, compiled.
pub struct WebhookConfig {
    pub kubeconfig: PathBuf,
    pub version: &'static str,
    pub timeout: Duration,
    /// How long a yes and a no are good for.
    pub authorized: Duration,
    pub unauthorized: Duration,
    /// What to say when it gives no answer: no, or nothing.
    pub fail_closed: bool,
    pub conditions: Arc<Vec<(String, Program)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    authorizers: Vec<One>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct One {
    r#type: String,
    name: String,
    webhook: Option<Webhook>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Webhook {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: Option<String>,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: Option<String>,
    cache_unauthorized_requests: Option<bool>,
    timeout: Option<String>,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: ConnectionInfo,
    match_conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct ConnectionInfo {
    r#type: String,
    kube_config_file: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Condition {
    expression: String,
}

/// Reads a file.
pub fn parse(content: &[u8]) -> Result<Vec<Configured>, String> {
    let whole: Whole = typed(
        tree(content)?,
        "AuthorizationConfiguration",
        &[
            "apiserver.config.k8s.io/v1",
            "apiserver.config.k8s.io/v1beta1",
            "apiserver.config.k8s.io/v1alpha1",
        ],
    )?;
    let mut errors = Errors::new();
    let root = Path::new("authorizers");
    if whole.authorizers.is_empty() {
        errors.push(Error::required(
            &root,
            "at least one authorization mode must be defined",
        ));
    }
    let (mut types, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut row = Vec::new();
    for (index, one) in whole.authorizers.into_iter().enumerate() {
        let at = root.index(index);
        let at_type = at.child("type");
        if one.r#type.is_empty() {
            errors.push(Error::required(&at_type, ""));
            continue;
        }
        if !TYPES.contains(&one.r#type.as_str()) {
            errors.push(Error::not_supported(&at_type, one.r#type.as_str(), &TYPES));
            continue;
        }
        if one.r#type == "ABAC" {
            errors.push(Error::forbidden(&at_type, ABAC));
            continue;
        }
        if !types.insert(one.r#type.clone()) && one.r#type != "Webhook" {
            errors.push(Error::duplicate(&at_type, one.r#type.as_str()));
            continue;
        }
        let at_name = at.child("name");
        if one.name.is_empty() {
            errors.push(Error::required(&at_name, ""));
        } else if names.contains(&one.name) {
            errors.push(Error::duplicate(&at_name, one.name.as_str()));
        } else {
            let wrong = sampan_api::names::dns1123_subdomain(&one.name);
            if !wrong.is_empty() {
                let why = format!("authorizer name is invalid: {}", wrong.join(", "));
                errors.push(Error::invalid(&at_name, one.name.as_str(), why));
            }
        }
        names.insert(one.name.clone());
        let at_hook = at.child("webhook");
        let what = match (plain(&one.r#type), one.webhook) {
            (None, Some(webhook)) => {
                // Upstream says these without the step in between.
                match webhook.checked(&at, &mut errors) {
                    Some(webhook) => What::Webhook(webhook),
                    None => continue,
                }
            }
            (None, None) => {
                errors.push(Error::required(&at_hook, "required when type=Webhook"));
                continue;
            }
            (Some(_), Some(_)) => {
                let why = "may only be specified when type=Webhook";
                errors.push(Error::invalid(&at_hook, "non-null", why));
                continue;
            }
            (Some(step), None) => What::Plain(step),
        };
        row.push(Configured { name: one.name, what });
    }
    told(errors)?;
    Ok(row)
}

fn plain(kind: &str) -> Option<Step> {
    Some(match kind {
        "Node" => Step::Node,
        "RBAC" => Step::Rbac,
        "AlwaysAllow" => Step::AlwaysAllow,
        "AlwaysDeny" => Step::AlwaysDeny,
        _ => return None,
    })
}

impl Webhook {
    fn checked(self, at: &Path, errors: &mut Errors) -> Option<WebhookConfig> {
        let before = errors.len();
        let mut duration = |text: Option<&str>, field: &str, default: Option<Duration>| -> Duration {
            let at = at.child(field);
            let given = match text {
                None => default,
                Some(text) => match go_duration(text) {
                    Some(Duration::ZERO) => default,
                    Some(given) => Some(given),
                    None => {
                        errors.push(Error::invalid(&at, text, "must be > 0s"));
                        default.or(Some(Duration::ZERO))
                    }
                },
            };
            given.unwrap_or_else(|| {
                errors.push(Error::required(&at, ""));
                Duration::ZERO
            })
        };
        let timeout = duration(self.timeout.as_deref(), "timeout", None);
        let authorized = duration(
            self.authorized_ttl.as_deref(),
            "authorizedTTL",
            Some(Duration::from_secs(300)),
        );
        let unauthorized = duration(
            self.unauthorized_ttl.as_deref(),
            "unauthorizedTTL",
            Some(Duration::from_secs(30)),
        );
        if timeout > LONGEST {
            let given = self.timeout.as_deref().unwrap_or_default();
            errors.push(Error::invalid(&at.child("timeout"), given, "must be > 0s and <= 30s"));
        }
        let at_version = at.child("subjectAccessReviewVersion");
        let version = match self.subject_access_review_version.as_str() {
            "v1" => "v1",
            "v1beta1" => "v1beta1",
            "" => {
                errors.push(Error::required(&at_version, ""));
                ""
            }
            other => {
                errors.push(Error::not_supported(&at_version, other, &["v1", "v1beta1"]));
                ""
            }
        };
        let at_version = at.child("matchConditionSubjectAccessReviewVersion");
        match self.match_condition_subject_access_review_version.as_str() {
            "v1" => {}
            "" if self.match_conditions.is_empty() => {}
            "" => errors.push(Error::required(
                &at_version,
                "required if match conditions are specified",
            )),
            other => errors.push(Error::not_supported(&at_version, other, &["v1"])),
        }
        let at_policy = at.child("failurePolicy");
        match self.failure_policy.as_str() {
            "NoOpinion" | "Deny" => {}
            "" => errors.push(Error::required(&at_policy, "")),
            other => errors.push(Error::not_supported(&at_policy, other, &["NoOpinion", "Deny"])),
        }
        let kubeconfig = self.connection_info.checked(&at.child("connectionInfo"), errors);
        let conditions = conditions(&self.match_conditions, &at.child("matchConditions"), errors);
        if errors.len() > before {
            return None;
        }
        let kept = |keep: Option<bool>, ttl| if keep.unwrap_or(true) { ttl } else { Duration::ZERO };
        Some(WebhookConfig {
            kubeconfig: kubeconfig?,
            version,
            timeout,
            authorized: kept(self.cache_authorized_requests, authorized),
            unauthorized: kept(self.cache_unauthorized_requests, unauthorized),
            fail_closed: self.failure_policy == "Deny",
            conditions: Arc::new(conditions),
        })
    }
}

impl ConnectionInfo {
    fn checked(&self, at: &Path, errors: &mut Errors) -> Option<PathBuf> {
        let at_type = at.child("type");
        match self.r#type.as_str() {
            "KubeConfigFile" => {
                let at = at.child("kubeConfigFile");
                let file = self.kube_config_file.as_deref().unwrap_or_default();
                let path = PathBuf::from(file);
                let wrong = if file.is_empty() {
                    errors.push(Error::required(&at, ""));
                    return None;
                } else if !path.is_absolute() {
                    "must be an absolute path".to_owned()
                } else {
                    match std::fs::metadata(&path) {
                        Err(error) => format!("error loading file: {error}"),
                        Ok(found) if !found.is_file() => "must be a regular file".to_owned(),
                        Ok(_) => return Some(path),
                    }
                };
                errors.push(Error::invalid(&at, file, wrong));
            }
            "" => errors.push(Error::required(&at_type, "")),
            "InClusterConfig" => {
                let why = "an API server cannot be asked through itself: use KubeConfigFile";
                errors.push(Error::invalid(&at_type, "InClusterConfig", why));
            }
            other => errors.push(Error::not_supported(
                &at_type,
                other,
                &["InClusterConfig", "KubeConfigFile"],
            )),
        }
        None
    }
}

fn conditions(stated: &[Condition], at: &Path, errors: &mut Errors) -> Vec<(String, Program)> {
    if stated.len() > MOST_CONDITIONS {
        errors.push(Error::too_many(at, stated.len(), MOST_CONDITIONS));
        return Vec::new();
    }
    let env = env();
    let mut seen = BTreeSet::new();
    let mut compiled = Vec::new();
    for (index, condition) in stated.iter().enumerate() {
        let at = at.index(index).child("expression");
        let expression = condition.expression.as_str();
        if expression.trim().is_empty() {
            errors.push(Error::required(&at, ""));
        } else if !seen.insert(expression) {
            errors.push(Error::duplicate(&at, expression));
        } else {
            match env.compile(expression) {
                Err(error) => errors.push(Error::invalid(&at, expression, format!("compilation failed: {error}"))),
                Ok(program) if program.output().to_string() != "bool" => {
                    let why = format!("must evaluate to bool but got {}", program.output());
                    errors.push(Error::invalid(&at, expression, why));
                }
                Ok(program) => compiled.push((expression.to_owned(), program)),
            }
        }
    }
    compiled
}

/// `request`: the spec of a SubjectAccessReview.
fn env() -> Env {
    let text = Decl::string;
    let requirement = Decl::object(
        "kubernetes.SelectorRequirement",
        [("key", text()), ("operator", text()), ("values", Decl::list(text()))],
    );
    let selector = |name: &str| {
        Decl::object(
            name,
            [
                ("rawSelector", text()),
                ("requirements", Decl::list(requirement.clone())),
            ],
        )
    };
    let resource = Decl::object(
        "kubernetes.ResourceAttributes",
        [
            ("namespace", text()),
            ("verb", text()),
            ("group", text()),
            ("version", text()),
            ("resource", text()),
            ("subresource", text()),
            ("name", text()),
            ("fieldSelector", selector("kubernetes.FieldSelectorAttributes")),
            ("labelSelector", selector("kubernetes.LabelSelectorAttributes")),
        ],
    );
    let path = Decl::object("kubernetes.NonResourceAttributes", [("path", text()), ("verb", text())]);
    let request = Decl::object(
        "kubernetes.SubjectAccessReviewSpec",
        [
            ("resourceAttributes", resource),
            ("nonResourceAttributes", path),
            ("user", text()),
            ("groups", Decl::list(text())),
            ("extra", Decl::map(Decl::list(text()))),
            ("uid", text()),
        ],
    );
    Env::new().with("request", request)
}

/// The row that the older options ask for.
pub fn of_options(options: &Options) -> Result<Vec<Configured>, String> {
    let default = ["Node".to_owned(), "RBAC".to_owned()];
    let modes = if options.modes.is_empty() {
        &default[..]
    } else {
        &options.modes
    };
    let mut seen = BTreeSet::new();
    let mut row = Vec::new();
    for mode in modes {
        if !TYPES.contains(&mode.as_str()) {
            return Err(format!("authorization-mode {mode:?} is not a valid mode"));
        }
        if mode == "ABAC" {
            return Err(ABAC.to_owned());
        }
        if !seen.insert(mode) {
            return Err(format!(
                "authorization-mode {modes:?} has mode specified more than once"
            ));
        }
        let Some(step) = plain(mode) else {
            let file = options
                .webhook_config_file
                .as_ref()
                .ok_or("authorization-mode Webhook's authorization config file not passed")?;
            let version = match options.webhook_version.as_str() {
                "v1" => "v1",
                "v1beta1" => "v1beta1",
                other => {
                    return Err(format!(
                        "unsupported webhook authorizer version {other:?}, supported versions are \"v1\", \"v1beta1\""
                    ));
                }
            };
            row.push(Configured {
                name: "default".into(),
                what: What::Webhook(WebhookConfig {
                    kubeconfig: file.clone(),
                    version,
                    timeout: LONGEST,
                    authorized: options.webhook_authorized_ttl,
                    unauthorized: options.webhook_unauthorized_ttl,
                    fail_closed: false,
                    conditions: Arc::default(),
                }),
            });
            continue;
        };
        row.push(Configured {
            name: mode.to_ascii_lowercase(),
            what: What::Plain(step),
        });
    }
    if options.webhook_config_file.is_some() && !modes.iter().any(|mode| mode == "Webhook") {
        return Err("cannot specify --authorization-webhook-config-file without mode Webhook".into());
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rest: &str) -> Result<Vec<Configured>, String> {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";
        parse(format!("{head}{rest}").as_bytes())
    }

    fn hook(change: &str) -> String {
        let mut fields = vec![
            "timeout: 3s",
            "subjectAccessReviewVersion: v1",
            "matchConditionSubjectAccessReviewVersion: v1",
            "failurePolicy: Deny",
            "connectionInfo: {type: KubeConfigFile, kubeConfigFile: /etc/hostname}",
            "matchConditions: [{expression: 'has(request.resourceAttributes) && request.resourceAttributes.namespace == \"x\"'}]",
        ];
        let key = change.split(':').next().unwrap_or_default();
        fields.retain(|field| field.split(':').next() != Some(key));
        if !change.ends_with('-') {
            fields.push(change);
        }
        format!(
            "authorizers:\n- type: Webhook\n  name: hook\n  webhook:\n    {}\n- {{type: RBAC, name: rbac}}\n",
            fields.join("\n    ")
        )
    }

    #[test]
    fn upstreams_files_are_read() {
        let row = parsed(&hook("authorizedTTL: 1m")).unwrap();
        assert_eq!(row.len(), 2);
        let What::Webhook(webhook) = &row[0].what else {
            panic!("a webhook")
        };
        assert!(webhook.fail_closed);
        assert_eq!(webhook.authorized, Duration::from_secs(60));
        assert_eq!(webhook.unauthorized, Duration::from_secs(30));
        assert_eq!(webhook.conditions.len(), 1);
    }

    #[test]
    fn wrong_files_are_refused_in_upstreams_words() {
        for (file, why) in [
            (
                "authorizers: []".to_owned(),
                "authorizers: Required value: at least one authorization mode must be defined",
            ),
            (
                "authorizers: [{type: Magic, name: x}]".to_owned(),
                "authorizers[0].type: Unsupported value: \"Magic\"",
            ),
            (
                "authorizers: [{type: ABAC, name: x}]".to_owned(),
                "ABAC is not supported here",
            ),
            (
                "authorizers: [{type: RBAC, name: a}, {type: RBAC, name: b}]".to_owned(),
                "authorizers[1].type: Duplicate value: \"RBAC\"",
            ),
            (
                "authorizers: [{type: RBAC, name: a}, {type: Node, name: a}]".to_owned(),
                "authorizers[1].name: Duplicate value: \"a\"",
            ),
            (
                "authorizers: [{type: RBAC, name: A}]".to_owned(),
                "authorizer name is invalid: a lowercase RFC 1123 subdomain",
            ),
            (
                "authorizers: [{type: Webhook, name: a}]".to_owned(),
                "authorizers[0].webhook: Required value: required when type=Webhook",
            ),
            (hook("timeout: -"), "authorizers[0].timeout: Required value"),
            (hook("timeout: 31s"), "must be > 0s and <= 30s"),
            (
                hook("failurePolicy: Allow"),
                "authorizers[0].failurePolicy: Unsupported value: \"Allow\"",
            ),
            (hook("subjectAccessReviewVersion: v2"), "Unsupported value: \"v2\""),
            (
                hook("matchConditionSubjectAccessReviewVersion: -"),
                "Required value: required if match conditions are specified",
            ),
            (
                hook("connectionInfo: {type: KubeConfigFile, kubeConfigFile: here}"),
                "must be an absolute path",
            ),
            (
                hook("connectionInfo: {type: InClusterConfig}"),
                "cannot be asked through itself",
            ),
            (
                hook("matchConditions: [{expression: request.user}]"),
                "matchConditions[0].expression: Invalid value: \"request.user\": must evaluate to bool",
            ),
            (
                hook("matchConditions: [{expression: 'request.usr == \"x\"'}]"),
                "undefined field 'usr'",
            ),
        ] {
            let Err(found) = parsed(&file) else {
                panic!("{file} is accepted")
            };
            assert!(found.contains(why), "{file}\n{found}\n{why}");
        }
    }

    #[test]
    fn options_make_a_row() {
        let with = |modes: &[&str]| Options {
            modes: modes.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        let names = |options: &Options| -> Result<Vec<String>, String> {
            Ok(of_options(options)?.into_iter().map(|one| one.name).collect())
        };
        assert_eq!(names(&with(&[])).unwrap(), ["node", "rbac"]);
        assert_eq!(names(&with(&["RBAC", "AlwaysAllow"])).unwrap(), ["rbac", "alwaysallow"]);
        for (options, why) in [
            (with(&["Magic"]), "is not a valid mode"),
            (with(&["ABAC"]), "not supported here"),
            (with(&["RBAC", "RBAC"]), "more than once"),
            (with(&["Webhook"]), "config file not passed"),
            (
                Options {
                    webhook_config_file: Some("/x".into()),
                    ..with(&["RBAC"])
                },
                "without mode Webhook",
            ),
        ] {
            assert!(names(&options).unwrap_err().contains(why), "{options:?}");
        }
    }
}
