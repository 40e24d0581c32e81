//! Who we say we are to other people's servers: the users of a kubeconfig, named after the servers they are for.
//!
//! The name of a user is `host:port`, `*.` and the end of one, or the same without the port where that is 443; `*` is
//! for every other server, and so is the user of the current context where there is no `*`. Whoever finds no user goes
//! without credentials.
//!
//! Files a user names are found beside the kubeconfig. A token's file is read again from time to time, because such
//! tokens are renewed; certificates are read once (upstream follows them as well). Programs and plugins that make
//! credentials are refused at once instead of at the first call.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use sampan_api::codec;
use sampan_pki::Identity;
use serde::Deserialize;
use serde_json::Value;

use super::Place;
use crate::sync::lock;

/// How long a token's file is believed without another look.
const FRESH: Duration = Duration::from_secs(60);

/// The users of a kubeconfig.
#[derive(Default)]
pub struct Credentials {
    users: BTreeMap<String, Arc<User>>,
    /// Of the current context.
    current: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.users.keys()).finish()
    }
}

/// How a user proves who it is.
pub struct User {
    identity: Option<Identity>,
    /// Those that never change: a password, whom to act as.
    headers: HeaderMap,
    token: Token,
}

enum Token {
    None,
    Fixed(HeaderValue),
    File {
        path: PathBuf,
        read: Mutex<(Instant, HeaderValue)>,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    users: Option<Vec<Named>>,
    #[serde(default)]
    contexts: Option<Vec<NamedContext>>,
    #[serde(default, rename = "current-context")]
    current: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    user: Info,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    #[serde(default)]
    user: String,
}

/// A user as it stands in the file.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Info {
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: String,
    username: String,
    password: String,
    #[serde(rename = "as")]
    acts_as: String,
    as_uid: String,
    as_groups: Option<Vec<String>>,
    as_user_extra: Option<BTreeMap<String, Vec<String>>>,
    exec: Option<Value>,
    auth_provider: Option<Value>,
}

impl Credentials {
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text, path.parent().unwrap_or(Path::new("/")))
            .map_err(|why| format!("error loading config file {:?}: {why}", path.display().to_string()))
    }

    fn parse(text: &[u8], beside: &Path) -> Result<Self, String> {
        let parsed = codec::yaml::decode(text).map_err(|error| error.to_string())?;
        let file: File = serde_json::from_value(parsed.object).map_err(|error| error.to_string())?;
        let mut users = BTreeMap::new();
        for Named { name, user } in file.users.unwrap_or_default() {
            let user = User::of(user, beside).map_err(|why| format!("user {name:?}: {why}"))?;
            match users.entry(name) {
                Entry::Vacant(free) => free.insert(Arc::new(user)),
                Entry::Occupied(taken) => return Err(format!("duplicate name {:?} in list", taken.key())),
            };
        }
        let mut contexts = file.contexts.unwrap_or_default().into_iter();
        let current = contexts.find(|context| !file.current.is_empty() && context.name == file.current);
        Ok(Credentials {
            users,
            current: current.map(|context| context.context.user),
        })
    }

    /// As whom a server is called.
    pub fn of(&self, place: &Place) -> Option<Arc<User>> {
        let target = place.authority();
        self.named(&target)
            .or_else(|| self.named(target.strip_suffix(":443")?))
            .or_else(|| self.users.get("*"))
            .or_else(|| self.users.get(self.current.as_ref()?))
            .cloned()
    }

    /// By the whole name, else by the longest end of it.
    fn named(&self, target: &str) -> Option<&Arc<User>> {
        // Go takes the brackets off an IPv6 address where it splits off the port.
        let bare = target.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let target = bare.unwrap_or(target);
        let ends = target.match_indices('.').filter_map(|(dot, _)| target.get(dot..));
        self.users
            .get(target)
            .or_else(|| ends.into_iter().find_map(|end| self.users.get(&format!("*{end}"))))
    }
}

