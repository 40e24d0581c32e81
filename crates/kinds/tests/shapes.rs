//! Random objects of the right types, of every kind, through every rule: what comes out of defaulting and of
//! preparation still has only fields its kind has, of the types they have, and nothing panics.
//!
//! This catches what hand-written cases do not: a misspelled path in a table of defaults, a default of the wrong type,
//! an index out of range in a check.

use sampan_api::schema::{self, Type};
use sampan_kinds::{Part, Resource, Subresource, SubresourceKind, resources};
use serde_json::{Map, Value, json};

/// A small generator of its own: the same objects on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
    fn one_in(&mut self, chances: u64) -> bool {
        self.next().is_multiple_of(chances)
    }
}

const WORDS: &[&str] = &[
    "",
    "a",
    "b",
    "TCP",
    "UDP",
    "None",
    "Always",
    "Never",
    "OnFailure",
    "ClusterIP",
    "NodePort",
    "LoadBalancer",
    "ExternalName",
    "RollingUpdate",
    "Recreate",
    "OnDelete",
    "Indexed",
    "NonIndexed",
    "In",
    "Exists",
    "Equal",
    "Resource",
    "ContainerResource",
    "Utilization",
    "Allow",
    "Forbid",
    "ClientIP",
    "IPv4",
    "IPv6",
    "10.0.0.1",
    "fd00::1",
    "10.0.0.0/8",
    "* * * * *",
    "Opaque",
    "kubernetes.io/tls",
    "User",
    "ServiceAccount",
    "Role",
    "*",
    "example.com/x",
    "/a/b",
    "../x",
    "latest",
    "image:1",
    "Localhost",
    "True",
    "Running",
    "Filesystem",
    "ReadWriteOnce",
    "Webhook",
    "v1",
    "é\u{0}\u{1f600}",
];

const QUANTITIES: &[&str] = &["0", "1", "100m", "1Gi", "1.5", "-1", "9E", "x"];

fn leaf(ty: &Type, random: &mut Random) -> Value {
    match ty {
        Type::String => WORDS[random.below(WORDS.len())].into(),
        Type::Bool => random.one_in(2).into(),
        Type::Int32 => [0, 1, 2, 80, -1, i32::MAX, i32::MIN][random.below(7)].into(),
        Type::Int64 => [0, 1, 2, 80, -1, i64::MAX, i64::MIN][random.below(7)].into(),
        Type::Double => json!(1.5),
        Type::Bytes => "YQ==".into(),
        Type::IntOrString => [json!(0), json!(80), json!("50%"), json!("http"), json!("")][random.below(5)].clone(),
        Type::Quantity => QUANTITIES[random.below(QUANTITIES.len())].into(),
        Type::Time => "2026-01-02T03:04:05Z".into(),
        Type::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
        Type::RawExtension | Type::FieldsV1 | Type::Json => json!({"a": 1}),
        Type::Strings => json!(["a"]),
        _ => json!({}),
    }
}

/// A value of a type. `empty` leaves scalars and what lies deep out, so that defaults show.
fn value(ty: &Type, empty: bool, depth: usize, random: &mut Random) -> Value {
    if let Some(list) = ty.as_list() {
        let length = if empty { 1 } else { random.below(3) };
        return (0..length)
            .map(|_| value(&list.items, empty, depth + 1, random))
            .collect();
    }
    if let Some(map) = ty.as_map() {
        let keys = if empty {
            &[][..]
        } else {
            &["a", "memory", "kubernetes.io/x", "Bad Key"][..random.below(5)]
        };
        return keys
            .iter()
            .map(|key| ((*key).to_owned(), value(&map.values, empty, depth + 1, random)))
            .collect::<Map<_, _>>()
            .into();
    }
    let Some(fields) = ty.as_struct() else {
        return leaf(ty, random);
    };
    // Schemas hold schemas: somewhere they end.
    if depth > 14 || (fields.name == "JSONSchemaProps" && depth > 7) {
        return json!({});
    }
    let mut object = Map::new();
    for field in &fields.fields {
        let present = if empty {
            !field.ty.is_leaf()
        } else {
            random.one_in(if depth < 3 { 1 } else { 2 })
        };
        if present {
            object.insert(field.name.to_string(), value(&field.ty, empty, depth + 1, random));
        }
    }
    object.into()
}

