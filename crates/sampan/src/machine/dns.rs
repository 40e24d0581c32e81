//! The cluster's name server as a Service: `kube-system/kube-dns`, whose endpoint is this node's listener.
//!
//! Pods ask the Service's address; the proxy leads them to the bridge's address, where the server listens.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, PostParams};
use sampan_client::{is_already_exists, is_not_found, retry_on_conflict};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// (port name, protocol)
const PORTS: [(&str, &str); 2] = [("dns", "UDP"), ("dns-tcp", "TCP")];

/// Makes the Service and this node's endpoint, or brings them up to date.
pub async fn publish(
    client: &kube::Client,
    node: &str,
    service_address: IpAddr,
    listener: Ipv4Addr,
) -> kube::Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    match services.create(&PostParams::default(), &service(service_address)).await {
        Err(error) if !is_already_exists(&error) => return Err(error),
        _ => {}
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let wanted = slice(node, listener);
    let name = wanted.metadata.name.clone().unwrap_or_default();
    retry_on_conflict(|| async {
        match slices.get(&name).await {
            Err(error) if is_not_found(&error) => slices.create(&PostParams::default(), &wanted).await.map(|_| ()),
            Err(error) => Err(error),
            Ok(before) if before.endpoints == wanted.endpoints && before.ports == wanted.ports => Ok(()),
            Ok(before) => {
                let mut update = wanted.clone();
                update.metadata.resource_version = before.metadata.resource_version;
                slices.replace(&name, &PostParams::default(), &update).await.map(|_| ())
            }
        }
    })
    .await
}

fn labels(more: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    let common = [
        ("k8s-app", NAME),
        ("kubernetes.io/cluster-service", "true"),
        ("kubernetes.io/name", "CoreDNS"),
    ];
    Some(
        common
            .iter()
            .chain(more)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    )
}

fn service(address: IpAddr) -> Service {
    let port = |(name, protocol): (&str, &str)| ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: 53,
        target_port: Some(IntOrString::Int(53)),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            labels: labels(&[]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.to_string()),
            ports: Some(PORTS.into_iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn slice(node: &str, listener: Ipv4Addr) -> EndpointSlice {
    let port = |(name, protocol): (&str, &str)| EndpointPort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: Some(53),
        ..EndpointPort::default()
    };
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{NAME}-{node}")),
            labels: labels(&[
                ("kubernetes.io/service-name", NAME),
                ("endpointslice.kubernetes.io/managed-by", "sampan-dns"),
            ]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![listener.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(node.into()),
            ..Endpoint::default()
        }]),
        ports: Some(PORTS.into_iter().map(port).collect()),
    }
}
