//! The AdmissionRequest: what webhooks are sent and what CEL sees as `request`.
//!
//! What is empty is not there, so that `has(request.namespace)` tells what is in no namespace, as upstream has it.

use sampan_auth::UserInfo;
use sampan_cel::{Activation, Authorize, Value, admission};
use sampan_kinds::Resource;
use serde::Serialize;
use serde_json::Value as Json;

use super::Matched;
use crate::admission::Review;

#[derive(Serialize)]
struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
}

#[derive(Serialize)]
struct Named {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
}

/// All of the request but the objects.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    kind: Kind,
    resource: Named,
    #[serde(skip_serializing_if = "str::is_empty")]
    sub_resource: &'a str,
    request_kind: Kind,
    request_resource: Named,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_sub_resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    operation: &'static str,
    user_info: &'a UserInfo,
    dry_run: bool,
    options: Json,
}

fn kind((group, version, kind): (&'static str, &'static str, &'static str)) -> Kind {
    Kind { group, version, kind }
}

fn named(spec: &Resource) -> Named {
    Named {
        group: spec.group,
        version: spec.version,
        resource: spec.plural,
    }
}

impl<'a> Request<'a> {
    pub fn of(review: &Review<'a>, matched: &Matched) -> Self {
        Request {
            kind: kind(matched.kind(review)),
            resource: named(matched.row(review).spec),
            sub_resource: review.subresource,
            request_kind: kind(review.kind()),
            request_resource: named(review.row.spec),
            request_sub_resource: review.subresource,
            name: review.name,
            namespace: review.namespace,
            operation: review.operation.name(),
            user_info: review.user,
            dry_run: review.dry_run,
            options: review.options(),
        }
    }

    /// As CEL takes it.
    pub fn json(&self) -> Json {
        // Structs and maps with text keys always encode.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The variables every expression sees: `request` as above, the objects in the version that matched, and the
/// authorizer with the resource of the request itself.
pub fn activation<'a>(
    review: &Review<'a>,
    request: &'a Json,
    object: Option<&'a Json>,
    old: Option<&'a Json>,
    asker: &'a dyn Authorize,
) -> Activation<'a> {
    let or_null = |object: Option<&'a Json>| object.map_or(Value::Null, Value::json);
    let spec = review.row.spec;
    let resource = [
        spec.group,
        spec.plural,
        review.subresource,
        review.namespace,
        review.name,
    ];
    Activation::new()
        .with("object", or_null(object))
        .with("oldObject", or_null(old))
        .with("request", Value::typed(request, admission::request()))
        .with("authorizer", Value::authorizer(asker))
        .with("authorizer.requestResource", Value::request_resource(asker, resource))
}
