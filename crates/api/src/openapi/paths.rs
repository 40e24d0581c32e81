//! The paths of an API and their operations, before any dialect.

use super::schemas::name_of;
use super::{Api, ResourceDesc, SubresourceDesc};
use crate::schema::{self, Definition, Descriptions};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

pub const WHOLE: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const STREAMS: [&str; 2] = [
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];

#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    pub name: &'static str,
    /// `query` or `path`
    pub place: &'static str,
    pub ty: &'static str,
    pub description: String,
}

#[derive(Clone, Debug)]
pub struct Body {
    pub definition: String,
    pub required: bool,
    pub media: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Definition(String),
    Text,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub method: &'static str,
    pub id: String,
    pub description: String,
    pub tag: String,
    /// Empty where upstream states none.
    pub action: &'static str,
    pub gvk: Option<(String, String, String)>,
    pub params: Vec<Param>,
    pub body: Option<Body>,
    pub codes: &'static [u16],
    pub answer: Answer,
    pub produces: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub struct PathItem {
    pub path: String,
    pub params: Vec<Param>,
    pub operations: Vec<Operation>,
}

/// Parameters with the texts of the options' definitions.
struct Params<'a> {
    texts: &'a Descriptions,
}

impl Params<'_> {
    fn text(&self, definition: &str, field: &str) -> String {
        let name = format!("{META}.{definition}");
        schema::builtin()
            .definition(&name)
            .and_then(Definition::as_struct)
            .and_then(|below| below.fields.iter().position(|own| own.name == field))
            .and_then(|at| self.texts.field(&name, at))
            .unwrap_or_default()
    }
    fn of(&self, definition: &str, params: &[(&'static str, &'static str)]) -> Vec<Param> {
        params
            .iter()
            .map(|(name, ty)| Param {
                name,
                place: "query",
                ty,
                description: self.text(definition, name),
            })
            .collect()
    }
    fn list(&self) -> Vec<Param> {
        let mut all = self.of(
            "ListOptions",
            &[
                ("allowWatchBookmarks", "boolean"),
                ("continue", "string"),
                ("fieldSelector", "string"),
                ("labelSelector", "string"),
                ("limit", "integer"),
                ("resourceVersion", "string"),
                ("resourceVersionMatch", "string"),
                ("sendInitialEvents", "boolean"),
                ("timeoutSeconds", "integer"),
                ("watch", "boolean"),
            ],
        );
        all.retain(|param| !param.description.is_empty());
        all
    }
    fn delete_collection(&self) -> Vec<Param> {
        let mut all = self.list();
        all.retain(|param| !matches!(param.name, "allowWatchBookmarks" | "watch"));
        all.extend(self.delete());
        all
    }
    fn write(&self, options: &str) -> Vec<Param> {
        self.of(
            options,
            &[
                ("dryRun", "string"),
                ("fieldManager", "string"),
                ("fieldValidation", "string"),
            ],
        )
    }
    fn patch(&self) -> Vec<Param> {
        let mut all = self.write("PatchOptions");
        all.extend(self.of("PatchOptions", &[("force", "boolean")]));
        all
    }
    fn delete(&self) -> Vec<Param> {
        self.of(
            "DeleteOptions",
            &[
                ("dryRun", "string"),
                ("gracePeriodSeconds", "integer"),
                ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
                ("orphanDependents", "boolean"),
                ("propagationPolicy", "string"),
            ],
        )
    }
}

fn path_param(name: &'static str, description: String) -> Param {
    Param {
        name,
        place: "path",
        ty: "string",
        description,
    }
}

fn pretty() -> Param {
    Param {
        name: "pretty",
        place: "query",
        ty: "string",
        description: "If 'true', then the output is pretty printed.".into(),
    }
}

/// Options of the subresources that are not objects.
fn own_params(subresource: &str) -> &'static [(&'static str, &'static str)] {
    match subresource {
        "log" => &[
            ("container", "string"),
            ("follow", "boolean"),
            ("insecureSkipTLSVerifyBackend", "boolean"),
            ("limitBytes", "integer"),
            ("previous", "boolean"),
            ("sinceSeconds", "integer"),
            ("stream", "string"),
            ("tailLines", "integer"),
            ("timestamps", "boolean"),
        ],
        "exec" => &[
            ("command", "string"),
            ("container", "string"),
            ("stderr", "boolean"),
            ("stdin", "boolean"),
            ("stdout", "boolean"),
            ("tty", "boolean"),
        ],
        "attach" => &[
            ("container", "string"),
            ("stderr", "boolean"),
            ("stdin", "boolean"),
            ("stdout", "boolean"),
            ("tty", "boolean"),
        ],
        "portforward" => &[("ports", "integer")],
        "proxy" => &[("path", "string")],
        _ => &[],
    }
}

