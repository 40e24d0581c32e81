//! What a joining machine must know of the cluster: the ConfigMap `kube-system/sampan-cluster`.
//!
//! A server writes it at every start; nodes may read it (role `sampan:cluster-facts`). Joined
//! machines follow its authorities; changing the rest changes nothing by itself.

use std::collections::BTreeMap;
use std::str::FromStr;

use futures::{Stream, StreamExt};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::watcher::watch_object;
use sampan_client::{is_already_exists, retry_on_conflict};

use crate::options::Settings;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "sampan-cluster";
const AUTHORITIES: &str = "ca.crt";

/// The facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub pod_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    pub cluster_domain: String,
    /// Whom to believe (PEM), the authority that issues first. Servers before 0.2 do not say.
    pub authorities: Option<String>,
}

impl Facts {
    pub fn of(settings: &Settings, authorities: String) -> Self {
        Facts {
            pod_cidr: settings.pod_cidr,
            service_cidr: settings.service_cidr,
            cluster_domain: settings.cluster_domain.clone(),
            authorities: Some(authorities),
        }
    }

    fn to_data(&self) -> BTreeMap<String, String> {
        let mut data = BTreeMap::from([
            ("podCIDR".to_owned(), self.pod_cidr.to_string()),
            ("serviceCIDR".to_owned(), self.service_cidr.to_string()),
            ("clusterDomain".to_owned(), self.cluster_domain.clone()),
        ]);
        data.extend(self.authorities.clone().map(|bundle| (AUTHORITIES.to_owned(), bundle)));
        data
    }

    fn from_data(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let of = |key: &str| {
            data.get(key)
                .ok_or_else(|| format!("{NAMESPACE}/{NAME} does not say {key}"))
        };
        let range = |key: &str| {
            let text = of(key)?;
            Ipv4Net::from_str(text).map_err(|error| format!("{NAMESPACE}/{NAME}: {key} is {text:?}: {error}"))
        };
        Ok(Facts {
            pod_cidr: range("podCIDR")?,
            service_cidr: range("serviceCIDR")?,
            cluster_domain: of("clusterDomain")?.clone(),
            authorities: data.get(AUTHORITIES).cloned(),
        })
    }

    /// Writes them, if they are not written so already.
    pub async fn publish(&self, client: kube::Client) -> kube::Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            data: Some(self.to_data()),
            ..ConfigMap::default()
        };
        match maps.create(&PostParams::default(), &map).await {
            Err(error) if is_already_exists(&error) => {}
            other => return other.map(|_| ()),
        }
        retry_on_conflict(|| async {
            let mut found = maps.get(NAME).await?;
            if found.data.as_ref() == map.data.as_ref() {
                return Ok(());
            }
            found.data.clone_from(&map.data);
            maps.replace(NAME, &PostParams::default(), &found).await.map(|_| ())
        })
        .await
    }

    /// Tells of the authorities to believe, as they are now and whenever they change.
    pub fn authorities(client: kube::Client) -> impl Stream<Item = Result<String, String>> + Send {
        let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        watch_object(maps, NAME).filter_map(|found| async move {
            match found {
                Ok(map) => map?.data?.remove(AUTHORITIES).map(Ok),
                Err(error) => Some(Err(error.to_string())),
            }
        })
    }

    /// Reads them.
    pub async fn read(client: kube::Client) -> Result<Self, String> {
        let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        let map = maps.get(NAME).await.map_err(|error| error.to_string())?;
        Self::from_data(&map.data.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_survive_and_lacks_are_named() {
        let facts = Facts {
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            authorities: Some("PEM".into()),
        };
        let mut data = facts.to_data();
        assert_eq!(Facts::from_data(&data), Ok(facts));
        data.insert("podCIDR".into(), "x".into());
        assert!(Facts::from_data(&data).unwrap_err().contains("podCIDR is \"x\""));
        data.remove("podCIDR");
        assert!(Facts::from_data(&data).unwrap_err().contains("does not say podCIDR"));
    }
}
