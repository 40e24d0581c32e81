//! Every namespace has a ConfigMap `kube-root-ca.crt` with the certificate authority that Pods check the API server by.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ObjectMeta, PostParams};
use sampan_client::{
    Change, Informer, Key, Selection, WorkQueue, is_already_exists, is_not_found, is_terminating_namespace,
};

use sampan_pki::Present;

use crate::namespace::is_terminating;
use crate::{Context, SyncError, follow_root_ca};

const NAME: &str = "kube-root-ca.crt";
const ANNOTATION: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

struct Publisher {
    client: kube::Client,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    bundle: Present<String>,
}

pub(crate) fn start(context: Context) {
    let Some(bundle) = context.config.root_ca.clone() else {
        tracing::info!("no certificate authority was given: {NAME} is not published");
        return;
    };
    let namespaces = context.informers.of::<Namespace>();
    // Only the published maps are of interest: no need to hold every ConfigMap of the cluster.
    let maps = context
        .informers
        .with::<ConfigMap>(Selection::fields(format!("metadata.name={NAME}")));
    let queue: WorkQueue<Key> = WorkQueue::default();
    let added = queue.clone();
    namespaces.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            added.add(Key::of(change.object().as_ref()));
        }
    });
    let changed = queue.clone();
    maps.on_change(move |change| {
        let namespace = change.object().metadata.namespace.clone();
        changed.add(Key::new("", namespace.unwrap_or_default()));
    });
    {
        let (queue, namespaces) = (queue.clone(), namespaces.clone());
        follow_root_ca(&context, &bundle, move || {
            for namespace in namespaces.list() {
                queue.add(Key::of(namespace.as_ref()));
            }
        });
    }
    let ready = {
        let (namespaces, maps) = (namespaces.clone(), maps.clone());
        async move {
            namespaces.synced().await;
            maps.synced().await;
        }
    };
    let publisher = Arc::new(Publisher {
        client: context.client.clone(),
        namespaces,
        maps,
        bundle,
    });
    context.run(&queue, ready, move |key| {
        let publisher = Arc::clone(&publisher);
        async move { publisher.sync(&key).await }
    });
}

impl Publisher {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(namespace) = self.namespaces.get("", &key.name) else {
            return Ok(());
        };
        if is_terminating(&namespace) {
            return Ok(());
        }
        let wanted = BTreeMap::from([("ca.crt".to_owned(), String::clone(&self.bundle.get()))]);
        let note = (ANNOTATION.to_owned(), DESCRIPTION.to_owned());
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &key.name);
        let outcome = match self.maps.get(&key.name, NAME) {
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(NAME.into()),
                        namespace: Some(key.name.clone()),
                        annotations: Some([note].into()),
                        ..Default::default()
                    },
                    data: Some(wanted),
                    ..Default::default()
                };
                api.create(&PostParams::default(), &map).await
            }
            Some(found) => {
                let annotated = found.metadata.annotations.as_ref();
                if found.data.as_ref() == Some(&wanted) && annotated.and_then(|a| a.get(ANNOTATION)) == Some(&note.1) {
                    return Ok(());
                }
                let mut map = ConfigMap::clone(&found);
                map.data = Some(wanted);
                map.metadata.annotations.get_or_insert_default().insert(note.0, note.1);
                api.replace(NAME, &PostParams::default(), &map).await
            }
        };
        match outcome {
            Err(error) if is_already_exists(&error) || is_terminating_namespace(&error) || is_not_found(&error) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }
}
