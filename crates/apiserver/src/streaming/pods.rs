//! Into a Pod: which node, which container, which path on the node's server.

use std::fmt::Write;
use std::sync::Arc;

use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use sampan_api::status::Status;
use sampan_api::{Object, field, meta};
use serde_json::Value;

use super::backend::{Target, forward, node_target};
use super::{Stream, find};
use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::dispatch::Incoming;
use crate::request::Query;
use crate::{Refusal, refuse};

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Of a node's refusal, what is worth repeating.
const MAX_ERROR: usize = 64 << 10;

pub async fn stream(plane: &Arc<ControlPlane>, stream: Stream, incoming: Incoming) -> Result<Response<Body>, Refusal> {
    let Incoming {
        parts,
        body,
        info,
        query,
        ..
    } = incoming;
    let pod = pod(plane, &info.namespace, &info.name)?;
    let (namespace, name) = (encode(&info.namespace), encode(&info.name));
    let path = match stream {
        Stream::PortForward => {
            let mut pairs = Pairs::default();
            for port in query.all("ports") {
                pairs.add("port", port);
            }
            format!("/portForward/{namespace}/{name}{}", pairs.0)
        }
        _ => {
            let container = container(&pod, query.get("container").unwrap_or_default())?;
            let mut pairs = Pairs::default();
            for (asked, sent) in [
                ("stdin", "input"),
                ("stdout", "output"),
                ("stderr", "error"),
                ("tty", "tty"),
            ] {
                if query.flag(asked) {
                    pairs.add(sent, "1");
                }
            }
            let verb = if stream == Stream::Exec {
                if query.all("command").next().is_none() {
                    return Err(refuse(Status::bad_request(
                        "you must specify at least one command for the container",
                    )));
                }
                for word in query.all("command") {
                    pairs.add("command", word);
                }
                "exec"
            } else {
                "attach"
            };
            if !["stdin", "stdout", "stderr"].iter().any(|name| query.flag(name)) {
                return Err(refuse(Status::bad_request(
                    "you must specify at least 1 of stdin, stdout, stderr",
                )));
            }
            format!("/{verb}/{namespace}/{name}/{}{}", encode(&container), pairs.0)
        }
    };
    let target = target(plane, &pod, path)?;
    if !sampan_streams::is_upgrade(&parts.headers) {
        return Err(refuse(Status::bad_request("Upgrade request required")));
    }
    let request = Request::from_parts(parts, body);
    let response = forward(&plane.backends, &plane.tasks, request, &target, &target.authority())
        .await
        .map_err(|failure| failure.dialing())?;
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    Err(refused(response, &info.name).await)
}

pub async fn log(plane: &Arc<ControlPlane>, incoming: Incoming) -> Result<Response<Body>, Refusal> {
    let Incoming { info, query, .. } = incoming;
    check_log_options(&query, &info.name)?;
    let pod = pod(plane, &info.namespace, &info.name)?;
    let container = container(&pod, query.get("container").unwrap_or_default())?;
    let mut pairs = Pairs::default();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            pairs.add(flag, "true");
        }
    }
    for option in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        if let Some(value) = query.text(option) {
            pairs.add(option, value);
        }
    }
    let path = format!(
        "/containerLogs/{}/{}/{}{}",
        encode(&info.namespace),
        encode(&info.name),
        encode(&container),
        pairs.0
    );
    if meta_text(&pod, "/spec/nodeName").is_empty() {
        // Not placed yet: there is nothing to read, as upstream answers.
        return Ok(text_response(Body::Empty));
    }
    let target = target(plane, &pod, path)?;
    let mut request = Request::new(Body::Empty);
    *request.method_mut() = Method::GET;
    *request.headers_mut() = HeaderMap::new();
    let response = forward(&plane.backends, &plane.tasks, request, &target, &target.authority())
        .await
        .map_err(|failure| failure.getting(&target))?;
    if !response.status().is_success() {
        return Err(refused(response, &info.name).await);
    }
    Ok(text_response(response.into_body()))
}

fn text_response(body: Body) -> Response<Body> {
    crate::registry::reply::response(200, "text/plain", body)
}

fn meta_text<'a>(object: &'a Object, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn pod(plane: &ControlPlane, namespace: &str, name: &str) -> Result<Object, Refusal> {
    let row = sampan_kinds::find("", "v1", "pods").ok_or_else(|| refuse(Status::no_such_path()))?;
    find(plane, row, namespace, name)
}

