//! The tests of the API server as a whole, in one program: every program of its own would link the whole server.
//!
//! `cargo test -p sampan-apiserver webhooks` runs one module, `... webhooks::calls::kubectl_meets` one test. A test that needs a
//! process of its own belongs into a file of its own beside this directory.

#[path = "../common/mod.rs"]
mod common;

mod admission_attacks;
mod aggregation;
mod api;
mod audit;
mod clients;
mod consistency;
mod conversion;
mod custom;
mod flow;
mod front;
mod kubectl;
mod outbound;
mod patches;
mod plugins;
mod policies;
mod policy_versions;
mod printed;
mod proxy;
mod quotas;
mod streams;
mod usage;
mod webhooks;
