//! The end of a request: its seat is kept while a large answer is read, and what one hears that got none.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response};
use http_body::{Frame, SizeHint};

use super::Place;
use crate::body::{Body, BoxError};
use crate::registry::reply::response;
use crate::request::{Query, RequestInfo};

/// Answers beyond this are read over a while; smaller ones are as good as sent.
const LARGE: usize = 64 << 10;

/// Whether the request's work goes on while its answer is read: lists, and watches that begin with the state.
pub fn keeps_seat(info: &RequestInfo, query: &Query) -> bool {
    match info.verb.as_str() {
        "watch" => query.flag("sendInitialEvents") || matches!(query.text("resourceVersion"), None | Some("0")),
        _ => true,
    }
}

/// Ties a seat to a body: it is free when the body is through, dropped, or has nothing more to say for now.
pub fn hold(body: Body, seat: Place) -> Body {
    match body {
        Body::Empty => Body::Empty,
        Body::Full(bytes) if bytes.len() < LARGE => Body::Full(bytes),
        body => Body::Boxed(Box::pin(Held { body, seat: Some(seat) })),
    }
}

struct Held {
    body: Body,
    seat: Option<Place>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // A watch that waits for changes has sent its state.
        if !matches!(frame, Poll::Ready(Some(Ok(_)))) || self.body.is_end_stream() {
            self.seat = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// `429 Too Many Requests`, as upstream says it: not a Status.
pub fn come_back(seconds: i64) -> Response<Body> {
    let mut response = response(
        429,
        "text/plain; charset=utf-8",
        "Too many requests, please try again later.\n",
    );
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, seconds.into());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
