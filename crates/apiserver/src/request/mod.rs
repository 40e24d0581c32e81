//! Reading a request: what it is about, its options, the form it wants its answer in, and its body.

pub mod info;
pub mod media;
pub mod options;
pub mod query;

pub use info::RequestInfo;
pub use media::{Encoding, Media, MetaVersion, Transform};
pub use options::{DeleteOptions, FieldValidation, ListOptions, VersionMatch, WriteOptions};
pub use query::{Query, go_duration};
