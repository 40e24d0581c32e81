//! Certificates and keys as they lie in the directory, one pair of files each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cert::{Authority, BadPair, Facts, Identity, LEAF_LIFETIME, LeafSpec, new_key, parse_chain, unix_now};
use crate::keys::{CA, FRONT_PROXY_CA};
use crate::pki::FRONT_PROXY_CLIENT;
use crate::{PkiError, files};

/// Both halves of what `NAME.crt` and `NAME.key` hold.
struct Pair {
    certificate_path: PathBuf,
    key_path: PathBuf,
    certificate: Option<String>,
    key: Option<String>,
}

impl Pair {
    fn read(dir: &Path, name: &str) -> Result<Self, PkiError> {
        let certificate_path = dir.join(format!("{name}.crt"));
        let key_path = dir.join(format!("{name}.key"));
        Ok(Pair {
            certificate: files::read(&certificate_path)?,
            key: files::read(&key_path)?,
            certificate_path,
            key_path,
        })
    }

    fn bad(&self, bad: BadPair, remedy: &'static str) -> PkiError {
        let (path, what) = match bad {
            BadPair::Certificate(what) => (&self.certificate_path, what),
            BadPair::Key(what) => (&self.key_path, what),
            BadPair::Strangers => {
                return PkiError::Mismatch {
                    certificate: self.certificate_path.clone(),
                    key: self.key_path.clone(),
                };
            }
        };
        PkiError::Corrupt {
            path: path.clone(),
            what,
            remedy,
        }
    }
}

pub(crate) fn load_authority(dir: &Path, name: &str) -> Result<Authority, PkiError> {
    let pair = Pair::read(dir, name)?;
    let (certificate, key) = match (&pair.certificate, &pair.key) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        (Some(_), None) => {
            return Err(PkiError::KeyMissing {
                certificate: pair.certificate_path,
                key: pair.key_path,
            });
        }
        (None, key) => {
            // No certificate: a first start, or one that was interrupted after the key was written.
            let key = match key {
                Some(key) => {
                    rcgen::KeyPair::from_pem(key).map_err(|error| pair.bad(BadPair::Key(error.to_string()), ""))?
                }
                None => {
                    let key = new_key("the key of the certificate authority")?;
                    files::write_private(&pair.key_path, key.serialize_pem().as_bytes())?;
                    key
                }
            };
            let certificate = Authority::self_signed(name, &key)?;
            files::write_private(&pair.certificate_path, certificate.as_bytes())?;
            (certificate, key.serialize_pem())
        }
    };
    let authority = Authority::from_pem(certificate, &key).map_err(|bad| pair.bad(bad, ""))?;
    if !authority.facts.valid_at(unix_now()) {
        return Err(PkiError::AuthorityNotValid {
            path: pair.certificate_path,
        });
    }
    Ok(authority)
}

/// The leaf kept as `name`; made where there is none, where it is stale, or to be `renewed`.
pub(crate) fn load_leaf(
    dir: &Path,
    name: &str,
    spec: &LeafSpec,
    authority: &Authority,
    lifetime: Duration,
    now: i64,
    renewed: bool,
) -> Result<Identity, PkiError> {
    const REMEDY: &str = ", or delete it and its other half: a new one will be made";
    let pair = Pair::read(dir, name)?;
    if let (Some(certificate), Some(key), false) = (&pair.certificate, &pair.key, renewed) {
        match Identity::from_pem(certificate.clone(), key.clone()) {
            Ok(identity) => {
                let facts = identity
                    .facts()
                    .map_err(|what| pair.bad(BadPair::Certificate(what), REMEDY))?;
                match facts.stale(spec, &authority.facts, now) {
                    None => return Ok(identity),
                    Some(why) => tracing::info!(
                        certificate = %pair.certificate_path.display(), why, "renewing a certificate"
                    ),
                }
            }
            // A renewal was interrupted between its two files.
            Err(BadPair::Strangers) => {}
            Err(bad) => return Err(pair.bad(bad, REMEDY)),
        }
    }
    let identity = authority.issue(spec, lifetime)?;
    files::write_private(&pair.key_path, identity.key_pem().as_bytes())?;
    files::write_private(&pair.certificate_path, identity.certificate_pem().as_bytes())?;
    Ok(identity)
}

/// The key that signs service-account tokens, and those by which tokens are believed besides; as PEM.
pub(crate) fn account_keys(dir: &Path) -> Result<(String, Vec<String>), PkiError> {
    let path = dir.join("sa.key");
    let signing = match files::read(&path)? {
        Some(pem) => pem,
        None => {
            let pem = new_key("the key of service accounts")?.serialize_pem();
            files::write_private(&path, pem.as_bytes())?;
            pem
        }
    };
    let mut others = Vec::new();
    for name in ["sa-next.key", "sa-old.pub"] {
        others.extend(files::read(&dir.join(name))?);
    }
    Ok((signing, others))
}

pub(crate) fn bad_account_key(dir: &Path, what: String) -> PkiError {
    PkiError::Corrupt {
        path: dir.join("sa.key"),
        what,
        remedy: ", or delete it: every service-account token then becomes invalid",
    }
}

/// Makes the leaves of a directory that no server uses anew, those `wanted` by name; their names. They keep their subjects and names.
pub fn renew(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>, PkiError> {
    let authorities = [load_authority(dir, CA)?, load_authority(dir, FRONT_PROXY_CA)?];
    let mut renewed = Vec::new();
    for found in crate::inventory::list(dir, &[])? {
        if found.authority || !wanted(&found.name) {
            continue;
        }
        let pair = Pair::read(dir, &found.name)?;
        let (Some(certificate), Some(_)) = (&pair.certificate, &pair.key) else {
            continue;
        };
        let chain = parse_chain(certificate).map_err(|what| pair.bad(BadPair::Certificate(what), ""))?;
        let facts = chain.first().map(|leaf| Facts::of(leaf)).transpose();
        let facts = facts.map_err(|what| pair.bad(BadPair::Certificate(what), ""))?;
        let Some(facts) = facts else { continue };
        // What is of neither is of the cluster's old one: the front proxy has one leaf only.
        let [cluster, front_proxy] = &authorities;
        let of = if found.name == FRONT_PROXY_CLIENT || facts.is_of(&front_proxy.facts) {
            front_proxy
        } else {
            cluster
        };
        load_leaf(dir, &found.name, &facts.spec(), of, LEAF_LIFETIME, unix_now(), true)?;
        renewed.push(found.name);
    }
    Ok(renewed)
}
