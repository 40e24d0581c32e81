//! What objects may be called, in the form [`Rules::name`](crate::rules::Rules) wants: messages of what is
//! wrong, with the trailing dash of a generateName forgiven when `prefix` is true.

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn masked(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(rest) if prefix => format!("{rest}a"),
        _ => name.to_owned(),
    }
}

fn is_label(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| plain(*b))
        && bytes.last().is_some_and(|b| plain(*b))
        && bytes.iter().all(|b| plain(*b) || *b == b'-')
}

fn found(checks: [(bool, String); 2]) -> Vec<String> {
    checks
        .into_iter()
        .filter_map(|(wrong, message)| wrong.then_some(message))
        .collect()
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// A DNS-1123 subdomain.
pub(crate) fn subdomain(name: &str, prefix: bool) -> Vec<String> {
    let name = masked(name, prefix);
    found([
        (name.len() > 253, too_long(253)),
        (!name.split('.').all(is_label), SUBDOMAIN.to_owned()),
    ])
}

/// A DNS-1123 label.
pub(crate) fn label(name: &str, prefix: bool) -> Vec<String> {
    let name = masked(name, prefix);
    found([(name.len() > 63, too_long(63)), (!is_label(&name), LABEL.to_owned())])
}

/// A DNS-1035 label.
pub(crate) fn label_1035(name: &str, prefix: bool) -> Vec<String> {
    let name = masked(name, prefix);
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    found([
        (name.len() > 63, too_long(63)),
        (!(is_label(&name) && starts_well), LABEL_1035.to_owned()),
    ])
}

/// Anything that can stand in a URL path (RBAC, APIService).
pub(crate) fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    if !prefix && (name == "." || name == "..") {
        return vec![format!("may not be '{name}'")];
    }
    ['/', '%']
        .into_iter()
        .filter(|c| name.contains(*c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// The canonical text of an IP address (IPAddress objects).
pub(crate) fn ip_address(name: &str, _prefix: bool) -> Vec<String> {
    match name.parse::<std::net::IpAddr>() {
        Ok(address) if address.to_string() == name => Vec::new(),
        _ => vec!["must be a valid IP address in canonical form".to_owned()],
    }
}

/// Any non-empty text: the object's own validation says what its name must be.
pub(crate) fn any(_name: &str, _prefix: bool) -> Vec<String> {
    Vec::new()
}
