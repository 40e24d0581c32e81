//! Secrets of type `kubernetes.io/service-account-token` get a token of the account they name, and go with it.
//!
//! Such tokens have no end but the Secret's: new clusters do without them, but people still make them by hand.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use sampan_client::{Change, Informer, Key, Selection, WorkQueue, is_conflict, or_absent};

use sampan_pki::Present;

use crate::{Context, SyncError, follow_root_ca};

const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const BY_ACCOUNT: &str = "controllers/account-tokens";

/// What a token shall say.
#[derive(Clone, Copy, Debug)]
pub struct WantedToken<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub secret: &'a str,
}

type Sign = dyn Fn(WantedToken<'_>) -> Result<String, String> + Send + Sync;

/// Signs tokens with the cluster's key.
#[derive(Clone)]
pub struct TokenSigner(Arc<Sign>);

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSigner")
    }
}

impl TokenSigner {
    pub fn new(sign: impl Fn(WantedToken<'_>) -> Result<String, String> + Send + Sync + 'static) -> Self {
        TokenSigner(Arc::new(sign))
    }
}

struct Keeper {
    client: kube::Client,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    signer: TokenSigner,
    root_ca: Option<Present<String>>,
}

/// The account a Secret names, with the uid it insists on, if it does.
fn named(secret: &Secret) -> Option<(&str, Option<&str>)> {
    let annotations = secret.annotations();
    let account = annotations.get(ACCOUNT)?;
    let uid = annotations.get(ACCOUNT_UID).map(String::as_str);
    (secret.type_.as_deref() == Some(SECRET_TYPE)).then_some((account, uid))
}

pub(crate) fn start(context: Context) {
    let Some(signer) = context.config.account_tokens.clone() else {
        tracing::info!("no signer was given: Secrets of service accounts get no tokens");
        return;
    };
    let only = Selection::fields(format!("type={SECRET_TYPE}"));
    let secrets = context.informers.with::<Secret>(only);
    let accounts = context.informers.of::<ServiceAccount>();
    secrets.add_index(BY_ACCOUNT, |secret| {
        let namespace = secret.namespace().unwrap_or_default();
        named(secret)
            .map(|(account, _)| format!("{namespace}/{account}"))
            .into_iter()
            .collect()
    });
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    secrets.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            changed.add(Key::of(change.object().as_ref()));
        }
    });
    let (changed, theirs) = (queue.clone(), secrets.clone());
    accounts.on_change(move |change| {
        let account = change.object();
        let index = format!("{}/{}", account.namespace().unwrap_or_default(), account.name_any());
        for secret in theirs.by_index(BY_ACCOUNT, &index) {
            changed.add(Key::of(secret.as_ref()));
        }
    });
    if let Some(bundle) = &context.config.root_ca {
        let (queue, secrets) = (queue.clone(), secrets.clone());
        follow_root_ca(&context, bundle, move || {
            for secret in secrets.list() {
                queue.add(Key::of(secret.as_ref()));
            }
        });
    }
    let ready = {
        let (secrets, accounts) = (secrets.clone(), accounts.clone());
        async move {
            secrets.synced().await;
            accounts.synced().await;
        }
    };
    let keeper = Arc::new(Keeper {
        client: context.client.clone(),
        secrets,
        accounts,
        signer,
        root_ca: context.config.root_ca.clone(),
    });
    context.run(&queue, ready, move |key| {
        let keeper = Arc::clone(&keeper);
        async move { keeper.sync(&key).await }
    });
}

impl Keeper {
    async fn sync(&self, key: &Key) -> Result<(), SyncError> {
        let Some(secret) = self.secrets.get(&key.namespace, &key.name) else {
            return Ok(());
        };
        let Some((name, uid)) = named(&secret) else {
            return Ok(());
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let fits = |account: &ServiceAccount| uid.is_none_or(|uid| account.uid().as_deref() == Some(uid));
        let mut account = self.accounts.get(&key.namespace, name).filter(|account| fits(account));
        if account.is_none() {
            // Asked anew before anything is deleted: it may just have been made.
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.namespace);
            account = or_absent(accounts.get(name).await)?
                .map(Arc::new)
                .filter(|account| fits(account));
        }
        let Some(account) = account else {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: secret.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            return settled(secrets.delete(&key.name, &params).await.map(|_gone| ()));
        };
        let account_uid = account.uid().unwrap_or_default();
        let mut data: BTreeMap<String, ByteString> = secret.data.clone().unwrap_or_default();
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        if let Some(ca) = &self.root_ca {
            data.insert("ca.crt".into(), bytes(&ca.get()));
        }
        if data.get("namespace").is_none_or(|value| value.0.is_empty()) {
            data.insert("namespace".into(), bytes(&key.namespace));
        }
        if data.get("token").is_none_or(|value| value.0.is_empty()) {
            let token = (self.signer.0)(WantedToken {
                namespace: &key.namespace,
                account: name,
                account_uid: &account_uid,
                secret: &key.name,
            });
            data.insert("token".into(), bytes(&token.map_err(SyncError::other)?));
        }
        if secret.data.as_ref() == Some(&data) && uid.is_some() {
            return Ok(());
        }
        let mut changed = (*secret).clone();
        changed.data = Some(data);
        changed.annotations_mut().insert(ACCOUNT_UID.into(), account_uid);
        settled(
            secrets
                .replace(&key.name, &PostParams::default(), &changed)
                .await
                .map(|_written| ()),
        )
    }
}

/// What somebody else changed or removed meanwhile comes here again by itself.
fn settled(outcome: Result<(), kube::Error>) -> Result<(), SyncError> {
    match or_absent(outcome) {
        Err(error) if is_conflict(&error) => Ok(()),
        other => Ok(other.map(|_done| ())?),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kube::api::ObjectMeta;
    use sampan_client::testing::FakeApi;

    use super::*;
    use crate::testing::Cluster;

    fn secret(name: &str, account: &str) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                annotations: Some(BTreeMap::from([(ACCOUNT.to_owned(), account.to_owned())])),
                ..Default::default()
            },
            type_: Some(SECRET_TYPE.into()),
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_gets_a_token_and_goes_with_its_account() {
        let cluster = Cluster::with(FakeApi::new(), &["serviceaccount-token-controller"], |config| {
            config.root_ca = Some("CA".into());
            config.account_tokens = Some(TokenSigner::new(|wanted| {
                Ok(format!(
                    "{}/{}/{}/{}",
                    wanted.namespace, wanted.account, wanted.account_uid, wanted.secret
                ))
            }));
        });
        let api = &cluster.api;
        let account = api.create(&ServiceAccount {
            metadata: ObjectMeta {
                name: Some("robot".into()),
                namespace: Some("ns".into()),
                ..Default::default()
            },
            ..Default::default()
        });
        api.create(&secret("s", "robot"));
        api.create(&secret("orphan", "nobody"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let made: Secret = api.get("ns", "s").unwrap();
        let uid = account.uid().unwrap();
        let data = made.data.clone().unwrap();
        assert_eq!(data["token"].0, format!("ns/robot/{uid}/s").as_bytes());
        assert_eq!(
            (data["ca.crt"].0.as_slice(), data["namespace"].0.as_slice()),
            (&b"CA"[..], &b"ns"[..])
        );
        assert_eq!(made.annotations()[ACCOUNT_UID], uid);
        assert!(api.get::<Secret>("ns", "orphan").is_none());
        api.remove::<ServiceAccount>("ns", "robot");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(api.get::<Secret>("ns", "s").is_none());
    }
}
