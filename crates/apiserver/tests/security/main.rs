//! Who is asking and who may, as a whole: every way of authentication, rows of authorizers, and attempts that must fail.

#[path = "../common/mod.rs"]
mod common;

mod agreement;
mod attacks;
mod attempts;
mod authentication;
mod authorization;
mod certificates;
mod every_endpoint;
mod forgeries;
mod once;
mod restricted;
mod smuggling;
