//! The gRPC health check: one unary call of `grpc.health.v1.Health/Check` over plain HTTP/2, written out by hand.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

const SERVING: u64 = 1;

/// Asks `service` at `host:port`. `Err` is the text of the failure.
pub async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let address = format!("{host}:{port}");
    match tokio::time::timeout(timeout, call(host, port, service)).await {
        Ok(Ok(SERVING)) => Ok(()),
        Ok(Ok(status)) => Err(format!("service unhealthy (responded with {:?})", status_name(status))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(format!(
            "timeout: failed to connect service \"{address}\" within {}s: context deadline exceeded",
            timeout.as_secs()
        )),
    }
}

fn status_name(status: u64) -> &'static str {
    match status {
        0 => "UNKNOWN",
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNRECOGNIZED",
    }
}

/// A message of the one string field, in gRPC's frame.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

/// The status field of the answer; a message without it is `UNKNOWN`.
fn decode(frame: &[u8]) -> Result<u64, String> {
    let bad = || "the health service's answer cannot be read".to_owned();
    let header = frame.get(..5).ok_or_else(bad)?;
    if header[0] != 0 {
        return Err("the health service answered compressed".into());
    }
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let mut message = frame.get(5..5 + length).ok_or_else(bad)?;
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message).ok_or_else(bad)?;
        match key & 7 {
            0 => {
                let value = varint(&mut message).ok_or_else(bad)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            2 => {
                let length = usize::try_from(varint(&mut message).ok_or_else(bad)?).map_err(|_| bad())?;
                message = message.get(length..).ok_or_else(bad)?;
            }
            5 => message = message.get(4..).ok_or_else(bad)?,
            1 => message = message.get(8..).ok_or_else(bad)?,
            _ => return Err(bad()),
        }
    }
    Ok(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

async fn call(host: &str, port: u16, service: &str) -> Result<u64, String> {
    let address = format!("{host}:{port}");
    let stream = TcpStream::connect((host, port)).await.map_err(|error| {
        let why = super::http::dial_error(&address, &error);
        format!("failed to connect service \"{address}\": {why}")
    })?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.36")
        .body(Full::new(encode(service)))
        .map_err(|error| error.to_string())?;
    let talk = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| format!("error: health rpc failed: {error}"))?;
        let of_headers = grpc_status(response.headers());
        let body = Limited::new(response.into_body(), 64 * 1024).collect().await;
        let body = body.map_err(|error| format!("error: health rpc failed: {error}"))?;
        let of_trailers = body.trailers().and_then(grpc_status);
        match of_trailers.or(of_headers) {
            Some((code, message)) if code != "0" => Err(if code == "12" {
                "server doesn't implement the grpc health protocol (grpc.health.v1.Health)".into()
            } else {
                format!("error: health rpc failed with gRPC status {code}: {message}")
            }),
            _ => decode(&body.to_bytes()),
        }
    };
    tokio::pin!(talk);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        result = &mut talk => result,
        _closed = &mut connection => talk.await,
    }
}

fn grpc_status(headers: &http::HeaderMap) -> Option<(String, String)> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    Some((text("grpc-status")?, text("grpc-message").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(encode("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(encode("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(encode(&"x".repeat(200)).len(), 5 + 1 + 2 + 200);
        for (frame, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Ok(1)),
            (&[0, 0, 0, 0, 0], Ok(0)),
            (&[0, 0, 0, 0, 5, 0x12, 1, 9, 8, 2], Ok(2)),
            (&[1, 0, 0, 0, 0], Err(())),
            (&[0, 0, 0, 0, 9, 8], Err(())),
            (&[0, 0], Err(())),
            (&[0, 0, 0, 0, 1, 0x80], Err(())),
        ] {
            assert_eq!(decode(frame).map_err(|_| ()), expected, "{frame:?}");
        }
    }
}
