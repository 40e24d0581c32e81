//! What a request is about: one resolver from method and path to verb, group, resource and name.
//!
//! The rules are upstream's (`/api` and `/apis` trees, the old `/watch/` prefix, the two subresources of
//! namespaces, everything else a non-resource path), because authorization and audit depend on them.
//!
//! As there, a path is decoded first and divided second, and slashes at its ends do not count: authorization sees
//! `//api/v1/pods` as a list of Pods, though nothing is served under such a name ([`RequestInfo::is_served`]).

use http::Method;

use super::query::{Query, decode};

/// A resolved request. Text fields are empty where they do not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether this addresses a resource at all.
    pub is_resource: bool,
    /// The path, decoded, without its query.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, … or the lower-case method for non-resource paths.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Path segments after the subresource (proxy paths).
    pub rest: String,
}

impl RequestInfo {
    pub fn resolve(method: &Method, path: &str, query: &Query) -> Self {
        let path = decode(path, false);
        let mut info = RequestInfo {
            path: path.clone(),
            verb: method.as_str().to_ascii_lowercase(),
            ..RequestInfo::default()
        };
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let prefix = if parts.is_empty() { "" } else { parts.remove(0) };
        match prefix {
            "api" if parts.len() >= 2 => {
                info.version = parts.remove(0).to_owned();
            }
            "apis" if parts.len() >= 3 => {
                info.group = parts.remove(0).to_owned();
                info.version = parts.remove(0).to_owned();
            }
            _ => return info,
        }
        info.is_resource = true;
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        let mut old_watch = false;
        if parts.first() == Some(&"watch") && parts.len() >= 2 {
            parts.remove(0);
            old_watch = true;
        }
        if parts.first() == Some(&"namespaces")
            && let Some(namespace) = parts.get(1)
        {
            info.namespace = (*namespace).to_owned();
            // /namespaces/N/status and /namespaces/N/finalize belong to the namespace itself.
            if parts.get(2).is_some_and(|part| !matches!(*part, "status" | "finalize")) {
                parts.drain(..2);
            }
        }
        let mut parts = parts.into_iter();
        info.resource = parts.next().unwrap_or_default().to_owned();
        info.name = parts.next().unwrap_or_default().to_owned();
        info.subresource = parts.next().unwrap_or_default().to_owned();
        info.rest = parts.collect::<Vec<_>>().join("/");
        if info.resource == "namespaces" && !info.name.is_empty() {
            info.namespace.clone_from(&info.name);
        }
        if old_watch {
            info.verb = "watch".to_owned();
        }
        if info.name.is_empty() {
            if info.verb == "get" {
                info.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned();
            }
            if info.verb == "delete" {
                info.verb = "deletecollection".to_owned();
            }
        }
        if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") && info.name.is_empty() {
            // Names the single object for authorization, as upstream does.
            if let Some(selector) = query.text("fieldSelector") {
                info.name = name_in_selector(selector).unwrap_or_default();
            }
        }
        info
    }

    /// Whether anything can be served under the path: it has the form its resolution assumed.
    pub fn is_served(&self) -> bool {
        self.path.starts_with("/api/") || self.path.starts_with("/apis/")
    }

    /// Whether the request may live longer than the request timeout and outside the in-flight limits.
    pub fn is_long_running(&self, query: &Query) -> bool {
        if !self.is_resource {
            return false;
        }
        self.verb == "watch"
            || matches!(self.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy")
            || (self.subresource == "log" && query.flag("follow"))
    }

    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }
}

