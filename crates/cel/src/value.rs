//! Values. Those that come from objects are views of the JSON they are in: nothing is copied to look at it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map as JsonMap, Value as Json};

use crate::context::Context;
use crate::error::EvalError;
use crate::library::opaque::Opaque;
use crate::schema::{DYN, Decl, ListKind, Shape, unescape};
use crate::time;
use crate::types::Type;

/// A text, borrowed from an object or made.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Ref(&'a str),
    Own(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Ref(text) => text,
            Text::Own(text) => text,
        }
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Text::Own(text.into())
    }
}

#[derive(Clone)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Rc<Value<'a>>>),
    Type(Type),
    Opaque(Rc<Opaque<'a>>),
    /// Fields that are worked out when they are asked for: `variables`.
    Lazy(Rc<dyn Lazy<'a> + 'a>),
    /// A made object: `Object.spec{…}`.
    Made(Rc<Made<'a>>),
}

/// Something with fields whose values take work.
pub trait Lazy<'a> {
    fn field(self: Rc<Self>, name: &str) -> Option<Result<Value<'a>, EvalError>>;
}

/// An object an expression has made.
pub struct Made<'a> {
    pub name: Arc<str>,
    pub fields: Vec<(Arc<str>, Value<'a>)>,
}

#[derive(Clone)]
pub enum List<'a> {
    Json(&'a [Json], &'a Decl),
    Own(Rc<Vec<Value<'a>>>),
}

#[derive(Clone)]
pub enum Map<'a> {
    Json(&'a JsonMap<String, Json>, &'a Decl),
    Own(Rc<BTreeMap<Key<'a>, Value<'a>>>),
}

/// A key of a map. Whole numbers are equal whatever their type.
#[derive(Clone, Debug)]
pub enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Text<'a>),
}

impl Key<'_> {
    fn rank(&self) -> u8 {
        match self {
            Key::Bool(_) => 0,
            Key::Int(_) | Key::Uint(_) => 1,
            Key::String(_) => 2,
        }
    }
    fn number(&self) -> i128 {
        match self {
            Key::Bool(value) => i128::from(*value),
            Key::Int(value) => i128::from(*value),
            Key::Uint(value) => i128::from(*value),
            Key::String(_) => 0,
        }
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Key::String(a), Key::String(b)) => str::cmp(a, b),
            _ => self
                .rank()
                .cmp(&other.rank())
                .then_with(|| self.number().cmp(&other.number())),
        }
    }
}
impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Key<'_> {}

impl<'a> Key<'a> {
    pub(crate) fn value(&self) -> Value<'a> {
        match self {
            Key::Bool(value) => Value::Bool(*value),
            Key::Int(value) => Value::Int(*value),
            Key::Uint(value) => Value::Uint(*value),
            Key::String(value) => Value::String(value.clone()),
        }
    }
    pub(crate) fn of(value: &Value<'a>) -> Option<Key<'a>> {
        Some(match value {
            Value::Bool(value) => Key::Bool(*value),
            Value::Int(value) => Key::Int(*value),
            Value::Uint(value) => Key::Uint(*value),
            Value::String(value) => Key::String(value.clone()),
            Value::Double(value) if value.fract() == 0.0 && value.abs() < 9.2e18 => Key::Int(*value as i64),
            _ => return None,
        })
    }
}

