//! What configMap, secret, downwardAPI and projected volumes contain: pure apart from asking [`Sources`].
//!
//! A [`Payload`] maps relative paths to bytes, mode and owner. A later source of a projected volume overrides an
//! earlier one at the same path, as upstream.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, ServiceAccountTokenProjection,
    Volume,
};

use crate::downward::{self, Allocatable};
use crate::tokens::TokenCache;
use crate::{Sources, VolumeError};

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileProjection {
    pub data: Vec<u8>,
    pub mode: u32,
    /// The owner, where only one user may read the file (tokens).
    pub uid: Option<u32>,
}

/// Relative path → file.
pub type Payload = BTreeMap<String, FileProjection>;

const DEFAULT_MODE: i32 = 0o644;

/// The pod-wide identities that decide on owners and modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub fs_group: Option<u32>,
    /// Set when all containers run as one user.
    pub fs_user: Option<u32>,
}

impl Identity {
    /// Reads both from the security contexts.
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self::default();
        };
        let pod_level = spec.security_context.as_ref();
        let mut users = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .map(|container| {
                container
                    .security_context
                    .as_ref()
                    .and_then(|context| context.run_as_user)
                    .or_else(|| pod_level.and_then(|context| context.run_as_user))
            });
        let first = users.next().flatten();
        let same = users.all(|user| user == first);
        Self {
            fs_group: pod_level
                .and_then(|context| context.fs_group)
                .and_then(|gid| u32::try_from(gid).ok()),
            fs_user: first.filter(|_| same).and_then(|uid| u32::try_from(uid).ok()),
        }
    }

    /// The mode of a token's file: private when somebody in particular is to read it. The group's bits are added
    /// with the ownership of the volume.
    fn token_mode(self, default_mode: i32) -> i32 {
        if self.fs_user.is_some() || self.fs_group.is_some() {
            0o600
        } else {
            default_mode
        }
    }
}

/// Everything a rendering may need.
pub struct Context<'a> {
    pub pod: &'a Pod,
    pub sources: &'a Arc<dyn Sources>,
    pub tokens: &'a TokenCache,
    pub allocatable: &'a Allocatable,
    pub identity: Identity,
    pub now: Timestamp,
}

/// A rendering and when it must be made again (tokens).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    pub payload: Payload,
    pub refresh_at: Option<Timestamp>,
}

/// Renders `volume`; `None` when its kind is not one that is rendered.
pub async fn render(volume: &Volume, ctx: &Context<'_>) -> Result<Option<Rendered>, VolumeError> {
    let mut out = Rendered::default();
    if let Some(source) = &volume.config_map {
        let optional = source.optional.unwrap_or(false);
        let found = config_map(ctx, &source.name, optional).await?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        out.payload = select(
            "configmap",
            config_map_data(&found),
            source.items.as_deref(),
            mode,
            optional,
        )?;
    } else if let Some(source) = &volume.secret {
        let optional = source.optional.unwrap_or(false);
        let name = source.secret_name.clone().unwrap_or_default();
        let found = secret(ctx, &name, optional).await?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        out.payload = select("secret", secret_data(&found), source.items.as_deref(), mode, optional)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward_files(ctx, source.items.as_deref().unwrap_or_default(), mode, &mut out.payload)?;
    } else if let Some(source) = &volume.projected {
        out = projected(ctx, source).await?;
    } else {
        return Ok(None);
    }
    Ok(Some(out))
}

async fn projected(ctx: &Context<'_>, source: &ProjectedVolumeSource) -> Result<Rendered, VolumeError> {
    let mut out = Rendered::default();
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    for part in source.sources.iter().flatten() {
        if let Some(part) = &part.config_map {
            let optional = part.optional.unwrap_or(false);
            let found = config_map(ctx, &part.name, optional).await?;
            out.payload.extend(select(
                "configmap",
                config_map_data(&found),
                part.items.as_deref(),
                mode,
                optional,
            )?);
        } else if let Some(part) = &part.secret {
            let optional = part.optional.unwrap_or(false);
            let found = secret(ctx, &part.name, optional).await?;
            out.payload.extend(select(
                "secret",
                secret_data(&found),
                part.items.as_deref(),
                mode,
                optional,
            )?);
        } else if let Some(part) = &part.downward_api {
            downward_files(ctx, part.items.as_deref().unwrap_or_default(), mode, &mut out.payload)?;
        } else if let Some(part) = &part.service_account_token {
            let (file, refresh_at) = token_file(ctx, part, mode).await?;
            out.payload.insert(part.path.clone(), file);
            out.refresh_at = Some(out.refresh_at.map_or(refresh_at, |at| at.min(refresh_at)));
        } else if let Some(part) = &part.cluster_trust_bundle {
            let bundle = match ctx.sources.trust_bundle(part).await? {
                Some(bundle) => bundle,
                None if part.optional.unwrap_or(false) => String::new(),
                None => {
                    return Err(VolumeError::NotFound {
                        kind: "clustertrustbundle",
                        name: part
                            .name
                            .clone()
                            .or_else(|| part.signer_name.clone())
                            .unwrap_or_default(),
                    });
                }
            };
            out.payload.insert(
                part.path.clone(),
                FileProjection {
                    data: bundle.into_bytes(),
                    mode: mode_bits(ctx.identity.token_mode(mode)),
                    uid: ctx.identity.fs_user,
                },
            );
        } else {
            return Err(VolumeError::Unsupported("projected podCertificate".into()));
        }
    }
    Ok(out)
}

