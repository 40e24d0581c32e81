//! The certificates of a joined machine: asked for, kept, renewed.
//!
//! Each lies with its key in one file of the data directory (`NAME.pem`, as the kubelet has it), so that the two never part.
//! A certificate is renewed when between 70 and 90 % of its life are over (which part is chosen by chance, so that nodes that
//! joined together do not renew together), and at once if it is not what is wanted any more or another authority issues.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest as Csr, CertificateSigningRequestSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::wait::await_condition;
use rand::Rng;
use rustls_pki_types::CertificateDer;
use sampan_pki::request::ask;
use sampan_pki::tls::{authorities_of_pem, authority_of_pem};
use sampan_pki::{Identity, LeafSpec, Present, write_private};
use sampan_tasks::{OnExit, Tasks};

use crate::machine::report::{self, Report};

/// How long to wait after a failure, at first and at most.
const RETRY: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(300);
/// The clock may be set while we wait: look at it this often.
const LOOK: Duration = Duration::from_secs(3600);

/// A certificate a machine needs.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The name of its file, without `.pem`.
    pub file: &'static str,
    pub signer: &'static str,
    pub usages: &'static [&'static str],
    pub spec: LeafSpec,
}

/// Where certificates are kept.
pub struct Keeper {
    dir: PathBuf,
    /// Of the cluster (PEM), the one that issues first.
    authorities: Present<String>,
    /// What is used now, by file; nothing as long as there is nothing.
    used: Mutex<BTreeMap<&'static str, Option<Identity>>>,
    report: Present<Report>,
}

impl Keeper {
    pub fn new(dir: PathBuf, authorities: Present<String>) -> Self {
        Keeper {
            dir,
            authorities,
            used: Mutex::default(),
            report: Present::new(Report::default()),
        }
    }

    /// What there is to say of the certificates that are kept.
    pub fn report(&self) -> Present<Report> {
        self.report.clone()
    }

    /// Whether it is of the authority that issues now.
    fn is_current(&self, identity: &Identity) -> bool {
        authority_of_pem(&self.authorities.get()).is_ok_and(|authority| identity.is_of(&authority))
    }

