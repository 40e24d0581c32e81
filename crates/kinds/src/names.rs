//! Name checks in the form [`Rules::name`](crate::rules::Rules) wants, beyond those `sampan_api::names` has.

pub(crate) use sampan_api::names::{
    name_is_dns_label as label, name_is_dns_subdomain as subdomain, name_is_path_segment as path_segment,
};

/// The canonical text of an IP address (IPAddress objects).
pub(crate) fn ip_address(name: &str, _prefix: bool) -> Vec<String> {
    match name.parse::<std::net::IpAddr>() {
        Ok(address) if address.to_string() == name => Vec::new(),
        Ok(_) => vec!["must be in canonical form (lower case, no leading zeros or redundant groups)".to_owned()],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// An IP address, as upstream's strict validation of long-lived fields wants it.
pub(crate) fn ip(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".to_owned()]
        }
        Ok(_) => Vec::new(),
        Err(_) if has_leading_zeros(text) => vec!["must not have leading 0s".to_owned()],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// Four decimal numbers that are an address but for zeros before them.
pub(crate) fn has_leading_zeros(text: &str) -> bool {
    let parts: Vec<_> = text.split('.').collect();
    parts.len() == 4
        && parts
            .iter()
            .all(|part| part.parse::<u32>().is_ok_and(|number| number < 256))
}

/// An address range such as `10.0.0.0/8`.
pub(crate) fn cidr(text: &str) -> Vec<String> {
    match text.parse::<ipnet::IpNet>() {
        Ok(range) if range.addr() != range.network() => {
            vec!["must not have bits set beyond the prefix length".to_owned()]
        }
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()],
    }
}

/// A path without `..` elements.
pub(crate) fn no_backsteps(path: &str) -> Vec<String> {
    if path.split('/').any(|part| part == "..") {
        vec!["must not contain '..'".to_owned()]
    } else {
        Vec::new()
    }
}

/// A relative path without `..` elements.
pub(crate) fn descending_path(path: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if path.starts_with('/') {
        messages.push("must be a relative path".to_owned());
    }
    messages.extend(no_backsteps(path));
    messages
}

/// A relative path without `..` elements that does not start with `..` either: those names are the volume's own.
pub(crate) fn local_path(path: &str) -> Vec<String> {
    let mut messages = descending_path(path);
    if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        messages.push("must not start with '..'".to_owned());
    }
    messages
}

/// [`subdomain`] in the words of kinds whose names upstream checks by its newer rules.
pub(crate) fn long_name(name: &str, prefix: bool) -> Vec<String> {
    let in_bytes = |text: String| text.replace("must be no more than 253 characters", "must be no more than 253 bytes");
    subdomain(name, prefix).into_iter().map(in_bytes).collect()
}

/// A complete name that is a DNS subdomain.
pub(crate) fn whole_subdomain(name: &str) -> Vec<String> {
    subdomain(name, false)
}
