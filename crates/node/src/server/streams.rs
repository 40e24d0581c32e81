//! `/exec`, `/attach`, `/portForward` and `/run`: upgraded connections joined to the runtime's streams.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sampan_runtime::{ExecRequest, Streams, TerminalSize};
use sampan_streams::{ExitStatus, RemoteCommand, Resizes, UpgradeResponse};
use sampan_tasks::OnExit;
use tokio::sync::mpsc;

use super::{Answer, Body, Refusal, Server, text};

/// An upgrade's answer as this server sends bodies.
fn boxed(response: UpgradeResponse) -> Response<Body> {
    response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

/// A client's streams as the runtime wants them, the task that hands on terminal sizes (it never ends by itself), and
/// how to tell the end.
fn join(
    command: RemoteCommand,
) -> (
    Streams,
    impl Future<Output = ()> + Send,
    sampan_streams::StatusWriter,
    tokio_util::sync::CancellationToken,
) {
    let RemoteCommand {
        stdin,
        stdout,
        stderr,
        resize,
        status,
        gone,
    } = command;
    let (sender, receiver) = mpsc::channel(4);
    let has_resize = resize.is_some();
    let streams = Streams {
        stdin: stdin.map(|reader| Box::new(reader) as _),
        stdout: stdout.map(|writer| Box::new(writer) as _),
        stderr: stderr.map(|writer| Box::new(writer) as _),
        resize: has_resize.then_some(receiver),
    };
    (streams, hand_on(resize, sender), status, gone)
}

async fn hand_on(resize: Option<Resizes>, sender: mpsc::Sender<TerminalSize>) {
    if let Some(mut resize) = resize {
        while let Some(size) = resize.next().await {
            let size = TerminalSize {
                width: size.width,
                height: size.height,
            };
            if sender.send(size).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

impl Server {
    pub(super) async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        mut request: Request<Incoming>,
        query: &[(String, String)],
    ) -> Answer {
        let command: Vec<String> = query
            .iter()
            .filter(|(name, _)| name == "command")
            .map(|(_, value)| value.clone())
            .collect();
        if command.is_empty() {
            return Err(Refusal::bad("the command to run is missing: give it as command="));
        }
        let worker = self.worker(namespace, pod)?;
        let id = self.running_container(&worker, container)?;
        let options =
            sampan_streams::Options::from_query(request.uri().query().unwrap_or_default()).map_err(Refusal::bad)?;
        let tasks = &self.tasks;
        let (response, streams) = match sampan_streams::accept_remote_command(&mut request, options, tasks) {
            Ok(accepted) => accepted,
            Err(refusal) => return Ok(boxed(*refusal)),
        };
        let runtime = Arc::clone(&self.manager.cx.runtime);
        let exec = ExecRequest {
            command,
            tty: options.tty,
        };
        tasks.spawn_until_drain(format!("exec in {id}"), OnExit::Expected, async move {
            let command = match streams.await {
                Ok(command) => command,
                Err(error) => {
                    tracing::debug!(%error, "a client's streams were not set up");
                    return;
                }
            };
            let (streams, resizes, status, gone) = join(command);
            let run = async {
                tokio::select! {
                    code = runtime.exec(&id, exec, streams) => Some(code),
                    () = resizes => None,
                    // Ending our interest ends the command's streams; the program notices by itself.
                    () = gone.cancelled() => None,
                }
            };
            match run.await {
                Some(Ok(0)) => status.finish(ExitStatus::Success),
                Some(Ok(code)) => status.finish(ExitStatus::Code(code)),
                Some(Err(error)) => status.finish(ExitStatus::Failed(error.to_string())),
                None => drop(status),
            }
        });
        Ok(boxed(response))
    }

    pub(super) async fn attach(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        mut request: Request<Incoming>,
    ) -> Answer {
        let worker = self.worker(namespace, pod)?;
        let id = self.running_container(&worker, container)?;
        let options =
            sampan_streams::Options::from_query(request.uri().query().unwrap_or_default()).map_err(Refusal::bad)?;
        let tasks = &self.tasks;
        let (response, streams) = match sampan_streams::accept_remote_command(&mut request, options, tasks) {
            Ok(accepted) => accepted,
            Err(refusal) => return Ok(boxed(*refusal)),
        };
        let runtime = Arc::clone(&self.manager.cx.runtime);
        tasks.spawn_until_drain(format!("attach to {id}"), OnExit::Expected, async move {
            let command = match streams.await {
                Ok(command) => command,
                Err(error) => {
                    tracing::debug!(%error, "a client's streams were not set up");
                    return;
                }
            };
            let (streams, resizes, status, gone) = join(command);
            let attached = tokio::select! {
                result = runtime.attach(&id, streams) => Some(result),
                () = resizes => None,
                () = gone.cancelled() => None,
            };
            match attached {
                Some(Ok(())) => status.finish(ExitStatus::Success),
                Some(Err(error)) => status.finish(ExitStatus::Failed(error.to_string())),
                None => drop(status),
            }
        });
        Ok(boxed(response))
    }

    pub(super) async fn port_forward(&self, namespace: &str, pod: &str, mut request: Request<Incoming>) -> Answer {
        let worker = self.worker(namespace, pod)?;
        let sandbox = self.sandbox(&worker).await?;
        let tasks = self.tasks.clone();
        let (response, accepted) = match sampan_streams::accept_port_forward(&mut request, &self.tasks) {
            Ok(accepted) => accepted,
            Err(refusal) => return Ok(boxed(*refusal)),
        };
        let runtime = Arc::clone(&self.manager.cx.runtime);
        let title = format!("port-forward to {sandbox}");
        self.tasks.spawn_until_drain(title, OnExit::Expected, async move {
            let mut connections = match accepted.await {
                Ok(connections) => connections,
                Err(error) => {
                    tracing::debug!(%error, "a port-forward was not set up");
                    return;
                }
            };
            let gone = connections.gone();
            while let Some(connection) = connections.accept().await {
                let (runtime, sandbox, gone) = (Arc::clone(&runtime), sandbox.clone(), gone.clone());
                tasks.spawn_until_drain("port-forward connection", OnExit::Expected, async move {
                    let sampan_streams::Connection { port, data, error } = connection;
                    let forwarded = tokio::select! {
                        result = runtime.port_forward(&sandbox, port, Box::new(data)) => result,
                        () = gone.cancelled() => return,
                    };
                    if let Err(failure) = forwarded {
                        error.fail(&format!("error forwarding port {port} to pod: {failure}"));
                    }
                });
            }
        });
        Ok(boxed(response))
    }

    async fn sandbox(&self, worker: &crate::worker::Worker) -> Result<String, Refusal> {
        let filter = sampan_runtime::PodSandboxFilter {
            state: Some(sampan_runtime::PodSandboxState::Ready),
            labels: [(crate::pod::label::POD_UID.to_owned(), worker.uid.clone())].into(),
            ..Default::default()
        };
        let found = self.manager.cx.runtime.list_pod_sandboxes(&filter).await;
        let found = found.map_err(Refusal::internal)?;
        let newest = found.into_iter().max_by_key(|sandbox| sandbox.metadata.attempt);
        newest
            .map(|sandbox| sandbox.id)
            .ok_or_else(|| Refusal::bad("the pod is not running"))
    }

    /// Runs a command and answers with its output: no upgrade, no input.
    pub(super) async fn run(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        _request: Request<Incoming>,
        query: &[(String, String)],
    ) -> Answer {
        let command: Vec<String> = query
            .iter()
            .filter(|(name, _)| name == "cmd")
            .flat_map(|(_, value)| value.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .collect();
        if command.is_empty() {
            return Err(Refusal::bad("the command to run is missing: give it as cmd="));
        }
        let worker = self.worker(namespace, pod)?;
        let id = self.running_container(&worker, container)?;
        let output = self
            .manager
            .cx
            .runtime
            .exec_sync(&id, &command, Duration::ZERO)
            .await
            .map_err(Refusal::internal)?;
        let mut bytes = output.stdout;
        bytes.extend_from_slice(&output.stderr);
        if output.exit_code != 0 {
            let text = String::from_utf8_lossy(&bytes);
            let code = output.exit_code;
            return Err(Refusal::internal(format!("{text}command exited with {code}")));
        }
        Ok(text("text/plain", bytes))
    }
}
