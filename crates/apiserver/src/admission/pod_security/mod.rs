//! PodSecurity: namespaces say by labels how strictly their Pods are held to the Pod security standards.
//!
//! Pods that violate what is enforced are refused; violations of what is warned of are told, for Pods and for the
//! templates of controllers. Labels are checked when a namespace is written, and existing Pods against a stricter level.
//!
//! What would be enforced and what violates the audited standard is noted for the audit log.

#[cfg(test)]
mod cases;
mod checks;
mod policy;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sampan_api::field::Errors;
use sampan_api::status::Status;
use sampan_api::{Object, meta};
use serde_json::Value;

use super::{Notes, Operation, Plugin, Reader, Review};
use crate::{Refusal, refuse};
use checks::Subject;
pub use policy::Policy;
use policy::{Level, Standard};

/// How many Pods of a namespace are looked at when its level changes, and for how long.
const PODS: usize = 3000;
const TIME: Duration = Duration::from_secs(1);
/// Begins the names of what is noted for the audit log.
const PREFIX: &str = "pod-security.kubernetes.io/";
/// Views of a Pod that cannot change what it may do.
const IGNORED: [&str; 8] = [
    "exec",
    "attach",
    "binding",
    "eviction",
    "log",
    "portforward",
    "proxy",
    "status",
];

/// Who is left alone.
#[derive(Clone, Debug, Default)]
pub struct Exemptions {
    pub namespaces: Vec<String>,
    pub users: Vec<String>,
    pub runtime_classes: Vec<String>,
}

impl Exemptions {
    fn has(list: &[String], name: &str) -> bool {
        !name.is_empty() && list.iter().any(|known| known == name)
    }
}

/// What holds besides the labels of namespaces.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Where labels say nothing.
    pub defaults: Policy,
    pub exemptions: Exemptions,
}

pub struct PodSecurity {
    reader: Reader,
    defaults: Policy,
    exempt: Exemptions,
}

/// Where a resource keeps the template of its Pods.
fn template(group: &str, plural: &str) -> Option<&'static str> {
    Some(match (group, plural) {
        ("", "podtemplates") => "/template",
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => "/spec/template",
        ("batch", "cronjobs") => "/spec/jobTemplate/spec/template",
        _ => return None,
    })
}

impl PodSecurity {
    pub fn new(reader: Reader, configuration: Configuration) -> Self {
        PodSecurity {
            reader,
            defaults: configuration.defaults,
            exempt: configuration.exemptions,
        }
    }

    /// What the namespace of a request asks for, and what is wrong with how it does.
    fn policy(&self, namespace: &str) -> Option<(Policy, Errors)> {
        let storage = self.reader.storage("namespaces")?;
        let entry = storage.get(namespace)?;
        let labels = &entry.attributes(storage.fields()).labels;
        let labels = labels.iter().map(|(key, value)| (&**key, &**value));
        Some(Policy::of(labels, self.defaults))
    }

    fn exempts_class(&self, pod: &Value) -> bool {
        let class = pod.pointer("/spec/runtimeClassName").and_then(Value::as_str);
        Exemptions::has(&self.exempt.runtime_classes, class.unwrap_or_default())
    }

    fn namespace(&self, review: &Review<'_>, namespace: &Object, notes: &mut Notes) -> Result<(), Refusal> {
        let name = meta::name(namespace);
        let (new, errors) = Policy::of(meta::labels(namespace), self.defaults);
        let before = review.old.map(|old| Policy::of(meta::labels(old), self.defaults));
        let told = before
            .as_ref()
            .is_some_and(|(_, old)| !old.is_empty() && *old == errors);
        if !errors.is_empty() && !told {
            return Err(refuse(Status::invalid("", "Namespace", name, &errors)));
        }
        if let Some((old, _)) = before {
            let relaxed = new.enforce.version == old.enforce.version && new.enforce.level <= old.enforce.level;
            if new.enforce == old.enforce || new.enforce.level == Level::Privileged || relaxed {
                return Ok(());
            }
        }
        if Exemptions::has(&self.exempt.namespaces, name) {
            if !new.is_privileged() && !new.same_as(&self.defaults) {
                notes.warn(format!(
                    "namespace {name:?} is exempt from Pod Security, and the policy ({}) will be ignored",
                    new.stated(meta::labels(namespace))
                ));
            }
        } else if review.operation == Operation::Update {
            for warning in self.existing(name, new.enforce) {
                notes.warn(warning);
            }
        }
        Ok(())
    }

