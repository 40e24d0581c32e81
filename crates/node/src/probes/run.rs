//! Asking: one answer to one probe, and the task that keeps asking.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use sampan_runtime::{ErrorKind, Runtime};
use tokio::net::TcpStream;

use super::{ProbeKind, Step, Verdict, grpc, http};

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Success,
    /// A success that people should look at.
    Warning(String),
    Failure(String),
    /// The question could not be asked; nothing follows from it.
    Error(String),
}

/// Asks containers how they are.
#[derive(Clone)]
pub struct Prober {
    pub runtime: Arc<dyn Runtime>,
}

/// How much of a command's output is shown.
const OUTPUT_LIMIT: usize = 10 * 1024;

impl Prober {
    /// Asks once.
    pub async fn ask(&self, probe: &Probe, container: &Container, container_id: &str, pod_ip: &str) -> Answer {
        let timeout = seconds(probe.timeout_seconds, 1);
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return self.exec(container_id, &command, timeout).await;
        }
        if let Some(action) = &probe.http_get {
            let Some(target) = http::Target::of(action, container, pod_ip) else {
                return Answer::Error("the probe's port cannot be resolved".into());
            };
            return match http::get(&target, "kube-probe/1.36", timeout).await {
                Ok(answer) if answer.redirected_away => {
                    Answer::Warning(format!("Probe terminated redirects, Response body: {}", answer.body))
                }
                Ok(answer) if (200..400).contains(&answer.status.as_u16()) => Answer::Success,
                Ok(answer) => Answer::Failure(format!("HTTP probe failed with statuscode: {}", answer.status.as_u16())),
                Err(error) => Answer::Failure(error),
            };
        }
        if let Some(action) = &probe.tcp_socket {
            let Some(port) = crate::pod::resolve_port(&action.port, container) else {
                return Answer::Error("the probe's port cannot be resolved".into());
            };
            let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
            return tcp(host, port, timeout).await;
        }
        if let Some(action) = &probe.grpc {
            let Ok(port) = u16::try_from(action.port) else {
                return Answer::Error("the probe's port is no port".into());
            };
            let service = action.service.as_deref().unwrap_or_default();
            return match grpc::check(pod_ip, port, service, timeout).await {
                Ok(()) => Answer::Success,
                Err(error) => Answer::Failure(error),
            };
        }
        Answer::Error("the probe has no action".into())
    }

    async fn exec(&self, container_id: &str, command: &[String], timeout: Duration) -> Answer {
        match self.runtime.exec_sync(container_id, command, timeout).await {
            Ok(output) if output.exit_code == 0 => Answer::Success,
            Ok(output) => {
                let mut text = output.stdout;
                text.extend_from_slice(&output.stderr);
                text.truncate(OUTPUT_LIMIT);
                Answer::Failure(String::from_utf8_lossy(&text).into_owned())
            }
            Err(error) if error.kind == ErrorKind::DeadlineExceeded => Answer::Failure(format!(
                "command timed out: {command:?} timed out after {}s",
                timeout.as_secs()
            )),
            Err(error) => Answer::Error(error.to_string()),
        }
    }
}

async fn tcp(host: &str, port: u16, timeout: Duration) -> Answer {
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(_connected)) => Answer::Success,
        Ok(Err(error)) => Answer::Failure(http::dial_error(&authority, &error)),
        Err(_) => Answer::Failure(format!("dial tcp {authority}: i/o timeout")),
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let value = value.and_then(|value| u64::try_from(value).ok());
    Duration::from_secs(value.filter(|value| *value > 0).unwrap_or(default))
}

/// One container's probe as a task needs it.
pub struct Assignment {
    pub kind: ProbeKind,
    pub probe: Probe,
    pub container: Container,
    pub container_id: String,
    pub started_at: Timestamp,
    pub pod_ip: String,
}

