//! The libraries of Kubernetes' environment, as tables.

pub(crate) mod authorizer;
pub(crate) mod format;
pub(crate) mod lists;
pub(crate) mod network;
pub(crate) mod opaque;
pub(crate) mod quantities;
pub(crate) mod standard;
pub(crate) mod strings;
pub(crate) mod times;

use crate::functions::Row;

pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    [
        standard::ROWS,
        times::ROWS,
        strings::ROWS,
        lists::ROWS,
        network::ROWS,
        quantities::ROWS,
        format::ROWS,
        authorizer::ROWS,
    ]
    .into_iter()
    .flatten()
}
