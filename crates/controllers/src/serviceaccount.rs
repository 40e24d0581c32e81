//! Every namespace has a ServiceAccount `default`, which Pods use when they name none.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ObjectMeta, PostParams};
use sampan_client::{Change, Informer, Key, WorkQueue, is_already_exists, is_not_found, is_terminating_namespace};

use crate::namespace::is_terminating;
use crate::{Context, SyncError};

pub(crate) fn start(context: Context) {
    let namespaces = context.informers.of::<Namespace>();
    let accounts = context.informers.of::<ServiceAccount>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let added = queue.clone();
    namespaces.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            added.add(Key::of(change.object().as_ref()));
        }
    });
    let removed = queue.clone();
    accounts.on_change(move |change| {
        if let Change::Deleted(account) = change
            && account.metadata.name.as_deref() == Some("default")
        {
            let namespace = account.metadata.namespace.clone().unwrap_or_default();
            removed.add(Key::new("", namespace));
        }
    });
    let ready = {
        let (namespaces, accounts) = (namespaces.clone(), accounts.clone());
        async move {
            namespaces.synced().await;
            accounts.synced().await;
        }
    };
    let state = Arc::new((context.client.clone(), namespaces, accounts));
    context.run(&queue, ready, move |key| {
        let state = Arc::clone(&state);
        async move { sync(&state.0, &state.1, &state.2, &key).await }
    });
}

async fn sync(
    client: &kube::Client,
    namespaces: &Informer<Namespace>,
    accounts: &Informer<ServiceAccount>,
    key: &Key,
) -> Result<(), SyncError> {
    let Some(namespace) = namespaces.get("", &key.name) else {
        return Ok(());
    };
    if is_terminating(&namespace) || accounts.get(&key.name, "default").is_some() {
        return Ok(());
    }
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some("default".into()),
            namespace: Some(key.name.clone()),
            ..Default::default()
        },
        ..Default::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &key.name);
    match api.create(&PostParams::default(), &account).await {
        Err(error) if is_already_exists(&error) || is_terminating_namespace(&error) || is_not_found(&error) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}
