//! `apps/v1`: Deployments, ReplicaSets, StatefulSets, DaemonSets and their revisions.

pub(crate) mod print;
mod strategies;
pub(crate) mod validate;

use crate::spec::Resource;
use crate::table::{SCALE, row, status};

const GROUP: &str = "apps";

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        columns: print::CONTROLLER_REVISION,
        cells: print::controller_revision,
        strategy: &strategies::CONTROLLER_REVISION,
        ..row(
            GROUP,
            "ControllerRevision",
            "ControllerRevisionList",
            "controllerrevisions",
            "controllerrevision",
        )
    },
    Resource {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[status("DaemonSet")],
        columns: print::DAEMON_SET,
        cells: print::daemon_set,
        strategy: &strategies::DAEMON_SET,
        ..row(GROUP, "DaemonSet", "DaemonSetList", "daemonsets", "daemonset")
    },
    Resource {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status("Deployment")],
        columns: print::DEPLOYMENT,
        cells: print::deployment,
        strategy: &strategies::DEPLOYMENT,
        ..row(GROUP, "Deployment", "DeploymentList", "deployments", "deployment")
    },
    Resource {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status("ReplicaSet")],
        columns: print::REPLICA_SET,
        cells: print::replica_set,
        strategy: &strategies::REPLICA_SET,
        ..row(GROUP, "ReplicaSet", "ReplicaSetList", "replicasets", "replicaset")
    },
    Resource {
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[SCALE, status("StatefulSet")],
        columns: print::STATEFUL_SET,
        cells: print::stateful_set,
        strategy: &strategies::STATEFUL_SET,
        ..row(GROUP, "StatefulSet", "StatefulSetList", "statefulsets", "statefulset")
    },
];
