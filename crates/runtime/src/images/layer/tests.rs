use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;
use crate::testing::{Tar, root_or_skip};

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    file
}

fn layer(tar: Tar, parents: &[&tempfile::TempDir]) -> Result<tempfile::TempDir, LayerError> {
    let dir = tempfile::tempdir().unwrap();
    let parents: Vec<PathBuf> = parents.iter().map(|p| p.path().into()).collect();
    unpack(file_of(&tar.finish()), dir.path(), &parents)?;
    Ok(dir)
}

#[test]
fn files_links_owners_modes_and_times_come_out_as_they_went_in() {
    if !root_or_skip() {
        return;
    }
    let tar = Tar::new()
        .dir("etc", 0o750)
        .owned_file("etc/shadow", b"x", 0o4640, 10, 42)
        .link("etc/alias", "shadow")
        .hard("etc/same", "etc/shadow");
    let dir = layer(tar, &[]).unwrap();
    let shadow = dir.path().join("etc/shadow").metadata().unwrap();
    assert_eq!((shadow.uid(), shadow.gid(), shadow.mode() & 0o7777), (10, 42, 0o4640));
    assert_eq!((shadow.nlink(), shadow.mtime()), (2, 1_000_000));
    let etc = dir.path().join("etc").metadata().unwrap();
    assert_eq!((etc.mode() & 0o7777, etc.mtime()), (0o750, 1_000_000));
    let alias = std::fs::read_link(dir.path().join("etc/alias")).unwrap();
    assert_eq!(alias, Path::new("shadow"));
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    if !root_or_skip() {
        return;
    }
    let below = layer(Tar::new().dir("a", 0o755).file("a/x", b"1").file("a/y", b"2"), &[]).unwrap();
    let tar = Tar::new()
        .file("a/.wh.x", b"")
        .dir("b", 0o755)
        .file("b/.wh..wh..opq", b"")
        .file("b/z", b"3");
    let dir = layer(tar, &[&below]).unwrap();
    let hidden = dir.path().join("a/x").symlink_metadata().unwrap();
    assert!(hidden.file_type().is_char_device());
    assert_eq!(hidden.rdev(), 0);
    let opaque = xattr::get(dir.path().join("b"), OPAQUE_XATTR).unwrap();
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
}

#[test]
fn a_directory_that_replaces_a_whiteout_hides_what_is_below() {
    if !root_or_skip() {
        return;
    }
    let below = layer(Tar::new().dir("a", 0o755).file("a/x", b"1"), &[]).unwrap();
    let dir = layer(Tar::new().file(".wh.a", b"").dir("a", 0o700), &[&below]).unwrap();
    let opaque = xattr::get(dir.path().join("a"), OPAQUE_XATTR).unwrap();
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
}

#[test]
fn what_leads_outside_is_refused() {
    for name in ["../evil", "a/../../evil", "a/.."] {
        let error = layer(Tar::new().file(name, b"x"), &[]).unwrap_err();
        assert!(matches!(error, LayerError::Escape(_)), "{name}: {error}");
    }
    let error = layer(Tar::new().hard("a", "../../etc/passwd"), &[]).unwrap_err();
    assert!(matches!(error, LayerError::Escape(_)), "{error}");
    let error = layer(Tar::new().file("a/.wh...", b""), &[]).unwrap_err();
    assert!(matches!(error, LayerError::Escape(_)), "{error}");
}

#[test]
fn symbolic_links_are_followed_inside_the_image_only() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let tar = Tar::new()
        .link("abs", target)
        .link("up", "../../../../../../tmp")
        .file("abs/one", b"1")
        .file("up/two", b"2");
    let dir = layer(tar, &[]).unwrap();
    assert!(!outside.path().join("one").exists());
    assert!(dir.path().join(&target[1..]).join("one").is_file());
    assert!(dir.path().join("tmp/two").is_file());
}

