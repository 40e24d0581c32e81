//! Type checking of ValidatingAdmissionPolicies: what is wrong with an expression for the kinds it will meet is
//! said in the policy's status.
//!
//! Built-in kinds are known here; custom ones are looked up in the server's OpenAPI documents. As upstream, at
//! most ten kinds are checked, rules with wildcards are not, and only a changed policy is checked again.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::{ParamKind, ValidatingAdmissionPolicy};
use kube::api::{Api, Patch, PatchParams};
use sampan_api::schema;
use sampan_cel::policy::{Compiler, Wanted};
use sampan_cel::{Decl, Fields, ObjectType, Shape};
use sampan_client::{Change, Informer, Key, WorkQueue, or_absent};
use serde_json::{Value, json};

use crate::{Context, SyncError};

const MANAGER: &str = "validatingadmissionpolicy-status";
const MAX_KINDS: usize = 10;

pub(crate) fn start(context: Context) {
    let policies = context.informers.of::<ValidatingAdmissionPolicy>();
    let queue: WorkQueue<Key> = WorkQueue::default();
    let changed = queue.clone();
    policies.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            changed.add(Key::of(change.object().as_ref()));
        }
    });
    let ready = {
        let policies = policies.clone();
        async move { policies.synced().await }
    };
    let state = Arc::new((context.client.clone(), policies));
    context.run(&queue, ready, move |key| {
        let state = Arc::clone(&state);
        async move { sync(&state.0, &state.1, &key).await }
    });
}

async fn sync(
    client: &kube::Client,
    policies: &Informer<ValidatingAdmissionPolicy>,
    key: &Key,
) -> Result<(), SyncError> {
    let Some(policy) = policies.get_key(key) else {
        return Ok(());
    };
    let generation = policy.metadata.generation;
    let observed = policy.status.as_ref().and_then(|status| status.observed_generation);
    if generation.is_some() && observed == generation {
        return Ok(());
    }
    let warnings = check(client, &policy).await;
    let mut checking = json!({});
    if !warnings.is_empty() {
        checking["expressionWarnings"] = warnings.into();
    }
    let status = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": key.name},
        "status": {"observedGeneration": generation, "typeChecking": checking},
    });
    let api: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let params = PatchParams::apply(MANAGER).force();
    or_absent(api.patch_status(&key.name, &params, &Patch::Apply(status)).await)?;
    Ok(())
}

/// A kind with what its objects look like.
struct Kind {
    /// `apps/v1, Kind=Deployment`
    shown: String,
    decl: Arc<Decl>,
}

async fn check(client: &kube::Client, policy: &ValidatingAdmissionPolicy) -> Vec<Value> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    let kinds = kinds(client, policy).await;
    let params = match &spec.param_kind {
        None => None,
        Some(kind) => Some(params_decl(client, kind).await),
    };
    let mut warnings = Vec::new();
    for (index, validation) in spec.validations.iter().flatten().enumerate() {
        let message = validation.message_expression.as_deref().filter(|text| !text.is_empty());
        let expressions = [
            ("expression", Some(validation.expression.as_str())),
            ("messageExpression", message),
        ];
        for (field, expression) in expressions {
            let Some(expression) = expression else { continue };
            let wrong: Vec<String> = kinds
                .iter()
                .filter_map(|kind| {
                    let compiler = Compiler::typed(kind.decl.clone(), params.clone());
                    for variable in spec.variables.iter().flatten() {
                        // What is wrong with a variable makes it of any type; the write has been told already.
                        compiler.variable(&variable.name, &variable.expression).err();
                    }
                    let why = compiler.expression(expression, Wanted::Anything).err()?;
                    Some(format!("{}: {why}\n", kind.shown))
                })
                .collect();
            if !wrong.is_empty() {
                warnings.push(json!({
                    "fieldRef": format!("spec.validations[{index}].{field}"),
                    "warning": wrong.join("\n"),
                }));
            }
        }
    }
    warnings
}

