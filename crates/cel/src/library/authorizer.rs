//! Questions to the authorizer: `authorizer.group('').resource('pods').namespace('a').check('get').allowed()`.

use std::sync::Arc;

use sampan_api::names;

use crate::error::EvalError;
use crate::functions::{Cost, Outcome, Row};
use crate::library::opaque::{Opaque, value};
use crate::value::Value;

/// Whoever answers. `service_account` is set when the question is about another than the user of the request.
pub trait Authorize {
    fn authorize(&self, question: &Question<'_>) -> Decision;
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Question<'q> {
    /// Namespace and name of the service account it is asked for; the user of the request otherwise.
    pub service_account: Option<(&'q str, &'q str)>,
    pub verb: &'q str,
    /// Set for paths that are no resources.
    pub path: Option<&'q str>,
    pub group: &'q str,
    pub resource: &'q str,
    pub subresource: &'q str,
    pub namespace: &'q str,
    pub name: &'q str,
    pub field_selector: &'q str,
    pub label_selector: &'q str,
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

#[derive(Clone)]
pub struct User<'a> {
    authorizer: &'a dyn Authorize,
    service_account: Option<Arc<(String, String)>>,
}

#[derive(Clone)]
pub struct PathCheck<'a> {
    user: User<'a>,
    path: String,
}

#[derive(Clone)]
pub struct GroupCheck<'a> {
    user: User<'a>,
    group: String,
}

#[derive(Clone)]
pub struct ResourceCheck<'a> {
    user: User<'a>,
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
    field_selector: String,
    label_selector: String,
}

impl<'a> Value<'a> {
    /// The variable `authorizer`.
    pub fn authorizer(authorizer: &'a dyn Authorize) -> Value<'a> {
        let user = User {
            authorizer,
            service_account: None,
        };
        value(Opaque::Authorizer(user))
    }

    /// The variable `authorizer.requestResource`.
    pub fn request_resource(
        authorizer: &'a dyn Authorize,
        [group, resource, subresource, namespace, name]: [&str; 5],
    ) -> Value<'a> {
        value(Opaque::ResourceCheck(ResourceCheck {
            user: User {
                authorizer,
                service_account: None,
            },
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            field_selector: String::new(),
            label_selector: String::new(),
        }))
    }
}

fn text(args: &[Value<'_>], at: usize) -> Result<String, EvalError> {
    match args.get(at) {
        Some(Value::String(text)) => Ok(text.to_string()),
        _ => Err(EvalError::no_overload()),
    }
}

fn user<'a>(args: &[Value<'a>]) -> Result<User<'a>, EvalError> {
    if let Some(Value::Opaque(opaque)) = args.first()
        && let Opaque::Authorizer(user) = &**opaque
    {
        return Ok(user.clone());
    }
    Err(EvalError::no_overload())
}