impl User {
    pub(super) fn of(info: Info, beside: &Path) -> Result<Self, String> {
        if info.exec.is_some_and(|exec| !exec.is_null()) {
            return Err("exec plugins are not supported".into());
        }
        if info.auth_provider.is_some_and(|provider| !provider.is_null()) {
            return Err("auth provider not supported".into());
        }
        let has_token = !info.token.is_empty() || !info.token_file.is_empty();
        let has_password = !info.username.is_empty() || !info.password.is_empty();
        if has_token && has_password {
            return Err("username/password or bearer token may be set, but not both".into());
        }
        let certificate = pem(&info.client_certificate_data, &info.client_certificate, beside)?;
        let key = pem(&info.client_key_data, &info.client_key, beside)?;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(Identity::parse(certificate, key)?),
            (None, None) => None,
            (Some(_), None) => return Err("a client certificate needs its key".into()),
            (None, Some(_)) => return Err("a client key needs its certificate".into()),
        };
        let mut headers = HeaderMap::new();
        if has_password {
            let both = STANDARD.encode(format!("{}:{}", info.username, info.password));
            headers.insert(AUTHORIZATION, secret(&format!("Basic {both}"))?);
        }
        if !info.acts_as.is_empty() {
            headers.insert("impersonate-user", plain(&info.acts_as)?);
            if !info.as_uid.is_empty() {
                headers.insert("impersonate-uid", plain(&info.as_uid)?);
            }
            for group in info.as_groups.unwrap_or_default() {
                headers.append("impersonate-group", plain(&group)?);
            }
            for (key, values) in info.as_user_extra.unwrap_or_default() {
                let name: HeaderName = format!("impersonate-extra-{key}")
                    .parse()
                    .map_err(|_| format!("{key:?} cannot be part of a header's name"))?;
                for value in values {
                    headers.append(name.clone(), plain(&value)?);
                }
            }
        }
        let token = if info.token_file.is_empty() {
            match info.token.as_str() {
                "" => Token::None,
                token => Token::Fixed(bearer(token)?),
            }
        } else {
            let path = beside.join(&info.token_file);
            let first = match (token_of(&path), info.token.as_str()) {
                (Ok(token), _) => token,
                (Err(_), token) if !token.is_empty() => bearer(token)?,
                (Err(why), _) => return Err(why),
            };
            let read = Mutex::new((Instant::now(), first));
            Token::File { path, read }
        };
        Ok(User {
            identity,
            headers,
            token,
        })
    }

    /// The certificate, if it has one.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// What every request says.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        match &self.token {
            Token::None => {}
            Token::Fixed(token) => {
                headers.insert(AUTHORIZATION, token.clone());
            }
            Token::File { path, read } => {
                let mut known = lock(read);
                if known.0.elapsed() > FRESH {
                    known.0 = Instant::now();
                    match token_of(path) {
                        Ok(token) => known.1 = token,
                        Err(why) => tracing::warn!(why, "a token could not be read again; the last one stays"),
                    }
                }
                headers.insert(AUTHORIZATION, known.1.clone());
            }
        }
        headers
    }
}

/// What stands there in base64, else in the file.
pub(super) fn content(data: &str, path: &str, beside: &Path) -> Result<Option<Vec<u8>>, String> {
    match (data, path) {
        ("", "") => Ok(None),
        ("", path) => {
            let path = beside.join(path);
            let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(Some(bytes))
        }
        (data, _) => {
            let data: String = data.split_ascii_whitespace().collect();
            let bytes = STANDARD
                .decode(data)
                .map_err(|error| format!("illegal base64 data: {error}"))?;
            Ok(Some(bytes))
        }
    }
}

fn pem(data: &str, path: &str, beside: &Path) -> Result<Option<String>, String> {
    let text = content(data, path, beside)?.map(String::from_utf8).transpose();
    text.map_err(|error| error.to_string())
}

