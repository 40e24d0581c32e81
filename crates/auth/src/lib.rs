//! Who is asking, and may they.
//!
//! *Authentication* ([`Authenticator`]) turns a connection's certificate and a request's headers into a
//! [`UserInfo`]. *Authorization* ([`Authorizer`]: by default the node rules, then [`Rbac`]) answers whether that user
//! may do what an [`Attributes`] describes. Both are in-memory work without waiting: the API server feeds roles,
//! bindings and Pods as they change, and lends its cache to look up the objects tokens are bound to. What has to
//! wait for others (webhooks, keys of outside issuers) is behind [`TokenSource`] and [`Remote`].
//!
//! Invariants:
//! - nothing is allowed unless a rule says so; the one exception is the group `system:masters`;
//! - a credential that is shown but bad never becomes the anonymous user;
//! - texts of refusals are upstream's, since people and programs match on them.

pub mod attributes;
pub mod authentication;
pub mod authorizer;
pub mod front_proxy;
pub mod impersonation;
pub mod node;
pub mod node_restriction;
pub mod pod_references;
pub mod policy;
pub mod rbac;
pub mod rule;
pub mod token_file;
pub mod user;

pub use attributes::{Attributes, Decision, Requirement, Selectors};
pub use authentication::{
    Anonymous, Authenticated, AuthenticationError, Authenticator, Connection, Found, LookupKind, ObjectLookup, Sourced,
    Standing, TokenSource,
};
pub use authorizer::{Authorizer, Reasons, Remote, Step};
pub use front_proxy::FrontProxy;
pub use impersonation::Impersonation;
pub use node::NodeGraph;
pub use rbac::{Kind, Rbac};
pub use rule::Rule;
pub use user::UserInfo;
