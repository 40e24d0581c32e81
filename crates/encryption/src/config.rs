//! Upstream's `EncryptionConfiguration`: parsed strictly, checked by upstream's rules, in upstream's words.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sampan_api::codec;
use sampan_api::field::{Error, Errors, Path as Field};
use serde::Deserialize;
use serde_json::Value;

/// A resource as configurations name it: `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group) or `*.*`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct GroupResource {
    pub group: String,
    pub resource: String,
}

impl GroupResource {
    pub fn new(group: &str, resource: &str) -> Self {
        GroupResource {
            group: group.to_owned(),
            resource: resource.to_owned(),
        }
    }

    fn parse(text: &str) -> Self {
        let (resource, group) = text.split_once('.').unwrap_or((text, ""));
        GroupResource::new(group, resource)
    }

    fn is_everything(&self) -> bool {
        self.group == "*" && self.resource == "*"
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.group.as_str(), self.resource.as_str()) {
            ("", "*") => f.write_str("*."),
            ("", resource) => f.write_str(resource),
            (group, resource) => write!(f, "{resource}.{group}"),
        }
    }
}

impl fmt::Debug for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which providers a resource has.
#[derive(Debug)]
pub struct Configuration {
    pub resources: Vec<Rule>,
}

#[derive(Debug)]
pub struct Rule {
    pub resources: Vec<GroupResource>,
    pub providers: Vec<Provider>,
}

/// How values are kept. The first of a rule writes.
#[derive(Debug)]
pub enum Provider {
    Identity,
    AesGcm(Vec<Key>),
    AesCbc(Vec<Key>),
    Secretbox(Vec<Key>),
    Kms(KmsProvider),
}

