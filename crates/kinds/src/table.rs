//! Constructors for the rows of the resource table.

use crate::print;
use crate::rules::RULES;
use crate::spec::{Resource, ScalePaths, Subresource, SubresourceKind, Verbs};

/// A namespaced `v1` resource with every verb and nothing particular; rows override what differs.
pub(crate) const fn row(
    group: &'static str,
    kind: &'static str,
    list_kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Resource {
    Resource {
        group,
        version: "v1",
        plural,
        singular,
        kind,
        list_kind,
        namespaced: true,
        short_names: &[],
        categories: &[],
        verbs: Verbs::All,
        subresources: &[],
        columns: print::NAME_AND_AGE,
        cells: print::name_and_age,
        fields: &[],
        storage_prefix: plural,
        stored_as: None,
        strategy: &RULES,
        deprecated: "",
    }
}

/// A resource nothing is stored of: a question answered at once.
pub(crate) const fn review(
    group: &'static str,
    kind: &'static str,
    list_kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Resource {
    Resource {
        namespaced: false,
        verbs: Verbs::CreateOnly,
        columns: &[],
        cells: print::none,
        storage_prefix: "",
        ..row(group, kind, list_kind, plural, singular)
    }
}

const VIEW: &[&str] = &["get", "patch", "update"];

/// A view of the object itself.
pub(crate) const fn view(name: &'static str, kind: &'static str) -> Subresource {
    Subresource {
        name,
        kind: SubresourceKind::View,
        gvk: ("", "", kind),
        verbs: VIEW,
    }
}

pub(crate) const fn status(kind: &'static str) -> Subresource {
    view("status", kind)
}

/// `spec.replicas`, `status.replicas`, `spec.selector`.
pub(crate) const SCALE: Subresource = Subresource {
    name: "scale",
    kind: SubresourceKind::Scale(ScalePaths {
        spec_replicas: "spec.replicas",
        status_replicas: "status.replicas",
        selector: "spec.selector",
    }),
    gvk: ("autoscaling", "v1", "Scale"),
    verbs: VIEW,
};

/// A subresource the engine has code for.
pub(crate) const fn special(
    name: &'static str,
    gvk: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource {
        name,
        kind: SubresourceKind::Special,
        gvk,
        verbs,
    }
}
