//! Which kind a volume is, where it lives below the pod's directory, and how its directory comes to be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::{VolumeError, downward, mounts};

/// The plugin directory name upstream uses, so that tools that look for it find it.
pub(crate) fn plugin(volume: &Volume) -> Option<&'static str> {
    Some(if volume.empty_dir.is_some() {
        "kubernetes.io~empty-dir"
    } else if volume.config_map.is_some() {
        "kubernetes.io~configmap"
    } else if volume.secret.is_some() {
        "kubernetes.io~secret"
    } else if volume.downward_api.is_some() {
        "kubernetes.io~downward-api"
    } else if volume.projected.is_some() {
        "kubernetes.io~projected"
    } else {
        return None;
    })
}

/// The name of a kind that has no plugin here.
pub(crate) fn unsupported(volume: &Volume) -> VolumeError {
    let kind = serde_json::to_value(volume)
        .ok()
        .and_then(|value| {
            let object = value.as_object()?;
            object.keys().find(|key| key.as_str() != "name").cloned()
        })
        .unwrap_or_else(|| "unknown".into());
    VolumeError::Unsupported(kind)
}

/// How an emptyDir is backed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    Disk,
    Memory { size: Option<i64> },
    HugePages { page_size: i64 },
}

/// Reads the medium of an emptyDir; memory is bounded by the smallest of its own limit and the pod's.
pub(crate) fn medium(pod: &Pod, volume: &Volume) -> Result<Medium, VolumeError> {
    let Some(source) = &volume.empty_dir else {
        return Ok(Medium::Disk);
    };
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(Medium::Disk),
        "Memory" => {
            let own = source.size_limit.as_ref().and_then(downward::units);
            let bounds = own.into_iter().chain(pod_memory_limit(pod));
            Ok(Medium::Memory {
                size: bounds.filter(|size| *size > 0).min(),
            })
        }
        huge => {
            let wanted = match huge.strip_prefix("HugePages") {
                Some("") => None,
                Some(suffix) if suffix.starts_with('-') => {
                    Some(page_size(&suffix[1..]).ok_or_else(|| unknown_medium(huge))?)
                }
                _ => return Err(unknown_medium(huge)),
            };
            Ok(Medium::HugePages {
                page_size: requested_page_size(pod, huge, wanted)?,
            })
        }
    }
}

fn unknown_medium(medium: &str) -> VolumeError {
    VolumeError::Invalid(format!("unknown storage medium {medium:?}"))
}

fn page_size(text: &str) -> Option<i64> {
    downward::units(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(
        text.to_owned(),
    ))
}

fn requested_page_size(pod: &Pod, medium: &str, wanted: Option<i64>) -> Result<i64, VolumeError> {
    let spec = pod.spec.as_ref();
    let containers = spec
        .into_iter()
        .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
        .filter_map(|container| container.resources.as_ref());
    let pod_level = spec.and_then(|spec| spec.resources.as_ref());
    let mut sizes: Vec<i64> = containers
        .chain(pod_level)
        .filter_map(|resources| resources.requests.as_ref())
        .flat_map(|requests| requests.keys())
        .filter_map(|name| page_size(name.strip_prefix("hugepages-")?))
        .filter(|size| wanted.is_none_or(|wanted| wanted == *size))
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    match sizes.as_slice() {
        [size] => Ok(*size),
        [] => Err(VolumeError::Invalid(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        ))),
        _ => Err(VolumeError::Invalid(format!(
            "medium: {medium} can't be used if container requests multiple huge page sizes"
        ))),
    }
}

fn pod_memory_limit(pod: &Pod) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let limit = |resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>| {
        downward::units(resources?.limits.as_ref()?.get("memory")?)
    };
    if let Some(whole) = limit(spec.resources.as_ref()) {
        return Some(whole);
    }
    // Bounded only when every container is.
    spec.containers
        .iter()
        .map(|container| limit(container.resources.as_ref()))
        .try_fold(0i64, |sum, limit| Some(sum.saturating_add(limit?)))
}

/// Creates an emptyDir (also the ground under the rendered kinds). Idempotent.
pub(crate) fn make(dir: &Path, medium: &Medium) -> Result<(), VolumeError> {
    fs::create_dir_all(dir).map_err(VolumeError::io("create directory", dir))?;
    let open_to_all = |dir: &Path| {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(VolumeError::io("change mode of", dir))
    };
    let (kind, options) = match medium {
        Medium::Disk => return open_to_all(dir),
        Medium::Memory { size } => {
            let size = size.map(|size| format!("size={size}"));
            ("tmpfs", size.unwrap_or_default())
        }
        Medium::HugePages { page_size } => ("hugetlbfs", format!("pagesize={page_size}")),
    };
    if mounts::at(dir)?.is_some_and(|mount| mount.kind == kind) {
        return Ok(());
    }
    open_to_all(dir)?;
    // A fresh tmpfs is world-writable with the sticky bit, which is what programs expect of it.
    mounts::mount_new(kind, dir, &options)
}

/// Directories inside `dir` that other volumes of the same containers are mounted on: a read-only volume must have
/// them beforehand.
pub(crate) fn make_nested_mount_points(pod: &Pod, volume: &str, dir: &Path) -> Result<(), VolumeError> {
    for relative in nested_mount_points(pod, volume) {
        crate::atomic::check_path(&relative)?;
        let path = dir.join(&relative);
        fs::create_dir_all(&path).map_err(VolumeError::io("create directory", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .map_err(VolumeError::io("change mode of", &path))?;
    }
    Ok(())
}

pub(crate) fn nested_mount_points(pod: &Pod, volume: &str) -> Vec<String> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        let plain = |path: &Option<String>| path.as_deref().unwrap_or_default().is_empty();
        for outer in mounts
            .iter()
            .filter(|mount| mount.name == volume && plain(&mount.sub_path) && plain(&mount.sub_path_expr))
        {
            for inner in mounts.iter().filter(|mount| mount.name != volume) {
                let Ok(relative) = Path::new(&inner.mount_path).strip_prefix(&outer.mount_path) else {
                    continue;
                };
                // Only the outermost: what lies deeper belongs to that other volume.
                let covered = mounts.iter().any(|other| {
                    let other_path = Path::new(&other.mount_path);
                    other.name != volume
                        && other.mount_path != inner.mount_path
                        && Path::new(&inner.mount_path).starts_with(other_path)
                        && other_path.starts_with(&outer.mount_path)
                });
                if let (false, Some(text)) = (covered || relative.as_os_str().is_empty(), relative.to_str()) {
                    out.push(text.to_owned());
                }
            }
        }
    }
    out.sort();
    out.dedup();
    out
}
