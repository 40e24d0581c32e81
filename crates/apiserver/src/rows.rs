//! The resource table in use: built-in rows and, at run time, custom ones.
//!
//! Readers take a snapshot; a change (a custom resource definition) replaces the whole table.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use sampan_api::schema::{self, Type};
use sampan_api::{Object, field};
use sampan_kinds::{Part, Resource, Strategy};

use tokio::sync::watch;

use crate::custom::Custom;
use crate::sync::{read, write};
use crate::watch_cache::Storage;

/// A served resource with its storage.
pub struct Row {
    pub spec: &'static Resource,
    /// The row objects are stored as; the same as `spec` unless `spec` is another version's view of it.
    pub stored: &'static Resource,
    /// `None` for resources that only answer questions.
    pub storage: Option<Arc<Storage>>,
    /// `v1`, `apps/v1`
    pub api_version: String,
    /// `apiVersion` as stored.
    pub stored_version: String,
    /// What its objects look like.
    pub ty: Type,
    /// The JSON schema of a kind that is neither built in nor custom: it is only measured.
    pub measured: Option<Arc<serde_json::Value>>,
    /// For resources of a CustomResourceDefinition.
    pub custom: Option<Arc<Custom>>,
    /// Which field of the storage a selectable field's label reads.
    fields: Vec<(&'static str, usize)>,
}

impl Row {
    /// The strategy of the stored form.
    pub fn strategy(&self) -> &dyn Strategy {
        match &self.custom {
            Some(custom) => &custom.strategy,
            None => self.stored.strategy,
        }
    }
    /// The strategy whose checks come first.
    fn first_checks(&self) -> &dyn Strategy {
        if self.has_own_checks() {
            self.spec.strategy
        } else {
            self.strategy()
        }
    }
    /// Whether what is asked of the stored form is not asked of objects that come in this version.
    fn has_own_checks(&self) -> bool {
        self.converts() && self.spec.strategy.validates_alone()
    }
    /// What is wrong with a name.
    pub fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        self.first_checks().validate_name(name, prefix)
    }
    /// Checks a new object in its stored form: by the rules of its kind, and by those of the version it came in.
    pub fn validate_create(&self, object: &Object) -> field::Errors {
        let mut errors = self.first_checks().validate_create(object);
        if self.converts() && !self.has_own_checks() {
            errors.extend(self.spec.strategy.validate_create(object));
        }
        errors
    }
    /// [`validate_create`](Self::validate_create) for a changed object.
    pub fn validate_update(&self, part: Part<'_>, new: &Object, old: &Object) -> field::Errors {
        let mut errors = self.first_checks().validate_update(part, new, old);
        if self.converts() && !self.has_own_checks() {
            errors.extend(self.spec.strategy.validate_update(part, new, old));
        }
        errors
    }
    /// Fills in defaults of an object in this row's version.
    pub fn default(&self, object: &mut Object) {
        match &self.custom {
            Some(custom) => custom.strategy.default(object),
            None => self.spec.strategy.default(object),
        }
    }
    /// Whether replies need conversion from the stored version. Objects of custom rows are converted before.
    pub fn converts(&self) -> bool {
        self.spec.stored_as.is_some()
    }
    /// Turns an object of this row's version into its stored form.
    pub fn to_storage(&self, object: &mut Object) {
        if let Some(conversion) = &self.spec.stored_as {
            (conversion.to_storage)(object);
        }
    }
    /// Turns a stored object into this row's version.
    pub fn from_storage(&self, object: &mut Object) {
        if let Some(conversion) = &self.spec.stored_as {
            (conversion.from_storage)(object);
        }
    }
    /// The cells of a table row, from the stored form.
    pub fn cells(&self, object: &Object, now: jiff::Timestamp) -> Vec<serde_json::Value> {
        match &self.custom {
            Some(custom) => custom.cells(object, now),
            None => (self.spec.cells)(object, now),
        }
    }
    /// `columnDefinitions` of its tables.
    pub fn columns(&self) -> serde_json::Value {
        if let Some(custom) = &self.custom {
            return custom.columns.clone();
        }
        self.spec
            .columns
            .iter()
            .map(|column| {
                serde_json::json!({
                    "name": column.name, "type": column.kind, "format": column.format,
                    "description": column.description, "priority": column.priority,
                })
            })
            .collect()
    }
    /// Whether it has tables at all.
    pub fn has_columns(&self) -> bool {
        self.custom.is_some() || !self.spec.columns.is_empty()
    }
    pub fn field(&self, label: &str) -> Option<usize> {
        self.fields
            .iter()
            .find(|(known, _)| *known == label)
            .map(|(_, index)| *index)
    }
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.spec.group == group && self.spec.plural == plural
    }
    /// `pods`, `deployments.apps`
    pub fn qualified(&self) -> String {
        if self.spec.group.is_empty() {
            self.spec.plural.to_owned()
        } else {
            format!("{}.{}", self.spec.plural, self.spec.group)
        }
    }
    /// The path of an object below the storage prefix.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        if self.spec.namespaced {
            format!("{namespace}/{name}")
        } else {
            name.to_owned()
        }
    }
}

