//! What things may be called, and the validation of `metadata`, with upstream's messages: clients match on them.
//!
//! Each check returns its messages; none means the name is good. Regular expressions appear only in the messages:
//! the grammars are simple enough to be matched by hand, in one pass and without a compiled automaton.

use serde_json::Value;

use crate::field::{self, Error, Errors, Path};
use crate::meta;

/// Checks a name; `prefix` is true for a `generateName`, which need not be complete.
pub type NameFn = fn(name: &str, prefix: bool) -> Vec<String>;

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const DNS1123_SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1123_SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const DNS1123_UNDERSCORE: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const DNS1123_UNDERSCORE_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
const WILDCARD_MESSAGE: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
const DNS1035_LABEL: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const DNS1035_LABEL_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_KEY_MESSAGE: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// All annotations of an object together, keys and values.
pub const TOTAL_ANNOTATION_SIZE_LIMIT: usize = 256 * 1024;

/// `must be no more than N characters`
pub fn max_length(length: usize) -> String {
    format!("must be no more than {length} characters")
}

/// `must be between A and B, inclusive`
pub fn inclusive_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// The message of a failed pattern, with examples of what would do.
pub fn pattern(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<_> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!(
        "{message} (e.g. {}regex used for validation is '{pattern}')",
        examples.join(" or ")
    )
}

fn lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// First and last byte by `ends`, all by `inside`; not empty.
fn bounded(text: &str, ends: fn(u8) -> bool, inside: fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [only] => ends(*only),
        [first, middle @ .., last] => ends(*first) && ends(*last) && middle.iter().copied().all(inside),
    }
}

fn is_dns1123_label(text: &str) -> bool {
    bounded(text, lower_alnum, |b| lower_alnum(b) || b == b'-')
}

fn is_dns1123_subdomain(text: &str) -> bool {
    text.split('.').all(is_dns1123_label)
}

fn is_label_key(text: &str) -> bool {
    bounded(
        text,
        |b| b.is_ascii_alphanumeric(),
        |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b),
    )
}

fn check(errors: &mut Vec<String>, good: bool, message: &str, regex: &str, examples: &[&str]) {
    if !good {
        errors.push(pattern(message, regex, examples));
    }
}

/// Labels are measured by newer code than names are, with words of its own.
fn max_bytes(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

fn check_length(errors: &mut Vec<String>, text: &str, max: usize) {
    if text.len() > max {
        errors.push(max_length(max));
    }
}

pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    check_length(&mut errors, text, 63);
    if !is_dns1123_label(text) {
        if is_dns1123_subdomain(text) {
            errors.push("must not contain dots".to_owned());
        } else {
            errors.push(pattern(DNS1123_LABEL_MESSAGE, DNS1123_LABEL, &["my-name", "123-abc"]));
        }
    }
    errors
}

pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    subdomain(text, max_length)
}

fn subdomain(text: &str, too_long: fn(usize) -> String) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 253 {
        errors.push(too_long(253));
    }
    check(
        &mut errors,
        is_dns1123_subdomain(text),
        DNS1123_SUBDOMAIN_MESSAGE,
        DNS1123_SUBDOMAIN,
        &["example.com"],
    );
    errors
}

pub fn dns1123_subdomain_with_underscore(text: &str) -> Vec<String> {
    let good = text.split('.').all(|part| {
        bounded(part.strip_prefix('_').unwrap_or(part), lower_alnum, |b| {
            lower_alnum(b) || b == b'-' || b == b'_'
        })
    });
    let mut errors = Vec::new();
    check_length(&mut errors, text, 253);
    check(
        &mut errors,
        good,
        DNS1123_UNDERSCORE_MESSAGE,
        DNS1123_UNDERSCORE,
        &["example.com"],
    );
    errors
}

pub fn wildcard_dns1123_subdomain(text: &str) -> Vec<String> {
    let good = text.strip_prefix("*.").is_some_and(is_dns1123_subdomain);
    let mut errors = Vec::new();
    check_length(&mut errors, text, 253);
    check(
        &mut errors,
        good,
        WILDCARD_MESSAGE,
        &format!("\\*\\.{DNS1123_SUBDOMAIN}"),
        &["*.example.com"],
    );
    errors
}

pub fn dns1035_label(text: &str) -> Vec<String> {
    let good = is_dns1123_label(text) && text.starts_with(|ch: char| ch.is_ascii_lowercase());
    let mut errors = Vec::new();
    check_length(&mut errors, text, 63);
    check(
        &mut errors,
        good,
        DNS1035_LABEL_MESSAGE,
        DNS1035_LABEL,
        &["my-name", "abc-123"],
    );
    errors
}

