//! Storage control: claims get volumes, volumes are given back.
//!
//! [`binder`] ties claims to volumes and decides what becomes of volumes whose claim is gone. It makes no volume and
//! destroys none: that is a provisioner's, an external one or [`local`].

mod binder;
mod claim;
mod local;
#[cfg(test)]
mod local_tests;
mod recent;
#[cfg(test)]
mod tests;
mod volume;

pub(crate) use binder::start;
pub(crate) use local::start as start_local;
