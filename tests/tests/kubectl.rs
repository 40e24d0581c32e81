//! What people type: every kubectl on the machine against a cluster with a running Pod.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sampan_e2e::{Cluster, Session, kubectls, must, output, ready};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {app: box}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'echo started; mkdir -p /www; echo page > /www/index.html; httpd -p 8080 -h /www; while read line; do echo got $line; done; sleep 3600']
    stdin: true
---
apiVersion: v1
kind: Pod
metadata: {name: crasher}
spec:
  containers:
  - {name: main, image: 'localhost/sampan/busybox:1.35', command: [sh, -c, 'echo attempt; sleep 1; exit 3']}
";

#[test]
fn every_kubectl_works() {
    if !ready("every_kubectl_works") {
        return;
    }
    let mut cluster = Cluster::start("kubectl");
    cluster.apply(PODS);
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/box");
    cluster.wait("the crasher to have crashed twice", 60, |cluster| {
        let count = cluster.kubectl("get pod crasher -o jsonpath={.status.containerStatuses[0].restartCount}");
        count.parse::<u32>().is_ok_and(|count| count >= 1)
    });
    for kubectl in kubectls() {
        let session = Session::new(&cluster, &kubectl);
        reading(&session);
        streams(&session);
        forwarding(&session);
        changing(&session);
        refusals(&session);
    }
}

fn reading(session: &Session<'_>) {
    let pods = session.words("get pods -o wide");
    session.expect(
        "columns",
        pods.contains("NOMINATED NODE") && pods.contains("Running"),
        &pods,
    );
    let yaml = session.words("get pod box -o yaml");
    session.expect(
        "yaml",
        yaml.contains("kind: Pod") && yaml.contains("qosClass: BestEffort"),
        &yaml,
    );
    let described = session.words("describe pod box");
    session.expect(
        "describe",
        described.contains("Successfully assigned default/box"),
        &described,
    );
    session.expect(
        "events of the container",
        described.contains("Started") && described.contains("Pulled"),
        &described,
    );
    let node = session.words("describe node node-1");
    session.expect("describe node", node.contains("Allocated resources"), &node);
    let logs = session.words("logs box");
    session.expect("logs", logs.starts_with("started"), &logs);
    let previous = session.words("logs crasher --previous");
    if !previous.contains("attempt") {
        let crasher = session.words("get pod crasher -o yaml");
        session.expect("logs --previous", false, &format!("{previous:?} of\n{crasher}"));
    }
    let explained = session.words("explain pod.spec.containers.livenessProbe");
    session.expect("explain", explained.contains("initialDelaySeconds"), &explained);
    let resources = session.words("api-resources --no-headers");
    session.expect("api-resources", resources.lines().count() >= 60, &resources);
    let waited = session.words("get pods -l app=box --field-selector status.phase=Running --no-headers");
    session.expect("selectors", waited.lines().count() == 1, &waited);
    let events = session.words("events");
    session.expect(
        "events",
        events.contains("BackOff") || events.contains("Started"),
        &events,
    );
}

