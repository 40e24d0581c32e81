//! The network of one node: addresses for Pods, Services that answer, names that resolve.
//!
//! - [`PodNetwork`]: a bridge, a veth pair and an address per Pod, host ports, traffic to the outside world;
//! - [`Fabric`]: routes to the Pods of other nodes, through VXLAN where there is no common segment;
//! - [`Proxy`]: Services and EndpointSlices as nftables rules, changed by what changed;
//! - [`Policies`]: NetworkPolicies as nftables rules, in force before a Pod is connected;
//! - [`Dns`]: the cluster's domain answered from informers, everything else forwarded;
//! - [`cleanup`]: the machine as it was before.
//!
//! Invariants:
//! - everything made in the kernel can be found again and removed by a later process: names are derived, and what
//!   cannot be derived (addresses given, settings changed) is on disk before it is in the kernel;
//! - every operation is idempotent; a node that restarts goes on where it was, with Pods keeping their addresses;
//! - only the tables `sampan`, `sampan-pods`, `sampan-policy` and `sampan-fabric`, routes with our mark, the VXLAN device, the bridge,
//!   its ports and the namespaces made here are touched.
//!
//! For now IPv4 only.

mod cleanup;
pub mod dns;
pub mod fabric;
mod files;
mod host;
mod kernel;
mod pods;
pub mod policy;
pub mod proxy;

pub use cleanup::{CleanupError, cleanup};
pub use dns::{Dns, DnsConfig};
pub use fabric::{Fabric, FabricConfig};
pub use host::Host;
pub use kernel::netns;
pub use pods::{HostPort, PodNetwork, PodNetworkConfig, PodNetworkError, PodNetworkStatus, PodSetup, Protocol};
pub use policy::{Gate, PodIdentity, Policies, PolicyConfig, PolicyError};
pub use proxy::{Proxy, ProxyConfig, ProxyError};

#[cfg(test)]
mod testing;
