//! `gen-schema`: writes the table of built-in definitions that `sampan_api::schema` reads.
//!
//! Facts come from two registry crates, both Apache-2.0 and generated from Kubernetes' own API definitions:
//! names, types, required fields and descriptions from `k8s-openapi` (v1_36), protobuf tags and list, map and
//! patch markers from `k8s-pb`. Where the two disagree, or say something this reader does not know, the
//! generator fails: a fact is either right or missing, never guessed. What neither crate states is in `facts`.

mod facts;
mod openapi;
mod protobuf;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use heck::{ToLowerCamelCase, ToSnakeCase};

use openapi::Node;
use protobuf::{Markers, Messages};

const K8S_OPENAPI: &str = "k8s-openapi-0.29.0";
const K8S_PB: &str = "k8s-pb-0.9.0";

#[derive(clap::Args)]
pub struct Args {
    /// Directory of the unpacked k8s-openapi 0.29.0; found in cargo's registry when absent.
    #[arg(long)]
    k8s_openapi: Option<PathBuf>,
    /// Directory of the unpacked k8s-pb 0.9.0; found in cargo's registry, or fetched, when absent.
    #[arg(long)]
    k8s_pb: Option<PathBuf>,
    /// Print the table instead of writing it.
    #[arg(long)]
    print: bool,
    /// Fail if the committed table differs, and write nothing.
    #[arg(long)]
    check: bool,
}

