//! Bootstrap tokens: what has expired is removed, and the ConfigMap `kube-public/cluster-info`, if there is one, is
//! signed with every token that is meant for that.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use sampan_client::{Change, Informer, Key, Selection, WorkQueue, is_conflict, or_absent};
use sampan_pki::jws;

use crate::pods::delay;
use crate::{Context, SyncError};

const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
const CLUSTER_INFO: (&str, &str) = ("kube-public", "cluster-info");
const SIGNATURE: &str = "jws-kubeconfig-";

fn tokens(context: &Context) -> Informer<Secret> {
    let only = Selection::fields(format!("type={SECRET_TYPE}"));
    context.informers.with::<Secret>(only)
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(SECRET_TYPE) && secret.metadata.namespace.as_deref() == Some(NAMESPACE)
}

fn data<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes
        .and_then(|bytes| std::str::from_utf8(&bytes.0).ok())
        .unwrap_or_default()
}

/// How much longer the token is good: `None` for ever, nothing for one that has expired or says something else than a time.
fn left(secret: &Secret, now: Timestamp) -> Option<SignedDuration> {
    match data(secret, "expiration") {
        "" => None,
        text => Some(
            text.parse::<Timestamp>()
                .map_or(SignedDuration::ZERO, |at| at.duration_since(now)),
        ),
    }
}

/// Removes tokens when they expire.
pub(crate) fn start_cleaner(context: Context) {
    let tokens = tokens(&context);
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    tokens.on_change(move |change| {
        let secret = change.object();
        if is_token(secret) && !matches!(change, Change::Deleted(_)) {
            changed.add(Key::of(secret.as_ref()));
        }
    });
    let ready = {
        let tokens = tokens.clone();
        async move { tokens.synced().await }
    };
    let state = Arc::new((context.clone(), tokens, queue.clone()));
    context.run(&queue, ready, move |key| {
        let state = Arc::clone(&state);
        async move { clean(&state.0, &state.1, &state.2, key).await }
    });
}

async fn clean(
    context: &Context,
    tokens: &Informer<Secret>,
    queue: &WorkQueue<Key>,
    key: Key,
) -> Result<(), SyncError> {
    let Some(secret) = tokens.get(&key.namespace, &key.name) else {
        return Ok(());
    };
    let Some(left) = left(&secret, context.clock.now()) else {
        return Ok(());
    };
    if left.is_positive() {
        queue.add_after(key, delay(left));
        return Ok(());
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: secret.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let api: Api<Secret> = Api::namespaced(context.client.clone(), NAMESPACE);
    match or_absent(api.delete(&key.name, &params).await) {
        // Somebody made another of the same name.
        Err(error) if is_conflict(&error) => Ok(()),
        other => Ok(other.map(|_gone| ())?),
    }
}

/// Keeps the signatures of `cluster-info`.
pub(crate) fn start_signer(context: Context) {
    let tokens = tokens(&context);
    let maps = context
        .informers
        .with::<ConfigMap>(Selection::fields(format!("metadata.name={}", CLUSTER_INFO.1)));
    let queue: WorkQueue<Key> = WorkQueue::default();
    let key = Key::new(CLUSTER_INFO.0, CLUSTER_INFO.1);
    let (changed, the_map) = (queue.clone(), key.clone());
    tokens.on_change(move |change| {
        if is_token(change.object()) {
            changed.add(the_map.clone());
        }
    });
    let (changed, the_map) = (queue.clone(), key);
    maps.on_change(move |change| {
        if change.object().metadata.namespace.as_deref() == Some(CLUSTER_INFO.0) {
            changed.add(the_map.clone());
        }
    });
    let ready = {
        let (tokens, maps) = (tokens.clone(), maps.clone());
        async move {
            tokens.synced().await;
            maps.synced().await;
        }
    };
    let state = Arc::new((context.clone(), tokens, maps, queue.clone()));
    context.run(&queue, ready, move |key| {
        let state = Arc::clone(&state);
        async move { sign(&state.0, &state.1, &state.2, &state.3, key).await }
    });
}

async fn sign(
    context: &Context,
    tokens: &Informer<Secret>,
    maps: &Informer<ConfigMap>,
    queue: &WorkQueue<Key>,
    key: Key,
) -> Result<(), SyncError> {
    let Some(map) = maps.get(&key.namespace, &key.name) else {
        return Ok(());
    };
    let Some(content) = map.data.as_ref().and_then(|data| data.get("kubeconfig")) else {
        return Ok(());
    };
    let now = context.clock.now();
    let mut wanted = BTreeMap::new();
    for secret in tokens.list() {
        if !is_token(&secret) {
            continue;
        }
        let left = left(&secret, now);
        if let Some((id, signature)) = signature(&secret, content, left) {
            wanted.insert(format!("{SIGNATURE}{id}"), signature);
            // Its signature goes with it, whoever removes the Secret.
            if let Some(left) = left {
                queue.add_after(key.clone(), delay(left));
            }
        }
    }
    let all = map.data.iter().flatten();
    let (signatures, mut rest): (BTreeMap<_, _>, BTreeMap<_, _>) = all
        .map(|(name, value)| (name.clone(), value.clone()))
        .partition(|(name, _)| name.starts_with(SIGNATURE));
    if signatures == wanted {
        return Ok(());
    }
    rest.extend(wanted);
    let mut map = (*map).clone();
    map.data = Some(rest);
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &key.namespace);
    match or_absent(api.replace(&key.name, &PostParams::default(), &map).await) {
        // Our view is old: its change is on the way here.
        Err(error) if is_conflict(&error) => Ok(()),
        other => Ok(other.map(|_written| ())?),
    }
}

