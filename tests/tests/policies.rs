//! NetworkPolicies as the Pods feel them: who reaches whom, while policies come, change and go, and while no server runs.
//!
//! Who asks does so in the Pod's network namespace, so that nothing but the network is in between and all can ask at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sampan_e2e::{Cluster, ready, within};

/// How long a question waits for its answer: being refused is silence.
const PATIENCE: Duration = Duration::from_millis(700);
const DATAGRAMS: u16 = 5353;

/// What the process of a Pod is called, for finding its network namespace.
fn mark(pod: &str) -> String {
    format!("{pod}-of-{}", std::process::id())
}

fn pod(namespace: &str, name: &str, script: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, '{script}; sleep 3600; : {mark}']
    {more}
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

fn namespace_of(pod: &str) -> PathBuf {
    let mark = mark(pod);
    let process = std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            line.starts_with(b"sh\0-c\0") && String::from_utf8_lossy(&line).contains(&mark)
        });
    process.unwrap_or_else(|| panic!("the process of {pod}")).join("ns/net")
}

fn fetches(to: SocketAddr) -> bool {
    let fetched = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    };
    fetched().is_ok_and(|page| page.contains("served"))
}

fn is_answered(to: SocketAddr) -> bool {
    let answered = || -> std::io::Result<usize> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"?", to)?;
        socket.recv(&mut [0; 8])
    };
    answered().is_ok()
}

/// Friend, stranger and guest.
type Askers = [PathBuf; 3];

/// Which of them hear at the address, asked at once.
fn who(askers: &Askers, to: SocketAddr, ask: fn(SocketAddr) -> bool) -> [bool; 3] {
    std::thread::scope(|scope| {
        askers
            .each_ref()
            .map(|asker| scope.spawn(move || within(asker, || ask(to))))
            .map(|asked| asked.join().expect("an answer"))
    })
}