/// Label and annotation keys, finalizers, condition types: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let grammar = || pattern(LABEL_KEY_MESSAGE, LABEL_KEY, &["MyName", "my.name", "123-abc"]);
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            errors.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                grammar()
            ));
            return errors;
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    subdomain(prefix, max_bytes)
                        .iter()
                        .map(|message| format!("prefix part {message}")),
                );
            }
            name
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push(format!("name part {}", max_bytes(63)));
    }
    if !is_label_key(name) {
        errors.push(format!("name part {}", grammar()));
    }
    errors
}

pub fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(max_bytes(63));
    }
    check(
        &mut errors,
        text.is_empty() || is_label_key(text),
        LABEL_VALUE_MESSAGE,
        LABEL_VALUE,
        &["MyValue", "my_value", "12345"],
    );
    errors
}

fn dots(errors: &mut Vec<String>, text: &str) {
    match text {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
}

/// Keys of ConfigMaps and Secrets.
pub fn config_map_key(text: &str) -> Vec<String> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let mut errors = Vec::new();
    check_length(&mut errors, text, 253);
    check(
        &mut errors,
        good,
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
        "[-._a-zA-Z0-9]+",
        &["key.name", "KEY_NAME", "key-name"],
    );
    dots(&mut errors, text);
    errors
}

/// The strict form; [`relaxed_env_var_name`] is what Pods are checked with since 1.34.
pub fn env_var_name(text: &str) -> Vec<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let good = text.bytes().next().is_some_and(|b| !b.is_ascii_digit()) && text.bytes().all(allowed);
    let mut errors = Vec::new();
    check(
        &mut errors,
        good,
        "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit",
        "[-._a-zA-Z][-._a-zA-Z0-9]*",
        &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
    );
    dots(&mut errors, text);
    errors
}

pub fn relaxed_env_var_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    errors
}

pub fn c_identifier(text: &str) -> Vec<String> {
    let good = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let mut errors = Vec::new();
    check(
        &mut errors,
        good,
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    );
    errors
}

/// An IANA service name (`IANA_SVC_NAME`), as ports are called.
pub fn port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    check_length(&mut errors, text, 15);
    let mut say = |wrong: bool, message: &str| {
        if wrong {
            errors.push(message.to_owned());
        }
    };
    say(
        text.is_empty() || !text.bytes().all(|b| lower_alnum(b) || b == b'-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    say(
        !text.bytes().any(|b| b.is_ascii_lowercase()),
        "must contain at least one letter (a-z)",
    );
    say(text.contains("--"), "must not contain consecutive hyphens");
    say(
        text.starts_with('-') || text.ends_with('-'),
        "must not begin or end with a hyphen",
    );
    errors
}

pub fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

pub fn in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) {
        Vec::new()
    } else {
        vec![inclusive_range(low, high)]
    }
}

/// Users and groups.
pub fn unix_id(id: i64) -> Vec<String> {
    in_range(id, 0, i64::from(i32::MAX))
}

/// The reason of a condition of the common type.
pub fn condition_reason(text: &str) -> Vec<String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    let good = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(|last| word(*last))
        && bytes.iter().all(|b| word(*b) || matches!(b, b',' | b':'));
    let mut errors = Vec::new();
    check(
        &mut errors,
        good,
        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
        &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
    );
    errors
}

pub fn percent(text: &str) -> Vec<String> {
    let good = text
        .strip_suffix('%')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
    let mut errors = Vec::new();
    check(
        &mut errors,
        good,
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    );
    errors
}

pub fn http_header_name(text: &str) -> Vec<String> {
    let good = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let mut errors = Vec::new();
    check(
        &mut errors,
        good,
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    );
    errors
}

/// What a URL path segment can carry: the loosest rule a name may have.
pub fn path_segment(text: &str) -> Vec<String> {
    match text {
        "." => vec!["may not be '.'".to_owned()],
        ".." => vec!["may not be '..'".to_owned()],
        _ => path_segment_prefix(text),
    }
}

fn path_segment_prefix(text: &str) -> Vec<String> {
    ["/", "%"]
        .iter()
        .filter(|illegal| text.contains(**illegal))
        .map(|illegal| format!("may not contain '{illegal}'"))
        .collect()
}

