//! The rules of the storage kinds.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::quantity::Quantity;
use sampan_api::{Object, names as api};

use crate::checks::Rule;
use crate::defaults::Fill;
use crate::names;
use crate::rules::{RULES, Rules, Status};
use crate::tree;
use crate::warnings;

pub(super) static CSI_DRIVER: Rules = Rules {
    defaults: &[
        ("spec", Fill::Map),
        ("spec.attachRequired", Fill::Bool(true)),
        ("spec.podInfoOnMount", Fill::Bool(false)),
        ("spec.storageCapacity", Fill::Bool(false)),
        ("spec.fsGroupPolicy", Fill::Text("ReadWriteOnceWithFSType")),
        ("spec.volumeLifecycleModes", Fill::Texts(&["Persistent"])),
        ("spec.requiresRepublish", Fill::Bool(false)),
        ("spec.seLinuxMount", Fill::Bool(false)),
    ],
    generation: true,
    status: Status::Plain,
    unconditional_update: false,
    checks: &[
        ("spec.attachRequired", Rule::Required("")),
        ("spec.podInfoOnMount", Rule::Required("")),
        ("spec.storageCapacity", Rule::Required("")),
        (
            "spec.fsGroupPolicy",
            Rule::RequiredOneOf(&["File", "None", "ReadWriteOnceWithFSType"]),
        ),
        ("spec.volumeLifecycleModes[]", Rule::OneOf(&["Ephemeral", "Persistent"])),
        ("spec.attachRequired", Rule::Immutable),
        ("spec.volumeLifecycleModes", Rule::Immutable),
    ],
    warnings: warnings::csi_driver,
    ..RULES
};
pub(super) static CSI_NODE: Rules = Rules {
    status: Status::Plain,
    unconditional_update: false,
    checks: &[
        ("spec.drivers[].name", Rule::RequiredNamed(names::whole_subdomain)),
        ("spec.drivers[].nodeID", Rule::Required("")),
        ("spec.drivers[].allocatable.count", Rule::NonNegative),
        ("spec.drivers[].topologyKeys[]", Rule::Named(api::qualified_name)),
    ],
    ..RULES
};
pub(super) static CSI_STORAGE_CAPACITY: Rules = Rules {
    status: Status::Plain,
    unconditional_update: false,
    checks: &[
        ("storageClassName", Rule::RequiredNamed(names::whole_subdomain)),
        ("storageClassName", Rule::Immutable),
        ("nodeTopology", Rule::Immutable),
    ],
    default: |capacity| {
        // The amounts are fields of the object itself, not a list of resources.
        for field in ["capacity", "maximumVolumeSize"] {
            if let Some(amount) = tree::get(capacity, field).and_then(|amount| Quantity::from_value(amount).ok()) {
                tree::set(capacity, field, amount.to_string());
            }
        }
    },
    warnings: warnings::storage_capacity,
    ..RULES
};
pub(super) static STORAGE_CLASS: Rules = Rules {
    defaults: &[
        ("reclaimPolicy", Fill::Text("Delete")),
        ("volumeBindingMode", Fill::Text("Immediate")),
    ],
    status: Status::Plain,
    checks: &[
        ("provisioner", Rule::RequiredNamed(provisioner)),
        ("reclaimPolicy", Rule::OneOf(&["Delete", "Retain"])),
        (
            "volumeBindingMode",
            Rule::RequiredOneOf(&["Immediate", "WaitForFirstConsumer"]),
        ),
        ("parameters", Rule::Immutable),
        ("provisioner", Rule::Immutable),
        ("reclaimPolicy", Rule::Immutable),
        ("volumeBindingMode", Rule::Immutable),
    ],
    warnings: warnings::storage_class,
    ..RULES
};
pub(super) static VOLUME_ATTACHMENT: Rules = Rules {
    unconditional_update: false,
    defaults: &[
        ("spec", Fill::Map),
        ("status", Fill::Map),
        ("status.attached", Fill::Bool(false)),
    ],
    checks: &[
        ("spec.attacher", Rule::RequiredNamed(names::whole_subdomain)),
        ("spec.nodeName", Rule::RequiredNamed(names::whole_subdomain)),
        ("spec", Rule::Immutable),
    ],
    validate: attachment,
    reset: crate::rules::status_keeps_metadata,
    ..RULES
};
pub(super) static VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    status: Status::Plain,
    checks: &[
        ("driverName", Rule::RequiredNamed(names::whole_subdomain)),
        ("parameters", Rule::Required("must contain at least one key/value pair")),
        ("driverName", Rule::Immutable),
        ("parameters", Rule::Immutable),
    ],
    ..RULES
};

fn provisioner(name: &str) -> Vec<String> {
    api::qualified_name(&name.to_lowercase())
}

fn attachment(object: &Object, errors: &mut Errors) {
    let path = Path::new("spec").child("source");
    let sources = ["spec.source.inlineVolumeSpec", "spec.source.persistentVolumeName"];
    const WHY: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match sources
        .iter()
        .filter(|source| tree::get(object, source).is_some())
        .count()
    {
        0 => errors.push(Error::required(&path, WHY)),
        1 => {}
        _ => errors.push(Error::forbidden(&path, WHY)),
    }
}
