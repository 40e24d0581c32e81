//! Images for containers: policy, credentials, back-off, and how many are pulled at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_client::EventType;
use sampan_runtime::{Image, RegistryAuth, RuntimeError};
use sampan_volumes::Sources;
use tokio::sync::Semaphore;

use super::Worker;
use crate::pod::backoff::Backoff;
use crate::pod::status::Waiting;
use crate::pod::{self, credentials};

/// Pulls of the whole node.
pub struct Images {
    slots: Semaphore,
    backoff: Mutex<Backoff>,
    /// The last failure of a back-off key, shown while it waits.
    failures: Mutex<std::collections::HashMap<String, String>>,
}

impl Images {
    /// At most `at_once` pulls run at a time.
    pub fn new(at_once: usize) -> Self {
        Self {
            slots: Semaphore::new(at_once),
            backoff: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    fn backoff(&self) -> std::sync::MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a Pod that is gone.
    pub fn forget_pod(&self, uid: &str) {
        let prefix = format!("{uid}_");
        self.backoff().forget(|key| key.starts_with(&prefix));
        self.failures().retain(|key, _| !key.starts_with(&prefix));
    }

    fn forget(&self, key: &str) {
        self.backoff().reset(key);
        self.failures().remove(key);
    }
}

/// The policy in force: what the manifest says, or by the tag.
pub fn pull_policy<'a>(policy: Option<&'a str>, image: &str) -> &'a str {
    match policy {
        Some(policy) if !policy.is_empty() => policy,
        _ if image.contains('@') => "IfNotPresent",
        _ => {
            let last = image.rsplit('/').next().unwrap_or(image);
            match last.split_once(':') {
                Some((_, tag)) if tag != "latest" => "IfNotPresent",
                _ => "Always",
            }
        }
    }
}

/// Whether the text can be an image's name at all.
pub fn is_image_name(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default();
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    };
    let path = match repository.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        _ => repository,
    };
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
            && !part.starts_with(['.', '_', '-'])
            && !part.ends_with(['.', '_', '-'])
    };
    let tag_good = tag.is_none_or(|tag| {
        !tag.is_empty()
            && tag.len() <= 128
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    });
    path.split('/').all(part) && tag_good
}

impl Worker {
    /// Makes the container's image present. The error is what the container then waits for.
    pub(super) async fn ensure_image(&self, pod: &Arc<Pod>, container: &Container) -> Result<Image, Waiting> {
        let reference = container.image.clone().unwrap_or_default();
        let policy = container.image_pull_policy.as_deref();
        self.ensure_reference(pod, &container.name, &reference, policy).await
    }

    /// The same for any image of the Pod (volumes have images too).
    pub(super) async fn ensure_reference(
        &self,
        pod: &Arc<Pod>,
        container: &str,
        reference: &str,
        policy: Option<&str>,
    ) -> Result<Image, Waiting> {
        if !is_image_name(reference) {
            let message = format!(
                "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": invalid reference format"
            );
            self.container_event(container, EventType::Warning, "InspectFailed", message.clone());
            self.failed(container, "InvalidImageName");
            return Err(Self::waiting("InvalidImageName", message));
        }
        let policy = pull_policy(policy, reference);
        let present = self.cx.runtime.image_status(reference).await.map_err(|error| {
            let message = format!("Failed to inspect image \"{reference}\": {error}");
            self.container_event(container, EventType::Warning, "Failed", message.clone());
            Self::waiting("ImageInspectError", message)
        })?;
        match (present, policy) {
            (Some(image), "IfNotPresent" | "Never") => {
                self.container_event(
                    container,
                    EventType::Normal,
                    "Pulled",
                    format!("Container image \"{reference}\" already present on machine"),
                );
                Ok(image)
            }
            (None, "Never") => {
                let message = format!("Container image \"{reference}\" is not present with pull policy of Never");
                self.container_event(container, EventType::Warning, "ErrImageNeverPull", message.clone());
                self.failed(container, "ErrImageNeverPull");
                self.wake_in(Duration::from_secs(60));
                Err(Self::waiting("ErrImageNeverPull", message))
            }
            _ => self.pull(pod, container, reference).await,
        }
    }

    fn failed(&self, container: &str, what: &str) {
        self.container_event(container, EventType::Warning, "Failed", format!("Error: {what}"));
    }

