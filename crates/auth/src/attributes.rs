//! What a request wants to do, as authorization sees it, and the words of a refusal.

use crate::user::UserInfo;

/// What a request wants to do. Borrowed from the request: making one allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    /// `get`, `list`, `watch`, `create`, … for resources; the method in lower case for other paths.
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    /// The plural; empty for a path that is no resource.
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty for lists and creates.
    pub name: &'a str,
    pub path: &'a str,
    pub resource_request: bool,
    /// Requirements `field=value` of the request's field selector; nodes may list only what is theirs.
    pub field_equals: &'a [(&'a str, &'a str)],
    /// All that the request's selectors demand, for webhooks.
    pub selectors: Option<&'a Selectors>,
}

/// What the selectors of a list, a watch or a deletion of many demand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    pub fields: Vec<Requirement>,
    pub labels: Vec<Requirement>,
}

/// One demand, as reviews say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: &'static str,
    pub values: Vec<String>,
}

impl<'a> Attributes<'a> {
    /// For `verb` on a resource; fill in the rest with struct update syntax.
    pub fn resource(user: &'a UserInfo, verb: &'a str, group: &'a str, resource: &'a str) -> Self {
        Attributes {
            user,
            verb,
            group,
            version: "",
            resource,
            subresource: "",
            namespace: "",
            name: "",
            path: "",
            resource_request: true,
            field_equals: &[],
            selectors: None,
        }
    }
    /// For a path that is no resource; `verb` is the method in lower case.
    pub fn path(user: &'a UserInfo, verb: &'a str, path: &'a str) -> Self {
        Attributes {
            path,
            resource_request: false,
            ..Self::resource(user, verb, "", "")
        }
    }

    /// What the user cannot do: `User "x" cannot list resource "pods" in API group "" in the namespace "default"`.
    pub fn refusal(&self) -> String {
        let user = quoted(&self.user.name);
        let text = if !self.resource_request {
            format!("User {user} cannot {} path {}", self.verb, quoted(self.path))
        } else {
            let resource = if self.subresource.is_empty() {
                quoted(self.resource)
            } else {
                quoted(&format!("{}/{}", self.resource, self.subresource))
            };
            let scope = if self.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {}", quoted(self.namespace))
            };
            format!(
                "User {user} cannot {} resource {resource} in API group {} {scope}",
                self.verb,
                quoted(self.group)
            )
        };
        // As upstream: nothing in it may look like HTML to a browser.
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
    }

    /// The refusal with the authorizer's reason: the `why` of a Forbidden status.
    pub fn forbidden(&self, reason: &str) -> String {
        let refusal = self.refusal();
        if reason.is_empty() {
            refusal
        } else {
            format!("{refusal}: {reason}")
        }
    }
}

/// As Go's `%q`: for the texts that occur here the same as Rust's, but for the short escapes.
pub(crate) fn quoted(text: &str) -> String {
    use std::fmt::Write;
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0b' => quoted.push_str("\\v"),
            '\x0c' => quoted.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\x7f' => {
                // Writing to a String cannot fail.
                write!(quoted, "\\x{:02x}", c as u32).unwrap_or_default();
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// `["a" "b"]`, as Go prints a list with `%q`.
pub(crate) fn quoted_list<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(|item| quoted(item.as_ref())).collect();
    format!("[{}]", items.join(" "))
}

/// Whether it may, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Refused in so many words: no authorizer after this one is asked.
    pub denied: bool,
    /// Why it is allowed, or what kept it from being decided; often empty.
    pub reason: String,
    /// What went wrong while deciding; often empty.
    pub error: String,
}

impl Decision {
    pub fn allow(reason: impl Into<String>) -> Self {
        Decision {
            allowed: true,
            reason: reason.into(),
            ..Decision::default()
        }
    }
    /// No opinion: the next authorizer is asked, and without one it is not allowed.
    pub fn deny(reason: impl Into<String>) -> Self {
        Decision {
            reason: reason.into(),
            ..Decision::default()
        }
    }
    /// The `why` of a Forbidden status if it is not allowed.
    pub fn into_permission(self, request: &Attributes<'_>) -> Result<(), String> {
        if self.allowed {
            return Ok(());
        }
        if !self.error.is_empty() {
            tracing::warn!(
                user = request.user.name,
                error = self.error,
                "an authorizer could not decide"
            );
        }
        Err(request.forbidden(&self.reason))
    }
    /// Not allowed, whatever others would say.
    pub fn forbid(reason: impl Into<String>) -> Self {
        Decision {
            denied: true,
            reason: reason.into(),
            ..Decision::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_upstreams_words() {
        let user = UserInfo::new("x<y", [] as [&str; 0]);
        let pods = Attributes::resource(&user, "list", "", "pods");
        assert_eq!(
            pods.refusal(),
            r#"User "x&lt;y" cannot list resource "pods" in API group "" at the cluster scope"#
        );
        let scale = Attributes {
            namespace: "default",
            subresource: "scale",
            ..Attributes::resource(&user, "update", "apps", "deployments")
        };
        assert_eq!(
            scale.forbidden("RBAC: no"),
            r#"User "x&lt;y" cannot update resource "deployments/scale" in API group "apps" in the namespace "default": RBAC: no"#
        );
        assert_eq!(
            Attributes::path(&user, "get", "/metrics").refusal(),
            r#"User "x&lt;y" cannot get path "/metrics""#
        );
    }
}
