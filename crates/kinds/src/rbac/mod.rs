//! `rbac.authorization.k8s.io/v1`: roles and bindings.

mod strategies;

use jiff::Timestamp;
use sampan_api::Object;
use serde_json::Value;

use crate::print::{AGE, NAME, PLAIN, age, name, plain, text};
use crate::spec::{Column, Resource};
use crate::table::row;
use crate::tree;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        columns: BINDING,
        cells: binding,
        strategy: &strategies::CLUSTER_BINDING,
        ..row(
            GROUP,
            "ClusterRoleBinding",
            "ClusterRoleBindingList",
            "clusterrolebindings",
            "clusterrolebinding",
        )
    },
    Resource {
        namespaced: false,
        columns: PLAIN,
        cells: plain,
        strategy: &strategies::CLUSTER_ROLE,
        ..row(GROUP, "ClusterRole", "ClusterRoleList", "clusterroles", "clusterrole")
    },
    Resource {
        columns: BINDING,
        cells: binding,
        strategy: &strategies::BINDING,
        ..row(GROUP, "RoleBinding", "RoleBindingList", "rolebindings", "rolebinding")
    },
    Resource {
        columns: PLAIN,
        cells: plain,
        strategy: &strategies::ROLE,
        ..row(GROUP, "Role", "RoleList", "roles", "role")
    },
];

const BINDING: &[Column] = &[
    NAME,
    text("Role", "The role that is bound."),
    AGE,
    text("Users", "Users it is bound to.").wide(),
    text("Groups", "Groups it is bound to.").wide(),
    text("ServiceAccounts", "Service accounts it is bound to.").wide(),
];

fn binding(object: &Object, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| -> Value {
        tree::items(object, "subjects")
            .iter()
            .filter(|subject| tree::text(subject, "kind") == kind)
            .map(|subject| match kind {
                "ServiceAccount" => format!("{}/{}", tree::text(subject, "namespace"), tree::text(subject, "name")),
                _ => tree::text(subject, "name").to_owned(),
            })
            .collect::<Vec<_>>()
            .join(", ")
            .into()
    };
    vec![
        name(object),
        format!(
            "{}/{}",
            tree::text(object, "roleRef.kind"),
            tree::text(object, "roleRef.name")
        )
        .into(),
        age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