/// `rbac.authorization.k8s.io` → `RbacAuthorization`, as operations' names have it.
fn camel_group(group: &str) -> String {
    if group.is_empty() {
        return "Core".into();
    }
    group
        .trim_end_matches(".k8s.io")
        .split(['.', '-'])
        .map(upper_first)
        .collect()
}

fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Whether deleting an object of the resource answers with the object itself; elsewhere the answer is a `Status`.
pub fn delete_answers_object(group: &str, plural: &str) -> bool {
    match group {
        "" => matches!(
            plural,
            "persistentvolumeclaims"
                | "persistentvolumes"
                | "pods"
                | "podtemplates"
                | "resourcequotas"
                | "serviceaccounts"
                | "services"
        ),
        "resource.k8s.io" => true,
        "storage.k8s.io" => plural != "csistoragecapacities",
        _ => false,
    }
}

/// `/api/v1` or `/apis/apps/v1`
pub fn root(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

/// Every path of a group version.
pub fn of_version(api: &Api, group: &str, version: &str, texts: &Descriptions) -> Vec<PathItem> {
    let mut items = vec![discovery(
        &format!("{}/", root(group, version)),
        &format!("get{}{}APIResources", camel_group(group), upper_first(version)),
        "get available resources",
        &tag(group, version),
        "APIResourceList",
    )];
    for resource in &api.resources {
        if resource.group == group && resource.version == version {
            Builder::new(resource, texts).paths(&mut items);
        }
    }
    items
}

/// A path that answers a discovery document.
pub fn discovery(path: &str, id: &str, description: &str, tag: &str, kind: &str) -> PathItem {
    PathItem {
        path: path.to_owned(),
        params: Vec::new(),
        operations: vec![Operation {
            method: "get",
            id: id.to_owned(),
            description: description.to_owned(),
            tag: tag.to_owned(),
            action: "",
            gvk: None,
            params: Vec::new(),
            body: None,
            codes: &[200],
            answer: Answer::Definition(format!("{META}.{kind}")),
            produces: WHOLE.to_vec(),
        }],
    }
}

/// The paths outside any version: `/api/`, `/apis/`, `/apis/{group}/`, `/version/`.
pub fn of_roots(api: &Api) -> Vec<(String, PathItem)> {
    let mut all = vec![
        (
            "api".to_owned(),
            discovery(
                "/api/",
                "getCoreAPIVersions",
                "get available API versions",
                "core",
                "APIVersions",
            ),
        ),
        (
            "apis".to_owned(),
            discovery(
                "/apis/",
                "getAPIVersions",
                "get available API versions",
                "apis",
                "APIGroupList",
            ),
        ),
    ];
    for (group, _) in api.group_versions() {
        let name = format!("apis/{group}");
        if group.is_empty() || all.iter().any(|(own, _)| *own == name) {
            continue;
        }
        let item = discovery(
            &format!("/apis/{group}/"),
            &format!("get{}APIGroup", camel_group(group)),
            "get information of a group",
            &lower_first(&camel_group(group)),
            "APIGroup",
        );
        all.push((name, item));
    }
    let mut version = discovery(
        "/version/",
        "getCodeVersion",
        "get the version information for this server",
        "version",
        "",
    );
    for operation in &mut version.operations {
        operation.answer = Answer::Definition("io.k8s.apimachinery.pkg.version.Info".into());
        operation.produces = vec!["application/json"];
    }
    all.push(("version".to_owned(), version));
    all
}

fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", lower_first(&camel_group(group)))
}

struct Builder<'a> {
    resource: &'a ResourceDesc,
    params: Params<'a>,
    definition: String,
}

impl<'a> Builder<'a> {
    fn new(resource: &'a ResourceDesc, texts: &'a Descriptions) -> Self {
        Builder {
            resource,
            params: Params { texts },
            definition: name_of(&resource.group, &resource.version, &resource.kind),
        }
    }

    fn id(&self, verb: &str, prefix: &str, suffix: &str) -> String {
        let resource = self.resource;
        let namespaced = if resource.namespaced && suffix != "ForAllNamespaces" {
            "Namespaced"
        } else {
            ""
        };
        format!(
            "{verb}{}{}{prefix}{namespaced}{}{suffix}",
            camel_group(&resource.group),
            upper_first(&resource.version),
            resource.kind
        )
    }

    fn gvk(&self) -> (String, String, String) {
        let resource = self.resource;
        (resource.group.clone(), resource.version.clone(), resource.kind.clone())
    }