/// All rows, in discovery order.
#[derive(Default)]
pub struct Table {
    pub rows: Vec<Arc<Row>>,
    by_plural: HashMap<&'static str, Vec<Arc<Row>>>,
}

impl Table {
    fn new(rows: Vec<Arc<Row>>) -> Self {
        let mut by_plural: HashMap<_, Vec<_>> = HashMap::new();
        for row in &rows {
            by_plural.entry(row.spec.plural).or_default().push(row.clone());
        }
        Table { rows, by_plural }
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Row>> {
        self.by_plural
            .get(plural)?
            .iter()
            .find(|row| row.spec.group == group && row.spec.version == version)
    }

    /// The preferred row of a group and plural.
    pub fn of(&self, group: &str, plural: &str) -> Option<&Arc<Row>> {
        self.by_plural.get(plural)?.iter().find(|row| row.spec.group == group)
    }

    /// The row of a kind.
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Row>> {
        self.rows
            .iter()
            .find(|row| row.spec.kind == kind && row.spec.group == group && row.spec.version == version)
    }

    /// Whether a group and version is served at all.
    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.rows
            .iter()
            .any(|row| row.spec.group == group && row.spec.version == version)
    }
}

/// The table that can be replaced while requests run.
#[derive(Default)]
pub struct Rows {
    table: RwLock<Arc<Table>>,
    changed: watch::Sender<()>,
}

impl Rows {
    /// Rows and storages for built-in resources.
    pub fn build(resources: &'static [Resource]) -> (Self, Vec<Arc<Storage>>) {
        let mut storages: HashMap<&'static str, Arc<Storage>> = HashMap::new();
        for resource in resources.iter().filter(|resource| !resource.storage_prefix.is_empty()) {
            storages.entry(resource.storage_prefix).or_insert_with(|| {
                // Every version's selectable fields, the storage version's first: all read the stored form.
                let mut fields: Vec<_> = resources
                    .iter()
                    .filter(|other| other.storage_prefix == resource.storage_prefix)
                    .map(|other| (other.stored_as.is_some(), other.fields))
                    .collect();
                fields.sort_by_key(|(converted, _)| *converted);
                let fields = fields
                    .into_iter()
                    .flat_map(|(_, fields)| fields.iter().copied())
                    .collect();
                let indexed = (resource.storage_prefix == "pods").then_some("spec.nodeName");
                Arc::new(Storage::new(resource.storage_prefix, fields, indexed))
            });
        }
        let rows = resources
            .iter()
            .map(|spec| Arc::new(row(spec, resources, storages.get(spec.storage_prefix).cloned())))
            .collect();
        let rows = Rows {
            table: RwLock::new(Arc::new(Table::new(rows))),
            changed: watch::Sender::default(),
        };
        (rows, storages.into_values().collect())
    }