    /// What a new level would say of the Pods that are there.
    fn existing(&self, namespace: &str, standard: Standard) -> Vec<String> {
        let until = Instant::now() + TIME;
        let entries = self.reader.entries_in_namespace("pods", namespace);
        let (mut seen, mut first, mut later) = (HashSet::new(), Vec::new(), Vec::new());
        for entry in entries {
            let pod = entry.object();
            if self.exempts_class(&pod) {
                continue;
            }
            match meta::controller_of(&pod) {
                Some(owner) if !seen.insert(owner.uid.clone()) => later.push(pod),
                _ => first.push(pod),
            }
        }
        first.extend(later);
        let total = first.len();
        let mut checked = 0;
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pod in first.iter().take(PODS) {
            checked += 1;
            let violations = checks::violations(standard, &Subject::new(pod));
            if !violations.is_empty() {
                let names = found.entry(checks::reasons(&violations)).or_default();
                names.push(meta::name(pod).to_owned());
            }
            if Instant::now() > until {
                break;
            }
        }
        let mut warnings = Vec::new();
        if checked < total {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
            ));
        }
        if !found.is_empty() {
            warnings.push(format!(
                "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\""
            ));
        }
        let mut pods: Vec<String> = found
            .into_iter()
            .map(|(why, names)| {
                let name = names.iter().min().map_or("", String::as_str);
                match names.len() {
                    1 => format!("{name}: {why}"),
                    2 => format!("{name} (and 1 other pod): {why}"),
                    more => format!("{name} (and {} other pods): {why}", more - 1),
                }
            })
            .collect();
        pods.sort();
        warnings.extend(pods);
        warnings
    }

    /// Holds a Pod, or a template of one, to its namespace's standards.
    fn pod(
        &self,
        review: &Review<'_>,
        (policy, errors): (Policy, Errors),
        pod: &Object,
        enforce: bool,
        notes: &mut Notes,
    ) -> Result<(), Refusal> {
        if self.exempts_class(pod) {
            note(notes, "exempt", "runtimeClass");
            return Ok(());
        }
        if !errors.is_empty() {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let all = match texts.as_slice() {
                [one] => one.clone(),
                several => format!("[{}]", several.join(", ")),
            };
            note(notes, "error", format!("Failed to parse policy: {all}"));
        }
        let subject = Subject::new(pod);
        // Modes often agree on the standard, which is then looked at once.
        let mut looked: Vec<(Standard, String)> = Vec::new();
        let mut look = |standard: Standard| -> String {
            if let Some((_, found)) = looked.iter().find(|(known, _)| *known == standard) {
                return found.clone();
            }
            let found = checks::details(&checks::violations(standard, &subject));
            looked.push((standard, found.clone()));
            found
        };
        let mut refused = None;
        if enforce {
            note(notes, "enforce-policy", policy.enforce.to_string());
            let found = look(policy.enforce);
            if !found.is_empty() {
                let why = format!("violates PodSecurity \"{}\": {found}", policy.enforce);
                refused = Some(review.refuse(pod, &why));
            }
        }
        let would = |standard: Standard, found: String| format!("would violate PodSecurity \"{standard}\": {found}");
        let found = look(policy.audit);
        if !found.is_empty() {
            note(notes, "audit-violations", would(policy.audit, found));
        }
        // Who is refused needs no warning.
        if let Some(refused) = refused {
            return Err(refused);
        }
        let found = look(policy.warn);
        if !found.is_empty() {
            notes.warn(would(policy.warn, found));
        }
        Ok(())
    }
}

fn note(notes: &mut Notes, name: &str, text: impl Into<String>) {
    notes.annotate(format!("{PREFIX}{name}"), text);
}

/// Whether an update of a Pod can change what it may do: other images, or more containers.
fn is_significant(new: &Object, old: &Object) -> bool {
    let list = |pod: &Object, field: &str| -> Vec<(String, String)> {
        let text = |container: &Value, field: &str| {
            let text = container.get(field).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let all = pod.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
        all.into_iter()
            .flatten()
            .map(|container| (text(container, "name"), text(container, "image")))
            .collect()
    };
    let images = |pod, field| -> Vec<String> { list(pod, field).into_iter().map(|(_, image)| image).collect() };
    if ["containers", "initContainers"]
        .iter()
        .any(|field| images(new, field) != images(old, field))
    {
        return true;
    }
    let before = list(old, "ephemeralContainers");
    list(new, "ephemeralContainers").iter().any(|one| !before.contains(one))
}

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        let spec = review.row.spec;
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        writes
            && match (spec.group, spec.plural) {
                ("", "pods") => !IGNORED.contains(&review.subresource),
                ("", "namespaces") => review.subresource.is_empty(),
                (group, plural) => review.subresource.is_empty() && template(group, plural).is_some(),
            }
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, notes: &mut Notes) -> Result<(), Refusal> {
        let Some(object) = object else { return Ok(()) };
        let spec = review.row.spec;
        if review.row.is("", "namespaces") {
            return self.namespace(review, object, notes);
        }
        let namespace = Exemptions::has(&self.exempt.namespaces, review.namespace).then_some("namespace");
        let user = || Exemptions::has(&self.exempt.users, &review.user.name).then_some("user");
        if let Some(by) = namespace.or_else(user) {
            note(notes, "exempt", by);
            return Ok(());
        }
        let is_pod = review.row.is("", "pods");
        let Some(policy) = self.policy(review.namespace) else {
            let why = format!("failed to lookup namespace {:?}", review.namespace);
            note(notes, "error", why.clone());
            return if is_pod {
                Err(refuse(Status::internal(why)))
            } else {
                Ok(())
            };
        };
        if policy.0.is_privileged() && policy.1.is_empty() {
            if is_pod {
                note(notes, "enforce-policy", policy.0.enforce.to_string());
            }
            return Ok(());
        }
        if is_pod {
            if review.old.is_some_and(|old| !is_significant(object, old)) {
                return Ok(());
            }
            return self.pod(review, policy, object, true, notes);
        }
        match template(spec.group, spec.plural).and_then(|pointer| object.pointer(pointer)) {
            Some(template) if !template.is_null() => self.pod(review, policy, template, false, notes),
            _ => Ok(()),
        }
    }
}
