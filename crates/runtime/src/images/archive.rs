//! Importing image archives: OCI layouts and `docker save`, as a tar (plain, gzip, zstd) or an
//! unpacked directory.
//!
//! Invariants: an archive's files are only ever written below a directory of our own, under names
//! made of plain components; every document and layer is checked against the digest that names it
//! before it counts; an archive with one bad image imports none.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::layer::decompress;
use super::manifest::{self, ConfigFile, Descriptor, DockerEntry, Document};
use super::reference::{Reference, is_digest};
use super::store::{ImageStore, NewImage};
use super::{ImageError, Result, at, sha256};

/// Name of an image in an OCI layout: the whole name, when a tool wrote it.
const FULL_NAME: &str = "io.containerd.image.name";
/// Its name or only its tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Documents larger than this are no documents.
const MAX_DOCUMENT: u64 = 8 << 20;

/// An image found in an archive, ready to unpack.
struct Found {
    tags: Vec<String>,
    digest: Option<String>,
    config: Vec<u8>,
    layers: Vec<PathBuf>,
}

/// Imports everything in `source`. `name` replaces the names the archive gives, if it holds one image.
pub(super) fn import(store: &ImageStore, source: &Path, name: Option<&Reference>) -> Result<Vec<String>> {
    let metadata = fs::metadata(source).map_err(at(source))?;
    if metadata.is_dir() {
        return import_dir(store, source, name);
    }
    let scratch = store.scratch()?;
    extract(source, scratch.path())?;
    import_dir(store, scratch.path(), name)
}

fn import_dir(store: &ImageStore, dir: &Path, name: Option<&Reference>) -> Result<Vec<String>> {
    let mut images = if dir.join("manifest.json").is_file() {
        docker_images(dir)?
    } else if dir.join("index.json").is_file() {
        oci_images(dir)?
    } else {
        return Err(ImageError::Invalid(
            "this is no image archive: it has neither index.json nor manifest.json".into(),
        ));
    };
    if let Some(name) = name {
        match images.as_mut_slice() {
            [only] => only.tags = name.tagged().into_iter().collect(),
            _ => {
                return Err(ImageError::Invalid(format!(
                    "a name can be given to one image only, and the archive holds {}",
                    images.len()
                )));
            }
        }
    }
    let mut ready = Vec::new();
    for image in images {
        let config: ConfigFile = manifest::parse(&image.config, "the image's configuration")?;
        let chain = config.chain_ids()?;
        if chain.len() != image.layers.len() {
            return Err(ImageError::Invalid(format!(
                "the configuration describes {} layers, the manifest {}",
                chain.len(),
                image.layers.len()
            )));
        }
        let diff_ids = &config.rootfs.diff_ids;
        for (index, blob) in image.layers.iter().enumerate() {
            store.unpack(index, &chain, diff_ids, || File::open(blob).map_err(at(blob)))?;
        }
        ready.push(NewImage {
            id: sha256(&image.config),
            tags: image.tags,
            digests: Vec::new(),
            manifest_digest: image.digest,
            layers: chain,
            config: config.image_config(),
        });
    }
    store.add(ready)
}

fn docker_images(dir: &Path) -> Result<Vec<Found>> {
    let list = read(dir, "manifest.json")?;
    let entries: Vec<DockerEntry> = manifest::parse(&list, "manifest.json")?;
    if entries.is_empty() {
        return Err(ImageError::Invalid("the archive holds no image".into()));
    }
    let found = entries.into_iter().map(|entry| {
        let tags = entry.repo_tags.iter().map(|tag| {
            let reference: Reference = tag.parse()?;
            Ok(reference.to_string())
        });
        let config = read(dir, &entry.config)?;
        // The file is named by its digest, in one of the two layouts.
        let named = Path::new(&entry.config).file_stem().and_then(|s| s.to_str());
        let digest = format!("sha256:{}", named.unwrap_or_default());
        if is_digest(&digest) && sha256(&config) != digest {
            return Err(ImageError::Digest {
                expected: digest,
                actual: sha256(&config),
            });
        }
        Ok(Found {
            tags: tags.collect::<Result<_>>()?,
            digest: None,
            config,
            layers: entry.layers.iter().map(|l| inside(dir, l)).collect::<Result<_>>()?,
        })
    });
    found.collect()
}

fn oci_images(dir: &Path) -> Result<Vec<Found>> {
    let index: Document = manifest::parse(&read(dir, "index.json")?, "index.json")?;
    let mut found = Vec::new();
    for descriptor in index.manifests.unwrap_or_default() {
        // One entry per name; what is for another platform only is left out.
        let other = descriptor
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os != "linux" || platform.architecture != manifest::architecture());
        if !other {
            found.push(oci_image(dir, &descriptor)?);
        }
    }
    if found.is_empty() {
        return Err(ImageError::Invalid(format!(
            "the archive holds no image for linux/{}",
            manifest::architecture()
        )));
    }
    Ok(found)
}

