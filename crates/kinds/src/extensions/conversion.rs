//! Validation of how a definition's objects are converted.

use std::collections::BTreeSet;

use base64::Engine as _;
use sampan_api::field::{Error, Errors, Path};
use sampan_api::{Object, names as api};
use serde_json::Value;

use super::definition::{self, Options};
use crate::{checks, tree};

pub(super) fn is_known_review(version: &Value) -> bool {
    version == "v1" || version == "v1beta1"
}

pub(super) fn check(object: &Object, preserves: bool, options: &Options, path: &Path, errors: &mut Errors) {
    let Some(conversion) = tree::get(object, "spec.conversion") else {
        return;
    };
    let strategy = tree::text(conversion, "strategy");
    if strategy != "None" && preserves {
        errors.push(Error::invalid(
            &path.child("strategy"),
            strategy,
            "must be None if spec.preserveUnknownFields is true",
        ));
    }
    definition::one_of(strategy, &["None", "Webhook"], &path.child("strategy"), errors);
    let client = tree::get(conversion, "webhook.clientConfig");
    let reviews = tree::items(conversion, "webhook.conversionReviewVersions");
    let at = path.child("webhookClientConfig");
    if strategy != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.push(Error::forbidden(&at, why));
        }
        if !reviews.is_empty() {
            errors.push(Error::forbidden(&path.child("conversionReviewVersions"), why));
        }
        return;
    }
    match client {
        None => errors.push(Error::required(&at, "required when strategy is set to Webhook")),
        Some(client) => {
            let (url, service) = (tree::get(client, "url"), tree::get(client, "service"));
            match (url.and_then(Value::as_str), service) {
                (Some(url), None) => webhook_url(url, &at.child("url"), errors),
                (None, Some(service)) => webhook_service(service, &at.child("service"), errors),
                _ => errors.push(Error::required(&at, "exactly one of url or service is required")),
            }
            let stated = tree::text(client, "caBundle");
            if options.bundle
                && !stated.is_empty()
                && let Err(why) = bundle(stated)
            {
                errors.push(Error::invalid(&at.child("caBundle"), stated, why));
            }
        }
    }
    review_versions(reviews, options, &path.child("conversionReviewVersions"), errors);
}

fn review_versions(reviews: &[Value], options: &Options, path: &Path, errors: &mut Errors) {
    if reviews.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, version) in reviews.iter().filter_map(Value::as_str).enumerate() {
        let at = path.index(index);
        if !seen.insert(version) {
            errors.push(Error::invalid(&at, version, "duplicate version"));
            continue;
        }
        checks::named(&at, version, api::dns1035_label, errors);
    }
    if options.reviews && !reviews.iter().any(is_known_review) {
        errors.push(Error::invalid(
            path,
            reviews.to_vec(),
            "must include at least one of v1, v1beta1",
        ));
    }
}

fn webhook_url(url: &str, path: &Path, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        errors.push(Error::invalid(
            path,
            scheme,
            format!("'https' is the only allowed URL scheme{FORM}"),
        ));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if scheme.is_empty() || host.is_empty() {
        errors.push(Error::invalid(path, "", format!("host must be specified{FORM}")));
    }
    if let Some(user) = user {
        errors.push(Error::invalid(
            path,
            user,
            "user information is not permitted in the URL",
        ));
    }
    if !fragment.is_empty() {
        errors.push(Error::invalid(path, fragment, "fragments are not permitted in the URL"));
    }
    if !query.is_empty() {
        errors.push(Error::invalid(
            path,
            query,
            "query parameters are not permitted in the URL",
        ));
    }
}