/// Layers that reach out, in every way that is known. Refused or not: what matters is that nothing outside has changed.
#[test]
fn no_layer_reaches_out() {
    if !root_or_skip() {
        return;
    }
    let outer = tempfile::tempdir().unwrap();
    let victim = outer.path().join("victim");
    std::fs::create_dir_all(victim.join("below")).unwrap();
    std::fs::write(victim.join("secret"), b"secret").unwrap();
    let away = victim.to_str().unwrap().to_owned();
    let up = format!("{}{}", "../".repeat(3), "victim");
    let name = |dir: &str, name: &str| format!("{dir}/{name}");
    let mut layers: Vec<(String, Tar)> = Vec::new();
    for out in [&away, &up] {
        let link = || Tar::new().link("l", out);
        layers.extend([
            (format!("a file through {out}"), link().file("l/made", b"x")),
            (format!("a file over one through {out}"), link().file("l/secret", b"x")),
            (format!("a directory through {out}"), link().dir("l/made", 0o777)),
            (format!("the directory {out} itself"), link().dir("l", 0o777)),
            (format!("a deeper directory of {out}"), link().dir("l/below", 0o777)),
            (format!("a link through {out}"), link().link("l/made", "x")),
            (
                format!("a hard link into {out}"),
                link().file("x", b"").hard("l/made", "x"),
            ),
            (
                format!("a hard link from {out}"),
                link().hard("x", "l/secret").file("x", b"changed"),
            ),
            (
                format!("a hard link to {out}"),
                Tar::new().hard("x", &name(out, "secret")).file("x", b"changed"),
            ),
            (format!("a whiteout through {out}"), link().file("l/.wh.secret", b"")),
            (
                format!("an opaque directory through {out}"),
                link().file("l/.wh..wh..opq", b""),
            ),
            (
                format!("a whiteout of {out}"),
                link().file(".wh.l", b"").file("l/made", b""),
            ),
            (
                format!("a device through {out}"),
                link().device("l/made", tar::EntryType::Char, 1, 3),
            ),
            (
                format!("a link over a directory, then into {out}"),
                Tar::new().dir("d", 0o755).link("d", out).file("d/made", b""),
            ),
            (
                format!("two links to {out}"),
                link().link("m", "l/below").file("m/made", b""),
            ),
            (
                format!("a link in a link to {out}"),
                Tar::new()
                    .link("a", "b/c")
                    .dir("b", 0o755)
                    .link("b/c", out)
                    .file("a/made", b""),
            ),
            (format!("a file named {out}"), Tar::new().file(&name(out, "made"), b"")),
            (
                format!("a file over {out}"),
                Tar::new().file(&name(out, "secret"), b"x"),
            ),
            (
                format!("an owner of {out}"),
                link().owned_file("l/secret", b"secret", 0o6777, 7, 7),
            ),
            (
                format!("a long name of {out}"),
                Tar::new()
                    .long(&name(out, "made"), tar::EntryType::GNULongName)
                    .file("x", b""),
            ),
            (
                format!("a long link to {out}"),
                Tar::new()
                    .long(out, tar::EntryType::GNULongLink)
                    .link("l", "x")
                    .file("l/made", b""),
            ),
            (
                format!("a PAX path of {out}"),
                Tar::new().pax("path", &name(out, "made")).file("x", b""),
            ),
            (
                format!("a PAX link to {out}"),
                Tar::new().pax("linkpath", out).link("l", "x").file("l/made", b""),
            ),
            (
                format!("a PAX hard link to {out}"),
                Tar::new()
                    .pax("linkpath", &name(out, "secret"))
                    .hard("x", "y")
                    .file("x", b"changed"),
            ),
            (
                format!("a redirect of the overlay to {out}"),
                Tar::new()
                    .pax("SCHILY.xattr.trusted.overlay.redirect", out)
                    .dir("d", 0o755)
                    .file("d/made", b""),
            ),
        ]);
    }
    for named in [
        "../victim/made",
        "../../victim/made",
        "a/../../../victim/made",
        "/../victim/made",
        "./../victim/made",
        "..",
        "a/..",
        "l/../../victim/made",
    ] {
        layers.push((
            format!("a file {named}"),
            Tar::new().dir("a", 0o755).link("l", "a").file(named, b""),
        ));
        layers.push((
            format!("a whiteout {named}"),
            Tar::new().file(&named.replace("made", ".wh.secret"), b""),
        ));
    }
    for hidden in [".wh..", ".wh...", ".wh.", ".wh..wh..wh.", "a/.wh..."] {
        layers.push((format!("a whiteout {hidden}"), Tar::new().file(hidden, b"")));
    }
    let before = |path: &Path| {
        let meta = path.symlink_metadata().unwrap();
        (
            meta.mode(),
            meta.uid(),
            meta.nlink(),
            xattr::list(path).unwrap().count(),
        )
    };
    let watched = [victim.clone(), victim.join("below"), victim.join("secret")];
    let were: Vec<_> = watched.iter().map(|path| before(path)).collect();
    let mut through = Vec::new();
    let tried = layers.len();
    let mut accepted = 0;
    for (index, (what, tar)) in layers.into_iter().enumerate() {
        let target = outer.path().join(format!("store/{index}/layer"));
        std::fs::create_dir_all(&target).unwrap();
        accepted += usize::from(unpack(file_of(&tar.finish()), &target, &[]).is_ok());
        let are: Vec<_> = watched.iter().map(|path| before(path)).collect();
        let whole = std::fs::read(victim.join("secret")).unwrap() == b"secret";
        let names =
            std::fs::read_dir(&victim).unwrap().count() + std::fs::read_dir(victim.join("below")).unwrap().count();
        let around = std::fs::read_dir(target.parent().unwrap()).unwrap().count();
        let redirected = xattr::get(target.join("d"), "trusted.overlay.redirect").ok().flatten();
        if are != were || !whole || names != 2 || around != 1 || redirected.is_some() {
            through.push(what);
        }
    }
    println!(
        "layers that reach out: {tried} attempts, {} refused, {accepted} of them by staying inside",
        tried - through.len()
    );
    assert_eq!(through, Vec::<String>::new(), "these got through");
}

