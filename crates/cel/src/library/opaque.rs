//! Values of the libraries.

use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;
use sampan_api::quantity::Quantity;

use crate::library::authorizer::{Decision, GroupCheck, PathCheck, ResourceCheck, User};
use crate::library::format::NamedFormat;
use crate::types::AUTHORIZER;
use crate::value::Value;

pub enum Opaque<'a> {
    Quantity(Quantity),
    Url(Box<url::Url>, String),
    Ip(IpAddr),
    /// The address as written, with the length.
    Cidr(IpNet),
    Semver(semver::Version),
    Format(&'static NamedFormat),
    Authorizer(User<'a>),
    PathCheck(PathCheck<'a>),
    GroupCheck(GroupCheck<'a>),
    ResourceCheck(ResourceCheck<'a>),
    Decision(Decision),
}

impl<'a> Opaque<'a> {
    pub(crate) fn type_name(&self) -> &'static str {
        let crate::types::Type::Opaque(authorizer) = AUTHORIZER else {
            return "kubernetes.authorization.Authorizer";
        };
        match self {
            Opaque::Quantity(_) => "kubernetes.Quantity",
            Opaque::Url(..) => "kubernetes.URL",
            Opaque::Ip(_) => "net.IP",
            Opaque::Cidr(_) => "net.CIDR",
            Opaque::Semver(_) => "kubernetes.Semver",
            Opaque::Format(_) => "kubernetes.NamedFormat",
            Opaque::Authorizer(_) => authorizer,
            Opaque::PathCheck(_) => "kubernetes.authorization.PathCheck",
            Opaque::GroupCheck(_) => "kubernetes.authorization.GroupCheck",
            Opaque::ResourceCheck(_) => "kubernetes.authorization.ResourceCheck",
            Opaque::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Opaque::Ip(IpAddr::V4(_)) | Opaque::Cidr(IpNet::V4(_)) => 4,
            Opaque::Ip(IpAddr::V6(_)) | Opaque::Cidr(IpNet::V6(_)) => 16,
            _ => 1,
        }
    }

    pub(crate) fn equals(&self, other: &Opaque<'_>) -> bool {
        match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a == b,
            (Opaque::Url(_, a), Opaque::Url(_, b)) => a == b,
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a), Opaque::Cidr(b)) => a == b,
            (Opaque::Semver(a), Opaque::Semver(b)) => a.cmp_precedence(b).is_eq(),
            (Opaque::Format(a), Opaque::Format(b)) => a.name == b.name,
            _ => false,
        }
    }

    pub(crate) fn to_text(&self) -> Option<String> {
        Some(match self {
            Opaque::Quantity(quantity) => quantity.to_string(),
            Opaque::Url(_, text) => text.clone(),
            Opaque::Ip(ip) => ip.to_string(),
            Opaque::Cidr(cidr) => cidr.to_string(),
            Opaque::Semver(version) => version.to_string(),
            _ => return None,
        })
    }
}

pub(crate) fn value(opaque: Opaque<'_>) -> Value<'_> {
    Value::Opaque(Rc::new(opaque))
}
