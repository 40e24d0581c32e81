//! Name checks in the form [`Rules::name`](crate::rules::Rules) wants, beyond those `sampan_api::names` has.

pub(crate) use sampan_api::names::{
    name_is_dns_label as label, name_is_dns_subdomain as subdomain, name_is_dns1035_label as label_1035,
    name_is_path_segment as path_segment,
};

/// The canonical text of an IP address (IPAddress objects).
pub(crate) fn ip_address(name: &str, _prefix: bool) -> Vec<String> {
    match name.parse::<std::net::IpAddr>() {
        Ok(address) if address.to_string() == name => Vec::new(),
        Ok(_) => vec!["must be in canonical form (lower case, no leading zeros or redundant groups)".to_owned()],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}