async fn params_decl(client: &kube::Client, kind: &ParamKind) -> Arc<Decl> {
    let api_version = kind.api_version.as_deref().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = kind.kind.as_deref().unwrap_or_default();
    decl(client, group, version, kind).await.unwrap_or_else(Decl::dynamic)
}

/// The kinds a policy's rules name, in order.
async fn kinds(client: &kube::Client, policy: &ValidatingAdmissionPolicy) -> Vec<Kind> {
    let mut named: BTreeSet<(String, String, String)> = BTreeSet::new();
    let constraints = policy.spec.as_ref().and_then(|spec| spec.match_constraints.as_ref());
    for rule in constraints
        .iter()
        .flat_map(|constraints| constraints.resource_rules.iter().flatten())
    {
        let list = |values: &Option<Vec<String>>| values.clone().unwrap_or_default();
        let (groups, versions) = (list(&rule.api_groups), list(&rule.api_versions));
        if groups.iter().chain(&versions).any(|value| value.contains('*')) {
            continue;
        }
        let resources = list(&rule.resources);
        for (group, version) in groups
            .iter()
            .flat_map(|group| versions.iter().map(move |version| (group, version)))
        {
            for resource in resources.iter().filter(|resource| !resource.contains(['*', '/'])) {
                if named.len() < MAX_KINDS {
                    named.insert((group.clone(), version.clone(), resource.clone()));
                }
            }
        }
    }
    let mut kinds = Vec::new();
    for (group, version, resource) in named {
        let Some(kind) = kind_of(client, &group, &version, &resource).await else {
            continue;
        };
        if let Some(decl) = decl(client, &group, &version, &kind).await {
            let group_version = if group.is_empty() {
                version
            } else {
                format!("{group}/{version}")
            };
            kinds.push((format!("{group_version}, Kind={kind}"), decl));
        }
    }
    kinds.sort_by(|(a, _), (b, _)| a.cmp(b));
    kinds.into_iter().map(|(shown, decl)| Kind { shown, decl }).collect()
}

async fn get(client: &kube::Client, path: String) -> Option<Value> {
    let request = http::Request::get(path).body(Vec::new()).ok()?;
    client.request::<Value>(request).await.ok()
}

async fn kind_of(client: &kube::Client, group: &str, version: &str, resource: &str) -> Option<String> {
    let path = if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    };
    let list = get(client, path).await?;
    let resources = list.get("resources").and_then(Value::as_array)?;
    let found = resources
        .iter()
        .find(|known| known.get("name").and_then(Value::as_str) == Some(resource))?;
    Some(found.get("kind")?.as_str()?.to_owned())
}

async fn decl(client: &kube::Client, group: &str, version: &str, kind: &str) -> Option<Arc<Decl>> {
    let builtin = schema::builtin();
    if let Some(definition) = builtin.kind(group, version, kind) {
        return Some(Decl::of_type(&builtin.type_of(&definition.name)?));
    }
    let document = get(client, format!("/openapi/v3/apis/{group}/{version}")).await?;
    let schemas = document.pointer("/components/schemas")?.as_object()?;
    let wanted = json!({"group": group, "version": version, "kind": kind});
    let found = schemas.values().find(|schema| {
        let kinds = schema.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
        kinds.is_some_and(|kinds| kinds.contains(&wanted))
    })?;
    let decl = Decl::of_schema(found, kind, true)?;
    // The document refers to the metadata every object has; here it is known.
    let (Shape::Object(object), Some(metadata)) = (&decl.shape, metadata()) else {
        return Some(decl);
    };
    let Fields::Known(fields) = &object.fields else {
        return Some(decl);
    };
    let mut fields = fields.clone();
    fields.insert("metadata".to_owned(), metadata);
    Some(Decl::of_object(ObjectType {
        name: object.name.clone(),
        fields: Fields::Known(fields),
        constructible: false,
    }))
}

fn metadata() -> Option<Arc<Decl>> {
    let pod = schema::builtin().kind("", "v1", "Pod")?;
    let field = pod.as_struct()?.field("metadata")?;
    Some(Decl::of_type(&field.ty))
}
