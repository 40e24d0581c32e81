//! The image store on disk.
//!
//! ```text
//! images.json            the index
//! lock                   held while the index changes
//! layers/<20 hex>/       layer.json and diff/, the unpacked layer
//! tmp/                   work in progress
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::layer::{self, LayerError};
use super::reference::Reference;
use super::{ImageError, Result, archive, at};
use crate::disk::write_atomic;
use crate::types::{FilesystemUsage, Image, ImageConfig};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    image: Image,
    /// Chain ids, lowest first.
    layers: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LayerFile {
    chain_id: String,
    diff_id: String,
    size: u64,
    inodes: u64,
}

#[derive(Default)]
struct Cached {
    /// Inode and change time of the file the records were read from.
    seen: Option<(u64, i64, i64)>,
    records: Arc<Vec<Record>>,
}

/// An image whose layers are unpacked.
pub(super) struct NewImage {
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    /// Digest of the manifest or index in an archive; becomes a digest name of each tag.
    pub manifest_digest: Option<String>,
    pub layers: Vec<String>,
    pub config: ImageConfig,
}

/// Images on disk. Cheap to share behind an `Arc`; safe to open in several processes.
pub struct ImageStore {
    root: PathBuf,
    cached: Mutex<Cached>,
    unpacking: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// Work in progress: removed when dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "scratch directory stays");
        }
    }
}

