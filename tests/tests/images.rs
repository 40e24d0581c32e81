//! Images: archives good and bad, a real registry with authentication, and Pods whose images come from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use sampan_e2e::{Cluster, binary, images, must, output, ready};
use serde_json::{Value, json};

fn image(dir: &Path, arguments: &[&str]) -> Output {
    output(
        Command::new(binary())
            .args(["image", "--data-dir"])
            .arg(dir)
            .args(arguments),
    )
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn listed(dir: &Path) -> Vec<Value> {
    let output = image(dir, &["list", "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The files below the image store that are not its own small records.
fn left_over(dir: &Path) -> Vec<String> {
    let found = must(
        Command::new("find")
            .arg(dir)
            .args(["-type", "f", "-size", "+0", "-printf", "%P\n"]),
    );
    found
        .lines()
        .filter(|path| {
            path.contains("blob") || path.contains("layer") || path.contains("ingest") || path.contains("tmp")
        })
        .map(str::to_owned)
        .collect()
}

fn sha256(path: &Path) -> String {
    let sum = must(Command::new("sha256sum").arg(path));
    sum.split(' ').next().expect("a sum").to_owned()
}

/// A docker archive with one layer, made by a shell command in `work` that leaves `layer.tar` there.
fn archive(work: &Path, name: &str, make_layer: &str) -> PathBuf {
    let dir = work.join(name);
    fs::create_dir_all(&dir).expect("a directory");
    must(Command::new("sh").args(["-ec", make_layer]).current_dir(&dir));
    let layer = sha256(&dir.join("layer.tar"));
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]}});
    fs::write(dir.join("config.json"), config.to_string()).expect("write");
    let manifest =
        json!([{"Config": "config.json", "RepoTags": [format!("localhost/{name}:1")], "Layers": ["layer.tar"]}]);
    fs::write(dir.join("manifest.json"), manifest.to_string()).expect("write");
    let path = work.join(format!("{name}.tar"));
    must(Command::new("tar").arg("-cf").arg(&path).arg("-C").arg(&dir).args([
        "manifest.json",
        "config.json",
        "layer.tar",
    ]));
    path
}