    /// Takes down what is used now.
    fn uses(&self, wanted: &Wanted, identity: Option<&Identity>) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(wanted.file, identity.cloned());
        let authorities = authorities_of_pem(&self.authorities.get()).unwrap_or_default();
        let all_of = |authority: &&CertificateDer<'static>| {
            used.values()
                .all(|one| one.as_ref().is_some_and(|one| one.is_of(authority)))
        };
        let issuer = authorities.iter().find(all_of).map(report::fingerprint);
        self.report.set_if_new(Report {
            trusted: report::fingerprints(&authorities),
            issuer: issuer.unwrap_or_default(),
        });
    }

    fn path(&self, wanted: &Wanted) -> PathBuf {
        self.dir.join(format!("{}.pem", wanted.file))
    }

    /// What is kept, if it still is what is wanted and valid.
    pub fn load(&self, wanted: &Wanted) -> Result<Option<Identity>, String> {
        let path = self.path(wanted);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        let damaged = |error| {
            format!(
                "{} is damaged ({error}); delete it, and give --token again if it is the node's",
                path.display()
            )
        };
        let identity = Identity::from_one_pem(&text).map_err(damaged)?;
        let (from, until) = identity.validity().map_err(damaged)?;
        let valid = (from..until).contains(&Timestamp::now().as_second());
        let fits = identity.fits(&wanted.spec).map_err(damaged)?;
        Ok(Some(identity).filter(|_| valid && fits))
    }

    /// Asks for the certificate as whom `client` speaks, waits until it is issued, and keeps it.
    pub async fn obtain(&self, client: &kube::Client, wanted: &Wanted) -> Result<Identity, String> {
        let (key, pem) = ask(&wanted.spec).map_err(|error| error.to_string())?;
        let requests: Api<Csr> = Api::all(client.clone());
        let request = Csr {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", wanted.file)),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: wanted.signer.to_owned(),
                usages: Some(wanted.usages.iter().map(|usage| (*usage).to_owned()).collect()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let made = requests.create(&PostParams::default(), &request).await;
        let name = made.map_err(|error| said(&error))?.metadata.name.unwrap_or_default();
        let answered = |csr: Option<&Csr>| csr.is_none_or(|csr| answer(csr).is_some());
        let csr = await_condition(requests, &name, answered)
            .await
            .map_err(|error| error.to_string())?;
        let Some(csr) = csr else {
            return Err(format!("the request {name} was deleted before it was answered"));
        };
        let certificate = answer(&csr).unwrap_or_else(|| Err("it has no answer".into()));
        let certificate = certificate.map_err(|why| format!("the request {name} was refused: {why}"))?;
        let text = format!("{}{key}", certificate.trim_end().to_owned() + "\n");
        let identity = Identity::from_one_pem(&text).map_err(|error| error.to_string())?;
        let path = self.path(wanted);
        write_private(&path, identity.to_one_pem().as_bytes()).map_err(|error| error.to_string())?;
        Ok(identity)
    }

    /// Keeps one certificate as long as the process runs: `deliver` gets it when it is there (at once if it is kept already
    /// or given), and each newer one.
    pub fn keep<F, Fut>(
        self: &Arc<Self>,
        tasks: &Tasks,
        client: kube::Client,
        wanted: Wanted,
        first: Option<Identity>,
        deliver: F,
    ) where
        F: Fn(Identity) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send,
    {
        let keeper = Arc::clone(self);
        // Known from the beginning, so that nobody takes some for all.
        keeper.uses(&wanted, first.as_ref());
        let name = format!("certificate {}", wanted.file);
        let mut authorities = self.authorities.follow();
        tasks.spawn_until_drain(name, OnExit::Critical, async move {
            let mut current = first;
            if current.is_none() {
                current = match keeper.load(&wanted) {
                    Ok(kept) => kept,
                    Err(error) => {
                        tracing::warn!(error, "a kept certificate cannot be used; asking for another");
                        None
                    }
                };
                if let Some(identity) = &current
                    && let Err(error) = deliver(identity.clone()).await
                {
                    tracing::warn!(
                        certificate = wanted.file,
                        error,
                        "a certificate cannot be used; asking for another"
                    );
                    current = None;
                }
            }
            let mut again = RETRY;
            loop {
                keeper.uses(&wanted, current.as_ref());
                if let Some(identity) = &current {
                    let due = async {
                        if keeper.is_current(identity) {
                            until(renewal(identity)).await;
                        } else {
                            // Whoever signs may not have heard yet.
                            tokio::time::sleep(again).await;
                        }
                    };
                    tokio::select! {
                        () = due => {}
                        changed = authorities.changed() => {
                            if changed.is_err() {
                                return;
                            }
                            // Whom to believe has changed: what is made of the certificate is made anew.
                            if let Err(error) = deliver(identity.clone()).await {
                                tracing::warn!(certificate = wanted.file, error, "a certificate cannot be used any more");
                            }
                            again = RETRY / 10;
                            continue;
                        }
                    }
                    again = (again * 2).min(SLOWEST);
                }
                let identity = keeper.renew(&client, &wanted, &deliver).await;
                if keeper.is_current(&identity) {
                    again = RETRY;
                }
                current = Some(identity);
            }
        });
    }

    async fn renew<F, Fut>(&self, client: &kube::Client, wanted: &Wanted, deliver: &F) -> Identity
    where
        F: Fn(Identity) -> Fut,
        Fut: Future<Output = Result<(), String>>,
    {
        let mut wait = RETRY;
        loop {
            let obtained = match self.obtain(client, wanted).await {
                Ok(identity) => deliver(identity.clone()).await.map(|()| identity),
                Err(error) => Err(error),
            };
            match obtained {
                Ok(identity) => {
                    tracing::info!(certificate = wanted.file, "a certificate was issued");
                    return identity;
                }
                Err(error) => {
                    tracing::warn!(certificate = wanted.file, error, "no certificate yet, will ask again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(SLOWEST);
                }
            }
        }
    }
}

/// What the API said, or what kept it from saying something.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// What became of a request: a certificate, or why there is none. `None`: nothing yet.
fn answer(csr: &Csr) -> Option<Result<String, String>> {
    let status = csr.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    if let Some(refusal) = conditions.find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed")) {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        return Some(Err(format!("{} {}", text(&refusal.reason), text(&refusal.message))));
    }
    let certificate = status.certificate.as_ref().filter(|bytes| !bytes.0.is_empty())?;
    Some(String::from_utf8(certificate.0.clone()).map_err(|error| error.to_string()))
}

/// When to ask for the next.
fn renewal(identity: &Identity) -> Timestamp {
    let share = rand::rng().random_range(0.7..0.9);
    match identity.validity() {
        Ok((from, until)) => renewal_at(from, until, share),
        Err(_) => Timestamp::now(),
    }
}

fn renewal_at(from: i64, until: i64, share: f64) -> Timestamp {
    // A life of centuries is still exact enough in a double.
    let after = (until.saturating_sub(from) as f64 * share) as i64;
    Timestamp::from_second(from.saturating_add(after)).unwrap_or(Timestamp::MAX)
}

async fn until(at: Timestamp) {
    while let Ok(left) = Duration::try_from(at.duration_since(Timestamp::now()))
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers() {
        let csr = |status: serde_json::Value| -> Csr {
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"request": "", "signerName": "x"}, "status": status}),
            )
            .unwrap()
        };
        assert_eq!(answer(&csr(json!({}))), None);
        assert_eq!(
            answer(&csr(json!({"conditions": [{"type": "Approved", "status": "True"}]}))),
            None
        );
        let denied = json!({"conditions": [{"type": "Denied", "status": "True", "reason": "No", "message": "way"}]});
        assert_eq!(answer(&csr(denied)), Some(Err("No way".into())));
        assert_eq!(answer(&csr(json!({"certificate": "YQ=="}))), Some(Ok("a".into())));
    }

    #[test]
    fn what_is_kept_is_used_only_while_it_fits() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(dir.path().to_owned(), Present::from(""));
        let pki = sampan_pki::Pki::load_or_create(&dir.path().join("pki"), Default::default()).unwrap();
        let wanted = |name: &str| Wanted {
            file: "x",
            signer: "s",
            usages: &[],
            spec: LeafSpec::client(name, None),
        };
        assert!(keeper.load(&wanted("a")).unwrap().is_none());
        let identity = pki.issue(&LeafSpec::client("a", None)).unwrap();
        std::fs::write(dir.path().join("x.pem"), identity.to_one_pem()).unwrap();
        assert!(keeper.load(&wanted("a")).unwrap().is_some());
        assert!(keeper.load(&wanted("b")).unwrap().is_none());
        std::fs::write(dir.path().join("x.pem"), identity.certificate_pem()).unwrap();
        assert!(keeper.load(&wanted("a")).unwrap_err().contains("damaged"));
    }

    #[test]
    fn renewal_is_well_before_the_end() {
        let at = |share| renewal_at(1000, 2000, share).as_second();
        assert_eq!((at(0.7), at(0.9)), (1700, 1900));
        renewal_at(i64::MIN, i64::MAX, 0.9);
    }
}
