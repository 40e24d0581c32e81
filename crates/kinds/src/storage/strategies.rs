//! The rules of the storage kinds.

use crate::rules::{RULES, Rules};

pub(super) static CSI_DRIVER: Rules = Rules {
    generation: true,
    keeps_status: true,
    unconditional_update: false,
    ..RULES
};
pub(super) static CSI_NODE: Rules = Rules {
    keeps_status: true,
    unconditional_update: false,
    ..RULES
};
pub(super) static CSI_STORAGE_CAPACITY: Rules = Rules {
    keeps_status: true,
    unconditional_update: false,
    ..RULES
};
pub(super) static STORAGE_CLASS: Rules = Rules {
    keeps_status: true,
    ..RULES
};
pub(super) static VOLUME_ATTACHMENT: Rules = Rules {
    unconditional_update: false,
    ..RULES
};
pub(super) static VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    keeps_status: true,
    ..RULES
};
