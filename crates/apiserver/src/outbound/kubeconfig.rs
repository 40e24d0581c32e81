//! A kubeconfig that says where a webhook of the server itself is, whom to trust there and who we are.
//!
//! Read once, at start, as upstream's `LoadKubeconfig` does; files it names are relative to it. What cannot be honoured
//! (plain HTTP, exec plug-ins, another TLS name) is refused instead of being passed over.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use sampan_api::codec;
use sampan_pki::Identity;
use serde::Deserialize;
use serde_json::Value;

use super::{Error, Place, Spec, Trust};

/// One server, and how to speak to it.
#[derive(Clone)]
pub struct Remote {
    pub spec: Spec,
    /// The URL's path, with its query.
    pub path: String,
    credentials: Credentials,
}

#[derive(Clone)]
enum Credentials {
    None,
    Fixed(HeaderValue),
    /// Read anew for every call: such files are rotated.
    TokenFile(PathBuf),
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
    user: User,
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
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: String,
    username: String,
    password: String,
    exec: Option<Value>,
    auth_provider: Option<Value>,
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
    pub fn headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        let value = match &self.credentials {
            Credentials::None => return Ok(headers),
            Credentials::Fixed(value) => value.clone(),
            Credentials::TokenFile(path) => {
                let unusable = |why: String| Error::Unusable(format!("the token in {}: {why}", path.display()));
                let token = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
                secret(&format!("Bearer {}", token.trim())).map_err(unusable)?
            }
        };
        headers.insert(AUTHORIZATION, value);
        Ok(headers)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    std::fs::read(path).map_err(|source| KubeconfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A header value that is not shown in debug output.
fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "it holds characters that no header may".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn named<'a>(list: &'a [Named], what: &str, name: &str) -> Result<&'a Named, String> {
    list.iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| format!("it has no {what} {name:?}"))
}

/// What stands in the file, encoded, or in another file.
fn content(data: &str, file: &str, beside: &Path) -> Result<Vec<u8>, String> {
    if !data.is_empty() {
        return STANDARD
            .decode(data.split_ascii_whitespace().collect::<String>())
            .map_err(|error| error.to_string());
    }
    if file.is_empty() {
        return Ok(Vec::new());
    }
    read(&beside.join(file)).map_err(|error| error.to_string())
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
    let nobody = User::default();
    let user = match context.context.user.as_str() {
        "" => &nobody,
        name => &named(&file.users, "user", name)?.user,
    };
    for (given, what) in [
        (!cluster.tls_server_name.is_empty(), "tls-server-name"),
        (!cluster.proxy_url.is_empty(), "proxy-url"),
        (user.exec.is_some(), "exec"),
        (user.auth_provider.is_some(), "auth-provider"),
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
    .map_err(|why| format!("certificate-authority: {why}"))?;
    let trust = match (cluster.insecure_skip_tls_verify, bundle.is_empty()) {
        (true, false) => {
            return Err("insecure-skip-tls-verify and a certificate authority contradict each other".into());
        }
        (true, true) => Trust::Anyone,
        (false, _) => Trust::Bundle(bundle),
    };
    let certificate = content(&user.client_certificate_data, &user.client_certificate, beside)
        .map_err(|why| format!("client-certificate: {why}"))?;
    let key = content(&user.client_key_data, &user.client_key, beside).map_err(|why| format!("client-key: {why}"))?;
    let identity = match (certificate.is_empty(), key.is_empty()) {
        (true, true) => None,
        (false, false) => Some(Identity::parse(
            String::from_utf8_lossy(&certificate).into_owned(),
            String::from_utf8_lossy(&key).into_owned(),
        )?),
        _ => return Err("a client certificate and its key go together".into()),
    };
    let credentials = if !user.token_file.is_empty() {
        Credentials::TokenFile(beside.join(&user.token_file))
    } else if !user.token.is_empty() {
        Credentials::Fixed(secret(&format!("Bearer {}", user.token)).map_err(|why| format!("token: {why}"))?)
    } else if !user.username.is_empty() {
        let pair = STANDARD.encode(format!("{}:{}", user.username, user.password));
        Credentials::Fixed(secret(&format!("Basic {pair}"))?)
    } else {
        Credentials::None
    };
    Ok(Remote {
        spec: Spec { place, trust, identity },
        path: url_path,
        credentials,
    })
}

#[cfg(test)]
mod tests {
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
        assert_eq!(remote.headers().unwrap()[AUTHORIZATION], "Bearer t0p");
        assert!(!format!("{:?}", remote.headers().unwrap()).contains("t0p"));
        let remote = of(
            "server: 'https://h', insecure-skip-tls-verify: true",
            "username: a, password: b",
        )
        .unwrap();
        assert_eq!(remote.spec.trust, Trust::Anyone);
        assert_eq!(remote.headers().unwrap()[AUTHORIZATION], "Basic YTpi");
        assert!(of("server: 'https://h'", "").unwrap().headers().unwrap().is_empty());
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
            ("server: 'https://h'", "exec: {command: x}", "exec is not supported"),
            ("server: 'https://h', certificate-authority: nope.pem", "", "nope.pem"),
            ("server: 'https://h'", "client-certificate-data: YQ==", "go together"),
        ] {
            let error = of(cluster, user).err().unwrap_or_default();
            assert!(error.contains(why), "{cluster} {user}: {error}");
        }
        let error = parse(b"clusters: []", Path::new("x")).err().unwrap();
        assert_eq!(error, "it has no current-context");
    }
}
