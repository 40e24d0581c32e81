//! The documents of an image: index, manifest, configuration, and the list in a docker archive.
//!
//! Only the fields that are used. Invariant: what is read here was checked against its digest before.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::reference::is_digest;
use super::{ImageError, Result};
use crate::types::ImageConfig;

/// Media types a registry is asked for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A pointer to content.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The digest, if it is one we can name a file by and verify.
    pub fn checked_digest(&self) -> Result<&str> {
        if is_digest(&self.digest) {
            return Ok(&self.digest);
        }
        Err(ImageError::Invalid(format!(
            "digest {:?} is not sha256 with 64 hexadecimal digits",
            self.digest
        )))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    pub variant: String,
}

/// An index or a manifest: told apart by what they hold, since registries and archives disagree on
/// whether `mediaType` is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Document {
    pub schema_version: u32,
    pub media_type: String,
    pub manifests: Option<Vec<Descriptor>>,
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
}

/// An image's configuration as stored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConfigFile {
    pub architecture: String,
    pub os: String,
    #[serde(deserialize_with = "or_default")]
    pub config: RunConfig,
    pub rootfs: Rootfs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rootfs {
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
}

/// One image of a docker archive's `manifest.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DockerEntry {
    pub config: String,
    #[serde(deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub layers: Vec<String>,
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a JSON document named `what` in errors.
pub fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::Invalid(format!("{what} cannot be read: {error}")))
}

/// This machine in the words of image indexes.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The manifest for this machine among those of an index.
pub fn select(manifests: &[Descriptor]) -> Result<&Descriptor> {
    let wanted = architecture();
    let fits = |d: &&Descriptor| {
        d.platform
            .as_ref()
            .is_some_and(|p| p.os == "linux" && p.architecture == wanted)
    };
    if let Some(found) = manifests.iter().find(fits) {
        return Ok(found);
    }
    // Archives of one image often name no platform.
    let anonymous = |d: &&Descriptor| d.platform.is_none();
    if let Some(found) = manifests.iter().find(anonymous) {
        return Ok(found);
    }
    let offered: Vec<String> = manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    Err(ImageError::Invalid(format!(
        "no image for linux/{wanted}; the index offers {}",
        offered.join(", ")
    )))
}

impl ConfigFile {
    /// What containers inherit.
    pub fn image_config(&self) -> ImageConfig {
        let run = &self.config;
        ImageConfig {
            entrypoint: run.entrypoint.clone(),
            cmd: run.cmd.clone(),
            env: run.env.clone(),
            working_dir: run.working_dir.clone(),
            user: run.user.clone(),
            stop_signal: run.stop_signal.clone(),
            volumes: run.volumes.keys().cloned().collect(),
            exposed_ports: run.exposed_ports.keys().cloned().collect(),
            labels: run.labels.clone(),
            architecture: self.architecture.clone(),
            os: self.os.clone(),
        }
    }

    /// The chain ids of the layers, lowest first: a layer's name together with all below it.
    pub fn chain_ids(&self) -> Result<Vec<String>> {
        let mut chain: Vec<String> = Vec::new();
        for diff_id in &self.rootfs.diff_ids {
            if !is_digest(diff_id) {
                return Err(ImageError::Invalid(format!("{diff_id:?} is not a layer digest")));
            }
            let id = match chain.last() {
                None => diff_id.clone(),
                Some(below) => super::sha256(format!("{below} {diff_id}").as_bytes()),
            };
            chain.push(id);
        }
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_for_this_machine_is_chosen_and_others_are_named_when_absent() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[
              {{"digest":"a","platform":{{"os":"linux","architecture":"s390x"}}}},
              {{"digest":"b","platform":{{"os":"linux","architecture":"{}"}}}}]}}"#,
            architecture()
        );
        let index: Document = parse(index.as_bytes(), "index").unwrap();
        let mut manifests = index.manifests.unwrap();
        assert_eq!(select(&manifests).unwrap().digest, "b");
        manifests.pop();
        let error = select(&manifests).unwrap_err().to_string();
        assert!(error.contains("offers linux/s390x"), "{error}");
    }

    #[test]
    fn nulls_in_configurations_are_absence() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["x"],
            "Entrypoint":null,"Volumes":{"/data":{}}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config: ConfigFile = parse(text.as_bytes(), "config").unwrap();
        assert_eq!(config.image_config().cmd, ["x"]);
        assert_eq!(config.image_config().volumes, ["/data"]);
        assert!(config.chain_ids().unwrap().is_empty());
    }
}
