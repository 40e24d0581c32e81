//! Pulls from Debian's `docker-registry` on loopback.

use std::path::Path;

use sampan_runtime::*;

use crate::testing;
use crate::world::*;

/// Debian's registry on loopback, started by the test; with a password file if asked.
struct DockerRegistry {
    child: std::process::Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl DockerRegistry {
    async fn start(users: Option<&str>) -> Option<Self> {
        let program = "/usr/bin/docker-registry";
        if !Path::new(program).exists() {
            println!("skipped: needs docker-registry (apt-get install docker-registry)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\nhttp: {{addr: \"{address}\"}}\nlog: {{level: error}}\n",
            dir.path().display()
        );
        if let Some(users) = users {
            std::fs::write(dir.path().join("users"), users).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}/users}}}}\n",
                dir.path().display()
            );
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = std::process::Command::new(program)
            .arg("serve")
            .arg(&file)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let started = Self {
            child,
            address,
            _dir: dir,
        };
        eventually("the registry listens", || {
            std::net::TcpStream::connect(&started.address).is_ok()
        })
        .await;
        Some(started)
    }

    /// Puts an image in through curl, as any client would.
    fn push(&self, image: &testing::TestImage, name: &str, user: &str) -> bool {
        let curl = |args: &[&str], body: Option<&[u8]>| -> Option<String> {
            use std::io::Write;
            let mut command = std::process::Command::new("curl");
            command.args(["-sS", "-f", "-u", user]).args(args);
            command
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped());
            let mut child = command.spawn().ok()?;
            child.stdin.take()?.write_all(body.unwrap_or_default()).ok()?;
            let output = child.wait_with_output().ok()?;
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let base = format!("http://{}/v2/{name}", self.address);
        for blob in image.layers.iter().chain([&image.config]) {
            let headers = curl(
                &[
                    "-D",
                    "-",
                    "-o",
                    "/dev/null",
                    "-X",
                    "POST",
                    &format!("{base}/blobs/uploads/"),
                ],
                None,
            );
            let headers = headers.unwrap_or_default();
            let location = headers
                .lines()
                .find_map(|l| l.strip_prefix("Location: "))
                .unwrap_or("")
                .trim()
                .to_owned();
            let url = format!("{location}&digest={}", testing::digest(blob));
            let kind = "Content-Type: application/octet-stream";
            if curl(&["-X", "PUT", "-H", kind, "--data-binary", "@-", &url], Some(blob)).is_none() {
                return false;
            }
        }
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        let url = format!("{base}/manifests/1");
        curl(
            &["-X", "PUT", "-H", kind, "--data-binary", "@-", &url],
            Some(&image.manifest),
        )
        .is_some()
    }
}

#[tokio::test]
async fn images_come_from_a_real_registry_with_and_without_a_password() {
    let Some(world) = World::new("registry").await else {
        return;
    };
    let Some(image) = testing::busybox() else { return };
    // user:secret
    let users = "user:$2b$04$.fg70gWyO0DWjpo608zUXelTkGL4bT4OfGdIEA0ULxw1b0w5a0Qfi\n";
    let Some(open) = DockerRegistry::start(None).await else {
        return;
    };
    if !open.push(&image, "team/app", "nobody:nothing") {
        return println!("skipped: needs curl");
    }
    let name = format!("{}/team/app:1", open.address);
    let id = world.engine.pull_image(&name, None, None).await.unwrap();
    assert_eq!(world.engine.pull_image(&name, None, None).await.unwrap(), id);
    let sandbox = world.sandbox("u1").await;
    let mut config = sh("main", "cat /etc/release");
    config.image = name.clone();
    let (_, log) = world.script_in(&sandbox, config).await;
    assert_eq!(log, "layer two\n");
    let error = world
        .engine
        .pull_image(&format!("{}/team/none:1", open.address), None, None)
        .await
        .unwrap_err();
    assert!(error.message.contains("not found"), "{error}");
    assert_eq!(error.kind, ErrorKind::ImagePull);

    let closed = DockerRegistry::start(Some(users)).await.unwrap();
    let name = format!("{}/team/app:1", closed.address);
    let error = world.engine.pull_image(&name, None, None).await.unwrap_err();
    assert!(error.message.contains("imagePullSecrets"), "{error}");
    let auth = |password: &str| RegistryAuth {
        username: "user".into(),
        password: password.into(),
        ..RegistryAuth::default()
    };
    let error = world
        .engine
        .pull_image(&name, Some(&auth("wrong")), None)
        .await
        .unwrap_err();
    assert!(error.message.contains("authorization failed"), "{error}");
    assert!(closed.push(&image, "team/app", "user:secret"));
    world
        .engine
        .pull_image(&name, Some(&auth("secret")), None)
        .await
        .unwrap();
    world.end().await;
}