fn streams(session: &Session<'_>) {
    let echoed = session.run(&["exec", "box", "--", "echo", "a b", "c"]);
    session.expect("exec", echoed == "a b c\n", &echoed);
    let failed = output(
        session
            .cluster
            .kubectl_command(session.kubectl)
            .args(["exec", "box", "--", "sh", "-c", "exit 9"]),
    );
    session.expect(
        "exit codes",
        failed.status.code() == Some(9),
        &format!("{:?}", failed.status),
    );

    // Standard input through and back, a megabyte of it.
    let mut child = session
        .cluster
        .kubectl_command(session.kubectl)
        .args(["exec", "-i", "box", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let sent: Vec<u8> = (0..1_000_000u32).map(|number| b'a' + (number % 26) as u8).collect();
    let mut stdin = child.stdin.take().expect("stdin");
    let to_send = sent.clone();
    let feeder = std::thread::spawn(move || stdin.write_all(&to_send).expect("feed"));
    let mut received = Vec::new();
    child
        .stdout
        .take()
        .expect("stdout")
        .read_to_end(&mut received)
        .expect("read");
    feeder.join().expect("the feeder");
    session.expect("exec -i ends well", child.wait().expect("wait").success(), "");
    session.expect("exec -i", received == sent, &format!("{} bytes", received.len()));

    // A terminal, as `script` gives kubectl one.
    let terminal = session.run(&["exec", "box", "--", "sh", "-c", "test -t 0 || echo no terminal"]);
    session.expect("no terminal unless asked", terminal.contains("no terminal"), &terminal);

    let mut child = session
        .cluster
        .kubectl_command(session.kubectl)
        .args(["attach", "-i", "box"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let mut stdin = child.stdin.take().expect("stdin");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let word = format!("hello-{}", session.version);
    std::thread::sleep(Duration::from_millis(700));
    writeln!(stdin, "{word}").expect("write");
    let answer = lines.find_map(|line| line.ok().filter(|line| line.contains(&word)));
    session.expect(
        "attach",
        answer.as_deref() == Some(&format!("got {word}")),
        &format!("{answer:?}"),
    );
    child.kill().expect("kill");
    child.wait().expect("wait");

    // Follow: what comes later arrives.
    let mut child = session
        .cluster
        .kubectl_command(session.kubectl)
        .args(["logs", "-f", "crasher"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let line = BufReader::new(child.stdout.take().expect("stdout")).lines().next();
    session.expect(
        "logs -f",
        matches!(&line, Some(Ok(line)) if line == "attempt"),
        &format!("{line:?}"),
    );
    child.kill().expect("kill");
    child.wait().expect("wait");

    // cp, there and back.
    let dir = session.cluster.dir.path().join(format!("cp-{}", session.version));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("there"), &sent[..300_000]).expect("write");
    session.run(&["cp", &dir.join("there").to_string_lossy(), "box:/tmp/there"]);
    session.run(&["cp", "box:/tmp/there", &dir.join("back").to_string_lossy()]);
    session.expect(
        "cp",
        std::fs::read(dir.join("back")).ok().as_deref() == Some(&sent[..300_000]),
        "",
    );
}

fn forwarding(session: &Session<'_>) {
    let mut child = session
        .cluster
        .kubectl_command(session.kubectl)
        .args(["port-forward", "pod/box", ":8080"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let line = lines.next().and_then(Result::ok).unwrap_or_default();
    let port = line
        .split("127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or_default()
        .to_owned();
    session.expect("port-forward says where", !port.is_empty(), &line);
    for _ in 0..3 {
        let page = must(session.cluster.lab.on_node("curl").args([
            "-sS",
            "--max-time",
            "5",
            &format!("http://127.0.0.1:{port}/"),
        ]));
        session.expect("port-forward", page == "page\n", &page);
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
}

fn changing(session: &Session<'_>) {
    let namespace = format!("k-{}", session.version.replace(['.', '_'], "-").to_lowercase());
    let namespace = namespace.as_str();
    session.run(&["create", "namespace", namespace]);
    let in_namespace =
        |words: &str| session.run(&[&["-n", namespace], words.split(' ').collect::<Vec<_>>().as_slice()].concat());
    let patient = "trap exit TERM; sleep 3600 & wait";
    session.run(&[
        "-n",
        namespace,
        "create",
        "deployment",
        "web",
        "--image=localhost/sampan/busybox:1.35",
        "--replicas=2",
        "--",
        "sh",
        "-c",
        patient,
    ]);
    in_namespace("rollout status deployment/web --timeout=60s");
    in_namespace("set env deployment/web STEP=2");
    in_namespace("rollout status deployment/web --timeout=90s");
    let history = in_namespace("rollout history deployment/web");
    session.expect(
        "rollout history",
        history.lines().any(|line| line.starts_with('2')),
        &history,
    );
    in_namespace("rollout undo deployment/web");
    in_namespace("rollout status deployment/web --timeout=90s");
    let environment = in_namespace("get deployment web -o jsonpath={.spec.template.spec.containers[0].env}");
    session.expect("rollout undo", environment.is_empty(), &environment);
    in_namespace("scale deployment web --replicas=1");
    in_namespace("wait --for=jsonpath={.status.replicas}=1 --timeout=60s deployment/web");
    in_namespace("expose deployment web --port=80");
    in_namespace("label deployment web tier=front");
    in_namespace("annotate deployment web note=here");
    in_namespace("create configmap c --from-literal=a=1");
    in_namespace("create secret generic s --from-literal=a=1");
    in_namespace("create job j --image=localhost/sampan/busybox:1.35 -- true");
    in_namespace("wait --for=condition=Complete --timeout=60s job/j");
    let token = in_namespace("create token default");
    session.expect("create token", token.matches('.').count() == 2, &token);
    let allowed = in_namespace("auth can-i create pods");
    session.expect("auth can-i", allowed.trim() == "yes", &allowed);
    in_namespace("delete deployment web");
    let start = Instant::now();
    session.run(&["delete", "namespace", namespace, "--timeout=60s"]);
    eprintln!("  namespace gone in {:?}", start.elapsed());
}

fn refusals(session: &Session<'_>) {
    let text = session.fails(&["get", "pod", "nobody"]);
    session.expect(
        "not found",
        text.contains(r#"Error from server (NotFound): pods "nobody" not found"#),
        &text,
    );
    let text = session.fails(&["create", "namespace", "Bad_Name"]);
    session.expect(
        "bad name",
        text.contains("is invalid") && text.contains("RFC 1123"),
        &text,
    );
    let text = session.fails(&["-n", "nowhere", "create", "configmap", "c"]);
    session.expect(
        "no namespace",
        text.contains(r#"namespaces "nowhere" not found"#),
        &text,
    );
    let text = session.fails(&["patch", "pod", "box", "-p", r#"{"spec":{"restartPolicy":"Never"}}"#]);
    session.expect(
        "immutable",
        text.contains("Forbidden: pod updates may not change fields other than"),
        &text,
    );
    let text = session.fails(&["exec", "nobody", "--", "true"]);
    session.expect("exec into nothing", text.contains("not found"), &text);
    let path = session.cluster.dir.path().join("unknown.yaml");
    std::fs::write(&path, "apiVersion: v1\nkind: Pod\nmetadata: {name: u}\nspec:\n  containerz: []\n  containers: [{name: a, image: b}]\n").expect("write");
    let text = session.fails(&["create", "-f", &path.to_string_lossy()]);
    session.expect(
        "unknown field",
        text.contains("unknown field") && text.contains("containerz"),
        &text,
    );
}
