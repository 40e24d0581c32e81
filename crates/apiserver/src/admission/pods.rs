//! What Pods get from the cluster: their priority, the tolerations of node failures, their runtime class's overhead.

use async_trait::async_trait;
use sampan_api::Object;
use sampan_api::quantity::Quantity;
use serde_json::{Value, json};

use super::{Notes, Operation, Plugin, Reader, Review, spec_list, text};
use crate::Refusal;

fn creates_pod(review: &Review<'_>) -> bool {
    review.operation == Operation::Create && review.is_core("pods")
}

/// Priority: class name to number.
pub struct Priority(Reader);

impl Priority {
    pub fn new(reader: Reader) -> Self {
        Priority(reader)
    }

    /// Name, value and preemption policy of the global default class; the smallest value wins if there are several.
    fn default_class(&self) -> Option<(String, i64, String)> {
        self.0
            .all("priorityclasses")
            .iter()
            .filter(|entry| entry.at(&["globalDefault"]) == Some(Value::Bool(true)))
            .map(|entry| class_of(&entry.object()))
            .min_by_key(|(_, value, _)| *value)
    }
}

/// An update that leaves out what this plugin once filled in means no harm.
fn keep_priority(pod: &mut Object, old: &Object) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for field in ["priority", "preemptionPolicy"] {
        if let Some(before) = old.pointer(&format!("/spec/{field}"))
            && spec.get(field).is_none_or(Value::is_null)
        {
            spec.insert(field.into(), before.clone());
        }
    }
}

fn class_of(class: &Object) -> (String, i64, String) {
    let policy = match text(class, "/preemptionPolicy") {
        "" => "PreemptLowerPriority",
        policy => policy,
    };
    (
        text(class, "/metadata/name").to_owned(),
        class.get("value").and_then(Value::as_i64).unwrap_or(0),
        policy.to_owned(),
    )
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        writes && (review.is_core("pods") || review.row.is("scheduling.k8s.io", "priorityclasses"))
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        if !review.row.is("", "pods") {
            return Ok(());
        }
        if let Some(old) = review.old {
            keep_priority(pod, old);
            return Ok(());
        }
        let asked = text(pod, "/spec/priorityClassName").to_owned();
        let (name, value, policy) = if asked.is_empty() {
            self.default_class()
                .unwrap_or((String::new(), 0, "PreemptLowerPriority".into()))
        } else {
            match self.0.get("priorityclasses", &asked) {
                Some(class) => class_of(&class.object()),
                None => return Err(review.refuse(pod, &format!("no PriorityClass with name {asked} was found"))),
            }
        };
        let stated = pod.pointer("/spec/priority").and_then(Value::as_i64);
        if stated.is_some_and(|stated| stated != value) {
            return Err(review.refuse(
                pod,
                &format!(
                    "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
                    stated.unwrap_or_default()
                ),
            ));
        }
        let stated = pod.pointer("/spec/preemptionPolicy").and_then(Value::as_str);
        if let Some(stated) = stated.filter(|stated| *stated != policy) {
            return Err(review.refuse(
                pod,
                &format!(
                    "the string value of PreemptionPolicy ({stated}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
                ),
            ));
        }
        if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
            if !name.is_empty() {
                spec.insert("priorityClassName".into(), name.into());
            }
            spec.insert("priority".into(), value.into());
            spec.insert("preemptionPolicy".into(), policy.into());
        }
        Ok(())
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(class) = object.filter(|_| !review.row.is("", "pods")) else {
            return Ok(());
        };
        if class.get("globalDefault").and_then(Value::as_bool) != Some(true) {
            return Ok(());
        }
        match self.default_class() {
            Some((name, ..)) if name != text(class, "/metadata/name") => Err(review.refuse(
                class,
                &format!("PriorityClass {name} is already marked as globalDefault"),
            )),
            _ => Ok(()),
        }
    }
}

/// DefaultTolerationSeconds: Pods stay five minutes on a node that is gone.
pub struct DefaultTolerations;

