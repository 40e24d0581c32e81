//! Bootstrap tokens: `ID.SECRET`, kept in Secrets `kube-system/bootstrap-token-ID` of type `bootstrap.kubernetes.io/token`.
//!
//! They name `system:bootstrap:ID` in the group `system:bootstrappers` and those the Secret adds, until it expires.
//! Looked up in the watch cache at every request: a Secret that is gone or changed is a token no longer.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sampan_api::meta;
use sampan_auth::authentication::Asked;
use sampan_auth::{Sourced, TokenSource, UserInfo};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::admission::Reader;

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const DEFAULT_GROUP: &str = "system:bootstrappers";

pub struct BootstrapTokens(pub Reader);

impl TokenSource for BootstrapTokens {
    fn find<'a>(&'a self, token: &'a str, _: &'a [String]) -> Asked<'a> {
        let found = split(token).and_then(|(id, secret)| {
            let object = self
                .0
                .get("secrets", &format!("kube-system/bootstrap-token-{id}"))?
                .object();
            user(&object, id, secret, jiff::Timestamp::now())
                .inspect_err(|why| tracing::debug!(id, why, "a bootstrap token is not accepted"))
                .ok()
        });
        let found = found.map(|user| Sourced {
            user: Arc::new(user),
            audiences: None,
        });
        Box::pin(std::future::ready(Ok(found)))
    }
}

/// `[a-z0-9]{6}` and `[a-z0-9]{16}` with a point between.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

fn user(object: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Result<UserInfo, &'static str> {
    let data = |key: &str| {
        let text = object.get("data")?.get(key)?.as_str()?;
        String::from_utf8(STANDARD.decode(text).ok()?).ok()
    };
    if meta::deletion_timestamp(object).is_some() {
        return Err("its Secret is being deleted");
    }
    if object.get("type").and_then(Value::as_str) != Some(SECRET_TYPE) {
        return Err("its Secret is of another type");
    }
    // Compared as digests: the time taken says nothing about the content.
    if data("token-secret").as_deref().map(Sha256::digest) != Some(Sha256::digest(secret)) {
        return Err("its secret part is another");
    }
    if data("token-id").as_deref() != Some(id) {
        return Err("its Secret is of another token");
    }
    if let Some(expires) = data("expiration").filter(|text| !text.is_empty())
        && expires.parse::<jiff::Timestamp>().map_or(true, |at| at <= now)
    {
        return Err("it has expired");
    }
    if data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return Err("it is not for authentication");
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let mut groups = vec![DEFAULT_GROUP];
    for group in extra.split(',').filter(|_| !extra.is_empty()) {
        if !is_group(group) {
            return Err("it adds a group that is none of bootstrappers");
        }
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups.sort_unstable();
    Ok(UserInfo::new(format!("system:bootstrap:{id}"), groups))
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`
fn is_group(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("system:bootstrappers:") else {
        return false;
    };
    let plain = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    rest.len() <= 256
        && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
        && rest.bytes().last().is_some_and(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_looks_like_one_is_looked_up() {
        assert_eq!(split("abc123.0123456789abcdef"), Some(("abc123", "0123456789abcdef")));
        for token in [
            "",
            "abc123",
            "abc12.0123456789abcdef",
            "ABC123.0123456789abcdef",
            "abc123.0123456789abcde/",
        ] {
            assert_eq!(split(token), None, "{token}");
        }
    }

    #[test]
    fn a_secret_makes_a_token_only_as_long_as_all_is_right() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let ask = |change: &[(&str, Value)]| {
            let encode = |text: &str| Value::from(STANDARD.encode(text));
            let mut object = json!({"metadata": {}, "type": SECRET_TYPE, "data": {
                "token-id": encode("abc123"), "token-secret": encode("0123456789abcdef"),
                "usage-bootstrap-authentication": encode("true"),
                "auth-extra-groups": encode("system:bootstrappers:b,system:bootstrappers:a"),
                "expiration": encode("2026-01-01T00:00:01Z"),
            }});
            for (pointer, value) in change {
                match pointer.strip_prefix("/data/") {
                    Some(key) => object["data"][key] = value.as_str().map_or(Value::Null, encode),
                    None => object[pointer.trim_start_matches('/')] = value.clone(),
                }
            }
            user(&object, "abc123", "0123456789abcdef", now)
        };
        let good = ask(&[]).unwrap();
        assert_eq!(good.name, "system:bootstrap:abc123");
        assert_eq!(
            good.groups,
            [
                "system:bootstrappers",
                "system:bootstrappers:a",
                "system:bootstrappers:b",
                "system:authenticated"
            ]
        );
        assert_eq!(
            ask(&[("/data/auth-extra-groups", Value::Null)]).unwrap().groups.len(),
            2
        );
        assert!(ask(&[("/data/expiration", Value::Null)]).is_ok());
        for (change, why) in [
            (("/type", json!("Opaque")), "another type"),
            (
                ("/metadata", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
                "being deleted",
            ),
            (("/data/token-secret", json!("another")), "secret part"),
            (("/data/token-secret", Value::Null), "secret part"),
            (("/data/token-id", json!("other1")), "another token"),
            (("/data/expiration", json!("2026-01-01T00:00:00Z")), "expired"),
            (("/data/expiration", json!("tomorrow")), "expired"),
            (
                ("/data/usage-bootstrap-authentication", json!("yes")),
                "not for authentication",
            ),
            (
                ("/data/auth-extra-groups", json!("system:masters")),
                "none of bootstrappers",
            ),
            (
                ("/data/auth-extra-groups", json!("system:bootstrappers:a,")),
                "none of bootstrappers",
            ),
            (
                ("/data/auth-extra-groups", json!("system:bootstrappers:a:")),
                "none of bootstrappers",
            ),
        ] {
            let found = ask(std::slice::from_ref(&change)).unwrap_err();
            assert!(found.contains(why), "{change:?}: {found}");
        }
    }
}
