//! Minimal manifests in, defaulted manifests out: whole trees, written from what upstream's API server answers.

use serde_json::{Value, json};

/// What every template's container gets.
fn container() -> Value {
    json!({"name": "a", "image": "nginx:1.29", "imagePullPolicy": "IfNotPresent", "resources": {},
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"})
}

/// What every template's spec gets.
fn pod_spec(restart: &str) -> Value {
    json!({"containers": [container()], "dnsPolicy": "ClusterFirst", "restartPolicy": restart,
        "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30})
}

fn template_in() -> Value {
    json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "a", "image": "nginx:1.29"}]}})
}

fn template_out() -> Value {
    json!({"metadata": {"labels": {"app": "x"}}, "spec": pod_spec("Always")})
}

fn check(api_version: &str, kind: &str, given: Value, expected: &Value) {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let row = sampan_kinds::find_kind(group, version, kind).unwrap_or_else(|| panic!("no {api_version} {kind}"));
    let mut object = given;
    row.strategy.default(&mut object);
    assert_eq!(&object, expected, "{api_version} {kind}:\n{object:#}");
}

#[test]
fn workloads() {
    let selector = json!({"matchLabels": {"app": "x"}});
    check(
        "apps/v1",
        "Deployment",
        json!({"spec": {"selector": selector, "template": template_in()}}),
        &json!({"spec": {"selector": selector, "template": template_out(), "replicas": 1, "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}},
            "status": {}}),
    );
    check(
        "apps/v1",
        "Deployment",
        json!({"spec": {"selector": selector, "strategy": {"type": "Recreate"}, "replicas": 0, "template": template_in()}}),
        &json!({"spec": {"selector": selector, "template": template_out(), "replicas": 0, "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600, "strategy": {"type": "Recreate"}}, "status": {}}),
    );
    check(
        "apps/v1",
        "ReplicaSet",
        json!({"spec": {"selector": selector, "template": template_in()}}),
        &json!({"spec": {"selector": selector, "template": template_out(), "replicas": 1}, "status": {"replicas": 0}}),
    );
    check(
        "apps/v1",
        "StatefulSet",
        json!({"spec": {"selector": selector, "template": template_in(), "serviceName": "s", "volumeClaimTemplates": [
            {"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}}),
        &json!({"spec": {"selector": selector, "template": template_out(), "serviceName": "s", "replicas": 1,
            "revisionHistoryLimit": 10, "podManagementPolicy": "OrderedReady",
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "volumeClaimTemplates": [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "d"},
                "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "resources": {"requests": {"storage": "1Gi"}}},
                "status": {"phase": "Pending"}}]},
            "status": {"replicas": 0, "availableReplicas": 0}}),
    );
    check(
        "apps/v1",
        "DaemonSet",
        json!({"spec": {"selector": selector, "template": template_in()}}),
        &json!({"spec": {"selector": selector, "template": template_out(), "revisionHistoryLimit": 10,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}},
            "status": {"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}}),
    );
    check(
        "v1",
        "ReplicationController",
        json!({"spec": {"template": template_in()}}),
        &json!({"metadata": {"labels": {"app": "x"}}, "spec": {"selector": {"app": "x"}, "template": template_out(), "replicas": 1},
            "status": {"replicas": 0}}),
    );
    let job =
        json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "nginx:1.29"}]}}});
    let job_out = json!({"template": {"metadata": {}, "spec": pod_spec("Never")}});
    check(
        "batch/v1",
        "CronJob",
        json!({"spec": {"schedule": "@hourly", "jobTemplate": {"spec": job}}}),
        &json!({"spec": {"schedule": "@hourly", "concurrencyPolicy": "Allow", "suspend": false, "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 1, "jobTemplate": {"metadata": {}, "spec": job_out}}, "status": {}}),
    );
    check(
        "v1",
        "PodTemplate",
        json!({"template": template_in()}),
        &json!({"template": template_out()}),
    );
}

#[test]
fn a_pod_with_everything_that_has_defaults() {
    check(
        "v1",
        "Pod",
        json!({"metadata": {"name": "p"}, "spec": {
            "hostNetwork": true,
            "initContainers": [{"name": "i", "image": "x@sha256:1", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "image": "nginx",
                "ports": [{"containerPort": 80}],
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "readinessProbe": {"grpc": {"port": 1}, "periodSeconds": 3},
                "lifecycle": {"preStop": {"httpGet": {"port": 8}}}}],
            "volumes": [
                {"name": "none"},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "c", "configMap": {"name": "c"}},
                {"name": "d", "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"name": "h", "hostPath": {"path": "/"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                {"name": "i", "iscsi": {"targetPortal": "t", "iqn": "q", "lun": 0}}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}}),
        &json!({"metadata": {"name": "p"}, "spec": {
            "hostNetwork": true, "enableServiceLinks": true,
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "securityContext": {}, "terminationGracePeriodSeconds": 30,
            "initContainers": [{"name": "i", "image": "x@sha256:1", "restartPolicy": "Always", "imagePullPolicy": "IfNotPresent",
                "resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "containers": [{"name": "a", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "failureThreshold": 3, "periodSeconds": 10,
                    "successThreshold": 1, "timeoutSeconds": 1},
                "readinessProbe": {"grpc": {"port": 1, "service": ""}, "failureThreshold": 3, "periodSeconds": 3,
                    "successThreshold": 1, "timeoutSeconds": 1},
                "lifecycle": {"preStop": {"httpGet": {"port": 8, "path": "/", "scheme": "HTTP"}}}}],
            "volumes": [
                {"name": "none", "emptyDir": {}},
                {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
                {"name": "c", "configMap": {"name": "c", "defaultMode": 420}},
                {"name": "d", "downwardAPI": {"defaultMode": 420, "items": [
                    {"path": "l", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}}]}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}},
                {"name": "p", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {"metadata": {}, "spec": {"volumeMode": "Filesystem", "resources": {}}}}},
                {"name": "i", "iscsi": {"targetPortal": "t", "iqn": "q", "lun": 0, "iscsiInterface": "default"}}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]},
            "status": {}}),
    );
}

#[test]
fn core_kinds() {
    check(
        "v1",
        "Service",
        json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 80}, {"name": "n", "port": 81, "targetPort": "web"}]}}),
        &json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true,
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}, {"name": "n", "port": 81, "protocol": "TCP", "targetPort": "web"}]},
            "status": {"loadBalancer": {}}}),
    );
    check(
        "v1",
        "Endpoints",
        json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        &json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80, "protocol": "TCP"}]}]}),
    );
    check(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}),
        &json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {}}],
            "ports": [{"name": "", "port": 80, "protocol": "TCP"}]}),
    );
    check("v1", "Secret", json!({}), &json!({"type": "Opaque"}));
    check(
        "v1",
        "ConfigMap",
        json!({"data": {"a": "b"}}),
        &json!({"data": {"a": "b"}}),
    );
    check(
        "v1",
        "Namespace",
        json!({"metadata": {"name": "n"}}),
        &json!({"metadata": {"name": "n", "labels": {"kubernetes.io/metadata.name": "n"}}, "spec": {}, "status": {"phase": "Active"}}),
    );
    check(
        "v1",
        "PersistentVolume",
        json!({"spec": {"capacity": {"storage": "1024Mi"}, "hostPath": {"path": "/x"}, "accessModes": ["ReadWriteOnce"]}}),
        &json!({"spec": {"capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x", "type": ""}, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}),
    );
    check(
        "v1",
        "PersistentVolumeClaim",
        json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}, "resources": {"requests": {"storage": "1"}}}}),
        &json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}, "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": "1"}}}, "status": {"phase": "Pending"}}),
    );
}

