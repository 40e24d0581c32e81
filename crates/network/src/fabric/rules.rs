//! The table `sampan-fabric`, there as long as the VXLAN device is.
//!
//! Datagrams of the virtual network are taken from the cluster's machines alone: VXLAN itself believes everybody who
//! knows port and number. And what goes to other nodes' Pods through the device has an address of the Pods' network as
//! source: an answer to any other would not come back through the device, and might not come back at all.

use ipnet::Ipv4Net;

use super::plan::{DEVICE, Own, Plan};
use crate::kernel::nft::{
    self, Data, HOOK_POSTROUTING, HOOK_PREROUTING, NftError, Rule, SetData, SetSpec, Transaction, Verdict, show,
};

pub(crate) const TABLE: &str = "sampan-fabric";
const MACHINES: &str = "machines";

/// The table anew, in one step.
pub(super) fn sync(own: &Own, plan: &Plan) -> Result<(), NftError> {
    let mut t = Transaction::new(TABLE);
    t.fresh_table();
    let machines = SetSpec {
        key_len: 4,
        key_show: show::ADDRESS,
        data: SetData::None,
        timeout_ms: None,
        intervals: false,
    };
    t.add_set(MACHINES, &machines);
    let addresses: Vec<_> = plan
        .machines()
        .into_iter()
        .map(|machine| (nft::word(machine).to_vec(), Data::None))
        .collect();
    t.add_elements(MACHINES, &addresses);

    t.add_base_chain("strangers", "filter", HOOK_PREROUTING, -300);
    let stranger = Rule::new()
        .only_vxlan(own.port, own.vni)
        .destination_is_local()
        .load_source(0)
        .not_in_set(MACHINES)
        .verdict(&Verdict::Drop);
    t.add_rule("strangers", stranger);

    // After the proxy, which takes its mark off what it translates: left on a packet it would be on the datagram around
    // it too, and have that translated.
    t.add_base_chain("postrouting", "nat", HOOK_POSTROUTING, 101);
    let pods: Ipv4Net = own.cluster.unwrap_or(own.pods);
    let foreign = Rule::new().leaves_by(DEVICE, true).source_in(pods, false).masquerade();
    t.add_rule("postrouting", foreign);
    t.commit()
}
