//! Sets of fields, as managed fields record them (`FieldsV1`).
//!
//! A set is a tree of path elements. An element may be a member itself, have members below, or both. Elements
//! are kept as `FieldsV1` spells them: `f:name` a field, `k:{…}` an item of a list by its keys, `v:…` an item of
//! a set by its value, `i:…` an index. Their JSON is always in one canonical form, so equal elements are equal
//! texts.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path, as `FieldsV1` spells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element(String);

impl Element {
    pub fn field(name: &str) -> Self {
        Element(format!("f:{name}"))
    }
    pub fn key(key: &Map<String, Value>) -> Self {
        Element(format!("k:{}", Value::Object(key.clone())))
    }
    pub fn value(value: &Value) -> Self {
        Element(format!("v:{value}"))
    }
    pub fn index(index: usize) -> Self {
        Element(format!("i:{index}"))
    }
    /// Reads an element; nothing for kinds a future version may know.
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_at_checked(2)?;
        match kind {
            "f:" => Some(Element(text.to_owned())),
            "k:" | "v:" => {
                let value: Value = serde_json::from_str(rest).ok()?;
                Some(Element(format!("{kind}{value}")))
            }
            "i:" => rest.parse::<i64>().ok().map(|index| Element(format!("i:{index}"))),
            _ => None,
        }
    }
    /// The element a recorded key stands for, if it is spelt as it is here.
    pub fn canonical(text: &str) -> Option<Self> {
        Element::parse(text).filter(|element| element.0 == text)
    }
    /// The field's name, when this is a field.
    pub fn name(&self) -> Option<&str> {
        self.0.strip_prefix("f:")
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, rest) = self.0.split_at(2);
        match kind {
            "f:" => write!(f, ".{rest}"),
            "i:" => write!(f, "[{rest}]"),
            "v:" => write!(f, "[={rest}]"),
            _ => {
                let key: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
                let parts: Vec<String> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", parts.join(","))
            }
        }
    }
}

/// Whether what is recorded below an element makes the element itself a member.
fn is_member(below: &Map<String, Value>) -> bool {
    below.is_empty() || below.contains_key(".")
}

/// A path, printed as `.spec.containers[name="a"].image`.
pub type Path = Vec<Element>;

pub fn show(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    member: bool,
    below: FieldSet,
}

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    nodes: BTreeMap<Element, Node>,
}

impl FieldSet {
    /// A set of paths of plain fields.
    pub fn of(paths: &[&[&str]]) -> Self {
        let mut set = FieldSet::default();
        for path in paths {
            set.insert(&path.iter().map(|name| Element::field(name)).collect::<Vec<_>>());
        }
        set
    }

