//! What a request to each of the cluster's signers may hold. Pure.
//!
//! Source: `pkg/apis/certificates/helpers.go` and `pkg/controller/certificates/signer` upstream; the messages are theirs.

use std::collections::BTreeSet;

use sampan_pki::request::Request;

pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// The user names of nodes begin so.
pub const NODE_USER: &str = "system:node:";
/// The group of nodes.
pub const NODES: &str = "system:nodes";

/// Why a request is not for its signer.
pub type Refusal = String;

/// Checks a request for one of the cluster's signers. `None`: the signer is somebody else.
pub fn check(signer: &str, request: &Request, usages: &[String]) -> Option<Result<(), Refusal>> {
    Some(match signer {
        CLIENT => client(usages),
        KUBELET_CLIENT => kubelet_client(request, usages),
        KUBELET_SERVING => kubelet_serving(request, usages),
        LEGACY => Ok(()),
        _ => return None,
    })
}

fn client(usages: &[String]) -> Result<(), Refusal> {
    let fine = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !fine.contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages.iter().any(|usage| usage == "client auth") {
        return Err("missing required usage for client certificate: client auth".into());
    }
    Ok(())
}

pub fn kubelet_client(request: &Request, usages: &[String]) -> Result<(), Refusal> {
    organization(request)?;
    for (names, what) in [
        (request.dns_names.len(), "DNS"),
        (request.emails.len(), "Email"),
        (request.addresses.len(), "IP"),
        (request.uris.len(), "URI"),
    ] {
        if names > 0 {
            return Err(format!("{what} subjectAltNames are not allowed"));
        }
    }
    node_name(request)?;
    exactly(usages, "client auth")
}

pub fn kubelet_serving(request: &Request, usages: &[String]) -> Result<(), Refusal> {
    organization(request)?;
    if request.dns_names.is_empty() && request.addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required".into());
    }
    if !request.emails.is_empty() {
        return Err("Email subjectAltNames are not allowed".into());
    }
    if !request.uris.is_empty() {
        return Err("URI subjectAltNames are not allowed".into());
    }
    exactly(usages, "server auth")?;
    node_name(request)
}

fn organization(request: &Request) -> Result<(), Refusal> {
    if request.subject.organizations == [NODES] {
        Ok(())
    } else {
        Err("subject organization is not system:nodes".into())
    }
}

fn node_name(request: &Request) -> Result<(), Refusal> {
    if request.subject.common_name.starts_with(NODE_USER) {
        Ok(())
    } else {
        Err("subject common name does not begin with system:node:".into())
    }
}

/// This usage and signatures; key encipherment is for RSA keys and may be left out.
fn exactly(usages: &[String], main: &str) -> Result<(), Refusal> {
    let have: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let mut want = BTreeSet::from(["digital signature", main]);
    if have == want {
        return Ok(());
    }
    want.insert("key encipherment");
    if have == want {
        return Ok(());
    }
    let mut list = ["digital signature", "key encipherment", main];
    list.sort_unstable();
    Err(format!("usages did not match [{}]", list.join(" ")))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use sampan_pki::LeafSpec;
    use sampan_pki::request::ask;

    use super::*;

    fn request(name: &str, organization: Option<&str>, dns: &[&str], addresses: &[[u8; 4]]) -> Request {
        let mut spec = LeafSpec::server(
            name,
            dns.iter().map(|name| (*name).to_owned()),
            addresses.iter().map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
        );
        spec.organization = organization.map(str::to_owned);
        Request::parse(ask(&spec).unwrap().1.as_bytes()).unwrap()
    }

    #[test]
    fn what_each_signer_takes() {
        let node = request("system:node:a", Some(NODES), &[], &[]);
        let server = request("system:node:a", Some(NODES), &["a"], &[[192, 0, 2, 1]]);
        let user = request("jane", Some("dev"), &[], &[]);
        let outsider = request("a", Some(NODES), &[], &[]);
        for (signer, request, usages, says) in [
            (CLIENT, &user, "client auth", Some("")),
            (
                CLIENT,
                &user,
                "client auth,digital signature,key encipherment",
                Some(""),
            ),
            (
                CLIENT,
                &user,
                "digital signature",
                Some("missing required usage for client certificate: client auth"),
            ),
            (
                CLIENT,
                &user,
                "client auth,server auth",
                Some("invalid usage for client certificate: server auth"),
            ),
            (KUBELET_CLIENT, &node, "client auth,digital signature", Some("")),
            (
                KUBELET_CLIENT,
                &node,
                "client auth,digital signature,key encipherment",
                Some(""),
            ),
            (
                KUBELET_CLIENT,
                &node,
                "client auth",
                Some("usages did not match [client auth digital signature key encipherment]"),
            ),
            (
                KUBELET_CLIENT,
                &server,
                "client auth,digital signature",
                Some("DNS subjectAltNames are not allowed"),
            ),
            (
                KUBELET_CLIENT,
                &user,
                "client auth,digital signature",
                Some("subject organization is not system:nodes"),
            ),
            (
                KUBELET_CLIENT,
                &outsider,
                "client auth,digital signature",
                Some("subject common name does not begin with system:node:"),
            ),
            (KUBELET_SERVING, &server, "server auth,digital signature", Some("")),
            (
                KUBELET_SERVING,
                &node,
                "server auth,digital signature",
                Some("DNS or IP subjectAltName is required"),
            ),
            (
                KUBELET_SERVING,
                &server,
                "client auth,digital signature",
                Some("usages did not match [digital signature key encipherment server auth]"),
            ),
            (LEGACY, &user, "code signing", Some("")),
            ("example.com/other", &user, "client auth", None),
        ] {
            let usages: Vec<String> = usages.split(',').map(str::to_owned).collect();
            let said = check(signer, request, &usages).map(|result| result.err().unwrap_or_default());
            assert_eq!(said.as_deref(), says, "{signer} {usages:?}");
        }
    }
}
