//! The roles and bindings themselves: what upstream gives a new cluster, as rows.
//!
//! Source of the facts: the bootstrap policy of Kubernetes 1.36 with its default feature gates.

use super::{ALL, BindingRow, EVENTS, READ, RoleRow, Subject, WRITE, bind, bind_in, named, role, role_in, rule, url};
use Subject::{Group, ServiceAccount, User};

pub(super) const CLUSTER_ROLES: &[RoleRow] = &[
    role("admin", &[]).aggregates("admin"),
    role("cluster-admin", &[
        rule("*", "*", "*"),
        url("*", "*"),
    ]),
    role("edit", &[]).aggregates("edit").joins("admin"),
    role("system:aggregate-to-admin", &[
        rule("create", "authorization.k8s.io", "localsubjectaccessreviews"),
        rule(ALL, "rbac.authorization.k8s.io", "rolebindings roles"),
    ]).joins("admin"),
    role("system:aggregate-to-edit", &[
        rule(READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
        rule("impersonate", "core", "serviceaccounts"),
        rule(WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
        rule("create", "core", "pods/eviction"),
        rule(WRITE, "core", "configmaps persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy"),
        rule("create", "core", "serviceaccounts/token"),
        rule(WRITE, "core events.k8s.io", "events"),
        rule(WRITE, "apps", "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale"),
        rule(WRITE, "autoscaling", "horizontalpodautoscalers"),
        rule(WRITE, "batch", "cronjobs jobs"),
        rule(WRITE, "extensions", "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets replicasets/scale replicationcontrollers/scale"),
        rule(WRITE, "policy", "poddisruptionbudgets"),
        rule(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
        rule(ALL, "coordination.k8s.io", "leases"),
        rule(WRITE, "resource.k8s.io", "resourceclaims resourceclaimtemplates"),
    ]).joins("edit"),
    role("system:aggregate-to-view", &[
        rule(READ, "core", "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status"),
        rule(READ, "core", "bindings limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status"),
        rule(READ, "core", "namespaces"),
        rule(READ, "core events.k8s.io", "events"),
        rule(READ, "discovery.k8s.io", "endpointslices"),
        rule(READ, "apps", "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status"),
        rule(READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
        rule(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
        rule(READ, "extensions", "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status networkpolicies replicasets replicasets/scale replicasets/status replicationcontrollers/scale"),
        rule(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
        rule(READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
        rule(READ, "resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates"),
    ]).joins("view"),
    role("system:auth-delegator", &[
        rule("create", "authentication.k8s.io", "tokenreviews"),
        rule("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]),
    role("system:basic-user", &[
        rule("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
        rule("create", "authentication.k8s.io", "selfsubjectreviews"),
    ]),
    role("system:certificates.k8s.io:certificatesigningrequests:nodeclient", &[
        rule("create", "certificates.k8s.io", "certificatesigningrequests/nodeclient"),
    ]),
    role("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", &[
        rule("create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient"),
    ]),
    role("system:certificates.k8s.io:kube-apiserver-client-approver", &[
        named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client"),
    ]),
    role("system:certificates.k8s.io:kube-apiserver-client-kubelet-approver", &[
        named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client-kubelet"),
    ]),
    role("system:certificates.k8s.io:kubelet-serving-approver", &[
        named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kubelet-serving"),
    ]),
    role("system:certificates.k8s.io:legacy-unknown-approver", &[
        named("approve", "certificates.k8s.io", "signers", "kubernetes.io/legacy-unknown"),
    ]),
    role("system:discovery", &[
        url("get", "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/"),
    ]),
    role("system:heapster", &[
        rule(READ, "core", "events namespaces nodes pods"),
        rule(READ, "extensions", "deployments"),
    ]),
    role("system:kube-aggregator", &[
        rule(READ, "core", "endpoints services"),
    ]),
    role("system:kube-controller-manager", &[
        EVENTS,
        rule("create", "coordination.k8s.io", "leases"),
        named("get update", "coordination.k8s.io", "leases", "kube-controller-manager"),
        rule("create", "core", "secrets serviceaccounts"),
        rule("delete", "core", "secrets"),
        rule("get", "core", "configmaps namespaces secrets serviceaccounts"),
        rule("update", "core", "secrets serviceaccounts"),
        rule("create", "authentication.k8s.io", "tokenreviews"),
        rule("create", "authorization.k8s.io", "subjectaccessreviews"),
        rule("list watch", "*", "*"),
        rule("create", "core", "serviceaccounts/token"),
    ]),
    role("system:kube-dns", &[
        rule("list watch", "core", "endpoints services"),
    ]),
    role("system:kube-scheduler", &[
        EVENTS,
        rule("create", "coordination.k8s.io", "leases"),
        named("get list update watch", "coordination.k8s.io", "leases", "kube-scheduler"),
        rule(ALL, "coordination.k8s.io", "leasecandidates"),
        rule(READ, "core", "nodes"),
        rule("delete get list watch", "core", "pods"),
        rule("create", "core", "bindings pods/binding"),
        rule("patch update", "core", "pods/status"),
        rule(READ, "core", "replicationcontrollers services"),
        rule(READ, "apps extensions", "replicasets"),
        rule(READ, "apps", "statefulsets"),
        rule(READ, "policy", "poddisruptionbudgets"),
        rule(READ, "core", "persistentvolumeclaims persistentvolumes"),
        rule("create", "authentication.k8s.io", "tokenreviews"),
        rule("create", "authorization.k8s.io", "subjectaccessreviews"),
        rule(READ, "storage.k8s.io", "csinodes"),
        rule(READ, "storage.k8s.io", "volumeattachments"),
        rule(READ, "core", "namespaces"),
        rule(READ, "storage.k8s.io", "csidrivers"),
        rule(READ, "storage.k8s.io", "csistoragecapacities"),
        rule(READ, "resource.k8s.io", "deviceclasses"),
        rule("get list patch update watch", "resource.k8s.io", "resourceclaims"),
        rule("get list patch update watch", "resource.k8s.io", "resourceclaims/status"),
        rule("update", "core", "pods/finalizers"),
        rule(READ, "resource.k8s.io", "resourceslices"),
        rule("create delete", "resource.k8s.io", "resourceclaims"),
        rule("patch update", "resource.k8s.io", "resourceclaims/binding"),
    ]),
    role("system:kubelet-api-admin", &[
        rule(READ, "core", "nodes"),
        rule("proxy", "core", "nodes"),
        rule("*", "core", "nodes/log nodes/metrics nodes/proxy nodes/stats"),
        rule("*", "core", "nodes/configz nodes/healthz nodes/pods"),
    ]),
    role("system:monitoring", &[
        url("get", "/flagz /healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/* /statusz"),
        rule("get", "core", "nodes/metrics"),
    ]),
    role("system:node", &[
        rule("create", "authentication.k8s.io", "tokenreviews"),
        rule("create", "authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews"),
        rule(READ, "core", "services"),
        rule("create get list watch", "core", "nodes"),
        rule("patch update", "core", "nodes/status"),
        rule("patch update", "core", "nodes"),
        EVENTS,
        rule(READ, "core", "pods"),
        rule("create delete", "core", "pods"),
        rule("patch update", "core", "pods/status"),
        rule("create", "core", "pods/eviction"),
        rule(READ, "core", "configmaps secrets"),
        rule("get", "core", "persistentvolumeclaims persistentvolumes"),
        rule("get", "core", "endpoints"),
        rule("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
        rule("create delete get patch update", "coordination.k8s.io", "leases"),
        rule("get", "storage.k8s.io", "volumeattachments"),
        rule("create", "core", "serviceaccounts/token"),
        rule("get patch update", "core", "persistentvolumeclaims/status"),
        rule(READ, "storage.k8s.io", "csidrivers"),
        rule("create delete get patch update", "storage.k8s.io", "csinodes"),
        rule(READ, "node.k8s.io", "runtimeclasses"),
        rule("get", "resource.k8s.io", "resourceclaims"),
        rule("deletecollection", "resource.k8s.io", "resourceslices"),
        rule("get", "core", "serviceaccounts"),
    ]),
    role("system:node-bootstrapper", &[
        rule("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
    ]),
    role("system:node-problem-detector", &[
        rule("get", "core", "nodes"),
        rule("patch", "core", "nodes/status"),
        EVENTS,
    ]),
    role("system:node-proxier", &[
        rule("list watch", "core", "endpoints services"),
        rule(READ, "core", "nodes"),
        EVENTS,
        rule("list watch", "networking.k8s.io", "servicecidrs"),
        rule("list watch", "discovery.k8s.io", "endpointslices"),
    ]),
    role("system:persistent-volume-provisioner", &[
        rule("create delete get list watch", "core", "persistentvolumes"),
        rule("get list update watch", "core", "persistentvolumeclaims"),
        rule(READ, "storage.k8s.io", "storageclasses"),
        rule("watch", "core", "events"),
        EVENTS,
    ]),
    role("system:public-info-viewer", &[
        url("get", "/healthz /livez /readyz /version /version/"),
    ]),
    role("system:service-account-issuer-discovery", &[
        url("get", "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/"),
    ]),
    role("system:volume-scheduler", &[
        rule("get list patch update watch", "core", "persistentvolumes"),
        rule(READ, "storage.k8s.io", "storageclasses"),
        rule("get list patch update watch", "core", "persistentvolumeclaims"),
    ]),
    role("view", &[]).aggregates("view").joins("edit"),
];

pub(super) const ROLES: &[RoleRow] = &[
    role_in(
        "kube-public",
        "system:controller:bootstrap-signer",
        &[
            rule(READ, "core", "configmaps"),
            named("update", "core", "configmaps", "cluster-info"),
            EVENTS,
        ],
    ),
    role_in(
        "kube-system",
        "extension-apiserver-authentication-reader",
        &[named(READ, "core", "configmaps", "extension-apiserver-authentication")],
    ),
    role_in(
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        &[
            rule("create get list update watch", "coordination.k8s.io", "leases"),
            rule("create get list update watch", "coordination.k8s.io", "leasecandidates"),
        ],
    ),
    role_in(
        "kube-system",
        "system::leader-locking-kube-scheduler",
        &[
            rule("create get list update watch", "coordination.k8s.io", "leases"),
            rule("create get list update watch", "coordination.k8s.io", "leasecandidates"),
        ],
    ),
    role_in(
        "kube-system",
        "system:controller:bootstrap-signer",
        &[rule(READ, "core", "secrets")],
    ),
    role_in(
        "kube-system",
        "system:controller:cloud-provider",
        &[rule("create get list watch", "core", "configmaps")],
    ),
    role_in(
        "kube-system",
        "system:controller:token-cleaner",
        &[rule("delete get list watch", "core", "secrets"), EVENTS],
    ),
];

pub(super) const BINDINGS: &[BindingRow] = &[
    bind("cluster-admin", &[Group("system:masters")]),
    bind("system:basic-user", &[Group("system:authenticated")]),
    bind("system:discovery", &[Group("system:authenticated")]),
    bind(
        "system:kube-controller-manager",
        &[User("system:kube-controller-manager")],
    ),
    bind("system:kube-dns", &[ServiceAccount("kube-system", "kube-dns")]),
    bind("system:kube-scheduler", &[User("system:kube-scheduler")]),
    bind("system:monitoring", &[Group("system:monitoring")]),
    bind("system:node", &[]),
    bind("system:node-proxier", &[User("system:kube-proxy")]),
    bind(
        "system:public-info-viewer",
        &[Group("system:authenticated"), Group("system:unauthenticated")],
    ),
    bind(
        "system:service-account-issuer-discovery",
        &[Group("system:serviceaccounts")],
    ),
    bind("system:volume-scheduler", &[User("system:kube-scheduler")]),
    bind_in(
        "kube-public",
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &[ServiceAccount("kube-system", "bootstrap-signer")],
    ),
    bind_in(
        "kube-system",
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        &[User("system:kube-controller-manager"), User("system:kube-scheduler")],
    ),
    bind_in(
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        &[
            User("system:kube-controller-manager"),
            ServiceAccount("kube-system", "kube-controller-manager"),
            ServiceAccount("kube-system", "leader-election-controller"),
        ],
    ),
    bind_in(
        "kube-system",
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        &[
            User("system:kube-scheduler"),
            ServiceAccount("kube-system", "kube-scheduler"),
        ],
    ),
    bind_in(
        "kube-system",
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &[ServiceAccount("kube-system", "bootstrap-signer")],
    ),
    bind_in(
        "kube-system",
        "system:controller:cloud-provider",
        "system:controller:cloud-provider",
        &[ServiceAccount("kube-system", "cloud-provider")],
    ),
    bind_in(
        "kube-system",
        "system:controller:token-cleaner",
        "system:controller:token-cleaner",
        &[ServiceAccount("kube-system", "token-cleaner")],
    ),
];

// Ours, from here on: the cluster DNS, as the add-on that usually provides it has it, and what joining nodes need.

/// The group of machines that join with a token of `sampan token create`.
const JOINING: Subject = Group("system:bootstrappers:sampan:nodes");

pub(super) const OWN_CLUSTER_ROLES: &[RoleRow] = &[
    role(
        "system:coredns",
        &[
            rule("list watch", "core", "endpoints namespaces pods services"),
            rule("list watch", "discovery.k8s.io", "endpointslices"),
            rule("get", "core", "nodes"),
        ],
    ),
    // What enforcing NetworkPolicies on a node takes.
    role(
        "system:sampan:network-policies",
        &[
            rule("list watch", "core", "namespaces pods"),
            rule("list watch", "networking.k8s.io", "networkpolicies"),
        ],
    ),
    // What metrics-server brings along upstream: here resource metrics are part of the API server.
    role(
        "system:aggregated-metrics-reader",
        &[rule(READ, "metrics.k8s.io", "nodes pods")],
    )
    .joins("view"),
    // The caches that the components of one process share: they read, and do nothing.
    role("system:sampan:informers", &[rule("list watch", "*", "*")]),
    // Upstream leaves nodes' serving certificates to others.
    role(
        "system:controller:sampan-node-certificate-approver",
        &[
            rule(READ, "certificates.k8s.io", "certificatesigningrequests"),
            rule("update", "certificates.k8s.io", "certificatesigningrequests/approval"),
            named(
                "approve",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/kubelet-serving kubernetes.io/kube-apiserver-client",
            ),
            rule(READ, "core", "nodes"),
            rule("get", "core", "endpoints services"),
        ],
    ),
    // Volumes on nodes' own disks. The one thing a node lets itself be told to delete is such a volume.
    role(
        "system:controller:sampan-local-volume-provisioner",
        &[
            rule("create delete get list update watch", "core", "persistentvolumes"),
            rule("get list update watch", "core", "persistentvolumeclaims"),
            rule(READ, "core", "nodes"),
            rule("delete", "core", "nodes/proxy"),
            rule(READ, "storage.k8s.io", "storageclasses"),
            EVENTS,
        ],
    ),
];

pub(super) const OWN_ROLES: &[RoleRow] = &[
    // What a joining node must know of the cluster.
    role_in(
        "kube-system",
        "sampan:cluster-facts",
        &[named("get list watch", "core", "configmaps", "sampan-cluster")],
    ),
    // Where the cluster's name servers are.
    role_in(
        "kube-system",
        "system:sampan:dns",
        &[
            rule("create get update", "core", "services"),
            rule("create delete get list update", "discovery.k8s.io", "endpointslices"),
        ],
    ),
];

pub(super) const OWN_BINDINGS: &[BindingRow] = &[
    bind(
        "system:coredns",
        &[
            ServiceAccount("kube-system", "coredns"),
            ServiceAccount("kube-system", "kube-dns"),
        ],
    ),
    bind(
        "system:controller:sampan-node-certificate-approver",
        &[ServiceAccount("kube-system", "sampan-node-certificate-approver")],
    ),
    bind("system:sampan:network-policies", &[User("system:kube-proxy")]),
    bind(
        "system:controller:sampan-local-volume-provisioner",
        &[ServiceAccount("kube-system", "sampan-local-volume-provisioner")],
    ),
    bind("system:sampan:informers", &[User("system:sampan:informers")]),
    bind_in(
        "kube-system",
        "system:sampan:dns",
        "system:sampan:dns",
        &[User("system:sampan:dns")],
    ),
    bind_in("", "sampan:node-bootstrapper", "system:node-bootstrapper", &[JOINING]),
    bind_in(
        "",
        "sampan:node-autoapprove-bootstrap",
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[JOINING],
    ),
    bind_in(
        "",
        "sampan:node-autoapprove-certificate-rotation",
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[Group("system:nodes")],
    ),
    bind_in(
        "kube-system",
        "sampan:cluster-facts",
        "sampan:cluster-facts",
        &[Group("system:nodes")],
    ),
];