    /// Adds a path. Parents are not added with it.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else {
            // The whole object: nobody owns that.
            return;
        };
        let node = self.nodes.entry(first.clone()).or_default();
        if rest.is_empty() {
            node.member = true;
        } else {
            node.below.insert(rest);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.values().all(|node| !node.member && node.below.is_empty())
    }

    pub fn has(&self, path: &[Element]) -> bool {
        match path.split_first() {
            None => false,
            Some((first, rest)) => self.nodes.get(first).is_some_and(|node| {
                if rest.is_empty() {
                    node.member
                } else {
                    node.below.has(rest)
                }
            }),
        }
    }

    pub fn has_element(&self, element: &Element) -> bool {
        self.nodes.get(element).is_some_and(|node| node.member)
    }

    /// What is below an element; nothing when that is nothing.
    pub fn below(&self, element: &Element) -> Option<&FieldSet> {
        self.nodes
            .get(element)
            .map(|node| &node.below)
            .filter(|below| !below.is_empty())
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.add(other);
        out
    }

    fn add(&mut self, other: &Self) {
        for (element, node) in &other.nodes {
            let own = self.nodes.entry(element.clone()).or_default();
            own.member |= node.member;
            own.below.add(&node.below);
        }
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |own, theirs| {
            let theirs = theirs?;
            Some(Node {
                member: own.member && theirs.member,
                below: own.below.intersection(&theirs.below),
            })
        })
    }

    /// What is here and not there; a parent there does not take its children here.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |own, theirs| {
            Some(match theirs {
                None => own.clone(),
                Some(theirs) => Node {
                    member: own.member && !theirs.member,
                    below: own.below.difference(&theirs.below),
                },
            })
        })
    }

    /// What is here and not there; a parent there takes its children here with it.
    pub fn without_trees(&self, other: &Self) -> Self {
        self.combine(other, |own, theirs| match theirs {
            None => Some(own.clone()),
            Some(theirs) if theirs.member => None,
            Some(theirs) => Some(Node {
                member: own.member,
                below: own.below.without_trees(&theirs.below),
            }),
        })
    }

    fn combine(&self, other: &Self, rule: impl Fn(&Node, Option<&Node>) -> Option<Node>) -> Self {
        let nodes = self
            .nodes
            .iter()
            .filter_map(|(element, own)| {
                let node = rule(own, other.nodes.get(element))?;
                (node.member || !node.below.is_empty()).then(|| (element.clone(), node))
            })
            .collect();
        FieldSet { nodes }
    }

    /// Rebuilds the set: `rule` sees each element with the elements above it and may make it a member.
    pub fn map_members(&self, rule: &mut impl FnMut(&[Element], &Element, bool) -> bool) -> Self {
        fn walk(
            set: &FieldSet,
            above: &mut Path,
            rule: &mut impl FnMut(&[Element], &Element, bool) -> bool,
        ) -> FieldSet {
            let mut nodes = BTreeMap::new();
            for (element, node) in &set.nodes {
                let member = node.member || rule(above, element, !node.below.is_empty());
                above.push(element.clone());
                let below = walk(&node.below, above, rule);
                above.pop();
                nodes.insert(element.clone(), Node { member, below });
            }
            FieldSet { nodes }
        }
        walk(self, &mut Vec::new(), rule)
    }

    /// Rebuilds what is below elements that have something there; where `rule` has nothing, the element itself is
    /// the member.
    pub fn map_below(&self, rule: &impl Fn(&Element, &FieldSet) -> Option<FieldSet>) -> Self {
        let nodes = self.nodes.iter().map(|(element, node)| {
            let node = if node.below.is_empty() {
                node.clone()
            } else {
                let below = rule(element, &node.below);
                Node {
                    member: node.member || below.is_none(),
                    below: below.unwrap_or_default(),
                }
            };
            (element.clone(), node)
        });
        FieldSet { nodes: nodes.collect() }
    }

    /// Whether some member is one of a recorded set too.
    pub fn meets(&self, fields: &Map<String, Value>) -> bool {
        self.nodes.iter().any(|(element, node)| {
            let Some(Value::Object(below)) = fields.get(&element.0) else {
                return false;
            };
            (node.member && is_member(below)) || node.below.meets(below)
        })
    }

    /// Every member's path, in order.
    pub fn paths(&self) -> Vec<Path> {
        fn walk(set: &FieldSet, above: &mut Path, out: &mut Vec<Path>) {
            for (element, node) in &set.nodes {
                above.push(element.clone());
                if node.member {
                    out.push(above.clone());
                }
                walk(&node.below, above, out);
                above.pop();
            }
        }
        let mut out = Vec::new();
        walk(self, &mut Vec::new(), &mut out);
        out
    }

    /// As `FieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (element, node) in &self.nodes {
            let mut below = match node.below.to_value() {
                Value::Object(map) => map,
                _ => Map::new(),
            };
            if node.member && !below.is_empty() {
                below.insert(".".into(), Value::Object(Map::new()));
            }
            if node.member || !below.is_empty() {
                out.insert(element.0.clone(), Value::Object(below));
            }
        }
        Value::Object(out)
    }

    /// From `FieldsV1`; what is not understood is left out.
    pub fn from_value(value: &Value) -> Self {
        value.as_object().map(FieldSet::of_map).unwrap_or_default()
    }

    /// The same from its map.
    pub fn of_map(fields: &Map<String, Value>) -> Self {
        let mut set = FieldSet::default();
        for (key, value) in fields {
            let Some(element) = Element::parse(key) else {
                continue;
            };
            let below = FieldSet::from_value(value);
            let member = value.get(".").is_some() || below.is_empty();
            set.nodes.insert(element, Node { member, below });
        }
        set
    }
}
