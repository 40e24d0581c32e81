//! Providers in a row: the first writes, whoever's prefix a value has reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sampan_tasks::Tasks;
use tokio::sync::watch;

use crate::cipher::Cipher;
use crate::config::{Configuration, GroupResource, Key, Provider};
use crate::kms::Kms;
use crate::metrics::{Metrics, Way};

/// Who counts, and what it is about.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    pub metrics: &'a Metrics,
    pub resource: &'a GroupResource,
}

impl Counted<'_> {
    fn note(self, way: Way, prefix: &Arc<str>, since: Instant, error: Option<&str>) {
        self.metrics.transformed(self.resource, way, prefix, since, error);
    }
}

/// What every encrypted value begins with.
pub const ENCRYPTED: &[u8] = b"k8s:enc:";
const AES_GCM: &str = "k8s:enc:aesgcm:v1:";
const AES_CBC: &str = "k8s:enc:aescbc:v1:";
const SECRETBOX: &str = "k8s:enc:secretbox:v1:";
const KMS: &str = "k8s:enc:kms:v2:";

/// What metrics call a value that no provider takes, and one that is not encrypted.
const UNKNOWN: &str = "unknown";
const IDENTITY: &str = "identity";

const NO_PREFIX: &str = "no matching prefix found";
const TRIED_TO_READ: &str = "identity transformer tried to read encrypted data";

/// A value that was read.
pub struct Read {
    pub value: Bytes,
    /// Whether writing it anew would store it differently.
    pub stale: bool,
}

enum Active {
    Identity,
    Keys {
        prefix: Arc<str>,
        what: &'static str,
        /// With the colon behind its name.
        keys: Vec<(String, Cipher)>,
    },
    Kms {
        prefix: Arc<str>,
        kms: Arc<Kms>,
    },
}

/// The providers of a resource.
#[derive(Clone, Default)]
pub struct Row(Vec<Arc<Active>>);

/// What a configuration says, ready to be used.
#[derive(Default)]
pub struct Set {
    rows: HashMap<GroupResource, Row>,
    kms: Vec<Arc<Kms>>,
}

impl Set {
    pub async fn build(
        configuration: Configuration,
        news: &Arc<watch::Sender<u64>>,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Set, String> {
        let mut set = Set::default();
        for rule in configuration.resources {
            let mut providers = Vec::new();
            for provider in rule.providers {
                let active = match provider {
                    Provider::Identity => Active::Identity,
                    Provider::AesGcm(keys) => of_keys(AES_GCM, "AES", keys, Cipher::gcm)?,
                    Provider::AesCbc(keys) => of_keys(AES_CBC, "AES", keys, Cipher::cbc)?,
                    Provider::Secretbox(keys) => of_keys(SECRETBOX, "Secretbox", keys, |key| {
                        let key = key
                            .try_into()
                            .map_err(|_| crate::cipher::CipherError::KeySize(key.len()))?;
                        Ok(Cipher::secretbox(key))
                    })?,
                    Provider::Kms(provider) => {
                        let kms = Kms::start(&provider, news.clone(), metrics.clone(), tasks).await;
                        set.kms.push(kms.clone());
                        Active::Kms {
                            prefix: format!("{KMS}{}:", provider.name).into(),
                            kms,
                        }
                    }
                };
                providers.push(Arc::new(active));
            }
            for resource in rule.resources {
                set.rows
                    .entry(resource)
                    .or_default()
                    .0
                    .extend(providers.iter().cloned());
            }
        }
        Ok(set)
    }

    /// The providers of a resource, by the narrowest of what names it.
    pub fn row(&self, resource: &GroupResource) -> Option<&Row> {
        self.rows
            .get(resource)
            .or_else(|| self.rows.get(&GroupResource::new(&resource.group, "*")))
            .or_else(|| self.rows.get(&GroupResource::new("*", "*")))
    }

    /// Whether all plug-ins work; what is wrong if not.
    pub fn health(&self) -> Result<(), String> {
        self.kms.iter().try_for_each(|kms| {
            kms.health()
                .map_err(|why| format!("kms-providers: {}: {why}", kms.name()))
        })
    }

    /// Whether each of them works.
    pub fn plugins(&self) -> Vec<Result<(), String>> {
        self.kms.iter().map(|kms| kms.health()).collect()
    }
}

fn of_keys(
    prefix: &'static str,
    what: &'static str,
    keys: Vec<Key>,
    make: impl Fn(&[u8]) -> Result<Cipher, crate::cipher::CipherError>,
) -> Result<Active, String> {
    let keys = keys
        .into_iter()
        .map(|key| match make(&key.secret) {
            Ok(cipher) => Ok((format!("{}:", key.name), cipher)),
            Err(error) => Err(format!(
                "error while creating cipher for named key {}: {error}",
                key.name
            )),
        })
        .collect::<Result<_, _>>()?;
    Ok(Active::Keys {
        prefix: prefix.into(),
        what,
        keys,
    })
}

/// Errors as upstream joins them.
fn joined(mut errors: Vec<String>) -> String {
    match errors.len() {
        1 => errors.remove(0),
        _ => format!("[{}]", errors.join(", ")),
    }
}

/// A value of a resource without providers.
pub fn plain(data: Bytes) -> Result<Read, String> {
    if data.starts_with(ENCRYPTED) {
        return Err(TRIED_TO_READ.into());
    }
    Ok(Read {
        value: data,
        stale: false,
    })
}

impl Row {
    /// What is written for `value`.
    pub fn write(&self, value: &Bytes, key: &[u8], counted: Counted<'_>) -> Result<Bytes, String> {
        let started = Instant::now();
        let written = self.sealed(value, key);
        let prefix = match self.0.first().map(|active| &**active) {
            Some(Active::Keys { prefix, .. } | Active::Kms { prefix, .. }) => prefix.clone(),
            _ => "".into(),
        };
        let error = written.as_ref().err().map(String::as_str);
        counted.note(Way::ToStorage, &prefix, started, error);
        written
    }

