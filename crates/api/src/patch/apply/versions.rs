//! The same object in other versions of its kind.
//!
//! What a manager owns is recorded in the version it wrote. Whether a write touches that is judged there: both
//! trees are brought into the entry's version and compared by its type.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Context;
use super::set::FieldSet;
use super::walk::{self, Comparison, Node};
use crate::Object;
use crate::schema::Type;

/// Brings objects into other versions of their kind. They say themselves which one they are in.
pub trait Versions: Sync {
    /// The object in a version, and the version's type; nothing when the kind has no such version (any more).
    fn convert(&self, object: &Object, api_version: &str) -> Result<Option<(Object, Type)>, String>;
}

/// A kind without other versions.
pub struct OneVersion;

impl Versions for OneVersion {
    fn convert(&self, _: &Object, _: &str) -> Result<Option<(Object, Type)>, String> {
        Ok(None)
    }
}

/// An object as one version shows it.
pub(super) struct Shown<'a> {
    pub object: Cow<'a, Object>,
    ty: Cow<'a, Type>,
}

impl Shown<'_> {
    pub fn node(&self) -> Node<'_> {
        Node::root(&self.ty)
    }
    pub fn fields(&self) -> FieldSet {
        walk::fields_of(self.node(), &self.object)
    }
    /// A set with the named fields above its members.
    pub fn named(&self, set: &FieldSet) -> FieldSet {
        walk::with_named_parents(self.node(), set)
    }
    /// The object without some fields.
    pub fn without(&self, set: &FieldSet) -> Object {
        walk::remove(self.node(), &self.object, set).unwrap_or_else(|| Object::Object(serde_json::Map::new()))
    }
}

/// An object of the version `from` in another one; nothing when that is no more.
pub(super) fn shown<'a>(
    context: Context<'a>,
    object: &'a Object,
    from: &str,
    version: &str,
) -> Result<Option<Shown<'a>>, String> {
    if version == context.api_version && from == version {
        return Ok(Some(Shown {
            object: Cow::Borrowed(object),
            ty: Cow::Borrowed(context.ty),
        }));
    }
    let found = context.versions.convert(object, version)?;
    Ok(found.map(|(object, ty)| Shown {
        object: Cow::Owned(object),
        ty: Cow::Owned(ty),
    }))
}

/// How two trees differ, in whatever version is asked for.
pub(super) struct Comparisons<'a> {
    context: Context<'a>,
    old: &'a Object,
    new: &'a Object,
    others: BTreeMap<String, Result<Option<Comparison>, String>>,
    own: Comparison,
}

impl<'a> Comparisons<'a> {
    pub fn new(context: Context<'a>, old: &'a Object, new: &'a Object) -> Self {
        Comparisons {
            own: context.compare(context.node(), old, new),
            context,
            old,
            new,
            others: BTreeMap::new(),
        }
    }

    /// In the version of the request.
    pub fn own(&self) -> &Comparison {
        &self.own
    }

    /// In a version; nothing when that is no more.
    pub fn of(&mut self, version: &str) -> Result<Option<&Comparison>, String> {
        let context = self.context;
        if version == context.api_version {
            return Ok(Some(&self.own));
        }
        if !self.others.contains_key(version) {
            let made = self.compare(version);
            self.others.insert(version.to_owned(), made);
        }
        match self.others.get(version) {
            Some(Ok(comparison)) => Ok(comparison.as_ref()),
            Some(Err(why)) => Err(why.clone()),
            None => Ok(None),
        }
    }

    fn compare(&self, version: &str) -> Result<Option<Comparison>, String> {
        let from = self.context.api_version;
        let Some(old) = shown(self.context, self.old, from, version)
            .map_err(|why| format!("failed to convert old object: {why}"))?
        else {
            return Ok(None);
        };
        let new = shown(self.context, self.new, from, version)
            .map_err(|why| format!("failed to convert new object: {why}"))?;
        Ok(new.map(|new| self.context.compare(old.node(), &old.object, &new.object)))
    }
}
