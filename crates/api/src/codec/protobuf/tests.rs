use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::schema::{Struct, Type};

fn hex(text: &str) -> Vec<u8> {
    ::hex::decode(text.replace([' ', '\n'], "")).expect("hexadecimal")
}

fn ascii(text: &str) -> String {
    ::hex::encode(text)
}

/// Bytes put together by hand from the interface definitions.
#[test]
fn known_bytes() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "creationTimestamp": "2026-11-22T10:00:00Z", "labels": {"app": "x"}},
        "spec": {
            "containers": [{"name": "c", "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": -1},
                            "resources": {"limits": {"cpu": "100m"}}}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "hostUsers": false,
        },
    });
    // 2026-11-22T10:00:00Z is 1795341600 s, least significant seven bits first.
    let time = "08 a0 fa 8a d8 06 10 00";
    let metadata = hex(&format!(
        "0a 03 {} 42 08 {time} 5a 08 0a 03 {} 12 01 {}",
        ascii("web"),
        ascii("app"),
        ascii("x")
    ));
    let volume = hex(&format!("0a 01 {} 12 02 12 00", ascii("v")));
    let port = hex("08 00 10 50 1a 00");
    let http_get = [hex("12"), vec![port.len() as u8], port].concat();
    let handler = [hex("12"), vec![http_get.len() as u8], http_get].concat();
    let probe = [
        hex("0a"),
        vec![handler.len() as u8],
        handler,
        hex("20 ffffffffffffffffff01"),
    ]
    .concat();
    let quantity = hex(&format!("0a 04 {}", ascii("100m")));
    let entry = [hex(&format!("0a 03 {} 12 06", ascii("cpu"))), quantity].concat();
    let limits = [hex("0a"), vec![entry.len() as u8], entry].concat();
    let container = [
        hex(&format!("0a 01 {}", ascii("c"))),
        hex("42"),
        vec![limits.len() as u8],
        limits,
        hex("52"),
        vec![probe.len() as u8],
        probe,
    ]
    .concat();
    let spec = [
        hex("0a"),
        vec![volume.len() as u8],
        volume,
        hex("12"),
        vec![container.len() as u8],
        container,
        // Tag 37 takes two bytes.
        hex("a802 00"),
    ]
    .concat();
    let whole = [
        hex("0a"),
        vec![metadata.len() as u8],
        metadata,
        hex("12"),
        vec![spec.len() as u8],
        spec,
    ]
    .concat();
    assert_eq!(::hex::encode(message(&pod).expect("written")), ::hex::encode(&whole));
    let enveloped = [
        hex(&format!(
            "6b387300 0a 09 0a 02 {} 12 03 {} 12",
            ascii("v1"),
            ascii("Pod")
        )),
        vec![whole.len() as u8],
        whole,
        hex("1a 00 22 00"),
    ]
    .concat();
    assert_eq!(::hex::encode(encode(&pod).expect("written")), ::hex::encode(&enveloped));
    assert_eq!(decode(&enveloped, None).expect("read"), pod);
}

/// What a Go client really sends: zeros of every non-pointer scalar, empty embedded messages.
#[test]
fn zeros_of_go_clients_mean_nothing() {
    let spec = [
        // replicas=0 (a pointer), template{metadata{creationTimestamp empty}}, strategy{type ""}, minReadySeconds=0, paused=false
        hex("08 00"),
        hex("1a 04 0a 02 42 00"),
        hex("22 02 0a 00"),
        hex("28 00"),
        hex("38 00"),
    ]
    .concat();
    let metadata = hex("0a 01 61 12 00 1a 00 22 00 2a 00 32 00 38 00 42 00");
    let whole = [
        hex("0a"),
        vec![metadata.len() as u8],
        metadata,
        hex("12"),
        vec![spec.len() as u8],
        spec,
        hex("1a 0c 08 00 10 00 18 00 20 00 28 00 38 00"),
    ]
    .concat();
    let mut object = decode(&envelope("apps/v1", "Deployment", &whole), None).expect("read");
    let ty = schema::builtin()
        .type_of("io.k8s.api.apps.v1.Deployment")
        .expect("Deployment");
    crate::codec::check(&ty, &mut object).expect("fits");
    assert_eq!(
        object,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
               "spec": {"replicas": 0, "template": {"metadata": {}}, "strategy": {}}, "status": {}})
    );
}

#[test]
fn embedded_things() {
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
        "spec": {"group": "g", "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {
            "type": "object", "default": {"a": [1, "x", null]}, "maximum": 1.5, "$ref": "#/x",
            "items": {"type": "string"},
            "additionalProperties": true, "additionalItems": {"type": "string"},
            "dependencies": {"a": ["b", "c"], "d": {"type": "object"}},
            "properties": {"p": {"type": "integer", "enum": [1, 2]}},
            "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-list-map-keys": ["k"],
            "allOf": [{"not": {"type": "null"}}],
        }}}]},
    });
    assert_eq!(decode(&encode(&crd).expect("written"), None).expect("read"), crd);
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "status": {"user": {"username": "u", "extra": {"scopes": ["a", "b"], "none": []}}},
    });
    assert_eq!(decode(&encode(&review).expect("written"), None).expect("read"), review);
    let revision = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 3,
        "data": {"spec": {"template": {"$patch": "replace"}}},
    });
    assert_eq!(
        decode(&encode(&revision).expect("written"), None).expect("read"),
        revision
    );
}

