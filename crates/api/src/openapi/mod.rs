//! OpenAPI documents: version 3 by group version, and version 2 as JSON and as gnostic's protobuf.
//!
//! Both are pure functions of an [`Api`]: what is served, with the built-in schema's types and texts (custom
//! kinds bring their own JSON schema). Nothing is kept between calls: a document is a few megabytes, asked for
//! rarely, and built in milliseconds; callers cache the bytes if they must. Hashes are of the inputs, so an index
//! costs nothing.
//!
//! What clients look for and must find: `x-kubernetes-group-version-kind` on operations and schemas,
//! `x-kubernetes-action`, the query parameters `fieldValidation` and `dryRun` of PATCH (kubectl probes both),
//! and the patch types an operation takes.
//!
//! Left out on purpose: the deprecated `/watch/` paths, defaults, and descriptions of the options of exec, log
//! and their relatives.

mod convert;
mod defaults;
mod gnostic;
mod paths;
mod schemas;
pub mod v2;
pub mod v3;

use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use convert::v3_of_v2;
pub use paths::delete_answers_object;

/// What is served.
#[derive(Clone, Debug, Default)]
pub struct Api {
    /// What `info.version` says, such as `v1.36.0`.
    pub version: String,
    pub resources: Vec<ResourceDesc>,
}

/// A served resource.
#[derive(Clone, Debug, Default, Hash)]
pub struct ResourceDesc {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub list_kind: String,
    pub namespaced: bool,
    /// `create delete deletecollection get list patch update watch`
    pub verbs: Vec<String>,
    pub subresources: Vec<SubresourceDesc>,
    /// The JSON schema of a custom kind, as its CRD states it; nothing for built-in kinds.
    pub schema: Option<CustomSchema>,
}

/// A subresource such as `pods/status`.
#[derive(Clone, Debug, Default, Hash)]
pub struct SubresourceDesc {
    pub name: String,
    /// Group, version and kind of what goes in and out.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
    /// Exec, attach, port-forward and proxy: connections, not objects.
    pub connect: bool,
}

/// The schema of a custom kind.
#[derive(Clone, Debug)]
pub struct CustomSchema(pub Arc<Value>);

impl std::hash::Hash for CustomSchema {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_string().hash(state);
    }
}

impl ResourceDesc {
    fn has(&self, verb: &str) -> bool {
        self.verbs.iter().any(|own| own == verb)
    }
}

impl Api {
    /// `api/v1`, `apis/apps/v1`, …: the group versions in the order served.
    fn group_versions(&self) -> Vec<(&str, &str)> {
        let mut all: Vec<(&str, &str)> = Vec::new();
        for resource in &self.resources {
            let own = (resource.group.as_str(), resource.version.as_str());
            if !all.contains(&own) {
                all.push(own);
            }
        }
        all
    }

    /// A hash of everything a document of these resources depends on.
    fn hash<'a>(&self, resources: impl Iterator<Item = &'a ResourceDesc>) -> String {
        struct Feed(Sha256);
        impl std::hash::Hasher for Feed {
            fn finish(&self) -> u64 {
                0
            }
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
        }
        let mut feed = Feed(Sha256::new());
        feed.0.update(env!("CARGO_PKG_VERSION"));
        feed.0.update(&self.version);
        feed.0.update(crate::schema::fingerprint());
        for resource in resources {
            std::hash::Hash::hash(resource, &mut feed);
        }
        hex::encode_upper(feed.0.finalize())
    }
}

#[cfg(test)]
mod tests;
