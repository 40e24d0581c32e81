//! The types of the variables of admission: `request` and `namespaceObject`.

use std::sync::{Arc, LazyLock};

use crate::Env;
use crate::schema::{DYN, Decl};
use crate::types::{AUTHORIZER, RESOURCE_CHECK};

static REQUEST: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let text = Decl::string;
    let kind = |name: &str| {
        let fields = [("group", text()), ("version", text()), ("kind", text())];
        Decl::object(name, fields)
    };
    let resource = |name: &str| {
        let fields = [("group", text()), ("version", text()), ("resource", text())];
        Decl::object(name, fields)
    };
    let user = Decl::object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", Decl::list(text())),
            ("extra", Decl::map(Decl::list(text()))),
        ],
    );
    Decl::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind("kubernetes.GroupVersionKind")),
            ("resource", resource("kubernetes.GroupVersionResource")),
            ("subResource", text()),
            ("requestKind", kind("kubernetes.GroupVersionKind")),
            ("requestResource", resource("kubernetes.GroupVersionResource")),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Decl::boolean()),
            ("options", DYN.clone()),
        ],
    )
});

static NAMESPACE: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let text = Decl::string;
    let metadata = Decl::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", Decl::map(text())),
            ("annotations", Decl::map(text())),
            ("UID", text()),
            ("creationTimestamp", Decl::timestamp()),
            ("deletionGracePeriodSeconds", Decl::int()),
            ("deletionTimestamp", Decl::timestamp()),
            ("finalizers", Decl::list(text())),
        ],
    );
    let condition = Decl::object(
        "kubernetes.NamespaceCondition",
        [
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", Decl::timestamp()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    Decl::object(
        "kubernetes.Namespace",
        [
            ("metadata", metadata),
            (
                "spec",
                Decl::object("kubernetes.NamespaceSpec", [("finalizers", Decl::list(text()))]),
            ),
            (
                "status",
                Decl::object(
                    "kubernetes.NamespaceStatus",
                    [("conditions", Decl::list(condition)), ("phase", text())],
                ),
            ),
        ],
    )
});

/// `request`: the AdmissionRequest, as JSON.
pub fn request() -> &'static Arc<Decl> {
    &REQUEST
}

/// `namespaceObject`: the Namespace, as JSON; null for what is in none.
pub fn namespace() -> &'static Arc<Decl> {
    &NAMESPACE
}

/// The environment of match conditions of webhooks: `object`, `oldObject`, `request`, and the authorizer.
pub fn env() -> Env {
    Env::new()
        .with("object", DYN.clone())
        .with("oldObject", DYN.clone())
        .with("request", REQUEST.clone())
        .with("authorizer", Decl::made(AUTHORIZER))
        .with("authorizer.requestResource", Decl::made(RESOURCE_CHECK))
}
