//! The rules of CustomResourceDefinitions and APIServices.

use crate::names;
use crate::rules::{RULES, Rules};

pub(super) static DEFINITION: Rules = Rules {
    generation: true,
    unconditional_update: false,
    ..RULES
};
pub(super) static API_SERVICE: Rules = Rules {
    name: names::path_segment,
    unconditional_update: false,
    ..RULES
};
