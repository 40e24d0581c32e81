//! From an authorized request to the verb that answers it.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, Method, Response};
use http_body_util::{BodyExt, Limited};
use sampan_api::Object;
use sampan_api::codec;
use sampan_api::status::Status;
use sampan_auth::UserInfo;
use sampan_kinds::{Part, SubresourceKind, Verbs};

use crate::admission::Notes;
use crate::audit::Record;
use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::registry::Call;
use crate::registry::patch::PatchType;
use crate::registry::reply::{Reply, add_notes, refusal};
use crate::registry::scale::ScaleRequest;
use crate::request::{DeleteOptions, Encoding, ListOptions, Query, RequestInfo, WriteOptions, media};
use crate::rows::Row;
use crate::{Refusal, aggregator, custom, discovery, refuse, special, streaming, usage};

/// The largest request body.
pub const MAX_BODY: usize = 3 << 20;

/// A request that may proceed.
pub struct Incoming {
    pub parts: Parts,
    pub body: Body,
    pub info: RequestInfo,
    pub query: Query,
    pub user: Arc<UserInfo>,
}

pub async fn run(plane: &Arc<ControlPlane>, incoming: Incoming) -> Result<Response<Body>, Refusal> {
    if let Some(remote) = plane.aggregator.remote_of(&incoming.info) {
        return aggregator::serve(plane, &remote, incoming).await;
    }
    if let Some(remote) = plane.aggregator.openapi_of(&incoming.info) {
        return aggregator::serve(plane, &remote, incoming).await;
    }
    if !incoming.info.is_resource {
        if incoming.info.path.starts_with(crate::admin::ROOT) {
            return crate::admin::serve(plane, incoming).await;
        }
        let Incoming { parts, info, query, .. } = incoming;
        return discovery::serve(
            plane,
            &discovery::Asked {
                parts: &parts,
                info: &info,
                query: &query,
            },
        )
        .await;
    }
    let table = plane.registry.rows.get();
    let info = &incoming.info;
    if !info.is_served() {
        return Err(refuse(Status::no_such_path()));
    }
    let row = table
        .find(&info.group, &info.version, &info.resource)
        .cloned()
        .ok_or_else(|| refuse(Status::no_such_path()))?;
    if !row.spec.namespaced && !info.namespace.is_empty() && !row.is("", "namespaces") {
        return Err(refuse(Status::no_such_path()));
    }
    if !info.subresource.is_empty() && row.spec.subresource(&info.subresource).is_none() {
        return Err(refuse(Status::no_such_path()));
    }
    if let Some(why) = no_segment(&info.name) {
        return Err(refuse(Status::bad_request(format!(
            "Name parameter invalid: {:?}: {why}",
            info.name
        ))));
    }
    if let Some(stream) = streaming::Stream::of(&row, &info.subresource) {
        return streaming::serve(plane, stream, &row, incoming).await;
    }
    let Incoming {
        parts,
        body,
        info,
        query,
        user,
    } = incoming;
    let transforms = row.has_columns() || row.storage.is_some();
    let in_protobuf = row.custom.is_none() && row.measured.is_none();
    let media = media::negotiate(&parts.headers, transforms, in_protobuf)?;
    let mut call = Call {
        row,
        info,
        query,
        headers: parts.headers,
        user,
        media,
        notes: Notes::default(),
        internal: false,
        scale: None,
        tracked: true,
        conversions: Default::default(),
        audit: parts.extensions.get::<Arc<Record>>().cloned(),
    };
    if call.audit.is_some() && !call.row.spec.deprecated.is_empty() {
        note_deprecation(&mut call);
    }
    if let Some(warning) = call.row.custom.as_ref().and_then(|custom| custom.deprecation.clone()) {
        call.warn(warning);
    }
    if !call.row.spec.deprecated.is_empty() {
        call.warn(call.row.spec.deprecated);
    }
    let reply = if call.info.subresource.is_empty() {
        main(plane, &mut call, &parts.method, body).await
    } else {
        subresource(plane, &mut call, &parts.method, body).await
    };
    let reply = match reply {
        Ok(reply) => custom::shown(&call, reply).await,
        refused => refused,
    };
    match reply {
        Ok(reply) => call.respond(reply),
        // Warnings and annotations are told also with a refusal.
        Err(refused) if !call.notes.are_empty() => {
            let mut response = refusal(&refused, call.media.encoding);
            add_notes(&mut response, &call.notes);
            Ok(response)
        }
        Err(refused) => Err(refused),
    }
}

