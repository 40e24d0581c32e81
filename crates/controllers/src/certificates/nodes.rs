//! Approves what a joined node needs besides its client certificate: one for its own server, and one for its service proxy.
//!
//! Upstream leaves both to others (a cloud's approver, a Secret mounted into a DaemonSet). What is let through is narrow:
//!
//! - only a node asks, as itself, and its Node object exists;
//! - a serving certificate names that node and addresses the Node reports, none of which is the API server's, a Service's
//!   or another node's: nodes report their own addresses, and must not become somebody else by it;
//! - a client certificate is for `system:kube-proxy` and nothing more, which may read Services and their endpoints.
//!
//! Everything else stays open for a person to decide.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest as Csr;
use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use kube::api::Api;
use sampan_client::{Change, Informer, Key, WorkQueue, or_absent};
use sampan_pki::request::Request;

use super::{approve, is_open, rules, usages, watch};
use crate::{Context, SyncError};

const PROXY: &str = "system:kube-proxy";

struct Approver {
    context: Context,
    requests: Informer<Csr>,
    nodes: Informer<Node>,
}

fn is_ours(csr: &Csr) -> bool {
    is_open(csr)
        && asker(csr).is_some()
        && [rules::KUBELET_SERVING, rules::CLIENT].contains(&csr.spec.signer_name.as_str())
}

/// The node that asks, if it is one.
fn asker(csr: &Csr) -> Option<&str> {
    let name = csr.spec.username.as_deref()?.strip_prefix(rules::NODE_USER)?;
    let mut groups = csr.spec.groups.iter().flatten();
    groups.any(|group| group == rules::NODES).then_some(name)
}

pub(crate) fn start(context: Context) {
    let (requests, queue) = watch(&context, is_ours);
    let nodes = context.informers.of::<Node>();
    // A node asks before it has told its addresses: looked at again when it has.
    let (woken, waiting): (WorkQueue<Key>, _) = (queue.clone(), requests.clone());
    nodes.on_change(move |change| {
        let (Change::Added(node) | Change::Modified { new: node, .. }) = change else {
            return;
        };
        if let Change::Modified { old, .. } = change
            && addresses(old) == addresses(node)
        {
            return;
        }
        for csr in waiting.list() {
            if is_ours(&csr) && asker(&csr) == node.metadata.name.as_deref() {
                woken.add(Key::of(csr.as_ref()));
            }
        }
    });
    let ready = {
        let (requests, nodes) = (requests.clone(), nodes.clone());
        async move {
            requests.synced().await;
            nodes.synced().await;
        }
    };
    let approver = Arc::new(Approver {
        context: context.clone(),
        requests,
        nodes,
    });
    context.run(&queue, ready, move |key| {
        let approver = Arc::clone(&approver);
        async move { approver.sync(&key).await }
    });
}

impl Approver {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(csr) = self.requests.get_key(key).filter(|csr| is_ours(csr)) else {
            return Ok(());
        };
        let Some(node) = asker(&csr).and_then(|name| self.nodes.get("", name)) else {
            return Ok(());
        };
        let Ok(request) = Request::parse(&csr.spec.request.0) else {
            return Ok(());
        };
        let message = if csr.spec.signer_name == rules::CLIENT {
            if !is_for_proxy(&request, usages(&csr)) {
                return Ok(());
            }
            "Auto approving the service proxy's client certificate of a node."
        } else {
            let mut taken = self.api_addresses().await?;
            for other in self.nodes.list() {
                if other.metadata.name != node.metadata.name {
                    taken.extend(addresses(&other));
                }
            }
            if let Err(why) = check_serving(&request, usages(&csr), &node, &taken) {
                tracing::info!(
                    request = key.name,
                    node = node.metadata.name,
                    why,
                    "a node's request for a serving certificate waits for a person"
                );
                return Ok(());
            }
            "Auto approving kubelet serving certificate for the node's own name and addresses."
        };
        approve(&self.context, &csr, "AutoApproved", message).await
    }

    /// Where the API is served: its Service's addresses and those behind it.
    async fn api_addresses(&self) -> Result<BTreeSet<IpAddr>, SyncError> {
        let services: Api<Service> = Api::namespaced(self.context.client.clone(), "default");
        let endpoints: Api<Endpoints> = Api::namespaced(self.context.client.clone(), "default");
        let service = or_absent(services.get("kubernetes").await)?;
        let endpoints = or_absent(endpoints.get("kubernetes").await)?;
        let own = service
            .and_then(|service| service.spec?.cluster_ips)
            .unwrap_or_default();
        let behind = endpoints.and_then(|endpoints| endpoints.subsets).unwrap_or_default();
        let behind = behind
            .into_iter()
            .flat_map(|subset| subset.addresses.unwrap_or_default());
        let texts = own.into_iter().chain(behind.map(|address| address.ip));
        Ok(texts.filter_map(|text| text.parse().ok()).collect())
    }
}

fn addresses(node: &Node) -> BTreeSet<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter_map(|address| address.address.parse().ok()).collect()
}

