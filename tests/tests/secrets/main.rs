//! Who holds the secrets: that they turn up nowhere, that files are private, that the store is encrypted as a user sets
//! it up, and that the audit log tells what happened.

mod alone;
mod audit;
mod encryption;
mod files;
mod needles;
mod plugin;
mod traces;
