//! `storage.k8s.io/v1`: classes, CSI drivers and attachments.

mod print;
mod strategies;

use crate::print::{PLAIN, plain};
use crate::spec::Resource;
use crate::table::{row, status};

const GROUP: &str = "storage.k8s.io";

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        columns: print::CSI_DRIVER,
        cells: print::csi_driver,
        strategy: &strategies::CSI_DRIVER,
        ..row(GROUP, "CSIDriver", "CSIDriverList", "csidrivers", "csidriver")
    },
    Resource {
        namespaced: false,
        columns: print::CSI_NODE,
        cells: print::csi_node,
        strategy: &strategies::CSI_NODE,
        ..row(GROUP, "CSINode", "CSINodeList", "csinodes", "csinode")
    },
    Resource {
        columns: PLAIN,
        cells: plain,
        strategy: &strategies::CSI_STORAGE_CAPACITY,
        ..row(
            GROUP,
            "CSIStorageCapacity",
            "CSIStorageCapacityList",
            "csistoragecapacities",
            "csistoragecapacity",
        )
    },
    Resource {
        namespaced: false,
        short_names: &["sc"],
        columns: print::STORAGE_CLASS,
        cells: print::storage_class,
        strategy: &strategies::STORAGE_CLASS,
        ..row(
            GROUP,
            "StorageClass",
            "StorageClassList",
            "storageclasses",
            "storageclass",
        )
    },
    Resource {
        namespaced: false,
        subresources: &[status("VolumeAttachment")],
        columns: print::VOLUME_ATTACHMENT,
        cells: print::volume_attachment,
        strategy: &strategies::VOLUME_ATTACHMENT,
        ..row(
            GROUP,
            "VolumeAttachment",
            "VolumeAttachmentList",
            "volumeattachments",
            "volumeattachment",
        )
    },
    Resource {
        namespaced: false,
        short_names: &["vac"],
        columns: print::VOLUME_ATTRIBUTES_CLASS,
        cells: print::volume_attributes_class,
        strategy: &strategies::VOLUME_ATTRIBUTES_CLASS,
        ..row(
            GROUP,
            "VolumeAttributesClass",
            "VolumeAttributesClassList",
            "volumeattributesclasses",
            "volumeattributesclass",
        )
    },
];