/// The value of `metadata.name=…` if that term is in the selector.
fn name_in_selector(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        let value = term.strip_prefix("metadata.name=")?;
        let value = value.strip_prefix('=').unwrap_or(value);
        let plain = !value.is_empty() && !value.contains(['/', '%', '\\']) && value != "." && value != "..";
        plain.then(|| value.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(method: Method, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::resolve(&method, path, &Query::parse(query))
    }

    #[test]
    fn resource_paths() {
        let cases = [
            (Method::GET, "/api/v1/namespaces", "list  v1  namespaces  "),
            (
                Method::GET,
                "/api/v1/namespaces/other",
                "get  v1 other namespaces  other",
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/other/finalize",
                "update  v1 other namespaces finalize other",
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/other/status",
                "update  v1 other namespaces status other",
            ),
            (Method::GET, "/api/v1/namespaces/other/pods", "list  v1 other pods  "),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods?watch=true",
                "watch  v1 other pods  ",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods?watch=false",
                "list  v1 other pods  ",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods/foo",
                "get  v1 other pods  foo",
            ),
            (
                Method::HEAD,
                "/api/v1/namespaces/other/pods/foo",
                "get  v1 other pods  foo",
            ),
            (Method::GET, "/api/v1/pods", "list  v1  pods  "),
            (
                Method::GET,
                "/api/v1/pods?fieldSelector=metadata.name%3Dfoo",
                "list  v1  pods  foo",
            ),
            (
                Method::POST,
                "/api/v1/namespaces/o/pods/foo/exec?command=ls",
                "create  v1 o pods exec foo",
            ),
            (Method::GET, "/api/v1/watch/pods", "watch  v1  pods  "),
            (
                Method::GET,
                "/api/v1/watch/namespaces/o/pods/foo",
                "watch  v1 o pods  foo",
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/o/pods",
                "deletecollection  v1 o pods  ",
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/o/pods/foo",
                "delete  v1 o pods  foo",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/o/deployments/d/scale",
                "patch apps v1 o deployments scale d",
            ),
            (
                Method::GET,
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "get rbac.authorization.k8s.io v1  clusterroles  system:node",
            ),
            (
                Method::GET,
                "/api/v1/nodes/n/proxy/metrics/cadvisor",
                "get  v1  nodes proxy n",
            ),
        ];
        for (method, uri, wanted) in cases {
            let info = resolve(method, uri);
            assert!(info.is_resource, "{uri}");
            let got = [
                &info.verb,
                &info.group,
                &info.version,
                &info.namespace,
                &info.resource,
                &info.subresource,
                &info.name,
            ]
            .map(String::as_str)
            .join(" ");
            assert_eq!(got, wanted, "{uri}");
        }
        assert_eq!(resolve(Method::GET, "/api/v1/nodes/n/proxy/a/b").rest, "a/b");
    }

    #[test]
    fn tricks_with_slashes() {
        // As upstream: decoded, then trimmed, then divided; what is empty in between counts.
        let cases = [
            ("//api/v1/pods", "list pods  false"),
            ("/api/v1/pods/", "list pods  true"),
            ("/api/v1//pods", "get  pods true"),
            ("/api/v1/nodes/x/../y", "get nodes x true"),
            ("/api/v1/nodes%2Fx", "get nodes x true"),
            ("/api/v1/nodes/..", "get nodes .. true"),
            ("/x/../api/v1/pods", "get   false"),
            ("/api/v1/nodes/%00", "get nodes \u{0} true"),
        ];
        for (path, expected) in cases {
            let info = resolve(Method::GET, path);
            let got = format!("{} {} {} {}", info.verb, info.resource, info.name, info.is_served());
            assert_eq!(got, expected, "{path}");
        }
        assert_eq!(resolve(Method::GET, "/api/v1/namespaces//pods").resource, "pods");
        assert_eq!(resolve(Method::GET, "/%61pi/v1/pods").resource, "pods");
    }

    #[test]
    fn other_paths() {
        for uri in [
            "/",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz/ping",
            "/version",
        ] {
            let info = resolve(Method::GET, uri);
            assert!(!info.is_resource, "{uri}");
            assert_eq!((info.verb.as_str(), info.path.as_str()), ("get", uri));
        }
    }
}
