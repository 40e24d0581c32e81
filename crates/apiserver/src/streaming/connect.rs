//! CONNECT: what admission sees of a stream before it begins.
//!
//! The object under review is the stream's options, read from the query. What a mutating webhook makes of them is
//! what happens, as upstream has it.

use std::sync::Arc;

use sampan_api::Object;
use serde_json::{Map, Value};

use super::Stream;
use crate::Refusal;
use crate::admission::{Notes, Operation, Options};
use crate::control_plane::ControlPlane;
use crate::dispatch::Incoming;
use crate::registry::Call;
use crate::request::Query;
use crate::rows::Row;

/// Asks admission. What it notes is for the answer, also if that is a refusal.
pub async fn admit(
    plane: &Arc<ControlPlane>,
    stream: Stream,
    row: &Arc<Row>,
    incoming: &mut Incoming,
) -> (Notes, Result<(), Refusal>) {
    if stream == Stream::Log {
        return (Notes::default(), Ok(()));
    }
    let kind = row
        .spec
        .subresource(&incoming.info.subresource)
        .map_or("", |sub| sub.gvk.2);
    let mut options = options(kind, stream, &incoming.query, incoming.parts.uri.path());
    let before = options.clone();
    let mut call = Call::internal(row.clone(), "connect", "", "");
    call.info = incoming.info.clone();
    call.user = incoming.user.clone();
    call.internal = false;
    let admitted = plane
        .registry
        .admit_passing(&mut call, Operation::Connect, &mut options, Options::None)
        .await;
    if options != before && stream != Stream::Proxy {
        incoming.query = query(&options);
    }
    (call.notes, admitted)
}

fn options(kind: &str, stream: Stream, query: &Query, path: &str) -> Object {
    let mut map = Map::new();
    map.insert("kind".into(), kind.into());
    map.insert("apiVersion".into(), "v1".into());
    match stream {
        Stream::Log => {}
        Stream::Exec | Stream::Attach => {
            for flag in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(flag) {
                    map.insert(flag.into(), true.into());
                }
            }
            if let Some(container) = query.text("container") {
                map.insert("container".into(), container.into());
            }
            if stream == Stream::Exec {
                map.insert("command".into(), query.all("command").collect());
            }
        }
        Stream::PortForward => {
            let ports: Vec<Value> = query
                .all("ports")
                .flat_map(|ports| ports.split(','))
                .filter_map(|port| port.parse::<i32>().ok())
                .map(Value::from)
                .collect();
            if !ports.is_empty() {
                map.insert("ports".into(), ports.into());
            }
        }
        Stream::Proxy => {
            if let Some((_, rest)) = path.split_once("/proxy/") {
                map.insert("path".into(), format!("/{rest}").into());
            }
        }
    }
    Value::Object(map)
}

/// Options back as a query.
fn query(options: &Object) -> Query {
    let pairs = options.as_object().into_iter().flatten();
    let pairs = pairs.filter(|(key, _)| !matches!(key.as_str(), "kind" | "apiVersion"));
    Query::of(pairs.flat_map(|(key, value)| {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        values.iter().map(move |value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (key.clone(), text)
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_go_there_and_back() {
        let asked = Query::parse("command=sh&command=-c&container=main&stdin=1&tty=false");
        let made = options("PodExecOptions", Stream::Exec, &asked, "");
        assert_eq!(
            made,
            json!({"kind": "PodExecOptions", "apiVersion": "v1", "command": ["sh", "-c"], "container": "main",
                "stdin": true})
        );
        let back = query(&made);
        assert_eq!(back.all("command").collect::<Vec<_>>(), ["sh", "-c"]);
        assert!(back.flag("stdin") && !back.flag("tty"));
        let path = "/api/v1/namespaces/n/pods/p/proxy/a/b";
        assert_eq!(options("PodProxyOptions", Stream::Proxy, &asked, path)["path"], "/a/b");
    }
}
