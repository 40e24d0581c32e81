//! Help for tests of this crate: tars, images, and whether the machine lets a test run.
//!
//! Compiled for this crate's own tests only; the integration tests include this file by path.

use std::path::Path;

/// Whether we are root; says so if a test is skipped for that.
pub fn root_or_skip() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// Builds a tar in memory, without any check of what is put in.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(
        mut self,
        kind: tar::EntryType,
        name: &str,
        mode: u32,
        ids: (u64, u64),
        target: &str,
        data: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(ids.0);
        header.set_gid(ids.1);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        // Written as they are: the builder's own setters refuse what the tests want to try.
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.owned_file(name, data, 0o644, 0, 0)
    }
    pub fn owned_file(self, name: &str, data: &[u8], mode: u32, uid: u64, gid: u64) -> Self {
        self.entry(tar::EntryType::Regular, name, mode, (uid, gid), "", data)
    }
    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, name, mode, (0, 0), "", b"")
    }
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name, 0o777, (0, 0), target, b"")
    }
    pub fn hard(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, name, 0o644, (0, 0), target, b"")
    }
    pub fn device(mut self, name: &str, kind: tar::EntryType, major: u32, minor: u32) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o666);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        self.0.append(&header, &b""[..]).unwrap();
        self
    }
    /// A longer name, or target, of the next entry, in GNU's way.
    pub fn long(self, text: &str, kind: tar::EntryType) -> Self {
        self.entry(kind, "././@LongLink", 0o644, (0, 0), "", format!("{text}\0").as_bytes())
    }
    /// A property of the next entry, in POSIX's way.
    pub fn pax(self, key: &str, value: &str) -> Self {
        let rest = key.len() + value.len() + 3;
        let digits = (rest + 2).to_string().len();
        let record = format!("{} {key}={value}\n", rest + digits);
        self.entry(tar::EntryType::XHeader, "pax", 0o644, (0, 0), "", record.as_bytes())
    }
    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// `sha256:…`
pub fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    format!("sha256:{}", hex::encode(digest))
}

/// An image of `layers` (tars), as the pieces registries and archives hold.
pub struct TestImage {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

impl TestImage {
    /// `run` is the `config` object of the configuration.
    pub fn new(layers: Vec<Vec<u8>>, run: serde_json::Value) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let diff_ids: Vec<String> = layers.iter().map(|l| digest(l)).collect();
        let config = serde_json::to_vec(&serde_json::json!({
            "architecture": architecture, "os": "linux", "config": run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))
        .unwrap();
        let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let manifest = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|l| descriptor(layer, l)).collect::<Vec<_>>(),
        }))
        .unwrap();
        Self {
            config,
            manifest,
            layers,
        }
    }

    /// As a tar of an OCI layout whose only image is called `name`.
    pub fn oci_archive(&self, name: &str) -> Vec<u8> {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&self.manifest), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }]});
        let mut tar = Tar::new()
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", &serde_json::to_vec(&index).unwrap());
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            tar = tar.file(&format!("blobs/sha256/{}", &digest(blob)[7..]), blob);
        }
        tar.finish()
    }

    /// As `docker save` writes it.
    pub fn docker_archive(&self, name: &str) -> Vec<u8> {
        let config = format!("{}.json", &digest(&self.config)[7..]);
        let names: Vec<String> = (0..self.layers.len()).map(|n| format!("{n}/layer.tar")).collect();
        let list = serde_json::json!([{"Config": config, "RepoTags": [name], "Layers": names}]);
        let mut tar = Tar::new()
            .file("manifest.json", &serde_json::to_vec(&list).unwrap())
            .file(&config, &self.config);
        for (name, layer) in names.iter().zip(&self.layers) {
            tar = tar.file(name, layer);
        }
        tar.finish()
    }
}

/// An image with a static busybox, or `None` (and a message) where there is none.
pub fn busybox() -> Option<TestImage> {
    let found = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find(|p| Path::new(p).is_file());
    let Some(path) = found else {
        println!("skipped: needs busybox-static (apt-get install busybox-static)");
        return None;
    };
    let program = std::fs::read(path).unwrap();
    let mut tar = Tar::new()
        .dir("bin", 0o755)
        .owned_file("bin/busybox", &program, 0o755, 0, 0)
        .dir("etc", 0o755)
        .file(
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\napp:x:1001:1002:App:/home/app:/bin/sh\n",
        )
        .file(
            "etc/group",
            b"root:x:0:\napp:x:1002:\nextra:x:1500:app\nmore:x:1600:root,app\n",
        )
        .dir("tmp", 0o1777)
        .dir("root", 0o700);
    for applet in [
        "sh", "ls", "cat", "echo", "sleep", "id", "true", "false", "touch", "unshare", "mount", "ps", "hostname",
        "stat", "grep", "wc", "head", "dd", "kill", "env", "pwd", "seq", "tail", "stty", "tty", "nc", "mkdir", "chown",
        "mknod", "chroot", "ip", "test", "sync", "rm", "yes", "awk", "readlink",
    ] {
        tar = tar.link(&format!("bin/{applet}"), "busybox");
    }
    let run = serde_json::json!({"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"]});
    let above = Tar::new().file("etc/release", b"layer two\n").finish();
    Some(TestImage::new(vec![tar.finish(), above], run))
}