/// The signature of a token that is meant for signing.
fn signature(secret: &Secret, content: &str, left: Option<SignedDuration>) -> Option<(String, String)> {
    let id = data(secret, "token-id");
    let own = secret.name_any().strip_prefix(PREFIX) == Some(id) && id.len() == 6;
    let key = data(secret, "token-secret");
    let good = own
        && !key.is_empty()
        && left.is_none_or(|left| left.is_positive())
        && data(secret, "usage-bootstrap-signing") == "true";
    good.then(|| (id.to_owned(), jws::detached(content, id, key)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::ByteString;
    use kube::api::ObjectMeta;
    use sampan_client::Clock;

    use super::*;
    use crate::testing::Cluster;

    fn token(id: &str, expiration: Option<String>) -> Secret {
        let text = |text: &str| ByteString(text.as_bytes().to_vec());
        let mut data = BTreeMap::from([
            ("token-id".to_owned(), text(id)),
            ("token-secret".to_owned(), text("0123456789abcdef")),
            ("usage-bootstrap-signing".to_owned(), text("true")),
        ]);
        data.extend(expiration.map(|at| ("expiration".to_owned(), text(&at))));
        Secret {
            metadata: ObjectMeta {
                name: Some(format!("{PREFIX}{id}")),
                namespace: Some(NAMESPACE.into()),
                ..Default::default()
            },
            type_: Some(SECRET_TYPE.into()),
            data: Some(data),
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_go_in_time_and_their_signatures_with_them() {
        let cluster = Cluster::start(&["token-cleaner-controller", "bootstrap-signer-controller"]);
        let api = &cluster.api;
        let soon = cluster.clock.now() + SignedDuration::from_secs(60);
        api.create(&token("aaaaaa", Some(soon.to_string())));
        api.create(&token("bbbbbb", None));
        api.create(&token("cccccc", Some("whenever".into())));
        api.create(&ConfigMap {
            metadata: ObjectMeta {
                name: Some("cluster-info".into()),
                namespace: Some("kube-public".into()),
                ..Default::default()
            },
            data: Some(BTreeMap::from([("kubeconfig".into(), "content".into())])),
            ..Default::default()
        });
        let keys = || -> Vec<String> {
            let map: ConfigMap = api.get("kube-public", "cluster-info").unwrap();
            map.data.unwrap_or_default().into_keys().collect()
        };
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(keys(), ["jws-kubeconfig-aaaaaa", "jws-kubeconfig-bbbbbb", "kubeconfig"]);
        assert!(api.get::<Secret>(NAMESPACE, "bootstrap-token-cccccc").is_none());
        let map: ConfigMap = api.get("kube-public", "cluster-info").unwrap();
        assert_eq!(
            map.data.unwrap()["jws-kubeconfig-bbbbbb"],
            jws::detached("content", "bbbbbb", "0123456789abcdef")
        );
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(api.get::<Secret>(NAMESPACE, "bootstrap-token-aaaaaa").is_none());
        assert!(api.get::<Secret>(NAMESPACE, "bootstrap-token-bbbbbb").is_some());
        assert_eq!(keys(), ["jws-kubeconfig-bbbbbb", "kubeconfig"]);
    }
}
