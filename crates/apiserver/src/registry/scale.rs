//! The Scale view: `autoscaling/v1 Scale` over the paths a row names.

use sampan_api::status::Status;
use sampan_api::{Object, codec, field, meta, schema};
use sampan_kinds::{Part, ScalePaths};
use serde_json::{Value, json};

use super::patch::PatchType;
use super::reply::Reply;
use super::{Call, Registry};
use crate::request::{Encoding, WriteOptions};
use crate::{Refusal, refuse};

/// What is done to the scale.
pub enum ScaleRequest<'a> {
    Get,
    Update(&'a [u8], Encoding),
    Patch(PatchType, &'a [u8]),
}

impl Registry {
    pub async fn scale(
        &self,
        call: &mut Call,
        paths: &ScalePaths,
        request: ScaleRequest<'_>,
        options: &WriteOptions,
    ) -> Result<Reply, Refusal> {
        if let ScaleRequest::Get = request {
            let storage = call.storage()?;
            let entry = self
                .current(&storage, &call.path())
                .await
                .ok_or_else(|| call.not_found())?;
            return Ok(Reply::Plain(
                200,
                scale_of(
                    &Self::in_version(&call.row, crate::custom::loaded(&call.row, entry.object()).await?),
                    paths,
                ),
            ));
        }
        let paths = *paths;
        call.scale = Some(paths);
        let reply = self
            .change(call, Part::Main, options, false, &mut |call, old| {
                let old = old.ok_or_else(|| call.not_found())?;
                let current = scale_of(old, &paths);
                let wanted = match &request {
                    ScaleRequest::Get => current.clone(),
                    ScaleRequest::Update(body, encoding) => decode(body, *encoding, options, call)?,
                    ScaleRequest::Patch(kind, body) => patched(*kind, body, current.clone())?,
                };
                let name = meta::name(&wanted);
                if !name.is_empty() && name != meta::name(old) {
                    return Err(refuse(Status::bad_request(format!(
                        "the name of the object ({name}) does not match the name on the URL ({})",
                        meta::name(old)
                    ))));
                }
                let replicas = wanted.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
                if replicas < 0 {
                    let path = field::Path::new("spec").child("replicas");
                    let error = field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
                    return Err(refuse(Status::invalid(
                        "autoscaling",
                        "Scale",
                        meta::name(old),
                        &[error],
                    )));
                }
                let mut new = old.clone();
                set(&mut new, paths.spec_replicas, replicas.into());
                // An unset version means "whatever it is now".
                meta::set_resource_version(&mut new, meta::resource_version(&wanted));
                Ok(new)
            })
            .await?;
        let object = match reply {
            Reply::Entry(_, entry) => entry.object(),
            Reply::Object(_, object) => object,
            other => return Ok(other),
        };
        let object = crate::custom::loaded(&call.row, object).await?;
        Ok(Reply::Plain(
            200,
            scale_of(&Self::in_version(&call.row, object), &paths),
        ))
    }
}

fn decode(body: &[u8], encoding: Encoding, options: &WriteOptions, call: &mut Call) -> Result<Object, Refusal> {
    let schema = schema::builtin();
    let ty = schema
        .kind("autoscaling", "v1", "Scale")
        .and_then(|definition| schema.type_of(&definition.name))
        .unwrap_or(schema::Type::Json);
    let decoded = codec::decode(
        body,
        encoding,
        ("autoscaling/v1", "Scale"),
        &ty,
        options.field_validation,
    )?;
    for warning in decoded.warnings {
        call.warn(warning);
    }
    call.record_request(&decoded.object);
    Ok(decoded.object)
}

fn patched(kind: PatchType, body: &[u8], mut scale: Value) -> Result<Value, Refusal> {
    use sampan_api::patch::{json, merge};
    match kind {
        PatchType::Json => {
            let patch = json::JsonPatch::parse(body).map_err(|error| refuse((&error).into()))?;
            patch.apply(&mut scale).map_err(|error| refuse((&error).into()))?;
        }
        // Scale has no lists or maps to merge: strategic and apply mean the same as merge here.
        _ => {
            let patch = codec::parse(body, Encoding::Yaml, None)
                .map_err(|error| refuse(Status::bad_request(format!("error decoding patch: {error}"))))?
                .object;
            merge::apply(&mut scale, patch).map_err(|error| refuse(error.into()))?;
        }
    }
    Ok(scale)
}

fn pointer(path: &str) -> String {
    format!("/{}", path.trim_start_matches('.').replace('.', "/"))
}

/// The Scale of an object in its stored form.
pub(super) fn of_stored(call: &Call, object: &Object, paths: &ScalePaths) -> Value {
    if call.row.converts() {
        scale_of(&Registry::in_version(&call.row, object.clone()), paths)
    } else {
        scale_of(object, paths)
    }
}

pub(super) fn set(object: &mut Object, path: &str, value: Value) {
    let mut at = object;
    for part in path.trim_start_matches('.').split('.') {
        at = meta::ensure_map(at).entry(part).or_insert(Value::Null);
    }
    *at = value;
}

fn scale_of(object: &Object, paths: &ScalePaths) -> Value {
    let number = |path: &str| object.pointer(&pointer(path)).and_then(Value::as_i64).unwrap_or(0);
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    let kept: serde_json::Map<String, Value> = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), metadata.get(key)?.clone())))
        .collect();
    let mut status = json!({"replicas": number(paths.status_replicas)});
    if let Some(selector) = object.pointer(&pointer(paths.selector)) {
        let text = match selector {
            Value::String(text) => text.clone(),
            Value::Object(map) if map.contains_key("matchLabels") || map.contains_key("matchExpressions") => {
                sampan_api::selector::LabelSelector::from_value(selector)
                    .map(|selector| selector.to_string())
                    .unwrap_or_default()
            }
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(","),
            _ => String::new(),
        };
        if !text.is_empty() {
            status["selector"] = text.into();
        }
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept,
        "spec": {"replicas": number(paths.spec_replicas)}, "status": status,
    })
}
