//! Unpacking one layer into a directory that overlayfs can use as a lower layer.
//!
//! A layer is a tar of changes. Its whiteouts become what overlayfs calls whiteouts (a character
//! device 0:0) and opaque directories (an extended attribute).
//!
//! Invariants:
//! - nothing outside the target directory is ever touched: paths are walked one component at a time
//!   with `O_NOFOLLOW` from a directory descriptor, `..` is refused, and a symbolic link on the way
//!   is resolved inside the image, as if it were the root;
//! - the parents of this layer are consulted (read-only) for what the tar leaves out: the owner and
//!   mode of a directory it does not mention, a symbolic link it goes through, the target of a hard
//!   link. Without that, unpacking layers apart from each other would change their meaning;
//! - `trusted.overlay.*` attributes in a tar are dropped: they could point overlayfs elsewhere.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use aws_lc_rs::digest;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const MAX_LINKS: usize = 40;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive is damaged or not a tar.
    #[error("the layer is damaged: {0}")]
    Damaged(io::Error),
    /// An entry tries to leave the image.
    #[error("the layer is refused: entry {0:?} leads outside the image")]
    Escape(PathBuf),
    /// An entry makes no sense.
    #[error("the layer is refused: entry {path:?}: {why}")]
    Entry {
        /// The entry.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The content is not what its digest says.
    #[error("the layer is damaged: its content has digest {actual}, not {expected}")]
    Digest {
        /// What the image promises.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The disk said no.
    #[error("unpack {path:?}: {source}")]
    Disk {
        /// The entry.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    /// Bytes of its files.
    pub size: u64,
    /// Entries made.
    pub inodes: u64,
}

/// A reader that hashes what passes.
pub struct Hashing<R> {
    inner: R,
    context: digest::Context,
}

impl<R: Read> Hashing<R> {
    /// Hashes what is read from `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            context: digest::Context::new(&digest::SHA256),
        }
    }
    /// `sha256:…` of what has passed.
    pub fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.context.finish()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(read) = buffer.get(..count) {
            self.context.update(read);
        }
        Ok(count)
    }
}

/// Opens a possibly compressed stream by its first bytes: gzip, zstd, or as it is.
pub fn decompress(file: File) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(128 << 10, file);
    let start = io::BufRead::fill_buf(&mut reader)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(reader)?))
    } else {
        Ok(Box::new(reader))
    }
}

/// Unpacks the tar in `blob` into the empty directory `target`. `parents` are the unpacked layers
/// below it, topmost first. Blocking.
pub fn unpack(blob: File, target: &Path, parents: &[PathBuf]) -> Result<Unpacked, LayerError> {
    let content = decompress(blob).map_err(LayerError::Damaged)?;
    let mut hashing = Hashing::new(content);
    let mut unpacker = Unpacker::new(target, parents)?;
    {
        let mut archive = tar::Archive::new(&mut hashing);
        let entries = archive.entries().map_err(LayerError::Damaged)?;
        for entry in entries {
            unpacker.entry(entry.map_err(LayerError::Damaged)?)?;
        }
    }
    // The digest covers what follows the end marker too.
    io::copy(&mut hashing, &mut io::sink()).map_err(LayerError::Damaged)?;
    unpacker.finish()?;
    Ok(Unpacked {
        diff_id: hashing.digest(),
        size: unpacker.size,
        inodes: unpacker.inodes,
    })
}

struct Unpacker {
    root: OwnedFd,
    parents: Vec<OwnedFd>,
    /// The directory of the previous entry: tars list a directory's files one after the other.
    last_dir: Option<(PathBuf, PathBuf)>,
    /// Directory times, set last because filling a directory changes them.
    dir_times: Vec<(PathBuf, TimeSpec)>,
    size: u64,
    inodes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dir,
    Link,
    Whiteout,
    Other,
}

fn kind_of(stat: &FileStat) -> Kind {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFLNK => Kind::Link,
        libc::S_IFCHR if stat.st_rdev == 0 => Kind::Whiteout,
        _ => Kind::Other,
    }
}

/// Opens `path` below `root` without following any symbolic link.
fn open_beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    sampan_paths::open_in(root, path, flags | OFlag::O_NOFOLLOW, resolve)
}

fn disk(path: &Path) -> impl FnOnce(Errno) -> LayerError {
    let path = path.to_path_buf();
    move |errno| LayerError::Disk {
        path,
        source: errno.into(),
    }
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (
        path.parent().unwrap_or(Path::new("")),
        path.file_name().unwrap_or(OsStr::new(".")),
    )
}