#[test]
fn a_link_that_points_at_a_file_outside_is_replaced_not_written_through() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, b"safe").unwrap();
    let tar = Tar::new().link("f", victim.to_str().unwrap()).file("f", b"evil");
    let dir = layer(tar, &[]).unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), b"safe");
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"evil");
    // A hard link to a symbolic link is a link to the link.
    let tar = Tar::new().link("l", victim.to_str().unwrap()).hard("h", "l");
    let dir = layer(tar, &[]).unwrap();
    assert!(dir.path().join("h").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn what_a_layer_leaves_out_is_taken_from_the_layers_below() {
    let below = Tar::new()
        .dir("tmp", 0o1777)
        .dir("usr", 0o755)
        .dir("usr/lib", 0o711)
        .link("lib", "usr/lib")
        .file("usr/lib/libc", b"c");
    let below = layer(below, &[]).unwrap();
    let above = Tar::new()
        .file("tmp/x", b"")
        .file("lib/new", b"n")
        .hard("usr/alias", "usr/lib/libc");
    let dir = layer(above, &[&below]).unwrap();
    let mode = |p: &str| dir.path().join(p).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("usr/lib")), (0o1777, 0o711));
    assert!(dir.path().join("usr/lib/new").is_file());
    assert!(
        !dir.path().join("lib").exists(),
        "the link of the lower layer still shows"
    );
    assert_eq!(std::fs::read(dir.path().join("usr/alias")).unwrap(), b"c");
}

#[test]
fn compressed_layers_have_the_digest_of_what_is_inside() {
    let plain = Tar::new().file("a", b"hello").finish();
    let expected = crate::images::sha256(&plain);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let zst = zstd::encode_all(&plain[..], 1).unwrap();
    for blob in [plain, gz.finish().unwrap(), zst] {
        let dir = tempfile::tempdir().unwrap();
        let unpacked = unpack(file_of(&blob), dir.path(), &[]).unwrap();
        assert_eq!((unpacked.diff_id, unpacked.size), (expected.clone(), 5));
    }
}

#[test]
fn damaged_layers_are_errors() {
    let plain = Tar::new().file("a", &[7; 4000]).file("b", b"x").finish();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let gz = gz.finish().unwrap();
    let cut = &gz[..gz.len() / 2];
    let mut flipped = plain.clone();
    flipped[100] ^= 0x40; // a header byte: the checksum fails
    for blob in [
        cut,
        &flipped[..],
        &plain[..1500],
        b"not a tar at all, no header in here",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(file_of(blob), dir.path(), &[]).unwrap_err();
        assert!(matches!(error, LayerError::Damaged(_)), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_sequence_of_entries_writes_outside(
        steps in proptest::collection::vec((0..4_u8, "[ab./]{1,8}", "[ab./]{1,8}"), 1..12)
    ) {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("deep/er/layer");
        std::fs::create_dir_all(&inner).unwrap();
        let mut tar = Tar::new();
        for (kind, name, target) in &steps {
            tar = match kind {
                0 => tar.file(name, b"x"),
                1 => tar.dir(name, 0o755),
                2 => tar.link(name, target),
                _ => tar.hard(name, target),
            };
        }
        // Refused or not: what matters is where things are.
        let _refused_or_not = unpack(file_of(&tar.finish()), &inner, &[]).is_ok();
        let names = |p: &Path| -> Vec<_> {
            std::fs::read_dir(p).unwrap().map(|e| e.unwrap().file_name()).collect()
        };
        proptest::prop_assert_eq!(names(outer.path()), ["deep"]);
        proptest::prop_assert_eq!(names(&outer.path().join("deep")), ["er"]);
        proptest::prop_assert_eq!(names(&outer.path().join("deep/er")), ["layer"]);
    }
}
