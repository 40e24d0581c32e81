//! [`Volumes`]: prepare, update, sub-paths, teardown and what is found on disk after a restart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};
use sampan_claims::claim_of;

use crate::claims::{self, Backing};
use crate::downward::Allocatable;
use crate::local::LocalVolumes;
use crate::plugins::{self, Medium};
use crate::render::{self, Identity, Rendered};
use crate::tokens::TokenCache;
use crate::{Sources, VolumeError, atomic, hostpath, mounts, ownership, subpath};

/// What the node knows that volumes show.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    pub allocatable: Allocatable,
}

/// A volume that containers can mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedVolume {
    pub host_path: PathBuf,
    /// Containers may never write to it, whatever their mount says.
    pub read_only: bool,
}

/// The outcome of [`Volumes::prepare`].
#[derive(Debug, Default)]
pub struct Prepared {
    pub volumes: BTreeMap<String, PreparedVolume>,
    /// The volumes that could not be made ready, each with its reason.
    pub failed: Vec<(String, VolumeError)>,
    /// When to call again although nothing has changed (tokens that run out).
    pub refresh_at: Option<Timestamp>,
}

/// What is left on disk of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOnDisk {
    pub uid: String,
    pub dir: PathBuf,
}

/// The API objects a pod's volumes read, for whoever watches them: (kind, name) in the pod's namespace.
pub fn referenced_objects(pod: &Pod) -> BTreeSet<(&'static str, String)> {
    let mut out = BTreeSet::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        if let Some(source) = &volume.config_map {
            out.insert(("ConfigMap", source.name.clone()));
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.clone()) {
            out.insert(("Secret", name));
        }
        let projected = volume.projected.iter();
        for part in projected.flat_map(|source| source.sources.iter().flatten()) {
            if let Some(source) = &part.config_map {
                out.insert(("ConfigMap", source.name.clone()));
            }
            if let Some(source) = &part.secret {
                out.insert(("Secret", source.name.clone()));
            }
        }
        if let Some(claim) = claim_of(pod, volume) {
            out.insert(("PersistentVolumeClaim", claim));
        }
    }
    out
}

/// The volumes of all pods on this node.
pub struct Volumes {
    root: PathBuf,
    sources: Arc<dyn Sources>,
    tokens: TokenCache,
    kept: LocalVolumes,
    /// Which kept volumes Pods use: pod uid → names. Found again by preparing, which every Pod is after a restart.
    in_use: Mutex<HashMap<String, BTreeSet<String>>>,
    /// What was last written: pod uid → volume → fingerprint of its content. A cache only; the disk decides.
    written: Mutex<HashMap<String, HashMap<String, u64>>>,
}

impl Volumes {
    /// Volumes below `root` (one directory per pod uid in `root/pods`).
    pub fn new(root: impl Into<PathBuf>, sources: Arc<dyn Sources>) -> Self {
        let root = root.into();
        Self {
            kept: LocalVolumes::new(root.join("local-volumes")),
            in_use: Mutex::default(),
            root,
            sources,
            tokens: TokenCache::default(),
            written: Mutex::default(),
        }
    }

    /// The same, with another place for local volumes.
    pub fn keeping(mut self, local: impl Into<PathBuf>) -> Self {
        self.kept = LocalVolumes::new(local);
        self
    }

    /// Removes what is kept for the local volume of this name, which the caller believes to be at `path`. Idempotent.
    pub async fn remove_local(&self, name: &str, path: &str) -> Result<(), VolumeError> {
        if self.kept.owned(name, path).is_none() {
            return Err(VolumeError::Invalid(format!(
                "{path:?} is not where this node keeps the local volume {name:?}"
            )));
        }
        let in_use = self.in_use().values().any(|names| names.contains(name));
        if in_use {
            return Err(VolumeError::InUse(name.to_owned()));
        }
        let (kept, name) = (self.kept.clone(), name.to_owned());
        blocking(move || kept.remove(&name)).await
    }

    async fn use_kept(&self, uid: &str, name: &str) -> Result<(), VolumeError> {
        // Noted first: what is noted is not removed.
        self.in_use().entry(uid.to_owned()).or_default().insert(name.to_owned());
        let (kept, name) = (self.kept.clone(), name.to_owned());
        blocking(move || kept.make(&name)).await
    }

    fn in_use(&self) -> std::sync::MutexGuard<'_, HashMap<String, BTreeSet<String>>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod's own directory: volumes, sub-path mounts, and whatever else the node keeps for it.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    fn volume_dir(&self, uid: &str, plugin: &str, volume: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes").join(plugin).join(volume)
    }