    fn operation(&self, method: &'static str, action: &'static str, id: String, description: String) -> Operation {
        Operation {
            method,
            id,
            description,
            tag: tag(&self.resource.group, &self.resource.version),
            action,
            gvk: Some(self.gvk()),
            params: Vec::new(),
            body: None,
            codes: &[200],
            answer: Answer::Definition(self.definition.clone()),
            produces: WHOLE.to_vec(),
        }
    }

    fn patch_media(&self) -> Vec<&'static str> {
        let mut media = vec!["application/json-patch+json", "application/merge-patch+json"];
        if self.resource.schema.is_none() {
            media.push("application/strategic-merge-patch+json");
        }
        media.push("application/apply-patch+yaml");
        media
    }

    fn write_body(&self, definition: &str) -> Option<Body> {
        Some(Body {
            definition: definition.to_owned(),
            required: true,
            media: vec!["*/*"],
        })
    }

    fn patch_body(&self) -> Option<Body> {
        Some(Body {
            definition: format!("{META}.Patch"),
            required: true,
            media: self.patch_media(),
        })
    }

    fn delete_body(&self) -> Option<Body> {
        Some(Body {
            definition: format!("{META}.DeleteOptions"),
            required: false,
            media: vec!["*/*"],
        })
    }

    fn namespace(&self) -> Option<Param> {
        self.resource.namespaced.then(|| {
            path_param(
                "namespace",
                "object name and auth scope, such as for teams and projects".into(),
            )
        })
    }

    fn paths(&self, items: &mut Vec<PathItem>) {
        let resource = self.resource;
        let top = root(&resource.group, &resource.version);
        let base = if resource.namespaced {
            format!("{top}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{top}/{}", resource.plural)
        };
        if resource.namespaced && resource.has("list") {
            let mut operation = self.list("ForAllNamespaces");
            let mut params = std::mem::take(&mut operation.params);
            params.push(pretty());
            items.push(PathItem {
                path: format!("{top}/{}", resource.plural),
                params,
                operations: vec![operation],
            });
        }
        let collection = self.collection();
        if !collection.is_empty() {
            items.push(PathItem {
                path: base.clone(),
                params: self.namespace().into_iter().chain([pretty()]).collect(),
                operations: collection,
            });
        }
        let name = path_param("name", format!("name of the {}", resource.kind));
        let item = self.item();
        let shared = || {
            [name.clone()]
                .into_iter()
                .chain(self.namespace())
                .chain([pretty()])
                .collect::<Vec<_>>()
        };
        if !item.is_empty() {
            items.push(PathItem {
                path: format!("{base}/{{name}}"),
                params: shared(),
                operations: item,
            });
        }
        for subresource in &resource.subresources {
            let path = format!("{base}/{{name}}/{}", subresource.name);
            let mut params = shared();
            params.extend(own_params(&subresource.name).iter().map(|(name, ty)| Param {
                name,
                place: "query",
                ty,
                description: String::new(),
            }));
            let operations = self.subresource(subresource, "");
            if operations.is_empty() {
                continue;
            }
            items.push(PathItem {
                path: path.clone(),
                params: params.clone(),
                operations,
            });
            if subresource.name == "proxy" {
                params.retain(|param| param.place == "path");
                params.push(path_param("path", "path to the resource".into()));
                items.push(PathItem {
                    path: format!("{path}/{{path}}"),
                    params,
                    operations: self.subresource(subresource, "WithPath"),
                });
            }
        }
    }

    fn list(&self, suffix: &str) -> Operation {
        let resource = self.resource;
        let mut operation = self.operation(
            "get",
            "list",
            self.id("list", "", suffix),
            format!("list or watch objects of kind {}", resource.kind),
        );
        operation.answer = Answer::Definition(name_of(&resource.group, &resource.version, &resource.list_kind));
        operation.params = self.params.list();
        if resource.has("watch") {
            operation.produces.extend(STREAMS);
        }
        operation
    }

    fn collection(&self) -> Vec<Operation> {
        let resource = self.resource;
        let kind = &resource.kind;
        let mut all = Vec::new();
        if resource.has("list") {
            all.push(self.list(""));
        }
        if resource.has("create") {
            let mut operation = self.operation(
                "post",
                "post",
                self.id("create", "", ""),
                format!("create {} {kind}", article(kind)),
            );
            operation.params = self.params.write("CreateOptions");
            operation.body = self.write_body(&self.definition);
            operation.codes = &[200, 201, 202];
            all.push(operation);
        }
        if resource.has("deletecollection") {
            let mut operation = self.operation(
                "delete",
                "deletecollection",
                self.id("delete", "Collection", ""),
                format!("delete collection of {kind}"),
            );
            operation.params = self.params.delete_collection();
            operation.body = self.delete_body();
            operation.answer = Answer::Definition(format!("{META}.Status"));
            all.push(operation);
        }
        all
    }

    fn item(&self) -> Vec<Operation> {
        let resource = self.resource;
        let kind = &resource.kind;
        let mut all = Vec::new();
        if resource.has("get") {
            all.push(self.operation(
                "get",
                "get",
                self.id("read", "", ""),
                format!("read the specified {kind}"),
            ));
        }
        if resource.has("update") {
            let mut operation = self.operation(
                "put",
                "put",
                self.id("replace", "", ""),
                format!("replace the specified {kind}"),
            );
            operation.params = self.params.write("UpdateOptions");
            operation.body = self.write_body(&self.definition);
            operation.codes = &[200, 201];
            all.push(operation);
        }
        if resource.has("patch") {
            let mut operation = self.operation(
                "patch",
                "patch",
                self.id("patch", "", ""),
                format!("partially update the specified {kind}"),
            );
            operation.params = self.params.patch();
            operation.body = self.patch_body();
            operation.codes = &[200, 201];
            all.push(operation);
        }
        if resource.has("delete") {
            let mut operation = self.operation(
                "delete",
                "delete",
                self.id("delete", "", ""),
                format!("delete {} {kind}", article(kind)),
            );
            operation.params = self.params.delete();
            operation.body = self.delete_body();
            operation.codes = &[200, 202];
            if !delete_answers_object(&resource.group, &resource.plural) {
                operation.answer = Answer::Definition(format!("{META}.Status"));
            }
            all.push(operation);
        }
        all
    }

    fn subresource(&self, subresource: &SubresourceDesc, suffix: &str) -> Vec<Operation> {
        let kind = &self.resource.kind;
        let name = &subresource.name;
        let after = format!("{}{suffix}", upper_first(name));
        let mut all = Vec::new();
        if subresource.connect {
            let methods: &[&'static str] = if name == "proxy" {
                &["get", "put", "post", "delete", "options", "head", "patch"]
            } else {
                &["get", "post"]
            };
            for method in methods {
                let upper = upper_first(method);
                let mut operation = self.operation(
                    method,
                    "connect",
                    self.id("connect", &upper, &after),
                    format!("connect {} requests to {name} of {kind}", method.to_uppercase()),
                );
                operation.answer = Answer::Text;
                operation.produces = vec!["*/*"];
                operation.gvk = Some(self.sub_gvk(subresource));
                all.push(operation);
            }
            return all;
        }
        let definition = name_of(&subresource.group, &subresource.version, &subresource.kind);
        for verb in &subresource.verbs {
            let (method, action, word, text) = match verb.as_str() {
                "get" => ("get", "get", "read", format!("read {name} of the specified {kind}")),
                "update" => (
                    "put",
                    "put",
                    "replace",
                    format!("replace {name} of the specified {kind}"),
                ),
                "patch" => (
                    "patch",
                    "patch",
                    "patch",
                    format!("partially update {name} of the specified {kind}"),
                ),
                "create" => (
                    "post",
                    "post",
                    "create",
                    format!("create {name} of {} {kind}", article(kind)),
                ),
                "delete" => (
                    "delete",
                    "delete",
                    "delete",
                    format!("delete {name} of {} {kind}", article(kind)),
                ),
                _ => continue,
            };
            let mut operation = self.operation(method, action, self.id(word, "", &after), text);
            operation.gvk = Some(self.sub_gvk(subresource));
            operation.answer = Answer::Definition(definition.clone());
            match action {
                "get" if name == "log" => {
                    operation.answer = Answer::Text;
                    operation.produces.insert(0, "text/plain");
                }
                "put" | "post" => {
                    let options = if action == "put" {
                        "UpdateOptions"
                    } else {
                        "CreateOptions"
                    };
                    operation.params = self.params.write(options);
                    operation.body = self.write_body(&definition);
                    operation.codes = if action == "put" { &[200, 201] } else { &[200, 201, 202] };
                }
                "patch" => {
                    operation.params = self.params.patch();
                    operation.body = self.patch_body();
                    operation.codes = &[200, 201];
                }
                _ => {}
            }
            all.push(operation);
        }
        all
    }

    fn sub_gvk(&self, subresource: &SubresourceDesc) -> (String, String, String) {
        (
            subresource.group.clone(),
            subresource.version.clone(),
            subresource.kind.clone(),
        )
    }
}

fn article(kind: &str) -> &'static str {
    if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an"
    } else {
        "a"
    }
}
