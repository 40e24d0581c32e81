//! The rules of the storage kinds.

use crate::defaults::Fill;
use crate::rules::{RULES, Rules, Status};

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
    ..RULES
};
pub(super) static CSI_NODE: Rules = Rules {
    status: Status::Plain,
    unconditional_update: false,
    ..RULES
};
pub(super) static CSI_STORAGE_CAPACITY: Rules = Rules {
    status: Status::Plain,
    unconditional_update: false,
    ..RULES
};
pub(super) static STORAGE_CLASS: Rules = Rules {
    defaults: &[
        ("reclaimPolicy", Fill::Text("Delete")),
        ("volumeBindingMode", Fill::Text("Immediate")),
    ],
    status: Status::Plain,
    ..RULES
};
pub(super) static VOLUME_ATTACHMENT: Rules = Rules {
    unconditional_update: false,
    ..RULES
};
pub(super) static VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    status: Status::Plain,
    ..RULES
};
