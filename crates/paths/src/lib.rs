//! Opening paths that somebody else chose: an image layer, a container, the author of a Pod.
//!
//! The kernel resolves them (`openat2`), never this process: a check of the name followed by an `open` leaves a moment
//! in which a component can be exchanged for a symbolic link.
//!
//! Invariant: the answer does not depend on what the rest of the machine is doing. For a path with `..` in it, its own
//! or that of a symbolic link such as Debian's `/var/run`, the kernel gives up with `EAGAIN` when any file anywhere
//! was renamed, or anything mounted, during the walk, because it can then not prove that the walk stayed inside
//! (openat2(2)); such a walk is done again.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Walks before giving up. Even on a machine that does nothing but rename, one in a few succeeds.
const WALKS: usize = 1000;

/// Opens `path` relative to the directory `dir`, close-on-exec, creating nothing. `resolve` says what the walk may do;
/// the empty path is `dir` itself.
///
/// Errors are the kernel's: `EXDEV` where the path leads out of `dir`, `ELOOP` for a forbidden symbolic link, `ENOSYS`
/// before Linux 5.6, and `EAGAIN` only when no walk in a thousand was left undisturbed.
pub fn open_in(dir: impl AsFd, path: &Path, flags: OFlag, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    for _ in 1..WALKS {
        match openat2(&dir, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => std::thread::yield_now(),
            other => return other,
        }
    }
    openat2(&dir, path, how)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::fcntl::open;
    use nix::sys::stat::Mode;

    use super::*;

    fn root(dir: &Path) -> OwnedFd {
        open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).expect("open")
    }

    #[test]
    fn what_leads_out_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("in")).expect("create");
        symlink("../..", dir.path().join("in/out")).expect("link");
        symlink("/etc", dir.path().join("abs")).expect("link");
        let inside = root(&dir.path().join("in"));
        let beneath =
            |path: &str| open_in(&inside, Path::new(path), OFlag::O_PATH, ResolveFlag::RESOLVE_BENEATH).map(drop);
        assert_eq!(beneath(""), Ok(()));
        assert_eq!(beneath(".."), Err(Errno::EXDEV));
        assert_eq!(beneath("out"), Err(Errno::EXDEV));
        assert_eq!(beneath("/etc"), Err(Errno::EXDEV));
        assert_eq!(beneath("absent"), Err(Errno::ENOENT));
        let outer = root(dir.path());
        let no_links = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let found = open_in(&outer, Path::new("abs"), OFlag::O_RDONLY, no_links).map(drop);
        assert_eq!(found, Err(Errno::ELOOP));
    }

    /// Somebody renaming elsewhere must not make an innocent path fail.
    #[test]
    fn other_peoples_renames_do_not_matter() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir_all(dir.path().join("var")).expect("create");
        fs::create_dir_all(dir.path().join("run/secrets")).expect("create");
        symlink("../run", dir.path().join("var/run")).expect("link");
        let elsewhere = tempfile::tempdir().expect("directory");
        let (a, b) = (elsewhere.path().join("a"), elsewhere.path().join("b"));
        fs::write(&a, "").expect("write");
        let done = AtomicBool::new(false);
        let opened = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&a, &b).expect("rename");
                    fs::rename(&b, &a).expect("rename");
                }
            });
            let root = root(dir.path());
            // A long walk, for somebody to be renaming in the middle of it.
            let path = format!("{}var/run/secrets", "run/../".repeat(20));
            let opened = (0..20_000)
                .map(|_| open_in(&root, Path::new(&path), OFlag::O_PATH, ResolveFlag::RESOLVE_IN_ROOT).map(drop))
                .find(Result::is_err);
            done.store(true, Ordering::Relaxed);
            opened
        });
        assert_eq!(opened, None);
    }
}
