//! Who owns which field: the engine's side of `metadata.managedFields`.
//!
//! Entries are judged in the version they were written in. Built-in kinds and custom ones without a webhook are
//! converted on the spot. A webhook cannot be asked from within a merge: the merge is given up, the webhook asked
//! ([`Conversions::answer`]), and the merge done again with what it said.

use std::sync::Mutex;

use http::header::USER_AGENT;
use sampan_api::patch::apply::{self, Context, FieldSet, Versions};
use sampan_api::schema::Type;
use sampan_api::{Object, meta, time};
use sampan_kinds::{Part, Resource};

use super::Call;
use crate::custom::Custom;
use crate::request::WriteOptions;
use crate::rows::Row;
use crate::sync::lock;
use crate::{Refusal, refuse};

/// What webhooks have been asked to convert for one request.
#[derive(Default)]
pub struct Conversions(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    known: Vec<(Object, String, Result<Object, String>)>,
    wanted: Option<(Object, String)>,
}

impl Conversions {
    fn get(&self, object: &Object, version: &str) -> Result<Object, String> {
        let mut asked = lock(&self.0);
        let known = asked
            .known
            .iter()
            .find(|(of, to, _)| to == version && of == object)
            .map(|(_, _, answer)| answer.clone());
        known.unwrap_or_else(|| {
            asked.wanted = Some((object.clone(), version.to_owned()));
            Err("it has not been asked for yet".into())
        })
    }

    /// Asks for what the last attempt lacked. Whether that was something: then another attempt is due.
    pub(super) async fn answer(&self, row: &Row) -> bool {
        let (Some((object, version)), Some(custom)) = (lock(&self.0).wanted.take(), &row.custom) else {
            return false;
        };
        let answer = custom.view.convert(object.clone(), &version).await;
        let answer = answer.map_err(|refusal| refusal.message.clone());
        lock(&self.0).known.push((object, version, answer));
        true
    }
}

/// The other versions of a call's kind.
struct Siblings<'a>(&'a Call);

impl Versions for Siblings<'_> {
    fn convert(&self, object: &Object, api_version: &str) -> Result<Option<(Object, Type)>, String> {
        match &self.0.row.custom {
            Some(custom) => self.custom(custom, object, api_version),
            None => Ok(built_in(self.0.row.spec, object, api_version)),
        }
    }
}

impl Siblings<'_> {
    fn custom(&self, custom: &Custom, object: &Object, api_version: &str) -> Result<Option<(Object, Type)>, String> {
        let view = &custom.view;
        let Some(ty) = view.versions.iter().find(|(version, _)| version == api_version) else {
            return Ok(None);
        };
        let converted = match view.convert_now(object, api_version) {
            Some(object) => object,
            None => self.0.conversions.get(object, api_version)?,
        };
        Ok(Some((converted, ty.1.clone())))
    }
}

/// Built-in kinds go by way of the stored version.
fn built_in(spec: &Resource, object: &Object, api_version: &str) -> Option<(Object, Type)> {
    let of = |version: &str| {
        sampan_kinds::resources().iter().find(|other| {
            other.storage_prefix == spec.storage_prefix && other.kind == spec.kind && other.api_version() == version
        })
    };
    let (from, to) = (of(meta::api_version(object))?, of(api_version)?);
    let ty = apply::builtin_type(api_version, to.kind)?;
    let mut object = object.clone();
    if let Some(conversion) = &from.stored_as {
        (conversion.to_storage)(&mut object);
    }
    if let Some(conversion) = &to.stored_as {
        (conversion.from_storage)(&mut object);
    } else {
        meta::set_type(&mut object, api_version, to.kind);
    }
    Some((object, ty))
}

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
    let (now, reset, siblings) = (time::now(), reset(call), Siblings(call));
    apply::update(context(&siblings, &manager, &now, &reset), old, new);
}

/// Merges an applied configuration.
pub(super) fn apply(
    call: &Call,
    options: &WriteOptions,
    old: Option<&Object>,
    config: &Object,
) -> Result<Object, Refusal> {
    let (now, reset, siblings) = (time::now(), reset(call), Siblings(call));
    apply::apply(
        context(&siblings, &options.field_manager, &now, &reset),
        old,
        config,
        options.force,
    )
    .map_err(refuse)
}

fn context<'a>(siblings: &'a Siblings<'_>, manager: &'a str, now: &'a str, reset: &'a FieldSet) -> Context<'a> {
    let call = siblings.0;
    Context {
        ty: &call.row.ty,
        api_version: &call.row.api_version,
        kind: call.row.spec.kind,
        subresource: &call.info.subresource,
        manager,
        now,
        reset,
        versions: siblings,
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
