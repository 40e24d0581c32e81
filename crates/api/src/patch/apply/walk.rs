//! Walks of trees by type for apply: which fields a tree has, how two trees differ, how one is laid over another,
//! and how fields are taken out.
//!
//! A type is seen as one of three things: an atom (scalars, and lists and maps replaced as a whole), fields
//! (structs and granular maps), or items (lists that are sets or maps by key).

use serde_json::{Map, Value};

use super::set::{Element, FieldSet, Path, show};
use crate::codec::printed;
use crate::quantity::Quantity;
use crate::schema::{self, Field, List, ListKind, Printed, Struct, Type};

/// A type where a field may say more than the type itself.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    ty: Kind<'a>,
    /// Whether the field says the struct or map below is replaced as a whole.
    atomic: Option<bool>,
    /// The field this is the value of, for what Go has in the place of nothing.
    field: Option<&'a Field>,
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Typed(&'a Type),
    /// Below unknown fields of a custom kind: maps merge, lists are atoms.
    Deduced,
}

enum View<'a> {
    Atom,
    Fields(Fields<'a>),
    Items(&'a List),
}

#[derive(Clone, Copy)]
enum Fields<'a> {
    Struct(&'a Struct),
    Map(&'a Type),
    Deduced,
}

impl<'a> Node<'a> {
    pub fn root(ty: &'a Type) -> Self {
        Node::typed(ty)
    }

    fn typed(ty: &'a Type) -> Self {
        Node {
            ty: Kind::Typed(ty),
            atomic: None,
            field: None,
        }
    }

    fn view(self, value: &Value) -> View<'a> {
        let ty = match self.ty {
            Kind::Typed(ty) => ty,
            Kind::Deduced => {
                return if value.is_object() {
                    View::Fields(Fields::Deduced)
                } else {
                    View::Atom
                };
            }
        };
        // Values of another shape than their type's (only untyped ones can have one) are single things.
        let fields = |fields| {
            if value.is_object() || value.is_null() {
                View::Fields(fields)
            } else {
                View::Atom
            }
        };
        match ty {
            Type::List(list) if list.kind != ListKind::Atomic => View::Items(list),
            Type::Map(map) if !self.atomic.unwrap_or(map.atomic) => fields(Fields::Map(&map.values)),
            Type::Def(_) | Type::Struct(_) => match ty.as_struct() {
                Some(below) if !self.atomic.unwrap_or(below.atomic) => fields(Fields::Struct(below)),
                _ => View::Atom,
            },
            _ => View::Atom,
        }
    }

    /// Whether two values of this type mean the same: a configuration may say `0.5` where the object says `500m`.
    fn same(self, left: &Value, right: &Value) -> bool {
        if left == right {
            return true;
        }
        let quantity = |value| Quantity::from_value(value).ok();
        matches!(self.ty, Kind::Typed(Type::Quantity))
            && quantity(left).is_some_and(|left| quantity(right).is_some_and(|right| left == right))
    }

    /// The node below a path element.
    pub fn below(self, element: &Element, value_hint: &Value) -> Option<Node<'a>> {
        match self.view(value_hint) {
            View::Fields(fields) => fields.child(element.name()?),
            View::Items(list) => Some(Node::typed(&list.items)),
            View::Atom => None,
        }
    }

    /// Whether this is a container that nobody owns a part of.
    fn is_whole(self) -> bool {
        let container = matches!(
            self.ty,
            Kind::Typed(Type::List(_) | Type::Map(_) | Type::Def(_) | Type::Struct(_))
        );
        container && matches!(self.view(&Value::Null), View::Atom)
    }

    /// Whether the element is a field the type names (not a key of a map).
    pub fn names(self, element: &Element) -> bool {
        match (self.view(&Value::Null), element.name()) {
            (View::Fields(Fields::Struct(below)), Some(name)) => below.field(name).is_some(),
            _ => false,
        }
    }
}

