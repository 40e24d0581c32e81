//! What a server does with certificates while it runs: renews them, follows the cluster's keys, replaces those when an
//! administrator asks, and tells whoever keeps a copy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Secret};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use sampan_apiserver::{AdminError, Certificates};
use sampan_node::ServerTls;
use sampan_pki::keys::{Phase, Rotating, Step, StepError};
use sampan_pki::{Kubeconfig, Pki, PkiError, Present, UserCredential, tls, token};
use sampan_store::{Change, Revision, Store, Update};
use sampan_tasks::{OnExit, Tasks};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::Result;
use crate::facts::Facts;
use crate::keyring::{self, KEY, Place};
use crate::machine::report::{self, Report};
use crate::options::Settings;

/// How long to wait before the store is watched again after that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Within this time the tokens of running Pods are renewed.
const TOKENS: SignedDuration = SignedDuration::from_hours(24);

type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The cluster's keys as this server has them.
pub(super) struct Keys {
    store: Arc<dyn Store>,
    place: Place,
    pki: Arc<Pki>,
    /// Whoever learns of a change takes it over, one at a time.
    turn: Mutex<()>,
}

impl Keys {
    pub fn new(store: Arc<dyn Store>, settings: &Settings, pki: Arc<Pki>) -> Self {
        Keys {
            store,
            place: Place::of(&settings.data_dir, Some(&settings.cluster_token_file)),
            pki,
            turn: Mutex::default(),
        }
    }

    /// Takes over what becomes of the keys, until the watch ends.
    async fn follow(&self) -> Outcome<()> {
        let mut watch = self.store.watch(KEY, self.take().await?).await?;
        while let Some(update) = watch.recv().await {
            if let Update::Event { event, .. } = update?
                && matches!(&event.change, Change::Put(entry) if &*entry.key == KEY)
            {
                self.take().await?;
            }
        }
        Ok(())
    }

    /// Makes this server's keys what the store has now; the revision that is of.
    async fn take(&self) -> Outcome<Revision> {
        let _turn = self.turn.lock().await;
        let Some(found) = self.store.get(KEY).await? else {
            return Ok(self.store.revision());
        };
        let (place, pki, record) = (self.place.clone(), self.pki.clone(), found.value);
        let taken = tokio::task::spawn_blocking(move || -> Outcome<()> {
            if place.follow(&record)? {
                let renewed = pki.reload()?;
                tracing::info!(renewed = renewed.join(", "), "the cluster's keys were replaced");
            }
            Ok(())
        });
        taken.await??;
        Ok(found.mod_revision)
    }
}

/// Keeps certificates young, the cluster's keys up to date, and the administrator's kubeconfig too.
pub(super) fn start(settings: &Settings, keys: &Arc<Keys>, tasks: &Tasks) -> Result<()> {
    let pki = keys.pki.clone();
    let mut changes = pki.changes();
    write_admin_kubeconfig(settings, &pki)?;
    let renewals = sampan_apiserver::renewals(pki.clone(), Timestamp::now);
    tasks.spawn_until_drain("certificate renewal", OnExit::Critical, renewals);
    let following = keys.clone();
    tasks.spawn_until_drain("cluster keys", OnExit::Critical, async move {
        loop {
            if let Err(error) = following.follow().await {
                tracing::warn!(%error, "the cluster's keys cannot be followed, will try again");
            }
            tokio::time::sleep(RETRY).await;
        }
    });
    let settings = settings.clone();
    tasks.spawn_until_drain("admin kubeconfig", OnExit::Critical, async move {
        while changes.changed().await.is_ok() {
            if let Err(error) = write_admin_kubeconfig(&settings, &pki) {
                tracing::error!(%error, "the administrator's kubeconfig could not be written");
            }
        }
    });
    Ok(())
}

fn write_admin_kubeconfig(settings: &Settings, pki: &Pki) -> std::result::Result<(), PkiError> {
    let kubeconfig = Kubeconfig {
        cluster: "sampan",
        server: &settings.local_url(),
        ca_pem: &pki.ca_pem(),
        user: "kubernetes-admin",
        credential: UserCredential::Certificate(pki.admin_client()?),
    };
    kubeconfig.write(&settings.admin_kubeconfig())
}

/// Tells joined machines whom to believe, now and whenever that changes.
pub(super) async fn publish(settings: &Settings, pki: &Arc<Pki>, client: kube::Client, tasks: &Tasks) -> Result<()> {
    let mut changes = pki.changes();
    Facts::of(settings, pki.ca_pem()).publish(client.clone()).await?;
    let (settings, pki) = (settings.clone(), pki.clone());
    tasks.spawn_until_drain("cluster facts", OnExit::Critical, async move {
        while changes.changed().await.is_ok() {
            while let Err(error) = Facts::of(&settings, pki.ca_pem()).publish(client.clone()).await {
                tracing::warn!(%error, "the cluster's facts could not be told, will try again");
                tokio::time::sleep(RETRY).await;
            }
        }
    });
    Ok(())
}

