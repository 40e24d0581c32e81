//! NetworkPolicies as the Pods feel them: who reaches whom, while policies come, change and go, and while no server runs.

use std::process::Command;

use sampan_e2e::{Cluster, output, ready};

/// What the process of a Pod is called, for finding its network namespace while no server can be asked.
fn mark(pod: &str) -> String {
    format!("{pod}-of-{}", std::process::id())
}

fn pod(namespace: &str, name: &str, script: &str, probe: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, '{script}; sleep 3600; : {mark}']
    {probe}
---
",
        mark = mark(name)
    )
}

fn policy(name: &str, app: &str, spec: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}}}
spec: {{podSelector: {{matchLabels: {app}}}, {spec}}}
"
    )
}

/// A Pod asks for a page; whether it got it.
fn hears(cluster: &Cluster, namespace: &str, pod: &str, address: &str) -> bool {
    let (ip, port) = address.split_once(':').expect("an address and a port");
    let fetch = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {ip} {port} || echo nothing");
    let heard = cluster.kubectl_args(&["-n", namespace, "exec", pod, "--", "sh", "-c", &fetch]);
    heard.contains("served")
}

/// The same, asked in the Pod's network namespace and without a server.
fn hears_alone(pod: &str, address: &str) -> bool {
    let mark = mark(pod);
    let process = std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            line.starts_with(b"sh\0-c\0") && String::from_utf8_lossy(&line).contains(&mark)
        })
        .unwrap_or_else(|| panic!("the process of {pod}"));
    let asked = output(
        Command::new("nsenter")
            .arg(format!("--net={}", process.join("ns/net").display()))
            .args(["curl", "-sS", "--max-time", "2"])
            .arg(format!("http://{address}/")),
    );
    String::from_utf8_lossy(&asked.stdout).contains("served")
}

/// Waits until exactly these of the Pods hear at the address.
fn wait_for(cluster: &mut Cluster, what: &str, address: &str, expected: [bool; 3]) {
    let ask = |cluster: &Cluster| {
        [("default", "friend"), ("default", "stranger"), ("other", "guest")]
            .map(|(namespace, pod)| hears(cluster, namespace, pod, address))
    };
    let mut last = [false; 3];
    for _ in 0..8 {
        last = ask(cluster);
        if last == expected {
            return;
        }
    }
    panic!(
        "{what}: friend, stranger and guest at {address}: {last:?}, expected {expected:?}\n{}",
        cluster.log()
    );
}

