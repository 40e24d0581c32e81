//! On whose behalf an extension server is asked.
//!
//! It believes these headers because they come with the front proxy's certificate. So whatever a client says in them
//! is taken out first.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, header};
use sampan_auth::UserInfo;

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";

/// Takes out every header that claims or proves an identity.
pub fn strip(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.starts_with("x-remote-") || name.starts_with("impersonate-")
        })
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
}

/// The headers that name a user. Values no header can carry are an error: a user must not become another by losing a part.
pub fn headers(user: &UserInfo) -> Result<HeaderMap, http::Error> {
    let mut headers = HeaderMap::new();
    headers.insert(
        USER,
        HeaderValue::from_str(&user.name).or_else(|_| HeaderValue::from_bytes(user.name.as_bytes()))?,
    );
    if !user.uid.is_empty() {
        headers.insert(UID, HeaderValue::from_bytes(user.uid.as_bytes())?);
    }
    for group in &user.groups {
        headers.append(GROUP, HeaderValue::from_bytes(group.as_bytes())?);
    }
    for (key, values) in &user.extra {
        let name = HeaderName::from_bytes(format!("{EXTRA}{}", escaped(key)).as_bytes())?;
        for value in values {
            headers.append(name.clone(), HeaderValue::from_bytes(value.as_bytes())?);
        }
    }
    Ok(headers)
}

/// A key as part of a header's name: what cannot stand there is percent-encoded.
fn escaped(key: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ok = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_go_and_the_user_comes() {
        let mut asked = HeaderMap::new();
        for name in [
            "x-remote-user",
            "x-remote-extra-a",
            "x-remote-group",
            "impersonate-user",
            "authorization",
        ] {
            asked.append(name, HeaderValue::from_static("admin"));
        }
        asked.insert("accept", HeaderValue::from_static("*/*"));
        strip(&mut asked);
        assert_eq!(asked.len(), 1);

        let mut user = UserInfo::new("jäne", ["a", "b"]);
        user.uid = "1".into();
        user.extra
            .insert("example.com/key".into(), vec!["x".into(), "y".into()]);
        let headers = headers(&user).unwrap();
        assert_eq!(headers["x-remote-user"].as_bytes(), "jäne".as_bytes());
        assert_eq!(headers["x-remote-uid"], "1");
        let all = |name: &str| {
            headers
                .get_all(name)
                .iter()
                .map(|v| v.to_str().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(all("x-remote-group"), ["a", "b", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2Fkey"), ["x", "y"]);
        assert!(super::headers(&UserInfo::component("a\nb")).is_err());
    }
}
