//! Where a request carries its token, and taking it out again.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};

/// The WebSocket subprotocol that carries a token, since browsers cannot set headers.
pub(super) const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of `Authorization: Bearer …`, or of a WebSocket subprotocol.
pub fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let from_header = |value: &HeaderValue| {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
    };
    headers
        .get(header::AUTHORIZATION)
        .and_then(from_header)
        .or_else(|| websocket_token(headers))
}

fn websocket_token(headers: &HeaderMap) -> Option<String> {
    // Only an upgrade may carry one, and exactly one.
    let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return None;
    }
    let mut tokens = protocols(headers).filter_map(|protocol| protocol.strip_prefix(WEBSOCKET_BEARER));
    let token = tokens.next()?;
    if tokens.next().is_some() {
        return None;
    }
    String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
}

/// Takes credentials out of the headers, so that no one further on (a node, a log) sees them.
pub fn remove_credentials(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    if protocols(headers).any(|protocol| protocol.starts_with(WEBSOCKET_BEARER)) {
        let rest: Vec<_> = protocols(headers)
            .filter(|protocol| !protocol.starts_with(WEBSOCKET_BEARER))
            .collect();
        let rest = HeaderValue::from_str(&rest.join(", ")).ok();
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, rest);
        }
    }
}