    async fn pull(&self, pod: &Arc<Pod>, container: &str, reference: &str) -> Result<Image, Waiting> {
        let images = &self.cx.images;
        let key = format!("{}_{reference}", self.uid);
        let wait = images.backoff().wait_since_update(&key, Timestamp::now());
        if let Some((_, left)) = wait {
            let mut message = format!("Back-off pulling image \"{reference}\"");
            self.container_event(container, EventType::Normal, "BackOff", message.clone());
            self.failed(container, "ImagePullBackOff");
            if let Some(failure) = images.failures().get(&key) {
                message = format!("{message}: {failure}");
            }
            self.wake_in(Duration::try_from(left).unwrap_or_default() + Duration::from_millis(50));
            return Err(Self::waiting("ImagePullBackOff", message));
        }
        self.container_event(
            container,
            EventType::Normal,
            "Pulling",
            format!("Pulling image \"{reference}\""),
        );
        let asked = Instant::now();
        let pulled = self
            .stopping
            .until(async {
                let slot = images.slots.acquire().await;
                let began = Instant::now();
                let pulled = self.pull_with_credentials(pod, reference).await;
                drop(slot);
                (pulled, began.elapsed())
            })
            .await;
        let Some((pulled, took)) = pulled else {
            return Err(Self::waiting("ContainerCreating", ""));
        };
        let found = match pulled {
            Ok(id) => match self.cx.runtime.image_status(&id).await {
                Ok(Some(image)) => Ok(image),
                Ok(None) => Err(RuntimeError::not_found("image", reference)),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match found {
            Ok(image) => {
                images.forget(&key);
                self.container_event(
                    container,
                    EventType::Normal,
                    "Pulled",
                    format!(
                        "Successfully pulled image \"{reference}\" in {}ms ({}ms including waiting). Image size: {} bytes.",
                        took.as_millis(),
                        asked.elapsed().as_millis(),
                        image.size
                    ),
                );
                Ok(image)
            }
            Err(error) => {
                let (reason, message) = ("ErrImagePull", error.to_string());
                self.container_event(
                    container,
                    EventType::Warning,
                    "Failed",
                    format!("Failed to pull image \"{reference}\": {error}"),
                );
                self.failed(container, reason);
                let now = Timestamp::now();
                let wait = {
                    let mut backoff = images.backoff();
                    backoff.next(&key, now);
                    backoff.wait_since_update(&key, now)
                };
                images.failures().insert(key, format!("{reason}: {message}"));
                // Soon once more, to say that it waits now.
                self.wake_in(
                    Duration::from_secs(1).min(
                        wait.and_then(|(_, left)| Duration::try_from(left).ok())
                            .unwrap_or(Duration::from_secs(1)),
                    ),
                );
                Err(Self::waiting(reason, message))
            }
        }
    }

    async fn pull_with_credentials(&self, pod: &Pod, reference: &str) -> Result<String, RuntimeError> {
        let credentials = self.credentials(pod, reference).await;
        let mut refused = None;
        for auth in &credentials {
            match self.cx.runtime.pull_image(reference, Some(auth), None).await {
                Ok(id) => return Ok(id),
                Err(error) => refused = Some(error),
            }
        }
        match (self.cx.runtime.pull_image(reference, None, None).await, refused) {
            (Ok(id), _) => Ok(id),
            // What the credentials met says more than the anonymous refusal.
            (Err(_), Some(error)) | (Err(error), None) => Err(error),
        }
    }

    async fn credentials(&self, pod: &Pod, reference: &str) -> Vec<RegistryAuth> {
        let mut secrets = Vec::new();
        for name in pod::spec(pod).image_pull_secrets.iter().flatten() {
            match self.cx.sources.secret(pod::namespace(pod), &name.name).await {
                Ok(Some(secret)) => secrets.push(secret),
                Ok(None) | Err(_) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        name.name
                    );
                    self.event(EventType::Warning, "FailedToRetrieveImagePullSecret", message);
                }
            }
        }
        credentials::for_image(reference, secrets.iter().map(|secret| &**secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_by_tag() {
        for (policy, image, expected) in [
            (None, "nginx", "Always"),
            (None, "nginx:latest", "Always"),
            (None, "nginx:1", "IfNotPresent"),
            (None, "localhost:5000/nginx", "Always"),
            (None, "nginx@sha256:00", "IfNotPresent"),
            (Some("Never"), "nginx", "Never"),
            (Some(""), "nginx:1", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(policy, image), expected, "{image}");
        }
    }

    #[test]
    fn image_names() {
        for (image, good) in [
            ("nginx", true),
            ("docker.io/library/nginx:1.27-alpine", true),
            ("localhost:5000/a/b_c@sha256:00", true),
            ("", false),
            ("NGINX", false),
            ("a//b", false),
            ("a:", false),
            ("a b", false),
            ("-a", false),
        ] {
            assert_eq!(is_image_name(image), good, "{image:?}");
        }
    }
}