/// A named key. `Debug` shows only its name.
pub struct Key {
    pub name: String,
    pub secret: Vec<u8>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

#[derive(Clone, Debug)]
pub struct KmsProvider {
    pub name: String,
    pub socket: PathBuf,
    pub timeout: Duration,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("error reading encryption provider configuration file {path:?}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("encryption provider configuration file {0:?} is empty")]
    Empty(PathBuf),
    #[error("error while parsing file {path:?}: {why}")]
    Invalid { path: PathBuf, why: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawConfiguration {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Option<Vec<RawRule>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawRule {
    resources: Option<Vec<String>>,
    providers: Option<Vec<RawProvider>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawProvider {
    aesgcm: Option<RawKeys>,
    aescbc: Option<RawKeys>,
    secretbox: Option<RawKeys>,
    identity: Option<RawIdentity>,
    kms: Option<RawKms>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawKeys {
    keys: Option<Vec<RawKey>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawKey {
    name: String,
    secret: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct RawKms {
    api_version: Option<String>,
    name: String,
    #[serde(rename = "cachesize")]
    cache_size: Option<i64>,
    endpoint: String,
    timeout: Option<String>,
}

impl Configuration {
    /// The file's content, and what it says.
    pub fn read(path: &Path) -> Result<(Vec<u8>, Configuration), ConfigurationError> {
        let text = std::fs::read(path).map_err(|source| ConfigurationError::Read {
            path: path.to_owned(),
            source,
        })?;
        if text.is_empty() {
            return Err(ConfigurationError::Empty(path.to_owned()));
        }
        let configuration = Self::parse(&text).map_err(|why| ConfigurationError::Invalid {
            path: path.to_owned(),
            why,
        })?;
        Ok((text, configuration))
    }

    pub fn parse(text: &[u8]) -> Result<Configuration, String> {
        let parsed = codec::yaml::decode(text).map_err(|error| error.to_string())?;
        if let Some(complaint) = parsed.complaint {
            return Err(complaint);
        }
        // Messages of the parser may quote values; of this file none may be shown.
        let raw: RawConfiguration = serde_json::from_value(parsed.object).map_err(|error| without_values(&error))?;
        if raw.kind != "EncryptionConfiguration"
            || !matches!(raw.api_version.as_str(), "apiserver.config.k8s.io/v1" | "v1")
        {
            return Err(format!(
                "no kind {:?} is registered for version {:?}; it must be an EncryptionConfiguration of apiserver.config.k8s.io/v1",
                raw.kind, raw.api_version
            ));
        }
        let root = Field::new("resources");
        let mut errors = Errors::new();
        let mut names = HashSet::new();
        let mut rules = Vec::new();
        for (index, rule) in raw.resources.unwrap_or_default().into_iter().enumerate() {
            rules.push(checked(rule, &root.index(index), &mut names, &mut errors));
        }
        if rules.is_empty() {
            errors.push(Error::required(&root, "at least one resources is required"));
        }
        match errors.as_slice() {
            [] => {}
            [one] => return Err(one.to_string()),
            several => {
                let all: Vec<_> = several.iter().map(ToString::to_string).collect();
                return Err(format!("[{}]", all.join(", ")));
            }
        }
        masked(&rules)?;
        Ok(Configuration { resources: rules })
    }
}

/// A parser's message up to where it quotes a value.
fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.starts_with("unknown field") || text.starts_with("missing field") {
        return text;
    }
    let kind = text.split([':', '"', '`']).next().unwrap_or_default().trim_end();
    let expected = text.rsplit_once(", expected ").map_or("", |(_, expected)| expected);
    format!("{kind}, expected {expected}")
}

/// A rule that an earlier one with a wildcard leaves nothing for is a mistake.
fn masked(rules: &[Rule]) -> Result<(), String> {
    let mut seen: HashSet<GroupResource> = HashSet::new();
    for rule in rules {
        for resource in &rule.resources {
            for by in [GroupResource::new(&resource.group, "*"), GroupResource::new("*", "*")] {
                if seen.contains(&by) {
                    return Err(format!(
                        "error while building transformers: resource {:?} is masked by earlier rule {:?}",
                        resource.to_string(),
                        by.to_string()
                    ));
                }
            }
            seen.insert(resource.clone());
        }
    }
    Ok(())
}

fn checked(raw: RawRule, path: &Field, names: &mut HashSet<String>, errors: &mut Errors) -> Rule {
    let (at, given) = (path.child("resources"), raw.resources.unwrap_or_default());
    if given.is_empty() {
        errors.push(Error::required(
            &at,
            format!("at least one {} is required", at.as_str()),
        ));
    }
    let resources: Vec<_> = given.iter().map(|text| GroupResource::parse(text)).collect();
    overlaps(&given, &resources, &at, errors);
    for (index, (text, resource)) in given.iter().zip(&resources).enumerate() {
        let why = if text.to_lowercase() != *text {
            "resource name should not contain capital letters"
        } else if text == "*" {
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
        } else if matches!(
            text.as_str(),
            "apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations"
        ) {
            "resources which do not have REST API/s cannot be encrypted"
        } else if resource.group == "events.k8s.io" {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        } else if resource.group == "extensions" {
            "'extensions' group has been removed and cannot be used for encryption"
        } else if resource.group == "*" && resource.resource != "*" {
            "encrypting the same resource across groups is not supported"
        } else {
            continue;
        };
        errors.push(Error::invalid(&at.index(index), text.as_str(), why));
    }
    let (at, given) = (path.child("providers"), raw.providers.unwrap_or_default());
    if given.is_empty() {
        errors.push(Error::required(
            &at,
            format!("at least one {} is required", at.as_str()),
        ));
    }
    let providers = given
        .into_iter()
        .enumerate()
        .filter_map(|(index, raw)| provider(raw, &at.index(index), names, errors))
        .collect();
    Rule { resources, providers }
}

fn overlaps(given: &[String], resources: &[GroupResource], path: &Field, errors: &mut Errors) {
    let (mut twice, mut overlap) = (false, false);
    for (index, one) in resources.iter().enumerate() {
        for other in resources.iter().skip(index + 1) {
            if one == other {
                twice = true;
            } else {
                let group = one.group == other.group && (one.resource == "*" || other.resource == "*");
                overlap |= group || one.is_everything() || other.is_everything();
            }
        }
    }
    let all = || Value::from(given.to_vec());
    if twice {
        errors.push(Error::invalid(
            path,
            all(),
            "the same resource cannot be specified multiple times",
        ));
    }
    if overlap {
        errors.push(Error::invalid(
            path,
            all(),
            "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked",
        ));
    }
}

fn provider(raw: RawProvider, path: &Field, names: &mut HashSet<String>, errors: &mut Errors) -> Option<Provider> {
    const AES: &[usize] = &[16, 24, 32];
    let found = [
        raw.aesgcm.is_some(),
        raw.aescbc.is_some(),
        raw.secretbox.is_some(),
        raw.identity.is_some(),
        raw.kms.is_some(),
    ];
    // The value is left out: it may hold keys.
    match found.iter().filter(|found| **found).count() {
        0 => {
            errors.push(Error::invalid(
                path,
                "REDACTED",
                "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
            ));
            return None;
        }
        1 => {}
        _ => {
            errors.push(Error::invalid(
                path,
                "REDACTED",
                "more than one provider specified in a single element, should split into different list elements",
            ));
            return None;
        }
    }
    let mut of = |raw: RawKeys, name: &str, sizes| keys(raw, &path.child(name).child("keys"), sizes, errors);
    if let Some(raw) = raw.aesgcm {
        return Some(Provider::AesGcm(of(raw, "aesgcm", AES)));
    }
    if let Some(raw) = raw.aescbc {
        return Some(Provider::AesCbc(of(raw, "aescbc", AES)));
    }
    if let Some(raw) = raw.secretbox {
        return Some(Provider::Secretbox(of(raw, "secretbox", &[32])));
    }
    match raw.kms {
        Some(raw) => kms(raw, &path.child("kms"), names, errors).map(Provider::Kms),
        None => Some(Provider::Identity),
    }
}

/// As Go writes them: `3s`, `1m30s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut whole = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()?;
        whole = whole.checked_add(part)?;
        rest = after;
    }
    Some(whole)
}

fn keys(raw: RawKeys, path: &Field, sizes: &[usize], errors: &mut Errors) -> Vec<Key> {
    let given = raw.keys.unwrap_or_default();
    if given.is_empty() {
        errors.push(Error::required(path, "at least one keys is required"));
    }
    let mut keys = Vec::new();
    for (index, key) in given.into_iter().enumerate() {
        let path = path.index(index);
        if key.name.is_empty() {
            errors.push(Error::required(
                &path.child("name"),
                "name is a mandatory field for a key",
            ));
        }
        let at = path.child("secret");
        if key.secret.is_empty() {
            errors.push(Error::required(&at, "secret is a mandatory field for a key"));
            continue;
        }
        let Ok(secret) = STANDARD.decode(key.secret.as_bytes()) else {
            errors.push(Error::invalid(&at, "REDACTED", "secrets must be base64 encoded"));
            continue;
        };
        if !sizes.contains(&secret.len()) {
            let sizes: Vec<_> = sizes.iter().map(ToString::to_string).collect();
            let why = format!(
                "secret is not of the expected length, got {}, expected one of [{}]",
                secret.len(),
                sizes.join(" ")
            );
            errors.push(Error::invalid(&at, "REDACTED", why));
            continue;
        }
        keys.push(Key { name: key.name, secret });
    }
    keys
}

fn kms(raw: RawKms, path: &Field, names: &mut HashSet<String>, errors: &mut Errors) -> Option<KmsProvider> {
    let before = errors.len();
    let version = raw.api_version.as_deref().unwrap_or("v1");
    if raw.name.is_empty() {
        errors.push(Error::required(
            &path.child("name"),
            "name is a mandatory field for a provider",
        ));
    }
    if raw.name.contains(':') {
        let why = format!("invalid KMS provider name {}, must not contain ':'", raw.name);
        errors.push(Error::invalid(&path.child("name"), raw.name.as_str(), why));
    }
    if !names.insert(raw.name.clone()) {
        let why = format!("duplicate KMS provider name {}, names must be unique", raw.name);
        errors.push(Error::invalid(&path.child("name"), raw.name.as_str(), why));
    }
    let timeout = match raw.timeout.as_deref() {
        None => Duration::from_secs(3),
        Some(text) => duration(text).unwrap_or(Duration::ZERO),
    };
    if timeout.is_zero() {
        let given = raw.timeout.unwrap_or_default();
        errors.push(Error::invalid(
            &path.child("timeout"),
            given,
            "timeout should be a positive value",
        ));
    }
    let at = path.child("endpoint");
    let socket = match raw.endpoint.split_once("://") {
        _ if raw.endpoint.is_empty() => {
            errors.push(Error::invalid(&at, "", "endpoint is a mandatory field for a kms"));
            PathBuf::new()
        }
        Some(("unix", path)) if path.starts_with('/') && !path.starts_with("/@") => PathBuf::from(path),
        Some(("unix", _)) => {
            errors.push(Error::invalid(
                &at,
                raw.endpoint.as_str(),
                "invalid endpoint for kms provider, error: give the absolute path of a socket",
            ));
            PathBuf::new()
        }
        other => {
            let scheme = other.map_or("", |(scheme, _)| scheme);
            let why = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
            errors.push(Error::invalid(&at, raw.endpoint.as_str(), why));
            PathBuf::new()
        }
    };
    match version {
        "v2" => {
            if let Some(size) = raw.cache_size {
                errors.push(Error::invalid(
                    &path.child("cachesize"),
                    size,
                    "cachesize is not supported in v2",
                ));
            }
        }
        "v1" => errors.push(Error::invalid(
            &path.child("apiVersion"),
            "v1",
            "KMSv1 is deprecated and not supported here. Use KMSv2 instead",
        )),
        other => errors.push(Error::invalid(
            &path.child("apiVersion"),
            other,
            "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported",
        )),
    }
    (errors.len() == before).then_some(KmsProvider {
        name: raw.name,
        socket,
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";

    fn refused(rest: &str) -> String {
        Configuration::parse(format!("{HEAD}{rest}").as_bytes()).expect_err(rest)
    }

    #[test]
    fn what_is_wrong_is_said_and_no_key_is_shown() {
        const KEY: &str = "c2VjcmV0IGlzIHNlY3VyZSwgb3IgaXMgaXQ/Cg==";
        let identity = "providers: [{identity: {}}]";
        for (rest, why) in [
            (
                "resources: []",
                "resources: Required value: at least one resources is required",
            ),
            (
                "resources: [{resources: [secrets]}]",
                "resources[0].providers: Required value: at least one resources[0].providers is required",
            ),
            (
                &format!("resources: [{{{identity}}}]"),
                "resources[0].resources: Required value",
            ),
            (
                &format!("resources: [{{resources: ['*'], {identity}}}]"),
                "use '*.' to encrypt all the resources from core API group",
            ),
            (
                &format!("resources: [{{resources: [Secrets], {identity}}}]"),
                "resource name should not contain capital letters",
            ),
            (
                &format!("resources: [{{resources: [secrets, secrets], {identity}}}]"),
                "the same resource cannot be specified multiple times",
            ),
            (
                &format!("resources: [{{resources: [secrets, '*.'], {identity}}}]"),
                "using overlapping resources",
            ),
            (
                &format!("resources: [{{resources: [secrets, '*.*'], {identity}}}]"),
                "using overlapping resources",
            ),
            (
                &format!("resources: [{{resources: ['jobs.*'], {identity}}}]"),
                "encrypting the same resource across groups",
            ),
            (
                &format!("resources: [{{resources: [events.events.k8s.io], {identity}}}]"),
                "Use 'events' instead",
            ),
            (
                &format!("resources: [{{resources: ['*.'], {identity}}}, {{resources: [secrets], {identity}}}]"),
                "resource \"secrets\" is masked by earlier rule \"*.\"",
            ),
            (
                &format!("resources: [{{resources: ['*.*'], {identity}}}, {{resources: [jobs.batch], {identity}}}]"),
                "resource \"jobs.batch\" is masked by earlier rule \"*.*\"",
            ),
            (
                "resources: [{resources: [secrets], providers: [{}]}]",
                "provider does not contain any of the expected providers",
            ),
            (
                "resources: [{resources: [secrets], providers: [{identity: {}, aesgcm: {}}]}]",
                "more than one provider specified",
            ),
            (
                "resources: [{resources: [secrets], providers: [{aesgcm: {keys: []}}]}]",
                "at least one keys is required",
            ),
            (
                &format!(
                    "resources: [{{resources: [secrets], providers: [{{aesgcm: {{keys: [{{name: a, secret: {KEY}}}]}}}}]}}]"
                ),
                "Invalid value: \"REDACTED\": secret is not of the expected length, got 28, expected one of [16 24 32]",
            ),
            (
                "resources: [{resources: [secrets], providers: [{aescbc: {keys: [{secret: '???'}]}}]}]",
                "secrets must be base64 encoded",
            ),
            (
                "resources: [{resources: [secrets], providers: [{kms: {apiVersion: v2, name: 'a:b', endpoint: 'tcp://x', timeout: 0s, cachesize: 3}}]}]",
                "must not contain ':'",
            ),
            (
                "resources: [{resources: [secrets], providers: [{kms: {name: a, endpoint: 'unix:///x'}}]}]",
                "Use KMSv2 instead",
            ),
            (
                "resources: [{resources: [secrets], provider: []}]",
                "unknown field `provider`",
            ),
            (
                &format!("resources: [{{resources: [secrets], providers: [{{aesgcm: {{keys: {KEY}}}}}]}}]"),
                "expected a sequence",
            ),
        ] {
            let error = refused(rest);
            assert!(error.contains(why), "{rest}\n{error}");
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
        assert!(
            Configuration::parse(b"kind: X\napiVersion: v9\n")
                .unwrap_err()
                .contains("no kind \"X\"")
        );
    }

    #[test]
    fn what_upstreams_examples_have_is_understood() {
        let text = format!(
            "{HEAD}resources:
- resources: [secrets, configmaps, pandas.awesome.bears.example]
  providers:
  - identity: {{}}
  - aesgcm: {{keys: [{{name: key1, secret: c2VjcmV0IGlzIHNlY3VyZQ==}}, {{name: key2, secret: dGhpcyBpcyBwYXNzd29yZA==}}]}}
  - secretbox: {{keys: [{{name: key1, secret: YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=}}]}}
- resources: ['*.apps']
  providers: [{{kms: {{apiVersion: v2, name: mine, endpoint: 'unix:///run/kms.sock', timeout: 5s}}}}]
- resources: ['*.*']
  providers: [{{aescbc: {{keys: [{{name: key3, secret: YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=}}]}}}}]
"
        );
        let configuration = Configuration::parse(text.as_bytes()).unwrap();
        assert_eq!(configuration.resources.len(), 3);
        let debug = format!("{configuration:?}");
        assert!(debug.contains("key1") && !debug.contains("secret is"), "{debug}");
        assert_eq!(
            configuration.resources[0].resources[2],
            GroupResource::new("awesome.bears.example", "pandas")
        );
    }
}
