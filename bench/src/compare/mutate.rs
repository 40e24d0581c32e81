//! Small damages to an object: one per mutant, systematic, the same for any two servers.

use std::fmt;

use serde_json::{Map, Value, json};

use super::schema::Schemas;

#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

#[derive(Clone)]
enum Change {
    Nothing,
    Remove,
    Set(Value),
    /// The list's first element once more.
    Repeat,
}

/// One change at one place.
#[derive(Clone)]
pub struct Mutant {
    path: Vec<Step>,
    change: Change,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.path {
            match step {
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        match &self.change {
            Change::Nothing => write!(f, " as it is"),
            Change::Remove => write!(f, " removed"),
            Change::Repeat => write!(f, " with its first element repeated"),
            Change::Set(value) => {
                let text = value.to_string().replace(&"a".repeat(300), "<300 a>");
                write!(f, " = {text}")
            }
        }
    }
}

impl Mutant {
    /// The object with the change; where the place does not exist, the object as it is.
    pub fn apply(&self, object: &Value) -> Value {
        let mut object = object.clone();
        let Some((last, parents)) = self.path.split_last() else {
            return object;
        };
        let mut at = &mut object;
        for step in parents {
            let next = match step {
                Step::Key(key) => at.get_mut(key),
                Step::Index(index) => at.get_mut(index),
            };
            match next {
                Some(next) => at = next,
                None => return object,
            }
        }
        match (last, &self.change, at) {
            (Step::Key(key), Change::Remove, Value::Object(map)) => {
                map.remove(key);
            }
            (Step::Index(index), Change::Remove, Value::Array(list)) if *index < list.len() => {
                list.remove(*index);
            }
            (Step::Key(key), Change::Set(value), Value::Object(map)) => {
                map.insert(key.clone(), value.clone());
            }
            (Step::Index(index), Change::Set(value), Value::Array(list)) => {
                if let Some(slot) = list.get_mut(*index) {
                    *slot = value.clone();
                }
            }
            (step, Change::Repeat, at) => {
                let list = match step {
                    Step::Key(key) => at.get_mut(key),
                    Step::Index(index) => at.get_mut(index),
                };
                if let Some(list) = list.and_then(Value::as_array_mut)
                    && let Some(first) = list.first().cloned()
                {
                    list.push(first);
                }
            }
            _ => {}
        }
        object
    }
}

/// What the server alone writes: changing it says nothing of a kind's rules.
const SERVERS_OWN: &[&str] = &[
    "creationTimestamp",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

struct Walk<'a> {
    schemas: &'a Schemas,
    mutants: Vec<Mutant>,
}

/// All mutants of an object; of only one of its fields where `part` names it.
pub fn all(object: &Value, schemas: &Schemas, part: &str) -> Vec<Mutant> {
    let mut walk = Walk {
        schemas,
        mutants: vec![Mutant {
            path: Vec::new(),
            change: Change::Nothing,
        }],
    };
    let kind = object["kind"].as_str().unwrap_or_default();
    let schema = schemas.kind(kind).cloned().unwrap_or_default();
    if part.is_empty() {
        walk.map(object, &schema, &[]);
    } else {
        let path = [Step::Key(part.to_owned())];
        walk.value(&object[part], schemas.property(&schema, part), &path);
    }
    walk.mutants
}

impl Walk<'_> {
    fn add(&mut self, path: &[Step], change: Change) {
        self.mutants.push(Mutant {
            path: path.to_vec(),
            change,
        });
    }

    fn set(&mut self, path: &[Step], values: impl IntoIterator<Item = Value>) {
        for value in values {
            self.add(path, Change::Set(value));
        }
    }

    fn value(&mut self, value: &Value, schema: &Value, path: &[Step]) {
        self.add(path, Change::Remove);
        self.add(path, Change::Set(Value::Null));
        match value {
            Value::String(_) => self.set(
                path,
                [
                    "".into(),
                    "other".into(),
                    "Bad_Name!".into(),
                    "a".repeat(300).into(),
                    "/../x".into(),
                    "-1".into(),
                    json!(7),
                ],
            ),
            Value::Number(_) => self.set(
                path,
                [
                    json!(-1),
                    json!(0),
                    json!(2),
                    json!(70_000),
                    json!(2_147_483_647),
                    json!(99_999_999_999_u64),
                    json!(1.5),
                    json!("text"),
                ],
            ),
            Value::Bool(flag) => self.set(path, [json!(!flag), json!("text")]),
            Value::Null => {}
            Value::Array(list) => {
                self.set(path, [json!([]), json!([null]), json!({}), json!("text")]);
                self.add(path, Change::Repeat);
                for (index, item) in list.iter().enumerate() {
                    let path = [path, &[Step::Index(index)]].concat();
                    self.value(item, self.schemas.items(schema), &path);
                }
            }
            Value::Object(_) => {
                self.set(path, [json!({}), json!([]), json!("text")]);
                self.map(value, schema, path);
            }
        }
    }

    fn map(&mut self, value: &Value, schema: &Value, path: &[Step]) {
        let empty = Map::new();
        let map = value.as_object().unwrap_or(&empty);
        let at = |key: &str| [path, &[Step::Key(key.to_owned())]].concat();
        let metadata = matches!(path.last(), Some(Step::Key(key)) if key == "metadata");
        let own = |key: &str| metadata && SERVERS_OWN.contains(&key);
        for (key, value) in map.iter().filter(|(key, _)| !own(key)) {
            self.value(value, self.schemas.property(schema, key), &at(key));
        }
        match self.schemas.properties(schema) {
            Some(properties) => {
                self.set(&at("unknownField"), [json!(1)]);
                for (key, schema) in properties {
                    let status = path.is_empty() && key == "status";
                    if !(status || own(key) || map.contains_key(key)) {
                        let sample = self.schemas.sample(schema);
                        if matches!(&sample, Value::Object(map) if !map.is_empty()) {
                            self.set(&at(key), [json!({})]);
                        }
                        self.set(&at(key), [sample]);
                    }
                }
            }
            None => {
                let sample = map.values().next().cloned().unwrap_or_else(|| "x".into());
                for key in ["Bad Key!", "", "kubernetes.io/other", "other"] {
                    self.set(&at(key), [sample.clone()]);
                }
            }
        }
    }
}
