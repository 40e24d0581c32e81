//! Container images put together from Debian's packages, for machines that reach no registry.
//!
//! Each image is one layer: the files of a few packages (fetched with `apt-get download`, so apt checks their
//! signatures), a little of our own (users, directories, busybox's command links), and the image's configuration.
//! The result is one OCI archive that `sampan image import` takes. Package scripts are not run.
//!
//! The same packages give the same bytes: entries are sorted and times are zero.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(clap::Args)]
pub struct Args {
    /// Where the archive goes.
    #[arg(long, default_value = "target/example-images.tar")]
    pub output: PathBuf,
    /// Make it anew even if it is there.
    #[arg(long)]
    pub force: bool,
}

struct Image {
    name: &'static str,
    packages: &'static [&'static str],
    users: &'static [(&'static str, u32)],
    /// Directories to make: path, owner, mode.
    directories: &'static [(&'static str, u32, u32)],
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
    user: &'static str,
    stop_signal: &'static str,
}

/// In every image.
const BASE: &[&str] = &["libc6", "libgcc-s1", "busybox"];

const IMAGES: &[Image] = &[
    Image {
        name: "localhost/sampan/busybox:1.35",
        packages: &[],
        users: &[],
        directories: &[],
        entrypoint: &[],
        command: &["/bin/sh"],
        user: "",
        stop_signal: "",
    },
    Image {
        name: "localhost/sampan/nginx:1.22",
        packages: &[
            "nginx",
            "nginx-common",
            "libnginx-mod-http-ndk",
            "libnginx-mod-http-lua",
            "lua-nginx-redis",
            "lua-resty-core",
            "lua-resty-lrucache",
            "libluajit2-5.1-2",
            "libpcre2-8-0",
            "libpcre3",
            "libssl3",
            "zlib1g",
            "libcrypt1",
        ],
        users: &[("www-data", 33)],
        directories: &[
            ("var/lib/nginx", 33, 0o755),
            ("var/log/nginx", 33, 0o755),
            ("var/cache/nginx", 33, 0o755),
        ],
        entrypoint: &["/usr/sbin/nginx"],
        command: &["-g", "daemon off;"],
        user: "",
        stop_signal: "SIGQUIT",
    },
    Image {
        name: "localhost/sampan/redis:7.0",
        packages: &[
            "redis-server",
            "redis-tools",
            "libatomic1",
            "libjemalloc2",
            "liblzf1",
            "libssl3",
            "libstdc++6",
            "libsystemd0",
            "libcap2",
            "libgcrypt20",
            "libgpg-error0",
            "liblz4-1",
            "liblzma5",
            "libzstd1",
        ],
        users: &[("redis", 999)],
        directories: &[("data", 999, 0o755)],
        entrypoint: &["/usr/bin/redis-server"],
        command: &[],
        user: "999:999",
        stop_signal: "",
    },
];

/// What nobody needs inside a container.
const LEFT_OUT: &[&str] = &[
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/info/",
    "usr/share/lintian/",
    "usr/share/bug/",
    "usr/lib/systemd/",
    "etc/init.d/",
];

/// Debian's merged /usr: these are links, and packages' files go where they point.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];

const BUSYBOX_COMMANDS: &[&str] = &[
    "ash",
    "awk",
    "base64",
    "basename",
    "cat",
    "chmod",
    "chown",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dirname",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hostname",
    "httpd",
    "id",
    "ifconfig",
    "ip",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mktemp",
    "mount",
    "mv",
    "nc",
    "netstat",
    "nohup",
    "nproc",
    "nslookup",
    "od",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "route",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "su",
    "sync",
    "tail",
    "tar",
    "tee",
    "telnet",
    "test",
    "time",
    "timeout",
    "top",
    "touch",
    "tr",
    "traceroute",
    "true",
    "tty",
    "umount",
    "uname",
    "uniq",
    "unxz",
    "unzip",
    "uptime",
    "vi",
    "watch",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
    "zcat",
];

