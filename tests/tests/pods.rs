//! What Pods are promised: volumes that follow their sources, probes, order, restarts, limits, names, exits.

use sampan_e2e::{Cluster, ready};

const SOURCES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: abc}
---
apiVersion: v1
kind: Pod
metadata:
  name: reader
  labels: {tier: back}
  annotations: {note: first}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: 'localhost/sampan/busybox:1.35', command: [sh, -c, 'echo one > /shared/order']}
  - {name: second, image: 'localhost/sampan/busybox:1.35', command: [sh, -c, 'echo two >> /shared/order'], volumeMounts: [{name: shared, mountPath: /shared}]}
  - name: sidecar
    image: localhost/sampan/busybox:1.35
    restartPolicy: Always
    command: [sh, -c, 'touch /shared/sidecar; sleep 3600']
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sleep, '3600']
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: MY_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: MY_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MY_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: GREETING, value: 'hello $(MY_NAME)'}
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 200m, memory: 32Mi}}
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: all, mountPath: /all}
    - {name: shared, mountPath: /shared}
    - {name: settings, mountPath: /one/color, subPath: color}
    - {name: memory, mountPath: /memory}
  volumes:
  - {name: settings, configMap: {name: settings, defaultMode: 0440}}
  - name: all
    projected:
      sources:
      - {secret: {name: keys}}
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
      - {serviceAccountToken: {path: sa, expirationSeconds: 600}}
  - {name: shared, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
";

fn exec(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster
        .kubectl_args(&["exec", pod, "--", "sh", "-c", script])
        .trim()
        .to_owned()
}

#[test]
fn volumes_environment_and_order() {
    if !ready("volumes_environment_and_order") {
        return;
    }
    let mut cluster = Cluster::start("volumes");
    let manifests = SOURCES.replace(
        "command: [sh, -c, 'echo one > /shared/order']}",
        "command: [sh, -c, 'echo one > /shared/order'], volumeMounts: [{name: shared, mountPath: /shared}]}",
    );
    cluster.apply(&manifests);
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/reader");
    let says = |script: &str| exec(&cluster, "reader", script);
    assert_eq!(says("cat /shared/order; ls /shared"), "one\ntwo\norder\nsidecar");
    assert_eq!(
        says("echo $COLOR $TOKEN $GREETING $MY_LIMIT"),
        "red abc hello reader 32"
    );
    assert_eq!(
        says("echo $MY_IP"),
        cluster.kubectl("get pod reader -o jsonpath={.status.podIP}")
    );
    assert_eq!(
        says(
            "cat /all/token; echo; cat /all/labels; echo; wc -c < /all/sa | tr -d ' ' | wc -l; stat -L -c %a /settings/color; cat /one/color"
        ),
        "abc\ntier=\"back\"\n1\n440\nred"
    );
    assert!(says("df -m /memory | tail -1").contains("tmpfs"));
    assert_eq!(says("hostname"), "reader");
    assert!(says("cat /etc/resolv.conf").contains("default.svc.cluster.local svc.cluster.local cluster.local"));
    assert!(says("nslookup kubernetes.default.svc.cluster.local 2>&1").contains("10.96.0.1"));
    assert!(
        says("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true")
            .contains("33554432")
    );

    // Live, atomic updates; a subPath stays as it was.
    cluster.kubectl_args(&[
        "patch",
        "configmap",
        "settings",
        "-p",
        r#"{"data":{"color":"blue","shape":null,"size":"xl"}}"#,
    ]);
    cluster.kubectl("label pod reader --overwrite tier=front");
    cluster.wait("the new settings", 90, |cluster| {
        exec(cluster, "reader", "cat /settings/color; ls /settings") == "bluecolor\nsize"
    });
    cluster.wait("the new labels", 90, |cluster| {
        exec(cluster, "reader", "cat /all/labels").contains("front")
    });
    assert_eq!(exec(&cluster, "reader", "cat /one/color"), "red");
    cluster.kubectl("delete pod reader --timeout=30s");
}

#[test]
fn probes_restarts_hooks_and_limits() {
    if !ready("probes_restarts_hooks_and_limits") {
        return;
    }
    let mut cluster = Cluster::start("probes");
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'touch /tmp/well; sleep 3; rm /tmp/well; sleep 3600']
    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: v1
kind: Pod
metadata: {name: unready}
spec:
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'mkdir /w; httpd -p 80 -h /w; sleep 3600']
    readinessProbe: {httpGet: {path: /ok, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'tail /dev/zero']
    resources: {limits: {memory: 16Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    command: [sh, -c, 'trap \"echo asked to end; exit 0\" TERM; while true; do sleep 0.1; done']
    lifecycle:
      postStart: {exec: {command: [sh, -c, 'echo hook > /proc/1/fd/1']}}
      preStop: {exec: {command: [sh, -c, 'echo before the end > /proc/1/fd/1']}}
---
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec:
  containers: [{name: main, image: 'localhost/sampan/no-such-image:1', imagePullPolicy: Never}]
---
apiVersion: v1
kind: Pod
metadata: {name: missing}
spec:
  containers:
  - name: main
    image: localhost/sampan/busybox:1.35
    env: [{name: A, valueFrom: {configMapKeyRef: {name: nowhere, key: a}}}]
",
    );
    cluster.wait("the sick container to be restarted", 60, |cluster| {
        cluster.kubectl("get pod sick -o jsonpath={.status.containerStatuses[0].restartCount}") == "1"
    });
    cluster.wait("the hungry one to be killed", 60, |cluster| {
        cluster.kubectl("get pod hungry -o jsonpath={.status.containerStatuses[0].state.terminated.reason}")
            == "OOMKilled"
    });
    let reason = |cluster: &Cluster, pod: &str| {
        cluster.kubectl(&format!(
            "get pod {pod} -o jsonpath={{.status.containerStatuses[0].state.waiting.reason}}"
        ))
    };
    cluster.wait("the missing image to be said", 60, |cluster| {
        reason(cluster, "absent") == "ErrImageNeverPull"
    });
    cluster.wait("the missing ConfigMap to be said", 60, |cluster| {
        reason(cluster, "missing") == "CreateContainerConfigError"
    });

    cluster.kubectl("wait --for=jsonpath={.status.phase}=Running --timeout=30s pod/unready");
    assert_eq!(
        cluster.kubectl("get pod unready -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"),
        "False"
    );
    exec(&cluster, "unready", "echo fine > /w/ok");
    cluster.kubectl("wait --for=condition=Ready --timeout=30s pod/unready");

    cluster.kubectl("wait --for=condition=Ready --timeout=30s pod/polite");
    let follower = cluster
        .kubectl_command(&sampan_e2e::kubectls()[0])
        .args(["logs", "-f", "polite"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("kubectl");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let start = std::time::Instant::now();
    cluster.kubectl("delete pod polite --timeout=30s");
    assert!(
        start.elapsed() < std::time::Duration::from_secs(15),
        "it went when asked, not when killed: {:?}",
        start.elapsed()
    );
    let said = follower.wait_with_output().expect("logs");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("hook") && said.contains("before the end") && said.contains("asked to end"),
        "{said}"
    );
}

#[test]
fn services_reach_pods_from_everywhere() {
    if !ready("services_reach_pods_from_everywhere") {
        return;
    }
    let mut cluster = Cluster::start("services");
    cluster.apply(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: 'localhost/sampan/busybox:1.35', command: [sh, -c, 'mkdir /w; hostname > /w/index.html; exec httpd -f -p 8080 -h /w'],
         readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {type: NodePort, selector: {app: echo}, ports: [{port: 80, targetPort: 8080, nodePort: 31080}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare}
spec: {clusterIP: None, selector: {app: echo}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: echo-client}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'localhost/sampan/busybox:1.35', command: [sleep, '3600']}]
",
    );
    cluster.kubectl("wait --for=condition=Available --timeout=60s deployment/echo");
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/client");
    let address = cluster.kubectl("get service echo -o jsonpath={.spec.clusterIP}");
    // From a Pod: by name, by address, and every replica its turn.
    cluster.wait("the Service to answer by name", 30, |cluster| {
        cluster
            .try_kubectl("exec client -- timeout 3 wget -qO- http://echo")
            .is_ok()
    });
    let all = exec(
        &cluster,
        "client",
        "for i in $(seq 30); do timeout 3 wget -qO- http://echo.default.svc.cluster.local; done | sort | uniq | wc -l",
    );
    assert_eq!(all, "2");
    assert_eq!(
        exec(
            &cluster,
            "client",
            "nslookup bare.default.svc.cluster.local | grep -c '^Address.*10.244'"
        ),
        "2"
    );
    // From the node, and from the neighbour through the NodePort.
    let node = sampan_e2e::must(cluster.lab.on_node("curl").args([
        "-sS",
        "--fail",
        "--max-time",
        "5",
        &format!("http://{address}/"),
    ]));
    assert!(node.starts_with("echo-"), "{node}");
    let page = cluster
        .fetch_outside(&format!("http://{}:31080/", sampan_e2e::NODE))
        .expect("the NodePort");
    assert!(page.starts_with("echo-"), "{page}");
    let local = sampan_e2e::must(cluster.lab.on_node("curl").args([
        "-sS",
        "--fail",
        "--max-time",
        "5",
        "http://127.0.0.1:31080/",
    ]));
    assert!(local.starts_with("echo-"), "{local}");
    // Hairpin: a Pod that is its own Service's only endpoint.
    cluster.kubectl("scale deployment echo --replicas=1");
    cluster.wait("one endpoint", 30, |cluster| {
        let slices = cluster.get("endpointslices -l kubernetes.io/service-name=echo");
        slices["items"][0]["endpoints"]
            .as_array()
            .is_some_and(|endpoints| endpoints.len() == 1)
    });
    let only = cluster
        .kubectl("get pods -l app=echo --field-selector status.phase=Running -o jsonpath={.items[0].metadata.name}");
    cluster.wait("the hairpin", 20, |cluster| {
        cluster
            .try_kubectl_args(&["exec", &only, "--", "timeout", "3", "wget", "-qO-", "http://echo"])
            .is_ok()
    });
    // Nobody behind it: refused at once rather than left hanging.
    cluster.kubectl("scale deployment echo --replicas=0");
    cluster.wait("a refusal", 30, |cluster| {
        let outcome = cluster.try_kubectl("exec client -- timeout 3 wget -qO- http://echo");
        outcome.is_err_and(|error| error.contains("refused"))
    });
}
