//! Certificate requests: who is let through without asking a person, who signs, and what is swept away.
//!
//! - [`approving`]: requests of nodes for client certificates, if authorization lets the asker (upstream's approver).
//! - [`nodes`]: the other certificates of a joined node: for its server, and for its service proxy. Upstream leaves these to others.
//! - [`signing`]: the four signers of upstream, with the cluster's authority.
//! - [`cleaning`]: requests go once they are old.
//!
//! Deliberately different: a request is looked at when it, or what the decision depends on, changes; nothing is looked through
//! by the hour. Rules about what a request may hold are pure functions of [`rules`].

mod approving;
mod cleaning;
mod nodes;
mod rules;
mod signing;

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest as Csr, CertificateSigningRequestCondition as Condition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use sampan_client::{Change, Informer, Key, WorkQueue, is_conflict, or_absent};

use crate::{Context, SyncError};

pub(crate) use approving::start as start_approving;
pub(crate) use cleaning::start as start_cleaning;
pub(crate) use nodes::start as start_nodes;
pub use signing::Signing;
pub(crate) use signing::start as start_signing;

fn condition<'a>(csr: &'a Csr, kind: &str) -> Option<&'a Condition> {
    let conditions = csr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().find(|condition| condition.type_ == kind)
}

fn is_approved(csr: &Csr) -> bool {
    condition(csr, "Approved").is_some() && condition(csr, "Denied").is_none()
}

fn certificate(csr: &Csr) -> Option<&[u8]> {
    let certificate = csr.status.as_ref()?.certificate.as_ref()?;
    Some(certificate.0.as_slice()).filter(|bytes| !bytes.is_empty())
}

/// What the certificate is asked for.
fn usages(csr: &Csr) -> &[String] {
    csr.spec.usages.as_deref().unwrap_or_default()
}

/// Neither approved nor denied yet.
fn is_open(csr: &Csr) -> bool {
    certificate(csr).is_none() && condition(csr, "Approved").is_none() && condition(csr, "Denied").is_none()
}

/// Informer and queue of requests: those that `wanted` picks are queued when they change.
fn watch(context: &Context, wanted: fn(&Csr) -> bool) -> (Informer<Csr>, WorkQueue<Key>) {
    let requests = context.informers.of::<Csr>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    requests.on_change(move |change| {
        let csr = change.object();
        if !matches!(change, Change::Deleted(_)) && wanted(csr) {
            changed.add(Key::of(csr.as_ref()));
        }
    });
    (requests, queue)
}

/// Adds an approval. A request that changed meanwhile comes again by its change.
async fn approve(context: &Context, csr: &Csr, reason: &str, message: &str) -> Result<(), SyncError> {
    let mut csr = csr.clone();
    let now = Time(context.clock.now());
    let status = csr.status.get_or_insert_default();
    status.conditions.get_or_insert_default().push(Condition {
        type_: "Approved".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    });
    let api: Api<Csr> = Api::all(context.client.clone());
    let name = csr.metadata.name.clone().unwrap_or_default();
    let params = PostParams::default();
    let written = api.replace_subresource("approval", &name, &params, &csr).await;
    unless_changed(written)
}

fn unless_changed<T>(written: kube::Result<T>) -> Result<(), SyncError> {
    match or_absent(written) {
        Err(error) if !is_conflict(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Waits for the caches of these.
async fn synced(requests: Informer<Csr>) {
    requests.synced().await;
}
