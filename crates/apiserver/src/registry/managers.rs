//! Who owns which field: the engine's side of `metadata.managedFields`.

use http::header::USER_AGENT;
use sampan_api::Object;
use sampan_api::patch::apply::{self, Context, FieldSet};
use sampan_api::time;
use sampan_kinds::Part;

use super::Call;
use crate::request::WriteOptions;
use crate::{Refusal, refuse};

/// Notes in `new` what this write changes. Both trees are in the call's version.
pub(super) fn note(call: &Call, options: &WriteOptions, old: Option<&Object>, new: &mut Object) {
    if !call.tracked {
        return;
    }
    let agent = call
        .headers
        .get(USER_AGENT)
        .and_then(|agent| agent.to_str().ok())
        .unwrap_or_default();
    let manager = apply::manager_name(&options.field_manager, agent);
    let (now, reset) = (time::now(), reset(call));
    apply::update(context(call, &manager, &now, &reset), old, new);
}

/// Merges an applied configuration.
pub(super) fn apply(
    call: &Call,
    options: &WriteOptions,
    old: Option<&Object>,
    config: &Object,
) -> Result<Object, Refusal> {
    let (now, reset) = (time::now(), reset(call));
    apply::apply(
        context(call, &options.field_manager, &now, &reset),
        old,
        config,
        options.force,
    )
    .map_err(refuse)
}

fn context<'a>(call: &'a Call, manager: &'a str, now: &'a str, reset: &'a FieldSet) -> Context<'a> {
    Context {
        ty: &call.row.ty,
        api_version: &call.row.api_version,
        kind: call.row.spec.kind,
        subresource: &call.info.subresource,
        manager,
        now,
        reset,
    }
}

/// What this endpoint never changes.
fn reset(call: &Call) -> FieldSet {
    let part = match call.info.subresource.as_str() {
        "" => Part::Main,
        view => Part::View(view),
    };
    let paths: Vec<Vec<&str>> = call
        .row
        .strategy()
        .reset_fields(part)
        .iter()
        .map(|path| path.split('.').collect())
        .collect();
    let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
    FieldSet::of(&paths)
}