const UNTIL_EVICTED: i64 = 300;

#[async_trait]
impl Plugin for DefaultTolerations {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    // An update that leaves them out means no harm: they are there again.
    fn handles(&self, review: &Review<'_>) -> bool {
        creates_pod(review) || (review.operation == Operation::Update && review.is_core("pods"))
    }

    async fn mutate(&self, _: &Review<'_>, pod: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        let tolerations = spec_list(pod, "tolerations");
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let covered = tolerations.iter().any(|toleration| {
                let own = text(toleration, "/key");
                (own == key || own.is_empty()) && matches!(text(toleration, "/effect"), "NoExecute" | "")
            });
            if !covered {
                tolerations.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": UNTIL_EVICTED}));
            }
        }
        Ok(())
    }
}

/// RuntimeClass: overhead, and where Pods of the class may run.
pub struct RuntimeClass(Reader);

impl RuntimeClass {
    pub fn new(reader: Reader) -> Self {
        RuntimeClass(reader)
    }

    /// The class a Pod names; a Pod that names one which is not there is refused.
    fn class(&self, review: &Review<'_>, pod: &Object) -> Result<Option<Object>, Refusal> {
        let name = text(pod, "/spec/runtimeClassName");
        if name.is_empty() {
            return Ok(None);
        }
        match self.0.get("runtimeclasses", name) {
            Some(class) => Ok(Some(class.object())),
            None => Err(review.refuse(pod, &format!("pod rejected: RuntimeClass {name:?} not found"))),
        }
    }
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        creates_pod(review)
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        let Some(class) = self.class(review, pod)? else {
            return Ok(());
        };
        if let Some(fixed) = class.pointer("/overhead/podFixed") {
            match pod.pointer("/spec/overhead") {
                Some(own) if !same_amounts(fixed, own) => return Err(review.refuse(pod, DIFFERENT_OVERHEAD)),
                _ => pod["spec"]["overhead"] = fixed.clone(),
            }
        }
        if let Some(selector) = class.pointer("/scheduling/nodeSelector").and_then(Value::as_object) {
            let spec = sampan_api::meta::ensure_map(&mut pod["spec"]);
            let own = sampan_api::meta::ensure_map(spec.entry("nodeSelector").or_insert(Value::Null));
            for (key, value) in selector {
                if own.get(key).is_some_and(|known| known != value) {
                    return Err(review.refuse(
                        pod,
                        &format!("conflict: runtimeClass.scheduling.nodeSelector[{key}] differs from the pod's"),
                    ));
                }
                own.insert(key.clone(), value.clone());
            }
        }
        if let Some(more) = class.pointer("/scheduling/tolerations").and_then(Value::as_array) {
            let tolerations = spec_list(pod, "tolerations");
            for toleration in more {
                if !tolerations.contains(toleration) {
                    tolerations.push(toleration.clone());
                }
            }
        }
        Ok(())
    }

    async fn validate(&self, review: &Review<'_>, object: Option<&Object>, _: &mut Notes) -> Result<(), Refusal> {
        let Some(pod) = object else { return Ok(()) };
        let class = self.class(review, pod)?;
        let fixed = class.as_ref().and_then(|class| class.pointer("/overhead/podFixed"));
        match (fixed, pod.pointer("/spec/overhead")) {
            (None, Some(_)) => Err(review.refuse(
                pod,
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            (Some(fixed), own) if !same_amounts(fixed, own.unwrap_or(&Value::Null)) => {
                Err(review.refuse(pod, DIFFERENT_OVERHEAD))
            }
            _ => Ok(()),
        }
    }
}

const DIFFERENT_OVERHEAD: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

/// Whether two maps of quantities say the same, in whatever units.
fn same_amounts(one: &Value, other: &Value) -> bool {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else {
        return one == other;
    };
    let same = |a: &Value, b: &Value| match (Quantity::from_value(a), Quantity::from_value(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    one.len() == other.len() && one.iter().all(|(name, a)| other.get(name).is_some_and(|b| same(a, b)))
}
