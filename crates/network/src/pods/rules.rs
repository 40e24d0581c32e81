//! The table `sampan-pods`: traffic of Pods to the outside, host ports, and Pods that reach themselves.

use super::{PodNetworkConfig, store::Record};
use crate::kernel::nft::{
    self, Data, Element, HOOK_OUTPUT, HOOK_POSTROUTING, HOOK_PREROUTING, NftError, Rule, SetData, SetSpec, Transaction,
    Verdict, show,
};

pub(crate) const TABLE: &str = "sampan-pods";

/// Pods of this node, each as a pair of itself: who is translated back to itself (through a Service or a host port)
/// must seem to come from the gateway, or the answer would never pass here.
const HAIRPIN: &str = "pods";
const HOST_PORTS: &str = "host-ports";
const HOST_ADDRESS_PORTS: &str = "host-address-ports";

/// Everything anew, for all Pods: at start.
pub(super) fn sync_all<'r>(
    config: &PodNetworkConfig,
    records: impl Iterator<Item = &'r Record>,
) -> Result<(), NftError> {
    let mut t = Transaction::new(TABLE);
    t.fresh_table();
    let endpoint = SetData::Values {
        len: 8,
        show: show::all(&[show::ADDRESS, show::PORT]),
    };
    let set = |key_len, key_show, data| SetSpec {
        key_len,
        key_show,
        data,
        timeout_ms: None,
        intervals: false,
    };
    t.add_set(
        HAIRPIN,
        &set(8, show::all(&[show::ADDRESS, show::ADDRESS]), SetData::None),
    );
    t.add_set(HOST_PORTS, &set(8, show::all(&[show::PROTOCOL, show::PORT]), endpoint));
    t.add_set(
        HOST_ADDRESS_PORTS,
        &set(12, show::all(&[show::ADDRESS, show::PROTOCOL, show::PORT]), endpoint),
    );

    t.add_base_chain("forged", "filter", HOOK_PREROUTING, -300);
    let loopback = ipnet::Ipv4Net::new_assert([127, 0, 0, 0].into(), 8);
    let bridge = config.bridge.as_str();
    // Links packets of this machine's loopback may leave by accept some from there too; none from outside is meant.
    let from_outside = || Rule::new().arrives_by("lo", false);
    t.add_rule(
        "forged",
        from_outside().destination_in(loopback, true).verdict(&Verdict::Drop),
    );
    t.add_rule(
        "forged",
        from_outside().source_in(loopback, true).verdict(&Verdict::Drop),
    );

    // Just before the proxy's chains.
    for (chain, hook) in [("prerouting", HOOK_PREROUTING), ("output", HOOK_OUTPUT)] {
        t.add_base_chain(chain, "nat", hook, -101);
        let by_address = Rule::new().load_destination(0).load_protocol(1).load_port(2);
        t.add_rule(chain, by_address.load_from(HOST_ADDRESS_PORTS).translate_destination());
        let by_port = Rule::new().destination_is_local().load_protocol(0).load_port(1);
        t.add_rule(chain, by_port.load_from(HOST_PORTS).translate_destination());
    }

    t.add_base_chain("postrouting", "nat", HOOK_POSTROUTING, 99);
    t.add_rule(
        "postrouting",
        Rule::new()
            .translated()
            .load_source(0)
            .load_destination(1)
            .in_set(HAIRPIN)
            .masquerade(),
    );
    t.add_rule(
        "postrouting",
        Rule::new()
            .leaves_by(bridge, true)
            .source_in(loopback, true)
            .masquerade(),
    );
    let mut leaving = Rule::new()
        .leaves_by(bridge, false)
        .source_in(config.pod_cidr, true)
        .destination_in(config.pod_cidr, false);
    if let Some(cluster) = config.cluster_cidr {
        leaving = leaving.destination_in(cluster, false);
    }
    t.add_rule("postrouting", leaving.masquerade());

    for record in records {
        for (set, elements) in elements(record) {
            t.add_elements(set, &elements);
        }
    }
    t.commit()
}

fn elements(record: &Record) -> [(&'static str, Vec<Element>); 3] {
    let ip = nft::word(record.ip);
    let (mut by_port, mut by_address) = (Vec::new(), Vec::new());
    for port in &record.host_ports {
        let key = [nft::protocol(port.protocol.number()), nft::port(port.host_port)].concat();
        let target = Data::Value([ip, nft::port(port.container_port)].concat());
        match port.host_ip.filter(|ip| !ip.is_unspecified()) {
            Some(host) => by_address.push(([&nft::word(host)[..], &key].concat(), target)),
            None => by_port.push((key, target)),
        }
    }
    [
        (HAIRPIN, vec![([ip, ip].concat(), Data::None)]),
        (HOST_PORTS, by_port),
        (HOST_ADDRESS_PORTS, by_address),
    ]
}

/// A Pod comes, goes, or changes its ports.
pub(super) fn replace(old: Option<&Record>, new: Option<&Record>) -> Result<(), NftError> {
    if old == new {
        return Ok(());
    }
    let mut t = Transaction::new(TABLE);
    for (set, elements) in old.map(elements).into_iter().flatten() {
        t.delete_elements(set, elements.into_iter().map(|(key, _)| key));
    }
    for (set, elements) in new.map(elements).into_iter().flatten() {
        t.add_elements(set, &elements);
    }
    t.commit()
}