    /// Adds the rows of what is measured.
    pub fn add_measured(&self) {
        for spec in sampan_kinds::measured() {
            let measured = Row {
                measured: Some(Arc::new(sampan_kinds::metrics::schema(spec.kind))),
                ..row(spec, sampan_kinds::measured(), None)
            };
            self.replace(spec.group, spec.plural, vec![Arc::new(measured)]);
        }
    }

    /// Tells of every replacement.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn get(&self) -> Arc<Table> {
        read(&self.table).clone()
    }

    /// Puts these rows in place of every row of a group and plural.
    pub fn replace(&self, group: &str, plural: &str, rows: Vec<Arc<Row>>) {
        let mut table = write(&self.table);
        let kept = table.rows.iter().filter(|row| !row.is(group, plural)).cloned();
        let all = kept.chain(rows).collect();
        *table = Arc::new(Table::new(all));
        drop(table);
        self.changed.send_replace(());
    }

    /// Takes away every row of a group and plural.
    pub fn remove(&self, group: &str, plural: &str) {
        self.replace(group, plural, Vec::new());
    }
}

/// A row over a storage.
pub fn row(spec: &'static Resource, resources: &'static [Resource], storage: Option<Arc<Storage>>) -> Row {
    let stored = spec
        .stored_as
        .and_then(|conversion| {
            resources.iter().find(|other| {
                (other.group, other.version) == conversion.storage_version
                    && other.storage_prefix == spec.storage_prefix
            })
        })
        .unwrap_or(spec);
    let fields = storage.as_ref().map_or_else(Vec::new, |storage| {
        spec.fields
            .iter()
            .filter_map(|field| {
                // The reader decides: two versions may use one label differently.
                let index = storage
                    .fields()
                    .iter()
                    .position(|known| known.label == field.label && std::ptr::fn_addr_eq(known.read, field.read))?;
                Some((field.label, index))
            })
            .collect()
    });
    let schema = schema::builtin();
    let ty = schema
        .kind(spec.group, spec.version, spec.kind)
        .and_then(|definition| schema.type_of(&definition.name))
        .unwrap_or(Type::Json);
    Row {
        custom: None,
        measured: None,
        api_version: spec.api_version(),
        stored_version: stored.api_version(),
        spec,
        stored,
        storage,
        ty,
        fields,
    }
}

/// Which resource a key of the store belongs to, as configurations of encryption name it: that of the version and group
/// it is stored in.
pub fn stored_resources() -> sampan_encryption::Resources {
    use sampan_encryption::GroupResource;
    let mut known: std::collections::HashMap<&'static str, GroupResource> = std::collections::HashMap::new();
    for spec in sampan_kinds::resources()
        .iter()
        .filter(|spec| !spec.storage_prefix.is_empty())
    {
        let entry = known
            .entry(spec.storage_prefix)
            .or_insert_with(|| GroupResource::new(spec.group, spec.plural));
        if spec.stored_as.is_none() && (entry.group != spec.group) && spec.group.is_empty() {
            *entry = GroupResource::new(spec.group, spec.plural);
        }
    }
    Arc::new(move |key| {
        let path = key.strip_prefix(crate::watch_cache::ROOT)?;
        let found = path
            .match_indices('/')
            .take(3)
            .find_map(|(end, _)| known.get(path.get(..end)?));
        if let Some(found) = found {
            return Some(found.clone());
        }
        // Custom resources are below their group and plural.
        let mut parts = path.split('/');
        let (group, plural, _) = (parts.next()?, parts.next()?, parts.next()?);
        group.contains('.').then(|| GroupResource::new(group, plural))
    })
}

/// A row of a custom resource.
pub fn custom_row(spec: &'static Resource, storage: Arc<Storage>, ty: Type, custom: Arc<Custom>) -> Row {
    Row {
        api_version: spec.api_version(),
        // Strategies of custom rows see the row's own version.
        stored_version: spec.api_version(),
        spec,
        stored: spec,
        storage: Some(storage),
        ty,
        measured: None,
        custom: Some(custom),
        fields: Vec::new(),
    }
}