fn resource<'a>(args: &[Value<'a>], change: impl Fn(&mut ResourceCheck<'a>, String)) -> Outcome<'a> {
    if let Some(Value::Opaque(opaque)) = args.first()
        && let Opaque::ResourceCheck(check) = &**opaque
    {
        let mut check = check.clone();
        change(&mut check, text(args, 1)?);
        return Ok(value(Opaque::ResourceCheck(check)));
    }
    Err(EvalError::no_overload())
}

fn decision<'v>(args: &'v [Value<'_>]) -> Result<&'v Decision, EvalError> {
    match args.first() {
        Some(Value::Opaque(opaque)) => match &**opaque {
            Opaque::Decision(decision) => Ok(decision),
            _ => Err(EvalError::no_overload()),
        },
        _ => Err(EvalError::no_overload()),
    }
}

pub(crate) const ROWS: &[Row] = &[
    ("path", &["Authorizer.(string) PathCheck"], Cost::Fixed(1), |_, args| {
        let (user, path) = (user(args)?, text(args, 1)?);
        if path.trim().is_empty() {
            return Err(EvalError::failed("path must not be empty"));
        }
        Ok(value(Opaque::PathCheck(PathCheck { user, path })))
    }),
    (
        "group",
        &["Authorizer.(string) GroupCheck"],
        Cost::Fixed(1),
        |_, args| {
            let (user, group) = (user(args)?, text(args, 1)?);
            Ok(value(Opaque::GroupCheck(GroupCheck { user, group })))
        },
    ),
    (
        "serviceAccount",
        &["Authorizer.(string,string) Authorizer"],
        Cost::Fixed(1),
        |_, args| {
            let (mut user, namespace, name) = (user(args)?, text(args, 1)?, text(args, 2)?);
            if !names::name_is_dns_subdomain(&name, false).is_empty() {
                return Err(EvalError::failed("Invalid service account name"));
            }
            if !names::name_is_dns_label(&namespace, false).is_empty() {
                return Err(EvalError::failed("Invalid service account namespace"));
            }
            user.service_account = Some(Arc::new((namespace, name)));
            Ok(value(Opaque::Authorizer(user)))
        },
    ),
    (
        "resource",
        &["GroupCheck.(string) ResourceCheck"],
        Cost::Fixed(1),
        |_, args| {
            let Some(Value::Opaque(opaque)) = args.first() else {
                return Err(EvalError::no_overload());
            };
            let Opaque::GroupCheck(check) = &**opaque else {
                return Err(EvalError::no_overload());
            };
            let resource = text(args, 1)?;
            if resource.trim().is_empty() {
                return Err(EvalError::failed("resource must not be empty"));
            }
            Ok(value(Opaque::ResourceCheck(ResourceCheck {
                user: check.user.clone(),
                group: check.group.clone(),
                resource,
                subresource: String::new(),
                namespace: String::new(),
                name: String::new(),
                field_selector: String::new(),
                label_selector: String::new(),
            })))
        },
    ),
    (
        "subresource",
        &["ResourceCheck.(string) ResourceCheck"],
        Cost::Fixed(1),
        |_, args| resource(args, |check, text| check.subresource = text),
    ),
    (
        "namespace",
        &["ResourceCheck.(string) ResourceCheck"],
        Cost::Fixed(1),
        |_, args| resource(args, |check, text| check.namespace = text),
    ),
    (
        "name",
        &["ResourceCheck.(string) ResourceCheck"],
        Cost::Fixed(1),
        |_, args| resource(args, |check, text| check.name = text),
    ),
    (
        "fieldSelector",
        &["ResourceCheck.(string) ResourceCheck"],
        Cost::Selector,
        |_, args| resource(args, |check, text| check.field_selector = text),
    ),
    (
        "labelSelector",
        &["ResourceCheck.(string) ResourceCheck"],
        Cost::Selector,
        |_, args| resource(args, |check, text| check.label_selector = text),
    ),
    (
        "check",
        &["PathCheck.(string) Decision", "ResourceCheck.(string) Decision"],
        Cost::Fixed(350_000),
        |_, args| {
            let verb = text(args, 1)?;
            let Some(Value::Opaque(opaque)) = args.first() else {
                return Err(EvalError::no_overload());
            };
            let (user, question) = match &**opaque {
                Opaque::PathCheck(check) => (
                    &check.user,
                    Question {
                        path: Some(&check.path),
                        ..Question::default()
                    },
                ),
                Opaque::ResourceCheck(check) => (
                    &check.user,
                    Question {
                        group: &check.group,
                        resource: &check.resource,
                        subresource: &check.subresource,
                        namespace: &check.namespace,
                        name: &check.name,
                        field_selector: &check.field_selector,
                        label_selector: &check.label_selector,
                        ..Question::default()
                    },
                ),
                _ => return Err(EvalError::no_overload()),
            };
            let decision = user.authorizer.authorize(&Question {
                verb: &verb,
                service_account: user
                    .service_account
                    .as_deref()
                    .map(|(namespace, name)| (&**namespace, &**name)),
                ..question
            });
            Ok(value(Opaque::Decision(decision)))
        },
    ),
    ("allowed", &["Decision.() bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(decision(args)?.allowed))
    }),
    ("reason", &["Decision.() string"], Cost::Fixed(1), |_, args| {
        Ok(Value::string(decision(args)?.reason.clone()))
    }),
    ("errored", &["Decision.() bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(decision(args)?.error.is_some()))
    }),
    ("error", &["Decision.() string"], Cost::Fixed(1), |_, args| {
        Ok(Value::string(decision(args)?.error.clone().unwrap_or_default()))
    }),
];
