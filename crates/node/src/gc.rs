//! Housekeeping of disks: image garbage collection and log rotation.
//!
//! The choice of what to remove is pure. What happens on a disk gives no events, so sizes are looked at now and
//! then; everything else here follows from that look.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use sampan_client::EventType;
use sampan_runtime::{ContainerFilter, ContainerState, ErrorKind, Image, RuntimeError};

use crate::machine::Disk;
use crate::worker::Context;
use crate::{logs, machine};

/// When an image was seen first and used last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub first: Timestamp,
    pub used: Timestamp,
}

/// Bytes to free so that the file system comes down to `low` percent; `None` when it is not above `high`.
pub fn to_free(disk: &Disk, high: u8, low: u8) -> Option<u64> {
    let usable = disk.usable();
    if usable == 0 || u128::from(disk.used) * 100 / u128::from(usable) < u128::from(high) {
        return None;
    }
    let allowed = usable / 100 * u64::from(low);
    Some(disk.used.saturating_sub(allowed))
}

/// The images to remove, in order: unused ones, the longest unused first, until enough is freed.
pub fn choose<'a>(
    images: &'a [Image],
    seen: &HashMap<String, Seen>,
    in_use: &HashSet<String>,
    min_age: Duration,
    now: Timestamp,
    bytes: u64,
) -> Vec<&'a Image> {
    let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let mut unused: Vec<(&Image, Seen)> = images
        .iter()
        .filter(|image| !image.pinned && !in_use.contains(&image.id))
        .filter_map(|image| Some((image, *seen.get(&image.id)?)))
        .filter(|(_, seen)| age(seen.first) >= min_age)
        .collect();
    unused.sort_by_key(|(image, seen)| (seen.used, seen.first, image.id.clone()));
    let mut freed = 0u64;
    unused
        .into_iter()
        .take_while(|(image, _)| {
            let more = freed < bytes;
            freed = freed.saturating_add(image.size);
            more
        })
        .map(|(image, _)| image)
        .collect()
}

/// What housekeeping remembers.
#[derive(Default)]
pub struct ImageCollector {
    seen: Mutex<HashMap<String, Seen>>,
}

impl ImageCollector {
    /// Notes which images are there and in use; with `bytes`, removes unused ones until that much is freed.
    /// Returns how much was.
    pub async fn collect(&self, cx: &Context, bytes: u64) -> Result<u64, RuntimeError> {
        let now = Timestamp::now();
        let images = cx.runtime.list_images().await?;
        let containers = cx.runtime.list_containers(&ContainerFilter::default()).await?;
        let mut in_use: HashSet<String> = HashSet::new();
        for container in &containers {
            in_use.insert(container.image_id.clone());
            for mount in &container.mounts {
                let Some(name) = &mount.image else { continue };
                let named = |image: &&Image| image.id == *name || image.repo_tags.contains(name);
                in_use.extend(images.iter().find(named).map(|image| image.id.clone()));
            }
        }
        let seen = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.retain(|id, _| images.iter().any(|image| image.id == *id));
            for image in &images {
                let entry = seen.entry(image.id.clone()).or_insert(Seen {
                    first: now,
                    used: Timestamp::UNIX_EPOCH,
                });
                if in_use.contains(&image.id) {
                    entry.used = now;
                }
            }
            seen.clone()
        };
        let mut freed = 0u64;
        let age = cx.config.housekeeping.image_min_age;
        for image in choose(&images, &seen, &in_use, age, now, bytes) {
            match cx.runtime.remove_image(&image.id).await {
                Ok(()) => {
                    freed = freed.saturating_add(image.size);
                    tracing::info!(image = image.id, size = image.size, "removed an unused image");
                }
                // Somebody began to use it.
                Err(error) if error.kind == ErrorKind::FailedPrecondition => {}
                Err(error) => return Err(error),
            }
        }
        Ok(freed)
    }
}

/// Frees image space above the high threshold.
pub async fn collect_images(
    cx: &Context,
    collector: &ImageCollector,
    node: &k8s_openapi::api::core::v1::ObjectReference,
) {
    let housekeeping = &cx.config.housekeeping;
    let wanted = match cx.runtime.image_fs_info().await {
        Ok(fs) => machine::disk(&fs.path)
            .and_then(|disk| to_free(&disk, housekeeping.image_gc_high, housekeeping.image_gc_low)),
        Err(error) => {
            tracing::warn!(%error, "the image file system cannot be looked at");
            return;
        }
    };
    match collector.collect(cx, wanted.unwrap_or(0)).await {
        Ok(freed) if wanted.is_some_and(|wanted| freed < wanted) => {
            let wanted = wanted.unwrap_or(0);
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
            );
            cx.recorder
                .event_about(node.clone(), EventType::Warning, "FreeDiskSpaceFailed", message);
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "images could not be collected"),
    }
}

/// Rotates the logs of running containers that have grown too large.
pub async fn rotate_logs(cx: &Context) {
    let filter = ContainerFilter {
        state: Some(ContainerState::Running),
        ..ContainerFilter::default()
    };
    let Ok(running) = cx.runtime.list_containers(&filter).await else {
        return;
    };
    let (max, files) = (
        cx.config.housekeeping.log_max_bytes,
        cx.config.housekeeping.log_max_files,
    );
    let paths: Vec<_> = running
        .into_iter()
        .filter(|record| !record.log_path.as_os_str().is_empty())
        .map(|record| (record.id, record.log_path))
        .collect();
    let looked = tokio::task::spawn_blocking(move || {
        let rotated = paths.into_iter().map(|(id, path)| {
            let rotated = logs::rotate(&path, max, files, Timestamp::now());
            (id, rotated)
        });
        rotated.collect::<Vec<_>>()
    })
    .await
    .unwrap_or_default();
    for (id, rotated) in looked {
        match rotated {
            Ok(false) => {}
            Ok(true) => {
                if let Err(error) = cx.runtime.reopen_container_log(&id).await {
                    tracing::warn!(container = id, %error, "a rotated log could not be opened again");
                }
            }
            Err(error) => tracing::warn!(container = id, %error, "a log could not be rotated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let disk = |used, available| Disk {
            total: 10_000,
            used,
            available,
            ..Disk::default()
        };
        assert_eq!(to_free(&disk(800, 200), 85, 80), None);
        assert_eq!(to_free(&disk(900, 100), 85, 80), Some(100));
        assert_eq!(to_free(&Disk::default(), 85, 80), None);
    }

    #[test]
    fn the_longest_unused_go_first() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let image = |id: &str| Image {
            id: id.into(),
            size: 10,
            pinned: id == "pinned",
            ..Image::default()
        };
        let images = ["new", "used", "old", "older", "pinned"].map(image);
        let seen: HashMap<String, Seen> = [
            ("new", 990, 0),
            ("used", 0, 1000),
            ("old", 0, 500),
            ("older", 0, 100),
            ("pinned", 0, 0),
        ]
        .map(|(id, first, used)| {
            let seen = Seen {
                first: at(first),
                used: at(used),
            };
            (id.to_owned(), seen)
        })
        .into();
        let in_use = HashSet::from(["used".to_owned()]);
        let ids = |bytes| -> Vec<String> {
            choose(&images, &seen, &in_use, Duration::from_secs(120), at(1000), bytes)
                .iter()
                .map(|image| image.id.clone())
                .collect()
        };
        assert_eq!(ids(0), Vec::<String>::new());
        assert_eq!(ids(10), ["older"]);
        assert_eq!(ids(1000), ["older", "old"]);
    }
}
