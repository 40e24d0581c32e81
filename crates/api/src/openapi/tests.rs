use serde_json::json;

use super::*;
use crate::codec::protobuf::wire::{Payload, Reader};

fn api() -> Api {
    let verbs = |list: &str| list.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let all = "create delete deletecollection get list patch update watch";
    let sub = |name: &str, gvk: (&str, &str, &str), list: &str, connect: bool| SubresourceDesc {
        name: name.into(),
        group: gvk.0.into(),
        version: gvk.1.into(),
        kind: gvk.2.into(),
        verbs: verbs(list),
        connect,
    };
    let resource = |group: &str, version: &str, plural: &str, kind: &str| ResourceDesc {
        group: group.into(),
        version: version.into(),
        plural: plural.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List"),
        namespaced: true,
        verbs: verbs(all),
        subresources: Vec::new(),
        schema: None,
    };
    let mut pods = resource("", "v1", "pods", "Pod");
    pods.subresources = vec![
        sub("exec", ("", "v1", "PodExecOptions"), "create get", true),
        sub(
            "proxy",
            ("", "v1", "PodProxyOptions"),
            "create delete get patch update",
            true,
        ),
        sub("log", ("", "v1", "Pod"), "get", false),
        sub("eviction", ("policy", "v1", "Eviction"), "create", false),
        sub("status", ("", "v1", "Pod"), "get patch update", false),
    ];
    let mut deployments = resource("apps", "v1", "deployments", "Deployment");
    deployments.subresources = vec![sub("scale", ("autoscaling", "v1", "Scale"), "get patch update", false)];
    let mut nodes = resource("", "v1", "nodes", "Node");
    nodes.namespaced = false;
    let mut tabs = resource("stable.example.com", "v1", "crontabs", "CronTab");
    tabs.schema = Some(CustomSchema(Arc::new(json!({
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {
            "cronSpec": {"type": "string"},
            "replicas": {"type": "integer", "nullable": true},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        }}},
    }))));
    Api {
        version: "v1.36.0".into(),
        resources: vec![pods, nodes, deployments, tabs],
    }
}

/// Every `$ref` of a document leads somewhere.
fn unresolved(document: &Value) -> Vec<String> {
    fn walk(value: &Value, document: &Value, missing: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref")
                    && document.pointer(reference.trim_start_matches('#')).is_none()
                {
                    missing.push(reference.clone());
                }
                map.values().for_each(|value| walk(value, document, missing));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, document, missing)),
            _ => {}
        }
    }
    let mut missing = Vec::new();
    walk(document, document, &mut missing);
    missing
}

