//! Lifecycle hooks: exec, http, sleep (and tcp, which has never done anything).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use super::Worker;
use crate::pod;
use crate::probes::http;

/// Hooks have no time limit of their own but the grace period; this bounds one HTTP request.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

impl Worker {
    /// Runs a hook; the error says why it failed.
    pub(super) async fn run_hook(
        &self,
        pod: &Pod,
        container: &Container,
        id: &str,
        hook: &LifecycleHandler,
    ) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            let command = exec.command.clone().unwrap_or_default();
            let output = self
                .cx
                .runtime
                .exec_sync(id, &command, Duration::ZERO)
                .await
                .map_err(|error| error.to_string())?;
            if output.exit_code == 0 {
                return Ok(());
            }
            let mut text = output.stderr;
            text.truncate(1024);
            return Err(format!(
                "command {command:?} exited with {}: {}",
                output.exit_code,
                String::from_utf8_lossy(&text)
            ));
        }
        if let Some(action) = &hook.http_get {
            let ip = self.pod_ip(pod).await;
            let target = http::Target::of(action, container, &ip).ok_or("the hook's port cannot be resolved")?;
            let answer = http::get(&target, "kube-lifecycle/1.36", HTTP_TIMEOUT).await?;
            return if answer.status.is_client_error() || answer.status.is_server_error() {
                Err(format!("{} answered {}", target.url(), answer.status))
            } else {
                Ok(())
            };
        }
        if let Some(sleep) = &hook.sleep {
            let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
        Ok(())
    }

    async fn pod_ip(&self, pod: &Pod) -> String {
        if pod::host_network(pod) {
            return self.cx.config.host_ips().first().cloned().unwrap_or_default();
        }
        match self.observe().await {
            Ok(observed) => observed.ips().first().cloned().unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}
