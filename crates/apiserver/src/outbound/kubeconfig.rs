//! A kubeconfig that says where a webhook of the server itself is, whom to trust there and who we are.
//!
//! Read once, at start, as upstream's `LoadKubeconfig` does; files it names are relative to it. What cannot be honoured
//! (plain HTTP, exec plug-ins, another TLS name) is refused instead of being passed over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderMap;
use sampan_api::codec;
use serde::Deserialize;

use super::credentials::{Info, User, content};
use super::{Place, Spec, Trust};

/// One server, and how to speak to it.
#[derive(Clone)]
pub struct Remote {
    pub spec: Spec,
    /// The URL's path, with its query.
    pub path: String,
    user: Arc<User>,
}

#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the kubeconfig {} is not valid: {why}", path.display())]
    Invalid { path: PathBuf, why: String },
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    clusters: Vec<Named>,
    users: Vec<Named>,
    contexts: Vec<Named>,
    #[serde(rename = "current-context")]
    current_context: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Named {
    name: String,
    cluster: Cluster,
    user: Info,
    context: Context,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: String,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
    tls_server_name: String,
    proxy_url: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

impl Remote {
    pub fn read(path: &Path) -> Result<Remote, KubeconfigError> {
        let text = read(path)?;
        parse(&text, path).map_err(|why| KubeconfigError::Invalid {
            path: path.to_owned(),
            why,
        })
    }

    /// Headers that say who is calling.
    pub fn headers(&self) -> HeaderMap {
        self.user.headers()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    std::fs::read(path).map_err(|source| KubeconfigError::Read {
        path: path.to_owned(),
        source,
    })
}

fn named<'a>(list: &'a [Named], what: &str, name: &str) -> Result<&'a Named, String> {
    list.iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| format!("it has no {what} {name:?}"))
}

fn parse(text: &[u8], path: &Path) -> Result<Remote, String> {
    let parsed = codec::yaml::decode(text).map_err(|error| error.to_string())?;
    let file: File = serde_json::from_value(parsed.object).map_err(|error| error.to_string())?;
    let beside = path.parent().unwrap_or(Path::new("."));
    let context = match (file.current_context.as_str(), file.contexts.as_slice()) {
        // Upstream takes the only one there is, too.
        ("", [one]) => one,
        ("", _) => return Err("it has no current-context".into()),
        (name, all) => named(all, "context", name)?,
    };
    let cluster = &named(&file.clusters, "cluster", &context.context.cluster)?.cluster;
    let user = match context.context.user.as_str() {
        "" => Info::default(),
        name => named(&file.users, "user", name)?.user.clone(),
    };
    let user = User::of(user, beside)?;
    for (given, what) in [
        (!cluster.tls_server_name.is_empty(), "tls-server-name"),
        (!cluster.proxy_url.is_empty(), "proxy-url"),
    ] {
        if given {
            return Err(format!("{what} is not supported"));
        }
    }
    let (place, url_path) = Place::of_url(&cluster.server).map_err(|error| error.to_string())?;
    let bundle = content(
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
        beside,
    )
    .map_err(|why| format!("certificate-authority: {why}"))?
    .unwrap_or_default();
    let trust = match (cluster.insecure_skip_tls_verify, bundle.is_empty()) {
        (true, false) => {
            return Err("insecure-skip-tls-verify and a certificate authority contradict each other".into());
        }
        (true, true) => Trust::Anyone,
        (false, _) => Trust::Bundle(bundle),
    };
    let identity = user.identity().cloned();
    Ok(Remote {
        spec: Spec { place, trust, identity },
        path: url_path,
        user: Arc::new(user),
    })
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;

    use super::*;

    fn of(cluster: &str, user: &str) -> Result<Remote, String> {
        let text = format!(
            "clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        parse(text.as_bytes(), Path::new("/nowhere/config"))
    }

    #[test]
    fn a_place_and_credentials_are_found() {
        let remote = of("server: 'https://audit.example:8443/events?x=1'", "token: t0p").unwrap();
        assert_eq!(
            remote.spec.place,
            Place::Host {
                host: "audit.example".into(),
                port: 8443
            }
        );
        assert_eq!(remote.path, "/events?x=1");
        assert_eq!(remote.headers()[AUTHORIZATION], "Bearer t0p");
        assert!(!format!("{:?}", remote.headers()).contains("t0p"));
        let remote = of(
            "server: 'https://h', insecure-skip-tls-verify: true",
            "username: a, password: b",
        )
        .unwrap();
        assert_eq!(remote.spec.trust, Trust::Anyone);
        assert_eq!(remote.headers()[AUTHORIZATION], "Basic YTpi");
        assert!(of("server: 'https://h'", "").unwrap().headers().is_empty());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for (cluster, user, why) in [
            ("server: 'http://h'", "", "https"),
            (
                "server: 'https://h', tls-server-name: x",
                "",
                "tls-server-name is not supported",
            ),
            (
                "server: 'https://h'",
                "exec: {command: x}",
                "exec plugins are not supported",
            ),
            ("server: 'https://h', certificate-authority: nope.pem", "", "nope.pem"),
            ("server: 'https://h'", "client-certificate-data: YQ==", "needs its key"),
        ] {
            let error = of(cluster, user).err().unwrap_or_default();
            assert!(error.contains(why), "{cluster} {user}: {error}");
        }
        let error = parse(b"clusters: []", Path::new("x")).err().unwrap();
        assert_eq!(error, "it has no current-context");
    }
}
