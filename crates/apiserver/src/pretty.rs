//! JSON for people: two spaces per level, as Go's encoder indents.
//!
//! Upstream indents when the query says `pretty` and for the usual tools at a terminal or in a browser. The bytes are
//! re-spaced as they go by, so a list of any length costs no memory and keeps the order of its fields.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;

use crate::body::{Body, BoxError};
use crate::request::Query;

/// Whether the client is to be given indented JSON.
pub fn asked(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(stated) = query.text("pretty") {
        return matches!(stated, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(USER_AGENT).map_or(&[][..], |agent| agent.as_bytes());
    [&b"curl"[..], b"Wget", b"Mozilla/5.0"]
        .iter()
        .any(|known| agent.starts_with(known))
}

/// Indents a JSON answer; any other is left as it is.
pub fn response(response: Response<Body>) -> Response<Body> {
    let json = HeaderValue::from_static("application/json");
    if response.headers().get(CONTENT_TYPE) != Some(&json) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let mut indent = Indent::default();
    let body = match body {
        Body::Empty => Body::Empty,
        Body::Full(bytes) => Body::Full(indent.feed(&bytes)),
        Body::Boxed(inner) => Body::Boxed(Box::pin(Indented { inner, indent })),
    };
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, body)
}

/// Where the writer is between two pieces of text.
#[derive(Default)]
struct Indent {
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// A list or map was opened and nothing has been said in it.
    opened: bool,
}

impl Indent {
    fn feed(&mut self, text: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(text.len() + text.len() / 2);
        for byte in text {
            self.byte(*byte, &mut out);
        }
        out.freeze()
    }

    fn line(&self, out: &mut BytesMut) {
        out.extend_from_slice(b"\n");
        for _ in 0..self.depth {
            out.extend_from_slice(b"  ");
        }
    }

    fn byte(&mut self, byte: u8, out: &mut BytesMut) {
        if self.in_text {
            out.extend_from_slice(&[byte]);
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
            return;
        }
        if byte.is_ascii_whitespace() {
            return;
        }
        let closes = matches!(byte, b'}' | b']');
        let was_opened = std::mem::take(&mut self.opened);
        if closes {
            self.depth = self.depth.saturating_sub(1);
        }
        // An empty list or map stays on one line.
        if was_opened != closes {
            self.line(out);
        }
        out.extend_from_slice(&[byte]);
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => {
                self.depth += 1;
                self.opened = true;
            }
            b':' => out.extend_from_slice(b" "),
            b',' => self.line(out),
            _ => {}
        }
    }
}

struct Indented {
    inner: Pin<Box<dyn http_body::Body<Data = Bytes, Error = BoxError> + Send>>,
    indent: Indent,
}

impl http_body::Body for Indented {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.inner
            .as_mut()
            .poll_frame(context)
            .map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| self.indent.feed(&bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_indented_as_go_indents_it() {
        let value = serde_json::json!({"a": [1, {"b": "x,\"{:\\"}, []], "c": {}, "d": null, "e": -1.5});
        for piece in [1, 3, 1000] {
            let mut indent = Indent::default();
            let text = value.to_string();
            let out: Vec<u8> = text
                .as_bytes()
                .chunks(piece)
                .flat_map(|chunk| indent.feed(chunk).to_vec())
                .collect();
            assert_eq!(
                String::from_utf8(out).unwrap(),
                serde_json::to_string_pretty(&value).unwrap()
            );
        }
    }

    #[test]
    fn people_are_known_by_their_tools() {
        let mut headers = HeaderMap::new();
        assert!(!asked(&headers, &Query::parse("")));
        assert!(asked(&headers, &Query::parse("pretty=true")));
        headers.insert(USER_AGENT, HeaderValue::from_static("curl/8.0"));
        assert!(asked(&headers, &Query::parse("")));
        assert!(!asked(&headers, &Query::parse("pretty=false")));
        headers.insert(USER_AGENT, HeaderValue::from_static("kubectl/v1.36"));
        assert!(!asked(&headers, &Query::parse("")));
    }
}