    /// Makes ready every volume some container mounts, and brings rendered ones up to date. Idempotent.
    /// The caller never runs two calls for one pod at a time.
    pub async fn prepare(&self, pod: &Pod, facts: &NodeFacts) -> Prepared {
        let mut out = Prepared::default();
        let Some(uid) = safe_uid(pod) else {
            let error = VolumeError::Invalid("the pod has no usable uid".into());
            out.failed.push((String::new(), error));
            return out;
        };
        let mounted = mounted_volumes(pod);
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            // Image volumes are the runtime's.
            if !mounted.contains(volume.name.as_str()) || volume.image.is_some() {
                continue;
            }
            match self.prepare_one(pod, uid, volume, facts).await {
                Ok((prepared, refresh_at)) => {
                    out.volumes.insert(volume.name.clone(), prepared);
                    out.refresh_at = match (out.refresh_at, refresh_at) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                }
                Err(error) => out.failed.push((volume.name.clone(), error)),
            }
        }
        out
    }

    /// The same as [`Volumes::prepare`]: an update is a preparation whose sources have changed.
    pub async fn update(&self, pod: &Pod, facts: &NodeFacts) -> Prepared {
        self.prepare(pod, facts).await
    }

    async fn prepare_one(
        &self,
        pod: &Pod,
        uid: &str,
        volume: &Volume,
        facts: &NodeFacts,
    ) -> Result<(PreparedVolume, Option<Timestamp>), VolumeError> {
        let identity = Identity::of(pod);
        let context = render::Context {
            pod,
            sources: &self.sources,
            tokens: &self.tokens,
            allocatable: &facts.allocatable,
            identity,
            now: Timestamp::now(),
        };
        if let Some(rendered) = render::render(volume, &context).await? {
            let refresh_at = rendered.refresh_at;
            let prepared = self.write_rendered(pod, uid, volume, rendered, identity).await?;
            return Ok((prepared, refresh_at));
        }
        let plain = |host_path: PathBuf, read_only| {
            let prepared = PreparedVolume { host_path, read_only };
            (prepared, None)
        };
        if volume.empty_dir.is_some() {
            let dir = self.volume_dir(uid, "kubernetes.io~empty-dir", &volume.name);
            let ready = self
                .pod_dir(uid)
                .join("plugins/kubernetes.io~empty-dir")
                .join(&volume.name)
                .join("ready");
            let medium = plugins::medium(pod, volume)?;
            let at = dir.clone();
            blocking(move || make_empty_dir(&at, &ready, &medium, identity.fs_group)).await?;
            return Ok(plain(dir, false));
        }
        if let Some(source) = &volume.host_path {
            let (path, kind) = (source.path.clone(), source.type_.clone().unwrap_or_default());
            let at = path.clone();
            blocking(move || hostpath::check(&at, &kind)).await?;
            return Ok(plain(path.into(), false));
        }
        if let Some(claim) = claim_of(pod, volume) {
            let read_only = volume
                .persistent_volume_claim
                .as_ref()
                .and_then(|source| source.read_only)
                .unwrap_or(false);
            let backing = claims::resolve(self.sources.as_ref(), &self.kept, pod, volume, &claim).await?;
            let path = match backing {
                Backing::HostPath { path, kind } => {
                    let at = path.clone();
                    blocking(move || hostpath::check(&at, &kind)).await?;
                    return Ok(plain(path.into(), read_only));
                }
                Backing::Local { path } => PathBuf::from(path),
                Backing::Kept { name, path } => {
                    self.use_kept(uid, &name).await?;
                    path
                }
            };
            let on_mismatch = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.security_context.as_ref())
                .and_then(|context| context.fs_group_change_policy.as_deref())
                == Some("OnRootMismatch");
            let fingerprint = 1;
            let done = self.written_is(uid, &volume.name, fingerprint);
            let at = path.clone();
            let group = identity.fs_group.filter(|_| !done);
            blocking(move || own_local(&at, group, read_only, on_mismatch)).await?;
            self.note_written(uid, &volume.name, fingerprint);
            return Ok(plain(path, read_only));
        }
        Err(plugins::unsupported(volume))
    }

    async fn write_rendered(
        &self,
        pod: &Pod,
        uid: &str,
        volume: &Volume,
        rendered: Rendered,
        identity: Identity,
    ) -> Result<PreparedVolume, VolumeError> {
        let plugin = plugins::plugin(volume).ok_or_else(|| plugins::unsupported(volume))?;
        let dir = self.volume_dir(uid, plugin, &volume.name);
        let prepared = PreparedVolume {
            host_path: dir.clone(),
            read_only: true,
        };
        let mut hasher = DefaultHasher::new();
        (&rendered.payload, identity.fs_group).hash(&mut hasher);
        let fingerprint = hasher.finish();
        if self.written_is(uid, &volume.name, fingerprint) {
            return Ok(prepared);
        }
        let medium = if volume.config_map.is_some() {
            Medium::Disk
        } else {
            Medium::Memory { size: None }
        };
        let (pod, name) = (pod.clone(), volume.name.clone());
        blocking(move || {
            plugins::make(&dir, &medium)?;
            plugins::make_nested_mount_points(&pod, &name, &dir)?;
            let own = |path: &Path| match identity.fs_group {
                Some(gid) => ownership::apply(path, gid, true),
                None => Ok(()),
            };
            atomic::write(&dir, &rendered.payload, &own)
        })
        .await?;
        self.note_written(uid, &volume.name, fingerprint);
        Ok(prepared)
    }

    /// The host path to mount for a `subPath` (already expanded) of a prepared volume.
    /// `index` is the position of the mount in the container, which keeps two mounts apart.
    pub async fn sub_path(
        &self,
        uid: &str,
        container: &str,
        index: usize,
        volume_name: &str,
        volume: &PreparedVolume,
        sub_path: &str,
    ) -> Result<PathBuf, VolumeError> {
        let target = self
            .pod_dir(uid)
            .join("volume-subpaths")
            .join(volume_name)
            .join(container)
            .join(index.to_string());
        let (path, sub_path) = (volume.host_path.clone(), sub_path.to_owned());
        blocking(move || subpath::bind(&path, &sub_path, &target)).await
    }

    /// How many bytes an emptyDir on disk holds, as the file system counts them.
    pub async fn empty_dir_usage(&self, uid: &str, volume: &str) -> Result<u64, VolumeError> {
        let dir = self.volume_dir(uid, "kubernetes.io~empty-dir", volume);
        blocking(move || disk_usage(&dir)).await
    }

    /// Removes everything of a pod: mounts first, then its directory. Idempotent.
    pub async fn teardown(&self, uid: &str) -> Result<(), VolumeError> {
        if !is_safe_name(uid) {
            return Err(VolumeError::Invalid(format!("{uid:?} is not a pod uid")));
        }
        let dir = self.pod_dir(uid);
        blocking(move || mounts::remove_tree(&dir)).await?;
        self.tokens.forget_pod(uid);
        self.in_use().remove(uid);
        self.lock().remove(uid);
        Ok(())
    }

    /// The pods that have something on disk, so that the caller can tear down those nobody knows any more.
    pub async fn reconstruct(&self) -> Result<Vec<PodOnDisk>, VolumeError> {
        let pods = self.root.join("pods");
        blocking(move || {
            let entries = match fs::read_dir(&pods) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(VolumeError::io("read directory", pods)(error)),
            };
            let mut out = Vec::new();
            for entry in entries {
                let entry = entry.map_err(VolumeError::io("read directory", &pods))?;
                if let Ok(uid) = entry.file_name().into_string() {
                    out.push(PodOnDisk { uid, dir: entry.path() });
                }
            }
            Ok(out)
        })
        .await
    }

    fn written_is(&self, uid: &str, volume: &str, fingerprint: u64) -> bool {
        let written = self.lock();
        written.get(uid).and_then(|pod| pod.get(volume)) == Some(&fingerprint)
    }

    fn note_written(&self, uid: &str, volume: &str, fingerprint: u64) {
        self.lock()
            .entry(uid.to_owned())
            .or_default()
            .insert(volume.to_owned(), fingerprint);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, HashMap<String, u64>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_empty_dir(dir: &Path, ready: &Path, medium: &Medium, fs_group: Option<u32>) -> Result<(), VolumeError> {
    // Ownership is given once; afterwards the directory is the containers' to arrange.
    let was_ready = ready.exists() && dir.exists();
    if was_ready && *medium == Medium::Disk {
        return Ok(());
    }
    if was_ready && mounts::at(dir)?.is_some() {
        return Ok(());
    }
    plugins::make(dir, medium)?;
    if let Some(gid) = fs_group {
        ownership::apply(dir, gid, false)?;
    }
    if let Some(parent) = ready.parent() {
        fs::create_dir_all(parent).map_err(VolumeError::io("create directory", parent))?;
    }
    fs::write(ready, b"").map_err(VolumeError::io("write file", ready))
}

fn own_local(path: &Path, fs_group: Option<u32>, read_only: bool, on_mismatch: bool) -> Result<(), VolumeError> {
    let meta = fs::metadata(path).map_err(VolumeError::io("inspect local volume", path))?;
    if !meta.is_dir() {
        return Err(VolumeError::Invalid(format!(
            "local volume path {} is not a directory",
            path.display()
        )));
    }
    match fs_group {
        Some(gid) if !(on_mismatch && ownership::root_matches(path, gid, read_only)) => {
            ownership::apply(path, gid, read_only)
        }
        _ => Ok(()),
    }
}

/// Bytes in use below `dir`. What containers remove meanwhile does not count.
fn disk_usage(dir: &Path) -> Result<u64, VolumeError> {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0u64;
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(VolumeError::io("read directory", dir)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(VolumeError::io("read directory", &dir))?;
            let Ok(meta) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            total = total.saturating_add(meta.blocks().saturating_mul(512));
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(total)
}

fn mounted_volumes(pod: &Pod) -> BTreeSet<&str> {
    let Some(spec) = &pod.spec else {
        return BTreeSet::new();
    };
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .flat_map(|container| container.volume_mounts.iter().flatten());
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .flat_map(|container| container.volume_mounts.iter().flatten());
    containers.chain(ephemeral).map(|mount| mount.name.as_str()).collect()
}

fn is_safe_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn safe_uid(pod: &Pod) -> Option<&str> {
    pod.metadata.uid.as_deref().filter(|uid| is_safe_name(uid))
}

/// Runs file-system work off the asynchronous threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(VolumeError::Invalid(format!(
            "the volume work was interrupted: {error}"
        ))),
    }
}