impl<'a> Fields<'a> {
    fn child(self, name: &str) -> Option<Node<'a>> {
        match self {
            Fields::Struct(below) => match below.field(name) {
                Some(field) => Some(Node {
                    ty: Kind::Typed(&field.ty),
                    atomic: field.atomic,
                    field: Some(field),
                }),
                None if below.preserve_unknown => Some(Node {
                    ty: Kind::Deduced,
                    atomic: None,
                    field: None,
                }),
                None => None,
            },
            Fields::Map(values) => Some(Node::typed(values)),
            Fields::Deduced => Some(Node {
                ty: Kind::Deduced,
                atomic: None,
                field: None,
            }),
        }
    }
    /// The fields Go prints though they are not there.
    fn printed(self) -> impl Iterator<Item = &'a Field> {
        let fields = match self {
            Fields::Struct(below) => below.fields.as_slice(),
            _ => &[],
        };
        fields.iter().filter(|field| field.printed != Printed::Nothing)
    }
    fn names(self, name: &str) -> bool {
        matches!(self, Fields::Struct(below) if below.field(name).is_some())
    }
}

/// The element that identifies an item.
fn element_of(list: &List, item: &Value) -> Result<Element, String> {
    if list.keys.is_empty() {
        return match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            scalar => Ok(Element::value(scalar)),
        };
    }
    let map = match item {
        Value::Object(map) => map,
        Value::Null => return Err("associative list with keys may not have a null element".into()),
        _ => return Err("associative list with keys may not have non-map elements".into()),
    };
    let mut key = Map::new();
    for name in &list.keys {
        let stated = map.get(name.as_ref());
        let assumed = || {
            let field = list.items.as_struct()?.field(name)?;
            field.default.as_deref()
        };
        if let Some(value) = stated.or_else(assumed) {
            key.insert(name.clone().into_owned(), value.clone());
        }
    }
    if key.is_empty() {
        let names: Vec<String> = list.keys.iter().map(|name| format!("{name:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            names.join(" ")
        ));
    }
    Ok(Element::key(&key))
}

