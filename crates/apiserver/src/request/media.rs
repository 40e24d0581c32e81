//! Content negotiation: which encoding and which transformation a client asked for.

use http::HeaderMap;
use http::header::ACCEPT;
pub use sampan_api::codec::Media as Encoding;
use sampan_api::status::Status;

use crate::{Refusal, refuse};

/// The content type of a watch stream.
pub fn stream_type(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "application/json",
        Encoding::Yaml => "application/yaml",
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
    }
}

/// The encoding of a request body. `None`: not one the server reads.
pub fn of_content_type(content_type: &str) -> Option<Encoding> {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "text/json" => Some(Encoding::Json),
        "text/yaml" | "application/x-yaml" => Some(Encoding::Yaml),
        other => Encoding::parse(other),
    }
}

/// What the object is turned into before it is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transform {
    #[default]
    None,
    /// `meta.k8s.io/{version} Table`
    Table(MetaVersion),
    /// `PartialObjectMetadata` or its list, whichever fits.
    Metadata(MetaVersion),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaVersion {
    V1,
    V1beta1,
}

impl MetaVersion {
    pub fn api_version(self) -> &'static str {
        match self {
            MetaVersion::V1 => "meta.k8s.io/v1",
            MetaVersion::V1beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// The answer's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Media {
    pub encoding: Encoding,
    pub transform: Transform,
}

impl Default for Media {
    fn default() -> Self {
        Media {
            encoding: Encoding::Json,
            transform: Transform::None,
        }
    }
}

impl Media {
    /// A number that stands for this form, for caches.
    pub fn number(self) -> u32 {
        let encoding = match self.encoding {
            Encoding::Json => 0,
            Encoding::Yaml => 1,
            Encoding::Protobuf => 2,
        };
        let transform = match self.transform {
            Transform::None => 0,
            Transform::Table(MetaVersion::V1) => 1,
            Transform::Table(MetaVersion::V1beta1) => 2,
            Transform::Metadata(MetaVersion::V1) => 3,
            Transform::Metadata(MetaVersion::V1beta1) => 4,
        };
        encoding * 8 + transform
    }
}

/// One media range of an `Accept` header.
#[derive(Debug, Default)]
pub struct Clause {
    pub kind: String,
    pub parameters: Vec<(String, String)>,
    quality: f32,
}

impl Clause {
    pub fn parameter(&self, name: &str) -> &str {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }
}

/// The clauses of the `Accept` headers, best quality first, in the order written.
pub fn accept_clauses(headers: &HeaderMap) -> Vec<Clause> {
    let mut clauses: Vec<Clause> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let kind = parts.next().filter(|kind| !kind.is_empty())?.to_ascii_lowercase();
            let parameters: Vec<(String, String)> = parts
                .filter_map(|part| part.split_once('='))
                .map(|(key, value)| (key.trim().to_owned(), value.trim().trim_matches('"').to_owned()))
                .collect();
            let quality = parameters
                .iter()
                .find(|(key, _)| key == "q")
                .and_then(|(_, value)| value.parse().ok())
                .unwrap_or(1.0);
            Some(Clause {
                kind,
                parameters,
                quality,
            })
        })
        .collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

/// Chooses the answer's form. `transforms`: whether Table and metadata make sense here; `protobuf`: whether the
/// objects have a protobuf form (custom kinds have none).
pub fn negotiate(headers: &HeaderMap, transforms: bool, protobuf: bool) -> Result<Media, Refusal> {
    let clauses = accept_clauses(headers);
    if clauses.is_empty() {
        return Ok(Media::default());
    }
    clauses
        .iter()
        .filter(|clause| clause.quality > 0.0)
        .find_map(|clause| {
            let encoding = match clause.kind.as_str() {
                "*/*" | "application/*" | "application/json" | "text/json" => Encoding::Json,
                "application/yaml" | "text/yaml" => Encoding::Yaml,
                "application/vnd.kubernetes.protobuf" => Encoding::Protobuf,
                _ => return None,
            };
            let version = match (clause.parameter("g"), clause.parameter("v")) {
                ("meta.k8s.io", "v1") => Some(MetaVersion::V1),
                ("meta.k8s.io", "v1beta1") => Some(MetaVersion::V1beta1),
                _ => None,
            };
            let transform = match (clause.parameter("as"), version) {
                ("", _) => Transform::None,
                ("Table", Some(version)) if transforms => Transform::Table(version),
                ("PartialObjectMetadata" | "PartialObjectMetadataList", Some(version)) if transforms => {
                    Transform::Metadata(version)
                }
                _ => return None,
            };
            let possible = encoding != Encoding::Protobuf
                || match transform {
                    Transform::None => protobuf,
                    Transform::Metadata(_) => true,
                    Transform::Table(_) => false,
                };
            possible.then_some(Media { encoding, transform })
        })
        .ok_or_else(|| {
            refuse(Status::not_acceptable(
                "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(accept: &str) -> Result<Media, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        negotiate(&headers, true, true)
    }

    #[test]
    fn the_first_acceptable_form_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(ask(kubectl).unwrap().transform, Transform::Table(MetaVersion::V1));
        assert_eq!(
            ask("application/vnd.kubernetes.protobuf, */*").unwrap().encoding,
            Encoding::Protobuf
        );
        assert_eq!(ask("text/html, */*;q=0.8").unwrap(), Media::default());
        assert_eq!(
            ask("application/yaml;q=0.5,application/json;q=0.9").unwrap().encoding,
            Encoding::Json
        );
        assert_eq!(
            ask("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
                .unwrap()
                .transform,
            Transform::Metadata(MetaVersion::V1)
        );
        // An unknown transformation is passed over, not ignored.
        assert_eq!(
            ask("application/json;as=Chart;v=v1;g=meta.k8s.io").unwrap_err().code,
            406
        );
        assert_eq!(ask("image/png").unwrap_err().code, 406);
    }
}
