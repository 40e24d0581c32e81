//! Service-account tokens: TokenRequest makes one, TokenReview says whose one is.

use std::sync::Arc;
use std::time::Duration;

use sampan_api::status::Status;
use sampan_api::{Object, field, meta, time};
use sampan_auth::AuthenticationError;
use sampan_pki::token::{Bound, NewToken, ObjectRef, TokenError};
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::registry::Call;
use crate::registry::reply::Reply;
use crate::request::WriteOptions;
use crate::{Refusal, refuse};

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// What the ServiceAccount admission asks for: such tokens live a year and are renewed hourly, for old clients.
const INJECTED_SECONDS: i64 = 3607;
const EXTENDED: Duration = Duration::from_secs(365 * 24 * 3600);

pub async fn request(
    plane: &Arc<ControlPlane>,
    call: &mut Call,
    mut request: Object,
    options: &WriteOptions,
) -> Result<Reply, Refusal> {
    let storage = call.storage()?;
    let account = plane
        .registry
        .current(&storage, &call.path())
        .await
        .ok_or_else(|| call.not_found())?
        .object();
    let name = meta::name(&request);
    if !name.is_empty() && name != call.info.name {
        let path = field::Path::new("metadata").child("name");
        let error = field::Error::invalid(&path, name, "must match the service account name");
        return Err(refuse(Status::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            name,
            &[error],
        )));
    }
    let spec = field::Path::new("spec");
    let seconds = request
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64)
        .unwrap_or(DEFAULT_SECONDS);
    let at = spec.child("expirationSeconds");
    let wrong = if seconds < MIN_SECONDS {
        Some("may not specify a duration less than 10 minutes")
    } else if seconds > MAX_SECONDS {
        Some("may not specify a duration larger than 2^32 seconds")
    } else {
        None
    };
    if let Some(why) = wrong {
        let error = field::Error::invalid(&at, seconds, why);
        return Err(refuse(Status::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            "",
            &[error],
        )));
    }
    let bound = bound(plane, call, &request, &account)?;
    let audiences: Vec<String> = request
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let keys = plane.config.pki.tokens();
    let own = audiences.is_empty() || audiences.iter().any(|audience| keys.audiences().contains(audience));
    let limits = &plane.config.authentication;
    let injected =
        limits.extend_token_expiration && seconds == INJECTED_SECONDS && matches!(bound, Bound::Pod { .. }) && own;
    // Longer ones are cut, not refused, as upstream does it.
    let longest = limits.max_token_expiration.unwrap_or(Duration::MAX);
    let asked = Duration::from_secs(seconds.unsigned_abs()).min(longest);
    let seconds = i64::try_from(asked.as_secs()).unwrap_or(seconds);
    let issued = keys
        .issue(&NewToken {
            namespace: &call.info.namespace,
            service_account: ObjectRef::new(meta::name(&account), meta::uid(&account)),
            bound,
            audiences: audiences.clone(),
            lifetime: if injected { EXTENDED } else { asked },
            warn_after: injected.then_some(asked),
        })
        .map_err(|error| refuse(Status::internal(error)))?;
    call.notes.annotate(
        "authentication.kubernetes.io/issued-credential-id",
        format!("JTI={}", issued.id),
    );
    let expires = if injected {
        jiff::Timestamp::now()
            .checked_add(asked)
            .unwrap_or(jiff::Timestamp::MAX)
    } else {
        jiff::Timestamp::from_second(issued.expires).unwrap_or(jiff::Timestamp::MAX)
    };
    let audiences = if audiences.is_empty() {
        keys.audiences().to_vec()
    } else {
        audiences
    };
    meta::set_name(&mut request, &call.info.name);
    meta::set_namespace(&mut request, &call.info.namespace);
    meta::set_creation_timestamp(&mut request, &time::now());
    request["spec"]["audiences"] = audiences.into();
    request["spec"]["expirationSeconds"] = seconds.into();
    let token = if options.dry_run { String::new() } else { issued.token };
    request["status"] = json!({"token": token, "expirationTimestamp": time::format(expires)});
    Ok(Reply::Plain(201, request))
}

/// The object the token ends with.
fn bound(plane: &ControlPlane, call: &Call, request: &Object, account: &Object) -> Result<Bound, Refusal> {
    let Some(reference) = request
        .pointer("/spec/boundObjectRef")
        .filter(|reference| !reference.is_null())
    else {
        return Ok(Bound::ServiceAccountOnly);
    };
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let cache = &plane.registry.cache;
    let find = |prefix: &str, plural: &str, path: String| -> Result<Object, Refusal> {
        let object = cache
            .storage(prefix)
            .and_then(|storage| storage.get(&path))
            .map(|entry| entry.object())
            .ok_or_else(|| refuse(Status::not_found("", plural, name)))?;
        if !uid.is_empty() && uid != meta::uid(&object) {
            return Err(refuse(Status::conflict(
                "",
                plural,
                name,
                &format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
                ),
            )));
        }
        Ok(object)
    };
    let namespaced = format!("{}/{name}", call.info.namespace);
    let reference_of = |object: &Object| ObjectRef::new(meta::name(object), meta::uid(object));
    match kind {
        "Pod" => {
            let pod = find("pods", "pods", namespaced)?;
            let runs_as = pod
                .pointer("/spec/serviceAccountName")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if runs_as != meta::name(account) {
                return Err(refuse(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    meta::name(account)
                ))));
            }
            let node = pod
                .pointer("/spec/nodeName")
                .and_then(Value::as_str)
                .filter(|node| !node.is_empty())
                .map(|node| {
                    let uid = cache
                        .storage("minions")
                        .and_then(|storage| storage.get(node))
                        .map(|entry| meta::uid(&entry.object()).to_owned());
                    ObjectRef::new(node, uid.unwrap_or_default())
                });
            Ok(Bound::Pod {
                pod: reference_of(&pod),
                node,
            })
        }
        "Secret" => Ok(Bound::Secret(reference_of(&find("secrets", "secrets", namespaced)?))),
        "Node" => Ok(Bound::Node(reference_of(&find("minions", "nodes", name.to_owned())?))),
        _ => {
            let version = text("apiVersion");
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            Err(refuse(Status::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            ))))
        }
    }
}

pub async fn review(plane: &ControlPlane, mut review: Object) -> Result<Reply, Refusal> {
    let token = review
        .pointer("/spec/token")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if token.is_empty() {
        return Err(refuse(Status::bad_request(
            "token is required for TokenReview in authentication",
        )));
    }
    let audiences: Vec<String> = review
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    review["status"] = match plane.authenticator.token(&token, &audiences).await {
        Ok(known) => {
            let user = &known.user;
            let mut shown = json!({"username": user.name, "groups": user.groups});
            if !user.uid.is_empty() {
                shown["uid"] = user.uid.as_str().into();
            }
            if !user.extra.is_empty() {
                shown["extra"] = user
                    .extra
                    .iter()
                    .map(|(key, values)| (key.clone(), Value::from(values.clone())))
                    .collect();
            }
            json!({"authenticated": true, "user": shown, "audiences": known.audiences})
        }
        // Nobody knows such a token: there is nothing else to say of it.
        Err(AuthenticationError::Token(TokenError::NotOurs)) => json!({"user": {}, "error": "invalid bearer token"}),
        Err(error) => json!({"user": {}, "error": error.to_string()}),
    };
    Ok(Reply::Plain(201, review))
}
