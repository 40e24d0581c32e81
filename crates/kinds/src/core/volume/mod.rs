//! PersistentVolumes and PersistentVolumeClaims.

mod validate;

pub(crate) use validate::claim_spec;

use jiff::Timestamp;
use sampan_api::{Object, time};
use serde_json::Value;

use crate::defaults::Fill;
use crate::pod_spec::quantities;
use crate::print::{AGE, NAME, age, cell, cell_or, name, or, text};
use crate::rules::{RULES as PLAIN, Rules};
use crate::spec::{Column, MetadataCheck, Part};
use crate::tree;
use crate::warnings;

pub(crate) static RULES: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.persistentVolumeReclaimPolicy", Fill::Text("Retain")),
        ("spec.volumeMode", Fill::Pointer("Filesystem")),
        ("spec.hostPath.type", Fill::Text("")),
        ("spec.iscsi.iscsiInterface", Fill::Text("default")),
        ("spec.rbd.pool", Fill::Text("rbd")),
        ("spec.rbd.user", Fill::Text("admin")),
        ("spec.rbd.keyring", Fill::Text("/etc/ceph/keyring")),
        ("spec.azureDisk.cachingMode", Fill::Text("ReadWrite")),
        ("spec.azureDisk.fsType", Fill::Text("ext4")),
        ("spec.azureDisk.readOnly", Fill::Bool(false)),
        ("spec.azureDisk.kind", Fill::Text("Shared")),
        ("spec.scaleIO.storageMode", Fill::Text("ThinProvisioned")),
        ("spec.scaleIO.fsType", Fill::Text("xfs")),
        ("status", Fill::Map),
        ("status.phase", Fill::Text("Pending")),
    ],
    create: |volume| {
        tree::set(volume, "status.phase", "Pending");
        tree::set(volume, "status.lastPhaseTransitionTime", time::now());
    },
    update: |part, new, old| {
        if part == Part::View("status") {
            phase_time(new, old);
        }
    },
    default: |volume| quantities::canonical_at(volume, &["spec.capacity"]),
    metadata: &[MetadataCheck::Whole, MetadataCheck::Whole],
    validate: validate::volume,
    validate_update: validate::volume_update,
    warnings: warnings::volume,
    ..PLAIN
};

pub(crate) static CLAIM_RULES: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.volumeMode", Fill::Pointer("Filesystem")),
        ("spec.resources", Fill::Map),
        ("status", Fill::Map),
        ("status.phase", Fill::Text("Pending")),
    ],
    default: |claim| {
        quantities::canonical_at(
            claim,
            &[
                "spec.resources.requests",
                "spec.resources.limits",
                "status.capacity",
                "status.allocatedResources",
            ],
        );
    },
    create: |claim| normalize_sources(claim, false),
    update: |part, new, old| {
        if part == Part::Main {
            normalize_sources(new, tree::get(old, "spec.dataSource").is_some());
        }
    },
    metadata: &[MetadataCheck::Change, MetadataCheck::Whole],
    validate_create: validate::claim,
    validate_update: validate::claim_update,
    warnings: warnings::claim,
    ..PLAIN
};

/// When the phase changed: now, unless the writer says when.
fn phase_time(new: &mut Object, old: &Object) {
    const TIME: &str = "status.lastPhaseTransitionTime";
    let told = tree::get(new, TIME).is_some();
    if tree::same_at(new, old, "status.phase") {
        if !told {
            tree::carry(new, old, TIME);
        }
    } else if !told || tree::same_at(new, old, TIME) {
        tree::set(new, TIME, time::now());
    }
}

/// `dataSource` and `dataSourceRef` say the same; the older field knows claims and snapshots only and, as it always
/// did, forgets anything else a new claim says there. A source in another namespace is not served.
fn normalize_sources(claim: &mut Object, had_source: bool) {
    let namespace = "spec.dataSourceRef.namespace";
    if !tree::text(claim, namespace).is_empty() {
        tree::remove(claim, "spec.dataSourceRef");
    }
    let known = match tree::text(claim, "spec.dataSource.kind") {
        "PersistentVolumeClaim" => tree::text(claim, "spec.dataSource.apiGroup").is_empty(),
        "VolumeSnapshot" => tree::text(claim, "spec.dataSource.apiGroup") == "snapshot.storage.k8s.io",
        _ => false,
    };
    let source = tree::get(claim, "spec.dataSource").cloned();
    let reference = tree::get(claim, "spec.dataSourceRef").cloned();
    match (source, reference) {
        (Some(source), None) if known || had_source => tree::set(claim, "spec.dataSourceRef", source),
        (Some(_), None) => {
            tree::remove(claim, "spec.dataSource");
        }
        (None, Some(reference)) => tree::set(claim, "spec.dataSource", reference),
        _ => {}
    }
}

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    text("Capacity", "How much it holds."),
    text("Access Modes", "How it may be mounted."),
    text("Reclaim Policy", "What happens to it when its claim goes."),
    text("Status", "Its phase."),
    text("Claim", "The claim it is bound to."),
    text("StorageClass", "The class it belongs to."),
    text("VolumeAttributesClass", "The attributes class it belongs to."),
    text("Reason", "Why it is in that phase."),
    AGE,
    text("VolumeMode", "Filesystem or Block.").wide(),
];

