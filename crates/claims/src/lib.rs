//! Claims and volumes: which belong together, and what says so. Pure functions, shared by everyone who binds (the binder
//! controller, the scheduler) or makes volumes (the local provisioner), so that they cannot disagree.
//!
//! A binding is two references and two marks. The volume's `spec.claimRef` is written first; it is the one place where
//! a race for a volume is decided. The claim's `spec.volumeName` follows, with [`BIND_COMPLETED`]. [`BOUND_BY_CONTROLLER`]
//! on either says that the reference was not a user's and may be taken back.

mod affinity;
pub mod local;
mod matching;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::StorageClass;
use sampan_api::quantity::Quantity;

pub use affinity::{labels_match, node_affinity, terms_match};
pub use matching::{Mismatch, access_modes, capacity, find, mode, satisfies};

/// On a claim: it has been bound, completely, at least once.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume: its reference to the other was not made by a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node that the scheduler chose for its first Pod, and so where the volume has to be.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to make a volume for it.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub const BETA_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a volume: its in-tree provisioner was replaced by this CSI driver.
pub const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// On a volume: what the file system still has, while it is being made larger.
pub const PRE_RESIZE_CAPACITY: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
/// The provisioner of classes whose volumes people make.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// In-tree provisioners whose volumes a CSI driver has taken over, and which driver.
const MIGRATED: [(&str, &str); 7] = [
    ("kubernetes.io/aws-ebs", "ebs.csi.aws.com"),
    ("kubernetes.io/azure-disk", "disk.csi.azure.com"),
    ("kubernetes.io/azure-file", "file.csi.azure.com"),
    ("kubernetes.io/cinder", "cinder.csi.openstack.org"),
    ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io"),
    ("kubernetes.io/portworx-volume", "pxd.portworx.com"),
    ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com"),
];

/// The CSI driver that has taken over an in-tree provisioner.
pub fn migrated(provisioner: &str) -> Option<&'static str> {
    let found = MIGRATED.iter().find(|(in_tree, _)| *in_tree == provisioner);
    found.map(|(_, driver)| *driver)
}

type Annotations = std::collections::BTreeMap<String, String>;

/// One annotation.
pub fn annotation<'a>(annotations: &'a Option<Annotations>, key: &str) -> Option<&'a str> {
    annotations.as_ref()?.get(key).map(String::as_str)
}

/// The class a claim asks for, the old annotation first; empty for none.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    annotation(&claim.metadata.annotations, BETA_CLASS)
        .or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

/// Whether a claim says anything about its class, if only that it wants none.
pub fn has_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata.annotations, BETA_CLASS).is_some()
        || claim
            .spec
            .as_ref()
            .is_some_and(|spec| spec.storage_class_name.is_some())
}

/// The class a volume is of; empty for none.
pub fn volume_class(volume: &PersistentVolume) -> &str {
    annotation(&volume.metadata.annotations, BETA_CLASS)
        .or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

/// Whether volumes of a class wait for a Pod to be placed.
pub fn is_delayed(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The class for claims that name none: the newest of those marked as default, the smaller name among equals.
pub fn default_class<'a>(classes: impl Iterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let marked = |class: &&StorageClass| {
        DEFAULT_CLASS
            .iter()
            .any(|key| annotation(&class.metadata.annotations, key) == Some("true"))
    };
    let name = |class: &StorageClass| class.metadata.name.clone();
    classes.filter(marked).max_by(|a, b| {
        let made = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        made(a).cmp(&made(b)).then_with(|| name(b).cmp(&name(a)))
    })
}

/// The volume a claim names; `None` while it names none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let name = claim.spec.as_ref()?.volume_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

/// Whether a claim has been bound, and still names its volume.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    volume_name(claim).is_some() && annotation(&claim.metadata.annotations, BIND_COMPLETED).is_some()
}

/// Whether a volume is bound to the claim, or kept for it by name.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = claim_ref(volume) else {
        return false;
    };
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// The claim a volume names.
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// A reference to a claim, as volumes hold it.
pub fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// The volume as it is once bound to the claim; `None` if it is already.
pub fn bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let kept = is_for(volume, claim);
    let complete = kept && claim_ref(volume).is_some_and(|known| known.uid == claim.metadata.uid);
    if complete {
        return None;
    }
    let mut bound = volume.clone();
    bound.spec.get_or_insert_default().claim_ref = Some(reference(claim));
    if !kept {
        mark(&mut bound.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
    }
    Some(bound)
}

/// Sets an annotation.
pub fn mark(annotations: &mut Option<Annotations>, key: &str, value: &str) {
    annotations
        .get_or_insert_default()
        .insert(key.to_owned(), value.to_owned());
}

/// How much a claim asks for.
pub fn request(claim: &PersistentVolumeClaim) -> Quantity {
    let asked = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    asked
        .and_then(|quantity| Quantity::parse(&quantity.0).ok())
        .unwrap_or_else(Quantity::zero)
}

/// The claim a Pod's volume stands for: the one it names, or the one made for a generic ephemeral volume.
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(ephemeral_name(pod, &volume.name)),
        (None, None) => None,
    }
}

/// The name of the claim of a generic ephemeral volume.
pub fn ephemeral_name(pod: &Pod, volume: &str) -> String {
    format!("{}-{volume}", pod.metadata.name.as_deref().unwrap_or_default())
}

/// The claims of a Pod.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| claim_of(pod, volume)).collect()
}

/// Whether the claim was made for this very Pod, as the claims of ephemeral volumes must be.
pub fn is_owned_by(claim: &PersistentVolumeClaim, pod_uid: &str) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners
        .into_iter()
        .any(|owner| owner.controller == Some(true) && owner.uid == pod_uid)
}

/// The name of the volume that a provisioner makes for a claim: one claim, one volume, however often it is tried.
pub fn provisioned_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn classes(list: Value) -> Vec<StorageClass> {
        serde_json::from_value(list).unwrap()
    }

    #[test]
    fn the_newest_default_counts() {
        let class = |name: &str, time: &str, default: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": time,
                "annotations": {DEFAULT_CLASS[0]: default}}, "provisioner": "x"})
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        for (list, expected) in [
            (json!([class("a", old, "true"), class("b", new, "true")]), Some("b")),
            (json!([class("b", new, "true"), class("a", new, "true")]), Some("a")),
            (json!([class("a", old, "true"), class("b", new, "false")]), Some("a")),
            (json!([class("a", old, "")]), None),
        ] {
            let list = classes(list);
            let found = default_class(list.iter()).and_then(|class| class.metadata.name.as_deref());
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_volume_is_marked_unless_a_user_kept_it_for_the_claim() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}})).unwrap();
        let volume = |reference: Value| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": {"claimRef": reference}})).unwrap()
        };
        let marked =
            |volume: &PersistentVolume| annotation(&volume.metadata.annotations, BOUND_BY_CONTROLLER).is_some();
        let free = bound_to(&volume(Value::Null), &claim).unwrap();
        assert!(marked(&free) && is_for(&free, &claim));
        assert!(bound_to(&free, &claim).is_none());
        let kept = bound_to(&volume(json!({"name": "c", "namespace": "n"})), &claim).unwrap();
        assert!(!marked(&kept));
        assert_eq!(claim_ref(&kept).unwrap().uid.as_deref(), Some("u"));
        let another = volume(json!({"name": "c", "namespace": "n", "uid": "other"}));
        assert!(!is_for(&another, &claim));
    }
}
