//! Reads the definitions out of the source text of k8s-openapi: names, fields, types, required fields,
//! descriptions and GVKs. The source is generated and regular, so a small reader of its `json_schema!`
//! blocks is enough; anything it does not know is an error, never a guess.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A JSON-like value of a `json_schema!` block, where an expression is kept as a reference.
#[derive(Clone, Debug)]
pub enum Node {
    Text(String),
    Flag,
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    /// A Rust path to another definition's type, and the description put beside it.
    Ref {
        path: String,
        description: Option<String>,
    },
}

impl Node {
    pub fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }
    pub fn text(&self) -> Option<&str> {
        match self {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// One definition as the crate states it.
#[derive(Debug)]
pub struct Definition {
    pub name: String,
    pub schema: Node,
    /// Group, version, kind.
    pub gvk: Option<(String, String, String)>,
    pub list_kind: Option<String>,
}

/// Every definition below `src/v1_36`, and the map from Rust paths to definition names.
pub struct Source {
    pub definitions: Vec<Definition>,
    pub names: BTreeMap<String, String>,
}

pub fn read(root: &Path) -> Result<Source, String> {
    let base = root.join("src/v1_36");
    let mut files = Vec::new();
    walk(&base, &mut files)?;
    files.sort();
    let mut source = Source {
        definitions: Vec::new(),
        names: BTreeMap::new(),
    };
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let Some(at) = text.find("fn schema_name()") else {
            continue;
        };
        let name = quoted_after(&text[at..]).ok_or_else(|| format!("{}: no schema name", file.display()))?;
        let start = text[at..]
            .find("json_schema!(")
            .map(|offset| at + offset + "json_schema!(".len())
            .ok_or_else(|| format!("{}: no json_schema! block", file.display()))?;
        let mut reader = Reader {
            bytes: text.as_bytes(),
            at: start,
        };
        let schema = reader.value().map_err(|e| format!("{}: {e}", file.display()))?;
        let module = file
            .parent()
            .and_then(|dir| dir.strip_prefix(&base).ok())
            .map(|dir| dir.to_string_lossy().replace('/', "::"))
            .unwrap_or_default();
        let short = name.rsplit('.').next().unwrap_or_default();
        source.names.insert(format!("crate::{module}::{short}"), name.clone());
        let constant = |key: &str| {
            text.find(&format!("const {key}: &'static str = "))
                .and_then(|at| quoted_after(&text[at..]))
        };
        let gvk = match (constant("GROUP"), constant("VERSION"), constant("KIND")) {
            (Some(group), Some(version), Some(kind)) => Some((group, version, kind)),
            _ => None,
        };
        source.definitions.push(Definition {
            name,
            schema,
            gvk,
            list_kind: constant("LIST_KIND"),
        });
    }
    source.definitions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(source)
}

pub fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    for entry in std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let path = entry.map_err(|e| e.to_string())?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn quoted_after(text: &str) -> Option<String> {
    let at = text.find('"')?;
    let mut reader = Reader {
        bytes: text.as_bytes(),
        at,
    };
    reader.string().ok()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn skip(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn peek(&mut self) -> Result<u8, String> {
        self.skip();
        self.bytes.get(self.at).copied().ok_or("unexpected end".into())
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        if self.peek()? != byte {
            return Err(format!("expected {:?} at byte {}", char::from(byte), self.at));
        }
        self.at += 1;
        Ok(())
    }

    fn value(&mut self) -> Result<Node, String> {
        match self.peek()? {
            b'{' => {
                self.at += 1;
                let mut entries = Vec::new();
                while self.peek()? != b'}' {
                    let key = self.string()?;
                    self.expect(b':')?;
                    entries.push((key, self.value()?));
                    if self.peek()? == b',' {
                        self.at += 1;
                    }
                }
                self.at += 1;
                Ok(Node::Map(entries))
            }
            b'[' => {
                self.at += 1;
                let mut items = Vec::new();
                while self.peek()? != b']' {
                    items.push(self.value()?);
                    if self.peek()? == b',' {
                        self.at += 1;
                    }
                }
                self.at += 1;
                Ok(Node::List(items))
            }
            b'"' => self.string().map(Node::Text),
            b't' | b'f' => {
                while self.bytes.get(self.at).is_some_and(u8::is_ascii_alphabetic) {
                    self.at += 1;
                }
                Ok(Node::Flag)
            }
            b'(' | b'_' => self.expression(),
            other => Err(format!("unexpected {:?} at {}", char::from(other), self.at)),
        }
    }

    /// `(…subschema_for::<PATH>()…)`, with or without the parentheses and a description.
    fn expression(&mut self) -> Result<Node, String> {
        let start = self.at;
        let mut strings = Vec::new();
        let mut depth = 0usize;
        loop {
            match self.bytes.get(self.at).copied().ok_or("unclosed expression")? {
                b'(' | b'{' => depth += 1,
                b')' | b'}' if depth > 0 => depth -= 1,
                b'"' => {
                    strings.push(self.string()?);
                    continue;
                }
                b',' | b'}' | b')' if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
        }
        let text = String::from_utf8_lossy(&self.bytes[start..self.at]);
        let marker = "subschema_for::<";
        let from = text.find(marker).ok_or("expression without a reference")? + marker.len();
        let to = text[from..].find('>').ok_or("unclosed reference")? + from;
        let description = match strings.as_slice() {
            [key, text] if key == "description" => Some(text.clone()),
            [] => None,
            other => return Err(format!("expression with strings {other:?}")),
        };
        Ok(Node::Ref {
            path: text[from..to].to_owned(),
            description,
        })
    }

    fn string(&mut self) -> Result<String, String> {
        self.expect(b'"')?;
        let mut bytes = Vec::new();
        loop {
            let byte = *self.bytes.get(self.at).ok_or("unclosed string")?;
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let escape = *self.bytes.get(self.at).ok_or("unclosed escape")?;
                    self.at += 1;
                    bytes.push(match escape {
                        b'n' => b'\n',
                        b't' => b'\t',
                        b'r' => b'\r',
                        b'"' | b'\\' | b'\'' => escape,
                        other => return Err(format!("unknown escape {:?}", char::from(other))),
                    });
                }
                other => bytes.push(other),
            }
        }
        String::from_utf8(bytes).map_err(|e| e.to_string())
    }
}
