//! The rules of HorizontalPodAutoscalers.

use crate::rules::{RULES as PLAIN, Rules};

pub(super) static RULES: Rules = Rules { ..PLAIN };

/// What a `v1` object gets before it is converted; the rest is the rules of `v2`.
pub(super) static V1_RULES: Rules = Rules { ..PLAIN };
