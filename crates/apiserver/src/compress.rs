//! Gzip for large answers that cross a network.
//!
//! Upstream compresses bodies above 128 KiB for whoever accepts it. Here a peer on this machine gets them as
//! they are: compressing would cost both sides more than the loopback does.

use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, VARY};
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame};

use crate::body::{Body, BoxError};

const WORTH_IT: u64 = 128 << 10;

/// Marks an answer that goes out as it came from a backend.
#[derive(Clone, Copy, Debug)]
pub struct Verbatim;

/// Whether this client takes gzip and is far enough away.
pub fn asked(headers: &HeaderMap, peer: SocketAddr) -> bool {
    !peer.ip().is_loopback()
        && headers
            .get_all(ACCEPT_ENCODING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|coding| {
                let mut parts = coding.split(';').map(str::trim);
                parts.next() == Some("gzip") && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
            })
}

/// Compresses a large body of known size.
pub fn response(response: Response<Body>) -> Response<Body> {
    let large = response.body().size_hint().exact().is_some_and(|size| size > WORTH_IT);
    if !large || response.extensions().get::<Verbatim>().is_some() || response.headers().contains_key(CONTENT_ENCODING)
    {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let body = Gzip {
        inner: body,
        encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())),
    };
    Response::from_parts(parts, Body::Boxed(Box::pin(body)))
}

struct Gzip {
    inner: Body,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl http_body::Body for Gzip {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if self.encoder.is_none() {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => {
                    let (Ok(data), Some(encoder)) = (frame.into_data(), self.encoder.as_mut()) else {
                        continue;
                    };
                    encoder.write_all(&data)?;
                    if encoder.get_ref().len() >= 32 << 10 {
                        let chunk = std::mem::take(encoder.get_mut());
                        return Poll::Ready(Some(Ok(Frame::data(chunk.into()))));
                    }
                }
                Some(Err(error)) => {
                    self.encoder = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let rest = self
                        .encoder
                        .take()
                        .map(GzEncoder::finish)
                        .transpose()?
                        .unwrap_or_default();
                    return Poll::Ready(Some(Ok(Frame::data(rest.into()))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Read;

    #[tokio::test]
    async fn large_bodies_shrink_and_small_ones_stay() {
        let text = "kubernetes ".repeat(50_000);
        let packed = response(Response::new(Body::from(text.clone())));
        assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip");
        let bytes = packed.into_body().collect().await.unwrap().to_bytes();
        assert!(bytes.len() < text.len() / 10);
        let mut back = String::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_string(&mut back)
            .unwrap();
        assert_eq!(back, text);
        assert!(
            !response(Response::new(Body::from("small")))
                .headers()
                .contains_key(CONTENT_ENCODING)
        );
    }

    #[test]
    fn only_distant_peers_that_ask() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("deflate, gzip;q=0.5"));
        assert!(asked(&headers, "192.0.2.1:1".parse().unwrap()));
        assert!(!asked(&headers, "127.0.0.1:1".parse().unwrap()));
    }
}
