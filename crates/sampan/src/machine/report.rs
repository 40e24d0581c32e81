//! What a node says of its certificates: annotations of its Node, by which `sampan cert rotate-ca` knows whom it would cut off.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::watch_object;
use sampan_pki::{Present, tls};
use serde_json::json;

/// The authorities it believes, by their fingerprints, separated by commas.
pub const TRUSTED: &str = "sampan.io/trusted-authorities";
/// The authority that has issued all its certificates.
pub const ISSUER: &str = "sampan.io/certificate-authority";

const RETRY: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(60);

/// What there is to say. Empty is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub trusted: String,
    pub issuer: String,
}

/// An authority's name in these annotations.
pub fn fingerprint(authority: &rustls_pki_types::CertificateDer<'_>) -> String {
    let hash = tls::fingerprint(authority).unwrap_or_default();
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Of several.
pub fn fingerprints(authorities: &[rustls_pki_types::CertificateDer<'static>]) -> String {
    let all: Vec<String> = authorities.iter().map(fingerprint).collect();
    all.join(",")
}

/// Keeps the annotations of the node `name` as `report` says.
pub async fn keep(nodes: Api<Node>, name: String, report: Present<Report>) {
    let mut reports = report.follow();
    let mut states = std::pin::pin!(watch_object(nodes.clone(), &name));
    let (mut current, mut pause) = (None, RETRY);
    loop {
        tokio::select! {
            state = states.next() => match state {
                Some(Ok(node)) => current = node,
                Some(Err(error)) => {
                    tracing::debug!(%error, "the node cannot be watched, will try again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(SLOWEST);
                    continue;
                }
                None => return,
            },
            changed = reports.changed() => if changed.is_err() { return },
        }
        let Some(node) = &current else { continue };
        let wanted = report.get();
        let wanted = BTreeMap::from([(TRUSTED, &wanted.trusted), (ISSUER, &wanted.issuer)]);
        let said = |key: &str| node.metadata.annotations.as_ref().and_then(|all| all.get(key));
        if wanted.iter().all(|(key, value)| said(key) == Some(value)) {
            pause = RETRY;
            continue;
        }
        let patch = json!({"metadata": {"annotations": wanted}});
        match nodes
            .patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            // The watch tells of it, and of whatever else happens.
            Ok(_) => pause = RETRY,
            Err(error) => {
                tracing::warn!(%error, "the node's certificates could not be told, will try again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(SLOWEST);
                reports.mark_changed();
            }
        }
    }
}
