//! ServiceAccount: every Pod runs as one, and finds its token, the cluster's CA and its namespace mounted.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sampan_api::{Object, meta};
use serde_json::{Value, json};

use super::{Notes, Operation, Plugin, Reader, Review, spec_list, text};
use crate::Refusal;
use crate::registry::meta::suffix;
use crate::watch_cache::{Entry, Scope, Start};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// An hour and a little, so that it is told from what people ask for.
const EXPIRES: i64 = 3607;
const WAIT: Duration = Duration::from_secs(2);

pub struct ServiceAccount(Reader);

impl ServiceAccount {
    pub fn new(reader: Reader) -> Self {
        ServiceAccount(reader)
    }
}

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create && review.is_core("pods")
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Object, _: &mut Notes) -> Result<(), Refusal> {
        if meta::annotation(pod, MIRROR).is_some() {
            return self.check_mirror(review, pod);
        }
        let name = match text(pod, "/spec/serviceAccountName") {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("serviceAccountName".into(), name.as_str().into());
            spec.insert("serviceAccount".into(), name.as_str().into());
        }
        let Some(account) = self.account(review.namespace, &name).await else {
            return Err(review.refuse(
                pod,
                &format!(
                    "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                    review.namespace
                ),
            ));
        };
        let account = account.object();
        let automount = pod
            .pointer("/spec/automountServiceAccountToken")
            .or_else(|| account.get("automountServiceAccountToken"))
            .and_then(Value::as_bool)
            .unwrap_or(true);
        if automount {
            mount_token(pod);
        }
        let has_secrets = pod
            .pointer("/spec/imagePullSecrets")
            .and_then(Value::as_array)
            .is_some_and(|all| !all.is_empty());
        if let (false, Some(secrets)) = (has_secrets, account.get("imagePullSecrets").and_then(Value::as_array))
            && !secrets.is_empty()
        {
            *spec_list(pod, "imagePullSecrets") = secrets.clone();
        }
        Ok(())
    }
}

impl ServiceAccount {
    /// The account. The default one of a namespace just made is waited for: its controller is on the way.
    async fn account(&self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        let path = format!("{namespace}/{name}");
        let storage = self.0.storage("serviceaccounts")?;
        if let Some(account) = storage.get(&path) {
            return Some(account);
        }
        if name != "default" {
            return None;
        }
        let mut watch = storage.watch(Scope::Object(path.clone()), Start::Now, 0).ok()?;
        let appears = async {
            while storage.get(&path).is_none() {
                watch.queue.recv().await?;
            }
            storage.get(&path)
        };
        tokio::time::timeout(WAIT, appears).await.ok().flatten()
    }

    /// Mirror Pods of static Pods may not reach for anything in the API.
    fn check_mirror(&self, review: &Review<'_>, pod: &Object) -> Result<(), Refusal> {
        if !text(pod, "/spec/serviceAccountName").is_empty() {
            return Err(review.refuse(pod, "a mirror pod may not reference service accounts"));
        }
        let projects_token = pod
            .pointer("/spec/volumes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .any(|volume| {
                volume
                    .pointer("/projected/sources")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .any(|source| source.get("serviceAccountToken").is_some())
            });
        if projects_token {
            return Err(review.refuse(pod, "a mirror pod may not use ServiceAccountToken volume projections"));
        }
        Ok(())
    }
}

fn mount_token(pod: &mut Object) {
    let existing = pod
        .pointer("/spec/volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|volume| volume.get("name").and_then(Value::as_str))
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let volume = existing
        .clone()
        .unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", suffix()));
    let mut needed = false;
    for field in ["initContainers", "containers"] {
        let containers = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            let taken = mounts
                .iter()
                .any(|mount| mount.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH));
            if !taken {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if needed && existing.is_none() {
        spec_list(pod, "volumes").push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": EXPIRES}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
                ],
            },
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_and_never_over_something_else() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod);
        let name = pod["spec"]["volumes"][0]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], name.as_str());
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(),
            1
        );
        let before = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, before);
    }
}
