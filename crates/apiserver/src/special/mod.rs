//! The few requests that are no generic verb: bindings, evictions, tokens, and reviews (questions that are
//! answered and not stored).

mod authorization;
mod binding;
mod eviction;
mod token;

use std::sync::Arc;

use http::Method;
use sampan_api::schema::{self, Type};
use sampan_api::status::Status;
use sampan_api::{Object, codec};
use serde_json::json;

use crate::admission::Operation;
use crate::control_plane::ControlPlane;
use crate::dispatch::{decode_as, encoding_of};
use crate::registry::reply::Reply;
use crate::registry::{self, Call};
use crate::request::WriteOptions;
use crate::{Refusal, refuse};

/// Create of a resource nothing is stored of.
pub async fn create_only(plane: &Arc<ControlPlane>, call: &mut Call, body: &[u8]) -> Result<Reply, Refusal> {
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    let row = call.row.clone();
    let mut object = decode_as(call, body, &row, &options)?;
    registry::match_namespace(call, &mut object)?;
    registry::note_writer(call, &options, &mut object);
    call.record_request(&object);
    admit(plane, call, &mut object, &options).await?;
    match (row.spec.group, row.spec.plural) {
        ("", "bindings") => binding::bind(plane, call, &object, &options).await,
        ("authentication.k8s.io", "tokenreviews") => token::review(plane, object).await,
        ("authentication.k8s.io", "selfsubjectreviews") => Ok(authorization::who_am_i(call, object)),
        ("authorization.k8s.io", _) => authorization::review(plane, call, object).await,
        _ => Err(call.not_supported()),
    }
}

/// `componentstatuses`: nothing to report, here as upstream without its checks.
pub fn read_only(call: &Call) -> Result<Reply, Refusal> {
    if !call.info.name.is_empty() {
        return Err(call.not_found());
    }
    Ok(Reply::Plain(
        200,
        json!({"kind": call.row.spec.list_kind, "apiVersion": call.row.api_version, "metadata": {"resourceVersion": ""}, "items": []}),
    ))
}

/// A subresource with code of its own.
pub async fn subresource(
    plane: &Arc<ControlPlane>,
    call: &mut Call,
    _: &Method,
    body: &[u8],
) -> Result<Reply, Refusal> {
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    match (call.row.spec.plural, call.info.subresource.as_str()) {
        ("pods", "binding") => {
            let mut object = decode_kind(call, body, ("", "v1", "Binding"), &options)?;
            admit(plane, call, &mut object, &options).await?;
            binding::bind(plane, call, &object, &options).await
        }
        ("pods", "eviction") => {
            let mut object = decode_kind(call, body, ("policy", "v1", "Eviction"), &options)?;
            admit(plane, call, &mut object, &options).await?;
            eviction::evict(plane, call, &object, &options).await
        }
        ("serviceaccounts", "token") => {
            let mut object = decode_kind(call, body, ("authentication.k8s.io", "v1", "TokenRequest"), &options)?;
            admit(plane, call, &mut object, &options).await?;
            token::request(plane, call, object, &options).await
        }
        _ => Err(refuse(Status::no_such_path())),
    }
}

async fn admit(
    plane: &Arc<ControlPlane>,
    call: &mut Call,
    object: &mut Object,
    options: &WriteOptions,
) -> Result<(), Refusal> {
    plane
        .registry
        .admit_passing(call, Operation::Create, object, options.into())
        .await
}

/// A body of another kind than the row's.
fn decode_kind(
    call: &mut Call,
    body: &[u8],
    gvk: (&str, &str, &str),
    options: &WriteOptions,
) -> Result<Object, Refusal> {
    let encoding = encoding_of(&call.headers)?;
    let schema = schema::builtin();
    let ty = schema
        .kind(gvk.0, gvk.1, gvk.2)
        .and_then(|definition| schema.type_of(&definition.name))
        .unwrap_or(Type::Json);
    let api_version = sampan_api::meta::join_group_version(gvk.0, gvk.1);
    let decoded = codec::decode(body, encoding, (&api_version, gvk.2), &ty, options.field_validation)?;
    for warning in decoded.warnings {
        call.warn(warning);
    }
    call.record_request(&decoded.object);
    Ok(decoded.object)
}