pub fn run(args: &Args) -> Result<(), String> {
    let k8s_openapi = locate(args.k8s_openapi.as_deref(), K8S_OPENAPI)?;
    let k8s_pb = locate(args.k8s_pb.as_deref(), K8S_PB)?;
    let table = Generator::read(&k8s_openapi, &k8s_pb)?.table()?;
    if args.print {
        print!("{}", table.facts);
        return Ok(());
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api/src/schema");
    for (name, text) in [
        ("facts.deflate", &table.facts),
        ("descriptions.deflate", &table.descriptions),
    ] {
        let path = dir.join(name);
        if args.check {
            let committed = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let mut old = String::new();
            std::io::Read::read_to_string(&mut flate2::read::DeflateDecoder::new(committed.as_slice()), &mut old)
                .map_err(|e| format!("{}: {e}", path.display()))?;
            if &old != text {
                return Err(format!(
                    "{} is stale; run `cargo run -p sampan-xtask -- gen-schema`",
                    path.display()
                ));
            }
            continue;
        }
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        let bytes = encoder
            .write_all(text.as_bytes())
            .and_then(|()| encoder.finish())
            .map_err(|e| e.to_string())?;
        std::fs::write(&path, &bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("{}: {} bytes ({} plain)", path.display(), bytes.len(), text.len());
    }
    Ok(())
}

/// The source directory of a registry crate; fetched through a throw-away manifest when it is not there.
fn locate(given: Option<&Path>, crate_dir: &str) -> Result<PathBuf, String> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = in_registry(crate_dir)? {
        return Ok(path);
    }
    let (name, version) = crate_dir.rsplit_once('-').unwrap_or((crate_dir, ""));
    let dir = std::env::temp_dir().join(format!("sampan-xtask-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("src")).map_err(|e| e.to_string())?;
    std::fs::write(dir.join("src/lib.rs"), "").map_err(|e| e.to_string())?;
    std::fs::write(
        dir.join("Cargo.toml"),
        format!(
            "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[dependencies]\n{name} = {{ version = \"={version}\", default-features = false }}\n[workspace]\n"
        ),
    )
    .map_err(|e| e.to_string())?;
    let status = std::process::Command::new("cargo")
        .args(["fetch", "--manifest-path"])
        .arg(dir.join("Cargo.toml"))
        .status()
        .map_err(|e| format!("cannot run cargo fetch: {e}"))?;
    std::fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    if !status.success() {
        return Err(format!("cargo fetch of {name} {version} failed"));
    }
    in_registry(crate_dir)?.ok_or_else(|| format!("{crate_dir} is not in cargo's registry"))
}

fn in_registry(crate_dir: &str) -> Result<Option<PathBuf>, String> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .ok_or("neither CARGO_HOME nor HOME is set")?;
    let registries = match std::fs::read_dir(home.join("registry/src")) {
        Ok(entries) => entries,
        Err(_) => return Ok(None),
    };
    for registry in registries {
        let path = registry.map_err(|e| e.to_string())?.path().join(crate_dir);
        if path.is_dir() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Two parallel texts: facts, and one description a line for every definition and field of them.
struct Table {
    facts: String,
    descriptions: String,
}

struct Generator {
    source: openapi::Source,
    messages: Messages,
    kept_zero: BTreeMap<&'static str, BTreeSet<&'static str>>,
    go: BTreeMap<&'static str, BTreeMap<&'static str, &'static str>>,
    special: BTreeMap<&'static str, &'static str>,
    added: BTreeMap<(&'static str, &'static str), (u32, Markers)>,
    problems: Vec<String>,
}

/// A field with everything known about it.
struct Row {
    name: String,
    /// Tags from the message inwards: more than one where Go embeds a struct that has a message of its own.
    tags: Vec<u32>,
    ty: String,
    required: bool,
    markers: Markers,
    description: String,
}

/// A field of a message, reached through the embedded messages in `path`.
struct Tagged<'a> {
    path: Vec<u32>,
    field: &'a protobuf::Field,
}

impl Generator {
    fn read(k8s_openapi: &Path, k8s_pb: &Path) -> Result<Self, String> {
        Ok(Generator {
            source: openapi::read(k8s_openapi)?,
            messages: protobuf::read(k8s_pb)?,
            kept_zero: facts::kept_zero(),
            go: facts::go(),
            special: facts::SPECIAL.iter().copied().collect(),
            added: facts::added(),
            problems: Vec::new(),
        })
    }

    fn table(mut self) -> Result<Table, String> {
        let mut blocks: BTreeMap<String, (String, String)> = BTreeMap::new();
        let definitions = std::mem::take(&mut self.source.definitions);
        for definition in &definitions {
            if definition.name == "io.k8s.List" {
                continue;
            }
            let block = self.definition(definition)?;
            blocks.insert(definition.name.clone(), block);
            if let (Some(list_kind), Some((group, version, _))) = (&definition.list_kind, &definition.gvk) {
                let (package, _) = definition.name.rsplit_once('.').ok_or("unqualified name")?;
                let name = format!("{package}.{list_kind}");
                let block = self.list(&name, &definition.name, (group, version, list_kind.as_str()));
                blocks.insert(name, block);
            }
        }
        for (name, group, version) in facts::MESSAGE_ONLY {
            let block = self.message_only(name, group, version)?;
            blocks.insert((*name).to_owned(), block);
        }
        // A special type that no crate defines is still a name others refer to.
        for (name, code) in facts::SPECIAL {
            blocks
                .entry((*name).to_owned())
                .or_insert_with(|| (format!("d {name} {code}\n"), "\n".into()));
        }
        if !self.problems.is_empty() {
            return Err(format!(
                "{} facts disagree:\n{}",
                self.problems.len(),
                self.problems.join("\n")
            ));
        }
        let (facts, descriptions): (Vec<String>, Vec<String>) = blocks.into_values().unzip();
        Ok(Table {
            facts: facts.concat(),
            descriptions: descriptions.concat(),
        })
    }

    fn definition(&mut self, definition: &openapi::Definition) -> Result<(String, String), String> {
        let name = definition.name.as_str();
        let text = definition
            .schema
            .get("description")
            .and_then(Node::text)
            .unwrap_or_default();
        if let Some(code) = self.special.get(name) {
            return Ok((format!("d {name} {code}\n"), line(text)));
        }
        let required: BTreeSet<&str> = match definition.schema.get("required") {
            Some(Node::List(items)) => items.iter().filter_map(Node::text).collect(),
            _ => BTreeSet::new(),
        };
        let no_properties = Vec::new();
        let properties = match definition.schema.get("properties") {
            Some(Node::Map(entries)) => entries,
            _ => &no_properties,
        };
        let mut rows = Vec::new();
        for (field, node) in properties {
            let ty = self.type_of(node).map_err(|e| format!("{name}.{field}: {e}"))?;
            let description = match node {
                Node::Ref { description, .. } => description.clone().unwrap_or_default(),
                other => other
                    .get("description")
                    .and_then(Node::text)
                    .unwrap_or_default()
                    .to_owned(),
            };
            rows.push(Row {
                name: field.clone(),
                tags: Vec::new(),
                ty,
                // k8s-openapi calls every object's metadata required; upstream does not.
                required: facts::REQUIRED
                    .iter()
                    .find(|(definition, json, _)| definition == &name && json == field)
                    .map_or_else(
                        || required.contains(field.as_str()) && !(field == "metadata" && definition.gvk.is_some()),
                        |(_, _, upstream)| *upstream,
                    ),
                markers: Markers::default(),
                description,
            });
        }
        let markers = self.tag(name, &mut rows);
        Ok(self.block(name, definition.gvk.as_ref(), &markers, text, rows))
    }

    fn list(&mut self, name: &str, item: &str, (group, version, kind): (&str, &str, &str)) -> (String, String) {
        let message = self.messages.get(&name.to_lowercase()).cloned();
        let describe = |field: &str, otherwise: &str| {
            message
                .as_ref()
                .and_then(|message| message.fields.iter().find(|f| f.name == field))
                .map(|field| field.description.clone())
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| otherwise.to_owned())
        };
        let mut rows = type_meta();
        for (field, ty, text) in [
            ("items", format!("[@{item}"), "List of objects."),
            (
                "metadata",
                "@io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta".to_owned(),
                "Standard list metadata.",
            ),
        ] {
            rows.push(Row {
                name: field.into(),
                tags: Vec::new(),
                ty,
                required: field == "items",
                markers: Markers::default(),
                description: describe(field, text),
            });
        }
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let markers = self.tag(name, &mut rows);
        let text = message
            .map(|message| message.description)
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| format!("{kind} is a list of {}.", kind.trim_end_matches("List")));
        let gvk = (group.to_owned(), version.to_owned(), kind.to_owned());
        self.block(name, Some(&gvk), &markers, &text, rows)
    }

    fn message_only(&mut self, name: &str, group: &str, version: &str) -> Result<(String, String), String> {
        let message = self
            .messages
            .get(&name.to_lowercase())
            .cloned()
            .ok_or_else(|| format!("no message {name}"))?;
        let kind = name.rsplit('.').next().unwrap_or_default();
        let mut rows = type_meta();
        for field in &message.fields {
            let ty = match (field.kind.as_str(), &field.message) {
                ("string", _) => "s".to_owned(),
                ("bool", _) => "b".to_owned(),
                ("int64", _) => "l".to_owned(),
                ("message", Some(path)) => {
                    let target = [
                        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
                        "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
                        "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata",
                    ]
                    .into_iter()
                    .find(|target| target.to_lowercase() == *path)
                    .ok_or_else(|| format!("{name}: unknown message {path}"))?;
                    format!("@{target}")
                }
                other => return Err(format!("{name}: {other:?}")),
            };
            rows.push(Row {
                name: field.name.to_lower_camel_case(),
                tags: Vec::new(),
                ty: if field.repeated { format!("[{ty}") } else { ty },
                required: field.name == "items",
                markers: Markers::default(),
                description: field.description.clone(),
            });
        }
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let markers = self.tag(name, &mut rows);
        let gvk = (group.to_owned(), version.to_owned(), kind.to_owned());
        Ok(self.block(name, Some(&gvk), &markers, &message.description, rows))
    }

    /// The table's code for a property's type.
    fn type_of(&self, node: &Node) -> Result<String, String> {
        if let Node::Ref { path, .. } = node {
            let name = self
                .source
                .names
                .get(path)
                .ok_or_else(|| format!("unknown type {path}"))?;
            return Ok(match self.special.get(name.as_str()) {
                Some(code) => (*code).to_owned(),
                None => format!("@{name}"),
            });
        }
        let ty = node.get("type").and_then(Node::text);
        let format = node.get("format").and_then(Node::text);
        Ok(match (ty, format) {
            (Some("string"), None) => "s".into(),
            (Some("string"), Some("byte")) => "y".into(),
            (Some("boolean"), None) => "b".into(),
            (Some("integer"), Some("int32")) => "i".into(),
            (Some("integer"), Some("int64")) => "l".into(),
            (Some("number"), Some("double")) => "d".into(),
            (Some("array"), None) => {
                let items = node.get("items").ok_or("array without items")?;
                format!("[{}", self.type_of(items)?)
            }
            (Some("object"), None) => match node.get("additionalProperties") {
                Some(values) => format!("{{{}", self.type_of(values)?),
                None => "x".into(),
            },
            other => return Err(format!("type {other:?}")),
        })
    }

    /// Fills in tags and markers from the definition's message; returns the message's own markers.
    fn tag(&mut self, name: &str, rows: &mut [Row]) -> Markers {
        let no_message = protobuf::Message::default();
        let message = self.messages.get(&name.to_lowercase()).unwrap_or(&no_message);
        if facts::NO_MESSAGE.contains(&name) {
            return Markers::default();
        }
        let renamed = |field: &str| {
            facts::RENAMED
                .iter()
                .find(|(definition, json, _)| *definition == name && *json == field)
                .map_or_else(|| field.to_snake_case(), |(_, _, proto)| (*proto).to_owned())
        };
        let wanted: BTreeSet<String> = rows.iter().map(|row| renamed(&row.name)).collect();
        let mut tagged = BTreeMap::new();
        let mut problems = Vec::new();
        collect(
            &self.messages,
            &message.fields,
            &wanted,
            &mut Vec::new(),
            &mut tagged,
            &mut |field| {
                if !facts::NO_JSON.contains(&(name, field)) {
                    problems.push(format!("{name}: message field {field} is not in the JSON"));
                }
            },
        );
        for row in rows.iter_mut() {
            let Some(found) = tagged.remove(&renamed(&row.name)) else {
                match self.added.get(&(name, row.name.as_str())) {
                    Some((tag, markers)) => {
                        row.tags = vec![*tag];
                        row.markers = markers.clone();
                    }
                    None if facts::TYPE_META.contains(&row.name.as_str()) => {}
                    None => problems.push(format!("{name}.{}: no tag", row.name)),
                }
                continue;
            };
            match agreed(&row.ty, found.field, &self.messages) {
                Some(ty) => row.ty = ty,
                None => problems.push(format!(
                    "{name}.{}: JSON {} but message {:?}",
                    row.name, row.ty, found.field
                )),
            }
            row.tags = found.path;
            row.tags.push(found.field.tag);
            row.markers = found.field.markers.clone();
        }
        let markers = message.markers.clone();
        self.problems.extend(problems);
        markers
    }

    fn block(
        &self,
        name: &str,
        gvk: Option<&(String, String, String)>,
        markers: &Markers,
        text: &str,
        rows: Vec<Row>,
    ) -> (String, String) {
        let mut facts = format!("d {name} ");
        facts.push_str(if markers.struct_type.as_deref() == Some("atomic") {
            "*a\n"
        } else {
            "*\n"
        });
        let mut descriptions = line(text);
        if let Some((group, version, kind)) = gvk {
            let _ = writeln!(facts, "g {group}|{version}|{kind}");
        }
        let kept = self.kept_zero.get(name);
        let go = self.go.get(name);
        let mut rows = rows;
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        for row in rows {
            let tags: Vec<String> = row.tags.iter().map(ToString::to_string).collect();
            let _ = write!(facts, "f {} {} {}", row.name, tags.join("."), row.ty);
            let marks = &row.markers;
            if row.required {
                facts.push_str(" r");
            }
            if kept.is_some_and(|kept| kept.contains(row.name.as_str())) {
                facts.push_str(" z");
            }
            for mark in go
                .and_then(|go| go.get(row.name.as_str()))
                .into_iter()
                .flat_map(|marks| marks.split(','))
            {
                let _ = write!(facts, " {mark}");
            }
            if let Some(kind) = &marks.list_type {
                let _ = write!(facts, " L{kind}");
                if !marks.list_map_keys.is_empty() {
                    let _ = write!(facts, ":{}", marks.list_map_keys.join(","));
                }
            }
            match marks.map_type.as_ref().or(marks.struct_type.as_ref()) {
                Some(kind) if kind == "atomic" => facts.push_str(" a"),
                Some(kind) if kind == "granular" => facts.push_str(" n"),
                _ => {}
            }
            if let Some(strategy) = &marks.patch_strategy {
                let _ = write!(facts, " P{strategy}");
            }
            if let Some(key) = &marks.patch_merge_key {
                let _ = write!(facts, " K{key}");
            }
            if let Some(json) = &marks.default {
                let _ = write!(facts, " D{json}");
            }
            facts.push('\n');
            descriptions.push_str(&line(&row.description));
        }
        (facts, descriptions)
    }
}

fn type_meta() -> Vec<Row> {
    [
        (
            "apiVersion",
            "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
        ),
        (
            "kind",
            "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
        ),
    ]
    .into_iter()
    .map(|(name, description)| Row {
        name: name.into(),
        tags: Vec::new(),
        ty: "s".into(),
        required: false,
        markers: Markers::default(),
        description: description.into(),
    })
    .collect()
}

/// Message fields by name; a message field that the JSON does not name is an embedded struct, looked into.
fn collect<'a>(
    messages: &'a Messages,
    fields: &'a [protobuf::Field],
    wanted: &BTreeSet<String>,
    path: &mut Vec<u32>,
    found: &mut BTreeMap<String, Tagged<'a>>,
    unknown: &mut impl FnMut(&str),
) {
    for field in fields {
        if wanted.contains(&field.name) {
            found.entry(field.name.clone()).or_insert(Tagged {
                path: path.clone(),
                field,
            });
            continue;
        }
        match field.message.as_ref().and_then(|name| messages.get(name)) {
            Some(inner) if !field.repeated && !field.map && path.len() < 4 => {
                path.push(field.tag);
                collect(messages, &inner.fields, wanted, path, found, unknown);
                path.pop();
            }
            _ => unknown(&field.name),
        }
    }
}

