//! Nodes nobody stands behind: Ready as long as this runs, and a Pod bound to one goes as soon as it is deleted.
//!
//! The suite wants two nodes before it tests an API server that has none. All of it goes through kubectl, as a client
//! of any cluster would.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::tools::Result;

/// Well below the 40 seconds after which a silent node is no longer Ready.
const HEARTBEAT: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Cluster {
    fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command
    }

    fn quietly(&self, args: &[&str]) -> Result<()> {
        let output = self.kubectl(args).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "kubectl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into())
    }
}

/// The nodes, for as long as this lives.
pub struct Nodes {
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
    watch: Child,
}

pub fn names(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("fake-{n}")).collect()
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        }},
    })
}

/// What a kubelet of an idle machine reports.
fn status(name: &str, now: &str) -> Value {
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    json!({"status": {
        "addresses": [{"type": "Hostname", "address": name}],
        "capacity": room,
        "allocatable": room,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "nobody stands behind this node",
            "lastHeartbeatTime": now,
        }],
    }})
}

fn now() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Nodes {
    pub fn start(kubectl: &Path, kubeconfig: &Path, count: usize) -> Result<Self> {
        let cluster = Cluster {
            kubectl: kubectl.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
        };
        let names = names(count);
        for name in &names {
            let mut create = cluster
                .kubectl(&["apply", "-f", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()?;
            if let Some(stdin) = create.stdin.as_mut() {
                stdin.write_all(node(name).to_string().as_bytes())?;
            }
            if !create.wait()?.success() {
                return Err(format!("cannot create the node {name}").into());
            }
        }
        beat(&cluster, &names)?;

        let (stop, stopped) = mpsc::channel();
        let (beating, beaten) = (cluster.clone(), names.clone());
        let heart = std::thread::spawn(move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = beat(&beating, &beaten) {
                    eprintln!("warning: {error}");
                }
            }
        });
        let mut watch = cluster
            .kubectl(&["get", "pods", "--all-namespaces", "--watch", "-o", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(pods) = watch.stdout.take() {
            // Ends with the watch.
            std::thread::spawn(move || {
                for pod in serde_json::Deserializer::from_reader(pods)
                    .into_iter::<Value>()
                    .map_while(|pod| pod.ok())
                {
                    if let Some((namespace, name)) = leaving(&pod, &names) {
                        // It may be gone already.
                        let _ =
                            cluster.quietly(&["delete", "pod", "-n", namespace, name, "--grace-period=0", "--force"]);
                    }
                }
            });
        }
        Ok(Self {
            stop: Some(stop),
            heart: Some(heart),
            watch,
        })
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
        let _ = self.watch.kill();
        let _ = self.watch.wait();
    }
}

fn beat(cluster: &Cluster, names: &[String]) -> Result<()> {
    let now = now()?;
    for name in names {
        let status = status(name, &now).to_string();
        cluster.quietly(&[
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ])?;
    }
    Ok(())
}

/// The namespace and name of a Pod a kubelet of one of the nodes would now remove.
fn leaving<'a>(pod: &'a Value, nodes: &[String]) -> Option<(&'a str, &'a str)> {
    let ours = nodes.iter().any(|node| pod["spec"]["nodeName"] == **node);
    if !ours || pod["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    Some((
        pod["metadata"]["namespace"].as_str()?,
        pod["metadata"]["name"].as_str()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deleted_pods_of_these_nodes_leave() {
        let pod = |node: &str, deleted: Value| json!({"metadata": {"namespace": "n", "name": "p", "deletionTimestamp": deleted}, "spec": {"nodeName": node}});
        let nodes = names(2);
        assert_eq!(
            leaving(&pod("fake-2", json!("2026-01-01T00:00:00Z")), &nodes),
            Some(("n", "p"))
        );
        assert_eq!(leaving(&pod("fake-2", Value::Null), &nodes), None);
        assert_eq!(leaving(&pod("real", json!("2026-01-01T00:00:00Z")), &nodes), None);
        assert_eq!(leaving(&json!({"metadata": {}}), &nodes), None);
    }
}