impl<'a> Value<'a> {
    /// A view of JSON nothing is known of.
    pub fn json(json: &'a Json) -> Value<'a> {
        Value::typed(json, &DYN)
    }

    /// A view of JSON as declared.
    pub fn typed(json: &'a Json, decl: &'a Decl) -> Value<'a> {
        let any: &'a Decl = &DYN;
        match (json, &decl.shape) {
            (Json::Null, _) => Value::Null,
            (Json::Bool(value), _) => Value::Bool(*value),
            (Json::Number(number), Shape::Double) => Value::Double(number.as_f64().unwrap_or_default()),
            (Json::Number(number), shape) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), ..) => Value::Int(value),
                (_, Some(value), _) => Value::Uint(value),
                (_, _, Some(value)) if matches!(shape, Shape::Int) && value.fract() == 0.0 && value.abs() < 9.2e18 => {
                    Value::Int(value as i64)
                }
                (_, _, value) => Value::Double(value.unwrap_or_default()),
            },
            (Json::String(text), shape) => {
                let made = match shape {
                    Shape::Bytes => STANDARD.decode(text).ok().map(|bytes| Value::Bytes(bytes.into())),
                    Shape::Duration => time::parse_duration(text).map(Value::Duration),
                    Shape::Date => time::parse_date(text).map(Value::Timestamp),
                    Shape::DateTime => time::parse_timestamp(text).map(Value::Timestamp),
                    _ => None,
                };
                made.unwrap_or(Value::String(Text::Ref(text)))
            }
            (Json::Array(items), Shape::List(..)) => Value::List(List::Json(items, decl)),
            (Json::Array(items), _) => Value::List(List::Json(items, any)),
            (Json::Object(map), Shape::Map(_) | Shape::Object(_)) => Value::Map(Map::Json(map, decl)),
            (Json::Object(map), _) => Value::Map(Map::Json(map, any)),
        }
    }

    pub fn string(text: impl Into<String>) -> Value<'a> {
        Value::String(Text::Own(text.into().into()))
    }
    pub fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(List::Own(Rc::new(items)))
    }
    pub fn some(value: Value<'a>) -> Value<'a> {
        Value::Optional(Some(Rc::new(value)))
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn type_of(&self) -> Type {
        let any = || Type::Dyn;
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Duration(_) => Type::Duration,
            Value::Timestamp(_) => Type::Timestamp,
            Value::List(_) => Type::list(any()),
            Value::Map(Map::Json(_, decl)) if matches!(decl.shape, Shape::Object(_)) => decl.ty.clone(),
            Value::Map(_) => Type::map(any(), any()),
            Value::Optional(_) => Type::optional(any()),
            Value::Type(_) => Type::Type(Arc::new(any())),
            Value::Opaque(opaque) => Type::Opaque(opaque.type_name()),
            Value::Lazy(_) | Value::Made(_) => any(),
        }
    }

    /// As costs count it: characters, bytes, items, entries; 1 for everything else.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Value::String(text) => text.chars().count() as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            Value::Optional(Some(value)) => value.size(),
            Value::Opaque(opaque) => opaque.size(),
            _ => 1,
        }
    }

    /// The field or entry of that name.
    pub(crate) fn select(&self, name: &str) -> Result<Option<Value<'a>>, EvalError> {
        match self {
            Value::Map(Map::Json(map, decl)) => Ok(match &decl.shape {
                Shape::Object(object) => {
                    let plain = unescape(name);
                    match (map.get(&*plain), crate::schema::field_of(object, name)) {
                        (Some(value), Some(decl)) => Some(Value::typed(value, decl)),
                        (Some(value), None) => Some(Value::json(value)),
                        (None, _) => None,
                    }
                }
                Shape::Map(of) => map.get(name).map(|value| Value::typed(value, of)),
                _ => map.get(name).map(Value::json),
            }),
            Value::Map(Map::Own(map)) => Ok(map.get(&Key::String(Text::Own(name.into()))).cloned()),
            Value::Lazy(lazy) => lazy.clone().field(name).transpose(),
            Value::Made(made) => Ok(made
                .fields
                .iter()
                .find(|(field, _)| &**field == name)
                .map(|(_, value)| value.clone())),
            _ => Err(EvalError::no_overload()),
        }
    }

    /// `_[_]`: the item or entry; `None` if there is none.
    pub(crate) fn index(&self, key: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
        match self {
            Value::List(list) => {
                let at = match key {
                    Value::Int(at) => usize::try_from(*at).ok(),
                    Value::Uint(at) => usize::try_from(*at).ok(),
                    Value::Double(at) if at.fract() == 0.0 && *at >= 0.0 && *at < 1e15 => Some(*at as usize),
                    Value::Double(_) => None,
                    _ => {
                        return Err(EvalError::failed(format!(
                            "unsupported index type '{}' in list",
                            key.type_of()
                        )));
                    }
                };
                Ok(at.and_then(|at| list.get(at)))
            }
            Value::Map(map) => match Key::of(key) {
                Some(key) => Ok(map.get(&key)),
                None => Ok(None),
            },
            Value::Made(_) | Value::Lazy(_) => match key {
                Value::String(name) => self.select(name),
                _ => Err(EvalError::no_overload()),
            },
            _ => Err(EvalError::no_overload()),
        }
    }

    /// As JSON, for patches and annotations. `None` for what JSON cannot say.
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Value::Null => Json::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Uint(value) => (*value).into(),
            Value::Double(value) => serde_json::Number::from_f64(*value)?.into(),
            Value::String(text) => Json::from(&**text),
            Value::Bytes(bytes) => STANDARD.encode(bytes).into(),
            Value::Duration(nanos) => time::format_duration(*nanos).into(),
            Value::Timestamp(at) => time::format_timestamp(*at).into(),
            Value::List(List::Json(items, _)) => Json::Array(items.to_vec()),
            Value::List(List::Own(items)) => Json::Array(items.iter().map(Value::to_json).collect::<Option<_>>()?),
            Value::Map(Map::Json(map, _)) => Json::Object((*map).clone()),
            Value::Map(Map::Own(map)) => {
                let mut object = JsonMap::new();
                for (key, value) in &**map {
                    let Key::String(key) = key else { return None };
                    object.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Value::Made(made) => {
                let mut object = JsonMap::new();
                for (name, value) in &made.fields {
                    object.insert(unescape(name).into_owned(), value.to_json()?);
                }
                Json::Object(object)
            }
            Value::Optional(Some(value)) => value.to_json()?,
            Value::Opaque(opaque) => Json::from(opaque.to_text()?),
            Value::Optional(None) | Value::Type(_) | Value::Lazy(_) => return None,
        })
    }
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Own(items) => items.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn get(&self, at: usize) -> Option<Value<'a>> {
        match self {
            List::Json(items, decl) => items.get(at).map(|item| match &decl.shape {
                Shape::List(of, _) => Value::typed(item, of),
                _ => Value::json(item),
            }),
            List::Own(items) => items.get(at).cloned(),
        }
    }
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|at| self.get(at))
    }
    pub(crate) fn kind(&self) -> &ListKind {
        match self {
            List::Json(
                _,
                Decl {
                    shape: Shape::List(_, kind),
                    ..
                },
            ) => kind,
            _ => &ListKind::Atomic,
        }
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Map::Json(map, _) => map.len(),
            Map::Own(map) => map.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn get(&self, key: &Key<'a>) -> Option<Value<'a>> {
        match (self, key) {
            (Map::Json(map, decl), Key::String(key)) => map.get(&**key).map(|value| match &decl.shape {
                Shape::Map(of) => Value::typed(value, of),
                _ => Value::json(value),
            }),
            (Map::Json(..), _) => None,
            (Map::Own(map), key) => map.get(key).cloned(),
        }
    }
    pub fn keys(&self) -> Box<dyn Iterator<Item = Key<'a>> + '_> {
        match self {
            Map::Json(map, _) => {
                let map: &'a JsonMap<String, Json> = map;
                Box::new(map.keys().map(|key| Key::String(Text::Ref(key))))
            }
            Map::Own(map) => Box::new(map.keys().cloned()),
        }
    }
}

/// Equality across types of numbers; different types are simply not equal.
pub(crate) fn equal<'a>(a: &Value<'a>, b: &Value<'a>, context: &Context<'_>) -> Result<bool, EvalError> {
    context.work(1)?;
    Ok(match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => {
            context.work(a.len().min(b.len()) as u64 / 16)?;
            **a == **b
        }
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Type(a), Value::Type(b)) => std::mem::discriminant(a) == std::mem::discriminant(b) && shallow(a, b),
        (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => equal(a, b, context)?,
        (Value::Opaque(a), Value::Opaque(b)) => a.equals(b),
        (Value::List(a), Value::List(b)) => return equal_lists(a, b, context),
        (Value::Map(a), Value::Map(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            if let (Map::Json(_, da), Map::Json(_, db)) = (a, b)
                && (matches!(da.shape, Shape::Object(_)) || matches!(db.shape, Shape::Object(_)))
            {
                return equal_objects(a, b, context);
            }
            for key in a.keys() {
                match (a.get(&key), b.get(&key)) {
                    (Some(a), Some(b)) if equal(&a, &b, context)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Made(a), Value::Made(b)) => {
            if a.name != b.name || a.fields.len() != b.fields.len() {
                return Ok(false);
            }
            for (name, value) in &a.fields {
                let other = b.fields.iter().find(|(other, _)| other == name);
                match other {
                    Some((_, other)) if equal(value, other, context)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        _ => number_order(a, b) == Some(Ordering::Equal),
    })
}

fn shallow(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Object(a), Type::Object(b)) => a.name == b.name,
        (Type::Opaque(a), Type::Opaque(b)) => a == b,
        _ => true,
    }
}

fn equal_objects<'a>(a: &Map<'a>, b: &Map<'a>, context: &Context<'_>) -> Result<bool, EvalError> {
    let (Map::Json(fields, _), left, right) = (a, Value::Map(a.clone()), Value::Map(b.clone())) else {
        return Ok(false);
    };
    for name in fields.keys() {
        let name = crate::schema::escape(name).unwrap_or_else(|| name.clone());
        match (left.select(&name)?, right.select(&name)?) {
            (Some(a), Some(b)) if equal(&a, &b, context)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Sets and maps that are written as lists are equal whatever their order.
fn equal_lists<'a>(a: &List<'a>, b: &List<'a>, context: &Context<'_>) -> Result<bool, EvalError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    match a.kind() {
        ListKind::Atomic => {
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(&a, &b, context)? {
                    return Ok(false);
                }
            }
        }
        ListKind::Set => {
            for a in a.iter() {
                if !contains(b, &a, context)? {
                    return Ok(false);
                }
            }
        }
        ListKind::Map(keys) => {
            for item in a.iter() {
                match find_by_keys(b, &item, keys, context)? {
                    Some((_, other)) if equal(&item, &other, context)? => {}
                    _ => return Ok(false),
                }
            }
        }
    }
    Ok(true)
}

pub(crate) fn contains<'a>(list: &List<'a>, value: &Value<'a>, context: &Context<'_>) -> Result<bool, EvalError> {
    for item in list.iter() {
        if equal(&item, value, context)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The item of a list that has the keys of `like`.
pub(crate) fn find_by_keys<'a>(
    list: &List<'a>,
    like: &Value<'a>,
    keys: &[String],
    context: &Context<'_>,
) -> Result<Option<(usize, Value<'a>)>, EvalError> {
    'items: for (index, item) in list.iter().enumerate() {
        for key in keys {
            let key = crate::schema::escape(key).unwrap_or_else(|| key.clone());
            let same = match (item.select(&key)?, like.select(&key)?) {
                (Some(a), Some(b)) => equal(&a, &b, context)?,
                (None, None) => true,
                _ => false,
            };
            if !same {
                continue 'items;
            }
        }
        return Ok(Some((index, item)));
    }
    Ok(None)
}

/// The order of two numbers, exactly, whatever their types; `None` for NaN and what is no number.
pub(crate) fn number_order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    let whole = |value: &Value<'_>| match value {
        Value::Int(value) => Some(i128::from(*value)),
        Value::Uint(value) => Some(i128::from(*value)),
        _ => None,
    };
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), b) => whole(b).and_then(|b| double_order(*a, b)),
        (a, Value::Double(b)) => whole(a).and_then(|a| double_order(*b, a)).map(Ordering::reverse),
        (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
    }
}

fn double_order(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    // Beyond this no 64-bit number reaches, and below it every whole part fits.
    if a >= 2e19 {
        return Some(Ordering::Greater);
    }
    if a <= -2e19 {
        return Some(Ordering::Less);
    }
    let order = (a.trunc() as i128).cmp(&b);
    Some(order.then_with(|| a.fract().partial_cmp(&0.0).unwrap_or(Ordering::Equal)))
}

/// `<` and its kin; `None` if the two cannot be compared.
pub(crate) fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    Some(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => str::cmp(a, b),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
        _ => return number_order(a, b),
    })
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Int(value) => write!(f, "{value}"),
            Value::Uint(value) => write!(f, "{value}u"),
            Value::Optional(None) => f.write_str("optional.none()"),
            Value::Optional(Some(value)) => write!(f, "optional({value:?})"),
            Value::Type(ty) => write!(f, "{ty}"),
            Value::List(list) => f.debug_list().entries(list.iter()).finish(),
            Value::Map(map) => f
                .debug_map()
                .entries(map.keys().map(|key| (key.value(), map.get(&key))))
                .finish(),
            other => match other.to_json() {
                Some(json) => write!(f, "{json}"),
                None => f.write_str("?"),
            },
        }
    }
}