fn is_for_proxy(request: &Request, usages: &[String]) -> bool {
    request.subject.common_name == PROXY
        && request.subject.organizations.is_empty()
        && request.dns_names.is_empty()
        && request.addresses.is_empty()
        && request.emails.is_empty()
        && request.uris.is_empty()
        && matches!(rules::check(rules::CLIENT, request, usages), Some(Ok(())))
}

/// Names that only the API server bears, or that everybody does.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "localhost"
        || name == "kubernetes"
        || name.starts_with("kubernetes.")
        || name.split('.').any(|part| part == "svc")
}

fn check_serving(request: &Request, usages: &[String], node: &Node, taken: &BTreeSet<IpAddr>) -> Result<(), String> {
    rules::kubelet_serving(request, usages)?;
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if request.subject.common_name.strip_prefix(rules::NODE_USER) != Some(name) {
        return Err("it is for another node than asks".into());
    }
    for dns in &request.dns_names {
        if dns != name || is_reserved(dns) {
            return Err(format!("{dns:?} is not the node's name"));
        }
    }
    let own = addresses(node);
    for address in &request.addresses {
        if !own.contains(address) {
            return Err(format!("the node does not report the address {address}"));
        }
        if taken.contains(address) || address.is_loopback() || address.is_unspecified() {
            return Err(format!("the address {address} is not this node's alone"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use sampan_pki::LeafSpec;
    use sampan_pki::request::ask;
    use serde_json::json;

    use super::*;

    const USAGES: [&str; 2] = ["digital signature", "server auth"];

    fn ip(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
    }

    fn request(name: &str, dns: &[&str], addresses: &[IpAddr]) -> Request {
        let names = dns.iter().map(|name| (*name).to_owned());
        let mut spec = LeafSpec::server(name, names, addresses.iter().copied());
        spec.organization = Some(rules::NODES.into());
        Request::parse(ask(&spec).unwrap().1.as_bytes()).unwrap()
    }

    fn node(name: &str, addresses: &[IpAddr]) -> Node {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"addresses": addresses}})).unwrap()
    }

    #[test]
    fn serving_certificates_are_for_the_node_itself() {
        let usages = USAGES.map(str::to_owned);
        let node_a = node("a", &[ip(7), ip(8), IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        let taken = BTreeSet::from([ip(8), ip(9)]);
        for (name, dns, addresses, says) in [
            ("system:node:a", &["a"][..], &[ip(7)][..], ""),
            ("system:node:a", &[], &[ip(7)], ""),
            ("system:node:b", &["a"], &[ip(7)], "it is for another node than asks"),
            ("system:node:a", &["b"], &[ip(7)], "\"b\" is not the node's name"),
            (
                "system:node:a",
                &["kubernetes"],
                &[ip(7)],
                "\"kubernetes\" is not the node's name",
            ),
            (
                "system:node:a",
                &["a"],
                &[ip(6)],
                "the node does not report the address 192.0.2.6",
            ),
            (
                "system:node:a",
                &["a"],
                &[ip(8)],
                "the address 192.0.2.8 is not this node's alone",
            ),
            (
                "system:node:a",
                &["a"],
                &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
                "the address 127.0.0.1 is not this node's alone",
            ),
        ] {
            let said = check_serving(&request(name, dns, addresses), &usages, &node_a, &taken);
            assert_eq!(said.err().unwrap_or_default(), says, "{name} {dns:?} {addresses:?}");
        }
        // A node may call itself anything, but not take the API server's name.
        for name in [
            "kubernetes",
            "kubernetes.default.svc",
            "localhost",
            "x.svc.cluster.local",
        ] {
            let request = request(&format!("system:node:{name}"), &[name], &[]);
            assert!(
                check_serving(&request, &usages, &node(name, &[]), &taken).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn the_proxys_certificate_is_for_nothing_else() {
        let usages = ["client auth", "digital signature"].map(str::to_owned);
        let of = |spec: &LeafSpec| Request::parse(ask(spec).unwrap().1.as_bytes()).unwrap();
        assert!(is_for_proxy(&of(&LeafSpec::client(PROXY, None)), &usages));
        assert!(!is_for_proxy(
            &of(&LeafSpec::client(PROXY, Some("system:masters"))),
            &usages
        ));
        assert!(!is_for_proxy(&of(&LeafSpec::client("admin", None)), &usages));
        assert!(!is_for_proxy(
            &of(&LeafSpec::client(PROXY, None)),
            &["server auth".to_owned()]
        ));
    }

    #[test]
    fn only_nodes_ask() {
        let csr = |user: &str, group: &str, signer: &str| -> Csr {
            serde_json::from_value(
                json!({"metadata": {"name": "r"}, "spec": {"request": "", "signerName": signer,
                "usages": [], "username": user, "groups": [group]}}),
            )
            .unwrap()
        };
        assert!(is_ours(&csr("system:node:a", rules::NODES, rules::KUBELET_SERVING)));
        assert!(!is_ours(&csr("system:node:a", "other", rules::KUBELET_SERVING)));
        assert!(!is_ours(&csr("jane", rules::NODES, rules::KUBELET_SERVING)));
        assert!(!is_ours(&csr("system:node:a", rules::NODES, rules::KUBELET_CLIENT)));
    }
}
