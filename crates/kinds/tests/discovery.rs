//! The table against upstream's own discovery document, and against itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;

use sampan_kinds::{Resource, SubresourceKind, resources};
use serde_json::{Value, json};

/// Group versions of the document we do not serve, all of them off by default upstream: anything alpha or beta.
fn is_generally_available(version: &str) -> bool {
    !version.contains("alpha") && !version.contains("beta")
}

/// Differences we accept, each with its reason: `group/version/resource` → why.
const EXCEPTIONS: &[(&str, &str)] = &[];

fn upstream() -> Option<Value> {
    let folder = std::env::var_os("SAMPAN_UPSTREAM_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let path = folder.join("kubernetes-1.36-discovery-aggregated.json.gz");
    let Ok(file) = std::fs::File::open(&path) else {
        eprintln!("skipped: {} is not there (set SAMPAN_UPSTREAM_DATA)", path.display());
        return None;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .expect("the document unpacks");
    Some(serde_json::from_str(&text).expect("the document is JSON"))
}

fn texts(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// One resource as the document describes it, with what both sides leave out left out.
fn described(resource: &Value) -> Value {
    let subresources: BTreeMap<_, _> = resource["subresources"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|sub| {
            let kind = &sub["responseKind"];
            (
                sub["subresource"].as_str().unwrap_or_default().to_owned(),
                json!([kind["group"], kind["version"], kind["kind"], texts(&sub["verbs"])]),
            )
        })
        .collect();
    json!({
        "kind": resource["responseKind"]["kind"],
        "namespaced": resource["scope"] == "Namespaced",
        "singular": resource["singularResource"],
        "verbs": texts(&resource["verbs"]),
        "shortNames": texts(&resource["shortNames"]),
        "categories": texts(&resource["categories"]),
        "subresources": subresources,
    })
}

fn ours(row: &Resource) -> Value {
    let subresources: BTreeMap<_, _> = row
        .subresources
        .iter()
        .map(|sub| (sub.name, json!([sub.gvk.0, sub.gvk.1, sub.gvk.2, sub.verbs])))
        .collect();
    json!({
        "kind": row.kind,
        "namespaced": row.namespaced,
        "singular": row.singular,
        "verbs": row.verbs.names(),
        "shortNames": row.short_names,
        "categories": row.categories,
        "subresources": subresources,
    })
}

#[test]
fn the_table_is_what_upstream_discovers() {
    let Some(document) = upstream() else { return };
    let mut theirs = BTreeMap::new();
    let mut order = Vec::new();
    for group in document["items"].as_array().expect("groups") {
        let name = group["metadata"]["name"].as_str().unwrap_or_default();
        for version in group["versions"].as_array().expect("versions") {
            let number = version["version"].as_str().unwrap_or_default();
            if !is_generally_available(number) {
                continue;
            }
            order.push(format!("{name}/{number}"));
            for resource in version["resources"].as_array().expect("resources") {
                let plural = resource["resource"].as_str().unwrap_or_default();
                theirs.insert(format!("{name}/{number}/{plural}"), described(resource));
            }
        }
    }
    // The document lists groups only; the core group's facts are tested below.
    let mine: BTreeMap<_, _> = resources()
        .iter()
        .filter(|row| !row.group.is_empty())
        .map(|row| (format!("{}/{}/{}", row.group, row.version, row.plural), ours(row)))
        .collect();
    let names: BTreeSet<_> = theirs.keys().chain(mine.keys()).collect();
    let mut differences = Vec::new();
    for name in names {
        let (theirs, mine) = (theirs.get(name), mine.get(name));
        if theirs != mine && !EXCEPTIONS.iter().any(|(known, _)| known == name) {
            differences.push(format!("{name}:\n  upstream {theirs:?}\n  ours     {mine:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));

    let mut our_order: Vec<_> = resources()
        .iter()
        .filter(|row| !row.group.is_empty())
        .map(|row| format!("{}/{}", row.group, row.version))
        .collect();
    our_order.dedup();
    assert_eq!(our_order, order, "groups and versions in discovery order");
}

#[test]
fn the_counts_are_those_of_1_36() {
    let core: Vec<_> = resources().iter().filter(|row| row.group.is_empty()).collect();
    let others: Vec<_> = resources().iter().filter(|row| !row.group.is_empty()).collect();
    let subresources = |rows: &[&Resource]| rows.iter().map(|row| row.subresources.len()).sum::<usize>();
    assert_eq!((core.len(), subresources(&core)), (17, 22));
    assert_eq!((others.len(), subresources(&others)), (51, 23));
}

#[test]
fn rows_agree_with_themselves() {
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    for row in resources() {
        let name = format!("{}/{}", row.group, row.plural);
        let object = json!({"apiVersion": row.api_version(), "kind": row.kind, "metadata": {"name": "x"}});
        assert_eq!(
            (row.cells)(&object, now).len(),
            row.columns.len(),
            "{name}: one cell per column"
        );
        assert_eq!(row.list_kind, format!("{}List", row.kind), "{name}");
        assert_eq!(row.singular, row.kind.to_lowercase(), "{name}");
        for sub in row.subresources {
            if let SubresourceKind::View = sub.kind {
                assert_eq!(sub.gvk, ("", "", row.kind), "{name}/{}", sub.name);
            }
        }
        // No rule may choke on an object of which nothing is known.
        for object in [object, json!({"spec": null, "status": [], "metadata": {}}), json!(3)] {
            let mut object = object;
            row.strategy.default(&mut object);
            row.strategy.prepare_create(&mut object);
            let old = object.clone();
            row.strategy.prepare_update(sampan_kinds::Part::Main, &mut object, &old);
            row.strategy.validate_create(&object);
            for part in [sampan_kinds::Part::Main, sampan_kinds::Part::View("status")] {
                row.strategy.validate_update(part, &object, &old);
            }
            row.strategy.warnings(&object);
            row.strategy.graceful_deletion(&object, Some(1));
            for field in row.fields {
                (field.read)(&object);
            }
        }
    }
}

#[test]
fn only_faces_of_one_kind_share_storage() {
    let mut seen = BTreeMap::new();
    for row in resources().iter().filter(|row| !row.storage_prefix.is_empty()) {
        if row.stored_as.is_none() {
            assert_eq!(
                seen.insert(row.storage_prefix, row.plural),
                None,
                "{}",
                row.storage_prefix
            );
        }
    }
    for row in resources() {
        if let Some(conversion) = row.stored_as {
            let (group, version) = conversion.storage_version;
            let stored = sampan_kinds::find(group, version, row.plural).expect("the storage version is served");
            assert!(stored.stored_as.is_none());
            assert_eq!(stored.storage_prefix, row.storage_prefix);
        }
    }
}