/// Upstream's annotations of deprecated versions.
fn note_deprecation(call: &mut Call) {
    let text = call.row.spec.deprecated;
    call.notes.annotate("k8s.io/deprecated", "true");
    let removed = text
        .split_once("unavailable in v")
        .map(|(_, rest)| rest.split(['+', ' ', ';']).next().unwrap_or_default());
    if let Some(removed) = removed.filter(|version| !version.is_empty()) {
        call.notes.annotate("k8s.io/removed-release", removed);
    }
}

/// Why a name cannot be part of a key.
fn no_segment(name: &str) -> Option<String> {
    match name {
        "." | ".." => Some(format!("may not be '{name}'")),
        _ => name.contains('%').then(|| "may not contain '%'".to_owned()),
    }
}

/// The verbs of a resource itself.
async fn main(plane: &Arc<ControlPlane>, call: &mut Call, method: &Method, body: Body) -> Result<Reply, Refusal> {
    let registry = plane.registry.clone();
    let verb = call.info.verb.clone();
    match (call.row.spec.verbs, verb.as_str()) {
        (Verbs::CreateOnly, "create") if call.info.name.is_empty() => {
            let body = read(body).await?;
            return special::create_only(plane, call, &body).await;
        }
        (Verbs::ReadOnly, "get" | "list") if call.row.measured.is_some() => return usage::read(plane, call).await,
        (Verbs::ReadOnly, "get" | "list") => return special::read_only(call),
        (Verbs::CreateOnly | Verbs::ReadOnly, _) => return Err(call.not_supported()),
        (Verbs::NoDeleteCollection, "deletecollection") => return Err(call.not_supported()),
        _ => {}
    }
    if call.row.spec.namespaced && call.info.namespace.is_empty() && !matches!(verb.as_str(), "list" | "watch") {
        return Err(call.not_supported());
    }
    if call.info.name.is_empty() && matches!(verb.as_str(), "get" | "update" | "patch" | "delete") {
        return Err(call.not_supported());
    }
    match verb.as_str() {
        "get" => registry.get(call).await,
        "list" => {
            let options = ListOptions::parse(&call.query, false)?;
            registry.list(call, &options).await
        }
        "watch" => {
            let options = ListOptions::parse(&call.query, true)?;
            registry.watch(call, &options).await
        }
        "create" if call.info.name.is_empty() => {
            let body = read(body).await?;
            let options = WriteOptions::parse(&call.query, "CreateOptions")?;
            let object = decode(call, &body, &options)?;
            registry.create(call, object, &options).await
        }
        "update" => {
            let body = read(body).await?;
            let options = WriteOptions::parse(&call.query, "UpdateOptions")?;
            let object = decode(call, &body, &options)?;
            registry.update(call, Part::Main, object, &options).await
        }
        "patch" => {
            let kind = PatchType::of_content_type(content_type(&call.headers))?;
            let body = read(body).await?;
            record_patch(call, &body);
            let options = WriteOptions::parse(&call.query, "PatchOptions")?;
            registry.patch(call, Part::Main, kind, &body, &options).await
        }
        "delete" => {
            let options = delete_options(call, body).await?;
            registry.delete(call, &options).await
        }
        "deletecollection" => {
            let options = delete_options(call, body).await?;
            let list = ListOptions::parse(&call.query, false)?;
            registry.delete_collection(call, &list, &options).await
        }
        _ => {
            tracing::debug!(%method, path = call.info.path, "no such verb");
            Err(call.not_supported())
        }
    }
}

