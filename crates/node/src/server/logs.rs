//! `/containerLogs`: the logs of a container, as they are and as they grow.

use std::io;
use std::sync::Arc;

use futures::TryStreamExt;
use http::{Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use sampan_runtime::logs::{LogOptions, Stream};
use sampan_runtime::{ContainerEventKind, ContainerFilter, ContainerState, ContainerStatus, Runtime};
use sampan_tasks::OnExit;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::{Answer, Refusal, Server, value};
use crate::pod::{self, Observed, label};
use crate::worker::Worker;

/// Reads the options of a request.
pub fn options(query: &[(String, String)], now: Timestamp) -> Result<LogOptions, String> {
    let number = |name: &str| -> Result<Option<u64>, String> {
        match value(query, name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| format!("{name} must be a whole number of at least 0, not {text:?}")),
        }
    };
    let flag = |name: &str| matches!(value(query, name), Some("true" | "1" | "t" | "T" | "True"));
    let mut since = None;
    if let Some(seconds) = number("sinceSeconds")? {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let back = SignedDuration::from_secs(seconds);
        since = Some(now.saturating_sub(back).unwrap_or(Timestamp::MIN));
    }
    if let Some(text) = value(query, "sinceTime").filter(|text| !text.is_empty()) {
        let time = text
            .parse()
            .map_err(|_| format!("sinceTime must be an RFC 3339 time, not {text:?}"))?;
        since = Some(time);
    }
    let stream = match value(query, "stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(Stream::Stdout),
        Some("Stderr") => Some(Stream::Stderr),
        Some(other) => return Err(format!("stream must be All, Stdout or Stderr, not {other:?}")),
    };
    Ok(LogOptions {
        follow: flag("follow"),
        tail: number("tailLines")?,
        since,
        timestamps: flag("timestamps"),
        limit_bytes: number("limitBytes")?,
        stream,
    })
}

impl Server {
    pub(super) async fn container_logs(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        query: &[(String, String)],
    ) -> Answer {
        let options = options(query, Timestamp::now()).map_err(Refusal::bad)?;
        let previous = matches!(value(query, "previous"), Some("true" | "1"));
        let worker = self.worker(namespace, name)?;
        let record = self.log_record(&worker, container, previous).await?;
        let (reader, mut writer) = tokio::io::duplex(64 * 1024);
        let runtime = Arc::clone(&self.manager.cx.runtime);
        let title = format!("log of {}", record.id);
        let client = CancellationToken::new();
        let client_left = client.clone();
        self.tasks.spawn_until_drain(title, OnExit::Expected, async move {
            let ended = end_of(runtime, record.id);
            let read = sampan_runtime::logs::read(&record.log_path, &options, ended, &mut writer);
            let read = tokio::select! {
                read = read => read,
                // A quiet log must not keep a reader nobody listens to.
                () = client_left.cancelled() => return,
            };
            match read {
                Ok(()) => {}
                // A container that never wrote has no file; a client that left has no pipe.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::BrokenPipe) => {}
                Err(error) => tracing::debug!(log = %record.log_path.display(), %error, "a log could not be read"),
            }
        });
        let guard = client.drop_guard();
        let frames = ReaderStream::with_capacity(reader, 32 * 1024).map_ok(move |bytes| {
            let _lives_with_the_body = &guard;
            Frame::data(bytes)
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let kind = http::HeaderValue::from_static("text/plain");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    async fn log_record(&self, worker: &Worker, container: &str, previous: bool) -> Result<ContainerStatus, Refusal> {
        let (pod, status, _) = worker.report();
        let pod_name = pod::name(&pod);
        if pod::find_container(&pod, container).is_none() {
            return Err(Refusal::bad(format!(
                "container {container} is not valid for pod {pod_name}"
            )));
        }
        let filter = ContainerFilter {
            labels: [
                (label::POD_UID.to_owned(), worker.uid.clone()),
                (label::CONTAINER_NAME.to_owned(), container.to_owned()),
            ]
            .into(),
            ..ContainerFilter::default()
        };
        let records = self.manager.cx.runtime.list_containers(&filter).await;
        let records = Observed::new(Vec::new(), records.map_err(Refusal::internal)?).containers;
        let waiting = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .chain(&status.ephemeral_container_statuses)
            .flatten()
            .find(|status| status.name == container)
            .and_then(|status| status.state.as_ref()?.waiting.as_ref())
            .cloned();
        let mut records = records
            .into_iter()
            .filter(|record| record.state != ContainerState::Created);
        let latest = records.next();
        if previous {
            // While it waits to be started again the newest record is the previous one.
            let ended = latest
                .filter(|record| waiting.is_some() && record.state == ContainerState::Exited)
                .or_else(|| records.next());
            return ended.ok_or_else(|| {
                Refusal::bad(format!(
                    "previous terminated container \"{container}\" in pod \"{pod_name}\" not found"
                ))
            });
        }
        latest.ok_or_else(|| {
            let waiting = waiting.unwrap_or_default();
            let reason = waiting.reason.unwrap_or_else(|| "ContainerCreating".into());
            Refusal::bad(match reason.as_str() {
                "ErrImagePull" | "ImagePullBackOff" => format!(
                    "container \"{container}\" in pod \"{pod_name}\" is waiting to start: trying and failing to pull image"
                ),
                "InvalidImageName" => format!(
                    "container \"{container}\" in pod \"{pod_name}\" is waiting to start: image can't be pulled"
                ),
                _ => format!(
                    "container \"{container}\" in pod \"{pod_name}\" is waiting to start: {reason}"
                ),
            })
        })
    }
}

/// Resolves once the container runs no more.
async fn end_of(runtime: Arc<dyn Runtime>, id: String) {
    // First the events, then the question: nothing falls between.
    let mut events = runtime.events();
    let running = runtime.container_status(&id).await;
    if !running.is_ok_and(|status| status.state == ContainerState::Running) {
        return;
    }
    while let Some(event) = events.recv().await {
        let over = matches!(event.kind, ContainerEventKind::Stopped | ContainerEventKind::Deleted);
        if over && event.container_id == id {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::query_pairs;

    #[test]
    fn options_are_read_and_refused() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let got = options(
            &query_pairs("follow=true&tailLines=5&sinceSeconds=60&timestamps=1&limitBytes=9"),
            now,
        )
        .unwrap();
        assert!(got.follow && got.timestamps);
        assert_eq!((got.tail, got.limit_bytes, got.stream), (Some(5), Some(9), None));
        assert_eq!(got.since, "2026-01-01T00:00:00Z".parse().ok());
        for bad in ["tailLines=-1", "limitBytes=x", "sinceTime=yesterday", "stream=Other"] {
            assert!(options(&query_pairs(bad), now).is_err(), "{bad}");
        }
    }
}