#[test]
fn kinds_of_other_groups() {
    check(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
        &json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
    );
    check(
        "storage.k8s.io/v1",
        "StorageClass",
        json!({"provisioner": "p"}),
        &json!({"provisioner": "p", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}),
    );
    check(
        "storage.k8s.io/v1",
        "CSIDriver",
        json!({"spec": {}}),
        &json!({"spec": {"attachRequired": true, "fsGroupPolicy": "ReadWriteOnceWithFSType", "podInfoOnMount": false,
            "requiresRepublish": false, "seLinuxMount": false, "storageCapacity": false, "volumeLifecycleModes": ["Persistent"]}}),
    );
    check(
        "scheduling.k8s.io/v1",
        "PriorityClass",
        json!({"value": 1}),
        &json!({"value": 1, "preemptionPolicy": "PreemptLowerPriority"}),
    );
    check(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}}),
        &json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}]}}),
    );
    check(
        "networking.k8s.io/v1",
        "IngressClass",
        json!({"spec": {"controller": "c", "parameters": {"kind": "K", "name": "n"}}}),
        &json!({"spec": {"controller": "c", "parameters": {"kind": "K", "name": "n", "scope": "Cluster"}}}),
    );
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["*"]}]);
    let rules_out =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["*"], "scope": "*"}]);
    let hook = json!({"name": "a.b.c", "clientConfig": {"service": {"name": "s", "namespace": "n"}}, "rules": rules});
    let hook_out = json!({"name": "a.b.c", "clientConfig": {"service": {"name": "s", "namespace": "n", "port": 443}}, "rules": rules_out,
        "failurePolicy": "Fail", "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}, "timeoutSeconds": 10});
    check(
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
        json!({"webhooks": [hook]}),
        &json!({"webhooks": [hook_out]}),
    );
    let mut mutating = hook_out;
    mutating["reinvocationPolicy"] = json!("Never");
    check(
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        json!({"webhooks": [hook]}),
        &json!({"webhooks": [mutating]}),
    );
    check(
        "admissionregistration.k8s.io/v1",
        "ValidatingAdmissionPolicy",
        json!({"spec": {"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "true"}]}}),
        &json!({"spec": {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": rules_out, "matchPolicy": "Equivalent",
            "namespaceSelector": {}, "objectSelector": {}}, "validations": [{"expression": "true"}]}}),
    );
    check(
        "flowcontrol.apiserver.k8s.io/v1",
        "FlowSchema",
        json!({"spec": {"priorityLevelConfiguration": {"name": "p"}}}),
        &json!({"spec": {"matchingPrecedence": 1000, "priorityLevelConfiguration": {"name": "p"}}, "status": {}}),
    );
    check(
        "flowcontrol.apiserver.k8s.io/v1",
        "PriorityLevelConfiguration",
        json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}}),
        &json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 30, "lendablePercent": 0,
            "limitResponse": {"type": "Queue", "queuing": {"handSize": 8, "queueLengthLimit": 50, "queues": 64}}}}, "status": {}}),
    );
    check(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}}),
        &json!({"spec": {"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]},
            "status": {"desiredReplicas": 0}}),
    );
    check(
        "policy/v1",
        "PodDisruptionBudget",
        json!({"spec": {"minAvailable": 1}}),
        &json!({"spec": {"minAvailable": 1}, "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}}),
    );
    check(
        "apiregistration.k8s.io/v1",
        "APIService",
        json!({"spec": {"service": {"name": "s", "namespace": "n"}}}),
        &json!({"spec": {"service": {"name": "s", "namespace": "n", "port": 443}}, "status": {}}),
    );
}