/// Builds the archive unless it is there.
pub fn run(args: &Args) -> Result<()> {
    if args.output.exists() && !args.force {
        eprintln!("{} is there already; --force makes it anew", args.output.display());
        return Ok(());
    }
    let work = tempdir()?;
    let mut archive = Archive::default();
    for image in IMAGES {
        eprintln!("putting together {}", image.name);
        archive.add(image, &layer(image, &work)?)?;
    }
    let partial = args.output.with_extension("partial");
    if let Some(parent) = args.output.parent() {
        fs::create_dir_all(parent)?;
    }
    archive.write(fs::File::create(&partial)?)?;
    fs::rename(&partial, &args.output)?;
    fs::remove_dir_all(&work)?;
    eprintln!("wrote {}", args.output.display());
    Ok(())
}

fn tempdir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("sampan-images-{}", std::process::id()));
    fs::create_dir_all(dir.join("packages"))?;
    Ok(dir)
}

/// A file of the layer, by its path without a leading slash.
enum Node {
    Directory,
    File(Vec<u8>),
    Link(String),
    HardLink(String),
}

struct Entry {
    node: Node,
    owner: (u64, u64),
    mode: u32,
}

impl Entry {
    fn directory(owner: u32, mode: u32) -> Self {
        Entry {
            node: Node::Directory,
            owner: (owner.into(), owner.into()),
            mode,
        }
    }
    fn link(target: impl Into<String>) -> Self {
        Entry {
            node: Node::Link(target.into()),
            owner: (0, 0),
            mode: 0o777,
        }
    }
    fn text(text: String) -> Self {
        Entry {
            node: Node::File(text.into_bytes()),
            owner: (0, 0),
            mode: 0o644,
        }
    }
}

type Tree = BTreeMap<String, Entry>;

/// The uncompressed layer of an image.
fn layer(image: &Image, work: &Path) -> Result<Vec<u8>> {
    let mut tree = Tree::new();
    for directory in [
        "dev",
        "etc",
        "proc",
        "root",
        "run",
        "sys",
        "usr",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/sbin",
        "var",
        "var/lib",
        "var/log",
    ] {
        tree.insert(directory.into(), Entry::directory(0, 0o755));
    }
    for link in MERGED {
        tree.insert((*link).into(), Entry::link(format!("usr/{link}")));
    }
    tree.insert("var/run".into(), Entry::link("../run"));
    for directory in ["tmp", "var/tmp"] {
        tree.insert(directory.into(), Entry::directory(0, 0o1777));
    }
    // The dynamic busybox: a static one cannot resolve names.
    for package in image.packages.iter().chain(BASE) {
        unpack(&fetch(package, &work.join("packages"))?, &mut tree)?;
    }
    for command in BUSYBOX_COMMANDS {
        tree.entry(format!("usr/bin/{command}"))
            .or_insert_with(|| Entry::link("busybox"));
    }
    let mut users = vec![("root", 0)];
    users.extend(image.users);
    users.push(("nobody", 65534));
    let passwd = users
        .iter()
        .map(|(name, id)| format!("{name}:x:{id}:{id}::/:/bin/sh\n"))
        .collect();
    let group = users.iter().map(|(name, id)| format!("{name}:x:{id}:\n")).collect();
    tree.insert("etc/passwd".into(), Entry::text(passwd));
    tree.insert("etc/group".into(), Entry::text(group));
    for (path, owner, mode) in image.directories {
        tree.insert((*path).into(), Entry::directory(*owner, *mode));
    }
    write_tree(&tree)
}

/// Downloads a package once; apt verifies it.
fn fetch(package: &str, into: &Path) -> Result<PathBuf> {
    let find = || -> Result<Option<PathBuf>> {
        for entry in fs::read_dir(into)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.split('_').next() == Some(package) && name.ends_with(".deb") {
                return Ok(Some(path));
            }
        }
        Ok(None)
    };
    if let Some(path) = find()? {
        return Ok(path);
    }
    let download = || {
        Command::new("apt-get")
            .args(["-qq", "download", package])
            .current_dir(into)
            .stderr(Stdio::null())
            .status()
    };
    if !download()?.success() {
        // A machine that has never updated its lists knows no packages.
        eprintln!("  {package} is not known yet: updating apt's lists");
        Command::new("apt-get").args(["-qq", "update"]).status()?;
        if !download()?.success() {
            return Err(format!(
                "apt-get cannot download {package}; try `apt-get update` and `apt-get download {package}`"
            )
            .into());
        }
    }
    find()?.ok_or_else(|| format!("apt-get said it downloaded {package}, but no .deb of that name is there").into())
}

