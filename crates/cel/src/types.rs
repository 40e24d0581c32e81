//! The types of expressions, and what may be given where.
//!
//! A type parameter is a number into a list of substitutions (`Bindings`); overloads are written as text once
//! and their letters become fresh parameters at every call.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::schema::Decl;

#[derive(Clone, Debug)]
pub enum Type {
    /// Known only when it is evaluated.
    Dyn,
    /// Already complained about.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    /// The type of a type.
    Type(Arc<Type>),
    Object(Arc<ObjectType>),
    /// A value of a library: an IP, a quantity, the authorizer.
    Opaque(&'static str),
    Param(u32),
}

type Resolve = Box<dyn Fn(&str) -> Option<Arc<Decl>> + Send + Sync>;

/// Where the fields of an object type come from.
pub enum Fields {
    Known(BTreeMap<String, Arc<Decl>>),
    /// Looked up when asked for: schemas that contain themselves.
    Lazy(Resolve),
}

/// A type with named fields. Two are the same if their names are.
pub struct ObjectType {
    pub name: String,
    pub fields: Fields,
    /// Whether an expression may make one: `Object.spec{replicas: 1}`.
    pub constructible: bool,
}

impl fmt::Debug for ObjectType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl ObjectType {
    /// A field by its name in expressions (escaped).
    pub fn field(&self, name: &str) -> Option<Arc<Decl>> {
        match &self.fields {
            Fields::Known(fields) => fields.get(name).cloned(),
            Fields::Lazy(resolve) => resolve(name),
        }
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Type::List(a), Type::List(b))
            | (Type::Optional(a), Type::Optional(b))
            | (Type::Type(a), Type::Type(b)) => a == b,
            (Type::Map(a, b), Type::Map(c, d)) => a == c && b == d,
            (Type::Object(a), Type::Object(b)) => a.name == b.name,
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Param(a), Type::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl Type {
    pub fn list(item: Type) -> Type {
        Type::List(Arc::new(item))
    }
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }
    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }
    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }
    pub(crate) fn unwrap_optional(&self) -> (&Type, bool) {
        match self {
            Type::Optional(of) => (of, true),
            other => (other, false),
        }
    }
    /// Whether values have one size only.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
            Type::Optional(of) => of.is_scalar(),
            _ => false,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Dyn => "dyn",
            Type::Error => "!error!",
            Type::Null => "null",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Timestamp => "timestamp",
            Type::Duration => "duration",
            Type::List(item) => return write!(f, "list({item})"),
            Type::Map(key, value) => return write!(f, "map({key}, {value})"),
            Type::Optional(of) => return write!(f, "optional_type({of})"),
            Type::Type(of) => return write!(f, "type({of})"),
            Type::Object(object) => &object.name,
            Type::Opaque(name) => name,
            Type::Param(index) => return write!(f, "_var{index}"),
        })
    }
}

/// Substitutions of type parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings {
    of: Vec<Option<Type>>,
}

impl Bindings {
    pub fn fresh(&mut self) -> Type {
        self.of.push(None);
        Type::Param(self.of.len() as u32 - 1)
    }

    fn find(&self, ty: &Type) -> Option<&Type> {
        match ty {
            Type::Param(index) => self.of.get(*index as usize)?.as_ref(),
            _ => None,
        }
    }

    fn bind(&mut self, ty: &Type, to: Type) {
        if let Type::Param(index) = ty
            && let Some(slot) = self.of.get_mut(*index as usize)
        {
            *slot = Some(to);
        }
    }

    /// Replaces bound parameters; unbound ones become dyn if `to_dyn`.
    pub fn substitute(&self, ty: &Type, to_dyn: bool) -> Type {
        if let Some(bound) = self.find(ty) {
            return self.substitute(bound, to_dyn);
        }
        let sub = |ty: &Type| Arc::new(self.substitute(ty, to_dyn));
        match ty {
            Type::Param(_) if to_dyn => Type::Dyn,
            Type::List(item) => Type::List(sub(item)),
            Type::Map(key, value) => Type::Map(sub(key), sub(value)),
            Type::Optional(of) => Type::Optional(sub(of)),
            Type::Type(of) => Type::Type(sub(of)),
            other => other.clone(),
        }
    }