/// Waits until exactly these hear at each of the addresses.
#[track_caller]
fn wait_for(cluster: &Cluster, askers: &Askers, what: &str, expected: &[(&str, SocketAddr, [bool; 3])]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    for (kind, to, expected) in expected {
        let ask = if *kind == "udp" { is_answered } else { fetches };
        loop {
            let found = who(askers, *to, ask);
            if found == *expected {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: friend, stranger and guest at {kind} {to}: {found:?}, expected {expected:?}\n{}",
                cluster.log()
            );
        }
    }
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
    let more = "readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1, failureThreshold: 1}
    ports: [{name: web, containerPort: 8080}, {name: names, containerPort: 5353, protocol: UDP}]";
    let pods = [
        pod("default", "server", serve, more),
        pod("default", "friend", ":", ""),
        pod("default", "stranger", ":", ""),
        pod("other", "guest", ":", ""),
    ];
    let service = "
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  type: NodePort
  selector: {app: server}
  ports:
  - {name: web, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: names, port: 53, targetPort: names, protocol: UDP}
";
    cluster.apply(&(pods.concat() + service));
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod --all");
    cluster.kubectl("-n other wait --for=condition=Ready --timeout=60s pod --all");
    let askers = ["friend", "stranger", "guest"].map(namespace_of);
    let socket = within(&namespace_of("server"), || UdpSocket::bind(("0.0.0.0", DATAGRAMS))).expect("a socket");
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 8]) {
            if socket.send_to(b"!", from).is_err() {
                return;
            }
        }
    });

    let text = |value: &serde_json::Value| value.as_str().expect("an address").to_owned();
    let ip = text(&cluster.get("pod server")["status"]["podIP"]);
    let virtual_ip = text(&cluster.get("service server")["spec"]["clusterIP"]);
    let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().expect("an address"), port);
    let (page, other_page, through) = (at(&ip, 8080), at(&ip, 9090), at(&virtual_ip, 80));
    let (names, names_through) = (at(&ip, DATAGRAMS), at(&virtual_ip, 53));
    let neighbour = cluster.lab.outside_namespace();
    let outside = || within(&neighbour, || fetches(at(sampan_e2e::NODE, 30080)));
    let outside_is = |expected: bool, what: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while outside() != expected {
            assert!(Instant::now() < deadline, "{what}");
        }
    };
    // The same for the page itself and through the Service.
    let page_is = |who: [bool; 3]| [("tcp", page, who), ("tcp", through, who)];
    let names_are = |who: [bool; 3]| [("udp", names, who), ("udp", names_through, who)];

    wait_for(&cluster, &askers, "no policy", &page_is([true; 3]));
    wait_for(&cluster, &askers, "no policy", &names_are([true; 3]));
    outside_is(true, "without policies the neighbour is let in");

    cluster.apply(&policy("ingress", "{}", "policyTypes: [Ingress]"));
    wait_for(&cluster, &askers, "nobody", &page_is([false; 3]));
    wait_for(&cluster, &askers, "nobody", &names_are([false; 3]));
    outside_is(false, "the neighbour is nobody");

    let server = "{app: server}";
    let from_friend = "ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: web}]}]";
    cluster.apply(&policy("friends", server, from_friend));
    wait_for(&cluster, &askers, "friends", &page_is([true, false, false]));
    wait_for(&cluster, &askers, "another port", &[("tcp", other_page, [false; 3])]);
    wait_for(&cluster, &askers, "another protocol", &[("udp", names, [false; 3])]);

    let from_other = "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]";
    let for_names = "ingress: [{ports: [{port: names, protocol: UDP}]}]";
    cluster.apply(&(policy("neighbours", server, from_other) + "---" + &policy("names", server, for_names)));
    wait_for(&cluster, &askers, "a namespace", &page_is([true, false, true]));
    wait_for(
        &cluster,
        &askers,
        "any port",
        &[("tcp", other_page, [false, false, true])],
    );
    wait_for(&cluster, &askers, "names for all", &names_are([true; 3]));

    // A Pod's labels decide, as they change.
    cluster.kubectl("label pod stranger app=friend --overwrite");
    wait_for(&cluster, &askers, "relabelled", &page_is([true; 3]));
    cluster.kubectl("label pod stranger app=stranger --overwrite");
    wait_for(&cluster, &askers, "labelled back", &page_is([true, false, true]));

    // Whoever asks from outside is seen as who he is.
    let block = format!(
        "ingress: [{{from: [{{ipBlock: {{cidr: {}/32}}}}]}}]",
        sampan_e2e::OUTSIDE
    );
    cluster.apply(&policy("outside", server, &block));
    outside_is(true, "the neighbour is let in");
    cluster.kubectl("delete networkpolicy outside");
    outside_is(false, "the neighbour is kept out again");

    cluster.apply(&policy("egress", "{app: friend}", "policyTypes: [Egress], egress: []"));
    let quiet = page_is([false, false, true]);
    wait_for(&cluster, &askers, "the friend may not ask", &quiet);
    let to_server =
        "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: web}]}]";
    cluster.apply(&policy("egress", "{app: friend}", to_server));
    let asked = page_is([true, false, true]);
    wait_for(&cluster, &askers, "the friend may ask there", &asked);
    wait_for(
        &cluster,
        &askers,
        "and nothing else",
        &[("udp", names, [false, true, true])],
    );

    // No server: the rules hold, and hold on while the next one finds out what there is.
    cluster.kill();
    wait_for(&cluster, &askers, "while no server runs", &asked);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let stranger: &Path = &askers[1];
    std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let mut let_through = 0;
            while stopped.try_recv().is_err() {
                let_through += usize::from(within(stranger, || fetches(page)));
            }
            let_through
        });
        cluster.start_server();
        cluster.wait("the node to be Ready again", 60, |cluster| {
            cluster.kubectl("get nodes -o jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}")
                == "True"
        });
        wait_for(&cluster, &askers, "after the restart", &asked);
        stop.send(()).expect("a watcher");
        let through = watcher.join().expect("a watcher");
        assert_eq!(through, 0, "the stranger got through meanwhile");
    });

    // The node asked all the while, and was answered.
    let server = cluster.get("pod server");
    assert_eq!(server["status"]["containerStatuses"][0]["ready"], true);

    // The next server still follows them.
    cluster.kubectl("delete networkpolicy neighbours");
    wait_for(
        &cluster,
        &askers,
        "no neighbours any more",
        &page_is([true, false, false]),
    );
    cluster.kubectl("delete networkpolicy --all");
    wait_for(&cluster, &askers, "no policy any more", &page_is([true; 3]));
    outside_is(true, "no policy any more");
}
