//! Registry credentials out of image pull secrets. Pure; nothing here is ever logged.

use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use sampan_runtime::RegistryAuth;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

/// The registry host of an image name, with Docker Hub's spelled out.
pub fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The image name with its registry and without tag and digest.
fn repository_of(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    };
    let host = registry_of(image);
    match name.strip_prefix(host).and_then(|rest| rest.strip_prefix('/')) {
        Some(rest) => format!("{host}/{rest}"),
        None => format!("{host}/{name}"),
    }
}

/// Whether credentials filed under `key` are for `image`: the host (whose labels may be `*` patterns) and, where
/// the key has a path, a prefix of the image's.
fn matches(key: &str, image: &str) -> bool {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let key = key
        .trim_end_matches('/')
        .trim_end_matches("/v1")
        .trim_end_matches("/v2");
    let key = match key.split_once('/') {
        Some(("index.docker.io", rest)) => format!("docker.io/{rest}"),
        None if key == "index.docker.io" => "docker.io".into(),
        _ => key.to_owned(),
    };
    let (key_host, key_path) = key.split_once('/').unwrap_or((&key, ""));
    let repository = repository_of(image);
    let (host, path) = repository.split_once('/').unwrap_or((&repository, ""));
    let key_labels: Vec<&str> = key_host.split('.').collect();
    let labels: Vec<&str> = host.split('.').collect();
    let host_matches = key_labels.len() == labels.len()
        && key_labels
            .iter()
            .zip(&labels)
            .all(|(pattern, label)| glob(pattern, label));
    let path_matches = key_path.is_empty()
        || path == key_path
        || path.strip_prefix(key_path).is_some_and(|rest| rest.starts_with('/'));
    host_matches && path_matches
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| glob(after, &rest[at..]))
        }),
    }
}

/// The credentials in `secrets` that may open `image`, the most specific first.
pub fn for_image<'a>(image: &str, secrets: impl IntoIterator<Item = &'a Secret>) -> Vec<RegistryAuth> {
    let mut found: Vec<(usize, RegistryAuth)> = Vec::new();
    for secret in secrets {
        let Some(data) = &secret.data else { continue };
        let entries = if let Some(bytes) = data.get(".dockerconfigjson") {
            serde_json::from_slice::<DockerConfig>(&bytes.0)
                .map(|config| config.auths)
                .unwrap_or_default()
        } else if let Some(bytes) = data.get(".dockercfg") {
            serde_json::from_slice(&bytes.0).unwrap_or_default()
        } else {
            continue;
        };
        for (key, entry) in entries {
            if matches(&key, image) {
                found.push((key.len(), auth(entry)));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn auth(entry: Entry) -> RegistryAuth {
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(entry.auth.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let (username, password) = match decoded.as_deref().and_then(|text| text.split_once(':')) {
        Some((user, password)) if entry.username.is_empty() => {
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        }
        _ => (entry.username, entry.password),
    };
    RegistryAuth {
        username,
        password,
        identity_token: entry.identitytoken,
        registry_token: entry.registrytoken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_match_images() {
        for (key, image, expected) in [
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "library/nginx:1", true),
            ("localhost:5000", "localhost:5000/a/b:1", true),
            ("localhost:5000", "localhost:5001/a", false),
            ("*.example.org", "reg.example.org/a", true),
            ("*.example.org", "a.b.example.org/a", false),
            ("example.org/team", "example.org/team/app", true),
            ("example.org/team", "example.org/teamster/app", false),
            ("http://example.org/", "example.org/app@sha256:00", true),
        ] {
            assert_eq!(matches(key, image), expected, "{key} {image}");
        }
    }

    #[test]
    fn secrets_are_read_the_most_specific_first() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let config = json!({"auths": {
            "example.org": {"auth": encode("u:p:q")},
            "example.org/team": {"username": "v", "password": "w"},
            "other.org": {"auth": "x"}}});
        let secret: Secret =
            serde_json::from_value(json!({"data": {".dockerconfigjson": encode(&config.to_string())}})).unwrap();
        let got = for_image("example.org/team/app:1", [&secret]);
        assert_eq!((got[0].username.as_str(), got[0].password.as_str()), ("v", "w"));
        assert_eq!((got[1].username.as_str(), got[1].password.as_str()), ("u", "p:q"));
        assert!(for_image("nginx", [&secret]).is_empty());
        let broken: Secret = serde_json::from_value(json!({"data": {".dockercfg": encode("no json")}})).unwrap();
        assert!(for_image("example.org/a", [&broken]).is_empty());
    }
}
