//! A user: a name, groups, and whatever else the authenticator learned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everybody who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";
/// May do everything, whatever the rules say.
pub const MASTERS: &str = "system:masters";
pub const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// The key of the claim that tells one credential from another (audit).
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Who is asking. Serializes as `authentication.k8s.io/v1` `UserInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    #[serde(rename = "username", default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// An authenticated user in `groups` and `system:authenticated`.
    pub fn new<G: Into<String>>(name: impl Into<String>, groups: impl IntoIterator<Item = G>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        UserInfo {
            name: name.into(),
            groups,
            ..UserInfo::default()
        }
    }
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        UserInfo {
            name: ANONYMOUS.into(),
            groups: vec![UNAUTHENTICATED.into()],
            ..UserInfo::default()
        }
    }
    /// A part of the control plane known by name, such as `system:kube-scheduler`; the default bindings grant it its role.
    pub fn component(name: &str) -> Self {
        Self::new(name, [] as [&str; 0])
    }
    /// The API server's own work.
    pub fn api_server() -> Self {
        Self::new("system:apiserver", [MASTERS])
    }
    /// One controller, such as `deployment-controller`, under its own narrow role.
    pub fn controller(name: &str) -> Self {
        Self::service_account("kube-system", name, "")
    }
    /// The node `name`.
    pub fn node(name: &str) -> Self {
        Self::new(format!("{NODE_PREFIX}{name}"), [NODES])
    }
    /// A service account.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        UserInfo {
            uid: uid.into(),
            ..Self::new(
                sampan_pki::token::username(namespace, name),
                service_account_groups(namespace),
            )
        }
    }

    /// Adds the group that says whether the user proved who it is, where neither is there.
    pub fn imply_groups(&mut self) {
        let implied = if self.name == ANONYMOUS {
            UNAUTHENTICATED
        } else {
            AUTHENTICATED
        };
        if !self.in_group(UNAUTHENTICATED) && !self.in_group(implied) {
            self.groups.push(implied.into());
        }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|have| have == group)
    }
    /// The node this user is, if it is one that says which.
    pub fn node_name(&self) -> Option<&str> {
        let name = self.name.strip_prefix(NODE_PREFIX)?;
        (self.in_group(NODES) && !name.is_empty()).then_some(name)
    }
    /// Whether this user claims to be a node, named or not.
    pub fn is_node(&self) -> bool {
        self.in_group(NODES) && self.name.starts_with(NODE_PREFIX)
    }
    /// Namespace and name, if this user is a service account.
    pub fn as_service_account(&self) -> Option<(&str, &str)> {
        split_service_account(&self.name)
    }
}

/// `system:serviceaccounts` and `system:serviceaccounts:NAMESPACE`.
pub fn service_account_groups(namespace: &str) -> [String; 2] {
    [
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
    ]
}

/// Namespace and name of `system:serviceaccount:NAMESPACE:NAME`, if both could be a service account's.
pub(crate) fn split_service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    let dns = |text: &str, dots: bool| {
        let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(text.bytes().next())
            && edge(text.bytes().last())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.'))
    };
    (dns(namespace, false) && dns(name, true)).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_say_what_they_are() {
        assert_eq!(UserInfo::node("n1").node_name(), Some("n1"));
        assert_eq!(UserInfo::component("system:node:n1").node_name(), None);
        assert!(UserInfo::node("").is_node() && UserInfo::node("").node_name().is_none());
        let robot = UserInfo::service_account("web", "robot", "u");
        assert_eq!(robot.as_service_account(), Some(("web", "robot")));
        assert_eq!(
            robot.groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:web",
                "system:authenticated"
            ]
        );
        for odd in [
            "system:serviceaccount:web",
            "system:serviceaccount::x",
            "system:serviceaccount:a:b:c",
        ] {
            assert_eq!(split_service_account(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_json_is_upstreams() {
        let json = serde_json::to_value(UserInfo::anonymous()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]})
        );
    }
}