/// A `generateName` may end in dashes, since something will follow.
fn complete(name: &str, prefix: bool) -> std::borrow::Cow<'_, str> {
    if prefix && name.len() > 1 && name.ends_with('-') {
        let kept: String = name.chars().take(name.chars().count().saturating_sub(2)).collect();
        return format!("{kept}a").into();
    }
    name.into()
}

pub fn name_is_dns_subdomain(name: &str, prefix: bool) -> Vec<String> {
    dns1123_subdomain(&complete(name, prefix))
}
pub fn name_is_dns_label(name: &str, prefix: bool) -> Vec<String> {
    dns1123_label(&complete(name, prefix))
}
pub fn name_is_dns1035_label(name: &str, prefix: bool) -> Vec<String> {
    dns1035_label(&complete(name, prefix))
}
pub fn name_is_path_segment(name: &str, prefix: bool) -> Vec<String> {
    if prefix {
        path_segment_prefix(name)
    } else {
        path_segment(name)
    }
}

fn invalid_each(errors: &mut Errors, path: &Path, value: &str, messages: Vec<String>) {
    errors.extend(messages.into_iter().map(|message| Error::invalid(path, value, message)));
}

pub fn validate_label_key(key: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    invalid_each(&mut errors, path, key, qualified_name(key));
    errors
}

/// `labels` is the map; anything else reads as no labels.
pub fn validate_labels(labels: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.extend(validate_label_key(key, path));
        let value = value.as_str().unwrap_or_default();
        invalid_each(&mut errors, path, value, label_value(value));
    }
    errors
}