pub(crate) fn cells(volume: &Object, now: Timestamp) -> Vec<Value> {
    let claim = match tree::get(volume, "spec.claimRef") {
        None => String::new(),
        Some(claim) => format!("{}/{}", tree::text(claim, "namespace"), tree::text(claim, "name")),
    };
    vec![
        name(volume),
        storage(volume, "spec.capacity").into(),
        access_modes(volume, "spec.accessModes").into(),
        cell(volume, "spec.persistentVolumeReclaimPolicy"),
        phase(volume),
        claim.into(),
        class(volume).into(),
        cell_or(volume, "spec.volumeAttributesClassName", "<unset>"),
        cell(volume, "status.reason"),
        age(volume, now),
        cell_or(volume, "spec.volumeMode", "<unset>"),
    ]
}

pub(crate) const CLAIM_COLUMNS: &[Column] = &[
    NAME,
    text("Status", "Its phase."),
    text("Volume", "The volume it is bound to."),
    text("Capacity", "How much the volume holds."),
    text("Access Modes", "How the volume may be mounted."),
    text("StorageClass", "The class it asks for."),
    text("VolumeAttributesClass", "The attributes class it asks for."),
    AGE,
    text("VolumeMode", "Filesystem or Block.").wide(),
];

pub(crate) fn claim_cells(claim: &Object, now: Timestamp) -> Vec<Value> {
    let bound = !tree::text(claim, "spec.volumeName").is_empty();
    let (capacity, modes) = if bound {
        (
            storage(claim, "status.capacity"),
            access_modes(claim, "status.accessModes"),
        )
    } else {
        (String::new(), String::new())
    };
    vec![
        name(claim),
        phase(claim),
        cell(claim, "spec.volumeName"),
        capacity.into(),
        modes.into(),
        class(claim).into(),
        cell_or(claim, "spec.volumeAttributesClassName", "<unset>"),
        age(claim, now),
        cell_or(claim, "spec.volumeMode", "<unset>"),
    ]
}

fn phase(object: &Object) -> Value {
    if tree::get(object, "metadata.deletionTimestamp").is_some() {
        "Terminating".into()
    } else {
        cell(object, "status.phase")
    }
}

fn class(object: &Object) -> &str {
    or(
        tree::annotation(object, CLASS_ANNOTATION),
        tree::text(object, "spec.storageClassName"),
    )
}

fn storage(object: &Object, path: &str) -> String {
    tree::map(object, path)
        .and_then(|capacity| capacity.get("storage"))
        .map_or_else(|| "0".to_owned(), tree::scalar)
}

/// `RWO,ROX,RWX,RWOP`, in that order, each once.
fn access_modes(object: &Object, path: &str) -> String {
    let modes = tree::items(object, path);
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .iter()
    .filter(|(mode, _)| modes.iter().any(|one| one == mode))
    .map(|(_, short)| *short)
    .collect::<Vec<_>>()
    .join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::Strategy;

    #[test]
    fn a_volume_tells_when_its_phase_changed() {
        const THEN: &str = "2020-01-01T00:00:00Z";
        let mut volume = json!({"spec": {}});
        RULES.prepare_create(&mut volume);
        assert!(volume["status"]["lastPhaseTransitionTime"].is_string());
        let old = json!({"status": {"phase": "Pending", "lastPhaseTransitionTime": THEN}});
        for (status, kept) in [
            (json!({"phase": "Pending"}), true),
            (json!({"phase": "Bound"}), false),
            (json!({"phase": "Bound", "lastPhaseTransitionTime": THEN}), false),
        ] {
            let mut new = json!({"status": status});
            phase_time(&mut new, &old);
            assert_eq!(new["status"]["lastPhaseTransitionTime"] == THEN, kept, "{new}");
        }
    }

    #[test]
    fn both_fields_name_the_source() {
        let claim = json!({"kind": "PersistentVolumeClaim", "name": "c"});
        let other = json!({"apiGroup": "example.com", "kind": "Thing", "name": "t"});
        let cases = [
            (
                json!({"dataSource": claim}),
                json!({"dataSource": claim, "dataSourceRef": claim}),
            ),
            (json!({"dataSource": other}), json!({})),
            (
                json!({"dataSourceRef": other}),
                json!({"dataSource": other, "dataSourceRef": other}),
            ),
            (
                json!({"dataSourceRef": {"kind": "K", "name": "n", "namespace": "elsewhere"}}),
                json!({}),
            ),
        ];
        for (spec, expected) in cases {
            let mut object = json!({"spec": spec});
            CLAIM_RULES.prepare_create(&mut object);
            assert_eq!(object["spec"], expected);
        }
    }
}
