//! The in-process client transport: the same API without a network.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use sampan_auth::UserInfo;

use crate::body::{Body, BoxError};
use crate::control_plane::ControlPlane;

/// A `tower` service that speaks to a control plane as one user. Goes under `kube::Client::new`.
#[derive(Clone)]
pub struct InProcess {
    plane: Arc<ControlPlane>,
    user: Arc<UserInfo>,
}

impl ControlPlane {
    /// A transport for clients in this process. Authorization, flow control and admission are the network's.
    pub fn connect(self: &Arc<Self>, user: UserInfo) -> InProcess {
        InProcess {
            plane: self.clone(),
            user: Arc::new(user),
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
        Box::pin(async move { Ok(plane.handle(request).await) })
    }
}
