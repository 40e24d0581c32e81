//! `sampan apply`: creates what manifests describe, or merges them into what is there.
//!
//! For machines without kubectl (first steps, scripts). It finds resources through discovery like any client and
//! knows nothing of the server; kubectl does more and works as well.

use std::io::Read;
use std::path::Path;

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::{self, Scope};
use serde_json::Value;

use crate::cli::Apply;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MANAGER: &str = "sampan-apply";

pub async fn run(command: Apply) -> Result<()> {
    let client = sampan_client::from_kubeconfig(&command.kubeconfig).await?;
    let mut failures = 0;
    for path in &command.filenames {
        for (index, document) in documents(path)?.into_iter().enumerate() {
            match apply(&client, document).await {
                Ok(line) => println!("{line}"),
                Err(error) => {
                    failures += 1;
                    eprintln!("{} (document {}): {error}", path.display(), index + 1);
                }
            }
        }
    }
    match failures {
        0 => Ok(()),
        count => Err(format!("{count} of the manifests could not be applied").into()),
    }
}

/// The YAML (or JSON) documents of a file; Lists are taken apart, empty documents skipped.
fn documents(path: &Path) -> Result<Vec<Value>> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    }
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).map_err(|error| format!("{} is not valid YAML: {error}", path.display()))?;
    let mut objects = Vec::new();
    for mut document in documents {
        let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
        if let Some(Value::Array(items)) = document.get_mut("items").filter(|_| is_list) {
            objects.append(items);
        } else if !document.is_null() {
            objects.push(document);
        }
    }
    Ok(objects)
}

async fn apply(client: &kube::Client, document: Value) -> Result<String> {
    let types: TypeMeta = serde_json::from_value(document.clone()).map_err(|_| "apiVersion or kind is missing")?;
    let kind = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = discovery::pinned_kind(client, &kind)
        .await
        .map_err(|error| format!("the server knows no {} in {}: {error}", kind.kind, types.api_version))?;
    let object: DynamicObject = serde_json::from_value(document.clone())?;
    let name = object.metadata.name.clone().ok_or("metadata.name is missing")?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
    };
    let shown = if kind.group.is_empty() {
        format!("{}/{name}", kind.kind.to_lowercase())
    } else {
        format!("{}.{}/{name}", kind.kind.to_lowercase(), kind.group)
    };
    let create = PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    };
    match api.create(&create, &object).await {
        Ok(_) => Ok(format!("{shown} created")),
        Err(error) if sampan_client::is_already_exists(&error) => {
            let before = api.get(&name).await?.metadata.resource_version;
            let merge = PatchParams {
                field_manager: Some(MANAGER.into()),
                ..PatchParams::default()
            };
            let after = api
                .patch(&name, &merge, &Patch::Merge(&document))
                .await?
                .metadata
                .resource_version;
            Ok(format!(
                "{shown} {}",
                if before == after { "unchanged" } else { "configured" }
            ))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_many_documents_and_lists() {
        let dir = std::env::temp_dir().join(format!("sampan-apply-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("many.yaml");
        std::fs::write(&path, "kind: A\n---\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n").unwrap();
        let kinds: Vec<_> = documents(&path)
            .unwrap()
            .iter()
            .map(|object| object["kind"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
