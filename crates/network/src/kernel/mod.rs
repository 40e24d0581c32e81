//! The kernel's network interfaces this crate uses, and nothing else touches: netlink (links, nftables, conntrack),
//! network namespaces, sysctls.
//!
//! The messages needed are few and the sockets are used from short-lived threads inside other namespaces, so this is
//! a small synchronous encoder of our own instead of the asynchronous netlink crates (which, besides, know neither
//! NAT nor maps of nftables).

pub mod conntrack;
pub mod link;
pub mod neighbour;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod route;
pub mod sysctl;
pub mod vxlan;
pub mod watch;