fn token_of(path: &Path) -> Result<HeaderValue, String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("failed to read token file {:?}: {error}", path.display().to_string()))?;
    match text.trim() {
        "" => Err(format!("read empty token from file {:?}", path.display().to_string())),
        token => bearer(token),
    }
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = plain(text).map_err(|_| "a credential cannot be sent in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn plain(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|_| format!("{text:?} cannot be sent in a header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(users: &str) -> Result<Credentials, String> {
        let text = format!("apiVersion: v1\nkind: Config\n{users}");
        Credentials::parse(text.as_bytes(), Path::new("/nowhere"))
    }

    #[test]
    fn users_are_found_by_the_server_they_are_for() {
        let names = [
            "exact.example.com:8443",
            "*.example.com:8443",
            "*.com:8443",
            "hook.default.svc",
            "*.default.svc",
            "*.svc",
            "10.0.0.1:443",
            "fd00::1",
            "*",
        ];
        let users: String = names
            .iter()
            .map(|name| format!("- {{name: '{name}', user: {{token: '{name}'}}}}\n"))
            .collect();
        let found = parse(&format!("users:\n{users}")).unwrap();
        let host = |host: &str, port| Place::Host {
            host: host.into(),
            port,
        };
        let service = |name: &str, namespace: &str, port| Place::Service {
            namespace: namespace.into(),
            name: name.into(),
            port,
        };
        for (place, name) in [
            (host("exact.example.com", 8443), "exact.example.com:8443"),
            (host("other.example.com", 8443), "*.example.com:8443"),
            (host("a.b.com", 8443), "*.com:8443"),
            (host("exact.example.com", 443), "*"),
            (service("hook", "default", 443), "hook.default.svc"),
            (service("other", "default", 443), "*.default.svc"),
            (service("hook", "else", 443), "*.svc"),
            (service("hook", "default", 8443), "*"),
            (host("10.0.0.1", 443), "10.0.0.1:443"),
            (host("fd00::1", 443), "fd00::1"),
            (host("plain", 443), "*"),
        ] {
            let user = found.of(&place).unwrap();
            assert_eq!(user.headers()["authorization"], format!("Bearer {name}"), "{place:?}");
        }
        let contexts = "contexts:\n- {name: c, context: {cluster: x, user: u}}\ncurrent-context: c\n";
        let found = parse(&format!("users:\n- {{name: u, user: {{token: t}}}}\n{contexts}")).unwrap();
        assert_eq!(
            found.of(&host("any", 1)).unwrap().headers()["authorization"],
            "Bearer t"
        );
        assert!(parse(contexts).unwrap().of(&host("any", 1)).is_none());
        assert!(parse("users: []").unwrap().of(&host("any", 1)).is_none());
    }

    #[test]
    fn users_prove_who_they_are() {
        let found = parse(
            "users:\n- {name: a, user: {username: me, password: pass, as: you, as-uid: '7', as-groups: [g, h], as-user-extra: {k: [v]}}}\n",
        )
        .unwrap();
        let headers = found
            .of(&Place::Host {
                host: "a".into(),
                port: 443,
            })
            .unwrap()
            .headers();
        let all: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(
            all,
            [
                ("authorization", "Basic bWU6cGFzcw=="),
                ("impersonate-user", "you"),
                ("impersonate-uid", "7"),
                ("impersonate-group", "g"),
                ("impersonate-group", "h"),
                ("impersonate-extra-k", "v"),
            ]
        );
        for (user, why) in [
            ("{exec: {command: c}}", "exec plugins are not supported"),
            ("{auth-provider: {name: n}}", "auth provider not supported"),
            ("{token: a, username: b}", "may be set, but not both"),
            ("{tokenFile: t}", "failed to read token file \"/nowhere/t\""),
            ("{client-certificate: c.pem}", "/nowhere/c.pem"),
            ("{client-certificate-data: '%'}", "illegal base64 data"),
            ("{client-certificate-data: YQ==}", "needs its key"),
            ("{client-key-data: YQ==}", "needs its certificate"),
            ("{client-key-data: YQ==, client-certificate-data: YQ==}", "certificate"),
            ("{token: \"a\\nb\"}", "cannot be sent in a header"),
        ] {
            let error = parse(&format!("users:\n- {{name: a, user: {user}}}\n")).unwrap_err();
            assert!(error.contains(why) && error.starts_with("user \"a\": "), "{error}");
        }
        let twice = parse("users:\n- {name: a}\n- {name: a}\n").unwrap_err();
        assert_eq!(twice, "duplicate name \"a\" in list");
    }
}
