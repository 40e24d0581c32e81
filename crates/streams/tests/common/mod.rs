//! A server for tests: a node with a few made-up commands and ports, alone or behind an API server's proxy.
#![allow(dead_code, clippy::disallowed_methods)]

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sampan_streams::{
    Connection, ExitStatus, Options, PortForward, ProxyBody, RemoteCommand, accept_port_forward, accept_remote_command,
    is_upgrade, proxy_upgrade, translate,
};
use sampan_tasks::Tasks;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Copy, Debug)]
pub enum Role {
    Node,
    /// Passes everything on, byte by byte.
    Proxy(SocketAddr),
    /// Speaks SPDY with the node, whatever the client speaks.
    Translator(SocketAddr),
}

/// Serves on loopback until the test ends.
pub async fn serve(role: Role, tasks: &Tasks) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = tasks.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let tasks = tasks.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let tasks = tasks.clone();
                    async move { Ok::<_, std::convert::Infallible>(answer(role, request, &tasks).await) }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                if let Err(error) = connection.with_upgrades().await {
                    println!("a test connection ended: {error}");
                }
            });
        }
    });
    address
}

fn boxed(body: Full<Bytes>) -> ProxyBody {
    body.map_err(|never| match never {}).boxed()
}

async fn answer(role: Role, mut request: Request<Incoming>, tasks: &Tasks) -> Response<ProxyBody> {
    if !is_upgrade(request.headers()) {
        return documents(request.uri().path());
    }
    let target = request.uri().path_and_query().unwrap().as_str().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let proxied = match role {
        Role::Node => return node(&mut request, &query, tasks),
        Role::Proxy(node) => {
            let io = TcpStream::connect(node).await.unwrap();
            proxy_upgrade(&mut request, "node", &target, io, tasks).await
        }
        Role::Translator(node) => {
            let io = TcpStream::connect(node).await.unwrap();
            if !translate::is_needed(&request) {
                proxy_upgrade(&mut request, "node", &target, io, tasks).await
            } else if target.contains("portforward") {
                translate::port_forward(&mut request, "node", &target, io, tasks).await
            } else {
                let options = Options::from_query(&query).unwrap();
                translate::remote_command(&mut request, options, "node", &target, io, tasks).await
            }
        }
    };
    proxied.unwrap_or_else(|error| {
        let mut response = Response::new(boxed(Full::from(error.to_string())));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    })
}

fn node(request: &mut Request<Incoming>, query: &str, tasks: &Tasks) -> Response<ProxyBody> {
    if request.uri().path().contains("portforward") {
        return match accept_port_forward(request, tasks) {
            Ok((response, forward)) => {
                tokio::spawn(async move { forward_ports(forward.await.unwrap()).await });
                response.map(boxed)
            }
            Err(refusal) => refusal.map(boxed),
        };
    }
    let options = match Options::from_query(query) {
        Ok(options) => options,
        Err(why) => {
            let mut response = Response::new(boxed(Full::from(why)));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        }
    };
    let command = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("command="))
        .unwrap_or_default()
        .to_owned();
    match accept_remote_command(request, options, tasks) {
        Ok((response, streams)) => {
            tokio::spawn(async move {
                match streams.await {
                    Ok(streams) => run(&command, streams).await,
                    Err(error) => println!("a test command did not start: {error}"),
                }
            });
            response.map(boxed)
        }
        Err(refusal) => refusal.map(boxed),
    }
}

/// `cat`, `exit7`, `size`, `flood` (a megabyte), or something that cannot be run.
async fn run(command: &str, mut streams: RemoteCommand) {
    let mut stdout = streams.stdout.take();
    let status = match command {
        "cat" => {
            let copied = tokio::io::copy(&mut streams.stdin.take().unwrap(), stdout.as_mut().unwrap()).await;
            match copied {
                Ok(_) => ExitStatus::Success,
                Err(error) => ExitStatus::Failed(error.to_string()),
            }
        }
        "exit7" => {
            stdout.as_mut().unwrap().write_all(b"out").await.unwrap();
            streams.stderr.as_mut().unwrap().write_all(b"err").await.unwrap();
            ExitStatus::Code(7)
        }
        "size" => {
            let size = streams.resize.as_mut().unwrap().next().await.unwrap();
            let text = format!("{}x{}", size.width, size.height);
            stdout.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
            ExitStatus::Success
        }
        "flood" => {
            stdout.as_mut().unwrap().write_all(&vec![b'x'; 1 << 20]).await.unwrap();
            ExitStatus::Success
        }
        other => ExitStatus::Failed(format!("no such command: {other}")),
    };
    drop(stdout);
    streams.status.finish(status);
}

/// Port 80 echoes, port 81 says hello and ends, others are refused.
async fn forward_ports(mut forward: PortForward) {
    while let Some(Connection { port, data, error }) = forward.accept().await {
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(data);
            match port {
                80 => {
                    // The client may hang up first.
                    let _copied = tokio::io::copy(&mut reader, &mut writer).await;
                }
                81 => writer.write_all(b"hello").await.unwrap(),
                port => return error.fail(&format!("connection to port {port} refused")),
            }
            let _hung_up = writer.shutdown().await;
            drop(error);
        });
    }
}

/// What kubectl asks before it streams.
fn documents(path: &str) -> Response<ProxyBody> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n"},
        "status": {"phase": "Running"},
    });
    let document = match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        "/api/v1" => json!({
            "kind": "APIResourceList", "groupVersion": "v1",
            "resources": [{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"], "shortNames": ["po"]}],
        }),
        "/api/v1/namespaces/default/pods/p" => pod,
        "/version" => json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0"}),
        _ => {
            let mut response = Response::new(boxed(Full::from("nothing here")));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    let mut response = Response::new(boxed(Full::from(document.to_string())));
    response
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    response
}

pub async fn read_all(mut reader: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    reader.read_to_end(&mut all).await.unwrap();
    all
}
