//! What a server and its Pods leave on the disk is nobody else's to read or to change, whatever umask it was started with;
//! and what containers are to read they can read.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use sampan_e2e::{Cluster, binary, must, output, ready};

use crate::needles::walk;

const PODS: &str = "
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {k: hidden}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'echo started; echo last > /dev/termination-log; sleep 3600']
    env: [{name: K, valueFrom: {secretKeyRef: {name: key, key: k}}}]
    volumeMounts:
    - {name: secret, mountPath: /secret}
    - {name: wide, mountPath: /wide}
    - {name: wide, mountPath: /one, subPath: k}
    - {name: all, mountPath: /all}
    - {name: empty, mountPath: /empty}
    - {name: root, mountPath: /root-ca}
  volumes:
  - {name: secret, secret: {secretName: key, defaultMode: 0400}}
  - {name: wide, secret: {secretName: key}}
  - {name: empty, emptyDir: {}}
  - {name: root, configMap: {name: kube-root-ca.crt}}
  - {name: all, projected: {sources: [{secret: {name: key}}, {serviceAccountToken: {path: token}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: plain-NAME}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: 'localhost/sampan/busybox:1.35', command: [sleep, '3600'], volumeMounts: [{name: s, mountPath: /s}]}
  volumes: [{name: s, secret: {secretName: key}}]
";

/// What is below the data directory, why it may be what it is, and the modes it may have. The first that matches counts;
/// `*` stands for one part of a path, `**` at the end for everything below.
const TABLE: &[(&str, &[u32], &str)] = &[
    (
        "",
        &[0o700],
        "keys, Secrets, and what Pods were given: nobody else gets past it",
    ),
    ("server.log", &[0o666, 0o600, 0o644], "the test's own"),
    ("manifests.yaml", &[0o666, 0o600, 0o644], "the test's own"),
    ("kubectl-cache", &[], "kubectl's own"),
    ("kubectl-cache/**", &[], "kubectl's own"),
    ("admin.kubeconfig", &[0o600], "an administrator's key"),
    ("cluster-token", &[0o600], "opens the cluster's keys"),
    ("pki", &[0o700], "keys"),
    ("pki/*", &[0o600], "keys, and certificates beside them"),
    ("store", &[0o700], "every object"),
    ("store/*", &[0o600], "every object"),
    ("network", &[0o755], "addresses of Pods"),
    ("network/pods", &[0o755], "addresses of Pods"),
    ("network/settings.json", &[0o600], "state of our own"),
    ("network/pods/*", &[0o600], "state of our own"),
    (
        "run",
        &[0o700],
        "sockets of shims: who may connect may do everything in a Pod",
    ),
    ("run/netns", &[0o755], "behind a private directory"),
    ("run/netns/*", &[0o444], "the kernel's own"),
    ("run/*", &[0o755], "sockets: connecting takes the right to write"),
    ("runtime", &[0o700], "state of containers"),
    ("runtime/lock", &[0o644, 0o600], "empty"),
    (
        "runtime/images/**",
        &[],
        "images: each file has the mode it has in its layer",
    ),
    ("runtime/images", &[0o755], "behind a private directory"),
    ("runtime/containers", &[0o755], "behind a private directory"),
    ("runtime/containers/*", &[0o755], "behind a private directory"),
    (
        "runtime/containers/*/upper/**",
        &[],
        "what containers write, with their modes",
    ),
    ("runtime/containers/*/work/**", &[], "the kernel's own"),
    ("runtime/containers/*/rootfs", &[0o755], "where a root is put together"),
    ("runtime/containers/*/empty", &[0o755], "an empty layer"),
    (
        "runtime/containers/*/upper",
        &[0o755],
        "the root directory of a container",
    ),
    ("runtime/containers/*/work", &[0o755], "the kernel's own"),
    ("runtime/containers/*/*", &[0o600], "environments, with Secrets in them"),
    ("runtime/sandboxes", &[0o755], "behind a private directory"),
    ("runtime/sandboxes/*", &[0o755], "behind a private directory"),
    (
        "runtime/sandboxes/*/resolv.conf",
        &[0o644],
        "containers read it, whoever they run as",
    ),
    (
        "runtime/sandboxes/*/hostname",
        &[0o644],
        "containers read it, whoever they run as",
    ),
    ("runtime/sandboxes/*/*", &[0o600], "state of our own"),
    (
        "node",
        &[0o700],
        "volumes with Secrets that are readable by all within a Pod",
    ),
    ("node/logs", &[0o755], "as /var/log/pods, behind a private directory"),
    ("node/logs/*", &[0o755], "as upstream"),
    ("node/logs/*/*", &[0o755], "as upstream"),
    ("node/logs/*/*/*", &[0o640], "as containerd's"),
    ("node/pods", &[0o755, 0o750], "behind a private directory"),
    ("node/pods/*", &[0o755, 0o750], "behind a private directory"),
    (
        "node/pods/*/etc-hosts",
        &[0o644],
        "containers read it, whoever they run as",
    ),
    (
        "node/pods/*/containers/*/*",
        &[0o666],
        "a container writes its last words, whoever it runs as",
    ),
    ("node/pods/*/volumes/*/*/**", &[], "looked at from within the Pod"),
    (
        "node/pods/*/volumes/*/*",
        &[0o777, 0o2777, 0o1777, 0o3777],
        "the root of a volume: as upstream's",
    ),
    ("node/pods/*/volume-subpaths/**", &[], "files of volumes, bound"),
    ("node/pods/*/plugins/**", &[0o755, 0o644], "marks without content"),
    ("node/pods/**", &[0o755, 0o750], "directories behind a private one"),
];

fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern_parts, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern_parts.next(), parts.next()) {
            (Some("**"), Some(_)) => return true,
            (None, None) => return true,
            (Some(wanted), Some(part)) if wanted == "*" || wanted == part => {}
            _ => return false,
        }
    }
}

