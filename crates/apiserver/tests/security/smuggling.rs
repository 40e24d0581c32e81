//! Requests that end elsewhere than somebody in between may think: a second request hidden in the first must not be
//! answered. On raw sockets over TLS, HTTP/1.1.
//!
//! A body in chunks ends its connection, so that no other reading of its length can make a request of the rest; bare line
//! feeds end lines, as they do upstream.

use crate::attempts::{Attempts, raw};
use crate::common::Api;
use sampan_pki::LeafSpec;

#[tokio::test]
async fn no_request_hides_in_another() {
    let api = Api::start().await;
    let admin = api
        .server
        .pki
        .issue(&LeafSpec::client("joe", Some("system:masters")))
        .unwrap();
    let inner = "GET /api/v1/namespaces/default/pods HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = inner.len();
    let line = "POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\n";
    let post = format!("{line}Host: x\r\nContent-Type: application/json\r\n");
    let chunked = "Transfer-Encoding: chunked\r\n";
    let end = "0\r\n\r\n";
    let hex = format!("{length:x}");
    let mut attempts = Attempts::default();
    for (what, request) in [
        // Two lengths, of which somebody believes the other.
        (
            "a length, then chunks",
            format!("{post}Content-Length: {length}\r\n{chunked}\r\n{end}{inner}"),
        ),
        (
            "chunks, then a length",
            format!("{post}{chunked}Content-Length: {length}\r\n\r\n{end}{inner}"),
        ),
        (
            "chunks in a length of nothing",
            format!("{post}Content-Length: 0\r\n{chunked}\r\n{end}{inner}"),
        ),
        (
            "a length of the first chunk",
            format!("{post}{chunked}Content-Length: 3\r\n\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a request as a chunk",
            format!("{post}Content-Length: 4\r\n{chunked}\r\n{hex}\r\n{inner}\r\n{end}"),
        ),
        (
            "a length that ends in the request",
            format!("{post}{chunked}Content-Length: 6\r\n\r\n0\r\n\r\nG{inner}"),
        ),
        (
            "three lengths",
            format!("{post}Content-Length: 0\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        (
            "a length and a list",
            format!("{post}Content-Length: 0\r\nContent-Length: 0, {length}\r\n\r\n{inner}"),
        ),
        (
            "a length with blanks",
            format!("{post}Content-Length: 0 {length}\r\n\r\n{inner}"),
        ),
        (
            "a length with a comma",
            format!("{post}Content-Length: ,{length}\r\n\r\n{inner}"),
        ),
        (
            "a length as a fraction",
            format!("{post}Content-Length: 0.0\r\n\r\n{inner}"),
        ),
        ("an empty length", format!("{post}Content-Length: \r\n\r\n{inner}")),
        (
            "a length in letters",
            format!("{post}Content-Length: zero\r\n\r\n{inner}"),
        ),
        (
            "a length with an underscore",
            format!("{post}Content_Length: 0\r\nContent-Length: 1_0\r\n\r\n{inner}"),
        ),
        (
            "a length in the first line's way",
            format!("{post}\tContent-Length: 0\r\n\r\n{inner}"),
        ),
        // Codings that one reads and another does not.
        ("chunked twice", format!("{post}{chunked}{chunked}\r\n{end}{inner}")),
        (
            "chunked twice in one",
            format!("{post}Transfer-Encoding: chunked, chunked\r\n\r\n{end}{inner}"),
        ),
        (
            "chunked and identity",
            format!("{post}{chunked}Transfer-Encoding: identity\r\n\r\n{end}{inner}"),
        ),
        (
            "identity and chunked",
            format!("{post}Transfer-Encoding: identity\r\n{chunked}\r\n{end}{inner}"),
        ),
        (
            "identity alone",
            format!("{post}Transfer-Encoding: identity\r\n\r\n{inner}"),
        ),
        (
            "an unknown one and chunked",
            format!("{post}Transfer-Encoding: x\r\n{chunked}\r\n{end}{inner}"),
        ),
        (
            "chunked and an unknown one",
            format!("{post}{chunked}Transfer-Encoding: x\r\n\r\n{end}{inner}"),
        ),
        (
            "gzip and chunked",
            format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n{end}{inner}"),
        ),
        (
            "chunked in capitals",
            format!("{post}Transfer-Encoding: CHUNKED\r\n\r\n{end}{inner}"),
        ),
        (
            "chunked after a tab",
            format!("{post}Transfer-Encoding:\tchunked\r\n\r\n{end}{inner}"),
        ),
        (
            "chunked after a vertical tab",
            format!("{post}Transfer-Encoding: \x0bchunked\r\n\r\n{end}{inner}"),
        ),
        (
            "chunked before a vertical tab",
            format!("{post}Transfer-Encoding: chunked\x0b\r\n\r\n{end}{inner}"),
        ),
        (
            "chunked in quotes",
            format!("{post}Transfer-Encoding: \"chunked\"\r\n\r\n{end}{inner}"),
        ),
        (
            "chunked with a parameter",
            format!("{post}Transfer-Encoding: chunked;q=0\r\n\r\n{end}{inner}"),
        ),
        (
            "chunked with a comma",
            format!("{post}Transfer-Encoding: ,chunked,\r\n\r\n{end}{inner}"),
        ),
        ("an empty coding", format!("{post}Transfer-Encoding: \r\n\r\n{inner}")),
        (
            "a coding with a blank before the colon",
            format!("{post}Transfer-Encoding : chunked\r\n\r\n{end}{inner}"),
        ),
        (
            "a coding after a folded line",
            format!("{post}X-A: b\r\n\tTransfer-Encoding: chunked\r\n\r\n{end}{inner}"),
        ),
        (
            "a coding after a carriage return",
            format!("{post}X-A: b\rTransfer-Encoding: chunked\r\n\r\n{end}{inner}"),
        ),
        (
            "a coding after a line feed",
            format!("{post}X-A: b\nTransfer-Encoding: chunked\r\n\r\n{end}{inner}"),
        ),
        (
            "a coding after a NUL",
            format!("{post}X-A: b\0\r\nTransfer-Encoding: chunked\r\n\r\n{end}{inner}"),
        ),
        (
            "a coding in HTTP/1.0",
            format!("{}{chunked}\r\n{end}{inner}", post.replace("1.1", "1.0")),
        ),
        (
            "a coding in HTTP/1.0 that is kept alive",
            format!(
                "{}Connection: keep-alive\r\n{chunked}\r\n{end}{inner}",
                post.replace("1.1", "1.0")
            ),
        ),
        (
            "a coding that the connection names",
            format!("{post}Connection: Transfer-Encoding\r\n{chunked}\r\n{end}{inner}"),
        ),
        (
            "a length that the connection names",
            format!("{post}Connection: Content-Length\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        // Chunks.
        (
            "an extension of the last chunk",
            format!("{post}{chunked}\r\n0;a=b\r\n\r\n{inner}"),
        ),
        (
            "an extension in quotes",
            format!("{post}{chunked}\r\n0;a=\"\r\n\r\n{inner}\""),
        ),
        (
            "an extension over a line feed",
            format!("{post}{chunked}\r\n0;a\n\r\n{inner}"),
        ),
        (
            "an extension that is a chunk",
            format!("{post}{chunked}\r\n2;\nxx\r\n{hex}\r\n0\r\n\r\n{inner}"),
        ),
        (
            "an extension that never ends",
            format!("{post}{chunked}\r\n1;{}\r\na\r\n{end}{inner}", "a".repeat(100_000)),
        ),
        (
            "an extension of each chunk",
            format!("{post}{chunked}\r\n{}{end}{inner}", "1;x\r\n \r\n".repeat(2000)),
        ),
        (
            "a chunk without a carriage return",
            format!("{post}{chunked}\r\n1\na\n0\n\n{inner}"),
        ),
        (
            "a chunk that ends in a line feed",
            format!("{post}{chunked}\r\n1\r\na\n0\r\n\r\n{inner}"),
        ),
        ("a size after a blank", format!("{post}{chunked}\r\n 0\r\n\r\n{inner}")),
        ("a size before a blank", format!("{post}{chunked}\r\n0 \r\n\r\n{inner}")),
        ("a size in C's way", format!("{post}{chunked}\r\n0x0\r\n\r\n{inner}")),
        ("a size with a sign", format!("{post}{chunked}\r\n+0\r\n\r\n{inner}")),
        (
            "a size with an underscore",
            format!("{post}{chunked}\r\n0_0\r\n\r\n{inner}"),
        ),
        (
            "a size of many noughts",
            format!("{post}{chunked}\r\n{}\r\n\r\n{inner}", "0".repeat(5000)),
        ),
        (
            "a size that wraps",
            format!("{post}{chunked}\r\n10000000000000000\r\n\r\n{inner}"),
        ),
        (
            "a last chunk with something in it",
            format!("{post}{chunked}\r\n0\r\nx\r\n\r\n{inner}"),
        ),
        (
            "a trailer with a length",
            format!("{post}{chunked}\r\n0\r\nContent-Length: 0\r\n\r\n{inner}"),
        ),
        (
            "a trailer with a coding",
            format!("{post}{chunked}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n{end}{inner}"),
        ),
        (
            "a trailer with a name",
            format!("{post}{chunked}Trailer: X-Remote-User\r\n\r\n0\r\nX-Remote-User: admin\r\n\r\n{inner}"),
        ),
        ("a trailer with a request", format!("{post}{chunked}\r\n0\r\n{inner}")),
        (
            "trailers without end",
            format!("{post}{chunked}\r\n0\r\n{}\r\n{inner}", "a: b\r\n".repeat(20_000)),
        ),
        // Heads that are two, or none.
        (
            "a body of a GET",
            format!("GET /version HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        (
            "a body of a HEAD",
            format!("HEAD /version HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        (
            "a body of a DELETE",
            format!(
                "DELETE /api/v1/namespaces/default/pods/x HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{inner}"
            ),
        ),
        (
            "a body that was to be asked for",
            format!("{post}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        (
            "a body for another expectation",
            format!("{post}Expect: x\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        (
            "an upgrade to HTTP/2",
            format!(
                "{post}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: {length}\r\n\r\n{inner}"
            ),
        ),
        (
            "an upgrade to a WebSocket",
            format!(
                "GET /version HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nContent-Length: {length}\r\n\r\n{inner}"
            ),
        ),
        (
            "a CONNECT",
            format!("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n{inner}"),
        ),
        (
            "a preface of HTTP/2",
            format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{inner}"),
        ),
        (
            "a header in the target",
            format!("GET /version\rX: y HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        (
            "a version twice",
            format!("GET /version HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n{inner}"),
        ),
        (
            "a first line that is folded",
            format!("GET /version\r\n HTTP/1.1\r\nHost: x\r\n\r\n{inner}"),
        ),
        (
            "a header without a colon",
            format!("{post}X\r\nContent-Length: 0\r\n\r\n{inner}"),
        ),
        (
            "a header without a name",
            format!("{post}: x\r\nContent-Length: 0\r\n\r\n{inner}"),
        ),
        (
            "a header of other bytes",
            format!("{post}X\u{a0}: x\r\nContent-Length: 0\r\n\r\n{inner}"),
        ),
        (
            "a method of other bytes",
            format!("G\u{c9}T /version HTTP/1.1\r\nHost: x\r\n\r\n{inner}"),
        ),
        (
            "a head too long",
            format!("{post}X: {}\r\nContent-Length: 0\r\n\r\n{inner}", "a".repeat(2 << 20)),
        ),
        (
            "too many headers",
            format!("{post}{}Content-Length: 0\r\n\r\n{inner}", "X: a\r\n".repeat(20_000)),
        ),
        (
            "a body cut short, then a request",
            format!("{post}Content-Length: {}\r\n\r\n{inner}", length + 1),
        ),
    ] {
        let answer = raw(&api, Some(&admin), "http/1.1", request.as_bytes()).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let answers = text.matches("HTTP/1.1 ").count() + text.matches("HTTP/1.0 ").count()
            - text.matches("HTTP/1.1 100 ").count();
        let refused = !text.contains("PodList") && answers <= 1;
        attempts.note(
            format!(
                "{what}: {answers} answers: {}",
                &text.chars().take(300).collect::<String>()
            ),
            refused,
        );
    }
    // An honest body in chunks is taken.
    let review = r#"{"kind":"SelfSubjectReview","apiVersion":"authentication.k8s.io/v1"}"#;
    let honest = format!("{post}{chunked}\r\n{:x}\r\n{review}\r\n{end}", review.len());
    let answer = raw(&api, Some(&admin), "http/1.1", honest.as_bytes()).await;
    let text = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(
        text.starts_with("http/1.1 201") && text.contains("connection: close"),
        "{text}"
    );
    attempts.all_refused("requests in requests", 80);
}
