//! Reads the messages out of the source text of k8s-pb: tags and types of fields, and the markers in the
//! documentation (`+listType` and its relatives) that k8s-openapi does not carry.

use std::collections::BTreeMap;
use std::path::Path;

#[derive(Clone, Debug, Default)]
pub struct Field {
    /// prost's name: snake case of the name in the interface definition.
    pub name: String,
    pub tag: u32,
    /// `string`, `bytes`, `int32`, `int64`, `bool`, `double`, `message`.
    pub kind: String,
    pub repeated: bool,
    pub map: bool,
    /// The Rust path of a message field, resolved to a definition name.
    pub message: Option<String>,
    pub markers: Markers,
    pub description: String,
}

#[derive(Clone, Debug, Default)]
pub struct Markers {
    pub list_type: Option<String>,
    pub list_map_keys: Vec<String>,
    pub map_type: Option<String>,
    pub struct_type: Option<String>,
    pub patch_strategy: Option<String>,
    pub patch_merge_key: Option<String>,
    /// As JSON.
    pub default: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Message {
    pub fields: Vec<Field>,
    pub markers: Markers,
    pub description: String,
}

/// Messages by definition name, lower-cased: prost changes the case of some acronyms.
pub type Messages = BTreeMap<String, Message>;

pub fn read(root: &Path) -> Result<Messages, String> {
    let base = root.join("src");
    let mut files = Vec::new();
    super::openapi::walk(&base, &mut files)?;
    let mut messages = Messages::new();
    for file in files {
        let Some(module) = file.parent().and_then(|dir| dir.strip_prefix(&base).ok()) else {
            continue;
        };
        let modules: Vec<String> = module
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        if modules.is_empty() {
            continue;
        }
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        read_module(&text, &modules, &mut messages).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(messages)
}

fn definition(modules: &[String], name: &str) -> String {
    let mut parts = vec!["io".to_owned(), "k8s".to_owned()];
    parts.extend(modules.iter().map(|part| part.replace('_', "-")));
    parts.push(name.to_owned());
    parts.join(".").to_lowercase()
}

fn read_module(text: &str, modules: &[String], messages: &mut Messages) -> Result<(), String> {
    let mut docs: Vec<String> = Vec::new();
    let mut current: Option<(String, Message)> = None;
    let mut attribute: Option<String> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.strip_prefix(' ').unwrap_or(doc).to_owned());
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.trim_end_matches(['{', '}', ' ']).to_owned();
            let (markers, description) = split(&docs);
            docs.clear();
            let message = Message {
                fields: Vec::new(),
                markers,
                description,
            };
            if rest.ends_with("{}") {
                messages.insert(definition(modules, &name), message);
            } else {
                current = Some((name, message));
            }
        } else if let Some(rest) = line.strip_prefix("#[prost(") {
            let mut whole = rest.to_owned();
            while !whole.ends_with(")]") {
                whole.push_str(lines.next().ok_or("unclosed attribute")?.trim());
            }
            attribute = Some(whole);
        } else if let (Some(rest), Some((_, message))) = (line.strip_prefix("pub "), current.as_mut()) {
            let mut whole = rest.to_owned();
            while !whole.ends_with(',') || whole.matches('<').count() != whole.matches('>').count() {
                whole.push_str(lines.next().ok_or("unclosed field")?.trim());
            }
            let attribute = attribute.take().ok_or("field without an attribute")?;
            let mut field = read_field(&whole, &attribute, modules)?;
            (field.markers, field.description) = split(&docs);
            docs.clear();
            message.fields.push(field);
        } else if line == "}" {
            if let Some((name, message)) = current.take() {
                messages.insert(definition(modules, &name), message);
            }
            docs.clear();
        } else if !line.starts_with("#[") {
            docs.clear();
        }
    }
    Ok(())
}

fn read_field(text: &str, attribute: &str, modules: &[String]) -> Result<Field, String> {
    let (name, rust_type) = text.split_once(':').ok_or("field without a type")?;
    let name = name.trim().trim_start_matches("r#").to_owned();
    let tag = attribute
        .split("tag = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .and_then(|tag| tag.parse().ok())
        .ok_or_else(|| format!("no tag in {attribute}"))?;
    let head = attribute.trim_start();
    let (kind, map) = if let Some(rest) = head.strip_prefix("btree_map = \"string, ") {
        (rest.split('"').next().unwrap_or_default().to_owned(), true)
    } else {
        let end = head.find([',', ' ']).unwrap_or(head.len());
        (head[..end].to_owned(), false)
    };
    let repeated = attribute.contains("repeated");
    let message = if kind == "message" {
        let inner = rust_type
            .trim()
            .trim_end_matches([',', '>'])
            .rsplit(['<', ',', ' '])
            .next()
            .unwrap_or_default();
        Some(resolve(inner, modules)?)
    } else {
        None
    };
    Ok(Field {
        name,
        tag,
        kind,
        repeated,
        map,
        message,
        ..Field::default()
    })
}

fn resolve(path: &str, modules: &[String]) -> Result<String, String> {
    let mut base = modules.to_vec();
    let mut parts = path.split("::").peekable();
    while parts.peek() == Some(&"super") {
        parts.next();
        base.pop().ok_or_else(|| format!("path {path} leaves the crate"))?;
    }
    let rest: Vec<&str> = parts.collect();
    let (name, inner) = rest.split_last().ok_or("empty path")?;
    base.extend(inner.iter().map(|part| (*part).to_owned()));
    Ok(definition(&base, name))
}

/// Markers and the remaining text of a documentation comment.
fn split(docs: &[String]) -> (Markers, String) {
    let mut markers = Markers::default();
    let mut text: Vec<&str> = Vec::new();
    for line in docs {
        let trimmed = line.trim();
        let Some(marker) = trimmed.strip_prefix('+').map(str::trim) else {
            text.push(trimmed);
            continue;
        };
        let Some((key, value)) = marker.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"').to_owned();
        match key.trim() {
            "listType" => markers.list_type = Some(value),
            "listMapKey" => markers.list_map_keys.push(value),
            "mapType" => markers.map_type = Some(value),
            "structType" => markers.struct_type = Some(value),
            "patchStrategy" => markers.patch_strategy = Some(value),
            "patchMergeKey" => markers.patch_merge_key = Some(value),
            // `ref(…)` names a constant: no list key has one.
            "default" => {
                markers.default = marker
                    .split_once('=')
                    .map(|(_, json)| json.trim().to_owned())
                    .filter(|json| !json.starts_with("ref("))
            }
            _ => {}
        }
    }
    (markers, text.join(" ").trim().to_owned())
}