async fn token_file(
    ctx: &Context<'_>,
    part: &ServiceAccountTokenProjection,
    mode: i32,
) -> Result<(FileProjection, Timestamp), VolumeError> {
    let meta = &ctx.pod.metadata;
    let spec = TokenRequestSpec {
        audiences: part
            .audience
            .clone()
            .filter(|audience| !audience.is_empty())
            .map(|audience| vec![audience]),
        expiration_seconds: part.expiration_seconds.or(Some(3600)),
        bound_object_ref: Some(BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
        }),
    };
    let account = ctx
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref())
        .filter(|name| !name.is_empty())
        .unwrap_or("default");
    let (token, refresh_at) = ctx
        .tokens
        .get(ctx.sources, namespace(ctx.pod), account, &spec, ctx.now)
        .await?;
    let file = FileProjection {
        data: token.token.into_bytes(),
        mode: mode_bits(ctx.identity.token_mode(mode)),
        uid: ctx.identity.fs_user,
    };
    Ok((file, refresh_at))
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

async fn config_map(ctx: &Context<'_>, name: &str, optional: bool) -> Result<Arc<ConfigMap>, VolumeError> {
    match ctx.sources.config_map(namespace(ctx.pod), name).await? {
        Some(found) => Ok(found),
        None if optional => Ok(Arc::default()),
        None => Err(VolumeError::NotFound {
            kind: "configmap",
            name: name.to_owned(),
        }),
    }
}

async fn secret(ctx: &Context<'_>, name: &str, optional: bool) -> Result<Arc<Secret>, VolumeError> {
    match ctx.sources.secret(namespace(ctx.pod), name).await? {
        Some(found) => Ok(found),
        None if optional => Ok(Arc::default()),
        None => Err(VolumeError::NotFound {
            kind: "secret",
            name: name.to_owned(),
        }),
    }
}

fn config_map_data(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.0.as_slice()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Secret) -> BTreeMap<&str, &[u8]> {
    secret
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.0.as_slice()))
        .collect()
}

/// Takes all keys, or those `items` names at the paths it gives.
pub fn select(
    kind: &'static str,
    data: BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let file = |bytes: &[u8], mode: i32| FileProjection {
        data: bytes.to_vec(),
        mode: mode_bits(mode),
        uid: None,
    };
    let items = items.unwrap_or_default();
    if items.is_empty() {
        return Ok(data
            .into_iter()
            .map(|(key, bytes)| (key.to_owned(), file(bytes, default_mode)))
            .collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(bytes) => {
                let mode = item.mode.unwrap_or(default_mode);
                payload.insert(item.path.clone(), file(bytes, mode));
            }
            None if optional => {}
            None => {
                return Err(VolumeError::MissingKey {
                    kind: if kind == "configmap" { "config" } else { kind },
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(payload)
}

fn downward_files(
    ctx: &Context<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    payload: &mut Payload,
) -> Result<(), VolumeError> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            downward::metadata_field(ctx.pod, &field.field_path)
                .ok_or_else(|| VolumeError::Downward(format!("unsupported fieldPath: {}", field.field_path)))?
        } else if let Some(resource) = &item.resource_field_ref {
            downward::resource_field(ctx.pod, "", resource, ctx.allocatable)?
        } else {
            continue;
        };
        payload.insert(
            item.path.clone(),
            FileProjection {
                data: text.into_bytes(),
                mode: mode_bits(item.mode.unwrap_or(default_mode)),
                uid: None,
            },
        );
    }
    Ok(())
}

fn mode_bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o7777
}
