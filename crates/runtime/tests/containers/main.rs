//! Real containers, as root, from an image with a static busybox. Skipped with a message elsewhere.

mod escapes;
mod lifecycle;
mod registry;
mod resources;
mod security;
mod streams;
#[path = "../../src/testing.rs"]
#[allow(dead_code, unused_imports)]
mod testing;
mod users;
mod world;