    fn sealed(&self, value: &Bytes, key: &[u8]) -> Result<Bytes, String> {
        let mut out = Vec::new();
        match self.0.first().map(|active| &**active) {
            None | Some(Active::Identity) => return Ok(value.clone()),
            Some(Active::Keys { prefix, keys, .. }) => {
                let (name, cipher) = keys.first().ok_or("the provider has no keys")?;
                out.reserve(prefix.len() + name.len() + value.len() + 64);
                out.extend_from_slice(prefix.as_bytes());
                out.extend_from_slice(name.as_bytes());
                cipher
                    .encrypt(value, key, &mut out)
                    .map_err(|error| error.to_string())?;
            }
            Some(Active::Kms { prefix, kms }) => {
                out.extend_from_slice(prefix.as_bytes());
                kms.encrypt(value, key, &mut out)?;
            }
        }
        Ok(out.into())
    }

    /// The value of what is stored.
    pub async fn read(&self, data: Bytes, key: &[u8], counted: Counted<'_>) -> Result<Read, String> {
        let started = Instant::now();
        let note = |prefix: &Arc<str>, error: Option<&str>| counted.note(Way::FromStorage, prefix, started, error);
        let mut errors = Vec::new();
        for (index, active) in self.0.iter().enumerate() {
            let (prefix, read) = match &**active {
                // Tried in vain it leaves the value to the others.
                Active::Identity if data.starts_with(ENCRYPTED) => continue,
                Active::Identity => {
                    note(&IDENTITY.into(), None);
                    return Ok(Read {
                        value: data,
                        stale: index != 0,
                    });
                }
                Active::Keys { prefix, what, keys } => match data.strip_prefix(prefix.as_bytes()) {
                    Some(rest) => (prefix, by_name(keys, what, rest, key)),
                    None => continue,
                },
                Active::Kms { prefix, kms } => match data.strip_prefix(prefix.as_bytes()) {
                    Some(rest) => (prefix, kms.decrypt(rest, key).await),
                    None => continue,
                },
            };
            note(prefix, read.as_ref().err().map(String::as_str));
            match read {
                Ok((value, stale)) => {
                    return Ok(Read {
                        value: value.into(),
                        stale: stale || index != 0,
                    });
                }
                // Providers may share a prefix while keys are changed: another may know.
                Err(why) => errors.push(why),
            }
        }
        let why = if errors.is_empty() {
            NO_PREFIX.into()
        } else {
            joined(errors)
        };
        note(&UNKNOWN.into(), Some(&why));
        Err(why)
    }
}

fn by_name(keys: &[(String, Cipher)], what: &str, data: &[u8], key: &[u8]) -> Result<(Vec<u8>, bool), String> {
    let mut errors = Vec::new();
    for (index, (name, cipher)) in keys.iter().enumerate() {
        let Some(rest) = data.strip_prefix(name.as_bytes()) else {
            continue;
        };
        match cipher.decrypt(rest, key) {
            Ok(value) => return Ok((value, index != 0)),
            Err(error) => errors.push(error.to_string()),
        }
    }
    Err(if errors.is_empty() {
        format!("no matching key was found for the provided {what} transformer")
    } else {
        joined(errors)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To be run optimised: `cargo test --release -p sampan-encryption --lib what_a_value_costs -- --ignored --nocapture`
    #[tokio::test]
    #[ignore = "a measurement"]
    async fn what_a_value_costs() {
        const ROUNDS: u32 = 20_000;
        let (metrics, resource) = (Metrics::default(), GroupResource::new("", "secrets"));
        let counted = Counted {
            metrics: &metrics,
            resource: &resource,
        };
        let value = Bytes::from(vec![b'v'; 1024]);
        let seed = crate::cipher::new_seed().unwrap();
        let ciphers = [
            ("identity", None),
            ("aesgcm", Some(Cipher::gcm(&[7; 32]).unwrap())),
            ("aescbc", Some(Cipher::cbc(&[7; 32]).unwrap())),
            ("secretbox", Some(Cipher::secretbox(&[7; 32]))),
            ("the cipher of kms", Some(Cipher::seeded(&seed).unwrap())),
        ];
        for (name, cipher) in ciphers {
            let active = match cipher {
                None => Active::Identity,
                Some(cipher) => Active::Keys {
                    prefix: "k8s:enc:x:v1:".into(),
                    what: "AES",
                    keys: vec![("one:".into(), cipher)],
                },
            };
            let row = Row(vec![Arc::new(active)]);
            let key = b"/registry/secrets/default/a";
            let started = Instant::now();
            let mut stored = Bytes::new();
            for _ in 0..ROUNDS {
                stored = row.write(&value, key, counted).unwrap();
            }
            let writing = started.elapsed() / ROUNDS;
            let started = Instant::now();
            for _ in 0..ROUNDS {
                assert_eq!(row.read(stored.clone(), key, counted).await.unwrap().value, value);
            }
            println!(
                "1 KiB, {name}: {writing:?} to encrypt, {:?} to decrypt",
                started.elapsed() / ROUNDS
            );
        }
    }
}