/// Everything below is as the table says, and root's.
fn look(dir: &Path, search_in: &str) {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in walk(dir) {
        let shown = path.strip_prefix(dir).expect("below").to_string_lossy().into_owned();
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.file_type().is_symlink() {
            continue;
        }
        seen += 1;
        let mode = meta.permissions().mode() & 0o7777;
        let Some((_, modes, why)) = TABLE.iter().find(|(pattern, ..)| matches(pattern, &shown)) else {
            wrong.push(format!("{shown} ({mode:o}): nobody knows what it is"));
            continue;
        };
        if modes.is_empty() {
            continue;
        }
        if !modes.contains(&mode) {
            let wanted: Vec<_> = modes.iter().map(|mode| format!("{mode:o}")).collect();
            wrong.push(format!("{shown} is {mode:o}, not {}: {why}", wanted.join(" or ")));
        }
        if meta.uid() != 0 {
            wrong.push(format!("{shown} belongs to {}", meta.uid()));
        }
        let open = mode & 0o002 != 0 && !meta.file_type().is_socket();
        let meant = shown.contains("/containers/") || shown.contains("/volumes/") || why.starts_with("the test's");
        if open && !meant {
            wrong.push(format!("{shown} is {mode:o}: anybody may write it"));
        }
    }
    assert!(seen > 60, "{search_in}: only {seen} files");
    assert!(wrong.is_empty(), "{search_in}:\n{}", wrong.join("\n"));
}

