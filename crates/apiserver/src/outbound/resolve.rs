//! From a Service to addresses, by the watch cache.

use serde_json::Value;

use super::Error;
use crate::admission::{Reader, text};

/// Where a Service may be reached.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Ready endpoints, those of the Service's first address family in front.
    Addresses(Vec<(String, u16)>),
    /// Somebody else's name for it (ExternalName), or its own address.
    Elsewhere(String, u16),
}

/// Endpoints of a Service's port. Services without a selector and without EndpointSlices are reached by their
/// address, which only the service proxy can lead anywhere.
pub fn service(reader: &Reader, namespace: &str, name: &str, port: u16) -> Result<Found, Error> {
    let service = reader
        .get("services/specs", &format!("{namespace}/{name}"))
        .ok_or_else(|| Error::NoService(name.to_owned()))?
        .object();
    if text(&service, "/spec/type") == "ExternalName" {
        return Ok(Found::Elsewhere(text(&service, "/spec/externalName").to_owned(), port));
    }
    let wanted = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|known| known.get("port").and_then(Value::as_u64) == Some(port.into()))
        .map(|known| text(known, "/name"))
        .ok_or_else(|| Error::NoPort {
            service: name.to_owned(),
            port,
        })?;
    let family = text(&service, "/spec/ipFamilies/0");
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    let mut any = false;
    if let Some(slices) = reader.storage("endpointslices") {
        let prefix = format!("{namespace}/");
        let fields = slices.fields();
        let snapshot = slices.snapshot(0);
        let own = snapshot
            .index
            .from(&prefix)
            .take_while(|entry| entry.path().starts_with(&prefix))
            .filter(|entry| {
                let labels = &entry.attributes(fields).labels;
                labels
                    .iter()
                    .any(|(key, value)| &**key == "kubernetes.io/service-name" && &**value == name)
            });
        for slice in own {
            any = true;
            let slice = slice.object();
            let found = if family.is_empty() || text(&slice, "/addressType") == family {
                &mut first
            } else {
                &mut rest
            };
            endpoints(&slice, wanted, found);
        }
    }
    first.append(&mut rest);
    if !first.is_empty() {
        return Ok(Found::Addresses(first));
    }
    let selects = service
        .pointer("/spec/selector")
        .and_then(Value::as_object)
        .is_some_and(|selector| !selector.is_empty());
    match text(&service, "/spec/clusterIP") {
        "" | "None" => Err(Error::NoEndpoints(name.to_owned())),
        _ if any || selects => Err(Error::NoEndpoints(name.to_owned())),
        address => Ok(Found::Elsewhere(address.to_owned(), port)),
    }
}

fn endpoints(slice: &Value, wanted: &str, found: &mut Vec<(String, u16)>) {
    let list = |field: &str| slice.get(field).and_then(Value::as_array).into_iter().flatten();
    let port = list("ports")
        .find(|port| text(port, "/name") == wanted)
        .and_then(|port| u16::try_from(port.get("port")?.as_u64()?).ok());
    let Some(port) = port else { return };
    for endpoint in list("endpoints") {
        let ready = endpoint
            .pointer("/conditions/ready")
            .and_then(Value::as_bool)
            .unwrap_or(true);
        let address = text(endpoint, "/addresses/0");
        if ready && !address.is_empty() {
            found.push((address.to_owned(), port));
        }
    }
}
