//! Which of the public suite's conformance tests need what.
//!
//! A group is a regular expression over test names and the number of tests it must find: a suite of another version,
//! or a name that changed, must show as a wrong number and not as a quiet pass.

pub struct Group {
    pub name: &'static str,
    pub what: &'static str,
    pub tests: usize,
    pub focus: &'static str,
}

impl Group {
    /// The whole expression: the suite joins several with "or", so "conformance" has to be part of this one.
    pub fn expression(&self) -> String {
        format!(r"({}).*\[Conformance\]", self.focus)
    }
}

/// Tests of the API server and the controllers: no kubelet, though two nodes have to be Ready.
pub const API: &[&str] = &["A", "B", "C", "D", "E", "F", "G", "H"];

pub const GROUPS: &[Group] = &[
    Group {
        name: "A",
        what: "custom resources, discovery, field validation, admission policies, lists in parts",
        tests: 47,
        focus: r"AggregatedDiscovery|API chunking|CustomResourcePublishOpenAPI|CustomResourceDefinition (Watch|resources)|\] Discovery |FieldValidation|API priority and fairness|MutatingAdmissionPolicy|ValidatingAdmissionPolicy|server version|Table transformation|\] Watchers ",
    },
    Group {
        name: "B",
        what: "namespaces and quotas",
        tests: 17,
        focus: r"Namespaces \[Serial\] should (patch|apply)|all services are removed|\] ResourceQuota ",
    },
    Group {
        name: "C",
        what: "certificates, reviews, service accounts, events",
        tests: 11,
        focus: r"Certificates API|SubjectReview|ServiceAccounts should (allow opting out|create a serviceAccountToken|guarantee kube-root-ca|run through|update a)|sig-instrumentation\] Events ",
    },
    Group {
        name: "D",
        what: "services, endpoints, ingresses",
        tests: 14,
        focus: r"\[sig-network\] (API Server should|ServiceCIDR|Ingress API|IngressClass API|EndpointSliceMirroring|Endpoints should test|EndpointsController should create and delete|EndpointSlice should (create and delete|support creating)|Services should (find a service|complete a service status|delete a collection))",
    },
    Group {
        name: "E",
        what: "leases, Pod templates, ConfigMaps and Secrets, resource claims",
        tests: 19,
        focus: r"Lease lease API|PodTemplates|RuntimeClass should (reject|support)|Secrets should (fail to create|patch a secret)|ConfigMap should (fail to create|update ConfigMap|run through)|reject invalid sysctls|Set QOS Class|Node Lifecycle|\[DRA\] CRUD",
    },
    Group {
        name: "F",
        what: "storage",
        tests: 12,
        focus: r"CSIInlineVolumes|CSINodes|CSIStorageCapacity|PersistentVolumes CSI Conformance|StorageClasses CSI|VolumeAttachment Conformance|VolumeAttributesClass|should be immutable if",
    },
    Group {
        name: "G",
        what: "limits, priorities, disruption budgets, cron jobs",
        tests: 8,
        focus: r"\] LimitRange |PriorityClass endpoints|CronJob should (support CronJob API|not schedule jobs when suspended)|exceeded quota|PodDisruptionBudgets for all namespaces|should create a PodDisruptionBudget",
    },
    Group {
        name: "H",
        what: "kubectl",
        tests: 8,
        focus: r"Kubectl client (Kubectl (api-versions|cluster-info|diff|server-side dry-run|version|run pod)|Proxy server)",
    },
    // What follows needs a node that runs containers, and the suite's images.
    Group {
        name: "I",
        what: "garbage collection, ordered deletion (image pause)",
        tests: 9,
        focus: r"Garbage collector|all pods are removed|OrderedNamespaceDeletion",
    },
    Group {
        name: "W",
        what: "webhooks, conversion, aggregation (images agnhost, sample-apiserver, etcd)",
        tests: 26,
        focus: r"AdmissionWebhook|CustomResourceConversionWebhook|CustomResourceFieldSelectors|Aggregator",
    },
];

/// Tests that wait five minutes by design (a compaction, a cron job that must not run): their time says nothing.
pub const WAITING: &str = r"API chunking|not schedule jobs when suspended";
/// How many of a group's tests those are.
pub fn waiting(group: &str) -> usize {
    match group {
        "A" => 2,
        "G" => 1,
        _ => 0,
    }
}

pub fn group(name: &str) -> Option<&'static Group> {
    GROUPS.iter().find(|group| group.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_the_api_are_136_tests() {
        let tests: usize = API.iter().filter_map(|name| group(name)).map(|group| group.tests).sum();
        assert_eq!(tests, 136);
    }
}