#[test]
fn the_index_names_every_document() {
    let api = api();
    let index = v3::index(&api);
    let names: Vec<&String> = index["paths"].as_object().expect("paths").keys().collect();
    assert_eq!(
        names,
        [
            "api",
            "api/v1",
            "apis",
            "apis/apps",
            "apis/apps/v1",
            "apis/stable.example.com",
            "apis/stable.example.com/v1",
            "version"
        ]
    );
    let hash = v3::hash(&api, "apis/apps/v1").expect("a hash");
    assert_eq!(
        index["paths"]["apis/apps/v1"]["serverRelativeURL"],
        format!("/openapi/v3/apis/apps/v1?hash={hash}")
    );
    let mut changed = api.clone();
    changed.resources[2].verbs.pop();
    assert_ne!(v3::hash(&changed, "apis/apps/v1"), Some(hash));
    assert_eq!(v3::hash(&changed, "api/v1"), v3::hash(&api, "api/v1"));
    assert_eq!(v3::hash(&api, "apis/none/v1"), None);
    assert!(v3::document(&api, "apis/none/v1").is_none());
    for name in names {
        let document = v3::document(&api, name).expect("a document");
        assert_eq!(unresolved(&document), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn what_kubectl_probes_is_there() {
    let api = api();
    let apps = v3::document(&api, "apis/apps/v1").expect("apps/v1");
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    let names: Vec<_> = patch["parameters"]
        .as_array()
        .expect("parameters")
        .iter()
        .map(|p| p["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert!(
        patch["parameters"][2]["description"]
            .as_str()
            .expect("a text")
            .contains("Strict")
    );
    assert!(
        patch["requestBody"]["content"]
            .get("application/strategic-merge-patch+json")
            .is_some()
    );
    let spec = &apps["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(spec["properties"]["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(
        spec["properties"]["containers"]["x-kubernetes-list-map-keys"],
        json!(["name"])
    );
    assert_eq!(
        spec["properties"]["affinity"]["allOf"],
        json!([{"$ref": "#/components/schemas/io.k8s.api.core.v1.Affinity"}])
    );
    assert_eq!(
        apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let scale = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");
    let custom = v3::document(&api, "apis/stable.example.com/v1").expect("custom");
    let patch = &custom["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}"]["patch"];
    assert!(
        patch["requestBody"]["content"]
            .get("application/strategic-merge-patch+json")
            .is_none()
    );
    let tab = &custom["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(tab["properties"]["spec"]["properties"]["cronSpec"]["type"], "string");
    assert!(tab["properties"].get("metadata").is_some());
    let core = v3::document(&api, "api/v1").expect("core");
    assert!(
        core["paths"]
            .get("/api/v1/namespaces/{namespace}/pods/{name}/proxy/{path}")
            .is_some()
    );
    assert_eq!(
        core["paths"]["/api/v1/pods"]["get"]["operationId"],
        "listCoreV1PodForAllNamespaces"
    );
    assert_eq!(
        core["paths"]["/api/v1/nodes/{name}"]["get"]["operationId"],
        "readCoreV1Node"
    );
}

#[test]
fn version_2_is_whole() {
    let document = v2::document(&api());
    assert_eq!(unresolved(&document), Vec::<String>::new());
    assert_eq!(
        document["definitions"]["io.k8s.apimachinery.pkg.api.resource.Quantity"]["type"],
        "string"
    );
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    let inline: Vec<_> = patch["parameters"]
        .as_array()
        .expect("parameters")
        .iter()
        .filter_map(|p| p["name"].as_str())
        .collect();
    assert_eq!(inline, ["body", "dryRun", "fieldValidation"]);
    let tab = &document["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"];
    // A nullable field has no type there: readers of version 2 know no null.
    assert_eq!(tab["replicas"], json!({}));
    assert_eq!(tab["port"], json!({"x-kubernetes-int-or-string": true}));
}

fn inner(bytes: &[u8], wanted: u32) -> Vec<&[u8]> {
    let mut reader = Reader::new(bytes);
    let mut found = Vec::new();
    while let Some((tag, payload)) = reader.field().expect("well-formed") {
        if let (true, Payload::Bytes(bytes)) = (tag == wanted, payload) {
            found.push(bytes);
        }
    }
    found
}

#[test]
fn the_protobuf_holds_the_document() {
    let document = v2::document(&api());
    let bytes = v2::protobuf(&document);
    assert_eq!(inner(&bytes, 1), [b"2.0"]);
    let definitions = inner(inner(&bytes, 9)[0], 1);
    assert_eq!(
        definitions.len(),
        document["definitions"].as_object().expect("definitions").len()
    );
    let pod = definitions
        .iter()
        .find(|entry| inner(entry, 1)[0] == b"io.k8s.api.core.v1.Pod")
        .map(|entry| inner(entry, 2)[0])
        .expect("Pod");
    assert_eq!(inner(inner(pod, 22)[0], 1), [b"object"]);
    let properties = inner(inner(pod, 25)[0], 1);
    let spec = properties
        .iter()
        .find(|entry| inner(entry, 1)[0] == b"spec")
        .map(|entry| inner(entry, 2)[0])
        .expect("spec");
    assert_eq!(inner(spec, 1), [b"#/definitions/io.k8s.api.core.v1.PodSpec"]);
    let extension = inner(pod, 31)[0];
    assert_eq!(inner(extension, 1), [b"x-kubernetes-group-version-kind"]);
    assert_eq!(
        inner(inner(extension, 2)[0], 2),
        [b"[{\"group\":\"\",\"kind\":\"Pod\",\"version\":\"v1\"}]\n"]
    );
    let paths = inner(inner(&bytes, 8)[0], 2);
    let item = paths
        .iter()
        .find(|entry| inner(entry, 1)[0] == b"/api/v1/namespaces/{namespace}/pods/{name}")
        .map(|entry| inner(entry, 2)[0])
        .expect("the path");
    let patch = inner(item, 8)[0];
    let queries: Vec<&[u8]> = inner(patch, 8)
        .iter()
        .flat_map(|item| inner(item, 1))
        .flat_map(|parameter| inner(parameter, 2))
        .flat_map(|non_body| inner(non_body, 3))
        .flat_map(|query| inner(query, 4))
        .collect();
    assert_eq!(queries, [&b"dryRun"[..], b"fieldValidation"]);
}
