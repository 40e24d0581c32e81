//! `sampan token`: the tokens by which machines join a cluster.
//!
//! A token is a Secret of upstream's bootstrap kind (`kube-system/bootstrap-token-ID`), so kubeadm's tools see it too. What is
//! printed has a third part, the fingerprint of the cluster's authority: with it a machine that knows nothing else can tell
//! the cluster from an impostor.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Endpoints, Secret};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use rand::Rng;
use sampan_client::or_absent;

use crate::cli;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const NAMESPACE: &str = "kube-system";
const KIND: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
/// Machines that join with a token are in this group; roles are bound to it when a cluster begins.
const GROUP: &str = "system:bootstrappers:sampan:nodes";
const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// `ID.SECRET.FINGERPRINT`
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Six characters; not secret.
    pub id: String,
    /// Sixteen.
    secret: String,
    /// SHA-256 of the public key of the cluster's authority.
    pub fingerprint: [u8; 32],
}

impl JoinToken {
    /// What the API server is shown.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    fn to_text(&self) -> String {
        let fingerprint: String = self.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}.{fingerprint}", self.bearer())
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad = "a join token looks like abcdef.0123456789abcdef.<64 hexadecimal digits>; `sampan token create` on the server prints one";
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, hex] = parts[..] else {
            return Err(bad.into());
        };
        let is_word = |text: &str, length| text.len() == length && text.bytes().all(|byte| ALPHABET.contains(&byte));
        if !is_word(id, 6) || !is_word(secret, 16) || hex.len() != 64 || !hex.is_ascii() {
            return Err(bad.into());
        }
        let mut fingerprint = [0; 32];
        for (index, byte) in fingerprint.iter_mut().enumerate() {
            let digits = hex.get(index * 2..index * 2 + 2).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad)?;
        }
        Ok(JoinToken {
            id: id.into(),
            secret: secret.into(),
            fingerprint,
        })
    }
}

/// `30m`, `24h`, `7d`; `0`: never ends.
pub fn duration(text: &str) -> std::result::Result<Option<SignedDuration>, String> {
    if text == "0" {
        return Ok(None);
    }
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    let found = units
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let (number, seconds) = found.unwrap_or_default();
    let number: i64 = number.parse().unwrap_or(0);
    match number.checked_mul(seconds) {
        Some(seconds) if seconds > 0 => Ok(Some(SignedDuration::from_secs(seconds))),
        _ => Err(format!(
            "{text:?} is not a time such as 30m, 24h or 7d (0: it never ends)"
        )),
    }
}

pub async fn run(command: cli::Token) -> Result<()> {
    let client = sampan_client::from_kubeconfig(&command.kubeconfig).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    match command.command {
        cli::TokenCommand::Create { ttl, description } => {
            let token = JoinToken {
                id: word(6),
                secret: word(16),
                fingerprint: fingerprint(&command.kubeconfig).await?,
            };
            let expires = ttl.map(|ttl| Timestamp::now() + ttl);
            secrets
                .create(&PostParams::default(), &secret(&token, expires, &description))
                .await?;
            let server = address(client).await?;
            println!("sampan agent --server https://{server} --token {}", token.to_text());
            match expires {
                Some(at) => eprintln!(
                    "Run this on the machine that is to join. The token ends at {}.",
                    seconds(at)
                ),
                None => eprintln!("Run this on the machine that is to join. The token does not end by itself."),
            }
        }
        cli::TokenCommand::List => {
            let params = ListParams::default().fields(&format!("type={KIND}"));
            println!("{:<8} {:<22} {:<12} DESCRIPTION", "TOKEN", "EXPIRES", "USAGES");
            for secret in secrets.list(&params).await? {
                let text = |key: &str| -> String {
                    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
                    bytes.map_or_else(String::new, |bytes| String::from_utf8_lossy(&bytes.0).into_owned())
                };
                let (id, expires) = (text("token-id"), text("expiration"));
                let expires = if expires.is_empty() { "<never>".into() } else { expires };
                let usages: Vec<&str> = ["authentication", "signing"]
                    .into_iter()
                    .filter(|usage| text(&format!("usage-bootstrap-{usage}")) == "true")
                    .collect();
                println!("{id:<8} {expires:<22} {:<12} {}", usages.join(","), text("description"));
            }
        }
        cli::TokenCommand::Delete { ids } => {
            for id in ids {
                let id = id.split('.').next().unwrap_or_default();
                match or_absent(secrets.delete(&format!("{PREFIX}{id}"), &DeleteParams::default()).await)? {
                    Some(_) => println!("token {id} deleted"),
                    None => return Err(format!("there is no token {id:?}; `sampan token list` shows them").into()),
                }
            }
        }
    }
    Ok(())
}

fn word(length: usize) -> String {
    let mut random = rand::rng();
    (0..length)
        .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
        .collect()
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn secret(token: &JoinToken, expires: Option<Timestamp>, description: &str) -> Secret {
    let mut data = BTreeMap::from([
        ("token-id".to_owned(), token.id.clone()),
        ("token-secret".to_owned(), token.secret.clone()),
        ("usage-bootstrap-authentication".to_owned(), "true".to_owned()),
        ("auth-extra-groups".to_owned(), GROUP.to_owned()),
    ]);
    if !description.is_empty() {
        data.insert("description".to_owned(), description.to_owned());
    }
    if let Some(at) = expires {
        data.insert("expiration".to_owned(), seconds(at));
    }
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("{PREFIX}{}", token.id)),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        type_: Some(KIND.into()),
        string_data: Some(data),
        ..Secret::default()
    }
}

/// Of the authority that the kubeconfig trusts: the cluster's.
async fn fingerprint(kubeconfig: &Path) -> Result<[u8; 32]> {
    let authority = sampan_client::authority_of_kubeconfig(kubeconfig).await?;
    let authority =
        authority.ok_or("the kubeconfig names no certificate authority; use the server's admin.kubeconfig")?;
    Ok(sampan_pki::tls::fingerprint_of_pem(&authority)?)
}

/// Where other machines reach the API.
async fn address(client: kube::Client) -> Result<String> {
    let endpoints: Api<Endpoints> = Api::namespaced(client, "default");
    let found = endpoints.get("kubernetes").await?;
    let subset = found.subsets.unwrap_or_default().into_iter().next().unwrap_or_default();
    let address = subset.addresses.unwrap_or_default().into_iter().next();
    let port = subset.ports.unwrap_or_default().first().map_or(6443, |port| port.port);
    match address {
        Some(address) if address.ip.contains(':') => Ok(format!("[{}]:{port}", address.ip)),
        Some(address) => Ok(format!("{}:{port}", address.ip)),
        None => Err("the cluster does not say where its API is (Endpoints default/kubernetes is empty)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_written() {
        let token = JoinToken {
            id: word(6),
            secret: word(16),
            fingerprint: [0xa7; 32],
        };
        assert_eq!(token.to_text().parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.secret));
        let fine = token.to_text();
        for bad in [
            "",
            "abcdef.0123456789abcdef",
            &fine[1..],
            &fine.to_uppercase(),
            &format!("{fine}00"),
            "ä.b.c",
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        for (text, seconds) in [("30m", 1800), ("24h", 86_400), ("7d", 604_800), ("5s", 5)] {
            assert_eq!(duration(text).unwrap().unwrap().as_secs(), seconds);
        }
        assert_eq!(duration("0"), Ok(None));
        for bad in ["", "h", "1", "-1h", "1w", "99999999999999999d", "1ä"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