/// The address of `name` in the directory `dir` for calls that only take paths.
fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)
}

struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: TimeSpec,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Unpacker {
    fn new(target: &Path, parents: &[PathBuf]) -> Result<Self, LayerError> {
        let open = |path: &PathBuf| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            nix::fcntl::open(path, flags, Mode::empty()).map_err(disk(path))
        };
        Ok(Self {
            root: open(&target.to_path_buf())?,
            parents: parents.iter().map(open).collect::<Result<_, _>>()?,
            last_dir: None,
            dir_times: Vec::new(),
            size: 0,
            inodes: 0,
        })
    }

    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), LayerError> {
        let kind = entry.header().entry_type();
        if matches!(kind, tar::EntryType::XGlobalHeader) {
            return Ok(());
        }
        let raw = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        let path = clean(&raw)?;
        let (raw_dir, name) = split(&path);
        if path.as_os_str().is_empty() {
            // The root itself.
            let attributes = attributes(&mut entry, &raw)?;
            let root = self.root.try_clone().map_err(|source| LayerError::Disk {
                path: raw.clone(),
                source,
            })?;
            apply(root.as_fd(), OsStr::new("."), &attributes, false).map_err(disk(&raw))?;
            self.dir_times.push((PathBuf::new(), attributes.mtime));
            return Ok(());
        }
        let dir = self.real_dir(raw_dir, &raw)?;
        let fd = self.make_dir(&dir)?;
        let real = dir.join(name);
        let bytes = name.as_bytes();
        if bytes == OPAQUE {
            return set_opaque(&fd).map_err(disk(&raw));
        }
        if bytes.starts_with(WHITEOUT_META) {
            return Ok(()); // bookkeeping of an older union file system
        }
        if let Some(hidden) = bytes.strip_prefix(WHITEOUT) {
            return self.whiteout(&fd, &dir, OsStr::from_bytes(hidden), &raw);
        }
        let attributes = attributes(&mut entry, &raw)?;
        self.inodes += 1;
        match kind {
            tar::EntryType::Directory => self.directory(&fd, &real, &attributes),
            tar::EntryType::Link => self.hard_link(&entry, &fd, &real, &raw),
            _ => {
                self.clear(&fd, &real)?;
                self.leaf(kind, &mut entry, &fd, name, &attributes, &raw)
            }
        }
    }

    fn leaf<R: Read>(
        &mut self,
        kind: tar::EntryType,
        entry: &mut tar::Entry<'_, R>,
        dir: &OwnedFd,
        name: &OsStr,
        attributes: &Attributes,
        raw: &Path,
    ) -> Result<(), LayerError> {
        use tar::EntryType as T;
        match kind {
            T::Regular | T::Continuous | T::GNUSparse => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
                let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = openat(dir, name, flags, Mode::from_bits_truncate(0o600));
                let mut file = File::from(fd.map_err(disk(raw))?);
                self.size += copy(entry, &mut file, raw)?;
            }
            T::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = OsString::from_vec(target);
                symlinkat(target.as_os_str(), dir, name).map_err(disk(raw))?;
                self.last_dir = None; // it may change what a path means
            }
            T::Char | T::Block => {
                let header = entry.header();
                let part = |n: io::Result<Option<u32>>| n.map(Option::unwrap_or_default).map_err(LayerError::Damaged);
                let major = part(header.device_major())?;
                let device = makedev(major.into(), part(header.device_minor())?.into());
                let flag = if kind == T::Char {
                    SFlag::S_IFCHR
                } else {
                    SFlag::S_IFBLK
                };
                mknodat(dir, name, flag, Mode::from_bits_truncate(0o600), device).map_err(disk(raw))?;
            }
            T::Fifo => {
                mknodat(dir, name, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).map_err(disk(raw))?;
            }
            other => {
                return Err(LayerError::Entry {
                    path: raw.into(),
                    why: format!("entries of type {other:?} are not known"),
                });
            }
        }
        apply(dir.as_fd(), name, attributes, kind == T::Symlink).map_err(disk(raw))
    }

    fn directory(&mut self, dir: &OwnedFd, real: &Path, attributes: &Attributes) -> Result<(), LayerError> {
        let (_, name) = split(real);
        let existing = self.kind_here(real);
        if existing != Some(Kind::Dir) {
            self.clear(dir, real)?;
            mkdirat(dir, name, Mode::from_bits_truncate(0o700)).map_err(disk(real))?;
            if existing == Some(Kind::Whiteout) {
                // Removed and made anew: what lies below must not shine through.
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
                let made = open_beneath(&self.root, real, flags).map_err(disk(real))?;
                set_opaque(&made).map_err(disk(real))?;
            }
        }
        apply(dir.as_fd(), name, attributes, false).map_err(disk(real))?;
        self.dir_times.push((real.into(), attributes.mtime));
        Ok(())
    }

    fn hard_link<R: Read>(
        &mut self,
        entry: &tar::Entry<'_, R>,
        dir: &OwnedFd,
        real: &Path,
        raw: &Path,
    ) -> Result<(), LayerError> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        let target = clean(&PathBuf::from(OsString::from_vec(target)))?;
        let (target_dir, target_name) = split(&target);
        let target_dir = self.real_dir(target_dir, raw)?;
        let target = target_dir.join(target_name);
        if target == real {
            return Ok(());
        }
        if self.kind_here(&target).is_none_or(|kind| kind == Kind::Whiteout) {
            self.copy_up(&target, raw)?;
        }
        let from = open_beneath(&self.root, &target_dir, OFlag::O_PATH | OFlag::O_DIRECTORY);
        let from = from.map_err(disk(raw))?;
        self.clear(dir, real)?;
        let (_, name) = split(real);
        linkat(&from, target_name, dir, name, AtFlags::empty()).map_err(disk(raw))
    }

    /// Copies a file of a lower layer into this one, so that it can be linked to.
    fn copy_up(&mut self, path: &Path, raw: &Path) -> Result<(), LayerError> {
        let missing = || LayerError::Entry {
            path: raw.into(),
            why: format!("the target of the hard link, {path:?}, does not exist"),
        };
        let mut source = None;
        for parent in &self.parents {
            match open_beneath(parent, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
                Ok(fd) => {
                    source = Some(fd);
                    break;
                }
                Err(Errno::ENOENT) => {}
                Err(_) => return Err(missing()),
            }
        }
        let source = source.ok_or_else(missing)?;
        let stat = fstat(&source).map_err(disk(raw))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(missing());
        }
        let (dir, name) = split(path);
        let fd = self.make_dir(dir)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let made = openat(&fd, name, flags, Mode::from_bits_truncate(0o600));
        let mut made = File::from(made.map_err(disk(raw))?);
        let mut source = File::from(source);
        self.size += copy(&mut source, &mut made, raw)?;
        let from = proc_path(source.as_fd(), OsStr::new(""));
        copy_xattrs(&from, &proc_path(fd.as_fd(), name));
        apply(fd.as_fd(), name, &attributes_of(&stat), false).map_err(disk(raw))
    }

    fn whiteout(&mut self, dir_fd: &OwnedFd, dir: &Path, hidden: &OsStr, raw: &Path) -> Result<(), LayerError> {
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(LayerError::Escape(raw.into()));
        }
        let real = dir.join(hidden);
        match self.kind_here(&real) {
            None => {
                self.last_dir = None;
                let mode = Mode::empty();
                mknodat(dir_fd, hidden, SFlag::S_IFCHR, mode, 0).map_err(disk(raw))
            }
            // A whiteout speaks of lower layers only, wherever it stands in the tar.
            Some(Kind::Dir) => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
                let made = open_beneath(&self.root, &real, flags).map_err(disk(raw))?;
                set_opaque(&made).map_err(disk(raw))
            }
            Some(_) => Ok(()),
        }
    }

    /// Removes what this layer has at `real`.
    fn clear(&mut self, dir: &OwnedFd, real: &Path) -> Result<(), LayerError> {
        let (_, name) = split(real);
        match self.kind_here(real) {
            None => Ok(()),
            Some(Kind::Dir) => {
                self.last_dir = None;
                self.dir_times.retain(|(path, _)| !path.starts_with(real));
                let path = proc_path(dir.as_fd(), name);
                std::fs::remove_dir_all(&path).map_err(|source| LayerError::Disk {
                    path: real.into(),
                    source,
                })
            }
            Some(_) => {
                self.last_dir = None;
                unlinkat(dir, name, UnlinkatFlags::NoRemoveDir).map_err(disk(real))
            }
        }
    }

    fn kind_here(&self, path: &Path) -> Option<Kind> {
        let fd = open_beneath(&self.root, path, OFlag::O_PATH).ok()?;
        fstat(&fd).ok().map(|stat| kind_of(&stat))
    }

    /// What the lower layers show at `path` (without symbolic links on the way), as overlayfs would.
    fn below(&self, path: &Path) -> Option<(OwnedFd, FileStat)> {
        for parent in &self.parents {
            match open_beneath(parent, path, OFlag::O_PATH) {
                Ok(fd) => {
                    let stat = fstat(&fd).ok()?;
                    return (kind_of(&stat) != Kind::Whiteout).then_some((fd, stat));
                }
                Err(Errno::ENOENT) => {
                    if hides_lower(parent, path) {
                        return None;
                    }
                }
                Err(_) => return None, // something that is no directory stands in the way
            }
        }
        None
    }

    /// The directory that `dir` means in the image so far, symbolic links resolved inside it.
    fn real_dir(&mut self, dir: &Path, raw: &Path) -> Result<PathBuf, LayerError> {
        if let Some((path, real)) = &self.last_dir
            && path == dir
        {
            return Ok(real.clone());
        }
        let mut real = PathBuf::new();
        let mut rest: Vec<OsString> = dir.iter().rev().map(OsStr::to_owned).collect();
        let mut links = 0;
        while let Some(component) = rest.pop() {
            if component == ".." {
                real.pop(); // of a symbolic link; the root's parent is the root
                continue;
            }
            let next = real.join(&component);
            let link = match open_beneath(&self.root, &next, OFlag::O_PATH) {
                Ok(fd) => {
                    let kind = kind_of(&fstat(&fd).map_err(disk(raw))?);
                    (kind == Kind::Link).then_some(fd)
                }
                Err(Errno::ENOENT) => {
                    let found = self.below(&next);
                    found.and_then(|(fd, stat)| (kind_of(&stat) == Kind::Link).then_some(fd))
                }
                Err(errno) => return Err(disk(raw)(errno)),
            };
            let Some(link) = link else {
                real = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(LayerError::Entry {
                    path: raw.into(),
                    why: "too many symbolic links".into(),
                });
            }
            let target = PathBuf::from(readlinkat(&link, "").map_err(disk(raw))?);
            if target.is_absolute() {
                real = PathBuf::new();
            }
            for part in target.components().rev() {
                match part {
                    Component::Normal(part) => rest.push(part.to_owned()),
                    Component::ParentDir => rest.push("..".into()),
                    _ => {}
                }
            }
        }
        self.last_dir = Some((dir.into(), real.clone()));
        Ok(real)
    }

    /// Makes sure this layer has the directory `real`, which holds no symbolic links. What the tar
    /// did not describe looks as in the layers below.
    fn make_dir(&mut self, real: &Path) -> Result<OwnedFd, LayerError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        match open_beneath(&self.root, real, flags) {
            Ok(fd) => return Ok(fd),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => return Err(disk(real)(errno)),
        }
        let (parent, name) = split(real);
        let parent = self.make_dir(parent)?;
        let was = self.kind_here(real);
        self.clear(&parent, real)?;
        mkdirat(&parent, name, Mode::from_bits_truncate(0o755)).map_err(disk(real))?;
        self.inodes += 1;
        let fd = open_beneath(&self.root, real, flags).map_err(disk(real))?;
        if was == Some(Kind::Whiteout) {
            set_opaque(&fd).map_err(disk(real))?;
        } else if let Some((below, stat)) = self.below(real)
            && kind_of(&stat) == Kind::Dir
        {
            let here = proc_path(parent.as_fd(), name);
            copy_xattrs(&proc_path(below.as_fd(), OsStr::new("")), &here);
            apply(parent.as_fd(), name, &attributes_of(&stat), false).map_err(disk(real))?;
        }
        Ok(fd)
    }

    fn finish(&mut self) -> Result<(), LayerError> {
        for (path, time) in self.dir_times.iter().rev() {
            let dir = open_beneath(&self.root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
            let dir = dir.map_err(disk(path))?;
            nix::sys::stat::futimens(&dir, time, time).map_err(disk(path))?;
        }
        Ok(())
    }
}