/// What this machine's own node shows and believes, now and whenever that changes.
pub(super) fn node_tls(settings: &Settings, pki: &Arc<Pki>, client: kube::Client, tasks: &Tasks) -> Result<ServerTls> {
    let verifier = pki.verifier();
    let make = {
        let (settings, pki, verifier) = (settings.clone(), pki.clone(), verifier.clone());
        move || -> Outcome<_> {
            let identity = pki.node_serving(&settings.node_name, &[settings.node_ip])?;
            Ok(tls::server_config(&identity, &verifier)?)
        }
    };
    let told = |pki: &Pki| Report {
        trusted: report::fingerprints(&pki.authorities()),
        issuer: report::fingerprint(&pki.ca()),
    };
    // In one process there is nothing else to renew: its client needs no certificate.
    let mut changes = pki.changes();
    let config = Present::from(make().map_err(|error| error.to_string())?);
    let said = Present::new(told(pki));
    let (shown, telling, pki) = (config.clone(), said.clone(), pki.clone());
    tasks.spawn_until_drain("node certificate", OnExit::Critical, async move {
        while changes.changed().await.is_ok() {
            match make() {
                Ok(config) => {
                    shown.set(config);
                    telling.set_if_new(told(&pki));
                }
                Err(error) => tracing::error!(%error, "the node's new certificate cannot be used; the old one stays"),
            }
        }
    });
    let keeping = report::keep(Api::all(client), settings.node_name.clone(), said);
    tasks.spawn_until_drain("node certificate report", OnExit::Critical, keeping);
    Ok(ServerTls { config, verifier })
}

/// What administrators ask of a running server, see `sampan cert`.
pub(super) struct Keeper {
    keys: Arc<Keys>,
    pki: Arc<Pki>,
    /// As the server itself.
    client: kube::Client,
    /// One wish at a time.
    turn: Mutex<()>,
}

impl Keeper {
    pub fn new(keys: Arc<Keys>, client: kube::Client) -> Self {
        Keeper {
            pki: keys.pki.clone(),
            keys,
            client,
            turn: Mutex::default(),
        }
    }
}