#[test]
fn lists_and_events_are_put_together() {
    let config = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b".repeat(200)}});
    let items: Vec<Vec<u8>> = ["a", "b"]
        .iter()
        .map(|name| message(&config(name)).expect("written"))
        .collect();
    let meta = json!({"resourceVersion": "7"});
    let list = encode_list("v1", "ConfigMapList", &meta, items.iter().map(Vec::as_slice)).expect("a list");
    let tree = json!({
        "apiVersion": "v1", "kind": "ConfigMapList", "metadata": meta,
        "items": [{"metadata": {"name": "a"}, "data": {"a": "b".repeat(200)}},
                  {"metadata": {"name": "b"}, "data": {"a": "b".repeat(200)}}],
    });
    assert_eq!(decode(&list, None).expect("read"), tree);
    assert_eq!(encode(&tree).expect("written"), list);
    let object = encode(&config("a")).expect("written");
    let event = encode_watch_event("ADDED", &object);
    let mut expected = hex(&format!("0a 05 {} 12", ascii("ADDED")));
    let mut inner = Vec::new();
    wire::header(&mut inner, 1, object.len());
    inner.extend(&object);
    expected.pop();
    wire::header(&mut expected, 2, inner.len());
    expected.extend(inner);
    assert_eq!(event, expected);
}

#[test]
fn damaged_bytes_are_refused() {
    let good = encode(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}),
    )
    .expect("written");
    // Ending right after the type (byte 15) is an empty Pod.
    for length in (0..15).chain(16..good.len() - 4) {
        decode(&good[..length], None).expect_err("cut short");
    }
    assert_eq!(decode(b"{}", None), Err(ProtobufError::NoMagic));
    assert_eq!(decode(b"", None), Err(ProtobufError::Empty));
    assert_eq!(
        decode(&envelope("v1", "Nothing", b""), None)
            .expect_err("unknown")
            .to_string(),
        "no kind \"Nothing\" is registered for version \"v1\" in the built-in schema"
    );
    // name as a varint
    decode(&envelope("v1", "Pod", &hex("0a 02 08 01")), None).expect_err("wrong wire type");
    // A schema in a schema in a schema: JSONSchemaProps.not is field 27.
    let nest = |tag: u32, bytes: Vec<u8>| {
        let mut out = Vec::new();
        wire::header(&mut out, tag, bytes.len());
        out.extend(bytes);
        out
    };
    let mut props = Vec::new();
    for _ in 0..500 {
        props = nest(27, props);
    }
    // spec.versions.schema.openAPIV3Schema
    let body = nest(2, nest(7, nest(4, nest(1, props))));
    assert!(matches!(
        decode(
            &envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &body),
            None
        ),
        Err(ProtobufError::TooDeep(_))
    ));
}

/// Any tree of a type, as a checked tree would be.
fn tree(ty: &Type, depth: u32) -> BoxedStrategy<Value> {
    match ty {
        Type::String => "[a-z]{1,4}|é☃".prop_map(Value::from).boxed(),
        Type::Bool => any::<bool>().prop_map(Value::from).boxed(),
        Type::Int32 => any::<i32>().prop_map(Value::from).boxed(),
        Type::Int64 => any::<i64>().prop_map(Value::from).boxed(),
        Type::Double => (-1000i32..1000).prop_map(|n| json!(f64::from(n) + 0.5)).boxed(),
        Type::Bytes => proptest::collection::vec(any::<u8>(), 0..6)
            .prop_map(|bytes| {
                use base64::Engine as _;
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            })
            .boxed(),
        Type::IntOrString => {
            prop_oneof![any::<i32>().prop_map(Value::from), "[a-z%]{0,3}".prop_map(Value::from)].boxed()
        }
        Type::Quantity => prop_oneof![Just(json!("100m")), Just(json!("1Gi")), Just(json!("0"))].boxed(),
        Type::Time => (-60_000_000_000i64..200_000_000_000)
            .prop_map(|s| json!(crate::time::format(jiff::Timestamp::from_second(s).expect("in range"))))
            .boxed(),
        Type::MicroTime => (-60_000_000_000i64..200_000_000_000, 0i32..1_000_000)
            .prop_map(|(s, us)| {
                json!(crate::time::format_micro(
                    jiff::Timestamp::new(s, us * 1000)
                        .or(jiff::Timestamp::from_second(s))
                        .expect("in range")
                ))
            })
            .boxed(),
        Type::RawExtension | Type::FieldsV1 | Type::Json => {
            prop_oneof![Just(json!({"a": [1, "x", {"b": null}]})), Just(json!({}))].boxed()
        }
        Type::PropsOrBool => prop_oneof![any::<bool>().prop_map(Value::from), Just(json!({"type": "x"}))].boxed(),
        Type::PropsOrArray => prop_oneof![Just(json!({"type": "x"})), Just(json!([{"type": "x"}, {}]))].boxed(),
        Type::PropsOrStrings => prop_oneof![Just(json!({"type": "x"})), Just(json!(["x", "y"]))].boxed(),
        Type::Strings => proptest::collection::vec("[a-z]{0,2}".prop_map(Value::from), 1..3)
            .prop_map(Value::from)
            .boxed(),
        Type::List(list) => proptest::collection::vec(tree(&list.items, depth), 1..3)
            .prop_map(Value::from)
            .boxed(),
        Type::Map(map) => proptest::collection::btree_map("[a-z]{1,2}", tree(&map.values, depth), 1..3)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
            .boxed(),
        Type::Def(_) | Type::Struct(_) => match ty.as_struct() {
            Some(below) => fields(below, depth),
            None => Just(json!({})).boxed(),
        },
    }
}

