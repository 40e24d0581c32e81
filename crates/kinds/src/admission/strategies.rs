//! The rules of webhooks and admission policies.

use crate::rules::{RULES, Rules};

const ADMISSION: Rules = Rules {
    generation: true,
    keeps_status: true,
    unconditional_update: false,
    ..RULES
};

pub(super) static MUTATING_POLICY: Rules = Rules { ..ADMISSION };
pub(super) static VALIDATING_POLICY: Rules = Rules {
    keeps_status: false,
    ..ADMISSION
};
pub(super) static BINDING: Rules = Rules { ..ADMISSION };
pub(super) static MUTATING_WEBHOOK: Rules = Rules { ..ADMISSION };
pub(super) static VALIDATING_WEBHOOK: Rules = Rules { ..ADMISSION };