/// The JSON type when the message field can carry it (with wrapped string lists marked `w`), else nothing.
fn agreed(json: &str, field: &protobuf::Field, messages: &Messages) -> Option<String> {
    if let Some(values) = json.strip_prefix('{') {
        return field
            .map
            .then(|| scalar_agreed(values, field, messages))
            .flatten()
            .map(|values| format!("{{{values}"));
    }
    if let Some(items) = json.strip_prefix('[')
        && field.repeated
    {
        return scalar_agreed(items, field, messages).map(|items| format!("[{items}"));
    }
    (!field.map && !field.repeated)
        .then(|| scalar_agreed(json, field, messages))
        .flatten()
}

fn scalar_agreed(json: &str, field: &protobuf::Field, messages: &Messages) -> Option<String> {
    let code = json.chars().next()?;
    let target = field.message.as_deref().unwrap_or_default();
    let last = target.rsplit('.').next().unwrap_or_default();
    let fits = match code {
        's' => field.kind == "string",
        'y' => field.kind == "bytes",
        'b' => field.kind == "bool",
        'i' => field.kind == "int32",
        'l' => field.kind == "int64",
        'd' => field.kind == "double",
        '@' => field.kind == "message" && target == json[1..].to_lowercase(),
        'q' => last == "quantity",
        't' => last == "time",
        'm' => last == "microtime",
        'v' => last == "fieldsv1",
        'x' => last == "rawextension",
        'o' => last == "intorstring",
        'j' => last == "json",
        'A' => last == "jsonschemapropsorarray",
        'B' => last == "jsonschemapropsorbool",
        'S' => last == "jsonschemapropsorstringarray",
        '[' => {
            let wrapper = messages.get(target)?;
            return match wrapper.fields.as_slice() {
                [items] if items.name == "items" && items.repeated && items.tag == 1 => {
                    (json == "[s" && items.kind == "string").then(|| "w".to_owned())
                }
                _ => None,
            };
        }
        _ => false,
    };
    fits.then(|| json.to_owned())
}

/// One line of the descriptions: newlines escaped.
fn line(text: &str) -> String {
    format!("{}\n", text.replace('\\', "\\\\").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is committed is what the generator writes; skipped where k8s-pb was never fetched.
    #[test]
    fn the_committed_table_is_current() {
        let found = (in_registry(K8S_OPENAPI), in_registry(K8S_PB));
        let (Ok(Some(k8s_openapi)), Ok(Some(k8s_pb))) = found else {
            eprintln!("skipped: {K8S_OPENAPI} and {K8S_PB} are not both in cargo's registry");
            return;
        };
        run(&Args {
            k8s_openapi: Some(k8s_openapi),
            k8s_pb: Some(k8s_pb),
            print: false,
            check: true,
        })
        .expect("current");
    }
}
