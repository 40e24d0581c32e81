//! Warnings about Secrets of TLS: whether there is a certificate and a private key at all.
//!
//! Different from upstream: certificate and key are not parsed further, and not compared.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sampan_api::Object;

use crate::tree;

pub(super) fn warnings(secret: &Object) -> Vec<String> {
    if tree::text(secret, "type") != "kubernetes.io/tls" {
        return Vec::new();
    }
    let pem = |key: &str| {
        let bytes = STANDARD.decode(tree::entry(secret, "data", key)).unwrap_or_default();
        blocks(&String::from_utf8_lossy(&bytes))
    };
    fault(&pem("tls.crt"), &pem("tls.key")).into_iter().collect()
}

/// What is wrong with a certificate's and a key's PEM, as Go says it.
fn fault(certificate: &[String], key: &[String]) -> Option<String> {
    let is_key = |kind: &String| kind == "PRIVATE KEY" || kind.ends_with(" PRIVATE KEY");
    let shown = |kinds: &[String]| kinds.join(" ");
    if !certificate.iter().any(|kind| kind == "CERTIFICATE") {
        return Some(match certificate {
            [] => "tls: failed to find any PEM data in certificate input".to_owned(),
            [only] if only.ends_with("PRIVATE KEY") => "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".to_owned(),
            others => format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]",
                shown(others)
            ),
        });
    }
    if !key.iter().any(is_key) {
        return Some(match key {
            [] => "tls: failed to find any PEM data in key input".to_owned(),
            [only] if only == "CERTIFICATE" => {
                "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
            }
            others => format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]",
                shown(others)
            ),
        });
    }
    None
}

/// The types of the PEM blocks of a text.
fn blocks(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("-----BEGIN ") {
        let starts_line = at == 0 || rest[..at].ends_with('\n');
        rest = &rest[at + "-----BEGIN ".len()..];
        let Some((kind, body)) = rest.split_once("-----").filter(|_| starts_line) else {
            continue;
        };
        let end = format!("\n-----END {kind}-----");
        if let Some(length) = body.find(&end) {
            let data: String = body[..length].split_whitespace().collect();
            if STANDARD.decode(data).is_ok() {
                found.push(kind.to_owned());
                rest = &body[length + end.len()..];
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_no_pair_is_warned_of() {
        let pem = |kind: &str| format!("-----BEGIN {kind}-----\nc2FtcGxl\n-----END {kind}-----\n");
        let (certificate, key) = (pem("CERTIFICATE"), pem("RSA PRIVATE KEY"));
        let cases = [
            (certificate.clone(), key.clone(), ""),
            (
                "text".to_owned(),
                key.clone(),
                "tls: failed to find any PEM data in certificate input",
            ),
            (
                certificate.clone(),
                String::new(),
                "tls: failed to find any PEM data in key input",
            ),
            (
                key.clone(),
                certificate.clone(),
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched",
            ),
            (
                certificate.clone(),
                certificate.clone(),
                "tls: found a certificate rather than a key in the PEM for the private key",
            ),
            (
                pem("X") + &pem("Y"),
                key.clone(),
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [X Y]",
            ),
        ];
        for (certificate, key, wanted) in cases {
            let secret = json!({"type": "kubernetes.io/tls", "data": {
                "tls.crt": STANDARD.encode(&certificate), "tls.key": STANDARD.encode(&key)}});
            assert_eq!(warnings(&secret).concat(), wanted);
        }
        assert_eq!(warnings(&json!({"type": "Opaque"})), Vec::<String>::new());
    }
}
