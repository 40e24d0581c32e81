//! Storage on a single node, as a user meets it: a StatefulSet with claims just works, its data outlives Pods and the
//! server, and what the claims' end means for the data is as the policy says.

use sampan_e2e::{Cluster, ready};

const SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: store}
spec: {clusterIP: None, selector: {app: store}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  serviceName: store
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: localhost/sampan/busybox:1.35
        command: [sh, -c, 'hostname >> /data/starts; sleep 3600']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";

fn starts(cluster: &Cluster, pod: &str) -> usize {
    let told = cluster.try_kubectl(&format!("exec {pod} -- cat /data/starts"));
    told.map_or(0, |told| told.lines().filter(|line| *line == pod).count())
}

#[test]
fn claims_of_a_statefulset_get_volumes_that_outlive_pods_and_the_server() {
    if !ready("claims_of_a_statefulset_get_volumes_that_outlive_pods_and_the_server") {
        return;
    }
    let mut cluster = Cluster::start("storage");
    cluster.apply(SET);
    cluster.wait("both Pods to run", 60, |cluster| {
        cluster.kubectl("get statefulset store -o jsonpath={.status.readyReplicas}") == "2"
    });
    assert_eq!(
        cluster.kubectl("get pvc -o jsonpath={.items[*].status.phase}"),
        "Bound Bound"
    );
    assert_eq!((starts(&cluster, "store-0"), starts(&cluster, "store-1")), (1, 1));

    // Another Pod of the same name finds what the first left, before and after the server was killed.
    cluster.kubectl("delete pod store-0 --wait=true");
    cluster.wait("the second store-0", 60, |cluster| starts(cluster, "store-0") == 2);
    cluster.kill();
    cluster.start_server();
    cluster.wait("store-1 to be reached", 60, |cluster| starts(cluster, "store-1") == 1);
    cluster.kubectl("delete pod store-1 --wait=true");
    cluster.wait("the second store-1", 60, |cluster| starts(cluster, "store-1") == 2);

    let volume = |cluster: &Cluster, claim: &str| {
        let volume = cluster.kubectl(&format!("get pvc {claim} -o jsonpath={{.spec.volumeName}}"));
        let path = cluster.kubectl(&format!("get pv {volume} -o jsonpath={{.spec.local.path}}"));
        (volume, std::path::PathBuf::from(path))
    };
    let (deleted, gone) = volume(&cluster, "data-store-0");
    let (retained, kept) = volume(&cluster, "data-store-1");
    assert!(gone.join("starts").is_file() && kept.join("starts").is_file());
    cluster.kubectl_args(&[
        "patch",
        "pv",
        &retained,
        "-p",
        r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#,
    ]);
    // A claim in use stays until its Pod is gone.
    cluster.kubectl("delete pvc --all --wait=false");
    assert_eq!(
        cluster.kubectl("get pvc -o jsonpath={.items[*].status.phase}"),
        "Bound Bound"
    );
    cluster.kubectl("delete statefulset store");
    cluster.wait("the volume to be deleted", 60, |cluster| {
        cluster.try_kubectl(&format!("get pv {deleted}")).is_err() && !gone.exists()
    });
    cluster.wait("the other to be released", 60, |cluster| {
        cluster.kubectl(&format!("get pv {retained} -o jsonpath={{.status.phase}}")) == "Released"
    });
    assert!(kept.join("starts").is_file());
}
