//! The HTTP side of an upgrade: what was asked for, and the answer.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use crate::{Refusal, StreamError, UpgradeResponse};

pub(crate) const SPDY: &str = "SPDY/3.1";
pub(crate) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// An upgraded connection.
pub(crate) type UpgradedIo = TokioIo<Upgraded>;

/// The items of a comma-separated header, over all its lines.
pub(crate) fn list(headers: &HeaderMap, name: HeaderName) -> Vec<&str> {
    let lines = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .collect()
}

/// Whether the request asks to become another protocol.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let asks = |token: &str| token.eq_ignore_ascii_case("upgrade");
    list(headers, header::CONNECTION).into_iter().any(asks) && headers.contains_key(header::UPGRADE)
}

/// Whether that other protocol is WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade(headers) && asks_for(headers, "websocket")
}

pub(crate) fn is_spdy(headers: &HeaderMap) -> bool {
    is_upgrade(headers) && asks_for(headers, SPDY)
}

fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    list(headers, header::UPGRADE)
        .into_iter()
        .any(|own| own.eq_ignore_ascii_case(protocol))
}

/// A refusal in plain text.
pub(crate) fn refusal(status: StatusCode, text: impl Into<String>) -> Refusal {
    let mut text = text.into();
    text.push('\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    Box::new(response)
}

/// 101.
pub(crate) fn switching(protocol: &'static str) -> UpgradeResponse {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// Takes the request's upgrade, to be awaited after the answer was sent.
pub(crate) fn taken<B>(request: &mut Request<B>) -> OnUpgrade {
    hyper::upgrade::on(request)
}

pub(crate) async fn upgraded(taken: OnUpgrade) -> Result<UpgradedIo, StreamError> {
    Ok(TokioIo::new(taken.await?))
}

/// Picks the first of the client's stream protocols that the server has too; the answer names it.
pub(crate) fn accept_spdy(
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(UpgradeResponse, &'static str), Refusal> {
    let wanted = list(headers, PROTOCOL_VERSION);
    if wanted.is_empty() {
        return Err(refusal(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: the header X-Stream-Protocol-Version must name a stream protocol",
        ));
    }
    let both = wanted.iter().find_map(|name| supported.iter().find(|own| *own == name));
    let Some(protocol) = both else {
        let mut response = refusal(
            StatusCode::FORBIDDEN,
            format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
                wanted.join(" "),
                supported.join(" ")
            ),
        );
        for own in supported {
            response
                .headers_mut()
                .append(ACCEPTED_VERSIONS, HeaderValue::from_static(own));
        }
        return Err(response);
    };
    let mut response = switching(SPDY);
    response
        .headers_mut()
        .insert(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
    Ok((response, protocol))
}

/// The decoded `name=value` pairs of a query.
pub(crate) fn query_pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    })
}

fn decoded(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let escaped = match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        at += if escaped.is_some() { 3 } else { 1 };
        plain.push(escaped.unwrap_or(if byte == b'+' { b' ' } else { byte }));
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(*name, HeaderValue::from_static(value));
            map
        })
    }

    #[test]
    fn requests_say_what_they_want_to_become() {
        let spdy = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")]);
        assert!(is_spdy(&spdy) && !is_websocket(&spdy));
        assert!(is_websocket(&headers(&[
            ("connection", "upgrade"),
            ("upgrade", "WebSocket")
        ])));
        assert!(!is_upgrade(&headers(&[("upgrade", "websocket")])));
    }

    #[test]
    fn the_clients_favourite_common_protocol_wins() {
        let supported = ["v4", "v3"];
        let wants = headers(&[
            ("x-stream-protocol-version", "v5"),
            ("x-stream-protocol-version", "v3, v4"),
        ]);
        let (response, protocol) = accept_spdy(&wants, &supported).unwrap();
        assert_eq!((response.status().as_u16(), protocol), (101, "v3"));
        assert_eq!(response.headers()[PROTOCOL_VERSION], "v3");
        let refused = accept_spdy(&headers(&[("x-stream-protocol-version", "v9")]), &supported).unwrap_err();
        assert_eq!(refused.status(), 403);
        assert_eq!(list(refused.headers(), ACCEPTED_VERSIONS), ["v4", "v3"]);
        assert_eq!(accept_spdy(&HeaderMap::new(), &supported).unwrap_err().status(), 400);
    }

    #[test]
    fn queries_are_decoded() {
        let pairs: Vec<_> = query_pairs("a=1&&b+c=%2Fx%&d").collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(pairs, [pair("a", "1"), pair("b c", "/x%"), pair("d", "")]);
    }
}
