use super::*;

fn field<'a>(definition: &str, name: &str) -> &'a Field {
    builtin()
        .definition(definition)
        .and_then(Definition::as_struct)
        .and_then(|below| below.field(name))
        .unwrap_or_else(|| panic!("{definition}.{name}"))
}

#[test]
fn definitions_are_found_by_name_and_kind() {
    let schema = builtin();
    assert!(schema.definitions().len() > 700);
    for (api_version, kind, name) in [
        ("v1", "Pod", "io.k8s.api.core.v1.Pod"),
        ("v1", "PodList", "io.k8s.api.core.v1.PodList"),
        ("apps/v1", "Deployment", "io.k8s.api.apps.v1.Deployment"),
        ("autoscaling/v1", "Scale", "io.k8s.api.autoscaling.v1.Scale"),
        ("policy/v1", "Eviction", "io.k8s.api.policy.v1.Eviction"),
        (
            "authentication.k8s.io/v1",
            "TokenRequest",
            "io.k8s.api.authentication.v1.TokenRequest",
        ),
        (
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        ),
        (
            "apiregistration.k8s.io/v1",
            "APIService",
            "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
        ),
        ("v1", "Status", "io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
        (
            "apps/v1",
            "DeleteOptions",
            "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        ),
        (
            "meta.k8s.io/v1",
            "PartialObjectMetadata",
            "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata",
        ),
        (
            "meta.k8s.io/v1beta1",
            "PartialObjectMetadataList",
            "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList",
        ),
    ] {
        let found = schema.api_kind(api_version, kind);
        assert_eq!(found.map(|d| d.name.as_ref()), Some(name), "{api_version} {kind}");
    }
    assert!(schema.api_kind("v1", "Deployment").is_none());
}

#[test]
fn fields_carry_their_markers() {
    let containers = field("io.k8s.api.core.v1.PodSpec", "containers");
    let list = containers.ty.as_list().expect("a list");
    assert_eq!((list.kind, list.keys.as_slice()), (ListKind::Map, &["name".into()][..]));
    assert_eq!(containers.merge_key(), Some("name"));
    assert!(containers.required && containers.merges() && !containers.is_atomic());
    assert!(field("io.k8s.api.core.v1.PodSpec", "volumes").retains_keys());
    assert!(field("io.k8s.api.core.v1.PodSpec", "tolerations").is_atomic());
    assert!(field("io.k8s.api.core.v1.PodSpec", "nodeSelector").is_atomic());
    assert!(field("io.k8s.api.core.v1.PodSpec", "hostUsers").keep_zero);
    assert!(!field("io.k8s.api.core.v1.PodSpec", "hostNetwork").keep_zero);
    for zero in ["gracePeriodSeconds", "orphanDependents"] {
        assert!(
            field("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", zero).keep_zero,
            "{zero}"
        );
    }
    assert!(field("io.k8s.apimachinery.pkg.apis.meta.v1.PatchOptions", "force").keep_zero);
    assert!(field("io.k8s.api.apps.v1.DeploymentSpec", "selector").is_atomic());
    // An embedded struct that is its own message.
    assert_eq!(field("io.k8s.api.core.v1.Volume", "emptyDir").tags.as_ref(), [2, 2]);
    assert_eq!(field("io.k8s.api.core.v1.PodStatus", "podIP").ty, Type::String);
}

#[test]
fn every_struct_is_sorted_and_tagged() {
    for definition in builtin().definitions() {
        let Some(below) = definition.as_struct() else {
            continue;
        };
        assert!(
            below.fields.windows(2).all(|pair| pair[0].name < pair[1].name),
            "{} is not sorted",
            definition.name
        );
        for field in &below.fields {
            let untagged = matches!(field.name.as_ref(), "apiVersion" | "kind")
                || definition.name == "io.k8s.apimachinery.pkg.version.Info";
            assert_eq!(
                field.tags.is_empty(),
                untagged && field.tags.is_empty(),
                "{}.{}",
                definition.name,
                field.name
            );
            if let Some(list) = field.ty.as_list()
                && let Some(item) = list.items.as_struct()
            {
                for key in &list.keys {
                    assert!(
                        item.field(key).is_some(),
                        "{}.{}: key {key}",
                        definition.name,
                        field.name
                    );
                }
            }
        }
    }
}

#[test]
fn descriptions_stand_beside_their_fields() {
    let schema = builtin();
    let texts = schema.descriptions();
    let pod = schema.definition("io.k8s.api.core.v1.PodSpec").expect("PodSpec");
    let at = pod
        .as_struct()
        .and_then(|below| below.fields.iter().position(|field| field.name == "nodeName"))
        .expect("nodeName");
    assert!(texts.field(&pod.name, at).expect("text").contains("node"));
    assert!(
        texts
            .definition("io.k8s.api.core.v1.Pod")
            .expect("text")
            .starts_with("Pod is")
    );
    let quantity = texts.definition("io.k8s.apimachinery.pkg.api.resource.Quantity");
    assert!(quantity.expect("text").contains('\n'));
}

#[test]
fn custom_kinds_are_the_same_model() {
    use serde_json::json;
    let schema = json!({
        "type": "object",
        "properties": {
            "metadata": {"type": "object"},
            "spec": {
                "type": "object", "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "count": {"type": "integer", "format": "int32", "default": 3, "nullable": true},
                    "ratio": {"type": "number"},
                    "port": {"x-kubernetes-int-or-string": true},
                    "ports": {
                        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                        "items": {"type": "object", "properties": {"port": {"type": "integer"}}},
                    },
                    "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                    "labels": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
                    "any": {"x-kubernetes-preserve-unknown-fields": true},
                    "template": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
                    "nothing": {"type": "object"},
                },
            },
        },
    });
    let ty = structural::of_kind(&schema).expect("structural");
    let names: Vec<&str> = ty
        .as_struct()
        .expect("a struct")
        .fields
        .iter()
        .map(|field| field.name.as_ref())
        .collect();
    assert_eq!(names, ["apiVersion", "kind", "metadata", "spec"]);
    assert!(matches!(ty.child("metadata"), Some(Type::Def(_))));
    let spec = ty.child("spec").and_then(Type::as_struct).expect("a struct");
    let field = |name: &str| spec.field(name).unwrap_or_else(|| panic!("{name}"));
    assert!(field("name").required && field("count").nullable);
    assert_eq!(field("count").default.as_deref(), Some(&json!(3)));
    assert_eq!(field("port").ty, Type::IntOrString);
    assert_eq!(
        field("ports").ty.as_list().map(|list| (list.kind, list.keys.len())),
        Some((ListKind::Map, 1))
    );
    assert!(field("labels").is_atomic() && !field("ports").is_atomic());
    assert!(
        field("template")
            .ty
            .as_struct()
            .is_some_and(|own| own.embedded && own.preserve_unknown)
    );
    let mut object = json!({
        "apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x", "creationTimestamp": null},
        "spec": {
            "name": "n", "count": null, "ports": [{"port": 1, "more": 2}], "any": [1.0, {"a": 1}],
            "template": {"kind": "Y", "metadata": {"name": "y"}, "spec": {"z": 1}},
            "nothing": {"a": 1}, "labels": {"a": "b"}, "extra": true,
        },
        "extra": 1,
    });
    let findings = crate::codec::check(&ty, &mut object).expect("fits");
    assert_eq!(
        findings.unknown,
        ["extra", "spec.extra", "spec.nothing.a", "spec.ports[0].more"]
    );
    assert_eq!(
        object,
        json!({
            "apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"},
            "spec": {
                "name": "n", "count": null, "ports": [{"port": 1}], "any": [1, {"a": 1}],
                "template": {"kind": "Y", "metadata": {"name": "y"}, "spec": {"z": 1}},
                "nothing": {}, "labels": {"a": "b"},
            },
        })
    );
    for (schema, words) in [
        (
            json!({"type": "array", "items": {"type": "string"}}),
            "the schema of a kind must be an object",
        ),
        (
            json!({"type": "object", "properties": {"a": {}}}),
            "a: a structural schema must state a type",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array"}}}),
            "a: an array must state its items",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "what"}}}),
            "a: unknown type \"what\"",
        ),
    ] {
        assert_eq!(structural::of_kind(&schema).expect_err("refused").to_string(), words);
    }
}