    /// Whether `a` can stand where `b` is wanted; remembers what that says about parameters.
    pub fn assign(&mut self, a: &Type, b: &Type) -> bool {
        let mut trial = self.clone();
        if trial.try_assign(a, b) {
            *self = trial;
            return true;
        }
        false
    }

    pub fn assign_all<'t>(&mut self, pairs: impl Iterator<Item = (&'t Type, &'t Type)>) -> bool {
        let mut trial = self.clone();
        for (a, b) in pairs {
            if !trial.try_assign(a, b) {
                return false;
            }
        }
        *self = trial;
        true
    }

    fn try_assign(&mut self, a: &Type, b: &Type) -> bool {
        if matches!(b, Type::Param(_)) {
            let (valid, bound) = self.valid_substitution(a, b);
            if valid || bound {
                return valid;
            }
        }
        if matches!(a, Type::Param(_)) {
            return self.valid_substitution(b, a).0;
        }
        if a.is_dyn() || b.is_dyn() {
            return true;
        }
        let nullable = |ty: &Type| {
            matches!(
                ty,
                Type::Null | Type::Optional(_) | Type::Opaque(_) | Type::Object(_) | Type::Duration | Type::Timestamp
            )
        };
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => nullable(other),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.try_assign(a, b),
            (Type::Map(ka, va), Type::Map(kb, vb)) => self.try_assign(ka, kb) && self.try_assign(va, vb),
            _ => a == b,
        }
    }

    fn valid_substitution(&mut self, a: &Type, param: &Type) -> (bool, bool) {
        if a == param {
            return (true, true);
        }
        if let Some(bound) = self.find(param).cloned() {
            if *a == bound {
                return (true, true);
            }
            if self.try_assign(a, &bound) {
                let general = most_general(a, &bound);
                if self.not_within(param, &general) {
                    self.bind(param, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.not_within(param, a) {
            self.bind(param, a.clone());
            return (true, false);
        }
        (false, false)
    }

    fn not_within(&self, param: &Type, ty: &Type) -> bool {
        if param == ty {
            return false;
        }
        match ty {
            Type::Param(_) => self.find(ty).is_none_or(|bound| self.not_within(param, bound)),
            Type::List(of) | Type::Optional(of) | Type::Type(of) => self.not_within(param, of),
            Type::Map(key, value) => self.not_within(param, key) && self.not_within(param, value),
            _ => true,
        }
    }
}

pub(crate) fn most_general(a: &Type, b: &Type) -> Type {
    if less_specific(a, b) { a.clone() } else { b.clone() }
}

fn less_specific(a: &Type, b: &Type) -> bool {
    if a.is_dyn() || matches!(a, Type::Param(_)) {
        return true;
    }
    if b.is_dyn() || matches!(b, Type::Param(_)) {
        return false;
    }
    match (a, b) {
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => less_specific(a, b),
        (Type::Map(ka, va), Type::Map(kb, vb)) => less_specific(ka, kb) && less_specific(va, vb),
        (Type::Type(_), Type::Type(_)) => true,
        _ => a == b,
    }
}

/// One way to call a function.
#[derive(Debug)]
pub(crate) struct Overload {
    pub member: bool,
    pub params: Vec<Type>,
    pub result: Type,
    /// How many type parameters it has; they are numbered from 0 here.
    pub generics: u32,
}

impl Overload {
    /// Reads `list(A).(A,int) int` (a member) or `(A,A) bool`. Signatures are our own text, so what cannot be
    /// read is a type nobody can have.
    pub fn parse(text: &str) -> Overload {
        let mut reader = Signature {
            rest: text,
            letters: Vec::new(),
        };
        let mut params = Vec::new();
        let member = !reader.rest.starts_with('(');
        if member {
            params.push(reader.ty());
            reader.eat('.');
        }
        reader.eat('(');
        while !reader.rest.is_empty() && !reader.rest.starts_with(')') {
            params.push(reader.ty());
            reader.eat(',');
        }
        reader.eat(')');
        let result = reader.ty();
        Overload {
            member,
            params,
            result,
            generics: reader.letters.len() as u32,
        }
    }

    /// Parameters and result with fresh type parameters.
    pub fn instantiate(&self, bindings: &mut Bindings) -> (Vec<Type>, Type) {
        if self.generics == 0 {
            return (self.params.clone(), self.result.clone());
        }
        let fresh: Vec<Type> = (0..self.generics).map(|_| bindings.fresh()).collect();
        (
            self.params.iter().map(|ty| replace(ty, &fresh)).collect(),
            replace(&self.result, &fresh),
        )
    }
}

fn replace(ty: &Type, with: &[Type]) -> Type {
    let sub = |ty: &Type| Arc::new(replace(ty, with));
    match ty {
        Type::Param(index) => with.get(*index as usize).cloned().unwrap_or(Type::Dyn),
        Type::List(item) => Type::List(sub(item)),
        Type::Map(key, value) => Type::Map(sub(key), sub(value)),
        Type::Optional(of) => Type::Optional(sub(of)),
        Type::Type(of) => Type::Type(sub(of)),
        other => other.clone(),
    }
}

struct Signature<'t> {
    rest: &'t str,
    letters: Vec<char>,
}

impl<'t> Signature<'t> {
    fn eat(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn ty(&mut self) -> Type {
        self.rest = self.rest.trim_start();
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        let mut of = Vec::new();
        if matches!(name, "list" | "map" | "optional" | "type") && self.eat('(') {
            while !self.rest.starts_with(')') && !self.rest.is_empty() {
                of.push(self.ty());
                self.eat(',');
            }
            self.eat(')');
        }
        let mut of = of.into_iter();
        let mut next = || of.next().unwrap_or(Type::Dyn);
        match name {
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "timestamp" => Type::Timestamp,
            "duration" => Type::Duration,
            "list" => Type::list(next()),
            "map" => {
                let key = next();
                Type::map(key, next())
            }
            "optional" => Type::optional(next()),
            "type" => Type::Type(Arc::new(next())),
            "Quantity" => Type::Opaque("kubernetes.Quantity"),
            "Url" => Type::Opaque("kubernetes.URL"),
            "Ip" => Type::Opaque("net.IP"),
            "Cidr" => Type::Opaque("net.CIDR"),
            "Semver" => Type::Opaque("kubernetes.Semver"),
            "Format" => Type::Opaque("kubernetes.NamedFormat"),
            "Authorizer" => AUTHORIZER,
            "PathCheck" => Type::Opaque("kubernetes.authorization.PathCheck"),
            "GroupCheck" => Type::Opaque("kubernetes.authorization.GroupCheck"),
            "ResourceCheck" => Type::Opaque("kubernetes.authorization.ResourceCheck"),
            "Decision" => Type::Opaque("kubernetes.authorization.Decision"),
            letter if letter.len() == 1 => {
                let letter = letter.chars().next().unwrap_or('A');
                let index = self.letters.iter().position(|known| *known == letter);
                let index = index.unwrap_or_else(|| {
                    self.letters.push(letter);
                    self.letters.len() - 1
                });
                Type::Param(index as u32)
            }
            _ => Type::Dyn,
        }
    }
}

/// The type of the variable `authorizer`.
pub const AUTHORIZER: Type = Type::Opaque("kubernetes.authorization.Authorizer");
/// The type of `authorizer.requestResource`.
pub const RESOURCE_CHECK: Type = Type::Opaque("kubernetes.authorization.ResourceCheck");