/// Whether there is such an element.
fn is_keyed(list: &List, item: &Value) -> bool {
    if list.keys.is_empty() {
        return !matches!(item, Value::Object(_) | Value::Array(_) | Value::Null);
    }
    let assumed = |name: &str| {
        list.items
            .as_struct()
            .and_then(|below| below.field(name)?.default.as_deref())
    };
    item.as_object().is_some_and(|map| {
        let mut keys = list.keys.iter();
        keys.any(|name| map.contains_key(name.as_ref()) || assumed(name).is_some())
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// A complaint about an applied tree, at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    path: String,
    what: String,
}

/// Complaints as upstream joins them.
pub fn join(faults: &[Invalid]) -> String {
    let one = |fault: &Invalid| {
        if fault.path.is_empty() {
            fault.what.clone()
        } else {
            format!("{}: {}", fault.path, fault.what)
        }
    };
    match faults {
        [fault] => one(fault),
        many => many
            .iter()
            .fold("errors:".to_owned(), |all, fault| all + "\n  " + &one(fault)),
    }
}

/// Checks an applied tree: known fields, fitting types, no repeated items.
pub fn validate(node: Node<'_>, value: &Value) -> Vec<Invalid> {
    let mut faults = Vec::new();
    validate_at(node, value, &mut Vec::new(), &mut faults);
    faults
}

fn validate_at(node: Node<'_>, value: &Value, path: &mut Path, faults: &mut Vec<Invalid>) {
    let mut fault = |path: &[Element], what: String| {
        faults.push(Invalid { path: show(path), what });
    };
    let Kind::Typed(ty) = node.ty else {
        return;
    };
    if value.is_null() {
        return;
    }
    let got = |value: &Value| match value {
        Value::String(text) => format!("got &value.valueUnstructured{{Value:{text:?}}}"),
        other => format!("got &value.valueUnstructured{{Value:{other}}}"),
    };
    match ty {
        Type::String | Type::Bytes | Type::Time | Type::MicroTime if !value.is_string() => {
            fault(path, format!("expected string, {}", got(value)));
        }
        Type::Bool if !value.is_boolean() => fault(path, format!("expected boolean, {}", got(value))),
        Type::Int32 | Type::Int64 | Type::Double if !value.is_number() => {
            fault(path, format!("expected numeric (int or float), {}", got(value)));
        }
        Type::IntOrString | Type::Quantity if value.is_object() || value.is_array() => {
            fault(path, format!("expected any scalar, {}", got(value)));
        }
        Type::List(list) => {
            let Value::Array(items) = value else {
                return fault(path, format!("expected list, {}", got(value)));
            };
            let mut seen = std::collections::BTreeSet::new();
            for (index, item) in items.iter().enumerate() {
                if list.kind == ListKind::Atomic {
                    // Indexes are shown, never owned.
                    path.push(Element::index(index));
                } else {
                    match element_of(list, item) {
                        Ok(element) => {
                            if !seen.insert(element.clone()) {
                                let what = format!("duplicate entries for key {element}");
                                faults.push(Invalid { path: show(path), what });
                                continue;
                            }
                            path.push(element);
                        }
                        Err(what) => {
                            let what = format!("element {index}: {what}");
                            faults.push(Invalid { path: show(path), what });
                            return;
                        }
                    }
                }
                validate_at(Node::typed(&list.items), item, path, faults);
                path.pop();
            }
        }
        Type::Map(map_type) => {
            let Value::Object(map) = value else {
                return fault(path, format!("expected map, {}", got(value)));
            };
            for (key, item) in map {
                path.push(Element::field(key));
                validate_at(Node::typed(&map_type.values), item, path, faults);
                path.pop();
            }
        }
        Type::Def(_) | Type::Struct(_) => {
            let (Some(below), Value::Object(map)) = (ty.as_struct(), value) else {
                return fault(path, format!("expected map, {}", got(value)));
            };
            for (key, item) in map {
                path.push(Element::field(key));
                match Fields::Struct(below).child(key) {
                    Some(child) => validate_at(child, item, path, faults),
                    None if below.embedded => {}
                    None => faults.push(Invalid {
                        path: show(path),
                        what: "field not declared in schema".into(),
                    }),
                }
                path.pop();
            }
        }
        _ => {}
    }
}

/// Whether some item of a list that is a map by key has no key: then nobody can own what is in that list.
pub fn has_unkeyed(node: Node<'_>, value: &Value) -> bool {
    match (node.view(value), value) {
        (View::Items(list), Value::Array(items)) => items
            .iter()
            .any(|item| !is_keyed(list, item) || has_unkeyed(Node::typed(&list.items), item)),
        (View::Fields(fields), Value::Object(map)) => map
            .iter()
            .any(|(key, item)| fields.child(key).is_some_and(|child| has_unkeyed(child, item))),
        _ => false,
    }
}

/// The fields a tree states.
pub fn fields_of(node: Node<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(node, value, &mut Vec::new(), &mut set);
    set
}

fn collect(node: Node<'_>, value: &Value, path: &mut Path, set: &mut FieldSet) {
    match node.view(value) {
        View::Atom => set.insert(path),
        View::Fields(fields) => {
            for (key, item) in value.as_object().into_iter().flatten() {
                let Some(child) = fields.child(key) else {
                    continue;
                };
                path.push(Element::field(key));
                collect(child, item, path, set);
                let empty = item.is_null() || item.as_object().is_some_and(Map::is_empty);
                if empty || !fields.names(key) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        View::Items(list) => {
            let items = index(list, value);
            for (element, all) in items {
                path.push(element);
                // A repeated item is owned as a whole, nothing inside it.
                if let [one] = all.as_slice() {
                    collect(Node::typed(&list.items), one, path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
    }
}

/// Items by their element, in the order first seen; those that cannot be identified are left out.
fn index<'v>(list: &List, value: &'v Value) -> Vec<(Element, Vec<&'v Value>)> {
    let mut out: Vec<(Element, Vec<&Value>)> = Vec::new();
    let mut at = std::collections::BTreeMap::new();
    for item in value.as_array().into_iter().flatten() {
        let Ok(element) = element_of(list, item) else {
            continue;
        };
        match at.get(&element) {
            Some(position) => {
                if let Some((_, all)) = out.get_mut::<usize>(*position) {
                    all.push(item);
                }
            }
            None => {
                at.insert(element.clone(), out.len());
                out.push((element, vec![item]));
            }
        }
    }
    out
}

/// A set recorded before lists or maps became atoms: who owned a part of one owns it as a whole.
pub fn reconciled(node: Node<'_>, set: &FieldSet) -> FieldSet {
    set.map_below(&|element, below| {
        let Some(child) = node.below(element, &Value::Null) else {
            return Some(below.clone());
        };
        if child.is_whole() {
            return None;
        }
        Some(reconciled(child, below))
    })
}

/// Whether a recorded set is spelt as it would be written now, and [`reconciled`] would leave it as it is.
pub fn is_canonical(node: Node<'_>, fields: &Map<String, Value>) -> bool {
    let mut any = false;
    let fits = fields.iter().all(|(key, below)| {
        let Value::Object(below) = below else {
            return false;
        };
        if key == "." {
            return below.is_empty();
        }
        any = true;
        // Fields are by far the most: no need to make an element of one.
        let child = match key.strip_prefix("f:") {
            Some(name) => match node.view(&Value::Null) {
                View::Fields(fields) => fields.child(name),
                View::Items(list) => Some(Node::typed(&list.items)),
                View::Atom => None,
            },
            None => match Element::canonical(key) {
                Some(element) => node.below(&element, &Value::Null),
                None => return false,
            },
        };
        if below.is_empty() {
            return true;
        }
        match child {
            Some(child) => !child.is_whole() && is_canonical(child, below),
            None => is_spelt(below),
        }
    });
    fits && any
}

/// The spelling alone, where the type knows nothing.
fn is_spelt(fields: &Map<String, Value>) -> bool {
    fields.keys().any(|key| key != ".")
        && fields.iter().all(|(key, below)| match below {
            Value::Object(below) if key == "." => below.is_empty(),
            Value::Object(below) => Element::canonical(key).is_some() && (below.is_empty() || is_spelt(below)),
            _ => false,
        })
}

/// How two trees differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub added: FieldSet,
    pub removed: FieldSet,
    pub modified: FieldSet,
}

impl Comparison {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.modified.is_empty()
    }
    /// Without the fields below the given ones.
    pub fn without(mut self, ignored: &FieldSet) -> Self {
        self.added = self.added.without_trees(ignored);
        self.removed = self.removed.without_trees(ignored);
        self.modified = self.modified.without_trees(ignored);
        self
    }
}

pub fn compare(node: Node<'_>, left: &Value, right: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    compare_at(node, Some(left), Some(right), &mut Vec::new(), &mut comparison);
    comparison
}

fn compare_at(node: Node<'_>, left: Option<&Value>, right: Option<&Value>, path: &mut Path, out: &mut Comparison) {
    let Some(either) = right.or(left) else {
        return;
    };
    // Most of an object does not change: equal parts are passed by without a look inside.
    if left == right {
        return;
    }
    let leaf = |out: &mut Comparison, path: &[Element]| match (left, right) {
        (None, _) => out.added.insert(path),
        (_, None) => out.removed.insert(path),
        (Some(left), Some(right)) if !node.same(left, right) => out.modified.insert(path),
        _ => {}
    };
    let empty = left.is_none_or(is_empty) && right.is_none_or(is_empty);
    // What was of one shape and is of another (only untyped fields can): one thing.
    let reshaped = matches!((left, right), (Some(left), Some(right))
        if !left.is_null() && !right.is_null() && left.is_object() != right.is_object());
    let prints = |fields: Fields<'_>| left.is_some() != right.is_some() && fields.printed().next().is_some();
    match node.view(either) {
        View::Fields(fields) if (!empty || prints(fields)) && !reshaped => {
            let none = Map::new();
            let lefts = left.and_then(Value::as_object).unwrap_or(&none);
            let rights = right.and_then(Value::as_object).unwrap_or(&none);
            let both = left.is_some() && right.is_some();
            let keys: std::collections::BTreeSet<&String> = lefts.keys().chain(rights.keys()).collect();
            for key in keys {
                let Some(child) = fields.child(key) else {
                    continue;
                };
                let (mut old, mut new) = (lefts.get(key), rights.get(key));
                let zero = child.field.filter(|_| both).and_then(printed::absent);
                if let Some(zero) = &zero {
                    old = old.or(Some(zero));
                    new = new.or(Some(zero));
                }
                if old == new {
                    continue;
                }
                path.push(Element::field(key));
                compare_at(child, old, new, path, out);
                path.pop();
            }
            // A struct comes and goes with all Go prints of it.
            for field in fields.printed().filter(|_| !both) {
                let name = field.name.as_ref();
                if lefts.contains_key(name) || rights.contains_key(name) {
                    continue;
                }
                let (Some(child), Some(zero)) = (fields.child(name), printed::absent(field)) else {
                    continue;
                };
                path.push(Element::field(name));
                compare_at(child, left.and(Some(&zero)), right.and(Some(&zero)), path, out);
                path.pop();
            }
        }
        View::Items(list) if !empty => {
            let lefts = left.map(|value| index(list, value)).unwrap_or_default();
            let rights = right.map(|value| index(list, value)).unwrap_or_default();
            let known: std::collections::BTreeMap<&Element, &[&Value]> =
                lefts.iter().map(|(element, all)| (element, all.as_slice())).collect();
            let coming: std::collections::BTreeMap<&Element, &[&Value]> =
                rights.iter().map(|(element, all)| (element, all.as_slice())).collect();
            let elements: std::collections::BTreeSet<&Element> = known.keys().chain(coming.keys()).copied().collect();
            for element in elements {
                let olds = known.get(element).copied().unwrap_or_default();
                let news = coming.get(element).copied().unwrap_or_default();
                let child = Node::typed(&list.items);
                path.push(element.clone());
                match (olds.len() >= 2, news.len() >= 2) {
                    (false, false) => compare_at(child, olds.first().copied(), news.first().copied(), path, out),
                    (true, true) => {
                        if olds != news {
                            out.modified.insert(path);
                        }
                    }
                    (true, false) => {
                        compare_at(child, None, news.first().copied(), path, out);
                        out.removed.insert(path);
                    }
                    (false, true) => {
                        compare_at(child, olds.first().copied(), None, path, out);
                        out.added.insert(path);
                    }
                }
                path.pop();
            }
        }
        _ => return leaf(out, path),
    }
    match (left, right) {
        (None, _) => out.added.insert(path),
        (_, None) => out.removed.insert(path),
        _ => {}
    }
}

/// Lays `right` over `left`.
pub fn merge(node: Node<'_>, left: &Value, right: &Value) -> Value {
    merge_at(node, Some(left), Some(right)).unwrap_or(Value::Null)
}

fn merge_at(node: Node<'_>, left: Option<&Value>, right: Option<&Value>) -> Option<Value> {
    let either = right.or(left)?;
    let empty = left.is_none_or(is_empty) && right.is_none_or(is_empty);
    match node.view(either) {
        View::Fields(fields) if !empty => {
            let mut out = Map::new();
            let lefts = left.and_then(Value::as_object);
            let rights = right.and_then(Value::as_object);
            for (key, old) in lefts.into_iter().flatten() {
                let new = rights.and_then(|map| map.get(key));
                let merged = match fields.child(key) {
                    Some(child) => merge_at(child, Some(old), new),
                    None => Some(new.unwrap_or(old).clone()),
                };
                if let Some(merged) = merged {
                    out.insert(key.clone(), merged);
                }
            }
            for (key, new) in rights.into_iter().flatten() {
                if lefts.is_some_and(|map| map.contains_key(key)) {
                    continue;
                }
                let merged = match fields.child(key) {
                    Some(child) => merge_at(child, None, Some(new)),
                    None => Some(new.clone()),
                };
                if let Some(merged) = merged {
                    out.insert(key.clone(), merged);
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        View::Items(list) if !empty => {
            let items = merge_items(list, left, right);
            (!items.is_empty()).then_some(Value::Array(items))
        }
        _ => Some(either.clone()),
    }
}

/// Merges two lists of items. What `right` names comes in its order; what only `left` has keeps its place among
/// its neighbours that both know.
fn merge_items(list: &List, left: Option<&Value>, right: Option<&Value>) -> Vec<Value> {
    let child = Node::typed(&list.items);
    let lefts: Vec<(Element, &Value)> = left
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|item| Some((element_of(list, item).ok()?, item)))
        .collect();
    let rights: Vec<(Element, &Value)> = right
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|item| Some((element_of(list, item).ok()?, item)))
        .collect();
    let in_right: std::collections::BTreeSet<&Element> = rights.iter().map(|(element, _)| element).collect();
    let mut on_left: std::collections::BTreeMap<&Element, Vec<&Value>> = std::collections::BTreeMap::new();
    for (element, item) in &lefts {
        on_left.entry(element).or_default().push(item);
    }
    // Repeated items on the left are not merged with, only replaced.
    let partner = |element: &Element| match on_left.get(element).map(Vec::as_slice) {
        Some([one]) => Some(*one),
        _ => None,
    };
    let mut shared = rights
        .iter()
        .map(|(element, _)| element)
        .filter(|element| on_left.contains_key(element))
        .peekable();
    let mut merged = std::collections::BTreeSet::new();
    let mut out = Vec::new();
    let (mut l, mut r) = (0, 0);
    loop {
        let (here, there) = (lefts.get(l), rights.get(r));
        if here.is_none() && there.is_none() {
            return out;
        }
        if let (Some((own, _)), Some((theirs, item))) = (here, there) {
            if own == theirs {
                merged.insert(own);
                out.extend(merge_at(child, partner(own), Some(item)));
                l += 1;
                r += 1;
                shared.next();
                continue;
            }
            // Shared, but its turn is not now.
            if in_right.contains(own) && shared.peek().is_some_and(|next| *next != own) {
                l += 1;
                continue;
            }
        }
        if let Some((own, item)) = here {
            if !in_right.contains(own) {
                out.extend(merge_at(child, Some(item), None));
                l += 1;
                continue;
            }
            if merged.contains(own) {
                l += 1;
            }
        }
        if let Some((theirs, item)) = there {
            merged.insert(theirs);
            out.extend(merge_at(child, partner(theirs), Some(item)));
            r += 1;
            if shared.peek().is_some_and(|next| *next == theirs) {
                shared.next();
            }
        }
    }
}

/// A tree without the given fields; nothing when nothing is left.
pub fn remove(node: Node<'_>, value: &Value, set: &FieldSet) -> Option<Value> {
    match node.view(value) {
        View::Atom if value.is_object() || value.is_array() => None,
        View::Atom => Some(value.clone()),
        View::Fields(fields) => {
            let map = value.as_object()?;
            let mut out = Map::new();
            let mut touched = false;
            for (key, item) in map {
                let element = Element::field(key);
                if set.has_element(&element) {
                    continue;
                }
                let kept = match (set.below(&element), fields.child(key)) {
                    (Some(below), Some(child)) => {
                        touched = true;
                        remove(child, item, below).unwrap_or_else(|| emptied(item))
                    }
                    _ => item.clone(),
                };
                out.insert(key.clone(), kept);
            }
            (touched || !out.is_empty()).then_some(Value::Object(out))
        }
        View::Items(list) => {
            let mut out = Vec::new();
            let mut touched = false;
            for item in value.as_array()? {
                let Ok(element) = element_of(list, item) else {
                    out.push(item.clone());
                    continue;
                };
                if set.has_element(&element) {
                    continue;
                }
                match set.below(&element) {
                    Some(below) => {
                        touched = true;
                        out.push(remove(Node::typed(&list.items), item, below).unwrap_or_else(|| emptied(item)));
                    }
                    None => out.push(item.clone()),
                }
            }
            (touched || !out.is_empty()).then_some(Value::Array(out))
        }
    }
}

/// The container a value was, with nothing in it.
fn emptied(value: &Value) -> Value {
    match value {
        Value::Object(_) => Value::Object(Map::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        _ => Value::Null,
    }
}

/// The set with every named field on the way to a member made a member too.
pub fn with_named_parents(node: Node<'_>, set: &FieldSet) -> FieldSet {
    set.map_members(&mut |above, element, has_below| {
        if !has_below {
            return false;
        }
        let mut at = Some(node);
        for step in above {
            at = at.and_then(|node| node.below(step, &Value::Object(Map::new())));
        }
        at.is_some_and(|node| node.names(element))
    })
}

/// The type of a built-in kind by the object's own `apiVersion` and `kind`.
pub fn builtin_type(api_version: &str, kind: &str) -> Option<Type> {
    let definition = schema::builtin().api_kind(api_version, kind)?;
    schema::builtin().type_of(&definition.name)
}
