//! The proxy subresources: any request, to a node's server, a Pod's port or a Service's endpoint.
//!
//! Names may carry a scheme and a port: `https:name:port`. Method, path, query and body go on byte for byte; what is
//! about the connection does not. Answers come back as they are, but for links of pages (see [`super::links`]) and
//! headers by which a backend would speak for the API server's own origin.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    LOCATION,
};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use rand::Rng;
use sampan_api::status::Status;
use sampan_api::{Object, meta};
use sampan_kinds::Resource;
use serde_json::Value;

use super::backend::{Failure, Target, Trust, forward, node_target};
use super::find;
use super::links::{self, Links};
use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::dispatch::Incoming;
use crate::front::Peer;
use crate::{Refusal, refuse};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

pub async fn serve(
    plane: &Arc<ControlPlane>,
    resource: &'static Resource,
    incoming: Incoming,
) -> Result<Response<Body>, Refusal> {
    let Incoming {
        mut parts, body, info, ..
    } = incoming;
    let upgrade = sampan_streams::is_upgrade(&parts.headers);
    let uri = parts.uri.clone();
    let (base, rest) = split(uri.path(), resource.namespaced);
    let name = Name::parse(&info.name).ok_or_else(|| {
        refuse(Status::bad_request(format!(
            "invalid {} request {:?}",
            resource.singular, info.name
        )))
    })?;
    let path = match parts.uri.query() {
        Some(query) => format!("{}?{query}", if rest.is_empty() { "/" } else { rest }),
        None if rest.is_empty() => "/".to_owned(),
        None => rest.to_owned(),
    };
    let target = match resource.plural {
        "nodes" => node(plane, &find(plane, resource, "", &name.name)?, &name, path)?,
        "pods" => {
            let object = find(plane, resource, &info.namespace, &name.name)?;
            let target = pod(&object, &name, path)?;
            let node = object.pointer("/spec/nodeName").and_then(Value::as_str);
            proxyable(plane, &target.host, node)?;
            target
        }
        _ => service(
            plane,
            &find(plane, resource, &info.namespace, &name.name)?,
            &name,
            &info.name,
            path,
        )?,
    };
    if rest.is_empty() && !upgrade && matches!(parts.method, Method::GET | Method::HEAD) {
        return to_directory(base, parts.uri.query());
    }
    let links = Links {
        base: base.to_owned(),
        backend: target.authority(),
        asked: asked_host(&parts),
    };
    forwarded(&mut parts, base, rest, upgrade);
    let method = parts.method.clone();
    let host = if links.asked.is_empty() {
        &links.backend
    } else {
        &links.asked
    };
    let request = Request::from_parts(parts, body);
    let response = forward(&plane.backends, &plane.tasks, request, &target, host)
        .await
        .map_err(|failure| {
            if upgrade {
                failure.dialing()
            } else {
                failure.unreachable()
            }
        })?;
    if upgrade {
        return upgraded(response);
    }
    answer(response, links, &method)
}

/// Relative links of a first page need the slash.
fn to_directory(base: &str, query: Option<&str>) -> Result<Response<Body>, Refusal> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let location =
        HeaderValue::from_str(&format!("{base}/{query}")).map_err(|error| refuse(Status::internal(error)))?;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// The path up to and including `/proxy`, and what follows it, as they were sent.
fn split(path: &str, namespaced: bool) -> (&str, &str) {
    // api, v1, [namespaces, NS,] resource, name, proxy; an encoded slash divides like any other.
    let depth = if namespaced { 7 } else { 5 };
    let bytes = path.as_bytes();
    let (mut at, mut seen) = (0, 0);
    while let Some(byte) = bytes.get(at) {
        let encoded = *byte == b'%'
            && bytes
                .get(at + 1..at + 3)
                .is_some_and(|hex| hex.eq_ignore_ascii_case(b"2f"));
        if *byte == b'/' || encoded {
            if seen == depth {
                return path.split_at(at);
            }
            seen += 1;
        }
        at += if encoded { 3 } else { 1 };
    }
    (path, "")
}

/// `[scheme:]name[:port]`
#[derive(Debug, PartialEq, Eq)]
struct Name {
    scheme: String,
    name: String,
    port: String,
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme @ ("http" | "https" | ""), name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        (!name.is_empty()).then(|| Name {
            scheme: scheme.to_owned(),
            name: name.to_owned(),
            port: port.to_owned(),
        })
    }

    fn number(&self) -> Option<u16> {
        self.port.parse().ok()
    }

    fn trust(&self) -> Trust {
        if self.scheme == "https" {
            Trust::Anyone
        } else {
            Trust::Plain
        }
    }

    /// The port, where there is no more to it than its number.
    fn asked_port(&self, host: &str) -> Result<Option<u16>, Refusal> {
        if self.port.is_empty() {
            return Ok(None);
        }
        let unknown = Failure::Dial(format!("dial tcp {host}: lookup tcp/{}: unknown port", self.port));
        self.number().map(Some).ok_or_else(|| unknown.unreachable())
    }
}