fn target(plane: &ControlPlane, pod: &Object, path: String) -> Result<Target, Refusal> {
    let node = meta_text(pod, "/spec/nodeName");
    if node.is_empty() {
        return Err(refuse(Status::bad_request(format!(
            "pod {} does not have a host assigned",
            meta::name(pod)
        ))));
    }
    let row = sampan_kinds::find("", "v1", "nodes").ok_or_else(|| refuse(Status::no_such_path()))?;
    node_target(&find(plane, row, "", node)?, path)
}

/// Every container's name, in the order upstream lists them.
fn names<'a>(pod: &'a Object, field: &str) -> Vec<&'a str> {
    pod.pointer(&format!("/spec/{field}"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|container| container.get("name").and_then(Value::as_str))
        .collect()
}

/// The container asked for, or the one that must be meant.
fn container(pod: &Object, asked: &str) -> Result<String, Refusal> {
    let (main, init, ephemeral) = (
        names(pod, "containers"),
        names(pod, "initContainers"),
        names(pod, "ephemeralContainers"),
    );
    if !asked.is_empty() {
        if main.iter().chain(&init).chain(&ephemeral).any(|name| *name == asked) {
            return Ok(asked.to_owned());
        }
        return Err(refuse(Status::bad_request(format!(
            "container {asked} is not valid for pod {}",
            meta::name(pod)
        ))));
    }
    if let Some(default) = meta::annotation(pod, DEFAULT_CONTAINER)
        && main.contains(&default)
    {
        return Ok(default.to_owned());
    }
    match main.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(refuse(Status::bad_request(format!(
            "a container name must be specified for pod {}",
            meta::name(pod)
        )))),
        many => {
            let mut text = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                meta::name(pod),
                many.join(" ")
            );
            if !init.is_empty() {
                let _ok = write!(text, " or one of the init containers: [{}]", init.join(" "));
            }
            if !ephemeral.is_empty() {
                let _ok = write!(text, " or one of the ephemeral containers: [{}]", ephemeral.join(" "));
            }
            Err(refuse(Status::bad_request(text)))
        }
    }
}

fn check_log_options(query: &Query, pod: &str) -> Result<(), Refusal> {
    let mut errors = field::Errors::new();
    let number = |name: &str| query.text(name).map(str::parse::<i64>);
    for (name, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        match number(name) {
            Some(Ok(value)) if value < least => {
                errors.push(field::Error::invalid(&field::Path::new(name), value, why));
            }
            Some(Err(_)) => {
                return Err(refuse(Status::bad_request(format!(
                    "strconv.ParseInt: parsing {:?}: invalid syntax",
                    query.text(name).unwrap_or_default()
                ))));
            }
            _ => {}
        }
    }
    if query.text("sinceSeconds").is_some() && query.text("sinceTime").is_some() {
        errors.push(field::Error::forbidden(
            &field::Path::new(""),
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(refuse(Status::invalid("", "PodLogOptions", pod, &errors)))
}

/// A node's refusal in the API's words.
async fn refused(response: Response<Body>, pod: &str) -> Refusal {
    let code = response.status().as_u16();
    let text = match Limited::new(response.into_body(), MAX_ERROR).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    refuse(match code {
        400 => Status::bad_request(text),
        401 | 403 => Status::internal(format!("the node refused the API server: {text}")),
        404 if text.is_empty() => Status::not_found("", "pods", pod),
        404 => Status::new(
            404,
            "NotFound",
            format!("the server could not find the requested resource ( pods/log {pod}): {text}"),
        ),
        405 => Status::new(405, "MethodNotAllowed", text),
        _ => Status::new(
            code.max(500),
            "InternalError",
            format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        ),
    })
}

/// A query string under construction.
#[derive(Default)]
struct Pairs(String);

impl Pairs {
    fn add(&mut self, key: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(&encode(value));
    }
}

/// Percent-encoding of everything that is not unreserved.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ok = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_that_must_be_meant() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, "").unwrap(), "a");
        assert_eq!(
            container(&one, "x").unwrap_err().message,
            "container x is not valid for pod p"
        );
        let two = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(
            container(&two, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&two, "i").unwrap(), "i");
    }

    #[test]
    fn words_survive_the_query() {
        let mut pairs = Pairs::default();
        pairs.add("command", "a b&c=d%");
        assert_eq!(pairs.0, "?command=a%20b%26c%3Dd%25");
        assert_eq!(Query::parse(&pairs.0[1..]).get("command"), Some("a b&c=d%"));
    }
}
