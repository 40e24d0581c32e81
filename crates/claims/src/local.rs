//! What the local provisioner, the node and the bootstrap agree on.
//!
//! A local volume is a directory on one node, named like its PersistentVolume, in a directory that the node names in
//! an annotation of its Node object. The provisioner only writes the object; the node makes the directory when a Pod
//! first needs it and removes it when the provisioner asks it to, through the API server's way to nodes.

use k8s_openapi::api::core::v1::PersistentVolume;

use crate::{PROVISIONED_BY, annotation};

/// The provisioner's name.
pub const PROVISIONER: &str = "sampan.io/local-volume";
/// The class of a new cluster.
pub const CLASS: &str = "local";
/// On a Node: the directory in which its volumes are.
pub const DIRECTORY: &str = "sampan.io/local-volumes";
/// On a volume: its directory may still exist.
pub const FINALIZER: &str = "sampan.io/local-volume";
/// The node's path, below its server's root, for the volume of a name.
pub const NODE_PATH: &str = "localvolumes";

/// Whether a volume says that the local provisioner made it. Anybody who may write volumes can say so.
pub fn is_ours(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata.annotations, PROVISIONED_BY) == Some(PROVISIONER)
}

/// Whether a name can be the name of a volume's directory: one that objects can have, and nothing a path could mean.
pub fn is_directory_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_object_names_are_directories() {
        for (name, good) in [
            ("pvc-0b0f", true),
            ("a.b", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("../a", false),
            ("a..b", false),
            (".hidden", false),
            ("A", false),
            ("a\0", false),
        ] {
            assert_eq!(is_directory_name(name), good, "{name:?}");
        }
    }
}