/// What the containers see of it.
fn look_from_within(cluster: &Cluster, name: &str) {
    let says = |pod: &str, script: &str| {
        let said = cluster.kubectl_args(&["exec", pod, "--", "sh", "-c", script]);
        said.trim().to_owned()
    };
    let volumes = [
        ("/secret/k", "440 0:2000"),
        ("/wide/k", "644 0:2000"),
        ("/one", "644 0:2000"),
        ("/all/k", "644 0:2000"),
        ("/all/token", "640 1000:2000"),
    ];
    for (path, wanted) in volumes {
        assert_eq!(says(name, &format!("stat -L -c '%a %u:%g' {path}")), wanted, "{path}");
        assert!(!says(name, &format!("cat {path}")).is_empty(), "{path}");
    }
    assert_eq!(says(name, "stat -c '%a %u:%g' /empty"), "2777 0:2000");
    for mount in [
        "/secret",
        "/wide",
        "/all",
        "/var/run/secrets/kubernetes.io/serviceaccount",
    ] {
        let of = says(name, &format!("grep \" $(readlink -f {mount}) \" /proc/mounts"));
        assert!(of.contains(" tmpfs ") && of.contains(" ro,"), "{mount}: {of}");
    }
    // Read by somebody who is not root, and written by nobody.
    assert!(says(name, "cat /etc/resolv.conf").contains("nameserver"));
    assert!(says(name, "cat /etc/hosts").contains("localhost"));
    assert_eq!(says(name, "cat /etc/hostname"), name);
    assert_eq!(says(name, "umask"), "0022");
    assert_eq!(says(name, "id -u; id -G"), "1000\n1000 2000");
    assert!(says(name, "touch /secret/x /all/x 2>&1 || true").contains("Read-only file system"));
    assert_eq!(says(&format!("plain-{name}"), "stat -L -c '%a %u:%g' /s/k"), "644 0:0");
}

#[test]
fn files_are_private_whatever_the_umask() {
    if !ready("files_are_private_whatever_the_umask") {
        return;
    }
    let mut cluster = Cluster::start("files");
    // Somebody was here before.
    fs::set_permissions(cluster.dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    for (mask, name) in [(0o000, "open"), (0o777, "closed")] {
        cluster.kill();
        cluster.set_umask(mask);
        cluster.start_server();
        cluster.apply(&PODS.replace("NAME", name));
        cluster.kubectl(&format!(
            "wait --for=condition=Ready --timeout=60s pod/{name} pod/plain-{name}"
        ));
        look(cluster.dir.path(), &format!("umask {mask:o}"));
        look_from_within(&cluster, name);
    }
    // Somebody who is nobody gets nowhere, wherever they try.
    let try_as_nobody = |script: &str| {
        output(std::process::Command::new("setpriv").args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            script,
        ]))
    };
    if try_as_nobody("true").status.success() {
        for below in ["", "/node/pods", "/run", "/runtime/containers", "/store", "/pki"] {
            let script = format!("ls {}{below}", cluster.dir.path().display());
            assert!(!try_as_nobody(&script).status.success(), "{script}");
        }
    } else {
        eprintln!("not tried as nobody: it needs setpriv");
    }
    // A backup into a directory where others may write: what they put there is not written into.
    let public = tempfile::tempdir().expect("a directory");
    fs::set_permissions(public.path(), fs::Permissions::from_mode(0o1777)).expect("chmod");
    let (target, victim) = (public.path().join("backup"), public.path().join("victim"));
    fs::write(&victim, "mine").expect("write");
    for trap in ["file", "link"] {
        let partial = public.path().join("backup.partial");
        match trap {
            "file" => {
                fs::write(&partial, "").expect("write");
                fs::set_permissions(&partial, fs::Permissions::from_mode(0o666)).expect("chmod");
            }
            _ => std::os::unix::fs::symlink(&victim, &partial).expect("link"),
        }
        let command = "umask 0; exec \"$@\"";
        must(
            cluster
                .lab
                .on_node("sh")
                .args(["-c", command, "sh"])
                .arg(binary())
                .arg("backup")
                .arg(&target)
                .arg("--kubeconfig")
                .arg(cluster.kubeconfig()),
        );
        assert_eq!(
            fs::metadata(&target).expect("a backup").permissions().mode() & 0o777,
            0o600,
            "{trap}"
        );
        assert_eq!(fs::read_to_string(&victim).expect("still there"), "mine");
        assert!(!partial.exists());
    }
    assert!(cluster.stop());
}
