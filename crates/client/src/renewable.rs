//! A client whose identity is renewed under it.
//!
//! Certificates expire while informers and controllers go on for months. Whoever holds [`Renewable::client`] asks through
//! whichever client was given last; until the first one is there, requests wait.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::Body;
use tokio::sync::watch;
use tower::{BoxError, Service};

/// Where the client that is used now is put. Clones share it.
#[derive(Clone, Debug)]
pub struct Renewable(watch::Sender<Option<Inner>>);

#[derive(Clone)]
struct Inner(kube::Client);

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Default for Renewable {
    fn default() -> Self {
        Renewable(watch::channel(None).0)
    }
}

impl Renewable {
    /// Requests go through `client` from now on.
    pub fn renew(&self, client: kube::Client) {
        self.0.send_replace(Some(Inner(client)));
    }

    /// A client that always is the newest.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(Through(self.0.subscribe()), "default")
    }
}

#[derive(Clone)]
struct Through(watch::Receiver<Option<Inner>>);

impl Service<Request<Body>> for Through {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut newest = self.0.clone();
        async move {
            let client = newest.wait_for(Option::is_some).await.map(|inner| inner.clone());
            match client.ok().flatten() {
                Some(Inner(client)) => client.send(request).await.map_err(BoxError::from),
                None => Err("the client was given up before it had an identity".into()),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{Api, ObjectMeta};

    use super::*;
    use crate::testing::FakeApi;

    #[tokio::test]
    async fn requests_wait_for_the_first_and_follow_the_newest() {
        let apis = [FakeApi::new(), FakeApi::new()];
        for (name, api) in ["one", "two"].iter().zip(&apis) {
            api.create(&ConfigMap {
                metadata: ObjectMeta {
                    name: Some((*name).into()),
                    namespace: Some("ns".into()),
                    ..Default::default()
                },
                ..Default::default()
            });
        }
        let renewable = Renewable::default();
        let maps: Api<ConfigMap> = Api::namespaced(renewable.client(), "ns");
        let early = tokio::time::timeout(Duration::from_millis(50), maps.get("one")).await;
        assert!(early.is_err(), "nobody is there to answer");
        let (got, ()) = tokio::join!(maps.get("one"), async { renewable.renew(apis[0].client("a")) });
        got.unwrap();
        renewable.renew(apis[1].client("b"));
        maps.get("two").await.unwrap();
        assert!(maps.get("one").await.is_err());
    }
}