/// Whether `parent` hides, at or above `path`, what lies below it.
fn hides_lower(parent: &OwnedFd, path: &Path) -> bool {
    path.ancestors().skip(1).any(
        |ancestor| match open_beneath(parent, ancestor, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(fd) => {
                let is_opaque = xattr::get_deref(proc_path(fd.as_fd(), OsStr::new("")), OPAQUE_XATTR);
                matches!(is_opaque, Ok(Some(value)) if value == b"y")
            }
            Err(Errno::ENOENT) => false,
            Err(_) => true,
        },
    )
}

/// The path of an entry, relative to the image's root.
fn clean(raw: &Path) -> Result<PathBuf, LayerError> {
    let mut path = PathBuf::new();
    for component in raw.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(LayerError::Escape(raw.into()));
            }
        }
    }
    Ok(path)
}

fn copy(from: &mut impl Read, to: &mut File, raw: &Path) -> Result<u64, LayerError> {
    let mut buffer = vec![0; 64 << 10];
    let mut size = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(LayerError::Damaged(error)),
        };
        let read = buffer.get(..count).unwrap_or_default();
        to.write_all(read).map_err(|source| LayerError::Disk {
            path: raw.into(),
            source,
        })?;
        size += count as u64;
    }
}

fn set_opaque(dir: &OwnedFd) -> nix::Result<()> {
    let path = proc_path(dir.as_fd(), OsStr::new(""));
    xattr::set_deref(path, OPAQUE_XATTR, b"y").map_err(errno)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Copies extended attributes; those the file system does not take are left out, as when unpacking.
fn copy_xattrs(from: &Path, to: &Path) {
    let Ok(names) = xattr::list_deref(from) else {
        return;
    };
    for name in names {
        if is_overlay(&name) {
            continue;
        }
        if let Ok(Some(value)) = xattr::get_deref(from, &name)
            && let Err(error) = xattr::set(to, &name, &value)
        {
            tracing::debug!(?to, ?name, %error, "extended attribute left out");
        }
    }
}

fn is_overlay(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn attributes_of(stat: &FileStat) -> Attributes {
    Attributes {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode & 0o7777,
        mtime: TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        xattrs: Vec::new(),
    }
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>, raw: &Path) -> Result<Attributes, LayerError> {
    let header = entry.header();
    let number = |n: io::Result<u64>| n.map_err(LayerError::Damaged);
    let mut uid = number(header.uid())?;
    let mut gid = number(header.gid())?;
    let mode = header.mode().map_err(LayerError::Damaged)? & 0o7777;
    let mut mtime = TimeSpec::new(number(header.mtime())?.try_into().unwrap_or(0), 0);
    let mut xattrs = Vec::new();
    if let Some(extensions) = entry.pax_extensions().map_err(LayerError::Damaged)? {
        for extension in extensions {
            let extension = extension.map_err(LayerError::Damaged)?;
            let key = extension.key_bytes();
            let value = extension.value_bytes();
            match key {
                b"uid" => uid = decimal(value).unwrap_or(uid),
                b"gid" => gid = decimal(value).unwrap_or(gid),
                b"mtime" => mtime = pax_time(value).unwrap_or(mtime),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        let name = OsStr::from_bytes(name).to_owned();
                        if !is_overlay(&name) {
                            xattrs.push((name, value.to_vec()));
                        }
                    }
                }
            }
        }
    }
    let id = |value: u64| {
        u32::try_from(value).map_err(|_| LayerError::Entry {
            path: raw.into(),
            why: format!("{value} is no user or group id"),
        })
    };
    Ok(Attributes {
        uid: id(uid)?,
        gid: id(gid)?,
        mode,
        mtime,
        xattrs,
    })
}

fn decimal(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn pax_time(value: &[u8]) -> Option<TimeSpec> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(TimeSpec::new(seconds.parse().ok()?, nanos.parse().ok()?))
}

/// Owner, mode, attributes, time; in the order in which the kernel does not undo one by the next.
fn apply(dir: BorrowedFd<'_>, name: &OsStr, a: &Attributes, is_link: bool) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(a.uid), Gid::from_raw(a.gid));
    fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if !is_link {
        // The name was made by us and is no symbolic link, so following changes nothing.
        let mode = Mode::from_bits_truncate(a.mode);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let path = proc_path(dir, name);
    for (key, value) in &a.xattrs {
        match xattr::set(&path, key, value).map_err(errno) {
            Err(Errno::ENOTSUP | Errno::EPERM) => {
                tracing::debug!(?path, ?key, "extended attribute left out");
            }
            other => other?,
        }
    }
    utimensat(dir, name, &a.mtime, &a.mtime, UtimensatFlags::NoFollowSymlink)
}

#[cfg(test)]
mod tests;