fn fields(below: &Struct, depth: u32) -> BoxedStrategy<Value> {
    if depth == 0 {
        return Just(json!({})).boxed();
    }
    let each: Vec<_> = below
        .fields
        .iter()
        .filter(|field| !field.tags.is_empty())
        .map(|field| {
            let name = field.name.to_string();
            proptest::option::weighted(0.6, tree(&field.ty, depth - 1)).prop_map(move |value| (name.clone(), value))
        })
        .collect();
    each.prop_map(|pairs| {
        Value::Object(
            pairs
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect::<Map<_, _>>(),
        )
    })
    .boxed()
}

/// Tree to bytes to tree, for every definition that is a kind.
#[test]
fn every_kind_survives() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 6,
        ..ProptestConfig::default()
    });
    let mut kinds = 0;
    for definition in schema::builtin().definitions() {
        let (Some(gvk), Some(below)) = (&definition.gvk, definition.as_struct()) else {
            continue;
        };
        if below.fields.iter().all(|field| field.tags.is_empty()) {
            continue;
        }
        kinds += 1;
        let api_version = if gvk.group.is_empty() {
            gvk.version.to_string()
        } else {
            format!("{}/{}", gvk.group, gvk.version)
        };
        let kind = gvk.kind.to_string();
        runner
            .run(&fields(below, 5), |mut object| {
                object["apiVersion"] = api_version.as_str().into();
                object["kind"] = kind.as_str().into();
                let bytes = encode(&object).map_err(|e| TestCaseError::fail(format!("{kind}: {e}")))?;
                let back = decode(&bytes, None).map_err(|e| TestCaseError::fail(format!("{kind}: {e}")))?;
                prop_assert_eq!(&back, &object);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{}: {error}", definition.name));
    }
    assert!(kinds > 150, "{kinds}");
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _unread = decode(&bytes, None);
        let _unread = decode(&envelope("v1", "Pod", &bytes), None);
        let _unread = decode(&envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &bytes), None);
    }
}

/// Bodies recorded from kubectl 1.33 (`kubectl create …`).
#[test]
fn what_kubectl_sends() {
    for (bytes, expected) in [
        (
            &include_bytes!("testdata/kubectl-1.33-deployment.bin")[..],
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "web", "labels": {"app": "web"}},
                "spec": {
                    "replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                    "template": {
                        "metadata": {"labels": {"app": "web"}},
                        "spec": {"containers": [{"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}], "resources": {}}]},
                    },
                },
                "status": {},
            }),
        ),
        (
            &include_bytes!("testdata/kubectl-1.33-pdb.bin")[..],
            json!({
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "p"},
                "spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}},
                "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0},
            }),
        ),
        (
            &include_bytes!("testdata/kubectl-1.33-cronjob.bin")[..],
            json!({
                "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "cj"},
                "spec": {
                    "schedule": "*/5 * * * *",
                    "jobTemplate": {
                        "metadata": {"name": "cj"},
                        "spec": {"template": {
                            "metadata": {},
                            "spec": {"containers": [{"name": "cj", "image": "x", "resources": {}}], "restartPolicy": "OnFailure"},
                        }},
                    },
                },
                "status": {},
            }),
        ),
        (
            &include_bytes!("testdata/kubectl-1.33-ingress.bin")[..],
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"},
                "spec": {"rules": [{"host": "a.b", "http": {"paths": [{
                    "path": "/x", "pathType": "Prefix", "backend": {"service": {"name": "svc", "port": {"number": 80}}},
                }]}}]},
                "status": {"loadBalancer": {}},
            }),
        ),
    ] {
        let mut object = decode(bytes, None).expect("read");
        let (api_version, kind) = (
            crate::meta::api_version(&object).to_owned(),
            crate::meta::kind(&object).to_owned(),
        );
        let ty = crate::patch::apply::builtin_type(&api_version, &kind).expect("a kind");
        let findings = crate::codec::check(&ty, &mut object).expect("fits");
        assert_eq!(findings.unknown, Vec::<String>::new());
        assert_eq!(object, expected);
    }
}
