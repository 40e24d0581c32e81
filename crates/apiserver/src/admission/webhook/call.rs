//! One call of one webhook.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method};
use sampan_api::Object;
use sampan_api::patch::json::JsonPatch;
use sampan_api::status::Status;
use serde_json::Value;

use super::super::Review;
use super::super::matching::Request;
use super::Invocation;
use super::review::{self, Bad};
use crate::outbound::{self, Exchange};
use crate::{Refusal, refuse};

/// The largest answer: a patch of the largest object, in base64, with room for the rest.
const LIMIT: usize = 5 << 20;

/// What a webhook wants done.
#[derive(Default)]
pub struct Outcome {
    pub patch: Option<JsonPatch>,
}

/// What it said besides, whatever its verdict.
#[derive(Default)]
pub struct Said {
    pub warnings: Vec<String>,
    pub annotations: BTreeMap<String, String>,
}

/// Why a request does not pass.
pub enum Failure {
    /// The webhook could not be asked, or makes no sense: the failure policy decides.
    Calling { why: String, code: u16 },
    /// The webhook says no.
    Rejected(Refusal),
    /// The server itself cannot go on.
    Refused(Refusal),
}

pub async fn call(
    invocation: &Invocation<'_>,
    review: &Review<'_>,
    object: Option<&Object>,
    mutating: bool,
) -> (Said, Result<Outcome, Failure>) {
    let mut said = Said::default();
    let result = ask(invocation, review, object, mutating, &mut said).await;
    (said, result)
}

async fn ask(
    invocation: &Invocation<'_>,
    review: &Review<'_>,
    object: Option<&Object>,
    mutating: bool,
    said: &mut Said,
) -> Result<Outcome, Failure> {
    let hook = invocation.hook;
    if review.dry_run && !hook.dry_runs {
        return Err(Failure::Refused(refuse(Status::bad_request(format!(
            "admission webhook {:?} does not support dry run",
            hook.name
        )))));
    }
    let version = hook.version.ok_or_else(|| Failure::Calling {
        why: "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"
            .into(),
        code: 400,
    })?;
    let (peer, path) = hook.peer().map_err(|error| Failure::Calling {
        why: format!("could not get REST client: {error}"),
        code: 500,
    })?;
    let old = invocation.matched.shown(review, review.old).await;
    let old = old.map_err(Failure::Refused)?;
    let uid = uuid::Uuid::new_v4().to_string();
    let request = Request::of(review, &invocation.matched);
    let body = review::request(version, &uid, request, object, old.as_deref());
    let path = format!("{path}?timeout={}s", hook.timeout.as_secs());
    let exchange = Exchange {
        method: Method::POST,
        path: &path,
        headers: headers(hook.credentials()),
        body: Bytes::from(body),
        timeout: hook.timeout.max(Duration::from_secs(1)),
        limit: LIMIT,
    };
    let failed = |why: String, code: u16| Failure::Calling {
        why: format!("failed to call webhook: {why}"),
        code,
    };
    let answer = peer
        .call(&exchange)
        .await
        .map_err(|error: outbound::Error| failed(error.during("Post", &peer.url(&path)), 503))?;
    if !answer.status.is_success() {
        let code = answer.status.as_u16();
        return Err(failed(words_of(code, &answer), code));
    }
    let answer = match review::answer(&answer.body, version, &uid, &hook.name, mutating) {
        Ok(answer) => answer,
        Err(Bad::Unreadable(why)) => return Err(failed(why, 503)),
        Err(Bad::Invalid(why)) => {
            return Err(Failure::Calling {
                why: format!("received invalid webhook response: {why}"),
                code: 503,
            });
        }
    };
    said.warnings = answer.warnings;
    said.annotations = answer.annotations;
    if let Some(denied) = answer.denied {
        return Err(Failure::Rejected(refuse(denied)));
    }
    let patch = review::patch(&answer.patch).map_err(|why| Failure::Calling {
        why: format!("received undecodable patch in webhook response: {why}"),
        code: 503,
    })?;
    Ok(Outcome { patch })
}

/// What every call says, besides who makes it.
fn headers(mut headers: HeaderMap) -> HeaderMap {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
    headers.insert(USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
    headers
}

/// An answer that is no success, as Go's clients put it. Redirects are among them: they are not followed.
fn words_of(code: u16, answer: &outbound::Answer) -> String {
    const SHOWN: usize = 2048;
    if let Ok(status) = serde_json::from_slice::<Value>(&answer.body)
        && status.get("kind").and_then(Value::as_str) == Some("Status")
        && let Some(message) = status.get("message").and_then(Value::as_str)
    {
        return message.to_owned();
    }
    let is_text = answer
        .headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_none_or(|kind| kind.starts_with("text/"));
    let text = String::from_utf8_lossy(&answer.body);
    let text = text.trim();
    let said = match is_text && !text.is_empty() {
        true => text.chars().take(SHOWN).collect::<String>(),
        false => "unknown".to_owned(),
    };
    match code {
        400 => "the server rejected our request for an unknown reason".into(),
        401 => "the server has asked for the client to provide credentials".into(),
        403 => said,
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        406 | 415 => said,
        409 => "the server reported a conflict".into(),
        422 => "the server rejected our request due to an error in our request".into(),
        429 => "the server has received too many requests and has asked us to try again later".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .into()
        }
        500.. => format!("an error on the server ({said:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {code} but did not return more information"),
    }
}
