//! The in-process client transport: the same API without a network.
//!
//! A component may have many things to do at once and no network in front of it to slow it down. It is held to a
//! number of requests in progress, so that it waits here instead of filling its priority level's queues
//! and being turned away.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use sampan_auth::UserInfo;
use tokio::sync::Semaphore;

use crate::body::{Body, BoxError};
use crate::control_plane::ControlPlane;

/// Requests of one component that are worked on at once.
const AT_ONCE: usize = 64;

/// A `tower` service that speaks to a control plane as one user. Goes under `kube::Client::new`.
#[derive(Clone)]
pub struct InProcess {
    plane: Arc<ControlPlane>,
    user: Arc<UserInfo>,
    turns: Arc<Semaphore>,
}

impl ControlPlane {
    /// A transport for clients in this process. Authorization, flow control and admission are the network's.
    pub fn connect(self: &Arc<Self>, user: UserInfo) -> InProcess {
        InProcess {
            plane: self.clone(),
            user: Arc::new(user),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let plane = self.plane.clone();
        let mut request = request.map(|body| {
            if body.is_end_stream() {
                Body::Empty
            } else {
                Body::wrap(body)
            }
        });
        request.extensions_mut().insert(self.user.clone());
        let turns = self.turns.clone();
        Box::pin(async move {
            // Never closed; a stream that goes on after its head is not counted.
            let _turn = turns.acquire().await;
            Ok(plane.handle(request).await)
        })
    }
}
