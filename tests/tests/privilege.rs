//! The example of a Pod that is trusted with a Secret, a device and nothing else, and what happens around it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use sampan_e2e::{Cluster, examples, ready};

/// A Pod that wants a device and says who it is.
fn wants_device(name: &str, extra: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
{extra}
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'exec 3<>/dev/net/tun && echo opened; awk \"{{print \\$2}}\" /proc/self/uid_map; sleep 3600']
    resources: {{limits: {{example.com/tun: 1}}}}
"
    )
}

#[test]
fn a_pod_with_little_gets_that_and_nothing_else() {
    if !ready("a_pod_with_little_gets_that_and_nothing_else") {
        return;
    }
    if !fs::exists("/dev/net/tun").unwrap_or(false) {
        eprintln!("skipped: this machine has no /dev/net/tun");
        return;
    }
    let device = "--device=example.com/tun=/dev/net/tun*2";
    let mut cluster = Cluster::start_with("privilege", &[device]);
    let example = examples().join("least-privilege");
    let profiles = cluster.dir.path().join("node/seccomp");
    fs::create_dir_all(&profiles).expect("a directory");
    fs::copy(
        example.join("least-privilege.json"),
        profiles.join("least-privilege.json"),
    )
    .expect("the profile");
    cluster.wait("the node", 30, |cluster| {
        cluster.kubectl("get nodes -o jsonpath={.items[*].status.allocatable.example\\.com/tun}") == "2"
    });
    cluster.kubectl_args(&["apply", "-f", &example.join("least-privilege.yaml").to_string_lossy()]);
    cluster.kubectl("-n vault wait --for=condition=Ready --timeout=60s pod/reader");
    let said = |cluster: &Cluster| cluster.kubectl("-n vault logs reader");
    cluster.wait("the program's words", 20, |cluster| said(cluster).contains("mkdir"));
    let words = said(&cluster);
    let lines = [
        "user      10001:10001, and user 0 here is user ",
        "CapBnd:\t0000000000000000, NoNewPrivs:\t1, Seccomp:\t2",
        "secret    22 characters, in mode 440 of group 10001",
        "device    crw",
        "root      is read-only",
        "mkdir     is not in the profile",
    ];
    for line in lines {
        assert!(words.contains(line), "{line} is not in\n{words}");
    }

    // For the node it is a user of nobody, with nothing of the node's.
    let pod = cluster.get("pod reader -n vault");
    let container = pod["status"]["containerStatuses"][0]["containerID"].clone();
    let record = cluster
        .dir
        .path()
        .join("node/pods")
        .join(pod["metadata"]["uid"].as_str().expect("a uid"));
    let ids: serde_json::Value =
        serde_json::from_slice(&fs::read(record.join("userns")).expect("the pod's ids")).expect("JSON");
    let first = ids["uidMappings"][0]["hostId"].as_u64().expect("an id");
    assert!(first >= 65_536, "{ids}");
    let owned = fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        line.starts_with("sh\0-c\0echo \"user ")
            && entry
                .metadata()
                .is_ok_and(|metadata| u64::from(metadata.uid()) == first + 10_001)
    });
    assert!(owned, "no process of user {}", first + 10_001);

    // What it must not do, tried from inside.
    for attempt in [
        "mknod /tmp/sda b 8 0",
        "mount -t tmpfs x /tmp",
        "ping -c 1 127.0.0.1",
        "chown 0 /tmp",
        "unshare -U true",
    ] {
        let command = format!("-n vault exec reader -- {attempt}");
        assert!(cluster.try_kubectl(&command).is_err(), "{attempt}");
    }
    // What the namespace does not take.
    let refused = cluster
        .try_kubectl("-n vault run rooted --image=localhost/sampan/busybox:1.35 --privileged")
        .expect_err("a privileged pod");
    assert!(
        refused.contains("violates PodSecurity \"restricted:latest\""),
        "{refused}"
    );

    // Devices are counted: one is left, and who asks after that waits until one is given back.
    cluster.apply(&wants_device("other", "  hostUsers: false"));
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/other");
    cluster.wait("its words", 20, |cluster| {
        cluster.kubectl("logs other").lines().count() == 2
    });
    let words = cluster.kubectl("logs other");
    let lines: Vec<&str> = words.lines().collect();
    assert_eq!(lines[0], "opened");
    assert_ne!(lines[1], first.to_string(), "no two pods share their users");
    cluster.apply(&wants_device("third", ""));
    cluster.wait("the third to be told", 30, |cluster| {
        let pod = cluster.kubectl("get pod third -o jsonpath={.status.conditions[*].message}");
        pod.contains("Insufficient example.com/tun")
    });

    // The server dies: everything goes on as it was, and is known again afterwards.
    cluster.kill();
    cluster.start_server();
    cluster.kubectl("-n vault wait --for=condition=Ready --timeout=60s pod/reader");
    let after = cluster.get("pod reader -n vault");
    assert_eq!(after["status"]["containerStatuses"][0]["containerID"], container);
    assert_eq!(cluster.kubectl("-n vault exec reader -- id -u").trim(), "10001");
    assert!(
        cluster
            .try_kubectl("get pod third -o jsonpath={.status.phase}")
            .is_ok_and(|phase| phase == "Pending")
    );
    cluster.kubectl("delete pod other --wait");
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/third");
    cluster.wait("its words", 20, |cluster| {
        cluster.kubectl("logs third").lines().count() == 2
    });
    assert!(
        cluster.kubectl("logs third").starts_with("opened\n0\n"),
        "the node's users"
    );
    assert!(!record.join("userns.new").exists());

    // Files of a Pod with users of its own are gone with it.
    cluster.kubectl("delete namespace vault --timeout=60s");
    cluster.wait("the pod's directory to go", 30, |_| !record.exists());
    cluster.stop();
    let left = fs::metadata(cluster.dir.path()).expect("the data directory");
    assert_eq!(left.uid(), 0);
}