fn node(plane: &ControlPlane, node: &Object, name: &Name, path: String) -> Result<Target, Refusal> {
    let mut target = node_target(node, path)?;
    let own_port = target.port;
    if let Some(port) = name.asked_port(&target.host)?.filter(|port| *port != own_port) {
        target.port = port;
        target.tls = name.trust();
    }
    // Whoever may write a node's status must not lead the administrator's requests to this machine's own services;
    // a node that lives on the loopback is reached at the port it registered and no other.
    let special = target.host.parse::<IpAddr>().is_ok_and(is_special);
    if special && (target.port != own_port || own_port == plane.config.advertise.port()) {
        return Err(refuse(Status::bad_request("address not allowed")));
    }
    Ok(target)
}

fn pod(pod: &Object, name: &Name, path: String) -> Result<Target, Refusal> {
    let ip = pod.pointer("/status/podIP").and_then(Value::as_str).unwrap_or_default();
    if ip.is_empty() {
        return Err(refuse(Status::bad_request("address not allowed")));
    }
    let first = || {
        pod.pointer("/spec/containers")?
            .as_array()?
            .iter()
            .find_map(|container| container.pointer("/ports/0/containerPort")?.as_u64())
            .and_then(|port| u16::try_from(port).ok())
    };
    let usual = if name.scheme == "https" { 443 } else { 80 };
    let port = name.asked_port(ip)?.or_else(first).unwrap_or(usual);
    Ok(Target {
        tls: name.trust(),
        host: ip.to_owned(),
        port,
        path,
    })
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// One of the ready Pods behind a Service's port. Endpoints that are not Pods of the Service's own namespace are not
/// led to: anybody may write those.
fn service(plane: &ControlPlane, service: &Object, name: &Name, asked: &str, path: String) -> Result<Target, Refusal> {
    let unavailable = |why: String| refuse(Status::unavailable(why));
    let namespace = meta::namespace(service);
    let wanted = match name.port.parse::<i64>() {
        Ok(number) => service
            .pointer("/spec/ports")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|port| port.get("port").and_then(Value::as_i64) == Some(number))
            .map(|port| text(port, "name"))
            .ok_or_else(|| unavailable(format!("no service port {number} found for service {:?}", name.name)))?,
        Err(_) => name.port.as_str(),
    };
    let mut found = Vec::new();
    let mut any = false;
    let prefix = format!("{namespace}/");
    if let Some(slices) = plane.registry.storage_of("discovery.k8s.io", "endpointslices") {
        let snapshot = slices.snapshot(0);
        let own = snapshot
            .index
            .from(&prefix)
            .take_while(|entry| entry.path().starts_with(&prefix))
            .map(|entry| entry.object())
            .filter(|slice| meta::label(slice, "kubernetes.io/service-name") == Some(meta::name(service)));
        for slice in own {
            any |= items(&slice, "endpoints").next().is_some();
            let port = items(&slice, "ports")
                .find(|port| text(port, "name") == wanted)
                .and_then(|port| u16::try_from(port.get("port")?.as_u64()?).ok());
            let Some(port) = port else { continue };
            let ready = items(&slice, "endpoints").filter(|endpoint| {
                endpoint
                    .pointer("/conditions/ready")
                    .and_then(Value::as_bool)
                    .unwrap_or(true)
            });
            for endpoint in ready {
                if let Some((address, node)) = of_pod(plane, namespace, endpoint) {
                    found.push((address, port, node));
                }
            }
        }
    }
    if found.is_empty() {
        let named = if any { asked } else { &name.name };
        return Err(unavailable(format!("no endpoints available for service {named:?}")));
    }
    let (host, port, node) = found.swap_remove(rand::rng().random_range(0..found.len()));
    proxyable(plane, &host, node.as_deref())?;
    Ok(Target {
        tls: name.trust(),
        host,
        port,
        path,
    })
}

/// Address and node of an endpoint, if it is the Pod it says it is.
fn of_pod(plane: &ControlPlane, namespace: &str, endpoint: &Value) -> Option<(String, Option<String>)> {
    let address = endpoint.pointer("/addresses/0")?.as_str()?;
    let reference = endpoint.get("targetRef")?;
    if text(reference, "kind") != "Pod" || text(reference, "namespace") != namespace {
        return None;
    }
    let pod = plane
        .registry
        .storage_of("", "pods")?
        .get(&format!("{namespace}/{}", text(reference, "name")))?
        .object();
    let its = |value: &Value| value.as_str() == Some(address);
    let main = pod.pointer("/status/podIP").is_some_and(its);
    let other = pod
        .pointer("/status/podIPs")
        .and_then(Value::as_array)
        .is_some_and(|all| all.iter().any(|one| one.get("ip").is_some_and(its)));
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).map(str::to_owned);
    (main || other).then(|| (address.to_owned(), node))
}