/// Adds a package's files to the tree.
fn unpack(package: &Path, tree: &mut Tree) -> Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().ok_or("dpkg-deb has no output")?;
    let mut archive = tar::Archive::new(stdout);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry
            .path()?
            .to_string_lossy()
            .trim_start_matches("./")
            .trim_end_matches('/')
            .to_owned();
        let path = merged(&path);
        if path.is_empty() || LEFT_OUT.iter().any(|prefix| format!("{path}/").starts_with(prefix)) {
            continue;
        }
        let header = entry.header();
        let (owner, mode) = ((header.uid()?, header.gid()?), header.mode()? & 0o7777);
        let target = entry
            .link_name()?
            .map(|target| target.to_string_lossy().into_owned())
            .unwrap_or_default();
        let node = match entry.header().entry_type() {
            tar::EntryType::Directory
                if matches!(
                    tree.get(&path),
                    Some(Entry {
                        node: Node::Link(_),
                        ..
                    })
                ) =>
            {
                continue;
            }
            tar::EntryType::Directory => Node::Directory,
            tar::EntryType::Symlink => Node::Link(target),
            tar::EntryType::Link => Node::HardLink(merged(target.trim_start_matches("./"))),
            _ => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                Node::File(bytes)
            }
        };
        tree.insert(path, Entry { node, owner, mode });
    }
    if child.wait()?.success() {
        Ok(())
    } else {
        Err(format!("dpkg-deb cannot read {}", package.display()).into())
    }
}

fn merged(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

fn write_tree(tree: &Tree) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    // Hard links after everything they can point to.
    let late = |entry: &Entry| matches!(entry.node, Node::HardLink(_));
    for (path, entry) in tree
        .iter()
        .filter(|(_, entry)| !late(entry))
        .chain(tree.iter().filter(|(_, entry)| late(entry)))
    {
        let mut header = tar::Header::new_gnu();
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mode(entry.mode);
        header.set_mtime(0);
        header.set_size(0);
        match &entry.node {
            Node::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Node::File(bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, bytes.as_slice())?;
            }
            Node::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target)?;
            }
            Node::HardLink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(builder.into_inner()?)
}

/// An OCI image layout in the making.
#[derive(Default)]
struct Archive {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Archive {
    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (digest(&bytes), bytes.len());
        self.blobs.insert(digest.clone(), bytes);
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
    }

    fn add(&mut self, image: &Image, layer: &[u8]) -> Result<()> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(6));
        gzip.write_all(layer)?;
        let mut config =
            json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/"});
        for (key, list) in [("Entrypoint", image.entrypoint), ("Cmd", image.command)] {
            if !list.is_empty() {
                config[key] = json!(list);
            }
        }
        for (key, text) in [("User", image.user), ("StopSignal", image.stop_signal)] {
            if !text.is_empty() {
                config[key] = json!(text);
            }
        }
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(layer))]},
            "history": [{"created_by": format!("Debian packages: {}", image.packages.join(" "))}],
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?);
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.finish()?);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer],
        });
        let mut manifest = self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            serde_json::to_vec(&manifest)?,
        );
        manifest["annotations"] = json!({
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name,
        });
        self.manifests.push(manifest);
        Ok(())
    }

    fn write(&self, output: impl Write) -> Result<()> {
        let mut builder = tar::Builder::new(output);
        let mut file = |path: String, bytes: &[u8]| -> Result<()> {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            Ok(builder.append_data(&mut header, path, bytes)?)
        };
        file("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": self.manifests});
        file("index.json".into(), &serde_json::to_vec(&index)?)?;
        for (digest, bytes) in &self.blobs {
            file(format!("blobs/sha256/{digest}"), bytes)?;
        }
        builder.into_inner()?.flush()?;
        Ok(())
    }
}

/// This machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