impl ImageStore {
    /// Opens the store in `root`, which is created if absent.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        for dir in [root.join("layers"), root.join("tmp")] {
            fs::create_dir_all(&dir).map_err(at(&dir))?;
        }
        let store = Self {
            root: root.canonicalize().map_err(at(&root))?,
            cached: Mutex::default(),
            unpacking: Mutex::default(),
        };
        store.records()?;
        Ok(store)
    }

    /// Removes what interrupted work left behind. Only for the one server on this store, at its start.
    pub fn clean(&self) -> Result<()> {
        let _lock = self.lock()?;
        let tmp = self.root.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(at(&tmp))? {
            let path = entry.map_err(at(&tmp))?.path();
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(at(&path))?;
        }
        self.prune(&self.records()?)
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("images.json")
    }

    fn lock(&self) -> Result<Flock<File>> {
        let path = self.root.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        Flock::lock(file.map_err(at(&path))?, FlockArg::LockExclusive).map_err(|(_, errno)| at(&path)(errno.into()))
    }

    fn records(&self) -> Result<Arc<Vec<Record>>> {
        let path = self.index_path();
        let seen = match fs::metadata(&path) {
            Ok(m) => (m.ino(), m.mtime(), m.mtime_nsec()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Arc::default());
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.seen != Some(seen) {
            let bytes = fs::read(&path).map_err(at(&path))?;
            cached.records = Arc::new(super::manifest::parse(&bytes, "the image index")?);
            cached.seen = Some(seen);
        }
        Ok(cached.records.clone())
    }

    /// Changes the index under the lock.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Record>) -> Result<T>) -> Result<T> {
        let _lock = self.lock()?;
        let mut records = self.records()?.as_ref().clone();
        let result = change(&mut records)?;
        // Layers first, then the index that speaks of them.
        let dir = File::open(&self.root).map_err(at(&self.root))?;
        nix::unistd::syncfs(&dir).map_err(|errno| at(&self.root)(errno.into()))?;
        let path = self.index_path();
        let bytes = serde_json::to_vec_pretty(&records)
            .map_err(|error| ImageError::Invalid(format!("write the image index: {error}")))?;
        write_atomic(&path, &bytes, true).map_err(at(&path))?;
        self.prune(&records)?;
        Ok(result)
    }

    /// Removes layers no image has. Under the lock. Layers just unpacked for an image that is not in
    /// the index yet are protected by their age.
    fn prune(&self, records: &[Record]) -> Result<()> {
        let used: BTreeSet<PathBuf> = records
            .iter()
            .flat_map(|record| &record.layers)
            .map(|chain| self.layer_dir(chain))
            .collect();
        let layers = self.root.join("layers");
        for entry in fs::read_dir(&layers).map_err(at(&layers))? {
            let entry = entry.map_err(at(&layers))?;
            let path = entry.path();
            let fresh = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() < 3600));
            if used.contains(&path) || (fresh && !path.join("unused").exists()) {
                continue;
            }
            // Out of sight first, so that a half removed layer is never taken for a whole one.
            let grave = self.scratch()?;
            fs::rename(&path, grave.path().join("layer")).map_err(at(&path))?;
        }
        Ok(())
    }

    /// A new empty directory for work in progress.
    pub(super) fn scratch(&self) -> Result<Scratch> {
        let path = self.root.join("tmp").join(format!("{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).map_err(at(&path))?;
        Ok(Scratch(path))
    }

    /// Where a registry keeps the download of `digest`, to resume it.
    pub(super) fn download_path(&self, digest: &str) -> PathBuf {
        let name = digest.replace(':', "-");
        self.root.join("tmp").join(format!("download-{name}"))
    }

    fn layer_dir(&self, chain_id: &str) -> PathBuf {
        let hex = chain_id.strip_prefix("sha256:").unwrap_or(chain_id);
        self.root.join("layers").join(hex.get(..20).unwrap_or(hex))
    }

    fn layer_file(&self, chain_id: &str) -> Option<LayerFile> {
        let bytes = fs::read(self.layer_dir(chain_id).join("layer.json")).ok()?;
        let file: LayerFile = serde_json::from_slice(&bytes).ok()?;
        (file.chain_id == chain_id).then_some(file)
    }

    /// Whether the layer is unpacked.
    pub(super) fn has_layer(&self, chain_id: &str) -> bool {
        self.layer_file(chain_id).is_some()
    }

    /// Unpacks layer `index` of an image, unless it is there. The layers below must be.
    pub(super) fn unpack(
        &self,
        index: usize,
        chain: &[String],
        diff_ids: &[String],
        blob: impl FnOnce() -> Result<File>,
    ) -> Result<()> {
        let missing = || ImageError::Invalid(format!("the image has no layer {index}"));
        let chain_id = chain.get(index).ok_or_else(missing)?;
        let expected = diff_ids.get(index).ok_or_else(missing)?;
        // Two pulls that share a layer unpack it once.
        let one_at_a_time = {
            let mut unpacking = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
            unpacking.retain(|_, lock| Arc::strong_count(lock) > 1);
            unpacking.entry(chain_id.clone()).or_default().clone()
        };
        let _guard = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_layer(chain_id) {
            return Ok(());
        }
        let parents: Vec<PathBuf> = chain
            .iter()
            .take(index)
            .rev()
            .map(|below| self.layer_dir(below).join("diff"))
            .collect();
        let scratch = self.scratch()?;
        let made = scratch.path().join("layer");
        let diff = made.join("diff");
        fs::create_dir_all(&diff).map_err(at(&diff))?;
        let unpacked = layer::unpack(blob()?, &diff, &parents)?;
        if unpacked.diff_id != *expected {
            return Err(ImageError::Layer(LayerError::Digest {
                expected: expected.clone(),
                actual: unpacked.diff_id,
            }));
        }
        let file = LayerFile {
            chain_id: chain_id.clone(),
            diff_id: unpacked.diff_id,
            size: unpacked.size,
            inodes: unpacked.inodes,
        };
        let path = made.join("layer.json");
        let bytes =
            serde_json::to_vec(&file).map_err(|error| ImageError::Invalid(format!("describe a layer: {error}")))?;
        fs::write(&path, bytes).map_err(at(&path))?;
        let target = self.layer_dir(chain_id);
        match fs::rename(&made, &target) {
            Ok(()) => Ok(()),
            Err(_) if self.has_layer(chain_id) => Ok(()), // another process was faster
            Err(error) => Err(at(&target)(error)),
        }
    }

    /// Enters images whose layers are unpacked; takes their tags away from older images.
    pub(super) fn add(&self, images: Vec<NewImage>) -> Result<Vec<String>> {
        self.change(|records| {
            let mut ids = Vec::new();
            for new in images {
                let mut size = 0;
                for layer in &new.layers {
                    let file = self.layer_file(layer);
                    size += file.ok_or_else(|| ImageError::NotFound(layer.clone()))?.size;
                }
                let mut digests = new.digests;
                if let Some(digest) = &new.manifest_digest {
                    for tag in &new.tags {
                        let reference: Reference = tag.parse()?;
                        digests.push(format!("{}@{digest}", reference.name()));
                    }
                }
                for record in records.iter_mut() {
                    record.image.repo_tags.retain(|tag| !new.tags.contains(tag));
                }
                let position = records.iter().position(|record| record.image.id == new.id);
                match position.and_then(|position| records.get_mut(position)) {
                    Some(record) => {
                        record.image.repo_tags.extend(new.tags);
                        record.image.repo_digests.extend(digests);
                        record.image.repo_digests.sort();
                        record.image.repo_digests.dedup();
                    }
                    None => {
                        let user = new.config.user.split(':').next().unwrap_or_default();
                        let uid = user.parse().ok();
                        records.push(Record {
                            image: Image {
                                id: new.id.clone(),
                                repo_tags: new.tags,
                                repo_digests: digests,
                                size,
                                uid,
                                username: if uid.is_some() { String::new() } else { user.into() },
                                pinned: false,
                                config: new.config,
                            },
                            layers: new.layers,
                        });
                    }
                }
                ids.push(new.id);
            }
            Ok(ids)
        })
    }

    /// Imports the archive or OCI layout directory `source` (blocking). `name` replaces the names in
    /// it. Returns the ids.
    pub fn import(&self, source: &Path, name: Option<&str>) -> Result<Vec<String>> {
        let name: Option<Reference> = name.map(str::parse).transpose()?;
        archive::import(self, source, name.as_ref())
    }

    /// Every image.
    pub fn list(&self) -> Result<Vec<Image>> {
        Ok(self.records()?.iter().map(|record| record.image.clone()).collect())
    }

    fn find<'a>(records: &'a [Record], wanted: &str) -> Option<&'a Record> {
        let by_id = |id: &str| records.iter().find(|record| record.image.id == id);
        if let Some(found) = by_id(wanted) {
            return Some(found);
        }
        if let Ok(reference) = wanted.parse::<Reference>() {
            let found = match &reference.digest {
                Some(digest) => {
                    let name = format!("{}@{digest}", reference.name());
                    let named = |r: &&Record| r.image.repo_digests.contains(&name);
                    records.iter().find(named).or_else(|| by_id(digest))
                }
                None => {
                    let tag = reference.tagged().unwrap_or_default();
                    records.iter().find(|record| record.image.repo_tags.contains(&tag))
                }
            };
            if found.is_some() {
                return found;
            }
        }
        // The id without its algorithm, or a unique beginning of it.
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        let is_hex = hex.len() >= 12 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        let mut matches = records
            .iter()
            .filter(|record| record.image.id.get(7..).is_some_and(|id| id.starts_with(hex)));
        match (is_hex, matches.next(), matches.next()) {
            (true, Some(found), None) => Some(found),
            _ => None,
        }
    }

    /// The image `wanted` names: tag, digest, id or a unique beginning of the id.
    pub fn get(&self, wanted: &str) -> Result<Option<Image>> {
        Ok(Self::find(&self.records()?, wanted).map(|record| record.image.clone()))
    }

    /// The image's unpacked layers, topmost first as overlayfs wants them.
    pub fn layer_dirs(&self, image_id: &str) -> Result<Vec<PathBuf>> {
        let records = self.records()?;
        let found = Self::find(&records, image_id);
        let record = found.ok_or_else(|| ImageError::NotFound(image_id.into()))?;
        let dirs = record.layers.iter().rev();
        Ok(dirs.map(|chain| self.layer_dir(chain).join("diff")).collect())
    }

    /// Removes the image `wanted` names. A tag of an image with several tags only loses that tag.
    /// `user_of` names a container that uses an image id, if any.
    pub fn remove(&self, wanted: &str, user_of: impl FnOnce(&str) -> Option<String>) -> Result<()> {
        self.change(|records| {
            let found = Self::find(records, wanted);
            let Some(id) = found.map(|record| record.image.id.clone()) else {
                return Err(ImageError::NotFound(wanted.into()));
            };
            let tag = wanted.parse::<Reference>().ok().and_then(|r| r.tagged());
            for record in records.iter_mut().filter(|record| record.image.id == id) {
                let tags = &mut record.image.repo_tags;
                if tags.len() > 1
                    && let Some(tag) = &tag
                    && tags.contains(tag)
                {
                    tags.retain(|t| t != tag);
                    return Ok(());
                }
            }
            if let Some(by) = user_of(&id) {
                return Err(ImageError::InUse {
                    image: wanted.into(),
                    by,
                });
            }
            let gone = records.iter().find(|record| record.image.id == id);
            for chain in gone.map(|record| record.layers.clone()).unwrap_or_default() {
                let mark = self.layer_dir(&chain).join("unused");
                File::create(&mark).map_err(at(&mark))?;
            }
            records.retain(|record| record.image.id != id);
            for chain in records.iter().flat_map(|record| &record.layers) {
                let mark = self.layer_dir(chain).join("unused");
                if mark.exists() {
                    fs::remove_file(&mark).map_err(at(&mark))?;
                }
            }
            Ok(())
        })
    }

    /// What images occupy.
    pub fn usage(&self) -> Result<FilesystemUsage> {
        let mut usage = crate::disk::filesystem(&self.root).map_err(at(&self.root))?;
        let records = self.records()?;
        let layers: BTreeSet<&String> = records.iter().flat_map(|record| &record.layers).collect();
        for layer in layers {
            if let Some(file) = self.layer_file(layer) {
                usage.used_bytes += file.size;
                usage.inodes_used += file.inodes;
            }
        }
        Ok(usage)
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