fn webhook_service(service: &Value, path: &Path, errors: &mut Errors) {
    // Upstream hands the two to its check the wrong way round, and clients know the answer so.
    for (field, told) in [("namespace", "name"), ("name", "namespace")] {
        if tree::text(service, field).is_empty() {
            errors.push(Error::required(&path.child(told), ""));
        }
    }
    let port = tree::opt_int(service, "port").unwrap_or(443);
    let wrong = api::port_number(port);
    if !wrong.is_empty() {
        errors.push(Error::invalid(
            &path.child("port"),
            port,
            format!("port is not valid: {}", wrong.join(", ")),
        ));
    }
    let stated = tree::text(service, "path");
    let at = path.child("path");
    if stated.is_empty() || stated == "/" {
        return;
    }
    if stated == "//" {
        errors.push(Error::invalid(&at, stated, "segment[0] may not be empty"));
        return;
    }
    if !stated.starts_with('/') {
        errors.push(Error::invalid(&at, stated, "must start with a '/'"));
    }
    let inner = stated.split_at_checked(1).map_or("", |(_, rest)| rest);
    for (index, step) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if step.is_empty() {
            errors.push(Error::invalid(
                &at,
                stated,
                format!("segment[{index}] may not be empty"),
            ));
            continue;
        }
        for failure in api::dns1123_subdomain(step) {
            errors.push(Error::invalid(&at, stated, format!("segment[{index}]: {failure}")));
        }
    }
}

/// Whether a stored definition's webhook can be trusted: then it must stay so.
pub(super) fn has_good_bundle(object: &Object) -> bool {
    let stated = tree::text(object, "spec.conversion.webhook.clientConfig.caBundle");
    stated.is_empty() || bundle(stated).is_ok()
}

/// A bundle in base64 must have a certificate.
fn bundle(stated: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("unable to load root certificates: {why}"));
    let base64 = &base64::engine::general_purpose::STANDARD;
    let bytes = base64.decode(stated).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut rest = &*text;
    let mut blocks = 0;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let Some((kind, body)) = after.split_once("-----") else {
            break;
        };
        let Some((body, after)) = body.split_once(&format!("-----END {kind}-----")) else {
            break;
        };
        rest = after;
        blocks += 1;
        if kind != "CERTIFICATE" || body.contains(':') {
            continue;
        }
        let body: String = body.split_whitespace().collect();
        let Ok(der) = base64.decode(body) else {
            return wrong("unable to parse bytes as PEM block");
        };
        return if is_sequence(&der) {
            Ok(())
        } else {
            wrong("failed to parse certificate: x509: malformed certificate")
        };
    }
    wrong(if blocks == 0 {
        "unable to parse bytes as PEM block"
    } else {
        "no valid certificate authority data seen"
    })
}

/// Whether DER is one sequence from its first byte to its last: the outside of a certificate. Who verifies with the
/// bundle looks at the inside.
fn is_sequence(der: &[u8]) -> bool {
    let (size, head) = match der {
        [0x30, short @ 0..=0x7f, ..] => (usize::from(*short), 2),
        [0x30, 0x81, a, ..] => (usize::from(*a), 3),
        [0x30, 0x82, a, b, ..] => (usize::from(*a) << 8 | usize::from(*b), 4),
        [0x30, 0x83, a, b, c, ..] => (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c), 5),
        _ => return false,
    };
    size > 0 && der.len() == head + size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_must_have_a_certificate() {
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let block = |kind: &str, body: &str| format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n");
        let good = block(
            "CERTIFICATE",
            &base64::engine::general_purpose::STANDARD.encode([0x30, 3, 1, 2, 3]),
        );
        let none = "unable to load root certificates: unable to parse bytes as PEM block";
        let cases = [
            (base64("junk"), Err(none)),
            ("%".to_owned(), Err(none)),
            (
                base64(&block("KEY", "AAAA")),
                Err("unable to load root certificates: no valid certificate authority data seen"),
            ),
            (
                base64(&block("CERTIFICATE", "AAAA")),
                Err("unable to load root certificates: failed to parse certificate: x509: malformed certificate"),
            ),
            (base64(&(block("KEY", "AAAA") + &good)), Ok(())),
            (base64(&good), Ok(())),
        ];
        for (stated, wanted) in cases {
            assert_eq!(bundle(&stated), wanted.map_err(str::to_owned), "{stated}");
        }
    }
}
