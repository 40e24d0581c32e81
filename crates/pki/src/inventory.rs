//! What certificates a data directory holds, for people: who, whose, until when.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::cert::{Facts, parse_chain};
use crate::{PkiError, files};

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// The file without its ending; with what else it is, where a file holds several.
    pub name: String,
    pub file: PathBuf,
    /// As `CN=NAME,O=GROUP`.
    pub subject: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<std::net::IpAddr>,
    /// Its common name.
    pub issuer: String,
    pub authority: bool,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    /// When a server that uses it renews it; nobody renews authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewal: Option<i64>,
}

/// Every certificate in the files `*.crt` and `*.pem` of `pki` and in `kubeconfigs`, by name. A file that cannot be
/// read is an error: nothing is to be overlooked.
pub fn list(pki: &Path, kubeconfigs: &[PathBuf]) -> Result<Vec<Found>, PkiError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(pki) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    for entry in entries.map_err(files::failed("read", pki))? {
        let path = entry.path();
        let is_ours = path
            .extension()
            .is_some_and(|ending| ending == "crt" || ending == "pem");
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if is_ours
            && !hidden
            && let Some(text) = files::read(&path)?
        {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            add(&mut found, &name, &path, &text)?;
        }
    }
    for path in kubeconfigs {
        let Some(text) = files::read(path)? else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for line in text.lines() {
            let line = line.trim();
            for (key, what) in [
                ("client-certificate-data: ", ""),
                ("certificate-authority-data: ", " (authority)"),
            ] {
                let Some(data) = line.strip_prefix(key) else { continue };
                let decoded = STANDARD.decode(data.trim_matches('"')).ok();
                let pem = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
                add(&mut found, &format!("{name}{what}"), path, &pem.unwrap_or_default())?;
            }
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn add(found: &mut Vec<Found>, name: &str, path: &Path, text: &str) -> Result<(), PkiError> {
    let corrupt = |what: String| PkiError::Corrupt {
        path: path.to_owned(),
        what,
        remedy: "",
    };
    let chain = parse_chain(text).map_err(corrupt)?;
    for (index, der) in chain.iter().enumerate() {
        let facts = Facts::of(der).map_err(corrupt)?;
        let mut subject = vec![format!("CN={}", facts.subject.common_name)];
        subject.extend(facts.subject.organizations.iter().map(|group| format!("O={group}")));
        found.push(Found {
            name: if index == 0 {
                name.to_owned()
            } else {
                format!("{name} #{}", index + 1)
            },
            file: path.to_owned(),
            subject: subject.join(","),
            dns_names: facts.dns_names.iter().cloned().collect(),
            addresses: facts.addresses.iter().copied().collect(),
            issuer: facts.issuer.clone(),
            authority: facts.is_authority,
            not_before: facts.not_before,
            not_after: facts.not_after,
            renewal: (!facts.is_authority).then(|| facts.renewal()),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kubeconfig, Params, Pki, UserCredential};

    #[test]
    fn nothing_is_overlooked() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("pki");
        assert_eq!(list(&at, &[]).unwrap(), []);
        let pki = Pki::load_or_create(&at, Params::default()).unwrap();
        let config = dir.path().join("admin.kubeconfig");
        Kubeconfig {
            cluster: "c",
            server: "https://127.0.0.1:6443",
            ca_pem: &pki.ca_pem(),
            user: "admin",
            credential: UserCredential::Certificate(pki.admin_client().unwrap()),
        }
        .write(&config)
        .unwrap();
        let found = list(&at, &[config.clone(), dir.path().join("none")]).unwrap();
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "admin",
                "admin.kubeconfig",
                "admin.kubeconfig (authority)",
                "apiserver",
                "apiserver-kubelet-client",
                "ca",
                "front-proxy-ca",
                "front-proxy-client"
            ]
        );
        let admin = &found[1];
        assert_eq!(admin.subject, "CN=kubernetes-admin,O=system:masters");
        assert_eq!(admin.issuer, found[5].subject.trim_start_matches("CN="));
        assert!(admin.renewal.unwrap() < admin.not_after && found[5].renewal.is_none());
        assert!(found[3].dns_names.contains(&"kubernetes".to_owned()) && !found[3].addresses.is_empty());
        fs::write(at.join("odd.crt"), "rubbish").unwrap();
        assert!(list(&at, &[]).unwrap_err().to_string().contains("odd.crt"));
    }
}
