//! Storage control: claims get volumes, volumes are given back.
//!
//! [`binder`] ties claims to volumes and decides what becomes of volumes whose claim is gone. It makes no volume and
//! destroys none: that is a provisioner's, an external one or [`local`]. [`ephemeral`] makes the claims of volumes that live
//! as long as their Pod. [`attach`] has volumes of CSI drivers attached to nodes,
//! [`expand`] has them grow.

mod attach;
mod binder;
mod claim;
mod ephemeral;
mod expand;
mod local;
#[cfg(test)]
mod local_tests;
mod recent;
#[cfg(test)]
mod tests;
mod volume;

pub(crate) use attach::start as start_attaching;
pub(crate) use binder::start;
pub(crate) use ephemeral::start as start_ephemeral;
pub(crate) use expand::start as start_expanding;
pub(crate) use local::start as start_local;