#[test]
fn pods_hear_whom_policies_let_them() {
    if !ready("pods_hear_whom_policies_let_them") {
        return;
    }
    let mut cluster = Cluster::start("policies");
    cluster.kubectl("create namespace other");
    cluster.wait("the other default service account", 30, |cluster| {
        cluster.try_kubectl("-n other get serviceaccount default").is_ok()
    });
    let serve = "mkdir /w; echo served > /w/index.html; httpd -p 8080 -h /w; httpd -p 9090 -h /w";
    let probe = "readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1, failureThreshold: 1}";
    let pods = [
        pod("default", "server", serve, probe),
        pod("default", "friend", ":", ""),
        pod("default", "stranger", ":", ""),
        pod("other", "guest", ":", ""),
    ];
    let service = "
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {type: NodePort, selector: {app: server}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
";
    cluster.apply(&(pods.concat() + service));
    cluster.kubectl("wait --for=condition=Ready --timeout=90s pod --all");
    cluster.kubectl("-n other wait --for=condition=Ready --timeout=90s pod --all");
    let address = cluster.get("pod server")["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    let service = cluster.get("service server");
    let virtual_ip = format!("{}:80", service["spec"]["clusterIP"].as_str().expect("an address"));
    let (page, other_page) = (format!("{address}:8080"), format!("{address}:9090"));
    let outside = |cluster: &Cluster| {
        cluster
            .fetch_outside(&format!("http://{}:30080/", sampan_e2e::NODE))
            .is_some()
    };

    wait_for(&mut cluster, "no policy", &page, [true; 3]);
    wait_for(&mut cluster, "no policy", &virtual_ip, [true; 3]);
    assert!(outside(&cluster));

    cluster.apply(&policy("ingress", "{}", "policyTypes: [Ingress]"));
    wait_for(&mut cluster, "nobody", &page, [false; 3]);
    wait_for(&mut cluster, "nobody", &virtual_ip, [false; 3]);
    assert!(!outside(&cluster));

    let server = "{app: server}";
    let from_friend = "ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}]}]";
    cluster.apply(&policy("friends", server, from_friend));
    wait_for(&mut cluster, "friends", &page, [true, false, false]);
    wait_for(&mut cluster, "friends", &virtual_ip, [true, false, false]);
    wait_for(&mut cluster, "another port", &other_page, [false; 3]);

    let from_other = "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]";
    cluster.apply(&policy("neighbours", server, from_other));
    wait_for(&mut cluster, "a namespace", &page, [true, false, true]);
    wait_for(&mut cluster, "a namespace, any port", &other_page, [false, false, true]);
    wait_for(&mut cluster, "a namespace", &virtual_ip, [true, false, true]);

    // A Pod's labels decide, as they change.
    cluster.kubectl("label pod stranger app=friend --overwrite");
    wait_for(&mut cluster, "relabelled", &page, [true; 3]);
    cluster.kubectl("label pod stranger app=stranger --overwrite");
    wait_for(&mut cluster, "labelled back", &page, [true, false, true]);

    // Whoever asks from outside is seen as who he is.
    assert!(!outside(&cluster));
    let from_outside = format!(
        "ingress: [{{from: [{{ipBlock: {{cidr: {}/32}}}}]}}]",
        sampan_e2e::OUTSIDE
    );
    cluster.apply(&policy("outside", server, &from_outside));
    cluster.wait("the neighbour to be let in", 20, |cluster| outside(cluster));
    cluster.kubectl("delete networkpolicy outside");
    cluster.wait("the neighbour to be kept out", 20, |cluster| !outside(cluster));

    let to_nobody = "policyTypes: [Egress], egress: []";
    cluster.apply(&policy("egress", "{app: friend}", to_nobody));
    wait_for(&mut cluster, "the friend may not ask", &page, [false, false, true]);
    wait_for(
        &mut cluster,
        "the friend may not ask",
        &virtual_ip,
        [false, false, true],
    );
    let to_server =
        "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 8080}]}]";
    cluster.apply(&policy("egress", "{app: friend}", to_server));
    wait_for(&mut cluster, "the friend may ask there", &page, [true, false, true]);
    wait_for(
        &mut cluster,
        "the friend may ask there",
        &virtual_ip,
        [true, false, true],
    );

    // No server: the rules hold, and hold on while the next one finds out what there is.
    cluster.kill();
    let alone = |address: &str| ["friend", "stranger", "guest"].map(|pod| hears_alone(pod, address));
    assert_eq!(alone(&page), [true, false, true], "while no server runs");
    assert_eq!(
        alone(&virtual_ip),
        [true, false, true],
        "through the Service, while no server runs"
    );
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let watched = page.clone();
    let watcher = std::thread::spawn(move || {
        let mut let_through = 0;
        while stopped.try_recv().is_err() {
            let_through += usize::from(hears_alone("stranger", &watched));
        }
        let_through
    });
    cluster.start_server();
    cluster.wait("the node to be Ready again", 60, |cluster| {
        cluster.kubectl("get nodes -o jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}") == "True"
    });
    wait_for(&mut cluster, "after the restart", &page, [true, false, true]);
    wait_for(&mut cluster, "after the restart", &virtual_ip, [true, false, true]);
    stop.send(()).expect("a watcher");
    assert_eq!(
        watcher.join().expect("a watcher"),
        0,
        "the stranger got through meanwhile"
    );

    // The node asked all the while, and was answered.
    let server = cluster.get("pod server");
    assert_eq!(server["status"]["containerStatuses"][0]["ready"], true);

    // The next server still follows them.
    cluster.kubectl("delete networkpolicy neighbours");
    wait_for(&mut cluster, "no neighbours any more", &page, [true, false, false]);
    cluster.kubectl("delete networkpolicy --all");
    wait_for(&mut cluster, "no policy any more", &page, [true; 3]);
    wait_for(&mut cluster, "no policy any more", &virtual_ip, [true; 3]);
    assert!(outside(&cluster));
}