/// Views, scale, and the special ones.
async fn subresource(
    plane: &Arc<ControlPlane>,
    call: &mut Call,
    method: &Method,
    body: Body,
) -> Result<Reply, Refusal> {
    let registry = plane.registry.clone();
    let sub = *call
        .row
        .spec
        .subresource(&call.info.subresource)
        .ok_or_else(|| refuse(Status::no_such_path()))?;
    let verb = call.info.verb.clone();
    if !sub.verbs.contains(&verb.as_str()) {
        return Err(call.not_supported());
    }
    match (sub.kind, verb.as_str()) {
        (SubresourceKind::Special, _) => {
            let body = read(body).await?;
            special::subresource(plane, call, method, &body).await
        }
        (SubresourceKind::View, "get") => registry.get(call).await,
        (SubresourceKind::View, "update") => {
            let body = read(body).await?;
            let options = WriteOptions::parse(&call.query, "UpdateOptions")?;
            let object = decode(call, &body, &options)?;
            registry.update(call, Part::View(sub.name), object, &options).await
        }
        (SubresourceKind::View, "patch") => {
            let kind = PatchType::of_content_type(content_type(&call.headers))?;
            let body = read(body).await?;
            record_patch(call, &body);
            let options = WriteOptions::parse(&call.query, "PatchOptions")?;
            registry.patch(call, Part::View(sub.name), kind, &body, &options).await
        }
        (SubresourceKind::Scale(paths), "get") => {
            registry
                .scale(call, &paths, ScaleRequest::Get, &WriteOptions::default())
                .await
        }
        (SubresourceKind::Scale(paths), "update") => {
            let encoding = encoding_of(&call.headers)?;
            let body = read(body).await?;
            let options = WriteOptions::parse(&call.query, "UpdateOptions")?;
            registry
                .scale(call, &paths, ScaleRequest::Update(&body, encoding), &options)
                .await
        }
        (SubresourceKind::Scale(paths), "patch") => {
            let kind = PatchType::of_content_type(content_type(&call.headers))?;
            let body = read(body).await?;
            record_patch(call, &body);
            let options = WriteOptions::parse(&call.query, "PatchOptions")?;
            registry
                .scale(call, &paths, ScaleRequest::Patch(kind, &body), &options)
                .await
        }
        _ => Err(call.not_supported()),
    }
}

pub fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// The encoding a body says it has.
pub fn encoding_of(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    media::of_content_type(content_type(headers)).ok_or_else(|| {
        refuse(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        ))
    })
}

/// The whole body, within the limit.
pub async fn read(body: Body) -> Result<Bytes, Refusal> {
    match body {
        Body::Empty => Ok(Bytes::new()),
        Body::Full(bytes) if bytes.len() <= MAX_BODY => Ok(bytes),
        Body::Full(_) => Err(too_large()),
        body => match Limited::new(body, MAX_BODY).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Err(error) => Err(refuse(Status::bad_request(format!(
                "the request's body could not be read: {error}"
            )))),
        },
    }
}

fn too_large() -> Refusal {
    refuse(Status::too_large(format!(
        "Request entity too large: limit is {MAX_BODY}"
    )))
}

/// The body as an object of the call's row, checked and defaulted.
fn decode(call: &mut Call, body: &[u8], options: &WriteOptions) -> Result<Object, Refusal> {
    let row = call.row.clone();
    let mut object = decode_as(call, body, &row, options)?;
    row.default(&mut object);
    call.record_request(&object);
    Ok(object)
}

pub fn decode_as(call: &mut Call, body: &[u8], row: &Row, options: &WriteOptions) -> Result<Object, Refusal> {
    let encoding = encoding_of(&call.headers)?;
    let expected = (row.api_version.as_str(), row.spec.kind);
    let decoded = codec::decode(body, encoding, expected, &row.ty, options.field_validation)?;
    for warning in decoded.warnings {
        call.warn(warning);
    }
    if let Some(why) = row.spec.strategy.unreadable(&decoded.object) {
        let (version, kind) = (sampan_api::field::quote(row.spec.version), row.spec.kind);
        let message = format!("{kind} in version {version} cannot be handled as a {kind}: {why}");
        return Err(refuse(Status::bad_request(message)));
    }
    Ok(decoded.object)
}

fn record_patch(call: &Call, body: &[u8]) {
    if let Some(record) = &call.audit {
        record.patch(body);
    }
}

async fn delete_options(call: &Call, body: Body) -> Result<DeleteOptions, Refusal> {
    let body = read(body).await?;
    if body.is_empty() {
        return DeleteOptions::parse(&call.query, None);
    }
    let encoding = encoding_of(&call.headers)?;
    let options = codec::decode_meta(&body, encoding, "DeleteOptions")?;
    call.record_request(&options);
    DeleteOptions::parse(&call.query, Some(&options))
}