/// Refuses addresses that mean this machine and not the backend: whoever may write a status or an EndpointSlice
/// must not reach the API server's loopback through it. The address its node is registered with is the exception,
/// for Pods in the network of a node that has no other.
fn proxyable(plane: &ControlPlane, host: &str, node: Option<&str>) -> Result<(), Refusal> {
    let refused = || refuse(Status::bad_request("address not allowed"));
    let address: IpAddr = host.parse().map_err(|_| refused())?;
    if !is_special(address) {
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

/// Whether an address is no other machine's: what is not global unicast.
fn is_special(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast(),
    }
}

/// The authority the client named.
fn asked_host(parts: &Parts) -> String {
    let header = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    header.or(authority).unwrap_or_default().to_owned()
}

/// Tells the backend who asks, and where it is seen from.
fn forwarded(parts: &mut Parts, base: &str, rest: &str, upgrade: bool) {
    if let Some(Peer(peer)) = parts.extensions.get::<Peer>() {
        append_forwarded_for(&mut parts.headers, *peer);
    }
    if !upgrade && let Ok(uri) = HeaderValue::from_str(&links::joined(base, rest)) {
        parts.headers.insert(X_FORWARDED_URI, uri);
    }
}

/// Adds the client to the list of those a request came through.
pub fn append_forwarded_for(headers: &mut HeaderMap, peer: SocketAddr) {
    let before: Vec<&str> = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let peer = peer.ip().to_canonical().to_string();
    let all = before.into_iter().chain([peer.as_str()]).collect::<Vec<_>>().join(", ");
    if let Ok(all) = HeaderValue::from_str(&all) {
        headers.insert(X_FORWARDED_FOR, all);
    }
}

/// An answer to an upgrade is the other protocol or an error; a page would be taken for the protocol.
fn upgraded(response: Response<Body>) -> Result<Response<Body>, Refusal> {
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS && status.as_u16() < 400 {
        return Err(refuse(Status::new(
            500,
            "",
            format!("invalid upgrade response: status code {}", status.as_u16()),
        )));
    }
    Ok(response)
}

/// The backend's answer as the client may see it.
fn answer(response: Response<Body>, links: Links, method: &Method) -> Result<Response<Body>, Refusal> {
    let (mut parts, body) = response.into_parts();
    for name in [
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN,
    ] {
        parts.headers.remove(name);
    }
    if let Some(location) = parts.headers.get(LOCATION) {
        let location = location.to_str().map_err(|error| {
            refuse(Status::internal(format!(
                "error trying to parse Location header: {error}"
            )))
        })?;
        let moved = links
            .rewritten(location)
            .and_then(|moved| HeaderValue::from_str(&moved).ok());
        if let Some(moved) = moved {
            parts.headers.insert(LOCATION, moved);
        }
        return Ok(Response::from_parts(parts, body));
    }
    let said = |name: HeaderName| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let html = said(CONTENT_TYPE)
        .split(';')
        .next()
        .is_some_and(|kind| kind.trim() == "text/html");
    // Without a page there is nothing to rewrite, and the length is the page's.
    if !html || method == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304) {
        return Ok(Response::from_parts(parts, body));
    }
    let body = match links::page(body, links, said(CONTENT_ENCODING)) {
        Ok(page) => {
            parts.headers.remove(CONTENT_LENGTH);
            page
        }
        Err(unknown) => unknown,
    };
    Ok(Response::from_parts(parts, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names() {
        assert_eq!(
            split("/api/v1/namespaces/n/pods/p:80/proxy/a/b/", true),
            ("/api/v1/namespaces/n/pods/p:80/proxy", "/a/b/")
        );
        assert_eq!(split("/api/v1/nodes/n/proxy", false), ("/api/v1/nodes/n/proxy", ""));
        assert_eq!(split("/api/v1/nodes/n/proxy/metrics", false).1, "/metrics");
        assert_eq!(
            split("/api/v1/nodes%2Fn/proxy/a%2fb//c/../d", false),
            ("/api/v1/nodes%2Fn/proxy", "/a%2fb//c/../d")
        );
        let name = |scheme: &str, name: &str, port: &str| {
            Some(Name {
                scheme: scheme.into(),
                name: name.into(),
                port: port.into(),
            })
        };
        assert_eq!(Name::parse("web"), name("", "web", ""));
        assert_eq!(Name::parse("web:80"), name("", "web", "80"));
        assert_eq!(Name::parse("https:web:http"), name("https", "web", "http"));
        assert_eq!(Name::parse("http:web:"), name("http", "web", ""));
        for bad in ["", ":80", "ftp:web:1", "a:b:c:d", "https::1"] {
            assert_eq!(Name::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_that_are_no_other_machines() {
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_special(address.parse().unwrap()), "{address}");
        }
        for address in ["10.0.0.1", "192.0.2.1", "2001:db8::1"] {
            assert!(!is_special(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn the_list_of_forwarders_grows() {
        let mut headers = HeaderMap::new();
        append_forwarded_for(&mut headers, "192.0.2.1:5".parse().unwrap());
        append_forwarded_for(&mut headers, "[::ffff:192.0.2.2]:5".parse().unwrap());
        assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.1, 192.0.2.2");
    }
}
