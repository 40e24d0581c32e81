//! The core group: the rows of `v1` and their rules.

pub(crate) mod event;
pub(crate) mod node;
pub(crate) mod pod;
mod print;
pub mod service;
mod strategies;
mod tls;
pub(crate) mod validate;
pub(crate) mod volume;

use crate::print::{PLAIN, plain};
use crate::spec::{Resource, SelectableField, Verbs};
use crate::table::{SCALE, review, row, special, status, view};
use crate::tree;

const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];

/// A selectable field read as text from the path of the same name.
macro_rules! text_field {
    ($path:literal) => {
        SelectableField {
            label: $path,
            read: |object| tree::text(object, $path).to_owned(),
        }
    };
}
pub(crate) use text_field;

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: true,
        strategy: &strategies::UNSTORED,
        ..review("", "Binding", "BindingList", "bindings", "binding")
    },
    Resource {
        namespaced: false,
        short_names: &["cs"],
        verbs: Verbs::ReadOnly,
        storage_prefix: "",
        columns: print::COMPONENT_STATUS,
        cells: print::component_status,
        strategy: &strategies::UNSTORED,
        ..row(
            "",
            "ComponentStatus",
            "ComponentStatusList",
            "componentstatuses",
            "componentstatus",
        )
    },
    Resource {
        short_names: &["cm"],
        columns: print::CONFIG_MAP,
        cells: print::config_map,
        strategy: &strategies::CONFIG_MAP,
        ..row("", "ConfigMap", "ConfigMapList", "configmaps", "configmap")
    },
    Resource {
        short_names: &["ep"],
        storage_prefix: "services/endpoints",
        columns: print::ENDPOINTS,
        cells: print::endpoints,
        strategy: &strategies::ENDPOINTS,
        deprecated: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        ..row("", "Endpoints", "EndpointsList", "endpoints", "endpoints")
    },
    Resource {
        short_names: &["ev"],
        columns: event::COLUMNS,
        cells: event::cells,
        fields: event::FIELDS,
        strategy: &event::RULES,
        ..row("", "Event", "EventList", "events", "event")
    },
    Resource {
        short_names: &["limits"],
        columns: PLAIN,
        cells: plain,
        strategy: &strategies::LIMIT_RANGE,
        ..row("", "LimitRange", "LimitRangeList", "limitranges", "limitrange")
    },
    Resource {
        namespaced: false,
        short_names: &["ns"],
        verbs: Verbs::NoDeleteCollection,
        subresources: &[
            crate::spec::Subresource {
                verbs: &["update"],
                ..view("finalize", "Namespace")
            },
            status("Namespace"),
        ],
        columns: print::NAMESPACE,
        cells: print::namespace,
        fields: &[text_field!("status.phase")],
        strategy: &strategies::NAMESPACE,
        ..row("", "Namespace", "NamespaceList", "namespaces", "namespace")
    },
    Resource {
        namespaced: false,
        short_names: &["no"],
        storage_prefix: "minions",
        subresources: &[special("proxy", ("", "", "NodeProxyOptions"), PROXY), status("Node")],
        columns: node::COLUMNS,
        cells: node::cells,
        fields: &[SelectableField {
            label: "spec.unschedulable",
            read: |object| tree::flag(object, "spec.unschedulable").to_string(),
        }],
        strategy: &node::RULES,
        ..row("", "Node", "NodeList", "nodes", "node")
    },
    Resource {
        short_names: &["pvc"],
        subresources: &[status("PersistentVolumeClaim")],
        columns: volume::CLAIM_COLUMNS,
        cells: volume::claim_cells,
        strategy: &volume::CLAIM_RULES,
        ..row(
            "",
            "PersistentVolumeClaim",
            "PersistentVolumeClaimList",
            "persistentvolumeclaims",
            "persistentvolumeclaim",
        )
    },
    Resource {
        namespaced: false,
        short_names: &["pv"],
        subresources: &[status("PersistentVolume")],
        columns: volume::COLUMNS,
        cells: volume::cells,
        strategy: &volume::RULES,
        ..row(
            "",
            "PersistentVolume",
            "PersistentVolumeList",
            "persistentvolumes",
            "persistentvolume",
        )
    },
    Resource {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            special("attach", ("", "", "PodAttachOptions"), STREAM),
            special("binding", ("", "", "Binding"), &["create"]),
            view("ephemeralcontainers", "Pod"),
            special("eviction", ("policy", "v1", "Eviction"), &["create"]),
            special("exec", ("", "", "PodExecOptions"), STREAM),
            special("log", ("", "", "Pod"), &["get"]),
            special("portforward", ("", "", "PodPortForwardOptions"), STREAM),
            special("proxy", ("", "", "PodProxyOptions"), PROXY),
            view("resize", "Pod"),
            status("Pod"),
        ],
        columns: pod::print::COLUMNS,
        cells: pod::print::cells,
        fields: pod::FIELDS,
        strategy: &pod::RULES,
        ..row("", "Pod", "PodList", "pods", "pod")
    },
    Resource {
        columns: print::POD_TEMPLATE,
        cells: print::pod_template,
        strategy: &strategies::POD_TEMPLATE,
        ..row("", "PodTemplate", "PodTemplateList", "podtemplates", "podtemplate")
    },
    Resource {
        short_names: &["rc"],
        categories: &["all"],
        storage_prefix: "controllers",
        subresources: &[SCALE, status("ReplicationController")],
        columns: crate::apps::print::REPLICA_SET,
        cells: print::replication_controller,
        fields: &[SelectableField {
            label: "status.replicas",
            read: |object| tree::int(object, "status.replicas").to_string(),
        }],
        strategy: &strategies::REPLICATION_CONTROLLER,
        ..row(
            "",
            "ReplicationController",
            "ReplicationControllerList",
            "replicationcontrollers",
            "replicationcontroller",
        )
    },
    Resource {
        short_names: &["quota"],
        subresources: &[status("ResourceQuota")],
        columns: print::RESOURCE_QUOTA,
        cells: print::resource_quota,
        strategy: &strategies::RESOURCE_QUOTA,
        ..row(
            "",
            "ResourceQuota",
            "ResourceQuotaList",
            "resourcequotas",
            "resourcequota",
        )
    },
    Resource {
        columns: print::SECRET,
        cells: print::secret,
        fields: &[text_field!("type")],
        strategy: &strategies::SECRET,
        ..row("", "Secret", "SecretList", "secrets", "secret")
    },
    Resource {
        short_names: &["sa"],
        subresources: &[special(
            "token",
            ("authentication.k8s.io", "v1", "TokenRequest"),
            &["create"],
        )],
        strategy: &strategies::SERVICE_ACCOUNT,
        ..row(
            "",
            "ServiceAccount",
            "ServiceAccountList",
            "serviceaccounts",
            "serviceaccount",
        )
    },
    Resource {
        short_names: &["svc"],
        categories: &["all"],
        storage_prefix: "services/specs",
        subresources: &[
            special("proxy", ("", "", "ServiceProxyOptions"), PROXY),
            status("Service"),
        ],
        columns: service::print::COLUMNS,
        cells: service::print::cells,
        fields: &[text_field!("spec.clusterIP"), text_field!("spec.type")],
        strategy: &service::RULES,
        ..row("", "Service", "ServiceList", "services", "service")
    },
];