fn oci_image(dir: &Path, named: &Descriptor) -> Result<Found> {
    let digest = named.checked_digest()?.to_owned();
    let mut document: Document = manifest::parse(&blob(dir, named)?, "the image's manifest")?;
    for _ in 0..4 {
        let Some(manifests) = &document.manifests else { break };
        let chosen = manifest::select(manifests)?;
        document = manifest::parse(&blob(dir, chosen)?, "the image's manifest")?;
    }
    let config = document
        .config
        .ok_or_else(|| ImageError::Invalid("the manifest has no configuration".into()))?;
    let layers = document
        .layers
        .iter()
        .map(|layer| blob_path(dir, layer.checked_digest()?));
    let mut tags = Vec::new();
    let names = [FULL_NAME, REF_NAME].map(|key| named.annotations.get(key));
    // A bare tag names no image: only a name with a repository counts.
    if let Some(name) = names.into_iter().flatten().find(|name| name.contains(['/', ':'])) {
        let reference: Reference = name.parse()?;
        tags.extend(reference.tagged());
    }
    Ok(Found {
        tags,
        digest: Some(digest),
        config: blob(dir, &config)?,
        layers: layers.collect::<Result<_>>()?,
    })
}

fn blob_path(dir: &Path, digest: &str) -> Result<PathBuf> {
    let (kind, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
    inside(dir, &format!("blobs/{kind}/{hex}"))
}

/// A document by descriptor, verified.
fn blob(dir: &Path, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let digest = descriptor.checked_digest()?;
    let path = blob_path(dir, digest)?;
    let bytes = read_small(&path)?;
    let actual = sha256(&bytes);
    if actual != digest {
        return Err(ImageError::Digest {
            expected: digest.into(),
            actual,
        });
    }
    Ok(bytes)
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    read_small(&inside(dir, name)?)
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_err(at(path))?.len();
    if size > MAX_DOCUMENT {
        return Err(ImageError::Invalid(format!(
            "{} is too large for a document: {size} bytes",
            path.display()
        )));
    }
    fs::read(path).map_err(at(path))
}

/// A file of the archive by the name a document gives; symbolic links (old docker archives link equal
/// layers) are followed if they stay inside.
fn inside(dir: &Path, name: &str) -> Result<PathBuf> {
    let escape = || ImageError::Invalid(format!("the archive names a file outside: {name:?}"));
    let plain = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || name.is_empty() {
        return Err(escape());
    }
    let dir = dir.canonicalize().map_err(at(dir))?;
    let path = dir.join(name);
    let real = path.canonicalize().map_err(at(&path))?;
    if real.starts_with(&dir) {
        Ok(real)
    } else {
        Err(escape())
    }
}

/// Unpacks the archive's regular files and links; an archive is flat, so nothing else is of interest.
fn extract(source: &Path, target: &Path) -> Result<()> {
    let file = File::open(source).map_err(at(source))?;
    let damaged = |error: io::Error| ImageError::Invalid(format!("the archive is damaged: {error}"));
    let mut archive = tar::Archive::new(decompress(file).map_err(damaged)?);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path().map_err(damaged)?.into_owned();
        let mut relative = PathBuf::new();
        for component in name.components() {
            match component {
                Component::Normal(part) => relative.push(part),
                Component::CurDir => {}
                _ => {
                    return Err(ImageError::Invalid(format!(
                        "the archive is refused: entry {name:?} leads outside"
                    )));
                }
            }
        }
        let path = target.join(&relative);
        let is_link = entry.header().entry_type().is_symlink();
        if !is_link && !entry.header().entry_type().is_file() {
            continue;
        }
        if let Some(parent) = path.parent() {
            // Links are only made below plain directories, so no parent can be a link: checked.
            fs::create_dir_all(parent).map_err(at(parent))?;
            let real = parent.canonicalize().map_err(at(parent))?;
            if real != parent {
                return Err(ImageError::Invalid(format!(
                    "the archive is refused: entry {name:?} goes through a link"
                )));
            }
        }
        if is_link {
            let link = entry.link_name().map_err(damaged)?.unwrap_or_default().into_owned();
            std::os::unix::fs::symlink(link, &path).map_err(at(&path))?;
        } else {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(at(&path))?;
            io::copy(&mut entry, &mut file).map_err(at(&path))?;
        }
    }
    Ok(())
}