#[test]
fn bad_archives_leave_nothing() {
    if !ready("bad_archives_leave_nothing") {
        return;
    }
    let temp = tempfile::tempdir().expect("a temporary directory");
    let (data, work) = (temp.path().join("data"), temp.path().join("work"));
    fs::create_dir_all(&work).expect("a directory");
    let refuse = |what: &str, path: &Path, parts: &[&str]| {
        let output = image(&data, &["import", &path.to_string_lossy()]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {text}");
        for part in parts {
            assert!(text.contains(part), "{what}: {part} is not in {text}");
        }
        assert!(!text.contains("panicked"), "{what}: {text}");
        assert!(listed(&data).is_empty(), "{what}: an image is listed");
        assert_eq!(left_over(&data), Vec::<String>::new(), "{what}");
    };

    refuse(
        "an absent file",
        Path::new("/nowhere.tar"),
        &["/nowhere.tar", "No such file"],
    );
    let path = work.join("noise.tar");
    fs::write(&path, vec![0x5a; 100_000]).expect("write");
    refuse("noise", &path, &["noise.tar"]);
    fs::write(&path, b"").expect("write");
    refuse("an empty file", &path, &["noise.tar"]);
    let whole = fs::read(images()).expect("the example's images");
    fs::write(&path, &whole[..whole.len() / 2]).expect("write");
    refuse("a truncated archive", &path, &["noise.tar"]);
    let mut corrupt = whole;
    let middle = corrupt.len() / 2;
    for byte in &mut corrupt[middle..middle + 64] {
        *byte ^= 0xff;
    }
    fs::write(&path, &corrupt).expect("write");
    let output = image(&data, &["import", &path.to_string_lossy()]);
    assert!(
        !output.status.success() && said(&output).contains("noise.tar"),
        "a corrupt layer: {}",
        said(&output)
    );
    assert!(
        listed(&data).is_empty(),
        "a corrupt archive is taken whole or not at all: {:?}",
        listed(&data)
    );

    let escape = archive(
        &work,
        "escape",
        "echo evil > ../evil.txt; tar -cPf layer.tar ../evil.txt; rm ../evil.txt",
    );
    refuse("an escaping path", &escape, &["evil.txt"]);
    let link = archive(
        &work,
        "link",
        "mkdir a b; ln -s /tmp a/dir; mkdir b/dir; echo evil > b/dir/sampan-e2e-evil; tar -cf layer.tar -C a dir; tar -rf layer.tar -C ../link/b dir/sampan-e2e-evil",
    );
    // Through a link of its own layer: refused, or kept inside the layer.
    let output = image(&data, &["import", &link.to_string_lossy()]);
    assert!(
        !Path::new("/tmp/sampan-e2e-evil").exists(),
        "a link was followed: {}",
        said(&output)
    );
    let device = archive(
        &work,
        "hard",
        "echo x > f; ln f g; tar -cf layer.tar --transform 's,^f$,../../f,' f g",
    );
    let output = image(&data, &["import", &device.to_string_lossy()]);
    assert!(
        !output.status.success() || !said(&output).contains("panicked"),
        "{}",
        said(&output)
    );

    // A lie about a digest.
    let liar = archive(&work, "liar", "echo x > f; tar -cf layer.tar f");
    must(
        Command::new("sh")
            .args([
                "-ec",
                "cd liar; echo y > f; tar -cf layer.tar f; tar -cf ../liar.tar manifest.json config.json layer.tar",
            ])
            .current_dir(&work),
    );
    let output = image(&data, &["import", &liar.to_string_lossy()]);
    assert!(
        !output.status.success() && said(&output).contains("sha256:"),
        "a wrong digest: {}",
        said(&output)
    );

    // And the good one, after all this.
    let good = archive(&work, "good", "echo x > f; tar -cf layer.tar f");
    let output = image(&data, &["import", &good.to_string_lossy()]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        listed(&data)
            .iter()
            .any(|image| image.to_string().contains("localhost/good:1"))
    );
    assert!(image(&data, &["remove", "localhost/good:1"]).status.success());
    let output = image(&data, &["remove", "localhost/good:1"]);
    assert!(
        !output.status.success() && said(&output).contains("localhost/good:1"),
        "{}",
        said(&output)
    );
    let output = image(&data, &["remove", "NOT/a name"]);
    assert!(
        !output.status.success() && said(&output).contains("NOT/a name"),
        "{}",
        said(&output)
    );
}

/// Debian's registry in the node's network, with one user and the example's busybox.
struct Hub {
    process: Child,
}

const ADDRESS: &str = "127.0.0.1:5000";

impl Hub {
    fn start(cluster: &Cluster) -> Option<Hub> {
        let dir = cluster.dir.path().join("registry");
        fs::create_dir_all(&dir).expect("a directory");
        let users = Command::new("htpasswd").args(["-Bbn", "jane", "secret"]).output();
        let found = Command::new("docker-registry").arg("--version").output();
        let (Ok(users), Ok(_)) = (users, found) else {
            eprintln!(
                "skipped: it needs docker-registry and htpasswd (Debian packages docker-registry, apache2-utils)"
            );
            return None;
        };
        fs::write(dir.join("users"), users.stdout).expect("write");
        let config = json!({"version": 0.1, "log": {"level": "warn"}, "http": {"addr": ADDRESS},
            "storage": {"filesystem": {"rootdirectory": dir.join("data")}},
            "auth": {"htpasswd": {"realm": "e2e", "path": dir.join("users")}}});
        fs::write(dir.join("config.yml"), config.to_string()).expect("write");
        let log = fs::File::create(dir.join("log")).expect("a log file");
        let process = cluster
            .lab
            .on_node("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle"))
            .stderr(log)
            .spawn()
            .expect("the registry starts");
        let hub = Hub { process };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !output(
            cluster
                .lab
                .on_node("curl")
                .args(["-sf", "-u", "jane:secret", &format!("http://{ADDRESS}/v2/")]),
        )
        .status
        .success()
        {
            assert!(
                std::time::Instant::now() < deadline,
                "the registry does not answer: {}",
                fs::read_to_string(dir.join("log")).unwrap_or_default()
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        hub.push(cluster, "localhost/sampan/busybox:1.35", "team/busybox", "1.35");
        Some(hub)
    }

    /// Pushes an image of the example's archive, as any client would.
    fn push(&self, cluster: &Cluster, from: &str, name: &str, tag: &str) {
        let layout = cluster.dir.path().join("layout");
        fs::create_dir_all(&layout).expect("a directory");
        must(Command::new("tar").arg("-xf").arg(images()).arg("-C").arg(&layout));
        let blob = |digest: &str| layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON") };
        let index = read(&layout.join("index.json"));
        let manifest = index["manifests"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == from)
            .and_then(|entry| entry["digest"].as_str())
            .expect("the image is in the archive");
        let contents = read(&blob(manifest));
        let digests = std::iter::once(&contents["config"]).chain(contents["layers"].as_array().into_iter().flatten());
        let curl = |arguments: &[&str]| {
            must(
                cluster
                    .lab
                    .on_node("curl")
                    .args(["-sSf", "-u", "jane:secret"])
                    .args(arguments),
            )
        };
        let origin = format!("http://{ADDRESS}/v2/{name}");
        for digest in digests.filter_map(|part| part["digest"].as_str()) {
            let headers = curl(&[
                "-D",
                "-",
                "-o",
                "/dev/null",
                "-X",
                "POST",
                &format!("{origin}/blobs/uploads/"),
            ]);
            let location = headers
                .lines()
                .find_map(|line| line.strip_prefix("Location: "))
                .expect("an upload")
                .trim()
                .to_owned();
            let mark = if location.contains('?') { '&' } else { '?' };
            let data = format!("@{}", blob(digest).display());
            curl(&[
                "-X",
                "PUT",
                "-H",
                "Content-Type: application/octet-stream",
                "--data-binary",
                &data,
                &format!("{location}{mark}digest={digest}"),
            ]);
        }
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        let data = format!("@{}", blob(manifest).display());
        curl(&[
            "-X",
            "PUT",
            "-H",
            kind,
            "--data-binary",
            &data,
            &format!("{origin}/manifests/{tag}"),
        ]);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if self.process.kill().is_err() || self.process.wait().is_err() {
            eprintln!("could not end the registry");
        }
    }
}

#[test]
fn pulls_authenticate() {
    if !ready("pulls_authenticate") {
        return;
    }
    let insecure = format!("--insecure-registries={ADDRESS}");
    let mut cluster = Cluster::start_with("pulls", &["--disable=dns", &insecure]);
    let Some(hub) = Hub::start(&cluster) else { return };
    let elsewhere = cluster.dir.path().join("elsewhere");
    let pull = |arguments: &[&str]| {
        let mut command = cluster.lab.on_node(binary());
        output(
            command
                .args(["image", "--data-dir"])
                .arg(&elsewhere)
                .arg("pull")
                .args(arguments),
        )
    };
    let name = format!("{ADDRESS}/team/busybox:1.35");
    let refuse = |arguments: &[&str], parts: &[&str]| {
        let output = pull(arguments);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: {part} is not in {text}");
        }
        assert!(
            !text.contains("secret") && !text.contains("wrong:"),
            "credentials are not shown: {text}"
        );
        assert!(listed(&elsewhere).is_empty());
    };
    refuse(&[&insecure, &name], &[&name, "asks for a user and password"]);
    refuse(&[&insecure, "--credentials=jane:wrong1", &name], &[&name]);
    refuse(&[&insecure, "--credentials=jane", &name], &["USER:PASSWORD"]);
    let absent = format!("{ADDRESS}/team/absent:1");
    refuse(&[&insecure, "--credentials=jane:secret", &absent], &[&absent]);
    refuse(&[&insecure, "127.0.0.1:5999/team/busybox:1"], &["127.0.0.1:5999"]);
    refuse(&["192.0.2.77:5000/team/busybox:1"], &["192.0.2.77:5000"]);
    refuse(&["registry.invalid/team/busybox:1"], &["registry.invalid"]);
    refuse(&["Not A Name"], &["Not A Name"]);
    let output = pull(&[&insecure, "--credentials=jane:secret", &name]);
    assert!(output.status.success(), "{}", said(&output));
    let found = listed(&elsewhere);
    assert!(found.len() == 1 && found[0].to_string().contains(&name), "{found:?}");
    let digest = must(cluster.lab.on_node("sh").args([
        "-c",
        &format!("curl -sfI -u jane:secret -H 'Accept: application/vnd.oci.image.manifest.v1+json' http://{ADDRESS}/v2/team/busybox/manifests/1.35 | tr -d '\\r' | sed -n 's/^Docker-Content-Digest: //p'"),
    ]));
    let by_digest = format!("{ADDRESS}/team/busybox@{}", digest.trim());
    let output = pull(&[&insecure, "--credentials=jane:secret", &by_digest]);
    assert!(output.status.success(), "by digest: {}", said(&output));
    let wrong = format!("{ADDRESS}/team/busybox@sha256:{}", "0".repeat(64));
    let output = pull(&[&insecure, "--credentials=jane:secret", &wrong]);
    assert!(!output.status.success(), "a digest that is not there");

    // Pods: without and with a secret, with one that is wrong, of an image that is not there, and that may not be pulled.
    cluster.kubectl(&format!(
        "create secret docker-registry hub --docker-server={ADDRESS} --docker-username=jane --docker-password=secret"
    ));
    cluster.kubectl(&format!(
        "create secret docker-registry bad --docker-server={ADDRESS} --docker-username=jane --docker-password=no"
    ));
    let pod = |pod: &str, image: &str, secret: &str, policy: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  imagePullSecrets: [{secret}]\n  containers: [{{name: main, image: '{image}', imagePullPolicy: {policy}, command: [sleep, '3600']}}]\n"
        )
    };
    cluster.apply(
        &[
            pod("without", &name, "", "Always"),
            pod("wrong", &name, "{name: bad}", "Always"),
            pod("absent", &absent, "{name: hub}", "IfNotPresent"),
            pod("never", "localhost/none/none:1", "", "Never"),
            pod("misnamed", "Not A Name", "", "Always"),
            pod("unreachable", "127.0.0.1:5999/team/busybox:1", "", "Always"),
            pod("with", &name, "{name: hub}", "Always"),
            pod("digest", &by_digest, "{name: hub}", "IfNotPresent"),
        ]
        .concat(),
    );
    cluster.wait("the Pods with the secret", 30, |cluster| {
        let phases = cluster.kubectl("get pods with digest -o jsonpath={.items[*].status.containerStatuses[0].ready}");
        phases == "true true"
    });
    let reason = |cluster: &Cluster, pod: &str| {
        cluster.kubectl(&format!(
            "get pod {pod} -o jsonpath={{.status.containerStatuses[0].state.waiting.reason}}"
        ))
    };
    for (pod, expected) in [
        ("without", ["ErrImagePull", "ImagePullBackOff"]),
        ("wrong", ["ErrImagePull", "ImagePullBackOff"]),
        ("absent", ["ErrImagePull", "ImagePullBackOff"]),
        ("unreachable", ["ErrImagePull", "ImagePullBackOff"]),
        ("never", ["ErrImageNeverPull", "ErrImageNeverPull"]),
        ("misnamed", ["InvalidImageName", "InvalidImageName"]),
    ] {
        cluster.wait(&format!("{pod} to wait"), 20, |cluster| {
            expected.contains(&reason(cluster, pod).as_str())
        });
        assert_eq!(
            cluster.kubectl(&format!("get pod {pod} -o jsonpath={{.status.phase}}")),
            "Pending"
        );
    }
    cluster.wait("back-off", 30, |cluster| reason(cluster, "wrong") == "ImagePullBackOff");
    let events = cluster.kubectl(
        "get events -o jsonpath={range.items[*]}{.involvedObject.name}{\"|\"}{.reason}{\"|\"}{.message}{\"\\n\"}{end}",
    );
    for part in [
        "with|Pulling|Pulling image",
        "with|Pulled|Successfully pulled image",
        "without|Failed|Failed to pull image",
        "wrong|BackOff|Back-off pulling image",
        "never|ErrImageNeverPull|Container image \"localhost/none/none:1\" is not present with pull policy of Never",
    ] {
        assert!(events.contains(part), "{part} is not among\n{events}");
    }
    assert!(
        !events.contains("secret\n") && !cluster.log().contains("jane:secret"),
        "credentials are not told"
    );
    let id = cluster.kubectl("get pod with -o jsonpath={.status.containerStatuses[0].imageID}");
    assert!(id.contains("sha256:"), "{id}");

    // An image in use stays.
    let output = sampan_e2e::output(
        cluster
            .lab
            .on_node(binary())
            .args(["image", "--data-dir"])
            .arg(cluster.dir.path())
            .args(["remove", &name]),
    );
    assert!(
        !output.status.success() || cluster.kubectl("get pod with -o jsonpath={.status.phase}") == "Running",
        "{}",
        said(&output)
    );
    // What could not be pulled is pulled once it is there.
    hub.push(&cluster, "localhost/sampan/busybox:1.35", "team/absent", "1");
    cluster.wait("the image to be found", 60, |cluster| {
        cluster.kubectl("get pod absent -o jsonpath={.status.phase}") == "Running"
    });
}
