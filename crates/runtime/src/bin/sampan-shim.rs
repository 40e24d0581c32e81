//! The engine's processes alone, for tests of this crate.
//!
//! `shim DIRECTORY` is what the whole binary does when its first argument is `shim`. `churn DIRECTORY
//! NAME IMAGE ROUND` is a server that starts Pods until it is killed: the test wants to kill a real one.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use futures::StreamExt;
use sampan_runtime::embedded::{Config, Embedded};
use sampan_runtime::*;
use sampan_tasks::Tasks;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next().unwrap_or_default();
    if first == "shim" {
        return sampan_runtime::shim_main(args);
    }
    let args: Vec<String> = args.filter_map(|arg: OsString| arg.into_string().ok()).collect();
    if let ("churn", [dir, name, image, round]) = (&*first.to_string_lossy(), args.as_slice()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
            let churn = churn(Path::new(dir), name, image, round);
            runtime.block_on(churn).map_err(|error| error.to_string())
        });
        if let Err(error) = ended {
            eprintln!("{error}");
        }
        return ExitCode::FAILURE;
    }
    eprintln!("usage: sampan-shim shim DIRECTORY | churn DIRECTORY NAME IMAGE ROUND");
    ExitCode::from(2)
}

async fn churn(dir: &Path, name: &str, image: &str, round: &str) -> Result<(), RuntimeError> {
    let mut config = Config::new(dir.join("data"), dir.join("run"));
    config.shim_cgroup = format!("/sampan-test-shims-{name}");
    let tasks = Tasks::new();
    let engine = Embedded::open(config, &tasks).await?;
    let pods = (0..100).map(|index| {
        let engine = Arc::clone(&engine);
        let uid = format!("r{round}-{index}");
        async move {
            let pod = PodSandboxConfig {
                log_directory: dir.join("logs").join(&uid),
                linux: LinuxPodSandboxConfig {
                    cgroup_parent: format!("/sampan-test-{name}/pod{uid}"),
                    ..LinuxPodSandboxConfig::default()
                },
                metadata: PodSandboxMetadata {
                    uid,
                    ..PodSandboxMetadata::default()
                },
                ..PodSandboxConfig::default()
            };
            let sandbox = engine.run_pod_sandbox(&pod).await?;
            for name in ["a", "b"] {
                let config = ContainerConfig {
                    image: image.into(),
                    command: ["sleep", "1000"].map(str::to_owned).into(),
                    log_path: format!("{name}.log"),
                    ..ContainerConfig::default()
                };
                let id = engine.create_container(&sandbox, &config).await?;
                engine.start_container(&id).await?;
                println!("{id}");
            }
            Ok::<_, RuntimeError>(())
        }
    });
    let mut pods = futures::stream::iter(pods).buffer_unordered(4);
    while let Some(done) = pods.next().await {
        done?;
    }
    Ok(())
}
