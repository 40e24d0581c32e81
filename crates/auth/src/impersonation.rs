//! Acting as somebody else: `Impersonate-User`, `-Group`, `-Uid` and `-Extra-*` headers.
//!
//! Every part of the other identity needs its own permission (verb `impersonate`); [`Impersonation::checks`] lists them.

use http::HeaderMap;

use crate::attributes::Attributes;
use crate::user::{self, UserInfo};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// Whom a request wants to act as, and what that takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonation {
    pub user: UserInfo,
    checks: Vec<Check>,
}

/// One permission to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: String,
    namespace: String,
    name: String,
}

impl Check {
    fn core(resource: &'static str, namespace: &str, name: &str) -> Self {
        Check {
            group: "",
            version: "",
            resource,
            subresource: String::new(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }
    fn authentication(resource: &'static str, subresource: &str, name: &str) -> Self {
        Check {
            group: "authentication.k8s.io",
            version: "v1",
            subresource: subresource.into(),
            ..Check::core(resource, "", name)
        }
    }
}

/// The headers contradict each other; the text is for a 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("requested {0} without impersonating a user")]
pub struct NoUser(String);

impl Impersonation {
    /// Reads the headers; `Ok(None)` when the request speaks for itself.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, NoUser> {
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter();
            values
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .collect()
        };
        let name = all(USER).into_iter().next().unwrap_or_default();
        let groups = all(GROUP);
        let uid = all(UID).into_iter().next().unwrap_or_default();
        let mut extra: Vec<(String, String)> = Vec::new();
        for header in headers.keys() {
            if let Some(key) = header.as_str().strip_prefix(EXTRA) {
                let key = unescaped(key);
                extra.extend(all(header.as_str()).into_iter().map(|value| (key.clone(), value)));
            }
        }
        if name.is_empty() {
            let asked: Vec<_> = [
                (!groups.is_empty(), "groups"),
                (!extra.is_empty(), "extra fields"),
                (!uid.is_empty(), "a UID"),
            ]
            .into_iter()
            .filter_map(|(is, what)| is.then_some(what))
            .collect();
            return if asked.is_empty() {
                Ok(None)
            } else {
                Err(NoUser(asked.join(" and ")))
            };
        }

        let mut user = UserInfo {
            name: name.clone(),
            uid: uid.clone(),
            ..UserInfo::default()
        };
        let mut checks = Vec::new();
        match user::split_service_account(&name) {
            Some((namespace, account)) => {
                checks.push(Check::core("serviceaccounts", namespace, account));
                if groups.is_empty() {
                    user.groups.extend(user::service_account_groups(namespace));
                }
            }
            None => checks.push(Check::core("users", "", &name)),
        }
        for group in groups {
            checks.push(Check::core("groups", "", &group));
            user.groups.push(group);
        }
        for (key, value) in extra {
            checks.push(Check::authentication("userextras", &key, &value));
            user.extra.entry(key).or_default().push(value);
        }
        if !uid.is_empty() {
            checks.push(Check::authentication("uids", "", &uid));
        }
        user.imply_groups();
        Ok(Some(Impersonation { user, checks }))
    }

    /// What `requestor` must be allowed, each of them.
    pub fn checks<'a>(&'a self, requestor: &'a UserInfo) -> impl Iterator<Item = Attributes<'a>> {
        self.checks.iter().map(move |check| Attributes {
            version: check.version,
            subresource: &check.subresource,
            namespace: &check.namespace,
            name: &check.name,
            ..Attributes::resource(requestor, "impersonate", check.group, check.resource)
        })
    }
}

/// Takes the headers away once they were honoured.
pub fn remove_headers(headers: &mut HeaderMap) {
    let ours: Vec<_> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            [USER, GROUP, UID].contains(&name) || name.starts_with(EXTRA)
        })
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Undoes percent-encoding; a key that is not properly encoded stays as it is.
pub(crate) fn unescaped(key: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let bytes = key.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let (Some(high), Some(low)) = (digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) else {
                return key.into();
            };
            plain.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
            at += 3;
        } else {
            plain.push(byte);
            at += 1;
        }
    }
    String::from_utf8(plain).unwrap_or_else(|_| key.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(*name, value.parse().unwrap());
            map
        })
    }

    #[test]
    fn every_part_needs_its_permission() {
        let headers = headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "devs"),
            ("impersonate-group", "ops"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-acme.com%2fproject", "x"),
        ]);
        let who = Impersonation::from_headers(&headers).unwrap().unwrap();
        assert_eq!(who.user.groups, ["devs", "ops", "system:authenticated"]);
        assert_eq!(who.user.extra["acme.com/project"], ["x"]);
        let admin = UserInfo::component("admin");
        let asked: Vec<_> = who
            .checks(&admin)
            .map(|a| format!("{}/{}/{}/{}", a.group, a.resource, a.subresource, a.name))
            .collect();
        assert_eq!(
            asked,
            [
                "/users//jane",
                "/groups//devs",
                "/groups//ops",
                "authentication.k8s.io/userextras/acme.com/project/x",
                "authentication.k8s.io/uids//7",
            ]
        );
        let mut stripped = headers.clone();
        remove_headers(&mut stripped);
        assert!(stripped.is_empty());
    }

    #[test]
    fn groups_follow_from_the_kind_of_user() {
        let groups = |pairs: &[(&'static str, &str)]| {
            Impersonation::from_headers(&headers(pairs))
                .unwrap()
                .unwrap()
                .user
                .groups
        };
        assert_eq!(
            groups(&[("impersonate-user", "system:serviceaccount:web:robot")]),
            [
                "system:serviceaccounts",
                "system:serviceaccounts:web",
                "system:authenticated"
            ]
        );
        assert_eq!(
            groups(&[("impersonate-user", "system:anonymous")]),
            ["system:unauthenticated"]
        );
        assert_eq!(
            groups(&[
                ("impersonate-user", "x"),
                ("impersonate-group", "system:unauthenticated")
            ]),
            ["system:unauthenticated"]
        );
    }

    #[test]
    fn parts_without_a_user_are_refused() {
        assert_eq!(Impersonation::from_headers(&HeaderMap::new()), Ok(None));
        for name in ["impersonate-group", "impersonate-uid", "impersonate-extra-k"] {
            assert!(Impersonation::from_headers(&headers(&[(name, "x")])).is_err());
        }
        assert_eq!(unescaped("a%2"), "a%2");
        assert_eq!(unescaped("a%ff"), "a%ff");
    }
}
