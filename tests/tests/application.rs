//! The example application, as a new user gets it: nginx in front, Redis behind, loaded by a Job.

use sampan_e2e::{Cluster, NODE, examples, ready};

#[test]
fn the_guestbook_runs() {
    if !ready("the_guestbook_runs") {
        return;
    }
    let cluster = Cluster::start("app");
    let before = cluster.lab.network_state();
    assert!(before.contains("sampan0"), "the bridge is there:\n{before}");
    cluster.kubectl_args(&["apply", "-f", &examples().join("guestbook").to_string_lossy()]);
    for name in ["redis", "web"] {
        cluster.kubectl(&format!(
            "-n guestbook wait --for=condition=Available --timeout=120s deployment/{name}"
        ));
    }
    cluster.kubectl("-n guestbook wait --for=condition=Complete --timeout=120s job/first-entries");

    let url = format!("http://{NODE}:30080/");
    let page = cluster
        .fetch_outside(&url)
        .expect("the page, from the neighbour through the NodePort");
    assert!(
        page.contains("A guestbook on Sampan") && page.contains("Hello from a Job."),
        "{page}"
    );

    // Both replicas answer in turn.
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let page = cluster.fetch_outside(&url).expect("the page");
        let by = page
            .split("answered by ")
            .nth(1)
            .and_then(|rest| rest.split('.').next())
            .expect("a name")
            .to_owned();
        answered.insert(by);
    }
    assert_eq!(answered.len(), 2, "{answered:?}");

    // What was asked for is what runs.
    let web = cluster.get("-n guestbook pods -l app=web");
    let name = web["items"][0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let id = cluster.kubectl_args(&["-n", "guestbook", "exec", &name, "-c", "nginx", "--", "id", "-u"]);
    assert_eq!(id.trim(), "33");
    let status = cluster.kubectl_args(&["-n", "guestbook", "exec", &name, "--", "cat", "/proc/self/status"]);
    let field = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2", "a filter is in force");
    let write = cluster.try_kubectl_args(&["-n", "guestbook", "exec", &name, "--", "touch", "/here"]);
    assert!(write.is_err_and(|error| error.contains("Read-only file system")));

    // The secret reaches the process and not the listing.
    let listing = cluster.kubectl("-n guestbook describe pods");
    assert!(!listing.contains("change-me-in-real-life"));

    cluster.kubectl("delete namespace guestbook --timeout=90s");
    assert!(cluster.fetch_outside(&url).is_none(), "the NodePort is closed");
}

#[test]
fn the_machine_is_as_it_was_when_the_server_is_gone() {
    if !ready("the_machine_is_as_it_was_when_the_server_is_gone") {
        return;
    }
    let mut cluster = Cluster::prepare("clean", &[]);
    cluster.import_images();
    let before = cluster.lab.network_state();
    cluster.start_server();
    cluster.wait("the bridge", 30, |cluster| {
        cluster.lab.network_state().contains("sampan0")
    });
    cluster.wait("the default service account", 30, |cluster| {
        cluster.try_kubectl("get serviceaccount default").is_ok()
    });
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: mounts}
spec:
  containers:
  - {name: main, image: 'localhost/sampan/busybox:1.35', command: [sleep, '3600'], volumeMounts: [{name: memory, mountPath: /memory}]}
  volumes: [{name: memory, emptyDir: {medium: Memory}}]
",
    );
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/mounts");
    assert!(cluster.stop(), "the server ends well");
    let cleaned = cluster.cleanup();
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    assert_eq!(cluster.lab.network_state(), before);
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let dir = cluster.dir.path().to_string_lossy().into_owned();
    assert!(!mounts.contains(&dir), "nothing of {dir} is mounted");
}
