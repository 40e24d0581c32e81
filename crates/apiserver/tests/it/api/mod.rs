//! The API through the in-process transport: verbs, options, and the words of every refusal.

mod kinds;
mod lists;
mod objects;
mod rights;

use crate::common::Api;
use serde_json::json;

const CM: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn with_default_account() -> Api {
    let api = Api::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .ok();
    api
}
