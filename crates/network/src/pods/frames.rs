//! The table `sampan-frames` of the bridge family: what a Pod may put on its link.
//!
//! All Pod traffic is routed, so an honest Pod's frames are its own IPv4 packets for the gateway, and ARP about itself.
//! Everything else (another's address at layer 2 or 3, frames straight to another Pod, IPv6 of the link, tags) is
//! dropped where it arrives, before the bridge learns or forwards anything. So nobody gets past the rules of the
//! layer above, policies among them, and nobody is believed to be another.
//!
//! Frames between ports there are only where the bridge calls netfilter (`br_netfilter`) and a packet for the gateway
//! was translated on its way: those are IPv4 and asked by the policies like all others. ARP of Pods stays with the machine.
//!
//! A link has its entries before it is a port, and until it is gone.

use std::net::Ipv4Addr;

use super::store::Record;
use crate::kernel::link::{Mac, mac_of};
use crate::kernel::nft::{
    self, Data, Family, HOOK_FORWARD, HOOK_PREROUTING, NftError, Rule, SetData, SetSpec, Transaction, Verdict, show,
};

pub(crate) const TABLE: &str = "sampan-frames";

/// Links of Pods.
const LINKS: &str = "links";
/// Who may be behind which link: its name, hardware address and address.
const PODS: &str = "pods";

/// Before `br_netfilter`, and before the bridge learns.
const FIRST: i32 = -300;

fn set(key: &[u32], key_len: u32) -> SetSpec {
    SetSpec {
        key_len,
        key_show: show::all(key),
        data: SetData::None,
        timeout_ms: None,
        intervals: false,
    }
}

fn pod(link: &str, address: Ipv4Addr) -> Vec<u8> {
    [
        &nft::link_name(link)[..],
        &nft::hardware(mac_of(address)),
        &nft::word(address),
    ]
    .concat()
}

fn put(t: &mut Transaction, record: &Record) {
    t.add_elements(LINKS, &[(nft::link_name(&record.link).to_vec(), Data::None)]);
    t.add_elements(PODS, &[(pod(&record.link, record.ip), Data::None)]);
}

/// Everything anew, for all Pods: at start.
pub(super) fn sync_all<'r>(gateway: Mac, records: impl Iterator<Item = &'r Record>) -> Result<(), NftError> {
    let mut t = Transaction::of(Family::Bridge, TABLE);
    t.fresh_table();
    t.add_set(LINKS, &set(&[show::LINK], 16));
    t.add_set(PODS, &set(&[show::LINK, show::HARDWARE, show::ADDRESS], 28));

    t.add_base_chain("arriving", "filter", HOOK_PREROUTING, FIRST);
    let rules = [
        Rule::new().load_link(0).not_in_set(LINKS).verdict(&Verdict::Accept),
        Rule::new()
            .frame_to(gateway)
            .frame_of_ipv4(true)
            .load_link(0)
            .load_frame_source(4)
            .load_source(6)
            .in_set(PODS)
            .verdict(&Verdict::Accept),
        Rule::new()
            .frame_of_arp()
            .load_link(0)
            .load_frame_source(4)
            .load_arp_address(6)
            .in_set(PODS)
            .load_link(0)
            .load_arp_hardware(4)
            .load_arp_address(6)
            .in_set(PODS)
            .verdict(&Verdict::Accept),
        Rule::new().verdict(&Verdict::Drop),
    ];
    for rule in rules {
        t.add_rule("arriving", rule);
    }
    t.add_base_chain("between", "filter", HOOK_FORWARD, FIRST);
    let arp = Rule::new().load_link(0).in_set(LINKS).frame_of_ipv4(false);
    t.add_rule("between", arp.verdict(&Verdict::Drop));

    for record in records {
        put(&mut t, record);
    }
    t.commit()
}

/// A Pod is about to get its link; that it has its entries already is no error.
pub(super) fn add(record: &Record) -> Result<(), NftError> {
    let mut t = Transaction::of(Family::Bridge, TABLE);
    put(&mut t, record);
    t.commit()
}

/// A Pod's link is gone; that its entries are too is no error.
pub(super) fn remove(record: &Record) -> Result<(), NftError> {
    let mut t = Transaction::of(Family::Bridge, TABLE);
    // Removing what is not there fails; adding what is does not.
    put(&mut t, record);
    t.delete_elements(LINKS, [nft::link_name(&record.link).to_vec()]);
    t.delete_elements(PODS, [pod(&record.link, record.ip)]);
    t.commit()
}

/// The table goes.
pub(crate) fn remove_all() -> Result<(), NftError> {
    let mut t = Transaction::of(Family::Bridge, TABLE);
    t.drop_table();
    t.commit()
}
