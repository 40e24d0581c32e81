//! Validation of Services.

use sampan_api::{Object, field};

use crate::spec::Part;

pub(super) fn service(_service: &Object, _errors: &mut field::Errors) {}

pub(super) fn update(_part: Part<'_>, _new: &Object, _old: &Object, _errors: &mut field::Errors) {}
