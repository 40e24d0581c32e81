//! A cluster's keys, sealed so that they can lie in its store: how further servers get them, and how a backup has them.
//!
//! What is sealed are the authorities and the key of service accounts; leaf certificates are each server's own. The
//! seal is AES-256-GCM under a key derived (HKDF-SHA256, a fresh salt each time) from the cluster's token, a long
//! random text that people hand from server to server and that is never stored beside what it opens.

use std::collections::BTreeMap;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{PkiError, files};

const FILES: [&str; 5] = ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key"];
const FORMAT: u32 = 1;
/// Shorter than what is made here would be guessed.
const SHORTEST: usize = 32;

/// Why keys could not be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(
        "the cluster's token must have at least {SHORTEST} characters; take the one of another server, or `openssl rand -hex 32`"
    )]
    Weak,
    #[error("the cluster's sealed keys cannot be opened: the token is another cluster's")]
    Token,
    #[error("the cluster's sealed keys cannot be read: {0}")]
    Record(String),
    #[error("sealing the cluster's keys failed")]
    Crypto,
}

/// What lies in the store.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    /// Of the authorities' certificates: tells clusters apart without opening anything.
    fingerprint: String,
    salt: String,
    nonce: String,
    sealed: String,
}

/// A new token.
pub fn new_token() -> Result<String, ShareError> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| ShareError::Crypto)?;
    Ok(hex::encode(bytes))
}

/// Whose authorities lie in `dir`; `None` when there are none.
pub fn fingerprint(dir: &Path) -> Result<Option<String>, PkiError> {
    let (Some(ca), Some(front)) = (
        files::read(&dir.join("ca.crt"))?,
        files::read(&dir.join("front-proxy-ca.crt"))?,
    ) else {
        return Ok(None);
    };
    Ok(Some(hex::encode(
        Sha256::new().chain_update(ca).chain_update(front).finalize(),
    )))
}

/// Whose authorities a record holds.
pub fn sealed_fingerprint(record: &[u8]) -> Result<String, ShareError> {
    parse(record).map(|record| record.fingerprint)
}

fn parse(record: &[u8]) -> Result<Record, ShareError> {
    let record: Record = serde_json::from_slice(record).map_err(|error| ShareError::Record(error.to_string()))?;
    match record.format {
        FORMAT => Ok(record),
        other => Err(ShareError::Record(format!(
            "format {other} is not known to this version"
        ))),
    }
}

fn key(token: &str, salt: &[u8]) -> Result<LessSafeKey, ShareError> {
    if token.len() < SHORTEST {
        return Err(ShareError::Weak);
    }
    let secret = Salt::new(HKDF_SHA256, salt).extract(token.as_bytes());
    let derived = secret
        .expand(&[b"sampan cluster keys"], &AES_256_GCM)
        .map_err(|_| ShareError::Crypto)?;
    Ok(LessSafeKey::new(UnboundKey::from(derived)))
}

/// The keys in `dir` as a record for the store.
pub fn seal(dir: &Path, token: &str) -> Result<Vec<u8>, ShareError> {
    let fingerprint = fingerprint(dir)?.ok_or_else(|| ShareError::Record("there are no keys to seal".into()))?;
    let mut content = BTreeMap::new();
    for name in FILES {
        if let Some(text) = files::read(&dir.join(name))? {
            content.insert(name, text);
        }
    }
    let mut bytes = serde_json::to_vec(&content).map_err(|_| ShareError::Crypto)?;
    let (mut salt, mut nonce) = ([0; 32], [0; NONCE_LEN]);
    aws_lc_rs::rand::fill(&mut salt)
        .and_then(|()| aws_lc_rs::rand::fill(&mut nonce))
        .map_err(|_| ShareError::Crypto)?;
    key(token, &salt)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(fingerprint.as_bytes()),
            &mut bytes,
        )
        .map_err(|_| ShareError::Crypto)?;
    let record = Record {
        format: FORMAT,
        fingerprint,
        salt: hex::encode(salt),
        nonce: hex::encode(nonce),
        sealed: hex::encode(bytes),
    };
    serde_json::to_vec(&record).map_err(|_| ShareError::Crypto)
}

/// Writes the keys of a record to `dir`.
pub fn unseal(record: &[u8], token: &str, dir: &Path) -> Result<(), ShareError> {
    let record = parse(record)?;
    let bytes = |text: &str| hex::decode(text).map_err(|error| ShareError::Record(error.to_string()));
    let nonce: [u8; NONCE_LEN] = bytes(&record.nonce)?
        .try_into()
        .map_err(|_| ShareError::Record("its nonce has a wrong length".into()))?;
    let mut sealed = bytes(&record.sealed)?;
    let content = key(token, &bytes(&record.salt)?)?
        .open_in_place(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(record.fingerprint.as_bytes()),
            &mut sealed,
        )
        .map_err(|_| ShareError::Token)?;
    let content: BTreeMap<String, String> =
        serde_json::from_slice(content).map_err(|error| ShareError::Record(error.to_string()))?;
    files::private_dir(dir)?;
    // Certificates last: with them the identity counts as there.
    for name in FILES.iter().rev() {
        if let Some(text) = content.get(*name) {
            files::write_private(&dir.join(name), text.as_bytes())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Pki};

    #[test]
    fn keys_pass_from_server_to_server_by_the_token_alone() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Pki::load_or_create(one.path(), Params::default()).unwrap();
        let token = new_token().unwrap();
        let record = seal(one.path(), &token).unwrap();
        assert!(!String::from_utf8_lossy(&record).contains("PRIVATE"));
        assert_eq!(
            fingerprint(one.path()).unwrap(),
            Some(sealed_fingerprint(&record).unwrap())
        );
        assert!(matches!(
            unseal(&record, &new_token().unwrap(), two.path()),
            Err(ShareError::Token)
        ));
        assert!(matches!(unseal(&record, "short", two.path()), Err(ShareError::Weak)));
        assert!(matches!(unseal(b"{}", &token, two.path()), Err(ShareError::Record(_))));
        assert_eq!(fingerprint(two.path()).unwrap(), None, "a failure leaves nothing");
        unseal(&record, &token, two.path()).unwrap();
        let second = Pki::load_or_create(two.path(), Params::default()).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.tokens().key_id(), second.tokens().key_id());
        assert_eq!(first.front_proxy_ca_pem(), second.front_proxy_ca_pem());
    }
}