/// Asks again and again until the verdict is final. `settled` is told every settled result, `note` every failure
/// (reason, message) for an event.
pub async fn keep_asking(
    prober: Prober,
    task: Assignment,
    settled: impl Fn(bool) + Send,
    note: impl Fn(&'static str, String) + Send,
) {
    let delay = task.probe.initial_delay_seconds.unwrap_or(0).max(0);
    let due = task
        .started_at
        .saturating_add(jiff::SignedDuration::from_secs(delay.into()))
        .unwrap_or(task.started_at);
    let wait = due.duration_since(Timestamp::now());
    if let Ok(wait) = Duration::try_from(wait) {
        tokio::time::sleep(wait).await;
    }
    let mut ticks = tokio::time::interval(seconds(task.probe.period_seconds, 10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut verdict = Verdict::new(task.kind, &task.probe);
    let title = task.kind.title();
    loop {
        ticks.tick().await;
        let answer = prober
            .ask(&task.probe, &task.container, &task.container_id, &task.pod_ip)
            .await;
        let success = match answer {
            Answer::Success => true,
            Answer::Warning(text) => {
                note("ProbeWarning", format!("{title} probe warning: {text}"));
                true
            }
            Answer::Failure(text) => {
                note("Unhealthy", format!("{title} probe failed: {text}"));
                false
            }
            Answer::Error(text) => {
                let message = format!("{title} probe errored and resulted in unknown state: {text}");
                note("Unhealthy", message);
                continue;
            }
        };
        match verdict.take(success) {
            Step::Wait => {}
            Step::Settled(result) => settled(result),
            Step::Final(result) => {
                settled(result);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampan_runtime::fake::FakeRuntime;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that answers every connection with `answer`.
    async fn server(answer: &'static str) -> (u16, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let _read = stream.read(&mut buffer).await;
                let _written = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, task)
    }

    async fn ask(probe: serde_json::Value) -> Answer {
        let runtime = Arc::new(FakeRuntime::new());
        let prober = Prober { runtime };
        let probe: Probe = serde_json::from_value(probe).unwrap();
        let container = Container::default();
        prober.ask(&probe, &container, "c", "127.0.0.1").await
    }

    #[tokio::test]
    async fn http_answers() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "Success"),
            ("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", "statuscode: 500"),
            (
                "HTTP/1.1 302 F\r\nlocation: http://elsewhere.example/\r\ncontent-length: 0\r\n\r\n",
                "Warning",
            ),
            ("nonsense\r\n\r\n", "Failure"),
        ] {
            let (port, task) = server(answer).await;
            let got = ask(json!({"httpGet": {"path": "/x", "port": port}})).await;
            assert!(format!("{got:?}").contains(expected), "{got:?}");
            task.abort();
        }
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let got = ask(json!({"httpGet": {"path": "/x", "port": port}})).await;
        let expected =
            format!("Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(got, Answer::Failure(expected));
        let got = ask(json!({"tcpSocket": {"port": port}})).await;
        assert!(matches!(got, Answer::Failure(_)), "{got:?}");
    }

    /// A health service over HTTP/2 that answers with `status` and gRPC's own code.
    async fn health(status: u8, code: &'static str) -> (u16, tokio::task::JoinHandle<()>) {
        use http_body_util::StreamBody;
        use hyper::body::Frame;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service =
                    hyper::service::service_fn(move |request: ::http::Request<hyper::body::Incoming>| async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        let mut trailers = ::http::HeaderMap::new();
                        trailers.insert("grpc-status", code.parse().unwrap());
                        let data = bytes::Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
                        let frames = [Frame::data(data), Frame::trailers(trailers)];
                        let frames = futures::stream::iter(frames.map(Ok::<_, std::convert::Infallible>));
                        let response = ::http::Response::builder().header("content-type", "application/grpc");
                        response.body(StreamBody::new(frames))
                    });
                let io = hyper_util::rt::TokioIo::new(stream);
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ended = builder.serve_connection(io, service).await;
            }
        });
        (port, task)
    }

    #[tokio::test]
    async fn grpc_answers() {
        for (status, code, expected) in [
            (1, "0", "Success"),
            (2, "0", "NOT_SERVING"),
            (1, "12", "doesn't implement the grpc health protocol"),
            (1, "5", "gRPC status 5"),
        ] {
            let (port, task) = health(status, code).await;
            let got = ask(json!({"grpc": {"port": port, "service": "s"}, "timeoutSeconds": 5})).await;
            assert!(format!("{got:?}").contains(expected), "{got:?}");
            task.abort();
        }
        let got = ask(json!({"grpc": {"port": 1}})).await;
        assert!(format!("{got:?}").contains("connection refused"), "{got:?}");
    }

    #[tokio::test]
    async fn https_is_not_verified() {
        let dir = tempfile::tempdir().unwrap();
        let pki = sampan_pki::Pki::load_or_create(dir.path(), sampan_pki::Params::default()).unwrap();
        let verifier = sampan_pki::tls::ClientVerifier::new(pki.ca()).unwrap();
        let tls = sampan_pki::tls::server_config(pki.serving(), &verifier).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(tls);
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut buffer = [0; 1024];
                let _read = stream.read(&mut buffer).await;
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                let _written = stream.write_all(answer).await;
                let _flushed = stream.flush().await;
            }
        });
        let got = ask(json!({"httpGet": {"port": port, "scheme": "HTTPS"}, "timeoutSeconds": 5})).await;
        assert_eq!(got, Answer::Success);
        task.abort();
    }

    #[tokio::test]
    async fn tcp_and_bad_ports() {
        let (port, task) = server("").await;
        assert_eq!(ask(json!({"tcpSocket": {"port": port}})).await, Answer::Success);
        let got = ask(json!({"tcpSocket": {"port": "unnamed"}})).await;
        assert!(matches!(got, Answer::Error(_)));
        task.abort();
    }
}
