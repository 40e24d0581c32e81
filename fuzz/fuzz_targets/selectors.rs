#![no_main]

#[path = "../../crates/api/tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::run("selectors", bytes));
