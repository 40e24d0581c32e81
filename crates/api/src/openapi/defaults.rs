//! The `default` of properties in OpenAPI 3.
//!
//! Upstream prints one for every field that Go's encoder always writes: the zero of a required scalar that is no
//! pointer, an empty object for a struct held by value, and the few defaults its types declare. The rules are
//! below; what does not follow from the schema is a table. Version 2 has none.

use serde_json::{Value, json};

use crate::schema::{Definition, Field, Type};

/// Required scalars that are pointers in Go, or kinds of text of their own: no default.
const NONE: &[(&str, &str)] = &[
    ("MutatingWebhook", "sideEffects"),
    ("ValidatingWebhook", "sideEffects"),
    ("ValidatingAdmissionPolicyBindingSpec", "policyName"),
    ("TokenReviewSpec", "token"),
    ("CertificateSigningRequestSpec", "request"),
    ("ContainerRestartRule", "action"),
    ("ContainerRestartRuleOnExitCodes", "operator"),
    ("ImageVolumeStatus", "imageRef"),
    ("PodCertificateProjection", "keyType"),
    ("PodCertificateProjection", "signerName"),
    ("HTTPIngressPath", "pathType"),
    ("ParentReference", "name"),
    ("ParentReference", "resource"),
];

/// Optional scalars that Go always writes: the default is their zero.
const ZERO: &[(&str, &str)] = &[
    ("StatefulSetOrdinals", "start"),
    ("StatefulSetSpec", "serviceName"),
    ("StatefulSetStatus", "availableReplicas"),
    ("TokenRequestStatus", "token"),
    ("ScaleSpec", "replicas"),
    ("PodFailurePolicyOnPodConditionsPattern", "status"),
    ("ConfigMapEnvSource", "name"),
    ("ConfigMapKeySelector", "name"),
    ("ConfigMapProjection", "name"),
    ("ConfigMapVolumeSource", "name"),
    ("FileKeySelector", "optional"),
    ("GRPCAction", "service"),
    ("LocalObjectReference", "name"),
    ("NodeRuntimeHandler", "name"),
    ("SecretEnvSource", "name"),
    ("SecretKeySelector", "name"),
    ("SecretProjection", "name"),
    ("AzureDiskVolumeSource", "readOnly"),
    ("ReplicationControllerSpec", "minReadySeconds"),
    ("FlowSchemaSpec", "matchingPrecedence"),
    ("QueuingConfiguration", "handSize"),
    ("QueuingConfiguration", "queueLengthLimit"),
    ("QueuingConfiguration", "queues"),
    ("PodDisruptionBudgetStatus", "currentHealthy"),
    ("PodDisruptionBudgetStatus", "desiredHealthy"),
    ("PodDisruptionBudgetStatus", "disruptionsAllowed"),
    ("PodDisruptionBudgetStatus", "expectedPods"),
    ("RoleRef", "apiGroup"),
    ("PriorityClass", "value"),
];

/// Defaults that types declare.
const TEXT: &[(&str, &str, &str)] = &[
    ("AzureDiskVolumeSource", "cachingMode", "ReadWrite"),
    ("AzureDiskVolumeSource", "fsType", "ext4"),
    ("AzureDiskVolumeSource", "kind", "Shared"),
    ("ContainerPort", "protocol", "TCP"),
    ("ServicePort", "protocol", "TCP"),
    ("DeviceToleration", "operator", "Equal"),
    ("ISCSIPersistentVolumeSource", "iscsiInterface", "default"),
    ("ISCSIVolumeSource", "iscsiInterface", "default"),
    ("RBDPersistentVolumeSource", "keyring", "/etc/ceph/keyring"),
    ("RBDPersistentVolumeSource", "pool", "rbd"),
    ("RBDPersistentVolumeSource", "user", "admin"),
    ("RBDVolumeSource", "keyring", "/etc/ceph/keyring"),
    ("RBDVolumeSource", "pool", "rbd"),
    ("RBDVolumeSource", "user", "admin"),
    ("ScaleIOPersistentVolumeSource", "fsType", "xfs"),
    ("ScaleIOPersistentVolumeSource", "storageMode", "ThinProvisioned"),
    ("ScaleIOVolumeSource", "fsType", "xfs"),
    ("ScaleIOVolumeSource", "storageMode", "ThinProvisioned"),
];

/// The default of a definition's field, if it has one.
pub(super) fn of(definition: &Definition, field: &Field) -> Option<Value> {
    let at = (definition.short_name(), field.name.as_ref());
    if let Some((_, _, text)) = TEXT.iter().find(|(owner, name, _)| (*owner, *name) == at) {
        return Some((*text).into());
    }
    match at {
        ("ReplicationControllerSpec", "replicas") => return Some(1.into()),
        // The core group's Events write these always; the newer group's do not.
        ("Event", "reportingComponent" | "reportingInstance") if definition.name.contains(".core.") => {
            return Some("".into());
        }
        _ => {}
    }
    if NONE.contains(&at) {
        return None;
    }
    let zero = match &field.ty {
        Type::String | Type::Bytes => json!(""),
        Type::Bool => json!(false),
        Type::Int32 | Type::Int64 => json!(0),
        // A struct held by value is always there, empty or not; a pointer to one is not.
        Type::Def(_) if !field.keep_zero => return Some(json!({})),
        _ => return None,
    };
    (field.required || ZERO.contains(&at)).then_some(zero)
}