/// Where a value is not of its type.
fn mistakes(ty: &Type, found: &Value, at: &str, out: &mut Vec<String>) {
    let right = match (ty, found) {
        (_, Value::Null) => true,
        (Type::String | Type::Bytes | Type::Time | Type::MicroTime, found) => found.is_string(),
        (Type::Quantity, found) => found.is_string() || found.is_number(),
        (Type::Bool, found) => found.is_boolean(),
        (Type::Int32 | Type::Int64, found) => found.is_i64(),
        (Type::Double, found) => found.is_number(),
        (Type::IntOrString, found) => found.is_string() || found.is_i64(),
        (Type::List(list), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                mistakes(&list.items, item, &format!("{at}[{index}]"), out);
            }
            true
        }
        (Type::Map(map), Value::Object(entries)) => {
            for (key, entry) in entries {
                mistakes(&map.values, entry, &format!("{at}[{key}]"), out);
            }
            true
        }
        (Type::List(_) | Type::Map(_), _) => false,
        (ty, found) => match (ty.as_struct(), found) {
            (Some(fields), Value::Object(entries)) => {
                for (name, entry) in entries {
                    match fields.field(name) {
                        Some(field) => mistakes(&field.ty, entry, &format!("{at}.{name}"), out),
                        None => out.push(format!("{at} has no field {name}")),
                    }
                }
                true
            }
            (Some(_), _) => false,
            (None, _) => true,
        },
    };
    if !right {
        out.push(format!("{at} cannot be {found}"));
    }
}

fn parts(row: &Resource) -> Vec<Part<'static>> {
    let mut parts = vec![Part::Main];
    for subresource in row.subresources {
        if let Subresource {
            kind: SubresourceKind::View,
            name,
            ..
        } = subresource
        {
            parts.push(Part::View(name));
        }
    }
    parts
}

fn run(seed: u64, empty: bool) {
    let schema = schema::builtin();
    let mut random = Random(seed);
    let report = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let now = "2026-11-22T00:00:00Z".parse().expect("a time");
    for row in resources() {
        let Some(definition) = schema.kind(row.group, row.version, row.kind) else {
            panic!("the schema lacks {}/{} {}", row.group, row.version, row.kind);
        };
        let ty = schema.type_of(&definition.name).expect("a type");
        let what = format!("{}/{} {}", row.group, row.version, row.kind);
        let check = |object: &Value, after: &str| {
            let mut wrong = Vec::new();
            mistakes(&ty, object, "", &mut wrong);
            report
                .borrow_mut()
                .extend(wrong.into_iter().map(|wrong| format!("{what} after {after}: {wrong}")));
        };
        let strategy = row.strategy;
        let mut made = |metadata: Value| {
            let mut object = value(&ty, empty, 0, &mut random);
            object["metadata"] = metadata;
            strategy.default(&mut object);
            check(&object, "defaulting");
            let mut again = object.clone();
            strategy.default(&mut again);
            if object != again {
                report
                    .borrow_mut()
                    .insert(format!("{what}: defaulting twice is not defaulting once"));
            }
            object
        };
        if row.stored_as.is_some() {
            // Its other rules are those of the stored kind.
            made(json!({}));
            continue;
        }
        let old = {
            let mut old =
                made(json!({"name": "a", "namespace": "b", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}));
            strategy.prepare_create(&mut old);
            check(&old, "preparing creation");
            strategy.validate_create(&old);
            strategy.warnings(&old);
            strategy.graceful_deletion(&old, None);
            let cells = (row.cells)(&old, now);
            assert_eq!(cells.len(), row.columns.len(), "{what}: cells for columns");
            for field in row.fields {
                (field.read)(&old);
            }
            old
        };
        for part in parts(row) {
            let mut new = made(old["metadata"].clone());
            strategy.prepare_update(part, &mut new, &old);
            check(&new, "preparing an update");
            strategy.validate_update(part, &new, &old);
            strategy.warnings(&new);
            // Nothing changed: nothing may be refused for having changed.
            let mut same = old.clone();
            strategy.prepare_update(part, &mut same, &old);
            for error in strategy.validate_update(part, &same, &old) {
                let text = error.to_string();
                // Random containers share names, as stored ones cannot.
                if part == Part::View("ephemeralcontainers") {
                    continue;
                }
                if [
                    "immutable",
                    "may not change",
                    "may not be changed",
                    "not be updated",
                    "updates to",
                ]
                .iter()
                .any(|words| text.contains(words))
                {
                    report.borrow_mut().insert(format!("{what} {part:?} unchanged: {text}"));
                }
            }
        }
    }
    let report = report.into_inner();
    assert!(report.is_empty(), "seed {seed}: {report:#?}");
}

#[test]
fn defaults_fill_only_fields_that_exist() {
    run(1, true);
}

#[test]
fn random_objects_keep_their_shape() {
    for seed in 1..=40 {
        run(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed), false);
    }
}