/// What may be wished.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", tag = "action", deny_unknown_fields)]
enum Wish {
    /// Renew leaves; none named: all.
    Renew { names: Vec<String> },
    Step {
        what: What,
        step: StepName,
        #[serde(default)]
        force: bool,
    },
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum What {
    Authorities,
    AccountKey,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum StepName {
    Trust,
    Issue,
    Retire,
    Cancel,
}

impl From<What> for Rotating {
    fn from(what: What) -> Self {
        match what {
            What::Authorities => Rotating::Authorities,
            What::AccountKey => Rotating::AccountKey,
        }
    }
}

impl From<StepName> for Step {
    fn from(step: StepName) -> Self {
        match step {
            StepName::Trust => Step::Trust,
            StepName::Issue => Step::Issue,
            StepName::Retire => Step::Retire,
            StepName::Cancel => Step::Cancel,
        }
    }
}

#[async_trait]
impl Certificates for Keeper {
    async fn status(&self) -> std::result::Result<Value, AdminError> {
        let keys = keyring::keys(&self.keys.place).map_err(AdminError::internal)?;
        let mut told = BTreeMap::new();
        for what in [What::Authorities, What::AccountKey] {
            let rotating = what.into();
            let phase = keys.phase(rotating);
            let waiting = match what {
                What::Authorities if phase != Phase::Steady => self.behind(phase).await?,
                What::AccountKey if phase == Phase::Issuing => self.old_tokens(&keys).await?,
                _ => Vec::new(),
            };
            let name = match what {
                What::Authorities => "authorities",
                What::AccountKey => "accountKey",
            };
            let since = keys.replaced_at(rotating).map(|at| at.to_string());
            told.insert(
                name,
                json!({"phase": phase.name(), "replacedAt": since, "waitingFor": waiting}),
            );
        }
        Ok(json!(told))
    }

    async fn wish(&self, wish: Value) -> std::result::Result<Value, AdminError> {
        let wish: Wish = serde_json::from_value(wish).map_err(|error| AdminError::Bad(error.to_string()))?;
        let _turn = self.turn.lock().await;
        match wish {
            Wish::Renew { names } => self.renew(names).await,
            Wish::Step { what, step, force } => {
                self.step(what.into(), step.into(), force).await?;
                self.status().await
            }
        }
    }
}

impl Keeper {
    async fn renew(&self, names: Vec<String>) -> std::result::Result<Value, AdminError> {
        let pki = self.pki.clone();
        let wanted = names.clone();
        let renewed = tokio::task::spawn_blocking(move || {
            pki.renew(&|name| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name))
        });
        let renewed = renewed
            .await
            .map_err(AdminError::internal)?
            .map_err(AdminError::internal)?;
        match names.iter().find(|name| !renewed.contains(name)) {
            Some(name) => Err(AdminError::Bad(format!(
                "this server uses no certificate {name:?}; `sampan cert list` shows those there are"
            ))),
            None => Ok(json!({"renewed": renewed})),
        }
    }

    async fn step(&self, what: Rotating, step: Step, force: bool) -> std::result::Result<(), AdminError> {
        let keys = keyring::keys(&self.keys.place).map_err(AdminError::internal)?;
        if step == Step::Retire && !force && keys.phase(what) == Phase::Issuing {
            let waiting = match what {
                Rotating::Authorities => self.behind(Phase::Issuing).await?,
                Rotating::AccountKey => self.old_tokens(&keys).await?,
            };
            if !waiting.is_empty() {
                return Err(AdminError::Refused(format!(
                    "the old one is still needed by: {}",
                    waiting.join("; ")
                )));
            }
        }
        let made = keyring::step(&*self.keys.store, &self.keys.place, what, step).await;
        made.map_err(|error| match error.downcast_ref::<StepError>() {
            Some(StepError::OutOfTurn(why)) => AdminError::Refused((*why).to_owned()),
            _ => AdminError::internal(error),
        })?;
        self.keys.take().await.map_err(AdminError::internal)?;
        Ok(())
    }

    /// Who does not believe every authority yet, or has certificates of another than the one that issues.
    async fn behind(&self, phase: Phase) -> std::result::Result<Vec<String>, AdminError> {
        let mut behind = Vec::new();
        let bundle = self.pki.ca_pem();
        let all = ListParams::default();
        let maps: Api<ConfigMap> = Api::all(self.client.clone());
        let maps = maps
            .list(&all.clone().fields("metadata.name=kube-root-ca.crt"))
            .await
            .map_err(AdminError::internal)?;
        let told = |namespace: &Namespace| {
            let name = namespace.name_any();
            let map = maps.iter().find(|map| map.namespace().as_deref() == Some(&name));
            map.and_then(|map| map.data.as_ref()?.get("ca.crt")) == Some(&bundle)
        };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for namespace in namespaces.list(&all).await.map_err(AdminError::internal)? {
            if !told(&namespace) && namespace.metadata.deletion_timestamp.is_none() {
                behind.push(format!(
                    "namespace {} (its kube-root-ca.crt is not up to date)",
                    namespace.name_any()
                ));
            }
        }
        let issuer = report::fingerprint(&self.pki.ca());
        let nodes: Api<Node> = Api::all(self.client.clone());
        for node in nodes.list(&all).await.map_err(AdminError::internal)? {
            let said = |key: &str| node.annotations().get(key).map(String::as_str).unwrap_or_default();
            let (trusted, issued) = (said(report::TRUSTED), said(report::ISSUER));
            let missing = self
                .pki
                .authorities()
                .iter()
                .any(|one| !trusted.split(',').any(|known| known == report::fingerprint(one)));
            if missing {
                behind.push(format!(
                    "node {} (it has not said that it trusts the new authority)",
                    node.name_any()
                ));
            } else if phase == Phase::Issuing && issued != issuer {
                behind.push(format!(
                    "node {} (its certificates are of the old authority)",
                    node.name_any()
                ));
            }
        }
        Ok(behind)
    }

    /// Where there are tokens that the old key has signed.
    async fn old_tokens(&self, keys: &sampan_pki::keys::Keys) -> std::result::Result<Vec<String>, AdminError> {
        let mut old = Vec::new();
        if let Some(at) = keys.replaced_at(Rotating::AccountKey) {
            let left = TOKENS - Timestamp::now().duration_since(at);
            if left.is_positive() {
                let minutes = left.as_secs() / 60 + 1;
                old.push(format!(
                    "running Pods, whose tokens are all renewed in {minutes} minutes"
                ));
            }
        }
        let current = self.pki.tokens().key_id();
        let secrets: Api<Secret> = Api::all(self.client.clone());
        let only = ListParams::default().fields("type=kubernetes.io/service-account-token");
        for secret in secrets.list(&only).await.map_err(AdminError::internal)? {
            let text = secret.data.as_ref().and_then(|data| data.get("token"));
            let text = text.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
            if text.is_some_and(|text| token::key_id(text).as_deref() != Some(&current)) {
                let (namespace, name) = (secret.namespace().unwrap_or_default(), secret.name_any());
                old.push(format!(
                    "secret {namespace}/{name} (delete its data.token to have it signed anew)"
                ));
            }
        }
        Ok(old)
    }
}
