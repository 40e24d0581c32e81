//! `/etc/hosts`, `/etc/resolv.conf` and the host name of a Pod. Pure: the host's own files come in as text.

use k8s_openapi::api::core::v1::Pod;
use sampan_runtime::DnsConfig;

/// What the cluster's DNS is, as Pods see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDns {
    pub servers: Vec<String>,
    pub domain: String,
}

/// The short host name, and the full one where the Pod has a subdomain.
pub fn host_names(pod: &Pod, domain: &str) -> (String, String) {
    let spec = super::spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let given = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let mut host = given.unwrap_or_else(|| super::name(pod)).to_owned();
    if given.is_none() && host.len() > 63 {
        host.truncate(63);
        host.truncate(host.trim_end_matches(['-', '.']).len());
    }
    let full = spec
        .subdomain
        .as_deref()
        .filter(|subdomain| !subdomain.is_empty())
        .map(|subdomain| format!("{host}.{subdomain}.{}.svc.{domain}", super::namespace(pod)))
        .unwrap_or_default();
    (host, full)
}

/// What `hostname` prints inside.
pub fn sandbox_hostname(pod: &Pod, domain: &str) -> Result<String, String> {
    let (short, full) = host_names(pod, domain);
    if super::spec(pod).set_hostname_as_fqdn != Some(true) || full.is_empty() {
        return Ok(short);
    }
    if full.len() > 64 {
        return Err(format!(
            "failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

/// The hosts file of a Pod with these addresses.
pub fn hosts(pod: &Pod, ips: &[String], domain: &str, of_host: &str) -> String {
    let mut out = String::new();
    if super::host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(of_host);
        if !of_host.is_empty() && !of_host.ends_with('\n') {
            out.push('\n');
        }
    } else {
        out.push_str(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let (short, full) = host_names(pod, domain);
        for ip in ips {
            if full.is_empty() {
                out.push_str(&format!("{ip}\t{short}\n"));
            } else {
                out.push_str(&format!("{ip}\t{full}\t{short}\n"));
            }
        }
    }
    let aliases = super::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            out.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    out
}

/// Reads a resolv.conf.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
            Some("search") => out.searches = words.map(str::to_owned).collect(),
            Some("options") => out.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    out
}

/// The resolver configuration by the Pod's policy, and what had to be left out.
pub fn dns(pod: &Pod, cluster: &ClusterDns, host: &DnsConfig) -> (DnsConfig, Vec<String>) {
    let spec = super::spec(pod);
    let mut notes = Vec::new();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let by_cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !super::host_network(pod),
        _ => false,
    };
    let mut out = if policy == "None" {
        DnsConfig::default()
    } else if by_cluster && !cluster.servers.is_empty() {
        let domain = &cluster.domain;
        let mut searches = vec![
            format!("{}.svc.{domain}", super::namespace(pod)),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches.extend(host.searches.iter().cloned());
        DnsConfig {
            servers: cluster.servers.clone(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        if by_cluster {
            notes.push(format!(
                "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. Falling back to \"Default\" policy.",
                super::display(pod)
            ));
        }
        host.clone()
    };
    if let Some(extra) = &spec.dns_config {
        out.servers.extend(extra.nameservers.iter().flatten().cloned());
        out.searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            out.options.retain(|have| have.split(':').next() != Some(name.as_str()));
            out.options
                .push(match option.value.as_deref().filter(|value| !value.is_empty()) {
                    Some(value) => format!("{name}:{value}"),
                    None => name,
                });
        }
    }
    dedup(&mut out.servers);
    dedup(&mut out.searches);
    if out.servers.len() > 3 {
        out.servers.truncate(3);
        notes.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            out.servers.join(" ")
        ));
    }
    let before = out.searches.len();
    out.searches.truncate(32);
    while out.searches.join(" ").len() > 2048 {
        out.searches.pop();
    }
    if out.searches.len() < before {
        notes.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            out.searches.join(" ")
        ));
    }
    (out, notes)
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;
    use serde_json::json;

    #[test]
    fn hosts_files() {
        let plain = pod(json!({"containers": [], "subdomain": "sub",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts(&plain, &["10.0.0.7".into()], "cluster.local", "ignored");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.0.0.7\tp.sub.ns.svc.cluster.local\tp\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        let host = pod(json!({"containers": [], "hostNetwork": true}));
        let text = hosts(&host, &[], "cluster.local", "127.0.0.1 me");
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n");
    }

    #[test]
    fn resolver_configuration_by_policy() {
        let cluster = ClusterDns {
            servers: vec!["10.96.0.10".into()],
            domain: "cluster.local".into(),
        };
        let host = parse_resolv_conf("# c\nnameserver 9.9.9.9\nsearch example.org\noptions edns0\n");
        let searches = [
            "ns.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
            "example.org",
        ];
        for (spec, servers, search, options) in [
            (
                json!({"containers": []}),
                &["10.96.0.10"][..],
                &searches[..],
                &["ndots:5"][..],
            ),
            (
                json!({"containers": [], "dnsPolicy": "Default"}),
                &["9.9.9.9"],
                &["example.org"],
                &["edns0"],
            ),
            (
                json!({"containers": [], "hostNetwork": true}),
                &["9.9.9.9"],
                &["example.org"],
                &["edns0"],
            ),
            (
                json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                &["10.96.0.10"],
                &searches,
                &["ndots:5"],
            ),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1", "1.1.1.1"],
                    "searches": ["x"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                &["1.1.1.1"],
                &["x"],
                &["ndots:2", "edns0"],
            ),
            (
                json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
                &["10.96.0.10"],
                &searches,
                &["ndots:1"],
            ),
        ] {
            let (got, notes) = dns(&pod(spec.clone()), &cluster, &host);
            assert_eq!(got.servers, servers, "{spec}");
            assert_eq!(got.searches, search, "{spec}");
            assert_eq!(got.options, options, "{spec}");
            assert!(notes.is_empty());
        }
        let many = pod(json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1", "2", "3", "4"]}}));
        let (got, notes) = dns(&many, &cluster, &host);
        assert_eq!((got.servers.len(), notes.len()), (3, 1));
    }

    #[test]
    fn host_names_are_cut_and_qualified() {
        let mut long = pod(json!({"containers": []}));
        long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(9)));
        assert_eq!(host_names(&long, "d").0, "a".repeat(62));
        let fqdn = pod(json!({"containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}));
        assert_eq!(sandbox_hostname(&fqdn, "c.l").as_deref(), Ok("h.s.ns.svc.c.l"));
        let too_long = pod(
            json!({"containers": [], "hostname": "h".repeat(40), "subdomain": "s".repeat(30), "setHostnameAsFQDN": true}),
        );
        assert!(sandbox_hostname(&too_long, "c.l").is_err());
    }
}