pub fn validate_annotations(annotations: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        // Case does not matter in annotation keys.
        invalid_each(&mut errors, path, key, qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > TOTAL_ANNOTATION_SIZE_LIMIT {
        errors.push(Error::too_long(path, TOTAL_ANNOTATION_SIZE_LIMIT));
    }
    errors
}

pub fn validate_finalizers(finalizers: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let all: Vec<&str> = finalizers
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for finalizer in &all {
        invalid_each(&mut errors, path, finalizer, qualified_name(finalizer));
    }
    if all.contains(&"orphan") && all.contains(&"foregroundDeletion") {
        errors.push(Error::invalid(
            path,
            finalizers.clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}

pub fn validate_owner_references(owners: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut controller: Option<String> = None;
    for value in owners.as_array().into_iter().flatten() {
        let owner = meta::OwnerReference::from_value(value);
        let group_version = meta::group_version(&owner.api_version);
        let mut must = |bad: bool, field: &str, value: &str, message: &str| {
            if bad {
                errors.push(Error::invalid(&path.child(field), value, message));
            }
        };
        must(
            group_version.is_none_or(|(_, version)| version.is_empty()),
            "apiVersion",
            &owner.api_version,
            "version must not be empty",
        );
        must(owner.kind.is_empty(), "kind", &owner.kind, "must not be empty");
        must(owner.name.is_empty(), "name", &owner.name, "must not be empty");
        must(owner.uid.is_empty(), "uid", &owner.uid, "must not be empty");
        if group_version == Some(("", "v1")) && owner.kind == "Event" {
            errors.push(Error::invalid(
                path,
                owner.to_value(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.controller == Some(true) {
            let this = format!("{}/{}", owner.kind, owner.name);
            match &controller {
                Some(first) => errors.push(Error::invalid(
                    path,
                    owners.clone(),
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"),
                )),
                None => controller = Some(this),
            }
        }
    }
    errors
}

pub fn validate_field_manager(manager: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if manager.len() > 128 {
        errors.push(Error::too_long(path, 128));
    }
    for (at, ch) in manager.char_indices() {
        if ch.is_control() || (ch.is_whitespace() && ch != ' ') {
            errors.push(Error::invalid(
                path,
                manager,
                format!("invalid character U+{:04X} (at position {at})", ch as u32),
            ));
        }
    }
    errors
}

pub fn validate_managed_fields(entries: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, entry) in entries.as_array().into_iter().flatten().enumerate() {
        let path = path.index(index);
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        if !matches!(text("operation"), "Apply" | "Update") {
            errors.push(Error::invalid(
                &path.child("operation"),
                text("operation"),
                "must be `Apply` or `Update`",
            ));
        }
        if !matches!(text("fieldsType"), "" | "FieldsV1") {
            errors.push(Error::invalid(
                &path.child("fieldsType"),
                text("fieldsType"),
                "must be `FieldsV1`",
            ));
        }
        errors.extend(validate_field_manager(text("manager"), &path.child("manager")));
        if text("subresource").len() > 256 {
            errors.push(Error::too_long(&path.child("subresource"), 256));
        }
    }
    errors
}

/// Validates the metadata of an object about to be created (its name already generated).
pub fn validate_object_meta(object: &Value, namespaced: bool, name_fn: NameFn, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let generate = meta::generate_name(object);
    if !generate.is_empty() {
        invalid_each(
            &mut errors,
            &path.child("generateName"),
            generate,
            name_fn(generate, true),
        );
    }
    let name = meta::name(object);
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), "name or generateName is required"));
    } else {
        invalid_each(&mut errors, &path.child("name"), name, name_fn(name, false));
    }
    let namespace = meta::namespace(object);
    let namespace_path = path.child("namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.push(Error::required(&namespace_path, "")),
        (true, false) => invalid_each(&mut errors, &namespace_path, namespace, dns1123_label(namespace)),
        (false, false) => errors.push(Error::forbidden(&namespace_path, "not allowed on this type")),
        (false, true) => {}
    }
    if meta::generation(object) < 0 {
        errors.push(Error::invalid(
            &path.child("generation"),
            meta::generation(object),
            "must be greater than or equal to 0",
        ));
    }
    for (name, check) in SHARED_CHECKS {
        errors.extend(check(part(object, name), &path.child(name)));
    }
    errors.extend(validate_finalizers(
        part(object, "finalizers"),
        &path.child("finalizers"),
    ));
    errors.extend(validate_managed_fields(
        part(object, "managedFields"),
        &path.child("managedFields"),
    ));
    errors
}

type PartCheck = fn(&Value, &Path) -> Errors;

/// Checked on create and on update alike, in upstream's order.
const SHARED_CHECKS: [(&str, PartCheck); 3] = [
    ("labels", validate_labels),
    ("annotations", validate_annotations),
    ("ownerReferences", validate_owner_references),
];

fn part<'a>(object: &'a Value, field: &str) -> &'a Value {
    meta::metadata(object)
        .and_then(|map| map.get(field))
        .unwrap_or(&Value::Null)
}

pub const IMMUTABLE: &str = "field is immutable";

/// `new` must equal `old`; absent and null are the same.
pub fn validate_immutable(new: &Value, old: &Value, path: &Path) -> Errors {
    if new == old {
        Errors::new()
    } else {
        vec![Error::invalid(path, new.clone(), IMMUTABLE)]
    }
}

/// Validates what an update may do to metadata.
pub fn validate_object_meta_update(new: &Value, old: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if meta::is_deleting(old) {
        let mut extra: Vec<&str> = meta::finalizers(new)
            .filter(|item| !meta::has_finalizer(old, item))
            .collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let quoted: Vec<_> = extra.iter().map(|item| field::quote(item)).collect();
            errors.push(Error::forbidden(
                &path.child("finalizers"),
                format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}", quoted.join(", ")),
            ));
        }
    }
    if meta::resource_version(new).is_empty() {
        errors.push(Error::invalid(
            &path.child("resourceVersion"),
            "",
            "must be specified for an update",
        ));
    }
    if meta::generation(new) < meta::generation(old) {
        errors.push(Error::invalid(
            &path.child("generation"),
            meta::generation(new),
            "must not be decremented",
        ));
    }
    for name in ["name", "namespace", "uid"] {
        let text = |object| Value::from(part(object, name).as_str().unwrap_or_default());
        errors.extend(validate_immutable(&text(new), &text(old), &path.child(name)));
    }
    for name in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        errors.extend(validate_immutable(part(new, name), part(old, name), &path.child(name)));
    }
    for (name, check) in SHARED_CHECKS {
        errors.extend(check(part(new, name), &path.child(name)));
    }
    errors.extend(validate_managed_fields(
        part(new, "managedFields"),
        &path.child("managedFields"),
    ));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn good_names_are_good_and_bad_ones_are_not() {
        type Check = fn(&str) -> Vec<String>;
        let long = "a".repeat(64);
        let cases: &[(Check, &[&str], &[&str])] = &[
            (
                dns1123_label,
                &["a", "ab", "a-1", "0", "a--b"],
                &["", "A", "-a", "a-", "a.b", "a_b", "é", &long],
            ),
            (
                dns1123_subdomain,
                &["a", "a.b", "a-b.c-d", "0.1"],
                &["", "a..b", ".a", "a.", "A.b", "a_b"],
            ),
            (
                dns1123_subdomain_with_underscore,
                &["_a.b", "a_b"],
                &["__a", "a_", "_", "a._"],
            ),
            (
                wildcard_dns1123_subdomain,
                &["*.a", "*.a.b"],
                &["*", "*.", "a.*", "*.*.a", "*a.b"],
            ),
            (dns1035_label, &["a", "a1", "a-1"], &["", "1a", "A", "a-", &long]),
            (
                qualified_name,
                &["a", "A.b_c-9", "ex.com/a", "1/2"],
                &["", "/a", "a/", "a/b/c", "A.com/b", "-a", "a b", &long],
            ),
            (label_value, &["", "a", "A.b_c"], &["-", "a b", "a/", "é", &long]),
            (config_map_key, &["a", ".a", "A_b-c.d"], &["", ".", "..", "..a", "a/b"]),
            (
                env_var_name,
                &["A", "_a", ".a-b", "A1"],
                &["", "1A", ".", "..", "..x", "a=b"],
            ),
            (relaxed_env_var_name, &["A", "1a", "a b"], &["", "a=b", "é", "\n"]),
            (c_identifier, &["a", "_1"], &["", "1a", "a-b"]),
            (
                port_name,
                &["http", "a1", "8080-tcp"],
                &["", "80", "-a", "a-", "a--b", "HTTP", "abcdefghijklmnop"],
            ),
            (path_segment, &["a", "a:b", "...", "", "Ä"], &[".", "..", "a/b", "a%b"]),
            (percent, &["1%", "100%"], &["%", "1", "-1%", "1.5%"]),
            (http_header_name, &["X-A"], &["", "X A", "a:b"]),
        ];
        for (at, (check, good, bad)) in cases.iter().enumerate() {
            for name in *good {
                assert_eq!(check(name), Vec::<String>::new(), "{at} {name:?}");
            }
            for name in *bad {
                assert!(!check(name).is_empty(), "{at} {name:?}");
            }
        }
    }

    #[test]
    fn messages_are_upstreams() {
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(
            dns1123_subdomain("a_b"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            port_name("--"),
            [
                "must contain at least one letter (a-z)",
                "must not contain consecutive hyphens",
                "must not begin or end with a hyphen"
            ]
        );
        assert_eq!(
            qualified_name("a/b/c"),
            [
                "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ]
        );
    }

    #[test]
    fn metadata_is_checked_on_create() {
        let path = Path::new("metadata");
        let texts = |object: Value, namespaced| -> Vec<String> {
            validate_object_meta(&object, namespaced, name_is_dns_label, &path)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let good = json!({"metadata": {"name": "a-x", "generateName": "a-", "namespace": "b", "labels": {"a": ""}, "finalizers": ["a/b"]}});
        assert_eq!(texts(good.clone(), true), Vec::<String>::new());
        assert_eq!(
            texts(good, false),
            ["metadata.namespace: Forbidden: not allowed on this type"]
        );
        assert_eq!(
            texts(json!({}), true),
            [
                "metadata.name: Required value: name or generateName is required",
                "metadata.namespace: Required value"
            ]
        );
        assert_eq!(
            texts(
                json!({"metadata": {"name": "a", "finalizers": ["orphan", "foregroundDeletion"], "generation": -1,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Event", "name": "e", "uid": "1"}]}}),
                false
            ),
            [
                "metadata.generation: Invalid value: -1: must be greater than or equal to 0",
                "metadata.ownerReferences: Invalid value: {\"apiVersion\":\"v1\",\"kind\":\"Event\",\"name\":\"e\",\"uid\":\"1\"}: /v1, Kind=Event is disallowed from being an owner",
                "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and foregroundDeletion cannot be both set"
            ]
        );
        let big = json!({"metadata": {"name": "a", "annotations": {"k": "x".repeat(TOTAL_ANNOTATION_SIZE_LIMIT)}}});
        assert_eq!(
            texts(big, false),
            ["metadata.annotations: Too long: may not be more than 262144 bytes"]
        );
    }

    #[test]
    fn metadata_is_checked_on_update() {
        let path = Path::new("metadata");
        let old = json!({"metadata": {"name": "a", "uid": "1", "generation": 2, "resourceVersion": "5", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert!(validate_object_meta_update(&old, &old, &path).is_empty());
        let new = json!({"metadata": {"name": "b", "uid": "1", "generation": 1, "finalizers": ["z", "y"], "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let texts: Vec<_> = validate_object_meta_update(&new, &old, &path)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts,
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"y\", \"z\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 1: must not be decremented",
                "metadata.name: Invalid value: \"b\": field is immutable"
            ]
        );
    }
}
