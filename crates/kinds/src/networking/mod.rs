//! `networking.k8s.io/v1`: Ingresses, NetworkPolicies and the address objects of Services.

mod print;
pub(crate) use print::default_name;
mod strategies;
pub(crate) mod validate;

use crate::spec::Resource;
use crate::table::{row, status};

const GROUP: &str = "networking.k8s.io";

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        columns: print::INGRESS_CLASS,
        cells: print::ingress_class,
        strategy: &strategies::INGRESS_CLASS,
        ..row(
            GROUP,
            "IngressClass",
            "IngressClassList",
            "ingressclasses",
            "ingressclass",
        )
    },
    Resource {
        short_names: &["ing"],
        storage_prefix: "ingress",
        subresources: &[status("Ingress")],
        columns: print::INGRESS,
        cells: print::ingress,
        strategy: &strategies::INGRESS,
        ..row(GROUP, "Ingress", "IngressList", "ingresses", "ingress")
    },
    Resource {
        namespaced: false,
        short_names: &["ip"],
        columns: print::IP_ADDRESS,
        cells: print::ip_address,
        strategy: &strategies::IP_ADDRESS,
        ..row(GROUP, "IPAddress", "IPAddressList", "ipaddresses", "ipaddress")
    },
    Resource {
        short_names: &["netpol"],
        columns: print::NETWORK_POLICY,
        cells: print::network_policy,
        strategy: &strategies::NETWORK_POLICY,
        ..row(
            GROUP,
            "NetworkPolicy",
            "NetworkPolicyList",
            "networkpolicies",
            "networkpolicy",
        )
    },
    Resource {
        namespaced: false,
        subresources: &[status("ServiceCIDR")],
        columns: print::SERVICE_CIDR,
        cells: print::service_cidr,
        strategy: &strategies::SERVICE_CIDR,
        ..row(GROUP, "ServiceCIDR", "ServiceCIDRList", "servicecidrs", "servicecidr")
    },
];
