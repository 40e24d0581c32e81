//! The proxy subresources: any request, to a node's server, a Pod's port or a Service's endpoint.
//!
//! Names may carry a scheme and a port: `https:name:port`. Unlike upstream no HTML is rewritten; `Location`
//! headers are, so that redirects stay inside the proxy.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderValue, LOCATION};
use http::{HeaderMap, Request, Response};
use rand::Rng;
use sampan_api::status::Status;
use sampan_api::{Object, meta};
use sampan_kinds::Resource;
use serde_json::Value;

use super::backend::{Target, Trust, forward, node_target};
use super::find;
use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::dispatch::Incoming;
use crate::{Refusal, refuse};

pub async fn serve(
    plane: &Arc<ControlPlane>,
    resource: &'static Resource,
    incoming: Incoming,
) -> Result<Response<Body>, Refusal> {
    let Incoming {
        mut parts, body, info, ..
    } = incoming;
    let (base, rest) = split(parts.uri.path(), resource.namespaced);
    if rest.is_empty() && parts.method == http::Method::GET && !sampan_streams::is_upgrade(&parts.headers) {
        // Relative links of the first page need the slash.
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = http::StatusCode::MOVED_PERMANENTLY;
        let location =
            HeaderValue::from_str(&format!("{base}/{query}")).map_err(|error| refuse(Status::internal(error)))?;
        response.headers_mut().insert(LOCATION, location);
        return Ok(response);
    }
    let path = match parts.uri.query() {
        Some(query) => format!("{}?{query}", if rest.is_empty() { "/" } else { rest.as_str() }),
        None if rest.is_empty() => "/".to_owned(),
        None => rest,
    };
    let name = Name::parse(&info.name);
    let target = match resource.plural {
        "nodes" => {
            let mut target = node_target(&find(plane, resource, "", &name.name)?, path)?;
            if let Some(port) = name.number() {
                target.port = port;
                target.tls = if name.scheme == "https" {
                    Trust::Node
                } else {
                    Trust::Plain
                };
            }
            target
        }
        "pods" => {
            let object = find(plane, resource, &info.namespace, &name.name)?;
            let target = pod(&object, &name, path)?;
            let node = object.pointer("/spec/nodeName").and_then(Value::as_str);
            proxyable(plane, &target.host, node)?;
            target
        }
        _ => service(plane, &find(plane, resource, &info.namespace, &name.name)?, &name, path)?,
    };
    if name.scheme == "https" && resource.plural != "nodes" {
        return Err(refuse(Status::bad_request(
            "proxying to Pods and Services over https is not supported; use http",
        )));
    }
    forwarded(&mut parts.headers, &base);
    let request = Request::from_parts(parts, body);
    let mut response = forward(&plane.nodes, &plane.tasks, request, &target).await?;
    keep_inside(response.headers_mut(), &base, &target);
    Ok(response)
}

/// The path up to and including `/proxy`, and what follows it.
fn split(path: &str, namespaced: bool) -> (String, String) {
    // "", api, v1, [namespaces, NS,] resource, name, proxy
    let depth = if namespaced { 7 } else { 5 };
    let mut end = path.len();
    if let Some((at, _)) = path.match_indices('/').nth(depth) {
        end = at;
    }
    let (base, rest) = path.split_at(end);
    (base.to_owned(), rest.to_owned())
}

/// `[scheme:]name[:port]`
#[derive(Debug, PartialEq, Eq)]
struct Name {
    scheme: String,
    name: String,
    port: String,
}

impl Name {
    fn parse(text: &str) -> Self {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name, port] => ("", *name, *port),
            [scheme @ ("http" | "https" | ""), name, port] => (*scheme, *name, *port),
            _ => ("", text, ""),
        };
        Name {
            scheme: scheme.to_owned(),
            name: name.to_owned(),
            port: port.to_owned(),
        }
    }
    fn number(&self) -> Option<u16> {
        self.port.parse().ok()
    }
}

