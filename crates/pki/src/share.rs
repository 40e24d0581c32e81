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

use crate::keys::Keys;
use crate::{PkiError, files};

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
    /// What it was before the authorities were replaced: a server that slept meanwhile is still one of this cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<String>,
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
    Ok(
        match (
            files::read(&dir.join("ca.crt"))?,
            files::read(&dir.join("front-proxy-ca.crt"))?,
        ) {
            (Some(ca), Some(front)) => Some(digest(&ca, &front)),
            _ => None,
        },
    )
}

fn digest(ca: &str, front_proxy: &str) -> String {
    hex::encode(Sha256::new().chain_update(ca).chain_update(front_proxy).finalize())
}

/// Whether a record is of the cluster whose authorities have, or once had, this fingerprint.
pub fn is_of(record: &[u8], fingerprint: &str) -> Result<bool, ShareError> {
    let record = parse(record)?;
    Ok(record.fingerprint == fingerprint || record.former.iter().any(|former| former == fingerprint))
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

/// Keys as a record for the store. `before` is the record it replaces, if there is one.
pub fn seal(keys: &Keys, token: &str, before: Option<&[u8]>) -> Result<Vec<u8>, ShareError> {
    let (Some(ca), Some(front)) = (keys.get("ca.crt"), keys.get("front-proxy-ca.crt")) else {
        return Err(ShareError::Record("there are no keys to seal".into()));
    };
    let fingerprint = digest(ca, front);
    let mut former = Vec::new();
    if let Some(before) = before.map(parse).transpose()? {
        former = before.former;
        if before.fingerprint != fingerprint {
            former.push(before.fingerprint);
        }
    }
    let mut bytes = serde_json::to_vec(keys.content()).map_err(|_| ShareError::Crypto)?;
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
        former,
        salt: hex::encode(salt),
        nonce: hex::encode(nonce),
        sealed: hex::encode(bytes),
    };
    serde_json::to_vec(&record).map_err(|_| ShareError::Crypto)
}

/// The keys of a record.
pub fn unseal(record: &[u8], token: &str) -> Result<Keys, ShareError> {
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
    Ok(Keys::of(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Rotating, Step};
    use crate::{Params, Pki};

    #[test]
    fn keys_pass_from_server_to_server_by_the_token_alone() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Pki::load_or_create(one.path(), Params::default()).unwrap();
        let token = new_token().unwrap();
        let keys = Keys::read(one.path()).unwrap();
        let record = seal(&keys, &token, None).unwrap();
        assert!(!String::from_utf8_lossy(&record).contains("PRIVATE"));
        let own = fingerprint(one.path()).unwrap().unwrap();
        assert_eq!(own, sealed_fingerprint(&record).unwrap());
        assert!(matches!(unseal(&record, &new_token().unwrap()), Err(ShareError::Token)));
        assert!(matches!(unseal(&record, "short"), Err(ShareError::Weak)));
        assert!(matches!(unseal(b"{}", &token), Err(ShareError::Record(_))));
        assert_eq!(fingerprint(two.path()).unwrap(), None);
        unseal(&record, &token).unwrap().write(two.path()).unwrap();
        let second = Pki::load_or_create(two.path(), Params::default()).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.tokens().key_id(), second.tokens().key_id());
        assert_eq!(first.front_proxy_ca_pem(), second.front_proxy_ca_pem());
        // After the authorities were replaced it still is the cluster it was.
        let trusted = keys.step(Rotating::Authorities, Step::Trust).unwrap();
        let issuing = trusted.step(Rotating::Authorities, Step::Issue).unwrap();
        let record = seal(&issuing, &token, Some(&seal(&trusted, &token, Some(&record)).unwrap())).unwrap();
        assert_ne!(own, sealed_fingerprint(&record).unwrap());
        assert!(is_of(&record, &own).unwrap() && is_of(&record, &sealed_fingerprint(&record).unwrap()).unwrap());
        assert!(!is_of(&record, "another").unwrap());
        assert_eq!(unseal(&record, &token).unwrap(), issuing);
    }
}