fn pod(pod: &Object, name: &Name, path: String) -> Result<Target, Refusal> {
    let ip = pod.pointer("/status/podIP").and_then(Value::as_str).unwrap_or_default();
    if ip.is_empty() {
        return Err(refuse(Status::bad_request(format!(
            "address not allowed: pod {} has no address yet",
            meta::name(pod)
        ))));
    }
    let ports = || {
        pod.pointer("/spec/containers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|container| container.get("ports")?.as_array())
            .flatten()
    };
    let number = |port: &Value| {
        port.get("containerPort")
            .and_then(Value::as_u64)
            .and_then(|port| u16::try_from(port).ok())
    };
    let port = match (name.port.as_str(), name.number()) {
        ("", _) => ports().find_map(number).unwrap_or(80),
        (_, Some(port)) => port,
        (named, None) => ports()
            .find(|port| port.get("name").and_then(Value::as_str) == Some(named))
            .and_then(number)
            .ok_or_else(|| {
                refuse(Status::bad_request(format!(
                    "no port named {named:?} in pod {}",
                    meta::name(pod)
                )))
            })?,
    };
    Ok(Target {
        tls: Trust::Plain,
        host: ip.to_owned(),
        port,
        path,
    })
}

fn service(plane: &ControlPlane, service: &Object, name: &Name, path: String) -> Result<Target, Refusal> {
    let unavailable = |why: &str| refuse(Status::unavailable(format!("{why} {:?}", name.name)));
    let ports: Vec<&Value> = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wanted = match (name.port.as_str(), ports.as_slice()) {
        ("", [one]) => text(one, "name"),
        ("", _) => ports.first().map(|port| text(port, "name")).unwrap_or_default(),
        (asked, _) => ports
            .iter()
            .find(|port| {
                text(port, "name") == asked
                    || port
                        .get("port")
                        .and_then(Value::as_u64)
                        .map(|port| port.to_string())
                        .as_deref()
                        == Some(asked)
            })
            .map(|port| text(port, "name"))
            .ok_or_else(|| unavailable("no service port found for service"))?,
    };
    let prefix = format!("{}/", meta::namespace(service));
    let slices = plane
        .registry
        .storage_of("discovery.k8s.io", "endpointslices")
        .ok_or_else(|| unavailable("no endpoints available for service"))?;
    let mut found = Vec::new();
    for slice in slices
        .snapshot(0)
        .index
        .from(&prefix)
        .take_while(|entry| entry.path().starts_with(&prefix))
    {
        let slice = slice.object();
        if meta::label(&slice, "kubernetes.io/service-name") != Some(meta::name(service)) {
            continue;
        }
        let port = slice
            .get("ports")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|port| text(port, "name") == wanted)
            .and_then(|port| u16::try_from(port.get("port")?.as_u64()?).ok());
        let Some(port) = port else { continue };
        for endpoint in slice.get("endpoints").and_then(Value::as_array).into_iter().flatten() {
            let ready = endpoint
                .pointer("/conditions/ready")
                .and_then(Value::as_bool)
                .unwrap_or(true);
            let address = endpoint.pointer("/addresses/0").and_then(Value::as_str);
            if let (true, Some(address)) = (ready, address) {
                let node = endpoint.get("nodeName").and_then(Value::as_str);
                found.push((address.to_owned(), port, node.map(str::to_owned)));
            }
        }
    }
    if found.is_empty() {
        return Err(unavailable("no endpoints available for service"));
    }
    let (host, port, node) = found.swap_remove(rand::rng().random_range(0..found.len()));
    proxyable(plane, &host, node.as_deref())?;
    Ok(Target {
        tls: Trust::Plain,
        host,
        port,
        path,
    })
}

/// Refuses addresses that mean this machine and not the backend: whoever may write a status or an EndpointSlice
/// must not reach the API server's loopback through it. The address its node is registered with is the exception,
/// for Pods in the network of a node that has no other.
fn proxyable(plane: &ControlPlane, host: &str, node: Option<&str>) -> Result<(), Refusal> {
    let refused = || refuse(Status::bad_request("address not allowed"));
    let address: IpAddr = host.parse().map_err(|_| refused())?;
    let special = match address.to_canonical() {
        IpAddr::V4(v4) => {
            let local_multicast = v4.octets()[..3] == [224, 0, 0];
            v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || local_multicast
        }
        IpAddr::V6(v6) => {
            let local_multicast = v6.is_multicast() && matches!(v6.segments()[0] & 0xf, 1 | 2);
            v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || local_multicast
        }
    };
    if !special {
        return Ok(());
    }
    let nodes = sampan_kinds::find("", "v1", "nodes").ok_or_else(|| refuse(Status::no_such_path()))?;
    let node = node.and_then(|node| find(plane, nodes, "", node).ok());
    let registered = node.as_ref().is_some_and(|node| {
        let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
        addresses.into_iter().flatten().any(|entry| {
            let text = |field: &str| entry.get(field).and_then(Value::as_str);
            text("type") == Some("InternalIP") && text("address") == Some(host)
        })
    });
    if registered { Ok(()) } else { Err(refused()) }
}

/// Tells the backend where it is seen from.
fn forwarded(headers: &mut HeaderMap, base: &str) {
    if let Ok(base) = HeaderValue::from_str(base) {
        headers.insert("x-forwarded-uri", base);
    }
}

/// Redirects of the backend to itself lead through the proxy.
fn keep_inside(headers: &mut HeaderMap, base: &str, target: &Target) {
    let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else {
        return;
    };
    let own = format!("http://{}:{}", target.host, target.port);
    let path = if location.starts_with('/') && !location.starts_with("//") {
        Some(location)
    } else {
        location.strip_prefix(&own)
    };
    if let Some(moved) = path.and_then(|path| HeaderValue::from_str(&format!("{base}{path}")).ok()) {
        headers.insert(LOCATION, moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names() {
        assert_eq!(
            split("/api/v1/namespaces/n/pods/p:80/proxy/a/b/", true),
            ("/api/v1/namespaces/n/pods/p:80/proxy".into(), "/a/b/".into())
        );
        assert_eq!(
            split("/api/v1/nodes/n/proxy", false),
            ("/api/v1/nodes/n/proxy".into(), String::new())
        );
        assert_eq!(split("/api/v1/nodes/n/proxy/metrics", false).1, "/metrics");
        let name = |scheme: &str, name: &str, port: &str| Name {
            scheme: scheme.into(),
            name: name.into(),
            port: port.into(),
        };
        assert_eq!(Name::parse("web"), name("", "web", ""));
        assert_eq!(Name::parse("web:80"), name("", "web", "80"));
        assert_eq!(Name::parse("https:web:http"), name("https", "web", "http"));
        assert_eq!(Name::parse("http:web:"), name("http", "web", ""));
    }
}
